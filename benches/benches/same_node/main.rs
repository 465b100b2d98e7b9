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

use std::path::Path;

use benches::lab::{Lab, Plan};
use benches::numbers::median;
use benches::router::{FAR, Router};
use benches::streams::{run, stream};
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
    let [large, alike] = [Node::up(&binary, "auto")?, Node::up(&binary, "off")?];
    let kernel = Router::up()?;
    let switch = ovs::OpenVSwitch::up();
    println!("   MTU of pods' interfaces: {} and {}", large.mtu()?, alike.mtu()?);
    let (mut ours, mut small, mut theirs, mut switched) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        ours.push(large.stream()?);
        theirs.push(stream(kernel.inside(1), || kernel.inside(0), FAR, SECONDS)?);
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

/// The agent with two pods, of which the second is reached.
struct Node {
    lab: Lab,
    address: String,
}

impl Node {
    fn up(binary: &Path, local_mtu: &str) -> Result<Self> {
        let told = format!("--local-mtu={local_mtu}");
        let lab = Lab::up(binary, &local_mtu[..1], &Plan { told: &[&told], ..Plan::ONE_NODE })?;
        let address = lab.address("a/two")?;
        Ok(Self { lab, address })
    }

    fn mtu(&self) -> Result<String> {
        let shown = run(self.lab.exec("a/one").args(["ip", "-o", "link", "show", "dev", "eth0"]))?;
        let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
        Ok(mtu.ok_or("no MTU")?.to_owned())
    }

    fn stream(&self) -> Result<f64> {
        stream(self.lab.exec("a/two"), || self.lab.exec("a/one"), &self.address, SECONDS)
    }
}
