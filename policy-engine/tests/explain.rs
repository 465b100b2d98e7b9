//! One packet, told from both ends; what staged policies would do to it, and what a change of objects does.

mod support;

use std::sync::Arc;

use margay_policy_engine::engine::{Change, HostInterface};
use margay_policy_engine::explain::diff::Difference;
use margay_policy_engine::explain::{Asked, Explainer, Explanation, Says, words};
use margay_policy_engine::model::{
    Action, FelixConfiguration, HostEndpoint, Node, Object, Policy, PolicyKey, PolicyKind, StagedAction,
    TierDefault, Unenforced,
};
use margay_policy_engine::packet::{Context, HostId};
use support::*;

fn explain(judge: &Judge, text: &str) -> Explanation {
    let (model, locals) = (judge.engine.model(), judge.engine.locals());
    Explanation::of_packet(&Explainer { model, locals, snapshot: &judge.snapshot }, &packet(text))
}

fn world() -> World {
    let mut world = World::new();
    world
        .namespace("shop", &[("env", "prod")])
        .pod("shop/client", "10.0.0.1", &[("app", "client")], &[])
        .pod("shop/db", "10.0.0.2", &[("app", "db")], &[("sql", 6, 5432)])
        .network_set("office", "192.0.2.0/24", &[("where", "office")])
        .tier("security", 10.0, TierDefault::Pass)
        .policy(
            policy("no-icmp", 1.0).tier("security").only(Ingress).both(vec![rule(Action::Deny).protocol(1)]),
        )
        .policy(
            policy("elsewhere", 2.0)
                .tier("security")
                .selects("app == 'other'")
                .both(vec![rule(Action::Deny)]),
        )
        .policy(policy("db", 5.0).selects("app == 'db'").only(Ingress).both(vec![
            rule(Action::Allow).protocol(6).from(any().selector("app == 'admin'")),
            rule(Action::Allow).protocol(6).from(any().selector("app == 'client'")).to(any().ports("sql")),
        ]));
    world
}

#[test]
fn an_allowed_connection() {
    let explanation = explain(&world().all_local(), "tcp 10.0.0.1:40000 > 10.0.0.2:5432");
    assert!(explanation.agrees());
    let expected = "\
TCP 10.0.0.1:40000 -> 10.0.0.2:5432: allow

from 10.0.0.1: pod shop/client
    app: client
    pcns.env: prod
    pcns.projectcalico.org/name: shop
    projectcalico.org/namespace: shop
    projectcalico.org/orchestrator: k8s
to 10.0.0.2: pod shop/db
    app: db
    pcns.env: prod
    pcns.projectcalico.org/name: shop
    projectcalico.org/namespace: shop
    projectcalico.org/orchestrator: k8s

egress of pod shop/client: allow by Profile kns.shop rule 0 in the profiles
  tier security (order 10, default action Pass): no policy of it applies to egress
    1 policy does not apply: it does not govern egress
    1 policy does not apply: its selector does not select the pod
  tier adminnetworkpolicy (order 1000, default action Pass): has no policies
  tier kube-admin (order 1000, default action Pass): has no policies
  tier default (order 1000000, default action Deny): no policy of it applies to egress
    1 policy does not apply: it does not govern egress
  tier baselineadminnetworkpolicy (order 10000000, default action Pass): has no policies
  tier kube-baseline (order 10000000, default action Pass): has no policies
  profiles
    Profile kns.shop: the endpoint lists it
      rule 0: matches: allow
        Allow everything
  recorded: 0|__PROFILE__|pro:kns.shop|allow|0

ingress of pod shop/db: allow by GlobalNetworkPolicy db rule 1 in tier default
  tier security (order 10, default action Pass)
    GlobalNetworkPolicy no-icmp: selects everything, for ingress
      rule 0: no match: it wants ICMP, the packet is TCP
        Deny ICMP
    1 policy does not apply: its selector does not select the pod
    at the end: next tier: no rule of the tier matches; its default action is Pass
  tier adminnetworkpolicy (order 1000, default action Pass): has no policies
  tier kube-admin (order 1000, default action Pass): has no policies
  tier default (order 1000000, default action Deny)
    GlobalNetworkPolicy db: selects app == \"db\", for ingress
      rule 0: no match: source: 10.0.0.1 belongs to nothing that app == \"admin\" selects
        Allow TCP from app == \"admin\"
      rule 1: matches: allow
        Allow TCP from app == \"client\" to port sql
  tier baselineadminnetworkpolicy (order 10000000, default action Pass): not reached
  tier kube-baseline (order 10000000, default action Pass): not reached
  profiles: not reached
  recorded: 0|security|gnp:no-icmp|pass|-1  1|default|gnp:db|allow|1
";
    assert_eq!(explanation.to_string(), expected);
    let all = explanation.text(true);
    assert!(
        all.contains("GlobalNetworkPolicy elsewhere does not apply: its selector does not select the pod: app == \"other\"\n"),
        "{all}"
    );
}

