//! The engine over rings in memory: thousands of frames, none lost, no root.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam::channel::bounded;
use margay_core::handover::{Errand, Handover};
use margay_core::worker::{TapFilter, TapId};
use margay_core::{
    Counters, DropReason, Frame, Nanos, Output, PacketEvent, PortIndex, Topology, View, WorkerIndex,
};
use margay_io::engine::{Engine, Losses, PortStatistics, Processor};
use margay_io::memory::{MemoryPool, MemoryRings, PooledFrame, Wire};
use margay_io::rings::Rings;

/// Sends every frame to the port named by its first byte; drops, holds, doubles or hands over some.
#[derive(Default)]
struct Switch {
    counters: Counters,
    held: VecDeque<PooledFrame>,
    /// Panics at this kind of frame.
    fatal: Option<u8>,
    /// Panics when something was refused.
    touchy: bool,
    watched: Rc<Cell<u64>>,
    doubled: u64,
    no_spare: Rc<Cell<u64>>,
}

impl Switch {
    fn one(&mut self, port: PortIndex, frame: PooledFrame, out: &mut Output<PooledFrame>) {
        assert_ne!(Some(frame.data()[1]), self.fatal, "more than it can bear");
        self.counters.received += 1;
        match frame.data()[1] {
            0 => {
                self.counters.drops[DropReason::Multicast as usize] += 1;
                if out.events.len() < Output::<PooledFrame>::MAX_EVENTS {
                    out.events.push(event(port));
                }
                out.recycle.push(frame);
            }
            1 => self.held.push_back(frame),
            100 => {
                self.counters.handed_over += 1;
                out.handovers.push((WorkerIndex(1), Handover::new(frame, port, Errand::Take)));
            }
            2 => {
                match out.spare.pop() {
                    Some(mut copy) => {
                        assert!(copy.set_len(frame.data().len()));
                        copy.data_mut().copy_from_slice(frame.data());
                        out.transmit.push((PortIndex(u16::from(frame.data()[0])), copy));
                        self.doubled += 1;
                    }
                    None => self.no_spare.set(self.no_spare.get() + 1),
                }
                out.transmit.push((PortIndex(u16::from(frame.data()[0])), frame));
                self.counters.forwarded += 1;
            }
            _ => {
                self.counters.forwarded += 1;
                out.transmit.push((PortIndex(u16::from(frame.data()[0])), frame));
            }
        }
        self.counters.held = self.held.len() as u64;
    }
}

impl Processor<PooledFrame> for Switch {
    fn handle_burst(
        &mut self,
        _: View<'_>,
        _: Nanos,
        port: PortIndex,
        frames: &mut Vec<PooledFrame>,
        out: &mut Output<PooledFrame>,
    ) {
        for frame in frames.drain(..) {
            self.one(port, frame, out);
        }
    }

    fn handle_timeout(&mut self, _: View<'_>, _: Nanos, out: &mut Output<PooledFrame>) {
        for frame in self.held.drain(..) {
            self.counters.forwarded += 1;
            out.transmit.push((PortIndex(u16::from(frame.data()[0])), frame));
        }
        self.counters.held = 0;
    }

    fn handover_refused(&mut self, refused: &[Handover<PooledFrame>]) {
        self.counters.refuse(refused.len() as u64);
        assert!(!self.touchy, "more than it can bear");
    }

    fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn set_tap(&mut self, _: TapId, filter: Option<TapFilter>) {
        self.watched.set(self.watched.get() + u64::from(filter.is_some()));
    }
}

fn event(port: PortIndex) -> PacketEvent {
    PacketEvent {
        port,
        what: margay_core::What::Dropped(DropReason::Multicast),
        source: None,
        destination: None,
        protocol: 0,
        source_port: 0,
        destination_port: 0,
        attribution: None,
        leg: "",
    }
}

struct Bench {
    pool: Rc<MemoryPool>,
    engine: Engine<MemoryRings, Switch>,
    into: Vec<Wire>,
    from: Vec<Wire>,
    statistics: Vec<Arc<PortStatistics>>,
    events: crossbeam::channel::Receiver<PacketEvent>,
    no_spare: Rc<Cell<u64>>,
}

