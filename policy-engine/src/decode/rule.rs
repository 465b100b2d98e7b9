//! Rules of Calico policies and profiles (policy model 2.8, 2.9): reading, the constraints of 4.3, conversion by 6.3.

use ipnet::IpNet;
use serde_json::Value;

use super::field::{Fields, Problems};
use super::scalar::{self, ICMP, ICMPV6, SCTP, TCP, UDP};
use super::scope::Peer;
use super::{domain, http};
use crate::model::{Action, Entity, IcmpMatch, NamespacedName, PortMatch, Rule, Unenforced};
use crate::packet::Direction;
use crate::selector::Selector;

/// The longest selector of a manifest, in characters.
pub(super) const LONGEST_SELECTOR: usize = 1024;

/// Where a rule stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'n> {
    /// Namespace of the policy; `None` for a global policy or a profile.
    pub namespace: Option<&'n str>,
    /// The list it is in.
    pub direction: Direction,
}

/// Returns a rule that does `action` to everything.
pub(super) fn everything(action: Action) -> Rule {
    Rule::everything(action)
}

/// Reads the rules in list `ingress` or `egress` of `spec`.
pub(super) fn rules(spec: &mut Fields<'_>, place: Place<'_>, problems: &mut Problems) -> Vec<Rule> {
    let name = match place.direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let listed = spec.list_up_to(name, 1024, problems);
    listed.into_iter().map(|(path, value)| rule(path, value, place, problems)).collect()
}

fn rule(path: String, value: &Value, place: Place<'_>, problems: &mut Problems) -> Rule {
    let mut fields = Fields::open(path.clone(), Some(value), problems);
    let action = action(&mut fields, problems);
    let ip_version = match fields.raw("ipVersion") {
        None => None,
        Some(value) => match value.as_u64() {
            Some(4) => Some(4),
            Some(6) => Some(6),
            _ => {
                problems.refuse(
                    fields.at("ipVersion"),
                    value,
                    "must be 4 or 6, without quotes; leave it out for both",
                );
                None
            }
        },
    };
    let mut protocol =
        |name| fields.raw(name).and_then(|value| scalar::protocol(&fields.at(name), value, problems));
    let (protocol, not_protocol) = (protocol("protocol"), protocol("notProtocol"));
    let icmp = icmp_of(&mut fields, "icmp", problems);
    let not_icmp = icmp_of(&mut fields, "notICMP", problems);
    let source = Side::read(fields.object("source", problems), true, place, problems);
    let destination = Side::read(fields.object("destination", problems), false, place, problems);
    let mut metadata = fields.object("metadata", problems);
    let annotations = metadata.text_map("annotations", problems);
    scalar::check_annotations(&metadata.at("annotations"), &annotations, problems);
    metadata.finish(problems);
    let mut rule = Rule { ip_version, protocol, not_protocol, annotations, ..everything(action) };
    (rule.icmp, rule.not_icmp) = (icmp, not_icmp);
    http::read(&mut fields, &mut rule, place, problems);
    let has_icmp = fields.raw("icmp").is_some() || fields.raw("notICMP").is_some();
    check_protocols(&path, &rule, has_icmp, problems);
    check_ports(&rule, [&source, &destination], problems);
    check_families(&path, &rule, [&source, &destination], problems);
    check_domains(&destination, &mut rule, problems);
    rule.source = source.entity;
    rule.destination = destination.entity;
    fields.finish(problems);
    rule
}

fn action(fields: &mut Fields<'_>, problems: &mut Problems) -> Action {
    let value = fields.raw("action").cloned().unwrap_or_default();
    match value.as_str() {
        Some("Allow") => Action::Allow,
        Some("Deny") => Action::Deny,
        Some("Log") => Action::Log,
        Some("Pass") => Action::Pass,
        _ => {
            problems.refuse(
                fields.at("action"),
                &value,
                "required: Allow, Deny, Log or Pass, in this spelling",
            );
            Action::Deny
        }
    }
}

