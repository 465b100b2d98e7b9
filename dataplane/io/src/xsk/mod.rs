//! AF_XDP sockets over one UMEM, and the rule that makes them safe.
//!
//! **Ownership.** A chunk of the UMEM is in exactly one of five places, and [`Store`] writes down in which:
//!
//! | place | who may touch it | how it leaves |
//! |---|---|---|
//! | free | nobody | [`Rings::refill`] to *fill*, [`Rings::take_spare`] to *held* |
//! | fill (and received, not yet polled) | the kernel | [`Rings::poll_rx`] to *held* |
//! | held | the one [`UmemFrame`] that stands for it | drop to *free*, [`Rings::submit_tx`] to *transmit* |
//! | transmit | the kernel | [`Rings::complete`] to *free* |
//! | completed | as free | |
//!
//! A [`UmemFrame`] moves and cannot be copied, so two of them never stand for one chunk. What the kernel hands back is believed only
//! when the table says that this very socket's kernel side had the chunk, and only within the chunk's bounds; both are checked in
//! release builds. A wrong descriptor costs a count ([`Rings::refused`]), never memory.
//!
//! **Workers.** One UMEM serves them all. Each has a [`Pool`]: its way to the table, and a small stack of free chunks. A frame belongs to
//! one worker's pool (`Rc`) and changes worker as a [`LooseFrame`]. A chunk's place has one writer at a time, namely whoever holds it or
//! the worker of the socket that has it, so places need no more than relaxed atomics: what passes a chunk on (a queue, a ring) is what
//! orders them. Free chunks beyond a few hundred go to the depot 64 at a time, and come from there when a stack is empty; so one worker
//! may receive everything and another send it.
//!
//! Sockets are made and closed on the control side, because a
//! close waits for the kernel's readers; [`XskSocket`] is what crosses threads. When a socket is closed, its *fill* chunks are free
//! at once (the kernel's close waits for receivers), its *transmit* chunks after a pause, as a device may still be reading them.

mod dry_run;

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use margay_core::Frame;
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use crate::exchange::Pass;
use crate::panics::Witness;
use crate::rings::{PortGone, Rings};

pub use dry_run::dry_run;

/// Entries of each ring of a socket.
pub const RING_SIZE: u32 = 1024;
/// Frames that one `sendto` sends at most (the kernel's `TX_BATCH_SIZE`).
const KERNEL_BATCH: usize = 32;
const BATCH: usize = 256;

/// Which socket, in the ownership table of its UMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketSlot(pub u16);

impl SocketSlot {
    /// Most sockets of one UMEM.
    pub const MAX: u16 = 16_000;
}

const FREE: u16 = 0;
const HELD: u16 = 1;

fn filled_by(slot: SocketSlot) -> u16 {
    2 + 2 * slot.0
}

fn sent_by(slot: SocketSlot) -> u16 {
    3 + 2 * slot.0
}

