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

mod forwarder;

use std::path::Path;
use std::time::Instant;

use benches::cables::cables;
use benches::generator::Generator;
use benches::namespaces::{self, NetNs, feed, ifindex, ip, nft, received, sysctl, up, wait_for_carrier};
use benches::numbers::{median, percentile};
use benches::{Result, machine, world};
use forwarder::{Drive, Forwarder, Kernel, Patch};
use margay_core::{Worker, WorkerConfig};
use margay_io::engine::BURST;
use margay_io::steer::Steer;
use margay_io::thread::now;
use margay_io::xsk::UmemFrame;
use margay_io::{Role, mount_bpffs};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Flows, each with its answer seen, so that a connection tracker calls them established.
const FLOWS: usize = 256;
const RULES: usize = 1000;
/// Ports beside the two busy ones, in one case.
const IDLE: usize = 250;
const BURSTS_PER_SAMPLE: usize = 8;
const SAMPLES: usize = 40;
const ROUNDS: usize = 15;

fn main() -> Result<()> {
    namespaces::run("closed_loop", bench)
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

/// Makes pairs of devices that nothing is sent on, both ends in the thread's namespace, and returns the names of the first ends.
fn silent(count: usize) -> Result<Vec<String>> {
    // A kernel without IPv6 has nothing to be switched off.
    let _ = sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let names: Vec<String> = (0..count).map(|n| format!("idle{n}")).collect();
    let mut batch = String::new();
    for name in &names {
        batch += &format!("link add {name} type veth peer name {name}-far\n");
        batch += &format!("link set {name} arp off up\nlink set {name}-far arp off up\n");
    }
    feed("ip", &["-batch", "-"], &batch)?;
    names.last().map_or(Ok(()), |name| wait_for_carrier(name))?;
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
        ("idle", "margay, 1,000 rules, 250 idle ports"),
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
        let mut devices = vec![into.clone(), out.clone()];
        let bpffs = directory.join(tag);
        let worker = || Worker::<UmemFrame>::new(WorkerConfig::default(), now());
        let mut drive = namespace.inside(|| {
            if tag == "idle" {
                devices.extend(silent(IDLE)?);
            }
            let drive: Box<dyn Drive> = match tag {
                "ours" | "idle" => Box::new(Forwarder::new(&bpffs, &devices, RULES, worker())?),
                "none" => Box::new(Forwarder::new(&bpffs, &devices, 0, worker())?),
                "copy" => Box::new(Forwarder::new(&bpffs, &devices, 0, Patch::default())?),
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
    let over = |name: &str, of_name: &str, must: f64, goal: f64| {
        let find = |name: &str| cases.iter().find(|case| case.name.ends_with(name)).map(of);
        let (this, other) = (find(name).unwrap_or_default(), find(of_name).unwrap_or_default());
        let ratio = median(&this.iter().zip(&other).map(|(this, other)| this / other).collect::<Vec<_>>());
        let mark = match ratio {
            ratio if ratio <= goal => "goal",
            ratio if ratio <= must => "must",
            _ => "missed",
        };
        println!("   {name} over {of_name}: {ratio:.3}; must {must}, goal {goal}: {mark}");
    };
    over("margay, 1,000 rules", "kernel, conntrack", 0.90, 0.80);
    over("margay, 1,000 rules", "margay, no rules", 1.03, 1.02);
    over("250 idle ports", "margay, 1,000 rules", 1.15, 1.1);
    println!("   further goals: at most 0.42 of 1,000 linear rules, 1.00 of bare forwarding");
}
