//! A lab for a test: two nodes with real agents, taken down when the test ends, however it ends.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The addresses of the machine behind node1, see [`Lab::third_network`].
pub const STRANGER: [&str; 2] = ["192.0.2.2", "2001:db8:7::2"];

/// Two pods on node1, `shop/web` and `shop/db`, and `shop/far` on node2.
pub const THREE_PODS: &str = "
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
metadata: {name: far, namespace: shop, labels: {app: far}}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
";

/// Says why a test cannot run here: no root, no delegate for addresses, or one of `programs` is not installed.
pub fn skipped(name: &str, programs: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: needs root, to make network namespaces");
        return true;
    }
    if !Path::new("/usr/lib/cni/host-local").exists() {
        println!("SKIPPED {name}: needs /usr/lib/cni/host-local (package containernetworking-plugins)");
        return true;
    }
    for program in programs.iter().chain(&["ip", "ping"]) {
        if which(program).is_none() {
            println!("SKIPPED {name}: needs the program {program}");
            return true;
        }
    }
    false
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let system = ["/usr/sbin", "/usr/bin", "/sbin"].map(PathBuf::from);
    system
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(program))
        .find(|p| p.is_file())
}

/// A process inside the lab, ended when the test lets go of it.
pub struct Running(Child);

impl Running {
    /// What it prints; the first caller has it.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lab of its own.
pub struct Lab {
    /// Its name.
    pub name: String,
    /// Folder of everything that the test writes.
    pub directory: PathBuf,
    status: Value,
    extra: Vec<String>,
}

impl Lab {
    /// Brings up two nodes with the pods of `manifests`, and waits until every pod answers another.
    pub fn up(mark: &str, manifests: &str) -> Self {
        Self::up_with(mark, manifests, &[])
    }

    /// As [`Lab::up`], with further arguments for every agent.
    pub fn up_with(mark: &str, manifests: &str, agent_args: &[&str]) -> Self {
        Self::up_from(mark, &[("pods.yaml", manifests)], agent_args)
    }

