//! Rows of bits, and the maps from a packet's fields to the row that speaks for them.
//!
//! A row holds one bit per decision point, in cache lines of 512. A row of more than one line is preceded by a summary: bit *i* of the
//! summary says whether word *i* of the row has any bit at all. ANDing summaries first finds the few words that can match, so a search
//! touches two lines of each row even in long tables.

use std::hash::BuildHasher;
use std::net::IpAddr;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::blocks::{self, Page, PageMaker, SLOTS, Slot};
use super::numbers::RowNumbers;

const WORD: usize = u64::BITS as usize;
const LINE: usize = 8;

/// A cache line of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(align(64))]
pub(crate) struct Line([u64; LINE]);

/// Layout of the rows of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    bits: usize,
    /// Lines of bits.
    lines: usize,
    /// Lines of summary before them.
    summary: usize,
}

impl Shape {
    pub(crate) fn new(bits: usize) -> Self {
        let lines = bits.div_ceil(WORD * LINE).max(1);
        let summary = if lines == 1 { 0 } else { lines.div_ceil(WORD) };
        Self { bits, lines, summary }
    }

    fn stride(self) -> usize {
        self.summary + self.lines
    }

    fn build(self, mut bit: impl FnMut(usize) -> bool) -> Vec<Line> {
        let mut row = vec![Line::default(); self.stride()];
        (0..self.bits).filter(|index| bit(*index)).for_each(|index| self.set(&mut row, index, true));
        row
    }

    /// Changes one bit of a row; the summary follows.
    fn set(self, row: &mut [Line], bit: usize, value: bool) {
        let (word, mask) = (bit / WORD, 1u64 << (bit % WORD));
        let slot = &mut row[self.summary + word / LINE].0[word % LINE];
        *slot = if value { *slot | mask } else { *slot & !mask };
        if self.summary > 0 {
            let (filled, mask) = (*slot != 0, 1u64 << (word % WORD));
            let summary = &mut row[word / WORD / LINE].0[word / WORD % LINE];
            *summary = if filled { *summary | mask } else { *summary & !mask };
        }
    }

    /// Returns the first bit at or after `from` that every row has.
    #[inline]
    pub(crate) fn first<const N: usize>(self, rows: [&[Line]; N], from: usize) -> Option<usize> {
        if self.summary > 0 {
            return self.first_by_summary(rows, from);
        }
        let all = rows.map(|row| &row[0].0);
        let mut common = *all[0];
        for row in &all[1..] {
            common.iter_mut().zip(row.iter()).for_each(|(sum, word)| *sum &= word);
        }
        let first_word = from / WORD;
        let masked = common.get(first_word).map_or(0, |word| word & u64::MAX << (from % WORD));
        if masked != 0 {
            return Some(first_word * WORD + masked.trailing_zeros() as usize);
        }
        let found = (first_word + 1..LINE).find(|word| common[*word] != 0)?;
        Some(found * WORD + common[found].trailing_zeros() as usize)
    }

    fn first_by_summary<const N: usize>(self, rows: [&[Line]; N], from: usize) -> Option<usize> {
        let word_of = |row: &[Line], first: usize, word: usize| row[first + word / LINE].0[word % LINE];
        let first_word = from / WORD;
        for block in first_word / WORD..self.summary * LINE {
            let mut candidates = rows.iter().fold(u64::MAX, |sum, row| sum & word_of(row, 0, block));
            if block == first_word / WORD {
                candidates &= u64::MAX << (first_word % WORD);
            }
            while candidates != 0 {
                let word = block * WORD + candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                let mut bits = rows.iter().fold(u64::MAX, |all, row| all & word_of(row, self.summary, word));
                if word == first_word {
                    bits &= u64::MAX << (from % WORD);
                }
                if bits != 0 {
                    return Some(word * WORD + bits.trailing_zeros() as usize);
                }
            }
        }
        None
    }
}

/// Distinct rows of one shape; equal rows are stored once.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    shape: Shape,
    data: Vec<Line>,
}

/// Finds a row by its bits; needed only while rows are added.
#[derive(Debug, Default)]
pub(crate) struct RowIndex(HashTable<u32>);

