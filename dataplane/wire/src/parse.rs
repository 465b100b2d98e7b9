//! One pass over a frame: Ethernet, ARP, IPv4, IPv6 with its extension headers, TCP, UDP, SCTP, ICMP, ICMPv6.
//!
//! Invariants of an [`IpHeaders`] that this module returned: `ETHERNET_LEN <= transport_offset <= end() <= frame length`; the transport
//! header named by `transport` lies wholly below `end()`; both addresses are of one family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{ETHERNET_LEN, MacAddr, checksum, protocol};

/// Why a frame has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// It ends before a header that it announces.
    Truncated,
    /// Neither IPv4, IPv6 nor ARP; the value is the EtherType.
    UnknownEtherType(u16),
    /// An 802.1Q or 802.1ad tag.
    VlanTagged,
    /// Version, header length, total length or checksum (RFC 791 §3.1).
    BadIpv4Header,
    /// Version, payload length or extension header chain (RFC 8200 §4).
    BadIpv6Header,
    /// Loose or strict source route, or a routing header with segments left (RFC 5095, RFC 8200 §4.4).
    SourceRouting,
    /// Impossible transport lengths or flags.
    BadTransport,
    /// A fragment that is tiny, overlong, empty or not in steps of eight bytes (RFC 1858, RFC 3128, RFC 8200 §4.5).
    BadFragment,
    /// Not Ethernet/IPv4 ARP (RFC 826).
    BadArp,
}

/// Place of an IP packet within its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    None,
    /// The first of several; carries the whole transport header.
    First {
        /// Identification.
        id: u32,
        /// It holds the bytes `0..end` of what was fragmented.
        end: u16,
    },
    /// Any other fragment.
    Later {
        /// Identification.
        id: u32,
        /// It holds the bytes `start..end` of what was fragmented; `start` is not zero.
        start: u16,
        /// The byte behind its last.
        end: u16,
        /// More follow behind it.
        more: bool,
    },
}

impl Fragment {
    /// Says what a fragment is. `start` and `more` are its header's words, `payload` is its length in bytes, and `before` is what the whole
    /// packet has in front of its first fragmented byte and counts towards 65,535.
    fn new(id: u32, start: usize, payload: usize, more: bool, before: usize) -> Result<Self, ParseError> {
        let whole = payload > 0 && (!more || payload.is_multiple_of(8));
        match (start, more, u16::try_from(before + start + payload)) {
            // An atomic fragment is a whole packet (RFC 6946).
            (0, false, _) => Ok(Self::None),
            (0, true, Ok(_)) if whole => Ok(Self::First { id, end: payload as u16 }),
            (_, _, Ok(_)) if whole => {
                Ok(Self::Later { id, start: start as u16, end: (start + payload) as u16, more })
            }
            _ => Err(ParseError::BadFragment),
        }
    }
}

/// What follows the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// RFC 9293.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The flag octet: CWR ECE URG ACK PSH RST SYN FIN.
        flags: u8,
    },
    /// RFC 768, also UDP-Lite (RFC 3828).
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The checksum field as received.
        checksum: u16,
    },
    /// RFC 9260.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Type of the first chunk; 255 when there is none.
        chunk: u8,
    },
    /// RFC 792 or RFC 4443, by the packet's protocol.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier of echo and its like; zero for others.
        id: u16,
    },
    /// Any other protocol, and fragments without the transport header.
    Other,
}

/// TCP flag bits.
pub mod tcp_flags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// The headers of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeaders {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol, behind any IPv6 extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 "don't fragment"; always true for IPv6.
    pub dont_fragment: bool,
    /// Place within a fragmented datagram.
    pub fragment: Fragment,
    /// Offset of the transport header in the frame, in bytes.
    pub transport_offset: u16,
    /// Length of the IP packet, header included, in bytes.
    pub total_len: u16,
    /// The transport header.
    pub transport: Transport,
}

impl IpHeaders {
    /// Returns the offset in the frame behind the packet's last byte; what follows is link padding.
    #[inline]
    pub fn end(&self) -> usize {
        ETHERNET_LEN + usize::from(self.total_len)
    }

