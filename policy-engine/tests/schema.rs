//! The definitions for an API server beside the decoder that reads what the server admits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use margay_policy_engine::decode::{Decoded, decode_value, fields_asked, split_documents};
use margay_policy_engine::schema::{GROUP, Resource, Rules, VERSION, resources};
use regex::Regex;
use serde_json::{Value, json};

/// An object with every field of `schema`.
fn full(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|words| words.iter().find(|word| **word != "")) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => match schema["properties"].as_object() {
            Some(properties) => properties.iter().map(|(name, inner)| (name.clone(), full(inner))).collect(),
            None => json!({ "a": "b" }),
        },
        Some("array") => json!([full(&schema["items"])]),
        Some("boolean") => json!(true),
        Some("integer") => schema["minimum"].clone(),
        Some("number") => json!(1),
        _ => json!("x"),
    }
}

/// The fields of every mapping in `schema`, by path.
fn described(schema: &Value, path: &str, into: &mut BTreeMap<String, BTreeSet<String>>) {
    if let Some(properties) = schema["properties"].as_object() {
        into.insert(path.to_owned(), properties.keys().cloned().collect());
        for (name, inner) in properties {
            described(inner, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, into);
        }
    }
    if schema["items"].is_object() {
        described(&schema["items"], &format!("{path}[]"), into);
    }
}

fn forget(value: &mut Value, name: &str) {
    match value {
        Value::Object(map) => {
            map.remove(name);
            map.values_mut().for_each(|inner| forget(inner, name));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| forget(inner, name)),
        _ => {}
    }
}

fn whole(resource: &Resource, spec: Value) -> Value {
    json!({ "apiVersion": format!("{GROUP}/{VERSION}"), "kind": resource.kind, "metadata": { "name": "x" }, "spec": spec })
}

/// PM-2: neither knows a field that the other lacks, at any depth of any kind.
#[test]
fn the_definitions_and_the_decoder_know_the_same_fields() {
    for resource in resources() {
        let schema = resource.schema(Rules::Without);
        let mut described_here = BTreeMap::new();
        described(&schema, "", &mut described_here);
        described_here.retain(|path, _| path.is_empty() || path.starts_with("spec"));
        let everything = full(&schema["properties"]["spec"]);
        // A peer is a network or selectors, and is not asked for the other.
        let mut without_networks = everything.clone();
        forget(&mut without_networks, "ipBlock");
        let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for spec in [everything, without_networks] {
            for (path, names) in fields_asked(&whole(&resource, spec)) {
                asked.entry(path).or_default().extend(names.into_iter().map(str::to_owned));
            }
        }
        assert!(described_here.len() > 1, "{}", resource.kind);
        assert_eq!(asked, described_here, "{}", resource.kind);
    }
}

/// What an API server says to `value`: the first thing that `schema` refuses, and fields that it would remove.
fn admit(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{path}: {value}: {what}"));
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return Ok(());
    }
    if schema["x-kubernetes-int-or-string"] == true
        && !(value.is_string() || value.is_i64() || value.is_u64())
    {
        return wrong("neither a number nor a text");
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !fits {
        return wrong("of another type");
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return wrong("none of the words");
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
        && !Regex::new(pattern).unwrap().is_match(text)
    {
        return wrong("does not match the pattern");
    }
    let number = value.as_f64().unwrap_or_default();
    if schema["minimum"].as_f64().is_some_and(|low| number < low)
        || schema["maximum"].as_f64().is_some_and(|high| number > high)
    {
        return wrong("out of range");
    }
    let most = |name: &str| schema[name].as_u64().unwrap_or(u64::MAX);
    if value.as_str().is_some_and(|text| text.chars().count() as u64 > most("maxLength")) {
        return wrong("too long");
    }
    for item in value.as_array().into_iter().flatten() {
        admit(&schema["items"], item, &format!("{path}[]"))?;
    }
    if value.as_array().is_some_and(|items| items.len() as u64 > most("maxItems")) {
        return wrong("too many");
    }
    let Some(map) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !map.contains_key(name.as_str().unwrap()) {
            return wrong(&format!("no {name}"));
        }
    }
    for (name, inner) in map {
        let schema = match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) if path == "metadata" => continue,
            (Value::Null, Value::Null) => return wrong(&format!("{name} would be removed")),
            (Value::Null, additional) => additional,
            (property, _) => property,
        };
        admit(schema, inner, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") })?;
    }
    Ok(())
}

