//! What it costs to forward one 64-byte packet between two veth pairs, on real devices, against the kernel in the same rounds.
//!
//! ```text
//!   generator ──▶ gen ═veth═ in ▶ forwarder ▶ out ═veth═ sink ──▶ XDP_DROP, counted
//!   (AF_XDP TX)                  (own namespace)          (same program for all)
//! ```
//!
//! One pinned thread does everything: it sends a burst, which the kernel carries to the forwarder within the system call, lets the
//! forwarder work, and so on; what the sink's device counted divides the time. So the figure is the whole closed loop, generator and
//! sink included, and one busy processor is enough. Cases take turns in rounds; a ratio is formed within a round, and a round in which
//! the bare path (generator to sink, no forwarder) is more than 10 % off its median is thrown away.
//!
//! Ours is the agent's own engine and worker, driven in this thread with its timers and heartbeat, but without its sleep.

use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::namespaces::{self, NetNs, ifindex, ip, nft, received, sysctl, up, wait_for_carrier};
use benches::numbers::{median, percentile};
use benches::{Result, machine, world};
use margay_core::worker::FlowRecord;
use margay_core::{Counters, Frame, Nanos, Output, PortIndex, Topology, View, Worker, WorkerConfig};
use margay_io::engine::{BURST, Engine, PortStatistics, Processor, RingId};
use margay_io::rings::Rings;
use margay_io::steer::{Heartbeat, Steer};
use margay_io::thread::now;
use margay_io::xsk::{Pool, SocketSlot, UmemFrame, UmemHandle, XskRings};
use margay_io::{Role, mount_bpffs};
use margay_policy_engine::snapshot::Snapshot;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Flows, each with its answer seen, so that a connection tracker calls them established.
const FLOWS: usize = 256;
const RULES: usize = 1000;
const BURSTS_PER_SAMPLE: usize = 8;
const SAMPLES: usize = 40;
const ROUNDS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    namespaces::run("closed_loop", bench)
}

/// A raw sender on one device.
struct Generator {
    rings: XskRings,
    frames: Vec<Vec<u8>>,
    next: usize,
    outbox: Vec<UmemFrame>,
}

impl Generator {
    fn new(device: &str, frames: Vec<Vec<u8>>) -> Result<Self> {
        let (umem, chunks) = UmemHandle::new(2048, 2048)?;
        let pool = Pool::new(&umem, chunks);
        let rings = XskRings::new(umem.bind(device, 0, PATIENCE)?, pool, SocketSlot(0));
        Ok(Self { rings, frames, next: 0, outbox: Vec::with_capacity(BURST) })
    }

    fn burst(&mut self) {
        self.rings.complete();
        for _ in 0..BURST {
            let Some(mut frame) = self.rings.take_spare() else { break };
            let bytes = &self.frames[self.next];
            self.next = (self.next + 1) % self.frames.len();
            if frame.set_len(bytes.len()) {
                frame.data_mut().copy_from_slice(bytes);
                self.outbox.push(frame);
            }
        }
        self.rings.submit_tx(&mut self.outbox);
        self.outbox.clear();
        // A device that is gone shows as packets that the sink does not count.
        let _ = self.rings.wakeup();
    }
}

/// The engine of the agent with what its thread would do around it.
struct Forwarder<P> {
    engine: Engine<XskRings, P>,
    lines: [RingId; 2],
    heartbeat: Heartbeat,
    snapshot: Arc<Snapshot>,
    topology: Topology,
    next_tick: Nanos,
    /// Keeps the programs attached.
    _steer: Steer,
}

