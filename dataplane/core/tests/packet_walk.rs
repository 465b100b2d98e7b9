//! The packet's way, stage by stage (policy model 12, 13, 14, 15).

mod node;

use margay_core::topology::{Port, PortKind};
use margay_core::worker::EndpointToHost;
use margay_core::{DropReason, Nanos, PortIndex, What, WorkerConfig};
use margay_policy_engine::model::{Action, Entity, PortMatch, Rule};
use margay_policy_engine::packet::{EndpointId, Verdict};
use margay_wire::parse::{Packet, tcp_flags};
use margay_wire::{MacAddr, build, checksum, parse, protocol};
use node::{
    HOST, Node, POD_A, POD_B, ROUTER_MAC, UPLINK, complaint, ip, our_mac, peer_mac, policy, rule, solicit,
};

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;

fn udp(port: margay_core::PortIndex, from: &str, to: &str) -> Vec<u8> {
    build::udp(Node::macs(port), (ip(from), 1111), (ip(to), 53), b"hello")
}

fn headers(frame: &[u8]) -> margay_wire::IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// Checks the transport checksum of a complete packet.
fn assert_sums(frame: &[u8]) {
    let ip = headers(frame);
    let segment = &frame[usize::from(ip.transport_offset)..ip.end()];
    let pseudo = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, segment.len() as u32);
    let pseudo = if ip.protocol == protocol::ICMP { 0 } else { pseudo };
    assert_eq!(checksum::fold(checksum::add(pseudo, segment)), 0xffff, "transport checksum");
}

#[test]
fn pod_reaches_pod_on_the_same_node_over_both_families() {
    let mut node = Node::new();
    for (from, to) in [("10.0.1.2", "10.0.1.3"), ("fd00:1::2", "fd00:1::3")] {
        let (port, bytes) = node.forward(POD_A, &udp(POD_A, from, to));
        assert_eq!(port, POD_B);
        let parsed = parse(&bytes).expect("well-formed");
        assert_eq!((parsed.source, parsed.destination), (our_mac(POD_B), peer_mac(POD_B)));
        assert_eq!(headers(&bytes).ttl, 63, "a router's hop");
        assert_sums(&bytes);
    }
}

#[test]
fn pod_reaches_a_remote_pod_through_its_nodes_address() {
    let mut node = Node::new();
    let (port, bytes) = node.forward(POD_A, &udp(POD_A, "10.0.1.2", "10.0.2.9"));
    assert_eq!(port, UPLINK);
    assert_eq!(parse(&bytes).expect("well-formed").destination, peer_mac(UPLINK));
    let (port, bytes) = node.forward(POD_A, &udp(POD_A, "10.0.1.2", "8.8.8.8"));
    assert_eq!(port, UPLINK);
    assert_eq!(parse(&bytes).expect("well-formed").destination, ROUTER_MAC);
}

#[test]
fn a_partial_checksum_is_completed_and_a_wrong_one_stays_wrong() {
    let mut node = Node::new();
    let mut frame = udp(POD_A, "10.0.1.2", "10.0.1.3");
    let ip = headers(&frame);
    let at = usize::from(ip.transport_offset);
    let len = (ip.end() - at) as u32;
    let partial = checksum::fold(checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len));
    frame[at + 6..at + 8].copy_from_slice(&partial.to_be_bytes());
    assert_sums(&node.forward(POD_A, &frame).1);

    frame[at + 6..at + 8].copy_from_slice(&(partial ^ 0x5555).to_be_bytes());
    let (_, bytes) = node.forward(POD_A, &frame);
    assert_eq!(bytes[at + 6..at + 8], (partial ^ 0x5555).to_be_bytes());

    frame[at + 6..at + 8].fill(0);
    let (_, bytes) = node.forward(POD_A, &frame);
    assert_eq!(bytes[at + 6..at + 8], [0, 0], "no checksum stays no checksum");
}

#[test]
fn sctp_from_a_pod_gets_its_crc() {
    let mut node = Node::new();
    let payload = [&[0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0][..], &[1, 0, 0, 4][..]].concat();
    let frame = build::ip(Node::macs(POD_A), ip("10.0.1.2"), ip("10.0.1.3"), protocol::SCTP, &payload, 64);
    let (_, bytes) = node.forward(POD_A, &frame);
    let at = usize::from(headers(&bytes).transport_offset);
    assert_ne!(bytes[at + 8..at + 12], [0; 4]);
    let mut again = bytes.clone();
    let ip_headers = headers(&again);
    checksum::write_sctp(&mut again, std::iter::empty(), &ip_headers);
    assert_eq!(again, bytes, "the sum in the packet is the sum of the packet");
}