/// Why there is no UMEM or no socket.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The sizes cannot be.
    #[error(
        "UMEM of {chunks} chunks of {chunk_size} bytes: {why}; use a power of two from 2048 to 4096 and at least 64 chunks"
    )]
    Layout {
        /// Bytes of a chunk.
        chunk_size: u32,
        /// How many.
        chunks: u32,
        /// What is wrong.
        why: String,
    },
    /// The kernel did not register the memory.
    #[error(
        "cannot register {bytes} bytes of packet memory with the kernel: {source}; AF_XDP needs CAP_NET_RAW, CAP_BPF and a locked-memory limit above that size"
    )]
    Umem {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not bind the socket.
    #[error("cannot bind an AF_XDP socket to queue {queue} of {device}: {source}; {hint}")]
    Bind {
        /// Device name.
        device: String,
        /// Receive queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

fn source_of(error: &dyn std::error::Error) -> io::Error {
    let code = error.source().and_then(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// The packet memory, before workers have it. Cloned handles name the same memory.
#[derive(Debug, Clone)]
pub struct UmemHandle {
    umem: Umem,
    chunk_size: u32,
    chunks: u32,
}

/// Every chunk of a new UMEM, all free. Goes to [`Store::new`] once.
#[derive(Debug)]
pub struct Chunks(Vec<FrameDesc>);

impl UmemHandle {
    /// Registers packet memory with the kernel, in the network namespace of the calling thread.
    ///
    /// Errors: sizes that AF_XDP does not take; no permission; too little memory.
    pub fn new(chunk_size: u32, chunks: u32) -> Result<(Self, Chunks), XskError> {
        let layout = |why: String| XskError::Layout { chunk_size, chunks, why };
        let count = NonZeroU32::new(chunks)
            .filter(|c| c.get() >= 64)
            .ok_or_else(|| layout("too few chunks".to_owned()))?;
        if chunk_size > 4096 {
            return Err(layout("a chunk is larger than a page".to_owned()));
        }
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(chunk_size).map_err(|e| layout(e.to_string()))?)
            .fill_queue_size(QueueSize::new(RING_SIZE).map_err(|e| layout(e.to_string()))?)
            .comp_queue_size(QueueSize::new(RING_SIZE).map_err(|e| layout(e.to_string()))?)
            .build()
            .map_err(|e| layout(e.to_string()))?;
        let (umem, descriptors) = Umem::new(config, count, false).map_err(|e| XskError::Umem {
            bytes: u64::from(chunk_size) * u64::from(chunks),
            source: source_of(&e),
        })?;
        Ok((Self { umem, chunk_size, chunks }, Chunks(descriptors)))
    }

    /// Returns the bytes of all chunks.
    pub fn bytes(&self) -> u64 {
        u64::from(self.chunk_size) * u64::from(self.chunks)
    }

    /// Returns the number of chunks.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Binds a socket to a queue of a device. The first socket of a UMEM is the kernel's anchor for all later ones: bind it to a
    /// device that lives as long as the UMEM does.
    ///
    /// Right after another socket of that queue was closed the kernel answers EBUSY for a while, as it frees rings later; that and
    /// EBADF are tried again until `patience` is over.
    ///
    /// Errors: no such device or queue (EINVAL, ENODEV); the anchor's device is gone (EBADF for ever); no permission.
    pub fn bind(&self, device: &str, queue: u32, patience: Duration) -> Result<XskSocket, XskError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.bind_once(device, queue) {
                Ok(socket) => return Ok(socket),
                Err(source) => {
                    let passing = matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EBADF));
                    if passing && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    let hint = match source.raw_os_error() {
                        Some(libc::EBUSY) => "another program has the queue; stop it",
                        Some(libc::EBADF) => {
                            "the first device of this packet memory is gone; restart the agent"
                        }
                        Some(libc::EPERM) => "run with CAP_NET_RAW and CAP_BPF",
                        Some(libc::EINVAL) => "the device has no such queue, or cannot take AF_XDP sockets",
                        _ => "check that the device exists in this network namespace",
                    };
                    return Err(XskError::Bind { device: device.to_owned(), queue, source, hint });
                }
            }
        }
    }

    fn bind_once(&self, device: &str, queue: u32) -> io::Result<XskSocket> {
        let interface: Interface = device.parse().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let size = QueueSize::new(RING_SIZE).map_err(|e| io::Error::other(e.to_string()))?;
        let config = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // SAFETY: the condition is about a second socket on one (device, queue) without INHIBIT_PROG_LOAD; that flag is set.
        let made =
            unsafe { Socket::new(config, &self.umem, &interface, queue) }.map_err(|e| source_of(&e))?;
        match made {
            (tx, rx, Some((fill, completion))) => Ok(XskSocket { tx, rx, fill, completion }),
            // This process holds that queue already, and its rings with it.
            (_, _, None) => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
    }
}

/// A bound socket and its rings, on the way between control side and worker. Dropping it closes the socket, which waits for the
/// kernel: do that on the control side.
#[derive(Debug)]
pub struct XskSocket {
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
}

impl AsRawFd for XskSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }
}

/// What the kernel counts per socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketStatistics {
    /// Frames lost because the kernel had no chunk to receive into (those are in `fill_ring_empty` as well), or because they were too
    /// large for one.
    pub rx_dropped: u64,
    /// Frames lost because we did not take earlier ones in time.
    pub rx_ring_full: u64,
    /// Frames lost because the kernel had no chunk to receive into.
    pub fill_ring_empty: u64,
    /// Descriptors of ours that the kernel refused.
    pub invalid_descriptors: u64,
}

/// Free chunks that change workers together.
const MAGAZINE: usize = 64;
/// Free chunks that a worker keeps to itself.
const KEPT: usize = 4 * MAGAZINE;

#[derive(Debug)]
struct Magazine {
    chunks: [u32; MAGAZINE],
    len: usize,
}

/// The chunks of one UMEM, where each of them is, and the free ones that no worker has at hand.
#[derive(Debug)]
pub struct Store {
    chunk_size: usize,
    /// The descriptor of each chunk as the UMEM's maker gave it.
    descriptors: Box<[FrameDesc]>,
    places: Box<[AtomicU16]>,
    depot: ArrayQueue<Magazine>,
}

