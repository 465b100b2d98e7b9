//! From files to what is in force: a function of the files as they are now and of the store, whatever happened in between.
//!
//! ```text
//!  file ── whole? ──yes──▶ its documents, remembered as the last whole reading
//!             │no
//!             ├─ read whole before? ──▶ the last whole reading: a broken file changes nothing
//!             └─ never ───────────────▶ the documents that can be read
//!
//!  document ── valid? ──▶ in force, remembered as the last valid form
//!                 │no
//!                 ├─ valid before? ──▶ the last valid form, stored with this file for as long as it is needed
//!                 └─ never ──────────▶ its closed form (policy model 4.1), or nothing where it has none
//! ```
//!
//! Where two documents describe one object, the first in the order of paths counts, and no other is looked at. A deleted file takes its
//! objects with it; a *folder* that cannot be looked into does not: what was known under it stays.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use margay_policy_engine::decode::decode_value;
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Object, ObjectKey};

use super::forms::{Forms, Last, judge};
use super::overlay::{Overlay, Patches};
use super::store::{Form, Record, Store};
use crate::listing::{Listing, Stamp};
use crate::manifests::is_first;
use crate::problem::{Problem, Severity, object_name};
use crate::reading::{Entry, Judged, Reading, read_text};

/// One manifest file.
#[derive(Debug, Default)]
struct Manifest {
    /// What the file looked like when it was read; `None` before the first reading of this run, and after one that failed.
    stamp: Option<Stamp>,
    /// The last reading in which every document could be read, with its text.
    whole: Option<(Reading, Arc<str>)>,
    /// The present reading, when it is not whole.
    broken: Option<Reading>,
    /// The record on disk has another text.
    dirty: bool,
    /// Objects and versions of the last valid forms in the record on disk.
    stored: Vec<(String, String)>,
}

impl Manifest {
    fn effective(&self) -> Option<&Reading> {
        self.whole.as_ref().map(|(reading, _)| reading).or(self.broken.as_ref())
    }
}

/// One overlay file.
#[derive(Debug, Default)]
struct OverlayFile {
    stamp: Option<Stamp>,
    patches: Patches,
    problems: Vec<Problem>,
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct State {
    store: Store,
    manifests: BTreeMap<PathBuf, Manifest>,
    overlay: BTreeMap<PathBuf, OverlayFile>,
    /// Last valid forms, of objects that some file describes.
    forms: Forms,
    /// What was told.
    told: BTreeMap<ObjectKey, Object>,
    damaged: Vec<Problem>,
    failed_writes: BTreeMap<PathBuf, io::Error>,
}

impl State {
    /// Takes up where the store left off; nothing is in force before the first [`State::look`].
    pub fn open(store: Store) -> io::Result<Self> {
        let (records, damaged) = store.load()?;
        let damaged = damaged.into_iter().map(|(path, reason)| {
            let reason =
                format!("a stored record cannot be used and is passed over: {reason}; it may be deleted");
            Problem::of_file(path.display().to_string(), Severity::Warning, reason)
        });
        let mut state = Self {
            store,
            manifests: BTreeMap::new(),
            overlay: BTreeMap::new(),
            forms: Forms::default(),
            told: BTreeMap::new(),
            damaged: damaged.collect(),
            failed_writes: BTreeMap::new(),
        };
        for record in records {
            let reading = Reading::of_text(&record.text, &record.path.display().to_string());
            let stored = record.valid.iter().map(Form::name).collect();
            for form in record.valid {
                state.forms.restore(form);
            }
            let whole = Some((reading, record.text.into()));
            state.manifests.insert(record.path, Manifest { whole, stored, ..Manifest::default() });
        }
        // What is valid where it counts is its own last valid form; a later description of what is not is nobody's.
        let mut seen = BTreeSet::new();
        for (reading, text) in state.manifests.values().filter_map(|manifest| manifest.whole.as_ref()) {
            for entry in &reading.entries {
                if seen.insert(&entry.key)
                    && let Some(last) = Last::of(entry, text)
                {
                    state.forms.insert(entry.key.clone(), last);
                }
            }
        }
        Ok(state)
    }

