//! `networking.k8s.io/v1` NetworkPolicy and its staged form (policy model 7.5).
//!
//! What Kubernetes could never have admitted makes the object invalid. Two things are set aside instead, and both narrow: a rule with
//! a port that is none is left out (every rule is an Allow), and a rule with an `ipBlock` that is none matches nothing (PM-D5).

use std::collections::BTreeMap;

use serde_json::Value;

use super::Judged;
use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::label_selector;
use super::policy::{deny_action, judged, open_spec, staged_action};
use super::rule::everything;
use super::scalar::{self, kubernetes_protocol};
use super::scope::{Peer, Target};
use crate::model::{
    Action, Entity, Order, Policy, PolicyFlags, PolicyKey, PolicyKind, PortMatch, Rule, Unenforced,
};
use crate::packet::Direction;

/// Reads a policy.
pub(super) fn decode(value: &Value, metadata: &Metadata, is_staged: bool, problems: &mut Problems) -> Judged {
    let mut spec = open_spec(value, problems);
    let namespace = metadata.namespace.as_str();
    let before = problems.errors.len();
    let selector = label_selector::pods(spec.object("podSelector", problems), problems);
    let is_selector_good = problems.errors.len() == before;
    let target = Target { selector: Some(selector), ..Target::default() };
    let ingress = rules(&mut spec, Direction::Ingress, namespace, problems);
    let listed_egress =
        spec.raw("egress").is_some_and(|list| list.as_array().is_none_or(|items| !items.is_empty()));
    let egress = rules(&mut spec, Direction::Egress, namespace, problems);
    let governs = policy_types(&mut spec, problems).unwrap_or((true, listed_egress));
    let staged = is_staged.then(|| staged_action(&mut spec, value, problems));
    spec.finish(problems);
    let kind = if is_staged {
        PolicyKind::StagedKubernetesNetworkPolicy
    } else {
        PolicyKind::KubernetesNetworkPolicy
    };
    let policy = Policy {
        key: PolicyKey { kind, namespace: Some(namespace.to_owned()), name: metadata.name.clone() },
        tier: "default".to_owned(),
        order: Order(1000.0),
        selector: target.effective(Some(namespace)),
        governs_ingress: governs.0,
        governs_egress: governs.1,
        ingress,
        egress,
        flags: PolicyFlags { deny_action: deny_action(metadata, problems), ..PolicyFlags::default() },
        staged,
    };
    judged(policy, is_selector_good)
}

/// Reads `policyTypes`; `None` when nothing is said. Unknown words are passed over; a list of nothing else claims both directions,
/// as policy model 3.1, note 3, has it for a policy that arrives without any.
fn policy_types(spec: &mut Fields<'_>, problems: &mut Problems) -> Option<(bool, bool)> {
    let before = problems.errors.len();
    let listed = spec.texts("policyTypes", problems);
    if problems.errors.len() > before {
        return Some((true, true));
    }
    let (mut ingress, mut egress) = (false, false);
    for (path, text) in &listed {
        match *text {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            _ => problems.warn(
                path,
                text,
                "unknown direction, passed over; write Ingress or Egress, in this spelling",
            ),
        }
    }
    match (listed.is_empty(), ingress || egress) {
        (true, _) => None,
        (false, true) => Some((ingress, egress)),
        (false, false) => Some((true, true)),
    }
}

fn rules(spec: &mut Fields<'_>, direction: Direction, namespace: &str, problems: &mut Problems) -> Vec<Rule> {
    let (name, peers) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let mut expanded = Vec::new();
    for (path, item) in spec.list(name, problems) {
        let mut fields = Fields::open(path.clone(), Some(item), problems);
        let ports = ports(&mut fields, problems);
        let listed = fields.list(peers, problems);
        let mut entities: Vec<_> =
            listed.into_iter().map(|(path, item)| peer(path, item, namespace, problems)).collect();
        if entities.is_empty() {
            entities.push((Entity::default(), None));
        }
        fields.finish(problems);
        let Some(ports) = ports else {
            problems.warn(
                path,
                "",
                "the rule is left out, because one of its ports is none; the others apply",
            );
            continue;
        };
        for (protocol, ports) in &ports {
            for (entity, unenforced) in &entities {
                expanded.push(one_rule(*protocol, ports, entity, unenforced.clone(), direction));
            }
        }
    }
    // Policies are kept for long, and a rule has hundreds of bytes.
    expanded.shrink_to_fit();
    expanded
}

fn one_rule(
    protocol: Option<u8>,
    ports: &[PortMatch],
    peer: &Entity,
    unenforced: Option<Unenforced>,
    direction: Direction,
) -> Rule {
    let mut rule =
        Rule { protocol, unenforced: unenforced.into_iter().collect(), ..everything(Action::Allow) };
    match direction {
        Direction::Ingress => rule.source = peer.clone(),
        Direction::Egress => rule.destination = peer.clone(),
    }
    rule.destination.ports = ports.to_vec();
    rule
}

