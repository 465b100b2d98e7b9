//! The kernel's network configuration, one call at a time: links, addresses, routes, neighbours, offloads, namespaces.
//!
//! Everything here blocks, says what it tried when it fails, and acts on the network namespace of the *calling thread*; [`netns`]
//! moves a closure into another one. The watching side (multicast groups, reconciliation) is the running node's business.

pub mod ethtool;
pub mod napi;
pub mod netdev;
pub mod netlink;
pub mod netns;
pub mod routes;
pub mod rules;
pub mod sysctl;

pub use netlink::{Link, Netlink, VethEnd};

use std::io;

/// A request to the kernel that it refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}{}", hint(source))]
pub struct NetError {
    /// What was tried, starting with a verb.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl NetError {
    /// Puts `what` was tried in front of the kernel's answer.
    pub fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source }
    }

    /// Returns whether the kernel's answer was `errno`.
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) | Some(libc::EACCES) => " (run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN)",
        Some(libc::EOPNOTSUPP) => " (this kernel was built without the feature)",
        _ => "",
    }
}
