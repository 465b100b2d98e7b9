//! Every recipe of `examples/recipes` in a running lab: each pair of pods and nodes tries to reach each other over real AF_XDP sockets, and
//! what arrives is compared with what `margay simulate` says about the same manifests.
//!
//! ```text
//!  policy.yaml ──▶ manifests of the lab ──▶ agents ──▶ real connections ──┐
//!       └────────▶ cluster.yaml + addresses of the lab ──▶ simulate ──────┴─▶ every cell must agree
//! ```
//!
//! Inside each pod and node one prober answers on every port and, told so on its standard input, connects to the others. An answer carries
//! the name of who gave it, so that a packet that reached somebody else is seen too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use margay_policy_engine::decode::split_documents;
use serde_json::{Value, json};

/// The ports that the recipes speak about, and neighbours of a range.
const TCP_PORTS: [u16; 6] = [53, 5432, 8000, 8080, 8081, 9100];
const UDP_PORTS: [u16; 1] = [53];

/// Within how long a change of policy must be in force on every node.
const IN_FORCE: Duration = Duration::from_secs(2);

/// Arguments: JSON of `[name, addresses, tcp ports, udp ports]`. A line in: `[[protocol, address, port], …]`; a line out: one answer for
/// each, in order, null when there was none.
const PROBER: &str = r#"
import errno, json, os, selectors, socket, struct, sys, threading, time

NAME, ADDRESSES, TCP, UDP = json.loads(sys.argv[1])
TIMEOUT, AT_ONCE = 0.5, 64

def family(address):
    return socket.AF_INET6 if ':' in address else socket.AF_INET

def bound(address, port, kind):
    for attempt in range(100):
        try:
            s = socket.socket(family(address), kind)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((address, port))
            s.setblocking(False)
            return s
        except OSError as e:
            if e.errno != errno.EADDRNOTAVAIL:
                raise
            time.sleep(0.05)
    raise SystemExit('%s: %s cannot be bound' % (NAME, address))

def serve():
    selector = selectors.DefaultSelector()
    for address in ADDRESSES:
        for port in TCP:
            s = bound(address, port, socket.SOCK_STREAM)
            s.listen(256)
            selector.register(s, selectors.EVENT_READ, True)
        for port in UDP:
            selector.register(bound(address, port, socket.SOCK_DGRAM), selectors.EVENT_READ, False)
    print('ready', flush=True)
    while True:
        for key, _ in selector.select():
            try:
                if key.data:
                    connection, _ = key.fileobj.accept()
                    connection.send(NAME.encode())
                    connection.close()
                else:
                    _, peer = key.fileobj.recvfrom(64)
                    key.fileobj.sendto(NAME.encode(), peer)
            except OSError:
                pass

RAW = {
    socket.AF_INET: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    socket.AF_INET6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
}
for raw in RAW.values():
    raw.setblocking(False)
IDENT, sequence = os.getpid() & 0xffff, 0

def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def echo(address):
    global sequence
    sequence = (sequence + 1) & 0xffff
    kind = 8 if family(address) == socket.AF_INET else 128
    packet = struct.pack('!BBHHH', kind, 0, 0, IDENT, sequence) + b'margay!!'
    if kind == 8:
        packet = packet[:2] + struct.pack('!H', checksum(packet)) + packet[4:]
    RAW[family(address)].sendto(packet, (address, 0))
    return sequence

def run(probes):
    answers = [None] * len(probes)
    selector, waiting, echoes = selectors.DefaultSelector(), {}, {}
    for raw in RAW.values():
        selector.register(raw, selectors.EVENT_READ, None)
    todo, deadline = list(enumerate(probes)), {}
    todo.reverse()
    def close(s):
        waiting.pop(s)
        selector.unregister(s)
        s.close()
    while todo or deadline:
        while todo and len(deadline) < AT_ONCE:
            number, (protocol, address, port) = todo.pop()
            try:
                if protocol == 'ICMP':
                    echoes[echo(address)] = (number, address)
                else:
                    s = socket.socket(family(address), socket.SOCK_STREAM if protocol == 'TCP' else socket.SOCK_DGRAM)
                    s.setblocking(False)
                    s.connect_ex((address, port))
                    if protocol == 'UDP':
                        s.send(b'?')
                    waiting[s] = number
                    selector.register(s, selectors.EVENT_READ, number)
                deadline[number] = time.monotonic() + TIMEOUT
            except OSError as e:
                answers[number] = 'error: %s' % e
        for key, _ in selector.select(0.02):
            if key.data is None:
                try:
                    data, source = key.fileobj.recvfrom(2048)
                except OSError:
                    continue
                if key.fileobj.family == socket.AF_INET:
                    data = data[(data[0] & 15) * 4:]
                if len(data) >= 8 and data[0] in (0, 129):
                    _, _, _, ident, seq = struct.unpack('!BBHHH', data[:8])
                    if ident == IDENT and seq in echoes:
                        number, address = echoes.pop(seq)
                        answers[number] = 'echo ' + source[0]
                        deadline.pop(number, None)
            elif key.fileobj in waiting:
                try:
                    answers[key.data] = key.fileobj.recv(64).decode() or 'error: closed without a word'
                except OSError as e:
                    answers[key.data] = 'error: %s' % e
                deadline.pop(key.data, None)
                close(key.fileobj)
        now = time.monotonic()
        for number in [n for n, until in deadline.items() if until < now]:
            del deadline[number]
        for s in [s for s, number in waiting.items() if number not in deadline]:
            close(s)
        for seq in [q for q, (number, _) in echoes.items() if number not in deadline]:
            del echoes[seq]
    selector.close()
    return answers

