//! How a packet ends here: by whose hands it goes on, or why it does not.

use std::net::IpAddr;

use margay_policy_engine::snapshot::RuleRef;
use margay_wire::{IpHeaders, ParseError, icmp};

use super::{View, Worker, events};
use crate::frame::Frame;
use crate::handover::{Errand, Handover};
use crate::output::Output;
use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::tunnel::PeerId;
use crate::verdict::DropReason;

/// Why a packet ended, and what its sender is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropped {
    pub(super) reason: DropReason,
    pub(super) rule: Option<RuleRef>,
    pub(super) error: Option<icmp::Error>,
}

impl From<DropReason> for Dropped {
    fn from(reason: DropReason) -> Self {
        Self { reason, rule: None, error: None }
    }
}

impl From<ParseError> for Dropped {
    fn from(error: ParseError) -> Self {
        let reason = match error {
            ParseError::Truncated => DropReason::Truncated,
            ParseError::UnknownEtherType(_) => DropReason::UnknownEtherType,
            ParseError::VlanTagged => DropReason::VlanTagged,
            ParseError::BadIpv4Header => DropReason::BadIpv4Header,
            ParseError::BadIpv6Header => DropReason::BadIpv6Header,
            ParseError::SourceRouting => DropReason::SourceRouting,
            ParseError::BadTransport => DropReason::BadTransportHeader,
            ParseError::BadFragment => DropReason::BadFragment,
            ParseError::BadArp => DropReason::BadArp,
        };
        reason.into()
    }
}

/// How a packet that was not dropped goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// Leaves by a port.
    Forward(PortIndex),
    /// Leaves by the tunnel, to this peer.
    Seal(PeerId),
    /// Goes on in the hands of another worker.
    HandOver(WorkerIndex, Errand),
    /// Goes on in the hands of another worker, finished, to the pod behind this port.
    Deliver(WorkerIndex, PortIndex),
    /// Left in so many pieces, which are the last in the output; the packet itself is as it came, for its sender to be told `told` about
    /// it.
    Fragmented { pieces: usize, told: Option<icmp::Error> },
    /// Was turned into an answer, to go back where it came from.
    Answer,
    /// Was a message of the tunnel's protocol, and is done with.
    Message,
    /// Waits for the first fragment of its datagram.
    Await { datagram: u16, errand: Option<Errand> },
    /// Waits for a next hop's address.
    Hold { path: crate::flow::Path, next_hop: IpAddr, ip: IpHeaders },
}

impl<F: Frame> Worker<F> {
    /// Gives the frame where its ending says.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    pub(super) fn conclude(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frame: F,
        ip: Option<&IpHeaders>,
        ended: Result<Ending, Dropped>,
        out: &mut Output<F>,
    ) {
        let mut first = out.transmit.len();
        match ended {
            Ok(Ending::Forward(to)) => {
                self.counters.forwarded += 1;
                out.transmit.push((to, frame));
            }
            Ok(Ending::Seal(peer)) => self.seal(view, now, port, peer, frame, out),
            Ok(Ending::HandOver(to, errand)) => {
                self.counters.handed_over += 1;
                out.handovers.push((to, Handover::new(frame, port, errand)));
            }
            Ok(Ending::Deliver(to, by)) => {
                self.counters.handed_over += 1;
                out.handovers.push((to, Handover::new(frame, by, Errand::Deliver(view.under().1))));
            }
            Ok(Ending::Answer) => {
                self.counters.answered += 1;
                out.transmit.push((port, frame));
            }
            Ok(Ending::Message) => {
                self.counters.messages += 1;
                out.recycle.push(frame);
            }
            Ok(Ending::Fragmented { pieces, told }) => {
                first = first.saturating_sub(pieces);
                self.went_in_pieces(view, now, port, frame, ip, told, out);
            }
            Ok(Ending::Await { datagram, errand }) => {
                self.counters.held += 1;
                self.fragments.hold(datagram, frame, errand);
            }
            Ok(Ending::Hold { path, next_hop, ip }) => {
                self.hold(view, now, port, frame, ip, path, next_hop, out)
            }
            Err(dropped) => self.end(view, now, port, frame, ip, dropped, out),
        }
        self.relay(view, now, first, out);
    }

    /// Ends what has left in pieces: the frame is free, or carries word to the sender.
    #[cold]
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    pub(super) fn went_in_pieces(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        mut frame: F,
        ip: Option<&IpHeaders>,
        told: Option<icmp::Error>,
        out: &mut Output<F>,
    ) {
        self.counters.forwarded += 1;
        self.counters.cut += 1;
        if told.is_some_and(|error| self.tell_sender(view, now, port, &mut frame, ip, error)) {
            out.transmit.push((port, frame));
        } else {
            out.recycle.push(frame);
        }
    }

    #[cold]
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    pub(super) fn end(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        mut frame: F,
        ip: Option<&IpHeaders>,
        dropped: Dropped,
        out: &mut Output<F>,
    ) {
        self.counters.drops[dropped.reason as usize] += 1;
        // Discovery that ends at the gateway is daily business: counted, never an event that hides a real one.
        let noteworthy = dropped.reason != DropReason::DiscoveryConsumed;
        if noteworthy && out.events.len() < Output::<F>::MAX_EVENTS {
            out.events.push(events::dropped(view, port, ip, &dropped));
        }
        if self.answer(view, now, port, &mut frame, ip, &dropped) {
            out.transmit.push((port, frame));
        } else {
            out.recycle.push(frame);
        }
    }
}
