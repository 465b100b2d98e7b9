//! Names into numbers for the packet path, and numbers into names for people.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use margay_core::worker::{Captured, Fate, TapEnd, TapFilter, ToldLeg};
use margay_core::{DropReason, PortIndex};
use margay_policy_engine::packet::{EndpointId, Verdict};
use margay_wire::{Packet, parse};

use super::report::{CaptureFilter, CaptureReport, EndFilter, LegReport, PathReport, SentReport};

/// What a node knows by name.
pub struct Names<'a> {
    /// Pods by address, as `namespace/pod`.
    pub pods: &'a BTreeMap<IpAddr, String>,
    /// Pods of this node by endpoint: name and port.
    pub endpoints: &'a BTreeMap<EndpointId, (String, Option<PortIndex>)>,
    /// Devices.
    pub ports: &'a BTreeMap<PortIndex, String>,
}

impl Names<'_> {
    fn port(&self, port: PortIndex) -> String {
        self.ports.get(&port).cloned().unwrap_or_else(|| port.to_string())
    }

    /// Returns the port and the addresses of a pod.
    fn pod(&self, name: &str) -> Result<(Option<PortIndex>, Vec<IpAddr>), String> {
        let port = self.endpoints.values().find(|(pod, _)| pod == name).and_then(|(_, port)| *port);
        let addresses: Vec<IpAddr> =
            self.pods.iter().filter(|(_, pod)| *pod == name).map(|(address, _)| *address).collect();
        if port.is_none() && addresses.is_empty() {
            return Err(format!(
                "{name:?}: no pod of this name is known here; write namespace/pod (`margay status` lists the pods of this node)"
            ));
        }
        Ok((port, addresses))
    }

    fn end(&self, end: &EndFilter) -> Result<TapEnd, String> {
        let addresses = match &end.peer {
            None => Vec::new(),
            Some(peer) => {
                let text = peer.strip_prefix("ip:").unwrap_or(peer);
                match text.parse() {
                    Ok(address) => vec![address],
                    Err(_) if peer.contains('/') => self.pod(peer)?.1,
                    Err(_) => {
                        return Err(format!(
                            "{peer:?} is no end of a conversation; write namespace/pod or ip:ADDRESS"
                        ));
                    }
                }
            }
        };
        if addresses.is_empty() && end.peer.is_some() {
            return Err(format!("{:?} has no address yet", end.peer.as_deref().unwrap_or_default()));
        }
        Ok(TapEnd { addresses, port: end.port })
    }
}

fn reason(name: &str) -> Result<DropReason, String> {
    let known = DropReason::ALL.iter().find(|reason| reason.as_str() == name);
    known.copied().ok_or_else(|| {
        let all: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
        format!("{name:?} is no reason for a drop; there are: {}", all.join(", "))
    })
}

/// Returns the filter of the packet path; an error is a sentence for the asker.
pub fn filter(filter: &CaptureFilter, names: &Names<'_>) -> Result<TapFilter, String> {
    let [one, other] = &filter.ends;
    Ok(TapFilter {
        pod: filter.pod.as_deref().map(|pod| names.pod(pod)).transpose()?,
        ends: [names.end(one)?, names.end(other)?],
        protocol: filter.protocol,
        reasons: filter.reasons.iter().map(|name| reason(name)).collect::<Result<_, _>>()?,
        snap_len: filter.snap_len.map_or(usize::MAX, |bytes| bytes as usize),
        sent: filter.sent,
    })
}

/// Returns what is told of a packet. `epoch_ns` is added to its time, so that it counts from 1970.
pub fn report(captured: &Captured, names: &Names<'_>, epoch_ns: u64) -> CaptureReport {
    let parsed = parse(&captured.bytes);
    let ip = match &parsed {
        Ok(parsed) => match &parsed.packet {
            Packet::Ip(ip) => Some(ip),
            Packet::Arp(_) => None,
        },
        Err(_) => None,
    };
    let (source_port, destination_port) = ip.and_then(|ip| ip.ports()).unwrap_or((0, 0));
    let pod = |address: Option<IpAddr>| address.and_then(|address| names.pods.get(&address)).cloned();
    let (source, destination) = (ip.map(|ip| ip.source), ip.map(|ip| ip.destination));
    let leg = |leg: &ToldLeg| LegReport {
        pod: names.endpoints.get(&leg.endpoint).map_or_else(String::new, |(name, _)| name.clone()),
        verdict: if leg.verdict == Verdict::Allow { "allow" } else { "deny" }.to_owned(),
        by: leg.by.as_ref().map(Into::into),
    };
    let dropped = match captured.fate {
        Fate::Dropped(reason) => Some(reason),
        _ => None,
    };
    let path = captured.path.map(|path| PathReport {
        port: names.port(path.port),
        next_hop: path.destination_mac.to_string(),
        mtu: path.mtu,
        decrements_ttl: path.decrement_ttl,
    });
    let out = match captured.fate {
        Fate::Forwarded(port) => Some(names.port(port)),
        Fate::Answered => Some(names.port(captured.port)),
        _ => None,
    };
    CaptureReport {
        time_ns: captured.time.0.saturating_add(epoch_ns),
        worker: u32::from(captured.worker.0),
        port: names.port(captured.port),
        length: captured.length,
        bytes: STANDARD.encode(&captured.bytes),
        source,
        destination,
        source_pod: pod(source),
        destination_pod: pod(destination),
        protocol: ip.map_or(0, |ip| ip.protocol),
        source_port,
        destination_port,
        fate: match captured.fate {
            Fate::Forwarded(_) => "forwarded",
            Fate::Fragmented => "fragmented",
            Fate::Answered => "answered",
            Fate::AwaitsFirstFragment => "awaits_first_fragment",
            Fate::AwaitsNeighbour(_) => "awaits_neighbour",
            Fate::Dropped(_) => "dropped",
        }
        .to_owned(),
        reason: dropped.map(|reason| reason.as_str().to_owned()),
        description: dropped.map(|reason| reason.describe().to_owned()),
        decided_by: captured.decided_by.as_ref().map(Into::into),
        known: captured.known.map(str::to_owned),
        state: captured.state.map(str::to_owned),
        egress: captured.egress.as_ref().map(leg),
        ingress: captured.ingress.as_ref().map(leg),
        sent: captured.sent.as_ref().map(|(bytes, length)| SentReport {
            port: out.clone().unwrap_or_default(),
            length: *length,
            bytes: STANDARD.encode(bytes),
        }),
        path,
        out,
        generation: captured.generation,
        lost_before: captured.lost_before,
    }
}
