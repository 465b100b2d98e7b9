//! One worker without its thread: ports in, bursts through the core, frames out. No clock, no sleep, no system call of its own, so it
//! runs alike over real sockets and over [`crate::memory`].
//!
//! Two rules keep it calm. *Only active ports are polled*: a port that was silent for a millisecond leaves the list and comes back when
//! its event does, so 250 idle ports cost nothing. *Fill rings are elastic*: an idle port holds few frames of the shared memory, a busy
//! one many; they are given back as traffic uses them up.
//!
//! Nobody takes the memory from the others. *What a device does not send* is never more than what is free beside it, so with any number
//! of devices that stand still some memory stays free. *What another worker does not take* ends here as soon as less than an eighth is
//! free. Both are losses with a name, and a port that moves keeps moving.
//!
//! A processor may panic. The engine then knows where ([`Engine::interrupted`]), and goes on with another one ([`Engine::replace`]): of
//! the engine's state a processor touches nothing but the batch and the output. What panics in the engine itself has no such end.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crossbeam::channel::{Sender, TrySendError};
use margay_core::handover::{Errand, Handover};
use margay_core::tunnel::PeerReport;
use margay_core::worker::{Captured, FlowRecord, TapFilter, TapId};
use margay_core::{Counters, Frame, Nanos, Output, PacketEvent, PortIndex, View, Worker};

use crate::exchange::{Alone, Exchange};
use crate::rings::Rings;

/// Frames taken from one port before the next one has its turn.
pub const BURST: usize = 64;
/// Batches taken from the inbox a turn.
const BATCHES: usize = 4;
/// A port without traffic for this long is polled no more until its event comes.
const ACTIVE_FOR: Nanos = Nanos::from_millis(1);
/// Frames on the fill ring of an idle port, where there are few ports.
const IDLE_FILL: usize = 64;
/// Frames on the fill ring of the busiest port.
const BUSY_FILL: usize = 1024;
/// The part of the memory that packets for other workers leave free.
const RESERVE: usize = 8;
/// Empty frames that the worker finds for packets of its own.
const SPARES: usize = 16;

/// What stands inside the engine: [`margay_core::Worker`] in the agent, something smaller in tests of input and output.
pub trait Processor<F> {
    /// Takes frames that arrived together to their ends and leaves `frames` empty; see [`Worker::handle_burst`].
    fn handle_burst(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    );

    /// Takes packets from other workers to their ends and leaves `parcels` empty; see [`Worker::handle_handovers`].
    ///
    /// A processor that gives nothing to others gets nothing from them; it may leave this to the default, which ends such packets.
    fn handle_handovers(&mut self, _: View<'_>, _: Nanos, parcels: &mut Vec<Handover<F>>, _: &mut Output<F>) {
        parcels.clear();
    }

    /// Is told that so many packets which were to be judged elsewhere found no room there; see [`Worker::handover_refused`].
    fn handover_refused(&mut self, _: u64) {}

    /// Does what time demands; see [`Worker::handle_timeout`].
    fn handle_timeout(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>);

    /// Returns the neighbours that packets wait for.
    fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)>;

    /// Returns whether packets wait for a neighbour, so that time is to pass in small steps.
    fn is_waiting(&self) -> bool;

    /// Returns the counters.
    fn counters(&self) -> &Counters;

    /// Returns the port of the packet that was taken up last outside a burst; see [`Worker::at_hand`].
    fn at_hand(&self) -> Option<PortIndex> {
        None
    }

    /// Begins or ends to tell packets; see [`Worker::set_tap`]. A processor without taps tells none.
    fn set_tap(&mut self, _id: TapId, _filter: Option<TapFilter>) {}

    /// Returns the number of the encryption plan in force and the state of the peers; see [`Worker::tunnels`].
    fn tunnels(&self, _now: Nanos) -> (u64, Vec<PeerReport>) {
        (0, Vec::new())
    }

    /// Returns a piece of the flow table; see [`Worker::flows`].
    fn flows(
        &self,
        view: View<'_>,
        now: Nanos,
        cursor: usize,
        limit: usize,
    ) -> (Vec<FlowRecord>, Option<usize>);
}

