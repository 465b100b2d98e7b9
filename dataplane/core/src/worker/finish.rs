//! How does it leave? Size, TTL, checksum, Ethernet addresses; packets that wait for a neighbour; errors for senders.

use std::net::IpAddr;

use margay_wire::checksum::Partial;
use margay_wire::{ETHERNET_LEN, IpHeaders, checksum, icmp};

use super::{Dropped, Ending, View, Worker};
use crate::flow::Path;
use crate::frame::{self, Frame};
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::{Port, PortIndex, PortKind};
use crate::verdict::DropReason;

/// A packet whose next hop's Ethernet address is not known yet.
#[derive(Debug)]
pub struct Waiting<F> {
    pub(super) frame: F,
    ip: IpHeaders,
    arrival: PortIndex,
    pub(super) path: Path,
    pub(super) next_hop: IpAddr,
    deadline: Nanos,
    /// The plan of encryption that its way was found under.
    plan: Option<u64>,
}

fn plan(view: View<'_>) -> Option<u64> {
    view.topology.encryption().map(|encryption| encryption.generation())
}

/// Most packets waiting for one neighbour, and most frames for all.
const WAITING_PER_NEIGHBOUR: usize = 16;
const WAITING_TOTAL: usize = 256;
/// How long one waits (Linux gives up after three probes, a second apart).
const PATIENCE: Nanos = Nanos::from_secs(3);

/// Makes the packet ready for `path`: size, TTL, checksum, addresses.
///
/// Errors: [`DropReason::TtlExpired`] and [`DropReason::PacketTooBig`], each with the ICMP error for the sender.
#[inline]
pub(super) fn finish<F: Frame>(
    frame: &mut F,
    arrival: &Port,
    ip: &IpHeaders,
    path: &Path,
    out: &mut Output<F>,
) -> Result<Ending, Dropped> {
    if path.decrement_ttl && ip.ttl <= 1 {
        let error = Some(icmp::Error::TimeExceeded);
        return Err(Dropped { reason: DropReason::TtlExpired, rule: None, error });
    }
    let too_big = is_too_big(frame, ip, path)?;
    if matches!(arrival.kind, PortKind::Pod { .. } | PortKind::Host { .. }) {
        let (head, rest) = frame.parts_mut();
        checksum::write_sctp(head, rest, ip);
    }
    let partial = checksum::partial(frame.data(), ip);
    if too_big {
        complete_here(frame, partial);
    } else {
        complete(frame, partial, path);
    }
    let bytes = frame.data_mut();
    if path.decrement_ttl {
        decrement_ttl(bytes, ip);
    }
    bytes[0..6].copy_from_slice(&path.destination_mac.0);
    bytes[6..12].copy_from_slice(&path.source_mac.0);
    match (too_big, path.tunnel) {
        (true, _) => fragment(frame, path, out),
        (false, Some(peer)) => Ok(Ending::Seal(peer)),
        (false, None) => Ok(Ending::Forward(path.port)),
    }
}

/// Returns whether the packet is too large for `path` and may be fragmented.
///
/// Errors: [`DropReason::PacketTooBig`] with the ICMP error, when it may not.
#[inline]
pub(super) fn is_too_big<F: Frame>(frame: &F, ip: &IpHeaders, path: &Path) -> Result<bool, Dropped> {
    let too_big = ip.total_len > path.mtu;
    // Headers with options are answered as if they forbade it: options make fragments differ, and no pod of ours sends them.
    let has_options = || frame.data()[ETHERNET_LEN] != 0x45;
    if too_big && (ip.dont_fragment || path.mtu < 68 || has_options()) {
        let error = Some(icmp::Error::TooBig(path.mtu.into()));
        return Err(Dropped { reason: DropReason::PacketTooBig, rule: None, error });
    }
    Ok(too_big)
}

/// Has a partial checksum completed: by whoever sends the packet where that is possible, else here. What is sealed is sent by nobody.
#[inline(always)]
pub(super) fn complete<F: Frame>(frame: &mut F, partial: Option<Partial>, path: &Path) {
    let Some(at) = partial else { return };
    if path.tunnel.is_some() || !frame.leave_checksum(at.start, at.offset) {
        complete_here(frame, partial);
    }
}

#[inline(always)]
fn complete_here<F: Frame>(frame: &mut F, partial: Option<Partial>) {
    if let Some(partial) = partial {
        let (head, rest) = frame.parts_mut();
        partial.complete(head, rest);
    }
}

/// Source: RFC 1812 §5.3.1, RFC 1624 for the header checksum.
#[inline]
fn decrement_ttl(bytes: &mut [u8], ip: &IpHeaders) {
    if ip.source.is_ipv4() {
        let at = ETHERNET_LEN + 8;
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let new = old - 0x0100;
        let sum = u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]);
        bytes[at] = (new >> 8) as u8;
        bytes[at + 2..at + 4].copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
    } else {
        bytes[ETHERNET_LEN + 7] -= 1;
    }
}

