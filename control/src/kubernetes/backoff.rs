//! How long to wait before the server is asked again: longer each time, and never in step with anybody else.

use std::time::Duration;

/// A source of chance that needs no system call: splitmix64 over a seed that is given.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns another that is independent of this one.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a duration between half of `about` and one and a half of it.
    pub fn around(&mut self, about: Duration) -> Duration {
        let share = 512 + u32::try_from(self.next() % 1_024).unwrap_or(512);
        about * share / 1_024
    }
}

/// Waits that double from `first` to `most`, each spread by half of itself.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    chance: Chance,
}

impl Backoff {
    /// Returns a backoff that was never asked.
    pub fn new(first: Duration, most: Duration, chance: Chance) -> Self {
        Self { first, most, failures: 0, chance }
    }

    /// Returns how long to wait after one more failure.
    pub fn next(&mut self) -> Duration {
        let wait =
            self.first.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.most);
        self.failures = (self.failures + 1).min(31);
        self.chance.around(wait)
    }

    /// Notes a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_differ_between_seeds() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 30 * second, Chance::new(1));
        for n in 0..100u32 {
            let about = second * (1u32.checked_shl(n).unwrap_or(u32::MAX)).min(30);
            let wait = backoff.next();
            assert!(wait >= about / 2 && wait < about * 3 / 2, "{n}: {wait:?} around {about:?}");
        }
        backoff.reset();
        assert!(backoff.next() < 2 * second);
        let waits = |seed| {
            let mut chance = Chance::new(seed);
            (0..10).map(|_| chance.around(second)).collect::<Vec<_>>()
        };
        assert_ne!(waits(1), waits(2));
        assert_eq!(waits(3), waits(3));
    }
}
