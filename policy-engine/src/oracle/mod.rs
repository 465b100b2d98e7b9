//! The rules read literally, from the Model alone.
//!
//! A second opinion: this module walks objects, tiers, policies and rules as policy model 8 and 9 write them down, one packet at a time,
//! without sets, identities, rows or anything else that the tables are made of. Where the two disagree, one of them is wrong; tests look
//! for such cases, `simulate --engine both` reports them, and `explain` tells the reasons found here beside the tables' verdict.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::engine::LocalEndpoint;
use crate::model::{
    Action, Entity, IcmpMatch, Labels, Model, NamedPort, NamespacedName, Pod, Policy, PortMatch, Rule, Tier,
    TierDefault,
};
use crate::packet::{Direction, EndpointId, PacketTuple, Verdict};
use crate::snapshot::Attribution;

/// The verdict for one leg, who decided, and the way there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OracleDecision {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Who decided.
    pub attribution: Attribution,
    /// Everything that was looked at, in order; the last step decided.
    pub trace: Vec<Step>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Which tier, policy and rule; -1 where the step is not about a rule.
    pub place: Attribution,
    /// What was found there.
    pub finding: Finding,
}

/// What was found at a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "result", content = "detail")]
pub enum Finding {
    /// The policy does not apply to the endpoint in this direction; the text says why.
    NotApplicable(String),
    /// The policy applies; its rules follow.
    Applies,
    /// The rule does not match; the text names the first criterion that fails.
    NoMatch(String),
    /// The rule matches and only takes note.
    Logged,
    /// The rule matches: the packet may pass.
    Allowed,
    /// The rule matches, or nothing did where something had to: the packet may not pass. The text says which.
    Denied(String),
    /// Evaluation goes on with the next tier; the text says why.
    NextTier(String),
}

/// Evaluates one leg for the pod's endpoint. `None`: no local endpoint has that pod, or the Model does not know it (yet).
pub fn evaluate(
    model: &Model,
    locals: &BTreeMap<EndpointId, LocalEndpoint>,
    direction: Direction,
    pod: &NamespacedName,
    packet: &PacketTuple,
) -> Option<OracleDecision> {
    let world = World { model, locals };
    let local = locals.values().rev().find(|local| local.pod == *pod)?;
    let pod = world.pod_of(local)?;
    let mut walk = Walk { world, direction, packet, trace: Vec::new() };
    let verdict = walk.endpoint(pod);
    let attribution = walk.trace.last()?.place.clone();
    Some(OracleDecision { verdict, attribution, trace: walk.trace })
}

/// Returns the labels that selectors see on a pod: its own, then those of its namespace, then those of its service account
/// (policy model 1.4, 7.1 to 7.3).
pub fn effective_labels(model: &Model, pod: &Pod) -> Labels {
    labels_with_profiles(model, &pod.labels, &profiles_of(pod))
}

/// Returns the objects that an address belongs to, as text such as `pod a/client` or `network set office`.
pub fn objects_at(
    model: &Model,
    locals: &BTreeMap<EndpointId, LocalEndpoint>,
    address: IpAddr,
) -> Vec<String> {
    World { model, locals }.objects_at(address).into_iter().map(|object| object.name).collect()
}

fn profiles_of(pod: &Pod) -> Vec<String> {
    let mut names = vec![format!("kns.{}", pod.key.namespace)];
    names.extend(pod.service_account.iter().map(|account| format!("ksa.{}.{account}", pod.key.namespace)));
    names
}

fn labels_with_profiles(model: &Model, own: &Labels, profiles: &[String]) -> Labels {
    let mut labels = own.clone();
    for profile in profiles {
        let mut contributed = Labels::new();
        if let Some(namespace) =
            model.namespaces.values().find(|namespace| *profile == format!("kns.{}", namespace.name))
        {
            contributed
                .extend(namespace.labels.iter().map(|(key, value)| (format!("pcns.{key}"), value.clone())));
            contributed.insert("pcns.projectcalico.org/name".to_owned(), namespace.name.clone());
        } else if let Some(account) = model
            .service_accounts
            .values()
            .find(|account| *profile == format!("ksa.{}.{}", account.key.namespace, account.key.name))
        {
            contributed
                .extend(account.labels.iter().map(|(key, value)| (format!("pcsa.{key}"), value.clone())));
            contributed.insert("pcsa.projectcalico.org/name".to_owned(), account.key.name.clone());
        } else if let Some(profile) = model.profiles.get(profile) {
            contributed = profile.labels.clone();
        }
        for (key, value) in contributed {
            labels.entry(key).or_insert(value);
        }
    }
    labels
}

