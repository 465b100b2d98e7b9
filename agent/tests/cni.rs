//! The CNI plug-in through the real protocol: the real binary, real namespaces, the distribution's `host-local`, and an agent that
//! answers with the real server while its dataplane only takes notes.

#[allow(dead_code, unused_imports)]
#[path = "../src/endpoints/mod.rs"]
mod endpoints;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use endpoints::server::CniServer;
use endpoints::{
    AttachHooks, AttachmentKey, EndpointRecord, LargePackets, Registry, bind_private, serve_cni,
};
use margay_core::PortIndex;
use serde_json::{Value, json};

const PLUGINS: &str = "/usr/lib/cni";

/// Says why a test that needs the kernel cannot run here.
fn skipped(name: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: needs root, to make network namespaces");
        return true;
    }
    if !Path::new(PLUGINS).join("host-local").exists() {
        println!("SKIPPED {name}: needs {PLUGINS}/host-local (package containernetworking-plugins)");
        return true;
    }
    false
}

fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What the fake dataplane was told, and how it is to behave.
#[derive(Default)]
struct Notes {
    attached: Mutex<BTreeSet<String>>,
    refuse: Mutex<Option<String>>,
    slow: Mutex<Duration>,
    was_down: Mutex<Vec<bool>>,
    large: Mutex<Option<LargePackets>>,
    node: String,
}

impl AttachHooks for Notes {
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn default_mtu(&self) -> u32 {
        1420
    }

    fn large_packets(&self) -> Option<LargePackets> {
        self.large.lock().expect("notes").clone()
    }

    fn attach(&self, record: &EndpointRecord, deadline: Instant) -> Result<(), String> {
        let before = ip(&["-n", &self.node, "-o", "link", "show", "dev", &record.host_ifname]);
        self.was_down.lock().expect("notes").push(!before.contains(",UP"));
        ip(&["-n", &self.node, "link", "set", &record.host_ifname, "up"]);
        let slow = *self.slow.lock().expect("notes");
        if Instant::now() + slow > deadline {
            thread::sleep(deadline.saturating_duration_since(Instant::now()));
            return Err("the pod's policy was not in force in time".to_owned());
        }
        thread::sleep(slow);
        if let Some(reason) = self.refuse.lock().expect("notes").clone() {
            return Err(reason);
        }
        self.attached.lock().expect("notes").insert(record.key.container_id.clone());
        Ok(())
    }

    fn detach(&self, record: &EndpointRecord) {
        self.attached.lock().expect("notes").remove(&record.key.container_id);
    }

    fn check(&self, record: &EndpointRecord) -> Result<(), String> {
        let attached = self.attached.lock().expect("notes");
        attached.contains(&record.key.container_id).then_some(()).ok_or_else(|| "not attached".to_owned())
    }
}

/// A node and its pods, made of namespaces that go away with it.
struct World {
    tag: String,
    directory: PathBuf,
    pods: Mutex<Vec<String>>,
    notes: Arc<Notes>,
    agent: Mutex<Option<CniServer>>,
}

impl World {
    fn new(name: &str) -> Self {
        let tag = format!("mgt{}{name}", std::process::id());
        let directory = std::env::temp_dir().join(&tag);
        fs::create_dir_all(&directory).expect("temporary directory");
        ip(&["netns", "add", &tag]);
        let notes = Arc::new(Notes { node: tag.clone(), ..Notes::default() });
        let world = Self { tag, directory, pods: Mutex::default(), notes, agent: Mutex::default() };
        world.start_agent();
        world
    }

    fn registry(&self) -> Registry {
        Registry::open(self.directory.join("endpoints.json"), PortIndex(8)).expect("registry")
    }

