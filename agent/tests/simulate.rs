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
        "GlobalNetworkPolicy security.gate",
        "rule 0: no match",
        "allow by NetworkPolicy shop/team rule 1 in tier default",
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

#[test]
fn host_endpoint_without_policy_closes_the_host_and_nothing_else() {
    let manifests = [hep("a", "node-a", "eth0", "")];
    let probes = [
        tcp("host:node-a", "host:node-b", 80),
        tcp("host:node-b", "host:node-a", 80),
        tcp("ip:203.0.113.7", "host:node-a", 80),
        tcp("ip:203.0.113.7", "host:node-a", 22),
        tcp("shop/db", "host:node-a", 80),
        tcp("host:node-a", "shop/db", 80),
        tcp("host:node-a", "shop/web", 80),
        tcp("shop/web", "shop/cli", 80),
        tcp("shop/web", "shop/db", 80),
        tcp("ip:203.0.113.7", "shop/web", 80),
        tcp("host:node-a", "host:node-a", 80),
        tcp("host:node-b", "ip:203.0.113.7", 80),
        json!({"from": "ip:2001:db8:f::1", "to": "host:node-a", "protocol": "TCP", "port": 80}),
    ];
    let answers = answers(&manifests, &probes, &[]);
    let expected = [
        "deny", "deny", "deny", "allow", "deny", "deny", "allow", "allow", "allow", "allow", "allow",
        "allow", "deny",
    ];
    assert_eq!(verdicts(&answers), expected);
    assert_eq!(asked(&answers[0]), ["node-a eth0 normal egress deny"]);
    assert!(answers[0]["reason"].as_str().unwrap().starts_with("host_endpoint"));
    assert_eq!(asked(&answers[1]), ["node-a eth0 normal ingress deny"]);
    let failsafe = json!([{
        "node": "node-a", "interface": "eth0", "hostEndpoint": "a", "context": "normal", "direction": "ingress",
        "verdict": "allow", "tier": "", "kind": "Failsafe", "namespace": "", "name": "tcp:22", "rule": -1,
    }]);
    assert_eq!(answers[3]["host"], failsafe);
    assert_eq!(answers[3].get("reason"), None);
    assert_eq!((&answers[4]["egress"]["verdict"], &answers[4]["ingress"]), (&json!("allow"), &Value::Null));
    assert!(answers[6]["reason"].as_str().unwrap().starts_with("host_to_own_pod"));
    for untouched in &answers[6..12] {
        assert_eq!(untouched.get("host"), None, "{untouched}");
    }
    assert!(answers[11]["reason"].as_str().unwrap().starts_with("no_local_pod"));
}

#[test]
fn pre_dnat_policy_sees_the_node_port_and_pods_their_own() {
    let rule = "types: [Ingress], preDNAT: true, applyOnForward: true, ingress: [{action: Allow, protocol: TCP, destination: {ports: [30080]}}, {action: Deny}]";
    let manifests = [hep("a", "node-a", "eth0", ""), host_policy("node-ports", rule)];
    let through = |port: u16, address: &str| {
        let mut probe = tcp("ip:203.0.113.7", "shop/web", 8080);
        probe["via"] = json!({"address": address, "port": port});
        probe
    };
    let mut to_b = through(30081, "192.0.2.11");
    to_b["to"] = json!("shop/db");
    let probes = [
        through(30080, "192.0.2.11"),
        through(30081, "192.0.2.11"),
        through(30081, "192.0.2.12"),
        tcp("ip:203.0.113.7", "shop/web", 30080),
        to_b,
        tcp("blog/reader", "shop/web", 1),
    ];
    let answers = answers(&manifests, &probes, &[]);
    assert_eq!(verdicts(&answers), ["allow", "deny", "deny", "allow", "deny", "allow"]);
    assert_eq!(asked(&answers[0]), ["node-a eth0 preDNAT ingress allow"]);
    // By node-b the packet is translated when it comes to node-a.
    assert_eq!(asked(&answers[2]), ["node-a eth0 preDNAT ingress deny"]);
    assert_eq!(answers[2]["host"][0]["name"], "node-ports");
    // The node port's own node is asked, although the pod is elsewhere; both legs are answered all the same.
    assert_eq!(asked(&answers[4]), ["node-a eth0 preDNAT ingress deny"]);
    assert_eq!(answers[4]["ingress"]["verdict"], "allow");
}

