//! Reading one mapping field by field, and remembering everything that is wrong.
//!
//! A [`Fields`] learns which fields exist by being asked for them; what is left at [`Fields::finish`] is unknown and passed over with a
//! warning that tells the nearest name that was asked for. Nothing stops at the first error: a user wants the whole list.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::FieldError;

/// More fields than this are not listed in a message.
const MOST_LISTED: usize = 24;

impl FieldError {
    /// Builds an error about `value` at `field`.
    pub(super) fn new(field: impl Into<String>, value: &Value, reason: impl Into<String>) -> Self {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "a mapping".to_owned(),
            other => other.to_string(),
        };
        Self::about(field, &text, reason)
    }

    /// Builds an error about the text `value` at `field`.
    pub(super) fn about(field: impl Into<String>, value: &str, reason: impl Into<String>) -> Self {
        const LONGEST: usize = 80;
        let mut shown: String = value.chars().take(LONGEST).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self { field: field.into(), value: shown, reason: reason.into() }
    }

    /// Returns the error as seen from one level further out.
    pub(super) fn under(mut self, parent: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => parent.to_owned(),
            inner if inner.starts_with('[') => format!("{parent}{inner}"),
            inner => format!("{parent}.{inner}"),
        };
        self
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if !self.value.is_empty() {
            write!(f, "{:?}: ", self.value)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for FieldError {}

impl std::fmt::Display for super::Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What was found while one document was read.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// The object is invalid.
    pub errors: Vec<FieldError>,
    /// The object is valid, but the user should know.
    pub warnings: Vec<FieldError>,
    /// Where somebody wants to know: the names that each mapping was asked for, by path.
    pub asked: Option<BTreeMap<String, BTreeSet<&'static str>>>,
}

impl Problems {
    /// Adds an error about `value`.
    pub(super) fn refuse(&mut self, field: impl Into<String>, value: &Value, reason: impl Into<String>) {
        self.errors.push(FieldError::new(field, value, reason));
    }

    /// Adds an error about a text.
    pub(super) fn refuse_text(&mut self, field: impl Into<String>, value: &str, reason: impl Into<String>) {
        self.errors.push(FieldError::about(field, value, reason));
    }

    /// Adds a warning.
    pub(super) fn warn(&mut self, field: impl Into<String>, value: &str, reason: impl Into<String>) {
        self.warnings.push(FieldError::about(field, value, reason));
    }
}

/// One mapping of a document. An absent one reads as empty.
#[derive(Debug)]
pub(super) struct Fields<'v> {
    path: String,
    map: Option<&'v Map<String, Value>>,
    known: Vec<&'static str>,
}

impl<'v> Fields<'v> {
    /// Opens `value` at `path`; something that is not a mapping is refused and reads as empty.
    pub(super) fn open(path: String, value: Option<&'v Value>, problems: &mut Problems) -> Self {
        let map = match value {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => Some(map),
            Some(other) => {
                problems.refuse(path.clone(), other, "must be a mapping of fields");
                None
            }
        };
        Self { path, map, known: Vec::new() }
    }

