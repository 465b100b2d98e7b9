//! What a number of two bytes maps to, where most neighbours map to the same: a page of one cache line, and words beside it for what
//! does not fit.
//!
//! ```text
//!   head, by the high byte: not marked            ─▶ the usual value of the page
//!                           marked, and as second ─▶ its second value
//!                           marked only           ─▶ a word of the list ─▶ value, or block over the low byte ─▶ value
//! ```
//!
//! Prefixes that lie side by side belong to few sets, so two values are nearly all that a page has, and the head has both. The n-th
//! marked byte is the n-th of the list, those left out that have the second value; blocks follow the list.
//!
//! Used for the low half of an IPv4 address. Values are below 2^30.

use std::sync::Arc;

use super::blocks::{DIRECT, OFFSET, Runs, SLOTS, in_block, values_of};

/// The first line of a page; see the module.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Head {
    /// A bit per high byte.
    marked: [u64; SLOTS / 64],
    /// A bit per marked byte, in order; those for which there is no bit are in the list.
    is_second: u128,
    usual: u32,
    second: u32,
    /// How many bytes are marked before each word of `marked`.
    before: [u8; SLOTS / 64],
}

/// Where the word of a marked byte is.
pub(crate) enum Marked {
    Value(u32),
    /// In the list, here.
    Listed(usize),
}

impl Head {
    /// Returns the head of a page with one value.
    pub(crate) fn of(value: u32) -> Self {
        Self { usual: value, second: value, ..Self::default() }
    }

    /// Returns the value of every byte that is not marked.
    #[inline(always)]
    pub(crate) fn usual(&self) -> u32 {
        self.usual
    }

    /// Whether the word of `byte` is another than the usual one.
    #[inline(always)]
    pub(crate) fn is_marked(&self, byte: u8) -> bool {
        self.marked[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }

    /// Returns the word of a marked byte, or where it is.
    #[inline(always)]
    pub(crate) fn marked(&self, byte: u8) -> Marked {
        let word = usize::from(byte >> 6);
        let upto = self.marked[word] & ((1 << (byte & 63)) - 1);
        let place = u32::from(self.before[word]) + upto.count_ones();
        let Some(bit) = 1u128.checked_shl(place) else {
            return Marked::Listed((place - self.is_second.count_ones()) as usize);
        };
        if self.is_second & bit != 0 {
            return Marked::Value(self.second);
        }
        Marked::Listed((place - (self.is_second & (bit - 1)).count_ones()) as usize)
    }

    fn is_uniform(&self) -> bool {
        self.marked == [0; SLOTS / 64]
    }

    /// How many words the list has.
    fn listed(&self) -> usize {
        let marked: u32 = self.marked.iter().map(|bits| bits.count_ones()).sum();
        (marked - self.is_second.count_ones()) as usize
    }
}

/// Everything about a page but its head.
pub(crate) type Words = Option<Arc<[u32]>>;

/// A page.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a> {
    pub(crate) head: &'a Head,
    pub(crate) words: &'a [u32],
}

impl Page<'_> {
    /// Returns what all numbers with this high byte map to: a value, or the name of a block.
    #[inline(always)]
    pub(crate) fn word(self, byte: u8) -> u32 {
        if !self.head.is_marked(byte) {
            return self.head.usual;
        }
        match self.head.marked(byte) {
            Marked::Value(value) => value,
            Marked::Listed(at) => self.words[at],
        }
    }

    /// Returns what `number` maps to.
    #[inline]
    pub(crate) fn find(self, number: u16) -> u32 {
        let word = self.word((number >> 8) as u8);
        if word < DIRECT { word } else { in_block(self.words, word, number as u8) }
    }

    /// Returns the words of all high bytes; neighbours differ.
    pub(crate) fn runs(self) -> Runs {
        let mut runs = Runs::default();
        if self.head.is_uniform() {
            runs.begin(0, self.head.usual);
        } else {
            (0..=u8::MAX).for_each(|byte| runs.begin(byte, self.word(byte)));
        }
        runs
    }

    /// Shows every value in the page to `see`, some of them often.
    pub(crate) fn for_each_value(self, mut see: impl FnMut(u32)) {
        see(self.head.usual);
        see(self.head.second);
        for word in &self.words[..self.head.listed()] {
            if *word < DIRECT {
                see(*word);
            } else {
                self.words[values_of(self.words, *word)].iter().for_each(|value| see(*value));
            }
        }
    }
}

