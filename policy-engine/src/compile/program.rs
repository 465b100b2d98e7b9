//! The rules of an endpoint and direction as one sequence of decision points; their order is the order of evaluation (policy model 8.4).
//!
//! ```text
//!   tier a: rule rule rule … [end: deny]   tier b: rule … [end: allow]   profiles: rule …   [end: deny]
//!             └─ Pass ──────────────────────▶┘
//! ```
//!
//! Contexts of host endpoints (policy model 11.2) are programs too; there the end may be that nothing is decided.
//!
//! End-of-tier and end-of-profiles decisions are ordinary points that match everything. A tier whose default is Pass has no end point:
//! the search simply runs on into the next tier. The last part is an [`End`], which always matches, so every packet meets a decision.

use std::sync::Arc;

use super::rows::{IcmpRows, PortRows, ProtocolRows, Shape};
use super::rules::{CompiledRule, RuleList, Side};
use super::sets::SetId;
use crate::model::{Action, TierDefault};
use crate::packet::HostVerdict;
use crate::snapshot::{Attribution, Boundaries};

/// Tier name under which profile decisions are reported.
pub(crate) const PROFILES: &str = "__PROFILE__";

/// What an endpoint is governed by, in order.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// A tier that applies, with the policies that do.
    Tier { name: String, default_action: TierDefault, lists: Vec<Arc<RuleList>> },
    /// A profile.
    Profile(Arc<RuleList>),
    /// A profile that is listed and does not exist: deny (policy model 8.6).
    MissingProfile(String),
    /// Ports that are accepted before any tier (policy model 11.9); or, where `leaves`, left to the next context.
    Failsafe { list: Arc<RuleList>, leaves: bool },
    /// What a packet meets that nothing before decided.
    End(End),
}

/// What a packet meets that no tier and no profile decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum End {
    /// No profile allows it.
    Deny,
    /// This context of a host endpoint says nothing.
    NoMatch,
}

/// Equal keys mean equal programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum KeyPart {
    Tier(String, u8),
    List(u64),
    Profile(u64),
    MissingProfile(String),
    Failsafe(u64, bool),
    End(End),
}

/// Returns the key of the program that `parts` make.
pub(crate) fn key(parts: &[Part]) -> Vec<KeyPart> {
    let mut key = Vec::new();
    for part in parts {
        match part {
            Part::Tier { name, default_action, lists } => {
                key.push(KeyPart::Tier(name.clone(), *default_action as u8));
                key.extend(lists.iter().map(|list| KeyPart::List(list.number)));
            }
            Part::Profile(list) => key.push(KeyPart::Profile(list.number)),
            Part::MissingProfile(name) => key.push(KeyPart::MissingProfile(name.clone())),
            Part::Failsafe { list, leaves } => key.push(KeyPart::Failsafe(list.number, *leaves)),
            Part::End(end) => key.push(KeyPart::End(*end)),
        }
    }
    key
}

/// What happens at a decision point that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allow,
    Deny,
    /// Nothing here decides.
    NoMatch,
    /// Note it and look further.
    Log,
    /// Look further from this point on.
    Pass(u32),
}

impl Outcome {
    /// Returns the verdict, where there is one.
    #[inline]
    pub(crate) fn verdict(self) -> Option<HostVerdict> {
        match self {
            Self::Allow => Some(HostVerdict::Allow),
            Self::Deny => Some(HostVerdict::Deny),
            Self::NoMatch => Some(HostVerdict::NoMatch),
            Self::Log | Self::Pass(_) => None,
        }
    }
}

/// One decision point. Without a rule it matches everything.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) rule: Option<Arc<CompiledRule>>,
    pub(crate) attribution: Arc<Attribution>,
}

/// The part of a point that the search reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) outcome: Outcome,
    /// The rows only say "perhaps".
    pub(crate) confirm: bool,
}

