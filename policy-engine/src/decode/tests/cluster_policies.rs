//! Policy model 7.6 and 32.11: policies of `policy.networking.k8s.io`.

use super::*;
use crate::model::{Action, Order, PolicyKind, Rule};

const NS: &str = "projectcalico.org/namespace";
const POD: &str = "projectcalico.org/orchestrator == \"k8s\"";

fn named(version: &str, kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// A ClusterNetworkPolicy of tier Admin with everything but `rest`.
fn cnp(rest: &str) -> String {
    named(
        "v1alpha2",
        "ClusterNetworkPolicy",
        "p",
        &format!("{{tier: Admin, priority: 10, subject: {{namespaces: {{}}}}, {rest}}}"),
    )
}

fn anp(rest: &str) -> String {
    named(
        "v1alpha1",
        "AdminNetworkPolicy",
        "p",
        &format!("{{priority: 10, subject: {{namespaces: {{}}}}, {rest}}}"),
    )
}

fn closed(text: &str) -> std::sync::Arc<Policy> {
    match one(text) {
        Decoded::Invalid { fallback: Some(Object::Policy(policy)), critical: false, .. } => policy,
        other => panic!("{text}\n{other:#?}"),
    }
}

fn canonical(selector: &Option<crate::selector::Selector>) -> &str {
    selector.as_ref().map(crate::selector::Selector::canonical).unwrap_or_default()
}

#[test]
fn pm_7_6_tier_order_and_kind() {
    let rows = [
        (
            named(
                "v1alpha2",
                "ClusterNetworkPolicy",
                "p",
                "{tier: Admin, priority: 0, subject: {namespaces: {}}}",
            ),
            "kube-admin",
            0.0,
            PolicyKind::KubernetesClusterNetworkPolicy,
        ),
        (
            named(
                "v1alpha2",
                "ClusterNetworkPolicy",
                "p",
                "{tier: Baseline, priority: 1000, subject: {namespaces: {}}}",
            ),
            "kube-baseline",
            1000.0,
            PolicyKind::KubernetesClusterNetworkPolicy,
        ),
        (
            named("v1alpha1", "AdminNetworkPolicy", "p", "{priority: 7, subject: {namespaces: {}}}"),
            "adminnetworkpolicy",
            7.0,
            PolicyKind::KubernetesAdminNetworkPolicy,
        ),
        (
            named("v1alpha1", "BaselineAdminNetworkPolicy", "default", "{subject: {namespaces: {}}}"),
            "baselineadminnetworkpolicy",
            0.0,
            PolicyKind::KubernetesBaselineAdminNetworkPolicy,
        ),
    ];
    let tiers = crate::model::Model::with_builtins().tiers;
    for (text, tier, order, kind) in rows {
        let policy = policy(&text);
        assert_eq!((policy.tier.as_str(), policy.order, policy.key.kind), (tier, Order(order), kind));
        assert_eq!(policy.key.namespace, None);
        assert!(!policy.governs_ingress && !policy.governs_egress, "no direction without rules");
        assert!(tiers.contains_key(tier), "{tier}");
    }
    assert_eq!(tiers["adminnetworkpolicy"].order, Order(1_000.0));
    assert_eq!(tiers["baselineadminnetworkpolicy"].order, Order(10_000_000.0));
}

#[test]
fn pm_7_6_withdrawn_without_tier_or_subject() {
    for spec in [
        "{tier: Custom, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
        "{priority: 1, subject: {namespaces: {}}}",
        "{tier: Admin, priority: 1}",
        "{tier: Admin, priority: 1, subject: {}}",
        "{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}}",
    ] {
        let text = named("v1alpha2", "ClusterNetworkPolicy", "p", spec);
        assert!(matches!(one(&text), Decoded::Invalid { fallback: None, critical: true, .. }), "{spec}");
    }
}

#[test]
fn pm_7_6_subject_selects_pods_only() {
    let rows = [
        ("{namespaces: {}}", format!("({POD} && has({NS}))")),
        ("{namespaces: {matchLabels: {env: prod}}}", format!("({POD} && pcns.env == \"prod\")")),
        (
            "{pods: {namespaceSelector: {matchLabels: {env: prod}}, podSelector: {matchLabels: {app: web}}}}",
            format!("(({POD} && app == \"web\") && pcns.env == \"prod\")"),
        ),
    ];
    for (subject, expected) in rows {
        let text = named(
            "v1alpha2",
            "ClusterNetworkPolicy",
            "p",
            &format!("{{tier: Admin, priority: 1, subject: {subject}}}"),
        );
        assert_eq!(canonical(&policy(&text).selector), expected, "{subject}");
    }
    check(
        &named(
            "v1alpha2",
            "ClusterNetworkPolicy",
            "p",
            "{tier: Admin, priority: 1, subject: {pods: {podSelector: {}}}}",
        ),
        false,
    );
}

#[test]
fn pm_7_6_actions_and_rule_names() {
    for (text, action) in [("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)] {
        let policy = policy(&cnp(&format!(
            "ingress: [{{name: first, action: {text}, from: [{{namespaces: {{}}}}]}}]"
        )));
        assert_eq!(policy.ingress[0].action, action);
        assert_eq!(policy.ingress[0].annotations["name"], "first");
        assert!(policy.governs_ingress && !policy.governs_egress);
    }
    check(&anp("ingress: [{action: Allow, from: [{namespaces: {}}]}]"), true);
    check(&anp("ingress: [{action: Pass, from: [{namespaces: {}}]}]"), true);
    check(&anp("ingress: [{action: Accept, from: [{namespaces: {}}]}]"), false);
    check(&cnp("ingress: [{action: Allow, from: [{namespaces: {}}]}]"), false);
    let baseline = |action: &str| {
        let rule = format!(
            "{{subject: {{namespaces: {{}}}}, egress: [{{action: {action}, to: [{{namespaces: {{}}}}]}}]}}"
        );
        named("v1alpha1", "BaselineAdminNetworkPolicy", "default", &rule)
    };
    check(&baseline("Allow"), true);
    check(&baseline("Deny"), true);
    check(&baseline("Pass"), false);
    check(&named("v1alpha1", "BaselineAdminNetworkPolicy", "other", "{subject: {namespaces: {}}}"), false);
    check(
        &cnp(&format!(
            "ingress: [{{name: {}, action: Deny, from: [{{namespaces: {{}}}}]}}]",
            "n".repeat(101)
        )),
        false,
    );
}

#[test]
fn pm_7_6_failed_rules_close() {
    let deny_all = |rule: &Rule| {
        let mut bare = rule.clone();
        bare.annotations.clear();
        bare == Rule::everything(Action::Deny)
    };
    for broken in [
        "to: [{}]",
        "to: []",
        "to: [{future: {}}]",
        "to: [{namespaces: {}, networks: [10.0.0.0/8]}]",
        "to: [{networks: [nonsense]}]",
        "to: [{networks: []}]",
        "to: [{namespaces: {sameLabels: [tenant]}}]",
        "to: [{pods: {podSelector: {}}}]",
        "to: [{domainNames: ['*.*.x.com']}]",
        "to: [{namespaces: {}}], protocols: [{icmp: {}}]",
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]",
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]",
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 8}}}}]",
        "to: [{namespaces: {}}], protocols: [{tcp: {}, udp: {}}]",
        "to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]",
    ] {
        let rules = |action: &str| {
            format!(
                "egress: [{{action: {action}, name: n, {broken}}}, {{action: Deny, to: [{{nodes: {{}}}}]}}]"
            )
        };
        for action in ["Deny", "Pass", "Perhaps"] {
            let policy = closed(&cnp(&rules(action)));
            assert_eq!(policy.egress.len(), 2, "{action} {broken}");
            assert!(deny_all(&policy.egress[0]), "{action} {broken}");
            assert_eq!(policy.egress[0].annotations["name"], "n");
            assert!(policy.egress[1].destination.nodes.is_some(), "the other rule stays");
        }
        let policy = closed(&cnp(&rules("Accept")));
        assert_eq!(policy.egress.len(), 1, "{broken}");
        assert!(policy.governs_egress && !policy.governs_ingress);
    }
    let policy = closed(&cnp("ingress: [{action: Accept, from: [{}]}]"));
    assert!(!policy.governs_ingress, "a direction without resulting rule is not governed");
    let policy = closed(&cnp("ingress: [{action: Pass, from: [{networks: [10.0.0.0/8]}]}]"));
    assert!(deny_all(&policy.ingress[0]), "networks are for egress");
}

