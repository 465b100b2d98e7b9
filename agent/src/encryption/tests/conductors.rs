//! Conductors of several nodes that read of each other: what is kept, published, begun with and said, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use margay_control::kubernetes::NodeEvent;
use margay_core::tunnel::PublicKey;
use margay_policy_engine::model::Model;

use super::super::conductor::{Conductor, Outcome};
use super::super::keeper::{Annotations, Keeper, Kept};
use super::super::keys::{Ring, in_base64};
use super::super::rotation::{ACCEPTED, ANNOUNCED};
use super::super::seen::Seen;
use super::{ON, change, felix, ip, node, peers};

/// What all nodes read of each other, and what was kept and said.
#[derive(Default)]
struct World {
    kept: BTreeMap<String, String>,
    published: BTreeMap<String, Annotations>,
    events: Vec<NodeEvent>,
    is_slow: bool,
}

struct FakeKeeper(String, Arc<Mutex<World>>);

impl Keeper for FakeKeeper {
    fn load(&mut self) -> Kept {
        let world = self.1.lock().unwrap();
        match world.kept.get(&self.0) {
            _ if world.is_slow => Kept::Pending,
            Some(text) if text == "other machine" => Kept::Useless("sealed on another machine".into()),
            Some(text) => Kept::Keys(Box::new(Ring::read(text).unwrap())),
            None => Kept::Nothing,
        }
    }

    fn store(&mut self, ring: &Ring) -> Result<(), String> {
        self.1.lock().unwrap().kept.insert(self.0.clone(), ring.write().to_string());
        Ok(())
    }

    fn is_stored(&mut self) -> bool {
        !self.1.lock().unwrap().is_slow
    }

    fn publish(&mut self, wanted: &Annotations, _: &Annotations) {
        self.1.lock().unwrap().published.insert(self.0.clone(), wanted.clone());
    }

    fn tell(&mut self, event: NodeEvent) {
        self.1.lock().unwrap().events.push(event);
    }

    fn troubles(&self) -> Vec<String> {
        Vec::new()
    }
}

struct Lab {
    model: Model,
    world: Arc<Mutex<World>>,
    folder: tempfile::TempDir,
    conductors: BTreeMap<String, Conductor>,
    now: u64,
    speaks: BTreeSet<PublicKey>,
}

impl Lab {
    fn new(nodes: u8, fields: &[(&str, &str)]) -> Self {
        let mut model = Model::default();
        felix(&mut model, "default", fields);
        let mut lab = Self {
            model,
            world: Arc::default(),
            folder: tempfile::tempdir().unwrap(),
            conductors: BTreeMap::new(),
            now: 1_000_000,
            speaks: BTreeSet::new(),
        };
        for number in 1..=nodes {
            lab.model.nodes.insert(format!("n{number}"), Arc::new(node(number)));
            lab.restart(&format!("n{number}"));
        }
        lab
    }

    fn restart(&mut self, name: &str) {
        let keeper = FakeKeeper(name.to_owned(), Arc::clone(&self.world));
        let seen = Seen::open(&self.folder.path().join(name));
        self.conductors.insert(name.to_owned(), Conductor::new(name, Box::new(keeper), seen));
    }

    fn settle(&mut self, name: &str) -> Outcome {
        self.settle_over(name, 1_500)
    }

    fn settle_over(&mut self, name: &str, uplink_mtu: u32) -> Outcome {
        let speaks = |key: PublicKey| self.speaks.contains(&key);
        self.conductors.get_mut(name).unwrap().settle(&self.model, self.now, &speaks, uplink_mtu)
    }

    /// Every node does what is due, and reads what the others published.
    fn round(&mut self) {
        let names: Vec<String> = self.conductors.keys().cloned().collect();
        for name in &names {
            self.settle(name);
        }
        let published = self.world.lock().unwrap().published.clone();
        for (name, annotations) in published {
            change(&mut self.model, &name, |node| node.annotations = annotations);
        }
        self.now += 1;
    }

    fn rounds(&mut self, count: usize) {
        (0..count).for_each(|_| self.round());
    }

    fn annotation(&self, name: &str, key: &str) -> Option<String> {
        self.model.nodes[name].annotations.get(key).cloned()
    }
}

const KEY: &str = "projectcalico.org/WireguardPublicKey";
const KEYS: &str = "margay/wireguard-keys";

