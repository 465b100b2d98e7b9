//! What must hold for every frame and every row of frames: the bodies of the packet path's fuzz targets.
//!
//! The same bodies run as property tests in `cargo test -p margay-core --test fuzz_targets`.

#[path = "../../dataplane/core/tests/node/mod.rs"]
mod node;

use std::collections::BTreeMap;
use std::net::IpAddr;

use margay_core::{Nanos, PortIndex};
use margay_policy_engine::model::Action;
use margay_wire::icmp::{self, Error};
use margay_wire::parse::{Packet, parse_quoted};
use margay_wire::{
    ETHERNET_LEN, Fragment, IpHeaders, MacAddr, Parsed, Transport, build, checksum, ndisc, parse, protocol,
    quick, reset,
};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip, our_mac, peer_mac, policy, rule};

const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const THEM: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn headers(frame: &[u8]) -> Option<IpHeaders> {
    match parse(frame) {
        Ok(Parsed { packet: Packet::Ip(ip), .. }) => Some(ip),
        _ => None,
    }
}

/// Any frame: reading never panics, what was read lies within the frame, the quick reader agrees, and checksums are completed once.
pub fn parsing(data: &[u8]) {
    let quick = quick::read(data);
    let Some(ip) = headers(data) else {
        assert!(quick.is_none(), "the quick reader takes what the other refuses");
        return;
    };
    let start = usize::from(ip.transport_offset);
    assert!(ETHERNET_LEN < start && start <= ip.end() && ip.end() <= data.len(), "{ip:?}");
    assert_eq!(ip.source.is_ipv4(), ip.destination.is_ipv4());
    assert_eq!(headers(&data[..ip.end()]), Some(ip), "what follows is link padding");
    match ip.fragment {
        Fragment::None => {}
        Fragment::First { end, .. } => assert!(end > 0 && end % 8 == 0, "{ip:?}"),
        Fragment::Later { start, end, more, .. } => {
            assert!(start > 0 && start % 8 == 0 && start < end, "{ip:?}");
            assert!(!more || end % 8 == 0, "{ip:?}");
            assert_eq!(ip.transport, Transport::Other, "it carries no header, whatever its bytes look like");
        }
    }
    if let Some(quick) = quick {
        assert_eq!(Some((quick.source_port, quick.destination_port)), ip.ports());
        assert_eq!((quick.total_len, quick.protocol, quick.ttl), (ip.total_len, ip.protocol, ip.ttl));
    }
    let mut frame = data.to_vec();
    checksum::write_sctp(&mut frame, std::iter::empty(), &ip);
    checksum::complete_if_partial(&mut frame, &ip);
    let mut again = frame.clone();
    if ip.fragment != Fragment::None {
        assert_eq!(frame, data, "no fragment's sum is touched");
    }
    if let Some(Transport::Tcp { .. }) = headers(&frame).map(|ip| ip.transport) {
        assert!(!checksum::complete_if_partial(&mut again, &ip) || again == frame);
    }
    icmp::clamp_mtu_in_place(&mut frame, &ip);
    let _ = ndisc::read(&frame, &ip);
}

