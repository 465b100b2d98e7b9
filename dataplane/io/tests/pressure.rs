//! What pushes back: whoever does not take packets loses them under a name, no frame of the memory is lost, and another pair of ports
//! never waits. On real devices in namespaces of the test's own; without root each test says `SKIPPED` and passes.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use margay_core::handover::{Errand, Handover, Parcels};
use margay_core::{Counters, DropReason, Frame, Nanos, Output, PortIndex, View, WorkerIndex};
use margay_io::engine::Processor;
use margay_io::{Dataplane, DataplaneConfig, DataplaneError, PortCounters, Role};
use support::{Far, Patch, config, frame, in_namespaces, ip, spec, veth, wait_for_carrier};

const SOON: Duration = Duration::from_secs(3);
/// Frames of a flood.
const FLOOD: u32 = 20_000;

const A: PortIndex = PortIndex(1);
const B: PortIndex = PortIndex(2);

/// Ports a and b, joined to each other, and beside them c and d.
fn four_pods(directory: &Path, chunks: u32) -> Dataplane {
    for name in ["host0", "a0", "b0", "c0", "d0"] {
        veth(name);
    }
    let make = |_, _| Patch::new(&[(1, 2), (3, 4)], Arc::default());
    let dataplane = Dataplane::start_with(DataplaneConfig { chunks, ..config(directory) }, make).unwrap();
    dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
    for (index, name) in [(1, "a0"), (2, "b0"), (3, "c0"), (4, "d0")] {
        dataplane.add_port(spec(index, name, Role::Pod)).unwrap();
    }
    dataplane
}

fn numbered(number: u32) -> Vec<u8> {
    frame([10, 0, 0, 1], [10, 0, 0, 2], number)
}

