//! Sets and sources ask each other: does this one select that one?

use std::collections::BTreeSet;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::{Kind, Sources, service_of};
use crate::compile::identities::{Membership, SetId, triple};
use crate::compile::sets::{Set, SetKey, Sets};
use crate::compile::universe::LabelList;
use crate::model::NamespacedName;
use crate::packet::IdentityId;
use crate::selector::Selector;

/// So many objects that are asked about their sets at once are asked set by set.
const MANY: u64 = 256;

impl Sources {
    /// Asks which sets select a Node.
    pub(super) fn ask_node(&mut self, sets: &Sets, number: u32) {
        let Kind::Node(node) = &self.sources[number as usize].kind else { return };
        let selects = |set: &&SetId| {
            sets.get(**set)
                .and_then(|set| set.selector.as_ref())
                .is_some_and(|selector| selector.matches(&node.labels))
        };
        let sets = self.selecting_nodes.iter().filter(selects).copied().collect();
        let identity = self.identities.number(Membership { sets, triples: Vec::new() });
        self.set_identity(number, identity);
    }

    /// Asks which sets an EndpointSlice is of.
    pub(super) fn ask_slice(&mut self, sets: &Sets, number: u32) {
        let Kind::Slice(slice) = &self.sources[number as usize].kind else { return };
        let service = service_of(slice);
        let mut membership = Membership::default();
        if let Some(set) = sets.find(&SetKey::ServiceAddresses(service.clone())) {
            membership.sets.push(set);
        }
        if let Some(set) = sets.find(&SetKey::Service(service))
            && !slice.ports.is_empty()
        {
            membership.sets.push(set);
            membership
                .triples
                .extend(slice.ports.iter().map(|(protocol, port)| triple(set, *protocol, *port)));
        }
        membership.normalise();
        let identity = self.identities.number(membership);
        self.set_identity(number, identity);
    }

    /// Takes in which sets came and went, and asks sets and sources about each other where either is new.
    pub(crate) fn ask(&mut self, sets: &Sets, added: &BTreeSet<SetId>, removed: &[(SetId, Set)]) {
        let mut pairs: Vec<(u32, SetId, bool)> = Vec::new();
        let mut asks_nodes = false;
        let mut services: BTreeSet<NamespacedName> = BTreeSet::new();
        for (number, set) in removed {
            match &*set.key {
                SetKey::Selector(_) | SetKey::NamedPort(..) => {
                    self.selecting.remove(&mut self.universe, set.selector.as_ref(), *number);
                    let had = self.select(set) - &self.fresh;
                    pairs.extend(had.into_iter().map(|source| (source, *number, false)));
                }
                SetKey::Nets(_) => {
                    if let Some(source) = self.nets.remove(number) {
                        self.drop_source(source);
                    }
                }
                SetKey::Service(service) | SetKey::ServiceAddresses(service) => {
                    services.insert(service.clone());
                }
                SetKey::Nodes(_) => {
                    self.selecting_nodes.remove(number);
                    asks_nodes = true;
                }
            }
        }
        for (number, set) in added.iter().filter_map(|set| Some((*set, sets.get(*set)?))) {
            match &*set.key {
                SetKey::Selector(_) | SetKey::NamedPort(..) => {
                    self.selecting.insert(&mut self.universe, set.selector.as_ref(), number);
                    let has = self.select(set) - &self.fresh;
                    pairs.extend(has.into_iter().map(|source| (source, number, true)));
                }
                SetKey::Nets(nets) => {
                    let source = self.add(Kind::Nets(nets.clone()), LabelList::default());
                    self.nets.insert(number, source);
                    let membership = Membership { sets: vec![number], triples: Vec::new() };
                    let identity = self.identities.number(membership);
                    self.set_identity(source, identity);
                }
                SetKey::Service(service) | SetKey::ServiceAddresses(service) => {
                    services.insert(service.clone());
                }
                SetKey::Nodes(_) => {
                    self.selecting_nodes.insert(number);
                    asks_nodes = true;
                }
            }
        }
        for service in services {
            for slice in self.of_service.get(&service).cloned().into_iter().flatten() {
                self.ask_slice(sets, slice);
            }
        }
        if asks_nodes {
            let nodes: BTreeSet<u32> = self.nodes.values().copied().collect();
            nodes.into_iter().for_each(|node| self.ask_node(sets, node));
        }
        self.ask_fresh(sets, &mut pairs);
        pairs.sort_unstable();
        for pairs in pairs.chunk_by(|a, b| a.0 == b.0) {
            let source = &self.sources[pairs[0].0 as usize];
            let mut has: Vec<SetId> = self.identities.value(source.identity).sets.clone();
            let leaves = |set: &SetId| pairs.iter().any(|(_, other, joins)| other == set && !joins);
            has.retain(|set| !leaves(set));
            has.extend(pairs.iter().filter(|(.., joins)| *joins).map(|(_, set, _)| *set));
            self.belong(sets, pairs[0].0, has);
        }
        self.label_lists.clear();
    }

    /// Asks the sets about every fresh source.
    fn ask_fresh(&mut self, sets: &Sets, pairs: &mut Vec<(u32, SetId, bool)>) {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.len() < MANY {
            for number in fresh {
                let labels = Arc::clone(&self.sources[number as usize].labels);
                let has = self.selecting.candidates(&labels).filter(|set| {
                    sets.get(*set).is_some_and(|set| self.declares(number, set) && self.selects(set, &labels))
                });
                let has = has.collect();
                self.belong(sets, number, has);
            }
            return;
        }
        for number in &fresh {
            self.set_identity(number, IdentityId(0));
        }
        for (number, set) in sets.iter() {
            if matches!(&*set.key, SetKey::Selector(_) | SetKey::NamedPort(..)) {
                let has = self.select(set) & &fresh;
                pairs.extend(has.into_iter().map(|source| (source, number, true)));
            }
        }
    }

    fn selects(&self, set: &Set, labels: &LabelList) -> bool {
        set.selector.as_ref().is_none_or(|selector| self.universe.matches(selector, labels))
    }

    fn declares(&self, number: u32, set: &Set) -> bool {
        let SetKey::NamedPort(_, name) = &*set.key else { return true };
        self.sources[number as usize].kind.ports().iter().any(|port| port.name == *name)
    }

    fn select(&self, set: &Set) -> RoaringBitmap {
        let selected = |selector: &Selector| self.universe.select(selector);
        match (&*set.key, &set.selector) {
            (SetKey::NamedPort(_, name), selector) => {
                let declaring = self.declaring.get(name).cloned().unwrap_or_default();
                match selector {
                    Some(selector) if !declaring.is_empty() => declaring & selected(selector),
                    _ => declaring,
                }
            }
            (_, Some(selector)) => selected(selector),
            (_, None) => RoaringBitmap::new(),
        }
    }

    /// A labelled source belongs to exactly these sets.
    fn belong(&mut self, sets: &Sets, number: u32, has: Vec<SetId>) {
        let ports = self.sources[number as usize].kind.ports();
        let mut triples = Vec::new();
        if !ports.is_empty() {
            for set in &has {
                if let Some(SetKey::NamedPort(_, name)) = sets.get(*set).map(|set| &*set.key) {
                    let declared = ports.iter().filter(|port| port.name == *name);
                    triples.extend(declared.map(|port| triple(*set, port.protocol, port.port)));
                }
            }
        }
        let mut membership = Membership { sets: has, triples };
        membership.normalise();
        let identity = self.identities.number(membership);
        self.set_identity(number, identity);
    }
}
