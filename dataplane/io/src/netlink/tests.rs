//! Decoding and mapping from literals; following in a namespace of the test's own.

use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use margay_core::topology::{PortIndex, Route, TopologyBuilder};
use margay_wire::MacAddr;

use super::view::*;
use super::{Follower, Role, codec, decode, fill_topology};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

/// Returns the payload that [`codec::request`] frames.
fn payload(fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let bytes = codec::request(0, 0, 7, fixed, attributes);
    let message = codec::messages(&bytes).next().unwrap();
    assert_eq!(message.sequence, 7);
    message.payload.to_vec()
}

/// `struct rtmsg` of an IPv4 unicast route in the main table.
fn rtmsg(prefix: u8, kind: u8) -> [u8; 12] {
    [2, prefix, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0]
}

#[test]
fn truncated_input_yields_nothing_and_never_panics() {
    let mut whole = codec::request(16, 0, 1, &[0; 16], &[(3, b"eth0\0"), (4, &1500u32.to_ne_bytes())]);
    whole.extend(codec::request(
        24,
        0,
        1,
        &rtmsg(8, 1),
        &[(1, &[10, 0, 0, 0]), (9, &[16, 0, 0, 0, 3, 0, 0, 0])],
    ));
    for length in 0..whole.len() {
        for message in codec::messages(&whole[..length]) {
            let _ = decode::link(message.payload);
        }
        let _ = (
            decode::link(&whole[..length]),
            decode::address(&whole[..length]),
            decode::route(&whole[..length]),
        );
        let _ = (decode::neighbour(&whole[..length]), decode::rule(&whole[..length]));
    }
    assert_eq!(codec::messages(&whole).count(), 2);
}

#[test]
fn of_several_next_hops_the_first_usable_one_is_taken() {
    let hop = |ifindex: u8, flags: u8, gateway: u8| -> Vec<u8> {
        [&[16, 0, flags, 0, ifindex, 0, 0, 0, 8, 0, 5, 0][..], &[10, 0, 0, gateway]].concat()
    };
    let route = |hops: &[Vec<u8>]| {
        let list = hops.concat();
        decode::route(&payload(&rtmsg(8, 1), &[(1, &[10, 0, 0, 0]), (6, &5u32.to_ne_bytes()), (9, &list)]))
            .unwrap()
    };
    let expect = |ifindex, gateway| {
        decode::RouteEntry::Route(KernelRoute {
            prefix: net("10.0.0.0/8"),
            rank: 1,
            metric: 5,
            kind: RouteKind::Unicast,
            hop: Some(NextHop { ifindex, gateway: Some(ip(gateway)) }),
        })
    };
    assert_eq!(route(&[hop(3, 1, 1), hop(4, 16, 2), hop(5, 0, 3)]), expect(5, "10.0.0.3"));
    assert_eq!(route(&[hop(3, 1, 1), hop(4, 16, 2)]), expect(4, "10.0.0.2"));
    assert_eq!(route(&[hop(3, 1, 1)]), decode::RouteEntry::Irrelevant);
}

#[test]
fn routes_outside_the_default_tables_or_by_tos_are_not_followed() {
    let mut other = rtmsg(8, 1);
    other[4] = 100;
    let attributes: &[(u16, &[u8])] = &[(1, &[10, 0, 0, 0]), (4, &3u32.to_ne_bytes())];
    assert_eq!(decode::route(&payload(&other, attributes)), Some(decode::RouteEntry::Irrelevant));
    let mut tos = rtmsg(8, 1);
    tos[3] = 0x10;
    assert!(matches!(decode::route(&payload(&tos, attributes)), Some(decode::RouteEntry::Warning(_))));
}

#[test]
fn default_rules_are_silent_and_others_are_named() {
    let rule = |priority: u32, table: u8, extra: &[(u16, &[u8])]| {
        let priority = priority.to_ne_bytes();
        let mut attributes: Vec<(u16, &[u8])> = vec![(6, &priority), (14, &[0xff; 4])];
        attributes.extend(extra);
        decode::rule(&payload(&[2, 0, 0, 0, table, 0, 0, 1, 0, 0, 0, 0], &attributes))
    };
    assert_eq!(rule(0, 255, &[]), None);
    assert_eq!(rule(32766, 254, &[]), None);
    assert!(rule(100, 254, &[]).unwrap().contains("rule 100"));
    assert!(rule(32766, 254, &[(10, &[1, 0, 0, 0])]).is_some());
}

