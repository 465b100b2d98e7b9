//! `margay verify`: statements about all packets, proved from manifests or refuted by a packet.
//!
//! ```text
//!  manifests ─▶ Model ─▶ compiled tables ─┐
//!  assertions ─▶ statements ──────────────┴─▶ proof, or a packet that contradicts, for each
//! ```
//!
//! What a statement covers, and why the answer is about every packet, is written in `margay_policy_engine::verify`. How statements are
//! written is in [`language`] and [`sentence`].

mod language;
mod sentence;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use margay_control::{Severity, manifests};
use margay_policy_engine::engine::Engine;
use margay_policy_engine::model::{Object, automatic_host_endpoints};
use margay_policy_engine::packet::{PacketTuple, Verdict};
use margay_policy_engine::snapshot::Attribution;
use margay_policy_engine::verify::{CounterExample, Finding, Leg, Verifier, VerifyError};
use serde::Serialize;

use crate::admin::client::Format;
use crate::simulate::perspectives::Perspectives;
use language::Statement;

pub use language::SENTENCES;

/// What to verify.
#[derive(Debug)]
pub struct Verification {
    /// Files and folders with manifests.
    pub manifests: Vec<PathBuf>,
    /// File with the statements.
    pub assertions: PathBuf,
    /// How to print.
    pub format: Format,
    /// How long one statement may take.
    pub limit: Duration,
    /// Whether wrong manifests are only reported.
    pub lenient: bool,
}

/// How many statements ended how.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tally {
    hold: usize,
    fail: usize,
    cannot_be_judged: usize,
    examined: u64,
}

/// A line of output about one statement.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    assertion: usize,
    statement: &'a str,
    #[serde(flatten)]
    finding: Option<&'a Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Summary<'a> {
    summary: &'a Tally,
}

/// Judges every statement; answers on standard output, complaints about manifests on standard error.
///
/// Returns 2 when a statement cannot be judged or a manifest is wrong (and `lenient` is off), else 1 when one does not hold, else 0.
pub fn run(verification: &Verification) -> io::Result<ExitCode> {
    let Verification { manifests, assertions, format, limit, lenient } = verification;
    let (mut model, problems) = manifests::load(manifests);
    for problem in &problems {
        writeln!(io::stderr(), "{problem}")?;
    }
    let is_wrong = problems.iter().any(|problem| problem.severity >= Severity::Error);
    for endpoint in automatic_host_endpoints(&model) {
        model.insert(Object::HostEndpoint(Arc::new(endpoint)));
    }
    if let Some(caveat) = Perspectives::caveat(&model) {
        writeln!(io::stderr(), "{caveat}")?;
    }
    let statements = language::read(assertions)?;
    let start = Instant::now();
    let mut engine = Engine::with_all_pods_local(model);
    let verifier = Verifier::new(&mut engine, *limit);
    let mut tally = Tally::default();
    let mut out = BufWriter::new(io::stdout().lock());
    for (number, Statement { text, assertion }) in (1..).zip(&statements) {
        let judged = match assertion {
            Ok(assertion) => verifier.judge(assertion).map_err(|error: VerifyError| error.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        match &judged {
            Ok(finding) if finding.holds => tally.hold += 1,
            Ok(_) => tally.fail += 1,
            Err(_) => tally.cannot_be_judged += 1,
        }
        tally.examined += judged.as_ref().map_or(0, |finding| finding.examined);
        match format {
            Format::Table => write_text(number, text, &judged, &mut out)?,
            Format::Json => {
                let line = Line {
                    assertion: number,
                    statement: text,
                    finding: judged.as_ref().ok(),
                    error: judged.as_ref().err().cloned(),
                };
                write_json(&line, &mut out)?;
            }
        }
    }
    match format {
        Format::Json => write_json(&Summary { summary: &tally }, &mut out)?,
        Format::Table => writeln!(
            out,
            "{} hold, {} fail, {} cannot be judged; {} classes of packets in {:.1?}",
            tally.hold,
            tally.fail,
            tally.cannot_be_judged,
            tally.examined,
            start.elapsed()
        )?,
    }
    out.flush()?;
    if statements.is_empty() {
        writeln!(io::stderr(), "margay: {}: no statement in it", assertions.display())?;
    }
    Ok(ExitCode::from(match tally {
        Tally { cannot_be_judged: 1.., .. } => 2,
        _ if statements.is_empty() || (is_wrong && !lenient) => 2,
        Tally { fail: 1.., .. } => 1,
        _ => 0,
    }))
}

fn write_json(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

fn write_text(
    number: usize,
    text: &str,
    judged: &Result<Finding, String>,
    out: &mut impl Write,
) -> io::Result<()> {
    let finding = match judged {
        Err(reason) => {
            writeln!(out, "ERROR   {number:>3}  {text}")?;
            return reason.lines().try_for_each(|line| writeln!(out, "             {line}"));
        }
        Ok(finding) => finding,
    };
    let state = if finding.holds { "ok    " } else { "FAILED" };
    writeln!(out, "{state}  {number:>3}  {text}")?;
    let Some(found) = &finding.counterexample else { return Ok(()) };
    let CounterExample { from, to, packet, verdict, egress, ingress, reason } = found;
    writeln!(out, "             {} is {}: {from} to {to}", packet_text(packet), participle(*verdict))?;
    for (name, who, leg) in [("egress", from, egress), ("ingress", to, ingress)] {
        if let Some(leg) = leg {
            writeln!(out, "             {name} of {who}: {}", leg_text(leg))?;
        }
    }
    match reason {
        Some(reason) => writeln!(out, "             {reason}"),
        None => Ok(()),
    }
}

fn participle(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "denied",
    }
}

fn packet_text(packet: &PacketTuple) -> String {
    let end = |address: std::net::IpAddr, port: Option<u16>| match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let icmp = packet.icmp.map_or_else(String::new, |(kind, code)| format!(" type {kind} code {code}"));
    format!(
        "{}{icmp} {} -> {}",
        language::protocol_name(packet.protocol),
        end(packet.source, packet.source_port),
        end(packet.destination, packet.destination_port)
    )
}

fn leg_text(leg: &Leg) -> String {
    let decided = participle(leg.verdict);
    let Some(Attribution { tier, kind, namespace, name, rule }) = &leg.attribution else {
        return format!("{decided}: nothing is in force for the pod yet");
    };
    let policy = match (kind.is_empty(), namespace.is_empty()) {
        (true, _) => String::new(),
        (false, true) => format!(", {kind} {name}"),
        (false, false) => format!(", {kind} {namespace}/{name}"),
    };
    let place = if *rule < 0 { "no rule matched".to_owned() } else { format!("rule {rule}") };
    format!("{decided} by tier {tier}{policy}, {place}")
}
