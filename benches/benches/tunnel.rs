//! WireGuard in memory: what the tunnel adds to the engine under it, and what a second core brings.
//!
//! Peer: `boringtun::noise::Tunn::encapsulate` into a buffer, which is the protocol alone. Ours also looks up where the peer is, writes
//! Ethernet, IP and UDP around the datagram, and carries the congestion marks. Which peer it is, a flow remembers. Both take a packet
//! from one buffer and leave it in another; rounds of both alternate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use benches::numbers::median;
use benches::{Result, machine};
use boringtun::noise::{Tunn, TunnResult};
use margay_core::tunnel::outer::{self, Outer};
use margay_core::tunnel::plan::{FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{Addressee, Family, Opened, PeerId, PrivateKey, Sealed, Tunnels, ecn};
use margay_core::{Nanos, Spread, WorkerIndex};
use margay_wire::MacAddr;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const ROUNDS: usize = 21;
const PACKETS: usize = 20_000;
const LENGTHS: [usize; 3] = [64, 256, 1_420];
const PEER: PeerId = PeerId(7);
const NOW: Nanos = Nanos::from_secs(1_000);

fn main() -> Result<()> {
    machine::describe("tunnel: WireGuard in memory");
    for len in LENGTHS {
        one_core(len)?;
    }
    two_cores()
}

fn packet(len: usize) -> Vec<u8> {
    let mut bytes = vec![0x5a; len];
    bytes[..4].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
    bytes[12..16].copy_from_slice(&[10, 1, 0, 1]);
    bytes[16..20].copy_from_slice(&[10, 2, 0, 1]);
    bytes
}

fn addresses() -> [SocketAddr; 2] {
    [SocketAddr::from(([192, 0, 2, 1], 51_820)), SocketAddr::from(([192, 0, 2, 2], 51_820))]
}

/// Two nodes with a session.
fn connected() -> Result<(Tunnels, Tunnels)> {
    let keys = [PrivateKey::new([1; 32]), PrivateKey::new([2; 32])];
    let [at_a, at_b] = addresses();
    let tunnels =
        |own: &PrivateKey, at: SocketAddr, their: &PrivateKey, endpoint, allowed: &str| -> Result<Tunnels> {
            let peer = PeerPlan {
                id: PEER,
                node: "peer".to_owned(),
                keys: vec![their.public()],
                endpoint,
                allowed: vec![allowed.parse()?],
                keepalive: None,
            };
            let own = OwnEnd { keys: vec![own.clone()], port: at.port(), address: at.ip(), mtu: 0 };
            let family = Arc::new(Family::new(&FamilyPlan { own, peers: vec![peer] }, None));
            Ok(Tunnels::new(&family, &Spread::default(), WorkerIndex(0)))
        };
    let mut a = tunnels(&keys[0], at_a, &keys[1], at_b, "10.2.0.0/16")?;
    let mut b = tunnels(&keys[1], at_b, &keys[0], at_a, "10.1.0.0/16")?;
    let mut room = [[0; 2048]; 2];
    let [one, other] = &mut room;
    let len = a.begin(PEER, one).ok_or("no initiation")?;
    let (_, Opened::Answer(len)) = b.receive(at_a, &one[..len], other, NOW)? else {
        return Err("no response".into());
    };
    let (_, Opened::Answer(len)) = a.receive(at_b, &other[..len], one, NOW)? else {
        return Err("no keepalive".into());
    };
    b.receive(at_a, &one[..len], other, NOW)?;
    Ok((a, b))
}

/// The engine's own two ends with a session.
fn engine() -> Result<Tunn> {
    let [mine, theirs] = [[1u8; 32], [2; 32]].map(boringtun::x25519::StaticSecret::from);
    let public = |key: &boringtun::x25519::StaticSecret| boringtun::x25519::PublicKey::from(key);
    let ours = public(&mine);
    let mut a = Tunn::new(mine, public(&theirs), None, None, 1, None);
    let mut b = Tunn::new(theirs, ours, None, None, 2, None);
    let mut room = [[0; 2048]; 2];
    let [one, other] = &mut room;
    let sent = |result: TunnResult<'_>| match result {
        TunnResult::WriteToNetwork(datagram) => Ok(datagram.len()),
        other => Err(format!("the handshake ends with {other:?}")),
    };
    let len = sent(a.format_handshake_initiation(one, false))?;
    let len = sent(b.decapsulate(None, &one[..len], other))?;
    sent(a.decapsulate(None, &other[..len], one))?;
    Ok(a)
}

