//! How statements are written: a YAML or JSON list, whose items are records or sentences.
//!
//! ```yaml
//! - no pod of namespace a can reach namespace b
//! - only: {from: {namespace: shop, selector: "app == 'web'"}, to: {namespace: shop, selector: "app == 'db'"}, ports: [TCP/5432]}
//!   name: the database belongs to the shop
//! ```

use std::io;
use std::path::Path;

use ipnet::IpNet;
use margay_policy_engine::decode::{BrokenDocument, FieldError, split_documents};
use margay_policy_engine::selector::Selector;
use margay_policy_engine::verify::{Assertion, Claim, Peer, Pods, Service};
use serde::Deserialize;
use serde_json::Value;

use super::sentence;

/// The sentences that are understood.
pub const SENTENCES: &str = "  no pod of PEER can reach PEER [on PORTS]     PEER cannot reach PEER [on PORTS]
  nothing outside can reach PEER [on PORTS]    nobody can reach PEER [on PORTS]
  only PEER may reach PEER [on PORTS]          only PEER may reach PORTS of PEER
  every pod of PEER can reach PEER [on PORTS]  PEER can reach PEER [on PORTS]
PEER:  namespace NAME | NAMESPACE/NAME (pod, or label app or app.kubernetes.io/name) | pod NAMESPACE/NAME |
       pods \"SELECTOR\" [of namespace NAME] | service account NAMESPACE/NAME | CIDR | outside | node NAME | nodes; more with `or`
PORTS: port N | ports N-M | TCP/N | TCP/N-M | TCP | ICMP | ICMP/TYPE | IP/PROTOCOL; more with `and`";

/// One statement of the file.
#[derive(Debug)]
pub struct Statement {
    /// How it is told: its name, its sentence, or its record.
    pub text: String,
    /// What it says, or why that cannot be understood.
    pub assertion: Result<Assertion, String>,
}

/// Reads the statements of a file; `-` is standard input.
///
/// Errors: the file cannot be read. What is wrong with a statement is in the statement.
pub fn read(path: &Path) -> io::Result<Vec<Statement>> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("assertions {}: cannot be read: {error}", path.display()))
    };
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin().lock()).map_err(named)?
    } else {
        std::fs::read_to_string(path).map_err(named)?
    };
    Ok(parse(&text, &path.display().to_string()))
}

fn parse(text: &str, file: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    for document in split_documents(text, file) {
        match document {
            Ok((Value::Array(items), _)) => statements.extend(items.iter().map(statement)),
            Ok((value, _)) => statements.push(statement(&value)),
            Err(BrokenDocument { origin, errors, .. }) => {
                let reasons: Vec<&str> = errors.iter().map(|FieldError { reason, .. }| &**reason).collect();
                statements.push(Statement { text: origin.to_string(), assertion: Err(reasons.join("; ")) });
            }
        }
    }
    statements
}

/// An item of the list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Item {
    name: Option<String>,
    deny: Option<Value>,
    allow: Option<Value>,
    only: Option<Value>,
    isolated: Option<Value>,
    #[serde(default)]
    allow_empty: bool,
}

/// What a claim is about. Each field is one value, or a list of which any counts.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ends {
    from: Option<Value>,
    to: Value,
    ports: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WrittenPeer {
    namespace: Option<String>,
    namespace_selector: Option<String>,
    selector: Option<String>,
    pod: Option<String>,
    service_account: Option<String>,
    cidr: Option<String>,
    outside: bool,
    node: Option<String>,
    nodes: bool,
}

fn statement(value: &Value) -> Statement {
    if let Value::String(text) = value {
        return Statement { text: text.trim().to_owned(), assertion: sentence::parse(text) };
    }
    match serde_json::from_value::<Item>(value.clone()) {
        Ok(item) => Statement {
            text: item.name.clone().unwrap_or_else(|| value.to_string()),
            assertion: item.assertion(),
        },
        Err(error) => Statement {
            text: value.to_string(),
            assertion: Err(format!(
                "neither a record with one of deny, allow, only, isolated nor a sentence: {error}"
            )),
        },
    }
}

impl Item {
    fn assertion(self) -> Result<Assertion, String> {
        let claims = [
            ("deny", Claim::Deny, self.deny),
            ("allow", Claim::Allow, self.allow),
            ("only", Claim::Only, self.only),
        ];
        let mut said: Vec<(&str, Claim, Value)> = claims
            .into_iter()
            .filter_map(|(name, claim, value)| value.map(|value| (name, claim, value)))
            .collect();
        if let Some(peer) = self.isolated {
            // Who is isolated is reached by itself only.
            let ends = serde_json::json!({"from": peer, "to": peer});
            said.push(("isolated", Claim::Only, ends));
        }
        let (name, claim, value) = match said.len() {
            1 => said.remove(0),
            0 => return Err("nothing is claimed: write deny, allow, only or isolated".to_owned()),
            _ => return Err("two things are claimed: write an item for each".to_owned()),
        };
        let within = |reason: String| format!("{name}: {reason}");
        let Ends { from, to, ports } = serde_json::from_value(value).map_err(|e| within(e.to_string()))?;
        let from = match from {
            Some(from) => each(from, peer).map_err(|reason| within(format!("from: {reason}")))?,
            None if claim == Claim::Only => Vec::new(),
            None => return Err(within("from: missing; who sends?".to_owned())),
        };
        Ok(Assertion {
            claim,
            from,
            to: each(to, peer).map_err(|reason| within(format!("to: {reason}")))?,
            services: each(ports.unwrap_or(Value::Array(Vec::new())), service)
                .map_err(|reason| within(format!("ports: {reason}")))?,
            may_be_empty: self.allow_empty,
        })
    }
}

