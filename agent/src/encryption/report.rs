//! What `margay wireguard` shows, as values: like `wg show`, with names of nodes.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Family;

/// Encryption of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WireguardReport {
    /// `off`, `Permissive` or `Strict`.
    pub mode: String,
    /// Packets between nodes themselves are encrypted too.
    pub host: bool,
    /// Whether peers are in the metrics.
    #[serde(skip)]
    pub metrics: bool,
    /// Largest packet that fits inside both tunnels that are on; 0 when none is.
    pub pod_mtu: u32,
    /// One for each family that is on.
    pub tunnels: Vec<TunnelReport>,
    /// What its owner should know, in sentences.
    pub findings: Vec<String>,
}

/// The tunnel of one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// Which.
    pub family: Family,
    /// Public key in use.
    pub public_key: String,
    /// UDP port.
    pub listening_port: u16,
    /// Our address on the underlay.
    pub address: IpAddr,
    /// The address that this node's own packets for remote pods have.
    pub interface_address: Option<IpAddr>,
    /// All our keys.
    pub keys: Vec<KeyReport>,
    /// The other ends.
    pub peers: Vec<PeerReport>,
}

/// One key pair of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyReport {
    /// Public half.
    pub public_key: String,
    /// `current`, `next` or `previous`.
    pub state: String,
    /// When it was made, in seconds since 1970.
    pub made: u64,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its node.
    pub node: String,
    /// Its keys, the one in use first.
    pub public_keys: Vec<String>,
    /// Where it is.
    pub endpoint: SocketAddr,
    /// Addresses that it may speak for.
    pub allowed: Vec<IpNet>,
    /// Seconds since the last handshake; absent before the first and after the session's end.
    pub handshake_seconds: Option<u64>,
    /// Bytes of packets from it.
    pub received_bytes: u64,
    /// Bytes of packets sealed for it.
    pub sent_bytes: u64,
    /// Seconds between packets that say nothing.
    pub keepalive: Option<u16>,
    /// Since when its key in use is known, in seconds since 1970.
    pub key_since: Option<u64>,
}

impl TunnelReport {
    /// Returns how many peers have a session.
    pub fn sessions(&self) -> usize {
        self.peers.iter().filter(|peer| peer.handshake_seconds.is_some()).count()
    }
}

/// Writes a number of bytes as `wg` does.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.2} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

/// Writes a time span in its two largest units.
fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(3);
    let mut rest = seconds;
    let mut words = Vec::new();
    for (unit, name) in units.iter().skip(first).take(2) {
        if rest / unit > 0 || words.is_empty() {
            words.push(format!("{}{name}", rest / unit));
        }
        rest %= unit;
    }
    words.join(" ")
}

impl WireguardReport {
    /// Takes over what workers know of the peers.
    pub fn tell(&mut self, workers: &margay_core::tunnel::TunnelReport) {
        for tunnel in &mut self.tunnels {
            for peer in &mut tunnel.peers {
                let is_it = |told: &&margay_core::tunnel::PeerReport| {
                    told.node == peer.node && told.v6 == (tunnel.family == Family::V6)
                };
                let Some(told) = workers.peers.iter().find(is_it) else { continue };
                peer.endpoint = told.endpoint;
                peer.handshake_seconds = told.handshake.map(|ago| ago.as_secs());
                peer.received_bytes = told.received.bytes;
                peer.sent_bytes = told.sent.bytes;
            }
        }
    }

    /// Returns it for people; `now` in seconds since 1970.
    pub fn text(&self, now: u64) -> String {
        let mut text = format!("encryption: {}", self.mode);
        if self.host {
            text.push_str(", nodes' own packets too");
        }
        text.push('\n');
        for tunnel in &self.tunnels {
            text.push_str(&format!("\ntunnel: {}\n", tunnel.family));
            let mut line = |name: &str, value: &str| text.push_str(&format!("  {name}: {value}\n"));
            line("public key", &tunnel.public_key);
            line("private key", "(hidden)");
            line("listening", &SocketAddr::new(tunnel.address, tunnel.listening_port).to_string());
            if let Some(address) = tunnel.interface_address {
                line("address", &address.to_string());
            }
            line("pods' MTU", &self.pod_mtu.to_string());
            for key in &tunnel.keys {
                line(
                    &format!("{} key", key.state),
                    &format!("{}, {} old", key.public_key, span(now.saturating_sub(key.made))),
                );
            }
            for peer in &tunnel.peers {
                text.push_str(&format!("\n  peer: {}\n", peer.node));
                let mut line = |name: &str, value: &str| text.push_str(&format!("    {name}: {value}\n"));
                line("public key", &peer.public_keys.join(", "));
                if let Some(since) = peer.key_since {
                    line("key known for", &span(now.saturating_sub(since)));
                }
                line("endpoint", &peer.endpoint.to_string());
                let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
                line(
                    "allowed ips",
                    &if allowed.is_empty() { "(none)".to_owned() } else { allowed.join(", ") },
                );
                match peer.handshake_seconds {
                    Some(seconds) => line("latest handshake", &format!("{} ago", span(seconds))),
                    None => line("latest handshake", "none"),
                }
                line(
                    "transfer",
                    &format!("{} received, {} sent", bytes(peer.received_bytes), bytes(peer.sent_bytes)),
                );
                if let Some(every) = peer.keepalive {
                    line("persistent keepalive", &format!("every {}", span(every.into())));
                }
            }
        }
        for finding in &self.findings {
            text.push_str(&format!("\nwarning: {finding}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_it_as_they_read_wg_show() {
        let peer = PeerReport {
            node: "b".into(),
            public_keys: vec!["K=".into()],
            endpoint: "10.0.0.2:51820".parse().unwrap(),
            allowed: vec!["10.244.1.0/24".parse().unwrap()],
            handshake_seconds: Some(75),
            received_bytes: 1_536,
            sent_bytes: 12,
            keepalive: Some(25),
            key_since: Some(1_000),
        };
        let tunnel = TunnelReport {
            family: Family::V4,
            public_key: "A=".into(),
            listening_port: 51_820,
            address: "10.0.0.1".parse().unwrap(),
            interface_address: None,
            keys: vec![KeyReport { public_key: "A=".into(), state: "current".into(), made: 0 }],
            peers: vec![peer],
        };
        let report = WireguardReport {
            mode: "Permissive".into(),
            pod_mtu: 1_440,
            tunnels: vec![tunnel],
            findings: vec!["c has no key".into()],
            ..Default::default()
        };
        let text = report.text(90_061);
        for line in [
            "encryption: Permissive\n",
            "  listening: 10.0.0.1:51820\n",
            "  current key: A=, 1d 1h old\n",
            "    latest handshake: 1m 15s ago\n",
            "    transfer: 1.50 KiB received, 12 B sent\n",
            "    key known for: 1d\n",
            "    allowed ips: 10.244.1.0/24\n",
            "warning: c has no key\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
    }
}
