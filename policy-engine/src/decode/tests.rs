//! The tables of policy model 4, 6 and 7, by section, and what must hold for every input.

use proptest::prelude::*;

use super::*;
use crate::model::{Labels, Pod, Policy, PortMatch, Unenforced};

fn one(text: &str) -> Decoded {
    let mut all = decode(text, "test.yaml");
    assert_eq!(all.len(), 1, "{text}\n{all:?}");
    all.remove(0)
}

fn errors(text: &str) -> Vec<FieldError> {
    match one(text) {
        Decoded::Valid { .. } => Vec::new(),
        Decoded::Invalid { errors, .. } | Decoded::Unreadable { errors, .. } => errors,
        Decoded::Ignored { kind, .. } => panic!("{kind} is passed over: {text}"),
    }
}

fn check(text: &str, accept: bool) {
    let errors = errors(text);
    assert_eq!(errors.is_empty(), accept, "{text}\n{errors:#?}");
}

fn policy(text: &str) -> std::sync::Arc<Policy> {
    match one(text) {
        Decoded::Valid { object: Object::Policy(policy), .. } => policy,
        other => panic!("{text}\n{other:#?}"),
    }
}

fn pod(text: &str) -> std::sync::Arc<Pod> {
    match one(text) {
        Decoded::Valid { object: Object::Pod(pod), .. } => pod,
        other => panic!("{text}\n{other:#?}"),
    }
}

fn calico(kind: &str, name: &str, spec: &str) -> String {
    let meta = if kind.contains("Global") || matches!(kind, "Tier" | "HostEndpoint" | "Profile") {
        ""
    } else {
        ", namespace: a"
    };
    format!(
        "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}{meta}}}\nspec: {spec}\n"
    )
}

fn gnp(spec: &str) -> String {
    calico("GlobalNetworkPolicy", "p", spec)
}

fn np(spec: &str) -> String {
    calico("NetworkPolicy", "p", spec)
}

fn knp(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {spec}\n"
    )
}

#[test]
fn pm_4_2_names() {
    let rows = [
        ("NetworkPolicy", "thing".to_owned(), true),
        ("NetworkPolicy", "th.ing".to_owned(), true),
        ("NetworkPolicy", "t.h.i.ng".to_owned(), false),
        ("NetworkPolicy", "knp.default.x.y".to_owned(), true),
        ("NetworkPolicy", "a".repeat(253), true),
        ("NetworkPolicy", "a".repeat(254), false),
        ("GlobalNetworkPolicy", "thing".to_owned(), true),
        ("GlobalNetworkPolicy", "tHiNg".to_owned(), false),
        ("GlobalNetworkPolicy", "t~!s.h.i.ng".to_owned(), false),
        ("GlobalNetworkPolicy", "knp.default.thing".to_owned(), false),
        ("GlobalNetworkPolicy", "t.h.i.ng".to_owned(), false),
        ("Tier", "foo".to_owned(), true),
        ("Tier", "fo-o".to_owned(), true),
        ("Tier", "fo.o".to_owned(), false),
        ("Tier", "a".repeat(63), true),
        ("Tier", "a".repeat(64), false),
        ("NetworkSet", "Upper".to_owned(), false),
    ];
    for (kind, name, accept) in rows {
        check(&calico(kind, &format!("'{name}'"), "{}"), accept);
    }
}

