//! Brings keys, plan and publication into order, again and again: what is missing is done next, and nothing is waited for.
//!
//! ```text
//!  keys kept? ─▶ (a stale key of ours is published, and hosts encrypt? take it away first) ─▶ plan ─▶ publish, once the keys are kept
//!     ▲                                                                                        │
//!     └──────────────── rotation, a step at a time ◀── our Node says what we want ◀────────────┘
//! ```
//!
//! The order is what makes it safe. A key is kept before it is published, so a restart never takes it away from peers that know it. It
//! is listened for before it is published, so nobody begins with a key that is refused. And where nodes' own packets are encrypted, a
//! published key that is not ours any more is taken away before anything else: until then peers seal for it, and this node could not
//! hear the API server (policy model 25.8).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use margay_control::kubernetes::NodeEvent;
use margay_control::{Problem, Severity};
use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan};
use margay_core::tunnel::{LARGEST, PublicKey};
use margay_policy_engine::model::{Encryption, Model};

use super::Family;
use super::dumps;
use super::keeper::{Annotations, Keeper, Kept};
use super::keys::{Ring, in_base64};
use super::plan::{self, Finding, PeerIds, Planned};
use super::report::{KeyReport, PeerReport, TunnelReport, WireguardReport};
use super::rotation::{self, Facts};
use super::seen::{KeyChange, Seen};

/// How long a change of key that was not announced stays in status.
const SHOWN: u64 = 3_600;
/// Name of this part in problems.
const SOURCE: &str = "encryption";

/// What is to be done with the state of things.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// For the workers.
    pub plan: Arc<EncryptionPlan>,
    /// Addresses that this node should have for its own packets to remote pods.
    pub interface: Vec<IpAddr>,
    /// Addresses of nodes to which this node's own packets go through the packet path.
    pub hosts: BTreeSet<IpAddr>,
    /// Largest packet of pods where the uplink takes so much; `None` where nothing is encrypted.
    pub pod_mtu: Option<u32>,
    /// What its owner should know.
    pub problems: Vec<Problem>,
    /// Nothing is under way that nobody tells of.
    pub is_settled: bool,
    /// What `margay wireguard` shows, without what only workers know.
    pub report: WireguardReport,
}

/// See the module.
pub struct Conductor {
    node: String,
    keeper: Box<dyn Keeper>,
    seen: Seen,
    ids: PeerIds,
    ring: Option<Ring>,
    /// The published key was looked at, and is ours or gone.
    is_clear: bool,
    plan: Arc<EncryptionPlan>,
    /// A plan with our keys was handed out before.
    listens: bool,
    /// Changes of key that were not announced, with their time.
    changes: Vec<(u64, KeyChange)>,
    /// Events that were told.
    said: BTreeSet<NodeEvent>,
    /// Why a new key was made.
    remade: Option<String>,
    dumps: Option<Result<(), String>>,
}

impl Conductor {
    /// Returns one that has done nothing yet.
    pub fn new(node: &str, keeper: Box<dyn Keeper>, seen: Seen) -> Self {
        Self {
            node: node.to_owned(),
            keeper,
            seen,
            ids: PeerIds::default(),
            ring: None,
            is_clear: false,
            plan: Arc::default(),
            listens: false,
            changes: Vec::new(),
            said: BTreeSet::new(),
            remade: None,
            dumps: None,
        }
    }

