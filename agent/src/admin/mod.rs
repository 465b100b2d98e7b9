//! The running node answers questions: over a Unix socket for root, with the same words that the metrics page uses.
//!
//! ```text
//!  margay status ─┐                      ┌─ status(), flows(), explain()
//!  margay flows  ─┼─▶ admin.sock ─▶ NodeView
//!  margay drops  ─┘   JSON lines         └─ drops(): a subscription
//! ```
//!
//! Nothing here changes the node: the protocol has no command that does.

pub mod client;
pub mod hub;
pub mod protocol;
pub mod report;
pub mod server;
mod table;
#[cfg(test)]
mod tests;

pub use hub::DropHub;
pub use server::AdminServer;

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/margay/admin.sock";