/// Something with labels that an address belongs to.
struct Labelled<'a> {
    name: String,
    labels: Labels,
    /// Named ports; network sets have none.
    ports: &'a [NamedPort],
}

#[derive(Clone, Copy)]
struct World<'a> {
    model: &'a Model,
    locals: &'a BTreeMap<EndpointId, LocalEndpoint>,
}

impl<'a> World<'a> {
    fn pod_of(self, local: &LocalEndpoint) -> Option<&'a Pod> {
        let pod = self.model.pods.get(&local.pod)?;
        if pod.host_network || pod.finished {
            return None;
        }
        if !local.uid.is_empty() && !pod.uid.is_empty() && local.uid != pod.uid {
            return None;
        }
        Some(pod)
    }

    /// PM-D24: the CNI result first, else the status of the pod that started last.
    fn pod_at(self, address: IpAddr) -> Option<&'a Pod> {
        if let Some(local) = self.locals.values().rev().find(|local| local.addresses.contains(&address)) {
            return self.pod_of(local);
        }
        if self.model.nodes.values().any(|node| node.addresses.contains(&address)) {
            return None;
        }
        let mut best: Option<&Pod> = None;
        for pod in self.model.pods.values() {
            let is_local = self.locals.values().any(|local| local.pod == pod.key);
            let Some(node_name) = &pod.node else { continue };
            if is_local || pod.host_network || pod.finished || !pod.addresses.contains(&address) {
                continue;
            }
            if let Some(node) = self.model.nodes.get(node_name) {
                let cidrs: Vec<&IpNet> =
                    node.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == address.is_ipv4()).collect();
                if !cidrs.is_empty() && !cidrs.iter().any(|cidr| cidr.contains(&address)) {
                    continue;
                }
            }
            let later = best.is_none_or(|best| {
                pod.started > best.started || (pod.started == best.started && pod.key > best.key)
            });
            if later {
                best = Some(pod);
            }
        }
        best
    }

    fn objects_at(self, address: IpAddr) -> Vec<Labelled<'a>> {
        let mut objects = Vec::new();
        if let Some(pod) = self.pod_at(address) {
            objects.push(Labelled {
                name: format!("pod {}/{}", pod.key.namespace, pod.key.name),
                labels: effective_labels(self.model, pod),
                ports: &pod.ports,
            });
        }
        for endpoint in self.model.host_endpoints.values() {
            if endpoint.expected_ips.contains(&address) {
                objects.push(Labelled {
                    name: format!("host endpoint {}", endpoint.name),
                    labels: labels_with_profiles(self.model, &endpoint.labels, &endpoint.profiles),
                    ports: &endpoint.ports,
                });
            }
        }
        for set in self.model.network_sets.values() {
            if !set.nets.iter().any(|net| net.contains(&address)) {
                continue;
            }
            let (name, profiles) = match &set.key.namespace {
                Some(namespace) => {
                    (format!("network set {namespace}/{}", set.key.name), vec![format!("kns.{namespace}")])
                }
                None => (format!("network set {}", set.key.name), Vec::new()),
            };
            let labels = labels_with_profiles(self.model, &set.labels, &profiles);
            objects.push(Labelled { name, labels, ports: &[] });
        }
        objects
    }
}

struct Walk<'a> {
    world: World<'a>,
    direction: Direction,
    packet: &'a PacketTuple,
    trace: Vec<Step>,
}

/// What a list of rules came to.
enum Sum {
    Allow,
    Deny,
    Pass,
    NoMatch,
}