#[test]
fn a_denied_one_and_one_that_is_not_ours() {
    let judge = world().all_local();
    let denied = explain(&judge, "tcp 192.0.2.9:40000 > 10.0.0.2:5432").to_string();
    assert!(denied.starts_with("TCP 192.0.2.9:40000 -> 10.0.0.2:5432: deny\n"), "{denied}");
    assert!(denied.contains("from 192.0.2.9: network set office\n"), "{denied}");
    assert!(denied.contains("ingress of pod shop/db: deny by the end of tier default\n"), "{denied}");
    assert!(
        denied.contains(
            "    at the end: deny: end of tier: a policy selects the endpoint and no rule matches\n"
        ),
        "{denied}"
    );
    let foreign = explain(&judge, "icmp/8/0 192.0.2.9 > 192.0.2.10");
    assert!(foreign.legs.is_empty());
    assert!(foreign.to_string().contains("neither end is a local endpoint"));
}

#[test]
fn as_json_for_programs_and_back() {
    let explanation = explain(&world().all_local(), "icmp/8/0 10.0.0.1 > 10.0.0.2");
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["verdict"], "deny");
    assert_eq!(json["legs"][0]["verdict"], "allow");
    assert_eq!(json["legs"][1]["by"]["name"], "no-icmp");
    assert_eq!(json["legs"][1]["tiers"][0]["policies"][0]["rules"][0]["outcome"], "deny");
    assert_eq!(json["legs"][1]["trace"][0], "0|security|gnp:no-icmp|deny|0");
    assert_eq!(serde_json::from_value::<Explanation>(json).unwrap(), explanation);
}

#[test]
fn pm_19_4_the_pending_outcome_beside_the_enforced_one() {
    let mut staged = policy("db", 5.0).selects("app == 'db'").only(Ingress).both(vec![rule(Action::Deny)]);
    staged.key.kind = PolicyKind::StagedGlobalNetworkPolicy;
    staged.staged = Some(StagedAction::Set);
    let mut world = world();
    world.policy(staged);
    let explanation = explain(&world.all_local(), "tcp 10.0.0.1:40000 > 10.0.0.2:5432");
    assert_eq!(explanation.verdict, Says::Allow);
    let pending = explanation.legs[1].pending.as_ref().unwrap();
    assert!(pending.differs && pending.verdict == Says::Deny);
    assert_eq!(pending.trace, ["0|security|gnp:no-icmp|pass|-1", "1|default|sgnp:db|deny|0"]);
    let text = explanation.to_string();
    assert!(text.contains("if the staged policies were enforced: the same\n"), "egress: {text}");
    assert!(
        text.contains("if the staged policies were enforced: deny by StagedGlobalNetworkPolicy db rule 0 in tier default\n"),
        "{text}"
    );
    assert!(explain(&self::world().all_local(), "tcp 10.0.0.1 > 10.0.0.2:1").legs[1].pending.is_none());
}

