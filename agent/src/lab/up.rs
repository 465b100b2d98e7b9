//! Closes the gap between what the manifests ask for and what is there: wire, nodes, agents, then pods.
//!
//! An agent must know a pod before the pod is joined, and its address only exists afterwards. So each pod has a partial Pod document that
//! is merged over the user's: first with its node and uid, and after CNI ADD with its addresses as well. In the end every agent has read
//! of all of them ([`known`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::LabError;
use super::journal::{Entry, Journal};
use super::known;
use super::plan::{Wanted, WantedNode, netns_name, node_manifest};
use super::process::{self, Process};
use super::state::{LabState, NodeState, Paths, PodState, replace};
use super::uplink::UplinkKind;
use super::wire::{self, Place, WireKind};
use crate::endpoints::protocol::ask;
use crate::endpoints::{Reply, Request};
use crate::net::netns::{self, NetNs};
use crate::net::{NetError, Netlink, ethtool, sysctl};

/// Where CNI plug-ins are looked for unless `CNI_PATH` says otherwise.
const CNI_PATH: &str = "/usr/lib/cni:/opt/cni/bin";

/// How many pods are joined at once.
const AT_ONCE: usize = 4;

/// Lines of an agent's log that are shown when it fails.
const TAIL: usize = 20;

/// What `up` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes.
    pub nodes: Option<usize>,
    /// MTU between them.
    pub wire_mtu: u32,
    /// What joins the nodes.
    pub wire: WireKind,
    /// What leads from a node to the others.
    pub uplink: UplinkKind,
    /// How long to wait for an agent or a pod.
    pub timeout: Duration,
    /// Further arguments of every agent.
    pub agent_args: Vec<OsString>,
    /// The user's manifests.
    pub manifests: PathBuf,
}

/// Makes the lab, or brings it up to date.
pub fn up(paths: &Paths, wanted: &Wanted, options: &Options) -> Result<(), LabError> {
    let nodes = wanted.all_nodes(options.nodes)?;
    let mut journal = Journal::open(paths)?;
    let earlier = LabState::load(paths)?;
    let mut state = match earlier {
        Some(state) => {
            let same = state.manifests == options.manifests
                && state.nodes.keys().eq(nodes.keys())
                && nodes.iter().all(|(name, (node, _))| state.nodes[name].addresses == node.addresses);
            if !same {
                return Err(LabError::Input(format!(
                    "the lab {} runs with {} and the nodes {}; `margay lab down` first, or use another --name",
                    paths.lab,
                    state.manifests.display(),
                    state.nodes.keys().cloned().collect::<Vec<_>>().join(", ")
                )));
            }
            state
        }
        None => make_nodes(paths, &nodes, options, &mut journal)?,
    };
    place_pods(paths, wanted, &mut state)?;
    start_agents(paths, &mut state, options, &mut journal)?;
    let state = join_pods(paths, wanted, state, options, &mut journal)?;
    known::everywhere(paths, &state, options.timeout)
}

/// Makes the wire, and each node with its way to the others.
fn make_nodes(
    paths: &Paths,
    nodes: &BTreeMap<String, (WantedNode, bool)>,
    options: &Options,
    journal: &mut Journal,
) -> Result<LabState, LabError> {
    for directory in [paths.objects(), paths.overlay(), paths.directory.join("nodes")] {
        fs::create_dir_all(&directory).map_err(|e| LabError::file("make", directory, e))?;
    }
    let mut make = |name: String| -> Result<NetNs, LabError> {
        journal.note(&Entry::Netns { name: name.clone() })?;
        Ok(netns::create(&name)?)
    };
    let has_netns = options.wire.has_netns(nodes.len())?;
    let wire = has_netns.then(|| make(netns_name(&paths.lab, &["wire"]))).transpose()?;
    let mut places = Vec::new();
    for name in nodes.keys() {
        let netns = make(netns_name(&paths.lab, &[name]))?;
        netns.within(|| -> Result<(), NetError> {
            sysctl::set(&["ipv4", "ip_forward"], "1")?;
            for scope in ["all", "default"] {
                sysctl::set_if_present(&["ipv6", "conf", scope, "forwarding"], "1")?;
                sysctl::set_if_present(&["ipv6", "conf", scope, "accept_dad"], "0")?;
            }
            Ok(())
        })??;
        places.push((name, netns));
    }
    let on_it: Vec<Place<'_>> = places.iter().map(|(name, netns)| Place { name, netns }).collect();
    wire::lay(&paths.lab, wire.as_ref(), &on_it, options.uplink, options.wire_mtu)?;

    let mut made = BTreeMap::new();
    let everybody: Vec<IpAddr> = nodes.values().flat_map(|(node, _)| node.addresses.clone()).collect();
    for ((name, (node, made_up)), (_, netns)) in nodes.iter().zip(&places) {
        netns.within(|| -> Result<(), NetError> {
            for nic in options.uplink.nics() {
                // A wire carries complete checksums, and so does this one.
                ethtool::set_features(nic, &[("tx-checksum-ip-generic", false)])?;
            }
            let mut netlink = Netlink::open()?;
            let index = options.uplink.make(&mut netlink)?;
            let own: Vec<IpNet> = node.addresses.iter().map(|a| on_wire(*a)).collect();
            for address in &own {
                netlink.add_address(index, *address)?;
            }
            netlink.set_up(index, true)?;
            // Nodes of the manifests may have addresses that do not share a prefix.
            for other in everybody.iter().filter(|o| !own.iter().any(|net| net.contains(*o))) {
                netlink.add_route(IpNet::from(*other), None, index)?;
            }
            Ok(())
        })??;
        if *made_up {
            replace(&paths.objects().join(format!("node-{name}.json")), &node_manifest(name, node))?;
        }
        let (addresses, pod_cidrs) = (node.addresses.clone(), node.pod_cidrs.clone());
        let netns = netns_name(&paths.lab, &[name]);
        let uplink = options.uplink.device().to_owned();
        made.insert(name.clone(), NodeState { netns, addresses, pod_cidrs, uplink, agent: None });
    }
    let state = LabState { manifests: options.manifests.clone(), nodes: made, pods: BTreeMap::new() };
    state.save(paths)?;
    Ok(state)
}

