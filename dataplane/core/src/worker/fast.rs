//! The short way of a packet of a known flow.
//!
//! It is taken when *everything* that the long way would ask has an answer in the flow's entry that still holds: the packet is plain
//! ([`margay_wire::quick`]) and no SYN; the flow is approved, alive, was confirmed under this very topology, and is so under this snapshot
//! ([`renew`]); this port and Ethernet source have passed the sanity stage for it; the way out is known; size and TTL fit. Otherwise the
//! packet is as it was and goes the long way, which decides the same for the packets that this one takes: a test sends both ways and
//! compares. What a flow was found to be worth under a newer snapshot is found out once, whichever way its packet goes then.

mod begin;
mod renew;

use margay_wire::parse::tcp_flags;
use margay_wire::quick::{self, Quick};
use margay_wire::{ETHERNET_LEN, MacAddr, checksum, protocol};

use super::{Prepared, View, Worker, finish};
use crate::flow::{Arrival, FlowKey, FlowTable, Path, Side, tcp};
use crate::frame::Frame;
use crate::handover::{Errand, Gist, Told, Word};
use crate::output::Output;
use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::tunnel::PeerId;

pub(super) use begin::Begun;
pub(super) use renew::Standing;

/// What is the same for every packet of a burst.
#[derive(Clone, Copy)]
pub(super) struct Burst<'a> {
    view: View<'a>,
    /// Our address on the port; `None` when the port is gone.
    mac: Option<MacAddr>,
    port: PortIndex,
    /// As flows remember snapshot and topology.
    under: (u32, u32),
    /// For how many snapshots addresses have been what they are, and the pod at the port has been governed by what it is.
    steady: u32,
    now: Nanos,
    /// Whether packets begin here, rather than come out of datagrams that did.
    begins: bool,
}

impl<'a> Burst<'a> {
    /// For packets that other workers gave us, from any port.
    pub(super) fn taken(view: View<'a>, now: Nanos) -> Self {
        let steady = renew::identified_for(view);
        Self { view, mac: None, port: PortIndex(0), under: view.under(), steady, now, begins: true }
    }

    /// Returns the topology, as flows remember it.
    #[inline(always)]
    pub(super) fn topology(&self) -> u32 {
        self.under.1
    }

    /// For packets that came out of datagrams.
    pub(super) fn emerged(view: View<'a>, now: Nanos) -> Self {
        Self { begins: false, ..Self::new(view, now, PortIndex::TUNNEL) }
    }

    pub(super) fn new(view: View<'a>, now: Nanos, port: PortIndex) -> Self {
        Self {
            view,
            mac: view.topology.port(port).map(|port| port.mac),
            port,
            under: view.under(),
            steady: renew::identified_for(view).min(renew::governed_for(view, port)),
            now,
            begins: true,
        }
    }
}

/// A packet as far as it was read ahead; `quick` is absent for one that must go the long way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    quick: Option<Quick>,
    key: FlowKey,
    side: Side,
    hash: u64,
    /// The slot of its flow, most likely.
    likely: Option<u32>,
}

/// The first 96 bits of an IPv4 address as a number.
const MAPPED: u128 = 0xffff_0000_0000;

/// By how many packets the reading of headers is ahead of the asking for flows: long enough for the index to have come.
const LAG: usize = 16;

impl Plain {
    pub(super) const NONE: Self =
        Self { quick: None, key: FlowKey::NONE, side: Side::Low, hash: 0, likely: None };

    #[inline(always)]
    pub(super) fn read(frame: &impl Frame, flows: &FlowTable) -> Self {
        match quick::read_head(frame.data(), frame.packet_len()) {
            Some(quick) => {
                let (key, side) = FlowKey::of_quick(&quick);
                Self { quick: Some(quick), key, side, hash: flows.hash(&key), likely: None }
            }
            None => Self::NONE,
        }
    }

    /// Returns what the worker that the packet is given to need not read again.
    #[inline(always)]
    fn gist(&self) -> Gist {
        let Some(quick) = self.quick.filter(|quick| quick.v4) else { return Gist::default() };
        Gist {
            addresses: u64::from(quick.source as u32) << 32 | u64::from(quick.destination as u32),
            rest: u64::from(quick.source_port) << 48
                | u64::from(quick.destination_port) << 32
                | u64::from(quick.total_len) << 16
                | u64::from(quick.ttl) << 8
                | u64::from(quick.tcp_flags),
            hash: self.hash,
        }
    }

    /// Returns what was read of a packet by who gave it to us; nothing where that is nothing.
    #[inline(always)]
    pub(super) fn told(gist: &Gist) -> Option<Self> {
        if gist.rest == 0 {
            return None;
        }
        let address = |bits: u64| MAPPED | u128::from(bits as u32);
        let tcp_flags = gist.rest as u8;
        let quick = Quick {
            source: address(gist.addresses >> 32),
            destination: address(gist.addresses),
            source_port: (gist.rest >> 48) as u16,
            destination_port: (gist.rest >> 32) as u16,
            total_len: (gist.rest >> 16) as u16,
            // A plain segment has a flag at least.
            protocol: if tcp_flags == 0 { protocol::UDP } else { protocol::TCP },
            tcp_flags,
            ttl: (gist.rest >> 8) as u8,
            v4: true,
        };
        let (key, side) = FlowKey::of_quick(&quick);
        Some(Self { quick: Some(quick), key, side, hash: gist.hash, likely: None })
    }

