//! The kernel programs against a second statement of what they do, frame by frame (`BPF_PROG_TEST_RUN`).

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use margay_core::Nanos;
use margay_io::steer::{Role, Steer};
use margay_io::thread::now;
use margay_io::xsk::UmemHandle;
use support::{in_namespaces, veth};

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// A small generator with a fixed seed, so runs repeat.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.below(256) as u8)
    }

    /// An address near the prefixes, or anywhere.
    fn v4(&mut self) -> [u8; 4] {
        match self.below(4) {
            0 => [10, 244, 3, self.below(256) as u8],
            1 => [10, 244, self.below(8) as u8, self.below(256) as u8],
            2 => [10, 243 + self.below(3) as u8, 0, 255],
            _ => self.bytes(),
        }
    }

    fn v6(&mut self) -> [u8; 16] {
        let mut address: [u8; 16] = match self.below(4) {
            0 => "fd00:10:244:3::".parse::<Ipv6Addr>().unwrap().octets(),
            1 => "fd00:10:244::".parse::<Ipv6Addr>().unwrap().octets(),
            2 => Ipv4Addr::from(self.v4()).to_ipv6_mapped().octets(),
            _ => self.bytes(),
        };
        if self.below(2) == 0 {
            address[7] = self.below(8) as u8;
            address[15] = self.below(256) as u8;
        }
        address
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut frame = vec![0u8; 12];
        match self.below(8) {
            0..=2 => {
                frame.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
                frame.extend(self.v4());
                frame.extend(self.v4());
            }
            3..=5 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 64]);
                frame.extend(self.v6());
                frame.extend(self.v6());
            }
            6 => {
                // A tag before IPv4: not ours to look behind.
                frame.extend([0x81, 0, 0, 5, 8, 0, 0x45]);
                frame.extend(self.bytes::<40>());
            }
            _ => frame.extend(self.bytes::<64>()),
        }
        frame.resize(frame.len() + self.below(30) as usize, 7);
        if self.below(4) == 0 {
            frame.truncate(14 + self.below(50) as usize);
        }
        frame
    }
}

/// What the uplink's program is to do while its worker lives. An IPv4-mapped address counts as the one it holds; the core drops such
/// packets by name.
fn uplink(frame: &[u8], local: &[IpNet], cluster: &[IpNet]) -> u32 {
    let address = |at: usize, length: usize| -> Option<IpAddr> {
        let bytes = frame.get(at..at + length)?;
        Some(match length {
            4 => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()).to_canonical(),
        })
    };
    let pair = match frame[12..14] {
        [8, 0] => (address(26, 4), address(30, 4)),
        [0x86, 0xdd] => (address(22, 16), address(38, 16)),
        _ => (None, None),
    };
    let (Some(source), Some(destination)) = pair else { return PASS };
    let within = |prefixes: &[IpNet], address| prefixes.iter().any(|prefix| prefix.contains(&address));
    if within(local, destination) || within(cluster, source) { REDIRECT } else { PASS }
}

#[test]
fn the_uplink_program_agrees_with_its_restatement() {
    in_namespaces("the_uplink_program_agrees_with_its_restatement", |directory| {
        support::ip("link set lo up");
        veth("host0");
        margay_io::mount_bpffs(directory).unwrap();
        let mut steer = Steer::load(directory).unwrap();
        let mut heartbeat = steer.take_heartbeat(0).unwrap();
        let (umem, _chunks) = UmemHandle::new(2048, 64).unwrap();
        let socket = umem.bind("host0", 0, Duration::ZERO).unwrap();
        steer.own(support::ifindex("lo"), 0, 0, &socket).unwrap();
        let parse = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let sets = [
            (parse(&["10.244.3.0/24", "fd00:10:244:3::/64"]), parse(&["10.244.0.0/16", "fd00:10:244::/48"])),
            (parse(&["10.244.3.7/32", "fd00:10:244:3::7/128"]), parse(&["10.244.4.0/22"])),
            (parse(&[]), parse(&["0.0.0.0/0"])),
            (parse(&["::/0"]), parse(&[])),
            (parse(&[]), parse(&[])),
        ];
        let mut dice = Dice(7);
        let mut answers = [0u32; 5];
        for (local, cluster) in &sets {
            steer.set_uplink_prefixes(local, cluster).unwrap();
            heartbeat.stamp(now()).unwrap();
            // The trie knows one family, so ::/0 covers the mapped IPv4 addresses as well.
            let everything = local.iter().any(|p| p.prefix_len() == 0 && p.addr().is_ipv6());
            for _ in 0..2000 {
                let frame = dice.frame();
                let mut expected = uplink(&frame, local, cluster);
                if everything && frame.len() >= 34 && frame[12..14] == [8, 0] {
                    expected = REDIRECT;
                }
                if everything && frame.len() >= 54 && frame[12..14] == [0x86, 0xdd] {
                    expected = REDIRECT;
                }
                let [got, plain] = steer.dry_run(Role::Uplink, &frame).unwrap().unwrap();
                assert_eq!(got, plain);
                assert_eq!(got, expected, "{frame:02x?} with {local:?} and {cluster:?}");
                answers[got as usize] += 1;
            }
        }
        assert!(answers[PASS as usize] > 1000 && answers[REDIRECT as usize] > 1000, "{answers:?}");
    });
}

