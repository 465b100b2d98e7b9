//! The worker's thread: spin while there is work, sleep when there is none, and say "alive" either way.
//!
//! Everything of a worker lives on this thread: the frame pool, the rings, the core. The control side talks to it through a channel
//! of commands and a waker; what it publishes outward are atomics and bounded channels. It never takes a lock that another
//! thread may hold for long, and never waits but in one place: `poll`, with a timeout far below the heartbeat's limit. While it looks for
//! more work before that, others may have its processor (`courtesy`). The stamp comes from this very loop, so a worker that hangs falls
//! silent and the kernel programs take over.
//!
//! A processor that panics is replaced (docs/decisions/0022): the worker falls silent, so that its pods are closed and its uplinks pass,
//! gives the frames back, begins anew with the rings that it has, and tells the control side whose frame it was. A panic anywhere else,
//! or the third within a minute with no port to blame, ends the thread.

mod counters;
mod courtesy;

use std::any::Any;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use crossbeam::channel::{Receiver, Sender, TryRecvError};
use margay_core::flow::FlowKey;
use margay_core::tunnel::PeerReport;
use margay_core::worker::{Captured, Counted, FlowRecord, TapFilter, TapId};
use margay_core::{Nanos, PortIndex, Topology, View, WorkerIndex};
use margay_policy_engine::snapshot::Snapshot;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::time::{ClockId, clock_gettime};

use crate::engine::{Engine, PortStatistics, Processor, RingId};
use crate::exchange::Inbox;
use crate::panics::{Strikes, WorkerPanic, message_of};
use crate::publish::Subscriber;
use crate::rings::{MemoryId, Rings};
use crate::steer::Heartbeat;
use crate::xsk::{
    Census, LooseFrame, Pools, SocketSlot, SocketStatistics, Store, UmemFrame, UmemHandle, XskRings,
    XskSocket,
};

pub use counters::SharedCounters;
use courtesy::Courtesy;

const WAKER: Token = Token(usize::MAX);
const TICK: Nanos = Nanos::from_millis(10);
const STAMP: Nanos = Nanos::from_millis(5);
/// Longest sleep: a tenth of the heartbeat's limit.
const SLEEP: Duration = Duration::from_millis(100);
/// Longest sleep while packets wait for a neighbour.
const SLEEP_HELD: Duration = Duration::from_millis(10);
/// Turns between two looks at events while the worker is awake. Active ports are looked at every turn without one.
const TURNS_PER_LOOK: u32 = 8;
/// How long after a close a device may still be reading chunks that were to be sent.
const SENT_PAUSE: Nanos = Nanos::from_secs(1);

/// Returns CLOCK_MONOTONIC, the clock of the kernel programs.
pub fn now() -> Nanos {
    // The clock exists on every Linux; were it refused, time would stand still and the heartbeat fall silent, which is safe.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(Nanos(0), |t| Nanos(t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64))
}

/// What the control side asks of the worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Know this memory, whose sockets may come to any worker.
    Know { umem: UmemHandle, store: Arc<Store>, done: Sender<()> },
    /// Forget it once all of it is free; its sockets are closed.
    Retire { memory: MemoryId },
    /// Take these sockets, which are on this memory, to work.
    Add {
        port: PortIndex,
        memory: MemoryId,
        sockets: Vec<XskSocket>,
        statistics: Arc<PortStatistics>,
        done: Sender<std::io::Result<()>>,
    },
    /// Give the sockets of a port back; they are closed by the caller, who then says [`Command::Reclaim`].
    Remove { port: PortIndex, taken: Sender<Vec<(XskSocket, SocketSlot)>> },
    /// These sockets, which were on this memory, are closed: their chunks are free.
    Reclaim { memory: MemoryId, slots: Vec<SocketSlot> },
    /// A piece of the flow table.
    Flows { cursor: usize, limit: usize, reply: Sender<(Vec<FlowRecord>, Option<usize>)> },
    /// What this worker has counted of flows that another one tells.
    Counted { keys: Vec<FlowKey>, reply: Sender<Vec<Option<Counted>>> },
    /// The encryption plan in force and the peers of this worker.
    Tunnels { reply: Sender<(u64, Vec<PeerReport>)> },
    /// Tell packets that match, until the other end of `told` is gone.
    Watch { id: TapId, filter: TapFilter, told: Sender<Captured>, done: Sender<()> },
    /// Tell them no more.
    EndWatch { id: TapId },
    /// The kernel's counters of every socket.
    Statistics { reply: Sender<Vec<(PortIndex, SocketStatistics)>> },
    /// Take nothing more from a port and forget what waits there.
    Close { port: PortIndex },
    /// Take from it again.
    Open { port: PortIndex },
    /// What this worker has of them.
    Frames { reply: Sender<WorkerFrames> },
    /// Where the chunks of the shared memory are, and how many free ones no worker has at hand.
    Census { reply: Sender<(Census, usize)> },
    /// End.
    Stop,
}

