//! A packet that is larger than its path, in pieces that fit (RFC 791 §3.2, RFC 8200 §4.5).
//!
//! | packet | may it be cut? | is its sender told? |
//! |---|---|---|
//! | IPv4, "don't fragment" clear | yes | no: it said that it does not ask for the size |
//! | IPv4, "don't fragment" set, or options | no | yes |
//! | IPv6 of a pod of this node, no TCP | yes: this node stands for its source | yes |
//! | IPv6, TCP | no: it sends the bytes again, in segments that fit | yes |
//! | IPv6 from elsewhere | no: only sources cut (RFC 8200 §5) | yes |
//!
//! **Why a node cuts IPv6.** Only the source may, and it is the pod's kernel that would: by the MTU of the interface, for sockets that
//! refuse path-MTU discovery. That MTU is the one that this node gave it for packets which stay here. So this node ends what it made the
//! source leave undone, as a NIC does that segments for its host: on the wire nothing tells it from a source with the wire's own MTU. The
//! sender is told the size beside that: who listens cuts by itself from then on, and who does not loses nothing.
//!
//! A fragment is cut further under its own identification and at its own offset, so the pieces of both cuts are those of one datagram.

use std::hash::{DefaultHasher, Hash, Hasher};

use margay_wire::{ETHERNET_LEN, Fragment, IpHeaders, checksum, icmp, protocol};

use super::{Dropped, Ending, WorkerConfig};
use crate::flow::Path;
use crate::frame::{self, Frame};
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::{Port, PortKind};
use crate::verdict::DropReason;

/// Identifications for what was whole when it came, one after another: not to be guessed from those before (RFC 7739), and others for each
/// worker, also for one that takes the place of another.
#[derive(Debug)]
pub(super) struct Identifications {
    seed: u64,
    worker: u16,
    began: Nanos,
    given: u64,
}

impl Identifications {
    pub(super) fn new(config: &WorkerConfig, now: Nanos) -> Self {
        Self { seed: config.hash_seed, worker: config.index.0, began: now, given: 0 }
    }

    fn next(&mut self) -> u32 {
        self.given = self.given.wrapping_add(1);
        let mut hasher = DefaultHasher::new();
        (self.seed, self.worker, self.began.0, self.given).hash(&mut hasher);
        hasher.finish() as u32
    }
}

/// Returns why a packet that is larger than `path` ends here.
pub(super) fn too_big(path: &Path) -> Dropped {
    let error = Some(icmp::Error::TooBig(path.mtu.into()));
    Dropped { reason: DropReason::PacketTooBig, rule: None, error }
}

/// Returns whether a packet from `arrival` that is larger than `path` may be cut.
#[cold]
pub(super) fn is_allowed<F: Frame>(frame: &F, arrival: &Port, ip: &IpHeaders, path: &Path) -> bool {
    if ip.source.is_ipv6() {
        return matches!(arrival.kind, PortKind::Pod { .. }) && ip.protocol != protocol::TCP;
    }
    // Headers with options are answered as if they forbade it: options make fragments differ, and no pod of ours sends them.
    !ip.dont_fragment && path.mtu >= 68 && frame.data()[ETHERNET_LEN] == 0x45
}

/// What the pieces of one packet have in common.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Each piece begins with so many bytes of the packet.
    shared: usize,
    /// Where in the packet that which is cut begins.
    content: usize,
    /// How many bytes of the datagram stand before it, and whether more of them stand behind.
    start: usize,
    more: bool,
    family: Family,
}

/// How a piece says which it is.
#[derive(Clone, Copy, Debug)]
enum Family {
    /// In the IP header.
    V4,
    /// In a header of its own behind the shared bytes, of which the one at `named_at` says that it comes.
    V6 { named_at: usize, next: u8, id: u32 },
}

const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;

impl Plan {
    /// Reads it off a packet that [`is_allowed`] to be cut; `None` where its headers are not what they were when they were parsed.
    fn of(bytes: &[u8], ip: &IpHeaders, ids: &mut Identifications) -> Option<Self> {
        if ip.source.is_ipv6() { Self::v6(bytes, ids) } else { Self::v4(bytes) }
    }

    fn v4(bytes: &[u8]) -> Option<Self> {
        let content = ETHERNET_LEN + 20;
        let place = be16(bytes, ETHERNET_LEN + 6)?;
        let (start, more) = (usize::from(place & 0x1fff) * 8, place & 0x2000 != 0);
        Some(Self { shared: content, content, start, more, family: Family::V4 })
    }

