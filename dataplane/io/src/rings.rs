//! The four rings of one queue, seen from above: frames come, frames go, frames come back.
//!
//! ```text
//!            refill                poll_rx                 submit_tx               complete
//!  free ───────────────▶ fill ───────────────▶ held ───────────────▶ transmit ───────────────▶ free
//!    ▲                                          │
//!    └──────────────── drop ────────────────────┘
//! ```
//!
//! Two implementations: [`crate::xsk`] on real AF_XDP sockets, [`crate::memory`] in plain memory for tests and benches. The worker's
//! loop knows only this trait.

use margay_core::Frame;

/// [`Rings::least`] of a port whose packets have one frame each.
pub const LEAST: usize = 8;

/// Which packet memory. Pods and the host share one; an uplink may have one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryId(pub u32);

impl MemoryId {
    /// The memory that ports share.
    pub const SHARED: Self = Self(0);
}

/// What came to rings out of another memory than theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossings {
    /// Packets copied.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets lost because no packet of these rings may be so large.
    pub too_large: u64,
    /// Their bytes.
    pub too_large_bytes: u64,
}

/// The device is gone, or the kernel refuses the socket for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the port's device is gone ({0}); remove the port, and add it again if the device comes back")]
pub struct PortGone(pub String);

/// The rings of one (device, queue).
pub trait Rings {
    /// What it carries. Dropping one frees its memory.
    type Frame: Frame;

    /// Takes up to `budget` received frames and appends the packets that they complete to `out`; returns how many frames it took.
    fn poll_rx(&mut self, out: &mut Vec<Self::Frame>, budget: usize) -> usize;

    /// Takes packets from the front of `frames` while the transmit ring has room for all their frames; returns how many packets. The
    /// rest stays. A packet in another memory than that of these rings is copied first, and stays where there is no room for the copy; see
    /// [`Rings::crossings`].
    fn submit_tx(&mut self, frames: &mut Vec<Self::Frame>) -> usize;

    /// Takes back frames that the kernel has sent; returns how many. Those that it still works on come later: never wait for them.
    fn complete(&mut self) -> usize;

    /// Gives up to `count` free frames to the kernel to receive into; returns how many.
    fn refill(&mut self, count: usize) -> usize;

    /// Tells the kernel that there is something to send.
    ///
    /// Errors: [`PortGone`] when there is no device to send through.
    fn wakeup(&mut self) -> Result<(), PortGone>;

    /// Returns the number of frames given to the kernel to receive into and not yet come back.
    fn filled(&self) -> usize;

    /// Returns the number of frames that the kernel still has to receive into: [`Rings::filled`] without those that have arrived and wait
    /// for [`Rings::poll_rx`].
    fn unused(&mut self) -> usize;

    /// Returns with how few frames to receive into this port still takes every packet that its device may bring, and a second one while
    /// the first is being looked at.
    fn least(&self) -> usize;

    /// Looks whether the kernel had too few frames to receive a packet into since the last look. A packet of several frames needs them all
    /// at once; what finds fewer is lost without a sign on any ring, so [`Rings::least`] is raised to what the largest packets need.
    fn starved(&mut self) -> bool;

    /// Returns the number of frames given to the kernel to send and not yet come back.
    fn in_flight(&self) -> usize;

    /// Returns the number of free frames of the memory behind these rings, and of all its frames.
    fn pool(&self) -> (usize, usize);

    /// Returns which memory is behind these rings.
    fn memory(&self) -> MemoryId;

    /// Returns which memory a packet lies in.
    fn memory_of(frame: &Self::Frame) -> MemoryId;

    /// Returns what was given to [`Rings::submit_tx`] out of other memories. A packet that was too large is among those it took.
    fn crossings(&self) -> Crossings;

    /// Takes a free frame, empty, for a packet of our own.
    fn take_spare(&mut self) -> Option<Self::Frame>;

    /// Returns how many descriptors from the kernel were refused: outside their chunk, or of a chunk that was not the kernel's.
    fn refused(&self) -> u64;
}
