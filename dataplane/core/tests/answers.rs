//! What senders are told about packets that end here, and the errors of others that pass (policy model 13.4, 32.9, PM-D23).

mod node;

use margay_core::topology::{Port, PortKind, Route};
use margay_core::{DropReason, Nanos, PortIndex};
use margay_policy_engine::model::{Action, DenyAction, FelixConfiguration, Object};
use margay_wire::parse::{Packet, parse_quoted, tcp_flags};
use margay_wire::{IpHeaders, build, checksum, parse, protocol};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip, our_mac, peer_mac, policy, rule};

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const RST: u8 = tcp_flags::RST;

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

fn assert_sums(frame: &[u8]) {
    let ip = headers(frame);
    let segment = &frame[usize::from(ip.transport_offset)..ip.end()];
    let pseudo = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, segment.len() as u32);
    let pseudo = if ip.protocol == protocol::ICMP { 0 } else { pseudo };
    assert_eq!(checksum::fold(checksum::add(pseudo, segment)), 0xffff, "transport checksum");
}

/// What an ICMP error says: (type, code, bytes 4 to 7).
fn said(frame: &[u8]) -> (u8, u8, u32) {
    assert!(headers(frame).is_icmp_error());
    let at = usize::from(headers(frame).transport_offset);
    let rest = u32::from_be_bytes(frame[at + 4..at + 8].try_into().expect("four bytes"));
    (frame[at], frame[at + 1], rest)
}

/// Sends a frame that is answered; checks that the answer goes back where the frame came from, and returns it.
fn answered(node: &mut Node, port: PortIndex, frame: &[u8]) -> Vec<u8> {
    let mut sent = node.send(port, frame).expect("an answer");
    assert_eq!(sent.len(), 1);
    let (to, answer) = sent.remove(0);
    let parsed = parse(&answer).expect("well-formed");
    assert_eq!((to, parsed.destination, parsed.source), (port, peer_mac(port), our_mac(port)));
    assert_eq!(headers(&answer).destination, headers(frame).source);
    assert_sums(&answer);
    answer
}

