//! Packets of several frames over real devices. Without root each test says `SKIPPED` and passes.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use margay_core::PortIndex;
use margay_io::xsk::UmemHandle;
use margay_io::{Dataplane, DataplaneConfig, PortCounters, Role};
use support::{Far, Patch, config, frame, in_namespaces, ip, spec, veth};

const SOON: Duration = Duration::from_secs(2);
const LARGE: usize = 60_000;

/// Two pods and the host port, joined by a patch.
fn two_pods(directory: &Path, several_frames: bool) -> Dataplane {
    for name in ["host0", "a0", "b0"] {
        veth(name);
    }
    let config = DataplaneConfig { several_frames, ..config(directory) };
    let make = |_, _| Patch::new(&[(1, 2)], Arc::new(AtomicBool::new(false)));
    let dataplane = Dataplane::start_with(config, make).unwrap();
    for (index, name, role) in [(0, "host0", Role::Host), (1, "a0", Role::Pod), (2, "b0", Role::Pod)] {
        dataplane.add_port(spec(index, name, role)).unwrap();
    }
    for name in ["a0", "b0"] {
        // Only with a program for packets of several frames on it does a veth take so large an MTU.
        ip(&format!("link set {name} mtu {LARGE}"));
        ip(&format!("link set {name}-far mtu {LARGE}"));
    }
    dataplane
}

/// A frame of `len` bytes that is different at every place.
fn large(len: usize, number: u32) -> Vec<u8> {
    let mut bytes = frame([10, 0, 0, 1], [10, 0, 0, 2], number);
    bytes.extend((bytes.len()..len).map(|at| (at * 31 + at / 251 + number as usize) as u8));
    bytes.truncate(len.max(66));
    bytes
}