#[test]
fn pod_to_its_own_host_obeys_the_action() {
    let mut node = Node::new();
    let (port, bytes) = node.forward(POD_A, &udp(POD_A, "10.0.1.2", "192.168.0.1"));
    assert_eq!(port, HOST);
    assert_eq!(parse(&bytes).expect("well-formed").destination, peer_mac(HOST));
    assert_eq!(headers(&bytes).ttl, 64, "the host is the end, not a hop");

    let config = WorkerConfig { endpoint_to_host: EndpointToHost::Drop, ..Default::default() };
    let mut node = Node::with(config);
    let refused = node.send(POD_A, &udp(POD_A, "10.0.1.2", "192.168.0.1"));
    assert_eq!(refused, Err(DropReason::EndpointToHost));
}

#[test]
fn the_host_reaches_its_pods_past_ingress_policy_and_others_do_not() {
    let mut node = Node::new();
    node.apply(policy("deny", "a", Some(vec![]), None));
    assert_eq!(node.forward(HOST, &udp(HOST, "192.168.0.1", "10.0.1.2")).0, POD_A);
    // A neighbour that uses this node as its router arrives on the host port, too, but is not the host (PM-D21).
    assert_eq!(node.send(HOST, &udp(HOST, "172.16.0.9", "10.0.1.2")), Err(DropReason::PolicyIngress));
    assert_eq!(node.send(UPLINK, &udp(UPLINK, "192.168.0.77", "10.0.1.2")), Err(DropReason::PolicyIngress));
    assert_eq!(node.forward(HOST, &udp(HOST, "172.16.0.9", "10.0.1.3")).0, POD_B);
}

#[test]
fn spoofed_sources_have_a_name_on_every_port() {
    let mut node = Node::new();
    for (port, from, to, reason) in [
        (POD_A, "10.0.1.3", "10.0.2.9", DropReason::SpoofedPodSource),
        (POD_A, "192.168.0.1", "10.0.1.3", DropReason::SpoofedPodSource),
        (POD_A, "fd00:1::3", "fd00:1::3", DropReason::SpoofedPodSource),
        (HOST, "10.0.1.2", "10.0.1.3", DropReason::SpoofedHostSource),
        (UPLINK, "10.0.1.2", "10.0.1.3", DropReason::SpoofedUplinkSource),
        (UPLINK, "10.0.1.200", "10.0.1.3", DropReason::SpoofedUplinkSource),
        (UPLINK, "192.168.0.1", "10.0.1.3", DropReason::SpoofedUplinkSource),
        (UPLINK, "fd00::1", "fd00:1::3", DropReason::SpoofedUplinkSource),
        (POD_A, "127.0.0.1", "10.0.1.3", DropReason::MartianSource),
        (UPLINK, "224.0.0.9", "10.0.1.3", DropReason::MartianSource),
        (UPLINK, "0.0.0.0", "10.0.1.3", DropReason::MartianSource),
        (HOST, "::1", "fd00:1::3", DropReason::MartianSource),
    ] {
        assert_eq!(node.send(port, &udp(port, from, to)), Err(reason), "{from} from port {port:?}");
    }
}

#[test]
fn a_remote_pods_address_is_accepted_from_its_node_only() {
    let mut node = Node::new();
    assert_eq!(node.forward(UPLINK, &udp(UPLINK, "10.0.2.9", "10.0.1.2")).0, POD_A);
    let forged = build::udp((ROUTER_MAC, our_mac(UPLINK)), (ip("10.0.2.9"), 1), (ip("10.0.1.2"), 2), b"");
    assert_eq!(node.send(UPLINK, &forged), Err(DropReason::WrongPathSource));
}

#[test]
fn martian_and_link_local_destinations_are_dropped_by_name() {
    let mut node = Node::new();
    for (to, reason) in [
        ("127.0.0.1", DropReason::MartianDestination),
        ("0.1.2.3", DropReason::MartianDestination),
        ("250.1.2.3", DropReason::MartianDestination),
        ("169.254.9.9", DropReason::LinkLocalDestination),
        ("239.1.1.1", DropReason::Multicast),
        ("255.255.255.255", DropReason::Multicast),
        ("224.0.0.251", DropReason::DiscoveryConsumed),
        ("10.9.1.1", DropReason::NoRoute),
        ("10.0.1.99", DropReason::NoRoute),
    ] {
        let outcome = node.send(POD_A, &udp(POD_A, "10.0.1.2", to));
        match (reason, outcome) {
            (DropReason::NoRoute, Ok(sent)) => assert_eq!(sent[0].0, POD_A, "the sender is told"),
            (reason, outcome) => assert_eq!(outcome, Err(reason), "{to}"),
        }
    }
    // The metadata address goes by policy and route.
    assert_eq!(node.forward(POD_A, &udp(POD_A, "10.0.1.2", "169.254.169.254")).0, UPLINK);
}

