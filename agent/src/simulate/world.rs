//! Who a probe is about: the names of pods and nodes, and the addresses behind them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use margay_core::worker::EndpointToHost;
use margay_policy_engine::engine::LocalEndpoint;
use margay_policy_engine::model::{Model, NamespacedName};
use margay_policy_engine::packet::{Direction, EndpointId, PacketTuple, Verdict};
use margay_policy_engine::snapshot::Attribution;
use serde::Serialize;

use super::probe::Probe;
use crate::admin::report::Decider;

/// Source port of a probe that names none: the first of the ports that clients take for a while (RFC 6335 §6).
const EPHEMERAL: u16 = 49_152;

/// What stands at one end of a probe.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// A pod with a network of its own. `endpoint` is absent for a pod of another node.
    Pod { key: NamespacedName, node: Option<String>, endpoint: Option<EndpointId> },
    /// A node, or a pod that shares its network.
    Host { node: String },
    /// Anything else.
    Outside,
}

#[derive(Clone, Debug)]
struct Peer {
    place: Place,
    addresses: Vec<IpAddr>,
}

/// The names and addresses of a Model, ready to be asked.
#[derive(Debug)]
pub struct World {
    /// By the text of a probe: `namespace/pod` and `host:NODE`.
    named: HashMap<String, Result<Peer, String>>,
    by_address: HashMap<IpAddr, Place>,
    endpoint_to_host: EndpointToHost,
}

/// A leg that has to be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Leg {
    /// The pod.
    pub pod: NamespacedName,
    /// Its endpoint on this node.
    pub endpoint: EndpointId,
}

/// A probe in the terms of policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
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
}

impl World {
    /// Learns the names of `model`. Pods in `locals` have the addresses given there; the others those of their status.
    pub fn new(
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        endpoint_to_host: EndpointToHost,
    ) -> Self {
        let mut named = HashMap::new();
        let mut by_address = HashMap::new();
        let by_pod: HashMap<&NamespacedName, &LocalEndpoint> =
            locals.values().map(|local| (&local.pod, local)).collect();
        for pod in model.pods.values() {
            let name = format!("{}/{}", pod.key.namespace, pod.key.name);
            if pod.finished {
                named.insert(
                    name.clone(),
                    Err(format!("pod {name} has finished: it has no address any more")),
                );
                continue;
            }
            let (place, addresses) = if pod.host_network {
                let node = pod.node.clone().unwrap_or_default();
                let of_node = model.nodes.get(&node).map(|node| node.addresses.clone());
                let addresses =
                    of_node.filter(|list| !list.is_empty()).unwrap_or_else(|| pod.addresses.clone());
                (Place::Host { node }, addresses)
            } else {
                let local = by_pod.get(&pod.key);
                let endpoint = local.map(|local| local.id);
                let addresses = local.map_or_else(|| pod.addresses.clone(), |local| local.addresses.clone());
                (Place::Pod { key: pod.key.clone(), node: pod.node.clone(), endpoint }, addresses)
            };
            for address in &addresses {
                by_address.insert(*address, place.clone());
            }
            let peer = if addresses.is_empty() && pod.addresses.is_empty() {
                Err(format!("pod {name} has no address: status.podIPs of its manifest is empty"))
            } else if addresses.is_empty() {
                Err(format!(
                    "pod {name} does not own the address in its status.podIPs: another pod or a node has it, or it is outside the podCIDRs of its node"
                ))
            } else {
                Ok(Peer { place, addresses })
            };
            named.insert(name, peer);
        }
        for node in model.nodes.values() {
            let place = Place::Host { node: node.name.clone() };
            for address in &node.addresses {
                by_address.insert(*address, place.clone());
            }
            let peer = if node.addresses.is_empty() {
                Err(format!("node {} has no address: status.addresses of its manifest is empty", node.name))
            } else {
                Ok(Peer { place, addresses: node.addresses.clone() })
            };
            named.insert(format!("host:{}", node.name), peer);
        }
        Self { named, by_address, endpoint_to_host }
    }

    /// Returns who `text` is. Errors: a sentence for the one who wrote the probe.
    fn peer(&self, field: &str, text: &str) -> Result<Peer, String> {
        if let Some(known) = self.named.get(text) {
            return known.clone().map_err(|reason| format!("{field}: {reason}"));
        }
        if let Some(address) = text.strip_prefix("ip:") {
            let address: IpAddr = address
                .parse()
                .map_err(|_| format!("{field}: {address:?} is not an IPv4 or IPv6 address"))?;
            let place = self.by_address.get(&address).cloned().unwrap_or(Place::Outside);
            return Ok(Peer { place, addresses: vec![address] });
        }
        if let Some(node) = text.strip_prefix("host:") {
            return Err(format!("{field}: no node is called {node:?}; is its manifest missing?"));
        }
        match text.split_once('/') {
            Some((namespace, pod)) if !namespace.is_empty() && !pod.is_empty() => {
                Err(format!("{field}: no pod {pod:?} in namespace {namespace:?}; is its manifest missing?"))
            }
            _ => Err(format!("{field}: {text:?} is none of namespace/pod, ip:ADDRESS, host:NODE")),
        }
    }

