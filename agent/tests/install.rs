//! An agent as a DaemonSet starts it, on a node of a lab: it finds its own uplink, tells the container runtime when pods can be served,
//! stays told when it stops, and `margay uninstall` leaves nothing of it.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use common::{Lab, skipped, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
";

/// A node whose agent is started by hand.
struct Node {
    lab: Lab,
    agent: Option<Child>,
    net_d: PathBuf,
    run: PathBuf,
    state: PathBuf,
}

impl Node {
    /// Brings a lab up and ends the agent of node1.
    fn new(mark: &str) -> (Self, Vec<String>) {
        let lab = Lab::up(mark, PODS);
        let first = Pid::from_raw(i32::try_from(lab.agent("node1")).expect("a process"));
        let line = fs::read(format!("/proc/{first}/cmdline")).expect("its arguments");
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        kill(first, Signal::SIGTERM).expect("signal");
        assert!(within(10, || lab.agent_is_gone("node1")), "the first agent does not end");
        let after = |name: &str| words.iter().skip_while(|word| *word != name).nth(1).expect(name).clone();
        let (run, state) = (PathBuf::from(after("--run-dir")), PathBuf::from(after("--state-dir")));
        let net_d = lab.directory.join("net.d");
        fs::create_dir_all(&net_d).expect("folder");
        (Self { lab, agent: None, net_d, run, state }, words)
    }

