//! From a cluster's state and our keys to an [`EncryptionPlan`]: a function, so two agents that see one cluster have plans that fit.
//!
//! ```text
//!  Node of another: key? ─▶ address? ─▶ key of nobody else's? ─▶ not told to be without? ─▶ a peer
//!                                                                                           │
//!  its pod networks, less what pools leave out, less what another Node claims too ──────────┴▶ allowed
//!  pools, and pod networks in none ─▶ required (Strict)      our own addresses, pools ─▶ selected
//! ```
//!
//! Whose key two nodes have is nobody's (policy model 25.4). Whose network two nodes claim is nobody's either: a Node object cannot take
//! addresses of another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{PeerId, PublicKey};
use margay_policy_engine::model::{Encryption, EncryptionFamily, Model, Node};

use super::Family;
use super::keys::{OwnKey, Ring, from_base64};
use super::nets;

/// Keys of one node that are looked at: the one in use, one to come, one that was.
const MOST_KEYS: usize = 3;
/// Names that a finding lists.
const NAMED: usize = 5;

/// Numbers of peers by the names of their nodes: the same for as long as the agent lives.
#[derive(Debug, Default)]
pub struct PeerIds {
    known: BTreeMap<String, PeerId>,
    /// Numbers of nodes that are gone.
    free: BTreeSet<u32>,
}

impl PeerIds {
    fn of(&mut self, node: &str) -> PeerId {
        if let Some(known) = self.known.get(node) {
            return *known;
        }
        // The number of a node that is gone is taken again: the protocol has room for 2^24. The others are those below their count.
        let next = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        let id = PeerId(self.free.pop_first().unwrap_or(next));
        self.known.insert(node.to_owned(), id);
        id
    }

    fn forget_all_but(&mut self, nodes: &BTreeMap<String, std::sync::Arc<Node>>) {
        let gone = self.known.extract_if(.., |name, _| !nodes.contains_key(name));
        self.free.extend(gone.map(|(_, id)| id.0));
    }
}

/// Something about encryption that its owner should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Nodes that share a key.
    SharedKey {
        /// Which tunnel.
        family: Family,
        /// The nodes.
        nodes: Vec<String>,
    },
    /// Nodes that are told to encrypt and have no key.
    NoKey {
        /// Which tunnel.
        family: Family,
        /// The nodes.
        nodes: Vec<String>,
        /// Packets for them are dropped, not sent in clear.
        strict: bool,
    },
    /// An annotation that is no key.
    NotAKey {
        /// Which tunnel.
        family: Family,
        /// The node.
        node: String,
    },
    /// A network that several nodes claim.
    Contested {
        /// The network.
        net: IpNet,
        /// Who claims it.
        node: String,
    },
    /// We are told to encrypt, and our Node has no address of the family.
    NoAddress {
        /// Which tunnel.
        family: Family,
    },
    /// Strict knows pods' networks from Nodes alone.
    NoPools,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |nodes: &[String]| {
            let mut text = nodes.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            if nodes.len() > NAMED {
                text.push_str(&format!(" and {} more", nodes.len() - NAMED));
            }
            text
        };
        match self {
            Self::SharedKey { family, nodes } => write!(
                f,
                "{family}: nodes {} publish one WireGuard key, so none of them is a peer and nothing to them is encrypted; remove the \
                 kept keys on all but one of them, and new ones are made",
                listed(nodes)
            ),
            Self::NoKey { family, nodes, strict: false } => write!(
                f,
                "{family}: no WireGuard key from {}: pods there are spoken to in clear; see what their agents say, or name them in \
                 encryptionExemptNodes where it is meant so",
                listed(nodes)
            ),
            Self::NoKey { family, nodes, strict: true } => write!(
                f,
                "{family}: no WireGuard key from {}: packets between pods there and here are dropped (encryptionMode: Strict); see what \
                 their agents say, or name them in encryptionExemptNodes",
                listed(nodes)
            ),
            Self::NotAKey { family, node } => write!(
                f,
                "{family}: node {node} has an annotation {} that is no key: it counts as none; its agent writes the right one",
                family.key_annotation()
            ),
            Self::Contested { net, node } => write!(
                f,
                "{net} of node {node} overlaps with a network of another node: no peer speaks for it; correct spec.podCIDRs"
            ),
            Self::NoAddress { family } => write!(
                f,
                "{family}: encryption is on, and the Node of this agent has no {family} address of type InternalIP; nothing of the \
                 family is encrypted"
            ),
            Self::NoPools => f.write_str(
                "encryptionMode is Strict, and no IPPool says which addresses pods have: packets for a node that was just added are held \
                 back only once its Node is known; make an IPPool with the cluster's pod network",
            ),
        }
    }
}

