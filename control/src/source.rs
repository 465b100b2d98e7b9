//! A source of truth: something that tells, in batches, how the world differs from what it told before.
//!
//! A source is driven by whoever owns it: [`Source::next`] blocks on the caller's thread, so there is no thread, queue or clock here
//! that the owner does not know. Applying every batch in order to an empty engine gives the source's current state; batches may be
//! merged, never reordered.

use std::sync::Arc;
use std::time::Duration;

use margay_policy_engine::engine::Change;

use crate::problem::Problem;

/// What changed between two looks at the world.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Differences to what was told before; may be empty when only `problems` changed.
    pub changes: Vec<Change>,
    /// Everything that is wrong as of now, sorted; not only what is new.
    pub problems: Arc<[Problem]>,
    /// The source has told everything it knows at least once: policy may be put in force (policy model 28, row 1).
    pub complete: bool,
    /// The source cannot see the world at the moment and what it told is from before (PM-D27).
    pub stale: bool,
}

/// Why a source has nothing more to say.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel's or the server's stream of events ended for good.
    #[error("{source_name}: the stream of changes ended: {reason}; restart the agent")]
    Closed {
        /// Which source.
        source_name: String,
        /// Why.
        reason: String,
    },
}

/// A source of truth.
pub trait Source: Send {
    /// Blocks until something changed, at most `timeout`. The first call returns the whole state at once.
    ///
    /// Returns `None` when nothing changed in time. Errors: [`SourceError::Closed`]; what was told stays in force.
    fn next(&mut self, timeout: Duration) -> Result<Option<Batch>, SourceError>;

    /// Returns everything that is wrong as of the last batch.
    fn problems(&self) -> Arc<[Problem]>;
}
