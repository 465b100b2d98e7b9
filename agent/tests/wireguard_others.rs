//! Encryption with WireGuard that is not ours: a machine that runs another implementation stands on the wire, a Node with Calico's
//! annotation speaks for it, and its pods and ours talk, under policy.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{Lab, THREE_PODS, skipped, within};
use serde_json::Value;

const PORT: u16 = 51_820;
/// Where the other machine is, and its pods.
const WIRE: [&str; 2] = ["172.30.0.200", "fd30::200"];
const PODS: [&str; 2] = ["10.244.200.0/24", "fd44:0:0:200::/64"];
/// One pod that policy lets in, and one that it does not.
const GOOD: [&str; 2] = ["10.244.200.5", "fd44:0:0:200::5"];
const BAD: [&str; 2] = ["10.244.200.6", "fd44:0:0:200::6"];

const ENCRYPTED: &str = "
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {wireguardEnabled: true, wireguardEnabledV6: true, wireguardListeningPortV6: 51820, encryptionMode: Strict}
";

const POLICY: &str = "
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: only-the-good, namespace: shop}
spec:
  selector: app == 'db'
  types: [Ingress]
  ingress:
  - {action: Allow, source: {nets: [10.244.200.5/32]}}
  - {action: Allow, source: {nets: ['fd44:0:0:200::5/128']}}
";

/// The other machine: its namespace, and the process that is its WireGuard, ended with it.
struct Other {
    netns: String,
    device: String,
    key: String,
    child: Child,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ran(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("run");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn public_half(key: &str) -> String {
    let script = format!("echo {key} | wg pubkey");
    ran("sh", &["-c", &script])
}

fn tunnels(lab: &Lab) -> Vec<Value> {
    lab.agent_status("node1")["wireguard"]["tunnels"].as_array().cloned().unwrap_or_default()
}

fn own_key(lab: &Lab, family: usize) -> String {
    tunnels(lab)[family]["public_key"].as_str().expect("a key").to_owned()
}

impl Other {
    /// Starts one on the lab's wire. `start` is what makes a device of the name that is put in place of `DEVICE`, and stays in the
    /// foreground.
    fn start(lab: &mut Lab, mark: &str, start: &[&str], family: usize) -> Self {
        let netns = lab.namespace(mark);
        let wire = lab.wire();
        lab.ip(&wire, &format!("link add {mark} type veth peer name eth0 netns {netns}"));
        lab.ip(&wire, &format!("link set {mark} master wire up"));
        lab.ip(&netns, "link set lo up");
        lab.ip(&netns, &format!("addr add {}/24 dev eth0", WIRE[0]));
        lab.ip(&netns, &format!("addr add {}/64 dev eth0 nodad", WIRE[1]));
        lab.ip(&netns, "link set eth0 up");
        // Its control socket is found by name in a folder that all namespaces share.
        let device = format!("wg{mark}{}", std::process::id() % 100_000);
        let arguments: Vec<String> = start
            .iter()
            .map(|word| if *word == "DEVICE" { device.clone() } else { (*word).to_owned() })
            .collect();
        let child = Command::new("ip")
            .args(["netns", "exec", &netns])
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(lab.directory.join(format!("{mark}.log"))).expect("log"))
            .spawn()
            .expect("start");
        let key = ran("wg", &["genkey"]);
        let other = Self { netns, device, key, child };
        let is_up = || other.wg(&["show", &other.device, "dump"]).status.success();
        assert!(
            within(10, is_up),
            "{arguments:?}: {}",
            fs::read_to_string(lab.directory.join(format!("{mark}.log"))).unwrap_or_default()
        );
        let file = lab.directory.join(format!("{mark}.key"));
        fs::write(&file, &other.key).expect("key");
        other.must(&[
            "set",
            &other.device,
            "listen-port",
            &PORT.to_string(),
            "private-key",
            &file.to_string_lossy(),
        ]);
        other.befriend(lab, family);
        lab.ip(&other.netns, &format!("link set {} mtu 1420 up", other.device));
        for address in [GOOD[family], BAD[family]] {
            lab.ip(&other.netns, &format!("addr add {address} dev {}", other.device));
        }
        let pods = ["10.244.1.0/24", "fd44:0:0:1::/64"][family];
        lab.ip(&other.netns, &format!("route add {pods} dev {} src {}", other.device, GOOD[family]));
        other
    }

    fn wg(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("ip").args(["netns", "exec", &self.netns, "wg"]).args(arguments).output().expect("wg")
    }

    fn must(&self, arguments: &[&str]) -> String {
        let output = self.wg(arguments);
        assert!(output.status.success(), "wg {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Tells it about node1.
    fn befriend(&self, lab: &Lab, family: usize) {
        let address = &lab.addresses("node1")[family];
        let endpoint = if family == 0 { format!("{address}:{PORT}") } else { format!("[{address}]:{PORT}") };
        let allowed = ["10.244.1.0/24", "fd44:0:0:1::/64"][family];
        let key = own_key(lab, family);
        self.must(&["set", &self.device, "peer", &key, "endpoint", &endpoint, "allowed-ips", allowed]);
    }

    /// The Node that speaks for it.
    fn node(&self, family: usize, key: &str) -> String {
        let annotation =
            ["projectcalico.org/WireguardPublicKey", "projectcalico.org/WireguardPublicKeyV6"][family];
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: other, annotations: {{{annotation}: '{key}'}}}}\n\
             spec: {{podCIDRs: ['{}', '{}']}}\n\
             status: {{addresses: [{{type: InternalIP, address: {}}}, {{type: InternalIP, address: '{}'}}]}}\n",
            PODS[0], PODS[1], WIRE[0], WIRE[1]
        )
    }

