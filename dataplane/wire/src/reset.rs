//! The TCP reset with which a refused segment is answered (RFC 9293 §3.10.7.1), as if its destination had sent it.

use std::net::IpAddr;

use crate::parse::tcp_flags::{ACK, FIN, RST, SYN};
use crate::parse::{Fragment, IpHeaders, Transport};
use crate::{ETHERNET_LEN, MacAddr, checksum, icmp, protocol};

const TCP_LEN: usize = 20;

/// Writes into `out` the frame that resets the connection that the segment in `offending` belongs to or asks for.
///
/// Its numbers are those that the sender's stack accepts: with an acknowledgment in the segment the reset's sequence number is that very
/// number; without one it is zero and the reset acknowledges all that the segment takes, SYN and FIN included.
///
/// Shape: `out` has room for the result; `offending` is the frame that `ip` was parsed from, or of a long one the beginning. Returns the
/// frame's length, or `None` when there is nothing to reset (no TCP, a reset itself, a fragment, to or from a group) or it does not fit.
pub fn write(
    out: &mut [u8],
    offending: &[u8],
    ip: &IpHeaders,
    source_mac: MacAddr,
    destination_mac: MacAddr,
) -> Option<usize> {
    let Transport::Tcp { source, destination, flags } = ip.transport else { return None };
    if flags & RST != 0 || ip.fragment != Fragment::None || !icmp::is_answerable(offending, ip) {
        return None;
    }
    let start = usize::from(ip.transport_offset);
    let header = offending.get(start..)?.first_chunk::<TCP_LEN>()?;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (sequence, acknowledged, answer) = if flags & ACK != 0 {
        (number(8), 0, RST)
    } else {
        let payload = ip.end().saturating_sub(start + usize::from(header[12] >> 4) * 4);
        let takes = payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, number(4).wrapping_add(takes), RST | ACK)
    };
    let ip_len = if ip.source.is_ipv4() { 20 } else { 40 };
    let tcp_at = ETHERNET_LEN + ip_len;
    let len = tcp_at + TCP_LEN;
    let frame = out.get_mut(..len)?;
    frame[0..6].copy_from_slice(&destination_mac.0);
    frame[6..12].copy_from_slice(&source_mac.0);
    let header = &mut frame[ETHERNET_LEN..tcp_at];
    match (ip.destination, ip.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header[0..4].copy_from_slice(&[0x45, 0, 0, (ip_len + TCP_LEN) as u8]);
            // "Don't fragment", as stacks send it.
            header[4..12].copy_from_slice(&[0, 0, 0x40, 0, 64, protocol::TCP, 0, 0]);
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum = checksum::of(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            header[0..8].copy_from_slice(&[0x60, 0, 0, 0, 0, TCP_LEN as u8, protocol::TCP, 64]);
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        }
        _ => return None,
    }
    let tcp = &mut frame[tcp_at..];
    tcp.fill(0);
    tcp[0..2].copy_from_slice(&destination.to_be_bytes());
    tcp[2..4].copy_from_slice(&source.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    tcp[12] = (TCP_LEN as u8 / 4) << 4;
    tcp[13] = answer;
    let pseudo = checksum::pseudo_header(ip.destination, ip.source, protocol::TCP, TCP_LEN as u32);
    let sum = !checksum::fold(checksum::add(pseudo, tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}
