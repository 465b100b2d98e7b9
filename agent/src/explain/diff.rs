//! What a change of manifests does: to one packet, or to every connection between pods.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};

use margay_policy_engine::explain::diff::Difference;
use margay_policy_engine::model::{Entity, Model, NamespacedName, Pod, PortMatch};
use margay_policy_engine::packet::Verdict;
use serde::Serialize;

use super::explain;
use crate::admin::client::Format;
use crate::simulate::Simulator;
use crate::simulate::probe::{Probe, ProbeProtocol};

/// Most connections that are compared. A comparison takes some microseconds.
const MOST_COMPARED: usize = 1_000_000;
/// Most changes that are listed.
const MOST_LISTED: usize = 1_000;
/// Most ports that are tried on a pod that declares none.
const MOST_TRIED: usize = 16;

/// Every connection whose verdict changes.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Connections with another verdict, in the order of pods' names.
    pub changes: Vec<Change>,
    /// How many have one; more than `changes` where the list is cut.
    pub changed: usize,
    /// How many connections were compared.
    pub compared: usize,
    /// How many there are; more than `compared` where the comparison is cut.
    pub possible: usize,
    /// Pods that are in one of the two sets of manifests only, or have no address; none of their connections is compared.
    pub left_out: Vec<String>,
}

/// A connection whose verdict changes.
#[derive(Debug, Serialize)]
pub struct Change {
    /// Who opens it.
    pub from: String,
    /// To whom.
    pub to: String,
    /// IP protocol.
    pub protocol: ProbeProtocol,
    /// Destination port.
    pub port: u16,
    /// Verdict before.
    pub before: Verdict,
    /// Verdict after.
    pub after: Verdict,
}

/// Explains `probe` before and after, and prints what is different. Returns whether a verdict is.
///
/// Errors: a sentence for the one who asked, when either side cannot answer.
pub fn one(before: &Simulator, after: &Simulator, probe: &Probe) -> Result<Difference, String> {
    let told = |simulator: &Simulator, side: &str| {
        explain(simulator.engine(), simulator.snapshot(), &simulator.world, probe)
            .map_err(|reason| format!("{side}: {reason}"))
    };
    let (old, new) = (told(before, "--manifests")?, told(after, "--diff")?);
    Ok(Difference::new((before.engine().model(), &old.told), (after.engine().model(), &new.told)))
}

/// Compares every connection from one pod to a port that another declares, before and after.
pub fn all_pairs(before: &Simulator, after: &Simulator) -> Changes {
    let (old, new) = (before.engine().model(), after.engine().model());
    let mut changes = Changes::default();
    let mut pods: Vec<(&NamespacedName, Vec<(u8, u16)>)> = Vec::new();
    let tried = tried_ports([old, new]);
    let names: BTreeSet<&NamespacedName> = old.pods.keys().chain(new.pods.keys()).collect();
    for name in names {
        let pods_of = [old.pods.get(name), new.pods.get(name)];
        let is_there = |pod: &Option<_>| pod.is_some_and(|pod: &std::sync::Arc<Pod>| has_network(pod));
        if pods_of.iter().all(is_there) {
            let mut ports: BTreeSet<(u8, u16)> = pods_of
                .iter()
                .flatten()
                .flat_map(|pod| &pod.ports)
                .map(|port| (port.protocol, port.port))
                .collect();
            if ports.is_empty() {
                ports.clone_from(&tried);
            }
            pods.push((name, ports.into_iter().collect()));
        } else {
            changes.left_out.push(shown(name));
        }
    }
    let ports: usize = pods.iter().map(|(_, ports)| ports.len()).sum();
    changes.possible = ports * pods.len().saturating_sub(1);
    for (from, _) in &pods {
        for (to, ports) in pods.iter().filter(|(to, _)| to != from) {
            for (protocol, port) in ports {
                if changes.compared == MOST_COMPARED {
                    return changes;
                }
                changes.compared += 1;
                let probe = probe(shown(from), shown(to), *protocol, *port);
                let answer = |simulator: &Simulator| {
                    let question = simulator.world.question(&probe).ok()?;
                    Some(simulator.compiled(&question).verdict)
                };
                // Pods without a family in common have nothing to say to each other.
                let Some((before, after)) = answer(before).zip(answer(after)) else { continue };
                if before != after {
                    changes.note(probe, before, after);
                }
            }
        }
    }
    changes
}

impl Changes {
    fn note(&mut self, probe: Probe, before: Verdict, after: Verdict) {
        self.changed += 1;
        if self.changes.len() < MOST_LISTED {
            let Probe { from, to, protocol, port, .. } = probe;
            let port = port.unwrap_or_default();
            self.changes.push(Change { from, to, protocol, port, before, after });
        }
    }
}

/// Prints a difference; for programs, as one line of JSON.
pub fn print(what: &(impl Serialize + fmt::Display), format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match format {
        Format::Table => write!(out, "{what}"),
        Format::Json => {
            serde_json::to_writer(&mut out, what)?;
            writeln!(out)
        }
    }
}

/// A connection to a port.
fn probe(from: String, to: String, protocol: u8, port: u16) -> Probe {
    Probe {
        from,
        to,
        protocol: ProbeProtocol(protocol),
        port: Some(port),
        sport: None,
        icmp: None,
        family: None,
        interface: None,
        via: None,
    }
}

fn has_network(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished && !pod.addresses.is_empty()
}

fn shown(name: &NamespacedName) -> String {
    format!("{}/{}", name.namespace, name.name)
}

/// What is tried on pods that declare no port: the first ports that rules name, else TCP 80.
fn tried_ports(models: [&Model; 2]) -> BTreeSet<(u8, u16)> {
    let rules = models.into_iter().flat_map(|model| model.policies.values()).flat_map(|policy| {
        policy.ingress.iter().chain(&policy.egress).map(|rule| (rule.protocol, &rule.destination))
    });
    let first = |(protocol, destination): (Option<u8>, &Entity)| {
        let protocol = protocol.filter(|protocol| matches!(protocol, 6 | 17 | 132)).unwrap_or(6);
        let numbers = destination.ports.iter().filter_map(move |port| match port {
            PortMatch::Range { first, .. } => Some((protocol, *first)),
            PortMatch::Named(_) => None,
        });
        numbers.collect::<Vec<_>>()
    };
    let named: BTreeSet<(u8, u16)> = rules.flat_map(first).collect();
    let named: BTreeSet<(u8, u16)> = named.into_iter().take(MOST_TRIED).collect();
    if named.is_empty() { BTreeSet::from([(6, 80)]) } else { named }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |verdict: Verdict| match verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        };
        for Change { from, to, protocol, port, before, after } in &self.changes {
            writeln!(
                f,
                "{from} -> {to}, {protocol} port {port}: was {}, is {}",
                word(*before),
                word(*after)
            )?;
        }
        if self.changed > self.changes.len() {
            writeln!(f, "… and {} more", self.changed - self.changes.len())?;
        }
        writeln!(f, "{} of {} connections change", self.changed, self.compared)?;
        if self.compared < self.possible {
            writeln!(f, "cut: there are {} connections; name fewer pods in the manifests", self.possible)?;
        }
        if !self.left_out.is_empty() {
            writeln!(
                f,
                "not compared, as they are in one of the two only or have no address: {}",
                self.left_out.join(", ")
            )?;
        }
        Ok(())
    }
}
