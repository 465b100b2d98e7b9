//! What is said of a packet that changes hands: a word, and three more of a packet whose flow is to be found or whose peer is.
//!
//! Words, because they are written and copied as such: a copy that gathers what was just stored in smaller pieces waits for every store
//! before it, those to memory that another processor has among them. And few, because each line of them changes processors.
//!
//! ```text
//!  word      errand: kind (3 bits), its three marks, 8 bits and 32 bits of its own; port (16 bits, the highest)
//!  gist      of Take and Judge; of Open, whose first word is the plan and the places of both keys
//!    word 0  source address, destination address
//!    word 1  source port, destination port, length, TTL, TCP flags; zero when nothing was read
//!    word 2  the hash of its flow's key in the giver's table
//! ```

use super::{Errand, Told};
use crate::flow::State;
use crate::flow::tcp::TcpState;
use crate::topology::PortIndex;
use crate::tunnel::{Addressee, PeerId};

/// What the giver has read of a plain IPv4 packet, in three words: all that its taker needs to know of its headers. The frame's bytes stay
/// as they were read, because whoever holds the frame is the only one that has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Gist {
    /// Source and destination address.
    pub(crate) addresses: u64,
    /// Source and destination port, length of the IP packet, TTL, TCP flags; zero when nothing was read.
    pub(crate) rest: u64,
    /// The hash of its flow's key in the giver's table. A hint: who has another secret only looks in the wrong place.
    pub(crate) hash: u64,
}

/// The first word of what is said of a packet: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Word(u64);

/// What is said of a packet that changes hands: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slip {
    word: Word,
    /// Nothing where the word says that there is none.
    gist: Gist,
}

const KIND: u64 = 0b111;
const SEND: u64 = 0;
const TAKE: u64 = 1;
const JUDGE: u64 = 2;
const SEAL: u64 = 3;
const OPEN: u64 = 4;
const DELIVER: u64 = 5;
/// Marks of [`Errand::Judge`].
const FORWARD: u64 = 1 << 3;
const TCP: u64 = 1 << 4;
const ANSWERED: u64 = 1 << 5;
/// Mark of [`Errand::Open`].
const KEYS: u64 = 1 << 3;
/// Where its 8 and its 32 bits are.
const BYTE: u32 = 6;
const HALF: u32 = 14;
const PORT: u32 = 48;

impl Word {
    /// Returns [`Errand::Send`] as a word, but for the port.
    #[inline(always)]
    pub(crate) fn send() -> Self {
        Self(SEND)
    }

    /// Returns [`Errand::Seal`] as a word, but for the port.
    #[inline(always)]
    pub(crate) fn seal(peer: PeerId) -> Self {
        Self(SEAL | u64::from(peer.0) << HALF)
    }

    /// Returns [`Errand::Deliver`] as a word, but for the port.
    #[inline(always)]
    pub(crate) fn deliver(topology: u32) -> Self {
        Self(DELIVER | u64::from(topology) << HALF)
    }

    /// Returns [`Errand::Judge`] as a word, but for the port.
    #[inline(always)]
    pub(crate) fn judge(first: Told) -> Self {
        let forward = if first.forward { FORWARD } else { 0 };
        let state = match first.state {
            State::Tcp(tcp) => TCP | u64::from(tcp.byte()) << BYTE,
            State::Other { answered } => u64::from(answered) * ANSWERED,
        };
        Self(JUDGE | forward | state | u64::from(first.generation) << HALF)
    }

    /// Returns the word with its port.
    #[inline(always)]
    pub(crate) fn of(self, port: PortIndex) -> Self {
        Self(self.0 | u64::from(port.0) << PORT)
    }

    /// Returns the port; see [`Slip::port`].
    #[inline(always)]
    pub(crate) fn port(self) -> PortIndex {
        PortIndex((self.0 >> PORT) as u16)
    }

    /// Returns whether a gist belongs to it.
    #[inline(always)]
    pub(crate) fn has_gist(self) -> bool {
        matches!(self.0 & KIND, TAKE | JUDGE | OPEN)
    }

    /// Returns whether it is [`Errand::Deliver`] under this topology.
    #[inline(always)]
    pub(crate) fn is_delivery(self, topology: u32) -> bool {
        self.0 & !(u64::MAX << PORT) == Self::deliver(topology).0
    }
}

