//! The lab, up and down, with real agents: pods that reach each other, a policy that takes effect, and nothing left behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const MANIFESTS: &str = "
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
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: far}, uid: 11111111-2222-3333-4444-555555555555}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: tool, namespace: shop}
spec: {nodeName: node2, hostNetwork: true, containers: [{name: main, image: none}]}
";

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
";

/// Says why a test that needs the kernel cannot run here.
fn skipped(name: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: needs root, to make network namespaces");
        return true;
    }
    if !Path::new("/usr/lib/cni/host-local").exists() {
        println!("SKIPPED {name}: needs /usr/lib/cni/host-local (package containernetworking-plugins)");
        return true;
    }
    false
}

/// One lab of its own, taken down when the test ends, however it ends.
struct Lab {
    name: String,
    directory: PathBuf,
}

impl Lab {
    fn new(mark: &str) -> Self {
        let name = format!("t{}{mark}", std::process::id());
        let directory = std::env::temp_dir().join(format!("mgl{name}"));
        fs::create_dir_all(directory.join("manifests")).expect("temporary directory");
        fs::write(directory.join("manifests/shop.yaml"), MANIFESTS).expect("manifests");
        Self { name, directory }
    }

    fn command(&self, command: &str, rest: &[&str]) -> Command {
        let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
        call.args(["lab", command, "--name", &self.name, "--labs-dir"])
            .arg(self.directory.join("labs"))
            .args(rest);
        call
    }

    fn up_command(&self) -> Command {
        let manifests = self.directory.join("manifests");
        self.command("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()])
    }

    fn up(&self) -> Output {
        let output = self.up_command().output().expect("run");
        assert!(output.status.success(), "up: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn down(&self) {
        let output = self.command("down", &[]).output().expect("run");
        assert!(output.status.success(), "down: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn status(&self) -> Value {
        let output = self.command("status", &["-o", "json"]).output().expect("run");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn pod_addresses(&self, pod: &str) -> Vec<String> {
        let status = self.status();
        let pods = status["pods"].as_array().expect("pods").iter();
        let addresses =
            pods.filter(|p| p["name"] == pod).flat_map(|p| p["addresses"].as_array().expect("list").clone());
        addresses.map(|a| a.as_str().expect("text").to_owned()).collect()
    }

    fn exec(&self, pod: &str, command: &[&str]) -> Output {
        let mut call = self.command("exec", &[pod, "--"]);
        call.args(command).output().expect("run")
    }

    fn pings(&self, from: &str, address: &str) -> bool {
        self.exec(from, &["ping", "-c", "1", "-W", "1", address]).status.success()
    }

    /// Asks again until `from` reaches `address`, or not, as `wanted`.
    fn settles(&self, from: &str, address: &str, wanted: bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.pings(from, address) == wanted {
                return true;
            }
            thread::sleep(Duration::from_millis(100));
        }
        false
    }

    /// Namespaces, mounts and folders that carry the lab's name.
    fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("mgy-{}-", self.name)) {
                traces.insert(name);
            }
        }
        let own = self.directory.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        traces.extend(mounts.lines().filter(|line| line.contains(&own)).map(str::to_owned));
        for entry in fs::read_dir("/proc").expect("processes").flatten() {
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if line.contains(&own) && line.contains("agent") {
                traces.insert(line.replace('\0', " "));
            }
        }
        if self.directory.join("labs").exists() {
            traces.insert("the labs' folder".to_owned());
        }
        traces
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command("down", &[]).output();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn pods_reach_each_other_until_policy_says_otherwise() {
    if skipped("pods_reach_each_other_until_policy_says_otherwise") {
        return;
    }
    let lab = Lab::new("a");
    lab.up();
    let status = lab.status();
    assert!(
        status["nodes"].as_array().expect("nodes").iter().all(|n| n["agent"]["ready"] == true),
        "{status:#}"
    );
    for (from, to) in [("shop/web", "shop/db"), ("shop/web", "shop/far"), ("shop/far", "shop/db")] {
        let addresses = lab.pod_addresses(to);
        assert_eq!(addresses.len(), 2, "both families: {status:#}");
        for address in addresses {
            assert!(lab.settles(from, &address, true), "{from} does not reach {to} at {address}");
        }
    }
    assert_eq!(lab.exec("shop/web", &["sh", "-c", "exit 7"]).status.code(), Some(7));
    let host = lab.exec("shop/tool", &["ip", "-o", "addr", "show", "eth0"]);
    assert!(
        String::from_utf8_lossy(&host.stdout).contains("172.30.0.2"),
        "a host-networked pod is in its node"
    );

    let db = lab.pod_addresses("shop/db").remove(0);
    let policy = lab.directory.join("manifests/closed.yaml");
    fs::write(&policy, DENY).expect("policy");
    assert!(lab.settles("shop/web", &db, false), "the policy has no effect within the node");
    assert!(lab.settles("shop/far", &db, false), "the policy has no effect between nodes");
    fs::remove_file(&policy).expect("policy");
    assert!(lab.settles("shop/web", &db, true), "the policy is gone, its effect is not");

    // One pod less, one pod more; the others stay as they are.
    let before = lab.pod_addresses("shop/web");
    let changed = MANIFESTS.replace("name: far", "name: further");
    fs::write(lab.directory.join("manifests/shop.yaml"), changed).expect("manifests");
    let said = String::from_utf8_lossy(&lab.up().stdout).into_owned();
    assert!(said.contains("pod shop/far: released") && said.contains("pod shop/further: on node2"), "{said}");
    assert!(!said.contains("shop/web"), "{said}");
    assert_eq!(lab.pod_addresses("shop/web"), before);
    assert!(lab.pod_addresses("shop/far").is_empty());
    let further = lab.pod_addresses("shop/further").remove(0);
    assert!(lab.settles("shop/web", &further, true));

    let mut server = lab.command("exec", &["shop/web", "--", "sleep", "600"]).spawn().expect("run");
    lab.down();
    assert!(!server.wait().expect("ended").success(), "what runs in a pod ends with it");
    assert_eq!(lab.traces(), BTreeSet::new());
    lab.down();
}

#[test]
fn every_node_knows_every_pod_when_up_returns() {
    if skipped("every_node_knows_every_pod_when_up_returns") {
        return;
    }
    let lab = Lab::new("k");
    let among = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: among, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}
";
    fs::write(lab.directory.join("manifests/among.yaml"), among).expect("policy");
    lab.up();
    // To whom does not know the sender it is nobody, whom no rule lets in. The pod that was joined last is news for the longest.
    let pods = ["shop/far", "shop/web", "shop/db"];
    for (from, to) in pods.iter().flat_map(|from| pods.map(|to| (*from, to))).filter(|(from, to)| from != to)
    {
        for address in lab.pod_addresses(to) {
            assert!(lab.pings(from, &address), "the first packet of {from} to {to} at {address}");
        }
    }
    lab.down();
}

#[test]
fn down_cleans_up_after_a_crash() {
    if skipped("down_cleans_up_after_a_crash") {
        return;
    }
    for pause in [20, 80, 200, 400] {
        let lab = Lab::new(&format!("c{pause}"));
        let mut up = lab.up_command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run");
        thread::sleep(Duration::from_millis(pause));
        up.kill().expect("kill -9");
        up.wait().expect("gone");
        lab.down();
        assert_eq!(lab.traces(), BTreeSet::new(), "killed after {pause} ms");
    }
}

#[test]
fn up_after_a_crash_finishes_the_work() {
    if skipped("up_after_a_crash_finishes_the_work") {
        return;
    }
    let lab = Lab::new("f");
    lab.up();
    // An agent dies for good; the next `up` starts another, and pods of that node are still served.
    let status = lab.status();
    let pid = status["nodes"][0]["agent"]["pid"].as_i64().expect("pid");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill -9");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(
        lab.command("status", &[]).output().expect("run").status.code(),
        Some(1),
        "a dead agent is seen"
    );
    lab.up();
    let db = lab.pod_addresses("shop/db").remove(0);
    assert!(lab.settles("shop/web", &db, true), "pods of a restarted agent reach each other");
    lab.down();
    assert_eq!(lab.traces(), BTreeSet::new());
}