#[test]
fn silence_and_absence_close_pods_and_pass_uplinks() {
    in_namespaces("silence_and_absence_close_pods_and_pass_uplinks", |directory| {
        support::ip("link set lo up");
        veth("host0");
        margay_io::mount_bpffs(directory).unwrap();
        let mut steer = Steer::load(directory).unwrap();
        let mut heartbeat = steer.take_heartbeat(0).unwrap();
        steer.set_uplink_prefixes(&["10.0.0.0/8".parse().unwrap()], &[]).unwrap();
        let frame = support::frame([192, 168, 0, 1], [10, 0, 0, 1], 1);
        let answers = move |steer: &mut Steer| {
            [Role::Pod, Role::Host, Role::Uplink, Role::Closed]
                .map(|role| steer.dry_run(role, &frame).unwrap().unwrap()[1])
        };
        let quiet = [DROP, DROP, PASS, DROP];
        assert_eq!(answers(&mut steer), quiet, "nobody owns the queue");
        let (umem, _chunks) = UmemHandle::new(2048, 64).unwrap();
        let socket = umem.bind("host0", 0, Duration::ZERO).unwrap();
        steer.own(support::ifindex("lo"), 0, 0, &socket).unwrap();
        assert_eq!(answers(&mut steer), quiet, "the owner never gave a sign");
        heartbeat.stamp(now()).unwrap();
        assert_eq!(answers(&mut steer), [REDIRECT, REDIRECT, REDIRECT, DROP]);
        heartbeat.stamp(now() + Nanos::from_millis(50)).unwrap();
        assert_eq!(
            answers(&mut steer),
            [REDIRECT, REDIRECT, REDIRECT, DROP],
            "a stamp newer than the program's clock"
        );
        heartbeat.stamp(now() - Nanos::from_millis(1001)).unwrap();
        assert_eq!(answers(&mut steer), quiet, "silence");
        heartbeat.stamp(now()).unwrap();
        steer.disown(support::ifindex("lo"));
        assert_eq!(answers(&mut steer), quiet, "given up");
    });
}

#[test]
fn datagrams_to_a_door_are_ours_and_no_others() {
    in_namespaces("datagrams_to_a_door_are_ours_and_no_others", |directory| {
        support::ip("link set lo up");
        veth("host0");
        margay_io::mount_bpffs(directory).unwrap();
        let mut steer = Steer::load(directory).unwrap();
        let mut heartbeat = steer.take_heartbeat(0).unwrap();
        let (umem, _chunks) = UmemHandle::new(2048, 64).unwrap();
        let socket = umem.bind("host0", 0, Duration::ZERO).unwrap();
        steer.own(support::ifindex("lo"), 0, 0, &socket).unwrap();
        let macs = (Default::default(), Default::default());
        let udp = |to: &str, port: u16| {
            let to: IpAddr = to.parse().unwrap();
            let from: IpAddr =
                if to.is_ipv4() { [192, 0, 2, 9].into() } else { "2001:db8::9".parse().unwrap() };
            margay_wire::build::udp(macs, (from, 4000), (to, port), b"sealed")
        };
        let mut ask = |steer: &mut Steer, frame: &[u8]| {
            heartbeat.stamp(now()).unwrap();
            let [got, plain] = steer.dry_run(Role::Uplink, frame).unwrap().unwrap();
            assert_eq!(got, plain);
            got
        };
        let ours = [udp("192.0.2.1", 51820), udp("2001:db8::1", 51821)];
        for frame in &ours {
            assert_eq!(ask(&mut steer, frame), PASS, "no door yet");
        }
        let doors = ["192.0.2.1:51820", "[2001:db8::1]:51821"].map(|door| door.parse().unwrap());
        steer.set_doors(&doors.into()).unwrap();
        for frame in &ours {
            assert_eq!(ask(&mut steer, frame), REDIRECT);
        }
        for other in [
            udp("192.0.2.2", 51820),
            udp("192.0.2.1", 51821),
            udp("2001:db8::1", 51820),
            udp("2001:db8::2", 51821),
        ] {
            assert_eq!(ask(&mut steer, &other), PASS, "another's WireGuard");
        }
        // The first fragment shows the port; later ones, options and other protocols do not count.
        let mut odd = ours[0].clone();
        odd[20] = 0x20;
        assert_eq!(ask(&mut steer, &odd), REDIRECT);
        (odd[20], odd[21]) = (0, 5);
        assert_eq!(ask(&mut steer, &odd), PASS);
        let mut odd = ours[0].clone();
        odd[14] = 0x46;
        assert_eq!(ask(&mut steer, &odd), PASS);
        let mut odd = ours[1].clone();
        odd[20] = 6;
        assert_eq!(ask(&mut steer, &odd), PASS);
        assert_eq!(ask(&mut steer, &ours[0][..41]), PASS, "cut");
        steer.set_doors(&doors[1..].iter().copied().collect()).unwrap();
        assert_eq!(ask(&mut steer, &ours[0]), PASS);
        assert_eq!(ask(&mut steer, &ours[1]), REDIRECT);
    });
}

