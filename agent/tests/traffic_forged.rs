//! Forgeries from inside a pod, from the wire and from the host: each ends under its own name, and nobody receives it.

mod common;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use common::{Lab, skipped, within};

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
";

/// Ethernet address that every pod sees as its gateway.
const GATEWAY: &str = "ee:ee:ee:ee:ee:ee";

/// Sends forged frames from one place.
struct Forger<'a> {
    lab: &'a Lab,
    place: String,
    device: &'a str,
    values: Vec<String>,
}

impl<'a> Forger<'a> {
    /// `role` is `pod`, `wire` or `host`; frames go to the Ethernet address `gateway`.
    fn new(lab: &'a Lab, role: &str, place: String, device: &'a str, gateway: &str) -> Self {
        let mac = lab.must(&place, &["cat", "/proc/net/dev"]);
        assert!(mac.contains(device), "{place} has no device {device}: {mac}");
        let mac = mac_of(lab, &place, device);
        let mut values = vec![format!("as={role}"), format!("mac={mac}"), format!("gw={gateway}")];
        let ends = [
            ("own", "shop/web"),
            ("peer", "shop/db"),
            ("far", "shop/far"),
            ("node", "node1"),
            ("other", "node2"),
        ];
        for (key, of) in ends {
            let [v4, v6] = lab.addresses(of);
            values.extend([format!("{key}4={v4}"), format!("{key}6={v6}")]);
        }
        values.push("unused4=10.244.1.200".to_owned());
        Self { lab, place, device, values }
    }

    fn run(&self, kind: &str, count: u32) -> String {
        let count = count.to_string();
        let mut command = vec!["python3", "-c", include_str!("common/forge.py"), self.device, kind, &count];
        command.extend(self.values.iter().map(String::as_str));
        self.lab.must(&self.place, &command)
    }

    /// Sends every kind three times and asserts that node1 counts it under its name, and passes on nothing.
    fn all_are_counted(&self) {
        const COUNT: u64 = 3;
        let mut wrong = Vec::new();
        let kinds = self.run("list", 1);
        assert!(kinds.lines().count() > 1, "{kinds}");
        for line in kinds.lines() {
            let (kind, reason) = line.split_once('\t').expect("kind and reason");
            let before = self.lab.agent_status("node1")["counters"].clone();
            self.run(kind, COUNT as u32);
            let counted = || {
                self.lab.drops("node1", reason) >= before["drops"][reason].as_u64().expect("number") + COUNT
            };
            let found = within(1, counted);
            let after = self.lab.agent_status("node1")["counters"].clone();
            let names = after["drops"].as_object().expect("drops");
            let changed: Vec<String> = names
                .iter()
                .filter(|(name, n)| {
                    before["drops"][name.as_str()] != **n && name.as_str() != "discovery_consumed"
                })
                .map(|(name, n)| format!("{name} {}→{n}", before["drops"][name.as_str()]))
                .collect();
            if !found || changed.len() != 1 || before["forwarded"] != after["forwarded"] {
                let forwarded = format!("forwarded {}→{}", before["forwarded"], after["forwarded"]);
                wrong.push(format!("{kind}: not {COUNT} × {reason} but {changed:?}, {forwarded}"));
            }
        }
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), self.lab.diagnosis());
        println!("{}: {} kinds of forgery, each counted under its name", self.place, kinds.lines().count());
    }
}

fn mac_of(lab: &Lab, place: &str, device: &str) -> String {
    let text = lab.must(place, &["ip", "-o", "link", "show", "dev", device]);
    let after = text.split("link/ether ").nth(1).expect("an Ethernet address");
    after.split_whitespace().next().expect("an Ethernet address").to_owned()
}

