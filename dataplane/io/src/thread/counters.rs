//! A worker's numbers for others to read: stored once a burst, never waited for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use margay_core::{Counters, DropReason};

/// The core's counters for others to read.
#[derive(Debug)]
struct Tally {
    plain: [AtomicU64; 20],
    drops: Vec<AtomicU64>,
}

/// A worker's counters, stored by it once a burst, read by anyone.
#[derive(Debug, Default)]
pub struct SharedCounters {
    now: Tally,
    /// Those of processors that panicked.
    before: Tally,
    /// Panics that the worker went on from.
    pub panics: AtomicU64,
    /// Times that the thread woke from sleep.
    pub wakeups: AtomicU64,
    /// Turns of the loop.
    pub turns: AtomicU64,
    /// Drop events that found the channel full.
    pub events_lost: AtomicU64,
    /// Frames whose port was not there any more when they were to be sent.
    pub portless: AtomicU64,
    /// Finished packets that found the inbox of their port's worker full.
    pub unsent: AtomicU64,
    /// The heartbeat could not be written.
    pub heartbeat_failures: AtomicU64,
    /// Monotonic time of the last stamp that was written, in nanoseconds.
    pub last_stamp: AtomicU64,
}

impl SharedCounters {
    pub(super) fn store(&self, counters: &Counters) {
        self.now.store(counters);
    }

    /// Takes note of what a processor that is no more has counted.
    pub(super) fn close(&self, last: &Counters) {
        let mut before = self.before.load();
        before += last;
        self.now.store(&Counters::default());
        self.before.store(&before);
    }

    /// Returns the counters as of the last burst. Fields are read one by one, so sums may be off by the burst under way.
    pub fn load(&self) -> Counters {
        let mut counters = self.before.load();
        counters += &self.now.load();
        counters
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self { plain: Default::default(), drops: DropReason::ALL.iter().map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Tally {
    fn store(&self, counters: &Counters) {
        let c = counters;
        let values = [
            c.received,
            c.forwarded,
            c.answered,
            c.held,
            c.icmp_errors_sent,
            c.resets_sent,
            c.answers_limited,
            c.flow_hits,
            c.flow_misses,
            c.flow_rejudged,
            c.flows,
            c.taken,
            c.handed_over,
            c.flow_evicted,
            c.made,
            c.messages,
            c.sealed,
            c.opened,
            c.joined,
            c.cut,
        ];
        for (to, value) in self.plain.iter().zip(values) {
            to.store(value, Relaxed);
        }
        for (to, value) in self.drops.iter().zip(counters.drops) {
            to.store(value, Relaxed);
        }
    }

    fn load(&self) -> Counters {
        let mut counters = Counters::default();
        let [
            received,
            forwarded,
            answered,
            held,
            errors,
            resets,
            limited,
            hits,
            misses,
            rejudged,
            flows,
            taken,
            handed_over,
            evicted,
            made,
            messages,
            sealed,
            opened,
            joined,
            cut,
        ] = std::array::from_fn(|at| self.plain[at].load(Relaxed));
        counters.received = received;
        counters.forwarded = forwarded;
        counters.answered = answered;
        counters.held = held;
        counters.icmp_errors_sent = errors;
        counters.resets_sent = resets;
        counters.answers_limited = limited;
        counters.flow_hits = hits;
        counters.flow_misses = misses;
        counters.flow_rejudged = rejudged;
        counters.flows = flows;
        counters.taken = taken;
        counters.handed_over = handed_over;
        counters.flow_evicted = evicted;
        counters.made = made;
        counters.messages = messages;
        counters.sealed = sealed;
        counters.opened = opened;
        counters.joined = joined;
        counters.cut = cut;
        for (to, from) in counters.drops.iter_mut().zip(&self.drops) {
            *to = from.load(Relaxed);
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_read_as_it_was_stored_also_those_of_a_processor_that_is_no_more() {
        let counters = Counters {
            received: 1,
            taken: 2,
            made: 3,
            handed_over: 4,
            forwarded: 5,
            joined: 6,
            cut: 7,
            answered: 8,
            messages: 9,
            sealed: 10,
            opened: 11,
            held: 12,
            icmp_errors_sent: 13,
            resets_sent: 14,
            answers_limited: 15,
            flow_hits: 16,
            flow_misses: 17,
            flow_rejudged: 18,
            flow_evicted: 19,
            flows: 20,
            drops: std::array::from_fn(|at| 21 + at as u64),
        };
        let shared = SharedCounters::default();
        shared.store(&counters);
        assert_eq!(shared.load(), counters);
        shared.close(&counters);
        assert_eq!(shared.load(), counters);
        shared.store(&counters);
        let mut twice = counters.clone();
        twice += &counters;
        assert_eq!(shared.load(), twice);
    }
}