    /// Starts the agent inside the node's namespace, with the list as the disk has it.
    fn start_agent(&self) {
        let node = File::open(Path::new("/run/netns").join(&self.tag)).expect("namespace");
        let server = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                nix::sched::setns(&node, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter");
                let mut registry = self.registry();
                registry.reconcile(EndpointRecord::device_exists).expect("reconcile");
                let listener = bind_private(&self.directory.join("agent.sock")).expect("bind");
                let hooks: Arc<dyn AttachHooks> = self.notes.clone();
                serve_cni(listener, Arc::new(Mutex::new(registry)), hooks).expect("serve")
            });
            inside.join().expect("agent")
        });
        *self.agent.lock().expect("agent") = Some(server);
    }

    fn stop_agent(&self) {
        *self.agent.lock().expect("agent") = None;
        self.notes.attached.lock().expect("notes").clear();
    }

    /// Makes an empty pod and returns its namespace's name.
    fn pod(&self, name: &str) -> String {
        let netns = format!("{}-{name}", self.tag);
        ip(&["netns", "add", &netns]);
        self.pods.lock().expect("pods").push(netns.clone());
        netns
    }

    fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "pods", "type": "margay",
            "agentSocket": self.directory.join("agent.sock"), "attachTimeoutSeconds": 2,
            "ipam": {
                "type": "host-local", "dataDir": self.directory.join("ipam"),
                "ranges": [[{ "subnet": "10.44.0.0/24" }], [{ "subnet": "fd44::/64" }]],
            },
        })
    }

    /// Runs one CNI command in the node's namespace.
    fn cni(&self, command: &str, id: &str, netns: Option<&str>, conf: &Value) -> Result<Value, Value> {
        let mut call = Command::new("ip");
        call.args(["netns", "exec", &self.tag, env!("CARGO_BIN_EXE_margay"), "cni"])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={id};K8S_POD_UID=u-{id}"),
            );
        if let Some(netns) = netns {
            call.env("CNI_NETNS", Path::new("/run/netns").join(netns));
        }
        answer(run(call, &conf.to_string()))
    }

    fn add(&self, id: &str, netns: &str) -> Result<Value, Value> {
        self.cni("ADD", id, Some(netns), &self.conf("1.1.0"))
    }

    fn host_ends(&self) -> Vec<String> {
        let links: Vec<Value> = serde_json::from_str(&ip(&["-n", &self.tag, "-j", "link"])).expect("json");
        let names = links.iter().filter_map(|l| l["ifname"].as_str());
        names.filter(|n| n.starts_with("mgy")).map(str::to_owned).collect()
    }

    /// The addresses that host-local believes given out.
    fn given_out(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.directory.join("ipam/pods")).into_iter().flatten();
        let names = entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned());
        names.filter(|n| n.starts_with("10.") || n.starts_with("fd")).collect()
    }

    fn registered(&self) -> Vec<String> {
        self.registry().records().map(|r| r.key.container_id.clone()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_agent();
        for netns in self.pods.lock().expect("pods").iter().chain([&self.tag]) {
            let _ = Command::new("ip").args(["netns", "del", netns]).output();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn run(mut call: Command, input: &str) -> Output {
    let mut child =
        call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("write");
    child.wait_with_output().expect("finish")
}

fn answer(output: Output) -> Result<Value, Value> {
    let text = String::from_utf8(output.stdout).expect("text");
    let value = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).expect("one JSON value")
    };
    if output.status.success() { Ok(value) } else { Err(value) }
}

/// Runs the plug-in without a node: no kernel is touched.
fn bare(variables: &[(&str, &str)], input: &str) -> Result<Value, Value> {
    let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
    call.arg("cni").env_clear().envs(variables.iter().copied());
    answer(run(call, input))
}

#[test]
fn version_lists_what_is_spoken() {
    let answer = bare(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"1.0.0"}"#).expect("VERSION");
    assert_eq!(answer, json!({ "cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"] }));
}

