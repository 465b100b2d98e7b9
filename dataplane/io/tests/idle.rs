//! What the worker costs while nothing happens. In a process of its own, so that its thread is the only one of that name.

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use margay_io::{Dataplane, Role};
use support::{Patch, config, in_namespaces, spec, veth};

/// Nanoseconds that the worker's thread was on a processor.
fn worker_time() -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        if std::fs::read_to_string(task.path().join("comm"))
            .is_ok_and(|name| name.trim() == "margay-worker-0")
        {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            return text.split_whitespace().next().unwrap().parse().unwrap();
        }
    }
    panic!("no thread of the worker's name");
}

#[test]
fn an_idle_worker_takes_less_than_a_hundredth_of_a_core() {
    in_namespaces("an_idle_worker_takes_less_than_a_hundredth_of_a_core", |directory| {
        let dataplane = Dataplane::start_with(config(directory), |_, _| {
            Patch::new(&[], Arc::new(AtomicBool::new(false)))
        })
        .unwrap();
        for index in 0..20 {
            let name = format!("p{index}");
            veth(&name);
            dataplane.add_port(spec(index, &name, if index == 0 { Role::Host } else { Role::Pod })).unwrap();
        }
        std::thread::sleep(Duration::from_millis(500));
        let (before, started) = (worker_time(), Instant::now());
        std::thread::sleep(Duration::from_secs(3));
        let used = worker_time() - before;
        let share = used as f64 / started.elapsed().as_nanos() as f64;
        println!("idle worker with 20 ports: {:.3} % of a core", share * 100.0);
        assert!(share < 0.01, "{share}");
    });
}