/// The chunks that a worker knows of.
#[derive(Debug)]
pub(crate) struct WorkerFrames {
    /// Free, at its hand.
    pub at_hand: Vec<(MemoryId, usize)>,
    /// Kept for packets of its own.
    pub spares: usize,
    /// Of packets that wait in its processor.
    pub waiting: usize,
    /// With the kernel: port, memory, to receive into, to be sent.
    pub rings: Vec<(PortIndex, MemoryId, usize, usize)>,
}

/// What a thread is born with.
pub(crate) struct Birth {
    /// Which worker, and of how many.
    pub index: WorkerIndex,
    pub workers: u16,
    pub inbox: Arc<Inbox<LooseFrame>>,
    pub poll: Poll,
    pub pools: Rc<Pools>,
    pub heartbeat: Heartbeat,
    pub commands: Receiver<Command>,
    pub snapshots: Subscriber<Snapshot>,
    pub topologies: Subscriber<Topology>,
    pub counters: Arc<SharedCounters>,
    pub wanted: Sender<Vec<(PortIndex, IpAddr)>>,
    pub panics: Sender<WorkerPanic>,
    pub spin: Duration,
}

/// The token of the waker that the control side holds.
pub(crate) fn waker(poll: &Poll) -> std::io::Result<mio::Waker> {
    mio::Waker::new(poll.registry(), WAKER)
}

struct Loop<P> {
    birth: Birth,
    engine: Engine<XskRings, P>,
    /// Slots are those of the whole UMEM: this worker takes every n-th.
    next_slot: u16,
    /// Slots of closed sockets whose chunks to be sent are not yet free, each with the time when they are.
    closing: Vec<(MemoryId, SocketSlot, Nanos)>,
    wanted: Vec<(PortIndex, IpAddr)>,
    /// A new topology was seen outside the loop's own look at it.
    tick_is_due: bool,
}

/// Runs until told to stop. `make` gives a processor for the beginning, and one for each that panics.
pub(crate) fn run<P, M>(birth: Birth, engine: Engine<XskRings, P>, make: M)
where
    P: Processor<UmemFrame>,
    M: Fn(Nanos) -> P,
{
    let next_slot = birth.index.0;
    let mut this =
        Loop { birth, engine, next_slot, closing: Vec::new(), wanted: Vec::new(), tick_is_due: false };
    let mut blameless = Strikes::default();
    // What a panic leaves behind is either thrown away (the processor) or was not being changed: see [`Engine::interrupted`], which
    // refuses the rest.
    while let Err(panic) = catch_unwind(AssertUnwindSafe(|| this.turn_until_told())) {
        if let Some(end) = this.begin_anew(panic, &make, &mut blameless) {
            resume_unwind(end);
        }
    }
}

impl<P: Processor<UmemFrame>> Loop<P> {
    /// Turns until told to stop.
    fn turn_until_told(&mut self) {
        let nothing = Topology::default();
        let mut events = Events::with_capacity(256);
        let mut last_work = now();
        let (mut next_tick, mut next_stamp) = (Nanos(0), Nanos(0));
        let spin = Nanos(self.birth.spin.as_nanos() as u64);
        let mut turns = 0u32;
        let mut courtesy = Courtesy::default();
        loop {
            let time = now();
            if time >= next_stamp {
                if self.birth.heartbeat.stamp(time).is_err() {
                    self.birth.counters.heartbeat_failures.fetch_add(1, Relaxed);
                } else {
                    self.birth.counters.last_stamp.store(time.0, Relaxed);
                }
                next_stamp = time + STAMP;
            }
            if !self.obey(time) {
                break;
            }

            // A snapshot opens pods, and what it opens is to be encrypted: so never a newer one with an older topology.
            let (snapshot, _) = self.birth.snapshots.load();
            let (topology, new_topology) = self.birth.topologies.load();
            let view = View {
                snapshot: snapshot.map(|s| s.value()),
                topology: topology.map_or(&nothing, |t| t.value()),
            };
            let received = self.engine.turn(view, time);
            if received > 0 {
                last_work = time;
            }
            let ticked = new_topology || self.tick_is_due || time >= next_tick;
            if ticked {
                self.engine.tick(view, time);
                next_tick = time + TICK;
                self.tick_is_due = false;
            }
            if ticked || received > 0 {
                self.birth.counters.store(self.engine.processor().counters());
                self.birth.counters.turns.fetch_add(1, Relaxed);
            }
            let newly_waiting = received > 0 && self.wanted.is_empty() && self.engine.ask(P::is_waiting);
            if ticked || newly_waiting {
                self.house_keeping(time);
            }

            turns = turns.wrapping_add(1);
            // What this turn has left on a ring has no event of its own.
            let idle = received == 0 && time - last_work >= spin;
            if idle || turns.is_multiple_of(TURNS_PER_LOOK) {
                let held = self.engine.ask(P::is_waiting);
                let timeout = match (idle, held) {
                    (false, _) => Duration::ZERO,
                    (true, true) => SLEEP_HELD,
                    (true, false) => SLEEP,
                };
                self.look(&mut events, timeout, idle);
            }
            if received == 0 && !idle {
                courtesy.yield_to_others(now, std::thread::yield_now);
            }
        }
    }

