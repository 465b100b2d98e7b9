//! Every lint finds what it is for, and leaves the mended manifest alone.

mod support;

use std::path::Path;

use margay_policy_engine::engine::Engine;
use margay_policy_engine::lint::{ALL, Finding, Manifests, Severity, documentation, lint};

use margay_policy_engine::oracle;
use margay_policy_engine::packet::Direction;
use proptest::collection::vec;
use proptest::prelude::{prop_assert, proptest};
use proptest::test_runner::{Config, FileFailurePersistence};
use support::chance::Chance;

/// Two pods, their namespace and node: what most lints need to see.
const CLUSTER: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {env: prod}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: lab, labels: {env: test}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIPs: [{ip: 10.0.1.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {kubernetes.io/os: linux}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
";

/// A NetworkPolicy of Calico in namespace `shop` with this spec.
fn policy(spec: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn global(spec: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: g}}\nspec: {spec}\n"
    )
}

fn object(kind: &str, metadata: &str, spec: &str) -> String {
    format!("---\napiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n")
}

fn find(text: &str) -> Vec<Finding> {
    let text = format!("{CLUSTER}{text}");
    lint(&Manifests::read([("cluster.yaml", text.as_str())]))
}

/// `id` is found with `field` in `bad`, and not at all in `good`.
fn check(id: &str, field: &str, bad: &str, good: &str) {
    let found = find(bad);
    let mut of_id = found.iter().filter(|finding| finding.id == id);
    assert!(of_id.any(|finding| finding.field == field), "{id} at {field} is not among {found:#?}");
    let found = find(good);
    assert!(!found.iter().any(|finding| finding.id == id), "{id} is among {found:#?}");
}

const ALLOW: &str = "ingress: [{action: Allow}]";

#[test]
fn pm_4_invalid_objects_and_unknown_fields() {
    let good = policy(&format!("{{selector: app == 'web', {ALLOW}}}"));
    check("invalid-object", "spec.ingress[0].action", &policy("{ingress: [{action: allow}]}"), &good);
    check("unknown-field", "spec.selectr", &policy(&format!("{{selectr: app == 'web', {ALLOW}}}")), &good);
    let broken = find("kind: [");
    assert!(
        broken.iter().any(|finding| finding.id == "invalid-object" && finding.kind.is_empty()),
        "{broken:#?}"
    );
}

#[test]
fn what_decoding_sets_aside_is_told() {
    let rule = |values: &str| {
        policy(&format!(
            "{{selector: app == 'web', ingress: [{{action: Allow, http: {{headers: [{{header: a, operator: Exists{values}}}]}}}}]}}"
        ))
    };
    check("set-aside", "spec.ingress[0].http.headers[0].values", &rule(", values: [b]"), &rule(""));
}

#[test]
fn pm_6_1_policy_that_selects_nothing() {
    let with = |app: &str| policy(&format!("{{selector: app == '{app}', {ALLOW}}}"));
    check("selects-nothing", "spec.selector", &with("wbe"), &with("web"));
    let alone = with("wbe");
    let found = lint(&Manifests::read([("p.yaml", alone.as_str())]));
    assert_eq!(found, [], "without pods nobody knows");
}

#[test]
fn pm_5_8_selectors_that_contradict_themselves() {
    let with = |selector: &str| policy(&format!("{{selector: \"{selector}\", {ALLOW}}}"));
    check(
        "impossible-selector",
        "spec.selector",
        &with("app == 'web' && app == 'db'"),
        &with("app == 'web' || app == 'db'"),
    );
    let peer = |selector: &str| {
        policy(&format!(
            "{{selector: app == 'web', ingress: [{{action: Allow, source: {{selector: \"{selector}\"}}}}]}}"
        ))
    };
    check("impossible-selector", "spec.ingress[0].source", &peer("has(a) && !has(a)"), &peer("has(a)"));
}

