//! One publication: what is remembered from the last one, what is made new, what is let go.
//!
//! ```text
//!   touched objects ─▶ sources ──────────────▶ stirred subjects ─┐
//!   touched policies ─▶ the subjects they select or selected ────┴▶ tables ─▶ lists ─▶ sets that came and went
//!                          sources and sets ask each other ─▶ identities ─▶ addresses ─▶ rows of the tables that care
//! ```
//!
//! Everything that is remembered is remembered by its inputs, so a result depends on the present Model alone; numbers (of sets,
//! identities, epochs) name contents and are never given to another content.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::addresses::Addresses;
use super::endpoints::Endpoints;
use super::failsafe;
use super::lists::{ListKey, ListOwner, ListSource, Lists};
use super::policies::Policies;
use super::program::{End, KeyPart, PROFILES, Part, Program, key};
use super::rejects::{Peculiar, Rejects};
use super::sets::{SetId, Sets};
use super::sources::Sources;
use super::table::{Table, TableIndex};
use super::universe::LabelList;
use super::work::{Touched, Work};
use crate::engine::{HostInterface, LocalEndpoint};
use crate::model::{Action, DenyAction, HostEndpoint, Model, NamespacedName, PolicyKey, Rule, TierDefault};
use crate::packet::{Context, Direction, EndpointId, Epoch, Generation, HostId, IdentityId};
use crate::resolve::labels::{ALLOW_PROFILE, NAMESPACE_PROFILE, pod_profiles, service_account_of};
use crate::resolve::{hosts, order, owners};
use crate::snapshot::{Attribution, HostTables, Snapshot};

type Hasher = foldhash::fast::FixedState;
type Key = Arc<Vec<KeyPart>>;

/// So many changed policies are looked at from the subjects' side.
const MANY: usize = 64;

/// Something that policies govern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Pod(EndpointId),
    Host(HostId),
}

/// One table of a subject. Pods have `Normal` only.
type Place = (Context, Direction);

/// What governs a subject, and by what it was found.
#[derive(Debug, Default)]
struct Governed {
    labels: LabelList,
    profiles: Vec<String>,
    /// The host endpoint of an interface, and whether the interface is the pods' side.
    host: Option<(Arc<HostEndpoint>, bool)>,
    policies: BTreeSet<u32>,
    lists: Vec<ListKey>,
    tables: BTreeMap<Place, Epoch>,
}

#[derive(Debug)]
struct TableEntry {
    key: Key,
    table: Arc<Table>,
    index: TableIndex,
    uses: u32,
}

/// State between publications.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    sources: Sources,
    sets: Sets,
    lists: Lists,
    policies: Policies,
    host_endpoints: BTreeMap<String, Arc<HostEndpoint>>,
    subjects: BTreeMap<Subject, Governed>,
    tables: BTreeMap<Epoch, TableEntry>,
    epochs: HashMap<Key, Epoch, Hasher>,
    /// Tables by the sets that they mention.
    mentioning: HashMap<SetId, BTreeSet<Epoch>, Hasher>,
    /// Numbers of decision points in use: first and end.
    taken: BTreeMap<u32, u32>,
    addresses: Arc<Addresses>,
    last_epoch: u64,
    next_base: u32,
    deny_action: DenyAction,
}

impl Compiler {
    /// Compiles the present state. `previous` is returned when nothing that a packet could notice is different.
    pub(crate) fn publish(
        &mut self,
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        interfaces: &BTreeMap<HostId, HostInterface>,
        touched: &Touched,
        previous: &Arc<Snapshot>,
    ) -> Arc<Snapshot> {
        let work = Work::sort(model, touched);
        let mut dirty = self.follow_objects(model, locals, touched, &work);
        dirty.append(&mut self.follow_policies(model, touched, &work));
        dirty.append(&mut self.follow_hosts(model, interfaces, &work, touched));
        let mut retired = Vec::new();
        let fresh_tables = self.rebuild(model, dirty, &mut retired);
        self.retire(retired);
        let (added, removed) = self.sets.take_changes();
        self.sources.ask(&self.sets, &added, &removed);
        self.sources.settle(model);
        let same_addresses = !self.refresh_addresses();
        self.learn(&fresh_tables);
        let next = self.snapshot(previous, same_addresses);
        let is_same = previous.generation.0 > 0
            && same_addresses
            && same_tables(previous, &next)
            && previous.rejects == next.rejects;
        if is_same { Arc::clone(previous) } else { Arc::new(next) }
    }