/// Decision points and the rows that do not depend on addresses.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Program {
    pub(crate) destination_port: Option<PortRows>,
    pub(crate) protocol: ProtocolRows,
    pub(crate) shape: Shape,
    pub(crate) steps: Vec<Step>,
    pub(crate) source_port: Option<Box<PortRows>>,
    pub(crate) icmp: Option<Box<IcmpRows>>,
    pub(crate) points: Vec<Point>,
    /// Some step only logs.
    pub(crate) has_logs: bool,
    /// Some rule means ports only together with an address.
    joins_ports: bool,
}

impl Program {
    pub(crate) fn build(parts: &[Part]) -> Self {
        let mut points = Vec::new();
        let mut outcomes = Vec::new();
        for part in parts {
            match part {
                Part::Tier { name, default_action, lists } => {
                    let start = outcomes.len();
                    for rule in lists.iter().flat_map(|list| &list.rules) {
                        points.push(Point {
                            rule: Some(Arc::clone(rule)),
                            attribution: Arc::clone(&rule.attribution),
                        });
                        outcomes.push(match rule.action {
                            Action::Allow => Outcome::Allow,
                            Action::Deny => Outcome::Deny,
                            Action::Log => Outcome::Log,
                            Action::Pass => Outcome::Pass(0),
                        });
                    }
                    if let Some(end) = end_of_tier(*default_action) {
                        points.push(always(name, "", ""));
                        outcomes.push(end);
                    }
                    let next = outcomes.len() as u32;
                    for outcome in &mut outcomes[start..] {
                        if let Outcome::Pass(target) = outcome {
                            *target = next;
                        }
                    }
                }
                Part::Profile(list) => {
                    for rule in &list.rules {
                        points.push(Point {
                            rule: Some(Arc::clone(rule)),
                            attribution: Arc::clone(&rule.attribution),
                        });
                        outcomes.push(match rule.action {
                            Action::Allow => Outcome::Allow,
                            Action::Log => Outcome::Log,
                            Action::Deny | Action::Pass => Outcome::Deny,
                        });
                    }
                }
                Part::MissingProfile(name) => {
                    points.push(always(PROFILES, "Profile", name));
                    outcomes.push(Outcome::Deny);
                }
                Part::Failsafe { list, leaves } => {
                    for rule in &list.rules {
                        points.push(Point {
                            rule: Some(Arc::clone(rule)),
                            attribution: Arc::clone(&rule.attribution),
                        });
                        outcomes.push(if *leaves { Outcome::NoMatch } else { Outcome::Allow });
                    }
                }
                Part::End(End::Deny) => {
                    points.push(always(PROFILES, "", ""));
                    outcomes.push(Outcome::Deny);
                }
                Part::End(End::NoMatch) => {
                    points.push(always("", "", ""));
                    outcomes.push(Outcome::NoMatch);
                }
            }
        }
        Self::with_rows(points, outcomes)
    }

    /// Returns the first point that decides whatever reaches it, with its verdict. Points behind it are met after a Pass only.
    pub(crate) fn certain(&self) -> (usize, HostVerdict) {
        let verdict = |(bit, point): (usize, &Point)| {
            let verdict = self.steps[bit].outcome.verdict()?;
            point.rule.as_deref().is_none_or(CompiledRule::matches_everything).then_some((bit, verdict))
        };
        let last = self.points.len() - 1;
        self.points.iter().enumerate().find_map(verdict).unwrap_or((last, HostVerdict::Deny))
    }

    /// Returns numbers of what this tells of source and destination port; `None` where that is not all that matters of them.
    #[inline]
    pub(crate) fn port_classes(&self, source: u16, destination: u16) -> Option<[u32; 2]> {
        let class = |rows: Option<&PortRows>, port| rows.map_or(0, |rows| rows.number(Some(port)));
        let (sources, destinations) = (self.source_port.as_deref(), self.destination_port.as_ref());
        (!self.joins_ports).then(|| [class(sources, source), class(destinations, destination)])
    }

