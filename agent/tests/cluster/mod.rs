//! A cluster for a test: a lab's two nodes, whose agents follow a real API server that runs on the wire between them.
//!
//! The test is the kubelet: it makes Pods with `nodeName`, has the real CNI plug-in join them, and writes their addresses to their status.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

mod stream;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::apiserver::{self, ApiServer};
use super::common::{self, Lab, within};
use super::crds;
pub use stream::{Stream, in_netns};

/// Names of the nodes.
pub const NODES: [&str; 2] = ["node1", "node2"];

/// How long to wait for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where pods of the tests are.
pub const PODS: &str = "/api/v1/namespaces/shop/pods";

/// Where policies of the tests are.
pub const POLICIES: &str = "/apis/projectcalico.org/v3/namespaces/shop/networkpolicies";

/// Port of the first stream.
pub const PORT: u16 = 7000;

/// A policy that lets those of `selector` reach pods with `app == 'server'`, and nobody else.
pub fn admit(selector: &str) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": { "name": "server", "namespace": "shop" },
        "spec": {
            "selector": "app == 'server'", "types": ["Ingress"],
            "ingress": [{ "action": "Allow", "source": { "selector": selector } }],
        },
    })
}

/// Says why a test cannot run here: no lab can be made, one of `programs` is not installed, or there is no API server.
pub fn skipped(name: &str, programs: &[&str]) -> bool {
    common::skipped(name, programs) || apiserver::skipped(name)
}

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
            assert!(within(30, gone), "{node}: the agent does not end");
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
            assert!(within(60, || cluster.is_ready(node)), "{node} is not ready: {}", cluster.log(node));
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

    /// Process id of the agent of `node`.
    pub fn pid(&self, node: &str) -> u32 {
        self.agents[node].id()
    }

    /// How many files the agent of `node` has open.
    pub fn open_files(&self, node: &str) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid(node))).expect("the agent runs").count()
    }

    /// Requests that the agent of `node` made of the server so far, by verb.
    pub fn requests(&self, node: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        let status = self.lab.agent_status(node);
        for request in status["source"]["requests"].as_array().into_iter().flatten() {
            let verb = request["verb"].as_str().expect("a verb").to_owned();
            *sums.entry(verb).or_default() += request["count"].as_u64().expect("a number");
        }
        sums
    }

    /// Lists after the first that the agent of `node` asked for, by resource.
    pub fn relists(&self, node: &str) -> BTreeMap<String, u64> {
        serde_json::from_value(self.lab.agent_status(node)["source"]["relists"].clone()).expect("numbers")
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
        Stream::start(&from.netns, &to.netns, format!("{}:{port}", to.address).parse().expect("an address"))
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
        self.done.recv_timeout(PATIENCE).expect("an answer")
    }
}
