//! The tables of policy model 5 and 6.5, row by row, and what must hold for every input.

use proptest::prelude::*;

use super::*;

fn labels(text: &str) -> Labels {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once(':').unwrap())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn parse(text: &str) -> Selector {
    Selector::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

#[test]
fn pm_5_4_canonical_text_and_identifier() {
    let all = "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug";
    let rows = [
        ("", "all()", all),
        (" all() ", "all()", all),
        (" (all() )", "all()", all),
        ("! (has( b)||! has(a ))", "!(has(b) || !has(a))", "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q"),
        (
            r#"! (a == "b"&&! c != "d")"#,
            r#"!(a == "b" && !c != "d")"#,
            "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w",
        ),
        (r#"a in {"z","z","x","y","x","a"}"#, r#"a in {"a", "x", "y", "z"}"#, ""),
        (r#"a startswith '"'"#, r#"a starts with '"'"#, ""),
        (r#"a!='"'"#, r#"a != '"'"#, ""),
        (r#"a == "'""#, r#"a == "'""#, ""),
        ("a in {}", "a in {}", ""),
        ("!(!has(a))", "has(a)", ""),
        ("has(a)&&has(b)||has(c)", "((has(a) && has(b)) || has(c))", ""),
        ("a endswith 'x' && b notin{'y'}", r#"(a ends with "x" && b not in {"y"})"#, ""),
        (" global( ) ", "global()", ""),
    ];
    for (input, canonical, id) in rows {
        let selector = parse(input);
        assert_eq!(selector.canonical(), canonical, "{input:?}");
        if !id.is_empty() {
            assert_eq!(selector.id(), id, "{input:?}");
        }
        let again = parse(canonical);
        assert_eq!((again.canonical(), again.id()), (canonical, selector.id()), "{input:?}");
    }
}

#[test]
fn pm_5_5_match_facts() {
    let ab = r#"a == "b" && c == "d""#;
    let either = r#"a == "b" || c == "d""#;
    let within = r#"a in {"'", '"', "c"}"#;
    let without = r#"a not in {"'", '"', "c"}"#;
    let rows: &[(&str, &[&str], &[&str])] = &[
        (r#"a == "b""#, &["a:b", "a:b,c:d"], &["", "a:c", "c:d"]),
        (ab, &["a:b,c:d"], &["", "a:b,c:e", "a:c,c:d", "c:d", "a:b"]),
        (either, &["a:b,c:d", "a:b", "c:d"], &["", "a:e,c:e", "c:e", "a:e"]),
        (within, &["a:c", "a:\"", "a:'"], &["", "a:e"]),
        (without, &["", "a:e"], &["a:c", "a:\"", "a:'"]),
        (r#"a != "a""#, &[""], &["a:a"]),
        (r#"a contains "a""#, &["a:a", "a:bab", "a:aaa,b:c"], &["", "a:b", "b:aaa"]),
        (r#"a starts with "a""#, &["a:a", "a:abb"], &["", "a:b", "a:baa", "b:aaa"]),
        (r#"a ends with "a""#, &["a:a", "a:bba"], &["", "a:b", "a:aab", "b:aaa"]),
        (r#"!a in {"a"}"#, &["a:b"], &[]),
        ("has(a)", &["a:b"], &[]),
        ("has(b)", &[], &["a:b"]),
        ("!!has(b)", &[], &["a:b"]),
        ("!has(a)", &[], &["a:b"]),
        ("! has(a)", &[], &["a:b"]),
        ("!!!has(a)", &[], &["a:b"]),
        ("!! ! has(a)", &[], &["a:b"]),
        ("! !!has(a)", &[], &["a:b"]),
        ("", &["", "a:b"], &[]),
        (" ", &["", "a:b"], &[]),
        ("all()", &["", "a:b"], &[]),
        (" all()", &["", "a:b"], &[]),
        ("global()", &["", "a:b"], &[]),
        ("a == 'a1' && !b == 'b1'", &[], &["a:a1,b:b1"]),
        ("!a == 'a1' && b == 'b1'", &[], &["a:a1,b:b1"]),
        ("has(a) && !has(b)", &["a:a"], &[]),
        ("!has(b) && has(a)", &["a:a"], &[]),
        ("!(!has(a) || has(b))", &["a:a"], &[]),
        ("!(has(b) || !has(a))", &["a:a"], &[]),
        ("a == 'a1' || b != 'b1'", &["a:a1,b:b1"], &[]),
        ("a != 'a1' || b != 'b1'", &[], &["a:a1,b:b1"]),
        // Policy model 5.3, last two rows.
        ("a in {}", &[], &["", "a:b"]),
        ("a not in {}", &["", "a:b"], &[]),
    ];
    for (text, yes, no) in rows {
        let selector = parse(text);
        for set in *yes {
            assert!(selector.matches(&labels(set)), "{text} should match {set:?}");
        }
        for set in *no {
            assert!(!selector.matches(&labels(set)), "{text} should not match {set:?}");
        }
    }
}

#[test]
fn pm_5_6_rejected_inputs() {
    let long = format!("has({})", "x".repeat(513));
    let rows = [
        "b == b",
        "b contains b",
        "b starts with b",
        "b ends with b",
        "'b1' == b",
        "b",
        "a ",
        "a b",
        "!",
        "has(foo) &&",
        r#"foo == "bar" &"#,
        r#"foo == "bar" |"#,
        r#"a == "b" & has(foo)"#,
        r#"a == "b" | has(foo)"#,
        r#"label = "value""#,
        "foo != ||",
        r#"foo in """#,
        r#"a not in "bar""#,
        r#"foo in {"", ||"#,
        "\"FOO",
        "\"FOO'",
        "'FOO",
        r#"label == "value"#,
        "(",
        r#"(a == "foo""#,
        ")",
        "()",
        "%",
        r#"a == "b" && %"#,
        "all(",
        "global(",
        "has()",
        "has(foo",
        "has( foo ",
        r#"label starts foo "value""#,
        r#"label ends foo "v""#,
        r#"label ends withs "v""#,
        r#"label inf "v""#,
        r#"label squiggles "v""#,
        &long,
        "all()\n",
        "\n",
        "a ==\n'b'",
        "all()\r",
        // Policy model 5.2: facts about commas and what follows an expression.
        "a in {,}",
        "a in {'x',,'y'}",
        "a in {,'x'}",
        "a in {b}",
        "all() all()",
        "all())",
        "has (a)",
        "! = 'x'",
        "a\u{a0}== 'x'",
    ];
    for text in rows {
        assert!(Selector::parse(text).is_err(), "{text:?} should be refused");
    }
}

#[test]
fn pm_5_6_a_label_of_512_characters_is_accepted() {
    assert!(Selector::parse(&format!("has({})", "x".repeat(512))).is_ok());
}

#[test]
fn pm_5_7_accepted_oddities() {
    let rows = [
        (r#"contains contains "contains""#, "contains:xcontainsx"),
        (r#"startswith starts with "value""#, "startswith:values"),
        (r#"label contains"value""#, "label:values"),
        (r#"a notin{"x"}"#, "a:y"),
        (r#"label starts  with "v""#, "label:v1"),
        ("has(calico/k8s_NS-.1/role)", "calico/k8s_NS-.1/role:x"),
        ("a not in {}", ""),
        (r#"a in {"x",}"#, "a:x"),
        ("in in {'x'}", "in:x"),
        ("has == 'x'", "has:x"),
        ("a\t==\t'x'", "a:x"),
        ("all( )&&has( a )", "a:x"),
    ];
    for (text, set) in rows {
        assert!(parse(text).matches(&labels(set)), "{text}");
    }
}

#[test]
fn pm_5_8_restrictions() {
    let one = |values: &[&str]| Restriction::OneOf(values.iter().map(|&v| v.to_owned()).collect());
    let rows: Vec<(&str, Vec<(&str, Restriction)>)> = vec![
        ("k == 'v'", vec![("k", one(&["v"]))]),
        ("k in {'v', 'w'}", vec![("k", one(&["v", "w"]))]),
        ("has(k)", vec![("k", Restriction::Present)]),
        ("k contains 'v'", vec![("k", Restriction::Present)]),
        ("k starts with 'v'", vec![("k", Restriction::Present)]),
        ("k ends with 'v'", vec![("k", Restriction::Present)]),
        ("k == 'v' && has(l)", vec![("k", one(&["v"])), ("l", Restriction::Present)]),
        ("k in {'v', 'w'} && k in {'w', 'x'}", vec![("k", one(&["w"]))]),
        ("k == 'v' && k == 'w'", vec![("k", one(&[]))]),
        ("has(k) && !has(k)", vec![("k", one(&[]))]),
        ("k == 'v' || k == 'w'", vec![("k", one(&["v", "w"]))]),
        ("k == 'v' || has(k)", vec![("k", Restriction::Present)]),
        ("k == 'v' || has(l)", vec![]),
        ("k == 'v' || all()", vec![]),
        ("k == 'v' || l in {}", vec![("k", one(&["v"]))]),
        ("!has(k)", vec![("k", Restriction::Absent)]),
        ("!has(k) || !has(k)", vec![("k", Restriction::Absent)]),
        ("!has(k) || has(k)", vec![]),
        ("k != 'v'", vec![]),
        ("k not in {'v'}", vec![]),
        ("!k == 'v'", vec![]),
        ("all()", vec![]),
        ("global()", vec![]),
    ];
    for (text, expected) in rows {
        let expected: BTreeMap<_, _> = expected.into_iter().map(|(k, r)| (k.to_owned(), r)).collect();
        assert_eq!(parse(text).restrictions(), expected, "{text}");
    }
}

#[test]
fn pm_6_5_prefixing() {
    let selector = parse("!(!(k == 'v' && has(t) || all()) && (a in {'b', 'c'}))");
    assert_eq!(
        selector.prefix("visited/").canonical(),
        r#"!(!((visited/k == "v" && has(visited/t)) || all()) && visited/a in {"b", "c"})"#
    );
    let every =
        parse("a=='x'||b!='x'||c contains 'x'||d starts with 'x'||e ends with 'x'||f not in {'x'}||global()");
    assert_eq!(
        every.prefix("p.").canonical(),
        r#"(p.a == "x" || p.b != "x" || p.c contains "x" || p.d starts with "x" || p.e ends with "x" || p.f not in {"x"} || global())"#
    );
}

#[test]
fn builders_give_canonical_selectors() {
    let has = Selector::has("n").unwrap();
    let both = Selector::and([parse("all() || a == 'x'"), Selector::all()]);
    assert_eq!(both.replace_all(&has).canonical(), r#"((has(n) || a == "x") && has(n))"#);
    assert_eq!(parse("!global()").replace_global(&has.negated()).canonical(), "has(n)");
    assert_eq!(Selector::and([]).canonical(), "all()");
    assert!(!Selector::or([]).matches(&Labels::new()));
    assert_eq!(Selector::or([has.clone()]), has);
    assert_eq!(Selector::one_of("k", ["b", "a", "b"]).unwrap().canonical(), r#"k in {"a", "b"}"#);
    assert_eq!(Selector::none_of("k", ["b"]).unwrap().canonical(), r#"k not in {"b"}"#);
    assert!(Selector::equals("k", "'\"").is_err());
    assert!(Selector::has("a b").is_err());
    assert!(parse("has(a) || global()").mentions_global());
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    let nested = |depth: usize| format!("{}all(){}", "(".repeat(depth), ")".repeat(depth));
    assert!(Selector::parse(&nested(MAX_NESTING)).is_ok());
    assert!(Selector::parse(&nested(MAX_NESTING + 1)).unwrap_err().reason.contains("deeper"));
    assert!(Selector::parse(&"(".repeat(1_000_000)).is_err());
    assert_eq!(parse(&format!("{}has(a)", "!".repeat(1_000_001))).canonical(), "!has(a)");
    assert!(parse(&vec!["has(a)"; 100_000].join(" && ")).matches(&labels("a:x")));
}

#[test]
fn errors_name_the_place() {
    let error = Selector::parse("a == 'x' && b").unwrap_err();
    assert_eq!(error.position, 13);
    assert!(error.to_string().contains("operator"), "{error}");
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("in".to_owned()),
        Just("has".to_owned()),
        "[A-Za-z0-9_./-]{1,8}"
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("x".to_owned()),
        Just("y".to_owned()),
        Just(String::new()),
        "[a-c'%]{0,4}",
        "[a-c\" é]{0,4}"
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let set = || prop::collection::btree_set(value(), 0..4);
    let leaf = prop_oneof![
        Just(Node::All),
        Just(Node::Global),
        key().prop_map(Node::Has),
        (key(), value()).prop_map(|(k, v)| Node::Equal(k, v)),
        (key(), value()).prop_map(|(k, v)| Node::NotEqual(k, v)),
        (key(), value()).prop_map(|(k, v)| Node::Contains(k, v)),
        (key(), value()).prop_map(|(k, v)| Node::StartsWith(k, v)),
        (key(), value()).prop_map(|(k, v)| Node::EndsWith(k, v)),
        (key(), set()).prop_map(|(k, v)| Node::In(k, v)),
        (key(), set()).prop_map(|(k, v)| Node::NotIn(k, v)),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(Node::negated),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Node::And),
            prop::collection::vec(inner, 2..4).prop_map(Node::Or),
        ]
    })
}

fn some_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(key(), value(), 0..4)
}

proptest! {
    #[test]
    fn canonical_text_parses_to_itself(node in node()) {
        let selector = Selector::from_node(node.clone());
        let again = Selector::parse(selector.canonical()).unwrap();
        prop_assert_eq!(again.canonical(), selector.canonical());
        prop_assert_eq!(&*again.node, &node);
        prop_assert_eq!(again.id(), selector.id());
    }

    #[test]
    fn parse_never_panics(text in any::<String>()) {
        if let Ok(selector) = Selector::parse(&text) {
            prop_assert_eq!(parse(selector.canonical()), selector);
        }
    }

    #[test]
    fn parse_never_panics_on_pieces_of_the_language(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "a", "has(", "all()", "global()", "(", ")", "{", "}", ",", "==", "!=", "!", "&&", "||", "'x'", "\"", "not", "in",
            "starts", "with", "contains", " ", "\t", "é", "=",
        ]), 0..16),
    ) {
        let text = pieces.concat();
        if let Ok(selector) = Selector::parse(&text) {
            prop_assert_eq!(parse(selector.canonical()), selector);
        }
    }

    #[test]
    fn restrictions_hold_for_every_match(node in node(), labels in some_labels()) {
        let selector = Selector::from_node(node);
        if selector.matches(&labels) {
            for (key, restriction) in selector.restrictions() {
                let found = labels.get(&key);
                let holds = match &restriction {
                    Restriction::Present => found.is_some(),
                    Restriction::OneOf(values) => found.is_some_and(|value| values.contains(value)),
                    Restriction::Absent => found.is_none(),
                };
                prop_assert!(holds, "{selector} with {labels:?} breaks {key}: {restriction:?}");
            }
        }
    }

    #[test]
    fn negation_and_prefix_mean_what_they_say(node in node(), labels in some_labels()) {
        let selector = Selector::from_node(node);
        prop_assert_eq!(selector.negated().matches(&labels), !selector.matches(&labels));
        let prefixed: Labels = labels.iter().map(|(k, v)| (format!("pcns.{k}"), v.clone())).collect();
        prop_assert_eq!(selector.prefix("pcns.").matches(&prefixed), selector.matches(&labels));
    }
}