fn on_wire(address: IpAddr) -> IpNet {
    IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).unwrap_or(IpNet::from(address))
}

/// Decides where each new pod lives, says so in the overlay, and releases those that are wanted no more.
fn place_pods(paths: &Paths, wanted: &Wanted, state: &mut LabState) -> Result<(), LabError> {
    let names: Vec<String> = state.nodes.keys().cloned().collect();
    let already = state.pods.iter().map(|(name, pod)| (name.clone(), pod.node.clone())).collect();
    let placement = wanted.placement(&names, &already)?;
    let stale: Vec<String> = state
        .pods
        .iter()
        .filter(|(name, pod)| match wanted.pods.get(*name) {
            None => true,
            Some(want) => {
                !pod.joined
                    || pod.node != placement[*name]
                    || pod.host_network != want.host_network
                    || want.uid.as_ref().is_some_and(|uid| *uid != pod.uid)
            }
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in stale {
        println!("pod {name}: released");
        let pod = state.pods[&name].clone();
        release(paths, state, &name, &pod)?;
        state.pods.remove(&name);
        state.save(paths)?;
    }
    for (name, want) in &wanted.pods {
        if state.pods.contains_key(name) {
            continue;
        }
        let uid = match &want.uid {
            Some(uid) => uid.clone(),
            None => fs::read_to_string("/proc/sys/kernel/random/uuid")
                .map(|uid| uid.trim().to_owned())
                .map_err(|e| LabError::file("read", "/proc/sys/kernel/random/uuid", e))?,
        };
        let node = placement[name].clone();
        let digest = Sha1::digest(format!("{}/{name}/{uid}", paths.lab));
        let container_id = digest.iter().fold(String::from("lab"), |id, octet| format!("{id}{octet:02x}"));
        let netns = if want.host_network {
            state.nodes[&node].netns.clone()
        } else {
            netns_name(&paths.lab, &name.splitn(2, '/').collect::<Vec<_>>())
        };
        let addresses = if want.host_network { state.nodes[&node].addresses.clone() } else { Vec::new() };
        let (host_network, joined) = (want.host_network, want.host_network);
        let pod = PodState { node, netns, uid, container_id, host_network, addresses, joined };
        write_overlay(paths, state, name, &pod)?;
        state.pods.insert(name.clone(), pod);
    }
    state.save(paths)
}

/// Returns where a pod's partial document is.
fn overlay_file(paths: &Paths, name: &str) -> PathBuf {
    paths.overlay().join(format!("{}.json", name.replace('/', ".")))
}

fn write_overlay(paths: &Paths, state: &LabState, name: &str, pod: &PodState) -> Result<(), LabError> {
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    // What the manifest claims is not so until the pod is joined: null takes it away (RFC 7386).
    let status = if pod.joined {
        json!({
            "phase": "Running",
            "hostIP": state.nodes[&pod.node].addresses.first(),
            "podIP": pod.addresses.first(),
            "podIPs": pod.addresses.iter().map(|a| json!({ "ip": a })).collect::<Vec<_>>(),
        })
    } else {
        json!({ "podIP": null, "podIPs": null })
    };
    let document = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": short, "uid": pod.uid },
        "spec": { "nodeName": pod.node },
        "status": status,
    });
    replace(&overlay_file(paths, name), &document)
}

