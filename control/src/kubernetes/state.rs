//! From what followers tell to what is in force: a function of the server's objects as they are now and of the last picture on disk.
//!
//! ```text
//!  object ── valid? ──▶ in force, and its document goes into the picture
//!               │no
//!               ├─ valid before (now, or in the last picture)? ──▶ that form stays in force and in the picture (PM-D2)
//!               └─ never ──▶ its closed form (policy model 4.1), or nothing where it has none
//! ```
//!
//! Until every kind that the server offers was listed once, nothing is told: changes are held, so what is published first is one
//! consistent picture (policy model 28, row 1). A kind that the server does not offer counts as listed; what the last picture has of it
//! stays, because an API that went away is not the same as objects that were deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use margay_policy_engine::decode::{Origin, decode_value};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Object, ObjectKey};
use serde_json::Value;

use super::audit;
use super::desk::{InForce, OwnNode, SharedDesk, Standing};
use super::follow::{Event, Told};
use super::kinds::{Kept, KindId, Meta};
use super::picture::{Ident, Picture, Place};
use super::trouble::Trouble;
use crate::problem::{Problem, Severity};
use crate::reading::{Entry, Judged};

/// Name of this source in problems.
pub(super) const SOURCE: &str = "kubernetes";

/// An object that is in force, or would be.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// `resourceVersion`, where it is a number; zero otherwise.
    version: u64,
    /// Where its document is.
    place: Place,
    /// The document is a valid form.
    is_valid: bool,
    /// The list that named it last.
    list: u32,
    /// `metadata.generation` of what was told last.
    generation: i64,
    /// Its fingerprint, where changes are recorded; what is in force may be an earlier form.
    told: u64,
}

/// How far a kind is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing is known.
    #[default]
    Waiting,
    /// Listed at least once.
    Listed,
    /// The server does not have it.
    Unserved,
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct State {
    folder: PathBuf,
    picture: Picture,
    /// The picture of an earlier run, until ours is complete.
    earlier: Option<(Picture, BTreeMap<Ident, Place>)>,
    /// What is in force comes from the earlier picture.
    told_earlier: bool,
    objects: BTreeMap<Ident, Slot>,
    phases: BTreeMap<KindId, Phase>,
    lists: BTreeMap<KindId, u32>,
    complete: bool,
    held: Vec<Change>,
    problems: BTreeMap<Ident, Vec<Problem>>,
    troubles: BTreeMap<Option<KindId>, Trouble>,
    notices: Vec<Problem>,
    unsaved: Option<String>,
    desk: SharedDesk,
    /// Problems or troubles changed since they were last collected.
    is_news: bool,
}

impl State {
    /// Takes up where the picture in `folder` left off; nothing is in force before it is asked for or the server was heard.
    ///
    /// Errors: the folder cannot be written. A picture that cannot be read is a problem, not an error.
    pub fn open(folder: &Path, desk: SharedDesk) -> io::Result<Self> {
        let mut notices = Vec::new();
        let earlier = Picture::open(folder).unwrap_or_else(|error| {
            let reason = format!(
                "the last picture cannot be used ({error}): last valid forms of objects are not known; it is replaced by the next"
            );
            notices.push(Problem::of_file(folder.display().to_string(), Severity::Warning, reason));
            None
        });
        Ok(Self {
            folder: folder.to_owned(),
            picture: Picture::begin(folder)?,
            earlier,
            told_earlier: false,
            objects: BTreeMap::new(),
            phases: KindId::all().map(|kind| (kind, Phase::Waiting)).collect(),
            lists: BTreeMap::new(),
            complete: false,
            held: Vec::new(),
            problems: BTreeMap::new(),
            troubles: BTreeMap::new(),
            notices,
            unsaved: None,
            desk,
            is_news: true,
        })
    }

    /// Returns whether the server's picture is complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Returns whether what is in force may be from before: the server is not heard, or was not yet.
    pub fn is_stale(&self) -> bool {
        !self.complete || !self.troubles.is_empty()
    }

    /// Returns whether the server could not be reached so far, with nothing but silence expected soon.
    pub fn is_alone(&self) -> bool {
        self.troubles.values().any(|trouble| matches!(trouble, Trouble::Unreachable(_)))
    }

    /// Returns whether there is a last picture on disk that was not asked for.
    pub fn has_earlier(&self) -> bool {
        self.earlier.is_some() && !self.told_earlier
    }

    /// Returns whether the last picture on disk is what is in force.
    pub fn is_earlier_in_force(&self) -> bool {
        self.told_earlier && !self.complete
    }

