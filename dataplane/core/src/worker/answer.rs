//! What the sender of a packet that ends here is told: an ICMP error, a TCP reset, or nothing.
//!
//! | what happened | the sender gets |
//! |---|---|
//! | TTL or hop limit ended; too big; no route; no neighbour | the ICMP error that says so, in [`Dropped`] |
//! | too big, went in pieces, and its sender can learn (`cut`) | the size, all the same |
//! | denied, and the policy says Reject (policy model 32.9) | TCP: a reset; else ICMP "administratively prohibited" |
//! | anything else | nothing |
//!
//! An answer takes the place of the packet in its own frame and goes back where that came from. Never answered: ICMP errors, later
//! fragments, and what has a group's address (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)). How many answers a port gets in a second is bounded,
//! errors and refusals apart, so that who scans closed ports does not cost its neighbours the sizes of their paths.
//!
//! An error's source is this node's address, so that traceroute names the node; towards the host itself it is the gateway's, because a
//! kernel refuses its own address from outside, and into a tunnel it is the receiver's. A reset comes from whom the segment went to, or
//! nobody would believe it.

use margay_wire::{IpHeaders, MacAddr, icmp, reset};

use super::{Dropped, View, Worker};
use crate::frame::Frame;
use crate::time::Nanos;
use crate::topology::{Port, PortIndex, PortKind};
use crate::verdict::DropReason;

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// What is wrong with the packet.
    Error(icmp::Error),
    /// That policy forbids it.
    Refusal,
}

impl Dropped {
    /// Returns what the sender is to be told. Whether a denial is answered is asked of the policy in force now.
    fn answer(&self, view: View<'_>) -> Option<Answer> {
        let denied = matches!(self.reason, DropReason::PolicyEgress | DropReason::PolicyIngress);
        match (self.error, self.rule) {
            (Some(error), _) => Some(Answer::Error(error)),
            (None, Some(rule)) if denied && view.snapshot?.rejects(rule) => Some(Answer::Refusal),
            _ => None,
        }
    }
}

/// Whether node addresses are encrypted too.
fn has_hosts(view: View<'_>, ip: &IpHeaders) -> bool {
    let family = view.topology.encryption().and_then(|encryption| encryption.family(ip.source));
    family.is_some_and(|family| family.has_hosts())
}

impl<F: Frame> Worker<F> {
    /// Turns the frame of a dropped packet into the answer for its sender; `false` when there is none.
    pub(super) fn answer(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frame: &mut F,
        ip: Option<&IpHeaders>,
        dropped: &Dropped,
    ) -> bool {
        dropped.answer(view).is_some_and(|answer| self.say(view, now, port, frame, ip, answer))
    }

    /// As [`Worker::answer`], for a packet that was not dropped.
    pub(super) fn tell_sender(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frame: &mut F,
        ip: Option<&IpHeaders>,
        error: icmp::Error,
    ) -> bool {
        self.say(view, now, port, frame, ip, Answer::Error(error))
    }

    fn say(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frame: &mut F,
        ip: Option<&IpHeaders>,
        answer: Answer,
    ) -> bool {
        let (Some(ip), Some(port)) = (ip, view.topology.port(port)) else { return false };
        if !icmp::is_answerable(frame.data(), ip) {
            return false;
        }
        let allowance = match answer {
            Answer::Error(_) => &mut self.own_errors,
            Answer::Refusal => &mut self.refusals,
        };
        if !allowance.take(port.index, now) {
            self.counters.answers_limited += 1;
            return false;
        }
        let reset = answer == Answer::Refusal && self.turn_into_reset(port, frame, ip);
        let error = match answer {
            Answer::Error(error) => error,
            Answer::Refusal => icmp::Error::Prohibited,
        };
        let sent = reset || self.turn_into_error(view, port, frame, ip, error);
        match (reset, sent) {
            (true, _) => self.counters.resets_sent += 1,
            (false, sent) => self.counters.icmp_errors_sent += u64::from(sent),
        }
        sent
    }

    fn turn_into_error(
        &mut self,
        view: View<'_>,
        port: &Port,
        frame: &mut F,
        ip: &IpHeaders,
        error: icmp::Error,
    ) -> bool {
        let gateway = if ip.source.is_ipv4() { self.config.gateway_v4 } else { self.config.gateway_v6 };
        let source = match port.kind {
            PortKind::Host { .. } => gateway,
            // The other end of the tunnel takes nothing from a node's own address, unless those take part.
            PortKind::Uplink if port.index == PortIndex::TUNNEL && !has_hosts(view, ip) => ip.destination,
            PortKind::Pod { .. } | PortKind::Uplink => {
                view.topology.node_address_like(ip.source).unwrap_or(gateway)
            }
        };
        let write = |out: &mut [u8], frame: &[u8], to: MacAddr| {
            icmp::write_error(out, frame, ip, error, source, port.mac, to)
        };
        self.rewrite(frame, write)
    }

    /// As [`Worker::turn_into_error`], for what can be reset.
    fn turn_into_reset(&mut self, port: &Port, frame: &mut F, ip: &IpHeaders) -> bool {
        self.rewrite(frame, |out, frame, to| reset::write(out, frame, ip, port.mac, to))
    }

    /// Replaces the frame's bytes by those that `write` makes of them for its Ethernet sender.
    fn rewrite(
        &mut self,
        frame: &mut F,
        write: impl FnOnce(&mut [u8], &[u8], MacAddr) -> Option<usize>,
    ) -> bool {
        let scratch = &mut self.scratch[..];
        let data = frame.data();
        let sender = data.get(6..12).and_then(|mac| <[u8; 6]>::try_from(mac).ok());
        let Some(len) = sender.and_then(|sender| write(scratch, data, MacAddr(sender))) else {
            return false;
        };
        if !frame.set_len(len) {
            return false;
        }
        frame.data_mut().copy_from_slice(&scratch[..len]);
        true
    }
}
