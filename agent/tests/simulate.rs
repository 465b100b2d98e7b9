//! `margay simulate` and `margay explain` as a user's CI calls them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

#[test]
fn every_recipe_answers_as_expected_by_both_engines() {
    let mut recipes = 0;
    for entry in fs::read_dir(recipes_folder()).unwrap() {
        let recipe = entry.unwrap().path();
        if !recipe.is_dir() {
            continue;
        }
        recipes += 1;
        let probes = recipe.join("probes.jsonl");
        let output = simulate(
            &[recipes_folder().join("cluster.yaml"), recipe.clone()],
            &probes,
            &["--engine", "both"],
        );
        let expected = lines(&fs::read(recipe.join("expected.jsonl")).unwrap());
        let probes = lines(&fs::read(&probes).unwrap());
        let answers = lines(&output.stdout);
        assert_eq!(answers.len(), expected.len(), "{}: {}", recipe.display(), text(&output.stderr));
        for ((probe, answer), expected) in probes.iter().zip(&answers).zip(&expected) {
            assert!(
                contains(answer, expected),
                "{}\n probe    {probe}\n answer   {answer}\n expected {expected}",
                recipe.display()
            );
        }
        assert_eq!(output.status.code(), Some(0), "{}: {}", recipe.display(), text(&output.stderr));
    }
    assert!(recipes >= 10, "only {recipes} recipes were found");
}

