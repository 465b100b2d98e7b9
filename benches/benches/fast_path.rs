//! The in-memory fast path: parse, flow hit, verdict, rewrite, counters; no input or output.
//!
//! Method: one worker, frames in memory, flows opened beforehand and visited in a random order. A sample is a pass of some 60 µs;
//! reported is the median over samples of nanoseconds per packet, less the cost of putting the frame back to its first form, which
//! is measured the same way. A dependent-add loop beside it gives the core clock. Allocations are counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use benches::machine;
use benches::numbers::median;
use benches::world::{self, A, frame};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use margay_core::frame::MemoryFrame;
use margay_core::{Frame, Nanos, Output, Topology, View, Worker, WorkerConfig};
use margay_policy_engine::snapshot::Snapshot;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on unchanged to the system allocator; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, that is from the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Nanoseconds per packet, and allocations per million packets.
fn measure(snapshot: &Snapshot, topology: &Topology, flows: usize) -> (f64, f64) {
    let config = WorkerConfig { max_flows: 2_000_000, ..WorkerConfig::default() };
    let mut worker: Worker<MemoryFrame> = Worker::new(config, Nanos(0));
    let mut out = Output::new();
    let view = View { snapshot: Some(snapshot), topology };
    let mut now = Nanos::from_secs(1);
    let templates: Vec<Vec<u8>> = (0..flows).map(frame).collect();
    let mut spare: VecDeque<MemoryFrame> = (0..64).map(|_| MemoryFrame::new(&templates[0])).collect();
    for template in &templates {
        worker.handle_frame(view, now, A, MemoryFrame::new(template), &mut out);
        out.transmit.clear();
    }
    assert_eq!(worker.counters().forwarded, flows as u64, "every flow was allowed");
    let order = shuffled(flows);
    const BURST: usize = 32;
    const BURSTS: usize = 32;
    let mut cursor = 0;
    let mut restore = |spare: &mut VecDeque<MemoryFrame>| {
        for slot in spare.iter_mut().take(BURST) {
            let template = &templates[order[cursor] as usize];
            slot.data_mut()[..template.len()].copy_from_slice(template);
            cursor = (cursor + 1) % order.len();
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
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            now = now + Nanos(1_000);
            burst.extend(spare.drain(..BURST));
            worker.handle_burst(view, now, A, &mut burst, &mut out);
            spare.extend(out.transmit.drain(..).map(|(_, frame)| frame));
            allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
        }
        whole.push(start.elapsed().as_nanos() as f64 / (BURST * BURSTS) as f64);
        packets += (BURST * BURSTS) as u64;
    }
    let counters = worker.counters();
    assert_eq!(counters.flow_misses, flows as u64, "every measured packet was a flow hit");
    (median(&whole) - median(&copies), allocations as f64 * 1e6 / packets as f64)
}

/// The order in which flows are visited: a fixed shuffle.
fn shuffled(flows: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..flows as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for at in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (state >> 33) as usize % (at + 1));
    }
    order
}

/// For scale: a general parser and the standard hash map over the same frames, looking a flow up and counting it. No checks, no
/// verdict, no rewriting.
fn plain(flows: usize) -> f64 {
    type Key = (Ipv4Addr, Ipv4Addr, u16, u16, u8);
    fn key(bytes: &[u8]) -> Option<Key> {
        let packet = SlicedPacket::from_ethernet(bytes).ok()?;
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport)
        else {
            return None;
        };
        let header = ip.header();
        Some((
            header.source_addr(),
            header.destination_addr(),
            udp.source_port(),
            udp.destination_port(),
            header.protocol().0,
        ))
    }
    let frames: Vec<Vec<u8>> = (0..flows).map(frame).collect();
    let mut table: HashMap<Key, (u64, u64)> = frames.iter().filter_map(|f| Some((key(f)?, (0, 0)))).collect();
    assert_eq!(table.len(), flows, "every frame has a key of its own");
    let order = shuffled(flows);
    let mut cursor = 0;
    let mut samples = Vec::new();
    for _ in 0..400 {
        let start = Instant::now();
        for _ in 0..1024 {
            let bytes = &frames[order[cursor] as usize];
            cursor = (cursor + 1) % order.len();
            if let Some(counters) = key(black_box(bytes)).and_then(|key| table.get_mut(&key)) {
                counters.0 += 1;
                counters.1 += bytes.len() as u64;
            }
        }
        samples.push(start.elapsed().as_nanos() as f64 / 1024.0);
    }
    median(&samples)
}

/// Core clock by a chain of dependent additions, one cycle each.
fn gigahertz() -> f64 {
    let start = Instant::now();
    let mut x = 1u64;
    for _ in 0..2_000_000 {
        x = black_box(x).wrapping_add(1);
    }
    black_box(x);
    // black_box goes through memory: a store-to-load forward of about five cycles is part of each step.
    2_000_000.0 / start.elapsed().as_nanos() as f64
}

fn main() {
    machine::describe("fast path in memory: parse, flow hit, verdict, rewrite, counters");
    println!("   bursts of 32, flows in random order; dependent steps per ns {:.2}", gigahertz());
    println!("{:<44} {:>10} {:>12} {:>22}", "case", "ns/packet", "Mpps/core", "allocations/M packets");
    // `cargo bench -p benches --bench fast_path -- 1000_rules/1000_flows` runs one case, for a profiler.
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| name.contains(word.as_str()));
    let mut base = None;
    for (rules, flows) in [(0, 1_000), (1_000, 1_000), (0, 65_536), (1_000, 65_536), (1_000, 1_000_000)] {
        let name = format!("pipeline/known_flow/64B/{rules}_rules/{flows}_flows");
        if !wanted(&name) {
            continue;
        }
        let (mut engine, topology) = world::two_pods(rules);
        let snapshot = engine.publish();
        let (ns, allocations) = measure(&snapshot, &topology, flows);
        println!("{name:<44} {ns:>10.1} {:>12.1} {allocations:>22.1}", 1000.0 / ns);
        if flows == 65_536 {
            match base {
                None => base = Some(ns),
                Some(none) => {
                    println!("{:<44} {:>9.3}x", "  1,000 rules over none, at 65,536 flows", ns / none)
                }
            }
        }
    }
    for flows in [1_000, 65_536, 1_000_000] {
        let name = format!("peer: etherparse + std HashMap/{flows}_flows");
        if !wanted(&name) {
            continue;
        }
        let ns = plain(flows);
        println!("{name:<44} {ns:>10.1} {:>12.1} {:>22}", 1000.0 / ns, "-");
    }
    println!(
        "   target: at most 60 ns and no allocation at 65,536 flows; goal 40 ns, and 55 ns at a million"
    );
}
