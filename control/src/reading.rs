//! One file, read and judged document by document.
//!
//! A document that was judged is let go of: as a tree of values a rule of a hundred bytes takes several thousand. What may be asked of
//! it later is its number in the text, and of Pods and Nodes, which an overlay may be about, the document as JSON.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use margay_policy_engine::decode::{Decoded, FieldError, MAX_FILE_BYTES, Origin, decode_each};
use margay_policy_engine::model::{Object, ObjectKey};

use crate::problem::{Problem, Severity};

/// What decoding said about one object.
#[derive(Clone, Debug)]
pub(crate) enum Judged {
    Valid { object: Object, version: String, warnings: Vec<FieldError> },
    Invalid { errors: Vec<FieldError>, warnings: Vec<FieldError>, fallback: Option<Object>, critical: bool },
}

/// One object of a file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: ObjectKey,
    pub judged: Judged,
    /// Which document of its file it is, from zero, as `decode::for_each_document` counts them.
    pub nth: usize,
    /// The document as JSON: of a Pod or a Node that does not contradict itself.
    pub document: Option<Arc<str>>,
    pub origin: Origin,
}

/// A file as far as it could be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    pub entries: Vec<Entry>,
    /// Documents, or the whole file, of which not even the identity is known. Empty: the file is whole.
    pub broken: Vec<Problem>,
}

impl Reading {
    /// Reads `text` as the content of `file`.
    pub fn of_text(text: &str, file: &str) -> Self {
        let mut reading = Self::default();
        let mut count = 0;
        decode_each(text, file, &mut |decoded, document| {
            let nth = count;
            count += 1;
            match decoded {
                Decoded::Unreadable { errors, origin } => {
                    let problem = |error| Problem::of_field(&origin, None, error, Severity::Error);
                    reading.broken.extend(errors.iter().map(problem));
                }
                Decoded::Ignored { kind, origin } => {
                    tracing::debug!(
                        file = origin.file,
                        line = origin.line,
                        kind,
                        "not a kind that policy is about"
                    );
                }
                decoded => reading.entries.extend(Entry::of(decoded).map(|entry| {
                    let is_kept = matches!(entry.key, ObjectKey::Pod(_) | ObjectKey::Node(_));
                    let document = document.filter(|_| is_kept).map(|value| value.to_string().into());
                    Entry { nth, document, ..entry }
                })),
            }
        });
        reading.entries.shrink_to_fit();
        reading
    }

    /// A file that could not be read at all.
    pub fn broken(file: &str, reason: String) -> Self {
        Self { entries: Vec::new(), broken: vec![Problem::of_file(file, Severity::Error, reason)] }
    }
}

impl Entry {
    /// Returns the entry for a decoded object, as the first of its file and without its document; `None` for what is not an object.
    pub fn of(decoded: Decoded) -> Option<Self> {
        match decoded {
            Decoded::Valid { object, version, warnings, origin } => Some(Self {
                key: object.key(),
                judged: Judged::Valid { object, version, warnings },
                nth: 0,
                document: None,
                origin,
            }),
            Decoded::Invalid { key, errors, warnings, fallback, critical, origin } => Some(Self {
                key,
                judged: Judged::Invalid { errors, warnings, fallback, critical },
                nth: 0,
                document: None,
                origin,
            }),
            Decoded::Unreadable { .. } | Decoded::Ignored { .. } => None,
        }
    }

    /// Adds what is wrong with the entry to `problems`.
    pub fn report(&self, problems: &mut Vec<Problem>) {
        let mut tell = |errors: &[FieldError], severity| {
            problems
                .extend(errors.iter().map(|e| Problem::of_field(&self.origin, Some(&self.key), e, severity)));
        };
        match &self.judged {
            Judged::Valid { warnings, .. } => tell(warnings, Severity::Warning),
            Judged::Invalid { errors, warnings, critical, .. } => {
                tell(errors, if *critical { Severity::Critical } else { Severity::Error });
                tell(warnings, Severity::Warning);
            }
        }
    }
}

/// Why a file has no text for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    /// In words for people.
    pub reason: String,
    /// The machine could not read it now; the same file may be read another time.
    pub may_pass: bool,
}

/// Returns the text of the file at `path`, or why there is none.
///
/// Shape: at most [`MAX_FILE_BYTES`] bytes are read into memory, whatever the file's size is or becomes.
pub(crate) fn read_text(path: &Path) -> Result<String, Unread> {
    let failed = |reason: String| Unread { reason, may_pass: true };
    let file = File::open(path)
        .map_err(|error| failed(format!("cannot be opened: {error}; check its owner and mode")))?;
    let bytes = file.metadata().map_err(|error| failed(format!("cannot be looked at: {error}")))?.len();
    let limit = MAX_FILE_BYTES as u64;
    let too_large = |bytes: u64| Unread {
        reason: format!(
            "has {bytes} bytes or more, and {limit} are the most that are read; split it into several files"
        ),
        may_pass: false,
    };
    if bytes > limit {
        return Err(too_large(bytes));
    }
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(|error| failed(format!("cannot be read: {error}")))?;
    if content.len() as u64 > limit {
        return Err(too_large(limit + 1));
    }
    String::from_utf8(content).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        Unread { reason: format!("is not UTF-8 text (line {line}); save it as UTF-8"), may_pass: false }
    })
}
