//! Between workers: bounded inboxes that never make anybody wait.
//!
//! ```text
//!  worker a ──batch──▶ ┌ inbox of b ┐ ──▶ worker b
//!  worker c ──batch──▶ └────────────┘      (drains a batch a turn; asleep? whoever posts wakes it)
//! ```
//!
//! An inbox is a bounded lock-free queue of batches, so its shared counters are written once for up to [`BATCH`] packets. A batch that
//! finds no room comes back to its sender, who counts its packets as dropped and keeps their frames. Emptied batches serve for what their
//! new owner sends itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;
use margay_core::handover::Handover;
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

type Batch<L> = Vec<Handover<L>>;

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
    fn give(&mut self, handovers: &mut Vec<(WorkerIndex, Handover<F>)>, refused: &mut Vec<Handover<F>>);

    /// Takes a free frame, empty: a worker without ports has no other way to one.
    fn spare(&mut self) -> Option<F> {
        None
    }

    /// Takes up to `batches` batches out of the inbox; returns how many packets were appended to `parcels`.
    fn take(&mut self, parcels: &mut Vec<Handover<F>>, batches: usize) -> usize;
}

/// The exchange of the only worker: nobody to give to.
#[derive(Debug, Default)]
pub struct Alone;

impl<F> Exchange<F> for Alone {
    fn give(&mut self, handovers: &mut Vec<(WorkerIndex, Handover<F>)>, refused: &mut Vec<Handover<F>>) {
        refused.extend(handovers.drain(..).map(|(_, parcel)| parcel));
    }

    fn take(&mut self, _: &mut Vec<Handover<F>>, _: usize) -> usize {
        0
    }
}

/// One of several workers.
pub struct Inboxes<P: Pass> {
    pass: P,
    inboxes: Vec<Arc<Inbox<P::Loose>>>,
    me: usize,
    /// Batches being filled, by receiver.
    open: Vec<Batch<P::Loose>>,
    spare: Vec<Batch<P::Loose>>,
}

impl<P: Pass> Inboxes<P> {
    /// Returns the side of worker `me`; `inboxes` are all workers', in order, and `pass` is its own memory.
    pub fn new(me: WorkerIndex, inboxes: Vec<Arc<Inbox<P::Loose>>>, pass: P) -> Self {
        let open = inboxes.iter().map(|_| Vec::with_capacity(BATCH)).collect();
        Self { pass, inboxes, me: usize::from(me.0), open, spare: Vec::with_capacity(SPARE) }
    }

    fn post(&mut self, to: usize, refused: &mut Vec<Handover<P::Frame>>) {
        let fresh = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BATCH));
        let batch = std::mem::replace(&mut self.open[to], fresh);
        if let Err(mut batch) = self.inboxes[to].post(batch) {
            refused.extend(batch.drain(..).map(|parcel| fastened(&self.pass, parcel)));
            self.keep(batch);
        }
    }

    fn keep(&mut self, batch: Batch<P::Loose>) {
        if self.spare.len() < SPARE {
            self.spare.push(batch);
        }
    }
}

fn fastened<P: Pass>(pass: &P, parcel: Handover<P::Loose>) -> Handover<P::Frame> {
    let Handover { frame, port, errand, gist } = parcel;
    Handover { frame: pass.fasten(frame), port, errand, gist }
}

impl<P: Pass> Exchange<P::Frame> for Inboxes<P> {
    fn give(
        &mut self,
        handovers: &mut Vec<(WorkerIndex, Handover<P::Frame>)>,
        refused: &mut Vec<Handover<P::Frame>>,
    ) {
        for (to, Handover { frame, port, errand, gist }) in handovers.drain(..) {
            let to = usize::from(to.0);
            let Some(open) = self.open.get_mut(to) else {
                refused.push(Handover { frame, port, errand, gist });
                continue;
            };
            let frame = self.pass.loosen(frame);
            margay_accel::push_made(open, || Handover { frame, port, errand, gist });
            if open.len() == BATCH {
                self.post(to, refused);
            }
        }
        for to in 0..self.open.len() {
            if !self.open[to].is_empty() {
                self.post(to, refused);
            }
        }
    }

    fn spare(&mut self) -> Option<P::Frame> {
        self.pass.spare()
    }

    fn take(&mut self, parcels: &mut Vec<Handover<P::Frame>>, batches: usize) -> usize {
        let before = parcels.len();
        for _ in 0..batches {
            // Asking first costs nothing; taking what is not there costs a fence.
            if self.inboxes[self.me].queue.is_empty() {
                break;
            }
            let Some(mut batch) = self.inboxes[self.me].queue.pop() else { break };
            // All of it lies in the giver's cache: asked for at once, it comes in the time of one line. To write, because the emptied
            // batch is filled here next.
            margay_accel::prefetch_items_to_write(&batch);
            parcels.reserve(batch.len());
            for parcel in batch.drain(..) {
                margay_accel::push_made(parcels, || fastened(&self.pass, parcel));
            }
            self.keep(batch);
        }
        parcels.len() - before
    }
}

impl<P: Pass> Drop for Inboxes<P> {
    /// What is left in the inbox is fastened once more, so that its memory is free again.
    fn drop(&mut self) {
        let mut left = Vec::new();
        while self.take(&mut left, BATCH) > 0 {
            left.clear();
        }
    }
}