#[test]
fn pm_11_2_a_host_endpoint_is_told_in_its_context() {
    let mut world = world();
    let endpoint = HostEndpoint {
        name: "n-eth0".to_owned(),
        labels: labels(&[("host", "yes")]),
        node: "n".to_owned(),
        interface_name: "eth0".to_owned(),
        expected_ips: vec!["192.0.2.1".parse().unwrap()],
        profiles: Vec::new(),
        ports: Vec::new(),
    };
    world.model.insert(Object::HostEndpoint(Arc::new(endpoint)));
    let mut forward = policy("fence", 1.0).selects("has(host)").both(vec![rule(Action::Deny).protocol(17)]);
    forward.flags.apply_on_forward = true;
    world.policy(forward);
    let interface = HostInterface {
        id: HostId(1),
        node: "n".to_owned(),
        name: "eth0".to_owned(),
        addresses: Vec::new(),
        is_pod_side: false,
    };
    let mut judge = world.all_local();
    judge.apply(Change::Interface(interface.clone())).publish();
    let (model, locals) = (judge.engine.model(), judge.engine.locals());
    let explainer = Explainer { model, locals, snapshot: &judge.snapshot };
    let told = |context, text: &str| {
        let asked = Asked::Host { interface: &interface, context, direction: Ingress };
        explainer.leg(&asked, &packet(text))
    };
    let leg = told(Context::Forward, "udp 10.0.0.9 > 10.0.0.2:53");
    assert_eq!(leg.disagreement, None);
    assert_eq!((leg.verdict, leg.subject.as_str()), (Says::Deny, "host endpoint n-eth0 (eth0 of node n)"));
    assert_eq!(leg.trace, ["0|default|gnp:fence|deny|0"]);
    assert_eq!(told(Context::PreDnat, "udp 10.0.0.9 > 10.0.0.2:53").verdict, Says::NoMatch);
    let ssh = told(Context::Normal, "tcp 10.0.0.9 > 192.0.2.1:22");
    assert_eq!((ssh.verdict, ssh.disagreement), (Says::Allow, None), "failsafe");
}

#[test]
fn a_difference_names_verdict_decider_policies_and_labels() {
    let before = world().all_local();
    let mut changed = world();
    changed
        .policy(policy("db", 5.0).selects("app == 'db'").only(Ingress).both(vec![
            rule(Action::Allow).protocol(6).from(any().selector("app == 'admin'")),
            rule(Action::Allow).protocol(6).from(any().selector("app == 'client'")).to(any().ports("5433")),
        ]))
        .policy(policy("unrelated", 1.0).selects("app == 'x'"))
        .policy(policy("elsewhere", 3.0).tier("security").selects("app == 'other'"))
        .policy(policy("gate", 9.0).selects("app == 'db'").only(Ingress))
        .pod("shop/client", "10.0.0.1", &[("app", "client"), ("v", "2")], &[])
        .tier("security", 10.0, TierDefault::Deny);
    changed.tier("security", 11.0, TierDefault::Pass);
    let after = changed.all_local();
    let text = "tcp 10.0.0.1:40000 > 10.0.0.2:5432";
    let (old, new) = (explain(&before, text), explain(&after, text));
    let difference = Difference::new((before.engine.model(), &old), (after.engine.model(), &new));
    assert!(difference.changes_verdict());
    let expected = "\
TCP 10.0.0.1:40000 -> 10.0.0.2:5432: was allow, is deny
  ingress of pod shop/db (normal)
    was allow by GlobalNetworkPolicy db rule 1 in tier default
    is  deny by the end of tier default
  from: v: 2 is new
  GlobalNetworkPolicy db changed
    - ingress: Allow TCP from app == \"client\" to port sql
    + ingress: Allow TCP from app == \"client\" to port 5433
    - egress: Allow TCP from app == \"client\" to port sql
    + egress: Allow TCP from app == \"client\" to port 5433
  GlobalNetworkPolicy gate added
    selects app == \"db\", for ingress
  Tier security changed
    was order 10, default action Pass, is order 11, default action Pass
";
    assert_eq!(difference.to_string(), expected);
    let same = Difference::new((before.engine.model(), &old), (before.engine.model(), &old));
    assert!(!same.changes_verdict());
    assert_eq!(same.to_string(), "TCP 10.0.0.1:40000 -> 10.0.0.2:5432: allow, as before\n");
}

