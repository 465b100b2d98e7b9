//! Policy model 2: limits, scalars and the values that fields become.

use super::*;
use crate::model::{
    DenyAction, HeaderOperator, HostEndpoint, HttpMatch, NetworkSet, Order, PathMatch, Profile, StagedAction,
    Tier, TierDefault,
};

fn object(text: &str) -> Object {
    match one(text) {
        Decoded::Valid { object, .. } => object,
        other => panic!("{text}\n{other:#?}"),
    }
}

fn list(item: &str, count: usize) -> String {
    format!("[{}]", vec![item; count].join(", "))
}

/// One ingress rule that allows what `rule` says.
fn allow(rule: &str) -> String {
    np(&format!("{{ingress: [{{action: Allow, {rule}}}]}}"))
}

#[test]
fn pm_2_1_limits() {
    let allow_all = "{action: Allow}";
    for direction in ["ingress", "egress"] {
        check(&np(&format!("{{{direction}: {}}}", list(allow_all, 1024))), true);
        check(&np(&format!("{{{direction}: {}}}", list(allow_all, 1025))), false);
    }
    let selector = |length: usize| format!("a == '{}'", "v".repeat(length - "a == ''".len()));
    for field in ["selector", "serviceAccountSelector"] {
        check(&np(&format!("{{{field}: \"{}\"}}", selector(1024))), true);
        check(&np(&format!("{{{field}: \"{}\"}}", selector(1025))), false);
    }
    check(&gnp(&format!("{{namespaceSelector: \"{}\"}}", selector(1025))), false);
    for (order, value) in [("-3", -3.0), ("0.5", 0.5), ("1e3", 1000.0)] {
        assert_eq!(policy(&np(&format!("{{order: {order}}}"))).order, Order(value));
    }
    assert_eq!(policy(&np("{}")).order, Order(f64::INFINITY), "absent is last");
    check(&np("{order: '5'}"), false);
    check(&np("{order: .inf}"), false);
    assert_eq!(policy(&np("{tier: ''}")).tier, "default");
    assert_eq!(policy(&np("{tier: security}")).tier, "security");
}

#[test]
fn pm_2_3_tiers() {
    let tier = |name: &str, spec: &str| match object(&calico("Tier", name, spec)) {
        Object::Tier(tier) => Tier::clone(&tier),
        other => panic!("{other:?}"),
    };
    for (name, order, action) in [
        ("kube-admin", 1_000.0, TierDefault::Pass),
        ("default", 1_000_000.0, TierDefault::Deny),
        ("kube-baseline", 10_000_000.0, TierDefault::Pass),
        ("adminnetworkpolicy", 1_000.0, TierDefault::Pass),
        ("baselineadminnetworkpolicy", 10_000_000.0, TierDefault::Pass),
    ] {
        let found = tier(name, "{}");
        assert_eq!((found.order, found.default_action), (Order(order), action), "{name}");
        assert_eq!(crate::model::Model::with_builtins().tiers[name].as_ref(), &found);
        check(&calico("Tier", name, &format!("{{order: {}}}", order + 1.0)), false);
        check(&calico("Tier", name, &format!("{{order: {order}, defaultAction: {action:?}}}")), true);
    }
    let found = tier("mine", "{order: 5, defaultAction: Allow}");
    assert_eq!((found.order, found.default_action), (Order(5.0), TierDefault::Allow), "PM-32.5");
    check(&calico("Tier", "mine", "{defaultAction: Drop}"), false);
    check(&calico("Tier", "mine", "{defaultAction: deny}"), false);
}

#[test]
fn pm_3_3_tier_defaults() {
    let Object::Tier(found) = object(&calico("Tier", "mine", "{}")) else { panic!() };
    assert_eq!((found.order, found.default_action), (Order(1_000_000.0), TierDefault::Deny));
}

