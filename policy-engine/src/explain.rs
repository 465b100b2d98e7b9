//! Why one packet passes or does not: both ends, both legs, every rule that was read on the way.
//!
//! The verdict is the tables'; the reasons are the oracle's. When the two disagree the explanation says so, loudly, because then one of
//! them is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::engine::LocalEndpoint;
use crate::model::{Labels, Model};
use crate::oracle::{self, Finding, OracleDecision, Step};
use crate::packet::{Direction, EndpointId, PacketTuple, Verdict};
use crate::snapshot::{Attribution, Snapshot};

/// The whole story of one packet.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The packet in words.
    pub packet: String,
    /// Allow when every leg that this node knows allows; absent when it knows neither.
    pub verdict: Option<Verdict>,
    /// Who sends.
    pub source: End,
    /// Who receives.
    pub destination: End,
    /// The source's egress, when the source is a local endpoint.
    pub egress: Option<Leg>,
    /// The destination's ingress, when the destination is a local endpoint.
    pub ingress: Option<Leg>,
}

/// One end of the packet.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Objects that the address belongs to: the pod, host endpoints, network sets.
    pub belongs_to: Vec<String>,
    /// `namespace/name` of the local endpoint with that address.
    pub local_pod: Option<String>,
    /// What selectors see of that pod (policy model 1.4).
    pub labels: Labels,
}

/// The decision for one end.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Leg {
    /// `namespace/name` of the endpoint.
    pub pod: String,
    /// What the tables say, or nothing when policy does not know the endpoint (yet): its packets are dropped.
    pub decision: Option<Decision>,
    /// What the Model says, read literally, and every step of that reading.
    pub reasons: Option<OracleDecision>,
    /// Whether the two agree.
    pub agree: bool,
}

/// A verdict and who gave it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Who decided.
    pub by: Attribution,
}

impl Explanation {
    /// Explains `packet`. `snapshot` must be compiled from `model` and `locals`, else the reasons may be those of another time.
    pub fn new(
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        snapshot: &Snapshot,
        packet: &PacketTuple,
    ) -> Self {
        let local = |address: IpAddr| locals.values().rev().find(|local| local.addresses.contains(&address));
        let end = |address: IpAddr| {
            let local = local(address);
            let pod = local.and_then(|local| model.pods.get(&local.pod));
            End {
                address,
                belongs_to: oracle::objects_at(model, locals, address),
                local_pod: local.map(pod_name),
                labels: pod.map(|pod| oracle::effective_labels(model, pod)).unwrap_or_default(),
            }
        };
        let leg = |address: IpAddr, direction: Direction| {
            local(address).map(|local| {
                let decision = snapshot.judge(local.id, direction, packet).and_then(|judgement| {
                    let by = snapshot.attribution(judgement.rule)?.clone();
                    Some(Decision { verdict: judgement.verdict, by })
                });
                let reasons = oracle::evaluate(model, locals, direction, &local.pod, packet);
                let found = reasons
                    .as_ref()
                    .map(|reasons| Decision { verdict: reasons.verdict, by: reasons.attribution.clone() });
                let agree = decision == found;
                Leg { pod: pod_name(local), decision, reasons, agree }
            })
        };
        let egress = leg(packet.source, Direction::Egress);
        let ingress = leg(packet.destination, Direction::Ingress);
        let verdicts: Vec<Option<Verdict>> = [&egress, &ingress]
            .into_iter()
            .flatten()
            .map(|leg| leg.decision.as_ref().map(|decision| decision.verdict))
            .collect();
        let allowed = verdicts.iter().all(|verdict| *verdict == Some(Verdict::Allow));
        let verdict = (!verdicts.is_empty()).then_some(if allowed { Verdict::Allow } else { Verdict::Deny });
        Self {
            packet: in_words(packet),
            verdict,
            source: end(packet.source),
            destination: end(packet.destination),
            egress,
            ingress,
        }
    }

    /// Returns whether tables and oracle agree on every leg.
    pub fn agrees(&self) -> bool {
        [&self.egress, &self.ingress].into_iter().flatten().all(|leg| leg.agree)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Some(verdict) => writeln!(f, "{}: {}", self.packet, word(verdict))?,
            None => {
                writeln!(f, "{}: neither end is a local endpoint, so policy here has no say", self.packet)?
            }
        }
        writeln!(f)?;
        write_end(f, "source", &self.source)?;
        write_end(f, "destination", &self.destination)?;
        for (name, leg) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            if let Some(leg) = leg {
                writeln!(f)?;
                write_leg(f, name, leg)?;
            }
        }
        Ok(())
    }
}

