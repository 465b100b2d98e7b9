//! What this network namespace's kernel knows, followed over rtnetlink: links, addresses, routes, neighbours.
//!
//! ```text
//!  multicast events ─▶ which tables are stale ─▶ dump those again ─▶ KernelView ─▶ fill_topology ─▶ TopologyBuilder
//! ```
//!
//! An event is only a hint that a table changed; the truth is always a fresh dump. So a lost event (ENOBUFS), a route that
//! vanished without a message (the kernel sends none when a link goes down) and a replaced route are one case, and the view
//! depends on the kernel's present state, never on the order of messages. The price is a dump per burst of events; a rest
//! between dumps, in proportion to what the last one took, bounds it.
//!
//! [`Follower`] owns a thread and two sockets and belongs to the network namespace of the thread that started it.

mod codec;
mod decode;
mod follower;
mod topology;
mod view;

#[cfg(test)]
mod tests;

pub use follower::Follower;
pub use topology::{Role, fill_topology};
pub use view::{Address, KernelRoute, KernelView, Link, Neighbour, NeighbourState, NextHop, RouteKind};

/// Priorities of the routing rules that the agent itself adds; they move no packet that this machine's ports carry.
pub const OWN_RULES: std::ops::Range<u32> = 1017..1020;

/// Why the kernel could not be followed or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket call failed.
    #[error(
        "cannot {what} on a netlink socket: {source}; the agent needs CAP_NET_ADMIN and a kernel with rtnetlink"
    )]
    Socket {
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {source}; see that the device exists and is up")]
    Refused {
        /// The request.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Tables changed during every attempt to read them.
    #[error(
        "the kernel's tables changed during each of {attempts} dumps; something rewrites routes without pause"
    )]
    Unsettled {
        /// How often it was tried.
        attempts: u32,
    },
}
