//! Pods, their addresses, and which of them holds an address that several claim (PM-D24, policy model 10.3).
//!
//! ```text
//!   Pod objects ─▶ claims ─┐
//!   CNI results ─▶ locals ─┼─▶ the class of the pod that holds an address
//!   Nodes ───────▶ taken ──┘
//! ```
//!
//! What a pod is to policy is its *class*, a source that pods with equal labels and ports share ([`super::sources`]).

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use roaring::RoaringBitmap;

use crate::engine::LocalEndpoint;
use crate::model::{Model, NamespacedName, Node, Pod};
use crate::packet::EndpointId;
use crate::resolve::owners;

type Hasher = foldhash::fast::FixedState;

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    class: u32,
}

/// All pods. See the module.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    numbers: HashTable<u32>,
    /// Which pod claims an address by its status; where more than one does, the others are in `rivals`.
    claims: HashMap<IpAddr, u32, Hasher>,
    rivals: HashMap<IpAddr, BTreeSet<u32>, Hasher>,
    /// How many Nodes have an address.
    taken: HashMap<IpAddr, u32, Hasher>,
    on_node: HashMap<String, RoaringBitmap, Hasher>,
    locals: HashMap<EndpointId, LocalEndpoint, Hasher>,
    locals_at: HashMap<IpAddr, BTreeSet<EndpointId>, Hasher>,
    locals_of: HashMap<NamespacedName, BTreeSet<EndpointId>, Hasher>,
    trusts_annotations: bool,
    /// Addresses that may be held by a pod of another class than before.
    unsettled: Vec<IpAddr>,
    /// Local endpoints whose pod came, changed or went.
    stirred: BTreeSet<EndpointId>,
}

fn hash_of(key: &NamespacedName) -> u64 {
    Hasher::default().hash_one(key)
}

