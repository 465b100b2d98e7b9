//! The short way of a plain packet that opens a flow: the first packet of a conversation over UDP, or a SYN.
//!
//! Between two addresses nothing is new about such a packet but its ports. Whether they may speak on this port at all, who has a say,
//! what a judgement rests on, and the way out are known from the pair's first packet ([`Alike`]), or found out here. The tables are asked
//! for the ports, unless all that they can tell of them is what it was when they last approved ([`judge::port_classes`]): a client's next
//! port is no news to rules. And the flow is a copy of the pair's model with a few numbers of its own, written once where it stays.
//!
//! The long way decides the same and does the same: a test sends both ways and compares. It is left to the long way whenever a question
//! is open that a pair does not answer: while packets are watched, Log rules are in force, or some packets are sealed or refused in clear;
//! a flow with this key, or the look of one; no table, no route or no neighbour yet; a size or a TTL that has to be answered.

use margay_policy_engine::packet::PacketTuple;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::quick::Quick;
use margay_wire::{ETHERNET_LEN, MacAddr, Packet, Parsed, protocol};

use super::{Burst, Exit, Plain, send_on, trim};
use crate::flow::{self, Arrival, Beginning, Flow, Opening, State, key, tcp};
use crate::frame::Frame;
use crate::handover::{Told, Word};
use crate::verdict::DropReason;
use crate::worker::pairs::{Alike, Between, Pair, Start};
use crate::worker::sanity::{self, Class};
use crate::worker::{Dropped, View, Worker, judge, path};

/// What became of a packet that seemed to open a flow.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) enum Begun {
    /// It did, and leaves.
    Leaves(Exit),
    /// It may not pass.
    Refused(Dropped),
    /// Nothing was decided: it goes the long way.
    Open,
}

impl Plain {
    /// Returns whether it looks as if no flow with this key were known.
    #[inline(always)]
    pub(in crate::worker) fn seems_new(&self) -> bool {
        self.likely.is_none() && self.quick.is_some()
    }

    /// Returns the packet as a rule sees it.
    #[inline(always)]
    fn tuple(quick: &Quick) -> PacketTuple {
        PacketTuple {
            source: key::address_of(quick.source, quick.v4),
            destination: key::address_of(quick.destination, quick.v4),
            protocol: quick.protocol,
            source_port: Some(quick.source_port),
            destination_port: Some(quick.destination_port),
            icmp: None,
        }
    }
}

impl<F: Frame> Worker<F> {
    /// Returns whether packets may open flows on the short way at present.
    pub(in crate::worker) fn may_begin(&self, view: View<'_>) -> bool {
        self.taps.is_empty()
            && !view.topology.encrypts()
            && !view.snapshot.is_some_and(Snapshot::has_log_rules)
    }

    /// Opens the flow of a packet from the burst's port and forwards it, where [`Worker::may_begin`].
    #[inline(never)]
    pub(in crate::worker) fn begin(&mut self, burst: &Burst<'_>, frame: &mut F, read: &Plain) -> Begun {
        let Some(quick) = &read.quick else { return Begun::Open };
        let view = burst.view;
        let (state, lifetime) = match quick.protocol {
            protocol::TCP if tcp::opens(quick.tcp_flags) => {
                (State::Tcp(tcp::TcpState::OPENING), tcp::TcpState::OPENING.timeout())
            }
            protocol::UDP if quick.destination_port != sanity::VXLAN => {
                (State::Other { answered: false }, flow::UDP_LIFETIME)
            }
            _ => return Begun::Open,
        };
        if !self.flows.is_absent(read.hash) {
            return Begun::Open;
        }
        let (source, destination) = (quick.source, quick.destination);
        let between = Between { source, destination, under: burst.under, port: burst.port };
        if self.pairs.known(&between).is_none_or(|pair| matches!(pair.start, Start::Unasked)) {
            self.acquaint(burst, frame, read);
        }
        let Some(Pair { parties, start: Start::Alike(alike), .. }) = self.pairs.known(&between) else {
            return Begun::Open;
        };
        let Some(ethernet) = frame.data().first_chunk::<ETHERNET_LEN>() else { return Begun::Open };
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *ethernet;
        let path = &alike.path;
        let me = self.config.index;
        let elsewhere = path.to_pod && path.worker != me;
        let fits = quick.total_len <= path.mtu && !(path.decrement_ttl && quick.ttl <= 1);
        if MacAddr([s0, s1, s2, s3, s4, s5]) != alike.mac
            || Some(MacAddr([d0, d1, d2, d3, d4, d5])) != burst.mac
            || !(fits || elsewhere)
        {
            return Begun::Open;
        }
        self.counters.received += 1;
        self.counters.flow_misses += 1;
        trim(frame, quick.end());
        let (ports, by) = ((quick.source_port, quick.destination_port), &alike.judged_by);
        let asked = judge::port_classes(view, by, ports.0, ports.1);
        let approved = &mut alike.approved[usize::from(quick.protocol == protocol::TCP)];
        if asked.is_none() || *approved != asked {
            if let Err(refused) = judge::judge_by(view, &self.config, &Plain::tuple(quick), parties, by) {
                return Begun::Refused(refused);
            }
            *approved = asked;
            // Not before: whom policy refuses leaves no name.
            alike.flow.arrivals[0] = self.arrivals.id(Arrival { port: burst.port, mac: alike.mac });
        }
        let beginning = Beginning {
            ports: read.key.ports(),
            protocol: quick.protocol,
            state,
            now: burst.now,
            lifetime,
            total_len: quick.total_len,
        };
        if self.flows.open_like(&alike.flow, &beginning, read.hash).is_none() {
            return Begun::Refused(DropReason::FlowTableFull.into());
        }
        self.counters.flows = self.flows.len() as u64;
        self.counters.flow_evicted = self.flows.evicted();
        if elsewhere {
            let first = Told { forward: true, state, generation: burst.under.0 };
            self.counters.handed_over += 1;
            return Begun::Leaves(Exit::Hear(path.worker, Word::judge(first)));
        }
        if send_on(frame, quick, path).is_none() {
            return Begun::Refused(DropReason::Truncated.into());
        }
        self.counters.forwarded += 1;
        Begun::Leaves(Exit::by(path, burst.under.1))
    }

