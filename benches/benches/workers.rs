//! New flows, and two workers over one, in memory.
//!
//! *New flows*: every packet opens a flow: parsed, checked, judged for both legs by tables of 1,000 rules, entered; in the second row the
//! table is at the port's budget, so each also puts the oldest out. Between two pods nothing is new but the ports; in the third row every
//! packet goes to another address beyond the node, so whatever is remembered of two addresses does not help.
//!
//! *Two workers*: a thread each, pinned, as many packets a burst as the shell takes from a port, flows opened beforehand and visited in a
//! random order; four pods, two at each worker. The same packets are carried by one worker first. A thread that waits for the other
//! counts as busy. Reported is the time of all threads per packet, less the cost of putting frames into their first form, which is
//! measured the same way. The other worker hears of a flow once in 134 ms and sends the rest (docs/workers.md); so in the last row time
//! passes two hundred times as fast, and it hears of every packet.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use benches::flow_hit::shuffled;
use benches::numbers::median;
use benches::{machine, world};
use ipnet::IpNet;
use margay_core::flow::Flow;
use margay_core::frame::MemoryFrame;
use margay_core::topology::{Port, PortKind, Route, TopologyBuilder};
use margay_core::{
    Frame, Handover, Nanos, Output, Parcels, PortIndex, Spread, Topology, View, Worker, WorkerConfig,
    WorkerIndex,
};
use margay_io::exchange::{Exchange, INBOX, Inbox, Inboxes, Pass};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{Entity, Object};
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::{build, checksum, protocol};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const BURST: usize = margay_io::engine::BURST;
/// Batches taken from the inbox a turn, as the shell does.
const BATCHES: usize = 4;
const RULES: usize = 1_000;
/// Most flows of a worker, as the agent has it.
const FLOWS: usize = 512_000;
/// Frames of a worker, those that it keeps when they are free, and those that change hands with the depot at once.
const FRAMES: usize = 2_048;
const KEPT: usize = 4 * MAGAZINE;
const MAGAZINE: usize = 64;
/// Time of one measurement of threads.
const SPAN: Duration = Duration::from_millis(700);

fn address(pod: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 2 + pod as u8)
}

/// Four pods, all under one policy of many rules whose last one allows the traffic.
fn pods(workers: u16) -> (Engine, Topology) {
    let mut engine = Engine::new();
    engine.apply(world::namespace("ns"));
    let mut rules: Vec<_> = (0..RULES)
        .map(|n| world::allow(protocol::UDP, Entity::default(), world::port(20_000 + n as u16)))
        .collect();
    rules.push(world::allow(protocol::UDP, Entity::default(), Entity::default()));
    engine.apply(Change::Upsert(world::ingress("bench", 1.0, "all()", rules)));
    let mut builder = TopologyBuilder::default();
    for pod in 0..4u16 {
        let index = PortIndex(pod);
        let name = format!("pod{pod}");
        let object = world::pod("ns", &name, &name, "node", address(pod));
        let endpoint = world::local(pod.into(), &object);
        engine.apply(Change::Upsert(Object::Pod(Arc::new(object))));
        engine.apply(Change::Endpoint(endpoint.clone()));
        let addresses = vec![address(pod).into()];
        let kind = PortKind::Pod { endpoint: endpoint.id, pod_mac: world::pod_mac(index), addresses };
        builder.ports.push(Port { index, name, kind, mac: world::port_mac(index), mtu: 1500 });
    }
    let uplink = PortIndex(4);
    let kind = PortKind::Uplink;
    builder.ports.push(Port {
        index: uplink,
        name: "up".into(),
        kind,
        mac: world::port_mac(uplink),
        mtu: 1500,
    });
    let gateway = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let everywhere = IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0).into_iter();
    let by_gateway = Route::Port { port: uplink, gateway: Some(gateway) };
    builder.routes.extend(everywhere.map(|net| (net, by_gateway.clone())));
    builder.neighbours.push((uplink, gateway, world::mac(1)));
    (engine, builder.build(1).spread_over(Spread::new(workers, [])))
}