#[test]
fn encapsulation_redirects_and_router_advertisements_from_pods_are_dropped() {
    let mut node = Node::new();
    let vxlan = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 5), (ip("192.168.0.1"), 4789), b"");
    assert_eq!(node.send(POD_A, &vxlan), Err(DropReason::Encapsulation));
    let ipip =
        build::ip(Node::macs(POD_A), ip("10.0.1.2"), ip("192.168.0.1"), protocol::IPIP, &[0x45; 40], 64);
    assert_eq!(node.send(POD_A, &ipip), Err(DropReason::Encapsulation));
    let redirect = build::icmp(Node::macs(POD_A), ip("10.0.1.2"), ip("10.0.1.3"), 5, 0, &[0; 32], 64);
    assert_eq!(node.send(POD_A, &redirect), Err(DropReason::Redirect));
    let advertisement = build::icmp(Node::macs(POD_A), ip("fd00:1::2"), ip("ff02::1"), 134, 0, &[0; 12], 255);
    assert_eq!(node.send(POD_A, &advertisement), Err(DropReason::RouterAdvertisement));
    let redirect = build::icmp(Node::macs(POD_A), ip("fd00:1::2"), ip("fd00:1::3"), 137, 0, &[0; 36], 255);
    assert_eq!(node.send(POD_A, &redirect), Err(DropReason::Redirect));
}

#[test]
fn tags_and_unknown_types_and_foreign_ethernet_addresses_are_dropped() {
    let mut node = Node::new();
    let mut frame = udp(POD_A, "10.0.1.2", "10.0.1.3");
    frame[12..14].copy_from_slice(&[0x81, 0x00]);
    assert_eq!(node.send(POD_A, &frame), Err(DropReason::VlanTagged));
    frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(node.send(POD_A, &frame), Err(DropReason::UnknownEtherType));
    let macs = (MacAddr([2, 9, 9, 9, 9, 9]), our_mac(POD_A));
    let frame = build::udp(macs, (ip("10.0.1.2"), 1), (ip("10.0.1.3"), 2), b"");
    assert_eq!(node.send(POD_A, &frame), Err(DropReason::BadEthernet));
    let macs = (peer_mac(POD_A), MacAddr([2, 9, 9, 9, 9, 9]));
    let frame = build::udp(macs, (ip("10.0.1.2"), 1), (ip("10.0.1.3"), 2), b"");
    assert_eq!(node.send(POD_A, &frame), Err(DropReason::BadEthernet));
    assert_eq!(node.send(POD_A, &frame[..9]), Err(DropReason::Truncated));
}

#[test]
fn arp_is_answered_for_the_gateway_and_for_nothing_else() {
    let mut node = Node::new();
    let macs = (peer_mac(POD_A), MacAddr::BROADCAST);
    let ask = |sender: [u8; 4], target: [u8; 4]| {
        build::arp(macs, 1, (peer_mac(POD_A), sender), (MacAddr::default(), target))
    };
    let (port, reply) = node.forward(POD_A, &ask([10, 0, 1, 2], [169, 254, 1, 1]));
    assert_eq!(port, POD_A);
    let Packet::Arp(arp) = parse(&reply).expect("well-formed").packet else { panic!("an ARP reply") };
    assert_eq!((arp.operation, arp.sender_mac, arp.sender_ip), (2, our_mac(POD_A), [169, 254, 1, 1].into()));

    assert_eq!(node.send(POD_A, &ask([10, 0, 1, 2], [10, 0, 1, 3])), Err(DropReason::ArpNotForUs));
    assert_eq!(node.send(POD_A, &ask([10, 0, 1, 3], [169, 254, 1, 1])), Err(DropReason::BadArp));
    assert_eq!(node.send(POD_A, &ask([10, 0, 1, 2], [10, 0, 1, 2])), Err(DropReason::BadArp), "gratuitous");
    let reply = build::arp(macs, 2, (peer_mac(POD_A), [169, 254, 1, 1]), (MacAddr::default(), [10, 0, 1, 2]));
    assert_eq!(node.send(POD_A, &reply), Err(DropReason::BadArp));
    let forged =
        build::arp(macs, 1, (peer_mac(POD_B), [10, 0, 1, 2]), (MacAddr::default(), [169, 254, 1, 1]));
    assert_eq!(node.send(POD_A, &forged), Err(DropReason::BadArp));
}

