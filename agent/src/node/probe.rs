//! Which way of crossing a pod's interface is the cheapest here, found out once at the start.
//!
//! A pair of devices for each way, in a network namespace of the probe's own: at one end the agent's own program, socket and engine, which
//! send everything back, at the other a plain socket as in a pod. What counts is the *processor time for a byte that came back*, the
//! kernel's own threads included: packets alone would flatter a way that loses the large ones, and the clock on the wall would tell who
//! else is busy. A way that makes a single packet wait much longer than another is none, however cheap.
//!
//! ```text
//!   socket ─ far end ═veth═ near end ─ [program, AF_XDP, engine] ┐
//!                                       ◀───────────────────────┘
//! ```
//!
//! The namespaces are those of one thread and end with it. NICs are not probed: nothing of ours may be sent there, and a driver that runs
//! programs does so faster than anything above it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use margay_io::probe::Echo;
use margay_io::{AttachChoice, AttachMode, mount_bpffs};
use margay_wire::MacAddr;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use nix::time::{ClockId, clock_gettime};

use super::offloads;
use crate::net::napi::{self, Napi};
use crate::net::{NetError, Netlink, VethEnd, ethtool, sysctl};

/// Content of a datagram: with its headers, a packet of the usual MTU.
const DATAGRAM: u16 = 1400;
/// Datagrams of one large send, as a stream's segments are.
const TOGETHER: usize = 16;
/// Large sends before the far end looks at what came back.
const SENDS: usize = 2;
/// Turns of all ways; the best of each counts.
const ROUNDS: usize = 4;
/// Bytes of one way in one turn.
const BYTES: usize = 12 * SENDS * TOGETHER * DATAGRAM as usize;
/// Packets that go to and fro alone.
const TRIPS: usize = 24;
/// How long nothing comes before what is missing is lost.
const SILENCE: Duration = Duration::from_millis(2);
/// So many looks at nothing in and nothing out, and a way carries nothing more: the start waits for the probe.
const STANDSTILL: usize = 10;
/// No new turn begins after this.
const PATIENCE: Duration = Duration::from_millis(150);
/// What a way must save, of the usual way's time, to be taken instead.
const WORTH: f64 = 0.95;
/// How much longer than the fastest a packet may travel alone.
const SLOWER: f64 = 1.25;

/// A way of crossing a pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where the program stands.
    pub mode: AttachMode,
    /// Whether threads of the kernel poll both ends, instead of whoever sends.
    pub threaded: bool,
}

impl Way {
    /// In the driver, polled by whoever sends: what there is without asking.
    pub const USUAL: Self = Self { mode: AttachMode::Native, threaded: false };

    fn all() -> impl Iterator<Item = Self> {
        let modes = [AttachMode::Native, AttachMode::Generic];
        modes.into_iter().flat_map(|mode| [false, true].map(|threaded| Self { mode, threaded }))
    }

    fn name(self) -> String {
        format!("{} {}", self.mode.as_str(), if self.threaded { "threaded" } else { "inline" })
    }
}

/// What one way was like.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    way: Way,
    /// Of the bytes sent, how many came back.
    delivered: f64,
    /// Processor time for a thousand bytes that came back.
    nanos_per_kilobyte: f64,
    round_trip: Duration,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The way to take.
    pub way: Way,
    /// What speaks for it, in words and numbers.
    pub why: String,
    /// How long finding out took.
    pub took: Duration,
}

/// What may be chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Ways of attaching.
    pub choice: AttachChoice,
    /// Whether packets of several frames are in use: then nothing is gained above the driver, where each of them is copied once more.
    pub several_frames: bool,
    /// `None` asks.
    pub threaded: Option<bool>,
}

impl Question {
    fn allows(self, way: Way) -> bool {
        let mode = match self.choice {
            AttachChoice::Auto => way.mode == AttachMode::Native || !self.several_frames,
            AttachChoice::Native => way.mode == AttachMode::Native,
            AttachChoice::Generic => way.mode == AttachMode::Generic,
        };
        mode && self.threaded.is_none_or(|threaded| threaded == way.threaded)
    }
}