#[test]
fn forgeries_end_under_their_names() {
    if skipped("forgeries_end_under_their_names", &["python3"]) {
        return;
    }
    let mut lab = Lab::up("s", PODS);
    let wire = lab.wire();
    let stranger = lab.third_network();
    lab.set_rp_filter(0);
    let uplink = mac_of(&lab, "node1", "eth0");
    let kernel_end = mac_of(&lab, "node1", "mgy0x");
    // The nodes have met, so node1 knows where node2's pods are.
    for address in lab.addresses("shop/far") {
        assert!(within(3, || lab.pings("shop/web", &address)), "{address}{}", lab.diagnosis());
    }
    Forger::new(&lab, "pod", "shop/web".to_owned(), "eth0", GATEWAY).all_are_counted();
    Forger::new(&lab, "wire", wire, "wire", &uplink).all_are_counted();
    Forger::new(&lab, "host", "node1".to_owned(), "mgy0", &kernel_end).all_are_counted();

    let router = mac_of(&lab, "node1", "ext0");
    assert!(within(3, || lab.pings(&stranger, &lab.addresses("shop/web")[0])), "{}", lab.diagnosis());
    Forger::new(&lab, "stranger", stranger, "eth0", &router).all_are_counted();

    // The same with the kernel's own tools: an address that is not the pod's.
    let count = |reason: &str| lab.drops("node1", reason);
    let [stolen4, stolen6] = lab.addresses("shop/db");
    let [far4, far6] = lab.addresses("shop/far");
    for (prefix, stolen, far) in [("32", stolen4, far4), ("128", stolen6, far6)] {
        let before = count("spoofed_pod_source");
        let address = format!("{stolen}/{prefix}");
        lab.must(
            "shop/web",
            &[
                "sh",
                "-c",
                &format!(
                    "ip addr add {address} dev eth0 nodad 2>/dev/null || ip addr add {address} dev eth0"
                ),
            ],
        );
        let ping =
            lab.exec("shop/web", &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-I", &stolen, &far]);
        assert!(!ping.status.success(), "a stolen address works");
        assert!(count("spoofed_pod_source") >= before + 2, "{}", lab.diagnosis());
        lab.must("shop/web", &["ip", "addr", "del", &address, "dev", "eth0"]);
    }

    // Whoever was impersonated is as reachable as before.
    for to in ["shop/db", "shop/far"] {
        for address in lab.addresses(to) {
            assert!(lab.pings("shop/web", &address), "{to} at {address}{}", lab.diagnosis());
        }
    }
    lab.books_balance();
}

#[test]
fn a_vlan_device_in_a_pod_gets_nowhere() {
    if skipped("a_vlan_device_in_a_pod_gets_nowhere", &["ethtool"]) {
        return;
    }
    let lab = Lab::up("v", PODS);
    let text = lab.must("shop/web", &["ethtool", "-k", "eth0"]);
    let in_frames = |line: &&str| {
        line.contains("-vlan-offload: off") || line.contains("vlan-stag-hw") && line.contains(": off")
    };
    assert_eq!(text.lines().filter(in_frames).count(), 4, "tags travel beside the frame: {text}");
    for (nth, protocol) in ["802.1Q", "802.1ad"].into_iter().enumerate() {
        let name = format!("tagged{nth}");
        let kind = ["type", "vlan", "protocol", protocol, "id", "7"];
        let add = [&["ip", "link", "add", "link", "eth0", "name", &name][..], &kind].concat();
        if !lab.exec("shop/web", &add).status.success() {
            println!("SKIPPED a_vlan_device_in_a_pod_gets_nowhere: this kernel has no VLAN devices (8021q)");
            return;
        }
        let before = lab.drops("node1", "vlan_tagged");
        let up = format!("ip addr add 10.9.{nth}.1/24 dev {name} && ip link set {name} up");
        lab.must("shop/web", &["sh", "-c", &up]);
        let _ = lab.exec("shop/web", &["ping", "-n", "-c", "1", "-W", "1", &format!("10.9.{nth}.2")]);
        assert!(lab.drops("node1", "vlan_tagged") > before, "{protocol}{}", lab.diagnosis());
    }
    lab.books_balance();
}

#[test]
fn sctp_leaves_with_its_checksum() {
    if skipped("sctp_leaves_with_its_checksum", &["python3"]) {
        return;
    }
    let lab = Lab::up("c", PODS);
    let script = include_str!("common/forge.py");
    let path = lab.directory.join("forge.py");
    fs::write(&path, script).expect("script");
    let forger = Forger::new(&lab, "pod", "shop/web".to_owned(), "eth0", GATEWAY);
    for family in ["4", "6"] {
        let said = lab.directory.join(format!("sctp{family}"));
        let call = format!(
            "exec python3 {} eth0 sctp-receive 1 family={family} > {}",
            path.display(),
            said.display()
        );
        let _receiver = lab.start("shop/db", &["sh", "-c", &call]);
        let says = |word: &str| fs::read_to_string(&said).unwrap_or_default().contains(word);
        assert!(within(5, || says("waiting")), "the receiver does not start");
        forger.run("sctp", 1);
        assert!(
            within(3, || says("right")),
            "IPv{family}: {}{}",
            fs::read_to_string(&said).unwrap_or_default(),
            lab.diagnosis()
        );
    }
    lab.books_balance();
}

/// Time on a CPU that a process has had.
fn cpu_time(pid: i64) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("ticks")).sum();
    // USER_HZ is 100 on every architecture that we support.
    Duration::from_millis(ticks * 10)
}

#[test]
fn an_idle_agent_sleeps() {
    if skipped("an_idle_agent_sleeps", &[]) {
        return;
    }
    let lab = Lab::up("e", PODS);
    for address in lab.addresses("shop/far") {
        lab.must("shop/web", &["ping", "-n", "-q", "-f", "-c", "2000", &address]);
    }
    thread::sleep(Duration::from_secs(1));
    let agents = ["node1", "node2"].map(|node| (node, lab.agent(node)));
    let before = agents.map(|(_, pid)| cpu_time(pid));
    let started = Instant::now();
    thread::sleep(Duration::from_secs(5));
    for ((node, pid), before) in agents.into_iter().zip(before) {
        let share = (cpu_time(pid) - before).as_secs_f64() / started.elapsed().as_secs_f64();
        println!("the idle agent of {node} uses {:.2} % of a core", share * 100.0);
        assert!(share <= 0.01, "{node}: {share}{}", lab.diagnosis());
    }
    lab.books_balance();
}
