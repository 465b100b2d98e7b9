//! The rules read literally, from the Model alone.
//!
//! A second opinion: this module walks objects, tiers, policies and rules as policy model 8 and 9 write them down, one packet at a time,
//! without sets, identities, rows or anything else that the tables are made of. Where the two disagree, one of them is wrong; tests look
//! for such cases, `simulate --engine both` reports them, and `explain` tells the reasons found here beside the tables' verdict.

//!
//! [`evaluate`] is what is enforced; [`evaluate_pending`] is what would be if the staged policies were (policy model 19). [`hits`] puts a
//! walk into the records of flow logs (20.3).

pub mod hits;
mod hosts;
mod matching;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::engine::LocalEndpoint;
use crate::model::{
    Action, Labels, Model, NamespacedName, Order, Pod, Policy, PolicyKey, PolicyKind, Rule, StagedAction,
    Tier, TierDefault,
};
use crate::packet::{Context, Direction, EndpointId, PacketTuple, Verdict};
use crate::snapshot::Attribution;

pub(crate) use matching::Facts;
use world::{Parent, parent_of};

pub(crate) use world::{World, labels_with_profiles, profiles_of};

pub use hosts::{HostDecision, evaluate_host, resolve_interface};

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
    /// The policy applies; the text says why. Its rules follow.
    Applies(String),
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
    evaluate_as(View::Enforced, World { model, locals }, direction, pod, packet)
}

/// Evaluates one leg as if the staged policies were enforced (policy model 19.4, PM-D16): `Set` and `Learn` count, `Set` takes the place
/// of the enforced policy with its name, `Delete` takes that policy away, `Ignore` says nothing. `None` as [`evaluate`].
pub fn evaluate_pending(
    model: &Model,
    locals: &BTreeMap<EndpointId, LocalEndpoint>,
    direction: Direction,
    pod: &NamespacedName,
    packet: &PacketTuple,
) -> Option<OracleDecision> {
    evaluate_as(View::Pending, World { model, locals }, direction, pod, packet)
}

fn evaluate_as(
    view: View,
    world: World<'_>,
    direction: Direction,
    pod: &NamespacedName,
    packet: &PacketTuple,
) -> Option<OracleDecision> {
    let local = world.locals.values().rev().find(|local| local.pod == *pod)?;
    let pod = world.pod_of(local)?;
    let settings = world.model.settings_of_rules();
    let mut walk = Walk::new(world, direction, packet, settings.allow_unenforced_criteria);
    walk.view = view;
    let verdict = walk.endpoint(pod);
    let attribution = walk.trace.last()?.place.clone();
    Some(OracleDecision { verdict, attribution, trace: walk.trace })
}

/// Returns the labels that selectors see on a pod: its own, then those of its namespace, then those of its service account
/// (policy model 1.4, 7.1 to 7.3).
pub fn effective_labels(model: &Model, pod: &Pod) -> Labels {
    labels_with_profiles(model, &pod.labels, &profiles_of(pod))
}

/// Returns the pod that has an address (PM-D24), local or not.
pub fn pod_at<'a>(
    model: &'a Model,
    locals: &'a BTreeMap<EndpointId, LocalEndpoint>,
    address: IpAddr,
) -> Option<&'a Pod> {
    World { model, locals }.pod_at(address)
}

/// Returns the names of all tiers in the order of evaluation (policy model 8.1, 8.6), those that are only named included.
pub fn tier_names(model: &Model) -> Vec<String> {
    tiers_of(model).into_iter().map(|(name, _)| name).collect()
}

/// Returns the objects that an address belongs to, as text such as `pod a/client` or `network set office`.
pub fn objects_at(
    model: &Model,
    locals: &BTreeMap<EndpointId, LocalEndpoint>,
    address: IpAddr,
) -> Vec<String> {
    World { model, locals }.objects_at(address).into_iter().map(|object| object.name).collect()
}

/// Which policies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Those that are enforced.
    Enforced,
    /// Those that would be if the staged ones were (policy model 19.4, PM-D16).
    Pending,
}

impl View {
    /// Returns why the policy does not count, if it does not.
    pub(crate) fn leaves_out(self, model: &Model, policy: &Policy) -> Option<String> {
        match (self, policy.staged) {
            (Self::Enforced, None) | (Self::Pending, Some(StagedAction::Set | StagedAction::Learn)) => None,
            (Self::Enforced, Some(_)) => Some("it is staged, so it is never enforced".to_owned()),
            (Self::Pending, Some(StagedAction::Delete)) => {
                Some("it only takes its enforced namesake away".to_owned())
            }
            (Self::Pending, Some(StagedAction::Ignore)) => {
                Some("its stagedAction is Ignore (PM-D16)".to_owned())
            }
            (Self::Pending, None) => {
                let kind = staged_form(policy.key.kind)?;
                let staged = model.policies.get(&PolicyKey { kind, ..policy.key.clone() })?;
                if staged.tier != policy.tier {
                    return None;
                }
                match staged.staged? {
                    StagedAction::Set => Some(format!("the {} of its name replaces it", kind.as_str())),
                    StagedAction::Delete => Some(format!("the {} of its name removes it", kind.as_str())),
                    StagedAction::Learn | StagedAction::Ignore => None,
                }
            }
        }
    }
}

