//! Annotations that an agent writes on its own Node.
//!
//! ```text
//!  owner ─ say ─▶ NodeNotes ─▶ wanted ─┐
//!                                      ├─ differ? ─▶ one apply, the owner being the field manager
//!  watch of Nodes ──────────▶ there ───┘
//! ```
//!
//! Each owner says everything that it wants to stand there, as often as it likes; what differs from what the watch tells is applied, and
//! nothing else is sent. Server-side apply with one field manager an owner means: what an owner says no more is taken away, what somebody
//! else wrote stays, and of two owners neither needs to know the other. What somebody changed or removed is put right again, also what an
//! earlier run of the agent left.
//!
//! API servers before 1.30 cannot apply to a Node with two addresses of one type, which is every Node of a cluster of two address
//! families: they take `status.addresses` for a map by type. Such a server answers 500, and gets a merge patch under the same field
//! manager instead. What an earlier run left is then taken away only where the owner says [`Note::Absent`].
//!
//! A Node is watched by every agent of the cluster, so each write costs as many events as there are nodes. Hence values must not be
//! numbers that move, one owner writes every [`GAP`] at most, and a state that comes back unchanged after the API server was away is not
//! written: what the server has says it already.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::backoff::Chance;
use super::super::desk::{OwnNode, SharedDesk};
use super::super::trouble::Trouble;
use super::{AGAIN, Api, LATER, LOOK, complain};

/// Between two writes of one owner.
const GAP: Duration = Duration::from_secs(10);
/// After a write that may go better by itself.
const SOON: Duration = Duration::from_secs(5);
/// Between a state and the time since when.
const SINCE: &str = " since ";

/// The value of one annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// What is written.
    Text(String),
    /// A state, which is written with the time of its beginning: `ready since 2026-01-01T00:00:00Z`. Where the Node has the state
    /// already, its time stays.
    State(String),
    /// Not there. To leave the annotation out mostly means the same; an owner that can be switched off names what must go then.
    Absent,
}

/// Values by annotation; none where it must not be there.
type Values = BTreeMap<String, Option<String>>;

/// What should stand in the annotations of this agent's Node. Clones are the same notes.
///
/// ```
/// # use std::collections::BTreeMap;
/// # use margay_control::kubernetes::{NodeNotes, Note};
/// let notes = NodeNotes::default(); // or `Kubernetes::node_notes()`
/// let key = ("projectcalico.org/WireguardPublicKey".to_owned(), Note::Text("base64…".to_owned()));
/// notes.say("margay-wireguard", BTreeMap::from([key]));
/// notes.say("margay-wireguard", BTreeMap::new()); // takes it away again
/// ```
#[derive(Clone, Debug, Default)]
pub struct NodeNotes(Arc<Mutex<BTreeMap<&'static str, BTreeMap<String, Note>>>>);

impl NodeNotes {
    /// Sets everything that `owner` wants to stand there; what it said before and not now is taken away. The owner's name is the field
    /// manager that the API server shows, such as `margay-node`. Returns at once; writing happens when the server can be reached.
    pub fn say(&self, owner: &'static str, notes: BTreeMap<String, Note>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(owner, notes);
    }

    fn all(&self) -> BTreeMap<&'static str, BTreeMap<String, Note>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What was applied for one owner in this run.
#[derive(Default)]
struct Applied {
    /// On which Node; another one of the same name has nothing of ours.
    uid: String,
    values: Values,
    /// When to write again at the earliest.
    due: Option<Instant>,
}

/// Keeps the annotations of this node in order for as long as the agent runs.
pub(in super::super) async fn keep(api: Api, desk: SharedDesk, notes: NodeNotes, mut chance: Chance) {
    let mut applied: BTreeMap<&'static str, Applied> = BTreeMap::new();
    let mut merges = false;
    loop {
        tokio::time::sleep(LOOK).await;
        for (owner, wanted) in notes.all() {
            let (node, own) = {
                let desk = desk.open();
                (desk.node.clone(), desk.own_node.clone())
            };
            // A Node that is not there is not ours to make.
            let Some(own) = own else { continue };
            let before = applied.entry(owner).or_default();
            let values = composed(&wanted, &own.annotations, Timestamp::now());
            if is_there(&values, before, &own) || before.due.is_some_and(|due| Instant::now() < due) {
                continue;
            }
            let path = format!("/api/v1/nodes/{node}");
            let mut outcome = match merges {
                false => api.apply(&path, owner, &to_apply(&node, &own, &values)).await,
                true => api.merge_as(&path, owner, &to_merge(&own, before, &values)).await,
            };
            if !merges && matches!(outcome, Err(Trouble::Busy { patience: Duration::ZERO, .. })) {
                outcome = api.merge_as(&path, owner, &to_merge(&own, before, &values)).await;
                merges = outcome.is_ok();
            }
            let wait = match &outcome {
                Ok(answer) if has_all(&values, answer) => GAP,
                // Somebody between us and the store thinks otherwise, and will so next time.
                Ok(_) => AGAIN,
                Err(Trouble::Unreachable(_) | Trouble::Conflict(_) | Trouble::Missing(_)) => {
                    chance.around(SOON)
                }
                Err(Trouble::Busy { patience, .. }) => chance.around(SOON.max(*patience)),
                Err(_) => LATER,
            };
            before.due = Some(Instant::now() + wait);
            if outcome.is_ok() {
                tracing::debug!(owner, ?values, "annotations of this node are written");
                (before.uid, before.values) = (own.uid, values);
            }
            complain(&desk, owner, "annotations of this node", outcome.as_ref().err());
        }
    }
}

/// Returns what an owner applies. With the uid, so that nothing is made where the Node went meanwhile.
fn to_apply(node: &str, own: &OwnNode, values: &Values) -> Value {
    let values: BTreeMap<_, _> = values.iter().filter(|(_, value)| value.is_some()).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": node, "uid": own.uid, "annotations": values },
    })
}

