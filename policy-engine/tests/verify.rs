//! Statements about all packets: what is claimed must hold for any packet that somebody draws, and what contradicts must be true.
//!
//! `MARGAY_PROPERTY_CASES` multiplies the number of worlds (default 1).

mod support;

use std::net::IpAddr;
use std::time::Duration;

use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{
    Action, EndpointToHostAction, FelixConfiguration, Node, Object, Policy, PolicyKind, PortMatch, Rule,
    Settings, TierDefault,
};
use margay_policy_engine::oracle;
use margay_policy_engine::packet::{PacketTuple, Verdict};
use margay_policy_engine::verify::{Assertion, Claim, Finding, Peer, Pods, Service, Verifier, VerifyError};
use margay_policy_engine::walk::is_discovery;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use support::chance::Chance;
use support::{Allow, Deny, Egress, Ingress, World, selector};

const LIMIT: Duration = Duration::from_secs(60);

fn judge(engine: &mut Engine, assertion: &Assertion) -> Result<Finding, VerifyError> {
    Verifier::new(engine, LIMIT).judge(assertion)
}

fn namespace(name: &str) -> Peer {
    Peer::Pods(Pods { namespace: Some(name.to_owned()), ..Pods::default() })
}

fn app(name: &str) -> Peer {
    Peer::Pods(Pods { selector: Some(selector(&format!("app == '{name}'"))), ..Pods::default() })
}

fn assertion(claim: Claim, from: &[Peer], to: &[Peer], services: &[Service]) -> Assertion {
    Assertion {
        claim,
        from: from.to_vec(),
        to: to.to_vec(),
        services: services.to_vec(),
        may_be_empty: false,
    }
}

fn tcp(port: u16) -> Service {
    Service { protocol: Some(6), ports: Some((port, port)), icmp: None }
}

fn ingress(name: &str, selects: &str, rules: Vec<Rule>) -> Policy {
    Policy {
        selector: Some(selector(selects)),
        governs_egress: false,
        ingress: rules,
        ..support::policy(name, 1.0)
    }
}

fn allow_from(text: &str, port: u16) -> Rule {
    let mut rule = Rule { protocol: Some(6), ..Rule::everything(Action::Allow) };
    rule.source.selector = Some(selector(text));
    rule.destination.ports = vec![PortMatch::Range { first: port, last: port }];
    rule
}

/// A shop whose database only its web servers may ask, and another namespace.
fn shop() -> World {
    let mut world = World::new();
    world
        .namespace("shop", &[])
        .namespace("other", &[])
        .pod("shop/web-1", "10.0.0.1 2001:db8::1", &[("app", "web")], &[])
        .pod("shop/web-2", "10.0.0.2", &[("app", "web")], &[])
        .pod("shop/db", "10.0.0.3 2001:db8::3", &[("app", "db")], &[])
        .pod("other/x", "10.0.1.1 2001:db8::1:1", &[("app", "x")], &[])
        .policy(ingress("db", "app == 'db'", vec![allow_from("app == 'web'", 5432)]));
    world
}

fn engine(world: &World) -> Engine {
    Engine::with_all_pods_local(world.model.clone())
}

#[test]
fn what_no_packet_can_do_is_proved() {
    let mut engine = engine(&shop());
    let db = [app("db")];
    for holding in [
        assertion(Claim::Deny, &[namespace("other")], &db, &[]),
        assertion(Claim::Deny, &[Peer::Outside], &db, &[]),
        assertion(Claim::Deny, &[app("web")], &db, &[tcp(5433), tcp(5431)]),
        assertion(Claim::Only, &[app("web")], &db, &[]),
        assertion(Claim::Only, &[app("web")], &db, &[tcp(5432)]),
        assertion(Claim::Only, &[], &db, &[tcp(22)]),
        assertion(Claim::Allow, &[app("web")], &db, &[tcp(5432)]),
        assertion(Claim::Allow, &[namespace("other")], &[app("web")], &[]),
    ] {
        let finding = judge(&mut engine, &holding).unwrap();
        assert!(finding.holds && finding.counterexample.is_none(), "{holding:?}: {finding:?}");
        assert!(finding.examined > 0, "{holding:?}");
    }
}

