//! One publication: what is remembered from the last one, what is made new, what is let go.
//!
//! Everything that is remembered is remembered by its inputs, so a result depends on the present Model alone; numbers (of sets,
//! identities, epochs) name contents and are never given to another content.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::addresses::Addresses;
use super::objects::Objects;
use super::paged::Paged;
use super::program::{KeyPart, PROFILES, Part, Program, key};
use super::rules::{CompiledRule, RuleList, referenced};
use super::sets::{Identities, Membership, Sets};
use super::table::Table;
use crate::engine::LocalEndpoint;
use crate::model::{Action, Entity, Labels, Model, Policy, PolicyKey, Profile, Rule};
use crate::packet::{Direction, EndpointId, Epoch, Generation, IdentityId};
use crate::resolve::labels::{ALLOW_PROFILE, NAMESPACE_PROFILE, pod_profiles, service_account_of};
use crate::resolve::order::{self, OrderedTier};
use crate::resolve::owners;
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
    tables: BTreeMap<Vec<KeyPart>, Arc<Table>>,
    live: BTreeMap<IdentityId, Arc<Membership>>,
    memberships: Paged<Arc<Membership>>,
    prefixes: BTreeMap<ipnet::IpNet, Membership>,
    last_epoch: u64,
    next_base: u32,
}

/// What changed since the last publication, coarsely.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Touched {
    /// Policies, tiers, profiles, or which namespaces and service accounts exist.
    pub(crate) policies: bool,
    /// Anything at all.
    pub(crate) anything: bool,
}

impl Compiler {
    /// Compiles the present state. `previous` is returned when nothing that a packet could notice is different.
    pub(crate) fn publish(
        &mut self,
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        touched: Touched,
        previous: &Arc<Snapshot>,
    ) -> Arc<Snapshot> {
        if touched.policies {
            self.tiers = order::tiers(model);
        }
        self.objects.follow(model);
        self.govern(model, locals, touched);
        let used = referenced(self.lists.known.values().map(|(_, list)| list));
        self.sets.retain(&used);
        self.objects.ask(model, &self.sets);

        let mut endpoints: BTreeMap<EndpointId, (Vec<KeyPart>, Vec<KeyPart>)> = BTreeMap::new();
        let mut keys = BTreeSet::new();
        for (endpoint, governed) in &self.governed {
            let keyed = governed.parts.each_ref().map(|parts| (key(parts), parts));
            for (key, parts) in &keyed {
                if !self.tables.contains_key(key) {
                    let program = Program::build(parts);
                    let mut table = Table::new(Epoch(self.last_epoch + 1), 0, program);
                    table.base = allocate(&mut self.next_base, table.len(), &self.tables);
                    table.learn(&self.live);
                    self.last_epoch += 1;
                    self.tables.insert(key.clone(), Arc::new(table));
                }
            }
            let [ingress, egress] = keyed.map(|(key, _)| key);
            endpoints.insert(*endpoint, (ingress.clone(), egress.clone()));
            keys.extend([ingress, egress]);
        }
        self.tables.retain(|key, _| keys.contains(key));

        let addresses = self.address(model, locals, &previous.addresses);
        let endpoints = endpoints
            .into_iter()
            .filter_map(|(endpoint, (ingress, egress))| {
                let ingress = Arc::clone(self.tables.get(&ingress)?);
                let egress = Arc::clone(self.tables.get(&egress)?);
                Some((endpoint, EndpointTables { ingress, egress }))
            })
            .collect();
        let mut tables: Vec<Arc<Table>> = self.tables.values().cloned().collect();
        tables.sort_by_key(|table| table.base);
        let next = Snapshot {
            generation: Generation(previous.generation.0 + 1),
            endpoints,
            tables,
            addresses,
            memberships: self.memberships.clone(),
        };
        if previous.generation.0 > 0 && same(previous, &next) { Arc::clone(previous) } else { Arc::new(next) }
    }

    /// Finds what governs each local endpoint whose pod is known.
    fn govern(&mut self, model: &Model, locals: &BTreeMap<EndpointId, LocalEndpoint>, touched: Touched) {
        self.lists.used.clear();
        let mut before = std::mem::take(&mut self.governed);
        for (id, local) in locals {
            let Some(pod) = owners::pod_of(model, local) else { continue };
            let Some(labels) = self.objects.pod_labels(pod) else { continue };
            let profiles = pod_profiles(pod);
            let kept = before.remove(id).filter(|governed| {
                !touched.policies
                    && governed.profiles == profiles
                    && (Arc::ptr_eq(&governed.labels, &labels) || governed.labels == labels)
            });
            let governed = match kept {
                Some(governed) => {
                    self.lists.used.extend(governed.lists.iter().cloned());
                    governed
                }
                None => {
                    let others = std::mem::take(&mut self.lists.used);
                    let parts = [Direction::Ingress, Direction::Egress]
                        .map(|direction| self.parts(model, &labels, &profiles, direction));
                    let lists = std::mem::replace(&mut self.lists.used, others);
                    self.lists.used.extend(lists.iter().cloned());
                    Governed { labels, profiles, parts, lists }
                }
            };
            self.governed.insert(*id, governed);
        }
        let used = &self.lists.used;
        self.lists.known.retain(|key, _| used.contains(key));
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

    /// Brings addresses, identities and the rows of every table up to date.
    fn address(
        &mut self,
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        previous: &Arc<Addresses>,
    ) -> Arc<Addresses> {
        let owners = owners::owners(model, locals);
        let prefixes = self.objects.prefixes(model, &owners, &self.sets);
        if prefixes == self.prefixes && self.memberships.get(0).is_some() {
            return Arc::clone(previous);
        }
        let mut live = BTreeMap::new();
        let addresses = Addresses::build(&prefixes, &mut self.identities, &mut live);
        live.entry(IdentityId(0)).or_default();
        self.prefixes = prefixes;
        let gone: Vec<IdentityId> =
            self.live.keys().filter(|identity| !live.contains_key(identity)).copied().collect();
        let new: BTreeMap<IdentityId, Arc<Membership>> = live
            .iter()
            .filter(|(identity, _)| !self.live.contains_key(identity))
            .map(|(identity, membership)| (*identity, Arc::clone(membership)))
            .collect();
        for identity in &gone {
            self.memberships.remove(identity.0);
        }
        for (identity, membership) in &new {
            self.memberships.insert(identity.0, Arc::clone(membership));
        }
        if !gone.is_empty() || !new.is_empty() {
            for table in self.tables.values_mut().filter(|table| table.depends_on_addresses()) {
                let table = Arc::make_mut(table);
                table.forget(&gone);
                table.learn(&new);
                table.compact(&live);
            }
        }
        self.live = live;
        self.identities.tidy(&self.live);
        if addresses == **previous { Arc::clone(previous) } else { Arc::new(addresses) }
    }
}

/// Finds `len` numbers for decision points that no live table uses, as far away from recently used ones as possible.
fn allocate(next: &mut u32, len: u32, tables: &BTreeMap<Vec<KeyPart>, Arc<Table>>) -> u32 {
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
    Rule {
        action: Action::Allow,
        ip_version: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Entity::default(),
        destination: Entity::default(),
        unenforced: Vec::new(),
        annotations: BTreeMap::new(),
    }
}
