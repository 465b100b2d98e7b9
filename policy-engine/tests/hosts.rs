//! Fact tables of policy model 11: which host endpoint governs an interface, its contexts, `*`, failsafe ports.

mod support;

use margay_policy_engine::engine::{Change, Engine, HostInterface};
use margay_policy_engine::model::{Action, EndpointToHostAction, Policy, TierDefault};
use margay_policy_engine::oracle;
use margay_policy_engine::packet::HostId;
use margay_policy_engine::walk::{End, Ending, NodeRef};
use support::hosts::*;
use support::*;

const ALLOW: &str = "projectcalico-default-allow";
/// From outside to the address of `node` on eth0.
const TO_HOST: &str = "tcp 203.0.113.7:40000 > 192.0.2.1:8055";
const TO_POD: &str = "tcp 203.0.113.7:40000 > 10.0.0.1:8055";

fn host() -> End<'static> {
    End::Host(NODE)
}

fn other() -> End<'static> {
    End::Host(OTHER)
}

/// The node as seen through another interface.
fn by(wire: HostId) -> NodeRef<'static> {
    NodeRef { wire: Some(wire), ..NODE }
}

#[test]
fn pm_11_1_the_host_endpoint_of_an_interface() {
    let mut world = World::two_nodes();
    let interface = |name: &str, addresses: &str, is_pod_side| HostInterface {
        id: ETH0,
        node: "node".to_owned(),
        name: name.to_owned(),
        addresses: addresses.split_whitespace().map(|text| text.parse().unwrap()).collect(),
        is_pod_side,
    };
    let governs = |world: &World, interface: HostInterface| {
        let expected =
            oracle::resolve_interface(&world.model, &interface).map(|endpoint| endpoint.name.clone());
        let mut engine = Engine::with_model(world.model.clone());
        engine.apply(Change::Interface(interface));
        assert_eq!(engine.publish().host_endpoint(ETH0), expected.as_deref());
        expected
    };
    let found = |name: &str| Some(name.to_owned());
    let eth0 = || interface("eth0", "192.0.2.1 2001:db8::1", false);
    assert_eq!(governs(&world, eth0()), None);
    world.hep(hep("z-default", "*")).hep(hep("elsewhere", "eth0").on("other"));
    assert_eq!(governs(&world, eth0()), found("z-default"));
    world.hep(hep("a-default", "*"));
    assert_eq!(governs(&world, eth0()), found("a-default"));
    // By address only where no name is written, and by any of its addresses.
    world.hep(hep("m-address", "").ips("198.51.100.9 2001:db8::1"));
    assert_eq!(governs(&world, eth0()), found("m-address"));
    // A name is all that counts where there is one.
    world.hep(hep("b-other-name", "eth1").ips("192.0.2.1"));
    assert_eq!(governs(&world, eth0()), found("m-address"));
    world.hep(hep("n-name", "eth0").ips("203.0.113.1"));
    assert_eq!(governs(&world, eth0()), found("m-address"));
    world.hep(hep("l-name", "eth0"));
    assert_eq!(governs(&world, eth0()), found("l-name"));
    assert_eq!(governs(&world, interface("eth2", "", false)), found("a-default"));
    // Only `*` stands between host and pods.
    assert_eq!(governs(&world, interface("", "192.0.2.1", true)), found("a-default"));
    assert_eq!(governs(&world, interface("eth0", "192.0.2.1", true)), found("a-default"));
}