impl<P: Processor<UmemFrame>> Forwarder<P> {
    /// Takes the two devices of the thread's namespace in.
    fn new(bpffs: &Path, devices: [&str; 2], rules: usize, processor: P) -> Result<Self> {
        mount_bpffs(bpffs)?;
        let mut steer = Steer::load(bpffs)?;
        let heartbeat = steer.take_heartbeat(0)?;
        let (umem, chunks) = UmemHandle::new(4096, 16_384)?;
        let pool = Pool::new(&umem, chunks);
        let (events, _) = crossbeam::channel::bounded(64);
        let mut engine = Engine::new(processor, events);
        let mut add = |slot: u16, device: &str| -> Result<RingId> {
            let index = ifindex(device)?;
            let socket = umem.bind(device, 0, PATIENCE)?;
            steer.own(index, 0, 0, &socket)?;
            let rings = XskRings::new(socket, Rc::clone(&pool), SocketSlot(slot));
            let id = engine.add(PortIndex(slot), rings, Arc::new(PortStatistics::default()), now());
            let mode = steer.attach(Role::Pod, index, device)?;
            if mode != margay_io::AttachMode::Native {
                println!("   note: {device} is in {} mode", mode.as_str());
            }
            Ok(id)
        };
        let lines = [add(0, devices[0])?, add(1, devices[1])?];
        let (mut policy, topology) = world::two_pods(rules);
        Ok(Self {
            engine,
            lines,
            heartbeat,
            snapshot: policy.publish(),
            topology,
            next_tick: Nanos(0),
            _steer: steer,
        })
    }

    fn turn(&mut self) {
        let time = now();
        let view = View { snapshot: Some(&self.snapshot), topology: &self.topology };
        self.engine.turn(view, time);
        if time >= self.next_tick {
            self.engine.tick(view, time);
            // A refused stamp closes the ports, which shows as packets that the sink does not count.
            let _ = self.heartbeat.stamp(time);
            self.next_tick = time + Nanos::from_millis(5);
        }
    }

    /// What the event of a port that slept would do.
    fn wake(&mut self) {
        let time = now();
        for line in self.lines {
            self.engine.activate(line, time);
        }
    }
}

/// Forwards from one port to the other and looks at nothing: what AF_XDP itself costs.
#[derive(Default)]
struct Patch(Counters);

impl<F: Frame> Processor<F> for Patch {
    fn handle_burst(
        &mut self,
        _: View<'_>,
        _: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        let to = PortIndex(1 - port.0);
        out.transmit.extend(frames.drain(..).map(|frame| (to, frame)));
    }

    fn handle_timeout(&mut self, _: View<'_>, _: Nanos, _: &mut Output<F>) {}

    fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        Vec::new()
    }

    fn is_waiting(&self) -> bool {
        false
    }

    fn counters(&self) -> &Counters {
        &self.0
    }

    fn flows(&self, _: View<'_>, _: Nanos, _: usize, _: usize) -> (Vec<FlowRecord>, Option<usize>) {
        (Vec::new(), None)
    }
}

/// A forwarder as the loop drives it; the kernel needs no driving.
trait Drive {
    fn turn(&mut self) {}
    fn wake(&mut self) {}
    fn report(&self) -> Option<String> {
        None
    }
}

struct Kernel;

impl Drive for Kernel {}

impl<P: Processor<UmemFrame>> Drive for Forwarder<P> {
    fn turn(&mut self) {
        Forwarder::turn(self);
    }

    fn wake(&mut self) {
        Forwarder::wake(self);
    }

    fn report(&self) -> Option<String> {
        let c = self.engine.processor().counters();
        (c.received > 0).then(|| {
            format!(
                "ours received {}, forwarded {}, dropped {}; flow hits {}, misses {}",
                c.received,
                c.forwarded,
                c.drops.iter().sum::<u64>(),
                c.flow_hits,
                c.flow_misses
            )
        })
    }
}

struct Case {
    name: &'static str,
    generator: Generator,
    sink: String,
    drive: Box<dyn Drive>,
    /// The namespace lives as long as the case.
    _namespace: Option<NetNs>,
    rounds: Vec<f64>,
    sent: u64,
    delivered: u64,
}

impl Case {
    /// Nanoseconds per delivered packet: the median of one round's samples.
    fn round(&mut self) -> Result<()> {
        self.drive.wake();
        self.drive.turn();
        self.once();
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            self.drive.wake();
            let before = received(&self.sink)?;
            let start = Instant::now();
            for _ in 0..BURSTS_PER_SAMPLE {
                self.once();
            }
            let spent = start.elapsed().as_nanos() as f64;
            let delivered = received(&self.sink)? - before;
            self.sent += (BURST * BURSTS_PER_SAMPLE) as u64;
            self.delivered += delivered;
            if delivered > 0 {
                samples.push(spent / delivered as f64);
            }
        }
        self.rounds.push(median(&samples));
        Ok(())
    }

    fn once(&mut self) {
        self.generator.burst();
        self.drive.turn();
    }
}

