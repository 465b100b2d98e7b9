//! Large packets between pods of one node: what pods' interfaces and routes say, what passes whole, what is answered.

mod common;

use std::io::{BufRead, BufReader};

use common::{Lab, Running, THREE_PODS, skipped, within};

const DATAGRAMS: &str = include_str!("common/datagrams.py");
/// Modes of a socket's path-MTU discovery, by name and number.
const MODES: [(&str, &str); 4] = [("want", "1"), ("probe", "3"), ("interface", "4"), ("omit", "5")];

/// Starts a pod's answers to datagrams.
fn answers(lab: &Lab, pod: &str) -> Running {
    let mut server = lab.start(pod, &["python3", "-c", DATAGRAMS, "serve", "5400"]);
    let mut said = String::new();
    BufReader::new(server.output().expect("its output")).read_line(&mut said).expect("a line");
    assert_eq!(said, "ready\n");
    server
}

/// Sends datagrams of these lengths, and returns those that arrive as they were sent.
fn arrive(lab: &Lab, from: &str, address: &str, mode: &str, lengths: &[&str]) -> String {
    let call = [&["python3", "-c", DATAGRAMS, "ask", address, "5400", mode], lengths].concat();
    lab.must(from, &call)
}

/// Sends that much over TCP, and returns the mean length of the sender's packets.
fn stream(lab: &Lab, from: &str, to: &str, address: &str) -> u64 {
    let _server = lab.start(to, &["iperf3", "-s", "-p", "5301"]);
    let listening = || lab.must(to, &["cat", "/proc/net/tcp6"]).contains(":14B5 ");
    assert!(within(5, listening), "iperf3 does not start");
    let before = counters(lab, from);
    lab.must(from, &["iperf3", "-c", address, "-p", "5301", "-n", "20M", "--connect-timeout", "2000"]);
    let after = counters(lab, from);
    (after.1 - before.1) / (after.0 - before.0).max(1)
}

/// Packets and bytes that a pod's interface has sent, as its kernel counts them.
fn counters(lab: &Lab, pod: &str) -> (u64, u64) {
    let text = lab.must(pod, &["cat", "/proc/net/dev"]);
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).expect("eth0");
    let numbers: Vec<u64> = line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    (numbers[9], numbers[8])
}