fn each<T>(value: Value, read: fn(Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    match value {
        Value::Array(values) => values.into_iter().map(read).collect(),
        value => Ok(vec![read(value)?]),
    }
}

fn peer(value: Value) -> Result<Peer, String> {
    let written: WrittenPeer = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let WrittenPeer {
        namespace,
        namespace_selector,
        selector,
        pod,
        service_account,
        cidr,
        outside,
        node,
        nodes,
    } = written;
    let text = |field: &str, text: Option<String>| -> Result<Option<Selector>, String> {
        text.map(|text| Selector::parse(&text).map_err(|error| format!("{field}: {error}"))).transpose()
    };
    let mut pods = Pods {
        namespace,
        namespace_selector: text("namespaceSelector", namespace_selector)?,
        selector: text("selector", selector)?,
        ..Pods::default()
    };
    for (field, written) in [(&mut pods.name, pod), (&mut pods.service_account, service_account)] {
        let Some(written) = written else { continue };
        match written.split_once('/') {
            None => *field = Some(written),
            Some((namespace, _)) if pods.namespace.as_deref().is_some_and(|other| other != namespace) => {
                return Err(format!("{written} is not in the namespace that is named beside it"));
            }
            Some((namespace, name)) => {
                pods.namespace = Some(namespace.to_owned());
                *field = Some(name.to_owned());
            }
        }
    }
    let mut peers = Vec::new();
    if pods != Pods::default() {
        peers.push(Peer::Pods(pods));
    }
    if let Some(cidr) = cidr {
        peers.push(Peer::Net(net(&cidr)?));
    }
    peers.extend(outside.then_some(Peer::Outside));
    peers.extend(node.map(|name| Peer::Nodes(Some(name))));
    peers.extend(nodes.then_some(Peer::Nodes(None)));
    match peers.len() {
        1 => Ok(peers.remove(0)),
        0 => Err("nobody is named; all pods are `selector: all()`".to_owned()),
        _ => Err("pods, cidr, outside, node and nodes are peers of their own: write a list".to_owned()),
    }
}

/// Reads a CIDR or an address.
pub(super) fn net(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    let net = parsed.map_err(|_| format!("{text:?} is no CIDR and no address"))?;
    if net.trunc() != net {
        return Err(format!("{text} has bits beyond its length; did you mean {}?", net.trunc()));
    }
    Ok(net)
}

fn service(value: Value) -> Result<Service, String> {
    match value {
        Value::Number(number) => {
            let port = number.as_u64().and_then(|port| u16::try_from(port).ok());
            let port = port.ok_or_else(|| format!("{number} is no port from 0 to 65535"))?;
            Ok(Service { protocol: None, ports: Some((port, port)), icmp: None })
        }
        Value::String(text) => service_text(&text),
        other => Err(format!("{other} is no port; write such as TCP/5432")),
    }
}

const PROTOCOLS: [(&str, u8); 6] =
    [("TCP", 6), ("UDP", 17), ("SCTP", 132), ("UDPLite", 136), ("ICMP", 1), ("ICMPv6", 58)];

/// Returns the protocol's name, or its number.
pub(super) fn protocol_name(protocol: u8) -> String {
    let known = PROTOCOLS.iter().find(|(_, number)| *number == protocol);
    known.map_or_else(|| format!("IP/{protocol}"), |(name, _)| (*name).to_owned())
}

/// Reads `PROTOCOL`, `PROTOCOL/PORT`, `PROTOCOL/FIRST-LAST`, `ICMP/TYPE`, `IP/NUMBER`, or ports without a protocol.
pub(super) fn service_text(text: &str) -> Result<Service, String> {
    let (name, rest) = text.split_once('/').map_or((text, None), |(name, rest)| (name, Some(rest)));
    if name.starts_with(|first: char| first.is_ascii_digit()) && rest.is_none() {
        return Ok(Service { protocol: None, ports: Some(ports(name)?), icmp: None });
    }
    let number = |text: &str| text.parse::<u8>().map_err(|_| format!("{text:?} is no number from 0 to 255"));
    if name.eq_ignore_ascii_case("IP") {
        let protocol = number(rest.unwrap_or_default())?;
        return Ok(Service { protocol: Some(protocol), ports: None, icmp: None });
    }
    let found = PROTOCOLS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let Some((_, protocol)) = found else {
        let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        return Err(format!("{name:?} is no protocol; there are {} and IP/NUMBER", names.join(", ")));
    };
    let mut service = Service { protocol: Some(*protocol), ports: None, icmp: None };
    match rest {
        None => {}
        Some(rest) if matches!(protocol, 1 | 58) => service.icmp = Some(number(rest)?),
        Some(rest) => service.ports = Some(ports(rest)?),
    }
    Ok(service)
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("{text:?} is no port from 0 to 65535; names are not known here"))
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("{first}-{last} ends before it begins"));
    }
    Ok((first, last))
}
