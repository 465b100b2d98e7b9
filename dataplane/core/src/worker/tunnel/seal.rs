//! The way into the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use margay_wire::ETHERNET_LEN;

use super::super::{View, Worker};
use super::{Astray, Name};
use crate::frame::Frame;
use crate::handover::{Errand, Handover};
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::tunnel::{MESSAGE, OVERHEAD, PeerId, Sealed, TunnelError, ecn, outer};
use crate::verdict::DropReason;

impl<F: Frame> Worker<F> {
    /// Seals a packet that has begun and is finished but for that, and sends it; or gives it to the worker that has the peer.
    #[inline]
    pub(in crate::worker) fn seal(
        &mut self,
        view: View<'_>,
        now: Nanos,
        arrival: PortIndex,
        id: PeerId,
        frame: F,
        out: &mut Output<F>,
    ) {
        let keeper = view.topology.spread().keeper(id);
        if keeper != self.config.index {
            self.counters.handed_over += 1;
            out.handovers.push((keeper, Handover::new(frame, arrival, Errand::Seal(id))));
            return;
        }
        let peer = (usize::from(is_v6(frame.data())), id);
        match self.seal_for(view, now, peer, &frame, out) {
            Ok(()) => {
                self.counters.sealed += 1;
                self.counters.forwarded += 1;
                out.spare.push(frame);
            }
            Err(None) => self.wait_for(view, now, arrival, peer, frame, out),
            Err(Some(reason)) => self.end(view, now, arrival, frame, None, reason.into(), out),
        }
    }

    /// Errors: the reason to drop it; `None` where it has to wait.
    #[inline]
    fn seal_for(
        &mut self,
        view: View<'_>,
        now: Nanos,
        peer: Name,
        frame: &F,
        out: &mut Output<F>,
    ) -> Result<(), Option<DropReason>> {
        let me = self.config.index;
        let way = self.tunnels.way(view.topology, me, peer).map_err(|astray| match astray {
            Astray::NoPeer => Some(DropReason::TunnelUnknownPeer),
            Astray::NoRoute => Some(DropReason::NoRoute),
            Astray::Unresolved(..) => None,
        })?;
        let (family, id) = peer;
        let tunnels = self.tunnels.families[family].as_mut().ok_or(DropReason::TunnelUnknownPeer)?;
        if frame.frames() > 1 {
            return Err(Some(DropReason::PacketTooBig));
        }
        let packet = frame.data().get(ETHERNET_LEN..).ok_or(DropReason::Truncated)?;
        let room = outer::len(way.endpoint.ip());
        let length = room + OVERHEAD + packet.len();
        if length > ETHERNET_LEN + way.mtu as usize {
            return Err(Some(DropReason::PacketTooBig));
        }
        let from = tunnels.family().endpoint();
        // It stays where it is until it is a datagram: of the frames in our hands the packet's is the only one, should a panic ask.
        let sealed = out.spare.last_mut().ok_or(DropReason::TunnelNoRoom)?;
        let result = if sealed.set_len(length.max(room + MESSAGE)) {
            tunnels.seal(id, packet, &mut sealed.data_mut()[room..], now)
        } else {
            Err(TunnelError::NoRoom)
        };
        match result {
            Ok(Sealed::Datagram(len)) if way.write(from, ecn::outer_class(packet), sealed, room, len) => {
                let sealed = out.spare.pop().ok_or(DropReason::TunnelNoRoom)?;
                way.send(me, sealed, out);
                Ok(())
            }
            Ok(Sealed::Datagram(_)) => Err(Some(DropReason::TunnelNoRoom)),
            Ok(Sealed::NoSession) => Err(None),
            Err(error) => Err(Some(error.into())),
        }
    }

    /// Seals packets of our own, fragments and answers, that stand in the output from position `first` on.
    pub(in crate::worker) fn seal_own(
        &mut self,
        view: View<'_>,
        now: Nanos,
        first: usize,
        out: &mut Output<F>,
    ) {
        let mut at = first;
        while let Some((port, _)) = out.transmit.get(at) {
            if port != PortIndex::TUNNEL {
                at += 1;
                continue;
            }
            let (_, frame) = out.transmit.remove(at);
            self.counters.made += 1;
            let destination = destination(frame.data());
            let family = destination.and_then(|to| view.topology.encryption()?.family(to));
            match family.zip(destination).and_then(|(family, to)| family.peer_for(to)) {
                Some(id) => self.seal(view, now, PortIndex::TUNNEL, id, frame, out),
                None => {
                    let reason = DropReason::TunnelUnknownPeer;
                    self.counters.drops[reason as usize] += 1;
                    out.recycle.push(frame);
                }
            }
        }
    }
}

fn is_v6(frame: &[u8]) -> bool {
    frame.get(ETHERNET_LEN).is_some_and(|first| first >> 4 == 6)
}

/// Returns where the packet in a frame goes.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    let packet = frame.get(ETHERNET_LEN..)?;
    if is_v6(frame) {
        let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        Some(Ipv6Addr::from(to).into())
    } else {
        let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        Some(Ipv4Addr::from(to).into())
    }
}
