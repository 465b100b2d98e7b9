//! The packet path on real devices, in namespaces of the test's own. Without root each test says `SKIPPED` and passes.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use margay_core::topology::{Port, PortKind, TopologyBuilder};
use margay_core::{DropReason, PortIndex};
use margay_io::xsk::UmemHandle;
use margay_io::{AttachMode, Dataplane, DataplaneError, Role};
use margay_policy_engine::packet::EndpointId;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::MacAddr;
use support::{Far, Patch, config, frame, in_namespaces, spec, veth};

const SOON: Duration = Duration::from_secs(2);

fn patched(directory: &Path, pairs: &'static [(u16, u16)]) -> (Dataplane, Arc<AtomicBool>) {
    let hang = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&hang);
    (
        Dataplane::start_with(config(directory), move |_, _| Patch::new(pairs, Arc::clone(&inside))).unwrap(),
        hang,
    )
}

#[test]
fn two_ports_exchange_frames() {
    in_namespaces("two_ports_exchange_frames", |directory| {
        for name in ["host0", "a0", "b0"] {
            veth(name);
        }
        let (dataplane, _) = patched(directory, &[(1, 2)]);
        let host = dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        println!("host port: {host:?}");
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        dataplane.add_port(spec(2, "b0", Role::Pod)).unwrap();
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        for number in 0..1000 {
            let there = frame([10, 0, 0, 1], [10, 0, 0, 2], number);
            a.send(&there);
            assert_eq!(b.receive(SOON).as_deref(), Some(&there[..]), "frame {number}");
            let back = frame([10, 0, 0, 2], [10, 0, 0, 1], number);
            b.send(&back);
            assert_eq!(a.receive(SOON).as_deref(), Some(&back[..]), "answer {number}");
        }
        std::thread::sleep(Duration::from_millis(150));
        let counters = dataplane.counters();
        assert_eq!((counters.received, counters.forwarded), (2000, 2000));
        let ports = dataplane.port_counters().unwrap();
        assert_eq!((ports[&PortIndex(1)].rx_packets, ports[&PortIndex(1)].tx_packets), (1000, 1000));
        let memory = dataplane.memory().unwrap();
        let census = memory.chunks;
        assert_eq!(census.free + census.held + census.fill + census.transmit, 4096);
        assert_eq!(census.transmit, 0);
    });
}