#[test]
fn packets_between_nodes_that_seal_are_ours_but_for_those_of_the_link() {
    in_namespaces("packets_between_nodes_that_seal_are_ours_but_for_those_of_the_link", |directory| {
        support::ip("link set lo up");
        veth("host0");
        margay_io::mount_bpffs(directory).unwrap();
        let mut steer = Steer::load(directory).unwrap();
        let mut heartbeat = steer.take_heartbeat(0).unwrap();
        let (umem, _chunks) = UmemHandle::new(2048, 64).unwrap();
        let socket = umem.bind("host0", 0, Duration::ZERO).unwrap();
        steer.own(support::ifindex("lo"), 0, 0, &socket).unwrap();
        let macs = (Default::default(), Default::default());
        let udp = |from: &str, to: &str| {
            margay_wire::build::udp(macs, (from.parse().unwrap(), 4000), (to.parse().unwrap(), 53), b"clear")
        };
        let mut ask = |steer: &mut Steer, frame: &[u8]| {
            heartbeat.stamp(now()).unwrap();
            let [got, plain] = steer.dry_run(Role::Uplink, frame).unwrap().unwrap();
            assert_eq!(got, plain);
            got
        };
        let between = [udp("192.0.2.2", "192.0.2.1"), udp("2001:db8::2", "2001:db8::1")];
        for frame in &between {
            assert_eq!(ask(&mut steer, frame), PASS, "no node seals");
        }
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let own = set(&["192.0.2.1", "2001:db8::1"]);
        steer.set_nodes(&set(&["192.0.2.2", "2001:db8::2"]), &own).unwrap();
        for frame in &between {
            assert_eq!(ask(&mut steer, frame), REDIRECT);
        }
        for other in [
            udp("192.0.2.3", "192.0.2.1"),
            udp("192.0.2.2", "192.0.2.4"),
            udp("192.0.2.1", "192.0.2.2"),
            udp("2001:db8::3", "2001:db8::1"),
            udp("2001:db8::2", "ff02::1"),
        ] {
            assert_eq!(ask(&mut steer, &other), PASS, "somebody else");
        }
        // Router and neighbour discovery and redirects stay with the kernel; an echo request does not.
        let mut icmp = between[1].clone();
        icmp[20] = 58;
        for (kind, verdict) in
            [(132, REDIRECT), (133, PASS), (135, PASS), (136, PASS), (137, PASS), (138, REDIRECT)]
        {
            icmp[54] = kind;
            assert_eq!(ask(&mut steer, &icmp), verdict, "type {kind}");
        }
        icmp[54] = 128;
        assert_eq!(ask(&mut steer, &icmp), REDIRECT);
        assert_eq!(ask(&mut steer, &icmp[..54]), REDIRECT, "cut: the worker drops it by name");
        steer.set_nodes(&set(&["2001:db8::2"]), &own).unwrap();
        assert_eq!(ask(&mut steer, &between[0]), PASS);
        assert_eq!(ask(&mut steer, &between[1]), REDIRECT);
    });
}
