//! Flows: what was decided about a conversation, remembered so that its later packets need no policy.
//!
//! A flow is keyed by its two ends in a fixed order, so both directions find the same entry with one lookup; `opener` says which end
//! began. An entry holds the verdict of both legs, what each was judged by (the epoch of the endpoint's table and the identities of
//! both addresses), the way out in each direction, the connection state and counters.
//!
//! **What invalidates it.** A snapshot knows since when nothing has changed for an endpoint; a flow that was confirmed since then is
//! confirmed. Else, and under a newer topology, the first packet compares: same endpoints, same epochs, same identities renew the entry
//! in place; different endpoints end it (an address that went to another pod never inherits, policy model 28 row 11); anything else
//! judges that packet again with the flow's original orientation (PM-D10). There is no sweep.
//!
//! **Where it came from.** The sanity stage is a pure function of topology, port, Ethernet source, addresses and ports. A flow remembers
//! per direction which (port, source, topology) passed it, and only exactly those are spared a second check.
//!
//! Memory: 128 bytes an entry, two cache lines. The first is all that a packet of a known IPv4 flow touches: whose it is, whether it may
//! pass, how it leaves, and what it is counted in. The second holds what a judgement rests on, and the first 96 bits of both addresses,
//! which are the same for all IPv4 flows. Ways out and senders are named, not copied ([`interned`]). With 6.4 to 12.8 bytes of index that
//! is at most 141 bytes a flow. Entries live in a slab whose room is reserved for `max_flows` at the start, so nothing is ever moved.
//!
//! **Under attack.** A flow is *settled* from its other end's first answer to its end. Only flows that are not may be put out for new
//! ones, oldest first, and a port that opens too many puts out its own ([`table`]): a flood costs the flows of its own port, never a
//! conversation.

mod index;
pub mod interned;
pub mod key;
pub mod table;
pub mod tcp;

pub use interned::{Id, Interned};
pub use key::{FlowKey, Side};
pub use table::FlowTable;

use margay_policy_engine::packet::{EndpointId, IdentityId};
use margay_policy_engine::snapshot::RuleRef;
use margay_wire::MacAddr;

use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::tunnel::PeerId;
use crate::verdict::DropReason;
use tcp::TcpState;

/// One leg's judge: which endpoint, and the epoch of its table then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The endpoint whose policy decided.
    pub endpoint: EndpointId,
    /// Low half of the epoch of its table; no flow sleeps through 2^32 changes.
    pub epoch: u32,
}

/// What a flow was judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JudgedBy {
    /// The opener's egress, when the opener is a pod of this node.
    pub egress: Option<Leg>,
    /// The other end's ingress, when that is a pod of this node and the opener is not this node itself.
    pub ingress: Option<Leg>,
    /// Identity of the opener's address.
    pub source: IdentityId,
    /// Identity of the other address.
    pub destination: IdentityId,
}

impl JudgedBy {
    /// Returns whether both are judgements between the same endpoints.
    pub fn is_between(&self, other: &Self) -> bool {
        let ends = |by: &Self| [by.egress, by.ingress].map(|leg| leg.map(|leg| leg.endpoint));
        ends(self) == ends(other)
    }
}

/// The way out in one direction, under one topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Port to leave by.
    pub port: PortIndex,
    /// Our address on it.
    pub source_mac: MacAddr,
    /// The next hop's.
    pub destination_mac: MacAddr,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Whether the TTL is decremented: not on the last hop inside this node.
    pub decrement_ttl: bool,
    /// Whether a leg of the flow stands at that port: a pod is behind it.
    pub to_pod: bool,
    /// The worker that sends it; of a packet that is sealed, the one that has the peer.
    pub worker: WorkerIndex,
    /// The peer that it is sealed for; the port is the tunnel then.
    pub tunnel: Option<PeerId>,
}

