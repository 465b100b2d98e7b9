//! Requests: every row of the fact tables of policy model 18, and what surrounds them.

mod support;

use std::sync::Arc;

use margay_policy_engine::engine::Engine;
use margay_policy_engine::http::{
    Caller, CompiledRequestPolicy, PathError, Principal, Request, RequestDecision, RequestVerdict, evaluate,
    normalise_path, path_matches,
};
use margay_policy_engine::model::{
    Action, HeaderMatch, HeaderOperator, HttpMatch, Labels, PathMatch, Policy, Profile, Rule, TierDefault,
    Unenforced, WrittenPeer,
};
use margay_policy_engine::oracle::Finding;
use support::*;

const PACKET: &str = "tcp 10.0.0.1:40000 > 10.0.0.2:8080";

fn exact(text: &str) -> PathMatch {
    PathMatch::Exact(text.to_owned())
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(text.to_owned())
}

fn matches(item: &PathMatch, path: &str) -> bool {
    normalise_path(path).is_ok_and(|path| path_matches(item, &path))
}

fn http(methods: &[&str], paths: &[PathMatch], headers: &[HeaderMatch]) -> Rule {
    let methods = methods.iter().map(|method| (*method).to_owned()).collect();
    let mut allow = rule(Action::Allow);
    allow.http = Some(Arc::new(HttpMatch { methods, paths: paths.to_vec(), headers: headers.to_vec() }));
    allow.unenforced.push(Unenforced::Http);
    allow
}

fn header(name: &str, operator: HeaderOperator, values: &[&str]) -> HeaderMatch {
    let values = values.iter().map(|value| (*value).to_owned()).collect();
    HeaderMatch { name: name.to_owned(), operator, values }
}

fn get(path: &str) -> Request {
    Request { method: "GET".to_owned(), path: path.to_owned(), headers: Vec::new() }
}

/// Two pods of two namespaces with service accounts; the one at 10.0.0.2 is asked.
fn world() -> World {
    let mut world = World::new();
    world
        .namespace("shop", &[("env", "prod")])
        .namespace("lab", &[("env", "test")])
        .service_account("shop/web", &[("team", "front")])
        .service_account("lab/web", &[("team", "play")])
        .pod("shop/client", "10.0.0.1", &[("app", "client")], &[])
        .pod("shop/db", "10.0.0.2", &[("app", "db")], &[("rest", 6, 8080)]);
    world
}

fn ingress(rules: Vec<Rule>) -> Policy {
    policy("p", 1.0).selects("app == 'db'").only(Ingress).both(rules)
}

/// Asks about `shop/db`.
fn ask(world: &World, principal: Option<&str>, request: Option<&Request>) -> RequestDecision {
    let engine = Engine::with_all_pods_local(world.model.clone());
    let labels = Labels::new();
    let caller = Caller { packet: packet(PACKET), principal, labels: &labels };
    evaluate(engine.model(), engine.locals(), &name("shop/db"), &caller, request)
}

fn verdict(rules: Vec<Rule>, principal: Option<&str>, request: Option<&Request>) -> RequestVerdict {
    let mut world = world();
    world.policy(ingress(rules));
    ask(&world, principal, request).verdict
}

fn account(namespace: &str, name: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}

#[test]
fn pm_18_4_methods() {
    for (methods, method, expected) in [
        (&[][..], "PURGE", RequestVerdict::Allow),
        (&["GET", "HEAD"], "GET", RequestVerdict::Allow),
        (&["get", "HEAD"], "GET", RequestVerdict::Deny),
        (&["*"], "ANYTHING", RequestVerdict::Allow),
    ] {
        let request = Request { method: method.to_owned(), ..get("/") };
        assert_eq!(verdict(vec![http(methods, &[], &[])], None, Some(&request)), expected, "{methods:?}");
    }
    assert_eq!(verdict(vec![rule(Action::Allow)], None, None), RequestVerdict::Allow, "no HTTP data");
    assert_eq!(verdict(vec![http(&[], &[], &[])], None, None), RequestVerdict::Allow, "nothing is asked");
    assert_eq!(verdict(vec![http(&["GET"], &[], &[])], None, None), RequestVerdict::Deny);
}

