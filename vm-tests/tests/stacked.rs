//! Nodes whose uplink is a bond, a VLAN device or a bridge: policy is enforced for what comes over it, and the status says where the
//! program stands and why (decision 0021). The machine that builds this may have none of these devices; the kernels here have all.

mod common;

use common::{margay, on, passed, tests_of};
use std::time::Duration;
use vm_tests::kernel::Series;
use vm_tests::{Error, Initramfs, Kernel, Machine};

#[test]
fn on_linux_6_1_policy_holds_over_bonds_vlans_and_bridges() {
    on("on_linux_6_1_policy_holds_over_bonds_vlans_and_bridges", Series::Linux6_1, policy_holds);
}

#[test]
fn on_linux_6_12_policy_holds_over_bonds_vlans_and_bridges() {
    on("on_linux_6_12_policy_holds_over_bonds_vlans_and_bridges", Series::Linux6_12, policy_holds);
}

#[test]
fn on_linux_6_1_what_is_lost_below_a_stacked_device_is_seen() {
    on("on_linux_6_1_what_is_lost_below_a_stacked_device_is_seen", Series::Linux6_1, is_seen);
}

#[test]
fn on_linux_6_12_what_is_lost_below_a_stacked_device_is_seen() {
    on("on_linux_6_12_what_is_lost_below_a_stacked_device_is_seen", Series::Linux6_12, is_seen);
}

fn is_seen(kernel: &Kernel) -> Result<(), Error> {
    let mut files = Initramfs::new()?;
    files
        .modules(kernel, &["veth", "bonding", "8021q", "bridge"])?
        .tool("ip", "iproute2")?
        .program_as(&tests_of("margay-io", "stacked"), "/bin/stacked")?;
    let machine = Machine::new(kernel).memory_mib(2560).limit(Duration::from_secs(200));
    let outcome = machine.run(files, "stacked --nocapture --test-threads=1\n")?;
    passed(&outcome);
    assert!(!outcome.console.contains("SKIPPED"), "{}", outcome.console);
    measured(&outcome.console);
    Ok(())
}

fn measured(console: &str) {
    console.lines().filter(|line| line.contains("MEASURED")).for_each(|line| println!("{line}"));
}

fn policy_holds(kernel: &Kernel) -> Result<(), Error> {
    let mut files = Initramfs::new()?;
    files
        .modules(kernel, &["veth", "bonding", "8021q", "bridge"])?
        .tool("ip", "iproute2")?
        .tool("ping", "iputils-ping")?
        .tool("socat", "socat")?
        .program(&margay())?;
    let ipam = std::path::Path::new("/usr/lib/cni/host-local");
    if !ipam.is_file() {
        let package = "containernetworking-plugins";
        return Err(vm_tests::Unavailable::Program { program: "/usr/lib/cni/host-local", package }.into());
    }
    files.program_as(ipam, "/usr/lib/cni/host-local")?;
    files.file("/manifests/pods.yaml", 0o644, WORLD.into()).file("/policy.yaml", 0o644, POLICY.into());
    let machine = Machine::new(kernel).memory_mib(2560).limit(Duration::from_secs(500));
    let outcome = machine.run(files, SCRIPT)?;
    passed(&outcome);
    for kind in ["bond", "vlan", "bridge"] {
        assert!(outcome.console.contains(&format!("HOLDS {kind}")), "{kind}: {}", outcome.console);
    }
    measured(&outcome.console);
    Ok(())
}

const WORLD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: a, labels: {app: friend}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: foe, namespace: a, labels: {app: foe}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: a, labels: {app: server}}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
";

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends, namespace: a}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
";

