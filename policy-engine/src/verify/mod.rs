//! Statements about all packets, answered from the compiled tables.
//!
//! A probe says what happens to one packet; a statement such as "no pod of namespace A reaches namespace B" is about 2¹⁰⁰ of them. It can
//! be answered all the same, because the tables know little about a packet. The verdict of a leg is a function of
//!
//! ```text
//!   the endpoint's table · family · identity of both addresses · protocol · both ports · ICMP type and code
//! ```
//!
//! and each of these falls into few classes, within which no verdict differs:
//!
//! * **Ends** ([`ends`]). Two pods whose addresses have the same identity and that are governed by the same table are one class.
//!   Addresses that are no pod's come in the intervals of [`Snapshot::address_classes`], which partition both families; an interval is
//!   clipped to the CIDR in question, and addresses of pods and nodes in it are taken out, because those are ends of their own.
//! * **Protocols.** Every protocol that a rule of either leg or a named port names is a class of its own, and so are those that have
//!   ports or ICMP types; all others together are one.
//! * **Ports.** The first ports of all intervals of [`Snapshot::boundaries`] of both legs, and the points of
//!   [`Snapshot::port_points`] of both addresses (with the port behind each), start intervals within which every criterion of every rule
//!   holds for all ports or for none.
//! * **ICMP.** Every type and code that a rule names, and one of each that none names.
//!
//! One packet stands for each combination and is judged on both legs. So the search looks at every packet there is, and what it finds is
//! a proof, or a packet that contradicts the statement.
//!
//! What a statement is about: packets between pods, and between pods and addresses elsewhere, whose transport header can be read, as
//! policy sees them (after destination translation). A pod's packets to itself never leave it and are left out, as is the neighbour
//! discovery between a pod and its node, which no policy governs (policy model 12.5). Policy of host endpoints is another question: a
//! node stands for its addresses, reaches its own pods whatever policy says, and takes its own pods' packets where
//! `defaultEndpointToHostAction` does not drop them. A pod on the host's network is that node.

mod ends;
mod packets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::Serialize;

use crate::engine::Engine;
use crate::packet::{Direction, EndpointId, Epoch, IdentityId, PacketTuple, Verdict};
use crate::selector::Selector;
use crate::snapshot::{Attribution, Boundaries, Snapshot};
use crate::walk::is_discovery;
use ends::{End, Ends, Place, is_known};
use packets::Axes;

/// Who may stand at one end of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    /// Pods that meet all of these.
    Pods(Pods),
    /// Every address of the CIDR: the pods, the nodes and all else in it.
    Net(IpNet),
    /// Every address that is no pod's and no node's.
    Outside,
    /// The node of the name, or every node.
    Nodes(Option<String>),
}

/// Criteria for pods; an absent one is met by all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pods {
    /// Namespace by name.
    pub namespace: Option<String>,
    /// Namespace by labels.
    pub namespace_selector: Option<Selector>,
    /// Effective labels of the pod (policy model 1.4).
    pub selector: Option<Selector>,
    /// Name of the pod.
    pub name: Option<String>,
    /// Name of its service account.
    pub service_account: Option<String>,
    /// Name of the pod, or of its application: label `app` or `app.kubernetes.io/name`.
    pub called: Option<String>,
}

/// Packets by protocol and destination port, or by ICMP type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Protocol number; absent: each protocol that has ports.
    pub protocol: Option<u8>,
    /// Destination ports, both included; absent: all, and protocols without ports too.
    pub ports: Option<(u16, u16)>,
    /// ICMP type; absent: all.
    pub icmp: Option<u8>,
}

/// What is claimed about the packets from some peers to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// None passes.
    Deny,
    /// Every one passes.
    Allow,
    /// None passes that comes from anybody else.
    Only,
}