#[test]
fn neighbour_discovery_is_answered_for_the_gateway_and_forgeries_are_named() {
    let mut node = Node::new();
    let own = Some(peer_mac(POD_A));
    let (port, reply) = node.forward(POD_A, &solicit("fd00:1::2", "ff02::1:ff00:1", "fe80::1", own));
    assert_eq!(port, POD_A);
    let ip_headers = headers(&reply);
    assert_eq!(
        (ip_headers.source, ip_headers.destination, ip_headers.ttl),
        (ip("fe80::1"), ip("fd00:1::2"), 255)
    );
    assert_sums(&reply);
    assert_eq!(reply[reply.len() - 6..], our_mac(POD_A).0);

    let bad = Err(DropReason::BadNeighbourDiscovery);
    assert_eq!(node.send(POD_A, &solicit("fd00:1::2", "ff02::1:ff00:3", "fd00:1::3", own)), bad);
    assert_eq!(
        node.send(POD_A, &solicit("fd00:1::2", "ff02::1:ff00:1", "fe80::1", Some(peer_mac(POD_B)))),
        bad
    );
    assert_eq!(
        node.send(POD_A, &solicit("::", "ff02::1:ff00:1", "fe80::1", None)),
        bad,
        "claims the gateway"
    );
    let quiet = Err(DropReason::DiscoveryConsumed);
    assert_eq!(
        node.send(POD_A, &solicit("::", "ff02::1:ff00:2", "fd00:1::2", None)),
        quiet,
        "address detection"
    );
    let mut body = vec![0x20, 0, 0, 0];
    body.extend_from_slice(&"fe80::1".parse::<std::net::Ipv6Addr>().expect("v6").octets());
    let claim = build::icmp(Node::macs(POD_A), ip("fd00:1::2"), ip("ff02::1"), 136, 0, &body, 255);
    assert_eq!(node.send(POD_A, &claim), bad, "an advertisement for the gateway");
}

#[test]
fn the_gateway_answers_ping_over_both_families() {
    let mut node = Node::new();
    for (from, gateway) in [("10.0.1.2", "169.254.1.1"), ("fd00:1::2", "fe80::1")] {
        let frame = build::echo(Node::macs(POD_A), ip(from), ip(gateway), 7, true, b"payload");
        let (port, reply) = node.forward(POD_A, &frame);
        assert_eq!(port, POD_A);
        assert_eq!((headers(&reply).source, headers(&reply).destination), (ip(gateway), ip(from)));
        assert_sums(&reply);
    }
}

#[test]
fn policy_denies_by_name_and_replies_of_an_allowed_flow_pass() {
    let mut node = Node::new();
    node.apply(policy("only-tcp", "b", Some(vec![rule(Action::Allow, Some(protocol::TCP))]), None));
    assert_eq!(node.send(POD_A, &udp(POD_A, "10.0.1.2", "10.0.1.3")), Err(DropReason::PolicyIngress));
    let (a, b) = ((ip("10.0.1.2"), 4000), (ip("10.0.1.3"), 80));
    assert_eq!(node.forward(POD_A, &build::tcp(Node::macs(POD_A), a, b, SYN, b"")).0, POD_B);
    assert_eq!(node.forward(POD_B, &build::tcp(Node::macs(POD_B), b, a, SYN | ACK, b"")).0, POD_A);
    assert_eq!(node.forward(POD_A, &build::tcp(Node::macs(POD_A), a, b, ACK, b"x")).0, POD_B);

    node.apply(policy("no-egress", "a", None, Some(vec![])));
    let other = (ip("10.0.1.3"), 81);
    let refused = node.send(POD_A, &build::tcp(Node::macs(POD_A), a, other, SYN, b""));
    assert_eq!(refused, Err(DropReason::PolicyEgress));
}

#[test]
fn a_log_rule_tells_its_position_and_the_final_verdict() {
    let mut node = Node::new();
    let rules = vec![rule(Action::Log, None), rule(Action::Allow, Some(protocol::TCP))];
    node.apply(policy("logs", "b", Some(rules), None));
    for (frame, verdict) in [
        (udp(POD_A, "10.0.1.2", "10.0.1.3"), Verdict::Deny),
        (build::tcp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("10.0.1.3"), 2), SYN, b""), Verdict::Allow),
    ] {
        let view = margay_core::View { snapshot: node.snapshot.as_deref(), topology: &node.topology };
        let frame = margay_core::frame::MemoryFrame::new(&frame);
        node.worker.handle_frame(view, node.now, POD_A, frame, &mut node.out);
        let logged: Vec<_> = node.out.events.drain(..).filter(|e| e.what == What::Logged(verdict)).collect();
        assert_eq!(logged.len(), 1, "{verdict:?}");
        let by = logged[0].attribution.as_ref().expect("the Log rule");
        assert_eq!((by.name.as_str(), by.rule, logged[0].leg), ("logs", 0, "ingress"));
    }
}

