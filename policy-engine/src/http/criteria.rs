//! What a rule wants of a request and of its sender, ready to be asked often.

use regex::Regex;

use super::path::{PathError, normalise_path, path_matches};
use super::principal::Principal;
use super::request::Request;
use crate::model::{Action, Entity, HeaderMatch, HeaderOperator, HttpMatch, Labels, Model, Rule, Unenforced};
use crate::selector::Selector;

/// A rule with its expressions compiled.
#[derive(Clone, Debug)]
pub(super) struct CompiledRule {
    pub(super) rule: Rule,
    headers: Vec<CompiledHeader>,
    source: SourceCriteria,
    /// Why the rule never matches.
    inert: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct CompiledHeader {
    wanted: HeaderMatch,
    /// Of `MatchesRegex`, each for the whole value.
    expressions: Vec<Regex>,
}

/// What is asked of the sender's service account (policy model 18.3); absent parts ask nothing.
#[derive(Clone, Debug, Default)]
struct SourceCriteria {
    account_names: Vec<String>,
    account_selector: Option<Selector>,
    namespace: Option<String>,
    namespace_selector: Option<Selector>,
}

/// The sender, as its certificate names it.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    principal: Principal,
    /// Labels of the service account over those that the proxy tells; `None`: the Model does not know the account.
    account_labels: Option<Labels>,
    /// Labels of the namespace and its name; `None`: the Model does not know it.
    namespace_labels: Option<Labels>,
}

/// Whether a rule matches.
pub(super) enum Match {
    Yes,
    No(String),
    /// The request is malformed in what the rule asks about.
    Malformed(PathError),
}

impl Sender {
    pub(super) fn new(principal: Principal, peer_labels: &Labels, model: &Model) -> Self {
        let account_labels = model.service_accounts.get(&principal.account).map(|account| {
            let mut labels = peer_labels.clone();
            labels.extend(account.labels.clone());
            labels
        });
        let namespace_labels = model.namespaces.get(&principal.account.namespace).map(|namespace| {
            let mut labels = namespace.labels.clone();
            labels.insert("projectcalico.org/name".to_owned(), namespace.name.clone());
            labels
        });
        Self { principal, account_labels, namespace_labels }
    }
}

impl CompiledRule {
    pub(super) fn new(rule: &Rule) -> Self {
        let mut inert = None;
        let mut headers = Vec::new();
        for wanted in rule.http.iter().flat_map(|http| &http.headers) {
            let texts = wanted.values.iter().filter(|_| wanted.operator == HeaderOperator::MatchesRegex);
            // Alone as well: `a)(b` is no expression, but would be one within parentheses.
            let compiled: Result<Vec<Regex>, regex::Error> = texts
                .map(|text| Regex::new(text).and_then(|_| Regex::new(&format!(r"\A(?:{text})\z"))))
                .collect();
            match compiled {
                Ok(expressions) => headers.push(CompiledHeader { wanted: wanted.clone(), expressions }),
                Err(_) => inert = Some("one of its regular expressions cannot be used"),
            }
        }
        let unknown = rule.unenforced.iter().any(|criterion| !matches!(criterion, Unenforced::Http));
        if unknown && matches!(rule.action, Action::Allow | Action::Pass) {
            inert = Some("it has a criterion that is not enforced, so it never matches (policy model 18.2)");
        }
        Self { rule: rule.clone(), headers, source: SourceCriteria::new(&rule.source), inert }
    }