impl Slip {
    /// Returns the slip that says all this.
    #[inline(always)]
    pub fn new(port: PortIndex, errand: Errand, gist: Gist) -> Self {
        let (word, gist) = match errand {
            Errand::Send => (Word::send(), Gist::default()),
            Errand::Take => (Word(TAKE), gist),
            Errand::Judge(first) => (Word::judge(first), gist),
            Errand::Seal(peer) => (Word::seal(peer), Gist::default()),
            Errand::Deliver(topology) => (Word::deliver(topology), Gist::default()),
            Errand::Open(Addressee { peer, keys }, plan) => {
                let (mark, [ours, theirs]) = match keys {
                    Some((ours, theirs)) => (KEYS, [ours, theirs]),
                    None => (0, [0, 0]),
                };
                let addresses = u64::from(plan) << 16 | u64::from(ours) << 8 | u64::from(theirs);
                // What comes in sealed has no headers that were read.
                (Word(OPEN | mark | u64::from(peer.0) << HALF), Gist { addresses, ..Gist::default() })
            }
        };
        Self { word: word.of(port), gist }
    }

    /// Returns the slip of a word and its gist.
    #[inline(always)]
    pub(super) fn of(word: Word, gist: Option<&Gist>) -> Self {
        Self { word, gist: gist.copied().unwrap_or_default() }
    }

    /// Returns its word, and its gist where it has one.
    #[inline(always)]
    pub(super) fn parts(self) -> (Word, Option<Gist>) {
        (self.word, self.word.has_gist().then_some(self.gist))
    }

    /// Returns the port that the packet leaves by for [`Errand::Send`] and [`Errand::Deliver`], else the one that it came from.
    #[inline(always)]
    pub fn port(&self) -> PortIndex {
        self.word.port()
    }

    /// Returns what is to be done.
    #[inline(always)]
    pub fn errand(&self) -> Errand {
        let word = self.word.0;
        let half = (word >> HALF) as u32;
        match word & KIND {
            TAKE => Errand::Take,
            JUDGE => {
                let state = match word & TCP {
                    0 => State::Other { answered: word & ANSWERED != 0 },
                    _ => State::Tcp(TcpState::of_byte((word >> BYTE) as u8)),
                };
                Errand::Judge(Told { forward: word & FORWARD != 0, state, generation: half })
            }
            SEAL => Errand::Seal(PeerId(half)),
            DELIVER => Errand::Deliver(half),
            OPEN => {
                let more = self.gist.addresses;
                let keys = (word & KEYS != 0).then_some(((more >> 8) as u8, more as u8));
                Errand::Open(Addressee { peer: PeerId(half), keys }, (more >> 16) as u32)
            }
            _ => Errand::Send,
        }
    }

    /// Returns whether the packet has a flow of the taker's.
    #[inline(always)]
    pub(crate) fn has_flow(&self) -> bool {
        matches!(self.word.0 & KIND, TAKE | JUDGE)
    }

    /// Returns what was read of it.
    #[inline(always)]
    pub fn gist(&self) -> Gist {
        if self.word.0 & KIND == OPEN { Gist::default() } else { self.gist }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_says_what_it_was_told() {
        let gist = Gist { addresses: u64::MAX, rest: 1 << 63, hash: 0x0123_4567_89ab_cdef };
        let states = (0..=u8::MAX).map(|byte| State::Tcp(TcpState::of_byte(byte)));
        let states = states.chain([true, false].map(|answered| State::Other { answered }));
        let mut errands = vec![Errand::Send, Errand::Take, Errand::Deliver(0), Errand::Deliver(u32::MAX)];
        for (number, state) in states.enumerate() {
            for forward in [true, false] {
                let generation = [0, 1, u32::MAX, 0x8000_0000][number % 4];
                errands.push(Errand::Judge(Told { forward, state, generation }));
            }
        }
        for peer in [0, 1, PeerId::END - 1].map(PeerId) {
            errands.push(Errand::Seal(peer));
            for keys in [None, Some((0, 0)), Some((255, 1)), Some((1, 255))] {
                errands.extend([0, u32::MAX].map(|plan| Errand::Open(Addressee { peer, keys }, plan)));
            }
        }
        for errand in errands {
            for port in [0, 1, u16::MAX].map(PortIndex) {
                let slip = Slip::new(port, errand, gist);
                assert_eq!((slip.port(), slip.errand()), (port, errand));
                let has_flow = matches!(errand, Errand::Take | Errand::Judge(_));
                assert_eq!(slip.gist(), if has_flow { gist } else { Gist::default() }, "{errand:?}");
                assert_eq!(slip.has_flow(), has_flow);
                let (word, gist) = slip.parts();
                assert_eq!(Slip::of(word, gist.as_ref()), slip);
                for topology in [0, 1, u32::MAX] {
                    assert_eq!(word.is_delivery(topology), errand == Errand::Deliver(topology));
                }
            }
        }
    }
}
