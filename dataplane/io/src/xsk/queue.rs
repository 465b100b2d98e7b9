//! The rings that a socket shares with the kernel: one side writes entries, the other takes them, each by a position that only it moves.
//!
//! ```text
//!   entries   . . . # # # # # . . .        # written, not yet taken
//!                   ▲         ▲
//!                consumer   producer       both count up for ever; the place is the position modulo the size
//! ```
//!
//! A producer's `Release` store of its position makes the entries before it visible to the consumer's `Acquire` load, and the consumer's
//! `Release` store says that it has read them, so that their places may be written again. What the other side says is never believed
//! beyond the size of the ring. Source: Documentation/networking/af_xdp.rst, net/xdp/xsk_queue.h.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::RING_SIZE;
use super::sys::{Region, RingPlaces};

/// Set by the kernel while it has to be called to go on (`XDP_RING_NEED_WAKEUP`).
const NEED_WAKEUP: u32 = 1;

/// A packet's frame, as rings name it.
///
/// Shape: `address` is where its first byte is in the UMEM, `len` in bytes; the kernel's `struct xdp_desc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameDesc {
    address: u64,
    len: u32,
    options: u32,
}

impl FrameDesc {
    /// Returns the empty frame at an address.
    pub(super) fn at(address: u64) -> Self {
        Self { address, len: 0, options: 0 }
    }

    pub(super) fn of_len(self, len: usize) -> Self {
        Self { len: len as u32, ..self }
    }

    #[inline]
    pub(super) fn addr(&self) -> usize {
        self.address as usize
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Chunks have at most 4,096 bytes, so every length that a caller has checked fits.
    #[inline]
    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len as u32;
    }

    #[inline]
    pub(super) fn options(&self) -> u32 {
        self.options
    }

    #[inline]
    pub(super) fn set_options(&mut self, options: u32) {
        self.options = options;
    }
}

/// Types whose every bit pattern is a value, so that the kernel may write them.
pub(super) trait Entry: Copy {}
impl Entry for u64 {}
impl Entry for FrameDesc {}

/// The shared memory of a ring.
#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    /// What the pointers point into.
    _region: Region,
}

// SAFETY: the pointers are into the region, which the ring owns and which is mapped for the whole process; a ring has no other handle on
// our side, so moving it moves our whole side of the protocol.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// Returns the ring of [`RING_SIZE`] entries that lies at `places` of `region`; `None` where it would pass its end, or is not aligned.
    fn new(region: Region, places: RingPlaces) -> Option<Self> {
        let end = places.entries.checked_add(RING_SIZE as usize * std::mem::size_of::<T>())?;
        let words = [places.producer, places.consumer, places.flags];
        let fits = end <= region.len() && words.iter().all(|at| at + 4 <= region.len());
        let aligned = places.entries.is_multiple_of(std::mem::align_of::<T>())
            && words.iter().all(|at| at.is_multiple_of(4));
        if !fits || !aligned {
            return None;
        }
        let start = region.start();
        // SAFETY: all four were just found to lie within the region.
        unsafe {
            Some(Self {
                producer: start.add(places.producer).cast(),
                consumer: start.add(places.consumer).cast(),
                flags: start.add(places.flags).cast(),
                entries: start.add(places.entries).cast(),
                _region: region,
            })
        }
    }

    #[inline]
    fn word(&self, at: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: an aligned word within the region, which lives as long as `self`; both sides access it atomically.
        unsafe { at.as_ref() }
    }

    #[inline]
    fn entry(&self, position: u32) -> NonNull<T> {
        // SAFETY: a position modulo the size is within the entries, which `new` has checked.
        unsafe { self.entries.add((position % RING_SIZE) as usize) }
    }
}

/// Our side of a ring that we write: transmit and fill.
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Where we write next.
    next: u32,
    /// The kernel's position, as it was when last asked for.
    taken: u32,
}

impl<T: Entry> Producer<T> {
    /// Returns our side of the ring at `places` of `region`; see [`Ring::new`].
    pub(super) fn new(region: Region, places: RingPlaces) -> Option<Self> {
        let ring = Ring::new(region, places)?;
        let next = ring.word(ring.producer).load(Relaxed);
        let taken = ring.word(ring.consumer).load(Acquire);
        Some(Self { ring, next, taken })
    }

    /// Returns how many entries there is room for; the kernel's position is looked at only when the last one seen leaves less than
    /// `wanted`.
    #[inline]
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        let known = RING_SIZE.saturating_sub(self.next.wrapping_sub(self.taken));
        if known >= wanted {
            return known;
        }
        self.taken = self.ring.word(self.ring.consumer).load(Acquire);
        RING_SIZE.saturating_sub(self.next.wrapping_sub(self.taken))
    }

    /// Returns how many entries the kernel has not taken yet.
    #[inline]
    pub(super) fn waiting(&mut self) -> u32 {
        RING_SIZE - self.room(RING_SIZE)
    }

    /// Gives entries to the kernel, as many from the front as there is room for, and returns how many.
    ///
    /// # Safety
    ///
    /// Each names a chunk of the socket's UMEM that nobody accesses until the kernel has given it back.
    pub(super) unsafe fn produce(&mut self, entries: &[T]) -> usize {
        let count = self.room(entries.len() as u32).min(entries.len() as u32);
        for entry in &entries[..count as usize] {
            // SAFETY: a free place: the kernel reads it only after the store below.
            unsafe { self.ring.entry(self.next).write(*entry) };
            self.next = self.next.wrapping_add(1);
        }
        self.ring.word(self.ring.producer).store(self.next, Release);
        count as usize
    }

    /// Returns whether the kernel has to be called to look at the ring.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.word(self.ring.flags).load(Relaxed) & NEED_WAKEUP != 0
    }
}

