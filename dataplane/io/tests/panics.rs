//! Workers that panic, on real devices in namespaces of the test's own: whose frame it was is told, the others go on, and who does it
//! again and again is quarantined. Without root each test says `SKIPPED` and passes.

mod support;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use margay_core::handover::{Errand, Handover, Parcels};
use margay_core::topology::{Port, PortKind, TopologyBuilder};
use margay_core::worker::FlowRecord;
use margay_core::{
    Counters, DropReason, Frame, Nanos, Output, PortIndex, View, Worker, WorkerConfig, WorkerIndex,
};
use margay_io::engine::Processor;
use margay_io::panics::WorkerPanic;
use margay_io::xsk::UmemFrame;
use margay_io::{Dataplane, DataplaneConfig, Role};
use margay_policy_engine::packet::EndpointId;
use margay_wire::MacAddr;
use support::{Far, Patch, config, frame, in_namespaces, spec, veth};

const SOON: Duration = Duration::from_secs(2);
/// A frame with this destination is more than a fused processor can bear.
const FATAL: [u8; 4] = [10, 66, 66, 66];

fn is_fatal(frame: &[u8]) -> bool {
    frame.get(30..34) == Some(&FATAL)
}

fn fatal(number: u32) -> Vec<u8> {
    frame([10, 0, 0, 1], FATAL, number)
}

fn harmless(number: u32) -> Vec<u8> {
    frame([10, 0, 0, 1], [10, 0, 0, 2], number)
}

/// Another processor that panics at certain frames, and gives packets that come by `beyond` to worker 0.
struct Fused<P> {
    inner: P,
    /// With several workers: who gives packets to others, and who takes them, counts for itself.
    beyond: Option<PortIndex>,
    at_hand: Option<PortIndex>,
    /// Panics with nothing at hand while this is set.
    tired: Arc<AtomicBool>,
    counters: Counters,
}

impl<P> Fused<P> {
    fn new(inner: P) -> Self {
        Self { inner, beyond: None, at_hand: None, tired: Arc::default(), counters: Counters::default() }
    }
}

impl<P: Processor<UmemFrame>> Processor<UmemFrame> for Fused<P> {
    fn handle_burst(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frames: &mut Vec<UmemFrame>,
        out: &mut Output<UmemFrame>,
    ) {
        let mut one = Vec::with_capacity(1);
        for frame in frames.drain(..) {
            if self.beyond == Some(port) {
                self.counters.received += 1;
                self.counters.handed_over += 1;
                out.handovers.push((WorkerIndex(0), Handover::new(frame, port, Errand::Take)));
                continue;
            }
            assert!(!is_fatal(frame.data()), "this frame is too much");
            one.push(frame);
            self.inner.handle_burst(view, now, port, &mut one, out);
        }
    }

    fn handle_handovers(
        &mut self,
        _: View<'_>,
        _: Nanos,
        parcels: &mut Parcels<UmemFrame>,
        out: &mut Output<UmemFrame>,
    ) {
        for Handover { frame, port, .. } in parcels.drain() {
            self.at_hand = Some(port);
            assert!(!is_fatal(frame.data()), "this parcel is too much");
            self.counters.taken += 1;
            self.counters.forwarded += 1;
            out.transmit.push((PortIndex(2), frame));
        }
    }

    fn handle_timeout(&mut self, view: View<'_>, now: Nanos, out: &mut Output<UmemFrame>) {
        self.at_hand = None;
        assert!(!self.tired.load(SeqCst), "no strength left");
        self.inner.handle_timeout(view, now, out);
    }

    fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        self.inner.wanted_neighbours()
    }

    fn is_waiting(&self) -> bool {
        self.inner.is_waiting()
    }

    fn counters(&self) -> &Counters {
        if self.beyond.is_some() || self.at_hand.is_some() { &self.counters } else { self.inner.counters() }
    }

    fn at_hand(&self) -> Option<PortIndex> {
        self.at_hand
    }

    fn flows(
        &self,
        view: View<'_>,
        now: Nanos,
        cursor: usize,
        limit: usize,
    ) -> (Vec<FlowRecord>, Option<usize>) {
        self.inner.flows(view, now, cursor, limit)
    }
}

fn patch(pairs: &'static [(u16, u16)]) -> Fused<Patch> {
    Fused::new(Patch::new(pairs, Arc::default()))
}

fn add_pods(dataplane: &Dataplane, pods: &[(u16, &str)]) {
    dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
    for (index, name) in pods {
        dataplane.add_port(spec(*index, name, Role::Pod)).unwrap();
    }
}

