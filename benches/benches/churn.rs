//! Policy that changes a thousand times a second under traffic: what known flows then cost, and whether a packet is lost.
//!
//! ```text
//!   in memory:   changes ─▶ engine ─▶ publisher ┄┄▶ worker, known flows          one thread each
//!   on devices:  changes ─▶ engine ─▶ publisher ┄┄▶ worker's own thread
//!                                 generator ═veth═ in ▶      ▶ out ═veth═ sink, XDP_DROP
//! ```
//!
//! Changes go through the agent's own way, from the object in memory to the snapshot that the worker loads once a burst. Each changes one
//! rule of one policy of a node with 110 pods, in turn; one in [`LOCAL`] + 1 is the policy that judges the measured flows, whose packets
//! are then judged again. In memory, "all to it" changes nothing else. Quiet and changing times take turns; a ratio is formed within a
//! round.
//!
//! On devices the worker's thread has the last processor, generator and changes the first. Its greatest load is what it carries when the
//! generator sends without a pause; the rounds offer 80 % of it. *Lost* is what one port received and the other did not send, for
//! whatever reason: all of it is allowed, so the counters must agree to the packet. What the kernel could not give to us (receive ring
//! full, no frame to receive into) spoils a round, which is made at most three times; what any of them lost counts. Frames to receive
//! into are ours to provide, so packets that found none are shown beside what was lost, and with them, or with a round that stayed
//! spoilt, the mark is "open".

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use benches::cables::cables;
use benches::flow_hit::KnownFlows;
use benches::generator::Generator;
use benches::namespaces::{self, NetNs, ifindex, received};
use benches::numbers::{median, percentile};
use benches::{Result, machine, world};
use margay_core::{PortIndex, Topology, View};
use margay_io::engine::BURST;
use margay_io::publish::{Publisher, channel};
use margay_io::steer::Steer;
use margay_io::{Dataplane, DataplaneConfig, PortSpec, Role, mount_bpffs};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::Object;
use margay_policy_engine::snapshot::Snapshot;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const RULES: usize = 1_000;
/// Pods of the node beside the two that are measured, and of the cluster; policies that select them.
const LOCAL: usize = 110;
const PODS: usize = 1_000;
const POLICIES: usize = 1_000;
/// Time between two changes.
const PACE: Duration = Duration::from_millis(1);

const ROUNDS: usize = 9;
/// How long a turn lasts in memory, and on devices.
const TURN: Duration = Duration::from_millis(300);
const TURN_ON_DEVICES: Duration = Duration::from_millis(1_500);
const DEVICE_ROUNDS: usize = 5;
const FLOWS_ON_DEVICES: usize = 256;
const LOAD: f64 = 0.8;
const REPEATS: usize = 3;
/// Share of what a round is to offer below which it is spoilt: the generator has its processor in common with who makes the changes.
const ENOUGH: f64 = 0.95;
/// Packets that a late generator makes up for.
const BEHIND: f64 = 256.0;

fn main() -> Result<()> {
    machine::describe("policy that changes 1,000 times a second");
    in_memory()?;
    namespaces::run("churn", on_devices)
}

fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Two pods under a long policy, on a node with many others.
fn node() -> (Engine, Topology) {
    let (mut engine, topology) = world::two_pods(RULES);
    (0..50).for_each(|n| engine.apply(world::namespace(&format!("ns{n}"))));
    for n in 0..PODS {
        let pod = world::cluster_pod(n, n);
        if n < LOCAL {
            engine.apply(Change::Endpoint(world::local(1_000 + n as u32, &pod)));
        }
        engine.apply(upsert(Object::Pod(Arc::new(pod))));
    }
    (0..POLICIES).for_each(|n| engine.apply(upsert(world::cluster_policy(n, 0))));
    (engine, topology)
}

fn upsert(object: Object) -> Change {
    Change::Upsert(object)
}

/// What changes.
#[derive(Clone, Copy)]
enum Churn {
    Spread,
    AllToIt,
}

impl Churn {
    fn change(self, n: usize) -> Change {
        let variant = 1 + (n % 50_000) as u16;
        match self {
            Self::Spread if n % (LOCAL + 1) < LOCAL => {
                upsert(world::cluster_policy(n % (LOCAL + 1), variant))
            }
            Self::Spread | Self::AllToIt => upsert(world::long_policy(RULES, variant)),
        }
    }
}