    /// Returns (source, destination) ports where the protocol has them.
    #[inline]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            Transport::Tcp { source, destination, .. }
            | Transport::Udp { source, destination, .. }
            | Transport::Sctp { source, destination, .. } => Some((source, destination)),
            Transport::Icmp { .. } | Transport::Other => None,
        }
    }

    /// Returns whether this is an ICMP or ICMPv6 error message (RFC 1122 §3.2.2, RFC 4443 §2.1).
    #[inline]
    pub fn is_icmp_error(&self) -> bool {
        match self.transport {
            Transport::Icmp { kind, .. } if self.protocol == protocol::ICMP => {
                matches!(kind, 3 | 4 | 5 | 11 | 12)
            }
            Transport::Icmp { kind, .. } => kind < 128,
            _ => false,
        }
    }
}

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: MacAddr,
    /// Sender protocol address.
    pub sender_ip: Ipv4Addr,
    /// Target protocol address.
    pub target_ip: Ipv4Addr,
}

/// What the frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// ARP.
    Arp(Arp),
    /// IPv4 or IPv6.
    Ip(IpHeaders),
}

/// A parsed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Ethernet destination.
    pub destination: MacAddr,
    /// Ethernet source.
    pub source: MacAddr,
    /// What it carries.
    pub packet: Packet,
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Returns what `frame`, from its Ethernet header on, is.
///
/// Errors: a [`ParseError`] naming the first thing that is wrong. Never panics, whatever the bytes.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Parsed, ParseError> {
    parse_head(frame, frame.len())
}

/// As [`parse()`], for a frame of `whole` bytes of which only the first, all headers among them, are in `frame`.
///
/// Errors: as there; headers that reach beyond `frame` are [`ParseError::Truncated`].
#[inline]
pub fn parse_head(frame: &[u8], whole: usize) -> Result<Parsed, ParseError> {
    let Some(ethernet) = frame.first_chunk::<ETHERNET_LEN>() else { return Err(ParseError::Truncated) };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *ethernet;
    let packet = match u16::from_be_bytes([t0, t1]) {
        0x0800 => Packet::Ip(parse_ip(frame, ETHERNET_LEN, 4, Depth::Outer { whole })?),
        0x86dd => Packet::Ip(parse_ip(frame, ETHERNET_LEN, 6, Depth::Outer { whole })?),
        0x0806 => Packet::Arp(parse_arp(&frame[ETHERNET_LEN..])?),
        0x8100 | 0x88a8 | 0x9100 => return Err(ParseError::VlanTagged),
        other => return Err(ParseError::UnknownEtherType(other)),
    };
    Ok(Parsed {
        destination: MacAddr([d0, d1, d2, d3, d4, d5]),
        source: MacAddr([s0, s1, s2, s3, s4, s5]),
        packet,
    })
}

/// How much of the packet is expected to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// A packet on its way in a frame of so many bytes: everything it announces is present.
    Outer { whole: usize },
    /// The beginning of a packet, quoted in an ICMP error.
    Quoted,
}

/// Returns the headers of the packet that the ICMP error in `frame` quotes. Only the first eight transport bytes need to be present
/// (RFC 792); offsets in the result are relative to `frame`, and `total_len` is what the quoted header says.
///
/// Errors: [`ParseError`] when the quote is too short to name a flow.
pub fn parse_quoted(frame: &[u8], error: &IpHeaders) -> Result<IpHeaders, ParseError> {
    let at = usize::from(error.transport_offset) + 8;
    let quoted = frame.get(..error.end()).filter(|f| f.len() > at).ok_or(ParseError::Truncated)?;
    parse_ip(quoted, at, if error.source.is_ipv4() { 4 } else { 6 }, Depth::Quoted)
}

#[inline]
fn parse_ip(frame: &[u8], at: usize, version: u8, depth: Depth) -> Result<IpHeaders, ParseError> {
    if version == 4 { parse_ipv4(frame, at, depth) } else { parse_ipv6(frame, at, depth) }
}

