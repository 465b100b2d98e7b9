//! Starts a follower for each kind that the server offers, and asks again for those that it does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use kube::Client;
use tokio::task::{Id, JoinSet};

use super::backoff::{Backoff, Chance};
use super::desk::SharedDesk;
use super::discovery::{Offer, discover};
use super::follow::{Event, Follower, Shared};
use super::kinds::{KINDS, KindId};
use super::ledger::Ledger;
use super::state::SOURCE;
use super::trouble::Trouble;
use crate::problem::{Problem, Severity};

/// How often kinds that are not there are asked for.
const MISSING: Duration = Duration::from_secs(30);
/// From this minor version of Kubernetes 1 on, lists are streamed by default.
const STREAMS_SINCE: u32 = 34;

/// Runs until nobody listens.
pub(super) async fn supervise(client: Client, shared: Arc<Shared>, desk: SharedDesk, mut chance: Chance) {
    let mut followers = JoinSet::new();
    let mut running: BTreeMap<KindId, Id> = BTreeMap::new();
    let mut failures = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), chance.fork());
    let mut knows_version = false;
    loop {
        let missing: Vec<KindId> = KindId::all().filter(|kind| !running.contains_key(kind)).collect();
        let ledger = &shared.ledger;
        if !knows_version {
            let outcome = client.apiserver_version().await;
            ledger.asked("get", "discovery", &outcome);
            if let Ok(version) = outcome {
                knows_version = true;
                shared.streams.store(streams(&version.major, &version.minor), Ordering::Relaxed);
            }
        }
        let offer = match is_ready(&client, ledger).await {
            Ok(()) => discover(&client, &missing, ledger).await,
            Err(trouble) => Err(trouble),
        };
        let (events, wait) = match offer {
            Ok(offer) => {
                let Offer { served, unknown, has_old_calico } = offer;
                desk.open().complain("crd.projectcalico.org", has_old_calico.then(old_calico));
                let mut events = vec![(None, Event::Connected)];
                for kind in &missing {
                    if let Some(trouble) = unknown.get(kind) {
                        events.push((Some(*kind), Event::Troubled(trouble.clone())));
                    } else if !served.contains_key(kind) {
                        events.push((Some(*kind), Event::Unserved));
                    }
                }
                for (kind, served) in served {
                    desk.open().served.insert(kind, served.clone());
                    let follower = Follower {
                        client: client.clone(),
                        shared: Arc::clone(&shared),
                        kind,
                        served,
                        chance: chance.fork(),
                        was_listed: false,
                        was_watched: false,
                    };
                    running.insert(kind, followers.spawn(follower.run()).id());
                }
                let wait = if unknown.is_empty() {
                    failures.reset();
                    chance.around(MISSING)
                } else {
                    failures.next()
                };
                (events, wait)
            }
            Err(trouble) => {
                let patience = match &trouble {
                    Trouble::Busy { patience, .. } => *patience,
                    _ => Duration::ZERO,
                };
                (vec![(None, Event::Troubled(trouble))], failures.next().max(patience))
            }
        };
        for event in events {
            if shared.ear.send(event).await.is_err() {
                return;
            }
        }
        let is_whole = running.len() == KINDS.len();
        tokio::select! {
            () = tokio::time::sleep(wait), if !is_whole => {}
            () = shared.ear.closed() => return,
            ended = followers.join_next_with_id(), if !running.is_empty() => {
                let id = match ended {
                    Some(Ok((id, ()))) => id,
                    Some(Err(error)) => {
                        tracing::error!(%error, "a follower ended by itself");
                        error.id()
                    }
                    None => continue,
                };
                running.retain(|_, running| *running != id);
                // What the list says and what discovery says may differ for a moment.
                tokio::time::sleep(failures.next()).await;
            }
        }
    }
}

/// What the one who moves from Calico has to know.
fn old_calico() -> Problem {
    let reason = "the API server has objects of crd.projectcalico.org, which are not read, and no projectcalico.org/v3: policies among them are \
                  not in force; install the definitions of projectcalico.org/v3 and move the objects there";
    Problem::of_file(SOURCE, Severity::Error, reason)
}

/// Asks whether the server is through with its start: before that it does not know its own CRDs, and an API that is installed looks as if
/// it were not. A server that does not let us ask is taken to be.
async fn is_ready(client: &Client, ledger: &Ledger) -> Result<(), Trouble> {
    let request =
        Request::get("/readyz").body(Vec::new()).map_err(|error| Trouble::Refused(error.to_string()))?;
    let outcome = client.request_text(request).await;
    ledger.asked("get", "discovery", &outcome);
    match outcome.map_err(|error| Trouble::of("readiness of the API server", &error)) {
        Ok(_) | Err(Trouble::Forbidden(_) | Trouble::Missing(_)) => Ok(()),
        Err(trouble) => Err(trouble),
    }
}

/// Returns whether a server of this version streams lists unless told otherwise.
fn streams(major: &str, minor: &str) -> bool {
    let minor = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    major == "1" && minor.parse().is_ok_and(|minor: u32| minor >= STREAMS_SINCE)
}

#[cfg(test)]
mod tests {
    use super::streams;

    #[test]
    fn lists_are_streamed_by_servers_that_do_so_by_default() {
        assert!(streams("1", "34") && streams("1", "36+"));
        assert!(!streams("1", "20") && !streams("1", "33") && !streams("1", "") && !streams("2", "40"));
    }
}
