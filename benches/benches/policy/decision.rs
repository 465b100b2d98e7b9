//! Decisions: what a packet without a flow costs, cold and over many rules; and what a packet with a flow does not pay.

use std::hint::black_box;
use std::time::Instant;

use benches::namespaces::{self, NetNs, ip, nft, received, sysctl, up, wait_for_carrier};
use benches::numbers::{median, percentile};
use benches::{Result, flow_hit as fast, world};
use margay_policy_engine::model::Action;
use margay_policy_engine::packet::{Direction, EndpointId, PacketTuple, Verdict};
use margay_policy_engine::snapshot::{Query, Snapshot};

use super::peers;
use super::report::{Want, line, skipped};
use super::shapes::{Decisions, PODS, SOURCES, scaled};

const RULES: usize = 100_000;
const PACKETS: usize = 1 << 18;
const BATCH: usize = 64;
const SAMPLES: usize = 2_000;

/// Pods that share a policy beside their own: few, so that a pod has some five hundred rules; and many, so that it has some two thousand.
const GROUPS: [usize; 2] = [2, 16];

/// Cold decisions, beside DPDK ACL with the same rules and packets.
pub fn bench() -> Result<()> {
    decisions(GROUPS[0], true)
}

/// The same number of rules, a quarter of them shared by more pods; for scale.
pub fn wide() -> Result<()> {
    decisions(GROUPS[1], false)
}

fn decisions(group: usize, counts: bool) -> Result<()> {
    let want = |want: Want| if counts { want } else { Want::Nothing };
    let world = Decisions::draw(scaled(RULES), PACKETS, group);
    println!(
        "   {} rules on {PODS} local pods ({} policies, two a pod, {} rules a pod), {SOURCES} source prefixes",
        world.rules.len(),
        PODS + PODS / group,
        world.rules_of_a_pod()
    );
    println!("   {PACKETS} random packets, half made to match a rule");
    let mut engine = world.engine();
    let start = Instant::now();
    let snapshot = engine.publish();
    line("compiled from nothing", start.elapsed().as_secs_f64() * 1e3, "ms", Want::Nothing);
    let judge = |packet: &(EndpointId, PacketTuple)| snapshot.judge(packet.0, Direction::Ingress, &packet.1);
    let allowed = world
        .packets
        .iter()
        .filter(|packet| judge(packet).is_some_and(|judgement| judgement.verdict == Verdict::Allow))
        .count();
    println!("   {:.1} % of the packets are allowed", 100.0 * allowed as f64 / PACKETS as f64);

    let ours = batched(&snapshot, &world.packets);
    line("cold decision, batches of 64", ours, "ns", want(Want::AtMost(60.0, 35.0)));
    let single = single(&world.packets, judge);
    line("cold decision, one that waits for the one before it, p50", median(&single), "ns", Want::Nothing);
    line("the same, p99", percentile(&single, 0.99), "ns", want(Want::AtMost(f64::INFINITY, 400.0)));

    match peers::acl(&world.rules, world.packets.iter().map(|(_, packet)| packet)) {
        Err(why) => skipped("peer: DPDK ACL", why),
        Ok(acl) => {
            for (set, ns) in &acl.sets {
                line(&format!("peer: DPDK ACL, {set}, batches of 64"), *ns, "ns", Want::Nothing);
            }
            line("peer: DPDK ACL, built, as for any change", acl.build, "ms", Want::Nothing);
            let best = acl.sets.values().copied().fold(f64::INFINITY, f64::min);
            line("DPDK ACL, its best, over ours", best / ours, "x", want(Want::AtLeast(2.0, 4.0)));
            let agree = acl.allowed == allowed;
            println!(
                "   {}: ours allowed {allowed} packets, DPDK ACL {}",
                if agree { "agreed" } else { "DISAGREED" },
                acl.allowed
            );
        }
    }
    Ok(())
}

/// Median nanoseconds per decision, batch after batch.
fn batched(snapshot: &Snapshot, packets: &[(EndpointId, PacketTuple)]) -> f64 {
    let queries: Vec<Query> = packets
        .iter()
        .map(|(endpoint, packet)| Query {
            endpoint: *endpoint,
            direction: Direction::Ingress,
            packet: *packet,
        })
        .collect();
    let mut out = [None; BATCH];
    let mut batches = queries.chunks_exact(BATCH).cycle();
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let start = Instant::now();
        for batch in batches.by_ref().take(BATCH) {
            snapshot.judge_batch(batch, &mut out);
            black_box(&out);
        }
        samples.push(start.elapsed().as_nanos() as f64 / (BATCH * BATCH) as f64);
    }
    median(&samples)
}

/// Nanoseconds of single decisions in groups of eight, each packet chosen by the verdict before.
fn single<T>(
    packets: &[(EndpointId, PacketTuple)],
    judge: impl Fn(&(EndpointId, PacketTuple)) -> Option<T>,
) -> Vec<f64> {
    let mut at = 0usize;
    (0..20_000)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..8 {
                // The optimiser cannot know that the answer is never absent, so the next packet waits for it.
                let step = if black_box(judge(&packets[at])).is_some() { 7_919 } else { 7_920 };
                at = (at + step) % packets.len();
            }
            start.elapsed().as_nanos() as f64 / 8.0
        })
        .collect()
}