threading.Thread(target=serve, daemon=True).start()
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
"#;

/// Says why a test that needs the kernel cannot run here.
fn skipped(name: &str) -> bool {
    let works =
        |command: &str| Command::new(command).arg("--version").output().is_ok_and(|o| o.status.success());
    let why = if !nix::unistd::geteuid().is_root() {
        "needs root, to make network namespaces"
    } else if !Path::new("/usr/lib/cni/host-local").exists() {
        "needs /usr/lib/cni/host-local (package containernetworking-plugins)"
    } else if !works("python3") {
        "needs python3, to connect from inside the pods"
    } else {
        return false;
    };
    println!("SKIPPED {name}: {why}");
    true
}

/// A pod or a node: who it is in a probe, and under which addresses it is reached.
#[derive(Clone, Debug)]
struct Peer {
    name: String,
    node: bool,
    addresses: Vec<IpAddr>,
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
        Self { name, directory }
    }

    fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    fn command(&self, command: &str, rest: &[&str]) -> Command {
        let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
        call.args(["lab", command, "--name", &self.name, "--labs-dir"])
            .arg(self.directory.join("labs"))
            .args(rest);
        call
    }

    fn up(&self) -> Output {
        let manifests = self.manifests();
        let output = self
            .command("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()])
            .output()
            .expect("run");
        assert!(output.status.success(), "up: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn status(&self) -> Value {
        let output = self.command("status", &["-o", "json"]).output().expect("run");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn peers(&self) -> Vec<Peer> {
        let status = self.status();
        let mut peers = Vec::new();
        for (list, node) in [("pods", false), ("nodes", true)] {
            for entry in status[list].as_array().expect("list") {
                let addresses = entry["addresses"].as_array().expect("addresses").iter();
                peers.push(Peer {
                    name: entry["name"].as_str().expect("name").to_owned(),
                    node,
                    addresses: addresses
                        .map(|a| a.as_str().expect("text").parse().expect("address"))
                        .collect(),
                });
            }
        }
        peers
    }

    /// What each node knows: objects by kind. A policy that concerns none of a node's pods makes no new snapshot there, but is counted.
    fn known(&self) -> BTreeMap<String, Value> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        nodes
            .map(|node| {
                let socket = node["adminSocket"].as_str().expect("socket");
                let output = Command::new(env!("CARGO_BIN_EXE_margay"))
                    .args(["status", "-o", "json", "--socket", socket])
                    .output()
                    .expect("run");
                let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
                    panic!("status of {socket}: {e}: {}", String::from_utf8_lossy(&output.stderr))
                });
                assert_eq!(report["problems"], json!([]), "the recipes have no mistakes");
                (node["name"].as_str().expect("name").to_owned(), report["objects"].clone())
            })
            .collect()
    }

    /// Does `change`, and waits until every node has put it in force.
    fn change(&self, what: &str, change: impl FnOnce()) -> Duration {
        let before = self.known();
        change();
        let start = Instant::now();
        loop {
            let now = self.known();
            if now.iter().all(|(node, objects)| *objects != before[node]) {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < IN_FORCE,
                "{what}: not in force after {IN_FORCE:?}: {before:?}, then {now:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command("down", &[]).output();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The process that answers and asks inside one pod or node.
struct Prober {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Prober {
    fn start(lab: &Lab, script: &Path, peer: &Peer) -> Self {
        let name = said_of(peer);
        let told = json!([name, peer.addresses, TCP_PORTS, UDP_PORTS]).to_string();
        let place: &[&str] = if peer.node { &["--node", &peer.name] } else { &[&peer.name] };
        let mut child = lab
            .command("exec", place)
            .args(["--", "python3", &script.to_string_lossy(), &told])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run");
        let stdin = child.stdin.take().expect("pipe");
        let mut stdout = BufReader::new(child.stdout.take().expect("pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("read");
        assert_eq!(line.trim(), "ready", "the prober of {name}");
        Self { child, stdin, stdout }
    }

    fn ask(&mut self, probes: &[Value]) {
        writeln!(self.stdin, "{}", json!(probes)).expect("write");
        self.stdin.flush().expect("write");
    }

    fn answers(&mut self) -> Vec<Value> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read");
        serde_json::from_str(&line).expect("answers")
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns how a probe speaks of `peer`.
fn said_of(peer: &Peer) -> String {
    if peer.node { format!("host:{}", peer.name) } else { peer.name.clone() }
}

/// One question, for both who answer it.
#[derive(Clone, Debug)]
struct Cell {
    from: usize,
    to: usize,
    protocol: &'static str,
    address: IpAddr,
    port: u16,
}

impl Cell {
    fn question(&self, peers: &[Peer]) -> Value {
        let v4 = self.address.is_ipv4();
        let mut probe = json!({
            "from": said_of(&peers[self.from]), "to": said_of(&peers[self.to]), "family": if v4 { 4 } else { 6 },
            "protocol": if self.protocol == "ICMP" && !v4 { "ICMPv6" } else { self.protocol },
        });
        if self.protocol != "ICMP" {
            probe["port"] = json!(self.port);
        }
        probe
    }

    /// What an answer of the right peer looks like.
    fn answer(&self, peers: &[Peer]) -> String {
        if self.protocol == "ICMP" { format!("echo {}", self.address) } else { said_of(&peers[self.to]) }
    }
}

/// Every ordered pair, over both families, on every port; nodes among themselves are not ours to judge.
fn matrix(peers: &[Peer]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for from in 0..peers.len() {
        for to in (0..peers.len()).filter(|to| *to != from && !(peers[from].node && peers[*to].node)) {
            for address in &peers[to].addresses {
                assert!(
                    peers[from].addresses.iter().any(|a| a.is_ipv4() == address.is_ipv4()),
                    "both families"
                );
                let tcp = TCP_PORTS.iter().map(|port| ("TCP", *port));
                let udp = UDP_PORTS.iter().map(|port| ("UDP", *port));
                for (protocol, port) in tcp.chain(udp).chain([("ICMP", 0)]) {
                    cells.push(Cell { from, to, protocol, address: *address, port });
                }
            }
        }
    }
    cells
}

/// Writes the cluster with the nodes and addresses that the lab gave its pods.
fn cluster_of_the_lab(cluster: &Path, peers: &[Peer], to: &Path) {
    let text = fs::read_to_string(cluster).expect("cluster");
    let mut items = Vec::new();
    for document in split_documents(&text, "cluster.yaml") {
        let (mut value, _) = document.expect("readable");
        if value["kind"] == "Pod" {
            let name = format!(
                "{}/{}",
                value["metadata"]["namespace"].as_str().expect("namespace"),
                value["metadata"]["name"].as_str().expect("name")
            );
            let peer = peers.iter().find(|p| p.name == name).expect("the lab has every pod");
            let ips: Vec<Value> = peer.addresses.iter().map(|a| json!({ "ip": a })).collect();
            value["status"] = json!({ "podIPs": ips });
        }
        items.push(value);
    }
    fs::write(to, json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).expect("write");
}

/// Asks `margay simulate`: whether each cell is allowed.
fn simulated(manifests: &[&Path], cells: &[Cell], peers: &[Peer]) -> Vec<bool> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_margay"))
        .args([
            "simulate",
            "--engine",
            "both",
            "--endpoint-to-host",
            "accept",
            "--probes",
            "-",
            "--manifests",
        ])
        .args(manifests)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run");
    let mut stdin = child.stdin.take().expect("pipe");
    let text: String = cells.iter().map(|cell| format!("{}\n", cell.question(peers))).collect();
    let writer = thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("run");
    writer.join().expect("thread").expect("write");
    assert!(output.status.success(), "simulate: {}", output.status);
    let answers: Vec<bool> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| {
            let answer: Value = serde_json::from_str(line).expect("JSON");
            assert!(answer["verdict"].is_string(), "{line}");
            answer["verdict"] == "allow"
        })
        .collect();
    assert_eq!(answers.len(), cells.len());
    answers
}

/// Tries `which` of the cells for real; the answers in their order.
fn tried(probers: &mut [Prober], cells: &[Cell], which: &[usize]) -> BTreeMap<usize, Value> {
    let by_sender: Vec<Vec<usize>> = (0..probers.len())
        .map(|from| which.iter().copied().filter(|i| cells[*i].from == from).collect())
        .collect();
    for (prober, mine) in probers.iter_mut().zip(&by_sender) {
        let probes: Vec<Value> =
            mine.iter().map(|i| json!([cells[*i].protocol, cells[*i].address, cells[*i].port])).collect();
        prober.ask(&probes);
    }
    let mut answers = BTreeMap::new();
    for (prober, mine) in probers.iter_mut().zip(&by_sender) {
        answers.extend(mine.iter().copied().zip(prober.answers()));
    }
    answers
}

/// Compares real connections with `expected`. What must not pass must not pass even once; what must pass may need another attempt on a
/// machine that is busy.
fn compare(recipe: &str, probers: &mut [Prober], peers: &[Peer], cells: &[Cell], expected: &[bool]) {
    let mut wrong = BTreeSet::new();
    let mut silent: Vec<usize> = (0..cells.len()).collect();
    for attempt in 0..5 {
        let answers = tried(probers, cells, &silent);
        silent.clear();
        for (i, answer) in answers {
            let cell = &cells[i];
            if !expected[i] && !answer.is_null() {
                wrong.insert(format!("{}: denied, and answered {answer}", cell.question(peers)));
            } else if expected[i] && answer.is_null() && attempt < 4 {
                silent.push(i);
            } else if expected[i] && answer != json!(cell.answer(peers)) {
                wrong.insert(format!("{}: allowed, and answered {answer}", cell.question(peers)));
            }
        }
        if silent.is_empty() {
            break;
        }
        println!("{recipe}: {} of {} cells asked again", silent.len(), cells.len());
    }
    let shown: Vec<String> = wrong.iter().take(20).cloned().collect();
    assert!(
        wrong.is_empty(),
        "{recipe}: {} of {} cells differ from simulate:\n{}",
        wrong.len(),
        cells.len(),
        shown.join("\n")
    );
}

#[test]
fn every_recipe_does_to_real_packets_what_simulate_says() {
    if skipped("every_recipe_does_to_real_packets_what_simulate_says") {
        return;
    }
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/recipes");
    let cluster = recipes.join("cluster.yaml");
    let mut names: Vec<String> = fs::read_dir(&recipes)
        .expect("recipes")
        .flatten()
        .filter(|entry| entry.path().join("policy.yaml").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");

    let lab = Lab::new("r");
    fs::copy(&cluster, lab.manifests().join("cluster.yaml")).expect("copy");
    lab.up();
    let peers = lab.peers();
    assert_eq!(peers.len(), 10, "{peers:?}");
    assert!(peers.iter().all(|p| p.addresses.len() == 2), "every pod has both families: {peers:?}");
    let script = lab.directory.join("prober.py");
    fs::write(&script, PROBER).expect("script");
    let mut probers: Vec<Prober> = peers.iter().map(|peer| Prober::start(&lab, &script, peer)).collect();
    let world = lab.directory.join("world.json");
    cluster_of_the_lab(&cluster, &peers, &world);
    let cells = matrix(&peers);

    // Without policy everything is open; a wrong cell here would be about routing.
    let open = simulated(&[&world], &cells, &peers);
    assert!(open.iter().all(|allowed| *allowed), "nothing is denied without policy");
    compare("no policy", &mut probers, &peers, &cells, &open);

    let mut slowest = Duration::ZERO;
    for name in &names {
        let policy = recipes.join(name).join("policy.yaml");
        let (aside, installed) = (lab.directory.join("policy.new"), lab.manifests().join("policy.yaml"));
        fs::copy(&policy, &aside).expect("copy");
        let took = lab.change(name, || fs::rename(&aside, &installed).expect("install"));
        let start = Instant::now();
        let expected = simulated(&[&world, &policy], &cells, &peers);
        compare(name, &mut probers, &peers, &cells, &expected);
        let denied = expected.iter().filter(|allowed| !**allowed).count();
        println!(
            "{name}: {} cells agree, {denied} of them denied; in force after {took:?}, probed in {:?}",
            cells.len(),
            start.elapsed()
        );
        slowest = slowest.max(took);
        lab.change(name, || fs::remove_file(&installed).expect("remove"));
    }
    compare("no policy again", &mut probers, &peers, &cells, &open);
    println!(
        "{} recipes, {} cells each; slowest policy in force after {slowest:?}",
        names.len(),
        cells.len()
    );
}
