//! A small map from numbers to row numbers, one cache line a look-up: open addressing, at most half full.

/// Keys to row numbers; a key that is absent has row zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowNumbers {
    /// Key and row; row zero is an empty place. The length is a power of two, or zero.
    places: Vec<(u32, u32)>,
    len: usize,
}

impl RowNumbers {
    #[inline]
    fn home(&self, key: u32) -> usize {
        // Fibonacci hashing: the high bits are the well-mixed ones.
        let mixed = u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed as usize & (self.places.len() - 1)
    }

    /// Returns the row of `key`.
    #[inline]
    pub(crate) fn get(&self, key: u32) -> u32 {
        if self.places.is_empty() {
            return 0;
        }
        let mut place = self.home(key);
        loop {
            let (found, row) = self.places[place];
            if row == 0 || found == key {
                return row;
            }
            place = (place + 1) & (self.places.len() - 1);
        }
    }

    /// Asks for the line where the row of `key` is.
    #[inline]
    pub(crate) fn prefetch(&self, key: u32) {
        if !self.places.is_empty() {
            margay_accel::prefetch_item(&self.places, self.home(key));
        }
    }

    /// Sets the row of `key`; row zero is what absent keys have, and is not stored.
    pub(crate) fn insert(&mut self, key: u32, row: u32) {
        if row == 0 {
            return;
        }
        if 2 * (self.len + 1) > self.places.len() {
            let wider = vec![(0, 0); (2 * self.places.len()).max(8)];
            let old = std::mem::replace(&mut self.places, wider);
            self.len = 0;
            old.into_iter().for_each(|(key, row)| self.insert(key, row));
        }
        let mut place = self.home(key);
        while self.places[place].1 != 0 && self.places[place].0 != key {
            place = (place + 1) & (self.places.len() - 1);
        }
        self.len += usize::from(self.places[place].1 == 0);
        self.places[place] = (key, row);
    }

    /// Forgets every key that `keeps` does not keep.
    pub(crate) fn retain(&mut self, keeps: impl Fn(u32) -> bool) {
        let old = std::mem::take(self);
        let kept = old.places.into_iter().filter(|(key, row)| *row != 0 && keeps(*key));
        kept.for_each(|(key, row)| self.insert(key, row));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::RowNumbers;

    proptest! {
        #[test]
        fn it_is_a_map(pairs in vec((0u32..500, 0u32..9), 0..300)) {
            let (mut numbers, mut plain) = (RowNumbers::default(), BTreeMap::new());
            for (key, row) in pairs.into_iter().filter(|(_, row)| *row > 0) {
                numbers.insert(key, row);
                plain.insert(key, row);
            }
            for key in 0..600 {
                prop_assert_eq!(numbers.get(key), plain.get(&key).copied().unwrap_or(0));
            }
            numbers.retain(|key| key % 3 == 0);
            for key in 0..600 {
                let expected = plain.get(&key).copied().filter(|_| key % 3 == 0).unwrap_or(0);
                prop_assert_eq!(numbers.get(key), expected);
            }
        }
    }
}