impl<F: Frame> Processor<F> for Worker<F> {
    fn handle_burst(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        Worker::handle_burst(self, view, now, port, frames, out);
    }

    fn handle_handovers(
        &mut self,
        view: View<'_>,
        now: Nanos,
        parcels: &mut Vec<Handover<F>>,
        out: &mut Output<F>,
    ) {
        Worker::handle_handovers(self, view, now, parcels, out);
    }

    fn handover_refused(&mut self, count: u64) {
        Worker::handover_refused(self, count);
    }

    fn handle_timeout(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        Worker::handle_timeout(self, view, now, out);
    }

    fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        Worker::wanted_neighbours(self)
    }

    fn is_waiting(&self) -> bool {
        Worker::is_waiting(self)
    }

    fn counters(&self) -> &Counters {
        Worker::counters(self)
    }

    fn at_hand(&self) -> Option<PortIndex> {
        Worker::at_hand(self)
    }

    fn set_tap(&mut self, id: TapId, filter: Option<TapFilter>) {
        Worker::set_tap(self, id, filter);
    }

    fn tunnels(&self, now: Nanos) -> (u64, Vec<PeerReport>) {
        Worker::tunnels(self, now)
    }

    fn flows(
        &self,
        view: View<'_>,
        now: Nanos,
        cursor: usize,
        limit: usize,
    ) -> (Vec<FlowRecord>, Option<usize>) {
        Worker::flows(self, view, now, cursor, limit)
    }
}

/// What a port did, written by its worker, read by anyone.
#[derive(Debug, Default)]
pub struct PortStatistics {
    /// Frames received.
    pub rx_packets: AtomicU64,
    /// Bytes received.
    pub rx_bytes: AtomicU64,
    /// Frames handed to the kernel for sending.
    pub tx_packets: AtomicU64,
    /// Bytes handed to the kernel for sending.
    pub tx_bytes: AtomicU64,
    /// Frames not sent: the transmit ring stayed full, or the device was gone.
    pub tx_failed: AtomicU64,
    /// Descriptors of the kernel that were refused.
    pub refused: AtomicU64,
    /// Whether the device went away under us.
    pub gone: AtomicBool,
}

fn add(counter: &AtomicU64, value: u64) {
    // One writer, the worker of these rings: a plain addition in two relaxed steps.
    counter.store(counter.load(Relaxed) + value, Relaxed);
}

/// Who is told about packets.
#[derive(Debug)]
struct Tap {
    id: TapId,
    filter: TapFilter,
    told: Sender<Captured>,
    lost: u64,
}

/// Identifies one set of rings within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingId(pub usize);

#[derive(Debug)]
struct Line<R: Rings> {
    port: PortIndex,
    rings: R,
    outbox: Vec<R::Frame>,
    statistics: Arc<PortStatistics>,
    target: usize,
    active: bool,
    gone: bool,
    /// Nothing is taken from it; see [`Engine::close`].
    closed: bool,
    last_traffic: Nanos,
}

/// Inside of which call of the processor the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// So many frames from this port, and how many packets had begun before.
    Burst { port: PortIndex, given: u64, begun: u64 },
    /// So many packets of other workers.
    Handovers { given: u64 },
    /// Anything else.
    Else,
}

/// What a panic of the processor interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// The port of the packet at hand, where that is known.
    pub port: Option<PortIndex>,
    /// The heads of the frames that the processor had been given and had not yet taken up, of [`KEPT_OF_FRAME`] bytes.
    pub not_taken_up: Vec<Vec<u8>>,
    /// The processor's counters, closed: what it had not brought to an end is dropped as [`margay_core::DropReason::WorkerPanicked`].
    pub counters: Counters,
}

/// Bytes of a frame that are kept when it is reported.
pub const KEPT_OF_FRAME: usize = 2048;

/// Returns the part of a frame that is kept when it is reported.
pub(crate) fn head_of(frame: &impl Frame) -> Vec<u8> {
    let bytes = frame.data();
    bytes[..bytes.len().min(KEPT_OF_FRAME)].to_vec()
}

