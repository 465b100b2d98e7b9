//! Packets told one by one, to whoever watches: `margay capture` and `margay trace`.
//!
//! A tap is a filter that the shell hands to the worker. While there is one, a packet that it may match takes the long way, is copied as
//! it arrived, and is told with its ending and with everything that had a say in it. Without taps this costs one comparison a burst.
//!
//! A packet that changes hands is told once, by the worker that ends it.

use std::net::IpAddr;

use margay_policy_engine::packet::{Direction, EndpointId, PacketTuple, Verdict};
use margay_policy_engine::snapshot::Attribution;
use margay_wire::{IpHeaders, Packet, Parsed};

use super::{Dropped, Ending, Prepared, View, Worker, generation, judge};
use crate::flow::Path;
use crate::frame::{self, Frame};
use crate::output::Output;
use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::verdict::DropReason;

/// Names a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TapId(pub u32);

/// One end of a conversation, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapEnd {
    /// Its addresses; any where there are none.
    pub addresses: Vec<IpAddr>,
    /// Its transport port.
    pub port: Option<u16>,
}

/// Which packets are told. Empty fields ask nothing; those that are there must all be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapFilter {
    /// Packets of a pod: that came from its port, or have one of its addresses at either end.
    pub pod: Option<(Option<PortIndex>, Vec<IpAddr>)>,
    /// The two ends, either way round.
    pub ends: [TapEnd; 2],
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Only packets that were dropped for one of these.
    pub reasons: Vec<DropReason>,
    /// Bytes of a packet that are copied, from the Ethernet header on.
    pub snap_len: usize,
    /// Whether it is also copied as it left.
    pub sent: bool,
}

impl TapFilter {
    fn may_match(&self, port: PortIndex, ip: Option<&IpHeaders>) -> bool {
        if let Some((of_pod, addresses)) = &self.pod {
            let is_its = *of_pod == Some(port)
                || ip.is_some_and(|ip| addresses.contains(&ip.source) || addresses.contains(&ip.destination));
            if !is_its {
                return false;
            }
        }
        let asks_ip = self.protocol.is_some() || self.ends != <[TapEnd; 2]>::default();
        let Some(ip) = ip else { return !asks_ip };
        let ports = ip.ports();
        let has = [
            (ip.source, ports.map(|(source, _)| source)),
            (ip.destination, ports.map(|(_, destination)| destination)),
        ];
        let meets = |end: &TapEnd, (address, port): (IpAddr, Option<u16>)| {
            (end.addresses.is_empty() || end.addresses.contains(&address))
                && end.port.is_none_or(|wanted| Some(wanted) == port)
        };
        let [one, other] = &self.ends;
        let straight = meets(one, has[0]) && meets(other, has[1]);
        self.protocol.is_none_or(|wanted| wanted == ip.protocol)
            && (straight || (meets(one, has[1]) && meets(other, has[0])))
    }
}

/// How a told packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It left by this port.
    Forwarded(PortIndex),
    /// It left by the port of its path, in fragments.
    Fragmented,
    /// It was turned into an answer of ours.
    Answered,
    /// It waits for the first fragment of its datagram.
    AwaitsFirstFragment,
    /// It waits for the Ethernet address of its next hop.
    AwaitsNeighbour(IpAddr),
    /// It was dropped.
    Dropped(DropReason),
}

/// What one leg's policy says about the packet's flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldLeg {
    /// The pod whose policy it is.
    pub endpoint: EndpointId,
    /// Allow or deny.
    pub verdict: Verdict,
    /// Who decides.
    pub by: Option<Attribution>,
}

