//! What one worker gives another about a packet. Plain values that may cross threads when the frame may.
//!
//! A packet changes hands at most once between two pods: whoever takes it sends it by a queue of its own, and has judged it again if it was
//! told something about its flow.
//! Sealing and opening are the business of the worker that has the peer, so these are changes of hands of their own. What was
//! read of a plain IPv4 packet goes with it, so that the taker can ask for its own flow before it has the frame.
//!
//! All that is said of a packet is a word, or four where there is more to say than what to do: its [`Slip`]. It is written once, by the
//! giver, where the taker will read it: packets for one worker gather in [`Parcels`], whose words change hands as a whole where nothing
//! is before them, and only the frames are looked at on the way ([`Parcels::move_to`]).

mod lane;
mod parcels;
mod slip;

use crate::flow::State;
use crate::topology::PortIndex;
use crate::tunnel::{Addressee, PeerId};

pub use lane::Transmit;
pub use parcels::{Handovers, Parcels, Slips};
pub(crate) use slip::Word;
pub use slip::{Gist, Slip};

/// What the worker that a packet arrived at says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whether the packet goes the way of the flow's opener.
    pub forward: bool,
    /// Connection state, this packet included.
    pub state: State,
    /// The snapshot that it was judged under: the low half of its generation, of which no packet on its way sees 2^32.
    pub generation: u32,
}

/// What the taker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Send it: it is finished, only the queue is the taker's.
    Send,
    /// It has passed the sanity stage of its port, nothing more: its flow is the taker's.
    Take,
    /// It may pass, as far as the giver knows, and its flow is one that the taker keeps too: it hears of it, and agrees or not.
    Judge(Told),
    /// It may pass, its flow is one that the taker has heard of lately, and it is finished: send it to the pod. Under the topology with
    /// this number (its low half) the pod was behind that port.
    Deliver(u32),
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
    /// The port that it leaves by for [`Errand::Send`] and [`Errand::Deliver`], else the one that it came from.
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

    /// Returns the packet that a slip tells of.
    #[inline(always)]
    pub(crate) fn of(frame: F, slip: &Slip) -> Self {
        Self { frame, port: slip.port(), errand: slip.errand(), gist: slip.gist() }
    }
}
