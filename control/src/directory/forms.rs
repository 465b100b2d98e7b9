//! The last valid form of every object that some file describes (PM-D2), where it costs nothing to have one.
//!
//! ```text
//!  valid now ──────────▶ a place in its file's text, which is in memory anyway
//!  becomes invalid ────▶ read out of that text, and kept as JSON by itself
//! ```
//!
//! Most objects are valid, so what they were is what they are. As trees of values the documents of 100,000 rules took more memory than
//! everything else in the agent.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_policy_engine::decode::{Decoded, Origin, decode_value, for_each_document};
use margay_policy_engine::model::{Object, ObjectKey};
use serde_json::Value;

use super::store::Form;
use crate::problem::object_name;
use crate::reading::{Entry, Judged};

/// The last valid form of one object.
#[derive(Clone, Debug)]
pub(super) struct Last {
    /// `resourceVersion`, else a hash of the content.
    version: String,
    written: Written,
}

#[derive(Clone, Debug)]
enum Written {
    /// In this text, as the document with this number.
    In(Arc<str>, usize),
    /// As JSON.
    Alone(Arc<str>),
}

impl Last {
    /// Returns the form of `entry` of a file with this text; `None` while the entry is not valid.
    pub fn of(entry: &Entry, text: &Arc<str>) -> Option<Self> {
        let Judged::Valid { version, .. } = &entry.judged else { return None };
        let written = match &entry.document {
            Some(document) => Written::Alone(Arc::clone(document)),
            None => Written::In(Arc::clone(text), entry.nth),
        };
        Some(Self { version: version.clone(), written })
    }

    /// Returns the document, once it stands by itself.
    pub fn document(&self) -> Option<Value> {
        match &self.written {
            Written::In(..) => None,
            Written::Alone(json) => serde_json::from_str(json).ok(),
        }
    }
}

/// Last valid forms by object.
#[derive(Debug, Default)]
pub(super) struct Forms(BTreeMap<ObjectKey, Last>);

impl Forms {
    /// Takes what is known of an object, in place of what was.
    pub fn insert(&mut self, key: ObjectKey, last: Last) {
        self.0.insert(key, last);
    }

    /// Takes a form from the store, unless its object has one already or this build sees it otherwise.
    pub fn restore(&mut self, form: Form) {
        let json = form.document.to_string().into();
        if let Some((key, _)) = judge(&form.object, form.document) {
            self.0.entry(key).or_insert(Last { version: form.version, written: Written::Alone(json) });
        }
    }

    /// Returns what is known of an object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Last> {
        self.0.get(key)
    }

    /// Returns what is to be stored of an object whose form stands by itself.
    pub fn stored(&self, key: &ObjectKey) -> Option<Form> {
        let last = self.get(key)?;
        Some(Form { object: object_name(key), version: last.version.clone(), document: last.document()? })
    }

    /// Lets the forms of these objects stand by themselves. Cost: reads every text once that has one of them.
    pub fn set_apart<'a>(&mut self, keys: impl Iterator<Item = &'a ObjectKey>) {
        let mut texts: BTreeMap<*const u8, (Arc<str>, BTreeMap<usize, &ObjectKey>)> = BTreeMap::new();
        for key in keys {
            if let Some(Last { written: Written::In(text, nth), .. }) = self.0.get(key) {
                let (_, wanted) =
                    texts.entry(text.as_ptr()).or_insert_with(|| (Arc::clone(text), BTreeMap::new()));
                wanted.insert(*nth, key);
            }
        }
        for (text, wanted) in texts.into_values() {
            let mut nth = 0;
            for_each_document(&text, "", &mut |document| {
                let last = wanted.get(&nth).and_then(|key| self.0.get_mut(*key));
                if let (Some(last), Ok((value, _))) = (last, document) {
                    last.written = Written::Alone(value.to_string().into());
                }
                nth += 1;
            });
        }
    }
}

/// Judges the document of `object` again that was valid once. `None` when this build sees it otherwise.
pub(super) fn judge(object: &str, document: Value) -> Option<(ObjectKey, Object)> {
    let origin = Origin { file: object.to_owned(), line: 0 };
    match decode_value(document, origin).into_iter().next()? {
        Decoded::Valid { object, .. } => Some((object.key(), object)),
        _ => None,
    }
}
