//! Large receive offload: segments of a TCP stream that arrive together reach the pod as one packet.
//!
//! ```text
//!  from the wire:  ┌ headers, 1 ┐ ┌ headers, 2 ┐ ┌ headers, 3 ┐
//!  to the pod:     ┌ headers, 1 ─────────── 2 ─────────── 3 ──┐      one system call, one way through the pod's stack, one answer
//! ```
//!
//! What a pod costs is counted in packets, so this is worth more than anything done to each. It waits for nothing: only segments of one
//! burst are joined, and each has been judged, counted and finished by itself before. They are joined as a NIC does (Linux
//! `tcp_gro_receive`): same headers, options and acknowledgement, one sequence number after the other, nothing but ACK and PSH set, over
//! IPv4 no options and "don't fragment".
//!
//! **The checksum** of the joined packet is made of those of its segments, by arithmetic: what a segment's header and pseudo header lack to
//! zero is the sum of its payload. So no payload is read, and one that was damaged makes the whole wrong: the pod drops it, and the sender
//! sends again.
//!
//! **Who gets them**: pods whose interface takes packets larger than any wire's, but for one that has routed a packet on and found it too
//! large for where it went (a container engine in the pod). From its first ICMP error on, the pod's packets come as they are; if that error
//! quotes a packet larger than its sender could have sent, it ends here.

use std::net::IpAddr;

use margay_wire::checksum::{self, fold, pseudo_header};
use margay_wire::parse::tcp_flags;
use margay_wire::protocol::TCP;
use margay_wire::{ETHERNET_LEN, MacAddr};

use crate::frame::Frame;
use crate::output::Output;
use crate::topology::{Port, PortIndex, PortKind, Topology};

/// Streams that packets are joined for at once; one more ends the oldest.
const STREAMS: usize = 8;
/// Pods that route what they get; one more is forgotten, and reports again.
const ROUTERS: usize = 256;
/// Pods with an interface of at least this MTU get joined packets: more than any wire's, jumbo frames' 9,216 included.
const LARGE: u32 = 16_000;
/// A TCP header without options.
const TCP_LEN: usize = 20;

/// What the joining of segments needs from burst to burst: room, and who wants none of it.
#[derive(Debug)]
pub(super) struct Lro<F> {
    waiting: Vec<(PortIndex, F)>,
    streams: Vec<Stream>,
    /// Pods that route what they get, by port and Ethernet address.
    routers: Vec<(PortIndex, MacAddr)>,
}

impl<F> Default for Lro<F> {
    fn default() -> Self {
        Self { waiting: Vec::new(), streams: Vec::new(), routers: Vec::new() }
    }
}

/// A packet that the next segment of its stream may be joined to.
#[derive(Debug)]
struct Stream {
    port: PortIndex,
    /// Where the packet stands in the output.
    at: usize,
    /// Length of its headers, Ethernet's included.
    headers: usize,
    /// Bytes of all payloads.
    payload: usize,
    /// Sequence number of the next segment.
    next: u32,
    /// One's-complement sum of all payloads.
    sum: u64,
    flags: u8,
    joined: u64,
}

/// A segment with payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    headers: usize,
    payload: usize,
    sequence: u32,
    flags: u8,
    /// Folded sum of the payload, as the checksum has it.
    sum: u16,
}

/// What a packet is to the one before it.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// It may be joined.
    Segment(Segment),
    /// It is TCP, and not to be joined: nothing of its stream may overtake it.
    Alone,
    /// No business of ours.
    Other,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Where TCP begins behind an IP header without options or extensions, and the bytes of both; `None` for what is not whole TCP.
fn transport(frame: &[u8]) -> Option<(usize, usize)> {
    let (ip, length) = match (frame.get(12..14)?, frame.get(ETHERNET_LEN..ETHERNET_LEN + 20)?) {
        ([0x08, 0x00], ip) if ip[0] == 0x45 && ip[9] == TCP && word(ip, 6) == 0x4000 => {
            (20, usize::from(word(ip, 2)))
        }
        ([0x86, 0xdd], ip) if ip[0] >> 4 == 6 && ip[6] == TCP => (40, 40 + usize::from(word(ip, 4))),
        _ => return None,
    };
    Some((ETHERNET_LEN + ip, ETHERNET_LEN + length))
}