    /// Returns all that is to be known of the packet that this was read from, where it is plain.
    #[inline(always)]
    pub(super) fn prepared(&self, frame: &[u8]) -> Option<Prepared> {
        let parsed = Ok(self.quick.as_ref()?.parsed(frame)?);
        Some(Prepared { parsed, key: self.key, side: self.side, hash: self.hash })
    }
}

/// How a packet leaves on the short way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Exit {
    /// By a port, finished; where its queue is another worker's, with an errand for that one, as a word.
    ///
    /// Not two cases, because of a burst's packets any may be either, and nothing foretells the next: that is decided once, at the end.
    Port { worker: WorkerIndex, port: PortIndex, errand: Word },
    /// By the tunnel, to a peer of ours.
    Seal(PeerId),
    /// By the tunnel, to a peer of another worker.
    SealElsewhere(WorkerIndex, PeerId),
    /// By another worker's hands, which are to hear of its flow and judge it too, an errand as a word.
    Hear(WorkerIndex, Word),
}

impl Exit {
    /// A finished packet that leaves by `path`, found under this topology, whoever has the queue.
    #[inline(always)]
    fn by(path: &Path, topology: u32) -> Self {
        let errand = if path.to_pod { Word::deliver(topology) } else { Word::send() };
        Self::Port { worker: path.worker, port: path.port, errand }
    }

    /// Gives the frame, which came to worker `me` from `port` and was `read`, where it goes. Sealing is the worker's to do: such a frame is
    /// given back to the shell.
    #[inline(always)]
    pub(super) fn take<F>(
        self,
        me: WorkerIndex,
        port: PortIndex,
        frame: F,
        read: &Plain,
        out: &mut Output<F>,
    ) {
        match self {
            Exit::Port { worker, port, errand } => {
                let own = &mut out.transmit.lane;
                out.handovers.lane_or(worker, worker == me, own).push(frame, errand.of(port));
            }
            Exit::Seal(_) => out.recycle.push(frame),
            Exit::SealElsewhere(to, peer) => out.handovers.of(to).push_word(frame, Word::seal(peer).of(port)),
            Exit::Hear(to, word) => out.handovers.of(to).push_told(frame, word.of(port), read.gist()),
        }
    }
}

impl<F: Frame> Worker<F> {
    /// Reads packets ahead, and asks for what their flows keep in memory. `read` reads the one at a place.
    #[inline(always)]
    pub(super) fn read_ahead(&self, plain: &mut [Plain], mut read: impl FnMut(usize) -> Plain) {
        let count = plain.len();
        for at in 0..count + LAG {
            if let Some(slot) = plain.get_mut(at) {
                *slot = read(at);
                self.flows.prefetch_index(slot.hash);
            }
            if let Some(read) = at.checked_sub(LAG).and_then(|at| plain.get_mut(at))
                && read.quick.is_some()
            {
                read.likely = self.flows.prefetch_flow(&read.key, read.hash, self.renewing);
            }
        }
    }

