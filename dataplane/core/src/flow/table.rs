//! The flow table of one worker: a slab of entries and an index over it.
//!
//! The index is an open-addressed array with linear probing, at most half full; an entry is 32 bits of the hash beside a slot number.
//! It is our own because a known packet must be able to say "I shall look here" ahead of time ([`FlowTable::prefetch_index`],
//! [`FlowTable::prefetch_flow`]), which library maps do not offer. Both parts are reserved in full at the start, on huge pages where the
//! kernel has them: 16 bytes a possible flow for the index at once, the slab's pages as flows come. No packet ever pays for growth.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use margay_accel::{advise_huge_pages, prefetch_item};

use super::{Flow, FlowKey};
use crate::time::Nanos;

/// Flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    /// `hash high half << 32 | slot + 1`, or zero.
    index: Vec<u64>,
    mask: usize,
    slab: Vec<Option<Flow>>,
    free: Vec<u32>,
    limit: usize,
    hasher: FixedState,
    sweep: usize,
}

fn entry(hash: u64, slot: u32) -> u64 {
    (hash & !0xffff_ffff) | (u64::from(slot) + 1)
}

impl FlowTable {
    /// Returns an empty table for at most `limit` flows. `seed` decides the hash: a secret one keeps senders from choosing collisions.
    pub fn new(limit: usize, seed: u64) -> Self {
        let limit = limit.clamp(1, 1 << 30);
        let size = (limit * 2).next_power_of_two();
        let (mut index, mut slab) = (Vec::with_capacity(size), Vec::with_capacity(limit));
        advise_huge_pages(index.spare_capacity_mut());
        advise_huge_pages(slab.spare_capacity_mut());
        index.resize(size, 0);
        Self {
            index,
            mask: size - 1,
            slab,
            free: Vec::new(),
            limit,
            hasher: FixedState::with_seed(seed),
            sweep: 0,
        }
    }

    /// Returns the number of flows.
    pub fn len(&self) -> usize {
        self.slab.len() - self.free.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the hash of `key` in this table.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Brings near where the index is looked up for `hash`.
    #[inline]
    pub fn prefetch_index(&self, hash: u64) {
        prefetch_item(&self.index, hash as usize & self.mask);
    }

    /// Brings near the flow that `hash` most likely means.
    #[inline]
    pub fn prefetch_flow(&self, hash: u64) {
        let at = self.index[hash as usize & self.mask];
        if at >> 32 == hash >> 32 {
            prefetch_item(&self.slab, (at as u32).wrapping_sub(1) as usize);
        }
    }

    /// Returns the slot of the flow with `key`, whose hash is `hash`.
    #[inline]
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        loop {
            let entry = self.index[at];
            if entry == 0 {
                return None;
            }
            let slot = entry as u32 - 1;
            if entry >> 32 == hash >> 32 && self.flow(slot).is_some_and(|flow| flow.key == *key) {
                return Some(slot);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Returns the flow in `slot`.
    #[inline]
    pub fn flow(&self, slot: u32) -> Option<&Flow> {
        self.slab.get(slot as usize)?.as_ref()
    }

    /// Returns the flow in `slot` for changing; its key must stay.
    #[inline]
    pub fn flow_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slab.get_mut(slot as usize)?.as_mut()
    }

    /// Adds `flow`, in place of one with the same key. Returns its slot, or `None` when the table is full.
    pub fn insert(&mut self, flow: Flow) -> Option<u32> {
        let hash = self.hash(&flow.key);
        if let Some(slot) = self.find(&flow.key, hash) {
            self.slab[slot as usize] = Some(flow);
            return Some(slot);
        }
        if self.len() >= self.limit {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slab[slot as usize] = Some(flow);
                slot
            }
            None => {
                self.slab.push(Some(flow));
                (self.slab.len() - 1) as u32
            }
        };
        let mut at = hash as usize & self.mask;
        while self.index[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.index[at] = entry(hash, slot);
        Some(slot)
    }

    /// Forgets the flow in `slot`.
    pub fn remove(&mut self, slot: u32) {
        let Some(flow) = self.slab.get_mut(slot as usize).and_then(Option::take) else { return };
        self.free.push(slot);
        let hash = self.hash(&flow.key);
        let wanted = entry(hash, slot);
        let mut hole = hash as usize & self.mask;
        while self.index[hole] != wanted {
            if self.index[hole] == 0 {
                return;
            }
            hole = (hole + 1) & self.mask;
        }
        // Entries behind the hole that may stand in it move up, so that no search ends too early (Knuth, TAOCP 3, 6.4 R).
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let entry = self.index[at];
            if entry == 0 {
                break;
            }
            let Some(flow) = self.flow(entry as u32 - 1) else { continue };
            let home = self.hash(&flow.key) as usize & self.mask;
            let from_home = at.wrapping_sub(home) & self.mask;
            let from_hole = at.wrapping_sub(hole) & self.mask;
            if from_home >= from_hole {
                self.index[hole] = entry;
                hole = at;
            }
        }
        self.index[hole] = 0;
    }

    /// Forgets flows whose time is over, looking at `budget` slots from where the last call stopped.
    pub fn expire(&mut self, now: Nanos, budget: usize) {
        for _ in 0..budget.min(self.slab.len()) {
            if self.sweep >= self.slab.len() {
                self.sweep = 0;
            }
            if self.slab[self.sweep].as_ref().is_some_and(|flow| flow.expires <= now) {
                self.remove(self.sweep as u32);
            }
            self.sweep += 1;
        }
    }

    /// Returns the number of slots, used or free: the end of a walk by slot.
    pub fn slots(&self) -> usize {
        self.slab.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Arrival, JudgedBy, Side, State};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr};