#[test]
fn pm_4_1_cluster_policy_that_is_wrong_outside_its_rules_denies() {
    let rest = "subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]";
    for priority in ["priority: 1001", "priority: -1", "priority: high", "x: 1"] {
        let text =
            named("v1alpha2", "ClusterNetworkPolicy", "p", &format!("{{tier: Admin, {priority}, {rest}}}"));
        let policy = closed(&text);
        assert_eq!(policy.ingress, [Rule::everything(Action::Deny)], "{priority}");
        assert!(!policy.governs_egress);
    }
    let policy = closed(&cnp("ingress: {action: Accept}"));
    assert!(policy.governs_ingress && policy.ingress == [Rule::everything(Action::Deny)]);
    let bad =
        "{tier: Admin, priority: 1, subject: {namespaces: {matchExpressions: [{key: k, operator: in}]}}}";
    let Decoded::Invalid { fallback: Some(Object::Policy(policy)), critical: true, .. } =
        one(&named("v1alpha2", "ClusterNetworkPolicy", "p", bad))
    else {
        panic!("{bad}")
    };
    assert_eq!(policy.selector, None);
}

#[test]
fn pm_7_6_peers() {
    let egress = "egress: [{action: Accept, to: [{namespaces: {matchLabels: {env: prod}}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}, {networks: [10.1.2.3/8, 'fd00::/8', 192.0.2.0/24]}, {nodes: {matchLabels: {zone: a}}}, {domainNames: [Example.COM., '*.example.org']}]}]";
    let found = policy(&cnp(egress));
    let peers: Vec<_> = found.egress.iter().map(|rule| &rule.destination).collect();
    assert_eq!(peers.len(), 6);
    assert_eq!(canonical(&peers[0].selector), format!("(pcns.env == \"prod\" && {POD})"));
    assert_eq!(canonical(&peers[1].selector), format!("(has({NS}) && ({POD} && app == \"web\"))"));
    assert_eq!(peers[2].nets, ["10.0.0.0/8".parse().unwrap(), "192.0.2.0/24".parse().unwrap()]);
    assert_eq!(peers[3].nets, ["fd00::/8".parse().unwrap()]);
    assert_eq!(canonical(&peers[4].nodes), "zone == \"a\"");
    assert_eq!(peers[5].domains, ["example.com", "*.example.org"]);
    assert_eq!(found.egress[5].unenforced, [Unenforced::Domains]);
    assert!(peers[0].written.is_some() && peers[2].written.is_none());
    check(&cnp("egress: [{action: Deny, to: [{domainNames: [example.com]}]}]"), false);
    check(&cnp("ingress: [{action: Deny, from: [{nodes: {}}]}]"), false);
}

