//! The packet path on real devices, in namespaces of the test's own. Without root each test says `SKIPPED` and passes.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use margay_core::PortIndex;
use margay_io::{Dataplane, Role};
use support::{Far, Patch, config, frame, in_namespaces, spec, veth};

const SOON: Duration = Duration::from_secs(2);

fn patched(directory: &Path, pairs: &'static [(u16, u16)]) -> (Dataplane, Arc<AtomicBool>) {
    let hang = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&hang);
    (Dataplane::start_with(config(directory), move |_| Patch::new(pairs, inside)).unwrap(), hang)
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
