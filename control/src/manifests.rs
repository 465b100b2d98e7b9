//! Manifests read once, without a watch and without a memory: the world of `simulate` and `explain`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use margay_policy_engine::model::{Model, ObjectKey};

use crate::listing::Listing;
use crate::problem::{Problem, Severity, object_name};
use crate::reading::{Entry, Judged, Reading, read_text};

/// Returns the Model that `paths` (files and folders) describe, and everything that is wrong with them.
///
/// There is no earlier valid form of anything here, so an invalid policy is in force in its closed form (policy model 4.1). Where two
/// documents describe one object, the first in the order of paths is taken.
pub fn load(paths: &[PathBuf]) -> (Model, Vec<Problem>) {
    let listing = Listing::of(paths, &mut |_| {});
    let mut model = Model::with_builtins();
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    for (path, error) in &listing.lost {
        let reason = format!("cannot be looked into: {error}");
        problems.push(Problem::of_file(path.display().to_string(), Severity::Error, reason));
    }
    for path in listing.files.keys() {
        let file = path.display().to_string();
        let reading = match read_text(path) {
            Ok(text) => Reading::of_text(&text, &file),
            Err(unread) => Reading::broken(&file, unread.reason),
        };
        problems.extend(reading.broken);
        for entry in reading.entries {
            if is_first(&mut seen, &entry, &mut problems) {
                entry.report(&mut problems);
                let object = match entry.judged {
                    Judged::Valid { object, .. } => Some(object),
                    Judged::Invalid { fallback, .. } => fallback,
                };
                object.into_iter().for_each(|object| model.insert(object));
            }
        }
    }
    problems.sort();
    (model, problems)
}

/// Returns every manifest under `path`, a file or a folder, in the order of paths: its name, and its text or why there is none.
pub fn texts(path: &Path) -> Vec<(String, Result<String, String>)> {
    let listing = Listing::of(&[path.to_owned()], &mut |_| {});
    let lost = listing.lost.iter().map(|(path, error)| {
        let reason = format!("cannot be looked into: {error}; check its name, owner and mode");
        (path.display().to_string(), Err(reason))
    });
    let read = listing.files.keys().map(|path| {
        let text = read_text(path).map_err(|unread| unread.reason);
        (path.display().to_string(), text)
    });
    lost.chain(read).collect()
}

/// Notes the place of `entry`, or reports that the object was described before.
pub(crate) fn is_first(
    seen: &mut BTreeMap<ObjectKey, String>,
    entry: &Entry,
    problems: &mut Vec<Problem>,
) -> bool {
    let place = format!("{}:{}", entry.origin.file, entry.origin.line);
    let Some(earlier) = seen.get(&entry.key) else {
        seen.insert(entry.key.clone(), place);
        return true;
    };
    problems.push(Problem {
        file: entry.origin.file.clone(),
        line: entry.origin.line,
        object: Some(object_name(&entry.key)),
        field: "metadata.name".to_owned(),
        value: String::new(),
        reason: format!(
            "the object is already described at {earlier}, which is in force; remove one of the two"
        ),
        severity: Severity::Error,
    });
    false
}