impl Pods {
    fn entry(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number as usize)?.as_ref()
    }

    fn number(&self, key: &NamespacedName) -> Option<u32> {
        let is_it = |number: &u32| self.entry(*number).is_some_and(|entry| entry.pod.key == *key);
        self.numbers.find(hash_of(key), is_it).copied()
    }

    /// Returns the class of a pod.
    pub(crate) fn class(&self, key: &NamespacedName) -> Option<u32> {
        self.entry(self.number(key)?).map(|entry| entry.class)
    }

    /// Takes in what a pod is now, and of which class. Returns the class it was of.
    pub(crate) fn follow(&mut self, key: &NamespacedName, now: Option<(Arc<Pod>, u32)>) -> Option<u32> {
        let before = self.number(key);
        if before.is_some() || now.is_some() {
            self.stirred.extend(self.locals_of.get(key).into_iter().flatten());
        }
        let mut class = None;
        if let Some(number) = before {
            self.unsettle(number);
            self.unclaim(number);
            class = self.entry(number).map(|entry| entry.class);
        }
        match (before, now) {
            (None, None) => {}
            (Some(number), None) => {
                if let Ok(entry) = self.numbers.find_entry(hash_of(key), |other| *other == number) {
                    entry.remove();
                }
                self.entries[number as usize] = None;
                self.free.push(number);
            }
            (_, Some((pod, class))) => {
                let number = before.unwrap_or_else(|| self.add(key));
                self.entries[number as usize] = Some(Entry { pod, class });
                self.claim(number);
                self.unsettle(number);
            }
        }
        class
    }

    /// Finds a number for a pod that has none.
    fn add(&mut self, key: &NamespacedName) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        let entries = &self.entries;
        self.numbers.insert_unique(hash_of(key), number, |number| {
            entries[*number as usize].as_ref().map_or(0, |entry| hash_of(&entry.pod.key))
        });
        number
    }

    /// Whether annotations count where a pod's status has no address (PM-D24).
    pub(crate) fn trust_annotations(&mut self, trusts: bool) {
        if self.trusts_annotations == trusts {
            return;
        }
        let pods: Vec<u32> = self.numbers.iter().copied().collect();
        for number in &pods {
            self.unsettle(*number);
            self.unclaim(*number);
        }
        self.trusts_annotations = trusts;
        for number in pods {
            self.claim(number);
            self.unsettle(number);
        }
    }

    /// Takes in what a local endpoint is now.
    pub(crate) fn follow_local(&mut self, id: EndpointId, now: Option<&LocalEndpoint>) {
        if self.locals.get(&id) == now {
            return;
        }
        let before = match now {
            Some(now) => self.locals.insert(id, now.clone()),
            None => self.locals.remove(&id),
        };
        self.stirred.insert(id);
        if let Some(before) = &before {
            for address in &before.addresses {
                take_from(&mut self.locals_at, address, &id);
            }
            take_from(&mut self.locals_of, &before.pod, &id);
        }
        if let Some(now) = now {
            for address in &now.addresses {
                self.locals_at.entry(*address).or_default().insert(id);
            }
            self.locals_of.entry(now.pod.clone()).or_default().insert(id);
        }
        for local in before.as_ref().into_iter().chain(now) {
            self.unsettled.extend_from_slice(&local.addresses);
            // Whether the pod is local decides whether its status counts.
            if let Some(number) = self.number(&local.pod) {
                self.unsettle(number);
            }
        }
    }

    /// Takes in what a Node was and is.
    pub(crate) fn follow_node(&mut self, name: &str, before: Option<&Node>, now: Option<&Node>) {
        for address in before.into_iter().flat_map(|node| &node.addresses) {
            if let Some(count) = self.taken.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.taken.remove(address);
                }
            }
            self.unsettled.push(*address);
        }
        for address in now.into_iter().flat_map(|node| &node.addresses) {
            *self.taken.entry(*address).or_default() += 1;
            self.unsettled.push(*address);
        }
        // Its podCIDRs decide what its pods may claim.
        for number in self.on_node.get(name).cloned().into_iter().flatten() {
            self.unsettle(number);
        }
    }

    /// Marks every address that a pod may hold.
    fn unsettle(&mut self, number: u32) {
        let Some(Entry { pod, .. }) = self.entries[number as usize].as_ref() else { return };
        self.unsettled.extend_from_slice(owners::claimed(pod, self.trusts_annotations));
        for local in self.locals_of.get(&pod.key).into_iter().flatten() {
            self.unsettled.extend(self.locals.get(local).into_iter().flat_map(|local| &local.addresses));
        }
    }

    fn claim(&mut self, number: u32) {
        let Some(Entry { pod, .. }) = self.entries[number as usize].as_ref() else { return };
        if let Some(node) = &pod.node {
            self.on_node.entry_ref(node.as_str()).or_default().insert(number);
        }
        for address in owners::claimed(pod, self.trusts_annotations) {
            let first = *self.claims.entry(*address).or_insert(number);
            if first != number {
                self.rivals.entry(*address).or_default().insert(number);
            }
        }
    }

    fn unclaim(&mut self, number: u32) {
        let Some(Entry { pod, .. }) = self.entries[number as usize].as_ref() else { return };
        if let Some(node) = &pod.node
            && let Some(pods) = self.on_node.get_mut(node)
        {
            pods.remove(number);
            if pods.is_empty() {
                self.on_node.remove(node);
            }
        }
        for address in owners::claimed(pod, self.trusts_annotations) {
            if self.claims.get(address) != Some(&number) {
                take_from(&mut self.rivals, address, &number);
                continue;
            }
            let next = self.rivals.get(address).and_then(|rivals| rivals.first().copied());
            match next {
                Some(next) => {
                    self.claims.insert(*address, next);
                    take_from(&mut self.rivals, address, &next);
                }
                None => drop(self.claims.remove(address)),
            }
        }
    }

    /// Returns the addresses that may be held by a pod of another class than before, and forgets them.
    pub(crate) fn take_unsettled(&mut self) -> Vec<IpAddr> {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.sort_unstable();
        unsettled.dedup();
        unsettled
    }

    /// Returns the local endpoints that something happened to since the last call.
    pub(crate) fn take_stirred(&mut self) -> BTreeSet<EndpointId> {
        std::mem::take(&mut self.stirred)
    }

    /// Returns the class of the pod that holds `address`. The CNI result outranks every status, because it is what the interface really
    /// has; among statuses the pod that started later wins, because an address is free at CNI DEL while the old Pod object lives on for
    /// seconds.
    pub(crate) fn holder(&self, model: &Model, address: IpAddr) -> Option<u32> {
        if let Some(local) = self.locals_at.get(&address).and_then(|locals| locals.last()) {
            let pod = owners::pod_of(model, self.locals.get(local)?)?;
            return self.class(&pod.key);
        }
        if self.taken.contains_key(&address) {
            return None;
        }
        let rivals = self.rivals.get(&address).into_iter().flatten();
        let mut best: Option<&Entry> = None;
        for number in self.claims.get(&address).into_iter().chain(rivals) {
            let Some(entry) = self.entry(*number) else { continue };
            let is_candidate = entry.pod.node.is_some()
                && !self.locals_of.contains_key(&entry.pod.key)
                && owners::in_pod_cidrs(model, &entry.pod, address);
            if is_candidate && best.is_none_or(|best| owners::outranks(&entry.pod, &best.pod)) {
                best = Some(entry);
            }
        }
        best.map(|entry| entry.class)
    }
}

/// Takes `item` out of the set at `key`, and the set with its last item.
pub(crate) fn take_from<K: std::hash::Hash + Eq, T: Ord>(
    map: &mut HashMap<K, BTreeSet<T>, Hasher>,
    key: &K,
    item: &T,
) {
    if let Some(items) = map.get_mut(key) {
        items.remove(item);
        if items.is_empty() {
            map.remove(key);
        }
    }
}