    /// Returns the path of field `name`.
    pub(super) fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Returns the field as written; null counts as absent.
    pub(super) fn raw(&mut self, name: &'static str) -> Option<&'v Value> {
        self.known.push(name);
        self.map?.get(name).filter(|value| !value.is_null())
    }

    /// Returns a text field.
    pub(super) fn text(&mut self, name: &'static str, problems: &mut Problems) -> Option<&'v str> {
        match self.raw(name)? {
            Value::String(text) => Some(text),
            other => {
                problems.refuse(self.at(name), other, "must be text; put it in quotes");
                None
            }
        }
    }

    /// Returns a boolean field; absent is false.
    pub(super) fn boolean(&mut self, name: &'static str, problems: &mut Problems) -> bool {
        match self.raw(name) {
            None => false,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                problems.refuse(self.at(name), other, "must be true or false");
                false
            }
        }
    }

    /// Returns a number field.
    pub(super) fn number(&mut self, name: &'static str, problems: &mut Problems) -> Option<f64> {
        let value = self.raw(name)?;
        let number = value.as_f64();
        if number.is_none() {
            problems.refuse(self.at(name), value, "must be a number, without quotes");
        }
        number
    }

    /// Returns a whole number within `low` and `high`, both inclusive.
    pub(super) fn integer(
        &mut self,
        name: &'static str,
        low: i64,
        high: i64,
        problems: &mut Problems,
    ) -> Option<i64> {
        let value = self.raw(name)?;
        let number = value.as_i64().filter(|number| (low..=high).contains(number));
        if number.is_none() {
            problems.refuse(self.at(name), value, format!("must be a whole number from {low} to {high}"));
        }
        number
    }

    /// Returns a nested mapping; absent reads as empty.
    pub(super) fn object(&mut self, name: &'static str, problems: &mut Problems) -> Self {
        let value = self.raw(name);
        Self::open(self.at(name), value, problems)
    }

    /// Returns the items of a list field with their paths; a null item is refused, because it would read as "no restriction".
    pub(super) fn list(&mut self, name: &'static str, problems: &mut Problems) -> Vec<(String, &'v Value)> {
        let items = match self.raw(name) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                problems.refuse(self.at(name), other, "must be a list");
                return Vec::new();
            }
        };
        let path = self.at(name);
        let mut listed = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if item.is_null() {
                problems.refuse(
                    path,
                    item,
                    "empty item; write {} if an item without restrictions is meant, or remove it",
                );
            } else {
                listed.push((path, item));
            }
        }
        listed
    }

    /// Returns a list of at most `most` items, as [`Fields::list`].
    pub(super) fn list_up_to(
        &mut self,
        name: &'static str,
        most: usize,
        problems: &mut Problems,
    ) -> Vec<(String, &'v Value)> {
        let listed = self.list(name, problems);
        if listed.len() > most {
            let count = listed.len().to_string();
            problems.refuse_text(
                self.at(name),
                &count,
                format!("has more than {most} items; split the object"),
            );
        }
        listed
    }

    /// Returns a list of texts with their paths.
    pub(super) fn texts(&mut self, name: &'static str, problems: &mut Problems) -> Vec<(String, &'v str)> {
        let mut texts = Vec::new();
        for (path, item) in self.list(name, problems) {
            match item.as_str() {
                Some(text) => texts.push((path, text)),
                None => problems.refuse(path, item, "must be text; put it in quotes"),
            }
        }
        texts
    }

    /// Returns a mapping of texts to texts.
    pub(super) fn text_map(
        &mut self,
        name: &'static str,
        problems: &mut Problems,
    ) -> BTreeMap<String, String> {
        let inner = self.object(name, problems);
        let mut found = BTreeMap::new();
        for (key, value) in inner.map.into_iter().flatten() {
            match value {
                Value::String(text) => drop(found.insert(key.clone(), text.clone())),
                Value::Null => drop(found.insert(key.clone(), String::new())),
                other => problems.refuse(inner.at(key), other, "must be text; put it in quotes"),
            }
        }
        found
    }

    /// Warns about every field that was not asked for, naming the nearest one that exists.
    pub(super) fn finish(self, problems: &mut Problems) {
        if let Some(asked) = &mut problems.asked {
            asked.entry(any_item(&self.path)).or_default().extend(&self.known);
        }
        for (key, value) in self.map.into_iter().flatten() {
            if !self.known.contains(&key.as_str()) {
                let hint = match nearest(key, &self.known) {
                    Some(known) => format!("unknown field, ignored; did you mean `{known}`?"),
                    None if self.known.len() > MOST_LISTED => "unknown field, ignored; remove it".to_owned(),
                    None => format!("unknown field, ignored; the fields here are {}", self.known.join(", ")),
                };
                problems.warnings.push(FieldError::new(self.at(key), value, hint));
            }
        }
    }
}

/// Returns `path` with every index left out: `spec.ingress[3].source` is `spec.ingress[].source`.
fn any_item(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|&c| {
            let keep = !(inside && c.is_ascii_digit());
            inside = c == '[' || (inside && c.is_ascii_digit());
            keep
        })
        .collect()
}

/// Returns the candidate that differs from `word` in the fewest letters, when few enough to be a slip of the pen.
pub(super) fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let word: String = word.chars().take(64).collect::<String>().to_ascii_lowercase();
    candidates
        .iter()
        .map(|candidate| (distance(&word, &candidate.to_ascii_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