impl<'a> Walk<'a> {
    /// Policy model 8.4.
    fn endpoint(&mut self, pod: &Pod) -> Verdict {
        let labels = effective_labels(self.world.model, pod);
        for (name, tier) in self.tiers() {
            let mut enforced = 0;
            let mut sum = Sum::NoMatch;
            for policy in self.policies(&name) {
                let place = place_of(policy);
                if let Some(reason) = self.not_applicable(policy, &labels) {
                    self.note(place, Finding::NotApplicable(reason));
                    continue;
                }
                enforced += 1;
                if !matches!(sum, Sum::NoMatch) {
                    continue;
                }
                self.note(place.clone(), Finding::Applies);
                let rules = match self.direction {
                    Direction::Ingress => &policy.ingress,
                    Direction::Egress => &policy.egress,
                };
                sum = self.rules(&place, rules, false);
                match sum {
                    Sum::Allow => return Verdict::Allow,
                    Sum::Deny => return Verdict::Deny,
                    Sum::Pass => break,
                    Sum::NoMatch => {}
                }
            }
            let end = Attribution {
                tier: name,
                kind: String::new(),
                namespace: String::new(),
                name: String::new(),
                rule: -1,
            };
            if enforced == 0 || matches!(sum, Sum::Pass) {
                continue;
            }
            match tier.map_or(TierDefault::Deny, |tier| tier.default_action) {
                TierDefault::Pass => {
                    self.note(
                        end,
                        Finding::NextTier(
                            "no rule of the tier matches; its default action is Pass".to_owned(),
                        ),
                    );
                }
                TierDefault::Allow => {
                    self.note(end, Finding::Allowed);
                    return Verdict::Allow;
                }
                TierDefault::Deny => {
                    self.note(
                        end,
                        Finding::Denied(
                            "end of tier: a policy selects the endpoint and no rule matches".to_owned(),
                        ),
                    );
                    return Verdict::Deny;
                }
            }
        }
        self.profiles(pod)
    }

    fn profiles(&mut self, pod: &Pod) -> Verdict {
        let allow = Rule::everything(Action::Allow);
        let model = self.world.model;
        for name in profiles_of(pod) {
            let place = Attribution {
                tier: "__PROFILE__".to_owned(),
                kind: "Profile".to_owned(),
                namespace: String::new(),
                name: name.clone(),
                rule: -1,
            };
            let rules =
                if model.namespaces.values().any(|namespace| name == format!("kns.{}", namespace.name)) {
                    vec![allow.clone()]
                } else if model
                    .service_accounts
                    .keys()
                    .any(|account| name == format!("ksa.{}.{}", account.namespace, account.name))
                {
                    Vec::new()
                } else {
                    self.note(place, Finding::Denied("the profile does not exist".to_owned()));
                    return Verdict::Deny;
                };
            self.note(place.clone(), Finding::Applies);
            match self.rules(&place, &rules, true) {
                Sum::Allow => return Verdict::Allow,
                Sum::Deny | Sum::Pass => return Verdict::Deny,
                Sum::NoMatch => {}
            }
        }
        let place = Attribution {
            tier: "__PROFILE__".to_owned(),
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            rule: -1,
        };
        self.note(place, Finding::Denied("no profile allows it".to_owned()));
        Verdict::Deny
    }

    fn rules(&mut self, place: &Attribution, rules: &[Rule], in_profile: bool) -> Sum {
        for (index, rule) in rules.iter().enumerate() {
            let place = Attribution { rule: index as i32, ..place.clone() };
            if let Some(reason) = self.mismatch(rule) {
                self.note(place, Finding::NoMatch(reason));
                continue;
            }
            match rule.action {
                Action::Log => self.note(place, Finding::Logged),
                Action::Allow => {
                    self.note(place, Finding::Allowed);
                    return Sum::Allow;
                }
                Action::Deny => {
                    self.note(place, Finding::Denied("the rule says Deny".to_owned()));
                    return Sum::Deny;
                }
                Action::Pass if in_profile => {
                    self.note(place, Finding::Denied("Pass has no meaning in a profile (PM-D6)".to_owned()));
                    return Sum::Pass;
                }
                Action::Pass => {
                    self.note(place, Finding::NextTier("the rule says Pass".to_owned()));
                    return Sum::Pass;
                }
            }
        }
        Sum::NoMatch
    }