/// One packet, told.
#[derive(Clone, Debug)]
pub struct Captured {
    /// For whom.
    pub tap: TapId,
    /// When it was taken up, on the clock of the caller.
    pub time: Nanos,
    /// By whom.
    pub worker: WorkerIndex,
    /// The port it came from.
    pub port: PortIndex,
    /// Its first bytes as it arrived, from the Ethernet header on. Checksums that the sender leaves to its device are partial.
    pub bytes: Box<[u8]>,
    /// Its length in bytes.
    pub length: u32,
    /// Its first bytes as it left, and its length then, when that was asked for and it left whole.
    pub sent: Option<(Box<[u8]>, u32)>,
    /// How it ended.
    pub fate: Fate,
    /// Whether its flow was known before, in the words of `margay flows`; `None` where it began here or has none.
    pub known: Option<&'static str>,
    /// The flow's state afterwards.
    pub state: Option<&'static str>,
    /// Egress policy of the flow's opener, when that is a pod of this node.
    pub egress: Option<ToldLeg>,
    /// Ingress policy of the other end, when that is a pod of this node.
    pub ingress: Option<ToldLeg>,
    /// The rule that dropped it, when one did.
    pub decided_by: Option<Attribution>,
    /// Its way out, when that was found.
    pub path: Option<Path>,
    /// Number of the policy snapshot.
    pub generation: u64,
    /// Matching packets before this one that could not be told.
    pub lost_before: u64,
}

#[derive(Debug)]
struct Tap {
    id: TapId,
    filter: TapFilter,
    lost: u64,
}

/// The taps of a worker.
#[derive(Debug, Default)]
pub(super) struct Taps {
    taps: Vec<Tap>,
}

/// A packet that some tap may match, as it arrived.
#[derive(Debug)]
pub(super) struct Seen {
    bytes: Box<[u8]>,
    length: u32,
    known: Option<&'static str>,
}

impl Taps {
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }
}

impl<F: Frame> Worker<F> {
    /// Begins to tell packets that match `filter` in [`Output::captures`], or ends that.
    pub fn set_tap(&mut self, id: TapId, filter: Option<TapFilter>) {
        self.taps.taps.retain(|tap| tap.id != id);
        self.taps.taps.extend(filter.map(|filter| Tap { id, filter, lost: 0 }));
    }

    /// Whether a packet must not take the short way, because a tap may want it. No packet of a known flow that goes that way is dropped
    /// here, so taps that ask for drops do not mind; while there are taps none begins a flow that way. What another worker then finds has
    /// no port any more is counted and told as an event, but to no tap.
    #[inline(always)]
    pub(super) fn is_tapped(&self, port: PortIndex, frame: &F) -> bool {
        !self.taps.is_empty() && self.is_wanted(port, frame)
    }

    #[cold]
    fn is_wanted(&self, port: PortIndex, frame: &F) -> bool {
        let parsed = margay_wire::parse_head(frame.data(), frame.packet_len());
        let ip = match &parsed {
            Ok(Parsed { packet: Packet::Ip(ip), .. }) => Some(ip),
            _ => None,
        };
        let mut asking = self.taps.taps.iter().filter(|tap| tap.filter.reasons.is_empty());
        asking.any(|tap| tap.filter.may_match(port, ip))
    }

    /// Copies a packet that some tap may match.
    #[inline(always)]
    pub(super) fn look(&self, port: PortIndex, frame: &F, prepared: &Prepared) -> Option<Seen> {
        if self.taps.is_empty() { None } else { self.look_closely(port, frame, prepared) }
    }

    #[cold]
    fn look_closely(&self, port: PortIndex, frame: &F, prepared: &Prepared) -> Option<Seen> {
        let matching = || self.taps.taps.iter().filter(|tap| tap.filter.may_match(port, prepared.ip()));
        let snap_len = matching().map(|tap| tap.filter.snap_len).max()?;
        let flow = self.flows.find(&prepared.key, prepared.hash).and_then(|slot| self.flows.flow(slot));
        Some(Seen {
            bytes: frame::beginning(frame, snap_len),
            length: frame.packet_len() as u32,
            known: flow.map(|flow| flow.state_in_words()),
        })
    }