fn frame(from: u16, to: u16, flow: usize) -> Vec<u8> {
    let macs = (world::pod_mac(PortIndex(from)), world::port_mac(PortIndex(from)));
    let (sport, dport) = (1024 + (flow % 60_000) as u16, 53 + (flow / 60_000) as u16);
    let ends = [(from, sport), (to, dport)].map(|(pod, port)| (IpAddr::V4(address(pod)), port));
    build::udp(macs, ends[0], ends[1], &[0; 22])
}

/// Nanoseconds per packet of which every one opens a flow in a table for `limit`, after `before` flows; between two pods, or from a pod to
/// addresses `beyond` the node.
fn new_flows(limit: usize, before: usize, count: usize, beyond: bool) -> (f64, u64) {
    let (mut engine, topology) = pods(1);
    let snapshot = engine.publish();
    let view = View { snapshot: Some(&snapshot), topology: &topology };
    let config = WorkerConfig { max_flows: limit, hash_seed: 1, ..WorkerConfig::default() };
    let mut worker: Worker<MemoryFrame> = Worker::new(config, Nanos(0));
    let mut out = Output::new();
    let template = frame(0, 1, 0);
    let mut spare: Vec<MemoryFrame> = (0..BURST).map(|_| MemoryFrame::new(&template)).collect();
    let mut burst = Vec::with_capacity(BURST);
    let mut number = 0u32;
    let mut form = |frames: &mut [MemoryFrame]| {
        for frame in frames {
            let bytes = frame.data_mut();
            bytes[..template.len()].copy_from_slice(&template);
            // Ports in no order, each pair once; no checksum.
            bytes[34..38].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
            bytes[40..42].fill(0);
            if beyond {
                // 100.0.0.0/6, each once, with a whole header checksum.
                let address = 0x6400_0000 | number.wrapping_mul(0x9e37_79b1) >> 6;
                bytes[30..34].copy_from_slice(&address.to_be_bytes());
                bytes[24..26].fill(0);
                let sum = checksum::of(&bytes[14..34]);
                bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            number += 1;
        }
    };
    let (mut whole, mut copies) = (Vec::new(), Vec::new());
    let mut opened = 0;
    while opened < before + count {
        let start = Instant::now();
        for _ in 0..16 {
            form(&mut spare);
            black_box(&mut spare);
        }
        let copied = start.elapsed().as_nanos() as f64 / (16 * BURST) as f64;
        let start = Instant::now();
        for _ in 0..16 {
            form(&mut spare);
            burst.append(&mut spare);
            worker.handle_burst(view, Nanos::from_secs(1), PortIndex(0), &mut burst, &mut out);
            spare.extend(out.transmit.drain(..).map(|(_, frame)| frame));
            spare.append(&mut out.recycle);
        }
        opened += 16 * BURST;
        if opened > before {
            whole.push(start.elapsed().as_nanos() as f64 / (16 * BURST) as f64);
            copies.push(copied);
        }
    }
    let counters = worker.counters();
    // A few of the ports are those of an encapsulation, which pods may not send.
    let dropped: u64 = counters.drops.iter().sum();
    assert!(
        counters.flow_hits == 0 && dropped * 1_000 < opened as u64,
        "every packet opened a flow: {counters:?}"
    );
    (median(&whole) - median(&copies), counters.flow_evicted)
}

/// Frames in plain memory belong to nobody, so they are the same at work and on their way.
struct Owned;

impl Pass for Owned {
    type Frame = MemoryFrame;
    type Loose = MemoryFrame;

    fn loosen(&self, frame: MemoryFrame) -> MemoryFrame {
        frame
    }

    fn fasten(&self, loose: MemoryFrame) -> MemoryFrame {
        loose
    }
}

/// What one thread carries.
struct Carrier<'a> {
    snapshot: &'a Snapshot,
    topology: &'a Topology,
    worker: Worker<MemoryFrame>,
    exchange: Inboxes<Owned>,
    out: Output<MemoryFrame>,
    spare: Vec<MemoryFrame>,
    depot: &'a Mutex<Vec<Vec<MemoryFrame>>>,
    parcels: Parcels<MemoryFrame>,
    refused: Vec<Handover<MemoryFrame>>,
    /// Frames of each port in the order in which they are sent.
    templates: Vec<(PortIndex, Vec<Vec<u8>>)>,
    cursor: usize,
    now: Nanos,
    /// When all of them began: flows live by the clock, and the other worker hears of them by it.
    began: Instant,
    /// How many times as fast as the clock time passes.
    pace: u64,
}

