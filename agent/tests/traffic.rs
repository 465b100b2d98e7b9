//! Real traffic over real AF_XDP: what pods, nodes and strangers say to each other, over both families.

mod common;

use std::fs;
use std::time::Instant;

use common::{Lab, STRANGER, THREE_PODS, skipped, within};
use serde_json::Value;

const EVERYBODY: [&str; 5] = ["shop/web", "shop/db", "shop/far", "node1", "node2"];

#[test]
fn pods_and_nodes_reach_each_other_whatever_rp_filter_says() {
    let name = "pods_and_nodes_reach_each_other_whatever_rp_filter_says";
    if skipped(name, &["curl", "python3"]) {
        return;
    }
    let lab = Lab::up("r", THREE_PODS);
    let _servers = EVERYBODY.map(|place| lab.serve(place, 8000));
    for value in [0, 1, 2] {
        lab.set_rp_filter(value);
        for from in EVERYBODY {
            for to in EVERYBODY.iter().filter(|to| **to != from) {
                for address in lab.addresses(to) {
                    let what =
                        || format!("{from} to {to} at {address}, rp_filter {value}{}", lab.diagnosis());
                    assert!(within(2, || lab.pings(from, &address)), "ping, {}", what());
                    assert!(lab.fetches(from, &address, 8000), "curl, {}", what());
                }
            }
        }
    }
    lab.books_balance();
}

/// Bits per second as the receiver counts them, and the share of lost datagrams in percent. A server that still writes down the run
/// before says that it is busy, and is asked again.
fn iperf(lab: &Lab, from: &str, address: &str, rest: &[&str]) -> (f64, f64) {
    let mut command =
        vec!["iperf3", "-c", address, "-p", "5301", "-t", "2", "-J", "--connect-timeout", "2000"];
    command.extend(rest);
    let mut report = Value::Null;
    within(10, || {
        let output = lab.exec(from, &command);
        report = serde_json::from_slice(&output.stdout).expect("iperf3 speaks JSON");
        !report["error"].as_str().is_some_and(|error| error.contains("busy"))
    });
    assert!(report["error"].is_null(), "{from}: {command:?}: {}{}", report["error"], lab.diagnosis());
    let end = &report["end"];
    let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let lost = end["sum"]["lost_percent"].as_f64().unwrap_or_default();
    (sum["bits_per_second"].as_f64().expect("a rate"), lost)
}

#[test]
fn iperf3_runs_both_ways_within_and_across_nodes() {
    let name = "iperf3_runs_both_ways_within_and_across_nodes";
    if skipped(name, &["iperf3"]) {
        return;
    }
    let lab = Lab::up("i", THREE_PODS);
    let build = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    for (to, path) in [("shop/db", "same node"), ("shop/far", "across nodes")] {
        let _server = lab.start(to, &["iperf3", "-s", "-p", "5301"]);
        let listening = || lab.must(to, &["cat", "/proc/net/tcp6"]).contains(":14B5 ");
        assert!(within(5, listening), "iperf3 does not start");
        for (family, address) in [(4, &lab.addresses(to)[0]), (6, &lab.addresses(to)[1])] {
            for (direction, reverse) in [("there", None), ("back", Some("-R"))] {
                let reverse: Vec<&str> = reverse.into_iter().collect();
                let (tcp, _) = iperf(&lab, "shop/web", address, &reverse);
                let udp = [&["-u", "-b", "20M"][..], &reverse].concat();
                let (datagrams, lost) = iperf(&lab, "shop/web", address, &udp);
                println!(
                    "iperf3 IPv{family}, {path}, {direction}, {build}: TCP {:.0} Mbit/s, UDP {:.1} Mbit/s with {lost:.2} % lost",
                    tcp / 1e6,
                    datagrams / 1e6
                );
                assert!(tcp > 5e6, "TCP {tcp}{}", lab.diagnosis());
                assert!(datagrams > 15e6 && lost < 5.0, "UDP {datagrams}, lost {lost} %{}", lab.diagnosis());
            }
        }
    }
    lab.books_balance();
}