    /// Looks at the world: reads what changed (and everything in `suspects`), and returns the differences to what was told.
    pub fn look(
        &mut self,
        manifests: &Listing,
        overlay: &Listing,
        suspects: &BTreeSet<PathBuf>,
        all: bool,
    ) -> (Vec<Change>, Vec<Problem>) {
        for (path, stamp) in &manifests.files {
            let manifest = self.manifests.entry(path.clone()).or_default();
            if all || manifest.stamp != Some(*stamp) || suspects.contains(path) {
                manifest.read(path, *stamp);
            }
        }
        let gone = |path: &PathBuf| !manifests.files.contains_key(path) && !manifests.is_lost(path);
        let removed: Vec<PathBuf> = self.manifests.keys().filter(|path| gone(path)).cloned().collect();
        for path in &removed {
            self.manifests.remove(path);
        }
        self.look_at_overlay(overlay, suspects, all);

        let mut problems = self.damaged.clone();
        for (path, error) in manifests.lost.iter().chain(&overlay.lost) {
            let reason =
                format!("cannot be looked into: {error}; what was read from it before stays in force");
            problems.push(Problem::of_file(path.display().to_string(), Severity::Critical, reason));
        }
        let unsound = self.unsound();
        self.forms.set_apart(unsound.values().flatten());
        let wanted = self.evaluate(&mut problems);
        let changes = differences(&self.told, &wanted);
        self.told = wanted;
        self.persist(&removed, &unsound);
        for (path, error) in &self.failed_writes {
            let reason = format!(
                "its last valid form cannot be stored ({error}): a restart would not know it; make room or check the store's folder"
            );
            problems.push(Problem::of_file(path.display().to_string(), Severity::Error, reason));
        }
        problems.sort();
        problems.dedup();
        (changes, problems)
    }

    /// Returns whether every file was read and every last valid form is stored, so that nothing is to be tried again.
    pub fn is_settled(&self) -> bool {
        let mut stamps = self
            .manifests
            .values()
            .map(|file| file.stamp)
            .chain(self.overlay.values().map(|file| file.stamp));
        self.failed_writes.is_empty() && stamps.all(|stamp| stamp.is_some())
    }

    fn look_at_overlay(&mut self, listing: &Listing, suspects: &BTreeSet<PathBuf>, all: bool) {
        for (path, stamp) in &listing.files {
            let file = self.overlay.entry(path.clone()).or_default();
            if !all && file.stamp == Some(*stamp) && !suspects.contains(path) {
                continue;
            }
            file.stamp = Some(*stamp);
            let name = path.display().to_string();
            let read = read_text(path)
                .map_err(|unread| {
                    file.stamp = file.stamp.filter(|_| !unread.may_pass);
                    vec![Problem::of_file(name.clone(), Severity::Error, unread.reason)]
                })
                .and_then(|text| Patches::read(&text, &name));
            match read {
                Ok(patches) => (file.patches, file.problems) = (patches, Vec::new()),
                Err(problems) => file.problems = problems,
            }
        }
        self.overlay.retain(|path, _| listing.files.contains_key(path) || listing.is_lost(path));
    }

    /// Returns the objects, by file, whose description counts and is not valid.
    fn unsound(&self) -> BTreeMap<PathBuf, Vec<ObjectKey>> {
        let mut seen = BTreeSet::new();
        let mut unsound: BTreeMap<PathBuf, Vec<ObjectKey>> = BTreeMap::new();
        for (path, manifest) in &self.manifests {
            for entry in manifest.effective().iter().flat_map(|reading| &reading.entries) {
                if seen.insert(&entry.key) && matches!(entry.judged, Judged::Invalid { .. }) {
                    unsound.entry(path.clone()).or_default().push(entry.key.clone());
                }
            }
        }
        unsound
    }

    /// Returns what shall be in force, and keeps the last valid forms of what is described.
    fn evaluate(&mut self, problems: &mut Vec<Problem>) -> BTreeMap<ObjectKey, Object> {
        let overlay = Overlay::of(self.overlay.values().map(|file| &file.patches));
        problems.extend(self.overlay.values().flat_map(|file| file.problems.iter().cloned()));
        let mut wanted = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let mut forms = Forms::default();
        for manifest in self.manifests.values() {
            if let Some(broken) = &manifest.broken {
                problems.extend(broken.broken.iter().cloned());
            }
            let Some(reading) = manifest.effective() else { continue };
            for entry in &reading.entries {
                let document = || serde_json::from_str(entry.document.as_deref()?).ok();
                let merged = overlay.apply(&entry.key, document).and_then(|value| {
                    let document = Some(value.to_string().into());
                    let decoded = decode_value(value, entry.origin.clone()).into_iter().next()?;
                    Some(Entry { document, ..Entry::of(decoded)? })
                });
                let entry = merged.as_ref().filter(|merged| merged.key == entry.key).unwrap_or(entry);
                if !is_first(&mut seen, entry, problems) {
                    continue;
                }
                entry.report(problems);
                match &entry.judged {
                    Judged::Valid { object, .. } => {
                        if let Some((_, text)) = &manifest.whole
                            && let Some(last) = Last::of(entry, text)
                        {
                            forms.insert(entry.key.clone(), last);
                        }
                        wanted.insert(entry.key.clone(), object.clone());
                    }
                    Judged::Invalid { fallback, .. } => {
                        let last = self.forms.get(&entry.key);
                        let name = object_name(&entry.key);
                        // The overlay is current knowledge and goes over the old form too, unless that makes it invalid.
                        let merged = overlay.apply(&entry.key, || last?.document());
                        let before = merged
                            .and_then(|document| judge(&name, document))
                            .or_else(|| judge(&name, last?.document()?));
                        if let (Some(last), Some(_)) = (last, &before) {
                            forms.insert(entry.key.clone(), last.clone());
                        }
                        let object = before.map(|(_, object)| object).or_else(|| fallback.clone());
                        if let Some(object) = object.filter(|object| object.key() == entry.key) {
                            wanted.insert(entry.key.clone(), object);
                        }
                    }
                }
            }
        }
        self.forms = forms;
        wanted
    }

