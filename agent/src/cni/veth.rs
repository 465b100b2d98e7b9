//! The pair of a pod: what its two ends are called, what they look like, and how each is told from anybody else's.
//!
//! The host end has no IP stack of its own: IPv6 and ARP are off before it ever comes up, so the kernel cannot speak to a pod past policy.
//! The pod end has a /32 and a /128, and a gateway that exists nowhere: the dataplane answers for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use margay_wire::MacAddr;
use sha1::{Digest, Sha1};

use crate::endpoints::AttachmentKey;
use crate::net::netlink::RouteEntry;
use crate::net::netns::NetNs;
use crate::net::{Link, NetError, Netlink, VethEnd, ethtool, sysctl};

/// A pod's IPv4 gateway.
pub const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// A pod's IPv6 gateway.
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Ethernet address of every host end: the gateway's, as far as a pod can tell.
pub const HOST_MAC: MacAddr = MacAddr([0xee; 6]);

/// The start of the alias that marks a host end as ours.
const MARK: &str = "margay";

fn digest(key: &AttachmentKey) -> [u8; 20] {
    Sha1::digest(format!("{}/{}", key.container_id, key.ifname)).into()
}

/// Returns the host end's name: `mgy` and 12 hexadecimal digits, the longest that fits.
pub fn host_name(key: &AttachmentKey) -> String {
    let digest = digest(key);
    digest[..6].iter().fold(String::from("mgy"), |name, octet| format!("{name}{octet:02x}"))
}

/// Returns the pod end's Ethernet address: unicast, locally administered, the same for the same attachment.
pub fn pod_mac(key: &AttachmentKey) -> MacAddr {
    let mut octets = [0; 6];
    octets.copy_from_slice(&digest(key)[14..]);
    octets[0] = (octets[0] & 0xfc) | 0x02;
    MacAddr(octets)
}

/// Returns the text by which a host end says whose it is.
pub fn alias(network: &str, key: &AttachmentKey) -> String {
    format!("{MARK} {network} {} {}", key.container_id, key.ifname)
}

/// Returns the attachment that a host end of `network` says it belongs to.
pub fn owner(network: &str, link: &Link) -> Option<AttachmentKey> {
    let mut words = link.alias.as_deref()?.split(' ');
    let ours = words.next() == Some(MARK) && words.next() == Some(network);
    let (container_id, ifname) = (words.next()?.to_owned(), words.next()?.to_owned());
    (ours && words.next().is_none()).then_some(AttachmentKey { container_id, ifname })
}

/// Whether `link` is the host end of a pod, of any network.
pub fn is_ours(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.split(' ').next() == Some(MARK))
}

/// Returns the gateways for the families that `addresses` has.
pub fn gateways(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let v4 = addresses.iter().any(IpAddr::is_ipv4).then_some(GATEWAY_V4);
    let v6 = addresses.iter().any(IpAddr::is_ipv6).then_some(GATEWAY_V6);
    v4.into_iter().chain(v6).collect()
}

/// Keeps VLAN tags (802.1Q and 802.1ad) in the frame: beside it, no XDP program would see them.
const TAGS_IN_FRAMES: [(&str, bool); 4] = [
    ("rx-vlan-hw-parse", false),
    ("tx-vlan-hw-insert", false),
    ("rx-vlan-stag-hw-parse", false),
    ("tx-vlan-stag-hw-insert", false),
];

/// Makes the pair, both ends down, the pod's born inside `netns`; `EEXIST` when either name is taken.
pub fn create(netlink: &mut Netlink, key: &AttachmentKey, netns: &NetNs, mtu: u32) -> Result<(), NetError> {
    let name = host_name(key);
    let ours = VethEnd { name: &name, mac: HOST_MAC, netns: None, no_arp: true };
    let theirs = VethEnd { name: &key.ifname, mac: pod_mac(key), netns: Some(netns.as_fd()), no_arp: false };
    netlink.add_veth(&ours, &theirs, mtu)
}

/// Marks the host end as `key`'s and takes its IP stack away.
pub fn prepare_host_end(netlink: &mut Netlink, network: &str, key: &AttachmentKey) -> Result<Link, NetError> {
    let name = host_name(key);
    let link = netlink.existing(&name)?;
    netlink.set_alias(link.index, &alias(network, key))?;
    sysctl::set_if_present(&["ipv6", "conf", &name, "addr_gen_mode"], "1")?;
    sysctl::set_if_present(&["ipv6", "conf", &name, "disable_ipv6"], "1")?;
    ethtool::set_features(&name, &TAGS_IN_FRAMES)?;
    netlink.existing(&name)
}

/// Routes of a pod whose interface takes larger packets than those that may leave the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargeRoutes {
    /// Destinations for packets as large as the interface takes.
    pub within: Vec<IpNet>,
    /// MTU of the routes to everywhere else.
    pub beyond: u32,
}

