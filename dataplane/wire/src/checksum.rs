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
    let mut bytes = bytes;
    if bytes.len() >= 2 * STRIDE {
        let (long, rest) = bytes.split_at(bytes.len() - bytes.len() % STRIDE);
        let (next, carry) = sum.overflowing_add(u64::from(sum_of_strides(long)));
        sum = next + u64::from(carry);
        bytes = rest;
    }
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

/// Bytes that [`sum_of_strides`] takes at once.
const STRIDE: usize = 32;

/// Returns the sum of a multiple of [`STRIDE`] bytes, at most 64 KiB of them.
///
/// A one's-complement sum does not care in which order its words have their bytes, so it is made of words as the machine has them, in
/// eight sums that never carry: the compiler makes vectors of that.
#[inline]
fn sum_of_strides(bytes: &[u8]) -> u16 {
    let mut sums = [0u64; STRIDE / 4];
    for stride in bytes.chunks_exact(STRIDE) {
        for (sum, word) in sums.iter_mut().zip(stride.chunks_exact(4)) {
            *sum += u64::from(u32::from_ne_bytes(word.try_into().expect("chunks_exact yields four bytes")));
        }
    }
    fold(sums.iter().sum()).to_be()
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

/// A sum over bytes that come in pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
struct Pieces {
    sum: u64,
    /// Whether an odd number of bytes has been added: the next byte is the low half of a word.
    odd: bool,
}

impl Pieces {
    #[inline(always)]
    fn add(&mut self, bytes: &[u8]) {
        let sum = if self.odd { u64::from(fold(add(0, bytes)).swap_bytes()) } else { add(0, bytes) };
        let (next, carry) = self.sum.overflowing_add(sum);
        self.sum = next + u64::from(carry);
        self.odd ^= bytes.len() % 2 == 1;
    }
}

/// A TCP or UDP checksum whose field holds nothing but the pseudo header's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where what it sums begins in the frame: the transport header.
    pub start: usize,
    /// Where that ends.
    pub end: usize,
    /// Where the field is, from `start`.
    pub offset: usize,
    pub(crate) protocol: u8,
}

impl Partial {
    /// Returns itself if the field in `frame` holds `pseudo`, the folded sum of its pseudo header.
    #[inline(always)]
    pub(crate) fn holds(self, frame: &[u8], pseudo: u16) -> Option<Self> {
        let at = self.start + self.offset;
        let field = frame.get(at..at + 2)?;
        let field = u16::from_be_bytes([field[0], field[1]]);
        let none = field == 0 && self.protocol == protocol::UDP;
        (field == pseudo && !none && self.end >= at + 2).then_some(self)
    }

    /// Writes the whole checksum. `head` is the beginning of the frame, with the field, and `rest` what follows, in order.
    #[inline(always)]
    pub fn complete<'a>(&self, head: &mut [u8], rest: impl Iterator<Item = &'a [u8]>) {
        let Some(first) = head.get(self.start..self.end.min(head.len())) else { return };
        // The field holds the pseudo-header sum already, so summing the segment as it is gives the whole.
        let mut sum = Pieces::default();
        sum.add(first);
        let mut left = self.end.saturating_sub(head.len());
        for piece in rest {
            let piece = &piece[..piece.len().min(left)];
            left -= piece.len();
            sum.add(piece);
        }
        let mut sum = !fold(sum.sum);
        if sum == 0 && self.protocol == protocol::UDP {
            sum = 0xffff;
        }
        let at = self.start + self.offset;
        if let Some(field) = head.get_mut(at..at + 2) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// Returns the TCP or UDP checksum of the packet `ip` in `frame` when it is partial.
///
/// Those of fragments never are: what a kernel fragments carries a complete sum. A UDP checksum of zero over IPv4 means "none" and
/// stays zero. A completed UDP sum of zero is written as 0xffff (RFC 768).
#[inline]
pub fn partial(frame: &[u8], ip: &IpHeaders) -> Option<Partial> {
    let offset = match (ip.fragment, ip.transport) {
        (Fragment::None, Transport::Tcp { .. }) => 16,
        (Fragment::None, Transport::Udp { checksum: 1.., .. }) => 6,
        _ => return None,
    };
    let (start, end) = (usize::from(ip.transport_offset), ip.end());
    let pseudo = pseudo_header(ip.source, ip.destination, ip.protocol, end.saturating_sub(start) as u32);
    Partial { start, end, offset, protocol: ip.protocol }.holds(frame, fold(pseudo))
}

/// Completes the TCP or UDP checksum of `frame` when it is [`partial`]; returns whether it wrote.
#[inline]
pub fn complete_if_partial(frame: &mut [u8], ip: &IpHeaders) -> bool {
    let partial = partial(frame, ip).filter(|partial| partial.end <= frame.len());
    if let Some(partial) = &partial {
        partial.complete(frame, std::iter::empty());
    }
    partial.is_some()
}

/// Writes the CRC32c of an unfragmented SCTP packet; returns whether it wrote. `head` is the beginning of the frame, with the SCTP
/// header, and `rest` what follows, in order.
#[inline]
pub fn write_sctp<'a>(head: &mut [u8], rest: impl Iterator<Item = &'a [u8]>, ip: &IpHeaders) -> bool {
    if ip.protocol != protocol::SCTP || ip.fragment != Fragment::None {
        return false;
    }
    let (start, end) = (usize::from(ip.transport_offset), ip.end());
    let mut left = end.saturating_sub(head.len());
    let within = end.min(head.len());
    let Some(segment) = head.get_mut(start..within) else { return false };
    if segment.len() < 12 {
        return false;
    }
    segment[8..12].fill(0);
    let mut crc = crc32c::crc32c(segment);
    for piece in rest {
        let piece = &piece[..piece.len().min(left)];
        left -= piece.len();
        crc = crc32c::crc32c_append(crc, piece);
    }
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
        let bytes: Vec<u8> = (0..277u32).map(|i| (i * 37 + i / 7 + 11) as u8).collect();
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
    fn a_sum_in_pieces_agrees_with_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..61u32).map(|i| (i * 91 + 7) as u8).collect();
        for (first, second) in (0..bytes.len()).flat_map(|a| (a..bytes.len()).map(move |b| (a, b))) {
            let mut pieces = Pieces::default();
            for piece in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                pieces.add(piece);
            }
            assert_eq!(fold(pieces.sum), fold(add(0, &bytes)), "{first} {second}");
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