    /// Brings the store up to date with what is known. What is gone goes last: a form may have moved from its record to another one.
    fn persist(&mut self, removed: &[PathBuf], unsound: &BTreeMap<PathBuf, Vec<ObjectKey>>) {
        for (path, manifest) in &mut self.manifests {
            let Some((_, text)) = &manifest.whole else { continue };
            let keys = unsound.get(path).into_iter().flatten();
            let valid: Vec<Form> = keys.filter_map(|key| self.forms.stored(key)).collect();
            let names: Vec<_> = valid.iter().map(Form::name).collect();
            if !manifest.dirty && manifest.stored == names {
                self.failed_writes.remove(path);
                continue;
            }
            match self.store.save(&Record { path: path.clone(), text: text.to_string(), valid }) {
                Ok(()) => {
                    (manifest.dirty, manifest.stored) = (false, names);
                    self.failed_writes.remove(path);
                }
                Err(error) => drop(self.failed_writes.insert(path.clone(), error)),
            }
        }
        // What is described no more and could not be removed from the store is tried again.
        let left = self.failed_writes.keys().filter(|path| !self.manifests.contains_key(*path));
        let left: Vec<PathBuf> = left.cloned().collect();
        for path in removed.iter().chain(&left) {
            match self.store.remove(path) {
                Ok(()) => drop(self.failed_writes.remove(path)),
                Err(error) => drop(self.failed_writes.insert(path.clone(), error)),
            }
        }
    }
}

impl Manifest {
    fn read(&mut self, path: &Path, stamp: Stamp) {
        self.stamp = Some(stamp);
        let file = path.display().to_string();
        let text = match read_text(path) {
            Ok(text) => text,
            Err(unread) => {
                self.stamp = self.stamp.filter(|_| !unread.may_pass);
                self.broken = Some(Reading::broken(&file, unread.reason));
                return;
            }
        };
        if self.whole.as_ref().is_some_and(|(_, before)| **before == *text) {
            self.broken = None;
            return;
        }
        let reading = Reading::of_text(&text, &file);
        if reading.broken.is_empty() {
            self.whole = Some((reading, text.into()));
            self.broken = None;
            self.dirty = true;
        } else {
            self.broken = Some(reading);
        }
    }
}

fn differences(told: &BTreeMap<ObjectKey, Object>, wanted: &BTreeMap<ObjectKey, Object>) -> Vec<Change> {
    let gone = told.keys().filter(|key| !wanted.contains_key(key)).map(|key| Change::Delete(key.clone()));
    let new = wanted.iter().filter(|(key, object)| told.get(key) != Some(object));
    new.map(|(_, object)| Change::Upsert(object.clone())).chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: a}
spec: {podSelector: {}}
";