#[test]
fn pm_4_4_rules() {
    let rows = [
        ("protocol: SCTP", true),
        ("protocol: 6, source: {ports: ['1:65535']}", true),
        ("protocol: 6, source: {ports: [foo]}", true),
        ("protocol: TCP, source: {ports: [foo]}", true),
        ("protocol: UDP, source: {ports: [foo]}", true),
        ("protocol: 7, source: {ports: []}", true),
        ("protocol: 17, source: {notPorts: [1]}", true),
        ("protocol: 100, source: {notPorts: []}", true),
        ("protocol: TCP, destination: {ports: [1]}", true),
        ("destination: {ports: [1]}", false),
        ("destination: {ports: [foo]}", true),
        ("source: {notPorts: [foo]}", true),
        ("protocol: TCP, source: {ports: [0]}", false),
        ("protocol: TCP, source: {ports: [{name: foo, port: 1}]}", false),
        ("protocol: 7, source: {ports: [foo]}", false),
        ("protocol: ICMPv6, destination: {notPorts: []}", true),
        ("icmp: {type: 8}", false),
        ("protocol: ICMP, icmp: {type: 8, code: 0}", true),
        ("protocol: ICMPv6, icmp: {type: 128}", true),
        ("protocol: ICMP, icmp: {code: 0}", false),
        ("protocol: ICMP, icmp: {type: 255}", false),
        ("protocol: ICMP, ipVersion: 6", false),
        ("protocol: ICMPv6, ipVersion: 4", false),
        ("notProtocol: ICMP, ipVersion: 6", false),
        ("protocol: ICMP, ipVersion: 4", true),
        ("protocol: ICMPv6, ipVersion: 6", true),
        ("ipVersion: 0", false),
        ("protocol: 7, source: {ports: [1]}", false),
        ("protocol: 100, source: {notPorts: [1]}", false),
        ("protocol: UDPLite, source: {ports: [1]}", false),
        ("protocol: SCTP, destination: {ports: [1]}", true),
        ("protocol: UDP, destination: {notPorts: [0]}", false),
        ("protocol: TCP, destination: {ports: ['0:5']}", false),
        ("protocol: TCP, destination: {ports: ['5:4']}", false),
        ("protocol: TCP, destination: {ports: [0100]}", false),
        ("protocol: tcp", false),
        ("protocol: '6'", true),
        ("protocol: 0", false),
        ("source: {nets: [10.0.0.0/8]}, destination: {nets: ['fd00::/8']}", false),
        ("source: {nets: [10.0.0.0/8]}, destination: {notNets: ['fd00::/8']}", false),
        ("ipVersion: 6, source: {nets: [10.0.0.0/8]}", false),
        ("ipVersion: 6, destination: {nets: [10.0.0.0/8]}", false),
        ("http: {methods: [GET]}", true),
        ("protocol: UDP, http: {methods: [GET]}", false),
        ("http: {paths: [{exact: /foo}, {prefix: /bar}]}", true),
        ("http: {paths: [{exact: /foo, prefix: /bar}]}", false),
        ("http: {paths: [{}]}", false),
        ("http: {paths: [{exact: '/f?o'}]}", false),
        ("http: {paths: [{exact: '/f o'}]}", false),
        ("http: {paths: [{exact: '/f#o'}]}", false),
        ("http: {methods: [GET, GET]}", false),
        ("destination: {notNets: [0.0.0.0/0]}", false),
        ("source: {notNets: ['::0/0']}", false),
        ("source: {notNets: ['0:0:0::/0']}", false),
        ("source: {nets: [0.0.0.0/0]}", true),
        ("source: {nets: [10.0.0.1]}", false),
        ("source: {nets: [1.2.3.4/16]}", false),
        ("metadata: {annotations: {'a b': c}}", false),
        ("metadata: {annotations: {'Ab': c}}", true),
        ("source: {selectr: \"all()\"}", false),
        ("source: {selector: 'a ='}", false),
    ];
    for (rule, accept) in rows {
        check(&np(&format!("{{ingress: [{{action: Allow, {rule}}}]}}")), accept);
    }
    for action in ["allow", "''", "Reject"] {
        check(&np(&format!("{{ingress: [{{action: {action}}}]}}")), false);
    }
    check(&np("{ingress: [{action: Deny, http: {methods: [GET]}}]}"), false);
    check(&np("{egress: [{action: Allow, protocol: TCP, http: {methods: [GET]}}]}"), false);
    check(&np("{ingress: [null]}"), false);
}

