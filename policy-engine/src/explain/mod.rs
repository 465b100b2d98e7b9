//! Why one packet passes or does not: both ends, everybody who is asked, every tier, every rule that was read on the way.
//!
//! ```text
//!  oracle ─▶ trace ─▶ story (tier ▷ policy ▷ rule, in the user's words) ─▶ text, JSON
//!  tables ─▶ verdict ──┘    └─▶ hits (policy model 20.3), enforced and pending (19.4)
//! ```
//!
//! Verdicts are the tables', which a node enforces; the reasons are the oracle's. When the two disagree the leg says so
//! instead of telling a story that does not fit. [`diff`] compares the stories of one packet under two Models.

pub mod diff;
mod story;
mod text;
pub mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::engine::{HostInterface, LocalEndpoint};
use crate::model::{Labels, Model, NamespacedName};
use crate::oracle::hits::{self, Hit};
use crate::oracle::{self, OracleDecision};
use crate::packet::{Context, Direction, EndpointId, HostVerdict, PacketTuple, Verdict};
use crate::snapshot::{Attribution, Snapshot};

pub use story::{Outcome, PolicyStory, RuleStory, TierStory};

/// The whole story of one packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The packet in words.
    pub packet: String,
    /// Whether it arrives.
    pub verdict: Says,
    /// Why, where no policy decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who sends.
    pub source: End,
    /// Who receives.
    pub destination: End,
    /// Everybody who was asked, in order.
    pub legs: Vec<Leg>,
}

/// What somebody says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Says {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
    /// Nothing; only host endpoints say that (policy model 11.3).
    NoMatch,
}

/// One end of the packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Objects that the address belongs to: the pod, host endpoints, network sets.
    pub belongs_to: Vec<String>,
    /// What selectors see of the pod (policy model 1.4); empty when there is none.
    pub labels: Labels,
}

/// One endpoint that was asked, in one context and direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leg {
    /// Such as `pod shop/web` or `host endpoint n1-eth0`.
    pub subject: String,
    /// `ingress` or `egress`, as the subject sees it.
    pub direction: String,
    /// Context of a host endpoint (policy model 11.2); pods only have `normal`.
    pub context: String,
    /// What it says.
    pub verdict: Says,
    /// Who decided; nobody when policy does not know the endpoint (yet), which closes it, or when nobody did.
    pub by: Option<By>,
    /// Whether the sender of the denied packet is told (policy model 14.1, 32.9).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rejected: bool,
    /// Every tier in order, then the profiles.
    pub tiers: Vec<TierStory>,
    /// What was recorded (policy model 20.3).
    pub hits: Vec<Hit>,
    /// Text forms of `hits`.
    pub trace: Vec<String>,
    /// What it would be if the staged policies were enforced; only where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// What the rules, read literally, say instead; absent when they agree with the tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<String>,
}

/// What a leg would come to if the staged policies were enforced (policy model 19.4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Allow or deny.
    pub verdict: Says,
    /// Who would decide.
    pub by: By,
    /// Whether verdict or decider differ from what is enforced.
    pub differs: bool,
    /// What would be recorded.
    pub hits: Vec<Hit>,
    /// Text forms of `hits`.
    pub trace: Vec<String>,
}

/// Who decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct By {
    /// Tier; `__PROFILE__` for profiles.
    pub tier: String,
    /// Kind; empty at the end of a tier.
    pub kind: String,
    /// Namespace; empty for a global policy.
    pub namespace: String,
    /// Name; empty at the end of a tier.
    pub name: String,
    /// Which rule; -1 where no rule decided.
    pub rule: i32,
}

/// Whom to ask about a packet.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// A pod's leg.
    Pod {
        /// The pod.
        key: &'a NamespacedName,
        /// Its endpoint.
        endpoint: EndpointId,
        /// Seen from the pod.
        direction: Direction,
    },
    /// One context of the host endpoint of an interface.
    Host {
        /// The interface.
        interface: &'a HostInterface,
        /// Where.
        context: Context,
        /// Seen from the interface.
        direction: Direction,
    },
}

/// Tells stories about one state of the world.
#[derive(Clone, Copy, Debug)]
pub struct Explainer<'a> {
    /// The objects.
    pub model: &'a Model,
    /// The endpoints whose legs are judged.
    pub locals: &'a BTreeMap<EndpointId, LocalEndpoint>,
    /// What was compiled from both.
    pub snapshot: &'a Snapshot,
}

impl Explanation {
    /// Explains `packet` by the legs of the local pods that it comes from and goes to.
    pub fn of_packet(explainer: &Explainer<'_>, packet: &PacketTuple) -> Self {
        let local =
            |address| explainer.locals.values().rev().find(|local| local.addresses.contains(&address));
        let ends = [(packet.source, Direction::Egress), (packet.destination, Direction::Ingress)];
        let legs: Vec<Leg> = ends
            .into_iter()
            .filter_map(|(address, direction)| {
                let local = local(address)?;
                let asked = Asked::Pod { key: &local.pod, endpoint: local.id, direction };
                Some(explainer.leg(&asked, packet))
            })
            .collect();
        let denied = legs.iter().any(|leg| leg.verdict == Says::Deny);
        let verdict = if denied { Says::Deny } else { Says::Allow };
        let reason =
            legs.is_empty().then(|| "neither end is a local endpoint, so policy here has no say".to_owned());
        Self::new(explainer, packet, verdict, reason, legs)
    }

    /// Puts an explanation together from legs that were told already.
    pub fn new(
        explainer: &Explainer<'_>,
        packet: &PacketTuple,
        verdict: Says,
        reason: Option<String>,
        legs: Vec<Leg>,
    ) -> Self {
        Self {
            packet: words::packet(packet),
            verdict,
            reason,
            source: explainer.end(packet.source),
            destination: explainer.end(packet.destination),
            legs,
        }
    }

