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
//! **Packets of several frames.** A packet that does not fit one chunk is a [`UmemFrame`] with a head and continuation chunks, up to
//! [`MAX_FRAMES`], each *held* by that one value. The kernel says so with a flag in all descriptors of a packet but the last, on the way
//! in and out. Whether it does is decided by the first bind of a UMEM, for all its sockets ([`UmemHandle::takes_several_frames`]).
//!
//! **Checksums.** A pod leaves TCP and UDP sums to its device. Towards another pod they stay left: [`Frame::leave_checksum`] writes where
//! the sum belongs into the 24 bytes before the packet, and the kernel takes the packet as one that never left the machine. That room is
//! asked for when the memory is registered; kernels before 6.8 have none, and sums are completed in software. See docs/decisions/0027.
//!
//! **Memories.** One UMEM serves all ports but uplinks whose driver has zero-copy: each of these has its own, as the kernel gives all
//! sockets of a UMEM one mode. A packet that is sent by rings of another memory than its own is copied there as it is given to them; what
//! is said here holds for each memory by itself. See docs/decisions/0028.
//!
//! **Workers.** A UMEM serves them all. Each has a [`Pool`]: its way to the table, and a small stack of free chunks. A frame belongs to
//! one worker's pool (`Rc`) and changes worker as a [`LooseFrame`]. A chunk's place has one writer at a time, namely whoever holds it or
//! the worker of the socket that has it, so places need no more than relaxed atomics: what passes a chunk on (a queue, a ring) is what
//! orders them. Free chunks beyond a few hundred go to the depot 64 at a time, and come from there when a stack is empty; so one worker
//! may receive everything and another send it.
//!
//! Sockets are made and closed on the control side, because a
//! close waits for the kernel's readers; [`XskSocket`] is what crosses threads. When a socket is closed, its *fill* chunks are free
//! at once (the kernel's close waits for receivers), its *transmit* chunks after a pause, as a device may still be reading them.
//!
//! [`Frame::leave_checksum`]: margay_core::Frame::leave_checksum
//! [`Rings::complete`]: crate::rings::Rings::complete
//! [`Rings::poll_rx`]: crate::rings::Rings::poll_rx
//! [`Rings::refill`]: crate::rings::Rings::refill
//! [`Rings::refused`]: XskRings::refused
//! [`Rings::submit_tx`]: crate::rings::Rings::submit_tx
//! [`Rings::take_spare`]: crate::rings::Rings::take_spare

mod border;
mod dry_run;
mod frame;
mod pools;
mod queue;
mod ring;
mod store;
mod sys;
mod umem;

use std::io;

use crate::rings::LEAST;

pub use dry_run::dry_run;
pub use frame::{LooseFrame, UmemFrame};
pub use pools::Pools;
pub use ring::XskRings;
pub use store::{Census, Pool, Store};
pub use umem::{Chunks, SocketStatistics, UmemHandle, XskSocket};

/// Entries of each ring of a socket.
pub const RING_SIZE: u32 = 1024;
/// Most chunks of one packet: what the kernel sends as one (`MAX_SKB_FRAGS`).
pub const MAX_FRAMES: usize = 17;
/// Bytes that the kernel keeps free at the beginning of each chunk (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
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

/// Returns how few chunks, with `room` bytes each, still take two packets of up to `packet` bytes from the Ethernet header on.
fn least_for(packet: u32, room: u32) -> usize {
    let frames = packet.div_ceil(room.max(1)).min(MAX_FRAMES as u32);
    (2 * frames as usize).max(LEAST)
}

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
