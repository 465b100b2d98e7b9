//! Where does it leave, and by whose hands? A pure function of topology, arrival port and destination.

use std::net::IpAddr;

use margay_wire::{MacAddr, icmp};

use super::Dropped;
use crate::flow::Path;
use crate::spread::WorkerIndex;
use crate::topology::{Port, PortIndex, PortKind, Route, Topology};
use crate::tunnel;
use crate::verdict::DropReason;

/// The way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Known to the last address.
    Ready(Path),
    /// Known but for the next hop's Ethernet address.
    Unresolved(Path, IpAddr),
}

fn unreachable(error: icmp::Error) -> Dropped {
    Dropped { reason: DropReason::NoRoute, rule: None, error: Some(error) }
}

/// Returns the way from `arrival` to `destination` for a packet from `source` in the hands of worker `me`.
///
/// Order: this node's own addresses, local pods, WireGuard peers, pods of other nodes (by their node's address), routes. A packet from the
/// host port never goes back to it: the kernel has just routed it here.
/// Errors: [`DropReason::NoRoute`], with the ICMP error for the sender; [`DropReason::Unencrypted`].
pub fn resolve(
    topology: &Topology,
    me: WorkerIndex,
    arrival: &Port,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Next, Dropped> {
    if topology.is_node_address(destination) {
        return to_host(topology, me, arrival);
    }
    let from_host = matches!(arrival.kind, PortKind::Host { .. });
    if let Some(port) = topology.local_pod(destination) {
        let port = topology.port(port).ok_or(DropReason::NoPort)?;
        let PortKind::Pod { pod_mac, .. } = port.kind else { return Err(DropReason::NoPort.into()) };
        return Ok(Next::Ready(path(topology, me, port, pod_mac, !from_host)));
    }
    if topology.is_local_pod_cidr(destination) {
        return Err(unreachable(icmp::Error::HostUnreachable));
    }
    if let Some(encryption) = topology.encryption() {
        if let Some(peer) = encryption.peer_for(source, destination) {
            let family = encryption.family(destination).ok_or(DropReason::NoRoute)?;
            return Ok(Next::Ready(Path {
                port: PortIndex::TUNNEL,
                source_mac: MacAddr::default(),
                destination_mac: MacAddr::default(),
                mtu: topology.tunnel_mtu(family).min(tunnel::LARGEST) as u16,
                decrement_ttl: !from_host,
                to_pod: false,
                worker: topology.spread().keeper(peer),
                tunnel: Some(peer),
            }));
        }
        if encryption.forbids(source, destination) {
            return Err(DropReason::Unencrypted.into());
        }
    }
    if let Some(node) = topology.remote_pod_node(destination) {
        let same_family = |address: &&IpAddr| address.is_ipv4() == destination.is_ipv4();
        for address in node.iter().filter(same_family) {
            if let Some(Route::Port { port, gateway }) = topology.route(*address) {
                return through(topology, me, *port, gateway.unwrap_or(*address), !from_host);
            }
        }
        return Err(unreachable(icmp::Error::NoRoute));
    }
    match topology.route(destination) {
        Some(Route::Port { port, gateway }) => {
            through(topology, me, *port, gateway.unwrap_or(destination), !from_host)
        }
        Some(Route::Host) => to_host(topology, me, arrival),
        Some(Route::Unreachable) | None => Err(unreachable(icmp::Error::NoRoute)),
    }
}

fn to_host(topology: &Topology, me: WorkerIndex, arrival: &Port) -> Result<Next, Dropped> {
    let port = topology.host_port().and_then(|port| topology.port(port)).ok_or(DropReason::NoPort)?;
    let PortKind::Host { kernel_mac } = port.kind else { return Err(DropReason::NoPort.into()) };
    if port.index == arrival.index {
        return Err(unreachable(icmp::Error::NoRoute));
    }
    // The kernel either ends the packet or decrements the TTL itself.
    Ok(Next::Ready(path(topology, me, port, kernel_mac, false)))
}

fn through(
    topology: &Topology,
    me: WorkerIndex,
    port: PortIndex,
    next_hop: IpAddr,
    decrement_ttl: bool,
) -> Result<Next, Dropped> {
    let port = topology.port(port).ok_or(DropReason::NoPort)?;
    Ok(match topology.neighbour(port.index, next_hop) {
        Some(mac) => Next::Ready(path(topology, me, port, mac, decrement_ttl)),
        None => Next::Unresolved(path(topology, me, port, MacAddr::default(), decrement_ttl), next_hop),
    })
}

fn path(
    topology: &Topology,
    me: WorkerIndex,
    port: &Port,
    destination_mac: MacAddr,
    decrement_ttl: bool,
) -> Path {
    Path {
        port: port.index,
        source_mac: port.mac,
        destination_mac,
        mtu: port.mtu.min(0xffff) as u16,
        decrement_ttl,
        to_pod: matches!(port.kind, PortKind::Pod { .. }),
        worker: topology.spread().carrier(me, port),
        tunnel: None,
    }
}