    /// After a panic: falls silent, gives back what the processor had, and puts a new one in its place. Returns the panic when it is
    /// not one to go on from.
    fn begin_anew(
        &mut self,
        panic: Box<dyn Any + Send>,
        make: impl Fn(Nanos) -> P,
        blameless: &mut Strikes,
    ) -> Option<Box<dyn Any + Send>> {
        // Older than any limit: pods are closed and uplinks pass from here on. A failure to say so is silence as well, a second later.
        let _ = self.birth.heartbeat.stamp(Nanos(0));
        let (at, time) = (now(), SystemTime::now());
        let (first, freed) = self.birth.pools.shared().witness().take();
        let Some(interrupted) = self.engine.interrupted(freed) else { return Some(panic) };
        self.birth.counters.close(&interrupted.counters);
        let number = self.birth.counters.panics.fetch_add(1, Relaxed) + 1;
        let port = interrupted.port;
        if let Some(port) = port {
            // Until the control side has judged it.
            self.engine.close(port);
        }
        let report = WorkerPanic {
            worker: self.birth.index,
            number,
            port,
            at,
            time,
            message: message_of(&*panic),
            frames: first.map_or(interrupted.not_taken_up, |frame| vec![frame]),
        };
        // Its reader lives as long as the workers do.
        let _ = self.birth.panics.send(report);
        if port.is_none() && blameless.strike(at) {
            return Some(panic);
        }
        self.engine.replace(make(now()));
        self.wanted.clear();
        self.tick_is_due = true;
        None
    }
}

impl<P: Processor<UmemFrame>> Loop<P> {
    /// Waits for events up to `timeout` and puts ports with one back to work.
    fn look(&mut self, events: &mut Events, timeout: Duration, sleeping: bool) {
        // Whoever posts from now on wakes us; what was posted before keeps us up.
        let timeout = if sleeping && !self.birth.inbox.lie_down() { Duration::ZERO } else { timeout };
        // An interrupted wait is like a timeout; any other failure leaves `events` empty, and the loop goes on by time alone.
        let _ = self.birth.poll.poll(events, Some(timeout));
        if sleeping {
            self.birth.inbox.wake_up();
            self.birth.counters.wakeups.fetch_add(1, Relaxed);
        }
        let time = now();
        for event in events.iter() {
            if event.token() == WAKER {
                continue;
            }
            let id = RingId(event.token().0);
            if event.is_error() {
                // ENETDOWN: the device is gone, or down. Which of both shows when something is to be sent.
                if self.engine.rings_mut(id).is_some_and(|rings| rings.wakeup().is_err()) {
                    self.engine.mark_gone(id);
                    continue;
                }
            }
            self.engine.activate(id, time);
        }
    }

