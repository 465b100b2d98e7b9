//! The handle of the packet path: everything the rest of the agent can ask of it.
//!
//! Calls come from any thread and may wait for the kernel or for a worker; workers never wait for them.

mod keeper;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use ipnet::IpNet;
use margay_core::spread::{HOST_KEEPER, MAX_WORKERS};
use margay_core::tunnel::plan::EncryptionPlan;
use margay_core::tunnel::{Encryption, TunnelReport};
use margay_core::worker::{Captured, FlowRecord, TapFilter, TapId};
use margay_core::{
    Counters, Nanos, PacketEvent, PortIndex, Spread, Topology, Worker, WorkerConfig, WorkerIndex,
};
use margay_policy_engine::packet::Generation;
use margay_policy_engine::snapshot::Snapshot;
use mio::Poll;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::engine::{Engine, PortStatistics, Processor};
use crate::exchange::{INBOX, Inbox, Inboxes};
use crate::panics::{Ledger, WorkerPanic};
use crate::publish::{self, Publisher};
pub use crate::spec::{
    DataplaneConfig, DataplaneError, FrameReport, MemoryReport, PortCounters, PortReport, PortSpec,
};
use crate::steer::{AttachChoice, AttachMode, EgressMode, Role, Steer, mount_bpffs};
use crate::thread::{self, Birth, Command, SharedCounters};
use crate::xsk::{Pool, RING_SIZE, SocketSlot, Store, UmemFrame, UmemHandle, XskError, XskSocket};
use keeper::Keeper;

/// Kernel memory per chunk and bound socket without the rings, as measured on Linux 6.18 (docs/decisions/0002); it is outside our
/// resident size.
const KERNEL_BYTES_PER_CHUNK_AND_SOCKET: u64 = 129;
/// How long an answer of the worker may take; it answers within a burst, so longer means that it hangs.
const ANSWER: Duration = Duration::from_secs(5);
/// Told packets that may wait for one watcher.
const WATCHED: usize = 4_096;
/// Panics that may wait to be written down.
const TOLD_PANICS: usize = 64;

#[derive(Debug)]
struct PortState {
    spec: PortSpec,
    report: PortReport,
    /// One for each worker that has queues of the port.
    statistics: Vec<(WorkerIndex, Arc<PortStatistics>)>,
}

/// What the control side has of one worker.
struct Hand {
    commands: Sender<Command>,
    waker: Arc<mio::Waker>,
    snapshots: Publisher<Snapshot>,
    topologies: Publisher<Topology>,
    counters: Arc<SharedCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Control {
    steer: Steer,
    umem: UmemHandle,
    ports: BTreeMap<PortIndex, PortState>,
    /// What was published last; workers get both in one.
    topology: Option<Arc<Topology>>,
    encryption: Option<Arc<Encryption>>,
}

/// The packet path of one node: its workers and their ports. `Send` and `Sync`; dropping it stops the workers and leaves the programs on
/// their devices, so pods are closed and the NIC is the kernel's.
pub struct Dataplane {
    config: DataplaneConfig,
    control: Arc<Mutex<Control>>,
    hands: Arc<[Hand]>,
    ledger: Arc<Mutex<Ledger>>,
    keeper: Option<JoinHandle<()>>,
    panics: Receiver<WorkerPanic>,
    drops: Receiver<PacketEvent>,
    wanted: Receiver<Vec<(PortIndex, IpAddr)>>,
    next_tap: AtomicU32,
}

/// The flow table of worker `w` is listed at cursors from `w << WORKER_SHIFT` on.
const WORKER_SHIFT: u32 = 40;

impl Dataplane {
    /// Loads the programs and starts the workers. Add the host port first: its socket is the one that all later ones build on.
    ///
    /// Errors: no permission, no bpffs, too little memory.
    pub fn start(config: DataplaneConfig) -> Result<Self, DataplaneError> {
        let (all, workers) = (config.worker.clone(), usize::from(config.workers.max(1)));
        // A flow between pods of two workers has an entry at each.
        let share = if workers == 1 { all.max_flows } else { (2 * all.max_flows).div_ceil(workers) };
        Self::start_with(config, move |index, now| {
            Worker::new(WorkerConfig { index, max_flows: share, ..all.clone() }, now)
        })
    }

