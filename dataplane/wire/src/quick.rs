//! The plain packet, read in a few instructions: IPv4 without options or fragments, or IPv6 without extension headers, carrying TCP or
//! UDP. Nearly every packet of a busy node is one.
//!
//! [`read`] says `None` to everything else, and to everything that [`crate::parse()`] refuses; who gets `None` asks there. What it accepts
//! it reads exactly as [`crate::parse()`] does, which a property test holds it to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Partial;
use crate::parse::tcp_flags::{ACK, FIN, RST, SYN};
use crate::{ETHERNET_LEN, Fragment, IpHeaders, MacAddr, Packet, Parsed, Transport, checksum, protocol};

/// What a known flow needs to know about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quick {
    /// Source address as a number; IPv4 addresses are IPv4-mapped.
    pub source: u128,
    /// Destination address, likewise.
    pub destination: u128,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Length of the IP packet, header included, in bytes.
    pub total_len: u16,
    /// [`protocol::TCP`] or [`protocol::UDP`].
    pub protocol: u8,
    /// The TCP flag octet; zero for UDP.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4; else IPv6.
    pub v4: bool,
}

const MAPPED: u128 = 0xffff_0000_0000;

impl Quick {
    /// Returns the offset of the transport header in the frame.
    #[inline(always)]
    pub fn transport_offset(&self) -> usize {
        if self.v4 { ETHERNET_LEN + 20 } else { ETHERNET_LEN + 40 }
    }

    /// Returns the offset in the frame behind the packet's last byte.
    #[inline(always)]
    pub fn end(&self) -> usize {
        ETHERNET_LEN + usize::from(self.total_len)
    }

    /// Returns what [`crate::parse()`] says of the frame that this was read from; `None` for one that is too short to be it.
    #[inline]
    pub fn parsed(&self, frame: &[u8]) -> Option<Parsed> {
        let head = frame.first_chunk::<{ ETHERNET_LEN + 20 }>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *head;
        let offset = self.transport_offset();
        let (source, destination) = (self.source_port, self.destination_port);
        let transport = match self.protocol {
            protocol::TCP => Transport::Tcp { source, destination, flags: self.tcp_flags },
            _ => {
                let field = frame.get(offset + 6..)?.first_chunk::<2>()?;
                Transport::Udp { source, destination, checksum: u16::from_be_bytes(*field) }
            }
        };
        let address = |number: u128| match self.v4 {
            true => IpAddr::V4(Ipv4Addr::from(number as u32)),
            false => IpAddr::V6(Ipv6Addr::from(number)),
        };
        let ip = IpHeaders {
            source: address(self.source),
            destination: address(self.destination),
            protocol: self.protocol,
            ttl: self.ttl,
            dont_fragment: !self.v4 || head[ETHERNET_LEN + 6] & 0x40 != 0,
            fragment: Fragment::None,
            transport_offset: offset as u16,
            total_len: self.total_len,
            transport,
        };
        Some(Parsed {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            packet: Packet::Ip(ip),
        })
    }
}

/// Reads a plain packet; `None` for any other.
#[inline(always)]
pub fn read(frame: &[u8]) -> Option<Quick> {
    read_head(frame, frame.len())
}

/// As [`read`], for a frame of `whole` bytes of which only the first are in `frame`; see [`crate::parse_head`].
#[inline(always)]
pub fn read_head(frame: &[u8], whole: usize) -> Option<Quick> {
    let head = frame.first_chunk::<{ ETHERNET_LEN + 20 }>()?;
    match [head[12], head[13]] {
        [0x08, 0x00] => read_v4(frame, whole, head),
        [0x86, 0xdd] => read_v6(frame, whole),
        _ => None,
    }
}

