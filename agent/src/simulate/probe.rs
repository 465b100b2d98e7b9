//! One question: may this packet pass from here to there?
//!
//! The same type is a line of a probes file, the question of `margay explain`, and what travels over the admin socket.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A packet in the words of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Who sends: `namespace/pod`, `ip:ADDRESS` or `host:NODE`.
    pub from: String,
    /// Who receives: the same forms.
    pub to: String,
    /// IP protocol.
    pub protocol: ProbeProtocol,
    /// Destination port; needed for TCP, UDP, SCTP and UDPLite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Source port; an ephemeral one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// ICMP type and code; an echo request when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpProbe>,
    /// 4 or 6, where both ends have addresses of both families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<u8>,
    /// The interface of a node by which the packet comes from or goes to other machines; assumed when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Where the packet was sent before translation, such as the address and port of a Service; `to` and `port` are its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<ViaProbe>,
}

/// Destination of a probe before translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViaProbe {
    /// Address of a Service or node.
    pub address: IpAddr,
    /// Port of the Service, or node port; needed for TCP, UDP, SCTP and UDPLite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// ICMP type and code of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IcmpProbe {
    /// Type, 0 to 255.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Code, 0 to 255.
    #[serde(default)]
    pub code: u8,
}

/// An IP protocol number that reads and prints as a name where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeProtocol(pub u8);

const NAMES: [(&str, u8); 6] =
    [("TCP", 6), ("UDP", 17), ("SCTP", 132), ("ICMP", 1), ("ICMPv6", 58), ("UDPLite", 136)];

impl ProbeProtocol {
    /// Returns whether packets of the protocol carry ports that policy can match.
    pub fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 132 | 136)
    }

    /// Returns the only family in which the protocol exists, for ICMP and ICMPv6.
    pub fn family(self) -> Option<u8> {
        match self.0 {
            1 => Some(4),
            58 => Some(6),
            _ => None,
        }
    }
}

impl fmt::Display for ProbeProtocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => out.write_str(name),
            None => write!(out, "{}", self.0),
        }
    }
}

impl FromStr for ProbeProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, number)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Ok(Self(*number));
        }
        text.parse().map(Self).map_err(|_| {
            format!("protocol {text:?} is unknown; use TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or a number from 0 to 255")
        })
    }
}

impl Serialize for ProbeProtocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ProbeProtocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = ProbeProtocol;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a protocol name or a number from 0 to 255")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ProbeProtocol, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<ProbeProtocol, E> {
                u8::try_from(number)
                    .map(ProbeProtocol)
                    .map_err(|_| E::custom(format!("protocol {number} is out of range; use 0 to 255")))
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_reads_as_name_in_any_case_and_as_number() {
        for (text, number) in [("\"tcp\"", 6), ("\"ICMPv6\"", 58), ("\"47\"", 47), ("132", 132)] {
            assert_eq!(serde_json::from_str::<ProbeProtocol>(text).unwrap(), ProbeProtocol(number));
        }
        let error = serde_json::from_str::<ProbeProtocol>("\"TPC\"").unwrap_err().to_string();
        assert!(error.contains("TPC") && error.contains("use TCP"), "{error}");
        assert!(
            serde_json::from_str::<ProbeProtocol>("256").unwrap_err().to_string().contains("out of range")
        );
    }

    #[test]
    fn unknown_field_of_a_probe_is_refused_by_name() {
        let text = r#"{"from":"a/b","to":"c/d","protocol":"TCP","prot":80}"#;
        assert!(serde_json::from_str::<Probe>(text).unwrap_err().to_string().contains("prot"));
    }
}
