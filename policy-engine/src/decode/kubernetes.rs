//! Namespace, ServiceAccount, Pod, Node, EndpointSlice: the few fields of them that policy reads (policy model 7, 10.6).
//!
//! Fields that are not read are passed over in silence; Kubernetes adds new ones in every release.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::scalar::{self, TCP, kubernetes_protocol};
use super::scope::{NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT};
use crate::model::{EndpointSlice, Labels, NamedPort, Namespace, Node, Object, Pod, ServiceAccount};

/// Reads a Namespace.
pub(super) fn namespace(metadata: &Metadata) -> Object {
    Object::Namespace(Namespace { name: metadata.name.clone(), labels: metadata.labels.clone() }.into())
}

/// Reads a ServiceAccount.
pub(super) fn service_account(metadata: &Metadata) -> Object {
    Object::ServiceAccount(ServiceAccount { key: metadata.key(), labels: metadata.labels.clone() }.into())
}

/// Reads a Pod (policy model 7.3, PM-D24).
pub(super) fn pod(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = Fields::open("spec".to_owned(), value.get("spec"), problems);
    let mut status = Fields::open("status".to_owned(), value.get("status"), problems);
    let account =
        spec.text("serviceAccountName", problems).filter(|name| !name.is_empty()).map(str::to_owned);
    let finished = is_finished(&mut status, metadata, problems);
    let mut ports = Vec::new();
    for list in ["containers", "initContainers"] {
        for (path, container) in spec.list(list, problems) {
            container_ports(path, container, &mut ports, problems);
        }
    }
    let addresses = pod_addresses(&mut status, problems);
    let annotated_addresses = match addresses.is_empty() && !finished {
        true => annotated_addresses(&metadata.annotations, problems),
        false => Vec::new(),
    };
    check_lists(&metadata.annotations, problems);
    let started = status.text("startTime", problems).unwrap_or(&metadata.created).to_owned();
    let pod = Pod {
        key: metadata.key(),
        uid: metadata.uid.clone(),
        labels: pod_labels(metadata, account.as_deref()).into(),
        service_account: account,
        node: spec.text("nodeName", problems).filter(|name| !name.is_empty()).map(str::to_owned),
        host_network: spec.boolean("hostNetwork", problems),
        finished,
        addresses: if finished { Vec::new() } else { addresses },
        annotated_addresses,
        ports,
        started,
        annotations: with_prefixes(
            &metadata.annotations,
            &[
                "cni.projectcalico.org/",
                "qos.projectcalico.org/",
                "projectcalico.org/",
                "kubernetes.io/ingress-bandwidth",
                "kubernetes.io/egress-bandwidth",
            ],
        ),
    };
    Object::Pod(pod.into())
}

/// Returns the pod's own labels without what only the control plane may say, and what the control plane says.
fn pod_labels(metadata: &Metadata, account: Option<&str>) -> Labels {
    let reserved = |key: &str| {
        key.starts_with("pcns.")
            || key.starts_with("pcsa.")
            || [NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT].contains(&key)
    };
    let mut labels = metadata.labels.clone();
    labels.retain(|key, _| !reserved(key));
    labels.insert(NAMESPACE.to_owned(), metadata.namespace.clone());
    labels.insert(ORCHESTRATOR.to_owned(), "k8s".to_owned());
    if let Some(account) = account.filter(|name| name.len() < 63) {
        labels.insert(SERVICE_ACCOUNT.to_owned(), account.to_owned());
    }
    labels
}

fn is_finished(status: &mut Fields<'_>, metadata: &Metadata, problems: &mut Problems) -> bool {
    let phase = status.text("phase", problems).unwrap_or_default();
    let released = metadata.annotations.get("cni.projectcalico.org/podIP").is_some_and(String::is_empty);
    matches!(phase, "Succeeded" | "Failed" | "Completed") || (metadata.is_deleting && released)
}

fn pod_addresses(status: &mut Fields<'_>, problems: &mut Problems) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (path, item) in status.list("podIPs", problems) {
        let mut item = Fields::open(path, Some(item), problems);
        if let Some(text) = item.text("ip", problems).filter(|text| !text.is_empty()) {
            addresses.extend(scalar::address(&item.at("ip"), text, problems));
        }
    }
    let single = status.text("podIP", problems).filter(|text| !text.is_empty());
    if let (true, Some(text)) = (addresses.is_empty(), single) {
        addresses.extend(scalar::address(&status.at("podIP"), text, problems));
    }
    addresses
}