/// Sends a flood in bursts, so that whoever has to deal with it on a busy machine gets its turn, and fails to for a third of a second.
fn flood(from: &Far) {
    for number in 0..FLOOD {
        from.send(&numbered(number));
        if number % 64 == 63 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Traffic between two other ports, one frame after the other, none of which may be lost or late.
struct Beside {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Beside {
    fn start(from: &str, to: &str) -> Self {
        let (from, to) = (Far::new(from), Far::new(to));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(SeqCst) {
                let sent = numbered(number);
                from.send(&sent);
                assert_eq!(to.receive(Duration::from_secs(1)), Some(sent), "the pair beside waits");
                number += 1;
            }
            number
        });
        Self { stop, thread }
    }

    /// Ends it.
    fn end(self) {
        self.stop.store(true, SeqCst);
        let frames = self.thread.join().unwrap();
        println!("{frames} frames passed beside");
        assert!(frames > 100, "{frames}");
    }
}

/// Both books of the frames agree, as soon as closed sockets are forgotten.
fn no_frame_is_lost(dataplane: &Dataplane) {
    let deadline = Instant::now() + SOON;
    loop {
        let report = dataplane.frames().unwrap();
        if report.agrees() {
            return;
        }
        assert!(Instant::now() < deadline, "{report:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn counters(dataplane: &Dataplane, port: PortIndex) -> PortCounters {
    dataplane.port_counters().unwrap()[&port]
}

/// Every frame of a flood from a to b is somewhere in the counters of both ports.
fn every_frame_is_counted(dataplane: &Dataplane) -> (PortCounters, PortCounters) {
    let deadline = Instant::now() + SOON;
    loop {
        let (a, b) = (counters(dataplane, A), counters(dataplane, B));
        let lost_before = a.kernel.rx_dropped + a.kernel.rx_ring_full;
        if a.rx_packets + lost_before == u64::from(FLOOD) && a.rx_packets == b.tx_packets + b.tx_failed {
            return (a, b);
        }
        assert!(Instant::now() < deadline, "{a:?} {b:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn passes(from: &Far, to: &Far) {
    to.drain();
    let deadline = Instant::now() + SOON;
    while to.receive(Duration::from_millis(10)).is_none() {
        assert!(Instant::now() < deadline, "nothing passes");
        from.send(&numbered(1));
    }
}

#[test]
fn a_pod_that_does_not_read() {
    in_namespaces("a_pod_that_does_not_read", |directory| {
        let dataplane = four_pods(directory, 4096);
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        let beside = Beside::start("c0-far", "d0-far");
        flood(&a);
        // The pod's kernel takes them and drops what its socket has no room for: not our frames any more.
        let (_, taken) = every_frame_is_counted(&dataplane);
        assert!(taken.tx_packets > 0);
        beside.end();
        no_frame_is_lost(&dataplane);
        passes(&a, &b);
    });
}

#[test]
fn a_link_that_is_down() {
    in_namespaces("a_link_that_is_down", |directory| {
        let dataplane = four_pods(directory, 4096);
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        let beside = Beside::start("c0-far", "d0-far");
        // Ours: the device takes nothing, so the ring fills, and what finds no room is counted.
        ip("link set b0 down");
        flood(&a);
        let (_, down) = every_frame_is_counted(&dataplane);
        assert!(down.tx_failed > 0 && down.tx_packets <= 1024, "{down:?}");
        assert!(!down.gone, "a device that is down is still there");
        ip("link set b0 up");
        wait_for_carrier("b0");
        passes(&a, &b);
        no_frame_is_lost(&dataplane);

        // The pod's: the kernel drops, and counts on the device.
        ip("link set b0-far down");
        flood(&a);
        ip("link set b0-far up");
        wait_for_carrier("b0");
        passes(&a, &b);
        beside.end();
        no_frame_is_lost(&dataplane);
    });
}

#[test]
fn an_interface_deleted_under_us() {
    in_namespaces("an_interface_deleted_under_us", |directory| {
        let dataplane = four_pods(directory, 4096);
        let a = Far::new("a0-far");
        let beside = Beside::start("c0-far", "d0-far");
        let deletion = std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(150));
            ip("link del b0");
        });
        flood(&a);
        deletion.join().unwrap();
        let (_, gone) = every_frame_is_counted(&dataplane);
        assert!(gone.gone && gone.tx_failed > 0 && gone.tx_packets > 0, "{gone:?}");
        dataplane.remove_port(B).unwrap();
        // A packet to a port that is not there has a name too.
        a.send(&numbered(1));
        let deadline = Instant::now() + SOON;
        while dataplane.worker_counters().map(|c| c.portless.load(SeqCst)).sum::<u64>() == 0 {
            assert!(Instant::now() < deadline, "it is counted nowhere");
            std::thread::sleep(Duration::from_millis(5));
        }
        beside.end();
        no_frame_is_lost(&dataplane);
    });
}

#[test]
fn a_veth_recreated_under_the_same_name() {
    in_namespaces("a_veth_recreated_under_the_same_name", |directory| {
        let dataplane = four_pods(directory, 4096);
        let a = Far::new("a0-far");
        passes(&a, &Far::new("b0-far"));
        let beside = Beside::start("c0-far", "d0-far");
        for _ in 0..3 {
            ip("link del b0");
            veth("b0");
            let b = Far::new("b0-far");
            // The name is back and the device is not: the port's sockets are those of the device that is gone.
            let before = counters(&dataplane, B).tx_failed;
            let deadline = Instant::now() + SOON;
            while !counters(&dataplane, B).gone {
                assert!(Instant::now() < deadline, "the worker did not notice");
                a.send(&numbered(1));
                std::thread::sleep(Duration::from_millis(5));
            }
            a.send(&numbered(2));
            while counters(&dataplane, B).tx_failed == before {
                assert!(Instant::now() < deadline, "lost without being counted");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(b.receive(Duration::from_millis(50)), None);
            let again = dataplane.add_port(spec(2, "b0", Role::Pod));
            assert!(matches!(again, Err(DataplaneError::PortExists(2, _))));
            dataplane.remove_port(B).unwrap();
            dataplane.add_port(spec(2, "b0", Role::Pod)).unwrap();
            passes(&a, &b);
            passes(&b, &a);
            let new = counters(&dataplane, B);
            assert!(!new.gone && new.tx_failed == 0, "{new:?}");
        }
        beside.end();
        no_frame_is_lost(&dataplane);
    });
}

#[test]
fn an_exhausted_packet_memory() {
    in_namespaces("an_exhausted_packet_memory", |directory| {
        const CHUNKS: u32 = 128;
        let dataplane = four_pods(directory, CHUNKS);
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        let beside = Beside::start("c0-far", "d0-far");
        // A device that keeps what it is given, and a flood to it.
        ip("link set b0 down");
        flood(&a);
        let (from, to) = every_frame_is_counted(&dataplane);
        println!("{from:?} {to:?}");
        assert!(to.tx_failed > 0, "what b0 may keep is bounded: {to:?}");
        let census = dataplane.memory().unwrap().chunks;
        assert!(census.transmit <= CHUNKS as usize / 2, "{census:?}");
        assert!(from.kernel.fill_ring_empty + from.kernel.rx_ring_full > 0, "{from:?}");
        beside.end();
        ip("link set b0 up");
        wait_for_carrier("b0");
        passes(&a, &b);
        no_frame_is_lost(&dataplane);
    });
}

/// Worker 1 gives what comes from port 1 to worker 0, which sends it to port 2 unless it stands still; ports 3 and 5 are joined.
struct Relay {
    index: WorkerIndex,
    still: Arc<AtomicBool>,
    counters: Counters,
}

impl<F: Frame> Processor<F> for Relay {
    fn handle_burst(
        &mut self,
        _: View<'_>,
        _: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        for frame in frames.drain(..) {
            self.counters.received += 1;
            match port.0 {
                1 => {
                    self.counters.handed_over += 1;
                    out.handovers.push((WorkerIndex(0), Handover::new(frame, port, Errand::Take)));
                }
                3 => {
                    self.counters.forwarded += 1;
                    out.transmit.push((PortIndex(5), frame));
                }
                _ => {
                    self.counters.drops[DropReason::NoPort as usize] += 1;
                    out.recycle.push(frame);
                }
            }
        }
    }

    fn handle_handovers(&mut self, _: View<'_>, _: Nanos, parcels: &mut Parcels<F>, out: &mut Output<F>) {
        assert_eq!(self.index, WorkerIndex(0));
        for Handover { frame, .. } in parcels.drain() {
            while self.still.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.counters.taken += 1;
            self.counters.forwarded += 1;
            out.transmit.push((B, frame));
        }
    }

    fn handover_refused(&mut self, refused: &[Handover<F>]) {
        let count = refused.len() as u64;
        self.counters.handed_over -= count;
        self.counters.drops[DropReason::HandoverFull as usize] += count;
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Lets a worker go on in the end, however the test ends.
struct GoOn(Arc<AtomicBool>);

impl Drop for GoOn {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

/// With plenty of memory the queue itself is full; with little, what is free of it is kept for others before that.
fn full_queue(directory: &Path, chunks: u32) {
    for name in ["host0", "a0", "b0", "c0", "d0"] {
        veth(name);
    }
    let still = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&still);
    let make = move |index, _| Relay { index, still: Arc::clone(&inside), counters: Counters::default() };
    let config = DataplaneConfig { chunks, workers: 2, ..config(directory) };
    let dataplane = Dataplane::start_with(config, make).unwrap();
    dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
    for (index, name) in [(1, "a0"), (2, "b0"), (3, "c0"), (5, "d0")] {
        dataplane.add_port(spec(index, name, Role::Pod)).unwrap();
    }
    let _go_on = GoOn(Arc::clone(&still));
    let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
    passes(&a, &b);
    let beside = Beside::start("c0-far", "d0-far");
    still.store(true, SeqCst);
    flood(&a);
    let deadline = Instant::now() + SOON;
    while dataplane.counters().dropped(DropReason::HandoverFull) == 0 {
        assert!(Instant::now() < deadline, "the queue has no end");
        a.send(&numbered(1));
    }
    std::thread::sleep(Duration::from_millis(100));
    beside.end();
    still.store(false, SeqCst);
    no_frame_is_lost(&dataplane);
    passes(&a, &b);
    no_frame_is_lost(&dataplane);
    let sum = dataplane.counters();
    assert_eq!(sum.beginnings(), sum.endings());
    assert_eq!(sum.handed_over, sum.taken, "what was given was taken: {sum:?}");
}

#[test]
fn a_full_handover_queue() {
    in_namespaces("a_full_handover_queue", |directory| full_queue(directory, 16_384));
}

#[test]
fn a_handover_queue_that_would_take_all_the_memory() {
    in_namespaces("a_handover_queue_that_would_take_all_the_memory", |directory| full_queue(directory, 1024));
}