/// Returns the staged kind that speaks about `kind` (policy model 2.6).
fn staged_form(kind: PolicyKind) -> Option<PolicyKind> {
    match kind {
        PolicyKind::NetworkPolicy => Some(PolicyKind::StagedNetworkPolicy),
        PolicyKind::GlobalNetworkPolicy => Some(PolicyKind::StagedGlobalNetworkPolicy),
        PolicyKind::KubernetesNetworkPolicy => Some(PolicyKind::StagedKubernetesNetworkPolicy),
        _ => None,
    }
}

/// Whose policies are walked, and where.
struct Subject<'s> {
    /// `pod` or `host endpoint`.
    what: &'static str,
    /// What selectors see of it.
    labels: &'s Labels,
    /// `Normal` for pods.
    context: Context,
}

/// One packet on its way through the policies of one endpoint in one direction.
struct Walk<'a> {
    world: World<'a>,
    direction: Direction,
    facts: Facts<'a>,
    view: View,
    /// `allowUnenforcedCriteria` of the node (PM-D15).
    allow_unenforced: bool,
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
    /// Begins with nothing looked at; enforced policies count.
    fn new(world: World<'a>, direction: Direction, packet: &PacketTuple, allow_unenforced: bool) -> Self {
        let facts = Facts::new(world, *packet);
        Self { world, direction, facts, view: View::Enforced, allow_unenforced, trace: Vec::new() }
    }

    /// Policy model 8.4.
    fn endpoint(&mut self, pod: &Pod) -> Verdict {
        let labels = effective_labels(self.world.model, pod);
        let subject = Subject { what: "pod", labels: &labels, context: Context::Normal };
        match self.tiers_of(&subject).0 {
            Sum::Allow => Verdict::Allow,
            Sum::Deny => Verdict::Deny,
            Sum::Pass | Sum::NoMatch => self.profiles(&profiles_of(pod)),
        }
    }

    /// Policy model 8.4, the tiers; 11.2: before the connection is known, the end of a tier never decides. `NoMatch`: every tier lets the
    /// packet go on. The number tells how many policies applied up to the decision.
    fn tiers_of(&mut self, subject: &Subject<'_>) -> (Sum, usize) {
        let never_ends = matches!(subject.context, Context::Untracked | Context::PreDnat);
        let mut policies = 0;
        for (name, tier) in tiers_of(self.world.model) {
            let mut enforced = 0;
            let mut sum = Sum::NoMatch;
            for policy in self.policies(&name) {
                let place = place_of(policy);
                if let Some(reason) = self.not_applicable(policy, subject) {
                    self.note(place, Finding::NotApplicable(reason));
                    continue;
                }
                enforced += 1;
                policies += 1;
                self.note(place.clone(), Finding::Applies(applies(policy)));
                let rules = match self.direction {
                    Direction::Ingress => &policy.ingress,
                    Direction::Egress => &policy.egress,
                };
                sum = self.rules(&place, rules, false);
                match sum {
                    Sum::Allow | Sum::Deny => return (sum, policies),
                    Sum::Pass => break,
                    Sum::NoMatch => {}
                }
            }
            if enforced == 0 || matches!(sum, Sum::Pass) {
                continue;
            }
            let end = Attribution {
                tier: name,
                kind: String::new(),
                namespace: String::new(),
                name: String::new(),
                rule: -1,
            };
            match tier.map_or(TierDefault::Deny, |tier| tier.default_action) {
                _ if never_ends => {
                    let context = subject.context.as_str();
                    let reason = format!(
                        "no rule of the tier matches; the end of a tier decides nothing in the {context} context"
                    );
                    self.note(end, Finding::NextTier(reason));
                }
                TierDefault::Pass => {
                    let reason = "no rule of the tier matches; its default action is Pass";
                    self.note(end, Finding::NextTier(reason.to_owned()));
                }
                TierDefault::Allow => {
                    self.note(end, Finding::Allowed);
                    return (Sum::Allow, policies);
                }
                TierDefault::Deny => {
                    let reason = "end of tier: a policy selects the endpoint and no rule matches";
                    self.note(end, Finding::Denied(reason.to_owned()));
                    return (Sum::Deny, policies);
                }
            }
        }
        (Sum::NoMatch, policies)
    }

    /// Policy model 8.4, the profiles, and 8.6.
    fn profiles(&mut self, names: &[String]) -> Verdict {
        for name in names {
            let place = Attribution {
                tier: "__PROFILE__".to_owned(),
                kind: "Profile".to_owned(),
                namespace: String::new(),
                name: name.clone(),
                rule: -1,
            };
            let Some(rules) = profile_rules(self.world.model, name, self.direction) else {
                self.note(place, Finding::Denied("the profile does not exist".to_owned()));
                return Verdict::Deny;
            };
            self.note(place.clone(), Finding::Applies("the endpoint lists it".to_owned()));
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

    /// Policy model 8.2.
    fn policies(&self, tier: &str) -> Vec<&'a Policy> {
        let all = self.world.model.policies.values().map(|policy| &**policy);
        let mut policies: Vec<&Policy> = all.filter(|policy| policy.tier == tier).collect();
        policies.sort_by_cached_key(|policy| sort_key(policy));
        policies
    }

    /// Policy model 8.3 and 11.2: returns why the policy does not apply.
    fn not_applicable(&self, policy: &Policy, subject: &Subject<'_>) -> Option<String> {
        let (governs, name) = match self.direction {
            Direction::Ingress => (policy.governs_ingress, "ingress"),
            Direction::Egress => (policy.governs_egress, "egress"),
        };
        if let Some(reason) = self.view.leaves_out(self.world.model, policy) {
            return Some(reason);
        }
        let flags = policy.flags;
        let belongs = match subject.context {
            Context::Untracked => flags.do_not_track,
            Context::PreDnat => flags.pre_dnat,
            Context::Normal => !flags.do_not_track && !flags.pre_dnat,
            Context::Forward => flags.apply_on_forward && !flags.do_not_track && !flags.pre_dnat,
        };
        if !belongs && subject.context == Context::Normal && subject.what == "pod" {
            return Some("doNotTrack and preDNAT policies concern host endpoints only".to_owned());
        }
        if !belongs {
            return Some(format!("it has no part in the {} context", subject.context.as_str()));
        }
        if !governs {
            return Some(format!("it does not govern {name}"));
        }
        match &policy.selector {
            None => Some("its selector could not be understood, so it selects nothing".to_owned()),
            Some(selector) if !selector.matches(subject.labels) => {
                Some(format!("its selector does not select the {}: {}", subject.what, selector.canonical()))
            }
            Some(_) => None,
        }
    }

    /// Adds a step to the trace.
    fn note(&mut self, place: Attribution, finding: Finding) {
        self.trace.push(Step { place, finding });
    }
}

