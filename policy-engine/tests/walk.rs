//! Fact tables of policy model 12 and 17: who is asked on the way, in which order, and what each verdict comes to.

mod support;

use margay_policy_engine::model::{Action, EndpointToHostAction, Policy, Rule, TierDefault};
use margay_policy_engine::packet::{
    Context, Direction, EndpointId, HostId, HostVerdict, PacketTuple, Verdict,
};
use margay_policy_engine::snapshot::Attribution;
use margay_policy_engine::walk::{End, Ending, Journey, PodRef, Referee, Subject, walk};
use support::hosts::*;
use support::*;

/// Every endpoint has policy in every context, and none of it decides, but for one that refuses.
struct Everybody<'a> {
    refuses: &'a str,
}

impl Referee for Everybody<'_> {
    fn pod(&self, pod: PodRef<'_>, direction: Direction, _: &PacketTuple) -> Option<(Verdict, Attribution)> {
        let asked = asked_text(Subject::Pod(pod.key), Normal, direction);
        Some((if asked == self.refuses { Deny } else { Allow }, nobody()))
    }

    fn host(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        _: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        let is_pod_side = [PODS, OTHER_PODS].contains(&interface);
        let exists = match context {
            Untracked | Normal => !is_pod_side,
            PreDnat => direction == Ingress,
            Forward => true,
        };
        let refuses = asked_text(Subject::Host(interface), context, direction) == self.refuses;
        exists.then(|| (if refuses { HostVerdict::Deny } else { HostVerdict::NoMatch }, nobody()))
    }
}

fn nobody() -> Attribution {
    Attribution {
        tier: String::new(),
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        rule: -1,
    }
}

#[test]
fn pm_12_10_checks_in_order() {
    let keys = [name("ns/a"), name("ns/b"), name("ns/c")];
    let pod = |index: usize| End::Pod {
        key: &keys[index],
        endpoint: Some(EndpointId(index as u32)),
        node: Some(if index == 2 { OTHER } else { NODE }),
    };
    let (a, b, c) = (pod(0), pod(1), pod(2));
    let (host, other) = (End::Host(NODE), End::Host(OTHER));
    let rows: [(&str, End<'_>, End<'_>, &[&str]); 9] = [
        (
            "pod → pod, same node",
            a,
            b,
            &[
                "node pods preDNAT Ingress",
                "ns/a Egress",
                "node pods forward Ingress",
                "node pods forward Egress",
                "ns/b Ingress",
            ],
        ),
        (
            "pod → pod, other node",
            a,
            c,
            &[
                "node pods preDNAT Ingress",
                "ns/a Egress",
                "node pods forward Ingress",
                "node eth0 forward Egress",
                "other eth0 untracked Ingress",
                "other eth0 preDNAT Ingress",
                "other eth0 forward Ingress",
                "other pods forward Egress",
                "ns/c Ingress",
            ],
        ),
        (
            "external → NodePort → local pod",
            End::Outside,
            a,
            &[
                "node eth0 untracked Ingress",
                "node eth0 preDNAT Ingress",
                "node eth0 forward Ingress",
                "node pods forward Egress",
                "ns/a Ingress",
            ],
        ),
        (
            "external → host process",
            End::Outside,
            host,
            &["node eth0 untracked Ingress", "node eth0 preDNAT Ingress", "node eth0 normal Ingress"],
        ),
        (
            "host process → external",
            host,
            End::Outside,
            &["node eth0 normal Egress", "node eth0 untracked Egress"],
        ),
        ("host process → local pod", host, a, &[]),
        (
            "host process → remote pod",
            host,
            c,
            &[
                "node eth0 normal Egress",
                "node eth0 untracked Egress",
                "other eth0 untracked Ingress",
                "other eth0 preDNAT Ingress",
                "other eth0 forward Ingress",
                "other pods forward Egress",
                "ns/c Ingress",
            ],
        ),
        ("pod → own host", a, host, &["node pods preDNAT Ingress", "ns/a Egress"]),
        (
            "pod → other host",
            a,
            other,
            &[
                "node pods preDNAT Ingress",
                "ns/a Egress",
                "node pods forward Ingress",
                "node eth0 forward Egress",
                "other eth0 untracked Ingress",
                "other eth0 preDNAT Ingress",
                "other eth0 normal Ingress",
            ],
        ),
    ];
    for (path, from, to, expected) in rows {
        let journey = Journey {
            packet: packet("tcp 10.0.0.1:1 > 10.0.0.2:2"),
            addressed_to: None,
            from,
            to,
            through: None,
            endpoint_to_host: EndpointToHostAction::Accept,
            pods_take_untracked: false,
        };
        let outcome = walk(&journey, &Everybody { refuses: "" });
        let asked: Vec<String> =
            outcome.stages.iter().filter(|stage| !stage.is_reply).map(stage_text).collect();
        assert_eq!(asked, expected, "{path}");
        assert_eq!(outcome.ending.verdict(), Allow, "{path}");
        // Only untracked policy has a say about answers of flows that are tracked.
        for stage in outcome.stages.iter().filter(|stage| stage.is_reply) {
            assert_eq!(stage.context, Untracked, "{path}");
        }
        // Who drops the packet is the last who is asked.
        for (place, refuses) in expected.iter().enumerate() {
            let outcome = walk(&journey, &Everybody { refuses });
            assert_eq!(outcome.ending, Ending::Denied, "{path}: {refuses}");
            let asked: Vec<String> = outcome.stages.iter().map(stage_text).collect();
            assert_eq!(asked, expected[..=place], "{path}: {refuses}");
        }
    }
}