impl Rows {
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, data: Vec::new() }
    }

    /// Returns the number of the row with exactly these bits.
    pub(crate) fn add(&mut self, index: &mut RowIndex, bit: impl FnMut(usize) -> bool) -> u32 {
        self.add_row(index, &self.shape.build(bit))
    }

    /// Returns the number of the row that is like row `number` except for `bits`.
    pub(crate) fn add_like(
        &mut self,
        index: &mut RowIndex,
        number: u32,
        bits: impl Iterator<Item = (usize, bool)>,
    ) -> u32 {
        let mut row = self.row(number).to_vec();
        bits.for_each(|(bit, value)| self.shape.set(&mut row, bit, value));
        self.add_row(index, &row)
    }

    fn add_row(&mut self, index: &mut RowIndex, row: &[Line]) -> u32 {
        let hash = |row: &[Line]| foldhash::fast::FixedState::default().hash_one(row);
        if let Some(number) = index.0.find(hash(row), |number| self.row(*number) == row) {
            return *number;
        }
        let number = (self.data.len() / self.shape.stride()) as u32;
        self.data.extend_from_slice(row);
        index.0.insert_unique(hash(row), number, |number| hash(self.row(*number)));
        number
    }

    /// Returns the row with that number.
    #[inline]
    pub(crate) fn row(&self, number: u32) -> &[Line] {
        let start = number as usize * self.shape.stride();
        &self.data[start..start + self.shape.stride()]
    }

    /// Asks for the first line of a row.
    #[inline]
    pub(crate) fn prefetch(&self, number: u32) {
        margay_accel::prefetch_item(&self.data, number as usize * self.shape.stride());
    }
}

/// The row that a family and a protocol number leave standing.
#[derive(Clone, Debug)]
pub(crate) struct ProtocolRows {
    rows: Rows,
    /// Row number by family and protocol, for those that some rule names.
    named: SmallVec<[(bool, u8, u32); 8]>,
    /// Row number of the others, by family: IPv4, IPv6.
    others: [u32; 2],
}

impl ProtocolRows {
    /// `matches(bit, is_ipv4, protocol)`; protocols outside `named` all behave alike.
    pub(crate) fn build(shape: Shape, named: &[u8], matches: impl Fn(usize, bool, u8) -> bool) -> Self {
        let (mut rows, mut index) = (Rows::new(shape), RowIndex::default());
        let mut row = |is_ipv4, protocol| rows.add(&mut index, |bit| matches(bit, is_ipv4, protocol));
        // Were all of them named, none would be looked for here.
        let unnamed = (0..=u8::MAX).find(|protocol| !named.contains(protocol)).unwrap_or_default();
        let others = [true, false].map(|is_ipv4| row(is_ipv4, unnamed));
        let both = named.iter().flat_map(|protocol| [(true, *protocol), (false, *protocol)]);
        let named = both.map(|(is_ipv4, protocol)| (is_ipv4, protocol, row(is_ipv4, protocol))).collect();
        Self { rows, named, others }
    }

    #[inline]
    pub(crate) fn number(&self, address: &IpAddr, protocol: u8) -> u32 {
        let is_ipv4 = address.is_ipv4();
        let found = self.named.iter().find(|named| named.1 == protocol && named.0 == is_ipv4);
        found.map_or(self.others[usize::from(!is_ipv4)], |named| named.2)
    }

    #[inline]
    pub(crate) fn row(&self, address: &IpAddr, protocol: u8) -> &[Line] {
        self.rows.row(self.number(address, protocol))
    }

    #[inline]
    pub(crate) fn prefetch(&self, address: &IpAddr, protocol: u8) {
        self.rows.prefetch(self.number(address, protocol));
    }
}

/// The row that a port leaves standing.
#[derive(Clone, Debug)]
pub(crate) struct PortRows {
    rows: Rows,
    /// Row number plus one of ports that differ from their neighbours, which most that rules name do.
    single: RowNumbers,
    /// Row number of the others.
    others: Page,
    none: u32,
}

impl PortRows {
    /// `ranges(bit)` are the ports that the bit's criteria name, and `matches(bit, port)` is the answer for one port; all ports that a
    /// bit does not name are answered by `unnamed(bit)`, packets without known ports by `none(bit)`.
    pub(crate) fn build<R: Iterator<Item = (u16, u16)>>(
        shape: Shape,
        ranges: impl Fn(usize) -> R,
        matches: impl Fn(usize, u16) -> bool,
        unnamed: impl Fn(usize) -> bool,
        none: impl Fn(usize) -> bool,
    ) -> Self {
        let (mut rows, mut index) = (Rows::new(shape), RowIndex::default());
        let none = rows.add(&mut index, none);
        let all = (0..shape.bits).flat_map(&ranges);
        let mut starts: Vec<u16> =
            all.flat_map(|(first, last)| [Some(first), last.checked_add(1)]).flatten().collect();
        starts.push(0);
        starts.sort_unstable();
        starts.dedup();
        let mut intervals = vec![shape.build(unnamed); starts.len()];
        for bit in 0..shape.bits {
            for (first, last) in ranges(bit) {
                let inside = starts.partition_point(|start| *start < first)
                    ..starts.partition_point(|start| *start <= last);
                for interval in inside {
                    shape.set(&mut intervals[interval], bit, matches(bit, starts[interval]));
                }
            }
        }
        let mut maker = PageMaker::at(0, SLOTS);
        let mut single = RowNumbers::default();
        for (number, (start, row)) in starts.iter().zip(&intervals).enumerate() {
            let row = rows.add_row(&mut index, row);
            let is_single = *start > 0 && starts.get(number + 1).is_some_and(|next| next - start == 1);
            if is_single {
                single.insert(u32::from(*start), row + 1);
            } else {
                maker.begin(usize::from(start >> 8), *start as u8, row);
            }
        }
        let slots = maker.finish();
        let others = blocks::assemble(|slot| Slot::Runs(&slots[slot]));
        Self { rows, single, others, none }
    }

