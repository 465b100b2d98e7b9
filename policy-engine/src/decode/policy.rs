//! NetworkPolicy, GlobalNetworkPolicy and their staged forms (policy model 2.1, 2.2, 2.6): defaults, checks, scope, closed form.

use serde_json::Value;

use super::Judged;
use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::rule::{self, Place, everything, is_blank, rules};
use super::scope::Target;
use crate::model::{
    Action, DenyAction, Object, Order, Policy, PolicyFlags, PolicyKey, PolicyKind, Rule, StagedAction,
};
use crate::packet::Direction;
use crate::selector::Selector;

/// Reads a policy of `projectcalico.org/v3`.
pub(super) fn decode(
    kind: PolicyKind,
    value: &Value,
    metadata: &Metadata,
    problems: &mut Problems,
) -> Judged {
    let is_global = matches!(kind, PolicyKind::GlobalNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy);
    let is_staged = matches!(kind, PolicyKind::StagedNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy);
    let namespace = (!is_global).then_some(metadata.namespace.as_str());
    let mut spec = open_spec(value, problems);
    let tier = spec.text("tier", problems).filter(|tier| !tier.is_empty()).unwrap_or("default").to_owned();
    let order = Order(spec.number("order", problems).unwrap_or(f64::INFINITY));
    let (selector, is_selector_good) = target(&mut spec, namespace, problems);
    let ingress = rules(&mut spec, Place { namespace, direction: Direction::Ingress }, problems);
    let egress = rules(&mut spec, Place { namespace, direction: Direction::Egress }, problems);
    // A list that could not be read still claims its direction.
    let mut says = |name| spec.raw(name).is_some_and(|value| !is_blank(value));
    let inferred = match (says("ingress"), says("egress")) {
        (false, true) => (false, true),
        (true, true) => (true, true),
        (_, false) => (true, false),
    };
    let governs = types(&mut spec, "types", (true, true), problems).unwrap_or(inferred);
    let flags = if is_global { flags(&mut spec, governs, &egress, problems) } else { PolicyFlags::default() };
    let flags = PolicyFlags { deny_action: deny_action(metadata, problems), ..flags };
    performance_hints(&mut spec, problems);
    let staged = is_staged.then(|| staged_action(&mut spec, value, problems));
    spec.finish(problems);
    let policy = Policy {
        key: PolicyKey { kind, namespace: namespace.map(str::to_owned), name: metadata.name.clone() },
        tier,
        order,
        selector,
        governs_ingress: governs.0,
        governs_egress: governs.1,
        ingress,
        egress,
        flags,
        staged,
    };
    judged(policy, is_selector_good)
}

/// Returns `policy` with its closed form (policy model 4.1). `is_selector_good`: every selector of the policy itself could be read.
pub(super) fn judged(policy: Policy, is_selector_good: bool) -> Judged {
    if policy.staged.is_some() {
        return Object::Policy(policy.into()).into();
    }
    let mut closed = policy.clone();
    if !is_selector_good {
        closed.selector = policy.key.namespace.as_deref().and_then(super::scope::in_namespace);
    }
    let deny = |governs: bool| if governs { vec![everything(Action::Deny)] } else { Vec::new() };
    closed.ingress = deny(closed.governs_ingress);
    closed.egress = deny(closed.governs_egress);
    // A global policy with such a selector, or one of a namespace that cannot exist: it protects nobody.
    let critical = closed.selector.is_none();
    Judged { object: Object::Policy(policy.into()), fallback: Some(Object::Policy(closed.into())), critical }
}

/// Opens `spec`, refusing fields beside it that no policy has.
pub(super) fn open_spec<'v>(value: &'v Value, problems: &mut Problems) -> Fields<'v> {
    let mut root = Fields::open(String::new(), Some(value), problems);
    for name in ["apiVersion", "kind", "metadata", "status"] {
        root.raw(name);
    }
    let spec = root.object("spec", problems);
    root.finish(problems);
    spec
}

/// Reads the selectors of the policy itself; the second value tells whether all of them could be read.
fn target(
    spec: &mut Fields<'_>,
    namespace: Option<&str>,
    problems: &mut Problems,
) -> (Option<Selector>, bool) {
    let before = problems.errors.len();
    let mut target = Target {
        selector: rule::selector(spec, "selector", problems),
        service_account_selector: rule::selector(spec, "serviceAccountSelector", problems),
        namespace_selector: None,
    };
    if namespace.is_none() {
        target.namespace_selector = rule::selector(spec, "namespaceSelector", problems);
    }
    (target.effective(namespace), problems.errors.len() == before)
}