fn unfragmentable(mut frame: Vec<u8>) -> Vec<u8> {
    if headers(&frame).source.is_ipv4() {
        frame[20] = 0x40;
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

const SMALL: PortIndex = PortIndex(4);

/// A third pod, whose interface takes 1,300 bytes, and a way for host and uplink to one another.
fn with_small_pod() -> Node {
    let mut node = Node::new();
    let addresses = vec![ip("10.0.1.4"), ip("fd00:1::4")];
    let kind = PortKind::Pod {
        endpoint: margay_policy_engine::packet::EndpointId(4),
        pod_mac: peer_mac(SMALL),
        addresses: addresses.clone(),
    };
    node.builder.ports.push(Port {
        index: SMALL,
        name: "small".into(),
        kind,
        mac: our_mac(SMALL),
        mtu: 1300,
    });
    let route = Route::Port { port: UPLINK, gateway: Some(ip("fd00::2")) };
    node.builder.routes.push(("::/0".parse().expect("net"), route));
    node.adopt("small", margay_policy_engine::packet::EndpointId(4), &addresses);
    node.rebuild();
    node
}

#[test]
fn the_size_of_a_path_is_told_through_every_kind_of_port() {
    let mut node = with_small_pod();
    // (from, its address, to, size that fits, who says so)
    let ways = [
        (POD_A, "10.0.1.2", "10.0.1.4", 1300, "192.168.0.1"),
        (POD_A, "fd00:1::2", "fd00:1::4", 1300, "fd00::1"),
        (POD_A, "10.0.1.2", "10.0.2.9", 1400, "192.168.0.1"),
        (POD_A, "fd00:1::2", "fd00:2::9", 1400, "fd00::1"),
        (POD_A, "10.0.1.2", "8.8.8.8", 1400, "192.168.0.1"),
        (POD_A, "fd00:1::2", "2001:db8::8", 1400, "fd00::1"),
        (UPLINK, "10.0.2.9", "10.0.1.4", 1300, "192.168.0.1"),
        (UPLINK, "fd00:2::9", "fd00:1::4", 1300, "fd00::1"),
        (HOST, "192.168.0.1", "10.0.1.4", 1300, "169.254.1.1"),
        (HOST, "fd00::1", "fd00:1::4", 1300, "fe80::1"),
    ];
    for (port, from, to, size, teller) in ways {
        let macs = Node::macs(port);
        let whole = unfragmentable(build::udp(macs, (ip(from), 1111), (ip(to), 53), &[7; 1450]));
        let answer = answered(&mut node, port, &whole);
        let expected = if ip(from).is_ipv4() { (3, 4, size) } else { (2, 0, size) };
        assert_eq!(said(&answer), expected, "{from} to {to}");
        let error = headers(&answer);
        assert_eq!(error.source, ip(teller), "{from} to {to}");
        let quoted = parse_quoted(&answer, &error).expect("a quote");
        assert_eq!((quoted.source, quoted.destination), (ip(from), ip(to)));
        assert_eq!((quoted.ports(), quoted.ttl), (Some((1111, 53)), 64), "as it was sent");
        // RFC 1812 §4.3.2.3: up to 576 bytes; RFC 4443 §2.4 (c): as much as fits into 1,280.
        assert_eq!(error.total_len, if ip(from).is_ipv4() { 576 } else { 1280 });
        let fits = build::udp(macs, (ip(from), 1111), (ip(to), 53), &vec![7; size as usize - 48]);
        assert_ne!(node.forward(port, &unfragmentable(fits)).0, port, "{from} to {to}");
    }
}

#[test]
fn a_hop_that_ends_is_told_through_every_kind_of_port() {
    let mut node = with_small_pod();
    for (port, from, to, teller) in [
        (POD_A, "10.0.1.2", "10.0.1.3", "192.168.0.1"),
        (POD_A, "fd00:1::2", "fd00:2::9", "fd00::1"),
        (UPLINK, "10.0.2.9", "10.0.1.2", "192.168.0.1"),
        (UPLINK, "fd00:2::9", "fd00:1::2", "fd00::1"),
    ] {
        let frame = build::ip(Node::macs(port), ip(from), ip(to), 253, b"payload", 1);
        let answer = answered(&mut node, port, &frame);
        assert_eq!(said(&answer), (if ip(from).is_ipv4() { 11 } else { 3 }, 0, 0));
        assert_eq!(headers(&answer).source, ip(teller));
    }
    // The host's own packets make no hop here.
    let frame = build::ip(Node::macs(HOST), ip("192.168.0.1"), ip("10.0.1.2"), 253, b"payload", 1);
    assert_eq!(node.forward(HOST, &frame).0, POD_A);
}

#[test]
fn errors_are_bounded_for_each_port_by_the_workers_clock() {
    let mut node = Node::new();
    let dying = |port, from, to| build::ip(Node::macs(port), ip(from), ip(to), 253, b"payload", 1);
    let from_a = dying(POD_A, "10.0.1.2", "10.0.1.3");
    let mut answers = 0;
    for _ in 0..1000 {
        answers += usize::from(node.send(POD_A, &from_a).is_ok());
    }
    assert_eq!(answers, 200);
    assert_eq!(node.worker.counters().answers_limited, 800);
    assert_eq!(node.send(POD_A, &from_a), Err(DropReason::TtlExpired), "dropped all the same");
    answered(&mut node, POD_B, &dying(POD_B, "10.0.1.3", "10.0.1.2"));
    node.tick(Nanos::from_millis(500));
    let again = (0..1000).filter(|_| node.send(POD_A, &from_a).is_ok()).count();
    assert_eq!(again, 100, "half a second's worth");
}

#[test]
fn rfc_1122_errors_fragments_and_groups_are_never_answered() {
    let mut node = Node::new();
    // An error that would have to be answered: its TTL ends here. It is related, so that it gets as far as that.
    node.forward(POD_A, &build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("10.0.2.9"), 2), b""));
    let quoted = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("10.0.2.9"), 2), b"");
    let body = [&[0; 4], &quoted[14..]].concat();
    let error = build::icmp(Node::macs(UPLINK), ip("10.0.2.9"), ip("10.0.1.2"), 3, 3, &body, 1);
    assert_eq!(node.send(UPLINK, &error), Err(DropReason::TtlExpired));
    // A later fragment.
    let whole = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("10.0.1.3"), 2), &[0; 200]);
    node.forward(POD_A, &build::fragment(&whole, 1, (0, 96), true));
    let mut later = build::fragment(&whole, 1, (96, 208), false);
    later[22] = 1;
    later[24..26].fill(0);
    let sum = checksum::of(&later[14..34]);
    later[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(node.send(POD_A, &later), Err(DropReason::TtlExpired));
    // A frame to all.
    let mut shout = build::ip(Node::macs(POD_A), ip("10.0.1.2"), ip("10.0.1.3"), 253, b"", 1);
    shout[0..6].fill(0xff);
    assert_eq!(node.send(POD_A, &shout), Err(DropReason::BadEthernet));
    assert_eq!(node.worker.counters().icmp_errors_sent, 0);
}

