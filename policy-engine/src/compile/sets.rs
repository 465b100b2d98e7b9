//! The address sets that rules refer to, for as long as some rule does (policy model 10.1, 10.4).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

pub(crate) use super::identities::{Membership, SetId, set_of};
use super::paged::Paged;
use crate::model::NamespacedName;
use crate::selector::Selector;

/// What a set contains. Two expressions with the same canonical text are the same set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SetKey {
    /// Addresses of the objects that a selector selects (policy model 10.2).
    Selector(String),
    /// A list of CIDRs of a rule.
    Nets(Vec<IpNet>),
    /// (address, protocol, port) of endpoints that declare the name, within the selector (policy model 9.4).
    NamedPort(Option<String>, String),
    /// Addresses of a Service's endpoints (policy model 10.6).
    ServiceAddresses(NamespacedName),
    /// (address, protocol, port) of a Service's endpoints.
    Service(NamespacedName),
    /// Addresses of the Kubernetes nodes that a selector over node labels selects (policy model 32.11).
    Nodes(String),
}

/// A set that something refers to.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) key: Arc<SetKey>,
    pub(crate) selector: Option<Selector>,
    uses: u32,
}

/// Numbers sets and counts who refers to them.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    numbers: BTreeMap<Arc<SetKey>, SetId>,
    sets: BTreeMap<SetId, Set>,
    keys: Paged<Arc<SetKey>>,
    next: u32,
    added: BTreeSet<SetId>,
    removed: Vec<(SetId, Set)>,
}

impl Sets {
    fn number(&mut self, key: SetKey, selector: Option<&Selector>) -> SetId {
        if let Some(set) = self.numbers.get(&key) {
            return *set;
        }
        let set = SetId(self.next);
        self.next += 1;
        let key = Arc::new(key);
        self.numbers.insert(Arc::clone(&key), set);
        self.keys.insert(set.0, Arc::clone(&key));
        self.sets.insert(set, Set { key, selector: selector.cloned(), uses: 0 });
        self.added.insert(set);
        set
    }

    pub(crate) fn selector(&mut self, selector: &Selector) -> SetId {
        self.number(SetKey::Selector(selector.canonical().to_owned()), Some(selector))
    }

    pub(crate) fn nodes(&mut self, selector: &Selector) -> SetId {
        self.number(SetKey::Nodes(selector.canonical().to_owned()), Some(selector))
    }

    pub(crate) fn nets(&mut self, nets: &[IpNet]) -> SetId {
        let nets: BTreeSet<IpNet> = nets.iter().map(IpNet::trunc).collect();
        self.number(SetKey::Nets(nets.into_iter().collect()), None)
    }

    pub(crate) fn named_port(&mut self, selector: Option<&Selector>, name: &str) -> SetId {
        let within = selector.map(|selector| selector.canonical().to_owned());
        self.number(SetKey::NamedPort(within, name.to_owned()), selector)
    }

    pub(crate) fn service_addresses(&mut self, service: &NamespacedName) -> SetId {
        self.number(SetKey::ServiceAddresses(service.clone()), None)
    }

    pub(crate) fn service(&mut self, service: &NamespacedName) -> SetId {
        self.number(SetKey::Service(service.clone()), None)
    }

    /// One more refers to `set`.
    pub(crate) fn hold(&mut self, set: SetId) {
        if let Some(set) = self.sets.get_mut(&set) {
            set.uses += 1;
        }
    }

    /// One less refers to `set`; with the last one the set is gone, and its number with it.
    pub(crate) fn release(&mut self, set: SetId) {
        let Some(known) = self.sets.get_mut(&set) else { return };
        known.uses = known.uses.saturating_sub(1);
        if known.uses == 0
            && let Some(known) = self.sets.remove(&set)
        {
            self.numbers.remove(&known.key);
            self.keys.remove(set.0);
            if !self.added.remove(&set) {
                self.removed.push((set, known));
            }
        }
    }

    /// Returns the set with this content.
    pub(crate) fn find(&self, key: &SetKey) -> Option<SetId> {
        self.numbers.get(key).copied()
    }

    pub(crate) fn get(&self, set: SetId) -> Option<&Set> {
        self.sets.get(&set)
    }

    /// Walks the sets by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SetId, &Set)> {
        self.sets.iter().map(|(number, set)| (*number, set))
    }

    /// Returns the keys by number.
    pub(crate) fn keys(&self) -> &Paged<Arc<SetKey>> {
        &self.keys
    }

    /// Returns the sets that came and that went since the last call.
    pub(crate) fn take_changes(&mut self) -> (BTreeSet<SetId>, Vec<(SetId, Set)>) {
        (std::mem::take(&mut self.added), std::mem::take(&mut self.removed))
    }
}
