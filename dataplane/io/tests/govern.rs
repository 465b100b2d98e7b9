//! A governed NIC: the kernel's own frames take the host port while the worker lives, and the wire when it does not.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use margay_core::{Nanos, PortIndex};
use margay_io::steer::Steer;
use margay_io::thread::now;
use margay_io::xsk::UmemHandle;
use margay_io::{Dataplane, DataplaneError, EgressMode, Role};
use support::{Far, Patch, config, frame, ifindex, in_namespaces, ip, spec, veth};

const SOON: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(150);
const UPLINK: PortIndex = PortIndex(1);

/// The host's pair `hx` (ours) and `hx-far` (the kernel's end), the NIC `nic` with its wire's end `nic-far`, and a pod's device.
fn devices() {
    for name in ["hx", "nic", "p0"] {
        veth(name);
    }
    // The kernel speaks through the NIC: it has an address and a neighbour, and needs no ARP for it.
    ip("address add 192.0.2.1/24 dev nic");
    ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev nic nud permanent");
}

fn start(directory: &Path, pairs: &'static [(u16, u16)]) -> (Dataplane, Arc<AtomicBool>) {
    let hang = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&hang);
    let dataplane =
        Dataplane::start_with(config(directory), move |_, _| Patch::new(pairs, Arc::clone(&inside))).unwrap();
    dataplane.add_port(spec(0, "hx", Role::Host)).unwrap();
    dataplane.add_port(spec(1, "nic", Role::Uplink)).unwrap();
    dataplane.add_port(spec(2, "p0", Role::Pod)).unwrap();
    (dataplane, hang)
}

/// Sends a datagram of `length` bytes as any program of the machine does; `text` marks it.
fn say(text: &str, length: usize) {
    let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
    let mut data = text.as_bytes().to_vec();
    data.resize(length.max(data.len()), b'.');
    // A full queue of the device is no matter here: what arrives is looked at.
    let _ = socket.send_to(&data, "192.0.2.9:7");
}

fn hears(far: &Far, text: &str, patience: Duration) -> Option<Vec<u8>> {
    far.receive_where(patience, |f| f.windows(text.len()).any(|w| w == text.as_bytes()))
}

#[test]
fn the_kernels_frames_take_the_host_port_while_the_worker_lives() {
    in_namespaces("the_kernels_frames_take_the_host_port_while_the_worker_lives", |directory| {
        devices();
        // What comes in on the host port goes to the pod's device, where it is seen.
        let (dataplane, hang) = start(directory, &[(0, 2)]);
        let (wire, pod) = (Far::new("nic-far"), Far::new("p0-far"));
        say("before", 30);
        assert!(
            hears(&wire, "before", SOON).is_some(),
            "an uplink that is not governed belongs to the kernel"
        );

        let mode = dataplane.govern(UPLINK, ifindex("hx-far"), "governed-nic").unwrap();
        println!("attached by {}", mode.as_str());
        say("governed", 30);
        let got = hears(&pod, "governed", SOON).expect("arrives on the host port's rings");
        assert_eq!(got[..6], [2, 0, 0, 0, 0, 9], "addressed by the kernel's neighbour table");
        assert!(hears(&wire, "governed", QUIET).is_none(), "and not on the wire");

        // A whole frame of the kernel that is not IP stays with it.
        ip("link set nic arp on");
        ip("neighbour flush dev nic");
        let _ = std::net::UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.77:7");
        let asked = |f: &[u8]| f[12..14] == [8, 6] && f[38..42] == [192, 0, 2, 77];
        assert!(wire.receive_where(SOON, asked).is_some(), "ARP goes to the wire");
        ip("link set nic arp off");

        hang.store(true, SeqCst);
        let poke = Far::new("p0-far");
        poke.send(&frame([10, 0, 0, 1], [10, 0, 0, 2], 1));
        std::thread::sleep(Duration::from_millis(1200));
        say("silent", 30);
        assert!(
            hears(&wire, "silent", SOON).is_some(),
            "a worker that hangs does not cost the machine its network"
        );
        hang.store(false, SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        say("again", 30);
        assert!(hears(&pod, "again", SOON).is_some());
        assert!(hears(&wire, "again", QUIET).is_none());

        assert!(dataplane.ungovern(UPLINK, "governed-nic").unwrap());
        say("free", 30);
        assert!(hears(&wire, "free", SOON).is_some());
        assert!(hears(&pod, "free", QUIET).is_none());
        assert!(!dataplane.ungovern(UPLINK, "governed-nic").unwrap(), "there is nothing left");
        assert!(!dataplane.link_names().contains("governed-nic"));
    });
}

/// An IPv6 frame with these bytes behind its header, and a text.
fn v6(next: u8, hops: u8, payload: &[u8], text: &str) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    f.extend(((payload.len() + text.len()) as u16).to_be_bytes());
    f.extend([next, hops]);
    f.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    f.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    f.extend(payload);
    f.extend(text.as_bytes());
    f
}