#[test]
fn pm_6_3_peers_that_match_nothing_or_only_elsewhere() {
    let peer = |source: &str| {
        policy(&format!("{{selector: app == 'web', ingress: [{{action: Allow, source: {source}}}]}}"))
    };
    check(
        "peer-selects-nothing",
        "spec.ingress[0].source",
        &peer("{selector: app == 'dbb'}"),
        &peer("{selector: app == 'db'}"),
    );
    let set =
        object("GlobalNetworkSet", "{name: office, labels: {where: office}}", "{nets: [198.51.100.0/24]}");
    check(
        "selector-stays-in-namespace",
        "spec.ingress[0].source",
        &format!("{}{set}", peer("{selector: where == 'office'}")),
        &format!("{}{set}", peer("{namespaceSelector: global(), selector: where == 'office'}")),
    );
}

#[test]
fn pm_6_3_network_set_of_another_namespace_widens() {
    let set = object("NetworkSet", "{name: partners, namespace: lab}", "{nets: [198.51.100.0/24]}");
    let peer = |source: &str| {
        format!(
            "{set}{}",
            policy(&format!("{{selector: app == 'web', ingress: [{{action: Allow, source: {source}}}]}}"))
        )
    };
    check(
        "network-set-widens",
        "spec.ingress[0].source",
        &peer("{namespaceSelector: env == 'test'}"),
        &peer("{namespaceSelector: env == 'test', selector: has(projectcalico.org/orchestrator)}"),
    );
}

#[test]
fn pm_8_4_shadowed_rules() {
    let rules = |rules: &str| policy(&format!("{{selector: app == 'web', ingress: [{rules}]}}"));
    let tcp = |ports: &str| format!("{{action: Allow, protocol: TCP, destination: {{ports: [{ports}]}}}}");
    for (first, second) in [
        (tcp("'80:90'"), tcp("80, 85")),
        (tcp("'80:84', '85:90'"), tcp("'82:88'")),
        ("{action: Pass}".to_owned(), tcp("80")),
        (
            "{action: Deny, source: {nets: [10.0.0.0/8]}}".to_owned(),
            "{action: Allow, source: {nets: [10.1.0.0/16]}}".to_owned(),
        ),
        (
            "{action: Deny, source: {notNets: [10.1.0.0/16]}}".to_owned(),
            "{action: Allow, source: {nets: [10.2.0.0/16]}}".to_owned(),
        ),
        (
            "{action: Deny, source: {selector: app == 'db'}}".to_owned(),
            "{action: Allow, source: {selector: \"app == 'db' && x == '1'\"}}".to_owned(),
        ),
        ("{action: Deny, notProtocol: UDP}".to_owned(), tcp("80")),
        (
            "{action: Deny, protocol: ICMP, icmp: {type: 8}}".to_owned(),
            "{action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}}".to_owned(),
        ),
        ("{action: Deny, protocol: TCP, destination: {notPorts: [22]}}".to_owned(), tcp("80")),
    ] {
        let bad = rules(&format!("{first}, {second}"));
        let found = find(&bad);
        assert!(
            found.iter().any(|finding| finding.id == "shadowed-rule" && finding.field == "spec.ingress[1]"),
            "{bad}: {found:#?}"
        );
    }
    for (first, second) in [
        ("{action: Log}".to_owned(), tcp("80")),
        (tcp("80"), tcp("'80:81'")),
        (tcp("'80:84', '86:90'"), tcp("'82:88'")),
        (
            "{action: Deny, source: {nets: [10.1.0.0/16]}}".to_owned(),
            "{action: Allow, source: {nets: [10.0.0.0/8]}}".to_owned(),
        ),
        ("{action: Deny, source: {notNets: [10.1.0.0/16]}}".to_owned(), "{action: Allow}".to_owned()),
        (
            "{action: Deny, source: {notNets: [10.1.0.0/16]}}".to_owned(),
            "{action: Allow, source: {nets: [10.0.0.0/8]}}".to_owned(),
        ),
        (
            "{action: Deny, source: {notNets: [10.1.0.0/16]}}".to_owned(),
            "{action: Allow, ipVersion: 6}".to_owned(),
        ),
        (
            "{action: Deny, source: {selector: app == 'db'}}".to_owned(),
            "{action: Allow, source: {selector: \"app == 'db' || x == '1'\"}}".to_owned(),
        ),
        ("{action: Deny, source: {selector: all()}}".to_owned(), "{action: Allow}".to_owned()),
        ("{action: Deny, protocol: TCP, destination: {notPorts: [80]}}".to_owned(), tcp("80")),
        (
            "{action: Deny, protocol: TCP, destination: {notPorts: [80]}}".to_owned(),
            "{action: Allow, protocol: TCP}".to_owned(),
        ),
        ("{action: Allow, http: {methods: [GET]}}".to_owned(), "{action: Allow, protocol: TCP}".to_owned()),
        ("{action: Deny, ipVersion: 4}".to_owned(), tcp("80")),
        (
            "{action: Deny, protocol: ICMP, icmp: {type: 8, code: 0}}".to_owned(),
            "{action: Allow, protocol: ICMP, icmp: {type: 8}}".to_owned(),
        ),
        (tcp("http"), tcp("8080")),
        (
            "{action: Deny, protocol: ICMP, notICMP: {type: 8}}".to_owned(),
            "{action: Allow, protocol: ICMP, icmp: {type: 8}}".to_owned(),
        ),
    ] {
        let good = rules(&format!("{first}, {second}"));
        let found = find(&good);
        assert!(!found.iter().any(|finding| finding.id == "shadowed-rule"), "{good}: {found:#?}");
    }
}

