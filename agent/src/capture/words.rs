//! A told packet in words: one line, a comment, or stage by stage.

use std::fmt::Write;
use std::net::IpAddr;

use super::report::{CaptureReport, LegReport};
use crate::simulate::probe::ProbeProtocol;

fn clock(time_ns: u64) -> String {
    let seconds = time_ns / 1_000_000_000;
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:06}", seconds % 60, time_ns / 1_000 % 1_000_000)
}

fn end(address: Option<IpAddr>, port: u16, pod: Option<&str>) -> String {
    let Some(address) = address else { return "?".to_owned() };
    let mut text = match (address, port) {
        (address, 0) => address.to_string(),
        (IpAddr::V4(address), port) => format!("{address}:{port}"),
        (IpAddr::V6(address), port) => format!("[{address}]:{port}"),
    };
    if let Some(pod) = pod {
        let _ = write!(text, " ({pod})");
    }
    text
}

fn leg(name: &str, leg: &LegReport) -> String {
    let verdict = if leg.verdict == "allow" { "allowed" } else { "denied" };
    let by = leg.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    format!("{name} of {} {verdict}{by}", leg.pod)
}

/// Returns who talks to whom, such as `TCP 10.0.0.2:4000 (shop/web) -> 10.0.0.3:80 (shop/db)`.
pub(super) fn conversation(report: &CaptureReport) -> String {
    if report.source.is_none() {
        return "not IP, or malformed".to_owned();
    }
    format!(
        "{} {} -> {}",
        ProbeProtocol(report.protocol),
        end(report.source, report.source_port, report.source_pod.as_deref()),
        end(report.destination, report.destination_port, report.destination_pod.as_deref())
    )
}

/// Returns what became of it, such as `forwarded to mgyb`.
fn fate(report: &CaptureReport) -> String {
    let out = report.out.as_deref().unwrap_or("?");
    match report.fate.as_str() {
        "forwarded" => format!("forwarded to {out}"),
        "fragmented" => match &report.path {
            Some(path) => format!("sent to {} in fragments of at most {} bytes", path.port, path.mtu),
            None => "sent in fragments".to_owned(),
        },
        "answered" => "answered by the gateway".to_owned(),
        "awaits_first_fragment" => "waits for the first fragment of its datagram".to_owned(),
        "awaits_neighbour" => "waits for the Ethernet address of its next hop".to_owned(),
        _ => {
            let mut text = format!("dropped: {}", report.reason.as_deref().unwrap_or("?"));
            if let Some(by) = &report.decided_by {
                let _ = write!(text, " by {by}");
            }
            text
        }
    }
}

fn flow(report: &CaptureReport) -> String {
    match (&report.known, &report.state) {
        (Some(before), Some(after)) if before == after => format!("known flow, {after}"),
        (Some(before), Some(after)) => format!("known flow, {before}, then {after}"),
        (Some(before), None) => format!("known flow, {before}, then forgotten"),
        (None, Some(after)) => format!("new flow, {after}"),
        (None, None) => "no flow".to_owned(),
    }
}

/// Returns everything but the packet itself in one sentence: the packet comment of a capture file.
pub(super) fn comment(report: &CaptureReport) -> String {
    let mut parts = vec![fate(report), flow(report)];
    parts.extend(report.egress.iter().map(|told| leg("egress", told)));
    parts.extend(report.ingress.iter().map(|told| leg("ingress", told)));
    parts.push(format!("policy snapshot {}", report.generation));
    parts.join("; ")
}

/// Returns the packet as one line.
pub(super) fn line(report: &CaptureReport) -> String {
    let lost = lost(report).map(|text| text + "\n").unwrap_or_default();
    format!(
        "{lost}{} {} {} length {}: {}",
        clock(report.time_ns),
        report.port,
        conversation(report),
        report.length,
        comment(report)
    )
}