    /// Each piece has the headers that routers look at: up to the routing header, else the hop-by-hop options; or, of a fragment, what it
    /// has before its fragment header (RFC 8200 §4.5).
    fn v6(bytes: &[u8], ids: &mut Identifications) -> Option<Self> {
        let mut named_at = ETHERNET_LEN + 6;
        let mut at = ETHERNET_LEN + 40;
        let (mut shared, mut shared_named_at) = (at, named_at);
        loop {
            let header = bytes.get(at..at + FRAGMENT_HEADER);
            match (*bytes.get(named_at)?, header) {
                (FRAGMENT, Some(&[next, _, high, low, a, b, c, d])) => {
                    let place = u16::from_be_bytes([high, low]);
                    let family = Family::V6 { named_at, next, id: u32::from_be_bytes([a, b, c, d]) };
                    let (start, more) = (usize::from(place & 0xfff8), place & 1 != 0);
                    return Some(Self { shared: at, content: at + FRAGMENT_HEADER, start, more, family });
                }
                (kind @ (0 | 43 | 60), Some(header)) => {
                    named_at = at;
                    at += (usize::from(header[1]) + 1) * 8;
                    if kind != 60 {
                        (shared, shared_named_at) = (at, named_at);
                    }
                }
                _ => break,
            }
        }
        let next = *bytes.get(shared_named_at)?;
        let family = Family::V6 { named_at: shared_named_at, next, id: ids.next() };
        Some(Self { shared, content: shared, start: 0, more: false, family })
    }

    /// Returns where in a piece its part of the content begins.
    fn body(&self) -> usize {
        match self.family {
            Family::V4 => self.shared,
            Family::V6 { .. } => self.shared + FRAGMENT_HEADER,
        }
    }

    /// Writes all that stands before a piece's part of the content: `piece` has its final length, and the part begins `done` bytes into the
    /// content.
    fn write(&self, packet: &[u8], piece: &mut [u8], done: usize, is_last: bool) {
        piece[..self.shared].copy_from_slice(&packet[..self.shared]);
        let len = piece.len() - ETHERNET_LEN;
        // Of a datagram of at most 65,535 bytes.
        let (start, more) = ((self.start + done) as u16, self.more || !is_last);
        match self.family {
            Family::V4 => {
                let header = &mut piece[ETHERNET_LEN..self.shared];
                let place = (start / 8) | if more { 0x2000 } else { 0 };
                header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                header[6..8].copy_from_slice(&place.to_be_bytes());
                header[10..12].fill(0);
                let sum = checksum::of(header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Family::V6 { named_at, next, id } => {
                piece[named_at] = FRAGMENT;
                piece[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
                let header = &mut piece[self.shared..self.shared + FRAGMENT_HEADER];
                header[..2].copy_from_slice(&[next, 0]);
                header[2..4].copy_from_slice(&(start | u16::from(more)).to_be_bytes());
                header[4..].copy_from_slice(&id.to_be_bytes());
            }
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Cuts a packet that [`is_allowed`] to be cut into pieces that fit `path` and a spare frame each, and sends them, each finished by
/// `finish`.
///
/// Shape: the packet stays as it is. All pieces but the last have the same length, their parts of the content multiples of eight bytes.
/// Errors: [`DropReason::PacketTooBig`] where there are not frames enough for all pieces, or a piece would have no room for the headers.
/// The sender is told the size all the same: it may not be bound to send smaller packets, but most do, and then need nobody's frames.
#[cold]
pub(super) fn cut<F: Frame>(
    frame: &F,
    ip: &IpHeaders,
    path: &Path,
    ids: &mut Identifications,
    out: &mut Output<F>,
    finish: impl Fn(&mut [u8]),
) -> Result<Ending, Dropped> {
    let refused = || too_big(path);
    let head = frame.data();
    let plan = Plan::of(head, ip, ids).filter(|plan| plan.shared <= head.len()).ok_or_else(refused)?;
    let room = out.spare.iter().map(Frame::capacity).min().unwrap_or(0);
    let largest = (ETHERNET_LEN + usize::from(path.mtu)).min(room);
    let step = largest.saturating_sub(plan.body()) / 8 * 8;
    // The first has to hold all headers, or nobody could judge the others by it (RFC 7112).
    let headers = usize::from(ip.transport_offset) + 8;
    let holds_headers = matches!(ip.fragment, Fragment::Later { .. }) || headers <= plan.content + step;
    if step == 0 || !holds_headers {
        return Err(refused());
    }
    let content = frame.packet_len() - plan.content;
    let pieces = content.div_ceil(step);
    // Sealing takes a frame to seal into.
    if out.spare.len() < pieces + usize::from(path.tunnel.is_some()) {
        return Err(refused());
    }
    for (nth, mut piece) in out.spare.drain(out.spare.len() - pieces..).enumerate() {
        let done = nth * step;
        let part = step.min(content - done);
        // As long as there was room for in each of them.
        piece.set_len(plan.body() + part);
        let bytes = piece.data_mut();
        plan.write(head, bytes, done, nth + 1 == pieces);
        frame::copy_from(frame, plan.content + done, &mut bytes[plan.body()..]);
        finish(bytes);
        out.transmit.push((path.port, piece));
    }
    let told = ip.source.is_ipv6().then_some(icmp::Error::TooBig(path.mtu.into()));
    Ok(Ending::Fragmented { pieces, told })
}