#[test]
fn what_ends_at_the_link_stays_with_the_kernel() {
    in_namespaces("what_ends_at_the_link_stays_with_the_kernel", |directory| {
        devices();
        let (dataplane, _) = start(directory, &[(0, 2)]);
        dataplane.govern(UPLINK, ifindex("hx-far"), "governed-nic").unwrap();
        // A packet socket's frames leave through the same hook as the kernel's own.
        let (kernel, wire, pod) = (Far::new("nic"), Far::new("nic-far"), Far::new("p0-far"));
        let alert = |kind: u8| [58, 0, 5, 2, 0, 0, 1, 0, kind, 0, 0, 0];
        let mut tagged = v6(17, 64, &[0; 8], "tagged");
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let cases = [
            (v6(58, 255, &[135, 0, 0, 0], "solicitation"), "solicitation", false),
            (v6(58, 255, &[136, 0, 0, 0], "advertisement"), "advertisement", false),
            (v6(58, 64, &[135, 0, 0, 0], "from afar"), "from afar", true),
            (v6(58, 255, &[137, 0, 0, 0], "redirect"), "redirect", true),
            (v6(58, 255, &[128, 0, 0, 0], "echo"), "echo", true),
            (v6(0, 1, &alert(143), "report"), "report", false),
            (v6(0, 1, &alert(128), "odd echo"), "odd echo", true),
            (v6(17, 255, &[135, 0, 0, 0], "datagram"), "datagram", true),
            (v6(58, 255, &[], ""), "", true),
            (tagged, "tagged", false),
        ];
        for (frame, text, detour) in &cases {
            kernel.send(frame);
            let same = |f: &[u8]| {
                f.ends_with(text.as_bytes()) && f.len() >= frame.len() - 4 && f[..12] == frame[..12]
            };
            let patience = |expected: bool| if expected { SOON } else { QUIET };
            assert_eq!(
                pod.receive_where(patience(*detour), same).is_some(),
                *detour,
                "{text:?} to the host port"
            );
            assert_eq!(
                wire.receive_where(patience(!detour), same).is_some(),
                !detour,
                "{text:?} to the wire"
            );
        }
    });
}

#[test]
fn what_the_worker_sends_by_the_uplink_does_not_come_back() {
    in_namespaces("what_the_worker_sends_by_the_uplink_does_not_come_back", |directory| {
        devices();
        // The host port's frames leave by the uplink: were they to pass the egress program, they would go round and round.
        let (dataplane, _) = start(directory, &[(0, 1)]);
        dataplane.govern(UPLINK, ifindex("hx-far"), "governed-nic").unwrap();
        let wire = Far::new("nic-far");
        for number in 0..100 {
            let text = format!("round {number};");
            say(&text, 1400);
            assert!(hears(&wire, &text, SOON).is_some(), "{text}");
        }
        std::thread::sleep(Duration::from_millis(150));
        let ports = dataplane.port_counters().unwrap();
        let (host, uplink) = (&ports[&PortIndex(0)], &ports[&UPLINK]);
        assert_eq!((host.rx_packets, uplink.tx_packets), (100, 100), "each frame went one way, once");
    });
}