/// Reads the ports of a rule: per protocol, in the order of the names, its ports, none meaning all. `None`: one of them is no port.
fn ports(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Vec<(Option<u8>, Vec<PortMatch>)>> {
    let listed = fields.list("ports", problems);
    if listed.is_empty() {
        return Some(vec![(None, Vec::new())]);
    }
    // `None` in the map: one item asks for every port, which wins over the others.
    let mut by_protocol: BTreeMap<&str, Option<Vec<PortMatch>>> = BTreeMap::new();
    let mut is_good = true;
    for (path, item) in listed {
        let mut fields = Fields::open(path, Some(item), problems);
        let protocol = fields.text("protocol", problems).filter(|text| !text.is_empty()).unwrap_or("TCP");
        if kubernetes_protocol(protocol).is_none() {
            problems.warn(fields.at("protocol"), protocol, "not a protocol of ports; write TCP, UDP or SCTP");
            is_good = false;
        }
        let (number, last) = (fields.raw("port"), fields.raw("endPort"));
        let entry = by_protocol.entry(protocol).or_insert_with(|| Some(Vec::new()));
        match (number, last) {
            (None, None) => *entry = None,
            _ => match port(number, last) {
                Some(port) => entry.iter_mut().for_each(|ports| ports.push(port.clone())),
                None => {
                    let shown = number.map(Value::to_string).unwrap_or_default();
                    let reason = "not a port: a number from 1 to 65535 without quotes, or a port name; endPort needs a number \
                                  before it that is not larger";
                    problems.warn(fields.at("port"), &shown, reason);
                    is_good = false;
                }
            },
        }
        fields.finish(problems);
    }
    let simple = |(protocol, ports): (&str, Option<Vec<PortMatch>>)| {
        (kubernetes_protocol(protocol), simplify(ports.unwrap_or_default()))
    };
    is_good.then(|| by_protocol.into_iter().map(simple).collect())
}

fn port(number: Option<&Value>, last: Option<&Value>) -> Option<PortMatch> {
    let numeric =
        |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|&port| port > 0);
    match (number?, last) {
        (Value::String(name), None) if scalar::is_port_name(name) => Some(PortMatch::Named(name.clone())),
        (first, None) => numeric(first).map(|first| PortMatch::Range { first, last: first }),
        (first, Some(last)) => {
            let (first, last) = (numeric(first)?, numeric(last)?);
            (first <= last).then_some(PortMatch::Range { first, last })
        }
    }
}

/// Sorts ports, names first, and merges ranges that touch or overlap.
pub(super) fn simplify(ports: Vec<PortMatch>) -> Vec<PortMatch> {
    let mut names = Vec::new();
    let mut ranges = Vec::new();
    for port in ports {
        match port {
            PortMatch::Named(name) => names.push(name),
            PortMatch::Range { first, last } => ranges.push((first, last)),
        }
    }
    names.sort_unstable();
    names.dedup();
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let ranges = merged.into_iter().map(|(first, last)| PortMatch::Range { first, last });
    names.into_iter().map(PortMatch::Named).chain(ranges).collect()
}

fn peer(
    path: String,
    item: &Value,
    namespace: &str,
    problems: &mut Problems,
) -> (Entity, Option<Unenforced>) {
    let mut fields = Fields::open(path.clone(), Some(item), problems);
    let mut written = |name| fields.raw(name).is_some();
    let (has_pods, has_namespaces, has_block) =
        (written("podSelector"), written("namespaceSelector"), written("ipBlock"));
    let pods = fields.object("podSelector", problems);
    let namespaces = fields.object("namespaceSelector", problems);
    let block = fields.object("ipBlock", problems);
    fields.finish(problems);
    if has_block {
        if has_pods || has_namespaces {
            problems.refuse_text(
                path,
                "",
                "ipBlock stands alone in a peer; write a second peer for the selectors",
            );
        }
        return ip_block(block, problems);
    }
    if !(has_pods || has_namespaces) {
        problems.refuse_text(path, "", "an empty peer; write podSelector, namespaceSelector or ipBlock");
    }
    let peer = Peer {
        selector: Some(label_selector::pods(pods, problems)),
        namespace_selector: has_namespaces.then(|| label_selector::namespaces(namespaces, problems)),
        ..Peer::default()
    };
    let written = peer.written(Some(namespace));
    let (selector, not_selector) = peer.effective(Some(namespace));
    (Entity { selector, not_selector, written, ..Entity::default() }, None)
}

fn ip_block(mut block: Fields<'_>, problems: &mut Problems) -> (Entity, Option<Unenforced>) {
    let mut entity = Entity::default();
    let mut unparseable = None;
    let cidr = block.text("cidr", problems).unwrap_or_default();
    let texts = [(block.at("cidr"), cidr)].into_iter().chain(block.texts("except", problems)).enumerate();
    for (index, (path, text)) in texts {
        match scalar::cidr(text) {
            Ok(net) if index == 0 => entity.nets.push(net.trunc()),
            Ok(net) => entity.not_nets.push(net.trunc()),
            Err(reason) => {
                unparseable = Some(Unenforced::Unparseable(format!("{path}: {text:?}")));
                problems.warn(path, text, format!("{reason}; until it is mended, this peer matches nothing"));
            }
        }
    }
    block.finish(problems);
    (entity, unparseable)
}
