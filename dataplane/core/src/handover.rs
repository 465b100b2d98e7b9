//! What one worker gives another about a packet. Plain values that may cross threads when the frame may.
//!
//! A packet changes hands at most once to be judged: whoever takes it judges what is left to judge and sends it by a queue of its own.
//! Sealing and opening are the business of the worker that has the peer, so these are changes of hands of their own. What was
//! read of a plain IPv4 packet goes with it, so that the taker can ask for its own flow before it has the frame.

use margay_policy_engine::packet::Generation;

use crate::flow::State;
use crate::topology::PortIndex;
use crate::tunnel::{Addressee, PeerId};

/// What the first leg says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstLeg {
    /// Whether the packet goes the way of the flow's opener.
    pub forward: bool,
    /// Connection state, this packet included.
    pub state: State,
    /// The snapshot that the first leg was judged under.
    pub generation: Generation,
}

/// What the taker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Send it: it is finished, only the queue is the taker's.
    Send,
    /// It has passed the sanity stage of its port, nothing more: its flow is the taker's.
    Take,
    /// Its first leg is approved; the second is the taker's.
    Judge(FirstLeg),
    /// It is finished but for sealing, and its peer is the taker's.
    Seal(PeerId),
    /// It came in sealed, and its peer is the taker's. Found under the plan with this number (its low half).
    Open(Addressee, u32),
}

/// What the giver has read of a plain IPv4 packet, in three words: all that its taker needs to know of its headers. The frame's bytes stay
/// as they were read, because whoever holds the frame is the only one that has it.
///
/// Words, because they are written and copied as such: a copy that gathers what was just stored in smaller pieces waits for every store
/// before it, those to memory that another processor has among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gist {
    /// Source and destination address.
    pub(crate) addresses: u64,
    /// Source and destination port, length of the IP packet, TTL, TCP flags; zero when nothing was read.
    pub(crate) rest: u64,
    /// The hash of its flow's key in the giver's table. A hint: who has another secret only looks in the wrong place.
    pub(crate) hash: u64,
}

/// A packet that changes hands.
#[derive(Debug)]
pub struct Handover<F> {
    /// The frame; whoever holds this owns its memory.
    pub frame: F,
    /// The port that it leaves by for [`Errand::Send`], else the one that it came from.
    pub port: PortIndex,
    /// What is to be done.
    pub errand: Errand,
    /// What was read of it.
    pub gist: Gist,
}

impl<F> Handover<F> {
    /// Returns a packet of which nothing is told but what is to be done.
    pub fn new(frame: F, port: PortIndex, errand: Errand) -> Self {
        Self { frame, port, errand, gist: Gist::default() }
    }
}