    /// Brings sources up to date, and tells which subjects have other labels or profiles.
    fn follow_objects(
        &mut self,
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        touched: &Touched,
        work: &Work,
    ) -> BTreeSet<Subject> {
        let settings = model.settings_of_rules();
        self.deny_action = settings.deny_action;
        self.sources.trust_annotations(settings.trust_pod_ip_annotations);
        let mut dirty = BTreeSet::new();
        if self.lists.allow_unenforced(settings.allow_unenforced_criteria) {
            dirty.extend(self.subjects.keys().copied());
        }
        let pods: Box<dyn Iterator<Item = &NamespacedName>> =
            if touched.everything { Box::new(model.pods.keys()) } else { Box::new(work.pods.iter()) };
        pods.for_each(|pod| self.sources.follow_pod(model, pod));
        for (namespace, account) in &work.inheriting {
            let first = NamespacedName { namespace: namespace.clone(), name: String::new() };
            let pods = model.pods.range(first..).take_while(|(key, _)| key.namespace == *namespace);
            for (_, pod) in pods.filter(|(_, pod)| account.is_none() || pod.service_account == *account) {
                self.sources.follow_inherited(model, pod);
            }
        }
        for set in &work.network_sets {
            self.sources.follow_network_set(model, set);
        }
        for slice in &work.slices {
            self.sources.follow_slice(model, &self.sets, slice);
        }
        for node in &work.nodes {
            self.sources.follow_node(model, &self.sets, node);
        }
        let ids: Box<dyn Iterator<Item = &EndpointId>> =
            if touched.everything { Box::new(locals.keys()) } else { Box::new(touched.locals.iter()) };
        ids.for_each(|id| self.sources.follow_local(*id, locals.get(id)));
        for id in self.sources.take_stirred() {
            let subject = Subject::Pod(id);
            let pod = locals.get(&id).and_then(|local| owners::pod_of(model, local));
            let labels = pod.and_then(|pod| self.sources.pod_labels(&pod.key)).cloned();
            match pod.zip(labels) {
                Some((pod, labels)) => self.see(subject, labels, pod_profiles(pod), None, &mut dirty),
                None => self.lose(subject, &mut dirty),
            }
        }
        if !work.profiles.is_empty() {
            let concerned = self.subjects.iter().filter(|(_, governed)| {
                governed.profiles.iter().any(|profile| work.profiles.contains(profile))
            });
            dirty.extend(concerned.map(|(subject, _)| *subject));
        }
        dirty
    }

    /// A subject is there with these properties.
    fn see(
        &mut self,
        subject: Subject,
        labels: LabelList,
        profiles: Vec<String>,
        host: Option<(Arc<HostEndpoint>, bool)>,
        dirty: &mut BTreeSet<Subject>,
    ) {
        let known = self.subjects.get(&subject);
        let same_host = known.is_some_and(|known| match (&known.host, &host) {
            (Some((a, a_side)), Some((b, b_side))) => Arc::ptr_eq(a, b) && a_side == b_side,
            (None, None) => true,
            _ => false,
        });
        let same_labels = known.is_some_and(|known| known.labels == labels);
        if same_host && same_labels && known.is_some_and(|known| known.profiles == profiles) {
            return;
        }
        let policies = if same_labels {
            known.map(|known| known.policies.clone()).unwrap_or_default()
        } else {
            self.policies.of(&labels, self.sources.universe())
        };
        let governed = self.subjects.entry(subject).or_default();
        (governed.labels, governed.profiles, governed.host) = (labels, profiles, host);
        governed.policies = policies;
        dirty.insert(subject);
    }

