//! Every prefix that means something to some set, and what the intervals between their edges mean.
//!
//! The store is the truth from which the look-up tables ([`super::v4`], [`super::v6`]) are made, piece by piece: a change of one prefix
//! asks for the intervals within that prefix again and nothing else. What an interval is, is a cell ([`super::cells`]).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::cells::{CellId, Cells};

/// Bit pattern of an address of one family.
pub(crate) trait Bits: Copy + Ord + std::fmt::Debug {
    /// Length of an address in bits.
    const LENGTH: u8;
    /// The address after this one.
    fn successor(self) -> Option<Self>;
    /// The first address of the prefix of this length around it.
    fn network(self, length: u8) -> Self;
    /// The last one.
    fn broadcast(self, length: u8) -> Self;
}

macro_rules! bits {
    ($type:ty) => {
        impl Bits for $type {
            const LENGTH: u8 = <$type>::BITS as u8;

            #[inline]
            fn successor(self) -> Option<Self> {
                self.checked_add(1)
            }

            #[inline]
            fn network(self, length: u8) -> Self {
                self & !(<$type>::MAX.checked_shr(u32::from(length)).unwrap_or(0))
            }

            #[inline]
            fn broadcast(self, length: u8) -> Self {
                self | <$type>::MAX.checked_shr(u32::from(length)).unwrap_or(0)
            }
        }
    };
}

bits!(u32);
bits!(u128);

/// A prefix; sorts by first address, outer before inner.
pub(crate) type Prefix<A> = (A, u8);

/// Who says something about a prefix: the number of one source, or of a list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sources(u32);

const MANY: u32 = 1 << 31;

/// The prefixes of one family.
#[derive(Debug)]
pub(crate) struct Prefixes<A> {
    known: BTreeMap<Prefix<A>, Sources>,
    many: Vec<Vec<u32>>,
    free: Vec<u32>,
    /// How many prefixes there are of each length.
    lengths: Vec<u32>,
}

impl<A> Default for Prefixes<A> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), many: Vec::new(), free: Vec::new(), lengths: vec![0; 129] }
    }
}

impl<A: Bits> Prefixes<A> {
    /// `source` speaks for `prefix` from now on.
    pub(crate) fn add(&mut self, prefix: Prefix<A>, source: u32) {
        let entry = match self.known.entry(prefix) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Sources(source));
                self.lengths[usize::from(prefix.1)] += 1;
                return;
            }
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        };
        if entry.0 & MANY != 0 {
            let list = &mut self.many[(entry.0 & !MANY) as usize];
            if let Err(place) = list.binary_search(&source) {
                list.insert(place, source);
            }
        } else if entry.0 != source {
            let list = vec![entry.0.min(source), entry.0.max(source)];
            let number = match self.free.pop() {
                Some(number) => {
                    self.many[number as usize] = list;
                    number
                }
                None => {
                    self.many.push(list);
                    self.many.len() as u32 - 1
                }
            };
            *entry = Sources(MANY | number);
        }
    }

    /// And no longer.
    pub(crate) fn remove(&mut self, prefix: Prefix<A>, source: u32) {
        let Some(entry) = self.known.get_mut(&prefix) else { return };
        if entry.0 & MANY != 0 {
            let number = entry.0 & !MANY;
            let list = &mut self.many[number as usize];
            list.retain(|other| *other != source);
            if let [last] = list[..] {
                *entry = Sources(last);
                self.many[number as usize] = Vec::new();
                self.free.push(number);
            }
        } else if entry.0 == source {
            self.known.remove(&prefix);
            self.lengths[usize::from(prefix.1)] -= 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    fn own(&self, sources: Sources, cells: &mut Cells) -> CellId {
        if sources.0 & MANY == 0 {
            return cells.of(sources.0);
        }
        let list = &self.many[(sources.0 & !MANY) as usize];
        list.iter().fold(CellId(0), |sum, source| {
            let own = cells.of(*source);
            cells.union(sum, own)
        })
    }

    /// Returns the cell of an address in `prefix` by everything strictly around that prefix.
    pub(crate) fn around(&self, prefix: Prefix<A>, cells: &mut Cells) -> CellId {
        let mut sum = CellId(0);
        for length in (0..prefix.1).filter(|length| self.lengths[usize::from(*length)] > 0) {
            if let Some(sources) = self.known.get(&(prefix.0.network(length), length)) {
                let own = self.own(*sources, cells);
                sum = cells.union(sum, own);
            }
        }
        sum
    }

    /// Shows `emit` the intervals of `prefix` in order: each begins at an address and goes on to the next one. The first begins with
    /// the prefix. Neighbours may be equal.
    pub(crate) fn intervals(&self, prefix: Prefix<A>, cells: &mut Cells, mut emit: impl FnMut(A, CellId)) {
        let outer = self.around(prefix, cells);
        let (first, last) = (prefix.0, prefix.0.broadcast(prefix.1));
        emit(first, outer);
        let mut open: Vec<(A, CellId)> = vec![(last, outer)];
        let inside: RangeInclusive<Prefix<A>> = (first, prefix.1)..=(last, A::LENGTH);
        for ((start, length), sources) in self.known.range(inside) {
            close(&mut open, Some(*start), &mut emit);
            let own = self.own(*sources, cells);
            let around = open.last().map_or(outer, |(_, cell)| *cell);
            let cell = cells.union(around, own);
            emit(*start, cell);
            open.push((start.broadcast(*length), cell));
        }
        close(&mut open, None, &mut emit);
    }
}

/// Leaves every open prefix that ends before `next`; the outermost is never left.
fn close<A: Bits>(open: &mut Vec<(A, CellId)>, next: Option<A>, emit: &mut impl FnMut(A, CellId)) {
    while let [.., (_, outer), (last, _)] = open[..] {
        if next.is_some_and(|next| next <= last) {
            return;
        }
        open.pop();
        let outer_last = open.last().map(|(last, _)| *last);
        if let Some(after) = last.successor()
            && outer_last != Some(last)
        {
            emit(after, outer);
        }
    }
}
