//! One cluster as each of its nodes reads it.
//!
//! A leg is judged on the node of its pod, by that node's FelixConfiguration (policy model 27). Most clusters have no node with settings
//! of its own that change what rules mean, and then one engine answers for all; each node that has gets an engine for itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{Model, NamespacedName};
use margay_policy_engine::packet::{Context, Direction, HostId, HostVerdict, PacketTuple, Verdict};
use margay_policy_engine::snapshot::{Attribution, Snapshot};
use margay_policy_engine::walk::{Literal, PodRef, Referee};

use super::interfaces;

/// An engine and its tables.
#[derive(Debug)]
pub struct Compiled {
    /// The engine.
    pub engine: Engine,
    /// What it compiled.
    pub snapshot: Arc<Snapshot>,
}

impl Compiled {
    fn of(model: Model) -> Self {
        let mut engine = Engine::with_all_pods_local(model);
        for interface in interfaces::assumed(engine.model()) {
            engine.apply(Change::Interface(interface));
        }
        let snapshot = engine.publish();
        Self { engine, snapshot }
    }

    fn literal(&self) -> Literal<'_> {
        let engine = &self.engine;
        Literal { model: engine.model(), locals: engine.locals(), interfaces: engine.interfaces() }
    }
}

/// The readings of one cluster.
#[derive(Debug)]
pub struct Perspectives {
    /// That of nodes without settings of their own.
    pub common: Compiled,
    by_node: BTreeMap<String, Compiled>,
    /// The nodes of pods and interfaces, where any node has settings of its own.
    pods: HashMap<NamespacedName, String>,
    hosts: HashMap<HostId, String>,
}

impl Perspectives {
    /// Reads `model` as each of its nodes does.
    pub fn of(model: Model) -> Self {
        let apart: Vec<String> = model.nodes_apart().into_iter().map(str::to_owned).collect();
        let reading = |node: &String| {
            let model = Model { here: node.clone(), ..model.clone() };
            (node.clone(), Compiled::of(model))
        };
        let by_node: BTreeMap<String, Compiled> = apart.iter().map(reading).collect();
        let common = Compiled::of(model);
        let (mut pods, mut hosts) = (HashMap::new(), HashMap::new());
        if !by_node.is_empty() {
            let of_pods = common.engine.model().pods.values();
            pods.extend(of_pods.filter_map(|pod| Some((pod.key.clone(), pod.node.clone()?))));
            let of_hosts = common.engine.interfaces().values();
            hosts.extend(of_hosts.map(|interface| (interface.id, interface.node.clone())));
        }
        Self { common, by_node, pods, hosts }
    }

    /// Returns what the one who asks for the whole cluster has to know, where nodes read it differently.
    pub fn caveat(model: &Model) -> Option<String> {
        let apart = model.nodes_apart();
        (!apart.is_empty()).then(|| {
            format!(
                "rules are read as FelixConfiguration default says; {} of its own changes what rules mean on {}: ask the agent there, or margay simulate",
                if apart.len() == 1 { "an object" } else { "objects" },
                apart.join(", ")
            )
        })
    }

    /// Returns the reading of a pod's node.
    fn of_pod(&self, pod: &NamespacedName) -> &Compiled {
        self.pods.get(pod).and_then(|node| self.by_node.get(node)).unwrap_or(&self.common)
    }

    /// Returns the tables of a pod's node.
    pub fn snapshot_of(&self, pod: &NamespacedName) -> &Snapshot {
        &self.of_pod(pod).snapshot
    }

    fn of_host(&self, interface: HostId) -> &Compiled {
        self.hosts.get(&interface).and_then(|node| self.by_node.get(node)).unwrap_or(&self.common)
    }
}

/// Asks the compiled tables of each node.
pub struct Tables<'a>(pub &'a Perspectives);

/// Reads the rules literally, as each node does.
pub struct Literally<'a>(pub &'a Perspectives);

impl Referee for Tables<'_> {
    fn pod(&self, pod: PodRef<'_>, way: Direction, packet: &PacketTuple) -> Option<(Verdict, Attribution)> {
        // The pods are the same in every reading, and so are their numbers.
        self.0.of_pod(pod.key).snapshot.pod(pod, way, packet)
    }

    fn host(
        &self,
        interface: HostId,
        context: Context,
        way: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        self.0.of_host(interface).snapshot.host(interface, context, way, packet)
    }
}

impl Referee for Literally<'_> {
    fn pod(&self, pod: PodRef<'_>, way: Direction, packet: &PacketTuple) -> Option<(Verdict, Attribution)> {
        self.0.of_pod(pod.key).literal().pod(pod, way, packet)
    }

    fn host(
        &self,
        interface: HostId,
        context: Context,
        way: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        self.0.of_host(interface).literal().host(interface, context, way, packet)
    }
}