/// Makes the cable GEN = IN and OUT = SINK around a namespace.
fn cables(tag: &str, inside: &NetNs) -> Result<[String; 4]> {
    let names = ["g", "i", "o", "s"].map(|end| format!("{end}-{tag}"));
    let [generator, into, out, sink] = &names;
    ip(&format!("link add {generator} type veth peer name {into} netns {}", inside.path()))?;
    ip(&format!("link add {sink} type veth peer name {out} netns {}", inside.path()))?;
    inside.inside(|| {
        ip(&format!("link set {into} address {}", world::port_mac(world::A)))?;
        ip(&format!("link set {out} address {}", world::port_mac(world::B)))?;
        [into, out].into_iter().try_for_each(|end| up(end))
    })?;
    [generator, sink].into_iter().try_for_each(|end| up(end))?;
    [generator, sink].into_iter().try_for_each(|end| wait_for_carrier(end))?;
    Ok(names)
}

/// A router in a namespace, with a firewall given as an nftables script.
fn router(names: &[String; 4], script: &str) -> Result<()> {
    let [_, into, out, _] = names;
    sysctl("net/ipv4/ip_forward", "1")?;
    for (device, address, peer, port) in
        [(into, "10.1.0.1/24", world::ADDRESS_A, world::A), (out, "10.2.0.1/24", world::ADDRESS_B, world::B)]
    {
        ip(&format!("address add {address} dev {device}"))?;
        ip(&format!("neighbour replace {peer} lladdr {} dev {device} nud permanent", world::pod_mac(port)))?;
    }
    if script.is_empty() { Ok(()) } else { nft(script) }
}

fn chain(rules: &str) -> String {
    format!("table ip f {{\nchain c {{ type filter hook forward priority 0; policy drop;\n{rules}\n}}\n}}\n")
}