/// A statement about all packets.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    /// What is claimed.
    pub claim: Claim,
    /// Any of these sends. Empty with [`Claim::Only`]: nobody may.
    pub from: Vec<Peer>,
    /// Any of these receives.
    pub to: Vec<Peer>,
    /// Any of these is used; empty: everything.
    pub services: Vec<Service>,
    /// A peer that stands for nothing is no mistake.
    pub may_be_empty: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Whether the statement holds for every packet.
    pub holds: bool,
    /// How many classes of packets were judged.
    pub examined: u64,
    /// A packet that contradicts the statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counterexample: Option<CounterExample>,
}

/// A packet that contradicts a statement, and who decided about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterExample {
    /// Who sends: `namespace/pod`, `host:NODE` or `outside`.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// The packet.
    #[serde(serialize_with = "packets::serialize")]
    pub packet: PacketTuple,
    /// What happens to it.
    pub verdict: Verdict,
    /// Who decided for the sender; absent where the sender is no pod, or no policy is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Leg>,
    /// Who decided for the receiver; absent where that is no pod, no policy is asked, or the sender's leg denies already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Leg>,
    /// What decided, where no policy did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The decision about one leg.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leg {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Who decided.
    #[serde(flatten)]
    pub attribution: Option<Attribution>,
}

/// Why a statement cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A peer stands for nothing, so the statement would hold whatever policy says.
    #[error(
        "`{side}` stands for nothing: no pod, node or address with an address meets {peer}; correct it, or say allowEmpty"
    )]
    Empty {
        /// `from` or `to`.
        side: &'static str,
        /// The peer.
        peer: String,
    },
    /// No packet between the peers concerns a pod.
    #[error("no pod stands on either side, so no policy of a pod is asked; name pods in `from` or in `to`")]
    NoPod,
    /// It would take too long.
    #[error(
        "not decided within {limit:?}, after {examined} classes of packets; allow more time, or split the statement"
    )]
    TooLong {
        /// What was allowed.
        limit: Duration,
        /// How far it came.
        examined: u64,
    },
}

/// Judges statements about one state of the world.
#[derive(Debug)]
pub struct Verifier<'e> {
    snapshot: Arc<Snapshot>,
    ends: Ends<'e>,
    limit: Duration,
}

impl<'e> Verifier<'e> {
    /// Returns a verifier of what `engine` holds; pods that are no local endpoints of it are addresses only. A statement is given up after
    /// `limit`.
    pub fn new(engine: &'e mut Engine, limit: Duration) -> Self {
        let snapshot = engine.publish();
        let ends = Ends::new(engine, &snapshot);
        Self { snapshot, ends, limit }
    }

    /// Judges one statement.
    ///
    /// Errors: [`VerifyError`]; the statement is then neither true nor false.
    pub fn judge(&self, assertion: &Assertion) -> Result<Finding, VerifyError> {
        let empty = assertion.may_be_empty;
        let to = self.resolve("to", &assertion.to, empty)?;
        let mut from = self.resolve("from", &assertion.from, empty)?;
        if assertion.claim == Claim::Only {
            // Nothing is claimed about a sender that may.
            from = self.ends.all_but(&assertion.from);
        }
        let concerns_a_pod = from.iter().chain(&to).any(|end| end.endpoint().is_some());
        if !concerns_a_pod && !from.is_empty() && !to.is_empty() {
            return Err(VerifyError::NoPod);
        }
        let mut search = Search {
            verifier: self,
            assertion,
            wanted: if assertion.claim == Claim::Allow { Verdict::Deny } else { Verdict::Allow },
            deadline: Instant::now() + self.limit,
            finding: Finding { holds: true, examined: 0, counterexample: None },
            boundaries: BTreeMap::new(),
        };
        let sources = self.classes(&from, &to, Direction::Egress);
        let destinations = self.classes(&to, &from, Direction::Ingress);
        for source in &sources {
            for destination in &destinations {
                let Some((source, destination)) = pair(source, destination) else { continue };
                search.pair(source, destination)?;
                if !search.finding.holds {
                    return Ok(search.finding);
                }
            }
        }
        Ok(search.finding)
    }

