//! From the kernel's view to the core's: which routes end on a port of ours, which stay with the kernel, which go nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use margay_core::topology::{PortIndex, Route, TopologyBuilder};

use super::view::{KernelRoute, KernelView, NeighbourState, NextHop, RouteKind};

/// What a device of ours is to the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Our end of a pod's veth.
    Pod,
    /// `mgy0x`, our end of the host port. The kernel's end is found as its peer.
    Host,
    /// A NIC.
    Uplink,
}

/// Puts the node's addresses, routes and neighbours into `builder`, replacing what it held of these.
///
/// * Addresses: those on any device but our own ends of veths (PM-D21). The kernel's end of the host port counts.
/// * Routes: through an uplink of ours to that port; through any other device, or with an encapsulation, to the host; routes
///   that refuse to nowhere. Routes through our own veths, either end of the host port included, say nothing new and are left
///   out before the preferred one of a prefix is chosen.
/// * Neighbours: the usable ones on uplinks.
///
/// Loopback and IPv6 link-local destinations are never routed, so they are no routes here.
pub fn fill_topology(view: &KernelView, ours: &[(PortIndex, u32, Role)], builder: &mut TopologyBuilder) {
    let uplinks: BTreeMap<u32, PortIndex> = ours
        .iter()
        .filter(|(_, _, role)| *role == Role::Uplink)
        .map(|(port, ifindex, _)| (*ifindex, *port))
        .collect();
    let ends: BTreeSet<u32> =
        ours.iter().filter(|(_, _, role)| *role != Role::Uplink).map(|(_, ifindex, _)| *ifindex).collect();
    // Two devices that name each other are a veth pair; a VLAN names its parent, which does not name it back.
    let kernel_ends = ours.iter().filter(|(_, _, role)| *role == Role::Host).filter_map(|(_, ifindex, _)| {
        let peer = view.links.get(ifindex)?.linked?;
        (view.links.get(&peer)?.linked == Some(*ifindex)).then_some(peer)
    });
    let own: BTreeSet<u32> = ends.iter().copied().chain(kernel_ends).collect();

    let addresses: BTreeSet<IpAddr> = view
        .addresses
        .iter()
        .filter(|a| !ends.contains(&a.ifindex) && !a.ip.is_loopback())
        .map(|a| a.ip)
        .collect();
    builder.node_addresses = addresses.into_iter().collect();

    let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
    // The order of the set is the order of preference.
    for route in &view.routes {
        let ignored =
            route.hop.is_some_and(|hop| own.contains(&hop.ifindex)) && route.kind != RouteKind::Local;
        if !ignored && is_routable(route.prefix.network()) && !routes.contains_key(&route.prefix) {
            routes.insert(route.prefix, answer(route, &uplinks));
        }
    }
    builder.routes = routes.into_iter().collect();

    builder.neighbours = view
        .neighbours
        .iter()
        .filter(|(_, neighbour)| neighbour.state != NeighbourState::Unresolved)
        .filter_map(|((ifindex, ip), neighbour)| Some((*uplinks.get(ifindex)?, *ip, neighbour.mac?)))
        .collect();
}

fn is_routable(network: IpAddr) -> bool {
    match network {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

fn answer(route: &KernelRoute, uplinks: &BTreeMap<u32, PortIndex>) -> Route {
    match (route.kind, route.hop) {
        (RouteKind::Unicast, Some(NextHop { ifindex, gateway })) => match uplinks.get(&ifindex) {
            Some(port) => Route::Port { port: *port, gateway },
            None => Route::Host,
        },
        (RouteKind::Local | RouteKind::Encapsulated | RouteKind::Unicast, _) => Route::Host,
        (RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Throw, _) => {
            Route::Unreachable
        }
    }
}