#[inline]
fn parse_ipv4(frame: &[u8], at: usize, depth: Depth) -> Result<IpHeaders, ParseError> {
    let Some(header) = frame[at..].first_chunk::<20>() else { return Err(ParseError::Truncated) };
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = be16(header, 2);
    if header[0] >> 4 != 4 || header_len < 20 || usize::from(total_len) < header_len {
        return Err(ParseError::BadIpv4Header);
    }
    let Some(whole) = frame.get(at..at + header_len) else { return Err(ParseError::Truncated) };
    if let Depth::Outer { whole: present } = depth {
        if present < at + usize::from(total_len) {
            return Err(ParseError::Truncated);
        }
        if checksum::fold(checksum::add(0, whole)) != 0xffff {
            return Err(ParseError::BadIpv4Header);
        }
    }
    if header_len > 20 {
        check_ipv4_options(&whole[20..])?;
    }
    let flags = be16(header, 6);
    let offset = usize::from(flags & 0x1fff) * 8;
    let more = flags & 0x2000 != 0;
    let id = u32::from(be16(header, 4));
    let payload = usize::from(total_len) - header_len;
    let fragment = Fragment::new(id, offset, payload, more, header_len)?;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    finish(
        frame,
        at + header_len,
        at + usize::from(total_len),
        depth,
        IpHeaders {
            source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
            destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
            protocol: header[9],
            ttl: header[8],
            dont_fragment: flags & 0x4000 != 0,
            fragment,
            transport_offset: 0,
            total_len,
            transport: Transport::Other,
        },
    )
}

/// Source: RFC 791 §3.1 (options 131 loose and 137 strict source route), RFC 7126.
fn check_ipv4_options(mut options: &[u8]) -> Result<(), ParseError> {
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return Ok(()),
            1 => options = rest,
            131 | 137 => return Err(ParseError::SourceRouting),
            _ => match rest.first() {
                Some(&len) if len >= 2 && usize::from(len) <= options.len() => {
                    options = &options[usize::from(len)..]
                }
                _ => return Err(ParseError::BadIpv4Header),
            },
        }
    }
    Ok(())
}

/// Most extension headers in one packet; the standards allow each kind once, more is an attack on parsers.
const MAX_EXTENSION_HEADERS: usize = 8;

