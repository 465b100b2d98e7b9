//! The way of a packet through the nodes, and who is asked on it, in order (policy model 12).
//!
//! A packet passes one, two or three nodes. On each it comes in from a wire, from the pods or from the host itself, and leaves by one of
//! these; the pair says which policy is asked:
//!
//! ```text
//!   in        │ arriving                     │ leaving by: wire          pods                    host
//!   ──────────┼──────────────────────────────┼─────────────────────────────────────────────────────────────
//!   wire      │ untracked, preDNAT           │ forward in, forward out   …, receiver's ingress   normal in
//!   pods      │ preDNAT *, sender's egress   │ forward in *, forward out …, receiver's ingress   endpoint to host
//!   host      │                              │ normal out, untracked out nothing                 nothing
//!
//!   *: of the host endpoint `*`, at the boundary between host and pods (policy model 11.7)
//! ```
//!
//! [`walk`] knows the order and what a verdict skips (11.3); what an endpoint says it asks a [`Referee`], of which there are two: the
//! compiled tables and the oracle. It begins where the packet is known to be sound: the checks of policy model 12.1 steps 1, 2 and 4 need
//! the wire and the routes, and the dataplane has them.
//!
//! A verdict is about a conversation, so the way back is walked too, as far as policy has a say there: untracked policy judges answers
//! like any packet, and an end that accepted the packet untracked remembers nothing and judges its answer anew (11.6).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::engine::{HostInterface, LocalEndpoint};
use crate::model::{EndpointToHostAction, Model, NamespacedName};
use crate::oracle;
use crate::packet::{Context, Direction, EndpointId, HostId, HostVerdict, PacketTuple, Verdict};
use crate::snapshot::{Attribution, Snapshot};

/// Kind of the attribution of a failsafe port (policy model 11.9).
const FAILSAFE: &str = "Failsafe";
/// Discovery that a link cannot live without (policy model 12.5, 14.6): multicast listeners, router solicitation, neighbours.
const DISCOVERY: [u8; 6] = [130, 131, 132, 133, 135, 136];
/// Router advertisement: accepted from a wire only (PM-D13).
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Says what an endpoint's policy decides.
pub trait Referee {
    /// Judges the leg of a pod. `None`: nothing is in force for the pod yet, so it is closed.
    fn pod(
        &self,
        pod: PodRef<'_>,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(Verdict, Attribution)>;

    /// Asks one context of the host endpoint that governs an interface. `None`: there is no host endpoint, or it has no policy here.
    fn host(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)>;
}

impl Referee for Snapshot {
    fn pod(
        &self,
        pod: PodRef<'_>,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(Verdict, Attribution)> {
        let judgement = self.judge(pod.endpoint, direction, packet)?;
        Some((judgement.verdict, self.attribution(judgement.rule)?.clone()))
    }

    fn host(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        let judgement = self.judge_host(interface, context, direction, packet)?;
        Some((judgement.verdict, self.attribution(judgement.rule)?.clone()))
    }
}

/// The referee that reads the rules literally.
#[derive(Clone, Copy, Debug)]
pub struct Literal<'m> {
    /// The objects.
    pub model: &'m Model,
    /// The endpoints whose legs are judged.
    pub locals: &'m BTreeMap<EndpointId, LocalEndpoint>,
    /// The interfaces of hosts.
    pub interfaces: &'m BTreeMap<HostId, HostInterface>,
}

impl Referee for Literal<'_> {
    fn pod(
        &self,
        pod: PodRef<'_>,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(Verdict, Attribution)> {
        let decision = oracle::evaluate(self.model, self.locals, direction, pod.key, packet)?;
        Some((decision.verdict, decision.attribution))
    }

    fn host(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        let interface = self.interfaces.get(&interface)?;
        let decision = oracle::evaluate_host(self.model, self.locals, interface, context, direction, packet)?;
        Some((decision.verdict, decision.attribution))
    }
}

/// A pod whose leg is judged here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRef<'a> {
    /// The pod.
    pub key: &'a NamespacedName,
    /// Its endpoint.
    pub endpoint: EndpointId,
}

