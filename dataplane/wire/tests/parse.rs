//! What the parser says about real and about broken packets; etherparse is the second opinion.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use margay_wire::parse::{Packet, parse_quoted, tcp_flags};
use margay_wire::quick;
use margay_wire::{
    Fragment, IpHeaders, MacAddr, ParseError, Transport, build, checksum, icmp, parse, protocol,
};
use proptest::prelude::*;

const MACS: build::Macs = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));

fn ip(text: &str) -> IpAddr {
    text.parse().expect("test address")
}

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

fn error(frame: &[u8]) -> ParseError {
    parse(frame).expect_err("malformed")
}

/// A frame with an IPv6 packet whose extension headers are `chain`: (this header's number, its bytes without the next-header octet).
fn with_extensions(chain: &[(u8, &[u8])], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (at, (_, bytes)) in chain.iter().enumerate() {
        body.push(chain.get(at + 1).map_or(last, |(number, _)| *number));
        body.extend_from_slice(bytes);
    }
    body.extend_from_slice(payload);
    let mut frame = build::ip(MACS, ip("fd00::1"), ip("fd00::2"), 253, &body, 64);
    frame[14 + 6] = chain.first().map_or(last, |(number, _)| *number);
    frame
}

const UDP_53: [u8; 12] = [0x04, 0x57, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];

#[test]
fn extension_headers_lead_to_the_transport() {
    let pad = [0, 1, 4, 0, 0, 0, 0];
    let frame = with_extensions(&[(0, &pad), (60, &pad)], protocol::UDP, &UDP_53);
    let ip = headers(&frame);
    assert_eq!((ip.protocol, ip.ports()), (protocol::UDP, Some((0x457, 53))));
    assert_eq!(ip.transport_offset, 14 + 40 + 16);
}

#[test]
fn hop_by_hop_comes_first_and_chains_end() {
    let pad = [0, 1, 4, 0, 0, 0, 0];
    assert_eq!(error(&with_extensions(&[(60, &pad), (0, &pad)], 17, &UDP_53)), ParseError::BadIpv6Header);
    let nine = vec![(60, &pad[..]); 9];
    assert_eq!(error(&with_extensions(&nine, 17, &UDP_53)), ParseError::BadIpv6Header);
    assert_eq!(
        error(&with_extensions(&[(60, &[200, 0, 0, 0, 0, 0, 0])], 17, &UDP_53)),
        ParseError::Truncated
    );
}

#[test]
fn routing_headers_with_segments_left_are_source_routing() {
    let left = [0, 0, 1, 0, 0, 0, 0];
    assert_eq!(error(&with_extensions(&[(43, &left)], 17, &UDP_53)), ParseError::SourceRouting);
    let done = [0, 0, 0, 0, 0, 0, 0];
    assert_eq!(headers(&with_extensions(&[(43, &done)], 17, &UDP_53)).protocol, protocol::UDP);
}

#[test]
fn ipv6_fragments_have_places() {
    let fragment = |offset: u16, more: u16| {
        let [high, low] = (offset | more).to_be_bytes();
        [0, high, low, 0, 0, 0, 7]
    };
    let even = [&UDP_53[..], &[5, 6, 7, 8]].concat();
    let first = headers(&with_extensions(&[(44, &fragment(0, 1))], 17, &even));
    assert_eq!((first.fragment, first.ports()), (Fragment::First { id: 7, end: 16 }, Some((0x457, 53))));
    let later = headers(&with_extensions(&[(44, &fragment(8, 0))], 17, &UDP_53));
    let place = Fragment::Later { id: 7, start: 8, end: 20, more: false };
    assert_eq!((later.fragment, later.transport), (place, Transport::Other));
    let atomic = headers(&with_extensions(&[(44, &fragment(0, 0))], 17, &UDP_53));
    assert_eq!(atomic.fragment, Fragment::None, "RFC 6946");
    assert_eq!(
        error(&with_extensions(&[(44, &fragment(0, 1))], 17, &UDP_53[..4])),
        ParseError::BadFragment,
        "tiny"
    );
    assert_eq!(error(&with_extensions(&[(44, &fragment(0xfff8, 0))], 17, &UDP_53)), ParseError::BadFragment);
    assert_eq!(
        error(&with_extensions(&[(44, &fragment(8, 1))], 17, &UDP_53)),
        ParseError::BadFragment,
        "12 is no multiple of 8"
    );
    let segment = [0u8; 16];
    assert_eq!(
        error(&with_extensions(&[(44, &fragment(8, 0))], 6, &segment)),
        ParseError::BadFragment,
        "would overwrite flags that rules have read (RFC 3128)"
    );
    assert_eq!(
        error(&with_extensions(&[(44, &fragment(0, 1)), (44, &fragment(0, 0))], 17, &even)),
        ParseError::BadIpv6Header,
        "the second header would call the part a whole"
    );
    assert_eq!(
        error(&with_extensions(&[(44, &fragment(0, 1)), (60, &[2, 0, 0, 0, 0, 0, 0])], 17, &even)),
        ParseError::BadFragment,
        "the header chain goes on in the next fragment (RFC 7112)"
    );
    // The hop-by-hop header before the fragment's counts: 8 + 65,512 + 16 is too long, 65,512 + 16 is not.
    let hop: [u8; 7] = [0; 7];
    let last = fragment(65_512, 0);
    assert_eq!(error(&with_extensions(&[(0, &hop), (44, &last)], 17, &even)), ParseError::BadFragment);
    assert!(matches!(
        headers(&with_extensions(&[(44, &last)], 17, &even)).fragment,
        Fragment::Later { start: 65_512, end: 65_528, .. }
    ));
}

