//! What the handle of the packet path is given and what it reports.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use margay_core::spread::MAX_WORKERS;
use margay_core::{PortIndex, WorkerConfig};

use crate::rings::MemoryId;
use crate::steer::{AttachChoice, AttachMode, Role, SteerError};
use crate::xsk::{Census, SocketStatistics, XskError};

/// Settings of the packet path.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// The agent's own bpffs; mounted there when it is not one already.
    pub bpffs: PathBuf,
    /// Bytes of a chunk of packet memory: 2048 or 4096. A received frame has 256 bytes less.
    pub chunk_size: u32,
    /// Chunks of packet memory.
    pub chunks: u32,
    /// Chunks of the packet memory that a port has for itself; see [`MemoryChoice`].
    pub own_chunks: u32,
    /// Whether packets of several frames are taken where the kernel has them.
    pub several_frames: bool,
    /// Whether checksums that pods left to their device stay left towards other pods, where the kernel knows how.
    pub leave_checksums: bool,
    /// How many workers.
    pub workers: u16,
    /// The processors that workers' threads stay on, in order and over again; none leaves them to the scheduler.
    pub cpus: Vec<usize>,
    /// How long a worker looks for more work before it sleeps.
    pub spin: Duration,
    /// How long a bind may be refused as busy.
    pub bind_patience: Duration,
    /// Drop events that wait for a reader; more are only counted.
    pub drop_events: usize,
    /// Which ways of attaching XDP programs are tried.
    pub xdp: AttachChoice,
    /// Settings of the core; the most flows are those of all workers together.
    pub worker: WorkerConfig,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            bpffs: PathBuf::from("/run/margay/bpf"),
            chunk_size: 4096,
            chunks: 16_384,
            own_chunks: 8_192,
            several_frames: true,
            leave_checksums: true,
            workers: 1,
            cpus: Vec::new(),
            spin: Duration::from_micros(50),
            bind_patience: Duration::from_secs(2),
            drop_events: 4096,
            xdp: AttachChoice::Auto,
            worker: WorkerConfig::default(),
        }
    }
}

/// A device to take in.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Its index, as in the topology.
    pub index: PortIndex,
    /// Its name, in the network namespace of the agent.
    pub device: String,
    /// What it is.
    pub role: Role,
    /// Name of its pinned link: unique, stable over restarts, free of `/` and `@`.
    pub pin: String,
    /// Receive queues to take; `None` takes all there are.
    pub queues: Option<u32>,
}

/// Which packet memory a port is to be on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryChoice {
    /// That of all ports. What an uplink and pods send each other is not copied in between.
    #[default]
    Shared,
    /// One of its own, without a copy between it and the device (docs/decisions/0028); the shared one where the driver has no zero-copy.
    ZeroCopy,
    /// One of its own in copy mode. It serves nothing but to try what [`MemoryChoice::ZeroCopy`] does on a device whose driver has none.
    OwnWithCopy,
}

/// Which packet memory a port is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PortMemory {
    /// That of all ports.
    #[default]
    Shared,
    /// That of all ports, though another was wanted; this is why.
    Refused(String),
    /// One of its own, without a copy between it and the device.
    ZeroCopy {
        /// Whether its packets may have several frames.
        several_frames: bool,
    },
    /// One of its own in copy mode.
    OwnWithCopy,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortReport {
    /// Index of the device in the kernel.
    pub ifindex: u32,
    /// How the program is attached.
    pub mode: AttachMode,
    /// Receive queues taken.
    pub queues: u32,
    /// The worker that has the first of them.
    pub worker: u16,
    /// Where its packets lie.
    pub memory: PortMemory,
}

/// What the packet path costs in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Packet memory, counted against our own process.
    pub umem_bytes: u64,
    /// The part of it that ports have for themselves.
    pub own_umem_bytes: u64,
    /// The rings of all sockets.
    pub ring_bytes: u64,
    /// Estimate of what the kernel keeps per chunk and socket, outside our resident size.
    pub kernel_bytes: u64,
    /// Bound sockets.
    pub sockets: u32,
    /// Where the chunks are.
    pub chunks: Census,
}