/// Sends until something arrives: a port rests for a moment after a panic.
fn passes(from: &Far, to: &Far) {
    to.drain();
    let deadline = Instant::now() + SOON;
    while to.receive(Duration::from_millis(5)).is_none() {
        assert!(Instant::now() < deadline, "nothing passes");
        from.send(&harmless(0));
    }
}

/// Sends fatal frames until one has its effect: a port is closed for a moment after a panic.
fn provoke(from: &Far, panics: &Receiver<WorkerPanic>) -> WorkerPanic {
    let deadline = Instant::now() + SOON;
    loop {
        from.send(&fatal(9));
        if let Ok(panic) = panics.recv_timeout(Duration::from_millis(20)) {
            return panic;
        }
        assert!(Instant::now() < deadline, "it bears everything");
    }
}

/// Every chunk is somewhere, and no more are held than a worker keeps for packets of its own.
fn no_frame_is_lost(dataplane: &Dataplane, workers: usize) {
    let deadline = Instant::now() + SOON;
    loop {
        let census = dataplane.memory().unwrap().chunks;
        assert_eq!(census.free + census.held + census.fill + census.transmit, 4096);
        if census.held <= 16 * workers && census.transmit == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{census:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_worker_that_panics_says_which_frame_it_was_and_goes_on() {
    in_namespaces("a_worker_that_panics_says_which_frame_it_was_and_goes_on", |directory| {
        for name in ["host0", "a0", "b0", "c0", "d0"] {
            veth(name);
        }
        let hang = Arc::new(AtomicBool::new(false));
        let inside = Arc::clone(&hang);
        let make = move |_, _| Fused::new(Patch::new(&[(1, 2), (3, 4)], Arc::clone(&inside)));
        let dataplane = Dataplane::start_with(config(directory), make).unwrap();
        add_pods(&dataplane, &[(1, "a0"), (2, "b0"), (3, "c0"), (4, "d0")]);
        let [a, b, c, d] = ["a0-far", "b0-far", "c0-far", "d0-far"].map(Far::new);
        passes(&a, &b);
        passes(&c, &d);
        b.drain();
        let before = dataplane.counters();

        // Ten frames in one burst, behind one that keeps the worker busy meanwhile.
        hang.store(true, SeqCst);
        a.send(&harmless(100));
        std::thread::sleep(Duration::from_millis(50));
        for number in 0..10 {
            a.send(&if number == 4 { fatal(4) } else { harmless(number) });
        }
        hang.store(false, SeqCst);
        let panic = dataplane.panics().recv_timeout(SOON).unwrap();
        let WorkerPanic { worker, number, port, message, frames, .. } = panic;
        assert_eq!((worker, number, port), (WorkerIndex(0), 1, Some(PortIndex(1))));
        assert_eq!((message.as_str(), frames), ("this frame is too much", vec![fatal(4)]));
        // What was finished before the panic has left; the burst's rest is lost under a name.
        for number in [100, 0, 1, 2, 3] {
            assert_eq!(b.receive(SOON), Some(harmless(number)));
        }
        passes(&a, &b);
        passes(&c, &d);
        no_frame_is_lost(&dataplane, 1);
        let counters = dataplane.counters();
        assert_eq!(counters.dropped(DropReason::WorkerPanicked), 6);
        assert_eq!(counters.beginnings(), counters.endings());
        assert!(counters.received >= before.received + 11, "nothing is forgotten: {counters:?}");
        assert!(dataplane.is_running() && dataplane.quarantined().is_empty());
        assert_eq!(dataplane.worker_counters().map(|c| c.panics.load(SeqCst)).collect::<Vec<_>>(), [1]);
    });
}

#[test]
fn a_port_that_does_it_three_times_is_quarantined_until_it_is_released() {
    in_namespaces("a_port_that_does_it_three_times_is_quarantined_until_it_is_released", |directory| {
        for name in ["host0", "a0", "b0", "c0", "d0"] {
            veth(name);
        }
        let make = |_, _| patch(&[(1, 2), (3, 4)]);
        let dataplane = Dataplane::start_with(config(directory), make).unwrap();
        add_pods(&dataplane, &[(1, "a0"), (2, "b0"), (3, "c0"), (4, "d0")]);
        let [a, b, c, d] = ["a0-far", "b0-far", "c0-far", "d0-far"].map(Far::new);
        let leak = Far::new("a0");
        let panics = dataplane.panics();
        passes(&a, &b);
        for number in 1..=3 {
            let panic = provoke(&a, &panics);
            assert_eq!((panic.port, panic.number), (Some(PortIndex(1)), number));
        }
        let deadline = Instant::now() + SOON;
        while !dataplane.quarantined().contains(&PortIndex(1)) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        // Nothing comes out of it any more, to us or to the kernel; what goes to it still does, and the others do not notice.
        passes(&c, &d);
        b.drain();
        leak.drain();
        a.send(&harmless(1));
        a.send(&fatal(1));
        assert_eq!((b.receive(SOON / 10), leak.receive(SOON / 40)), (None, None));
        assert!(panics.is_empty());
        let back = frame([10, 0, 0, 2], [10, 0, 0, 1], 5);
        b.send(&back);
        assert_eq!(a.receive_where(SOON, |f| f == back), Some(back));
        no_frame_is_lost(&dataplane, 1);

        assert!(dataplane.release(PortIndex(1)).unwrap());
        assert!(!dataplane.release(PortIndex(1)).unwrap());
        passes(&a, &b);
        for _ in 0..3 {
            provoke(&a, &panics);
        }
        let deadline = Instant::now() + SOON;
        while dataplane.quarantined().is_empty() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        // The pod is deleted; whoever comes by its number has done nothing.
        dataplane.remove_port(PortIndex(1)).unwrap();
        assert!(dataplane.quarantined().is_empty());
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        passes(&a, &b);
        let counters = dataplane.counters();
        assert_eq!(counters.beginnings(), counters.endings());
    });
}

#[test]
fn while_a_worker_begins_anew_its_pods_are_closed_and_its_uplinks_pass() {
    in_namespaces("while_a_worker_begins_anew_its_pods_are_closed_and_its_uplinks_pass", |directory| {
        for name in ["host0", "a0", "up0"] {
            veth(name);
        }
        let (born, slow) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let (births, wait) = (Arc::clone(&born), Arc::clone(&slow));
        let make = move |_, _| {
            if births.fetch_add(1, SeqCst) > 0 {
                while wait.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            patch(&[(1, 2)])
        };
        let dataplane = Dataplane::start_with(config(directory), make).unwrap();
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        dataplane.add_port(spec(2, "up0", Role::Uplink)).unwrap();
        dataplane.set_uplink_prefixes(&["10.0.0.0/24".parse().unwrap()], &[]).unwrap();
        let (pod, wire, kernel, leak) =
            (Far::new("a0-far"), Far::new("up0-far"), Far::new("up0"), Far::new("a0"));
        passes(&wire, &pod);
        passes(&pod, &wire);
        kernel.drain();
        leak.drain();

        pod.send(&fatal(1));
        dataplane.panics().recv_timeout(SOON).unwrap();
        // At once, not a second later.
        wire.send(&harmless(7));
        assert_eq!(kernel.receive(SOON), Some(harmless(7)), "the uplink is the kernel's");
        pod.send(&harmless(8));
        assert_eq!(leak.receive(SOON / 20), None, "the pod is closed");
        slow.store(false, SeqCst);
        passes(&pod, &wire);
        passes(&wire, &pod);
        assert_eq!(born.load(SeqCst), 2);
        no_frame_is_lost(&dataplane, 1);
    });
}

#[test]
fn the_other_workers_go_on_and_the_port_that_a_packet_came_from_is_blamed() {
    in_namespaces("the_other_workers_go_on_and_the_port_that_a_packet_came_from_is_blamed", |directory| {
        for name in ["host0", "a0", "b0", "c0", "d0"] {
            veth(name);
        }
        let hold = Arc::new(AtomicBool::new(false));
        let (slow, births) = (Arc::clone(&hold), Arc::new(AtomicUsize::new(0)));
        let make = move |index, _| {
            if births.fetch_add(1, SeqCst) > 1 {
                while slow.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            // Worker 1 has ports 1 and 3, and gives what comes from 1 to worker 0, which has 2 and 4.
            let mut fused = patch(&[(3, 3), (2, 4)]);
            fused.beyond = (index == WorkerIndex(1)).then_some(PortIndex(1));
            fused
        };
        let dataplane =
            Dataplane::start_with(DataplaneConfig { workers: 2, ..config(directory) }, make).unwrap();
        add_pods(&dataplane, &[(1, "a0"), (2, "b0"), (3, "c0"), (4, "d0")]);
        let [a, b, c] = ["a0-far", "b0-far", "c0-far"].map(Far::new);
        let panics = dataplane.panics();
        passes(&a, &b);
        passes(&c, &c);
        hold.store(true, SeqCst);
        a.send(&fatal(1));
        let panic = panics.recv_timeout(SOON).unwrap();
        assert_eq!((panic.worker, panic.port), (WorkerIndex(0), Some(PortIndex(1))));
        assert_eq!(panic.frames, [fatal(1)]);
        // Worker 0 is not back, and worker 1 does not wait for it.
        for _ in 0..20 {
            passes(&c, &c);
        }
        hold.store(false, SeqCst);
        passes(&a, &b);
        for _ in 2..4 {
            assert_eq!(provoke(&a, &panics).port, Some(PortIndex(1)));
        }
        let deadline = Instant::now() + SOON;
        while !dataplane.quarantined().contains(&PortIndex(1)) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        b.drain();
        a.send(&harmless(3));
        assert_eq!(b.receive(SOON / 20), None);
        passes(&c, &c);
        no_frame_is_lost(&dataplane, 2);
    });
}

#[test]
fn a_worker_that_panics_with_nothing_at_hand_does_not_come_back_the_third_time() {
    in_namespaces(
        "a_worker_that_panics_with_nothing_at_hand_does_not_come_back_the_third_time",
        |directory| {
            for name in ["host0", "a0", "b0"] {
                veth(name);
            }
            let tired = Arc::new(AtomicBool::new(false));
            let inside = Arc::clone(&tired);
            let make = move |_, _| Fused { tired: Arc::clone(&inside), ..patch(&[(1, 2)]) };
            let dataplane = Dataplane::start_with(config(directory), make).unwrap();
            add_pods(&dataplane, &[(1, "a0"), (2, "b0")]);
            let (a, b, leak) = (Far::new("a0-far"), Far::new("b0-far"), Far::new("a0"));
            passes(&a, &b);
            tired.store(true, SeqCst);
            let panics = dataplane.panics();
            for number in 1..=3 {
                let panic = panics.recv_timeout(SOON).unwrap();
                assert_eq!((panic.number, panic.port, panic.frames.len()), (number, None, 0));
            }
            let deadline = Instant::now() + SOON;
            while dataplane.is_running() {
                assert!(Instant::now() < deadline, "it came back");
                std::thread::sleep(Duration::from_millis(1));
            }
            leak.drain();
            a.send(&harmless(1));
            assert_eq!(leak.receive(SOON / 20), None, "its pods are closed");
            assert!(panics.is_empty());
        },
    );
}

/// The agent's own worker, with tables of the size it has there: how long until it answers again.
#[test]
fn the_agents_worker_is_back_within_a_second() {
    in_namespaces("the_agents_worker_is_back_within_a_second", real_worker);
}

fn real_worker(directory: &Path) {
    veth("host0");
    veth("a0");
    let make = |index, now| Fused::new(Worker::new(WorkerConfig { index, ..WorkerConfig::default() }, now));
    let dataplane = Dataplane::start_with(config(directory), make).unwrap();
    add_pods(&dataplane, &[(1, "a0")]);
    let (pod_mac, mac) = (MacAddr([2, 2, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
    let kind = PortKind::Pod { endpoint: EndpointId(7), pod_mac, addresses: vec![[10, 0, 0, 1].into()] };
    let port = Port { index: PortIndex(1), name: "a0".to_owned(), kind, mac, mtu: 1500 };
    let topology = TopologyBuilder { ports: vec![port], ..TopologyBuilder::default() }.build(1);
    dataplane.publish_topology(Arc::new(topology));
    assert!(dataplane.wait_for_topology(1, SOON));
    let pod = Far::new("a0-far");
    let mut question = vec![0xff; 6];
    question.extend(pod_mac.0);
    question.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    question.extend(pod_mac.0);
    question.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 169, 254, 1, 1]);
    question.resize(60, 0);
    let answered = |patience| pod.receive_where(patience, |f| f[12..14] == [8, 6] && f[21] == 2).is_some();
    pod.send(&question);
    assert!(answered(SOON));
    let started = Instant::now();
    pod.send(&fatal(1));
    dataplane.panics().recv_timeout(SOON).unwrap();
    loop {
        pod.send(&question);
        if answered(Duration::from_millis(2)) {
            break;
        }
        assert!(started.elapsed() < SOON);
    }
    let took = started.elapsed();
    println!("a panic, a new worker and an answer by it: {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    no_frame_is_lost(&dataplane, 1);
    let counters = dataplane.counters();
    assert_eq!(counters.beginnings(), counters.endings());
    assert_eq!(counters.dropped(DropReason::WorkerPanicked), 1);
}