/// Waits are for a state, with a deadline; a failing command ends the script (`-e`).
const SCRIPT: &str = r#"
cleanup() {
    status=$?
    if [ $status -ne 0 ]; then
        margay lab status || true
        find / -name 'node*.log' -size -200k 2>/dev/null | while read -r log; do echo "--- $log"; tail -n 40 "$log"; done
        margay lab down || true
    fi
    exit $status
}
trap cleanup EXIT
must_fail() {
    if "$@" >/dev/null 2>&1; then echo "this had to fail: $*"; exit 1; fi
}
# until SECONDS COMMAND…
soon() {
    limit=$1; shift
    begin=$(date +%s)
    until "$@" >/dev/null 2>&1; do
        [ $(($(date +%s) - begin)) -lt "$limit" ] || { echo "not within $limit s: $*"; return 1; }
        sleep 0.2
    done
}
hundredths() { sed 's/ .*//; s/\.//' /proc/uptime; }
address() { margay lab exec "$2" -- ip "$1" -o addr show scope global | sed -n 's/.* inet6\{0,1\} \([0-9a-f.:]*\).*/\1/p' | head -n 1; }
echoes() { margay lab exec "$1" -- ping -c 1 -W 2 "$2"; }
refused() { ! echoes "$1" "$2"; }
fetches() { [ "$(margay lab exec "$1" -- socat -T 5 - "$2,connect-timeout=3" </dev/null)" = hello ]; }
status() { margay status "$@" --socket "$(find / -name admin.sock 2>/dev/null | grep node2)"; }

for kind in bond vlan bridge; do
    rm -rf /world; cp -r /manifests /world
    margay lab up --manifests /world --nodes 2 --uplink $kind
    v4=$(address -4 a/server); v6=$(address -6 a/server)
    margay lab exec a/server -- socat TCP6-LISTEN:8080,ipv6only=0,reuseaddr,fork SYSTEM:'echo hello' &
    for pod in a/friend a/foe; do soon 10 echoes $pod "$v4"; soon 10 echoes $pod "$v6"; done
    soon 10 fetches a/foe "TCP:$v4:8080"

    cp /policy.yaml /world/policy.yaml
    soon 20 refused a/foe "$v4"
    must_fail echoes a/foe "$v6"
    must_fail fetches a/foe "TCP:$v4:8080"
    must_fail fetches a/foe "TCP:[$v6]:8080"
    fetches a/friend "TCP:$v4:8080"
    fetches a/friend "TCP:[$v6]:8080"
    # Out of the uplink as well, and by the packet path: not by way of the kernel, whose routes would carry it too.
    fetched=$(status -o json)
    status | grep -A 12 '^PORT'
    status | grep 'stands on'
    echo "$fetched" | tr -d ' \n' | grep -q '"kind":"uplink","mode":"generic"'
    packets=$(echo "$fetched" | tr -d ' \n' | sed 's/.*"kind":"uplink"//; s/.*"rx_packets":\([0-9]*\),"tx_packets":\([0-9]*\),.*/\1 \2/; s/}.*//')
    echo "MEASURED $kind: the uplink of node2 took and sent (packets) $packets"
    echo "$fetched" | tr -d ' \n' | sed 's/.*"drops"//' | grep -q '"policy_ingress":[1-9]'

    if [ $kind = bond ]; then
        # The port in use loses its carrier: traffic goes by the other, under the same policy.
        node=$(ip netns list | sed -n 's/^\(.*node2\) *.*/\1/p' | head -n 1)
        wire=$(ip netns list | sed -n 's/^\(.*wire\) *.*/\1/p' | head -n 1)
        used=$(ip netns exec "$node" sed -n 's/.*Active Slave: //p' /proc/net/bonding/bond0)
        echo "in use: $used"
        ip -n "$wire" link set port1 down
        gone=$(hundredths)
        soon 20 echoes a/friend "$v4"
        echo "MEASURED bond: $((10 * ($(hundredths) - gone))) ms until a ping gets through after the port in use is gone"
        now=$(ip netns exec "$node" sed -n 's/.*Active Slave: //p' /proc/net/bonding/bond0)
        [ "$now" != "$used" ] || { echo "still $now"; exit 1; }
        soon 20 fetches a/friend "TCP:[$v6]:8080"
        must_fail echoes a/foe "$v4"
        must_fail fetches a/foe "TCP:[$v6]:8080"
    fi
    if [ $kind = bridge ]; then
        # A part of it is no uplink, and who names one is told so.
        node=$(ip netns list | sed -n 's/^\(.*node2\) *.*/\1/p' | head -n 1)
        ip netns exec "$node" margay doctor --uplink eth0 | grep 'is a part of br0' || { echo "not told"; exit 1; }
    fi
    margay lab down
    echo "HOLDS $kind"
done
"#;
