//! What goes wrong in a running lab, and what must not follow from it: agents killed and stopped under traffic, policy that cuts live
//! connections, manifests with mistakes, the first pod of a node going away.
//!
//! Throughout, pods that policy denies keep trying twenty times a second, by UDP and by new TCP connections, and a packet socket inside
//! each pod they aim at sees whatever arrives there, answered or not. At the end the policy is taken away and the same senders must get
//! through at once, so a test that watched in the wrong place does not pass.

#[path = "../common/mod.rs"]
mod common;
mod denied;
mod mistakes;
mod rig;

use std::fs;
use std::thread;
use std::time::Duration;

use common::skipped;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use denied::Denied;
use mistakes::{MISTAKES, reported};
use rig::{CLOSED, GUARD, Lab, PODS, PORT, Tool, now};

/// How long after its agent's end or halt a pod may still send: one heartbeat timeout and the interval of the probes.
const CLOSED_WITHIN: f64 = 1.2;

/// Within how long traffic flows again after a start or a continuation.
const FLOWS_WITHIN: f64 = 2.0;

#[test]
fn an_agent_that_is_killed_or_stopped_closes_its_pods_and_opens_nothing() {
    if skipped("an_agent_that_is_killed_or_stopped_closes_its_pods_and_opens_nothing", &["python3"]) {
        return;
    }
    let mut lab = Lab::up("k");
    let _servers = lab.servers();
    let mut denied = Denied::start(&lab);
    // Node 1 is the one that suffers: both ends on it, one end on it, its own processes.
    let mut flows: Vec<Tool> = [
        ("shop/a", "shop/b", 4),
        ("shop/a", "shop/b", 6),
        ("shop/a", "shop/c", 4),
        ("shop/a", "shop/c", 6),
        ("shop/c", "shop/a", 4),
        ("node1", "shop/a", 4),
        ("node1", "shop/a", 6),
    ]
    .iter()
    .map(|(from, to, family)| lab.flow("udp", from, to, *family, "0.02"))
    .collect();
    let mut connections: Vec<Tool> =
        [("shop/a", "shop/b", 4), ("shop/a", "shop/c", 6), ("shop/c", "shop/a", 4)]
            .iter()
            .map(|(from, to, family)| lab.flow("tcp", from, to, *family, "0.05"))
            .collect();
    let mut node = lab.flow("ping", "node1", "node2", 4, "0.05");
    let mut control = lab.control();
    for tool in flows.iter_mut().chain(&mut connections).chain([&mut node, &mut control]) {
        tool.flows(now(), Duration::from_secs(10));
    }

    let agent = lab.agent("node1");
    let command_line = fs::read(format!("/proc/{agent}/cmdline")).expect("command line");
    for case in ["kill -9", "kill -STOP"] {
        let stopped = now();
        kill(agent_of(&lab, agent), if case == "kill -9" { Signal::SIGKILL } else { Signal::SIGSTOP })
            .expect("signal");
        thread::sleep(Duration::from_secs(if case == "kill -9" { 4 } else { 10 }));
        for flow in &mut flows {
            let closed = flow.closed_after(stopped);
            println!("{case}: {}: closed after {closed:.2} s", flow.what);
            assert!(closed < CLOSED_WITHIN, "{case}: {} still flows after {closed:.2} s", flow.what);
        }
        let gap = node.longest_gap(stopped) - control.longest_gap(stopped);
        assert!(gap < 0.5, "{case}: the node's own traffic was interrupted for {gap:.2} s");
        denied.check(case);

        let again = now();
        if case == "kill -9" {
            lab.start_again("node1", &command_line);
        } else {
            kill(agent_of(&lab, agent), Signal::SIGCONT).expect("signal");
        }
        for flow in &mut flows {
            let first = flow.flows(again, Duration::from_secs(10));
            println!("{case}: {}: flows again after {first:.2} s", flow.what);
            assert!(first < FLOWS_WITHIN, "{case}: {} flows only {first:.2} s after", flow.what);
        }
        // A sender of TCP waits longer before each attempt, so it comes back later; what counts is that it does.
        for connection in &mut connections {
            let first = connection.flows(stopped + CLOSED_WITHIN, Duration::from_secs(15));
            println!(
                "{case}: {}: goes on {:.2} s after the start",
                connection.what,
                stopped + CLOSED_WITHIN + first - again
            );
        }
        let gap = node.longest_gap(stopped) - control.longest_gap(stopped);
        assert!(gap < 0.5, "{case}: the node's own traffic was interrupted for {gap:.2} s");
        denied.check(case);
    }
    thread::sleep(Duration::from_secs(1));
    let settled = now();
    for tool in flows.iter_mut().chain(&mut connections) {
        tool.flows(settled, Duration::from_secs(1));
    }
    println!("{} denied attempts, none passed", 2 * denied.attempts());
    denied.were_able(&lab);
}

