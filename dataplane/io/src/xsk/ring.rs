//! The rings of one socket at work.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use margay_core::Frame;

use super::border::{self, Refusal};
use super::queue::FrameDesc;
use super::sys;
use super::{
    BATCH, HELD, MAX_FRAMES, Pool, RING_SIZE, SocketSlot, SocketStatistics, UmemFrame, XskSocket, filled_by,
    least_for, sent_by,
};
use crate::rings::{Crossings, MemoryId, PortGone, Rings};

/// Descriptors that one `sendto` sends at most (the kernel's `TX_BATCH_SIZE`).
const KERNEL_BATCH: usize = 32;
/// Said of every frame of a packet but the last.
const MORE_FOLLOW: u32 = libc::XDP_PKT_CONTD;

/// The rings of one socket on the worker's side.
#[derive(Debug)]
pub struct XskRings {
    socket: XskSocket,
    pool: Rc<Pool>,
    slot: SocketSlot,
    scratch: Box<[FrameDesc]>,
    addresses: Box<[u64]>,
    filled: usize,
    in_flight: usize,
    refused: u64,
    /// The kernel's `rx_dropped` at the last look.
    dropped: u64,
    /// A packet whose last frame has not been taken from the ring yet.
    open: Option<UmemFrame>,
    /// Whether the frames up to the end of a packet are to be dropped, as one before them was refused.
    skipping: bool,
    crossings: Crossings,
}

impl XskRings {
    /// Takes the socket's rings to work. `slot` names it in the pool's table: one living or unreclaimed socket a slot.
    ///
    /// The socket must have been bound with the pool's own UMEM; its kernel side answers with descriptors of that memory, and any
    /// other would be refused one by one.
    pub fn new(socket: XskSocket, pool: Rc<Pool>, slot: SocketSlot) -> Self {
        let scratch = vec![FrameDesc::default(); BATCH].into_boxed_slice();
        Self {
            socket,
            pool,
            slot,
            scratch,
            addresses: vec![0; BATCH].into_boxed_slice(),
            filled: 0,
            in_flight: 0,
            refused: 0,
            dropped: 0,
            open: None,
            skipping: false,
            crossings: Crossings::default(),
        }
    }

    /// Ends the work: returns the socket, to be closed on the control side, and the slot whose chunks are to be reclaimed after that.
    pub fn into_socket(mut self) -> (XskSocket, SocketSlot) {
        self.complete();
        (self.socket, self.slot)
    }

    /// Returns the slot.
    pub fn slot(&self) -> SocketSlot {
        self.slot
    }

    /// Asks the kernel for its counters.
    ///
    /// Errors: what the kernel answers.
    pub fn statistics(&self) -> io::Result<SocketStatistics> {
        let kernel = sys::statistics(self.socket.socket.as_fd())?;
        Ok(SocketStatistics {
            rx_dropped: kernel.rx_dropped,
            rx_ring_full: kernel.rx_ring_full,
            fill_ring_empty: kernel.rx_fill_ring_empty_descs,
            invalid_descriptors: kernel.rx_invalid_descs + kernel.tx_invalid_descs,
        })
    }

    /// Tells a driver that stopped for want of chunks to receive into that there are some. Only with zero-copy does it take them itself.
    fn wake_receiver(&mut self) {
        if self.socket.zero_copy && self.socket.queues.fill.needs_wakeup() {
            sys::wake_receiver(self.socket.socket.as_fd());
        }
    }

    /// Drops the packet that is being taken, up to its end.
    #[cold]
    fn abandon(&mut self, more: bool) {
        self.open = None;
        self.skipping = more;
    }

    fn is_ours(&self, packet: &UmemFrame) -> bool {
        packet.pool.as_ref().is_some_and(|pool| Rc::ptr_eq(pool, &self.pool))
    }