/// Whose packets of one direction have passed the sanity stage, under one topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arrival {
    /// The port.
    pub port: PortIndex,
    /// The Ethernet source.
    pub mac: MacAddr,
}

/// Connection state by protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP.
    Tcp(TcpState),
    /// Anything else: whether the other end has answered.
    Other {
        /// It has.
        answered: bool,
    },
}

impl State {
    /// As [`Flow::is_settled`].
    #[inline(always)]
    pub fn is_settled(self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_established() && !tcp.is_over() && !tcp.is_unproved(),
            Self::Other { answered } => answered,
        }
    }
}

/// Packets and bytes in one direction: 40 and 56 bits of one number, so that a packet costs one addition.
#[derive(Clone, Copy, Debug, Default)]
struct Tally([u32; 3]);

impl Tally {
    const PACKET: u64 = 1 << 56;

    #[inline(always)]
    fn add(&mut self, bytes: u16) {
        let [low, middle, high] = self.0;
        let sum = u64::from(low) | u64::from(middle) << 32;
        let (sum, carry) = sum.overflowing_add(Self::PACKET | u64::from(bytes));
        self.0 = [sum as u32, (sum >> 32) as u32, high.wrapping_add(carry.into())];
    }

    /// One packet.
    #[inline(always)]
    fn of(bytes: u16) -> Self {
        Self([bytes.into(), (Self::PACKET >> 32) as u32, 0])
    }

    fn packets(self) -> u64 {
        u64::from(self.0[2]) << 8 | u64::from(self.0[1] >> 24)
    }

    fn bytes(self) -> u64 {
        u64::from(self.0[1] & 0xff_ffff) << 32 | u64::from(self.0[0])
    }
}

/// Stands for "no endpoint" and "no rule"; nothing has such a number.
const NONE: u32 = u32::MAX;

/// The first 96 bits of an IPv4 address as a key has it.
const MAPPED: u128 = 0xffff;

/// The flow is IPv6: its addresses continue in the second line.
const V6: u8 = 1;
/// It stands among those that may be put out.
const LISTED: u8 = 2;
/// Another worker had its first packet.
const SECOND: u8 = 4;
/// `icmp` is what its opening packet had.
const ICMP: u8 = 8;

/// One flow, as its worker keeps it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Flow {
    /// The last 32 bits of both addresses.
    low: [u32; 2],
    ports: [u16; 2],
    protocol: u8,
    /// Which end opened it.
    pub opener: Side,
    /// Connection state.
    pub state: State,
    marks: u8,
    refused_for: Option<DropReason>,
    /// The port whose packet opened it here.
    port: PortIndex,
    /// Who has passed the sanity stage, by direction; names of the present topology only.
    pub arrivals: [Id; 2],
    /// Ways out: from the opener, towards the opener; names of the present topology only.
    pub paths: [Id; 2],
    expires: u32,
    /// Low half of the generation of the snapshot that last confirmed it.
    pub snapshot: u32,
    /// Low half of the generation of the topology that last confirmed it.
    pub topology: u32,
    tallies: [Tally; 2],
    // Second line.
    /// The first 96 bits of both addresses. An IPv4 flow, of which they are known, keeps the hash of its key here.
    high: [[u32; 3]; 2],
    /// Neighbours in the list of its port's flows that are not settled.
    links: [u32; 2],
    endpoints: [u32; 2],
    epochs: [u32; 2],
    identities: [IdentityId; 2],
    refused_by: u32,
    icmp: [u8; 2],
}

const _: () = assert!(size_of::<Option<Flow>>() == 128, "a flow is two cache lines");
const _: () = assert!(std::mem::offset_of!(Flow, high) == 64, "what every packet needs is in the first");

/// What a flow begins with.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Both ends, in order.
    pub key: FlowKey,
    /// Which end opened it.
    pub opener: Side,
    /// Connection state.
    pub state: State,
    /// ICMP type and code of the opening packet.
    pub icmp: Option<(u8, u8)>,
    /// Another worker had its first packet, and this one heard of it.
    pub second: bool,
    /// The port that the opening packet came from.
    pub port: PortIndex,
    /// Low halves of the generations of snapshot and topology.
    pub under: (u32, u32),
    /// What it was judged by.
    pub judged_by: JudgedBy,
}