    fn resolve(
        &self,
        side: &'static str,
        peers: &[Peer],
        may_be_empty: bool,
    ) -> Result<Vec<End>, VerifyError> {
        let mut ends = Vec::new();
        for peer in peers {
            let found = self.ends.of(peer);
            if found.is_empty() && !may_be_empty {
                return Err(VerifyError::Empty { side, peer: peer.to_string() });
            }
            ends.extend(found);
        }
        ends.sort_unstable();
        ends.dedup();
        Ok(ends)
    }

    /// Puts ends together that no packet of `direction` from or to `others` could tell apart. Two of each class are enough: the second
    /// takes part where the first would meet itself.
    fn classes(&self, ends: &[End], others: &[End], direction: Direction) -> Vec<Vec<End>> {
        type Class<'a> = (bool, IdentityId, Option<Epoch>, bool, Option<&'a str>);
        // Which node a pod is on matters to that node only.
        let nodes = |of_pods: bool| -> BTreeSet<&str> {
            let others = others.iter().filter(|end| end.endpoint().is_some() == of_pods);
            others.filter_map(End::node).collect()
        };
        let (with_pods, as_nodes) = (nodes(true), nodes(false));
        let mut classes: BTreeMap<Class<'_>, Vec<End>> = BTreeMap::new();
        let (known, others): (Vec<&End>, Vec<&End>) = ends.iter().partition(|end| is_known(&end.address));
        for end in known.into_iter().chain(others) {
            let endpoint = end.endpoint();
            let epoch = endpoint.and_then(|endpoint| self.snapshot.epoch(endpoint, direction));
            let concerned = if endpoint.is_some() { &as_nodes } else { &with_pods };
            let node = end.node().filter(|node| concerned.contains(node));
            let identity = self.snapshot.identity(end.address);
            let class = (end.address.is_ipv4(), identity, epoch, endpoint.is_some(), node);
            let members = classes.entry(class).or_default();
            if members.len() < 2 && members.iter().all(|member| !member.is_same(end)) {
                members.push(end.clone());
            }
        }
        classes.into_values().collect()
    }
}

/// Returns a sender and a receiver of two classes that can send packets to each other.
fn pair<'a>(sources: &'a [End], destinations: &'a [End]) -> Option<(&'a End, &'a End)> {
    let pairs = sources.iter().flat_map(|source| destinations.iter().map(move |to| (source, to)));
    let mut fitting =
        pairs.filter(|(from, to)| from.address.is_ipv4() == to.address.is_ipv4() && !from.is_same(to));
    fitting.next()
}

/// One search for a packet that contradicts a statement.
struct Search<'a> {
    verifier: &'a Verifier<'a>,
    assertion: &'a Assertion,
    /// The verdict that contradicts.
    wanted: Verdict,
    deadline: Instant,
    finding: Finding,
    boundaries: BTreeMap<(EndpointId, bool), Boundaries>,
}