impl Store {
    /// Returns the table with every chunk free.
    pub fn new(handle: &UmemHandle, chunks: Chunks) -> Arc<Self> {
        let count = chunks.0.len() as u32;
        // Workers give back full magazines only, so one more than these is never there.
        let depot = ArrayQueue::new(count as usize / MAGAZINE + 1);
        for first in (0..count).step_by(MAGAZINE) {
            let len = ((count - first) as usize).min(MAGAZINE);
            let mut magazine = Magazine { chunks: [0; MAGAZINE], len };
            for (chunk, number) in magazine.chunks.iter_mut().zip(first..count) {
                *chunk = number;
            }
            // There is room for all.
            let _ = depot.push(magazine);
        }
        Arc::new(Self {
            chunk_size: handle.chunk_size as usize,
            descriptors: chunks.0.into_boxed_slice(),
            places: (0..count).map(|_| AtomicU16::new(FREE)).collect(),
            depot,
        })
    }
}

/// A worker's way to the chunks, and the free ones that it has at hand. Belongs to one thread.
#[derive(Debug)]
pub struct Pool {
    umem: Umem,
    store: Arc<Store>,
    free: RefCell<Vec<u32>>,
    witness: Witness,
}

impl Pool {
    /// Returns the pool of the only worker.
    pub fn new(handle: &UmemHandle, chunks: Chunks) -> Rc<Self> {
        Self::of(handle, Store::new(handle, chunks))
    }

    /// Returns a worker's pool over the chunks of `handle`'s UMEM.
    pub fn of(handle: &UmemHandle, store: Arc<Store>) -> Rc<Self> {
        let free = RefCell::new(Vec::with_capacity(KEPT + 1));
        Rc::new(Self { umem: handle.umem.clone(), store, free, witness: Witness::default() })
    }

