//! Rules, packets and selectors in words, as a user would write them.

use std::net::IpAddr;

use crate::model::{
    Action, Entity, HeaderOperator, HttpMatch, IcmpMatch, PathMatch, Policy, PortMatch, Rule, Unenforced,
};
use crate::packet::{Direction, PacketTuple};

/// How many items of a list are spelled out.
const SPELLED: usize = 4;

/// Returns `ingress` or `egress`.
pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Returns the name of a protocol, or `protocol 47`.
pub fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        136 => "UDPLite".to_owned(),
        number => format!("protocol {number}"),
    }
}

/// Returns a packet such as `TCP 10.0.0.1:40000 -> 10.0.0.2:80`.
pub fn packet(packet: &PacketTuple) -> String {
    let end = |address: IpAddr, port: Option<u16>| match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    };
    let icmp = packet.icmp.map(|(kind, code)| format!(" type {kind} code {code}")).unwrap_or_default();
    let source = end(packet.source, packet.source_port);
    let destination = end(packet.destination, packet.destination_port);
    format!("{}{icmp} {source} -> {destination}", protocol(packet.protocol))
}

/// Returns a rule such as `Allow TCP from app == "client" to port 80, 443`.
pub fn rule(rule: &Rule) -> String {
    let action = match rule.action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
        Action::Log => "Log",
        Action::Pass => "Pass",
    };
    let mut parts = Vec::new();
    parts.extend(rule.ip_version.map(|version| format!("IPv{version}")));
    parts.extend(rule.protocol.map(protocol));
    parts.extend(rule.not_protocol.map(|number| format!("all but {}", protocol(number))));
    parts.extend(rule.icmp.as_ref().map(icmp));
    parts.extend(rule.not_icmp.as_ref().map(|criterion| format!("not {}", icmp(criterion))));
    for (word, entity) in [("from", &rule.source), ("to", &rule.destination)] {
        parts.extend(side(entity).map(|side| format!("{word} {side}")));
    }
    parts.extend(rule.http.as_deref().map(http));
    if parts.is_empty() {
        parts.push("everything".to_owned());
    }
    for criterion in &rule.unenforced {
        if let Unenforced::Unparseable(what) = criterion {
            parts.push(format!("(and {what}, which could not be read)"));
        }
    }
    format!("{action} {}", parts.join(" "))
}

/// Returns whom a policy selects and what it governs, such as `selects app == "db" in namespace shop, for ingress`.
pub fn target(policy: &Policy) -> String {
    let governs = match (policy.governs_ingress, policy.governs_egress) {
        (true, true) => "ingress and egress",
        (true, false) => "ingress",
        (false, true) => "egress",
        (false, false) => "no direction",
    };
    let Some(selector) = &policy.selector else {
        return format!("selects nothing, as its selector could not be understood, for {governs}");
    };
    let text = selector.canonical();
    let Some(namespace) = &policy.key.namespace else {
        return match text {
            "all()" => format!("selects everything, for {governs}"),
            text => format!("selects {text}, for {governs}"),
        };
    };
    // The scope of the namespace comes last (policy model 6.1) and is not what the user wrote; neither is what Kubernetes objects get
    // (7.5).
    let scope = format!("projectcalico.org/namespace == \"{namespace}\"");
    let orchestrator = "projectcalico.org/orchestrator == \"k8s\"";
    let text = bare(text);
    let own = bare(text.strip_suffix(&scope).map_or(text, |own| own.trim_end_matches(" && ")));
    let own = bare(own.strip_prefix(orchestrator).map_or(own, |own| own.trim_start_matches(" && ")));
    match own {
        "" | "all()" => format!("selects every pod of namespace {namespace}, for {governs}"),
        own => format!("selects {own} in namespace {namespace}, for {governs}"),
    }
}

/// Returns the text without a pair of parentheses around all of it.
fn bare(text: &str) -> &str {
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    inner.filter(|inner| balanced(inner)).unwrap_or(text)
}

/// Returns whether every parenthesis has its partner, in order; texts in quotes do not hold any in practice, and a wrong guess only
/// leaves a pair of parentheses in the words.
fn balanced(text: &str) -> bool {
    let mut depth = 0_i32;
    for byte in text.bytes() {
        depth += match byte {
            b'(' => 1,
            b')' => -1,
            _ => 0,
        };
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

fn icmp(criterion: &IcmpMatch) -> String {
    match (criterion.kind, criterion.code) {
        (Some(kind), Some(code)) => format!("type {kind} code {code}"),
        (Some(kind), None) => format!("type {kind}"),
        (None, _) => "any ICMP type".to_owned(),
    }
}

/// Returns the criteria of one side; `None` when there are none.
pub fn side(entity: &Entity) -> Option<String> {
    let nets = |nets: &[ipnet::IpNet]| listed(nets.iter().map(ToString::to_string));
    let ports = |ports: &[PortMatch]| {
        listed(ports.iter().map(|port| match port {
            PortMatch::Range { first, last } if first == last => first.to_string(),
            PortMatch::Range { first, last } => format!("{first}-{last}"),
            PortMatch::Named(name) => name.clone(),
        }))
    };
    let mut parts = Vec::new();
    parts.extend(entity.selector.as_ref().map(|selector| selector.canonical().to_owned()));
    parts.extend(entity.not_selector.as_ref().map(|selector| format!("not {}", selector.canonical())));
    parts.extend(nets(&entity.nets));
    parts.extend(nets(&entity.not_nets).map(|nets| format!("outside {nets}")));
    parts.extend(entity.nodes.as_ref().map(|selector| format!("nodes with {}", selector.canonical())));
    parts.extend(
        entity.service.as_ref().map(|service| format!("service {}/{}", service.namespace, service.name)),
    );
    parts.extend(listed(entity.domains.iter().cloned()).map(|domains| format!("domains {domains}")));
    parts.extend(ports(&entity.ports).map(|ports| format!("port {ports}")));
    parts.extend(ports(&entity.not_ports).map(|ports| format!("not port {ports}")));
    (!parts.is_empty()).then(|| parts.join(" "))
}

fn http(criteria: &HttpMatch) -> String {
    let path = |path: &PathMatch| match path {
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(path) => format!("{path}*"),
    };
    let operator = |operator: HeaderOperator| match operator {
        HeaderOperator::Exists => "exists",
        HeaderOperator::DoesNotExist => "does not exist",
        HeaderOperator::HasPrefix => "begins with",
        HeaderOperator::HasSuffix => "ends with",
        HeaderOperator::In => "in",
        HeaderOperator::NotIn => "not in",
        HeaderOperator::MatchesRegex => "matches",
    };
    let mut parts = vec!["of HTTP".to_owned()];
    parts.extend(listed(criteria.methods.iter().cloned()).map(|methods| format!("method {methods}")));
    parts.extend(listed(criteria.paths.iter().map(path)).map(|paths| format!("path {paths}")));
    for header in &criteria.headers {
        let values = listed(header.values.iter().cloned()).unwrap_or_default();
        parts.push(
            format!("header {} {} {values}", header.name, operator(header.operator)).trim_end().to_owned(),
        );
    }
    parts.join(" ")
}

fn listed(items: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let count = items.len();
    let mut text = items.take(SPELLED).collect::<Vec<_>>().join(", ");
    if count > SPELLED {
        text.push_str(&format!(" and {} more", count - SPELLED));
    }
    (count > 0).then_some(text)
}
