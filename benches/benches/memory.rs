//! What the packet path costs in memory, user and kernel, by number of pods, beside the estimate that the agent itself shows.
//!
//! Each count runs in a process of its own, in a network namespace of its own: veth pairs are made first, then memory is read, then
//! the real dataplane takes the host port and every pod in, then memory is read again. The kernel's share (rings, and an entry per
//! chunk of packet memory for every socket) is in no process's resident size, so it is read from /proc/meminfo: VmallocUsed,
//! SUnreclaim and Percpu. Those count the whole machine: what other programs do meanwhile is in them, hence the median of three runs.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::namespaces::{self, feed, wait_for_carrier};
use benches::numbers::median;
use benches::{Result, machine, world};
use ipnet::Ipv4Net;
use margay_core::PortIndex;
use margay_core::topology::{Port, PortKind, TopologyBuilder};
use margay_io::{Dataplane, DataplaneConfig, PortSpec, Role};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Entity, Object};
use margay_policy_engine::packet::EndpointId;
use margay_wire::protocol;

/// Pods, and rules in all.
const CASES: [(usize, usize); 5] = [(2, 300), (30, 300), (110, 300), (250, 300), (110, 100_000)];
const RUNS: usize = 3;
const RULES_OF_POLICY: usize = 100;
const MUST: f64 = 600.0;
const GOAL: f64 = 400.0;

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("one") {
        return namespaces::run("memory", one);
    }
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED memory: needs root");
        return Ok(());
    }
    machine::describe("memory of the packet path, MiB");
    let config = DataplaneConfig::default();
    println!(
        "   packet memory {} chunks of {} bytes; every rule governs pods of the node; median of {RUNS} processes each",
        config.chunks, config.chunk_size
    );
    println!(
        "{:>5} {:>8} {:>14} {:>14} {:>14} {:>10} | {:>14} {:>14} {:>12}",
        "pods",
        "rules",
        "user, ports",
        "with policy",
        "kernel",
        "total",
        "agent: user",
        "agent: kernel",
        "add_port ms"
    );
    for (pods, rules) in CASES {
        let mut runs: Vec<Vec<f64>> = Vec::new();
        for _ in 0..RUNS {
            let me = std::env::current_exe()?;
            let output = Command::new(me).args(["one", &pods.to_string(), &rules.to_string()]).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let values: Vec<f64> = text
                .lines()
                .find_map(|line| line.strip_prefix("values "))
                .map(|line| line.split_whitespace().filter_map(|v| v.parse().ok()).collect())
                .unwrap_or_default();
            if !output.status.success() || values.len() != 6 {
                return Err(format!("{pods} pods: {text}{}", String::from_utf8_lossy(&output.stderr)).into());
            }
            runs.push(values);
            // The kernel frees what a closed socket had a little later.
            std::thread::sleep(Duration::from_millis(300));
        }
        let of = |at: usize| median(&runs.iter().map(|run| run[at]).collect::<Vec<_>>());
        println!(
            "{pods:>5} {rules:>8} {:>14.1} {:>14.1} {:>14.1} {:>10.1} | {:>14.1} {:>14.1} {:>12.2}",
            of(0),
            of(1),
            of(2),
            of(1) + of(2),
            of(3),
            of(4),
            of(5)
        );
        if rules == 100_000 {
            let mark = match of(1) + of(2) {
                total if total <= GOAL => "goal",
                total if total <= MUST => "must",
                _ => "missed",
            };
            println!("   user and kernel at {pods} pods and {rules} rules: must {MUST}, goal {GOAL}: {mark}");
        }
    }
    Ok(())
}

/// Returns policy `n`, of [`RULES_OF_POLICY`] rules on one of `pods` pods: each lets one of 8,192 networks reach one port.
fn policy(n: usize, pods: usize) -> Object {
    let rules = (n * RULES_OF_POLICY..(n + 1) * RULES_OF_POLICY).map(|rule| {
        let net = Ipv4Addr::from(0xac10_0000 + ((rule * 7 % 8_192) as u32) * 256);
        let source = Entity { nets: vec![Ipv4Net::new_assert(net, 24).into()], ..Entity::default() };
        world::allow(protocol::TCP, source, world::port(1 + (rule * 11 % 60_000) as u16))
    });
    world::ingress(&format!("policy-{n}"), n as f64, &format!("app == 'app{}'", n % pods), rules.collect())
}

