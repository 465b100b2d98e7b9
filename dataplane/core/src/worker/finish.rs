//! How does it leave? Size, TTL, checksum, Ethernet addresses; packets that wait for a neighbour; errors for senders.

use std::net::IpAddr;

use margay_wire::checksum::Partial;
use margay_wire::{ETHERNET_LEN, IpHeaders, checksum, icmp};

use super::cut::{self, Identifications};
use super::{Dropped, Ending, View, Worker};
use crate::flow::Path;
use crate::frame::Frame;
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
    ids: &mut Identifications,
    out: &mut Output<F>,
) -> Result<Ending, Dropped> {
    if path.decrement_ttl && ip.ttl <= 1 {
        let error = Some(icmp::Error::TimeExceeded);
        return Err(Dropped { reason: DropReason::TtlExpired, rule: None, error });
    }
    let too_big = is_too_big(frame, arrival, ip, path)?;
    if matches!(arrival.kind, PortKind::Pod { .. } | PortKind::Host { .. }) {
        let (head, rest) = frame.parts_mut();
        checksum::write_sctp(head, rest, ip);
    }
    let partial = checksum::partial(frame.data(), ip);
    if too_big {
        complete_here(frame, partial);
        // The packet itself stays as it came: its sender may have to be told about it.
        return cut::cut(frame, ip, path, ids, out, |piece| address(piece, ip, path));
    }
    complete(frame, partial, path);
    address(frame.data_mut(), ip, path);
    Ok(match path.tunnel {
        Some(peer) => Ending::Seal(peer),
        None => Ending::Forward(path.port),
    })
}

/// Counts the hop and writes the next one's addresses.
#[inline]
fn address(bytes: &mut [u8], ip: &IpHeaders, path: &Path) {
    if path.decrement_ttl {
        decrement_ttl(bytes, ip);
    }
    bytes[0..6].copy_from_slice(&path.destination_mac.0);
    bytes[6..12].copy_from_slice(&path.source_mac.0);
}

/// Returns whether the packet is too large for `path` and may be cut.
///
/// Errors: [`DropReason::PacketTooBig`] with the ICMP error, when it may not.
#[inline]
pub(super) fn is_too_big<F: Frame>(
    frame: &F,
    arrival: &Port,
    ip: &IpHeaders,
    path: &Path,
) -> Result<bool, Dropped> {
    let too_big = ip.total_len > path.mtu;
    if too_big && !cut::is_allowed(frame, arrival, ip, path) {
        return Err(cut::too_big(path));
    }
    Ok(too_big)
}

/// Has a partial checksum completed: towards a pod it is left to whoever sends the packet where that is possible, else it is done here.
/// What is sealed is sent by nobody, and beyond the node nobody but us is known to do it.
#[inline(always)]
pub(super) fn complete<F: Frame>(frame: &mut F, partial: Option<Partial>, path: &Path) {
    let Some(at) = partial else { return };
    if path.tunnel.is_some() || !path.to_pod || !frame.leave_checksum(at.start, at.offset) {
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
                    finish(&mut frame, port, &ip, &path, &mut self.identifications, out)
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
                Ok(Ending::Fragmented { told, .. }) => {
                    self.went_in_pieces(view, now, arrival, frame, Some(&ip), told, out);
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
