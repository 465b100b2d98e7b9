//! Packets on their way to one worker: what is said of them, and their frames beside it.
//!
//! ```text
//!  giver: a frame and a word are appended ─▶ words, gists ── as they are, by pointer ─▶ taker: read in place
//!                                         └▶ frames ── taken off the giver's memory, fastened to the taker's ─▶
//! ```
//!
//! Words are written once by the giver and copied by nobody in the first batch of a turn: what the taker reads first would else be
//! copied again and again while it is on its way from one processor's cache to the other's. Of the batches behind it in the same turn they
//! are appended.

use std::slice::Iter;

use margay_accel::{prefetch_items_to_write, push_made};

use super::lane::Lane;
use super::slip::Word;
use super::{Gist, Handover, Slip};
use crate::spread::WorkerIndex;
use crate::topology::PortIndex;

/// Packets in order, each a frame and a slip.
///
/// Invariant: the frames belong to the last words, and the last gists to those of these words that have one. Frames are taken from the
/// front; what was said of them stays until all is cleared, or others are moved here.
#[derive(Debug)]
pub struct Parcels<F> {
    lane: Lane<F>,
    gists: Vec<Gist>,
    /// How many gists are of frames that were taken.
    past: usize,
}

impl<F> Default for Parcels<F> {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

/// What is said of packets, in order.
#[derive(Clone, Debug)]
pub struct Slips<'a> {
    words: Iter<'a, Word>,
    gists: Iter<'a, Gist>,
}

impl Iterator for Slips<'_> {
    type Item = Slip;

    #[inline(always)]
    fn next(&mut self) -> Option<Slip> {
        let word = *self.words.next()?;
        Some(Slip::of(word, if word.has_gist() { self.gists.next() } else { None }))
    }
}

impl<F> Parcels<F> {
    /// Returns room for `count` packets.
    pub fn with_capacity(count: usize) -> Self {
        Self { lane: Lane::with_capacity(count), gists: Vec::with_capacity(count), past: 0 }
    }

