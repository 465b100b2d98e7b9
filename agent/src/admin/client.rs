//! `margay status`, `flows`, `drops` and `explain --socket`: ask the running agent and print what it says.

use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::protocol::{Reply, Request};
use super::report::{DropReport, FlowReport, StatusReport};
use super::table::Table;
use crate::encryption::report::{TunnelReport, WireguardReport};
use crate::explain::Explanation;
use crate::simulate::probe::{Probe, ProbeProtocol};

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON value a line.
    Json,
}

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers on {path}: {source}; start `margay agent`, or name its socket with --socket")]
    NotThere {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Not root.
    #[error("{path} may be opened by root only; use sudo")]
    NotAllowed {
        /// The path.
        path: PathBuf,
    },
    /// The agent refused the request.
    #[error("{0}")]
    Refused(String),
    /// The asker has seen what it wanted; no failure.
    #[error("enough was seen")]
    Enough,
    /// The connection broke, or output could not be written.
    #[error("the conversation with the agent broke off")]
    Broken(#[from] io::Error),
    /// The agent speaks otherwise.
    #[error("the agent's answer is not understood; agent and command are of different versions")]
    NotUnderstood(#[from] serde_json::Error),
}

/// Asks the agent on `socket` and hands every reply to `each` until the end.
///
/// Errors: those of [`ClientError`]; what `each` returns goes through.
pub fn ask(
    socket: &Path,
    request: &Request,
    mut each: impl FnMut(Reply) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path: socket.to_owned() },
        _ => ClientError::NotThere { path: socket.to_owned(), source },
    })?;
    let following = matches!(request, Request::Drops { follow: true, .. } | Request::Capture { .. });
    stream.set_read_timeout((!following).then_some(Duration::from_secs(30)))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            Reply::End {} => return Ok(()),
            Reply::Error { message } => return Err(ClientError::Refused(message)),
            reply => each(reply)?,
        }
    }
    if following {
        return Err(ClientError::Refused("the agent ended".to_owned()));
    }
    Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()))
}

/// Prints one JSON value in a line of its own.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), ClientError> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Prints the node's health. Returns whether the node is ready.
pub fn status(socket: &Path, format: Format) -> Result<bool, ClientError> {
    let mut ready = false;
    ask(socket, &Request::Status, |reply| {
        if let Reply::Status(report) = reply {
            ready = report.ready;
            match format {
                Format::Json => print_json(&report)?,
                Format::Table => io::stdout().lock().write_all(render_status(&report).as_bytes())?,
            }
        }
        Ok(())
    })?;
    Ok(ready)
}

/// Prints encryption between nodes.
pub fn wireguard(socket: &Path, format: Format) -> Result<(), ClientError> {
    ask(socket, &Request::Status, |reply| {
        if let Reply::Status(report) = reply {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            match format {
                Format::Json => print_json(&report.wireguard)?,
                Format::Table => io::stdout().lock().write_all(report.wireguard.text(now).as_bytes())?,
            }
        }
        Ok(())
    })
}

/// Returns encryption in a line.
fn encryption(report: &WireguardReport) -> Option<String> {
    if report.mode.is_empty() || report.mode == "off" {
        return None;
    }
    let tunnel = |tunnel: &TunnelReport| {
        format!("{} {} of {} peers with a session", tunnel.family, tunnel.sessions(), tunnel.peers.len())
    };
    let mut parts = vec![report.mode.clone()];
    parts.extend(report.tunnels.iter().map(tunnel));
    if report.tunnels.is_empty() {
        parts.push("no tunnel yet".to_owned());
    }
    Some(parts.join(", "))
}