fn is_tcp(frame: &[u8]) -> bool {
    match (frame.get(12..14), frame.get(ETHERNET_LEN..ETHERNET_LEN + 20)) {
        (Some([0x08, 0x00]), Some(ip)) => ip[9] == TCP,
        // Behind extension headers there may be anything.
        (Some([0x86, 0xdd]), Some(ip)) => !matches!(ip[6], 17 | 58),
        _ => false,
    }
}

/// Returns the folded sum of pseudo header and transport header, with the payload's length in the former.
fn sum_of_headers(frame: &[u8], start: usize, headers: usize, payload: usize) -> u16 {
    let length = (headers - start + payload) as u32;
    let ip = &frame[ETHERNET_LEN..start];
    let (source, destination): (IpAddr, IpAddr) = if start == ETHERNET_LEN + 20 {
        let four = |at: usize| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
        (four(12), four(16))
    } else {
        let sixteen = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap_or_default());
        (sixteen(8), sixteen(24))
    };
    fold(checksum::add(pseudo_header(source, destination, TCP, length), &frame[start..headers]))
}

fn read(frame: &[u8], packet_len: usize) -> Read {
    let Some((start, end)) = transport(frame) else {
        return if is_tcp(frame) { Read::Alone } else { Read::Other };
    };
    let Some(tcp) = frame.get(start..start + TCP_LEN) else { return Read::Alone };
    let headers = start + usize::from(tcp[12] >> 4) * 4;
    let flags = tcp[13];
    let plain = flags & !tcp_flags::PSH == tcp_flags::ACK
        && headers >= start + TCP_LEN
        && end == packet_len
        && frame.len() == packet_len
        && headers < end;
    if !plain {
        return Read::Alone;
    }
    let payload = end - headers;
    let sum = !sum_of_headers(frame, start, headers, payload);
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    Read::Segment(Segment { headers, payload, sequence, flags, sum })
}

/// Whether two TCP packets, not fragments, are of one stream and direction.
fn same_ends(one: &[u8], other: &[u8]) -> bool {
    if one[12..14] != other[12..14] {
        return false;
    }
    let (Some((start, _)), Some((begin, _))) = (transport(one), transport(other)) else { return false };
    let addresses = if start == ETHERNET_LEN + 20 { ETHERNET_LEN + 12 } else { ETHERNET_LEN + 8 };
    start == begin && one.get(addresses..start + 4) == other.get(addresses..start + 4)
}

/// Whether all that must be equal in the headers of two segments of a stream is.
fn same_headers(one: &[u8], other: &[u8], headers: usize) -> bool {
    let (ip, tcp) = (ETHERNET_LEN, if one[12] == 0x08 { ETHERNET_LEN + 20 } else { ETHERNET_LEN + 40 });
    // Ethernet; class of traffic and, over IPv6, flow label; hop limit or TTL.
    one[..ip] == other[..ip]
        && match tcp - ip {
            20 => one[ip..ip + 2] == other[ip..ip + 2] && one[ip + 8] == other[ip + 8],
            _ => one[ip..ip + 4] == other[ip..ip + 4] && one[ip + 7] == other[ip + 7],
        }
        // Acknowledgement, length of the header, window; urgent pointer and options.
        && one[tcp + 8..tcp + 13] == other[tcp + 8..tcp + 13]
        && one[tcp + 14..tcp + 16] == other[tcp + 14..tcp + 16]
        && one[tcp + 18..headers] == other[tcp + 18..headers]
}

impl Stream {
    fn new(port: PortIndex, at: usize, segment: Segment) -> Self {
        let Segment { headers, payload, sequence, flags, sum } = segment;
        let next = sequence.wrapping_add(payload as u32);
        Self { port, at, headers, payload, next, sum: sum.into(), flags, joined: 0 }
    }

    /// Whether a TCP packet is of this stream, as far as can be seen: a fragment may be of any.
    fn may_be_of<F: Frame>(&self, frame: &F, out: &Output<F>) -> bool {
        let Some((_, first)) = out.transmit.get(self.at) else { return false };
        transport(frame.data()).is_none() || same_ends(first.data(), frame.data())
    }

    /// Whether the segment goes on where the packet ends, and the whole is at most `mtu` bytes from the IP header on.
    fn takes(&self, first: &[u8], frame: &[u8], segment: &Segment, mtu: usize) -> bool {
        segment.sequence == self.next
            && segment.headers == self.headers
            && self.headers - ETHERNET_LEN + self.payload + segment.payload <= mtu
            && same_headers(first, frame, self.headers)
    }