    /// Returns what has to be judged for `probe`.
    ///
    /// Errors: a sentence that names the field, what is wrong with it, and what would be right.
    pub fn question(&self, probe: &Probe) -> Result<Question, String> {
        let (from, to) = (self.peer("from", &probe.from)?, self.peer("to", &probe.to)?);
        let (source, destination) = addresses(probe, &from, &to)?;
        let protocol = probe.protocol;
        if protocol.has_ports() && probe.port.is_none() {
            return Err(format!("port: {protocol} needs a destination port"));
        }
        if !protocol.has_ports() && (probe.port.is_some() || probe.sport.is_some()) {
            return Err(format!("port: {protocol} has no ports"));
        }
        if protocol.family().is_none() && probe.icmp.is_some() {
            return Err(format!("icmp: {protocol} has no ICMP type; use protocol ICMP or ICMPv6"));
        }
        let echo_request = if protocol.0 == 1 { 8 } else { 128 };
        let packet = PacketTuple {
            source,
            destination,
            protocol: protocol.0,
            source_port: protocol.has_ports().then(|| probe.sport.unwrap_or(EPHEMERAL)),
            destination_port: probe.port,
            icmp: protocol
                .family()
                .map(|_| probe.icmp.map_or((echo_request, 0), |icmp| (icmp.kind, icmp.code))),
        };
        let mut question = Question { packet, egress: None, ingress: None, host_refused: false, note: None };
        match (&from.place, &to.place) {
            (Place::Pod { key: a, .. }, Place::Pod { key: b, .. }) if a == b => {
                question.note = Some("same_pod: never leaves the pod's own network");
            }
            (Place::Pod { node: Some(own), .. }, Place::Host { node }) if own == node => {
                question.egress = leg(&from.place);
                question.host_refused = self.endpoint_to_host == EndpointToHost::Drop;
            }
            // Policy model 12.6.
            (Place::Host { node }, Place::Pod { node: Some(own), .. }) if own == node => {
                question.note = Some("host_to_own_pod: a node always reaches its own pods");
            }
            (from, to) => {
                (question.egress, question.ingress) = (leg(from), leg(to));
                if question.egress.is_none() && question.ingress.is_none() {
                    question.note = Some("no_local_pod: no policy of a pod is asked");
                }
            }
        }
        Ok(question)
    }
}

fn leg(place: &Place) -> Option<Leg> {
    match place {
        Place::Pod { key, endpoint: Some(endpoint), .. } => {
            Some(Leg { pod: key.clone(), endpoint: *endpoint })
        }
        _ => None,
    }
}

/// Returns the addresses of one family that both ends have; IPv4 where there is a choice.
fn addresses(probe: &Probe, from: &Peer, to: &Peer) -> Result<(IpAddr, IpAddr), String> {
    let families: &[u8] = match (probe.family, probe.protocol.family()) {
        (Some(4), None | Some(4)) | (None, Some(4)) => &[4],
        (Some(6), None | Some(6)) | (None, Some(6)) => &[6],
        (None, None) => &[4, 6],
        (Some(family @ (4 | 6)), _) => {
            return Err(format!("family: {} does not exist in IPv{family}", probe.protocol));
        }
        (Some(other), _) => return Err(format!("family: {other} is neither 4 nor 6")),
        (None, Some(_)) => &[],
    };
    let of = |peer: &Peer, family: u8| peer.addresses.iter().copied().find(|a| a.is_ipv4() == (family == 4));
    families.iter().find_map(|family| of(from, *family).zip(of(to, *family))).ok_or_else(|| {
        let wanted = match families {
            [4] => "an IPv4 address",
            [6] => "an IPv6 address",
            _ => "an address of one family",
        };
        format!("family: {} and {} do not both have {wanted}", probe.from, probe.to)
    })
}

impl Question {
    /// Puts the legs' decisions together. `judge` returns `None` for an endpoint without a table, which is closed.
    pub fn answer(
        &self,
        mut judge: impl FnMut(&Leg, Direction, &PacketTuple) -> Option<(Verdict, Attribution)>,
    ) -> Answer {
        let mut reason = self.note;
        let mut judged = |leg: &Option<Leg>, direction| {
            let leg = leg.as_ref()?;
            Some(match judge(leg, direction, &self.packet) {
                Some((verdict, attribution)) => LegAnswer { verdict, decider: Decider::from(&attribution) },
                None => {
                    reason = Some("no_policy_yet: the pod is closed until its policy is in force");
                    LegAnswer { verdict: Verdict::Deny, decider: Decider { rule: -1, ..Decider::default() } }
                }
            })
        };
        let egress = judged(&self.egress, Direction::Egress);
        let ingress = judged(&self.ingress, Direction::Ingress);
        let passes = |leg: &Option<LegAnswer>| leg.as_ref().is_none_or(|leg| leg.verdict == Verdict::Allow);
        let by_policy = passes(&egress) && passes(&ingress);
        if by_policy && self.host_refused {
            reason = Some("endpoint_to_host: defaultEndpointToHostAction is Drop");
        }
        let verdict = if by_policy && !self.host_refused { Verdict::Allow } else { Verdict::Deny };
        Answer { verdict, reason, egress, ingress }
    }
}