#[test]
fn pm_4_5_policies() {
    let global = [
        ("{preDNAT: true, doNotTrack: true, applyOnForward: true}", false),
        ("{preDNAT: true, applyOnForward: true}", true),
        ("{doNotTrack: true, applyOnForward: true}", true),
        ("{preDNAT: true}", false),
        ("{doNotTrack: true}", false),
        ("{applyOnForward: true}", true),
        ("{preDNAT: true, applyOnForward: true, egress: [{action: Allow}]}", false),
        ("{preDNAT: true, applyOnForward: true, types: [Ingress]}", true),
        ("{preDNAT: true, applyOnForward: true, types: [Egress]}", false),
        ("{preDNAT: true, applyOnForward: true, types: [Ingress, Egress]}", false),
        ("{types: []}", true),
        ("{types: [Egress, Egress]}", false),
        ("{types: [unexpected]}", false),
        ("{types: [Egress], ingress: [{action: Allow}]}", true),
        ("{namespaceSelector: 'global()'}", false),
        ("{selector: 'global()'}", false),
        ("{selector: ' global() '}", false),
        ("{serviceAccountSelector: 'global()'}", false),
        ("{egress: [{action: Allow, destination: {services: {name: s}}}]}", false),
        ("{egress: [{action: Allow, destination: {services: {name: s, namespace: n}}}]}", true),
        ("{performanceHints: [AssumeNeededOnEveryNode]}", true),
        ("{performanceHints: [junk]}", false),
        ("{performanceHints: [AssumeNeededOnEveryNode, AssumeNeededOnEveryNode]}", false),
        ("{doNotTrack: yes, applyOnForward: true}", false),
    ];
    for (spec, accept) in global {
        check(&gnp(spec), accept);
    }
    let namespaced = [
        ("{selector: 'global()'}", false),
        ("{namespaceSelector: 'all()'}", false),
        ("{ingress: [{action: Allow, source: {selector: 'global()'}}]}", false),
        ("{ingress: [{action: Allow, source: {namespaceSelector: 'global()'}}]}", true),
        ("{ingress: [{action: Allow, source: {namespaceSelector: '  global()  '}}]}", true),
        ("{ingress: [{action: Allow, source: {namespaceSelector: 'global() && all()'}}]}", false),
        ("{ingress: [{action: Allow, source: {namespaceSelector: 'global()||all()'}}]}", false),
        ("{egress: [{action: Allow, destination: {services: {name: s}}}]}", true),
        ("{egress: [{action: Allow, source: {services: {name: s}}}]}", false),
        ("{ingress: [{action: Allow, source: {services: {name: s}}}]}", true),
        ("{ingress: [{action: Allow, destination: {services: {name: s}}}]}", false),
        ("{egress: [{action: Allow, protocol: TCP, destination: {services: {name: s}, ports: [1]}}]}", false),
        (
            "{egress: [{action: Allow, protocol: TCP, destination: {services: {name: s}, notPorts: [1]}}]}",
            false,
        ),
        ("{ingress: [{action: Allow, protocol: TCP, source: {services: {name: s}, ports: [1]}}]}", true),
        ("{ingress: [{action: Allow, protocol: TCP, source: {services: {name: s}, notPorts: [1]}}]}", true),
    ];
    for (spec, accept) in namespaced {
        check(&np(spec), accept);
    }
    for beside in [
        "serviceAccounts: {names: [s]}",
        "nets: [10.0.0.0/8]",
        "notNets: [10.0.0.0/8]",
        "selector: a == 'b'",
        "notSelector: a == 'b'",
        "namespaceSelector: all()",
    ] {
        check(
            &np(&format!(
                "{{egress: [{{action: Allow, destination: {{services: {{name: s}}, {beside}}}}}]}}"
            )),
            false,
        );
    }
    let others = [
        ("StagedNetworkPolicy", "{}", true),
        ("StagedNetworkPolicy", "{stagedAction: ''}", true),
        ("StagedNetworkPolicy", "{stagedAction: Warning}", false),
        ("StagedNetworkPolicy", "{stagedAction: Delete, selector: all()}", false),
        ("StagedNetworkPolicy", "{stagedAction: Delete, tier: t}", true),
        ("StagedKubernetesNetworkPolicy", "{podSelector: {}, policyTypes: [Ingress]}", true),
        ("HostEndpoint", "{interfaceName: eth0}", false),
        ("HostEndpoint", "{node: n, interfaceName: '*'}", true),
        ("HostEndpoint", "{node: n}", false),
        ("HostEndpoint", "{node: n, expectedIPs: [10.0.0.1]}", true),
        ("HostEndpoint", "{node: n, interfaceName: e, ports: [{protocol: TCP, port: 1}]}", false),
        (
            "HostEndpoint",
            "{node: n, interfaceName: e, ports: [{name: x, protocol: TCP, port: 1}, {name: x, protocol: UDP, port: 1}]}",
            true,
        ),
        ("NetworkSet", "{nets: [10.0.0.0/8, 10.1.2.3, 'fd00::1', 1.2.3.4/16]}", true),
        ("Tier", "{}", true),
    ];
    for (kind, spec, accept) in others {
        check(&calico(kind, "x", spec), accept);
    }
    for (name, spec) in [
        ("default", "{order: 5}"),
        ("default", "{defaultAction: Pass}"),
        ("kube-admin", "{order: 5}"),
        ("kube-admin", "{defaultAction: Deny}"),
        ("kube-baseline", "{defaultAction: Deny}"),
    ] {
        check(&calico("Tier", name, spec), false);
    }
    check(
        "apiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: s, labels: {projectcalico.org/namespace: x}}\n",
        false,
    );
    check(&calico("Profile", "x", &format!("{{labelsToApply: {{a: '{}'}}}}", "v".repeat(63))), true);
    check(&calico("Profile", "x", &format!("{{labelsToApply: {{a: '{}'}}}}", "v".repeat(64))), false);
}