#[test]
fn pm_2_4_network_sets() {
    let set = |kind: &str, spec: &str| match object(&calico(kind, "s", spec)) {
        Object::NetworkSet(set) => NetworkSet::clone(&set),
        other => panic!("{other:?}"),
    };
    let found = set("NetworkSet", "{nets: [10.1.2.3/8, 192.0.2.7, 'fd00::5/16', 'fd00::9']}");
    let nets: Vec<_> = found.nets.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/16", "fd00::9/128"]);
    assert_eq!(found.labels["projectcalico.org/namespace"], "a");
    assert!(set("GlobalNetworkSet", "{}").labels.is_empty());
    check(&calico("NetworkSet", "s", "{nets: [10.0.0.0/33]}"), false);
    check(&calico("NetworkSet", "s", "{nets: ['::ffff:10.0.0.1']}"), false);
    check(&calico("NetworkSet", "s", "{nets: [host]}"), false);
    let found = set(
        "GlobalNetworkSet",
        "{allowedEgressDomains: [API.Example.com., '*.example.org', api.example.com]}",
    );
    assert_eq!(found.domains, ["api.example.com", "*.example.org"]);
    check(&calico("GlobalNetworkSet", "s", "{allowedEgressDomains: ['*.*.x.com']}"), false);
}

#[test]
fn pm_23_2_domain_patterns() {
    let domains = |text: &str| format!("{{egress: [{{action: Allow, destination: {{domains: [{text}]}}}}]}}");
    for good in [
        "microsoft.com",
        "'*.google.com'",
        "www.*.com",
        "update.*.mycompany.com",
        "WWW.Example.COM.",
        "localhost",
        "_srv.example.com",
    ] {
        check(&np(&domains(good)), true);
    }
    for bad in [
        "'*.*.x.com'",
        "'www.g*.com'",
        "'www.mycompany.*'",
        "'*'",
        "'/re.*/'",
        "''",
        "a..b",
        "'-a.com'",
        "'a b.com'",
        "https://a.com",
    ] {
        check(&np(&domains(bad)), false);
    }
    let long = format!("{}abc", "a.".repeat(125));
    assert_eq!(long.len(), 253);
    check(&np(&domains(&long)), true);
    check(&np(&domains(&format!("{long}d"))), false);
    check(&np(&domains(&"a".repeat(63))), true);
    check(&np(&domains(&"a".repeat(64))), false);
    let found = policy(&np(&domains("WWW.Example.COM., '*.x.org'")));
    assert_eq!(found.egress[0].destination.domains, ["www.example.com", "*.x.org"]);
    assert_eq!(found.egress[0].unenforced, [Unenforced::Domains]);
    for (rule, accept) in [
        ("egress: [{action: Allow, protocol: TCP, destination: {domains: [a.b], ports: [443]}}]", true),
        ("egress: [{action: Deny, destination: {domains: [a.b]}}]", false),
        ("egress: [{action: Allow, destination: {domains: [a.b], nets: [10.0.0.0/8]}}]", false),
        ("egress: [{action: Allow, destination: {domains: [a.b], selector: all()}}]", false),
        ("egress: [{action: Allow, source: {domains: [a.b]}}]", false),
        ("ingress: [{action: Allow, destination: {domains: [a.b]}}]", false),
        ("ingress: [{action: Allow, source: {domains: [a.b]}}]", false),
    ] {
        check(&np(&format!("{{{rule}}}")), accept);
    }
}

