//! May this packet exist on this port at all? Link-level sanity, martians, source addresses (policy model 12.1 steps 1 and 2, 12.6,
//! 12.9, 14.6, 14.9 and 15). Runs for every packet, flow or not: what is remembered never excuses a forged source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use margay_wire::{IpHeaders, Parsed, Transport, protocol};

use super::WorkerConfig;
use crate::topology::{Port, PortIndex, PortKind, Route, Topology};
use crate::verdict::DropReason;

/// What an acceptable packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// On its way to somebody else.
    Forward,
    /// Link-local business with the gateway, that is with us.
    ForUs,
}

/// The UDP port of VXLAN, to which pods may not send: the one question of this stage that is about ports.
pub const VXLAN: u16 = 4789;

const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// Checks the Ethernet addresses: ours on the receiving side, the pod's own on the sending side.
#[inline]
pub fn ethernet(port: &Port, parsed: &Parsed) -> Result<(), DropReason> {
    let source_fits = match &port.kind {
        PortKind::Pod { pod_mac, .. } => parsed.source == *pod_mac,
        PortKind::Host { .. } | PortKind::Uplink => !parsed.source.is_multicast(),
    };
    let for_us = parsed.destination == port.mac || parsed.destination.is_multicast();
    if source_fits && for_us { Ok(()) } else { Err(DropReason::BadEthernet) }
}

fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Source: PM-D22, RFC 1812 §5.3.7, RFC 6890.
fn martian_source(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[0] == 0 || v4.octets()[0] >= 224,
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_multicast() || is_mapped(v6),
    }
}

/// Source: PM-D22.
fn martian_destination(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.octets()[0] == 0 || (v4.octets()[0] >= 240 && v4 != Ipv4Addr::BROADCAST)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || is_mapped(v6),
    }
}

fn is_group(destination: IpAddr) -> bool {
    destination.is_multicast() || destination == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// 224.0.0.0/24 (RFC 5771 §4) and ff02::/16 (RFC 4291 §2.7).
fn is_link_local_group(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    }
}

/// Multicast listener and neighbour discovery (policy model 14.6), version 2 listener reports included.
fn is_discovery(ip: &IpHeaders) -> bool {
    ip.protocol == protocol::ICMPV6
        && matches!(ip.transport, Transport::Icmp { kind: 130 | 131 | 132 | 133 | 135 | 136 | 143, .. })
}

/// Checks addresses and the few protocols that no pod may send, and says whether the packet is for us.
#[inline]
pub fn addresses(
    topology: &Topology,
    config: &WorkerConfig,
    port: &Port,
    parsed: &Parsed,
    ip: &IpHeaders,
) -> Result<Class, DropReason> {
    if martian_source(ip.source) {
        return Err(DropReason::MartianSource);
    }
    if martian_destination(ip.destination) {
        return Err(DropReason::MartianDestination);
    }
    match (ip.protocol, ip.transport) {
        (protocol::ICMP, Transport::Icmp { kind: 5, .. })
        | (protocol::ICMPV6, Transport::Icmp { kind: 137, .. }) => {
            return Err(DropReason::Redirect);
        }
        (protocol::ICMPV6, Transport::Icmp { kind: 134, .. }) => return Err(DropReason::RouterAdvertisement),
        _ => {}
    }
    let group = is_group(ip.destination);
    if parsed.destination.is_multicast() && !group {
        return Err(DropReason::BadEthernet);
    }
    match &port.kind {
        PortKind::Pod { addresses, .. } => from_pod(topology, config, addresses, ip, group),
        PortKind::Host { .. } => from_host(topology, ip, group),
        PortKind::Uplink => from_uplink(topology, port, parsed, ip, group),
    }
}

fn group_outcome(destination: IpAddr) -> DropReason {
    if is_link_local_group(destination) { DropReason::DiscoveryConsumed } else { DropReason::Multicast }
}

