//! Policies of `policy.networking.k8s.io` (policy model 7.6, 32.11): ClusterNetworkPolicy of v1alpha2, and the AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy of v1alpha1 that came before it.
//!
//! A rule that cannot be converted makes the object invalid, and only that rule changes in the form that takes its place: Deny and Pass
//! deny everything, Accept is left out. What is wrong outside the rules closes the directions that were written, as for any policy. A
//! policy without tier or subject says nothing about whom to close, so nothing takes its place and the condition is critical.

use std::collections::BTreeMap;

use serde_json::Value;

use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::network_policy::simplify;
use super::policy::{deny_action, judged, open_spec};
use super::rule::{everything, is_blank};
use super::scalar::{self, SCTP, TCP, UDP, kubernetes_protocol};
use super::scope::{Peer, Target};
use super::{Judged, domain, label_selector};
use crate::model::{
    Action, Entity, Object, Order, Policy, PolicyFlags, PolicyKey, PolicyKind, PortMatch, Rule, Unenforced,
};
use crate::packet::Direction;
use crate::selector::Selector;

/// Reads a policy; `kind` is one of the three.
pub(super) fn decode(
    kind: PolicyKind,
    value: &Value,
    metadata: &Metadata,
    problems: &mut Problems,
) -> Judged {
    let mut spec = open_spec(value, problems);
    let tier = tier(kind, &mut spec, problems);
    if kind == PolicyKind::KubernetesBaselineAdminNetworkPolicy && metadata.name != "default" {
        problems.refuse_text("metadata.name", &metadata.name, "there is one, and its name is default");
    }
    let order = match kind {
        PolicyKind::KubernetesBaselineAdminNetworkPolicy => Order(0.0),
        _ => priority(&mut spec, problems),
    };
    let before = problems.errors.len();
    let subject = subject(&mut spec, problems);
    let is_selector_good = problems.errors.len() == before;
    let mut claimed = |name| spec.raw(name).is_some_and(|list| !is_blank(list));
    let claims = (claimed("ingress"), claimed("egress"));
    let outside = problems.errors.len();
    let ingress = rules(kind, &mut spec, Direction::Ingress, problems);
    let egress = rules(kind, &mut spec, Direction::Egress, problems);
    let is_good_outside = outside == 0 && ingress.is_some() && egress.is_some();
    let (ingress, egress) = (ingress.unwrap_or_default(), egress.unwrap_or_default());
    spec.finish(problems);
    let (has_tier, has_subject) = (tier.is_some(), subject.is_some());
    // The tiers pass at their end, so a direction without rules is not governed.
    let governs = if is_good_outside { (!ingress.is_empty(), !egress.is_empty()) } else { claims };
    let policy = Policy {
        key: PolicyKey { kind, namespace: None, name: metadata.name.clone() },
        tier: tier.unwrap_or("kube-admin").to_owned(),
        order,
        selector: subject.filter(|_| is_selector_good),
        governs_ingress: governs.0,
        governs_egress: governs.1,
        ingress,
        egress,
        flags: PolicyFlags { deny_action: deny_action(metadata, problems), ..PolicyFlags::default() },
        staged: None,
    };
    if !(has_tier && has_subject) {
        return Judged { object: Object::Policy(policy.into()), fallback: None, critical: true };
    }
    if is_good_outside {
        let object = Object::Policy(policy.into());
        return Judged { object: object.clone(), fallback: Some(object), critical: false };
    }
    judged(policy, is_selector_good)
}

