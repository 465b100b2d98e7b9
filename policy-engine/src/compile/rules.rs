//! Rules with their peer expressions replaced by set numbers, once per policy and direction, shared by every endpoint.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::rows::IcmpView;
use super::sets::{Membership, SetId, Sets};
use crate::model::{Action, Entity, IcmpMatch, PortMatch, Rule, Unenforced};
use crate::packet::PacketTuple;
use crate::snapshot::Attribution;

const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

/// The rules of one policy or profile in one direction that can match at all, in order.
#[derive(Clone, Debug)]
pub(crate) struct RuleList {
    /// Distinguishes lists with different content; equal content keeps its number.
    pub(crate) number: u64,
    pub(crate) rules: Vec<Arc<CompiledRule>>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CompiledRule {
    pub(crate) action: Action,
    pub(crate) v4: bool,
    pub(crate) v6: bool,
    pub(crate) protocol: Option<u8>,
    pub(crate) not_protocol: Option<u8>,
    pub(crate) icmp: Option<IcmpMatch>,
    pub(crate) not_icmp: Option<IcmpMatch>,
    pub(crate) source: Side,
    pub(crate) destination: Side,
    pub(crate) attribution: Arc<Attribution>,
}

/// One side of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Side {
    /// The address must be in each of these.
    pub(crate) inside: Vec<SetId>,
    /// And in none of these.
    pub(crate) outside: Vec<SetId>,
    pub(crate) ports: Ports,
    pub(crate) not_ports: Ports,
    /// (address, protocol, port) must be in this set.
    pub(crate) service: Option<SetId>,
}

/// Numeric ranges and named-port sets, ORed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ports {
    pub(crate) ranges: Vec<(u16, u16)>,
    pub(crate) named: Vec<SetId>,
}

impl RuleList {
    /// Every set that the rules refer to, as often as they do.
    pub(crate) fn sets(&self) -> impl Iterator<Item = SetId> {
        self.rules.iter().flat_map(|rule| rule.source.sets().chain(rule.destination.sets()))
    }
}

impl Ports {
    fn compile(ports: &[PortMatch], entity: &Entity, sets: &mut Sets) -> Self {
        let mut compiled = Self::default();
        for port in ports {
            match port {
                PortMatch::Range { first, last } => compiled.ranges.push((*first, *last)),
                PortMatch::Named(name) => {
                    compiled.named.push(sets.named_port(entity.selector.as_ref(), name))
                }
            }
        }
        compiled
    }

    fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.named.is_empty()
    }

    fn numeric(&self, port: u16) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    fn matches(&self, protocol: u8, port: u16, membership: &Membership) -> bool {
        self.numeric(port) || self.named.iter().any(|set| membership.has_triple(*set, protocol, port))
    }
}

impl Side {
    fn compile(entity: &Entity, is_destination: bool, sets: &mut Sets) -> Self {
        let mut side = Self {
            ports: Ports::compile(&entity.ports, entity, sets),
            not_ports: Ports::compile(&entity.not_ports, entity, sets),
            ..Self::default()
        };
        if !entity.nets.is_empty() {
            side.inside.push(sets.nets(&entity.nets));
        }
        if let Some(selector) = &entity.selector {
            side.inside.push(sets.selector(selector));
        }
        if !entity.not_nets.is_empty() {
            side.outside.push(sets.nets(&entity.not_nets));
        }
        if let Some(selector) = &entity.not_selector {
            side.outside.push(sets.selector(selector));
        }
        if let Some(selector) = &entity.nodes {
            side.inside.push(sets.nodes(selector));
        }
        match &entity.service {
            Some(service) if is_destination => side.service = Some(sets.service(service)),
            Some(service) => side.inside.push(sets.service_addresses(service)),
            None => {}
        }
        side
    }

    /// Every set that the side refers to.
    pub(crate) fn sets(&self) -> impl Iterator<Item = SetId> {
        let lists = [&self.inside, &self.outside, &self.ports.named, &self.not_ports.named];
        lists.into_iter().flatten().copied().chain(self.service)
    }