    /// Finds out what the flows have in common that packets between these addresses open. A packet that does not pass the sanity stage
    /// leaves no trace.
    #[inline(never)]
    fn acquaint(&mut self, burst: &Burst<'_>, frame: &F, read: &Plain) {
        let view = burst.view;
        let parsed = read.quick.as_ref().and_then(|quick| quick.parsed(frame.data()));
        let Some(Parsed { packet: Packet::Ip(ip), .. }) = &parsed else { return };
        let Some((port, parsed)) = view.topology.port(burst.port).zip(parsed.as_ref()) else { return };
        let passes = parsed.destination == port.mac
            // First, for a pair that another worker keeps comes here with every packet.
            && self.keeper(view.topology, port, frame.data(), ip) == self.config.index
            && sanity::ethernet(port, parsed).is_ok()
            && sanity::addresses(view.topology, &self.config, port, parsed, ip) == Ok(Class::Forward);
        if !passes {
            return;
        }
        let pair = self.pairs.meet(view, port.index, ip.source, ip.destination);
        pair.start = Start::Long;
        // Between two ports of one address it is the ports that say which end is which.
        let Some(by) = pair.by.filter(|_| ip.source != ip.destination) else { return };
        let path = match self.paths.get(pair.path) {
            Some(path) => *path,
            None => {
                let found = path::resolve(view.topology, self.config.index, port, ip.source, ip.destination);
                let Ok(path::Next::Ready(path)) = found else { return };
                pair.path = self.paths.id(path);
                path
            }
        };
        let mut flow = Flow::new(&Opening {
            key: read.key,
            opener: read.side,
            state: State::Other { answered: false },
            icmp: None,
            second: false,
            port: port.index,
            under: burst.under,
            judged_by: by,
        });
        flow.paths[0] = pair.path;
        pair.start =
            Start::Alike(Alike { mac: parsed.source, path, judged_by: by, approved: [None; 2], flow });
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::frame::MemoryFrame;
    use crate::time::Nanos;
    use crate::topology::Topology;
    use crate::tunnel::plan::{EncryptionPlan, FamilyPlan, OwnEnd, PeerPlan};
    use crate::tunnel::{Encryption, PeerId, PrivateKey};
    use crate::worker::WorkerConfig;

    /// What stays published when encryption was switched off holds nobody up.
    #[test]
    fn flows_begin_on_the_short_way_again_once_nobody_is_a_peer_and_nothing_must_be_sealed() {
        let worker: Worker<MemoryFrame> = Worker::new(WorkerConfig::default(), Nanos(0));
        let may_begin = |plan: &EncryptionPlan, before: &Topology| {
            let encryption = Encryption::new(plan, before.encryption().map(|it| &**it));
            let topology = Topology::default().with_encryption(Some(Arc::new(encryption)));
            (worker.may_begin(View { snapshot: None, topology: &topology }), topology)
        };
        let key = |seed| PrivateKey::new([seed; 32]);
        let peer = PeerPlan {
            id: PeerId(1),
            node: "other".to_owned(),
            keys: vec![key(2).public()],
            endpoint: SocketAddr::from(([192, 168, 0, 2], 51820)),
            allowed: vec!["10.0.2.0/24".parse().expect("a prefix")],
            keepalive: None,
        };
        let own = OwnEnd { keys: vec![key(1)], port: 51820, address: [192, 168, 0, 1].into(), mtu: 0 };
        let end = FamilyPlan { own, peers: Vec::new() };
        let on = FamilyPlan { peers: vec![peer], ..end.clone() };
        let required = |it| vec![("10.0.2.0/24".parse().expect("a prefix"), it)];

        let never = Topology::default();
        assert!(worker.may_begin(View { snapshot: None, topology: &never }));
        let (while_on, on) = may_begin(&EncryptionPlan { v4: Some(on), ..Default::default() }, &never);
        assert!(!while_on);
        assert!(may_begin(&EncryptionPlan::default(), &on).0, "switched off");
        assert!(
            may_begin(&EncryptionPlan { v4: Some(end), ..Default::default() }, &on).0,
            "the last peer is gone"
        );
        assert!(!may_begin(&EncryptionPlan { required: required(true), ..Default::default() }, &on).0);
        assert!(may_begin(&EncryptionPlan { required: required(false), ..Default::default() }, &on).0);
    }
}
