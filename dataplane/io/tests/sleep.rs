//! A worker that never looks around sleeps when there is nothing to do, and not before. On real devices in namespaces of the test's own;
//! without root it says `SKIPPED` and passes.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use margay_io::engine::BURST;
use margay_io::{Dataplane, DataplaneConfig, Role};
use support::{Far, Patch, config, frame, in_namespaces, spec, veth};

/// As long as a worker sleeps when nothing wakes it.
const SLEEP: Duration = Duration::from_millis(100);

/// Whoever was woken once for several bursts is not woken again for the second.
#[test]
fn what_a_burst_leaves_on_a_ring_does_not_wait_for_the_next_event() {
    in_namespaces("what_a_burst_leaves_on_a_ring_does_not_wait_for_the_next_event", |directory| {
        ["host0", "a0", "b0"].iter().for_each(|name| veth(name));
        let hang = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&hang);
        let make = move |_, _| Patch::new(&[(1, 2)], Arc::clone(&told));
        let lazy = DataplaneConfig { spin: Duration::ZERO, ..config(directory) };
        let dataplane = Dataplane::start_with(lazy, make).unwrap();
        for (index, name, role) in [(0, "host0", Role::Host), (1, "a0", Role::Pod), (2, "b0", Role::Pod)] {
            dataplane.add_port(spec(index, name, role)).unwrap();
        }
        let (from, to) = (Far::new("a0-far"), Far::new("b0-far"));
        let sent = frame([10, 0, 0, 1], [10, 0, 0, 2], 0);
        // Frames that came, and after how long the last one did; only where they were several bursts.
        let mut rounds = Vec::new();
        for _ in 0..20 {
            hang.store(true, SeqCst);
            from.send(&sent);
            // It holds this one while the others come.
            std::thread::sleep(Duration::from_millis(20));
            (0..6 * BURST).for_each(|_| from.send(&sent));
            hang.store(false, SeqCst);
            let start = Instant::now();
            let (mut count, mut last) = (0, start);
            while to.receive(2 * SLEEP).is_some() {
                (count, last) = (count + 1, Instant::now());
            }
            // What found no frame to be received into is lost; a port that lost some gets more.
            if count > 4 * BURST {
                rounds.push((count, last - start));
            }
        }
        let quickest = rounds.iter().map(|(_, time)| *time).min();
        assert!(quickest.is_some_and(|time| time < SLEEP), "{rounds:?}");
    });
}