    /// Replaces the packets of other memories among the first `room` by copies in this one. Returns how many from the front are ours now,
    /// and how many were dropped as too large.
    #[cold]
    fn bring_across(&mut self, packets: &mut Vec<UmemFrame>, room: usize) -> (usize, usize) {
        let most = if self.socket.several { MAX_FRAMES } else { 1 };
        let (mut at, mut dropped) = (0, 0);
        while at < packets.len().min(room) {
            if self.is_ours(&packets[at]) {
                at += 1;
                continue;
            }
            let bytes = packets[at].packet_len() as u64;
            match border::copy(&packets[at], &self.pool, most) {
                Ok(copy) => {
                    packets[at] = copy;
                    self.crossings.packets += 1;
                    self.crossings.bytes += bytes;
                    at += 1;
                }
                Err(Refusal::Full) => break,
                Err(Refusal::TooLarge) => {
                    packets.remove(at);
                    dropped += 1;
                    self.crossings.too_large += 1;
                    self.crossings.too_large_bytes += bytes;
                }
            }
        }
        (at, dropped)
    }

    /// Counts a refused descriptor, and frees its chunk when at least the chunk was the kernel's to give.
    fn refuse(&mut self, index: Option<usize>) {
        self.refused += 1;
        if let Some(index) = index {
            self.pool.release(index);
        }
    }
}

impl AsRawFd for XskRings {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Rings for XskRings {
    type Frame = UmemFrame;

    fn poll_rx(&mut self, out: &mut Vec<UmemFrame>, budget: usize) -> usize {
        let budget = budget.min(BATCH);
        // What comes back is checked before it is used as memory.
        let count = self.socket.queues.rx.consume(&mut self.scratch[..budget]);
        for at in 0..count {
            let mut descriptor = self.scratch[at];
            let more = descriptor.options() & MORE_FOLLOW != 0;
            descriptor.set_options(0);
            let Some(index) = self.pool.hand_over(&descriptor, filled_by(self.slot), HELD) else {
                self.refuse(None);
                self.abandon(more);
                continue;
            };
            self.filled -= 1;
            if self.skipping {
                self.pool.release(index);
                self.skipping = more;
                continue;
            }
            if descriptor.len() > self.pool.room(&descriptor) {
                self.refuse(Some(index));
                self.abandon(more);
                continue;
            }
            let packet = match self.open.take() {
                None => UmemFrame::new(descriptor, &self.pool),
                Some(mut packet) => {
                    if !packet.append_chunk(descriptor) {
                        self.refuse(Some(index));
                        self.abandon(more);
                        continue;
                    }
                    packet
                }
            };
            if more {
                self.open = Some(packet);
            } else {
                out.push(packet);
            }
        }
        count
    }

    fn submit_tx(&mut self, frames: &mut Vec<UmemFrame>) -> usize {
        // Whole packets only, as many as the ring and the scratch room hold.
        let room = (self.socket.queues.tx.room(BATCH as u32) as usize).min(BATCH);
        let (ours, dropped) = match frames.iter().take(room).all(|frame| self.is_ours(frame)) {
            true => (room, 0),
            false => self.bring_across(frames, room),
        };
        let mut needed = 0;
        let fits = |frame: &&UmemFrame| {
            needed += frame.frames();
            needed <= room
        };
        let count = frames.iter().take(ours).take_while(fits).count();
        let mut ready = 0;
        for frame in frames.drain(..count) {
            let (pool, scratch, place) = (&self.pool, &mut self.scratch, sent_by(self.slot));
            frame.into_descriptors(|mut descriptor| {
                descriptor.set_options(descriptor.options() | MORE_FOLLOW);
                pool.store.places[descriptor.addr() / pool.store.chunk_size].store(place, Relaxed);
                scratch[ready] = descriptor;
                ready += 1;
            });
            let last = &mut scratch[ready - 1];
            last.set_options(last.options() & !MORE_FOLLOW);
        }
        // SAFETY: each descriptor was a held frame of this UMEM, given up above and marked as the kernel's.
        let sent = unsafe { self.socket.queues.tx.produce(&self.scratch[..ready]) };
        // The ring had the room a moment ago and we are its only producer, so nothing is left; if it ever is, the chunk is freed.
        for at in sent..ready {
            let index = self.scratch[at].addr() / self.pool.store.chunk_size;
            self.refuse(Some(index));
        }
        self.in_flight += sent;
        count + dropped
    }