/// What a packet of a known flow costs over many rules and over none.
pub fn flow_hit() -> Result<()> {
    let rules = scaled(RULES);
    let flows = 65_536;
    println!("   {flows} flows in random order; the receiver under one policy of {rules} rules");
    let (mut none, topology) = world::two_pods(0);
    let (mut many, _) = world::two_pods(rules);
    let (none, many) = (none.publish(), many.publish());
    let mut runs = Vec::new();
    for _ in 0..5 {
        let cost = |snapshot: &Snapshot| fast::measure(snapshot, &topology, flows, || 0).0;
        runs.push((cost(&none), cost(&many)));
    }
    let column = |of: fn(&(f64, f64)) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>());
    line("flow hit, no rules", column(|run| run.0), "ns", Want::Nothing);
    line(&format!("flow hit, {rules} rules"), column(|run| run.1), "ns", Want::Nothing);
    line("flow hit, rules over none", column(|run| run.1 / run.0), "x", Want::AtMost(1.05, 1.02));
    Ok(())
}

/// Kernel forwarding under the same rules, for scale: a chain per pod, found by its address, as a Kubernetes node has it.
pub fn nftables() -> Result<()> {
    namespaces::run("nftables", |_| {
        let world = Decisions::draw(scaled(RULES), 4_096, GROUPS[0]);
        let router = NetNs::new()?;
        let sink = NetNs::new()?;
        ip(&format!("link add n-gen type veth peer name n-in netns {}", router.path()))?;
        ip(&format!(
            "link add n-sink netns {} type veth peer name n-out netns {}",
            sink.path(),
            router.path()
        ))?;
        ip("address add 10.255.0.2/30 dev n-gen")?;
        up("n-gen")?;
        router.inside(|| {
            sysctl("net/ipv4/ip_forward", "1")?;
            for (device, address) in [("n-in", "10.255.0.1/30"), ("n-out", "10.1.0.254/16")] {
                ip(&format!("address add {address} dev {device}"))?;
                up(device)?;
            }
            Ok(())
        })?;
        sink.inside(|| up("n-sink"))?;
        wait_for_carrier("n-gen")?;
        ip("route add 10.1.0.0/16 via 10.255.0.1")?;
        let peer = "02:00:00:00:00:99";
        ip(&format!(
            "neighbour replace 10.255.0.1 lladdr {} dev n-gen nud permanent",
            router.inside(|| mac("n-in"))?
        ))?;
        router.inside(|| {
            (0..PODS).try_for_each(|pod| {
                ip(&format!("neighbour replace 10.1.0.{pod} lladdr {peer} dev n-out nud permanent"))
            })
        })?;
        let bare = forward(&sink, &world)?;
        line("kernel forwarding, no rules", bare, "ns", Want::Nothing);
        let start = Instant::now();
        router.inside(|| nft(&script(&world)))?;
        line("nft -f of all rules", start.elapsed().as_secs_f64() * 1e3, "ms", Want::Nothing);
        let ruled = forward(&sink, &world)?;
        line("kernel forwarding, the same rules in nftables", ruled, "ns", Want::Nothing);
        line("what the rules add to a packet", ruled - bare, "ns", Want::Nothing);
        Ok(())
    })
}

fn mac(device: &str) -> Result<String> {
    let listed = std::process::Command::new("ip").args(["-o", "link", "show", device]).output()?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    Ok(mac.ok_or("no such device")?.to_owned())
}

/// Nanoseconds from the sender's system call until the packet is through or dropped; the kernel does it all within the call.
fn forward(sink: &NetNs, world: &Decisions) -> Result<f64> {
    let socket = std::net::UdpSocket::bind("10.255.0.2:0")?;
    let mut samples = Vec::new();
    let before = sink.inside(|| received("n-sink"))?;
    for chunk in world.packets.chunks(64) {
        let start = Instant::now();
        for (_, packet) in chunk {
            let port = packet.destination_port.unwrap_or(1).max(1);
            // A packet that the firewall rejects is as good as one that it lets through: both passed the rules.
            let _ = socket.send_to(&[0; 22], (packet.destination, port));
        }
        samples.push(start.elapsed().as_nanos() as f64 / chunk.len() as f64);
    }
    let through = sink.inside(|| received("n-sink"))? - before;
    println!("   {through} of {} packets arrived", world.packets.len());
    Ok(median(&samples))
}

/// The rules as chains of pods; what no rule allows may pass too, so that bare and ruled packets go the same way.
fn script(world: &Decisions) -> String {
    let mut chains = vec![String::new(); PODS];
    for rule in &world.rules {
        let first = usize::from(rule.destination.network().octets()[3]);
        let pods = 1usize << (32 - rule.destination.prefix_len());
        let verdict = if rule.action == Action::Allow { "accept" } else { "accept comment \"deny\"" };
        let name = if rule.protocol == margay_wire::protocol::TCP { "tcp" } else { "udp" };
        let text = format!("ip saddr {} {name} dport {}-{} {verdict}\n", rule.source, rule.first, rule.last);
        if pods == 1 {
            chains[first] += &text;
        } else {
            for chain in &mut chains[first..first + pods] {
                *chain += &text;
            }
        }
    }
    let mut script = String::from("table ip f {\n");
    let mut jumps = Vec::new();
    for (pod, rules) in chains.iter().enumerate() {
        script += &format!("chain pod{pod} {{\n{rules}}}\n");
        jumps.push(format!("10.1.0.{pod} : jump pod{pod}"));
    }
    script
        + &format!(
            "chain c {{ type filter hook forward priority 0; policy accept;\nip daddr vmap {{ {} }}\n}}\n}}\n",
            jumps.join(", ")
        )
}
