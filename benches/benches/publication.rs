//! How long one change takes from memory to the last packet that does not know it: applied to the engine, compiled, published,
//! acknowledged by a running worker.
//!
//! The worker is the agent's own thread, asleep when the change comes, as on a quiet node. Peers: the same tables compiled from
//! nothing, and `nft -f` of a change of the same size to a ruleset of the same size in a namespace of its own (its process start is
//! measured apart).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::namespaces::{self, NetNs, nft};
use benches::numbers::percentile;
use benches::{Result, machine, world};
use margay_io::{Dataplane, DataplaneConfig};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::Object;

const PODS: usize = 10_000;
const POLICIES: usize = 1_000;
const LOCAL: usize = 110;
const CHANGES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    namespaces::run("publication", bench)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn line(name: &str, values: &[f64]) {
    println!(
        "{name:<58} {:>10.3} {:>10.3} {:>10.3} {:>6}",
        percentile(values, 0.5),
        percentile(values, 0.99),
        percentile(values, 1.0),
        values.len()
    );
}

fn bench(directory: &Path) -> Result<()> {
    machine::describe("publication: one change, until the worker has it");
    println!(
        "   {PODS} pods ({LOCAL} local), {POLICIES} policies of 3 rules, {} apps; worker asleep",
        world::APPS
    );
    let config = DataplaneConfig { bpffs: directory.join("bpf"), ..DataplaneConfig::default() };
    let dataplane = Dataplane::start(config)?;
    let mut engine = world::cluster(PODS, POLICIES, LOCAL);
    send(&dataplane, &mut engine)?;

    println!("{:<58} {:>10} {:>10} {:>10} {:>6}", "milliseconds", "p50", "p99", "max", "n");
    let policy = |n: usize| Change::Upsert(world::cluster_policy(n % LOCAL, 1 + n as u16));
    changes("a policy's rule changed", &dataplane, &mut engine, policy)?;
    let remote = |n: usize| pod(LOCAL + n * 40 % (PODS - LOCAL), n);
    changes("a remote pod's label changed", &dataplane, &mut engine, remote)?;
    let here = |n: usize| pod(n % LOCAL, n + 1);
    changes("a local pod's label changed", &dataplane, &mut engine, here)?;

    let mut scratch = Vec::new();
    for _ in 0..3 {
        let mut fresh = world::cluster(PODS, POLICIES, LOCAL);
        let start = Instant::now();
        let snapshot = fresh.publish();
        scratch.push(milliseconds(start));
        drop(snapshot);
    }
    line("peer: the whole compiled from nothing", &scratch);
    peer()
}

fn pod(n: usize, app: usize) -> Change {
    Change::Upsert(Object::Pod(Arc::new(world::cluster_pod(n, n + 250 + app))))
}

/// Publishes and waits without sleeping; the times of compiling, and of the way to the worker.
fn send(dataplane: &Dataplane, engine: &mut Engine) -> Result<(f64, f64)> {
    let start = Instant::now();
    let snapshot = engine.publish();
    let compiled = milliseconds(start);
    let generation = snapshot.generation();
    let start = Instant::now();
    dataplane.publish_snapshot(snapshot);
    while dataplane.acknowledged().0 < generation {
        if start.elapsed() > PATIENCE {
            return Err("the worker does not take the snapshot".into());
        }
        std::hint::spin_loop();
    }
    Ok((compiled, milliseconds(start)))
}

fn changes(
    name: &str,
    dataplane: &Dataplane,
    engine: &mut Engine,
    change: impl Fn(usize) -> Change,
) -> Result<()> {
    let (mut whole, mut compile, mut way) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..10 * CHANGES {
        if whole.len() == CHANGES {
            break;
        }
        let change = change(n);
        let before = dataplane.acknowledged().0;
        let start = Instant::now();
        engine.apply(change);
        let (compiled, acknowledged) = send(dataplane, engine)?;
        if dataplane.acknowledged().0 == before {
            // No packet of this node could notice the change: nothing was published.
            continue;
        }
        whole.push(milliseconds(start));
        compile.push(compiled);
        way.push(acknowledged);
        // The worker goes back to sleep.
        std::thread::sleep(Duration::from_millis(1));
    }
    line(&format!("{name}: applied to acknowledged"), &whole);
    line("  of which compiling", &compile);
    line("  of which publishing until acknowledged", &way);
    Ok(())
}

/// The kernel's way: a table of as many chains and sets, and a small script for each change.
fn peer() -> Result<()> {
    NetNs::new()?.inside(|| {
        let mut script = String::from("table inet f {\n");
        for app in 0..world::APPS {
            let members: Vec<String> =
                (app..PODS).step_by(world::APPS).map(|n| world::cluster_address(n).to_string()).collect();
            script += &format!("set app{app} {{ type ipv4_addr; elements = {{ {} }} }}\n", members.join(", "));
        }
        let rules = |n: usize, port: usize| {
            let from = (n * 7 + 1) % world::APPS;
            let net = n % 256;
            format!(
                "ip saddr @app{from} tcp dport 8080 accept\nip saddr 172.16.{net}.0/24 tcp dport 443 accept\ntcp dport {port} accept\n"
            )
        };
        for n in 0..POLICIES {
            script += &format!("chain policy{n} {{\n{}}}\n", rules(n, 10_000));
        }
        script += "}\n";
        let start = Instant::now();
        nft(&script)?;
        let full = milliseconds(start);
        let (mut policy, mut pod, mut empty) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..50 {
            let start = Instant::now();
            nft("")?;
            empty.push(milliseconds(start));
            let body: String = rules(n * 5, 10_001 + n)
                .lines()
                .map(|rule| format!("add rule inet f policy{} {rule}\n", n * 5))
                .collect();
            let start = Instant::now();
            nft(&format!("flush chain inet f policy{}\n{body}", n * 5))?;
            policy.push(milliseconds(start));
            let moved = world::cluster_address(n * 40);
            let (old, new) = ((n * 40) % world::APPS, (n * 40 + 250) % world::APPS);
            let start = Instant::now();
            nft(&format!(
                "delete element inet f app{old} {{ {moved} }}\nadd element inet f app{new} {{ {moved} }}\n"
            ))?;
            pod.push(milliseconds(start));
        }
        line("peer: nft -f, one chain's rules replaced", &policy);
        line("peer: nft -f, one address moved between sets", &pod);
        line("  of which starting nft with nothing to do", &empty);
        line("peer: nft -f, the whole ruleset", &[full]);
        Ok(())
    })
}
