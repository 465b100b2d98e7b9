//! One publication: what is remembered from the last one, what is made new, what is let go.
//!
//! Everything that is remembered is remembered by its inputs, so a result depends on the present Model alone; numbers (of sets,
//! identities, epochs) name contents and are never given to another content.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::addresses::Addresses;
use super::objects::Objects;
use super::paged::Paged;
use super::program::{KeyPart, PROFILES, Part, Program, key};
use super::rules::{CompiledRule, RuleList, referenced};
use super::sets::{Identities, Membership, Sets};
use super::table::Table;
use crate::engine::LocalEndpoint;
use crate::model::{Action, Labels, Model, NamespacedName, Policy, PolicyKey, Profile, Rule};
use crate::packet::{Direction, EndpointId, Epoch, Generation, IdentityId};
use crate::resolve::labels::{ALLOW_PROFILE, NAMESPACE_PROFILE, pod_profiles, service_account_of};
use crate::resolve::order::{self, OrderedTier};
use crate::resolve::owners::{self, Owner};
use crate::snapshot::{Attribution, EndpointTables, Snapshot};

/// Whose rules a list holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ListOwner {
    Policy(PolicyKey),
    Profile(String),
}

/// The object that a list was compiled from.
#[derive(Clone, Debug)]
enum ListSource {
    Policy(Arc<Policy>),
    Profile(Arc<Profile>),
    /// Follows from the name alone.
    Derived,
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

type ListKey = (ListOwner, Direction);
type Key = Arc<Vec<KeyPart>>;

/// Compiled rule lists by what they were compiled from.
#[derive(Debug, Default)]
struct Lists {
    known: BTreeMap<ListKey, (ListSource, Arc<RuleList>)>,
    used: BTreeSet<ListKey>,
    next: u64,
}

impl Lists {
    fn get(
        &mut self,
        key: ListKey,
        source: ListSource,
        rules: &[Rule],
        name: impl Fn(i32) -> Attribution,
        sets: &mut Sets,
    ) -> Arc<RuleList> {
        let known = self.known.get(&key);
        self.used.insert(key.clone());
        if let Some((from, list)) = known
            && from.is(&source)
        {
            return Arc::clone(list);
        }
        let rules: Vec<Arc<CompiledRule>> = rules
            .iter()
            .enumerate()
            .filter_map(|(index, rule)| CompiledRule::compile(rule, name(index as i32), sets).map(Arc::new))
            .collect();
        let list = match known {
            Some((_, list)) if list.rules == rules => Arc::clone(list),
            _ => {
                self.next += 1;
                Arc::new(RuleList { number: self.next, rules })
            }
        };
        self.known.insert(key, (source, Arc::clone(&list)));
        list
    }
}

/// The parts that governed an endpoint last time, and by what they were found.
#[derive(Debug)]
struct Governed {
    labels: Arc<Labels>,
    profiles: Vec<String>,
    parts: [Vec<Part>; 2],
    keys: [Key; 2],
    lists: BTreeSet<ListKey>,
}

/// State between publications.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    sets: Sets,
    identities: Identities,
    objects: Objects,
    lists: Lists,
    governed: BTreeMap<EndpointId, Governed>,
    tiers: Vec<OrderedTier>,
    tables: BTreeMap<Key, Arc<Table>>,
    live: BTreeMap<IdentityId, Arc<Membership>>,
    memberships: Paged<Arc<Membership>>,
    /// How many entries of the address table have each identity.
    uses: BTreeMap<IdentityId, usize>,
    /// What prefixes mean, pods aside.
    prefixes: BTreeMap<IpNet, Membership>,
    last_epoch: u64,
    next_base: u32,
}

