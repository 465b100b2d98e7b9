//! IPv6 neighbour discovery (RFC 4861): reading solicitations and advertisements, answering for the gateway.

use std::net::{IpAddr, Ipv6Addr};

use crate::parse::{IpHeaders, Transport};
use crate::{ETHERNET_LEN, MacAddr, checksum, protocol};

/// ICMPv6 type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// A neighbour solicitation or advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The address asked for or announced.
    pub target: Ipv6Addr,
    /// Source (solicitation) or target (advertisement) link-layer address option.
    pub link_address: Option<MacAddr>,
}

/// Reads the solicitation or advertisement in `frame`; `None` when RFC 4861 §7.1 says to discard it.
pub fn read(frame: &[u8], ip: &IpHeaders) -> Option<Neighbour> {
    let Transport::Icmp { kind, code: 0, .. } = ip.transport else { return None };
    let body = frame.get(usize::from(ip.transport_offset)..ip.end())?;
    if ip.ttl != 255 || body.len() < 24 {
        return None;
    }
    let sum = checksum::pseudo_header(ip.source, ip.destination, protocol::ICMPV6, body.len() as u32);
    if checksum::fold(checksum::add(sum, body)) != 0xffff {
        return None;
    }
    let octets: [u8; 16] = body[8..24].try_into().ok()?;
    let target = Ipv6Addr::from(octets);
    if target.is_multicast() {
        return None;
    }
    let wanted = if kind == NEIGHBOUR_SOLICITATION { 1 } else { 2 };
    let mut link_address = None;
    let mut options = &body[24..];
    while let [option, units, ..] = *options {
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            return None;
        }
        if option == wanted && len == 8 {
            let [_, _, a, b, c, d, e, f, ..] = *options else { return None };
            link_address = Some(MacAddr([a, b, c, d, e, f]));
        }
        options = &options[len..];
    }
    options.is_empty().then_some(Neighbour { target, link_address })
}

/// Length of the frame that [`advertise_in_place`] writes.
pub const ADVERTISEMENT_LEN: usize = ETHERNET_LEN + 40 + 32;

/// Writes over the solicitation in `frame` the advertisement "`target` is at `mac`" to whoever asked.
///
/// Shape: `frame` has at least [`ADVERTISEMENT_LEN`] bytes; returns `false` and writes nothing otherwise.
pub fn advertise_in_place(frame: &mut [u8], target: Ipv6Addr, mac: MacAddr, asker: IpAddr) -> bool {
    let IpAddr::V6(asker) = asker else { return false };
    if frame.len() < ADVERTISEMENT_LEN {
        return false;
    }
    let asker_mac: [u8; 6] = [frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]];
    frame[0..6].copy_from_slice(&asker_mac);
    frame[6..12].copy_from_slice(&mac.0);
    let ip = &mut frame[ETHERNET_LEN..ADVERTISEMENT_LEN];
    ip[0..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[4..6].copy_from_slice(&32u16.to_be_bytes());
    ip[6] = protocol::ICMPV6;
    ip[7] = 255;
    ip[8..24].copy_from_slice(&target.octets());
    ip[24..40].copy_from_slice(&asker.octets());
    // Router, solicited, override (RFC 4861 §4.4).
    ip[40..48].copy_from_slice(&[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0xe0, 0, 0, 0]);
    ip[48..64].copy_from_slice(&target.octets());
    ip[64..66].copy_from_slice(&[2, 1]);
    ip[66..72].copy_from_slice(&mac.0);
    let sum = checksum::pseudo_header(target.into(), asker.into(), protocol::ICMPV6, 32);
    let sum = !checksum::fold(checksum::add(sum, &ip[40..72]));
    ip[42..44].copy_from_slice(&sum.to_be_bytes());
    true
}
