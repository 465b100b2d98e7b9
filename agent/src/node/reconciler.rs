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

mod encryption;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use ipnet::IpNet;
use margay_control::{Batch, Problem};
use margay_core::topology::{Port, PortKind, TopologyBuilder};
use margay_core::{PortIndex, WorkerConfig};
use margay_io::netlink::{Address, Follower, Role, fill_topology};
use margay_io::{AttachMode, Dataplane, PortReport, PortSpec, Role as PortRole};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{NamespacedName, Object, ObjectKey};
use margay_policy_engine::packet::{Direction, EndpointId};
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::MacAddr;

use super::conflist::Conflist;
use super::host_port::{PodRoutes, wanted_routes};
use super::{offloads, unheeded};
use crate::encryption::report::WireguardReport;
use crate::endpoints::EndpointRecord;
use crate::net::{Link, Netlink};

/// Port of the host.
pub const HOST: PortIndex = PortIndex(0);
/// Ports of uplinks follow; pods come behind them.
pub const FIRST_UPLINK: u16 = 1;
/// First port that a pod may get.
pub const FIRST_POD: PortIndex = PortIndex(64);

/// A question about the Model and the snapshot in force.
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
    /// Runs on the control thread, for questions about the Model.
    Inspect(Question),
    /// End the thread.
    Stop,
}

/// What the control thread shows to the rest of the agent.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Number of the snapshot that was published last; zero before the first.
    pub generation: u64,
    /// What keeps the node from serving, in sentences.
    pub not_ready: Vec<String>,
    /// The source cannot see the world.
    pub stale: bool,
    /// Endpoints with whether their policy is in force.
    pub endpoints: Vec<(EndpointRecord, bool)>,
    /// Ports as opened.
    pub ports: BTreeMap<PortIndex, (Port, PortReport)>,
    /// What is wrong with objects.
    pub problems: Arc<[Problem]>,
    /// Objects by kind.
    pub objects: BTreeMap<String, u64>,
    /// Pods by address, for naming drops and flows.
    pub names: Arc<BTreeMap<IpAddr, String>>,
    /// Duration of the last compilation.
    pub compile: Duration,
    /// Largest packet of pods, where encryption makes it smaller.
    pub pod_mtu: Option<u32>,
    /// Encryption, without what only workers know.
    pub wireguard: WireguardReport,
    /// What its owner should know about it.
    pub encryption_problems: Vec<Problem>,
}

