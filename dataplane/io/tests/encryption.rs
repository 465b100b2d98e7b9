//! WireGuard on real devices, in namespaces of the test's own (policy model 25): one end is the packet path over AF_XDP, the other a bare
//! engine behind a packet socket. Without root each test says `SKIPPED` and passes.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use margay_core::topology::{Port, PortKind, Route, TopologyBuilder};
use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{Family, Opened, PeerId, PrivateKey, Sealed, Tunnels};
use margay_core::{DropReason, PortIndex, Spread, WorkerIndex};
use margay_io::thread::now;
use margay_io::{Dataplane, Role};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{Namespace, NamespacedName, Object, Pod};
use margay_policy_engine::packet::EndpointId;
use margay_wire::{ETHERNET_LEN, IpHeaders, MacAddr, Packet, build, parse};
use support::{Far, config, in_namespaces, spec, veth};

const SOON: Duration = Duration::from_secs(5);
const HOST: PortIndex = PortIndex(0);
const UPLINK: PortIndex = PortIndex(1);
/// The pod's port; its worker is another than the peer's where there are two.
const POD: PortIndex = PortIndex(2);
const PEER: PeerId = PeerId(7);
const PORT: u16 = 51820;
const MARKER: &[u8] = b"margay-io test frame that nobody may read";

fn mac(kind: u8, port: PortIndex) -> MacAddr {
    MacAddr([2, kind, 0, 0, 0, port.0 as u8])
}

