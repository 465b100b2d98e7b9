//! Size: starting with much, changing little of it, and the memory of both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::numbers::percentile;
use benches::{Result, world};
use ipnet::Ipv4Net;
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::Object;

use super::report::{Want, line, peak_megabytes, resident_megabytes};
use super::shapes::{Deployments, LOCAL, RULES_OF_POLICY, cluster, customers, policy, scaled, with_set};

const PODS: usize = 250_000;

/// Takes the objects in and publishes; returns the engine and the seconds.
fn start(changes: Vec<Change>) -> (Engine, f64) {
    let start = Instant::now();
    let mut engine = Engine::new();
    for change in changes {
        engine.apply(change);
    }
    let snapshot = engine.publish();
    let spent = start.elapsed().as_secs_f64();
    assert_eq!(snapshot.endpoints().len(), LOCAL, "every local pod is governed");
    (engine, spent)
}

/// From decoded objects of a large cluster to the first snapshot.
pub fn cold_start() -> Result<()> {
    let (pods, policies) = (scaled(PODS).max(LOCAL), scaled(10_000));
    println!("   {pods} pods ({LOCAL} local), {policies} policies of 3 rules, {} apps", world::APPS);
    let changes = cluster(pods, policies, |n| world::cluster_policy(n, 0));
    line("decoded objects alone", resident_megabytes(), "MB", Want::Nothing);
    let (_engine, spent) = start(changes);
    line("cold start: decoded objects to snapshot", spent, "s", Want::AtMost(3.0, 1.0));
    line("cold start: peak memory, objects included", peak_megabytes(), "MB", Want::AtMost(400.0, 150.0));
    Ok(())
}

/// Many customers, each alone in a namespace.
pub fn namespaces() -> Result<()> {
    let count = scaled(100_000).max(LOCAL);
    println!(
        "   {count} namespaces with one or two pods ({LOCAL} local) and a policy that lets in their own namespace"
    );
    let changes = customers(count);
    line("decoded objects alone", resident_megabytes(), "MB", Want::Nothing);
    let (_engine, spent) = start(changes);
    line("isolated customers: decoded objects to snapshot", spent, "s", Want::AtMost(2.0, 0.7));
    // Felix, published: 6.9 s and 402 MB.
    line("isolated customers: peak memory", peak_megabytes(), "MB", Want::AtMost(f64::INFINITY, 100.0));
    Ok(())
}

/// One network set with ten million members.
pub fn members() -> Result<()> {
    let count = scaled(10_000_000);
    println!("   one set of {count} addresses");
    let nets = (0..count as u32)
        .map(|n| {
            // Neighbours are no members, so nothing can be joined.
            Ipv4Net::new_assert((0x0b00_0000 + 2 * n).into(), 32).into()
        })
        .collect();
    let mut engine = with_set(nets);
    line("decoded set alone", resident_megabytes(), "MB", Want::Nothing);
    let start = Instant::now();
    let _snapshot = engine.publish();
    line("set compiled", start.elapsed().as_secs_f64(), "s", Want::Nothing);
    line("peak memory, set included", peak_megabytes(), "MB", Want::AtMost(1024.0, 1024.0));
    Ok(())
}

/// One change in a large cluster, applied and compiled until it can be published.
pub fn change() -> Result<()> {
    let (pods, policies) = (scaled(PODS).max(2 * LOCAL), scaled(100_000 / RULES_OF_POLICY));
    println!(
        "   {pods} pods ({LOCAL} local), {policies} policies of {RULES_OF_POLICY} rules, {} apps; 2,000 changes of each kind, a minute at most",
        world::APPS
    );
    let (mut engine, _) = start(cluster(pods, policies, |n| policy(n, 0)));
    let mut deployments = Deployments::default();
    let mut pod = |n: usize, app: usize| Change::Upsert(Object::Pod(Arc::new(deployments.pod(n, app))));
    let mut times = measure(&mut engine, "a remote pod's label changed", |n| {
        let remote = LOCAL + n * 7_919 % (pods - LOCAL);
        pod(remote, remote + 250 + n)
    });
    // Policies of apps that local pods have, as long as those have their first labels.
    let here = |n: usize| (n % LOCAL + n / LOCAL * world::APPS) % policies;
    times.extend(measure(&mut engine, "a policy's rule changed", |n| {
        Change::Upsert(policy(here(n), 1 + n as u16))
    }));
    times.extend(measure(&mut engine, "a local pod's label changed", |n| pod(n % LOCAL, n + 1)));
    line("any of these, p50", percentile(&times, 0.5), "us", Want::AtMost(1_000.0, 100.0));
    line("any of these, p99", percentile(&times, 0.99), "us", Want::AtMost(5_000.0, 1_000.0));
    Ok(())
}

fn measure(engine: &mut Engine, what: &str, mut change: impl FnMut(usize) -> Change) -> Vec<f64> {
    let mut times = Vec::new();
    let mut noticed = 0;
    let mut generation = engine.publish().generation();
    let begin = Instant::now();
    while times.len() < 2_000 && begin.elapsed() < Duration::from_secs(60) {
        let change = change(times.len());
        let start = Instant::now();
        engine.apply(change);
        let snapshot = engine.publish();
        times.push(start.elapsed().as_nanos() as f64 / 1e3);
        noticed += usize::from(snapshot.generation() != generation);
        generation = snapshot.generation();
    }
    println!("   {noticed} of {} changes could be noticed by a packet of this node", times.len());
    line(
        &format!("{what}, p50 of {}", times.len()),
        percentile(&times, 0.5),
        "us",
        Want::AtMost(1_000.0, 100.0),
    );
    line(&format!("{what}, p99"), percentile(&times, 0.99), "us", Want::AtMost(5_000.0, 1_000.0));
    times
}
