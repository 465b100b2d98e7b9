//! IPv4 addresses to cells: two bytes by direct table, the other two by a page of [`super::blocks`].
//!
//! ```text
//!   root[256] ─▶ middle[256] ─▶ page of a /16 ─▶ cell
//! ```
//!
//! A page with few prefixes in it is one or two cache lines, whatever their length. Middles and pages are shared with earlier tables
//! until they change.

use std::sync::{Arc, LazyLock};

use super::blocks::{
    self, DIRECT, Page, PageMaker, Runs, SLOTS, Slot, assemble, in_block, runs_of, values_of,
};
use super::cells::{CellId, Cells, Replaced};
use super::prefixes::{Prefix, Prefixes};

type Middle = Arc<[Page; 256]>;

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

impl V4 {
    /// Returns what the address is.
    #[inline]
    pub(crate) fn cell(&self, address: u32) -> CellId {
        CellId(blocks::find(self.page(address), address as u16))
    }

    /// Returns the page of an address.
    #[inline(always)]
    pub(crate) fn page(&self, address: u32) -> &[u32] {
        &self.root[(address >> 24) as usize][(address >> 16 & 255) as usize]
    }

    /// Asks for what [`V4::page`] reads.
    #[inline]
    pub(crate) fn prefetch_page(&self, address: u32) {
        margay_accel::prefetch_item(&self.root[(address >> 24) as usize][..], (address >> 16 & 255) as usize);
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
                    let mut pages = Pages::new(*prefix);
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
        let (high, middle) = ((address >> 24) as usize, (address >> 16 & 255) as usize);
        let old = &self.root[high][middle];
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
                let word = if old[0] < DIRECT { old[0] } else { in_block(old, old[0], slot as u8) };
                let before = runs_of(old, word);
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
        let page = assemble(|slot| match &fresh[slot] {
            Some(runs) => Slot::Runs(runs),
            None if old[0] < DIRECT => Slot::Whole(old[0]),
            None => match in_block(old, old[0], slot as u8) {
                cell if cell < DIRECT => Slot::Whole(cell),
                block => Slot::Block(old, block),
            },
        });
        Arc::make_mut(&mut Arc::make_mut(&mut self.root)[high])[middle] = page;
    }

    /// Shows every cell in the table to `see`, some of them often.
    pub(crate) fn for_each_cell(&self, mut see: impl FnMut(CellId)) {
        for middle in self.root.iter().filter(|middle| !Arc::ptr_eq(middle, &NOTHING)) {
            for page in middle.iter() {
                if page[0] < DIRECT {
                    see(CellId(page[0]));
                    continue;
                }
                for word in &page[values_of(page, page[0])] {
                    if *word < DIRECT {
                        see(CellId(*word));
                    } else {
                        page[values_of(page, *word)].iter().for_each(|cell| see(CellId(*cell)));
                    }
                }
            }
        }
    }

    /// Shows the first address and the cell of every interval, in order; neighbours may be equal.
    pub(crate) fn for_each_interval(&self, mut see: impl FnMut(u32, CellId)) {
        for (high, middle) in (0u32..).zip(self.root.iter()) {
            if Arc::ptr_eq(middle, &NOTHING) {
                see(high << 24, CellId(0));
                continue;
            }
            for (number, page) in (0u32..).zip(middle.iter()) {
                for (slot, word) in runs_of(page, page[0]).0 {
                    let start = high << 24 | number << 16 | u32::from(slot) << 8;
                    for (low, cell) in runs_of(page, word).0 {
                        see(start | u32::from(low), CellId(cell));
                    }
                }
            }
        }
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