/// See the module.
pub struct Engine<R: Rings, P> {
    processor: P,
    lines: Vec<Option<Line<R>>>,
    /// First line of each port, by index of the port.
    first: Vec<Option<usize>>,
    active: Vec<usize>,
    sending: Vec<usize>,
    batch: Vec<R::Frame>,
    out: Output<R::Frame>,
    exchange: Box<dyn Exchange<R::Frame>>,
    parcels: Vec<Handover<R::Frame>>,
    refused: Vec<Handover<R::Frame>>,
    /// How many engines share the memory.
    sharers: usize,
    taps: Vec<Tap>,
    events: Sender<PacketEvent>,
    losses: Losses,
    inside: Cell<Option<Inside>>,
}

/// What an engine lost without a name in the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Events that found no room.
    pub events: u64,
    /// Frames that had no port to leave by.
    pub portless: u64,
    /// Finished packets that found the inbox of their port's worker full.
    pub unsent: u64,
}

impl<R: Rings, P: Processor<R::Frame>> Engine<R, P> {
    /// Returns an engine without ports. Drop events go to `events` while there is room.
    pub fn new(processor: P, events: Sender<PacketEvent>) -> Self {
        Self {
            processor,
            lines: Vec::new(),
            first: Vec::new(),
            active: Vec::new(),
            sending: Vec::new(),
            batch: Vec::with_capacity(BURST),
            out: Output::new(),
            exchange: Box::new(Alone),
            parcels: Vec::new(),
            refused: Vec::new(),
            sharers: 1,
            taps: Vec::new(),
            events,
            losses: Losses::default(),
            inside: Cell::new(None),
        }
    }

    /// Makes it one of `workers` engines that share their memory and give each other packets by `exchange`.
    pub fn join(&mut self, workers: usize, exchange: Box<dyn Exchange<R::Frame>>) {
        self.sharers = workers.max(1);
        self.exchange = exchange;
    }

    /// Returns the processor.
    pub fn processor(&self) -> &P {
        &self.processor
    }

    /// Asks the processor something, so that a panic is known to be the processor's.
    pub fn ask<T>(&self, question: impl FnOnce(&P) -> T) -> T {
        self.inside.set(Some(Inside::Else));
        let answer = question(&self.processor);
        self.inside.set(None);
        answer
    }

    /// After a panic: returns what it interrupted, once; `None` when it was not the processor that panicked. `back` is the number of
    /// frames that were freed on the way out of the panic.
    ///
    /// What was finished before leaves now, as it would have.
    pub fn interrupted(&mut self, back: u64) -> Option<Interrupted> {
        let inside = self.inside.take()?;
        let left = self.batch.iter().chain(self.parcels.iter().map(|parcel| &parcel.frame));
        let not_taken_up: Vec<_> = left.map(head_of).collect();
        let mut counters = self.processor.counters().clone();
        let (port, not_begun, taken) = match inside {
            Inside::Burst { port, given, begun } => {
                (Some(port), given.saturating_sub(counters.beginnings() - begun), false)
            }
            Inside::Handovers { given } => {
                let mut ports = self.parcels.iter().map(|parcel| parcel.port);
                let first = ports.next();
                let only = first.filter(|first| ports.all(|port| port == *first));
                // Not told apart here: what was only to be sent. It has ended in the giver's books and ends in ours once more.
                let open = counters.beginnings().saturating_sub(counters.endings());
                let lost = (back + not_taken_up.len() as u64).min(given);
                (self.processor.at_hand().or(only), lost.saturating_sub(open), true)
            }
            Inside::Else => (self.processor.at_hand(), 0, false),
        };
        counters.close_after_panic(not_begun, taken);
        self.batch.clear();
        self.parcels.clear();
        self.flush();
        Some(Interrupted { port, not_taken_up, counters })
    }

    /// Puts another processor in the place of one that panicked, and tells it who watches.
    pub fn replace(&mut self, processor: P) {
        self.processor = processor;
        for tap in &self.taps {
            self.processor.set_tap(tap.id, Some(tap.filter.clone()));
        }
    }

    /// Takes nothing more from a port, until [`Engine::open`]. What is sent to it goes on.
    pub fn close(&mut self, port: PortIndex) {
        for (at, line) in self.lines.iter_mut().enumerate() {
            if let Some(line) = line.as_mut().filter(|line| line.port == port) {
                (line.closed, line.active) = (true, false);
                self.active.retain(|active| *active != at);
            }
        }
    }

