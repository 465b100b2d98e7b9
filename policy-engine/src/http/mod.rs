//! Application-layer policy: may this request pass to this endpoint? (policy model 18.3 to 18.8)
//!
//! ```text
//!  Model ─▶ CompiledRequestPolicy        once per endpoint and change: who applies, in which order, regular expressions compiled
//!              └─ connection ─▶ Connection    once per connection: what the addresses belong to, who the certificate names
//!                    └─ judge(request)           once per request: method, headers, path
//! ```
//!
//! A pure function for a proxy to ask; packets are not judged here. The algorithm is that of policy model 8.4 for ingress, with every
//! criterion of a packet's rule (9) and those of a request beside it. Whatever is not clearly allowed is refused: a profile that is
//! missing, an endpoint without profiles, a certificate or a path that makes no sense.
//!
//! Two choices differ from Calico's checker, both towards what packets get. Named ports match as in 9.4 (there they never do), and
//! selectors are asked of the Model itself, so there is no address set that could be unknown and therefore match.

mod criteria;
mod path;
mod principal;
mod request;

use std::collections::BTreeMap;

use crate::engine::LocalEndpoint;
use crate::model::{Action, Labels, Model, NamespacedName, Order, Policy, Rule, TierDefault};
use crate::oracle::{self, Facts, Finding, Step, World, place_of, profiles_of};
use crate::packet::{EndpointId, PacketTuple};
use crate::snapshot::Attribution;
use criteria::{CompiledRule, Match, Sender};

pub use path::{PathError, normalise_path, path_matches};
pub use principal::{Principal, PrincipalError};
pub use request::{Refusal, Request, RequestVerdict};

/// What came of a request, and the way there.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestDecision {
    /// What to do.
    pub verdict: RequestVerdict,
    /// What was looked at, in order; the last step decided. Empty when the request was not worth looking at.
    pub trace: Vec<Step>,
    /// Why, when no rule and no end of a tier decided.
    pub reason: Option<String>,
}

/// Everything that decides about requests to one endpoint.
#[derive(Clone, Debug)]
pub struct CompiledRequestPolicy {
    tiers: Vec<CompiledTier>,
    /// `None`: the endpoint lists it, and it does not exist (policy model 8.6).
    profiles: Vec<(String, Option<Vec<CompiledRule>>)>,
}

#[derive(Clone, Debug)]
struct CompiledTier {
    name: String,
    default_action: TierDefault,
    policies: Vec<(Attribution, Vec<CompiledRule>)>,
}

/// What is known of a connection before any request: it stays as it is while the Model does.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'c> {
    /// Addresses, protocol and ports, as the endpoint sees them.
    pub packet: PacketTuple,
    /// The principal that the peer's certificate proves; `None` in plain text.
    pub principal: Option<&'c str>,
    /// Labels that the proxy tells of the peer, below those of its service account; usually none.
    pub labels: &'c Labels,
}

/// A connection with its sender looked up.
pub struct Connection<'p> {
    policy: &'p CompiledRequestPolicy,
    facts: Facts<'p>,
    sender: Option<Sender>,
}

/// Compiles the policy of `pod` and judges one request. A pod that has no local endpoint is not known: the request is refused.
pub fn evaluate(
    model: &Model,
    locals: &BTreeMap<EndpointId, LocalEndpoint>,
    pod: &NamespacedName,
    caller: &Caller<'_>,
    request: Option<&Request>,
) -> RequestDecision {
    let Some(policy) = CompiledRequestPolicy::of_pod(model, locals, pod) else {
        let reason = format!("policy does not know pod {}/{} (yet)", pod.namespace, pod.name);
        return RequestDecision {
            verdict: RequestVerdict::Internal,
            trace: Vec::new(),
            reason: Some(reason),
        };
    };
    match policy.connection(model, locals, caller) {
        Ok(connection) => connection.judge(request),
        Err(error) => RequestDecision {
            verdict: RequestVerdict::InvalidArgument,
            trace: Vec::new(),
            reason: Some(error.to_string()),
        },
    }
}