    /// Starts an agent with the first one's arguments, but for the uplink, which it has to find by the node's address.
    fn start(&mut self, words: &[String], address: &str) {
        let mut arguments = words.to_vec();
        let at = arguments.iter().position(|word| word == "--uplink").expect("--uplink") + 1;
        arguments[at] = "auto".to_owned();
        arguments.extend(["--node-address".to_owned(), address.to_owned(), "--cni-conf-dir".to_owned()]);
        arguments.push(self.net_d.display().to_string());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = fs::File::create(self.lab.directory.join("agent.log")).expect("log");
        let errors = log.try_clone().expect("log");
        let mut command = self.lab.command("node1", &arguments);
        self.agent = Some(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("start"));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.lab.directory.join("agent.log")).unwrap_or_default()
    }

    fn stop(&mut self) {
        let Some(mut agent) = self.agent.take() else { return };
        let _ = kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM);
        let _ = agent.wait();
    }

    fn conflist(&self) -> Option<Value> {
        let text = fs::read(self.net_d.join("05-margay.conflist")).ok()?;
        Some(serde_json::from_slice(&text).expect("whole, whenever it is looked at"))
    }

    fn uninstall(&self) -> (Option<i32>, String) {
        let texts = [&self.net_d, &self.lab.directory.join("bin"), &self.run, &self.state]
            .map(|p| p.display().to_string());
        let arguments = [
            env!("CARGO_BIN_EXE_margay"),
            "uninstall",
            "--cni-conf-dir",
            &texts[0],
            "--cni-bin-dir",
            &texts[1],
            "--run-dir",
            &texts[2],
            "--state-dir",
            &texts[3],
        ];
        let Output { status, stdout, stderr } = self.lab.exec("node1", &arguments);
        (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Pods of two nodes reach each other, in both families.
fn joined(lab: &Lab) -> bool {
    lab.addresses("shop/db").iter().all(|address| lab.pings("shop/web", address))
}

/// The ids of what `margay doctor` finds on the node.
fn found(node: &Node, more: &[&str]) -> Vec<String> {
    let net_d = node.net_d.display().to_string();
    let mut arguments = vec![env!("CARGO_BIN_EXE_margay"), "doctor", "-o", "json", "--cni-conf-dir", &net_d];
    arguments.extend(more);
    let output = node.lab.exec("node1", &arguments);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let read = |line: &str| {
        serde_json::from_str::<Value>(line).expect("JSON")["id"].as_str().expect("id").to_owned()
    };
    lines.lines().map(read).collect()
}

/// Programs of its own are no trouble to it, those of somebody else are, and it sees them where they are.
fn doctor_sees(node: &Node, address: &str) {
    let run = node.run.display().to_string();
    let ours = found(node, &["--node-address", address, "--run-dir", &run]);
    for id in [
        "xdp-occupied",
        "xdp-on-host-port",
        "no-uplink",
        "bpffs-elsewhere",
        "cni-not-told",
        "cni-unreadable",
        "tc-programs",
    ] {
        assert!(!ours.iter().any(|found| found == id), "{ours:?}");
    }
    let elsewhere = node.lab.directory.join("elsewhere").display().to_string();
    node.lab.must("node1", &["tc", "qdisc", "add", "dev", "eth0", "clsact"]);
    let theirs = found(node, &["--uplink", "eth0", "--run-dir", &elsewhere]);
    for id in ["xdp-occupied", "xdp-on-host-port", "tc-programs"] {
        assert!(theirs.iter().any(|found| found == id), "{id}: {theirs:?}");
    }
    node.lab.must("node1", &["tc", "qdisc", "del", "dev", "eth0", "clsact"]);
    assert!(found(node, &["--uplink", "nosuch", "--run-dir", &run]).contains(&"no-uplink".to_owned()));
}

#[test]
fn a_node_is_joined_told_about_and_left_as_it_was() {
    if skipped("a_node_is_joined_told_about_and_left_as_it_was", &[]) {
        return;
    }
    let (mut node, words) = Node::new("i");
    let [address, _] = node.lab.addresses("node1");
    assert_eq!(node.conflist(), None, "nobody is told before pods can be served");
    node.start(&words, &address);
    assert!(within(20, || node.conflist().is_some()), "no network configuration: {}", node.log());
    let there = node.conflist().expect("just seen");
    assert_eq!(there["plugins"][0]["agentSocket"], node.run.join("agent.sock").display().to_string());
    let [pod_v4, pod_v6] = node.lab.addresses("shop/web");
    let subnets: Vec<ipnet::IpNet> = there["plugins"][0]["ipam"]["ranges"]
        .as_array()
        .expect("ranges")
        .iter()
        .map(|range| range[0]["subnet"].as_str().expect("text").parse().expect("a network"))
        .collect();
    for pod in [&pod_v4, &pod_v6] {
        let pod: std::net::IpAddr = pod.parse().expect("an address");
        assert!(subnets.iter().any(|subnet| subnet.contains(&pod)), "{pod} in {subnets:?}");
    }
    assert!(
        within(20, || joined(&node.lab)),
        "the uplink is not found: {}{}",
        node.log(),
        node.lab.diagnosis()
    );

    doctor_sees(&node, &address);

    // While it runs nothing is taken away.
    let (code, told) = node.uninstall();
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("an agent answers") && node.conflist().is_some() && joined(&node.lab), "{told}");

    node.stop();
    assert!(node.conflist().is_some(), "a stopped agent leaves the configuration");
    let bin = node.lab.directory.join("bin");
    fs::create_dir_all(&bin).expect("folder");
    let copied = Command::new(env!("CARGO_BIN_EXE_margay"))
        .arg("cni-install")
        .arg("--to")
        .arg(&bin)
        .status()
        .expect("run");
    assert!(copied.success() && bin.join("margay-cni").exists());

    let routes = |node: &Node| {
        node.lab.must("node1", &["ip", "route", "show", "table", "main"])
            + &node.lab.must("node1", &["ip", "-6", "route", "show", "table", "main"])
    };
    let rules = |node: &Node| node.lab.must("node1", &["ip", "-6", "rule"]);
    let (before, ruled) = (routes(&node), rules(&node));
    assert!(
        before.contains("unreachable") && before.contains("mgy0") && ruled.contains("1018"),
        "{before}{ruled}"
    );
    let (code, told) = node.uninstall();
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(node.conflist(), None);
    let (after, ruled) = (routes(&node), rules(&node));
    assert!(
        !after.contains("unreachable") && !after.contains("mgy0") && !ruled.contains("101"),
        "{after}{ruled}"
    );
    let devices = node.lab.must("node1", &["ip", "-d", "link"]);
    assert!(!devices.contains("mgy0@") && !devices.contains("prog/xdp"), "{devices}");
    assert!(!node.run.join("bpf").exists(), "{told}");
    // The pod still runs, and its runtime has to be able to take it down.
    assert!(bin.join("margay-cni").exists() && told.contains("left     pod interface mgy"), "{told}");
    // The node has its own network, and no pod is reached past policy.
    let [other, _] = node.lab.addresses("node2");
    assert!(node.lab.pings("node1", &other));
    assert!(!node.lab.pings("node1", &pod_v4));

    // A second time there is nothing to do.
    let (code, told) = node.uninstall();
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("removed") && told.contains("absent"), "{told}");
}

