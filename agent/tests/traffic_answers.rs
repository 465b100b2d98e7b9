//! Fragments and answers with real kernels at both ends (policy model 14.5, 32.9).

mod common;

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use common::{Lab, Running, THREE_PODS, skipped, within};

const SCRIPT: &str = include_str!("common/fragments.py");

/// A listener for datagrams in a pod, and the lines that it prints.
struct Listener {
    _running: Running,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Listener {
    fn new(lab: &Lab, place: &str) -> Self {
        let mut running = lab.start(place, &["python3", "-c", SCRIPT, "listen", "9000", "60"]);
        let (to, lines) = std::sync::mpsc::channel();
        let output = running.output().expect("its output");
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        let listener = Self { _running: running, lines };
        assert_eq!(listener.next(10).as_deref(), Some("ready"));
        listener
    }

    fn next(&self, seconds: u64) -> Option<String> {
        self.lines.recv_timeout(Duration::from_secs(seconds)).ok()
    }

    /// Whether nothing comes for a moment.
    fn is_quiet(&self) -> bool {
        self.lines.recv_timeout(Duration::from_millis(300)).is_err()
    }
}

fn send(lab: &Lab, to: &str, at: usize, order: &str) {
    let (from, to) = (&lab.addresses("shop/web")[at], &lab.addresses(to)[at]);
    lab.must("shop/web", &["python3", "-c", SCRIPT, "send", from, to, "9000", order]);
}

#[test]
fn large_pings_and_datagrams_pass_in_fragments() {
    let name = "large_pings_and_datagrams_pass_in_fragments";
    if skipped(name, &["ping", "python3"]) {
        return;
    }
    let lab = Lab::up("g", THREE_PODS);
    let echo = "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.bind(('::', 9001))\n\
                while True:\n data, peer = s.recvfrom(65535)\n s.sendto(data, peer)\n";
    for to in ["shop/db", "shop/far"] {
        let _echo = lab.start(to, &["python3", "-c", echo]);
        for address in lab.addresses(to) {
            for size in ["4000", "65000"] {
                let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", "-s", size, &address];
                assert!(
                    within(5, || lab.exec("shop/web", &ping).status.success()),
                    "ping -s {size} to {to} at {address}{}",
                    lab.diagnosis()
                );
            }
            let ask = format!(
                "import socket, os\nf = socket.AF_INET6 if ':' in '{address}' else socket.AF_INET\n\
                 s = socket.socket(f, socket.SOCK_DGRAM)\ns.settimeout(2)\nfor n in range(20):\n data = os.urandom(8000)\n \
                 s.sendto(data, ('{address}', 9001))\n assert s.recv(65535) == data, n\n"
            );
            assert!(
                within(5, || lab.exec("shop/web", &["python3", "-c", &ask]).status.success()),
                "datagrams of 8,000 bytes to {to} at {address}{}",
                lab.diagnosis()
            );
        }
    }
    for node in ["node1", "node2"] {
        assert_eq!(lab.drops(node, "fragment_overlap") + lab.drops(node, "fragment_duplicate"), 0);
        assert!(within(2, || lab.agent_status(node)["counters"]["held"] == 0), "{node} holds nothing");
    }
    lab.books_balance();
}

#[test]
fn pm_14_5_fragments_in_any_order_arrive_whole_and_overlaps_do_not() {
    let name = "pm_14_5_fragments_in_any_order_arrive_whole_and_overlaps_do_not";
    if skipped(name, &["python3"]) {
        return;
    }
    let lab = Lab::up("o", THREE_PODS);
    for to in ["shop/db", "shop/far"] {
        let listener = Listener::new(&lab, to);
        for (at, address) in lab.addresses(to).iter().enumerate() {
            assert!(within(3, || lab.pings("shop/web", address)), "{address}{}", lab.diagnosis());
            let mut heard = Vec::new();
            for order in ["0,1,2", "2,1,0", "1,2,0", "1,0,2", "2,2,1,1,0"] {
                send(&lab, to, at, order);
                let line = listener.next(2);
                assert!(line.is_some(), "{order} to {to} at {address}{}", lab.diagnosis());
                heard.extend(line);
            }
            assert!(heard.iter().all(|line| *line == heard[0] && line.starts_with("4000 ")), "{heard:?}");
            let before = lab.drops("node1", "fragment_overlap");
            for order in ["0,1a,2,1", "2,0a,0,1", "1,2a,2,0"] {
                send(&lab, to, at, order);
            }
            assert!(listener.is_quiet(), "what overlaps arrives at {address}");
            assert!(lab.drops("node1", "fragment_overlap") >= before + 6, "{}", lab.diagnosis());
        }
    }
    lab.books_balance();
}

/// Closes db and far, silently or not.
fn closed(annotations: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: closed, namespace: shop, annotations: {{{annotations}}}}}\n\
         spec: {{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [db, far]}}]}}, policyTypes: [Ingress]}}\n"
    )
}

