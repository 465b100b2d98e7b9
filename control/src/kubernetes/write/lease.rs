//! Who writes: the holder of a Lease, so that one agent of a cluster does and the others only would.
//!
//! Nobody trusts another's clock. A Lease is over when it did not change for its duration as measured here. To keep a thousand agents
//! from asking for one object, an agent asks the less often the later its node's name is in order: the first five every ten seconds, the
//! next five every twenty, and so on, ten minutes at most. So one of the first five takes over within a minute if any of them runs.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::backoff::Chance;
use super::super::trouble::Trouble;
use super::{Api, Identity};

const NAME: &str = "margay-status";
/// How long a Lease lasts that is not renewed.
const DURATION: Duration = Duration::from_secs(30);
/// How often it is renewed, and asked for by the first nodes.
const PERIOD: Duration = Duration::from_secs(10);
/// How often it is asked for by the last.
const SELDOM: Duration = Duration::from_secs(600);
/// So many nodes ask equally often.
const STEP: usize = 5;

/// The Lease, as seen from here.
pub(super) struct Lease {
    identity: Identity,
    chance: Chance,
    /// When to ask next.
    due: Instant,
    /// When it was ours last.
    renewed: Option<Instant>,
    /// Its version when it was seen to change, and when.
    seen: Option<(String, Instant)>,
    /// Why it could not be asked for the last time.
    trouble: Option<Trouble>,
}

impl Lease {
    /// Returns a Lease that was never asked for.
    pub fn new(identity: Identity, chance: Chance) -> Self {
        Self { identity, chance, due: Instant::now(), renewed: None, seen: None, trouble: None }
    }

    /// Whether it is ours for certain.
    pub fn is_fresh(&self) -> bool {
        self.renewed.is_some_and(|at| at.elapsed() < PERIOD)
    }

    /// Asks for it or renews it, when that is due; returns whether it is ours. `rank` is this node's place among all.
    ///
    /// Errors: the server's, until it is asked again; the Lease is not ours then.
    pub async fn hold(&mut self, api: &Api, rank: usize) -> Result<bool, Trouble> {
        if Instant::now() < self.due {
            if let Some(trouble) = &self.trouble {
                return Err(trouble.clone());
            }
            return Ok(self.renewed.is_some_and(|at| at.elapsed() < DURATION));
        }
        let outcome = self.ask(api).await;
        let ours = matches!(outcome, Ok(true));
        let now = Instant::now();
        self.renewed = if ours { Some(now) } else { None };
        self.due = now + if ours { PERIOD / 2 } else { self.chance.around(patience(rank)) };
        let outcome = match outcome {
            // Somebody was faster.
            Err(Trouble::Conflict(_)) => Ok(false),
            other => other,
        };
        self.trouble = outcome.as_ref().err().cloned();
        outcome
    }

    async fn ask(&mut self, api: &Api) -> Result<bool, Trouble> {
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.identity.namespace);
        let path = format!("{leases}/{NAME}");
        let now = format!("{:.6}", Timestamp::now());
        let mut lease = match api.get(&path).await {
            Ok(lease) => lease,
            Err(Trouble::Missing(_)) => {
                let fresh = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": { "name": NAME, "namespace": self.identity.namespace },
                    "spec": self.spec(&now, &now, 0),
                });
                return api.create(&leases, &fresh).await.map(|_| true);
            }
            Err(trouble) => return Err(trouble),
        };
        let spec = &lease["spec"];
        let holder = spec["holderIdentity"].as_str().unwrap_or_default().to_owned();
        let transitions = spec["leaseTransitions"].as_i64().unwrap_or_default();
        let acquired = spec["acquireTime"].as_str().unwrap_or(&now).to_owned();
        if holder == self.identity.node {
            lease["spec"] = self.spec(&acquired, &now, transitions);
        } else {
            let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            let since = match &self.seen {
                Some((known, since)) if *known == version => *since,
                _ => Instant::now(),
            };
            self.seen = Some((version, since));
            if !holder.is_empty() && since.elapsed() < DURATION {
                return Ok(false);
            }
            lease["spec"] = self.spec(&now, &now, transitions + 1);
        }
        // The version goes along: of two who try, one is refused.
        api.replace(&path, &lease).await.map(|_| true)
    }

    fn spec(&self, acquired: &str, now: &str, transitions: i64) -> Value {
        json!({
            "holderIdentity": self.identity.node, "leaseDurationSeconds": DURATION.as_secs(),
            "acquireTime": acquired, "renewTime": now, "leaseTransitions": transitions,
        })
    }
}

/// Returns how long a node of that rank waits before it asks again.
fn patience(rank: usize) -> Duration {
    let doublings = u32::try_from(rank / STEP).unwrap_or(u32::MAX);
    PERIOD.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(SELDOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_nodes_ask_often_and_a_thousand_ask_little() {
        assert_eq!(
            (patience(0), patience(4), patience(5), patience(999)),
            (PERIOD, PERIOD, 2 * PERIOD, SELDOM)
        );
        let a_second: f64 = (0..1_000).map(|rank| 1.0 / patience(rank).as_secs_f64()).sum();
        assert!(a_second < 3.0, "{a_second} requests a second");
    }
}