/// The shared form of [`Shown`].
pub type Board = Arc<Mutex<Shown>>;

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
            Command::Inspect(ask) => ask(&self.engine, self.snapshot.as_deref()),
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

    fn open_port(&mut self, record: &EndpointRecord) -> Result<(), String> {
        let spec = PortSpec {
            index: record.port,
            device: record.host_ifname.clone(),
            role: PortRole::Pod,
            pin: record.pin.clone(),
            queues: Some(1),
        };
        // The device of a new pod is down until its program stands on it.
        let report = self.dataplane.add_port(spec).map_err(|e| chain(&e))?;
        if report.mode == AttachMode::Generic
            && let Err(error) = offloads::of_pod(record)
        {
            let _ = self.dataplane.remove_port(record.port);
            return Err(chain(&error));
        }
        if let Err(error) = self.netlink.set_up(record.host_ifindex, true) {
            let _ = self.dataplane.remove_port(record.port);
            return Err(chain(&error));
        }
        let port = Port {
            index: record.port,
            name: record.host_ifname.clone(),
            kind: PortKind::Pod {
                endpoint: record.id,
                pod_mac: record.pod_mac,
                addresses: record.addresses.clone(),
            },
            mac: record.host_mac,
            mtu: record.mtu,
        };
        self.ports.insert(record.port, (port, report));
        self.devices.insert(record.port, record.host_ifindex);
        self.endpoints.insert(record.id, record.clone());
        self.engine.apply(Change::Endpoint(local_endpoint(record)));
        self.policy_changed = true;
        self.names_changed = true;
        self.topology_changed = true;
        Ok(())
    }

    fn close_port(&mut self, record: &EndpointRecord) {
        self.pending.retain(|pending| pending.id != record.id);
        if self.endpoints.remove(&record.id).is_some() {
            self.engine.apply(Change::EndpointGone(record.id));
        }
        self.ports.remove(&record.port);
        self.devices.remove(&record.port);
        self.topology_changed = true;
        self.policy_changed = true;
        self.names_changed = true;
        self.publish_topology();
        if self.dataplane.ports().iter().any(|(spec, _)| spec.index == record.port)
            && let Err(error) = self.dataplane.remove_port(record.port)
        {
            tracing::warn!(
                interface = record.host_ifname,
                error = chain(&error),
                "the port could not be closed"
            );
        }
        if !record.device_exists() {
            self.dataplane.detach(&record.pin);
        }
    }

    /// Brings what is published in line with what is known.
    fn settle(&mut self) {
        // Before policy: the first snapshot opens pods, and what they send is to be sealed from the first packet on.
        self.settle_encryption();
        if self.policy_changed && self.complete {
            self.policy_changed = false;
            self.publish_policy();
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

    fn publish_policy(&mut self) {
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

    fn publish_topology(&mut self) {
        if !std::mem::take(&mut self.topology_changed) {
            return;
        }
        let view = self.follower.current();
        let mut builder = TopologyBuilder {
            ports: self.ports.values().map(|(port, _)| port.clone()).collect(),
            ..Default::default()
        };
        let ours: Vec<(PortIndex, u32, Role)> = self
            .ports
            .values()
            .filter_map(|(port, _)| {
                let role = match port.kind {
                    PortKind::Pod { .. } => Role::Pod,
                    PortKind::Host { .. } => Role::Host,
                    PortKind::Uplink => Role::Uplink,
                };
                Some((port.index, *self.devices.get(&port.index)?, role))
            })
            .collect();
        fill_topology(&view, &ours, &mut builder);
        for port in &mut builder.ports {
            let link = self.devices.get(&port.index).and_then(|device| view.links.get(device));
            let Some(link) = link else { continue };
            // An uplink's address and MTU follow the kernel's; of a pod's port the MTU, for no more than that gets through its veth.
            match port.kind {
                PortKind::Uplink => {
                    port.mac = link.mac.unwrap_or(port.mac);
                    port.mtu = link.mtu;
                }
                PortKind::Pod { .. } => port.mtu = link.mtu,
                PortKind::Host { .. } => {}
            }
        }
        let (mut sources, mut cidrs) = (Vec::new(), BTreeSet::new());
        for node in self.engine.model().nodes.values() {
            cidrs.extend(node.pod_cidrs.iter().copied());
            if node.name == self.node {
                builder.local_pod_cidrs.extend(node.pod_cidrs.iter().copied());
                sources.extend(node.addresses.iter().filter(|a| builder.node_addresses.contains(a)).copied());
            } else {
                builder
                    .remote_pod_cidrs
                    .extend(node.pod_cidrs.iter().map(|cidr| (*cidr, node.addresses.clone())));
            }
        }
        let local_pods =
            self.endpoints.values().flat_map(|record| record.addresses.iter().map(|a| IpNet::from(*a)));
        let local: Vec<IpNet> = builder.local_pod_cidrs.iter().copied().chain(local_pods.clone()).collect();
        let mut remembered = cidrs.clone();
        remembered.extend(local_pods);
        let own: BTreeSet<Ipv6Addr> = builder
            .node_addresses
            .iter()
            .filter_map(|address| match address {
                IpAddr::V6(v6) if !v6.is_unicast_link_local() => Some(*v6),
                _ => None,
            })
            .collect();
        if self.published.as_ref() != Some(&builder) {
            self.published = Some(builder.clone());
            self.topology_generation += 1;
            self.dataplane.publish_topology(Arc::new(builder.build(self.topology_generation)));
        }
        let prefixes = (local.clone(), cidrs.iter().copied().collect::<Vec<_>>());
        if prefixes != self.uplink_prefixes {
            match self.dataplane.set_uplink_prefixes(&prefixes.0, &prefixes.1) {
                Ok(()) => self.uplink_prefixes = prefixes,
                Err(error) => tracing::warn!(error = chain(&error), "the uplink filter could not be changed"),
            }
        }
        if self.refused != own {
            match self.netlink.refuse_forged_own_sources(&own) {
                Ok(()) => self.refused = own,
                Err(error) => tracing::warn!(
                    error = chain(&error),
                    "machines that this node routes for could pass for it over IPv6: the rules against that are not in place"
                ),
            }
        }
        let present = |cidr: &IpNet| view.routes.iter().any(|route| route.prefix == *cidr);
        if !remembered.iter().all(present) || !self.hosts().iter().all(|host| present(&IpNet::from(*host))) {
            // Somebody removed one, or the device was made anew; what is there already is only replaced by itself.
            self.routes.invalidate();
        }
        let device = self.kernel_end.index;
        let gateways = [self.config.gateway_v4, self.config.gateway_v6];
        let interface = self.assign_interface_addresses();
        let hosts = self.hosts();
        self.forget_host_routes(&hosts);
        let wanted = wanted_routes(
            device,
            gateways,
            |destination| {
                let is_remote = !local.iter().any(|net| net.contains(destination));
                let addresses: Vec<IpAddr> =
                    if is_remote { interface.iter().copied().collect() } else { Vec::new() };
                addresses
                    .into_iter()
                    .chain(sources.iter().copied())
                    .find(|source| source.is_ipv4() == destination.addr().is_ipv4())
            },
            &remembered,
            &hosts,
        );
        let mut result = self.routes.reconcile(&mut self.netlink, &wanted);
        if result.is_ok() && self.release_interface_addresses(&interface) {
            self.routes.invalidate();
            result = self.routes.reconcile(&mut self.netlink, &wanted);
        }
        self.route_error = result.err().map(|error| chain(&error));
        if let Some(error) = &self.route_error {
            tracing::warn!(error, "the kernel's routes to pods are not as wanted");
            self.topology_changed = true;
        }
    }

    /// Has the kernel resolve the other nodes' addresses and whatever packets wait for.
    fn resolve_neighbours(&mut self) {
        let mut wanted: BTreeSet<(PortIndex, IpAddr)> = std::mem::take(&mut self.asked);
        wanted.extend(self.wanted.try_iter().flatten());
        let view = self.follower.current();
        let uplinks: Vec<(PortIndex, u32)> = self
            .ports
            .values()
            .filter(|(port, _)| matches!(port.kind, PortKind::Uplink))
            .filter_map(|(port, _)| Some((port.index, *self.devices.get(&port.index)?)))
            .collect();
        for node in self.engine.model().nodes.values().filter(|node| node.name != self.node) {
            for address in &node.addresses {
                for (port, device) in &uplinks {
                    let reaches = |at: &Address| {
                        at.ifindex == *device
                            && IpNet::new(at.ip, at.prefix).is_ok_and(|net| net.contains(address))
                    };
                    if view.addresses.iter().any(reaches) {
                        wanted.insert((*port, *address));
                    }
                }
            }
        }
        for (port, address) in wanted.difference(&self.resolved.clone()) {
            let Some(device) = self.devices.get(port) else { continue };
            match self.follower.resolve(*device, *address) {
                Ok(()) => drop(self.resolved.insert((*port, *address))),
                Err(error) => {
                    tracing::debug!(%address, error = chain(&error), "the next hop cannot be resolved")
                }
            }
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

    /// Copies what others may ask for to the board.
    fn show(&mut self) {
        let model = self.engine.model();
        let mut not_ready = Vec::new();
        if !self.complete {
            not_ready
                .push("the first complete picture of the source of truth has not arrived yet".to_owned());
        }
        not_ready.extend(self.source_error.iter().map(|error| format!("the source of truth ended: {error}")));
        not_ready.extend(self.route_error.iter().cloned());
        let endpoint = |record: &EndpointRecord| {
            let known =
                self.snapshot.as_ref().is_some_and(|s| s.epoch(record.id, Direction::Ingress).is_some());
            (record.clone(), known)
        };
        let count = |kind: &str, number: usize| (kind.to_owned(), number as u64);
        let objects = BTreeMap::from([
            count("Namespace", model.namespaces.len()),
            count("ServiceAccount", model.service_accounts.len()),
            count("Pod", model.pods.len()),
            count("Node", model.nodes.len()),
            count("Tier", model.tiers.len()),
            count("Policy", model.policies.len()),
            count("NetworkSet", model.network_sets.len()),
            count("HostEndpoint", model.host_endpoints.len()),
        ]);
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.generation = self.snapshot.as_ref().map_or(0, |s| s.generation().0);
        board.not_ready = not_ready;
        board.endpoints = self.endpoints.values().map(endpoint).collect();
        board.ports = self.ports.clone();
        board.objects = objects;
        if !self.names_changed {
            return;
        }
        self.names_changed = false;
        let mut names = BTreeMap::new();
        for pod in model.pods.values().filter(|pod| !pod.host_network) {
            let name = format!("{}/{}", pod.key.namespace, pod.key.name);
            names.extend(pod.addresses.iter().map(|a| (*a, name.clone())));
        }
        for record in self.endpoints.values() {
            let name = format!("{}/{}", record.pod.namespace, record.pod.name);
            names.extend(record.addresses.iter().map(|a| (*a, name.clone())));
        }
        board.names = Arc::new(names);
    }
}

fn local_endpoint(record: &EndpointRecord) -> LocalEndpoint {
    LocalEndpoint {
        id: record.id,
        pod: NamespacedName { namespace: record.pod.namespace.clone(), name: record.pod.name.clone() },
        uid: record.pod.uid.clone().unwrap_or_default(),
        addresses: record.addresses.clone(),
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

/// Returns the port of the host.
pub fn host_port(kernel: &Link, ours: &Link) -> Port {
    Port {
        index: HOST,
        name: ours.name.clone(),
        kind: PortKind::Host { kernel_mac: kernel.mac },
        mac: ours.mac,
        mtu: kernel.mtu,
    }
}

/// Returns the port of an uplink.
pub fn uplink_port(nth: usize, name: &str, mac: MacAddr, mtu: u32) -> Port {
    let index = PortIndex(FIRST_UPLINK + nth as u16);
    Port { index, name: name.to_owned(), kind: PortKind::Uplink, mac, mtu }
}