/// What changed since the last publication.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    /// Anything at all.
    pub(crate) anything: bool,
    /// Policies, tiers, profiles, or which namespaces and service accounts exist.
    pub(crate) policies: bool,
    /// Something beside pods and local endpoints: every address is looked at again.
    pub(crate) everywhere: bool,
    /// Pods that appeared, changed or went.
    pub(crate) pods: BTreeSet<NamespacedName>,
    /// Addresses that these pods, and local endpoints that came or went, claim or claimed.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl Compiler {
    /// Compiles the present state. `previous` is returned when nothing that a packet could notice is different.
    pub(crate) fn publish(
        &mut self,
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        touched: &Touched,
        previous: &Arc<Snapshot>,
    ) -> Arc<Snapshot> {
        if touched.policies {
            self.tiers = order::tiers(model);
        }
        if touched.everywhere {
            self.objects.follow(model);
        } else {
            self.objects.follow_pods(model, touched.pods.iter());
        }
        if self.govern(model, locals, touched) {
            let used = referenced(self.lists.known.values().map(|(_, list)| list));
            self.sets.retain(&used);
        }
        let other_sets = self.objects.ask(model, &self.sets);
        for governed in self.governed.values() {
            for (key, parts) in governed.keys.iter().zip(&governed.parts) {
                if !self.tables.contains_key(key) {
                    let mut table = Table::new(Epoch(self.last_epoch + 1), 0, Program::build(parts));
                    table.base = allocate(&mut self.next_base, table.len(), &self.tables);
                    table.learn(&self.live);
                    self.last_epoch += 1;
                    self.tables.insert(Arc::clone(key), Arc::new(table));
                }
            }
        }
        let keys: BTreeSet<&Key> = self.governed.values().flat_map(|governed| &governed.keys).collect();
        self.tables.retain(|key, _| keys.contains(key));

        let few = (!touched.everywhere && !other_sets).then_some(&touched.addresses);
        let addresses = self.address(model, locals, few, &previous.addresses);
        let endpoints = self
            .governed
            .iter()
            .filter_map(|(endpoint, governed)| {
                let [ingress, egress] = governed.keys.each_ref().map(|key| self.tables.get(key).cloned());
                Some((*endpoint, EndpointTables { ingress: ingress?, egress: egress? }))
            })
            .collect();
        let mut tables: Vec<Arc<Table>> = self.tables.values().cloned().collect();
        tables.sort_by_key(|table| table.base);
        let next = Snapshot {
            generation: Generation(previous.generation.0 + 1),
            endpoints,
            has_logs: tables.iter().any(|table| table.program.has_logs),
            tables,
            addresses,
            memberships: self.memberships.clone(),
        };
        if previous.generation.0 > 0 && same(previous, &next) { Arc::clone(previous) } else { Arc::new(next) }
    }

    /// Finds what governs each local endpoint whose pod is known. Returns whether any of that may differ from last time.
    fn govern(
        &mut self,
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        touched: &Touched,
    ) -> bool {
        let mut before = std::mem::take(&mut self.governed);
        let mut changed = false;
        for (id, local) in locals {
            let Some(pod) = owners::pod_of(model, local) else { continue };
            let Some(labels) = self.objects.pod_labels(pod) else { continue };
            let profiles = pod_profiles(pod);
            let kept = before.remove(id).filter(|governed| {
                let same_labels = Arc::ptr_eq(&governed.labels, &labels) || governed.labels == labels;
                !touched.policies && governed.profiles == profiles && same_labels
            });
            let governed = kept.unwrap_or_else(|| {
                changed = true;
                self.lists.used.clear();
                let parts = [Direction::Ingress, Direction::Egress]
                    .map(|direction| self.parts(model, &labels, &profiles, direction));
                let keys = parts.each_ref().map(|parts| Arc::new(key(parts)));
                Governed { labels, profiles, parts, keys, lists: std::mem::take(&mut self.lists.used) }
            });
            self.governed.insert(*id, governed);
        }
        changed |= !before.is_empty();
        if changed {
            let used: BTreeSet<&ListKey> =
                self.governed.values().flat_map(|governed| &governed.lists).collect();
            self.lists.known.retain(|key, _| used.contains(key));
        }
        changed
    }

    fn parts(
        &mut self,
        model: &Model,
        labels: &Labels,
        profiles: &[String],
        direction: Direction,
    ) -> Vec<Part> {
        let mut parts = Vec::new();
        for (tier, policies) in order::applicable(&self.tiers, labels, direction) {
            let lists = policies
                .into_iter()
                .map(|policy| {
                    let rules = match direction {
                        Direction::Ingress => &policy.ingress,
                        Direction::Egress => &policy.egress,
                    };
                    let name = |rule| Attribution {
                        tier: policy.tier.clone(),
                        kind: policy.key.kind.as_str().to_owned(),
                        namespace: policy.key.namespace.clone().unwrap_or_default(),
                        name: policy.key.name.clone(),
                        rule,
                    };
                    let key = (ListOwner::Policy(policy.key.clone()), direction);
                    self.lists.get(key, ListSource::Policy(Arc::clone(policy)), rules, name, &mut self.sets)
                })
                .collect();
            parts.push(Part::Tier { name: tier.name.clone(), default_action: tier.default_action, lists });
        }
        for profile in profiles {
            parts.push(self.profile(model, profile, direction));
        }
        parts
    }

    fn profile(&mut self, model: &Model, name: &str, direction: Direction) -> Part {
        let allow = [allow_all()];
        let namespace = name.strip_prefix(NAMESPACE_PROFILE);
        let account = service_account_of(name);
        let (source, rules): (ListSource, &[Rule]) = match (namespace, account, model.profiles.get(name)) {
            (Some(namespace), _, _) if model.namespaces.contains_key(namespace) => {
                (ListSource::Derived, &allow)
            }
            (_, Some(account), _) if model.service_accounts.contains_key(&account) => {
                (ListSource::Derived, &[])
            }
            (None, None, _) if name == ALLOW_PROFILE => (ListSource::Derived, &allow),
            (None, None, Some(profile)) => {
                let rules = match direction {
                    Direction::Ingress => &profile.ingress,
                    Direction::Egress => &profile.egress,
                };
                (ListSource::Profile(Arc::clone(profile)), rules)
            }
            _ => return Part::MissingProfile(name.to_owned()),
        };
        let attribution = |rule| Attribution {
            tier: PROFILES.to_owned(),
            kind: "Profile".to_owned(),
            namespace: String::new(),
            name: name.to_owned(),
            rule,
        };
        let key = (ListOwner::Profile(name.to_owned()), direction);
        Part::Profile(self.lists.get(key, source, rules, attribution, &mut self.sets))
    }

    /// Brings addresses, identities and the rows of every table up to date. `few`: nothing but pods at these addresses changed.
    fn address(
        &mut self,
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        few: Option<&BTreeSet<IpAddr>>,
        previous: &Arc<Addresses>,
    ) -> Arc<Addresses> {
        let mut live = BTreeMap::new();
        let addresses = match few {
            None => {
                self.prefixes = self.objects.prefixes(model, &self.sets);
                let mut all = self.prefixes.clone();
                for (address, owner) in owners::owners(model, locals, |_| true) {
                    if let Owner::Pod(pod) = owner
                        && let Some(membership) = self.objects.of_pod(&pod)
                    {
                        all.entry(IpNet::from(address)).or_default().merge(membership);
                    }
                }
                let addresses = Addresses::build(&all, &mut self.identities, &mut live);
                self.uses = addresses.uses();
                addresses
            }
            Some(few) if few.is_empty() => return Arc::clone(previous),
            Some(few) => {
                let owners = owners::owners(model, locals, |address| few.contains(address));
                let mut addresses = Addresses::clone(previous);
                let mut same = true;
                for address in few {
                    let own = self.prefixes.get(&IpNet::from(*address));
                    let pod = match owners.get(address) {
                        Some(Owner::Pod(pod)) => self.objects.of_pod(pod),
                        Some(Owner::Nobody) | None => None,
                    };
                    let outer = self.live.get(&addresses.around(*address));
                    let identity = (own.is_some() || pod.is_some()).then(|| {
                        let mut membership = Membership::default();
                        let parts = [own, pod, outer.map(|outer| &**outer)];
                        parts.into_iter().flatten().for_each(|part| membership.merge(part));
                        membership.normalise();
                        let (identity, membership) = self.identities.number(membership);
                        live.insert(identity, membership);
                        identity
                    });
                    let former = addresses.set_host(*address, identity);
                    same &= former == identity;
                    if let Some(former) = former
                        && let Some(uses) = self.uses.get_mut(&former)
                    {
                        *uses -= 1;
                    }
                    if let Some(identity) = identity {
                        *self.uses.entry(identity).or_default() += 1;
                    }
                }
                self.uses.retain(|_, uses| *uses > 0);
                if same {
                    return Arc::clone(previous);
                }
                addresses
            }
        };
        live.entry(IdentityId(0)).or_default();
        self.uses.entry(IdentityId(0)).or_default();
        self.learn(live);
        if few.is_none() && addresses == **previous { Arc::clone(previous) } else { Arc::new(addresses) }
    }

    /// Takes in what is `known` of the identities that [`Compiler::uses`] counts, and lets the others go.
    fn learn(&mut self, known: BTreeMap<IdentityId, Arc<Membership>>) {
        let gone: Vec<IdentityId> =
            self.live.keys().filter(|identity| !self.uses.contains_key(identity)).copied().collect();
        let new: BTreeMap<IdentityId, Arc<Membership>> = known
            .into_iter()
            .filter(|(identity, _)| self.uses.contains_key(identity) && !self.live.contains_key(identity))
            .collect();
        for identity in &gone {
            self.memberships.remove(identity.0);
            self.live.remove(identity);
        }
        for (identity, membership) in &new {
            self.memberships.insert(identity.0, Arc::clone(membership));
            self.live.insert(*identity, Arc::clone(membership));
        }
        if !gone.is_empty() || !new.is_empty() {
            for table in self.tables.values_mut().filter(|table| table.depends_on_addresses()) {
                let table = Arc::make_mut(table);
                table.forget(&gone);
                table.learn(&new);
                table.compact(&self.live);
            }
        }
        self.identities.tidy(&self.live);
    }
}