    /// Returns what frames of this worker saw of a panic since the last call.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Returns how many chunks are free, held, given to the kernel to receive into, and given to it to send: all workers' together.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for place in &self.store.places {
            match place.load(Relaxed) {
                FREE => census.free += 1,
                HELD => census.held += 1,
                kernel if kernel % 2 == 0 => census.fill += 1,
                _ => census.transmit += 1,
            }
        }
        census
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

    fn release(&self, index: usize) {
        self.store.places[index].store(FREE, Relaxed);
        let mut free = self.free.borrow_mut();
        free.push(index as u32);
        if free.len() > KEPT {
            let mut magazine = Magazine { chunks: [0; MAGAZINE], len: MAGAZINE };
            let from = free.len() - MAGAZINE;
            magazine.chunks.copy_from_slice(&free[from..]);
            if self.store.depot.push(magazine).is_ok() {
                free.truncate(from);
            }
        }
    }

    /// Takes a free chunk to `place`.
    fn take(&self, place: u16) -> Option<FrameDesc> {
        let mut free = self.free.borrow_mut();
        if free.is_empty() {
            let magazine = self.store.depot.pop()?;
            free.extend(magazine.chunks[..magazine.len].iter().rev());
        }
        let index = free.pop()? as usize;
        self.store.places[index].store(place, Relaxed);
        Some(self.store.descriptors[index])
    }

    /// Moves the chunk of a kernel's descriptor from `place` to `to`; `None` when it was not there.
    fn hand_over(&self, descriptor: &FrameDesc, place: u16, to: u16) -> Option<usize> {
        let index = descriptor.addr() / self.store.chunk_size;
        let at = self.store.places.get(index)?;
        // No race: a chunk that is at the kernel by our socket has no other writer than this thread.
        if at.load(Relaxed) != place {
            return None;
        }
        at.store(to, Relaxed);
        Some(index)
    }

    fn room(&self, descriptor: &FrameDesc) -> usize {
        self.store.chunk_size - descriptor.addr() % self.store.chunk_size
    }

    /// Returns how many free chunks this worker keeps to itself.
    pub fn at_hand(&self) -> usize {
        self.free.borrow().len()
    }

    /// Returns how many free chunks are at no worker's hand; of a number of chunks that is no multiple of 64, up to 63 more than there are.
    pub fn in_depot(&self) -> usize {
        self.store.depot.len() * MAGAZINE
    }

    /// Returns about how many chunks are free for this worker to take.
    fn available(&self) -> usize {
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

/// A chunk of the UMEM that we own.
///
/// Invariant: `descriptor` lies in a chunk whose place is *held*, no other frame stands for that chunk, and address plus length do
/// not pass the chunk's end.
#[derive(Debug)]
pub struct UmemFrame {
    descriptor: FrameDesc,
    /// `None` only between being handed to the kernel and being dropped.
    pool: Option<Rc<Pool>>,
}

impl UmemFrame {
    /// Gives up the frame without freeing the chunk.
    fn into_descriptor(mut self) -> FrameDesc {
        self.pool = None;
        self.descriptor
    }
}

impl Drop for UmemFrame {
    fn drop(&mut self) {
        let Some(pool) = &self.pool else { return };
        if std::thread::panicking() {
            pool.witness.see(self);
        }
        pool.release(self.descriptor.addr() / pool.store.chunk_size);
    }
}

/// A frame on its way from one worker to another. The chunk stays *held*; whoever drops this instead of fastening it loses the chunk.
#[derive(Debug)]
pub struct LooseFrame(FrameDesc);

impl Pass for Rc<Pool> {
    type Frame = UmemFrame;
    type Loose = LooseFrame;

    fn loosen(&self, frame: UmemFrame) -> LooseFrame {
        LooseFrame(frame.into_descriptor())
    }

    fn fasten(&self, loose: LooseFrame) -> UmemFrame {
        UmemFrame { descriptor: loose.0, pool: Some(Rc::clone(self)) }
    }

    fn spare(&self) -> Option<UmemFrame> {
        let descriptor = self.take(HELD)?;
        Some(UmemFrame { descriptor, pool: Some(Rc::clone(self)) })
    }
}

impl Frame for UmemFrame {
    fn data(&self) -> &[u8] {
        match &self.pool {
            // SAFETY: the invariant: a chunk of this very UMEM, held, so neither the kernel nor another frame writes to it while
            // `self` is borrowed, and the length is within the chunk.
            Some(pool) => unsafe { pool.umem.data(&self.descriptor) }.contents(),
            None => &[],
        }
    }

    fn data_mut(&mut self) -> &mut [u8] {
        let Self { descriptor, pool } = self;
        match pool {
            Some(pool) => {
                // SAFETY: as in `data`; `self` is borrowed mutably, so this is the only reference.
                let mut data = unsafe { pool.umem.data_mut(descriptor) };
                let bytes = data.contents_mut();
                let (start, len) = (bytes.as_mut_ptr(), bytes.len());
                // SAFETY: the same bytes with the lifetime of `self` in place of the accessor's; `pool` keeps the UMEM mapped.
                unsafe { std::slice::from_raw_parts_mut(start, len) }
            }
            None => &mut [],
        }
    }

    fn capacity(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| pool.room(&self.descriptor))
    }

    fn set_len(&mut self, len: usize) -> bool {
        if len > self.capacity() {
            return false;
        }
        if let Some(pool) = &self.pool {
            // SAFETY: as in `data_mut`; only the length is written, and it was checked.
            unsafe { pool.umem.data_mut(&mut self.descriptor) }.cursor().set_pos(len);
        }
        true
    }
}

/// The rings of one socket on the worker's side.
#[derive(Debug)]
pub struct XskRings {
    socket: XskSocket,
    pool: Rc<Pool>,
    slot: SocketSlot,
    scratch: Box<[FrameDesc]>,
    filled: usize,
    in_flight: usize,
    refused: u64,
}

impl XskRings {
    /// Takes the socket's rings to work. `slot` names it in the pool's table: one living or unreclaimed socket a slot.
    ///
    /// The socket must have been bound with the pool's own UMEM; its kernel side answers with descriptors of that memory, and any
    /// other would be refused one by one.
    pub fn new(socket: XskSocket, pool: Rc<Pool>, slot: SocketSlot) -> Self {
        let scratch = vec![FrameDesc::default(); BATCH].into_boxed_slice();
        Self { socket, pool, slot, scratch, filled: 0, in_flight: 0, refused: 0 }
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
        let kernel = self.socket.rx.fd().xdp_statistics()?;
        Ok(SocketStatistics {
            rx_dropped: kernel.rx_dropped(),
            rx_ring_full: kernel.rx_ring_full(),
            fill_ring_empty: kernel.rx_fill_ring_empty_descs(),
            invalid_descriptors: kernel.rx_invalid_descs() + kernel.tx_invalid_descs(),
        })
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
        // SAFETY: the socket was bound with this pool's UMEM. What comes back is checked below before it is used as memory.
        let count = unsafe { self.socket.rx.consume(&mut self.scratch[..budget]) };
        for at in 0..count {
            let descriptor = self.scratch[at];
            let Some(index) = self.pool.hand_over(&descriptor, filled_by(self.slot), HELD) else {
                self.refuse(None);
                continue;
            };
            self.filled -= 1;
            if descriptor.lengths().data() > self.pool.room(&descriptor) || descriptor.has_more_frames() {
                self.refuse(Some(index));
                continue;
            }
            out.push(UmemFrame { descriptor, pool: Some(Rc::clone(&self.pool)) });
        }
        count
    }