fn lost(report: &CaptureReport) -> Option<String> {
    (report.lost_before > 0).then(|| {
        format!(
            "({} matching packets are missing here: they came faster than they could be told)",
            report.lost_before
        )
    })
}

/// Returns the packet stage by stage, in the order of its way.
pub(super) fn stages(report: &CaptureReport) -> String {
    let mut text = String::new();
    let mut stage = |name: &str, what: &str| {
        let _ = writeln!(text, "    {name:<10}{what}");
    };
    let reason = report.description.as_deref().unwrap_or_default();
    stage("arrived", &format!("on {}, {} bytes, worker {}", report.port, report.length, report.worker));
    stage("flow", &flow(report));
    let legs = [("egress", &report.egress), ("ingress", &report.ingress)];
    if legs.iter().all(|(_, told)| told.is_none()) {
        stage("policy", "no pod of this node has a say");
    }
    for (name, told) in legs {
        if let Some(told) = told {
            let by = told.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
            stage(name, &format!("{} {}{by} (snapshot {})", told.pod, told.verdict, report.generation));
        }
    }
    if let Some(path) = &report.path {
        let hop = if path.decrements_ttl { ", one hop" } else { "" };
        stage("path", &format!("{} to {}, MTU {}{hop}", path.port, path.next_hop, path.mtu));
    }
    stage("ended", &fate(report));
    if !reason.is_empty() {
        stage("", reason);
    }
    let lost = lost(report).map(|text| text + "\n").unwrap_or_default();
    format!("{lost}{} {}\n{text}", clock(report.time_ns), conversation(report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::Decider;
    use crate::capture::report::PathReport;

    fn report() -> CaptureReport {
        CaptureReport {
            time_ns: 45_296_000_123_456,
            port: "mgya".to_owned(),
            length: 74,
            source: Some("10.0.0.2".parse().unwrap()),
            destination: Some("fd00::3".parse().unwrap()),
            source_pod: Some("shop/web".to_owned()),
            protocol: 6,
            source_port: 4000,
            destination_port: 80,
            fate: "forwarded".to_owned(),
            state: Some("syn_sent".to_owned()),
            egress: Some(LegReport {
                pod: "shop/web".to_owned(),
                verdict: "allow".to_owned(),
                by: Some(Decider {
                    tier: "default".to_owned(),
                    kind: "NetworkPolicy".to_owned(),
                    namespace: "shop".to_owned(),
                    name: "out".to_owned(),
                    rule: 1,
                }),
            }),
            out: Some("eth0".to_owned()),
            path: Some(PathReport {
                port: "eth0".to_owned(),
                next_hop: "02:00:00:00:00:01".to_owned(),
                mtu: 1500,
                decrements_ttl: true,
            }),
            generation: 9,
            ..CaptureReport::default()
        }
    }

    #[test]
    fn a_line_tells_who_and_what_became_of_it() {
        let line = line(&report());
        assert!(
            line.starts_with("12:34:56.000123 mgya TCP 10.0.0.2:4000 (shop/web) -> [fd00::3]:80 length 74: "),
            "{line}"
        );
        assert!(
            line.contains("forwarded to eth0; new flow, syn_sent; egress of shop/web allowed by "),
            "{line}"
        );
        assert!(line.ends_with("; policy snapshot 9"), "{line}");
    }

    #[test]
    fn a_drop_tells_reason_and_rule_and_what_is_missing() {
        let dropped = CaptureReport {
            fate: "dropped".to_owned(),
            reason: Some("policy_egress".to_owned()),
            description: Some("Denied by the sender's egress policy.".to_owned()),
            decided_by: report().egress.unwrap().by,
            state: None,
            lost_before: 3,
            ..report()
        };
        let text = stages(&dropped);
        assert!(text.starts_with("(3 matching packets are missing here"), "{text}");
        assert!(text.contains("ended     dropped: policy_egress by "), "{text}");
        assert!(text.contains("Denied by the sender's egress policy."), "{text}");
        assert!(line(&dropped).contains("no flow"), "{text}");
    }
}