proptest! {
    #![proptest_config(Config {
        cases: std::env::var("MARGAY_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1) * 400,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    })]

    /// What is said to be never reached never decides, on worlds drawn by chance.
    #[test]
    fn pm_8_4_what_is_never_reached_never_decides(
        bytes in vec(proptest::num::u8::ANY, 500..4_000),
        more in vec(proptest::num::u8::ANY, 800),
    ) {
        let mut engine = Engine::new();
        Chance::new(&bytes).world().into_iter().for_each(|change| engine.apply(change));
        let found = lint(&Manifests::of_model(engine.model().clone()));
        let is_dead = |by: &margay_policy_engine::snapshot::Attribution, list: &str| {
            let rule = format!("spec.{list}[{}]", by.rule);
            found.iter().any(|finding| {
                let is_rule = matches!(finding.id, "shadowed-rule" | "allow-covers-deny") && finding.field == rule;
                let is_policy = finding.id == "unreachable-policy" && finding.field == format!("spec.{list}");
                let same = (&finding.kind, &finding.namespace, &finding.name) == (&by.kind, &by.namespace, &by.name);
                same && (is_rule || is_policy)
            })
        };
        let mut chance = Chance::new(&more);
        for _ in 0..30 {
            let packet = chance.packet();
            for local in engine.locals().values() {
                for (direction, list) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
                    let (model, locals) = (engine.model(), engine.locals());
                    let told = oracle::evaluate(model, locals, direction, &local.pod, &packet);
                    for step in told.iter().flat_map(|told| &told.trace) {
                        let is_reached = !matches!(step.finding, oracle::Finding::NotApplicable(_) | oracle::Finding::NoMatch(_) | oracle::Finding::Applies(_));
                        let is_rule = step.place.rule >= 0 && step.place.kind != "Profile";
                        prop_assert!(!(is_reached && is_rule && is_dead(&step.place, list)), "{step:?} {found:#?}");
                    }
                }
            }
        }
    }
}

