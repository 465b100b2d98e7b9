//! Devices that are made of others: what a program and its sockets see on them and below them (decision 0021).
//!
//! Each test shows the upper device carry frames as they should be, and what is lost one device below. Kernels without the module say
//! SKIPPED.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use margay_core::PortIndex;
use margay_io::{AttachChoice, AttachMode, Dataplane, PortSpec, Role};
use support::{Far, Patch, config, in_namespaces, ip, spec, veth};

const SOON: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(200);
const UPLINK: PortIndex = PortIndex(1);
const POD: [u8; 4] = [10, 0, 0, 7];
const AFAR: [u8; 4] = [192, 0, 2, 9];
const TAG: [u8; 4] = [0x81, 0, 0, 100];

/// Runs `ip`; `false` where this kernel has no such device.
fn makes(arguments: &str) -> bool {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || text.contains("Unknown device type"), "ip {arguments}: {text}");
    output.status.success()
}

fn wait_until_up(device: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let output = Command::new("ip").args(["-o", "link", "show", device]).output().unwrap();
        if String::from_utf8_lossy(&output.stdout).contains("state UP") {
            return;
        }
        assert!(Instant::now() < deadline, "{device} does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What arrives on ports 1 and 3 goes to the pod's port 2, and what comes from there to port 1.
fn start(directory: &Path) -> (Dataplane, Far) {
    for name in ["hx", "p0"] {
        veth(name);
    }
    let hang = Arc::new(AtomicBool::new(false));
    let dataplane = Dataplane::start_with(config(directory), move |_, _| {
        let mut patch = Patch::new(&[(1, 2)], Arc::clone(&hang));
        patch.pairs.insert(PortIndex(3), PortIndex(2));
        patch
    });
    let dataplane = dataplane.unwrap();
    dataplane.add_port(spec(0, "hx", Role::Host)).unwrap();
    dataplane.add_port(spec(2, "p0", Role::Pod)).unwrap();
    dataplane.set_uplink_prefixes(&["10.0.0.0/24".parse().unwrap()], &[]).unwrap();
    (dataplane, Far::new("p0-far"))
}

/// A frame with the header checksum that it should have: a bridge may have the kernel's firewall look at it.
fn frame(source: [u8; 4], destination: [u8; 4], number: u32) -> Vec<u8> {
    let mut frame = support::frame(source, destination, number);
    let words = frame[14..34].chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame
}

fn number(heard: &[u8]) -> u32 {
    u32::from_be_bytes(heard[heard.len() - 4..].try_into().unwrap())
}

/// How often the pod hears the frame of that number.
fn times(pod: &Far, wanted: u32) -> usize {
    let of_it = |f: &[u8]| f.len() > 4 && f.windows(11).any(|w| w == b"margay-io t") && number(f) == wanted;
    let first = pod.receive_where(SOON, of_it).is_some();
    usize::from(first) + if first { usize::from(pod.receive_where(QUIET, of_it).is_some()) } else { 0 }
}

#[test]
fn a_bond_is_taken_itself_for_below_it_nobody_knows_which_port_counts() {
    in_namespaces("a_bond_is_taken_itself_for_below_it_nobody_knows_which_port_counts", |directory| {
        if !makes("link add bond0 type bond mode active-backup miimon 50") {
            println!("SKIPPED bond: this kernel has none");
            return;
        }
        for nic in ["nic", "spare"] {
            veth(nic);
            ip(&format!("link set {nic} down"));
            ip(&format!("link set {nic} master bond0"));
        }
        ip("link set bond0 up");
        wait_until_up("bond0");
        let (dataplane, pod) = start(directory);
        let wires = [Far::new("nic-far"), Far::new("spare-far")];

        // The bond's driver takes the program, its ports run it, and the socket on the bond hears nothing.
        let native = dataplane.add_port_as(spec(1, "bond0", Role::Uplink), AttachChoice::Native).unwrap();
        assert_eq!(native.mode, AttachMode::Native, "the kernel takes it");
        wires[0].send(&frame(AFAR, POD, 1));
        assert_eq!(times(&pod, 1), 0, "and no frame comes of it");
        dataplane.remove_port(UPLINK).unwrap();
        dataplane.detach("pin-bond0");

        // On the bond, above its driver: each frame once, although the switch floods both ports.
        let report = dataplane.add_port_as(spec(1, "bond0", Role::Uplink), AttachChoice::Generic).unwrap();
        assert_eq!(report.mode, AttachMode::Generic);
        wires.iter().for_each(|wire| wire.send(&frame(AFAR, POD, 2)));
        assert_eq!(times(&pod, 2), 1, "the port that waits is not listened to");
        // What leaves, leaves by the port that is used; when that is gone by the other.
        pod.send(&frame(POD, AFAR, 3));
        assert!(wires[0].receive(SOON).is_some() && wires[1].receive(QUIET).is_none());
        ip("link set nic-far down");
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut tries = 0u32;
        loop {
            pod.send(&frame(POD, AFAR, 4));
            tries += 1;
            if wires[1].receive(QUIET).is_some() {
                break;
            }
            assert!(Instant::now() < deadline, "nothing leaves by the other port");
        }
        println!("MEASURED after {tries} frames 200 ms apart the other port of the bond sends");
        wires[1].send(&frame(AFAR, POD, 5));
        assert_eq!(times(&pod, 5), 1, "and is listened to");
        ip("link set nic-far up");
        dataplane.remove_port(UPLINK).unwrap();
        dataplane.detach("pin-bond0");

        // One below: a program on each port hears both copies of a flooded frame.
        std::thread::sleep(Duration::from_millis(300));
        dataplane.add_port_as(spec(1, "nic", Role::Uplink), AttachChoice::Auto).unwrap();
        dataplane.add_port_as(spec(3, "spare", Role::Uplink), AttachChoice::Auto).unwrap();
        wires.iter().for_each(|wire| wire.send(&frame(AFAR, POD, 6)));
        assert_eq!(times(&pod, 6), 2, "twice");
    });
}

#[test]
fn a_vlan_device_is_taken_itself_for_below_it_frames_carry_tags() {
    in_namespaces("a_vlan_device_is_taken_itself_for_below_it_frames_carry_tags", |directory| {
        veth("nic");
        if !makes("link add link nic name nic.100 type vlan id 100") {
            println!("SKIPPED vlan: this kernel has none");
            return;
        }
        ip("link set nic.100 arp off up");
        let (dataplane, pod) = start(directory);
        let wire = Far::new("nic-far");
        let mut tagged = frame(AFAR, POD, 1);
        tagged.splice(12..12, TAG);

        // The bpf file system takes no name with a dot.
        let pin = "pin-nic:100".to_owned();
        let upper = PortSpec { pin: pin.clone(), ..spec(1, "nic.100", Role::Uplink) };
        let refused = dataplane.add_port_as(upper.clone(), AttachChoice::Native);
        assert!(refused.is_err(), "the kernel has no XDP in a VLAN device: {refused:?}");
        let report = dataplane.add_port_as(upper, AttachChoice::Generic).unwrap();
        assert_eq!(report.mode, AttachMode::Generic);
        wire.send(&tagged);
        assert_eq!(times(&pod, 1), 1, "the tag is off");
        wire.send(&frame(AFAR, POD, 2));
        assert_eq!(times(&pod, 2), 0, "a frame without the tag is not of this VLAN");
        // A packet socket is told the tag beside the frame: the wire is seen to carry it by who hears it.
        assert!(makes("link add link nic-far name far.100 type vlan id 100"));
        ip("link set far.100 arp off up");
        let inside = Far::new("far.100");
        pod.send(&frame(POD, AFAR, 3));
        assert!(inside.receive(SOON).is_some(), "the tag is on");
        dataplane.remove_port(UPLINK).unwrap();
        dataplane.detach(&pin);

        // One below: what has the tag passes by, what has none is taken, and what leaves has none.
        dataplane.add_port_as(spec(1, "nic", Role::Uplink), AttachChoice::Auto).unwrap();
        let mut tagged = frame(AFAR, POD, 4);
        tagged.splice(12..12, TAG);
        wire.send(&tagged);
        assert_eq!(times(&pod, 4), 0);
        wire.send(&frame(AFAR, POD, 5));
        assert_eq!(times(&pod, 5), 1);
        pod.send(&frame(POD, AFAR, 6));
        assert!(inside.receive(QUIET).is_none());
    });
}

#[test]
fn a_bridge_is_taken_itself_for_below_it_nobody_knows_the_way_out() {
    in_namespaces("a_bridge_is_taken_itself_for_below_it_nobody_knows_the_way_out", |directory| {
        if !makes("link add br0 type bridge") {
            println!("SKIPPED bridge: this kernel has none");
            return;
        }
        for nic in ["nic", "other"] {
            veth(nic);
            if nic == "nic" {
                // As a bridge has the address of one of its ports by itself.
                ip("link set nic address 02:00:00:00:00:02");
                ip("link set br0 address 02:00:00:00:00:02");
            }
            ip(&format!("link set {nic} master br0"));
        }
        ip("link set br0 arp off up");
        wait_until_up("br0");
        let (dataplane, pod) = start(directory);
        let wires = [Far::new("nic-far"), Far::new("other-far")];

        let refused = dataplane.add_port_as(spec(1, "br0", Role::Uplink), AttachChoice::Native);
        assert!(refused.is_err(), "the kernel has no XDP in a bridge: {refused:?}");
        dataplane.add_port_as(spec(1, "br0", Role::Uplink), AttachChoice::Generic).unwrap();
        // The sender's address is behind `other` from now on.
        wires[1].send(&frame(AFAR, POD, 1));
        assert_eq!(times(&pod, 1), 1);
        let answer = |number: u32| {
            let mut answer = frame(POD, AFAR, number);
            let (to, from) = answer.split_at_mut(6);
            to.swap_with_slice(&mut from[..6]);
            answer
        };
        pod.send(&answer(2));
        assert!(
            wires[1].receive(SOON).is_some() && wires[0].receive(QUIET).is_none(),
            "the bridge knows where"
        );
        dataplane.remove_port(UPLINK).unwrap();
        dataplane.detach("pin-br0");

        // One below: it leaves where nobody has that address.
        dataplane.add_port_as(spec(1, "nic", Role::Uplink), AttachChoice::Auto).unwrap();
        pod.send(&answer(3));
        assert!(wires[0].receive(SOON).is_some() && wires[1].receive(QUIET).is_none());
    });
}