/// Starts the agents that do not run, and waits until every one can serve.
fn start_agents(
    paths: &Paths,
    state: &mut LabState,
    options: &Options,
    journal: &mut Journal,
) -> Result<(), LabError> {
    let mut children: BTreeMap<String, Child> = BTreeMap::new();
    let names: Vec<String> = state.nodes.keys().cloned().collect();
    for name in &names {
        if state.nodes[name].agent.is_some_and(Process::is_alive) {
            continue;
        }
        journal.note(&Entry::Mounts { below: paths.node(name) })?;
        let child = start_agent(paths, state, name, &options.agent_args)?;
        let process = Process::of(child.id().cast_signed());
        if let Some(process) = process {
            journal.note(&Entry::Process(process))?;
        }
        if let Some(node) = state.nodes.get_mut(name) {
            node.agent = process;
        }
        state.save(paths)?;
        children.insert(name.clone(), child);
    }
    let deadline = Instant::now() + options.timeout;
    for name in &names {
        loop {
            let failed = |what: String| LabError::Agent {
                node: name.clone(),
                what,
                log: paths.log(name),
                tail: tail(&fs::read_to_string(paths.log(name)).unwrap_or_default()),
            };
            if let Some(Ok(Some(status))) = children.get_mut(name).map(Child::try_wait) {
                return Err(failed(format!("has ended ({status})")));
            }
            let Some(trouble) = agent_trouble(paths, name) else { break };
            if Instant::now() > deadline {
                return Err(failed(format!("is not ready after {:?}: {trouble}", options.timeout)));
            }
            thread::sleep(Duration::from_millis(50));
        }
        let node = &state.nodes[name];
        let text: Vec<String> = node.addresses.iter().map(IpAddr::to_string).collect();
        println!("node {name}: ready ({})", text.join(", "));
    }
    Ok(())
}

fn start_agent(paths: &Paths, state: &LabState, name: &str, more: &[OsString]) -> Result<Child, LabError> {
    let directory = paths.node(name);
    fs::create_dir_all(&directory).map_err(|e| LabError::file("make", &directory, e))?;
    let log_path = paths.log(name);
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| LabError::file("open", &log_path, e))?;
    let errors = log.try_clone().map_err(|e| LabError::file("open", &log_path, e))?;
    let binary = own_binary()?;
    let mut command = Command::new(&binary);
    command
        .args([
            "agent",
            "--node",
            name,
            "--uplink",
            &state.nodes[name].uplink,
            "--endpoint-to-host",
            "Accept",
        ])
        // Several agents share this machine: the scheduler places their workers better than any of them could.
        .args(["--cpu", "none"])
        .args(["--admin-listen", "127.0.0.1:9100"])
        .arg("--manifests")
        .arg(&state.manifests)
        .arg("--manifests")
        .arg(paths.objects())
        .arg("--overlay")
        .arg(paths.overlay())
        .arg("--state-dir")
        .arg(&directory)
        .arg("--run-dir")
        .arg(paths.run_dir(name))
        .args(more)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    NetNs::named(&state.nodes[name].netns)?
        .within(move || command.spawn())?
        .map_err(|e| LabError::file("run", binary, e))
}

fn own_binary() -> Result<PathBuf, LabError> {
    std::env::current_exe().map_err(|e| LabError::file("find", "/proc/self/exe", e))
}

/// Says why the agent of `node` cannot serve; `None` when it can.
pub fn agent_trouble(paths: &Paths, node: &str) -> Option<String> {
    match ask(&paths.run_dir(node).join("agent.sock"), &Request::Status, Duration::from_secs(2)) {
        Ok(Reply::Status { not_ready, .. }) => not_ready,
        Ok(Reply::Failed { message, .. }) => Some(message),
        Ok(other) => Some(format!("it answers {other:?}")),
        Err(error) => Some(format!("no answer ({error})")),
    }
}

/// Returns the last lines of a log.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|line| format!("  {line}\n")).collect()
}