/// A node, with the interfaces that count for one packet. An absent one is governed by nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRef<'a> {
    /// Name of the node.
    pub name: &'a str,
    /// The boundary between host and pods.
    pub pods: Option<HostId>,
    /// The interface by which the packet comes from or goes to other machines.
    pub wire: Option<HostId>,
}

/// Where a packet starts or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<'a> {
    /// A pod with a network of its own.
    Pod {
        /// The pod.
        key: &'a NamespacedName,
        /// Its endpoint; absent when its leg is judged elsewhere.
        endpoint: Option<EndpointId>,
        /// Its node, where known.
        node: Option<NodeRef<'a>>,
    },
    /// A process of a node itself, or a pod that shares its network.
    Host(NodeRef<'a>),
    /// Another machine.
    Outside,
}

/// A packet and its two ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Journey<'a> {
    /// The packet, with its destination after translation.
    pub packet: PacketTuple,
    /// The destination before translation, where there is one: what untracked and preDNAT policy of the first node sees (12.2).
    pub addressed_to: Option<(IpAddr, Option<u16>)>,
    /// Who sends.
    pub from: End<'a>,
    /// Who receives.
    pub to: End<'a>,
    /// The node that a packet from outside reaches first, such as the one whose node port it is addressed to.
    pub through: Option<NodeRef<'a>>,
    /// What a pod's packet to its own node meets (12.5).
    pub endpoint_to_host: EndpointToHostAction,
    /// `disableConntrackInvalidCheck`: a pod takes packets that a host endpoint accepted untracked (13.2).
    pub pods_take_untracked: bool,
}

/// Somebody who was asked, and the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage<'a> {
    /// Who.
    pub subject: Subject<'a>,
    /// In which context; always normal for pods.
    pub context: Context,
    /// Seen from the subject.
    pub direction: Direction,
    /// Asked about the answer to the packet.
    pub is_reply: bool,
    /// The answer. Pods never say `NoMatch`.
    pub verdict: HostVerdict,
    /// Who decided.
    pub attribution: Attribution,
}

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A pod.
    Pod(&'a NamespacedName),
    /// The host endpoint of an interface.
    Host(HostId),
}

/// How the way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everybody who was asked lets it pass.
    Arrives,
    /// The last stage drops it.
    Denied,
    /// Nothing is in force for a pod yet: closed.
    NoPolicyYet,
    /// It never leaves the pod's own network.
    SamePod,
    /// It never leaves the host.
    SameHost,
    /// A node always reaches its own pods (12.6).
    OwnPod,
    /// A pod's packet to its own node is dropped by `defaultEndpointToHostAction` (12.5).
    EndpointToHost,
    /// A pod's packet to its own node is left to the firewall of the host (12.5, `Return`).
    LeftToHost,
    /// Discovery is never refused (12.5, PM-D13).
    Discovery,
    /// A host endpoint accepted it untracked, and what comes next needs tracking: a pod, or translation (11.6, 13.2).
    Untracked,
}

impl Ending {
    /// Returns whether the packet arrives, as far as policy has a say.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Arrives
            | Self::SamePod
            | Self::SameHost
            | Self::OwnPod
            | Self::LeftToHost
            | Self::Discovery => Verdict::Allow,
            Self::Denied | Self::NoPolicyYet | Self::EndpointToHost | Self::Untracked => Verdict::Deny,
        }
    }
}

/// The whole way.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<'a> {
    /// How it ends.
    pub ending: Ending,
    /// Everybody who was asked, in order. Nobody is asked after the one who drops the packet.
    pub stages: Vec<Stage<'a>>,
}

/// Walks a packet from one end to the other, and its answer back.
pub fn walk<'a>(journey: &Journey<'a>, referee: &impl Referee) -> Outcome<'a> {
    let mut walker = Walker { journey, referee, is_reply: false, stages: Vec::new() };
    let ending = walker.run().unwrap_or_else(|ending| ending);
    Outcome { ending, stages: walker.stages }
}

/// Returns whether a pod's packet to its own node is discovery, which the node answers whatever policy says (12.5).
pub fn is_discovery(packet: &PacketTuple) -> bool {
    packet.protocol == 58 && packet.icmp.is_some_and(|(kind, _)| DISCOVERY.contains(&kind))
}