impl Carrier<'_> {
    /// Puts a burst of frames into their first form.
    fn form(&mut self, burst: &mut Vec<MemoryFrame>) -> PortIndex {
        let (port, templates) = &self.templates[self.cursor / BURST % self.templates.len()];
        let first = self.cursor / (BURST * self.templates.len()) * BURST;
        for at in 0..BURST {
            let template = &templates[(first + at) % templates.len()];
            let Some(mut frame) = self.spare.pop() else { break };
            frame.set_len(template.len());
            frame.data_mut().copy_from_slice(template);
            burst.push(frame);
        }
        self.cursor += BURST;
        *port
    }

    /// Returns the nanoseconds that putting one frame into its first form takes.
    fn forming(&mut self) -> f64 {
        let mut burst = Vec::with_capacity(BURST);
        let start = Instant::now();
        for _ in 0..4_000 {
            self.form(&mut burst);
            self.spare.append(black_box(&mut burst));
        }
        start.elapsed().as_nanos() as f64 / (4_000 * BURST) as f64
    }

    fn check(&self) {
        let counters = self.worker.counters();
        let drops: u64 = counters.drops.iter().sum();
        assert!(drops * 100 < counters.received, "the packets are allowed: {counters:?}");
    }

    /// Acts on what the worker left in the output; returns how many packets it sent to ports.
    fn flush(&mut self) -> usize {
        if !self.out.handovers.is_empty() {
            self.exchange.give(&mut self.out.handovers, &mut self.refused);
            self.worker.handover_refused(&self.refused);
            self.spare.extend(self.refused.drain(..).map(|parcel| parcel.frame));
        }
        let sent = self.out.transmit.len();
        self.spare.extend(self.out.transmit.drain(..).map(|(_, frame)| frame));
        self.spare.append(&mut self.out.recycle);
        sent
    }

    /// Keeps as many frames as the shell does, and gets some from the depot when there are none: who sends more to the other than he gets
    /// from there would else wait for him.
    fn balance(&mut self) {
        while self.spare.len() >= KEPT + MAGAZINE {
            let magazine = self.spare.drain(..MAGAZINE).collect();
            self.depot.lock().expect("nobody panics").push(magazine);
        }
        if self.spare.len() < BURST
            && let Some(magazine) = self.depot.lock().expect("nobody panics").pop()
        {
            self.spare.extend(magazine);
        }
    }

    /// Sends one burst from each port, when there are frames for it, and takes what the other worker gave, as the shell does; returns how
    /// many packets it sent to ports.
    fn turn(&mut self, burst: &mut Vec<MemoryFrame>) -> usize {
        let view = View { snapshot: Some(self.snapshot), topology: self.topology };
        self.now = Nanos::from_secs(1) + Nanos(self.pace * self.began.elapsed().as_nanos() as u64);
        self.exchange.ask(BATCHES);
        let mut sent = 0;
        for _ in 0..self.templates.len() {
            self.balance();
            if self.spare.len() >= BURST {
                let port = self.form(burst);
                self.worker.handle_burst(view, self.now, port, burst, &mut self.out);
                sent += self.flush();
            }
        }
        if self.exchange.take(&mut self.parcels, BATCHES) > 0 {
            self.worker.handle_handovers(view, self.now, &mut self.parcels, &mut self.out);
            sent += self.flush();
        }
        sent
    }
}