#[test]
fn probe_on_standard_input_is_answered_at_once() {
    let mut child = margay()
        .args(["simulate", "--manifests"])
        .arg(recipes_folder().join("cluster.yaml"))
        .args(["--probes", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for _ in 0..2 {
        stdin
            .write_all(b"{\"from\":\"shop/web\",\"to\":\"shop/db\",\"protocol\":6,\"port\":5432}\n")
            .unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["verdict"], "allow");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn wrong_probe_is_answered_with_its_line_and_the_others_all_the_same() {
    let probes = r#"{"from":"shop/web","to":"shop/db","protocol":"TCP","port":5432}

not json
{"from":"shop/nobody","to":"shop/db","protocol":"TCP","port":5432}
{"from":"shop/web","to":"host:nowhere","protocol":"TCP","port":5432}
{"from":"shop/web","to":"shop/db","protocol":"TCP"}
{"from":"shop/web","to":"shop/db","protocol":"TCP","port":70000}
{"from":"shop/cli","to":"shop/db","protocol":"TCP","port":80,"family":6}
{"from":"shop/web","to":"shop/db","protocol":"TPC","port":80}
{"from":"web","to":"shop/db","protocol":"TCP","port":80}
{"from":"shop/web","to":"ip:1.2.3","protocol":"TCP","port":80}
{"from":"shop/pending","to":"shop/db","protocol":"TCP","port":80}
{"from":"shop/web","to":"shop/db","protocol":"UDP","port":53}
"#;
    let folder = tempfile::tempdir().unwrap();
    let pending = "apiVersion: v1\nkind: Pod\nmetadata: {name: pending, namespace: shop}\nspec: {}\n";
    fs::write(folder.path().join("pending.yaml"), pending).unwrap();
    let manifests = [recipes_folder().join("cluster.yaml"), folder.path().to_owned()];
    let output = simulate_text(&manifests, probes, &[]);
    assert_eq!(output.status.code(), Some(2));
    let answers = lines(&output.stdout);
    assert_eq!(answers.len(), 12);
    assert_eq!((&answers[0]["verdict"], &answers[11]["verdict"]), (&json!("allow"), &json!("allow")));
    let errors = [
        (3, "not a probe"),
        (4, "nobody"),
        (5, "nowhere"),
        (6, "needs a destination port"),
        (7, "70000"),
        (8, "IPv6"),
        (9, "TPC"),
        (10, "namespace/pod"),
        (11, "1.2.3"),
        (12, "status.podIPs"),
    ];
    for ((line, words), answer) in errors.iter().zip(&answers[1..]) {
        assert_eq!(answer["line"], *line, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{answer}");
    }
}

#[test]
fn wrong_manifest_is_named_and_fails_the_run_unless_lenient() {
    let folder = tempfile::tempdir().unwrap();
    let policy = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop}\nspec:\n  types: [Ingress]\n  ingress:\n  - {action: Allow, protocol: TCP, destination: {ports: [70000]}}\n";
    fs::write(folder.path().join("bad.yaml"), format!("# a comment\n---\n{policy}")).unwrap();
    let manifests = [recipes_folder().join("cluster.yaml"), folder.path().to_owned()];
    let probe = "{\"from\":\"shop/web\",\"to\":\"shop/db\",\"protocol\":\"TCP\",\"port\":5432}\n";
    let output = simulate_text(&manifests, probe, &[]);
    assert_eq!(output.status.code(), Some(1));
    // Closed, not open: what cannot be understood may narrow access, never widen it.
    assert_eq!(lines(&output.stdout)[0]["verdict"], "deny");
    let complaint = text(&output.stderr);
    for words in ["bad.yaml:3", "NetworkPolicy/shop/bad", "spec.ingress[0].destination.ports", "70000"] {
        assert!(complaint.contains(words), "{words}: {complaint}");
    }
    let output = simulate_text(&manifests, probe, &["--lenient"]);
    assert_eq!(output.status.code(), Some(0));

    fs::write(folder.path().join("bad.yaml"), "a: [").unwrap();
    let output = simulate_text(&manifests, probe, &[]);
    assert_eq!(output.status.code(), Some(1));
    let output = simulate_text(&[folder.path().join("absent")], probe, &["--lenient"]);
    assert!(text(&output.stderr).contains("absent"), "{}", text(&output.stderr));
}

#[test]
fn pod_reaches_its_own_node_only_when_told_so() {
    let manifests = [recipes_folder().join("cluster.yaml")];
    let probes = r#"{"from":"shop/web","to":"host:node-a","protocol":"TCP","port":22}
{"from":"shop/web","to":"ip:192.0.2.11","protocol":"TCP","port":22}
{"from":"shop/web","to":"host:node-b","protocol":"TCP","port":22}
{"from":"host:node-a","to":"host:node-b","protocol":"TCP","port":22}
"#;
    let verdicts = |more: &[&str]| -> Vec<String> {
        let output = simulate_text(&manifests, probes, more);
        lines(&output.stdout).iter().map(|answer| answer["verdict"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(verdicts(&[]), ["deny", "deny", "allow", "allow"]);
    assert_eq!(verdicts(&["--endpoint-to-host", "accept"]), ["allow", "allow", "allow", "allow"]);
}

#[test]
fn tens_of_thousands_of_probes_are_answered_in_order() {
    let probe = |port: usize| {
        format!("{{\"from\":\"ops/prometheus\",\"to\":\"shop/web\",\"protocol\":\"TCP\",\"port\":{port}}}\n")
    };
    let probes: String = (0..40_000).map(|n| probe(9_000 + n % 200)).collect();
    let manifests = [recipes_folder().join("cluster.yaml"), recipes_folder().join("tiers-with-pass")];
    let began = Instant::now();
    let output = simulate_text(&manifests, &probes, &[]);
    let took = began.elapsed();
    let answers = lines(&output.stdout);
    assert_eq!(answers.len(), 40_000);
    for (n, answer) in answers.iter().enumerate() {
        let expected = if n % 200 == 100 { "allow" } else { "deny" };
        assert_eq!(answer["verdict"], expected, "probe {n}");
    }
    println!("40,000 probes in {took:?}");
}

#[test]
fn explain_tells_the_rules_that_were_passed_by() {
    let output = margay()
        .args(["explain", "--manifests"])
        .arg(recipes_folder().join("cluster.yaml"))
        .arg(recipes_folder().join("tiers-with-pass"))
        .args(["--from", "blog/front", "--to", "shop/web", "--port", "8080"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let story = text(&output.stdout);
    for words in [
        "tier security",
        "security.gate rule 0: no match",
        "security.gate rule 2",
        "NetworkPolicy shop/team rule 1: allow",
        "Verdict: allow",
    ] {
        assert!(story.contains(words), "{words}\n{story}");
    }
    assert!(!story.contains("otherwise"), "{story}");
    let output = margay()
        .args([
            "explain",
            "--from",
            "a/b",
            "--to",
            "c/d",
            "--port",
            "1",
            "--socket",
            "/nonexistent/margay.sock",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("margay agent"));
}

#[test]
fn every_command_has_help_with_an_example_and_shells_get_completion() {
    for command in ["simulate", "explain", "status", "flows", "drops", "completion"] {
        let output = margay().args([command, "--help"]).output().unwrap();
        assert!(text(&output.stdout).contains("Example"), "{command}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = margay().args(["completion", shell]).output().unwrap();
        assert!(text(&output.stdout).contains("simulate"), "{shell}");
    }
}

fn margay() -> Command {
    Command::new(env!("CARGO_BIN_EXE_margay"))
}

fn recipes_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/recipes")
}

fn simulate(manifests: &[PathBuf], probes: &Path, more: &[&str]) -> Output {
    let mut command = margay();
    command.args(["simulate", "--manifests"]).args(manifests).arg("--probes").arg(probes).args(more);
    command.output().unwrap()
}

fn simulate_text(manifests: &[PathBuf], probes: &str, more: &[&str]) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(probes.as_bytes()).unwrap();
    simulate(manifests, file.path(), more)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether everything in `expected` is in `answer` too.
fn contains(answer: &Value, expected: &Value) -> bool {
    match expected {
        Value::Object(expected) => {
            expected.iter().all(|(key, value)| answer.get(key).is_some_and(|answer| contains(answer, value)))
        }
        expected => answer == expected,
    }
}
