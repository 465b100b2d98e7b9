//! A TCP stream between pods of two nodes over WireGuard, beside the same stream over other people's WireGuard in user space.
//!
//! ```text
//!   ours:   pod ═veth═ node1 (agent, one worker) ═veth═ node2 (agent, one worker) ═veth═ pod
//!   peers:       namespace (daemon, TUN device) ═veth═ namespace (daemon, TUN device)
//! ```
//!
//! The inner MTU is 1420 everywhere, the outer 1500; two daemons and iperf3's two ends share the processors as the scheduler likes. All
//! take turns in rounds, and a ratio is formed within a round. Ours has the longer way: two more veth pairs and policy at both ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use benches::lab::{Lab, Plan};
use benches::numbers::{median, percentile};
use benches::streams::{Running, patiently, run, stream};
use benches::{Result, machine};

const ROUNDS: usize = 3;
const SECONDS: &str = "4";
const PINGS: &str = "300";

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED encrypted: needs root");
        return Ok(());
    }
    machine::describe("two nodes, WireGuard between them, one TCP stream");
    let binary = benches::release_binary()?;
    let nodes = Nodes::up(&binary)?;
    let mut peers = Vec::new();
    for (name, program, must, goal) in [
        ("boringtun-cli", "boringtun-cli", 4.0, 5.5),
        ("wireguard-go", "wireguard-go", 3.0, 4.0),
        ("gotatun-cli", "gotatun", 2.0, 2.8),
    ] {
        match Pair::start(program) {
            Ok(pair) => peers.push((name, must, goal, pair)),
            Err(why) => println!("SKIPPED {name}: {why}"),
        }
    }

    let mut ours = Vec::new();
    let mut clear = Vec::new();
    let mut theirs = vec![Vec::new(); peers.len()];
    for round in 0..ROUNDS {
        nodes.encrypt(true)?;
        ours.push(nodes.stream()?);
        for ((.., pair), results) in peers.iter().zip(&mut theirs) {
            results.push(pair.stream()?);
        }
        nodes.encrypt(false)?;
        clear.push(nodes.stream()?);
        println!("   round {}: ours {:.2} Gb/s, in clear {:.2}", round + 1, ours[round], clear[round]);
    }
    println!("{:<58} {:>8.2} Gb/s   (goal 3.0)", "margay, encrypted", median(&ours));
    println!("{:<58} {:>8.2} Gb/s", "margay, in clear", median(&clear));
    for ((name, must, goal, _), results) in peers.iter().zip(&theirs) {
        let ratios: Vec<f64> = ours.iter().zip(results).map(|(ours, theirs)| ours / theirs).collect();
        let ratio = median(&ratios);
        let mark = if ratio >= *goal {
            "goal"
        } else if ratio >= *must {
            "must"
        } else {
            "missed"
        };
        println!("{:<58} {:>8.2} Gb/s", format!("peer: {name}"), median(results));
        println!(
            "{:<58} {ratio:>8.2} x      must {must}, goal {goal}: {mark}",
            format!("margay over {name}")
        );
    }

    let plain = nodes.round_trips()?;
    nodes.encrypt(true)?;
    let sealed = nodes.round_trips()?;
    println!(
        "{:<58} {:>8.1} us  (p99 {:.1})",
        "round trip in clear, p50",
        median(&plain),
        percentile(&plain, 0.99)
    );
    println!(
        "{:<58} {:>8.1} us  (p99 {:.1})",
        "round trip encrypted, p50",
        median(&sealed),
        percentile(&sealed, 0.99)
    );
    println!("{:<58} {:>8.1} us  (goal 5)", "added by encryption, p50", median(&sealed) - median(&plain));
    println!("   load average at the end {}", machine::load());
    Ok(())
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
spec: {nodeName: node2, containers: [{name: main, image: none}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-pods, namespace: a}
spec: {podSelector: {matchLabels: {app: two}}, ingress: [{from: [{podSelector: {}}]}]}
";

fn settings(encrypted: bool) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\n\
         spec: {{wireguardEnabled: {encrypted}, wireguardMTU: 1420}}\n"
    )
}

/// Two nodes whose agents encrypt or not.
struct Nodes {
    lab: Lab,
    /// Of the pod on the second.
    address: String,
}

impl Nodes {
    fn up(binary: &Path) -> Result<Self> {
        let manifests = [("pods.yaml", PODS), ("felix.yaml", &settings(true))];
        let plan = Plan { nodes: 2, wire: "pair", manifests: &manifests, told: &[] };
        let lab = Lab::up(binary, "b", &plan)?;
        let address = lab.address("a/two")?;
        Ok(Self { lab, address })
    }