#[test]
fn pm_3_1_types() {
    let rule = "[{action: Allow}]";
    for (spec, expected) in [
        ("{}".to_owned(), (true, false)),
        (format!("{{ingress: {rule}}}"), (true, false)),
        (format!("{{egress: {rule}}}"), (false, true)),
        (format!("{{ingress: {rule}, egress: {rule}}}"), (true, true)),
    ] {
        let policy = policy(&np(&spec));
        assert_eq!((policy.governs_ingress, policy.governs_egress), expected, "{spec}");
    }
    for (spec, expected) in [
        ("{}", (true, false)),
        ("{ingress: [{}]}", (true, false)),
        ("{egress: [{}]}", (true, true)),
        ("{policyTypes: [Egress]}", (false, true)),
        ("{policyTypes: [ingress]}", (true, true)),
    ] {
        let policy = policy(&knp(spec));
        assert_eq!((policy.governs_ingress, policy.governs_egress), expected, "{spec}");
    }
}

fn selects(policy: &Policy, labels: &[(&str, &str)]) -> bool {
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    policy.selector.as_ref().is_some_and(|selector| selector.matches(&labels))
}

#[test]
fn pm_6_2_global_selectors() {
    let hep: &[(&str, &str)] = &[("role", "x")];
    let prod: &[(&str, &str)] = &[
        ("projectcalico.org/namespace", "p"),
        ("pcns.env", "prod"),
        ("role", "x"),
        ("projectcalico.org/serviceaccount", "s"),
    ];
    let bare: &[(&str, &str)] = &[("projectcalico.org/namespace", "q"), ("role", "x")];
    let rows = [
        ("{}", [true, true, true]),
        ("{selector: all()}", [true, true, true]),
        ("{namespaceSelector: all()}", [false, true, true]),
        ("{selector: role == 'x', namespaceSelector: env == 'prod'}", [false, true, false]),
        ("{namespaceSelector: env != 'prod'}", [true, false, true]),
        ("{namespaceSelector: '!has(env)'}", [true, false, true]),
        ("{serviceAccountSelector: all()}", [false, true, false]),
    ];
    for (spec, expected) in rows {
        let policy = policy(&gnp(spec));
        assert_eq!([hep, prod, bare].map(|labels| selects(&policy, labels)), expected, "{spec}");
    }
}

