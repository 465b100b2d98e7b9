//! Failsafe ports (policy model 11.9), as a list of mappings or as text.

use ipnet::IpNet;
use serde_json::Value;

use super::field::{Fields, Problems};
use super::scalar::{self, SCTP, TCP, UDP};
use crate::model::Failsafe;

const FORMS: &str = "write port, proto:port or proto:cidr:port (an IPv6 cidr in square brackets), several between commas, or none";

/// Reads `name` of a FelixConfiguration: `None` when nothing is written, an empty list when they are turned off.
pub(super) fn read(
    fields: &mut Fields<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Vec<Failsafe>> {
    match fields.raw(name)? {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) if text.eq_ignore_ascii_case("none") => Some(Vec::new()),
        Value::String(text) => Some(
            text.split(',').filter_map(|item| from_text(&fields.at(name), item.trim(), problems)).collect(),
        ),
        _ => {
            let listed = fields.list(name, problems);
            Some(listed.into_iter().filter_map(|(path, item)| from_item(path, item, problems)).collect())
        }
    }
}

fn from_item(path: String, item: &Value, problems: &mut Problems) -> Option<Failsafe> {
    if let Value::String(text) = item {
        return from_text(&path, text, problems);
    }
    let mut fields = Fields::open(path, Some(item), problems);
    let text = fields.text("protocol", problems).filter(|text| !text.is_empty()).unwrap_or("tcp");
    let protocol = protocol(text);
    if protocol.is_none() {
        problems.refuse_text(fields.at("protocol"), text, "must be tcp, udp or sctp");
    }
    let port = fields.integer("port", 1, 65_535, problems).and_then(|port| u16::try_from(port).ok());
    if fields.raw("port").is_none() {
        problems.refuse_text(fields.at("port"), "", "missing; write a number from 1 to 65535");
    }
    let net = fields.text("net", problems).filter(|text| !text.is_empty());
    let net = net.and_then(|text| network(&fields.at("net"), text, problems));
    fields.finish(problems);
    Some(Failsafe { protocol: protocol?, port: port?, net })
}

fn from_text(path: &str, text: &str, problems: &mut Problems) -> Option<Failsafe> {
    let (before, port) = text.rsplit_once(':').unwrap_or(("tcp", text));
    let (name, net) = match before.split_once(':') {
        Some((name, net)) => (name, Some(net)),
        None => (before, None),
    };
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|&port| port > 0 && is_number);
    let (Some(protocol), Some(port)) = (protocol(name), port) else {
        problems.refuse_text(path, text, format!("not a failsafe port; {FORMS}"));
        return None;
    };
    let net = match net.map(|net| net.strip_prefix('[').and_then(|net| net.strip_suffix(']')).unwrap_or(net))
    {
        Some(net) => Some(network(path, net, problems)?),
        None => None,
    };
    Some(Failsafe { protocol, port, net })
}

fn protocol(text: &str) -> Option<u8> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Some(TCP),
        "udp" => Some(UDP),
        "sctp" => Some(SCTP),
        _ => None,
    }
}

fn network(path: &str, text: &str, problems: &mut Problems) -> Option<IpNet> {
    match scalar::cidr_or_address(text) {
        Ok(net) => Some(net),
        Err(reason) => {
            problems.refuse_text(path, text, reason);
            None
        }
    }
}