fn render_status(report: &StatusReport) -> String {
    let mut text = String::new();
    let state = match (report.ready, report.stale) {
        (true, false) => "ready",
        (true, true) => "ready, with policy of an earlier run",
        (false, _) => "not ready",
    };
    let mut add = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    add(format!("Node:      {} ({state})", report.node));
    for reason in &report.not_ready {
        add(format!("           {reason}"));
    }
    add(format!("Agent:     {} pid {} up {} s", report.version, report.pid, report.uptime_seconds));
    add(format!(
        "Policy:    generation {}, compiled in {:.1} ms",
        report.generation,
        report.compile_seconds * 1e3
    ));
    let objects: Vec<String> = report.objects.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if !objects.is_empty() {
        add(format!("Objects:   {}", objects.join(", ")));
    }
    let mib = |bytes: u64| bytes >> 20;
    let memory = &report.memory;
    add(format!(
        "Memory:    {} MiB resident ({} MiB packets), about {} MiB in the kernel",
        mib(memory.resident_bytes),
        mib(memory.umem_bytes),
        mib(memory.kernel_bytes)
    ));
    let counters = &report.counters;
    if let Some(encryption) = encryption(&report.wireguard) {
        let (sealed, opened) = (counters.sealed, counters.opened);
        add(format!("Encrypted: {encryption}; {sealed} packets sealed, {opened} opened"));
    }
    let dropped: u64 = counters.drops.values().sum();
    add(format!(
        "Packets:   {} received, {} forwarded ({} in fragments), {} answered, {} held, {dropped} dropped",
        counters.received, counters.forwarded, counters.cut, counters.answered, counters.held
    ));
    add(format!(
        "Flows:     {} alive, {} hits, {} misses, {} judged again",
        counters.flows, counters.flow_hits, counters.flow_misses, counters.flow_rejudged
    ));

    let quarantined: Vec<&str> =
        report.ports.iter().filter(|port| port.quarantined).map(|port| port.name.as_str()).collect();
    if !quarantined.is_empty() {
        add(format!("Quarantined: {}; see `margay release --help`", quarantined.join(", ")));
    }

    let mut drops = Table::new(&["DROP REASON", "PACKETS"]);
    let mut reasons: Vec<_> = counters.drops.iter().filter(|(_, count)| **count > 0).collect();
    reasons.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let any_drop = !reasons.is_empty();
    reasons.into_iter().for_each(|(reason, count)| drops.row(vec![reason.clone(), count.to_string()]));
    if any_drop {
        add(format!("\n{}", drops.to_string().trim_end()));
    }
    if !report.workers.is_empty() {
        let mut table = Table::new(&["WORKER", "CPU", "HEARTBEAT", "PANICS"]);
        for worker in &report.workers {
            let cpu = worker.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
            let heartbeat = format!("{} ms ago", worker.heartbeat_age_ms);
            table.row(vec![worker.index.to_string(), cpu, heartbeat, worker.panics.to_string()]);
        }
        add(format!("\n{}", table.to_string().trim_end()));
    }
    let mut ports = Table::new(&[
        "PORT",
        "KIND",
        "MODE",
        "POLLING",
        "MULTI-BUFFER",
        "CHECKSUMS",
        "QUEUES",
        "WORKER",
        "MTU",
        "RX",
        "TX",
        "LOST IN RINGS",
    ]);
    for port in &report.ports {
        ports.row(vec![
            port.name.clone(),
            port.kind.clone(),
            port.crossing(),
            port.manner.polling.clone(),
            port.manner.multi_buffer.clone(),
            port.manner.checksums.clone(),
            port.queues.to_string(),
            port.worker.to_string(),
            port.mtu.to_string(),
            port.rx_packets.to_string(),
            port.tx_packets.to_string(),
            port.ring_drops.to_string(),
        ]);
    }
    if !report.ports.is_empty() {
        add(format!("\n{}", ports.to_string().trim_end()));
    }
    for port in report.ports.iter().filter(|port| !port.why.is_empty()) {
        add(format!("{} stands on {}: {}", port.name, port.stands_on.join(", "), port.why));
    }
    let mut pods = Table::new(&["ENDPOINT", "POD", "INTERFACE", "STATE", "ADDRESSES"]);
    for endpoint in &report.endpoints {
        let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
        pods.row(vec![
            endpoint.id.to_string(),
            format!("{}/{}", endpoint.namespace, endpoint.pod),
            endpoint.interface.clone(),
            endpoint.state.clone(),
            addresses.join(","),
        ]);
    }
    if !report.endpoints.is_empty() {
        add(format!("\n{}", pods.to_string().trim_end()));
    }
    if !report.problems.is_empty() {
        add(format!("\nProblems ({}):", report.problems.len()));
        report.problems.iter().for_each(|problem| add(format!("  {problem}")));
    }
    text
}

/// Prints live flows.
pub fn flows(socket: &Path, filter: super::report::FlowFilter, format: Format) -> Result<(), ClientError> {
    let mut table = Table::new(&[
        "PROTO",
        "SOURCE",
        "DESTINATION",
        "STATE",
        "PACKETS",
        "BYTES",
        "ENCRYPTED",
        "EXPIRES",
        "ALLOWED BY",
    ]);
    ask(socket, &Request::Flows { filter }, |reply| {
        match (reply, format) {
            (Reply::Flow(flow), Format::Json) => print_json(&flow)?,
            (Reply::Flow(flow), Format::Table) => table.row(flow_row(&flow)),
            _ => {}
        }
        Ok(())
    })?;
    if format == Format::Table {
        io::stdout().lock().write_all(table.to_string().as_bytes())?;
    }
    Ok(())
}

