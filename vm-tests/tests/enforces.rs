//! On every kernel that margay is held to, a lab with two pods on one node: they reach each other, in packets as large as the kernel is
//! good for, and a policy ends it.
//!
//! The lab runs in the virtual machine as it runs on any machine: a real agent, real AF_XDP on veth, the real CNI plug-in.

mod common;

use common::{margay, on, passed};
use std::time::Duration;
use vm_tests::kernel::Series;
use vm_tests::{Error, Initramfs, Kernel, Machine};

#[test]
fn on_linux_6_1_two_pods_talk_until_a_policy_denies() {
    on("on_linux_6_1_two_pods_talk_until_a_policy_denies", Series::Linux6_1, two_pods);
}

#[test]
fn on_linux_6_12_two_pods_talk_until_a_policy_denies() {
    on("on_linux_6_12_two_pods_talk_until_a_policy_denies", Series::Linux6_12, two_pods);
}

fn two_pods(kernel: &Kernel) -> Result<(), Error> {
    let mut files = Initramfs::new()?;
    files
        .modules(kernel, &["veth", "bridge"])?
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
    files.file("/world/pods.yaml", 0o644, WORLD.into()).file("/policy.yaml", 0o644, POLICY.into());
    let machine = Machine::new(kernel).memory_mib(2560).limit(Duration::from_secs(300));
    passed(&machine.run(files, SCRIPT)?);
    Ok(())
}

const WORLD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: a, labels: {app: one}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: a, labels: {app: two}}
spec: {nodeName: node1, containers: [{name: main, image: none, ports: [{name: http, containerPort: 8080}]}]}
";

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: a}
spec:
  podSelector: {matchLabels: {app: two}}
  policyTypes: [Ingress]
";

/// Waits are for a state, with a deadline; a failing command ends the script (`-e`).
const SCRIPT: &str = r#"
cleanup() {
    status=$?
    if [ $status -ne 0 ]; then
        margay lab status || true
        find / -xdev -name '*.log' -size -200k 2>/dev/null | while read -r log; do echo "--- $log"; tail -n 40 "$log"; done
    fi
    margay lab down || status=1
    exit $status
}
trap cleanup EXIT
must_fail() {
    if "$@"; then echo "this had to fail: $*"; exit 1; fi
}
margay lab up --manifests /world --nodes 1
v4=$(margay lab exec a/two -- ip -4 -o addr show scope global | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | head -n 1)
v6=$(margay lab exec a/two -- ip -6 -o addr show scope global | sed -n 's/.* inet6 \([0-9a-f:]*\).*/\1/p' | head -n 1)
echo "two has $v4 and $v6"
margay lab exec a/two -- socat TCP6-LISTEN:8080,ipv6only=0,reuseaddr,fork SYSTEM:'echo hello' &
until margay lab exec a/two -- ss -Hltn 2>/dev/null | grep -q 8080 || margay lab exec a/two -- netstat -ltn | grep -q 8080; do sleep 0.2; done

# Large packets within the node where the kernel has packets of several frames, which is from 6.6 on.
case "$(uname -r)" in
6.1.*) mtu=1500 ;;
*) mtu=60000 ;;
esac
margay lab exec a/one -- ip -o link show eth0 | grep -F " mtu $mtu "
[ $mtu = 1500 ] || margay lab exec a/one -- ping -M do -s 20000 -c 3 -W 5 "$v4"

margay lab exec a/one -- ping -c 3 -W 5 "$v4"
margay lab exec a/one -- ping -6 -c 3 -W 5 "$v6"
[ "$(margay lab exec a/one -- socat -T 5 - "TCP:$v4:8080,connect-timeout=5" </dev/null)" = hello ]
[ "$(margay lab exec a/one -- socat -T 5 - "TCP:[$v6]:8080,connect-timeout=5" </dev/null)" = hello ]

cp /policy.yaml /world/policy.yaml
tries=0
while margay lab exec a/one -- ping -c 1 -W 1 "$v4" >/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || { echo "the policy is not in force after $tries tries"; exit 1; }
    sleep 0.2
done
echo "denied after $tries tries"
must_fail margay lab exec a/one -- ping -6 -c 1 -W 2 "$v6"
must_fail margay lab exec a/one -- socat -T 2 - "TCP:$v4:8080,connect-timeout=2" </dev/null
# The other direction has no policy against it.
margay lab exec a/two -- ping -c 1 -W 5 "$(margay lab exec a/one -- ip -4 -o addr show scope global | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | head -n 1)"
"#;
