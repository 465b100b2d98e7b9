//! One worker without its thread: ports in, bursts through the core, frames out. No clock, no sleep, no system call of its own, so it
//! runs alike over real sockets and over [`crate::memory`].
//!
//! Two rules keep it calm. *Only active ports are polled*: a port that was silent for a millisecond leaves the list and comes back when
//! its event does, so 250 idle ports cost nothing. *Fill rings are elastic*: an idle port holds few frames of the shared memory, a busy
//! one many; when it is busy no more it needs half as many each tenth of a second, and they are given back as traffic uses them up.
//!
//! Nobody takes the memory from the others. *What a device does not send* is never more than what is free beside it, so with any number
//! of devices that stand still some memory stays free. *What another worker does not take* ends here as soon as less than an eighth is
//! free. Both are losses with a name, and a port that moves keeps moving.
//!
//! A processor may panic. The engine then knows where ([`Engine::interrupted`]), and goes on with another one ([`Engine::replace`]): of
//! the engine's state a processor touches nothing but the batch and the output. What panics in the engine itself has no such end.

mod backlog;
mod interruption;
mod lines;
mod processor;

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam::channel::{Sender, TrySendError};
use margay_core::handover::{Errand, Handover, Parcels};
use margay_core::worker::{Captured, TapFilter, TapId};
use margay_core::{Frame, Nanos, Output, PacketEvent, View};

use crate::exchange::{Alone, Exchange};
use crate::rings::{MemoryId, Rings};
use backlog::Backlog;
use interruption::Inside;
pub(crate) use interruption::head_of;
pub use interruption::{Interrupted, KEPT_OF_FRAME};
use lines::{ACTIVE_FOR, Line, Memory, add, send};
pub use lines::{PortStatistics, RingId};
pub use processor::Processor;

/// Frames taken from one port before the next one has its turn.
pub const BURST: usize = 64;
/// Batches taken from the inbox a turn.
const BATCHES: usize = 4;
/// The part of the memory that packets for other workers leave free.
const RESERVE: usize = 8;
/// Empty frames that the worker finds for packets of its own: 16 where memory is small, else enough for the fragments of the largest
/// packet.
const SPARES: usize = 16;
const MANY_SPARES: usize = 56;
/// Frames of memory for each spare one beyond the few.
const PER_SPARE: usize = 256;

/// Who is told about packets.
#[derive(Debug)]
struct Tap {
    id: TapId,
    filter: TapFilter,
    told: Sender<Captured>,
    lost: u64,
    backlog: Backlog,
}

/// See the module.
pub struct Engine<R: Rings, P> {
    processor: P,
    lines: Vec<Option<Line<R>>>,
    /// First line of each port, by index of the port.
    first: Vec<Option<usize>>,
    /// The memories that rings are on: one, or few.
    memories: Vec<Memory>,
    active: Vec<usize>,
    sending: Vec<usize>,
    batch: Vec<R::Frame>,
    out: Output<R::Frame>,
    exchange: Box<dyn Exchange<R::Frame>>,
    parcels: Parcels<R::Frame>,
    refused: Vec<Handover<R::Frame>>,
    /// How many engines share the memory.
    sharers: usize,
    next_feed: Nanos,
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
    /// Finished packets for uplinks and the host port that found the inbox of their port's worker full.
    pub unsent: u64,
}

