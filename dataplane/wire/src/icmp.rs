//! ICMP messages that the dataplane sends: errors about a packet (RFC 792, RFC 4443 §2.4) and echo replies of the gateway.

use std::net::IpAddr;

use crate::parse::{IpHeaders, Transport};
use crate::{ETHERNET_LEN, MacAddr, checksum, protocol};

/// What to tell the sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// TTL or hop limit ended.
    TimeExceeded,
    /// Larger than the next link; the value is the MTU in bytes.
    TooBig(u32),
    /// No route to the destination.
    NoRoute,
    /// The destination does not answer on its link.
    HostUnreachable,
    /// Nobody is there to take it.
    PortUnreachable,
    /// Policy forbids it, and says so.
    Prohibited,
}

impl Error {
    /// Returns (type, code, bytes 4 to 7) for the family.
    fn encode(self, v4: bool) -> (u8, u8, u32) {
        match (self, v4) {
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::TooBig(mtu), true) => (3, 4, mtu.min(0xffff)),
            (Self::TooBig(mtu), false) => (2, 0, mtu),
            (Self::NoRoute, true) => (3, 0, 0),
            (Self::NoRoute, false) => (1, 0, 0),
            (Self::HostUnreachable, true) => (3, 1, 0),
            (Self::HostUnreachable, false) => (1, 3, 0),
            (Self::PortUnreachable, true) => (3, 3, 0),
            (Self::PortUnreachable, false) => (1, 4, 0),
            // RFC 1812 §5.2.7.1, RFC 4443 §3.1.
            (Self::Prohibited, true) => (3, 13, 0),
            (Self::Prohibited, false) => (1, 1, 0),
        }
    }
}

/// Most bytes of the offending packet quoted: all that keeps an IPv6 error within 1,280 bytes, and an IPv4 one within 576 (RFC 1812
/// §4.3.2.3).
fn quote_len(v4: bool, available: usize) -> usize {
    available.min(if v4 { 576 - 28 } else { 1280 - 48 })
}

/// Returns whether anything may be said about a packet: it is no ICMP error, no later fragment, and neither its addresses nor its
/// Ethernet destination are a group's.
///
/// Source: RFC 1122 §3.2.2, RFC 1812 §4.3.2.7, RFC 4443 §2.4 (e).
pub fn is_answerable(offending: &[u8], ip: &IpHeaders) -> bool {
    let is_group =
        |address: IpAddr| address.is_multicast() || address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    let to_many = offending.first().is_none_or(|octet| octet & 1 != 0);
    !(ip.is_icmp_error()
        || matches!(ip.fragment, crate::Fragment::Later { .. })
        || ip.source.is_unspecified()
        || is_group(ip.source)
        || is_group(ip.destination)
        || to_many)
}

