//! The legs of a flow: found, confirmed, judged anew.
//!
//! A flow has a leg at each pod of this node that it touches: the opener's egress, the other end's ingress. Both must approve (policy
//! model 13.1). Any worker can judge both, because tables are the same for all; what a worker cannot know is who has spoken at the others'
//! ports. So a flow between pods of two workers has an entry at each, which stands for both legs there, and each worker decides by its own
//! about what arrives at it. The other one hears of what changes the flow, and that it lives ([`Flow::observe`]): such a packet is judged
//! once more there, which goes by the first one's word for who opened the flow:
//!
//! * It knows the flow with the same opener: its own answer counts.
//! * It does not know it, or with the other end as its opener (both began at once, or one of the two was refused): it is judged as
//!   if the flow had begun this way. In the middle of a TCP connection that is unknown here, only if the first worker has seen both ends
//!   speak.

use margay_policy_engine::packet::PacketTuple;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::parse::tcp_flags;
use margay_wire::{Fragment, IpHeaders, Transport};

use super::judge::Parties;
use super::{Dropped, Passing, PolicyChangeFlowAction, Prepared, View, Worker, judge, other, pairs};
use crate::flow::{Flow, Opening, State, UDP_LIFETIME, key, tcp};
use crate::frame::Frame;
use crate::output::Output;
use crate::time::Nanos;
use crate::verdict::DropReason;

/// What the flow table says about a packet.
enum Known {
    /// It belongs to the flow in this slot, which may pass.
    Flow(u32, usize),
    /// No flow, or one that this packet may not use.
    Unknown,
}

impl<F: Frame> Worker<F> {
    /// Returns the slot of the flow that the packet may use, and its direction, opening one where policy allows.
    pub(super) fn leg(
        &mut self,
        passing: &Passing<'_>,
        prepared: &Prepared,
        known: Option<u32>,
        out: &mut Output<F>,
    ) -> Result<(u32, usize), Dropped> {
        match self.lookup(passing, prepared, known)? {
            Known::Flow(slot, direction) => {
                self.counters.flow_hits += 1;
                Ok((slot, direction))
            }
            // Its first has passed, and the flow has ended since: there is nothing to judge it by.
            Known::Unknown if matches!(passing.ip.fragment, Fragment::Later { .. }) => {
                Err(DropReason::FragmentWithoutFirst.into())
            }
            Known::Unknown => {
                self.counters.flow_misses += 1;
                self.open(passing, prepared, known, out)
            }
        }
    }

    /// Finds the flow that `ip` belongs to and makes sure that it is still what it was judged as.
    #[inline]
    fn lookup(
        &mut self,
        passing: &Passing<'_>,
        prepared: &Prepared,
        known: Option<u32>,
    ) -> Result<Known, Dropped> {
        let Passing { view, now, ip, .. } = *passing;
        let Some(slot) = known else { return Ok(Known::Unknown) };
        let side = prepared.side;
        let flow = self.flows.flow(slot).ok_or(DropReason::InvalidState)?;
        let direction = usize::from(side != flow.opener);
        if flow.is_over(now) {
            self.flows.remove(slot);
            return Ok(Known::Unknown);
        }
        // A SYN is judged whatever is remembered (policy model 13.6).
        if let Transport::Tcp { flags, .. } = ip.transport
            && tcp::opens(flags)
        {
            return Ok(Known::Unknown);
        }
        if passing.told().is_some_and(|told| told.forward != (direction == 0)) {
            return Ok(Known::Unknown);
        }
        if (flow.snapshot, flow.topology) != view.under() && !self.revalidate(view, slot) {
            return Ok(Known::Unknown);
        }
        let flow = self.flows.flow(slot).ok_or(DropReason::InvalidState)?;
        if flow.is_approved() { Ok(Known::Flow(slot, direction)) } else { Err(flow.refused()) }
    }

