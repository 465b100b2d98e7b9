//! Why a packet passes or not: both legs, tier by tier, with the rule that decided.
//!
//! The verdict is that of the compiled tables, which are what a node enforces; the way there is told by the oracle. Should the two ever
//! disagree, the leg says so instead of telling a story that does not fit.

use std::net::IpAddr;

use margay_policy_engine::engine::Engine;
use margay_policy_engine::oracle::{self, Finding, OracleDecision};
use margay_policy_engine::packet::{Direction, Verdict};
use margay_policy_engine::snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use crate::admin::report::Decider;
use crate::simulate::probe::Probe;
use crate::simulate::world::{Leg, World};

/// The answer to one probe, with reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked.
    pub probe: Probe,
    /// The source address that was judged.
    pub source: Option<IpAddr>,
    /// The destination address that was judged.
    pub destination: Option<IpAddr>,
    /// `allow` or `deny`.
    pub verdict: String,
    /// Why, where no policy decided.
    pub reason: Option<String>,
    /// The sender's egress leg; absent when it is not evaluated.
    pub egress: Option<LegExplanation>,
    /// The receiver's ingress leg; absent when it is not evaluated.
    pub ingress: Option<LegExplanation>,
}

/// One leg, with every step of its evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LegExplanation {
    /// The pod, as `namespace/pod`.
    pub endpoint: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// Who decided.
    pub decided_by: Decider,
    /// What was looked at, in order, up to the decision.
    pub steps: Vec<Step>,
    /// What the rules, read literally, say instead; absent when both agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<String>,
}

/// One rule or one end of a tier that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Where.
    pub at: Decider,
    /// What came of it, such as `no match: destination port` or `Allow`.
    pub outcome: String,
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
    let answer = question.answer(snapshot);
    let story = |leg: &Option<Leg>, direction, answer: &Option<crate::simulate::world::LegAnswer>| {
        let (leg, answer) = leg.as_ref().zip(answer.as_ref())?;
        let told = oracle::evaluate(engine.model(), engine.locals(), direction, &leg.pod, &question.packet);
        let agrees = told.as_ref().is_none_or(|told| {
            told.verdict == answer.verdict && Decider::from(&told.attribution) == answer.decider
        });
        let disagreement = told
            .as_ref()
            .filter(|_| !agrees)
            .map(|told| format!("{} by {}", verdict_text(told.verdict), Decider::from(&told.attribution)));
        Some(LegExplanation {
            endpoint: format!("{}/{}", leg.pod.namespace, leg.pod.name),
            verdict: verdict_text(answer.verdict).to_owned(),
            decided_by: answer.decider.clone(),
            steps: told.map(steps).unwrap_or_default(),
            disagreement,
        })
    };
    Ok(Explanation {
        probe: probe.clone(),
        source: Some(question.packet.source),
        destination: Some(question.packet.destination),
        verdict: verdict_text(answer.verdict).to_owned(),
        reason: answer.reason.map(str::to_owned),
        egress: story(&question.egress, Direction::Egress, &answer.egress),
        ingress: story(&question.ingress, Direction::Ingress, &answer.ingress),
    })
}

fn verdict_text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn steps(told: OracleDecision) -> Vec<Step> {
    let outcome = |finding: Finding| match finding {
        Finding::NotApplicable(why) => format!("does not apply: {why}"),
        Finding::Applies(why) => format!("applies: {why}"),
        Finding::NoMatch(why) => format!("no match: {why}"),
        Finding::Logged => "matches, and only logs".to_owned(),
        Finding::Allowed => "allow".to_owned(),
        Finding::Denied(why) => format!("deny: {why}"),
        Finding::NextTier(why) => format!("next tier: {why}"),
    };
    told.trace
        .into_iter()
        .map(|step| Step { at: Decider::from(&step.place), outcome: outcome(step.finding) })
        .collect()
}
