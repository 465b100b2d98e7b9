//! The flow table of one worker: a slab of entries, an index over it, and a list of the flows that may be put out.
//!
//! The index is [`super::index`]. Both parts are reserved in full at the start, on huge pages where the kernel has them: 6.4 to 12.8
//! bytes a possible flow for the index at once, the slab's pages as flows come. No packet ever pays for growth.
//!
//! **Who is put out for a new flow.** Flows whose other end has not answered, and connections that are over, stand in a list of the port
//! that opened them, oldest first.
//!
//! 1. A port with [`FlowTable::budget`] such flows, a quarter of the table, puts out its own oldest.
//! 2. In a full table the port with the most such flows puts out its oldest.
//! 3. A port with [`FlowTable::share`] flows of any kind, seven eighths of the table, puts out its own oldest, or gets no more.
//! 4. In a full table of settled flows there is no room.
//!
//! So a conversation is never put out, who scans or floods loses his own half-open flows first, and a pod whose partner answers everything
//! leaves room for the others.

use std::hash::BuildHasher;

use foldhash::fast::SeedableRandomState;
use margay_accel::{advise_huge_pages, prefetch_item_lines};

use super::index::{Index, MOST};
use super::{Beginning, Flow, FlowKey, LISTED, Opening};
use crate::time::Nanos;
use crate::topology::PortIndex;

/// No slot: the end of a list.
const NIL: u32 = u32::MAX;

/// The flows of one port: those that are not settled, oldest first, and how many there are of either kind.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    count: u32,
    total: u32,
    /// One that is put out soon, of which everything before it was asked for; hints both.
    ahead: u32,
    /// How many are between the first and it.
    lead: u32,
}

const EMPTY: List = List { first: NIL, last: NIL, count: 0, total: 0, ahead: NIL, lead: 0 };

/// By how many evictions what they touch is asked for ahead: two microseconds, and few lines.
const LEAD: u32 = 8;

/// Flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    index: Index,
    slab: Vec<Option<Flow>>,
    free: Vec<u32>,
    limit: usize,
    hasher: SeedableRandomState,
    sweep: usize,
    /// By index of the port.
    open: Vec<List>,
    evicted: u64,
}

impl FlowTable {
    /// Most flows of one worker.
    pub const MOST: usize = MOST;