#[test]
fn pm_6_3_peers() {
    let ns = "projectcalico.org/namespace";
    let rows = [
        (true, "{}", None, None),
        (true, "{selector: role=='x'}", Some(format!("({ns} == \"a\" && role == \"x\")")), None),
        (true, "{selector: all()}", Some(format!("({ns} == \"a\" && all())")), None),
        (true, "{notSelector: role=='x'}", Some(format!("({ns} == \"a\" && !role == \"x\")")), None),
        (true, "{namespaceSelector: all()}", Some(format!("has({ns})")), None),
        (true, "{namespaceSelector: global()}", Some(format!("!has({ns})")), None),
        (
            true,
            "{namespaceSelector: global(), selector: set=='x'}",
            Some(format!("(!has({ns}) && set == \"x\")")),
            None,
        ),
        (
            true,
            "{namespaceSelector: projectcalico.org/name == 'b'}",
            Some("pcns.projectcalico.org/name == \"b\"".to_owned()),
            None,
        ),
        (
            true,
            "{serviceAccounts: {names: [s]}}",
            Some(format!("({ns} == \"a\" && projectcalico.org/serviceaccount in {{\"s\"}})")),
            None,
        ),
        (true, "{serviceAccounts: {}}", None, None),
        (true, "{nets: [10.0.0.0/8]}", None, None),
        (false, "{selector: role=='x'}", Some("role == \"x\"".to_owned()), None),
        (false, "{notSelector: role=='x'}", None, Some("role == \"x\"".to_owned())),
        (false, "{namespaceSelector: all()}", Some(format!("has({ns})")), None),
        (
            false,
            "{serviceAccounts: {names: [s]}}",
            Some("projectcalico.org/serviceaccount in {\"s\"}".to_owned()),
            None,
        ),
    ];
    for (namespaced, peer, positive, negative) in rows {
        let spec = format!("{{ingress: [{{action: Allow, source: {peer}}}]}}");
        let policy = policy(&if namespaced { np(&spec) } else { gnp(&spec) });
        let source = &policy.ingress[0].source;
        let text = |selector: &Option<crate::selector::Selector>| {
            selector.as_ref().map(|s| s.canonical().to_owned())
        };
        assert_eq!((text(&source.selector), text(&source.not_selector)), (positive, negative), "{peer}");
    }
}

fn pod_text(meta: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: a, {meta}}}\nspec: {spec}\nstatus: {status}\n"
    )
}

#[test]
fn pm_7_3_pods() {
    let text = pod_text(
        "labels: {pcns.x: y, pcsa.x: y, app: web, projectcalico.org/serviceaccount: forged, projectcalico.org/namespace: b}",
        "{nodeName: n, future: [1], containers: [{ports: [{name: http, containerPort: 80}, {containerPort: 81}, {containerPort: 82, hostPort: 8082, protocol: UDP}, {name: q, containerPort: 83, protocol: QUIC}]}], initContainers: [{ports: [{name: http, containerPort: 90}]}]}",
        "{podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}",
    );
    let found = pod(&text);
    let labels: Vec<_> = found.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["app=web", "projectcalico.org/namespace=a", "projectcalico.org/orchestrator=k8s"]);
    let ports: Vec<_> =
        found.ports.iter().map(|port| (port.name.as_str(), port.protocol, port.port)).collect();
    assert_eq!(ports, [("http", 6, 80), ("", 17, 82), ("http", 6, 90)]);
    assert_eq!(found.addresses.len(), 2);
    let account =
        |length: usize| pod(&pod_text("", &format!("{{serviceAccountName: {}}}", "s".repeat(length)), "{}"));
    assert!(account(62).labels.contains_key("projectcalico.org/serviceaccount"));
    assert!(!account(63).labels.contains_key("projectcalico.org/serviceaccount"));
    let up = "{podIP: 10.0.0.1}";
    let rows = [
        ("", "{phase: Succeeded, podIP: 10.0.0.1}", true),
        ("", "{phase: Failed}", true),
        ("annotations: {cni.projectcalico.org/podIP: ''}", up, false),
        ("deletionTimestamp: '2026-01-01T00:00:00Z'", up, false),
        (
            "deletionTimestamp: '2026-01-01T00:00:00Z', annotations: {cni.projectcalico.org/podIP: ''}",
            up,
            true,
        ),
    ];
    for (meta, status, finished) in rows {
        let found = pod(&pod_text(meta, "{nodeName: n}", status));
        assert_eq!((found.finished, found.addresses.is_empty()), (finished, finished), "{meta} {status}");
    }
    check(&pod_text("", "{}", "{podIPs: [{ip: nonsense}]}"), false);
    assert!(pod(&pod_text("", "{hostNetwork: true}", "{}")).host_network);
}

