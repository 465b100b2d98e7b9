//! The lab of these tests, and the processes inside it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common;

/// Where the servers listen.
pub const PORT: &str = "7000";

/// Three pods on node1, two on node2.
pub const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: a}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, labels: {app: b}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: d, namespace: shop, labels: {app: closed}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: shop, labels: {app: c}}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: e, namespace: shop, labels: {app: guarded}}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
";

/// Nobody reaches `d`.
pub const CLOSED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress]}
";

/// Nobody reaches `e`.
pub const GUARD: &str = "
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: guard}
spec: {selector: app == 'guarded', types: [Ingress], ingress: [{action: Deny}]}
";

/// What the other flows are allowed by.
const OPEN: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [a, b, c]}]}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: a}}}, {podSelector: {matchLabels: {app: c}}}]
    ports: [{protocol: TCP, port: 7000}, {protocol: UDP, port: 7000}]
";

/// Seconds of the clock on the wall.
pub fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("clock").as_secs_f64()
}

/// One lab of its own, taken down when the test ends, however it ends.
pub struct Lab {
    lab: common::Lab,
    /// Agents that were started again by hand.
    pub restarted: Vec<Child>,
}

impl Lab {
    /// Two nodes, five pods, three policies.
    pub fn up(mark: &str) -> Self {
        Self::up_with(mark, PODS)
    }

    /// As [`Lab::up`], with other pods.
    pub fn up_with(mark: &str, pods: &str) -> Self {
        let files =
            [("pods.yaml", pods), ("closed.yaml", CLOSED), ("guard.yaml", GUARD), ("open.yaml", OPEN)];
        let lab = common::Lab::up_from(&format!("f{mark}"), &files, &[]);
        fs::write(lab.directory.join("tool.py"), include_str!("tool.py")).expect("script");
        Self { lab, restarted: Vec::new() }
    }

    /// Replaces a manifest in one step.
    pub fn write(&self, file: &str, text: &[u8]) {
        let aside = self.lab.directory.join("aside");
        fs::write(&aside, text).expect("write");
        fs::rename(aside, self.manifest(file)).expect("rename");
    }

    /// Where a manifest is.
    pub fn manifest(&self, file: &str) -> PathBuf {
        self.lab.directory.join("manifests").join(file)
    }

