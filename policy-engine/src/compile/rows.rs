//! Rows of bits, and the maps from a packet's fields to the row that speaks for them.
//!
//! A row holds one bit per decision point, in cache lines of 512. A row of more than one line is preceded by a summary: bit *i* of the
//! summary says whether word *i* of the row has any bit at all. ANDing summaries first finds the few words that can match, so a search
//! touches two lines of each row even in long tables.

use std::hash::BuildHasher;
use std::net::IpAddr;

use hashbrown::HashTable;
use smallvec::SmallVec;

const WORD: usize = u64::BITS as usize;
const LINE: usize = 8;

/// A cache line of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(align(64))]
pub(crate) struct Line([u64; LINE]);

/// Layout of the rows of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    bits: u32,
    /// Lines of bits.
    lines: u32,
    /// Lines of summary before them.
    summary: u32,
}

impl Shape {
    pub(crate) fn new(bits: usize) -> Self {
        let lines = bits.div_ceil(WORD * LINE).max(1);
        let summary = if lines == 1 { 0 } else { lines.div_ceil(WORD) };
        let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self { bits: narrow(bits), lines: narrow(lines), summary: narrow(summary) }
    }

    fn bits(self) -> usize {
        self.bits as usize
    }

    fn summary(self) -> usize {
        self.summary as usize
    }

    fn stride(self) -> usize {
        (self.summary + self.lines) as usize
    }

    fn build(self, mut bit: impl FnMut(usize) -> bool) -> Vec<Line> {
        let mut row = vec![Line::default(); self.stride()];
        (0..self.bits()).filter(|index| bit(*index)).for_each(|index| self.set(&mut row, index, true));
        row
    }

    /// Changes one bit of a row; the summary follows.
    fn set(self, row: &mut [Line], bit: usize, value: bool) {
        let (word, mask) = (bit / WORD, 1u64 << (bit % WORD));
        let slot = &mut row[self.summary() + word / LINE].0[word % LINE];
        *slot = if value { *slot | mask } else { *slot & !mask };
        if self.summary > 0 {
            let (filled, mask) = (*slot != 0, 1u64 << (word % WORD));
            let summary = &mut row[word / WORD / LINE].0[word / WORD % LINE];
            *summary = if filled { *summary | mask } else { *summary & !mask };
        }
    }