#[test]
fn default_host_endpoint_stands_between_pods_and_host() {
    let deny =
        |flags: &str| host_policy("p", &format!("types: [Ingress], {flags}ingress: [{{action: Deny}}]"));
    let probes = [
        tcp("shop/web", "shop/cli", 80),
        tcp("shop/web", "shop/db", 80),
        tcp("shop/web", "host:node-a", 80),
        tcp("shop/web", "ip:203.0.113.7", 80),
        tcp("ip:203.0.113.7", "shop/web", 80),
        tcp("ip:203.0.113.7", "host:node-a", 80),
    ];
    let of = |policy: String| {
        answers(&[hep("a", "node-a", "*", ""), policy], &probes, &["--endpoint-to-host", "accept"])
    };
    let normal = of(deny(""));
    assert_eq!(verdicts(&normal), ["allow", "allow", "allow", "allow", "allow", "deny"]);
    let forward = of(deny("applyOnForward: true, "));
    assert_eq!(verdicts(&forward), ["deny", "deny", "allow", "deny", "deny", "deny"]);
    assert_eq!(asked(&forward[0]), ["node-a pods forward ingress deny"]);
    assert_eq!(asked(&forward[4]), ["node-a * forward ingress deny"]);
    let pre_dnat = of(deny("preDNAT: true, applyOnForward: true, "));
    assert_eq!(verdicts(&pre_dnat), ["deny"; 6]);
    assert_eq!(asked(&pre_dnat[2]), ["node-a pods preDNAT ingress deny"]);
    let both = host_policy(
        "p",
        "types: [Ingress, Egress], applyOnForward: true, ingress: [{action: Allow}], egress: [{action: Pass}]",
    );
    let order = of(both);
    assert_eq!(asked(&order[0]), ["node-a pods forward ingress allow", "node-a pods forward egress noMatch"]);
    assert_eq!(asked(&order[1]), ["node-a pods forward ingress allow", "node-a * forward egress noMatch"]);
}

#[test]
fn interface_is_the_one_asked_for_else_the_one_with_the_address_else_the_only_one() {
    let deny = host_policy("p", "types: [Ingress], applyOnForward: true, ingress: [{action: Deny}]");
    let asked_on = |heps: &[String], probe: Value| {
        let answers = answers(&[heps, std::slice::from_ref(&deny)].concat(), &[probe], &[]);
        answers[0]["host"][0]["interface"].as_str().unwrap_or("-").to_owned()
    };
    let by = |mut probe: Value, interface: &str| {
        probe["interface"] = json!(interface);
        probe
    };
    let host = || tcp("ip:203.0.113.7", "host:node-a", 80);
    let host6 = || tcp("ip:2001:db8:f::1", "host:node-a", 80);
    let pod = || tcp("ip:203.0.113.7", "shop/web", 80);
    let one = [hep("a", "node-a", "eth0", "")];
    let two = [
        hep("a", "node-a", "eth0", ", expectedIPs: [192.0.2.11]"),
        hep("b", "node-a", "eth1", ", expectedIPs: [198.51.100.1, \"2001:db8::11\"]"),
    ];
    let with_default = [&two[..], &[hep("z", "node-a", "*", "")]].concat();
    let by_address = [hep("a", "node-a", "", ", expectedIPs: [192.0.2.11]")];
    for (heps, probe, expected) in [
        (&one[..], host(), "eth0"),
        (&one[..], host6(), "eth0"),
        (&one[..], pod(), "eth0"),
        (&one[..], by(pod(), "eth7"), "-"),
        (&two[..], host(), "eth0"),
        (&two[..], host6(), "eth1"),
        (&two[..], tcp("ip:203.0.113.7", "ip:198.51.100.1", 80), "eth1"),
        (&two[..], pod(), "-"),
        (&two[..], by(pod(), "eth1"), "eth1"),
        (&two[..], by(host(), "eth1"), "eth1"),
        (&with_default[..], pod(), "*"),
        (&with_default[..], by(host(), "eth7"), "*"),
        (&by_address[..], host(), "192.0.2.11"),
        (&by_address[..], host6(), "192.0.2.11"),
    ] {
        assert_eq!(asked_on(heps, probe.clone()), expected, "{probe} {heps:?}");
    }
}

