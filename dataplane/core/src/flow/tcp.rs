//! As much of TCP's state as a firewall needs (policy model 13.5; RFC 9293 §3.3.2).

use std::fmt;

use margay_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};

use crate::time::Nanos;

/// State of a TCP flow, in one byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TcpState(u8);

/// Both ends have spoken.
const ESTABLISHED: u8 = 1;
/// FIN seen from the opener, from the other end.
const FINS: [u8; 2] = [2, 4];
const BOTH_FINS: u8 = 2 | 4;
/// RST seen from either.
const RESET: u8 = 8;
/// Adopted in the middle, and nothing heard here yet from the opener, from the other end.
const UNHEARD: [u8; 2] = [16, 32];
const EITHER_UNHEARD: u8 = 16 | 32;

/// How long an adopted flow is remembered of which only one end was heard: as long as one of UDP.
const UNPROVED: Nanos = Nanos::from_secs(60);

impl fmt::Debug for TcpState {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.as_str())
    }
}

impl TcpState {
    /// State after an opening SYN.
    pub const OPENING: Self = Self(0);
    /// State of a flow adopted in the middle: taken for one that both ends know, but not yet heard from either.
    pub const ADOPTED: Self = Self(ESTABLISHED | EITHER_UNHEARD);

    /// Returns the state as a byte, for [`TcpState::of_byte`].
    #[inline(always)]
    pub(crate) fn byte(self) -> u8 {
        self.0
    }

    /// Returns the state that a byte stands for.
    #[inline(always)]
    pub(crate) fn of_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// Takes a segment from the opener (`direction` 0) or towards it (1).
    #[inline]
    pub fn observe(&mut self, direction: usize, flags: u8) {
        self.0 &= !UNHEARD[direction & 1];
        if flags & RST != 0 {
            self.0 |= RESET;
            return;
        }
        if direction == 1 && flags & ACK != 0 {
            self.0 |= ESTABLISHED;
        }
        if flags & FIN != 0 {
            self.0 |= FINS[direction & 1];
        }
    }

    /// Returns whether it was adopted, and one of its ends was not heard here since. One end alone can make such a flow, so it counts for
    /// no more than an opening one.
    #[inline]
    pub fn is_unproved(&self) -> bool {
        self.0 & EITHER_UNHEARD != 0
    }

    /// Returns whether both ends have spoken.
    #[inline]
    pub fn is_established(&self) -> bool {
        self.0 & ESTABLISHED != 0
    }

    /// Returns whether a bare SYN may begin the connection anew.
    pub fn is_over(&self) -> bool {
        self.0 & RESET != 0 || self.0 & BOTH_FINS == BOTH_FINS
    }

    /// Returns how long the flow is remembered after its last packet (policy model 13.5).
    #[inline]
    pub fn timeout(&self) -> Nanos {
        if self.0 & RESET != 0 {
            Nanos::from_secs(40)
        } else if self.0 & BOTH_FINS == BOTH_FINS {
            Nanos::from_secs(30)
        } else if self.is_unproved() {
            UNPROVED
        } else if self.is_established() {
            Nanos::from_secs(3600)
        } else {
            Nanos::from_secs(20)
        }
    }

    /// Returns the state in a word.
    pub fn as_str(&self) -> &'static str {
        if self.0 & RESET != 0 {
            "reset"
        } else if self.0 & BOTH_FINS != 0 {
            "closing"
        } else if self.is_unproved() {
            "adopted"
        } else if self.is_established() {
            "established"
        } else {
            "syn_sent"
        }
    }
}

/// Returns whether the segment asks for a new connection: SYN without ACK.
pub fn opens(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}