fn bench(ports: u16, frames: usize) -> Bench {
    let (sender, events) = bounded(8);
    let no_spare = Rc::new(Cell::new(0));
    let switch = Switch { no_spare: Rc::clone(&no_spare), ..Switch::default() };
    let mut engine = Engine::new(switch, sender);
    let pool = MemoryPool::new(frames, 2048);
    let (mut into, mut from, mut statistics) = (Vec::new(), Vec::new(), Vec::new());
    for port in 0..ports {
        let (i, f) = (Wire::default(), Wire::default());
        let numbers = Arc::new(PortStatistics::default());
        engine.add(PortIndex(port), MemoryRings::new(&pool, &i, &f, 512), Arc::clone(&numbers), Nanos(0));
        into.push(i);
        from.push(f);
        statistics.push(numbers);
    }
    Bench { pool, engine, into, from, statistics, events, no_spare }
}

/// A small generator with a fixed seed, so runs repeat.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn thousands_of_frames_and_none_is_lost() {
    let mut b = bench(10, 4096);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    let mut dice = Dice(1);
    let (mut sent, mut dropped, mut arrived) = (0u64, 0u64, 0u64);
    let mut time = Nanos(0);
    for turn in 0..4000 {
        for wire in &b.into {
            for _ in 0..dice.below(20) {
                let kind = dice.below(6) as u8;
                let to = dice.below(10) as u8;
                wire.borrow_mut().push_back(vec![to, kind, 0, 0]);
                sent += 1;
                dropped += u64::from(kind == 0);
            }
        }
        b.engine.turn(view, time);
        time = time + Nanos(50_000);
        if turn % 50 == 0 {
            b.engine.tick(view, time);
        }
        for wire in &b.from {
            arrived += wire.borrow_mut().drain(..).len() as u64;
        }
        let lost: u64 = b.engine.lines().map(|(_, _, rings)| rings.lost()).sum();
        assert_eq!(lost, 0, "turn {turn}");
    }
    // Silence: what is under way ends, and what ports hold shrinks to what is given to idle ones.
    for _ in 0..200 {
        b.engine.turn(view, time);
        time = time + Nanos::from_millis(10);
        b.engine.tick(view, time);
    }
    for wire in &b.from {
        arrived += wire.borrow_mut().drain(..).len() as u64;
    }
    let switch = b.engine.processor();
    assert_eq!(switch.counters.received, sent);
    assert_eq!(switch.counters.endings(), sent);
    assert_eq!(arrived + dropped, sent + switch.doubled);
    assert!(switch.doubled > 0);
    let Losses { events: events_lost, portless, .. } = b.engine.losses();
    assert_eq!((events_lost + b.events.len() as u64, portless), (dropped, 0));
    let received: u64 = b.statistics.iter().map(|s| s.rx_packets.load(Relaxed)).sum();
    let transmitted: u64 = b.statistics.iter().map(|s| s.tx_packets.load(Relaxed)).sum();
    assert_eq!((received, transmitted), (sent, arrived));

    let with_kernel: usize = b.engine.lines().map(|(_, _, rings)| rings.filled() + rings.in_flight()).sum();
    assert!(b.engine.lines().all(|(_, _, rings)| rings.in_flight() == 0));
    let spares = b.pool.total() - b.pool.free() - with_kernel;
    assert!(spares <= 16, "{spares} frames are nowhere");
    // Everything comes back in the end.
    for port in 0..10 {
        assert_eq!(b.engine.remove(PortIndex(port)).len(), 1);
    }
    drop(b.engine);
    assert_eq!(b.pool.free(), b.pool.total());
}

#[test]
fn many_idle_ports_leave_most_of_the_memory_free() {
    for ports in [2, 30, 110, 250] {
        let b = bench(ports, 16_384);
        let free = b.pool.free();
        assert!(free > 16_384 / 3, "{ports} ports leave {free}");
        assert!(b.engine.lines().all(|(_, _, rings)| rings.filled() >= 8), "{ports}");
    }
}

