//! The in-memory fast path: parse, flow hit, verdict, rewrite, counters; no input or output.
//!
//! Method: one worker, frames in memory, flows opened beforehand and visited in a random order. A sample is a pass of some 60 µs;
//! reported is the median over samples of nanoseconds per packet, less the cost of putting the frame back to its first form, which
//! is measured the same way. A dependent-add loop beside it gives the core clock. Allocations are counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use margay_core::frame::MemoryFrame;
use margay_core::topology::{Port, PortKind, TopologyBuilder};
use margay_core::{Frame, Nanos, Output, PortIndex, Topology, View, Worker, WorkerConfig};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{
    Action, Entity, Namespace, NamespacedName, Object, Order, Pod, Policy, PolicyFlags, PolicyKey,
    PolicyKind, PortMatch, Rule,
};
use margay_policy_engine::packet::EndpointId;
use margay_policy_engine::selector::Selector;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::{MacAddr, build, protocol};

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

const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn object(name: &str, address: IpAddr) -> Object {
    let labels =
        [("app", name), ("projectcalico.org/namespace", "ns"), ("projectcalico.org/orchestrator", "k8s")];
    Object::Pod(Arc::new(Pod {
        key: NamespacedName { namespace: "ns".to_owned(), name: name.to_owned() },
        uid: String::new(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        service_account: None,
        node: Some("node".to_owned()),
        host_network: false,
        finished: false,
        addresses: vec![address],
        ports: Vec::new(),
        started: String::new(),
        annotations: Default::default(),
    }))
}

/// `rules` rules on the receiver, the last of which allows the traffic.
fn policy(rules: usize) -> Object {
    let rule = |destination| Rule {
        action: Action::Allow,
        ip_version: None,
        protocol: Some(protocol::UDP),
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Entity::default(),
        destination,
        unenforced: Vec::new(),
        annotations: Default::default(),
    };
    let port = |n: usize| PortMatch::Range {
        first: 20_000 + (n % 40_000) as u16,
        last: 20_000 + (n % 40_000) as u16,
    };
    let mut ingress: Vec<Rule> =
        (0..rules).map(|n| rule(Entity { ports: vec![port(n)], ..Entity::default() })).collect();
    ingress.push(rule(Entity::default()));
    Object::Policy(Arc::new(Policy {
        key: PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: "bench".to_owned() },
        tier: "default".to_owned(),
        order: Order(1.0),
        selector: Some(Selector::parse("app == 'b'").expect("selector")),
        governs_ingress: true,
        governs_egress: false,
        ingress,
        egress: Vec::new(),
        flags: PolicyFlags::default(),
        staged: None,
    }))
}

fn world(rules: usize) -> (Engine, Topology) {
    let mut engine = Engine::new();
    let namespace = Namespace { name: "ns".to_owned(), labels: Default::default() };
    engine.apply(Change::Upsert(Object::Namespace(Arc::new(namespace))));
    engine.apply(Change::Upsert(policy(rules)));
    let mut builder = TopologyBuilder::default();
    for (index, name, last) in [(A, "a", 2u8), (B, "b", 3)] {
        let addresses = vec![IpAddr::V4(address(last))];
        engine.apply(Change::Upsert(object(name, addresses[0])));
        engine.apply(Change::Endpoint(LocalEndpoint {
            id: EndpointId(u32::from(index.0)),
            pod: NamespacedName { namespace: "ns".to_owned(), name: name.to_owned() },
            uid: String::new(),
            addresses: addresses.clone(),
        }));
        let endpoint = EndpointId(u32::from(index.0));
        let kind = PortKind::Pod { endpoint, pod_mac: mac(0x80 + index.0 as u8), addresses };
        builder.ports.push(Port {
            index,
            name: name.to_owned(),
            kind,
            mac: mac(0x10 + index.0 as u8),
            mtu: 1500,
        });
    }
    (engine, builder.build(1))
}

fn frame(flow: usize) -> Vec<u8> {
    let (sport, dport) = (1024 + (flow % 60_000) as u16, 53 + (flow / 60_000) as u16);
    let macs = (mac(0x80), mac(0x10));
    build::udp(macs, (IpAddr::V4(address(2)), sport), (IpAddr::V4(address(3)), dport), &[0; 22])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

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
    let mut order: Vec<u32> = (0..flows as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for at in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (state >> 33) as usize % (at + 1));
    }
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
    (median(whole) - median(copies), allocations as f64 * 1e6 / packets as f64)
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
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("fast path in memory; load average {}; dependent steps per ns {:.2}", load.trim(), gigahertz());
    println!("{:<44} {:>10} {:>12} {:>22}", "case", "ns/packet", "Mpps/core", "allocations/M packets");
    let mut base = None;
    for (rules, flows) in [(0, 1_000), (1_000, 1_000), (0, 65_536), (1_000, 65_536), (1_000, 1_000_000)] {
        let (mut engine, topology) = world(rules);
        let snapshot = engine.publish();
        let (ns, allocations) = measure(&snapshot, &topology, flows);
        let name = format!("pipeline/known_flow/64B/{rules}_rules/{flows}_flows");
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
}
