//! Framing of netlink: messages in a datagram, attributes in a message, and the reverse for requests.
//!
//! Only the few attributes that the view needs are looked at. An attribute of a newer kernel, or one of a shape we do not
//! know, is stepped over and can never cost the message it came in.
//!
//! Source: RFC 3549 §2.3; Linux `include/uapi/linux/netlink.h`.

use std::net::IpAddr;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Reads a native-endian 16-bit number.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a native-endian 32-bit number.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads an address whose family is told by its length.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// Iterates over the messages of a datagram; stops at the first that does not fit.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let payload = rest.get(HEADER..length)?;
        let message =
            Message { kind: u16_at(rest, 4)?, flags: u16_at(rest, 6)?, sequence: u32_at(rest, 8)?, payload };
        rest = rest.get(aligned(length)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Iterates over (type, value) of the attributes in `rest`, flags of the type removed; stops at the first that does not fit.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        let kind = u16_at(rest, 2)? & 0x3fff;
        rest = rest.get(aligned(length)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// Builds a request: header, fixed part, attributes.
pub(super) fn request(
    kind: u16,
    flags: u16,
    sequence: u32,
    fixed: &[u8],
    attributes: &[(u16, &[u8])],
) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out.extend_from_slice(fixed);
    for (kind, value) in attributes {
        out.resize(aligned(out.len()), 0);
        out.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(value);
    }
    out.resize(aligned(out.len()), 0);
    let length = out.len() as u32;
    out[0..4].copy_from_slice(&length.to_ne_bytes());
    out[4..6].copy_from_slice(&kind.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    out[8..12].copy_from_slice(&sequence.to_ne_bytes());
    out
}