/// What curl ends with, and after how long.
fn curl(lab: &Lab, address: &str) -> (Option<i32>, Duration) {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let url = format!("http://{host}:8000/hello");
    let started = Instant::now();
    let output = lab.exec("shop/web", &["curl", "-g", "-s", "--noproxy", "*", "--max-time", "2", &url]);
    (output.status.code(), started.elapsed())
}

#[test]
fn pm_32_9_who_is_rejected_hears_so_at_once() {
    let name = "pm_32_9_who_is_rejected_hears_so_at_once";
    if skipped(name, &["curl", "ping", "python3"]) {
        return;
    }
    const REFUSED: Option<i32> = Some(7);
    const TIMED_OUT: Option<i32> = Some(28);
    let lab = Lab::up("j", THREE_PODS);
    let _servers = ["shop/db", "shop/far"].map(|place| lab.serve(place, 8000));
    for to in ["shop/db", "shop/far"] {
        for address in lab.addresses(to) {
            assert!(within(3, || lab.fetches("shop/web", &address, 8000)), "{address}{}", lab.diagnosis());
        }
    }
    lab.apply("closed.yaml", &closed(""));
    for address in [&lab.addresses("shop/db")[0], &lab.addresses("shop/far")[1]] {
        assert!(within(5, || curl(&lab, address).0 == TIMED_OUT), "silence{}", lab.diagnosis());
    }
    lab.apply("closed.yaml", &closed("margay/deny-action: Reject"));
    for to in ["shop/db", "shop/far"] {
        for address in lab.addresses(to) {
            assert!(within(5, || curl(&lab, &address).0 == REFUSED), "{to} at {address}{}", lab.diagnosis());
            let (code, took) = curl(&lab, &address);
            assert_eq!(code, REFUSED);
            assert!(took < Duration::from_millis(700), "not at once but after {took:?}");
            // What the kernel makes of "administratively prohibited": no route to host; over IPv6, permission denied.
            let expected = if address.contains(':') { "EACCES" } else { "EHOSTUNREACH" };
            let ask = format!(
                "import socket, errno\nf = socket.AF_INET6 if ':' in '{address}' else socket.AF_INET\n\
                 s = socket.socket(f, socket.SOCK_DGRAM)\ns.settimeout(2)\ns.connect(('{address}', 9))\ns.send(b'x')\n\
                 try: s.recv(1)\nexcept OSError as e: print(errno.errorcode.get(e.errno, e))\n"
            );
            assert_eq!(lab.must("shop/web", &["python3", "-c", &ask]).trim(), expected, "{address}");
            let ping = lab.exec("shop/web", &["ping", "-n", "-c", "1", "-W", "2", &address]);
            let text = String::from_utf8_lossy(&ping.stdout).into_owned();
            let words = if address.contains(':') { "Administratively prohibited" } else { "Packet filtered" };
            assert!(text.contains(words), "{address}: {text}{}", lab.diagnosis());
        }
    }
    for node in ["node1", "node2"] {
        let counters = lab.agent_status(node)["counters"].clone();
        for name in ["resets_sent", "icmp_errors_sent"] {
            assert!(counters[name].as_u64().expect("number") > 0, "{node}: {name}");
        }
    }
    lab.books_balance();
}

#[test]
fn whoever_sends_learns_what_a_pod_can_take() {
    let name = "whoever_sends_learns_what_a_pod_can_take";
    if skipped(name, &["ping"]) {
        return;
    }
    let lab = Lab::up("k", THREE_PODS);
    let everybody = ["shop/web", "shop/far", "node1", "node2"];
    for from in everybody {
        for address in lab.addresses("shop/db") {
            assert!(within(3, || lab.pings(from, &address)), "{from} to {address}{}", lab.diagnosis());
        }
    }
    let device = lab.device_of("node1", "shop/db");
    lab.must("node1", &["ip", "link", "set", &device, "mtu", "1300"]);
    lab.must("shop/db", &["ip", "link", "set", "eth0", "mtu", "1300"]);
    for from in everybody {
        for address in lab.addresses("shop/db") {
            let learns = || {
                let ping =
                    ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", "1400", &address];
                let output = lab.exec(from, &ping);
                let said = [output.stdout, output.stderr].concat();
                !output.status.success() && String::from_utf8_lossy(&said).contains("1300")
            };
            assert!(within(5, learns), "{from} to {address}{}", lab.diagnosis());
            let route = lab.must(from, &["ip", "route", "get", &address]);
            assert!(route.contains("mtu 1300"), "{from}'s kernel remembers the size: {route}");
            let fits = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1250", &address];
            assert!(within(3, || lab.exec(from, &fits).status.success()), "{from} to {address}, what fits");
        }
    }
    lab.books_balance();
}
