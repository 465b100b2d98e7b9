//! As much of TCP's state as a firewall needs (policy model 13.5; RFC 9293 §3.3.2).

use margay_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};

use crate::time::Nanos;

/// State of a TCP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState {
    /// Both ends have spoken.
    pub established: bool,
    /// FIN seen from the opener, from the other end.
    pub fin: [bool; 2],
    /// RST seen from either.
    pub reset: bool,
}

impl TcpState {
    /// State after an opening SYN.
    pub const OPENING: Self = Self { established: false, fin: [false; 2], reset: false };
    /// State of a flow adopted in the middle.
    pub const ADOPTED: Self = Self { established: true, fin: [false; 2], reset: false };

    /// Takes a segment from the opener (`direction` 0) or towards it (1).
    #[inline]
    pub fn observe(&mut self, direction: usize, flags: u8) {
        if flags & RST != 0 {
            self.reset = true;
            return;
        }
        if direction == 1 && flags & ACK != 0 {
            self.established = true;
        }
        if flags & FIN != 0 {
            self.fin[direction & 1] = true;
        }
    }

    /// Returns whether a bare SYN may begin the connection anew.
    pub fn is_over(&self) -> bool {
        self.reset || self.fin == [true; 2]
    }

    /// Returns how long the flow is remembered after its last packet (policy model 13.5).
    #[inline]
    pub fn timeout(&self) -> Nanos {
        if self.reset {
            Nanos::from_secs(40)
        } else if self.fin == [true; 2] {
            Nanos::from_secs(30)
        } else if self.established {
            Nanos::from_secs(3600)
        } else {
            Nanos::from_secs(20)
        }
    }

    /// Returns the state in a word.
    pub fn as_str(&self) -> &'static str {
        if self.reset {
            "reset"
        } else if self.fin != [false; 2] {
            "closing"
        } else if self.established {
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