/// Reads what annotations claim (policy model 7.3): the first of the three that says anything.
fn annotated_addresses(annotations: &Labels, problems: &mut Problems) -> Vec<IpAddr> {
    const SOURCES: [&str; 3] =
        ["cni.projectcalico.org/podIPs", "cni.projectcalico.org/podIP", "vpc.amazonaws.com/pod-ips"];
    let said = SOURCES.iter().find_map(|key| {
        annotations
            .get(*key)
            .filter(|text| !text.is_empty())
            .map(|text| (format!("metadata.annotations.{key}"), text))
    });
    let mut addresses = Vec::new();
    for (path, text) in
        said.iter().flat_map(|(path, text)| text.split(',').map(move |text| (path, text.trim())))
    {
        let found = match text.parse::<IpNet>() {
            Ok(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
            _ => scalar::address(path, text, problems),
        };
        addresses.extend(found);
    }
    addresses
}

/// Policy model 7.3: lists that other parts of the dataplane read from annotations are judged here, where the pod is.
fn check_lists(annotations: &Labels, problems: &mut Problems) {
    let is_network = |text: &str| scalar::cidr_or_address(text).is_ok();
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    check_list(annotations, "cni.projectcalico.org/allowedSourcePrefixes", "CIDRs", &is_network, problems);
    check_list(annotations, "cni.projectcalico.org/floatingIPs", "IP addresses", &is_address, problems);
}

fn check_list(
    annotations: &Labels,
    key: &str,
    what: &str,
    is_good: &dyn Fn(&str) -> bool,
    problems: &mut Problems,
) {
    let Some(text) = annotations.get(key) else { return };
    let path = format!("metadata.annotations.{key}");
    let reason =
        format!("not a JSON list of {what}, such as [\"10.0.0.1\"]; mend it or remove the annotation");
    match serde_json::from_str::<Vec<String>>(text) {
        Err(_) => problems.refuse_text(path, text, reason),
        Ok(items) => {
            for item in items.iter().filter(|item| !is_good(item)) {
                problems.refuse_text(&path, item, &reason);
            }
        }
    }
}

fn container_ports(path: String, container: &Value, ports: &mut Vec<NamedPort>, problems: &mut Problems) {
    let mut container = Fields::open(path, Some(container), problems);
    for (path, item) in container.list("ports", problems) {
        let mut item = Fields::open(path, Some(item), problems);
        let name = item.text("name", problems).unwrap_or_default().to_owned();
        let mut number =
            |name| item.integer(name, 0, 65_535, problems).and_then(|port| u16::try_from(port).ok());
        let (port, host_port) =
            (number("containerPort").unwrap_or(0), number("hostPort").filter(|&port| port > 0));
        let host_ip = item.text("hostIP", problems).filter(|text| !text.is_empty());
        let host_ip = host_ip.and_then(|text| scalar::address(&item.at("hostIP"), text, problems));
        let protocol = kubernetes_protocol(
            item.text("protocol", problems).filter(|text| !text.is_empty()).unwrap_or("TCP"),
        );
        if let (Some(protocol), true) = (protocol, port != 0 && (!name.is_empty() || host_port.is_some())) {
            ports.push(NamedPort { name, protocol, port, host_port, host_ip });
        }
    }
}

fn with_prefixes(annotations: &Labels, prefixes: &[&str]) -> BTreeMap<String, String> {
    let kept = annotations.iter().filter(|(key, _)| prefixes.iter().any(|prefix| key.starts_with(prefix)));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Reads a Node.
pub(super) fn node(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = Fields::open("spec".to_owned(), value.get("spec"), problems);
    let mut status = Fields::open("status".to_owned(), value.get("status"), problems);
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    for (path, item) in status.list("addresses", problems) {
        let mut item = Fields::open(path, Some(item), problems);
        let kind = item.text("type", problems).unwrap_or_default();
        let list = match kind {
            "InternalIP" => &mut internal,
            "ExternalIP" => &mut external,
            _ => continue,
        };
        let text = item.text("address", problems).unwrap_or_default();
        list.extend(scalar::address(&item.at("address"), text, problems));
    }
    let internal_addresses = internal.len();
    internal.extend(external);
    let mut listed = spec.texts("podCIDRs", problems);
    let single = spec.text("podCIDR", problems).filter(|text| !text.is_empty());
    if let (true, Some(text)) = (listed.is_empty(), single) {
        listed.push((spec.at("podCIDR"), text));
    }
    let mut pod_cidrs = Vec::new();
    for (path, text) in listed {
        match scalar::cidr(text) {
            Ok(net) => pod_cidrs.push(net.trunc()),
            Err(reason) => problems.refuse_text(path, text, reason),
        }
    }
    let annotations = with_prefixes(&metadata.annotations, &["projectcalico.org/", "margay/wireguard"]);
    let (name, labels) = (metadata.name.clone(), metadata.labels.clone());
    Object::Node(
        Node { name, labels, addresses: internal, internal_addresses, pod_cidrs, annotations }.into(),
    )
}

/// Reads an EndpointSlice; conditions of endpoints are not asked for (policy model 10.6).
pub(super) fn endpoint_slice(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut root = Fields::open(String::new(), Some(value), problems);
    let is_address = root.text("addressType", problems) != Some("FQDN");
    let mut addresses = Vec::new();
    for (path, item) in root.list("endpoints", problems) {
        let mut item = Fields::open(path, Some(item), problems);
        let texts = item.texts("addresses", problems);
        addresses
            .extend(texts.iter().filter(|_| is_address).filter_map(|(_, text)| text.parse::<IpAddr>().ok()));
    }
    let mut ports = Vec::new();
    for (path, item) in root.list("ports", problems) {
        let mut item = Fields::open(path, Some(item), problems);
        let port = item.integer("port", 0, 65_535, problems).and_then(|port| u16::try_from(port).ok());
        let protocol = item.text("protocol", problems).filter(|text| !text.is_empty());
        let protocol = protocol.map_or(Some(TCP), kubernetes_protocol);
        ports.extend(protocol.zip(port.filter(|&port| port > 0)));
    }
    let service = metadata.labels.get("kubernetes.io/service-name").cloned().unwrap_or_default();
    Object::EndpointSlice(EndpointSlice { key: metadata.key(), service, addresses, ports }.into())
}