#[test]
fn a_silent_worker_closes_pods_and_frees_the_uplink() {
    in_namespaces("a_silent_worker_closes_pods_and_frees_the_uplink", |directory| {
        for name in ["host0", "a0", "up0"] {
            veth(name);
        }
        let (dataplane, hang) = patched(directory, &[(1, 2)]);
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        dataplane.add_port(spec(2, "up0", Role::Uplink)).unwrap();
        let net = |text: &str| text.parse().unwrap();
        dataplane.set_uplink_prefixes(&[net("10.1.0.0/24")], &[net("10.1.0.0/16")]).unwrap();
        let (pod, wire, kernel) = (Far::new("a0-far"), Far::new("up0-far"), Far::new("up0"));
        // What a packet socket on our end of the pod's veth sees has passed the program.
        let leak = Far::new("a0");

        let ours = frame([192, 168, 1, 1], [10, 1, 0, 5], 1);
        let from_cluster = frame([10, 1, 7, 7], [192, 168, 1, 1], 2);
        let foreign = frame([192, 168, 1, 1], [192, 168, 1, 2], 3);
        let leaving = frame([10, 1, 0, 5], [192, 168, 1, 1], 4);
        let check_alive = || {
            for sent in [&ours, &from_cluster] {
                wire.send(sent);
                assert_eq!(pod.receive(SOON).as_ref(), Some(sent));
            }
            pod.send(&leaving);
            assert_eq!(wire.receive(SOON).as_ref(), Some(&leaving));
            kernel.drain();
            wire.send(&foreign);
            assert_eq!(kernel.receive(SOON).as_ref(), Some(&foreign));
            assert_eq!(pod.receive(SOON / 20), None);
        };
        check_alive();
        leak.drain();

        hang.store(true, SeqCst);
        wire.send(&ours);
        std::thread::sleep(Duration::from_millis(1200));
        kernel.drain();
        for sent in [&ours, &from_cluster, &foreign] {
            wire.send(sent);
            assert_eq!(kernel.receive(SOON).as_ref(), Some(sent));
        }
        pod.send(&leaving);
        assert_eq!(leak.receive(SOON / 10), None);

        // The worker goes on, by itself.
        hang.store(false, SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        pod.drain();
        wire.drain();
        check_alive();
    });
}

#[test]
fn programs_stay_when_the_agent_is_gone_and_are_taken_over() {
    in_namespaces("programs_stay_when_the_agent_is_gone_and_are_taken_over", |directory| {
        for name in ["host0", "a0", "b0"] {
            veth(name);
        }
        let (dataplane, _) = patched(directory, &[(1, 2)]);
        for (index, name, role) in [(0, "host0", Role::Host), (1, "a0", Role::Pod), (2, "b0", Role::Pod)] {
            dataplane.add_port(spec(index, name, role)).unwrap();
        }
        dataplane.shutdown();
        let (a, leak) = (Far::new("a0-far"), Far::new("a0"));
        let sent = frame([10, 0, 0, 1], [10, 0, 0, 2], 1);
        a.send(&sent);
        assert_eq!(leak.receive(SOON / 10), None, "closed at once");
        std::thread::sleep(Duration::from_millis(1100));
        a.send(&sent);
        assert_eq!(leak.receive(SOON / 10), None, "closed after the heartbeat ended");

        let (dataplane, _) = patched(directory, &[(1, 2)]);
        assert_eq!(dataplane.link_names().into_iter().collect::<Vec<_>>(), ["pin-a0", "pin-b0", "pin-host0"]);
        a.send(&sent);
        assert_eq!(leak.receive(SOON / 10), None, "a new agent opens nothing by starting");
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        let stale = dataplane.retain_links(&["pin-host0".to_owned(), "pin-a0".to_owned()].into());
        assert_eq!(stale, ["pin-b0"]);
        dataplane.add_port(spec(2, "b0", Role::Pod)).unwrap();
        let b = Far::new("b0-far");
        a.send(&sent);
        assert_eq!(b.receive(SOON).as_ref(), Some(&sent));

        assert!(dataplane.detach("pin-a0"));
        assert!(!dataplane.detach("pin-a0"));
        // The kernel takes the program off a moment later.
        leak.drain();
        let deadline = Instant::now() + SOON;
        loop {
            a.send(&sent);
            if leak.receive(SOON / 40).as_ref() == Some(&sent) {
                break;
            }
            assert!(Instant::now() < deadline, "detached: the kernel has the device again");
        }
    });
}

#[test]
fn pods_come_and_go() {
    in_namespaces("pods_come_and_go", |directory| {
        for name in ["host0", "a0", "b0"] {
            veth(name);
        }
        let (dataplane, _) = patched(directory, &[(1, 2)]);
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        dataplane.add_port(spec(2, "b0", Role::Pod)).unwrap();
        let b = Far::new("b0-far");
        for round in 0..4 {
            let a = Far::new("a0-far");
            for number in 0..50 {
                let sent = frame([10, 0, 0, 1], [10, 0, 0, 2], 100 * round + number);
                a.send(&sent);
                assert_eq!(b.receive(SOON).as_ref(), Some(&sent));
            }
            // The device goes first, with traffic to it under way; the port is removed only later.
            support::ip("link del a0");
            for number in 0..50 {
                b.send(&frame([10, 0, 0, 2], [10, 0, 0, 1], number));
            }
            let deadline = Instant::now() + SOON;
            while !dataplane.port_counters().unwrap()[&PortIndex(1)].gone {
                assert!(Instant::now() < deadline, "the worker did not notice");
                b.send(&frame([10, 0, 0, 2], [10, 0, 0, 1], 0));
                std::thread::sleep(Duration::from_millis(5));
            }
            dataplane.remove_port(PortIndex(1)).unwrap();
            assert!(matches!(dataplane.remove_port(PortIndex(1)), Err(DataplaneError::NoPort(1))));
            veth("a0");
            dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        }
        // The first pod of all goes too, and another comes.
        support::ip("link del b0");
        dataplane.remove_port(PortIndex(2)).unwrap();
        veth("c0");
        dataplane.add_port(spec(2, "c0", Role::Pod)).unwrap();
        let (a, c) = (Far::new("a0-far"), Far::new("c0-far"));
        let sent = frame([10, 0, 0, 1], [10, 0, 0, 3], 7);
        a.send(&sent);
        assert_eq!(c.receive(SOON).as_ref(), Some(&sent));

        // Every chunk is somewhere, and none is left with a closed socket.
        std::thread::sleep(Duration::from_millis(1300));
        let census = dataplane.memory().unwrap().chunks;
        assert_eq!(census.free + census.held + census.fill + census.transmit, 4096);
        assert_eq!(census.transmit, 0);
        assert!(census.fill <= 3 * 64 && census.held <= 16, "{census:?}");
    });
}

#[test]
fn a_busy_queue_is_waited_for() {
    in_namespaces("a_busy_queue_is_waited_for", |directory| {
        for name in ["host0", "a0"] {
            veth(name);
        }
        let (dataplane, _) = patched(directory, &[(0, 1)]);
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        let (other, _chunks) = UmemHandle::new(2048, 64).unwrap();
        let holder = other.bind("a0", 0, Duration::ZERO).unwrap();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            // The first socket of a packet memory is closed with it, not before.
            drop((holder, other));
        });
        let started = Instant::now();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(250));
        release.join().unwrap();
        // The kernel frees a closed socket's queue later than the close returns.
        for _ in 0..10 {
            dataplane.remove_port(PortIndex(1)).unwrap();
            dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        }
        let (host, a) = (Far::new("host0-far"), Far::new("a0-far"));
        let sent = frame([10, 0, 0, 1], [10, 0, 0, 2], 1);
        host.send(&sent);
        assert_eq!(a.receive(SOON).as_ref(), Some(&sent));
        assert!(matches!(
            dataplane.add_port(spec(1, "a0", Role::Pod)),
            Err(DataplaneError::PortExists(1, _))
        ));
        assert!(matches!(
            dataplane.add_port(spec(9, "nosuch0", Role::Pod)),
            Err(DataplaneError::NoDevice { .. })
        ));
    });
}

