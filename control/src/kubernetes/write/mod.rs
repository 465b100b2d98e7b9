//! What goes back to the API server: conditions on policies and tiers, Events about what a user should mend, and the life of tiers.
//!
//! ```text
//!  desk ─▶ (one agent of the cluster: the holder of a Lease) ─▶ conditions, Events, tiers
//!            ▲                                                      │
//!            └──────────────── the watch tells what is there ◀──────┘
//! ```
//!
//! Levels, not edges: whatever changed on the desk is compared with what it should be, and only a difference is written. An answer comes
//! back through the watch, is compared again, and is found in order. What was written last is remembered too, so a server that drops a
//! field of ours is not written to again and again. Conditions are server-side applied under our own field manager: other people's
//! conditions stay theirs.
//!
//! What an agent says about its own Node is its own to write ([`notes`]), whoever holds the Lease.
//!
//! Writing is for people to read. It never delays policy, and a right that is missing for it is a warning, nothing more.

mod conditions;
mod events;
mod lease;
mod nodes;
mod notes;
mod secret;
mod tiers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::backoff::Chance;
use super::desk::{SharedDesk, Standing};
use super::discovery::Served;
use super::follow::Shared;
use super::kinds::KindId;
use super::ledger::{resource_of, verb_of};
use super::picture::Ident;
use super::state::SOURCE;
use super::trouble::Trouble;
use crate::problem::{Problem, Severity};
use lease::Lease;

pub(super) use nodes::NodeFindings;
pub use nodes::{NodeEvent, NodeEvents};
pub(super) use notes::keep;
pub use notes::{NodeNotes, Note};
pub(super) use secret::keep_secret;
pub use secret::{NodeSecret, SecretState};

/// Field manager of conditions.
const MANAGER: &str = "margay";
/// How often the desk is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Between two writes: fifty a second at most.
const PACE: Duration = Duration::from_millis(20);
/// What the server did not take is tried again after so long.
const LATER: Duration = Duration::from_secs(60);
/// A built-in tier that the server did not take is tried again after so long.
const TIERS_LATER: Duration = Duration::from_secs(20);
/// What was written is not written again for so long, whatever the server made of it.
const AGAIN: Duration = Duration::from_secs(600);

/// Requests of the writer.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    shared: Arc<Shared>,
}

impl Api {
    /// Returns a way to write.
    pub fn new(client: Client, shared: Arc<Shared>) -> Self {
        Self { client, shared }
    }

    /// Sends one request and returns the answer. Errors: [`Trouble`].
    async fn send(&self, verb: &str, path: &str, kind: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(verb)
            .uri(path)
            .header(http::header::CONTENT_TYPE, kind)
            .body(bytes)
            .map_err(|error| Trouble::Refused(error.to_string()))?;
        let what = || format!("{verb} of {}", path.split('?').next().unwrap_or_default());
        let outcome = self.client.request_text(request).await;
        self.shared.ledger.asked(verb_of(verb), &resource_of(path), &outcome);
        let text = outcome.map_err(|error| Trouble::of(&what(), &error))?;
        serde_json::from_str(&text).map_err(|error| Trouble::Refused(format!("{}: {error}", what())))
    }

    async fn get(&self, path: &str) -> Result<Value, Trouble> {
        self.send("GET", path, "application/json", None).await
    }

    async fn create(&self, path: &str, object: &Value) -> Result<Value, Trouble> {
        self.send("POST", path, "application/json", Some(object)).await
    }

    async fn replace(&self, path: &str, object: &Value) -> Result<Value, Trouble> {
        self.send("PUT", path, "application/json", Some(object)).await
    }

    async fn merge(&self, path: &str, patch: &Value) -> Result<Value, Trouble> {
        self.send("PATCH", path, "application/merge-patch+json", Some(patch)).await
    }

    /// The same, in the name of `manager`.
    async fn merge_as(&self, path: &str, manager: &str, patch: &Value) -> Result<Value, Trouble> {
        self.merge(&format!("{path}?fieldManager={manager}"), patch).await
    }

    /// Server-side apply: what `object` names is `manager`'s from now on, what it names no more is let go.
    async fn apply(&self, path: &str, manager: &str, object: &Value) -> Result<Value, Trouble> {
        let path = format!("{path}?fieldManager={manager}&force=true");
        // JSON is YAML.
        let outcome = self.send("PATCH", &path, "application/apply-patch+yaml", Some(object)).await;
        outcome.map_err(|trouble| match trouble {
            // Of the two rights that an apply takes, the server names only that to patch.
            Trouble::Forbidden(reason) => Trouble::Forbidden(with_right_to_create(reason)),
            other => other,
        })
    }
}

/// Adds what a server leaves out that refuses to make an object: it ends at the colon. Whatever else it refuses (a webhook's or a quota's
/// no, a token that is over) it says why itself.
fn with_right_to_create(reason: String) -> String {
    match reason.trim_end() {
        unfinished if unfinished.ends_with("is forbidden:") => {
            format!("{unfinished} it is not there, and making it takes the right to create")
        }
        _ => reason,
    }
}