    /// Forwards the packet by what is remembered and says where to, or `None` with the packet as it was. `errand` is there when another
    /// worker gave it to us.
    #[inline(always)]
    pub(super) fn fast(
        &mut self,
        burst: &Burst<'_>,
        frame: &mut F,
        read: &Plain,
        errand: Option<Errand>,
    ) -> Option<Exit> {
        let quick = read.quick.as_ref()?;
        if tcp::opens(quick.tcp_flags) {
            return None;
        }
        let slot = match read.likely.filter(|slot| self.flows.is(*slot, &read.key)) {
            Some(slot) => slot,
            None => self.flows.find(&read.key, read.hash)?,
        };
        let mut flow = self.flows.flow_mut(slot)?;
        let direction = usize::from(read.side != flow.opener);
        let holds = flow.is_approved()
            && !flow.is_over(burst.now)
            && flow.topology == burst.under.1
            // A first answer, or an end, may change who is put out for new flows: the long way knows how.
            && !flow.may_settle(direction)
            && quick.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) == 0;
        if !holds {
            return None;
        }
        let path = *self.paths.get(flow.paths[direction])?;
        let welcome = match errand {
            None => {
                let ethernet = frame.data().first_chunk::<ETHERNET_LEN>()?;
                let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *ethernet;
                let mac = MacAddr([s0, s1, s2, s3, s4, s5]);
                self.arrivals.get(flow.arrivals[direction]) == Some(&Arrival { port: burst.port, mac })
                    && Some(MacAddr([d0, d1, d2, d3, d4, d5])) == burst.mac
            }
            Some(Errand::Judge(first)) => {
                first.forward == (direction == 0) && first.generation == burst.under.0
            }
            Some(Errand::Take) => true,
            Some(Errand::Send | Errand::Deliver(_) | Errand::Seal(_) | Errand::Open(..)) => false,
        };
        if !welcome {
            return None;
        }
        if flow.snapshot != burst.under.0 {
            // What another worker has judged under this very snapshot needs no second look at where it came from.
            let age = burst.under.0.wrapping_sub(flow.snapshot);
            let is_known = age <= burst.steady && !matches!(errand, Some(Errand::Take));
            if is_known && age <= self.standing.governed_for(burst.view, burst.under.0, path.port) {
                flow.snapshot = burst.under.0;
            } else {
                if !self.renew(burst.view, slot) {
                    return None;
                }
                flow = self.flows.flow_mut(slot)?;
            }
        }
        let me = self.config.index;
        let elsewhere = path.to_pod & (path.worker != me);
        let fits = quick.total_len <= path.mtu && !(path.decrement_ttl && quick.ttl <= 1);
        if !fits || (errand.is_some() && elsewhere) {
            return None;
        }
        let is_news =
            flow.observe_parts(direction, quick.total_len, quick.protocol, quick.tcp_flags, burst.now);
        trim(frame, quick.end());
        if is_news {
            std::hint::cold_path();
            if elsewhere {
                let first = Told { forward: direction == 0, state: flow.state, generation: burst.under.0 };
                self.counters.received += u64::from(burst.begins);
                self.counters.flow_hits += 1;
                self.counters.handed_over += 1;
                return Some(Exit::Hear(path.worker, Word::judge(first)));
            }
        }
        send_on(frame, quick, &path)?;
        match errand {
            None => self.counters.received += u64::from(burst.begins),
            Some(_) => self.counters.taken += 1,
        }
        self.counters.flow_hits += 1;
        if let Some(peer) = path.tunnel {
            if path.worker == me {
                return Some(Exit::Seal(peer));
            }
            self.counters.handed_over += 1;
            return Some(Exit::SealElsewhere(path.worker, peer));
        }
        self.counters.handed_over += u64::from(elsewhere);
        self.counters.forwarded += u64::from(!elsewhere);
        Some(Exit::by(&path, burst.under.1))
    }
}

/// Makes a packet that fits ready to leave by `path`; `None` for one that is shorter than it was when it was read.
#[inline(always)]
fn send_on(frame: &mut impl Frame, quick: &Quick, path: &Path) -> Option<()> {
    let partial = quick::partial(frame.data(), quick);
    finish::complete(frame, partial, path);
    let head = frame.data_mut().first_chunk_mut::<{ ETHERNET_LEN + 20 }>()?;
    if path.decrement_ttl {
        if quick.v4 {
            let old = u16::from_be_bytes([head[ETHERNET_LEN + 8], head[ETHERNET_LEN + 9]]);
            let new = old - 0x0100;
            let sum = u16::from_be_bytes([head[ETHERNET_LEN + 10], head[ETHERNET_LEN + 11]]);
            head[ETHERNET_LEN + 8] = (new >> 8) as u8;
            head[ETHERNET_LEN + 10..ETHERNET_LEN + 12]
                .copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
        } else {
            head[ETHERNET_LEN + 7] -= 1;
        }
    }
    head[0..6].copy_from_slice(&path.destination_mac.0);
    head[6..12].copy_from_slice(&path.source_mac.0);
    Some(())
}

/// Cuts what is behind the packet, where there is something: most frames end with it, and what is not written need not be waited for.
#[inline(always)]
fn trim(frame: &mut impl Frame, end: usize) {
    if frame.packet_len() != end {
        frame.set_len(end);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use margay_wire::build;

    use super::*;
    use crate::frame::MemoryFrame;

    #[test]
    fn what_was_read_of_a_plain_ipv4_packet_changes_hands_whole() {
        let macs = (MacAddr([2; 6]), MacAddr([4; 6]));
        let flows = FlowTable::new(16, 7);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let [low, high] = ["10.0.0.1", "203.0.113.255"].map(address);
        let flags = tcp_flags::ACK | tcp_flags::FIN;
        for (from, to) in [((low, 65_535), (high, 1)), ((high, 1), (low, 65_535)), ((low, 80), (low, 80))] {
            for bytes in [build::udp(macs, from, to, &[0; 1400]), build::tcp(macs, from, to, flags, b"x")] {
                let read = Plain::read(&MemoryFrame::new(&bytes), &flows);
                assert!(read.quick.is_some());
                let told = Plain::told(&read.gist()).expect("it is plain");
                assert_eq!(
                    (told.quick, told.key, told.side, told.hash),
                    (read.quick, read.key, read.side, read.hash)
                );
            }
        }
        let (from, to) = ((address("fd00::1"), 1), (address("fd00::2"), 2));
        for bytes in [build::udp(macs, from, to, b"x"), vec![0; 60]] {
            let read = Plain::read(&MemoryFrame::new(&bytes), &flows);
            assert!(Plain::told(&read.gist()).is_none(), "to be read where it goes");
        }
    }
}
