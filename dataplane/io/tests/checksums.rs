//! Checksums that a pod leaves to its device: they stay left towards another pod, whose kernel takes them so, and are completed towards
//! anything else (decisions 0003 and 0027). Pods are namespaces with sockets of their kernel's. Without root each test says `SKIPPED`.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use margay_core::PortIndex;
use margay_core::topology::{Port, PortKind, Route, TopologyBuilder};
use margay_io::{Dataplane, DataplaneConfig, Role};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{Namespace, NamespacedName, Object, Pod};
use margay_policy_engine::packet::EndpointId;
use margay_wire::{ETHERNET_LEN, IpHeaders, MacAddr, Packet, build, checksum, parse, protocol};
use nix::sched::{CloneFlags, setns, unshare};
use support::{Far, config, in_namespaces, ip, spec, veth};

const SOON: Duration = Duration::from_secs(5);
const UPLINK: PortIndex = PortIndex(1);
const A: PortIndex = PortIndex(2);
const B: PortIndex = PortIndex(3);
const BEYOND: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

fn mac(kind: u8, port: PortIndex) -> MacAddr {
    MacAddr([2, kind, 0, 0, 0, port.0 as u8])
}

fn addresses(port: PortIndex) -> Vec<IpAddr> {
    let number = port.0;
    [format!("10.1.0.{number}"), format!("fd00:1::{number}")].map(|text| text.parse().unwrap()).to_vec()
}

fn topology(mtu: u32) -> TopologyBuilder {
    let port =
        |index, name: &str, kind, mtu| Port { index, name: name.to_owned(), kind, mac: mac(1, index), mtu };
    let pod = |index: PortIndex, name: &str| {
        let kind = PortKind::Pod {
            endpoint: EndpointId(u32::from(index.0)),
            pod_mac: mac(2, index),
            addresses: addresses(index),
        };
        port(index, name, kind, mtu)
    };
    let host = PortKind::Host { kernel_mac: mac(2, PortIndex(0)) };
    TopologyBuilder {
        ports: vec![
            port(PortIndex(0), "host0", host, 1500),
            port(UPLINK, "up0", PortKind::Uplink, 1500),
            pod(A, "a0"),
            pod(B, "b0"),
        ],
        node_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        local_pod_cidrs: ["10.1.0.0/24", "fd00:1::/64"].map(|net| net.parse().unwrap()).to_vec(),
        remote_pod_cidrs: Vec::new(),
        routes: ["192.0.2.0/24", "2001:db8::/64"]
            .map(|net| (net.parse().unwrap(), Route::Port { port: UPLINK, gateway: None }))
            .to_vec(),
        neighbours: BEYOND.map(|address| (UPLINK, address.parse().unwrap(), mac(2, UPLINK))).to_vec(),
    }
}

/// Both pods, and no policy that selects them.
fn policy() -> Engine {
    let mut engine = Engine::new();
    let namespace = Namespace { name: "ns".to_owned(), labels: Default::default() };
    engine.apply(Change::Upsert(Object::Namespace(Arc::new(namespace))));
    for (port, name) in [(A, "a"), (B, "b")] {
        let key = NamespacedName { namespace: "ns".to_owned(), name: name.to_owned() };
        let labels = [("projectcalico.org/namespace", "ns"), ("projectcalico.org/orchestrator", "k8s")];
        engine.apply(Change::Upsert(Object::Pod(Arc::new(Pod {
            key: key.clone(),
            uid: String::new(),
            labels: Arc::new(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            service_account: None,
            node: Some("node".to_owned()),
            host_network: false,
            finished: false,
            addresses: addresses(port),
            annotated_addresses: Vec::new(),
            ports: Vec::new(),
            started: String::new(),
            annotations: Default::default(),
        }))));
        let id = EndpointId(u32::from(port.0));
        let endpoint = LocalEndpoint { id, pod: key, uid: String::new(), addresses: addresses(port) };
        engine.apply(Change::Endpoint(endpoint));
    }
    engine
}

/// A pod's namespace, with the far end of its port in it.
struct PodNs {
    namespace: File,
    device: String,
}

impl PodNs {
    fn new(port: PortIndex, device: &str, other: PortIndex, mtu: u32) -> Self {
        let maker = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let pod = Self { namespace: maker.join().unwrap(), device: format!("{device}-far") };
        let Self { namespace, device } = &pod;
        ip(&format!("link set {device} netns /proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()));
        pod.inside(|| {
            ip(&format!("link set {device} address {} mtu {mtu} arp on up", mac(2, port)));
            for (own, far) in addresses(port).iter().zip(addresses(other)) {
                let len = if own.is_ipv4() { "24" } else { "64 nodad" };
                ip(&format!("addr add {own}/{len} dev {device}"));
                ip(&format!("neigh replace {far} lladdr {} dev {device} nud permanent", mac(1, port)));
            }
            for beyond in BEYOND {
                ip(&format!("route add {beyond} dev {device}"));
                ip(&format!("neigh replace {beyond} lladdr {} dev {device} nud permanent", mac(1, port)));
            }
        });
        pod
    }

    /// Runs `work` on a thread in the pod.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let run = || {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(run).join().unwrap()
        })
    }

    /// Returns a packet socket on the pod's interface.
    fn ear(&self) -> Far {
        self.inside(|| Far::new(&self.device))
    }

    /// Returns how many TCP segments and UDP datagrams of both families its kernel found damaged.
    fn damaged(&self) -> (u64, u64) {
        self.inside(|| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
            let four = |file: &str, table: &str, name: &str| {
                let text = read(file);
                let mut lines = text.lines().filter(|line| line.starts_with(table));
                let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
                let at = names.split_whitespace().position(|it| it == name).unwrap();
                values.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap()
            };
            let six = read("snmp6");
            let six = six.lines().find_map(|line| line.strip_prefix("Udp6InCsumErrors")).unwrap();
            let udp = four("snmp", "Udp:", "InCsumErrors") + six.trim().parse::<u64>().unwrap();
            (four("snmp", "Tcp:", "InCsumErrors"), udp)
        })
    }
}