/// How long a flow of UDP is remembered after its last packet (policy model 13.5).
pub const UDP_LIFETIME: Nanos = Nanos::from_secs(60);

/// What a flow that its first packet opens has for its own, beside others between the same addresses.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    /// Both ports, in the order of the key.
    pub ports: [u16; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Connection state, the first packet included; not a settled one.
    pub state: State,
    /// When the first packet came.
    pub now: Nanos,
    /// How long the flow lives if no other follows.
    pub lifetime: Nanos,
    /// Length of the first packet, in bytes.
    pub total_len: u16,
}

/// Returns whether both are IPv4 addresses.
#[inline(always)]
fn is_v4(addresses: &[u128; 2]) -> bool {
    addresses[0] >> 32 == MAPPED && addresses[1] >> 32 == MAPPED
}

/// Returns the first 96 bits of an address.
#[inline(always)]
fn high(address: u128) -> [u32; 3] {
    [(address >> 96) as u32, (address >> 64) as u32, (address >> 32) as u32]
}

/// A flow that two workers keep is told of by the one to the other once in 2^NEWS steps (134 ms): so much earlier may its entry end there.
const NEWS: u32 = 3;

/// Time in steps of 2^24 ns (17 ms), which is all that lifetimes need; a u32 of them is two years.
fn steps(time: Nanos) -> u32 {
    (time.0 >> 24) as u32
}

impl Flow {
    /// Returns an approved flow that has counted no packet.
    #[inline(always)]
    pub fn new(opening: &Opening) -> Self {
        let Opening { key, opener, state, icmp, second, port, under, judged_by } = *opening;
        let mark = |mark: u8, is_set: bool| if is_set { mark } else { 0 };
        let addresses = key.addresses();
        let legs = [judged_by.egress, judged_by.ingress];
        Self {
            low: addresses.map(|address| address as u32),
            ports: key.ports(),
            protocol: key.protocol,
            opener,
            state,
            marks: mark(V6, !is_v4(&addresses)) | mark(SECOND, second) | mark(ICMP, icmp.is_some()),
            refused_for: None,
            port,
            arrivals: [Id::default(); 2],
            paths: [Id::default(); 2],
            expires: 0,
            snapshot: under.0,
            topology: under.1,
            tallies: [Tally::default(); 2],
            high: addresses.map(high),
            links: [0; 2],
            endpoints: legs.map(|leg| leg.map_or(NONE, |leg| leg.endpoint.0)),
            epochs: legs.map(|leg| leg.map_or(0, |leg| leg.epoch)),
            identities: [judged_by.source, judged_by.destination],
            refused_by: NONE,
            icmp: icmp.map_or([0; 2], |(kind, code)| [kind, code]),
        }
    }

    /// Makes a copy of what flows between two addresses have in common one of them, which its opener's first packet began.
    #[inline(always)]
    fn begin(&mut self, beginning: &Beginning, hash: u64) {
        let Beginning { ports, protocol, state, now, lifetime, total_len } = *beginning;
        (self.ports, self.protocol, self.state) = (ports, protocol, state);
        self.keep_hash(hash);
        self.tallies[0] = Tally::of(total_len);
        self.live_on(now, lifetime);
    }

    /// Returns both ends and the protocol.
    #[inline(always)]
    pub fn key(&self) -> FlowKey {
        let address = |at: usize| {
            let first = match self.marks & V6 {
                0 => MAPPED,
                _ => self.high[at].iter().fold(0, |all, part| all << 32 | u128::from(*part)),
            };
            first << 32 | u128::from(self.low[at])
        };
        FlowKey::of_parts([address(0), address(1)], self.ports, self.protocol)
    }

