//! One packet, told from both ends.

mod support;

use margay_policy_engine::explain::Explanation;
use margay_policy_engine::model::{Action, TierDefault};
use support::*;

fn explain(judge: &Judge, text: &str) -> Explanation {
    Explanation::new(judge.engine.model(), judge.engine.locals(), &judge.snapshot, &packet(text))
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

source 10.0.0.1 is pod shop/client (local)
    app: client
    pcns.env: prod
    pcns.projectcalico.org/name: shop
    projectcalico.org/namespace: shop
    projectcalico.org/orchestrator: k8s
destination 10.0.0.2 is pod shop/db (local)
    app: db
    pcns.env: prod
    pcns.projectcalico.org/name: shop
    projectcalico.org/namespace: shop
    projectcalico.org/orchestrator: k8s

egress of pod shop/client: allow by Profile kns.shop, rule 0, in the profiles
  profiles
    Profile kns.shop
      rule 0: allow

ingress of pod shop/db: allow by GlobalNetworkPolicy db, rule 1, in tier default
  tier security (1 more policies do not apply to the pod)
    GlobalNetworkPolicy no-icmp
      rule 0: no match; it wants protocol 1, the packet has 6
    at the end: next tier; no rule of the tier matches; its default action is Pass
  tier default
    GlobalNetworkPolicy db
      rule 0: no match; source: 10.0.0.1 belongs to nothing that app == \"admin\" selects
      rule 1: allow
";
    assert_eq!(explanation.to_string(), expected);
}

#[test]
fn a_denied_one_and_one_that_is_not_ours() {
    let judge = world().all_local();
    let denied = explain(&judge, "tcp 192.0.2.9:40000 > 10.0.0.2:5432").to_string();
    assert!(denied.starts_with("TCP 192.0.2.9:40000 -> 10.0.0.2:5432: deny\n"), "{denied}");
    assert!(denied.contains("source 192.0.2.9 is network set office\n"), "{denied}");
    assert!(denied.contains("ingress of pod shop/db: deny by the end of tier default\n"), "{denied}");
    assert!(
        denied.contains(
            "    at the end: deny; end of tier: a policy selects the endpoint and no rule matches\n"
        ),
        "{denied}"
    );
    let foreign = explain(&judge, "icmp/8/0 192.0.2.9 > 192.0.2.10");
    assert_eq!(foreign.verdict, None);
    assert!(
        foreign
            .to_string()
            .starts_with("ICMP type 8 code 0 192.0.2.9 -> 192.0.2.10: neither end is a local endpoint")
    );
}

#[test]
fn as_json_for_programs() {
    let explanation = explain(&world().all_local(), "icmp/8/0 10.0.0.1 > 10.0.0.2");
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["verdict"], "deny");
    assert_eq!(json["egress"]["decision"]["verdict"], "allow");
    assert_eq!(json["ingress"]["decision"]["by"]["name"], "no-icmp");
    assert_eq!(json["ingress"]["reasons"]["trace"][1]["finding"]["result"], "denied");
    assert_eq!(json["destination"]["localPod"], "shop/db");
}
