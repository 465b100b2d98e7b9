//! The flow table of one worker: a slab of entries and a hash index over it.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{Flow, FlowKey};
use crate::time::Nanos;

/// Flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    index: HashTable<u32>,
    slab: Vec<Option<Flow>>,
    free: Vec<u32>,
    limit: usize,
    hasher: FixedState,
    sweep: usize,
}

impl FlowTable {
    /// Returns an empty table for at most `limit` flows. `seed` decides the hash: a secret one keeps senders from choosing collisions.
    pub fn new(limit: usize, seed: u64) -> Self {
        Self {
            index: HashTable::new(),
            slab: Vec::new(),
            free: Vec::new(),
            limit: limit.min(u32::MAX as usize),
            hasher: FixedState::with_seed(seed),
            sweep: 0,
        }
    }

    /// Returns the number of flows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Returns the slot of the flow with `key`.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<u32> {
        let slab = &self.slab;
        let matches = |slot: &u32| slab[*slot as usize].as_ref().is_some_and(|flow| flow.key == *key);
        self.index.find(self.hasher.hash_one(key), matches).copied()
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
        if let Some(slot) = self.find(&flow.key) {
            self.slab[slot as usize] = Some(flow);
            return Some(slot);
        }
        if self.index.len() >= self.limit {
            return None;
        }
        let hash = self.hasher.hash_one(flow.key);
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
        let (slab, hasher) = (&self.slab, &self.hasher);
        let rehash = |slot: &u32| slab[*slot as usize].as_ref().map_or(0, |flow| hasher.hash_one(flow.key));
        self.index.insert_unique(hash, slot, rehash);
        Some(slot)
    }

    /// Forgets the flow in `slot`.
    pub fn remove(&mut self, slot: u32) {
        let Some(flow) = self.slab.get_mut(slot as usize).and_then(Option::take) else { return };
        if let Ok(entry) = self.index.find_entry(self.hasher.hash_one(flow.key), |at| *at == slot) {
            entry.remove();
        }
        self.free.push(slot);
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
