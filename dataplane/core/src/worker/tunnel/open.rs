//! The way out of the tunnel.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use margay_wire::{ETHERNET_LEN, Fragment, IpHeaders, Packet, Parsed, parse};

use super::super::fast::{self, Exit, Plain};
use super::super::{Dropped, Ending, View, Worker, finish, path, sanity};
use crate::frame::Frame;
use crate::handover::Errand;
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::{Port, PortIndex};
use crate::tunnel::outer::{self, Outer};
use crate::tunnel::{Addressee, Family, Greeting, MESSAGE, Opened, TunnelError, ecn};
use crate::verdict::DropReason;

/// A frame that is a datagram of a tunnel.
struct Datagram<'a> {
    port: &'a Port,
    family: &'a Arc<Family>,
    parsed: Parsed,
    ip: IpHeaders,
    from: SocketAddr,
    /// Where its content stands in the frame.
    content: Range<usize>,
}

impl<'a> Datagram<'a> {
    fn read(view: View<'a>, port: PortIndex, frame: &[u8]) -> Result<Self, Dropped> {
        let port = view.topology.port(port).ok_or(DropReason::NoPort)?;
        let family =
            view.topology.encryption().and_then(|it| it.addressed(frame)).ok_or(DropReason::NoPort)?;
        let parsed = parse(frame)?;
        sanity::ethernet(port, &parsed)?;
        let Packet::Ip(ip) = parsed.packet else { return Err(DropReason::TunnelMalformed.into()) };
        if ip.fragment != Fragment::None {
            return Err(DropReason::TunnelFragment.into());
        }
        let (source_port, _) = ip.ports().ok_or(DropReason::TunnelMalformed)?;
        let udp = usize::from(ip.transport_offset);
        let length = frame.get(udp + 4..udp + 6).ok_or(DropReason::Truncated)?;
        let end = udp + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let content = udp + 8..end;
        if end > ip.end() || content.start > content.end {
            return Err(DropReason::BadTransportHeader.into());
        }
        Ok(Self { port, family, parsed, ip, from: SocketAddr::new(ip.source, source_port), content })
    }
}

/// What a datagram came to.
enum Out<F> {
    /// A packet, in a frame of its own.
    Packet(F),
    /// The end of it.
    Ended(Result<Ending, Dropped>),
}

impl<F: Frame> Worker<F> {
    /// Takes a datagram that arrived here, and has begun, to its end or to the worker that has its peer.
    pub(in crate::worker) fn arrive_sealed(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        mut frame: F,
        out: &mut Output<F>,
    ) {
        let datagram = match Datagram::read(view, port, frame.data()) {
            Ok(datagram) => datagram,
            Err(dropped) => return self.end(view, now, port, frame, None, dropped, out),
        };
        let content = &frame.data()[datagram.content.clone()];
        let from = datagram.from.ip();
        let is_beginning = content.first() == Some(&1);
        let ended = match datagram.family.greet(from, content, &mut self.scratch[..]) {
            Ok(Greeting::For(addressee)) => {
                let keeper = view.topology.spread().keeper(addressee.peer);
                if keeper == self.config.index {
                    return self.unseal(view, now, addressee, &datagram, frame, out);
                }
                let plan = plan_of(view);
                Ok(Ending::HandOver(keeper, Errand::Open(addressee, plan)))
            }
            Ok(Greeting::Cookie(len)) => self.reply(&datagram, len, &mut frame),
            // Somebody else's WireGuard, on this machine or by mistake (policy model 25.10): no business of ours.
            Err(error) if is_strange(error, is_beginning) && !datagram.family.is_place(from) => {
                self.leave_to_kernel(view, &datagram, &mut frame, out)
            }
            Err(error) => Err(DropReason::from(error).into()),
        };
        self.conclude(view, now, port, frame, Some(&datagram.ip), ended, out);
    }

    /// Takes a datagram that another worker gave us, and has begun, to its end.
    pub(in crate::worker) fn take_sealed(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        (addressee, plan): (Addressee, u32),
        frame: F,
        out: &mut Output<F>,
    ) {
        let stale = addressee.keys.is_some() && plan != plan_of(view);
        let datagram = match Datagram::read(view, port, frame.data()) {
            Ok(datagram) if !stale => datagram,
            // The keys of a handshake are named by their place in a plan that is over; its sender tries again.
            Ok(_) => {
                let dropped = DropReason::TunnelNoSession.into();
                return self.end(view, now, port, frame, None, dropped, out);
            }
            Err(dropped) => return self.end(view, now, port, frame, None, dropped, out),
        };
        self.unseal(view, now, addressee, &datagram, frame, out);
    }

    #[inline]
    fn unseal(
        &mut self,
        view: View<'_>,
        now: Nanos,
        addressee: Addressee,
        datagram: &Datagram<'_>,
        mut frame: F,
        out: &mut Output<F>,
    ) {
        let family = usize::from(datagram.from.is_ipv6());
        match self.unseal_into_spare(family, now, addressee, datagram, &mut frame, out) {
            Out::Packet(packet) => {
                self.counters.opened += 1;
                out.spare.push(frame);
                self.emerge(view, now, packet, out);
            }
            Out::Ended(ended) => {
                self.conclude(view, now, datagram.port.index, frame, Some(&datagram.ip), ended, out);
            }
        }
        self.tend(view, now, (family, addressee.peer), out);
    }

