//! Ports with packet memory of their own: what crosses between two memories is copied once, whole and counted; neither memory takes from
//! the other; both are conserved. On veths, which have no zero-copy, so the own memory is in copy mode and everything else is as with it.
//! Without root each test says `SKIPPED` and passes.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use margay_core::handover::{Errand, Gist, Handover, Parcels};
use margay_core::{Counters, Frame, Nanos, Output, PortIndex, View, WorkerIndex};
use margay_io::engine::Processor;
use margay_io::{
    AttachChoice, AttachMode, Dataplane, DataplaneConfig, MemoryChoice, PortCounters, PortMemory, Role,
};
use support::{Far, Patch, config, frame, in_namespaces, ip, spec, veth, wait_for_carrier};

const SOON: Duration = Duration::from_secs(5);
const LARGE: usize = 60_000;

const POD: PortIndex = PortIndex(1);
const UPLINK: PortIndex = PortIndex(3);

/// A pod, joined to an uplink with memory of its own, and beside them two pods that are joined to each other.
fn pods_and_uplink(directory: &Path, change: impl FnOnce(&mut DataplaneConfig)) -> Dataplane {
    let mut config = DataplaneConfig { own_chunks: 1024, ..config(directory) };
    change(&mut config);
    for name in ["host0", "pod", "nic", "c0", "d0"] {
        veth(name);
    }
    let workers = config.workers;
    let make = move |index, _| Round { index, workers, ..Round::default() };
    let dataplane = Dataplane::start_with(config, make).unwrap();
    dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
    for (index, name) in [(1, "pod"), (2, "c0"), (4, "d0")] {
        dataplane.add_port(spec(index, name, Role::Pod)).unwrap();
    }
    add_uplink(&dataplane);
    dataplane
}

fn add_uplink(dataplane: &Dataplane) {
    let report = dataplane.add_port_in(
        spec(UPLINK.0, "nic", Role::Uplink),
        AttachChoice::Auto,
        MemoryChoice::OwnWithCopy,
    );
    assert_eq!(report.unwrap().memory, PortMemory::OwnWithCopy);
    dataplane.set_uplink_prefixes(&["10.0.0.0/24".parse().unwrap()], &[]).unwrap();
}

/// Ports 1 and 3, 2 and 4 are joined. With several workers each packet is taken by the next worker, and sent by the one that has the port.
#[derive(Default)]
struct Round {
    index: WorkerIndex,
    workers: u16,
    /// Whoever takes packets of others waits while this is so.
    still: Arc<AtomicBool>,
    counters: Counters,
}

/// Lets a worker go on in the end, however the test ends.
struct GoOn(Arc<AtomicBool>);

