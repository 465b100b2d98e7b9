//! Policy model 3 and 4.

use super::*;

#[test]
fn pm_4_2_names() {
    let rows = [
        ("NetworkPolicy", "thing".to_owned(), true),
        ("NetworkPolicy", "th.ing".to_owned(), true),
        ("NetworkPolicy", "t.h.i.ng".to_owned(), false),
        ("NetworkPolicy", "knp.default.x.y".to_owned(), true),
        ("NetworkPolicy", "ossg.default.x.y".to_owned(), true),
        ("NetworkPolicy", "knp.other.x.y".to_owned(), false),
        ("StagedGlobalNetworkPolicy", "th.ing".to_owned(), true),
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
fn pm_3_5_other_defaults() {
    assert_eq!(
        policy(&np("{}")).selector.as_ref().unwrap().canonical(),
        "projectcalico.org/namespace == \"a\""
    );
    assert_eq!(policy(&knp("{ingress: [{ports: [{port: 1}]}]}")).ingress[0].protocol, Some(6));
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: a, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{port: 80}, {port: 53, protocol: UDP}]\n";
    let Decoded::Valid { object: Object::EndpointSlice(found), .. } = one(slice) else { panic!() };
    assert_eq!((found.service.as_str(), &found.ports[..]), ("web", &[(6, 80), (17, 53)][..]));
}

/// The thirteen rows, each with what it refuses and the nearest thing that it accepts.
#[test]
fn pm_4_3_constraints() {
    let rows: [(u8, &str, bool); 48] = [
        (1, "destination: {ports: [http]}", true),
        (1, "source: {notPorts: [http]}", true),
        (1, "destination: {ports: [80]}", false),
        (1, "destination: {notPorts: ['1:5']}", false),
        (1, "source: {ports: [http, 80]}", false),
        (2, "protocol: TCP, destination: {ports: [80]}", true),
        (2, "protocol: 132, source: {notPorts: [80]}", true),
        (2, "protocol: ICMP, destination: {ports: [80]}", false),
        (2, "protocol: 136, source: {ports: [80]}", false),
        (2, "protocol: UDPLite, destination: {notPorts: [http]}", false),
        (3, "protocol: ICMP, destination: {ports: [], notPorts: []}", true),
        (3, "destination: {ports: []}", true),
        (4, "source: {nets: [10.0.0.0/8]}", true),
        (4, "source: {nets: [10.0.0.1/8]}", false),
        (4, "source: {notNets: ['fd00::1/16']}", false),
        (4, "source: {nets: [10.0.0.1]}", false),
        (4, "source: {nets: ['fd00::1']}", false),
        (5, "source: {nets: [10.0.0.0/8]}, destination: {nets: [192.0.2.0/24]}", true),
        (5, "source: {nets: [10.0.0.0/8, 'fd00::/8']}", false),
        (5, "source: {nets: ['fd00::/8']}, destination: {nets: [10.0.0.0/8]}", false),
        (5, "source: {notNets: ['fd00::/8']}, destination: {nets: [10.0.0.0/8]}", false),
        (5, "source: {nets: [10.0.0.0/8], notNets: ['fd00::/8']}", false),
        (6, "ipVersion: 4, source: {nets: [10.0.0.0/8]}", true),
        (6, "ipVersion: 4, destination: {notNets: ['fd00::/8']}", false),
        (7, "source: {notNets: [0.0.0.0/1]}", true),
        (7, "source: {notNets: [0.0.0.0/0]}", false),
        (7, "destination: {notNets: ['::/0']}", false),
        (7, "destination: {notNets: ['0:0:0::/0']}", false),
        (8, "protocol: 58, icmp: {type: 128}", true),
        (8, "protocol: 1, notICMP: {type: 8}", true),
        (8, "protocol: TCP, icmp: {type: 8}", false),
        (8, "notICMP: {type: 8}", false),
        (8, "protocol: ICMP, notICMP: {code: 0}", false),
        (9, "protocol: 1, ipVersion: 6", false),
        (9, "notProtocol: ICMPv6, ipVersion: 4", false),
        (9, "notProtocol: ICMPv6, ipVersion: 6", true),
        (10, "http: {methods: [GET]}", true),
        (10, "protocol: 6, http: {methods: [GET]}", true),
        (10, "protocol: 17, http: {methods: [GET]}", false),
        (11, "source: {selector: has(a), notSelector: has(b)}", true),
        (11, "source: {selector: 'a = b'}", false),
        (11, "source: {notSelector: 'has(a) || global()'}", false),
        (11, "source: {serviceAccounts: {selector: 'global()'}}", false),
        (12, "source: {namespaceSelector: \"\\tglobal() \"}", true),
        (12, "source: {namespaceSelector: '!global()'}", false),
        (12, "source: {namespaceSelector: '(global())'}", false),
        (13, "source: {services: {name: s}}", true),
        (13, "source: {services: {name: s}, selector: has(a)}", false),
    ];
    for (constraint, rule, accept) in rows {
        let found = errors(&np(&format!("{{ingress: [{{action: Allow, {rule}}}]}}")));
        assert_eq!(found.is_empty(), accept, "{constraint}: {rule}\n{found:#?}");
        for error in found {
            assert!(error.field.starts_with("spec.ingress[0]"), "{error:?}");
            assert!(error.reason.len() > 10, "{error:?}");
        }
    }
    for (action, accept) in [("Allow", true), ("Deny", false), ("Log", false), ("Pass", false)] {
        check(&np(&format!("{{ingress: [{{action: {action}, http: {{methods: [GET]}}}}]}}")), accept);
    }
}

#[test]
fn pm_4_6_metadata() {
    let with = |meta: &str| {
        format!("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {{name: s, {meta}}}\n")
    };
    let rows = [
        ("labels: {App: web, example.com/Role_1: 'x.Y-z'}", true),
        ("labels: {a: ''}", true),
        ("labels: {Example.com/role: x}", false),
        ("labels: {'-a': x}", false),
        ("labels: {a: 'x y'}", false),
        ("labels: {a: 5}", false),
        ("annotations: {Example.com/Role: anything at all}", true),
        ("annotations: {'a b': x}", false),
        ("annotations: {'/a': x}", false),
    ];
    for (meta, accept) in rows {
        check(&with(meta), accept);
    }
    let key = "n".repeat(63);
    check(&with(&format!("labels: {{{key}: {key}}}")), true);
    check(&with(&format!("labels: {{{key}n: x}}")), false);
    check(&with(&format!("labels: {{a: {key}n}}")), false);
    let most = 256 << 10;
    check(&with(&format!("annotations: {{a: {}}}", "v".repeat(most - 1))), true);
    check(&with(&format!("annotations: {{a: {}}}", "v".repeat(most))), false);
}

#[test]
fn pm_4_7_the_masked_form_is_proposed() {
    let found = errors(&np("{ingress: [{action: Allow, source: {nets: [1.2.3.4/16]}}]}"));
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].field.as_str(), found[0].value.as_str()),
        ("spec.ingress[0].source.nets[0]", "1.2.3.4/16")
    );
    assert_eq!(found[0].reason, "host bits are set; did you mean 1.2.0.0/16?");
}