#[test]
fn pm_25_3_a_key_is_kept_then_listened_for_then_published_and_survives_a_restart() {
    let mut lab = Lab::new(2, &ON[..1]);
    let first = lab.settle("n1");
    assert!(lab.world.lock().unwrap().kept.contains_key("n1"));
    assert!(first.plan.v4.is_some() && !lab.world.lock().unwrap().published.contains_key("n1"));
    lab.rounds(3);
    let key = lab.annotation("n1", KEY).unwrap();
    assert_eq!(
        lab.annotation("n1", "projectcalico.org/IPv4WireguardInterfaceAddr").as_deref(),
        Some("10.244.1.0")
    );
    assert_eq!(lab.annotation("n1", KEYS).as_ref(), Some(&key));
    assert_eq!(lab.annotation("n1", "projectcalico.org/WireguardPublicKeyV6"), None);
    let outcome = lab.settle("n2");
    assert_eq!((peers(&outcome.plan.v4), outcome.pod_mtu), (vec!["n1"], Some(1_440)));
    assert!(outcome.problems.is_empty(), "{:?}", outcome.problems);
    assert_eq!(lab.settle_over("n2", 9_000).pod_mtu, Some(3_700), "what is sealed fits one frame");
    let generation = outcome.plan.generation;
    assert_eq!(lab.settle("n2").plan.generation, generation, "nothing changed");
    lab.restart("n1");
    lab.rounds(3);
    assert_eq!(lab.annotation("n1", KEY), Some(key.clone()));
    // Somebody edits it.
    change(&mut lab.model, "n1", |node| drop(node.annotations.insert(KEY.into(), "edited".into())));
    lab.rounds(1);
    assert_eq!(lab.annotation("n1", KEY), Some(key));
    // Off: taken away, and nothing is left in the plan (policy model 25.9).
    felix(&mut lab.model, "default", &[("wireguardEnabled", "false")]);
    lab.rounds(2);
    assert_eq!(lab.annotation("n1", KEY), None);
    let off = lab.settle("n1");
    assert!(off.plan.v4.is_none() && off.pod_mtu.is_none() && off.interface.is_empty());
    assert_eq!(off.report.mode, "off");
}

#[test]
fn pm_32_1_keys_of_another_machine_are_replaced_and_the_others_hear_of_it_once() {
    let mut lab = Lab::new(2, &ON[..1]);
    lab.rounds(3);
    let before = lab.annotation("n1", KEY);
    lab.world.lock().unwrap().kept.insert("n1".into(), "other machine".into());
    lab.restart("n1");
    lab.rounds(4);
    assert_ne!(lab.annotation("n1", KEY), before);
    let said = lab.settle("n1").problems;
    assert!(said.iter().any(|problem| problem.reason.contains("sealed on another machine")), "{said:?}");
    let events = lab.world.lock().unwrap().events.clone();
    let changed: Vec<&NodeEvent> =
        events.iter().filter(|event| event.reason == "WireGuardKeyChanged").collect();
    assert!(changed.len() == 2 && changed[0] == changed[1], "one text, from each node: {events:?}");
    assert!(changed[0].node == "n1" && changed[0].is_warning);
    let said = lab.settle("n2").problems;
    assert!(said.iter().any(|problem| problem.reason.contains("did not announce it")), "{said:?}");
}

#[test]
fn pm_32_3_at_every_moment_of_a_rotation_both_ends_accept_what_the_other_may_begin_with() {
    let mut lab = Lab::new(2, &[ON[0], ("wireguardKeyRotationInterval", "86400s")]);
    lab.rounds(3);
    let first = lab.annotation("n1", KEY).unwrap();
    lab.now += 86_400;
    let mut seen = BTreeSet::new();
    // Nodes read of each other late: each round the plans are compared with what was read before.
    for _ in 0..(ANNOUNCED + ACCEPTED + 20) {
        let plans = ["n1", "n2"].map(|name| lab.settle(name).plan);
        for (own, other) in [(0, 1), (1, 0)] {
            let (own, other) = (plans[own].v4.as_ref().unwrap(), plans[other].v4.as_ref().unwrap());
            let accepted: Vec<PublicKey> = other.own.keys.iter().map(|key| key.public()).collect();
            let known = &other.peers[0].keys;
            // What is sent is sealed for the peer's first key, and begun with our first.
            assert!(accepted.contains(&own.peers[0].keys[0]), "sealed for a key that is not accepted");
            assert!(known.contains(&own.own.keys[0].public()), "begun with a key that is not known");
        }
        seen.insert(lab.annotation("n1", KEYS).unwrap());
        lab.round();
    }
    let last = lab.annotation("n1", KEY).unwrap();
    assert_ne!(last, first);
    assert_eq!(lab.annotation("n1", KEYS), Some(last.clone()), "the key before is gone");
    let wanted: BTreeSet<String> =
        [first.clone(), format!("{first},{last}"), format!("{last},{first}"), last].into();
    assert_eq!(seen, wanted);
    let events = lab.world.lock().unwrap().events.clone();
    assert!(events.iter().all(|event| event.reason == "WireGuardKeyRotated"), "{events:?}");
    let distinct: BTreeSet<NodeEvent> = events.iter().cloned().collect();
    assert_eq!((events.len(), distinct.len()), (4, 2), "one text about each, from each");
}