/// The agent that runs in node 1 now: the one of the lab, or the one started again.
fn agent_of(lab: &Lab, first: Pid) -> Pid {
    lab.restarted.last().map_or(first, |child| Pid::from_raw(child.id().cast_signed()))
}

#[test]
fn policy_cuts_live_flows_and_lets_them_go_on() {
    if skipped("policy_cuts_live_flows_and_lets_them_go_on", &["python3"]) {
        return;
    }
    const CUT: &str = "
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: cut}
spec: {order: 1, selector: 'app in {\"b\", \"c\"}', types: [Ingress], ingress: [{action: Deny}]}
";
    let lab = Lab::up("p");
    let _servers = lab.servers();
    let pairs =
        [("shop/a", "shop/b", 4), ("shop/a", "shop/b", 6), ("shop/a", "shop/c", 4), ("shop/c", "shop/b", 6)];
    let mut datagrams: Vec<Tool> =
        pairs.iter().map(|(from, to, family)| lab.flow("udp", from, to, *family, "0.01")).collect();
    let mut connections: Vec<Tool> =
        pairs.iter().map(|(from, to, family)| lab.flow("tcp", from, to, *family, "0.01")).collect();
    let mut other = lab.flow("udp", "shop/c", "shop/a", 4, "0.01");
    let mut control = lab.control();
    for tool in datagrams.iter_mut().chain(&mut connections).chain([&mut other, &mut control]) {
        tool.flows(now(), Duration::from_secs(10));
    }
    for round in 1..=2 {
        let denied = now();
        lab.write("cut.yaml", CUT.as_bytes());
        thread::sleep(Duration::from_secs(2));
        for tool in datagrams.iter_mut().chain(&mut connections) {
            let cut = tool.closed_after(denied);
            println!("round {round}: {}: cut {:.0} ms after the file was there", tool.what, cut * 1e3);
            assert!(cut < 1.0, "round {round}: {} still flows after {cut:.2} s", tool.what);
        }
        let allowed = now();
        fs::remove_file(lab.manifest("cut.yaml")).expect("remove");
        for tool in &mut datagrams {
            let first = tool.flows(allowed, Duration::from_secs(5));
            println!("round {round}: {}: flows again after {:.0} ms", tool.what, first * 1e3);
            assert!(first < 1.0, "round {round}: {} flows only after {first:.2} s", tool.what);
        }
        for tool in &mut connections {
            tool.flows(denied + 1.0, Duration::from_secs(10));
        }
        let gap = other.longest_gap(denied) - control.longest_gap(denied);
        assert!(gap < 0.5, "round {round}: a flow that no policy changed was interrupted for {gap:.2} s");
    }
}

