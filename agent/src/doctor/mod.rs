//! `margay doctor`: what stands in the way of margay on this node, what follows from it, and how to mend it.
//!
//! * [`facts`] looks, [`checks`] judges, and neither does the other's work: every finding can be tested without a broken machine.
//! * [`drivers`] is what is known of NICs.

mod checks;
mod drivers;
mod facts;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use margay_policy_engine::lint::Severity;

use crate::admin::client::Format;
use crate::node::uplinks::AUTO;
use checks::Finding;
use facts::Places;

#[cfg(test)]
pub use tests::documentation;

/// `margay doctor`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  margay doctor\n  margay doctor -o json | jq 'select(.severity == \"error\")'\n\nBefore and after an \
installation; it changes nothing. docs/doctor.md lists every finding.\n\nExit code: 1 when there are warnings or errors, else 0."
)]
pub struct DoctorArgs {
    /// NICs that lead to the other nodes, as the agent would be told
    #[arg(long, value_delimiter = ',', default_value = AUTO)]
    uplink: Vec<String>,
    /// An address of this node, to find its uplink by
    #[arg(long)]
    node_address: Option<IpAddr>,
    /// The agent's folder of sockets and pinned programs
    #[arg(long, default_value = "/run/margay", value_name = "DIR")]
    run_dir: PathBuf,
    /// Where network configurations of the container runtime are
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_conf_dir: PathBuf,
    /// Where CNI programs are
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    cni_bin_dir: PathBuf,
    /// The plug-in that gives addresses
    #[arg(long, default_value = "host-local", value_name = "NAME")]
    cni_ipam: String,
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// Looks, judges and prints: for programs one JSON value a line.
///
/// Errors: standard output is gone.
pub fn run(args: &DoctorArgs) -> io::Result<ExitCode> {
    let facts = facts::gather(&Places {
        run_dir: args.run_dir.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
        cni_bin_dir: args.cni_bin_dir.clone(),
        ipam: args.cni_ipam.clone(),
        uplink: args.uplink.clone(),
        node_address: args.node_address,
    });
    let findings = checks::examine(&facts);
    print(&findings, &facts, args.format)?;
    Ok(ExitCode::from(u8::from(findings.iter().any(|finding| finding.severity > Severity::Info))))
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn print(findings: &[Finding], facts: &facts::Facts, format: Format) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for finding in findings {
        if format == Format::Json {
            serde_json::to_writer(&mut out, finding)?;
            writeln!(out)?;
            continue;
        }
        writeln!(out, "{}[{}]: {}", word(finding.severity), finding.id, finding.what)?;
        writeln!(out, "    {}", finding.follows)?;
        if !finding.mend.is_empty() {
            writeln!(out, "    mend: {}", finding.mend)?;
        }
    }
    if format == Format::Table {
        let names = facts.uplinks.iter().flatten().map(|uplink| uplink.name.as_str()).collect::<Vec<_>>();
        let uplinks = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let [errors, warnings, info] = [Severity::Error, Severity::Warning, Severity::Info].map(count);
        writeln!(
            out,
            "kernel {}, uplinks {uplinks}: {errors} errors, {warnings} warnings, {info} info",
            facts.kernel
        )?;
    }
    out.flush()
}
