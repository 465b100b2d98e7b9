//! What is said of a packet that changes hands, in four words.
//!
//! Words, because they are written and copied as such: a copy that gathers what was just stored in smaller pieces waits for every store
//! before it, those to memory that another processor has among them.
//!
//! ```text
//!  word 0    source address, destination address        (Open: the plan, the places of both keys)
//!  word 1    source port, destination port, length, TTL, TCP flags; zero when nothing was read
//!  word 2    the hash of its flow's key in the giver's table
//!  word 3    errand: kind (3 bits), its three marks, 8 bits and 32 bits of its own; port (16 bits, the highest)
//! ```

use super::{Errand, FirstLeg};
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

/// What is said of a packet that changes hands: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct Slip {
    gist: Gist,
    word: u64,
}

const _: () = assert!(size_of::<Slip>() == 32, "two to a cache line");

const KIND: u64 = 0b111;
const SEND: u64 = 0;
const TAKE: u64 = 1;
const JUDGE: u64 = 2;
const SEAL: u64 = 3;
const OPEN: u64 = 4;
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

impl Slip {
    /// Returns what is to be done with a packet, as the last word of its slip but for the port, and what that word has no room for.
    #[inline(always)]
    fn words(errand: Errand) -> (u64, u64) {
        match errand {
            Errand::Send => (SEND, 0),
            Errand::Take => (TAKE, 0),
            Errand::Judge(first) => (Self::judge(first), 0),
            Errand::Seal(peer) => (Self::seal(peer), 0),
            Errand::Open(Addressee { peer, keys }, plan) => {
                let (mark, [ours, theirs]) = match keys {
                    Some((ours, theirs)) => (KEYS, [ours, theirs]),
                    None => (0, [0, 0]),
                };
                let more = u64::from(plan) << 16 | u64::from(ours) << 8 | u64::from(theirs);
                (OPEN | mark | u64::from(peer.0) << HALF, more)
            }
        }
    }

    /// Returns [`Errand::Send`] as a word.
    #[inline(always)]
    pub(crate) fn send() -> u64 {
        SEND
    }

    /// Returns [`Errand::Seal`] as a word.
    #[inline(always)]
    pub(crate) fn seal(peer: PeerId) -> u64 {
        SEAL | u64::from(peer.0) << HALF
    }

    /// Returns [`Errand::Judge`] as a word.
    #[inline(always)]
    pub(crate) fn judge(first: FirstLeg) -> u64 {
        let forward = if first.forward { FORWARD } else { 0 };
        let state = match first.state {
            State::Tcp(tcp) => TCP | u64::from(tcp.byte()) << BYTE,
            State::Other { answered } => u64::from(answered) * ANSWERED,
        };
        JUDGE | forward | state | u64::from(first.generation) << HALF
    }

    /// Returns the slip of a packet of that port, with what was read of it and its errand as a word.
    #[inline(always)]
    pub(crate) fn of_word(gist: Gist, port: PortIndex, word: u64) -> Self {
        Self { gist, word: word | u64::from(port.0) << PORT }
    }

    /// Returns the slip that says all this.
    #[inline(always)]
    pub fn new(port: PortIndex, errand: Errand, gist: Gist) -> Self {
        let (word, more) = Self::words(errand);
        // What comes in sealed has no headers that were read.
        let gist =
            if let Errand::Open(..) = errand { Gist { addresses: more, ..Gist::default() } } else { gist };
        Self::of_word(gist, port, word)
    }

    /// Returns the port that the packet leaves by for [`Errand::Send`], else the one that it came from.
    #[inline(always)]
    pub fn port(&self) -> PortIndex {
        PortIndex((self.word >> PORT) as u16)
    }

    /// Returns what is to be done.
    #[inline(always)]
    pub fn errand(&self) -> Errand {
        let half = (self.word >> HALF) as u32;
        match self.word & KIND {
            TAKE => Errand::Take,
            JUDGE => {
                let state = match self.word & TCP {
                    0 => State::Other { answered: self.word & ANSWERED != 0 },
                    _ => State::Tcp(TcpState::of_byte((self.word >> BYTE) as u8)),
                };
                Errand::Judge(FirstLeg { forward: self.word & FORWARD != 0, state, generation: half })
            }
            SEAL => Errand::Seal(PeerId(half)),
            OPEN => {
                let more = self.gist.addresses;
                let keys = (self.word & KEYS != 0).then_some(((more >> 8) as u8, more as u8));
                Errand::Open(Addressee { peer: PeerId(half), keys }, (more >> 16) as u32)
            }
            _ => Errand::Send,
        }
    }

    /// Returns whether the packet has a flow of the taker's.
    #[inline(always)]
    pub(crate) fn has_flow(&self) -> bool {
        matches!(self.word & KIND, TAKE | JUDGE)
    }

    /// Returns what was read of it.
    #[inline(always)]
    pub fn gist(&self) -> Gist {
        if self.word & KIND == OPEN { Gist::default() } else { self.gist }
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
        let mut errands = vec![Errand::Send, Errand::Take];
        for (number, state) in states.enumerate() {
            for forward in [true, false] {
                let generation = [0, 1, u32::MAX, 0x8000_0000][number % 4];
                errands.push(Errand::Judge(FirstLeg { forward, state, generation }));
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
                let told = if let Errand::Open(..) = errand { Gist::default() } else { gist };
                assert_eq!(slip.gist(), told, "{errand:?}");
                assert_eq!(slip.has_flow(), matches!(errand, Errand::Take | Errand::Judge(_)));
            }
        }
    }
}