struct World {
    dataplane: Dataplane,
    a: PodNs,
    b: PodNs,
    wire: Far,
}

impl World {
    fn new(directory: &Path, leave_checksums: bool, mtu: u32) -> Self {
        for name in ["host0", "up0", "a0", "b0"] {
            veth(name);
        }
        let dataplane = Dataplane::start(DataplaneConfig { leave_checksums, ..config(directory) }).unwrap();
        let ports =
            [("host0", Role::Host), ("up0", Role::Uplink), ("a0", Role::Pod), ("b0", Role::Pod)].into_iter();
        for (index, (device, role)) in ports.enumerate() {
            dataplane.add_port(spec(index as u16, device, role)).unwrap();
        }
        let mtu = if dataplane.takes_several_frames() { mtu } else { 1500 };
        for device in ["a0", "b0"] {
            ip(&format!("link set {device} mtu {mtu}"));
        }
        let (a, b) = (PodNs::new(A, "a0", B, mtu), PodNs::new(B, "b0", A, mtu));
        dataplane.publish_snapshot(policy().publish());
        dataplane.publish_topology(Arc::new(topology(mtu).build(1)));
        assert!(dataplane.wait_for_topology(1, SOON));
        Self { dataplane, a, b, wire: Far::new("up0-far") }
    }

    /// Sends `len` bytes over TCP from one pod to the other, and compares them.
    fn stream(&self, to: IpAddr, len: usize) {
        let listener = self.b.inside(|| TcpListener::bind((to, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + at / 251) as u8).collect();
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let mut taken = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut taken).unwrap();
                taken
            });
            let connected = self.a.inside(|| TcpStream::connect_timeout(&address, SOON));
            connected.unwrap().write_all(&bytes).unwrap();
            assert!(taker.join().unwrap() == bytes, "{to}: what arrived is not what was sent");
        });
    }

    /// Has `bytes` sent by a pod's kernel over UDP from A to `to`.
    fn datagram(&self, to: SocketAddr, bytes: &[u8]) {
        let own = addresses(A)[usize::from(to.is_ipv6())];
        let socket = self.a.inside(|| UdpSocket::bind((own, 0)).unwrap());
        socket.send_to(bytes, to).unwrap();
    }
}

fn headers(frame: &[u8]) -> Option<IpHeaders> {
    match parse(frame).ok()?.packet {
        Packet::Ip(ip) => Some(ip),
        Packet::Arp(_) => None,
    }
}

/// What a checksum says of its packet.
#[derive(Debug, PartialEq, Eq)]
enum Sum {
    /// The pseudo header's only.
    Partial,
    Right,
    Wrong,
}

fn sum(frame: &[u8]) -> Sum {
    let ip = headers(frame).expect("an IP packet");
    if checksum::partial(frame, &ip).is_some() {
        return Sum::Partial;
    }
    let segment = &frame[usize::from(ip.transport_offset)..ip.end()];
    let pseudo = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, segment.len() as u32);
    if checksum::fold(checksum::add(pseudo, segment)) == 0xffff { Sum::Right } else { Sum::Wrong }
}

/// Returns the next segment to `to` that an ear hears, in a frame longer than `more` bytes.
fn next(ear: &Far, to: IpAddr, more: usize) -> Vec<u8> {
    next_of(ear, protocol::TCP, to, more)
}

/// As [`next`], the next datagram: the last answer of a stream before it, whose sum its kernel makes itself, is none.
fn next_datagram(ear: &Far, to: IpAddr, more: usize) -> Vec<u8> {
    next_of(ear, protocol::UDP, to, more)
}

