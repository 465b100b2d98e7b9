//! Ethernet, IP and UDP around a datagram.

use std::net::{IpAddr, SocketAddr};

use margay_wire::{ETHERNET_LEN, MacAddr, checksum, protocol};

const UDP_LEN: usize = 8;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;

/// The headers of a datagram to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Our Ethernet address on the uplink.
    pub source_mac: MacAddr,
    /// The next hop's.
    pub destination_mac: MacAddr,
    /// Our address and port.
    pub from: SocketAddr,
    /// The peer's. Of the same family.
    pub to: SocketAddr,
    /// Traffic class; see [`super::ecn::outer_class`].
    pub class: u8,
}

/// Returns how many bytes stand before the datagram.
#[inline]
pub fn len(to: IpAddr) -> usize {
    ETHERNET_LEN + UDP_LEN + if to.is_ipv4() { V4_LEN } else { V6_LEN }
}

impl Outer {
    /// Writes the headers into the first [`len`] bytes of `frame`; the datagram of `datagram` bytes follows them already. Returns the
    /// frame's length, or `None` where that does not fit or the families differ.
    ///
    /// IPv4 goes without a UDP checksum (RFC 768): the datagram proves itself. IPv6 demands one (RFC 8200 section 8.1). The packet is not
    /// to be fragmented on its way: a node sees to it that what it seals fits.
    #[inline]
    pub fn write(&self, frame: &mut [u8], datagram: usize) -> Option<usize> {
        let payload_at = len(self.to.ip());
        let total = payload_at + datagram;
        let frame = frame.get_mut(..total)?;
        frame[0..6].copy_from_slice(&self.destination_mac.0);
        frame[6..12].copy_from_slice(&self.source_mac.0);
        let udp = u16::try_from(UDP_LEN + datagram).ok()?;
        let udp_at = payload_at - UDP_LEN;
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame[12..14].copy_from_slice(&[0x08, 0x00]);
                let header = &mut frame[ETHERNET_LEN..udp_at];
                let length = u16::try_from(V4_LEN).ok()?.checked_add(udp)?;
                header[..2].copy_from_slice(&[0x45, self.class]);
                header[2..4].copy_from_slice(&length.to_be_bytes());
                // No identification: an atomic datagram (RFC 6864), with Don't Fragment.
                header[4..12].copy_from_slice(&[0, 0, 0x40, 0, 64, protocol::UDP, 0, 0]);
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                let sum = checksum::of(header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame[12..14].copy_from_slice(&[0x86, 0xdd]);
                let header = &mut frame[ETHERNET_LEN..udp_at];
                header[..4].copy_from_slice(&[0x60 | self.class >> 4, self.class << 4, 0, 0]);
                header[4..6].copy_from_slice(&udp.to_be_bytes());
                header[6..8].copy_from_slice(&[protocol::UDP, 64]);
                header[8..24].copy_from_slice(&from.octets());
                header[24..40].copy_from_slice(&to.octets());
            }
            _ => return None,
        }
        let segment = &mut frame[udp_at..];
        segment[..2].copy_from_slice(&self.from.port().to_be_bytes());
        segment[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        segment[4..6].copy_from_slice(&udp.to_be_bytes());
        segment[6..8].fill(0);
        if self.to.is_ipv6() {
            let pseudo = checksum::pseudo_header(self.from.ip(), self.to.ip(), protocol::UDP, u32::from(udp));
            // Zero would say that there is none.
            let sum = match !checksum::fold(checksum::add(pseudo, segment)) {
                0 => u16::MAX,
                sum => sum,
            };
            segment[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        Some(total)
    }
}

#[cfg(test)]
mod tests {
    use margay_wire::{Packet, parse};

    use super::*;

    fn outer(from: &str, to: &str) -> Outer {
        Outer {
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            class: 0b10,
        }
    }

    #[test]
    fn headers_are_read_as_they_were_meant() {
        for (from, to) in
            [("192.0.2.1:51820", "192.0.2.2:51821"), ("[2001:db8::1]:51820", "[2001:db8::2]:51821")]
        {
            let outer = outer(from, to);
            let mut frame = vec![0xaa; 300];
            let at = len(outer.to.ip());
            let total = outer.write(&mut frame, 133).unwrap();
            assert_eq!(total, at + 133);
            let parsed = parse(&frame[..total]).expect("well-formed");
            assert_eq!((parsed.source, parsed.destination), (outer.source_mac, outer.destination_mac));
            let Packet::Ip(ip) = parsed.packet else { panic!("not IP") };
            assert_eq!((ip.source, ip.destination), (outer.from.ip(), outer.to.ip()));
            assert_eq!((ip.ports(), ip.end()), (Some((51820, 51821)), total));
            assert_eq!(super::super::ecn::traffic_class(&frame[ETHERNET_LEN..]), 0b10);
            let segment = &frame[usize::from(ip.transport_offset)..total];
            if outer.to.is_ipv6() {
                let pseudo = checksum::pseudo_header(ip.source, ip.destination, 17, segment.len() as u32);
                assert_eq!(checksum::fold(checksum::add(pseudo, segment)), 0xffff);
            } else {
                assert_eq!(segment[6..8], [0, 0]);
                assert_eq!(checksum::of(&frame[ETHERNET_LEN..ETHERNET_LEN + 20]), 0);
            }
            assert_eq!(frame[at..total], vec![0xaa; 133]);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        assert_eq!(outer("192.0.2.1:1", "192.0.2.2:2").write(&mut [0; 60], 100), None);
        assert_eq!(outer("192.0.2.1:1", "[2001:db8::2]:2").write(&mut [0; 900], 100), None);
        assert_eq!(outer("192.0.2.1:1", "192.0.2.2:2").write(&mut vec![0; 70_000], 65_520), None);
    }
}
