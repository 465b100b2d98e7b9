//! Host endpoints read literally: which one governs an interface, and what it says in one context and direction (policy model 11).
//!
//! The walk through tiers is the one of pods; what differs is written here: failsafe ports come first, only the policies of the context
//! count, the end of a tier denies in normal and forward only, and profiles are asked in normal only. What the verdict of a context means
//! for the next one is the business of [`crate::walk`].
//!
//! Deliberately absent: discovery messages (PM-D13). They never get as far as host endpoint policy, so [`crate::walk`] does not ask.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Finding, Step, Subject, Sum, Walk, World, labels_with_profiles};
use crate::engine::{HostInterface, LocalEndpoint};
use crate::model::{Failsafe, HostEndpoint, Model, Settings};
use crate::packet::{Context, Direction, EndpointId, HostVerdict, PacketTuple, Verdict};
use crate::snapshot::Attribution;

/// What a host endpoint says in one context and direction, who decided, and the way there.
#[derive(Clone, Debug, PartialEq)]
pub struct HostDecision {
    /// Allow, deny, or nothing.
    pub verdict: HostVerdict,
    /// Who decided: a rule, the end of a tier, a profile, or a failsafe port (kind `Failsafe`, name such as `tcp:22`). Empty where nothing
    /// did.
    pub attribution: Attribution,
    /// Everything that was looked at, in order.
    pub trace: Vec<Step>,
}

/// Returns the host endpoint that governs the interface (policy model 11.1).
///
/// The boundary between host and pods belongs to a `*` host endpoint alone (11.7).
pub fn resolve_interface<'a>(model: &'a Model, interface: &HostInterface) -> Option<&'a HostEndpoint> {
    let of_node = || model.host_endpoints.values().filter(|endpoint| endpoint.node == interface.node);
    let is_candidate = |endpoint: &HostEndpoint| match endpoint.interface_name.as_str() {
        "*" => false,
        "" => endpoint.expected_ips.iter().any(|address| interface.addresses.contains(address)),
        name => name == interface.name,
    };
    let specific = of_node().filter(|endpoint| !interface.is_pod_side && is_candidate(endpoint));
    let default = of_node().filter(|endpoint| endpoint.interface_name == "*");
    let smallest = specific.min_by(|a, b| a.name.cmp(&b.name));
    smallest.or_else(|| default.min_by(|a, b| a.name.cmp(&b.name))).map(|endpoint| &**endpoint)
}

/// Evaluates one context and direction of the host endpoint that governs the interface.
///
/// `None`: nothing governs the interface, or the endpoint has no policy in this context and direction where the context needs one
/// (untracked, preDNAT, forward). Either way the packet goes on as if nobody had been asked.
pub fn evaluate_host(
    model: &Model,
    locals: &BTreeMap<EndpointId, LocalEndpoint>,
    interface: &HostInterface,
    context: Context,
    direction: Direction,
    packet: &PacketTuple,
) -> Option<HostDecision> {
    let endpoint = resolve_interface(model, interface)?;
    // Policy model 11.7: normal stops at the boundary to the pods, and doNotTrack is not supported on `*`.
    let has_context = match context {
        Context::Untracked => endpoint.interface_name != "*" && !interface.is_pod_side,
        Context::PreDnat => direction == Direction::Ingress,
        Context::Normal => !interface.is_pod_side,
        Context::Forward => true,
    };
    if !has_context {
        return None;
    }
    let settings = Settings::of_node(model, &endpoint.node);
    let mut walk = Walk::new(
        World { model, locals },
        direction,
        packet,
        model.settings_of_rules().allow_unenforced_criteria,
    );
    let labels = labels_with_profiles(model, &endpoint.labels, &endpoint.profiles);
    let (sum, policies) = walk.tiers_of(&Subject { what: "host endpoint", labels: &labels, context });
    if policies == 0 && context != Context::Normal {
        return None;
    }
    if let Some(decision) = failsafe(&settings, context, direction, packet) {
        return Some(decision);
    }
    let verdict = match (sum, context) {
        (Sum::Allow, _) => HostVerdict::Allow,
        (Sum::Deny, _) => HostVerdict::Deny,
        (Sum::Pass | Sum::NoMatch, Context::Normal) => match walk.profiles(&endpoint.profiles) {
            Verdict::Allow => HostVerdict::Allow,
            Verdict::Deny => HostVerdict::Deny,
        },
        (Sum::Pass | Sum::NoMatch, _) => HostVerdict::NoMatch,
    };
    let attribution = match verdict {
        HostVerdict::Allow | HostVerdict::Deny => walk.trace.last()?.place.clone(),
        HostVerdict::NoMatch => nobody(),
    };
    Some(HostDecision { verdict, attribution, trace: walk.trace })
}

/// Policy model 11.9: what is accepted before any policy of the context.
fn failsafe(
    settings: &Settings,
    context: Context,
    direction: Direction,
    packet: &PacketTuple,
) -> Option<HostDecision> {
    let (inbound, outbound) = (&settings.failsafe_inbound, &settings.failsafe_outbound);
    let (source, destination) = (packet.source, packet.destination);
    let opens = || match direction {
        Direction::Ingress => find(inbound, packet, packet.destination_port, source),
        Direction::Egress => find(outbound, packet, packet.destination_port, destination),
    };
    // Nothing tracks a flow in the untracked context, so a reply has to be known by its source port.
    let replies = || match direction {
        Direction::Ingress => find(outbound, packet, packet.source_port, source),
        Direction::Egress => find(inbound, packet, packet.source_port, destination),
    };
    let (found, verdict, finding) = match context {
        Context::Forward => return None,
        Context::PreDnat | Context::Normal => (opens()?, HostVerdict::Allow, Finding::Allowed),
        Context::Untracked => {
            let why = "a failsafe port stays tracked, and the later contexts are asked".to_owned();
            (opens().or_else(replies)?, HostVerdict::NoMatch, Finding::NextTier(why))
        }
    };
    let attribution = Attribution { kind: "Failsafe".to_owned(), name: name_of(found), ..nobody() };
    let trace = vec![Step { place: attribution.clone(), finding }];
    Some(HostDecision { verdict, attribution, trace })
}

/// Returns the failsafe port that `port` is, where its net has `peer`. 0.0.0.0/0 is how "everything" is written, in either family.
fn find<'a>(
    list: &'a [Failsafe],
    packet: &PacketTuple,
    port: Option<u16>,
    peer: IpAddr,
) -> Option<&'a Failsafe> {
    list.iter().find(|failsafe| {
        failsafe.protocol == packet.protocol
            && Some(failsafe.port) == port
            && failsafe.net.is_none_or(|net| net.contains(&peer) || is_everything(&net))
    })
}

fn is_everything(net: &IpNet) -> bool {
    net.prefix_len() == 0 && net.addr().is_ipv4()
}

/// `tcp:22`: the text form without its net.
fn name_of(failsafe: &Failsafe) -> String {
    let port = failsafe.port;
    match failsafe.protocol {
        6 => format!("tcp:{port}"),
        17 => format!("udp:{port}"),
        132 => format!("sctp:{port}"),
        other => format!("{other}:{port}"),
    }
}

fn nobody() -> Attribution {
    Attribution {
        tier: String::new(),
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        rule: -1,
    }
}
