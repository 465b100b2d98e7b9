//! A TCP stream between two pods of one node, beside the same stream through the kernel's own forwarding.
//!
//! ```text
//!   ours:   pod ═veth═ node (agent, one worker) ═veth═ pod      with large packets within the node, and without
//!   kernel: namespace ═veth═ namespace that forwards ═veth═ namespace      MTU 1500, segmentation offloads on
//!   OVS:    namespace ═veth═ Open vSwitch, AF_XDP ports ═veth═ namespace   MTU 1500
//! ```
//!
//! iperf3's two ends and the forwarder share the processors as the scheduler likes. All take turns in rounds, and a ratio is formed within
//! a round. The kernel has no policy and no connection tracking to do, and neither has Open vSwitch; the pods have a policy.

mod ovs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use benches::numbers::median;
use benches::streams::{patiently, run, stream};
use benches::{Result, machine};

const ROUNDS: usize = 5;
const SECONDS: &str = "2";
const MUST: f64 = 0.8;
const GOAL: f64 = 1.0;
const MUST_OVER_OVS: f64 = 1.2;

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED same_node: needs root");
        return Ok(());
    }
    machine::describe("one node, two pods, one TCP stream");
    let binary = benches::release_binary()?;
    let large = Lab::up(&binary, "auto")?;
    let alike = Lab::up(&binary, "off")?;
    let kernel = Router::up()?;
    let switch = ovs::OpenVSwitch::up();
    println!("   MTU of pods' interfaces: {} and {}", large.mtu()?, alike.mtu()?);
    let (mut ours, mut small, mut theirs, mut switched) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        ours.push(large.stream()?);
        theirs.push(kernel.stream()?);
        small.push(alike.stream()?);
        if let Ok(switch) = &switch {
            switched.push(switch.stream(SECONDS)?);
        }
        let last = |all: &Vec<f64>| all.last().copied().unwrap_or_default();
        let [a, b, c, d] = [&ours, &small, &theirs, &switched].map(last);
        println!(
            "   round {round}: {a:.2} Gb/s, with one MTU {b:.2}, kernel {c:.2}, OVS {d:.2}, load {}",
            machine::load()
        );
    }
    println!("{:<58} {:>8.2} Gb/s", "margay, large packets within the node", median(&ours));
    println!("{:<58} {:>8.2} Gb/s", "margay, one MTU everywhere (--local-mtu off)", median(&small));
    println!("{:<58} {:>8.2} Gb/s", "peer: kernel forwarding, MTU 1500", median(&theirs));
    let ratio = ratio(&ours, &theirs);
    let mark = match ratio {
        ratio if ratio >= GOAL => "goal",
        ratio if ratio >= MUST => "must",
        _ => "missed",
    };
    println!("{:<58} {ratio:>8.2} x      must {MUST}, goal {GOAL}: {mark}", "margay over the kernel");
    match switch {
        Ok(_) => against_ovs(&ours, &small, &switched),
        Err(why) => println!("SKIPPED peer: OVS-AFXDP: {why}"),
    }
    Ok(())
}

/// The median of the rounds' ratios.
fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    median(&ratios)
}

fn against_ovs(ours: &[f64], small: &[f64], switched: &[f64]) {
    println!("{:<58} {:>8.2} Gb/s", "peer: OVS-AFXDP, MTU 1500", median(switched));
    let over = ratio(ours, switched);
    let mark = if over >= MUST_OVER_OVS { "must" } else { "missed" };
    println!("{:<58} {over:>8.2} x      must {MUST_OVER_OVS}: {mark}", "margay over OVS-AFXDP");
    let alike = ratio(small, switched);
    println!("{:<58} {alike:>8.2} x", "margay with one MTU everywhere over OVS-AFXDP");
}

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: a}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: a, labels: {app: two}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-pods, namespace: a}
spec: {podSelector: {matchLabels: {app: two}}, ingress: [{from: [{podSelector: {}}]}]}
";

/// A node with the agent of the release binary.
struct Lab {
    binary: PathBuf,
    directory: tempfile::TempDir,
    name: String,
    address: String,
}

impl Lab {
    fn up(binary: &Path, local_mtu: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let manifests = directory.path().join("manifests");
        fs::create_dir(&manifests)?;
        fs::write(manifests.join("pods.yaml"), PODS)?;
        let name = format!("{}{}", &local_mtu[..1], std::process::id());
        let mut lab = Self { binary: binary.to_owned(), directory, name, address: String::new() };
        let told = format!("--agent-arg=--local-mtu={local_mtu}");
        run(lab.call("up").args(["--nodes", "1", &told, "--manifests"]).arg(manifests))?;
        let shown = run(lab.exec("two").args(["ip", "-4", "-o", "addr", "show", "dev", "eth0"]))?;
        let network = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        lab.address =
            network.and_then(|net| net.split('/').next()).ok_or("pod two has no address")?.to_owned();
        Ok(lab)
    }

    fn call(&self, command: &str) -> Command {
        let mut call = Command::new(&self.binary);
        call.args(["lab", command, "--name", &self.name, "--labs-dir"])
            .arg(self.directory.path().join("labs"));
        call
    }

    fn exec(&self, pod: &str) -> Command {
        let mut call = self.call("exec");
        call.args([&format!("a/{pod}"), "--"]);
        call
    }

    fn mtu(&self) -> Result<String> {
        let shown = run(self.exec("one").args(["ip", "-o", "link", "show", "dev", "eth0"]))?;
        let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
        Ok(mtu.ok_or("no MTU")?.to_owned())
    }

    fn stream(&self) -> Result<f64> {
        stream(self.exec("two"), || self.exec("one"), &self.address, SECONDS)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.call("down")) {
            println!("   the lab {} is not down: {error}", self.name);
        }
    }
}

/// Two namespaces and a third between them, whose kernel forwards.
struct Router {
    names: [String; 3],
}

impl Router {
    fn up() -> Result<Self> {
        let names = ["a", "r", "b"].map(|side| format!("bench-{}{side}", std::process::id()));
        let router = Self { names };
        let ip = |arguments: &str| run(Command::new("ip").args(arguments.split_whitespace()));
        let [a, r, b] = &router.names;
        for name in &router.names {
            ip(&format!("netns add {name}"))?;
        }
        for (far, number) in [(a, 1), (b, 2)] {
            ip(&format!("link add eth0 netns {far} type veth peer name v{number} netns {r}"))?;
            ip(&format!("-n {far} addr add 172.29.{number}.2/24 dev eth0"))?;
            ip(&format!("-n {far} link set eth0 up"))?;
            ip(&format!("-n {r} addr add 172.29.{number}.1/24 dev v{number}"))?;
            ip(&format!("-n {r} link set v{number} up"))?;
            ip(&format!("-n {far} route add default via 172.29.{number}.1"))?;
        }
        ip(&format!("netns exec {r} sysctl -q -w net.ipv4.ip_forward=1"))?;
        patiently(|| run(router.inside(0).args(["ping", "-n", "-c", "1", "-W", "1", "172.29.2.2"])))?;
        Ok(router)
    }

    fn inside(&self, side: usize) -> Command {
        let mut call = Command::new("ip");
        call.args(["netns", "exec", &self.names[side]]);
        call
    }

    fn stream(&self) -> Result<f64> {
        stream(self.inside(2), || self.inside(0), "172.29.2.2", SECONDS)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for name in &self.names {
            // One that was not made is not there.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}