    /// Whether an address with this membership can satisfy the side, whatever the port.
    pub(crate) fn may_match_address(&self, membership: &Membership) -> bool {
        let named_only = self.ports.ranges.is_empty() && !self.ports.named.is_empty();
        self.inside.iter().all(|set| membership.has(*set))
            && !self.outside.iter().any(|set| membership.has(*set))
            && self.service.is_none_or(|set| membership.has(set))
            && (!named_only || self.ports.named.iter().any(|set| membership.has(*set)))
    }

    /// Whether a port can satisfy the side, whatever the address. `None`: the packet has no known ports (policy model 9.3).
    pub(crate) fn may_match_port(&self, port: Option<u16>) -> bool {
        match port {
            Some(port) => {
                let positive =
                    self.ports.is_empty() || !self.ports.named.is_empty() || self.ports.numeric(port);
                positive && !self.not_ports.numeric(port)
            }
            None => self.ports.is_empty() && self.not_ports.ranges.is_empty() && self.service.is_none(),
        }
    }

    /// The same for every port that no range of the side names.
    pub(crate) fn may_match_unnamed_port(&self) -> bool {
        self.ports.is_empty() || !self.ports.named.is_empty()
    }

    /// Every range that the side names.
    pub(crate) fn port_ranges(&self) -> impl Iterator<Item = (u16, u16)> {
        self.ports.ranges.iter().chain(&self.not_ports.ranges).copied()
    }

    pub(crate) fn has_port_criteria(&self) -> bool {
        !self.ports.is_empty() || !self.not_ports.is_empty() || self.service.is_some()
    }

    /// Whether address and port must be looked at together.
    pub(crate) fn is_joint(&self) -> bool {
        !self.ports.named.is_empty() || !self.not_ports.named.is_empty() || self.service.is_some()
    }

    fn matches_jointly(&self, protocol: u8, port: Option<u16>, membership: &Membership) -> bool {
        let Some(port) = port else { return self.may_match_port(None) };
        (self.ports.is_empty() || self.ports.matches(protocol, port, membership))
            && (self.not_ports.is_empty() || !self.not_ports.matches(protocol, port, membership))
            && self.service.is_none_or(|set| membership.has_triple(set, protocol, port))
    }
}

impl CompiledRule {
    /// Compiles `rule`, or returns `None` when it can match no packet (policy model 9.2, PM-D15).
    pub(crate) fn compile(
        rule: &Rule,
        attribution: Attribution,
        allows_unenforced: bool,
        sets: &mut Sets,
    ) -> Option<Self> {
        let unenforced =
            |criterion: &Unenforced| !allows_unenforced || matches!(criterion, Unenforced::Unparseable(_));
        let inert =
            rule.unenforced.iter().any(unenforced) && matches!(rule.action, Action::Allow | Action::Pass);
        let (v4, v6) = (in_family(rule, true), in_family(rule, false));
        if inert || !(v4 || v6) {
            return None;
        }
        Some(Self {
            action: rule.action,
            v4,
            v6,
            protocol: rule.protocol,
            not_protocol: rule.not_protocol,
            icmp: rule.icmp,
            not_icmp: rule.not_icmp,
            source: Side::compile(&rule.source, false, sets),
            destination: Side::compile(&rule.destination, true, sets),
            attribution: Arc::new(attribution),
        })
    }

    /// The rule with sets by what they contain.
    pub(crate) fn describe(&self, set: &dyn Fn(SetId) -> String) -> String {
        let side = |side: &Side| {
            let sets = |list: &[SetId]| list.iter().map(|number| set(*number)).collect::<Vec<_>>();
            let ports = |ports: &Ports| (ports.ranges.clone(), sets(&ports.named));
            let service = side.service.map(set);
            let (inside, outside) = (sets(&side.inside), sets(&side.outside));
            format!(
                "{inside:?} {outside:?} {:?} {:?} {service:?}",
                ports(&side.ports),
                ports(&side.not_ports)
            )
        };
        format!(
            "{:?} {} {} {:?} {:?} {:?} {:?} from {} to {}",
            self.action,
            self.v4,
            self.v6,
            self.protocol,
            self.not_protocol,
            self.icmp,
            self.not_icmp,
            side(&self.source),
            side(&self.destination)
        )
    }

