//! `margay validate`: manifests judged one by one, without a cluster and without an agent.
//!
//! ```text
//!  files, folders, standard input ─▶ documents ─▶ decode ─▶ one verdict per object, in the order written
//! ```
//!
//! Every object is judged alone: a policy may name a tier or a Service that is nowhere in these files. What several objects mean
//! together is a question for `simulate`, `explain` and `lint`.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use margay_control::manifests;
use margay_policy_engine::decode::{
    BrokenDocument, Decoded, Document, FieldError, Origin, decode, split_documents,
};
use margay_policy_engine::model::{NamespacedName, ObjectKey};
use serde::Serialize;
use serde_json::Value;

/// How verdicts are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON value a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// What to judge, and how to tell.
#[derive(Debug)]
pub struct Validation {
    /// Files and folders; `-` is standard input.
    pub paths: Vec<PathBuf>,
    /// How to print.
    pub format: Format,
    /// Also name objects of kinds that margay does not follow.
    pub all: bool,
}

/// The verdict about one object, as it is printed.
#[derive(Debug, Serialize)]
struct Verdict {
    /// As written; empty where it cannot be read.
    kind: String,
    /// Empty for kinds that have none.
    namespace: String,
    name: String,
    valid: bool,
    errors: Vec<Complaint>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Complaint>,
    #[serde(skip)]
    origin: Origin,
}

/// One thing about one field.
#[derive(Debug, Serialize)]
struct Complaint {
    field: String,
    value: String,
    reason: String,
}

impl From<FieldError> for Complaint {
    fn from(from: FieldError) -> Self {
        Self { field: from.field, value: from.value, reason: from.reason }
    }
}

/// How many of what.
#[derive(Debug, Default)]
struct Tally {
    objects: usize,
    invalid: usize,
    unread: usize,
}

/// Judges everything; verdicts on standard output, files that cannot be read on standard error.
///
/// Returns 2 when a file cannot be read, else 1 when an object is invalid, else 0.
pub fn run(validation: &Validation) -> io::Result<ExitCode> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut tally = Tally::default();
    for path in &validation.paths {
        let texts = if path == Path::new("-") {
            vec![("<stdin>".to_owned(), standard_input())]
        } else {
            manifests::texts(path)
        };
        for (file, text) in texts {
            match text {
                Ok(text) => judge(&text, &file, validation, &mut tally, &mut out)?,
                Err(reason) => {
                    tally.unread += 1;
                    writeln!(io::stderr(), "margay: {file}: {reason}")?;
                }
            }
        }
    }
    if validation.format == Format::Text {
        let Tally { objects, invalid, unread } = tally;
        writeln!(out, "{objects} objects, {invalid} invalid, {unread} files not read")?;
    }
    out.flush()?;
    Ok(ExitCode::from(match tally {
        Tally { unread: 1.., .. } => 2,
        Tally { invalid: 1.., .. } => 1,
        _ => 0,
    }))
}

fn standard_input() -> Result<String, String> {
    let mut text = String::new();
    match io::stdin().lock().read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

fn judge(
    text: &str,
    file: &str,
    validation: &Validation,
    tally: &mut Tally,
    out: &mut impl Write,
) -> io::Result<()> {
    // Both walk the same documents in the same order: one gives what was written, the other the judgement.
    for (document, decoded) in split_documents(text, file).iter().zip(decode(text, file)) {
        let is_ignored = matches!(decoded, Decoded::Ignored { .. });
        if is_ignored && !validation.all {
            continue;
        }
        let verdict = verdict(document, decoded);
        tally.objects += 1;
        tally.invalid += usize::from(!verdict.valid);
        match validation.format {
            Format::Json => {
                serde_json::to_writer(&mut *out, &verdict)?;
                out.write_all(b"\n")?;
            }
            Format::Text => write_text(&verdict, is_ignored, out)?,
        }
    }
    Ok(())
}

fn verdict(document: &Document, decoded: Decoded) -> Verdict {
    let written = match document {
        Ok((value, _)) => Some(value),
        Err(BrokenDocument { partial, .. }) => partial.as_ref(),
    };
    let (key, errors, warnings, origin) = match decoded {
        Decoded::Valid { object, warnings, origin, .. } => (Some(object.key()), Vec::new(), warnings, origin),
        Decoded::Invalid { key, errors, warnings, origin, .. } => (Some(key), errors, warnings, origin),
        Decoded::Unreadable { errors, origin } => (None, errors, Vec::new(), origin),
        Decoded::Ignored { origin, .. } => (None, Vec::new(), Vec::new(), origin),
    };
    let text = |path: &str| {
        let found = written.and_then(|value| value.pointer(path)).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let namespace = match &key {
        Some(key) => namespace_of(key).unwrap_or_default().to_owned(),
        None => text("/metadata/namespace"),
    };
    Verdict {
        kind: text("/kind"),
        namespace,
        name: text("/metadata/name"),
        valid: errors.is_empty(),
        errors: errors.into_iter().map(Complaint::from).collect(),
        warnings: warnings.into_iter().map(Complaint::from).collect(),
        origin,
    }
}

/// Returns the namespace of an object, `default` where the manifest says nothing; `None` for kinds that have none.
fn namespace_of(key: &ObjectKey) -> Option<&str> {
    match key {
        ObjectKey::ServiceAccount(NamespacedName { namespace, .. })
        | ObjectKey::Pod(NamespacedName { namespace, .. })
        | ObjectKey::EndpointSlice(NamespacedName { namespace, .. }) => Some(namespace),
        ObjectKey::Policy(key) => key.namespace.as_deref(),
        ObjectKey::NetworkSet(key) => key.namespace.as_deref(),
        ObjectKey::Namespace(_)
        | ObjectKey::Node(_)
        | ObjectKey::Tier(_)
        | ObjectKey::Profile(_)
        | ObjectKey::HostEndpoint(_)
        | ObjectKey::FelixConfiguration(_)
        | ObjectKey::KubeControllersConfiguration(_)
        | ObjectKey::IpPool(_)
        | ObjectKey::CalicoNode(_)
        | ObjectKey::Installation(_) => None,
    }
}

fn write_text(verdict: &Verdict, is_ignored: bool, out: &mut impl Write) -> io::Result<()> {
    let Verdict { kind, namespace, name, valid, errors, warnings, origin } = verdict;
    let names: Vec<&str> =
        [kind, namespace, name].into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    let object = if names.is_empty() { "document".to_owned() } else { names.join("/") };
    let state = match (is_ignored, valid) {
        (true, _) => "not followed",
        (false, true) => "valid",
        (false, false) => "invalid",
    };
    writeln!(out, "{origin}: {object}: {state}")?;
    for (label, complaints) in [("error", errors), ("warning", warnings)] {
        for Complaint { field, value, reason } in complaints {
            write!(out, "  {label}: ")?;
            if !field.is_empty() {
                write!(out, "{field}")?;
                if !value.is_empty() {
                    write!(out, " = {value:?}")?;
                }
                write!(out, ": ")?;
            }
            writeln!(out, "{reason}")?;
        }
    }
    Ok(())
}