/// Changes policy at [`PACE`] until told to stop; returns how many changes there were.
fn churn(
    churn: Churn,
    engine: &mut Engine,
    stop: &AtomicBool,
    mut publish: impl FnMut(Arc<Snapshot>),
) -> Result<u64> {
    stay_on(0)?;
    let (mut next, mut changes) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        engine.apply(churn.change(changes as usize));
        publish(engine.publish());
        changes += 1;
        // Those that are late are not made up for in a bunch.
        let now = Instant::now();
        next = (next + PACE).max(now);
        std::thread::sleep(next - now);
    }
    Ok(changes)
}

/// Known flows in memory, quiet and changing.
fn in_memory() -> Result<()> {
    println!(
        "{:<44} {:>8} {:>8} {:>24} {:>10} {:>12}",
        "in memory, ns per packet", "quiet", "changing", "ratio, min..max", "changes/s", "judged anew"
    );
    let cases = [
        ("1,000 flows, changes spread over the node", 1_000, Churn::Spread),
        ("65,536 flows, changes spread over the node", 65_536, Churn::Spread),
        ("1,000 flows, all changes to their policy", 1_000, Churn::AllToIt),
    ];
    for (name, flows, churn) in cases {
        // The measuring thread and the changing one are both children: this one stays where it may run anywhere.
        std::thread::scope(|scope| scope.spawn(|| hits(name, flows, churn)).join())
            .map_err(|_| "a thread panicked")??;
    }
    Ok(())
}

fn hits(name: &str, flows: usize, kind: Churn) -> Result<()> {
    stay_on(machine::cpus() - 1)?;
    let (mut engine, topology) = node();
    let (publisher, mut subscriber): (Publisher<Snapshot>, _) = channel();
    let generation = AtomicU64::new(0);
    let publish = |snapshot: Arc<Snapshot>| {
        publisher.publish(snapshot, generation.fetch_add(1, Ordering::Relaxed) + 1);
    };
    let first = engine.publish();
    let mut known = KnownFlows::open(View { snapshot: Some(&first), topology: &topology }, flows);
    publish(first);
    let mut turn = || {
        let (mut whole, mut copies) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while start.elapsed() < TURN {
            let (all, copy) = known.sample(|known| {
                let (snapshot, _) = subscriber.load();
                known.burst(View { snapshot: snapshot.map(|s| s.value()), topology: &topology });
            });
            whole.push(all);
            copies.push(copy);
        }
        // A mean: what changes cost comes in few samples.
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        (mean(&whole) - mean(&copies), known.counters().flow_rejudged)
    };
    turn();
    let (mut quiet, mut changing, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut changes, mut anew) = (0, 0);
    for _ in 0..ROUNDS {
        let (still, before) = turn();
        let stop = AtomicBool::new(false);
        let (engine, stop) = (&mut engine, &stop);
        let (moving, after) = std::thread::scope(|scope| -> Result<(f64, u64)> {
            let changer = scope.spawn(move || churn(kind, engine, stop, publish));
            let measured = turn();
            stop.store(true, Ordering::Relaxed);
            changes += changer.join().map_err(|_| "the changing thread panicked")??;
            Ok(measured)
        })?;
        quiet.push(still);
        changing.push(moving);
        ratios.push(moving / still);
        anew += after - before;
    }
    let ratio = median(&ratios);
    let mark = match ratio {
        ratio if ratio <= 1.05 => "goal",
        ratio if ratio <= 1.1 => "must",
        _ => "missed",
    };
    println!(
        "{name:<44} {:>8.1} {:>8.1} {:>24} {:>10.0} {anew:>12}   must 1.1, goal 1.05: {mark}",
        median(&quiet),
        median(&changing),
        format!("{ratio:.3}  {:.3}..{:.3}", percentile(&ratios, 0.0), percentile(&ratios, 1.0)),
        changes as f64 / (TURN.as_secs_f64() * ROUNDS as f64),
    );
    Ok(())
}

/// What was counted at one moment, or between two.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    offered: u64,
    /// By the first port, and by the worker.
    received: u64,
    judged: u64,
    forwarded: u64,
    dropped: u64,
    /// By the second port.
    sent: u64,
    unsent: u64,
    /// At the sink.
    arrived: u64,
    /// By the kernel, before us.
    ring_full: u64,
    fill_empty: u64,
    anew: u64,
}

