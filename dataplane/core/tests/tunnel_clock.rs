//! The tunnel's timers, by a clock that the test sets: `cargo test -p margay-core --features mock-clock --test tunnel_clock`.
//!
//! The engine reads a clock of its own beside ours, so both are set; with both, a run repeats in everything but the bytes of datagrams.

#![cfg(feature = "mock-clock")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use margay_core::tunnel::plan::{FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{Family, Opened, PeerId, PrivateKey, Sealed, Tunnels};
use margay_core::{Nanos, Spread, WorkerIndex};
use mock_instant::MockClock;

const PEER: PeerId = PeerId(1);
const INITIATION: usize = 148;

/// Two nodes, a wire, and a clock.
struct World {
    ends: [Tunnels; 2],
    now: Nanos,
    /// Lengths of what was sent by either, since it was last asked.
    sent: [Vec<usize>; 2],
    /// The wire is cut.
    cut: bool,
}

fn place(end: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, end as u8 + 1], 51820))
}

impl World {
    fn new(keepalive: Option<u16>) -> Self {
        let end = |end: usize| {
            let (own, peer) = (PrivateKey::new([end as u8 + 1; 32]), PrivateKey::new([2 - end as u8; 32]));
            let allowed = format!("10.{}.0.0/16", 2 - end).parse().expect("written right here");
            let peer = PeerPlan {
                id: PEER,
                node: "peer".to_owned(),
                keys: vec![peer.public()],
                endpoint: place(1 - end),
                allowed: vec![allowed],
                keepalive,
            };
            let own = OwnEnd { keys: vec![own], port: 51820, address: place(end).ip(), mtu: 0 };
            let family = Arc::new(Family::new(&FamilyPlan { own, peers: vec![peer] }, None));
            Tunnels::new(&family, &Spread::default(), WorkerIndex(0))
        };
        Self { ends: [end(0), end(1)], now: Nanos::from_secs(1_000), sent: Default::default(), cut: false }
    }

    /// Brings datagrams to their ends, and the answers to theirs; returns the packets that came out.
    fn carry(&mut self, from: usize, datagram: Vec<u8>) -> usize {
        let (mut wire, mut packets) = (VecDeque::from([(from, datagram)]), 0);
        while let Some((from, datagram)) = wire.pop_front() {
            self.sent[from].push(datagram.len());
            if self.cut {
                continue;
            }
            let mut room = vec![0; 2048];
            match self.ends[1 - from].receive(place(from), &datagram, &mut room, self.now) {
                Ok((_, Opened::Packet(_))) => packets += 1,
                Ok((_, Opened::Answer(len))) => wire.push_back((1 - from, room[..len].to_vec())),
                Ok((_, Opened::Nothing)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        packets
    }

    /// Lets time pass in steps of a tenth of a second.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            MockClock::advance(Duration::from_millis(100));
            self.now = self.now + Nanos::from_millis(100);
            for end in 0..2 {
                let mut room = vec![0; 2048];
                while let Some((_, len)) = self.ends[end].tick(self.now, &mut room) {
                    self.carry(end, room[..len].to_vec());
                }
            }
        }
    }

    /// Sends a packet from one end; returns whether it came out at the other, after a handshake where there has to be one.
    fn say(&mut self, from: usize) -> bool {
        let mut packet = vec![0; 60];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 60]);
        packet[12..14].copy_from_slice(&[10, from as u8 + 1]);
        for _ in 0..2 {
            let mut room = vec![0; 2048];
            match self.ends[from].seal(PEER, &packet, &mut room, self.now).expect("a peer") {
                Sealed::Datagram(len) => return self.carry(from, room[..len].to_vec()) == 1,
                Sealed::NoSession => {
                    let Some(len) = self.ends[from].begin(PEER, &mut room) else { return false };
                    self.carry(from, room[..len].to_vec());
                }
            }
        }
        false
    }

    fn handshakes(&mut self) -> [usize; 2] {
        std::mem::take(&mut self.sent).map(|sent| sent.iter().filter(|len| **len == INITIATION).count())
    }
}

#[test]
fn sessions_are_renewed_every_two_minutes_without_a_packet_lost() {
    let mut world = World::new(None);
    for second in 0..600 {
        for from in 0..2 {
            assert!(world.say(from), "at {second} s");
        }
        world.pass(1);
    }
    let [one, other] = world.handshakes();
    assert!((5..=7).contains(&(one + other)), "{one} and {other} handshakes in ten minutes");
}

#[test]
fn a_lost_handshake_is_tried_again_after_five_seconds_and_given_up_after_ninety() {
    let mut world = World::new(None);
    world.cut = true;
    assert!(!world.say(0));
    assert_eq!(world.handshakes(), [1, 0]);
    world.pass(4);
    assert_eq!(world.handshakes(), [0, 0]);
    world.pass(2);
    assert_eq!(world.handshakes(), [1, 0]);
    world.cut = false;
    world.pass(5);
    assert!(world.say(0) && world.say(1));
    // Nobody is there any more, and nothing is wanted of it: it ends.
    let mut world = World::new(None);
    world.cut = true;
    assert!(!world.say(0));
    world.pass(400);
    let [tried, _] = world.handshakes();
    assert!((20..=60).contains(&tried), "{tried}");
    world.pass(100);
    assert_eq!(world.handshakes(), [0, 0], "nothing was to be said for three minutes");
    world.cut = false;
    assert!(world.say(0), "and it begins anew");
}

#[test]
fn a_session_without_traffic_ends_and_what_is_said_then_begins_another() {
    let mut world = World::new(None);
    assert!(world.say(0));
    assert!(world.ends[0].is_live(PEER) && world.ends[0].family().is_live(PEER));
    world.pass(300);
    assert!(!world.ends[0].is_live(PEER) && !world.ends[0].family().is_live(PEER), "others are told");
    world.handshakes();
    assert!(world.say(1));
    assert_eq!(world.handshakes(), [0, 1]);
}

#[test]
fn keepalive_makes_a_session_and_keeps_it() {
    let mut world = World::new(Some(25));
    world.pass(1);
    assert!(world.ends[0].is_live(PEER) && world.ends[1].is_live(PEER), "nobody has said anything");
    world.sent = Default::default();
    world.pass(100);
    let count = |sent: &[usize]| sent.iter().filter(|len| **len == 32).count();
    assert!(world.sent.iter().all(|sent| (3..=5).contains(&count(sent))), "{:?}", world.sent);
    world.pass(900);
    assert!(world.ends.iter().all(|end| end.is_live(PEER)));
}

#[test]
fn a_run_repeats() {
    let run = || {
        let mut world = World::new(Some(10));
        let said: Vec<bool> = (0..300)
            .map(|step| {
                world.cut = step % 40 > 30;
                world.pass(1);
                world.say(step % 2)
            })
            .collect();
        (said, world.sent)
    };
    assert_eq!(run(), run());
}