    /// Whether every packet matches.
    pub(crate) fn matches_everything(&self) -> bool {
        let nothing = Side::default();
        (self.v4 && self.v6)
            && self.protocol.is_none()
            && self.not_protocol.is_none()
            && self.icmp.is_none()
            && self.not_icmp.is_none()
            && self.source == nothing
            && self.destination == nothing
    }

    pub(crate) fn matches_protocol(&self, is_ipv4: bool, protocol: u8) -> bool {
        (if is_ipv4 { self.v4 } else { self.v6 })
            && self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.not_protocol != Some(protocol)
    }

    /// Whether ICMP of this view can satisfy the criteria; codes are left to [`CompiledRule::confirms`].
    pub(crate) fn may_match_icmp(&self, view: IcmpView) -> bool {
        let kind = |criterion: &IcmpMatch| match view {
            IcmpView::Other => false,
            IcmpView::Unknown => criterion.kind.is_none(),
            IcmpView::Type(kind) => criterion.kind.is_none_or(|wanted| wanted == kind),
        };
        self.icmp.as_ref().is_none_or(kind)
            && !self.not_icmp.as_ref().is_some_and(|c| c.code.is_none() && kind(c))
    }

    /// Whether the rows cannot settle the rule alone.
    pub(crate) fn needs_confirmation(&self) -> bool {
        let code =
            |criterion: &Option<IcmpMatch>| criterion.is_some_and(|criterion| criterion.code.is_some());
        self.source.is_joint() || self.destination.is_joint() || code(&self.icmp) || code(&self.not_icmp)
    }

    /// Settles what rows cannot: ports that have a meaning only together with an address, and ICMP codes.
    pub(crate) fn confirms(
        &self,
        packet: &PacketTuple,
        source: &Membership,
        destination: &Membership,
    ) -> bool {
        let code = |criterion: &IcmpMatch| match (icmp_view(packet), packet.icmp) {
            (IcmpView::Type(_), Some((kind, code))) => {
                criterion.kind.is_none_or(|wanted| wanted == kind)
                    && criterion.code.is_none_or(|wanted| wanted == code)
            }
            (IcmpView::Unknown, _) => criterion.kind.is_none() && criterion.code.is_none(),
            _ => false,
        };
        let [source_port, destination_port] = ports(packet);
        self.source.matches_jointly(packet.protocol, source_port, source)
            && self.destination.matches_jointly(packet.protocol, destination_port, destination)
            && self.icmp.as_ref().is_none_or(code)
            && !self.not_icmp.as_ref().is_some_and(code)
    }
}

/// Returns the ports that port criteria may look at: those of TCP, UDP and SCTP (policy model 9.3).
#[inline]
pub(crate) fn ports(packet: &PacketTuple) -> [Option<u16>; 2] {
    match packet.protocol {
        TCP | UDP | SCTP => [packet.source_port, packet.destination_port],
        _ => [None, None],
    }
}

/// Returns what ICMP criteria see.
#[inline]
pub(crate) fn icmp_view(packet: &PacketTuple) -> IcmpView {
    let is_icmp = match packet.destination {
        IpAddr::V4(_) => packet.protocol == ICMP,
        IpAddr::V6(_) => packet.protocol == ICMPV6,
    };
    match packet.icmp {
        _ if !is_icmp => IcmpView::Other,
        Some((kind, _)) => IcmpView::Type(kind),
        None => IcmpView::Unknown,
    }
}

/// Whether the rule has an instance for the family (policy model 9.2).
fn in_family(rule: &Rule, is_ipv4: bool) -> bool {
    let of_family = |net: &IpNet| net.addr().is_ipv4() == is_ipv4;
    let version = rule.ip_version.or(match rule.protocol {
        Some(ICMP) => Some(4),
        Some(ICMPV6) => Some(6),
        _ => None,
    });
    let nets = |nets: &[IpNet]| nets.is_empty() || nets.iter().any(of_family);
    let not_nets =
        |list: &[IpNet]| nets(list) && !list.iter().any(|net| of_family(net) && net.prefix_len() == 0);
    version.is_none_or(|version| (version == 4) == is_ipv4)
        && [&rule.source, &rule.destination].iter().all(|side| nets(&side.nets) && not_nets(&side.not_nets))
}