/// Answers it, by trying what is allowed. `folder` is made and removed.
pub fn ask(question: Question, folder: &Path) -> Finding {
    let began = Instant::now();
    let allowed: Vec<Way> = Way::all().filter(|way| question.allows(*way)).collect();
    let usual = allowed.first().copied().unwrap_or(Way::USUAL);
    let (way, why) = match allowed.as_slice() {
        [_] => (usual, "asked for".to_owned()),
        ways => match measure(ways, folder) {
            Ok(measured) => choose(usual, &measured),
            Err(error) => (usual, format!("not probed: {error}")),
        },
    };
    Finding { way, why, took: began.elapsed() }
}

/// Chooses among what was measured; `usual` is what it is without a reason for another.
fn choose(usual: Way, measured: &[Measured]) -> (Way, String) {
    let numbers: Vec<String> = measured
        .iter()
        .map(|it| {
            format!(
                "{} {:.0} ns/kB, {} us, {:.0} %",
                it.way.name(),
                it.nanos_per_kilobyte,
                it.round_trip.as_micros(),
                it.delivered * 100.0
            )
        })
        .collect();
    let numbers = numbers.join("; ");
    let carries: Vec<&Measured> = measured.iter().filter(|it| it.delivered >= 0.99).collect();
    let Some(fastest) = carries.iter().map(|it| it.round_trip).min() else {
        return (usual, format!("no way carried the probe: {numbers}"));
    };
    let quick = carries.into_iter().filter(|it| it.round_trip <= fastest.mul_f64(SLOWER));
    let cheapest = quick.clone().min_by(|a, b| a.nanos_per_kilobyte.total_cmp(&b.nanos_per_kilobyte));
    let of_usual = quick.clone().find(|it| it.way == usual).map(|it| it.nanos_per_kilobyte);
    let way = match (cheapest, of_usual) {
        (Some(best), Some(there)) if best.nanos_per_kilobyte > there * WORTH => usual,
        (Some(best), _) => best.way,
        (None, _) => usual,
    };
    (way, numbers)
}

/// Measures each way in turn, on a thread with namespaces of its own.
fn measure(ways: &[Way], folder: &Path) -> Result<Vec<Measured>, String> {
    let bpffs = folder.join("bpf");
    fs::create_dir_all(&bpffs).map_err(|e| format!("cannot make {}: {e}", bpffs.display()))?;
    let result = in_namespaces(&bpffs, |bpffs| measure_here(ways, bpffs));
    // What stays behind is an empty folder.
    let _ = fs::remove_dir(&bpffs);
    let _ = fs::remove_dir(folder);
    result
}

/// Runs `work` on a thread with a network namespace of its own and a bpffs at `bpffs` that nobody else sees.
fn in_namespaces<T: Send>(
    bpffs: &Path,
    work: impl FnOnce(&Path) -> Result<T, String> + Send,
) -> Result<T, String> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|e| e.to_string())?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|e| e.to_string())?;
            mount_bpffs(bpffs).map_err(|e| e.to_string())?;
            work(bpffs)
        });
        inside.join().unwrap_or_else(|_| Err("the probe panicked".to_owned()))
    })
}

fn measure_here(ways: &[Way], bpffs: &Path) -> Result<Vec<Measured>, String> {
    let mut echo = Echo::new(bpffs).map_err(|e| e.to_string())?;
    let mut lanes = Vec::new();
    let mut refused = Vec::new();
    for (number, way) in (0..).zip(ways) {
        match Lane::open(&mut echo, number, *way) {
            Ok(lane) => lanes.push(lane),
            Err(why) => refused.push(format!("{}: {why}", way.name())),
        }
    }
    if lanes.is_empty() {
        return Err(refused.join("; "));
    }
    for line in refused {
        tracing::debug!(why = line, "a way of crossing interfaces is not there");
    }
    let deadline = Instant::now() + PATIENCE;
    for round in 0..ROUNDS {
        for lane in &mut lanes {
            if round < 2 || Instant::now() < deadline {
                lane.stream(&mut echo).map_err(|e| e.to_string())?;
                lane.trips(&mut echo).map_err(|e| e.to_string())?;
            }
        }
    }
    Ok(lanes.iter().map(Lane::measured).collect())
}

