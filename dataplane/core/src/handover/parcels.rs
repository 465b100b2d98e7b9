//! Packets on their way to one worker: their slips, and their frames beside them.
//!
//! ```text
//!  giver: a frame and four words are appended ─▶ slips ── as they are, by pointer ─▶ taker: read in place
//!                                             └▶ frames ── taken off the giver's memory, fastened to the taker's ─▶
//! ```
//!
//! Slips are aligned words that the giver writes once and nobody copies on their common way: what the taker reads first would else be
//! copied again and again while it is on its way from one processor's cache to the other's.

use margay_accel::{prefetch_items_to_write, push_made};

use super::{Handover, Slip};
use crate::spread::WorkerIndex;
use crate::topology::PortIndex;

/// Packets in order, each a frame and a slip.
///
/// Invariant: there are at least as many slips as frames, and the frames belong to the last slips. Frames are taken from the front; slips
/// stay until the last frame is gone.
#[derive(Debug)]
pub struct Parcels<F> {
    slips: Vec<Slip>,
    frames: Vec<F>,
}

impl<F> Default for Parcels<F> {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl<F> Parcels<F> {
    /// Returns room for `count` packets.
    pub fn with_capacity(count: usize) -> Self {
        Self { slips: Vec::with_capacity(count), frames: Vec::with_capacity(count) }
    }

    /// Returns the number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Returns whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops all packets.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.slips.clear();
    }

    /// Appends a packet.
    #[inline]
    pub fn push(&mut self, parcel: Handover<F>) {
        let Handover { frame, port, errand, gist } = parcel;
        self.push_made(frame, || Slip::new(port, errand, gist));
    }

    /// Appends a packet; its slip is written where it stays.
    #[inline(always)]
    pub(crate) fn push_made(&mut self, frame: F, slip: impl FnOnce() -> Slip) {
        push_made(&mut self.slips, slip);
        push_made(&mut self.frames, || frame);
    }

    /// Returns the slips of all packets, in order.
    #[inline]
    pub fn slips(&self) -> &[Slip] {
        &self.slips[self.slips.len() - self.frames.len()..]
    }

    /// Returns the frames of all packets, in order.
    #[inline]
    pub fn frames(&self) -> &[F] {
        &self.frames
    }

    /// Returns the port that the slips name, where it is the same for all.
    pub fn only_port(&self) -> Option<PortIndex> {
        let (first, others) = self.slips().split_first()?;
        others.iter().all(|slip| slip.port() == first.port()).then_some(first.port())
    }

    /// Takes out the first `count` frames, or all; their slips are returned beside them.
    #[inline]
    pub(crate) fn take_first(&mut self, count: usize) -> (&[Slip], std::vec::Drain<'_, F>) {
        let first = self.slips.len() - self.frames.len();
        let count = count.min(self.frames.len());
        (&self.slips[first..first + count], self.frames.drain(..count))
    }

    /// Takes all packets out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Handover<F>> {
        let first = self.slips.len() - self.frames.len();
        let slips = self.slips.drain(..).skip(first);
        self.frames.drain(..).zip(slips).map(|(frame, slip)| Handover::of(frame, &slip))
    }

    /// Appends the first `most` packets to `to`, or all, and each frame as `change` makes it.
    ///
    /// Cost: where all go to where none are, their slips stay where they are in memory and only change their owner.
    #[inline]
    pub fn move_to<G>(&mut self, to: &mut Parcels<G>, most: usize, mut change: impl FnMut(F) -> G) {
        let count = self.frames.len().min(most);
        if to.is_empty() {
            to.slips.clear();
        }
        if count == self.frames.len() && to.is_empty() {
            std::mem::swap(&mut self.slips, &mut to.slips);
        } else {
            to.slips.extend_from_slice(&self.slips()[..count]);
        }
        to.frames.reserve(count);
        for frame in self.frames.drain(..count) {
            push_made(&mut to.frames, || change(frame));
        }
        if self.frames.is_empty() {
            self.slips.clear();
        }
    }

    /// Asks for all that is here, to be written: it was another processor's.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_items_to_write(&self.slips);
        prefetch_items_to_write(&self.frames);
    }
}

impl<F> FromIterator<Handover<F>> for Parcels<F> {
    fn from_iter<I: IntoIterator<Item = Handover<F>>>(parcels: I) -> Self {
        let mut these = Self::default();
        parcels.into_iter().for_each(|parcel| these.push(parcel));
        these
    }
}

/// Packets for other workers, by worker and in order.
#[derive(Debug)]
pub struct Handovers<F> {
    /// By number of the worker.
    to: Vec<Parcels<F>>,
    /// Whether there may be any: `false` says no, `true` that one has to look.
    any: bool,
}

impl<F> Default for Handovers<F> {
    fn default() -> Self {
        Self { to: Vec::new(), any: false }
    }
}

impl<F> Handovers<F> {
    /// Packets to one worker for which there is room at once.
    const ROOM: usize = 64;