    /// Policy model 8.1 and 8.6: tiers that exist by order and name, then those that are only named.
    fn tiers(&self) -> Vec<(String, Option<&'a Tier>)> {
        let model = self.world.model;
        let mut existing: Vec<&Tier> = model.tiers.values().map(|tier| &**tier).collect();
        existing.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.name.cmp(&b.name)));
        let mut tiers: Vec<(String, Option<&Tier>)> =
            existing.into_iter().map(|tier| (tier.name.clone(), Some(tier))).collect();
        let mut missing: Vec<String> = model
            .policies
            .values()
            .map(|policy| policy.tier.clone())
            .filter(|tier| !model.tiers.contains_key(tier))
            .collect();
        missing.sort();
        missing.dedup();
        tiers.extend(missing.into_iter().map(|name| (name, None)));
        tiers
    }

    /// Policy model 8.2.
    fn policies(&self, tier: &str) -> Vec<&'a Policy> {
        let all = self.world.model.policies.values().map(|policy| &**policy);
        let mut policies: Vec<&Policy> = all.filter(|policy| policy.tier == tier).collect();
        policies.sort_by_key(|policy| {
            let namespace = policy.key.namespace.clone().unwrap_or_default();
            (policy.order, format!("{}/{namespace}/{}", policy.key.name, policy.key.kind.as_str()))
        });
        policies
    }

    /// Policy model 8.3.
    fn not_applicable(&self, policy: &Policy, labels: &Labels) -> Option<String> {
        let (governs, name) = match self.direction {
            Direction::Ingress => (policy.governs_ingress, "ingress"),
            Direction::Egress => (policy.governs_egress, "egress"),
        };
        if policy.staged.is_some() {
            return Some("it is staged, so it is never enforced".to_owned());
        }
        if policy.flags.do_not_track || policy.flags.pre_dnat {
            return Some("doNotTrack and preDNAT policies concern host endpoints only".to_owned());
        }
        if !governs {
            return Some(format!("it does not govern {name}"));
        }
        match &policy.selector {
            None => Some("its selector could not be understood, so it selects nothing".to_owned()),
            Some(selector) if !selector.matches(labels) => {
                Some(format!("its selector does not select the pod: {}", selector.canonical()))
            }
            Some(_) => None,
        }
    }

    /// Policy model 9: returns the first criterion that does not hold.
    fn mismatch(&self, rule: &Rule) -> Option<String> {
        let packet = self.packet;
        let is_ipv4 = packet.destination.is_ipv4();
        let family = if is_ipv4 { 4 } else { 6 };
        if !rule.unenforced.is_empty() && matches!(rule.action, Action::Allow | Action::Pass) {
            return Some(
                "it has a criterion that is not enforced, so it never matches (policy model 18.2)".to_owned(),
            );
        }
        let version = match (rule.ip_version, rule.protocol) {
            (Some(version), _) => Some(version),
            (None, Some(1)) => Some(4),
            (None, Some(58)) => Some(6),
            (None, _) => None,
        };
        if let Some(version) = version
            && version != family
        {
            return Some(format!("it is for IPv{version}, the packet is IPv{family}"));
        }
        if let Some(protocol) = rule.protocol
            && protocol != packet.protocol
        {
            return Some(format!("it wants protocol {protocol}, the packet has {}", packet.protocol));
        }
        if let Some(protocol) = rule.not_protocol
            && protocol == packet.protocol
        {
            return Some(format!("it excludes protocol {protocol}"));
        }
        if let Some(criterion) = &rule.icmp
            && !icmp_holds(criterion, packet)
        {
            return Some("the ICMP type or code differs".to_owned());
        }
        if let Some(criterion) = &rule.not_icmp
            && icmp_holds(criterion, packet)
        {
            return Some("it excludes this ICMP type and code".to_owned());
        }
        let source = self.side(&rule.source, packet.source, packet.source_port, false);
        let destination = || self.side(&rule.destination, packet.destination, packet.destination_port, true);
        source
            .map(|reason| format!("source: {reason}"))
            .or_else(|| destination().map(|reason| format!("destination: {reason}")))
    }

    fn side(
        &self,
        entity: &Entity,
        address: IpAddr,
        port: Option<u16>,
        is_destination: bool,
    ) -> Option<String> {
        let world = self.world;
        let of_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
        if !entity.nets.is_empty() && !entity.nets.iter().any(|net| net.contains(&address)) {
            return Some(format!("{address} is in none of its nets"));
        }
        if !entity.not_nets.is_empty() {
            if entity.not_nets.iter().filter(of_family).count() == 0 {
                return Some(
                    "its notNets are of the other family, so it does not exist in this one (PM-D7)"
                        .to_owned(),
                );
            }
            if let Some(net) = entity.not_nets.iter().find(|net| net.contains(&address)) {
                return Some(format!("{address} is in notNets {net}"));
            }
        }
        let objects = world.objects_at(address);
        if let Some(selector) = &entity.selector
            && !objects.iter().any(|object| selector.matches(&object.labels))
        {
            return Some(format!("{address} belongs to nothing that {} selects", selector.canonical()));
        }
        if let Some(selector) = &entity.not_selector
            && let Some(object) = objects.iter().find(|object| selector.matches(&object.labels))
        {
            return Some(format!(
                "{address} belongs to {}, which notSelector {} selects",
                object.name,
                selector.canonical()
            ));
        }
        if let Some(service) = &entity.service {
            let slices = world.model.endpoint_slices.values().filter(|slice| {
                slice.key.namespace == service.namespace
                    && slice.service == service.name
                    && slice.addresses.contains(&address)
            });
            let found = slices.into_iter().any(|slice| {
                !is_destination
                    || self.port(port).is_some_and(|port| slice.ports.contains(&(self.packet.protocol, port)))
            });
            if !found {
                return Some(format!(
                    "{address} is no endpoint of service {}/{}",
                    service.namespace, service.name
                ));
            }
        }
        let named = |name: &str, port: u16| {
            objects.iter().any(|object| {
                let within = entity.selector.as_ref().is_none_or(|selector| selector.matches(&object.labels));
                let declares = object.ports.iter().any(|declared| {
                    declared.name == name
                        && declared.protocol == self.packet.protocol
                        && declared.port == port
                });
                within && declares
            })
        };
        let holds = |criterion: &PortMatch| match (criterion, self.port(port)) {
            (PortMatch::Range { first, last }, Some(port)) => *first <= port && port <= *last,
            (PortMatch::Named(name), Some(port)) => named(name, port),
            (_, None) => false,
        };
        if !entity.ports.is_empty() && !entity.ports.iter().any(holds) {
            return Some(match port {
                Some(port) => format!("port {port} is none of its ports"),
                None => "the packet has no port".to_owned(),
            });
        }
        if entity.not_ports.iter().any(holds) {
            return Some("its notPorts exclude the port".to_owned());
        }
        let numeric_exclusion = entity.not_ports.iter().any(|port| matches!(port, PortMatch::Range { .. }));
        if numeric_exclusion && self.port(port).is_none() {
            return Some("it excludes ports and the packet has none (policy model 9.3)".to_owned());
        }
        None
    }

    /// Only TCP, UDP and SCTP have ports here (policy model 9.3).
    fn port(&self, port: Option<u16>) -> Option<u16> {
        port.filter(|_| [6, 17, 132].contains(&self.packet.protocol))
    }

    fn note(&mut self, place: Attribution, finding: Finding) {
        self.trace.push(Step { place, finding });
    }
}

fn icmp_holds(criterion: &IcmpMatch, packet: &PacketTuple) -> bool {
    let is_icmp = packet.protocol == if packet.destination.is_ipv4() { 1 } else { 58 };
    let kind = criterion.kind.is_none_or(|kind| packet.icmp.is_some_and(|icmp| icmp.0 == kind));
    let code = criterion.code.is_none_or(|code| packet.icmp.is_some_and(|icmp| icmp.1 == code));
    is_icmp && kind && code
}

fn place_of(policy: &Policy) -> Attribution {
    Attribution {
        tier: policy.tier.clone(),
        kind: policy.key.kind.as_str().to_owned(),
        namespace: policy.key.namespace.clone().unwrap_or_default(),
        name: policy.key.name.clone(),
        rule: -1,
    }
}
