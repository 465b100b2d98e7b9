//! Names, labels, protocols, ports, addresses: the small values of policy model 2.10, 4.2 and 4.6.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::field::Problems;
use crate::model::{Labels, PortMatch};

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;

/// Names and numbers of protocols, in the exact case of `projectcalico.org/v3`.
const PROTOCOLS: [(&str, u8); 6] =
    [("TCP", TCP), ("UDP", UDP), ("ICMP", ICMP), ("ICMPv6", ICMPV6), ("SCTP", SCTP), ("UDPLite", 136)];

/// Returns whether `name` is a DNS label, its length aside.
pub(super) fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|&byte| inner(byte))
        && bytes.last().is_some_and(|&byte| inner(byte))
        && bytes.iter().all(|&byte| inner(byte) || byte == b'-')
}

/// Returns whether `name` is a DNS subdomain of at most 253 characters.
pub(super) fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

/// Returns whether `text` is the value of a label.
pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

fn is_label_name(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Returns whether `key` is a qualified name: `[prefix/]name`.
pub(super) fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_name(name),
        None => is_label_name(key),
    }
}

/// Refuses labels that Kubernetes would refuse (policy model 4.6).
pub(super) fn check_labels(path: &str, labels: &Labels, problems: &mut Problems) {
    for (key, value) in labels {
        if !is_label_key(key) {
            let reason = "not a label key: [prefix/]name, the name 1 to 63 of [A-Za-z0-9_.-] between letters or digits, \
                          the prefix a lower-case domain";
            problems.refuse_text(format!("{path}.{key}"), key, reason);
        }
        if !is_label_value(value) {
            let reason = "not a label value: at most 63 of [A-Za-z0-9_.-], beginning and ending with a letter or digit";
            problems.refuse_text(format!("{path}.{key}"), value, reason);
        }
    }
}

/// Refuses annotations whose keys are not qualified names or that are too large together (policy model 4.6).
pub(super) fn check_annotations(path: &str, annotations: &Labels, problems: &mut Problems) {
    const MOST: usize = 256 << 10;
    for key in annotations.keys() {
        if !is_label_key(&key.to_ascii_lowercase()) {
            let reason = "not an annotation key: [prefix/]name with a name of 1 to 63 of [A-Za-z0-9_.-]";
            problems.refuse_text(format!("{path}.{key}"), key, reason);
        }
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MOST {
        problems.refuse_text(
            path,
            &size.to_string(),
            format!("annotations have more than {MOST} bytes together"),
        );
    }
}

/// Reads a protocol: an exact name, a number from 1 to 255, or that number as text.
pub(super) fn protocol(path: &str, value: &Value, problems: &mut Problems) -> Option<u8> {
    let number = match value {
        Value::String(text) => PROTOCOLS
            .iter()
            .find(|(name, _)| name == text)
            .map(|&(_, number)| number)
            .or_else(|| decimal(text).and_then(|number| u8::try_from(number).ok())),
        Value::Number(number) => number.as_u64().and_then(|number| u8::try_from(number).ok()),
        _ => None,
    };
    let number = number.filter(|&number| number > 0);
    if number.is_none() {
        let similar = value
            .as_str()
            .and_then(|text| PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)))
            .map(|(name, _)| format!("; did you mean {name}?"));
        let reason = format!(
            "not a protocol: TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255{}",
            similar.unwrap_or_default()
        );
        problems.refuse(path, value, reason);
    }
    number
}

/// Returns the number of a protocol name in the way Kubernetes writes them, for ports of containers, slices and policies.
pub(super) fn kubernetes_protocol(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

/// Reads a number written in digits only; a leading zero has two meanings in YAML and is refused.
fn decimal(text: &str) -> Option<u32> {
    let good = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    if good { text.parse().ok() } else { None }
}

fn port_number(text: &str) -> Option<u16> {
    decimal(text).and_then(|number| u16::try_from(number).ok()).filter(|&number| number > 0)
}

/// Returns whether `name` can name a port: 1 to 128 of `[A-Za-z0-9_.-]`, not digits alone.
pub(super) fn is_port_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && !name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads a port of a rule: number, `"a:b"` or name.
pub(super) fn port(path: &str, value: &Value, problems: &mut Problems) -> Option<PortMatch> {
    let single = |port| PortMatch::Range { first: port, last: port };
    let found = match value {
        Value::Number(number) => number
            .as_u64()
            .and_then(|number| u16::try_from(number).ok())
            .filter(|&number| number > 0)
            .map(single),
        Value::String(text) => match text.split_once(':') {
            Some((first, last)) => match (port_number(first), port_number(last)) {
                (Some(first), Some(last)) if first <= last => Some(PortMatch::Range { first, last }),
                _ => None,
            },
            None if is_port_name(text) => Some(PortMatch::Named(text.clone())),
            None => port_number(text).map(single),
        },
        _ => None,
    };
    if found.is_none() {
        let reason =
            "not a port: a number from 1 to 65535, a range \"first:last\" within that, or a port name";
        problems.refuse(path, value, reason);
    }
    found
}

/// Reads a CIDR; host bits may be set. IPv4 written as IPv6 (`::ffff:…`) has two meanings and is refused.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => format!("not a CIDR; did you mean {}?", IpNet::from(address)),
        Err(_) => "not a CIDR such as 10.0.0.0/8 or fd00::/8".to_owned(),
    })?;
    match net.addr() {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Err("IPv4 inside IPv6; write the IPv4 form".to_owned())
        }
        _ => Ok(net),
    }
}

/// Reads a CIDR, or a bare address as a network of one, and masks it.
pub(super) fn cidr_or_address(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpAddr>() {
        Ok(_) => cidr(&format!("{text}/{}", if text.contains(':') { 128 } else { 32 })),
        Err(_) => cidr(text).map(|net| net.trunc()),
    }
}

/// Reads an address.
pub(super) fn address(path: &str, text: &str, problems: &mut Problems) -> Option<IpAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        problems.refuse_text(path, text, "not an IP address such as 10.0.0.1 or fd00::1");
    }
    address
}
