//! The host port: the veth pair `mgy0` (the kernel's end) and `mgy0x` (ours), and the routes that lead the kernel to it.
//!
//! ```text
//!   kernel ── route: pod CIDRs via 169.254.1.1 / fe80::1 dev mgy0, src the node's address ──▶ mgy0 ═ mgy0x ──▶ worker
//! ```
//!
//! The gateway addresses stand in the kernel's neighbour table for good, so nothing needs to be asked. Below every such route lies an
//! "unreachable" one with the worst metric: when the pair is gone, packets for pods are refused and not sent to the default gateway.
//! Those stay when the agent stops.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use margay_wire::MacAddr;

use crate::net::netlink::VethEnd;
use crate::net::routes::{NodeRoute, WORST_METRIC, Way};
use crate::net::{Link, NetError, Netlink, ethtool, sysctl};

/// The kernel's end.
pub const KERNEL_END: &str = "mgy0";
/// Our end, where the first AF_XDP socket stands.
pub const OUR_END: &str = "mgy0x";
/// Ethernet address of the kernel's end. Fixed, so that a restarted agent finds the neighbour entries right.
const KERNEL_MAC: MacAddr = MacAddr([0x02, 0x6d, 0x67, 0x79, 0x30, 0x01]);
/// Ethernet address of our end.
const OUR_MAC: MacAddr = MacAddr([0x02, 0x6d, 0x67, 0x79, 0x30, 0x02]);

/// Makes the pair, or takes over the one that an earlier run left, and returns (kernel's end, our end). Our end stays down: it comes up
/// once its XDP program is attached.
pub fn ensure(netlink: &mut Netlink, mtu: u32, gateways: [IpAddr; 2]) -> Result<(Link, Link), NetError> {
    let present = (netlink.link(KERNEL_END)?, netlink.link(OUR_END)?);
    if !matches!(present, (Some(_), Some(_))) {
        for half in [present.0, present.1].into_iter().flatten() {
            netlink.delete_link(half.index)?;
        }
        let kernel = VethEnd { name: KERNEL_END, mac: KERNEL_MAC, netns: None, no_arp: false };
        let ours = VethEnd { name: OUR_END, mac: OUR_MAC, netns: None, no_arp: true };
        netlink.add_veth(&kernel, &ours, mtu)?;
    }
    let (kernel, ours) = (netlink.existing(KERNEL_END)?, netlink.existing(OUR_END)?);
    for end in [&kernel, &ours] {
        if end.mtu != mtu {
            netlink.set_mtu(end.index, mtu)?;
        }
    }
    sysctl::set_if_present(&["ipv6", "conf", OUR_END, "disable_ipv6"], "1")?;
    sysctl::set_if_present(&["ipv6", "conf", KERNEL_END, "accept_ra"], "0")?;
    sysctl::set_if_present(&["ipv6", "conf", KERNEL_END, "accept_dad"], "0")?;
    for end in [KERNEL_END, OUR_END] {
        ethtool::set_features(end, &[("tx-vlan-hw-insert", false), ("rx-vlan-hw-parse", false)])?;
    }
    netlink.set_up(kernel.index, true)?;
    lead_to_gateways(netlink, kernel.index, gateways)?;
    Ok((netlink.existing(KERNEL_END)?, netlink.existing(OUR_END)?))
}

/// Makes the gateways known to the kernel. To be done again after its end lost its last IPv4 address: routes and neighbours go with it.
pub fn lead_to_gateways(netlink: &mut Netlink, kernel: u32, gateways: [IpAddr; 2]) -> Result<(), NetError> {
    for gateway in gateways {
        netlink.add_neighbour(kernel, gateway, OUR_MAC)?;
    }
    let [v4, _] = gateways;
    netlink.add_route(IpNet::from(v4), None, kernel)
}

/// Returns the routes that lead the kernel to pods in `cidrs`, and its own packets to `hosts` through the packet path. `source` says which
/// of our addresses packets on a route have.
pub fn wanted_routes(
    device: u32,
    gateways: [IpAddr; 2],
    source: impl Fn(&IpNet) -> Option<IpAddr>,
    cidrs: &BTreeSet<IpNet>,
    hosts: &BTreeSet<IpAddr>,
) -> BTreeSet<NodeRoute> {
    let mut wanted = BTreeSet::new();
    let mut lead = |destination: IpNet| {
        let same = |address: &&IpAddr| address.is_ipv4() == destination.addr().is_ipv4();
        let Some(gateway) = gateways.iter().find(same).copied() else { return };
        let way = Way::Via { gateway, device, source: source(&destination) };
        wanted.insert(NodeRoute { destination, way, metric: 0 });
    };
    cidrs.iter().for_each(|cidr| lead(*cidr));
    // Nothing below these: when the device goes, a node is reached as it was before.
    hosts.iter().for_each(|host| lead(IpNet::from(*host)));
    let refused =
        |cidr: &IpNet| NodeRoute { destination: *cidr, way: Way::Unreachable, metric: WORST_METRIC };
    wanted.extend(cidrs.iter().map(refused));
    wanted
}

/// Keeps the kernel's routes to pods as wanted.
#[derive(Debug, Default)]
pub struct PodRoutes {
    installed: BTreeSet<NodeRoute>,
}

impl PodRoutes {
    /// Adds what is missing and removes what is not wanted any more; stops at the first refusal and goes on from there next time.
    pub fn reconcile(&mut self, netlink: &mut Netlink, wanted: &BTreeSet<NodeRoute>) -> Result<(), NetError> {
        let gone: Vec<NodeRoute> = self.installed.difference(wanted).copied().collect();
        for route in wanted.difference(&self.installed.clone()) {
            netlink.replace_route(route)?;
            self.installed.insert(*route);
        }
        for route in gone {
            let replaced =
                wanted.iter().any(|w| (w.destination, w.metric) == (route.destination, route.metric));
            if !replaced {
                netlink.delete_route(&route)?;
            }
            self.installed.remove(&route);
        }
        Ok(())
    }

    /// Forgets what was installed, so that the next call puts everything back: somebody removed a route or the device was made anew.
    pub fn invalidate(&mut self) {
        self.installed.clear();
    }
}