    /// Turns encryption on or off, and waits until both nodes hold to it.
    fn encrypt(&self, on: bool) -> Result<()> {
        self.lab.write_manifest("felix.yaml", &settings(on))?;
        patiently(|| {
            // A packet that begins a session, where there is none.
            run(self.lab.exec("a/one").args(["ping", "-n", "-c", "1", "-W", "1", &self.address]))?;
            for node in ["node1", "node2"] {
                let tunnels = self.lab.ask(node, "wireguard")?["tunnels"].clone();
                let live = tunnels.as_array().is_some_and(|tunnels| {
                    tunnels.iter().any(|tunnel| tunnel["peers"][0]["handshake_seconds"].is_u64())
                });
                if live != on {
                    return Err(format!("{node} does not follow").into());
                }
            }
            Ok(())
        })
    }

    fn stream(&self) -> Result<f64> {
        stream(self.lab.exec("a/two"), || self.lab.exec("a/one"), &self.address, SECONDS)
    }

    /// Microseconds from a ping to its answer, each after the one before.
    fn round_trips(&self) -> Result<Vec<f64>> {
        let ping = ["ping", "-n", "-i", "0.005", "-c", PINGS, &self.address];
        let text = run(self.lab.exec("a/one").args(ping))?;
        let times = text
            .lines()
            .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok());
        let times: Vec<f64> = times.map(|milliseconds| milliseconds * 1e3).collect();
        if times.is_empty() { Err("no answers to ping".into()) } else { Ok(times) }
    }
}

/// Two namespaces with somebody else's WireGuard.
struct Pair {
    namespaces: [String; 2],
    daemons: Vec<Running>,
    keys: tempfile::TempDir,
}

impl Pair {
    fn start(program: &str) -> Result<Self> {
        let path = if program == "wireguard-go" { PathBuf::from(program) } else { built(program)? };
        let mark = format!("{}{}", &program[..2], std::process::id() % 1_000_000);
        let keys = tempfile::tempdir()?;
        let namespaces = ["a", "b"].map(|side| format!("bench-{mark}{side}"));
        let mut pair = Self { namespaces: namespaces.clone(), daemons: Vec::new(), keys };
        for name in &namespaces {
            run(Command::new("ip").args(["netns", "add", name]))?;
        }
        let [a, b] = &namespaces;
        run(Command::new("ip")
            .args(["link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns", b]))?;
        let mut public = Vec::new();
        for (number, name) in namespaces.iter().enumerate() {
            let device = format!("{mark}{number}");
            let inside = || {
                let mut call = Command::new("ip");
                call.args(["netns", "exec", name]);
                call
            };
            run(inside().args(["ip", "addr", "add", &format!("172.29.0.{}/24", number + 1), "dev", "eth0"]))?;
            run(inside().args(["ip", "link", "set", "eth0", "up"]))?;
            let mut daemon = inside();
            daemon.arg(&path).arg(if program == "wireguard-go" || program == "gotatun" {
                "-f"
            } else {
                "--foreground"
            });
            if program != "wireguard-go" {
                daemon.arg("--disable-drop-privileges");
            }
            pair.daemons.push(Running::start(daemon.arg(&device))?);
            let key = run(Command::new("wg").arg("genkey"))?;
            let file = pair.keys.path().join(&device);
            fs::write(&file, &key)?;
            public.push(run(Command::new("sh").args(["-c", &format!("echo {} | wg pubkey", key.trim())]))?);
            patiently(|| {
                run(inside().args(["wg", "set", &device, "listen-port", "51820", "private-key"]).arg(&file))
            })?;
            run(inside().args(["ip", "addr", "add", &format!("10.29.0.{}/24", number + 1), "dev", &device]))?;
            run(inside().args(["ip", "link", "set", &device, "mtu", "1420", "up"]))?;
        }
        for (number, name) in namespaces.iter().enumerate() {
            let other = 1 - number;
            run(Command::new("ip")
                .args(["netns", "exec", name, "wg", "set", &format!("{mark}{number}"), "peer"])
                .args([
                    public[other].trim(),
                    "endpoint",
                    &format!("172.29.0.{}:51820", other + 1),
                    "allowed-ips",
                    &format!("10.29.0.{}/32", other + 1),
                ]))?;
        }
        patiently(|| run(pair.inside(0).args(["ping", "-c", "1", "-W", "1", "10.29.0.2"])))?;
        Ok(pair)
    }

    fn inside(&self, side: usize) -> Command {
        let mut call = Command::new("ip");
        call.args(["netns", "exec", &self.namespaces[side]]);
        call
    }

    fn stream(&self) -> Result<f64> {
        stream(self.inside(1), || self.inside(0), "10.29.0.2", SECONDS)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.daemons.clear();
        for name in &self.namespaces {
            // One that was not made is not there.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

fn built(program: &str) -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/wireguard-peers");
    let folder = run(Command::new(script).arg(program))?;
    Ok(Path::new(folder.trim()).join(program))
}
