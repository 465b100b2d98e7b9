//! What the benches share: worlds to measure in, namespaces to measure in, and how a number is told.
//!
//! Every bench is a program of its own under `benches/` (no harness): it prints where it ran ([`machine`]), its own numbers beside
//! those of a peer of the same run, and what it could not do (`SKIPPED name: why`).

pub mod flow_hit;
pub mod machine;
pub mod namespaces;
pub mod numbers;
pub mod world;

/// What goes wrong ends the bench with its message.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