/// Reads an ICMP criterion; one that names no type is no criterion beyond the protocol.
fn icmp_of(fields: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<IcmpMatch> {
    let mut inner = fields.object(name, problems);
    let kind = inner.integer("type", 0, 254, problems);
    let code = inner.integer("code", 0, 255, problems);
    if code.is_some() && kind.is_none() && inner.raw("type").is_none() {
        problems.refuse_text(inner.at("code"), "", "a code needs a type beside it");
    }
    inner.finish(problems);
    // Both ranges fit a byte.
    let byte = |number: i64| u8::try_from(number).ok();
    kind.map(|kind| IcmpMatch { kind: byte(kind), code: code.and_then(byte) })
}

/// Policy model 4.3, rows 8 and 9.
fn check_protocols(path: &str, rule: &Rule, has_icmp: bool, problems: &mut Problems) {
    if has_icmp && !matches!(rule.protocol, Some(ICMP | ICMPV6)) {
        let shown = rule.protocol.map(|protocol| protocol.to_string()).unwrap_or_default();
        problems.refuse_text(
            format!("{path}.protocol"),
            &shown,
            "icmp and notICMP need protocol ICMP or ICMPv6",
        );
    }
    for (name, protocol) in [("protocol", rule.protocol), ("notProtocol", rule.not_protocol)] {
        let fits = match protocol {
            Some(ICMP) => rule.ip_version != Some(6),
            Some(ICMPV6) => rule.ip_version != Some(4),
            _ => true,
        };
        if !fits {
            let reason = "ICMP is IPv4 only and ICMPv6 is IPv6 only; change it or ipVersion";
            problems.refuse_text(format!("{path}.{name}"), &protocol.unwrap_or_default().to_string(), reason);
        }
    }
}

/// Policy model 4.3, rows 1 to 3.
fn check_ports(rule: &Rule, sides: [&Side; 2], problems: &mut Problems) {
    for side in sides {
        for (name, ports) in [("ports", &side.entity.ports), ("notPorts", &side.entity.not_ports)] {
            let numeric = ports.iter().any(|port| matches!(port, PortMatch::Range { .. }));
            let path = format!("{}.{name}", side.path);
            match rule.protocol {
                None if numeric => {
                    problems.refuse_text(path, "", "numeric ports need a protocol: TCP, UDP or SCTP");
                }
                Some(protocol) if !ports.is_empty() && ![TCP, UDP, SCTP].contains(&protocol) => {
                    let reason = "only TCP, UDP and SCTP have ports; remove the ports or change the protocol";
                    problems.refuse_text(path, &protocol.to_string(), reason);
                }
                _ => {}
            }
        }
    }
}

/// Policy model 4.3, rows 5 and 6.
fn check_families(path: &str, rule: &Rule, sides: [&Side; 2], problems: &mut Problems) {
    let family = |net: &IpNet| if net.addr().is_ipv4() { 4 } else { 6 };
    let nets: Vec<&IpNet> =
        sides.iter().flat_map(|side| side.entity.nets.iter().chain(&side.entity.not_nets)).collect();
    let Some(first) = nets.first() else { return };
    if let Some(other) = nets.iter().find(|net| family(net) != family(first)) {
        let reason =
            format!("one rule cannot name IPv4 and IPv6 networks ({first} is there too); write two rules");
        problems.refuse_text(path, &other.to_string(), reason);
    }
    if let Some(net) = nets.iter().find(|net| rule.ip_version.is_some_and(|version| version != family(net))) {
        problems.refuse_text(
            path,
            &net.to_string(),
            "this network is of the other family than ipVersion says",
        );
    }
}

/// Policy model 23.1; what is enforced of it is nothing (PM-D15).
fn check_domains(destination: &Side, rule: &mut Rule, problems: &mut Problems) {
    if destination.entity.domains.is_empty() {
        return;
    }
    let path = format!("{}.domains", destination.path);
    if rule.action != Action::Allow {
        problems.refuse_text(&path, "", "domains are only for rules that Allow");
    }
    rule.unenforced.push(Unenforced::Domains);
    problems.warn(
        path,
        "",
        "domains are not enforced; while DNS is not tracked, this Allow rule matches nothing",
    );
}

/// One side of a rule while its rule is checked.
struct Side {
    path: String,
    entity: Entity,
}

impl Side {
    fn read(mut fields: Fields<'_>, is_source: bool, place: Place<'_>, problems: &mut Problems) -> Self {
        let path = fields.at("").trim_end_matches('.').to_owned();
        let mut entity = Entity {
            nets: nets(&mut fields, "nets", false, problems),
            not_nets: nets(&mut fields, "notNets", true, problems),
            ports: ports(&mut fields, "ports", problems),
            not_ports: ports(&mut fields, "notPorts", problems),
            ..Entity::default()
        };
        let mut peer = Peer {
            selector: selector(&mut fields, "selector", problems),
            not_selector: selector(&mut fields, "notSelector", problems),
            namespace_selector: namespace_selector(&mut fields, problems),
            ..Peer::default()
        };
        let mut accounts = fields.object("serviceAccounts", problems);
        for (path, name) in accounts.texts("names", problems) {
            if !scalar::is_dns_subdomain(name) {
                problems.refuse_text(path, name, "not the name of a service account");
            }
            peer.service_account_names.push(name.to_owned());
        }
        peer.service_account_selector = selector(&mut accounts, "selector", problems);
        accounts.finish(problems);
        entity.service = service(&mut fields, is_source, place, problems);
        entity.domains = domains(&mut fields, is_source, place, problems);
        let excluded: &[&'static str] = match (entity.service.is_some(), !entity.domains.is_empty()) {
            (true, _) if is_source => &SERVICE_EXCLUDES[..6],
            (true, _) => &SERVICE_EXCLUDES,
            (false, true) => &["nets", "selector"],
            (false, false) => &[],
        };
        for name in excluded {
            if fields.raw(name).is_some_and(|value| !is_blank(value)) {
                let other = if entity.service.is_some() { "services" } else { "domains" };
                problems.refuse_text(
                    fields.at(name),
                    "",
                    format!("cannot stand beside {other}; write two rules"),
                );
            }
        }
        entity.written = peer.written(place.namespace);
        (entity.selector, entity.not_selector) = peer.effective(place.namespace);
        fields.finish(problems);
        Self { path, entity }
    }
}

/// Policy model 2.11; the last two only on a destination.
const SERVICE_EXCLUDES: [&str; 8] = [
    "selector",
    "notSelector",
    "namespaceSelector",
    "nets",
    "notNets",
    "serviceAccounts",
    "ports",
    "notPorts",
];

/// Returns whether `value` says nothing: an empty text, list or mapping.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(value) => !value,
        Value::Number(_) => false,
    }
}