#[test]
fn pm_11_2_flags_decide_the_contexts() {
    let all = [Untracked, PreDnat, Normal, Forward];
    let plain = || host_policy("p", deny_all());
    // (policy, contexts that deny on ingress, on egress). Without a policy normal falls to the profiles.
    let rows = [
        (plain(), vec![Normal], vec![Normal]),
        (plain().on_forward(), vec![Normal, Forward], vec![Normal, Forward]),
        (plain().untracked(), vec![Untracked], vec![Untracked]),
        (plain().pre_dnat(), vec![PreDnat], vec![]),
    ];
    for (policy, ingress, egress) in rows {
        let mut world = World::two_nodes();
        world.hep(hep("h", "eth0").profile(ALLOW)).policy(policy.clone());
        let hosts = world.hosts();
        for (direction, denied) in [(Ingress, &ingress), (Egress, &egress)] {
            for context in all {
                let expected = match context {
                    context if denied.contains(&context) => "Deny",
                    Normal => "Allow",
                    _ => "-",
                };
                let flags = policy.flags;
                assert_eq!(
                    hosts.says(ETH0, context, direction, TO_HOST),
                    expected,
                    "{flags:?} {context:?} {direction:?}"
                );
            }
        }
        // Policies that have no context at pods do not count there; the others would, if they selected them.
        assert_eq!(hosts.judge.verdict(Ingress, "ns/a", TO_POD), Allow);
    }
}

#[test]
fn pm_11_2_pods_ignore_untracked_and_pre_dnat_policies() {
    for (policy, expected) in [
        (policy("p", 1.0).both(deny_all()).untracked(), Allow),
        (policy("p", 1.0).both(deny_all()).pre_dnat(), Allow),
        (policy("p", 1.0).both(deny_all()).on_forward(), Deny),
    ] {
        let mut world = World::two_nodes();
        world.policy(policy);
        assert_eq!(world.hosts().judge.verdict(Ingress, "ns/a", TO_POD), expected);
    }
}

#[test]
fn pm_11_2_the_end_of_a_tier_by_context() {
    for default in [TierDefault::Deny, TierDefault::Pass, TierDefault::Allow] {
        let mut world = World::two_nodes();
        let rule = || vec![allow_to_port(6, "1")];
        world
            .tier("t", 1.0, default)
            .hep(hep("h", "eth0"))
            .policy(host_policy("u", rule()).tier("t").untracked())
            .policy(host_policy("d", rule()).tier("t").pre_dnat())
            .policy(host_policy("n", rule()).tier("t").on_forward());
        let hosts = world.hosts();
        let says = |context| hosts.says(ETH0, context, Ingress, TO_HOST);
        let (normal, forward) = match default {
            TierDefault::Deny => ("Deny", "Deny"),
            TierDefault::Pass => ("Deny", "NoMatch"),
            TierDefault::Allow => ("Allow", "Allow"),
        };
        assert_eq!([says(Untracked), says(PreDnat)], ["NoMatch", "NoMatch"], "{default:?}");
        assert_eq!([says(Normal), says(Forward)], [normal, forward], "{default:?}");
    }
}

#[test]
fn pm_11_3_pass_leads_to_the_end_of_the_context() {
    let mut world = World::two_nodes();
    let pass = || vec![rule(Action::Pass)];
    world
        .hep(hep("h", "eth0").profile("p"))
        .profile("p", vec![allow_to_port(6, "8055")])
        .policy(host_policy("u", pass()).untracked())
        .policy(host_policy("d", pass()).pre_dnat())
        .policy(host_policy("n", pass()).on_forward());
    let hosts = world.hosts();
    let says = |context| hosts.says(ETH0, context, Ingress, TO_HOST);
    assert_eq!([Untracked, PreDnat, Normal, Forward].map(says), ["NoMatch", "NoMatch", "Allow", "NoMatch"]);
    assert_eq!(hosts.decided_by(ETH0, Normal, Ingress, TO_HOST), "__PROFILE__/Profile//p/0");
    let elsewhere = "tcp 203.0.113.7:40000 > 192.0.2.1:8056";
    assert_eq!(hosts.decided_by(ETH0, Normal, Ingress, elsewhere), "__PROFILE__////-1");
}

