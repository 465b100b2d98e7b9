//! Which devices lead to the other nodes, and how the packet path stands on them.
//!
//! ```text
//!  routes to nodes ─▶ device of the route ─▶ what it is made of ─▶ where our program and sockets go
//!    eth0                                     a NIC                  eth0, in its driver
//!    bond0                                    eth0 + eth1            bond0, above the drivers
//!    br0, eth0.100                            eth0                   br0, eth0.100, above the driver
//! ```
//!
//! The rule is: the lowest device on which a packet looks as the routes say and from which it leaves as it should (decision 0021). A NIC is
//! that itself. Of a device that is made of others it is the device: [`REASONS`] says for each kind why not one below. There the program
//! stands in generic mode, which is asked for by name: a bond's driver would take the program and hand it down to its NICs, and then
//! no socket on the bond would ever see a frame.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use margay_io::AttachChoice;

use crate::net::{Link, Netlink};

use super::host_port::{KERNEL_END, OUR_END};

/// The word for "those of the routes".
pub const AUTO: &str = "auto";

/// Kinds of devices that are made of others, each with why the program does not go below.
pub const REASONS: [(&str, &str); 7] = [
    ("bond", BONDED),
    ("team", BONDED),
    (
        "bridge",
        "below it frames for all that is bridged pass, and through which port one leaves is the bridge's to say; the kernel has no XDP in it",
    ),
    ("vlan", "below it frames carry tags, which are put on and taken off above the driver"),
    ("macvlan", SHARED),
    ("ipvlan", SHARED),
    (
        "openvswitch",
        "below it frames for all that is switched pass, and through which port one leaves is the switch's to say",
    ),
];
const BONDED: &str = "which of its NICs is spoken to and sends is the bond's to say, and a socket on the bond hears nothing of a program below it";
const SHARED: &str = "the device below is other people's as well";
/// Those of them whose parts are no uplinks of their own.
const WHOLES: [&str; 4] = ["bond", "team", "bridge", "openvswitch"];

/// A device, as far as the choice asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `bond`, `bridge`, `vlan`, …; nothing for a NIC.
    pub kind: Option<String>,
    /// The device below, of a VLAN device and the like.
    pub below: Option<u32>,
    /// The bond or bridge that this one is part of.
    pub above: Option<u32>,
    /// Whether it has Ethernet addresses.
    pub is_ethernet: bool,
}

/// Returns the table of `links`.
pub fn devices(links: &[Link]) -> Vec<Device> {
    let device = |link: &Link| Device {
        index: link.index,
        name: link.name.clone(),
        kind: link.kind.clone(),
        below: link.below,
        above: link.above,
        is_ethernet: link.is_ethernet,
    };
    links.iter().map(device).collect()
}

/// A device to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Whether its driver may run the program.
    pub choice: AttachChoice,
    /// The NICs that carry it, itself if it is one.
    pub nics: Vec<String>,
    /// Why the program does not go on these; empty for a NIC.
    pub why: &'static str,
    /// Whether it is one end of a veth pair: then this node is a container, or a namespace.
    pub is_veth: bool,
}

/// Why no uplink could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUplink {
    /// Nothing leads anywhere.
    #[error(
        "no uplink found: no device has the node's address{}, and there is no default route; bring the network up first, or name the NIC with --uplink",
        .0.map(|address| format!(" {address}")).unwrap_or_default()
    )]
    None(Option<IpAddr>),
    /// The way leads through something that carries no Ethernet frames.
    #[error("uplink {0} carries no Ethernet frames ({1}); name the NIC below it with --uplink")]
    NotEthernet(String, String),
}

