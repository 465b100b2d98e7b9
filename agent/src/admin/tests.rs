//! The admin socket with a node made of fixed answers behind it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use margay_core::worker::{Captured, Fate, TapId};
use margay_core::{Nanos, PortIndex, WorkerIndex};

use super::client::{ClientError, ask};
use super::protocol::{Reply, Request};
use super::report::{Decider, DropFilter, DropReport, FlowFilter, FlowReport, NodeView, StatusReport};
use super::server::AdminError;
use super::{AdminServer, DropHub};
use crate::capture::{CaptureFilter, CaptureReport};
use crate::explain::Explanation;
use crate::simulate::probe::{Probe, ProbeProtocol};

#[test]
fn status_arrives_as_it_was_given() {
    let served = Served::new();
    let replies = served.ask(&Request::Status).unwrap();
    assert_eq!(replies, [Reply::Status(Box::new(served.node.status()))]);
}

#[test]
fn flows_pass_the_filter_and_the_limit() {
    let served = Served::new();
    let filter = FlowFilter { protocol: Some(6), limit: 3, ..FlowFilter::default() };
    let replies = served.ask(&Request::Flows { filter }).unwrap();
    assert_eq!(replies.len(), 3);
    assert!(replies.iter().all(|reply| matches!(reply, Reply::Flow(flow) if flow.protocol == 6)));
}

#[test]
fn followed_drops_arrive_as_they_happen_with_the_rule_that_decided() {
    let served = Served::new();
    let drop = |n| DropReport {
        time_ms: n,
        reason: "policy_ingress".to_owned(),
        leg: Some("ingress".to_owned()),
        decided_by: Some(Decider {
            tier: "default".to_owned(),
            name: "web".to_owned(),
            rule: 2,
            ..Decider::default()
        }),
        ..DropReport::default()
    };
    served.node.hub.publish(drop(1));
    served.node.hub.publish(DropReport { reason: "multicast".to_owned(), ..drop(2) });
    let filter = DropFilter { reason: Some("policy_ingress".to_owned()), ..DropFilter::default() };
    let mut seen = Vec::new();
    let ended = ask(&served.path(), &Request::Drops { follow: true, filter }, |reply| {
        if let Reply::Drop(report) = reply {
            seen.push(report.clone());
            match report.time_ms {
                1 => served.node.hub.publish(drop(3)),
                _ => return Err(ClientError::Refused("enough".to_owned())),
            }
        }
        Ok(())
    });
    assert!(matches!(ended, Err(ClientError::Refused(_))));
    assert_eq!(seen, [drop(1), drop(3)]);
}

#[test]
fn a_release_names_the_device_and_a_refusal_the_reason() {
    let served = Served::new();
    let released = served.ask(&Request::Release { what: "shop/web".to_owned() }).unwrap();
    assert_eq!(released, [Reply::Released { device: "mgyweb".to_owned() }]);
    let refused = served.ask(&Request::Release { what: "eth0".to_owned() });
    assert!(matches!(refused, Err(ClientError::Refused(message)) if message == "eth0 is not quarantined"));
}

#[test]
fn pods_are_told_by_name_and_only_those_that_are_known() {
    let served = Served::new();
    let names = ["shop/web", "shop/new"].map(str::to_owned).to_vec();
    let known = BTreeMap::from([("shop/web".to_owned(), vec![IpAddr::from([10, 0, 0, 1])])]);
    assert_eq!(served.ask(&Request::Pods { names }).unwrap(), [Reply::Pods(known)]);
}

#[test]
fn explain_passes_the_nodes_refusal_on() {
    let served = Served::new();
    let probe = Probe {
        from: "a/b".to_owned(),
        to: "c/d".to_owned(),
        protocol: ProbeProtocol(6),
        port: Some(1),
        sport: None,
        icmp: None,
        family: None,
        interface: None,
        via: None,
    };
    let refused = served.ask(&Request::Explain { probe });
    assert!(matches!(refused, Err(ClientError::Refused(message)) if message == "from: nobody"));
}

#[test]
fn packets_are_told_from_the_word_that_watching_began() {
    let served = Served::new();
    let packet = |length| Captured {
        tap: TapId(1),
        time: Nanos(0),
        worker: WorkerIndex(0),
        port: PortIndex(1),
        bytes: Box::new([0; 14]),
        length,
        sent: None,
        fate: Fate::Answered,
        known: None,
        state: None,
        egress: None,
        ingress: None,
        decided_by: None,
        path: None,
        generation: 1,
        lost_before: 0,
    };
    let mut seen = Vec::new();
    let watched = ask(&served.path(), &Request::Capture { filter: CaptureFilter::default() }, |reply| {
        match reply {
            // Only now: what comes earlier is nobody's business.
            Reply::Watching {} if seen.is_empty() => {
                served.node.told.send(packet(60)).unwrap();
                served.node.told.send(packet(61)).unwrap();
            }
            Reply::Packet(report) => seen.push(report.length),
            _ => {}
        }
        if seen.len() == 2 { Err(ClientError::Enough) } else { Ok(()) }
    });
    assert!(matches!(watched, Err(ClientError::Enough)));
    assert_eq!(seen, [60, 61]);
    // The watcher has gone: the agent notices and watches no more.
    let patience = Instant::now() + Duration::from_secs(10);
    while served.node.ended.load(Ordering::Acquire) != 1 {
        assert!(Instant::now() < patience, "the tap outlives its watcher");
        std::thread::sleep(Duration::from_millis(10));
    }
    let filter = CaptureFilter { protocol: Some(99), ..CaptureFilter::default() };
    let refused = served.ask(&Request::Capture { filter });
    assert!(matches!(refused, Err(ClientError::Refused(message)) if message == "99 is nothing"));
}