#[test]
fn pm_11_4_forward_policy_in_one_direction() {
    let mut world = World::two_nodes();
    world
        .hep(hep("h", "eth0"))
        .policy(host_policy("p", vec![allow_to_port(6, "8055")]).on_forward().only(Ingress));
    let hosts = world.hosts();
    let verdict = |text, from, to| hosts.trip(text, from, to).verdict();
    assert_eq!(verdict(TO_POD, End::Outside, hosts.end("ns/a")), Allow);
    let elsewhere = "tcp 203.0.113.7:40000 > 10.0.0.1:8056";
    assert_eq!(verdict(elsewhere, End::Outside, hosts.end("ns/a")), Deny);
    // PM-D8: nobody speaks about the other direction.
    assert_eq!(verdict("tcp 10.0.0.1 > 203.0.113.7:80", hosts.end("ns/a"), End::Outside), Allow);
}

#[test]
fn pm_11_5_host_endpoint_without_policy_or_profile() {
    for interface in ["eth0", "*"] {
        let mut world = World::two_nodes();
        world.hep(hep("h", interface));
        let hosts = world.hosts();
        let (a, b, c) = (hosts.end("ns/a"), hosts.end("ns/b"), hosts.end("ns/c"));
        let rows = [
            ("tcp 192.0.2.1 > 192.0.2.2:80", host(), other(), Deny),
            ("tcp 192.0.2.2 > 192.0.2.1:80", other(), host(), Deny),
            ("tcp 192.0.2.1 > 192.0.2.2:179", host(), other(), Allow),
            ("tcp 192.0.2.2 > 192.0.2.1:22", other(), host(), Allow),
            ("tcp 192.0.2.1 > 10.0.1.1:80", host(), c, Deny),
            ("tcp 10.0.1.1 > 192.0.2.1:80", c, host(), Deny),
            ("tcp 192.0.2.1 > 10.0.0.1:80", host(), a, Allow),
            ("tcp 10.0.0.1 > 10.0.0.2:80", a, b, Allow),
            ("tcp 10.0.0.1 > 10.0.1.1:80", a, c, Allow),
            ("tcp 10.0.0.1 > 203.0.113.7:80", a, End::Outside, Allow),
            // API server and Typha, either way round.
            ("tcp 192.0.2.1 > 192.0.2.2:6443", host(), other(), Allow),
            ("tcp 192.0.2.2 > 192.0.2.1:6443", other(), host(), Allow),
            ("tcp 192.0.2.1 > 192.0.2.2:5473", host(), other(), Allow),
            ("tcp 192.0.2.2 > 192.0.2.1:5473", other(), host(), Allow),
            ("253 192.0.2.1 > 192.0.2.2", host(), other(), Deny),
            ("253 192.0.2.2 > 192.0.2.1", other(), host(), Deny),
        ];
        for (text, from, to, expected) in rows {
            let trip = hosts.trip(text, from, to);
            assert_eq!(trip.verdict(), expected, "{interface}: {text} {:?}", trip.walk());
        }
        world.hep(hep("h", interface).profile(ALLOW));
        let open = world.hosts();
        for (text, from, to, _) in rows {
            assert_eq!(open.trip(text, from, to).verdict(), Allow, "{interface}: {text}");
        }
    }
}

#[test]
fn pm_11_6_normal_policy_leaves_forwarded_packets_alone() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0").profile(ALLOW)).policy(host_policy("p", deny_all()).only(Ingress));
    let hosts = world.hosts();
    assert_eq!(hosts.trip(TO_POD, End::Outside, hosts.end("ns/a")).verdict(), Allow);
    assert_eq!(hosts.trip(TO_HOST, End::Outside, host()).verdict(), Deny);

    let mut world = World::two_nodes();
    world.hep(hep("h", "*")).policy(host_policy("p", deny_all()));
    let hosts = world.hosts();
    let pods = |from, to, text| hosts.trip(text, hosts.end(from), hosts.end(to)).verdict();
    assert_eq!(pods("ns/a", "ns/b", "tcp 10.0.0.1 > 10.0.0.2:80"), Allow);
    assert_eq!(pods("ns/a", "ns/c", "tcp 10.0.0.1 > 10.0.1.1:80"), Allow);
    assert_eq!(pods("ns/c", "ns/a", "tcp 10.0.1.1 > 10.0.0.1:80"), Allow);
}

