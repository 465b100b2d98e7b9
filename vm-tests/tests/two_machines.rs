//! Two machines on a wire of virtio-net: one runs margay on its card, the other is a plain Linux. First in clear, then with the other's
//! kernel as the other end of WireGuard; policy holds the same in both.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{margay, on, passed};
use vm_tests::kernel::Series;
use vm_tests::{Error, Initramfs, Kernel, Machine, Outcome, WireEnd};

#[test]
fn linux_6_1_is_the_other_end_of_wireguard() {
    on("linux_6_1_is_the_other_end_of_wireguard", Series::Linux6_1, both);
}

#[test]
fn linux_6_12_is_the_other_end_of_wireguard() {
    on("linux_6_12_is_the_other_end_of_wireguard", Series::Linux6_12, both);
}

/// On this kernel the card's driver has zero-copy, so the same holds with packet memory of the uplink's own.
#[test]
fn linux_6_18_has_an_uplink_with_zero_copy() {
    on("linux_6_18_has_an_uplink_with_zero_copy", Series::Linux6_18, |kernel| {
        let said = both_on(kernel, "used")?;
        assert!(said.contains("native, zero-copy"), "{said}");
        Ok(())
    });
}

const LIMIT: Duration = Duration::from_secs(420);

fn both(kernel: &Kernel) -> Result<(), Error> {
    both_on(kernel, "none").map(drop)
}

/// Runs both machines, where the uplink's zero-copy is to be as said; returns what margay's said.
fn both_on(kernel: &Kernel, zero_copy: &str) -> Result<String, Error> {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let wire = scratch.path().join("wire");
    let ours = ours()?;
    let mut ours = with_card(kernel, ours)?;
    ours.modules(kernel, &["veth"])?.file("/common.sh", 0o644, COMMON.into());
    let mut other = Initramfs::new()?;
    other.modules(kernel, &["wireguard"])?.tool("wg", "wireguard-tools")?;
    tools(&mut other)?;
    let mut other = with_card(kernel, other)?;
    other.file("/common.sh", 0o644, COMMON.into());

    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let machine = machine(kernel).memory_mib(2048).wire(WireEnd::Waits, &wire);
            machine.run(ours, &format!("ZERO_COPY={zero_copy}\n{MARGAY}"))
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while !wire.exists() && !first.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let machine = machine(kernel).memory_mib(512).wire(WireEnd::Calls, &wire);
        let second = machine.run(other, LINUX);
        (first.join().expect("no panic"), second)
    });
    let consoles = |outcome: &Result<Outcome, Error>| match outcome {
        Ok(outcome) => outcome.console.clone(),
        Err(error) => error.to_string(),
    };
    let said = format!("--- margay:\n{}\n--- linux:\n{}", consoles(&first), consoles(&second));
    let (first, second) = (first?, second?);
    assert!(first.status == 0 && second.status == 0, "{said}");
    passed(&first);
    passed(&second);
    for mark in ["CLEAR", "ENCRYPTED"] {
        assert!(first.console.contains(&format!("HOLDS {mark}")), "{said}");
    }
    first.console.lines().filter(|line| line.contains("MEASURED")).for_each(|line| println!("{line}"));
    Ok(first.console)
}

/// One processor from 6.18 on: QEMU 7.2's emulator sometimes has one of two run into code that such a kernel patches at that moment.
fn machine(kernel: &Kernel) -> Machine<'_> {
    let old = ["6.1.", "6.12."].iter().any(|series| kernel.release().starts_with(series));
    Machine::new(kernel).processors(if old { 2 } else { 1 }).limit(LIMIT)
}

fn tools(files: &mut Initramfs) -> Result<(), Error> {
    files.tool("ip", "iproute2")?.tool("ping", "iputils-ping")?.tool("socat", "socat")?;
    Ok(())
}

fn with_card(kernel: &Kernel, mut files: Initramfs) -> Result<Initramfs, Error> {
    files.modules(kernel, &["virtio_pci", "virtio_net"])?;
    Ok(files)
}

