//! Policy model 6: the effective selectors.

use super::*;

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
        (true, "{namespaceSelector: env != 'prod'}", Some("pcns.env != \"prod\"".to_owned()), None),
        (true, "{ports: [http]}", None, None),
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