impl<'a> Search<'a> {
    fn pair(&mut self, source: &'a End, destination: &'a End) -> Result<(), VerifyError> {
        let ends = &self.verifier.ends;
        if source.endpoint().is_none() && destination.endpoint().is_none() {
            return Ok(());
        }
        let own_node = ends.own_node(source, destination);
        if own_node && destination.endpoint().is_some() && self.assertion.claim == Claim::Only {
            // The node of a pod reaches it in any case; nobody claims otherwise.
            return Ok(());
        }
        let snapshot = &self.verifier.snapshot;
        let identities = [source.address, destination.address].map(|address| snapshot.identity(address));
        let mut axes = Axes::new(source.address.is_ipv4());
        for (end, direction) in [(source, Direction::Egress), (destination, Direction::Ingress)] {
            let Some(endpoint) = end.endpoint() else { continue };
            let key = (endpoint, direction == Direction::Egress);
            let known = self
                .boundaries
                .entry(key)
                .or_insert_with(|| snapshot.boundaries(endpoint, direction).unwrap_or_default());
            axes.add(known);
        }
        for (identity, is_destination) in [(identities[0], false), (identities[1], true)] {
            axes.add_points(&snapshot.port_points(identity), is_destination);
        }
        let leg = |end: &End, direction: Direction, packet: &PacketTuple| {
            let judged = snapshot.judge_with_identity(
                end.endpoint()?,
                direction,
                packet,
                identities[0],
                identities[1],
            );
            Some(judged.map_or((Verdict::Deny, None), |judged| (judged.verdict, Some(judged.rule))))
        };
        let to_own_node = own_node && source.endpoint().is_some();
        for packet in axes.packets(source.address, destination.address, &self.assertion.services) {
            if to_own_node && is_discovery(&packet) {
                continue;
            }
            self.finding.examined += 1;
            if self.finding.examined.is_multiple_of(1024) && Instant::now() > self.deadline {
                let (limit, examined) = (self.verifier.limit, self.finding.examined);
                return Err(VerifyError::TooLong { limit, examined });
            }
            let egress = leg(source, Direction::Egress, &packet);
            let ingress = if own_node { None } else { leg(destination, Direction::Ingress, &packet) };
            // A node's own part decides only what policy lets pass.
            let at_node = own_node.then(|| ends.own_node_verdict(source));
            let denies = |leg: &Option<(Verdict, _)>| leg.as_ref().is_some_and(|leg| leg.0 == Verdict::Deny);
            let by_policy = denies(&egress) || denies(&ingress);
            let by_node = !by_policy && at_node.is_some_and(|verdict| verdict == Verdict::Deny);
            let verdict = if by_policy || by_node { Verdict::Deny } else { Verdict::Allow };
            if verdict != self.wanted {
                continue;
            }
            let tell = |leg: (Verdict, Option<_>)| Leg {
                verdict: leg.0,
                attribution: leg.1.and_then(|rule| snapshot.attribution(rule)).cloned(),
            };
            self.finding.holds = false;
            self.finding.counterexample = Some(CounterExample {
                from: source.place.to_string(),
                to: destination.place.to_string(),
                packet,
                verdict,
                ingress: if denies(&egress) { None } else { ingress.map(tell) },
                egress: egress.map(tell),
                reason: at_node.filter(|_| !by_policy).map(|_| ends.own_node_reason(source, by_node)),
            });
            return Ok(());
        }
        Ok(())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => write!(f, "cidr {net}"),
            Self::Outside => f.write_str("outside"),
            Self::Nodes(Some(name)) => write!(f, "node {name}"),
            Self::Nodes(None) => f.write_str("nodes"),
            Self::Pods(pods) => {
                let selector = |selector: &Option<Selector>| selector.as_ref().map(ToString::to_string);
                let parts = [
                    ("namespace", pods.namespace.clone()),
                    ("namespaceSelector", selector(&pods.namespace_selector)),
                    ("selector", selector(&pods.selector)),
                    ("pod", pods.name.clone()),
                    ("serviceAccount", pods.service_account.clone()),
                    ("pod or app", pods.called.clone()),
                ];
                let said: Vec<String> = parts
                    .into_iter()
                    .filter_map(|(name, value)| Some(format!("{name} {}", value?)))
                    .collect();
                f.write_str(if said.is_empty() { "pods" } else { "" })?;
                f.write_str(&said.join(", "))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { key, .. } => write!(f, "{}/{}", key.namespace, key.name),
            Self::Node(name) => write!(f, "host:{name}"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

/// Returns the last address of the interval that starts at `start` and ends before `next`, or with the family.
fn last_before(next: Option<IpAddr>, is_ipv4: bool) -> u128 {
    match next {
        Some(next) if next.is_ipv4() == is_ipv4 => number(next) - 1,
        _ if is_ipv4 => u128::from(u32::MAX),
        _ => u128::MAX,
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        // Numbers of this family come from 32 bits.
        IpAddr::V4((number as u32).into())
    } else {
        IpAddr::V6(number.into())
    }
}