#[test]
fn targets_are_told_as_they_were_written() {
    let namespaced = |text: &str| {
        let scoped = format!("{text} && projectcalico.org/namespace == 'shop'");
        let mut policy = policy("p", 1.0).selects(scoped.trim_start_matches(" && "));
        policy.key = PolicyKey {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some("shop".to_owned()),
            name: "p".to_owned(),
        };
        words::target(&policy)
    };
    let all = "selects every pod of namespace shop, for ingress and egress";
    assert_eq!(namespaced(""), all);
    assert_eq!(namespaced("projectcalico.org/orchestrator == 'k8s'"), all);
    assert_eq!(
        namespaced("(projectcalico.org/orchestrator == 'k8s' && app == 'db')"),
        "selects app == \"db\" in namespace shop, for ingress and egress"
    );
    assert_eq!(
        namespaced("(a == '1' || b == '2')"),
        "selects a == \"1\" || b == \"2\" in namespace shop, for ingress and egress"
    );
    let mut nothing: Policy = policy("p", 1.0);
    nothing.selector = None;
    assert!(words::target(&nothing).contains("could not be understood"));
}

#[test]
fn pm_32_11_a_rule_that_names_nodes_matches_their_addresses() {
    let mut world = world();
    let node = Node {
        name: "n".to_owned(),
        labels: labels(&[("role", "edge")]),
        addresses: vec!["192.0.2.7".parse().unwrap()],
        internal_addresses: 1,
        pod_cidrs: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
    };
    world.model.insert(Object::Node(Arc::new(node)));
    let mut peers = any();
    peers.nodes = Some(selector("role == 'edge'"));
    world.policy(
        policy("db", 5.0).selects("app == 'db'").only(Ingress).both(vec![rule(Action::Allow).from(peers)]),
    );
    let judge = world.all_local();
    assert_eq!(judge.verdict(Ingress, "shop/db", "tcp 192.0.2.7 > 10.0.0.2:1"), Allow);
    assert_eq!(judge.verdict(Ingress, "shop/db", "tcp 192.0.2.8 > 10.0.0.2:1"), Deny);
}

#[test]
fn pm_d15_the_switch_lets_unenforced_criteria_be_as_in_calico() {
    let verdict = |switch: Option<bool>, criterion: Unenforced| {
        let mut world = world();
        let mut allow = rule(Action::Allow);
        allow.unenforced.push(criterion);
        world.policy(policy("db", 5.0).selects("app == 'db'").only(Ingress).both(vec![allow]));
        let configuration = FelixConfiguration {
            name: "default".to_owned(),
            allow_unenforced_criteria: switch,
            ..FelixConfiguration::default()
        };
        world.model.insert(Object::FelixConfiguration(Arc::new(configuration)));
        world.all_local().verdict(Ingress, "shop/db", "tcp 10.0.0.1 > 10.0.0.2:1")
    };
    assert_eq!(verdict(None, Unenforced::Http), Deny);
    assert_eq!(verdict(Some(true), Unenforced::Http), Allow);
    assert_eq!(verdict(Some(true), Unenforced::Domains), Allow);
    assert_eq!(verdict(Some(true), Unenforced::Unparseable("nets[0]".to_owned())), Deny, "PM-D5");
}
