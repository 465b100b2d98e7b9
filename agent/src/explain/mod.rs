//! Why a packet passes or not: both legs, tier by tier, with the rule that decided.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::admin::report::Decider;
use crate::simulate::probe::Probe;

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
}

/// One rule or one end of a tier that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Where.
    pub at: Decider,
    /// What came of it, such as `no match: destination port` or `Allow`.
    pub outcome: String,
}
