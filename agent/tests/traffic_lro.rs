//! Large receive offload: what arrives is what was sent, in fewer packets; a pod that routes what it gets is spared.

mod common;

use std::io::{BufRead, BufReader};

use common::{Lab, THREE_PODS, skipped, within};

/// Takes one connection, and says how many bytes came and what they hash to.
const SINK: &str = "
import hashlib, socket, sys
server = socket.create_server(('', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print('ready', flush=True)
while True:
    peer, _ = server.accept()
    hash, total = hashlib.sha256(), 0
    while part := peer.recv(1 << 16):
        hash.update(part)
        total += len(part)
    peer.sendall(f'{total} {hash.hexdigest()}'.encode())
    peer.close()
";
/// Sends bytes that are different everywhere, in pieces of odd sizes; says whether the other end has the same.
const SOURCE: &str = "
import hashlib, random, socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
hash, total, rng = hashlib.sha256(), 0, random.Random(7)
while total < 20_000_000:
    part = rng.randbytes(rng.randrange(1, 300_001))
    peer.sendall(part)
    hash.update(part)
    total += len(part)
peer.shutdown(socket.SHUT_WR)
told = peer.makefile().read()
print('same' if told == f'{total} {hash.hexdigest()}' else told)
";
/// Makes a container behind a bridge's MTU in the pod, and has the pod's port 5302 lead to it.
const INNER: &str = "
set -e
unshare -n sleep 60 & inner=$!
sleep 0.3
ip link add out0 type veth peer name in0
ip link set in0 netns $inner
ip addr add 10.55.0.1/24 dev out0
ip link set out0 mtu 1500 up
nsenter -t $inner -n sh -c 'ip link set in0 mtu 1500 up; ip addr add 10.55.0.2/24 dev in0; ip route add default via 10.55.0.1'
echo 1 > /proc/sys/net/ipv4/ip_forward
nft 'add table ip inner; add chain ip inner pre { type nat hook prerouting priority -100; };
     add rule ip inner pre tcp dport 5302 dnat to 10.55.0.2:5301'
exec nsenter -t $inner -n python3 -c \"$1\" 5301
";

fn joined(lab: &Lab, node: &str) -> u64 {
    lab.agent_status(node)["counters"]["joined"].as_u64().expect("a number")
}

fn wait_for_line(server: &mut common::Running) {
    let mut said = String::new();
    BufReader::new(server.output().expect("its output")).read_line(&mut said).expect("a line");
    assert_eq!(said, "ready\n");
}

fn has_large(lab: &Lab) -> bool {
    lab.must("shop/far", &["ip", "link", "show", "eth0"]).contains("mtu 60000")
}

#[test]
fn a_stream_from_another_node_arrives_whole_in_fewer_packets() {
    let name = "a_stream_from_another_node_arrives_whole_in_fewer_packets";
    if skipped(name, &["python3"]) {
        return;
    }
    for (mark, arguments, joins) in
        [("lo", &[][..], true), ("lt", &["--workers=2"][..], true), ("lf", &["--lro=off"][..], false)]
    {
        let lab = Lab::up_with(mark, THREE_PODS, arguments);
        if !has_large(&lab) {
            println!("SKIPPED {name}: the kernel has no packets of several frames");
            return;
        }
        let mut server = lab.start("shop/far", &["python3", "-c", SINK, "5301"]);
        wait_for_line(&mut server);
        for address in lab.addresses("shop/far") {
            let before = joined(&lab, "node2");
            let said = lab.must("shop/web", &["python3", "-c", SOURCE, &address, "5301"]);
            assert_eq!(said, "same\n", "{mark} {address}{}", lab.diagnosis());
            assert_eq!(joined(&lab, "node2") > before, joins, "{mark} {address}{}", lab.diagnosis());
        }
        // Answers to the sender carry nothing, and between pods of a node nothing needs to be joined.
        lab.books_balance();
    }
}

#[test]
fn a_pod_that_routes_streams_to_a_container_is_found_out_and_spared() {
    let name = "a_pod_that_routes_streams_to_a_container_is_found_out_and_spared";
    if skipped(name, &["python3", "nft", "unshare", "nsenter"]) {
        return;
    }
    let lab = Lab::up("lr", THREE_PODS);
    if !has_large(&lab) {
        println!("SKIPPED {name}: the kernel has no packets of several frames");
        return;
    }
    let address = &lab.addresses("shop/far")[0];
    let mut server = lab.start("shop/far", &["sh", "-c", INNER, "sh", SINK]);
    wait_for_line(&mut server);
    for _ in 0..2 {
        let said = lab.must("shop/web", &["python3", "-c", SOURCE, address, "5302"]);
        assert_eq!(said, "same\n", "{}", lab.diagnosis());
    }
    let spared = joined(&lab, "node2");
    lab.must("shop/web", &["python3", "-c", SOURCE, address, "5302"]);
    assert_eq!(joined(&lab, "node2"), spared, "nothing more is joined for it{}", lab.diagnosis());
    // Others of that node are none of its business.
    assert!(within(1, || lab.pings("shop/web", address)));
    lab.books_balance();
}
