//! From resolved policy to tables whose lookup cost does not grow with the number of rules.
//!
//! ```text
//!   objects          ─▶ sources     what has labels, addresses, or both        universe: labels to objects, as sets
//!   peer expressions ─▶ sets        every distinct one is an address set with a number
//!   prefixes         ─▶ addresses   longest-prefix match to a cell: who speaks for an address
//!   cells            ─▶ identities  the set of sets that those who speak for it belong to
//!   policies         ─▶ policies    which govern a pod or an interface of the host, in order
//!                    ─▶ rules       per (policy, direction), shared by all that are governed by it
//!                    ─▶ program     the rules of an endpoint as a row of bits: tier, policy and rule order is bit order
//!                    ─▶ rows        which bits a source, a destination, a protocol, a port leaves standing
//!                    ─▶ shortlist   the same for an address that few bits are about, in one cache line
//! ```
//!
//! The first bit that survives the AND of all rows is the winning rule. Everything that changes with pods coming and going lives in
//! identities; a program depends on policies, tiers and profiles alone, which is why its epoch is quiet. A change touches its own
//! sources, the subjects that its policies select, and what these have in common with nothing else; `compiler` leads through it.

pub(crate) mod addresses;
pub(crate) mod blocks;
pub(crate) mod cells;
pub(crate) mod compiler;
pub(crate) mod endpoints;
pub(crate) mod failsafe;
pub(crate) mod heads;
pub(crate) mod identities;
pub(crate) mod lists;
pub(crate) mod lookup;
pub(crate) mod numbers;
pub(crate) mod paged;
pub(crate) mod pods;
pub(crate) mod policies;
pub(crate) mod prefixes;
pub(crate) mod program;
pub(crate) mod rejects;
pub(crate) mod rows;
pub(crate) mod rules;
pub(crate) mod sets;
pub(crate) mod shortlist;
pub(crate) mod sources;
pub(crate) mod table;
pub(crate) mod universe;
pub(crate) mod v4;
pub(crate) mod v6;
pub(crate) mod work;