#[test]
fn tentative_addresses_wait_and_multicast_neighbours_do_not_count() {
    let address =
        |flags: u8| decode::address(&payload(&[2, 24, flags, 0, 3, 0, 0, 0], &[(2, &[10, 0, 0, 1])]));
    assert_eq!(address(0x80), Some(Address { ifindex: 3, ip: ip("10.0.0.1"), prefix: 24 }));
    assert_eq!(address(0xc0), None);
    let neighbour = |last: u8, state: u8| {
        let fixed = [2, 0, 0, 0, 3, 0, 0, 0, state, 0, 0, 0];
        decode::neighbour(&payload(&fixed, &[(1, &[last, 0, 0, 1]), (2, &[2, 0, 0, 0, 0, 9])]))
    };
    assert_eq!(neighbour(224, 0x02), None);
    assert_eq!(neighbour(10, 0x04).unwrap().1.state, NeighbourState::Usable);
    assert_eq!(neighbour(10, 0x80).unwrap().1.state, NeighbourState::Permanent);
    assert_eq!(neighbour(10, 0x20).unwrap().1, Neighbour { mac: None, state: NeighbourState::Unresolved });
}

#[test]
fn the_topology_keeps_what_leads_through_us_apart_from_what_stays_with_the_kernel() {
    let link = |name: &str, linked| Link {
        name: name.into(),
        mac: None,
        mtu: 1500,
        up: true,
        running: true,
        linked,
    };
    let route = |prefix: &str, rank, metric, kind, hop: Option<(u32, Option<&str>)>| KernelRoute {
        prefix: net(prefix),
        rank,
        metric,
        kind,
        hop: hop.map(|(ifindex, gateway)| NextHop { ifindex, gateway: gateway.map(ip) }),
    };
    // 1 lo, 2 eth0 (uplink), 3 mgy0x, 4 mgy0, 5 a pod's end, 6 docker0.
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let usable = Neighbour { mac: Some(mac), state: NeighbourState::Usable };
    let view = KernelView {
        links: [
            (1, link("lo", None)),
            (2, link("eth0", None)),
            (3, link("mgy0x", Some(4))),
            (4, link("mgy0", Some(3))),
            (5, link("mgyp1", None)),
            (6, link("docker0", None)),
        ]
        .into(),
        addresses: [
            (1, "127.0.0.1", 8),
            (1, "192.0.2.9", 32),
            (2, "10.0.0.1", 24),
            (4, "fe80::4", 64),
            (5, "169.254.1.1", 32),
        ]
        .into_iter()
        .map(|(ifindex, text, prefix)| Address { ifindex, ip: ip(text), prefix })
        .collect(),
        routes: [
            route("0.0.0.0/0", 1, 100, RouteKind::Unicast, Some((2, Some("10.0.0.254")))),
            route("0.0.0.0/0", 1, 50, RouteKind::Unicast, Some((6, None))),
            route("10.0.0.0/24", 1, 0, RouteKind::Unicast, Some((2, None))),
            route("172.17.0.0/16", 1, 0, RouteKind::Unicast, Some((6, None))),
            route("10.244.0.0/16", 1, 0, RouteKind::Unicast, Some((4, None))),
            route("10.244.0.0/16", 1, u32::MAX, RouteKind::Unreachable, None),
            route("10.9.0.0/16", 1, 0, RouteKind::Blackhole, None),
            route("10.0.0.1/32", 0, 0, RouteKind::Local, Some((2, None))),
            route("fe80::/64", 1, 256, RouteKind::Unicast, Some((2, None))),
        ]
        .into(),
        neighbours: [
            ((2, ip("10.0.0.254")), usable),
            ((2, ip("10.0.0.7")), Neighbour { mac: None, state: NeighbourState::Unresolved }),
            ((6, ip("172.17.0.2")), usable),
        ]
        .into(),
        ..KernelView::default()
    };
    let (uplink, host, pod) = (PortIndex(0), PortIndex(1), PortIndex(2));
    let mut builder = TopologyBuilder::default();
    fill_topology(
        &view,
        &[(uplink, 2, Role::Uplink), (host, 3, Role::Host), (pod, 5, Role::Pod)],
        &mut builder,
    );
    assert_eq!(builder.node_addresses, [ip("10.0.0.1"), ip("192.0.2.9"), ip("fe80::4")]);
    let routes: std::collections::BTreeMap<_, _> = builder.routes.iter().cloned().collect();
    assert_eq!(routes.len(), builder.routes.len());
    assert_eq!(routes[&net("0.0.0.0/0")], Route::Host, "the smaller metric wins");
    assert_eq!(routes[&net("10.0.0.0/24")], Route::Port { port: uplink, gateway: None });
    assert_eq!(routes[&net("172.17.0.0/16")], Route::Host);
    assert_eq!(routes[&net("10.244.0.0/16")], Route::Unreachable, "the one through mgy0 says nothing");
    assert_eq!(routes[&net("10.9.0.0/16")], Route::Unreachable);
    assert_eq!(routes[&net("10.0.0.1/32")], Route::Host);
    assert!(!routes.contains_key(&net("fe80::/64")));
    assert_eq!(builder.neighbours, [(uplink, ip("10.0.0.254"), mac)]);
}