/// Writes into `out` the frame that tells the sender of `offending` what happened, from `source`.
///
/// Shape: `out` has room for the result; `offending` is the frame that `ip` was parsed from, or of a long one the beginning. Returns the
/// frame's length, or `None` when an error must not be sent (about an ICMP error, a later fragment, to or from a group, from nobody: RFC
/// 1122 §3.2.2, RFC 4443 §2.4 (e)) or does not fit.
pub fn write_error(
    out: &mut [u8],
    offending: &[u8],
    ip: &IpHeaders,
    error: Error,
    source: IpAddr,
    source_mac: MacAddr,
    destination_mac: MacAddr,
) -> Option<usize> {
    if !is_answerable(offending, ip) {
        return None;
    }
    let v4 = ip.source.is_ipv4();
    let quoted = offending.get(ETHERNET_LEN..ip.end().min(offending.len()))?;
    let quoted = &quoted[..quote_len(v4, quoted.len())];
    let (kind, code, rest) = error.encode(v4);
    let header_len = if v4 { 20 } else { 40 };
    let body_at = ETHERNET_LEN + header_len;
    let len = body_at + 8 + quoted.len();
    let frame = out.get_mut(..len)?;
    frame[0..6].copy_from_slice(&destination_mac.0);
    frame[6..12].copy_from_slice(&source_mac.0);
    frame[body_at + 8..].copy_from_slice(quoted);
    frame[body_at..body_at + 4].copy_from_slice(&[kind, code, 0, 0]);
    frame[body_at + 4..body_at + 8].copy_from_slice(&rest.to_be_bytes());
    let icmp_len = 8 + quoted.len();
    let pseudo = match (source, ip.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            let header = &mut frame[ETHERNET_LEN..body_at];
            // Internetwork control precedence (RFC 1812 §4.3.2.5).
            header[0..4].copy_from_slice(&[0x45, 0xc0, ((20 + icmp_len) >> 8) as u8, (20 + icmp_len) as u8]);
            header[4..12].copy_from_slice(&[0, 0, 0, 0, 64, protocol::ICMP, 0, 0]);
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum = checksum::of(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            0
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            let header = &mut frame[ETHERNET_LEN..body_at];
            header[0..4].copy_from_slice(&[0x6c, 0, 0, 0]);
            header[4..6].copy_from_slice(&(icmp_len as u16).to_be_bytes());
            header[6..8].copy_from_slice(&[protocol::ICMPV6, 64]);
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            checksum::pseudo_header(source, ip.source, protocol::ICMPV6, icmp_len as u32)
        }
        _ => return None,
    };
    let sum = !checksum::fold(checksum::add(pseudo, &frame[body_at..]));
    frame[body_at + 2..body_at + 4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

/// Turns the echo request in `frame` into its reply, with addresses exchanged and a fresh TTL; returns whether it was one.
pub fn echo_reply_in_place(frame: &mut [u8], ip: &IpHeaders, mac: MacAddr) -> bool {
    let reply = match (ip.transport, ip.source) {
        (Transport::Icmp { kind: 8, code: 0, .. }, IpAddr::V4(_)) => 0,
        (Transport::Icmp { kind: 128, code: 0, .. }, IpAddr::V6(_)) => 129,
        _ => return false,
    };
    let asker: [u8; 6] = [frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]];
    frame[0..6].copy_from_slice(&asker);
    frame[6..12].copy_from_slice(&mac.0);
    let at = usize::from(ip.transport_offset);
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    frame[at] = reply;
    let new = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let sum = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
    // Exchanging the addresses leaves the pseudo header's sum as it was.
    frame[at + 2..at + 4].copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
    let header = &mut frame[ETHERNET_LEN..];
    if ip.source.is_ipv4() {
        let (source, destination) = header[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        header[8] = 64;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        header[10..12].fill(0);
        let sum = checksum::of(&header[..header_len]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let (source, destination) = header[8..40].split_at_mut(16);
        source.swap_with_slice(destination);
        header[7] = 64;
    }
    true
}

/// Returns whether an ICMP error says that a packet is too big (RFC 1191 §4, RFC 4443 §3.2).
pub fn is_too_big(ip: &IpHeaders) -> bool {
    match ip.transport {
        Transport::Icmp { kind: 3, code: 4, .. } => ip.source.is_ipv4(),
        Transport::Icmp { kind: 2, code: 0, .. } => ip.source.is_ipv6(),
        _ => false,
    }
}

/// Smallest MTU that an error may announce (RFC 791 §3.1 with common practice, RFC 8200 §5): 576 for IPv4, 1,280 for IPv6.
pub fn clamp_mtu_in_place(frame: &mut [u8], ip: &IpHeaders) {
    let at = usize::from(ip.transport_offset);
    let (field, least) = match (ip.transport, ip.source) {
        (Transport::Icmp { kind: 3, code: 4, .. }, IpAddr::V4(_)) => (at + 6, 576u32),
        (Transport::Icmp { kind: 2, code: 0, .. }, IpAddr::V6(_)) => (at + 4, 1280u32),
        _ => return,
    };
    let end = at + 8;
    let Some(bytes) = frame.get(field..end) else { return };
    let announced = bytes.iter().fold(0u32, |mtu, byte| mtu << 8 | u32::from(*byte));
    if announced >= least {
        return;
    }
    for word in (field..end).step_by(2) {
        let shift = (end - word - 2) * 8;
        let old = u16::from_be_bytes([frame[word], frame[word + 1]]);
        let new = (least >> shift) as u16;
        let sum = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
        frame[word..word + 2].copy_from_slice(&new.to_be_bytes());
        frame[at + 2..at + 4].copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
    }
}
