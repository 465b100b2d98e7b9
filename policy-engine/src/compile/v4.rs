//! IPv4 addresses to identities: two bytes by direct table, the others by blocks of intervals.
//!
//! ```text
//!   root[256] ─▶ middle[256] ─▶ page of one word: the identity of the whole /16
//!                               page of more:     block over the third byte ─▶ identity, or block over the last byte ─▶ identity
//!   block: where each of its intervals begins (eight bytes, or a bit per value), then one word per interval
//! ```
//!
//! A page with few prefixes in it is one or two cache lines, whatever their length. Middles and pages are shared with earlier tables
//! until they change.

use std::sync::{Arc, LazyLock};

use super::identities::Identities;
use super::prefixes::{Prefix, Prefixes};
use crate::packet::IdentityId;

type Page = Arc<[u32]>;
type Middle = Arc<[Page; 256]>;

const SLOTS: usize = 256;

/// Words below this are identities; others name a block of the same page.
const DIRECT: u32 = 1 << 30;
/// A block of at most eight intervals; bits 27 to 29 hold their number less one.
const SMALL: u32 = 1 << 30;
/// A block with a bit per value.
const LARGE: u32 = 1 << 31;
const OFFSET: u32 = (1 << 27) - 1;

static NOTHING: LazyLock<Middle> = LazyLock::new(|| {
    let page: Page = Arc::from([0]);
    Arc::new(std::array::from_fn(|_| Arc::clone(&page)))
});

/// Every IPv4 address.
#[derive(Clone, Debug)]
pub(crate) struct V4 {
    root: Arc<[Middle; 256]>,
}

impl Default for V4 {
    fn default() -> Self {
        Self { root: Arc::new(std::array::from_fn(|_| Arc::clone(&NOTHING))) }
    }
}

/// Intervals of the values of one byte while their block is made: where they begin, and what they are.
#[derive(Debug, Default)]
struct Runs(Vec<(u8, u32)>);