    /// A subject is gone; its tables go when it is rebuilt into nothing.
    fn lose(&mut self, subject: Subject, dirty: &mut BTreeSet<Subject>) {
        if let Some(governed) = self.subjects.get_mut(&subject) {
            *governed = Governed {
                lists: std::mem::take(&mut governed.lists),
                tables: std::mem::take(&mut governed.tables),
                ..Governed::default()
            };
            dirty.insert(subject);
        }
    }

    fn follow_policies(&mut self, model: &Model, touched: &Touched, work: &Work) -> BTreeSet<Subject> {
        let mut dirty = BTreeSet::new();
        if work.tiers {
            dirty.extend(self.subjects.keys().copied());
        }
        let keys: Box<dyn Iterator<Item = &PolicyKey>> =
            if touched.everything { Box::new(model.policies.keys()) } else { Box::new(work.policies.iter()) };
        let numbers: Vec<u32> =
            keys.filter_map(|key| self.policies.follow(model, key, self.sources.universe())).collect();
        let universe = self.sources.universe();
        if numbers.len() > MANY {
            for (subject, governed) in &mut self.subjects {
                governed.policies = self.policies.of(&governed.labels, universe);
                dirty.insert(*subject);
            }
            return dirty;
        }
        for (subject, governed) in &mut self.subjects {
            for number in &numbers {
                let had = governed.policies.remove(number);
                let has = self.policies.selects(*number, &governed.labels, universe);
                if has {
                    governed.policies.insert(*number);
                }
                if had || has {
                    dirty.insert(*subject);
                }
            }
        }
        dirty
    }