    /// Where verdicts can change.
    pub(crate) fn boundaries(&self) -> Boundaries {
        let rules = || self.points.iter().filter_map(|point| point.rule.as_deref());
        let ports = |side: fn(&CompiledRule) -> &Side| {
            let ranges = rules().flat_map(|rule| side(rule).port_ranges());
            let starts = ranges.flat_map(|(first, last)| [Some(first), last.checked_add(1)]).flatten();
            sorted(starts.chain([0]))
        };
        let criteria = rules().flat_map(|rule| [rule.icmp, rule.not_icmp]).flatten();
        Boundaries {
            protocols: sorted(rules().flat_map(|rule| [rule.protocol, rule.not_protocol]).flatten()),
            source_ports: ports(|rule| &rule.source),
            destination_ports: ports(|rule| &rule.destination),
            icmp: sorted(criteria.filter_map(|criterion| Some((criterion.kind?, criterion.code)))),
        }
    }

    /// One line per decision point, with sets by what they contain.
    pub(crate) fn describe(&self, set: &dyn Fn(SetId) -> String) -> Vec<String> {
        let steps = self.points.iter().zip(&self.steps);
        steps
            .map(|(point, step)| {
                let rule = point.rule.as_ref().map(|rule| rule.describe(set)).unwrap_or_default();
                format!("{:?} {:?} {rule}", step.outcome, point.attribution)
            })
            .collect()
    }

    fn with_rows(points: Vec<Point>, outcomes: Vec<Outcome>) -> Self {
        let shape = Shape::new(points.len());
        let rules: Vec<Option<&CompiledRule>> = points.iter().map(|point| point.rule.as_deref()).collect();
        let every = |bit: usize, test: &dyn Fn(&CompiledRule) -> bool| rules[bit].is_none_or(test);
        let known = || rules.iter().copied().flatten();
        let mut protocols: Vec<u8> =
            known().flat_map(|rule| [rule.protocol, rule.not_protocol]).flatten().collect();
        protocols.sort_unstable();
        protocols.dedup();
        let protocol = ProtocolRows::build(shape, &protocols, |bit, is_ipv4, protocol| {
            every(bit, &|rule| rule.matches_protocol(is_ipv4, protocol))
        });
        let source_port = port_rows(shape, &rules, |rule| &rule.source);
        let destination_port = port_rows(shape, &rules, |rule| &rule.destination);
        let criteria = || known().flat_map(|rule| [rule.icmp, rule.not_icmp]).flatten();
        let mut types: Vec<u8> = criteria().filter_map(|criterion| criterion.kind).collect();
        types.sort_unstable();
        types.dedup();
        let icmp = criteria().next().is_some().then(|| {
            IcmpRows::build(shape, &types, |bit, view| every(bit, &|rule| rule.may_match_icmp(view)))
        });
        let steps: Vec<Step> = outcomes
            .into_iter()
            .zip(&rules)
            .map(|(outcome, rule)| Step {
                outcome,
                confirm: rule.is_some_and(CompiledRule::needs_confirmation),
            })
            .collect();
        let joins_ports = known().any(|rule| rule.source.is_joint() || rule.destination.is_joint());
        let has_logs = steps.iter().any(|step| matches!(step.outcome, Outcome::Log));
        let (source_port, icmp) = (source_port.map(Box::new), icmp.map(Box::new));
        Self { points, steps, shape, protocol, source_port, destination_port, icmp, has_logs, joins_ports }
    }
}

fn port_rows(
    shape: Shape,
    rules: &[Option<&CompiledRule>],
    side: impl Fn(&CompiledRule) -> &Side,
) -> Option<PortRows> {
    let sides: Vec<Option<&Side>> = rules.iter().map(|rule| rule.map(&side)).collect();
    sides.iter().flatten().any(|side| side.has_port_criteria()).then(|| {
        PortRows::build(
            shape,
            |bit| sides[bit].into_iter().flat_map(Side::port_ranges),
            |bit, port| sides[bit].is_none_or(|side| side.may_match_port(Some(port))),
            |bit| sides[bit].is_none_or(Side::may_match_unnamed_port),
            |bit| sides[bit].is_none_or(|side| side.may_match_port(None)),
        )
    })
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<std::collections::BTreeSet<T>>().into_iter().collect()
}