fn ours() -> Result<Initramfs, Error> {
    let mut files = Initramfs::new()?;
    tools(&mut files)?;
    files.program(&margay())?;
    let ipam = Path::new("/usr/lib/cni/host-local");
    if !ipam.is_file() {
        let package = "containernetworking-plugins";
        return Err(vm_tests::Unavailable::Program { program: "/usr/lib/cni/host-local", package }.into());
    }
    files.program_as(ipam, "/usr/lib/cni/host-local")?;
    files.file("/world/cluster.yaml", 0o644, WORLD.into()).file("/cni.json", 0o644, CNI.into());
    files.file("/policy.yaml", 0o644, POLICY.into());
    Ok(files)
}

const WORLD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 172.31.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: a, uid: 0a2b3c4d-0000-4000-8000-000000000001, labels: {app: one}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.5}]}
";

const CNI: &str = r#"{"cniVersion": "1.1.0", "name": "pods", "type": "margay", "agentSocket": "/run/margay/agent.sock",
 "args": {"cni": {"ips": ["10.244.1.5"]}},
 "ipam": {"type": "host-local", "dataDir": "/state/ipam", "ranges": [[{"subnet": "10.244.1.0/24"}]]}}"#;

/// One port of TCP, and nothing else.
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-8080, namespace: a}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{ipBlock: {cidr: 10.244.2.0/24}}], ports: [{protocol: TCP, port: 8080}]}]
";

/// Waits are for a state, with a deadline. What the machines tell each other (phases, public keys) is a file each, served in clear
/// between the machines themselves.
const COMMON: &str = r#"
soon() {
    limit=$1; shift
    begin=$(date +%s)
    until "$@" >/dev/null 2>&1; do
        [ $(($(date +%s) - begin)) -lt "$limit" ] || { echo "not within $limit s: $*"; "$@" || true; return 1; }
        sleep 0.3
    done
}
must_fail() {
    if "$@" >/dev/null 2>&1; then echo "this had to fail: $*"; return 1; fi
}
fails() { ! "$@"; }
serve() { socat "TCP-LISTEN:$1,reuseaddr,fork" "SYSTEM:cat $2" & }
ask() { socat -T 5 - "TCP:$1,connect-timeout=3" </dev/null; }
says() { [ "$(ask "$1")" = "$2" ]; }
tell() { echo "$1" > /phase.new; mv /phase.new /phase; }
other_is() { says "$OTHER:7000" "$1"; }
"#;

const MARGAY: &str = r#"
. /common.sh
OTHER=172.31.0.2
trouble() {
    status=$?
    if [ $status -ne 0 ]; then
        margay status --socket /run/margay/admin.sock || true
        margay wireguard --socket /run/margay/admin.sock || true
        tail -n 40 /agent.log || true
    fi
    exit $status
}
trap trouble EXIT
ip link set lo up
ip addr add 172.31.0.1/24 dev eth0
ip link set eth0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
cat >> /world/cluster.yaml <<END
---
apiVersion: v1
kind: Node
metadata: {name: other}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 172.31.0.2}]}
END
tell begin
serve 7000 /phase
mkdir -p /overlay /state /run/margay
margay agent --node node1 --uplink eth0 --cpu none --manifests /world --overlay /overlay --state-dir /state --run-dir /run/margay > /agent.log 2>&1 &
soon 60 margay status --socket /run/margay/admin.sock
ip netns add one
export CNI_CONTAINERID=one CNI_NETNS=/run/netns/one CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni
export CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=one;K8S_POD_UID=0a2b3c4d-0000-4000-8000-000000000001"
soon 60 eval 'CNI_COMMAND=ADD margay cni < /cni.json'
pod() { ip netns exec one "$@"; }
pod socat TCP-LISTEN:8080,reuseaddr,fork SYSTEM:'echo hello' &
pod socat TCP-LISTEN:9090,reuseaddr,fork SYSTEM:'echo hello' &
fetches() { [ "$(pod socat -T 5 - "TCP:$1,connect-timeout=3" </dev/null)" = hello ]; }
drops() { margay status -o json --socket /run/margay/admin.sock | tr -d ' \n' | sed 's/.*"drops"//' | grep -q "\"$1\":[1-9]"; }

