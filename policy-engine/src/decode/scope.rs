//! API-level selectors to effective ones (policy model 6): which namespace, which service account, which of both parts.

use std::sync::Arc;

use crate::model::WrittenPeer;
use crate::selector::Selector;

/// Namespace of an object; absent on global objects (policy model 1.3).
pub(super) const NAMESPACE: &str = "projectcalico.org/namespace";
/// `k8s` on pods.
pub(super) const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// Name of the service account of a pod.
pub(super) const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
/// Name of the Namespace or ServiceAccount itself, inherited with a prefix.
const NAMESPACE_LABELS: &str = "pcns.";
const SERVICE_ACCOUNT_LABELS: &str = "pcsa.";

/// Returns whether the label is present; `key` is one of the constants above.
fn present(key: &str) -> Selector {
    Selector::has(key).expect("the label names of this module are spelled with letters, dots and slashes")
}

/// Returns the selector of everything in `namespace`; `None` for a text that cannot be a namespace.
pub(super) fn in_namespace(namespace: &str) -> Option<Selector> {
    Selector::equals(NAMESPACE, namespace).ok()
}

/// The selectors of a policy; absent means blank.
#[derive(Debug, Default)]
pub(super) struct Target {
    pub selector: Option<Selector>,
    pub namespace_selector: Option<Selector>,
    pub service_account_selector: Option<Selector>,
}

impl Target {
    /// Returns the effective selector of a policy in `namespace`, or of a global one (policy model 6.1, 6.2); `None` selects nothing.
    pub(super) fn effective(self, namespace: Option<&str>) -> Option<Selector> {
        match namespace {
            Some(namespace) => {
                let accounts =
                    self.service_account_selector.map(|selector| selector.prefix(SERVICE_ACCOUNT_LABELS));
                let scope = in_namespace(namespace)?;
                Some(Selector::and(self.selector.into_iter().chain([scope]).chain(accounts)))
            }
            None => Some(self.global()),
        }
    }

    fn global(self) -> Selector {
        let mut effective = self.selector;
        let scopes = [
            (self.namespace_selector, NAMESPACE_LABELS, NAMESPACE),
            (self.service_account_selector, SERVICE_ACCOUNT_LABELS, SERVICE_ACCOUNT),
        ];
        for (scope, prefix, label) in scopes {
            if let Some(scope) = scope {
                let narrowed = Selector::and(effective.into_iter().chain([scope.prefix(prefix)]));
                effective = Some(narrowed.replace_all(&present(label)));
            }
        }
        effective.unwrap_or_else(Selector::all)
    }
}

/// The selectors of one side of a rule; absent means not written.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub selector: Option<Selector>,
    pub not_selector: Option<Selector>,
    pub namespace_selector: Option<Selector>,
    pub service_account_selector: Option<Selector>,
    pub service_account_names: Vec<String>,
}

impl Peer {
    /// Returns the criteria as they were written, for what judges requests and not addresses (policy model 18.3); `None` without any.
    pub(super) fn written(&self, namespace: Option<&str>) -> Option<Arc<WrittenPeer>> {
        let written = WrittenPeer {
            policy_namespace: namespace.map(str::to_owned),
            selector: self.selector.clone(),
            not_selector: self.not_selector.clone(),
            namespace_selector: self.namespace_selector.clone(),
            service_account_names: self.service_account_names.clone(),
            service_account_selector: self.service_account_selector.clone(),
        };
        let nothing =
            WrittenPeer { policy_namespace: written.policy_namespace.clone(), ..WrittenPeer::default() };
        (written != nothing).then(|| Arc::new(written))
    }

    /// Returns the positive selector, the negative part folded in, or else the negative one (policy model 6.3, 6.4).
    pub(super) fn effective(self, namespace: Option<&str>) -> (Option<Selector>, Option<Selector>) {
        let names = (!self.service_account_names.is_empty())
            .then(|| {
                Selector::one_of(SERVICE_ACCOUNT, self.service_account_names.iter().map(String::as_str)).ok()
            })
            .flatten();
        let accounts = self.service_account_selector.map(|selector| selector.prefix(SERVICE_ACCOUNT_LABELS));
        let parts: Vec<Selector> = accounts.into_iter().chain(names).chain(self.selector).collect();
        let names_namespaces = self.namespace_selector.is_some();
        let scope = match self.namespace_selector {
            Some(selector) => {
                let namespaced = present(NAMESPACE);
                let scope = selector.prefix(NAMESPACE_LABELS).replace_all(&namespaced);
                Some(scope.replace_global(&namespaced.negated()))
            }
            None => namespace.and_then(in_namespace),
        };
        let is_scoped = !parts.is_empty() || self.not_selector.is_some() || names_namespaces;
        let scope = scope.filter(|_| is_scoped);
        let positive: Vec<Selector> = scope.into_iter().chain(parts).collect();
        match (positive.is_empty(), self.not_selector) {
            (true, negative) => (None, negative),
            (false, None) => (Some(Selector::and(positive)), None),
            (false, Some(negative)) => {
                (Some(Selector::and([Selector::and(positive), negative.negated()])), None)
            }
        }
    }
}
