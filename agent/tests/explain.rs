//! `margay explain` on manifests: one packet, two sets of manifests, every pair of pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn margay() -> Command {
    Command::new(env!("CARGO_BIN_EXE_margay"))
}

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/recipes")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Explains under the cluster of the recipes with the recipe `before`, and with `after` as `--diff`.
fn explain(before: &str, after: Option<&str>, more: &[&str]) -> Output {
    let mut command = margay();
    let cluster = recipes().join("cluster.yaml");
    command.arg("explain").arg("--manifests").arg(&cluster).arg(recipes().join(before));
    if let Some(after) = after {
        command.arg("--diff").arg(&cluster).arg(recipes().join(after));
    }
    command.args(more).output().unwrap()
}

const WEB: [&str; 6] = ["--from", "blog/front", "--to", "shop/web", "--port", "8080"];

#[test]
fn every_tier_is_told_in_order_with_a_reason() {
    let told = text(&explain("tiers-with-pass", None, &WEB).stdout);
    let mut rest = told.split("ingress of pod shop/web").nth(1).unwrap();
    for words in [
        "tier security (order 100, default action Deny)\n",
        "GlobalNetworkPolicy security.gate: selects projectcalico.org/namespace == \"shop\", for ingress\n",
        "rule 0: no match: source: 10.1.1.20 is in none of its nets\n",
        "rule 2: matches: next tier\n",
        "tier kube-admin (order 1000, default action Pass): has no policies\n",
        "tier default (order 1000000, default action Deny)\n",
        "rule 0: matches: log, and go on\n",
        "rule 1: matches: allow\n",
        "tier kube-baseline (order 10000000, default action Pass): not reached\n",
        "profiles: not reached\n",
        "recorded: 0|security|gnp:security.gate|pass|2  1|default|np:shop/team|allow|1\n",
    ] {
        let (_, after) = rest.split_once(words).unwrap_or_else(|| panic!("{words}\n{told}"));
        rest = after;
    }
}

#[test]
fn policies_that_do_not_apply_are_counted_or_listed() {
    let counted = text(&explain("tiers-with-pass", None, &WEB).stdout);
    assert!(counted.contains("1 policy does not apply: it does not govern egress\n"), "{counted}");
    let listed = text(&explain("tiers-with-pass", None, &[&WEB[..], &["--all"]].concat()).stdout);
    assert!(
        listed.contains("NetworkPolicy shop/team does not apply: it does not govern egress\n"),
        "{listed}"
    );
}

#[test]
fn pm_20_3_hits_are_there_for_programs() {
    let output = explain("tiers-with-pass", None, &[&WEB[..], &["-o", "json"]].concat());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["verdict"], "allow");
    assert_eq!(told["probe"]["to"], "shop/web");
    assert_eq!(told["legs"][1]["trace"][1], "1|default|np:shop/team|allow|1");
    assert_eq!(told["legs"][1]["hits"][0]["policy"]["name"], "security.gate");
}

#[test]
fn pm_19_4_staged_policies_are_told_beside_what_is_enforced() {
    let folder = tempfile::tempdir().unwrap();
    let staged = "apiVersion: projectcalico.org/v3\nkind: StagedNetworkPolicy\nmetadata: {name: team, namespace: shop}\nspec: {selector: app == 'web', ingress: [{action: Deny}]}\n";
    fs::write(folder.path().join("staged.yaml"), staged).unwrap();
    let mut command = margay();
    command.arg("explain").arg("--manifests").arg(recipes().join("cluster.yaml"));
    command.arg(recipes().join("tiers-with-pass")).arg(folder.path());
    let told = text(&command.args(WEB).output().unwrap().stdout);
    let wanted = "if the staged policies were enforced: deny by StagedNetworkPolicy shop/team rule 0 in tier default\n";
    assert!(told.contains(wanted), "{told}");
    assert!(told.contains("Verdict: allow\n"), "{told}");
}

