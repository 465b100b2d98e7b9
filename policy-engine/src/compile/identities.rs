//! Memberships and their numbers.
//!
//! What an address can mean to any rule is its *membership*: the sets it belongs to, and for named ports and services the (set,
//! protocol, port) triples. Equal memberships share one number, the *identity*. A number is never used again for another meaning,
//! so a worker may compare identities across snapshots.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::paged::Paged;
use crate::packet::IdentityId;

/// Number of a set; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SetId(pub(crate) u32);

/// Packs (set, protocol, port) into one comparable word.
#[inline]
pub(crate) fn triple(set: SetId, protocol: u8, port: u16) -> u64 {
    u64::from(set.0) << 24 | u64::from(protocol) << 16 | u64::from(port)
}

/// Returns the set of a packed triple.
pub(crate) fn set_of(triple: u64) -> SetId {
    SetId((triple >> 24) as u32)
}

/// Everything that rules can know of an address. Sorted and free of duplicates once [`Membership::normalise`] ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Membership {
    /// Sets the address is in; for named ports and services: has any triple of.
    pub(crate) sets: Vec<SetId>,
    /// See [`triple`].
    pub(crate) triples: Vec<u64>,
}

impl Membership {
    pub(crate) fn has(&self, set: SetId) -> bool {
        self.sets.binary_search(&set).is_ok()
    }

    #[inline]
    pub(crate) fn has_triple(&self, set: SetId, protocol: u8, port: u16) -> bool {
        self.triples.binary_search(&triple(set, protocol, port)).is_ok()
    }

    pub(crate) fn merge(&mut self, other: &Membership) {
        self.sets.extend_from_slice(&other.sets);
        self.triples.extend_from_slice(&other.triples);
    }

    pub(crate) fn normalise(&mut self) {
        self.sets.sort_unstable();
        self.sets.dedup();
        self.triples.sort_unstable();
        self.triples.dedup();
    }
}

/// Numbers memberships. Zero is "belongs to nothing".
#[derive(Debug)]
pub(crate) struct Identities {
    numbers: HashMap<Arc<Membership>, IdentityId, foldhash::fast::FixedState>,
    values: Paged<Arc<Membership>>,
    /// Numbers of unions that were asked for before.
    unions: HashMap<(IdentityId, IdentityId), IdentityId, foldhash::fast::FixedState>,
    /// Identities that have a set.
    by_set: HashMap<SetId, BTreeSet<IdentityId>, foldhash::fast::FixedState>,
    /// Numbered since [`Identities::take_fresh`].
    fresh: Vec<IdentityId>,
    next: u32,
    /// How many there were after the last [`Identities::retain`].
    kept: usize,
}

impl Default for Identities {
    fn default() -> Self {
        let mut identities = Self {
            numbers: HashMap::default(),
            values: Paged::default(),
            unions: HashMap::default(),
            by_set: HashMap::default(),
            fresh: Vec::new(),
            next: 0,
            kept: 0,
        };
        identities.number(Membership::default());
        identities
    }
}

impl Identities {
    /// Returns the number of a normalised membership.
    pub(crate) fn number(&mut self, membership: Membership) -> IdentityId {
        if let Some(number) = self.numbers.get(&membership) {
            return *number;
        }
        let number = IdentityId(self.next);
        self.next += 1;
        let shared = Arc::new(membership);
        for set in &shared.sets {
            self.by_set.entry(*set).or_default().insert(number);
        }
        self.values.insert(number.0, Arc::clone(&shared));
        self.numbers.insert(shared, number);
        self.fresh.push(number);
        number
    }

    /// Returns the number of what belongs to everything that `a` and `b` belong to.
    pub(crate) fn union(&mut self, a: IdentityId, b: IdentityId) -> IdentityId {
        if a == b || b == IdentityId(0) {
            return a;
        }
        if a == IdentityId(0) {
            return b;
        }
        if let Some(union) = self.unions.get(&(a, b)) {
            return *union;
        }
        let mut membership = Membership::clone(self.value(a));
        membership.merge(self.value(b));
        membership.normalise();
        let union = self.number(membership);
        self.unions.insert((a, b), union);
        union
    }

    /// Returns what `identity` stands for; nothing at all for a number that was let go.
    pub(crate) fn value(&self, identity: IdentityId) -> &Membership {
        static NOTHING: Membership = Membership { sets: Vec::new(), triples: Vec::new() };
        self.values.get(identity.0).map_or(&NOTHING, |membership| membership)
    }

    /// Returns all of them, by number.
    pub(crate) fn values(&self) -> &Paged<Arc<Membership>> {
        &self.values
    }

    /// Returns the identities that have `set`.
    pub(crate) fn with_set(&self, set: SetId) -> impl Iterator<Item = IdentityId> {
        self.by_set.get(&set).into_iter().flatten().copied()
    }

    /// Returns what was numbered since the last call.
    pub(crate) fn take_fresh(&mut self) -> Vec<IdentityId> {
        std::mem::take(&mut self.fresh)
    }

    /// Whether so many numbers were given out that it is worth looking for those that nothing has any more.
    pub(crate) fn is_crowded(&self) -> bool {
        self.numbers.len() > 2 * self.kept + 4_096
    }

    /// Lets every identity go that is not in `used`; returns them. A later equal membership gets a fresh number, which costs
    /// one judgement per flow.
    pub(crate) fn retain(
        &mut self,
        used: &HashSet<IdentityId, foldhash::fast::FixedState>,
    ) -> Vec<IdentityId> {
        let mut gone = Vec::new();
        self.numbers.retain(|membership, number| {
            let is_used = number.0 == 0 || used.contains(number);
            if !is_used {
                gone.push((*number, Arc::clone(membership)));
            }
            is_used
        });
        for (number, membership) in &gone {
            self.values.remove(number.0);
            for set in &membership.sets {
                if let Some(with_set) = self.by_set.get_mut(set) {
                    with_set.remove(number);
                    if with_set.is_empty() {
                        self.by_set.remove(set);
                    }
                }
            }
        }
        self.unions.clear();
        self.kept = self.numbers.len();
        gone.into_iter().map(|(number, _)| number).collect()
    }
}
