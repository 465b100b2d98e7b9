//! From resolved policy to tables whose lookup cost does not grow with the number of rules.
//!
//! ```text
//!   peer expressions ─▶ sets        every distinct one is an address set with a number
//!   prefixes         ─▶ addresses   longest-prefix match to an identity: the set of sets an address belongs to
//!   policy lists     ─▶ rules       per (policy, direction), shared by all endpoints
//!                    ─▶ program     the rules of an endpoint as a row of bits: tier, policy and rule order is bit order
//!                    ─▶ rows        which bits a source, a destination, a protocol, a port leaves standing
//! ```
//!
//! The first bit that survives the AND of all rows is the winning rule. Everything that changes with pods coming and going lives in
//! identities; a program depends on policies, tiers and profiles alone, which is why its epoch is quiet.

pub(crate) mod addresses;
pub(crate) mod compiler;
pub(crate) mod objects;
pub(crate) mod paged;
pub(crate) mod program;
pub(crate) mod rows;
pub(crate) mod rules;
pub(crate) mod sets;
pub(crate) mod table;