fn end_of(address: Option<IpAddr>, port: u16, pod: Option<&str>) -> String {
    let address = match (address, port) {
        (None, _) => "?".to_owned(),
        (Some(address), 0) => address.to_string(),
        (Some(IpAddr::V4(address)), port) => format!("{address}:{port}"),
        (Some(IpAddr::V6(address)), port) => format!("[{address}]:{port}"),
    };
    match pod {
        Some(pod) => format!("{pod} ({address})"),
        None => address,
    }
}

fn flow_row(flow: &FlowReport) -> Vec<String> {
    let mut by = Vec::new();
    by.extend(flow.egress.as_ref().map(|decider| format!("egress {decider}")));
    by.extend(flow.ingress.as_ref().map(|decider| format!("ingress {decider}")));
    vec![
        ProbeProtocol(flow.protocol).to_string(),
        end_of(flow.source, flow.source_port, flow.source_pod.as_deref()),
        end_of(flow.destination, flow.destination_port, flow.destination_pod.as_deref()),
        flow.state.clone(),
        format!("{}/{}", flow.forward_packets, flow.reverse_packets),
        format!("{}/{}", flow.forward_bytes, flow.reverse_bytes),
        match (flow.encrypted_forward, flow.encrypted_reverse) {
            (true, true) => "both ways",
            (true, false) => "forward",
            (false, true) => "reverse",
            (false, false) => "no",
        }
        .to_owned(),
        format!("{} s", flow.expires_in_ms / 1_000),
        by.join("; "),
    ]
}

/// Ends a quarantine and says whose.
pub fn release(socket: &Path, what: String, format: Format) -> Result<(), ClientError> {
    ask(socket, &Request::Release { what }, |reply| {
        match (&reply, format) {
            (Reply::Released { .. }, Format::Json) => print_json(&reply)?,
            (Reply::Released { device }, Format::Table) => {
                writeln!(io::stdout().lock(), "{device} is released")?;
            }
            _ => {}
        }
        Ok(())
    })
}

/// Prints dropped packets; with `follow` until interrupted.
pub fn drops(
    socket: &Path,
    follow: bool,
    filter: super::report::DropFilter,
    format: Format,
) -> Result<(), ClientError> {
    ask(socket, &Request::Drops { follow, filter }, |reply| {
        match (reply, format) {
            (Reply::Drop(report), Format::Json) => print_json(&report)?,
            (Reply::Drop(report), Format::Table) => {
                let mut out = io::stdout().lock();
                writeln!(out, "{}", render_drop(&report))?;
                out.flush()?;
            }
            _ => {}
        }
        Ok(())
    })
}

fn render_drop(drop: &DropReport) -> String {
    let seconds = drop.time_ms / 1_000;
    let clock = format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        drop.time_ms % 1_000
    );
    let by = match (&drop.decided_by, &drop.leg) {
        (Some(decider), Some(leg)) => format!("{leg} {decider}"),
        (Some(decider), None) => decider.to_string(),
        (None, _) => drop.description.clone(),
    };
    format!(
        "{clock} {} {} {} -> {} on {}: {by}",
        drop.reason,
        ProbeProtocol(drop.protocol),
        end_of(drop.source, drop.source_port, drop.source_pod.as_deref()),
        end_of(drop.destination, drop.destination_port, drop.destination_pod.as_deref()),
        drop.port
    )
}

/// Asks the running agent why `probe` passes or not, and prints the answer; `all` as for [`Explanation::text`].
pub fn explain(socket: &Path, probe: Probe, format: Format, all: bool) -> Result<(), ClientError> {
    ask(socket, &Request::Explain { probe }, |reply| {
        if let Reply::Explanation(explanation) = reply {
            print_explanation(&explanation, format, all)?;
        }
        Ok(())
    })
}

/// Prints an explanation.
pub fn print_explanation(explanation: &Explanation, format: Format, all: bool) -> Result<(), ClientError> {
    match format {
        Format::Json => print_json(explanation),
        Format::Table => Ok(io::stdout().lock().write_all(explanation.text(all).as_bytes())?),
    }
}