    /// Returns an empty table for at most `limit` flows. `seed` decides the hash: a secret one keeps senders from choosing collisions.
    pub fn new(limit: usize, seed: u64) -> Self {
        let limit = limit.clamp(1, Self::MOST);
        let mut slab = Vec::with_capacity(limit);
        advise_huge_pages(slab.spare_capacity_mut());
        Self {
            index: Index::new(limit),
            slab,
            free: Vec::new(),
            limit,
            hasher: crate::secret::hasher(seed),
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

    /// Returns how many flows one port may have.
    pub fn share(&self) -> usize {
        (self.limit - self.limit / 8).max(1)
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
    #[inline(always)]
    pub fn prefetch_index(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Returns the slot that `hash` most likely means, and brings its flow near: as much of it as a packet with this key needs, or `all`.
    #[inline(always)]
    pub fn prefetch_flow(&self, key: &FlowKey, hash: u64, all: bool) -> Option<u32> {
        let slot = self.index.likely(hash)?;
        prefetch_item_lines(&self.slab, slot as usize, if key.is_v4() && !all { 1 } else { 2 });
        Some(slot)
    }

    /// Returns the slot of the flow with `key`, whose hash is `hash`.
    #[inline]
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<u32> {
        self.index.find(hash, |slot| self.is(slot, key))
    }

    /// Returns whether the flow with `key` is in `slot`.
    #[inline(always)]
    pub fn is(&self, slot: u32, key: &FlowKey) -> bool {
        self.flow(slot).is_some_and(|flow| flow.has_key(key))
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
        let Some(slot) = self.find(&key, hash) else {
            let slot = self.make_room(port, settled)?;
            self.slab[slot as usize] = Some(flow);
            self.keep_hash(slot, hash);
            self.enter(slot, hash, port, settled);
            return Some(slot);
        };
        self.unlist(slot);
        if let Some(old) = self.flow(slot) {
            let old = old.port;
            self.of(old).total -= 1;
        }
        self.of(port).total += 1;
        self.slab[slot as usize] = Some(flow);
        self.keep_hash(slot, hash);
        if !settled {
            self.list(slot, port);
        }
        Some(slot)
    }

    /// Adds the flow that begins so, whose key is not in the table and has this hash. Returns its slot, or `None` when there is no room.
    pub fn open(&mut self, opening: &Opening, hash: u64) -> Option<u32> {
        debug_assert!(self.find(&opening.key, hash).is_none(), "a flow is there once");
        let slot = self.make_room(opening.port, opening.state.is_settled())?;
        // Written where it stays: it is two cache lines.
        self.slab[slot as usize] = Some(Flow::new(opening));
        self.keep_hash(slot, hash);
        self.enter(slot, hash, opening.port, opening.state.is_settled());
        Some(slot)
    }

    /// Returns whether no flow whose key has this hash is here, for certain.
    #[inline(always)]
    pub fn is_absent(&self, hash: u64) -> bool {
        self.index.is_absent(hash)
    }

    /// As [`FlowTable::open`], for a flow that is `like` another but for what it begins with, and not settled.
    #[inline]
    pub fn open_like(&mut self, like: &Flow, beginning: &Beginning, hash: u64) -> Option<u32> {
        let slot = self.make_room(like.port, false)?;
        // Copied as a whole from where it was written long ago, then completed in place: nothing waits for a store.
        let flow = self.slab.get_mut(slot as usize)?.insert(*like);
        flow.begin(beginning, hash);
        self.enter(slot, hash, like.port, false);
        Some(slot)
    }

    /// Returns an empty slot for a flow of `port`, which may put another out.
    fn make_room(&mut self, port: PortIndex, settled: bool) -> Option<u32> {
        if !settled && self.unsettled(port) >= self.budget() {
            self.evict(usize::from(port.0));
        }
        let total = self.open.get(usize::from(port.0)).map_or(0, |list| list.total as usize);
        if total >= self.share() && !self.evict(usize::from(port.0)) {
            return None;
        }
        if self.len() >= self.limit {
            let most = self.most()?;
            if !self.evict(most) {
                return None;
            }
        }
        Some(self.free.pop().unwrap_or_else(|| {
            self.slab.push(None);
            (self.slab.len() - 1) as u32
        }))
    }

    fn keep_hash(&mut self, slot: u32, hash: u64) {
        if let Some(flow) = self.flow_mut(slot) {
            flow.keep_hash(hash);
        }
    }

    /// Makes the flow in `slot` one that is found.
    fn enter(&mut self, slot: u32, hash: u64, port: PortIndex, settled: bool) {
        self.index.insert(hash, slot);
        self.of(port).total += 1;
        if !settled {
            self.list(slot, port);
        }
    }

    /// Returns the port with the most flows that are not settled.
    fn most(&self) -> Option<usize> {
        (0..self.open.len()).max_by_key(|port| self.open[*port].count)
    }

    /// Puts out the oldest flow of a port that is not settled; `false` when there is none.
    fn evict(&mut self, port: usize) -> bool {
        let Some(first) = self.open.get(port).map(|list| list.first).filter(|first| *first != NIL) else {
            return false;
        };
        self.look_ahead(port);
        self.remove(first);
        self.evicted += 1;
        true
    }

    /// Brings near what the evictions after the next ones touch.
    #[inline]
    fn look_ahead(&mut self, port: usize) {
        let List { first, mut ahead, lead, .. } = self.open[port];
        let mut lead = lead.saturating_sub(1);
        // Two steps for one eviction, until it is as far ahead as it should be.
        for _ in 0..2 {
            if lead >= LEAD {
                break;
            }
            let of_this_list = |flow: &&Flow| flow.is_listed() && usize::from(flow.port.0) == port;
            let Some(flow) = self.flow(ahead).filter(of_this_list) else {
                (ahead, lead) = (first, 0);
                continue;
            };
            self.index.prefetch(self.hash_of(flow));
            // Flows of a flood stand in the order in which they came.
            prefetch_item_lines(&self.slab, (ahead + LEAD) as usize, 2);
            (ahead, lead) = (flow.links[1], lead + 1);
        }
        let list = &mut self.open[port];
        (list.ahead, list.lead) = (ahead, lead);
    }

    /// Returns the hash of the key of a flow in this table.
    #[inline(always)]
    fn hash_of(&self, flow: &Flow) -> u64 {
        flow.kept_hash().unwrap_or_else(|| self.hash(&flow.key()))
    }

    /// Forgets the flow in `slot`.
    pub fn remove(&mut self, slot: u32) {
        self.unlist(slot);
        let Some(flow) = self.flow(slot) else { return };
        let (hash, port) = (self.hash_of(flow), flow.port);
        self.of(port).total -= 1;
        self.slab[slot as usize] = None;
        self.free.push(slot);
        self.index.remove(hash, slot);
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

    fn of(&mut self, port: PortIndex) -> &mut List {
        let at = usize::from(port.0);
        if self.open.len() <= at {
            self.open.resize(at + 1, EMPTY);
        }
        &mut self.open[at]
    }

    fn list(&mut self, slot: u32, port: PortIndex) {
        let at = usize::from(port.0);
        self.of(port);
        let last = self.open[at].last;
        if let Some(flow) = self.flow_mut(slot) {
            flow.links = [last, NIL];
            flow.marks |= LISTED;
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
        flow.marks &= !LISTED;
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