    fn flow(number: u16) -> Flow {
        let end = |last: u8, port| (IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), port);
        let (key, opener) = FlowKey::new(end(1, number), end(2, 80), 17);
        Flow {
            key,
            expires: Nanos(u64::from(number)),
            opener,
            state: State::Other { answered: false },
            approved: true,
            second: false,
            paths: [None; 2],
            snapshot: Default::default(),
            topology: 0,
            packets: [0; 2],
            bytes: [0; 2],
            arrivals: [Arrival::default(); 2],
            icmp: None,
            judged_by: JudgedBy::default(),
            refusal: None,
        }
    }

    #[test]
    fn a_full_table_says_so_and_takes_again_after_a_removal() {
        let mut table = FlowTable::new(4, 1);
        let slots: Vec<_> = (0..4).map(|n| table.insert(flow(n)).expect("room")).collect();
        assert_eq!(table.insert(flow(9)), None);
        assert_eq!(table.insert(flow(2)), Some(slots[2]), "the same key replaces");
        table.remove(slots[1]);
        assert_eq!(table.len(), 3);
        assert!(table.insert(flow(9)).is_some());
        assert_eq!(flow(0).opener, Side::Low);
    }

    proptest! {
        /// Any sequence of insertions, removals and expiries leaves what a map would hold, in a table small enough to collide.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0u8..3, 0u16..24), 0..300), seed in any::<u64>()) {
            let mut table = FlowTable::new(16, seed);
            let mut map: BTreeMap<u16, ()> = BTreeMap::new();
            for (step, number) in steps {
                match step {
                    0 => {
                        let fits = map.len() < 16 || map.contains_key(&number);
                        prop_assert_eq!(table.insert(flow(number)).is_some(), fits);
                        if fits {
                            map.insert(number, ());
                        }
                    }
                    1 => {
                        let key = flow(number).key;
                        if let Some(slot) = table.find(&key, table.hash(&key)) {
                            table.remove(slot);
                        }
                        map.remove(&number);
                    }
                    _ => {
                        table.expire(Nanos(u64::from(number)), 16);
                        map.retain(|n, ()| u64::from(*n) > u64::from(number));
                    }
                }
                prop_assert_eq!(table.len(), map.len());
                for n in 0..24 {
                    let key = flow(n).key;
                    prop_assert_eq!(table.find(&key, table.hash(&key)).is_some(), map.contains_key(&n));
                }
            }
        }
    }
}
