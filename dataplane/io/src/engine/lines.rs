//! The rings that an engine has: which of them are polled, how much memory each is given, what leaves by them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use margay_core::{Frame, Nanos, PortIndex};

use super::{BURST, Engine, Processor, RESERVE};
use crate::rings::{Crossings, LEAST, MemoryId, Rings};

/// A port without traffic for this long is polled no more until its event comes.
pub(super) const ACTIVE_FOR: Nanos = Nanos::from_millis(1);
/// Frames on the fill ring of an idle port, where there are few ports.
const IDLE_FILL: usize = 64;
/// Frames on the fill ring of the busiest port.
const BUSY_FILL: usize = 1024;
/// As many a busy port may have, however many ports there are.
const FAIR_FILL: usize = 256;
/// Time between two looks at how much ports need to receive into.
const FEED: Nanos = Nanos::from_millis(100);

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
    /// Frames not sent: the transmit ring or the memory for copies stayed full, or the device was gone.
    pub tx_failed: AtomicU64,
    /// Packets that were copied to be sent, as they came in another memory.
    pub copied_packets: AtomicU64,
    /// Bytes of these.
    pub copied_bytes: AtomicU64,
    /// Descriptors of the kernel that were refused.
    pub refused: AtomicU64,
    /// Whether the device went away under us.
    pub gone: AtomicBool,
}

pub(super) fn add(counter: &AtomicU64, value: u64) {
    // One writer, the worker of these rings: a plain addition in two relaxed steps.
    counter.store(counter.load(Relaxed) + value, Relaxed);
}

/// Identifies one set of rings within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingId(pub usize);

#[derive(Debug)]
pub(super) struct Line<R: Rings> {
    pub(super) port: PortIndex,
    pub(super) rings: R,
    pub(super) outbox: Vec<R::Frame>,
    pub(super) statistics: Arc<PortStatistics>,
    pub(super) target: usize,
    /// The most of it that was in use after a burst, since the last look.
    used: usize,
    pub(super) active: bool,
    pub(super) gone: bool,
    /// Nothing is taken from it; see [`Engine::close`].
    pub(super) closed: bool,
    pub(super) last_traffic: Nanos,
}

/// One packet memory, as far as this engine's rings are on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) id: MemoryId,
    /// All frames of it.
    pub(super) total: usize,
    /// A line on it, and how many there are.
    pub(super) line: usize,
    lines: usize,
}

impl Memory {
    /// Returns the part of each line in a quarter of the memory, which `sharers` engines have.
    fn share(&self, sharers: usize) -> usize {
        self.total / (4 * self.lines * sharers)
    }

    /// Returns how many frames an idle line may hold. In the shared memory, with many ports, less than usual, so that most of it stays
    /// for traffic; a memory that one port has for itself serves nothing else. A port that may get large packets has [`Rings::least`] of
    /// them in any case.
    pub(super) fn idle_fill(&self, sharers: usize) -> usize {
        let most = if self.id == MemoryId::SHARED { IDLE_FILL } else { BUSY_FILL };
        most.min(self.share(sharers)).max(LEAST)
    }
}

impl<R: Rings, P: Processor<R::Frame>> Engine<R, P> {
    /// Counts anew which memories there are.
    fn survey(&mut self) {
        self.memories.clear();
        for (at, line) in self.lines.iter().enumerate() {
            let Some(line) = line else { continue };
            let id = line.rings.memory();
            match self.memories.iter_mut().find(|memory| memory.id == id) {
                Some(memory) => memory.lines += 1,
                None => {
                    let total = line.rings.pool().1;
                    self.memories.push(Memory { id, total, line: at, lines: 1 });
                }
            }
        }
    }