#[test]
fn pm_8_4_an_allow_wider_than_the_deny_after_it() {
    let (wide, narrow) =
        ("{action: Allow, source: {nets: [10.0.0.0/8]}}", "{action: Deny, source: {nets: [10.0.1.0/24]}}");
    let rules = |first: &str, second: &str| {
        policy(&format!("{{selector: app == 'web', ingress: [{first}, {second}]}}"))
    };
    check("allow-covers-deny", "spec.ingress[1]", &rules(wide, narrow), &rules(narrow, wide));
}

#[test]
fn pm_8_4_unreachable_policies() {
    let two = |first: &str, second: &str| {
        format!(
            "{}{}",
            object("NetworkPolicy", "{name: a, namespace: shop}", first),
            object("NetworkPolicy", "{name: b, namespace: shop}", second)
        )
    };
    let all = "{order: 1, ingress: [{action: Allow}]}";
    let web =
        "{order: 2, selector: app == 'web', ingress: [{action: Deny, source: {selector: app == 'db'}}]}";
    let narrow = "{order: 1, selector: app == 'db', ingress: [{action: Allow}]}";
    check("unreachable-policy", "spec.ingress", &two(all, web), &two(narrow, web));
    let later = "{order: 3, ingress: [{action: Allow}]}";
    assert!(!find(&two(later, web)).iter().any(|finding| finding.id == "unreachable-policy"));
    // A Pass of an earlier tier reaches the next one.
    let tier = object("Tier", "{name: first}", "{order: 10}");
    let across = |action: &str| {
        format!(
            "{tier}{}{}",
            global(&format!("{{tier: first, ingress: [{{action: {action}}}]}}")),
            policy(web)
        )
    };
    check("unreachable-policy", "spec.ingress", &across("Allow"), &across("Pass"));
}

#[test]
fn pm_8_4_pass_skips_its_own_tier_only_and_normal_policy_does_not_decide_about_forwarding() {
    let unreachable = |text: &str| find(text).iter().any(|finding| finding.id == "unreachable-policy");
    let one = |name: &str, spec: &str| object("GlobalNetworkPolicy", &format!("{{name: {name}}}"), spec);
    let later = one("b", "{order: 2, ingress: [{action: Deny, protocol: UDP}]}");
    let passing = one("a", "{order: 1, ingress: [{action: Pass}]}");
    assert!(unreachable(&format!("{passing}{later}")), "the rest of the tier is skipped");
    let tier = object("Tier", "{name: first}", "{order: 10}");
    let some_pass = one("a", "{tier: first, ingress: [{action: Pass, protocol: UDP}, {action: Allow}]}");
    assert!(!unreachable(&format!("{tier}{some_pass}{later}")), "what passes before reaches the next tier");
    let normal = one("a", "{order: 1, ingress: [{action: Allow}]}");
    let forwarded = one("b", "{order: 2, applyOnForward: true, ingress: [{action: Deny, protocol: UDP}]}");
    assert!(unreachable(&format!("{normal}{later}")));
    assert!(!unreachable(&format!("{normal}{forwarded}")), "the forward context still asks it");
}

#[test]
fn pm_32_11_a_rule_about_nodes_covers_no_other() {
    use support::{PolicyExt, World};
    let nodes = margay_policy_engine::model::Entity {
        nodes: Some(support::selector("role == 'edge'")),
        ..margay_policy_engine::model::Entity::default()
    };
    let mut first = support::rule(margay_policy_engine::model::Action::Deny);
    first.source = nodes;
    let second = support::rule(margay_policy_engine::model::Action::Allow);
    let mut world = World::new();
    world.policy(support::policy("p", 1.0).both(vec![first.clone(), second]));
    let found = lint(&Manifests::of_model(world.model.clone()));
    assert!(!found.iter().any(|finding| finding.id == "shadowed-rule"), "{found:#?}");
    world.policy(support::policy("p", 1.0).both(vec![first.clone(), first]));
    assert!(lint(&Manifests::of_model(world.model)).iter().any(|finding| finding.id == "shadowed-rule"));
}