# In clear, over the card.
soon 60 pod ping -c 1 -W 2 10.244.2.1
soon 20 fetches 10.244.2.1:8080
margay status --socket /run/margay/admin.sock | grep -A 6 '^PORT'
# The card's packets: without a copy where its driver has that, each copied once as it crosses to the pods' memory.
margay status -o json --socket /run/margay/admin.sock | tr -d ' \n' > /status.json
sed 's/.*"name":"eth0"//' /status.json | grep -o '"zero_copy":"[a-z]*"' | head -n 1 | grep -q "\"$ZERO_COPY\""
if [ "$ZERO_COPY" = used ]; then
    sed 's/.*"name":"eth0"//' /status.json | grep -o '"copied_packets":[0-9]*' | head -n 1 | grep -q ':[1-9]'
    grep -o '"own_umem_bytes":[0-9]*' /status.json | grep -q ':33554432$'
fi
tell clear-open
soon 90 other_is clear-open
cp /policy.yaml /world/policy.yaml
tell clear-policy
soon 90 other_is clear-policy
drops policy_ingress
echo "HOLDS CLEAR"

# The other's kernel is the other end.
rm /world/policy.yaml
cat > /world/felix.yaml <<END
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {wireguardEnabled: true, encryptionMode: Strict}
END
public() { margay wireguard -o json --socket /run/margay/admin.sock | tr -d ' \n' | sed -n 's/.*"listening_port":[0-9]*,.*"public_key":"\([^"]*\)".*/\1/p'; }
soon 30 test -s /overlay/wireguard-node1.json
tr -d ' \n' < /overlay/wireguard-node1.json | sed -n 's/.*WireguardPublicKey":"\([^"]*\)".*/\1/p' > /key
test -s /key
serve 7001 /key
tell key
soon 90 other_is key
key=$(ask $OTHER:7001)
sed -i "s|metadata: {name: other}|metadata: {name: other, annotations: {projectcalico.org/WireguardPublicKey: '$key'}}|" /world/cluster.yaml
soon 60 pod ping -c 1 -W 2 10.244.2.1
soon 20 fetches 10.244.2.1:8080
tell sealed-open
soon 90 other_is sealed-open
cp /policy.yaml /world/policy.yaml
tell sealed-policy
soon 90 other_is sealed-policy
margay wireguard --socket /run/margay/admin.sock
margay wireguard --socket /run/margay/admin.sock | grep -q 'latest handshake'
# What comes in clear from the other's pods is refused now.
soon 90 other_is in-clear
drops expected_encrypted
tell end
soon 60 other_is end
echo "HOLDS ENCRYPTED"
"#;

const LINUX: &str = r#"
. /common.sh
OTHER=172.31.0.1
ip link set lo up
ip addr add 172.31.0.2/24 dev eth0
ip link set eth0 up
ip addr add 10.244.2.1/32 dev lo
ip route add 10.244.1.0/24 via 172.31.0.1 src 10.244.2.1
tell begin
serve 7000 /phase
socat TCP-LISTEN:8080,bind=10.244.2.1,reuseaddr,fork SYSTEM:'echo hello' &
fetches() { [ "$(socat -T 5 - "TCP:10.244.1.5:$1,connect-timeout=3" </dev/null)" = hello ]; }
open() {
    soon 60 ping -c 1 -W 2 10.244.1.5
    soon 20 fetches 8080
    soon 20 fetches 9090
}
closed() {
    soon 30 fails ping -c 1 -W 2 10.244.1.5
    fetches 8080
    must_fail fetches 9090
    must_fail ping -c 2 -W 2 10.244.1.5
}
soon 120 other_is clear-open
open
tell clear-open
soon 90 other_is clear-policy
closed
tell clear-policy

soon 120 other_is key
wg genkey > /private
wg pubkey < /private > /key
ip link add wg0 type wireguard
wg set wg0 listen-port 51820 private-key /private peer "$(ask $OTHER:7001)" endpoint $OTHER:51820 allowed-ips 10.244.1.0/24
ip link set wg0 mtu 1420 up
ip route replace 10.244.1.0/24 dev wg0 src 10.244.2.1
serve 7001 /key
tell key
soon 120 other_is sealed-open
open
tell sealed-open
soon 90 other_is sealed-policy
closed
wg show | grep 'latest handshake'
tell sealed-policy
# Round the tunnel.
ip route replace 10.244.1.0/24 via 172.31.0.1 src 10.244.2.1
must_fail fetches 8080
tell in-clear
soon 90 other_is end
tell end
sleep 3
"#;