    #[inline]
    fn number(&self, port: Option<u16>) -> u32 {
        let Some(port) = port else { return self.none };
        match self.single.get(u32::from(port)) {
            0 => blocks::find(&self.others, port),
            number => number - 1,
        }
    }

    #[inline]
    pub(crate) fn row(&self, port: Option<u16>) -> &[Line] {
        self.rows.row(self.number(port))
    }

    /// Asks for what [`PortRows::prefetch_row`] reads.
    #[inline]
    pub(crate) fn prefetch(&self, port: Option<u16>) {
        self.single.prefetch(u32::from(port.unwrap_or_default()));
        margay_accel::prefetch_item(&self.others, 0);
    }

    /// Asks for what [`PortRows::row`] returns.
    #[inline]
    pub(crate) fn prefetch_row(&self, port: Option<u16>) {
        self.rows.prefetch(self.number(port));
    }
}

/// What an ICMP criterion may see of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpView {
    /// Not ICMP of the packet's family.
    Other,
    /// ICMP whose header is not at hand.
    Unknown,
    /// ICMP of this type.
    Type(u8),
}

/// The row that an ICMP type leaves standing.
#[derive(Clone, Debug)]
pub(crate) struct IcmpRows {
    rows: Rows,
    numbers: Vec<u32>,
    other: u32,
    unknown: u32,
}

impl IcmpRows {
    /// `matches(bit, view)`; types outside `named` all behave alike.
    pub(crate) fn build(shape: Shape, named: &[u8], matches: impl Fn(usize, IcmpView) -> bool) -> Self {
        let (mut rows, mut index) = (Rows::new(shape), RowIndex::default());
        let other = rows.add(&mut index, |bit| matches(bit, IcmpView::Other));
        let unknown = rows.add(&mut index, |bit| matches(bit, IcmpView::Unknown));
        let mut unnamed = None;
        let mut numbers = Vec::with_capacity(256);
        for kind in 0..=u8::MAX {
            let number = match unnamed {
                Some(number) if !named.contains(&kind) => number,
                _ => rows.add(&mut index, |bit| matches(bit, IcmpView::Type(kind))),
            };
            if !named.contains(&kind) {
                unnamed = Some(number);
            }
            numbers.push(number);
        }
        Self { rows, numbers, other, unknown }
    }

    #[inline]
    pub(crate) fn row(&self, view: IcmpView) -> &[Line] {
        self.rows.row(match view {
            IcmpView::Other => self.other,
            IcmpView::Unknown => self.unknown,
            IcmpView::Type(kind) => self.numbers[usize::from(kind)],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{PortRows, RowIndex, Rows, Shape};

    #[test]
    fn the_first_common_bit_is_found_in_any_word_and_after_any_start() {
        for bits in [1usize, 63, 64, 65, 511, 512, 513, 4_096, 4_097, 9_000, 70_000] {
            let shape = Shape::new(bits);
            let (mut rows, mut index) = (Rows::new(shape), RowIndex::default());
            let sevens = rows.add(&mut index, |bit| bit % 7 == 0 || bit + 1 == bits);
            let elevens = rows.add(&mut index, |bit| bit % 11 == 0 || bit + 1 == bits);
            for from in [0, 1, 63, 64, 70, 77, 78, 500, 4_095, 4_096, 4_100, 8_999] {
                let expected = (from..bits).find(|bit| (bit % 77 == 0) || bit + 1 == bits);
                assert_eq!(
                    shape.first([rows.row(sevens), rows.row(elevens)], from),
                    expected,
                    "{bits} bits from {from}"
                );
            }
        }
    }

    #[test]
    fn every_port_finds_its_interval() {
        let shape = Shape::new(3);
        let ranges = [(80, 80), (0, 1023), (443, u16::MAX)];
        let inside = |bit: usize, port: u16| (ranges[bit].0..=ranges[bit].1).contains(&port);
        let rows = PortRows::build(shape, |bit| [ranges[bit]].into_iter(), inside, |_| false, |_| false);
        for port in 0..=u16::MAX {
            let row = rows.row(Some(port));
            for bit in 0..3 {
                assert_eq!(row[0].0[0] >> bit & 1 == 1, inside(bit, port), "port {port} bit {bit}");
            }
        }
        assert_eq!(rows.row(None)[0].0[0], 0);
    }
}