#[test]
fn the_program_outlives_the_handle_and_the_next_one_takes_it_over() {
    in_namespaces("the_program_outlives_the_handle_and_the_next_one_takes_it_over", |directory| {
        devices();
        let wire = Far::new("nic-far");
        let (first, _) = start(directory, &[(0, 2)]);
        let mode = first.govern(UPLINK, ifindex("hx-far"), "governed-nic").unwrap();
        let pins = first.bpffs().join(mode.as_str());
        first.shutdown();
        let pinned = || std::fs::read_dir(&pins).unwrap().count();
        assert_eq!(pinned(), 1, "the pin stays");
        std::thread::sleep(Duration::from_millis(1100));
        say("orphaned", 30);
        assert!(hears(&wire, "orphaned", SOON).is_some(), "without a worker the NIC is the kernel's");

        let (second, _) = start(directory, &[(0, 2)]);
        let pod = Far::new("p0-far");
        assert!(second.link_names().contains("governed-nic"));
        second.govern(UPLINK, ifindex("hx-far"), "governed-nic").unwrap();
        // Twice is as once.
        second.govern(UPLINK, ifindex("hx-far"), "governed-nic").unwrap();
        assert_eq!(pinned(), 1);
        say("taken over", 30);
        assert!(hears(&pod, "taken over", SOON).is_some());
        assert!(hears(&wire, "taken over", QUIET).is_none());
        second.remove_port(PortIndex(0)).unwrap();
        say("hostless", 30);
        assert!(hears(&wire, "hostless", SOON).is_some(), "no host port, no detour");

        let keep = ["pin-nic", "pin-hx", "pin-p0"].map(str::to_owned).into();
        assert_eq!(second.retain_links(&keep), ["governed-nic"]);
        assert_eq!(pinned(), 0);
        assert!(matches!(
            second.govern(PortIndex(2), ifindex("hx-far"), "x"),
            Err(DataplaneError::WrongRole(2, "uplink"))
        ));
        assert!(matches!(
            second.govern(UPLINK, ifindex("hx-far"), "x"),
            Err(DataplaneError::WrongRole(0, "host"))
        ));
    });
}

/// What kernels before 6.6 use, on whichever kernel runs here; and tcx where there is one.
#[test]
fn both_ways_of_attaching_govern_and_let_go() {
    in_namespaces("both_ways_of_attaching_govern_and_let_go", |directory| {
        devices();
        margay_io::mount_bpffs(directory).unwrap();
        let (umem, _chunks) = UmemHandle::new(2048, 64).unwrap();
        let socket = umem.bind("hx", 0, Duration::ZERO).unwrap();
        let (nic, kernel_end, our_end) = (ifindex("nic"), ifindex("hx-far"), ifindex("hx"));
        // Nothing stands on `hx` here, so what arrives there can be listened to.
        let (wire, ours) = (Far::new("nic-far"), Far::new("hx"));
        for mode in [EgressMode::Filter, EgressMode::Tcx, EgressMode::Filter] {
            let mut steer = Steer::load(directory).unwrap();
            let mut heartbeat = steer.take_heartbeat(0).unwrap();
            if let Err(why) = steer.govern(nic, kernel_end, our_end, "governed-nic", &[mode]) {
                assert_eq!(mode, EgressMode::Tcx, "{why}");
                println!("SKIPPED tcx: {why}");
                continue;
            }
            let mut goes = |text: &str, detour: bool, stamp: Nanos| {
                heartbeat.stamp(stamp).unwrap();
                say(text, 30);
                assert_eq!(
                    hears(&ours, text, if detour { SOON } else { QUIET }).is_some(),
                    detour,
                    "{text} by {mode:?}"
                );
                assert_eq!(
                    hears(&wire, text, if detour { QUIET } else { SOON }).is_some(),
                    !detour,
                    "{text} by {mode:?}"
                );
            };
            goes("nobody's queue", false, now());
            steer.own(our_end, 0, 0, &socket).unwrap();
            goes("fresh", true, now());
            goes("stale", false, now() - Nanos::from_millis(1001));
            // Another agent, with maps of its own, in the same place.
            let mut next = Steer::load(directory).unwrap();
            let mut second = next.take_heartbeat(0).unwrap();
            next.own(our_end, 0, 0, &socket).unwrap();
            next.govern(nic, kernel_end, our_end, "governed-nic", &[mode]).unwrap();
            drop(steer);
            second.stamp(now()).unwrap();
            say("exchanged", 30);
            assert!(hears(&ours, "exchanged", SOON).is_some(), "{mode:?}");
            // It ends with its agent gone, by name.
            drop(next);
            let mut third = Steer::load(directory).unwrap();
            assert!(third.ungovern(nic, "governed-nic"));
            // A link ends a moment after its pin, and until then the program still has the map of the agent that is gone.
            let freed = (0..50).any(|_| {
                say("let go", 30);
                hears(&wire, "let go", QUIET).is_some()
            });
            assert!(freed, "{mode:?}");
            assert!(third.link_names().is_empty());
            let filters =
                std::process::Command::new("tc").args(["filter", "show", "dev", "nic", "egress"]).output();
            if let Ok(filters) = filters {
                assert_eq!(String::from_utf8_lossy(&filters.stdout), "", "{mode:?}");
            }
        }
    });
}