impl Drop for GoOn {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl Round {
    fn way(&self, port: PortIndex) -> (PortIndex, WorkerIndex) {
        let to = PortIndex([0, 3, 4, 1, 2][usize::from(port.0)]);
        (to, WorkerIndex(if to == UPLINK { 0 } else { to.0 % self.workers }))
    }
}

impl<F: Frame> Processor<F> for Round {
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
            if self.workers == 1 {
                out.transmit.push((self.way(port).0, frame));
                continue;
            }
            let next = WorkerIndex((self.index.0 + 1) % self.workers);
            out.handovers.push((next, Handover { frame, port, errand: Errand::Take, gist: Gist::default() }));
        }
    }

    fn handle_handovers(&mut self, _: View<'_>, _: Nanos, parcels: &mut Parcels<F>, out: &mut Output<F>) {
        for Handover { frame, port, errand, .. } in parcels.drain() {
            while self.still.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if errand == Errand::Send {
                out.transmit.push((port, frame));
                continue;
            }
            let (to, worker) = self.way(port);
            if worker == self.index {
                out.transmit.push((to, frame));
            } else {
                out.handovers.push((
                    worker,
                    Handover { frame, port: to, errand: Errand::Send, gist: Gist::default() },
                ));
            }
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

fn numbered(number: u32) -> Vec<u8> {
    frame([10, 0, 1, 1], [10, 0, 0, 2], number)
}

/// A frame of `len` bytes that is different at every place.
fn large(len: usize, number: u32) -> Vec<u8> {
    let mut bytes = numbered(number);
    bytes.extend((bytes.len()..len).map(|at| (at * 31 + at / 251 + number as usize) as u8));
    bytes.truncate(len.max(66));
    bytes
}

fn counters(dataplane: &Dataplane, port: PortIndex) -> PortCounters {
    dataplane.port_counters().unwrap()[&port]
}

/// Waits until all frames of so many memories are in both books.
fn conserved(dataplane: &Dataplane, memories: usize) {
    let deadline = Instant::now() + SOON;
    loop {
        let frames = dataplane.frames().unwrap();
        if frames.agrees() && frames.memories.len() == memories {
            return;
        }
        assert!(Instant::now() < deadline, "{frames:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends one frame after the other; each arrives as it was.
fn arrive(from: &Far, to: &Far, frames: impl Iterator<Item = Vec<u8>>) -> (u64, u64) {
    let (mut packets, mut bytes) = (0, 0);
    for sent in frames {
        from.send(&sent);
        let received = to.receive(SOON).unwrap_or_else(|| panic!("{} bytes, frame {packets}", sent.len()));
        assert!(received == sent, "{} bytes, frame {packets}: {} arrived", sent.len(), received.len());
        (packets, bytes) = (packets + 1, bytes + sent.len() as u64);
    }
    (packets, bytes)
}

fn ends() -> [Far; 4] {
    ["pod-far", "nic-far", "c0-far", "d0-far"].map(Far::new)
}

fn both_ways(directory: &Path, workers: u16) {
    let dataplane = pods_and_uplink(directory, |config| config.workers = workers);
    let [pod, up, c, d] = ends();
    let out = arrive(&pod, &up, (0..300).map(numbered));
    let into = arrive(&up, &pod, (0..200).map(numbered));
    arrive(&c, &d, (0..100).map(numbered));
    conserved(&dataplane, 2);
    let copied = |port| {
        let port = counters(&dataplane, port);
        assert_eq!((port.refused, port.tx_failed), (0, 0));
        (port.copied_packets, port.copied_bytes)
    };
    assert_eq!((copied(UPLINK), copied(POD)), (out, into), "once for each that crosses");
    assert_eq!((copied(PortIndex(2)), copied(PortIndex(4))), ((0, 0), (0, 0)), "nothing between pods");
    assert_eq!(counters(&dataplane, UPLINK).tx_packets, 300);
}

#[test]
fn what_crosses_between_two_memories_is_copied_once_and_nothing_else_is() {
    let name = "what_crosses_between_two_memories_is_copied_once_and_nothing_else_is";
    in_namespaces(name, |directory| both_ways(directory, 1));
}

#[test]
fn two_memories_and_two_workers() {
    in_namespaces("two_memories_and_two_workers", |directory| both_ways(directory, 2));
}

#[test]
fn two_memories_and_three_workers() {
    in_namespaces("two_memories_and_three_workers", |directory| both_ways(directory, 3));
}

#[test]
fn two_memories_and_eight_workers() {
    in_namespaces("two_memories_and_eight_workers", |directory| both_ways(directory, 8));
}

#[test]
fn packets_of_several_frames_cross_whole() {
    in_namespaces("packets_of_several_frames_cross_whole", |directory| {
        let dataplane = pods_and_uplink(directory, |config| config.workers = 2);
        if !dataplane.takes_several_frames() {
            println!("SKIPPED packets_of_several_frames_cross_whole: the kernel has none");
            return;
        }
        for name in ["pod", "pod-far", "nic", "nic-far"] {
            ip(&format!("link set {name} mtu {LARGE}"));
        }
        let [pod, up, ..] = ends();
        // The edges of one, two and sixteen frames, and the whole MTU.
        let sizes = [66, 3839, 3840, 3841, 7680, 7681, 30_000, 57_600, 57_601, LARGE + 14];
        let packets = || (0..5).flat_map(|_| sizes).enumerate().map(|(at, size)| large(size, at as u32));
        let out = arrive(&pod, &up, packets());
        arrive(&up, &pod, packets());
        conserved(&dataplane, 2);
        for port in [UPLINK, POD] {
            let port = counters(&dataplane, port);
            assert_eq!((port.copied_packets, port.copied_bytes), out);
            assert_eq!((port.refused, port.tx_failed, port.kernel.invalid_descriptors), (0, 0, 0));
        }
    });
}

#[test]
fn the_memory_of_an_uplink_counts_and_goes_with_it() {
    in_namespaces("the_memory_of_an_uplink_counts_and_goes_with_it", |directory| {
        let dataplane = pods_and_uplink(directory, |config| config.workers = 2);
        let [pod, up, c, d] = ends();
        let (own, shared) = (1024 * 4096, 4096 * 4096);
        let census = |all: usize| {
            let memory = dataplane.memory().unwrap();
            let chunks = memory.chunks;
            assert_eq!(chunks.free + chunks.held + chunks.fill + chunks.transmit, all, "{memory:?}");
            (memory.umem_bytes, memory.own_umem_bytes, memory.sockets)
        };
        assert_eq!(census(4096 + 1024), (shared + own, own, 5));
        for round in 0..3 {
            arrive(&pod, &up, (0..50).map(numbered));
            arrive(&up, &pod, (0..50).map(numbered));
            dataplane.remove_port(UPLINK).unwrap();
            assert_eq!(census(4096), (shared, 0, 4), "round {round}");
            arrive(&c, &d, (0..20).map(numbered));
            conserved(&dataplane, 1);
            add_uplink(&dataplane);
        }
        conserved(&dataplane, 2);
    });
}

#[test]
fn an_uplink_that_is_deleted_under_traffic_and_comes_back() {
    in_namespaces("an_uplink_that_is_deleted_under_traffic_and_comes_back", |directory| {
        let dataplane = pods_and_uplink(directory, |config| config.workers = 2);
        let [pod, _, c, d] = ends();
        let deletion = std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            ip("link del nic");
        });
        let mut number = 0;
        let deadline = Instant::now() + SOON;
        while !counters(&dataplane, UPLINK).gone {
            assert!(Instant::now() < deadline, "the worker did not notice");
            for _ in 0..64 {
                pod.send(&numbered(number));
                number += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        deletion.join().unwrap();
        arrive(&c, &d, (0..50).map(numbered));
        dataplane.remove_port(UPLINK).unwrap();
        conserved(&dataplane, 1);
        veth("nic");
        add_uplink(&dataplane);
        let up = Far::new("nic-far");
        pod.drain();
        arrive(&pod, &up, (0..50).map(numbered));
        arrive(&up, &pod, (0..50).map(numbered));
        conserved(&dataplane, 2);
    });
}

#[test]
fn packets_that_wait_at_another_worker_outlive_their_uplink() {
    in_namespaces("packets_that_wait_at_another_worker_outlive_their_uplink", |directory| {
        for name in ["host0", "pod", "nic"] {
            veth(name);
        }
        let still = Arc::new(AtomicBool::new(false));
        let inside = Arc::clone(&still);
        let make =
            move |index, _| Round { index, workers: 2, still: Arc::clone(&inside), ..Round::default() };
        let config = DataplaneConfig { own_chunks: 1024, workers: 2, ..config(directory) };
        let dataplane = Dataplane::start_with(config, make).unwrap();
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "pod", Role::Pod)).unwrap();
        let _go_on = GoOn(Arc::clone(&still));
        add_uplink(&dataplane);
        let (pod, up) = (Far::new("pod-far"), Far::new("nic-far"));
        arrive(&up, &pod, (0..10).map(numbered));
        // Worker 0 has the uplink; worker 1 takes what comes from there, and stands still.
        let held = || dataplane.memory().unwrap().chunks.held;
        let before = held();
        still.store(true, SeqCst);
        (10..60).map(numbered).for_each(|frame| up.send(&frame));
        let deadline = Instant::now() + SOON;
        while held() < before + 50 {
            assert!(Instant::now() < deadline, "they do not arrive");
            std::thread::sleep(Duration::from_millis(5));
        }
        dataplane.remove_port(UPLINK).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        still.store(false, SeqCst);
        for number in 10..60 {
            assert!(pod.receive(SOON) == Some(numbered(number)), "frame {number}");
        }
        conserved(&dataplane, 1);
    });
}

/// Sends bursts to a device that is down, beside a pair that must not notice; returns the counters of that device's port.
fn flood_to(dataplane: &Dataplane, from: &Far, down: PortIndex, [c, d]: [&Far; 2]) -> PortCounters {
    const FLOOD: u32 = 6_000;
    for number in 0..FLOOD {
        from.send(&numbered(number));
        if number % 64 == 63 {
            arrive(c, d, std::iter::once(numbered(number)));
        }
    }
    let came_in = if down == UPLINK { POD } else { UPLINK };
    let deadline = Instant::now() + SOON;
    loop {
        let (from, to) = (counters(dataplane, came_in), counters(dataplane, down));
        let lost = from.kernel.rx_dropped + from.kernel.rx_ring_full;
        if from.rx_packets + lost == u64::from(FLOOD) && from.rx_packets == to.tx_packets + to.tx_failed {
            return to;
        }
        assert!(Instant::now() < deadline, "not counted: {from:?} {to:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_uplink_that_takes_nothing_exhausts_its_own_memory_only() {
    in_namespaces("an_uplink_that_takes_nothing_exhausts_its_own_memory_only", |directory| {
        let dataplane = pods_and_uplink(directory, |config| config.own_chunks = 128);
        let [pod, up, c, d] = ends();
        ip("link set nic down");
        let to = flood_to(&dataplane, &pod, UPLINK, [&c, &d]);
        assert!(to.tx_failed > 0 && to.tx_packets <= 128, "{to:?}");
        let frames = dataplane.frames().unwrap();
        let in_flight: Vec<_> = frames.memories.values().map(|memory| memory.transmit).collect();
        assert_eq!(in_flight[0], 0, "none of the shared memory waits for the uplink: {frames:?}");
        assert!(in_flight[1] > 0 && in_flight[1] <= 64, "half of its own at most: {frames:?}");
        ip("link set nic up");
        wait_for_carrier("nic");
        up.drain();
        let deadline = Instant::now() + SOON;
        while dataplane.frames().unwrap().memories.values().any(|memory| memory.transmit > 0) {
            assert!(Instant::now() < deadline, "what waited is not sent");
            std::thread::sleep(Duration::from_millis(10));
        }
        up.drain();
        arrive(&pod, &up, (0..50).map(numbered));
        arrive(&up, &pod, (0..50).map(numbered));
        conserved(&dataplane, 2);
    });
}

#[test]
fn a_pod_that_takes_nothing_exhausts_nothing_of_the_uplinks_memory() {
    in_namespaces("a_pod_that_takes_nothing_exhausts_nothing_of_the_uplinks_memory", |directory| {
        let dataplane = pods_and_uplink(directory, |config| config.chunks = 256);
        let [pod, up, c, d] = ends();
        ip("link set pod down");
        let to = flood_to(&dataplane, &up, POD, [&c, &d]);
        assert!(to.tx_failed > 0, "{to:?}");
        let frames = dataplane.frames().unwrap();
        let in_flight: Vec<_> = frames.memories.values().map(|memory| memory.transmit).collect();
        assert!(in_flight[0] > 0 && in_flight[0] <= 128 && in_flight[1] == 0, "{frames:?}");
        ip("link set pod up");
        wait_for_carrier("pod");
        let deadline = Instant::now() + SOON;
        while dataplane.frames().unwrap().memories.values().any(|memory| memory.transmit > 0) {
            assert!(Instant::now() < deadline, "what waited is not sent");
            std::thread::sleep(Duration::from_millis(10));
        }
        pod.drain();
        arrive(&up, &pod, (0..50).map(numbered));
        arrive(&pod, &up, (0..50).map(numbered));
        conserved(&dataplane, 2);
    });
}

#[test]
fn zero_copy_that_is_refused_is_the_shared_memory_and_says_why() {
    in_namespaces("zero_copy_that_is_refused_is_the_shared_memory_and_says_why", |directory| {
        veth("host0");
        veth("pod");
        veth("nic");
        let patch = |_, _| Patch::new(&[(1, 3)], Arc::default());
        let dataplane = Dataplane::start_with(config(directory), patch).unwrap();
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "pod", Role::Pod)).unwrap();
        let uplink = spec(3, "nic", Role::Uplink);
        let report = dataplane.add_port_in(uplink, AttachChoice::Auto, MemoryChoice::ZeroCopy).unwrap();
        let PortMemory::Refused(why) = &report.memory else { panic!("{report:?}") };
        assert!(why.contains("the device's driver has no zero-copy"), "{why}");
        assert_eq!(report.mode, AttachMode::Native);
        assert_eq!(dataplane.ports()[2].1, report);
        dataplane.set_uplink_prefixes(&["10.0.0.0/24".parse().unwrap()], &[]).unwrap();
        let (pod, up) = (Far::new("pod-far"), Far::new("nic-far"));
        arrive(&pod, &up, (0..20).map(numbered));
        arrive(&up, &pod, (0..20).map(numbered));
        assert_eq!(
            (counters(&dataplane, UPLINK).copied_packets, counters(&dataplane, POD).copied_packets),
            (0, 0)
        );
        assert_eq!(dataplane.memory().unwrap().own_umem_bytes, 0);
        conserved(&dataplane, 1);
    });
}