/// A namespace that goes when the test ends, however it ends.
struct Namespace(String);

impl Namespace {
    fn new(tag: &str) -> Self {
        let name = format!("mgynl-{tag}-{}", std::process::id());
        run(&["netns", "add", &name]);
        Self(name)
    }

    fn ip(&self, command: &str) {
        let mut words = vec!["-n", &self.0];
        words.extend(command.split_whitespace());
        run(&words);
    }

    /// Runs `body` on a thread inside the namespace; what it spawns stays inside as well.
    fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = std::fs::File::open(format!("/var/run/netns/{}", self.0)).unwrap();
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                body()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(words: &[&str]) {
    let out = Command::new("ip").args(words).output().unwrap();
    assert!(out.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Waits until the follower's view satisfies `condition`.
fn wait(follower: &Follower, what: &str, condition: impl Fn(&KernelView) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition(&follower.current()) {
        assert!(Instant::now() < deadline, "never saw: {what}; view: {:#?}", follower.current());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn privileged(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {name}: needs root to make network namespaces");
    }
    root
}

#[test]
fn the_view_follows_links_addresses_routes_rules_and_neighbours() {
    if !privileged("the_view_follows_links_addresses_routes_rules_and_neighbours") {
        return;
    }
    let ns = Namespace::new("follow");
    ns.enter(|| {
        let (tell, told) = mpsc::channel();
        let follower = Follower::start(move || _ = tell.send(())).unwrap();
        ns.ip("link add up0 type veth peer name far0");
        wait(&follower, "both ends of the veth", |v| {
            let (Some((a, near)), Some((b, far))) = (v.link_named("up0"), v.link_named("far0")) else {
                return false;
            };
            near.linked == Some(b) && far.linked == Some(a) && !near.up
        });
        told.recv_timeout(Duration::from_secs(5)).expect("notify follows a change");
        let (up0, _) = follower.current().link_named("up0").unwrap();
        ns.ip("link set up0 mtu 1400 address 02:00:00:00:00:0a up");
        ns.ip("link set far0 up");
        wait(&follower, "the link up and running with its MTU and address", |v| {
            let link = &v.links[&up0];
            link.up && link.running && link.mtu == 1400 && link.mac == Some(MacAddr([2, 0, 0, 0, 0, 0xa]))
        });
        ns.ip("addr add 10.77.0.1/24 dev up0");
        ns.ip("-6 addr add fd77::1/64 dev up0 nodad");
        wait(&follower, "both addresses and their on-link routes", |v| {
            v.addresses.contains(&Address { ifindex: up0, ip: ip("10.77.0.1"), prefix: 24 })
                && v.addresses.contains(&Address { ifindex: up0, ip: ip("fd77::1"), prefix: 64 })
                && v.routes.iter().any(|r| r.prefix == net("10.77.0.0/24") && r.kind == RouteKind::Unicast)
        });
        let has = |v: &KernelView, prefix: &str, kind, metric, gateway: Option<&str>| {
            v.routes.iter().any(|r| {
                (r.prefix, r.kind, r.metric) == (net(prefix), kind, metric)
                    && r.hop.and_then(|hop| hop.gateway) == gateway.map(ip)
            })
        };
        ns.ip("route add 10.78.0.0/16 via 10.77.0.2 metric 7");
        ns.ip("route add unreachable 10.79.0.0/16 metric 9");
        ns.ip("route add 10.80.0.0/16 nexthop via 10.77.0.3 nexthop via 10.77.0.4");
        ns.ip("route add 10.81.0.0/16 via inet6 fd77::2");
        ns.ip("-6 route add fd78::/64 via fd77::2 metric 3");
        ns.ip("route add 10.82.0.0/16 via 10.77.0.2 table 100");
        wait(&follower, "the routes", |v| {
            has(v, "10.78.0.0/16", RouteKind::Unicast, 7, Some("10.77.0.2"))
                && has(v, "10.79.0.0/16", RouteKind::Unreachable, 9, None)
                && has(v, "10.80.0.0/16", RouteKind::Unicast, 0, Some("10.77.0.3"))
                && has(v, "10.81.0.0/16", RouteKind::Unicast, 0, Some("fd77::2"))
                && has(v, "fd78::/64", RouteKind::Unicast, 3, Some("fd77::2"))
                && !v.routes.iter().any(|r| r.prefix == net("10.82.0.0/16"))
        });
        assert!(follower.current().warnings.is_empty(), "{:?}", follower.current().warnings);
        ns.ip("rule add from 10.1.0.0/16 lookup 100 pref 200");
        wait(&follower, "the rule's warning", |v| v.warnings.iter().any(|w| w.contains("rule 200")));
        ns.ip("rule del pref 200");
        wait(&follower, "the warning's end", |v| v.warnings.is_empty());
        ns.ip("neigh add 10.77.0.2 lladdr 02:00:00:00:00:0b dev up0 nud reachable");
        let key = (up0, ip("10.77.0.2"));
        wait(&follower, "the neighbour", |v| {
            v.neighbours.get(&key).is_some_and(|n| n.mac == Some(MacAddr([2, 0, 0, 0, 0, 0xb])))
        });
        ns.ip("neigh del 10.77.0.2 dev up0");
        wait(&follower, "the neighbour gone", |v| {
            v.neighbours.get(&key).is_none_or(|n| n.state == NeighbourState::Unresolved)
        });
        ns.ip("route del 10.78.0.0/16");
        wait(&follower, "the route gone", |v| !v.routes.iter().any(|r| r.prefix == net("10.78.0.0/16")));
        // The kernel tells nothing about the IPv4 routes that this takes away.
        ns.ip("link set up0 down");
        wait(&follower, "the routes gone with the link", |v| {
            !v.routes.iter().any(|r| r.prefix == net("10.80.0.0/16")) && !v.links[&up0].up
        });
        ns.ip("link del up0");
        wait(&follower, "the links gone", |v| v.links.len() == 1 || v.link_named("up0").is_none());
    });
}

#[test]
fn a_burst_larger_than_the_socket_buffer_is_caught_up_with() {
    if !privileged("a_burst_larger_than_the_socket_buffer_is_caught_up_with") {
        return;
    }
    let ns = Namespace::new("burst");
    let batch = std::env::temp_dir().join(format!("{}.batch", ns.0));
    let lines: String =
        (0..6000).map(|i| format!("route add blackhole 10.{}.{}.0/24\n", i / 256, i % 256)).collect();
    std::fs::write(&batch, lines).unwrap();
    ns.enter(|| {
        let follower = Follower::start(|| ()).unwrap();
        run(&["-n", &ns.0, "-batch", batch.to_str().unwrap()]);
        wait(&follower, "all 6000 routes", |v| {
            v.routes.iter().filter(|r| r.kind == RouteKind::Blackhole).count() == 6000
        });
    });
    std::fs::remove_file(&batch).unwrap();
}

#[test]
fn a_next_hop_is_resolved_kept_and_forgotten() {
    if !privileged("a_next_hop_is_resolved_kept_and_forgotten") {
        return;
    }
    let (ns, far) = (Namespace::new("near"), Namespace::new("far"));
    ns.ip(&format!("link add up0 type veth peer name far0 netns {}", far.0));
    ns.ip("addr add 10.77.0.1/24 dev up0");
    far.ip("addr add 10.77.0.2/24 dev far0");
    far.ip("link set far0 address 02:00:00:00:00:0b up");
    ns.ip("link set up0 up");
    ns.enter(|| {
        let follower = Follower::start(|| ()).unwrap();
        let (up0, link) = follower.current().link_named("up0").map(|(i, l)| (i, l.clone())).unwrap();
        assert_eq!(link.linked, None, "the peer is in another namespace");
        let (there, absent) = (ip("10.77.0.2"), ip("10.77.0.9"));
        follower.resolve(up0, there).unwrap();
        follower.resolve(up0, there).unwrap();
        follower.resolve(up0, absent).unwrap();
        let usable = |v: &KernelView| {
            v.neighbours.get(&(up0, there)).is_some_and(|n| n.mac == Some(MacAddr([2, 0, 0, 0, 0, 0xb])))
        };
        wait(&follower, "the next hop resolved", usable);
        assert_ne!(
            follower.current().neighbours.get(&(up0, absent)).map(|n| n.state),
            Some(NeighbourState::Usable)
        );
        ns.ip("neigh flush dev up0");
        ns.ip("link set up0 down");
        wait(&follower, "the link down", |v| !v.links[&up0].up);
        ns.ip("link set up0 up");
        wait(&follower, "the next hop resolved again after the link came back", usable);
        follower.forget(up0, there).unwrap();
        follower.forget(up0, there).unwrap();
        wait(&follower, "the next hop forgotten", |v| !usable(v));
        assert!(follower.resolve(9999, there).is_err(), "no such device");
        // An entry set by hand keeps its permanence.
        let by_hand = ip("10.77.0.3");
        ns.ip("neigh add 10.77.0.3 lladdr 02:00:00:00:00:0c dev up0 nud permanent");
        wait(&follower, "the permanent entry", |v| v.neighbours.contains_key(&(up0, by_hand)));
        follower.resolve(up0, by_hand).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(follower.current().neighbours[&(up0, by_hand)].state, NeighbourState::Permanent);
    });
}
