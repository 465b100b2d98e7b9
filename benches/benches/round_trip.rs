//! A small datagram to another pod of the node and back, beside the same through the kernel's own forwarding.
//!
//! ```text
//!   ours:   ping ─ pod ═veth═ node (agent, one worker, a policy) ═veth═ pod ─ echo
//!   kernel: ping ─ namespace ═veth═ namespace that forwards ═veth═ namespace ─ echo
//! ```
//!
//! Ping and echo are this program, called again within the pods; both stay on the first processor, where the kernel's way is at its best:
//! nobody is woken across processors. Agents differ in how long their worker looks for more work before it sleeps (`--spin`): 50 us, the
//! agent's default, and ten milliseconds, so that it does not sleep while the test runs. The worker is beside ping and echo, or on the
//! last processor, as `--cpu auto` has it; there every packet has to wake ping or echo from another processor, which is measured by
//! itself: a byte through a pair of sockets and back. Trips follow each other at once, or with pauses; with 50 us a worker sleeps in the
//! pauses only, so the limit of one that sleeps holds there. All take turns in rounds; a ratio is formed within a round.
//!
//! Twice: with processors that halt when they have nothing to do, as they come, and then while an agent with `--cpu-latency 0us` keeps
//! them from that. It keeps them from it for the kernel's forwarding too, so ratios are between equals. What the kernel takes without the
//! bound is compared too.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use benches::lab::{Lab, Plan};
use benches::numbers::{median, percentile};
use benches::router::{FAR, Router};
use benches::streams::{Running, patiently, run};
use benches::{Result, machine};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const ROUNDS: usize = 9;
const PORT: u16 = 7007;
/// What ping and echo are called with; no word of cargo's is like these.
const PING: &str = "ping-from-here";
const ECHO: &str = "echo-from-here";
/// Trips of a turn, and the pause between two.
const PACES: [Pace; 2] = [
    Pace { name: "at once", trips: 3_000, pause: Duration::ZERO },
    Pace { name: "1 ms between trips", trips: 150, pause: Duration::from_millis(1) },
];
/// Trips of a turn that do not count: addresses are resolved, flows opened.
const WARM: usize = 50;
const SILENCE: Duration = Duration::from_secs(1);

struct Pace {
    name: &'static str,
    trips: usize,
    pause: Duration,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [PING, address, trips, pause] => ping(address, trips.parse()?, Duration::from_micros(pause.parse()?)),
        [ECHO] => echo(),
        _ if !nix::unistd::geteuid().is_root() => {
            println!("SKIPPED round_trip: needs root");
            Ok(())
        }
        _ => bench(),
    }
}

fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Sends datagrams one after the other and prints the nanoseconds that each took to come back.
fn ping(address: &str, trips: usize, pause: Duration) -> Result<()> {
    stay_on(0)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.connect((address, PORT))?;
    let mut buffer = [0; 64];
    let mut times = Vec::with_capacity(trips);
    for trip in 0..trips + WARM {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let number = (trip as u64).to_be_bytes();
        let start = Instant::now();
        socket.send(&number)?;
        // An answer that comes after its trip was given up is another trip's.
        while socket.recv(&mut buffer)? != number.len() || buffer[..number.len()] != number {}
        times.push(start.elapsed().as_nanos());
    }
    let text: Vec<String> = times[WARM..].iter().map(u128::to_string).collect();
    println!("{}", text.join(" "));
    Ok(())
}

/// Sends back whatever comes, until it is ended.
fn echo() -> Result<()> {
    stay_on(0)?;
    let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], from)?;
    }
}

