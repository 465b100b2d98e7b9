//! IPPool and Calico Node (policy model 2.14, 7.8): addresses that other parts ask about; neither carries policy.
//!
//! `cidr` and `blockSize` of a pool never change once it exists. One manifest cannot show a change, so only the API server and the
//! follower of a cluster, which know the earlier form, can refuse it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::policy::open_spec;
use super::{rule, scalar};
use crate::model::{CalicoNode, IpPool, Object};

/// Reads an IPPool.
pub(super) fn pool(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = open_spec(value, problems);
    let cidr = cidr(&mut spec, problems);
    let is_v6 = cidr.is_some_and(|cidr| cidr.addr().is_ipv6());
    let mut others = BTreeMap::new();
    let modes = ["ipipMode", "vxlanMode"].map(|name| encapsulation(&mut spec, name, &mut others, problems));
    if modes[0] && is_v6 {
        problems.refuse_text(
            spec.at("ipipMode"),
            &others["ipipMode"],
            "must be Never in an IPv6 pool; IPIP carries IPv4 only",
        );
    }
    if modes[0] && modes[1] {
        let reason = "ipipMode and vxlanMode exclude each other; set one of them to Never";
        problems.refuse_text(spec.at("vxlanMode"), &others["vxlanMode"], reason);
    }
    block_size(&mut spec, cidr, &mut others, problems);
    for name in ["nodeSelector", "namespaceSelector"] {
        if let Some(selector) = rule::selector(&mut spec, name, problems) {
            others.insert(name.to_owned(), selector.canonical().to_owned());
        }
    }
    allowed_uses(&mut spec, &mut others, problems);
    word(&mut spec, "assignmentMode", &["Automatic", "Manual"], &mut others, problems);
    word(&mut spec, "encryption", &["WireGuard", "None"], &mut others, problems);
    annotated_encryption(metadata, &mut others, problems);
    if spec.raw("disableBGPExport").is_some() {
        let value = spec.boolean("disableBGPExport", problems);
        others.insert("disableBGPExport".to_owned(), value.to_string());
    }
    let pool = IpPool {
        name: metadata.name.clone(),
        // Without one the object is invalid, and nobody sees this network.
        cidr: cidr.unwrap_or_else(|| IpNet::from(IpAddr::from([0; 4]))),
        nat_outgoing: spec.boolean("natOutgoing", problems),
        disabled: spec.boolean("disabled", problems),
        others,
    };
    spec.finish(problems);
    Object::IpPool(pool.into())
}

/// The same word as an annotation (policy model 32.2), for servers whose definition of pools does not have the field and drops it.
const ENCRYPTION: &str = "margay/encryption";

/// Reads [`ENCRYPTION`]; the field counts where both are written.
fn annotated_encryption(metadata: &Metadata, others: &mut BTreeMap<String, String>, problems: &mut Problems) {
    let Some(word) = metadata.annotations.get(ENCRYPTION) else { return };
    if ["WireGuard", "None"].contains(&word.as_str()) {
        others.entry("encryption".to_owned()).or_insert_with(|| word.clone());
    } else {
        problems.refuse_text(format!("metadata.annotations.{ENCRYPTION}"), word, "must be WireGuard or None");
    }
}

fn cidr(spec: &mut Fields<'_>, problems: &mut Problems) -> Option<IpNet> {
    let text = spec.text("cidr", problems).unwrap_or_default();
    let reason = match scalar::cidr(text) {
        Ok(net) if net.trunc() == net => return Some(net),
        Ok(net) => format!("host bits are set; did you mean {}?", net.trunc()),
        Err(_) if text.is_empty() => {
            "missing; write the addresses of the pool, such as 10.244.0.0/16".to_owned()
        }
        Err(reason) => reason,
    };
    problems.refuse_text(spec.at("cidr"), text, reason);
    None
}

/// Reads an encapsulation mode; tells whether packets are encapsulated at all.
fn encapsulation(
    spec: &mut Fields<'_>,
    name: &'static str,
    others: &mut BTreeMap<String, String>,
    problems: &mut Problems,
) -> bool {
    word(spec, name, &["Never", "Always", "CrossSubnet"], others, problems);
    others.get(name).is_some_and(|mode| mode != "Never")
}

fn word(
    spec: &mut Fields<'_>,
    name: &'static str,
    words: &[&str],
    others: &mut BTreeMap<String, String>,
    problems: &mut Problems,
) {
    match spec.text(name, problems).filter(|text| !text.is_empty()) {
        Some(text) if words.contains(&text) => drop(others.insert(name.to_owned(), text.to_owned())),
        Some(text) => {
            let reason = format!("must be one of {}, in this spelling", words.join(", "));
            problems.refuse_text(spec.at(name), text, reason);
        }
        None => {}
    }
}

