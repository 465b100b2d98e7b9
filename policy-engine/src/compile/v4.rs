//! IPv4 addresses to cells: two bytes by direct table, the other two by a page of [`super::heads`].
//!
//! ```text
//!   root[256] ─▶ head of a /16, 256 side by side ─▶ cell
//!                  └ words of the /16 ─▶ cell
//! ```
//!
//! All heads are four megabytes, most of which a processor keeps near; an address in a /24 that is not divided needs nothing else as long
//! as its /16 has two cells. Heads are copied 256 at a time when a page changes, words are shared with earlier tables until they do.

use std::sync::{Arc, LazyLock};

use super::blocks::{DIRECT, PageMaker, Runs, SLOTS, runs_of};
use super::cells::{CellId, Cells, Replaced};
use super::heads::{Head, Page, Slot, Words, assemble};
use super::prefixes::{Prefix, Prefixes};

/// The pages of a /8.
#[derive(Clone, Debug)]
struct Pages {
    heads: [Head; 256],
    words: [Words; 256],
}

impl Pages {
    fn all(head: Head, words: &Words) -> Self {
        Self { heads: [head; 256], words: std::array::from_fn(|_| words.clone()) }
    }

    fn page(&self, number: usize) -> Page<'_> {
        Page { head: &self.heads[number], words: self.words[number].as_deref().unwrap_or(&[]) }
    }

    fn set(&mut self, number: usize, head: Head, words: Words) {
        (self.heads[number], self.words[number]) = (head, words);
    }
}

static NOTHING: LazyLock<Arc<Pages>> = LazyLock::new(|| Arc::new(Pages::all(Head::of(0), &None)));

/// Every IPv4 address.
#[derive(Clone, Debug)]
pub(crate) struct V4 {
    root: Arc<[Arc<Pages>; 256]>,
}

impl Default for V4 {
    fn default() -> Self {
        Self { root: Arc::new(std::array::from_fn(|_| Arc::clone(&NOTHING))) }
    }
}

/// Number of the /8 of an address, and of the /16 within it.
#[inline(always)]
fn numbers(address: u32) -> (usize, usize) {
    ((address >> 24) as usize, (address >> 16 & 255) as usize)
}

impl V4 {
    /// Returns what the address is.
    #[inline]
    pub(crate) fn cell(&self, address: u32) -> CellId {
        let head = self.head(address);
        if !head.is_marked((address >> 8) as u8) {
            return CellId(head.usual());
        }
        CellId(Page { head, words: self.words(address) }.find(address as u16))
    }

    /// Returns the head of the page of an address.
    #[inline(always)]
    pub(crate) fn head(&self, address: u32) -> &Head {
        let (high, page) = numbers(address);
        &self.root[high].heads[page]
    }

    /// Returns the words of the page of an address.
    #[inline(always)]
    pub(crate) fn words(&self, address: u32) -> &[u32] {
        let (high, page) = numbers(address);
        self.root[high].words[page].as_deref().unwrap_or(&[])
    }

    /// Asks for what [`V4::head`] is about.
    #[inline(always)]
    pub(crate) fn prefetch_head(&self, address: u32) {
        let (high, page) = numbers(address);
        margay_accel::prefetch_item(&self.root[high].heads, page);
    }

    /// Asks for what [`V4::words`] reads.
    #[inline(always)]
    pub(crate) fn prefetch_words(&self, address: u32) {
        let (high, page) = numbers(address);
        margay_accel::prefetch_item(&self.root[high].words, page);
    }

    /// Brings everything within `prefixes` up to date with the store; they are in order and do not overlap. What was replaced by what is
    /// told to `replaced`.
    pub(crate) fn refresh(
        &mut self,
        prefixes: &[Prefix<u32>],
        store: &Prefixes<u32>,
        cells: &mut Cells,
        replaced: &mut Replaced,
    ) {
        // A page that many changes meet is copied once.
        for of_page in prefixes.chunk_by(|a, b| a.1 > 16 && b.1 > 16 && a.0 >> 16 == b.0 >> 16) {
            match of_page {
                [prefix @ (_, ..=16)] => {
                    let mut pages = Writer::new(*prefix);
                    store.intervals(*prefix, cells, |start, cell| pages.begin(start, cell.0));
                    pages.finish(&mut self.root);
                    replaced.everything();
                }
                within => self.refresh_page(within, store, cells, replaced),
            }
        }
    }

    /// The same for prefixes that lie within one page.
    fn refresh_page(
        &mut self,
        prefixes: &[Prefix<u32>],
        store: &Prefixes<u32>,
        cells: &mut Cells,
        replaced: &mut Replaced,
    ) {
        let Some((address, _)) = prefixes.first() else { return };
        let (high, number) = numbers(*address);
        let old = self.root[high].page(number);
        let mut fresh: [Option<Runs>; SLOTS] = std::array::from_fn(|_| None);
        let mut is_other = false;
        for (address, length) in prefixes {
            let prefix = (address & !255, (*length).min(24));
            let first = (address >> 8 & 255) as usize;
            let mut maker = PageMaker::at(first, first + (1 << (24 - prefix.1)));
            store.intervals(prefix, cells, |start, cell| {
                maker.begin((start >> 8 & 255) as usize, start as u8, cell.0);
            });
            for (slot, runs) in (first..).zip(maker.finish()) {
                let before = runs_of(old.words, old.word(slot as u8));
                if before.0 != runs.0 {
                    let cells = |runs: &Runs| runs.0.clone().into_iter().map(|(at, cell)| (at, CellId(cell)));
                    replaced.compare(cells(&before), cells(&runs));
                    fresh[slot] = Some(runs);
                    is_other = true;
                }
            }
        }
        if !is_other {
            return;
        }
        let (head, words) = assemble(|slot| match &fresh[slot] {
            Some(runs) => Slot::Runs(runs),
            None => match old.word(slot as u8) {
                cell if cell < DIRECT => Slot::Whole(cell),
                block => Slot::Block(old.words, block),
            },
        });
        Arc::make_mut(&mut Arc::make_mut(&mut self.root)[high]).set(number, head, words);
    }

