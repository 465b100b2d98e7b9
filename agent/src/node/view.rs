//! The node as the admin socket and the metrics page see it: numbers become names here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, bounded};
use margay_control::kubernetes::Traffic;
use margay_core::topology::PortKind;
use margay_core::worker::{Captured, FlowRecord, TapId};
use margay_core::{DropReason, PacketEvent, PortIndex, What};
use margay_io::Dataplane;
use margay_policy_engine::engine::Engine;
use margay_policy_engine::packet::Verdict;
use margay_policy_engine::snapshot::Snapshot;

use super::manner::{self, Manner};
use super::reconciler::{Board, Command, Shown};
use super::uplinks::Uplink;
use crate::admin::DropHub;
use crate::admin::report::{
    CounterReport, Decider, DropReport, EndpointReport, FlowFilter, FlowReport, MemoryReport, NodeView,
    PortReport, StatusReport, WorkerReport,
};
use crate::capture::{self, CaptureFilter, CaptureReport};
use crate::explain::Explanation;
use crate::net::netdev::XdpFeatures;
use crate::simulate::probe::Probe;
use crate::simulate::world::World;

/// Tells what was asked of the API server so far.
pub type TellTraffic = Box<dyn Fn() -> Traffic + Send + Sync>;

/// Everything that a report needs.
pub struct View {
    /// Name of this node.
    pub node: String,
    /// When the agent started.
    pub started: Instant,
    /// The packet path.
    pub dataplane: Arc<Dataplane>,
    /// What the control thread shows.
    pub board: Board,
    /// The control thread's ear.
    pub commands: Sender<Command>,
    /// Drops, for whoever follows them.
    pub hub: DropHub,
    /// What was asked of the API server, where there is one.
    pub traffic: Option<TellTraffic>,
    /// Uplinks as they were chosen.
    pub uplinks: Vec<Uplink>,
    /// How pods' interfaces are crossed.
    pub manner: Manner,
    /// Uplinks that threads of the kernel receive for.
    pub threaded: BTreeSet<String>,
    /// What the drivers of uplinks can do, by name.
    pub drivers: BTreeMap<String, Option<XdpFeatures>>,
    /// CPUs of the workers, in order and over again; empty when the scheduler decides.
    pub cpus: Vec<usize>,
    /// What a pod's packet to its own node meets.
    pub endpoint_to_host: margay_core::worker::EndpointToHost,
}

/// A worker whose heartbeat is older than this serves nobody: its pods are closed, its uplinks pass.
const STALE: Duration = Duration::from_secs(1);

/// How long the control thread and the workers have for an answer.
const ANSWER: Duration = Duration::from_secs(10);

const NO_POLICY: &str = "no policy is in force yet: the first complete picture has not arrived";

impl View {
    fn board(&self) -> Shown {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn names(&self) -> (Arc<BTreeMap<IpAddr, String>>, BTreeMap<PortIndex, String>) {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = board.ports.iter().map(|(index, (port, _))| (*index, port.name.clone())).collect();
        (Arc::clone(&board.names), ports)
    }

    fn with_names<T>(&self, with: impl FnOnce(&capture::Names<'_>) -> T) -> T {
        let board = self.board();
        let ports: BTreeMap<PortIndex, String> =
            board.ports.iter().map(|(index, (port, _))| (*index, port.name.clone())).collect();
        let port_of =
            |interface: &str| ports.iter().find(|(_, name)| *name == interface).map(|(index, _)| *index);
        let endpoints = board.endpoints.iter().map(|(record, _)| {
            let name = format!("{}/{}", record.pod.namespace, record.pod.name);
            (record.id, (name, port_of(&record.host_ifname)))
        });
        let endpoints = endpoints.collect();
        with(&capture::Names { pods: &board.names, endpoints: &endpoints, ports: &ports })
    }

    /// Asks about what is known and the snapshot that was made of it.
    ///
    /// Errors: a sentence for the asker.
    fn inspect<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Engine, Option<&Snapshot>) -> T + Send + 'static,
    ) -> Result<T, String> {
        let (reply, answer) = bounded(1);
        let ask = move |engine: &Engine, snapshot: Option<&Snapshot>| {
            // Who asked may have gone.
            let _ = reply.send(question(engine, snapshot));
        };
        self.commands
            .send(Command::Inspect(Box::new(ask)))
            .map_err(|_| "the agent is stopping".to_owned())?;
        answer
            .recv_timeout(ANSWER)
            .map_err(|_| format!("the control thread did not answer within {ANSWER:?}"))
    }

