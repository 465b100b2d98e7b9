//! IPv6 addresses to cells: a two-level tree of intervals.
//!
//! ```text
//!   firsts: first address of every leaf ─▶ leaf: where each interval begins, and its cell
//! ```
//!
//! A look-up is a search in the list of firsts, which stays in the cache, and a search in one leaf. A change replaces the leaves that
//! it touches; the others are shared with earlier tables.

use std::sync::Arc;

use super::cells::{CellId, Cells, Replaced};
use super::prefixes::{Bits, Prefix, Prefixes};

/// Most intervals of a leaf.
const LEAF: usize = 128;

#[derive(Debug)]
struct Leaf {
    starts: Vec<u128>,
    cells: Vec<CellId>,
}

/// Every IPv6 address.
#[derive(Clone, Debug)]
pub(crate) struct V6 {
    firsts: Arc<Vec<u128>>,
    leaves: Arc<Vec<Arc<Leaf>>>,
}

impl Default for V6 {
    fn default() -> Self {
        let leaf = Leaf { starts: vec![0], cells: vec![CellId(0)] };
        Self { firsts: Arc::new(vec![0]), leaves: Arc::new(vec![Arc::new(leaf)]) }
    }
}

impl V6 {
    /// Returns what the address is.
    #[inline]
    pub(crate) fn cell(&self, address: u128) -> CellId {
        let leaf = &self.leaves[self.firsts.partition_point(|first| *first <= address) - 1];
        leaf.cells[leaf.starts.partition_point(|start| *start <= address) - 1]
    }

    /// Brings everything within `prefix` up to date with the store. What was replaced by what is told to `replaced`.
    pub(crate) fn refresh(
        &mut self,
        prefix: Prefix<u128>,
        store: &Prefixes<u128>,
        cells: &mut Cells,
        replaced: &mut Replaced,
    ) {
        let last = prefix.0.broadcast(prefix.1);
        let leaf_of = |address: u128| self.firsts.partition_point(|first| *first <= address) - 1;
        let touched = leaf_of(prefix.0)..leaf_of(last) + 1;
        let mut runs: Vec<(u128, CellId)> = Vec::new();
        let mut begin = |start: u128, cell: CellId| {
            if runs.last().is_some_and(|run: &(u128, CellId)| run.0 == start) {
                runs.pop();
            }
            if runs.last().is_none_or(|run| run.1 != cell) {
                runs.push((start, cell));
            }
        };
        let old = || {
            let leaves = self.leaves[touched.clone()].iter();
            leaves.flat_map(|leaf| leaf.starts.iter().copied().zip(leaf.cells.iter().copied()))
        };
        old().filter(|(start, _)| *start < prefix.0).for_each(|(start, cell)| begin(start, cell));
        store.intervals(prefix, cells, &mut begin);
        if let Some(after) = last.successor() {
            let leaf_end = self.firsts.get(touched.end).copied();
            // What the old table said right after the prefix goes on there, unless another leaf begins there.
            if leaf_end.is_none_or(|end| after < end) {
                begin(after, self.cell(after));
            }
            old().filter(|(start, _)| *start > after).for_each(|(start, cell)| begin(start, cell));
        }
        if runs.iter().copied().eq(old()) {
            return;
        }
        replaced.compare(old(), runs.iter().copied());
        // A leaf begins where the one that it replaces began.
        let pieces = runs.len().div_ceil(LEAF).max(1);
        let fresh: Vec<Arc<Leaf>> = runs
            .chunks(runs.len().div_ceil(pieces))
            .map(|runs| {
                let (starts, cells) = runs.iter().copied().unzip();
                Arc::new(Leaf { starts, cells })
            })
            .collect();
        let firsts: Vec<u128> = fresh.iter().map(|leaf| leaf.starts[0]).collect();
        Arc::make_mut(&mut self.firsts).splice(touched.clone(), firsts);
        Arc::make_mut(&mut self.leaves).splice(touched, fresh);
    }

    /// Shows the first address and the cell of every interval, in order; neighbours may be equal.
    pub(crate) fn for_each_interval(&self, mut see: impl FnMut(u128, CellId)) {
        for leaf in self.leaves.iter() {
            leaf.starts.iter().zip(&leaf.cells).for_each(|(start, cell)| see(*start, *cell));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::cells::{Cells, Replaced};
    use super::super::prefixes::{Bits, Prefixes};
    use super::V6;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 40, ..ProptestConfig::default() })]

        /// Prefixes come and go; every address near an edge is what the prefixes around it say.
        #[test]
        fn every_address_is_what_its_prefixes_say(
            changes in vec((any::<u128>(), 0u8..=128, 0u32..6, any::<bool>(), 0u8..4), 1..40),
            many in any::<bool>(),
        ) {
            let (mut cells, mut replaced) = (Cells::default(), Replaced::default());
            let (mut store, mut table) = (Prefixes::<u128>::default(), V6::default());
            let mut plain: std::collections::BTreeSet<(u128, u8, u32)> = Default::default();
            if many {
                for number in 0..400u128 {
                    let prefix = (0xfd00 << 112 | number << 4, 126);
                    store.add(prefix, (number % 6) as u32);
                    plain.insert((prefix.0, prefix.1, (number % 6) as u32));
                    table.refresh(prefix, &store, &mut cells, &mut replaced);
                }
                prop_assert!(table.leaves.len() > 3);
            }
            for (address, length, source, comes, spread) in changes {
                let address = match spread {
                    0 => address,
                    1 => 0xfd00 << 112 | address & 0xfff,
                    2 => 0xfd00 << 112 | address & 0xff_0000_0000_0000,
                    _ => 0xfd00 << 112 | address & 0xf,
                };
                let prefix = (address.network(length), length);
                if comes {
                    store.add(prefix, source);
                    plain.insert((prefix.0, length, source));
                } else {
                    store.remove(prefix, source);
                    plain.remove(&(prefix.0, length, source));
                }
                table.refresh(prefix, &store, &mut cells, &mut replaced);
                let probes = plain.iter().step_by(7).map(|(first, length, _)| (*first, first.broadcast(*length)))
                    .chain([(prefix.0, prefix.0.broadcast(length))])
                    .flat_map(|(first, last)| [first.wrapping_sub(1), first, last, last.wrapping_add(1)])
                    .chain([0, u128::MAX]);
                for probe in probes {
                    let mut expected: Vec<u32> = plain.iter()
                        .filter(|(first, length, _)| probe.network(*length) == *first)
                        .map(|(.., source)| *source).collect();
                    expected.sort_unstable();
                    expected.dedup();
                    prop_assert_eq!(cells.speakers(table.cell(probe)), &expected, "{:x}", probe);
                }
            }
        }
    }
}
