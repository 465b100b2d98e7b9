//! The node's numbers for Prometheus, and its health for Kubernetes, over plain HTTP.
//!
//! ```text
//!  GET /metrics   counters and gauges, OpenMetrics text
//!  GET /healthz   200 while the process can answer: it is alive
//!  GET /readyz    200 when policy is in force and every worker is alive, else 503 with the reasons
//! ```
//!
//! Every answer is made from one [`NodeView::status`], the value that `margay status` shows, at the moment of the request; there is no
//! registry that could be forgotten in an update. Nothing here is about single pods or flows, so the number of series is bounded by the
//! node's ports, its WireGuard peers and the fixed list of drop reasons.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::oneshot;

use crate::admin::report::{NodeView, SourceReport, StatusReport};
use crate::encryption::report::{PeerReport, TunnelReport, WireguardReport};

/// Why the metrics page cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address is taken or not ours.
    #[error(
        "metrics address {address}: cannot listen; choose a free address of this machine, or stop who uses it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// No thread or no event loop.
    #[error("metrics address {address}: the server cannot be started")]
    Start {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
}

/// A served metrics page; dropping it closes the listener.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Begins to serve on `address`; port 0 takes any free port, which the log names.
    ///
    /// Errors: [`MetricsError`], before anything is served.
    pub fn start(address: SocketAddr, view: Arc<dyn NodeView>) -> Result<Self, MetricsError> {
        let listen = |source| MetricsError::Listen { address, source };
        let start = |source| MetricsError::Start { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("margay-metrics".to_owned())
            .spawn(move || {
                let served = runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    tokio::select! {
                        served = axum::serve(listener, router(view)).into_future() => served,
                        _ = stopped => Ok(()),
                    }
                });
                if let Err(error) = served {
                    tracing::warn!(%error, "the metrics page is gone; restart the agent to have it back");
                }
            })
            .map_err(start)?;
        tracing::info!(%address, "metrics and health are served");
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns the address that is listened on.
    #[cfg(test)]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        tracing::debug!(address = %self.address, "metrics and health end");
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

fn router(view: Arc<dyn NodeView>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(view)
}

