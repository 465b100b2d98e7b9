//! Who a probe is about: the names of pods and nodes, and the addresses behind them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use margay_core::worker::EndpointToHost;
use margay_policy_engine::engine::{HostInterface, LocalEndpoint};
use margay_policy_engine::model::{EndpointToHostAction, Model, NamespacedName, Settings};
use margay_policy_engine::packet::{EndpointId, HostId, PacketTuple};
use margay_policy_engine::walk::is_discovery;

use super::interfaces::{Interfaces, Wanted};
use super::probe::Probe;
pub use super::question::{Answer, Leg, Question};
use super::question::{Route, Stop};

/// Source port of a probe that names none: the first of the ports that clients take for a while (RFC 6335 §6).
const EPHEMERAL: u16 = 49_152;
/// The parameter by which pods take packets that nothing tracks (policy model 13.2).
const INVALID_CHECK: &str = "disableConntrackInvalidCheck";

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
    interfaces: Interfaces,
    hosts: HostSettings,
}

/// What configuration says about a node's own part in policy.
#[derive(Debug)]
struct HostSettings {
    default: HostSetting,
    by_node: HashMap<String, HostSetting>,
}

#[derive(Clone, Copy, Debug)]
struct HostSetting {
    endpoint_to_host: EndpointToHostAction,
    pods_take_untracked: bool,
}

impl HostSettings {
    /// What was told outside of the Model comes before FelixConfiguration.
    fn new(model: &Model, told: Option<EndpointToHost>) -> Self {
        let told = told.map(|told| match told {
            EndpointToHost::Drop => EndpointToHostAction::Drop,
            EndpointToHost::Accept => EndpointToHostAction::Accept,
        });
        let of_node = |node: &str| HostSetting {
            endpoint_to_host: told
                .or_else(|| Settings::of_node(model, node).endpoint_to_host)
                .unwrap_or_default(),
            pods_take_untracked: model.parameter_of(node, INVALID_CHECK) == Some("true"),
        };
        let nodes = model.felix_configurations.keys().filter_map(|name| name.strip_prefix("node."));
        let by_node = nodes.map(|node| (node.to_owned(), of_node(node))).collect();
        Self { default: of_node(""), by_node }
    }

    fn of(&self, node: Option<&str>) -> HostSetting {
        node.and_then(|node| self.by_node.get(node)).copied().unwrap_or(self.default)
    }
}

impl World {
    /// Learns the names of `model`. Pods in `locals` have the addresses given there; the others those of their status. Host endpoints
    /// are asked where `interfaces` has the interface that they govern. Without `endpoint_to_host` FelixConfiguration says what a pod may
    /// do to its own node.
    pub fn new(
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        interfaces: &BTreeMap<HostId, HostInterface>,
        endpoint_to_host: Option<EndpointToHost>,
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
        // An address that a host endpoint expects is one of its node's, although the Node does not list it.
        for endpoint in model.host_endpoints.values().filter(|found| model.nodes.contains_key(&found.node)) {
            for address in &endpoint.expected_ips {
                let place = || Place::Host { node: endpoint.node.clone() };
                by_address.entry(*address).or_insert_with(place);
            }
        }
        let interfaces = Interfaces::new(model, interfaces.values());
        let hosts = HostSettings::new(model, endpoint_to_host);
        Self { named, by_address, interfaces, hosts }
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
    pub fn question(&self, probe: &Probe) -> Result<Question<'_>, String> {
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
        let addressed_to = addressed_to(probe, destination)?;
        let mut question =
            Question { packet, egress: None, ingress: None, host_refused: false, note: None, route: None };
        match (&from.place, &to.place) {
            (Place::Pod { key: a, .. }, Place::Pod { key: b, .. }) if a == b => {
                question.note = Some("same_pod: never leaves the pod's own network");
            }
            (Place::Pod { node: Some(own), .. }, Place::Host { node }) if own == node => {
                if is_discovery(&packet) {
                    question.note = Some("discovery: a node answers it whatever policy says");
                } else {
                    let action = self.hosts.of(Some(own)).endpoint_to_host;
                    question.egress = leg(&from.place);
                    question.host_refused = action == EndpointToHostAction::Drop;
                }
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
        if !self.interfaces.is_empty() {
            question.route = Some(self.route(probe, &packet, addressed_to, (&from.place, &to.place)));
        }
        Ok(question)
    }

    /// Returns the way of the packet between two places.
    fn route(
        &self,
        probe: &Probe,
        packet: &PacketTuple,
        addressed_to: Option<(IpAddr, Option<u16>)>,
        (from, to): (&Place, &Place),
    ) -> Route<'_> {
        let through = addressed_to.and_then(|(address, _)| self.by_address.get(&address));
        let through = through.filter(|_| *from == Place::Outside).and_then(|place| match place {
            Place::Host { node } => Some(node.as_str()),
            Place::Pod { .. } | Place::Outside => None,
        });
        let nodes = [from.node(), through, to.node()];
        let wanted = match &probe.interface {
            None => Wanted::Anything,
            Some(name) if nodes.iter().flatten().any(|node| self.interfaces.has(node, name)) => {
                Wanted::Named(name)
            }
            Some(_) => Wanted::Uplink,
        };
        let mut concerned: Vec<IpAddr> = addressed_to.into_iter().map(|(address, _)| address).collect();
        concerned.extend([packet.destination, packet.source]);
        let crossing = |node: &str| self.interfaces.crossing(node, wanted, &concerned);
        let stop = |place: &Place| match place {
            Place::Pod { key, node, endpoint } => {
                Stop::Pod(key.clone(), *endpoint, node.as_deref().map(crossing))
            }
            Place::Host { node } => Stop::Host(crossing(node)),
            Place::Outside => Stop::Outside,
        };
        Route {
            interfaces: &self.interfaces,
            from: stop(from),
            to: stop(to),
            through: through.map(crossing),
            addressed_to,
            endpoint_to_host: self.hosts.of(from.node()).endpoint_to_host,
            pods_take_untracked: self.hosts.of(to.node()).pods_take_untracked,
        }
    }
}

impl Place {
    fn node(&self) -> Option<&str> {
        match self {
            Self::Pod { node, .. } => node.as_deref(),
            Self::Host { node } => Some(node),
            Self::Outside => None,
        }
    }
}

/// Returns the destination before translation.
fn addressed_to(probe: &Probe, destination: IpAddr) -> Result<Option<(IpAddr, Option<u16>)>, String> {
    let Some(via) = &probe.via else { return Ok(None) };
    let (address, protocol) = (via.address, probe.protocol);
    if address.is_ipv4() != destination.is_ipv4() {
        return Err(format!("via.address: {address} and {destination} are of different families"));
    }
    match via.port {
        None if protocol.has_ports() => Err(format!("via.port: {protocol} needs a destination port")),
        Some(_) if !protocol.has_ports() => Err(format!("via.port: {protocol} has no ports")),
        port => Ok(Some((address, port))),
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