#[test]
fn pm_8_4_log_only_denies() {
    let with = |rules: &str| policy(&format!("{{selector: app == 'web', ingress: [{rules}]}}"));
    check("log-only", "spec.ingress", &with("{action: Log}"), &with("{action: Log}, {action: Pass}"));
    let other = object(
        "NetworkPolicy",
        "{name: q, namespace: shop}",
        "{selector: app == 'web', ingress: [{action: Allow}]}",
    );
    let both = format!("{}{other}", with("{action: Log}"));
    assert!(!find(&both).iter().any(|finding| finding.id == "log-only"), "the tier applies anyhow");
}

#[test]
fn pm_8_6_what_is_missing() {
    let with = |tier: &str| policy(&format!("{{tier: {tier}, selector: app == 'web', {ALLOW}}}"));
    check("missing-tier", "spec.tier", &with("securty"), &with("default"));
    let pod = |namespace: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: x, namespace: {namespace}}}\nspec: {{nodeName: n1}}\nstatus: {{podIPs: [{{ip: 10.0.1.9}}]}}\n"
        )
    };
    check("missing-namespace", "metadata.namespace", &pod("nowhere"), &pod("lab"));
}

#[test]
fn pm_9_4_a_named_port_that_nobody_has() {
    let with = |protocol: &str, port: &str| {
        policy(&format!(
            "{{selector: app == 'web', ingress: [{{action: Allow, protocol: {protocol}, destination: {{ports: [{port}]}}}}]}}"
        ))
    };
    check(
        "unknown-named-port",
        "spec.ingress[0].destination.ports[0]",
        &with("TCP", "htttp"),
        &with("TCP", "http"),
    );
    let found = find(&with("UDP", "http"));
    assert!(found.iter().any(|finding| finding.message.contains("protocol of the rule")), "{found:#?}");
}

#[test]
fn pm_16_1_service_addresses_in_egress() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]}\n";
    let to = |net: &str| {
        format!(
            "{service}{}",
            policy(&format!(
                "{{selector: app == 'web', egress: [{{action: Allow, destination: {{nets: [{net}]}}}}]}}"
            ))
        )
    };
    check("service-address", "spec.egress[0].destination.nets[0]", &to("10.96.0.10/32"), &to("10.0.1.2/32"));
    assert!(
        !find(&to("10.0.0.0/8")).iter().any(|finding| finding.id == "service-address"),
        "pods are in there too"
    );
    let range = "---\napiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/12]}\n";
    let found = find(&format!("{range}{}", to("10.97.0.0/16")));
    assert!(found.iter().any(|finding| finding.id == "service-address"), "{found:#?}");
}

#[test]
fn pm_16_3_client_addresses_behind_a_node_port() {
    let service = |policy: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{type: NodePort, externalTrafficPolicy: {policy}, selector: {{app: web}}}}\n"
        )
    };
    let clients =
        policy("{selector: app == 'web', ingress: [{action: Allow, source: {nets: [198.51.100.0/24]}}]}");
    check(
        "client-address-lost",
        "spec.ingress[0].source.nets",
        &format!("{}{clients}", service("Cluster")),
        &format!("{}{clients}", service("Local")),
    );
    let inside =
        policy("{selector: app == 'web', ingress: [{action: Allow, source: {nets: [10.0.0.0/16]}}]}");
    assert!(
        !find(&format!("{}{inside}", service("Cluster")))
            .iter()
            .any(|finding| finding.id == "client-address-lost")
    );
}

#[test]
fn pm_10_6_a_service_without_endpoints() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.1.2]}]\nports: [{port: 5432, protocol: TCP}]\n";
    let to = |name: &str| {
        format!(
            "{slice}{}",
            policy(&format!(
                "{{selector: app == 'web', egress: [{{action: Allow, destination: {{services: {{name: {name}, namespace: shop}}}}}}]}}"
            ))
        )
    };
    check("service-without-endpoints", "spec.egress[0].destination.services", &to("dbb"), &to("db"));
}