/// Waits until all frames are in both books.
fn conserved(dataplane: &Dataplane) {
    let deadline = Instant::now() + SOON;
    loop {
        let frames = dataplane.frames().unwrap();
        if frames.agrees() {
            return;
        }
        assert!(Instant::now() < deadline, "{frames:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn counters(dataplane: &Dataplane, port: u16) -> PortCounters {
    dataplane.port_counters().unwrap()[&PortIndex(port)]
}

#[test]
fn large_packets_pass_whole_and_their_frames_are_conserved() {
    in_namespaces("large_packets_pass_whole_and_their_frames_are_conserved", |directory| {
        let dataplane = two_pods(directory, true);
        if !dataplane.takes_several_frames() {
            println!("SKIPPED large_packets_pass_whole: the kernel has no packets of several frames");
            return;
        }
        assert_eq!(dataplane.largest_packet(), 17 * 3840);
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        let mut bytes = 0;
        // The edges of one, two and sixteen frames, and the whole MTU.
        let sizes = [66, 3839, 3840, 3841, 7680, 7681, 30_000, 57_600, 57_601, LARGE + 14];
        for (number, size) in (0..20).flat_map(|_| sizes).enumerate() {
            let sent = large(size, number as u32);
            bytes += sent.len() as u64;
            a.send(&sent);
            let received = b.receive(SOON).unwrap_or_else(|| panic!("{size} bytes, frame {number}"));
            assert!(received == sent, "{size} bytes, frame {number}: {} arrived", received.len());
        }
        conserved(&dataplane);
        let (from, to) = (counters(&dataplane, 1), counters(&dataplane, 2));
        assert_eq!((from.rx_packets, from.rx_bytes), (200, bytes));
        assert_eq!((to.tx_packets, to.tx_bytes, to.tx_failed), (200, bytes, 0));
        assert_eq!((from.refused, to.kernel.invalid_descriptors), (0, 0));
    });
}

#[test]
fn a_burst_of_large_packets_loses_none_without_a_count() {
    in_namespaces("a_burst_of_large_packets_loses_none_without_a_count", |directory| {
        let dataplane = two_pods(directory, true);
        if !dataplane.takes_several_frames() {
            println!("SKIPPED a_burst_of_large_packets: the kernel has no packets of several frames");
            return;
        }
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        const SENT: u64 = 2_000;
        for number in 0..SENT {
            a.send(&large(LARGE + 14, number as u32));
        }
        let idle = || counters(&dataplane, 1).rx_packets + counters(&dataplane, 1).kernel.rx_dropped;
        let deadline = Instant::now() + SOON;
        while idle() < SENT && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        conserved(&dataplane);
        let (from, to) = (counters(&dataplane, 1), counters(&dataplane, 2));
        let lost = from.kernel.rx_dropped + from.kernel.rx_ring_full;
        println!("{} of {SENT} arrived, {} left", from.rx_packets, to.tx_packets);
        assert!(from.rx_packets + lost >= SENT, "{from:?}");
        assert_eq!(to.tx_packets + to.tx_failed, from.rx_packets, "{to:?}");
        drop(b);
    });
}

/// Many ports over little memory: an idle one has 8 frames to receive into, and a packet of 60,000 bytes needs 16.
fn among_many(directory: &Path, large_from_the_beginning: bool) -> Option<Dataplane> {
    let config = DataplaneConfig { chunks: 512, ..config(directory) };
    let make = |_, _| Patch::new(&[(1, 2)], Arc::new(AtomicBool::new(false)));
    let dataplane = Dataplane::start_with(config, make).unwrap();
    for index in 0..20u16 {
        // The two that matter come last, when every port's share is small.
        let index = (index + 3) % 20;
        let name = format!("p{index}");
        veth(&name);
        if large_from_the_beginning && (1..=2).contains(&index) {
            ip(&format!("link set {name} mtu {LARGE}"));
            ip(&format!("link set {name}-far mtu {LARGE}"));
        }
        let role = if index == 0 { Role::Host } else { Role::Pod };
        dataplane.add_port(spec(index, &name, role)).unwrap();
    }
    for name in ["p1", "p1-far", "p2", "p2-far"] {
        ip(&format!("link set {name} mtu {LARGE}"));
    }
    if !dataplane.takes_several_frames() {
        println!("SKIPPED among_many: the kernel has no packets of several frames");
        return None;
    }
    Some(dataplane)
}

#[test]
fn a_port_for_large_packets_has_frames_for_them_among_many_ports() {
    in_namespaces("a_port_for_large_packets_has_frames_for_them_among_many_ports", |directory| {
        let Some(dataplane) = among_many(directory, true) else { return };
        assert_eq!(dataplane.frames().unwrap().rings[&PortIndex(1)].0, 32);
        let (a, b) = (Far::new("p1-far"), Far::new("p2-far"));
        for number in 0..50 {
            let sent = large(LARGE + 14, number);
            a.send(&sent);
            assert!(b.receive(SOON) == Some(sent), "{number}");
        }
        conserved(&dataplane);
        assert_eq!(counters(&dataplane, 1).kernel.rx_dropped, 0);
        // 18 ports of 8 and two of 32: 208 of the 256 that may be bound. One more, and a second one does not fit.
        assert!(dataplane.has_room_for(LARGE as u32 + 14));
        veth("p20");
        ip(&format!("link set p20 mtu {LARGE}"));
        dataplane.add_port(spec(20, "p20", Role::Pod)).unwrap();
        assert_eq!((dataplane.has_room_for(LARGE as u32 + 14), dataplane.has_room_for(1514)), (false, true));
    });
}

#[test]
fn a_port_that_loses_a_large_packet_for_want_of_frames_gets_more() {
    in_namespaces("a_port_that_loses_a_large_packet_for_want_of_frames_gets_more", |directory| {
        let Some(dataplane) = among_many(directory, false) else { return };
        assert!(dataplane.frames().unwrap().rings[&PortIndex(1)].0 < 16);
        let (a, b) = (Far::new("p1-far"), Far::new("p2-far"));
        let sent = large(LARGE + 14, 1);
        a.send(&sent);
        // The kernel says so: a loss, and not one for an empty ring.
        let kernel = counters(&dataplane, 1).kernel;
        assert_eq!((kernel.rx_dropped, kernel.fill_ring_empty), (1, 0));
        // Its sender tries again, as TCP does after 200 ms.
        std::thread::sleep(Duration::from_millis(250));
        a.send(&sent);
        assert!(b.receive(SOON) == Some(sent));
        conserved(&dataplane);
        let now = counters(&dataplane, 1);
        assert_eq!((now.rx_packets, now.kernel.rx_dropped), (1, 1));
    });
}

#[test]
fn where_packets_have_one_frame_larger_ones_are_lost_by_count_and_others_pass() {
    let name = "where_packets_have_one_frame_larger_ones_are_lost_by_count_and_others_pass";
    in_namespaces(name, |directory| {
        let dataplane = two_pods(directory, false);
        assert_eq!((dataplane.largest_packet(), dataplane.takes_several_frames()), (3840, false));
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        a.send(&large(3841, 1));
        let small = large(3840, 2);
        a.send(&small);
        assert!(b.receive(SOON) == Some(small));
        conserved(&dataplane);
        assert_eq!(counters(&dataplane, 1).kernel.rx_dropped, 1);
    });
}

#[test]
fn a_first_bind_that_is_refused_leaves_the_memory_usable() {
    in_namespaces("a_first_bind_that_is_refused_leaves_the_memory_usable", |_| {
        veth("a0");
        let (umem, _) = UmemHandle::new(4096, 256).unwrap();
        umem.bind("a0", 77, Duration::ZERO).expect_err("no such queue");
        assert_eq!((umem.takes_several_frames(), umem.largest_packet()), (false, 3840));
        umem.bind("a0", 0, Duration::ZERO).expect("the queue that there is");
        let (single, _) = UmemHandle::new(4096, 256).unwrap();
        let single = single.of_single_frames();
        veth("b0");
        single.bind("b0", 0, Duration::ZERO).expect("bound");
        assert!(!single.takes_several_frames());
    });
}