#[test]
fn pm_11_6_apply_on_forward_on_the_default_host_endpoint() {
    let world = |direction| {
        let mut world = World::two_nodes();
        world.hep(hep("h", "*")).policy(host_policy("p", deny_all()).on_forward().only(direction));
        world.hosts()
    };
    let hosts = world(Ingress);
    let (a, c) = (hosts.end("ns/a"), hosts.end("ns/c"));
    assert_eq!(hosts.trip("tcp 10.0.0.1 > 10.0.1.1:80", a, c).verdict(), Deny);
    // Out of a tunnel: the tunnel is an interface like any other, so `*` is its host endpoint.
    let End::Pod { key, endpoint, .. } = a else { unreachable!("a pod") };
    let from_tunnel = End::Pod { key, endpoint, node: Some(by(TUNNEL)) };
    let trip = hosts.trip("tcp 10.0.1.1 > 10.0.0.1:80", c, from_tunnel);
    assert_eq!(trip.verdict(), Deny);
    assert_eq!(trip.asked(), ["ns/c Egress", "node wg0 forward Ingress"]);

    let hosts = world(Egress);
    let trip = hosts.trip("tcp 10.0.0.1 > 203.0.113.7:80", hosts.end("ns/a"), End::Outside);
    assert_eq!(trip.verdict(), Deny);
    assert_eq!(trip.asked(), ["ns/a Egress", "node eth0 forward Egress"]);
}

#[test]
fn pm_11_6_pre_dnat_and_node_ports() {
    let node_port = "192.0.2.1:32010";
    let world = |allow: Option<&str>| {
        let mut world = World::two_nodes();
        world
            .hep(hep("h", "eth0").profile(ALLOW))
            .policy(policy("deny", 9.0).selects("has(hep)").both(deny_all()).pre_dnat());
        if let Some(port) = allow {
            world.policy(host_policy("allow", vec![allow_to_port(6, port)]).pre_dnat());
        }
        world
    };
    let client = |world: &World| {
        let hosts = world.hosts();
        hosts.trip(TO_POD, End::Outside, hosts.end("ns/a")).via(node_port).verdict()
    };
    assert_eq!(client(&world(None)), Deny);
    let hosts = world(None).hosts();
    let (a, b) = (hosts.end("ns/a"), hosts.end("ns/b"));
    assert_eq!(hosts.trip("tcp 10.0.0.1 > 10.0.0.2:80", a, b).verdict(), Allow);
    assert_eq!(client(&world(Some("32010"))), Allow);
    // Matched on what the client wrote, not on the backend.
    assert_eq!(client(&world(Some("8055"))), Deny);
    let mut closed = world(Some("32010"));
    closed.policy(policy("pods", 1.0).selects("has(app)").only(Ingress));
    assert_eq!(client(&closed), Deny);
    let hosts = closed.hosts();
    let asked = hosts.trip(TO_POD, End::Outside, hosts.end("ns/a")).via(node_port).asked();
    assert_eq!(asked, ["node eth0 preDNAT Ingress", "ns/a Ingress"]);
}

#[test]
fn pm_11_6_pre_dnat_on_the_default_host_endpoint_meets_pods() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "*")).policy(host_policy("p", deny_all()).pre_dnat());
    let hosts = world.hosts();
    let (a, c) = (hosts.end("ns/a"), hosts.end("ns/c"));
    assert_eq!(hosts.trip("tcp 10.0.0.1 > 10.0.1.1:80", a, c).verdict(), Deny);
    assert_eq!(hosts.trip("tcp 10.0.0.1 > 192.0.2.1:80", a, host()).verdict(), Deny);
}