#[test]
fn pm_2_5_host_endpoints() {
    let rows = [
        ("{node: n, interfaceName: eth0}", true),
        ("{node: n, interfaceName: a-name_of.15chr}", true),
        ("{node: n, interfaceName: a-name_of.16char}", false),
        ("{node: n, interfaceName: 'eth 0'}", false),
        ("{node: n, interfaceName: '**'}", false),
        ("{node: n, interfaceName: '', expectedIPs: ['fd00::1']}", true),
        ("{node: n, interfaceName: '', expectedIPs: []}", false),
        ("{node: n, interfaceName: e, expectedIPs: [10.0.0.0/24]}", false),
        ("{node: '', interfaceName: e}", false),
        ("{node: n, interfaceName: e, ports: [{name: x, protocol: TCP, port: 0}]}", false),
        ("{node: n, interfaceName: e, ports: [{name: x, protocol: tcp, port: 1}]}", false),
        ("{node: n, interfaceName: e, ports: [{name: x, port: 1}]}", false),
    ];
    for (spec, accept) in rows {
        check(&calico("HostEndpoint", "h", spec), accept);
    }
    let spec = "{node: n, interfaceName: e, expectedIPs: [10.0.0.1], profiles: [p, q], ports: [{name: x, protocol: UDP, port: 53}]}";
    let Decoded::Valid { object: Object::HostEndpoint(found), warnings, .. } =
        one(&calico("HostEndpoint", "h", spec))
    else {
        panic!()
    };
    let HostEndpoint { node, interface_name, profiles, ports, .. } = &*found;
    assert_eq!((node.as_str(), interface_name.as_str(), profiles.len()), ("n", "e", 2));
    assert_eq!((ports[0].name.as_str(), ports[0].protocol, ports[0].port), ("x", 17, 53));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn pm_2_6_and_3_4_staged_actions() {
    for kind in ["StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy"] {
        for (spec, action) in [
            ("{}", StagedAction::Set),
            ("{stagedAction: ''}", StagedAction::Set),
            ("{stagedAction: Set}", StagedAction::Set),
            ("{stagedAction: Delete}", StagedAction::Delete),
            ("{stagedAction: Learn}", StagedAction::Learn),
            ("{stagedAction: Ignore}", StagedAction::Ignore),
        ] {
            let found = policy(&calico(kind, "p", spec));
            assert_eq!((found.staged, found.tier.as_str()), (Some(action), "default"), "{kind} {spec}");
        }
        check(&calico(kind, "p", "{stagedAction: set}"), false);
    }
    for other in
        ["order: 1", "types: [Ingress]", "ingress: [{action: Allow}]", "serviceAccountSelector: all()"]
    {
        check(&calico("StagedNetworkPolicy", "p", &format!("{{stagedAction: Delete, {other}}}")), false);
    }
    check(
        &calico("StagedKubernetesNetworkPolicy", "p", "{stagedAction: Delete, policyTypes: [Ingress]}"),
        false,
    );
}

#[test]
fn pm_2_7_profiles() {
    let Object::Profile(found) = object(&calico(
        "Profile",
        "p",
        "{ingress: [{action: Deny}], egress: [{action: Allow}, {action: Log}], labelsToApply: {a: b}}",
    )) else {
        panic!()
    };
    let Profile { ingress, egress, labels, .. } = &*found;
    assert_eq!((ingress.len(), egress.len(), labels["a"].as_str()), (1, 2, "b"));
    check(&calico("Profile", "projectcalico-default-allow", "{}"), false);
    check(&calico("Profile", "p", "{labelsToApply: {'a b': c}}"), false);
}

#[test]
fn pm_2_9_limits() {
    for (field, item, most) in [
        ("nets", "10.0.0.0/8", 256),
        ("notNets", "10.0.0.0/8", 256),
        ("ports", "80", 50),
        ("notPorts", "80", 50),
    ] {
        check(&allow(&format!("protocol: TCP, destination: {{{field}: {}}}", list(item, most))), true);
        check(&allow(&format!("protocol: TCP, destination: {{{field}: {}}}", list(item, most + 1))), false);
    }
    let long = format!("a == '{}'", "v".repeat(1018));
    for field in ["selector", "notSelector", "namespaceSelector"] {
        check(&allow(&format!("source: {{{field}: \"{long}\"}}")), false);
        check(&allow(&format!("source: {{{field}: \"has(a)\"}}")), true);
    }
    check(&allow("source: {serviceAccounts: {names: [a.b]}}"), true);
    check(&allow("source: {serviceAccounts: {names: [A]}}"), false);
    check(&allow("source: {serviceAccounts: {selector: 'global()'}}"), false);
}

#[test]
fn pm_2_10_protocols() {
    for (text, number) in [
        ("TCP", 6),
        ("UDP", 17),
        ("ICMP", 1),
        ("ICMPv6", 58),
        ("SCTP", 132),
        ("UDPLite", 136),
        ("1", 1),
        ("255", 255),
        ("'1'", 1),
        ("'255'", 255),
    ] {
        let found = policy(&allow(&format!("protocol: {text}")));
        assert_eq!(found.ingress[0].protocol, Some(number), "{text}");
        let found = policy(&allow(&format!("notProtocol: {text}")));
        assert_eq!(found.ingress[0].not_protocol, Some(number), "{text}");
    }
    for text in ["tcp", "Tcp", "icmpv6", "0", "256", "-1", "6.5", "'06'", "'256'", "''", "true", "[TCP]"] {
        check(&allow(&format!("protocol: {text}")), false);
    }
}

#[test]
fn pm_2_10_ports() {
    let name = |text: &str| PortMatch::Named(text.to_owned());
    for (text, port) in [
        ("1", range(1, 1)),
        ("65535", range(65535, 65535)),
        ("'80'", range(80, 80)),
        ("'1:65535'", range(1, 65535)),
        ("'80:80'", range(80, 80)),
        ("http", name("http")),
        ("a_b.C-9", name("a_b.C-9")),
    ] {
        let found = policy(&allow(&format!("protocol: TCP, destination: {{ports: [{text}]}}")));
        assert_eq!(found.ingress[0].destination.ports, [port], "{text}");
    }
    check(&allow(&format!("protocol: TCP, destination: {{ports: [{}]}}", "n".repeat(128))), true);
    let long = "n".repeat(129);
    for text in [
        "0",
        "65536",
        "-1",
        "'0:9'",
        "'9:8'",
        "'1:65536'",
        "'1:2:3'",
        "'a:b'",
        "''",
        "'a b'",
        "1.5",
        "'65536'",
        long.as_str(),
    ] {
        check(&allow(&format!("protocol: TCP, destination: {{ports: [{text}]}}")), false);
    }
}

#[test]
fn pm_2_10_icmp() {
    for (text, accept) in [
        ("{type: 0}", true),
        ("{type: 254}", true),
        ("{type: 255}", false),
        ("{type: -1}", false),
        ("{type: 8, code: 0}", true),
        ("{type: 8, code: 255}", true),
        ("{type: 8, code: 256}", false),
        ("{code: 1}", false),
        ("{type: '8'}", false),
    ] {
        check(&allow(&format!("protocol: ICMP, icmp: {text}")), accept);
        check(&allow(&format!("protocol: 1, notICMP: {text}")), accept);
    }
}

#[test]
fn pm_2_11_services() {
    let egress = |kind: fn(&str) -> String, service: &str| {
        kind(&format!("{{egress: [{{action: Allow, destination: {{services: {service}}}}}]}}"))
    };
    let found = policy(&egress(np, "{name: s}"));
    let service = found.egress[0].destination.service.as_ref().unwrap();
    assert_eq!((service.namespace.as_str(), service.name.as_str()), ("a", "s"), "PM-D14");
    let found = policy(&egress(np, "{name: s, namespace: other}"));
    assert_eq!(found.egress[0].destination.service.as_ref().unwrap().namespace, "other");
    check(&egress(np, "{namespace: n}"), false);
    check(&egress(np, "{name: ''}"), false);
    check(&egress(gnp, "{name: s}"), false);
    check(&egress(gnp, "{name: s, namespace: n}"), true);
}

#[test]
fn pm_2_12_and_18_8_http() {
    let http = |text: &str| allow(&format!("http: {text}"));
    let numbered = |count: usize| (0..count).map(|n| format!("M{n}")).collect::<Vec<_>>().join(", ");
    check(&http(&format!("{{methods: [{}]}}", numbered(20))), true);
    check(&http(&format!("{{methods: [{}]}}", numbered(21))), false);
    check(&http(&format!("{{paths: {}}}", list("{exact: /}", 20))), true);
    check(&http(&format!("{{paths: {}}}", list("{exact: /}", 21))), false);
    let rows = [
        ("{methods: ['*']}", true),
        ("{methods: [get, HEAD]}", true),
        ("{methods: ['']}", false),
        ("{methods: ['GET /']}", false),
        ("{paths: [{exact: foo}]}", false),
        ("{paths: [{prefix: ''}]}", false),
        ("{headers: [{header: X-Tenant, operator: Exists}]}", true),
        ("{headers: [{header: X-Tenant, operator: DoesNotExist, values: [x]}]}", true),
        ("{headers: [{header: X-Tenant, operator: In, values: [a, b]}]}", true),
        ("{headers: [{header: X-Tenant, operator: NotIn, values: [a]}]}", true),
        ("{headers: [{header: X-Tenant, operator: HasPrefix, values: [a]}]}", true),
        ("{headers: [{header: X-Tenant, operator: HasSuffix, values: [a]}]}", true),
        ("{headers: [{header: X-Tenant, operator: MatchesRegex, values: ['a.*']}]}", true),
        ("{headers: [{header: X-Tenant, operator: In}]}", false),
        ("{headers: [{header: X-Tenant, operator: in, values: [a]}]}", false),
        ("{headers: [{header: X-Tenant}]}", false),
        ("{headers: [{operator: Exists}]}", false),
        ("{headers: [{header: 'X Tenant', operator: Exists}]}", false),
        ("{headers: [{header: X-Tenant, operator: MatchesRegex, values: ['(']}]}", false),
        ("{headers: [{header: X-Tenant, operator: MatchesRegex, values: ['a)|(b']}]}", false),
        ("{headers: [{header: X-Tenant, operator: In, values: [1]}]}", false),
    ];
    for (text, accept) in rows {
        check(&http(text), accept);
    }
    let found = policy(&http(
        "{methods: [GET], paths: [{exact: /a}, {prefix: /b}], headers: [{header: X-Tenant, operator: Exists, values: [ignored]}, {header: b, operator: In, values: [V]}]}",
    ));
    let HttpMatch { methods, paths, headers } = found.ingress[0].http.as_deref().unwrap();
    assert_eq!(methods, &["GET"]);
    assert_eq!(paths, &[PathMatch::Exact("/a".to_owned()), PathMatch::Prefix("/b".to_owned())]);
    assert_eq!((headers[0].name.as_str(), headers[0].operator), ("x-tenant", HeaderOperator::Exists));
    assert!(headers[0].values.is_empty() && headers[1].values == ["V"]);
    assert_eq!(found.ingress[0].unenforced, [Unenforced::Http], "PM-D15");
}

#[test]
fn pm_18_3_the_peer_as_written_goes_along() {
    let written = |rule: &str| policy(&allow(rule)).ingress[0].source.written.clone();
    assert_eq!(written("source: {nets: [10.0.0.0/8], ports: [http]}"), None);
    let found = written("source: {notSelector: has(a), namespaceSelector: has(b), serviceAccounts: {names: [s], selector: has(c)}}").unwrap();
    assert_eq!(found.policy_namespace.as_deref(), Some("a"));
    assert_eq!(found.not_selector.as_ref().unwrap().canonical(), "has(a)");
    assert_eq!(found.namespace_selector.as_ref().unwrap().canonical(), "has(b)", "without prefix");
    assert_eq!(found.service_account_names, ["s"]);
    assert_eq!(found.service_account_selector.as_ref().unwrap().canonical(), "has(c)");
    let global = policy(&gnp("{egress: [{action: Allow, destination: {selector: has(a)}}]}"));
    let found = global.egress[0].destination.written.clone().unwrap();
    assert_eq!(
        (found.policy_namespace.as_deref(), found.selector.as_ref().unwrap().canonical()),
        (None, "has(a)")
    );
    let kubernetes = policy(&knp("{ingress: [{from: [{podSelector: {matchLabels: {k: v}}}]}]}"));
    assert!(kubernetes.ingress[0].source.written.is_some());
}

#[test]
fn pm_32_9_every_kind_of_policy_can_ask_that_whom_it_denies_is_told() {
    let kinds = [
        ("networking.k8s.io/v1", "NetworkPolicy", "{podSelector: {}}"),
        ("projectcalico.org/v3", "NetworkPolicy", "{selector: all()}"),
        ("projectcalico.org/v3", "GlobalNetworkPolicy", "{selector: all()}"),
        (
            "policy.networking.k8s.io/v1alpha2",
            "ClusterNetworkPolicy",
            "{tier: Admin, priority: 1, subject: {namespaces: {}}}",
        ),
    ];
    for (version, kind, spec) in kinds {
        let written = |annotation: &str| {
            let namespace = if kind == "NetworkPolicy" { ", namespace: a" } else { "" };
            format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p{namespace}, annotations: {{{annotation}}}}}\nspec: {spec}\n"
            )
        };
        let said = |annotation| policy(&written(annotation)).flags.deny_action;
        assert_eq!(said("margay/deny-action: Reject"), Some(DenyAction::Reject), "{kind}");
        assert_eq!(said("margay/deny-action: Drop"), Some(DenyAction::Drop), "{kind}");
        assert_eq!(said(""), None, "{kind}: left to the configuration");
        let odd = written("margay/deny-action: reject");
        assert_eq!(policy(&odd).flags.deny_action, None, "{kind}: no word of ours");
        let Decoded::Valid { warnings, .. } = one(&odd) else { panic!("valid") };
        assert!(
            warnings.iter().any(|w| w.field == "metadata.annotations.margay/deny-action"),
            "{warnings:?}"
        );
    }
}