fn sum(path: &str, keys: &[&str]) -> Result<i64> {
    let text = std::fs::read_to_string(path)?;
    let value = |key: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(*key)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok()).unwrap_or(0)
    };
    Ok(keys.iter().map(value).sum())
}

fn resident() -> Result<f64> {
    Ok(sum("/proc/self/status", &["VmRSS"])? as f64 / 1024.0)
}

/// Reads the kernel's share when it has stopped moving, or after a second.
fn kernel() -> Result<f64> {
    let read = || sum("/proc/meminfo", &["VmallocUsed", "SUnreclaim", "Percpu"]);
    let mut last = read()?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(50));
        let now = read()?;
        if (now - last).abs() < 64 {
            last = now;
            break;
        }
        last = now;
    }
    Ok(last as f64 / 1024.0)
}

/// One count of pods in this process.
fn one(directory: &Path) -> Result<()> {
    let pods: usize = std::env::args().nth(2).ok_or("how many pods?")?.parse()?;
    let rules: usize = std::env::args().nth(3).ok_or("how many rules?")?.parse()?;
    let names: Vec<String> =
        std::iter::once("host".to_owned()).chain((0..pods).map(|n| format!("pod{n}"))).collect();
    let mut batch = String::new();
    for name in &names {
        batch += &format!("link add {name} type veth peer name {name}-far\n");
        batch += &format!("link set {name} arp off up\nlink set {name}-far arp off up\n");
    }
    feed("ip", &["-batch", "-"], &batch)?;
    wait_for_carrier(names.last().ok_or("no names")?)?;

    let (user_before, kernel_before) = (resident()?, kernel()?);
    let config = DataplaneConfig { bpffs: directory.join("bpf"), ..DataplaneConfig::default() };
    let dataplane = Dataplane::start(config)?;
    let began = Instant::now();
    for (index, name) in names.iter().enumerate() {
        dataplane.add_port(PortSpec {
            index: PortIndex(index as u16),
            device: name.clone(),
            role: if index == 0 { Role::Host } else { Role::Pod },
            pin: format!("pin-{name}"),
            queues: None,
        })?;
    }
    let per_port = began.elapsed().as_secs_f64() * 1e3 / names.len() as f64;
    let (user, kernel_after) = (resident()?, kernel()?);

    let mut builder = TopologyBuilder::default();
    for n in 0..pods {
        builder.ports.push(Port {
            index: PortIndex(n as u16 + 1),
            name: names[n + 1].clone(),
            kind: PortKind::Pod {
                endpoint: EndpointId(n as u32 + 1),
                pod_mac: world::mac(n as u8),
                addresses: vec![world::cluster_address(n).into()],
            },
            mac: world::mac(n as u8),
            mtu: 1500,
        });
    }
    dataplane.publish_topology(Arc::new(builder.build(1)));
    let mut engine = world::cluster(pods, 0, pods);
    for n in 0..rules / RULES_OF_POLICY {
        engine.apply(Change::Upsert(policy(n, pods)));
    }
    let snapshot = engine.publish();
    dataplane.publish_snapshot(Arc::clone(&snapshot));
    if !dataplane.wait_for_snapshot(snapshot.generation(), Duration::from_secs(5)) {
        return Err("the worker did not take the snapshot".into());
    }
    let with_policy = resident()?;
    let report = dataplane.memory()?;
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    println!(
        "values {} {} {} {} {} {}",
        user - user_before,
        with_policy - user_before,
        kernel_after - kernel_before,
        mib(report.umem_bytes),
        mib(report.ring_bytes + report.kernel_bytes),
        per_port
    );
    Ok(())
}
