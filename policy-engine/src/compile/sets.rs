//! Address sets, memberships and identities.
//!
//! Every distinct peer expression is one *set*. What an address can mean to any rule is its *membership*: the sets it belongs to, and
//! for named ports and services the (set, protocol, port) triples. Equal memberships share one number, the *identity*. A number is never
//! used again for another meaning, so a worker may compare identities across snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use crate::model::{NamedPort, NamespacedName};
use crate::packet::IdentityId;
use crate::selector::Selector;

/// Number of a set; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SetId(pub(crate) u32);

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
}

/// Numbers the sets that rules refer to.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    numbers: BTreeMap<SetKey, SetId>,
    selectors: BTreeMap<SetId, Selector>,
    next: u32,
}

impl Sets {
    fn number(&mut self, key: SetKey) -> SetId {
        let next = &mut self.next;
        *self.numbers.entry(key).or_insert_with(|| {
            *next += 1;
            SetId(*next - 1)
        })
    }

    pub(crate) fn selector(&mut self, selector: &Selector) -> SetId {
        let set = self.number(SetKey::Selector(selector.canonical().to_owned()));
        self.selectors.entry(set).or_insert_with(|| selector.clone());
        set
    }

    pub(crate) fn nets(&mut self, nets: &[IpNet]) -> SetId {
        let nets: BTreeSet<IpNet> = nets.iter().map(IpNet::trunc).collect();
        self.number(SetKey::Nets(nets.into_iter().collect()))
    }

    pub(crate) fn named_port(&mut self, selector: Option<&Selector>, name: &str) -> SetId {
        let within = selector.map(|selector| selector.canonical().to_owned());
        let set = self.number(SetKey::NamedPort(within, name.to_owned()));
        if let Some(selector) = selector {
            self.selectors.entry(set).or_insert_with(|| selector.clone());
        }
        set
    }

    pub(crate) fn service_addresses(&mut self, service: &NamespacedName) -> SetId {
        self.number(SetKey::ServiceAddresses(service.clone()))
    }

    pub(crate) fn service(&mut self, service: &NamespacedName) -> SetId {
        self.number(SetKey::Service(service.clone()))
    }

    /// Walks the sets that something refers to.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SetKey, SetId, Option<&Selector>)> {
        self.numbers.iter().map(|(key, set)| (key, *set, self.selectors.get(set)))
    }

    /// Forgets every set that is not in `used`.
    pub(crate) fn retain(&mut self, used: &BTreeSet<SetId>) {
        self.numbers.retain(|_, set| used.contains(set));
        self.selectors.retain(|set, _| used.contains(set));
    }

    /// Returns what an object with this property contributes to `set`, for the sets that select by label.
    pub(crate) fn contribution(
        key: &SetKey,
        set: SetId,
        selected: impl FnOnce() -> bool,
        ports: &[NamedPort],
        into: &mut Membership,
    ) {
        match key {
            SetKey::Selector(_) => {
                if selected() {
                    into.sets.push(set);
                }
            }
            SetKey::NamedPort(_, name) => {
                let mut declared = ports.iter().filter(|port| port.name == *name).peekable();
                if declared.peek().is_some() && selected() {
                    into.sets.push(set);
                    into.triples.extend(declared.map(|port| triple(set, port.protocol, port.port)));
                }
            }
            SetKey::Nets(_) | SetKey::ServiceAddresses(_) | SetKey::Service(_) => {}
        }
    }
}

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
    next: u32,
}

impl Default for Identities {
    fn default() -> Self {
        let mut numbers: HashMap<Arc<Membership>, IdentityId, foldhash::fast::FixedState> =
            HashMap::default();
        numbers.insert(Arc::default(), IdentityId(0));
        Self { numbers, next: 1 }
    }
}

impl Identities {
    /// Returns the number of a normalised membership, and the shared value.
    pub(crate) fn number(&mut self, membership: Membership) -> (IdentityId, Arc<Membership>) {
        if let Some((shared, number)) = self.numbers.get_key_value(&membership) {
            return (*number, Arc::clone(shared));
        }
        let number = IdentityId(self.next);
        self.next += 1;
        let shared = Arc::new(membership);
        self.numbers.insert(Arc::clone(&shared), number);
        (number, shared)
    }

    /// Forgets memberships that no address has now, once they outnumber the others. A later equal one gets a fresh number, which costs
    /// one judgement per flow.
    pub(crate) fn tidy(&mut self, live: &BTreeMap<IdentityId, Arc<Membership>>) {
        if self.numbers.len() <= 2 * live.len() + 1_024 {
            return;
        }
        self.numbers.retain(|_, number| number.0 == 0 || live.contains_key(number));
    }
}
