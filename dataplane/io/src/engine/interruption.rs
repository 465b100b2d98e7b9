//! A processor that panics: where it was, what it leaves, who comes after it.

use margay_core::{Counters, Frame, PortIndex};

use super::{Engine, Processor};
use crate::rings::Rings;

/// Inside of which call of the processor the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inside {
    /// So many frames from this port, and how many packets had begun before.
    Burst { port: PortIndex, given: u64, begun: u64 },
    /// So many packets of other workers.
    Handovers { given: u64 },
    /// Anything else.
    Else,
}

/// What a panic of the processor interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// The port of the packet at hand, where that is known.
    pub port: Option<PortIndex>,
    /// The heads of the frames that the processor had been given and had not yet taken up, of [`KEPT_OF_FRAME`] bytes.
    pub not_taken_up: Vec<Vec<u8>>,
    /// The processor's counters, closed: what it had not brought to an end is dropped as [`margay_core::DropReason::WorkerPanicked`].
    pub counters: Counters,
}

/// Bytes of a frame that are kept when it is reported.
pub const KEPT_OF_FRAME: usize = 2048;

/// Returns the part of a frame that is kept when it is reported.
pub(crate) fn head_of(frame: &impl Frame) -> Vec<u8> {
    let bytes = frame.data();
    bytes[..bytes.len().min(KEPT_OF_FRAME)].to_vec()
}

impl<R: Rings, P: Processor<R::Frame>> Engine<R, P> {
    /// Asks the processor something, so that a panic is known to be the processor's.
    pub fn ask<T>(&self, question: impl FnOnce(&P) -> T) -> T {
        self.inside.set(Some(Inside::Else));
        let answer = question(&self.processor);
        self.inside.set(None);
        answer
    }

    /// After a panic: returns what it interrupted, once; `None` when it was not the processor that panicked. `back` is the number of
    /// frames that were freed on the way out of the panic.
    ///
    /// What was finished before leaves now, as it would have.
    pub fn interrupted(&mut self, back: u64) -> Option<Interrupted> {
        let inside = self.inside.take()?;
        let left = self.batch.iter().chain(self.parcels.frames());
        let not_taken_up: Vec<_> = left.map(head_of).collect();
        let mut counters = self.processor.counters().clone();
        let (port, not_begun, taken) = match inside {
            Inside::Burst { port, given, begun } => {
                (Some(port), given.saturating_sub(counters.received - begun), false)
            }
            Inside::Handovers { given } => {
                let only = self.parcels.only_port();
                // Not told apart here: what was only to be sent. It has ended in the giver's books and ends in ours once more.
                let open = counters.beginnings().saturating_sub(counters.endings());
                let lost = (back + not_taken_up.len() as u64).min(given);
                (self.processor.at_hand().or(only), lost.saturating_sub(open), true)
            }
            Inside::Else => (self.processor.at_hand(), 0, false),
        };
        counters.close_after_panic(not_begun, taken);
        self.batch.clear();
        self.parcels.clear();
        counters.refuse(self.let_go());
        self.refused.clear();
        Some(Interrupted { port, not_taken_up, counters })
    }

    /// Puts another processor in the place of one that panicked, and tells it who watches.
    pub fn replace(&mut self, processor: P) {
        self.processor = processor;
        for tap in &self.taps {
            self.processor.set_tap(tap.id, Some(tap.filter.clone()));
        }
    }
}
