//! Allowances: how many of a thing per second.

use crate::time::Nanos;

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
