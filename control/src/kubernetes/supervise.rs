//! Starts a follower for each kind that the server offers, and asks again for those that it does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use kube::Client;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::backoff::{Backoff, Chance};
use super::desk::SharedDesk;
use super::discovery::{Offer, discover};
use super::follow::{Event, Follower, Shared};
use super::kinds::{KINDS, KindId, STORED};
use super::ledger::Ledger;
use super::state::SOURCE;
use super::trouble::Trouble;
use crate::problem::{Problem, Severity};

/// How often kinds that are not there are asked for.
const MISSING: Duration = Duration::from_secs(30);
/// How long a server that answers may refuse to say whether it is ready before that is taken for its answer.
const REFUSED: Duration = Duration::from_secs(15);
/// From this minor version of Kubernetes 1 on, lists are streamed by default.
const STREAMS_SINCE: u32 = 34;

/// Runs until nobody listens.
pub(super) async fn supervise(client: Client, shared: Arc<Shared>, desk: SharedDesk, mut chance: Chance) {
    let mut followers = JoinSet::new();
    let mut running: BTreeMap<KindId, Id> = BTreeMap::new();
    let mut failures = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), chance.fork());
    let mut knows_version = false;
    let mut reads_stored = false;
    let mut readiness = Readiness::default();
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
        let readiness = readiness.judge(ask_ready(&client, ledger).await, Instant::now());
        let offer = match readiness {
            Ok(()) => discover(&client, &missing, ledger).await,
            Err(trouble) => Err(trouble),
        };
        let (events, wait) = match offer {
            Ok(offer) => {
                let Offer { served, unknown, has_no_calico } = offer;
                reads_stored |= served.values().any(|served| served.is_stored);
                desk.open().complain(STORED, reads_stored.then(|| stored(has_no_calico)));
                let mut events = vec![(None, Event::Connected)];
                for kind in &missing {
                    if let Some(trouble) = unknown.get(kind) {
                        events.push((Some(*kind), Event::Troubled(trouble.clone())));
                    } else if !served.contains_key(kind) {
                        events.push((Some(*kind), Event::Unserved));
                    }
                }
                for (kind, served) in served {
                    if !served.is_stored {
                        desk.open().served.insert(kind, served.clone());
                    }
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
        let is_whole = running.len() == KINDS.len() && !reads_stored;
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

/// What the one who moves from Calico has to know. A follower of stored objects stays with them: definitions that were just installed are
/// empty, and to change over by itself would take every policy away before somebody has moved them.
fn stored(has_no_calico: bool) -> Problem {
    let reason = if has_no_calico {
        "the API server has no projectcalico.org/v3: objects are read as Calico stores them, in crd.projectcalico.org/v1, and are in force; they get no \
         conditions, and Calico's own checks of what is written there are not made; to have both, move them to projectcalico.org/v3"
    } else {
        "the API server has projectcalico.org/v3 now, and objects are still read as Calico stores them, in crd.projectcalico.org/v1; move them \
         all, then restart the agents"
    };
    Problem::of_file(SOURCE, Severity::Warning, reason)
}

/// Asks whether the server is through with its start.
async fn ask_ready(client: &Client, ledger: &Ledger) -> Result<(), Trouble> {
    let request =
        Request::get("/readyz").body(Vec::new()).map_err(|error| Trouble::Refused(error.to_string()))?;
    let outcome = client.request_text(request).await;
    ledger.asked("get", "discovery", &outcome);
    outcome.map(drop).map_err(|error| Trouble::of("readiness of the API server", &error))
}

/// Whether a server is through with its start: before that it does not know its own CRDs, and an API that is installed looks as if it
/// were not.
///
/// Every account may ask unless somebody took that right away, so a refusal mostly means a server that does not know anybody's rights
/// yet. It counts as ready only when it refuses for [`REFUSED`] without another word in between. One that has no such page is ready.
#[derive(Debug, Default)]
struct Readiness {
    refused_since: Option<Instant>,
}

impl Readiness {
    /// Judges what was answered at `now`.
    fn judge(&mut self, answer: Result<(), Trouble>, now: Instant) -> Result<(), Trouble> {
        let Err(Trouble::Forbidden(_)) = &answer else {
            self.refused_since = None;
            return match answer {
                Err(Trouble::Missing(_)) => Ok(()),
                other => other,
            };
        };
        let since = *self.refused_since.get_or_insert(now);
        if now.duration_since(since) >= REFUSED { Ok(()) } else { answer }
    }
}

/// Returns whether a server of this version streams lists unless told otherwise.
fn streams(major: &str, minor: &str) -> bool {
    let minor = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    major == "1" && minor.parse().is_ok_and(|minor: u32| minor >= STREAMS_SINCE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{REFUSED, Readiness, Trouble, streams};

    /// A server of 1.20 refuses for the first moment of its start, then says that it is not ready and does not name its CRDs.
    #[test]
    fn a_refusal_to_say_whether_it_is_ready_is_no_answer_before_it_lasts() {
        let refused = || Err(Trouble::Forbidden("no".to_owned()));
        let busy = || Err(Trouble::Busy { reason: "starting".to_owned(), patience: Duration::ZERO });
        let (mut readiness, began) = (Readiness::default(), Instant::now());
        assert_eq!(readiness.judge(refused(), began), refused());
        assert_eq!(readiness.judge(busy(), began + REFUSED), busy(), "it began to answer");
        assert_eq!(readiness.judge(refused(), began + REFUSED), refused(), "counted from here on");
        assert_eq!(readiness.judge(refused(), began + 2 * REFUSED), Ok(()), "one that never lets us ask");
        assert_eq!(readiness.judge(Ok(()), began + 2 * REFUSED), Ok(()));
        assert_eq!(readiness.judge(Err(Trouble::Missing("none".to_owned())), began), Ok(()));
    }

    #[test]
    fn lists_are_streamed_by_servers_that_do_so_by_default() {
        assert!(streams("1", "34") && streams("1", "36+"));
        assert!(!streams("1", "20") && !streams("1", "33") && !streams("1", "") && !streams("2", "40"));
    }
}