/// Who this is, among the writers of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Name of this node.
    pub node: String,
    /// Namespace of the Lease.
    pub namespace: String,
}

/// Writes for as long as the agent runs.
pub(super) async fn write(api: Api, desk: SharedDesk, identity: Identity, chance: Chance) {
    let mut lease = Lease::new(identity.clone(), chance);
    let mut writer = Writer {
        api,
        desk,
        node: identity.node,
        written: BTreeMap::new(),
        later: BTreeMap::new(),
        tiers_later: None,
    };
    let mut held = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let rank = {
            let mut desk = writer.desk.open();
            if !desk.is_complete {
                continue;
            }
            let rank = desk.nodes.range(..writer.node.clone()).count();
            if !held {
                // Whoever takes over looks at everything, from `objects`.
                desk.dirty.clear();
            }
            rank
        };
        let now_held = match lease.hold(&writer.api, rank).await {
            Ok(now_held) => {
                writer.settle_complaint("lease", None);
                now_held
            }
            Err(trouble) => {
                writer.settle_complaint("lease", Some(&trouble));
                false
            }
        };
        if now_held && !held {
            tracing::info!(node = writer.node, "this agent writes status for the cluster");
            let mut desk = writer.desk.open();
            desk.dirty = desk.objects.keys().cloned().collect();
        } else if held && !now_held {
            tracing::info!(node = writer.node, "another agent writes status");
            writer.written.clear();
            writer.later.clear();
        }
        held = now_held;
        writer.tell_of_nodes(held).await;
        if held {
            writer.round(&mut lease, rank).await;
        }
    }
}

struct Writer {
    api: Api,
    desk: SharedDesk,
    node: String,
    /// What was written last, and when.
    written: BTreeMap<Ident, (Value, Instant)>,
    /// What was not taken, and when to try again.
    later: BTreeMap<Ident, Instant>,
    /// When to try again to make built-in tiers, where one was not taken.
    tiers_later: Option<Instant>,
}