/// What the rows of policy model 12.3 call a packet: addressed to `to`, and to `before` before translation.
#[derive(Clone, Copy, Debug)]
struct Row {
    to: &'static str,
    before: &'static str,
}

const CLIENT: &str = "123.0.0.1:1024";
const VIP: Row = row("10.96.0.10:53");
const VIP2: Row = row("10.96.0.11:53");
const NET: Row = row("10.96.5.10:53");
const BACKEND: &str = "10.0.0.2:12345";
const BACKEND_VIP: Row = Row { to: BACKEND, before: VIP.to };
const BACKEND_VIP2: Row = Row { to: BACKEND, before: VIP2.to };
const VIP_BACKEND: Row = Row { to: VIP.to, before: BACKEND };

const fn row(to: &'static str) -> Row {
    Row { to, before: to }
}

/// Part of a packet's way that meets the interface.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Forwarded,
    ToHost,
    FromHost,
}

use Role::{Forwarded, FromHost, ToHost};

/// The verdict for a packet that comes from a client to the node's eth0, or from the host out of it.
fn on_host_interface(hosts: &Hosts, role: Role, row: Row) -> Verdict {
    let text = format!("udp {CLIENT} > {}", row.to);
    let (from, to) = match role {
        Forwarded => (End::Outside, hosts.end("ns/a")),
        ToHost => (End::Outside, End::Host(NODE)),
        FromHost => (End::Host(NODE), End::Outside),
    };
    hosts.trip(&text, from, to).via(row.before).verdict()
}

/// The verdict for a packet that comes from the pod ns/a, or from the host to it.
fn on_workload_interface(hosts: &Hosts, role: Role, row: Row) -> Verdict {
    let text = format!("udp {CLIENT} > {}", row.to);
    let (from, to) = match role {
        Forwarded => (hosts.end("ns/a"), End::Outside),
        ToHost => (hosts.end("ns/a"), End::Host(NODE)),
        FromHost => (End::Host(NODE), hosts.end("ns/a")),
    };
    hosts.trip(&text, from, to).via(row.before).verdict()
}

fn vip_only() -> Vec<Rule> {
    vec![allow_to("10.96.0.10/32"), rule(Action::Deny)]
}

/// Pods allow everything and there are no failsafe ports, so that only the policies have a say.
fn with_hep(policies: &[Policy], profile: &[Rule]) -> Hosts {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0").profile("host")).profile("host", profile.to_vec());
    world.tier("first", 1.0, TierDefault::Deny).model.insert(failsafe_ports("default", &[], &[]));
    for policy in policies {
        world.policy(policy.clone());
    }
    world.hosts()
}

