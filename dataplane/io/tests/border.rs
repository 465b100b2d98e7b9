//! The engine over two memories, without a kernel: thousands of packets to and fro, each copied once, no frame of either lost.

mod support;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crossbeam::channel::bounded;
use margay_core::{Frame, Nanos, PortIndex, Topology, View};
use margay_io::engine::{Engine, PortStatistics};
use margay_io::memory::{MemoryPool, MemoryRings, Wire};
use margay_io::rings::{MemoryId, Rings};
use support::Patch;

const OWN: MemoryId = MemoryId(1);
const NOW: Nanos = Nanos::from_millis(1);

/// Port 0 and 1 of the shared memory, port 2 of its own; 0 and 2 are joined.
struct Bench {
    pools: [Rc<MemoryPool>; 2],
    engine: Engine<MemoryRings, Patch>,
    into: Vec<Wire>,
    from: Vec<Wire>,
    statistics: Vec<Arc<PortStatistics>>,
    time: Nanos,
}

impl Bench {
    fn new(shared: usize, own: usize, size_of_own: usize) -> Self {
        let patch = Patch::new(&[(0, 2)], Arc::new(AtomicBool::new(false)));
        let mut engine = Engine::new(patch, bounded(8).0);
        let pools = [MemoryPool::new(shared, 2048), MemoryPool::of(OWN, own, size_of_own)];
        let (mut into, mut from, mut statistics) = (Vec::new(), Vec::new(), Vec::new());
        for (port, pool) in [(0, 0), (1, 0), (2, 1)] {
            let (i, f) = (Wire::default(), Wire::default());
            let numbers = Arc::new(PortStatistics::default());
            let rings = MemoryRings::new(&pools[pool], &i, &f, 512);
            engine.add(PortIndex(port), rings, Arc::clone(&numbers), NOW);
            into.push(i);
            from.push(f);
            statistics.push(numbers);
        }
        Self { pools, engine, into, from, statistics, time: NOW }
    }

    fn turn(&mut self) {
        let topology = Topology::default();
        let view = View { snapshot: None, topology: &topology };
        self.time = self.time + Nanos(50_000);
        self.engine.turn(view, self.time);
        self.engine.tick(view, self.time);
    }

    fn arrived(&self, port: usize) -> Vec<Vec<u8>> {
        self.from[port].borrow_mut().drain(..).collect()
    }

    /// Ends everything: each frame is back where it belongs.
    fn end(mut self) {
        for port in 0..3 {
            self.engine.remove(PortIndex(port));
        }
        drop(self.engine);
        for pool in &self.pools {
            assert_eq!(pool.free(), pool.total());
        }
    }
}

#[test]
fn packets_cross_between_memories_as_they_are_and_no_frame_is_lost() {
    let mut bench = Bench::new(1024, 512, 2048);
    let (mut sent, mut bytes) = (0u64, 0u64);
    for turn in 0..2_000usize {
        let batch: Vec<Vec<u8>> =
            (0..turn % 23).map(|n| vec![(turn * 7 + n) as u8; 60 + (turn + 13 * n) % 1900]).collect();
        for (here, there) in [(0, 2), (2, 0)] {
            bench.into[here].borrow_mut().extend(batch.iter().cloned());
            bench.turn();
            assert_eq!(bench.arrived(there), batch, "turn {turn}");
        }
        sent += batch.len() as u64;
        bytes += batch.iter().map(|packet| packet.len() as u64).sum::<u64>();
    }
    for port in [0, 2] {
        let numbers = &bench.statistics[port];
        assert_eq!((numbers.tx_packets.load(Relaxed), numbers.tx_bytes.load(Relaxed)), (sent, bytes));
        assert_eq!((numbers.copied_packets.load(Relaxed), numbers.copied_bytes.load(Relaxed)), (sent, bytes));
        assert_eq!(numbers.tx_failed.load(Relaxed), 0);
    }
    assert!(bench.engine.lines().all(|(_, _, rings)| rings.lost() == 0));
    bench.end();
}

#[test]
fn a_full_memory_is_a_full_ring_and_what_is_too_large_is_not_sent() {
    let mut bench = Bench::new(1024, 64, 1000);
    // Somebody has all of it: nothing crosses, and nothing that is the shared memory's waits for it.
    let mut holder = MemoryRings::new(&bench.pools[1], &Wire::default(), &Wire::default(), 8);
    let held: Vec<_> = std::iter::from_fn(|| holder.take_spare()).collect();
    let free = bench.pools[0].free();
    bench.into[0].borrow_mut().extend((0..60).map(|n| vec![n; 500]));
    bench.turn();
    assert_eq!(bench.arrived(2), Vec::<Vec<u8>>::new());
    assert!(bench.pools[0].free() + 60 >= free);
    let sent_and_not = |bench: &Bench| {
        let numbers = &bench.statistics[2];
        (numbers.tx_packets.load(Relaxed), numbers.tx_failed.load(Relaxed))
    };
    assert_eq!(sent_and_not(&bench), (0, 60));
    // As soon as there is some, as much crosses as there is, and the rest after it.
    drop(held);
    bench.into[0].borrow_mut().extend((0..60).map(|n| vec![n; 500]));
    bench.turn();
    assert_eq!(bench.arrived(2).len(), 60);
    let (sent, failed) = sent_and_not(&bench);
    assert_eq!((sent, failed), (60, 60));

    // One that no frame there takes is lost by itself; the others go on.
    bench.into[0].borrow_mut().extend([vec![1; 400], vec![2; 1001], vec![3; 1000]]);
    bench.turn();
    assert_eq!(bench.arrived(2), [vec![1; 400], vec![3; 1000]]);
    let numbers = &bench.statistics[2];
    assert_eq!((numbers.tx_packets.load(Relaxed), numbers.tx_failed.load(Relaxed)), (sent + 2, failed + 1));
    assert_eq!(numbers.tx_bytes.load(Relaxed), sent * 500 + 1400);
    bench.end();
}

#[test]
fn a_memory_of_its_own_is_given_to_receive_into_from_the_beginning() {
    let bench = Bench::new(4096, 4096, 2048);
    let filled: Vec<_> = bench.engine.lines().map(|(_, _, rings)| (rings.memory(), rings.filled())).collect();
    assert_eq!(filled, [(MemoryId::SHARED, 64), (MemoryId::SHARED, 64), (OWN, 512)]);
    let mut rings = MemoryRings::new(&bench.pools[1], &Wire::default(), &Wire::default(), 8);
    let frame = rings.take_spare().unwrap();
    assert_eq!((MemoryRings::memory_of(&frame), frame.data().len()), (OWN, 0));
    drop(frame);
    bench.end();
}
