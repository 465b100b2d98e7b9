//! Where bytes come from and go to: AF_XDP sockets, the programs that the kernel runs for us, and the worker's thread.
//!
//! ```text
//!              ┌ Dataplane ── the handle: ports, publication, counters (any thread) ┐
//!              │                        │ commands, snapshots                        │
//!  device ─▶ program (steer) ─▶ rings (xsk) ─▶ engine ─▶ core::Worker ─▶ engine ─▶ rings ─▶ device
//!              ▲ heartbeat ─────────────────── thread ─────────┘
//! ```
//!
//! | module | its idea |
//! |---|---|
//! | [`dataplane`] | the handle for the rest of the agent |
//! | [`steer`] | loads, attaches and pins the kernel programs, and fills their maps |
//! | [`rings`] | the four rings of a queue as a trait |
//! | [`xsk`] | those rings on AF_XDP sockets; the only home of unsafe code here |
//! | [`memory`] | those rings in plain memory |
//! | [`engine`] | bursts from rings through the core and back, without clock or system call |
//! | [`exchange`], [`doze`] | packets between workers, and waking who sleeps |
//! | [`thread`] | the loop around an engine: spin, sleep, heartbeat |
//! | [`panics`] | what becomes of a worker that panics, and of the port whose frame it had |
//! | [`netlink`] | what this machine's kernel knows: links, addresses, routes, neighbours |
//! | [`probe`] | a port that sends everything back, to measure ways of crossing an interface |
//! | [`publish`] | how a snapshot reaches a worker, and who frees it |
//!
//! All devices belong to the network namespace of the thread that calls [`Dataplane::start`], and so do all calls on the handle.

#![deny(unsafe_code)]

mod atomics {
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}
mod shared {
    pub use arc_swap::ArcSwapOption;
    pub use std::sync::atomic::{AtomicU64, Ordering};
    pub use std::sync::{Arc, Mutex, PoisonError};

    pub type Cache<T> = arc_swap::Cache<Arc<ArcSwapOption<T>>, Option<Arc<T>>>;
}
pub mod dataplane;
mod depot;
pub mod doze;
pub mod engine;
pub mod exchange;
pub mod memory;
pub mod netlink;
pub mod panics;
pub mod probe;
pub mod publish;
pub mod rings;
pub mod spec;
pub mod steer;
pub mod thread;
#[allow(unsafe_code)]
pub mod xsk;

pub use dataplane::{
    Dataplane, DataplaneConfig, DataplaneError, MemoryChoice, MemoryReport, PortCounters, PortMemory,
    PortReport, PortSpec,
};
pub use steer::{AttachChoice, AttachMode, EgressMode, Role, mount_bpffs};