/// Chooses the uplinks: the device that has `own`, this node's address, and those of default routes.
///
/// Errors: [`NoUplink`], with what to do.
pub fn choose(
    devices: &[Device],
    addresses: &[(u32, IpAddr)],
    routes: &[(IpNet, u32)],
    own: Option<IpAddr>,
) -> Result<Vec<Uplink>, NoUplink> {
    let by_index: BTreeMap<u32, &Device> = devices.iter().map(|device| (device.index, device)).collect();
    let holder = addresses.iter().filter(|(_, address)| Some(*address) == own).map(|(index, _)| *index);
    let defaults = routes.iter().filter(|(net, _)| net.prefix_len() == 0).map(|(_, index)| *index);
    let found: BTreeSet<u32> = holder.chain(defaults).collect();
    let mut chosen = Vec::new();
    for device in found.iter().filter_map(|index| by_index.get(index)) {
        if [KERNEL_END, OUR_END, "lo"].contains(&&*device.name) {
            continue;
        }
        if !device.is_ethernet {
            let kind = device.kind.clone().unwrap_or_else(|| "point to point".to_owned());
            return Err(NoUplink::NotEthernet(device.name.clone(), kind));
        }
        chosen.push(uplink(device, &by_index));
    }
    if chosen.is_empty() { Err(NoUplink::None(own)) } else { Ok(chosen) }
}

/// Returns the uplinks that are named in `wanted`, and with `auto` among them those of this node's routes.
///
/// Errors: in words, with what to do.
pub fn find(wanted: &[String], own: Option<IpAddr>) -> Result<Vec<Uplink>, String> {
    let told = |error: crate::net::NetError| error.to_string();
    let mut netlink = Netlink::open().map_err(told)?;
    let links = netlink.links().map_err(told)?;
    let devices = devices(&links);
    let mut found: Vec<Uplink> = Vec::new();
    for name in wanted.iter().filter(|name| *name != AUTO) {
        let missing =
            || format!("uplink {name:?} is not a device of this network namespace; `ip link` lists them");
        if let Some(whole) = whole(&devices, name) {
            return Err(format!(
                "uplink {name} is a part of {whole}: routes lead through {whole}, and what the two are told apart by is lost below it; name {whole} with --uplink"
            ));
        }
        found.push(named(&devices, name).ok_or_else(missing)?);
    }
    if wanted.iter().any(|name| name == AUTO) {
        let mut addresses = Vec::new();
        for link in &links {
            let of_link = netlink.addresses(link.index).map_err(told)?;
            addresses.extend(of_link.into_iter().map(|net| (link.index, net.addr())));
        }
        let routes = netlink.routes().map_err(told)?;
        let routes: Vec<_> =
            routes.into_iter().filter_map(|route| Some((route.destination, route.device?))).collect();
        found.extend(choose(&devices, &addresses, &routes, own).map_err(|error| error.to_string())?);
    }
    let mut seen = BTreeSet::new();
    found.retain(|uplink| seen.insert(uplink.name.clone()));
    Ok(found)
}

/// Returns how the packet path stands on the device `name`, which a person named.
pub fn named(devices: &[Device], name: &str) -> Option<Uplink> {
    let by_index: BTreeMap<u32, &Device> = devices.iter().map(|device| (device.index, device)).collect();
    devices.iter().find(|device| device.name == name).map(|device| uplink(device, &by_index))
}

/// Returns the name under which the program of the uplink `name` is pinned. The bpf file system takes no name with a dot, which VLAN
/// devices usually have; a colon is in no device's name.
pub fn pin(name: &str) -> String {
    format!("uplink-{}", name.replace('.', ":"))
}

/// Returns the bond, bridge or switch that the device `name` is a part of.
pub fn whole<'a>(devices: &'a [Device], name: &str) -> Option<&'a str> {
    let above = devices.iter().find(|device| device.name == name)?.above?;
    let whole = devices.iter().find(|device| device.index == above)?;
    whole.kind.as_deref().is_some_and(|kind| WHOLES.contains(&kind)).then_some(&whole.name)
}

