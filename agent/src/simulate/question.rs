//! A probe in the terms of policy, and what its answer is made of.
//!
//! A world without host endpoints needs the two legs of pods and nothing else. With them the packet is walked through its nodes
//! (policy model 12), which gives the verdict; both legs are answered all the same, also where a host endpoint drops the packet on the way.

use std::net::IpAddr;

use margay_policy_engine::model::{EndpointToHostAction, NamespacedName};
use margay_policy_engine::packet::{
    Context, Direction, EndpointId, HostId, HostVerdict, PacketTuple, Verdict,
};
use margay_policy_engine::snapshot::Attribution;
use margay_policy_engine::walk::{End, Ending, Journey, PodRef, Referee, Stage, Subject, walk};
use serde::Serialize;

use super::interfaces::{Crossing, Interfaces};
use crate::admin::report::Decider;

/// A leg that has to be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Leg {
    /// The pod.
    pub pod: NamespacedName,
    /// Its endpoint on this node.
    pub endpoint: EndpointId,
}

/// A probe in the terms of policy.
#[derive(Clone, Debug)]
pub struct Question<'w> {
    /// The packet.
    pub packet: PacketTuple,
    /// The sender's leg, where one is judged.
    pub egress: Option<Leg>,
    /// The receiver's leg, where one is judged.
    pub ingress: Option<Leg>,
    /// A pod asks for its own node, and that is not allowed (policy model 12.5).
    pub host_refused: bool,
    /// Why a leg is not judged, where that needs saying.
    pub note: Option<&'static str>,
    /// The way through the nodes, in a world with host endpoints.
    pub route: Option<Route<'w>>,
}

/// The way of a packet past host endpoints.
#[derive(Clone, Debug)]
pub struct Route<'w> {
    /// The interfaces that it may meet.
    pub interfaces: &'w Interfaces,
    /// Where it starts.
    pub from: Stop,
    /// Where it ends.
    pub to: Stop,
    /// The node that it reaches first and that is not its last.
    pub through: Option<Crossing>,
    /// Its destination before translation.
    pub addressed_to: Option<(IpAddr, Option<u16>)>,
    /// What a pod may do to its own node.
    pub endpoint_to_host: EndpointToHostAction,
    /// Whether pods take what was accepted untracked.
    pub pods_take_untracked: bool,
}

/// One end of a [`Route`].
#[derive(Clone, Debug)]
pub enum Stop {
    /// A pod, on its node where that is known.
    Pod(NamespacedName, Option<EndpointId>, Option<Crossing>),
    /// A node itself.
    Host(Crossing),
    /// Another machine.
    Outside,
}

/// One leg's part of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LegAnswer {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Who decided.
    #[serde(flatten)]
    pub decider: Decider,
}

/// What one context of a host endpoint said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostAnswer {
    /// Node.
    pub node: String,
    /// Interface; `pods` is the boundary to the pods, `*` one that no host endpoint names.
    pub interface: String,
    /// The host endpoint that governs it.
    pub host_endpoint: String,
    /// `untracked`, `preDNAT`, `normal` or `forward`.
    pub context: &'static str,
    /// `ingress` or `egress`, seen from the host.
    pub direction: &'static str,
    /// Asked about the answer to the packet.
    #[serde(skip_serializing_if = "is_false")]
    pub reply: bool,
    /// Allow, deny, or nothing.
    pub verdict: HostVerdict,
    /// Who decided.
    #[serde(flatten)]
    pub decider: Decider,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The answer to one probe. A leg that is not judged is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Whether the packet arrives.
    pub verdict: Verdict,
    /// Why, where no rule says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The sender's leg.
    pub egress: Option<LegAnswer>,
    /// The receiver's leg.
    pub ingress: Option<LegAnswer>,
    /// The host endpoints that were asked, in order, up to the one that drops the packet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<HostAnswer>,
}

const NO_POLICY_YET: &str = "no_policy_yet: the pod is closed until its policy is in force";
const ENDPOINT_TO_HOST: &str = "endpoint_to_host: defaultEndpointToHostAction is Drop";
const HOST_ENDPOINT: &str = "host_endpoint: a host endpoint on the way drops it";
const UNTRACKED: &str =
    "untracked: a host endpoint accepts it untracked, and a pod or a translation needs tracking";