#[test]
fn pm_11_6_untracked_policy_needs_both_directions() {
    let to = || host_policy("in", vec![allow_to_port(6, "8055")]).untracked().only(Ingress);
    let back = || {
        let rule = rule(Action::Allow).protocol(6).from(any().ports("8055"));
        host_policy("out", vec![rule]).untracked().only(Egress)
    };
    let client = |policies: &[Policy]| {
        let mut world = World::two_nodes();
        world.hep(hep("h", "eth0"));
        for policy in policies {
            world.policy(policy.clone());
        }
        let hosts = world.hosts();
        hosts.trip(TO_HOST, End::Outside, host()).verdict()
    };
    assert_eq!(client(&[to()]), Deny);
    assert_eq!(client(&[to(), back()]), Allow);
    assert_eq!(client(&[back()]), Deny);
}

#[test]
fn pm_11_6_failsafe_ports_pass_untracked_policy() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0")).policy(host_policy("p", deny_all()).untracked());
    let hosts = world.hosts();
    let ssh = "tcp 203.0.113.7:40000 > 192.0.2.1:22";
    let trip = hosts.trip(ssh, End::Outside, host());
    assert_eq!(trip.verdict(), Allow, "{:?}", trip.walk());
    assert_eq!(
        trip.asked(),
        ["node eth0 untracked Ingress", "node eth0 normal Ingress", "node eth0 untracked Egress reply"]
    );
    assert_eq!(hosts.trip(TO_HOST, End::Outside, host()).verdict(), Deny);
}

#[test]
fn pm_11_6_untracked_packets_are_not_for_pods() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0")).policy(host_policy("p", allow_all()).untracked());
    let hosts = world.hosts();
    let mut trip = hosts.trip(TO_POD, End::Outside, hosts.end("ns/a"));
    assert_eq!(trip.walk().ending, Ending::Untracked);
    assert_eq!(trip.verdict(), Deny);
    trip.journey.pods_take_untracked = true;
    assert_eq!(trip.verdict(), Allow);
    // Nor are they translated.
    let trip = hosts.trip(TO_HOST, End::Outside, host()).via("192.0.2.1:30000");
    assert_eq!(trip.walk().ending, Ending::Untracked);
}

#[test]
fn pm_11_7_what_the_default_host_endpoint_covers() {
    let mut world = World::two_nodes();
    world
        .hep(hep("default", "*"))
        .hep(hep("specific", "eth1"))
        .policy(policy("d", 1.0).selects("hep == 'default'").both(deny_all()).on_forward())
        .policy(policy("pre", 1.0).selects("hep == 'default'").both(deny_all()).pre_dnat());
    let hosts = world.hosts();
    let says = |interface, context| hosts.says(interface, context, Ingress, TO_HOST);
    assert_eq!([Untracked, PreDnat, Normal, Forward].map(|c| says(ETH0, c)), ["-", "Deny", "Deny", "Deny"]);
    assert_eq!([Untracked, PreDnat, Normal, Forward].map(|c| says(PODS, c)), ["-", "Deny", "-", "Deny"]);
    // The specific one replaces it in every context (PM-D9), although it has no policy: nothing, and no profile.
    assert_eq!([Untracked, PreDnat, Normal, Forward].map(|c| says(ETH1, c)), ["-", "-", "Deny", "-"]);
    assert_eq!(hosts.decided_by(ETH1, Normal, Ingress, TO_HOST), "__PROFILE__////-1");
    assert_eq!(says(OTHER_ETH0, Normal), "-");
}

#[test]
fn pm_11_7_untracked_policy_of_the_default_host_endpoint_is_ignored() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "*").profile(ALLOW)).policy(host_policy("p", deny_all()).untracked());
    let hosts = world.hosts();
    for interface in [ETH0, PODS] {
        assert_eq!(hosts.says(interface, Untracked, Ingress, TO_HOST), "-");
    }
    assert_eq!(hosts.trip(TO_HOST, End::Outside, host()).verdict(), Allow);
}