#[inline(always)]
fn read_v4(frame: &[u8], whole: usize, head: &[u8; ETHERNET_LEN + 20]) -> Option<Quick> {
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (first, second, third) = (word(14), word(18), word(22));
    let (source, destination) = (word(26), word(30));
    // Version 4 and five words; neither "more fragments" nor an offset.
    if first >> 24 != 0x45 || second & 0x3fff != 0 {
        return None;
    }
    let sum =
        u64::from(first) + u64::from(second) + u64::from(third) + u64::from(source) + u64::from(destination);
    if checksum::fold(sum) != 0xffff {
        return None;
    }
    let total_len = first as u16;
    let (protocol, ttl) = ((third >> 16) as u8, (third >> 24) as u8);
    let (source, destination) = (MAPPED | u128::from(source), MAPPED | u128::from(destination));
    transport(frame, whole, ETHERNET_LEN + 20, total_len, protocol, ttl, source, destination, true)
}

#[inline(always)]
fn read_v6(frame: &[u8], whole: usize) -> Option<Quick> {
    let head = frame.get(ETHERNET_LEN..)?.first_chunk::<40>()?;
    if head[0] >> 4 != 6 {
        return None;
    }
    let total_len = u16::from_be_bytes([head[4], head[5]]).checked_add(40)?;
    let address = |at: usize| head[at..].first_chunk::<16>().map(|octets| u128::from_be_bytes(*octets));
    let (source, destination) = (address(8)?, address(24)?);
    // On the wire a mapped address is a martian, and here it would pass for one of IPv4.
    if source >> 32 == MAPPED >> 32 || destination >> 32 == MAPPED >> 32 {
        return None;
    }
    transport(frame, whole, ETHERNET_LEN + 40, total_len, head[6], head[7], source, destination, false)
}

#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "always inlined; a struct for its arguments would be the result itself"
)]
fn transport(
    frame: &[u8],
    whole: usize,
    at: usize,
    total_len: u16,
    protocol: u8,
    ttl: u8,
    source: u128,
    destination: u128,
    v4: bool,
) -> Option<Quick> {
    let end = ETHERNET_LEN + usize::from(total_len);
    if end > whole {
        return None;
    }
    let segment = frame.get(at..end.min(frame.len()))?;
    let ports = segment.first_chunk::<8>()?;
    let tcp_flags = match protocol {
        protocol::TCP => {
            let header = segment.first_chunk::<20>()?;
            let len = usize::from(header[12] >> 4) * 4;
            let flags = header[13];
            let core = flags & (FIN | SYN | RST | ACK);
            let impossible = core == 0 || core & (SYN | FIN) == SYN | FIN || core & (SYN | RST) == SYN | RST;
            if len < 20 || len > segment.len() || impossible {
                return None;
            }
            flags
        }
        protocol::UDP => {
            let len = usize::from(u16::from_be_bytes([ports[4], ports[5]]));
            if len < 8 || len > end - at {
                return None;
            }
            0
        }
        _ => return None,
    };
    Some(Quick {
        source,
        destination,
        source_port: u16::from_be_bytes([ports[0], ports[1]]),
        destination_port: u16::from_be_bytes([ports[2], ports[3]]),
        total_len,
        protocol,
        tcp_flags,
        ttl,
        v4,
    })
}

/// Returns the checksum of the plain packet `quick` in `frame` when it is partial; see [`checksum::partial`].
#[inline(always)]
pub fn partial(frame: &[u8], quick: &Quick) -> Option<Partial> {
    let (start, end) = (quick.transport_offset(), quick.end());
    let offset = if quick.protocol == protocol::TCP { 16 } else { 6 };
    let half = |number: u128| u64::from((number >> 32) as u32) + u64::from(number as u32);
    // An IPv4-mapped number is 0xffff and the address: the 0xffff adds nothing to a one's-complement sum, but it is not part of it.
    let addresses = match quick.v4 {
        true => u64::from(quick.source as u32) + u64::from(quick.destination as u32),
        false => {
            half(quick.source)
                + half(quick.source >> 64)
                + half(quick.destination)
                + half(quick.destination >> 64)
        }
    };
    let pseudo = addresses + u64::from(quick.protocol) + (end - start) as u64;
    Partial { start, end, offset, protocol: quick.protocol }.holds(frame, checksum::fold(pseudo))
}

/// Completes the checksum of the plain packet `quick` in `frame` when it is [`partial`].
#[inline(always)]
pub fn complete_if_partial(frame: &mut [u8], quick: &Quick) {
    if let Some(partial) = partial(frame, quick) {
        partial.complete(frame, std::iter::empty());
    }
}
