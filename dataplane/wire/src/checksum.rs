//! Internet checksums (RFC 1071, RFC 1624) and SCTP's CRC32c (RFC 9260 §6.8, appendix A).
//!
//! A pod's kernel leaves TCP and UDP checksums to "hardware": the field then holds the folded sum of the pseudo header, not
//! complemented (Linux `CHECKSUM_PARTIAL`). AF_XDP does not say so, hence [`complete_if_partial`]: a field equal to that sum is
//! completed, any other is left alone, so a checksum that is really wrong stays wrong and the receiver still notices.

use std::net::IpAddr;

use crate::parse::{Fragment, IpHeaders, Transport};
use crate::protocol;

/// Adds `bytes` to a running one's-complement sum; an odd last byte counts as the high half of a word.
#[inline]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut sum = sum;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_be_bytes(chunk.try_into().expect("chunks_exact yields eight bytes"));
        let (next, carry) = sum.overflowing_add(word);
        sum = next + u64::from(carry);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        let (next, carry) = sum.overflowing_add(u64::from_be_bytes(last));
        sum = next + u64::from(carry);
    }
    sum
}

/// Folds a running sum to 16 bits, not complemented.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let mut sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// Returns the checksum of `bytes`: the complement of the folded sum.
pub fn of(bytes: &[u8]) -> u16 {
    !fold(add(0, bytes))
}

/// Returns the running sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). `length` is that of the transport header and payload.
#[inline]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u64 {
    let mut sum = u64::from(protocol) + u64::from(length >> 16) + u64::from(length & 0xffff);
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            sum += u64::from(u32::from(s)) + u64::from(u32::from(d));
        }
        (s, d) => {
            for address in [s, d] {
                let octets = match address {
                    IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                    IpAddr::V6(a) => a.octets(),
                };
                sum = add(sum, &octets);
            }
        }
    }
    sum
}

/// Returns the checksum after one 16-bit word of the summed data changed from `old` to `new` (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

/// Completes the TCP or UDP checksum of `frame` when it is partial; returns whether it wrote.
///
/// Fragments are never touched: what a kernel fragments carries a complete sum. A UDP checksum of zero over IPv4 means "none" and
/// stays zero. A completed UDP sum of zero is written as 0xffff (RFC 768).
#[inline]
pub fn complete_if_partial(frame: &mut [u8], ip: &IpHeaders) -> bool {
    let offset = match (ip.fragment, ip.transport) {
        (Fragment::None, Transport::Tcp { .. }) => 16,
        (Fragment::None, Transport::Udp { checksum: 1.., .. }) => 6,
        _ => return false,
    };
    let (start, end) = (usize::from(ip.transport_offset), ip.end());
    let pseudo = pseudo_header(ip.source, ip.destination, ip.protocol, end.saturating_sub(start) as u32);
    complete(frame, start, end, offset, ip.protocol, fold(pseudo))
}

/// Completes the checksum at `offset` of the segment `frame[start..end]` if the field holds `pseudo`, the folded sum of its pseudo header.
#[inline(always)]
pub(crate) fn complete(
    frame: &mut [u8],
    start: usize,
    end: usize,
    offset: usize,
    number: u8,
    pseudo: u16,
) -> bool {
    let Some(segment) = frame.get_mut(start..end).filter(|segment| segment.len() >= offset + 2) else {
        return false;
    };
    let field = u16::from_be_bytes([segment[offset], segment[offset + 1]]);
    let none = field == 0 && number == protocol::UDP;
    if field != pseudo || none {
        return false;
    }
    // The field holds the pseudo-header sum already, so summing the segment as it is gives the whole.
    let mut sum = !fold(add(0, segment));
    if sum == 0 && number == protocol::UDP {
        sum = 0xffff;
    }
    segment[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Writes the CRC32c of an unfragmented SCTP packet; returns whether it wrote.
#[inline]
pub fn write_sctp(frame: &mut [u8], ip: &IpHeaders) -> bool {
    if ip.protocol != protocol::SCTP || ip.fragment != Fragment::None {
        return false;
    }
    let start = usize::from(ip.transport_offset);
    let Some(segment) = frame.get_mut(start..ip.end()) else { return false };
    if segment.len() < 12 {
        return false;
    }
    segment[8..12].fill(0);
    let crc = crc32c::crc32c(segment);
    // CRC32c travels least significant byte first (RFC 9260 appendix A).
    segment[8..12].copy_from_slice(&crc.to_le_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_of_the_rfc_1071_example() {
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn every_length_agrees_with_the_word_by_word_sum() {
        let bytes: Vec<u8> = (0..77u32).map(|i| (i * 37 + 11) as u8).collect();
        for len in 0..bytes.len() {
            let mut slow = 0u32;
            for pair in bytes[..len].chunks(2) {
                slow += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            }
            while slow > 0xffff {
                slow = (slow >> 16) + (slow & 0xffff);
            }
            assert_eq!(u32::from(fold(add(0, &bytes[..len]))), slow, "length {len}");
        }
    }

    #[test]
    fn update_agrees_with_a_fresh_sum() {
        let mut bytes = [0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let before = of(&bytes);
        let old = u16::from_be_bytes([bytes[8], bytes[9]]);
        bytes[8] -= 1;
        let new = u16::from_be_bytes([bytes[8], bytes[9]]);
        assert_eq!(update(before, old, new), of(&bytes));
    }
}