impl Question<'_> {
    /// Puts together what the endpoints decide. An endpoint for which `referee` has nothing is closed.
    pub fn answer(&self, referee: &impl Referee) -> Answer {
        let mut reason = self.note;
        let mut judged = |leg: &Option<Leg>, direction| {
            let leg = leg.as_ref()?;
            let pod = PodRef { key: &leg.pod, endpoint: leg.endpoint };
            Some(match referee.pod(pod, direction, &self.packet) {
                Some((verdict, attribution)) => LegAnswer { verdict, decider: Decider::from(&attribution) },
                None => {
                    reason = Some(NO_POLICY_YET);
                    LegAnswer { verdict: Verdict::Deny, decider: Decider { rule: -1, ..Decider::default() } }
                }
            })
        };
        let egress = judged(&self.egress, Direction::Egress);
        let ingress = judged(&self.ingress, Direction::Ingress);
        if let Some(route) = &self.route {
            return self.walked(route, referee, egress, ingress, reason);
        }
        let passes = |leg: &Option<LegAnswer>| leg.as_ref().is_none_or(|leg| leg.verdict == Verdict::Allow);
        let by_policy = passes(&egress) && passes(&ingress);
        if by_policy && self.host_refused {
            reason = Some(ENDPOINT_TO_HOST);
        }
        let verdict = if by_policy && !self.host_refused { Verdict::Allow } else { Verdict::Deny };
        Answer { verdict, reason, egress, ingress, host: Vec::new() }
    }

    fn walked(
        &self,
        route: &Route<'_>,
        referee: &impl Referee,
        egress: Option<LegAnswer>,
        ingress: Option<LegAnswer>,
        note: Option<&'static str>,
    ) -> Answer {
        let legs = Legs { egress: &egress, ingress: &ingress, referee };
        let outcome = walk(&route.journey(self.packet), &legs);
        let host: Vec<HostAnswer> =
            outcome.stages.iter().filter_map(|stage| HostAnswer::of(stage, route.interfaces)).collect();
        // A note about a packet that meets no pod is about nobody being asked.
        let is_asked_of_hosts = self.egress.is_none() && self.ingress.is_none() && !host.is_empty();
        let reason = match outcome.ending {
            Ending::EndpointToHost => Some(ENDPOINT_TO_HOST),
            Ending::Untracked => Some(UNTRACKED),
            Ending::Denied if is_host(outcome.stages.last()) => Some(HOST_ENDPOINT),
            _ if is_asked_of_hosts => None,
            _ => note,
        };
        Answer { verdict: outcome.ending.verdict(), reason, egress, ingress, host }
    }
}

fn is_host(stage: Option<&Stage<'_>>) -> bool {
    stage.is_some_and(|stage| matches!(stage.subject, Subject::Host(_)))
}

impl Route<'_> {
    fn journey(&self, packet: PacketTuple) -> Journey<'_> {
        Journey {
            packet,
            addressed_to: self.addressed_to,
            from: self.from.end(),
            to: self.to.end(),
            through: self.through.as_ref().map(Crossing::as_node),
            endpoint_to_host: self.endpoint_to_host,
            pods_take_untracked: self.pods_take_untracked,
        }
    }
}

impl Stop {
    fn end(&self) -> End<'_> {
        match self {
            Self::Pod(key, endpoint, node) => {
                End::Pod { key, endpoint: *endpoint, node: node.as_ref().map(Crossing::as_node) }
            }
            Self::Host(node) => End::Host(node.as_node()),
            Self::Outside => End::Outside,
        }
    }
}

impl HostAnswer {
    /// `None` for a stage of a pod, which has its leg.
    fn of(stage: &Stage<'_>, interfaces: &Interfaces) -> Option<Self> {
        let Subject::Host(interface) = stage.subject else { return None };
        let shown = interfaces.shown(interface)?;
        Some(Self {
            node: shown.node.clone(),
            interface: shown.interface.clone(),
            host_endpoint: shown.host_endpoint.clone(),
            context: stage.context.as_str(),
            direction: match stage.direction {
                Direction::Ingress => "ingress",
                Direction::Egress => "egress",
            },
            reply: stage.is_reply,
            verdict: stage.verdict,
            decider: Decider::from(&stage.attribution),
        })
    }
}

/// Knows what the legs of pods came to, and asks for the rest.
struct Legs<'a, R> {
    egress: &'a Option<LegAnswer>,
    ingress: &'a Option<LegAnswer>,
    referee: &'a R,
}

impl<R: Referee> Referee for Legs<'_, R> {
    fn pod(&self, _: PodRef<'_>, direction: Direction, _: &PacketTuple) -> Option<(Verdict, Attribution)> {
        let leg = match direction {
            Direction::Egress => self.egress,
            Direction::Ingress => self.ingress,
        };
        let Decider { tier, kind, namespace, name, rule } = leg.as_ref()?.decider.clone();
        Some((leg.as_ref()?.verdict, Attribution { tier, kind, namespace, name, rule }))
    }

    fn host(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        self.referee.host(interface, context, direction, packet)
    }
}