    /// Tells a packet to every tap that it matches; `frame` is the packet as it leaves.
    #[cold]
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    pub(super) fn tell(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        seen: Seen,
        frame: &F,
        prepared: &Prepared,
        ended: &Result<Ending, Dropped>,
        out: &mut Output<F>,
    ) {
        let fate = match ended {
            // The other worker tells it; who is watched is not finished here (`depart`).
            Ok(Ending::HandOver(..) | Ending::Deliver(..)) => return,
            Ok(Ending::Forward(port)) => Fate::Forwarded(*port),
            Ok(Ending::Seal(_)) => Fate::Forwarded(PortIndex::TUNNEL),
            Ok(Ending::Fragmented { .. }) => Fate::Fragmented,
            // Messages of the tunnel's protocol are told to nobody.
            Ok(Ending::Answer | Ending::Message) => Fate::Answered,
            Ok(Ending::Await { .. }) => Fate::AwaitsFirstFragment,
            Ok(Ending::Hold { next_hop, .. }) => Fate::AwaitsNeighbour(*next_hop),
            Err(dropped) => Fate::Dropped(dropped.reason),
        };
        let flow = self.flows.find(&prepared.key, prepared.hash).and_then(|slot| self.flows.flow(slot));
        let tuple = flow.map(|flow| flow.tuple()).or_else(|| prepared.ip().map(judge::tuple));
        let [egress, ingress] = tuple.map(|tuple| legs(view, &tuple)).unwrap_or_default();
        let decided_by = match ended {
            Err(Dropped { rule: Some(rule), .. }) => {
                view.snapshot.and_then(|snapshot| snapshot.attribution(*rule)).cloned()
            }
            _ => None,
        };
        let path = flow
            .filter(|flow| flow.topology == view.under().1)
            .and_then(|flow| self.paths.get(flow.paths[usize::from(prepared.side != flow.opener)]).copied());
        let state = flow.map(|flow| flow.state_in_words());
        for tap in &mut self.taps.taps {
            let filter = &tap.filter;
            let wanted = match fate {
                Fate::Dropped(reason) => filter.reasons.is_empty() || filter.reasons.contains(&reason),
                _ => filter.reasons.is_empty(),
            };
            if !wanted || !filter.may_match(port, prepared.ip()) {
                continue;
            }
            if out.captures.len() >= Output::<F>::MAX_CAPTURES {
                tap.lost += 1;
                continue;
            }
            let left = filter.sent && matches!(fate, Fate::Forwarded(_) | Fate::Answered);
            out.captures.push(Captured {
                tap: tap.id,
                time: now,
                worker: self.config.index,
                port,
                bytes: seen.bytes[..seen.bytes.len().min(filter.snap_len)].into(),
                length: seen.length,
                sent: left.then(|| (frame::beginning(frame, filter.snap_len), frame.packet_len() as u32)),
                fate,
                known: seen.known,
                state,
                egress: egress.clone(),
                ingress: ingress.clone(),
                decided_by: decided_by.clone(),
                path,
                generation: generation(view).0,
                lost_before: std::mem::take(&mut tap.lost),
            });
        }
    }
}

/// Returns what policy says about a flow that `tuple` opens: the opener's egress, the other end's ingress.
fn legs(view: View<'_>, tuple: &PacketTuple) -> [Option<ToldLeg>; 2] {
    let judge::Parties { egress, ingress, .. } = judge::Parties::of(view.topology, tuple);
    [(egress, Direction::Egress), (ingress, Direction::Ingress)].map(|(endpoint, direction)| {
        let (snapshot, endpoint) = (view.snapshot?, endpoint?);
        let judgement = snapshot.judge(endpoint, direction, tuple)?;
        Some(ToldLeg {
            endpoint,
            verdict: judgement.verdict,
            by: snapshot.attribution(judgement.rule).cloned(),
        })
    })
}
