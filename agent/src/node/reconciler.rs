//! The control thread: the one owner of the Model, the endpoints and the kernel's routes to pods.
//!
//! ```text
//!  source ─┐
//!  CNI ────┼─▶ Command ─▶ Reconciler ─▶ snapshot ─▶ workers
//!  netlink ┘                        └─▶ topology ─▶ workers
//! ```
//!
//! It reacts to levels: a command changes what is known, and after every batch of commands what is published is compared with what
//! should be. Order of publication for a new pod: its table first, then its port, so a pod is never reachable without its policy
//! (policy model 28, rows 2 and 7). Nothing is published before the source's first complete picture (row 1): pods stay closed.

mod board;
mod encryption;
mod ports;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use ipnet::IpNet;
use margay_control::{Batch, Problem};
use margay_core::topology::{Port, TopologyBuilder};
use margay_core::{PortIndex, WorkerConfig};
use margay_io::netlink::Follower;
use margay_io::{Dataplane, PortReport};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{NamespacedName, Object, ObjectKey};
use margay_policy_engine::packet::{Direction, EndpointId};
use margay_policy_engine::snapshot::Snapshot;

pub use board::{Board, Shown};
use encryption::EncryptionSettled;
pub use ports::{host_port, uplink_port};

use super::conflist::Conflist;
use super::host_port::PodRoutes;
use super::manner::Manner;
use super::unheeded;
use crate::endpoints::EndpointRecord;
use crate::net::{Link, Netlink};

/// Port of the host.
pub const HOST: PortIndex = PortIndex(0);
/// Ports of uplinks follow; pods come behind them.
pub const FIRST_UPLINK: u16 = 1;
/// First port that a pod may get.
pub const FIRST_POD: PortIndex = PortIndex(64);

/// A question about the Model and the snapshot that was made of it.
pub type Question = Box<dyn FnOnce(&Engine, Option<&Snapshot>) + Send>;

/// What the control thread is told.
pub enum Command {
    /// The source of truth has news.
    Batch(Batch),
    /// The source of truth is at its end, for this reason.
    SourceEnded(String),
    /// Take over a pod's interface; answer when its policy is in force or `deadline` has passed.
    Attach {
        /// The interface.
        record: Box<EndpointRecord>,
        /// When to give up.
        deadline: Instant,
        /// Where the answer goes.
        reply: Sender<Result<(), String>>,
    },
    /// Let go of a pod's interface.
    Detach {
        /// The interface.
        record: Box<EndpointRecord>,
        /// Told when it is done.
        reply: Sender<()>,
    },
    /// The kernel's links, addresses, routes or neighbours changed.
    KernelChanged,
    /// Runs on the control thread, for questions about the Model, once what is known is published.
    Inspect(Question),
    /// End the thread.
    Stop,
}

struct PendingAttach {
    id: EndpointId,
    deadline: Instant,
    reply: Sender<Result<(), String>>,
}

/// The state of the control thread.
pub struct Reconciler {
    node: String,
    config: WorkerConfig,
    dataplane: Arc<Dataplane>,
    follower: Arc<Follower>,
    netlink: Netlink,
    kernel_end: Link,
    engine: Engine,
    snapshot: Option<Arc<Snapshot>>,
    /// What the source of truth has to say about what it read.
    problems: Arc<[Problem]>,
    complete: bool,
    endpoints: BTreeMap<EndpointId, EndpointRecord>,
    ports: BTreeMap<PortIndex, (Port, PortReport)>,
    devices: BTreeMap<PortIndex, u32>,
    pending: Vec<PendingAttach>,
    questions: Vec<Question>,
    routes: PodRoutes,
    topology_generation: u64,
    published: Option<TopologyBuilder>,
    refused: BTreeSet<Ipv6Addr>,
    uplink_prefixes: (Vec<IpNet>, Vec<IpNet>),
    board: Board,
    policy_changed: bool,
    names_changed: bool,
    topology_changed: bool,
    source_error: Option<String>,
    route_error: Option<String>,
    resolved: BTreeSet<(PortIndex, IpAddr)>,
    wanted: Receiver<Vec<(PortIndex, IpAddr)>>,
    asked: BTreeSet<(PortIndex, IpAddr)>,
    manner: Manner,
    conflist: Option<Conflist>,
    encryption: Option<encryption::Encryption>,
}

