//! From where the objects come: sources of truth that feed one Model.
//!
//! ```text
//!  a folder of YAML ─▶ directory ─┐
//!                                 ├─▶ Source ─▶ batches of Change ─▶ policy_engine::Engine
//!  other sources      ────────────┘            └▶ problems, as current state
//! ```
//!
//! * [`directory`] follows a folder of manifests with inotify, and remembers last valid forms on disk.
//! * [`manifests`] reads the same folder once, for questions that need no node.
//! * [`source`] is the trait and its batches.
//! * [`problem`] says what is wrong with the input, with file, line, field and reason.

pub mod directory;
mod listing;
pub mod manifests;
pub mod problem;
mod reading;
pub mod source;

pub use directory::{Directory, DirectoryConfig, DirectoryError};
pub use problem::{Problem, Severity, object_name};
pub use source::{Batch, Source, SourceError};
