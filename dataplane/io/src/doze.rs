//! Sleeping without missing a call: one sleeper, many callers, nobody waits for a lock.
//!
//! ```text
//!  sleeper                                caller
//!  asleep = true                          put something in the queue
//!  ─── fence ───                          ─── fence ───
//!  queue empty? else stay awake           asleep? then wake, once
//!  poll (sleep)
//!  asleep = false
//! ```
//!
//! Of the two fences one comes first in the one order that all threads agree on. If the sleeper's does, the caller sees it asleep and
//! wakes it; if the caller's does, the sleeper sees that the queue is not empty. A model checker walks through every order of these steps
//! (`tests/models.rs`, which compiles this very file over its own atomics).

use super::atomics::{AtomicBool, Ordering, fence};

/// Whether a thread sleeps, as callers see it.
#[derive(Debug)]
pub struct Doze {
    asleep: AtomicBool,
}

impl Default for Doze {
    fn default() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }
}

impl Doze {
    /// Says that the thread is about to sleep. Returns whether it may: `is_empty` tells whether there is nothing for it to do.
    ///
    /// Call [`Doze::wake_up`] afterwards in either case.
    pub fn lie_down(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        is_empty()
    }

    /// Says that the thread is awake.
    pub fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Called after something was put where the sleeper looks. Returns whether the caller is the one to wake it.
    pub fn must_call(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}