/// What [`Reconciler::new`] starts from.
pub struct Beginnings {
    /// Name of this node.
    pub node: String,
    /// Settings of the workers.
    pub config: WorkerConfig,
    /// The packet path.
    pub dataplane: Arc<Dataplane>,
    /// The kernel's state.
    pub follower: Arc<Follower>,
    /// The kernel's end of the host port.
    pub kernel_end: Link,
    /// Host and uplink ports, opened, with their interface indices.
    pub ports: Vec<(Port, PortReport, u32)>,
    /// Where to show things.
    pub board: Board,
    /// How pods' interfaces are crossed.
    pub manner: Manner,
    /// The container runtime's network configuration, where it is ours to write.
    pub conflist: Option<Conflist>,
}

impl Reconciler {
    /// Returns the thread's state before any command.
    pub fn new(from: Beginnings, netlink: Netlink) -> Self {
        let devices = from.ports.iter().map(|(port, _, device)| (port.index, *device)).collect();
        let ports = from.ports.into_iter().map(|(port, report, _)| (port.index, (port, report))).collect();
        Self {
            engine: Engine::on_node(&from.node),
            node: from.node,
            config: from.config,
            wanted: from.dataplane.wanted_neighbours(),
            dataplane: from.dataplane,
            follower: from.follower,
            netlink,
            kernel_end: from.kernel_end,
            snapshot: None,
            complete: false,
            endpoints: BTreeMap::new(),
            ports,
            devices,
            pending: Vec::new(),
            questions: Vec::new(),
            routes: PodRoutes::default(),
            topology_generation: 0,
            published: None,
            refused: BTreeSet::new(),
            uplink_prefixes: Default::default(),
            board: from.board,
            problems: Arc::from([]),
            policy_changed: false,
            names_changed: true,
            topology_changed: true,
            source_error: None,
            route_error: None,
            resolved: BTreeSet::new(),
            asked: BTreeSet::new(),
            manner: from.manner,
            conflist: from.conflist,
            encryption: None,
        }
    }