#[test]
fn what_one_packet_contradicts_is_shown_by_it_and_by_who_decided() {
    let mut engine = engine(&shop());
    let finding =
        judge(&mut engine, &assertion(Claim::Deny, &[namespace("shop")], &[app("db")], &[])).unwrap();
    let found = finding.counterexample.unwrap();
    assert_eq!((found.verdict, found.to.as_str()), (Allow, "shop/db"));
    assert!(found.from.starts_with("shop/web-"), "{found:?}");
    assert_eq!((found.packet.protocol, found.packet.destination_port), (6, Some(5432)));
    assert_eq!(found.ingress.unwrap().attribution.unwrap().name, "db");

    let finding = judge(&mut engine, &assertion(Claim::Allow, &[app("web")], &[app("db")], &[])).unwrap();
    let found = finding.counterexample.unwrap();
    assert_eq!(found.verdict, Deny);
    assert_eq!(found.ingress.unwrap().attribution.unwrap().rule, -1);

    let only = assertion(Claim::Only, &[app("db")], &[app("web")], &[tcp(80)]);
    let found = judge(&mut engine, &only).unwrap().counterexample.unwrap();
    assert!(["other/x", "outside", "shop/web-1", "shop/web-2"].contains(&found.from.as_str()), "{found:?}");
}

#[test]
fn one_port_of_one_pod_in_one_family_is_found() {
    let mut world = shop();
    let mut hole = allow_from("app == 'x'", 40_000);
    hole.ip_version = Some(6);
    hole.source.ports = vec![PortMatch::Range { first: 1000, last: 1000 }];
    world.policy(ingress("hole", "app == 'db'", vec![hole]));
    let claim = assertion(Claim::Deny, &[namespace("other")], &[namespace("shop")], &[tcp(40_000)]);
    let web = Peer::Pods(Pods { name: Some("db".to_owned()), ..Pods::default() });
    let narrow = Assertion { to: vec![web], ..claim };
    let found = judge(&mut engine(&world), &narrow).unwrap().counterexample.unwrap();
    assert!(found.packet.source.is_ipv6());
    assert_eq!((found.packet.source_port, found.packet.destination_port), (Some(1000), Some(40_000)));
}

#[test]
fn the_one_of_many_pods_that_may_is_found() {
    for who in 0..8 {
        let mut world = shop();
        for n in 0..8 {
            let (key, number) = (format!("other/p{n}"), n.to_string());
            // Labels that policy looks at, or all would be alike.
            world.pod(&key, &format!("10.0.2.{n}"), &[("number", &number)], &[]);
            let elsewhere = allow_from(&format!("number == '{n}'"), 1);
            world.policy(ingress(&format!("see{n}"), "app == 'web'", vec![elsewhere]));
        }
        world.policy(ingress("one", "app == 'db'", vec![allow_from(&format!("number == '{who}'"), 9)]));
        let claim = assertion(Claim::Deny, &[namespace("other")], &[app("db")], &[]);
        let found = judge(&mut engine(&world), &claim).unwrap().counterexample.unwrap();
        assert_eq!((found.from, found.packet.destination_port), (format!("other/p{who}"), Some(9)));
    }
}

#[test]
fn an_address_of_a_cidr_that_is_treated_otherwise_is_found() {
    let mut world = shop();
    let mut rule = Rule::everything(Action::Allow);
    rule.source.nets = vec!["203.0.113.77/32".parse().unwrap()];
    world.policy(ingress("partner", "app == 'db'", vec![rule]));
    let net = |text: &str| [Peer::Net(text.parse().unwrap())];
    let claim = |text: &str| assertion(Claim::Deny, &net(text), &[app("db")], &[]);
    let mut engine = engine(&world);
    let found = judge(&mut engine, &claim("203.0.113.0/24")).unwrap().counterexample.unwrap();
    assert_eq!((found.packet.source.to_string().as_str(), found.from.as_str()), ("203.0.113.77", "outside"));
    assert!(judge(&mut engine, &claim("203.0.113.0/26")).unwrap().holds);
    // Pods in a CIDR are pods: their own policy counts, and their labels do.
    assert!(!judge(&mut engine, &claim("10.0.0.0/16")).unwrap().holds);
    assert!(judge(&mut engine, &claim("10.0.1.0/24")).unwrap().holds);
    let only = assertion(Claim::Only, &[app("web"), net("203.0.113.77/32")[0].clone()], &[app("db")], &[]);
    assert!(judge(&mut engine, &only).unwrap().holds);
    let only = assertion(Claim::Only, &[app("web"), net("203.0.113.78/32")[0].clone()], &[app("db")], &[]);
    assert!(!judge(&mut engine, &only).unwrap().holds);
}