    /// Returns the first criterion about the sender that does not hold, or `None`.
    ///
    /// An account or namespace that is not known has labels that nobody knows: what is asked of them holds for Deny and Log, and fails
    /// for Allow and Pass.
    pub(super) fn sender_mismatch(&self, sender: Option<&Sender>) -> Option<String> {
        let sender = sender?;
        let account = &sender.principal.account;
        let asked = |selector: &Option<Selector>, labels: &Option<Labels>| match (selector, labels) {
            (None, _) => true,
            (Some(selector), Some(labels)) => selector.matches(labels),
            (Some(_), None) => matches!(self.rule.action, Action::Deny | Action::Log),
        };
        let wanted = &self.source;
        if !wanted.account_names.is_empty() && !wanted.account_names.contains(&account.name) {
            return Some(format!("source: service account {} is none of those named", account.name));
        }
        if !asked(&wanted.account_selector, &sender.account_labels) {
            return Some(format!("source: service account {} is not selected", account.name));
        }
        if wanted.namespace.as_ref().is_some_and(|namespace| *namespace != account.namespace) {
            return Some(format!("source: namespace {} is not that of the policy", account.namespace));
        }
        if !asked(&wanted.namespace_selector, &sender.namespace_labels) {
            return Some(format!("source: namespace {} is not selected", account.namespace));
        }
        None
    }

    /// Compares the HTTP criteria; the path comes last, so a malformed one counts only where it is asked for.
    pub(super) fn request_match(&self, request: Option<&Request>) -> Match {
        if let Some(reason) = self.inert {
            return Match::No(reason.to_owned());
        }
        let Some(http) = &self.rule.http else { return Match::Yes };
        if **http == HttpMatch::default() {
            return Match::Yes;
        }
        let Some(request) = request else { return Match::No("there is no HTTP request".to_owned()) };
        let method = http.methods.is_empty()
            || http.methods.iter().any(|method| method == "*" || *method == request.method);
        if !method {
            return Match::No(format!("method {} is none of its methods", request.method));
        }
        if let Some(header) = self.headers.iter().find(|header| !header.holds(request)) {
            return Match::No(format!("header {} is not as wanted", header.wanted.name));
        }
        if http.paths.is_empty() {
            return Match::Yes;
        }
        match normalise_path(&request.path) {
            Ok(path) if http.paths.iter().any(|item| path_matches(item, &path)) => Match::Yes,
            Ok(path) => Match::No(format!("path {path} is none of its paths")),
            Err(error @ PathError::NotAPath { .. }) => Match::Malformed(error),
            Err(error @ PathError::NotNormalisable { .. }) => Match::No(error.to_string()),
        }
    }
}

impl SourceCriteria {
    /// A principal always belongs to a namespace, so `global()` selects none.
    fn new(source: &Entity) -> Self {
        let Some(written) = &source.written else { return Self::default() };
        let asks_accounts =
            !written.service_account_names.is_empty() || written.service_account_selector.is_some();
        let is_scoped = written.selector.is_some() || written.not_selector.is_some() || asks_accounts;
        let nothing = Selector::all().negated();
        let namespace_selector =
            written.namespace_selector.as_ref().map(|selector| selector.replace_global(&nothing));
        let namespace =
            written.policy_namespace.clone().filter(|_| is_scoped && namespace_selector.is_none());
        Self {
            account_names: written.service_account_names.clone(),
            account_selector: written.service_account_selector.clone(),
            namespace,
            namespace_selector,
        }
    }
}

impl CompiledHeader {
    /// Policy model 18.8. A header that occurs more than once holds when one of its values does; `NotIn`, when all of them do.
    fn holds(&self, request: &Request) -> bool {
        let wanted = &self.wanted;
        let mut values = request.values(&wanted.name);
        let any = |test: &dyn Fn(&str, &str) -> bool, value: &str| {
            wanted.values.iter().any(|wanted| test(value, wanted))
        };
        match wanted.operator {
            HeaderOperator::Exists => values.next().is_some(),
            HeaderOperator::DoesNotExist => values.next().is_none(),
            HeaderOperator::HasPrefix => {
                values.any(|value| any(&|value, wanted| value.starts_with(wanted), value))
            }
            HeaderOperator::HasSuffix => {
                values.any(|value| any(&|value, wanted| value.ends_with(wanted), value))
            }
            HeaderOperator::In => values.any(|value| any(&|value, wanted| value == wanted, value)),
            HeaderOperator::NotIn => values.all(|value| !any(&|value, wanted| value == wanted, value)),
            HeaderOperator::MatchesRegex => {
                values.any(|value| self.expressions.iter().any(|expression| expression.is_match(value)))
            }
        }
    }
}
