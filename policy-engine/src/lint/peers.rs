//! Lints about whom the rules of a policy know.

use super::catalogue::{
    DENY_OWN_NODE, HOST_NETWORK_POD, IMPOSSIBLE_SELECTOR, INERT_RULE, NEGATIVE_SCOPE, NETWORK_SET_WIDENS,
    NODE_LOCAL_DNS, PEER_SELECTS_NOTHING, SELECTOR_STAYS_IN_NAMESPACE, UNKNOWN_NAMED_PORT,
};
use super::manifests::{Role, RuleAt};
use super::policies::is_impossible;
use super::{Found, shown};
use crate::model::{
    Action, Entity, Labels, ObjectKey, Pod, PortMatch, Rule, Settings, Unenforced, WrittenPeer,
};
use crate::packet::Direction;
use crate::selector::{Restriction, Selector};

pub(super) fn lint(found: &mut Found<'_>) {
    let manifests = found.manifests;
    let settings = Settings::of_node(&manifests.model, "");
    if !settings.restrict_namespace_selectors {
        for policy in manifests.model.policies.values() {
            let Some(selector) = policy.selector.as_ref().filter(|_| policy.key.namespace.is_none()) else {
                continue;
            };
            if let Some(label) = widened(selector) {
                let message = format!(
                    "{} also selects host endpoints, which have no label {label}",
                    selector.canonical()
                );
                found.about_policy(&NEGATIVE_SCOPE, policy, "spec.namespaceSelector", message);
            }
        }
    }
    for rule in manifests.rules() {
        if !settings.allow_unenforced_criteria {
            inert(found, rule);
        }
        own_node(found, rule);
        node_local_dns(found, rule);
        for (name, side) in rule.sides() {
            let field = format!("{}.{name}", rule.field());
            named_ports(found, rule, &field, side);
            selectors(found, rule, &field, side);
            if !settings.restrict_namespace_selectors
                && let Some(selector) = &side.selector
                && let Some(label) = widened(selector)
            {
                let message = format!(
                    "{} also matches host endpoints and global network sets, which have no label {label}",
                    selector.canonical()
                );
                found.about_policy(&NEGATIVE_SCOPE, rule.policy, field, message);
            }
        }
    }
}

/// PM-D4: returns the label of a namespace or service account by which an object that has none is selected.
///
/// The witness is a host endpoint with nothing but the other labels that the selector wants.
fn widened(selector: &Selector) -> Option<String> {
    let is_inherited = |key: &str| key.starts_with("pcns.") || key.starts_with("pcsa.");
    let inherited = selector.keys().into_iter().find(|key| is_inherited(key))?;
    let wanted = selector.restrictions();
    let labels: Labels = wanted
        .into_iter()
        .filter_map(|(key, wanted)| {
            let value = match wanted {
                Restriction::OneOf(values) => values.into_iter().next()?,
                Restriction::Present => String::new(),
                Restriction::Absent => return None,
            };
            let is_global = !is_inherited(&key) && !key.starts_with("projectcalico.org/");
            is_global.then_some((key, value))
        })
        .collect();
    selector.matches(&labels).then(|| inherited[5..].to_owned())
}

fn inert(found: &mut Found<'_>, at: RuleAt<'_>) {
    let is_closed = matches!(at.rule.action, Action::Allow | Action::Pass);
    let names: Vec<&str> = at
        .rule
        .unenforced
        .iter()
        .filter_map(|criterion| match criterion {
            Unenforced::Http => Some("http"),
            Unenforced::Domains => Some("domains"),
            Unenforced::Unparseable(_) => None,
        })
        .collect();
    if is_closed && !names.is_empty() {
        let message = format!("criteria that packets are not judged by: {}", names.join(", "));
        found.about_policy(&INERT_RULE, at.policy, at.field(), message);
    }
}

/// Policy model 9.4. A protocol other than TCP, UDP and SCTP has no ports; validation says so.
fn named_ports(found: &mut Found<'_>, at: RuleAt<'_>, field: &str, side: &Entity) {
    if !found.manifests.has_pods() {
        return;
    }
    for (list, ports) in [("ports", &side.ports), ("notPorts", &side.not_ports)] {
        for (index, port) in ports.iter().enumerate() {
            let PortMatch::Named(name) = port else { continue };
            let declares = |protocol: Option<u8>| {
                found.manifests.known.iter().any(|known| {
                    let within =
                        side.selector.as_ref().is_none_or(|selector| selector.matches(&known.labels));
                    let mut ports = known.ports.iter();
                    known.role == Role::Endpoint
                        && within
                        && ports.any(|port| {
                            port.name == *name && protocol.is_none_or(|protocol| protocol == port.protocol)
                        })
                })
            };
            if !declares(at.rule.protocol) {
                let other = if declares(None) { " with the protocol of the rule" } else { "" };
                let message = format!("nobody whom this side may mean declares port {name:?}{other}");
                found.about_policy(
                    &UNKNOWN_NAMED_PORT,
                    at.policy,
                    format!("{field}.{list}[{index}]"),
                    message,
                );
            }
        }
    }
}

