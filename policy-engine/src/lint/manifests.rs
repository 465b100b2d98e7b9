//! What a lint looks at: the Model of some manifests, where each object was written, and what is not part of the Model.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::Finding;
use super::catalogue::{INVALID_OBJECT, Lint, SET_ASIDE, UNKNOWN_FIELD};
use crate::decode::{self, Decoded, FieldError, Origin};
use crate::model::{Entity, Labels, Model, NamedPort, NamespacedName, ObjectKey, Policy, Rule};
use crate::oracle::{self, labels_with_profiles};
use crate::packet::Direction;
use crate::selector::Selector;

/// Manifests, read.
#[derive(Debug)]
pub struct Manifests {
    /// The valid objects.
    pub model: Model,
    pub(super) origins: BTreeMap<ObjectKey, Origin>,
    pub(super) services: Vec<Service>,
    /// Ranges from which Services get their addresses.
    pub(super) service_cidrs: Vec<IpNet>,
    pub(super) known: Vec<Known>,
    findings: Vec<Finding>,
}

/// What lints ask about a Service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) key: NamespacedName,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) selector: Labels,
    /// A NodePort or LoadBalancer whose clients' addresses may be hidden (policy model 16.3).
    pub(super) hides_clients: bool,
}

/// Something that selectors may match.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) key: ObjectKey,
    pub(super) labels: Labels,
    pub(super) namespace: Option<String>,
    pub(super) ports: Vec<NamedPort>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) role: Role,
}

/// What a [`Known`] can be in policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A pod with a network of its own, or a host endpoint: policies select it, rules know it.
    Endpoint,
    /// Rules know it.
    NetworkSet,
    /// Neither: a pod in the network of its node.
    HostNetworked,
}

/// One rule, and where it stands.
#[derive(Clone, Copy)]
pub(super) struct RuleAt<'m> {
    pub(super) policy: &'m Policy,
    pub(super) direction: Direction,
    pub(super) index: usize,
    pub(super) rule: &'m Rule,
}

impl<'m> RuleAt<'m> {
    /// Returns the two sides with their field names.
    pub(super) fn sides(self) -> [(&'static str, &'m Entity); 2] {
        [("source", &self.rule.source), ("destination", &self.rule.destination)]
    }

    /// Returns the path of the rule.
    pub(super) fn field(self) -> String {
        let list = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        format!("spec.{list}[{}]", self.index)
    }
}

