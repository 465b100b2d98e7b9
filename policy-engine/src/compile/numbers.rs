//! A small map from numbers to small numbers, one cache line a look-up: a hash table of lines with eight places each.
//!
//! Five in eight places are taken at most, so a line that is full is rare, and rarer still is a key that had to go to the next one.

/// Places of a line.
const PLACES: usize = 8;

/// A cache line: where a key is, its number is too. Places are taken from the first on; number zero marks a free one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
struct Bucket {
    keys: [u32; PLACES],
    numbers: [u32; PLACES],
}

/// Keys to numbers; a key that is absent has number zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    /// A power of two of them, or none.
    buckets: Box<[Bucket]>,
    len: usize,
}

impl Numbers {
    #[inline(always)]
    fn home(&self, key: u32) -> usize {
        // Fibonacci hashing: the high bits are the well-mixed ones.
        let mixed = u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed as usize & (self.buckets.len() - 1)
    }

    /// Returns the number of `key`.
    #[inline(always)]
    pub(crate) fn get(&self, key: u32) -> u32 {
        if self.buckets.is_empty() {
            return 0;
        }
        let mut at = self.home(key);
        loop {
            let bucket = &self.buckets[at];
            // All places are looked at, without a branch: which one it is nobody can predict. A free place adds nothing.
            let mut number = 0;
            for (found, of) in bucket.keys.iter().zip(&bucket.numbers) {
                number |= of & u32::from(*found == key).wrapping_neg();
            }
            if number != 0 || bucket.numbers[PLACES - 1] == 0 {
                return number;
            }
            at = (at + 1) & (self.buckets.len() - 1);
        }
    }

    /// Asks for the line where `key` is.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: u32) {
        if !self.buckets.is_empty() {
            margay_accel::prefetch_item(&self.buckets, self.home(key));
        }
    }

    /// Sets the number of `key`; zero is what absent keys have, and is not stored.
    pub(crate) fn insert(&mut self, key: u32, number: u32) {
        if number == 0 {
            return;
        }
        if 8 * (self.len + 1) > 5 * PLACES * self.buckets.len() {
            let wider = vec![Bucket::default(); (2 * self.buckets.len()).max(1)];
            let old = std::mem::replace(&mut self.buckets, wider.into());
            self.len = 0;
            pairs(&old).for_each(|(key, number)| self.insert(key, number));
        }
        let mut at = self.home(key);
        loop {
            let bucket = &mut self.buckets[at];
            let place = (0..PLACES).find(|place| bucket.numbers[*place] == 0 || bucket.keys[*place] == key);
            if let Some(place) = place {
                self.len += usize::from(bucket.numbers[place] == 0);
                (bucket.keys[place], bucket.numbers[place]) = (key, number);
                return;
            }
            at = (at + 1) & (self.buckets.len() - 1);
        }
    }

    /// Forgets every key that `keeps` does not keep.
    pub(crate) fn retain(&mut self, keeps: impl Fn(u32) -> bool) {
        let old = std::mem::take(self);
        pairs(&old.buckets).filter(|(key, _)| keeps(*key)).for_each(|(key, number)| self.insert(key, number));
    }
}

fn pairs(buckets: &[Bucket]) -> impl Iterator<Item = (u32, u32)> {
    let all = buckets.iter().flat_map(|bucket| bucket.keys.into_iter().zip(bucket.numbers));
    all.filter(|(_, number)| *number != 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::Numbers;

    proptest! {
        #[test]
        fn it_is_a_map(pairs in vec((0u32..500, 0u32..9), 0..600)) {
            let (mut numbers, mut plain) = (Numbers::default(), BTreeMap::new());
            for (key, number) in pairs.into_iter().filter(|(_, number)| *number > 0) {
                numbers.insert(key, number);
                plain.insert(key, number);
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

    #[test]
    fn keys_beyond_a_full_line_are_found_in_the_next() {
        let mut numbers = Numbers::default();
        // One line, then two, ...: at every size most lines are as full as they get.
        for key in 0..5_000u32 {
            numbers.insert(key.wrapping_mul(0x0100_0193), key + 1);
            assert_eq!(numbers.get(key.wrapping_mul(0x0100_0193)), key + 1);
        }
        assert!((0..5_000u32).all(|key| numbers.get(key.wrapping_mul(0x0100_0193)) == key + 1));
    }
}