impl CompiledRequestPolicy {
    /// Compiles what applies to requests to `pod`. `None`: no local endpoint has that pod, or the Model does not know it (yet).
    pub fn of_pod(
        model: &Model,
        locals: &BTreeMap<EndpointId, LocalEndpoint>,
        pod: &NamespacedName,
    ) -> Option<Self> {
        let local = locals.values().rev().find(|local| local.pod == *pod)?;
        let pod = World { model, locals }.pod_of(local)?;
        Some(Self::new(model, &oracle::effective_labels(model, pod), &profiles_of(pod)))
    }

    /// Compiles what applies to requests to an endpoint with these effective labels and profiles.
    pub fn new(model: &Model, labels: &Labels, profiles: &[String]) -> Self {
        let compiled = |rules: &[Rule]| rules.iter().map(CompiledRule::new).collect::<Vec<_>>();
        let applies = |policy: &&Policy| {
            let is_normal = !policy.flags.do_not_track && !policy.flags.pre_dnat;
            let selects = policy.selector.as_ref().is_some_and(|selector| selector.matches(labels));
            policy.staged.is_none() && is_normal && policy.governs_ingress && selects
        };
        // Policy model 8.1, 8.2 and 8.6: a tier that is only named comes last and denies at its end.
        let mut tiers: BTreeMap<(bool, Order, &str), Vec<&Policy>> = BTreeMap::new();
        for policy in model.policies.values().map(|policy| &**policy).filter(applies) {
            let tier = model.tiers.get(&policy.tier);
            let order = tier.map_or(Order(f64::INFINITY), |tier| tier.order);
            tiers.entry((tier.is_none(), order, &policy.tier)).or_default().push(policy);
        }
        let tiers = tiers.into_iter().map(|((_, _, name), mut policies)| {
            policies.sort_by_cached_key(|policy| oracle::sort_key(policy));
            CompiledTier {
                name: name.to_owned(),
                default_action: model.tiers.get(name).map_or(TierDefault::Deny, |tier| tier.default_action),
                policies: policies
                    .iter()
                    .map(|policy| (place_of(policy), compiled(&policy.ingress)))
                    .collect(),
            }
        });
        let profiles = profiles.iter().map(|name| {
            let rules = oracle::profile_rules(model, name, crate::packet::Direction::Ingress);
            (name.clone(), rules.map(|rules| compiled(&rules)))
        });
        Self { tiers: tiers.collect(), profiles: profiles.collect() }
    }

    /// Looks up both ends of a connection. The cost is that of walking every object of the Model, once for all its requests.
    ///
    /// Errors: the principal is not that of a service account; every request of the connection is malformed.
    pub fn connection<'p>(
        &'p self,
        model: &'p Model,
        locals: &'p BTreeMap<EndpointId, LocalEndpoint>,
        caller: &Caller<'_>,
    ) -> Result<Connection<'p>, PrincipalError> {
        let principal: Option<Principal> = caller.principal.map(str::parse).transpose()?;
        let sender = principal.map(|principal| Sender::new(principal, caller.labels, model));
        Ok(Connection { policy: self, facts: Facts::new(World { model, locals }, caller.packet), sender })
    }
}

/// What a list of rules came to.
enum Sum {
    Decided(RequestDecision),
    Pass,
    NoMatch,
}