#[test]
fn a_device_is_taken_in_before_it_is_up() {
    in_namespaces("a_device_is_taken_in_before_it_is_up", |directory| {
        veth("host0");
        veth("b0");
        support::ip("link add a0 type veth peer name a0-far");
        let (dataplane, _) = patched(directory, &[(1, 2)]);
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(2, "b0", Role::Pod)).unwrap();
        let mode = dataplane.attach_closed(support::ifindex("a0"), "pin-a0").unwrap();
        assert_eq!(mode, AttachMode::Native);
        support::ip("link set a0 up");
        support::ip("link set a0-far up");
        support::wait_for_carrier("a0");
        let (a, b, leak) = (Far::new("a0-far"), Far::new("b0-far"), Far::new("a0"));
        let sent = frame([10, 0, 0, 1], [10, 0, 0, 2], 1);
        a.send(&sent);
        assert_eq!(leak.receive(SOON / 10), None, "closed before it is a port");
        support::ip("link set a0 down");
        let report = dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        assert_eq!((report.mode, report.queues), (AttachMode::Native, 1));
        support::ip("link set a0 up");
        support::wait_for_carrier("a0");
        a.send(&sent);
        assert_eq!(b.receive(SOON).as_ref(), Some(&sent));
        leak.drain();
        // A device whose driver has no XDP.
        assert_eq!(dataplane.attach_closed(support::ifindex("lo"), "pin-lo").unwrap(), AttachMode::Generic);
        assert!(matches!(
            dataplane.attach_closed(support::ifindex("lo"), "a/b"),
            Err(DataplaneError::Steer(_))
        ));
    });
}

#[test]
fn every_queue_of_a_device_is_taken() {
    in_namespaces("every_queue_of_a_device_is_taken", |directory| {
        veth("host0");
        veth("a0");
        support::ip(
            "link add q0 numrxqueues 3 numtxqueues 3 type veth peer name q0-far numrxqueues 3 numtxqueues 3",
        );
        support::ip("link set q0 up");
        support::ip("link set q0-far up");
        support::wait_for_carrier("q0");
        let (dataplane, _) = patched(directory, &[(1, 2)]);
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        let report = dataplane.add_port(spec(2, "q0", Role::Host)).unwrap();
        assert_eq!(report.queues, 3);
        assert_eq!(dataplane.memory().unwrap().sockets, 5);
        let (a, q) = (Far::new("a0-far"), Far::new("q0-far"));
        for number in 0..64 {
            let sent = frame([10, 0, (number % 8) as u8, 1], [10, 0, 0, 2], number);
            q.send(&sent);
            assert_eq!(a.receive(SOON).as_ref(), Some(&sent));
            a.send(&sent);
            assert_eq!(q.receive(SOON).as_ref(), Some(&sent));
        }
        dataplane.remove_port(PortIndex(2)).unwrap();
        assert_eq!(dataplane.memory().unwrap().sockets, 2);
    });
}