fn next_of(ear: &Far, protocol: u8, to: IpAddr, more: usize) -> Vec<u8> {
    let wanted = |frame: &[u8]| {
        frame.len() > more && headers(frame).is_some_and(|ip| ip.destination == to && ip.protocol == protocol)
    };
    ear.receive_where(SOON, wanted).expect("a frame")
}

#[test]
fn sums_stay_left_between_pods_and_their_kernels_take_them() {
    in_namespaces("sums_stay_left_between_pods_and_their_kernels_take_them", |directory| {
        let world = World::new(directory, true, 60_000);
        if !world.dataplane.leaves_checksums() {
            println!("SKIPPED sums_stay_left_between_pods: the kernel has no transmit metadata");
            return;
        }
        let several = world.dataplane.takes_several_frames();
        for to in addresses(B) {
            let ear = world.b.ear();
            world.stream(to, 8 << 20);
            assert_eq!(sum(&next(&ear, to, 0)), Sum::Partial, "the first segment to {to}");
            // One of several frames, where there are any.
            let len = if several { 20_000 } else { 1_000 };
            assert_eq!(sum(&next(&ear, to, len)), Sum::Partial, "a large segment to {to}");

            let ear = world.b.ear();
            let server = world.b.inside(|| UdpSocket::bind((to, 0)).unwrap());
            server.set_read_timeout(Some(SOON)).unwrap();
            for len in [1, 2, 3, 500, 1400, if several { 50_001 } else { 1401 }] {
                let bytes: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
                world.datagram(server.local_addr().unwrap(), &bytes);
                let mut taken = vec![0; 65_536];
                let count = server.recv(&mut taken).unwrap();
                assert!(taken[..count] == bytes, "{len} bytes to {to}");
                assert_eq!(sum(&next_datagram(&ear, to, len)), Sum::Partial, "{len} bytes to {to}");
            }
        }
        assert_eq!(world.b.damaged(), (0, 0));
        assert_eq!(world.a.damaged(), (0, 0));
        let ports = world.dataplane.port_counters().unwrap();
        assert_eq!((ports[&B].kernel.invalid_descriptors, ports[&B].tx_failed), (0, 0));
    });
}

#[test]
fn sums_are_completed_beyond_the_node() {
    in_namespaces("sums_are_completed_beyond_the_node", |directory| {
        let world = World::new(directory, true, 1500);
        let from = world.a.ear();
        for text in BEYOND {
            let to: IpAddr = text.parse().unwrap();
            for len in [1usize, 64, 1400] {
                world.datagram(SocketAddr::new(to, 9), &vec![7; len]);
                assert_eq!(
                    sum(&next_datagram(&from, to, len)),
                    Sum::Partial,
                    "as the pod's kernel leaves it"
                );
                assert_eq!(sum(&next_datagram(&world.wire, to, len)), Sum::Right, "{len} bytes to {to}");
            }
        }
    });
}

#[test]
fn what_was_damaged_stays_damaged() {
    in_namespaces("what_was_damaged_stays_damaged", |directory| {
        let world = World::new(directory, true, 1500);
        let (from, ear) = (world.a.ear(), world.b.ear());
        for (own, to) in addresses(A).into_iter().zip(addresses(B)) {
            let server = world.b.inside(|| UdpSocket::bind((to, 0)).unwrap());
            server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let macs = (mac(2, A), mac(1, A));
            let whole =
                build::udp(macs, (own, 1000), (to, server.local_addr().unwrap().port()), b"as it was sent");
            assert_eq!(sum(&whole), Sum::Right);
            let mut damaged = whole.clone();
            *damaged.last_mut().unwrap() ^= 1;
            let before = world.b.damaged().1;
            for (sent, is) in [(&whole, Sum::Right), (&damaged, Sum::Wrong)] {
                from.send(sent);
                let arrived = next_datagram(&ear, to, 0);
                assert_eq!(sum(&arrived), is);
                assert!(arrived[ETHERNET_LEN + 20..] == sent[ETHERNET_LEN + 20..], "nothing is written");
            }
            let mut taken = [0; 64];
            assert_eq!(server.recv(&mut taken).unwrap(), 14, "the whole one");
            assert!(server.recv(&mut taken).is_err(), "the damaged one is nobody's");
            assert_eq!(world.b.damaged().1, before + 1);
        }
    });
}

#[test]
fn without_metadata_sums_are_completed_for_pods_too() {
    in_namespaces("without_metadata_sums_are_completed_for_pods_too", |directory| {
        let world = World::new(directory, false, 60_000);
        assert!(!world.dataplane.leaves_checksums());
        for to in addresses(B) {
            let ear = world.b.ear();
            world.stream(to, 2 << 20);
            let len = if world.dataplane.takes_several_frames() { 20_000 } else { 1_000 };
            assert_eq!(sum(&next(&ear, to, 0)), Sum::Right, "the first segment to {to}");
            assert_eq!(sum(&next(&ear, to, len)), Sum::Right, "a large segment to {to}");
        }
        assert_eq!(world.b.damaged(), (0, 0));
    });
}