    /// Does what is due. `now`: seconds since 1970. `speaks_under`: whether a session stands that was begun with that key of ours.
    /// `uplink_mtu`: the smallest of the uplinks.
    pub fn settle(
        &mut self,
        model: &Model,
        now: u64,
        speaks_under: &dyn Fn(PublicKey) -> bool,
        uplink_mtu: u32,
    ) -> Outcome {
        let settings = Encryption::of_node(model, &self.node);
        let on: Vec<Family> =
            Family::ALL.into_iter().filter(|family| plan::is_on(model, &self.node, *family)).collect();
        let there = self.annotations(model);
        let mut troubles = Vec::new();
        if on.is_empty() {
            // What was published is taken away (policy model 25.9); the keys are kept for another time.
            if !there.is_empty() || self.listens {
                self.keeper.publish(&Annotations::new(), &there);
            }
            self.listens = false;
            self.is_clear = there.is_empty();
        } else {
            troubles.extend(self.have_keys(now));
        }
        let is_stale = self.ring.as_ref().is_some_and(|ring| has_stale(ring, &on, &there));
        let may_speak = self.is_clear || !settings.host || !is_stale;
        if !may_speak {
            self.keeper.publish(&Annotations::new(), &there);
            troubles.push(
                "the published key is not ours any more: it is taken away before encryption begins"
                    .to_owned(),
            );
        } else if self.ring.is_some() {
            self.is_clear = true;
        }
        let wanted = self.wanted(model, &on);
        if may_speak && self.listens {
            troubles.extend(self.rotate(&settings, &on, now, wanted == there, speaks_under));
        }
        let ring = self.ring.as_ref().filter(|_| may_speak);
        let planned = plan::plan(model, &self.node, ring, &mut self.ids);
        // First listened for, then published: with the plan before this one the workers listen.
        if may_speak && self.listens && self.keeper.is_stored() {
            let wanted = self.wanted(model, &on);
            self.keeper.publish(&wanted, &there);
        }
        self.listens = planned.plan.v4.is_some() || planned.plan.v6.is_some();
        self.notice_changes(model, &planned, now);
        troubles.extend(self.keeper.troubles());
        let is_settled = troubles.is_empty()
            && self.wanted(model, &on) == there
            && (on.is_empty() || self.keeper.is_stored());
        let outcome = self.outcome(&settings, planned, troubles, now, uplink_mtu);
        Outcome { is_settled, ..outcome }
    }

    /// Returns those annotations of ours that our Node has.
    fn annotations(&self, model: &Model) -> Annotations {
        let Some(node) = model.nodes.get(&self.node) else { return Annotations::new() };
        let found = super::annotations()
            .filter_map(|name| Some((name.to_owned(), node.annotations.get(name)?.clone())));
        found.collect()
    }

    /// Returns those that it should have.
    fn wanted(&self, model: &Model, on: &[Family]) -> Annotations {
        let mut wanted = Annotations::new();
        let (Some(ring), Some(node)) = (&self.ring, model.nodes.get(&self.node)) else { return wanted };
        for family in on {
            let keys: Vec<String> = ring.of(*family).all().map(|key| in_base64(key.public())).collect();
            wanted.insert(family.key_annotation().to_owned(), keys[0].clone());
            wanted.insert(family.keys_annotation().to_owned(), keys.join(","));
            let address = plan::interface_address(node, *family);
            wanted
                .extend(address.map(|address| (family.address_annotation().to_owned(), address.to_string())));
        }
        wanted
    }

    /// Reads our keys, or makes them; returns what is in the way.
    fn have_keys(&mut self, now: u64) -> Option<String> {
        if self.ring.is_some() {
            return None;
        }
        // Before there is anything to be found in a dump.
        if let Err(error) = self.dumps.get_or_insert_with(dumps::turn_off) {
            tracing::warn!(error = error.as_str(), "a core dump of the agent would have keys in it");
        }
        match self.keeper.load() {
            Kept::Pending => {
                return Some("this node's keys were not read yet: nothing is encrypted so far".to_owned());
            }
            Kept::Refused(reason) => return Some(format!("this node's keys cannot be used: {reason}")),
            Kept::Keys(ring) => self.ring = Some(*ring),
            kept @ (Kept::Nothing | Kept::Useless(_)) => {
                let ring = match Ring::make(now) {
                    Ok(ring) => ring,
                    Err(error) => return Some(error.to_string()),
                };
                if let Kept::Useless(reason) = kept {
                    tracing::warn!(reason, "the kept keys are of no use here: new ones are made");
                    self.remade = Some(format!(
                        "new keys were made because the kept ones are of no use here: {reason}"
                    ));
                }
                if let Err(error) = self.keeper.store(&ring) {
                    return Some(format!("new keys cannot be kept, so none are used: {error}"));
                }
                self.ring = Some(ring);
            }
        }
        None
    }