/// Any frame: what is said about it is well-formed, quotes it as it is, and is never said about what must not be answered.
pub fn quoting(data: &[u8]) {
    let Some(ip) = headers(data) else { return };
    if ip.is_icmp_error()
        && let Ok(quoted) = parse_quoted(data, &ip)
    {
        assert_eq!(quoted.source.is_ipv4(), ip.source.is_ipv4());
        assert!(usize::from(quoted.transport_offset) <= ip.end());
    }
    let us: IpAddr = if ip.source.is_ipv4() { [192, 0, 2, 1].into() } else { self::ip("2001:db8::1") };
    let errors = [
        Error::TimeExceeded,
        Error::TooBig(1280),
        Error::NoRoute,
        Error::HostUnreachable,
        Error::PortUnreachable,
        Error::Prohibited,
    ];
    for error in errors {
        let mut out = [0u8; 2048];
        let Some(len) = icmp::write_error(&mut out, data, &ip, error, us, US, THEM) else {
            assert!(!icmp::is_answerable(data, &ip), "{ip:?}");
            return;
        };
        assert!(icmp::is_answerable(data, &ip), "{ip:?}");
        let told = headers(&out[..len]).expect("well-formed");
        assert!(told.is_icmp_error() && told.end() == len);
        assert_eq!((told.source, told.destination), (us, ip.source));
        assert!(told.total_len <= if ip.source.is_ipv4() { 576 } else { 1280 });
        assert_sum(&out[..len], &told);
        // A long chain of extension headers may leave no room for ports; what names the flow names the right one.
        if let Ok(quoted) = parse_quoted(&out[..len], &told) {
            assert_eq!((quoted.source, quoted.destination, quoted.ttl), (ip.source, ip.destination, ip.ttl));
            if quoted.ports().is_some() {
                assert_eq!(quoted.ports(), ip.ports());
            }
        }
        assert!(!icmp::is_answerable(&out[..len], &told), "no error about an error");
    }
    let mut out = [0u8; 128];
    if let Some(len) = reset::write(&mut out, data, &ip, US, THEM) {
        let told = headers(&out[..len]).expect("well-formed");
        assert!(matches!(told.transport, Transport::Tcp { flags, .. } if flags & 4 != 0));
        assert_eq!((told.source, told.destination), (ip.destination, ip.source));
        assert_eq!(told.ports(), ip.ports().map(|(from, to)| (to, from)));
        assert_sum(&out[..len], &told);
        assert_eq!(
            reset::write(&mut [0u8; 128], &out[..len], &told, US, THEM),
            None,
            "no reset about a reset"
        );
    }
}

fn assert_sum(frame: &[u8], ip: &IpHeaders) {
    let segment = &frame[usize::from(ip.transport_offset)..ip.end()];
    let pseudo = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, segment.len() as u32);
    let pseudo = if ip.protocol == protocol::ICMP { 0 } else { pseudo };
    assert_eq!(checksum::fold(checksum::add(pseudo, segment)), 0xffff);
}