    /// Returns the number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.lane.frames.len()
    }

    /// Returns whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.lane.frames.is_empty()
    }

    /// Drops all packets.
    pub fn clear(&mut self) {
        self.lane.frames.clear();
        self.forget();
    }

    /// Lets go of what was said of frames that are gone.
    fn forget(&mut self) {
        self.lane.words.clear();
        self.gists.clear();
        self.past = 0;
    }

    /// Appends a packet.
    #[inline]
    pub fn push(&mut self, parcel: Handover<F>) {
        let Handover { frame, port, errand, gist } = parcel;
        let (word, gist) = Slip::new(port, errand, gist).parts();
        match gist {
            Some(gist) => self.push_told(frame, word, gist),
            None => self.push_word(frame, word),
        }
    }

    /// Appends a packet whose word needs no gist.
    #[inline(always)]
    pub(crate) fn push_word(&mut self, frame: F, word: Word) {
        debug_assert!(!word.has_gist());
        self.lane.push(frame, word);
    }

    /// Appends a packet whose word needs a gist.
    #[inline(always)]
    pub(crate) fn push_told(&mut self, frame: F, word: Word, gist: Gist) {
        debug_assert!(word.has_gist());
        push_made(&mut self.gists, || gist);
        self.lane.push(frame, word);
    }

    /// Returns the words of all packets, in order.
    #[inline]
    pub(crate) fn words(&self) -> &[Word] {
        self.lane.words()
    }

    /// Returns the slips of all packets, in order.
    #[inline]
    pub fn slips(&self) -> Slips<'_> {
        Slips { words: self.words().iter(), gists: self.gists[self.past..].iter() }
    }

    /// Returns the frames of all packets, in order.
    #[inline]
    pub fn frames(&self) -> &[F] {
        &self.lane.frames
    }

    /// Returns the port that the slips name, where it is the same for all.
    pub fn only_port(&self) -> Option<PortIndex> {
        let (first, others) = self.words().split_first()?;
        others.iter().all(|word| word.port() == first.port()).then_some(first.port())
    }

    /// Takes out the first `count` frames, or all; their slips are returned beside them.
    #[inline]
    pub(crate) fn take_first(&mut self, count: usize) -> (Slips<'_>, std::vec::Drain<'_, F>) {
        let first = self.lane.words.len() - self.lane.frames.len();
        let count = count.min(self.lane.frames.len());
        let words = &self.lane.words[first..first + count];
        let gists = &self.gists[self.past..];
        self.past += words.iter().filter(|word| word.has_gist()).count();
        (Slips { words: words.iter(), gists: gists.iter() }, self.lane.frames.drain(..count))
    }

    /// As [`Parcels::take_first`], of packets none of which has a gist.
    #[inline(always)]
    pub(crate) fn take_finished(&mut self, count: usize) -> (&[Word], std::vec::Drain<'_, F>) {
        let first = self.lane.words.len() - self.lane.frames.len();
        let count = count.min(self.lane.frames.len());
        (&self.lane.words[first..first + count], self.lane.frames.drain(..count))
    }

    /// Takes all packets out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Handover<F>> {
        let count = self.len();
        let (slips, frames) = self.take_first(count);
        frames.zip(slips).map(|(frame, slip)| Handover::of(frame, &slip))
    }

    /// Appends the first `most` packets to `to`, or all, and each frame as `change` makes it.
    ///
    /// Cost: where all go to where none are, what is said of them stays where it is in memory and only changes its owner.
    #[inline]
    pub fn move_to<G>(&mut self, to: &mut Parcels<G>, most: usize, mut change: impl FnMut(F) -> G) {
        let count = self.lane.frames.len().min(most);
        if to.is_empty() {
            to.forget();
        }
        if count == self.lane.frames.len() && to.is_empty() {
            std::mem::swap(&mut self.lane.words, &mut to.lane.words);
            std::mem::swap(&mut self.gists, &mut to.gists);
            to.past = std::mem::take(&mut self.past);
        } else {
            let words = &self.words()[..count];
            let told = words.iter().filter(|word| word.has_gist()).count();
            to.lane.words.extend_from_slice(words);
            to.gists.extend_from_slice(&self.gists[self.past..self.past + told]);
            self.past += told;
        }
        to.lane.frames.reserve(count);
        for frame in self.lane.frames.drain(..count) {
            push_made(&mut to.lane.frames, || change(frame));
        }
        if self.lane.frames.is_empty() {
            self.forget();
        }
    }

    /// Asks for all that is here, to be written: it was another processor's.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_items_to_write(&self.lane.words);
        prefetch_items_to_write(&self.gists);
        prefetch_items_to_write(&self.lane.frames);
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
    /// By number of the worker; none before the first packet for another one.
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

    #[inline(always)]
    pub(crate) fn of(&mut self, to: WorkerIndex) -> &mut Parcels<F> {
        self.any = true;
        self.place(to)
    }

    #[inline(always)]
    fn place(&mut self, to: WorkerIndex) -> &mut Parcels<F> {
        let at = usize::from(to.0);
        if at >= self.to.len() {
            self.grow(at);
        }
        &mut self.to[at]
    }

    /// Returns where a packet for worker `to` gathers: among those that are its own, or `own` where that is so. Once a packet has changed
    /// hands here, no branch decides it: see [`Lane`].
    #[inline(always)]
    pub(crate) fn lane_or<'a>(
        &'a mut self,
        to: WorkerIndex,
        is_own: bool,
        own: &'a mut Lane<F>,
    ) -> &'a mut Lane<F> {
        if is_own && self.to.is_empty() {
            return own;
        }
        self.any |= !is_own;
        let others = &mut self.place(to).lane;
        std::hint::select_unpredictable(is_own, own, others)
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
            parcels.clear();
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
        // Some have a gist, some have none.
        let (errand, gist) = match number % 3 {
            0 => (Errand::Deliver(7), Gist::default()),
            _ => (Errand::Take, Gist { addresses: u64::from(number) << 7, rest: 3, hash: 5 }),
        };
        Handover { frame: number, port: PortIndex(number), errand, gist }
    }

    /// Checks that each frame has its own slip, and returns the frames.
    fn frames(parcels: &mut Parcels<u16>) -> Vec<u16> {
        assert_eq!((parcels.slips().count(), parcels.frames().len()), (parcels.len(), parcels.len()));
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
            let first: Vec<_> = first.zip(slips).collect();
            let wanted = (0..taken).map(|number| {
                let Handover { frame, port, errand, gist } = parcel(number);
                (frame, Slip::new(port, errand, gist))
            });
            assert_eq!(first, wanted.collect::<Vec<_>>());
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
    fn all_words_go_by_pointer_and_what_was_taken_before_stays_behind() {
        let (mut from, mut to) = (parcels(0..10), parcels(20..30));
        drop(to.take_first(10));
        let at = from.words().as_ptr();
        from.move_to(&mut to, 64, |frame| frame);
        assert_eq!(to.words().as_ptr(), at);
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