    /// Takes the step of rotation that is due in each family; returns what is in the way.
    fn rotate(
        &mut self,
        settings: &Encryption,
        on: &[Family],
        now: u64,
        is_published: bool,
        speaks_under: &dyn Fn(PublicKey) -> bool,
    ) -> Option<String> {
        if !self.keeper.is_stored() {
            return None;
        }
        let mut ring = self.ring.clone()?;
        let mut changed = false;
        for family in on {
            let keys = ring.of_mut(*family);
            let speaks_under_previous = keys.previous.as_ref().is_some_and(|key| speaks_under(key.public()));
            let facts = Facts { is_published, speaks_under_previous };
            match rotation::step(keys, now, settings.rotation, facts) {
                Ok(is_step) => changed |= is_step,
                Err(error) => return Some(error.to_string()),
            }
        }
        if changed {
            if let Err(error) = self.keeper.store(&ring) {
                return Some(format!("the next key cannot be kept, so it is not used: {error}"));
            }
            tracing::info!("a step of key rotation");
            self.ring = Some(ring);
        }
        None
    }

    fn notice_changes(&mut self, model: &Model, planned: &Planned, now: u64) {
        let is_node = |name: &str| model.nodes.contains_key(name);
        let mut published = planned.published.clone();
        // Our own too: the one agent that writes Events may be this one.
        for family in [(Family::V4, &planned.plan.v4), (Family::V6, &planned.plan.v6)] {
            let (family, Some(plan)) = family else { continue };
            let keys = plan.own.keys.iter().map(|key| key.public()).collect();
            published.insert((self.node.clone(), family), keys);
        }
        for change in self.seen.follow(&published, is_node, now) {
            let KeyChange { node, family, key, was_announced } = &change;
            let key = in_base64(*key);
            let (reason, message) = if *was_announced {
                ("WireGuardKeyRotated", format!("the {family} key is now {key}, as it was announced"))
            } else {
                let message = format!(
                    "the {family} key is now {key}, and nothing announced it: the node was set up anew, or somebody else speaks for it"
                );
                ("WireGuardKeyChanged", message)
            };
            self.keeper.tell(NodeEvent {
                node: node.clone(),
                reason: reason.to_owned(),
                message,
                is_warning: !was_announced,
            });
            if !was_announced && change.node != self.node {
                self.changes.push((now, change));
            }
        }
        self.changes.retain(|(at, _)| now.saturating_sub(*at) < SHOWN);
        for finding in &planned.findings {
            if let Finding::SharedKey { nodes, .. } = finding {
                let message = finding.to_string();
                for node in nodes {
                    let event = NodeEvent {
                        node: node.clone(),
                        reason: "WireGuardKeyShared".to_owned(),
                        message: message.clone(),
                        is_warning: true,
                    };
                    if self.said.insert(event.clone()) {
                        self.keeper.tell(event);
                    }
                }
            }
        }
    }

