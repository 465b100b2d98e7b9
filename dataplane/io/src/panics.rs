//! What becomes of a worker that panics, and of the port whose frame it had at hand.
//!
//! ```text
//!  worker:  panic ─▶ silent heartbeat ─▶ new state ─▶ on          (the port rests until it is judged)
//!             └──── WorkerPanic ────▶ keeper: Ledger ─▶ go on, or quarantine (docs/decisions/0022)
//!                                        └──── WorkerPanic ────▶ whoever writes it down
//! ```
//!
//! A port whose frames ended workers [`STRIKES`] times within [`WINDOW`] is quarantined: its program drops (pod, host) or passes (uplink)
//! everything, and nothing is taken from it, until somebody releases it or it is removed. A worker that ends so often with no port to
//! blame does not come back.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::SystemTime;

use margay_core::{Frame, Nanos, PortIndex, WorkerIndex};

use crate::engine::head_of;

/// Panics within [`WINDOW`] that end somebody's part in the traffic.
pub const STRIKES: usize = 3;
/// How long a panic is held against a port.
pub const WINDOW: Nanos = Nanos::from_secs(60);

/// One panic of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPanic {
    /// Which worker.
    pub worker: WorkerIndex,
    /// Which of its panics since the start, from 1.
    pub number: u64,
    /// The port of the frame at hand; `None` where no frame was, or it is not known whose.
    pub port: Option<PortIndex>,
    /// CLOCK_MONOTONIC.
    pub at: Nanos,
    /// The same moment as people say it.
    pub time: SystemTime,
    /// What the panic said.
    pub message: String,
    /// The frame at hand as it then was, its first [`crate::engine::KEPT_OF_FRAME`] bytes. More than one where it is not known which of
    /// those that came together it was.
    pub frames: Vec<Vec<u8>>,
}

/// Returns the text that a panic carries.
pub(crate) fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
}

/// What frames see of a panic as it frees them.
///
/// The way out of a panic leads from the innermost call outward, and no call below another has a frame but the one it works on: the first
/// frame to be freed is the one at hand.
#[derive(Debug, Default)]
pub struct Witness {
    first: RefCell<Option<Vec<u8>>>,
    freed: Cell<u64>,
}

impl Witness {
    pub(crate) fn see(&self, frame: &impl Frame) {
        self.freed.set(self.freed.get() + 1);
        // A second panic while one is under way would end the process.
        if let Ok(mut first) = self.first.try_borrow_mut()
            && first.is_none()
        {
            *first = Some(head_of(frame));
        }
    }

    /// Returns the first frame that a panic freed, and how many it freed, and forgets both.
    pub fn take(&self) -> (Option<Vec<u8>>, u64) {
        (self.first.take(), self.freed.take())
    }
}

/// Moments within the last [`WINDOW`].
#[derive(Clone, Debug, Default)]
pub struct Strikes(VecDeque<Nanos>);

impl Strikes {
    /// Notes another one; returns whether there are [`STRIKES`] within [`WINDOW`].
    pub fn strike(&mut self, now: Nanos) -> bool {
        self.0.push_back(now);
        self.0.retain(|at| now - *at < WINDOW);
        if self.0.len() > STRIKES {
            self.0.pop_front();
        }
        self.0.len() == STRIKES
    }
}

/// What is to be done about a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It goes on.
    GoOn,
    /// It is quarantined, from now on.
    Quarantine,
    /// It is quarantined already.
    StayAway,
}

/// Which port did what, and which are quarantined.
#[derive(Debug, Default)]
pub struct Ledger {
    strikes: BTreeMap<PortIndex, Strikes>,
    quarantined: BTreeSet<PortIndex>,
}

impl Ledger {
    /// Notes that a frame of `port` ended a worker.
    pub fn note(&mut self, port: PortIndex, now: Nanos) -> Judgement {
        if self.quarantined.contains(&port) {
            return Judgement::StayAway;
        }
        if !self.strikes.entry(port).or_default().strike(now) {
            return Judgement::GoOn;
        }
        self.strikes.remove(&port);
        self.quarantined.insert(port);
        Judgement::Quarantine
    }

    /// Returns the quarantined ports.
    pub fn quarantined(&self) -> &BTreeSet<PortIndex> {
        &self.quarantined
    }

    /// Holds nothing more against a port: it was released, or is another's now. Returns whether it was quarantined.
    pub fn forget(&mut self, port: PortIndex) -> bool {
        self.strikes.remove(&port);
        self.quarantined.remove(&port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortIndex = PortIndex(7);

    #[test]
    fn the_third_panic_within_a_minute_quarantines_a_port() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.note(PORT, Nanos::from_secs(100)), Judgement::GoOn);
        assert_eq!(ledger.note(PORT, Nanos::from_secs(120)), Judgement::GoOn);
        assert_eq!(ledger.note(PortIndex(8), Nanos::from_secs(121)), Judgement::GoOn);
        assert_eq!(ledger.note(PORT, Nanos::from_secs(159)), Judgement::Quarantine);
        assert_eq!(ledger.note(PORT, Nanos::from_secs(300)), Judgement::StayAway);
        assert_eq!(ledger.quarantined(), &BTreeSet::from([PORT]));
        assert!(ledger.forget(PORT) && !ledger.forget(PORT));
        assert_eq!(ledger.note(PORT, Nanos::from_secs(301)), Judgement::GoOn);
    }

    #[test]
    fn panics_that_are_far_apart_are_forgiven() {
        let mut ledger = Ledger::default();
        for nth in 0..100 {
            assert_eq!(ledger.note(PORT, Nanos::from_secs(100 + 31 * nth)), Judgement::GoOn, "{nth}");
        }
    }

    #[test]
    fn a_panic_says_what_it_says() {
        let said = |panic: fn()| message_of(&*std::panic::catch_unwind(panic).unwrap_err());
        assert_eq!(said(|| panic!("plain")), "plain");
        assert_eq!(said(|| panic!("number {}", std::hint::black_box(7))), "number 7");
        assert_eq!(said(|| std::panic::panic_any(7)), "without a word");
    }
}
