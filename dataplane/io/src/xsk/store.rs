//! Where every chunk is, and the free ones.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use super::queue::FrameDesc;
use super::umem::Umem;
use super::{Chunks, FREE, HELD, SocketSlot, UmemFrame, UmemHandle, filled_by, sent_by};
use crate::depot::Depot;
use crate::panics::Witness;
use crate::rings::MemoryId;

/// Free chunks that change workers together.
const MAGAZINE: usize = 64;
/// Free chunks that a worker keeps to itself.
const KEPT: usize = 4 * MAGAZINE;

/// The chunks of one UMEM, where each of them is, and the free ones that no worker has at hand.
#[derive(Debug)]
pub struct Store {
    id: MemoryId,
    pub(super) chunk_size: usize,
    /// The descriptor of each chunk as the UMEM's maker gave it.
    descriptors: Box<[FrameDesc]>,
    pub(super) places: Box<[AtomicU16]>,
    depot: Depot,
}

impl Store {
    /// Returns the table of the shared memory, with every chunk free.
    pub fn new(handle: &UmemHandle, chunks: Chunks) -> Arc<Self> {
        Self::of(MemoryId::SHARED, handle, chunks)
    }

    /// Returns the table of the memory `id`, with every chunk free.
    pub fn of(id: MemoryId, handle: &UmemHandle, chunks: Chunks) -> Arc<Self> {
        let count = chunks.0.len() as u32;
        let depot = Depot::new(count);
        // The first chunk is taken first.
        let all: Vec<u32> = (0..count).rev().collect();
        for magazine in all.chunks(MAGAZINE) {
            depot.push(magazine);
        }
        Arc::new(Self {
            id,
            chunk_size: handle.chunk_size as usize,
            descriptors: chunks.0.into_boxed_slice(),
            places: (0..count).map(|_| AtomicU16::new(FREE)).collect(),
            depot,
        })
    }

    /// Returns which memory it is.
    pub fn id(&self) -> MemoryId {
        self.id
    }

    /// Returns how many chunks are free, held, given to the kernel to receive into, and given to it to send: all workers' together.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for place in &self.places {
            match place.load(Relaxed) {
                FREE => census.free += 1,
                HELD => census.held += 1,
                kernel if kernel % 2 == 0 => census.fill += 1,
                _ => census.transmit += 1,
            }
        }
        census
    }

    /// Returns how many free chunks are at no worker's hand.
    pub fn in_depot(&self) -> usize {
        self.depot.held()
    }

    /// Returns whether nobody has a chunk any more.
    pub fn is_at_rest(&self) -> bool {
        self.places.iter().all(|place| place.load(Relaxed) == FREE)
    }
}

/// A worker's way to the chunks, and the free ones that it has at hand. Belongs to one thread.
#[derive(Debug)]
pub struct Pool {
    pub(super) umem: Umem,
    pub(super) store: Arc<Store>,
    free: RefCell<Vec<u32>>,
    pub(super) witness: Rc<Witness>,
}

impl Pool {
    /// Returns the pool of the only worker.
    pub fn new(handle: &UmemHandle, chunks: Chunks) -> Rc<Self> {
        Self::of(handle, Store::new(handle, chunks))
    }

    /// Returns a worker's pool over the chunks of `handle`'s UMEM.
    pub fn of(handle: &UmemHandle, store: Arc<Store>) -> Rc<Self> {
        Self::with(handle, store, Rc::default())
    }

    /// Returns the same worker's pool over the chunks of another memory.
    pub fn beside(&self, handle: &UmemHandle, store: Arc<Store>) -> Rc<Self> {
        Self::with(handle, store, Rc::clone(&self.witness))
    }

    fn with(handle: &UmemHandle, store: Arc<Store>, witness: Rc<Witness>) -> Rc<Self> {
        let free = RefCell::new(Vec::with_capacity(KEPT + 1));
        Rc::new(Self { umem: handle.umem.clone(), store, free, witness })
    }

    /// Returns which memory its chunks are of.
    pub fn id(&self) -> MemoryId {
        self.store.id
    }

    /// Takes a free chunk as an empty frame.
    pub fn spare(self: &Rc<Self>) -> Option<UmemFrame> {
        Some(UmemFrame::new(self.take(HELD)?, self))
    }

