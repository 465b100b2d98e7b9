//! Which of the kinds the server offers, and where.
//!
//! An API may be missing because its CRD is not installed yet; that is no error, it is asked for again now and then. What is asked
//! then is one small document, the list of groups, and only where a group offers the version, its resources.

use std::collections::BTreeMap;

use kube::Client;

use super::kinds::{CALICO, KindId, STORED};
use super::ledger::Ledger;
use super::trouble::Trouble;

/// Where one kind is listed and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// Path of the collection across all namespaces, such as `/apis/networking.k8s.io/v1/networkpolicies`.
    pub path: String,
    /// Path up to the version.
    pub root: String,
    /// Plural, as in paths.
    pub plural: String,
    /// Objects live in namespaces.
    pub is_namespaced: bool,
    /// Objects have a `status` of their own.
    pub has_status: bool,
    /// They are read as Calico stores them, and not written.
    pub is_stored: bool,
}

/// What the server said about the kinds that were asked for.
#[derive(Debug, Default)]
pub(super) struct Offer {
    /// Kinds that are served.
    pub served: BTreeMap<KindId, Served>,
    /// Kinds of which nothing can be said.
    pub unknown: BTreeMap<KindId, Trouble>,
    /// The server has no `projectcalico.org`, so kinds of it are looked for where Calico stores them.
    pub has_no_calico: bool,
}

/// Asks about `kinds`. Errors: the server does not even say which groups it has.
pub(super) async fn discover(client: &Client, kinds: &[KindId], ledger: &Ledger) -> Result<Offer, Trouble> {
    let outcome = client.list_api_groups().await;
    ledger.asked("get", "discovery", &outcome);
    let groups = outcome.map_err(|error| Trouble::of("the list of API groups", &error))?;
    let offered: BTreeMap<&str, Vec<&str>> = groups
        .groups
        .iter()
        .map(|group| (group.name.as_str(), group.versions.iter().map(|v| v.version.as_str()).collect()))
        .collect();
    let mut resources = BTreeMap::new();
    let mut offer = Offer { has_no_calico: !offered.contains_key(CALICO), ..Offer::default() };
    for id in kinds {
        let kind = id.kind();
        let is_stored = kind.group == CALICO && offer.has_no_calico;
        let (group_name, known) = if is_stored { (STORED, &["v1"][..]) } else { (kind.group, kind.versions) };
        let versions = known.iter().filter(|version| {
            group_name.is_empty()
                || offered.get(group_name).is_some_and(|versions| versions.contains(version))
        });
        for version in versions {
            let group =
                if group_name.is_empty() { (*version).to_owned() } else { format!("{group_name}/{version}") };
            if !resources.contains_key(&group) {
                let list = if kind.group.is_empty() {
                    client.list_core_api_resources(version).await
                } else {
                    client.list_api_group_resources(&group).await
                };
                ledger.asked("get", "discovery", &list);
                resources.insert(group.clone(), list);
            }
            let list = match &resources[&group] {
                Ok(list) => list,
                // The version went away between the two questions.
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => {
                    let what = format!("the resources of {group}");
                    offer.unknown.insert(*id, Trouble::of(&what, error));
                    break;
                }
            };
            let watchable = list.resources.iter().find(|resource| {
                resource.kind == kind.kind
                    && !resource.name.contains('/')
                    && resource.verbs.iter().any(|verb| verb == "watch")
            });
            if let Some(resource) = watchable {
                let root =
                    if kind.group.is_empty() { format!("/api/{group}") } else { format!("/apis/{group}") };
                let status = format!("{}/status", resource.name);
                let served = Served {
                    path: format!("{root}/{}", resource.name),
                    root,
                    plural: resource.name.clone(),
                    is_namespaced: resource.namespaced,
                    has_status: list.resources.iter().any(|other| other.name == status),
                    is_stored,
                };
                offer.served.insert(*id, served);
                break;
            }
        }
    }
    Ok(offer)
}

impl Served {
    /// Returns the path of one object.
    pub fn object(&self, namespace: &str, name: &str) -> String {
        if self.is_namespaced {
            format!("{}/namespaces/{namespace}/{}/{name}", self.root, self.plural)
        } else {
            format!("{}/{name}", self.path)
        }
    }
}
