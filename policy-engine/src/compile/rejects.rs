//! Which decision points answer whom they deny (policy model 14.1, 32.9).
//!
//! An answer is no part of a verdict: tables, epochs and what flows remember are the same with and without it. So it is kept beside them,
//! as what holds in general and the numbers of the points where the other holds, and asked for when a packet has been denied. The end of
//! a tier answers when any policy of the tier that governs the endpoint does.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::lists::{ListOwner, Lists};
use super::program::KeyPart;
use super::table::Table;
use crate::model::{DenyAction, Policy};
use crate::packet::Direction;

/// Which points answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rejects {
    general: DenyAction,
    /// Points for which the other holds, ascending.
    otherwise: Vec<u32>,
}

impl Rejects {
    pub(crate) fn answers(&self, point: u32) -> bool {
        (self.general == DenyAction::Reject) != self.otherwise.binary_search(&point).is_ok()
    }
}

/// The policies for which something else holds than in general, as tables know them.
#[derive(Debug)]
pub(crate) struct Peculiar<'m> {
    general: DenyAction,
    /// Kind, namespace, name.
    names: BTreeSet<(&'m str, &'m str, &'m str)>,
    /// Numbers of their lists of rules.
    lists: HashSet<u64, foldhash::fast::FixedState>,
}

impl<'m> Peculiar<'m> {
    pub(crate) fn new(
        general: DenyAction,
        policies: impl Iterator<Item = &'m Policy>,
        lists: &Lists,
    ) -> Self {
        let mut peculiar = Self { general, names: BTreeSet::new(), lists: HashSet::default() };
        for policy in policies {
            let key = &policy.key;
            peculiar.names.insert((key.kind.as_str(), key.namespace.as_deref().unwrap_or(""), &key.name));
            for direction in [Direction::Ingress, Direction::Egress] {
                peculiar.lists.extend(lists.number(&(ListOwner::Policy(key.clone()), direction)));
            }
        }
        peculiar
    }

    /// Returns which points of `tables` answer: by their rules, and by the ends of tiers that they take part in.
    pub(crate) fn points<'t>(self, tables: impl Iterator<Item = (&'t [KeyPart], &'t Table)>) -> Rejects {
        let mut otherwise = Vec::new();
        for (key, table) in tables {
            if self.names.is_empty() {
                break;
            }
            let (takes_part, tiers) = self.tiers(key);
            if !takes_part {
                continue;
            }
            let is_otherwise = |attribution: &crate::snapshot::Attribution| {
                let name = (&*attribution.kind, &*attribution.namespace, &*attribution.name);
                let is_end = attribution.kind.is_empty() && attribution.rule < 0;
                self.names.contains(&name) || (is_end && tiers.contains(attribution.tier.as_str()))
            };
            let of_table = table.program.points.iter().zip(table.base..);
            let points = of_table.filter(|(point, _)| is_otherwise(&point.attribution));
            otherwise.extend(points.map(|(_, number)| number));
        }
        otherwise.sort_unstable();
        Rejects { general: self.general, otherwise }
    }

    /// Returns whether one of them takes part in what is governed by `key`, and the tiers whose end is told otherwise: those with any of
    /// them where it is they who answer, those with none but them where it is the others.
    fn tiers<'t>(&self, key: &'t [KeyPart]) -> (bool, BTreeSet<&'t str>) {
        let mut tier = None;
        let mut lists: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for part in key {
            match part {
                KeyPart::Tier(name, _) => tier = Some(name.as_str()),
                KeyPart::List(number) => {
                    if let Some(tier) = tier {
                        let (own, others) = lists.entry(tier).or_default();
                        *(if self.lists.contains(number) { own } else { others }) += 1;
                    }
                }
                _ => {}
            }
        }
        let takes_part = lists.values().any(|(own, _)| *own > 0);
        let told = lists
            .into_iter()
            .filter(|(_, (own, others))| *own > 0 && (self.general == DenyAction::Drop || *others == 0));
        (takes_part, told.map(|(tier, _)| tier).collect())
    }
}