#[test]
fn pm_18_5_items_and_request_paths() {
    assert_eq!(verdict(vec![http(&[], &[], &[])], None, Some(&get("/any/path"))), RequestVerdict::Allow);
    for (item, paths, expected) in [
        (exact("/foo"), &["/foo", "/foo?xyz", "/foo#xyz"][..], true),
        (exact("/foo"), &["/joo", "/foobar"], false),
        (prefix("/foo"), &["/foo/bar"], true),
        (prefix("/foo"), &["/foobar", "/joobar"], false),
        (prefix("/foobar"), &["/foo?bar", "/foo#bar"], false),
        (
            prefix("/public"),
            &[
                "/public",
                "/public/",
                "/public/index.html",
                "//public",
                "/public//foo",
                "/public/foo\\bar",
                "/public/foo;jsessionid=abc",
                "/public/foo;x=1/bar",
            ],
            true,
        ),
        (exact("/public"), &["/public/.", "/public/../public"], true),
        (exact("/public/foo"), &["/public/bar/../foo"], true),
        (exact("/public/file"), &["/public/%66ile"], true),
        (
            prefix("/public"),
            &[
                "/public/../admin",
                "/public/a/../../admin",
                "/public%2F..%2Fadmin",
                "/public/%2e%2e/admin",
                "/public/%2E%2E/admin",
                "/public//../admin",
                "/public/../admin?x=1",
                "/public\\..\\admin",
                "/public%5C..%5Cadmin",
                "/public/..;x/admin",
                "/public/..%3Bx/admin",
            ],
            false,
        ),
        (
            prefix("/public"),
            &[
                "/public/%252e%252e/admin",
                "/public%252fadmin",
                "/public%255c..%255cadmin",
                "/public/%25%32%65%25%32%65/admin",
            ],
            false,
        ),
        (prefix("/public"), &["/public%00/admin", "/public/foo%00bar"], false),
        (prefix("/pub"), &["/pub", "/pub/x"], true),
        (prefix("/pub"), &["/public", "/public-leak-endpoint"], false),
        (prefix("/"), &["/", "/x", "/x/y"], true),
    ] {
        for path in paths {
            assert_eq!(matches(&item, path), expected, "{item:?} {path}");
            let expected = if expected { RequestVerdict::Allow } else { RequestVerdict::Deny };
            let rules = vec![http(&[], std::slice::from_ref(&item), &[])];
            assert_eq!(verdict(rules, None, Some(&get(path))), expected, "{item:?} {path}");
        }
    }
}

#[test]
fn pm_18_5_normalisation() {
    for (path, normal) in [
        ("/", "/"),
        ("/public/", "/public"),
        ("/..", "/"),
        ("/public/../admin", "/admin"),
        ("/public%3Ffoo", "/public?foo"),
        ("\\public\\..\\admin", "/admin"),
        ("/a;p=1/b;q=2/c;r=3", "/a/b/c"),
    ] {
        assert_eq!(normalise_path(path).as_deref(), Ok(normal), "{path}");
    }
    for path in ["/%XY/admin", "/%4", "/%", "/a%c0%ae%c0%ae/b", "/a%2525/%252E"] {
        let error = normalise_path(path).unwrap_err();
        assert!(matches!(error, PathError::NotNormalisable { .. }), "{path}: {error}");
    }
    for path in ["relative/path", "http://example.com/admin", "", "*", "?x"] {
        let error = normalise_path(path).unwrap_err();
        assert!(matches!(error, PathError::NotAPath { .. }), "{path}: {error}");
    }
}

#[test]
fn pm_18_5_a_trailing_slash_of_an_item_says_nothing() {
    for path in ["/foo", "/foo/", "/foo/bar"] {
        assert!(matches(&prefix("/foo/"), path), "{path}");
    }
    assert!(matches(&exact("/foo/"), "/foo/") && matches(&exact("/"), "/"));
    assert!(!matches(&exact("/"), "/foo"));
}

#[test]
fn pm_18_5_a_normal_path_is_its_own_normal_form() {
    for path in ["/", "/a", "/a/b.c", "/a b/ü"] {
        assert_eq!(normalise_path(path).as_deref(), Ok(path));
    }
}