fn uplink(device: &Device, by_index: &BTreeMap<u32, &Device>) -> Uplink {
    let reason = REASONS.iter().find(|(kind, _)| device.kind.as_deref() == Some(*kind));
    let mut nics = BTreeSet::new();
    lowest(device, by_index, 8, &mut nics);
    let choice = if reason.is_some() { AttachChoice::Generic } else { AttachChoice::Auto };
    let why = reason.map_or("", |(_, why)| why);
    let is_veth = device.kind.as_deref() == Some("veth");
    Uplink { name: device.name.clone(), choice, nics: nics.into_iter().collect(), why, is_veth }
}

/// Collects the NICs below `device`; stacks are shallow, and `patience` ends a table that contradicts itself.
fn lowest(device: &Device, by_index: &BTreeMap<u32, &Device>, patience: u8, into: &mut BTreeSet<String>) {
    // The peer of a veth pair is beside it, not below.
    let below = device.below.filter(|_| device.kind.as_deref() != Some("veth"));
    let parts = by_index.values().filter(|other| other.above == Some(device.index));
    // A pod's pair in a bridge is no way out.
    let parts =
        parts.filter(|part| part.kind.as_deref() != Some("veth") || device.kind.as_deref() != Some("bridge"));
    let inner: Vec<&Device> =
        below.and_then(|index| by_index.get(&index)).into_iter().chain(parts).copied().collect();
    if inner.is_empty() || patience == 0 {
        into.insert(device.name.clone());
    }
    for part in inner.iter().filter(|_| patience > 0) {
        lowest(part, by_index, patience - 1, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str, kind: &str, below: u32, above: u32) -> Device {
        let some = |number: u32| (number > 0).then_some(number);
        Device {
            index,
            name: name.to_owned(),
            kind: (!kind.is_empty()).then(|| kind.to_owned()),
            below: some(below),
            above: some(above),
            is_ethernet: kind != "wireguard",
        }
    }

    fn default(index: u32) -> (IpNet, u32) {
        ("0.0.0.0/0".parse().unwrap(), index)
    }

    fn of(devices: &[Device], address_on: u32, routes: &[(IpNet, u32)]) -> Result<Vec<Uplink>, NoUplink> {
        let own: IpAddr = "192.0.2.10".parse().unwrap();
        choose(devices, &[(address_on, own)], routes, Some(own))
    }

    fn shown(found: Result<Vec<Uplink>, NoUplink>) -> Vec<(String, bool, String)> {
        let one =
            |uplink: Uplink| (uplink.name, uplink.choice == AttachChoice::Generic, uplink.nics.join(" "));
        found.unwrap().into_iter().map(one).collect()
    }

    fn row(name: &str, above: bool, nics: &str) -> (String, bool, String) {
        (name.to_owned(), above, nics.to_owned())
    }

    #[test]
    fn a_nic_is_taken_in_its_driver() {
        let devices = [device(1, "lo", "", 0, 0), device(2, "eth0", "", 0, 0), device(3, "eth1", "", 0, 0)];
        assert_eq!(shown(of(&devices, 2, &[default(2)])), [row("eth0", false, "eth0")]);
        // The node's address on one NIC, the way out through another.
        let both = [row("eth0", false, "eth0"), row("eth1", false, "eth1")];
        assert_eq!(shown(of(&devices, 3, &[default(2)])), both);
        // An address on the loopback (routing on the host) leaves the default routes.
        assert_eq!(shown(of(&devices, 1, &[default(2), default(3)])), both);
    }

    #[test]
    fn bonds_bridges_and_vlans_are_taken_above_the_driver() {
        let bond =
            [device(2, "eth0", "", 0, 4), device(3, "eth1", "", 0, 4), device(4, "bond0", "bond", 0, 0)];
        assert_eq!(shown(of(&bond, 4, &[default(4)])), [row("bond0", true, "eth0 eth1")]);
        let mut tagged = bond.to_vec();
        tagged.push(device(5, "bond0.7", "vlan", 4, 0));
        assert_eq!(shown(of(&tagged, 5, &[default(5)])), [row("bond0.7", true, "eth0 eth1")]);
        let bridge = [
            device(2, "eth0", "", 0, 3),
            device(3, "br0", "bridge", 0, 0),
            device(4, "vethx", "veth", 99, 3),
        ];
        assert_eq!(shown(of(&bridge, 3, &[])), [row("br0", true, "eth0")]);
        let lonely = [device(3, "br0", "bridge", 0, 0)];
        assert_eq!(shown(of(&lonely, 3, &[])), [row("br0", true, "br0")]);
        // A veth's peer has an index of another namespace, and is no device below.
        let lab = [device(2, "up0", "veth", 3, 0), device(3, "other", "", 0, 0)];
        assert_eq!(shown(of(&lab, 2, &[])), [row("up0", false, "up0")]);
    }

    #[test]
    fn stacks_of_several_kinds_stand_on_their_nics_and_say_why() {
        // eth0 and eth1 in a bond, a VLAN of it in a bridge with a pod's pair: what virtual machines' hosts look like.
        let tree = [
            device(2, "eth0", "", 0, 4),
            device(3, "eth1", "", 0, 4),
            device(4, "bond0", "bond", 0, 0),
            device(5, "bond0.7", "vlan", 4, 6),
            device(6, "br7", "bridge", 0, 0),
            device(7, "vnet0", "tun", 0, 6),
            device(8, "eth2", "", 0, 9),
            device(9, "vrf0", "vrf", 0, 0),
        ];
        assert_eq!(shown(of(&tree, 6, &[])), [row("br7", true, "eth0 eth1 vnet0")]);
        // Several NICs: the node's address on one, the default route through a stack.
        assert_eq!(
            shown(of(&tree, 8, &[default(5)])),
            [row("bond0.7", true, "eth0 eth1"), row("eth2", false, "eth2")]
        );
        let whys: Vec<&str> = ["eth2", "bond0", "bond0.7", "br7"]
            .map(|name| named(&tree, name).map_or("", |uplink| uplink.why))
            .to_vec();
        assert!(whys[0].is_empty() && whys[1..].iter().all(|why| !why.is_empty()), "{whys:?}");
        assert!(whys[2].contains("tags"), "{whys:?}");
        // Who names a part is told the whole; a device of a VRF is none.
        let wholes = ["eth0", "bond0.7", "bond0", "eth2", "nosuch"].map(|name| whole(&tree, name));
        assert_eq!(wholes, [Some("bond0"), Some("br7"), None, None, None]);
        assert_eq!((pin("eth0"), pin("bond0.7")), ("uplink-eth0".to_owned(), "uplink-bond0:7".to_owned()));
        // Every kind that is made of others has its reason, and no NIC has one.
        for (kind, why) in REASONS {
            let made = [device(2, "eth0", "", 0, 0), device(3, "upper", kind, 2, 0)];
            assert_eq!(shown(of(&made, 3, &[])), [row("upper", true, "eth0")], "{kind}");
            assert!(!why.is_empty());
        }
    }

    #[test]
    fn our_own_port_is_no_uplink_and_a_tunnel_is_refused() {
        let devices = [device(2, "mgy0", "veth", 3, 0), device(4, "wg0", "wireguard", 0, 0)];
        assert_eq!(of(&devices, 9, &[default(2)]), Err(NoUplink::None(Some("192.0.2.10".parse().unwrap()))));
        let error = of(&devices, 9, &[default(4)]).unwrap_err();
        assert_eq!(error, NoUplink::NotEthernet("wg0".to_owned(), "wireguard".to_owned()));
    }

    #[test]
    fn a_table_that_goes_in_circles_ends() {
        let devices = [device(2, "a", "vlan", 3, 0), device(3, "b", "vlan", 2, 0)];
        assert_eq!(shown(of(&devices, 2, &[])).len(), 1);
        assert!(named(&devices, "b").is_some() && named(&devices, "c").is_none());
    }
}