#[test]
fn pm_12_3_policy_on_a_host_interface() {
    let net = || allow_to("10.96.5.0/24");
    let every = [VIP, VIP2, NET, BACKEND_VIP, BACKEND_VIP2, VIP_BACKEND];
    let check = |hosts: &Hosts, allowed: &[(Role, Row)], denied: &[(Role, Row)]| {
        for (expected, cells) in [(Allow, allowed), (Deny, denied)] {
            for (role, row) in cells {
                assert_eq!(on_host_interface(hosts, *role, *row), expected, "{role:?} {row:?}");
            }
        }
    };

    let nothing = with_hep(&[], &[]);
    for row in every {
        check(&nothing, &[(Forwarded, row)], &[(ToHost, row), (FromHost, row)]);
    }

    let pre_dnat = with_hep(&[host_policy("p", vip_only()).pre_dnat()], &[]);
    for role in [Forwarded, ToHost] {
        let denied = [(role, VIP2), (role, BACKEND_VIP2), (role, VIP_BACKEND)];
        check(&pre_dnat, &[(role, BACKEND_VIP), (role, VIP)], &denied);
    }

    // applyOnForward puts a policy in normal as well; an earlier tier keeps the host's own packets from it.
    let first = |rules| host_policy("n", rules).tier("first");
    let on_forward = || host_policy("f", vip_only()).on_forward();
    let forward = with_hep(&[first(Vec::new()), on_forward()], &[]);
    let denied = [(Forwarded, VIP2), (Forwarded, BACKEND_VIP), (ToHost, VIP)];
    check(&forward, &[(Forwarded, VIP), (Forwarded, VIP_BACKEND)], &denied);

    let normal = with_hep(&[host_policy("p", vip_only())], &[]);
    for row in every {
        check(&normal, &[(Forwarded, row)], &[]);
    }
    let denied = [(ToHost, VIP2), (ToHost, BACKEND_VIP2), (FromHost, BACKEND_VIP)];
    check(&normal, &[(FromHost, VIP), (ToHost, VIP_BACKEND)], &denied);

    let both = with_hep(&[first(vec![net()]), on_forward()], &[]);
    let denied = [(Forwarded, NET), (ToHost, VIP), (FromHost, VIP)];
    check(&both, &[(Forwarded, VIP), (ToHost, NET), (FromHost, NET)], &denied);

    let allow_vip = host_policy("p", vec![allow_to("10.96.0.10/32")]).pre_dnat();
    let profile = with_hep(&[allow_vip], &[net()]);
    let all_net = [Forwarded, ToHost, FromHost].map(|role| (role, NET));
    check(&profile, &all_net, &[(ToHost, VIP_BACKEND), (ToHost, BACKEND_VIP2)]);
    // preDNAT is about what arrives (11.2): what the host itself sends is left to the profile, whatever it was before translation.
    let denied = [(FromHost, VIP), (FromHost, BACKEND_VIP)];
    check(&profile, &[(Forwarded, VIP), (ToHost, VIP)], &denied);
}

#[test]
fn pm_12_3_policy_on_a_workload_interface() {
    let allow = |nets: &str| vec![allow_to(nets)];
    let pods = |nets: &str| policy("pods", 1.0).selects("has(app)").both(allow(nets)).only(Egress);
    let world = |policies: &[Policy]| {
        let mut world = World::two_nodes();
        world.hep(hep("h", "*"));
        for policy in policies {
            world.policy(policy.clone());
        }
        world.hosts()
    };
    let check = |hosts: &Hosts, allowed: &[(Role, Row)], denied: &[(Role, Row)]| {
        for (expected, cells) in [(Allow, allowed), (Deny, denied)] {
            for (role, row) in cells {
                assert_eq!(on_workload_interface(hosts, *role, *row), expected, "{role:?} {row:?}");
            }
        }
        // A node always reaches its own pods (12.6): nobody is asked about these cells of the table.
        for row in [VIP, VIP2, NET] {
            assert_eq!(on_workload_interface(hosts, FromHost, row), Allow);
        }
    };

    let suppressed = host_policy("n", allow("10.96.5.0/24"));
    let hosts = world(&[host_policy("f", vip_only()).on_forward(), suppressed, pods("10.96.0.10/32")]);
    let allowed = [(Forwarded, VIP), (ToHost, VIP), (FromHost, VIP)];
    check(&hosts, &allowed, &[(Forwarded, NET), (ToHost, NET)]);

    let hosts = world(&[host_policy("d", allow("10.96.0.10/31")).pre_dnat(), pods("10.96.0.10/32")]);
    let allowed = [(Forwarded, VIP), (ToHost, VIP), (FromHost, VIP), (ToHost, VIP_BACKEND)];
    let denied = [(Forwarded, VIP2), (ToHost, VIP2), (Forwarded, BACKEND_VIP), (ToHost, BACKEND_VIP)];
    check(&hosts, &allowed, &denied);

    let vip2_only = vec![allow_to("10.96.0.11/32"), rule(Action::Deny)];
    let hosts = world(&[host_policy("f", vip2_only).on_forward(), pods("10.96.0.10/31")]);
    let allowed = [(Forwarded, VIP2), (ToHost, VIP), (FromHost, VIP), (ToHost, VIP_BACKEND)];
    check(&hosts, &allowed, &[(Forwarded, VIP), (ToHost, BACKEND_VIP2)]);
}

