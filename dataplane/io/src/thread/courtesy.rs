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
    /// Nobody is yielded to before.
    reserved_until: Nanos,
}

impl Courtesy {
    /// Lets others have the processor of a worker that found nothing, by `give`, unless somebody kept it for too long lately.
    pub(super) fn yield_to_others(&mut self, now: impl Fn() -> Nanos, give: impl FnOnce()) {
        let before = now();
        if before < self.reserved_until {
            return;
        }
        give();
        let after = now();
        if after - before >= LATE {
            self.reserved_until = after + RESERVE;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Yields at `start` to somebody who keeps the processor for `kept`; returns whether it was yielded.
    fn yields(courtesy: &mut Courtesy, start: Nanos, kept: Nanos) -> bool {
        let clock = Cell::new(start);
        courtesy.yield_to_others(|| clock.get(), || clock.set(start + kept + Nanos(1)));
        clock.get() != start
    }

    #[test]
    fn who_gives_the_processor_back_gets_it_again() {
        let mut courtesy = Courtesy::default();
        let soon = Nanos(LATE.0 - 2);
        for turn in 1..1_000 {
            assert!(yields(&mut courtesy, Nanos::from_secs(turn), soon));
            assert!(yields(&mut courtesy, Nanos::from_secs(turn) + LATE, soon));
        }
    }

    #[test]
    fn who_keeps_it_gets_none_for_a_while() {
        let mut courtesy = Courtesy::default();
        let start = Nanos::from_secs(1);
        assert!(yields(&mut courtesy, start, Nanos(LATE.0 - 1)));
        let back = start + LATE;
        assert!(!yields(&mut courtesy, back, Nanos(0)));
        assert!(!yields(&mut courtesy, back + Nanos(RESERVE.0 - 1), Nanos(0)));
        assert!(yields(&mut courtesy, back + RESERVE, Nanos(0)));
    }
}
