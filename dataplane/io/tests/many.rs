//! As many pods as a node can be asked to hold: memory goes round, traffic passes, and nothing burns while they are silent. In a process
//! of its own, so that the worker's thread is the only one of that name.

mod support;

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use margay_core::PortIndex;
use margay_io::{Dataplane, DataplaneConfig, Role};
use support::{Far, Patch, config, frame, in_namespaces, spec, wait_for_carrier};

const PODS: u16 = 250;
const CHUNKS: u32 = 16_384;

fn worker_time() -> Duration {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        if std::fs::read_to_string(task.path().join("comm"))
            .is_ok_and(|name| name.trim() == "margay-worker-0")
        {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            return Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap());
        }
    }
    panic!("no thread of the worker's name");
}

#[test]
fn two_hundred_and_fifty_pods_share_one_packet_memory() {
    in_namespaces("two_hundred_and_fifty_pods_share_one_packet_memory", |directory| {
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let mut script = String::new();
        for index in 0..=PODS {
            writeln!(script, "link add p{index} arp off up type veth peer name p{index}-far").unwrap();
            writeln!(script, "link set p{index}-far arp off up").unwrap();
        }
        let file = directory.join("devices");
        std::fs::write(&file, script).unwrap();
        assert!(Command::new("ip").arg("-batch").arg(&file).status().unwrap().success());

        let config = DataplaneConfig { chunks: CHUNKS, ..config(directory) };
        let last = PODS;
        let make = move |_, _| Patch::new(&[(1, last), (2, last - 1)], Arc::new(AtomicBool::new(false)));
        let dataplane = Dataplane::start_with(config, make).unwrap();
        let started = Instant::now();
        for index in 0..=PODS {
            let role = if index == 0 { Role::Host } else { Role::Pod };
            dataplane.add_port(spec(index, &format!("p{index}"), role)).unwrap();
        }
        println!("{PODS} pods taken in {:?}", started.elapsed());
        for index in [1, 2, PODS - 1, PODS] {
            wait_for_carrier(&format!("p{index}"));
        }
        // Early ports began with larger fill rings. Where one had no traffic, it keeps them until it has.
        let census = dataplane.memory().unwrap().chunks;
        println!("idle: {census:?}");
        assert_eq!(census.free + census.held + census.fill + census.transmit, CHUNKS as usize);
        assert!(census.free > CHUNKS as usize / 4, "idle ports leave room: {census:?}");

        let exchange = |from: u16, to: u16, numbers: std::ops::Range<u32>| {
            let (a, b) = (Far::new(&format!("p{from}-far")), Far::new(&format!("p{to}-far")));
            for number in numbers {
                let there = frame([10, 0, 0, 1], [10, 0, 0, 2], number);
                a.send(&there);
                assert_eq!(b.receive(Duration::from_secs(2)).as_ref(), Some(&there), "{from} to {to}");
            }
        };
        exchange(1, PODS, 0..300);
        exchange(PODS - 1, 2, 0..300);
        // The last port has the smallest fill ring; it grows while bursts come.
        let (a, b) = (Far::new(&format!("p{PODS}-far")), Far::new("p1-far"));
        let mut arrived = 0;
        for burst in 0..100 {
            for number in 0..8 {
                a.send(&frame([10, 0, 0, 2], [10, 0, 0, 1], burst * 8 + number));
            }
            while arrived < (burst + 1) * 8 && b.receive(Duration::from_secs(2)).is_some() {
                arrived += 1;
            }
        }
        assert_eq!(arrived, 800);
        drop((a, b));
        let ports = dataplane.port_counters().unwrap();
        assert_eq!((ports[&PortIndex(PODS)].rx_packets, ports[&PortIndex(1)].rx_packets), (800, 300));

        std::thread::sleep(Duration::from_millis(500));
        let (before, from) = (worker_time(), Instant::now());
        std::thread::sleep(Duration::from_secs(3));
        let share = (worker_time() - before).as_secs_f64() / from.elapsed().as_secs_f64();
        println!("idle worker with {PODS} pods: {:.3} % of a core", share * 100.0);
        assert!(share < 0.01, "{share}");
        let census = dataplane.memory().unwrap().chunks;
        assert_eq!(census.free + census.held + census.fill + census.transmit, CHUNKS as usize);
    });
}
