//! What is asked of the API server, what it answers, and what could not be read: counted, for the metrics page and for tests that hold us
//! to few requests.
//!
//! The labels are bounded: verbs and codes are few, resources are those of the followed kinds and of the few things that are written.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One sort of request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// `list`, `watch`, `get`, `create`, `update`, `patch`.
    pub verb: &'static str,
    /// `pods`, `networkpolicies.projectcalico.org`, `tiers.projectcalico.org/status`; `discovery` for what is about the server.
    pub resource: String,
    /// `2xx`, the code of a refusal, or `none` when there was no answer.
    pub code: String,
}

/// Sums since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that ended; of watches, those that were opened or refused.
    pub requests: BTreeMap<Asked, u64>,
    /// Watches opened in place of one that ended, by resource.
    pub watch_restarts: BTreeMap<String, u64>,
    /// Lists begun after the first, by resource: the server could not continue from what was known.
    pub relists: BTreeMap<String, u64>,
    /// Objects, events and pages that could not be read, by resource or kind. Objects that are read and wrong are problems, not this.
    pub unreadable: BTreeMap<String, u64>,
}

/// Requests that were made since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Pages of lists.
    pub lists: u64,
    /// Watches opened.
    pub watches: u64,
    /// Discovery, leases, status.
    pub others: u64,
}

impl Traffic {
    /// Returns the requests in three sums.
    pub fn requests(&self) -> Requests {
        let mut sums = Requests::default();
        for (asked, count) in &self.requests {
            match asked.verb {
                "list" => sums.lists += count,
                "watch" => sums.watches += count,
                _ => sums.others += count,
            }
        }
        sums
    }
}

/// Where everybody who asks writes it down.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Traffic>);

impl Ledger {
    fn open(&self) -> MutexGuard<'_, Traffic> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a request ended.
    pub fn asked<T>(&self, verb: &'static str, resource: &str, outcome: &Result<T, kube::Error>) {
        let code = match outcome {
            Ok(_) => "2xx".to_owned(),
            Err(kube::Error::Api(status)) => status.code.to_string(),
            Err(_) => "none".to_owned(),
        };
        let asked = Asked { verb, resource: resource.to_owned(), code };
        *self.open().requests.entry(asked).or_default() += 1;
    }

    /// Notes a watch in place of one that ended.
    pub fn restarted(&self, resource: &str) {
        *self.open().watch_restarts.entry(resource.to_owned()).or_default() += 1;
    }

    /// Notes a list after the first.
    pub fn relisted(&self, resource: &str) {
        *self.open().relists.entry(resource.to_owned()).or_default() += 1;
    }

    /// Notes something that could not be read.
    pub fn unreadable(&self, what: &str) {
        *self.open().unreadable.entry(what.to_owned()).or_default() += 1;
    }

    /// Returns the sums.
    pub fn sums(&self) -> Traffic {
        self.open().clone()
    }
}

/// Returns the verb of the API for one of HTTP.
pub(super) fn verb_of(method: &str) -> &'static str {
    match method {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        _ => "get",
    }
}

/// Returns the resource that a path is about: `/apis/GROUP/VERSION/namespaces/N/PLURAL/NAME/status` is `PLURAL.GROUP/status`.
pub(super) fn resource_of(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let mut parts = path.split('/').skip(1);
    let group = match parts.next() {
        Some("api") => "",
        Some("apis") => parts.next().unwrap_or_default(),
        _ => return "discovery".to_owned(),
    };
    let mut rest: Vec<&str> = parts.skip(1).collect();
    // A namespace on the way, unless it is what is asked about.
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let Some(plural) = rest.first() else { return "discovery".to_owned() };
    let dot = if group.is_empty() { "" } else { "." };
    let part = rest.get(2).map(|part| format!("/{part}")).unwrap_or_default();
    format!("{plural}{dot}{group}{part}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_about_a_resource() {
        for (path, resource) in [
            ("/api/v1/pods?watch=true", "pods"),
            ("/api/v1/namespaces", "namespaces"),
            ("/api/v1/namespaces/shop", "namespaces"),
            ("/api/v1/namespaces/shop/events", "events"),
            ("/api/v1/nodes/n1?fieldManager=m", "nodes"),
            ("/apis/networking.k8s.io/v1/networkpolicies", "networkpolicies.networking.k8s.io"),
            (
                "/apis/projectcalico.org/v3/namespaces/a/networkpolicies/p/status",
                "networkpolicies.projectcalico.org/status",
            ),
            ("/apis/projectcalico.org/v3/tiers/t", "tiers.projectcalico.org"),
            ("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/l", "leases.coordination.k8s.io"),
            ("/readyz", "discovery"),
            ("/apis", "discovery"),
            ("/apis/projectcalico.org/v3", "discovery"),
            ("/api/v1", "discovery"),
        ] {
            assert_eq!(resource_of(path), resource, "{path}");
        }
    }

    #[test]
    fn requests_are_summed_by_verb() {
        let ledger = Ledger::default();
        ledger.asked("list", "pods", &Ok(()));
        ledger.asked("watch", "pods", &Ok(()));
        ledger.asked("watch", "pods", &Ok(()));
        ledger.asked("patch", "nodes", &Err::<(), _>(kube::Error::LinesCodecMaxLineLengthExceeded));
        ledger.restarted("pods");
        ledger.relisted("pods");
        ledger.unreadable("Pod");
        let sums = ledger.sums();
        assert_eq!(sums.requests(), Requests { lists: 1, watches: 2, others: 1 });
        let lost = Asked { verb: "patch", resource: "nodes".to_owned(), code: "none".to_owned() };
        assert_eq!(sums.requests[&lost], 1);
        assert_eq!((sums.watch_restarts["pods"], sums.relists["pods"], sums.unreadable["Pod"]), (1, 1, 1));
    }
}