#[test]
fn a_busy_port_grows_and_shrinks_again() {
    let mut b = bench(2, 4096);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    let mut time = Nanos(0);
    let before = b.engine.lines().next().unwrap().2.filled();
    for _ in 0..50 {
        for _ in 0..128 {
            b.into[0].borrow_mut().push_back(vec![1, 9, 0, 0]);
        }
        b.engine.turn(view, time);
        time = time + Nanos(10_000);
    }
    let busy = b.engine.lines().next().unwrap().2.filled();
    assert!(busy >= 256 && before <= 64, "{before} then {busy}");
    // Quiet, then a trickle: what it no longer needs is used up and not replaced.
    for _ in 0..600 {
        time = time + Nanos::from_millis(10);
        b.engine.tick(view, time);
        b.into[0].borrow_mut().push_back(vec![1, 9, 0, 0]);
        let first = b.engine.lines().next().unwrap().1;
        b.engine.activate(first, time);
        b.engine.turn(view, time);
    }
    let after = b.engine.lines().next().unwrap().2.filled();
    assert!(after <= 128, "{after}");
}

#[test]
fn ports_that_were_busy_once_leave_frames_for_one_that_comes_later() {
    const BEFORE: u16 = 48;
    let mut b = bench(BEFORE + 1, 16_384);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    let mut time = Nanos(0);
    for port in 0..=BEFORE {
        let ring = b.engine.lines().nth(usize::from(port)).unwrap().1;
        b.engine.activate(ring, time);
        for _ in 0..40 {
            let arrived = std::iter::repeat_n(vec![0, 9, 0, 0], 256);
            let waiting = b.into[usize::from(port)].borrow().len();
            b.into[usize::from(port)].borrow_mut().extend(arrived.take(256 - waiting.min(256)));
            b.engine.turn(view, time);
            time = time + Nanos(10_000);
        }
        // It falls silent, with what it has on its ring.
        b.into[usize::from(port)].borrow_mut().clear();
        time = time + Nanos::from_millis(10);
        b.engine.tick(view, time);
        b.from[0].borrow_mut().clear();
    }
    let filled: Vec<_> = b.engine.lines().map(|(_, _, rings)| rings.filled()).collect();
    assert!(filled.iter().all(|filled| (128..=256).contains(filled)), "{filled:?}");
    assert!(b.pool.free() > 16_384 / 8, "{} free", b.pool.free());
}

#[test]
fn one_burst_does_not_make_a_ring_grow() {
    let mut b = bench(2, 4096);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    for turn in 0..100 {
        b.into[0].borrow_mut().extend(std::iter::repeat_n(vec![1, 9, 0, 0], 64));
        b.engine.turn(view, Nanos(turn * 10_000));
    }
    let filled = b.engine.lines().next().unwrap().2.filled();
    assert!(filled <= 128, "one turn's worth is taken a turn: {filled}");
}

#[test]
fn a_silent_port_is_polled_only_after_its_event() {
    let mut b = bench(2, 1024);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    let time = Nanos::from_millis(5);
    b.engine.tick(view, time);
    b.into[0].borrow_mut().push_back(vec![1, 9]);
    assert_eq!(b.engine.turn(view, time), 0);
    let first = b.engine.lines().next().unwrap().1;
    b.engine.activate(first, time);
    assert_eq!(b.engine.turn(view, time), 1);
    assert_eq!(b.from[1].borrow().len(), 1);
}

#[test]
fn an_unplugged_port_loses_its_frames_and_no_memory() {
    let mut b = bench(2, 1024);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    let second = b.engine.lines().nth(1).unwrap().1;
    b.engine.rings_mut(second).unwrap().unplug();
    for _ in 0..10 {
        b.into[0].borrow_mut().push_back(vec![1, 9]);
    }
    assert_eq!(b.engine.turn(view, Nanos(0)), 10);
    assert!(b.statistics[1].gone.load(Relaxed));
    // Frames for a port that is gone, and for one that never was.
    b.into[0].borrow_mut().push_back(vec![1, 9]);
    b.into[0].borrow_mut().push_back(vec![200, 9]);
    b.engine.turn(view, Nanos(0));
    assert!(b.statistics[1].tx_failed.load(Relaxed) >= 1);
    assert_eq!(b.engine.losses().portless, 1);
    assert_eq!(b.no_spare.get(), 0);
    drop(b.engine);
    assert_eq!(b.pool.free(), b.pool.total());
}