    /// Brings the lab to what the manifests say now.
    pub fn reconcile(&self) -> Output {
        let manifests = self.lab.directory.join("manifests");
        let mut call = self.lab.call("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()]);
        let output = call.output().expect("run");
        assert!(output.status.success(), "up: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn status(&self) -> Value {
        let output = self.lab.call("status", &["-o", "json"]).output().expect("run");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The entry `name` of a list of `lab status`.
    pub fn entry(&self, list: &str, name: &str) -> Value {
        let status = self.status();
        let entries = status[list].as_array().expect("list").iter();
        entries.clone().find(|e| e["name"] == name).unwrap_or_else(|| panic!("{name} in {status:#}")).clone()
    }

    /// The address of a pod (`shop/a`) or node (`node1`) in one family.
    pub fn address(&self, name: &str, family: u8) -> String {
        let entry = self.entry(if name.contains('/') { "pods" } else { "nodes" }, name);
        let addresses = entry["addresses"].as_array().expect("addresses").iter();
        let mut texts = addresses.map(|a| a.as_str().expect("text").to_owned());
        texts.find(|a| a.contains(':') == (family == 6)).expect("both families")
    }

    /// The agent of a node as the lab knows it.
    pub fn agent(&self, node: &str) -> Pid {
        let pid = self.entry("nodes", node)["agent"]["pid"].as_i64().expect("pid");
        Pid::from_raw(i32::try_from(pid).expect("pid"))
    }

    /// What the agent of `node` says about itself; null when it does not answer.
    pub fn report(&self, node: &str) -> Value {
        let socket = self
            .lab
            .directory
            .join("labs")
            .join(&self.lab.name)
            .join("nodes")
            .join(node)
            .join("run/admin.sock");
        let output = Command::new(env!("CARGO_BIN_EXE_margay"))
            .args(["status", "-o", "json", "--socket"])
            .arg(socket)
            .output()
            .expect("run");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Starts an agent in `node` with the command line that an earlier one had.
    pub fn start_again(&mut self, node: &str, command_line: &[u8]) {
        let words = command_line.split(|octet| *octet == 0).filter(|word| !word.is_empty());
        let words: Vec<String> = words.map(|word| String::from_utf8(word.to_vec()).expect("text")).collect();
        let log = fs::File::create(self.lab.directory.join(format!("{node}.again.log"))).expect("log");
        let child = self
            .lab
            .command(node, &[])
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("run");
        self.restarted.push(child);
    }

    /// Starts `role` of the script inside `place`.
    pub fn tool(&self, place: &str, role: &str, rest: &[&str]) -> Tool {
        let script = self.lab.directory.join("tool.py").to_string_lossy().into_owned();
        let mut child = self
            .lab
            .command(place, &["python3", &script, role])
            .args(rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run");
        let stdin = child.stdin.take().expect("pipe");
        let stdout = BufReader::new(child.stdout.take().expect("pipe"));
        let mut tool = Tool { what: format!("{role} {place} {rest:?}"), child, stdin, stdout };
        assert_eq!(tool.line(), json!({}), "{} has started", tool.what);
        tool
    }

    /// An echo server in every pod.
    pub fn servers(&self) -> Vec<Tool> {
        ["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"]
            .iter()
            .map(|pod| self.tool(pod, "serve", &[PORT, &self.address(pod, 4), &self.address(pod, 6)]))
            .collect()
    }

    /// `role` from `from` to `to` every `interval` seconds.
    pub fn flow(&self, role: &str, from: &str, to: &str, family: u8, interval: &str) -> Tool {
        let mut tool = self.tool(from, role, &[PORT, &self.address(to, family), interval]);
        tool.what = format!("{role} {from} → {to} (IPv{family})");
        tool
    }

    /// A pod that talks to itself: what interrupts this is the machine, not the dataplane.
    pub fn control(&self) -> Tool {
        self.flow("udp", "shop/c", "shop/c", 4, "0.02")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in ["node1", "node2"] {
                let log =
                    self.lab.directory.join("labs").join(&self.lab.name).join(format!("nodes/{node}.log"));
                eprintln!("--- {node}\n{}", fs::read_to_string(log).unwrap_or_default());
                let again = self.lab.directory.join(format!("{node}.again.log"));
                eprintln!("--- {node}, started again\n{}", fs::read_to_string(again).unwrap_or_default());
            }
        }
        for child in &mut self.restarted {
            // SIGTERM, so that it takes its mounts along.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

/// A process inside a pod or node.
pub struct Tool {
    /// What it does, in words.
    pub what: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Tool {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {line:?}: {e}", self.what))
    }

    /// What the process knows so far.
    pub fn ask(&mut self) -> Value {
        self.stdin.write_all(b"\n").expect("write");
        self.stdin.flush().expect("write");
        self.line()
    }

    /// When answers came to what was sent at or after `from`.
    fn answers_since(&mut self, from: f64) -> Vec<f64> {
        let known = self.ask();
        assert!(known["ended"].is_null(), "{}: {}", self.what, known["ended"]);
        let pairs = known["answers"].as_array().expect("answers").iter();
        pairs.filter(|p| p[0].as_f64() >= Some(from)).map(|p| p[1].as_f64().expect("time")).collect()
    }

    /// Waits for an answer to something sent at or after `from`; returns when the first came, in seconds after `from`.
    pub fn flows(&mut self, from: f64, within: Duration) -> f64 {
        let deadline = Instant::now() + within;
        loop {
            if let Some(first) = self.answers_since(from).first() {
                return first - from;
            }
            if Instant::now() >= deadline {
                let mut known = self.ask();
                known["answers"] = json!(known["answers"].as_array().map(Vec::len));
                panic!("{}: no answer within {within:?}: {known}", self.what);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The last answer that came after `from`, in seconds after it; zero when there was none.
    pub fn closed_after(&mut self, from: f64) -> f64 {
        let known = self.ask();
        let times = known["answers"].as_array().expect("answers").iter().filter_map(|p| p[1].as_f64());
        times.fold(0.0, |last, time| (time - from).max(last))
    }

    /// The longest time without an answer between `from` and now.
    pub fn longest_gap(&mut self, from: f64) -> f64 {
        let mut times = self.answers_since(from);
        times.insert(0, from);
        times.push(now());
        times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