#[test]
fn pm_12_2_every_context_sees_its_own_destination() {
    let node_port = "192.0.2.1:30000";
    let text = "tcp 203.0.113.7:40000 > 10.0.0.1:8080";
    // Each context in turn denies the one destination or the other.
    for (context, direction, sees_node_port) in [
        (Untracked, Ingress, true),
        (PreDnat, Ingress, true),
        (Forward, Ingress, false),
        (Forward, Egress, false),
    ] {
        for (nets, is_node_port) in [("192.0.2.1/32", true), ("10.0.0.1/32", false)] {
            let mut world = World::two_nodes();
            let deny = Rule { destination: any().nets(nets), ..rule(Action::Deny) };
            let policy = host_policy("p", vec![deny, rule(Action::Pass)]);
            let policy = match context {
                Untracked => policy.untracked(),
                PreDnat => policy.pre_dnat(),
                Normal | Forward => policy.on_forward(),
            };
            let interface = if direction == Ingress { "eth0" } else { "*" };
            world.hep(hep("h", interface)).policy(policy.only(direction));
            let hosts = world.hosts();
            let verdict = hosts.trip(text, End::Outside, hosts.end("ns/a")).via(node_port).verdict();
            let expected = if sees_node_port == is_node_port { Deny } else { Allow };
            assert_eq!(verdict, expected, "{context:?} {direction:?} {nets}");
        }
    }
}

#[test]
fn pm_12_5_workload_to_its_own_host() {
    use EndpointToHostAction::{Accept, Drop, Return};
    let deny = || Some(host_policy("p", deny_all()));
    let allow = || Some(host_policy("p", allow_all()));
    let pre_dnat = |policy: Option<Policy>| policy.map(ContextExt::pre_dnat);
    // (what the host's own firewall does to the rest, action, interface of the host endpoint, its policy, result)
    let rows = [
        (Deny, Accept, "*", None, Allow),
        (Deny, Return, "*", None, Deny),
        (Deny, Drop, "*", None, Deny),
        (Allow, Drop, "*", None, Deny),
        (Allow, Return, "*", None, Allow),
        (Allow, Return, "eth0", deny(), Allow),
        (Deny, Accept, "*", allow(), Allow),
        (Deny, Accept, "*", deny(), Allow),
        (Deny, Return, "*", allow(), Deny),
        (Allow, Return, "*", deny(), Allow),
        (Deny, Accept, "*", pre_dnat(deny()), Deny),
        (Allow, Return, "*", pre_dnat(deny()), Deny),
        (Allow, Drop, "*", pre_dnat(deny()), Deny),
        (Deny, Accept, "*", pre_dnat(allow()), Allow),
        (Deny, Return, "*", pre_dnat(allow()), Deny),
        (Deny, Drop, "*", pre_dnat(allow()), Deny),
    ];
    for (row, (firewall, action, interface, policy, expected)) in rows.into_iter().enumerate() {
        for has_endpoint in [true, false] {
            if !has_endpoint && policy.is_some() {
                continue;
            }
            let mut world = World::two_nodes();
            if has_endpoint {
                world.hep(hep("h", interface));
            }
            if let Some(policy) = policy.clone() {
                world.policy(policy);
            }
            let mut hosts = world.hosts();
            hosts.endpoint_to_host = action;
            let trip = hosts.trip("tcp 10.0.0.1 > 192.0.2.1:80", hosts.end("ns/a"), End::Host(NODE));
            let ending = trip.walk().ending;
            let verdict = match ending {
                Ending::LeftToHost => firewall,
                ending => ending.verdict(),
            };
            assert_eq!(verdict, expected, "row {row}: {ending:?}");
        }
    }
}