    /// Keeps the hash of its key, where there is room.
    #[inline(always)]
    fn keep_hash(&mut self, hash: u64) {
        if self.marks & V6 == 0 {
            self.high[0] = [hash as u32, (hash >> 32) as u32, 0];
        }
    }

    /// Returns the hash of its key, where it was kept.
    #[inline(always)]
    fn kept_hash(&self) -> Option<u64> {
        let [low, high, _] = self.high[0];
        (self.marks & V6 == 0).then_some(u64::from(high) << 32 | u64::from(low))
    }

    /// Returns whether it has this key. For an IPv4 flow its first line knows.
    #[inline(always)]
    pub fn has_key(&self, key: &FlowKey) -> bool {
        let addresses = key.addresses();
        self.low == addresses.map(|address| address as u32)
            && self.ports == key.ports()
            && self.protocol == key.protocol
            && match self.marks & V6 {
                0 => is_v4(&addresses),
                _ => self.high == addresses.map(high),
            }
    }

    /// Returns whether both legs approve. While they do not, packets are dropped until a newer judgement approves.
    #[inline(always)]
    pub fn is_approved(&self) -> bool {
        self.refused_for.is_none()
    }

    /// Returns the port whose packet opened it here.
    #[inline(always)]
    pub fn port(&self) -> PortIndex {
        self.port
    }

    /// Returns whether another worker had its first packet.
    #[inline(always)]
    pub fn is_second(&self) -> bool {
        self.marks & SECOND != 0
    }

