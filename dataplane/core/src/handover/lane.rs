//! Finished packets in order, each with a word: those that leave by ports of this worker ([`Transmit`]) and those that another one takes
//! ([`super::Parcels`]) gather alike.
//!
//! Of a burst any packet may be of either kind, and nothing tells a processor which the next one is. So where it goes is chosen as an
//! address, not by a branch: a branch that goes wrong with every second packet costs as much as a tenth of all that is done for it.

use std::ops::RangeBounds;

use margay_accel::push_made;

use super::slip::Word;
use crate::topology::PortIndex;

/// Frames, and a word for each; there may be words before those of the frames that are left.
#[derive(Debug)]
pub(crate) struct Lane<F> {
    pub(super) words: Vec<Word>,
    pub(super) frames: Vec<F>,
}

impl<F> Lane<F> {
    pub(super) fn with_capacity(count: usize) -> Self {
        Self { words: Vec::with_capacity(count), frames: Vec::with_capacity(count) }
    }

    /// Appends a packet.
    #[inline(always)]
    pub(crate) fn push(&mut self, frame: F, word: Word) {
        push_made(&mut self.words, || word);
        push_made(&mut self.frames, || frame);
    }

    /// Returns the words of the frames.
    #[inline(always)]
    pub(super) fn words(&self) -> &[Word] {
        &self.words[self.words.len() - self.frames.len()..]
    }
}

/// Frames to send, in order, each with its port.
#[derive(Debug)]
pub struct Transmit<F> {
    /// As many words as frames.
    pub(crate) lane: Lane<F>,
}

impl<F> Transmit<F> {
    /// Returns room for `count` frames.
    pub fn with_capacity(count: usize) -> Self {
        Self { lane: Lane::with_capacity(count) }
    }

    /// Returns the number of frames.
    pub fn len(&self) -> usize {
        self.lane.frames.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lane.frames.is_empty()
    }

    /// Appends a frame.
    #[inline]
    pub fn push(&mut self, (port, frame): (PortIndex, F)) {
        self.lane.push(frame, Word::send().of(port));
    }

    /// Appends frames with the words that they came with.
    #[inline]
    pub(crate) fn extend_from(&mut self, words: &[Word], frames: impl ExactSizeIterator<Item = F>) {
        debug_assert_eq!(words.len(), frames.len());
        self.lane.words.extend_from_slice(words);
        self.lane.frames.extend(frames);
    }

    /// Returns the frame at a position, and its port.
    pub fn get(&self, at: usize) -> Option<(PortIndex, &F)> {
        Some((self.lane.words.get(at)?.port(), self.lane.frames.get(at)?))
    }

    /// Returns the frame at a position, and its port.
    pub fn get_mut(&mut self, at: usize) -> Option<(PortIndex, &mut F)> {
        Some((self.lane.words.get(at)?.port(), self.lane.frames.get_mut(at)?))
    }

    /// Takes out the frame at a position, which is below [`Transmit::len`].
    pub fn remove(&mut self, at: usize) -> (PortIndex, F) {
        (self.lane.words.remove(at).port(), self.lane.frames.remove(at))
    }

    /// Takes frames out, in order.
    #[inline]
    pub fn drain(
        &mut self,
        range: impl RangeBounds<usize> + Clone,
    ) -> impl ExactSizeIterator<Item = (PortIndex, F)> {
        let words = self.lane.words.drain(range.clone());
        words.map(Word::port).zip(self.lane.frames.drain(range))
    }

    /// Returns the frames, in order, each with its port.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (PortIndex, &F)> {
        self.lane.words.iter().map(|word| word.port()).zip(&self.lane.frames)
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.lane.words.clear();
        self.lane.frames.clear();
    }
}

impl<F> Extend<(PortIndex, F)> for Transmit<F> {
    fn extend<I: IntoIterator<Item = (PortIndex, F)>>(&mut self, frames: I) {
        frames.into_iter().for_each(|it| self.push(it));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_keeps_its_port() {
        let mut transmit = Transmit::with_capacity(0);
        transmit.extend((0..5).map(|number| (PortIndex(number), number)));
        transmit.extend_from(&[Word::deliver(7).of(PortIndex(5))], [5].into_iter());
        assert_eq!((transmit.len(), transmit.get(5), transmit.get(6)), (6, Some((PortIndex(5), &5)), None));
        assert_eq!(transmit.remove(1), (PortIndex(1), 1));
        if let Some((_, frame)) = transmit.get_mut(1) {
            *frame = 20;
        }
        let at = |numbers: &[u16]| numbers.iter().map(|it| PortIndex(*it)).collect::<Vec<_>>();
        let (ports, frames): (Vec<_>, Vec<_>) = transmit.drain(2..).unzip();
        assert_eq!((ports, frames), (at(&[3, 4, 5]), vec![3, 4, 5]));
        let (ports, frames): (Vec<_>, Vec<_>) = transmit.iter().map(|(port, frame)| (port, *frame)).unzip();
        assert_eq!((ports, frames), (at(&[0, 2]), vec![0, 20]));
        transmit.clear();
        assert!(transmit.is_empty());
    }
}