    #[inline]
    fn unseal_into_spare(
        &mut self,
        family: usize,
        now: Nanos,
        addressee: Addressee,
        datagram: &Datagram<'_>,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Out<F> {
        let refused = |reason: DropReason| Out::Ended(Err(reason.into()));
        let Some(tunnels) = self.tunnels.families[family].as_mut() else {
            return refused(DropReason::TunnelUnknownPeer);
        };
        // It stays where it is until there is a packet in it, as for sealing.
        let Some(to) = out.spare.last_mut() else { return refused(DropReason::TunnelNoRoom) };
        if !to.set_len(ETHERNET_LEN + MESSAGE.max(datagram.content.len())) {
            return refused(DropReason::TunnelNoRoom);
        }
        let content = &frame.data()[datagram.content.clone()];
        let class = ecn::traffic_class(&frame.data()[ETHERNET_LEN..]);
        let opened = tunnels.open(datagram.from, addressee, content, &mut to.data_mut()[ETHERNET_LEN..], now);
        let ended = match opened {
            Ok(Opened::Packet(len)) => {
                to.set_len(ETHERNET_LEN + len);
                let bytes = to.data_mut();
                if ecn::carry_over(class, &mut bytes[ETHERNET_LEN..]) {
                    write_ethernet(bytes);
                    return out.spare.pop().map_or(refused(DropReason::TunnelNoRoom), Out::Packet);
                }
                Err(DropReason::TunnelCongested.into())
            }
            Ok(Opened::Answer(len)) => {
                let answer = &to.data()[ETHERNET_LEN..ETHERNET_LEN + len];
                self.scratch[..len].copy_from_slice(answer);
                self.reply(datagram, len, frame)
            }
            Ok(Opened::Nothing) => Ok(Ending::Message),
            Err(error) => Err(DropReason::from(error).into()),
        };
        Out::Ended(ended)
    }

    /// A packet that came out of a datagram goes its way, as from the tunnel.
    #[inline]
    fn emerge(&mut self, view: View<'_>, now: Nanos, mut frame: F, out: &mut Output<F>) {
        let read = Plain::read(&frame, &self.flows);
        let exit = if self.is_tapped(PortIndex::TUNNEL, &frame) {
            None
        } else {
            self.fast(&fast::Burst::emerged(view, now), &mut frame, &read, None)
        };
        match exit {
            Some(Exit::Seal(peer)) => self.seal(view, now, PortIndex::TUNNEL, peer, frame, out),
            Some(exit) => exit.take(self.config.index, PortIndex::TUNNEL, frame, &read, out),
            None => self.walk(view, now, PortIndex::TUNNEL, frame, Some(&read), out),
        }
    }

    /// Turns a datagram's frame into the answer of `len` bytes in the scratch room, back to where it came from.
    fn reply(&mut self, datagram: &Datagram<'_>, len: usize, frame: &mut F) -> Result<Ending, Dropped> {
        let room = outer::len(datagram.from.ip());
        let outer = Outer {
            source_mac: datagram.port.mac,
            destination_mac: datagram.parsed.source,
            from: datagram.family.endpoint(),
            to: datagram.from,
            class: 0,
        };
        if !frame.set_len(room + len) {
            return Err(DropReason::TunnelNoRoom.into());
        }
        frame.data_mut()[room..].copy_from_slice(&self.scratch[..len]);
        match outer.write(frame.data_mut(), len) {
            Some(_) => Ok(Ending::Answer),
            None => Err(DropReason::TunnelNoRoom.into()),
        }
    }

    /// Sends a datagram that is none of ours on to this machine's kernel, as any packet for it. No flow remembers it.
    fn leave_to_kernel(
        &mut self,
        view: View<'_>,
        datagram: &Datagram<'_>,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        let Datagram { port, parsed, ip, .. } = datagram;
        sanity::addresses(view.topology, &self.config, port, parsed, ip)?;
        frame.set_len(ip.end());
        let me = self.config.index;
        match path::resolve(view.topology, me, port, ip.source, ip.destination)? {
            path::Next::Ready(path) => finish::finish(frame, port, ip, &path, &mut self.identifications, out),
            path::Next::Unresolved(..) => Err(DropReason::NoRoute.into()),
        }
    }
}

/// Whether a datagram may be of a tunnel that is not ours. The beginning of a handshake with an unknown peer is not: it was made for our
/// key.
fn is_strange(error: TunnelError, is_beginning: bool) -> bool {
    match error {
        TunnelError::NotForUs | TunnelError::Malformed => true,
        TunnelError::UnknownPeer => !is_beginning,
        _ => false,
    }
}

/// Returns the number of the plan in force, its low half.
fn plan_of(view: View<'_>) -> u32 {
    view.topology.encryption().map_or(0, |encryption| encryption.generation() as u32)
}

/// Writes the Ethernet header before a packet that came out of the tunnel.
fn write_ethernet(frame: &mut [u8]) {
    let kind: [u8; 2] = if frame[ETHERNET_LEN] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    frame[..6].copy_from_slice(&crate::topology::TUNNEL_MAC.0);
    frame[6..12].copy_from_slice(&super::ARRIVAL.mac.0);
    frame[12..14].copy_from_slice(&kind);
}