impl Writer {
    /// Says what was found out about nodes.
    async fn tell_of_nodes(&mut self, held: bool) {
        let found = self.desk.open().node_events.take(held);
        for found in found {
            let event = nodes::event(&found, &self.node);
            match self.api.create("/api/v1/namespaces/default/events", &event).await {
                Err(Trouble::Conflict(_)) => {}
                outcome => {
                    let is_worth_another =
                        matches!(outcome, Err(Trouble::Unreachable(_) | Trouble::Busy { .. }));
                    self.settle("events", outcome);
                    if is_worth_another {
                        NodeEvents(self.desk.clone()).tell(found);
                    }
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// Brings what is there in line with what should be.
    async fn round(&mut self, lease: &mut Lease, rank: usize) {
        if self.tiers_later.is_none_or(|at| at <= Instant::now()) {
            let missing = tiers::missing(&self.desk.open());
            self.tiers_later = None;
            for (path, object) in missing {
                let outcome = self.api.apply(&path, tiers::MANAGER, &object).await;
                if !self.settle("tiers", outcome) {
                    self.tiers_later = Some(Instant::now() + TIERS_LATER);
                }
            }
        }
        let work = {
            let mut desk = self.desk.open();
            let mut work = std::mem::take(&mut desk.dirty);
            let now = Instant::now();
            work.extend(self.later.extract_if(.., |_, at| *at <= now).map(|(ident, _)| ident));
            if !work.is_empty() {
                // The end of a tier depends on the policies in it.
                work.extend(tiers::ending(&desk));
            }
            work
        };
        for ident in work {
            if !lease.is_fresh() && !lease.hold(&self.api, rank).await.unwrap_or(false) {
                self.desk.open().dirty.insert(ident);
                continue;
            }
            let found = {
                let desk = self.desk.open();
                let standing = desk.objects.get(&ident).cloned();
                standing.zip(desk.served.get(&ident.kind).cloned())
            };
            let Some((standing, served)) = found else {
                self.written.remove(&ident);
                continue;
            };
            self.look_after(&ident, &standing, &served).await;
        }
    }

    async fn look_after(&mut self, ident: &Ident, standing: &Standing, served: &Served) {
        let path = served.object(&ident.namespace, &ident.name);
        if tiers::is_tier(ident.kind) {
            let step = tiers::next_step(&self.desk.open(), ident, standing);
            let outcome = match step {
                tiers::Step::Nothing => None,
                tiers::Step::Guard(object) => Some(self.api.apply(&path, tiers::MANAGER, &object).await),
                tiers::Step::LetGo(patch) => Some(self.api.merge(&path, &patch).await),
            };
            if let Some(outcome) = outcome
                && self.settle_one(ident, "tiers", outcome)
            {
                tokio::time::sleep(PACE).await;
            }
        }
        if let Some(event) = events::event(ident, standing, &self.node) {
            let namespace = if ident.namespace.is_empty() { "default" } else { &ident.namespace };
            let events = format!("/api/v1/namespaces/{namespace}/events");
            match self.api.create(&events, &event).await {
                // It is there already: another agent, or an earlier run, said the same.
                Err(Trouble::Conflict(_)) => {}
                outcome => drop(self.settle_one(ident, "events", outcome)),
            }
            tokio::time::sleep(PACE).await;
        }
        if !(ident.kind.kind().has_conditions && served.has_status) {
            return;
        }
        let desired = {
            let desk = self.desk.open();
            conditions::desired(ident, standing, &desk)
        };
        if conditions::are_there(&desired, &standing.meta.conditions) {
            self.written.remove(ident);
            return;
        }
        // With the uid: an object that was made anew under its name has nothing of ours yet.
        let contents: Vec<Value> = desired.iter().map(conditions::Condition::content).collect();
        let said = json!([standing.meta.uid, contents]);
        if self.written.get(ident).is_some_and(|(before, at)| *before == said && at.elapsed() < AGAIN) {
            return;
        }
        let now = Timestamp::now();
        let status: Vec<Value> = desired.iter().map(|c| c.written(&standing.meta.conditions, now)).collect();
        let mut object = ident.document();
        object["status"] = json!({ "conditions": status });
        let outcome = self.api.apply(&format!("{path}/status"), MANAGER, &object).await;
        if self.settle_one(ident, &format!("{}/status", served.plural), outcome) {
            self.written.insert(ident.clone(), (said, Instant::now()));
            tokio::time::sleep(PACE).await;
        }
    }

    /// Notes how a write ended; returns whether it was taken. What was not is tried again: soon where it may go better by itself, later
    /// where somebody has to do something about it.
    fn settle_one(&mut self, ident: &Ident, what: &str, outcome: Result<Value, Trouble>) -> bool {
        match &outcome {
            Ok(_) | Err(Trouble::Missing(_)) => {}
            Err(Trouble::Unreachable(_) | Trouble::Busy { .. } | Trouble::Conflict(_)) => {
                self.desk.open().dirty.insert(ident.clone());
            }
            Err(_) => drop(self.later.insert(ident.clone(), Instant::now() + LATER)),
        }
        self.settle(what, outcome)
    }

    fn settle(&self, what: &str, outcome: Result<Value, Trouble>) -> bool {
        match outcome {
            Ok(_) => {
                self.settle_complaint(what, None);
                true
            }
            Err(trouble) => {
                self.settle_complaint(what, Some(&trouble));
                false
            }
        }
    }

    fn settle_complaint(&self, what: &str, trouble: Option<&Trouble>) {
        complain(&self.desk, what, "status", trouble);
    }
}

/// Names what keeps us from writing `what`, until it does not; `title` is how people call it.
fn complain(desk: &SharedDesk, what: &str, title: &str, trouble: Option<&Trouble>) {
    let text = match trouble {
        Some(Trouble::Forbidden(reason)) => {
            Some(format!("{title} cannot be written: a right is missing, grant it to the agent: {reason}"))
        }
        Some(Trouble::Refused(reason)) => Some(format!(
            "{title} cannot be written: the API server refuses it, check that its CRDs are those of this version: {reason}"
        )),
        Some(trouble) => {
            tracing::debug!(what, reason = trouble.reason(), "a write was not taken");
            return;
        }
        None => None,
    };
    let problem = text.map(|text| Problem::of_file(SOURCE, Severity::Warning, text));
    let words = problem.as_ref().map(|problem| problem.reason.clone());
    if desk.open().complain(what, problem)
        && let Some(words) = words
    {
        tracing::warn!("{words}");
    }
}

/// Returns the kind of that name in a group.
fn kind_of(group: &str, name: &str) -> Option<KindId> {
    KindId::all().find(|id| id.kind().group == group && id.kind().kind == name)
}

#[cfg(test)]
mod tests {
    use super::with_right_to_create;

    #[test]
    fn only_a_sentence_without_an_end_is_completed() {
        let told =
            with_right_to_create("tiers: tiers.projectcalico.org \"default\" is forbidden: ".to_owned());
        assert_eq!(
            told,
            "tiers: tiers.projectcalico.org \"default\" is forbidden: it is not there, and making it takes the right to create"
        );
        for whole in [
            "tiers: Unauthorized",
            "tiers: \"a\" is forbidden: User \"b\" cannot patch resource \"tiers\"",
            "events: \"e\" is forbidden: unable to create new content in namespace a because it is being terminated",
            "secrets: \"s\" is forbidden: exceeded quota: few, requested: secrets=1, used: secrets=1, limited: secrets=1",
            "policies: admission webhook \"w\" denied the request: no",
        ] {
            assert_eq!(with_right_to_create(whole.to_owned()), whole);
        }
    }
}