#[test]
fn untracked_policy_judges_the_answer_too() {
    let to = host_policy(
        "in",
        "doNotTrack: true, applyOnForward: true, types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [8055]}}]",
    );
    let back = host_policy(
        "out",
        "doNotTrack: true, applyOnForward: true, types: [Egress], egress: [{action: Allow, protocol: TCP, source: {ports: [8055]}}]",
    );
    let probes = [tcp("ip:203.0.113.7", "host:node-a", 8055), tcp("ip:203.0.113.7", "shop/web", 8055)];
    let hep = hep("a", "node-a", "eth0", "");
    let one_way = answers(&[hep.clone(), to.clone()], &probes, &[]);
    assert_eq!(verdicts(&one_way), ["deny", "deny"]);
    let stages = ["node-a eth0 untracked ingress allow", "node-a eth0 normal egress deny reply"];
    assert_eq!(asked(&one_way[0]), stages);
    assert!(one_way[1]["reason"].as_str().unwrap().starts_with("untracked"));
    let both_ways = answers(&[hep.clone(), to.clone(), back], &probes, &[]);
    assert_eq!(verdicts(&both_ways), ["allow", "deny"]);
    let stages = ["node-a eth0 untracked ingress allow", "node-a eth0 untracked egress allow reply"];
    assert_eq!(asked(&both_ways[0]), stages);
    let unchecked = felix("default", "disableConntrackInvalidCheck: true");
    assert_eq!(verdicts(&answers(&[hep, to, unchecked], &probes, &[])), ["deny", "allow"]);
}

#[test]
fn configuration_says_what_pods_may_do_to_their_host_unless_the_command_line_does() {
    let probes = [tcp("shop/web", "host:node-a", 80), tcp("shop/db", "host:node-b", 80)];
    let of = |manifests: &[String], more: &[&str]| {
        let answers = answers(manifests, &probes, more);
        verdicts(&answers).join(" ")
    };
    let accept = felix("default", "defaultEndpointToHostAction: Accept");
    let drop_on_a = felix("node.node-a", "defaultEndpointToHostAction: Drop");
    let leave_on_a = felix("node.node-a", "defaultEndpointToHostAction: Return");
    for with_host_endpoints in [false, true] {
        let mut manifests = Vec::new();
        if with_host_endpoints {
            manifests.push(hep("a", "node-a", "*", ""));
        }
        assert_eq!(of(&manifests, &[]), "deny deny");
        manifests.push(accept.clone());
        assert_eq!(of(&manifests, &[]), "allow allow");
        assert_eq!(of(&manifests, &["--endpoint-to-host", "drop"]), "deny deny");
        manifests.push(drop_on_a.clone());
        assert_eq!(of(&manifests, &[]), "deny allow");
        assert_eq!(of(&manifests, &["--endpoint-to-host", "accept"]), "allow allow");
        *manifests.last_mut().unwrap() = leave_on_a.clone();
        assert_eq!(of(&manifests, &[]), "allow allow");
    }
}

#[test]
fn failsafe_ports_are_as_configured() {
    let manifests = [
        hep("a", "node-a", "eth0", ""),
        felix(
            "default",
            "failsafeInboundHostPorts: [{protocol: TCP, port: 2222, net: 203.0.113.0/24}], failsafeOutboundHostPorts: []",
        ),
    ];
    let probes = [
        tcp("ip:203.0.113.7", "host:node-a", 2222),
        tcp("ip:198.51.100.7", "host:node-a", 2222),
        tcp("ip:203.0.113.7", "host:node-a", 22),
        tcp("host:node-a", "ip:203.0.113.7", 6443),
    ];
    let answers = answers(&manifests, &probes, &[]);
    assert_eq!(verdicts(&answers), ["allow", "deny", "deny", "deny"]);
    assert_eq!(answers[0]["host"][0]["name"], "tcp:2222");
}

#[test]
fn automatic_host_endpoints_change_nothing_before_a_policy_selects_them() {
    let automatic = "---\napiVersion: projectcalico.org/v3\nkind: KubeControllersConfiguration\nmetadata: {name: default}\n\
                     spec: {controllers: {node: {hostEndpoint: {autoCreate: Enabled}}}}\n";
    let probes = [tcp("host:node-a", "host:node-b", 80), tcp("ip:203.0.113.7", "host:node-a", 80)];
    let open = answers(&[automatic.to_owned()], &probes, &[]);
    assert_eq!(verdicts(&open), ["allow", "allow"]);
    assert_eq!(asked(&open[0]), ["node-a * normal egress allow", "node-b * normal ingress allow"]);
    assert_eq!(open[0]["host"][0]["hostEndpoint"], "node-a-auto-hep");
    let policy = "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: hosts}\n\
                  spec: {selector: \"projectcalico.org/created-by == 'calico-kube-controllers'\", types: [Ingress], \
                  ingress: [{action: Allow, source: {selector: \"projectcalico.org/created-by == 'calico-kube-controllers'\"}}]}\n";
    let closed = answers(&[automatic.to_owned(), policy.to_owned()], &probes, &[]);
    assert_eq!(verdicts(&closed), ["allow", "deny"]);
}