/// The uplink in a bridge, as on hosts of virtual machines: the program stands on the bridge, above its driver.
#[test]
fn an_uplink_in_a_bridge_is_taken_above_the_driver() {
    if skipped("an_uplink_in_a_bridge_is_taken_above_the_driver", &[]) {
        return;
    }
    let (mut node, words) = Node::new("j");
    let netns = node.lab.netns("node1");
    let [v4, v6] = node.lab.addresses("node1");
    let link = node.lab.must("node1", &["ip", "-o", "link", "show", "dev", "eth0"]);
    // As a bridge has by itself, once its port is in it.
    let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("an address");
    let routes = ["-4", "-6"].map(|family| {
        let text = node.lab.must("node1", &["ip", family, "route", "show", "dev", "eth0"]);
        text.lines()
            .filter(|line| line.contains("via"))
            .map(|line| format!("{family} route replace {line} dev br0"))
            .collect::<Vec<_>>()
    });
    let lengths = node.lab.must("node1", &["ip", "-o", "addr", "show", "dev", "eth0"]);
    let with_length = |address: &str| {
        let word = lengths.split_whitespace().find(|word| word.starts_with(&format!("{address}/")));
        word.expect("an address of eth0").to_owned()
    };
    let (v4_net, v6_net) = (with_length(&v4), with_length(&v6));
    node.lab.ip(&netns, &format!("link add br0 address {} type bridge", mac));
    node.lab.ip(&netns, "addr flush dev eth0");
    node.lab.ip(&netns, "link set eth0 master br0");
    node.lab.ip(&netns, "link set br0 up");
    node.lab.ip(&netns, &format!("addr add {v4_net} dev br0"));
    node.lab.ip(&netns, &format!("addr add {v6_net} dev br0 nodad"));
    for route in routes.iter().flatten() {
        node.lab.ip(&netns, route);
    }
    // The programs of the first agent go, as they do where a machine is set up anew.
    let (code, told) = node.uninstall();
    assert_eq!(code, Some(0), "{told}");
    node.start(&words, &v4);
    assert!(within(20, || node.conflist().is_some()), "no network configuration: {}", node.log());
    let status = node.lab.agent_status("node1");
    let ports = status["ports"].as_array().expect("ports");
    let uplink = ports.iter().find(|port| port["kind"] == "uplink").expect("an uplink");
    assert_eq!((&uplink["name"], &uplink["mode"]), (&"br0".into(), &"generic".into()), "{status:#}");
    let db = node.lab.addresses("shop/db");
    let reached = || db.iter().all(|address| node.lab.pings("node1", address));
    assert!(within(20, reached), "{}{}", node.log(), node.lab.diagnosis());
    let packets = node.lab.agent_status("node1")["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .find(|port| port["kind"] == "uplink")
        .expect("uplink")["rx_packets"]
        .clone();
    assert!(packets.as_u64().is_some_and(|packets| packets > 0), "answers came by the kernel: {packets}");
}