#[test]
fn pm_7_6_protocols() {
    let rule = |protocols: &str| {
        policy(&cnp(&format!(
            "ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], protocols: {protocols}}}]"
        )))
    };
    let shape = |policy: &Policy| -> Vec<_> {
        policy.ingress.iter().map(|rule| (rule.protocol, rule.destination.ports.clone())).collect()
    };
    let name = |text: &str| PortMatch::Named(text.to_owned());
    let rows = [
        ("[]", vec![(None, vec![])]),
        ("[{tcp: {destinationPort: {range: {start: 7, end: 7}}}}]", vec![(Some(6), vec![range(7, 7)])]),
        ("[{tcp: {destinationPort: {number: 80}}}]", vec![(Some(6), vec![range(80, 80)])]),
        ("[{tcp: {}}, {tcp: {destinationPort: {number: 80}}}]", vec![(Some(6), vec![])]),
        (
            "[{udp: {destinationPort: {range: {start: 1, end: 5}}}}, {sctp: {}}]",
            vec![(Some(17), vec![range(1, 5)]), (Some(132), vec![])],
        ),
        (
            "[{destinationNamedPort: http}, {tcp: {destinationPort: {number: 1}}}]",
            vec![(None, vec![name("http")]), (Some(6), vec![range(1, 1)])],
        ),
    ];
    for (protocols, expected) in rows {
        assert_eq!(shape(&rule(protocols)), expected, "{protocols}");
    }
    let old = policy(&anp(
        "ingress: [{action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {protocol: UDP, port: 53}}, {portRange: {start: 1, end: 5}}, {namedPort: http}]}]",
    ));
    assert_eq!(
        shape(&old),
        [(None, vec![name("http")]), (Some(6), vec![range(1, 5)]), (Some(17), vec![range(53, 53)])]
    );
    for bad in [
        "{portNumber: {port: 0}}",
        "{portNumber: {protocol: ICMP, port: 1}}",
        "{portRange: {start: 5, end: 1}}",
        "{namedPort: '80'}",
        "{}",
    ] {
        check(
            &anp(&format!("ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], ports: [{bad}]}}]")),
            false,
        );
    }
}

#[test]
fn pm_7_6_versions_are_told_apart() {
    check(&named("v1alpha1", "ClusterNetworkPolicy", "p", "{}"), false);
    check(&named("v1alpha2", "AdminNetworkPolicy", "p", "{}"), false);
    check(&named("v1alpha2", "ClusterNetworkPolice", "p", "{}"), false);
}