    /// Returns whether tables and oracle agree on every leg.
    pub fn agrees(&self) -> bool {
        self.legs.iter().all(|leg| leg.disagreement.is_none())
    }
}

impl Explainer<'_> {
    /// Describes who has an address.
    pub fn end(&self, address: IpAddr) -> End {
        let pod = oracle::pod_at(self.model, self.locals, address);
        End {
            address,
            belongs_to: oracle::objects_at(self.model, self.locals, address),
            labels: pod.map(|pod| oracle::effective_labels(self.model, pod)).unwrap_or_default(),
        }
    }

    /// Tells one leg.
    pub fn leg(&self, asked: &Asked<'_>, packet: &PacketTuple) -> Leg {
        match *asked {
            Asked::Pod { key, endpoint, direction } => self.pod_leg(key, endpoint, direction, packet),
            Asked::Host { interface, context, direction } => {
                self.host_leg(interface, context, direction, packet)
            }
        }
    }

    fn pod_leg(
        &self,
        key: &NamespacedName,
        endpoint: EndpointId,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Leg {
        let judgement = self.snapshot.judge(endpoint, direction, packet);
        let rejected = judgement.as_ref().is_some_and(|judgement| {
            judgement.verdict == Verdict::Deny && self.snapshot.rejects(judgement.rule)
        });
        let enforced = judgement.and_then(|judgement| {
            let by = By::from(self.snapshot.attribution(judgement.rule)?);
            Some((Says::from(judgement.verdict), by))
        });
        let told = oracle::evaluate(self.model, self.locals, direction, key, packet);
        let literal = told.as_ref().map(|told| (Says::from(told.verdict), By::from(&told.attribution)));
        let disagreement = (literal != enforced).then(|| match &literal {
            Some((says, by)) => format!("{says} by {by}"),
            None => "the pod is not known".to_owned(),
        });
        let (verdict, by) = enforced.map_or((Says::Deny, None), |(says, by)| (says, Some(by)));
        let trace = told.as_ref().map(|told| told.trace.as_slice()).unwrap_or_default();
        let hits = hits::of_trace(trace);
        let has_staged = self.model.policies.values().any(|policy| policy.staged.is_some());
        let pending = has_staged
            .then(|| oracle::evaluate_pending(self.model, self.locals, direction, key, packet))
            .flatten();
        Leg {
            subject: format!("pod {}/{}", key.namespace, key.name),
            direction: words::direction(direction).to_owned(),
            context: Context::Normal.as_str().to_owned(),
            verdict,
            tiers: story::tiers(self.model, direction, trace),
            trace: hits.iter().map(ToString::to_string).collect(),
            hits,
            pending: pending.map(|pending| Pending::new(&pending, verdict, by.as_ref())),
            by,
            rejected,
            disagreement,
        }
    }

    fn host_leg(
        &self,
        interface: &HostInterface,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Leg {
        let name = oracle::resolve_interface(self.model, interface).map(|endpoint| endpoint.name.as_str());
        let enforced = self.snapshot.judge_host(interface.id, context, direction, packet).map(|judgement| {
            let decided = judgement.verdict != HostVerdict::NoMatch;
            let by = self.snapshot.attribution(judgement.rule).filter(|_| decided).map(By::from);
            (Says::from(judgement.verdict), by)
        });
        let told = oracle::evaluate_host(self.model, self.locals, interface, context, direction, packet);
        let literal = told.as_ref().map(|told| {
            let decided = told.verdict != HostVerdict::NoMatch;
            (Says::from(told.verdict), decided.then(|| By::from(&told.attribution)))
        });
        let disagreement = (literal != enforced).then(|| match &literal {
            Some((says, Some(by))) => format!("{says} by {by}"),
            _ => "nothing is decided here".to_owned(),
        });
        let (verdict, by) = enforced.unwrap_or((Says::NoMatch, None));
        let side = if interface.is_pod_side { "the pods' side" } else { &interface.name };
        let trace = told.as_ref().map(|told| told.trace.as_slice()).unwrap_or_default();
        let hits = hits::of_trace(trace);
        Leg {
            subject: match name {
                Some(name) => format!("host endpoint {name} ({side} of node {})", interface.node),
                None => format!("{side} of node {}, which no host endpoint governs", interface.node),
            },
            direction: words::direction(direction).to_owned(),
            context: context.as_str().to_owned(),
            verdict,
            by,
            rejected: false,
            tiers: story::tiers(self.model, direction, trace),
            trace: hits.iter().map(ToString::to_string).collect(),
            hits,
            pending: None,
            disagreement,
        }
    }
}

impl Pending {
    fn new(told: &OracleDecision, verdict: Says, by: Option<&By>) -> Self {
        let hits = hits::of_trace(&told.trace);
        let (would, who) = (Says::from(told.verdict), By::from(&told.attribution));
        Self {
            differs: would != verdict || by != Some(&who),
            verdict: would,
            by: who,
            trace: hits.iter().map(ToString::to_string).collect(),
            hits,
        }
    }
}

impl From<Verdict> for Says {
    fn from(from: Verdict) -> Self {
        match from {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

impl From<HostVerdict> for Says {
    fn from(from: HostVerdict) -> Self {
        match from {
            HostVerdict::Allow => Self::Allow,
            HostVerdict::Deny => Self::Deny,
            HostVerdict::NoMatch => Self::NoMatch,
        }
    }
}

impl From<&Attribution> for By {
    fn from(from: &Attribution) -> Self {
        Self {
            tier: from.tier.clone(),
            kind: from.kind.clone(),
            namespace: from.namespace.clone(),
            name: from.name.clone(),
            rule: from.rule,
        }
    }
}