/// What a cluster comes to.
#[derive(Debug)]
pub struct Planned {
    /// For the workers; its generation is not set.
    pub plan: EncryptionPlan,
    /// For people.
    pub findings: BTreeSet<Finding>,
    /// Addresses that this node's own packets for remote pods come from, to be assigned to it, and published.
    pub interface: Vec<IpAddr>,
    /// Addresses of nodes to which the host's own packets are encrypted.
    pub hosts: BTreeSet<IpAddr>,
    /// Keys that other nodes publish, the one in use first.
    pub published: BTreeMap<(String, Family), Vec<PublicKey>>,
}

/// Returns whether encryption of a family is on for `node` and can be.
pub fn is_on(model: &Model, node: &str, family: Family) -> bool {
    let settings = Encryption::of_node(model, node);
    of_family(&settings, family).enabled == Some(true)
        && model.nodes.get(node).is_some_and(|node| address_of(node, family).is_some())
}

/// Returns the settings of a family.
pub fn of_family(settings: &Encryption, family: Family) -> &EncryptionFamily {
    match family {
        Family::V4 => &settings.v4,
        Family::V6 => &settings.v6,
    }
}

/// Returns the first InternalIP of a family.
fn address_of(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().take(node.internal_addresses).find(|address| family.has(address)).copied()
}

/// Returns the address that a node's own packets for remote pods have: the first of its first pod network, which is given to no pod.
pub fn interface_address(node: &Node, family: Family) -> Option<IpAddr> {
    let net = node.pod_cidrs.iter().find(|net| family.has(&net.addr()))?;
    (net.prefix_len() < net.max_prefix_len()).then(|| net.network())
}