/// What the numbers with one high byte map to.
pub(crate) enum Slot<'a> {
    Runs(&'a Runs),
    /// One value.
    Whole(u32),
    /// A block of another page.
    Block(&'a [u32], u32),
}

/// Makes a page of its 256 slots.
pub(crate) fn assemble<'a>(slot: impl Fn(usize) -> Slot<'a>) -> (Head, Words) {
    // Blocks first, with offsets from where they will begin; that is known when the list is.
    let mut blocks: Vec<u32> = Vec::new();
    let words: [u32; SLOTS] = std::array::from_fn(|number| match slot(number) {
        Slot::Runs(runs) => runs.write(&mut blocks),
        Slot::Whole(value) => value,
        Slot::Block(page, block) => {
            let offset = blocks.len() as u32;
            let first = (block & OFFSET) as usize;
            blocks.extend_from_slice(&page[first..values_of(page, block).end]);
            block & !OFFSET | offset
        }
    });
    let [usual, second] = commonest(&words);
    let mut head = Head { second, ..Head::of(usual) };
    let mut list = Vec::new();
    let mut place = 0;
    for (number, word) in words.into_iter().enumerate() {
        if number & 63 == 0 {
            head.before[number / 64] = place as u8;
        }
        if word == usual {
            continue;
        }
        head.marked[number / 64] |= 1 << (number & 63);
        match 1u128.checked_shl(place) {
            Some(bit) if word == second => head.is_second |= bit,
            _ => list.push(word),
        }
        place += 1;
    }
    let base = list.len() as u32;
    list.iter_mut().filter(|word| **word >= DIRECT).for_each(|word| *word += base);
    list.extend(blocks);
    (head, (!list.is_empty()).then(|| list.into()))
}

/// Returns the two values that most words are; one twice when there is no other. Of those that are equally common, the lower ones.
fn commonest(words: &[u32; SLOTS]) -> [u32; 2] {
    let mut counts: Vec<(u32, usize)> = words
        .chunk_by(|a, b| a == b)
        .filter_map(|run| run.first().filter(|word| **word < DIRECT).map(|word| (*word, run.len())))
        .collect();
    counts.sort_unstable();
    counts.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        kept.1 += if is_same { next.1 } else { 0 };
        is_same
    });
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    match counts[..] {
        [] => [0, 0],
        [(only, _)] => [only, only],
        [(usual, _), (second, _), ..] => [usual, second],
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::blocks::Runs;
    use super::{Head, Page, Slot, assemble};

    #[test]
    fn a_head_is_one_cache_line() {
        assert_eq!((size_of::<Head>(), align_of::<Head>()), (64, 64));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Few values and many, blocks small and large, more marks than the second value has bits for: every number maps to what its
        /// slot says, and a page made of another one's slots says the same.
        #[test]
        fn every_number_maps_to_what_its_slot_says(
            kinds in 1u32..9,
            runs in vec((1usize..160, 0u32..8, vec((any::<u8>(), 0u32..40), 0..20)), 1..40),
        ) {
            let mut slots: Vec<Runs> = Vec::new();
            for (length, value, mut inner) in runs {
                inner.sort_unstable();
                for n in 0..length {
                    let mut runs = Runs::default();
                    runs.begin(0, value % kinds);
                    // Long runs are of one value each, short ones of blocks.
                    if length < 8 {
                        inner.iter().for_each(|(at, value)| runs.begin(*at, value + n as u32));
                    }
                    slots.push(runs);
                }
            }
            slots.resize_with(256, || Runs(vec![(0, 0)]));
            let (head, words) = assemble(|slot| Slot::Runs(&slots[slot]));
            let page = Page { head: &head, words: words.as_deref().unwrap_or(&[]) };
            let again = assemble(|slot| match page.word(slot as u8) {
                value if value < super::DIRECT => Slot::Whole(value),
                block => Slot::Block(page.words, block),
            });
            let again = Page { head: &again.0, words: again.1.as_deref().unwrap_or(&[]) };
            let mut seen = std::collections::BTreeSet::new();
            page.for_each_value(|value| { seen.insert(value); });
            for number in 0..=u16::MAX {
                let slot = &slots[usize::from(number >> 8)].0;
                let expected = slot[slot.partition_point(|(at, _)| *at <= number as u8) - 1].1;
                prop_assert_eq!(page.find(number), expected, "{:x}", number);
                prop_assert_eq!(again.find(number), expected, "{:x}", number);
                prop_assert!(seen.contains(&expected));
            }
        }
    }
}
