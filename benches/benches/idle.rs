//! What an agent costs that has nothing to carry: processor time and memory with 110 pods and 100,000 rules.
//!
//! The agent is the release binary with its pods in namespaces, as `margay lab` makes them, all policies compiled for these pods.
//! Processor time is the scheduler's own account of all its threads, so nothing is too short to be seen. A program that polls would show
//! 100 % here.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use benches::lab::{Lab, Plan};
use benches::{Result, machine};

const PODS: usize = 110;
const POLICIES: usize = 1_000;
const RULES_OF_POLICY: usize = 100;
/// The agent's own start, and what pods' kernels say when their interfaces come up, are no idleness.
const SETTLE: Duration = Duration::from_secs(5);
const WATCHED: Duration = Duration::from_secs(10);
const LIMIT: f64 = 1.0;

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED idle: needs root");
        return Ok(());
    }
    machine::describe("an idle agent");
    let binary = benches::release_binary()?;
    let start = Instant::now();
    let lab =
        Lab::up(&binary, "i", &Plan { manifests: &[("cluster.yaml", &manifests()?)], ..Plan::ONE_NODE })?;
    let agent = lab.agent()?;
    println!(
        "   {PODS} pods, {} rules in {POLICIES} policies; up after {:.0} s",
        POLICIES * RULES_OF_POLICY,
        start.elapsed().as_secs_f64()
    );
    std::thread::sleep(SETTLE);
    let (before, start) = (spent(agent)?, Instant::now());
    std::thread::sleep(WATCHED);
    let (after, elapsed) = (spent(agent)?, start.elapsed());
    let percent = |from: u64, to: u64| (to - from) as f64 / elapsed.as_nanos() as f64 * 100.0;
    let mut whole = 0.0;
    let mut shares: BTreeMap<&str, f64> = BTreeMap::new();
    for (thread, (name, to)) in &after {
        let share = percent(before.get(thread).map_or(0, |(_, from)| *from), *to);
        whole += share;
        *shares.entry(name).or_default() += share;
    }
    let mark = if whole <= LIMIT { "met" } else { "missed" };
    println!(
        "   processor time over {:.0} s: {whole:.2} % of one processor; must {LIMIT} %: {mark}",
        elapsed.as_secs_f64()
    );
    shares.retain(|_, share| *share >= 0.01);
    for (name, share) in shares {
        println!("      {name:<18} {share:>6.2} %");
    }
    println!(
        "   resident: {:.1} MiB, at most {:.1} since its start; load average now {}",
        status(agent, "VmRSS:")?,
        status(agent, "VmHWM:")?,
        machine::load()
    );
    Ok(())
}

/// Returns nanoseconds of processor time of each thread, with its name.
fn spent(process: i32) -> Result<BTreeMap<String, (String, u64)>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = task?.path();
        // One without an account has ended meanwhile.
        let Ok(time) = fs::read_to_string(path.join("schedstat")) else { continue };
        let time = time.split_whitespace().next().ok_or("schedstat says nothing")?.parse()?;
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned();
        threads.insert(path.display().to_string(), (name, time));
    }
    Ok(threads)
}

/// Returns a line of the process's status in MiB.
fn status(process: i32, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()).ok_or("no such line")?.parse()?;
    Ok(kib / 1024.0)
}

fn manifests() -> Result<String> {
    let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n");
    for n in 0..PODS {
        write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod{n}, namespace: a, labels: {{app: app{n}}}}}\n\
             spec: {{nodeName: node1, containers: [{{name: main, image: none}}]}}\n"
        )?;
    }
    for n in 0..POLICIES {
        write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: policy{n}, namespace: a}}\nspec:\n  \
             podSelector: {{matchLabels: {{app: app{}}}}}\n  ingress:\n",
            n % PODS
        )?;
        for k in 0..RULES_OF_POLICY {
            let rule = n * RULES_OF_POLICY + k;
            let (network, port) = (rule * 7 % 8_192, 1 + rule * 11 % 60_000);
            writeln!(
                text,
                "  - {{from: [{{ipBlock: {{cidr: 172.{}.{}.0/24}}}}], ports: [{{protocol: TCP, port: {port}}}]}}",
                16 + network / 256,
                network % 256
            )?;
        }
    }
    Ok(text)
}
