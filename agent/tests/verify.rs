//! `margay verify` as a user's pipeline calls it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/verify").join(file)
}

fn verify(manifests: &[&Path], assertions: &str, options: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_margay"))
        .arg("verify")
        .args(options)
        .args(["--assert", "-", "--manifests"])
        .args(manifests)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(assertions.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// About the example; the answers as JSON, the summary last.
fn shop(assertions: &str) -> (Vec<Value>, Option<i32>) {
    let (cluster, policies) = (example("cluster.yaml"), example("policies.yaml"));
    let output = verify(&[&cluster, &policies], assertions, &["-o", "json"]);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    let lines = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, output.status.code())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_example_holds() {
    let assertions = std::fs::read_to_string(example("assertions.yaml")).unwrap();
    let (answers, code) = shop(&assertions);
    assert_eq!(code, Some(0), "{answers:#?}");
    let (summary, answers) = answers.split_last().unwrap();
    assert_eq!((answers.len(), &summary["summary"]["hold"]), (7, &json!(7)));
    for answer in answers {
        assert_eq!((&answer["holds"], &answer["counterexample"]), (&json!(true), &Value::Null), "{answer}");
        assert!(answer["examined"].as_u64().unwrap() > 0);
    }
    assert_eq!(answers[4]["statement"], "the shop is open to the world, on one port");
}

#[test]
fn a_statement_that_fails_comes_with_a_packet_and_who_decided() {
    let (answers, code) = shop("- only reports/nightly may reach port 5432 of shop/db\n");
    assert_eq!(code, Some(1));
    let found = &answers[0]["counterexample"];
    assert_eq!(
        *found,
        json!({
            "from": "shop/web-6f5d",
            "to": "shop/db-0",
            "packet": {"source": "10.1.0.2", "destination": "10.1.0.3", "protocol": 6, "sourcePort": 49_152, "destinationPort": 5432},
            "verdict": "allow",
            "egress": {"verdict": "allow", "tier": "__PROFILE__", "kind": "Profile", "namespace": "", "name": "kns.shop", "rule": 0},
            "ingress": {"verdict": "allow", "tier": "default", "kind": "KubernetesNetworkPolicy", "namespace": "shop", "name": "db", "rule": 0},
        })
    );
    assert_eq!(
        answers[1]["summary"],
        json!({"hold": 0, "fail": 1, "cannotBeJudged": 0, "examined": answers[0]["examined"]})
    );
}

#[test]
fn the_packet_of_a_failed_statement_is_confirmed_by_simulate() {
    let (answers, _) = shop("- nobody can reach shop/web\n- shop/web can reach shop/db\n");
    for answer in &answers[..2] {
        let found = &answer["counterexample"];
        let packet = &found["packet"];
        let name = |end: &str, address: &str| match found[end].as_str().unwrap() {
            "outside" => format!("ip:{}", packet[address].as_str().unwrap()),
            name => name.to_owned(),
        };
        let probe = json!({
            "from": name("from", "source"),
            "to": name("to", "destination"),
            "protocol": packet["protocol"].to_string(),
            "port": packet["destinationPort"],
            "sport": packet["sourcePort"],
        });
        let mut child = Command::new(env!("CARGO_BIN_EXE_margay"))
            .args(["simulate", "--engine", "both", "--probes", "-", "--manifests"])
            .args([example("cluster.yaml"), example("policies.yaml")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{probe}").unwrap();
        let output = child.wait_with_output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["verdict"], found["verdict"], "{probe}: {said}");
    }
}

#[test]
fn what_cannot_be_judged_is_said_and_the_rest_is_judged() {
    let (answers, code) = shop(
        "- no pod of namespace shpo can reach shop/db
- only web may reach shop/db
- deny: {form: {namespace: shop}, to: {outside: true}}
- deny: {from: {}, to: {outside: true}}
- deny: {from: {outside: true}, to: {namespace: shop}, ports: [http]}
- deny: {from: {selector: app =}, to: {outside: true}}
- deny: {from: {cidr: 10.0.0.1/8}, to: {namespace: shop}}
- {deny: {from: {outside: true}, to: {namespace: shop}}, only: {to: {namespace: shop}}}
- deny: {to: {namespace: shop}}
- nothing outside can reach outside
- {deny: {from: {namespace: shpo}, to: {namespace: shop}}, allowEmpty: true}
",
    );
    assert_eq!(code, Some(2));
    let reasons = [
        "`from` stands for nothing",
        "a peer is expected at \"web\"",
        "unknown field `form`, expected one of `from`, `to`, `ports`",
        "all pods are `selector: all()`",
        "\"http\" is no protocol",
        "selector: single '='",
        "did you mean 10.0.0.0/8?",
        "write an item for each",
        "from: missing",
        "no pod stands on either side",
    ];
    for (answer, reason) in answers.iter().zip(reasons) {
        let said = answer["error"].as_str().unwrap_or_default();
        assert!(said.contains(reason) && answer.get("holds").is_none(), "{reason}: {answer}");
    }
    assert_eq!(answers[10]["holds"], true);
    assert_eq!(answers[11]["summary"]["cannotBeJudged"], 10);
}

#[test]
fn people_get_a_line_for_each_statement() {
    let (cluster, policies) = (example("cluster.yaml"), example("policies.yaml"));
    let output = verify(
        &[&cluster, &policies],
        r#"["nothing outside can reach shop/db", {"deny": {"from": {"outside": true}, "to": {"namespace": "shop"}}, "name": "closed"}]"#,
        &[],
    );
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "ok        1  nothing outside can reach shop/db");
    assert_eq!(lines[1], "FAILED    2  closed");
    assert_eq!(lines[2].trim(), "TCP 192.0.2.1:49152 -> 10.1.0.2:443 is allowed: outside to shop/web-6f5d");
    assert_eq!(
        lines[3].trim(),
        "ingress of shop/web-6f5d: allowed by tier default, KubernetesNetworkPolicy shop/web, rule 0"
    );
    assert!(lines[4].starts_with("1 hold, 1 fail, 0 cannot be judged; "), "{said}");
}

#[test]
fn wrong_manifests_and_missing_files_are_not_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("wrong.yaml");
    std::fs::write(
        &wrong,
        "apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: wrong, namespace: shop}
spec: {order: high, types: [Ingress]}
",
    )
    .unwrap();
    let cluster = example("cluster.yaml");
    let claim = "nothing outside can reach shop/db";
    let output = verify(&[&cluster, &wrong], claim, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("spec.order"), "{}", text(&output.stderr));
    // What is invalid counts in its closed form.
    assert_eq!(verify(&[&cluster, &wrong], claim, &["--lenient"]).status.code(), Some(0));
    assert_eq!(verify(&[&cluster], "", &[]).status.code(), Some(2));
    let output = Command::new(env!("CARGO_BIN_EXE_margay"))
        .args(["verify", "--assert", "nowhere.yaml", "--manifests"])
        .arg(&cluster)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nowhere.yaml"), "{}", text(&output.stderr));
}
