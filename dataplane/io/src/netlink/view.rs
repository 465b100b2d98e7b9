//! The view itself: ordered, comparable, without any trace of how it was learnt.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use margay_wire::MacAddr;

/// A network device of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, where it has one.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// Up and with a carrier (`IFF_RUNNING`).
    pub running: bool,
    /// The device that the kernel calls its link, if in this namespace: the peer of a veth, the parent of a VLAN.
    pub linked: Option<u32>,
}

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The device.
    pub ifindex: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Delivered to this machine.
    Local,
    /// Forwarded to the next hop.
    Unicast,
    /// Forwarded inside an encapsulation that only the kernel performs.
    Encapsulated,
    /// Dropped in silence.
    Blackhole,
    /// Answered with "unreachable".
    Unreachable,
    /// Answered with "prohibited".
    Prohibit,
    /// The lookup in this table ends as if there were no route.
    Throw,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// The device.
    pub ifindex: u32,
    /// The next hop; absent when the destination is on-link. An IPv4 route may have an IPv6 gateway.
    pub gateway: Option<IpAddr>,
}

/// A route. Their order is the order of preference within one prefix: table, then metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRoute {
    /// The destination.
    pub prefix: IpNet,
    /// Which table holds it, by the order in which the default rules ask: 0 local, 1 main, 2 default.
    pub rank: u8,
    /// Its metric; smaller wins.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// Where it leads; of several, the first that is usable.
    pub hop: Option<NextHop>,
}

/// Whether a neighbour can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Its Ethernet address is known; the kernel may be confirming it.
    Usable,
    /// The same, set by hand: the kernel never asks for it.
    Permanent,
    /// Not known, or no longer.
    Unresolved,
}

/// An entry of the ARP or neighbour-discovery table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address, present when `state` is not `Unresolved`.
    pub mac: Option<MacAddr>,
    /// Whether it can be sent to.
    pub state: NeighbourState,
}

/// What the kernel of this network namespace knows, at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Devices by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses that may be used: not those whose duplicate detection runs or failed.
    pub addresses: BTreeSet<Address>,
    /// Routes of the tables local, main and default. Multicast, broadcast and anycast are left out.
    pub routes: BTreeSet<KernelRoute>,
    /// Neighbours by device and address, multicast left out.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// What the kernel does and this view cannot express: rules beside the default ones, routes by source or by TOS.
    pub warnings: BTreeSet<String>,
}

impl KernelView {
    /// Returns the index and the device with `name`.
    pub fn link_named(&self, name: &str) -> Option<(u32, &Link)> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, link)| (*index, link))
    }
}