fn schema_of(value: &Value) -> Option<Value> {
    let ours = value["apiVersion"] == format!("{GROUP}/{VERSION}");
    let found = resources().into_iter().find(|resource| ours && value["kind"] == resource.kind)?;
    Some(found.schema(Rules::Without))
}

fn manifests(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            manifests(&path, into);
        } else if path.extension().is_some_and(|end| end == "yaml") {
            into.push(path);
        }
    }
}

#[test]
fn every_valid_example_is_admitted_whole() {
    let mut files = Vec::new();
    manifests(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"), &mut files);
    let mut seen = 0;
    for file in files {
        for (value, origin) in split_documents(&fs::read_to_string(&file).unwrap(), "").into_iter().flatten()
        {
            let Some(schema) = schema_of(&value) else { continue };
            if matches!(decode_value(value.clone(), origin)[0], Decoded::Valid { .. }) {
                assert_eq!(admit(&schema, &value, ""), Ok(()), "{}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "only {seen} objects of {GROUP} among the examples");
}

fn policy(rule: Value) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": { "name": "p" },
        "spec": { "ingress": [rule] },
    })
}

fn both(value: &Value) -> (bool, bool) {
    let decoder = matches!(decode_value(value.clone(), Default::default())[0], Decoded::Valid { .. });
    (admit(&schema_of(value).unwrap(), value, "").is_ok(), decoder)
}

/// PM-2.8 to PM-2.10 and PM-4.4: what the decoder accepts at the edges of its ranges, a server admits too.
#[test]
fn no_definition_is_narrower_than_the_decoder() {
    let accepted = [
        json!({ "action": "Allow", "protocol": "UDPLite" }),
        json!({ "action": "Deny", "protocol": 255, "notProtocol": "1" }),
        json!({ "action": "Allow", "protocol": "TCP", "destination": { "ports": [1, 65535, "1:65535", "8080", "http_alt.x-1"] } }),
        json!({ "action": "Allow", "protocol": "ICMP", "icmp": { "type": 254, "code": 255 } }),
        json!({ "action": "Pass", "ipVersion": 6, "protocol": "ICMPv6", "notICMP": { "type": 0 } }),
        json!({ "action": "Log", "source": { "notNets": ["fd00:1234:5678:9abc:def0:1234:5678:9abc/128"], "namespaceSelector": " global() " } }),
        json!({ "action": "Allow", "http": { "methods": ["GET", "*"], "paths": [{ "prefix": "/" }], "headers": [{ "header": "x", "operator": "Exists" }] } }),
        json!({ "action": "Allow", "source": { "selector": format!("a == '{}'", "x".repeat(1017)) } }),
        json!({ "action": "Allow", "metadata": { "annotations": { "a/b": "c" } } }),
    ];
    for rule in accepted {
        assert_eq!(both(&policy(rule.clone())), (true, true), "{rule}");
    }
    let of = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": { "name": name }, "spec": spec });
    for object in [
        of("Tier", "t", json!({ "order": -0.5, "defaultAction": "Allow" })),
        of("Tier", "t", json!({ "defaultAction": "" })),
        of("StagedGlobalNetworkPolicy", "s", json!({ "stagedAction": "", "types": [] })),
        of(
            "HostEndpoint",
            "h",
            json!({ "node": "n", "interfaceName": "*", "ports": [{ "name": "a", "protocol": 6, "port": 65535 }] }),
        ),
        of(
            "FelixConfiguration",
            "default",
            json!({
                "defaultEndpointToHostAction": "ACCEPT", "failsafeInboundHostPorts": [{ "port": 22 }], "bpfConntrackTimeouts": { "udpTimeout": "auto" },
                "kubeNodePortRanges": ["30000:32767", 8080], "logActionRateLimit": "100/second", "externalNodesList": ["10.0.0.1", "fd00::/8"],
                "dnsTrustedServers": ["k8s-service:kube-system/kube-dns"], "policyChangeFlowAction": "Keep", "bpfEnabled": true, "wireguardMTU": 0,
            }),
        ),
        of(
            "IPPool",
            "p",
            json!({ "cidr": "fd00::/48", "blockSize": 122, "vxlanMode": "", "encryption": "WireGuard", "allowedUses": ["Tunnel"] }),
        ),
    ] {
        assert_eq!(both(&object), (true, true), "{object}");
    }
}

/// PM-4.4: a slip of the pen is refused where it is written, not only where it is read.
#[test]
fn a_server_refuses_what_it_can_see() {
    for rule in [
        json!({ "action": "allow" }),
        json!({}),
        json!({ "action": "Allow", "ipVersion": 5 }),
        json!({ "action": "Allow", "protocol": "tcp" }),
        json!({ "action": "Allow", "protocol": "ICMP", "icmp": { "type": 255 } }),
        json!({ "action": "Allow", "sorce": {} }),
        json!({ "action": "Allow", "source": { "nets": vec!["10.0.0.0/8"; 257] } }),
        json!({ "action": "Allow", "protocol": "TCP", "source": { "ports": vec![1; 51] } }),
    ] {
        assert!(!both(&policy(rule.clone())).0, "{rule}");
    }
}

/// The first form has nothing newer than Kubernetes 1.20; the second differs from it in the rules alone.
#[test]
fn rules_are_all_that_the_two_forms_differ_in() {
    fn strip(value: &mut Value) -> usize {
        match value {
            Value::Object(map) => {
                let own =
                    map.remove("x-kubernetes-validations").and_then(|rules| rules.as_array().map(Vec::len));
                own.unwrap_or(0) + map.values_mut().map(strip).sum::<usize>()
            }
            Value::Array(items) => items.iter_mut().map(strip).sum(),
            _ => 0,
        }
    }
    let mut rules = 0;
    for resource in resources() {
        let (mut plain, mut ruled) = (resource.definition(Rules::Without), resource.definition(Rules::Cel));
        assert_eq!(strip(&mut plain), 0, "{}", resource.kind);
        rules += strip(&mut ruled);
        assert_eq!(plain, ruled, "{}", resource.kind);
    }
    assert!(rules >= 8, "{rules}");
}

/// PM-1.1: names and scopes are Calico's, so that `kubectl get gnp` goes on working.
#[test]
fn names_and_scopes_are_those_of_calico() {
    let listed = resources();
    let named = |kind: &str| listed.iter().find(|resource| resource.kind == kind).unwrap();
    for (kind, plural, is_namespaced, short) in [
        ("NetworkPolicy", "networkpolicies", true, "cnp caliconetworkpolicy"),
        ("GlobalNetworkPolicy", "globalnetworkpolicies", false, "gnp cgnp"),
        ("StagedNetworkPolicy", "stagednetworkpolicies", true, "snp scnp"),
        ("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", false, "sgnp"),
        ("StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", true, "sknp"),
        ("Tier", "tiers", false, ""),
        ("NetworkSet", "networksets", true, "netset"),
        ("GlobalNetworkSet", "globalnetworksets", false, "gns"),
        ("HostEndpoint", "hostendpoints", false, "hep"),
        ("Profile", "profiles", false, ""),
        ("FelixConfiguration", "felixconfigurations", false, ""),
        ("KubeControllersConfiguration", "kubecontrollersconfigurations", false, ""),
        ("IPPool", "ippools", false, ""),
        ("Node", "nodes", false, ""),
    ] {
        let found = named(kind);
        assert_eq!(
            (found.plural, found.is_namespaced, &*found.short.join(" ")),
            (plural, is_namespaced, short)
        );
        let definition = found.definition(Rules::Without);
        assert_eq!(definition["metadata"]["name"], format!("{plural}.projectcalico.org"));
        assert_eq!(definition["spec"]["versions"][0]["subresources"], json!({ "status": {} }));
    }
    assert_eq!(listed.len(), 14);
}