    /// Translates drops as they come, until the packet path ends. Runs on a thread of its own.
    pub fn translate_drops(&self, events: &Receiver<PacketEvent>) {
        while let Ok(first) = events.recv() {
            let (names, ports) = self.names();
            for event in std::iter::once(first).chain(events.try_iter().take(1_000)) {
                match event.what {
                    What::Dropped(reason) => self.hub.publish(drop_report(&event, reason, &names, &ports)),
                    What::Logged(verdict) => log_record(&event, verdict, &names),
                }
            }
        }
    }
}

/// Writes the record of a Log rule: where in policy, and the leg's final verdict (PM-D11).
fn log_record(event: &PacketEvent, verdict: Verdict, names: &BTreeMap<IpAddr, String>) {
    let end = |address: Option<IpAddr>, port: u16| {
        let name = address.and_then(|a| names.get(&a)).map(|name| format!(" ({name})")).unwrap_or_default();
        address.map(|a| std::net::SocketAddr::new(a, port).to_string() + &name).unwrap_or_default()
    };
    tracing::info!(
        target: "calico-packet",
        rule = event.attribution.as_ref().map(|a| Decider::from(a).to_string()),
        verdict = if verdict == Verdict::Allow { "allow" } else { "deny" },
        leg = event.leg,
        protocol = event.protocol,
        from = end(event.source, event.source_port),
        to = end(event.destination, event.destination_port),
        "a Log rule matched"
    );
}

fn drop_report(
    event: &PacketEvent,
    reason: DropReason,
    names: &BTreeMap<IpAddr, String>,
    ports: &BTreeMap<PortIndex, String>,
) -> DropReport {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = |address: Option<IpAddr>| address.and_then(|a| names.get(&a).cloned());
    DropReport {
        time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        port: ports.get(&event.port).cloned().unwrap_or_else(|| event.port.to_string()),
        reason: reason.as_str().to_owned(),
        description: reason.describe().to_owned(),
        source: event.source,
        destination: event.destination,
        source_pod: name(event.source),
        destination_pod: name(event.destination),
        protocol: event.protocol,
        source_port: event.source_port,
        destination_port: event.destination_port,
        leg: (!event.leg.is_empty()).then(|| event.leg.to_owned()),
        decided_by: event.attribution.as_ref().map(Into::into),
    }
}

fn flow_report(flow: &FlowRecord, names: &BTreeMap<IpAddr, String>) -> FlowReport {
    FlowReport {
        source: Some(flow.source),
        destination: Some(flow.destination),
        source_pod: names.get(&flow.source).cloned(),
        destination_pod: names.get(&flow.destination).cloned(),
        protocol: flow.protocol,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        state: flow.state.to_owned(),
        forward_packets: flow.forward.0,
        forward_bytes: flow.forward.1,
        reverse_packets: flow.reverse.0,
        reverse_bytes: flow.reverse.1,
        encrypted_forward: flow.encrypted.0,
        encrypted_reverse: flow.encrypted.1,
        expires_in_ms: flow.expires_in.0 / 1_000_000,
        egress: flow.egress.as_ref().map(Into::into),
        ingress: flow.ingress.as_ref().map(Into::into),
    }
}

/// Returns the resident set of this process in bytes (proc(5), statm).
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages * u64::try_from(page).unwrap_or(4096)
}