/// Returns the microseconds of a byte to a sleeping thread on `processor` and back to a sleeping one on the first.
fn woken_on(processor: usize) -> Result<f64> {
    let (mut near, mut far) = UnixStream::pair()?;
    let trips = PACES[0].trips;
    let times = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let other = scope.spawn(move || -> Result<()> {
            stay_on(processor)?;
            let mut byte = [0];
            for _ in 0..trips {
                far.read_exact(&mut byte)?;
                far.write_all(&byte)?;
            }
            Ok(())
        });
        let one = scope.spawn(move || -> Result<Vec<f64>> {
            stay_on(0)?;
            let mut times = Vec::with_capacity(trips);
            for _ in 0..trips {
                let start = Instant::now();
                near.write_all(&[1])?;
                near.read_exact(&mut [0])?;
                times.push(start.elapsed().as_nanos() as f64 / 1e3);
            }
            Ok(times)
        });
        other.join().map_err(|_| "a thread panicked")??;
        one.join().map_err(|_| "a thread panicked")?
    })?;
    Ok(median(&times))
}

/// A way from ping to echo.
struct Case<'a> {
    name: &'static str,
    lead: Box<dyn Fn() -> Command + 'a>,
    address: String,
    /// Where the worker is to be in this case.
    worker: Option<(&'a Lab, usize)>,
    /// Of each pace, what the median may be of the kernel's in the same round: limit, goal.
    limits: [Option<(f64, f64)>; PACES.len()],
    /// Of each pace: medians of the rounds, and all trips.
    medians: [Vec<f64>; PACES.len()],
    trips: [Vec<f64>; PACES.len()],
}

impl<'a> Case<'a> {
    fn of(name: &'static str, lead: impl Fn() -> Command + 'a, address: &str) -> Self {
        Self {
            name,
            lead: Box::new(lead),
            address: address.to_owned(),
            worker: None,
            limits: Default::default(),
            medians: Default::default(),
            trips: Default::default(),
        }
    }

    fn ours(
        name: &'static str,
        node: &'a Node,
        processor: usize,
        limits: [Option<(f64, f64)>; PACES.len()],
    ) -> Self {
        let case = Self::of(name, move || node.lab.exec("a/one"), &node.address);
        Self { worker: Some((&node.lab, processor)), limits, ..case }
    }

    fn turn(&mut self) -> Result<()> {
        if let Some((lab, processor)) = self.worker {
            lab.keep_workers_on(processor)?;
        }
        for (at, pace) in PACES.iter().enumerate() {
            let words = [PING, &self.address, &pace.trips.to_string(), &pace.pause.as_micros().to_string()]
                .map(str::to_owned);
            let said = run((self.lead)().arg(std::env::current_exe()?).args(words))?;
            let times: Vec<f64> = said
                .split_whitespace()
                .filter_map(|word| word.parse::<f64>().ok())
                .map(|ns| ns / 1e3)
                .collect();
            if times.len() != pace.trips {
                return Err(format!("{}: ping said {said}", self.name).into());
            }
            self.medians[at].push(median(&times));
            self.trips[at].extend(times);
        }
        Ok(())
    }
}

fn bench() -> Result<()> {
    machine::describe("round trip of a datagram between two pods of a node, microseconds");
    let binary = benches::release_binary()?;
    let last = machine::cpus() - 1;
    let kernel = Router::up()?;
    let _echo = Running::start(kernel.inside(1).arg(std::env::current_exe()?).arg(ECHO))?;
    let (asleep, spinning) = ([None, Some((2.0, 1.8))], [Some((1.4, 1.2)); PACES.len()]);
    let as_it_comes = {
        let usual = Node::up(&binary, "u", &["--spin=50us"])?;
        let awake = Node::up(&binary, "s", &["--spin=10ms"])?;
        compare(
            "processors halt when they have nothing to do",
            &mut [
                Case::of("peer: kernel forwarding", || kernel.inside(0), FAR),
                Case::ours("margay, --spin 50us, beside ping and echo", &usual, 0, asleep),
                Case::ours("margay, --spin 50us, other processor", &usual, last, asleep),
                Case::ours("margay, --spin 10ms, beside ping and echo", &awake, 0, spinning),
                Case::ours("margay, --spin 10ms, other processor", &awake, last, spinning),
            ],
        )?
    };
    let awake = Node::up(&binary, "h", &["--spin=10ms", "--cpu-latency=0us"])?;
    let kept_awake = compare(
        "processors do not halt: margay --cpu-latency 0us",
        &mut [
            Case::of("peer: kernel forwarding", || kernel.inside(0), FAR),
            Case::ours("margay, --spin 10ms, other processor", &awake, last, spinning),
            Case::ours("margay, --spin 10ms, beside ping and echo", &awake, 0, spinning),
        ],
    )?;
    for ((pace, kernel), ours) in PACES.iter().zip(&as_it_comes[0]).zip(&kept_awake[1]) {
        println!(
            "   {}: other processor, with the bound, over the kernel without it: {:.2}",
            pace.name,
            ours / kernel
        );
    }
    Ok(())
}

