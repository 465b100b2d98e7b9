//! Owns the Model, follows changes, publishes snapshots.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Model, NamespacedName, Object, ObjectKey};
use crate::packet::EndpointId;
use crate::snapshot::Snapshot;

/// One event. The order of events never shows in the result (conventions: "output depends on current state").
#[derive(Clone, Debug)]
pub enum Change {
    /// An object appeared or changed.
    Upsert(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// A pod got its interface on this node.
    Endpoint(LocalEndpoint),
    /// And lost it.
    EndpointGone(EndpointId),
}

/// A workload endpoint that the CNI plug-in made on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Its name in the dataplane.
    pub id: EndpointId,
    /// The pod.
    pub pod: NamespacedName,
    /// `K8S_POD_UID` of the CNI call; empty when the runtime gave none. A Pod object with another uid is another pod (PM-D28).
    pub uid: String,
    /// Addresses of the CNI result: the only ones that count for a local pod (PM-D24).
    pub addresses: Vec<IpAddr>,
}

/// Owns the Model and compiles it.
#[derive(Debug, Default)]
pub struct Engine {
    model: Model,
}

impl Engine {
    /// Returns an engine with an empty Model and nothing published.
    pub fn new() -> Self {
        Self { model: Model::with_builtins() }
    }
    /// Takes one change; nothing is published before [`Engine::publish`].
    pub fn apply(&mut self, _change: Change) {}
    /// Compiles what changed since the last call and returns the newest snapshot. The generation grows by one when anything changed.
    pub fn publish(&mut self) -> Arc<Snapshot> {
        Arc::new(Snapshot::default())
    }
    /// Returns the Model as it stands.
    pub fn model(&self) -> &Model {
        &self.model
    }
}
