//! Where a flow is, by the hash of its key.
//!
//! The index is an array of buckets of one cache line each: fifteen entries, and how many flows that belong here had to go on to the next
//! bucket because this one was full when they came. An entry is 8 bits of the hash beside a slot number, all fifteen are compared at once,
//! and a search goes on only where somebody went on. So whatever is asked costs one line, nearly always: a known flow, one that is not
//! there, and forgetting one, for which no other flow is moved or looked at.
//!
//! It is our own because a packet must be able to say "I shall look here" ahead of time ([`Index::prefetch`], [`Index::likely`]), which
//! library maps do not offer.

use margay_accel::{advise_huge_pages, masked_lanes, prefetch_item};

/// Bits of an entry that are the slot, plus one.
const SLOT_BITS: u32 = 24;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// Most slots.
pub const MOST: usize = SLOT_MASK as usize - 1;
/// Entries of a bucket.
const ENTRIES: u32 = 15;
/// Flows that a bucket is meant for, when the table is full: one in twenty has more than fifteen.
const MEANT_FOR: usize = 10;

/// `hash bits << 24 | slot + 1` fifteen times, or zero; then the number of those who went on.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bucket([u32; 16]);

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is one cache line");

impl Bucket {
    /// Returns a bit for each entry that is `wanted` where `mask` has ones.
    #[inline(always)]
    fn lanes(&self, mask: u32, wanted: u32) -> u32 {
        masked_lanes(&self.0, mask, wanted) & ((1 << ENTRIES) - 1)
    }

    #[inline(always)]
    fn went_on(&mut self) -> &mut u32 {
        &mut self.0[ENTRIES as usize]
    }
}

/// The index of a table.
#[derive(Debug)]
pub struct Index {
    buckets: Vec<Bucket>,
    mask: usize,
}

/// Returns the bits of an entry; never zero, so that no free entry looks like one.
#[inline(always)]
fn tag(hash: u64) -> u32 {
    let bits = (hash >> 32) as u32 & !SLOT_MASK;
    if bits == 0 { 1 << SLOT_BITS } else { bits }
}

impl Index {
    /// Returns an empty index for slots below `limit`.
    pub fn new(limit: usize) -> Self {
        let size = limit.div_ceil(MEANT_FOR).next_power_of_two();
        let mut buckets = Vec::with_capacity(size);
        advise_huge_pages(buckets.spare_capacity_mut());
        buckets.resize(size, Bucket([0; 16]));
        Self { buckets, mask: size - 1 }
    }

    /// Brings near where `hash` is looked up.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch_item(&self.buckets, hash as usize & self.mask);
    }

    /// Returns the slot that `hash` most likely means; an absent one says that it means none, nearly always.
    #[inline(always)]
    pub fn likely(&self, hash: u64) -> Option<u32> {
        let bucket = &self.buckets[hash as usize & self.mask];
        let lanes = bucket.lanes(!SLOT_MASK, tag(hash));
        let entry = bucket.0[lanes.trailing_zeros() as usize & 15];
        (lanes != 0).then(|| (entry & SLOT_MASK).wrapping_sub(1))
    }

    /// Returns whether no slot with `hash` is there for certain: none looks like it, and none went on.
    #[inline(always)]
    pub fn is_absent(&self, hash: u64) -> bool {
        let bucket = &self.buckets[hash as usize & self.mask];
        bucket.lanes(!SLOT_MASK, tag(hash)) == 0 && bucket.0[ENTRIES as usize] == 0
    }

    /// Returns the slot among those with `hash` that `is_it` accepts.
    #[inline(always)]
    pub fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            let mut lanes = bucket.lanes(!SLOT_MASK, tag(hash));
            while lanes != 0 {
                let slot = (bucket.0[lanes.trailing_zeros() as usize & 15] & SLOT_MASK).wrapping_sub(1);
                if is_it(slot) {
                    return Some(slot);
                }
                lanes &= lanes - 1;
            }
            if bucket.0[ENTRIES as usize] == 0 {
                return None;
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    /// Adds a slot that is not there. There is room for half as many again as the index is for.
    pub fn insert(&mut self, hash: u64, slot: u32) {
        let mut at = hash as usize & self.mask;
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            let free = bucket.lanes(u32::MAX, 0);
            if free != 0 {
                bucket.0[free.trailing_zeros() as usize & 15] = tag(hash) | (slot + 1);
                return;
            }
            *bucket.went_on() += 1;
            at = (at + 1) & self.mask;
        }
    }

    /// Returns whether no slot is there, nor a trace of one.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|bucket| bucket.0 == [0; 16])
    }

    /// Forgets a slot that was added with this hash.
    pub fn remove(&mut self, hash: u64, slot: u32) {
        let wanted = tag(hash) | (slot + 1);
        let mut at = hash as usize & self.mask;
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            let lanes = bucket.lanes(u32::MAX, wanted);
            if lanes != 0 {
                bucket.0[lanes.trailing_zeros() as usize & 15] = 0;
                return;
            }
            *bucket.went_on() -= 1;
            at = (at + 1) & self.mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Full tables in which crowds of slots share a bucket, as a model of them says; an emptied index has no trace of them.
    #[test]
    fn crowds_are_found_and_leave_nothing_behind() {
        for limit in [1usize, 15, 16, 100, 800] {
            let mut index = Index::new(limit);
            let mut there = std::collections::BTreeMap::new();
            let mut state = 7u64;
            for round in 0..20 * limit as u64 + 200 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let slot = (state >> 33) as u32 % limit as u32;
                // Every third hash meets one of four, so that some buckets overflow by far.
                let crowd =
                    if slot.is_multiple_of(3) { u64::from(slot % 4) } else { u64::from(slot) << 27 | 5 };
                let hash = crowd.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                match there.remove(&slot) {
                    Some(hash) => index.remove(hash, slot),
                    None => {
                        index.insert(hash, slot);
                        there.insert(slot, hash);
                    }
                }
                if round % 256 == 0 || limit <= 16 {
                    for slot in 0..limit as u32 {
                        let hash = there.get(&slot).copied().unwrap_or(u64::from(slot % 4));
                        let found = index.find(hash, |it| it == slot);
                        assert_eq!(found.is_some(), there.contains_key(&slot), "{slot} of {limit}");
                        assert!(!(found.is_some() && index.is_absent(hash)), "{slot} of {limit}");
                        assert!(found.is_none() || index.likely(hash).is_some() || limit > 15);
                    }
                }
            }
            for (slot, hash) in there {
                index.remove(hash, slot);
            }
            assert!(index.is_empty() && index.is_absent(7));
        }
    }
}