impl Tally {
    fn since(&self, before: &Self) -> Self {
        Self {
            offered: self.offered - before.offered,
            received: self.received - before.received,
            judged: self.judged - before.judged,
            forwarded: self.forwarded - before.forwarded,
            dropped: self.dropped - before.dropped,
            sent: self.sent - before.sent,
            unsent: self.unsent - before.unsent,
            arrived: self.arrived - before.arrived,
            ring_full: self.ring_full - before.ring_full,
            fill_empty: self.fill_empty - before.fill_empty,
            anew: self.anew - before.anew,
        }
    }

    /// What was received by us and not sent; also what counters disagree about.
    fn lost(&self) -> u64 {
        self.received.abs_diff(self.judged).max(self.received.abs_diff(self.sent))
    }

    fn is_spoilt(&self) -> bool {
        self.ring_full + self.fill_empty > 0
    }
}

/// The packet path between two cables, with a generator at one end and a sink at the other.
struct Rig {
    generator: Generator,
    dataplane: Dataplane,
    sink: String,
    offered: u64,
    _sink_programs: Steer,
    _namespace: NetNs,
}

impl Rig {
    /// Starts all of it, with the worker on one processor and the rest where this thread may run.
    fn new(directory: &Path, topology: Topology, snapshot: Arc<Snapshot>, processor: usize) -> Result<Self> {
        let namespace = NetNs::new()?;
        let [generator, into, out, sink] = cables("churn", &namespace)?;
        let sinks = directory.join("sinks");
        mount_bpffs(&sinks)?;
        let mut sink_programs = Steer::load(&sinks)?;
        sink_programs.attach(Role::Closed, ifindex(&sink)?, &sink)?;
        let config = DataplaneConfig {
            bpffs: directory.join("bpf"),
            cpus: vec![processor],
            ..DataplaneConfig::default()
        };
        let dataplane = namespace.inside(|| {
            let dataplane = Dataplane::start(config)?;
            for (index, device) in [(world::A, into), (world::B, out)] {
                let pin = format!("pin-{device}");
                dataplane.add_port(PortSpec { index, device, role: Role::Pod, pin, queues: None })?;
            }
            Ok(dataplane)
        })?;
        dataplane.publish_topology(Arc::new(topology));
        let generation = snapshot.generation();
        dataplane.publish_snapshot(snapshot);
        if !dataplane.wait_for_snapshot(generation, Duration::from_secs(5)) {
            return Err("the worker did not take the snapshot".into());
        }
        let frames = |of: fn(usize) -> Vec<u8>| (0..FLOWS_ON_DEVICES).map(of).collect::<Vec<_>>();
        let mut rig = Self {
            generator: Generator::new(&generator, frames(world::frame))?,
            dataplane,
            sink,
            offered: 0,
            _sink_programs: sink_programs,
            _namespace: namespace,
        };
        // Every flow is opened, then answered.
        rig.offer(Duration::from_millis(50), f64::INFINITY);
        let mut answers = Generator::new(&rig.sink, frames(world::answer))?;
        for _ in 0..2 * FLOWS_ON_DEVICES / BURST {
            answers.burst();
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(rig)
    }

    fn offer(&mut self, time: Duration, rate: f64) {
        self.offered += offer(&mut self.generator, time, rate);
    }

    /// Reads all counters when nothing is under way any more.
    fn tally(&self) -> Result<Tally> {
        std::thread::sleep(Duration::from_millis(50));
        let ports = self.dataplane.port_counters()?;
        let port = |index: PortIndex| ports.get(&index).copied().unwrap_or_default();
        let (near, far) = (port(world::A), port(world::B));
        let counters = self.dataplane.counters();
        let unsent: u64 = self
            .dataplane
            .worker_counters()
            .map(|worker| worker.unsent.load(Ordering::Relaxed) + worker.portless.load(Ordering::Relaxed))
            .sum();
        Ok(Tally {
            offered: self.offered,
            received: near.rx_packets,
            judged: counters.received - far.rx_packets,
            forwarded: counters.forwarded - near.tx_packets,
            dropped: counters.drops.iter().sum(),
            sent: far.tx_packets,
            unsent: unsent + far.tx_failed,
            arrived: received(&self.sink)?,
            ring_full: near.kernel.rx_ring_full,
            fill_empty: near.kernel.fill_ring_empty,
            anew: counters.flow_rejudged,
        })
    }

    fn turn(&mut self, time: Duration, rate: f64) -> Result<Tally> {
        let before = self.tally()?;
        self.offer(time, rate);
        Ok(self.tally()?.since(&before))
    }
}

/// Offers so many packets a second; returns how many.
fn offer(generator: &mut Generator, time: Duration, rate: f64) -> u64 {
    let start = Instant::now();
    let (mut offered, mut forgiven) = (0, 0.0);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return offered;
        }
        let due = rate * elapsed.as_secs_f64() - forgiven - offered as f64;
        if due < BURST as f64 {
            std::hint::spin_loop();
            continue;
        }
        // A generator that was kept from sending does not make up for more than a few bursts.
        if due.is_finite() {
            forgiven += (due - BEHIND).max(0.0);
        }
        offered += generator.burst() as u64;
    }
}

