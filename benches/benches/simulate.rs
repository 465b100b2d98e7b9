//! Probes per second of `margay simulate`, the compiled engine beside the oracle, through the release binary as a user's CI calls it.
//!
//! The start (reading manifests, compiling) is measured with one probe and taken off the time of the whole.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use benches::numbers::median;
use benches::{Result, machine};

const PODS: usize = 1_000;
const POLICIES: usize = 100;
const NAMESPACES: usize = 20;
const PROBES: usize = 200_000;
const ORACLE_PROBES: usize = 2_000;

fn main() -> Result<()> {
    machine::describe("margay simulate");
    let binary = benches::release_binary()?;
    let directory = tempfile::tempdir()?;
    let manifests = directory.path().join("world.yaml");
    std::fs::write(&manifests, world()?)?;
    let probes = |count: usize| -> Result<PathBuf> {
        let path = directory.path().join(format!("probes-{count}"));
        std::fs::write(&path, questions(count)?)?;
        Ok(path)
    };
    let one = probes(1)?;
    println!(
        "   {PODS} pods, {POLICIES} policies in {NAMESPACES} namespaces; answers written as JSON to /dev/null; median of 3"
    );
    println!("{:<12} {:>10} {:>14} {:>14} {:>14}", "engine", "probes", "start, ms", "probes/s", "us/probe");
    for (engine, count) in [("compiled", PROBES), ("oracle", ORACLE_PROBES), ("both", ORACLE_PROBES)] {
        let file = probes(count)?;
        let (mut starts, mut wholes) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            starts.push(time(&binary, &manifests, &one, engine)?);
            wholes.push(time(&binary, &manifests, &file, engine)?);
        }
        let start = median(&starts);
        let each = (median(&wholes) - start) / (count - 1) as f64;
        println!("{engine:<12} {count:>10} {:>14.0} {:>14.0} {:>14.2}", start * 1e3, 1.0 / each, each * 1e6);
    }
    println!("   target: tens of thousands of probes a second");
    Ok(())
}

fn time(binary: &Path, manifests: &Path, probes: &Path, engine: &str) -> Result<f64> {
    let start = Instant::now();
    let output = Command::new(binary)
        .args(["simulate", "--engine", engine, "--manifests"])
        .arg(manifests)
        .arg("--probes")
        .arg(probes)
        .stdout(Stdio::null())
        .output()?;
    let spent = start.elapsed().as_secs_f64();
    if !output.status.success() {
        return Err(format!("margay simulate: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(spent)
}

fn world() -> Result<String> {
    let mut text = String::new();
    for node in 0..PODS.div_ceil(200) {
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: node-{node}}}, spec: {{podCIDRs: [10.1.{node}.0/24]}}, \
             status: {{addresses: [{{type: InternalIP, address: 192.0.2.{}}}]}}}}",
            node + 1
        )?;
    }
    for n in 0..NAMESPACES {
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: ns{n}, labels: {{team: team{}}}}}}}",
            n % 5
        )?;
    }
    for n in 0..PODS {
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: pod-{n}, namespace: ns{}, labels: {{app: app{}}}}}, spec: \
             {{nodeName: node-{}, containers: [{{name: c, image: c}}]}}, status: {{podIPs: [{{ip: 10.1.{}.{}}}]}}}}",
            n % NAMESPACES,
            n % 50,
            n / 200,
            n / 200,
            2 + n % 200
        )?;
    }
    for n in 0..POLICIES {
        writeln!(
            text,
            "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: policy-{n}, namespace: ns{}}}
spec:
  podSelector: {{matchLabels: {{app: app{}}}}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {{matchLabels: {{app: app{}}}}}
    - namespaceSelector: {{matchLabels: {{team: team{}}}}}
    ports: [{{protocol: TCP, port: 8080}}, {{protocol: TCP, port: 9000, endPort: 9010}}]
  - from: [{{ipBlock: {{cidr: 172.16.0.0/12, except: [172.16.{n}.0/24]}}}}]
    ports: [{{protocol: TCP, port: 443}}]",
            n % NAMESPACES,
            n % 50,
            (n * 7 + 1) % 50,
            n % 5
        )?;
    }
    Ok(text)
}

fn questions(count: usize) -> Result<String> {
    let mut text = String::new();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    for _ in 0..count {
        let (from, to) = (random(PODS), random(PODS));
        let port = [8080, 9005, 443, 22][random(4)];
        writeln!(
            text,
            "{{\"from\":\"ns{}/pod-{from}\",\"to\":\"ns{}/pod-{to}\",\"protocol\":\"TCP\",\"port\":{port}}}",
            from % NAMESPACES,
            to % NAMESPACES
        )?;
    }
    Ok(text)
}