#[test]
fn the_name_margay_cni_is_the_plug_in() {
    let directory = std::env::temp_dir().join(format!("mgt{}name", std::process::id()));
    fs::create_dir_all(&directory).expect("temporary directory");
    let link = directory.join("margay-cni");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_margay"), &link).expect("link");
    let mut call = Command::new(&link);
    call.env("CNI_COMMAND", "VERSION");
    let outcome = answer(run(call, ""));
    fs::remove_dir_all(&directory).expect("clean up");
    assert_eq!(outcome.expect("VERSION")["cniVersion"], "1.1.0");
}

#[test]
fn errors_have_the_form_and_codes_of_the_specification() {
    let full = r#"{"cniVersion":"1.0.0","name":"pods","type":"margay","ipam":{"type":"host-local"}}"#;
    let key = [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
    let add = |more: &[(&str, &str)], conf: &str| {
        let variables: Vec<(&str, &str)> =
            [("CNI_COMMAND", "ADD")].into_iter().chain(more.iter().copied()).collect();
        bare(&variables, conf).expect_err("an error")
    };
    let old = add(&key, r#"{"cniVersion":"0.2.0","name":"pods","ipam":{"type":"host-local"}}"#);
    assert_eq!(old["code"], 1);
    assert_eq!(add(&key, "{")["code"], 6);
    assert_eq!(add(&[], full)["code"], 4);
    let no_pod = add(&key, full);
    assert_eq!((no_pod["code"].clone(), no_pod["cniVersion"].clone()), (json!(4), json!("1.0.0")));
    assert!(no_pod["msg"].as_str().expect("msg").contains("K8S_POD_NAMESPACE"), "{no_pod}");
    assert_eq!(bare(&[("CNI_COMMAND", "FLY")], full).expect_err("an error")["code"], 4);
}

#[test]
fn a_pod_joins_is_checked_and_leaves() {
    if skipped("a_pod_joins_is_checked_and_leaves") {
        return;
    }
    let world = World::new("life");
    let pod = world.pod("a");
    let result = world.add("a", &pod).expect("ADD");
    assert_eq!(result["cniVersion"], "1.1.0");
    let host = result["interfaces"][0]["name"].as_str().expect("host end").to_owned();
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    assert_eq!(result["interfaces"][1]["mtu"], 1420);
    assert_eq!(result["ips"][0]["address"], "10.44.0.2/32");
    assert_eq!(result["ips"][1]["address"], "fd44::2/128");
    assert_eq!(*world.notes.was_down.lock().expect("notes"), [true], "down until the agent has it");

    let ours: Value =
        serde_json::from_str(&ip(&["-n", &world.tag, "-j", "link", "show", &host])).expect("json");
    let flags = ours[0]["flags"].to_string();
    assert!(flags.contains("NOARP") && flags.contains("\"UP\""), "{flags}");
    assert_eq!(ours[0]["address"], "ee:ee:ee:ee:ee:ee");
    assert_eq!(
        ip(&["-n", &world.tag, "addr", "show", &host]).matches("inet").count(),
        0,
        "no IP stack of its own"
    );
    let inside = ip(&["-n", &pod, "-6", "addr", "show", "dev", "eth0"]);
    assert!(inside.contains("fd44::2/128") && !inside.contains("tentative"), "{inside}");
    assert!(ip(&["-n", &pod, "route"]).contains("default via 169.254.1.1 dev eth0"));
    assert!(ip(&["-n", &pod, "route"]).contains("169.254.1.1 dev eth0 proto static scope link"));
    assert!(ip(&["-n", &pod, "-6", "route"]).contains("default via fe80::1 dev eth0"));
    let offloads = |netns: &str, device: &str| {
        let output =
            Command::new("ip").args(["netns", "exec", netns, "ethtool", "-k", device]).output().expect("run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (theirs, mine) = (offloads(&pod, "eth0"), offloads(&world.tag, &host));
    if theirs.is_empty() {
        println!("ethtool is not installed: offloads not looked at");
    } else {
        assert!(theirs.contains("generic-receive-offload: on"), "{theirs}");
        for text in [&theirs, &mine] {
            assert!(text.contains("rx-vlan-offload: off") && text.contains("tx-vlan-offload: off"), "{text}");
        }
    }

    let mut with_result = world.conf("1.1.0");
    with_result["prevResult"] = result;
    world.cni("CHECK", "a", Some(&pod), &with_result).expect("CHECK");
    world.cni("STATUS", "", None, &world.conf("1.1.0")).expect("STATUS");
    assert_eq!(world.add("a", &pod).expect_err("a second ADD")["code"], 103);
    world.cni("CHECK", "a", Some(&pod), &with_result).expect("CHECK after a refused ADD");
    ip(&["-n", &pod, "route", "del", "default"]);
    assert_eq!(world.cni("CHECK", "a", Some(&pod), &with_result).expect_err("CHECK")["code"], 102);

    world.cni("DEL", "a", Some(&pod), &with_result).expect("DEL");
    assert!(world.host_ends().is_empty() && world.given_out().is_empty() && world.registered().is_empty());
    world.cni("DEL", "a", Some(&pod), &with_result).expect("DEL again");
    world.cni("DEL", "a", None, &world.conf("1.1.0")).expect("DEL without a namespace");
}

#[test]
fn check_sees_the_size_of_a_pods_packets_and_the_routes_of_large_ones() {
    if skipped("check_sees_the_size_of_a_pods_packets_and_the_routes_of_large_ones") {
        return;
    }
    let world = World::new("size");
    let within = ["10.44.0.0/24", "fd44::/64"].map(|net| net.parse().expect("a network")).to_vec();
    *world.notes.large.lock().expect("notes") = Some(LargePackets { mtu: 9000, within });
    let pod = world.pod("a");
    let result = world.add("a", &pod).expect("ADD");
    let host = result["interfaces"][0]["name"].as_str().expect("host end").to_owned();
    assert_eq!(result["interfaces"][1]["mtu"], 9000);
    let mut with_result = world.conf("1.1.0");
    with_result["prevResult"] = result;
    let check = || world.cni("CHECK", "a", Some(&pod), &with_result).map(drop);
    check().expect("CHECK");
    // The node has lost its range of large packets since, or gained another: no business of a pod that is there.
    *world.notes.large.lock().expect("notes") = None;
    check().expect("CHECK");

    let v4 = "10.44.0.0/24 via 169.254.1.1 dev eth0 proto static";
    let v6 = "fd44::/64 via fe80::1 dev eth0 proto static";
    let default = "default via 169.254.1.1 dev eth0 proto static mtu 1420 advmss 1380";
    let (to_pod, to_node) = (["-n", &pod], ["-n", &world.tag]);
    let changes: [(&[&str; 2], &str, &str, &str); 6] = [
        (
            &to_node,
            &format!("link set {host} mtu 1500"),
            &format!("link set {host} mtu 9000"),
            "1500, not 9000",
        ),
        (&to_pod, "link set eth0 mtu 1500", "link set eth0 mtu 9000", "1500, not 9000"),
        (
            &to_pod,
            "route replace default via 169.254.1.1 dev eth0 proto static",
            &format!("route replace {default}"),
            "the interface's MTU, not mtu 1420",
        ),
        (
            &to_pod,
            &format!("route replace {default} mtu 1500"),
            &format!("route replace {default}"),
            "mtu 1500, not mtu 1420",
        ),
        (
            &to_pod,
            &format!("route del {v4}"),
            &format!("route add {v4}"),
            "10.44.0.0/24 via 169.254.1.1 is gone",
        ),
        (
            &to_pod,
            &format!("-6 route replace {v6} mtu 1420"),
            &format!("-6 route replace {v6}"),
            "mtu 1420, not the interface's MTU",
        ),
    ];
    for (place, change, back, told) in changes {
        let run = |command: &str| ip(&[&place[..], &command.split(' ').collect::<Vec<_>>()].concat());
        run(change);
        let error = check().expect_err(change);
        assert_eq!(error["code"], 102, "{change}");
        assert!(error["details"].as_str().is_some_and(|text| text.contains(told)), "{change}: {error}");
        run(back);
        check().expect(back);
    }
    world.cni("DEL", "a", Some(&pod), &with_result).expect("DEL");
}

#[test]
fn the_oldest_version_gets_results_of_its_form() {
    if skipped("the_oldest_version_gets_results_of_its_form") {
        return;
    }
    let world = World::new("old");
    let pod = world.pod("a");
    let result = world.cni("ADD", "a", Some(&pod), &world.conf("0.4.0")).expect("ADD");
    assert_eq!(
        (result["cniVersion"].clone(), result["ips"][1]["version"].clone()),
        (json!("0.4.0"), json!("6"))
    );
    assert!(result["interfaces"][1].get("mtu").is_none());
}

#[test]
fn a_failed_add_undoes_itself_in_time() {
    if skipped("a_failed_add_undoes_itself_in_time") {
        return;
    }
    let world = World::new("undo");
    let pod = world.pod("a");
    let nothing_left = || {
        assert!(
            world.host_ends().is_empty() && world.given_out().is_empty() && world.registered().is_empty()
        );
        assert!(!ip(&["-n", &pod, "link"]).contains("eth0"));
    };
    *world.notes.slow.lock().expect("notes") = Duration::from_secs(60);
    let started = Instant::now();
    let error = world.add("a", &pod).expect_err("policy is never in force");
    assert_eq!(error["code"], 11, "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    nothing_left();
    *world.notes.slow.lock().expect("notes") = Duration::ZERO;
    *world.notes.refuse.lock().expect("notes") = Some("no program on this device".to_owned());
    let error = world.add("a", &pod).expect_err("refused");
    assert!(error["details"].as_str().expect("details").contains("no program"), "{error}");
    nothing_left();
    let mut bad = world.conf("1.1.0");
    bad["ipam"]["ranges"] = json!([[{ "subnet": "nonsense" }]]);
    world.cni("ADD", "a", Some(&pod), &bad).expect_err("IPAM refuses");
    nothing_left();
    *world.notes.refuse.lock().expect("notes") = None;
    world.add("a", &pod).expect("ADD after all that");
}

#[test]
fn an_agent_that_dies_in_the_middle_leaves_nothing_half_made() {
    if skipped("an_agent_that_dies_in_the_middle_leaves_nothing_half_made") {
        return;
    }
    let world = World::new("mid");
    let pod = world.pod("a");
    world.stop_agent();
    // An agent that says it is ready, and is gone as soon as it has read the attachment.
    let socket = world.directory.join("agent.sock");
    let listener = bind_private(&socket).expect("bind");
    let dying = thread::spawn(move || {
        for stream in listener.incoming().map(|s| s.expect("accept")) {
            let request: Value =
                endpoints::protocol::read_line(&mut BufReader::new(&stream)).expect("line").expect("JSON");
            if request["op"] == "status" {
                let ready = json!({ "reply": "status", "default_mtu": 1420 });
                endpoints::protocol::write_line(&mut &stream, &ready).expect("answer");
            } else {
                return request;
            }
        }
        Value::Null
    });
    assert_eq!(world.add("a", &pod).expect_err("the agent died")["code"], 11);
    let request = dying.join().expect("agent");
    assert_eq!((request["op"].clone(), request["mtu"].clone()), (json!("attach"), json!(1420)));
    assert_eq!(request["pod"], json!({ "namespace": "default", "name": "a", "uid": "u-a" }));
    assert!(world.host_ends().is_empty() && world.given_out().is_empty());
    world.start_agent();
    world.add("a", &pod).expect("ADD once the agent is back");
}

#[test]
fn adds_at_once_do_not_harm_each_other() {
    if skipped("adds_at_once_do_not_harm_each_other") {
        return;
    }
    let world = World::new("race");
    let same = world.pod("same");
    *world.notes.slow.lock().expect("notes") = Duration::from_millis(300);
    let outcomes: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> = (0..3).map(|_| scope.spawn(|| world.add("same", &same))).collect();
        calls.into_iter().map(|c| c.join().expect("call")).collect()
    });
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().filter_map(|o| o.as_ref().err()).all(|e| e["code"] == 103), "{outcomes:?}");
    assert_eq!((world.host_ends().len(), world.given_out().len(), world.registered().len()), (1, 2, 1));

    let pods: Vec<String> = (0..6).map(|i| world.pod(&format!("p{i}"))).collect();
    thread::scope(|scope| {
        for (i, pod) in pods.iter().enumerate() {
            let world = &world;
            scope.spawn(move || world.add(&format!("p{i}"), pod).expect("ADD"));
        }
    });
    assert_eq!((world.host_ends().len(), world.given_out().len(), world.registered().len()), (7, 14, 7));
    let ports: BTreeSet<u16> = world.registry().records().map(|r| r.port.0).collect();
    assert_eq!(ports, (8..15).collect(), "each its own port, the smallest free ones");
}

#[test]
fn a_pod_leaves_while_the_agent_is_down() {
    if skipped("a_pod_leaves_while_the_agent_is_down") {
        return;
    }
    let world = World::new("down");
    let (old, new) = (world.pod("old"), world.pod("new"));
    world.add("old", &old).expect("ADD");
    world.add("kept", &new).expect("ADD");
    let kept =
        world.registry().get(&AttachmentKey { container_id: "kept".into(), ifname: "eth0".into() }).cloned();
    world.stop_agent();
    let third = world.pod("third");
    assert_eq!(world.add("third", &third).expect_err("no agent")["code"], 11);
    assert_eq!(world.cni("STATUS", "", None, &world.conf("1.1.0")).expect_err("no agent")["code"], 50);
    world.cni("DEL", "old", Some(&old), &world.conf("1.1.0")).expect("DEL");
    assert_eq!((world.host_ends().len(), world.given_out().len()), (1, 2), "only the other pod is left");
    assert_eq!(world.registered().len(), 2, "nobody told the list");
    world.start_agent();
    assert_eq!(world.registered(), ["kept"], "the restarted agent found the device gone");
    let again =
        world.registry().get(&AttachmentKey { container_id: "kept".into(), ifname: "eth0".into() }).cloned();
    assert_eq!(again, kept, "endpoint and port outlive a restart");
    world.add("third", &third).expect("ADD");
    let ids: BTreeSet<u32> = world.registry().records().map(|r| r.id.0).collect();
    assert_eq!(ids, BTreeSet::from([2, 3]), "an endpoint id is never used again");
}

#[test]
fn a_late_del_spares_the_newer_pod() {
    if skipped("a_late_del_spares_the_newer_pod") {
        return;
    }
    let world = World::new("late");
    let pod = world.pod("a");
    world.add("first", &pod).expect("ADD");
    world.cni("DEL", "first", Some(&pod), &world.conf("1.1.0")).expect("DEL");
    world.add("second", &pod).expect("ADD in the same namespace");
    world.cni("DEL", "first", Some(&pod), &world.conf("1.1.0")).expect("a late DEL");
    assert_eq!(world.registered(), ["second"]);
    assert_eq!((world.host_ends().len(), world.given_out().len()), (1, 2));
    // A device under the derived name that says it is somebody else's is left alone.
    let host = world.host_ends().remove(0);
    ip(&["-n", &world.tag, "link", "set", &host, "alias", "margay pods another eth0"]);
    world.cni("DEL", "second", Some(&pod), &world.conf("1.1.0")).expect("DEL");
    assert_eq!(world.host_ends(), [host]);
}

#[test]
fn garbage_is_collected() {
    if skipped("garbage_is_collected") {
        return;
    }
    let world = World::new("gc");
    for id in ["a", "b", "c"] {
        let pod = world.pod(id);
        world.add(id, &pod).expect("ADD");
    }
    // `c` lost its device behind the agent's back; `b` is simply unknown to the runtime.
    let registry = world.registry();
    let c = registry.records().find(|r| r.key.container_id == "c").expect("c").host_ifname.clone();
    ip(&["-n", &world.tag, "link", "del", &c]);
    let mut conf = world.conf("1.1.0");
    assert_eq!(world.cni("GC", "", None, &conf).expect_err("no list")["code"], 7);
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
    world.cni("GC", "", None, &conf).expect("GC");
    assert_eq!(world.registered(), ["a"]);
    assert_eq!((world.host_ends().len(), world.given_out().len()), (1, 2));
    world.cni("GC", "", None, &conf).expect("GC again");
    assert_eq!(world.registered(), ["a"]);
}

/// PM-28 row 11: `host-local` alone gives an address to the next pod that asks when its turn comes; through us not within a minute while
/// others are free.
#[test]
fn pm_d28_an_address_is_not_given_out_again_within_a_minute_while_others_are_free() {
    if skipped("pm_d28_an_address_is_not_given_out_again_within_a_minute_while_others_are_free") {
        return;
    }
    let world = World::new("rest");
    let mut conf = world.conf("1.1.0");
    // .1 is the gateway's: five addresses.
    conf["ipam"]["ranges"] = json!([[{ "subnet": "10.44.0.0/29" }]]);
    let add = |name: &str| {
        let netns = world.pod(name);
        let answer = world.cni("ADD", name, Some(&netns), &conf).expect("ADD");
        answer["ips"][0]["address"].as_str().expect("an address").trim_end_matches("/32").to_owned()
    };
    let del = |name: &str| world.cni("DEL", name, None, &conf).expect("DEL");
    let all: Vec<String> = ["a", "b", "c", "d", "e"].map(add).to_vec();
    assert_eq!(all, ["10.44.0.2", "10.44.0.3", "10.44.0.4", "10.44.0.5", "10.44.0.6"]);

    // `a` and `c` are given back, `c` more than a minute ago.
    del("c");
    world.stop_agent();
    let path = world.directory.join("endpoints.json");
    let mut stored: Value = serde_json::from_slice(&fs::read(&path).expect("list")).expect("JSON");
    let at = stored["released"]["10.44.0.4"].as_u64().expect("when c gave it back");
    stored["released"]["10.44.0.4"] = json!(at - 61);
    fs::write(&path, stored.to_string()).expect("list");
    world.start_agent();
    del("a");

    // What the plug-in would do by itself: the next of its round is the one that `a` had a moment ago.
    let alone = |command: &str| {
        let mut call = Command::new(Path::new(PLUGINS).join("host-local"));
        call.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "alone")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/run/netns/none")
            .env("CNI_PATH", PLUGINS);
        let mut own = conf.clone();
        own["cniVersion"] = json!("1.0.0");
        answer(run(call, &own.to_string())).expect("host-local")
    };
    let last = world.directory.join("ipam/pods/last_reserved_ip.0");
    let place = fs::read(&last).expect("where its round is");
    assert_eq!(alone("ADD")["ips"][0]["address"], "10.44.0.2/29");
    alone("DEL");
    fs::write(&last, place).expect("its round goes on where it was");

    assert_eq!(add("f"), "10.44.0.4", "the one that has rested");
    assert_eq!(add("g"), "10.44.0.2", "no other is left");
    assert_eq!(world.given_out().len(), 5, "nothing is held in vain");
    del("f");
    assert_eq!(add("h"), "10.44.0.4");
}
