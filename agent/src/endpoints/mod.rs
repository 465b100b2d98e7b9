//! The agent's list of attached interfaces, and the door through which the CNI plug-in changes it.
//!
//! ```text
//!  margay cni ──one JSON line──▶ serve_cni ──▶ Registry (on disk, 0600)
//!             ◀──one JSON line──            ──▶ AttachHooks (XDP, socket, port, policy in force)
//! ```
//!
//! * [`protocol`] is what the two processes say to each other.
//! * [`registry`] remembers, across restarts, which endpoint id and port belong to which (container, interface).
//! * [`server`] answers requests; what an attachment *means* for the dataplane is behind [`AttachHooks`].

pub mod protocol;
pub mod registry;
pub mod server;

pub use protocol::{Attach, AttachmentKey, LargePackets, PodRef, Reply, Request};
pub use registry::{EndpointRecord, Registry};
pub use server::{AttachHooks, bind_private, serve_cni};
