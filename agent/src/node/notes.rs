//! What the agent says about itself on its Node: four annotations for whoever looks at a node with kubectl.
//!
//! | annotation | value |
//! |---|---|
//! | `margay/version` | version of the agent |
//! | `margay/workers` | threads that carry packets |
//! | `margay/uplinks` | each uplink with the mode of its programs: `eth0: native, zero-copy; eth1: generic` |
//! | `margay/state` | `ready`, `stale` or `not ready`, with the time since when |
//!
//! Nothing here moves by itself: every write is an event for every agent of the cluster. An agent that ended leaves what it said last;
//! whether one runs is told by its Pod.

use std::collections::BTreeMap;

use margay_control::kubernetes::Note;

use crate::admin::report::StatusReport;

/// The field manager of these annotations.
pub const OWNER: &str = "margay-node";

/// Returns the annotations of a node in this state.
pub fn notes(status: &StatusReport) -> BTreeMap<String, Note> {
    let uplinks = status.ports.iter().filter(|port| port.kind == "uplink");
    let uplinks: Vec<String> = uplinks.map(|port| format!("{}: {}", port.name, port.crossing())).collect();
    let state = match (status.ready, status.stale) {
        (false, _) => "not ready",
        (true, true) => "stale",
        (true, false) => "ready",
    };
    BTreeMap::from([
        ("margay/version".to_owned(), Note::Text(status.version.clone())),
        ("margay/workers".to_owned(), Note::Text(status.workers.len().to_string())),
        ("margay/uplinks".to_owned(), Note::Text(uplinks.join("; "))),
        ("margay/state".to_owned(), Note::State(state.to_owned())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::{MannerReport, PortReport, WorkerReport};

    #[test]
    fn a_node_says_what_it_is_and_no_number_that_moves() {
        let port = |name: &str, kind: &str, mode: &str| PortReport {
            name: name.to_owned(),
            kind: kind.to_owned(),
            mode: mode.to_owned(),
            ..PortReport::default()
        };
        let mut status = StatusReport {
            version: "1.2.3".to_owned(),
            ready: true,
            ports: vec![
                port("mgy1", "host", "generic"),
                PortReport {
                    manner: MannerReport { zero_copy: "used".to_owned(), ..MannerReport::default() },
                    ..port("eth0", "uplink", "native")
                },
                port("eth1", "uplink", "generic"),
                port("mgya", "pod", "native"),
            ],
            workers: vec![WorkerReport::default(); 2],
            ..StatusReport::default()
        };
        let said = notes(&status);
        let text = |key: &str| match &said[key] {
            Note::Text(text) => text.clone(),
            Note::State(state) => format!("{state} since"),
            Note::Absent => "absent".to_owned(),
        };
        assert_eq!(text("margay/uplinks"), "eth0: native, zero-copy; eth1: generic");
        assert_eq!((text("margay/version"), text("margay/workers")), ("1.2.3".to_owned(), "2".to_owned()));
        assert_eq!(text("margay/state"), "ready since");
        status.uptime_seconds += 1;
        status.counters.received += 1;
        status.generation += 1;
        assert_eq!(notes(&status), said, "what moves is not said");
        status.stale = true;
        assert_eq!(notes(&status)["margay/state"], Note::State("stale".to_owned()));
        status.ready = false;
        assert_eq!(notes(&status)["margay/state"], Note::State("not ready".to_owned()));
    }
}