#[test]
fn manifests_with_mistakes_are_reported_and_change_nothing() {
    if skipped("manifests_with_mistakes_are_reported_and_change_nothing", &["python3"]) {
        return;
    }
    let lab = Lab::up("m");
    let _servers = lab.servers();
    let mut denied = Denied::start(&lab);
    let mut allowed = lab.flow("udp", "shop/a", "shop/c", 4, "0.02");
    let mut control = lab.control();
    for tool in [&mut allowed, &mut control] {
        tool.flows(now(), Duration::from_secs(10));
    }
    let valid = |file: &str| if file == "guard.yaml" { GUARD } else { CLOSED };
    let start = now();

    // A policy that was valid turns bad: its last valid form stays. Another that never was valid: nothing comes of it.
    for (what, file, text, word) in MISTAKES {
        lab.write(file, text.as_bytes());
        reported(&lab, what, file, Some(word));
        thread::sleep(Duration::from_millis(300));
        denied.check(what);
        lab.write(file, valid(file).as_bytes());
        reported(&lab, what, file, None);
        lab.write(
            "new.yaml",
            text.replace("name: closed", "name: new").replace("name: guard", "name: new").as_bytes(),
        );
        reported(&lab, what, "new.yaml", Some(word));
        thread::sleep(Duration::from_millis(300));
        denied.check(what);
        fs::remove_file(lab.manifest("new.yaml")).expect("remove");
        reported(&lab, what, "new.yaml", None);
        denied.check(what);
    }
    let mut large =
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}\n\
        spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress], ingress: [{}]}\n"
            .to_vec();
    large.resize(100 << 20, b'#');
    lab.write("closed.yaml", &large);
    drop(large);
    reported(&lab, "a file of 100 MB", "closed.yaml", Some("the most that are read"));
    denied.check("a file of 100 MB");
    let gap = allowed.longest_gap(start) - control.longest_gap(start);
    assert!(gap < 0.5, "what policy allows was interrupted for {gap:.2} s");

    // Agents that start with the mistakes in place know the last valid forms of the run before.
    let host_bits = MISTAKES.iter().find(|(what, ..)| what.starts_with("host bits")).expect("listed");
    lab.write("guard.yaml", host_bits.2.as_bytes());
    reported(&lab, host_bits.0, "guard.yaml", Some("nets"));
    for (round, what, text) in [(1, "a file of 100 MB", None), (2, "bad YAML", Some(MISTAKES[0].2))] {
        let word = if text.is_some() { "not YAML" } else { "the most that are read" };
        if let Some(text) = text {
            lab.write("closed.yaml", text.as_bytes());
            reported(&lab, what, "closed.yaml", Some(word));
        }
        for node in ["node1", "node2"] {
            kill(lab.agent(node), Signal::SIGKILL).expect("kill -9");
        }
        thread::sleep(Duration::from_millis(300));
        let again = now();
        lab.reconcile();
        allowed.flows(again, Duration::from_secs(10));
        reported(&lab, what, "closed.yaml", Some(word));
        reported(&lab, host_bits.0, "guard.yaml", Some("nets"));
        thread::sleep(Duration::from_secs(1));
        denied.check(&format!("restart {round} with {what}"));
    }
    println!("{} denied attempts, none passed", 2 * denied.attempts());
    denied.were_able(&lab);
}

#[test]
fn the_first_pod_of_a_node_goes_and_another_comes() {
    if skipped("the_first_pod_of_a_node_goes_and_another_comes", &["python3"]) {
        return;
    }
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{nodeName: node1, containers: [{{name: main, image: none}}]}}\n"
        )
    };
    let alone = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n{}", pod("first"));
    let lab = Lab::up_with("o", &alone);
    lab.write("pods.yaml", format!("{PODS}{}", pod("first")).as_bytes());
    lab.reconcile();
    let first = lab.entry("pods", "shop/first");
    assert_eq!(first["node"], "node1");

    let _servers = lab.servers();
    let pairs =
        [("shop/a", "shop/b", 4), ("shop/a", "shop/c", 6), ("shop/c", "shop/a", 4), ("node1", "shop/a", 4)];
    let mut flows: Vec<Tool> =
        pairs.iter().map(|(from, to, family)| lab.flow("udp", from, to, *family, "0.02")).collect();
    let mut connection = lab.flow("tcp", "shop/a", "shop/b", 6, "0.02");
    let mut control = lab.control();
    for flow in flows.iter_mut().chain([&mut connection, &mut control]) {
        flow.flows(now(), Duration::from_secs(10));
    }
    let start = now();
    lab.write("pods.yaml", format!("{PODS}{}", pod("last")).as_bytes());
    let said = String::from_utf8_lossy(&lab.reconcile().stdout).into_owned();
    assert!(said.contains("pod shop/first: released") && said.contains("pod shop/last: on node1"), "{said}");
    let endpoints = lab.report("node1")["endpoints"].as_array().expect("list").clone();
    assert!(endpoints.iter().all(|e| e["pod"] != "first"), "{endpoints:#?}");
    let _server =
        lab.tool("shop/last", "serve", &[PORT, &lab.address("shop/last", 4), &lab.address("shop/last", 6)]);
    for (from, family) in [("shop/a", 4), ("shop/a", 6), ("shop/c", 4), ("shop/c", 6), ("node1", 4)] {
        lab.flow("udp", from, "shop/last", family, "0.02").flows(now(), Duration::from_secs(5));
    }
    for flow in flows.iter_mut().chain([&mut connection]) {
        let gap = flow.longest_gap(start) - control.longest_gap(start);
        println!("{}: at most {:.0} ms without an answer", flow.what, gap * 1e3);
        assert!(gap < 1.0, "{} was interrupted for {gap:.2} s", flow.what);
    }
}
