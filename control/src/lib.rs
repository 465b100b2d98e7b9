//! From where the objects come: sources of truth that feed one Model.
//!
//! ```text
//!  a folder of YAML ─▶ directory ─┐
//!                                 ├─▶ Source ─▶ batches of Change ─▶ policy_engine::Engine
//!  other sources      ────────────┘            └▶ problems, as current state
//! ```
//!
//! * [`source`] is the trait and its batches.
//! * [`problem`] says what is wrong with the input, with file, line, field and reason.

pub mod problem;
pub mod source;

pub use problem::{Problem, Severity};
pub use source::{Batch, Source, SourceError};