#[test]
fn pm_32_3_a_key_that_is_spoken_under_is_not_let_go_of() {
    let mut lab = Lab::new(1, &[ON[0], ("wireguardKeyRotationInterval", "86400s")]);
    lab.rounds(3);
    let first = lab.annotation("n1", KEY).unwrap();
    lab.speaks.insert(super::super::keys::from_base64(&first).unwrap());
    lab.now += 86_400;
    lab.rounds((ANNOUNCED + ACCEPTED) as usize + 30);
    assert!(lab.annotation("n1", KEYS).unwrap().contains(&first));
    lab.speaks.clear();
    lab.rounds(4);
    assert!(!lab.annotation("n1", KEYS).unwrap().contains(&first));
}

#[test]
fn pm_25_8_with_host_encryption_a_stale_key_is_taken_away_before_anything_else() {
    let mut lab = Lab::new(2, &[ON[0], ("wireguardHostEncryptionEnabled", "true")]);
    let stale = in_base64(Ring::make(0).unwrap().v4.current.public());
    change(&mut lab.model, "n1", |node| drop(node.annotations.insert(KEY.into(), stale)));
    let first = lab.settle("n1");
    assert!(first.plan.v4.is_none() && first.hosts.is_empty(), "nothing is sealed yet");
    assert_eq!(lab.world.lock().unwrap().published["n1"], Annotations::new());
    lab.rounds(1);
    assert_eq!(lab.annotation("n1", KEY), None, "the others speak to it in clear");
    lab.rounds(4);
    assert!(lab.annotation("n1", KEY).is_some());
    assert_eq!(lab.settle("n1").hosts, BTreeSet::from([ip("192.0.2.2")]));
    // A restart with the same key is no bootstrap.
    lab.restart("n1");
    assert!(lab.settle("n1").plan.v4.is_some());
    // Keys that cannot be read yet.
    let key = lab.annotation("n1", KEY);
    lab.world.lock().unwrap().is_slow = true;
    lab.restart("n1");
    lab.rounds(3);
    assert!(lab.settle("n1").plan.v4.is_none());
    assert_eq!(lab.annotation("n1", KEY), key, "it may well be ours, so it is left alone");
    lab.world.lock().unwrap().is_slow = false;
    lab.rounds(3);
    assert!(lab.settle("n1").plan.v4.is_some() && lab.annotation("n1", KEY) == key);
}

#[test]
fn pm_25_4_a_shared_key_is_told_once_about_each_of_its_nodes() {
    let mut lab = Lab::new(3, &ON[..1]);
    lab.rounds(3);
    let key = lab.annotation("n1", KEY).unwrap();
    lab.conductors.remove("n2");
    lab.world.lock().unwrap().published.remove("n2");
    change(&mut lab.model, "n2", |node| drop(node.annotations.insert(KEY.into(), key)));
    lab.conductors.remove("n1");
    lab.rounds(3);
    let events = lab.world.lock().unwrap().events.clone();
    let shared: Vec<&str> =
        events.iter().filter(|e| e.reason == "WireGuardKeyShared").map(|e| e.node.as_str()).collect();
    assert_eq!(shared, ["n1", "n2"]);
    let outcome = lab.settle("n3");
    assert_eq!(peers(&outcome.plan.v4), [""; 0]);
    assert!(outcome.problems.iter().any(|problem| problem.reason.contains("publish one WireGuard key")));
}

#[test]
fn nothing_that_is_shown_has_a_private_key_in_it() {
    let mut lab = Lab::new(2, &ON);
    lab.rounds(4);
    let outcome = lab.settle("n1");
    let shown = format!(
        "{outcome:?} {} {} {:?}",
        serde_json::to_string(&outcome.report).unwrap(),
        outcome.report.text(lab.now),
        lab.world.lock().unwrap().published
    );
    for line in lab.world.lock().unwrap().kept["n1"].lines() {
        let secret = line.rsplit(' ').next().unwrap();
        assert!(!shown.contains(secret));
        let hex: String =
            super::super::keys::from_base64(secret).unwrap().0.iter().map(|b| format!("{b:02x}")).collect();
        assert!(!shown.contains(&hex[..16]));
    }
    assert!(shown.contains(&lab.annotation("n1", KEY).unwrap()), "public keys are shown");
}