fn write_end(f: &mut fmt::Formatter<'_>, name: &str, end: &End) -> fmt::Result {
    let belongs =
        if end.belongs_to.is_empty() { "nothing known".to_owned() } else { end.belongs_to.join(", ") };
    let local = if end.local_pod.is_some() { " (local)" } else { "" };
    writeln!(f, "{name} {} is {belongs}{local}", end.address)?;
    for (key, value) in &end.labels {
        writeln!(f, "    {key}: {value}")?;
    }
    Ok(())
}

fn write_leg(f: &mut fmt::Formatter<'_>, name: &str, leg: &Leg) -> fmt::Result {
    match &leg.decision {
        Some(decision) => {
            writeln!(f, "{name} of pod {}: {} by {}", leg.pod, word(decision.verdict), place(&decision.by))?
        }
        None => writeln!(f, "{name} of pod {}: dropped, policy does not know the pod (yet)", leg.pod)?,
    }
    if let Some(reasons) = &leg.reasons {
        if !leg.agree {
            let found = format!("{} by {}", word(reasons.verdict), place(&reasons.attribution));
            writeln!(f, "  !! the literal reading of the objects says {found}; please report this")?;
        }
        write_trace(f, &reasons.trace)?;
    }
    Ok(())
}

fn write_trace(f: &mut fmt::Formatter<'_>, trace: &[Step]) -> fmt::Result {
    for tier in trace.chunk_by(|a, b| a.place.tier == b.place.tier) {
        let elsewhere = tier.iter().filter(|step| matches!(step.finding, Finding::NotApplicable(_))).count();
        if elsewhere == tier.len() {
            continue;
        }
        match tier[0].place.tier.as_str() {
            "__PROFILE__" => writeln!(f, "  profiles")?,
            name if elsewhere == 0 => writeln!(f, "  tier {name}")?,
            name => writeln!(f, "  tier {name} ({elsewhere} more policies do not apply to the pod)")?,
        }
        for step in tier {
            let finding = match &step.finding {
                Finding::NotApplicable(_) => continue,
                Finding::Applies(_) => {
                    writeln!(f, "    {}", subject(&step.place))?;
                    continue;
                }
                Finding::NoMatch(reason) => format!("no match; {reason}"),
                Finding::Logged => "matches: Log".to_owned(),
                Finding::Allowed => "allow".to_owned(),
                Finding::Denied(reason) => format!("deny; {reason}"),
                Finding::NextTier(reason) => format!("next tier; {reason}"),
            };
            match (step.place.rule, step.place.name.is_empty()) {
                (0.., _) => writeln!(f, "      rule {}: {finding}", step.place.rule)?,
                (_, false) => writeln!(f, "    {}: {finding}", subject(&step.place))?,
                (_, true) => writeln!(f, "    at the end: {finding}")?,
            }
        }
    }
    Ok(())
}

fn pod_name(local: &LocalEndpoint) -> String {
    format!("{}/{}", local.pod.namespace, local.pod.name)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn subject(place: &Attribution) -> String {
    match place.namespace.as_str() {
        "" => format!("{} {}", place.kind, place.name),
        namespace => format!("{} {namespace}/{}", place.kind, place.name),
    }
}

fn place(by: &Attribution) -> String {
    let tier = if by.tier == "__PROFILE__" { "the profiles".to_owned() } else { format!("tier {}", by.tier) };
    match (by.name.is_empty(), by.rule) {
        (true, _) => format!("the end of {tier}"),
        (false, 0..) => format!("{}, rule {}, in {tier}", subject(by), by.rule),
        (false, _) => format!("{}, in {tier}", subject(by)),
    }
}

fn in_words(packet: &PacketTuple) -> String {
    let protocol = match packet.protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        136 => "UDPLite".to_owned(),
        number => format!("protocol {number}"),
    };
    let end = |address: IpAddr, port: Option<u16>| match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    };
    let icmp = packet.icmp.map(|(kind, code)| format!(" type {kind} code {code}")).unwrap_or_default();
    let (source, destination) =
        (end(packet.source, packet.source_port), end(packet.destination, packet.destination_port));
    format!("{protocol}{icmp} {source} -> {destination}")
}