#[test]
fn pm_18_3_what_is_not_a_path_is_refused_where_a_path_is_asked_for() {
    let guarded = || vec![http(&["GET"], &[prefix("/")], &[])];
    for path in ["http://example.com/admin", "relative/path", ""] {
        assert_eq!(verdict(guarded(), None, Some(&get(path))), RequestVerdict::InvalidArgument, "{path}");
    }
    let options = Request { method: "OPTIONS".to_owned(), ..get("*") };
    assert_eq!(verdict(guarded(), None, Some(&options)), RequestVerdict::Deny, "the method decides first");
    assert_eq!(verdict(vec![rule(Action::Allow)], None, Some(&options)), RequestVerdict::Allow);
}

#[test]
fn pm_18_3_principals_have_exactly_one_shape() {
    let parsed: Principal = "spiffe://any.domain/ns/shop/sa/web".parse().unwrap();
    assert_eq!((parsed.domain.as_str(), parsed.account), ("any.domain", name("shop/web")));
    for text in [
        "",
        "spiffe://d/ns/shop/sa/",
        "spiffe://d/ns//sa/web",
        "spiffe:///ns/shop/sa/web",
        "spiffe://d/ns/shop/sa/web/",
        "spiffe://d/ns/shop/sa/web/more",
        "spiffe://d/sa/web/ns/shop",
        "SPIFFE://d/ns/shop/sa/web",
        "https://d/ns/shop/sa/web",
        "CN=web",
    ] {
        assert!(text.parse::<Principal>().is_err(), "{text}");
        let refused = verdict(vec![rule(Action::Allow)], Some(text), Some(&get("/")));
        assert_eq!(refused, RequestVerdict::InvalidArgument, "{text}");
    }
}

fn from_written(namespace: Option<&str>, change: impl FnOnce(&mut WrittenPeer)) -> Rule {
    let mut written =
        WrittenPeer { policy_namespace: namespace.map(str::to_owned), ..WrittenPeer::default() };
    change(&mut written);
    let mut allow = rule(Action::Allow);
    allow.source.written = Some(Arc::new(written));
    allow
}

