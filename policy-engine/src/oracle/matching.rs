//! Whether one rule matches one packet, criterion by criterion (policy model 9), and which criterion does not hold.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Walk;
use super::world::{Labelled, World};
use crate::explain::words;
use crate::model::{Action, Entity, IcmpMatch, PortMatch, Rule, Unenforced};
use crate::packet::PacketTuple;

/// A packet with everything that its two addresses belong to: all that rules ask about.
pub(crate) struct Facts<'a> {
    world: World<'a>,
    packet: PacketTuple,
    source: Vec<Labelled<'a>>,
    destination: Vec<Labelled<'a>>,
}

impl Walk<'_> {
    /// Policy model 9: returns the first criterion that does not hold; 18.2 for those that packets are not asked about.
    pub(super) fn mismatch(&self, rule: &Rule) -> Option<String> {
        // An element that could not be read stays closed whatever the switch says (PM-D5).
        let open = self.allow_unenforced
            && !rule.unenforced.iter().any(|criterion| matches!(criterion, Unenforced::Unparseable(_)));
        if !rule.unenforced.is_empty() && !open && matches!(rule.action, Action::Allow | Action::Pass) {
            return Some(
                "it has a criterion that is not enforced, so it never matches (policy model 18.2)".to_owned(),
            );
        }
        self.facts.mismatch(rule)
    }
}

impl<'a> Facts<'a> {
    /// Looks up both addresses; the cost is that of walking every object.
    pub(crate) fn new(world: World<'a>, packet: PacketTuple) -> Self {
        let (source, destination) = (world.objects_at(packet.source), world.objects_at(packet.destination));
        Self { world, packet, source, destination }
    }

    /// Policy model 9, without HTTP criteria: returns the first criterion that does not hold.
    pub(crate) fn mismatch(&self, rule: &Rule) -> Option<String> {
        let packet = &self.packet;
        let is_ipv4 = packet.destination.is_ipv4();
        let family = if is_ipv4 { 4 } else { 6 };
        let version = match (rule.ip_version, rule.protocol) {
            (Some(version), _) => Some(version),
            (None, Some(1)) => Some(4),
            (None, Some(58)) => Some(6),
            (None, _) => None,
        };
        if let Some(version) = version
            && version != family
        {
            return Some(format!("it is for IPv{version}, the packet is IPv{family}"));
        }
        if let Some(protocol) = rule.protocol
            && protocol != packet.protocol
        {
            return Some(format!(
                "it wants {}, the packet is {}",
                words::protocol(protocol),
                words::protocol(packet.protocol)
            ));
        }
        if let Some(protocol) = rule.not_protocol
            && protocol == packet.protocol
        {
            return Some(format!("it excludes {}", words::protocol(protocol)));
        }
        if let Some(criterion) = &rule.icmp
            && !icmp_holds(criterion, packet)
        {
            return Some("the ICMP type or code differs".to_owned());
        }
        if let Some(criterion) = &rule.not_icmp
            && icmp_holds(criterion, packet)
        {
            return Some("it excludes this ICMP type and code".to_owned());
        }
        let source = self.side(&rule.source, packet.source, packet.source_port, false);
        let destination = || self.side(&rule.destination, packet.destination, packet.destination_port, true);
        source
            .map(|reason| format!("source: {reason}"))
            .or_else(|| destination().map(|reason| format!("destination: {reason}")))
    }

    fn side(
        &self,
        entity: &Entity,
        address: IpAddr,
        port: Option<u16>,
        is_destination: bool,
    ) -> Option<String> {
        let world = self.world;
        let of_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
        if !entity.nets.is_empty() && !entity.nets.iter().any(|net| net.contains(&address)) {
            return Some(format!("{address} is in none of its nets"));
        }
        if !entity.not_nets.is_empty() {
            if entity.not_nets.iter().filter(of_family).count() == 0 {
                return Some(
                    "its notNets are of the other family, so it does not exist in this one (PM-D7)"
                        .to_owned(),
                );
            }
            if let Some(net) = entity.not_nets.iter().find(|net| net.contains(&address)) {
                return Some(format!("{address} is in notNets {net}"));
            }
        }
        let objects = if is_destination { &self.destination } else { &self.source };
        if let Some(selector) = &entity.selector
            && !objects.iter().any(|object| selector.matches(&object.labels))
        {
            return Some(format!("{address} belongs to nothing that {} selects", selector.canonical()));
        }
        if let Some(selector) = &entity.not_selector
            && let Some(object) = objects.iter().find(|object| selector.matches(&object.labels))
        {
            return Some(format!(
                "{address} belongs to {}, which notSelector {} selects",
                object.name,
                selector.canonical()
            ));
        }
        if let Some(nodes) = &entity.nodes {
            let mut selected = world.model.nodes.values().filter(|node| nodes.matches(&node.labels));
            if !selected.any(|node| node.addresses.contains(&address)) {
                return Some(format!("{address} belongs to no node that {} selects", nodes.canonical()));
            }
        }
        if let Some(service) = &entity.service {
            let slices = world.model.endpoint_slices.values().filter(|slice| {
                slice.key.namespace == service.namespace
                    && slice.service == service.name
                    && slice.addresses.contains(&address)
            });
            let found = slices.into_iter().any(|slice| {
                !is_destination
                    || self.port(port).is_some_and(|port| slice.ports.contains(&(self.packet.protocol, port)))
            });
            if !found {
                return Some(format!(
                    "{address} is no endpoint of service {}/{}",
                    service.namespace, service.name
                ));
            }
        }
        let named = |name: &str, port: u16| {
            objects.iter().any(|object| {
                let within = entity.selector.as_ref().is_none_or(|selector| selector.matches(&object.labels));
                let declares = object.ports.iter().any(|declared| {
                    declared.name == name
                        && declared.protocol == self.packet.protocol
                        && declared.port == port
                });
                within && declares
            })
        };
        let holds = |criterion: &PortMatch| match (criterion, self.port(port)) {
            (PortMatch::Range { first, last }, Some(port)) => *first <= port && port <= *last,
            (PortMatch::Named(name), Some(port)) => named(name, port),
            (_, None) => false,
        };
        if !entity.ports.is_empty() && !entity.ports.iter().any(holds) {
            return Some(match port {
                Some(port) => format!("port {port} is none of its ports"),
                None => "the packet has no port".to_owned(),
            });
        }
        if entity.not_ports.iter().any(holds) {
            return Some("its notPorts exclude the port".to_owned());
        }
        let numeric_exclusion = entity.not_ports.iter().any(|port| matches!(port, PortMatch::Range { .. }));
        if numeric_exclusion && self.port(port).is_none() {
            return Some("it excludes ports and the packet has none (policy model 9.3)".to_owned());
        }
        None
    }

    /// Only TCP, UDP and SCTP have ports here (policy model 9.3).
    fn port(&self, port: Option<u16>) -> Option<u16> {
        port.filter(|_| [6, 17, 132].contains(&self.packet.protocol))
    }
}

fn icmp_holds(criterion: &IcmpMatch, packet: &PacketTuple) -> bool {
    let is_icmp = packet.protocol == if packet.destination.is_ipv4() { 1 } else { 58 };
    let kind = criterion.kind.is_none_or(|kind| packet.icmp.is_some_and(|icmp| icmp.0 == kind));
    let code = criterion.code.is_none_or(|code| packet.icmp.is_some_and(|icmp| icmp.1 == code));
    is_icmp && kind && code
}
