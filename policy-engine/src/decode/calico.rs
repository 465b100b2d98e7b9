//! The other kinds of `projectcalico.org/v3`: Tier, NetworkSet, GlobalNetworkSet, HostEndpoint, Profile (policy model 2.3 to 2.7).

use serde_json::Value;

use super::domain;
use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::policy::open_spec;
use super::rule::{Place, rules};
use super::scalar;
use super::scope::NAMESPACE;
use crate::model::{
    HostEndpoint, NamedPort, NetworkSet, NetworkSetKey, Object, Order, Profile, Tier, TierDefault,
};
use crate::packet::Direction;

/// Reads a Tier; the built-in ones are fixed.
pub(super) fn tier(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = open_spec(value, problems);
    let builtin = match metadata.name.as_str() {
        "kube-admin" | "adminnetworkpolicy" => Some((1_000.0, TierDefault::Pass)),
        "default" => Some((1_000_000.0, TierDefault::Deny)),
        "kube-baseline" | "baselineadminnetworkpolicy" => Some((10_000_000.0, TierDefault::Pass)),
        _ => None,
    };
    let usual = builtin.unwrap_or((1_000_000.0, TierDefault::Deny));
    let order = spec.number("order", problems).unwrap_or(usual.0);
    let default_action = match spec.text("defaultAction", problems) {
        None | Some("") => usual.1,
        Some("Deny") => TierDefault::Deny,
        Some("Pass") => TierDefault::Pass,
        Some("Allow") => TierDefault::Allow,
        Some(other) => {
            problems.refuse_text(
                spec.at("defaultAction"),
                other,
                "must be Deny, Pass or Allow, in this spelling",
            );
            TierDefault::Deny
        }
    };
    if builtin.is_some_and(|(fixed, _)| fixed != order) {
        let reason = format!("the order of this built-in tier is fixed at {}", usual.0);
        problems.refuse_text(spec.at("order"), &order.to_string(), reason);
    }
    if builtin.is_some_and(|(_, fixed)| fixed != default_action) {
        let reason = format!("the default action of this built-in tier is fixed at {:?}", usual.1);
        problems.refuse_text(spec.at("defaultAction"), &format!("{default_action:?}"), reason);
    }
    spec.finish(problems);
    Object::Tier(Tier { name: metadata.name.clone(), order: Order(order), default_action }.into())
}

/// Reads a NetworkSet or GlobalNetworkSet.
pub(super) fn network_set(
    value: &Value,
    metadata: &Metadata,
    is_namespaced: bool,
    problems: &mut Problems,
) -> Object {
    let mut spec = open_spec(value, problems);
    let mut labels = metadata.labels.clone();
    if labels.contains_key(NAMESPACE) {
        let reason = "this label tells the namespace and is never written by hand; remove it";
        problems.refuse_text(format!("metadata.labels.{NAMESPACE}"), &labels[NAMESPACE], reason);
    }
    if is_namespaced {
        labels.insert(NAMESPACE.to_owned(), metadata.namespace.clone());
    }
    let mut nets = Vec::new();
    for (path, text) in spec.texts("nets", problems) {
        match scalar::cidr_or_address(text) {
            Ok(net) => nets.push(net),
            Err(reason) => problems.refuse_text(path, text, reason),
        }
    }
    let domains = domain::patterns(spec.texts("allowedEgressDomains", problems), problems);
    if !domains.is_empty() {
        problems.warn(
            spec.at("allowedEgressDomains"),
            "",
            "domains are not enforced; they add no members to the set",
        );
    }
    spec.finish(problems);
    let namespace = is_namespaced.then(|| metadata.namespace.clone());
    let key = NetworkSetKey { namespace, name: metadata.name.clone() };
    Object::NetworkSet(NetworkSet { key, labels, nets, domains }.into())
}

/// Reads a HostEndpoint.
pub(super) fn host_endpoint(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = open_spec(value, problems);
    let node = spec.text("node", problems).unwrap_or_default().to_owned();
    if node.is_empty() {
        problems.refuse_text(
            spec.at("node"),
            "",
            "missing; write the name of the node that has the interface",
        );
    }
    let interface_name = spec.text("interfaceName", problems).unwrap_or_default().to_owned();
    let is_interface = interface_name.len() <= 15
        && interface_name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if interface_name != "*" && !is_interface {
        let reason = "not an interface: \"*\", or 1 to 15 of [A-Za-z0-9_.-]";
        problems.refuse_text(spec.at("interfaceName"), &interface_name, reason);
    }
    let mut expected_ips = Vec::new();
    let listed = spec.texts("expectedIPs", problems);
    for (path, text) in &listed {
        expected_ips.extend(scalar::address(path, text, problems));
    }
    if interface_name.is_empty() && listed.is_empty() {
        problems.refuse_text(
            spec.at("interfaceName"),
            "",
            "write interfaceName or expectedIPs; one of them finds the interface",
        );
    }
    let profiles = spec.texts("profiles", problems).into_iter().map(|(_, name)| name.to_owned()).collect();
    let listed = spec.list("ports", problems);
    let ports = listed.into_iter().filter_map(|(path, item)| host_port(path, item, problems)).collect();
    spec.finish(problems);
    let labels = metadata.labels.clone();
    let name = metadata.name.clone();
    Object::HostEndpoint(
        HostEndpoint { name, labels, node, interface_name, expected_ips, profiles, ports }.into(),
    )
}

fn host_port(path: String, item: &Value, problems: &mut Problems) -> Option<NamedPort> {
    let mut fields = Fields::open(path, Some(item), problems);
    let name = fields.text("name", problems).unwrap_or_default().to_owned();
    if !scalar::is_port_name(&name) {
        problems.refuse_text(
            fields.at("name"),
            &name,
            "a port here needs a name of 1 to 128 of [A-Za-z0-9_.-]",
        );
    }
    let protocol = match fields.raw("protocol") {
        Some(value) => scalar::protocol(&fields.at("protocol"), value, problems),
        None => {
            problems.refuse_text(fields.at("protocol"), "", "missing; write TCP, UDP or SCTP");
            None
        }
    };
    let port = fields.integer("port", 1, 65_535, problems);
    if port.is_none() && fields.raw("port").is_none() {
        problems.refuse_text(fields.at("port"), "", "missing; write a number from 1 to 65535");
    }
    fields.finish(problems);
    let port = port.and_then(|port| u16::try_from(port).ok())?;
    Some(NamedPort { name, protocol: protocol?, port, host_port: None, host_ip: None })
}

/// Reads a Profile.
pub(super) fn profile(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = open_spec(value, problems);
    if metadata.name == "projectcalico-default-allow" {
        problems.refuse_text(
            "metadata.name",
            &metadata.name,
            "this profile is built in and cannot be written",
        );
    }
    let ingress = rules(&mut spec, Place { namespace: None, direction: Direction::Ingress }, problems);
    let egress = rules(&mut spec, Place { namespace: None, direction: Direction::Egress }, problems);
    let labels = spec.text_map("labelsToApply", problems);
    scalar::check_labels(&spec.at("labelsToApply"), &labels, problems);
    spec.finish(problems);
    Object::Profile(Profile { name: metadata.name.clone(), ingress, egress, labels }.into())
}
