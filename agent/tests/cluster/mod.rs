//! A cluster for a test: a lab's two nodes, whose agents follow a real API server that runs on the wire between them.
//!
//! The test is the kubelet: it makes Pods with `nodeName`, has the real CNI plug-in join them, and writes their addresses to their status.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::apiserver::ApiServer;
use super::common::{Lab, within};
use super::crds;

/// Names of the nodes.
pub const NODES: [&str; 2] = ["node1", "node2"];

/// Where pods of the tests are.
pub const PODS: &str = "/api/v1/namespaces/shop/pods";

/// A pod that was joined.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its network namespace.
    pub netns: String,
    /// Its node.
    pub node: String,
    /// Its container id.
    pub container: String,
    /// `metadata.uid`.
    pub uid: String,
    /// When its object was made.
    pub created: String,
    /// IPv4 address.
    pub address: String,
    /// All its addresses.
    pub addresses: Vec<String>,
}

impl Joined {
    /// What a kubelet writes about it.
    pub fn status(&self) -> Value {
        let list: Vec<Value> = self.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({ "status": { "phase": "Running", "podIP": self.address, "podIPs": list, "startTime": self.created } })
    }
}

/// The cluster.
pub struct Cluster {
    /// The API server.
    pub api: ApiServer,
    /// The nodes.
    pub lab: Lab,
    agents: BTreeMap<String, Child>,
    /// Kubeconfig of the agents.
    pub kubeconfig: PathBuf,
    containers: u32,
}

impl Cluster {
    /// Brings up two nodes and an API server; `rights` makes the kubeconfig of the agents.
    pub fn up_with(mark: &str, rights: impl FnOnce(&ApiServer) -> PathBuf) -> Self {
        // The lab makes nodes and the wire; its own agents only show that they work.
        let nothing = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";
        let mut lab = Lab::up(mark, nothing);
        for node in NODES {
            let agent = Pid::from_raw(i32::try_from(lab.agent(node)).expect("a process id"));
            kill(agent, Signal::SIGTERM).expect("end the agent");
            let gone = || {
                let status = fs::read_to_string(format!("/proc/{agent}/stat")).unwrap_or_default();
                status.is_empty() || status.contains(") Z ")
            };
            assert!(within(10, gone), "{node}: the agent does not end");
        }
        let wire = lab.wire();
        let node: IpAddr = lab.addresses("node1")[0].parse().expect("an address");
        let IpAddr::V4(v4) = node else { panic!("{node}") };
        let [a, b, c, _] = v4.octets();
        let server = IpAddr::from([a, b, c, 250]);
        lab.ip(&wire, "link set lo up");
        lab.ip(&wire, &format!("addr add {server}/24 dev wire"));
        let api = ApiServer::start_in(&wire, server);
        crds::install(&api, &["projectcalico.org"]);
        api.create(
            "/api/v1/namespaces",
            &json!({ "metadata": { "name": "shop", "labels": { "team": "shop" } } }),
        );
        for (number, node) in NODES.iter().enumerate() {
            let [v4, v6] = lab.addresses(node);
            let (pods4, pods6) = (format!("10.99.{number}.0/24"), format!("fd99:0:0:{number}::/64"));
            api.create(
                "/api/v1/nodes",
                &json!({
                    "metadata": { "name": node }, "spec": { "podCIDR": pods4, "podCIDRs": [pods4, pods6] },
                }),
            );
            api.patch(&format!("/api/v1/nodes/{node}/status"), &json!({
                "status": { "addresses": [{ "type": "InternalIP", "address": v4 }, { "type": "InternalIP", "address": v6 }] },
            }));
        }
        let kubeconfig = rights(&api);
        let mut cluster = Self { api, lab, agents: BTreeMap::new(), kubeconfig, containers: 0 };
        NODES.iter().for_each(|node| cluster.start_agent(node));
        for node in NODES {
            assert!(within(20, || cluster.is_ready(node)), "{node} is not ready: {}", cluster.log(node));
        }
        cluster
    }

    fn folder(&self, node: &str) -> PathBuf {
        self.lab.directory.join("labs").join(&self.lab.name).join("nodes").join(node)
    }

    /// What the agent of `node` wrote.
    pub fn log(&self, node: &str) -> String {
        fs::read_to_string(self.lab.directory.join(format!("{node}.log"))).unwrap_or_default()
    }

    /// Takes away what the agent of `node` knows of the cluster.
    pub fn forget_picture(&self, node: &str) {
        fs::remove_dir_all(self.folder(node).join("cluster")).expect("a picture");
    }

    /// Whether the agent of `node` can be asked.
    pub fn has_socket(&self, node: &str) -> bool {
        let socket = self.folder(node).join("run/admin.sock");
        std::os::unix::net::UnixStream::connect(socket).is_ok()
    }

    /// Whether the agent of `node` serves.
    pub fn is_ready(&self, node: &str) -> bool {
        self.has_socket(node) && self.lab.agent_status(node)["ready"] == true
    }