    /// Returns a memory, if a line is on it.
    pub(super) fn memory(&self, id: MemoryId) -> Option<Memory> {
        self.memories.iter().find(|memory| memory.id == id).copied()
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
            used: 0,
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
        self.survey();
        if let Some(line) = &mut self.lines[at] {
            let id = line.rings.memory();
            let memory = self.memories.iter().find(|memory| memory.id == id);
            let idle = memory.map_or(LEAST, |memory| memory.idle_fill(self.sharers));
            line.target = idle.max(line.rings.least());
            line.rings.refill(line.target);
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
        self.survey();
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

    /// After a burst: a port that used up more than half of what it had to receive into gets more, up to its share of the memory, or to
    /// [`FAIR_FILL`] where that is more.
    ///
    /// What a port has on its fill ring comes back through traffic only, so a port that was busy once keeps it. Hence the cap, and none
    /// takes more than an eighth of what is free beyond the reserve: whoever comes later finds some as well.
    pub(super) fn grow(&mut self, at: usize) {
        let Some(line) = self.lines[at].as_mut() else { return };
        let id = line.rings.memory();
        let memory = self.memories.iter().find(|memory| memory.id == id);
        let share = memory.map_or(0, |memory| memory.share(self.sharers)).clamp(FAIR_FILL, BUSY_FILL);
        let (free, total) = line.rings.pool();
        let filled = line.rings.filled();
        let unused = line.rings.unused();
        line.used = line.used.max(line.target.saturating_sub(unused));
        if unused < line.target / 2 {
            let beyond_reserve = free.saturating_sub(total / RESERVE);
            let most = share.min(beyond_reserve / 8);
            line.target = line.target.max((line.target * 2).min(most));
        }
        line.rings.refill(line.target.saturating_sub(filled));
    }

    /// Looks at what ports need: one that used less than a quarter of what it may have gets by with half of that, down to an idle one's;
    /// one that is silent because its packets find too few frames, which shows on no ring, gets what they need.
    ///
    /// Slowly, since a sender that pauses comes back with a burst: it finds what the one before it needed, if that was
    /// a tenth of a second ago.
    pub(super) fn feed(&mut self, now: Nanos) {
        if now < self.next_feed {
            return;
        }
        self.next_feed = now + FEED;
        let (memories, sharers) = (&self.memories, self.sharers);
        for line in self.lines.iter_mut().flatten().filter(|line| !line.gone) {
            let memory = memories.iter().find(|memory| memory.id == line.rings.memory());
            let idle = memory.map_or(LEAST, |memory| memory.idle_fill(sharers)).max(line.rings.least());
            let used = std::mem::take(&mut line.used);
            line.target = if used < line.target / 4 { line.target / 2 } else { line.target }.max(idle);
            if line.rings.starved() {
                line.target = line.target.max(line.rings.least());
            }
        }
    }
}

/// Sends a line's outbox. A ring that stays full after a wake-up loses the rest: queues are the kernel's and the sender's business.
pub(super) fn send<R: Rings>(line: &mut Line<R>) {
    let mut failed = 0;
    let crossed = line.rings.crossings();
    line.rings.complete();
    // A device that stands still: it may have as much as is free beside it, and not the last frame of the others.
    let in_flight = line.rings.in_flight();
    if in_flight > 0 {
        let room = line.rings.pool().0.saturating_sub(in_flight);
        let mut frames = 0;
        let fits = |packet: &&R::Frame| {
            frames += packet.frames();
            frames <= room
        };
        let kept = line.outbox.iter().take_while(fits).count();
        failed += (line.outbox.len() - kept) as u64;
        line.outbox.truncate(kept);
    }
    while !line.outbox.is_empty() && !line.gone {
        let before = line.outbox.len();
        let bytes_before: u64 = line.outbox.iter().map(|frame| frame.packet_len() as u64).sum();
        let taken = line.rings.submit_tx(&mut line.outbox);
        let bytes_after: u64 = line.outbox.iter().map(|frame| frame.packet_len() as u64).sum();
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
    let across = line.rings.crossings();
    if across != crossed {
        failed += count_crossings(&line.statistics, crossed, across);
    }
    if failed > 0 {
        add(&line.statistics.tx_failed, failed);
    }
}

/// Counts what crossed between two looks; returns how many packets were too large to, and so were not sent though they were taken.
#[cold]
fn count_crossings(statistics: &PortStatistics, before: Crossings, now: Crossings) -> u64 {
    let too_large = now.too_large - before.too_large;
    // Counted as sent with the others that were taken from the outbox.
    let sent = |counter: &AtomicU64, less: u64| counter.store(counter.load(Relaxed) - less, Relaxed);
    sent(&statistics.tx_packets, too_large);
    sent(&statistics.tx_bytes, now.too_large_bytes - before.too_large_bytes);
    add(&statistics.copied_packets, now.packets - before.packets);
    add(&statistics.copied_bytes, now.bytes - before.bytes);
    too_large
}