    fn follow_hosts(
        &mut self,
        model: &Model,
        interfaces: &BTreeMap<HostId, HostInterface>,
        work: &Work,
        touched: &Touched,
    ) -> BTreeSet<Subject> {
        let mut dirty = BTreeSet::new();
        if !work.hosts && !touched.interfaces {
            return dirty;
        }
        let now = &model.host_endpoints;
        let before = std::mem::replace(&mut self.host_endpoints, now.clone());
        for name in before.keys().chain(now.keys().filter(|name| !before.contains_key(*name))) {
            let is_same = match (before.get(name), now.get(name)) {
                (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                _ => false,
            };
            if !is_same || work.inherited {
                self.sources.follow_host_endpoint(model, name, now.get(name));
            }
        }
        let known: Vec<HostId> = self
            .subjects
            .keys()
            .filter_map(|subject| match subject {
                Subject::Host(id) => Some(*id),
                Subject::Pod(_) => None,
            })
            .collect();
        for id in known.into_iter().filter(|id| !interfaces.contains_key(id)) {
            self.lose(Subject::Host(id), &mut dirty);
        }
        for interface in interfaces.values() {
            let subject = Subject::Host(interface.id);
            let endpoint = hosts::of_interface(now, interface);
            let labels =
                endpoint.and_then(|endpoint| self.sources.host_endpoint_labels(&endpoint.name)).cloned();
            match endpoint.zip(labels) {
                Some((endpoint, labels)) => {
                    let host = (Arc::clone(endpoint), interface.is_pod_side);
                    self.see(subject, labels, endpoint.profiles.clone(), Some(host), &mut dirty);
                    // Failsafe ports may be others, and nothing else tells.
                    dirty.insert(subject);
                }
                None => self.lose(subject, &mut dirty),
            }
        }
        dirty
    }

    /// Finds the tables of these subjects; returns those that are new, and in `retired` those that nobody has now.
    fn rebuild(&mut self, model: &Model, dirty: BTreeSet<Subject>, retired: &mut Vec<Epoch>) -> Vec<Epoch> {
        let mut fresh = Vec::new();
        for subject in dirty {
            let Some(mut governed) = self.subjects.remove(&subject) else { continue };
            let mut lists = Vec::new();
            let mut tables = BTreeMap::new();
            let is_there = !governed.profiles.is_empty() || governed.host.is_some();
            let places = if is_there { self.places(&governed) } else { Vec::new() };
            for place in places {
                let Some(parts) = self.parts(model, &governed, place, &mut lists) else { continue };
                tables.insert(place, self.table(&parts, &mut fresh));
            }
            lists.sort_unstable();
            lists.dedup();
            lists.iter().for_each(|list| self.lists.hold(list));
            std::mem::replace(&mut governed.lists, lists)
                .iter()
                .for_each(|list| self.lists.release(list, &mut self.sets));
            for epoch in std::mem::replace(&mut governed.tables, tables).into_values() {
                if let Some(entry) = self.tables.get_mut(&epoch) {
                    entry.uses -= 1;
                    retired.push(epoch);
                }
            }
            if is_there {
                self.subjects.insert(subject, governed);
            }
        }
        fresh.retain(|epoch| self.tables.get(epoch).is_some_and(|entry| entry.uses > 0));
        fresh
    }

    fn places(&self, governed: &Governed) -> Vec<Place> {
        use Direction::{Egress, Ingress};
        match &governed.host {
            None => vec![(Context::Normal, Ingress), (Context::Normal, Egress)],
            Some((_, is_pod_side)) => {
                let contexts = Context::ALL
                    .into_iter()
                    .filter(|context| !is_pod_side || matches!(context, Context::PreDnat | Context::Forward));
                contexts.flat_map(|context| [(context, Ingress), (context, Egress)]).collect()
            }
        }
    }

    /// Returns what governs a subject in one place; `None` where nothing does and packets go on.
    fn parts(
        &mut self,
        model: &Model,
        governed: &Governed,
        place: Place,
        lists: &mut Vec<ListKey>,
    ) -> Option<Vec<Part>> {
        let (context, direction) = place;
        let host = governed.host.as_ref().map(|(endpoint, _)| Arc::clone(endpoint));
        let is_asked = |policy: &crate::model::Policy| match &host {
            Some(endpoint) => hosts::is_asked(policy, endpoint, context, direction),
            None => !policy.flags.do_not_track && !policy.flags.pre_dnat,
        };
        let mut applicable: Vec<_> = governed
            .policies
            .iter()
            .filter_map(|number| self.policies.get(*number))
            .filter(|entry| order::governs(&entry.policy, direction) && is_asked(&entry.policy))
            .map(|entry| (order::tier(model, &entry.policy.tier), entry))
            .collect();
        if applicable.is_empty() && host.is_some() && context != Context::Normal {
            return None;
        }
        applicable.sort_by(|((a_tier, _), a), ((b_tier, _), b)| {
            a_tier
                .cmp(b_tier)
                .then_with(|| order::compare((&a.policy, &a.tie_break), (&b.policy, &b.tie_break)))
        });
        let mut parts = Vec::new();
        if let Some(endpoint) = &host
            && context != Context::Forward
        {
            parts.push(failsafe::part(model, endpoint, place, &mut self.lists, &mut self.sets, lists));
        }
        for tier in applicable.chunk_by(|a, b| a.0 == b.0) {
            let (_, default_action) = &tier[0].0;
            let mut of_tier = Vec::with_capacity(tier.len());
            for (_, entry) in tier {
                let policy = &entry.policy;
                let rules = match direction {
                    Direction::Ingress => &policy.ingress,
                    Direction::Egress => &policy.egress,
                };
                let name = |rule| Attribution {
                    tier: policy.tier.clone(),
                    kind: policy.key.kind.as_str().to_owned(),
                    namespace: policy.key.namespace.clone().unwrap_or_default(),
                    name: policy.key.name.clone(),
                    rule: rule as i32,
                };
                let key = (ListOwner::Policy(policy.key.clone()), direction);
                let source = ListSource::Policy(Arc::clone(policy));
                of_tier.push(self.lists.get(&key, source, rules, name, &mut self.sets));
                lists.push(key);
            }
            let default_action = match context {
                // They never deny by default (policy model 11.2).
                Context::Untracked | Context::PreDnat => TierDefault::Pass,
                Context::Normal | Context::Forward => *default_action,
            };
            let name = tier[0].1.policy.tier.clone();
            parts.push(Part::Tier { name, default_action, lists: of_tier });
        }
        if context == Context::Normal {
            for profile in &governed.profiles {
                parts.push(self.profile(model, profile, direction, lists));
            }
            parts.push(Part::End(End::Deny));
        } else {
            parts.push(Part::End(End::NoMatch));
        }
        Some(parts)
    }

    fn profile(&mut self, model: &Model, name: &str, direction: Direction, lists: &mut Vec<ListKey>) -> Part {
        let allow = [Rule::everything(Action::Allow)];
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
            rule: rule as i32,
        };
        let key = (ListOwner::Profile(name.to_owned()), direction);
        let list = self.lists.get(&key, source, rules, attribution, &mut self.sets);
        lists.push(key);
        Part::Profile(list)
    }