    fn inside(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // Not `ip netns exec`: that has mounts of its own, and pinned programs would go with them.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program);
        command
    }

    /// What `/readyz` of a node's agent answers: the code and the text.
    pub fn readyz(&self, node: &str) -> (String, String) {
        let netns = self.lab.netns(node);
        let output = Self::inside(&netns, "curl")
            .args([
                "-s",
                "--noproxy",
                "*",
                "--max-time",
                "2",
                "-w",
                "\n%{http_code}",
                "http://127.0.0.1:9100/readyz",
            ])
            .output()
            .expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or(("", ""));
        (code.to_owned(), body.to_owned())
    }

    /// Starts the agent of `node`.
    pub fn start_agent(&mut self, node: &str) {
        let log =
            File::options().create(true).append(true).open(self.lab.directory.join(format!("{node}.log")));
        let log = log.expect("log");
        let errors = log.try_clone().expect("log");
        let folder = self.folder(node);
        let mut command = Self::inside(&self.lab.netns(node), env!("CARGO_BIN_EXE_margay"));
        command
            .args([
                "agent",
                "--node",
                node,
                "--uplink",
                "eth0",
                "--endpoint-to-host",
                "Accept",
                "--cpu",
                "none",
            ])
            .args(["--datastore", "kubernetes", "--admin-listen", "127.0.0.1:9100", "--kubeconfig"])
            .arg(&self.kubeconfig)
            .arg("--state-dir")
            .arg(&folder)
            .arg("--run-dir")
            .arg(folder.join("run"))
            .env("RUST_LOG", "info,margay_control=debug")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let agent = command.spawn().expect("start the agent");
        self.agents.insert(node.to_owned(), agent);
    }

    /// Ends the agent of `node`, politely.
    pub fn stop_agent(&mut self, node: &str) {
        if let Some(mut agent) = self.agents.remove(node) {
            let _ = kill(Pid::from_raw(i32::try_from(agent.id()).expect("a process id")), Signal::SIGTERM);
            let _ = agent.wait();
        }
    }

    /// Makes a Pod, joins it and says so in its status; `address` asks for one.
    pub fn run(&mut self, node: &str, name: &str, labels: &Value, address: Option<&str>) -> Joined {
        let joined = self.join(node, name, labels, address);
        self.tell_status(name, &joined);
        joined
    }