#[test]
fn names_resolve_and_files_arrive_whole() {
    let name = "names_resolve_and_files_arrive_whole";
    if skipped(name, &["dig", "unbound", "curl", "python3", "sha256sum"]) {
        return;
    }
    let lab = Lab::up("f", THREE_PODS);

    // A DNS server in a pod, asked over both families, over UDP and TCP, and for an answer that comes in fragments.
    let long = vec!["x".repeat(250); 10].join("\" \"");
    let config = format!(
        "server:\n interface: 0.0.0.0\n interface: ::0\n access-control: 0.0.0.0/0 allow\n access-control: ::0/0 allow\n \
         username: \"\"\n chroot: \"\"\n directory: \"/tmp\"\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n num-threads: 1\n \
         edns-buffer-size: 4096\n max-udp-size: 4096\n local-zone: \"margay.test.\" static\n \
         local-data: \"shop.margay.test. A 192.0.2.77\"\n local-data: 'long.margay.test. TXT \"{long}\"'\n\
         remote-control:\n control-enable: no\n"
    );
    let path = lab.directory.join("unbound.conf");
    fs::write(&path, config).expect("configuration");
    for server in ["shop/db", "shop/far"] {
        let _unbound = lab.start(server, &["unbound", "-d", "-c", &path.to_string_lossy()]);
        for address in lab.addresses(server) {
            let at = format!("@{address}");
            let ask = |rest: &[&str]| {
                let command = [&["dig", at.as_str(), "+short", "+tries=1", "+time=2"][..], rest].concat();
                String::from_utf8_lossy(&lab.exec("shop/web", &command).stdout).into_owned()
            };
            let answered = || ask(&["shop.margay.test", "A"]) == "192.0.2.77\n";
            assert!(within(5, answered), "dig over UDP to {server} at {address}{}", lab.diagnosis());
            assert_eq!(ask(&["+tcp", "shop.margay.test", "A"]), "192.0.2.77\n", "dig over TCP to {address}");
            let fragments = ask(&["+notcp", "+ignore", "+bufsize=4096", "long.margay.test", "TXT"]);
            assert!(
                fragments.len() > 2500,
                "an answer in fragments from {address}: {fragments:?}{}",
                lab.diagnosis()
            );
        }
    }

    // A hundred megabytes, both families, within and across nodes.
    let folder = lab.directory.join("www");
    fs::create_dir_all(&folder).expect("folder");
    let file = folder.join("file");
    lab.must("node1", &["sh", "-c", &format!("head -c 100000000 /dev/urandom > {}", file.display())]);
    let hash = |text: &str| text.split_whitespace().next().map(str::to_owned).expect("a hash");
    let original = hash(&lab.must("node1", &["sha256sum", &file.to_string_lossy()]));
    for server in ["shop/db", "shop/far"] {
        let _server = lab.serve(server, 8000);
        for address in lab.addresses(server) {
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            let script =
                format!("curl -g -s --noproxy '*' --max-time 60 http://{host}:8000/file | sha256sum");
            let started = Instant::now();
            let arrived = hash(&lab.must("shop/web", &["sh", "-c", &script]));
            let seconds = started.elapsed().as_secs_f64();
            assert_eq!(arrived, original, "what {address} sent differs{}", lab.diagnosis());
            println!(
                "100 MB from {server} at {address}: {seconds:.1} s, {:.0} Mbit/s, hash matches",
                800.0 / seconds
            );
        }
    }
    lab.books_balance();
}

#[test]
fn traceroute_shows_both_nodes() {
    if skipped("traceroute_shows_both_nodes", &["traceroute"]) {
        return;
    }
    let lab = Lab::up("t", THREE_PODS);
    let (near, between, target) = (lab.addresses("node1"), lab.addresses("node2"), lab.addresses("shop/far"));
    for (at, family) in ["-4", "-6"].into_iter().enumerate() {
        for method in ["-U", "-T", "-I"] {
            let text = lab
                .must("shop/web", &["traceroute", family, method, "-n", "-q", "1", "-w", "2", &target[at]]);
            let hops: Vec<&str> =
                text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            assert_eq!(
                hops,
                [&near[at], &between[at], &target[at]],
                "traceroute {method}: {text}{}",
                lab.diagnosis()
            );
        }
    }
    lab.books_balance();
}

#[test]
fn senders_learn_what_the_path_can_carry() {
    let name = "senders_learn_what_the_path_can_carry";
    if skipped(name, &["curl", "python3"]) {
        return;
    }
    let mut lab = Lab::up("m", THREE_PODS);
    // The wire shrinks while pods keep the size that they were born with.
    let wire = lab.wire();
    for (at, node) in ["node1", "node2"].into_iter().enumerate() {
        lab.ip(&lab.netns(node), "link set eth0 mtu 1300");
        lab.ip(&wire, &format!("link set port{at} mtu 1300"));
    }
    assert_eq!(lab.mtu_beyond("shop/web"), 1500);
    let refused = |address: &str, mtu: &str| {
        let output = lab.exec(
            "shop/web",
            &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", "1400", address],
        );
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        text.contains(mtu) && !output.status.success()
    };
    for address in lab.addresses("shop/far") {
        assert!(within(3, || refused(&address, "1300")), "ping -M do to {address}{}", lab.diagnosis());
        assert!(
            lab.must("shop/web", &["ip", "route", "get", &address]).contains("mtu 1300"),
            "the kernel of the pod remembers the size"
        );
    }
    assert!(lab.drops("node1", "packet_too_big") > 0);
    // What may be fragmented is, and TCP finds its way in both directions.
    lab.must(
        "shop/web",
        &[
            "ping",
            "-n",
            "-c",
            "2",
            "-i",
            "0.2",
            "-W",
            "1",
            "-M",
            "dont",
            "-s",
            "1400",
            &lab.addresses("shop/far")[0],
        ],
    );
    fs::create_dir_all(lab.directory.join("www")).expect("folder");
    fs::write(lab.directory.join("www/big"), vec![7_u8; 3_000_000]).expect("page");
    for (from, to) in [("shop/db", "shop/far"), ("shop/far", "shop/db")] {
        let _server = lab.serve(to, 8000);
        for address in lab.addresses(to) {
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            let url = format!("http://{host}:8000/big");
            let call = [
                "curl",
                "-g",
                "-s",
                "--noproxy",
                "*",
                "--max-time",
                "10",
                "-w",
                "%{size_download}",
                "-o",
                "/dev/null",
                &url,
            ];
            assert_eq!(lab.must(from, &call), "3000000", "{from} from {to} at {address}");
        }
    }

    // The bottleneck is elsewhere: a network behind the node, whose kernel says what fits.
    let stranger = lab.third_network();
    lab.ip(&stranger, "link set eth0 mtu 1280");
    lab.ip(&lab.netns("node1"), "link set ext0 mtu 1280");
    for address in STRANGER {
        assert!(
            within(3, || {
                let output = lab.exec(
                    "shop/web",
                    &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", "1400", address],
                );
                let text = format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                text.contains("1280")
            }),
            "{address}{}",
            lab.diagnosis()
        );
    }
    lab.books_balance();
}

