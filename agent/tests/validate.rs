//! `margay validate` and `margay selector` as a user's CI calls them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const GOOD: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: good, namespace: shop}
spec: {podSelector: {}}
";

fn margay(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_margay"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn validate(input: &str) -> (Vec<Value>, Option<i32>) {
    let output = margay(&["validate", "-"], input);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    (lines(&output), output.status.code())
}

#[test]
fn a_valid_object_is_one_exact_line() {
    let output = margay(&["validate", "-"], GOOD);
    let expected = "{\"kind\":\"NetworkPolicy\",\"namespace\":\"shop\",\"name\":\"good\",\"valid\":true,\"errors\":[]}\n";
    assert_eq!((text(&output.stdout), output.status.code()), (expected, Some(0)));
}

#[test]
fn an_invalid_object_names_field_value_and_reason() {
    let (found, code) = validate(
        "apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: g}
spec:
  order: high
  selector: a = 'b'
  ingress:
  - action: allow
    source: {nets: [10.0.0.1/8]}
",
    );
    assert_eq!(code, Some(1));
    assert_eq!(found.len(), 1);
    let verdict = &found[0];
    assert_eq!(
        (&verdict["kind"], &verdict["namespace"], &verdict["name"], &verdict["valid"]),
        (&json!("GlobalNetworkPolicy"), &json!(""), &json!("g"), &json!(false))
    );
    let errors = verdict["errors"].as_array().unwrap();
    let of = |field: &str| {
        let found = errors.iter().find(|error| error["field"] == field);
        found.unwrap_or_else(|| panic!("{field}: {errors:#?}"))
    };
    assert_eq!(errors.len(), 4, "{errors:#?}");
    assert_eq!(of("spec.order")["value"], "high");
    assert!(of("spec.selector")["reason"].as_str().unwrap().contains("write '=='"));
    assert_eq!(of("spec.ingress[0].action")["value"], "allow");
    assert!(
        of("spec.ingress[0].source.nets[0]")["reason"].as_str().unwrap().contains("did you mean 10.0.0.0/8?")
    );
    assert!(verdict.get("warnings").is_none());
}

#[test]
fn warnings_do_not_make_an_object_invalid() {
    let (found, code) = validate(&GOOD.replace("podSelector", "podSelectr"));
    assert_eq!((&found[0]["valid"], code), (&json!(true), Some(0)));
    assert_eq!(
        found[0]["warnings"],
        json!([{"field": "spec.podSelectr", "value": "a mapping", "reason": "unknown field, ignored; did you mean `podSelector`?"}])
    );
    let (found, code) = validate(
        "apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {name: p}\nspec: {ingress: [{actoin: Allow}]}\n",
    );
    assert_eq!((&found[0]["valid"], code), (&json!(false), Some(1)));
    assert_eq!(
        found[0]["warnings"][0]["field"], "spec.ingress[0].actoin",
        "an invalid object has warnings too"
    );
}

#[test]
fn documents_are_judged_one_by_one_and_in_order() {
    let input = format!(
        "{GOOD}---\na: [1\n---\nkind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {{namespace: x}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d, namespace: n}}\n---\n\
         apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Namespace, metadata: {{name: n}}}}\n\
         - {{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {{name: t}}, spec: {{defaultAction: Drop}}}}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: Networkpolicy\nmetadata: {{name: almost, namespace: y}}\n"
    );
    let (found, code) = validate(&input);
    let shown: Vec<_> = found
        .iter()
        .map(|one| {
            let text = |name: &str| one[name].as_str().unwrap().to_owned();
            (text("kind"), text("namespace"), text("name"), one["valid"].as_bool().unwrap())
        })
        .collect();
    let row = |kind: &str, namespace: &str, name: &str, valid| {
        (kind.to_owned(), namespace.to_owned(), name.to_owned(), valid)
    };
    let expected = [
        row("NetworkPolicy", "shop", "good", true),
        row("", "", "", false),
        row("NetworkPolicy", "x", "", false),
        row("Namespace", "", "n", true),
        row("Tier", "", "t", false),
        row("Networkpolicy", "y", "almost", false),
    ];
    assert_eq!(shown, expected);
    assert_eq!(code, Some(1));
    let output = margay(&["validate", "--all", "-"], &input);
    let all = lines(&output);
    assert_eq!(all.len(), 7);
    assert_eq!((&all[3]["kind"], &all[3]["valid"]), (&json!("Deployment"), &json!(true)));
}

#[test]
fn every_kind_that_is_followed_is_judged() {
    let calico = "projectcalico.org/v3";
    let rows = [
        ("v1", "Namespace", "{}"),
        ("v1", "ServiceAccount", "{}"),
        ("v1", "Pod", "{containers: []}"),
        ("v1", "Node", "{}"),
        ("networking.k8s.io/v1", "NetworkPolicy", "{podSelector: {}}"),
        (
            "policy.networking.k8s.io/v1alpha2",
            "ClusterNetworkPolicy",
            "{tier: Admin, priority: 1, subject: {namespaces: {}}}",
        ),
        (
            "policy.networking.k8s.io/v1alpha1",
            "AdminNetworkPolicy",
            "{priority: 1, subject: {namespaces: {}}}",
        ),
        ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "{subject: {namespaces: {}}}"),
        (calico, "NetworkPolicy", "{}"),
        (calico, "GlobalNetworkPolicy", "{}"),
        (calico, "StagedNetworkPolicy", "{}"),
        (calico, "StagedGlobalNetworkPolicy", "{}"),
        (calico, "StagedKubernetesNetworkPolicy", "{podSelector: {}}"),
        (calico, "Tier", "{}"),
        (calico, "NetworkSet", "{}"),
        (calico, "GlobalNetworkSet", "{}"),
        (calico, "HostEndpoint", "{node: n, interfaceName: '*'}"),
        (calico, "Profile", "{}"),
        (calico, "FelixConfiguration", "{}"),
        (calico, "KubeControllersConfiguration", "{}"),
        (calico, "IPPool", "{cidr: 10.0.0.0/8}"),
        (calico, "Node", "{}"),
        ("crd.projectcalico.org/v1", "GlobalNetworkPolicy", "{}"),
    ];
    for (version, kind, spec) in rows {
        // The one that there is of its kind is called default, and so is a tier that is fixed.
        let name = if kind == "Tier" { "t" } else { "default" };
        let manifest =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n");
        let (found, code) = validate(&manifest);
        assert_eq!((found.len(), code), (1, Some(0)), "{manifest}\n{found:#?}");
        assert_eq!(found[0]["kind"], kind);
        let (found, code) = validate(&manifest.replace(&format!("name: {name}"), "name: Default_"));
        assert_eq!((&found[0]["valid"], code), (&json!(false), Some(1)), "{kind}");
        assert_eq!(found[0]["errors"][0]["field"], "metadata.name");
    }
}