/// A node of ours, with echo in its second pod.
struct Node {
    lab: Lab,
    address: String,
    _echo: Running,
}

impl Node {
    fn up(binary: &Path, tag: &str, told: &[&str]) -> Result<Self> {
        let lab = Lab::up(binary, tag, &Plan { told, ..Plan::ONE_NODE })?;
        let echo = Running::start(lab.exec("a/two").arg(std::env::current_exe()?).arg(ECHO))?;
        Ok(Self { address: lab.address("a/two")?, lab, _echo: echo })
    }
}

/// Lets the cases take turns, the first of which is the others' peer, and prints what they took. Returns the medians of each, by pace.
fn compare(title: &str, cases: &mut [Case<'_>]) -> Result<Vec<[f64; PACES.len()]>> {
    let last = machine::cpus() - 1;
    let me = std::env::current_exe()?;
    for case in cases.iter() {
        patiently(|| run((case.lead)().arg(&me).args([PING, &case.address, "1", "0"])))?;
    }
    let count = cases.len();
    let (mut within, mut across) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        within.push(woken_on(0)?);
        across.push(woken_on(last)?);
        for at in 0..count {
            cases[(at + round) % count].turn()?;
        }
    }
    println!("\n== {title}");
    println!(
        "   {ROUNDS} rounds of {} and {} trips; load average now {}",
        PACES[0].trips,
        PACES[1].trips,
        machine::load()
    );
    println!(
        "   a byte to another thread and back: {:.1} on one processor, {:.1} between two",
        median(&within),
        median(&across)
    );
    for (at, pace) in PACES.iter().enumerate() {
        println!("   trips {}", pace.name);
        println!("{:<48} {:>8} {:>8} {:>26}", "", "p50", "p99", "over the kernel, min..max");
        let (peer, ours) = cases.split_at(1);
        report(&peer[0], at, &peer[0].medians[at]);
        ours.iter().for_each(|case| report(case, at, &peer[0].medians[at]));
    }
    Ok(cases.iter().map(|case| [0, 1].map(|pace| median(&case.medians[pace]))).collect())
}

fn report(case: &Case<'_>, pace: usize, kernel: &[f64]) {
    let ratios: Vec<f64> =
        case.medians[pace].iter().zip(kernel).map(|(ours, kernel)| ours / kernel).collect();
    let ratio = median(&ratios);
    let mark = case.limits[pace].map(|(must, goal)| {
        let mark = match ratio {
            ratio if ratio <= goal => "goal",
            ratio if ratio <= must => "must",
            _ => "missed",
        };
        format!("must {must}, goal {goal}: {mark}")
    });
    println!(
        "{:<48} {:>8.1} {:>8.1} {:>26}   {}",
        case.name,
        median(&case.medians[pace]),
        percentile(&case.trips[pace], 0.99),
        format!("{ratio:.2}  {:.2}..{:.2}", percentile(&ratios, 0.0), percentile(&ratios, 1.0)),
        mark.unwrap_or_default()
    );
}