#[test]
fn pm_6_2_negative_selectors_reach_hosts_and_global_sets() {
    let scope = |selector: &str| global(&format!("{{namespaceSelector: \"{selector}\", {ALLOW}}}"));
    check(
        "negative-scope",
        "spec.namespaceSelector",
        &scope("env != 'prod'"),
        &scope("env != 'prod' && has(projectcalico.org/name)"),
    );
    let peer = |selector: &str| {
        policy(&format!(
            "{{selector: app == 'web', ingress: [{{action: Allow, source: {{selector: app == 'db', namespaceSelector: \"{selector}\"}}}}]}}"
        ))
    };
    check("negative-scope", "spec.ingress[0].source", &peer("!has(env)"), &peer("env in {'prod', 'test'}"));
    let switch = object("FelixConfiguration", "{name: default}", "{restrictNamespaceSelectors: true}");
    let found = find(&format!("{}{switch}", scope("env != 'prod'")));
    assert!(!found.iter().any(|finding| finding.id == "negative-scope"), "{found:#?}");
}

#[test]
fn pm_18_2_rules_that_nothing_enforces() {
    let with = |http: &str| {
        policy(&format!("{{selector: app == 'web', ingress: [{{action: Allow, protocol: TCP{http}}}]}}"))
    };
    check("inert-rule", "spec.ingress[0]", &with(", http: {methods: [GET]}"), &with(""));
    let switch = object("FelixConfiguration", "{name: default}", "{allowUnenforcedCriteria: true}");
    let found = find(&format!("{}{switch}", with(", http: {methods: [GET]}")));
    assert!(!found.iter().any(|finding| finding.id == "inert-rule"), "{found:#?}");
}

#[test]
fn pm_7_5_pods_in_the_network_of_their_node() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: agent, namespace: shop, labels: {app: agent}}\nspec: {nodeName: n1, hostNetwork: true}\nstatus: {podIPs: [{ip: 192.0.2.1}]}\n";
    let peer = |app: &str| {
        format!(
            "{pod}{}",
            policy(&format!(
                "{{selector: app == 'web', ingress: [{{action: Allow, source: {{selector: app == '{app}'}}}}]}}"
            ))
        )
    };
    check("host-network-pod", "spec.ingress[0].source", &peer("agent"), &peer("db"));
    let selects = |app: &str| format!("{pod}{}", policy(&format!("{{selector: app == '{app}', {ALLOW}}}")));
    check("host-network-pod", "spec.selector", &selects("agent"), &selects("db"));
}

#[test]
fn pm_7_5_a_dns_cache_on_the_node() {
    let cache = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: cache, namespace: kube-system, labels: {k8s-app: node-local-dns}}\nspec: {nodeName: n1, hostNetwork: true}\nstatus: {podIPs: [{ip: 192.0.2.1}]}\n";
    let dns = "{action: Allow, protocol: UDP, destination: {namespaceSelector: all(), selector: app == 'db', ports: [53]}}";
    let local = "{action: Allow, protocol: UDP, destination: {nets: [169.254.20.10/32], ports: [53]}}";
    let rules =
        |rules: &str| format!("{cache}{}", policy(&format!("{{selector: app == 'web', egress: [{rules}]}}")));
    check("node-local-dns", "spec.egress[0].destination", &rules(dns), &rules(&format!("{dns}, {local}")));
}

#[test]
fn pm_12_6_a_node_reaches_its_own_pods() {
    let deny = |net: &str| {
        policy(&format!("{{selector: app == 'web', ingress: [{{action: Deny, source: {{nets: [{net}]}}}}]}}"))
    };
    check("deny-own-node", "spec.ingress[0].source", &deny("192.0.2.0/24"), &deny("198.51.100.0/24"));
}

