//! Looking around without being in the way: a worker that found nothing lets others have its processor.
//!
//! ```text
//!  a turn found nothing ─▶ yield ─▶ back soon: they had little to do, or there were none ─▶ look again
//!                                └▶ back late: one of them computes ─▶ no more yields for a while
//! ```
//!
//! What a worker waits for is often made by a thread that waits for the worker's processor: who answers the packet that was just sent, who
//! writes the next one. A worker that looks around all the same keeps it from that until its time is over. But who yields to a thread that
//! computes is back a whole time slice later, longer than the worker would have slept, and with the packets of that time waiting.

use margay_core::Nanos;

/// Longer than those keep a processor who send and receive; shorter than a time slice of one who computes, which is 1.4 ms on two
/// processors and 2.8 on eight.
const LATE: Nanos = Nanos::from_millis(1);
/// So long nobody is yielded to after that: one slice in so much time is what finding out again may cost.
const RESERVE: Nanos = Nanos::from_millis(100);

/// Whether to yield.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    /// When it was yielded, since the last turn.
    yielded: Option<Nanos>,
    /// Nobody is yielded to before.
    reserved_until: Nanos,
}

impl Courtesy {
    /// Returns whether a worker that found nothing is to yield now.
    pub(super) fn may_yield(&mut self, now: Nanos) -> bool {
        let may = now >= self.reserved_until;
        self.yielded = may.then_some(now);
        may
    }

    /// Takes note that the worker has its processor, again or still.
    pub(super) fn is_back(&mut self, now: Nanos) {
        if self.yielded.take().is_some_and(|at| now - at >= LATE) {
            self.reserved_until = now + RESERVE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_the_processor_back_gets_it_again() {
        let mut courtesy = Courtesy::default();
        let mut now = Nanos::from_secs(1);
        for _ in 0..1_000 {
            assert!(courtesy.may_yield(now));
            now = now + Nanos(LATE.0 - 1);
            courtesy.is_back(now);
        }
    }

    #[test]
    fn who_keeps_it_gets_none_for_a_while() {
        let mut courtesy = Courtesy::default();
        let start = Nanos::from_secs(1);
        assert!(courtesy.may_yield(start));
        let back = start + LATE;
        courtesy.is_back(back);
        assert!(!courtesy.may_yield(back));
        assert!(!courtesy.may_yield(back + Nanos(RESERVE.0 - 1)));
        assert!(courtesy.may_yield(back + RESERVE));
    }

    #[test]
    fn a_long_turn_that_followed_no_yield_is_nobodys_fault() {
        let mut courtesy = Courtesy::default();
        let start = Nanos::from_secs(1);
        assert!(courtesy.may_yield(start));
        courtesy.is_back(start);
        courtesy.is_back(start + Nanos::from_secs(1));
        assert!(courtesy.may_yield(start + Nanos::from_secs(1)));
    }
}
