//! Waits until every agent judges by policy that knows every pod of the lab.
//!
//! A pod's address exists once it is joined, and agents of other nodes read of it a moment later. Until then it is nobody to them, and
//! a policy that lets it in does not.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::LabError;
use super::state::{LabState, Paths};
use super::up::tail;
use crate::admin::client::ask;
use crate::admin::protocol::{Reply, Request};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// Pods that are asked for at once, so that any question fits a request.
const AT_ONCE: usize = 100;

/// Waits for all agents.
///
/// Errors: [`LabError::Agent`] once `timeout` has passed, with what one of them lacks.
pub fn everywhere(paths: &Paths, state: &LabState, timeout: Duration) -> Result<(), LabError> {
    let pods = state.pods.iter().filter(|(_, pod)| !pod.host_network);
    let pods: BTreeMap<&String, &Vec<IpAddr>> = pods.map(|(name, pod)| (name, &pod.addresses)).collect();
    let deadline = Instant::now() + timeout;
    for node in state.nodes.keys() {
        while let Some(lack) = lack(paths, node, &pods) {
            if Instant::now() > deadline {
                return Err(LabError::Agent {
                    node: node.clone(),
                    what: format!("is not done after {timeout:?}: {lack}"),
                    log: paths.log(node),
                    tail: tail(&fs::read_to_string(paths.log(node)).unwrap_or_default()),
                });
            }
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Says what a node's agent does not know yet; `None` when it knows all pods.
fn lack(paths: &Paths, node: &str, pods: &BTreeMap<&String, &Vec<IpAddr>>) -> Option<String> {
    let socket = paths.run_dir(node).join("admin.sock");
    let names: Vec<String> = pods.keys().map(|name| (*name).clone()).collect();
    let mut known = BTreeMap::new();
    for names in names.chunks(AT_ONCE) {
        let asked = ask(&socket, &Request::Pods { names: names.to_vec() }, |reply| {
            if let Reply::Pods(mut told) = reply {
                known.append(&mut told);
            }
            Ok(())
        });
        if let Err(error) = asked {
            return Some(error.to_string());
        }
    }
    pods.iter()
        .find(|(name, addresses)| !known.get(**name).is_some_and(|known| is_same(known, addresses)))
        .map(|(name, _)| format!("it does not know the addresses of pod {name}"))
}

fn is_same(known: &[IpAddr], addresses: &[IpAddr]) -> bool {
    known.len() == addresses.len() && addresses.iter().all(|address| known.contains(address))
}