#[test]
fn ipv4_fragments_have_places_and_tiny_ones_a_name() {
    // 16 bytes of UDP and payload follow the header.
    let place = |word: u16| edited(move |h| h[6..8].copy_from_slice(&word.to_be_bytes()));
    assert_eq!(headers(&place(0x2000)).fragment, Fragment::First { id: 0, end: 16 });
    let later = Fragment::Later { id: 0, start: 80, end: 96, more: true };
    assert_eq!(headers(&place(0x2000 | 10)).fragment, later);
    // 20 + 65,504 + 16 exceeds what one packet may have.
    assert_eq!(error(&place(8188)), ParseError::BadFragment, "the whole would be longer than 65,535");
    let tcp = |word: u16, len: usize| {
        let mut frame = build::tcp(MACS, (ip("10.0.0.1"), 1), (ip("10.0.0.2"), 2), 2, &[0; 12]);
        frame.truncate(34 + len);
        frame[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    assert_eq!(headers(&tcp(0x2000, 24)).fragment, Fragment::First { id: 0, end: 24 });
    assert_eq!(error(&tcp(0x2000, 16)), ParseError::BadFragment, "flags not in the first (RFC 1858 §3.1)");
    assert_eq!(error(&tcp(1, 24)), ParseError::BadFragment, "offset 1 (RFC 1858 §3.2)");
    assert_eq!(error(&tcp(2, 24)), ParseError::BadFragment, "offset 2 still lies in the header");
    assert!(matches!(headers(&tcp(3, 24)).fragment, Fragment::Later { start: 24, end: 48, more: false, .. }));
}

/// An IPv4 frame whose header is changed by `edit` and summed again.
fn edited(edit: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut frame = build::udp(MACS, (ip("10.0.0.1"), 1111), (ip("10.0.0.2"), 53), b"payload.");
    edit(&mut frame[14..34]);
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn ipv4_headers_are_checked() {
    assert_eq!(headers(&edited(|_| {})).ports(), Some((1111, 53)));
    assert_eq!(error(&edited(|h| h[0] = 0x55)), ParseError::BadIpv4Header, "version");
    assert_eq!(error(&edited(|h| h[0] = 0x44)), ParseError::BadIpv4Header, "header length");
    assert_eq!(error(&edited(|h| h[3] = 10)), ParseError::BadIpv4Header, "total length below the header");
    assert_eq!(error(&edited(|h| h[2] = 9)), ParseError::Truncated, "total length beyond the frame");
    let mut wrong = edited(|_| {});
    wrong[24] ^= 0xff;
    assert_eq!(error(&wrong), ParseError::BadIpv4Header, "header checksum");
    assert_eq!(
        error(&edited(|h| h[6..8].copy_from_slice(&[0x1f, 0xff]))),
        ParseError::BadFragment,
        "beyond 65,535"
    );
}

#[test]
fn ipv4_source_routes_are_refused() {
    for (option, outcome) in
        [(131u8, Err(ParseError::SourceRouting)), (137, Err(ParseError::SourceRouting)), (7, Ok(()))]
    {
        let plain = build::udp(MACS, (ip("10.0.0.1"), 1111), (ip("10.0.0.2"), 53), b"");
        let mut frame = plain[..34].to_vec();
        frame.extend_from_slice(&[option, 7, 4, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&plain[34..]);
        frame[14] = 0x47;
        frame[16..18].copy_from_slice(&36u16.to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..42]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(parse(&frame).map(|_| ()), outcome, "option {option}");
    }
}

#[test]
fn impossible_tcp_flags_are_refused() {
    let segment = |flags: u8| {
        let mut frame = build::tcp(MACS, (ip("10.0.0.1"), 1), (ip("10.0.0.2"), 2), 0x10, b"");
        frame[14 + 20 + 13] = flags;
        frame
    };
    for flags in [0x00, 0x03, 0x06, 0x20, 0x08, 0x29 & !0x01 & !0x10] {
        assert_eq!(error(&segment(flags)), ParseError::BadTransport, "{flags:#x}");
    }
    for flags in [0x02, 0x12, 0x10, 0x11, 0x04, 0x14, 0x18] {
        assert!(matches!(headers(&segment(flags)).transport, Transport::Tcp { flags: f, .. } if f == flags));
    }
    let mut short = segment(tcp_flags::ACK);
    short[14 + 20 + 12] = 0x40;
    assert_eq!(error(&short), ParseError::BadTransport, "header length");
}

#[test]
fn a_quoted_packet_names_its_flow_with_eight_bytes_of_transport() {
    let offending = build::tcp(MACS, (ip("10.0.0.1"), 4000), (ip("10.0.0.2"), 80), 0x02, b"");
    let mut body = vec![0, 0, 0, 0];
    body.extend_from_slice(&offending[14..14 + 20 + 8]);
    let frame = build::icmp(MACS, ip("10.0.0.9"), ip("10.0.0.1"), 3, 1, &body, 64);
    let outer = headers(&frame);
    assert!(outer.is_icmp_error());
    assert_eq!(parse_quoted(&frame, &outer).expect("a quote").ports(), Some((4000, 80)));
    let cut = build::icmp(MACS, ip("10.0.0.9"), ip("10.0.0.1"), 3, 1, &body[..4 + 20 + 3], 64);
    assert!(parse_quoted(&cut, &headers(&cut)).is_err(), "without ports it names nothing");
}

#[test]
fn errors_quote_what_they_are_about_and_keep_silent_about_errors() {
    for (from, to, us) in [("10.0.0.1", "10.0.0.2", "10.9.9.9"), ("fd00::1", "fd00::2", "fd00::9")] {
        let frame = build::udp(MACS, (ip(from), 7), (ip(to), 8), &[9; 1400]);
        let mut out = [0u8; 2048];
        let error = icmp::Error::TooBig(1300);
        let len = icmp::write_error(&mut out, &frame, &headers(&frame), error, ip(us), MACS.1, MACS.0)
            .expect("sent");
        let told = headers(&out[..len]);
        assert_eq!((told.source, told.destination), (ip(us), ip(from)));
        assert!(told.total_len <= if told.source.is_ipv4() { 576 } else { 1280 });
        assert_eq!(parse_quoted(&out[..len], &told).expect("a quote").ports(), Some((7, 8)));
        let again = icmp::write_error(&mut [0u8; 2048], &out[..len], &told, error, ip(us), MACS.1, MACS.0);
        assert_eq!(again, None, "never an error about an error");
    }
}

/// What etherparse makes of the frame: addresses and, where it sees a transport header, ports.
type Opinion = Option<(IpAddr, IpAddr, Option<(u16, u16)>)>;

fn second_opinion(frame: &[u8]) -> Opinion {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination) = match sliced.net? {
        NetSlice::Ipv4(v4) => (v4.header().source_addr().into(), v4.header().destination_addr().into()),
        NetSlice::Ipv6(v6) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let ports = match sliced.transport {
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        _ => None,
    };
    Some((source, destination, ports))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(margay_wire::Parsed { packet: Packet::Ip(ip), .. }) = parse(&bytes) {
            prop_assert!(14 <= usize::from(ip.transport_offset));
            prop_assert!(usize::from(ip.transport_offset) <= ip.end());
            prop_assert!(ip.end() <= bytes.len());
            prop_assert_eq!(ip.source.is_ipv4(), ip.destination.is_ipv4());
        }
    }

    /// Well-formed packets with changed bytes: what both parsers accept, both read alike.
    #[test]
    fn agrees_with_etherparse(
        v6 in any::<bool>(),
        tcp in any::<bool>(),
        ports in any::<(u16, u16)>(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
        changes in prop::collection::vec((12usize..80, any::<u8>()), 0..4),
    ) {
        let (from, to) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        let (from, to) = ((ip(from), ports.0), (ip(to), ports.1));
        let mut frame = match tcp {
            true => build::tcp(MACS, from, to, tcp_flags::ACK, &payload),
            false => build::udp(MACS, from, to, &payload),
        };
        if changes.is_empty() {
            let read = headers(&frame);
            prop_assert_eq!((read.source, read.destination, read.ports()), (from.0, to.0, Some(ports)));
        }
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let ours = parse(&frame).ok().and_then(|parsed| match parsed.packet {
            Packet::Ip(ip) => Some(ip),
            Packet::Arp(_) => None,
        });
        if let (Some(ours), Some((source, destination, ports))) = (ours, second_opinion(&frame)) {
            prop_assert_eq!((ours.source, ours.destination), (source, destination));
            if let (Transport::Tcp { .. } | Transport::Udp { .. }, Some(ports), Fragment::None) =
                (ours.transport, ports, ours.fragment)
                && matches!(ours.protocol, protocol::TCP | protocol::UDP)
            {
                prop_assert_eq!(ours.ports(), Some(ports));
            }
        }
    }

    /// What the quick reader accepts, the parser reads alike; what is plain and well-formed, the quick reader accepts.
    #[test]
    fn quick_agrees_with_parse(
        v6 in any::<bool>(),
        tcp in any::<bool>(),
        ports in any::<(u16, u16)>(),
        flags in any::<u8>(),
        payload in prop::collection::vec(any::<u8>(), 0..40),
        changes in prop::collection::vec((12usize..80, any::<u8>()), 0..3),
        cut in 0usize..30,
    ) {
        let (from, to) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        let (from, to) = ((ip(from), ports.0), (ip(to), ports.1));
        let mut frame = match tcp {
            true => build::tcp(MACS, from, to, flags & 0x1f, &payload),
            false => build::udp(MACS, from, to, &payload),
        };
        let untouched = changes.is_empty() && cut < 20;
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if cut >= 20 {
            frame.truncate(frame.len() - (cut - 20));
        }
        let slow = parse(&frame).ok().and_then(|parsed| match parsed.packet {
            Packet::Ip(ip) => Some(ip),
            Packet::Arp(_) => None,
        });
        let number = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        match (quick::read(&frame), slow) {
            (Some(fast), Some(slow)) => {
                prop_assert_eq!((fast.source, fast.destination), (number(slow.source), number(slow.destination)));
                prop_assert_eq!(Some((fast.source_port, fast.destination_port)), slow.ports());
                prop_assert_eq!((fast.ttl, fast.total_len, fast.protocol), (slow.ttl, slow.total_len, slow.protocol));
                prop_assert_eq!((fast.transport_offset(), fast.end()), (usize::from(slow.transport_offset), slow.end()));
                prop_assert_eq!(slow.fragment, Fragment::None);
                if let Transport::Tcp { flags, .. } = slow.transport {
                    prop_assert_eq!(fast.tcp_flags, flags);
                }
                prop_assert_eq!(fast.parsed(&frame), parse(&frame).ok());
                let (mut one, mut other) = (frame.clone(), frame.clone());
                quick::complete_if_partial(&mut one, &fast);
                checksum::complete_if_partial(&mut other, &slow);
                prop_assert_eq!(one, other);
            }
            (Some(fast), None) => prop_assert!(false, "{fast:?} is malformed"),
            (None, slow) => prop_assert!(!untouched || slow.is_none(), "a plain packet was not taken"),
        }
    }

    /// Completing a partial checksum gives what a correct sender would have written.
    #[test]
    fn completion_restores_the_senders_checksum(
        v6 in any::<bool>(),
        tcp in any::<bool>(),
        ports in any::<(u16, u16)>(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (from, to) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        let (from, to) = ((ip(from), ports.0), (ip(to), ports.1));
        let frame = match tcp {
            true => build::tcp(MACS, from, to, tcp_flags::ACK, &payload),
            false => build::udp(MACS, from, to, &payload),
        };
        let read = headers(&frame);
        let start = usize::from(read.transport_offset);
        let at = start + if tcp { 16 } else { 6 };
        let pseudo = checksum::pseudo_header(read.source, read.destination, read.protocol, (read.end() - start) as u32);
        let mut partial = frame.clone();
        partial[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        let read = headers(&partial);
        // A folded pseudo-header sum is zero only if all of it is: UDP "no checksum" cannot be meant.
        let mut quickly = partial.clone();
        prop_assert!(checksum::complete_if_partial(&mut partial, &read));
        prop_assert_eq!(&partial, &frame);
        let fast = quick::read(&quickly).expect("a plain packet");
        quick::complete_if_partial(&mut quickly, &fast);
        prop_assert_eq!(&quickly, &frame);
    }
}

/// Sequence number, acknowledgment number and flags of a TCP frame.
fn numbers(frame: &[u8]) -> (u32, u32, u8) {
    let at = usize::from(headers(frame).transport_offset);
    let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    (number(at + 4), number(at + 8), frame[at + 13])
}

#[test]
fn a_reset_has_the_numbers_that_its_receiver_accepts() {
    use margay_wire::reset;
    let ends = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];
    for (from, to) in ends {
        let segment = |flags: u8, payload: &[u8]| {
            let mut frame = build::tcp(MACS, (ip(from), 4000), (ip(to), 80), flags, payload);
            let at = usize::from(headers(&frame).transport_offset);
            frame[at + 4..at + 12].copy_from_slice(&[0xff, 0xff, 0xff, 0xfe, 0, 0, 0x12, 0x34]);
            frame
        };
        let answer = |frame: &[u8]| {
            let mut out = [0u8; 128];
            let len = reset::write(&mut out, frame, &headers(frame), MACS.1, MACS.0)?;
            Some(out[..len].to_vec())
        };
        for (flags, payload, expected) in [
            (0x02, &b""[..], (0, 0xffff_ffff, 0x14)),
            (0x02, &b"fast open"[..], (0, 8, 0x14)),
            (0x01, &b"ab"[..], (0, 1, 0x14)),
            (0x10, &b"abc"[..], (0x1234, 0, 0x04)),
            (0x12, &b""[..], (0x1234, 0, 0x04)),
        ] {
            let reset = answer(&segment(flags, payload)).expect("answered");
            assert_eq!(numbers(&reset), expected, "flags {flags:#x}");
            let ip = headers(&reset);
            assert_eq!((ip.source, ip.destination), (self::ip(to), self::ip(from)));
            assert_eq!(ip.ports(), Some((80, 4000)));
            assert_eq!((&reset[0..6], &reset[6..12]), (&MACS.0.0[..], &MACS.1.0[..]));
            let segment = &reset[usize::from(ip.transport_offset)..];
            let pseudo = checksum::pseudo_header(ip.source, ip.destination, 6, segment.len() as u32);
            assert_eq!(checksum::fold(checksum::add(pseudo, segment)), 0xffff, "the sum is right");
        }
        assert_eq!(answer(&segment(0x04, b"")), None, "no reset answers a reset");
        assert_eq!(answer(&segment(0x14, b"")), None);
        assert_eq!(answer(&build::udp(MACS, (ip(from), 1), (ip(to), 2), b"")), None);
    }
}

#[test]
fn nothing_is_said_to_or_about_groups() {
    let to_group = build::udp(MACS, (ip("10.0.0.1"), 1), (ip("224.1.1.1"), 2), b"");
    assert!(!icmp::is_answerable(&to_group, &headers(&to_group)));
    let mut over_broadcast = build::udp(MACS, (ip("10.0.0.1"), 1), (ip("10.0.0.2"), 2), b"");
    assert!(icmp::is_answerable(&over_broadcast, &headers(&over_broadcast)));
    over_broadcast[0..6].fill(0xff);
    assert!(!icmp::is_answerable(&over_broadcast, &headers(&over_broadcast)));
}

proptest! {
    #[test]
    fn a_built_fragment_says_what_it_holds(
        v4: bool, id: u16, start in 0usize..20, len in 1usize..40, more: bool,
    ) {
        let (from, to) = if v4 { ("10.0.0.1", "10.0.0.2") } else { ("fd00::1", "fd00::2") };
        let whole = build::udp(MACS, (ip(from), 1), (ip(to), 2), &[7; 600]);
        let (start, end) = (start * 8, start * 8 + len * 8);
        let frame = build::fragment(&whole, id.into(), (start, end), more);
        let expected = match (start, more) {
            (0, false) => Fragment::None,
            (0, true) => Fragment::First { id: id.into(), end: end as u16 },
            _ => Fragment::Later { id: id.into(), start: start as u16, end: end as u16, more },
        };
        // A whole packet's UDP length is another, so a single fragment without successors is no datagram.
        match parse(&frame) {
            Ok(parsed) => match parsed.packet {
                Packet::Ip(ip) => prop_assert_eq!(ip.fragment, expected),
                Packet::Arp(_) => prop_assert!(false),
            },
            Err(error) => prop_assert_eq!((error, expected), (ParseError::BadTransport, Fragment::None)),
        }
    }
}