/// Our side of a ring that the kernel writes: receive and completion.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// What we take next.
    next: u32,
}

impl<T: Entry> Consumer<T> {
    /// Returns our side of the ring at `places` of `region`; see [`Ring::new`].
    pub(super) fn new(region: Region, places: RingPlaces) -> Option<Self> {
        let ring = Ring::new(region, places)?;
        let next = ring.word(ring.consumer).load(Relaxed);
        Some(Self { ring, next })
    }

    /// Takes entries into the front of `to`, as many as there are and fit, and returns how many.
    #[inline]
    pub(super) fn consume(&mut self, to: &mut [T]) -> usize {
        let written = self.ring.word(self.ring.producer).load(Acquire);
        let count = written.wrapping_sub(self.next).min(RING_SIZE).min(to.len() as u32);
        if count == 0 {
            return 0;
        }
        for place in &mut to[..count as usize] {
            // SAFETY: written before the position that was loaded, and not written again before the store below.
            *place = unsafe { self.ring.entry(self.next).read() };
            self.next = self.next.wrapping_add(1);
        }
        self.ring.word(self.ring.consumer).store(self.next, Release);
        count as usize
    }
}

/// The four rings of a socket.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) tx: Producer<FrameDesc>,
    pub(super) rx: Consumer<FrameDesc>,
    pub(super) fill: Producer<u64>,
    pub(super) completion: Consumer<u64>,
}

impl Queues {
    /// Has the kernel make the rings of a socket that has none yet, and maps them.
    ///
    /// Errors: too little memory; a kernel that says nonsense about where they are.
    pub(super) fn of(socket: BorrowedFd<'_>) -> std::io::Result<Self> {
        let nonsense = || std::io::Error::other("the kernel's places of the rings are not within them");
        let made = super::sys::make_rings(socket, RING_SIZE, std::mem::size_of::<FrameDesc>())?;
        let [tx, rx, fill, completion] = made;
        Ok(Self {
            tx: Producer::new(tx.0, tx.1).ok_or_else(nonsense)?,
            rx: Consumer::new(rx.0, rx.1).ok_or_else(nonsense)?,
            fill: Producer::new(fill.0, fill.1).ok_or_else(nonsense)?,
            completion: Consumer::new(completion.0, completion.1).ok_or_else(nonsense)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: RingPlaces = RingPlaces { producer: 0, consumer: 64, flags: 128, entries: 192 };

    /// Both sides of one ring, over two mappings of the same memory.
    fn pair() -> (Producer<u64>, Consumer<u64>) {
        let (here, there) = Region::twice(192 + RING_SIZE as usize * 8).unwrap();
        (Producer::new(here, PLACES).unwrap(), Consumer::new(there, PLACES).unwrap())
    }

    #[test]
    fn entries_arrive_in_order_and_a_full_ring_takes_no_more() {
        let (mut ours, mut theirs) = pair();
        let mut taken = [0; 300];
        let (mut sent, mut seen) = (0u64, 0u64);
        for round in 0..5_000u64 {
            let batch: Vec<u64> = (sent..sent + round % 700).collect();
            // SAFETY: nobody takes these numbers for addresses.
            let count = unsafe { ours.produce(&batch) };
            assert_eq!(count as u64, (u64::from(RING_SIZE) - (sent - seen)).min(batch.len() as u64));
            sent += count as u64;
            let count = theirs.consume(&mut taken[..(round % 301) as usize]);
            for number in &taken[..count] {
                assert_eq!(*number, seen);
                seen += 1;
            }
            assert_eq!(u64::from(ours.waiting()), sent - seen);
        }
        assert!(seen > 100_000, "{seen}");
    }

    #[test]
    fn positions_wrap_after_four_thousand_million() {
        let (mut ours, mut theirs) = pair();
        for side in [&mut ours.ring, &mut theirs.ring] {
            side.word(side.producer).store(u32::MAX - 1, Relaxed);
            side.word(side.consumer).store(u32::MAX - 1, Relaxed);
        }
        (ours.next, ours.taken, theirs.next) = (u32::MAX - 1, u32::MAX - 1, u32::MAX - 1);
        let mut taken = [0; 8];
        // SAFETY: as above.
        assert_eq!(unsafe { ours.produce(&[1, 2, 3, 4]) }, 4);
        assert_eq!((ours.waiting(), theirs.consume(&mut taken), ours.waiting()), (4, 4, 0));
        assert_eq!(taken[..4], [1, 2, 3, 4]);
    }

    #[test]
    fn a_position_that_cannot_be_is_believed_no_further_than_the_ring() {
        let (mut ours, mut theirs) = pair();
        theirs.ring.word(theirs.ring.producer).store(RING_SIZE * 5, Relaxed);
        let mut taken = vec![0; 2 * RING_SIZE as usize];
        assert_eq!(theirs.consume(&mut taken), RING_SIZE as usize);
        // SAFETY: as above.
        assert_eq!(unsafe { ours.produce(&[1; 5]) }, 5);
        ours.ring.word(ours.ring.consumer).store(7, Relaxed);
        assert_eq!(ours.room(RING_SIZE), 0, "the kernel has taken more than there was");
    }

    #[test]
    fn a_ring_beyond_its_memory_is_none() {
        let region = || Region::anonymous(4096).unwrap();
        assert!(Producer::<u64>::new(region(), PLACES).is_none());
        let odd = RingPlaces { producer: 2, ..PLACES };
        assert!(Consumer::<u64>::new(Region::anonymous(65_536).unwrap(), odd).is_none());
        assert!(Consumer::<u64>::new(Region::anonymous(65_536).unwrap(), PLACES).is_some());
    }
}
