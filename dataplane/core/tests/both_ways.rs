//! The short ways of a burst and the long way of single frames decide and write the same, and remember the same.

mod node;

use margay_core::worker::EndpointToHost;
use margay_core::{Nanos, PortIndex, View, WorkerConfig};
use margay_policy_engine::model::Action;
use margay_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};
use margay_wire::{build, checksum, protocol};
use node::{Node, POD_A, POD_B, UPLINK, ip, policy, rule};
use proptest::prelude::*;

fn packet(
    kind: u8,
    forward: bool,
    v6: bool,
    ttl: u8,
    number: u16,
    damage: Option<(usize, u8)>,
) -> (PortIndex, Vec<u8>) {
    let (near, far) = if v6 { ("fd00:1::2", "fd00:1::3") } else { ("10.0.1.2", "10.0.1.3") };
    let remote = if v6 { "fd00:2::9" } else { "10.0.2.9" };
    // Of UDP the last is VXLAN, which pods may not send.
    let (mine, theirs) = (4000 + number, if number == 5 { 4789 } else { 80 });
    let (port, from, to) = match (kind % 2, forward) {
        (0, true) => (POD_A, (near, mine), (far, theirs)),
        (0, false) => (POD_B, (far, theirs), (near, mine)),
        (_, true) => (POD_A, (near, mine), (remote, theirs)),
        (_, false) => (UPLINK, (remote, theirs), (near, mine)),
    };
    let (from, to) = ((ip(from.0), from.1), (ip(to.0), to.1));
    let macs = Node::macs(port);
    let mut bytes = match kind / 2 {
        0 => build::udp(macs, from, to, b"payload"),
        1 => build::tcp(macs, from, to, ACK, b"payload"),
        2 => build::tcp(macs, from, to, if forward { SYN } else { SYN | ACK }, b""),
        3 => build::tcp(macs, from, to, FIN | ACK, b""),
        _ => build::tcp(macs, from, to, RST, b""),
    };
    if v6 {
        bytes[14 + 7] = ttl;
    } else {
        bytes[14 + 8] = ttl;
        bytes[24..26].fill(0);
        let sum = checksum::of(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    if let Some((at, value)) = damage
        && let Some(byte) = bytes.get_mut(at)
    {
        *byte = value;
    }
    (port, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn agree(
        steps in prop::collection::vec(
            (
                0u8..10,
                any::<bool>(),
                any::<bool>(),
                0u8..6,
                prop::option::of((0usize..90, any::<u8>())),
                0u8..12,
                1usize..5,
                0u16..6,
                any::<bool>(),
            ),
            1..40,
        ),
        is_small in any::<bool>(),
    ) {
        // A small table puts flows out, and is full at times.
        let config = WorkerConfig {
            endpoint_to_host: EndpointToHost::Accept,
            adoption_window: Nanos(0),
            max_flows: if is_small { 12 } else { 4096 },
            ..WorkerConfig::default()
        };
        let (mut one, mut other) = (Node::with(config.clone()), Node::with(config));
        let deny = policy("deny", "b", Some(vec![rule(Action::Allow, Some(protocol::TCP))]), None);
        let unrelated = policy("unrelated", "nobody", Some(vec![]), None);
        for (kind, forward, v6, ttl, damage, event, repeat, number, alike) in steps {
            match event {
                0 => [&mut one, &mut other].map(|node| node.apply(deny.clone())),
                1 => [&mut one, &mut other].map(|node| node.delete(&deny)),
                2 => [&mut one, &mut other].map(|node| node.rebuild()),
                3 => [&mut one, &mut other].map(|node| drop(node.tick(Nanos::from_secs(25)))),
                4 => [&mut one, &mut other].map(|node| node.apply(unrelated.clone())),
                5 => [&mut one, &mut other].map(|node| node.delete(&unrelated)),
                _ => [(), ()],
            };
            let ttl = [1, 2, 64, 255, 64, 64][usize::from(ttl)];
            let packets: Vec<_> = (0..repeat as u16)
                .map(|more| packet(kind, forward, v6, ttl, if alike { number } else { number + more }, damage))
                .collect();
            let port = packets[0].0;
            let mut single = Vec::new();
            for (_, bytes) in &packets {
                single.extend(one.send(port, bytes).unwrap_or_default());
            }
            let packets: Vec<_> = packets.into_iter().map(|(_, bytes)| bytes).collect();
            let burst = other.burst(port, &packets);
            prop_assert_eq!(single, burst);
            prop_assert_eq!(one.worker.counters(), other.worker.counters());
            prop_assert_eq!(flows(&one), flows(&other));
        }
    }
}

fn flows(node: &Node) -> String {
    let view = View { snapshot: node.snapshot.as_deref(), topology: &node.topology };
    format!("{:?}", node.worker.flows(view, node.now, 0, usize::MAX))
}