async fn metrics(State(view): State<Arc<dyn NodeView>>) -> impl IntoResponse {
    match render(&view.status()) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn ready(State(view): State<Arc<dyn NodeView>>) -> impl IntoResponse {
    let status = view.status();
    if status.ready && status.stale {
        // The node serves with what it knows; taking it out of service would help nobody.
        return (StatusCode::OK, "ok, but stale: the source of truth is not heard\n".to_owned());
    }
    if status.ready {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", status.not_ready.join("\n")))
}

type Labels = Vec<(&'static str, String)>;

/// Writes the metrics of `status` as OpenMetrics text. The sum of endings, WireGuard messages among them, equals `packets_received_total`
/// and `packets_made_total`.
pub fn render(status: &StatusReport) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("margay");
    let counters = &status.counters;
    let mut count =
        |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
    count("packets_received", "Packets taken from all ports", counters.received);
    count("packets_forwarded", "Packets sent on to another port", counters.forwarded);
    count("packets_answered", "Packets answered by the node itself", counters.answered);
    count("packets_made", "Packets of the node itself that began the way into a tunnel", counters.made);
    count(
        "wireguard_messages",
        "WireGuard messages that carried no packet and needed no answer",
        counters.messages,
    );
    count("wireguard_sealed_packets", "Packets sealed; they are forwarded too", counters.sealed);
    count("wireguard_opened_packets", "Packets that came sealed and were opened", counters.opened);
    count(
        "segments_joined",
        "TCP segments that reached their pod as part of the one before them",
        counters.joined,
    );
    count(
        "packets_cut",
        "Packets larger than their path that left in fragments; they are forwarded too",
        counters.cut,
    );
    count(
        "handed_over",
        "Packets given from one worker to another: to be sent to a pod, judged, sealed or opened",
        counters.handed_over,
    );
    count("icmp_errors_sent", "ICMP errors sent about dropped packets", counters.icmp_errors_sent);
    count("resets_sent", "TCP resets sent about segments that policy refused", counters.resets_sent);
    count(
        "answers_limited",
        "Answers about dropped packets beyond the allowance of their port",
        counters.answers_limited,
    );
    count("flow_hits", "Packets answered by a remembered flow", counters.flow_hits);
    count("flow_misses", "Packets judged by policy tables", counters.flow_misses);
    count("flow_evicted", "Unanswered flows put out for new ones", counters.flow_evicted);
    count("flow_rejudged", "Flows judged again because policy changed", counters.flow_rejudged);

    let drops = counters.drops.iter().map(|(reason, count)| (vec![("reason", reason.clone())], *count));
    counters_by(&mut registry, "packets_dropped", "Packets dropped, by reason", drops);
    let of_port = |value: fn(&crate::admin::report::PortReport) -> u64| {
        let rows = status
            .ports
            .iter()
            .map(move |port| (vec![("port", port.name.clone()), ("kind", port.kind.clone())], value(port)));
        rows.collect::<Vec<_>>().into_iter()
    };
    counters_by(
        &mut registry,
        "port_received_packets",
        "Packets taken from a port",
        of_port(|port| port.rx_packets),
    );
    counters_by(
        &mut registry,
        "port_sent_packets",
        "Packets sent to a port",
        of_port(|port| port.tx_packets),
    );
    counters_by(
        &mut registry,
        "port_copied_packets",
        "Packets sent to a port that were copied, as they came in another packet memory than the port's",
        of_port(|port| port.copied_packets),
    );
    counters_by(
        &mut registry,
        "port_ring_lost_packets",
        "Packets lost between the kernel and a port's rings",
        of_port(|port| port.ring_drops),
    );

    let manners = status.ports.iter().map(|port| {
        let manner = &port.manner;
        let labels = vec![
            ("port", port.name.clone()),
            ("kind", port.kind.clone()),
            ("mode", port.mode.clone()),
            ("polling", manner.polling.clone()),
            ("zero_copy", manner.zero_copy.clone()),
            ("multi_buffer", manner.multi_buffer.clone()),
            ("checksums", manner.checksums.clone()),
        ];
        (labels, 1)
    });
    gauges_by(&mut registry, "port_mode", "How packets cross a port; always 1", manners);

    let mut gauge = |name: &str, help: &str, value: u64| {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    };
    gauge("packets_held", "Packets waiting for a next hop's address", counters.held);
    gauge("flow_entries", "Flows alive", counters.flows);
    gauge("policy_generation", "Number of the snapshot in force; zero before the first", status.generation);
    gauge("policy_endpoints", "Pods that have an interface on this node", status.endpoints.len() as u64);
    gauge(
        "ports_quarantined",
        "Ports from which nothing is taken because their frames made workers panic",
        status.ports.iter().filter(|port| port.quarantined).count() as u64,
    );
    gauge("ready", "1 when policy is in force and every worker is alive", u64::from(status.ready));
    gauge(
        "policy_stale",
        "1 when the source of truth does not answer and earlier policy is in force",
        u64::from(status.stale),
    );
    let seconds = |value: f64| ConstGauge::new(value);
    registry.register_with_unit(
        "policy_compile",
        "Time of the last compilation",
        Unit::Seconds,
        seconds(status.compile_seconds),
    );
    let uptime = ConstGauge::new(i64::try_from(status.uptime_seconds).unwrap_or(i64::MAX));
    registry.register_with_unit("agent_uptime", "Time since the agent started", Unit::Seconds, uptime);

    let memory = [
        ("resident", status.memory.resident_bytes),
        ("packets", status.memory.umem_bytes),
        ("packets_own", status.memory.own_umem_bytes),
        ("kernel", status.memory.kernel_bytes),
    ];
    let memory = memory.into_iter().map(|(area, bytes)| (vec![("area", area.to_owned())], bytes));
    gauges_by(
        &mut registry,
        "memory_bytes",
        "Memory in use; packets is part of resident, packets_own (uplinks with zero-copy) of packets, kernel is outside",
        memory,
    );
    let objects = status.objects.iter().map(|(kind, count)| (vec![("kind", kind.clone())], *count));
    gauges_by(&mut registry, "policy_objects", "Objects known, by kind", objects);
    let mut problems: BTreeMap<&str, u64> = [("warning", 0), ("error", 0), ("critical", 0)].into();
    for problem in &status.problems {
        *problems.entry(problem.severity.as_str()).or_default() += 1;
    }
    let problems =
        problems.into_iter().map(|(severity, count)| (vec![("severity", severity.to_owned())], count));
    gauges_by(&mut registry, "source_problems", "Things wrong with objects of the source of truth", problems);
    let heartbeats =
        status.workers.iter().map(|w| (vec![("worker", w.index.to_string())], w.heartbeat_age_ms));
    gauges_by(
        &mut registry,
        "worker_heartbeat_age_milliseconds",
        "Time since a worker's last heartbeat",
        heartbeats,
    );

    let panics = status.workers.iter().map(|w| (vec![("worker", w.index.to_string())], w.panics));
    counters_by(&mut registry, "worker_panics", "Panics that a worker went on from", panics);

    wireguard(&mut registry, &status.wireguard);
    of_source(&mut registry, &status.source);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// What a peer is and does; a series for each node and tunnel, unless prometheusWireGuardMetricsEnabled says otherwise.
fn wireguard(registry: &mut Registry, report: &WireguardReport) {
    if report.tunnels.is_empty() || !report.metrics {
        return;
    }
    let rows = |value: fn(&PeerReport) -> Option<u64>| {
        let peers = report
            .tunnels
            .iter()
            .flat_map(|tunnel| tunnel.peers.iter().map(move |peer| (tunnel.family, peer)));
        let rows = peers.filter_map(move |(family, peer)| {
            let labels = vec![("node", peer.node.clone()), ("family", family.to_string())];
            Some((labels, value(peer)?))
        });
        rows.collect::<Vec<_>>().into_iter()
    };
    let help = "Bytes of packets from a WireGuard peer";
    counters_by(registry, "wireguard_peer_received_bytes", help, rows(|peer| Some(peer.received_bytes)));
    let help = "Bytes of packets sealed for a WireGuard peer";
    counters_by(registry, "wireguard_peer_sent_bytes", help, rows(|peer| Some(peer.sent_bytes)));
    let help = "Time since the last handshake with a WireGuard peer; absent without a session";
    gauges_by(registry, "wireguard_peer_handshake_age_seconds", help, rows(|peer| peer.handshake_seconds));
    let of_tunnel = |value: fn(&TunnelReport) -> usize| {
        let rows = report
            .tunnels
            .iter()
            .map(move |tunnel| (vec![("family", tunnel.family.to_string())], value(tunnel) as u64));
        rows.collect::<Vec<_>>().into_iter()
    };
    let help = "WireGuard peers";
    gauges_by(registry, "wireguard_peers", help, of_tunnel(|tunnel| tunnel.peers.len()));
    let help = "WireGuard peers with a session";
    gauges_by(registry, "wireguard_sessions", help, of_tunnel(TunnelReport::sessions));
    let findings = ConstGauge::new(i64::try_from(report.findings.len()).unwrap_or(i64::MAX));
    registry.register("wireguard_findings", "Things about encryption that its owner should know", findings);
}

/// What the agent asks of the API server, and what it could not read of the answers.
fn of_source(registry: &mut Registry, source: &SourceReport) {
    let requests = source.requests.iter().map(|asked| {
        let labels = vec![
            ("verb", asked.verb.clone()),
            ("resource", asked.resource.clone()),
            ("code", asked.code.clone()),
        ];
        (labels, asked.count)
    });
    counters_by(registry, "api_requests", "Requests to the API server, by how they ended", requests);
    let by = |name: &'static str, map: &BTreeMap<String, u64>| {
        map.iter().map(|(what, count)| (vec![(name, what.clone())], *count)).collect::<Vec<_>>().into_iter()
    };
    let rows = by("resource", &source.watch_restarts);
    counters_by(registry, "api_watch_restarts", "Watches opened in place of one that ended", rows);
    let rows = by("resource", &source.relists);
    counters_by(registry, "api_relists", "Lists after the first: the server could not continue", rows);
    let rows = by("kind", &source.unreadable);
    counters_by(registry, "source_unreadable", "Objects, events and pages that could not be read", rows);
}

fn counters_by(registry: &mut Registry, name: &str, help: &str, rows: impl Iterator<Item = (Labels, u64)>) {
    use prometheus_client::metrics::counter::Counter;
    let family = Family::<Labels, Counter<u64, AtomicU64>>::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).inc_by(value);
    }
    registry.register(name, help, family);
}