/// Joins every pod that is not joined yet, a few at once. Returns the lab with them.
fn join_pods(
    paths: &Paths,
    wanted: &Wanted,
    state: LabState,
    options: &Options,
    journal: &mut Journal,
) -> Result<LabState, LabError> {
    let waiting: Vec<(String, PodState)> = state
        .pods
        .iter()
        .filter(|(_, pod)| !pod.joined)
        .map(|(name, pod)| (name.clone(), pod.clone()))
        .collect();
    for (_, pod) in &waiting {
        journal.note(&Entry::Netns { name: pod.netns.clone() })?;
        netns::create(&pod.netns)?;
    }
    let queue = Mutex::new(waiting.into_iter());
    let shared = Mutex::new((state, None::<LabError>));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((name, mut pod)) = next else { return };
                    let asked = wanted.pods.get(&name).map(|want| want.addresses.clone()).unwrap_or_default();
                    let node = {
                        let guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        if guard.1.is_some() {
                            return;
                        }
                        guard.0.nodes[&pod.node].clone()
                    };
                    let outcome = join(paths, &name, &pod, &node, &asked, options.timeout);
                    let mut guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let recorded = outcome.and_then(|addresses| {
                        let text: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                        println!("pod {name}: on {} ({})", pod.node, text.join(", "));
                        pod.addresses = addresses;
                        pod.joined = true;
                        write_overlay(paths, &guard.0, &name, &pod)?;
                        guard.0.pods.insert(name, pod);
                        guard.0.save(paths)
                    });
                    if let Err(error) = recorded {
                        guard.1 = guard.1.take().or(Some(error));
                    }
                }
            });
        }
    });
    match shared.into_inner().unwrap_or_else(PoisonError::into_inner) {
        (_, Some(error)) => Err(error),
        (state, None) => Ok(state),
    }
}

/// CNI ADD, again while the plug-in says "try again later". Returns the pod's addresses.
fn join(
    paths: &Paths,
    name: &str,
    pod: &PodState,
    node: &NodeState,
    asked: &[IpAddr],
    timeout: Duration,
) -> Result<Vec<IpAddr>, LabError> {
    let deadline = Instant::now() + timeout;
    loop {
        let failed = |reason: String| LabError::Pod { pod: name.to_owned(), command: "ADD", reason };
        let (ok, answer) = cni(paths, "ADD", name, pod, node, asked)?;
        if ok {
            let ips = answer["ips"].as_array().into_iter().flatten();
            return Ok(ips
                .filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok())
                .map(|n| n.addr())
                .collect());
        }
        if answer["code"] != 11 || Instant::now() > deadline {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            return Err(failed(format!("{}: {}", text(&answer["msg"]), text(&answer["details"]))));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Takes one pod away: CNI DEL, whatever still runs in it, its namespace, its partial document.
fn release(paths: &Paths, state: &LabState, name: &str, pod: &PodState) -> Result<(), LabError> {
    if !pod.host_network {
        let (ok, answer) = cni(paths, "DEL", name, pod, &state.nodes[&pod.node], &[])?;
        if !ok {
            let reason = format!("{}: {}", answer["msg"], answer["details"]);
            return Err(LabError::Pod { pod: name.to_owned(), command: "DEL", reason });
        }
        let bound = PathBuf::from(netns::NAMED).join(&pod.netns);
        let inside: BTreeSet<Process> = process::inside([bound.as_path()].into_iter());
        process::end(&inside);
        netns::remove(&pod.netns)?;
    }
    let file = overlay_file(paths, name);
    match fs::remove_file(&file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LabError::file("remove", file, e)),
        _ => Ok(()),
    }
}

/// Runs the CNI plug-in in the node's namespace, as a container runtime would. Returns whether it succeeded, and its answer.
fn cni(
    paths: &Paths,
    command: &str,
    name: &str,
    pod: &PodState,
    node: &NodeState,
    asked: &[IpAddr],
) -> Result<(bool, Value), LabError> {
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    let ranges: Vec<Value> = node.pod_cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let fixed: Vec<&IpAddr> =
        asked.iter().filter(|a| node.pod_cidrs.iter().any(|cidr| cidr.contains(*a))).collect();
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "lab", "type": "margay",
        "agentSocket": paths.run_dir(&pod.node).join("agent.sock"),
        "ipam": { "type": "host-local", "dataDir": paths.node(&pod.node).join("ipam"), "ranges": ranges },
    });
    if !fixed.is_empty() {
        conf["args"] = json!({ "cni": { "ips": fixed } });
    }
    let binary = own_binary()?;
    let mut call = Command::new(&binary);
    call.arg("cni")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", PathBuf::from(netns::NAMED).join(&pod.netns))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", std::env::var_os("CNI_PATH").unwrap_or_else(|| CNI_PATH.into()))
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={short};K8S_POD_UID={}",
                pod.uid
            ),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let output = NetNs::named(&node.netns)?
        .within(move || {
            let mut child = call.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(conf.to_string().as_bytes())?;
            }
            child.wait_with_output()
        })?
        .map_err(|e| LabError::file("run", binary, e))?;
    let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ok((output.status.success(), answer))
}