    fn add(&mut self, segment: &Segment) {
        // Behind an odd number of bytes each byte is in the other half of its word.
        let sum = if self.payload % 2 == 1 { segment.sum.swap_bytes() } else { segment.sum };
        self.sum += u64::from(sum);
        self.payload += segment.payload;
        self.next = self.next.wrapping_add(segment.payload as u32);
        self.flags |= segment.flags;
        self.joined += 1;
    }

    /// Writes the headers of the whole.
    fn close<F: Frame>(&self, out: &mut Output<F>) {
        if self.joined == 0 {
            return;
        }
        let Some((_, frame)) = out.transmit.get_mut(self.at) else { return };
        let bytes = frame.data_mut();
        let Some((start, _)) = transport(bytes) else { return };
        let total = self.headers - ETHERNET_LEN + self.payload;
        let ip = &mut bytes[ETHERNET_LEN..];
        if start == ETHERNET_LEN + 20 {
            let (old, new) = (word(ip, 2), total as u16);
            let sum = checksum::update(word(ip, 10), old, new);
            ip[2..4].copy_from_slice(&new.to_be_bytes());
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            ip[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        }
        bytes[start + 13] = self.flags;
        bytes[start + 16..start + 18].fill(0);
        let sum = !fold(u64::from(sum_of_headers(bytes, start, self.headers, self.payload)) + self.sum);
        bytes[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    }
}

impl<F: Frame> Lro<F> {
    /// Joins what is to be sent, from the output's position `first` on. Returns how many segments became part of the one before them.
    pub(super) fn join(&mut self, topology: &Topology, first: usize, out: &mut Output<F>) -> u64 {
        if out.transmit.len() < first + 2 {
            return 0;
        }
        let mut joined = 0;
        let mut room = (PortIndex(u16::MAX), None);
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.extend(out.transmit.drain(first..));
        for (port, frame) in waiting.drain(..) {
            if room.0 != port {
                room = (port, topology.port(port).and_then(|port| self.room(port)));
            }
            match room.1 {
                Some(mtu) => joined += self.place(port, frame, mtu, out),
                None => out.transmit.push((port, frame)),
            }
        }
        self.waiting = waiting;
        for stream in self.streams.drain(..) {
            stream.close(out);
        }
        joined
    }

    /// Returns how large a packet to a port may become; `None` where nothing is joined.
    fn room(&self, port: &Port) -> Option<usize> {
        let PortKind::Pod { pod_mac, .. } = port.kind else { return None };
        let is_router = self.routers.contains(&(port.index, pod_mac));
        // The length field of an IP header.
        (port.mtu >= LARGE && !is_router).then(|| (port.mtu as usize).min(65_535))
    }

    /// Joins a packet to one before it, or puts it behind all. Returns how many were joined.
    fn place(&mut self, port: PortIndex, mut frame: F, mtu: usize, out: &mut Output<F>) -> u64 {
        let segment = match read(frame.data(), frame.packet_len()) {
            Read::Segment(segment) => Some(segment),
            Read::Alone => None,
            Read::Other => {
                out.transmit.push((port, frame));
                return 0;
            }
        };
        while let Some(nth) = self.streams.iter().position(|it| it.port == port && it.may_be_of(&frame, out))
        {
            let stream = &mut self.streams[nth];
            if let Some(segment) = &segment
                && let Some((_, first)) = out.transmit.get_mut(stream.at)
                && stream.takes(first.data(), frame.data(), segment, mtu)
            {
                match first.append(frame, segment.headers) {
                    Ok(()) => {
                        stream.add(segment);
                        return 1;
                    }
                    Err(back) => frame = back,
                }
            }
            self.streams.remove(nth).close(out);
            if segment.is_some() {
                break;
            }
        }
        if let Some(segment) = segment {
            if self.streams.len() == STREAMS {
                self.streams.remove(0).close(out);
            }
            self.streams.push(Stream::new(port, out.transmit.len(), segment));
        }
        out.transmit.push((port, frame));
        0
    }

    /// Notes that a pod routes what it gets, and that something was too large for where it went. Returns whether that is news: then it may
    /// have been joined.
    #[cold]
    pub(super) fn spare(&mut self, port: &Port) -> bool {
        let PortKind::Pod { pod_mac, .. } = port.kind else { return false };
        if self.routers.contains(&(port.index, pod_mac)) {
            return false;
        }
        self.routers.retain(|(index, _)| *index != port.index);
        if self.routers.len() == ROUTERS {
            self.routers.remove(0);
        }
        self.routers.push((port.index, pod_mac));
        true
    }
}