    /// Returns the bits of a row, in order.
    pub(crate) fn bits_of(self, row: &[Line]) -> impl Iterator<Item = usize> {
        let words = row[self.summary()..].iter().flat_map(|line| line.0).enumerate();
        words.filter(|(_, word)| *word != 0).flat_map(|(number, mut word)| {
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| number * WORD + word.trailing_zeros() as usize);
                word &= word.wrapping_sub(1);
                bit
            })
        })
    }

    /// Returns the first bit at or after `from` that every row has.
    #[inline]
    pub(crate) fn first<const N: usize>(self, rows: &[&[Line]; N], from: usize) -> Option<usize> {
        if self.summary > 0 {
            return self.first_by_summary(rows, from);
        }
        let mut common = rows[0][0].0;
        for row in &rows[1..] {
            common.iter_mut().zip(&row[0].0).for_each(|(sum, word)| *sum &= word);
        }
        // Words before `from` count for nothing, and of its own word the bits before it.
        let first_word = from / WORD;
        let mut filled = 0u32;
        for (number, word) in common.iter_mut().enumerate() {
            let kept = if number == first_word { u64::MAX << (from % WORD) } else { u64::MAX };
            *word &= kept;
            filled |= u32::from(*word != 0) << number;
        }
        filled &= u32::MAX.checked_shl(first_word as u32).unwrap_or(0);
        (filled != 0).then(|| {
            let word = filled.trailing_zeros() as usize;
            word * WORD + common[word].trailing_zeros() as usize
        })
    }

    fn first_by_summary<const N: usize>(self, rows: &[&[Line]; N], from: usize) -> Option<usize> {
        let word_of = |row: &[Line], first: usize, word: usize| row[first + word / LINE].0[word % LINE];
        let first_word = from / WORD;
        for block in first_word / WORD..self.summary() * LINE {
            let mut candidates = rows.iter().fold(u64::MAX, |sum, row| sum & word_of(row, 0, block));
            if block == first_word / WORD {
                candidates &= u64::MAX << (first_word % WORD);
            }
            while candidates != 0 {
                let word = block * WORD + candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                let mut bits =
                    rows.iter().fold(u64::MAX, |all, row| all & word_of(row, self.summary(), word));
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

    /// Gives back the room for more rows. Thousands of rules make large rows, and half of the room may be empty.
    pub(crate) fn fit(&mut self) {
        self.data.shrink_to_fit();
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.data.len() / self.shape.stride()
    }

    /// Returns the row with that number.
    #[inline]
    pub(crate) fn row(&self, number: u32) -> &[Line] {
        let start = number as usize * self.shape.stride();
        &self.data[start..start + self.shape.stride()]
    }
}

/// The row that a family and a protocol number leave standing.
#[derive(Clone, Debug)]
pub(crate) struct ProtocolRows {
    rows: Rows,
    /// Row number by family and protocol, for those that some rule names.
    named: SmallVec<[(bool, u8, u32); 4]>,
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
}

/// Where the intervals of 256 neighbouring ports begin, a bit per port, and where the row numbers of those intervals are.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    starts: [u64; 4],
    /// Intervals before each of the four words.
    before: [u8; 4],
    /// Place of the first interval's row number.
    first: u32,
}

/// The row that a port leaves standing. A look-up takes no branch: which ports packets go to is nobody's to predict.
#[derive(Clone, Debug)]
pub(crate) struct PortRows {
    rows: Rows,
    heads: Box<[Head]>,
    /// Row number of every interval, head by head.
    numbers: Box<[u32]>,
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
        let all = (0..shape.bits()).flat_map(&ranges);
        let mut starts: Vec<u16> =
            all.flat_map(|(first, last)| [Some(first), last.checked_add(1)]).flatten().collect();
        starts.push(0);
        starts.sort_unstable();
        starts.dedup();
        let mut intervals = vec![shape.build(unnamed); starts.len()];
        for bit in 0..shape.bits() {
            for (first, last) in ranges(bit) {
                let inside = starts.partition_point(|start| *start < first)
                    ..starts.partition_point(|start| *start <= last);
                for interval in inside {
                    shape.set(&mut intervals[interval], bit, matches(bit, starts[interval]));
                }
            }
        }
        let classes: Vec<u32> = intervals.iter().map(|row| rows.add_row(&mut index, row)).collect();
        rows.fit();
        let mut heads = vec![Head::default(); 256];
        let mut numbers: Vec<u32> = Vec::new();
        let mut interval = 0;
        for (high, head) in (0u16..).zip(&mut heads) {
            head.first = numbers.len() as u32;
            for low in 0..256u16 {
                let port = high << 8 | low;
                let begins = starts.get(interval + 1).is_some_and(|start| *start == port);
                interval += usize::from(begins);
                if begins || low == 0 {
                    head.starts[usize::from(low >> 6)] |= 1 << (low & 63);
                    numbers.push(classes[interval]);
                }
            }
            for word in 1..4 {
                head.before[word] = head.before[word - 1] + head.starts[word - 1].count_ones() as u8;
            }
        }
        Self { rows, heads: heads.into(), numbers: numbers.into(), none }
    }

    #[inline]
    fn place(&self, port: u16) -> usize {
        let head = &self.heads[usize::from(port >> 8)];
        let word = usize::from(port >> 6 & 3);
        let upto = head.starts[word] & (u64::MAX >> (63 - (port & 63)));
        head.first as usize + usize::from(head.before[word]) + upto.count_ones() as usize - 1
    }

    /// Returns the number of the row of a port; equal numbers are equal rows.
    #[inline]
    pub(crate) fn number(&self, port: Option<u16>) -> u32 {
        port.map_or(self.none, |port| self.numbers[self.place(port)])
    }

    #[inline]
    pub(crate) fn row(&self, port: Option<u16>) -> &[Line] {
        self.rows.row(self.number(port))
    }

    /// Asks for what [`PortRows::prefetch_number`] reads.
    #[inline]
    pub(crate) fn prefetch(&self, port: Option<u16>) {
        margay_accel::prefetch_item(&self.heads, usize::from(port.unwrap_or_default() >> 8));
    }

    /// Asks for the last thing that [`PortRows::row`] reads before the row.
    #[inline]
    pub(crate) fn prefetch_number(&self, port: Option<u16>) {
        margay_accel::prefetch_item(&self.numbers, self.place(port.unwrap_or_default()));
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
                    shape.first(&[rows.row(sevens), rows.row(elevens)], from),
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