#[test]
fn files_and_folders_are_read_and_what_cannot_be_read_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("inner")).unwrap();
    fs::write(path("b.yaml"), GOOD.replace("good", "b")).unwrap();
    fs::write(path("inner/a.json"), r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}"#)
        .unwrap();
    fs::write(path("notes.txt"), "not a manifest").unwrap();
    let arguments = |paths: &[&Path]| {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        margay(&[&["validate"], paths.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat(), "")
    };
    let output = arguments(&[folder.path()]);
    let names: Vec<_> = lines(&output).iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!((names, output.status.code()), (vec!["b".to_owned(), "a".to_owned()], Some(0)));

    fs::write(path("latin.yaml"), b"kind: \xff\xfe").unwrap();
    let output = arguments(&[&path("inner"), &path("missing.yaml"), &path("latin.yaml")]);
    assert_eq!((lines(&output).len(), output.status.code()), (1, Some(2)));
    let told = text(&output.stderr);
    assert!(told.contains("missing.yaml") && told.contains("latin.yaml") && told.contains("UTF-8"), "{told}");
    assert_eq!(arguments(&[]).status.code(), Some(2), "no file at all is a wrong command line");
}

#[test]
fn text_output_is_for_people() {
    let input = format!("{GOOD}---\n{}", GOOD.replace("podSelector: {}", "podSelector: 7"));
    let output = margay(&["validate", "-o", "text", "-"], &input);
    let expected = "<stdin>:1: NetworkPolicy/shop/good: valid
<stdin>:6: NetworkPolicy/shop/good: invalid
  error: spec.podSelector = \"7\": must be a mapping of fields
2 objects, 1 invalid, 0 files not read
";
    assert_eq!((text(&output.stdout), output.status.code()), (expected, Some(1)));
}

#[test]
fn selector_on_the_command_line() {
    let rows = [
        (vec!["has(a)"], json!({"valid": true, "canonical": "has(a)"}), 0),
        (
            vec![""],
            json!({"valid": true, "canonical": "all()", "id": "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"}),
            0,
        ),
        (
            vec!["a=='b'", "--labels", r#"{"a":"b"}"#],
            json!({"valid": true, "canonical": "a == \"b\"", "match": true}),
            0,
        ),
        (vec!["!has(a)", "--labels", r#"{"a":"b"}"#], json!({"valid": true, "match": false}), 0),
        (
            vec!["--labels", "{}", "-a != 'x'"],
            json!({"valid": true, "canonical": "-a != \"x\"", "match": true}),
            0,
        ),
        (vec!["a = 'b'"], json!({"valid": false, "position": 2, "reason": "single '='; write '=='"}), 1),
        (vec!["a == 'x' && b"], json!({"valid": false, "position": 13}), 1),
    ];
    for (arguments, expected, code) in rows {
        let output = margay(&[&["selector"], arguments.as_slice()].concat(), "");
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {}", text(&output.stderr));
        let found = lines(&output);
        assert_eq!(found.len(), 1);
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&found[0][key], value, "{arguments:?} {key}: {}", found[0]);
        }
        let has_labels = arguments.contains(&"--labels");
        assert_eq!(found[0].get("match").is_some(), has_labels, "{arguments:?}");
    }
    for wrong in ["[1]", "{\"a\":1}", "nonsense"] {
        let output = margay(&["selector", "all()", "--labels", wrong], "");
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn selectors_on_standard_input() {
    let questions = r#"{"selector":"a == 'b'","labels":{"a":"b"}}
{"selector":"a == 'b'","labels":{}}

{"selector":"has(a)"}
{"selector":"a ="}
not json
{"labels":{}}
{"selector":"all()","labels":{"a":1}}
{"selector":"global()","labels":{}}
"#;
    let output = margay(&["selector"], questions);
    let found = lines(&output);
    assert_eq!(found.len(), 8, "{found:#?}");
    let matches: Vec<_> = found.iter().map(|one| one.get("match").and_then(Value::as_bool)).collect();
    assert_eq!(matches, [Some(true), Some(false), None, None, None, None, None, Some(true)]);
    assert_eq!(found[3]["valid"], json!(false));
    for (index, line) in [(4, 6), (5, 7), (6, 8)] {
        assert_eq!(found[index]["line"], json!(line), "{}", found[index]);
        assert!(found[index]["error"].is_string());
    }
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(margay(&["selector"], "{\"selector\":\"a =\"}\n").status.code(), Some(1));
    assert_eq!(margay(&["selector"], "{\"selector\":\"a == 'b'\"}\n").status.code(), Some(0));
    assert_eq!(margay(&["selector"], "").status.code(), Some(0));
}