#[test]
fn pm_11_7_order_around_the_boundary() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "*")).policy(host_policy("p", allow_all()).on_forward());
    let hosts = world.hosts();
    let (a, b) = (hosts.end("ns/a"), hosts.end("ns/b"));
    assert_eq!(
        hosts.trip("tcp 10.0.0.1 > 10.0.0.2:80", a, b).asked(),
        ["ns/a Egress", "node pods forward Ingress", "node pods forward Egress", "ns/b Ingress"]
    );
    assert_eq!(
        hosts.trip("tcp 10.0.0.1 > 203.0.113.7:80", a, End::Outside).asked(),
        ["ns/a Egress", "node pods forward Ingress", "node eth0 forward Egress"]
    );
}

#[test]
fn pm_11_9_default_ports() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0")).policy(host_policy("p", deny_all()));
    let hosts = world.hosts();
    let inbound: [(u8, &[u16]); 2] = [(6, &[22, 179, 2379, 2380, 5473, 6443, 6666, 6667]), (17, &[68])];
    let outbound: [(u8, &[u16]); 2] = [(6, &[179, 2379, 2380, 5473, 6443, 6666, 6667]), (17, &[53, 67])];
    for (direction, expected) in [(Ingress, inbound), (Egress, outbound)] {
        for (protocol, ports) in expected {
            let word = if protocol == 6 { "tcp" } else { "udp" };
            let open: Vec<u16> = (0..=10_000)
                .filter(|port| {
                    let text = format!("{word} 203.0.113.7:40000 > 192.0.2.1:{port}");
                    hosts.says(ETH0, Normal, direction, &text) == "Allow"
                })
                .collect();
            assert_eq!(open, ports, "{word} {direction:?}");
        }
    }
    assert_eq!(hosts.says(ETH0, Normal, Ingress, "sctp 203.0.113.7 > 192.0.2.1:22"), "Deny");
    let ssh = "tcp 203.0.113.7 > 192.0.2.1:22";
    assert_eq!(hosts.decided_by(ETH0, Normal, Ingress, ssh), "/Failsafe//tcp:22/-1");
}

#[test]
fn pm_11_9_configured_ports_and_nets() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0"));
    world.model.insert(failsafe_ports("default", &[], &[]));
    let ssh = "tcp 203.0.113.7 > 192.0.2.1:22";
    assert_eq!(world.hosts().says(ETH0, Normal, Ingress, ssh), "Deny", "an empty list disables them");
    let ports = [(6, 22, "203.0.113.0/24"), (132, 5, ""), (17, 9, "2001:db8::/32")];
    world.model.insert(failsafe_ports("node.node", &ports, &[(6, 80, "203.0.113.0/24")]));
    let hosts = world.hosts();
    for (direction, text, expected) in [
        // Inbound the net is about the source, outbound about the destination.
        (Ingress, "tcp 203.0.113.7 > 192.0.2.1:22", "Allow"),
        (Ingress, "tcp 198.51.100.7 > 203.0.113.9:22", "Deny"),
        (Egress, "tcp 192.0.2.1 > 203.0.113.7:80", "Allow"),
        (Egress, "tcp 203.0.113.7 > 198.51.100.7:80", "Deny"),
        (Ingress, "sctp 198.51.100.7 > 192.0.2.1:5", "Allow"),
        (Ingress, "udp [2001:db8::7]:1 > [2001:db8::1]:9", "Allow"),
        (Ingress, "udp 203.0.113.7:1 > 192.0.2.1:9", "Deny"),
    ] {
        assert_eq!(hosts.says(ETH0, Normal, direction, text), expected, "{text}");
    }
    // The other node has the list of `default`, which is empty.
    world.hep(hep("o", "eth0").on("other"));
    assert_eq!(world.hosts().says(OTHER_ETH0, Normal, Ingress, ssh), "Deny");
}

