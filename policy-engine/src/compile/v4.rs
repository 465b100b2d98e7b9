//! IPv4 addresses to identities: 8 + 8 + 8 bits of direct table, then a block for the last byte.
//!
//! ```text
//!   root[256] ─▶ middle[256] ─▶ page: 256 slots, one per /24, then blocks
//!                                      slot = identity of the whole /24, or the place of a block
//!                               page of one word: identity of the whole /16
//!   block: where each of its intervals begins, then one identity per interval
//! ```
//!
//! Middles and pages are shared with earlier tables until they change. A changed /24 appends its new block to a copy of its page; what
//! the old one took is counted and squeezed out when it is more than half of the blocks.

use std::sync::{Arc, LazyLock};

use super::identities::Identities;
use super::prefixes::{Prefix, Prefixes};
use crate::packet::IdentityId;

type Page = Arc<[u32]>;
type Middle = Arc<[Page; 256]>;

const SLOTS: usize = 256;
/// Word after the slots: how many words of blocks are garbage.
const GARBAGE: usize = SLOTS;
const HEADER: usize = SLOTS + 1;

/// Slots below this are identities.
const DIRECT: u32 = 1 << 30;
/// A block of at most eight intervals; bits 27 to 29 hold their number less one.
const SMALL: u32 = 1 << 30;
/// A block with a bit per address.
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

/// Intervals of a /24 while its block is made: where they begin, and what they are.
#[derive(Debug, Default)]
struct Runs(Vec<(u8, u32)>);

impl Runs {
    fn begin(&mut self, at: u8, identity: u32) {
        if self.0.last().is_some_and(|last| last.0 == at) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|last| last.1 != identity) {
            self.0.push((at, identity));
        }
    }
}

/// Makes the word for a /24, putting a block at the end of `words` when it needs one.
fn slot(runs: &Runs, words: &mut Vec<u32>) -> u32 {
    let offset = words.len() as u32;
    match runs.0.as_slice() {
        [] => 0,
        [(_, identity)] => *identity,
        few if few.len() <= 8 => {
            let mut starts = [0u8; 8];
            few.iter().zip(&mut starts).for_each(|((at, _), start)| *start = *at);
            let [a, b, c, d, e, f, g, h] = starts;
            words.extend([u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]);
            words.extend(few.iter().map(|(_, identity)| *identity));
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
            let [a, b, c, d, e, f, g, h] = before;
            words.extend([u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]);
            words.extend(many.iter().map(|(_, identity)| *identity));
            LARGE | offset
        }
    }
}

/// Returns how many words the block of `slot` takes.
fn block_len(page: &[u32], slot: u32) -> usize {
    let offset = (slot & OFFSET) as usize;
    if slot & LARGE != 0 {
        10 + page[offset..offset + 8].iter().map(|bits| bits.count_ones() as usize).sum::<usize>()
    } else if slot & SMALL != 0 {
        2 + (slot >> 27 & 7) as usize + 1
    } else {
        0
    }
}

/// Whether `slot` says what `runs` say.
fn is_block_of(page: &[u32], slot: u32, runs: &Runs) -> bool {
    if slot < DIRECT {
        return matches!(runs.0[..], [(_, identity)] if identity == slot);
    }
    let head = if slot & LARGE != 0 { 10 } else { 2 };
    let offset = (slot & OFFSET) as usize;
    let identities = &page[offset + head..offset + block_len(page, slot)];
    // Every run begins where one of the block does, so equal identities in equal number at the same starts are the same runs.
    identities.len() == runs.0.len()
        && runs.0.iter().zip(identities).all(|(run, identity)| run.1 == *identity)
        && runs.0.windows(2).all(|pair| {
            in_block(page, slot, pair[1].0) == pair[1].1 && in_block(page, slot, pair[1].0 - 1) == pair[0].1
        })
}