fn gauges_by(registry: &mut Registry, name: &str, help: &str, rows: impl Iterator<Item = (Labels, u64)>) {
    let family = Family::<Labels, Gauge>::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    registry.register(name, help, family);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::{MannerReport, PortReport, RequestReport, WorkerReport};
    use margay_core::{Counters, DropReason};

    #[test]
    fn requests_to_the_api_server_are_told_by_verb_resource_and_code() {
        let asked = |verb: &str, code: &str, count| RequestReport {
            verb: verb.to_owned(),
            resource: "pods".to_owned(),
            code: code.to_owned(),
            count,
        };
        let one = |what: &str, count| BTreeMap::from([(what.to_owned(), count)]);
        let source = SourceReport {
            requests: vec![asked("list", "2xx", 3), asked("watch", "410", 1)],
            watch_restarts: one("pods", 4),
            relists: one("pods", 2),
            unreadable: one("Pod", 1),
        };
        let text = render(&StatusReport { source, ..StatusReport::default() }).unwrap();
        for line in [
            r#"margay_api_requests_total{verb="list",resource="pods",code="2xx"} 3"#,
            r#"margay_api_requests_total{verb="watch",resource="pods",code="410"} 1"#,
            r#"margay_api_watch_restarts_total{resource="pods"} 4"#,
            r#"margay_api_relists_total{resource="pods"} 2"#,
            r#"margay_source_unreadable_total{kind="Pod"} 1"#,
        ] {
            assert!(text.lines().any(|told| told == line), "{line}: {text}");
        }
    }

    #[test]
    fn sum_of_endings_on_the_page_equals_packets_received() {
        let mut counters = Counters {
            received: 102,
            made: 1,
            forwarded: 60,
            cut: 4,
            answered: 5,
            held: 2,
            messages: 3,
            ..Counters::default()
        };
        counters.drops[DropReason::PolicyIngress as usize] = 30;
        counters.drops[DropReason::Multicast as usize] = 3;
        let status = StatusReport { counters: (&counters).into(), ..StatusReport::default() };
        let text = render(&status).unwrap();
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        let sum: u64 = text
            .lines()
            .filter(|line| {
                [
                    "margay_packets_forwarded_total",
                    "margay_packets_answered_total",
                    "margay_wireguard_messages_total",
                    "margay_packets_held",
                    "margay_packets_dropped_total",
                ]
                .iter()
                .any(|name| line.starts_with(name))
            })
            .map(value)
            .sum();
        let begun = ["margay_packets_received_total", "margay_packets_made_total"];
        let begun = text.lines().filter(|line| begun.iter().any(|name| line.starts_with(name))).map(value);
        assert_eq!(sum, begun.sum::<u64>(), "{text}");
        assert!(text.contains(r#"margay_packets_dropped_total{reason="policy_ingress"} 30"#), "{text}");
        assert!(text.contains(r#"margay_packets_dropped_total{reason="truncated"} 0"#), "{text}");
        assert!(text.contains("margay_packets_cut_total 4"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn panics_and_quarantined_ports_are_on_the_page() {
        let port = |quarantined| PortReport { quarantined, ..PortReport::default() };
        let status = StatusReport {
            workers: vec![WorkerReport { index: 1, panics: 4, ..WorkerReport::default() }],
            ports: vec![port(true), port(false), port(true)],
            ..StatusReport::default()
        };
        let text = render(&status).unwrap();
        assert!(text.contains(r#"margay_worker_panics_total{worker="1"} 4"#), "{text}");
        assert!(text.contains("margay_ports_quarantined 2"), "{text}");
    }

    #[test]
    fn how_packets_cross_a_port_is_on_the_page() {
        let manner = MannerReport {
            polling: "threaded".to_owned(),
            zero_copy: "none".to_owned(),
            multi_buffer: "on".to_owned(),
            checksums: "left".to_owned(),
            ..MannerReport::default()
        };
        let port = PortReport {
            name: "mgy1".to_owned(),
            kind: "pod".to_owned(),
            mode: "native".to_owned(),
            manner,
            ..PortReport::default()
        };
        let text = render(&StatusReport { ports: vec![port], ..StatusReport::default() }).unwrap();
        let line = r#"margay_port_mode{port="mgy1",kind="pod",mode="native",polling="threaded",zero_copy="none",multi_buffer="on",checksums="left"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