const CLOSED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
";

const STRANGER_ONLY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 192.0.2.2/32}}, {ipBlock: {cidr: '2001:db8:7::2/128'}}]
    ports: [{protocol: TCP, port: 8000}]
";

#[test]
fn a_third_network_meets_full_policy_and_the_host_does_not() {
    let name = "a_third_network_meets_full_policy_and_the_host_does_not";
    if skipped(name, &["curl", "python3"]) {
        return;
    }
    let mut lab = Lab::up("n", THREE_PODS);
    let stranger = lab.third_network();
    let _server = lab.serve("shop/db", 8000);
    let _outside = lab.serve(&stranger, 8000);
    for value in [0, 1, 2] {
        lab.set_rp_filter(value);
        for address in lab.addresses("shop/db") {
            assert!(
                within(3, || lab.fetches(&stranger, &address, 8000)),
                "open: {address}{}",
                lab.diagnosis()
            );
        }
        for address in STRANGER {
            assert!(
                within(3, || lab.fetches("shop/web", address, 8000)),
                "outwards: {address}{}",
                lab.diagnosis()
            );
        }
        lab.apply("closed.yaml", CLOSED);
        for address in lab.addresses("shop/db") {
            assert!(
                within(3, || !lab.fetches(&stranger, &address, 8000)),
                "closed, {address}{}",
                lab.diagnosis()
            );
            assert!(
                !lab.pings(&stranger, &address)
                    && !lab.pings("shop/web", &address)
                    && !lab.pings("node2", &address)
            );
            assert!(
                lab.pings("node1", &address) && lab.fetches("node1", &address, 8000),
                "the host itself: {address}"
            );
        }
        lab.apply("closed.yaml", STRANGER_ONLY);
        for address in lab.addresses("shop/db") {
            assert!(
                within(3, || lab.fetches(&stranger, &address, 8000)),
                "named, {address}{}",
                lab.diagnosis()
            );
            assert!(!lab.pings(&stranger, &address), "only the port that is named: {address}");
            assert!(!lab.fetches("shop/web", &address, 8000), "only the stranger: {address}");
        }
        lab.withdraw("closed.yaml");
    }
    assert!(lab.drops("node1", "policy_ingress") > 0);
    lab.books_balance();
}

/// Datagrams over IPv6 that reached a place without anybody listening there.
fn unclaimed(lab: &Lab, place: &str) -> u64 {
    let counters = lab.must(place, &["cat", "/proc/net/snmp6"]);
    let line = counters.lines().find(|line| line.starts_with("Udp6NoPorts")).expect("the counter");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_routed_machine_cannot_pass_for_the_node() {
    if skipped("a_routed_machine_cannot_pass_for_the_node", &["python3"]) {
        return;
    }
    let mut lab = Lab::up("m", THREE_PODS);
    let stranger = lab.third_network();
    let [_, node] = lab.addresses("node1");
    let [_, pod] = lab.addresses("shop/db");
    lab.apply("closed.yaml", CLOSED);
    assert!(within(3, || !lab.pings("shop/web", &pod)), "closed{}", lab.diagnosis());
    let send = |place: &str| {
        let program = "import socket, sys\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.bind((sys.argv[1], 0))\n\
                       [s.sendto(b'x', (sys.argv[2], 7777)) for _ in range(5)]";
        lab.must(place, &["python3", "-c", program, &node, &pod]);
    };
    let before = unclaimed(&lab, "shop/db");
    send("node1");
    assert!(
        within(3, || unclaimed(&lab, "shop/db") > before),
        "the node itself is let through{}",
        lab.diagnosis()
    );
    lab.ip(&stranger, &format!("addr add {node}/128 dev eth0 nodad"));
    let before = unclaimed(&lab, "shop/db");
    send(&stranger);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(
        unclaimed(&lab, "shop/db"),
        before,
        "a routed machine with the node's address{}",
        lab.diagnosis()
    );
    assert!(
        lab.pings("node1", &pod) && lab.pings("node2", &node),
        "and nobody else is refused{}",
        lab.diagnosis()
    );
    lab.books_balance();
}