/// While a pod has no table its packets are refused, and no longer.
#[test]
fn a_flow_passes_again_when_its_pod_is_known_again() {
    let mut node = Node::new();
    // Of the same policy as b, so that the table stays while a is gone.
    let a = node::pod("ns", "a", &["10.0.1.2", "fd00:1::2"]);
    let call = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1000), (ip("10.0.1.3"), 2000), b"x");
    assert_eq!(node.burst(POD_A, std::slice::from_ref(&call)).len(), 1);
    node.delete(&a);
    assert_eq!(node.send(POD_A, &call), Err(DropReason::NoPolicyYet));
    node.apply(a);
    assert_eq!(node.burst(POD_A, std::slice::from_ref(&call)).len(), 1, "on the short way");
    assert!(node.send(POD_A, &call).is_ok());
}

/// Of two pods with one address, as while a sandbox is replaced, one stands for it, and a change of its policy is noticed at the other's
/// port.
#[test]
fn an_address_of_two_ports_is_judged_by_the_pod_that_stands_for_it() {
    let mut node = Node::new();
    let old = PortIndex(9);
    let [new] = node.builder.ports.iter().filter(|port| port.index == POD_A).collect::<Vec<_>>()[..] else {
        panic!("pod a has a port")
    };
    let PortKind::Pod { addresses, .. } = new.kind.clone() else { panic!("a pod") };
    let kind =
        PortKind::Pod { endpoint: EndpointId(9), pod_mac: node::peer_mac(old), addresses: addresses.clone() };
    let port = Port { index: old, kind, mac: node::our_mac(old), ..new.clone() };
    node.builder.ports.push(port);
    node.rebuild();
    node.adopt("old", EndpointId(9), &addresses);
    let call = build::udp(Node::macs(old), (ip("10.0.1.2"), 1000), (ip("10.0.1.3"), 2000), b"x");
    for _ in 0..3 {
        assert_eq!(node.burst(old, std::slice::from_ref(&call)).len(), 1);
    }
    node.apply(policy("deny", "a", None, Some(vec![rule(Action::Deny, None)])));
    assert!(node.burst(old, std::slice::from_ref(&call)).is_empty());
    assert_eq!(node.worker.counters().dropped(DropReason::PolicyEgress), 1);
}

#[test]
fn a_live_flow_is_judged_again_when_its_policy_changes_and_only_then() {
    let mut node = Node::new();
    let (a, b) = ((ip("10.0.1.2"), 4000), (ip("10.0.1.3"), 80));
    node.forward(POD_A, &build::tcp(Node::macs(POD_A), a, b, SYN, b""));
    node.forward(POD_B, &build::tcp(Node::macs(POD_B), b, a, SYN | ACK, b""));
    let data = build::tcp(Node::macs(POD_A), a, b, ACK, b"x");
    node.forward(POD_A, &data);

    node.apply(policy("unrelated", "nobody", Some(vec![]), None));
    node.forward(POD_A, &data);
    assert_eq!(node.worker.counters().flow_rejudged, 0, "a change that concerns neither end is free");

    let deny = policy("deny", "b", Some(vec![]), None);
    node.apply(deny.clone());
    assert_eq!(node.send(POD_A, &data), Err(DropReason::PolicyIngress));
    let answer = build::tcp(Node::macs(POD_B), b, a, ACK, b"y");
    assert_eq!(
        node.send(POD_B, &answer),
        Err(DropReason::PolicyIngress),
        "both directions of a refused flow"
    );
    node.delete(&deny);
    assert_eq!(node.forward(POD_A, &data).0, POD_B, "and back again");
}

#[test]
fn tcp_in_mid_flow_needs_an_entry_except_within_the_adoption_window() {
    let mut node = Node::new();
    let (a, b) = ((ip("10.0.1.2"), 4000), (ip("10.0.1.3"), 80));
    let data = build::tcp(Node::macs(POD_A), a, b, ACK, b"x");
    assert_eq!(node.send(POD_A, &data), Err(DropReason::InvalidState));

    let config = WorkerConfig { adoption_window: Nanos::from_secs(120), ..Default::default() };
    let mut node = Node::with(config.clone());
    assert_eq!(node.forward(POD_A, &data).0, POD_B);

    // Only b may open to a: a packet from a to b is an answer of such a flow, and is adopted.
    let mut node = Node::with(config.clone());
    node.apply(policy("b-closed", "b", Some(vec![]), None));
    assert_eq!(node.forward(POD_A, &data).0, POD_B);

    let mut node = Node::with(config);
    node.apply(policy("b-closed", "b", Some(vec![]), None));
    node.apply(policy("a-closed", "a", Some(vec![]), None));
    assert_eq!(node.send(POD_A, &data), Err(DropReason::PolicyIngress));
    node.tick(Nanos::from_secs(121));
    assert_eq!(node.send(POD_A, &data), Err(DropReason::InvalidState));
}

