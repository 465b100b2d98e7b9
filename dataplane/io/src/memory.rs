//! The rings in plain memory: the worker's loop without a kernel, for tests and benches.
//!
//! A [`Wire`] is one direction of a cable: bytes go in at one end and wait for the port at the other. Frames come from a pool of fixed
//! size and go back to it, so a test can count that none is lost. Completions come one [`Rings::complete`] late, as on real rings.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use margay_core::Frame;

use crate::exchange::Pass;
use crate::rings::{Crossings, LEAST, MemoryId, PortGone, Rings};

/// Packets on their way in one direction.
pub type Wire = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// Frames of one size, and the free ones among them.
#[derive(Debug)]
pub struct MemoryPool {
    id: MemoryId,
    free: RefCell<Vec<Box<[u8]>>>,
    total: usize,
    /// Bytes of a frame.
    size: usize,
}

impl MemoryPool {
    /// Returns a shared pool of `count` frames of `size` bytes.
    pub fn new(count: usize, size: usize) -> Rc<Self> {
        Self::of(MemoryId::SHARED, count, size)
    }

    /// Returns the pool of another memory.
    pub fn of(id: MemoryId, count: usize, size: usize) -> Rc<Self> {
        let free = (0..count).map(|_| vec![0u8; size].into_boxed_slice()).collect();
        Rc::new(Self { id, free: RefCell::new(free), total: count, size })
    }

    /// Returns the number of free frames.
    pub fn free(&self) -> usize {
        self.free.borrow().len()
    }

    /// Returns the number of all frames.
    pub fn total(&self) -> usize {
        self.total
    }
}

/// A frame of a [`MemoryPool`]; dropping it gives it back.
#[derive(Debug)]
pub struct PooledFrame {
    buffer: Box<[u8]>,
    len: usize,
    pool: Rc<MemoryPool>,
}

impl PooledFrame {
    fn take(pool: &Rc<MemoryPool>) -> Option<Self> {
        let buffer = pool.free.borrow_mut().pop()?;
        Some(Self { buffer, len: 0, pool: Rc::clone(pool) })
    }
}

impl Drop for PooledFrame {
    fn drop(&mut self) {
        // An empty buffer is that of a frame which has left for another worker.
        if !self.buffer.is_empty() {
            self.pool.free.borrow_mut().push(std::mem::take(&mut self.buffer));
        }
    }
}

/// The memory of a [`PooledFrame`] on its way to another worker; whoever drops it takes the memory out of every pool.
#[derive(Debug)]
pub struct LooseMemory {
    buffer: Box<[u8]>,
    len: usize,
}

impl Pass for Rc<MemoryPool> {
    type Frame = PooledFrame;
    type Loose = LooseMemory;

    fn loosen(&self, mut frame: PooledFrame) -> LooseMemory {
        let buffer = std::mem::take(&mut frame.buffer);
        LooseMemory { buffer, len: frame.len }
    }

    fn fasten(&self, loose: LooseMemory) -> PooledFrame {
        PooledFrame { buffer: loose.buffer, len: loose.len, pool: Rc::clone(self) }
    }

    fn spare(&self) -> Option<PooledFrame> {
        PooledFrame::take(self)
    }
}

impl Frame for PooledFrame {
    fn data(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }

    fn capacity(&self) -> usize {
        self.buffer.len()
    }

    fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.buffer.len();
        if fits {
            self.len = len;
        }
        fits
    }
}

/// One port of a worker, in memory.
#[derive(Debug)]
pub struct MemoryRings {
    pool: Rc<MemoryPool>,
    incoming: Wire,
    outgoing: Wire,
    fill: VecDeque<PooledFrame>,
    transmit: VecDeque<PooledFrame>,
    sent: Vec<PooledFrame>,
    ring_size: usize,
    lost: u64,
    lost_before: u64,
    gone: bool,
    crossings: Crossings,
}