#[test]
fn pm_11_2_host_endpoints_on_the_way_are_told_in_their_context() {
    let folder = tempfile::tempdir().unwrap();
    let objects = "
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: a-eth0, labels: {host: 'yes'}}
spec: {node: node-a, interfaceName: eth0, profiles: [projectcalico-default-allow]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: fence}
spec: {selector: has(host), applyOnForward: true, ingress: [{action: Deny, source: {nets: [203.0.113.0/24]}}, {action: Allow}]}
";
    fs::write(folder.path().join("host.yaml"), objects).unwrap();
    let mut command = margay();
    command.arg("explain").arg("--manifests").arg(recipes().join("cluster.yaml")).arg(folder.path());
    command.args(["--from", "ip:203.0.113.7", "--to", "shop/web", "--port", "8080"]);
    let told = text(&command.output().unwrap().stdout);
    assert!(told.contains("ingress of host endpoint a-eth0"), "{told}");
    assert!(told.contains(", forward: deny by GlobalNetworkPolicy fence rule 0 in tier default\n"), "{told}");
    assert!(told.contains("Verdict: deny"), "{told}");
    assert!(!told.contains("!!"), "{told}");
}

#[test]
fn a_diff_tells_what_changes_and_says_so_by_its_exit_code() {
    let same = explain("tiers-with-pass", Some("tiers-with-pass"), &WEB);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same.stderr));
    assert!(text(&same.stdout).ends_with(": allow, as before\n"), "{}", text(&same.stdout));
    let other = explain("tiers-with-pass", Some("default-deny-all"), &WEB);
    let told = text(&other.stdout);
    assert_eq!(other.status.code(), Some(1), "{told}");
    for words in [
        ": was allow, is deny\n",
        "    was allow by NetworkPolicy shop/team rule 1 in tier default\n",
        "NetworkPolicy shop/team removed\n",
        "Tier security removed\n",
    ] {
        assert!(told.contains(words), "{words}\n{told}");
    }
    let nobody = explain(
        "tiers-with-pass",
        Some("tiers-with-pass"),
        &["--from", "a/b", "--to", "shop/web", "--port", "1"],
    );
    assert_eq!(nobody.status.code(), Some(2));
}

#[test]
fn all_pairs_list_every_connection_whose_verdict_changes() {
    let output = explain("tiers-with-pass", Some("default-deny-all"), &["--all-pairs", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["changed"].as_u64().unwrap() as usize, found["changes"].as_array().unwrap().len());
    assert_eq!(found["compared"], found["possible"]);
    let web = found["changes"].as_array().unwrap().iter().find(|change| {
        (change["from"].as_str(), change["to"].as_str(), change["port"].as_u64())
            == (Some("blog/front"), Some("shop/web"), Some(8080))
    });
    assert_eq!(web.unwrap()["after"], "deny");
    let same = explain("tiers-with-pass", Some("tiers-with-pass"), &["--all-pairs"]);
    assert_eq!(same.status.code(), Some(0));
    assert!(text(&same.stdout).starts_with("0 of "), "{}", text(&same.stdout));
    assert_eq!(explain("tiers-with-pass", None, &["--all-pairs"]).status.code(), Some(2), "needs --diff");
}

#[test]
fn pm_16_2_a_node_port_is_what_pre_dnat_policy_sees() {
    let folder = tempfile::tempdir().unwrap();
    let objects = "
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: a-eth0, labels: {host: 'yes'}}
spec: {node: node-a, interfaceName: eth0, profiles: [projectcalico-default-allow]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: fence}
spec: {selector: has(host), preDNAT: true, applyOnForward: true, ingress: [{action: Deny, protocol: TCP, destination: {ports: [30080]}}]}
";
    fs::write(folder.path().join("host.yaml"), objects).unwrap();
    let told = |more: &[&str]| {
        let mut command = margay();
        command.arg("explain").arg("--manifests").arg(recipes().join("cluster.yaml")).arg(folder.path());
        command.args(["--from", "ip:203.0.113.7", "--to", "shop/web", "--port", "8080"]).args(more);
        text(&command.output().unwrap().stdout)
    };
    let by_node_port = told(&["--via", "192.0.2.11:30080", "--interface", "eth0"]);
    assert!(by_node_port.contains(", preDNAT: deny by GlobalNetworkPolicy fence rule 0"), "{by_node_port}");
    assert!(told(&[]).contains("Verdict: allow"), "{}", told(&[]));
}
