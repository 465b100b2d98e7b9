//! The policies in force, filed so that a subject finds its own among many, and a changed policy its subjects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::universe::{Filing, LabelList, Universe};
use crate::model::{DenyAction, Model, Policy, PolicyKey};
use crate::resolve::order;

/// A policy that can have an effect: not staged, and selecting something.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) policy: Arc<Policy>,
    /// Decides between policies of equal order.
    pub(crate) tie_break: String,
}

fn is_before_filter(policy: &Policy) -> bool {
    policy.flags.do_not_track || policy.flags.pre_dnat
}

/// All of them, by number.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    numbers: BTreeMap<PolicyKey, u32>,
    filing: Filing<u32>,
    /// Those that may tell whom they deny otherwise than the configuration says.
    peculiar: BTreeSet<u32>,
}

impl Policies {
    /// Takes in what the policy is now. Returns its number, also when it is gone now; `None` when it never had an effect.
    pub(crate) fn follow(&mut self, model: &Model, key: &PolicyKey, universe: &mut Universe) -> Option<u32> {
        let now =
            model.policies.get(key).filter(|policy| policy.staged.is_none() && policy.selector.is_some());
        let number = self.numbers.get(key).copied();
        if let Some(number) = number
            && let Some(before) = self.entries[number as usize].take()
        {
            self.filing.remove(universe, before.policy.selector.as_ref(), number);
        }
        let Some(now) = now else {
            if let Some(number) = number {
                self.peculiar.remove(&number);
                self.numbers.remove(key);
                self.free.push(number);
            }
            return number;
        };
        let number = number.or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.filing.insert(universe, now.selector.as_ref(), number);
        match now.flags.deny_action.is_some() || is_before_filter(now) {
            true => self.peculiar.insert(number),
            false => self.peculiar.remove(&number),
        };
        self.entries[number as usize] =
            Some(Entry { policy: Arc::clone(now), tie_break: order::tie_break(now) });
        self.numbers.insert(key.clone(), number);
        Some(number)
    }

    /// Returns the policy with this number.
    pub(crate) fn get(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number as usize)?.as_ref()
    }

    /// Returns the policies whose denials are told otherwise than `general` says (policy model 14.1, 32.9).
    pub(crate) fn told_otherwise(&self, general: DenyAction) -> impl Iterator<Item = &Policy> {
        let policies =
            self.peculiar.iter().filter_map(|number| self.get(*number)).map(|entry| &*entry.policy);
        policies.filter(move |policy| {
            // The setting is about the filter stage; before it denials are silent.
            let general_here = if is_before_filter(policy) { DenyAction::Drop } else { general };
            policy.flags.deny_action.unwrap_or(general_here) != general
        })
    }

    /// Returns whether the policy selects a subject with `labels`.
    pub(crate) fn selects(&self, number: u32, labels: &LabelList, universe: &Universe) -> bool {
        let selector = self.get(number).and_then(|entry| entry.policy.selector.as_ref());
        selector.is_some_and(|selector| universe.matches(selector, labels))
    }

    /// Returns every policy that selects a subject with `labels`.
    pub(crate) fn of(&self, labels: &LabelList, universe: &Universe) -> BTreeSet<u32> {
        self.filing.candidates(labels).filter(|number| self.selects(*number, labels, universe)).collect()
    }
}