#[test]
fn pm_7_4_label_selectors() {
    let pods = "projectcalico.org/orchestrator == \"k8s\"";
    let ns = "projectcalico.org/namespace == \"a\"";
    let rows = [
        ("{}", format!("({pods} && {ns})")),
        ("{podSelector: {}}", format!("({pods} && {ns})")),
        (
            "{podSelector: {matchLabels: {k2: v2, k: v}}}",
            format!("(({pods} && k == \"v\" && k2 == \"v2\") && {ns})"),
        ),
        (
            "{podSelector: {matchExpressions: [{key: k, operator: In, values: [b, a]}, {key: l, operator: DoesNotExist}]}}",
            format!("(({pods} && k in {{\"a\", \"b\"}} && !has(l)) && {ns})"),
        ),
        (
            "{podSelector: {matchExpressions: [{key: k, operator: NotIn, values: [a]}, {key: l, operator: Exists}]}}",
            format!("(({pods} && k not in {{\"a\"}} && has(l)) && {ns})"),
        ),
    ];
    for (spec, expected) in rows {
        assert_eq!(policy(&knp(spec)).selector.as_ref().unwrap().canonical(), expected, "{spec}");
    }
    for bad in [
        "{key: k, operator: in, values: [a]}",
        "{key: k, operator: In}",
        "{key: k, operator: Exists, values: [a]}",
    ] {
        check(&knp(&format!("{{podSelector: {{matchExpressions: [{bad}]}}}}")), false);
    }
}

fn range(first: u16, last: u16) -> PortMatch {
    PortMatch::Range { first, last }
}

#[test]
fn pm_7_5_kubernetes_policies() {
    let found = policy(&knp(
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {k: v}}}], ports: [{port: 80}, {}]}]}",
    ));
    assert_eq!((found.tier.as_str(), found.order.0), ("default", 1000.0));
    assert_eq!(found.ingress.len(), 1);
    assert_eq!((found.ingress[0].protocol, found.ingress[0].destination.ports.len()), (Some(6), 0));
    let found = policy(&knp(
        "{egress: [{to: [{podSelector: {}}], ports: [{}, {port: 80}]}, {ports: [{protocol: UDP, port: 53}]}]}",
    ));
    assert_eq!(found.egress.len(), 2);
    assert_eq!(found.egress[1].destination.ports, [range(53, 53)]);
    let found = policy(&knp(
        "{ingress: [{from: [{namespaceSelector: {}}, {namespaceSelector: {matchLabels: {x: y}}, podSelector: {}}], ports: [{port: 1}, {port: 1, protocol: UDP}]}]}",
    ));
    assert_eq!(
        found.ingress.iter().map(|rule| rule.protocol).collect::<Vec<_>>(),
        [Some(6), Some(6), Some(17), Some(17)]
    );
    let peer = found.ingress[0].source.selector.as_ref().unwrap().canonical().to_owned();
    assert_eq!(peer, "(has(projectcalico.org/namespace) && projectcalico.org/orchestrator == \"k8s\")");
    let found = policy(&knp("{ingress: [{ports: [{port: 0}]}, {ports: [{port: 5, endPort: 9}]}]}"));
    assert_eq!((found.ingress.len(), &found.ingress[0].destination.ports), (1, &vec![range(5, 9)]));
    let found = policy(&knp(
        "{ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: junk}}]}]}",
    ));
    assert_eq!(found.ingress[0].source.nets, ["10.0.0.0/8".parse().unwrap()]);
    assert!(found.ingress[0].unenforced.is_empty());
    assert!(matches!(found.ingress[1].unenforced[..], [Unenforced::Unparseable(_)]), "PM-D5");
    check(&knp("{ingress: [{from: [{}]}]}"), false);
    check(&knp("{ingress: [{form: []}]}"), false);
    check(&knp("{podSelctor: {}}"), false);
}

