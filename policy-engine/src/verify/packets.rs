//! One packet for every class of packets between two addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use margay_wire::protocol;
use serde::Serialize;
use serde::ser::Serializer;

use super::Service;
use crate::packet::PacketTuple;
use crate::snapshot::Boundaries;
use crate::walk::is_discovery;

/// Protocols with ports (policy model 9.5).
const WITH_PORTS: [u8; 4] = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::UDPLITE];

/// Where verdicts between two addresses can change.
#[derive(Debug)]
pub(super) struct Axes {
    is_ipv4: bool,
    protocols: BTreeSet<u8>,
    source_ports: BTreeSet<u16>,
    destination_ports: BTreeSet<u16>,
    icmp: BTreeSet<(u8, Option<u8>)>,
}

impl Axes {
    pub(super) fn new(is_ipv4: bool) -> Self {
        let protocols = WITH_PORTS.into_iter().chain([protocol::ICMP, protocol::ICMPV6]).collect();
        let zero = BTreeSet::from([0]);
        Self {
            is_ipv4,
            protocols,
            source_ports: zero.clone(),
            destination_ports: zero,
            icmp: BTreeSet::new(),
        }
    }

    pub(super) fn add(&mut self, boundaries: &Boundaries) {
        self.protocols.extend(&boundaries.protocols);
        self.source_ports.extend(&boundaries.source_ports);
        self.destination_ports.extend(&boundaries.destination_ports);
        self.icmp.extend(&boundaries.icmp);
    }

    pub(super) fn add_points(&mut self, points: &[(u8, u16)], is_destination: bool) {
        let ports = if is_destination { &mut self.destination_ports } else { &mut self.source_ports };
        for (protocol, port) in points {
            self.protocols.insert(*protocol);
            ports.insert(*port);
            ports.extend(port.checked_add(1));
        }
    }

    /// Returns a packet of every class that has to do with one of the services; with none, of every class.
    pub(super) fn packets<'a>(
        &'a self,
        source: IpAddr,
        destination: IpAddr,
        services: &'a [Service],
    ) -> impl Iterator<Item = PacketTuple> + 'a {
        let mut named = self.protocols.clone();
        named.extend(services.iter().filter_map(|service| service.protocol));
        // All the others are alike; best known is the first that is kept for experiments (RFC 3692).
        let other = std::iter::once(253).chain(0..=u8::MAX).find(|protocol| !named.contains(protocol));
        // What people know best comes first: a counter-example is theirs to read.
        let without_ports = named.into_iter().filter(|protocol| !WITH_PORTS.contains(protocol));
        let protocols: Vec<u8> = WITH_PORTS.into_iter().chain(without_ports).chain(other).collect();
        let mut destination_ports = self.destination_ports.clone();
        let mut icmp = self.icmp.clone();
        for service in services {
            if let Some((first, last)) = service.ports {
                destination_ports.insert(first);
                destination_ports.extend(last.checked_add(1));
            }
            icmp.extend(service.icmp.map(|kind| (kind, None)));
        }
        let source_ports = members(&self.source_ports, &[49_152]);
        let destination_ports: Rc<[u16]> = members(&destination_ports, &[443, 1]).into();
        let with_types = if self.is_ipv4 { protocol::ICMP } else { protocol::ICMPV6 };
        let types = types(&icmp, |kind| {
            is_discovery(&PacketTuple {
                source,
                destination,
                protocol: with_types,
                source_port: None,
                destination_port: None,
                icmp: Some((kind, 0)),
            })
        });
        let packets =
            protocols.into_iter().flat_map(move |protocol| -> Box<dyn Iterator<Item = PacketTuple>> {
                let packet = PacketTuple {
                    source,
                    destination,
                    protocol,
                    source_port: None,
                    destination_port: None,
                    icmp: None,
                };
                if WITH_PORTS.contains(&protocol) {
                    let destination_ports = Rc::clone(&destination_ports);
                    Box::new(source_ports.clone().into_iter().flat_map(move |from| {
                        let packet = PacketTuple { source_port: Some(from), ..packet };
                        let destination_ports = Rc::clone(&destination_ports);
                        (0..destination_ports.len()).map(move |at| PacketTuple {
                            destination_port: Some(destination_ports[at]),
                            ..packet
                        })
                    }))
                } else if protocol == with_types {
                    Box::new(
                        types.clone().into_iter().map(move |icmp| PacketTuple { icmp: Some(icmp), ..packet }),
                    )
                } else {
                    Box::new(std::iter::once(packet))
                }
            });
        packets
            .filter(move |packet| services.is_empty() || services.iter().any(|service| uses(packet, service)))
    }
}

/// Returns a port of each of the intervals that start at `starts`: one of `known` where it is in the interval, else the first.
fn members(starts: &BTreeSet<u16>, known: &[u16]) -> Vec<u16> {
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    let intervals = starts.iter().zip(ends);
    let member = |(first, last): (&u16, u16)| {
        known.iter().find(|port| (*first..=last).contains(*port)).copied().unwrap_or(*first)
    };
    intervals.map(member).collect()
}

/// Returns every type and code that is named, and one of each that is not.
fn types(named: &BTreeSet<(u8, Option<u8>)>, is_exempt: impl Fn(u8) -> bool) -> Vec<(u8, u8)> {
    let mut types: BTreeSet<u8> = named.iter().map(|(kind, _)| *kind).collect();
    // A type that some places accept whatever policy says stands for no other.
    let other = (0..=u8::MAX).find(|kind| !types.contains(kind) && !is_exempt(*kind));
    types.extend(other);
    let mut pairs = Vec::new();
    for kind in types {
        let codes: BTreeSet<u8> =
            named.iter().filter(|(named, _)| *named == kind).filter_map(|(_, code)| *code).collect();
        let other = (0..=u8::MAX).find(|code| !codes.contains(code));
        pairs.extend(codes.into_iter().chain(other).map(|code| (kind, code)));
    }
    pairs
}

fn uses(packet: &PacketTuple, service: &Service) -> bool {
    let is_protocol = match (service.protocol, service.ports) {
        (Some(wanted), _) => wanted == packet.protocol,
        (None, Some(_)) => WITH_PORTS.contains(&packet.protocol),
        (None, None) => true,
    };
    let is_port = service.ports.is_none_or(|(first, last)| {
        packet.destination_port.is_some_and(|port| (first..=last).contains(&port))
    });
    let is_icmp = service.icmp.is_none_or(|kind| packet.icmp.is_some_and(|(found, _)| found == kind));
    is_protocol && is_port && is_icmp
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp: Option<(u8, u8)>,
}

/// Writes a packet as a record of its fields.
pub(super) fn serialize<S: Serializer>(packet: &PacketTuple, serializer: S) -> Result<S::Ok, S::Error> {
    let PacketTuple { source, destination, protocol, source_port, destination_port, icmp } = *packet;
    Written { source, destination, protocol, source_port, destination_port, icmp }.serialize(serializer)
}
