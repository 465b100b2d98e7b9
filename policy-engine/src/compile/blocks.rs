//! What the values of one byte map to, where most neighbours map to the same: a few words among others.
//!
//! ```text
//!   block: where each of its intervals begins (eight bytes, or a bit per byte value), then one word per interval
//! ```
//!
//! Used for the last byte of an IPv4 address, among the words of a page ([`super::heads`]). Values are below 2^30.

/// How many values a byte has.
pub(crate) const SLOTS: usize = 256;

/// Words below this are values; others name a block of the same page.
pub(crate) const DIRECT: u32 = 1 << 30;
/// A block of at most eight intervals; bits 27 to 29 hold their number less one.
const SMALL: u32 = 1 << 30;
/// A block with a bit per value.
const LARGE: u32 = 1 << 31;
/// The bits of a block's name that say where in the page it begins.
pub(crate) const OFFSET: u32 = (1 << 27) - 1;

/// Intervals of the values of one byte while their block is made: where they begin, and what they are.
#[derive(Debug, Default)]
pub(crate) struct Runs(pub(crate) Vec<(u8, u32)>);

impl Runs {
    pub(crate) fn begin(&mut self, at: u8, word: u32) {
        if self.0.last().is_some_and(|last| last.0 == at) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|last| last.1 != word) {
            self.0.push((at, word));
        }
    }

    /// Returns the word that stands for the runs, putting a block at the end of `words` when it needs one.
    pub(crate) fn write(&self, words: &mut Vec<u32>) -> u32 {
        let offset = words.len() as u32;
        let values = self.0.iter().map(|(_, word)| *word);
        match self.0.as_slice() {
            [] => 0,
            [(_, word)] => *word,
            few if few.len() <= 8 => {
                let mut starts = [0u8; 8];
                few.iter().zip(&mut starts).for_each(|((at, _), start)| *start = *at);
                words.extend(halves(starts));
                words.extend(values);
                SMALL | (few.len() as u32 - 1) << 27 | offset
            }
            many => {
                let mut bits = [0u32; 8];
                many.iter().for_each(|(at, _)| bits[usize::from(at >> 5)] |= 1 << (at & 31));
                let mut before = [0u8; 8];
                for word in 1..8 {
                    before[word] = before[word - 1] + bits[word - 1].count_ones() as u8;
                }
                words.extend(bits);
                words.extend(halves(before));
                words.extend(values);
                LARGE | offset
            }
        }
    }
}

fn halves(bytes: [u8; 8]) -> [u32; 2] {
    let both = u64::from_le_bytes(bytes);
    [both as u32, (both >> 32) as u32]
}

/// Returns where the values of a block begin, and where it ends.
pub(crate) fn values_of(page: &[u32], block: u32) -> std::ops::Range<usize> {
    let offset = (block & OFFSET) as usize;
    if block & LARGE != 0 {
        let count = page[offset..offset + 8].iter().map(|bits| bits.count_ones() as usize).sum::<usize>();
        offset + 10..offset + 10 + count
    } else {
        offset + 2..offset + 2 + (block >> 27 & 7) as usize + 1
    }
}

/// Counts the bytes of `bytes` that are not above `value`, all at once: each in a lane of two bytes, where the subtraction cannot
/// borrow from its neighbour.
#[inline]
fn not_above(bytes: u64, value: u8) -> usize {
    const LOW: u64 = 0x00ff_00ff_00ff_00ff;
    const ONE: u64 = 0x0100_0100_0100_0100;
    let values = u64::from(value) * 0x0001_0001_0001_0001 + ONE;
    let even = values.wrapping_sub(bytes & LOW) & ONE;
    let odd = values.wrapping_sub(bytes >> 8 & LOW) & ONE;
    (even.count_ones() + odd.count_ones()) as usize
}

/// Finds the word of `value` in `block`.
#[inline]
pub(crate) fn in_block(page: &[u32], block: u32, value: u8) -> u32 {
    page[place_in_block(page, block, value)]
}

/// Finds where the word of `value` in `block` is.
#[inline(always)]
pub(crate) fn place_in_block(page: &[u32], block: u32, value: u8) -> usize {
    let offset = (block & OFFSET) as usize;
    if block & LARGE == 0 {
        let count = (block >> 27 & 7) as usize + 1;
        let words = &page[offset..offset + 2];
        let starts = u64::from(words[0]) | u64::from(words[1]) << 32;
        // Starts beyond the last are zero: they count for every value, and as many as there are.
        offset + 2 + not_above(starts, value) - (8 - count) - 1
    } else {
        let words = &page[offset..offset + 10];
        let word = usize::from(value >> 5);
        let before = (u64::from(words[8]) | u64::from(words[9]) << 32) >> (8 * word);
        let upto = words[word] & (u32::MAX >> (31 - (value & 31)));
        offset + 10 + (before as u8) as usize + upto.count_ones() as usize - 1
    }
}

/// Returns the runs of a block, or of one word for all values.
pub(crate) fn runs_of(page: &[u32], block: u32) -> Runs {
    if block < DIRECT {
        return Runs(vec![(0, block)]);
    }
    let offset = (block & OFFSET) as usize;
    let values = page[values_of(page, block)].iter().copied();
    if block & LARGE == 0 {
        let starts = (u64::from(page[offset]) | u64::from(page[offset + 1]) << 32).to_le_bytes();
        return Runs(starts.into_iter().zip(values).collect());
    }
    let begins = |at: &u8| page[offset + usize::from(at >> 5)] >> (at & 31) & 1 == 1;
    Runs((0..=u8::MAX).filter(begins).zip(values).collect())
}

/// Sorts intervals by the high byte of where they begin.
pub(crate) struct PageMaker {
    done: Vec<Runs>,
    pub(crate) runs: Runs,
    /// The slot that `runs` are of.
    at: usize,
    end: usize,
}

impl PageMaker {
    pub(crate) fn at(first: usize, end: usize) -> Self {
        Self { done: Vec::with_capacity(end - first), runs: Runs::default(), at: first, end }
    }

    pub(crate) fn begin(&mut self, slot: usize, low: u8, value: u32) {
        self.go_to(slot);
        self.runs.begin(low, value);
    }

    /// Finishes every slot before `slot`; what an interval is goes on into the next slot.
    fn go_to(&mut self, slot: usize) {
        while self.at < slot {
            let lasting = self.runs.0.last().map_or(0, |run| run.1);
            self.done.push(std::mem::take(&mut self.runs));
            self.runs.begin(0, lasting);
            self.at += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Vec<Runs> {
        self.go_to(self.end);
        self.done
    }
}