    /// Makes a Pod and joins it; its status says nothing yet.
    pub fn join(&mut self, node: &str, name: &str, labels: &Value, address: Option<&str>) -> Joined {
        let made = self.api.create(PODS, &json!({
            "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": node, "serviceAccountName": "default", "containers": [{ "name": "c", "image": "none" }] },
        }));
        let uid = made["metadata"]["uid"].as_str().expect("a uid").to_owned();
        let created = made["metadata"]["creationTimestamp"].as_str().expect("a time").to_owned();
        self.containers += 1;
        let short = format!("p{}", self.containers);
        let netns = self.lab.namespace(&short);
        let container = format!("{}{short}", self.lab.name);
        let node = node.to_owned();
        let mut joined =
            Joined { netns, node, container, uid, created, address: String::new(), addresses: Vec::new() };
        let answer = self.cni("ADD", name, &joined, address);
        joined.addresses = answer["ips"]
            .as_array()
            .unwrap_or_else(|| panic!("{name}: {answer}\n{}", self.log(&joined.node)))
            .iter()
            .map(|ip| {
                ip["address"].as_str().expect("an address").split('/').next().expect("an address").to_owned()
            })
            .collect();
        joined.address.clone_from(&joined.addresses[0]);
        joined
    }

    /// Writes a pod's addresses to its status, as a kubelet does.
    pub fn tell_status(&self, name: &str, joined: &Joined) {
        self.api.patch(&format!("{PODS}/{name}/status"), &joined.status());
    }

    /// Takes a pod away: CNI DEL, its namespace, and (unless `object_stays`) its object.
    pub fn end(&mut self, name: &str, joined: &Joined, object_stays: bool) {
        self.cni("DEL", name, joined, None);
        if !object_stays {
            self.api.delete(&format!("{PODS}/{name}"));
        }
    }

    fn cni(&self, command: &str, name: &str, pod: &Joined, address: Option<&str>) -> Value {
        let folder = self.folder(&pod.node);
        let number = NODES.iter().position(|node| *node == pod.node).expect("a node");
        let ranges = [format!("10.99.{number}.0/24"), format!("fd99:0:0:{number}::/64")];
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "cluster", "type": "margay", "agentSocket": folder.join("run/agent.sock"),
            "ipam": {
                "type": "host-local", "dataDir": folder.join("ipam"),
                "ranges": ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect::<Vec<_>>(),
            },
        });
        if let Some(address) = address {
            conf["args"] = json!({ "cni": { "ips": [address] } });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut child = Self::inside(&self.lab.netns(&pod.node), env!("CARGO_BIN_EXE_margay"))
                .arg("cni")
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", &pod.container)
                .env("CNI_NETNS", Path::new("/run/netns").join(&pod.netns))
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", "/usr/lib/cni")
                .env(
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID={}",
                        pod.uid
                    ),
                )
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("run the plug-in");
            child.stdin.take().expect("input").write_all(conf.to_string().as_bytes()).expect("configuration");
            let output = child.wait_with_output().expect("the plug-in ends");
            let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
            if output.status.success() || answer["code"] != 11 || Instant::now() > deadline {
                return answer;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends numbered datagrams from one pod to another, one a millisecond, until it is dropped.
    pub fn stream(&self, from: &Joined, to: &Joined, port: u16) -> Stream {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let last = Arc::new(AtomicU64::new(0));
        let count = Arc::new(AtomicU64::new(0));
        let target: SocketAddr = format!("{}:{port}", to.address).parse().expect("an address");
        let (ready, is_ready) = mpsc::channel();
        let receiver = in_netns(&to.netns, {
            let (stop, last, count, ready) =
                (Arc::clone(&stop), Arc::clone(&last), Arc::clone(&count), ready.clone());
            move || {
                let socket = UdpSocket::bind(("0.0.0.0", port)).expect("bind");
                socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
                ready.send(()).expect("test");
                let mut buffer = [0; 16];
                while !stop.load(Ordering::Relaxed) {
                    if socket.recv_from(&mut buffer).is_ok() {
                        let now = u64::try_from(begin.elapsed().as_micros()).expect("short");
                        last.store(now.max(1), Ordering::Release);
                        count.fetch_add(1, Ordering::AcqRel);
                    }
                }
            }
        });
        let sender = in_netns(&from.netns, {
            let stop = Arc::clone(&stop);
            move || {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("bind");
                ready.send(()).expect("test");
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.send_to(b"margay", target);
                    thread::sleep(Duration::from_micros(900));
                }
            }
        });
        (0..2).for_each(|_| is_ready.recv_timeout(Duration::from_secs(5)).expect("sockets"));
        Stream { stop, begin, last, count, threads: vec![receiver, sender] }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        NODES.iter().for_each(|node| self.stop_agent(node));
        if thread::panicking() {
            for node in NODES {
                let log = self.log(node);
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!("== {node}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

/// Runs `work` on a thread inside a network namespace.
pub fn in_netns(netns: &str, work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    let file = File::open(Path::new("/run/netns").join(netns)).expect("namespace");
    thread::spawn(move || {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter");
        work();
    })
}

/// Datagrams on their way.
pub struct Stream {
    stop: Arc<AtomicBool>,
    begin: Instant,
    last: Arc<AtomicU64>,
    count: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Stream {
    /// How many arrived.
    pub fn arrived(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn last(&self) -> Instant {
        self.begin + Duration::from_micros(self.last.load(Ordering::Acquire))
    }

    /// Waits until datagrams arrive; returns when the first did.
    pub fn opened(&self) -> Option<Instant> {
        let (before, deadline) = (self.arrived(), Instant::now() + Duration::from_secs(10));
        while self.arrived() == before {
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_micros(200));
        }
        Some(Instant::now())
    }

    /// Waits until nothing has arrived for `silence`; returns when the last did.
    pub fn closed(&self, silence: Duration) -> Option<Instant> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let began = Instant::now();
        while self.last().max(began).elapsed() < silence {
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Some(self.last())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// One who writes to the API server over a connection that stays open, so that a write takes as long as a write takes.
pub struct Writer {
    orders: mpsc::Sender<(String, Value)>,
    done: mpsc::Receiver<(Instant, Instant)>,
}

impl Writer {
    /// Starts one inside `netns`.
    pub fn start(netns: &str, kubeconfig: PathBuf) -> Self {
        let (orders, hear) = mpsc::channel::<(String, Value)>();
        let (tell, done) = mpsc::channel();
        in_netns(netns, move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                use kube::config::{Config, KubeConfigOptions, Kubeconfig};
                let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("kubeconfig");
                let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .expect("config");
                let client = kube::Client::try_from(config).expect("client");
                while let Ok((path, patch)) = hear.recv() {
                    let request = http::Request::patch(path)
                        .header("Content-Type", "application/merge-patch+json")
                        .body(patch.to_string().into_bytes())
                        .expect("request");
                    let before = Instant::now();
                    client.request_text(request).await.expect("the write is taken");
                    if tell.send((before, Instant::now())).is_err() {
                        return;
                    }
                }
            });
        });
        Self { orders, done }
    }

    /// Patches an object; returns when the request began and when its answer was there.
    pub fn patch(&self, path: &str, patch: &Value) -> (Instant, Instant) {
        self.orders.send((path.to_owned(), patch.clone())).expect("writer");
        self.done.recv_timeout(Duration::from_secs(10)).expect("an answer")
    }
}
