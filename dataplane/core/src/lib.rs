//! What happens to a packet: a deterministic state machine without I/O and without a clock of its own.
//!
//! ```text
//!  frame ─▶ parse ─▶ sanity, source, martians ─▶ flow lookup ──hit──▶ remembered answer ─┐
//!                                                     │miss                              │
//!                                   egress policy ▶ route ▶ ingress policy ▶ remember    │
//!                                                     ▼                                  │
//!                                    TTL ▶ checksum ▶ Ethernet header ▶ transmit ◀───────┘
//! ```
//!
//! Input enters through [`Worker::handle_frame`] and [`Worker::handle_timeout`], output leaves in an [`Output`], time arrives as
//! [`Nanos`], policy and topology arrive as a [`View`] that the caller loads once per burst.

pub mod flow;
pub mod frame;
pub mod handover;
pub mod output;
mod secret;
pub mod spread;
pub mod time;
pub mod topology;
pub mod tunnel;
pub mod verdict;
pub mod worker;

pub use frame::Frame;
pub use handover::{Handover, Parcels};
pub use output::{Output, PacketEvent, What};
pub use spread::{Spread, WorkerIndex};
pub use time::Nanos;
pub use topology::{PortIndex, Topology};
pub use verdict::{Counters, DropReason};
pub use worker::{View, Worker, WorkerConfig};