    /// Does what the control side asks. Returns `false` at the end.
    fn obey(&mut self, time: Nanos) -> bool {
        loop {
            let command = match self.birth.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            // An asker that is gone needs no answer, so failed replies are dropped.
            match command {
                Command::Know { umem, store, done } => {
                    let pools = &self.birth.pools;
                    pools.add(pools.shared().beside(&umem, store));
                    let _ = done.send(());
                }
                Command::Retire { memory } => self.birth.pools.retire(memory),
                Command::Add { port, memory, sockets, statistics, done } => {
                    let result = self.add(port, memory, sockets, &statistics, time);
                    let _ = done.send(result);
                }
                Command::Remove { port, taken } => {
                    let lines = self.engine.remove(port);
                    for rings in &lines {
                        // The kernel forgets a closed descriptor by itself; this only spares events until then.
                        let _ = self.birth.poll.registry().deregister(&mut SourceFd(&rings.as_raw_fd()));
                    }
                    let sockets = lines.into_iter().map(XskRings::into_socket).collect();
                    let _ = taken.send(sockets);
                }
                Command::Reclaim { memory, slots } => {
                    for slot in slots {
                        if let Some(pool) = self.birth.pools.of(memory) {
                            pool.reclaim_filled(slot);
                        }
                        self.closing.push((memory, slot, time + SENT_PAUSE));
                    }
                }
                Command::Flows { cursor, limit, reply } => {
                    let nothing = Topology::default();
                    let (snapshot, _) = self.birth.snapshots.load();
                    let (topology, new) = self.birth.topologies.load();
                    self.tick_is_due |= new;
                    let topology = topology.map_or(&nothing, |t| t.value());
                    let view = View { snapshot: snapshot.map(|s| s.value()), topology };
                    let _ =
                        reply.send(self.engine.ask(|processor| processor.flows(view, time, cursor, limit)));
                }
                Command::Counted { keys, reply } => {
                    let _ = reply.send(self.engine.ask(|processor| processor.counted(&keys)));
                }
                Command::Tunnels { reply } => {
                    let _ = reply.send(self.engine.ask(|processor| processor.tunnels(time)));
                }
                Command::Watch { id, filter, told, done } => {
                    self.engine.watch(id, filter, told);
                    let _ = done.send(());
                }
                Command::EndWatch { id } => self.engine.end_watch(id),
                Command::Close { port } => {
                    self.engine.close(port);
                    self.engine.discard(port);
                }
                Command::Open { port } => self.engine.open(port, time),
                Command::Statistics { reply } => {
                    let each = self
                        .engine
                        .lines()
                        .filter_map(|(port, _, rings)| Some((port, rings.statistics().ok()?)));
                    let _ = reply.send(each.collect());
                }
                Command::Frames { reply } => {
                    let rings = self.engine.lines();
                    let rings = rings
                        .map(|(port, _, rings)| (port, rings.memory(), rings.filled(), rings.in_flight()));
                    let _ = reply.send(WorkerFrames {
                        at_hand: self.birth.pools.at_hand(),
                        spares: self.engine.spares(),
                        waiting: self.engine.processor().frames_held(),
                        rings: rings.collect(),
                    });
                }
                Command::Census { reply } => {
                    let pool = self.birth.pools.shared();
                    let _ = reply.send((pool.census(), pool.in_depot()));
                }
                Command::Stop => return false,
            }
        }
    }

    fn add(
        &mut self,
        port: PortIndex,
        memory: MemoryId,
        sockets: Vec<XskSocket>,
        statistics: &Arc<PortStatistics>,
        time: Nanos,
    ) -> std::io::Result<()> {
        let pool =
            self.birth.pools.of(memory).ok_or_else(|| std::io::Error::other("unknown packet memory"))?;
        for socket in sockets {
            let slot = self.free_slot().ok_or_else(|| std::io::Error::other("too many sockets"))?;
            let rings = XskRings::new(socket, Rc::clone(&pool), slot);
            let fd = rings.as_raw_fd();
            let id = self.engine.add(port, rings, Arc::clone(statistics), time);
            self.birth.poll.registry().register(&mut SourceFd(&fd), Token(id.0), Interest::READABLE)?;
        }
        Ok(())
    }

    fn free_slot(&mut self) -> Option<SocketSlot> {
        let taken = |slot: SocketSlot, this: &Self| {
            this.closing.iter().any(|(_, s, _)| *s == slot)
                || this.engine.lines().any(|(_, _, rings)| rings.slot() == slot)
        };
        for _ in 0..SocketSlot::MAX / self.birth.workers {
            let slot = SocketSlot(self.next_slot);
            let next = self.next_slot + self.birth.workers;
            self.next_slot = if next < SocketSlot::MAX { next } else { self.birth.index.0 };
            if !taken(slot, self) {
                return Some(slot);
            }
        }
        None
    }

    fn house_keeping(&mut self, time: Nanos) {
        let pools = &self.birth.pools;
        self.closing.retain(|(memory, slot, at)| {
            let over = time >= *at;
            if let Some(pool) = pools.of(*memory).filter(|_| over) {
                pool.reclaim_sent(*slot);
            }
            !over
        });
        pools.forget();
        let losses = self.engine.losses();
        self.birth.counters.events_lost.store(losses.events, Relaxed);
        self.birth.counters.portless.store(losses.portless, Relaxed);
        self.birth.counters.unsent.store(losses.unsent, Relaxed);
        let wanted = self.engine.ask(P::wanted_neighbours);
        // A full channel is tried again at the next tick.
        if wanted != self.wanted && self.birth.wanted.try_send(wanted.clone()).is_ok() {
            self.wanted = wanted;
        }
    }
}