    /// Returns what the last picture on disk has in force, once; `None` when there is none or the server was faster.
    pub fn earlier(&mut self) -> Option<Vec<Change>> {
        if self.complete || self.told_earlier {
            return None;
        }
        let (picture, places) = self.earlier.as_ref()?;
        self.told_earlier = true;
        let mut changes = Vec::with_capacity(places.len());
        for (ident, place) in places {
            match picture.read(*place) {
                Ok(document) => changes.extend(judge(ident, document).and_then(in_force).map(Change::Upsert)),
                Err(error) => self.notices.push(unreadable(&self.folder, ident, &error)),
            }
        }
        self.is_news = true;
        Some(changes)
    }

    /// Takes what a follower says; returns what is now otherwise in force.
    pub fn take(&mut self, (kind, event): Told, changes: &mut Vec<Change>) {
        let mut fresh = Vec::new();
        match (kind, event) {
            (kind, Event::Troubled(trouble)) => {
                self.is_news |= self.troubles.insert(kind, trouble.clone()) != Some(trouble);
            }
            (kind, Event::Connected) => self.is_news |= self.troubles.remove(&kind).is_some(),
            (Some(kind), Event::Listing) => *self.lists.entry(kind).or_default() += 1,
            (Some(kind), Event::Page(objects)) => {
                objects.into_iter().for_each(|kept| self.upsert(kind, kept, &mut fresh));
            }
            (Some(kind), Event::Listed) => {
                self.is_news |= self.troubles.remove(&Some(kind)).is_some();
                self.forget_unlisted(kind, &mut fresh);
                self.phases.insert(kind, Phase::Listed);
            }
            (Some(kind), Event::Applied(kept)) => self.upsert(kind, *kept, &mut fresh),
            (Some(kind), Event::Deleted(kept)) => {
                if let Some(ident) = Ident::of(kind, &kept.document) {
                    self.delete(&ident, &mut fresh);
                }
            }
            (Some(kind), Event::Unserved) => self.unserved(kind),
            (None, _) => {}
        }
        if self.complete {
            changes.append(&mut fresh);
            return;
        }
        self.held.append(&mut fresh);
        if self.phases.values().all(|phase| *phase != Phase::Waiting) {
            self.finish(changes);
        }
    }

    fn unserved(&mut self, kind: KindId) {
        self.is_news |= self.troubles.remove(&Some(kind)).is_some();
        let before = self.phases.insert(kind, Phase::Unserved);
        let has_objects =
            self.objects.range(first(kind)..).next().is_some_and(|(ident, _)| ident.kind == kind);
        if before == Some(Phase::Listed) && has_objects {
            let reason = format!(
                "the API server does not have {} any more; its objects stay in force as they were: install the API again to change or delete them",
                kind.kind().title()
            );
            self.notices.push(Problem::of_file(SOURCE, Severity::Error, reason));
            self.is_news = true;
        }
    }

    /// The server was heard about every kind: from now on its word is told as it comes.
    fn finish(&mut self, changes: &mut Vec<Change>) {
        self.keep_unserved();
        if let Err(error) = self.picture.promote() {
            self.unsaved = Some(error.to_string());
        }
        self.complete = true;
        self.is_news = true;
        changes.append(&mut self.held);
        if let Some((_, places)) = self.earlier.take()
            && self.told_earlier
        {
            let gone = places.keys().filter(|ident| !self.objects.contains_key(ident));
            changes.extend(gone.filter_map(key_of).map(Change::Delete));
        }
        self.desk.open().is_complete = true;
    }

    /// Takes over what the last picture has of kinds that the server does not have.
    fn keep_unserved(&mut self) {
        let Some((earlier, places)) = &self.earlier else { return };
        for (ident, place) in
            places.iter().filter(|(ident, _)| self.phases.get(&ident.kind) == Some(&Phase::Unserved))
        {
            let document = match earlier.read(*place) {
                Ok(document) => document,
                Err(error) => {
                    self.notices.push(unreadable(&self.folder, ident, &error));
                    continue;
                }
            };
            let Some(entry) = judge(ident, document.clone()) else { continue };
            let is_valid = matches!(entry.judged, Judged::Valid { .. });
            if let Some(object) = in_force(entry) {
                let place = self.picture.put(&document, None);
                self.objects.insert(
                    ident.clone(),
                    Slot { version: 0, place, is_valid, list: 0, generation: 0, told: 0 },
                );
                self.held.push(Change::Upsert(object));
            }
        }
    }