/// How a packet comes to a node or leaves it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side<'a> {
    Wire,
    /// The pod, where its leg is judged here.
    Pods(Option<PodRef<'a>>),
    Host,
}

/// One node on the way.
struct Visit<'a> {
    node: Option<NodeRef<'a>>,
    entry: Side<'a>,
    exit: Side<'a>,
}

/// What the contexts before routing came to (11.3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// Nobody decided: normal or forward ingress is asked.
    Open,
    /// preDNAT policy accepts: normal and forward ingress are not asked.
    Admitted,
    /// Untracked policy accepts: they are not asked, and nothing remembers the packet.
    Untracked,
}

impl<'a> Journey<'a> {
    fn visits(&self) -> Vec<Visit<'a>> {
        let side = |end: End<'a>| match end {
            End::Pod { key, endpoint, node } => {
                Some((node, Side::Pods(endpoint.map(|endpoint| PodRef { key, endpoint }))))
            }
            End::Host(node) => Some((Some(node), Side::Host)),
            End::Outside => None,
        };
        let name = |node: Option<NodeRef<'a>>| node.map(|node| node.name);
        let (first, last) = (side(self.from), side(self.to));
        if let (Some((node, entry)), Some((other, exit))) = (first, last)
            && node.is_some()
            && name(node) == name(other)
        {
            return vec![Visit { node, entry, exit }];
        }
        let sender = first.map(|(node, entry)| Visit { node, entry, exit: Side::Wire });
        let receiver = last.map(|(node, exit)| Visit { node, entry: Side::Wire, exit });
        let is_elsewhere =
            |node: &NodeRef<'a>| last.is_none_or(|(receiver, _)| name(receiver) != Some(node.name));
        let through = self.through.filter(|node| first.is_none() && is_elsewhere(node));
        let through = through.map(|node| Visit { node: Some(node), entry: Side::Wire, exit: Side::Wire });
        sender.into_iter().chain(through).chain(receiver).collect()
    }

    /// The packet before translation.
    fn as_sent(&self) -> PacketTuple {
        match self.addressed_to {
            Some((destination, destination_port)) => {
                PacketTuple { destination, destination_port, ..self.packet }
            }
            None => self.packet,
        }
    }
}

struct Walker<'j, 'a, R> {
    journey: &'j Journey<'a>,
    referee: &'j R,
    is_reply: bool,
    stages: Vec<Stage<'a>>,
}

