//! What a packet of a known flow costs in memory.
//!
//! One worker with a table for a quarter more flows than there are, frames in memory, flows opened beforehand and visited in a random order. A sample is a pass of some 60 µs; the result is
//! the median over samples, less the cost of putting the frames back to their first form, which is measured the same way.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Instant;

use margay_core::frame::MemoryFrame;
use margay_core::{Frame, Nanos, Output, Topology, View, Worker, WorkerConfig};
use margay_policy_engine::snapshot::Snapshot;

use crate::numbers::median;
use crate::world::{A, B, answer, frame};

/// Packets of a burst: what the shell takes from a port at once.
pub const BURST: usize = margay_io::engine::BURST;
/// Bursts of a sample.
const BURSTS: usize = 16;

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

/// Returns nanoseconds per packet, and allocations per million packets; `allocated` tells how many there were so far.
///
/// Panics: when a flow is not allowed by the snapshot.
pub fn measure(
    snapshot: &Snapshot,
    topology: &Topology,
    flows: usize,
    allocated: impl Fn() -> u64,
) -> (f64, f64) {
    let default = WorkerConfig::default();
    let config = WorkerConfig { max_flows: default.max_flows.max(flows + flows / 4), ..default };
    let mut worker: Worker<MemoryFrame> = Worker::new(config, Nanos(0));
    let mut out = Output::new();
    let view = View { snapshot: Some(snapshot), topology };
    let mut now = Nanos::from_secs(1);
    // An answer settles each of them, so that none is put out for another.
    for flow in 0..flows {
        for (port, frame) in [(A, frame(flow)), (B, answer(flow))] {
            worker.handle_frame(view, now, port, MemoryFrame::new(&frame), &mut out);
            out.transmit.clear();
        }
    }
    // An answer may come from a port that pods may not send to; its flow is there all the same.
    assert_eq!(worker.counters().flows, flows as u64, "every flow was allowed");
    // One after the other in memory, as they are sent: reading them is not what is measured.
    let templates = in_order(&shuffled(flows));
    let mut spare: VecDeque<MemoryFrame> = (0..2 * BURST).map(|_| MemoryFrame::new(&templates[0])).collect();
    let mut cursor = 0;
    let mut restore = |spare: &mut VecDeque<MemoryFrame>| {
        for slot in spare.iter_mut().take(BURST) {
            slot.data_mut().copy_from_slice(&templates[cursor]);
            cursor = (cursor + 1) % templates.len();
        }
    };
    let (mut whole, mut copies) = (Vec::new(), Vec::new());
    let mut burst: Vec<MemoryFrame> = Vec::with_capacity(BURST);
    let mut allocations = 0;
    let mut packets = 0u64;
    for _ in 0..400 {
        let start = Instant::now();
        for _ in 0..BURSTS {
            restore(&mut spare);
            black_box(&mut spare);
        }
        copies.push(start.elapsed().as_nanos() as f64 / (BURST * BURSTS) as f64);
        let start = Instant::now();
        for _ in 0..BURSTS {
            restore(&mut spare);
            let before = allocated();
            now = now + Nanos(1_000);
            burst.extend(spare.drain(..BURST));
            worker.handle_burst(view, now, A, &mut burst, &mut out);
            spare.extend(out.transmit.drain(..).map(|(_, frame)| frame));
            allocations += allocated() - before;
        }
        whole.push(start.elapsed().as_nanos() as f64 / (BURST * BURSTS) as f64);
        packets += (BURST * BURSTS) as u64;
    }
    let counters = worker.counters();
    assert_eq!(counters.flow_misses, flows as u64, "every measured packet was a flow hit");
    (median(&whole) - median(&copies), allocations as f64 * 1e6 / packets as f64)
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