#[test]
fn pm_7_5_port_simplification() {
    let r = range;
    let name = |text: &str| PortMatch::Named(text.to_owned());
    let rows = [
        (vec![], vec![]),
        (vec![r(2, 2), r(1, 1)], vec![r(1, 2)]),
        (vec![r(1, 1), r(2, 2), r(4, 4)], vec![r(1, 2), r(4, 4)]),
        (
            vec![
                r(9090, 9090),
                name("http"),
                r(81, 90),
                r(3, 3),
                r(80, 81),
                r(1, 1),
                name("foo"),
                r(4, 4),
                r(2, 2),
            ],
            vec![name("foo"), name("http"), r(1, 4), r(80, 90), r(9090, 9090)],
        ),
        (vec![r(0, 65535)], vec![r(0, 65535)]),
    ];
    for (input, output) in rows {
        assert_eq!(network_policy::simplify(input), output);
    }
}

#[test]
fn pm_4_1_closed_forms() {
    let closed = |text: &str| match one(text) {
        Decoded::Invalid { fallback: Some(Object::Policy(policy)), critical, .. } => (policy, critical),
        other => panic!("{other:#?}"),
    };
    let (policy, critical) = closed(&np("{selector: a == 'b', types: [Egress], egress: [{action: allow}]}"));
    assert!(!critical && policy.governs_egress && !policy.governs_ingress);
    assert_eq!(policy.egress, [rule::everything(crate::model::Action::Deny)]);
    assert!(selects(&policy, &[("projectcalico.org/namespace", "a"), ("a", "b")]));
    assert!(!selects(&policy, &[("projectcalico.org/namespace", "a")]));
    let (policy, critical) = closed(&np("{selector: a = 'b'}"));
    assert!(!critical && selects(&policy, &[("projectcalico.org/namespace", "a")]));
    assert!(!selects(&policy, &[("projectcalico.org/namespace", "b")]));
    let (policy, critical) = closed(&gnp("{selector: a == 'b', order: high}"));
    assert!(!critical && selects(&policy, &[("a", "b")]) && !selects(&policy, &[]));
    let (policy, critical) = closed(&gnp("{selector: a = 'b'}"));
    assert!(critical && policy.selector.is_none());
    let (policy, _) = closed(&np("{egress: {action: Allow}}"));
    assert!(
        policy.governs_egress && !policy.governs_ingress,
        "a list that could not be read still claims its direction"
    );
    let staged = calico("StagedNetworkPolicy", "p", "{selector: a = 'b'}");
    assert!(matches!(one(&staged), Decoded::Invalid { fallback: None, .. }));
    let (policy, _) = closed(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  podSelector: {}\n  podSelector: {}\n",
    );
    assert_eq!(policy.key.namespace.as_deref(), Some("default"));
}

#[test]
fn documents_stand_alone_and_errors_name_their_place() {
    let text = format!(
        "# head\n---\n{}---\na: [1\n---\nkind: Deployment\napiVersion: apps/v1\n---\n{}",
        np("{}"),
        np("{selectr: x}")
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
    assert_eq!((origin.line, errors[0].field.as_str()), (13, "spec.selectr"), "{errors:?}");
    assert!(errors[0].reason.contains("selector"), "{errors:?}");
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
    check("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x}\nspce: {}\n", false);
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