    /// Confirms the flow under the present snapshot and topology, judging it again where what it was judged by has changed.
    /// Returns `false` when the flow is over: one of its ends is another endpoint now.
    pub(super) fn revalidate(&mut self, view: View<'_>, slot: u32) -> bool {
        let Some(flow) = self.flows.flow(slot) else { return false };
        let (tuple, old) = (flow.tuple(), flow.judged_by());
        let pair = self.pairs.meet(view, flow.port(), tuple.source, tuple.destination);
        let parties = pair.parties;
        if !parties.are(&old) {
            self.flows.remove(slot);
            return false;
        }
        let now = pair.by;
        let keep = self.config.policy_change == PolicyChangeFlowAction::Keep && flow.is_approved();
        // While a party had no table there was nothing to judge by, so what the flow rests on is older than that refusal.
        let is_judged = !matches!(flow.refusal(), Some((DropReason::NoPolicyYet, _)));
        let (refusal, judged_by) = if (now == Some(old) && is_judged) || keep {
            (flow.refusal(), old)
        } else {
            self.counters.flow_rejudged += 1;
            let judged = match &now {
                Some(by) => judge::judge_by(view, &self.config, &tuple, &parties, by),
                None => Err(DropReason::NoPolicyYet.into()),
            };
            (judged.err().map(|refused| (refused.reason, refused.rule)), now.unwrap_or(old))
        };
        if let Some(flow) = self.flows.flow_mut(slot) {
            flow.confirm(view.under(), judged_by, refusal);
        }
        true
    }

    /// Judges a packet that no flow is known for and remembers the answer. Returns the slot and the packet's direction.
    /// `known` is where its flow was found, which may have ended since.
    fn open(
        &mut self,
        passing: &Passing<'_>,
        prepared: &Prepared,
        known: Option<u32>,
        out: &mut Output<F>,
    ) -> Result<(u32, usize), Dropped> {
        let Passing { view, now, port, ip, .. } = *passing;
        let Prepared { key, side, hash, .. } = *prepared;
        let known = known.filter(|slot| self.flows.is(*slot, &key));
        let tuple = judge::tuple(ip);
        let &mut pairs::Pair { parties, by, path, .. } =
            self.pairs.meet(view, port.index, ip.source, ip.destination);
        let judged = |worker: &Self| {
            let by = by.ok_or(DropReason::NoPolicyYet)?;
            judge::judge_by(view, &worker.config, &tuple, &parties, &by).map(|()| by)
        };
        let judged_backwards = |worker: &Self| {
            let reversed = judge::reversed(&tuple);
            let parties = Parties::of(view.topology, &reversed);
            judge::judge(view, &worker.config, &reversed, &parties)
        };
        if passing.told().is_none() && view.snapshot.is_some_and(Snapshot::has_log_rules) {
            self.log(view, now, port.index, &tuple, &parties, out);
        }
        let in_mid_flow = match ip.transport {
            Transport::Tcp { flags, .. } => !tcp::opens(flags),
            Transport::Icmp { kind, .. } => key::is_icmp_reply(ip.protocol, kind),
            _ => false,
        };
        let adopting = in_mid_flow && now < self.started + self.config.adoption_window;
        let is_tcp = matches!(ip.transport, Transport::Tcp { .. });
        let mut state = match ip.transport {
            Transport::Tcp { .. } if in_mid_flow => State::Tcp(tcp::TcpState::ADOPTED),
            Transport::Tcp { .. } => State::Tcp(tcp::TcpState::OPENING),
            _ => State::Other { answered: false },
        };
        let told = passing.told().filter(|_| !is_tcp || in_mid_flow);
        let (opener, judged_by) = if let Some(told) = told {
            let spoken = matches!(told.state, State::Tcp(tcp) if tcp.is_established());
            if in_mid_flow && !spoken && known.is_none() {
                return Err(DropReason::InvalidState.into());
            }
            state = told.state;
            match if told.forward { None } else { Some(judged_backwards(self)) } {
                None => (side, judged(self)?),
                Some(Ok(by)) => (other(side), by),
                Some(Err(refused)) if in_mid_flow => return Err(refused),
                Some(Err(_)) => {
                    // By our snapshot that flow is over, by the giver's it was not: this packet begins a new one.
                    state = State::Other { answered: false };
                    (side, judged(self)?)
                }
            }
        } else if !in_mid_flow || !parties.any() {
            (side, judged(self)?)
        } else if adopting && is_tcp {
            // Either end may have opened it before we were here (PM-D19).
            match judged(self) {
                Ok(by) => (side, by),
                Err(refused) => (other(side), judged_backwards(self).map_err(|_| refused)?),
            }
        } else {
            return Err(DropReason::InvalidState.into());
        };
        let direction = usize::from(side != opener);
        if let Some(slot) = known
            && let Some(flow) = self.flows.flow_mut(slot)
            && flow.opener == opener
            // Not of somebody who had the address before.
            && flow.judged_by().is_between(&judged_by)
            && matches!(flow.state, State::Tcp(state) if !state.is_over())
        {
            // A repeated SYN of a connection that lives: approved again, state kept.
            flow.confirm(view.under(), judged_by, None);
            return Ok((slot, direction));
        }
        let opening = Opening {
            key,
            opener,
            state,
            icmp: tuple.icmp,
            second: passing.told().is_some(),
            port: port.index,
            under: view.under(),
            judged_by,
        };
        let slot = match known {
            Some(_) => self.flows.insert(Flow::new(&opening)),
            None => self.flows.open(&opening, hash),
        };
        let slot = slot.ok_or(DropReason::FlowTableFull)?;
        if let Some(flow) = self.flows.flow_mut(slot) {
            flow.paths[direction] = path;
            // It lives until the packet that opens it is observed, and then by that.
            flow.live_on(now, Nanos(0));
        }
        self.counters.flows = self.flows.len() as u64;
        self.counters.flow_evicted = self.flows.evicted();
        Ok((slot, direction))
    }
}