#[test]
fn pm_7_3_a_named_port_counts_where_it_is_declared() {
    let mut world = shop();
    world.pod("shop/named", "10.0.0.9", &[("app", "named")], &[("sql", 6, 7777)]);
    let mut rule = allow_from("app == 'x'", 1);
    rule.destination.ports = vec![PortMatch::Named("sql".to_owned())];
    world.policy(ingress("named", "app == 'named'", vec![rule]));
    let found =
        judge(&mut engine(&world), &assertion(Claim::Deny, &[namespace("other")], &[app("named")], &[]));
    assert_eq!(found.unwrap().counterexample.unwrap().packet.destination_port, Some(7777));
}

#[test]
fn pm_12_5_a_node_reaches_its_own_pods_and_is_reached_as_configured() {
    let mut world = shop();
    world.model.insert(Object::Node(
        Node {
            name: "node".to_owned(),
            labels: Default::default(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            internal_addresses: 1,
            pod_cidrs: Vec::new(),
            annotations: Default::default(),
        }
        .into(),
    ));
    let nodes = [Peer::Nodes(None)];
    let to_pods = assertion(Claim::Deny, &nodes, &[app("db")], &[]);
    let found = judge(&mut engine(&world), &to_pods).unwrap().counterexample.unwrap();
    assert_eq!(found.from, "host:node");
    assert!(found.reason.unwrap().contains("its own pods"));
    // Which nobody claims otherwise.
    assert!(
        judge(&mut engine(&world), &assertion(Claim::Only, &[app("web")], &[app("db")], &[])).unwrap().holds
    );
    let to_node = assertion(Claim::Deny, &[app("web")], &nodes, &[]);
    assert!(judge(&mut engine(&world), &to_node).unwrap().holds);
    world.model.insert(Object::FelixConfiguration(
        FelixConfiguration {
            name: "default".to_owned(),
            endpoint_to_host: Some(EndpointToHostAction::Accept),
            ..FelixConfiguration::default()
        }
        .into(),
    ));
    assert!(!judge(&mut engine(&world), &to_node).unwrap().holds);
}

#[test]
fn a_statement_about_nobody_is_a_mistake() {
    let mut engine = engine(&shop());
    let nobody = assertion(Claim::Deny, &[namespace("shpo")], &[app("db")], &[]);
    let error = judge(&mut engine, &nobody).unwrap_err();
    assert_eq!(error, VerifyError::Empty { side: "from", peer: "namespace shpo".to_owned() });
    let allowed = Assertion { may_be_empty: true, ..nobody };
    assert!(judge(&mut engine, &allowed).unwrap().holds);
    let outside = assertion(Claim::Deny, &[Peer::Outside], &[Peer::Outside], &[]);
    assert_eq!(judge(&mut engine, &outside).unwrap_err(), VerifyError::NoPod);
}

#[test]
fn a_statement_that_takes_too_long_is_given_up() {
    let mut world = shop();
    let rules = (0..200).map(|n| {
        let mut rule = allow_from("app == 'nobody'", 2 * n + 1);
        rule.source.ports = vec![PortMatch::Range { first: 2 * n + 1, last: 2 * n + 1 }];
        rule
    });
    world.policy(ingress("many", "app == 'db'", rules.collect()));
    let mut engine = engine(&world);
    let claim = assertion(Claim::Deny, &[namespace("other")], &[app("db")], &[]);
    let error = Verifier::new(&mut engine, Duration::ZERO).judge(&claim).unwrap_err();
    assert!(matches!(error, VerifyError::TooLong { examined: 1024.., .. }), "{error:?}");
    assert!(judge(&mut engine, &claim).unwrap().holds);
}

/// What somebody is, read from the Model alone.
#[derive(PartialEq)]
enum Who {
    Pod(margay_policy_engine::model::NamespacedName, Option<String>),
    Node(String),
    Outside,
}

/// `None` where an address is that of two nodes: then it depends on which one is meant.
fn who(engine: &Engine, address: IpAddr) -> Option<Who> {
    let model = engine.model();
    if let Some(local) = engine.locals().values().find(|local| local.addresses.contains(&address)) {
        let node = model.pods[&local.pod].node.clone();
        return Some(Who::Pod(local.pod.clone(), node));
    }
    let nodes: Vec<_> = model.nodes.values().filter(|node| node.addresses.contains(&address)).collect();
    match nodes[..] {
        [] => Some(Who::Outside),
        [node] => Some(Who::Node(node.name.clone())),
        _ => None,
    }
}

fn stands_for(engine: &Engine, peer: &Peer, who: &Who, address: IpAddr) -> bool {
    let model = engine.model();
    let wanted = |pods: &Pods, pod: &margay_policy_engine::model::Pod| {
        let labels = oracle::effective_labels(model, pod);
        !pod.finished
            && pods.namespace.as_ref().is_none_or(|name| *name == pod.key.namespace)
            && pods.selector.as_ref().is_none_or(|selector| selector.matches(&labels))
    };
    match (peer, who) {
        (Peer::Net(net), _) => net.contains(&address),
        (Peer::Outside, who) => *who == Who::Outside,
        (Peer::Nodes(_), who) => matches!(who, Who::Node(_)),
        (Peer::Pods(pods), Who::Pod(key, _)) => wanted(pods, &model.pods[key]),
        (Peer::Pods(pods), Who::Node(name)) => model
            .pods
            .values()
            .any(|pod| pod.host_network && pod.node.as_ref() == Some(name) && wanted(pods, pod)),
        (Peer::Pods(_), Who::Outside) => false,
    }
}

/// Whether the packet contradicts the statement, by the oracle; `None` where the statement is not about it.
fn contradicts(engine: &Engine, assertion: &Assertion, packet: &PacketTuple) -> Option<bool> {
    let (source, destination) = (who(engine, packet.source)?, who(engine, packet.destination)?);
    let is_any =
        |peers: &[Peer], who: &Who, address| peers.iter().any(|peer| stands_for(engine, peer, who, address));
    let from = is_any(&assertion.from, &source, packet.source) != (assertion.claim == Claim::Only);
    let uses = |service: &Service| {
        service.protocol.is_none_or(|protocol| protocol == packet.protocol)
            && service.ports.is_none_or(|(first, last)| {
                packet.destination_port.is_some_and(|port| (first..=last).contains(&port))
            })
    };
    let service = assertion.services.is_empty() || assertion.services.iter().any(uses);
    if !from || !service || !is_any(&assertion.to, &destination, packet.destination) {
        return None;
    }
    let (model, locals) = (engine.model(), engine.locals());
    let leg = |direction, pod| oracle::evaluate(model, locals, direction, pod, packet).unwrap().verdict;
    let allowed = match (&source, &destination) {
        (Who::Pod(from, _), Who::Pod(to, _)) if from == to => return None,
        (Who::Pod(from, _), Who::Pod(to, _)) => leg(Egress, from) == Allow && leg(Ingress, to) == Allow,
        (Who::Pod(_, node), Who::Node(name)) if node.as_ref() == Some(name) && is_discovery(packet) => {
            return None;
        }
        (Who::Pod(from, node), Who::Node(name)) if node.as_ref() == Some(name) => {
            let settings = Settings::of_node(model, name);
            let host = settings.endpoint_to_host.unwrap_or_default();
            leg(Egress, from) == Allow && host != EndpointToHostAction::Drop
        }
        (Who::Node(name), Who::Pod(_, node)) if node.as_ref() == Some(name) => {
            if assertion.claim == Claim::Only {
                return None;
            }
            true
        }
        (Who::Pod(from, _), _) => leg(Egress, from) == Allow,
        (_, Who::Pod(to, _)) => leg(Ingress, to) == Allow,
        _ => return None,
    };
    Some(allowed != (assertion.claim == Claim::Allow))
}

fn drawn_peer(chance: &mut Chance<'_>) -> Peer {
    const SELECTORS: [&str; 5] =
        ["all()", "role == 'x'", "has(zone)", "pcns.env == 'prod'", "role != 'x' && zone != '1'"];
    const NETS: [&str; 6] = ["10.0.0.0/30", "10.0.0.0/8", "0.0.0.0/0", "11.0.0.0/8", "a00::/16", "::/0"];
    match chance.below(8) {
        0 => Peer::Outside,
        1 => Peer::Nodes(None),
        2 | 3 => Peer::Net(NETS[chance.below(NETS.len())].parse().unwrap()),
        _ => Peer::Pods(Pods {
            namespace: [None, Some("a"), Some("b")][chance.below(3)].map(str::to_owned),
            selector: (chance.below(2) == 0).then(|| selector(SELECTORS[chance.below(SELECTORS.len())])),
            ..Pods::default()
        }),
    }
}

fn drawn_assertion(chance: &mut Chance<'_>) -> Assertion {
    let services = match chance.below(4) {
        0 => vec![tcp([80, 53, 8080, 79][chance.below(4)])],
        1 => vec![Service { protocol: None, ports: Some((1, 80)), icmp: None }],
        2 => vec![Service { protocol: Some(1), ports: None, icmp: None }],
        _ => Vec::new(),
    };
    Assertion {
        claim: [Claim::Deny, Claim::Allow, Claim::Only][chance.below(3)],
        from: (0..=chance.below(2)).map(|_| drawn_peer(chance)).collect(),
        to: vec![drawn_peer(chance)],
        services,
        may_be_empty: false,
    }
}

/// Packets between addresses that somebody has, and a few more, with the ports and types that rules name.
fn drawn_packets(engine: &Engine, bytes: &[u8]) -> Vec<PacketTuple> {
    let pods = engine.locals().values().flat_map(|local| &local.addresses).copied();
    let nodes = engine.model().nodes.values().flat_map(|node| &node.addresses).copied();
    let others = ["10.0.0.1", "10.0.0.6", "11.0.0.1", "203.0.113.9"];
    let others = others.into_iter().flat_map(|text| [text.to_owned(), support::twin(text)]);
    let addresses: Vec<IpAddr> = pods.chain(nodes).chain(others.map(|text| text.parse().unwrap())).collect();
    let ports = [80, 53, 8080, 0, 1, 79, 81, 65_535];
    let mut packets = Vec::new();
    for bytes in bytes.chunks_exact(5) {
        let at = |n: usize, count: usize| usize::from(bytes[n]) % count;
        let source = addresses[at(0, addresses.len())];
        let to: Vec<&IpAddr> =
            addresses.iter().filter(|address| address.is_ipv4() == source.is_ipv4()).collect();
        let icmp = if source.is_ipv4() { 1 } else { 58 };
        let protocol = [6, 17, 6, 132, icmp, 253, 136, 6][at(2, 8)];
        let has_ports = matches!(protocol, 6 | 17 | 132 | 136);
        packets.push(PacketTuple {
            source,
            destination: *to[at(1, to.len())],
            protocol,
            source_port: has_ports.then_some(ports[at(3, 8)]),
            destination_port: has_ports.then_some(ports[at(4, 8)]),
            icmp: (protocol == icmp).then(|| ([8, 10, 0, 135][at(3, 4)], [0, 3, 4][at(4, 3)])),
        });
    }
    packets
}

fn cases(base: u32) -> Config {
    let factor: u32 =
        std::env::var("MARGAY_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Config {
        cases: base.saturating_mul(factor),
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// Two dozen statements about each world; those about somebody are held against 600 packets.
    #[test]
    fn no_drawn_packet_contradicts_what_was_proved(
        bytes in vec(any::<u8>(), 500..4_000),
        claims in vec(any::<u8>(), 600),
        more in vec(any::<u8>(), 3_000),
    ) {
        let mut drawn = Engine::new();
        Chance::new(&bytes).world().into_iter().for_each(|change: Change| drawn.apply(change));
        let mut engine = Engine::with_all_pods_local(drawn.model().clone());
        let mut chance = Chance::new(&claims);
        let packets = drawn_packets(&engine, &more);
        for _ in 0..24 {
            let assertion = drawn_assertion(&mut chance);
            let Ok(finding) = judge(&mut engine, &assertion) else { continue };
            if let Some(found) = &finding.counterexample {
                prop_assert!(!finding.holds);
                // An address of two nodes is whichever the counter-example says.
                let confirmed = contradicts(&engine, &assertion, &found.packet);
                let is_known = who(&engine, found.packet.source).is_some()
                    && who(&engine, found.packet.destination).is_some();
                prop_assert!(confirmed == Some(true) || !is_known, "not confirmed: {assertion:?} {found:?}");
                prop_assert_eq!(found.verdict == Verdict::Deny, assertion.claim == Claim::Allow);
            } else {
                prop_assert!(finding.holds);
                for packet in &packets {
                    let contradicted = contradicts(&engine, &assertion, packet) == Some(true);
                    prop_assert!(
                        !contradicted,
                        "{assertion:?} was proved with {} classes, but {packet:?}",
                        finding.examined
                    );
                }
            }
        }
    }
}

#[test]
fn statements_and_kinds_have_stable_names() {
    let claims = serde_json::to_value([Claim::Deny, Claim::Allow, Claim::Only]).unwrap();
    assert_eq!(claims, serde_json::json!(["deny", "allow", "only"]));
    let mut world = shop();
    world.tier("first", 1.0, TierDefault::Pass);
    let kind = PolicyKind::GlobalNetworkPolicy.as_str();
    let finding =
        judge(&mut engine(&world), &assertion(Claim::Deny, &[app("web")], &[app("db")], &[])).unwrap();
    let json = serde_json::to_value(&finding).unwrap();
    assert_eq!(json["counterexample"]["ingress"]["kind"], kind);
    assert_eq!(json["counterexample"]["packet"]["destinationPort"], 5432);
    assert_eq!(json["counterexample"]["verdict"], "allow");
}