impl MemoryRings {
    /// Returns a port that receives from `incoming` and sends to `outgoing`, with rings of `ring_size` entries.
    pub fn new(pool: &Rc<MemoryPool>, incoming: &Wire, outgoing: &Wire, ring_size: usize) -> Self {
        Self {
            pool: Rc::clone(pool),
            incoming: Rc::clone(incoming),
            outgoing: Rc::clone(outgoing),
            fill: VecDeque::new(),
            transmit: VecDeque::new(),
            sent: Vec::new(),
            ring_size,
            lost: 0,
            lost_before: 0,
            gone: false,
            crossings: Crossings::default(),
        }
    }

    /// Copies a packet of another pool into this one; `None` when no frame is free. It fits.
    fn bring_across(&mut self, packet: &PooledFrame) -> Option<PooledFrame> {
        let mut copy = PooledFrame::take(&self.pool)?;
        copy.set_len(packet.len);
        copy.data_mut().copy_from_slice(packet.data());
        self.crossings.packets += 1;
        self.crossings.bytes += packet.len as u64;
        Some(copy)
    }

    /// Takes the device away, as the kernel does when a pod ends.
    pub fn unplug(&mut self) {
        self.gone = true;
    }

    /// Returns how many packets found no frame to be received into, or were larger than one.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl Rings for MemoryRings {
    type Frame = PooledFrame;

    fn poll_rx(&mut self, out: &mut Vec<PooledFrame>, budget: usize) -> usize {
        let mut count = 0;
        while count < budget && !self.gone {
            let Some(packet) = self.incoming.borrow_mut().pop_front() else { break };
            let Some(mut frame) = self.fill.pop_front() else {
                self.lost += 1;
                continue;
            };
            if !frame.set_len(packet.len()) {
                self.lost += 1;
                self.fill.push_back(frame);
                continue;
            }
            frame.data_mut().copy_from_slice(&packet);
            out.push(frame);
            count += 1;
        }
        count
    }

    fn submit_tx(&mut self, frames: &mut Vec<PooledFrame>) -> usize {
        let room = self.ring_size.saturating_sub(self.transmit.len());
        let (mut count, mut taken) = (0, 0);
        while count < frames.len().min(room) {
            let packet = &frames[count];
            let ours = Rc::ptr_eq(&packet.pool, &self.pool);
            if !ours && packet.len > self.pool.size {
                self.crossings.too_large += 1;
                self.crossings.too_large_bytes += packet.len as u64;
                frames.remove(count);
                taken += 1;
                continue;
            }
            if !ours {
                let Some(copy) = self.bring_across(&frames[count]) else { break };
                frames[count] = copy;
            }
            count += 1;
        }
        self.transmit.extend(frames.drain(..count));
        count + taken
    }

    fn complete(&mut self) -> usize {
        let count = self.sent.len();
        self.sent.clear();
        count
    }

    fn refill(&mut self, count: usize) -> usize {
        let mut given = 0;
        while given < count && self.fill.len() < self.ring_size {
            let Some(frame) = PooledFrame::take(&self.pool) else { break };
            self.fill.push_back(frame);
            given += 1;
        }
        given
    }

    fn wakeup(&mut self) -> Result<(), PortGone> {
        if self.gone {
            return Err(PortGone("unplugged".to_owned()));
        }
        for frame in self.transmit.drain(..) {
            self.outgoing.borrow_mut().push_back(frame.data().to_vec());
            self.sent.push(frame);
        }
        Ok(())
    }

    fn filled(&self) -> usize {
        self.fill.len()
    }

    fn unused(&mut self) -> usize {
        self.fill.len().saturating_sub(self.incoming.borrow().len())
    }

    fn least(&self) -> usize {
        LEAST
    }

    fn starved(&mut self) -> bool {
        self.lost > std::mem::replace(&mut self.lost_before, self.lost)
    }

    fn in_flight(&self) -> usize {
        self.transmit.len() + self.sent.len()
    }

    fn pool(&self) -> (usize, usize) {
        (self.pool.free(), self.pool.total())
    }

    fn memory(&self) -> MemoryId {
        self.pool.id
    }

    fn memory_of(frame: &PooledFrame) -> MemoryId {
        frame.pool.id
    }

    fn crossings(&self) -> Crossings {
        self.crossings
    }

    fn take_spare(&mut self) -> Option<PooledFrame> {
        PooledFrame::take(&self.pool)
    }

    fn refused(&self) -> u64 {
        0
    }
}