    /// Shows every cell in the table to `see`, some of them often.
    pub(crate) fn for_each_cell(&self, mut see: impl FnMut(CellId)) {
        for pages in self.root.iter().filter(|pages| !Arc::ptr_eq(pages, &NOTHING)) {
            (0..256).for_each(|number| pages.page(number).for_each_value(|cell| see(CellId(cell))));
        }
    }

    /// Shows the first address and the cell of every interval, in order; neighbours may be equal.
    pub(crate) fn for_each_interval(&self, mut see: impl FnMut(u32, CellId)) {
        for (high, pages) in (0u32..).zip(self.root.iter()) {
            if Arc::ptr_eq(pages, &NOTHING) {
                see(high << 24, CellId(0));
                continue;
            }
            for number in 0u32..256 {
                let page = pages.page(number as usize);
                for (slot, word) in page.runs().0 {
                    let start = high << 24 | number << 16 | u32::from(slot) << 8;
                    for (low, cell) in runs_of(page.words, word).0 {
                        see(start | u32::from(low), CellId(cell));
                    }
                }
            }
        }
    }
}

/// Writes whole pages, in order.
struct Writer {
    /// Number of the page being written, of 65,536.
    at: usize,
    end: usize,
    maker: PageMaker,
    /// What the last interval was.
    lasting: u32,
    /// The page being written has had no interval that did not begin with it.
    is_uniform: bool,
    done: Vec<(usize, usize, Head, Words)>,
}

impl Writer {
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

    fn begin(&mut self, start: u32, cell: u32) {
        self.go_to((start >> 16) as usize);
        self.is_uniform &= start & 0xffff == 0;
        self.maker.begin((start >> 8 & 255) as usize, start as u8, cell);
        self.lasting = cell;
    }

    fn go_to(&mut self, page: usize) {
        if self.at >= page {
            return;
        }
        let maker = std::mem::replace(&mut self.maker, PageMaker::at(0, SLOTS));
        if !self.is_uniform {
            let slots = maker.finish();
            let (head, words) = assemble(|slot| Slot::Runs(&slots[slot]));
            self.done.push((self.at, self.at + 1, head, words));
            self.at += 1;
        }
        // From here on up to `page` there is nothing but what lasts.
        if self.at < page {
            self.done.push((self.at, page, Head::of(self.lasting), None));
            self.at = page;
        }
        self.is_uniform = true;
        self.maker.runs.begin(0, self.lasting);
    }

    fn finish(mut self, root: &mut Arc<[Arc<Pages>; 256]>) {
        self.go_to(self.end);
        let root = Arc::make_mut(root);
        for (first, end, head, words) in self.done {
            let mut number = first;
            let mut whole: Option<Arc<Pages>> = None;
            while number < end {
                if number & 255 == 0 && end - number >= 256 {
                    let pages = whole.get_or_insert_with(|| Arc::new(Pages::all(head, &words)));
                    root[number >> 8] = Arc::clone(pages);
                    number += 256;
                } else {
                    Arc::make_mut(&mut root[number >> 8]).set(number & 255, head, words.clone());
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

    use super::super::cells::{CellId, Cells, Replaced};
    use super::super::prefixes::{Bits, Prefixes};
    use super::V4;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

        /// Prefixes come and go; every address near an edge is what the prefixes around it say, and old tables keep their answers.
        #[test]
        fn every_address_is_what_its_prefixes_say(
            changes in vec((any::<u32>(), 0u8..=32, 0u32..6, any::<bool>(), 0u8..4), 1..60),
        ) {
            let (mut cells, mut replaced) = (Cells::default(), Replaced::default());
            let (mut store, mut table) = (Prefixes::<u32>::default(), V4::default());
            let mut plain: std::collections::BTreeSet<(u32, u8, u32)> = Default::default();
            let mut kept: Option<(V4, Vec<(u32, CellId)>)> = None;
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
                table.refresh(&[prefix], &store, &mut cells, &mut replaced);
                let edges = plain.iter().map(|(first, length, _)| (*first, first.broadcast(*length)));
                let probes = edges.chain([prefix]
                    .map(|(first, length)| (first, first.broadcast(length))))
                    .flat_map(|(first, last)| [first.wrapping_sub(1), first, last, last.wrapping_add(1), first ^ 0x55])
                    .chain([0, u32::MAX]);
                let mut seen = Vec::new();
                for probe in probes {
                    let mut expected: Vec<u32> = plain.iter()
                        .filter(|(first, length, _)| probe.network(*length) == *first)
                        .map(|(.., source)| *source).collect();
                    expected.sort_unstable();
                    expected.dedup();
                    let found = table.cell(probe);
                    prop_assert_eq!(cells.speakers(found), &expected, "{:x}", probe);
                    seen.push((probe, found));
                }
                if let Some((old, seen)) = kept.replace((table.clone(), seen)) {
                    for (probe, cell) in seen {
                        prop_assert_eq!(old.cell(probe), cell);
                    }
                }
            }
            let mut last = None;
            table.for_each_interval(|start, cell| {
                assert!(last.is_none_or(|last| last < start));
                assert_eq!(table.cell(start), cell);
                last = Some(start);
            });
        }
    }
}