/// Seals a packet into a frame, headers and all; returns the frame's length.
#[inline(always)]
fn seal(tunnels: &mut Tunnels, macs: [MacAddr; 2], packet: &[u8], frame: &mut [u8]) -> usize {
    let [from, _] = addresses();
    let Some(to) = tunnels.endpoint(PEER) else { return 0 };
    let at = outer::len(to.ip());
    let Ok(Sealed::Datagram(len)) = tunnels.seal(PEER, packet, &mut frame[at..], NOW) else { return 0 };
    let [source_mac, destination_mac] = macs;
    let outer = Outer { source_mac, destination_mac, from, to, class: ecn::outer_class(packet) };
    outer.write(frame, len).unwrap_or(0)
}

const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];

fn one_core(len: usize) -> Result<()> {
    let (mut a, mut b) = connected()?;
    let mut peer = engine()?;
    let packet = packet(len);
    let mut frame = vec![0; 2048];
    let (mut ours, mut theirs, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    let mut datagrams = vec![vec![0; 2048]; 512];
    let mut lengths = vec![0; datagrams.len()];
    let per = |start: Instant, count: usize| start.elapsed().as_nanos() as f64 / count as f64;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..PACKETS {
            if seal(&mut a, MACS, &packet, &mut frame) == 0 {
                return Err("the session ended".into());
            }
        }
        ours.push(per(start, PACKETS));
        let start = Instant::now();
        for _ in 0..PACKETS {
            if !matches!(peer.encapsulate(&packet, &mut frame[..]), TunnResult::WriteToNetwork(_)) {
                return Err("the peer's session ended".into());
            }
        }
        theirs.push(per(start, PACKETS));
        for (datagram, length) in datagrams.iter_mut().zip(&mut lengths) {
            *length = seal(&mut a, MACS, &packet, datagram);
        }
        let at = outer::len(addresses()[1].ip());
        let start = Instant::now();
        for (datagram, length) in datagrams.iter().zip(&lengths) {
            let addressee = Addressee { peer: PEER, keys: None };
            let opened = b.open(addresses()[0], addressee, &datagram[at..*length], &mut frame, NOW);
            if !matches!(opened, Ok(Opened::Packet(_))) {
                return Err("a datagram was refused".into());
            }
        }
        opened.push(per(start, datagrams.len()));
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    let speed = |ns: f64| len as f64 * 8.0 / ns;
    println!("-- {len} bytes, one core, median of {ROUNDS} rounds of {PACKETS}");
    println!("{:<62} {ours:>9.1} ns  {:>6.2} Gb/s", "ours: sealed, headers written", speed(ours));
    println!("{:<62} {theirs:>9.1} ns  {:>6.2} Gb/s", "peer: boringtun encapsulate", speed(theirs));
    println!("{:<62} {:>9.2} x   must >= 0.97 at 1420 bytes, goal 1.0", "peer over ours", theirs / ours);
    println!("{:<62} {:>9.1} ns", "ours: opened, source checked", median(&opened));
    Ok(())
}

/// Packets that `threads` seal in a second, each for a peer of its own.
fn throughput(threads: usize) -> Result<f64> {
    let go = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let total = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    for cpu in 0..threads {
        let (go, stop, total) = (Arc::clone(&go), Arc::clone(&stop), Arc::clone(&total));
        let (mut a, _b) = connected()?;
        workers.push(std::thread::spawn(move || {
            // Where it is refused, the scheduler does what it can.
            let mut set = CpuSet::new();
            let _ = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
            let packet = packet(1_420);
            let mut frame = vec![0; 2048];
            while !go.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..64 {
                    count += u64::from(seal(&mut a, MACS, &packet, &mut frame) > 0);
                }
            }
            total.fetch_add(count, Ordering::AcqRel);
        }));
    }
    let start = Instant::now();
    go.store(true, Ordering::Release);
    std::thread::sleep(Duration::from_millis(400));
    stop.store(true, Ordering::Release);
    let spent = start.elapsed().as_secs_f64();
    for worker in workers {
        worker.join().map_err(|_| "a thread panicked")?;
    }
    Ok(total.load(Ordering::Acquire) as f64 / spent)
}

fn two_cores() -> Result<()> {
    println!("-- 1420 bytes, pinned threads with a peer each");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        println!("SKIPPED: one core only");
        return Ok(());
    }
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        one.push(throughput(1)?);
        two.push(throughput(2)?);
    }
    let (one, two) = (median(&one), median(&two));
    println!("{:<62} {:>9.3} M/s", "one thread", one / 1e6);
    println!("{:<62} {:>9.3} M/s", "two threads", two / 1e6);
    println!("{:<62} {:>9.2} x   must >= 1.8, goal 1.9", "two over one", two / one);
    Ok(())
}