impl Flow {
    /// Returns who refused it.
    pub(super) fn refused(&self) -> Dropped {
        let (reason, rule) = self.refusal().unwrap_or((DropReason::NoPolicyYet, None));
        Dropped { reason, rule, error: None }
    }

    /// Returns the opening packet as policy saw it.
    pub(super) fn tuple(&self) -> PacketTuple {
        let key = self.key();
        let (from, to) = key.ends(self.opener);
        let ported = key.has_ports();
        PacketTuple {
            source: key::address(from.address),
            destination: key::address(to.address),
            protocol: key.protocol,
            source_port: ported.then_some(from.port),
            destination_port: ported.then_some(to.port),
            icmp: self.icmp(),
        }
    }

    /// Returns how long it is remembered after a packet that does not change its state.
    #[inline(always)]
    fn lifetime(&self, protocol: u8) -> Nanos {
        match self.state {
            State::Tcp(tcp) => tcp.timeout(),
            State::Other { .. } => match protocol {
                margay_wire::protocol::UDP | margay_wire::protocol::UDPLITE => UDP_LIFETIME,
                margay_wire::protocol::ICMP | margay_wire::protocol::ICMPV6 => Nanos::from_secs(5),
                _ => Nanos::from_secs(600),
            },
        }
    }

    /// Takes a packet: state, lifetime, counters. Returns whether it is news to the worker that keeps the flow for the other pod: it
    /// changes the flow's state, belongs to a connection that is not settled, or is the first in 134 ms ([`Flow::live_on`]).
    ///
    /// So the entry there ends when this one does, or so much earlier, and each worker knows of the other's pod what it would know of its
    /// own. Whoever has heard in this time does not say it back.
    #[inline]
    pub(super) fn observe(&mut self, direction: usize, ip: &IpHeaders, now: Nanos) -> bool {
        let flags = match ip.transport {
            Transport::Tcp { flags, .. } => flags,
            _ => 0,
        };
        self.observe_parts(direction, ip.total_len, ip.protocol, flags, now)
    }

    /// As [`Flow::observe`]; `flags` is zero where there is no TCP header.
    #[inline(always)]
    pub(super) fn observe_parts(
        &mut self,
        direction: usize,
        total_len: u16,
        protocol: u8,
        flags: u8,
        now: Nanos,
    ) -> bool {
        self.count(direction, total_len);
        let before = self.state;
        match &mut self.state {
            State::Tcp(tcp) if flags != 0 => {
                // A new connection over an old one was judged by `open`, which replaced the entry.
                let live = flags & (tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK);
                tcp.observe(direction, live);
            }
            State::Tcp(_) => {}
            State::Other { answered } => *answered |= direction == 1,
        }
        let is_first_in_step = self.live_on(now, self.lifetime(protocol));
        let may_change = match self.state {
            State::Tcp(_) => {
                flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0 || !self.is_settled()
            }
            State::Other { .. } => false,
        };
        is_first_in_step | may_change | (self.state != before)
    }
}