/// Returns the keys that a Node publishes, the one in use first; `Err` for an annotation that is no key.
pub fn keys_of(node: &Node, family: Family) -> Result<Vec<PublicKey>, ()> {
    let Some(text) = node.annotations.get(family.key_annotation()).filter(|text| !text.is_empty()) else {
        return Ok(Vec::new());
    };
    let mut keys = vec![from_base64(text).ok_or(())?];
    let others = node.annotations.get(family.keys_annotation()).map(String::as_str).unwrap_or_default();
    for key in others.split(',').filter_map(from_base64) {
        if keys.len() < MOST_KEYS && !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Returns what encryption on `own` is to be. `ring`: our keys; without them there is no tunnel, and what Strict requires holds all the
/// same.
pub fn plan(model: &Model, own: &str, ring: Option<&Ring>, ids: &mut PeerIds) -> Planned {
    ids.forget_all_but(&model.nodes);
    let mut planned = Planned {
        plan: EncryptionPlan::default(),
        findings: BTreeSet::new(),
        interface: Vec::new(),
        hosts: BTreeSet::new(),
        published: BTreeMap::new(),
    };
    let cluster = Cluster::of(model, own, &mut planned);
    for family in Family::ALL {
        if of_family(&cluster.settings, family).enabled != Some(true) {
            continue;
        }
        // Strict holds also where nothing can be sealed yet, such as before our own Node is known.
        cluster.select(family, &mut planned);
        if cluster.settings.strict {
            cluster.require(family, &mut planned);
        }
        if !is_on(model, own, family) {
            planned.interface.retain(|address| !family.has(address));
            let others_have =
                model.nodes.values().any(|node| node.name != own && address_of(node, family).is_some());
            if model.nodes.contains_key(own) && others_have {
                planned.findings.insert(Finding::NoAddress { family });
            }
            continue;
        }
        let found = ring.and_then(|ring| cluster.family(family, ring, ids, &mut planned));
        match family {
            Family::V4 => planned.plan.v4 = found,
            Family::V6 => planned.plan.v6 = found,
        }
    }
    planned
}

/// What both families are planned from.
struct Cluster<'a> {
    model: &'a Model,
    own: &'a str,
    settings: Encryption,
    pools: Vec<(IpNet, bool)>,
    /// Pod networks, and who claims them.
    claims: Vec<(IpNet, &'a str)>,
    contested: BTreeSet<(IpNet, &'a str)>,
    /// How many nodes say that an address is theirs.
    addresses: BTreeMap<IpAddr, usize>,
}

impl<'a> Cluster<'a> {
    fn of(model: &'a Model, own: &'a str, planned: &mut Planned) -> Self {
        let claims: Vec<(IpNet, &str)> = model
            .nodes
            .values()
            .flat_map(|node| node.pod_cidrs.iter().map(|net| (net.trunc(), node.name.as_str())))
            .collect();
        let contested = nets::contested(&claims);
        let mut addresses = BTreeMap::new();
        for node in model.nodes.values() {
            let distinct: BTreeSet<IpAddr> = node.addresses.iter().copied().collect();
            distinct.into_iter().for_each(|address| *addresses.entry(address).or_default() += 1);
        }
        let settings = Encryption::of_node(model, own);
        if settings.v4.enabled == Some(true) || settings.v6.enabled == Some(true) {
            let findings = contested
                .iter()
                .map(|(net, node)| Finding::Contested { net: *net, node: (*node).to_owned() });
            planned.findings.extend(findings);
        }
        Self { model, own, settings, pools: model.encryption_of_pools(), claims, contested, addresses }
    }

    /// Which of our own addresses are encrypted.
    fn select(&self, family: Family, planned: &mut Planned) {
        let Some(own) = self.model.nodes.get(self.own) else { return };
        let of_family = self.pools.iter().filter(|(net, _)| family.has(&net.addr()));
        if of_family.clone().any(|(_, is_selected)| !is_selected) {
            planned.plan.selected.extend(of_family.copied());
        }
        if !self.settings.host {
            let addresses = own.addresses.iter().filter(|address| family.has(address));
            planned.plan.selected.extend(addresses.map(|address| (nets::of(*address), false)));
        }
        let interface = interface_address(own, family);
        planned.interface.extend(interface.filter(|address| {
            nets::longest(&self.pools, nets::of(*address)).unwrap_or(true)
                && !self.contested.iter().any(|(net, node)| *node == self.own && net.contains(address))
        }));
    }

    /// What must not be spoken to in clear.
    fn require(&self, family: Family, planned: &mut Planned) {
        let is_exempt =
            |node: &Node| self.settings.exempt.as_ref().is_some_and(|exempt| exempt.matches(&node.labels));
        if self.model.nodes.get(self.own).is_some_and(|own| is_exempt(own)) {
            return;
        }
        let mut required: BTreeMap<IpNet, bool> =
            self.pools.iter().filter(|(net, _)| family.has(&net.addr())).copied().collect();
        if required.is_empty() {
            planned.findings.insert(Finding::NoPools);
        }
        for node in self.model.nodes.values() {
            for net in node.pod_cidrs.iter().filter(|net| family.has(&net.addr())) {
                // Whoever claims what is somebody else's frees nobody's packets from being encrypted.
                if is_exempt(node) && !self.contested.contains(&(net.trunc(), node.name.as_str())) {
                    required.insert(net.trunc(), false);
                } else if nets::longest(&self.pools, *net).is_none() {
                    required.entry(net.trunc()).or_insert(true);
                }
            }
        }
        planned.plan.required.extend(required);
    }

    fn family(
        &self,
        family: Family,
        ring: &Ring,
        ids: &mut PeerIds,
        planned: &mut Planned,
    ) -> Option<FamilyPlan> {
        let own = self.model.nodes.get(self.own)?;
        let settings = of_family(&self.settings, family);
        let keys = ring.of(family);
        let end = OwnEnd {
            keys: keys.all().map(OwnKey::private).collect(),
            port: settings.port,
            address: address_of(own, family)?,
            mtu: settings.mtu,
        };
        let mut holders: BTreeMap<PublicKey, BTreeSet<&str>> = BTreeMap::new();
        for key in keys.all() {
            holders.entry(key.public()).or_default().insert(self.own);
        }
        let mut published: BTreeMap<&str, Vec<PublicKey>> = BTreeMap::new();
        let mut without = Vec::new();
        for node in self.model.nodes.values().filter(|node| node.name != self.own) {
            let theirs = Encryption::of_node(self.model, &node.name);
            let enabled = of_family(&theirs, family).enabled;
            let found = keys_of(node, family).unwrap_or_else(|()| {
                planned.findings.insert(Finding::NotAKey { family, node: node.name.clone() });
                Vec::new()
            });
            for key in &found {
                holders.entry(*key).or_default().insert(&node.name);
            }
            // Also where it is meant so: whoever reads the status knows who is spoken to in clear.
            let has_none = found.is_empty() || enabled == Some(false);
            if has_none && address_of(node, family).is_some() {
                let is_exempt =
                    self.settings.exempt.as_ref().is_some_and(|exempt| exempt.matches(&node.labels));
                without.extend((!is_exempt).then(|| node.name.clone()));
            }
            // Told to be without: its annotation is on its way out.
            if !found.is_empty() && enabled != Some(false) {
                published.insert(&node.name, found);
            }
        }
        if !without.is_empty() {
            let strict = self.settings.strict;
            planned.findings.insert(Finding::NoKey { family, nodes: without, strict });
        }
        let mut sharing: BTreeSet<&str> = BTreeSet::new();
        for nodes in holders.values().filter(|nodes| nodes.len() > 1) {
            sharing.extend(nodes);
            let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
            planned.findings.insert(Finding::SharedKey { family, nodes });
        }
        planned
            .published
            .extend(published.iter().map(|(name, keys)| (((*name).to_owned(), family), keys.clone())));
        // Where our own key is somebody else's too, nobody takes us for a peer.
        let is_ours_shared = sharing.contains(self.own);
        published.retain(|name, _| !is_ours_shared && !sharing.contains(name));
        let mut peers = Vec::new();
        for (name, keys) in published {
            let Some(node) = self.model.nodes.get(name) else { continue };
            let Some(address) = address_of(node, family) else { continue };
            let (allowed, hosts) = self.allowed(node, family);
            planned.hosts.extend(hosts);
            peers.push(PeerPlan {
                id: ids.of(name),
                node: name.to_owned(),
                keys,
                endpoint: SocketAddr::new(address, settings.port),
                allowed,
                keepalive: self.settings.keepalive.map(|every| every.as_secs().clamp(1, 65_535) as u16),
            });
        }
        Some(FamilyPlan { own: end, peers })
    }

    /// Returns what a peer may speak for, and which of that are its own addresses.
    fn allowed(&self, node: &Node, family: Family) -> (Vec<IpNet>, Vec<IpAddr>) {
        let name = node.name.as_str();
        // A node that knows of pools' words leaves some in clear; another encrypts whatever its pods send.
        let knows_pools = node.annotations.contains_key(family.keys_annotation());
        let rules: &[(IpNet, bool)] = if knows_pools { &self.pools } else { &[] };
        let own_nets = node
            .pod_cidrs
            .iter()
            .map(IpNet::trunc)
            .filter(|net| family.has(&net.addr()) && !self.contested.contains(&(*net, name)));
        let mut allowed: BTreeSet<IpNet> = own_nets.flat_map(|net| nets::selected(net, rules)).collect();
        // Devices' addresses are of the pools (policy model 25.3), so a node cannot take one that is outside the cluster.
        let is_nobodys = |address: &IpAddr| {
            // First its own networks: they have the address of most nodes, and nothing is to be added then.
            !node.pod_cidrs.iter().any(|net| net.contains(address))
                && nets::longest(&self.pools, nets::of(*address)).is_some()
                && !self.claims.iter().any(|(net, _)| net.contains(address))
                && !self.addresses.contains_key(address)
        };
        let interface = |node: &Node| -> Option<IpAddr> {
            let text = node.annotations.get(family.address_annotation())?;
            text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
        };
        if let Some(address) = interface(node).filter(|address| family.has(address) && is_nobodys(address)) {
            let others = self.model.nodes.values().filter(|other| other.name != node.name);
            if !others.into_iter().any(|other| interface(other) == Some(address)) {
                allowed.insert(nets::of(address));
            }
        }
        let mut hosts = Vec::new();
        if self.settings.host && Encryption::of_node(self.model, name).host {
            let internal = node.addresses.iter().take(node.internal_addresses);
            hosts.extend(internal.copied().filter(|address| {
                family.has(address)
                    && self.addresses.get(address) == Some(&1)
                    && !self.claims.iter().any(|(net, _)| net.contains(address))
            }));
            allowed.extend(hosts.iter().map(|address| nets::of(*address)));
        }
        (allowed.into_iter().collect(), hosts)
    }
}