/// Gives the pod end its addresses, gateway and routes, and brings it up. Runs inside the container's namespace.
pub fn configure_pod_end(
    ifname: &str,
    addresses: &[IpAddr],
    large: Option<&LargeRoutes>,
) -> Result<(), NetError> {
    let mut netlink = Netlink::open()?;
    let loopback = netlink.existing("lo")?;
    if !loopback.up {
        netlink.set_up(loopback.index, true)?;
    }
    let index = netlink.existing(ifname)?.index;
    if addresses.iter().any(IpAddr::is_ipv6) {
        sysctl::set(&["ipv6", "conf", ifname, "disable_ipv6"], "0")?;
    }
    for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0")] {
        sysctl::set_if_present(&["ipv6", "conf", ifname, setting], value)?;
    }
    // GRO gives the pod end its receive queue's NAPI context, which is what lets the dataplane's XDP transmissions reach it.
    ethtool::set_features(ifname, &[("rx-gro", true)])?;
    ethtool::set_features(ifname, &TAGS_IN_FRAMES)?;
    for address in addresses {
        netlink.add_address(index, IpNet::from(*address))?;
    }
    netlink.set_up(index, true)?;
    for gateway in gateways(addresses) {
        if gateway.is_ipv4() {
            netlink.add_route(IpNet::from(gateway), None, index)?;
        }
        let all = if gateway.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
        netlink.add_route_of(IpNet::new_assert(all, 0), Some(gateway), index, large.map(|it| it.beyond))?;
        let is_same = |net: &&IpNet| net.addr().is_ipv4() == gateway.is_ipv4();
        for net in large.iter().flat_map(|it| &it.within).filter(is_same) {
            netlink.add_route(net.trunc(), Some(gateway), index)?;
        }
    }
    Ok(())
}

/// Returns what differs between the pod end and what [`configure_pod_end`] left. Runs inside the container's namespace.
pub fn difference(key: &AttachmentKey, addresses: &[IpAddr]) -> Result<Option<String>, NetError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(&key.ifname)? else {
        return Ok(Some(format!("the interface {} is gone from the container", key.ifname)));
    };
    if !link.up {
        return Ok(Some(format!("the interface {} is down", key.ifname)));
    }
    if link.mac != pod_mac(key) {
        return Ok(Some(format!(
            "the interface {} has the address {}, not {}",
            key.ifname,
            link.mac,
            pod_mac(key)
        )));
    }
    let present = netlink.addresses(link.index)?;
    if let Some(missing) = addresses.iter().find(|a| !present.iter().any(|p| p.addr() == **a)) {
        return Ok(Some(format!("the interface {} has lost the address {missing}", key.ifname)));
    }
    let routes = netlink.routes()?;
    for gateway in gateways(addresses) {
        let default = routes.iter().any(|r| {
            r.destination.prefix_len() == 0 && r.gateway == Some(gateway) && r.device == Some(link.index)
        });
        if !default {
            return Ok(Some(format!("the default route via {gateway} is gone from the container")));
        }
    }
    Ok(None)
}

/// Returns what differs between the sizes of packets that the pod end was given and those that its MTU and routes say. Runs inside the
/// container's namespace.
pub fn difference_in_size(
    ifname: &str,
    addresses: &[IpAddr],
    mtu: u32,
    large: Option<&LargeRoutes>,
) -> Result<Option<String>, NetError> {
    let mut netlink = Netlink::open()?;
    let link = netlink.existing(ifname)?;
    if link.mtu != mtu {
        return Ok(Some(format!("the interface {ifname} has the MTU {}, not {mtu}", link.mtu)));
    }
    let said = |mtu: Option<u32>| mtu.map_or("the interface's MTU".to_owned(), |mtu| format!("mtu {mtu}"));
    let routes = netlink.routes()?;
    for gateway in gateways(addresses) {
        let is_same = |net: &IpNet| net.addr().is_ipv4() == gateway.is_ipv4();
        let all = if gateway.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
        let default = (IpNet::new_assert(all, 0), large.map(|it| it.beyond));
        let within = large.iter().flat_map(|it| &it.within).filter(|net| is_same(net));
        for (to, wanted) in within.map(|net| (net.trunc(), None)).chain([default]) {
            let is_it = |r: &&RouteEntry| {
                r.destination == to && r.gateway == Some(gateway) && r.device == Some(link.index)
            };
            match routes.iter().find(is_it).map(|route| route.mtu) {
                Some(mtu) if mtu == wanted => {}
                Some(mtu) => {
                    let (is, was) = (said(mtu), said(wanted));
                    return Ok(Some(format!("the route to {to} via {gateway} has {is}, not {was}")));
                }
                None => {
                    return Ok(Some(format!("the route to {to} via {gateway} is gone from the container")));
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> AttachmentKey {
        AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() }
    }

    #[test]
    fn names_and_addresses_follow_the_attachment() {
        assert_eq!(host_name(&key("a")).len(), 15);
        assert_eq!(host_name(&key("a")), host_name(&key("a")));
        assert_ne!(host_name(&key("a")), host_name(&key("b")));
        let mac = pod_mac(&key("a"));
        assert_eq!(mac.0[0] & 0x03, 0x02, "locally administered unicast");
        assert_ne!(mac, pod_mac(&key("b")));
    }

    #[test]
    fn an_alias_names_its_owner_only_to_its_own_network() {
        let mut link = Link {
            index: 1,
            name: String::new(),
            mac: MacAddr::default(),
            mtu: 0,
            up: false,
            no_arp: false,
            alias: Some(alias("pods", &key("a"))),
            kind: None,
            below: None,
            above: None,
            is_ethernet: true,
            xdp: None,
        };
        assert_eq!(owner("pods", &link), Some(key("a")));
        assert_eq!(owner("other", &link), None);
        link.alias = Some("margay pods a".into());
        assert_eq!(owner("pods", &link), None);
        link.alias = None;
        assert_eq!(owner("pods", &link), None);
    }
}