/// Gives a frame the Ethernet addresses of who is behind `port` and, where it is IPv4, the right header checksum.
fn dress(frame: &mut [u8], port: PortIndex) {
    if frame.len() >= ETHERNET_LEN {
        frame[0..6].copy_from_slice(&our_mac(port).0);
        frame[6..12].copy_from_slice(&peer_mac(port).0);
    }
    if frame.len() >= ETHERNET_LEN + 20 && frame[12..14] == [0x08, 0x00] {
        let len = (usize::from(frame[ETHERNET_LEN] & 0x0f) * 4).clamp(20, frame.len() - ETHERNET_LEN);
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[ETHERNET_LEN..ETHERNET_LEN + len]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Any frame from a pod, as ARP, as neighbour discovery or as it is: who asks gets an answer, about the gateway and nothing else.
pub fn discovery(data: &[u8]) {
    let mut node = Node::new();
    let mut frame = data.to_vec();
    dress(&mut frame, POD_A);
    let Ok(sent) = node.send(POD_A, &frame) else { return };
    for (port, answer) in sent {
        let parsed = parse(&answer).expect("we send nothing that is malformed");
        match parsed.packet {
            Packet::Arp(arp) => {
                assert_eq!((port, parsed.destination), (POD_A, peer_mac(POD_A)));
                assert_eq!((arp.operation, arp.sender_mac), (2, our_mac(POD_A)));
                assert_eq!(arp.sender_ip.to_string(), "169.254.1.1");
                assert_eq!(answer.len(), ETHERNET_LEN + 28);
            }
            Packet::Ip(told) => {
                let kind = match told.transport {
                    Transport::Icmp { kind, .. } if told.protocol == protocol::ICMPV6 => kind,
                    _ => 0,
                };
                assert!(
                    !(130..=135).contains(&kind) && kind != 137 && kind != 143,
                    "discovery is never passed on"
                );
                if kind == ndisc::NEIGHBOUR_ADVERTISEMENT {
                    assert_eq!((port, parsed.destination), (POD_A, peer_mac(POD_A)));
                    let told = ndisc::read(&answer, &told).expect("as RFC 4861 has it");
                    assert_eq!(IpAddr::from(told.target), ip("fe80::1"));
                    assert_eq!(told.link_address, Some(our_mac(POD_A)));
                }
            }
        }
    }
    assert_eq!(node.frames_out(), node.worker.counters().held as usize);
}

/// UDP from pod a to this port may leave; anything else of pod a is denied, and UDP is told so.
const ALLOWED: u16 = 53;

fn guarded() -> Node {
    let mut node = Node::new();
    let mut allow = rule(Action::Allow, Some(protocol::UDP));
    allow.destination.ports =
        vec![margay_policy_engine::model::PortMatch::Range { first: ALLOWED, last: ALLOWED }];
    node.apply(policy("guard", "a", None, Some(vec![allow])));
    node
}

/// (start, end, more).
type Part = (usize, usize, bool);

/// What the rules about fragments say (policy model 14.5, RFC 5722, RFC 8200 §4.5), word by word, without bounds.
#[derive(Default)]
pub struct Literal {
    /// By datagram: what was accepted, and whether it is poisoned.
    under_way: BTreeMap<u32, (Vec<Part>, bool)>,
}

impl Literal {
    /// Returns the fragments that leave now.
    pub fn arrive(&mut self, id: u32, part: Part, is_allowed: bool) -> Vec<Part> {
        let (accepted, poisoned) = self.under_way.entry(id).or_default();
        if *poisoned || accepted.contains(&part) {
            return Vec::new();
        }
        let overlaps = accepted.iter().any(|other| part.0 < other.1 && other.0 < part.1);
        let all = accepted.iter().copied().chain([part]);
        let ends: Vec<usize> = all.clone().filter(|part| !part.2).map(|part| part.1).collect();
        let furthest = all.map(|part| part.1).max().unwrap_or(0);
        if overlaps || ends.len() > 1 || ends.iter().any(|end| furthest > *end) {
            *poisoned = true;
            return Vec::new();
        }
        let had_first = accepted.iter().any(|part| part.0 == 0);
        accepted.push(part);
        let mut leaving = match (part.0 == 0, had_first) {
            // The first leads, the others follow in order.
            (true, _) => accepted.clone(),
            (false, true) => vec![part],
            (false, false) => vec![],
        };
        leaving.sort();
        let bytes: usize = accepted.iter().map(|part| part.1 - part.0).sum();
        if (had_first || part.0 == 0) && ends.first() == Some(&bytes) {
            self.under_way.remove(&id);
        }
        if is_allowed { leaving } else { Vec::new() }
    }
}

/// Any row of fragments, three bytes each (which datagram; start; length and whether more follow), of datagrams that are allowed or not, of
/// both families, interleaved: what leaves is what the rules say, word by word, with the bytes that were sent.
pub fn fragments(data: &[u8]) {
    const LEN: usize = 128;
    let mut node = guarded();
    let mut literal = Literal::default();
    let ends = [("10.0.1.2", "10.0.1.3"), ("fd00:1::2", "fd00:1::3")];
    let macs = Node::macs(POD_A);
    let whole = |v6: bool, port: u16| {
        let payload: Vec<u8> = (0..LEN - 8).map(|at| (at / 8 * 7 + at % 8 * 31) as u8).collect();
        let (from, to) = ends[usize::from(v6)];
        build::udp(macs, (ip(from), 1111), (ip(to), port), &payload)
    };
    let wholes = [whole(false, ALLOWED), whole(false, 80), whole(true, ALLOWED), whole(true, 80)];
    for record in data.chunks_exact(3).take(200) {
        let which = usize::from(record[0] & 3);
        let id = u32::from(record[0]);
        let start = usize::from(record[1]) % (LEN / 8) * 8;
        let end = (start + (usize::from(record[2] >> 1) % 6 + 1) * 8).min(LEN);
        // From zero without more it is no fragment.
        let more = record[2] & 1 == 1 || start == 0;
        let frame = build::fragment(&wholes[which], id, (start, end), more);
        let body = wholes[which].len() - LEN;
        let out: Vec<Part> = node
            .send(POD_A, &frame)
            .unwrap_or_default()
            .iter()
            .map(|(port, frame)| {
                assert_eq!(*port, POD_B);
                let ip = headers(frame).expect("well-formed");
                let (start, end, more) = match ip.fragment {
                    Fragment::First { end, .. } => (0, usize::from(end), true),
                    Fragment::Later { start, end, more, .. } => (start.into(), end.into(), more),
                    Fragment::None => panic!("not a fragment"),
                };
                assert_eq!(frame[ip.end() - (end - start)..], wholes[which][body + start..body + end]);
                (start, end, more)
            })
            .collect();
        assert_eq!(out, literal.arrive(id, (start, end, more), which % 2 == 0));
        assert_eq!(node.frames_out(), node.worker.counters().held as usize);
    }
    node.tick(Nanos::from_secs(31));
    assert_eq!((node.worker.counters().held, node.frames_out()), (0, 0), "every frame came back");
}

/// Any row of frames at all: (flags, length in two bytes, bytes). Flags: the port (two bits); dress the frame; a second passes; half a
/// minute passes; policy changes; the topology changes; the frame goes in a burst with the one before.
///
/// Nothing panics; every packet has one ending and every frame comes back; what leaves is well-formed and comes from us.
pub fn worker(mut data: &[u8]) {
    let mut node = guarded();
    node.give_spares(4);
    let mut open = false;
    let mut burst: (PortIndex, Vec<Vec<u8>>) = (HOST, Vec::new());
    for _ in 0..100 {
        let [flags, high, low, rest @ ..] = data else { break };
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()).min(2000);
        let (bytes, rest) = rest.split_at(len);
        data = rest;
        let port = [HOST, UPLINK, POD_A, POD_B][usize::from(flags & 3)];
        let mut frame = bytes.to_vec();
        if flags & 4 != 0 {
            dress(&mut frame, port);
        }
        if flags & 128 == 0 || burst.0 != port {
            leave_well_formed(&node.burst(burst.0, &std::mem::take(&mut burst.1)));
        }
        if flags & 8 != 0 {
            leave_well_formed(&node.tick(Nanos::from_secs(1)));
        }
        if flags & 16 != 0 {
            leave_well_formed(&node.tick(Nanos::from_secs(31)));
        }
        if flags & 32 != 0 {
            open = !open;
            let action = if open { Action::Allow } else { Action::Deny };
            node.apply(policy("turns", "b", Some(vec![rule(action, None)]), None));
        }
        if flags & 64 != 0 {
            node.rebuild();
        }
        burst.0 = port;
        burst.1.push(frame);
    }
    leave_well_formed(&node.burst(burst.0, &burst.1));
    leave_well_formed(&node.tick(Nanos::from_secs(62)));
    assert_eq!((node.worker.counters().held, node.frames_out()), (0, 0), "every frame came back");
}

fn leave_well_formed(sent: &[(PortIndex, Vec<u8>)]) {
    for (port, frame) in sent {
        let parsed = parse(frame).expect("what leaves is well-formed");
        assert_eq!(parsed.source, our_mac(*port), "and comes from us");
        assert!(!parsed.destination.is_multicast());
        assert!(frame.len() <= ETHERNET_LEN + if *port == UPLINK { 1400 } else { 1500 });
    }
}

/// Frames and rows of frames that come far: what a corpus begins with. (target, name, bytes).
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let a = Node::macs(POD_A);
    let mut rows = Vec::new();
    for (family, own, peer, far, gateway) in [
        (4, "10.0.1.2", "10.0.1.3", "10.0.2.9", "169.254.1.1"),
        (6, "fd00:1::2", "fd00:1::3", "fd00:2::9", "fe80::1"),
    ] {
        let udp = build::udp(a, (ip(own), 1111), (ip(peer), ALLOWED), &[7; 120]);
        let beyond = build::udp(a, (ip(own), 1111), (ip(far), ALLOWED), &[7; 1450]);
        let tcp = build::tcp(a, (ip(own), 4000), (ip(far), 80), 2, b"");
        let body = [&[0, 0, 5, 0], &udp[ETHERNET_LEN..]].concat();
        let (kind, code) = if family == 4 { (3, 4) } else { (2, 0) };
        let error = build::icmp(Node::macs(POD_B), ip(peer), ip(own), kind, code, &body, 64);
        let ping = build::echo(a, ip(own), ip(gateway), 1, true, b"hello");
        let first = build::fragment(&udp, 7, (0, 64), true);
        let last = build::fragment(&udp, 7, (64, 128), false);
        let frames = [
            ("udp", udp),
            ("beyond", beyond),
            ("tcp", tcp),
            ("error", error),
            ("ping", ping),
            ("first", first),
            ("last", last),
        ];
        for (name, frame) in &frames {
            for target in ["parsing", "quoting", "discovery"] {
                seeds.push((target, format!("{name}{family}"), frame.clone()));
            }
        }
        let mut row = Vec::new();
        for at in [0, 3, 6, 5, 0, 1, 2, 3] {
            let frame = &frames[at].1;
            row.push(if at == 3 { 3 | 4 } else { 2 | 4 | if at == 0 { 128 } else { 0 } });
            row.extend_from_slice(&(frame.len() as u16).to_be_bytes());
            row.extend_from_slice(frame);
        }
        rows.push(row.clone());
        row[0] |= 32 | 64;
        rows.push([row.clone(), row].concat());
    }
    let ask = build::arp(a, 1, (peer_mac(POD_A), [10, 0, 1, 2]), (MacAddr([0; 6]), [169, 254, 1, 1]));
    seeds.push(("discovery", "arp".to_owned(), ask.clone()));
    seeds.push(("parsing", "arp".to_owned(), ask));
    let target: std::net::Ipv6Addr = "fe80::1".parse().expect("an address");
    let body = [&[0; 4][..], &target.octets(), &[1, 1], &peer_mac(POD_A).0].concat();
    let ask = build::icmp(a, ip("fd00:1::2"), ip("fe80::1"), 135, 0, &body, 255);
    seeds.push(("discovery", "solicitation".to_owned(), ask));
    seeds.extend(rows.into_iter().zip(0..).map(|(row, nth)| ("worker", format!("row{nth}"), row)));
    let orders: [&[u8]; 5] = [
        // In order, in disorder, with a duplicate, with an overlap, refused and allowed by turns.
        &[0, 0, 5, 0, 3, 11, 0, 9, 11, 0, 15, 0],
        &[2, 9, 10, 2, 3, 11, 2, 0, 5],
        &[0, 3, 11, 0, 3, 11, 0, 0, 5],
        &[4, 0, 5, 4, 2, 5, 4, 3, 10],
        &[0, 0, 5, 1, 0, 5, 0, 3, 10, 1, 3, 10, 3, 3, 10, 3, 0, 5],
    ];
    seeds.extend(
        orders.into_iter().zip(0..).map(|(row, nth)| ("fragments", format!("order{nth}"), row.to_vec())),
    );
    seeds
}