/// Where every frame is, by two books: the table that says for each who has it, and those who should have them. Sums over all memories,
/// but for [`FrameReport::memories`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameReport {
    /// The table.
    pub table: Census,
    /// Free ones that somebody can take.
    pub listed: usize,
    /// Kept by workers for packets of their own.
    pub spares: usize,
    /// Of packets that wait in workers.
    pub waiting: usize,
    /// With the kernel, by port: to receive into, and to be sent.
    pub rings: BTreeMap<PortIndex, (usize, usize)>,
    /// Both books of each memory by itself. That of a port that is gone is among them while something of it is still under way.
    pub memories: BTreeMap<MemoryId, MemoryBook>,
}

/// What [`FrameReport`] knows of one memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryBook {
    /// The table.
    pub table: Census,
    /// Free ones that somebody can take.
    pub listed: usize,
    /// With the kernel, to receive into.
    pub fill: usize,
    /// With the kernel, to be sent.
    pub transmit: usize,
}

impl MemoryBook {
    fn agrees(&self) -> bool {
        (self.table.free, self.table.fill, self.table.transmit) == (self.listed, self.fill, self.transmit)
    }
}

impl FrameReport {
    /// Returns whether both books say the same. They do when nothing is under way: no packet between workers, no burst, and no socket
    /// that was closed within the last second. A frame that is lost for good is in one of them only.
    pub fn agrees(&self) -> bool {
        // Of what waits in workers it is not known which memory it is in.
        self.table.held == self.spares + self.waiting && self.memories.values().all(MemoryBook::agrees)
    }
}

/// What one port did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames handed to the kernel for sending.
    pub tx_packets: u64,
    /// Bytes handed to the kernel for sending.
    pub tx_bytes: u64,
    /// Frames not sent: the transmit ring or the memory for copies stayed full, or the device was gone.
    pub tx_failed: u64,
    /// Packets that were copied to be sent, as they came in another memory.
    pub copied_packets: u64,
    /// Bytes of these.
    pub copied_bytes: u64,
    /// Descriptors from the kernel that were refused.
    pub refused: u64,
    /// The kernel's own counters, over all queues.
    pub kernel: SocketStatistics,
    /// Whether the device went away under us; noticed when something was to be sent to it.
    pub gone: bool,
}

/// Why a call to the packet path failed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// Programs, maps or pins.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// Packet memory or sockets.
    #[error(transparent)]
    Xsk(#[from] XskError),
    /// The thread could not be set up.
    #[error("cannot start the worker: {0}; check limits on threads and open files")]
    Thread(io::Error),
    /// No such device.
    #[error("no device {device:?} in this network namespace: {source}; was it renamed or deleted?")]
    NoDevice {
        /// The name.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The index is in use.
    #[error("port {0} exists already as {1}; remove it first")]
    PortExists(u16, String),
    /// No such port.
    #[error("there is no port {0}; it was removed, or never added")]
    NoPort(u16),
    /// Some queues have zero-copy, and this one not.
    #[error(
        "queue {queue} of {device} has no zero-copy, though those before it have; the port is in copy mode"
    )]
    QueueCopies {
        /// The device.
        device: String,
        /// The queue.
        queue: u32,
    },
    /// The role is not one of a port.
    #[error("{0} cannot be added as a closed port; use attach_closed")]
    ClosedPort(String),
    /// Only uplinks are governed, and only through the host port.
    #[error("port {0} is no {1} port; name an uplink, and add the host port first")]
    WrongRole(u16, &'static str),
    /// The number cannot be.
    #[error(
        "{0} workers: there may be 1 to {MAX_WORKERS}, and as many as the machine has processors make sense"
    )]
    Workers(u16),
    /// The worker does not answer.
    #[error("the worker does not answer; it hangs or has ended: restart the agent")]
    WorkerSilent,
    /// The worker could not take the port.
    #[error("the worker cannot take {device}: {source}")]
    WorkerRefused {
        /// The device.
        device: String,
        /// Why.
        source: io::Error,
    },
}