    /// Drops what waits at a closed port; returns how many frames.
    pub fn discard(&mut self, port: PortIndex) -> u64 {
        let mut discarded = 0;
        for line in self.lines.iter_mut().flatten().filter(|line| line.port == port && line.closed) {
            while line.rings.poll_rx(&mut self.batch, BURST) > 0 {
                discarded += self.batch.len() as u64;
                self.batch.clear();
            }
        }
        discarded
    }

    /// Ends [`Engine::close`].
    pub fn open(&mut self, port: PortIndex, now: Nanos) {
        for at in 0..self.lines.len() {
            if let Some(line) = self.lines[at].as_mut().filter(|line| line.port == port && line.closed) {
                line.closed = false;
                self.activate(RingId(at), now);
            }
        }
    }

    /// Returns the rings of a line.
    pub fn rings(&self, id: RingId) -> Option<&R> {
        self.lines.get(id.0)?.as_ref().map(|line| &line.rings)
    }

    /// Returns the rings of a line for changing.
    pub fn rings_mut(&mut self, id: RingId) -> Option<&mut R> {
        self.lines.get_mut(id.0)?.as_mut().map(|line| &mut line.rings)
    }

    /// Returns every line: its port, its identity, its rings.
    pub fn lines(&self) -> impl Iterator<Item = (PortIndex, RingId, &R)> {
        self.lines
            .iter()
            .enumerate()
            .filter_map(|(at, line)| line.as_ref().map(|l| (l.port, RingId(at), &l.rings)))
    }

    /// Adds the rings of one queue of a port and fills them. Frames to the port leave through the queue that was added first.
    pub fn add(&mut self, port: PortIndex, rings: R, statistics: Arc<PortStatistics>, now: Nanos) -> RingId {
        let line = Line {
            port,
            rings,
            outbox: Vec::new(),
            statistics,
            target: 0,
            active: true,
            gone: false,
            closed: false,
            last_traffic: now,
        };
        let at = self.lines.iter().position(Option::is_none).unwrap_or(self.lines.len());
        if at == self.lines.len() {
            self.lines.push(None);
        }
        self.lines[at] = Some(line);
        self.active.push(at);
        let index = usize::from(port.0);
        if self.first.len() <= index {
            self.first.resize(index + 1, None);
        }
        self.first[index].get_or_insert(at);
        let idle = self.idle_fill();
        if let Some(line) = &mut self.lines[at] {
            line.target = idle;
            line.rings.refill(idle);
        }
        RingId(at)
    }

    /// Takes the rings of a port out. Frames that wait to be sent there are dropped.
    pub fn remove(&mut self, port: PortIndex) -> Vec<R> {
        let mut taken = Vec::new();
        for at in 0..self.lines.len() {
            if self.lines[at].as_ref().is_some_and(|line| line.port == port) {
                self.active.retain(|a| *a != at);
                self.sending.retain(|a| *a != at);
                taken.extend(self.lines[at].take().map(|line| line.rings));
            }
        }
        if let Some(first) = self.first.get_mut(usize::from(port.0)) {
            *first = None;
        }
        taken
    }

    /// Puts a line back among those that are polled: its event came.
    pub fn activate(&mut self, id: RingId, now: Nanos) {
        if let Some(Some(line)) = self.lines.get_mut(id.0) {
            line.last_traffic = now;
            if !line.active && !line.gone && !line.closed {
                line.active = true;
                self.active.push(id.0);
            }
        }
    }

    /// Notes that the device of a line is gone. Returns its port.
    pub fn mark_gone(&mut self, id: RingId) -> Option<PortIndex> {
        let line = self.lines.get_mut(id.0)?.as_mut()?;
        line.gone = true;
        line.active = false;
        line.statistics.gone.store(true, Relaxed);
        self.active.retain(|a| *a != id.0);
        Some(line.port)
    }

    /// Frames that an idle port may hold: with many ports less than usual, so that most of the memory stays for traffic.
    fn idle_fill(&self) -> usize {
        let ports = self.lines.iter().flatten().count().max(1) * self.sharers;
        let total = self.lines.iter().flatten().next().map_or(0, |line| line.rings.pool().1);
        IDLE_FILL.min(total / (4 * ports)).max(8)
    }