#[test]
fn an_agent_that_dies_is_reported_with_its_log() {
    if skipped("an_agent_that_dies_is_reported_with_its_log") {
        return;
    }
    let lab = Lab::new("d");
    // Somebody else sits on the first node's socket: its agent cannot start.
    let run = lab.directory.join("labs").join(&lab.name).join("nodes/node1/run");
    fs::create_dir_all(&run).expect("folder");
    let squatter = UnixListener::bind(run.join("agent.sock")).expect("bind");
    let output = lab.up_command().output().expect("run");
    drop(squatter);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the agent of node1 has ended") && text.contains("agent.sock"), "{text}");
    assert_eq!(lab.traces(), BTreeSet::new(), "a failed `up` takes away what it made");
}

#[test]
fn mistakes_are_told_in_one_line() {
    if skipped("mistakes_are_told_in_one_line") {
        return;
    }
    let lab = Lab::new("m");
    let fails = |mut call: Command, what: &str| {
        let output = call.output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(what), "{text}");
    };
    fails(lab.command("status", &[]), "start it with");
    fails(lab.command("exec", &["shop/web", "--", "true"]), "no lab called");
    let manifests = lab.directory.join("manifests");
    let one = lab.command("up", &["--nodes", "1", "--manifests", &manifests.to_string_lossy()]);
    fails(one, "is to run on node2");
    assert_eq!(lab.command("down", &[]).output().expect("run").status.code(), Some(0));
    assert_eq!(lab.traces(), BTreeSet::new());
}
