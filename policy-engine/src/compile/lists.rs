//! Compiled rule lists, shared by everything that is governed by the same policy, and kept for as long as something is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::rules::{CompiledRule, RuleList};
use super::sets::Sets;
use crate::model::{Policy, PolicyKey, Profile, Rule};
use crate::packet::Direction;
use crate::snapshot::Attribution;

/// Whose rules a list holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ListOwner {
    Policy(PolicyKey),
    Profile(String),
    /// The failsafe ports of a node; the flag marks those that recognise replies too.
    Failsafe(String, bool),
}

/// The object that a list was compiled from.
#[derive(Clone, Debug)]
pub(crate) enum ListSource {
    Policy(Arc<Policy>),
    Profile(Arc<Profile>),
    /// Follows from the name alone.
    Derived,
    /// Compiled again each time it is asked for.
    Unknown,
}

impl ListSource {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Policy(a), Self::Policy(b)) => Arc::ptr_eq(a, b),
            (Self::Profile(a), Self::Profile(b)) => Arc::ptr_eq(a, b),
            (Self::Derived, Self::Derived) => true,
            _ => false,
        }
    }
}

/// Owner and direction.
pub(crate) type ListKey = (ListOwner, Direction);

#[derive(Debug)]
struct Known {
    source: ListSource,
    list: Arc<RuleList>,
    uses: u32,
}

/// Compiled rule lists by what they were compiled from.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    known: BTreeMap<ListKey, Known>,
    next: u64,
    allows_unenforced: bool,
}

impl Lists {
    /// Whether rules with criteria that are not enforced behave as if they had none (PM-D15). Returns whether that is new; if so, every
    /// list has to be asked for again.
    pub(crate) fn allow_unenforced(&mut self, allows: bool) -> bool {
        if self.allows_unenforced == allows {
            return false;
        }
        self.allows_unenforced = allows;
        self.known.values_mut().for_each(|known| known.source = ListSource::Unknown);
        true
    }

    /// Returns the list of `key`, compiled from `rules` unless it was compiled from this very source. Equal content keeps its number.
    pub(crate) fn get(
        &mut self,
        key: &ListKey,
        source: ListSource,
        rules: &[Rule],
        name: impl Fn(usize) -> Attribution,
        sets: &mut Sets,
    ) -> Arc<RuleList> {
        let known = self.known.get_mut(key);
        if let Some(known) = &known
            && known.source.is(&source)
        {
            return Arc::clone(&known.list);
        }
        let rules: Vec<Arc<CompiledRule>> = rules
            .iter()
            .enumerate()
            .filter_map(|(index, rule)| {
                CompiledRule::compile(rule, name(index), self.allows_unenforced, sets)
            })
            .map(Arc::new)
            .collect();
        if let Some(known) = known {
            known.source = source;
            if known.list.rules != rules {
                self.next += 1;
                let list = Arc::new(RuleList { number: self.next, rules });
                list.sets().for_each(|set| sets.hold(set));
                let old = std::mem::replace(&mut known.list, list);
                old.sets().for_each(|set| sets.release(set));
            }
            return Arc::clone(&known.list);
        }
        self.next += 1;
        let list = Arc::new(RuleList { number: self.next, rules });
        list.sets().for_each(|set| sets.hold(set));
        self.known.insert(key.clone(), Known { source, list: Arc::clone(&list), uses: 0 });
        list
    }

    /// Returns the number of the list of `key`, while something is governed by it.
    pub(crate) fn number(&self, key: &ListKey) -> Option<u64> {
        self.known.get(key).map(|known| known.list.number)
    }

    /// One more is governed by the list.
    pub(crate) fn hold(&mut self, key: &ListKey) {
        if let Some(known) = self.known.get_mut(key) {
            known.uses += 1;
        }
    }

    /// One less is; with the last one the list is gone.
    pub(crate) fn release(&mut self, key: &ListKey, sets: &mut Sets) {
        let Some(known) = self.known.get_mut(key) else { return };
        known.uses = known.uses.saturating_sub(1);
        if known.uses == 0
            && let Some(known) = self.known.remove(key)
        {
            known.list.sets().for_each(|set| sets.release(set));
        }
    }
}