/// What is carried between the four pods.
#[derive(Clone, Copy)]
struct Load {
    flows: usize,
    /// How many of each four packets go between pods of different workers, were there two.
    crossing: usize,
    /// See [`Carrier::pace`].
    pace: u64,
}

/// Nanoseconds of thread time per packet when `workers` threads carry the load. `by_turns`: by one thread, so nothing comes from another
/// processor.
fn carry(workers: u16, load: Load, by_turns: bool) -> f64 {
    let Load { flows, crossing, pace } = load;
    let (mut engine, topology) = pods(workers);
    let snapshot = engine.publish();
    let inboxes: Vec<_> = (0..workers).map(|_| Arc::new(Inbox::new(INBOX, Box::new(|| ())))).collect();
    let total = AtomicU64::new(0);
    let depot = Mutex::new(Vec::new());
    let began = Instant::now();
    let barrier = Barrier::new(usize::from(workers));
    let carrier = |index: u16| {
        let config = WorkerConfig {
            max_flows: FLOWS,
            hash_seed: 1,
            index: WorkerIndex(index),
            ..WorkerConfig::default()
        };
        let mine = (0..4u16).filter(|pod| pod % workers == index);
        let per_pod = flows / 4;
        let order = shuffled(per_pod);
        // Pods 0 and 2 are at worker 0, pods 1 and 3 at worker 1.
        let templates: Vec<_> = mine
            .map(|pod| {
                let make = |flow: &u32| {
                    let crosses = *flow as usize % 4 < crossing;
                    frame(pod, if crosses { (pod + 1) % 4 } else { (pod + 2) % 4 }, *flow as usize)
                };
                (PortIndex(pod), order.iter().map(make).collect::<Vec<_>>())
            })
            .collect();
        Carrier {
            snapshot: &snapshot,
            topology: &topology,
            worker: Worker::new(config, Nanos(0)),
            exchange: Inboxes::new(WorkerIndex(index), inboxes.clone(), Owned),
            out: Output::new(),
            spare: (0..FRAMES).map(|_| MemoryFrame::new(&[0; 64])).collect(),
            depot: &depot,
            parcels: Parcels::default(),
            refused: Vec::new(),
            templates,
            cursor: 0,
            now: Nanos::from_secs(1),
            began,
            pace,
        }
    };
    // Open every flow twice over: the second time over the short way.
    let turns = 2 * flows / usize::from(workers) / BURST + 64;
    if by_turns {
        return carry_by_turns((0..workers).map(carrier).collect(), turns);
    }
    let thread = |index: u16| {
        let mut set = CpuSet::new();
        let _ = set.set(usize::from(index)).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        let mut carrier = carrier(index);
        let mut burst = Vec::with_capacity(BURST);
        for _ in 0..turns {
            carrier.turn(&mut burst);
        }
        barrier.wait();
        let quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(20) {
            carrier.turn(&mut burst);
        }
        let copy = carrier.forming();
        barrier.wait();
        let start = Instant::now();
        let mut sent = 0u64;
        while start.elapsed() < SPAN {
            for _ in 0..16 {
                sent += carrier.turn(&mut burst) as u64;
            }
        }
        let time = start.elapsed().as_nanos() as f64;
        total.fetch_add(sent, Relaxed);
        barrier.wait();
        carrier.check();
        (time, copy)
    };
    let thread = &thread;
    let results: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|index| scope.spawn(move || thread(index))).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    assert_eq!(results.len(), usize::from(workers), "a thread failed");
    let time: f64 = results.iter().map(|(time, _)| time).sum();
    let copy = results.iter().map(|(_, copy)| copy).sum::<f64>() / results.len() as f64;
    time / total.load(Relaxed) as f64 - copy
}