    /// Returns the table that `parts` make, held once more.
    fn table(&mut self, parts: &[Part], fresh: &mut Vec<Epoch>) -> Epoch {
        let key: Key = Arc::new(key(parts));
        if let Some(epoch) = self.epochs.get(&key)
            && let Some(entry) = self.tables.get_mut(epoch)
        {
            entry.uses += 1;
            return *epoch;
        }
        self.last_epoch += 1;
        let epoch = Epoch(self.last_epoch);
        let mut index = TableIndex::default();
        let mut table = Table::new(epoch, 0, Program::build(parts), &mut index);
        table.base = self.allocate(table.len());
        for set in table.sets() {
            self.mentioning.entry(set).or_default().insert(epoch);
        }
        self.epochs.insert(Arc::clone(&key), epoch);
        self.tables.insert(epoch, TableEntry { key, table: Arc::new(table), index, uses: 1 });
        fresh.push(epoch);
        epoch
    }

    /// Finds `len` numbers for decision points that no live table uses, as far away from recently used ones as possible.
    fn allocate(&mut self, len: u32) -> u32 {
        let mut start = self.next_base;
        for _ in 0..2 * self.taken.len() + 2 {
            let Some(end) = start.checked_add(len) else {
                start = 0;
                continue;
            };
            match self.taken.range(..end).next_back() {
                Some((_, taken_until)) if *taken_until > start => start = *taken_until,
                _ => break,
            }
        }
        self.next_base = start.saturating_add(len);
        self.taken.insert(start, self.next_base);
        start
    }

    /// Lets those tables go that nobody has any more.
    fn retire(&mut self, candidates: Vec<Epoch>) {
        for epoch in candidates {
            if self.tables.get(&epoch).is_none_or(|entry| entry.uses > 0) {
                continue;
            }
            if let Some(entry) = self.tables.remove(&epoch) {
                self.epochs.remove(&entry.key);
                self.taken.remove(&entry.table.base);
                for set in entry.table.sets() {
                    if let Some(epochs) = self.mentioning.get_mut(&set) {
                        epochs.remove(&epoch);
                        if epochs.is_empty() {
                            self.mentioning.remove(&set);
                        }
                    }
                }
            }
        }
    }

    /// Returns whether any address means something else now.
    fn refresh_addresses(&mut self) -> bool {
        if !self.sources.is_stirred() {
            return false;
        }
        let is_other = self.sources.refresh(Arc::make_mut(&mut self.addresses));
        self.sources.tidy(&self.addresses);
        is_other
    }

    /// Adds the rows of new identities to the tables that care, and all rows of new tables.
    fn learn(&mut self, fresh_tables: &[Epoch]) {
        if self.sources.identities().is_crowded() {
            self.tidy();
        }
        let identities = self.sources.identities();
        let mut wanted: BTreeMap<Epoch, BTreeSet<IdentityId>> = BTreeMap::new();
        for identity in identities.take_fresh() {
            let sets = &identities.value(identity).sets;
            for epoch in sets.iter().filter_map(|set| self.mentioning.get(set)).flatten() {
                wanted.entry(*epoch).or_default().insert(identity);
            }
        }
        for epoch in fresh_tables {
            let sets = self.tables.get(epoch).map(|entry| entry.table.sets()).unwrap_or_default();
            wanted.insert(*epoch, sets.into_iter().flat_map(|set| identities.with_set(set)).collect());
        }
        for (epoch, wanted) in wanted {
            let Some(TableEntry { table, index, .. }) = self.tables.get_mut(&epoch) else { continue };
            let table = Arc::make_mut(table);
            for identity in wanted {
                table.learn(index, identity, identities.value(identity));
            }
            // One that is changed is likely to be changed again, and somebody waits for it.
            if fresh_tables.contains(&epoch) {
                table.fit();
            }
        }
    }