#[test]
fn pm_12_5_egress_policy_comes_first_and_discovery_before_it() {
    let mut world = World::two_nodes();
    world.policy(policy("p", 1.0).both(deny_all()));
    let hosts = world.hosts();
    let ending = |text: &str| hosts.trip(text, hosts.end("ns/a"), End::Host(NODE)).walk().ending;
    assert_eq!(ending("tcp 10.0.0.1 > 192.0.2.1:80"), Ending::Denied);
    let accepted: Vec<u8> = (0..=255)
        .filter(|kind| ending(&format!("icmp6/{kind}/0 fe80::1 > fe80::2")) == Ending::Discovery)
        .collect();
    assert_eq!(accepted, [130, 131, 132, 133, 135, 136]);
    assert_eq!(ending("icmp/135/0 10.0.0.1 > 192.0.2.1"), Ending::Denied);
}

#[test]
fn pm_12_6_host_to_its_own_workload() {
    let mut world = World::two_nodes();
    world
        .hep(hep("h", "*"))
        .policy(host_policy("n", deny_all()).on_forward())
        .policy(host_policy("d", deny_all()).pre_dnat())
        .policy(policy("pods", 1.0).selects("has(app)").both(deny_all()));
    let hosts = world.hosts();
    let own = hosts.trip("tcp 192.0.2.1 > 10.0.0.1:80", End::Host(NODE), hosts.end("ns/a"));
    assert_eq!(own.walk().ending, Ending::OwnPod);
    assert_eq!(own.walk().stages, []);
    // From another node it is an ordinary packet.
    let mut world = World::two_nodes();
    world.policy(policy("pods", 1.0).selects("has(app)").both(deny_all()));
    let hosts = world.hosts();
    let trip = hosts.trip("tcp 192.0.2.2 > 10.0.0.1:80", End::Host(OTHER), hosts.end("ns/a"));
    assert_eq!(trip.verdict(), Deny);
    assert_eq!(trip.asked(), ["ns/a Ingress"]);
}

#[test]
fn nothing_leaves_a_pod_or_a_host_for_itself() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "*")).policy(policy("p", 1.0).both(deny_all()).on_forward());
    let hosts = world.hosts();
    let ending = |from, to| hosts.trip("tcp 10.0.0.1 > 10.0.0.1:80", from, to).walk().ending;
    assert_eq!(ending(hosts.end("ns/a"), hosts.end("ns/a")), Ending::SamePod);
    assert_eq!(ending(End::Host(NODE), End::Host(NODE)), Ending::SameHost);
    assert_eq!(ending(End::Outside, End::Outside), Ending::Arrives);
}

#[test]
fn pm_17_2_early_accept_drop_or_pass_up() {
    let deny = |nets: &str| Rule { destination: any().nets(nets), ..rule(Action::Deny) };
    let rows = [
        (vec![allow_to("192.0.2.1/32"), rule(Action::Deny)], ["Allow", "Deny"]),
        (vec![allow_to("192.0.2.1/32")], ["Allow", "NoMatch"]),
        (vec![deny("192.0.2.1/32")], ["Deny", "NoMatch"]),
    ];
    for (rules, expected) in rows {
        let mut world = World::two_nodes();
        world.hep(hep("h", "eth0")).policy(host_policy("p", rules).untracked());
        let hosts = world.hosts();
        let says = |text: &str| hosts.says(ETH0, Untracked, Ingress, text);
        assert_eq!(
            ["udp 203.0.113.7:9 > 192.0.2.1:9", "udp 203.0.113.7:9 > 192.0.2.9:9"].map(says),
            expected
        );
        // Failsafe ports pass up, both of the host's own and those it calls.
        assert_eq!(says("tcp 203.0.113.7:9 > 192.0.2.1:22"), "NoMatch");
        assert_eq!(says("udp 203.0.113.7:53 > 192.0.2.1:9"), "NoMatch");
    }
}