    fn complete(&mut self) -> usize {
        let mut total = 0;
        while self.in_flight > 0 {
            let count = self.socket.queues.completion.consume(&mut self.addresses);
            for at in 0..count {
                let sent = FrameDesc::at(self.addresses[at]);
                match self.pool.hand_over(&sent, sent_by(self.slot), HELD) {
                    Some(index) => {
                        self.pool.release(index);
                        self.in_flight -= 1;
                    }
                    None => self.refuse(None),
                }
            }
            total += count;
            if count < self.addresses.len() {
                break;
            }
        }
        total
    }

    fn refill(&mut self, count: usize) -> usize {
        let mut total = 0;
        while total < count {
            let wanted = (count - total).min(BATCH);
            let room = (self.socket.queues.fill.room(wanted as u32) as usize).min(wanted);
            let mut ready = 0;
            while ready < room {
                let Some(descriptor) = self.pool.take(filled_by(self.slot)) else { break };
                self.addresses[ready] = descriptor.addr() as u64;
                ready += 1;
            }
            if ready == 0 {
                break;
            }
            // SAFETY: each descriptor is a free chunk of this UMEM, marked as the kernel's above.
            let given = unsafe { self.socket.queues.fill.produce(&self.addresses[..ready]) };
            for at in given..ready {
                self.pool.release_of(&FrameDesc::at(self.addresses[at]));
            }
            self.filled += given;
            total += given;
            if given < wanted {
                break;
            }
        }
        self.wake_receiver();
        total
    }

    fn wakeup(&mut self) -> Result<(), PortGone> {
        // One `sendto` sends a batch at most, and answers EAGAIN (no error here) when more is left.
        for _ in 0..=(RING_SIZE as usize / KERNEL_BATCH) {
            let waiting = self.socket.queues.tx.waiting();
            if waiting == 0 || !self.socket.queues.tx.needs_wakeup() {
                return Ok(());
            }
            sys::send(self.socket.socket.as_fd()).map_err(|error| PortGone(error.to_string()))?;
            if self.socket.queues.tx.waiting() == waiting {
                // The device takes nothing now (down, or its queue is full): the next turn tries again.
                return Ok(());
            }
        }
        Ok(())
    }

    fn filled(&self) -> usize {
        self.filled
    }

    fn unused(&mut self) -> usize {
        self.socket.queues.fill.waiting() as usize
    }

    fn least(&self) -> usize {
        self.socket.least
    }

    fn starved(&mut self) -> bool {
        let most = least_for(u32::MAX, 1);
        // Enough for any packet: nothing to ask the kernel for.
        if !self.socket.several || self.filled >= most {
            return false;
        }
        let Ok(kernel) = sys::statistics(self.socket.socket.as_fd()) else { return false };
        let dropped = kernel.rx_dropped;
        let more = dropped > std::mem::replace(&mut self.dropped, dropped);
        if more {
            self.socket.least = most;
        }
        more
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn pool(&self) -> (usize, usize) {
        (self.pool.available(), self.pool.store.places.len())
    }

    fn memory(&self) -> MemoryId {
        self.pool.id()
    }

    fn memory_of(frame: &UmemFrame) -> MemoryId {
        frame.pool.as_ref().map_or(MemoryId::SHARED, |pool| pool.id())
    }

    fn crossings(&self) -> Crossings {
        self.crossings
    }

    fn take_spare(&mut self) -> Option<UmemFrame> {
        self.pool.spare()
    }

    fn refused(&self) -> u64 {
        self.refused
    }
}