    /// Returns whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.any || self.to.iter().all(Parcels::is_empty)
    }

    /// Appends a packet for a worker.
    pub fn push(&mut self, (to, parcel): (WorkerIndex, Handover<F>)) {
        self.of(to).push(parcel);
    }

    /// As [`Handovers::push`]; the slip is written where it stays.
    #[inline(always)]
    pub(crate) fn push_made(&mut self, to: WorkerIndex, frame: F, slip: impl FnOnce() -> Slip) {
        self.of(to).push_made(frame, slip);
    }

    #[inline(always)]
    fn of(&mut self, to: WorkerIndex) -> &mut Parcels<F> {
        let at = usize::from(to.0);
        if at >= self.to.len() {
            self.grow(at);
        }
        self.any = true;
        &mut self.to[at]
    }

    #[cold]
    fn grow(&mut self, at: usize) {
        self.to.resize_with(at + 1, || Parcels::with_capacity(Self::ROOM));
    }

    /// Returns what there is, by worker. Whoever empties all of it says so by [`Handovers::clear`].
    #[inline]
    pub fn each_mut(&mut self) -> impl Iterator<Item = (WorkerIndex, &mut Parcels<F>)> {
        (0..).map(WorkerIndex).zip(&mut self.to).filter(|(_, parcels)| !parcels.is_empty())
    }

    /// Drops all packets.
    #[inline]
    pub fn clear(&mut self) {
        if std::mem::replace(&mut self.any, false) {
            self.to.iter_mut().for_each(Parcels::clear);
        }
    }

    /// Takes all packets out: in order for each worker.
    pub fn drain(&mut self) -> impl Iterator<Item = (WorkerIndex, Handover<F>)> {
        let each = (0..).map(WorkerIndex).zip(&mut self.to);
        each.flat_map(|(to, parcels)| parcels.drain().map(move |parcel| (to, parcel)))
    }

    /// Takes out the packets that `is_it` says so of, which are told by frame.
    pub fn extract(&mut self, mut is_it: impl FnMut(&F) -> bool) -> Vec<Handover<F>> {
        let mut out = Vec::new();
        for parcels in &mut self.to {
            let (taken, left): (Vec<_>, Vec<_>) = parcels.drain().partition(|parcel| is_it(&parcel.frame));
            left.into_iter().for_each(|parcel| parcels.push(parcel));
            out.extend(taken);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Errand, Gist};
    use super::*;

    fn parcels(numbers: std::ops::Range<u16>) -> Parcels<u16> {
        numbers.map(parcel).collect()
    }

    fn parcel(number: u16) -> Handover<u16> {
        let gist = Gist { addresses: u64::from(number) << 7, rest: 3, hash: 5 };
        Handover { frame: number, port: PortIndex(number), errand: Errand::Take, gist }
    }

    /// Checks that each frame has its own slip, and returns the frames.
    fn frames(parcels: &mut Parcels<u16>) -> Vec<u16> {
        assert_eq!((parcels.slips().len(), parcels.frames().len()), (parcels.len(), parcels.len()));
        let each = parcels.drain().map(|it| {
            let wanted = parcel(it.frame);
            assert_eq!((it.port, it.errand, it.gist), (wanted.port, wanted.errand, wanted.gist));
            it.frame
        });
        each.collect()
    }

    #[test]
    fn every_frame_keeps_its_slip_whatever_is_taken_and_moved() {
        for (taken, there, most) in
            [(0, 0, 99), (0, 0, 4), (3, 0, 99), (3, 2, 99), (3, 2, 4), (9, 0, 1), (10, 2, 5)]
        {
            let (mut from, mut to) = (parcels(0..10), parcels(100..100 + there));
            let (slips, first) = from.take_first(usize::from(taken));
            let slips = slips.to_vec();
            let first: Vec<_> = first.zip(slips).map(|(frame, slip)| (frame, slip.port().0)).collect();
            assert_eq!(first, (0..taken).map(|number| (number, number)).collect::<Vec<_>>());
            from.move_to(&mut to, most, |frame| frame);
            let moved = most.min(usize::from(10 - taken)) as u16;
            let wanted: Vec<_> = (100..100 + there).chain(taken..taken + moved).collect();
            assert_eq!(frames(&mut to), wanted, "{taken} {there} {most}");
            let left = (taken + moved..10).len();
            assert_eq!(from.only_port().is_some(), left == 1, "{taken} {there} {most}");
            assert_eq!(frames(&mut from), (taken + moved..10).collect::<Vec<_>>());
            from.push(parcel(77));
            assert_eq!(frames(&mut from), [77]);
        }
    }

    #[test]
    fn all_slips_go_by_pointer_and_what_was_taken_before_stays_behind() {
        let (mut from, mut to) = (parcels(0..10), parcels(20..30));
        drop(to.take_first(10));
        let at = from.slips().as_ptr();
        from.move_to(&mut to, 64, |frame| frame);
        assert_eq!(to.slips().as_ptr(), at);
        assert_eq!(frames(&mut to), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn packets_for_several_workers_come_out_in_order() {
        let mut handovers = Handovers::default();
        assert!(handovers.is_empty());
        for number in 0..30 {
            handovers.push((WorkerIndex(number % 3), parcel(number)));
        }
        let odd: Vec<_> = handovers.extract(|frame| frame % 2 == 1).iter().map(|it| it.frame).collect();
        assert_eq!((odd.len(), odd.iter().all(|frame| frame % 2 == 1)), (15, true));
        assert!(!handovers.is_empty());
        let left: Vec<_> = handovers.drain().map(|(to, it)| (to.0, it.frame)).collect();
        let wanted =
            (0..3).flat_map(|to| (to..30).step_by(3).filter(|frame| frame % 2 == 0).map(move |it| (to, it)));
        assert_eq!(left, wanted.collect::<Vec<_>>());
        assert!(handovers.is_empty());
    }
}
