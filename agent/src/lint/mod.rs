//! `margay lint`: what manifests probably do not mean.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use margay_control::manifests;
use margay_policy_engine::lint::{Finding, Manifests, Severity, lint};

use crate::admin::client::Format;

/// Reads `paths`, files and folders, and prints what is found: for programs one JSON value a line.
///
/// Returns 2 when a file cannot be read, else 1 when something above info is found, else 0.
pub fn run(paths: &[PathBuf], format: Format) -> io::Result<ExitCode> {
    let mut texts = Vec::new();
    let mut unread = 0;
    for (file, text) in paths.iter().flat_map(|path| manifests::texts(path)) {
        match text {
            Ok(text) => texts.push((file, text)),
            Err(reason) => {
                unread += 1;
                writeln!(io::stderr(), "margay: {file}: {reason}")?;
            }
        }
    }
    let findings = lint(&Manifests::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str()))));
    print(&findings, format)?;
    let is_grave = findings.iter().any(|finding| finding.severity > Severity::Info);
    Ok(ExitCode::from(match (unread, is_grave) {
        (1.., _) => 2,
        (_, true) => 1,
        (_, false) => 0,
    }))
}

fn print(findings: &[Finding], format: Format) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for finding in findings {
        match format {
            Format::Table => writeln!(out, "{finding}\n")?,
            Format::Json => {
                serde_json::to_writer(&mut out, finding)?;
                writeln!(out)?;
            }
        }
    }
    if format == Format::Table {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let [errors, warnings, info] = [Severity::Error, Severity::Warning, Severity::Info].map(count);
        writeln!(out, "{errors} errors, {warnings} warnings, {info} info")?;
    }
    out.flush()
}
