//! Reads the user's manifests as far as the lab is concerned, and decides which nodes there are and which pod lives where.
//!
//! Whether a Pod is valid for policy is the agent's business; here it is enough that it has a name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use margay_policy_engine::decode::split_documents;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::LabError;

/// A Pod of the manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPod {
    /// `metadata.uid`, when the manifest has one.
    pub uid: Option<String>,
    /// `spec.nodeName`, when the manifest has one.
    pub node: Option<String>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.podIPs`: given to the pod where they lie in its node's prefixes.
    pub addresses: Vec<IpAddr>,
}

/// A Node, from the manifests or made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedNode {
    /// Its addresses on the wire.
    pub addresses: Vec<IpAddr>,
    /// Its pods' prefixes.
    pub pod_cidrs: Vec<IpNet>,
}

/// What the manifests ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Nodes by name.
    pub nodes: BTreeMap<String, WantedNode>,
    /// Pods by `namespace/name`.
    pub pods: BTreeMap<String, WantedPod>,
}

/// Most nodes of one lab: each has a /24 of the wire's and of the pods' ranges.
pub const MOST_NODES: usize = 250;

/// Reads every manifest in `directory`. Documents that cannot be read are the agent's to report.
pub fn read(directory: &Path) -> Result<Wanted, LabError> {
    let mut files = Vec::new();
    collect(directory, &mut files).map_err(|e| LabError::file("list", directory, e))?;
    files.sort();
    let mut wanted = Wanted::default();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (value, _) in split_documents(&text, &file.to_string_lossy()).into_iter().flatten() {
            wanted.take(&value)?;
        }
    }
    Ok(wanted)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            files.push(path);
        }
    }
    Ok(())
}

impl Wanted {
    fn take(&mut self, value: &Value) -> Result<(), LabError> {
        if value["apiVersion"] != "v1" {
            return Ok(());
        }
        let Some(name) = value["metadata"]["name"].as_str() else { return Ok(()) };
        match value["kind"].as_str() {
            Some("Pod") => {
                if matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                    return Ok(());
                }
                let text = |v: &Value| v.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
                let namespace = value["metadata"]["namespace"].as_str().unwrap_or("default");
                let pod = WantedPod {
                    uid: text(&value["metadata"]["uid"]),
                    node: text(&value["spec"]["nodeName"]),
                    host_network: value["spec"]["hostNetwork"] == true,
                    addresses: value["status"]["podIPs"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
                        .collect(),
                };
                self.pods.insert(format!("{namespace}/{name}"), pod);
            }
            Some("Node") => {
                let addresses: Vec<IpAddr> = value["status"]["addresses"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|a| a["type"] == "InternalIP")
                    .filter_map(|a| a["address"].as_str()?.parse().ok())
                    .collect();
                let listed = value["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default();
                let one = value["spec"].get("podCIDR").cloned();
                let cidrs = if listed.is_empty() { Vec::from_iter(one) } else { listed };
                let pod_cidrs: Vec<IpNet> = cidrs.iter().filter_map(|c| c.as_str()?.parse().ok()).collect();
                if addresses.is_empty() || pod_cidrs.is_empty() {
                    return Err(LabError::Input(format!(
                        "Node {name} has no {}; give it one, or remove the Node manifest and let the lab make its nodes up",
                        if addresses.is_empty() {
                            "status.addresses of type InternalIP"
                        } else {
                            "spec.podCIDRs"
                        }
                    )));
                }
                self.nodes.insert(name.to_owned(), WantedNode { addresses, pod_cidrs });
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the lab's nodes: those of the manifests and as many made-up ones as are missing to `count`.
    pub fn all_nodes(&self, count: Option<usize>) -> Result<BTreeMap<String, (WantedNode, bool)>, LabError> {
        let count = count.unwrap_or(self.nodes.len().max(1));
        if count < self.nodes.len().max(1) || count > MOST_NODES {
            return Err(LabError::Input(format!(
                "{count} nodes cannot be: the manifests have {}, and {MOST_NODES} is the most",
                self.nodes.len()
            )));
        }
        let mut nodes: BTreeMap<_, _> =
            self.nodes.iter().map(|(n, node)| (n.clone(), (node.clone(), false))).collect();
        let names =
            (1u8..=250).map(|i| (format!("node{i}"), i)).filter(|(name, _)| !self.nodes.contains_key(name));
        for (name, i) in names.take(count - self.nodes.len()) {
            nodes.insert(name, (made_up(i), true));
        }
        let mut taken = BTreeSet::new();
        for (name, (node, _)) in &nodes {
            if let Some(address) = node.addresses.iter().find(|a| !taken.insert(**a)) {
                return Err(LabError::Input(format!(
                    "Node {name} has the address {address} of another node"
                )));
            }
        }
        Ok(nodes)
    }

    /// Returns a node for every pod: its own, else one after the other.
    pub fn placement(
        &self,
        nodes: &[String],
        already: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, LabError> {
        let mut next = nodes.iter().cycle();
        let mut placement = BTreeMap::new();
        for (name, pod) in &self.pods {
            let node = match (&pod.node, already.get(name)) {
                (Some(node), _) if !nodes.contains(node) => {
                    return Err(LabError::Input(format!(
                        "pod {name} is to run on {node}, and there are {}; raise --nodes or change spec.nodeName",
                        nodes.join(", ")
                    )));
                }
                (Some(node), _) => node.clone(),
                (None, Some(node)) => node.clone(),
                (None, None) => next.next().cloned().unwrap_or_default(),
            };
            placement.insert(name.clone(), node);
        }
        Ok(placement)
    }
}

fn made_up(i: u8) -> WantedNode {
    let (v4, v6) = (Ipv4Addr::new(172, 30, 0, i), Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, u16::from(i)));
    let pods_v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, i, 0), 24);
    let pods_v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd44, 0, 0, u16::from(i), 0, 0, 0, 0), 64);
    WantedNode { addresses: vec![v4.into(), v6.into()], pod_cidrs: vec![pods_v4.into(), pods_v6.into()] }
}

/// Returns the Node manifest of a made-up node.
pub fn node_manifest(name: &str, node: &WantedNode) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|a| json!({ "type": "InternalIP", "address": a.to_string() })).collect();
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(IpNet::to_string).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs },
        "status": { "addresses": addresses },
    })
}

/// Returns the name of a namespace of `lab` for `parts`; readable where that fits and cannot be mistaken, else with a digest.
pub fn netns_name(lab: &str, parts: &[&str]) -> String {
    let clean = |part: &&str| -> String {
        part.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' }).collect()
    };
    let name = format!("mgy-{lab}-{}", parts.iter().map(clean).collect::<Vec<_>>().join("-"));
    // "a-b" + "c" and "a" + "b-c" read alike.
    if name.len() <= 100 && (parts.len() == 1 || !parts[0].contains('-')) {
        return name;
    }
    let digest = Sha1::digest(parts.join("/"));
    let mark: String = digest[..4].iter().map(|octet| format!("{octet:02x}")).collect();
    format!("{}-{mark}", name.chars().take(90).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Result<Wanted, LabError> {
        let mut wanted = Wanted::default();
        for document in split_documents(text, "test.yaml") {
            wanted.take(&document.expect("readable").0)?;
        }
        Ok(wanted)
    }

    const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec: {nodeName: node2}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
status: {phase: Succeeded}
";

    #[test]
    fn pods_without_a_node_are_spread_and_stay() {
        let wanted = wanted(PODS).expect("plan");
        assert_eq!(wanted.pods.keys().collect::<Vec<_>>(), ["default/b", "shop/a"]);
        let nodes = wanted.all_nodes(Some(2)).expect("nodes");
        let names: Vec<String> = nodes.keys().cloned().collect();
        assert_eq!(names, ["node1", "node2"]);
        let placed = wanted.placement(&names, &BTreeMap::new()).expect("placement");
        assert_eq!((placed["default/b"].as_str(), placed["shop/a"].as_str()), ("node2", "node1"));
        let already = BTreeMap::from([("shop/a".to_owned(), "node2".to_owned())]);
        assert_eq!(wanted.placement(&names, &already).expect("placement")["shop/a"], "node2");
        assert!(wanted.placement(&names[..1], &BTreeMap::new()).is_err(), "node2 does not exist");
    }

    #[test]
    fn nodes_of_the_manifests_come_first() {
        let text = "
apiVersion: v1
kind: Node
metadata: {name: big}
spec: {podCIDRs: [10.9.0.0/24]}
status: {addresses: [{type: InternalIP, address: 172.30.0.9}]}
";
        let wanted = wanted(text).expect("plan");
        assert_eq!(wanted.all_nodes(None).expect("nodes").len(), 1);
        let two = wanted.all_nodes(Some(2)).expect("nodes");
        assert_eq!(
            two.iter().map(|(n, (_, made_up))| (n.as_str(), *made_up)).collect::<Vec<_>>(),
            [("big", false), ("node1", true)]
        );
        assert!(wanted.all_nodes(Some(0)).is_err());
    }

    #[test]
    fn names_cannot_be_mistaken() {
        assert_eq!(netns_name("lab", &["shop", "web"]), "mgy-lab-shop-web");
        assert_ne!(netns_name("lab", &["a-b", "c"]), netns_name("lab", &["a", "b-c"]));
        assert!(netns_name("lab", &["a", &"x".repeat(250)]).len() < 110);
        assert!(!netns_name("lab", &["../etc"]).contains('/'));
    }
}