#[test]
fn every_kind_of_policy_meets_in_one_answer() {
    let cluster_policy = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: no-monitoring}\n\
         spec: {tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {team: shop}}}, ingress: [\
         {action: Deny, from: [{namespaces: {matchLabels: {purpose: monitoring}}}]}]}\n";
    let admin_policy = "---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: readers}\n\
         spec: {priority: 20, subject: {namespaces: {matchLabels: {team: shop}}}, ingress: [\
         {action: Allow, from: [{namespaces: {matchLabels: {team: blog}}}]}]}\n";
    let closed = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}\n\
         spec: {podSelector: {}, policyTypes: [Ingress]}\n";
    let forward = host_policy(
        "forward",
        "types: [Ingress], applyOnForward: true, ingress: [{action: Deny, source: {nets: [203.0.113.0/24]}}, {action: Allow}]",
    );
    let manifests = [cluster_policy, admin_policy, closed].map(str::to_owned);
    let manifests = [&manifests[..], &[hep("a", "node-a", "eth0", ""), forward]].concat();
    let probes = [
        tcp("ops/prometheus", "shop/web", 80),
        tcp("blog/front", "shop/web", 80),
        tcp("shop/db", "shop/web", 80),
        tcp("ip:203.0.113.7", "shop/web", 80),
    ];
    let answers = answers(&manifests, &probes, &[]);
    assert_eq!(verdicts(&answers), ["deny", "allow", "deny", "deny"]);
    let kinds: Vec<&Value> = answers.iter().map(|answer| &answer["ingress"]["kind"]).collect();
    assert_eq!(kinds, ["KubernetesClusterNetworkPolicy", "KubernetesAdminNetworkPolicy", "", ""]);
    assert_eq!(asked(&answers[1]), ["node-a eth0 forward ingress allow"]);
    assert_eq!(asked(&answers[3]), ["node-a eth0 forward ingress deny"]);
}

#[test]
fn discovery_of_a_pod_is_answered_by_its_node() {
    let deny = "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: closed}\nspec: {selector: all(), types: [Ingress, Egress]}\n";
    let probe = |kind: u8| json!({"from": "shop/web", "to": "host:node-a", "protocol": "ICMPv6", "icmp": {"type": kind}});
    for manifests in [vec![deny.to_owned()], vec![deny.to_owned(), hep("a", "node-a", "*", "")]] {
        let answers = answers(&manifests, &[probe(135), probe(134), probe(128)], &[]);
        assert_eq!(verdicts(&answers), ["allow", "deny", "deny"]);
        assert!(answers[0]["reason"].as_str().unwrap().starts_with("discovery"));
    }
}

#[test]
fn via_that_does_not_fit_the_packet_is_refused() {
    let with = |mut probe: Value, via: Value| {
        probe["via"] = via;
        format!("{probe}\n")
    };
    let icmp = json!({"from": "shop/web", "to": "shop/db", "protocol": "ICMP"});
    let probes = [
        with(tcp("shop/web", "shop/db", 80), json!({"address": "10.96.0.10"})),
        with(tcp("shop/web", "shop/db", 80), json!({"address": "fd00::1", "port": 80})),
        with(icmp, json!({"address": "10.96.0.10", "port": 80})),
        with(tcp("shop/web", "shop/db", 80), json!({"address": "ten", "port": 80})),
        with(tcp("shop/web", "shop/db", 80), json!({"address": "10.96.0.10", "port": 80})),
    ];
    let output = simulate_text(&[recipes_folder().join("cluster.yaml")], &probes.concat(), &[]);
    let answers = lines(&output.stdout);
    for (answer, words) in answers.iter().zip(["via.port", "families", "via.port", "not a probe"]) {
        assert!(answer["error"].as_str().unwrap().contains(words), "{answer}");
    }
    assert_eq!(answers[4]["verdict"], "allow");
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

/// Host endpoints for the cluster of the recipes: `hep(name, node, interface, rest of the spec)`.
fn hep(name: &str, node: &str, interface: &str, more: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: {name}, labels: {{hep: {name}}}}}\n\
         spec: {{node: {node}, interfaceName: \"{interface}\"{more}}}\n"
    )
}