#[test]
fn an_echo_reply_opens_nothing() {
    let mut node = Node::new();
    let reply = build::echo(Node::macs(POD_A), ip("10.0.1.2"), ip("10.0.1.3"), 9, false, b"");
    assert_eq!(node.send(POD_A, &reply), Err(DropReason::InvalidState));
    let request = build::echo(Node::macs(POD_B), ip("10.0.1.3"), ip("10.0.1.2"), 9, true, b"");
    node.forward(POD_B, &request);
    assert_eq!(node.forward(POD_A, &reply).0, POD_B);
}

#[test]
fn ttl_ends_here_and_the_sender_learns_the_nodes_address() {
    let mut node = Node::new();
    for (from, to, us) in [("10.0.1.2", "10.0.2.9", "192.168.0.1"), ("fd00:1::2", "fd00:2::9", "fd00::1")] {
        let frame = build::ip(Node::macs(POD_A), ip(from), ip(to), 253, b"payload", 1);
        let sent = node.send(POD_A, &frame).expect("an answer");
        assert_eq!(sent[0].0, POD_A);
        let error = headers(&sent[0].1);
        assert!(error.is_icmp_error());
        assert_eq!((error.source, error.destination), (ip(us), ip(from)));
        assert_sums(&sent[0].1);
    }
    assert_eq!(node.worker.counters().dropped(DropReason::TtlExpired), 2);
}

#[test]
fn too_big_for_the_uplink_is_answered_or_fragmented() {
    let mut node = Node::new();
    let payload = [7u8; 1450];
    let mut frame = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("10.0.2.9"), 2), &payload);
    // Set "don't fragment" whatever the builder chose, and repair the header's sum.
    frame[20] = 0x40;
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let sent = node.send(POD_A, &frame).expect("an answer");
    let error = headers(&sent[0].1);
    let at = usize::from(error.transport_offset);
    assert_eq!(sent[0].1[at..at + 2], [3, 4]);
    assert_eq!(u16::from_be_bytes([sent[0].1[at + 6], sent[0].1[at + 7]]), 1400);

    frame[20] = 0;
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    node.give_spares(4);
    let pieces = node.send(POD_A, &frame).expect("fragments");
    assert_eq!(pieces.len(), 2);
    let mut whole = Vec::new();
    for (port, piece) in &pieces {
        assert_eq!(*port, UPLINK);
        assert!(piece.len() <= 14 + 1400);
        parse(piece).expect("each fragment is well-formed");
        whole.extend_from_slice(&piece[34..]);
    }
    assert_eq!(whole.len(), 1458);
    assert_eq!(whole[8..], payload);
    // Without frames for all pieces nothing is sent, and the sender hears of the size.
    let before = node.worker.counters().dropped(DropReason::PacketTooBig);
    let mut sent = Vec::new();
    while sent.iter().all(|(port, _)| *port == UPLINK) {
        sent = node.send(POD_A, &frame).expect("fragments, or an answer");
    }
    assert_eq!(sent.len(), 1);
    let error = headers(&sent[0].1);
    assert_eq!(sent[0].1[usize::from(error.transport_offset)..][..2], [3, 4]);
    assert_eq!(node.worker.counters().dropped(DropReason::PacketTooBig), before + 1);

    let six = build::udp(Node::macs(POD_A), (ip("fd00:1::2"), 1), (ip("fd00:2::9"), 2), &payload);
    let sent = node.send(POD_A, &six).expect("an answer");
    let error = headers(&sent[0].1);
    assert_eq!(sent[0].1[usize::from(error.transport_offset)], 2);
    assert_sums(&sent[0].1);
}

/// Between the largest packet of one frame and the largest of several there are MTUs whose pieces no frame holds.
#[test]
fn pieces_fit_the_frames_that_there_are() {
    let mut node = Node::new();
    for port in &mut node.builder.ports {
        match port.index {
            POD_A => port.mtu = 60_000,
            POD_B => port.mtu = 9_000,
            _ => {}
        }
    }
    node.rebuild();
    let payload: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
    let mut frame = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("10.0.1.3"), 2), &payload);
    frame[20] = 0;
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    node.give_spares(16);
    let pieces = node.send(POD_A, &frame).expect("fragments");
    assert!(pieces.len() > 3 && pieces.iter().all(|(port, piece)| *port == POD_B && piece.len() <= 2_048));
    let whole: Vec<u8> = pieces.iter().flat_map(|(_, piece)| piece[34..].to_vec()).collect();
    assert_eq!(whole[8..], payload);
}