#[test]
fn a_processor_that_panics_loses_its_burst_and_no_memory() {
    let mut b = bench(3, 1024);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    let (told, _packets) = bounded(1);
    b.engine.watch(TapId(1), TapFilter::default(), told);
    let watched = Rc::new(Cell::new(0));
    b.engine.replace(Switch { fatal: Some(77), watched: Rc::clone(&watched), ..Switch::default() });
    assert_eq!(watched.get(), 1, "who watched before watches still");
    // One that is held, one for a worker that there is not, two that are sent, the fatal one, two behind it.
    for kind in [1, 100, 9, 9, 77, 9, 9] {
        b.into[0].borrow_mut().push_back(vec![2, kind]);
    }
    let turned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| b.engine.turn(view, Nanos(0))));
    assert!(turned.is_err());
    let interrupted = b.engine.interrupted(3).expect("it was the processor's");
    assert_eq!(interrupted.port, Some(PortIndex(0)));
    let counters = interrupted.counters;
    assert_eq!((counters.received, counters.forwarded, counters.held), (7, 2, 0));
    assert_eq!((counters.handed_over, counters.dropped(DropReason::HandoverFull)), (0, 1));
    assert_eq!(counters.dropped(DropReason::WorkerPanicked), 4, "the held one, the fatal one, and two");
    assert_eq!(counters.beginnings(), counters.endings());
    assert_eq!(b.from[2].borrow().len(), 2, "what was finished has left");
    assert_eq!(b.engine.interrupted(0), None, "once");

    b.engine.replace(Switch { watched: Rc::clone(&watched), ..Switch::default() });
    assert_eq!(watched.get(), 2);
    // A closed port keeps what it has until that is discarded or the port is open again.
    b.engine.close(PortIndex(0));
    b.into[0].borrow_mut().push_back(vec![2, 9]);
    b.into[1].borrow_mut().push_back(vec![2, 9]);
    assert_eq!(b.engine.turn(view, Nanos(0)), 1, "the others go on");
    assert_eq!(b.engine.discard(PortIndex(0)), 1);
    b.engine.open(PortIndex(0), Nanos(0));
    b.into[0].borrow_mut().push_back(vec![2, 9]);
    assert_eq!(b.engine.turn(view, Nanos(0)), 1);
    drop(b.engine);
    assert_eq!(b.pool.free(), b.pool.total());
}

#[test]
fn a_processor_that_panics_at_what_was_refused_is_the_one_that_did() {
    let mut b = bench(3, 1024);
    let topology = Topology::default();
    let view = View { snapshot: None, topology: &topology };
    b.engine.replace(Switch { touchy: true, ..Switch::default() });
    for kind in [9, 100, 100] {
        b.into[0].borrow_mut().push_back(vec![2, kind]);
    }
    let turned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| b.engine.turn(view, Nanos(0))));
    assert!(turned.is_err());
    let counters = b.engine.interrupted(2).expect("it was the processor's").counters;
    assert_eq!((counters.received, counters.forwarded, counters.handed_over), (3, 1, 0));
    assert_eq!(counters.dropped(DropReason::HandoverFull), 2, "each once");
    assert_eq!(counters.beginnings(), counters.endings());
    assert_eq!(b.from[2].borrow().len(), 1);
    drop(b.engine);
    assert_eq!(b.pool.free(), b.pool.total());
}

#[test]
fn a_panic_outside_of_the_processor_is_nobodys() {
    let mut b = bench(1, 64);
    assert_eq!(b.engine.interrupted(0), None);
    assert!(b.engine.ask(|switch| switch.counters.received) == 0);
    assert_eq!(b.engine.interrupted(0), None);
}
