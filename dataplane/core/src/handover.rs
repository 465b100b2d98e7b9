//! What one worker gives another about a packet. Plain values that may cross threads when the frame may.
//!
//! A packet changes hands at most once to be judged: whoever takes it judges what is left to judge and sends it by a queue of its own.
//! Sealing and opening are the business of the worker that has the peer, so these are changes of hands of their own. What was
//! learnt from its headers does not travel with it: the taker touches the head of the frame anyhow to rewrite it, and reading it again
//! costs less than carrying two cache lines of what was read.

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

/// A packet that changes hands.
#[derive(Debug)]
pub struct Handover<F> {
    /// The frame; whoever holds this owns its memory.
    pub frame: F,
    /// The port that it leaves by for [`Errand::Send`], else the one that it came from.
    pub port: PortIndex,
    /// What is to be done.
    pub errand: Errand,
}
