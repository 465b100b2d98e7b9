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
//! Memory: entries live in a slab, the index holds 32-bit slots; both are bounded by `max_flows`.

pub mod key;
pub mod table;
pub mod tcp;

pub use key::{FlowKey, Side};
pub use table::FlowTable;

use margay_policy_engine::packet::{EndpointId, Epoch, Generation, IdentityId};
use margay_policy_engine::snapshot::RuleRef;
use margay_wire::MacAddr;

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

/// Whether the flow may pass, and who said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Both legs approved.
    Approved,
    /// A later judgement refused it; its packets are dropped until a newer one approves.
    Refused(DropReason, Option<RuleRef>),
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
    pub mtu: u32,
    /// Whether the TTL is decremented: not on the last hop inside this node.
    pub decrement_ttl: bool,
    /// Topology it was found under.
    pub topology: u64,
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
pub struct Flow {
    /// Both ends, in order.
    pub key: FlowKey,
    /// Which end opened it.
    pub opener: Side,
    /// ICMP type and code of the opening packet, for judging again.
    pub icmp: Option<(u8, u8)>,
    /// Whether it may pass.
    pub standing: Standing,
    /// What that was judged by.
    pub judged_by: JudgedBy,
    /// Snapshot that last confirmed it.
    pub snapshot: Generation,
    /// Topology that last confirmed it.
    pub topology: u64,
    /// Connection state.
    pub state: State,
    /// When it is forgotten unless packets come.
    pub expires: Nanos,
    /// Ways out: from the opener, towards the opener.
    pub paths: [Option<Path>; 2],
    /// Packets by direction.
    pub packets: [u64; 2],
    /// IP bytes by direction.
    pub bytes: [u64; 2],
}