    fn submit_tx(&mut self, frames: &mut Vec<UmemFrame>) -> usize {
        let wanted = frames.len().min(BATCH);
        let room = self.socket.tx.nb_free(wanted as u32) as usize;
        let count = wanted.min(room);
        let ours = |frame: &UmemFrame| frame.pool.as_ref().is_some_and(|pool| Rc::ptr_eq(pool, &self.pool));
        let mut ready = 0;
        for frame in frames.drain(..count) {
            // A frame of another UMEM must not reach these rings; it goes back to its own pool.
            if !ours(&frame) {
                continue;
            }
            let mut descriptor = frame.into_descriptor();
            descriptor.set_options(0);
            let index = descriptor.addr() / self.pool.store.chunk_size;
            self.pool.store.places[index].store(sent_by(self.slot), Relaxed);
            self.scratch[ready] = descriptor;
            ready += 1;
        }
        // SAFETY: each descriptor was a held frame of this UMEM, given up above and marked as the kernel's.
        let sent = unsafe { self.socket.tx.produce(&self.scratch[..ready]) };
        // The ring had the room a moment ago and we are its only producer, so nothing is left; if it ever is, the chunk is freed.
        for at in sent..ready {
            let index = self.scratch[at].addr() / self.pool.store.chunk_size;
            self.refuse(Some(index));
        }
        self.in_flight += sent;
        count
    }

    fn complete(&mut self) -> usize {
        let mut total = 0;
        while self.in_flight > 0 {
            // SAFETY: the socket was bound with this pool's UMEM; addresses are checked against the table before use.
            let count = unsafe { self.socket.completion.consume(&mut self.scratch) };
            for at in 0..count {
                match self.pool.hand_over(&self.scratch[at], sent_by(self.slot), HELD) {
                    Some(index) => {
                        self.pool.release(index);
                        self.in_flight -= 1;
                    }
                    None => self.refuse(None),
                }
            }
            total += count;
            if count < self.scratch.len() {
                break;
            }
        }
        total
    }

    fn refill(&mut self, count: usize) -> usize {
        let mut total = 0;
        while total < count {
            let wanted = (count - total).min(BATCH);
            let room = (self.socket.fill.nb_free(wanted as u32) as usize).min(wanted);
            let mut ready = 0;
            while ready < room {
                let Some(descriptor) = self.pool.take(filled_by(self.slot)) else { break };
                self.scratch[ready] = descriptor;
                ready += 1;
            }
            if ready == 0 {
                break;
            }
            // SAFETY: each descriptor is a free chunk of this UMEM, marked as the kernel's above.
            let given = unsafe { self.socket.fill.produce(&self.scratch[..ready]) };
            for at in given..ready {
                self.pool.release(self.scratch[at].addr() / self.pool.store.chunk_size);
            }
            self.filled += given;
            total += given;
            if given < wanted {
                break;
            }
        }
        total
    }

    fn wakeup(&mut self) -> Result<(), PortGone> {
        // One `sendto` sends a batch at most, and answers EAGAIN (no error here) when more is left.
        for _ in 0..=(RING_SIZE as usize / KERNEL_BATCH) {
            let waiting = RING_SIZE - self.socket.tx.nb_free_exact();
            if waiting == 0 || !self.socket.tx.needs_wakeup() {
                return Ok(());
            }
            self.socket.tx.wakeup().map_err(|error| PortGone(error.to_string()))?;
            if RING_SIZE - self.socket.tx.nb_free_exact() == waiting {
                // The device takes nothing now (down, or its queue is full): the next turn tries again.
                return Ok(());
            }
        }
        Ok(())
    }

    fn filled(&self) -> usize {
        self.filled
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn pool(&self) -> (usize, usize) {
        (self.pool.available(), self.pool.store.places.len())
    }

    fn take_spare(&mut self) -> Option<UmemFrame> {
        self.pool.spare()
    }

    fn refused(&self) -> u64 {
        self.refused
    }
}