/// `Err` is an ending that comes before the packet has arrived.
impl<'a, R: Referee> Walker<'_, 'a, R> {
    fn run(&mut self) -> Result<Ending, Ending> {
        if let (End::Pod { key: from, .. }, End::Pod { key: to, .. }) = (self.journey.from, self.journey.to)
            && from == to
        {
            return Err(Ending::SamePod);
        }
        let visits = self.journey.visits();
        let mut ending = Ending::Arrives;
        let mut untracked = Vec::new();
        let mut packet = self.journey.as_sent();
        for visit in &visits {
            let (left_by, is_untracked) = self.pass(visit, &packet)?;
            (ending, packet) = (left_by, self.journey.packet);
            untracked.push(is_untracked);
        }
        self.is_reply = true;
        for (place, (visit, is_untracked)) in visits.iter().zip(untracked).enumerate().rev() {
            // Before the first node translates it back, an answer has the address of who really sends it.
            let sent = if place == 0 { self.journey.as_sent() } else { self.journey.packet };
            if let Some((inside, outside)) = reply_to(&self.journey.packet).zip(reply_to(&sent)) {
                self.pass_back(visit, is_untracked, &inside, &outside)?;
            }
        }
        Ok(ending)
    }

    /// One node. Returns how the packet leaves it, and whether the host's own end of the flow is untracked.
    fn pass(&mut self, visit: &Visit<'a>, sent: &PacketTuple) -> Result<(Ending, bool), Ending> {
        let packet = &self.journey.packet;
        let wire = visit.node.and_then(|node| node.wire);
        let pods = visit.node.and_then(|node| node.pods);
        let interface = |side: Side<'_>| if side == Side::Wire { wire } else { pods };
        let admission = match (visit.entry, visit.exit) {
            (Side::Host, Side::Wire) => {
                let is_untracked = self.leave_host(wire, packet)?;
                return Ok((Ending::Arrives, is_untracked));
            }
            (Side::Host, Side::Pods(_)) => return Ok((Ending::OwnPod, false)),
            (Side::Host, Side::Host) => return Ok((Ending::SameHost, false)),
            (Side::Pods(_), Side::Host) if is_discovery(packet) => return Ok((Ending::Discovery, false)),
            (Side::Wire, Side::Host) => {
                let admission = self.reach_host(wire, sent, packet)?;
                if admission == Admission::Untracked && sent != packet {
                    return Err(Ending::Untracked);
                }
                return Ok((Ending::Arrives, admission == Admission::Untracked));
            }
            (Side::Wire, _) => self.arrive(wire, sent)?,
            (Side::Pods(sender), _) => {
                let admission = self.before_translation(pods, sent)?;
                self.pod(sender, Direction::Egress)?;
                admission
            }
        };
        if visit.exit == Side::Host {
            return match self.journey.endpoint_to_host {
                EndpointToHostAction::Drop => Err(Ending::EndpointToHost),
                EndpointToHostAction::Return => Ok((Ending::LeftToHost, false)),
                EndpointToHostAction::Accept => Ok((Ending::Arrives, false)),
            };
        }
        if admission == Admission::Open {
            self.host(interface(visit.entry), Context::Forward, Direction::Ingress, packet)?;
        }
        self.host(interface(visit.exit), Context::Forward, Direction::Egress, packet)?;
        if admission == Admission::Untracked {
            let is_refused = matches!(visit.exit, Side::Pods(_)) && !self.journey.pods_take_untracked;
            if is_refused || sent != packet {
                return Err(Ending::Untracked);
            }
        }
        if let Side::Pods(receiver) = visit.exit {
            self.pod(receiver, Direction::Ingress)?;
        }
        Ok((Ending::Arrives, false))
    }

    /// One node on the way back. A flow that is tracked there needs no more than untracked policy; one that is not is judged anew.
    /// `inside` is the answer as the receiver sends it, `outside` as it is after the node has translated it back; what is not tracked
    /// is not translated.
    fn pass_back(
        &mut self,
        visit: &Visit<'a>,
        is_untracked: bool,
        inside: &PacketTuple,
        outside: &PacketTuple,
    ) -> Result<(), Ending> {
        let wire = visit.node.and_then(|node| node.wire);
        match (visit.entry, visit.exit) {
            (Side::Wire, Side::Host) if is_untracked => {
                self.leave_host(wire, inside)?;
            }
            (Side::Wire, Side::Host) => {
                self.untracked(wire, Direction::Egress, outside)?;
            }
            (Side::Host, Side::Wire) if is_untracked => {
                self.reach_host(wire, inside, inside)?;
            }
            (entry, Side::Wire) => {
                let admission = self.untracked(wire, Direction::Ingress, inside)?;
                let is_for_pod = matches!(entry, Side::Pods(_)) && !self.journey.pods_take_untracked;
                if admission == Admission::Untracked && is_for_pod {
                    return Err(Ending::Untracked);
                }
            }
            (_, Side::Pods(_) | Side::Host) => {}
        }
        Ok(())
    }

    /// From a wire to the host itself (12.4).
    fn reach_host(
        &mut self,
        wire: Option<HostId>,
        sent: &PacketTuple,
        packet: &PacketTuple,
    ) -> Result<Admission, Ending> {
        let is_advertisement =
            packet.protocol == 58 && packet.icmp.is_some_and(|(kind, _)| kind == ROUTER_ADVERTISEMENT);
        if is_discovery(packet) || is_advertisement {
            return Ok(Admission::Open);
        }
        let admission = self.arrive(wire, sent)?;
        if admission == Admission::Open {
            self.host(wire, Context::Normal, Direction::Ingress, packet)?;
        }
        Ok(admission)
    }

    /// From the host itself to a wire. Returns whether untracked policy accepted it: then normal policy is not asked (11.3), although it
    /// stands first in the order of leaving packets.
    fn leave_host(&mut self, wire: Option<HostId>, packet: &PacketTuple) -> Result<bool, Ending> {
        if is_discovery(packet) {
            return Ok(false);
        }
        let untracked = self.ask(wire, Context::Untracked, Direction::Egress, packet);
        let is_accepted = untracked.as_ref().is_some_and(|stage| stage.verdict == HostVerdict::Allow);
        if !is_accepted {
            self.host(wire, Context::Normal, Direction::Egress, packet)?;
        }
        self.settle(untracked)?;
        Ok(is_accepted)
    }

    /// The contexts before routing, of a packet from a wire.
    fn arrive(&mut self, wire: Option<HostId>, sent: &PacketTuple) -> Result<Admission, Ending> {
        match self.untracked(wire, Direction::Ingress, sent)? {
            Admission::Open => self.before_translation(wire, sent),
            decided => Ok(decided),
        }
    }

    fn untracked(
        &mut self,
        wire: Option<HostId>,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Result<Admission, Ending> {
        let stage = self.ask(wire, Context::Untracked, direction, packet);
        Ok(match self.settle(stage)? {
            HostVerdict::Allow => Admission::Untracked,
            HostVerdict::Deny | HostVerdict::NoMatch => Admission::Open,
        })
    }

    /// preDNAT. A failsafe port ends this context only: the later ones have their own (11.9).
    fn before_translation(
        &mut self,
        interface: Option<HostId>,
        packet: &PacketTuple,
    ) -> Result<Admission, Ending> {
        let stage = self.ask(interface, Context::PreDnat, Direction::Ingress, packet);
        let is_failsafe = stage.as_ref().is_some_and(|stage| stage.attribution.kind == FAILSAFE);
        Ok(match self.settle(stage)? {
            HostVerdict::Allow if !is_failsafe => Admission::Admitted,
            HostVerdict::Allow | HostVerdict::Deny | HostVerdict::NoMatch => Admission::Open,
        })
    }

    fn host(
        &mut self,
        interface: Option<HostId>,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Result<(), Ending> {
        let stage = self.ask(interface, context, direction, packet);
        self.settle(stage).map(|_| ())
    }

    fn ask(
        &self,
        interface: Option<HostId>,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<Stage<'a>> {
        let interface = interface?;
        let (verdict, attribution) = self.referee.host(interface, context, direction, packet)?;
        let subject = Subject::Host(interface);
        Some(Stage { subject, context, direction, is_reply: self.is_reply, verdict, attribution })
    }

    fn pod(&mut self, pod: Option<PodRef<'a>>, direction: Direction) -> Result<(), Ending> {
        let Some(pod) = pod else { return Ok(()) };
        let judged = self.referee.pod(pod, direction, &self.journey.packet);
        let (verdict, attribution) = judged.ok_or(Ending::NoPolicyYet)?;
        let verdict = match verdict {
            Verdict::Allow => HostVerdict::Allow,
            Verdict::Deny => HostVerdict::Deny,
        };
        let (subject, context) = (Subject::Pod(pod.key), Context::Normal);
        let stage = Stage { subject, context, direction, is_reply: self.is_reply, verdict, attribution };
        self.settle(Some(stage)).map(|_| ())
    }

    /// Puts the stage on record. `Err`: it drops the packet.
    fn settle(&mut self, stage: Option<Stage<'a>>) -> Result<HostVerdict, Ending> {
        let Some(stage) = stage else { return Ok(HostVerdict::NoMatch) };
        let verdict = stage.verdict;
        self.stages.push(stage);
        if verdict == HostVerdict::Deny { Err(Ending::Denied) } else { Ok(verdict) }
    }
}

/// The answer to a packet; `None` where nothing answers, such as an ICMP error.
fn reply_to(packet: &PacketTuple) -> Option<PacketTuple> {
    let icmp = match (packet.protocol, packet.icmp) {
        (1, Some((8, code))) => Some((0, code)),
        (58, Some((128, code))) => Some((129, code)),
        (1 | 58, _) => return None,
        (_, icmp) => icmp,
    };
    Some(PacketTuple {
        source: packet.destination,
        destination: packet.source,
        protocol: packet.protocol,
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        icmp,
    })
}