/// Returns the merge patch that does the same, as far as it is known what to take away.
fn to_merge(own: &OwnNode, before: &Applied, values: &Values) -> Value {
    let mut annotations: Values = before.values.keys().map(|key| (key.clone(), None)).collect();
    annotations.extend(values.clone());
    json!({ "metadata": { "uid": own.uid, "annotations": annotations } })
}

/// Returns what is written for `wanted`, given what is there.
fn composed(wanted: &BTreeMap<String, Note>, there: &BTreeMap<String, String>, now: Timestamp) -> Values {
    let value = |(key, note): (&String, &Note)| {
        let goes_on =
            |there: &&String, state: &str| there.split_once(SINCE).is_some_and(|(known, _)| known == state);
        let text = match note {
            Note::Text(text) => Some(text.clone()),
            Note::State(state) => match there.get(key).filter(|there| goes_on(there, state)) {
                Some(there) => Some(there.clone()),
                None => Some(format!("{state}{SINCE}{now:.0}")),
            },
            Note::Absent => None,
        };
        (key.clone(), text)
    };
    wanted.iter().map(value).collect()
}

/// Whether nothing has to be written: all is there, and nothing that was ours and is not wanted any more.
///
/// What an earlier run wrote is not known, so the first time in a run there always is something to write.
fn is_there(values: &Values, before: &Applied, own: &OwnNode) -> bool {
    before.uid == own.uid
        && values.iter().all(|(key, value)| own.annotations.get(key) == value.as_ref())
        && before.values.keys().all(|key| values.contains_key(key) || !own.annotations.contains_key(key))
}

/// Whether the server's answer has what was sent.
fn has_all(values: &Values, answer: &Value) -> bool {
    let annotations = &answer["metadata"]["annotations"];
    values.iter().all(|(key, value)| annotations[key.as_str()].as_str() == value.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn wanted(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned()))).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_state_keeps_the_time_of_its_beginning_and_another_gets_its_own() {
        let notes = BTreeMap::from([
            ("a".to_owned(), Note::State("ready".to_owned())),
            ("b".to_owned(), Note::Text("as it is".to_owned())),
            ("c".to_owned(), Note::Absent),
        ]);
        let mut first = composed(&notes, &BTreeMap::new(), at(0));
        assert_eq!(first.remove("c"), Some(None));
        let text = "ready since 1970-01-01T00:00:00Z";
        assert_eq!(first, wanted(&[("a", text), ("b", "as it is")]));
        assert_eq!(composed(&notes, &texts(&[("a", text)]), at(60))["a"].as_deref(), Some(text));
        let other = texts(&[("a", "ready to go since 1970-01-01T00:00:00Z")]);
        assert_eq!(
            composed(&notes, &other, at(60))["a"].as_deref(),
            Some("ready since 1970-01-01T00:01:00Z")
        );
    }

    #[test]
    fn what_is_there_is_not_written_and_what_is_no_longer_wanted_is_taken_away() {
        let own = OwnNode { uid: "u".to_owned(), annotations: texts(&[("a", "1"), ("others", "x")]) };
        let applied = |uid: &str, values| Applied { uid: uid.to_owned(), values, due: None };
        let (one, none) = (wanted(&[("a", "1")]), Values::new());
        assert!(!is_there(&one, &applied("", none.clone()), &own), "the first time");
        assert!(!is_there(&one, &applied("earlier", one.clone()), &own));
        assert!(is_there(&one, &applied("u", one.clone()), &own));
        assert!(!is_there(&wanted(&[("a", "2")]), &applied("u", one.clone()), &own), "changed");
        assert!(!is_there(&none, &applied("u", one.clone()), &own), "not wanted any more");
        assert!(is_there(&none, &applied("u", wanted(&[("gone", "1")])), &own));
        let absent = |key: &str| Values::from([(key.to_owned(), None)]);
        assert!(!is_there(&absent("a"), &applied("u", none.clone()), &own));
        assert!(is_there(&absent("gone"), &applied("u", none), &own));

        let patch =
            to_merge(&own, &applied("u", wanted(&[("gone", "1"), ("a", "1")])), &wanted(&[("a", "2")]));
        assert_eq!(patch["metadata"]["annotations"], json!({ "a": "2", "gone": null }));
        let object = to_apply("n", &own, &absent("a"));
        assert_eq!(
            (&object["metadata"]["annotations"], &object["metadata"]["uid"]),
            (&json!({}), &json!("u"))
        );
    }
}
