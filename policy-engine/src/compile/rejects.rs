//! Which decision points answer whom they deny (policy model 32.9).
//!
//! An answer is no part of a verdict: tables, epochs and what flows remember are the same with and without it. So it is kept beside them,
//! as the numbers of the points, and asked for when a packet has been denied.

use std::collections::{BTreeSet, HashSet};

use super::lists::{ListOwner, Lists};
use super::program::KeyPart;
use super::table::Table;
use crate::model::Policy;
use crate::packet::Direction;

/// The policies that say so, as tables know them.
#[derive(Debug)]
pub(crate) struct Rejecting<'m> {
    /// Kind, namespace, name.
    names: BTreeSet<(&'m str, &'m str, &'m str)>,
    /// Numbers of their lists of rules.
    lists: HashSet<u64, foldhash::fast::FixedState>,
}

impl<'m> Rejecting<'m> {
    pub(crate) fn new(policies: impl Iterator<Item = &'m Policy>, lists: &Lists) -> Self {
        let mut rejecting = Self { names: BTreeSet::new(), lists: HashSet::default() };
        for policy in policies {
            let key = &policy.key;
            rejecting.names.insert((key.kind.as_str(), key.namespace.as_deref().unwrap_or(""), &key.name));
            for direction in [Direction::Ingress, Direction::Egress] {
                rejecting.lists.extend(lists.number(&(ListOwner::Policy(key.clone()), direction)));
            }
        }
        rejecting
    }

    /// Returns the numbers of their points in `tables`, ascending: their rules, and the ends of tiers that they take part in.
    pub(crate) fn points<'t>(&self, tables: impl Iterator<Item = (&'t [KeyPart], &'t Table)>) -> Vec<u32> {
        if self.names.is_empty() {
            return Vec::new();
        }
        let mut points = Vec::new();
        for (key, table) in tables {
            let tiers = self.tiers(key);
            if tiers.is_empty() {
                continue;
            }
            let answers = |attribution: &crate::snapshot::Attribution| {
                let name = (&*attribution.kind, &*attribution.namespace, &*attribution.name);
                let is_end = attribution.kind.is_empty() && attribution.rule < 0;
                self.names.contains(&name) || (is_end && tiers.contains(attribution.tier.as_str()))
            };
            let of_table = table.program.points.iter().zip(table.base..);
            points
                .extend(of_table.filter(|(point, _)| answers(&point.attribution)).map(|(_, number)| number));
        }
        points.sort_unstable();
        points
    }

    /// Returns the tiers in which one of them takes part, for what is governed by `key`.
    fn tiers<'t>(&self, key: &'t [KeyPart]) -> BTreeSet<&'t str> {
        let mut tier = None;
        let mut tiers = BTreeSet::new();
        for part in key {
            match part {
                KeyPart::Tier(name, _) => tier = Some(name.as_str()),
                KeyPart::List(number) if self.lists.contains(number) => tiers.extend(tier),
                _ => {}
            }
        }
        tiers
    }
}
