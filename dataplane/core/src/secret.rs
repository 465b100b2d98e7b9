//! A hash that strangers cannot aim at.
//!
//! Whoever sends packets chooses keys of tables here, so every number that the hash mixes with keys has to be secret. foldhash's
//! `FixedState` hides one of two: against the other, which is a published constant, an IPv6 network can be chosen in which the hash
//! of an address does not depend on the address.

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

/// Of no meaning. Zero and its complement, which a test may well choose as its seed, are mixed to themselves.
const OTHER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns a hasher in which everything follows from `seed`. It lives as long as the process, as its few bytes do.
pub(crate) fn hasher(seed: u64) -> SeedableRandomState {
    let shared: &'static SharedSeed = Box::leak(Box::new(SharedSeed::from_u64(seed ^ OTHER)));
    SeedableRandomState::with_seed(seed, shared)
}
