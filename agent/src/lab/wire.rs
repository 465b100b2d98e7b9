//! What joins the lab's nodes: a bridge in a namespace of its own, or, for two nodes, nothing but one pair.

use clap::ValueEnum;
use margay_wire::MacAddr;
use sha1::{Digest, Sha1};

use super::LabError;
use super::uplink::UplinkKind;
use crate::net::netns::NetNs;
use crate::net::{NetError, Netlink, VethEnd, sysctl};

/// What joins the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WireKind {
    /// A bridge, and a pair from it to each node; any number of nodes.
    Bridge,
    /// One pair from a node to the other: the shortest way between two, which is what measurements want.
    Pair,
}

impl WireKind {
    /// Returns whether it has a namespace of its own. Errors: it does not join that many nodes.
    pub fn has_netns(self, nodes: usize) -> Result<bool, LabError> {
        match self {
            Self::Bridge => Ok(true),
            Self::Pair if nodes == 2 => Ok(false),
            Self::Pair => {
                Err(LabError::Input(format!("a pair joins 2 nodes, not {nodes}; use --wire bridge")))
            }
        }
    }
}

/// A node's place on the wire.
pub struct Place<'a> {
    /// Name of the node.
    pub name: &'a str,
    /// Where it lives.
    pub netns: &'a NetNs,
}

/// Gives each node the NICs of `uplink`, down, and joins those that bear the same name. `lab` makes their addresses its own.
pub fn lay(
    lab: &str,
    wire: Option<&NetNs>,
    places: &[Place<'_>],
    uplink: UplinkKind,
    mtu: u32,
) -> Result<(), NetError> {
    let mac = |place: &Place<'_>, nic: &str, end: &str| mac_of(&format!("{lab}/{}/{nic}/{end}", place.name));
    let Some(wire) = wire else {
        let [one, other] = places else { return Ok(()) };
        return one.netns.within(|| -> Result<(), NetError> {
            let mut netlink = Netlink::open()?;
            for nic in uplink.nics() {
                let ours = VethEnd { name: nic, mac: mac(one, nic, "node"), netns: None, no_arp: false };
                let fd = Some(other.netns.as_fd());
                let theirs = VethEnd { name: nic, mac: mac(other, nic, "node"), netns: fd, no_arp: false };
                netlink.add_veth(&ours, &theirs, mtu)?;
            }
            Ok(())
        })?;
    };
    wire.within(|| -> Result<(), NetError> {
        for scope in ["all", "default"] {
            sysctl::set_if_present(&["ipv6", "conf", scope, "disable_ipv6"], "1")?;
        }
        let mut netlink = Netlink::open()?;
        netlink.add_bridge("wire")?;
        let bridge = netlink.existing("wire")?.index;
        netlink.set_up(bridge, true)?;
        for (number, place) in places.iter().enumerate() {
            for (nth, nic) in uplink.nics().iter().enumerate() {
                // `port0` for the first node's first, `port0b` for its second.
                let port = format!("port{number}{}", if nth == 0 { "" } else { "b" });
                let ours = VethEnd { name: &port, mac: mac(place, nic, "wire"), netns: None, no_arp: false };
                let fd = Some(place.netns.as_fd());
                let theirs = VethEnd { name: nic, mac: mac(place, nic, "node"), netns: fd, no_arp: false };
                netlink.add_veth(&ours, &theirs, mtu)?;
                let index = netlink.existing(&port)?.index;
                netlink.set_master(index, bridge)?;
                netlink.set_up(index, true)?;
            }
        }
        Ok(())
    })?
}

fn mac_of(text: &str) -> MacAddr {
    let mut octets = [0; 6];
    octets.copy_from_slice(&Sha1::digest(text)[..6]);
    octets[0] = (octets[0] & 0xfc) | 0x02;
    MacAddr(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_joins_two_nodes_and_no_more() {
        assert!(WireKind::Pair.has_netns(1).is_err() && WireKind::Pair.has_netns(3).is_err());
        assert!(!WireKind::Pair.has_netns(2).expect("two nodes"));
        assert!(WireKind::Bridge.has_netns(1).expect("any number"));
    }
}