fn selectors(found: &mut Found<'_>, at: RuleAt<'_>, field: &str, side: &Entity) {
    let manifests = found.manifests;
    let Some(selector) = &side.selector else { return };
    if is_impossible(selector) {
        let message = format!("no object can match {}", selector.canonical());
        found.about_policy(&IMPOSSIBLE_SELECTOR, at.policy, field, message);
        return;
    }
    if !manifests.has_pods() {
        return;
    }
    let matched = || manifests.known.iter().filter(|known| selector.matches(&known.labels));
    let written = side.written.as_deref();
    if matched().any(|known| known.role != Role::HostNetworked) {
        network_sets(found, at, field, selector, written);
    } else if let Some(pod) = matched().next() {
        let message = format!(
            "{} is meant and not known by its address: it shares the network of its node",
            shown(&pod.key)
        );
        found.about_policy(&HOST_NETWORK_POD, at.policy, field, message);
    } else if let Some(elsewhere) = written.and_then(|written| elsewhere(found, written)) {
        let message = format!(
            "it matches nothing in namespace {}, but would match {elsewhere}",
            at.policy.key.namespace.as_deref().unwrap_or_default()
        );
        found.about_policy(&SELECTOR_STAYS_IN_NAMESPACE, at.policy, field, message);
    } else {
        let message = format!("{} matches nothing in these manifests", selector.canonical());
        found.about_policy(&PEER_SELECTS_NOTHING, at.policy, field, message);
    }
}

/// Returns what the selector would match if it were not limited to the namespace of its policy (policy model 6.3).
fn elsewhere(found: &Found<'_>, written: &WrittenPeer) -> Option<String> {
    let is_limited = written.policy_namespace.is_some() && written.namespace_selector.is_none();
    let selector = written.selector.as_ref().filter(|selector| is_limited && !selector.is_all())?;
    let mut known = found.manifests.known.iter();
    known.find(|known| selector.matches(&known.labels)).map(|known| shown(&known.key))
}

/// Policy model 6.3: the peers of `namespaceSelector: …` are everything in there, network sets included.
fn network_sets(
    found: &mut Found<'_>,
    at: RuleAt<'_>,
    field: &str,
    selector: &Selector,
    written: Option<&WrittenPeer>,
) {
    let Some(written) = written else { return };
    let names_namespaces =
        written.namespace_selector.as_ref().is_some_and(|selector| !selector.mentions_global());
    let means_all = written.selector.as_ref().is_none_or(Selector::is_all)
        && written.not_selector.is_none()
        && written.service_account_names.is_empty()
        && written.service_account_selector.is_none();
    if !names_namespaces || !means_all || !matches!(at.rule.action, Action::Allow | Action::Pass) {
        return;
    }
    let own = at.policy.key.namespace.as_ref();
    let set = found.manifests.known.iter().find(|known| {
        known.role == Role::NetworkSet
            && known.namespace.is_some()
            && known.namespace.as_ref() != own
            && selector.matches(&known.labels)
    });
    if let Some(set) = set {
        let message = format!("it also matches the addresses of {}", shown(&set.key));
        found.about_policy(&NETWORK_SET_WIDENS, at.policy, field, message);
    }
}

/// Policy model 12.6.
fn own_node(found: &mut Found<'_>, at: RuleAt<'_>) {
    let manifests = found.manifests;
    if at.direction != Direction::Ingress || at.rule.action != Action::Deny || at.policy.staged.is_some() {
        return;
    }
    let source = &at.rule.source;
    let Some(selector) = &at.policy.selector else { return };
    for pod in manifests.selected(selector) {
        let ObjectKey::Pod(key) = &pod.key else { continue };
        let Some(pod) = manifests.model.pods.get(key) else { continue };
        let Some(node) = pod.node.as_ref().and_then(|node| manifests.model.nodes.get(node)) else { continue };
        let named = source.nodes.as_ref().is_some_and(|selector| selector.matches(&node.labels));
        let address = node
            .addresses
            .iter()
            .find(|address| source.nets.iter().any(|net| net.prefix_len() > 0 && net.contains(*address)));
        if named || address.is_some() {
            let message = format!(
                "node {} runs Pod {}/{} and reaches it all the same",
                node.name, key.namespace, key.name
            );
            found.about_policy(&DENY_OWN_NODE, at.policy, format!("{}.source", at.field()), message);
            return;
        }
    }
}

/// A rule for DNS pods, in a cluster whose pods ask their node.
fn node_local_dns(found: &mut Found<'_>, at: RuleAt<'_>) {
    let asks_dns = |side: &Entity| {
        let is_dns = |port: &PortMatch| matches!(port, PortMatch::Range { first, last } if (*first..=*last).contains(&53));
        side.ports.iter().any(is_dns)
    };
    let to = &at.rule.destination;
    if at.direction != Direction::Egress
        || at.rule.action != Action::Allow
        || to.selector.is_none()
        || !asks_dns(to)
    {
        return;
    }
    let is_cache = |pod: &Pod| {
        pod.host_network && pod.labels.get("k8s-app").is_some_and(|name| name == "node-local-dns")
    };
    let Some(cache) = found.manifests.model.pods.values().find(|pod| is_cache(pod)) else { return };
    let by_address = |rule: &Rule| {
        let to = &rule.destination;
        rule.action == Action::Allow && to.selector.is_none() && (to.ports.is_empty() || asks_dns(to))
    };
    if !at.policy.egress.iter().any(by_address) {
        let message = format!(
            "Pod {}/{} answers at the node, and no rule of the policy allows an address",
            cache.key.namespace, cache.key.name
        );
        found.about_policy(&NODE_LOCAL_DNS, at.policy, format!("{}.destination", at.field()), message);
    }
}
