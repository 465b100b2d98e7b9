//! What an agent would know that follows a real API server, and the objects that tests write there.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use margay_control::kubernetes::{Kubernetes, KubernetesConfig, Requests, Traffic};
use margay_control::{Problem, Source};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Model, NamespacedName, PolicyKey, PolicyKind};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::apiserver::ApiServer;

/// Group.
pub const CALICO: &str = "projectcalico.org";
/// Group.
pub const ADMIN: &str = "policy.networking.k8s.io";
/// Collection.
pub const POLICIES: &str = "/apis/projectcalico.org/v3/namespaces/shop/networkpolicies";
/// Collection.
pub const PODS: &str = "/api/v1/namespaces/shop/pods";

/// A Namespace.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "team": name } } })
}

/// A Pod of node n1.
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80, "name": "http" }] }] },
    })
}

/// A policy of namespace `shop`.
pub fn policy(name: &str, selector: &str) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": { "name": name },
        "spec": { "selector": selector, "types": ["Ingress"], "ingress": [{ "action": "Allow", "protocol": "TCP" }] },
    })
}

/// Its key.
pub fn policy_key(name: &str) -> PolicyKey {
    PolicyKey { kind: PolicyKind::NetworkPolicy, namespace: Some("shop".to_owned()), name: name.to_owned() }
}

/// Key of a pod of namespace `shop`.
pub fn pod_key(name: &str) -> NamespacedName {
    NamespacedName { namespace: "shop".to_owned(), name: name.to_owned() }
}

/// What an agent would know.
pub struct World {
    pub source: Option<Kubernetes>,
    pub kubeconfig: PathBuf,
    pub store: TempDir,
    pub node: String,
    pub model: Model,
    pub problems: Vec<Problem>,
    pub complete: bool,
    pub stale: bool,
    /// Batches with changes.
    pub batches: usize,
}

impl World {
    pub fn new(kubeconfig: PathBuf) -> Self {
        Self::new_on("n1", kubeconfig)
    }

    /// The same, on a node of that name.
    pub fn new_on(node: &str, kubeconfig: PathBuf) -> Self {
        let store = tempfile::tempdir().unwrap();
        let mut world = Self {
            source: None,
            kubeconfig,
            store,
            node: node.to_owned(),
            model: Model::with_builtins(),
            problems: Vec::new(),
            complete: false,
            stale: false,
            batches: 0,
        };
        world.restart();
        world
    }

    pub fn of(api: &ApiServer) -> Self {
        let mut world = Self::new(api.admin_kubeconfig());
        world.wait_for("the first picture", |world| world.complete && !world.stale);
        world
    }

    /// Starts anew with the same store.
    pub fn restart(&mut self) {
        self.source = None;
        self.model = Model::with_builtins();
        (self.complete, self.stale, self.batches) = (false, false, 0);
        self.problems = Vec::new();
        let config = KubernetesConfig {
            kubeconfig: Some(self.kubeconfig.clone()),
            store: self.store.path().to_owned(),
            node: self.node.clone(),
            key_namespace: "calico-system".to_owned(),
            namespace: "kube-system".to_owned(),
            seed: 7,
        };
        self.source = Some(Kubernetes::open(config).unwrap());
    }

    pub fn take(&mut self, patience: Duration) {
        let source = self.source.as_mut().unwrap();
        let Some(batch) = source.next(patience).unwrap() else { return };
        self.batches += usize::from(!batch.changes.is_empty());
        for change in batch.changes {
            match change {
                Change::Upsert(object) => self.model.insert(object),
                Change::Delete(key) => self.model.remove(&key),
                other => panic!("{other:?} from a source"),
            }
        }
        self.complete |= batch.complete;
        self.stale = batch.stale;
        self.problems = batch.problems.to_vec();
    }

    pub fn wait_for(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> Duration {
        let began = Instant::now();
        while !is_so(self) {
            let waited = began.elapsed();
            assert!(waited < Duration::from_secs(60), "{what} did not come: {:#?}", self.problems);
            self.take(Duration::from_millis(100));
        }
        began.elapsed()
    }

    /// Takes whatever comes for a while.
    pub fn idle(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.take(Duration::from_millis(100));
        }
    }

    pub fn requests(&self) -> Requests {
        self.source.as_ref().unwrap().requests()()
    }

    pub fn traffic(&self) -> Traffic {
        self.source.as_ref().unwrap().traffic()()
    }

    pub fn problem(&self, part: &str) -> Option<&Problem> {
        self.problems.iter().find(|problem| problem.to_string().contains(part))
    }
}