/// Reads `types`: whether ingress and egress are governed, `None` when nothing is said. A list with errors claims `otherwise` too.
pub(super) fn types(
    spec: &mut Fields<'_>,
    name: &'static str,
    otherwise: (bool, bool),
    problems: &mut Problems,
) -> Option<(bool, bool)> {
    let before = problems.errors.len();
    let (mut ingress, mut egress) = (false, false);
    let listed = spec.texts(name, problems);
    for (path, text) in &listed {
        let seen = match *text {
            "Ingress" => &mut ingress,
            "Egress" => &mut egress,
            _ => {
                problems.refuse_text(path, text, "must be Ingress or Egress, in this spelling");
                continue;
            }
        };
        if *seen {
            problems.refuse_text(path, text, "written twice; remove one");
        }
        *seen = true;
    }
    if problems.errors.len() > before {
        return Some((ingress || otherwise.0, egress || otherwise.1));
    }
    (!listed.is_empty()).then_some((ingress, egress))
}

/// Policy model 2.2 and 4.5, the first rows.
fn flags(
    spec: &mut Fields<'_>,
    governs: (bool, bool),
    egress: &[Rule],
    problems: &mut Problems,
) -> PolicyFlags {
    let mut flags = PolicyFlags {
        do_not_track: spec.boolean("doNotTrack", problems),
        pre_dnat: spec.boolean("preDNAT", problems),
        apply_on_forward: spec.boolean("applyOnForward", problems),
        deny_action: None,
    };
    if flags.do_not_track && flags.pre_dnat {
        problems.refuse_text(spec.at("preDNAT"), "true", "excludes doNotTrack; write two policies");
        // The closed form stays with the host endpoints that either of them concerns.
        flags.pre_dnat = false;
    }
    for (name, is_set) in [("doNotTrack", flags.do_not_track), ("preDNAT", flags.pre_dnat)] {
        if is_set && !flags.apply_on_forward {
            problems.refuse_text(spec.at(name), "true", "needs applyOnForward: true beside it");
        }
    }
    if flags.pre_dnat {
        if !egress.is_empty() {
            problems.refuse_text(spec.at("egress"), "", "a preDNAT policy has no egress rules");
        }
        if governs.1 && spec.raw("types").is_some() {
            problems.refuse_text(spec.at("types"), "Egress", "a preDNAT policy governs Ingress only");
        }
    }
    flags
}

/// Whoever a policy with this annotation denies gets an answer (policy model 32.9). An annotation, because every kind of policy has
/// those, and an API server prunes fields of `spec` that it does not know.
const DENY_ACTION: &str = "margay/deny-action";

/// Reads [`DENY_ACTION`]. An answer changes no verdict, so a word that is none of the two is passed over with a warning.
pub(super) fn deny_action(metadata: &Metadata, problems: &mut Problems) -> Option<DenyAction> {
    match metadata.annotations.get(DENY_ACTION)?.as_str() {
        "Reject" => Some(DenyAction::Reject),
        "Drop" => Some(DenyAction::Drop),
        other => {
            let reason = "passed over, as if the policy did not say; write Reject or Drop";
            problems.warn(format!("metadata.annotations.{DENY_ACTION}"), other, reason);
            None
        }
    }
}

fn performance_hints(spec: &mut Fields<'_>, problems: &mut Problems) {
    let hints = spec.texts("performanceHints", problems);
    for (index, (path, hint)) in hints.iter().enumerate() {
        if *hint != "AssumeNeededOnEveryNode" {
            problems.refuse_text(path, hint, "unknown hint; the only one is AssumeNeededOnEveryNode");
        } else if index > 0 {
            problems.refuse_text(path, hint, "written twice; remove one");
        }
    }
}

/// Reads `stagedAction` (policy model 3.4), and with `Delete` refuses everything beside it but `tier`.
pub(super) fn staged_action(spec: &mut Fields<'_>, value: &Value, problems: &mut Problems) -> StagedAction {
    problems.warn(spec.at("").trim_end_matches('.'), "", "a staged policy has no effect on verdicts");
    let action = match spec.text("stagedAction", problems) {
        None | Some("" | "Set") => StagedAction::Set,
        Some("Delete") => StagedAction::Delete,
        Some("Learn") => StagedAction::Learn,
        Some("Ignore") => StagedAction::Ignore,
        Some(other) => {
            problems.refuse_text(spec.at("stagedAction"), other, "must be Set, Delete, Learn or Ignore");
            StagedAction::Ignore
        }
    };
    if action == StagedAction::Delete {
        let fields = value.get("spec").and_then(Value::as_object);
        for (name, value) in fields.into_iter().flatten() {
            if !matches!(name.as_str(), "stagedAction" | "tier") && !is_blank(value) {
                problems.refuse(
                    spec.at(name),
                    value,
                    "stagedAction Delete stands alone, with tier at most; remove this",
                );
            }
        }
    }
    action
}