    /// Returns ICMP type and code of the opening packet, for judging again.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        (self.marks & ICMP != 0).then_some(self.icmp.into())
    }

    /// Returns what it was judged by.
    pub fn judged_by(&self) -> JudgedBy {
        let leg = |at: usize| {
            let endpoint = EndpointId(self.endpoints[at]);
            (endpoint.0 != NONE).then_some(Leg { endpoint, epoch: self.epochs[at] })
        };
        let [source, destination] = self.identities;
        JudgedBy { egress: leg(0), ingress: leg(1), source, destination }
    }

    /// Notes a judgement: under which generations, by what, and who refused if somebody did. What it remembers of an older topology ends.
    pub fn confirm(
        &mut self,
        under: (u32, u32),
        by: JudgedBy,
        refusal: Option<(DropReason, Option<RuleRef>)>,
    ) {
        if self.topology != under.1 {
            self.arrivals = [Id::default(); 2];
            self.paths = [Id::default(); 2];
        }
        (self.snapshot, self.topology) = under;
        let legs = [by.egress, by.ingress];
        self.endpoints = legs.map(|leg| leg.map_or(NONE, |leg| leg.endpoint.0));
        self.epochs = legs.map(|leg| leg.map_or(0, |leg| leg.epoch));
        self.identities = [by.source, by.destination];
        self.refused_for = refusal.map(|(reason, _)| reason);
        self.refused_by = refusal.and_then(|(_, rule)| rule).map_or(NONE, |rule| rule.0);
    }

    /// Returns who refused it, while it is not approved.
    pub fn refusal(&self) -> Option<(DropReason, Option<RuleRef>)> {
        Some((self.refused_for?, (self.refused_by != NONE).then_some(RuleRef(self.refused_by))))
    }

    /// Returns whether its time is over.
    #[inline(always)]
    pub fn is_over(&self, now: Nanos) -> bool {
        steps(now) >= self.expires
    }

    /// Lets it live for `lifetime` from now on. Returns whether that is news: the first time in 134 ms it is ([`NEWS`]).
    #[inline(always)]
    pub fn live_on(&mut self, now: Nanos, lifetime: Nanos) -> bool {
        let before = std::mem::replace(&mut self.expires, steps(now + lifetime) + 1);
        (before ^ self.expires) >> NEWS != 0
    }

    /// Takes back that its life was told: the next packet is news. Until then it lives 134 ms shorter.
    pub fn unsay(&mut self) {
        self.expires = self.expires.saturating_sub(1 << NEWS);
    }

    /// Returns the time until it is forgotten if nothing more comes.
    pub fn expires_in(&self, now: Nanos) -> Nanos {
        Nanos(u64::from(self.expires) << 24) - now
    }

    /// Counts a packet.
    #[inline(always)]
    pub fn count(&mut self, direction: usize, bytes: u16) {
        self.tallies[direction & 1].add(bytes);
    }

    /// Returns the packets and bytes of one direction: 0 from the opener, 1 towards it.
    pub fn counted(&self, direction: usize) -> (u64, u64) {
        let tally = self.tallies[direction & 1];
        (tally.packets(), tally.bytes())
    }

    /// Returns whether it stands among those that may be put out, or not, against what its state says.
    #[inline(always)]
    pub fn is_misplaced(&self) -> bool {
        self.is_listed() == self.is_settled()
    }

    /// Returns whether it stands among those that may be put out.
    #[inline(always)]
    pub fn is_listed(&self) -> bool {
        self.marks & LISTED != 0
    }

    /// Returns whether a packet in `direction` may change who is put out for new flows.
    #[inline(always)]
    pub fn may_settle(&self, direction: usize) -> bool {
        self.is_listed() && (direction == 1 || matches!(self.state, State::Tcp(tcp) if tcp.is_unproved()))
    }

    /// Returns whether the other end has answered and neither has ended it: such a flow is never put out for a new one.
    #[inline(always)]
    pub fn is_settled(&self) -> bool {
        self.state.is_settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn a_flow_has_its_key_and_no_other() {
        let ends = ["10.0.0.1", "10.0.0.2", "fd00::a00:1", "fd01::a00:1", "::a00:1"]
            .map(|text| text.parse::<IpAddr>().expect("an address"));
        let mut keys = Vec::new();
        for one in ends {
            for other in ends.iter().filter(|other| other.is_ipv4() == one.is_ipv4()) {
                for (port, protocol) in [(80, 6), (81, 6), (80, 17)] {
                    keys.push(FlowKey::new((one, 4000), (*other, port), protocol).0);
                }
            }
        }
        let flows: Vec<_> = keys.iter().map(|key| flow(*key, Some((8, 0)))).collect();
        for (flow, key) in flows.iter().zip(&keys) {
            assert_eq!((flow.key(), flow.icmp(), flow.is_second()), (*key, Some((8, 0)), false));
            for other in &keys {
                assert_eq!(flow.has_key(other), key == other, "{key:?} {other:?}");
            }
        }
        assert_eq!(flow(keys[0], None).icmp(), None);
    }

    fn flow(key: FlowKey, icmp: Option<(u8, u8)>) -> Flow {
        Flow::new(&Opening {
            key,
            opener: Side::Low,
            state: State::Other { answered: false },
            icmp,
            second: false,
            port: PortIndex(0),
            under: (0, 0),
            judged_by: JudgedBy::default(),
        })
    }

    #[test]
    fn a_tally_counts_packets_and_bytes_past_32_bits() {
        let mut tally = Tally::default();
        let (mut packets, mut bytes) = (0u64, 0u64);
        for round in 0..300_000u64 {
            let len = (round * 7 % 65_536) as u16;
            tally.add(len);
            packets += 1;
            bytes += u64::from(len);
        }
        assert_eq!((tally.packets(), tally.bytes()), (packets, bytes));
        assert!(bytes > u64::from(u32::MAX));
        assert_eq!((Tally::of(1500).packets(), Tally::of(1500).bytes()), (1, 1500));
        let mut tally = Tally([u32::MAX, 0xffff_ffff, 0]);
        tally.add(0);
        assert_eq!(
            (tally.packets(), tally.bytes()),
            (256, (1 << 56) - 1),
            "the carry reaches the third part"
        );
    }
}
