//! Whole frames for tests, simulations and benches; nothing on the packet path uses this.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use crate::{MacAddr, protocol};

/// Ethernet addresses of a frame: (source, destination).
pub type Macs = (MacAddr, MacAddr);

fn start(
    macs: Macs,
    from: IpAddr,
    to: IpAddr,
    ttl: u8,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), ttl),
        (from, to) => {
            let octets = |a: IpAddr| match a {
                IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                IpAddr::V6(a) => a.octets(),
            };
            ethernet.ipv6(octets(from), octets(to), ttl)
        }
    }
}

fn finish<T>(result: Result<(), T>, bytes: Vec<u8>) -> Vec<u8>
where
    T: std::fmt::Debug,
{
    result.expect("writing to a vector cannot fail and test payloads are short");
    bytes
}

/// Returns a UDP datagram with correct checksums.
pub fn udp(macs: Macs, from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let result = start(macs, from.0, to.0, 64).udp(from.1, to.1).write(&mut bytes, payload);
    finish(result, bytes)
}

/// Returns a TCP segment with the given flag octet and correct checksums.
pub fn tcp(macs: Macs, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut header = etherparse::TcpHeader::new(from.1, to.1, 1, 64_000);
    header.fin = flags & 0x01 != 0;
    header.syn = flags & 0x02 != 0;
    header.rst = flags & 0x04 != 0;
    header.psh = flags & 0x08 != 0;
    header.ack = flags & 0x10 != 0;
    let result = start(macs, from.0, to.0, 64).tcp_header(header).write(&mut bytes, payload);
    finish(result, bytes)
}

/// Returns an echo request (or reply) of the right family.
pub fn echo(macs: Macs, from: IpAddr, to: IpAddr, id: u16, request: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let step = start(macs, from, to, 64);
    let result = match (from.is_ipv4(), request) {
        (true, true) => step.icmpv4_echo_request(id, 1).write(&mut bytes, payload),
        (true, false) => step.icmpv4_echo_reply(id, 1).write(&mut bytes, payload),
        (false, true) => step.icmpv6_echo_request(id, 1).write(&mut bytes, payload),
        (false, false) => step.icmpv6_echo_reply(id, 1).write(&mut bytes, payload),
    };
    finish(result, bytes)
}

/// Returns an ICMP or ICMPv6 message of any type with a correct checksum; `body` is what follows the first four bytes.
pub fn icmp(macs: Macs, from: IpAddr, to: IpAddr, kind: u8, code: u8, body: &[u8], ttl: u8) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(body);
    let number = if from.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    let sum = if from.is_ipv4() {
        0
    } else {
        crate::checksum::pseudo_header(from, to, number, message.len() as u32)
    };
    let sum = !crate::checksum::fold(crate::checksum::add(sum, &message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(macs, from, to, number, &message, ttl)
}

/// Returns an IP packet of any protocol.
pub fn ip(macs: Macs, from: IpAddr, to: IpAddr, number: u8, payload: &[u8], ttl: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let result = start(macs, from, to, ttl).write(&mut bytes, etherparse::IpNumber(number), payload);
    finish(result, bytes)
}

/// Returns an ARP message.
pub fn arp(macs: Macs, operation: u16, sender: (MacAddr, [u8; 4]), target: (MacAddr, [u8; 4])) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend_from_slice(&macs.1.0);
    frame.extend_from_slice(&macs.0.0);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        frame.extend_from_slice(&mac.0);
        frame.extend_from_slice(&ip);
    }
    frame
}

/// Returns the fragment with bytes `start..end` of what follows the IP header of `whole`, a frame without options or extension headers.
///
/// Shape: `start` is a multiple of eight; `id` is 16 bits for IPv4.
pub fn fragment(whole: &[u8], id: u32, (start, end): (usize, usize), more: bool) -> Vec<u8> {
    let is_v4 = whole[12..14] == [0x08, 0x00];
    let body = crate::ETHERNET_LEN + if is_v4 { 20 } else { 40 };
    let (mut frame, part) = (whole[..body].to_vec(), &whole[body + start..body + end]);
    if is_v4 {
        let header = &mut frame[crate::ETHERNET_LEN..];
        header[2..4].copy_from_slice(&((20 + part.len()) as u16).to_be_bytes());
        header[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        let flags = (start / 8) as u16 | if more { 0x2000 } else { 0 };
        header[6..8].copy_from_slice(&flags.to_be_bytes());
        header[10..12].fill(0);
        let sum = crate::checksum::of(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let number = frame[20];
        frame[18..20].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
        frame[20] = 44;
        frame.extend_from_slice(&[number, 0]);
        frame.extend_from_slice(&(start as u16 | u16::from(more)).to_be_bytes());
        frame.extend_from_slice(&id.to_be_bytes());
    }
    frame.extend_from_slice(part);
    frame
}