impl NodeView for View {
    fn status(&self) -> StatusReport {
        let board = self.board();
        let age = self.dataplane.heartbeat_age();
        let mut not_ready = board.not_ready;
        // There is a host port at least, once the control thread shows anything.
        if board.ports.is_empty() {
            not_ready.push("the agent starts".to_owned());
        }
        if age > STALE {
            not_ready
                .push(format!("the worker has not been seen for {} ms; pods are closed", age.as_millis()));
        }
        let cpus =
            self.cpus.iter().cycle().map(|cpu| u32::try_from(*cpu).ok()).chain(std::iter::repeat(None));
        let ages = self.dataplane.heartbeat_ages();
        let numbers = self.dataplane.worker_counters();
        let workers =
            (0..).zip(ages).zip(cpus).zip(numbers).map(|(((index, age), cpu), numbers)| WorkerReport {
                index,
                cpu,
                heartbeat_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                panics: numbers.panics.load(Relaxed),
            });
        let quarantined = self.dataplane.quarantined();
        let statistics = self.dataplane.port_counters().unwrap_or_default();
        let memory = self.dataplane.memory().unwrap_or_default();
        let route_mtus: BTreeMap<PortIndex, u32> =
            board.endpoints.iter().filter_map(|(record, _)| Some((record.port, record.route_mtu?))).collect();
        let several_frames = self.dataplane.takes_several_frames();
        let left = self.dataplane.leaves_checksums();
        let ports = board.ports.iter().map(|(index, (port, report))| {
            let numbers = statistics.get(index).copied().unwrap_or_default();
            let stacked =
                self.uplinks.iter().find(|uplink| uplink.name == port.name && !uplink.why.is_empty());
            PortReport {
                name: port.name.clone(),
                kind: match port.kind {
                    PortKind::Pod { .. } => "pod",
                    PortKind::Host { .. } => "host",
                    PortKind::Uplink => "uplink",
                }
                .to_owned(),
                mode: report.mode.as_str().to_owned(),
                stands_on: stacked.map(|uplink| uplink.nics.clone()).unwrap_or_default(),
                why: stacked.map(|uplink| uplink.why.to_owned()).unwrap_or_default(),
                manner: match port.kind {
                    PortKind::Pod { .. } => {
                        self.manner.report_pod(&port.name, report.mode, several_frames, left)
                    }
                    PortKind::Host { .. } => {
                        manner::report_other(report, Some(manner::PAIR), several_frames, false)
                    }
                    PortKind::Uplink => {
                        let driver = self.drivers.get(&port.name).copied().flatten();
                        let threaded = self.threaded.contains(&port.name);
                        manner::report_other(report, driver, several_frames, threaded)
                    }
                },
                queues: report.queues,
                worker: report.worker.into(),
                mtu: port.mtu,
                route_mtu: route_mtus.get(index).copied().unwrap_or(port.mtu),
                rx_packets: numbers.rx_packets,
                tx_packets: numbers.tx_packets,
                copied_packets: numbers.copied_packets,
                ring_drops: numbers.tx_failed + numbers.kernel.rx_dropped + numbers.kernel.rx_ring_full,
                quarantined: quarantined.contains(index),
            }
        });
        let endpoints = board.endpoints.iter().map(|(record, in_force)| EndpointReport {
            id: record.id.0,
            namespace: record.pod.namespace.clone(),
            pod: record.pod.name.clone(),
            interface: record.host_ifname.clone(),
            addresses: record.addresses.clone(),
            state: match (quarantined.contains(&record.port), in_force) {
                (true, _) => "quarantined",
                (false, true) => "enforced",
                (false, false) => "closed",
            }
            .to_owned(),
        });
        let mut wireguard = board.wireguard;
        if !wireguard.tunnels.is_empty()
            && let Ok(report) = self.dataplane.tunnel_report()
        {
            wireguard.tell(&report);
        }
        StatusReport {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            generation: board.generation,
            ready: not_ready.is_empty(),
            not_ready,
            stale: board.stale,
            endpoints: endpoints.collect(),
            ports: ports.collect(),
            workers: workers.collect(),
            problems: board.problems.iter().chain(&board.encryption_problems).cloned().collect(),
            counters: CounterReport::from(&self.dataplane.counters()),
            memory: MemoryReport {
                resident_bytes: resident_bytes(),
                umem_bytes: memory.umem_bytes,
                own_umem_bytes: memory.own_umem_bytes,
                kernel_bytes: memory.kernel_bytes + memory.ring_bytes,
            },
            objects: board.objects,
            compile_seconds: board.compile.as_secs_f64(),
            wireguard,
            largest_mtu: self.dataplane.largest_packet().saturating_sub(margay_wire::ETHERNET_LEN as u32),
            source: self.traffic.as_ref().map(|tell| (&tell()).into()).unwrap_or_default(),
        }
    }