fn on_devices(directory: &Path) -> Result<()> {
    // Asked before this thread is held: there is only one processor for it afterwards.
    let last = machine::cpus() - 1;
    stay_on(0)?;
    let (mut engine, topology) = node();
    let mut rig = Rig::new(directory, topology, engine.publish(), last)?;
    let most = rig.turn(TURN_ON_DEVICES, f64::INFINITY)?;
    let rate = most.sent as f64 / TURN_ON_DEVICES.as_secs_f64();
    println!(
        "on devices: the worker carries at most {:.3} M packets a second ({:.3} offered); rounds offer {:.0} % of it",
        rate / 1e6,
        most.offered as f64 / TURN_ON_DEVICES.as_secs_f64() / 1e6,
        LOAD * 100.0
    );
    println!(
        "{:<10} {:>10} {:>10} {:>10} {:>8} {:>8} {:>8} | {:>10} {:>10} {:>10} {:>10} | {:>8} {:>8}",
        "round",
        "offered",
        "received",
        "sent",
        "lost",
        "dropped",
        "unsent",
        "ring full",
        "no frame",
        "before us",
        "after us",
        "changes",
        "anew"
    );
    let (mut lost, mut frameless, mut spoilt) = (0, 0, 0);
    for round in 1..=DEVICE_ROUNDS {
        let quiet = rig.turn(TURN_ON_DEVICES, rate * LOAD)?;
        line(&format!("{round} quiet"), &quiet, 0);
        lost += quiet.lost();
        frameless += quiet.fill_empty;
        for attempt in 1..=REPEATS {
            let (tally, changes) = changing(&mut rig, &mut engine, rate * LOAD)?;
            line(&format!("{round} changed"), &tally, changes);
            lost += tally.lost();
            frameless += tally.fill_empty;
            let asked = rate * LOAD * TURN_ON_DEVICES.as_secs_f64();
            if !tally.is_spoilt() && tally.offered as f64 >= ENOUGH * asked {
                break;
            }
            spoilt += u64::from(attempt == REPEATS);
        }
    }
    let frames = rig.dataplane.frames()?;
    let mark = match (lost, frameless + spoilt) {
        (0, 0) => "met",
        (0, _) => "open",
        _ => "missed",
    };
    println!(
        "   lost between our receiving and our sending in {DEVICE_ROUNDS} rounds: {lost}, for want of a frame to receive into: {frameless}; \
         must 0: {mark}; {spoilt} rounds stayed spoilt; packet memory {}; load average now {}",
        if frames.agrees() { "conserved" } else { "NOT conserved" },
        machine::load()
    );
    Ok(())
}

fn changing(rig: &mut Rig, engine: &mut Engine, rate: f64) -> Result<(Tally, u64)> {
    let before = rig.tally()?;
    let stop = AtomicBool::new(false);
    let stop = &stop;
    let (dataplane, generator) = (&rig.dataplane, &mut rig.generator);
    let (sent, changes) = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let changer = scope.spawn(move || {
            churn(Churn::Spread, engine, stop, |snapshot| dataplane.publish_snapshot(snapshot))
        });
        let sent = offer(generator, TURN_ON_DEVICES, rate);
        stop.store(true, Ordering::Relaxed);
        Ok((sent, changer.join().map_err(|_| "the changing thread panicked")??))
    })?;
    rig.offered += sent;
    Ok((rig.tally()?.since(&before), changes))
}

fn line(name: &str, tally: &Tally, changes: u64) {
    let refused = tally.ring_full + tally.fill_empty;
    println!(
        "{name:<10} {:>10} {:>10} {:>10} {:>8} {:>8} {:>8} | {:>10} {:>10} {:>10} {:>10} | {changes:>8} {:>8}",
        tally.offered,
        tally.received,
        tally.sent,
        tally.lost(),
        tally.dropped,
        tally.unsent,
        tally.ring_full,
        tally.fill_empty,
        tally.offered.abs_diff(tally.received + refused),
        tally.sent.abs_diff(tally.arrived),
        tally.anew
    );
}