/// Policy model 8.1 and 8.6: tiers that exist by order and name, then those that are only named.
fn tiers_of(model: &Model) -> Vec<(String, Option<&Tier>)> {
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

/// Policy model 7.1 (a namespace allows all), 7.2 (a service account has no rules), 2.7 (profiles that were written, and the one that
/// is always there). `None`: it does not exist.
pub(crate) fn profile_rules(model: &Model, name: &str, direction: Direction) -> Option<Vec<Rule>> {
    let allow = || vec![Rule::everything(Action::Allow)];
    match parent_of(model, name) {
        Some(Parent::Namespace(_)) => Some(allow()),
        Some(Parent::ServiceAccount(_)) => Some(Vec::new()),
        _ if name == "projectcalico-default-allow" => Some(allow()),
        Some(Parent::Profile(profile)) => Some(match direction {
            Direction::Ingress => profile.ingress.clone(),
            Direction::Egress => profile.egress.clone(),
        }),
        None => None,
    }
}

/// Policy model 8.2: returns what policies of a tier are sorted by.
pub(crate) fn sort_key(policy: &Policy) -> (Order, String) {
    let namespace = policy.key.namespace.as_deref().unwrap_or_default();
    (policy.order, format!("{}/{namespace}/{}", policy.key.name, policy.key.kind.as_str()))
}

/// Says why a policy that applies does.
fn applies(policy: &Policy) -> String {
    let selector = policy.selector.as_ref().map_or("nothing", |selector| selector.canonical());
    let governs = match (policy.governs_ingress, policy.governs_egress) {
        (true, true) => "ingress and egress",
        (true, false) => "ingress",
        (false, true) => "egress",
        (false, false) => "nothing",
    };
    format!("selects {selector}; governs {governs}")
}

/// Returns the place of the policy itself.
pub(crate) fn place_of(policy: &Policy) -> Attribution {
    Attribution {
        tier: policy.tier.clone(),
        kind: policy.key.kind.as_str().to_owned(),
        namespace: policy.key.namespace.clone().unwrap_or_default(),
        name: policy.key.name.clone(),
        rule: -1,
    }
}