    /// Forgets identities that no cell and no source has, and rows that no identity needs.
    fn tidy(&mut self) {
        let mut used: HashSet<IdentityId, Hasher> = HashSet::default();
        self.sources.for_each_identity(|identity| used.extend([identity]));
        let identities = self.sources.identities();
        let gone: HashSet<u32, Hasher> = identities.retain(&used).into_iter().map(|id| id.0).collect();
        for TableEntry { table, index, .. } in self.tables.values_mut() {
            let table = Arc::make_mut(table);
            table.forget(|identity| gone.contains(&identity));
            if table.is_crowded(index, used.len()) {
                let sets = table.sets();
                let wanted: BTreeSet<IdentityId> =
                    sets.into_iter().flat_map(|set| identities.with_set(set)).collect();
                table.start_over(index);
                wanted.iter().for_each(|id| table.learn(index, *id, identities.value(*id)));
                table.fit();
            }
        }
    }

    /// Returns the decision points that answer whom they deny.
    fn rejects(&self) -> Rejects {
        let general = self.deny_action;
        let peculiar = Peculiar::new(general, self.policies.told_otherwise(general), &self.lists);
        let tables = self.tables.values().map(|entry| (entry.key.as_slice(), &*entry.table));
        peculiar.points(tables)
    }

    fn snapshot(&mut self, previous: &Snapshot, same_addresses: bool) -> Snapshot {
        let generation = Generation(previous.generation.0 + 1);
        let mut endpoints = Endpoints::default();
        let mut hosts = HashMap::default();
        let table = |epoch: &Epoch| self.tables.get(epoch).map(|entry| Arc::clone(&entry.table));
        for (subject, governed) in &self.subjects {
            let at = |place: Place| governed.tables.get(&place).and_then(table);
            match (subject, &governed.host) {
                (Subject::Pod(id), _) => {
                    let ingress = at((Context::Normal, Direction::Ingress));
                    let egress = at((Context::Normal, Direction::Egress));
                    if let Some((ingress, egress)) = ingress.zip(egress) {
                        endpoints.insert(*id, ingress, egress, &previous.endpoints, generation);
                    }
                }
                (Subject::Host(id), Some((endpoint, _))) => {
                    let of = |context| [at((context, Direction::Ingress)), at((context, Direction::Egress))];
                    let tables = Context::ALL.map(of);
                    hosts.insert(*id, HostTables { endpoint: Arc::clone(endpoint), tables });
                }
                (Subject::Host(_), None) => {}
            }
        }
        let mut tables: Vec<Arc<Table>> =
            self.tables.values().map(|entry| Arc::clone(&entry.table)).collect();
        tables.sort_unstable_by_key(|table| table.base);
        Snapshot {
            generation,
            identified: if same_addresses { previous.identified } else { generation },
            endpoints,
            hosts,
            rejects: self.rejects(),
            has_logs: tables.iter().any(|table| table.program.has_logs),
            tables,
            addresses: Arc::clone(&self.addresses),
            memberships: self.sources.identities().values().clone(),
            sets: self.sets.keys().clone(),
        }
    }
}

fn same_tables(a: &Snapshot, b: &Snapshot) -> bool {
    let epoch =
        |tables: &Snapshot, id, direction| tables.endpoints.table(id, direction).map(|table| table.epoch);
    let all = |tables: &HostTables| {
        tables.tables.each_ref().map(|pair| pair.each_ref().map(|table| table.as_ref().map(|t| t.epoch)))
    };
    a.endpoints.len() == b.endpoints.len()
        && a.hosts.len() == b.hosts.len()
        && a.endpoints.ids().all(|id| {
            [Direction::Ingress, Direction::Egress]
                .into_iter()
                .all(|way| epoch(a, id, way) == epoch(b, id, way))
        })
        && a.hosts.iter().all(|(id, left)| {
            b.hosts
                .get(id)
                .is_some_and(|right| left.endpoint.name == right.endpoint.name && all(left) == all(right))
        })
}