fn host(interface: &str, profiles: &str) -> String {
    object(
        "HostEndpoint",
        "{name: h, labels: {host: 'yes'}}",
        &format!(
            "{{node: n1, interfaceName: \"{interface}\", expectedIPs: [192.0.2.1], profiles: [{profiles}]}}"
        ),
    )
}

#[test]
fn pm_11_host_endpoints() {
    let open = host("eth0", "projectcalico-default-allow");
    check("host-endpoint-closed", "spec.profiles", &host("eth0", ""), &open);
    check("missing-profile", "spec.profiles[0]", &host("eth0", "no-such"), &open);
    let untracked =
        global("{selector: has(host), doNotTrack: true, applyOnForward: true, ingress: [{action: Allow}]}");
    check(
        "untracked-on-star",
        "spec.doNotTrack",
        &format!("{}{untracked}", host("*", "projectcalico-default-allow")),
        &format!("{open}{untracked}"),
    );
    let pre = |order: u8| {
        let pre = format!(
            "{{selector: has(host), order: {order}, preDNAT: true, applyOnForward: true, ingress: [{{action: Allow}}]}}"
        );
        let normal = "{selector: has(host), order: 5, ingress: [{action: Allow}]}";
        format!("{open}{}{}", global(&pre), object("GlobalNetworkPolicy", "{name: n}", normal))
    };
    check("order-across-contexts", "spec.order", &pre(9), &pre(1));
}

#[test]
fn pm_19_staged_policies() {
    let staged = |spec: &str| object("StagedNetworkPolicy", "{name: p, namespace: shop}", spec);
    let enforced = policy(&format!("{{selector: app == 'web', {ALLOW}}}"));
    check("staged-leftover", "", &staged(&format!("{{selector: app == 'web', {ALLOW}}}")), &enforced);
    let delete = staged("{stagedAction: Delete}");
    check("staged-without-namesake", "spec.stagedAction", &delete, &format!("{delete}{enforced}"));
}

#[test]
fn pm_13_6_flows_that_are_kept() {
    let with = |action: &str| {
        object("FelixConfiguration", "{name: default}", &format!("{{policyChangeFlowAction: {action}}}"))
    };
    check("flows-kept", "spec.policyChangeFlowAction", &with("Keep"), &with("Reevaluate"));
}

#[test]
fn findings_name_their_place_and_how_to_mend_them() {
    let found = find(&policy("{selector: app == 'wbe', ingress: [{action: Allow}]}"));
    let text = found[0].to_string();
    assert!(
        text.starts_with(
            "cluster.yaml:25: warning[selects-nothing]\n  NetworkPolicy shop/p, spec.selector\n"
        ),
        "{text}"
    );
    assert!(text.ends_with("(policy model 6.1)"), "{text}");
    let json = serde_json::to_value(&found[0]).unwrap();
    assert_eq!((json["severity"].as_str(), json["name"].as_str()), (Some("warning"), Some("p")));
}

#[test]
fn a_clean_cluster_has_no_findings() {
    let clean = policy(
        "{selector: app == 'db', ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'web'}, destination: {ports: [sql]}}]}",
    );
    assert_eq!(find(&clean), []);
}

#[test]
fn every_lint_is_tested_here_and_documented() {
    let this = include_str!("lint.rs");
    for lint in ALL {
        assert!(this.contains(&format!("\"{}\"", lint.id)), "{} has no test", lint.id);
        assert!(ALL.iter().filter(|other| other.id == lint.id).count() == 1, "{} is there twice", lint.id);
    }
    assert!(Severity::Info < Severity::Warning && Severity::Warning < Severity::Error);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/lint.md");
    if std::env::var_os("MARGAY_WRITE_DOCS").is_some() {
        std::fs::write(&path, documentation()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == documentation(), "docs/lint.md is out of date; MARGAY_WRITE_DOCS=1 writes it");
}
