//! Every packet, well-formed or not, has one ending, and nothing makes a worker panic (policy model 12.1).

mod node;

use margay_core::PortIndex;
use margay_wire::build;
use margay_wire::parse::tcp_flags::SYN;
use node::{Node, complaint, ip, peer_mac, solicit};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever a pod, the kernel or the wire sends: no panic, one ending each, and nothing forged leaves.
    #[test]
    fn any_bytes_have_one_ending(frames in prop::collection::vec((0u16..5, prop::collection::vec(any::<u8>(), 0..200)), 1..8)) {
        let mut node = Node::new();
        for (port, bytes) in frames {
            let _ = node.send(PortIndex(port), &bytes);
        }
    }

    /// A well-formed packet with some bytes changed.
    #[test]
    fn mutated_packets_have_one_ending(
        port in 0u16..4,
        kind in 0usize..6,
        changes in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..120,
    ) {
        let mut node = Node::new();
        let index = PortIndex(port);
        let (from, to) = [("192.168.0.1", "10.0.1.2"), ("10.0.2.9", "10.0.1.2"), ("10.0.1.2", "10.0.1.3"), ("10.0.1.3", "10.0.2.9")][usize::from(port)];
        let (from6, to6) = [("fd00::1", "fd00:1::2"), ("fd00:2::9", "fd00:1::2"), ("fd00:1::2", "fd00:1::3"), ("fd00:1::3", "fd00:2::9")][usize::from(port)];
        let macs = Node::macs(index);
        let mut bytes = match kind {
            0 => build::udp(macs, (ip(from), 1), (ip(to), 2), &[1; 40]),
            1 => build::tcp(macs, (ip(from6), 1), (ip(to6), 2), SYN, &[1; 40]),
            2 => build::echo(macs, ip(from), ip(to), 3, true, &[1; 40]),
            3 => solicit(from6, to6, "fe80::1", Some(peer_mac(index))),
            4 => complaint(index, from, ((to, 1), (from, 2))),
            _ => build::arp(macs, 1, (macs.0, [10, 0, 1, 2]), (macs.1, [169, 254, 1, 1])),
        };
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(100)));
        for _ in 0..2 {
            let _ = node.send(index, &bytes);
        }
    }
}
