//! The rules that newer API servers check, evaluated: they refuse what the decoder refuses, and nothing else.

use std::collections::BTreeSet;

use cel::{Context, Program, Value as Cel};
use margay_policy_engine::decode::{Decoded, decode_value};
use margay_policy_engine::schema::{GROUP, Rules, VERSION, resources};
use serde_json::{Value, json};

const CEL: &str = "x-kubernetes-validations";

/// Whether `rule` holds for `value`, and for a change from `before` to it.
fn holds(rule: &str, value: &Value, before: &Value) -> bool {
    let program = Program::compile(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
    let mut context = Context::default();
    context.add_variable("self", value.clone()).expect("a value");
    context.add_variable("oldSelf", before.clone()).expect("a value");
    match program.execute(&context) {
        Ok(Cel::Bool(holds)) => holds,
        other => panic!("{rule} of {value}: {other:?}"),
    }
}

/// Gives the messages of the rules that `value` breaks, walking it along its schema as a server does.
fn broken(schema: &Value, value: &Value, before: Option<&Value>, into: &mut Vec<String>) {
    for rule in schema[CEL].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().expect("a rule");
        // A rule about a change is not asked where there was nothing before.
        if text.contains("oldSelf") && before.is_none() {
            continue;
        }
        if !holds(text, value, before.unwrap_or(value)) {
            into.push(rule["message"].as_str().expect("a message").to_owned());
        }
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        broken(&schema["properties"][name], inner, before.and_then(|before| before.get(name)), into);
    }
    for item in value.as_array().into_iter().flatten() {
        broken(&schema["items"], item, None, into);
    }
}

/// Gives `take` every rule below `schema`.
fn each_rule(schema: &Value, take: &mut dyn FnMut(&Value)) {
    schema[CEL].as_array().into_iter().flatten().for_each(&mut *take);
    match schema {
        Value::Object(map) => map.values().for_each(|inner| each_rule(inner, take)),
        Value::Array(items) => items.iter().for_each(|inner| each_rule(inner, take)),
        _ => {}
    }
}

fn object(kind: &str, spec: &Value) -> Value {
    json!({ "apiVersion": format!("{GROUP}/{VERSION}"), "kind": kind, "metadata": { "name": "x" }, "spec": spec })
}

fn judged(kind: &str, spec: &Value, before: Option<&Value>) -> Vec<String> {
    let resource = resources().into_iter().find(|resource| resource.kind == kind).expect("a kind");
    let mut messages = Vec::new();
    let before = before.map(|spec| object(kind, spec));
    broken(&resource.schema(Rules::Cel), &object(kind, spec), before.as_ref(), &mut messages);
    messages
}

