//! What the control thread shows to the rest of the agent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use margay_control::Problem;
use margay_core::PortIndex;
use margay_core::topology::Port;
use margay_io::PortReport;
use margay_policy_engine::packet::Direction;

use super::Reconciler;
use crate::encryption::report::WireguardReport;
use crate::endpoints::EndpointRecord;

/// What the control thread shows to the rest of the agent.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Number of the snapshot that was published last; zero before the first.
    pub generation: u64,
    /// What keeps the node from serving, in sentences.
    pub not_ready: Vec<String>,
    /// The source cannot see the world.
    pub stale: bool,
    /// Endpoints with whether their policy is in force.
    pub endpoints: Vec<(EndpointRecord, bool)>,
    /// Ports as opened.
    pub ports: BTreeMap<PortIndex, (Port, PortReport)>,
    /// What is wrong with objects.
    pub problems: Arc<[Problem]>,
    /// Objects by kind.
    pub objects: BTreeMap<String, u64>,
    /// Pods by address, for naming drops and flows.
    pub names: Arc<BTreeMap<IpAddr, String>>,
    /// Duration of the last compilation.
    pub compile: Duration,
    /// Largest packet of pods, where encryption makes it smaller.
    pub pod_mtu: Option<u32>,
    /// Where this node's pods have their addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// Encryption, without what only workers know.
    pub wireguard: WireguardReport,
    /// What its owner should know about it.
    pub encryption_problems: Vec<Problem>,
}

/// The shared form of [`Shown`].
pub type Board = Arc<Mutex<Shown>>;

impl Reconciler {
    /// Copies what others may ask for to the board.
    pub(super) fn show(&mut self) {
        let model = self.engine.model();
        let mut not_ready = Vec::new();
        if !self.complete {
            not_ready
                .push("the first complete picture of the source of truth has not arrived yet".to_owned());
        }
        not_ready.extend(self.source_error.iter().map(|error| format!("the source of truth ended: {error}")));
        not_ready.extend(self.route_error.iter().cloned());
        let endpoint = |record: &EndpointRecord| {
            let known =
                self.snapshot.as_ref().is_some_and(|s| s.epoch(record.id, Direction::Ingress).is_some());
            (record.clone(), known)
        };
        let count = |kind: &str, number: usize| (kind.to_owned(), number as u64);
        let objects = BTreeMap::from([
            count("Namespace", model.namespaces.len()),
            count("ServiceAccount", model.service_accounts.len()),
            count("Pod", model.pods.len()),
            count("Node", model.nodes.len()),
            count("Tier", model.tiers.len()),
            count("Policy", model.policies.len()),
            count("NetworkSet", model.network_sets.len()),
            count("HostEndpoint", model.host_endpoints.len()),
        ]);
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.generation = self.snapshot.as_ref().map_or(0, |s| s.generation().0);
        board.not_ready = not_ready;
        board.endpoints = self.endpoints.values().map(endpoint).collect();
        board.ports = self.ports.clone();
        board.objects = objects;
        if !self.names_changed {
            return;
        }
        self.names_changed = false;
        let mut names = BTreeMap::new();
        for pod in model.pods.values().filter(|pod| !pod.host_network) {
            let name = format!("{}/{}", pod.key.namespace, pod.key.name);
            names.extend(pod.addresses.iter().map(|a| (*a, name.clone())));
        }
        for record in self.endpoints.values() {
            let name = format!("{}/{}", record.pod.namespace, record.pod.name);
            names.extend(record.addresses.iter().map(|a| (*a, name.clone())));
        }
        board.names = Arc::new(names);
    }
}