impl Manifests {
    /// Reads texts, each with the name of its file.
    pub fn read<'t>(texts: impl IntoIterator<Item = (&'t str, &'t str)>) -> Self {
        let mut read = Self::of_model(Model::with_builtins());
        for (file, text) in texts {
            for document in decode::split_documents(text, file).into_iter().flatten() {
                read.raw(&document.0);
            }
            for decoded in decode::decode(text, file) {
                read.take(decoded);
            }
        }
        read.known = known(&read.model);
        read
    }

    /// Takes objects that were read elsewhere; nothing is known of Services and of places.
    pub fn of_model(model: Model) -> Self {
        Self {
            known: known(&model),
            model,
            origins: BTreeMap::new(),
            services: Vec::new(),
            service_cidrs: Vec::new(),
            findings: Vec::new(),
        }
    }

    fn take(&mut self, decoded: Decoded) {
        match decoded {
            Decoded::Valid { object, warnings, origin, .. } => {
                let key = object.key();
                for warning in warnings {
                    if let Some(lint) = of_warning(&warning) {
                        let FieldError { field, value, reason } = warning;
                        let value = if value.is_empty() { value } else { format!("{value:?}: ") };
                        let finding = Finding::new(lint, &key, field, format!("{value}{reason}"));
                        self.findings.push(finding.at(&origin));
                    }
                }
                self.origins.entry(key).or_insert(origin);
                self.model.insert(object);
            }
            Decoded::Invalid { key, errors, origin, .. } => {
                self.findings.extend(errors.into_iter().map(|error| {
                    let message = if error.value.is_empty() {
                        error.reason
                    } else {
                        format!("{:?}: {}", error.value, error.reason)
                    };
                    Finding::new(&INVALID_OBJECT, &key, error.field, message).at(&origin)
                }));
                self.origins.entry(key).or_insert(origin);
            }
            Decoded::Unreadable { errors, origin } => {
                self.findings.extend(errors.into_iter().map(|error| {
                    Finding::without_object(&INVALID_OBJECT, error.field, error.reason).at(&origin)
                }));
            }
            Decoded::Ignored { .. } => {}
        }
    }

    /// Services and their ranges are not part of the Model; what is wrong with them is for others to say.
    fn raw(&mut self, value: &Value) {
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let texts = |path: &str| {
            let list = value.pointer(path).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<String>>()
        };
        match (text("/apiVersion"), text("/kind")) {
            ("v1", "Service") => {
                let mut addresses = texts("/spec/clusterIPs");
                addresses.push(text("/spec/clusterIP").to_owned());
                let selector = value.pointer("/spec/selector").and_then(Value::as_object);
                let selector = selector.into_iter().flatten();
                let namespace = text("/metadata/namespace");
                let mut addresses: Vec<IpAddr> =
                    addresses.iter().filter_map(|address| address.parse().ok()).collect();
                addresses.sort();
                addresses.dedup();
                self.services.push(Service {
                    key: NamespacedName {
                        namespace: if namespace.is_empty() { "default" } else { namespace }.to_owned(),
                        name: text("/metadata/name").to_owned(),
                    },
                    addresses,
                    selector: selector
                        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                        .collect(),
                    hides_clients: matches!(text("/spec/type"), "NodePort" | "LoadBalancer")
                        && text("/spec/externalTrafficPolicy") != "Local",
                });
            }
            ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => {
                let cidrs = texts("/spec/cidrs");
                self.service_cidrs.extend(cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()));
            }
            _ => {}
        }
    }

    /// Returns what reading found.
    pub(super) fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    /// Returns every rule of every policy that is enforced or staged.
    pub(super) fn rules(&self) -> impl Iterator<Item = RuleAt<'_>> {
        self.model.policies.values().flat_map(|policy| {
            let lists = [
                (Direction::Ingress, policy.governs_ingress, &policy.ingress),
                (Direction::Egress, policy.governs_egress, &policy.egress),
            ];
            lists.into_iter().filter(|(_, governs, _)| *governs).flat_map(move |(direction, _, rules)| {
                let numbered = rules.iter().enumerate();
                numbered.map(move |(index, rule)| RuleAt { policy, direction, index, rule })
            })
        })
    }

    /// Returns the pods and host endpoints that a selector matches.
    pub(super) fn selected<'k>(&'k self, selector: &'k Selector) -> impl Iterator<Item = &'k Known> {
        self.known.iter().filter(move |known| known.role == Role::Endpoint && selector.matches(&known.labels))
    }

    /// Returns whether there is any pod, so that it makes sense to ask who is selected.
    pub(super) fn has_pods(&self) -> bool {
        !self.model.pods.is_empty()
    }
}

/// Which lint a warning of decoding belongs to; those about rules and staged policies have lints of their own.
fn of_warning(warning: &FieldError) -> Option<&'static Lint> {
    let has = |part: &str| warning.reason.contains(part);
    if has("unknown field") {
        Some(&UNKNOWN_FIELD)
    } else if has("not enforced") || has("staged policy") {
        None
    } else {
        Some(&SET_ASIDE)
    }
}

fn known(model: &Model) -> Vec<Known> {
    let pods = model.pods.values().filter(|pod| !pod.finished).map(|pod| Known {
        key: ObjectKey::Pod(pod.key.clone()),
        labels: oracle::effective_labels(model, pod),
        namespace: Some(pod.key.namespace.clone()),
        ports: pod.ports.clone(),
        addresses: pod.addresses.clone(),
        role: if pod.host_network { Role::HostNetworked } else { Role::Endpoint },
    });
    let hosts = model.host_endpoints.values().map(|host| Known {
        key: ObjectKey::HostEndpoint(host.name.clone()),
        labels: labels_with_profiles(model, &host.labels, &host.profiles),
        namespace: None,
        ports: host.ports.clone(),
        addresses: host.expected_ips.clone(),
        role: Role::Endpoint,
    });
    let sets = model.network_sets.values().map(|set| {
        let profiles: Vec<String> =
            set.key.namespace.iter().map(|namespace| format!("kns.{namespace}")).collect();
        Known {
            key: ObjectKey::NetworkSet(set.key.clone()),
            labels: labels_with_profiles(model, &set.labels, &profiles),
            namespace: set.key.namespace.clone(),
            ports: Vec::new(),
            addresses: Vec::new(),
            role: Role::NetworkSet,
        }
    });
    pods.chain(hosts).chain(sets).collect()
}