#[test]
fn pm_18_3_service_accounts_and_namespaces_of_the_sender() {
    let by_name = || from_written(None, |written| written.service_account_names = vec!["web".to_owned()]);
    let by_team =
        || from_written(None, |written| written.service_account_selector = Some(selector("team == 'front'")));
    let not_play =
        || from_written(None, |written| written.service_account_selector = Some(selector("team != 'play'")));
    let prod = || from_written(None, |written| written.namespace_selector = Some(selector("env == 'prod'")));
    let by_namespace_name = || {
        let text = "projectcalico.org/name == 'shop'";
        from_written(None, |written| written.namespace_selector = Some(selector(text)))
    };
    let global = || from_written(None, |written| written.namespace_selector = Some(selector("global()")));
    let own = || from_written(Some("shop"), |written| written.selector = Some(selector("app == 'client'")));
    let own_not =
        || from_written(Some("shop"), |written| written.not_selector = Some(selector("app == 'x'")));
    let own_account =
        || from_written(Some("shop"), |written| written.service_account_names = vec!["web".to_owned()]);
    let replaced = || {
        from_written(Some("shop"), |written| {
            written.selector = Some(selector("all()"));
            written.namespace_selector = Some(selector("env == 'test'"));
        })
    };
    let unscoped = || from_written(Some("shop"), |_| {});
    let (allow, deny) = (RequestVerdict::Allow, RequestVerdict::Deny);
    type Make<'m> = &'m dyn Fn() -> Rule;
    let rows: [(&str, Make<'_>, [RequestVerdict; 4]); 11] = [
        // sender: shop/web, lab/web, shop/other (unknown account), nobody (plain text)
        ("names", &by_name, [allow, allow, deny, allow]),
        ("account selector", &by_team, [allow, deny, deny, allow]),
        ("negative account selector, unknown account", &not_play, [allow, deny, deny, allow]),
        ("namespace selector", &prod, [allow, deny, allow, allow]),
        ("namespace by name", &by_namespace_name, [allow, deny, allow, allow]),
        ("global() is no namespace", &global, [deny, deny, deny, allow]),
        ("selector of a NetworkPolicy", &own, [allow, deny, allow, allow]),
        ("notSelector of a NetworkPolicy", &own_not, [allow, deny, allow, allow]),
        ("accounts of a NetworkPolicy", &own_account, [allow, deny, deny, allow]),
        ("namespaceSelector replaces the policy's namespace", &replaced, [deny, allow, deny, allow]),
        ("no criterion, no scope", &unscoped, [allow, allow, allow, allow]),
    ];
    for (what, make, expected) in rows {
        let senders =
            [Some(account("shop", "web")), Some(account("lab", "web")), Some(account("shop", "other")), None];
        for (sender, expected) in senders.iter().zip(expected) {
            let found = verdict(vec![make()], sender.as_deref(), Some(&get("/")));
            assert_eq!(found, expected, "{what}: {sender:?}");
        }
    }
}

#[test]
fn pm_18_3_an_unknown_account_narrows_an_allow_and_not_a_deny() {
    let mut deny = from_written(None, |written| {
        written.service_account_selector = Some(selector("team == 'play'"));
    });
    deny.action = Action::Deny;
    let rules = || vec![deny.clone(), rule(Action::Allow)];
    assert_eq!(verdict(rules(), Some(&account("shop", "other")), Some(&get("/"))), RequestVerdict::Deny);
    assert_eq!(verdict(rules(), Some(&account("shop", "web")), Some(&get("/"))), RequestVerdict::Allow);
}

#[test]
fn pm_18_3_labels_of_the_account_win_over_those_of_the_proxy() {
    let mut world = world();
    let peer = from_written(None, |written| {
        written.service_account_selector = Some(selector("team == 'front' && version == '2'"));
    });
    world.policy(ingress(vec![peer]));
    let engine = Engine::with_all_pods_local(world.model.clone());
    let told = labels(&[("team", "forged"), ("version", "2")]);
    let web = account("shop", "web");
    let caller = Caller { packet: packet(PACKET), principal: Some(&web), labels: &told };
    let found = evaluate(engine.model(), engine.locals(), &name("shop/db"), &caller, Some(&get("/")));
    assert_eq!(found.verdict, RequestVerdict::Allow);
}

#[test]
fn pm_18_3_addresses_and_ports_still_restrict_in_plain_text() {
    let request = get("/");
    for (rule, expected) in [
        (rule(Action::Allow).from(any().selector("app == 'client'")), RequestVerdict::Allow),
        (rule(Action::Allow).from(any().selector("app == 'other'")), RequestVerdict::Deny),
        (rule(Action::Allow).from(any().nets("10.0.0.0/30")), RequestVerdict::Allow),
        (rule(Action::Allow).from(any().not_nets("10.0.0.0/30")), RequestVerdict::Deny),
        (rule(Action::Allow).protocol(6).to(any().ports("8080")), RequestVerdict::Allow),
        (rule(Action::Allow).protocol(6).to(any().ports("9090")), RequestVerdict::Deny),
        (rule(Action::Allow).protocol(17), RequestVerdict::Deny),
        // PM-9.4, where Calico's checker never matches.
        (rule(Action::Allow).protocol(6).to(any().ports("rest")), RequestVerdict::Allow),
        (rule(Action::Allow).protocol(6).to(any().not_ports("rest")), RequestVerdict::Deny),
    ] {
        assert_eq!(verdict(vec![rule.clone()], None, Some(&request)), expected, "{rule:?}");
    }
}

#[test]
fn pm_18_3_log_goes_on_and_is_told() {
    let mut world = world();
    world.policy(ingress(vec![rule(Action::Log), rule(Action::Allow)]));
    let found = ask(&world, None, Some(&get("/")));
    assert_eq!(found.verdict, RequestVerdict::Allow);
    assert_eq!(found.trace[0].finding, Finding::Logged);
    assert_eq!(found.trace[1].place.rule, 1);
}

#[test]
fn pm_18_3_what_is_missing_refuses() {
    let mut world = world();
    assert_eq!(ask(&world, None, Some(&get("/"))).verdict, RequestVerdict::Allow, "the namespace allows");
    world.model.namespaces.remove("shop");
    let found = ask(&world, None, Some(&get("/")));
    assert_eq!(found.verdict, RequestVerdict::Internal);
    assert_eq!(found.reason.as_deref(), Some("profile kns.shop is listed and does not exist"));
    world.model.pods.remove(&name("shop/db"));
    assert_eq!(ask(&world, None, Some(&get("/"))).verdict, RequestVerdict::Internal, "no such pod");
}

#[test]
fn pm_18_6_tiers_profiles_and_their_ends() {
    let request = get("/");
    let mut tiered = world();
    tiered
        .tier("first", 1.0, TierDefault::Pass)
        .policy(policy("nothing", 1.0).tier("first").only(Ingress))
        .policy(policy("egress-only", 1.0).only(Egress))
        .policy(policy("staged", 1.0).both(vec![rule(Action::Deny)]).staged());
    let found = ask(&tiered, None, Some(&request));
    assert_eq!(found.verdict, RequestVerdict::Allow, "the tier passes, the others do not apply");
    assert_eq!((found.trace[0].place.tier.as_str(), found.trace[0].place.rule), ("first", -1));
    tiered.tier("first", 1.0, TierDefault::Deny);
    let found = ask(&tiered, None, Some(&request));
    assert_eq!((found.verdict, found.trace[0].place.rule), (RequestVerdict::Deny, -1));
    tiered.tier("first", 1.0, TierDefault::Allow);
    assert_eq!(ask(&tiered, None, Some(&request)).verdict, RequestVerdict::Allow, "PM-32.5");
    let mut nowhere = world();
    nowhere.policy(ingress(Vec::new()).tier("missing"));
    assert_eq!(ask(&nowhere, None, Some(&request)).verdict, RequestVerdict::Deny, "PM-8.6");
    nowhere.tier("there", 5.0, TierDefault::Deny);
    nowhere.policy(policy("first", 1.0).tier("there").only(Ingress).both(vec![rule(Action::Allow)]));
    assert_eq!(
        ask(&nowhere, None, Some(&request)).verdict,
        RequestVerdict::Allow,
        "tiers that exist come first"
    );
    let mut of_hosts = world();
    let mut untracked = policy("untracked", 1.0).only(Ingress).both(vec![rule(Action::Deny)]);
    untracked.flags.do_not_track = true;
    of_hosts.policy(untracked);
    assert_eq!(
        ask(&of_hosts, None, Some(&request)).verdict,
        RequestVerdict::Allow,
        "PM-11.2: pods ignore it"
    );
    let mut passed = world();
    passed.policy(ingress(vec![rule(Action::Pass)]));
    assert_eq!(ask(&passed, None, Some(&request)).verdict, RequestVerdict::Allow, "the profile decides");
}

#[test]
fn pm_18_6_profile_deny_and_pass_refuse_and_zero_profiles_too() {
    let mut world = world();
    for (name, action) in [("no", Action::Deny), ("pass", Action::Pass), ("yes", Action::Allow)] {
        let profile = Profile {
            name: name.to_owned(),
            ingress: vec![rule(action)],
            egress: Vec::new(),
            labels: Labels::new(),
        };
        world.model.profiles.insert(name.to_owned(), profile.into());
    }
    let engine = Engine::with_all_pods_local(world.model.clone());
    let none = Labels::new();
    let caller = Caller { packet: packet(PACKET), principal: None, labels: &none };
    for (profiles, expected) in [
        (&[][..], RequestVerdict::Deny),
        (&["no", "yes"], RequestVerdict::Deny),
        (&["pass", "yes"], RequestVerdict::Deny),
        (&["missing", "yes"], RequestVerdict::Internal),
        (&["yes", "missing"], RequestVerdict::Allow),
        (&["ksa.shop.web", "projectcalico-default-allow"], RequestVerdict::Allow),
    ] {
        let listed: Vec<String> = profiles.iter().map(|name| (*name).to_owned()).collect();
        let policy = CompiledRequestPolicy::new(engine.model(), &none, &listed);
        let connection = policy.connection(engine.model(), engine.locals(), &caller).unwrap();
        assert_eq!(connection.judge(Some(&get("/"))).verdict, expected, "{profiles:?}");
    }
}

#[test]
fn pm_18_8_headers() {
    use HeaderOperator::{DoesNotExist, Exists, HasPrefix, HasSuffix, In, MatchesRegex, NotIn};
    let with = |headers: &[(&str, &str)]| Request {
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..get("/")
    };
    let gold = || with(&[("X-Tenant", "gold-1")]);
    for (wanted, request, expected) in [
        (header("x-tenant", Exists, &[]), gold(), true),
        (header("x-tenant", Exists, &[]), with(&[]), false),
        (header("x-tenant", DoesNotExist, &[]), with(&[]), true),
        (header("x-tenant", DoesNotExist, &["ignored"]), gold(), false),
        (header("x-tenant", HasPrefix, &["silver", "gold"]), gold(), true),
        (header("x-tenant", HasPrefix, &["Gold"]), gold(), false),
        (header("x-tenant", HasSuffix, &["-1"]), gold(), true),
        (header("x-tenant", HasSuffix, &["-2"]), gold(), false),
        (header("x-tenant", In, &["gold-1", "gold-2"]), gold(), true),
        (header("x-tenant", In, &["gold"]), gold(), false),
        (header("x-tenant", In, &["gold-1"]), with(&[]), false),
        (header("x-tenant", NotIn, &["silver"]), gold(), true),
        (header("x-tenant", NotIn, &["gold-1"]), gold(), false),
        (header("x-tenant", NotIn, &["gold-1"]), with(&[]), true),
        (header("x-tenant", NotIn, &["b"]), with(&[("x-tenant", "a"), ("x-tenant", "b")]), false),
        (header("x-tenant", In, &["b"]), with(&[("x-tenant", "a"), ("x-tenant", "b")]), true),
        (header("x-tenant", MatchesRegex, &["gold-[0-9]"]), gold(), true),
        (header("x-tenant", MatchesRegex, &["gold"]), gold(), false),
        (header("x-tenant", MatchesRegex, &["a|gold-1"]), gold(), true),
        (header("x-tenant", MatchesRegex, &["GOLD-1"]), gold(), false),
        (header("x-tenant", MatchesRegex, &["x)(y"]), gold(), false),
    ] {
        let expected = if expected { RequestVerdict::Allow } else { RequestVerdict::Deny };
        let found = verdict(vec![http(&[], &[], std::slice::from_ref(&wanted))], None, Some(&request));
        assert_eq!(found, expected, "{wanted:?} {request:?}");
    }
    let both = [header("a", Exists, &[]), header("b", Exists, &[])];
    assert_eq!(verdict(vec![http(&[], &[], &both)], None, Some(&with(&[("a", "1")]))), RequestVerdict::Deny);
    let all = with(&[("a", "1"), ("B", "2")]);
    assert_eq!(verdict(vec![http(&[], &[], &both)], None, Some(&all)), RequestVerdict::Allow);
}

#[test]
fn pm_18_2_a_rule_with_an_element_that_could_not_be_read_stays_closed() {
    let mut broken = http(&[], &[], &[]);
    broken.unenforced.push(Unenforced::Unparseable("nets[0]".to_owned()));
    assert_eq!(verdict(vec![broken], None, Some(&get("/"))), RequestVerdict::Deny);
}

#[test]
fn pm_32_7_grpc_is_a_post_to_its_method() {
    let call = Request::grpc("shop.Orders", "Create");
    for (rule, expected) in [
        (http(&["POST"], &[exact("/shop.Orders/Create")], &[]), RequestVerdict::Allow),
        (http(&[], &[prefix("/shop.Orders")], &[]), RequestVerdict::Allow),
        (http(&[], &[exact("/shop.Orders/Delete")], &[]), RequestVerdict::Deny),
        (http(&["GET"], &[], &[]), RequestVerdict::Deny),
    ] {
        assert_eq!(verdict(vec![rule], None, Some(&call)), expected);
    }
    assert!(call.is_grpc() && !get("/").is_grpc());
    let refusal = RequestVerdict::Deny.refusal(true).unwrap();
    assert_eq!((refusal.http_status, refusal.grpc_status), (200, Some(7)));
    let refusal = RequestVerdict::Deny.refusal(false).unwrap();
    assert_eq!((refusal.http_status, refusal.grpc_status), (403, None));
    assert_eq!(RequestVerdict::InvalidArgument.refusal(true).unwrap().grpc_status, Some(3));
    assert_eq!(RequestVerdict::Internal.refusal(false).unwrap().http_status, 503);
    assert_eq!(RequestVerdict::Allow.refusal(true), None);
}