#[test]
fn icmp_errors_belong_to_the_flow_they_quote() {
    let mut node = Node::new();
    let ends = (("10.0.1.2", 1111), ("10.0.2.9", 53));
    assert_eq!(node.send(UPLINK, &complaint(UPLINK, "192.168.0.254", ends)), Err(DropReason::IcmpUnrelated));
    node.forward(POD_A, &udp(POD_A, "10.0.1.2", "10.0.2.9"));
    let (port, bytes) = node.forward(UPLINK, &complaint(UPLINK, "192.168.0.254", ends));
    assert_eq!(port, POD_A);
    assert_sums(&bytes);
    let at = usize::from(headers(&bytes).transport_offset);
    assert_eq!(bytes[at + 6..at + 8], [0x02, 0x40], "an MTU below 576 is raised to it");
}

#[test]
fn a_pod_may_complain_only_about_packets_it_was_sent() {
    let mut node = Node::new();
    node.forward(POD_A, &udp(POD_A, "10.0.1.2", "10.0.2.9"));
    let about_others = complaint(POD_B, "10.0.1.3", (("10.0.1.2", 1111), ("10.0.2.9", 53)));
    assert_eq!(node.send(POD_B, &about_others), Err(DropReason::IcmpUnrelated));
    node.forward(POD_A, &udp(POD_A, "10.0.1.2", "10.0.1.3"));
    let about_its_own = complaint(POD_B, "10.0.1.3", (("10.0.1.2", 1111), ("10.0.1.3", 53)));
    assert_eq!(node.forward(POD_B, &about_its_own).0, POD_A);
}

#[test]
fn packets_wait_for_an_unknown_neighbour_within_bounds() {
    let mut node = Node::new();
    let frame = udp(POD_A, "10.0.1.2", "192.168.0.55");
    for _ in 0..16 {
        assert_eq!(node.send(POD_A, &frame), Ok(vec![]));
    }
    assert_eq!(node.send(POD_A, &frame), Err(DropReason::NoNeighbour));
    assert_eq!(node.worker.wanted_neighbours(), vec![(UPLINK, ip("192.168.0.55"))]);
    node.builder.neighbours.push((UPLINK, ip("192.168.0.55"), MacAddr([2, 5, 5, 5, 5, 5])));
    node.rebuild();
    let released = node.tick(Nanos::from_millis(10));
    assert_eq!(released.len(), 16);
    assert_eq!(parse(&released[0].1).expect("well-formed").destination, MacAddr([2, 5, 5, 5, 5, 5]));

    node.send(POD_A, &udp(POD_A, "10.0.1.2", "192.168.0.56")).expect("held");
    let told = node.tick(Nanos::from_secs(4));
    assert_eq!((told.len(), told[0].0), (1, POD_A), "host unreachable");
}

#[test]
fn a_new_pod_with_an_old_address_inherits_nothing() {
    let mut node = Node::new();
    let (a, b) = ((ip("10.0.1.2"), 4000), (ip("10.0.1.3"), 80));
    node.forward(POD_A, &build::tcp(Node::macs(POD_A), a, b, SYN, b""));
    node.forward(POD_B, &build::tcp(Node::macs(POD_B), b, a, SYN | ACK, b""));
    for port in &mut node.builder.ports {
        if let PortKind::Pod { endpoint, .. } = &mut port.kind
            && port.index == POD_B
        {
            endpoint.0 = 77;
        }
    }
    node.rebuild();
    let data = build::tcp(Node::macs(POD_A), a, b, ACK, b"x");
    assert_eq!(node.send(POD_A, &data), Err(DropReason::InvalidState));
    let again = build::tcp(Node::macs(POD_A), a, b, SYN, b"");
    assert_eq!(node.send(POD_A, &again), Err(DropReason::NoPolicyYet), "the new endpoint has no table yet");
}

#[test]
fn a_connection_of_a_new_pod_with_an_old_address_begins_at_the_beginning() {
    let mut node = Node::new();
    let (a, b) = ((ip("10.0.1.2"), 4000), (ip("10.0.1.3"), 80));
    let syn = build::tcp(Node::macs(POD_A), a, b, SYN, b"");
    node.forward(POD_A, &syn);
    node.forward(POD_B, &build::tcp(Node::macs(POD_B), b, a, SYN | ACK, b""));
    let state = |node: &Node| {
        let view = margay_core::worker::View { snapshot: node.snapshot.as_deref(), topology: &node.topology };
        node.worker.flows(view, node.now, 0, 10).0[0].state
    };
    assert_eq!(state(&node), "established");
    for port in &mut node.builder.ports {
        if let PortKind::Pod { endpoint, .. } = &mut port.kind
            && port.index == POD_B
        {
            endpoint.0 = 77;
        }
    }
    node.adopt("b", margay_policy_engine::packet::EndpointId(77), &[ip("10.0.1.3"), ip("fd00:1::3")]);
    node.rebuild();
    node.forward(POD_A, &syn);
    assert_eq!(state(&node), "syn_sent");
}