fn parse_ipv6(frame: &[u8], at: usize, depth: Depth) -> Result<IpHeaders, ParseError> {
    let Some(header) = frame[at..].first_chunk::<40>() else { return Err(ParseError::Truncated) };
    let payload_len = usize::from(be16(header, 4));
    // A total above 65,535 would need a jumbogram (RFC 2675), which no port of ours carries.
    let total_len = u16::try_from(40 + payload_len).map_err(|_| ParseError::BadIpv6Header)?;
    if header[0] >> 4 != 6 {
        return Err(ParseError::BadIpv6Header);
    }
    if let Depth::Outer { whole } = depth
        && whole < at + usize::from(total_len)
    {
        return Err(ParseError::Truncated);
    }
    let end = (at + usize::from(total_len)).min(frame.len());
    let mut next = header[6];
    let mut offset = at + 40;
    let mut fragment = Fragment::None;
    let mut seen_fragment_header = false;
    // A first fragment must hold every header, or rules could be cheated (RFC 7112).
    let short = |fragment: Fragment| match fragment {
        Fragment::First { .. } => ParseError::BadFragment,
        _ => ParseError::Truncated,
    };
    for count in 0.. {
        let is_extension = matches!(next, 0 | 43 | 44 | 51 | 60);
        if !is_extension || matches!(fragment, Fragment::Later { .. }) {
            break;
        }
        if count == MAX_EXTENSION_HEADERS || (next == 0 && count != 0) {
            return Err(ParseError::BadIpv6Header);
        }
        let Some(extension) = frame[..end].get(offset..offset + 8) else { return Err(short(fragment)) };
        let len = match next {
            // A second one could call a part the whole.
            44 if seen_fragment_header => return Err(ParseError::BadIpv6Header),
            44 => {
                let place = be16(extension, 2);
                let id = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                let start = usize::from(place & 0xfff8);
                let more = place & 1 != 0;
                let payload = (at + usize::from(total_len)).saturating_sub(offset + 8);
                let before = offset - at - 40;
                fragment = Fragment::new(id, start, payload, more, before)?;
                seen_fragment_header = true;
                8
            }
            51 => (usize::from(extension[1]) + 2) * 4,
            43 if extension[3] != 0 => return Err(ParseError::SourceRouting),
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        next = extension[0];
        offset += len;
        if offset > end {
            return Err(short(fragment));
        }
    }
    let address = |from: usize| {
        let octets: [u8; 16] = header[from..from + 16].try_into().expect("16 of 40 bytes");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    finish(
        frame,
        offset,
        at + usize::from(total_len),
        depth,
        IpHeaders {
            source: address(8),
            destination: address(24),
            protocol: next,
            ttl: header[7],
            dont_fragment: true,
            fragment,
            transport_offset: 0,
            total_len,
            transport: Transport::Other,
        },
    )
}

/// Reads the transport header at `offset`, where there is one.
#[inline]
fn finish(
    frame: &[u8],
    offset: usize,
    end: usize,
    depth: Depth,
    mut ip: IpHeaders,
) -> Result<IpHeaders, ParseError> {
    ip.transport_offset = offset as u16;
    if let Fragment::Later { start, .. } = ip.fragment {
        // Nobody's first fragment ends within the transport header, so this one would overwrite it (RFC 1858 §3.2, RFC 3128).
        let header = match ip.protocol {
            protocol::TCP => 20,
            protocol::SCTP => 12,
            _ => 8,
        };
        return if start < header { Err(ParseError::BadFragment) } else { Ok(ip) };
    }
    let whole = matches!(depth, Depth::Outer { .. });
    let short = if ip.fragment == Fragment::None { ParseError::Truncated } else { ParseError::BadFragment };
    let segment = frame.get(offset..end.min(frame.len())).ok_or(ParseError::Truncated)?;
    // A first fragment must hold the whole transport header, or rules could be cheated (RFC 1858 §3, RFC 7112).
    let need =
        |len: usize| if segment.len() < if whole { len } else { len.min(8) } { Err(short) } else { Ok(()) };
    ip.transport = match ip.protocol {
        protocol::TCP => {
            need(20)?;
            let flags = if segment.len() > 13 { segment[13] } else { 0 };
            if whole {
                let header_len = usize::from(segment[12] >> 4) * 4;
                if header_len < 20 {
                    return Err(ParseError::BadTransport);
                }
                if header_len > segment.len() {
                    let is_whole = ip.fragment == Fragment::None;
                    return Err(if is_whole { ParseError::BadTransport } else { short });
                }
                let core = flags & (tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK);
                let both = |bits: u8| core & bits == bits;
                if core == 0 || both(tcp_flags::SYN | tcp_flags::FIN) || both(tcp_flags::SYN | tcp_flags::RST)
                {
                    return Err(ParseError::BadTransport);
                }
            }
            Transport::Tcp { source: be16(segment, 0), destination: be16(segment, 2), flags }
        }
        protocol::UDP | protocol::UDPLITE => {
            need(8)?;
            let length = usize::from(be16(segment, 4));
            let plain = ip.protocol == protocol::UDP && whole && ip.fragment == Fragment::None;
            if plain && (length < 8 || length > end - offset) {
                return Err(ParseError::BadTransport);
            }
            Transport::Udp {
                source: be16(segment, 0),
                destination: be16(segment, 2),
                checksum: be16(segment, 6),
            }
        }
        protocol::SCTP => {
            need(12)?;
            let chunk = segment.get(12).copied().unwrap_or(255);
            Transport::Sctp { source: be16(segment, 0), destination: be16(segment, 2), chunk }
        }
        protocol::ICMP if ip.source.is_ipv4() => {
            need(8)?;
            let id = if matches!(segment[0], 0 | 8 | 13..=18) { be16(segment, 4) } else { 0 };
            Transport::Icmp { kind: segment[0], code: segment[1], id }
        }
        protocol::ICMPV6 if ip.source.is_ipv6() => {
            need(4)?;
            let id = if matches!(segment[0], 128 | 129) && segment.len() >= 8 { be16(segment, 4) } else { 0 };
            Transport::Icmp { kind: segment[0], code: segment[1], id }
        }
        _ => Transport::Other,
    };
    Ok(ip)
}

fn parse_arp(body: &[u8]) -> Result<Arp, ParseError> {
    let Some(arp) = body.first_chunk::<28>() else { return Err(ParseError::Truncated) };
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(ParseError::BadArp);
    }
    let [_, _, _, _, _, _, o0, o1, m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, _, _, _, _, _, _, t0, t1, t2, t3] =
        *arp;
    Ok(Arp {
        operation: u16::from_be_bytes([o0, o1]),
        sender_mac: MacAddr([m0, m1, m2, m3, m4, m5]),
        sender_ip: Ipv4Addr::new(s0, s1, s2, s3),
        target_ip: Ipv4Addr::new(t0, t1, t2, t3),
    })
}