fn tier(kind: PolicyKind, spec: &mut Fields<'_>, problems: &mut Problems) -> Option<&'static str> {
    match kind {
        PolicyKind::KubernetesAdminNetworkPolicy => return Some("adminnetworkpolicy"),
        PolicyKind::KubernetesBaselineAdminNetworkPolicy => return Some("baselineadminnetworkpolicy"),
        _ => {}
    }
    match spec.text("tier", problems) {
        Some("Admin") => Some("kube-admin"),
        Some("Baseline") => Some("kube-baseline"),
        other => {
            let reason = "required: Admin or Baseline, in this spelling";
            problems.refuse_text(spec.at("tier"), other.unwrap_or_default(), reason);
            None
        }
    }
}

fn priority(spec: &mut Fields<'_>, problems: &mut Problems) -> Order {
    let priority = spec.integer("priority", 0, 1000, problems);
    if spec.raw("priority").is_none() {
        problems.refuse_text(spec.at("priority"), "", "missing; write a whole number from 0 to 1000");
    }
    // At most 1000, which a float holds exactly.
    Order(priority.map_or(f64::INFINITY, |priority| priority as f64))
}

/// Returns the effective selector of the policy; `None` when it names nobody. Host endpoints are never meant.
fn subject(spec: &mut Fields<'_>, problems: &mut Problems) -> Option<Selector> {
    let mut subject = spec.object("subject", problems);
    let peer = pods_of(&mut subject, problems);
    subject.finish(problems);
    let Some(peer) = peer else {
        let reason =
            "required: exactly one of namespaces and pods, each with a label selector ({} selects all)";
        problems.refuse_text(spec.at("subject"), "", reason);
        return None;
    };
    let target = Target {
        selector: peer.selector,
        namespace_selector: peer.namespace_selector,
        service_account_selector: None,
    };
    target.effective(None)
}

/// Reads `namespaces` or `pods` of a subject or peer; `None` unless exactly one of them is there.
fn pods_of(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Peer> {
    let (has_namespaces, has_pods) = (fields.raw("namespaces").is_some(), fields.raw("pods").is_some());
    let namespaces = label_selector_of(fields, "namespaces", problems);
    let mut pods = fields.object("pods", problems);
    let (of_namespaces, of_pods) = match (has_namespaces, has_pods) {
        (true, false) => (namespaces, Fields::open(String::new(), None, problems)),
        (false, true) => {
            for name in ["namespaceSelector", "podSelector"] {
                if pods.raw(name).is_none() {
                    problems.refuse_text(pods.at(name), "", "missing; write {} to select all");
                }
            }
            let both = (
                label_selector_of(&mut pods, "namespaceSelector", problems),
                label_selector_of(&mut pods, "podSelector", problems),
            );
            pods.finish(problems);
            both
        }
        _ => return None,
    };
    Some(Peer {
        selector: Some(label_selector::pods(of_pods, problems)),
        namespace_selector: Some(label_selector::namespaces(of_namespaces, problems)),
        ..Peer::default()
    })
}

/// Opens a label selector. What an earlier form of the API wrote in its place narrowed the peer, so it is never passed over.
fn label_selector_of<'v>(fields: &mut Fields<'v>, name: &'static str, problems: &mut Problems) -> Fields<'v> {
    let mut selector = fields.object(name, problems);
    for earlier in ["sameLabels", "notSameLabels", "namespaceSelector"] {
        if let Some(value) = selector.raw(earlier) {
            let reason = "not part of this version of the API; write matchLabels or matchExpressions";
            problems.refuse(selector.at(earlier), value, reason);
        }
    }
    selector
}

/// Reads and converts the rules of a direction; `None` when the list itself cannot be read.
fn rules(
    kind: PolicyKind,
    spec: &mut Fields<'_>,
    direction: Direction,
    problems: &mut Problems,
) -> Option<Vec<Rule>> {
    let name = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let before = problems.errors.len();
    let listed = spec.list(name, problems);
    if problems.errors.len() > before {
        return None;
    }
    let mut converted = Vec::new();
    for (path, item) in listed {
        let mut inner = Problems::default();
        let mut fields = Fields::open(path, Some(item), &mut inner);
        let name = fields.text("name", &mut inner).unwrap_or_default();
        if name.chars().count() > 100 {
            inner.refuse_text(fields.at("name"), name, "a name here has at most 100 characters");
        }
        let action = action(kind, &mut fields, &mut inner);
        let mut rules = expand(kind, &mut fields, action, direction, &mut inner);
        fields.finish(&mut inner);
        if !inner.errors.is_empty() {
            let closes = action != Some(Action::Allow);
            rules = if closes { vec![everything(Action::Deny)] } else { Vec::new() };
        }
        if !name.is_empty() {
            for rule in &mut rules {
                rule.annotations = BTreeMap::from([("name".to_owned(), name.to_owned())]);
            }
        }
        converted.extend(rules);
        problems.errors.extend(inner.errors);
        problems.warnings.extend(inner.warnings);
    }
    Some(converted)
}

fn action(kind: PolicyKind, fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Action> {
    let text = fields.text("action", problems).unwrap_or_default();
    let (is_new, is_baseline) = (
        kind == PolicyKind::KubernetesClusterNetworkPolicy,
        kind == PolicyKind::KubernetesBaselineAdminNetworkPolicy,
    );
    match text {
        "Accept" if is_new => Some(Action::Allow),
        "Allow" if !is_new => Some(Action::Allow),
        "Deny" => Some(Action::Deny),
        "Pass" if !is_baseline => Some(Action::Pass),
        _ => {
            let reason = match (is_new, is_baseline) {
                (true, _) => "required: Accept, Deny or Pass, in this spelling",
                (false, false) => "required: Allow, Deny or Pass, in this spelling",
                (false, true) => "required: Allow or Deny, in this spelling",
            };
            problems.refuse_text(fields.at("action"), text, reason);
            None
        }
    }
}

/// Returns one rule per peer and protocol.
fn expand(
    kind: PolicyKind,
    fields: &mut Fields<'_>,
    action: Option<Action>,
    direction: Direction,
    problems: &mut Problems,
) -> Vec<Rule> {
    let peers_field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let listed = fields.list(peers_field, problems);
    if listed.is_empty() {
        problems.refuse_text(fields.at(peers_field), "", "required: at least one peer");
    }
    let mut peers = Vec::new();
    for (path, item) in listed {
        peers.extend(peer(path, item, action, direction, problems));
    }
    let ports = match kind {
        PolicyKind::KubernetesClusterNetworkPolicy => protocols(fields, problems),
        _ => ports(fields, problems),
    };
    let has_names = ports.contains_key(&None);
    let has_addresses = peers.iter().any(|peer| peer.selector.is_none());
    if has_names && has_addresses {
        let reason = "networks, nodes and domainNames have no named ports; write the number";
        problems.refuse_text(fields.at(peers_field), "", reason);
    }
    let ports = if ports.is_empty() { BTreeMap::from([(None, Some(Vec::new()))]) } else { ports };
    let mut rules = Vec::new();
    for (protocol, ports) in ports {
        let ports = simplify(ports.unwrap_or_default());
        for peer in &peers {
            let mut rule = Rule { protocol, ..everything(action.unwrap_or(Action::Deny)) };
            if !peer.domains.is_empty() {
                rule.unenforced.push(Unenforced::Domains);
            }
            match direction {
                Direction::Ingress => rule.source = peer.clone(),
                Direction::Egress => rule.destination = peer.clone(),
            }
            rule.destination.ports.clone_from(&ports);
            rules.push(rule);
        }
    }
    rules.shrink_to_fit();
    rules
}

/// Reads one peer; networks of both families become two, because a rule concerns one of them.
fn peer(
    path: String,
    item: &Value,
    action: Option<Action>,
    direction: Direction,
    problems: &mut Problems,
) -> Vec<Entity> {
    let mut fields = Fields::open(path.clone(), Some(item), problems);
    let offered: &[&'static str] = match direction {
        Direction::Ingress => &["namespaces", "pods"],
        Direction::Egress => &["namespaces", "pods", "nodes", "networks", "domainNames"],
    };
    let present: Vec<&str> = offered.iter().copied().filter(|name| fields.raw(name).is_some()).collect();
    let entities = match present[..] {
        ["namespaces" | "pods"] => pods_of(&mut fields, problems).map(pods).into_iter().collect(),
        ["nodes"] => {
            let nodes = label_selector_of(&mut fields, "nodes", problems);
            let nodes = Some(label_selector::namespaces(nodes, problems));
            vec![Entity { nodes, ..Entity::default() }]
        }
        ["networks"] => networks(&mut fields, problems),
        ["domainNames"] => {
            let listed = fields.texts("domainNames", problems);
            if listed.is_empty() {
                problems.refuse_text(fields.at("domainNames"), "", "required: at least one domain");
            }
            if action != Some(Action::Allow) {
                let reason = "domainNames are only for rules that accept";
                problems.refuse_text(fields.at("domainNames"), "", reason);
            }
            let reason =
                "domains are not enforced; while DNS is not tracked, this peer of the rule matches nothing";
            problems.warn(fields.at("domainNames"), "", reason);
            vec![Entity { domains: domain::patterns(listed, problems), ..Entity::default() }]
        }
        _ => {
            problems.refuse_text(path, "", format!("write exactly one of {}", offered.join(", ")));
            Vec::new()
        }
    };
    fields.finish(problems);
    entities
}

fn pods(peer: Peer) -> Entity {
    let written = peer.written(None);
    let (selector, not_selector) = peer.effective(None);
    Entity { selector, not_selector, written, ..Entity::default() }
}

fn networks(fields: &mut Fields<'_>, problems: &mut Problems) -> Vec<Entity> {
    let listed = fields.texts("networks", problems);
    if listed.is_empty() {
        problems.refuse_text(fields.at("networks"), "", "required: at least one CIDR");
    }
    let mut families = [Vec::new(), Vec::new()];
    for (path, text) in listed {
        match scalar::cidr(text) {
            Ok(net) => families[usize::from(net.addr().is_ipv6())].push(net.trunc()),
            Err(reason) => problems.refuse_text(path, text, reason),
        }
    }
    let entity = |nets| Entity { nets, ..Entity::default() };
    families.into_iter().filter(|nets| !nets.is_empty()).map(entity).collect()
}

/// Ports by protocol; no protocol holds the named ports. `None` in the map: one item asks for every port, which wins over the others.
type Ports = BTreeMap<Option<u8>, Option<Vec<PortMatch>>>;

fn add(ports: &mut Ports, protocol: Option<u8>, port: Option<PortMatch>) {
    let known = ports.entry(protocol).or_insert_with(|| Some(Vec::new()));
    match port {
        None => *known = None,
        Some(port) => known.iter_mut().for_each(|known| known.push(port.clone())),
    }
}

/// Reads `protocols` of v1alpha2.
fn protocols(fields: &mut Fields<'_>, problems: &mut Problems) -> Ports {
    const NAMES: [(&str, u8); 3] = [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)];
    let mut ports = Ports::new();
    for (path, item) in fields.list("protocols", problems) {
        let mut fields = Fields::open(path.clone(), Some(item), problems);
        let written: Vec<_> = NAMES.iter().copied().filter(|(name, _)| fields.raw(name).is_some()).collect();
        let named = fields.text("destinationNamedPort", problems);
        match (&written[..], named) {
            ([(name, protocol)], None) => {
                let mut inner = fields.object(name, problems);
                let is_written = inner.raw("destinationPort").is_some();
                let port_path = inner.at("destinationPort");
                let mut port = inner.object("destinationPort", problems);
                let found = number_or_range(&mut port, problems);
                port.finish(problems);
                inner.finish(problems);
                match (is_written, found) {
                    (false, _) => add(&mut ports, Some(*protocol), None),
                    (true, Some(found)) => add(&mut ports, Some(*protocol), Some(found)),
                    (true, None) => {
                        refuse_port(port_path, "exactly one of number and range", problems);
                    }
                }
            }
            ([], Some(name)) => add_named(&mut ports, fields.at("destinationNamedPort"), name, problems),
            _ => {
                let reason = "write exactly one of tcp, udp, sctp and destinationNamedPort";
                problems.refuse_text(path, "", reason);
            }
        }
        fields.finish(problems);
    }
    ports
}

/// Reads `ports` of v1alpha1.
fn ports(fields: &mut Fields<'_>, problems: &mut Problems) -> Ports {
    let mut ports = Ports::new();
    for (path, item) in fields.list("ports", problems) {
        let mut fields = Fields::open(path.clone(), Some(item), problems);
        let offered = ["portNumber", "portRange", "namedPort"];
        let present: Vec<&str> = offered.into_iter().filter(|name| fields.raw(name).is_some()).collect();
        match present[..] {
            ["namedPort"] => {
                let name = fields.text("namedPort", problems).unwrap_or_default();
                add_named(&mut ports, fields.at("namedPort"), name, problems);
            }
            [one @ ("portNumber" | "portRange")] => {
                let is_number = one == "portNumber";
                let mut inner = fields.object(if is_number { "portNumber" } else { "portRange" }, problems);
                let text = inner.text("protocol", problems).filter(|text| !text.is_empty()).unwrap_or("TCP");
                let protocol = kubernetes_protocol(text);
                if protocol.is_none() {
                    problems.refuse_text(inner.at("protocol"), text, "must be TCP, UDP or SCTP");
                }
                let found = if is_number {
                    number(&mut inner, "port", problems)
                } else {
                    range(&mut inner, problems)
                };
                inner.finish(problems);
                match (protocol, found) {
                    (Some(protocol), Some(found)) => add(&mut ports, Some(protocol), Some(found)),
                    _ => refuse_port(path, if is_number { "port" } else { "start and end" }, problems),
                }
            }
            _ => problems.refuse_text(path, "", format!("write exactly one of {}", offered.join(", "))),
        }
        fields.finish(problems);
    }
    ports
}

fn add_named(ports: &mut Ports, path: String, name: &str, problems: &mut Problems) {
    if !scalar::is_port_name(name) {
        problems.refuse_text(path, name, "not a port name: 1 to 128 of [A-Za-z0-9_.-], not digits alone");
    }
    add(ports, None, Some(PortMatch::Named(name.to_owned())));
}

fn refuse_port(path: String, what: &str, problems: &mut Problems) {
    let reason = format!("not a port; write {what}, from 1 to 65535, the end not before the start");
    problems.refuse_text(path, "", reason);
}

/// Reads `number` or `range`; `None` unless exactly one of them is there and good.
fn number_or_range(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<PortMatch> {
    let (has_number, has_range) = (fields.raw("number").is_some(), fields.raw("range").is_some());
    let mut inner = fields.object("range", problems);
    match (has_number, has_range) {
        (true, false) => number(fields, "number", problems),
        (false, true) => {
            let found = range(&mut inner, problems);
            inner.finish(problems);
            found
        }
        _ => None,
    }
}

fn number(fields: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<PortMatch> {
    let port = fields.integer(name, 1, 65_535, problems).and_then(|port| u16::try_from(port).ok())?;
    Some(PortMatch::Range { first: port, last: port })
}

fn range(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<PortMatch> {
    let first = fields.integer("start", 1, 65_535, problems).and_then(|port| u16::try_from(port).ok());
    let last = fields.integer("end", 1, 65_535, problems).and_then(|port| u16::try_from(port).ok());
    let (first, last) = (first?, last?);
    (first <= last).then_some(PortMatch::Range { first, last })
}