impl<R: Rings, P: Processor<R::Frame>> Engine<R, P> {
    /// Returns an engine without ports. Drop events go to `events` while there is room.
    pub fn new(processor: P, events: Sender<PacketEvent>) -> Self {
        Self {
            processor,
            lines: Vec::new(),
            first: Vec::new(),
            memories: Vec::new(),
            active: Vec::new(),
            sending: Vec::new(),
            batch: Vec::with_capacity(BURST),
            out: Output::new(),
            exchange: Box::new(Alone),
            parcels: Parcels::default(),
            refused: Vec::new(),
            sharers: 1,
            next_feed: Nanos(0),
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

    /// Takes one burst from each active port and what other workers gave through the processor, and sends what came of it. Returns the
    /// number of frames received and taken.
    pub fn turn(&mut self, view: View<'_>, now: Nanos) -> usize {
        let mut received = 0;
        self.exchange.ask(BATCHES);
        for position in 0..self.active.len() {
            let at = self.active[position];
            let Some(line) = self.lines[at].as_mut() else { continue };
            let count = line.rings.poll_rx(&mut self.batch, BURST);
            if count == 0 {
                continue;
            }
            received += count;
            line.last_traffic = now;
            let bytes = self.batch.iter().map(|frame| frame.packet_len() as u64).sum();
            add(&line.statistics.rx_packets, self.batch.len() as u64);
            add(&line.statistics.rx_bytes, bytes);
            let port = line.port;
            let (given, begun) = (self.batch.len() as u64, self.processor.counters().received);
            self.inside.set(Some(Inside::Burst { port, given, begun }));
            self.processor.handle_burst(view, now, port, &mut self.batch, &mut self.out);
            self.inside.set(None);
            // Empty by contract; a processor that leaves frames behind loses them here, not their memory.
            self.batch.clear();
            self.flush();
            self.grow(at);
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

    /// Lets time pass: the processor's timers, late completions, ports that fell silent.
    pub fn tick(&mut self, view: View<'_>, now: Nanos) {
        self.inside.set(Some(Inside::Else));
        self.processor.handle_timeout(view, now, &mut self.out);
        self.inside.set(None);
        self.flush();
        self.feed(now);
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
            // With nothing missing too: a device may have to be told of what is there.
            line.rings.refill(line.target.saturating_sub(line.rings.filled()));
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
        self.taps.push(Tap { id, filter, told, lost: 0, backlog: Backlog::default() });
    }

    /// Hands told packets to those who watch. One that finds no room is counted in the next that does.
    #[cold]
    fn tell(&mut self) {
        let mut gone = Vec::new();
        for mut captured in self.out.captures.drain(..) {
            let Some(tap) = self.taps.iter_mut().find(|tap| tap.id == captured.tap) else { continue };
            captured.lost_before += tap.lost;
            let missed = captured.lost_before + 1;
            let bytes = captured.bytes.len() + captured.sent.as_ref().map_or(0, |(sent, _)| sent.len());
            if !tap.backlog.has_room(tap.told.len(), bytes) {
                tap.lost = missed;
                continue;
            }
            match tap.told.try_send(captured) {
                Ok(()) => {
                    tap.lost = 0;
                    tap.backlog.add(bytes);
                }
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

    /// Acts on what the processor left in the output, and tells it what other workers did not take.
    fn flush(&mut self) {
        self.let_go();
        if !self.refused.is_empty() {
            let mut refused = std::mem::take(&mut self.refused);
            self.inside.set(Some(Inside::Else));
            self.processor.handover_refused(&refused);
            self.inside.set(None);
            refused.clear();
            self.refused = refused;
        }
    }

    /// Acts on what is in the output. What other workers did not take is in `refused`; returns how much of it ended here: all but what had
    /// only to be sent.
    fn let_go(&mut self) -> u64 {
        let mut ended = 0;
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
            for at in 0..self.memories.len() {
                if self.is_short(self.memories[at]) {
                    self.keep_back(self.memories[at].id);
                }
            }
            self.exchange.give(&mut self.out.handovers, &mut self.refused);
            let unsent = self.refused.iter().filter(|parcel| parcel.errand == Errand::Send).count() as u64;
            self.losses.unsent += unsent;
            ended = self.refused.len() as u64 - unsent;
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
        // Never of an uplink's own memory, which goes with the uplink.
        let memory = self.memory(MemoryId::SHARED);
        let wanted = (memory.map_or(0, |memory| memory.total) / PER_SPARE).clamp(SPARES, MANY_SPARES);
        while self.out.spare.len() < wanted {
            let line = memory.and_then(|memory| self.lines[memory.line].as_mut());
            let of_a_port = line.and_then(|line| line.rings.take_spare());
            let Some(frame) = of_a_port.or_else(|| self.exchange.spare()) else { break };
            self.out.spare.push(frame);
        }
        ended
    }

    /// Returns whether so little of a memory is free that other workers get none of it.
    fn is_short(&self, memory: Memory) -> bool {
        let pool = self.lines[memory.line].as_ref().map(|line| line.rings.pool());
        pool.is_some_and(|(free, total)| free < total / RESERVE)
    }

    /// Refuses what lies in one memory to the other workers.
    #[cold]
    fn keep_back(&mut self, memory: MemoryId) {
        self.refused.extend(self.out.handovers.extract(|frame| R::memory_of(frame) == memory));
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