/// Splits an IPv4 packet without options that may be fragmented (RFC 791 §3.2), into pieces that fit the path and a frame each.
///
/// Errors: [`DropReason::PacketTooBig`] where there are not frames enough for all pieces. The sender is told the size all the same: it is not
/// bound to send smaller packets, but most do, and then need nobody's frames.
#[cold]
fn fragment<F: Frame>(frame: &mut F, path: &Path, out: &mut Output<F>) -> Result<Ending, Dropped> {
    let bytes = frame.data();
    let payload_at = ETHERNET_LEN + 20;
    let too_big = || {
        let error = Some(icmp::Error::TooBig(path.mtu.into()));
        Dropped { reason: DropReason::PacketTooBig, rule: None, error }
    };
    let room = out.spare.last().map_or(0, |spare| spare.capacity().saturating_sub(ETHERNET_LEN));
    let step = usize::from(path.mtu).min(room).saturating_sub(20) / 8 * 8;
    if step == 0 {
        return Err(too_big());
    }
    let payload = frame.packet_len() - payload_at;
    let pieces = payload.div_ceil(step);
    // Sealing takes a frame to seal into.
    if out.spare.len() < pieces + usize::from(path.tunnel.is_some()) {
        return Err(too_big());
    }
    let flags = u16::from_be_bytes([bytes[ETHERNET_LEN + 6], bytes[ETHERNET_LEN + 7]]);
    for nth in 0..pieces {
        let Some(mut piece) = out.spare.pop() else { break };
        let part = step.min(payload - nth * step);
        let len = payload_at + part;
        if !piece.set_len(len) {
            out.recycle.push(piece);
            return Err(too_big());
        }
        let last = nth + 1 == pieces;
        let offset = (flags & 0x1fff) + (nth * step / 8) as u16;
        let more = if last { flags & 0x2000 } else { 0x2000 };
        let to = piece.data_mut();
        to[..payload_at].copy_from_slice(&bytes[..payload_at]);
        frame::copy_from(frame, payload_at + nth * step, &mut to[payload_at..]);
        let header = &mut to[ETHERNET_LEN..payload_at];
        header[2..4].copy_from_slice(&((20 + part) as u16).to_be_bytes());
        header[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum::of(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        out.transmit.push((path.port, piece));
    }
    Ok(Ending::Fragmented(pieces))
}

impl<F: Frame> Worker<F> {
    /// Keeps a packet until its next hop is known.
    #[cold]
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    pub(super) fn hold(
        &mut self,
        view: View<'_>,
        now: Nanos,
        arrival: PortIndex,
        frame: F,
        ip: IpHeaders,
        path: Path,
        next_hop: IpAddr,
        out: &mut Output<F>,
    ) {
        let same = |w: &&Waiting<F>| w.path.port == path.port && w.next_hop == next_hop;
        let frames: usize = self.waiting.iter().map(|waiting| waiting.frame.frames()).sum();
        let crowded = frames + frame.frames() > WAITING_TOTAL
            || self.waiting.iter().filter(same).count() >= WAITING_PER_NEIGHBOUR;
        if crowded {
            return self.end(view, now, arrival, frame, Some(&ip), DropReason::NoNeighbour.into(), out);
        }
        self.counters.held += 1;
        let (deadline, plan) = (now + PATIENCE, plan(view));
        self.waiting.push(Waiting { frame, ip, arrival, path, next_hop, deadline, plan });
    }

    /// Sends what waited for neighbours that are known now, and ends what waited too long.
    pub(super) fn release(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        let mut at = 0;
        while at < self.waiting.len() {
            let waiting = &self.waiting[at];
            let mac = view.topology.neighbour(waiting.path.port, waiting.next_hop);
            if mac.is_none() && waiting.deadline > now {
                at += 1;
                continue;
            }
            let Waiting { mut frame, ip, arrival, mut path, plan: found_under, .. } = self.waiting.remove(at);
            self.counters.held -= 1;
            self.at_hand = Some(arrival);
            let ended = match (mac, view.topology.port(arrival)) {
                // Its way may be through the tunnel now: it goes in clear to nobody, and whoever sent it sends it again.
                (Some(_), Some(_)) if found_under != plan(view) => Err(DropReason::NoNeighbour.into()),
                (Some(mac), Some(port)) => {
                    path.destination_mac = mac;
                    finish(&mut frame, port, &ip, &path, out)
                }
                (None, Some(_)) => Err(Dropped {
                    reason: DropReason::NoNeighbour,
                    rule: None,
                    error: Some(icmp::Error::HostUnreachable),
                }),
                (_, None) => Err(DropReason::NoPort.into()),
            };
            match ended {
                Ok(Ending::Forward(to)) => {
                    self.counters.forwarded += 1;
                    out.transmit.push((to, frame));
                }
                Ok(_) => {
                    self.counters.forwarded += 1;
                    out.recycle.push(frame);
                }
                Err(dropped) => self.end(view, now, arrival, frame, Some(&ip), dropped, out),
            }
        }
    }
}