    /// Takes one burst from each active port and what other workers gave through the processor, and sends what came of it. Returns the
    /// number of frames received and taken.
    pub fn turn(&mut self, view: View<'_>, now: Nanos) -> usize {
        let mut received = 0;
        for position in 0..self.active.len() {
            let at = self.active[position];
            let Some(line) = self.lines[at].as_mut() else { continue };
            let count = line.rings.poll_rx(&mut self.batch, BURST);
            if count == 0 {
                continue;
            }
            received += count;
            line.last_traffic = now;
            let bytes = self.batch.iter().map(|frame| frame.data().len() as u64).sum();
            add(&line.statistics.rx_packets, self.batch.len() as u64);
            add(&line.statistics.rx_bytes, bytes);
            let port = line.port;
            let (given, begun) = (self.batch.len() as u64, self.processor.counters().beginnings());
            self.inside.set(Some(Inside::Burst { port, given, begun }));
            self.processor.handle_burst(view, now, port, &mut self.batch, &mut self.out);
            self.inside.set(None);
            // Empty by contract; a processor that leaves frames behind loses them here, not their memory.
            self.batch.clear();
            self.flush();
            self.grow(at, count);
        }
        let taken = self.exchange.take(&mut self.parcels, BATCHES);
        if taken > 0 {
            received += taken;
            self.inside.set(Some(Inside::Handovers { given: self.parcels.len() as u64 }));
            self.processor.handle_handovers(view, now, &mut self.parcels, &mut self.out);
            self.inside.set(None);
            self.parcels.clear();
            self.flush();
        }
        received
    }

    /// After a burst: a port that had more to give than one turn takes, or that came near to emptying its fill ring, gets a larger one
    /// while memory is plentiful.
    fn grow(&mut self, at: usize, received: usize) {
        let Some(line) = self.lines[at].as_mut() else { return };
        let (free, total) = line.rings.pool();
        let filled = line.rings.filled();
        if (received == BURST || filled < line.target / 2) && free > total / 4 {
            line.target = (line.target * 2).min(BUSY_FILL);
        }
        line.rings.refill(line.target.saturating_sub(filled));
    }

    /// Lets time pass: the processor's timers, late completions, ports that fell silent.
    pub fn tick(&mut self, view: View<'_>, now: Nanos) {
        self.inside.set(Some(Inside::Else));
        self.processor.handle_timeout(view, now, &mut self.out);
        self.inside.set(None);
        self.flush();
        let idle = self.idle_fill();
        let lines = &mut self.lines;
        for line in lines.iter_mut().flatten() {
            if line.gone {
                continue;
            }
            if line.rings.in_flight() > 0 {
                line.rings.complete();
                // What a full device queue left behind is tried again.
                if line.rings.in_flight() > 0 && line.rings.wakeup().is_err() {
                    line.gone = true;
                    line.statistics.gone.store(true, Relaxed);
                }
            }
            if now - line.last_traffic > ACTIVE_FOR {
                line.target = idle;
            }
            let missing = line.target.saturating_sub(line.rings.filled());
            if missing > 0 {
                line.rings.refill(missing);
            }
            let refused = line.rings.refused();
            line.statistics.refused.store(refused, Relaxed);
        }
        self.active.retain(|at| {
            let Some(line) = lines[*at].as_mut() else { return false };
            line.active = !line.gone && !line.closed && now - line.last_traffic <= ACTIVE_FOR;
            line.active
        });
    }

    /// Tells packets that match `filter` to `told` while there is room, until its other end is gone.
    pub fn watch(&mut self, id: TapId, filter: TapFilter, told: Sender<Captured>) {
        self.processor.set_tap(id, Some(filter.clone()));
        self.taps.retain(|tap| tap.id != id);
        self.taps.push(Tap { id, filter, told, lost: 0 });
    }