    /// Takes over the interfaces of an earlier run; they are closed until their policy is in force.
    pub fn adopt(&mut self, records: Vec<EndpointRecord>) {
        for record in records {
            let name = record.host_ifname.clone();
            if let Err(error) = self.open_port(&record) {
                tracing::warn!(interface = name, %error, "an interface of an earlier run could not be opened again");
            }
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self, commands: &Receiver<Command>) {
        self.settle();
        loop {
            let wanted = self.wanted.clone();
            let first = crossbeam::select! {
                recv(commands) -> command => command.map_err(|_| RecvTimeoutError::Disconnected),
                recv(wanted) -> list => {
                    self.asked.extend(list.into_iter().flatten());
                    Err(RecvTimeoutError::Timeout)
                }
                default(self.patience()) => Err(RecvTimeoutError::Timeout),
            };
            let more = std::iter::from_fn(|| commands.try_recv().ok());
            let batch: Vec<Command> = match first {
                Ok(command) => std::iter::once(command).chain(more.take(1_000)).collect(),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            for command in batch {
                if !self.obey(command) {
                    self.end_encryption();
                    return;
                }
            }
            self.settle();
            for ask in std::mem::take(&mut self.questions) {
                ask(&self.engine, self.snapshot.as_deref());
            }
        }
    }

    /// Returns how long to wait for the next command: short while somebody waits for us.
    fn patience(&self) -> Duration {
        if self.pending.is_empty() { Duration::from_millis(500) } else { Duration::from_millis(20) }
    }

    /// Takes one command; `false` means to stop.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Batch(batch) => self.take(batch),
            Command::SourceEnded(reason) => {
                tracing::warn!(%reason, "the source of truth ended; what it told last stays in force");
                self.source_error = Some(reason);
            }
            Command::Attach { record, deadline, reply } => match self.open_port(&record) {
                Ok(()) => self.pending.push(PendingAttach { id: record.id, deadline, reply }),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Detach { record, reply } => {
                self.close_port(&record);
                // The port leaves the topology before the plug-in may delete the device.
                self.settle();
                let _ = reply.send(());
            }
            Command::KernelChanged => self.topology_changed = true,
            Command::Inspect(ask) => self.questions.push(ask),
            Command::Stop => return false,
        }
        true
    }

    fn take(&mut self, batch: Batch) {
        if !batch.changes.is_empty() {
            tracing::debug!(changes = batch.changes.len(), "the source of truth changed");
        }
        for change in batch.changes {
            if encryption::concerns(&change) {
                self.encryption_changed();
            }
            // Node objects carry pod CIDRs and addresses.
            self.topology_changed |=
                matches!(&change, Change::Upsert(Object::Node(_)) | Change::Delete(ObjectKey::Node(_)));
            self.engine.apply(change);
        }
        self.complete |= batch.complete;
        self.policy_changed = true;
        self.names_changed = true;
        self.problems = batch.problems;
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.stale = batch.stale;
        if !self.complete {
            // Nothing is published yet that would show them, and they say why.
            board.problems = Arc::clone(&self.problems);
        }
    }

    /// Brings what is published in line with what is known.
    fn settle(&mut self) {
        let settled = self.settle_encryption();
        if self.policy_changed && self.complete {
            self.policy_changed = false;
            self.publish_policy(settled);
        }
        self.publish_topology();
        self.resolve_neighbours();
        self.answer_pending();
        self.show();
        self.offer();
    }

    /// Tells the container runtime to call, once pods can be served.
    fn offer(&mut self) {
        let Some(conflist) = &mut self.conflist else { return };
        let can_serve = self.complete
            && self.snapshot.is_some()
            && self.source_error.is_none()
            && self.route_error.is_none();
        let cidrs =
            self.engine.model().nodes.get(&self.node).map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        match conflist.keep(can_serve, &cidrs, Instant::now()) {
            Ok(true) => {
                tracing::info!(path = %conflist.path().display(), ?cidrs, "the container runtime may send pods")
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(
                path = %conflist.path().display(), %error, "the network configuration cannot be written; pods are not sent here"
            ),
        }
    }

    /// Has the workers judge by what is known now. The first snapshot opens pods, and what they send is to be sealed from the first
    /// packet on; hence the argument, which only [`Reconciler::settle_encryption`] makes.
    fn publish_policy(&mut self, _: EncryptionSettled) {
        let start = Instant::now();
        let snapshot = self.engine.publish();
        let took = start.elapsed();
        let mut problems = self.problems.to_vec();
        problems.extend(unheeded::problems(self.engine.model(), &self.node, &self.config));
        self.board.lock().unwrap_or_else(PoisonError::into_inner).problems = problems.into();
        let newer = self.snapshot.as_ref().is_none_or(|old| old.generation() != snapshot.generation());
        if newer {
            tracing::debug!(generation = snapshot.generation().0, ?took, "policy compiled");
            self.dataplane.publish_snapshot(Arc::clone(&snapshot));
            self.snapshot = Some(snapshot);
            self.board.lock().unwrap_or_else(PoisonError::into_inner).compile = took;
        }
    }

    /// Answers whoever waits for a pod's policy to be in force.
    fn answer_pending(&mut self) {
        let now = Instant::now();
        let snapshot = self.snapshot.clone();
        let in_force = |id: EndpointId| {
            snapshot.as_ref().is_some_and(|s| {
                s.epoch(id, Direction::Ingress).is_some()
                    && self.dataplane.wait_for_snapshot(s.generation(), Duration::from_secs(1))
                    && self.dataplane.wait_for_topology(self.topology_generation, Duration::from_secs(1))
            })
        };
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| in_force(pending.id) || pending.deadline <= now);
        for pending in ready {
            let answer = if in_force(pending.id) { Ok(()) } else { Err(self.why_closed(pending.id)) };
            let _ = pending.reply.send(answer);
        }
        self.pending = waiting;
    }

    fn why_closed(&self, id: EndpointId) -> String {
        let Some(record) = self.endpoints.get(&id) else {
            return "the interface went away meanwhile".to_owned();
        };
        let pod = format!("{}/{}", record.pod.namespace, record.pod.name);
        if !self.complete {
            return format!(
                "policy of pod {pod} is not in force in time: the first complete picture has not arrived yet"
            );
        }
        let key = NamespacedName { namespace: record.pod.namespace.clone(), name: record.pod.name.clone() };
        match (self.engine.model().pods.get(&key), &record.pod.uid) {
            (None, _) => {
                format!("policy of pod {pod} is not in force in time: no Pod object of that name is known")
            }
            (Some(known), Some(uid)) if known.uid != *uid => format!(
                "policy of pod {pod} is not in force in time: the Pod object known has uid {}, the runtime says {uid}",
                known.uid
            ),
            _ => format!("policy of pod {pod} is not in force in time: the workers have not taken it over"),
        }
    }
}

/// Returns an error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