    fn upsert(&mut self, kind: KindId, kept: Kept, changes: &mut Vec<Change>) {
        let Kept { document, meta } = kept;
        let Some(ident) = Ident::of(kind, &document) else {
            tracing::warn!(kind = kind.kind().title(), "an object without a name is passed over");
            self.desk.open().ledger.unreadable(&kind.kind().title());
            return;
        };
        self.note_node(&ident, &meta);
        let list = self.lists.get(&kind).copied().unwrap_or_default();
        let version = meta.version.parse().unwrap_or_default();
        if let Some(slot) = self.objects.get_mut(&ident)
            && slot.version == version
            && version != 0
        {
            // Listed again, and the same: nothing to judge.
            slot.list = list;
            return;
        }
        let before = self.objects.get(&ident).copied();
        let generation = meta.generation;
        let told = if audit::records(kind) { audit::fingerprint(&document) } else { 0 };
        let is_change = self.complete && audit::records(kind) && before.is_none_or(|slot| slot.told != told);
        let tier = document.pointer("/spec/tier").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(entry) = judge(&ident, document.clone()) else {
            // Not an object of a kind that is judged; cannot come from a table of such kinds.
            self.desk.open().ledger.unreadable(&kind.kind().title());
            return;
        };
        let mut problems = Vec::new();
        entry.report(&mut problems);
        let in_force = match entry.judged {
            Judged::Valid { object, .. } => {
                let place = self.picture.put(&document, before.map(|slot| slot.place));
                self.objects
                    .insert(ident.clone(), Slot { version, place, is_valid: true, list, generation, told });
                changes.push(Change::Upsert(object));
                InForce::AsWritten
            }
            Judged::Invalid { .. } if before.is_some_and(|slot| slot.is_valid) => {
                if let Some(slot) = self.objects.get_mut(&ident) {
                    (slot.version, slot.list) = (version, list);
                    (slot.generation, slot.told) = (generation, told);
                }
                InForce::LastValid
            }
            Judged::Invalid { fallback, .. } => match self.earlier_valid(&ident) {
                Some((object, document)) => {
                    let place = self.picture.put(&document, None);
                    self.objects.insert(
                        ident.clone(),
                        Slot { version, place, is_valid: true, list, generation, told },
                    );
                    changes.push(Change::Upsert(object));
                    InForce::LastValid
                }
                None => {
                    let place = self.picture.put(&document, before.map(|slot| slot.place));
                    self.objects.insert(
                        ident.clone(),
                        Slot { version, place, is_valid: false, list, generation, told },
                    );
                    let closed = fallback.filter(|object| object.key() == entry.key);
                    let in_force = if closed.is_some() { InForce::Closed } else { InForce::Nothing };
                    changes.push(closed.map_or(Change::Delete(entry.key), Change::Upsert));
                    in_force
                }
            },
        };
        if is_change {
            audit::written(&ident, &meta, before.is_some(), in_force);
        }
        self.report(&ident, problems, meta, tier, in_force);
    }

    /// Returns the valid form that the last picture has of an object, and its document.
    fn earlier_valid(&self, ident: &Ident) -> Option<(Object, Value)> {
        let (picture, places) = self.earlier.as_ref()?;
        let document = picture.read(*places.get(ident)?).ok()?;
        match judge(ident, document.clone())?.judged {
            Judged::Valid { object, .. } => Some((object, document)),
            Judged::Invalid { .. } => None,
        }
    }

    fn delete(&mut self, ident: &Ident, changes: &mut Vec<Change>) {
        if ident.kind.kind().title() == "Node" {
            let mut desk = self.desk.open();
            desk.nodes.remove(&ident.name);
            if desk.node == ident.name {
                desk.own_node = None;
            }
        }
        self.is_news |= self.problems.remove(ident).is_some();
        self.desk.open().note(ident, None);
        if let Some(slot) = self.objects.remove(ident) {
            if self.complete && audit::records(ident.kind) {
                audit::deleted(ident, slot.generation);
            }
            self.picture.remove(ident, slot.place);
            changes.extend(key_of(ident).map(Change::Delete));
        }
    }

    /// Lets go of objects that the list that just ended did not name.
    fn forget_unlisted(&mut self, kind: KindId, changes: &mut Vec<Change>) {
        let list = self.lists.get(&kind).copied().unwrap_or_default();
        let gone: Vec<Ident> = self
            .objects
            .range(first(kind)..)
            .take_while(|(ident, _)| ident.kind == kind)
            .filter(|(_, slot)| slot.list != list)
            .map(|(ident, _)| ident.clone())
            .collect();
        gone.iter().for_each(|ident| self.delete(ident, changes));
    }

    fn note_node(&self, ident: &Ident, meta: &Meta) {
        if ident.kind.kind().title() == "Node" {
            let mut desk = self.desk.open();
            desk.nodes.insert(ident.name.clone());
            if desk.node == ident.name {
                desk.own_node =
                    Some(OwnNode { uid: meta.uid.clone(), annotations: meta.annotations.clone() });
            }
        }
    }