/// A GlobalNetworkPolicy for host endpoints; `spec` is in flow style.
fn host_policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{selector: has(hep), {spec}}}\n"
    )
}

/// A FelixConfiguration.
fn felix(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

/// The answers of both engines, which have to agree, in the cluster of the recipes with these manifests.
fn answers(manifests: &[String], probes: &[Value], more: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("more.yaml"), manifests.concat()).unwrap();
    let paths = [recipes_folder().join("cluster.yaml"), folder.path().to_owned()];
    let probes: String = probes.iter().map(|probe| format!("{probe}\n")).collect();
    let output = simulate_text(&paths, &probes, &[&["--engine", "both"], more].concat());
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    lines(&output.stdout)
}

fn tcp(from: &str, to: &str, port: u16) -> Value {
    json!({"from": from, "to": to, "protocol": "TCP", "port": port})
}

fn verdicts(answers: &[Value]) -> Vec<&str> {
    answers.iter().map(|answer| answer["verdict"].as_str().unwrap()).collect()
}

/// `node-a eth0 normal ingress deny`, one for each host endpoint that was asked.
fn asked(answer: &Value) -> Vec<String> {
    let stages = answer["host"].as_array().cloned().unwrap_or_default();
    let word = |stage: &Value, key: &str| stage[key].as_str().unwrap().to_owned();
    let one = |stage: &Value| {
        let words = ["node", "interface", "context", "direction", "verdict"].map(|key| word(stage, key));
        let reply = if stage["reply"] == true { " reply" } else { "" };
        format!("{}{reply}", words.join(" "))
    };
    stages.iter().map(one).collect()
}

/// Policy model 27: a leg is judged on the node of its pod, as that node's FelixConfiguration has it.
#[test]
fn pm_27_each_leg_is_judged_as_its_node_reads_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.1.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.0.2.1}]}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  types: [Ingress]
  ingress: [{action: Allow, protocol: TCP, http: {methods: [GET]}}]
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: node.n2}
spec: {allowUnenforcedCriteria: true}
";
    fs::write(folder.path().join("all.yaml"), manifests).unwrap();
    let probes = r#"{"from":"shop/a","to":"shop/b","protocol":"TCP","port":80}
{"from":"shop/b","to":"shop/a","protocol":"TCP","port":80}
"#;
    let output = simulate_text(&[folder.path().to_owned()], probes, &["--lenient", "--engine", "both"]);
    let answers = lines(&output.stdout);
    let verdicts: Vec<&str> = answers.iter().map(|answer| answer["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["allow", "deny"], "{}", text(&output.stderr));
    assert!(output.status.success(), "tables and oracle agree");
}

#[test]
fn pm_14_1_a_denial_that_is_told_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("closed.yaml");
    let felix = "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {iptablesFilterDenyAction: ACTION}\n";
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n";
    let probes = folder.path().join("probes.jsonl");
    fs::write(&probes, "{\"from\":\"blog/front\",\"to\":\"shop/web\",\"protocol\":6,\"port\":8080}\n")
        .unwrap();
    let manifests = [recipes_folder().join("cluster.yaml"), manifest.clone()];
    for (action, told) in [("Drop", Value::Null), ("Reject", json!("Reject"))] {
        fs::write(&manifest, felix.replace("ACTION", action) + policy).unwrap();
        let answers = lines(&simulate(&manifests, &probes, &["--engine", "both"]).stdout);
        assert_eq!((&answers[0]["verdict"], &answers[0]["denyAction"]), (&json!("deny"), &told));
        assert_eq!(answers[0]["oracle"], Value::Null);
        let explained = margay()
            .args(["explain", "--from", "blog/front", "--to", "shop/web", "--port", "8080", "--manifests"])
            .args(&manifests)
            .output()
            .unwrap();
        let explained = text(&explained.stdout);
        let says_so = "deny by the end of tier default, and the sender is told (Reject)";
        assert_eq!(explained.contains(says_so), action == "Reject", "{explained}");
    }
}