impl Connection<'_> {
    /// Judges one request; `None`: the connection carries something that is not HTTP.
    pub fn judge(&self, request: Option<&Request>) -> RequestDecision {
        let mut trace = Vec::new();
        'tiers: for tier in &self.policy.tiers {
            for (place, rules) in &tier.policies {
                match self.rules(place, rules, false, request, &mut trace) {
                    Sum::Decided(decision) => return decision,
                    Sum::Pass => continue 'tiers,
                    Sum::NoMatch => {}
                }
            }
            // Policy model 18.6: recorded with rule -1.
            let end = Attribution { tier: tier.name.clone(), ..nobody() };
            let (finding, verdict) = match tier.default_action {
                TierDefault::Pass => {
                    let reason = "no rule of the tier matches; its default action is Pass".to_owned();
                    (Finding::NextTier(reason), None)
                }
                TierDefault::Allow => (Finding::Allowed, Some(RequestVerdict::Allow)),
                TierDefault::Deny => {
                    let reason = "end of tier: a policy selects the endpoint and no rule matches".to_owned();
                    (Finding::Denied(reason), Some(RequestVerdict::Deny))
                }
            };
            trace.push(Step { place: end, finding });
            if let Some(verdict) = verdict {
                return RequestDecision { verdict, trace, reason: None };
            }
        }
        self.profiles(request, trace)
    }

    fn profiles(&self, request: Option<&Request>, mut trace: Vec<Step>) -> RequestDecision {
        for (name, rules) in &self.policy.profiles {
            let place = Attribution {
                tier: "__PROFILE__".to_owned(),
                kind: "Profile".to_owned(),
                name: name.clone(),
                ..nobody()
            };
            let Some(rules) = rules else {
                let reason = format!("profile {name} is listed and does not exist");
                trace.push(Step { place, finding: Finding::Denied(reason.clone()) });
                return RequestDecision { verdict: RequestVerdict::Internal, trace, reason: Some(reason) };
            };
            if let Sum::Decided(decision) = self.rules(&place, rules, true, request, &mut trace) {
                return decision;
            }
        }
        let place = Attribution { tier: "__PROFILE__".to_owned(), ..nobody() };
        trace.push(Step { place, finding: Finding::Denied("no profile allows it".to_owned()) });
        RequestDecision { verdict: RequestVerdict::Deny, trace, reason: None }
    }

    fn rules(
        &self,
        place: &Attribution,
        rules: &[CompiledRule],
        in_profile: bool,
        request: Option<&Request>,
        trace: &mut Vec<Step>,
    ) -> Sum {
        for (index, compiled) in rules.iter().enumerate() {
            let place = Attribution { rule: index as i32, ..place.clone() };
            let mismatch = self
                .facts
                .mismatch(&compiled.rule)
                .or_else(|| compiled.sender_mismatch(self.sender.as_ref()));
            let matched = mismatch.map_or_else(|| compiled.request_match(request), Match::No);
            match matched {
                Match::Yes => {}
                Match::No(reason) => {
                    trace.push(Step { place, finding: Finding::NoMatch(reason) });
                    continue;
                }
                Match::Malformed(error) => {
                    let reason = error.to_string();
                    trace.push(Step { place, finding: Finding::Denied(reason.clone()) });
                    let (verdict, trace) = (RequestVerdict::InvalidArgument, std::mem::take(trace));
                    return Sum::Decided(RequestDecision { verdict, trace, reason: Some(reason) });
                }
            }
            let (finding, verdict) = match compiled.rule.action {
                Action::Log => (Finding::Logged, None),
                Action::Allow => (Finding::Allowed, Some(RequestVerdict::Allow)),
                Action::Deny => {
                    (Finding::Denied("the rule says Deny".to_owned()), Some(RequestVerdict::Deny))
                }
                // Policy model 18.6.
                Action::Pass if in_profile => {
                    let reason = "Pass has no meaning in a profile (PM-D6)".to_owned();
                    (Finding::Denied(reason), Some(RequestVerdict::Deny))
                }
                Action::Pass => {
                    trace.push(Step { place, finding: Finding::NextTier("the rule says Pass".to_owned()) });
                    return Sum::Pass;
                }
            };
            trace.push(Step { place, finding });
            if let Some(verdict) = verdict {
                return Sum::Decided(RequestDecision { verdict, trace: std::mem::take(trace), reason: None });
            }
        }
        Sum::NoMatch
    }
}

fn nobody() -> Attribution {
    Attribution {
        tier: String::new(),
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        rule: -1,
    }
}