impl Runs {
    fn begin(&mut self, at: u8, word: u32) {
        if self.0.last().is_some_and(|last| last.0 == at) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|last| last.1 != word) {
            self.0.push((at, word));
        }
    }

    /// How many words the block takes; none when there is nothing to tell apart.
    fn block_len(&self) -> usize {
        match self.0.len() {
            0 | 1 => 0,
            few @ 2..=8 => 2 + few,
            many => 10 + many,
        }
    }

    /// Returns the word that stands for the runs, putting a block at the end of `words` when it needs one.
    fn write(&self, words: &mut Vec<u32>) -> u32 {
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
fn values_of(page: &[u32], block: u32) -> std::ops::Range<usize> {
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
fn in_block(page: &[u32], block: u32, value: u8) -> u32 {
    let offset = (block & OFFSET) as usize;
    if block & LARGE == 0 {
        let count = (block >> 27 & 7) as usize + 1;
        let words = &page[offset..offset + 2 + count];
        let starts = u64::from(words[0]) | u64::from(words[1]) << 32;
        // Starts beyond the last are zero: they count for every value, and as many as there are.
        words[2 + not_above(starts, value) - (8 - count) - 1]
    } else {
        let words = &page[offset..];
        let word = usize::from(value >> 5);
        let before = (u64::from(words[8]) | u64::from(words[9]) << 32) >> (8 * word);
        let upto = words[word] & (u32::MAX >> (31 - (value & 31)));
        words[10 + (before as u8) as usize + upto.count_ones() as usize - 1]
    }
}

/// Returns the runs of a block, or of one word for all values.
fn runs_of(page: &[u32], block: u32) -> Runs {
    if block < DIRECT {
        return Runs(vec![(0, block)]);
    }
    let mut runs = Runs::default();
    (0..=u8::MAX).for_each(|value| runs.begin(value, in_block(page, block, value)));
    runs
}

impl V4 {
    /// Returns what the address is.
    #[inline]
    pub(crate) fn identity(&self, address: u32) -> IdentityId {
        let page = &*self.root[(address >> 24) as usize][(address >> 16 & 255) as usize];
        let mut word = page[0];
        if word >= DIRECT {
            word = in_block(page, word, (address >> 8) as u8);
            if word >= DIRECT {
                word = in_block(page, word, address as u8);
            }
        }
        IdentityId(word)
    }

    /// Asks for the page of an address, so that [`V4::identity`] finds it near.
    #[inline]
    pub(crate) fn prefetch(&self, address: u32) {
        margay_accel::prefetch_item(&self.root[(address >> 24) as usize][(address >> 16 & 255) as usize], 0);
    }

    /// Brings everything within `prefix` up to date with the store. Returns whether any address may mean something else now.
    pub(crate) fn refresh(
        &mut self,
        prefix: Prefix<u32>,
        store: &Prefixes<u32>,
        identity_of: &impl Fn(u32) -> IdentityId,
        identities: &mut Identities,
    ) -> bool {
        if prefix.1 > 16 {
            return self.refresh_within_page(prefix, store, identity_of, identities);
        }
        let mut pages = Pages::new(prefix);
        store.intervals(prefix, identity_of, identities, |start, identity| pages.begin(start, identity.0));
        pages.finish(&mut self.root);
        true
    }

    fn refresh_within_page(
        &mut self,
        prefix: Prefix<u32>,
        store: &Prefixes<u32>,
        identity_of: &impl Fn(u32) -> IdentityId,
        identities: &mut Identities,
    ) -> bool {
        let prefix = (prefix.0 & !255, prefix.1.min(24));
        let (high, middle) = ((prefix.0 >> 24) as usize, (prefix.0 >> 16 & 255) as usize);
        let first = (prefix.0 >> 8 & 255) as usize;
        let end = first + (1 << (24 - prefix.1));
        let mut maker = PageMaker::at(first, end);
        store.intervals(prefix, identity_of, identities, |start, identity| {
            maker.begin((start >> 8 & 255) as usize, start as u8, identity.0);
        });
        let fresh = maker.finish();
        let old = &self.root[high][middle];
        let is_same = fresh.iter().zip(first..).all(|(runs, slot)| {
            let word = if old[0] < DIRECT { old[0] } else { in_block(old, old[0], slot as u8) };
            runs_of(old, word).0 == runs.0
        });
        if is_same {
            return false;
        }
        let page = assemble(|slot| match fresh.get(slot.wrapping_sub(first)) {
            Some(runs) => Slot::Runs(runs),
            None if old[0] < DIRECT => Slot::Whole(old[0]),
            None => match in_block(old, old[0], slot as u8) {
                identity if identity < DIRECT => Slot::Whole(identity),
                block => Slot::Block(old, block),
            },
        });
        Arc::make_mut(&mut Arc::make_mut(&mut self.root)[high])[middle] = page;
        true
    }

    /// Shows every identity in the table to `see`, some of them often.
    pub(crate) fn for_each_identity(&self, mut see: impl FnMut(IdentityId)) {
        for middle in self.root.iter().filter(|middle| !Arc::ptr_eq(middle, &NOTHING)) {
            for page in middle.iter() {
                if page[0] < DIRECT {
                    see(IdentityId(page[0]));
                    continue;
                }
                for word in &page[values_of(page, page[0])] {
                    if *word < DIRECT {
                        see(IdentityId(*word));
                    } else {
                        page[values_of(page, *word)].iter().for_each(|identity| see(IdentityId(*identity)));
                    }
                }
            }
        }
    }

    /// Shows the first address and the identity of every interval, in order; neighbours may be equal.
    pub(crate) fn for_each_interval(&self, mut see: impl FnMut(u32, IdentityId)) {
        for (high, middle) in (0u32..).zip(self.root.iter()) {
            if Arc::ptr_eq(middle, &NOTHING) {
                see(high << 24, IdentityId(0));
                continue;
            }
            for (number, page) in (0u32..).zip(middle.iter()) {
                for (slot, word) in runs_of(page, page[0]).0 {
                    let start = high << 24 | number << 16 | u32::from(slot) << 8;
                    for (low, identity) in runs_of(page, word).0 {
                        see(start | u32::from(low), IdentityId(identity));
                    }
                }
            }
        }
    }
}

/// What one /24 is made of.
enum Slot<'a> {
    Runs(&'a Runs),
    /// One identity.
    Whole(u32),
    /// A block of another page.
    Block(&'a [u32], u32),
}

/// Makes a page of its 256 slots.
fn assemble<'a>(slot: impl Fn(usize) -> Slot<'a>) -> Page {
    // Blocks first, with offsets from where they will begin; that is known when the slots are.
    let mut blocks: Vec<u32> = Vec::new();
    let mut slots = Runs::default();
    for number in 0..SLOTS {
        let word = match slot(number) {
            Slot::Runs(runs) => runs.write(&mut blocks),
            Slot::Whole(identity) => identity,
            Slot::Block(page, block) => {
                let offset = blocks.len() as u32;
                let first = (block & OFFSET) as usize;
                blocks.extend_from_slice(&page[first..values_of(page, block).end]);
                block & !OFFSET | offset
            }
        };
        slots.begin(number as u8, word);
    }
    let base = 1 + slots.block_len() as u32;
    for (_, word) in slots.0.iter_mut().filter(|(_, word)| *word >= DIRECT) {
        *word += base;
    }
    let mut words = Vec::with_capacity(base as usize + blocks.len());
    words.push(0);
    words[0] = slots.write(&mut words);
    words.extend(blocks);
    words.into()
}

/// Sorts intervals by the /24 that they are in.
struct PageMaker {
    done: Vec<Runs>,
    runs: Runs,
    /// The slot that `runs` are of.
    at: usize,
    end: usize,
}

impl PageMaker {
    fn at(first: usize, end: usize) -> Self {
        Self { done: Vec::with_capacity(end - first), runs: Runs::default(), at: first, end }
    }

    fn begin(&mut self, slot: usize, low: u8, identity: u32) {
        self.go_to(slot);
        self.runs.begin(low, identity);
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

    fn finish(mut self) -> Vec<Runs> {
        self.go_to(self.end);
        self.done
    }
}

/// Writes whole pages, in order.
struct Pages {
    /// Number of the page being written, of 65,536.
    at: usize,
    end: usize,
    maker: PageMaker,
    /// What the last interval was.
    lasting: u32,
    /// The page being written has had no interval that did not begin with it.
    is_uniform: bool,
    done: Vec<(usize, usize, Page)>,
}

impl Pages {
    fn new(prefix: Prefix<u32>) -> Self {
        let at = (prefix.0 >> 16) as usize;
        Self {
            at,
            end: at + (1 << (16 - prefix.1)),
            maker: PageMaker::at(0, SLOTS),
            lasting: 0,
            is_uniform: true,
            done: Vec::new(),
        }
    }

    fn begin(&mut self, start: u32, identity: u32) {
        self.go_to((start >> 16) as usize);
        self.is_uniform &= start & 0xffff == 0;
        self.maker.begin((start >> 8 & 255) as usize, start as u8, identity);
        self.lasting = identity;
    }

    fn go_to(&mut self, page: usize) {
        if self.at >= page {
            return;
        }
        let maker = std::mem::replace(&mut self.maker, PageMaker::at(0, SLOTS));
        if !self.is_uniform {
            let slots = maker.finish();
            self.done.push((self.at, self.at + 1, assemble(|slot| Slot::Runs(&slots[slot]))));
            self.at += 1;
        }
        // From here on up to `page` there is nothing but what lasts.
        if self.at < page {
            self.done.push((self.at, page, Arc::from([self.lasting])));
            self.at = page;
        }
        self.is_uniform = true;
        self.maker.runs.begin(0, self.lasting);
    }

    fn finish(mut self, root: &mut Arc<[Middle; 256]>) {
        self.go_to(self.end);
        let root = Arc::make_mut(root);
        for (first, end, page) in self.done {
            let mut number = first;
            let mut whole: Option<Middle> = None;
            while number < end {
                if number & 255 == 0 && end - number >= 256 {
                    let middle =
                        whole.get_or_insert_with(|| Arc::new(std::array::from_fn(|_| Arc::clone(&page))));
                    root[number >> 8] = Arc::clone(middle);
                    number += 256;
                } else {
                    Arc::make_mut(&mut root[number >> 8])[number & 255] = Arc::clone(&page);
                    number += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::identities::{Identities, Membership, SetId};
    use super::super::prefixes::{Bits, Prefixes};
    use super::V4;
    use crate::packet::IdentityId;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

        /// Prefixes come and go; every address near an edge is what the prefixes around it say, and old tables keep their answers.
        #[test]
        fn every_address_is_what_its_prefixes_say(
            changes in vec((any::<u32>(), 0u8..=32, 0u32..6, any::<bool>(), 0u8..4), 1..60),
        ) {
            let mut identities = Identities::default();
            let own: Vec<IdentityId> = (0..6)
                .map(|set| identities.number(Membership { sets: vec![SetId(set)], triples: Vec::new() }))
                .collect();
            let identity_of = |source: u32| own[source as usize];
            let (mut store, mut table) = (Prefixes::<u32>::default(), V4::default());
            let mut plain: std::collections::BTreeSet<(u32, u8, u32)> = Default::default();
            let mut kept: Option<(V4, Vec<(u32, IdentityId)>)> = None;
            for (address, length, source, comes, spread) in changes {
                // Narrow the addresses down, so that prefixes meet.
                let address = match spread {
                    0 => address,
                    1 => 0x0a00_0000 | address & 0x0003_03ff,
                    2 => 0x0a00_0000 | address & 0x0000_00ff,
                    _ => 0x0a00_0000 | address & 0x0000_ff07,
                };
                let prefix = (address.network(length), length);
                if comes {
                    store.add(prefix, source);
                    plain.insert((prefix.0, length, source));
                } else {
                    store.remove(prefix, source);
                    plain.remove(&(prefix.0, length, source));
                }
                table.refresh(prefix, &store, &identity_of, &mut identities);
                let edges = plain.iter().map(|(first, length, _)| (*first, first.broadcast(*length)));
                let probes = edges.chain([prefix]
                    .map(|(first, length)| (first, first.broadcast(length))))
                    .flat_map(|(first, last)| [first.wrapping_sub(1), first, last, last.wrapping_add(1), first ^ 0x55])
                    .chain([0, u32::MAX]);
                let mut seen = Vec::new();
                for probe in probes {
                    let mut expected: Vec<SetId> = plain.iter()
                        .filter(|(first, length, _)| probe.network(*length) == *first)
                        .map(|(.., source)| SetId(*source)).collect();
                    expected.sort_unstable();
                    expected.dedup();
                    let found = table.identity(probe);
                    prop_assert_eq!(&identities.value(found).sets, &expected, "{:x}", probe);
                    seen.push((probe, found));
                }
                if let Some((old, seen)) = kept.replace((table.clone(), seen)) {
                    for (probe, identity) in seen {
                        prop_assert_eq!(old.identity(probe), identity);
                    }
                }
            }
            let mut last = None;
            table.for_each_interval(|start, identity| {
                assert!(last.is_none_or(|last| last < start));
                assert_eq!(table.identity(start), identity);
                last = Some(start);
            });
        }
    }
}