#[test]
fn pm_17_2_early_accept_skips_the_other_contexts() {
    let mut world = World::two_nodes();
    world
        .hep(hep("h", "eth0"))
        .policy(host_policy("u", allow_all()).untracked())
        .policy(host_policy("d", deny_all()).pre_dnat())
        .policy(host_policy("n", deny_all()).on_forward());
    let hosts = world.hosts();
    let trip = hosts.trip("udp 203.0.113.7:9 > 192.0.2.1:9", End::Outside, End::Host(NODE));
    assert_eq!(trip.verdict(), Allow);
    assert_eq!(trip.asked(), ["node eth0 untracked Ingress", "node eth0 untracked Egress reply"]);
    let back = hosts.trip("udp 192.0.2.1:9 > 203.0.113.7:9", End::Host(NODE), End::Outside);
    assert_eq!(back.verdict(), Allow);
    assert_eq!(back.asked(), ["node eth0 untracked Egress", "node eth0 untracked Ingress reply"]);
}

#[test]
fn pm_17_3_untracked_egress_is_for_host_processes() {
    let mut world = World::two_nodes();
    world
        .hep(hep("h", "eth0").profile("projectcalico-default-allow"))
        .policy(host_policy("u", deny_all()).untracked().only(Egress));
    let hosts = world.hosts();
    let forwarded = hosts.trip("tcp 10.0.0.1 > 203.0.113.7:80", hosts.end("ns/a"), End::Outside);
    assert_eq!(forwarded.verdict(), Allow);
    let own = hosts.trip("tcp 192.0.2.1 > 203.0.113.7:80", End::Host(NODE), End::Outside);
    assert_eq!(own.verdict(), Deny);
    assert_eq!(own.asked(), ["node eth0 normal Egress", "node eth0 untracked Egress"]);
    // Answers of the host leave by it too.
    let asked = hosts.trip("tcp 203.0.113.7 > 192.0.2.1:80", End::Outside, End::Host(NODE));
    assert_eq!(asked.verdict(), Deny);
    assert_eq!(asked.asked(), ["node eth0 normal Ingress", "node eth0 untracked Egress reply"]);
}

#[test]
fn pm_17_4_untracked_ingress_is_for_every_packet_of_the_interface() {
    let mut world = World::two_nodes();
    let deny_port = rule(Action::Deny).protocol(6).from(any().ports("80"));
    world
        .hep(hep("h", "eth0").profile("projectcalico-default-allow"))
        .policy(host_policy("u", vec![deny_port]).untracked().only(Ingress));
    let hosts = world.hosts();
    // The answers that a pod waits for come through it as well.
    let trip = hosts.trip("tcp 10.0.0.1 > 203.0.113.7:80", hosts.end("ns/a"), End::Outside);
    assert_eq!(trip.verdict(), Deny);
    assert_eq!(trip.asked(), ["ns/a Egress", "node eth0 untracked Ingress reply"]);
    let trip = hosts.trip("tcp 10.0.0.1 > 203.0.113.7:81", hosts.end("ns/a"), End::Outside);
    assert_eq!(trip.verdict(), Allow);
    // What it accepts untracked is no answer that a pod would take.
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0")).policy(host_policy("u", allow_all()).untracked().only(Ingress));
    let hosts = world.hosts();
    let trip = hosts.trip("tcp 10.0.0.1 > 203.0.113.7:80", hosts.end("ns/a"), End::Outside);
    assert_eq!(trip.walk().ending, Ending::Untracked);
}

#[test]
fn pm_17_3_an_answer_leaves_translated_back_by_the_node_that_translated() {
    let (to_host, node_port) = ("tcp 203.0.113.7:40000 > 192.0.2.1:8080", "192.0.2.1:30000");
    for (port, by_itself, through_other) in [("30000", Deny, Allow), ("8080", Allow, Deny)] {
        let mut world = World::two_nodes();
        let deny = rule(Action::Deny).protocol(6).from(any().ports(port));
        world
            .hep(hep("h", "eth0").profile("projectcalico-default-allow"))
            .policy(host_policy("u", vec![deny]).untracked().only(Egress));
        let hosts = world.hosts();
        let mut trip = hosts.trip(to_host, End::Outside, End::Host(NODE)).via(node_port);
        assert_eq!(trip.verdict(), by_itself, "{port}");
        trip.journey.through = Some(OTHER);
        assert_eq!(trip.verdict(), through_other, "{port}");
    }
}
