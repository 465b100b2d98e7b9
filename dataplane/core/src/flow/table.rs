//! The flow table of one worker: a slab of entries, an index over it, and a list of the flows that may be put out.
//!
//! The index is an open-addressed array with linear probing, at most half full; an entry is 8 bits of the hash beside a slot number. It is
//! our own because a known packet must be able to say "I shall look here" ahead of time ([`FlowTable::prefetch_index`],
//! [`FlowTable::prefetch_flow`]), which library maps do not offer. Both parts are reserved in full at the start, on huge pages where the
//! kernel has them: 8 to 16 bytes a possible flow for the index at once, the slab's pages as flows come. No packet ever pays for growth.
//!
//! **Who is put out for a new flow.** Flows whose other end has not answered, and connections that are over, stand in a list of the port
//! that opened them, oldest first.
//!
//! 1. A port with [`FlowTable::budget`] such flows, a quarter of the table, puts out its own oldest.
//! 2. In a full table the port with the most such flows puts out its oldest.
//! 3. In a full table of settled flows there is no room.
//!
//! So a conversation is never put out, and who scans or floods loses his own half-open flows first.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use margay_accel::{advise_huge_pages, prefetch_item};

use super::{Flow, FlowKey};
use crate::time::Nanos;
use crate::topology::PortIndex;

/// No slot: the end of a list.
const NIL: u32 = u32::MAX;
/// Stands in both links of a flow that is in no list.
pub(super) const UNLISTED: u32 = u32::MAX - 1;
/// Bits of an index entry that are the slot, plus one.
const SLOT_BITS: u32 = 24;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// The flows of one port that are not settled, oldest first.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    count: u32,
}

const EMPTY: List = List { first: NIL, last: NIL, count: 0 };

/// Flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    /// `hash high bits << 24 | slot + 1`, or zero.
    index: Vec<u32>,
    mask: usize,
    slab: Vec<Option<Flow>>,
    free: Vec<u32>,
    limit: usize,
    hasher: FixedState,
    sweep: usize,
    /// By index of the port.
    open: Vec<List>,
    evicted: u64,
}

#[inline(always)]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 & !SLOT_MASK
}

impl FlowTable {
    /// Most flows of one worker.
    pub const MOST: usize = SLOT_MASK as usize - 1;

    /// Returns an empty table for at most `limit` flows. `seed` decides the hash: a secret one keeps senders from choosing collisions.
    pub fn new(limit: usize, seed: u64) -> Self {
        let limit = limit.clamp(1, Self::MOST);
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
            open: Vec::new(),
            evicted: 0,
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

    /// Returns how many flows that are not settled one port may have.
    pub fn budget(&self) -> usize {
        (self.limit / 4).max(1)
    }

    /// Returns how many flows were put out for new ones.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Returns how many flows that are not settled `port` has.
    pub fn unsettled(&self, port: PortIndex) -> usize {
        self.open.get(usize::from(port.0)).map_or(0, |list| list.count as usize)
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
        let entry = self.index[hash as usize & self.mask];
        if entry & !SLOT_MASK == tag(hash) {
            prefetch_item(&self.slab, ((entry & SLOT_MASK) as usize).wrapping_sub(1));
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
            let slot = (entry & SLOT_MASK) - 1;
            if entry & !SLOT_MASK == tag(hash) && self.flow(slot).is_some_and(|flow| flow.key() == *key) {
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

    /// Returns the flow in `slot` for changing. Say [`FlowTable::resort`] when [`Flow::is_misplaced`].
    #[inline]
    pub fn flow_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slab.get_mut(slot as usize)?.as_mut()
    }

    /// Adds `flow`, in place of one with the same key. Returns its slot, or `None` when there is no room (see the module).
    pub fn insert(&mut self, flow: Flow) -> Option<u32> {
        let key = flow.key();
        let hash = self.hash(&key);
        let (port, settled) = (flow.port, flow.is_settled());
        if let Some(slot) = self.find(&key, hash) {
            self.unlist(slot);
            self.slab[slot as usize] = Some(flow);
            if !settled {
                self.list(slot, port);
            }
            return Some(slot);
        }
        if !settled && self.unsettled(port) >= self.budget() {
            self.evict(usize::from(port.0));
        }
        if self.len() >= self.limit {
            let most = (0..self.open.len()).max_by_key(|port| self.open[*port].count)?;
            if !self.evict(most) {
                return None;
            }
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
        self.index[at] = tag(hash) | (slot + 1);
        if !settled {
            self.list(slot, port);
        }
        Some(slot)
    }

    /// Puts out the oldest flow of a port that is not settled; `false` when there is none.
    fn evict(&mut self, port: usize) -> bool {
        let Some(first) = self.open.get(port).map(|list| list.first).filter(|first| *first != NIL) else {
            return false;
        };
        self.remove(first);
        self.evicted += 1;
        true
    }

    /// Forgets the flow in `slot`.
    pub fn remove(&mut self, slot: u32) {
        self.unlist(slot);
        let Some(flow) = self.slab.get_mut(slot as usize).and_then(Option::take) else { return };
        self.free.push(slot);
        let hash = self.hash(&flow.key());
        let wanted = tag(hash) | (slot + 1);
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
            let Some(flow) = self.flow((entry & SLOT_MASK) - 1) else { continue };
            let home = self.hash(&flow.key()) as usize & self.mask;
            let from_home = at.wrapping_sub(home) & self.mask;
            let from_hole = at.wrapping_sub(hole) & self.mask;
            if from_home >= from_hole {
                self.index[hole] = entry;
                hole = at;
            }
        }
        self.index[hole] = 0;
    }

    /// Takes the flow in `slot` out of those that may be put out, or behind the last of them, as its state says.
    #[cold]
    pub fn resort(&mut self, slot: u32) {
        let Some(flow) = self.flow(slot) else { return };
        let (port, settled, listed) = (flow.port, flow.is_settled(), flow.is_listed());
        match (settled, listed) {
            (true, true) => self.unlist(slot),
            (false, false) => self.list(slot, port),
            _ => {}
        }
    }

    fn list(&mut self, slot: u32, port: PortIndex) {
        let at = usize::from(port.0);
        if self.open.len() <= at {
            self.open.resize(at + 1, EMPTY);
        }
        let last = self.open[at].last;
        if let Some(flow) = self.flow_mut(slot) {
            flow.links = [last, NIL];
        }
        match self.flow_mut(last) {
            Some(before) => before.links[1] = slot,
            None => self.open[at].first = slot,
        }
        self.open[at].last = slot;
        self.open[at].count += 1;
    }

    fn unlist(&mut self, slot: u32) {
        let Some(flow) = self.flow_mut(slot).filter(|flow| flow.is_listed()) else { return };
        let (at, [before, after]) = (usize::from(flow.port.0), flow.links);
        flow.links = [UNLISTED; 2];
        match self.flow_mut(before) {
            Some(flow) => flow.links[1] = after,
            None => self.open[at].first = after,
        }
        match self.flow_mut(after) {
            Some(flow) => flow.links[0] = before,
            None => self.open[at].last = before,
        }
        self.open[at].count -= 1;
    }

    /// Forgets flows whose time is over, looking at `budget` slots from where the last call stopped.
    pub fn expire(&mut self, now: Nanos, budget: usize) {
        for _ in 0..budget.min(self.slab.len()) {
            if self.sweep >= self.slab.len() {
                self.sweep = 0;
            }
            if self.slab[self.sweep].as_ref().is_some_and(|flow| flow.is_over(now)) {
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
mod tests;