    /// A folder, a store, and what is known.
    fn world() -> (tempfile::TempDir, PathBuf, State) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("policy.yaml");
        let store = Store::open(&folder.path().join("store")).expect("a store");
        let state = State::open(store).expect("an empty store");
        (folder, file, state)
    }

    fn listing(files: &[&Path], stamp: Stamp) -> Listing {
        let files = files.iter().map(|path| (path.to_path_buf(), stamp)).collect();
        Listing { files, lost: Vec::new() }
    }

    fn look(state: &mut State, manifests: &Listing) -> (Vec<Change>, Vec<Problem>) {
        state.look(manifests, &Listing::default(), &BTreeSet::new(), false)
    }

    #[test]
    fn a_file_that_could_not_be_read_is_read_again_though_it_is_the_same() {
        let (folder, file, mut state) = world();
        let stamp = Stamp::from(&fs::metadata(folder.path()).expect("it is there"));
        let listed = listing(&[&file], stamp);
        let (changes, problems) = look(&mut state, &listed);
        assert!(changes.is_empty() && problems.len() == 1, "{changes:?}: {problems:?}");
        assert!(!state.is_settled());
        fs::write(&file, POLICY).expect("room");
        let (changes, problems) = look(&mut state, &listed);
        assert!(changes.len() == 1 && problems.is_empty(), "{changes:?}: {problems:?}");
        assert!(state.is_settled());
    }

    #[test]
    fn what_could_not_be_stored_or_removed_is_tried_again() {
        let (_folder, file, mut state) = world();
        fs::write(&file, POLICY).expect("room");
        let stamp = Stamp::from(&fs::metadata(&file).expect("it is there"));
        let (listed, none) = (listing(&[&file], stamp), Listing::default());
        let place = state.store.place_of(&file);
        // Nothing replaces or removes a folder that is not empty.
        let block = |place: &Path| fs::create_dir_all(place.join("in the way")).expect("room");
        block(&place);
        let (changes, problems) = look(&mut state, &listed);
        assert!(changes.len() == 1 && problems.len() == 1 && !state.is_settled(), "{problems:?}");
        fs::remove_dir_all(&place).expect("it is there");
        assert!(look(&mut state, &listed).1.is_empty() && state.is_settled());

        fs::remove_file(&place).expect("it is stored");
        block(&place);
        let (changes, problems) = look(&mut state, &none);
        assert!(changes.len() == 1 && problems.len() == 1 && !state.is_settled(), "{problems:?}");
        fs::remove_dir_all(&place).expect("it is there");
        assert!(look(&mut state, &none).1.is_empty() && state.is_settled());
    }

    #[test]
    fn a_text_goes_when_its_file_is_read_anew_and_what_was_valid_in_it_stays() {
        let (folder, file, mut state) = world();
        let policy = |name: &str, port: &str| {
            let rules = format!("podSelector: {{}}, ingress: [{{ports: [{{protocol: TCP, port: {port}}}]}}]");
            let policy = POLICY.replace("closed", name).replace("podSelector: {}", &rules);
            if port == "wrong" { policy.replace("podSelector: {}", "podSelector: 7") } else { policy }
        };
        let list = |ports: [&str; 3]| {
            let items: String = (0..)
                .zip(ports)
                .map(|(n, port)| format!("\n---{}", policy(&format!("p{n}"), port)))
                .collect();
            format!("kind: ConfigMap\napiVersion: v1\nmetadata: {{name: not-ours}}{items}")
        };
        let mut stamps = 0..;
        let mut write = |text: &str| {
            let other = folder.path().join(format!("stamp{}", stamps.next().expect("more")));
            fs::write(&other, "").expect("room");
            fs::write(&file, text).expect("room");
            listing(&[&file], Stamp::from(&fs::metadata(&other).expect("it is there")))
        };
        let listed = write(&list(["1", "2", "3"]));
        assert_eq!(look(&mut state, &listed).0.len(), 3);
        let text =
            |state: &State| Arc::downgrade(&state.manifests[&file].whole.as_ref().expect("it is whole").1);
        let first = text(&state);
        let told = state.told.clone();

        // One becomes invalid, and another in the next text: both are as they were, and no earlier text is kept for that.
        let listed = write(&list(["1", "wrong", "3"]));
        assert!(look(&mut state, &listed).0.is_empty());
        assert!(first.upgrade().is_none());
        let second = text(&state);
        let listed = write(&list(["wrong", "wrong", "4"]));
        assert_eq!(look(&mut state, &listed).0.len(), 1);
        assert!(second.upgrade().is_none());
        let of = |name: &str, told: &BTreeMap<ObjectKey, Object>| {
            told.iter().find(|(key, _)| object_name(key).ends_with(name)).map(|(_, object)| object.clone())
        };
        assert!(of("p0", &told).is_some());
        for name in ["p0", "p1"] {
            assert_eq!(of(name, &state.told), of(name, &told));
        }

        // And after a restart.
        let now = std::mem::take(&mut state.told);
        let store = Store::open(&folder.path().join("store")).expect("the store");
        let mut state = State::open(store).expect("its records");
        look(&mut state, &listed);
        assert_eq!(state.told, now);
    }
}