/// Whether a ping of that many bytes in all, not to be fragmented, is answered; else what was said.
fn ping(lab: &Lab, from: &str, address: &str, bytes: usize) -> Result<(), String> {
    let size = (bytes - if address.contains(':') { 48 } else { 28 }).to_string();
    let output = lab.exec(from, &["ping", "-M", "do", "-c", "1", "-W", "1", "-s", &size, address]);
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn route(lab: &Lab, pod: &str, address: &str) -> String {
    lab.must(pod, &["ip", "route", "get", address])
}

#[test]
fn packets_are_large_within_a_node_and_no_larger_than_the_wire_beyond() {
    let name = "packets_are_large_within_a_node_and_no_larger_than_the_wire_beyond";
    if skipped(name, &["iperf3", "ping"]) {
        return;
    }
    let lab = Lab::up("l", THREE_PODS);
    let link = lab.must("shop/web", &["ip", "link", "show", "eth0"]);
    if link.contains("mtu 1500") {
        println!("SKIPPED {name}: the kernel has no packets of several frames");
        return;
    }
    assert!(link.contains("mtu 60000"), "{link}");
    for ((near, far), advmss) in
        lab.addresses("shop/db").iter().zip(lab.addresses("shop/far")).zip([1460, 1440])
    {
        // Where a route says nothing, the interface does.
        assert!(!route(&lab, "shop/web", near).contains("mtu"), "{}", route(&lab, "shop/web", near));
        let beyond = route(&lab, "shop/web", &far);
        let family = if far.contains(':') { "-6" } else { "-4" };
        let default = lab.must("shop/web", &["ip", family, "route", "show", "default"]);
        assert!(default.contains(&format!("mtu 1500 advmss {advmss}")), "{default}");
        assert!(beyond.contains("mtu 1500"), "{beyond}");

        assert_eq!(ping(&lab, "shop/web", near, 60_000), Ok(()), "{}", lab.diagnosis());
        assert_eq!(ping(&lab, "shop/web", &far, 1500), Ok(()), "{}", lab.diagnosis());
        // Its own kernel knows that already.
        assert!(ping(&lab, "shop/web", &far, 1501).is_err());

        let within_node = stream(&lab, "shop/web", "shop/db", near);
        let across = stream(&lab, "shop/web", "shop/far", &far);
        println!("mean length of a packet to {near}: {within_node}, to {far}: {across}");
        assert!(within_node > 10_000, "{within_node}{}", lab.diagnosis());
        assert!(across <= 1514, "{across}");
    }
    lab.books_balance();
}

#[test]
fn a_pod_of_the_old_size_beside_large_ones_gets_what_it_takes() {
    let name = "a_pod_of_the_old_size_beside_large_ones_gets_what_it_takes";
    if skipped(name, &["iperf3", "ping"]) {
        return;
    }
    let lab = Lab::up("o", THREE_PODS);
    if lab.must("shop/web", &["ip", "link", "show", "eth0"]).contains("mtu 1500") {
        println!("SKIPPED {name}: the kernel has no packets of several frames");
        return;
    }
    let address = &lab.addresses("shop/db")[0];
    let device = lab.device_of("node1", "shop/db");
    lab.must("node1", &["ip", "link", "set", &device, "mtu", "1500"]);
    lab.must("shop/db", &["ip", "link", "set", "eth0", "mtu", "1500"]);
    for address in lab.addresses("shop/db") {
        let refused = || ping(&lab, "shop/web", &address, 20_000).is_err_and(|said| said.contains("1500"));
        assert!(within(3, refused), "{:?}", ping(&lab, "shop/web", &address, 20_000));
        assert!(
            route(&lab, "shop/web", &address).contains("mtu 1500"),
            "the sender's kernel remembers the size"
        );
        assert_eq!(ping(&lab, "shop/web", &address, 1500), Ok(()), "{}", lab.diagnosis());
    }
    // What may be fragmented comes in pieces.
    lab.must("shop/web", &["ping", "-M", "dont", "-c", "1", "-W", "2", "-s", "20000", address]);
    assert!(stream(&lab, "shop/web", "shop/db", address) <= 1514);
    lab.books_balance();
}

#[test]
fn a_switch_makes_all_packets_alike_and_two_workers_pass_large_ones() {
    let name = "a_switch_makes_all_packets_alike_and_two_workers_pass_large_ones";
    if skipped(name, &["iperf3", "ping"]) {
        return;
    }
    let multi_buffer = |lab: &Lab| -> Vec<String> {
        let ports = lab.agent_status("node1")["ports"].as_array().cloned().expect("ports");
        ports.iter().map(|port| port["manner"]["multi_buffer"].as_str().expect("text").to_owned()).collect()
    };
    for (mark, switch) in [("s", "--local-mtu=off"), ("u", "--multi-buffer=off")] {
        let lab = Lab::up_with(mark, THREE_PODS, &[switch]);
        assert!(lab.must("shop/web", &["ip", "link", "show", "eth0"]).contains("mtu 1500"), "{switch}");
        let routes = lab.must("shop/web", &["ip", "route"]);
        assert!(!routes.contains("mtu") && routes.lines().count() == 2, "{routes}");
        assert!(mark == "s" || multi_buffer(&lab).iter().all(|it| it == "off"), "{:?}", multi_buffer(&lab));
    }
    let lab = Lab::up_with("t", THREE_PODS, &["--workers=2"]);
    if lab.must("shop/web", &["ip", "link", "show", "eth0"]).contains("mtu 1500") {
        println!("SKIPPED {name}: the kernel has no packets of several frames");
        return;
    }
    assert!(multi_buffer(&lab).iter().all(|it| it == "on"), "{:?}", multi_buffer(&lab));
    for address in lab.addresses("shop/db") {
        assert_eq!(ping(&lab, "shop/web", &address, 60_000), Ok(()), "{}", lab.diagnosis());
        assert!(stream(&lab, "shop/web", "shop/db", &address) > 10_000, "{}", lab.diagnosis());
    }
    lab.books_balance();
}

/// Datagrams of every kind of socket, up to the largest there are: the longest are cut by the pod's own kernel for its interface.
fn datagrams_reach_another_node(lab: &Lab) {
    let _servers = ["shop/far", "shop/db"].map(|pod| answers(lab, pod));
    for to in ["shop/far", "shop/db"] {
        for address in lab.addresses(to) {
            assert!(within(5, || lab.pings("shop/web", &address)), "{address}{}", lab.diagnosis());
            for (name, mode) in MODES {
                let all = ["1300", "1453", "2500", "20000", "65000"];
                let lengths = match (name, to, address.contains(':')) {
                    // Over IPv4 a socket that probes forbids fragments, and means it.
                    ("probe", "shop/far", false) => &all[..1],
                    // Its own kernel takes no more from it than the interface does.
                    ("probe" | "interface", ..) => &all[..4],
                    _ => &all[..],
                };
                let arrived = arrive(lab, "shop/web", &address, mode, lengths);
                let wanted: String = lengths.iter().map(|length| format!("{length}\n")).collect();
                assert_eq!(arrived, wanted, "{name} to {address}{}", lab.diagnosis());
            }
        }
    }
}

#[test]
fn datagrams_of_sockets_that_ignore_the_paths_size_reach_another_node() {
    let name = "datagrams_of_sockets_that_ignore_the_paths_size_reach_another_node";
    if skipped(name, &["python3", "ping"]) {
        return;
    }
    let lab = Lab::up("d", THREE_PODS);
    datagrams_reach_another_node(&lab);
    let cut = lab.agent_status("node1")["counters"]["icmp_errors_sent"].as_u64();
    let large = lab.must("shop/web", &["ip", "link", "show", "eth0"]).contains("mtu 60000");
    assert!(!large || cut > Some(0), "senders are told what they could have sent{}", lab.diagnosis());
    lab.books_balance();
}

#[test]
fn pm_25_1_datagrams_of_sockets_that_ignore_the_paths_size_pass_the_tunnel() {
    let name = "pm_25_1_datagrams_of_sockets_that_ignore_the_paths_size_pass_the_tunnel";
    if skipped(name, &["python3", "ping"]) {
        return;
    }
    let encrypt = "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\n\
                   spec: {wireguardEnabled: true, wireguardEnabledV6: true}\n";
    let lab = Lab::up("e", &format!("{THREE_PODS}---\n{encrypt}"));
    let sealed = || lab.agent_status("node1")["counters"]["sealed"].as_u64().expect("a number");
    let encrypted = || {
        let before = sealed();
        lab.addresses("shop/far").iter().all(|address| lab.pings("shop/web", address))
            && sealed() >= before + 2
    };
    assert!(within(15, encrypted), "{}", lab.diagnosis());
    let before = sealed();
    datagrams_reach_another_node(&lab);
    // 65,000 bytes are 46 packets of the tunnel's size, in each of four conversations.
    assert!(sealed() - before > 4 * 46, "{}", lab.diagnosis());
    lab.books_balance();
}