    fn pings(&self, from: &str, to: &str) -> bool {
        let call = ["netns", "exec", &self.netns, "ping", "-n", "-c", "1", "-W", "1", "-I", from, to];
        Command::new("ip").args(call).output().expect("ping").status.success()
    }
}

fn peer(lab: &Lab, family: usize) -> Value {
    let peers = tunnels(lab)[family]["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|peer| peer["node"] == "other").unwrap_or_default()
}

/// Everything that holds with any implementation.
fn talks(mark: &str, start: &[&str], family: usize) {
    let mut lab = Lab::up(mark, &format!("{THREE_PODS}{ENCRYPTED}"));
    assert!(within(20, || tunnels(&lab).len() == 2), "{}", lab.diagnosis());
    let other = Other::start(&mut lab, mark, start, family);
    let (web, db) = (lab.addresses("shop/web")[family].clone(), lab.addresses("shop/db")[family].clone());

    // Strict: nothing passes before the key is known, in either direction.
    lab.apply("other.yaml", &other.node(family, ""));
    assert!(!lab.pings("shop/web", GOOD[family]));
    assert!(!other.pings(GOOD[family], &web));

    let public = public_half(&other.key);
    lab.apply("other.yaml", &other.node(family, &public));
    let said =
        || format!("{}\n{}{}", other.must(&["show", &other.device]), peer(&lab, family), lab.diagnosis());
    assert!(within(15, || lab.pings("shop/web", GOOD[family])), "to it: {}", said());
    assert!(within(5, || other.pings(GOOD[family], &web)), "from it: {}", said());
    assert_eq!(peer(&lab, family)["public_keys"][0], public.as_str());
    assert!(peer(&lab, family)["handshake_seconds"].is_u64(), "{}", said());
    assert!(peer(&lab, family)["received_bytes"].as_u64() > Some(100), "{}", said());

    // Connections, of more than one packet, both ways; and a large transfer.
    let _web = lab.serve("shop/web", 8000);
    let page = "x".repeat(300_000);
    fs::write(lab.directory.join("www/large"), &page).expect("page");
    let host = if family == 0 { web.clone() } else { format!("[{web}]") };
    let url = format!("http://{host}:8000/large");
    let fetched = || {
        let call =
            ["netns", "exec", &other.netns, "curl", "-g", "-s", "--noproxy", "*", "--max-time", "5", &url];
        Command::new("ip").args(call).output().expect("curl").stdout.len()
    };
    assert!(within(10, || fetched() == page.len()), "{}", said());

    // Policy speaks about the addresses inside.
    lab.apply("policy.yaml", POLICY);
    assert!(within(10, || !other.pings(BAD[family], &db)), "{}", said());
    assert!(within(5, || other.pings(GOOD[family], &db)), "{}", said());
    assert!(!other.pings(BAD[family], &db));

    // An address that is not its own is refused by name, well sealed as it is.
    let stolen = ["10.244.77.1", "fd44:0:0:77::1"][family];
    lab.ip(&other.netns, &format!("addr add {stolen} dev {}", other.device));
    let before = lab.drops("node1", "tunnel_not_allowed");
    assert!(!other.pings(stolen, &web));
    assert!(lab.drops("node1", "tunnel_not_allowed") > before, "{}", said());

    // A new key of its own ends what was: until the Node says so, nothing passes; then it goes on.
    let file = lab.directory.join("second.key");
    let second = ran("wg", &["genkey"]);
    fs::write(&file, &second).expect("key");
    other.must(&["set", &other.device, "private-key", &file.to_string_lossy()]);
    assert!(within(20, || !other.pings(GOOD[family], &web)), "an unknown key is nobody: {}", said());
    lab.apply("other.yaml", &other.node(family, &public_half(&second)));
    assert!(within(20, || other.pings(GOOD[family], &web)), "{}", said());
    assert!(within(10, || lab.pings("shop/web", GOOD[family])), "{}", said());
}

fn boringtun() -> Option<PathBuf> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/wireguard-peers");
    let output = Command::new(script).arg("boringtun-cli").stderr(Stdio::inherit()).output().expect("run");
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then(|| PathBuf::from(folder).join("boringtun-cli"))
}

#[test]
fn wireguard_go_over_ipv4() {
    if skipped("wireguard_go_over_ipv4", &["wg", "wireguard-go", "curl", "python3"]) {
        return;
    }
    talks("go4", &["wireguard-go", "-f", "DEVICE"], 0);
}

#[test]
fn wireguard_go_over_ipv6() {
    if skipped("wireguard_go_over_ipv6", &["wg", "wireguard-go", "curl", "python3"]) {
        return;
    }
    talks("go6", &["wireguard-go", "-f", "DEVICE"], 1);
}

#[test]
fn boringtun_cli() {
    if skipped("boringtun_cli", &["wg", "curl", "python3"]) {
        return;
    }
    let Some(program) = boringtun() else {
        println!("SKIPPED boringtun_cli: scripts/wireguard-peers could not build it");
        return;
    };
    talks("bt4", &[&program.to_string_lossy(), "--foreground", "--disable-drop-privileges", "DEVICE"], 0);
}