    /// As [`Lab::up_with`], from several manifests, each with its file's name.
    pub fn up_from(mark: &str, manifests: &[(&str, &str)], agent_args: &[&str]) -> Self {
        let name = format!("x{}{mark}", std::process::id());
        let directory = std::env::temp_dir().join(format!("mgx{name}"));
        fs::create_dir_all(directory.join("manifests")).expect("temporary directory");
        for (file, text) in manifests {
            fs::write(directory.join("manifests").join(file), text).expect("manifests");
        }
        let mut lab = Self { name, directory, status: Value::Null, extra: Vec::new() };
        let manifests = lab.directory.join("manifests");
        let agent_args = agent_args.iter().map(|arg| format!("--agent-arg={arg}"));
        let output = lab
            .call("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()])
            .args(agent_args)
            .output()
            .expect("run");
        assert!(output.status.success(), "up: {}", String::from_utf8_lossy(&output.stderr));
        let output = lab.call("status", &["-o", "json"]).output().expect("run");
        lab.status = serde_json::from_slice(&output.stdout).expect("JSON");
        lab
    }

    /// `margay lab COMMAND` about this lab.
    pub fn call(&self, command: &str, rest: &[&str]) -> Command {
        let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
        call.args(["lab", command, "--name", &self.name, "--labs-dir"])
            .arg(self.directory.join("labs"))
            .args(rest);
        call
    }

    /// A command inside `place`: a node (`node1`), a pod (`shop/web`), or a namespace made by [`Lab::namespace`].
    pub fn command(&self, place: &str, command: &[&str]) -> Command {
        if self.extra.iter().any(|name| name == place) {
            let mut call = Command::new("ip");
            call.args(["netns", "exec", place]).args(command);
            return call;
        }
        let mut rest = if place.contains('/') { vec![place] } else { vec!["--node", place] };
        rest.push("--");
        rest.extend(command);
        self.call("exec", &rest)
    }

    /// Runs a command inside `place` to its end.
    pub fn exec(&self, place: &str, command: &[&str]) -> Output {
        self.command(place, command).output().expect("run")
    }

    /// Runs a command inside `place` that must succeed, and returns what it says.
    pub fn must(&self, place: &str, command: &[&str]) -> String {
        let output = self.exec(place, command);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{place}: {command:?}: {out}{err}{}", self.diagnosis());
        out.into_owned()
    }

    /// Starts a command inside `place`.
    pub fn start(&self, place: &str, command: &[&str]) -> Running {
        let mut call = self.command(place, command);
        Running(
            call.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start"),
        )
    }

    /// Starts a web server inside `place`, on both families.
    pub fn serve(&self, place: &str, port: u16) -> Running {
        let folder = self.directory.join("www");
        fs::create_dir_all(&folder).expect("folder");
        fs::write(folder.join("hello"), "hello\n").expect("page");
        let (port_text, folder) = (port.to_string(), folder.to_string_lossy().into_owned());
        let python = which("python3").expect("python3");
        let python = python.to_string_lossy();
        let running = self.start(
            place,
            &[&python, "-m", "http.server", &port_text, "--bind", "::", "--directory", &folder],
        );
        let listening = || {
            let sockets = self.must(place, &["cat", "/proc/net/tcp6"]);
            sockets.contains(&format!(":{port:04X} 00000000000000000000000000000000:0000 0A"))
        };
        assert!(within(10, listening), "the web server in {place} does not start");
        running
    }

    /// Whether `place` gets the page of the server at `address`.
    pub fn fetches(&self, place: &str, address: &str, port: u16) -> bool {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("http://{host}:{port}/hello");
        let output = self.exec(place, &["curl", "-g", "-s", "--noproxy", "*", "--max-time", "0.7", &url]);
        output.stdout == b"hello\n"
    }

    /// Whether one ping from `place` is answered.
    pub fn pings(&self, place: &str, address: &str) -> bool {
        self.exec(place, &["ping", "-n", "-c", "1", "-W", "1", address]).status.success()
    }

    /// Largest packet that a pod or node sends to another node: what its default route says, or else its interface.
    pub fn mtu_beyond(&self, place: &str) -> u64 {
        let said = |command: &[&str]| {
            let text = self.must(place, command);
            let mut words = text.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
            words.next().and_then(|word| word.parse().ok())
        };
        said(&["ip", "route", "show", "default"])
            .or_else(|| said(&["ip", "-o", "link", "show", "eth0"]))
            .expect("an MTU")
    }

    /// Name of the device at a node that a pod's interface leads to.
    pub fn device_of(&self, node: &str, pod: &str) -> String {
        let link = self.must(pod, &["ip", "-o", "link", "show", "eth0"]);
        let index = link.split("eth0@if").nth(1).and_then(|rest| rest.split(':').next()).expect("a veth");
        let links = self.must(node, &["ip", "-o", "link"]);
        let line = links.lines().find(|line| line.split(':').next() == Some(index)).expect("its other end");
        let name = line.split(": ").nth(1).and_then(|name| name.split('@').next()).expect("a name");
        name.to_owned()
    }

    /// IPv4 and IPv6 address of a pod or node.
    pub fn addresses(&self, of: &str) -> [String; 2] {
        let lists = [&self.status["pods"], &self.status["nodes"]];
        let all = lists.iter().flat_map(|list| list.as_array().expect("list"));
        let found = all
            .filter(|entry| entry["name"] == of)
            .flat_map(|entry| entry["addresses"].as_array().expect("list"));
        let texts: Vec<String> = found.map(|a| a.as_str().expect("text").to_owned()).collect();
        texts.try_into().expect("an address of each family")
    }

    /// Process id of a node's agent.
    pub fn agent(&self, node: &str) -> i64 {
        let nodes = self.status["nodes"].as_array().expect("nodes").iter();
        nodes.filter(|n| n["name"] == node).find_map(|n| n["agent"]["pid"].as_i64()).expect("pid")
    }

    /// Process id of a node's agent as it is now, also after another one began.
    pub fn agent_now(&self, node: &str) -> i64 {
        let output = self.call("status", &["-o", "json"]).output().expect("run");
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        nodes.filter(|n| n["name"] == node).find_map(|n| n["agent"]["pid"].as_i64()).expect("pid")
    }

    /// Whether nobody answers any more at a node's admin socket.
    pub fn agent_is_gone(&self, node: &str) -> bool {
        let socket =
            self.directory.join("labs").join(&self.name).join("nodes").join(node).join("run/admin.sock");
        std::os::unix::net::UnixStream::connect(socket).is_err()
    }

    /// The network namespace of a node.
    pub fn netns(&self, node: &str) -> String {
        format!("mgy-{}-{node}", self.name)
    }

    /// Network namespace of the wire between the nodes.
    pub fn wire(&mut self) -> String {
        let name = self.netns("wire");
        if !self.extra.contains(&name) {
            self.extra.push(name.clone());
        }
        name
    }

    /// Makes a namespace outside the cluster; it goes when the lab goes.
    pub fn namespace(&mut self, short: &str) -> String {
        let name = format!("{}-{short}", self.name);
        let made = Command::new("ip").args(["netns", "add", &name]).status().expect("ip");
        assert!(made.success(), "ip netns add {name}");
        self.extra.push(name.clone());
        name
    }

    /// `ip -n NAMESPACE …` with the arguments in one text.
    pub fn ip(&self, netns: &str, arguments: &str) {
        let output =
            Command::new("ip").args(["-n", netns]).args(arguments.split_whitespace()).output().expect("ip");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Joins a machine of another network to node1, which is its router. Returns its namespace; its addresses are [`STRANGER`].
    pub fn third_network(&mut self) -> String {
        let stranger = self.namespace("ext");
        let node = self.netns("node1");
        self.ip(&node, &format!("link add ext0 type veth peer name eth0 netns {stranger}"));
        self.ip(&node, "addr add 192.0.2.1/24 dev ext0");
        self.ip(&node, "addr add 2001:db8:7::1/64 dev ext0 nodad");
        self.ip(&node, "link set ext0 up");
        self.ip(&stranger, "link set lo up");
        self.ip(&stranger, "addr add 192.0.2.2/24 dev eth0");
        self.ip(&stranger, "addr add 2001:db8:7::2/64 dev eth0 nodad");
        self.ip(&stranger, "link set eth0 up");
        self.ip(&stranger, "route add default via 192.0.2.1");
        self.ip(&stranger, "-6 route add default via 2001:db8:7::1");
        stranger
    }

    /// Sets rp_filter of every device of both nodes.
    pub fn set_rp_filter(&self, value: u8) {
        let script = format!("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} > $f; done");
        for node in ["node1", "node2"] {
            self.must(node, &["sh", "-c", &script]);
        }
    }

    /// Writes a policy among the manifests.
    pub fn apply(&self, file: &str, text: &str) {
        fs::write(self.directory.join("manifests").join(file), text).expect("policy");
    }

    /// Takes a policy away.
    pub fn withdraw(&self, file: &str) {
        fs::remove_file(self.directory.join("manifests").join(file)).expect("policy");
    }

    /// What `margay status` of a node's agent says.
    pub fn agent_status(&self, node: &str) -> Value {
        let socket =
            self.directory.join("labs").join(&self.name).join("nodes").join(node).join("run/admin.sock");
        let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
        let output = call.args(["status", "-o", "json", "--socket"]).arg(socket).output().expect("run");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("status of {node}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// What `margay release` says to a node's agent: exit code, and words.
    pub fn release(&self, node: &str, what: &str) -> (Option<i32>, String) {
        let socket =
            self.directory.join("labs").join(&self.name).join("nodes").join(node).join("run/admin.sock");
        let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
        let output = call.args(["release", what, "--socket"]).arg(socket).output().expect("run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Drops of a node by `reason`.
    pub fn drops(&self, node: &str, reason: &str) -> u64 {
        self.agent_status(node)["counters"]["drops"][reason]
            .as_u64()
            .unwrap_or_else(|| panic!("no reason {reason}"))
    }

    /// Asserts that every packet that a node received has exactly one ending.
    pub fn books_balance(&self) {
        for node in ["node1", "node2"] {
            let counters = self.agent_status(node)["counters"].clone();
            let number = |value: &Value| value.as_u64().expect("number");
            let drops: u64 = counters["drops"].as_object().expect("drops").values().map(number).sum();
            let endings: u64 =
                ["forwarded", "answered", "messages", "held"].iter().map(|k| number(&counters[*k])).sum();
            let begun = number(&counters["received"]) + number(&counters["made"]);
            assert_eq!(begun, endings + drops, "{node}: {counters:#}");
        }
    }

    /// Everything but zeros that both agents count, and the end of their logs: for the message of a failed test.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for node in ["node1", "node2"] {
            let counters = self.agent_status(node)["counters"].clone();
            let drops = counters["drops"].as_object().cloned().unwrap_or_default();
            let counted: Vec<_> =
                drops.iter().filter(|(_, n)| **n != 0).map(|(k, n)| format!("{k} {n}")).collect();
            let log = self.directory.join("labs").join(&self.name).join(format!("nodes/{node}.log"));
            let log = fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            text += &format!(
                "\n{node}: received {} forwarded {} drops {counted:?}\n{}",
                counters["received"],
                counters["forwarded"],
                tail.join("\n")
            );
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.extra.iter().filter(|name| !name.starts_with("mgy-")) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
        let _ = self.call("down", &[]).output();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Asks until the answer is yes, for at most so many seconds.
pub fn within(seconds: u64, mut question: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if question() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