/// PM-2.2, 2.5, 2.6, 2.12, 4.5: one row for each rule that is broken, and the nearest thing that is right.
#[test]
fn rules_refuse_what_the_decoder_refuses() {
    let allow = json!([{ "action": "Allow" }]);
    let http = |path: Value| json!({ "ingress": [{ "action": "Allow", "http": { "paths": [path] } }] });
    let rows = [
        (
            "GlobalNetworkPolicy",
            json!({ "doNotTrack": true, "preDNAT": true, "applyOnForward": true }),
            Some("preDNAT excludes"),
        ),
        (
            "GlobalNetworkPolicy",
            json!({ "doNotTrack": true, "preDNAT": false, "applyOnForward": true }),
            None,
        ),
        ("GlobalNetworkPolicy", json!({ "doNotTrack": true }), Some("need applyOnForward")),
        (
            "GlobalNetworkPolicy",
            json!({ "preDNAT": true, "applyOnForward": false }),
            Some("need applyOnForward"),
        ),
        ("GlobalNetworkPolicy", json!({ "applyOnForward": true }), None),
        (
            "GlobalNetworkPolicy",
            json!({ "preDNAT": true, "applyOnForward": true, "egress": allow }),
            Some("no egress rules"),
        ),
        ("GlobalNetworkPolicy", json!({ "preDNAT": true, "applyOnForward": true, "egress": [] }), None),
        ("NetworkPolicy", json!({ "types": ["Egress", "Egress"] }), Some("written twice")),
        ("NetworkPolicy", json!({ "types": ["Ingress", "Egress"] }), None),
        ("NetworkPolicy", json!({ "types": ["Ingress"] }), None),
        ("NetworkPolicy", json!({ "types": [] }), None),
        ("NetworkPolicy", http(json!({ "exact": "/a", "prefix": "/b" })), Some("exactly one")),
        ("NetworkPolicy", http(json!({})), Some("exactly one")),
        ("NetworkPolicy", http(json!({ "prefix": "/b" })), None),
        ("StagedNetworkPolicy", json!({ "stagedAction": "Delete", "ingress": allow }), Some("stands alone")),
        (
            "StagedGlobalNetworkPolicy",
            json!({ "stagedAction": "Delete", "egress": allow }),
            Some("stands alone"),
        ),
        ("StagedGlobalNetworkPolicy", json!({ "stagedAction": "Delete", "tier": "default" }), None),
        ("StagedKubernetesNetworkPolicy", json!({ "stagedAction": "Set", "ingress": [{}] }), None),
        ("HostEndpoint", json!({ "node": "n" }), Some("interfaceName or expectedIPs")),
        (
            "HostEndpoint",
            json!({ "node": "n", "interfaceName": "", "expectedIPs": [] }),
            Some("interfaceName or expectedIPs"),
        ),
        ("HostEndpoint", json!({ "node": "n", "expectedIPs": ["10.0.0.1"] }), None),
        ("HostEndpoint", json!({ "node": "n", "interfaceName": "*" }), None),
    ];
    let mut refused = BTreeSet::new();
    for (kind, spec, wanted) in rows {
        let messages = judged(kind, &spec, None);
        let is_valid =
            matches!(decode_value(object(kind, &spec), Default::default())[0], Decoded::Valid { .. });
        assert_eq!(is_valid, wanted.is_none(), "{kind} {spec}: the decoder");
        match wanted {
            None => assert_eq!(messages, Vec::<String>::new(), "{kind} {spec}"),
            Some(words) => {
                assert!(messages.len() == 1 && messages[0].contains(words), "{kind} {spec}: {messages:?}");
                refused.extend(messages);
            }
        }
    }
    // No rule is without a row that it refuses; those about a change have a test of their own.
    for resource in resources() {
        each_rule(&resource.schema(Rules::Cel), &mut |rule| {
            let message = rule["message"].as_str().expect("a message");
            let is_about_change = rule["rule"].as_str().expect("a rule").contains("oldSelf");
            assert!(
                is_about_change || refused.contains(message),
                "{}: no row breaks: {message}",
                resource.kind
            );
        });
    }
}

/// PM-2.14: only a server sees that something changed.
#[test]
fn what_never_changes_is_refused_when_it_does() {
    let pool = |cidr: &str, size: u8| json!({ "cidr": cidr, "blockSize": size, "natOutgoing": size == 26 });
    let before = pool("10.244.0.0/16", 26);
    assert_eq!(judged("IPPool", &before, None), Vec::<String>::new());
    assert_eq!(
        judged("IPPool", &json!({ "cidr": "10.244.0.0/16", "blockSize": 26 }), Some(&before)),
        Vec::<String>::new()
    );
    assert_eq!(
        judged("IPPool", &pool("10.245.0.0/16", 26), Some(&before)),
        ["cidr never changes; make another pool"]
    );
    assert_eq!(
        judged("IPPool", &pool("10.244.0.0/16", 28), Some(&before)),
        ["blockSize never changes; make another pool"]
    );
}

/// A server estimates what a rule costs from the bounds of what it looks at; a rule that walks a list needs one that has an end.
#[test]
fn every_rule_has_a_message_and_walks_no_list() {
    let mut seen = 0;
    for resource in resources() {
        each_rule(&resource.schema(Rules::Cel), &mut |rule| {
            let text = rule["rule"].as_str().expect("a rule");
            assert!(
                !["all(", "exists(", "filter(", "map(", "matches("].iter().any(|word| text.contains(word)),
                "{text}"
            );
            assert!(
                rule["message"]
                    .as_str()
                    .is_some_and(|message| !message.is_empty() && !message.contains('\n'))
            );
            seen += 1;
        });
    }
    assert!(seen > 10, "{seen}");
}