#[test]
fn publications_are_acknowledged() {
    in_namespaces("publications_are_acknowledged", |directory| {
        let (dataplane, _) = patched(directory, &[]);
        assert!(!dataplane.wait_for_topology(1, Duration::ZERO));
        for generation in 1..=100 {
            dataplane.publish_topology(Arc::new(TopologyBuilder::default().build(generation)));
        }
        assert!(dataplane.wait_for_topology(100, SOON));
        let snapshot = Arc::new(Snapshot::default());
        dataplane.publish_snapshot(Arc::clone(&snapshot));
        assert!(dataplane.wait_for_snapshot(snapshot.generation(), SOON));
        assert_eq!(dataplane.acknowledged().1, 100);
        assert_eq!(dataplane.flows(0, 10).unwrap().1, None);
    });
}

#[test]
fn a_flood_loses_frames_but_no_memory() {
    in_namespaces("a_flood_loses_frames_but_no_memory", |directory| {
        for name in ["host0", "a0", "b0"] {
            veth(name);
        }
        let (dataplane, _) = patched(directory, &[(1, 2)]);
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        dataplane.add_port(spec(2, "b0", Role::Pod)).unwrap();
        let senders: Vec<_> = ["a0-far", "b0-far"]
            .map(|name| {
                let far = Far::new(name);
                std::thread::spawn(move || {
                    let flood = frame([10, 0, 0, 1], [10, 0, 0, 2], 1);
                    for _ in 0..50_000 {
                        far.send(&flood);
                    }
                })
            })
            .into();
        let started = Instant::now();
        for sender in senders {
            sender.join().unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        let ports = dataplane.port_counters().unwrap();
        println!("{:?}: {ports:#?}", started.elapsed());
        for (one, other) in [(1, 2), (2, 1)] {
            let (from, to) = (ports[&PortIndex(one)], ports[&PortIndex(other)]);
            assert_eq!(from.rx_packets, to.tx_packets + to.tx_failed);
            assert!(from.rx_packets > 0);
            assert_eq!(from.rx_packets + from.kernel.rx_ring_full + from.kernel.rx_dropped, 50_000);
            assert_eq!((from.refused, from.kernel.invalid_descriptors), (0, 0));
        }
        let census = dataplane.memory().unwrap().chunks;
        assert_eq!(census.free + census.held + census.fill + census.transmit, 4096);
        assert_eq!(census.transmit, 0, "{census:?}");
        // And it still works.
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        let sent = frame([10, 0, 0, 1], [10, 0, 0, 2], 9);
        a.send(&sent);
        assert_eq!(b.receive(SOON).as_ref(), Some(&sent));
    });
}

/// The agent's own worker over real devices: it answers for the gateway, and says why it drops.
#[test]
fn the_worker_answers_for_the_gateway_and_reports_drops() {
    in_namespaces("the_worker_answers_for_the_gateway_and_reports_drops", |directory| {
        veth("host0");
        veth("a0");
        let dataplane = Dataplane::start(config(directory)).unwrap();
        dataplane.add_port(spec(0, "host0", Role::Host)).unwrap();
        dataplane.add_port(spec(1, "a0", Role::Pod)).unwrap();
        let pod_mac = MacAddr([2, 2, 0, 0, 0, 1]);
        let our_mac = MacAddr([2, 0, 0, 0, 0, 2]);
        let kind = PortKind::Pod { endpoint: EndpointId(7), pod_mac, addresses: vec![[10, 0, 0, 1].into()] };
        let port = Port { index: PortIndex(1), name: "a0".to_owned(), kind, mac: our_mac, mtu: 1500 };
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
        pod.send(&question);
        let answer = pod.receive_where(SOON, |f| f[12..14] == [8, 6] && f[21] == 2).unwrap();
        assert_eq!(
            (&answer[..6], &answer[6..12], &answer[22..28]),
            (&pod_mac.0[..], &our_mac.0[..], &our_mac.0[..])
        );

        let events = dataplane.drop_events();
        // The frame's header checksum is zero and wrong.
        let sent = frame([10, 0, 0, 1], [10, 0, 0, 2], 1);
        pod.send(&sent);
        let event = events.recv_timeout(SOON).unwrap();
        assert_eq!(
            (event.port, event.what),
            (PortIndex(1), margay_core::What::Dropped(DropReason::BadIpv4Header))
        );
        let deadline = Instant::now() + SOON;
        while dataplane.counters().dropped(DropReason::BadIpv4Header) == 0 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(dataplane.counters().answered, 1);
        assert!(dataplane.is_running());
    });
}
