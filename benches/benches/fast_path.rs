//! The in-memory fast path: parse, flow hit, verdict, rewrite, counters; no input or output.
//!
//! Method: one worker, frames in memory, flows opened beforehand and visited in a random order. A sample is a pass of some 60 µs;
//! reported is the median over samples of nanoseconds per packet, less the cost of putting the frame back to its first form, which
//! is measured the same way. A dependent-add loop beside it gives the core clock. Allocations are counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use benches::flow_hit::{BURST, measure, shuffled};
use benches::machine;
use benches::numbers::median;
use benches::world::{self, frame};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

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
    println!("   bursts of {BURST}, flows in random order; dependent steps per ns {:.2}", gigahertz());
    println!("{:<44} {:>10} {:>12} {:>22}", "case", "ns/packet", "Mpps/core", "allocations/M packets");
    // `cargo bench -p benches --bench fast_path -- 1000_rules/1000_flows` runs one case, for a profiler.
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| name.contains(word.as_str()));
    let mut base = None;
    for (rules, flows) in
        [(0, 1_000), (1_000, 1_000), (0, 65_536), (1_000, 65_536), (1_000, 1_000_000), (1_000, 10_000_000)]
    {
        let name = format!("pipeline/known_flow/64B/{rules}_rules/{flows}_flows");
        if !wanted(&name) {
            continue;
        }
        let (mut engine, topology) = world::two_pods(rules);
        let snapshot = engine.publish();
        let (ns, allocations) = measure(&snapshot, &topology, flows, || ALLOCATIONS.load(Ordering::Relaxed));
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
    println!("   must: 50 ns and no allocation at 65,536 flows, 80 ns at a million; goal: 40 and 55 ns");
}