#[test]
fn pm_11_9_where_failsafe_ports_are_applied() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0"));
    for policy in [
        host_policy("n", deny_all()).on_forward(),
        host_policy("u", deny_all()).untracked(),
        host_policy("d", deny_all()).pre_dnat(),
    ] {
        world.policy(policy);
    }
    world.policy(policy("pods", 1.0).selects("has(app)").both(deny_all()));
    let hosts = world.hosts();
    let ssh = "tcp 203.0.113.7:40000 > 192.0.2.1:22";
    let says = |context, direction, text: &str| hosts.says(ETH0, context, direction, text);
    assert_eq!(
        [Untracked, PreDnat, Normal, Forward].map(|context| says(context, Ingress, ssh)),
        ["NoMatch", "Allow", "Allow", "Deny"]
    );
    assert_eq!(hosts.judge.verdict(Ingress, "ns/a", "tcp 203.0.113.7 > 10.0.0.1:22"), Deny);
    // Where nothing tracks, replies are known by their source port; elsewhere the state knows them.
    let (ssh_reply, dns_reply) =
        ("tcp 192.0.2.1:22 > 203.0.113.7:40000", "udp 203.0.113.7:53 > 192.0.2.1:40000");
    assert_eq!(says(Untracked, Egress, ssh_reply), "NoMatch");
    assert_eq!(says(Untracked, Ingress, dns_reply), "NoMatch");
    assert_eq!(hosts.decided_by(ETH0, Untracked, Ingress, dns_reply), "/Failsafe//udp:53/-1");
    assert_eq!(says(Untracked, Egress, "tcp 192.0.2.1:80 > 203.0.113.7:40000"), "Deny");
    assert_eq!(says(PreDnat, Ingress, dns_reply), "Deny");
    assert_eq!(says(Normal, Ingress, dns_reply), "Deny");
    assert_eq!(says(Normal, Egress, ssh_reply), "Deny");
    // Without a policy of the context there is nothing to be safe from.
    let mut bare = World::two_nodes();
    bare.hep(hep("h", "eth0"));
    let bare = bare.hosts();
    assert_eq!(
        [Untracked, PreDnat, Normal, Forward].map(|context| bare.says(ETH0, context, Ingress, ssh)),
        ["-", "-", "Allow", "-"]
    );
}

#[test]
fn pm_11_9_replies_in_the_untracked_context_keep_to_the_net() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0")).policy(host_policy("u", deny_all()).untracked());
    let ports = [(6, 22, "203.0.113.0/24")];
    world.model.insert(failsafe_ports("default", &ports, &ports));
    let hosts = world.hosts();
    for (direction, text, expected) in [
        (Egress, "tcp 192.0.2.1:22 > 203.0.113.7:9", "NoMatch"),
        (Egress, "tcp 203.0.113.7:22 > 198.51.100.7:9", "Deny"),
        (Ingress, "tcp 203.0.113.7:22 > 192.0.2.1:9", "NoMatch"),
        (Ingress, "tcp 198.51.100.7:22 > 203.0.113.1:9", "Deny"),
    ] {
        assert_eq!(hosts.says(ETH0, Untracked, direction, text), expected, "{text}");
    }
}

#[test]
fn pm_11_9_failsafe_in_pre_dnat_ends_that_context_only() {
    let mut world = World::two_nodes();
    world
        .hep(hep("h", "eth0"))
        .policy(host_policy("d", allow_all()).pre_dnat())
        .policy(host_policy("f", deny_all()).on_forward());
    let hosts = world.hosts();
    let ssh = "tcp 203.0.113.7:40000 > 10.0.0.1:22";
    let trip = hosts.trip(ssh, End::Outside, hosts.end("ns/a"));
    assert_eq!(trip.asked(), ["node eth0 preDNAT Ingress", "node eth0 forward Ingress"]);
    assert_eq!(trip.verdict(), Deny);
    assert_eq!(hosts.trip(TO_POD, End::Outside, hosts.end("ns/a")).verdict(), Allow);
}