fn block_size(
    spec: &mut Fields<'_>,
    cidr: Option<IpNet>,
    others: &mut BTreeMap<String, String>,
    problems: &mut Problems,
) {
    let Some(cidr) = cidr else {
        spec.integer("blockSize", 20, 128, problems);
        return;
    };
    let (low, high, usual) = if cidr.addr().is_ipv6() { (116, 128, 122) } else { (20, 32, 26) };
    let written = spec.raw("blockSize").is_some();
    let size = spec.integer("blockSize", low, high, problems);
    if let Some(size) = size {
        others.insert("blockSize".to_owned(), size.to_string());
    }
    let size = if written { size } else { Some(usual) };
    if let Some(size) = size.filter(|size| i64::from(cidr.prefix_len()) > *size) {
        let reason = format!("the pool is smaller than one block of /{size}; write a larger blockSize");
        problems.refuse_text(spec.at("cidr"), &cidr.to_string(), reason);
    }
}

fn allowed_uses(spec: &mut Fields<'_>, others: &mut BTreeMap<String, String>, problems: &mut Problems) {
    let mut uses: Vec<&str> = Vec::new();
    for (path, text) in spec.texts("allowedUses", problems) {
        if !["Workload", "Tunnel", "LoadBalancer"].contains(&text) {
            problems.refuse_text(path, text, "must be Workload, Tunnel or LoadBalancer, in this spelling");
        } else if uses.contains(&text) {
            problems.refuse_text(path, text, "written twice; remove one");
        } else {
            uses.push(text);
        }
    }
    if !uses.is_empty() {
        uses.sort_unstable();
        others.insert("allowedUses".to_owned(), uses.join(","));
    }
}

/// Reads a Calico Node.
pub(super) fn calico_node(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = open_spec(value, problems);
    for name in ["orchRefs", "vxlanTunnelMACAddr", "vxlanTunnelMACAddrV6"] {
        spec.raw(name);
    }
    let mut addresses = Vec::new();
    let mut bgp = spec.object("bgp", problems);
    for name in ["ipv4Address", "ipv6Address", "ipv4IPIPTunnelAddr"] {
        addresses.extend(node_address(&mut bgp, name, problems));
    }
    bgp.raw("asNumber");
    bgp.raw("routeReflectorClusterID");
    bgp.finish(problems);
    for name in ["ipv4VXLANTunnelAddr", "ipv6VXLANTunnelAddr"] {
        addresses.extend(node_address(&mut spec, name, problems));
    }
    let mut wireguard = spec.object("wireguard", problems);
    for name in ["interfaceIPv4Address", "interfaceIPv6Address"] {
        addresses.extend(node_address(&mut wireguard, name, problems));
    }
    wireguard.finish(problems);
    for (path, item) in spec.list("addresses", problems) {
        let mut fields = Fields::open(path, Some(item), problems);
        let is_internal = fields.text("type", problems) == Some("InternalIP");
        addresses.extend(node_address(&mut fields, "address", problems).filter(|_| is_internal));
        fields.finish(problems);
    }
    let mut interfaces = Vec::new();
    for (path, item) in spec.list("interfaces", problems) {
        let mut fields = Fields::open(path, Some(item), problems);
        let name = fields.text("name", problems).unwrap_or_default().to_owned();
        if name.is_empty() {
            problems.refuse_text(fields.at("name"), "", "missing; write the name of the interface");
        }
        let listed = fields.texts("addresses", problems);
        let found =
            listed.into_iter().filter_map(|(path, text)| with_length(&path, text, problems)).collect();
        fields.finish(problems);
        interfaces.push((name, found));
    }
    spec.finish(problems);
    let mut node = CalicoNode {
        name: metadata.name.clone(),
        labels: metadata.labels.clone(),
        addresses: Vec::new(),
        interfaces,
    };
    for address in addresses {
        if !node.addresses.contains(&address) {
            node.addresses.push(address);
        }
    }
    Object::CalicoNode(node.into())
}

fn node_address(fields: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<IpAddr> {
    let text = fields.text(name, problems).filter(|text| !text.is_empty())?;
    with_length(&fields.at(name), text, problems)
}

/// Reads an address, or the address of `10.0.0.1/24`.
fn with_length(path: &str, text: &str, problems: &mut Problems) -> Option<IpAddr> {
    match text.parse::<IpNet>() {
        Ok(net) => Some(net.addr()),
        Err(_) => scalar::address(path, text, problems),
    }
}
