//! Fact tables of policy model 6.4, 9.5 to 9.8 and 10.6: what a rule matches.

mod support;

use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Action, Entity, Rule};
use margay_policy_engine::packet::Direction;
use support::*;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "123.0.0.1";
const D: &str = "11.0.0.1";

/// Replaces the letters a, b, c, d and CIDRs by addresses of the family.
fn spell(text: &str, v6: bool) -> String {
    let word = |word: &str| -> String {
        let (head, tail) = match word.split_once(':') {
            Some((head, port)) => (head, Some(port)),
            None => (word, None),
        };
        let address = match head {
            "a" => A,
            "b" => B,
            "c" => C,
            "d" => D,
            "icmp" if v6 => return "icmp6".to_owned(),
            other if v6 && other.starts_with("icmp/") => return other.replacen("icmp", "icmp6", 1),
            _ => return word.to_owned(),
        };
        let address = if v6 { twin(address) } else { address.to_owned() };
        match tail {
            Some(port) if v6 => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address,
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn spell_nets(text: &str, v6: bool) -> String {
    text.split_whitespace()
        .map(|net| if v6 { twin(net) } else { net.to_owned() })
        .collect::<Vec<_>>()
        .join(" ")
}

/// A world with one pod `ns/w`, the fact tables' network sets and named ports, and one policy with one Allow rule.
fn world_with(rule: Rule, v6: bool) -> World {
    let nets = |text: &str| spell_nets(text, v6);
    let mut world = World::new();
    world
        .namespace("ns", &[])
        .pod("ns/w", &nets("10.1.1.1"), &[("app", "w")], &[])
        .pod("ns/b", &nets(B), &[("app", "b")], &[("n", 6, 80), ("n1", 6, 80)])
        .pod("ns/c", &nets(C), &[("app", "c")], &[("n", 17, 1024), ("n2", 17, 1024)])
        .network_set("ten", &nets("10.0.0.0/8"), &[("set", "ten")])
        .network_set("two", &nets("11.0.0.0/8 123.0.0.1/32"), &[("set", "two")])
        .policy(policy("p", 1.0).selects("app == 'w'").both(vec![rule]));
    world
}

/// Every packet of `allowed` must pass and every one of `denied` must not, in both directions and both families.
fn fact(what: &str, rule: impl Fn(bool) -> Rule, allowed: &[&str], denied: &[&str]) {
    for v6 in [false, true] {
        let judge = world_with(rule(v6), v6).all_local();
        for direction in [Ingress, Egress] {
            for (packets, expected) in [(allowed, Allow), (denied, Deny)] {
                for packet in packets {
                    let text = spell(packet, v6);
                    assert_eq!(
                        judge.verdict(direction, "ns/w", &text),
                        expected,
                        "{what}: {direction:?} {text}"
                    );
                }
            }
        }
    }
}

fn allow() -> Rule {
    rule(Action::Allow)
}

fn tcp() -> Rule {
    allow().protocol(6)
}

fn nets(text: &str, v6: bool) -> Entity {
    any().nets(&spell_nets(text, v6))
}

fn not_nets(text: &str, v6: bool) -> Entity {
    any().not_nets(&spell_nets(text, v6))
}

#[test]
fn pm_9_5_protocols() {
    fact("tcp", |_| tcp(), &["tcp a > b"], &["udp a > b", "icmp a > b", "253 a > b"]);
    fact("not tcp", |_| allow().not_protocol(6), &["udp a > b", "icmp a > b", "253 a > b"], &["tcp a > b"]);
    fact("253", |_| allow().protocol(253), &["253 a > b"], &["icmp a > b", "udp a > b", "254 a > b"]);
}

#[test]
fn pm_9_5_addresses() {
    let from_a = ["tcp a > c", "udp a > c", "icmp a > c", "253 a > c"];
    fact("src host", |v6| allow().from(nets("10.0.0.1/32", v6)), &from_a, &["tcp b > c", "udp b > a"]);
    fact(
        "src net",
        |v6| allow().from(nets("10.0.0.0/8", v6)),
        &["tcp a > c", "udp b > c"],
        &["tcp d > c", "icmp d > a"],
    );
    fact(
        "src nets",
        |v6| allow().from(nets("11.0.0.0/8 10.0.0.1/32", v6)),
        &["tcp d > c", "tcp a > c"],
        &["tcp b > c"],
    );
    fact(
        "not src nets",
        |v6| allow().from(not_nets("11.0.0.0/8 10.0.0.1/32", v6)),
        &["tcp b > c"],
        &["tcp d > c", "tcp a > c"],
    );
    fact(
        "dst host",
        |v6| allow().to(nets("10.0.0.1/32", v6)),
        &["tcp d > a", "253 b > a"],
        &["tcp a > b", "tcp a > c"],
    );
    fact(
        "not dst net",
        |v6| allow().to(not_nets("10.0.0.0/8", v6)),
        &["udp a > c"],
        &["udp c > a", "udp c > b"],
    );
    fact(
        "dst anything",
        |v6| allow().to(nets("0.0.0.0/0", v6)),
        &["tcp a > b", "icmp a > c", "253 d > a"],
        &[],
    );
    fact(
        "not dst anything",
        |v6| allow().to(not_nets("0.0.0.0/0", v6)),
        &[],
        &["tcp a > b", "icmp a > c", "253 d > a"],
    );
}

#[test]
fn pm_9_2_and_d7_a_list_of_one_family_is_no_rule_in_the_other() {
    for (rule, v6) in [
        (allow().from(nets("10.0.0.0/8", false)), true),
        (allow().from(nets("10.0.0.0/8", true)), false),
        (allow().from(not_nets("10.0.0.0/8", false)), true),
        (allow().to(not_nets("10.0.0.0/8", true)), false),
    ] {
        let judge = world_with(rule, v6).all_local();
        for packet in ["tcp a > b", "tcp d > c"] {
            assert_eq!(judge.verdict(Ingress, "ns/w", &spell(packet, v6)), Deny);
        }
    }
    let mut only_v6 = allow();
    only_v6.ip_version = Some(6);
    assert_eq!(
        world_with(only_v6.clone(), false).all_local().verdict(Ingress, "ns/w", &spell("tcp a > b", false)),
        Deny
    );
    assert_eq!(
        world_with(only_v6, true).all_local().verdict(Ingress, "ns/w", &spell("tcp a > b", true)),
        Allow
    );
    assert_eq!(
        world_with(allow().protocol(1), true).all_local().verdict(Ingress, "ns/w", &spell("1 a > b", true)),
        Deny
    );
}

#[test]
fn pm_9_5_ports() {
    let from = |ports: &'static str| move |_| tcp().from(any().ports(ports));
    let to = |ports: &'static str| move |_| tcp().to(any().ports(ports));
    fact("src 80", from("80"), &["tcp a:80 > b:9"], &["tcp a:81 > b:80", "udp a:80 > b:9", "icmp a > b"]);
    fact(
        "src 80:81",
        from("80:81"),
        &["tcp a:80 > b:9", "tcp a:81 > b:9"],
        &["tcp a:79 > b:9", "tcp a:82 > b:9", "udp a:80 > b:9"],
    );
    fact("src 0:80", from("0:80"), &["tcp a:0 > b:9", "tcp a:80 > b:9"], &["tcp a:81 > b:9"]);
    fact("dst 80:65535", to("80:65535"), &["tcp a:9 > b:80", "tcp a:9 > b:65535"], &["tcp a:9 > b:79"]);
    fact(
        "dst [80:81, 90]",
        to("80:81 90"),
        &["tcp a:9 > b:80", "tcp a:9 > b:81", "tcp a:9 > b:90"],
        &["tcp a:9 > b:79", "tcp a:9 > b:82", "tcp a:9 > b:89", "tcp a:9 > b:91", "udp a:9 > b:80"],
    );
    fact(
        "dst not [80:81, 90]",
        |_| tcp().to(any().not_ports("80:81 90")),
        &["tcp a:9 > b:79", "tcp a:9 > b:82", "tcp a:9 > b:89", "tcp a:9 > b:91"],
        &["tcp a:9 > b:80", "tcp a:9 > b:81", "tcp a:9 > b:90", "udp a:9 > b:80", "udp a:9 > b:79"],
    );
    fact(
        "src not 80",
        |_| tcp().from(any().not_ports("80")),
        &["tcp a:81 > b:80"],
        &["tcp a:80 > b:9", "udp a:9 > b:9", "icmp a > b"],
    );
    fact("dst 65535", to("65535"), &["tcp a:9 > b:65535"], &["tcp a:9 > b:80"]);
}

#[test]
fn pm_9_3_ports_without_protocol_mean_any_protocol_that_has_ports() {
    fact(
        "dst 80",
        |_| allow().to(any().ports("80")),
        &["tcp a:9 > b:80", "udp a:9 > b:80", "sctp a:9 > b:80"],
        &["tcp a:9 > b:81", "icmp a > b", "253 a > b", "136 a > b"],
    );
    fact(
        "dst not 80",
        |_| allow().to(any().not_ports("80")),
        &["udp a:9 > b:81"],
        &["udp a:9 > b:80", "icmp a > b"],
    );
}

#[test]
fn pm_9_6_sets() {
    let inside = |set: &str| any().selector(&format!("set == '{set}'"));
    let outside = |set: &str| any().not_selector(&format!("set == '{set}'"));
    let all = ["tcp a > b", "tcp d > c", "udp a > b", "icmp a > b", "253 a > b"];
    fact("tcp, src in nothing", |_| tcp().from(inside("empty")), &[], &all);
    fact("tcp, src not in nothing", |_| tcp().from(outside("empty")), &all[..2], &all[2..]);
    fact(
        "src in S",
        |_| allow().from(inside("ten")),
        &["tcp a > c", "icmp b > c", "253 a > d"],
        &["tcp d > a"],
    );
    fact("dst in S", |_| allow().to(inside("two")), &["tcp a > d", "tcp a > c"], &["tcp d > a", "tcp d > b"]);
    fact("src not in S", |_| allow().from(outside("ten")), &["tcp d > a"], &["tcp a > d", "tcp b > d"]);
    fact(
        "dst not in S",
        |_| allow().to(outside("two")),
        &["tcp d > a", "tcp d > b"],
        &["tcp a > d", "tcp a > c"],
    );
}

#[test]
fn pm_9_6_named_ports() {
    let allowed = ["tcp a:9 > b:80", "udp a:9 > c:1024"];
    let denied = ["253 a > b", "tcp a:9 > b:8080", "udp a:9 > b:80", "tcp b:80 > a:9", "tcp a:9 > a:80"];
    fact("dst n", |_| allow().to(any().ports("n")), &allowed, &denied);
    fact("dst n1, n2", |_| allow().to(any().ports("n1 n2")), &allowed, &denied);
    fact(
        "dst 81:82, 90, n1, n2",
        |_| allow().to(any().ports("81:82 90 n1 n2")),
        &["udp a:9 > c:1024", "tcp a:9 > b:80", "tcp a:9 > b:90", "tcp a:9 > b:82"],
        &["tcp a:9 > b:8080", "udp a:9 > b:80", "tcp a:9 > a:80"],
    );
    fact(
        "src n",
        |_| allow().from(any().ports("n")),
        &["tcp b:80 > a:9", "udp c:1024 > a:9"],
        &["tcp b:8080 > a:9", "udp b:80 > a:9", "tcp a:80 > b:9", "tcp a:9 > b:80"],
    );
}

#[test]
fn pm_9_7_icmp() {
    let icmp = |rule: Rule| move |v6: bool| rule.clone().protocol(if v6 { 58 } else { 1 });
    fact("type 8", icmp(allow().icmp(8, None)), &["icmp/8/0 a > b"], &["icmp/10/0 a > b", "tcp a > b"]);
    fact(
        "type 8 code 3",
        icmp(allow().icmp(8, Some(3))),
        &["icmp/8/3 a > b"],
        &["icmp/10/0 a > b", "icmp/10/3 a > b", "icmp/8/4 a > b"],
    );
    fact("not type 8", icmp(allow().not_icmp(8, None)), &["icmp/10/0 a > b"], &["icmp/8/0 a > b"]);
    fact(
        "not type 8 code 3",
        icmp(allow().not_icmp(8, Some(3))),
        &["icmp/10/0 a > b", "icmp/8/4 a > b", "icmp/10/3 a > b"],
        &["icmp/8/3 a > b"],
    );
}

/// Pods w0 to w3 with `shared-port` 1100 and `wN-port` 100N.
fn four_pods() -> World {
    let mut world = World::new();
    world.namespace("ns", &[]);
    for (pod, port) in [("w0", 1000), ("w1", 1001), ("w2", 1002), ("w3", 1003)] {
        let own = format!("{pod}-port");
        let address = format!("10.0.0.{}", port - 999);
        world.pod(
            &format!("ns/{pod}"),
            &address,
            &[("name", pod)],
            &[("shared-port", 6, 1100), (&own, 6, port)],
        );
    }
    world
}

/// Which end's port a table speaks of: the table of policy model 9.8, or its mirror.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Named {
    /// Destination ports, written in ingress rules.
    Destination,
    /// Source ports, written in egress rules: every packet of the table goes the other way.
    Source,
}

impl Named {
    const BOTH: [Self; 2] = [Self::Destination, Self::Source];

    /// The direction whose policies stand at the pod that has the port.
    fn direction(self) -> Direction {
        match self {
            Self::Destination => Ingress,
            Self::Source => Egress,
        }
    }

    /// The direction whose policies stand at the other pod.
    fn opposite(self) -> Direction {
        match self {
            Self::Destination => Egress,
            Self::Source => Ingress,
        }
    }

    /// `rule` with the peer that has the port, and the other one.
    fn rule(self, rule: Rule, port: Entity, other: Entity) -> Rule {
        match self {
            Self::Destination => rule.to(port).from(other),
            Self::Source => rule.from(port).to(other),
        }
    }

    /// The four pods under one policy of one rule.
    fn world(self, selects: &str, direction: Direction, rule: Rule) -> World {
        let mut world = four_pods();
        world.policy(policy("p", 1.0).selects(selects).only(direction).both(vec![rule]));
        world
    }

    /// Both legs of the packets such as `w1>w0:1100`: between any port of `w1` and port 1100 of `w0`.
    fn passes(self, judge: &Judge, text: &str) -> bool {
        let (from, to) = text.split_once('>').unwrap();
        let (to, port) = to.split_once(':').unwrap();
        let address = |pod: &str| format!("10.0.0.{}", pod[1..].parse::<u8>().unwrap() + 1);
        let (client, server) = (format!("{}:40000", address(from)), format!("{}:{port}", address(to)));
        let packet = match self {
            Self::Destination => format!("tcp {client} > {server}"),
            Self::Source => format!("tcp {server} > {client}"),
        };
        judge.verdict(self.opposite(), &format!("ns/{from}"), &packet) == Allow
            && judge.verdict(self.direction(), &format!("ns/{to}"), &packet) == Allow
    }

    fn row(self, what: &str, world: &World, allowed: &str, denied: &str) {
        let judge = world.all_local();
        for (list, expected) in [(allowed, true), (denied, false)] {
            for connection in list.split_whitespace() {
                assert_eq!(self.passes(&judge, connection), expected, "{self:?} {what}: {connection}");
            }
        }
    }
}

#[test]
fn pm_9_8_one_port_name() {
    for side in Named::BOTH {
        let on_w0 =
            |port: Entity| side.world("name == 'w0'", side.direction(), side.rule(tcp(), port, any()));
        side.row(
            "ports",
            &on_w0(any().ports("shared-port")),
            "w1>w0:1100 w1>w2:1002",
            "w1>w0:1000 w1>w0:4000",
        );
        side.row(
            "notPorts",
            &on_w0(any().not_ports("shared-port")),
            "w1>w0:1000 w1>w0:4000 w1>w0:3000",
            "w1>w0:1100",
        );
        let elsewhere =
            |port: Entity| side.world("name != 'w0'", side.opposite(), side.rule(tcp(), port, any()));
        side.row(
            "of w0, from all the others",
            &elsewhere(any().ports("shared-port").selector("name == 'w0'")),
            "w1>w0:1100",
            "w1>w2:1100",
        );
        side.row(
            "of all, from all but w0",
            &elsewhere(any().ports("shared-port")),
            "w1>w2:1100",
            "w1>w2:1002",
        );
    }
}

#[test]
fn pm_9_8_combinations() {
    const PORTS: &str = "shared-port w0-port w1-port 4000";
    const CHOSEN: &str = "name in {'w0', 'w1', 'w2'}";
    const GOOD: &str = "w3>w0:1100 w3>w1:1100 w3>w2:1100 w3>w0:1000 w3>w1:1001 w2>w0:4000";
    const BAD: &str = "w1>w3:1100 w3>w2:1002 w2>w0:3000";
    for side in Named::BOTH {
        let with = |port: Entity, other: Entity| {
            side.world("all()", side.direction(), side.rule(tcp(), port, other))
        };
        let chosen = || any().ports(PORTS).selector(CHOSEN);
        // What conversion makes of selector and notSelector together (policy model 6.4).
        let without_w2 = || any().ports(PORTS).selector("name in {'w0', 'w1', 'w2'} && !name == 'w2'");
        let except_w2 = "w3>w0:1100 w3>w1:1100 w3>w0:1000 w3>w1:1001 w2>w0:4000";
        side.row("selector", &with(chosen(), any()), GOOD, BAD);
        side.row("and notSelector", &with(without_w2(), any()), except_w2, &format!("{BAD} w3>w2:1100"));
        let only_not = any().ports(PORTS).not_selector("name == 'w2'");
        side.row("only notSelector", &with(only_not, any()), "w2>w3:1100 w1>w3:1100", "w3>w2:1100");
        let few = |what: &str, other: Entity| {
            side.row(
                what,
                &with(without_w2(), other),
                "w0>w1:1100 w1>w0:1100 w1>w0:4000",
                "w2>w0:1100 w3>w0:1100 w2>w0:4000 w3>w1:1001",
            );
        };
        few("peer's selector", any().selector("name in {'w0', 'w1', 'w2'} && !name == 'w2'"));
        few("peer's nets", any().nets("10.0.0.1/32 10.0.0.2/32"));
        few("peer's notNets", any().not_nets("10.0.0.3/32 10.0.0.4/32"));
        few(
            "peer's nets and notNets",
            any().nets("10.0.0.1/32 10.0.0.2/32 10.0.0.3/32").not_nets("10.0.0.3/32"),
        );
        let by_nets = || any().ports(PORTS).nets("10.0.0.1/32 10.0.0.2/32 10.0.0.3/32");
        side.row("nets", &with(by_nets(), any()), GOOD, BAD);
        let but = by_nets().not_nets("10.0.0.3/32 10.0.0.4/32");
        side.row("and notNets", &with(but, any()), except_w2, "w3>w2:1100 w1>w3:1100");
        let closed = chosen().not_ports("w0-port 1001 4000");
        side.row("and notPorts", &with(closed, any()), "w3>w0:1100", "w3>w0:1000 w3>w1:1001 w2>w0:4000");
        let named = any().ports("shared-port w0-port w1-port").selector(CHOSEN);
        side.row(
            "no protocol",
            &side.world("all()", side.direction(), side.rule(allow(), named, any())),
            "w3>w0:1100 w3>w1:1100 w3>w2:1100 w3>w0:1000 w3>w1:1001",
            &format!("{BAD} w2>w0:4000"),
        );
    }
}

#[test]
fn pm_6_4_positive_and_negative_parts() {
    // 10.9.0.0/24 is carried by two objects: one that the negative part selects and one that it does not.
    let mut base = World::new();
    base.namespace("ns", &[])
        .pod("ns/w", "10.1.1.1", &[("app", "w")], &[])
        .network_set("plain", "10.9.0.0/24 10.8.0.0/24", &[("pos", "1")])
        .network_set("both", "10.9.0.0/24 10.7.0.0/24", &[("pos", "1"), ("neg", "1")]);
    let (shared, plain, negative, unknown) = ("10.9.0.1", "10.8.0.1", "10.7.0.1", "192.0.2.1");
    for (source, allowed, denied) in [
        (any(), vec![shared, plain, negative, unknown], vec![]),
        (any().selector("has(pos)"), vec![shared, plain, negative], vec![unknown]),
        (any().selector("(has(pos)) && (!(has(neg)))"), vec![shared, plain], vec![negative, unknown]),
        (any().not_selector("has(neg)"), vec![plain, unknown], vec![shared, negative]),
    ] {
        let mut world = World { model: base.model.clone() };
        world.policy(policy("p", 1.0).selects("app == 'w'").both(vec![allow().from(source)]));
        let judge = world.all_local();
        for (addresses, expected) in [(allowed, Allow), (denied, Deny)] {
            for address in addresses {
                assert_eq!(
                    judge.verdict(Ingress, "ns/w", &format!("tcp {address} > 10.1.1.1:80")),
                    expected,
                    "{address}"
                );
            }
        }
    }
}

#[test]
fn pm_10_6_services() {
    let with = |policies: Vec<margay_policy_engine::model::Policy>, slices: &[(&str, &str)]| {
        let mut world = four_pods();
        for (slice, addresses) in slices {
            world.slice(slice, "svc", addresses, &[(6, 80)]);
        }
        for policy in policies {
            world.policy(policy);
        }
        world
    };
    let to_service = || any().service("ns/svc");
    let egress = |rules: Vec<Rule>| vec![policy("p", 1.0).only(Egress).both(rules)];
    let ingress = |rules: Vec<Rule>| vec![policy("p", 1.0).only(Ingress).both(rules)];
    let w1 = [("ns/s1", "10.0.0.2")];
    let w0_too = [("ns/s1", "10.0.0.2"), ("ns/s2", "10.0.0.1")];
    let elsewhere = [("other/s1", "10.0.0.2")];
    Named::Destination.row(
        "to",
        &with(egress(vec![allow().to(to_service())]), &w1),
        "w0>w1:80 w3>w1:80",
        "w0>w1:81 w1>w0:80",
    );
    Named::Destination.row(
        "a second slice",
        &with(egress(vec![allow().to(to_service())]), &w0_too),
        "w3>w0:80 w3>w1:80",
        "w3>w0:81",
    );
    Named::Destination.row("no slice", &with(egress(vec![allow().to(to_service())]), &[]), "", "w0>w1:80");
    Named::Destination.row(
        "another namespace",
        &with(egress(vec![allow().to(to_service())]), &elsewhere),
        "",
        "w0>w1:80",
    );
    let deny_first = vec![rule(Action::Deny).to(to_service()), allow()];
    Named::Destination.row(
        "deny to",
        &with(egress(deny_first), &w1),
        "w0>w1:81 w1>w0:80",
        "w0>w1:80 w2>w1:80",
    );
    Named::Destination.row(
        "from",
        &with(ingress(vec![allow().from(to_service())]), &w1),
        "w1>w0:80 w1>w0:81",
        "w0>w1:80",
    );
    let from_to_80 = tcp().from(to_service()).to(any().ports("80"));
    Named::Destination.row("from, to 80", &with(ingress(vec![from_to_80]), &w1), "w1>w0:80", "w1>w0:81");
    let deny_from = vec![rule(Action::Deny).from(to_service()), allow()];
    Named::Destination.row(
        "deny from",
        &with(ingress(deny_from.clone()), &w1),
        "w0>w1:80 w2>w0:80",
        "w1>w0:80 w1>w2:99",
    );
    let mut tiered = with(vec![policy("p", 1.0).tier("t").only(Ingress).both(deny_from)], &w1);
    tiered.tier("t", 1.0, margay_policy_engine::model::TierDefault::Deny);
    Named::Destination.row("in another tier", &tiered, "w0>w1:80 w2>w0:80", "w1>w0:80 w1>w2:99");
}

#[test]
fn pm_d24_who_owns_an_address() {
    let from_x = || {
        policy("p", 1.0)
            .selects("app == 'w'")
            .only(Ingress)
            .both(vec![allow().from(any().selector("role == 'x'"))])
    };
    let judge_of = |prepare: &dyn Fn(&mut World)| {
        let mut world = World::new();
        world.namespace("ns", &[]).pod("ns/w", "10.0.0.1", &[("app", "w")], &[]).policy(from_x());
        prepare(&mut world);
        let mut judge = Judge::new(margay_policy_engine::engine::Engine::with_model(world.model));
        judge.apply(Change::Endpoint(local(1, "ns/w", "", "10.0.0.1"))).publish();
        judge
    };
    const PACKET: &str = "tcp 10.0.0.7:1 > 10.0.0.1:80";
    let x = |started: &str| {
        let mut x = pod("ns/x", "10.0.0.7", &[("role", "x")], &[]);
        x.started = started.to_owned();
        x
    };
    let insert = |world: &mut World, pod| {
        world.model.insert(margay_policy_engine::model::Object::Pod(std::sync::Arc::new(pod)))
    };
    let node = |addresses: &str, cidrs: &str| margay_policy_engine::model::Node {
        name: "node".to_owned(),
        labels: labels(&[]),
        addresses: addresses.split_whitespace().map(|address| address.parse().unwrap()).collect(),
        internal_addresses: addresses.split_whitespace().count(),
        pod_cidrs: cidrs.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect(),
        annotations: Default::default(),
    };
    let put = |world: &mut World, node| {
        world.model.insert(margay_policy_engine::model::Object::Node(std::sync::Arc::new(node)))
    };
    assert_eq!(judge_of(&|world| insert(world, x(""))).verdict(Ingress, "ns/w", PACKET), Allow);

    let later = |started: &'static str| {
        move |world: &mut World| {
            insert(world, x("2026-01-02T00:00:00Z"));
            let mut y = pod("ns/y", "10.0.0.7", &[("role", "y")], &[]);
            y.started = started.to_owned();
            insert(world, y);
        }
    };
    assert_eq!(judge_of(&later("2026-01-01T00:00:00Z")).verdict(Ingress, "ns/w", PACKET), Allow);
    assert_eq!(judge_of(&later("2026-01-03T00:00:00Z")).verdict(Ingress, "ns/w", PACKET), Deny);

    for (addresses, cidrs, expected) in [
        ("10.0.0.7", "", Deny),
        ("", "10.0.0.0/30", Deny),
        ("", "10.0.0.0/28", Allow),
        ("", "fd00::/64", Allow),
    ] {
        let judge = judge_of(&|world| {
            insert(world, x(""));
            put(world, node(addresses, cidrs));
        });
        assert_eq!(judge.verdict(Ingress, "ns/w", PACKET), expected, "node {addresses} {cidrs}");
    }

    // The CNI result outranks what any status says; a local pod that is not known yet owns its address, for nobody.
    let mut judge = judge_of(&|world| insert(world, x("")));
    judge.apply(Change::Endpoint(local(2, "ns/new", "u", "10.0.0.7"))).publish();
    assert_eq!(judge.verdict(Ingress, "ns/w", PACKET), Deny);
    assert_eq!(judge.leg(Ingress, "ns/new", &packet(PACKET)), None);
    judge.apply(Change::EndpointGone(margay_policy_engine::packet::EndpointId(2))).publish();
    assert_eq!(judge.verdict(Ingress, "ns/w", PACKET), Allow);
    judge.apply(Change::Endpoint(local(3, "ns/x", "", "10.0.0.8"))).publish();
    assert_eq!(judge.verdict(Ingress, "ns/w", PACKET), Deny);
    assert_eq!(judge.verdict(Ingress, "ns/w", "tcp 10.0.0.8:1 > 10.0.0.1:80"), Allow);
}

#[test]
fn pm_d28_another_uid_is_another_pod() {
    let mut world = World::new();
    let mut w = pod("ns/w", "10.0.0.1", &[("app", "w")], &[]);
    w.uid = "old".to_owned();
    world.namespace("ns", &[]);
    world.model.insert(margay_policy_engine::model::Object::Pod(std::sync::Arc::new(w)));
    let mut judge = Judge::new(margay_policy_engine::engine::Engine::with_model(world.model));
    judge.apply(Change::Endpoint(local(1, "ns/w", "new", "10.0.0.1"))).publish();
    assert_eq!(judge.leg(Ingress, "ns/w", &packet("tcp 10.0.0.2:1 > 10.0.0.1:80")), None);
    judge.apply(Change::Endpoint(local(1, "ns/w", "old", "10.0.0.1"))).publish();
    assert_eq!(judge.verdict(Ingress, "ns/w", "tcp 10.0.0.2:1 > 10.0.0.1:80"), Allow);
}

#[test]
fn pm_d15_criteria_that_are_not_enforced() {
    use margay_policy_engine::model::Unenforced;
    let unenforced = |action| {
        let mut rule = rule(action).protocol(6);
        rule.unenforced = vec![Unenforced::Http];
        rule
    };
    for (rules, expected) in [
        (vec![unenforced(Action::Allow)], Deny),
        (vec![unenforced(Action::Pass)], Deny),
        (vec![unenforced(Action::Deny), allow()], Deny),
        (vec![unenforced(Action::Allow), allow()], Allow),
    ] {
        let mut world = World::new();
        world.namespace("ns", &[]).pod("ns/w", "10.0.0.1", &[], &[]).policy(policy("p", 1.0).both(rules));
        assert_eq!(world.all_local().verdict(Ingress, "ns/w", "tcp 10.0.0.2:1 > 10.0.0.1:80"), expected);
    }
}