    /// Notes how an object stands, for everybody who asks.
    fn report(&mut self, ident: &Ident, problems: Vec<Problem>, meta: Meta, tier: String, in_force: InForce) {
        let needs_desk = ident.kind.kind().has_conditions || !problems.is_empty();
        let standing = needs_desk.then(|| Standing { meta, tier, problems: problems.clone(), in_force });
        self.desk.open().note(ident, standing);
        if problems.is_empty() {
            self.is_news |= self.problems.remove(ident).is_some();
        } else if self.problems.get(ident) != Some(&problems) {
            problems.iter().for_each(|problem| tracing::warn!("{problem}"));
            self.problems.insert(ident.clone(), problems);
            self.is_news = true;
        }
    }

    /// Brings the disk up to date. `durably`: also against a loss of power.
    pub fn store(&mut self, durably: bool) {
        let mut result = if durably { self.picture.sync() } else { self.picture.flush() };
        if result.is_ok() && self.complete && self.picture.is_worth_copying() {
            result = self.picture.copy(self.objects.values_mut().map(|slot| &mut slot.place));
        }
        let failure = result.err().map(|error| error.to_string());
        if self.unsaved != failure {
            self.unsaved = failure;
            self.is_news = true;
        }
    }

    /// Returns everything that is wrong as of now if it is otherwise than at the last call.
    pub fn problems(&mut self) -> Option<Vec<Problem>> {
        let complaints = {
            let mut desk = self.desk.open();
            self.is_news |= std::mem::take(&mut desk.has_new_complaints);
            if !std::mem::take(&mut self.is_news) {
                return None;
            }
            desk.complaints.values().cloned().collect::<Vec<_>>()
        };
        let mut problems = self.notices.clone();
        problems.extend(complaints);
        if self.told_earlier && !self.complete {
            let reason = "the API server was not heard since the start: the last complete picture on disk is in force until it is";
            problems.push(Problem::of_file(SOURCE, Severity::Error, reason));
        }
        let reasons: BTreeSet<String> = self.troubles.values().map(in_words).collect();
        problems.extend(reasons.into_iter().map(|reason| Problem::of_file(SOURCE, Severity::Error, reason)));
        if let Some(error) = &self.unsaved {
            let reason = format!(
                "the picture cannot be stored ({error}): a restart would not know it; make room or check the folder"
            );
            problems.push(Problem::of_file(self.folder.display().to_string(), Severity::Error, reason));
        }
        problems.extend(self.problems.values().flatten().cloned());
        problems.sort();
        problems.dedup();
        Some(problems)
    }
}

fn in_words(trouble: &Trouble) -> String {
    let reason = trouble.reason();
    match trouble {
        Trouble::Unreachable(_) => {
            format!("the API server cannot be reached; what it said last stays in force: {reason}")
        }
        Trouble::Busy { .. } => {
            format!("the API server is in trouble; what it said last stays in force: {reason}")
        }
        Trouble::Forbidden(_) => format!("a right is missing, grant it to the agent: {reason}"),
        _ => reason,
    }
}

fn unreadable(folder: &Path, ident: &Ident, error: &io::Error) -> Problem {
    let what = format!("{} {}/{}", ident.kind.kind().title(), ident.namespace, ident.name);
    let reason = format!(
        "the last picture of {what} cannot be read ({error}); it is not in force before the API server is heard"
    );
    Problem::of_file(folder.display().to_string(), Severity::Warning, reason)
}

/// Returns what sorts before every object of a kind.
fn first(kind: KindId) -> Ident {
    Ident { kind, namespace: String::new(), name: String::new() }
}

fn judge(ident: &Ident, document: Value) -> Option<Entry> {
    let origin = Origin { file: SOURCE.to_owned(), line: 0 };
    let decoded = decode_value(document, origin).into_iter().next()?;
    let entry = Entry::of(decoded);
    if entry.is_none() {
        tracing::warn!(
            kind = ident.kind.kind().title(),
            namespace = ident.namespace,
            name = ident.name,
            "cannot be judged"
        );
    }
    entry
}

/// Returns what an object puts in force that has no earlier form.
fn in_force(entry: Entry) -> Option<Object> {
    match entry.judged {
        Judged::Valid { object, .. } => Some(object),
        Judged::Invalid { fallback, .. } => fallback.filter(|object| object.key() == entry.key),
    }
}

/// Returns the key under which the engine knows an object.
fn key_of(ident: &Ident) -> Option<ObjectKey> {
    judge(ident, ident.document()).map(|entry| entry.key)
}

#[cfg(test)]
mod tests;
