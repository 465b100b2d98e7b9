//! What the handle of the packet path is given and what it reports.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use margay_core::spread::MAX_WORKERS;
use margay_core::{PortIndex, WorkerConfig};

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
}

/// What the packet path costs in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Packet memory, counted against our own process.
    pub umem_bytes: u64,
    /// The rings of all sockets.
    pub ring_bytes: u64,
    /// Estimate of what the kernel keeps per chunk and socket, outside our resident size.
    pub kernel_bytes: u64,
    /// Bound sockets.
    pub sockets: u32,
    /// Where the chunks are.
    pub chunks: Census,
}

/// Where every frame of the packet memory is, by two books: the table that says for each who has it, and those who should have them.
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
}

impl FrameReport {
    /// Returns whether both books say the same. They do when nothing is under way: no packet between workers, no burst, and no socket
    /// that was closed within the last second. A frame that is lost for good is in one of them only.
    pub fn agrees(&self) -> bool {
        let (fill, transmit) = self.rings.values().fold((0, 0), |sum, port| (sum.0 + port.0, sum.1 + port.1));
        let of_rings = Census { free: self.listed, held: self.spares + self.waiting, fill, transmit };
        self.table == of_rings
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
    /// Frames not sent: the transmit ring stayed full, or the device was gone.
    pub tx_failed: u64,
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