#[test]
fn a_mapped_address_does_not_pass_for_the_one_it_holds() {
    let mut node = Node::new();
    node.forward(POD_A, &udp(POD_A, "10.0.1.2", "10.0.1.3"));
    node.forward(POD_A, &udp(POD_A, "10.0.1.2", "10.0.1.3"));
    let mapped = udp(POD_A, "::ffff:10.0.1.2", "::ffff:10.0.1.3");
    assert_eq!(mapped[12..14], [0x86, 0xdd], "an IPv6 packet");
    assert_eq!(node.send(POD_A, &mapped), Err(DropReason::MartianSource));
}

#[test]
fn a_new_flow_between_known_addresses_is_judged_by_the_policy_of_its_time() {
    let mut node = Node::new();
    let packet =
        |port: u16| build::udp(Node::macs(POD_A), (ip("10.0.1.2"), port), (ip("10.0.1.3"), 53), b"x");
    node.forward(POD_A, &packet(1));
    let deny = policy("b-closed", "b", Some(vec![]), None);
    node.apply(deny.clone());
    assert_eq!(node.send(POD_A, &packet(2)), Err(DropReason::PolicyIngress));
    node.delete(&deny);
    node.forward(POD_A, &packet(3));
}

#[test]
fn a_port_is_judged_by_itself_whatever_was_approved_between_its_addresses() {
    let mut node = Node::new();
    let of = |first, last| Entity { ports: vec![PortMatch::Range { first, last }], ..Entity::default() };
    let [in_ports, out_ports] = [of(50, 59), of(20, 29)];
    let ingress = Rule { destination: in_ports, ..rule(Action::Allow, Some(protocol::UDP)) };
    let egress = Rule { source: out_ports, ..rule(Action::Allow, Some(protocol::UDP)) };
    node.apply(policy("b-in", "b", Some(vec![ingress]), None));
    node.apply(policy("a-out", "a", None, Some(vec![egress])));
    let (near, far) = (ip("10.0.1.2"), ip("10.0.1.3"));
    // By both legs, by one, by the other; again after an approval, which the tables tell apart from all of these.
    for (from, to, passes) in [
        (20, 50, true),
        (21, 59, true),
        (21, 60, false),
        (30, 51, false),
        (29, 52, true),
        (19, 49, false),
        (22, 53, true),
    ] {
        let frame = build::udp(Node::macs(POD_A), (near, from), (far, to), b"x");
        assert_eq!(node.burst(POD_A, &[frame]).len(), usize::from(passes), "{from} to {to}");
        let syn = build::tcp(Node::macs(POD_A), (near, from), (far, to), SYN, b"");
        assert!(node.burst(POD_A, &[syn]).is_empty(), "what was approved of UDP says nothing about TCP");
    }
    let counters = node.worker.counters();
    assert_eq!((counters.flow_misses, counters.flows), (14, 4), "what was refused left no trace");
}

#[test]
fn pods_are_closed_before_the_first_snapshot() {
    let mut node = Node::new();
    node.snapshot = None;
    assert_eq!(node.send(POD_A, &udp(POD_A, "10.0.1.2", "10.0.1.3")), Err(DropReason::NoPolicyYet));
    assert_eq!(node.send(UPLINK, &udp(UPLINK, "10.0.2.9", "10.0.1.3")), Err(DropReason::NoPolicyYet));
    // What concerns no pod goes on: the host's own conversation with a remote pod.
    assert_eq!(node.forward(HOST, &udp(HOST, "192.168.0.1", "10.0.2.9")).0, UPLINK);
}

#[test]
fn flows_are_listed_and_expire() {
    let mut node = Node::new();
    node.forward(POD_A, &udp(POD_A, "10.0.1.2", "10.0.1.3"));
    let view = margay_core::View { snapshot: node.snapshot.as_deref(), topology: &node.topology };
    let (flows, next) = node.worker.flows(view, node.now, 0, 10);
    assert_eq!((flows.len(), next), (1, None));
    assert_eq!((flows[0].source, flows[0].destination_port, flows[0].state), (ip("10.0.1.2"), 53, "one_way"));
    assert!(flows[0].ingress.is_some());
    node.tick(Nanos::from_secs(61));
    assert_eq!(node.worker.counters().flows, 0);
}