/// Finds the identity of the address with this low byte in the block of `slot`.
#[inline]
fn in_block(page: &[u32], slot: u32, low: u8) -> u32 {
    let offset = (slot & OFFSET) as usize;
    if slot & LARGE == 0 {
        let count = (slot >> 27 & 7) as usize + 1;
        let block = &page[offset..offset + 2 + count];
        let starts = u64::from(block[0]) | u64::from(block[1]) << 32;
        let mut index = 0;
        for start in 1..count {
            index += usize::from((starts >> (8 * start)) as u8 <= low);
        }
        block[2 + index]
    } else {
        let block = &page[offset..];
        let word = usize::from(low >> 5);
        let before = (u64::from(block[8]) | u64::from(block[9]) << 32) >> (8 * word);
        let upto = block[word] & (u32::MAX >> (31 - (low & 31)));
        block[10 + (before as u8) as usize + upto.count_ones() as usize - 1]
    }
}

impl V4 {
    /// Returns what the address is.
    #[inline]
    pub(crate) fn identity(&self, address: u32) -> IdentityId {
        let page = &*self.root[(address >> 24) as usize][(address >> 16 & 255) as usize];
        let [whole] = page else {
            let slot = page[(address >> 8 & 255) as usize];
            return IdentityId(if slot < DIRECT { slot } else { in_block(page, slot, address as u8) });
        };
        IdentityId(*whole)
    }

    /// Asks for the page of an address, so that [`V4::identity`] finds it near.
    #[inline]
    pub(crate) fn prefetch(&self, address: u32) {
        let page = &*self.root[(address >> 24) as usize][(address >> 16 & 255) as usize];
        margay_accel::prefetch_item(page, (address >> 8 & 255) as usize);
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
        let old = &self.root[high][middle];
        let words: Vec<u32> = match **old {
            [whole] => std::iter::repeat_n(whole, SLOTS).chain([0]).collect(),
            _ => old.to_vec(),
        };
        let first = (prefix.0 >> 8 & 255) as usize;
        let slots = first..first + (1 << (24 - prefix.1));
        let mut maker =
            PageMaker { words, runs: Runs::default(), at: slots.start, end: slots.end, is_other: false };
        store.intervals(prefix, identity_of, identities, |start, identity| {
            maker.begin((start >> 8 & 255) as usize, start as u8, identity.0);
        });
        let (words, is_other) = maker.finish();
        if is_other {
            Arc::make_mut(&mut Arc::make_mut(&mut self.root)[high])[middle] = squeezed(words);
        }
        is_other
    }

    /// Shows every identity in the table to `see`, some of them often.
    pub(crate) fn for_each_identity(&self, mut see: impl FnMut(IdentityId)) {
        for middle in self.root.iter().filter(|middle| !Arc::ptr_eq(middle, &NOTHING)) {
            for page in middle.iter() {
                if let [whole] = **page {
                    see(IdentityId(whole));
                    continue;
                }
                for slot in &page[..SLOTS] {
                    if *slot < DIRECT {
                        see(IdentityId(*slot));
                        continue;
                    }
                    let offset = (slot & OFFSET) as usize;
                    let head = if slot & LARGE != 0 { 10 } else { 2 };
                    let block = &page[offset + head..offset + block_len(page, *slot)];
                    block.iter().for_each(|identity| see(IdentityId(*identity)));
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
                let start = high << 24 | number << 16;
                if let [whole] = **page {
                    see(start, IdentityId(whole));
                    continue;
                }
                for (number, slot) in (0u32..).zip(&page[..SLOTS]) {
                    let start = start | number << 8;
                    if *slot < DIRECT {
                        see(start, IdentityId(*slot));
                        continue;
                    }
                    let mut last = None;
                    for low in 0..=u8::MAX {
                        let identity = in_block(page, *slot, low);
                        if last.replace(identity) != Some(identity) {
                            see(start | u32::from(low), IdentityId(identity));
                        }
                    }
                }
            }
        }
    }
}

/// Writes slots and blocks of one page, in order.
struct PageMaker {
    words: Vec<u32>,
    runs: Runs,
    /// The slot that `runs` are of.
    at: usize,
    end: usize,
    /// Some slot is another one than before.
    is_other: bool,
}

impl PageMaker {
    fn begin(&mut self, slot: usize, low: u8, identity: u32) {
        self.go_to(slot);
        self.runs.begin(low, identity);
    }

