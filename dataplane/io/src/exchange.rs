//! Between workers: bounded inboxes that never make anybody wait.
//!
//! ```text
//!  worker a ──batch──▶ ┌ inbox of b ┐ ──▶ worker b
//!  worker c ──batch──▶ └────────────┘      (drains a batch a turn; asleep? whoever posts wakes it)
//! ```
//!
//! An inbox is a bounded lock-free queue of batches, so its shared counters are written once for up to [`BATCH`] packets. What is said of
//! them changes hands by pointer, as it was written (of the first batch of a turn; those behind it are appended); their frames are taken
//! off one memory and fastened to the other. A batch that finds no room comes back to its sender, who counts its packets as dropped and
//! keeps their frames. Emptied batches serve for what their new owner sends itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;
use margay_core::handover::{Handover, Handovers, Parcels};
use margay_core::{Frame, WorkerIndex};

use crate::doze::Doze;

/// Most packets of a batch.
pub const BATCH: usize = 64;
/// Batches that an inbox holds.
pub const INBOX: usize = 256;
/// Emptied batches that a worker keeps.
const SPARE: usize = 64;

/// How frames change worker: loose on the way, fastened to the memory of whoever has them.
pub trait Pass {
    /// A frame at work.
    type Frame: Frame;
    /// A frame on its way.
    type Loose: Send;

    /// Takes a frame off this worker's memory.
    fn loosen(&self, frame: Self::Frame) -> Self::Loose;

    /// Makes a frame this worker's.
    fn fasten(&self, loose: Self::Loose) -> Self::Frame;

    /// Takes a free frame, empty, of this worker's memory.
    fn spare(&self) -> Option<Self::Frame> {
        None
    }
}

type Batch<L> = Parcels<L>;

/// Wakes a worker from its sleep.
pub type Call = Box<dyn Fn() + Send + Sync>;

/// The inbox of one worker.
pub struct Inbox<L> {
    queue: ArrayQueue<Batch<L>>,
    doze: Doze,
    call: Call,
    /// Times that a sender had to wake the worker.
    pub calls: AtomicU64,
}

impl<L> Inbox<L> {
    /// Returns an empty inbox for `batches` batches; `call` wakes its worker.
    pub fn new(batches: usize, call: Call) -> Self {
        Self { queue: ArrayQueue::new(batches), doze: Doze::default(), call, calls: AtomicU64::new(0) }
    }

    fn post(&self, batch: Batch<L>) -> Result<(), Batch<L>> {
        self.queue.push(batch)?;
        if self.doze.must_call() {
            self.calls.fetch_add(1, Relaxed);
            (self.call)();
        }
        Ok(())
    }

    /// As [`Doze::lie_down`].
    pub fn lie_down(&self) -> bool {
        self.doze.lie_down(|| self.queue.is_empty())
    }

    /// As [`Doze::wake_up`].
    pub fn wake_up(&self) {
        self.doze.wake_up();
    }
}

/// One worker's side: its own inbox and the way into the others'. Without others there is nothing to it.
pub trait Exchange<F> {
    /// Posts what is in `handovers` and empties it. What found no room is appended to `refused`.
    fn give(&mut self, handovers: &mut Handovers<F>, refused: &mut Vec<Handover<F>>);

    /// Asks for up to `batches` batches that wait in the inbox, so that they come from their givers' caches while there is other work;
    /// [`Exchange::take`] follows.
    fn ask(&mut self, _batches: usize) {}

    /// Takes a free frame, empty: a worker without ports has no other way to one.
    fn spare(&mut self) -> Option<F> {
        None
    }

    /// Takes up to `batches` batches out of the inbox; returns how many packets were appended to `parcels`.
    fn take(&mut self, parcels: &mut Parcels<F>, batches: usize) -> usize;
}

/// The exchange of the only worker: nobody to give to.
#[derive(Debug, Default)]
pub struct Alone;

impl<F> Exchange<F> for Alone {
    fn give(&mut self, handovers: &mut Handovers<F>, refused: &mut Vec<Handover<F>>) {
        refused.extend(handovers.drain().map(|(_, parcel)| parcel));
        handovers.clear();
    }

    fn take(&mut self, _: &mut Parcels<F>, _: usize) -> usize {
        0
    }
}

/// One of several workers.
pub struct Inboxes<P: Pass> {
    pass: P,
    inboxes: Vec<Arc<Inbox<P::Loose>>>,
    me: usize,
    /// What was asked for, and is taken next.
    asked: VecDeque<Batch<P::Loose>>,
    spare: Vec<Batch<P::Loose>>,
}

impl<P: Pass> Inboxes<P> {
    /// Returns the side of worker `me`; `inboxes` are all workers', in order, and `pass` is its own memory.
    pub fn new(me: WorkerIndex, inboxes: Vec<Arc<Inbox<P::Loose>>>, pass: P) -> Self {
        Self {
            pass,
            inboxes,
            me: usize::from(me.0),
            asked: VecDeque::new(),
            spare: Vec::with_capacity(SPARE),
        }
    }

    /// Takes the next batch out of the inbox. All of it lies in the giver's cache: asked for at once, it comes in the time of one line. To
    /// write, because the emptied batch is filled here next.
    fn next(&self) -> Option<Batch<P::Loose>> {
        let queue = &self.inboxes[self.me].queue;
        // Asking first costs nothing; taking what is not there costs a fence.
        let batch = if queue.is_empty() { None } else { queue.pop() };
        batch.inspect(Batch::prefetch)
    }

    fn keep(&mut self, batch: Batch<P::Loose>) {
        if self.spare.len() < SPARE {
            self.spare.push(batch);
        }
    }
}

impl<P: Pass> Exchange<P::Frame> for Inboxes<P> {
    fn give(&mut self, handovers: &mut Handovers<P::Frame>, refused: &mut Vec<Handover<P::Frame>>) {
        for (to, parcels) in handovers.each_mut() {
            let Some(inbox) = self.inboxes.get(usize::from(to.0)) else {
                refused.extend(parcels.drain());
                continue;
            };
            while !parcels.is_empty() {
                let mut batch = self.spare.pop().unwrap_or_else(|| Batch::with_capacity(BATCH));
                parcels.move_to(&mut batch, BATCH, |frame| self.pass.loosen(frame));
                if let Err(mut batch) = inbox.post(batch) {
                    let mut back = Parcels::default();
                    batch.move_to(&mut back, BATCH, |frame| self.pass.fasten(frame));
                    refused.extend(back.drain());
                    self.spare.push(batch);
                }
            }
        }
        handovers.clear();
    }

    fn ask(&mut self, batches: usize) {
        while self.asked.len() < batches {
            let Some(batch) = self.next() else { break };
            self.asked.push_back(batch);
        }
    }

    fn spare(&mut self) -> Option<P::Frame> {
        self.pass.spare()
    }

    fn take(&mut self, parcels: &mut Parcels<P::Frame>, batches: usize) -> usize {
        let before = parcels.len();
        for _ in 0..batches {
            let Some(mut batch) = self.asked.pop_front().or_else(|| self.next()) else { break };
            batch.move_to(parcels, BATCH, |loose| self.pass.fasten(loose));
            self.keep(batch);
        }
        parcels.len() - before
    }
}

impl<P: Pass> Drop for Inboxes<P> {
    /// What is left in the inbox is fastened once more, so that its memory is free again.
    fn drop(&mut self) {
        let mut left = Parcels::default();
        while self.take(&mut left, BATCH) > 0 {
            left.clear();
        }
    }
}
