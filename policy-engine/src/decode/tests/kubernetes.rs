//! Policy model 7: objects of Kubernetes.

use super::*;

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
fn pm_7_3_sources_of_addresses() {
    let key = "cni.projectcalico.org";
    let shown = |text: &str| {
        let found = pod(text);
        let list = |addresses: &[std::net::IpAddr]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        (list(&found.addresses), list(&found.annotated_addresses))
    };
    let all = format!(
        "annotations: {{{key}/podIPs: '10.0.0.3/32,fd00::3/128', {key}/podIP: 10.0.0.4, vpc.amazonaws.com/pod-ips: 10.0.0.5}}"
    );
    let rows = [
        (all.clone(), "{podIPs: [{ip: 10.0.0.1}], podIP: 10.0.0.2}", ("10.0.0.1", "")),
        (all.clone(), "{podIP: 10.0.0.2}", ("10.0.0.2", "")),
        (all, "{}", ("", "10.0.0.3 fd00::3")),
        (
            format!("annotations: {{{key}/podIP: 10.0.0.4/32, vpc.amazonaws.com/pod-ips: 10.0.0.5}}"),
            "{}",
            ("", "10.0.0.4"),
        ),
        (
            "annotations: {vpc.amazonaws.com/pod-ips: '10.0.0.5,10.0.0.6'}".to_owned(),
            "{}",
            ("", "10.0.0.5 10.0.0.6"),
        ),
        (format!("annotations: {{{key}/podIP: 10.0.0.4}}"), "{phase: Succeeded}", ("", "")),
    ];
    for (meta, status, (addresses, annotated)) in rows {
        assert_eq!(
            shown(&pod_text(&meta, "{nodeName: n}", status)),
            (addresses.to_owned(), annotated.to_owned()),
            "{meta} {status}"
        );
    }
    for bad in ["10.0.0.4/24", "fd00::1/64", "nonsense", "10.0.0.1,,10.0.0.2"] {
        let found =
            errors(&pod_text(&format!("annotations: {{{key}/podIPs: '{bad}'}}"), "{nodeName: n}", "{}"));
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
        assert_eq!(found[0].field, "metadata.annotations.cni.projectcalico.org/podIPs");
    }
}

#[test]
fn pm_7_3_lists_in_annotations() {
    for (key, text, accept) in [
        ("allowedSourcePrefixes", "[\"10.0.0.0/8\", \"fd00::/16\"]", true),
        ("allowedSourcePrefixes", "[]", true),
        ("allowedSourcePrefixes", "", false),
        ("allowedSourcePrefixes", "[\"\"]", false),
        ("allowedSourcePrefixes", "[\"10.0.0.0/33\"]", false),
        ("allowedSourcePrefixes", "10.0.0.0/8", false),
        ("floatingIPs", "[\"192.0.2.1\"]", true),
        ("floatingIPs", "[\"192.0.2.0/24\"]", false),
        ("floatingIPs", "{}", false),
    ] {
        check(
            &pod_text(&format!("annotations: {{cni.projectcalico.org/{key}: '{text}'}}"), "{}", "{}"),
            accept,
        );
    }
}

#[test]
fn pm_25_2_annotations_of_nodes_pass_through() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: n, annotations: {projectcalico.org/WireguardPublicKey: k, projectcalico.org/IPv4WireguardInterfaceAddr: 10.0.0.1, other.io/x: y}}\nstatus: {addresses: [{type: ExternalIP, address: 203.0.113.1}, {type: InternalIP, address: 10.0.0.1}, {type: Hostname, address: n}]}\n";
    let Decoded::Valid { object: Object::Node(node), .. } = one(text) else { panic!() };
    assert_eq!(node.annotations.len(), 2);
    let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(
        (addresses, node.internal_addresses),
        (vec!["10.0.0.1".to_owned(), "203.0.113.1".to_owned()], 1)
    );
}

#[test]
fn pm_7_5_conversion_facts() {
    let pods = "projectcalico.org/orchestrator == \"k8s\"";
    let found = policy(&knp("{ingress: [{from: [{podSelector: {matchLabels: {k2: v2, k: v}}}]}]}"));
    let [rule] = &found.ingress[..] else { panic!("{found:#?}") };
    assert_eq!((rule.protocol, rule.destination.ports.len()), (None, 0));
    let expected =
        format!("(projectcalico.org/namespace == \"a\" && ({pods} && k == \"v\" && k2 == \"v2\"))");
    assert_eq!(rule.source.selector.as_ref().unwrap().canonical(), expected);

    let found = policy(&knp("{policyTypes: [Ingress]}"));
    assert!(found.governs_ingress && !found.governs_egress && found.ingress.is_empty(), "default deny");

    let found = policy(&knp(
        "{ingress: [{ports: [{protocol: UDP}, {protocol: UDP, port: 53}, {port: http}, {port: 1}, {port: 2, endPort: 9}]}]}",
    ));
    let shown: Vec<_> =
        found.ingress.iter().map(|rule| (rule.protocol, rule.destination.ports.clone())).collect();
    let named = PortMatch::Named("http".to_owned());
    assert_eq!(
        shown,
        [(Some(6), vec![named, range(1, 9)]), (Some(17), vec![])],
        "every UDP port; names first"
    );

    let selector = "podSelector: {matchExpressions: [{key: k, operator: DoesNotExist}]}";
    let found = policy(&knp(&format!("{{egress: [{{to: [{{namespaceSelector: {{}}, {selector}}}]}}]}}")));
    let peer = found.egress[0].destination.selector.as_ref().unwrap();
    assert_eq!(peer.canonical(), format!("(has(projectcalico.org/namespace) && ({pods} && !has(k)))"));
}

#[test]
fn pm_10_6_members_of_a_slice() {
    let slice = |family: &str, rest: &str| {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: a, labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\n{rest}\n"
        );
        let Decoded::Valid { object: Object::EndpointSlice(found), .. } = one(&text) else {
            panic!("{text}")
        };
        (found.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), found.ports.clone())
    };
    let addresses = |family: &str, endpoints: &str| slice(family, &format!("endpoints: {endpoints}")).0;
    assert_eq!(
        addresses(
            "IPv4",
            "[{addresses: [10.0.0.1], conditions: {ready: false, serving: false, terminating: true}}, {addresses: [10.0.0.2], conditions: {ready: true}}, {addresses: [10.0.0.3]}]"
        ),
        ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        "conditions are not asked for"
    );
    assert_eq!(addresses("IPv6", "[{addresses: ['fd00::1', nonsense, 10.0.0.300]}]"), ["fd00::1"]);
    assert!(addresses("FQDN", "[{addresses: [10.0.0.1, db.example.com]}]").is_empty(), "a slice of names");
    assert_eq!(
        slice(
            "IPv4",
            "ports: [{name: web, port: 80}, {name: all}, {port: 53, protocol: UDP}, {port: 9, protocol: SCTP}, {port: 7, protocol: TCP}]"
        )
        .1,
        [(6, 80), (17, 53), (132, 9), (6, 7)],
        "a port without number is none; TCP where no protocol is named"
    );
}