    /// Hands told packets to those who watch. One that finds no room is counted in the next that does.
    #[cold]
    fn tell(&mut self) {
        let mut gone = Vec::new();
        for mut captured in self.out.captures.drain(..) {
            let Some(tap) = self.taps.iter_mut().find(|tap| tap.id == captured.tap) else { continue };
            captured.lost_before += tap.lost;
            let missed = captured.lost_before + 1;
            match tap.told.try_send(captured) {
                Ok(()) => tap.lost = 0,
                Err(TrySendError::Full(_)) => tap.lost = missed,
                Err(TrySendError::Disconnected(_)) => gone.push(tap.id),
            }
        }
        for id in gone {
            self.end_watch(id);
        }
    }

    /// Tells nothing more to a watcher.
    pub fn end_watch(&mut self, id: TapId) {
        self.processor.set_tap(id, None);
        self.taps.retain(|tap| tap.id != id);
    }

    /// Acts on what the processor left in the output.
    fn flush(&mut self) {
        self.out.recycle.clear();
        for event in self.out.events.drain(..) {
            if self.events.try_send(event).is_err() {
                self.losses.events += 1;
            }
        }
        if !self.out.captures.is_empty() {
            self.tell();
        }
        if !self.out.handovers.is_empty() {
            if self.is_short() {
                self.refused.extend(self.out.handovers.drain(..).map(|(_, parcel)| parcel));
            } else {
                self.exchange.give(&mut self.out.handovers, &mut self.refused);
            }
            let unsent = self.refused.iter().filter(|parcel| parcel.errand == Errand::Send).count() as u64;
            self.losses.unsent += unsent;
            self.processor.handover_refused(self.refused.len() as u64 - unsent);
            self.refused.clear();
        }
        for (port, frame) in self.out.transmit.drain(..) {
            let at = self.first.get(usize::from(port.0)).copied().flatten();
            let Some((at, line)) = at.and_then(|at| self.lines[at].as_mut().map(|line| (at, line))) else {
                self.losses.portless += 1;
                continue;
            };
            if line.outbox.is_empty() {
                self.sending.push(at);
            }
            line.outbox.push(frame);
        }
        while let Some(at) = self.sending.pop() {
            if let Some(line) = self.lines[at].as_mut() {
                send(line);
            }
        }
        while self.out.spare.len() < SPARES {
            let of_a_port = self.lines.iter_mut().flatten().next().and_then(|line| line.rings.take_spare());
            let Some(frame) = of_a_port.or_else(|| self.exchange.spare()) else { break };
            self.out.spare.push(frame);
        }
    }

    /// Returns whether so little memory is free that other workers get none of it.
    fn is_short(&self) -> bool {
        let pool = self.lines.iter().flatten().next().map(|line| line.rings.pool());
        pool.is_some_and(|(free, total)| free < total / RESERVE)
    }

    /// Returns how many empty frames are kept for packets of the worker's own.
    pub fn spares(&self) -> usize {
        self.out.spare.len()
    }

    /// Returns what was lost without a name in the core.
    pub fn losses(&self) -> Losses {
        self.losses
    }
}

/// Sends a line's outbox. A ring that stays full after a wake-up loses the rest: queues are the kernel's and the sender's business.
fn send<R: Rings>(line: &mut Line<R>) {
    let mut failed = 0;
    line.rings.complete();
    // A device that stands still: it may have as much as is free beside it, and not the last frame of the others.
    let in_flight = line.rings.in_flight();
    if in_flight > 0 {
        let room = line.rings.pool().0.saturating_sub(in_flight);
        failed += line.outbox.len().saturating_sub(room) as u64;
        line.outbox.truncate(room);
    }
    while !line.outbox.is_empty() && !line.gone {
        let before = line.outbox.len();
        let bytes_before: u64 = line.outbox.iter().map(|frame| frame.data().len() as u64).sum();
        let taken = line.rings.submit_tx(&mut line.outbox);
        let bytes_after: u64 = line.outbox.iter().map(|frame| frame.data().len() as u64).sum();
        add(&line.statistics.tx_packets, (before - line.outbox.len()) as u64);
        add(&line.statistics.tx_bytes, bytes_before - bytes_after);
        if line.rings.wakeup().is_err() {
            line.gone = true;
            line.statistics.gone.store(true, Relaxed);
        }
        line.rings.complete();
        if taken == 0 {
            break;
        }
    }
    failed += line.outbox.len() as u64;
    line.outbox.clear();
    if failed > 0 {
        add(&line.statistics.tx_failed, failed);
    }
}
