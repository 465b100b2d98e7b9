//! Events about Nodes: what agents found out about a node that its owner should hear of.
//!
//! Every agent finds out the same, so every agent notes it, and the one that writes for the cluster says it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::desk::SharedDesk;

/// How long a finding waits for this agent to become the writer: another one has said it by then.
const WAITS: Duration = Duration::from_secs(90);

/// Something about a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeEvent {
    /// The node.
    pub node: String,
    /// One word, such as `WireGuardKeyChanged`.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Somebody should look at it.
    pub is_warning: bool,
}

/// Findings about nodes that wait to be said.
#[derive(Debug, Default)]
pub(in super::super) struct NodeFindings(BTreeMap<NodeEvent, Instant>);

impl NodeFindings {
    /// Takes those that this agent is to say, if `is_writer`; lets go of what waited too long.
    pub fn take(&mut self, is_writer: bool) -> Vec<NodeEvent> {
        self.0.retain(|_, noted| noted.elapsed() < WAITS);
        if is_writer { std::mem::take(&mut self.0).into_keys().collect() } else { Vec::new() }
    }
}

/// Where to say what was found out about nodes. Clones are the same place.
#[derive(Clone, Debug)]
pub struct NodeEvents(pub(in super::super) SharedDesk);

impl NodeEvents {
    /// Has an Event made, unless another agent does. Returns at once.
    pub fn tell(&self, event: NodeEvent) {
        self.0.open().node_events.0.insert(event, Instant::now());
    }
}

/// Returns the Event; one per node and text, whoever says it.
pub(super) fn event(found: &NodeEvent, by: &str) -> Value {
    let NodeEvent { node, reason, message, is_warning } = found;
    let digest = Sha256::digest(format!("{node}/{reason}/{message}"));
    let mark: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name: String = node.chars().take(200).collect();
    let now = format!("{:.0}", Timestamp::now());
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": format!("{}.{mark}", name.trim_end_matches('.')), "namespace": "default" },
        // `kubectl describe node` looks for the name as the uid, as kubelets write it.
        "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": node, "uid": node },
        "type": if *is_warning { "Warning" } else { "Normal" }, "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now, "source": { "component": "margay", "host": by },
        "reportingComponent": "margay", "reportingInstance": by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_says_it_and_what_nobody_took_over_is_let_go_of() {
        let desk = SharedDesk::default();
        let events = NodeEvents(desk.clone());
        let found = |message: &str| NodeEvent {
            node: "n".into(),
            reason: "R".into(),
            message: message.into(),
            is_warning: true,
        };
        events.tell(found("one"));
        events.tell(found("one"));
        assert_eq!(desk.open().node_events.take(false), []);
        assert_eq!(desk.open().node_events.take(true), [found("one")]);
        assert_eq!(desk.open().node_events.take(true), []);
        let name = |found| event(&found, "a")["metadata"]["name"].clone();
        assert_eq!(name(found("one")), event(&found("one"), "b")["metadata"]["name"], "whoever says it");
        assert_ne!(name(found("one")), name(found("two")));
    }
}
