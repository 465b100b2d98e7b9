//! From where the objects come: sources of truth that feed one Model.
//!
//! ```text
//!  a folder of YAML ─▶ directory ─┐
//!                                 ├─▶ Source ─▶ batches of Change ─▶ policy_engine::Engine
//!  an API server ─▶ kubernetes ───┘            └▶ problems, as current state
//! ```
//!
//! * [`directory`] follows a folder of manifests with inotify, and remembers last valid forms on disk.
//! * [`kubernetes`] follows an API server, and keeps the last complete picture on disk.
//! * [`manifests`] reads the same folder once, for questions that need no node.
//! * [`source`] is the trait and its batches.
//! * [`problem`] says what is wrong with the input, with file, line, field and reason.

pub mod directory;
pub mod kubernetes;
mod listing;
pub mod manifests;
pub mod problem;
mod reading;
pub mod source;

pub use directory::{Directory, DirectoryConfig, DirectoryError};
pub use kubernetes::{Kubernetes, KubernetesConfig, KubernetesError};
pub use problem::{Problem, Severity, object_name};
pub use source::{Batch, Source, SourceError};
