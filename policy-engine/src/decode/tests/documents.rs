//! Documents, lists, bounds, and text that is no manifest.

use proptest::prelude::*;

use super::*;

#[test]
fn documents_stand_alone_and_errors_name_their_place() {
    let text = format!(
        "# head\n---\n{}---\na: [1\n---\nkind: Deployment\napiVersion: apps/v1\n---\n{}",
        np("{}"),
        np("{selector: 7}")
    );
    let all = decode(&text, "f.yaml");
    assert_eq!(all.len(), 4, "{all:#?}");
    assert!(matches!(&all[0], Decoded::Valid { origin, .. } if origin.line == 3));
    assert!(
        matches!(&all[1], Decoded::Unreadable { origin, .. } if (8..=10).contains(&origin.line)),
        "{:?}",
        all[1]
    );
    assert!(matches!(&all[2], Decoded::Ignored { kind, .. } if kind == "apps/v1/Deployment"));
    let Decoded::Invalid { errors, origin, .. } = &all[3] else { panic!() };
    assert_eq!((origin.line, errors[0].field.as_str()), (13, "spec.selector"), "{errors:?}");
    assert!(errors[0].reason.contains("text"), "{errors:?}");
}

#[test]
fn lists_and_json_are_documents_too() {
    let item = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}"#;
    let json = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{item},{{\"kind\":1}},{item}]}}\n{item}"
    );
    let all = decode(&json, "f.json");
    assert_eq!(all.iter().filter(|one| matches!(one, Decoded::Valid { .. })).count(), 3, "{all:#?}");
    let pods = "apiVersion: v1\nkind: NamespaceList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n";
    let lines: Vec<_> = decode(pods, "f")
        .iter()
        .map(|one| matches!(one, Decoded::Valid { origin, .. } if origin.line > 3))
        .collect();
    assert_eq!(lines, [true, true]);
    let merged = "apiVersion: v1\nkind: Namespace\nmetadata: &m\n  name: a\n  labels: &l {k: v}\nextra: {<<: *m, name: b}\n";
    assert!(matches!(one(merged), Decoded::Valid { .. }));
    check("\"\\0<<\": 1\n", false);
    let twice = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a","name":"b"}}"#;
    assert!(matches!(one(twice), Decoded::Invalid { .. }));
}

#[test]
fn what_is_almost_a_policy_is_an_error() {
    check("apiVersion: v1\nkind: NetworkPolicy\nmetadata: {name: x}\n", false);
    check("apiVersion: projectcalico.org/v3\nkind: Networkpolicy\nmetadata: {name: x}\n", false);
    assert!(matches!(one("apiVersion: v1\nkind: Service\nmetadata: {name: x}\n"), Decoded::Ignored { .. }));
}

#[test]
fn input_is_bounded() {
    check(&" ".repeat(MAX_FILE_BYTES + 1), false);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let alias = format!("*a{}, ", level - 1).repeat(8);
        bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
    }
    check(&bomb, false);
    check(&format!("a: {}", "[".repeat(100_000)), false);
    check(&"{\"a\":".repeat(100_000), false);
}

proptest! {
    #[test]
    fn decode_never_panics(text in any::<String>()) {
        decode(&text, "f");
    }

    #[test]
    fn decode_never_panics_on_damaged_manifests(at in 0usize..2000, cut in 0usize..12, insert in "[-:{}\\[\\] a'\"&*!|>%\n\t0é]{0,4}") {
        let text = [
            np("{selector: a == 'b', types: [Ingress], ingress: [{action: Allow, protocol: TCP, source: {nets: [10.0.0.0/8]}, destination: {ports: [80, '1:2', http]}}]}"),
            knp("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80, endPort: 90}]}]}"),
            pod_text("labels: {a: b}", "{containers: [{ports: [{name: x, containerPort: 80}]}]}", "{podIPs: [{ip: 10.0.0.1}]}"),
        ]
        .join("---\n");
        let chars: Vec<char> = text.chars().collect();
        let at = at % chars.len();
        let rest = &chars[(at + cut).min(chars.len())..];
        let damaged: String = chars[..at].iter().copied().chain(insert.chars()).chain(rest.iter().copied()).collect();
        decode(&damaged, "f");
    }
}

#[test]
fn unknown_fields_are_warnings_that_name_the_nearest_one() {
    let rows = [
        (np("{selectr: all()}"), "spec.selectr", "did you mean `selector`?"),
        (np("{namespaceSelector: all()}"), "spec.namespaceSelector", "the fields here are"),
        (
            np("{ingress: [{action: Allow, source: {slector: all()}}]}"),
            "spec.ingress[0].source.slector",
            "`selector`",
        ),
        (knp("{podSelctor: {}}"), "spec.podSelctor", "`podSelector`"),
        (knp("{ingress: [{form: []}]}"), "spec.ingress[0].form", "`from`"),
        (calico("Tier", "t", "{ordr: 5}"), "spec.ordr", "`order`"),
        (calico("GlobalNetworkSet", "s", "{net: [10.0.0.0/8]}"), "spec.net", "`nets`"),
        (
            calico("HostEndpoint", "h", "{node: n, interfaceName: e, expectedIP: x}"),
            "spec.expectedIP",
            "`expectedIPs`",
        ),
        (calico("Profile", "p", "{labelToApply: {}}"), "spec.labelToApply", "`labelsToApply`"),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x}\nspce: {}\n"
                .to_owned(),
            "spce",
            "unknown field, ignored; did you mean `spec`?",
        ),
    ];
    for (text, field, reason) in rows {
        let Decoded::Valid { warnings, .. } = one(&text) else { panic!("{text}") };
        assert_eq!(warnings.len(), 1, "{text}\n{warnings:?}");
        assert_eq!(warnings[0].field, field);
        assert!(warnings[0].reason.starts_with("unknown field, ignored; "), "{warnings:?}");
        assert!(warnings[0].reason.contains(reason), "{warnings:?}");
    }
}

#[test]
fn a_namespace_on_an_object_of_the_cluster_is_a_warning() {
    let text = gnp("{}").replace("{name: p}", "{name: p, namespace: shop}");
    let Decoded::Valid { warnings, .. } = one(&text) else { panic!("{text}") };
    assert_eq!((warnings.len(), warnings[0].field.as_str()), (1, "metadata.namespace"));
    assert!(warnings[0].reason.contains("whole cluster"), "{warnings:?}");
}