    /// Returns what frames of this worker saw of a panic since the last call.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// As [`Store::census`].
    pub fn census(&self) -> Census {
        self.store.census()
    }

    /// Frees the chunks that a closed socket had to receive into. Call it after the socket is closed, not before.
    pub fn reclaim_filled(&self, slot: SocketSlot) -> usize {
        self.reclaim(filled_by(slot))
    }

    /// Frees the chunks that a closed socket had to send. Call it a second after the socket is closed.
    pub fn reclaim_sent(&self, slot: SocketSlot) -> usize {
        self.reclaim(sent_by(slot))
    }

    fn reclaim(&self, place: u16) -> usize {
        let mut freed = 0;
        for (index, at) in self.store.places.iter().enumerate() {
            if at.load(Relaxed) == place {
                self.release(index);
                freed += 1;
            }
        }
        freed
    }

    pub(super) fn release(&self, index: usize) {
        self.store.places[index].store(FREE, Relaxed);
        let mut free = self.free.borrow_mut();
        free.push(index as u32);
        if free.len() > KEPT {
            // Those that were used longest ago go.
            self.store.depot.push(&free[..MAGAZINE]);
            free.drain(..MAGAZINE);
        }
    }

    /// Frees the chunk of a descriptor.
    pub(super) fn release_of(&self, descriptor: &FrameDesc) {
        self.release(descriptor.addr() / self.store.chunk_size);
    }

    /// Takes a free chunk to `place`.
    pub(super) fn take(&self, place: u16) -> Option<FrameDesc> {
        let mut free = self.free.borrow_mut();
        if free.is_empty() {
            self.store.depot.pop(&mut free);
        }
        let index = free.pop()? as usize;
        self.store.places[index].store(place, Relaxed);
        Some(self.store.descriptors[index])
    }

    /// Moves the chunk of a kernel's descriptor from `place` to `to`; `None` when it was not there.
    pub(super) fn hand_over(&self, descriptor: &FrameDesc, place: u16, to: u16) -> Option<usize> {
        let index = descriptor.addr() / self.store.chunk_size;
        let at = self.store.places.get(index)?;
        // No race: a chunk that is at the kernel by our socket has no other writer than this thread.
        if at.load(Relaxed) != place {
            return None;
        }
        at.store(to, Relaxed);
        Some(index)
    }

    pub(super) fn room(&self, descriptor: &FrameDesc) -> usize {
        self.store.chunk_size - descriptor.addr() % self.store.chunk_size
    }

    /// Returns how many bytes of a packet each of its free chunks takes.
    pub(super) fn room_of_each(&self) -> usize {
        self.store.descriptors.first().map_or(0, |chunk| self.room(chunk))
    }

    /// Returns how many free chunks this worker keeps to itself.
    pub fn at_hand(&self) -> usize {
        self.free.borrow().len()
    }

    /// As [`Store::in_depot`].
    pub fn in_depot(&self) -> usize {
        self.store.in_depot()
    }

    /// Returns about how many chunks are free for this worker to take.
    pub(super) fn available(&self) -> usize {
        self.at_hand() + self.in_depot()
    }
}

/// Where the chunks are; the four numbers always sum up to all chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Nobody's.
    pub free: usize,
    /// Held by our code as frames.
    pub held: usize,
    /// With the kernel, to receive into.
    pub fill: usize,
    /// With the kernel, to be sent.
    pub transmit: usize,
}

impl std::ops::AddAssign for Census {
    fn add_assign(&mut self, other: Self) {
        self.free += other.free;
        self.held += other.held;
        self.fill += other.fill;
        self.transmit += other.transmit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_last_is_popped_first_and_in_order() {
        let depot = Depot::new(10);
        depot.push(&[7, 3, 9]);
        depot.push(&[]);
        depot.push(&[4]);
        assert_eq!(depot.held(), 4);
        let mut popped = vec![1];
        assert_eq!(depot.pop(&mut popped), 1);
        depot.push(&[0, 2]);
        assert_eq!((depot.pop(&mut popped), depot.pop(&mut popped)), (2, 3));
        assert_eq!(popped, [1, 4, 0, 2, 7, 3, 9]);
        assert_eq!((depot.pop(&mut popped), depot.held()), (0, 0));
    }
}