    fn outcome(
        &mut self,
        settings: &Encryption,
        planned: Planned,
        troubles: Vec<String>,
        now: u64,
        uplink_mtu: u32,
    ) -> Outcome {
        let Planned { mut plan, findings, interface, hosts, .. } = planned;
        if is_same(&plan, &self.plan) {
            plan.generation = self.plan.generation;
        } else {
            plan.generation = self.plan.generation + 1;
            self.plan = Arc::new(plan.clone());
        }
        let mtu_of = |family: Family| {
            let told = u32::from(plan::of_family(settings, family).mtu);
            // What the packet path goes by, whatever was told.
            let fits = uplink_mtu.saturating_sub(family.overhead()).min(LARGEST);
            if told > 0 { told.min(fits) } else { fits }
        };
        let is_on = |family: &Family| plan::of_family(settings, *family).enabled == Some(true);
        let families: Vec<(Family, &FamilyPlan)> = [(Family::V4, &plan.v4), (Family::V6, &plan.v6)]
            .into_iter()
            .filter_map(|(family, plan)| Some((family, plan.as_ref()?)))
            .collect();
        let pod_mtu = families.iter().map(|(family, _)| mtu_of(*family)).min();
        let mut sentences: Vec<String> = findings.iter().map(ToString::to_string).collect();
        sentences.extend(troubles);
        sentences.extend(self.remade.clone());
        if let Some(Err(error)) = &self.dumps {
            sentences.push(format!("a core dump of the agent would have keys in it: {error}"));
        }
        sentences.extend(self.changes.iter().map(|(at, change)| {
            format!(
                "{}: node {} uses another key since {} minutes and did not announce it; make sure that it was set up anew",
                change.family,
                change.node,
                now.saturating_sub(*at) / 60
            )
        }));
        let mode = match (Family::ALL.iter().any(is_on), settings.strict) {
            (false, _) => "off",
            (true, false) => "Permissive",
            (true, true) => "Strict",
        };
        let report = WireguardReport {
            mode: mode.to_owned(),
            host: mode != "off" && settings.host,
            metrics: settings.metrics,
            pod_mtu: pod_mtu.unwrap_or_default(),
            tunnels: families.iter().map(|(family, plan)| self.tunnel(*family, plan, &interface)).collect(),
            findings: sentences.clone(),
        };
        let problems = sentences.iter().map(|text| Problem::of_file(SOURCE, Severity::Warning, text.clone()));
        Outcome {
            plan: Arc::clone(&self.plan),
            interface,
            hosts,
            pod_mtu,
            problems: problems.collect(),
            is_settled: false,
            report,
        }
    }

    fn tunnel(&self, family: Family, plan: &FamilyPlan, interface: &[IpAddr]) -> TunnelReport {
        let mut keys = Vec::new();
        if let Some(ring) = &self.ring {
            let ring = ring.of(family);
            let uses = [
                ("current", Some(&ring.current)),
                ("next", ring.next.as_ref()),
                ("previous", ring.previous.as_ref()),
            ];
            keys.extend(uses.into_iter().filter_map(|(state, key)| {
                let key = key?;
                Some(KeyReport {
                    public_key: in_base64(key.public()),
                    state: state.to_owned(),
                    made: key.made,
                })
            }));
        }
        let peers = plan.peers.iter().map(|peer| PeerReport {
            node: peer.node.clone(),
            public_keys: peer.keys.iter().map(|key| in_base64(*key)).collect(),
            endpoint: peer.endpoint,
            allowed: peer.allowed.clone(),
            handshake_seconds: None,
            received_bytes: 0,
            sent_bytes: 0,
            keepalive: peer.keepalive,
            key_since: self.seen.since(&peer.node, family),
        });
        TunnelReport {
            family,
            public_key: keys.first().map(|key| key.public_key.clone()).unwrap_or_default(),
            listening_port: plan.own.port,
            address: plan.own.address,
            interface_address: interface.iter().find(|address| family.has(address)).copied(),
            keys,
            peers: peers.collect(),
        }
    }
}

/// Whether a key is published that is none of ours.
fn has_stale(ring: &Ring, on: &[Family], there: &Annotations) -> bool {
    on.iter().any(|family| {
        there
            .get(family.key_annotation())
            .is_some_and(|published| !ring.of(*family).all().any(|key| in_base64(key.public()) == *published))
    })
}

/// Whether two plans say the same, whatever their generations.
fn is_same(one: &EncryptionPlan, other: &EncryptionPlan) -> bool {
    let of = |plan: &Option<FamilyPlan>| {
        let plan = plan.as_ref()?;
        let keys: Vec<PublicKey> = plan.own.keys.iter().map(|key| key.public()).collect();
        Some((keys, plan.own.port, plan.own.address, plan.own.mtu, plan.peers.clone()))
    };
    of(&one.v4) == of(&other.v4)
        && of(&one.v6) == of(&other.v6)
        && (&one.selected, &one.required) == (&other.selected, &other.required)
}