    /// Finishes every slot before `slot`; what an interval is goes on into the next slot.
    fn go_to(&mut self, slot: usize) {
        while self.at < slot {
            let lasting = self.runs.0.last().map_or(0, |run| run.1);
            let before = self.words[self.at];
            if !is_block_of(&self.words, before, &self.runs) {
                self.words[GARBAGE] += block_len(&self.words, before) as u32;
                self.words[self.at] = self::slot(&self.runs, &mut self.words);
                self.is_other = true;
            }
            self.runs.0.clear();
            self.runs.begin(0, lasting);
            self.at += 1;
        }
    }

    fn finish(mut self) -> (Vec<u32>, bool) {
        self.go_to(self.end);
        (self.words, self.is_other)
    }
}

/// Returns the page that `words` are, as one word where all slots agree, without garbage where there is much.
fn squeezed(words: Vec<u32>) -> Page {
    let first = words[0];
    if first < DIRECT && words[..SLOTS].iter().all(|slot| *slot == first) {
        return Arc::from([first]);
    }
    let blocks = words.len() - HEADER;
    if words[GARBAGE] as usize * 2 <= blocks || blocks < 64 {
        return words.into();
    }
    let mut fresh = Vec::with_capacity(words.len() - words[GARBAGE] as usize);
    fresh.extend_from_slice(&words[..HEADER]);
    fresh[GARBAGE] = 0;
    for slot in 0..SLOTS {
        let len = block_len(&words, words[slot]);
        if len > 0 {
            let offset = (words[slot] & OFFSET) as usize;
            fresh[slot] = words[slot] & !OFFSET | fresh.len() as u32;
            fresh.extend_from_slice(&words[offset..offset + len]);
        }
    }
    fresh.into()
}

/// Writes whole pages, in order.
struct Pages {
    /// Number of the page being written, of 65,536.
    at: usize,
    end: usize,
    maker: PageMaker,
    /// The page being written has had an interval that did not begin with it.
    lasting: u32,
    is_uniform: bool,
    done: Vec<(usize, usize, Page)>,
}

impl Pages {
    fn new(prefix: Prefix<u32>) -> Self {
        let at = (prefix.0 >> 16) as usize;
        Self {
            at,
            end: at + (1 << (16 - prefix.1)),
            maker: Self::empty(),
            lasting: 0,
            is_uniform: true,
            done: Vec::new(),
        }
    }

    fn empty() -> PageMaker {
        PageMaker { words: vec![0; HEADER], runs: Runs::default(), at: 0, end: SLOTS, is_other: false }
    }

    fn begin(&mut self, start: u32, identity: u32) {
        self.go_to((start >> 16) as usize);
        if start & 0xffff != 0 {
            self.is_uniform = false;
        }
        self.maker.begin((start >> 8 & 255) as usize, start as u8, identity);
        self.lasting = identity;
    }

    fn go_to(&mut self, page: usize) {
        if self.at >= page {
            return;
        }
        if !self.is_uniform {
            let maker = std::mem::replace(&mut self.maker, Self::empty());
            self.done.push((self.at, self.at + 1, squeezed(maker.finish().0)));
            self.at += 1;
        }
        // From here on up to `page` there is nothing but what lasts.
        if self.at < page {
            self.done.push((self.at, page, Arc::from([self.lasting])));
            self.at = page;
        }
        self.is_uniform = true;
        self.maker.words.truncate(HEADER);
        self.maker.words.fill(0);
        self.maker.runs.0.clear();
        self.maker.at = 0;
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
