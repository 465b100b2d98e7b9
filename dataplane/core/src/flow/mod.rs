//! Flows: what was decided about a conversation, remembered so that its later packets need no policy.
//!
//! A flow is keyed by its two ends in a fixed order, so both directions find the same entry with one lookup; `opener` says which end
//! began. An entry holds the verdict of both legs, what each was judged by (the epoch of the endpoint's table and the identities of
//! both addresses), the way out in each direction, the connection state and counters.
//!
//! **What invalidates it.** Under a newer snapshot or topology the first packet compares: same endpoints, same epochs, same
//! identities renew the entry in place; different endpoints end it (an address that went to another pod never inherits,
//! policy model 28 row 11); anything else judges that packet again with the flow's original orientation (PM-D10). There is no sweep.
//!
//! **Where it came from.** The sanity stage is a pure function of topology, port, Ethernet source, addresses and ports. A flow remembers
//! per direction which (port, source, topology) passed it, and only exactly those are spared a second check.
//!
//! Memory: 256 bytes an entry, the first three of its four cache lines are all that a known packet touches. Entries live in a slab, the
//! index holds 32-bit slots; both are reserved for `max_flows` at the start, so nothing is ever moved or hashed again.

pub mod key;
pub mod table;
pub mod tcp;

pub use key::{FlowKey, Side};
pub use table::FlowTable;

use margay_policy_engine::packet::{EndpointId, Epoch, Generation, IdentityId};
use margay_policy_engine::snapshot::RuleRef;
use margay_wire::MacAddr;

use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::verdict::DropReason;
use tcp::TcpState;

/// One leg's judge: which endpoint, and the epoch of its table then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The endpoint whose policy decided.
    pub endpoint: EndpointId,
    /// Epoch of its table.
    pub epoch: Epoch,
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

/// The way out in one direction; good while the topology has the generation it was found under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub second_leg: bool,
    /// The worker that sends it.
    pub worker: WorkerIndex,
    /// Low half of the topology's generation that it was found under.
    pub topology: u32,
}

/// Whose packets of one direction have passed the sanity stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The port.
    pub port: u16,
    /// The Ethernet source.
    pub mac: MacAddr,
    /// Low half of the topology's generation; zero is none.
    pub topology: u32,
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

/// One flow.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Flow {
    /// Both ends, in order.
    pub key: FlowKey,
    /// When it is forgotten unless packets come.
    pub expires: Nanos,
    /// Which end opened it.
    pub opener: Side,
    /// Connection state.
    pub state: State,
    /// The legs kept here approve. While they do not, packets are dropped until a newer judgement approves.
    pub approved: bool,
    /// The first leg is another worker's.
    pub second: bool,
    /// Ways out: from the opener, towards the opener.
    pub paths: [Option<Path>; 2],
    /// Snapshot that last confirmed it.
    pub snapshot: Generation,
    /// Topology that last confirmed it.
    pub topology: u64,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// IP bytes by direction.
    pub bytes: [u64; 2],
    /// Who has passed the sanity stage, by direction.
    pub arrivals: [Arrival; 2],
    /// ICMP type and code of the opening packet, for judging again.
    pub icmp: Option<(u8, u8)>,
    /// What it was judged by.
    pub judged_by: JudgedBy,
    /// Who refused it, while it is not approved; `RuleRef(u32::MAX)` where no rule did.
    pub refusal: Option<(DropReason, RuleRef)>,
}

const _: () = assert!(size_of::<Flow>() == 256, "a flow is four cache lines");
