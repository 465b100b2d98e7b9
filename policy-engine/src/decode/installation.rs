//! Installation of Calico's operator: the switch for encryption, and the networks of pods. Everything else of it is for the operator.

use serde_json::Value;

use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::policy::open_spec;
use super::scalar;
use crate::model::{Installation, Object};

/// Reads an Installation. The switch is read where people write it: under `spec`, or under `spec.calicoNetwork`.
pub(super) fn installation(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    if metadata.name != "default" {
        problems.warn("metadata.name", &metadata.name, "only the object default has an effect; rename it");
    }
    let mut spec = open_spec(value, problems);
    let mut network = spec.object("calicoNetwork", problems);
    let switches = [switch(&mut spec, problems), switch(&mut network, problems)];
    if let [Some(one), Some(other)] = switches
        && one != other
    {
        problems.refuse_text(
            network.at("wireguard"),
            "",
            "says otherwise than spec.wireguard; write one of them",
        );
    }
    let mut pools = Vec::new();
    for (path, item) in network.list("ipPools", problems) {
        let mut pool = Fields::open(path, Some(item), problems);
        let text = pool.text("cidr", problems).unwrap_or_default();
        match scalar::cidr(text) {
            Ok(net) => pools.push(net.trunc()),
            Err(reason) => problems.refuse_text(pool.at("cidr"), text, reason),
        }
    }
    let [under_spec, under_network] = switches;
    let wireguard = under_spec.or(under_network);
    Object::Installation(Installation { name: metadata.name.clone(), wireguard, pools }.into())
}

fn switch(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<bool> {
    match fields.text("wireguard", problems)? {
        "Enabled" => Some(true),
        "Disabled" => Some(false),
        other => {
            problems.refuse_text(fields.at("wireguard"), other, "must be Enabled or Disabled");
            None
        }
    }
}