#[test]
fn pm_14_6_discovery_is_accepted_before_host_endpoint_policy() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0")).policy(host_policy("p", deny_all()).untracked());
    let hosts = world.hosts();
    for kind in 0..=255 {
        let text = format!("icmp6/{kind}/0 fe80::2 > 2001:db8::1");
        let expected = if (130..=136).contains(&kind) { Allow } else { Deny };
        assert_eq!(hosts.trip(&text, End::Outside, host()).verdict(), expected, "{kind}");
        let expected = if expected == Allow && kind != 134 { Allow } else { Deny };
        assert_eq!(hosts.trip(&text, host(), End::Outside).verdict(), expected, "{kind}");
    }
}

#[test]
fn pm_2_7_profiles_of_host_endpoints() {
    let cases: [(&[&str], &str); 6] = [
        (&["kns.ns"], "__PROFILE__/Profile//kns.ns/0"),
        (&["missing", ALLOW], "__PROFILE__/Profile//missing/-1"),
        (&["empty", ALLOW], "__PROFILE__/Profile//projectcalico-default-allow/0"),
        (&["deny", ALLOW], "__PROFILE__/Profile//deny/0"),
        (&["pass", ALLOW], "__PROFILE__/Profile//pass/0"),
        (&["ksa.ns.s"], "__PROFILE__////-1"),
    ];
    for (profiles, expected) in cases {
        let mut world = World::two_nodes();
        world
            .service_account("ns/s", &[])
            .profile("empty", Vec::new())
            .profile("deny", deny_all())
            .profile("pass", vec![rule(Action::Pass)]);
        world.hep(profiles.iter().fold(hep("h", "eth0"), |hep, name| hep.profile(name)));
        assert_eq!(world.hosts().decided_by(ETH0, Normal, Ingress, TO_HOST), expected, "{profiles:?}");
    }
    // Profiles that are listed lend their labels.
    let mut world = World::two_nodes();
    world
        .namespace("ns", &[("env", "prod")])
        .hep(hep("h", "eth0").profile("kns.ns"))
        .policy(policy("p", 1.0).selects("pcns.env == 'prod' && has(hep)").both(deny_all()));
    assert_eq!(world.hosts().says(ETH0, Normal, Ingress, TO_HOST), "Deny");
}

#[test]
fn staged_policies_do_not_count_for_host_endpoints() {
    let mut world = World::two_nodes();
    world.hep(hep("h", "eth0").profile(ALLOW)).policy(host_policy("p", deny_all()).staged());
    let hosts = world.hosts();
    assert_eq!(hosts.says(ETH0, Normal, Ingress, TO_HOST), "Allow");
}

#[test]
fn pm_16_2_a_node_port_on_another_node_is_judged_there_first() {
    let mut world = World::two_nodes();
    world
        .hep(hep("h", "eth0").on("other").profile(ALLOW))
        .policy(host_policy("p", vec![allow_to_port(6, "30001"), rule(Action::Deny)]).pre_dnat());
    let mut hosts = world.hosts();
    hosts.endpoint_to_host = EndpointToHostAction::Drop;
    let mut trip = hosts.trip(TO_POD, End::Outside, hosts.end("ns/a")).via("192.0.2.2:30000");
    assert_eq!(trip.verdict(), Allow);
    trip.journey.through = Some(OTHER);
    assert_eq!(trip.verdict(), Deny);
    assert_eq!(trip.asked(), ["other eth0 preDNAT Ingress"]);
    let mut trip = trip.via("192.0.2.2:30001");
    assert_eq!(trip.verdict(), Allow);
    // The node of the backend itself is no detour.
    trip.journey.through = Some(NODE);
    assert_eq!(trip.asked(), ["ns/a Ingress"]);
}