/// An ICMP error of any kind from `from` about `quoted`, a whole frame.
fn about(port: PortIndex, from: &str, quoted: &[u8], kind: u8, code: u8) -> Vec<u8> {
    let body = [&[0, 0, 0x05, 0x00], &quoted[14..]].concat();
    build::icmp(Node::macs(port), ip(from), headers(quoted).source, kind, code, &body, 64)
}

#[test]
fn pm_13_4_errors_about_either_direction_of_a_flow_pass() {
    for (a, far, router) in
        [("10.0.1.2", "10.0.2.9", "192.168.0.254"), ("fd00:1::2", "fd00:2::9", "fd00::99")]
    {
        let mut node = Node::new();
        let kinds: &[(u8, u8)] = if ip(a).is_ipv4() {
            &[(3, 4), (3, 3), (3, 13), (4, 0), (11, 0), (12, 0)]
        } else {
            &[(1, 4), (2, 0), (3, 0), (4, 0)]
        };
        let request = build::udp(Node::macs(POD_A), (ip(a), 1111), (ip(far), 53), b"hello");
        let reply = build::udp(Node::macs(UPLINK), (ip(far), 53), (ip(a), 1111), b"hello");
        node.forward(POD_A, &request);
        let unsent = about(POD_A, a, &reply, kinds[0].0, kinds[0].1);
        assert_eq!(node.send(POD_A, &unsent), Err(DropReason::IcmpUnrelated), "nothing has come yet");
        node.forward(UPLINK, &reply);
        for (kind, code) in kinds {
            let (to, bytes) = node.forward(UPLINK, &about(UPLINK, router, &request, *kind, *code));
            assert_eq!(to, POD_A, "{kind}/{code} about what the pod sent");
            assert_sums(&bytes);
            let (to, bytes) = node.forward(POD_A, &about(POD_A, a, &reply, *kind, *code));
            assert_eq!(to, UPLINK, "{kind}/{code} about what the pod got");
            assert_sums(&bytes);
        }
        // The flow is over after a minute of silence; what quotes it then is nobody's.
        node.now = node.now + Nanos::from_secs(61);
        let late = about(UPLINK, router, &request, kinds[0].0, kinds[0].1);
        assert_eq!(node.send(UPLINK, &late), Err(DropReason::IcmpUnrelated));
    }
}

