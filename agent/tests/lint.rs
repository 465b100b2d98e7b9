//! `margay lint` as a user's CI calls it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn lint(arguments: &[&str], paths: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_margay")).arg("lint").args(paths).args(arguments).output().unwrap()
}

fn recipes() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/recipes")
}

#[test]
fn no_recipe_has_a_finding() {
    for entry in fs::read_dir(recipes()).unwrap() {
        let recipe = entry.unwrap().path();
        if recipe.is_dir() {
            let output = lint(&[], &[&recipes().join("cluster.yaml"), &recipe]);
            let told = String::from_utf8_lossy(&output.stdout);
            assert_eq!(
                (output.status.code(), &*told),
                (Some(0), "0 errors, 0 warnings, 0 info\n"),
                "{recipe:?}"
            );
        }
    }
}

#[test]
fn findings_have_an_exit_code_and_a_line_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let with = |action: &str| {
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{selector: app == 'web', ingress: [{{action: Log}}{action}]}}\n"
        );
        fs::write(&file, text).unwrap();
        let cluster = recipes().join("cluster.yaml");
        (lint(&["-o", "json"], &[&cluster, &file]), lint(&[], &[&cluster, &file]))
    };
    let (json, text) = with("");
    assert_eq!((json.status.code(), text.status.code()), (Some(1), Some(1)));
    let found: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((found["id"].as_str(), found["severity"].as_str()), (Some("log-only"), Some("error")));
    assert_eq!(found["field"], "spec.ingress");
    assert!(found["file"].as_str().unwrap().ends_with("policy.yaml") && found["line"] == 1);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("error[log-only]") && text.ends_with("1 errors, 0 warnings, 0 info\n"), "{text}");
    let (json, _) = with(", {action: Pass}");
    assert_eq!((json.status.code(), json.stdout.len()), (Some(0), 0));
}

#[test]
fn info_alone_is_fine_and_what_cannot_be_read_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("felix.yaml");
    let text = "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {policyChangeFlowAction: Keep}\n";
    fs::write(&file, text).unwrap();
    let output = lint(&[], &[&file]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("info[flows-kept]"), "{told}");
    let gone = folder.path().join("gone.yaml");
    assert_eq!(lint(&[], &[&gone]).status.code(), Some(2));
}