fn end_of_tier(default_action: TierDefault) -> Option<Outcome> {
    match default_action {
        TierDefault::Deny => Some(Outcome::Deny),
        TierDefault::Allow => Some(Outcome::Allow),
        TierDefault::Pass => None,
    }
}

fn always(tier: &str, kind: &str, name: &str) -> Point {
    let attribution = Attribution {
        tier: tier.to_owned(),
        kind: kind.to_owned(),
        namespace: String::new(),
        name: name.to_owned(),
        rule: -1,
    };
    Point { rule: None, attribution: Arc::new(attribution) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::rules::{CompiledRule, RuleList};
    use super::super::sets::Sets;
    use super::super::table::{Table, TableIndex};
    use super::{End, PROFILES, Part, Program};
    use crate::model::{Action, Rule, TierDefault};
    use crate::packet::{Epoch, HostVerdict, IdentityId, PacketTuple};
    use crate::snapshot::Attribution;

    fn list(actions: &[Action]) -> Arc<RuleList> {
        let rules = (0..).zip(actions).filter_map(|(rule, action)| {
            let named = Attribution {
                tier: PROFILES.to_owned(),
                kind: "Profile".to_owned(),
                namespace: String::new(),
                name: "p".to_owned(),
                rule,
            };
            let rule = Rule::everything(*action);
            CompiledRule::compile(&rule, named, false, &mut Sets::default()).map(Arc::new)
        });
        Arc::new(RuleList { number: 0, rules: rules.collect() })
    }

    fn decide(parts: &[Part]) -> (HostVerdict, i32) {
        let parts: Vec<Part> = parts.iter().cloned().chain([Part::End(End::Deny)]).collect();
        let table = Table::new(Epoch(1), 0, Program::build(&parts), &mut TableIndex::default());
        let packet = PacketTuple {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol: 6,
            source_port: Some(1),
            destination_port: Some(2),
            icmp: None,
        };
        let nobody = [IdentityId(0); 2];
        let (verdict, bit) = table.decide(
            &packet,
            || nobody,
            table.first(&table.rows(&packet, nobody)),
            &Default::default(),
            |_| (),
        );
        (verdict, table.program.points[bit].attribution.rule)
    }

    #[test]
    fn pm_8_7_and_8_8_profiles() {
        use Action::{Allow, Deny, Log, Pass};
        let profile = |actions: &[Action]| Part::Profile(list(actions));
        let missing = || Part::MissingProfile("missing".to_owned());
        let tier = |actions: &[Action], default_action| Part::Tier {
            name: "t".to_owned(),
            default_action,
            lists: vec![list(actions)],
        };
        let rows = [
            (vec![], (HostVerdict::Deny, -1)),
            (vec![profile(&[]), profile(&[Allow])], (HostVerdict::Allow, 0)),
            (vec![profile(&[Deny]), profile(&[Allow])], (HostVerdict::Deny, 0)),
            (vec![missing(), profile(&[Allow])], (HostVerdict::Deny, -1)),
            (vec![profile(&[Log, Pass]), profile(&[Allow])], (HostVerdict::Deny, 1)),
            (vec![tier(&[Pass, Deny], TierDefault::Deny), profile(&[Allow])], (HostVerdict::Allow, 0)),
            (vec![tier(&[Pass], TierDefault::Deny)], (HostVerdict::Deny, -1)),
            (vec![tier(&[], TierDefault::Pass), profile(&[Log, Allow])], (HostVerdict::Allow, 1)),
        ];
        for (number, (parts, expected)) in rows.into_iter().enumerate() {
            assert_eq!(decide(&parts), expected, "row {number}");
        }
    }

    #[test]
    fn thousands_of_rules_are_one_search() {
        let mut actions = vec![Action::Log; 9_000];
        actions.push(Action::Allow);
        assert_eq!(decide(&[Part::Profile(list(&actions))]), (HostVerdict::Allow, 9_000));
    }
}