/// As [`carry`], by this thread for all workers in turn.
fn carry_by_turns(mut carriers: Vec<Carrier<'_>>, turns: usize) -> f64 {
    let mut set = CpuSet::new();
    let _ = set.set(0).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    let mut burst = Vec::with_capacity(BURST);
    for _ in 0..turns {
        for carrier in &mut carriers {
            carrier.turn(&mut burst);
        }
    }
    let copy = carriers.iter_mut().map(Carrier::forming).sum::<f64>() / carriers.len() as f64;
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < SPAN {
        for _ in 0..16 {
            sent += carriers.iter_mut().map(|carrier| carrier.turn(&mut burst)).sum::<usize>();
        }
    }
    let time = start.elapsed().as_nanos() as f64;
    carriers.iter().for_each(Carrier::check);
    time / sent as f64 - copy
}

fn main() {
    machine::describe("new flows, and two workers over one, in memory");
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| name.contains(word.as_str()));
    if wanted("new_flows") {
        println!("   a flow: {} bytes and 6.4 to 12.8 of index", size_of::<Flow>());
        println!("{:<52} {:>8} {:>8}", "case", "ns/flow", "M/s");
        for (name, limit, before, count, beyond) in [
            ("new_flows/into a table with room, to 1M flows", 4_000_000, 100_000, 900_000, false),
            ("new_flows/at the port's budget of 128k, each puts one out", 512_000, 200_000, 600_000, false),
            ("new_flows/the same, each to another address", 512_000, 200_000, 600_000, true),
        ] {
            let (ns, evicted) = new_flows(limit, before, count, beyond);
            println!("{name:<58} {ns:>8.1} {:>8.2}   {evicted} put out", 1000.0 / ns);
        }
        println!("   must: 5 M/s and 160 bytes; goal: 8 M/s and 128 bytes");
    }
    // `cargo bench -p benches --bench workers -- "scaling/65536 flows, half handed"` runs one case, for a profiler.
    if only.is_empty() || only.iter().any(|word| word.starts_with("scaling")) {
        println!(
            "{:<40} {:>8} {:>8} {:>8} {:>9}  least..most",
            "case, ns of all threads per packet", "one", "two", "by turns", "two/one"
        );
        for (name, flows, crossing, pace) in [
            ("none handed over", 8_192, 0, 1),
            ("half handed over", 8_192, 2, 1),
            ("none handed over", 65_536, 0, 1),
            ("half handed over", 65_536, 2, 1),
            ("half, all news", 65_536, 2, 200),
        ] {
            let name = format!("scaling/{flows} flows, {name}");
            if !wanted(&name) {
                continue;
            }
            let load = Load { flows, crossing, pace };
            let mut rounds: Vec<[f64; 3]> = (0..5)
                .map(|round| {
                    let ways = [(1, false), (2, false), (2, true)];
                    let mut took = [0.0; 3];
                    for nth in 0..3 {
                        let at = (nth + round) % 3;
                        took[at] = carry(ways[at].0, load, ways[at].1);
                    }
                    took
                })
                .collect();
            let speed_up = |[one, two, _]: &[f64; 3]| 2.0 * one / two;
            rounds.sort_by(|a, b| speed_up(a).total_cmp(&speed_up(b)));
            let [one, two, by_turns] = rounds[rounds.len() / 2];
            let [least, most] = [rounds[0], rounds[rounds.len() - 1]].map(|round| speed_up(&round));
            println!(
                "{name:<40} {one:>8.1} {two:>8.1} {by_turns:>8.1} {:>8.2}x  {least:.2}..{most:.2}",
                speed_up(&[one, two, by_turns])
            );
        }
        println!("   must: 1.85x with none handed over, 1.5x with half; goal: 1.95x and 1.7x");
    }
}