    fn flows(&self, filter: &FlowFilter) -> Vec<FlowReport> {
        let (names, _) = self.names();
        let mut found = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor
            && found.len() < filter.limit
        {
            let Ok((records, next)) = self.dataplane.flows(from, 1_024) else { break };
            let reports = records.iter().map(|flow| flow_report(flow, &names));
            found.extend(reports.filter(|flow| filter.matches(flow)));
            cursor = next;
        }
        found.truncate(filter.limit);
        found
    }

    fn drops(&self) -> (Vec<DropReport>, Receiver<DropReport>) {
        self.hub.subscribe()
    }

    fn watch(&self, filter: &CaptureFilter) -> Result<(TapId, Receiver<Captured>), String> {
        let filter = self.with_names(|names| capture::filter(filter, names))?;
        self.dataplane.watch(filter).map_err(|error| error.to_string())
    }

    fn end_watch(&self, id: TapId) {
        self.dataplane.end_watch(id);
    }

    fn tell(&self, packets: Vec<Captured>) -> Vec<CaptureReport> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch_ns =
            u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX).saturating_sub(margay_io::thread::now().0);
        self.with_names(|names| {
            packets.iter().map(|packet| capture::report(packet, names, epoch_ns)).collect()
        })
    }

    fn release(&self, what: &str) -> Result<String, String> {
        let board = self.board();
        let of_pod = board.endpoints.iter().find_map(|(record, _)| {
            (format!("{}/{}", record.pod.namespace, record.pod.name) == what).then_some(record.port)
        });
        let of_device =
            || board.ports.iter().find(|(_, (port, _))| port.name == what).map(|(index, _)| *index);
        let index = of_pod.or_else(of_device).ok_or_else(|| {
            format!("{what}: no pod and no device of this node; `margay status` lists both")
        })?;
        match self.dataplane.release(index) {
            Ok(true) => {
                let name = board.ports.get(&index).map(|(port, _)| port.name.clone());
                Ok(name.unwrap_or_else(|| what.to_owned()))
            }
            Ok(false) => Err(format!("{what} is not quarantined")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn pods(&self, names: &[String]) -> Result<BTreeMap<String, Vec<IpAddr>>, String> {
        let names: BTreeSet<String> = names.iter().cloned().collect();
        let (pods, generation) = self.inspect(move |engine, snapshot| {
            let all = engine.model().pods.values();
            let named = all.map(|pod| (format!("{}/{}", pod.key.namespace, pod.key.name), pod));
            let asked = named.filter(|(name, _)| names.contains(name));
            let pods = asked.map(|(name, pod)| (name, pod.addresses.clone())).collect();
            (pods, snapshot.map(Snapshot::generation))
        })?;
        let generation = generation.ok_or_else(|| NO_POLICY.to_owned())?;
        match self.dataplane.wait_for_snapshot(generation, ANSWER) {
            true => Ok(pods),
            false => Err(format!("no word from the workers within {ANSWER:?}")),
        }
    }

    fn explain(&self, probe: &Probe) -> Result<Explanation, String> {
        let probe = probe.clone();
        let to_host = self.endpoint_to_host;
        self.inspect(move |engine, snapshot| {
            let snapshot = snapshot.ok_or_else(|| NO_POLICY.to_owned())?;
            let world = World::new(engine.model(), engine.locals(), engine.interfaces(), Some(to_host));
            crate::explain::explain(engine, snapshot, &world, &probe)
        })?
    }
}