/// Finds `len` numbers for decision points that no live table uses, as far away from recently used ones as possible.
fn allocate(next: &mut u32, len: u32, tables: &BTreeMap<Key, Arc<Table>>) -> u32 {
    let taken: BTreeMap<u32, u32> =
        tables.values().map(|table| (table.base, table.base.saturating_add(table.len()))).collect();
    let mut start = *next;
    for _ in 0..2 * taken.len() + 2 {
        let Some(end) = start.checked_add(len) else {
            start = 0;
            continue;
        };
        match taken.range(..end).next_back() {
            Some((_, taken_until)) if *taken_until > start => start = *taken_until,
            _ => break,
        }
    }
    *next = start.saturating_add(len);
    start
}

fn same(a: &Snapshot, b: &Snapshot) -> bool {
    let tables = |a: &EndpointTables, b: &EndpointTables| {
        a.ingress.epoch == b.ingress.epoch && a.egress.epoch == b.egress.epoch
    };
    Arc::ptr_eq(&a.addresses, &b.addresses)
        && a.endpoints.len() == b.endpoints.len()
        && a.endpoints.iter().all(|(id, left)| b.endpoints.get(id).is_some_and(|right| tables(left, right)))
}

fn allow_all() -> Rule {
    Rule::everything(Action::Allow)
}