    /// As [`Dataplane::start`], with something else in the workers' place; `make` is called on each worker's thread.
    pub fn start_with<P, M>(config: DataplaneConfig, make: M) -> Result<Self, DataplaneError>
    where
        P: Processor<UmemFrame> + 'static,
        M: Fn(WorkerIndex, Nanos) -> P + Send + Sync + 'static,
    {
        if !(1..=MAX_WORKERS).contains(&config.workers) {
            return Err(DataplaneError::Workers(config.workers));
        }
        mount_bpffs(&config.bpffs)?;
        let mut steer = Steer::load(&config.bpffs)?;
        steer.choose(config.xdp);
        let (umem, chunks) = UmemHandle::new(config.chunk_size, config.chunks)?;
        let store = Store::new(&umem, chunks);
        let (drops_in, drops) = bounded(config.drop_events);
        let (wanted_in, wanted) = bounded(16 * usize::from(config.workers));
        let (panics_in, panics) = unbounded();
        let make = Arc::new(make);
        let mut polls = Vec::new();
        let (mut wakers, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..config.workers {
            let poll = Poll::new().map_err(DataplaneError::Thread)?;
            let waker = Arc::new(thread::waker(&poll).map_err(DataplaneError::Thread)?);
            let call = Arc::clone(&waker);
            // A call that is lost costs a tenth of a second, the longest sleep.
            inboxes.push(Arc::new(Inbox::new(INBOX, Box::new(move || drop(call.wake())))));
            polls.push(poll);
            wakers.push(waker);
        }
        let mut hands = Vec::new();
        for (poll, (waker, index)) in polls.into_iter().zip(wakers.into_iter().zip(0..)) {
            let index = WorkerIndex(index);
            let (commands, inbox) = unbounded();
            let (snapshots, snapshot_reader) = publish::channel();
            let (topologies, topology_reader) = publish::channel();
            let counters = Arc::new(SharedCounters::default());
            let heartbeat = steer.take_heartbeat(index.0.into())?;
            let cpu = config.cpus.iter().cycle().nth(index.0.into()).copied();
            let (umem, store, inboxes) = (umem.clone(), Arc::clone(&store), inboxes.clone());
            let (make, shared, spin) = (Arc::clone(&make), Arc::clone(&counters), config.spin);
            let (workers, wanted, drops) = (config.workers, wanted_in.clone(), drops_in.clone());
            let panics = panics_in.clone();
            let body = move || {
                if let Some(cpu) = cpu {
                    stay_on(cpu);
                }
                let pool = Pool::of(&umem, store);
                let make = |now| make(index, now);
                let mut engine = Engine::new(make(thread::now()), drops);
                let own = Arc::clone(&inboxes[usize::from(index.0)]);
                if workers > 1 {
                    let exchange = Inboxes::new(index, inboxes, std::rc::Rc::clone(&pool));
                    engine.join(workers.into(), Box::new(exchange));
                }
                let birth = Birth {
                    index,
                    workers,
                    inbox: own,
                    poll,
                    pool,
                    heartbeat,
                    commands: inbox,
                    snapshots: snapshot_reader,
                    topologies: topology_reader,
                    counters: shared,
                    wanted,
                    panics,
                    spin,
                };
                thread::run(birth, engine, make);
            };
            let name = format!("margay-worker-{}", index.0);
            let thread =
                std::thread::Builder::new().name(name).spawn(body).map_err(DataplaneError::Thread)?;
            let thread = Mutex::new(Some(thread));
            hands.push(Hand { commands, waker, snapshots, topologies, counters, thread });
        }
        // The keeper ends when the last worker does.
        drop(panics_in);
        let (told, told_panics) = bounded(TOLD_PANICS);
        let control = Control { steer, umem, ports: BTreeMap::new(), topology: None, encryption: None };
        let keeper = Keeper {
            control: Arc::new(Mutex::new(control)),
            hands: hands.into(),
            ledger: Arc::default(),
            told,
        };
        let (control, hands) = (Arc::clone(&keeper.control), Arc::clone(&keeper.hands));
        let ledger = Arc::clone(&keeper.ledger);
        let name = "margay-keeper".to_owned();
        let body = move || keeper.run(&panics);
        let keeper = std::thread::Builder::new().name(name).spawn(body).map_err(DataplaneError::Thread)?;
        Ok(Self {
            config,
            control,
            hands,
            ledger,
            keeper: Some(keeper),
            panics: told_panics,
            drops,
            wanted,
            next_tap: AtomicU32::new(1),
        })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand(&self, worker: WorkerIndex) -> Result<&Hand, DataplaneError> {
        self.hands.get(usize::from(worker.0)).ok_or(DataplaneError::WorkerSilent)
    }

    fn tell(&self, worker: WorkerIndex, command: Command) -> Result<(), DataplaneError> {
        let hand = self.hand(worker)?;
        hand.commands.send(command).map_err(|_| DataplaneError::WorkerSilent)?;
        hand.waker.wake().map_err(DataplaneError::Thread)
    }

    fn ask<T>(
        &self,
        worker: WorkerIndex,
        command: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, DataplaneError> {
        let (reply, answer) = bounded(1);
        self.tell(worker, command(reply))?;
        answer.recv_timeout(ANSWER).map_err(|_| DataplaneError::WorkerSilent)
    }

    /// Returns every worker.
    fn workers(&self) -> impl Iterator<Item = WorkerIndex> {
        (0..self.config.workers).map(WorkerIndex)
    }

    /// Returns how ports are spread over workers, as far as uplinks are known.
    fn spread(&self, control: &Control) -> Spread {
        let uplinks = control.ports.values().filter(|port| port.spec.role == Role::Uplink);
        let queues = uplinks.map(|port| (port.spec.index, port.report.queues.min(u16::MAX.into()) as u16));
        Spread::new(self.config.workers, queues)
    }

    /// Takes a device in: sockets on its queues, then the program. The device may be down. Until this returns, the device is closed
    /// (when [`Dataplane::attach_closed`] stands on it) or untouched.
    ///
    /// Errors: no such device, a foreign program on it, a busy queue. Nothing of the port remains then, but a pinned closed program.
    pub fn add_port(&self, spec: PortSpec) -> Result<PortReport, DataplaneError> {
        self.add_port_as(spec, self.config.xdp)
    }

    /// As [`Dataplane::add_port`], with the ways in which the program of this port may be attached.
    pub fn add_port_as(&self, spec: PortSpec, choice: AttachChoice) -> Result<PortReport, DataplaneError> {
        if spec.role == Role::Closed {
            return Err(DataplaneError::ClosedPort(spec.device));
        }
        let mut guard = self.control();
        let control = &mut *guard;
        if let Some(there) = control.ports.get(&spec.index) {
            return Err(DataplaneError::PortExists(spec.index.0, there.spec.device.clone()));
        }
        let ifindex = index_of(&spec.device)?;
        let sockets = bind_all(&control.umem, &spec, self.config.bind_patience)?;
        let queues = sockets.len() as u32;
        let spread = Spread::new(self.config.workers, []);
        let owner = |queue: usize| match spec.role {
            Role::Uplink => spread.reader(queue as u16),
            Role::Host => HOST_KEEPER,
            Role::Pod | Role::Closed => spread.home(spec.index),
        };
        // Devices get new indexes, never used ones; what an earlier port left under this one would be its own remains.
        control.steer.disown(ifindex);
        let mut shares: BTreeMap<WorkerIndex, Vec<XskSocket>> = BTreeMap::new();
        for (queue, socket) in sockets.into_iter().enumerate() {
            let worker = owner(queue);
            if let Err(error) = control.steer.own(ifindex, queue as u32, worker.0.into(), &socket) {
                control.steer.disown(ifindex);
                return Err(error.into());
            }
            shares.entry(worker).or_default().push(socket);
        }
        let mut statistics = Vec::new();
        let mut taken = Ok(());
        for (worker, sockets) in shares {
            let numbers = Arc::new(PortStatistics::default());
            statistics.push((worker, Arc::clone(&numbers)));
            let answer = self.ask(worker, |done| Command::Add {
                port: spec.index,
                sockets,
                statistics: numbers,
                done,
            });
            taken = match answer {
                Ok(Ok(())) => continue,
                Ok(Err(source)) => Err(DataplaneError::WorkerRefused { device: spec.device.clone(), source }),
                Err(error) => Err(error),
            };
            break;
        }
        let attached = taken.and_then(|()| {
            control.steer.choose(choice);
            let attached = control.steer.attach(spec.role, ifindex, &spec.pin);
            control.steer.choose(self.config.xdp);
            attached.map_err(DataplaneError::from)
        });
        let mode = match attached {
            Ok(mode) => mode,
            Err(error) => {
                control.steer.disown(ifindex);
                for (worker, _) in statistics {
                    // The first error is the one to tell.
                    let _ = self.take_back(worker, spec.index);
                }
                return Err(error);
            }
        };
        let report = PortReport { ifindex, mode, queues, worker: owner(0).0 };
        let state = PortState { spec, report: report.clone(), statistics };
        control.ports.insert(state.spec.index, state);
        Ok(report)
    }

    /// Lets a port go: its sockets are closed and its memory is free again. The program stays on the device, if that still exists, and
    /// drops (pod, host) or passes (uplink) everything; [`Dataplane::detach`] takes it off. Works when the device is gone already.
    /// The port that was added first cannot come back: its socket is the packet memory's own and is closed with it.
    ///
    /// Errors: no such port; a silent worker.
    pub fn remove_port(&self, index: PortIndex) -> Result<(), DataplaneError> {
        let mut guard = self.control();
        let control = &mut *guard;
        let port = control.ports.get(&index).ok_or(DataplaneError::NoPort(index.0))?;
        control.steer.disown(port.report.ifindex);
        for (worker, _) in &port.statistics {
            self.take_back(*worker, index)?;
        }
        control.ports.remove(&index);
        self.ledger().forget(index);
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where panics of workers arrive, each with the frame that was at hand. One that finds no room is counted all the same
    /// ([`SharedCounters::panics`]).
    pub fn panics(&self) -> Receiver<WorkerPanic> {
        self.panics.clone()
    }

    /// Returns the ports whose frames ended workers so often that nothing is taken from them any more; see [`crate::panics`].
    pub fn quarantined(&self) -> BTreeSet<PortIndex> {
        self.ledger().quarantined().clone()
    }

    /// Ends a port's quarantine; what waited at the port is forgotten. Returns whether it was quarantined.
    ///
    /// Errors: no such port; the kernel refuses to open it: it stays quarantined; a worker is gone.
    pub fn release(&self, index: PortIndex) -> Result<bool, DataplaneError> {
        let mut guard = self.control();
        let control = &mut *guard;
        let port = control.ports.get(&index).ok_or(DataplaneError::NoPort(index.0))?;
        if !self.ledger().quarantined().contains(&index) {
            return Ok(false);
        }
        control.steer.open(port.report.ifindex)?;
        // Before its frames count again.
        self.ledger().forget(index);
        for (worker, _) in &port.statistics {
            self.tell(*worker, Command::Open { port: index })?;
        }
        tracing::info!(port = index.0, device = port.spec.device, "the port is released from quarantine");
        Ok(true)
    }

    /// Takes a port's sockets from a worker and closes them here, where waiting for the kernel hurts nobody.
    fn take_back(&self, worker: WorkerIndex, index: PortIndex) -> Result<(), DataplaneError> {
        let sockets = self.ask(worker, |taken| Command::Remove { port: index, taken })?;
        let closed = |(socket, slot): (XskSocket, SocketSlot)| {
            drop(socket);
            slot
        };
        let slots = sockets.into_iter().map(closed).collect();
        self.tell(worker, Command::Reclaim { slots })
    }

    /// Puts a program on a device that drops everything, and pins it under `pin`: what the CNI plug-in wants before it sets a pod's
    /// device up. A later [`Dataplane::add_port`] with the same pin exchanges it in one step.
    ///
    /// Errors: no such device, or it takes no program.
    pub fn attach_closed(&self, ifindex: u32, pin: &str) -> Result<AttachMode, DataplaneError> {
        Ok(self.control().steer.attach(Role::Closed, ifindex, pin)?)
    }

    /// Has the kernel's own IP frames that leave an uplink take the host port instead, so that they cross policy: a tc program at the
    /// uplink's egress redirects them out of `kernel_end`, the kernel's end of the host port's pair, and they arrive on the host
    /// port's rings as the kernel's neighbour table addressed them. ARP, neighbour and listener discovery and tagged frames stay with
    /// the kernel, and so does everything while the worker is silent or the host port is not there. What the worker itself sends does
    /// not pass through the program. It is pinned under `pin`, and so outlives this handle (then silent, hence passing);
    /// [`Dataplane::retain_links`] ends it with the others. A governed uplink may be governed again, with the same `pin`.
    ///
    /// The agent does not call this until it enforces host endpoints.
    ///
    /// Errors: not an uplink, or no host port; a kernel without tcx and `clsact`.
    pub fn govern(
        &self,
        uplink: PortIndex,
        kernel_end: u32,
        pin: &str,
    ) -> Result<EgressMode, DataplaneError> {
        let mut guard = self.control();
        let control = &mut *guard;
        let port = control.ports.get(&uplink).ok_or(DataplaneError::NoPort(uplink.0))?;
        if port.spec.role != Role::Uplink {
            return Err(DataplaneError::WrongRole(uplink.0, "uplink"));
        }
        let device = port.report.ifindex;
        let host = control.ports.values().find(|p| p.spec.role == Role::Host);
        let our_end = host.ok_or(DataplaneError::WrongRole(0, "host"))?.report.ifindex;
        let modes = [EgressMode::Tcx, EgressMode::Filter];
        Ok(control.steer.govern(device, kernel_end, our_end, pin, &modes)?)
    }

    /// Ends [`Dataplane::govern`]: the kernel's frames leave by the uplink again. Returns whether anything stood under `pin`.
    ///
    /// Errors: no such port.
    pub fn ungovern(&self, uplink: PortIndex, pin: &str) -> Result<bool, DataplaneError> {
        let mut control = self.control();
        let port = control.ports.get(&uplink).ok_or(DataplaneError::NoPort(uplink.0))?;
        let device = port.report.ifindex;
        Ok(control.steer.ungovern(device, pin))
    }

    /// Takes the program pinned under `pin` off its device. Returns whether there was one.
    pub fn detach(&self, pin: &str) -> bool {
        self.control().steer.detach(pin)
    }

    /// Takes off every pinned program whose name is not in `pins`, and returns the names that ended. Call it at the start, once it is
    /// known which endpoints still exist.
    pub fn retain_links(&self, pins: &BTreeSet<String>) -> Vec<String> {
        self.control().steer.retain_links(pins)
    }

    /// Returns the names of all pinned programs.
    pub fn link_names(&self) -> BTreeSet<String> {
        self.control().steer.link_names()
    }

    /// Publishes compiled policy to the workers.
    pub fn publish_snapshot(&self, snapshot: Arc<Snapshot>) {
        let generation = snapshot.generation().0;
        for hand in self.hands.iter() {
            hand.snapshots.publish(Arc::clone(&snapshot), generation);
        }
        self.wake();
    }

    /// Publishes ports, routes and neighbours to the workers, with the ports spread over them, under the last encryption plan.
    pub fn publish_topology(&self, topology: Arc<Topology>) {
        let mut control = self.control();
        control.topology = Some(topology);
        self.publish_node(&control);
    }

    /// Publishes what is to be encrypted, together with the last topology, so that no packet is judged by half of it. Peers and keys that
    /// are in the plan as before keep their sessions. Until there is a topology, the plan waits for it.
    ///
    /// The plan's generation must grow with every call; [`Dataplane::tunnel_report`] says which one is in force.
    ///
    /// Errors: the kernel refuses to send us datagrams to our port; workers have the plan nevertheless, and what must not leave in clear
    /// does not.
    pub fn set_encryption(&self, plan: &EncryptionPlan) -> Result<(), DataplaneError> {
        let mut control = self.control();
        let encryption = Encryption::new(plan, control.encryption.as_deref());
        for family in encryption.families().iter().flatten().filter(|family| !family.excluded().is_empty()) {
            tracing::warn!(peers = ?family.excluded(), "peers that share a key, or have no valid number, are not encrypted to");
        }
        let doors = encryption.families().iter().flatten().map(|family| family.endpoint()).collect();
        control.encryption = Some(Arc::new(encryption));
        self.publish_node(&control);
        Ok(control.steer.set_doors(&doors)?)
    }

    fn publish_node(&self, control: &Control) {
        let Some(topology) = &control.topology else { return };
        let generation = topology.generation();
        let topology = Topology::clone(topology)
            .spread_over(self.spread(control))
            .with_encryption(control.encryption.clone());
        let topology = Arc::new(topology);
        for hand in self.hands.iter() {
            hand.topologies.publish(Arc::clone(&topology), generation);
        }
        self.wake();
    }

    /// Returns the state of the tunnels: the plan in force, our keys, every peer.
    ///
    /// Errors: a silent worker.
    pub fn tunnel_report(&self) -> Result<TunnelReport, DataplaneError> {
        let parts = self.workers().map(|worker| self.ask(worker, |reply| Command::Tunnels { reply }));
        Ok(TunnelReport::new(parts.collect::<Result<Vec<_>, _>>()?))
    }

    fn wake(&self) {
        for hand in self.hands.iter() {
            // Without the wake-up the worker sees the news at its next turn, a tenth of a second later at most.
            if let Err(error) = hand.waker.wake() {
                tracing::warn!(%error, "cannot wake a worker");
            }
        }
    }

    /// Waits until every worker judges by this snapshot or a later one. Returns whether they do.
    pub fn wait_for_snapshot(&self, generation: Generation, timeout: Duration) -> bool {
        let seen = |hand: &Hand| hand.snapshots.acknowledged() >= generation.0;
        let done = wait_until(timeout, || self.hands.iter().all(seen));
        self.collect();
        done
    }

    /// Waits until every worker uses this topology or a later one. Returns whether they do.
    pub fn wait_for_topology(&self, generation: u64, timeout: Duration) -> bool {
        let seen = |hand: &Hand| hand.topologies.acknowledged() >= generation;
        let done = wait_until(timeout, || self.hands.iter().all(seen));
        self.collect();
        done
    }

    /// Frees what workers are done with.
    fn collect(&self) {
        for hand in self.hands.iter() {
            hand.snapshots.collect_retired();
            hand.topologies.collect_retired();
        }
    }

    /// Returns the generations that every worker has in force: snapshot, topology; zero before the first. Frees what they are done with.
    pub fn acknowledged(&self) -> (Generation, u64) {
        self.collect();
        let least = |of: fn(&Hand) -> u64| self.hands.iter().map(of).min().unwrap_or_default();
        (
            Generation(least(|hand| hand.snapshots.acknowledged())),
            least(|hand| hand.topologies.acknowledged()),
        )
    }

    /// Returns whether every worker's thread still runs. One that has ended (a panic that it could not go on from) never comes back:
    /// pods are closed, so restart.
    pub fn is_running(&self) -> bool {
        self.hands.iter().all(|hand| {
            let thread = hand.thread.lock().unwrap_or_else(PoisonError::into_inner);
            thread.as_ref().is_some_and(|thread| !thread.is_finished())
        })
    }

    /// Returns the core's counters as of the last burst, all workers' together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for hand in self.hands.iter() {
            sum += &hand.counters.load();
        }
        sum
    }

    /// Returns each worker's own numbers: its part of the counters, wake-ups, turns, lost drop events.
    pub fn worker_counters(&self) -> impl Iterator<Item = &SharedCounters> {
        self.hands.iter().map(|hand| &*hand.counters)
    }

    /// Returns the time since each worker's last heartbeat.
    pub fn heartbeat_ages(&self) -> Vec<Duration> {
        let now = thread::now();
        let age = |hand: &Hand| (now - Nanos(hand.counters.last_stamp.load(Relaxed))).0;
        self.hands.iter().map(|hand| Duration::from_nanos(age(hand))).collect()
    }

    /// Returns the longest time since a worker's last heartbeat.
    pub fn heartbeat_age(&self) -> Duration {
        self.heartbeat_ages().into_iter().max().unwrap_or_default()
    }

    /// Returns what each port did.
    ///
    /// Errors: a silent worker.
    pub fn port_counters(&self) -> Result<BTreeMap<PortIndex, PortCounters>, DataplaneError> {
        let mut kernel = Vec::new();
        for worker in self.workers() {
            kernel.extend(self.ask(worker, |reply| Command::Statistics { reply })?);
        }
        let mut all: BTreeMap<PortIndex, PortCounters> = BTreeMap::new();
        for (index, port) in &self.control().ports {
            let sum = all.entry(*index).or_default();
            for (_, from) in &port.statistics {
                sum.rx_packets += from.rx_packets.load(Relaxed);
                sum.rx_bytes += from.rx_bytes.load(Relaxed);
                sum.tx_packets += from.tx_packets.load(Relaxed);
                sum.tx_bytes += from.tx_bytes.load(Relaxed);
                sum.tx_failed += from.tx_failed.load(Relaxed);
                sum.refused += from.refused.load(Relaxed);
                sum.gone |= from.gone.load(Relaxed);
            }
        }
        for (index, socket) in kernel {
            if let Some(port) = all.get_mut(&index) {
                port.kernel.rx_dropped += socket.rx_dropped;
                port.kernel.rx_ring_full += socket.rx_ring_full;
                port.kernel.fill_ring_empty += socket.fill_ring_empty;
                port.kernel.invalid_descriptors += socket.invalid_descriptors;
            }
        }
        Ok(all)
    }

    /// Returns the ports, each with its specification and report.
    pub fn ports(&self) -> Vec<(PortSpec, PortReport)> {
        self.control().ports.values().map(|p| (p.spec.clone(), p.report.clone())).collect()
    }

    /// Begins to tell packets that match `filter`, from every worker, until [`Dataplane::end_watch`]. A watcher that does not
    /// keep up misses packets, which the next one it gets counts; it never holds a worker up.
    ///
    /// Errors: a worker that does not answer.
    pub fn watch(&self, filter: TapFilter) -> Result<(TapId, Receiver<Captured>), DataplaneError> {
        let (told, packets) = bounded(WATCHED);
        let id = TapId(self.next_tap.fetch_add(1, Relaxed));
        for worker in self.workers() {
            let (filter, told) = (filter.clone(), told.clone());
            self.ask(worker, |done| Command::Watch { id, filter, told, done })?;
        }
        Ok((id, packets))
    }

    /// Ends [`Dataplane::watch`].
    pub fn end_watch(&self, id: TapId) {
        for worker in self.workers() {
            // A worker that is gone tells nobody.
            let _ = self.tell(worker, Command::EndWatch { id });
        }
    }

    /// Returns up to `limit` live flows from position `cursor`, and where to go on; `None` at the end. Small pieces keep a worker's
    /// bursts short. Start at 0.
    ///
    /// Errors: a silent worker.
    pub fn flows(
        &self,
        cursor: usize,
        limit: usize,
    ) -> Result<(Vec<FlowRecord>, Option<usize>), DataplaneError> {
        let (at, slot) = (cursor >> WORKER_SHIFT, cursor & ((1 << WORKER_SHIFT) - 1));
        if at >= self.hands.len() {
            return Ok((Vec::new(), None));
        }
        let worker = WorkerIndex(at as u16);
        let (flows, next) = self.ask(worker, |reply| Command::Flows { cursor: slot, limit, reply })?;
        let next = match next {
            Some(slot) => Some(at << WORKER_SHIFT | slot),
            None => (at + 1 < self.hands.len()).then_some((at + 1) << WORKER_SHIFT),
        };
        Ok((flows, next))
    }

    /// Returns where sampled drop events arrive.
    pub fn drop_events(&self) -> Receiver<PacketEvent> {
        self.drops.clone()
    }

    /// Returns where lists of neighbours that packets wait for arrive; each list replaces the one before.
    pub fn wanted_neighbours(&self) -> Receiver<Vec<(PortIndex, IpAddr)>> {
        self.wanted.clone()
    }

    /// Makes uplinks give us what goes to `local` (this node's pods) and what comes from `cluster` (all pod CIDRs).
    ///
    /// Errors: more prefixes than the maps hold.
    pub fn set_uplink_prefixes(&self, local: &[IpNet], cluster: &[IpNet]) -> Result<(), DataplaneError> {
        Ok(self.control().steer.set_uplink_prefixes(local, cluster)?)
    }

    /// Returns what the packet path costs in memory.
    ///
    /// Errors: a silent worker.
    pub fn memory(&self) -> Result<MemoryReport, DataplaneError> {
        let (chunks, _) = self.ask(HOST_KEEPER, |reply| Command::Census { reply })?;
        let control = self.control();
        let sockets: u32 = control.ports.values().map(|p| p.report.queues).sum();
        // Two rings of 16-byte and two of 8-byte entries.
        let ring_bytes = u64::from(sockets) * u64::from(RING_SIZE) * 48;
        let kernel_bytes =
            KERNEL_BYTES_PER_CHUNK_AND_SOCKET * u64::from(control.umem.chunks()) * u64::from(sockets);
        Ok(MemoryReport { umem_bytes: control.umem.bytes(), ring_bytes, kernel_bytes, sockets, chunks })
    }

    /// Returns where the frames are, by two books that agree when nothing is under way and no frame was ever lost.
    ///
    /// Errors: a silent worker.
    pub fn frames(&self) -> Result<FrameReport, DataplaneError> {
        let mut report = FrameReport::default();
        for worker in self.workers() {
            let own = self.ask(worker, |reply| Command::Frames { reply })?;
            report.listed += own.at_hand;
            report.spares += own.spares;
            report.waiting += own.waiting as usize;
            for (port, filled, in_flight) in own.rings {
                let sum = report.rings.entry(port).or_default();
                *sum = (sum.0 + filled, sum.1 + in_flight);
            }
        }
        let (table, in_depot) = self.ask(HOST_KEEPER, |reply| Command::Census { reply })?;
        report.table = table;
        report.listed += in_depot;
        Ok(report)
    }

    /// Returns the directory of the pinned links.
    pub fn bpffs(&self) -> &Path {
        &self.config.bpffs
    }

    /// Stops the workers. Programs stay on their devices: pods are closed at once, uplinks pass to the kernel within a second.
    pub fn shutdown(self) {}
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        for worker in self.workers() {
            // A worker that has ended already is what we want.
            let _ = self.tell(worker, Command::Stop);
        }
        for hand in self.hands.iter() {
            let thread = hand.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a worker had panicked");
            }
        }
        if let Some(keeper) = self.keeper.take() {
            // It has nothing to panic over that would matter at the end.
            let _ = keeper.join();
        }
    }
}

fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    if let Err(error) = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
        tracing::warn!(cpu, %error, "a worker is not bound to its processor");
    }
}

fn wait_until(timeout: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn index_of(device: &str) -> Result<u32, DataplaneError> {
    nix::net::if_::if_nametoindex(device)
        .map_err(|e| DataplaneError::NoDevice { device: device.to_owned(), source: e.into() })
}

/// Binds the queues that the port is to have: as many as asked for, or one after another until the device has no more.
fn bind_all(
    umem: &UmemHandle,
    spec: &PortSpec,
    patience: Duration,
) -> Result<Vec<XskSocket>, DataplaneError> {
    let mut sockets = Vec::new();
    for queue in 0..spec.queues.unwrap_or(64) {
        match umem.bind(&spec.device, queue, patience) {
            Ok(socket) => sockets.push(socket),
            Err(XskError::Bind { source, .. })
                if queue > 0 && spec.queues.is_none() && source.raw_os_error() == Some(libc::EINVAL) =>
            {
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockets)
}