fn nets(fields: &mut Fields<'_>, name: &'static str, negative: bool, problems: &mut Problems) -> Vec<IpNet> {
    fields.list_up_to(name, 256, problems);
    let mut nets = Vec::new();
    for (path, text) in fields.texts(name, problems) {
        match scalar::cidr(text) {
            Err(reason) => problems.refuse_text(path, text, reason),
            Ok(net) if net.trunc() != net => {
                let reason = format!("host bits are set; did you mean {}?", net.trunc());
                problems.refuse_text(path, text, reason);
            }
            Ok(net) if negative && net.prefix_len() == 0 => {
                let reason =
                    "excludes every address of the family, so the rule could never match; remove the rule";
                problems.refuse_text(path, text, reason);
            }
            Ok(net) => nets.push(net),
        }
    }
    nets
}

fn ports(fields: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Vec<PortMatch> {
    let listed = fields.list_up_to(name, 50, problems);
    listed.into_iter().filter_map(|(path, value)| scalar::port(&path, value, problems)).collect()
}

/// Reads a selector that must not mention `global()`; blank is absent.
pub(super) fn selector(
    fields: &mut Fields<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Selector> {
    let text = fields.text(name, problems).filter(|text| !text.is_empty())?;
    if text.contains("global(") {
        let reason = "global() is only for namespaceSelector within a rule, and there alone";
        problems.refuse_text(fields.at(name), text, reason);
        return None;
    }
    parse_selector(fields.at(name), text, problems)
}

/// Policy model 4.3, row 12.
fn namespace_selector(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Selector> {
    let name = "namespaceSelector";
    let text = fields.text(name, problems).filter(|text| !text.is_empty())?;
    if text.contains("global(") && text.trim_matches([' ', '\t']) != "global()" {
        problems.refuse_text(fields.at(name), text, "global() must stand alone; write two rules");
        return None;
    }
    parse_selector(fields.at(name), text, problems)
}

fn parse_selector(path: String, text: &str, problems: &mut Problems) -> Option<Selector> {
    if text.chars().count() > LONGEST_SELECTOR {
        problems.refuse_text(path, text, format!("a selector has at most {LONGEST_SELECTOR} characters"));
        return None;
    }
    match Selector::parse(text) {
        Ok(selector) => Some(selector),
        Err(error) => {
            problems.refuse_text(path, text, format!("not a selector: {error}"));
            None
        }
    }
}

/// Policy model 2.11, PM-D14.
fn service(
    fields: &mut Fields<'_>,
    is_source: bool,
    place: Place<'_>,
    problems: &mut Problems,
) -> Option<NamespacedName> {
    let is_written = fields.raw("services").is_some_and(|value| !is_blank(value));
    let path = fields.at("services");
    let mut service = fields.object("services", problems);
    if !is_written {
        return None;
    }
    if is_source != (place.direction == Direction::Ingress) {
        let reason = "services are only for the source of ingress rules and the destination of egress rules";
        problems.refuse_text(&path, "", reason);
    }
    let name = service.text("name", problems).unwrap_or_default().to_owned();
    let namespace = service.text("namespace", problems).filter(|text| !text.is_empty()).or(place.namespace);
    if name.is_empty() {
        problems.refuse_text(service.at("name"), "", "missing; write the name of the Service");
    }
    if namespace.is_none() {
        problems.refuse_text(
            service.at("namespace"),
            "",
            "missing; a global policy must say the namespace of the Service",
        );
    }
    let namespace = namespace.unwrap_or_default().to_owned();
    service.finish(problems);
    Some(NamespacedName { namespace, name })
}

fn domains(
    fields: &mut Fields<'_>,
    is_source: bool,
    place: Place<'_>,
    problems: &mut Problems,
) -> Vec<String> {
    let listed = fields.texts("domains", problems);
    if !listed.is_empty() && (is_source || place.direction == Direction::Ingress) {
        let reason = "domains are only for the destination of egress rules";
        problems.refuse_text(fields.at("domains"), "", reason);
    }
    domain::patterns(listed, problems)
}