/// One way, with what it needs.
struct Lane {
    way: Way,
    socket: UdpSocket,
    /// The kernel's threads that work for it.
    helpers: Vec<PathBuf>,
    sent: usize,
    back: usize,
    /// The least of all rounds.
    nanos_per_kilobyte: f64,
    trips: Vec<Duration>,
}

impl Lane {
    fn open(echo: &mut Echo, number: u8, way: Way) -> Result<Self, String> {
        let [near, far] = names(number);
        let said = |e: NetError| e.to_string();
        let mut netlink = Netlink::open().map_err(said)?;
        let mac = |last| MacAddr([2, 0x6d, 0x67, 0x79, number, last]);
        let ours = VethEnd { name: &near, mac: mac(1), netns: None, no_arp: true };
        let theirs = VethEnd { name: &far, mac: mac(2), netns: None, no_arp: false };
        netlink.add_veth(&ours, &theirs, 1500).map_err(said)?;
        for end in [&near, &far] {
            sysctl::set_if_present(&["ipv6", "conf", end, "disable_ipv6"], "1").map_err(said)?;
        }
        let mode = echo
            .add(
                &near,
                match way.mode {
                    AttachMode::Native => AttachChoice::Native,
                    AttachMode::Generic => AttachChoice::Generic,
                },
            )
            .map_err(|e| e.to_string())?;
        ethtool::set_features(&far, &[("rx-gro", true)]).map_err(said)?;
        if mode == AttachMode::Generic {
            offloads::no_large_segments(&far).map_err(said)?;
            offloads::no_large_receives(&near).map_err(said)?;
        }
        let (host, peer) = (Ipv4Addr::new(198, 18, number, 1), Ipv4Addr::new(198, 18, number, 2));
        let index = netlink.existing(&far).map_err(said)?.index;
        let near_index = netlink.existing(&near).map_err(said)?.index;
        let network = Ipv4Net::new_assert(host, 30);
        netlink.add_address(index, IpNet::V4(network)).map_err(said)?;
        netlink.set_up(near_index, true).map_err(said)?;
        netlink.set_up(index, true).map_err(said)?;
        netlink.add_neighbour(index, peer.into(), mac(1)).map_err(said)?;
        let mut helpers = Vec::new();
        if way.threaded {
            for end in [&near, &far] {
                napi::set(None, end, Napi { threaded: true, ..Napi::default() }).map_err(said)?;
            }
            helpers = threads_of(&[&near, &far]).map_err(|e| e.to_string())?;
            if helpers.len() < 2 {
                return Err("the kernel's threads cannot be seen from here".to_owned());
            }
        }
        let socket = UdpSocket::bind((host, 9)).map_err(|e| e.to_string())?;
        socket.connect((peer, 9)).map_err(|e| e.to_string())?;
        socket.set_nonblocking(true).map_err(|e| e.to_string())?;
        setsockopt(&socket, UdpGsoSegment, &i32::from(DATAGRAM)).map_err(|e| e.to_string())?;
        echo.watch(socket.as_raw_fd()).map_err(|e| e.to_string())?;
        Ok(Self {
            way,
            socket,
            helpers,
            sent: 0,
            back: 0,
            nanos_per_kilobyte: f64::INFINITY,
            trips: Vec::new(),
        })
    }

