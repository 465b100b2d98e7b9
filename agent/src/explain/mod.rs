//! Why a packet passes or not: everybody who is asked on its way, tier by tier, with the rule that decided.
//!
//! Whom to ask is what `simulate` knows; what each of them says, and why, is told by the policy engine. [`diff`] asks the same under two
//! sets of manifests.

pub mod diff;

use std::cell::RefCell;

use margay_policy_engine::engine::Engine;
use margay_policy_engine::explain::{self, Asked, Explainer, Leg};
use margay_policy_engine::model::NamespacedName;
use margay_policy_engine::packet::{
    Context, Direction, EndpointId, HostId, HostVerdict, PacketTuple, Verdict,
};
use margay_policy_engine::snapshot::{Attribution, Snapshot};
use margay_policy_engine::walk::{PodRef, Referee};
use serde::{Deserialize, Serialize};

use crate::simulate::probe::Probe;
use crate::simulate::world::World;

/// The answer to one probe, with reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked.
    pub probe: Probe,
    /// The story.
    #[serde(flatten)]
    pub told: explain::Explanation,
}

/// Explains `probe` by the tables of `snapshot` and the Model of `engine`, as published together.
///
/// Errors: a sentence for the one who asked.
pub fn explain(
    engine: &Engine,
    snapshot: &Snapshot,
    world: &World,
    probe: &Probe,
) -> Result<Explanation, String> {
    let question = world.question(probe)?;
    let recorder = Recorder { snapshot, asked: RefCell::default() };
    let answer = question.answer(&recorder);
    let explainer = Explainer { model: engine.model(), locals: engine.locals(), snapshot };
    let legs: Vec<Leg> = recorder
        .asked
        .into_inner()
        .iter()
        .filter_map(|(who, packet)| {
            let asked = match who {
                Who::Pod(key, endpoint, direction) => {
                    Asked::Pod { key, endpoint: *endpoint, direction: *direction }
                }
                Who::Host(interface, context, direction) => {
                    let interface = engine.interfaces().get(interface)?;
                    Asked::Host { interface, context: *context, direction: *direction }
                }
            };
            Some(explainer.leg(&asked, packet))
        })
        .collect();
    let reason = answer.reason.map(str::to_owned);
    let told = explain::Explanation::new(&explainer, &question.packet, answer.verdict.into(), reason, legs);
    Ok(Explanation { probe: probe.clone(), told })
}

impl Explanation {
    /// Returns the explanation for a terminal. `all`: with every policy that does not apply.
    pub fn text(&self, all: bool) -> String {
        let Probe { from, to, protocol, port, .. } = &self.probe;
        let port = port.map_or_else(String::new, |port| format!(" port {port}"));
        let why = self.told.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        let told = self.told.text(all);
        format!("{from} -> {to}, {protocol}{port}\n{told}\nVerdict: {}{why}\n", self.told.verdict)
    }
}

/// Somebody who was asked.
enum Who {
    Pod(NamespacedName, EndpointId, Direction),
    Host(HostId, Context, Direction),
}

/// Answers by the tables, and remembers who was asked about what.
struct Recorder<'a> {
    snapshot: &'a Snapshot,
    asked: RefCell<Vec<(Who, PacketTuple)>>,
}

impl Referee for Recorder<'_> {
    fn pod(
        &self,
        pod: PodRef<'_>,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(Verdict, Attribution)> {
        let who = Who::Pod(pod.key.clone(), pod.endpoint, direction);
        self.asked.borrow_mut().push((who, *packet));
        self.snapshot.pod(pod, direction, packet)
    }

    /// Who has no policy in a context is passed by and not worth telling.
    fn host(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        let said = self.snapshot.host(interface, context, direction, packet)?;
        self.asked.borrow_mut().push((Who::Host(interface, context, direction), *packet));
        Some(said)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use margay_policy_engine::model::Model;

    use super::*;
    use crate::simulate::probe::ProbeProtocol;

    #[test]
    fn explanation_survives_the_way_over_the_socket() {
        let mut engine = Engine::with_all_pods_local(Model::with_builtins());
        let snapshot = engine.publish();
        let world = World::new(engine.model(), engine.locals(), &BTreeMap::new(), None);
        let probe = Probe {
            from: "ip:192.0.2.1".to_owned(),
            to: "ip:192.0.2.2".to_owned(),
            protocol: ProbeProtocol(6),
            port: Some(80),
            sport: None,
            icmp: None,
            family: None,
            interface: None,
            via: None,
        };
        let explanation = explain(&engine, &snapshot, &world, &probe).unwrap();
        assert!(explanation.text(false).contains("no_local_pod"), "{}", explanation.text(false));
        let json = serde_json::to_string(&explanation).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);
    }
}
