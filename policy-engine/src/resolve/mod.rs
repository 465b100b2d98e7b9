//! From objects to the facts that policy is about: labels, and ordered policy lists.
//!
//! ```text
//!   Model ─▶ labels   what a selector sees of an object                              (policy model 1.4)
//!         ─▶ owners   which pod holds an address by its status                       (PM-D24)
//!         ─▶ order    which tier and policy comes first                              (policy model 8.1, 8.2)
//!         ─▶ restrict what a policy is under the switch of PM-D4
//!         ─▶ hosts    which host endpoint governs an interface, in which context     (policy model 11.1, 11.2)
//! ```
//!
//! Every function here is pure; what is worth remembering between two publications is remembered by `compile`.

pub(crate) mod hosts;
pub(crate) mod labels;
pub(crate) mod order;
pub(crate) mod owners;
pub(crate) mod restrict;