/// Addresses of one family: our node, our pod, the other node, its pod, and both nodes' pods.
struct Places {
    node: IpAddr,
    pod: IpAddr,
    other: IpAddr,
    far_pod: IpAddr,
    nets: [&'static str; 2],
}

fn places(v6: bool) -> Places {
    let of = |v4: &str, text: &str| if v6 { text } else { v4 }.parse().unwrap();
    Places {
        node: of("192.0.2.1", "2001:db8::1"),
        pod: of("10.1.0.2", "fd00:1::2"),
        other: of("192.0.2.2", "2001:db8::2"),
        far_pod: of("10.2.0.9", "fd00:2::9"),
        nets: if v6 { ["fd00:1::/64", "fd00:2::/64"] } else { ["10.1.0.0/24", "10.2.0.0/24"] },
    }
}

fn topology() -> TopologyBuilder {
    let (four, six) = (places(false), places(true));
    let port =
        |index, name: &str, kind| Port { index, name: name.to_owned(), kind, mac: mac(1, index), mtu: 1500 };
    let addresses = vec![four.pod, six.pod];
    TopologyBuilder {
        ports: vec![
            port(HOST, "host0", PortKind::Host { kernel_mac: mac(2, HOST) }),
            port(UPLINK, "up0", PortKind::Uplink),
            port(POD, "a0", PortKind::Pod { endpoint: EndpointId(1), pod_mac: mac(2, POD), addresses }),
        ],
        node_addresses: vec![four.node, six.node],
        local_pod_cidrs: [four.nets[0], six.nets[0]].map(|net| net.parse().unwrap()).to_vec(),
        remote_pod_cidrs: [four.nets[1], six.nets[1]]
            .map(|net| (net.parse().unwrap(), vec![four.other, six.other]))
            .to_vec(),
        routes: ["192.0.2.0/24", "2001:db8::/64"]
            .map(|net| (net.parse().unwrap(), Route::Port { port: UPLINK, gateway: None }))
            .to_vec(),
        neighbours: [four.other, six.other].map(|address| (UPLINK, address, mac(2, UPLINK))).to_vec(),
    }
}

fn policy() -> Engine {
    let mut engine = Engine::new();
    let namespace = Namespace { name: "ns".to_owned(), labels: Default::default() };
    engine.apply(Change::Upsert(Object::Namespace(Arc::new(namespace))));
    let key = NamespacedName { namespace: "ns".to_owned(), name: "pod".to_owned() };
    let labels = [("projectcalico.org/namespace", "ns"), ("projectcalico.org/orchestrator", "k8s")];
    let addresses = vec![places(false).pod, places(true).pod];
    engine.apply(Change::Upsert(Object::Pod(Arc::new(Pod {
        key: key.clone(),
        uid: String::new(),
        labels: Arc::new(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
        service_account: None,
        node: Some("node".to_owned()),
        host_network: false,
        finished: false,
        addresses: addresses.clone(),
        annotated_addresses: Vec::new(),
        ports: Vec::new(),
        started: String::new(),
        annotations: Default::default(),
    }))));
    let endpoint = LocalEndpoint { id: EndpointId(1), pod: key, uid: String::new(), addresses };
    engine.apply(Change::Endpoint(endpoint));
    engine
}

/// The plan of one end: our own node's, or the other's.
fn plan(v6: bool, ours: bool) -> FamilyPlan {
    let Places { node, other, nets, .. } = places(v6);
    let [(own, own_key), (peer, peer_key)] =
        if ours { [(node, 1), (other, 2)] } else { [(other, 2), (node, 1)] };
    let key = |seed: u8| PrivateKey::new([seed; 32]);
    let peer = PeerPlan {
        id: PEER,
        node: "far".to_owned(),
        keys: vec![key(peer_key).public()],
        endpoint: SocketAddr::new(peer, PORT),
        allowed: vec![nets[usize::from(ours)].parse().unwrap()],
        keepalive: None,
    };
    FamilyPlan {
        own: OwnEnd { keys: vec![key(own_key)], port: PORT, address: own, mtu: 0 },
        peers: vec![peer],
    }
}

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// The other node: a packet socket at the far end of the uplink, and an engine.
struct OtherNode {
    wire: Far,
    tunnels: Tunnels,
    v6: bool,
    room: Vec<u8>,
}

impl OtherNode {
    fn new(v6: bool) -> Self {
        let family = Arc::new(Family::new(&plan(v6, false), None));
        let tunnels = Tunnels::new(&family, &Spread::default(), WorkerIndex(0));
        Self { wire: Far::new("up0-far"), tunnels, v6, room: vec![0; 2048] }
    }

    fn send(&self, content: &[u8]) {
        let Places { node, other, .. } = places(self.v6);
        let macs = (mac(2, UPLINK), mac(1, UPLINK));
        self.wire.send(&build::udp(macs, (other, PORT), (node, PORT), content));
    }

    /// Answers what comes until a packet comes out.
    fn receive_packet(&mut self) -> Vec<u8> {
        let (Places { node, .. }, header) = (places(self.v6), if self.v6 { 62 } else { 42 });
        loop {
            let mine = |frame: &[u8]| frame[6..12] == mac(1, UPLINK).0;
            let frame = self.wire.receive_where(SOON, mine).expect("a datagram");
            let ip = headers(&frame);
            assert_eq!((ip.source, ip.ports()), (node, Some((PORT, PORT))), "nothing but WireGuard");
            assert!(!frame.windows(MARKER.len()).any(|part| part == MARKER), "in clear");
            let from = SocketAddr::new(node, PORT);
            match self.tunnels.receive(from, &frame[header..ip.end()], &mut self.room, now()) {
                Ok((_, Opened::Packet(len))) => return self.room[..len].to_vec(),
                Ok((_, Opened::Answer(len))) => self.send(&self.room[..len]),
                Ok((_, Opened::Nothing)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn send_packet(&mut self, packet: &[u8]) {
        match self.tunnels.seal(PEER, packet, &mut self.room, now()) {
            Ok(Sealed::Datagram(len)) => self.send(&self.room[..len]),
            other => panic!("{other:?}"),
        }
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn talk(directory: &Path, workers: u16) {
    for name in ["host0", "up0", "a0"] {
        veth(name);
    }
    let dataplane = Dataplane::start(margay_io::DataplaneConfig { workers, ..config(directory) }).unwrap();
    for (index, device, role) in [(0, "host0", Role::Host), (1, "up0", Role::Uplink), (2, "a0", Role::Pod)] {
        dataplane.add_port(spec(index, device, role)).unwrap();
    }
    let cluster: Vec<_> =
        [false, true].iter().flat_map(|v6| places(*v6).nets.map(|n| n.parse().unwrap())).collect();
    dataplane.set_uplink_prefixes(&[], &cluster).unwrap();
    dataplane.publish_snapshot(policy().publish());
    let encryption = EncryptionPlan {
        generation: 1,
        v4: Some(plan(false, true)),
        v6: Some(plan(true, true)),
        ..EncryptionPlan::default()
    };
    dataplane.set_encryption(&encryption).unwrap();
    dataplane.publish_topology(Arc::new(topology().build(1)));
    assert!(dataplane.wait_for_topology(1, SOON));
    wait_until("the plan is in force", || dataplane.tunnel_report().unwrap().generation == 1);

    let pod = Far::new("a0-far");
    for v6 in [false, true] {
        let mut other = OtherNode::new(v6);
        let Places { pod: pod_address, far_pod, .. } = places(v6);
        let macs = (mac(2, POD), mac(1, POD));
        for number in 0..50u8 {
            let there = build::udp(macs, (pod_address, 1000), (far_pod, 2000), &[MARKER, &[number]].concat());
            pod.send(&there);
            let packet = other.receive_packet();
            assert!(packet.ends_with(&[number]), "in order");
            let arrived =
                [&[0; ETHERNET_LEN][..12], if v6 { &[0x86, 0xdd] } else { &[8, 0] }, &packet].concat();
            assert_eq!((headers(&arrived).source, headers(&arrived).destination), (pod_address, far_pod));
            let back = build::udp(macs, (far_pod, 2000), (pod_address, 1000), &[MARKER, &[number]].concat());
            other.send_packet(&back[ETHERNET_LEN..]);
            let received = pod.receive(SOON).expect("the answer");
            assert!(received.ends_with(&[number]) && headers(&received).source == far_pod);
        }
        // In clear from an address of the peer, which has a session.
        let clear = build::udp((mac(2, UPLINK), mac(1, UPLINK)), (far_pod, 1), (pod_address, 2), MARKER);
        let dropped = || dataplane.counters().dropped(DropReason::ExpectedEncrypted);
        let before = dropped();
        other.wire.send(&clear);
        wait_until("plaintext ends by name", || dropped() == before + 1);

        let report = dataplane.tunnel_report().unwrap();
        let peer = report.peers.iter().find(|peer| peer.v6 == v6).expect("the peer");
        assert!(peer.live && peer.handshake.is_some_and(|age| age < SOON));
        assert_eq!((peer.sent.packets, peer.received.packets), (50, 50));
        let own = report.own.iter().find(|own| own.v6 == v6).expect("our key");
        assert_eq!((own.sessions, own.users), (1, 1));
        let (flows, _) = dataplane.flows(0, 100).unwrap();
        let flow = flows.iter().find(|flow| flow.destination == far_pod).expect("the flow");
        assert_eq!(flow.encrypted, (true, true));
    }
    let counters = dataplane.counters();
    assert_eq!((counters.sealed, counters.opened), (100, 100));
    // A plan without tunnels closes the door, and nothing is dropped that need not be.
    let none = EncryptionPlan { generation: 2, ..EncryptionPlan::default() };
    dataplane.set_encryption(&none).unwrap();
    wait_until("the plan is in force", || dataplane.tunnel_report().unwrap().generation == 2);
    assert!(dataplane.tunnel_report().unwrap().peers.is_empty());
    std::thread::sleep(Duration::from_millis(150));
    let census = dataplane.memory().unwrap().chunks;
    assert_eq!(census.free + census.held + census.fill + census.transmit, 4096, "every chunk is somewhere");
}

#[test]
fn pm_25_a_pod_talks_to_another_node_and_the_wire_shows_nothing() {
    in_namespaces("pm_25_a_pod_talks_to_another_node_and_the_wire_shows_nothing", |directory| {
        talk(directory, 1)
    });
}

#[test]
fn pm_25_with_two_workers_the_peer_is_the_others() {
    in_namespaces("pm_25_with_two_workers_the_peer_is_the_others", |directory| talk(directory, 2));
}