    /// Large sends, as a stream makes them; what comes back is counted.
    fn stream(&mut self, echo: &mut Echo) -> io::Result<()> {
        let large = vec![0x6d; TOGETHER * usize::from(DATAGRAM)];
        let before = self.spent()?;
        let (mut sent, mut back) = (0, 0);
        let mut still = 0;
        while sent < BYTES && still < STANDSTILL {
            let moved = sent + back;
            for _ in 0..SENDS {
                match self.socket.send(&large) {
                    Ok(count) => sent += count,
                    // No room: what is on its way has to arrive first.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
            back += self.gather(echo, sent - back)?;
            still = if sent + back == moved { still + 1 } else { 0 };
        }
        let spent = (self.spent()? - before).as_nanos() as f64;
        self.sent += sent;
        self.back += back;
        if back > 0 {
            self.nanos_per_kilobyte = self.nanos_per_kilobyte.min(spent * 1e3 / back as f64);
        }
        Ok(())
    }

    /// Single packets, each after the one before.
    fn trips(&mut self, echo: &mut Echo) -> io::Result<()> {
        for _ in 0..TRIPS {
            let began = Instant::now();
            self.socket.send(&[0x6d; 64])?;
            if self.gather(echo, 64)? == 64 {
                self.trips.push(began.elapsed());
            }
        }
        Ok(())
    }

    /// Sends back and takes in until `wanted` bytes are there, or nothing more comes; returns how many are.
    fn gather(&self, echo: &mut Echo, wanted: usize) -> io::Result<usize> {
        let mut buffer = [0; 2 * DATAGRAM as usize];
        let (mut there, mut last) = (0, Instant::now());
        while there < wanted {
            let mut moved = echo.turn() > 0;
            loop {
                match self.socket.recv(&mut buffer) {
                    Ok(count) => there += count,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
                moved = true;
            }
            if moved {
                last = Instant::now();
            } else if last.elapsed() >= SILENCE {
                break;
            } else {
                echo.wait(SILENCE);
            }
        }
        Ok(there)
    }

    /// Returns the processor time that this thread and the helpers have had.
    fn spent(&self) -> io::Result<Duration> {
        let own = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let mut sum = Duration::from(own);
        for helper in &self.helpers {
            let text = fs::read_to_string(helper)?;
            let nanos = text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
            sum += Duration::from_nanos(nanos);
        }
        Ok(sum)
    }

    fn measured(&self) -> Measured {
        let mut trips = self.trips.clone();
        trips.sort();
        Measured {
            way: self.way,
            delivered: self.back as f64 / self.sent.max(1) as f64,
            nanos_per_kilobyte: self.nanos_per_kilobyte,
            round_trip: trips.get(trips.len() / 2).copied().unwrap_or(Duration::MAX),
        }
    }
}

/// Returns the names of a pair's ends. They have the process in them, because the threads that poll them are seen among those of every
/// other probe of this machine.
fn names(number: u8) -> [String; 2] {
    let process = std::process::id() & 0xffff;
    ["mgyn", "mgyf"].map(|end| format!("{end}{number}{process:04x}"))
}

/// Returns where the kernel writes down the processor time of the threads that poll these devices.
fn threads_of(devices: &[&String]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // A process may end meanwhile.
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        if devices.iter().any(|device| name.starts_with(&format!("napi/{device}-"))) {
            found.push(path.join("schedstat"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: Way = Way::USUAL;
    const THREADED: Way = Way { mode: AttachMode::Native, threaded: true };
    const GENERIC: Way = Way { mode: AttachMode::Generic, threaded: false };

    fn measured(way: Way, nanos_per_kilobyte: f64, micros: u64, delivered: f64) -> Measured {
        Measured { way, delivered, nanos_per_kilobyte, round_trip: Duration::from_micros(micros) }
    }

    #[test]
    fn the_cheapest_way_wins_by_more_than_noise() {
        let usual = measured(NATIVE, 1000.0, 10, 1.0);
        assert_eq!(choose(NATIVE, &[usual, measured(GENERIC, 900.0, 10, 1.0)]).0, GENERIC);
        assert_eq!(choose(NATIVE, &[usual, measured(GENERIC, 960.0, 10, 1.0)]).0, NATIVE);
        assert_eq!(choose(NATIVE, &[measured(GENERIC, 960.0, 10, 1.0)]).0, GENERIC, "the only one there");
    }

    #[test]
    fn a_way_that_loses_bytes_or_delays_packets_does_not() {
        let usual = measured(NATIVE, 1000.0, 10, 1.0);
        let (way, why) = choose(NATIVE, &[usual, measured(GENERIC, 100.0, 10, 0.5)]);
        assert_eq!(way, NATIVE);
        assert!(why.contains("generic inline 100 ns/kB, 10 us, 50 %"), "{why}");
        assert_eq!(choose(NATIVE, &[usual, measured(THREADED, 700.0, 20, 1.0)]).0, NATIVE);
        assert_eq!(choose(NATIVE, &[usual, measured(THREADED, 700.0, 12, 1.0)]).0, THREADED);
        let (way, why) = choose(NATIVE, &[measured(NATIVE, f64::INFINITY, 10, 0.0)]);
        assert!(way == NATIVE && why.starts_with("no way carried"), "{why}");
    }

    #[test]
    fn what_was_told_is_not_asked() {
        let folder = Path::new("/nonexistent/never-made");
        let told = |choice, threaded| {
            ask(Question { choice, several_frames: false, threaded: Some(threaded) }, folder)
        };
        assert_eq!(told(AttachChoice::Generic, false).way, GENERIC);
        assert_eq!(told(AttachChoice::Native, true).way, THREADED);
        let several = Question { choice: AttachChoice::Auto, several_frames: true, threaded: Some(false) };
        let finding = ask(several, folder);
        assert_eq!((finding.way, finding.why.as_str()), (NATIVE, "asked for"));
    }

    #[test]
    fn a_way_that_loses_large_sends_is_seen_by_its_bytes() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED a_way_that_loses_large_sends_is_seen_by_its_bytes: needs root");
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let work = |bpffs: &Path| -> Result<(), String> {
            let mut echo = Echo::new(bpffs).map_err(|e| e.to_string())?;
            let mut lane = Lane::open(&mut echo, 0, GENERIC)?;
            // As a pod's interface is before it is told: large sends pass it uncut, and no frame of packet memory holds one.
            let [_, far] = names(0);
            ethtool::set_features(&far, &[("tx-udp-segmentation", true)]).map_err(|e| e.to_string())?;
            lane.stream(&mut echo).map_err(|e| e.to_string())?;
            lane.trips(&mut echo).map_err(|e| e.to_string())?;
            let seen = lane.measured();
            assert!(seen.delivered < 0.1, "{seen:?}");
            assert!(seen.round_trip < Duration::from_secs(1), "single packets do pass: {seen:?}");
            assert!(choose(NATIVE, &[seen]).1.starts_with("no way carried"));
            Ok(())
        };
        in_namespaces(folder.path(), work).expect("to measure");
    }

    #[test]
    fn every_way_of_this_kernel_carries_the_probe_and_costs_something() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED every_way_of_this_kernel_carries_the_probe_and_costs_something: needs root");
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let ways: Vec<Way> = Way::all().collect();
        let began = Instant::now();
        let measured = measure(&ways, &folder.path().join("probe")).expect("to measure");
        let took = began.elapsed();
        println!("{}", choose(NATIVE, &measured).1);
        assert!(measured.len() >= 2, "{measured:?}");
        for it in &measured {
            assert!(it.delivered > 0.9, "{it:?}");
            assert!(it.nanos_per_kilobyte.is_finite() && it.nanos_per_kilobyte > 50.0, "{it:?}");
            assert!(it.round_trip < Duration::from_millis(50), "{it:?}");
        }
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!folder.path().join("probe").exists(), "it leaves nothing behind");
    }
}