#[test]
fn request_that_is_not_understood_is_refused_by_name() {
    let served = Served::new();
    for (line, word) in [
        ("{\"command\":\"reboot\"}", "reboot"),
        ("hello", "expected"),
        ("{\"command\":\"flows\",\"filter\":{\"colour\":1}}", "colour"),
    ] {
        let mut stream = UnixStream::connect(served.path()).unwrap();
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("error") && answer.contains(word), "{answer}");
    }
}

#[test]
fn socket_is_for_the_owner_only_replaces_a_stale_one_and_is_not_taken_from_a_living_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/admin.sock");
    std::fs::create_dir(folder.path().join("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let node: Arc<dyn NodeView> = Arc::new(Node::default());
    let server = AdminServer::start(&path, Arc::clone(&node)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(AdminServer::start(&path, Arc::clone(&node)), Err(AdminError::InUse { .. })));
    drop(server);
    assert!(!path.exists());
    assert!(matches!(ask(&path, &Request::Status, |_| Ok(())), Err(ClientError::NotThere { .. })));
}

#[test]
fn metrics_and_health_are_served_over_http() {
    use std::io::Read;
    let node: Arc<dyn NodeView> = Arc::new(Node::default());
    let server = crate::metrics::MetricsServer::start("127.0.0.1:0".parse().unwrap(), node).unwrap();
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("/healthz").starts_with("HTTP/1.1 200"));
    let ready = get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("no policy yet"), "{ready}");
    let page = get("/metrics");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("margay_packets_received_total 7"), "{page}");
    assert!(get("/other").starts_with("HTTP/1.1 404"));
}

struct Node {
    hub: DropHub,
    told: Sender<Captured>,
    packets: Receiver<Captured>,
    ended: AtomicU32,
}

impl Default for Node {
    fn default() -> Self {
        let (told, packets) = crossbeam::channel::unbounded();
        Self { hub: DropHub::default(), told, packets, ended: AtomicU32::new(0) }
    }
}

impl NodeView for Node {
    fn status(&self) -> StatusReport {
        let mut status = StatusReport { node: "n1".to_owned(), generation: 7, ..StatusReport::default() };
        status.not_ready.push("no policy yet".to_owned());
        status.counters.received = 7;
        status
    }

    fn flows(&self, _: &FlowFilter) -> Vec<FlowReport> {
        let flow = |n| FlowReport {
            protocol: if n % 2 == 0 { 6 } else { 17 },
            source_port: n,
            ..FlowReport::default()
        };
        (0..20).map(flow).collect()
    }

    fn drops(&self) -> (Vec<DropReport>, Receiver<DropReport>) {
        self.hub.subscribe()
    }

    fn watch(&self, filter: &CaptureFilter) -> Result<(TapId, Receiver<Captured>), String> {
        match filter.protocol {
            Some(99) => Err("99 is nothing".to_owned()),
            _ => Ok((TapId(1), self.packets.clone())),
        }
    }

    fn end_watch(&self, id: TapId) {
        self.ended.store(id.0, Ordering::Release);
    }

    fn tell(&self, packets: Vec<Captured>) -> Vec<CaptureReport> {
        let report = |packet: &Captured| CaptureReport { length: packet.length, ..CaptureReport::default() };
        packets.iter().map(report).collect()
    }

    fn release(&self, what: &str) -> Result<String, String> {
        if what == "shop/web" { Ok("mgyweb".to_owned()) } else { Err(format!("{what} is not quarantined")) }
    }

    fn pods(&self, names: &[String]) -> Result<BTreeMap<String, Vec<IpAddr>>, String> {
        let known = BTreeMap::from([("shop/web".to_owned(), vec![IpAddr::from([10, 0, 0, 1])])]);
        Ok(known.into_iter().filter(|(name, _)| names.contains(name)).collect())
    }

    fn explain(&self, _: &Probe) -> Result<Explanation, String> {
        Err("from: nobody".to_owned())
    }
}

struct Served {
    folder: tempfile::TempDir,
    node: Arc<Node>,
    _server: AdminServer,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Arc::new(Node::default());
        let view: Arc<dyn NodeView> = Arc::<Node>::clone(&node);
        let server = AdminServer::start(&folder.path().join("admin.sock"), view).unwrap();
        Self { folder, node, _server: server }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn ask(&self, request: &Request) -> Result<Vec<Reply>, ClientError> {
        let mut replies = Vec::new();
        ask(&self.path(), request, |reply| {
            replies.push(reply);
            Ok(())
        })?;
        Ok(replies)
    }
}
