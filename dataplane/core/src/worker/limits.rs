//! Allowances: how many of a thing per second.

use crate::time::Nanos;
use crate::topology::PortIndex;

/// A token bucket of one second's depth.
#[derive(Clone, Debug)]
pub struct Allowance {
    per_second: u64,
    tokens: u64,
    refilled: Nanos,
}

impl Allowance {
    /// Returns a full bucket of `per_second` tokens.
    pub fn new(per_second: u64, now: Nanos) -> Self {
        Self { per_second, tokens: per_second, refilled: now }
    }

    /// Takes one token; `false` when there is none.
    pub fn take(&mut self, now: Nanos) -> bool {
        let elapsed = (now - self.refilled).0;
        let earned = elapsed.saturating_mul(self.per_second) / 1_000_000_000;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(self.per_second);
            self.refilled = now;
        }
        let granted = self.tokens > 0;
        self.tokens -= u64::from(granted);
        granted
    }
}

/// An allowance for each port.
#[derive(Clone, Debug)]
pub struct PerPort {
    per_second: u64,
    each: Vec<Allowance>,
}

impl PerPort {
    /// Returns a full bucket of `per_second` tokens for every port.
    pub fn new(per_second: u64) -> Self {
        Self { per_second, each: Vec::new() }
    }

    /// Takes one token of the port; `false` when there is none.
    pub fn take(&mut self, port: PortIndex, now: Nanos) -> bool {
        let at = usize::from(port.0);
        if self.each.len() <= at {
            self.each.resize(at + 1, Allowance::new(self.per_second, now));
        }
        self.each[at].take(now)
    }
}