fn bench(directory: &Path) -> Result<()> {
    machine::describe("closed loop: one 64-byte packet over two veth pairs, one thread");
    let cpu = machine::cpus() - 1;
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    // SAFETY: plain numbers; zero names the calling thread.
    let favoured = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) } == 0;
    println!(
        "   processor {cpu}, {}; {FLOWS} established flows; {ROUNDS} rounds of {SAMPLES} samples of {} packets, bursts of {BURST}",
        if favoured { "nice -15" } else { "normal priority" },
        BURSTS_PER_SAMPLE * BURST
    );
    println!(
        "   AF_XDP: native XDP, copy mode, need_wakeup, 4096-byte chunks, softirq in the sender's call (no threaded NAPI)"
    );

    let sinks = directory.join("sinks");
    mount_bpffs(&sinks)?;
    let mut sink_programs = Steer::load(&sinks)?;
    let mut sink = |device: &str| -> Result<()> {
        sink_programs.attach(Role::Closed, ifindex(device)?, device)?;
        Ok(())
    };
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, generator: Generator, sink: &str, drive, namespace| {
        let case = Case {
            name,
            generator,
            sink: sink.to_owned(),
            drive,
            _namespace: namespace,
            rounds: Vec::new(),
            sent: 0,
            delivered: 0,
        };
        cases.push(case);
    };
    let there: Vec<_> = (0..FLOWS).map(world::frame).collect();
    let back: Vec<_> = (0..FLOWS).map(world::answer).collect();

    ip("link add g-path type veth peer name s-path")?;
    ["g-path", "s-path"].into_iter().try_for_each(up)?;
    ["g-path", "s-path"].into_iter().try_for_each(wait_for_carrier)?;
    sink("s-path")?;
    add(
        "generator to sink, no forwarder",
        Generator::new("g-path", there.clone())?,
        "s-path",
        Box::new(Kernel),
        None,
    );

    let names = [
        ("ours", "margay, 1,000 rules"),
        ("none", "margay, no rules"),
        ("copy", "AF_XDP alone, no processing"),
        ("bare", "kernel, bare"),
        ("ct", "kernel, conntrack"),
        ("ports", "kernel, 1,000 linear port rules"),
        ("nets", "kernel, 1,000 linear address rules"),
    ];
    // The same rules as ours, and the cheapest that nftables has.
    let ports: String = (0..RULES).map(|n| format!("udp dport {} accept\n", 20_000 + n)).collect();
    let nets: String =
        (0..RULES).map(|n| format!("ip saddr 172.16.{}.{} accept\n", n / 250, n % 250)).collect();
    for (tag, name) in names {
        let namespace = NetNs::new()?;
        let ends = cables(tag, &namespace)?;
        let [generator, into, out, at_sink] = &ends;
        let devices = [into.as_str(), out.as_str()];
        let bpffs = directory.join(tag);
        let worker = || Worker::<UmemFrame>::new(WorkerConfig::default(), now());
        let mut drive = namespace.inside(|| {
            let drive: Box<dyn Drive> = match tag {
                "ours" => Box::new(Forwarder::new(&bpffs, devices, RULES, worker())?),
                "none" => Box::new(Forwarder::new(&bpffs, devices, 0, worker())?),
                "copy" => Box::new(Forwarder::new(&bpffs, devices, 0, Patch::default())?),
                _ => {
                    router(
                        &ends,
                        &match tag {
                            "ct" => chain("ct state established,related accept\nct state new accept"),
                            "ports" => chain(&format!("{ports}accept")),
                            "nets" => chain(&format!("{nets}accept")),
                            _ => String::new(),
                        },
                    )?;
                    Box::new(Kernel)
                }
            };
            Ok(drive)
        })?;
        sink(at_sink)?;
        let mut generator = Generator::new(generator, there.clone())?;
        let mut answers = Generator::new(at_sink, back.clone())?;
        drive.turn();
        // Every flow is opened and answered before anything is measured.
        for _ in 0..2 {
            for _ in 0..FLOWS / BURST {
                for sender in [&mut generator, &mut answers] {
                    sender.burst();
                    drive.wake();
                    drive.turn();
                }
            }
        }
        drop(answers);
        add(name, generator, at_sink, drive, Some(namespace));
    }

    for round in 0..ROUNDS + 1 {
        let count = cases.len();
        for at in 0..count {
            cases[(at + round) % count].round()?;
        }
        if round == 0 {
            // The first round warms caches and tables.
            for case in &mut cases {
                case.rounds.clear();
                (case.sent, case.delivered) = (0, 0);
            }
        }
    }
    report(&cases);
    Ok(())
}

fn report(cases: &[Case]) {
    let path = median(&cases[0].rounds);
    let good: Vec<usize> =
        (0..ROUNDS).filter(|round| (cases[0].rounds[*round] / path - 1.0).abs() <= 0.10).collect();
    let of = |case: &Case| -> Vec<f64> { good.iter().map(|round| case.rounds[*round]).collect() };
    println!("   {} of {ROUNDS} rounds kept; load average now {}", good.len(), machine::load());
    println!(
        "{:<38} {:>10} {:>17} {:>9} {:>26}",
        "case", "ns/packet", "rounds min..max", "lost", "margay/this, min..max"
    );
    let ours = of(&cases[1]);
    for case in cases {
        let rounds = of(case);
        let ratios: Vec<f64> = ours.iter().zip(&rounds).map(|(ours, this)| ours / this).collect();
        println!(
            "{:<38} {:>10.0} {:>17} {:>9} {:>26}",
            case.name,
            median(&rounds),
            format!("{:.0}..{:.0}", percentile(&rounds, 0.0), percentile(&rounds, 1.0)),
            format!("{:.2} %", 100.0 * (1.0 - case.delivered as f64 / case.sent as f64)),
            format!(
                "{:.2}  {:.2}..{:.2}",
                median(&ratios),
                percentile(&ratios, 0.0),
                percentile(&ratios, 1.0)
            )
        );
    }
    if let Some(counters) = cases[1].drive.report() {
        println!("   {counters}");
    }
    println!(
        "   targets: margay/conntrack at most 0.90; goal at most 0.80 of conntrack, 0.42 of 1,000 rules, 1.00 of bare"
    );
}
