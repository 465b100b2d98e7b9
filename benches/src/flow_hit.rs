//! What a packet of a known flow costs in memory.
//!
//! One worker with a table for a quarter more flows than there are, frames in memory, flows opened beforehand and visited in a random
//! order, all of them before any comes again. A sample is a pass of some 60 µs; the result is the median over samples, less the cost of
//! putting the frames back to their first form, which is measured the same way.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Instant;

use margay_core::frame::MemoryFrame;
use margay_core::{Counters, Frame, Nanos, Output, Topology, View, Worker, WorkerConfig};
use margay_policy_engine::snapshot::Snapshot;

use crate::numbers::median;
use crate::world::{A, B, answer, frame};

/// Packets of a burst: what the shell takes from a port at once.
pub const BURST: usize = margay_io::engine::BURST;
/// Bursts of a sample.
const BURSTS: usize = 16;
/// Packets of a sample.
pub const PACKETS: usize = BURST * BURSTS;
/// Samples of a case.
const SAMPLES: usize = 400;

/// Returns the frames of flows in this order, one after the other on huge pages.
fn in_order(order: &[u32]) -> Vec<[u8; 64]> {
    let mut frames = Vec::with_capacity(order.len());
    margay_accel::advise_huge_pages(frames.spare_capacity_mut());
    frames.extend(order.iter().map(|flow| {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(&frame(*flow as usize));
        bytes
    }));
    frames
}

/// A worker that knows all flows of which packets will come.
#[derive(Debug)]
pub struct KnownFlows {
    worker: Worker<MemoryFrame>,
    out: Output<MemoryFrame>,
    flows: usize,
    /// One after the other in memory, as they are sent: reading them is not what is measured.
    templates: Vec<[u8; 64]>,
    /// The next one that the worker will see.
    cursor: usize,
    spare: VecDeque<MemoryFrame>,
    burst: Vec<MemoryFrame>,
    now: Nanos,
}

impl KnownFlows {
    /// Opens the flows.
    ///
    /// Panics: when one is not allowed by the snapshot.
    pub fn open(view: View<'_>, flows: usize) -> Self {
        let default = WorkerConfig::default();
        let config = WorkerConfig { max_flows: default.max_flows.max(flows + flows / 4), ..default };
        let mut worker: Worker<MemoryFrame> = Worker::new(config, Nanos(0));
        let mut out = Output::new();
        let now = Nanos::from_secs(1);
        // An answer settles each of them, so that none is put out for another.
        for flow in 0..flows {
            for (port, frame) in [(A, frame(flow)), (B, answer(flow))] {
                worker.handle_frame(view, now, port, MemoryFrame::new(&frame), &mut out);
                out.transmit.clear();
            }
        }
        // An answer may come from a port that pods may not send to; its flow is there all the same.
        assert_eq!(worker.counters().flows, flows as u64, "every flow was allowed");
        let templates = in_order(&shuffled(flows));
        let spare = (0..2 * BURST).map(|_| MemoryFrame::new(&templates[0])).collect();
        let burst = Vec::with_capacity(BURST);
        Self { worker, out, flows, templates, cursor: 0, spare, burst, now }
    }

    /// Puts the frames from this place on where the next burst is taken from; returns the place behind them.
    fn restore(&mut self, mut place: usize) -> usize {
        for slot in self.spare.iter_mut().take(BURST) {
            slot.data_mut().copy_from_slice(&self.templates[place]);
            place = (place + 1) % self.templates.len();
        }
        black_box(&mut self.spare);
        place
    }

    /// Takes a burst through the worker.
    pub fn burst(&mut self, view: View<'_>) {
        self.now = self.now + Nanos(1_000);
        self.burst.extend(self.spare.drain(..BURST));
        self.worker.handle_burst(view, self.now, A, &mut self.burst, &mut self.out);
        self.spare.extend(self.out.transmit.drain(..).map(|(_, frame)| frame));
    }

    /// Returns nanoseconds per packet of a sample, and of restoring frames alone, which is part of it. `burst` is to take one burst.
    pub fn sample(&mut self, mut burst: impl FnMut(&mut Self)) -> (f64, f64) {
        // Half the table away: the frames that are only restored were last read as long ago as those that the worker sees after them.
        let mut aside = (self.cursor + self.templates.len() / 2) % self.templates.len();
        let start = Instant::now();
        for _ in 0..BURSTS {
            aside = self.restore(aside);
        }
        let copies = start.elapsed().as_nanos() as f64 / PACKETS as f64;
        let start = Instant::now();
        for _ in 0..BURSTS {
            self.cursor = self.restore(self.cursor);
            burst(self);
        }
        let spent = start.elapsed();
        (spent.as_nanos() as f64 / PACKETS as f64, copies)
    }

    /// Returns what the worker counted.
    pub fn counters(&self) -> &Counters {
        self.worker.counters()
    }
}

/// Returns nanoseconds per packet, and allocations per million packets; `allocated` tells how many there were so far.
///
/// Panics: when a flow is not allowed by the snapshot.
pub fn measure(
    snapshot: &Snapshot,
    topology: &Topology,
    flows: usize,
    allocated: impl Fn() -> u64,
) -> (f64, f64) {
    let view = View { snapshot: Some(snapshot), topology };
    let mut known = KnownFlows::open(view, flows);
    let (mut whole, mut copies) = (Vec::new(), Vec::new());
    let mut allocations = 0;
    for _ in 0..SAMPLES {
        let (all, copy) = known.sample(|known| {
            let before = allocated();
            known.burst(view);
            allocations += allocated() - before;
        });
        whole.push(all);
        copies.push(copy);
    }
    assert_eq!(known.counters().flow_misses, known.flows as u64, "every measured packet was a flow hit");
    (median(&whole) - median(&copies), allocations as f64 * 1e6 / (SAMPLES * PACKETS) as f64)
}

/// Returns the order in which flows are visited: a fixed shuffle.
pub fn shuffled(flows: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..flows as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for at in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (state >> 33) as usize % (at + 1));
    }
    order
}
