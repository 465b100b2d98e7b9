//! From objects to the facts that policy is about: labels, owners of addresses, and ordered policy lists.
//!
//! ```text
//!   Model + local endpoints ─▶ labels     what a selector sees of an object           (policy model 1.4)
//!                           ─▶ owners     which pod an address belongs to             (PM-D24)
//!                           ─▶ order      which policies govern an endpoint, in order (policy model 8.1 to 8.3)
//! ```
//!
//! Every function here is pure; what is worth remembering between two publications is remembered by the engine.

pub(crate) mod labels;
pub(crate) mod order;
pub(crate) mod owners;