#[test]
fn pm_13_4_an_error_about_a_ping_is_related_and_one_about_a_refused_flow_is_not() {
    let mut node = Node::new();
    let ping = build::echo(Node::macs(POD_A), ip("10.0.1.2"), ip("10.0.2.9"), 7, true, b"payload");
    node.forward(POD_A, &ping);
    assert_eq!(node.forward(UPLINK, &about(UPLINK, "192.168.0.254", &ping, 11, 0)).0, POD_A);
    node.apply(policy("deny", "a", None, Some(vec![])));
    let late = about(UPLINK, "192.168.0.254", &ping, 11, 0);
    assert_eq!(node.send(UPLINK, &late), Err(DropReason::PolicyEgress));
    // Ports are missing.
    let udp = build::udp(Node::macs(POD_A), (ip("10.0.1.3"), 1), (ip("10.0.2.9"), 2), b"");
    node.forward(POD_B, &build::udp(Node::macs(POD_B), (ip("10.0.1.3"), 1), (ip("10.0.2.9"), 2), b""));
    let body = [&[0; 4], &udp[14..14 + 20 + 3]].concat();
    let cut = build::icmp(Node::macs(UPLINK), ip("192.168.0.254"), ip("10.0.1.3"), 11, 0, &body, 64);
    assert_eq!(node.send(UPLINK, &cut), Err(DropReason::IcmpUnrelated));
}

fn rejecting(name: &str, app: &str, ingress: bool) -> Object {
    let rules = Some(vec![rule(Action::Deny, None)]);
    let (ingress, egress) = if ingress { (rules, None) } else { (None, rules) };
    let Object::Policy(policy) = policy(name, app, ingress, egress) else { panic!("a policy") };
    let mut policy = (*policy).clone();
    policy.flags.deny_action = Some(DenyAction::Reject);
    Object::Policy(policy.into())
}

fn tcp(port: PortIndex, from: &str, to: &str, flags: u8) -> Vec<u8> {
    build::tcp(Node::macs(port), (ip(from), 4000), (ip(to), 80), flags, b"")
}

#[test]
fn pm_32_9_a_rejected_connection_is_reset_at_once() {
    for (a, b, far) in [("10.0.1.2", "10.0.1.3", "10.0.2.9"), ("fd00:1::2", "fd00:1::3", "fd00:2::9")] {
        let mut node = Node::new();
        node.apply(rejecting("reject", "b", true));
        for (port, from) in [(POD_A, a), (UPLINK, far)] {
            let reset = answered(&mut node, port, &tcp(port, from, b, SYN));
            let at = usize::from(headers(&reset).transport_offset);
            assert_eq!(headers(&reset).source, ip(b), "as if the receiver had sent it");
            assert_eq!(headers(&reset).ports(), Some((80, 4000)));
            assert_eq!(reset[at + 13], RST | ACK);
            // The builder's sequence number is 1, and a SYN takes one.
            assert_eq!(reset[at + 4..at + 12], [0, 0, 0, 0, 0, 0, 0, 2]);
        }
        let counters = node.worker.counters();
        assert_eq!((counters.resets_sent, counters.icmp_errors_sent), (2, 0));
        assert_eq!(counters.dropped(DropReason::PolicyIngress), 2);
        let stray = tcp(POD_A, a, b, RST);
        assert_eq!(node.send(POD_A, &stray), Err(DropReason::InvalidState), "a reset is never answered");
    }
}

#[test]
fn pm_32_9_a_rejected_datagram_is_answered_with_prohibited() {
    for (a, b, us, told) in [
        ("10.0.1.2", "10.0.1.3", "192.168.0.1", (3, 13, 0)),
        ("fd00:1::2", "fd00:1::3", "fd00::1", (1, 1, 0)),
    ] {
        let mut node = Node::new();
        node.apply(rejecting("reject", "a", false));
        let udp = build::udp(Node::macs(POD_A), (ip(a), 1), (ip(b), 2), b"hello");
        let answer = answered(&mut node, POD_A, &udp);
        assert_eq!((said(&answer), headers(&answer).source), (told, ip(us)));
        let ping = build::echo(Node::macs(POD_A), ip(a), ip(b), 7, true, b"payload");
        assert_eq!(said(&answered(&mut node, POD_A, &ping)), told);
        // The first fragment of a segment cannot be reset (its length is not known); the later ones are not answered at all.
        let segment = build::tcp(Node::macs(POD_A), (ip(a), 1), (ip(b), 2), SYN, &[0; 100]);
        assert_eq!(said(&answered(&mut node, POD_A, &build::fragment(&segment, 1, (0, 48), true))), told);
        let later = build::fragment(&segment, 1, (48, 120), false);
        assert_eq!(node.send(POD_A, &later), Err(DropReason::PolicyEgress));
    }
}