fn from_pod(
    topology: &Topology,
    config: &WorkerConfig,
    own: &[IpAddr],
    ip: &IpHeaders,
    group: bool,
) -> Result<Class, DropReason> {
    let discovery = is_discovery(ip);
    let link_local_source = ip.source.is_ipv6() && (ip.source.is_unspecified() || is_link_local(ip.source));
    if !own.contains(&ip.source) && !(link_local_source && (discovery || !ip.source.is_unspecified())) {
        return Err(DropReason::SpoofedPodSource);
    }
    if discovery {
        return Ok(Class::ForUs);
    }
    if group {
        return Err(group_outcome(ip.destination));
    }
    if ip.destination == config.gateway_v4 || ip.destination == config.gateway_v6 {
        return Ok(Class::ForUs);
    }
    if link_local_source {
        return Err(DropReason::SpoofedPodSource);
    }
    // Either could be decapsulated by the node and so leave by the back door (policy model 12.9).
    let vxlan =
        matches!(ip.transport, Transport::Udp { destination: VXLAN, .. }) && ip.protocol == protocol::UDP;
    if vxlan || ip.protocol == protocol::IPIP {
        return Err(DropReason::Encapsulation);
    }
    let reachable = !is_link_local(ip.destination)
        || ip.destination == METADATA
        || topology.is_node_address(ip.destination);
    if reachable { Ok(Class::Forward) } else { Err(DropReason::LinkLocalDestination) }
}

fn from_host(topology: &Topology, ip: &IpHeaders, group: bool) -> Result<Class, DropReason> {
    if topology.local_pod(ip.source).is_some() {
        return Err(DropReason::SpoofedHostSource);
    }
    if group || is_discovery(ip) {
        return Err(if is_discovery(ip) {
            DropReason::DiscoveryConsumed
        } else {
            group_outcome(ip.destination)
        });
    }
    if is_link_local(ip.destination) {
        return Err(DropReason::LinkLocalDestination);
    }
    if ip.source.is_unspecified() { Err(DropReason::MartianSource) } else { Ok(Class::Forward) }
}

fn from_uplink(
    topology: &Topology,
    port: &Port,
    parsed: &Parsed,
    ip: &IpHeaders,
    group: bool,
) -> Result<Class, DropReason> {
    if topology.is_node_address(ip.source)
        || topology.local_pod(ip.source).is_some()
        || topology.is_local_pod_cidr(ip.source)
    {
        return Err(DropReason::SpoofedUplinkSource);
    }
    if group {
        return Err(group_outcome(ip.destination));
    }
    if is_link_local(ip.destination) {
        return Err(DropReason::LinkLocalDestination);
    }
    if ip.source.is_unspecified() {
        return Err(DropReason::MartianSource);
    }
    // What came out of the tunnel has proved its source.
    if port.index == PortIndex::TUNNEL {
        return Ok(Class::Forward);
    }
    if let Some(encryption) = topology.encryption() {
        // An address of the node in its pods' network is the tunnel's: nothing comes to it in clear by right.
        let is_node = topology.is_node_address(ip.destination);
        let to_node = is_node && !topology.is_local_pod_cidr(ip.destination);
        let is_ours = is_node || topology.local_pod(ip.destination).is_some();
        if is_ours && encryption.expects(ip.source, ip.destination, to_node) {
            return Err(DropReason::ExpectedEncrypted);
        }
    }
    if let Some(node) = topology.remote_pod_node(ip.source)
        && !came_from_node(topology, port, parsed, node)
    {
        return Err(DropReason::WrongPathSource);
    }
    Ok(Class::Forward)
}

/// Returns whether the frame's sender is one of the node's Ethernet addresses. Where no address of the node is on-link here, the frame
/// came through a router and its sender says nothing (PM-D20).
fn came_from_node(topology: &Topology, port: &Port, parsed: &Parsed, node: &[IpAddr]) -> bool {
    let mut on_link = false;
    for address in node {
        if let Some(Route::Port { port: by, gateway: None }) = topology.route(*address)
            && *by == port.index
        {
            on_link = true;
            if topology.neighbour(port.index, *address) == Some(parsed.source) {
                return true;
            }
        }
    }
    !on_link
}