#[test]
fn pm_32_9_off_by_default_and_nothing_but_policy_rejects() {
    let mut node = Node::new();
    node.apply(policy("deny", "a", None, Some(vec![rule(Action::Deny, None)])));
    assert_eq!(node.send(POD_A, &tcp(POD_A, "10.0.1.2", "10.0.1.3", SYN)), Err(DropReason::PolicyEgress));
    node.apply(rejecting("deny", "a", false));
    answered(&mut node, POD_A, &tcp(POD_A, "10.0.1.2", "10.0.1.3", SYN));
    // Not in a state that any connection of ours has, or not the sender's address: silence.
    let stray = tcp(POD_B, "10.0.1.3", "10.0.2.9", ACK);
    assert_eq!(node.send(POD_B, &stray), Err(DropReason::InvalidState));
    let spoofed = tcp(POD_A, "10.0.1.77", "10.0.1.3", SYN);
    assert_eq!(node.send(POD_A, &spoofed), Err(DropReason::SpoofedPodSource));
}

#[test]
fn pm_14_1_the_configuration_answers_for_policies_that_say_nothing() {
    let mut node = Node::new();
    let syn = tcp(POD_A, "10.0.1.2", "10.0.1.3", SYN);
    node.apply(policy("deny", "a", None, Some(vec![rule(Action::Deny, None)])));
    assert_eq!(node.send(POD_A, &syn), Err(DropReason::PolicyEgress));
    let configuration = FelixConfiguration {
        name: "default".to_owned(),
        others: [("nftablesFilterDenyAction".to_owned(), "Reject".to_owned())].into(),
        ..FelixConfiguration::default()
    };
    node.apply(Object::FelixConfiguration(configuration.into()));
    let reset = answered(&mut node, POD_A, &syn);
    assert_eq!(reset[usize::from(headers(&reset).transport_offset) + 13], RST | ACK);
}

#[test]
fn pm_32_9_a_live_connection_that_policy_ends_is_reset_from_both_sides() {
    let mut node = Node::new();
    let (a, b) = ("10.0.1.2", "10.0.1.3");
    node.forward(POD_A, &tcp(POD_A, a, b, SYN));
    let back = build::tcp(Node::macs(POD_B), (ip(b), 80), (ip(a), 4000), SYN | ACK, b"");
    node.forward(POD_B, &back);
    node.forward(POD_A, &tcp(POD_A, a, b, ACK));
    node.apply(rejecting("reject", "b", true));
    let reset = answered(&mut node, POD_A, &tcp(POD_A, a, b, ACK));
    let at = usize::from(headers(&reset).transport_offset);
    assert_eq!(
        (reset[at + 13], &reset[at + 4..at + 8]),
        (RST, &[0; 4][..]),
        "the number that it acknowledged"
    );
    answered(&mut node, POD_B, &build::tcp(Node::macs(POD_B), (ip(b), 80), (ip(a), 4000), ACK, b"data"));
    assert_eq!(node.worker.counters().resets_sent, 2);
}

#[test]
fn pm_32_9_refusals_have_an_allowance_of_their_own() {
    let mut node = Node::new();
    node.apply(rejecting("reject", "b", true));
    let scan =
        |port: u16| build::tcp(Node::macs(POD_A), (ip("10.0.1.2"), 9), (ip("10.0.1.3"), port), SYN, b"");
    let answers = (1..1000).filter(|port| node.send(POD_A, &scan(*port)).is_ok()).count();
    assert_eq!(answers, 200);
    let big = build::udp(Node::macs(POD_A), (ip("fd00:1::2"), 1), (ip("fd00:2::9"), 2), &[0; 1450]);
    assert_eq!(
        said(&answered(&mut node, POD_A, &big)),
        (2, 0, 1400),
        "a scanner still learns the size of its paths"
    );
}
