//! WireGuard between two nodes in memory (policy model 25): what passes, and everything that must not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use margay_core::tunnel::plan::{FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{
    Family, MESSAGE, OVERHEAD, Opened, PeerId, PrivateKey, Sealed, TunnelError, Tunnels,
};
use margay_core::{Nanos, Spread, WorkerIndex};
use proptest::prelude::*;

const A: PeerId = PeerId(3);
const B: PeerId = PeerId(700);

fn key(seed: u8) -> PrivateKey {
    PrivateKey::new([seed; 32])
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn spec(id: PeerId, seed: u8, endpoint: &str, allowed: &[&str]) -> PeerPlan {
    PeerPlan {
        id,
        node: format!("node-{}", id.0),
        keys: vec![key(seed).public()],
        endpoint: address(endpoint),
        allowed: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        keepalive: None,
    }
}

/// A node's tunnels as its agent would have them: plans follow each other.
struct End {
    tunnels: Tunnels,
    room: Vec<u8>,
}

const NOW: Nanos = Nanos::from_secs(1_000);

fn family(keys: &[u8], peers: &[PeerPlan], before: Option<&Family>) -> Arc<Family> {
    let keys = keys.iter().map(|seed| key(*seed)).collect();
    let own = OwnEnd { keys, port: 51820, address: [192, 0, 2, 1].into(), mtu: 0 };
    Arc::new(Family::new(&FamilyPlan { own, peers: peers.to_vec() }, before))
}

impl End {
    fn new(seed: u8, peers: &[PeerPlan]) -> Self {
        let tunnels = Tunnels::new(&family(&[seed], peers, None), &Spread::default(), WorkerIndex(0));
        Self { tunnels, room: vec![0; 2048] }
    }

    /// Takes another plan over; returns who is no peer in it.
    fn follow(&mut self, keys: &[u8], peers: &[PeerPlan]) -> Vec<PeerId> {
        let family = family(keys, peers, Some(self.tunnels.family()));
        self.tunnels.follow(&family, &Spread::default(), WorkerIndex(0));
        family.excluded().to_vec()
    }

    fn seal(&mut self, to: PeerId, packet: &[u8]) -> Result<Option<Vec<u8>>, TunnelError> {
        Ok(match self.tunnels.seal(to, packet, &mut self.room, NOW)? {
            Sealed::Datagram(len) => Some(self.room[..len].to_vec()),
            Sealed::NoSession => None,
        })
    }

    fn begin(&mut self, to: PeerId) -> Option<Vec<u8>> {
        self.tunnels.begin(to, &mut self.room).map(|len| self.room[..len].to_vec())
    }

    /// Receives a datagram; returns what it was and whose, and leaves what came out of it in the room.
    fn receive(&mut self, from: &str, datagram: &[u8]) -> Result<(Option<PeerId>, Opened), TunnelError> {
        self.tunnels.receive(address(from), datagram, &mut self.room, NOW)
    }

    /// Receives a datagram that must be answered.
    fn answer(&mut self, from: &str, datagram: &[u8]) -> Vec<u8> {
        match self.receive(from, datagram) {
            Ok((_, Opened::Answer(len))) => self.room[..len].to_vec(),
            other => panic!("no answer: {other:?}"),
        }
    }

    fn is_live(&self, id: PeerId) -> bool {
        self.tunnels.is_live(id) && self.tunnels.family().is_live(id)
    }
}

/// An IPv4 or IPv6 packet of `len` bytes.
fn packet(from: &str, to: &str, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes[..4].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
            bytes[12..16].copy_from_slice(&from.octets());
            bytes[16..20].copy_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let payload = len - 40;
            bytes[..6].copy_from_slice(&[0x60, 0, 0, 0, (payload >> 8) as u8, payload as u8]);
            bytes[8..24].copy_from_slice(&from.octets());
            bytes[24..40].copy_from_slice(&to.octets());
        }
        _ => unreachable!(),
    }
    bytes
}

/// Node A and node B, with a peer each.
struct Pair {
    a: End,
    b: End,
}

const AT_A: &str = "192.0.2.1:51820";
const AT_B: &str = "[2001:db8::2]:51820";

impl Pair {
    fn new() -> Self {
        let a = End::new(1, &[spec(B, 2, AT_B, &["10.2.0.0/16", "fd02::/64"])]);
        let b = End::new(2, &[spec(A, 1, AT_A, &["10.1.0.0/16", "fd01::/64"])]);
        Self { a, b }
    }

    /// Makes a session, begun by A.
    fn connect(&mut self) {
        assert_eq!(
            self.a.seal(B, &packet("10.1.0.1", "10.2.0.1", 60)),
            Ok(None),
            "a session before the handshake"
        );
        let initiation = self.a.begin(B).expect("an initiation");
        assert_eq!((initiation.len(), self.a.begin(B)), (MESSAGE, None), "one handshake at a time");
        self.shake(&initiation);
    }

    /// Brings a handshake that A has begun to its end.
    fn shake(&mut self, initiation: &[u8]) {
        let response = self.b.answer(AT_A, initiation);
        let keepalive = self.a.answer(AT_B, &response);
        assert_eq!(self.b.receive(AT_A, &keepalive), Ok((Some(A), Opened::Nothing)));
    }

    fn sealed(&mut self, packet: &[u8]) -> Vec<u8> {
        self.a.seal(B, packet).unwrap().expect("a session")
    }

    /// Lets B open a datagram; returns the length of the packet inside.
    fn open(&mut self, from: &str, datagram: &[u8]) -> Result<usize, TunnelError> {
        match self.b.receive(from, datagram)? {
            (Some(A), Opened::Packet(len)) => Ok(len),
            other => panic!("no packet: {other:?}"),
        }
    }
}

#[test]
fn pm_25_packets_of_both_families_pass_after_a_handshake() {
    let mut pair = Pair::new();
    assert!(!pair.a.is_live(B));
    pair.connect();
    assert!(pair.a.is_live(B) && pair.b.is_live(A));
    for (from, to, len) in
        [("10.1.2.3", "10.2.9.9", 1420), ("fd01::5", "fd02::6", 1280), ("10.1.0.1", "10.2.0.1", 20)]
    {
        let inner = packet(from, to, len);
        let datagram = pair.sealed(&inner);
        assert_eq!(datagram.len(), len + OVERHEAD);
        assert!(
            !datagram[16..].windows(8).any(|part| inner.windows(8).any(|plain| part == plain)),
            "in clear"
        );
        assert_eq!(pair.open(AT_A, &datagram), Ok(len));
        assert_eq!(pair.b.room[..len], inner);
    }
    // And back, under the same session.
    let inner = packet("10.2.0.1", "10.1.0.1", 99);
    let datagram = pair.b.seal(A, &inner).unwrap().expect("a session back");
    assert_eq!(pair.a.receive(AT_B, &datagram), Ok((Some(B), Opened::Packet(99))));
    let [report] = &pair.a.tunnels.report(NOW)[..] else { panic!("one peer") };
    assert_eq!((report.id, report.node.as_str(), report.endpoint), (B, "node-700", address(AT_B)));
    assert!(report.live && report.handshake.is_some());
    assert_eq!((report.sent.packets, report.sent.bytes, report.received.bytes), (3, 2720, 99));
    let [key_in_use] = &report.keys[..] else { panic!("one pair of keys") };
    assert_eq!((key_in_use.own, key_in_use.theirs), (key(1).public(), key(2).public()));
    assert!(key_in_use.live && key_in_use.sends && key_in_use.is_used());
}

#[test]
fn pm_25_4_a_source_that_is_not_the_peers_is_dropped() {
    let mut pair = Pair::new();
    pair.connect();
    for source in ["10.3.0.1", "10.2.0.1", "8.8.8.8"] {
        let datagram = pair.sealed(&packet(source, "10.2.0.1", 40));
        assert_eq!(pair.open(AT_A, &datagram), Err(TunnelError::NotAllowed));
    }
    let datagram = pair.sealed(&packet("fd02::1", "fd02::2", 60));
    assert_eq!(pair.open(AT_A, &datagram), Err(TunnelError::NotAllowed));
    let datagram = pair.sealed(&[0x99; 30]);
    assert_eq!(pair.open(AT_A, &datagram), Err(TunnelError::NotIp));
    let mut long = packet("10.1.0.1", "10.2.0.1", 40);
    long[3] = 41;
    let datagram = pair.sealed(&long);
    assert_eq!(pair.open(AT_A, &datagram), Err(TunnelError::NotIp), "longer than it is");
}

#[test]
fn replays_are_dropped_and_late_packets_are_not() {
    let mut pair = Pair::new();
    pair.connect();
    let inner = packet("10.1.0.1", "10.2.0.1", 64);
    let datagrams: Vec<_> = (0..1_500).map(|_| pair.sealed(&inner)).collect();
    for at in [5, 3, 4, 900] {
        assert_eq!(pair.open(AT_A, &datagrams[at]), Ok(64));
        assert_eq!(pair.open(AT_A, &datagrams[at]), Err(TunnelError::Replayed));
    }
    assert_eq!(pair.open(AT_A, &datagrams[1_499]), Ok(64));
    assert_eq!(pair.open(AT_A, &datagrams[6]), Err(TunnelError::Replayed), "beyond the window");
    assert_eq!(pair.open(AT_A, &datagrams[700]), Ok(64), "late, and within the window");
}

#[test]
fn roaming_follows_what_the_peer_has_sealed_and_nothing_else() {
    let mut pair = Pair::new();
    pair.connect();
    let at = |pair: &Pair| pair.b.tunnels.endpoint(A);
    let inner = packet("10.1.0.1", "10.2.0.1", 64);
    let (first, second) = (pair.sealed(&inner), pair.sealed(&inner));
    assert_eq!(pair.open("198.51.100.7:4444", &first), Ok(64));
    assert_eq!(at(&pair), Some(address("198.51.100.7:4444")));
    // Neither a replay nor a forgery moves it.
    assert!(pair.open("203.0.113.1:1", &first).is_err());
    let mut forged = second.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(pair.open("203.0.113.1:1", &forged), Err(TunnelError::Forged));
    assert_eq!(at(&pair), Some(address("198.51.100.7:4444")));
    // What is written anew about the peer and says the same leaves it there; another written place moves it.
    pair.b.follow(&[2], &[spec(A, 1, AT_A, &["10.1.0.0/16"])]);
    assert_eq!(at(&pair), Some(address("198.51.100.7:4444")));
    pair.b.follow(&[2], &[spec(A, 1, "192.0.2.9:51820", &["10.1.0.0/16"])]);
    assert_eq!(at(&pair), Some(address("192.0.2.9:51820")));
    assert_eq!(pair.open(AT_A, &second), Ok(64), "and the session goes on");
}

#[test]
fn pm_25_4_two_nodes_with_one_key_are_no_peers_and_a_changed_key_is_another_peer() {
    let mut pair = Pair::new();
    pair.connect();
    let twins = [spec(PeerId(8), 9, AT_A, &["10.8.0.0/16"]), spec(PeerId(9), 9, AT_B, &["10.9.0.0/16"])];
    let all = [spec(B, 2, AT_B, &["10.2.0.0/16"]), twins[0].clone(), twins[1].clone()];
    assert_eq!(pair.a.follow(&[1], &all), [PeerId(8), PeerId(9)]);
    let family = Arc::clone(pair.a.tunnels.family());
    assert_eq!(family.peer_for("10.8.0.1".parse().unwrap()), None, "in clear, as if they had no key");
    assert_eq!(family.peer_for("10.2.0.1".parse().unwrap()), Some(B));
    assert_eq!(pair.a.seal(PeerId(8), &[0; 40]), Err(TunnelError::UnknownPeer));
    assert!(pair.a.is_live(B), "the others are not disturbed");
    pair.a.follow(&[1], &[spec(B, 5, AT_B, &["10.2.0.0/16"])]);
    assert!(!pair.a.is_live(B), "a new key has no session");
}

#[test]
fn pm_32_3_a_new_key_of_ours_is_used_when_both_ends_have_a_session_under_it() {
    let mut pair = Pair::new();
    pair.connect();
    let inner = packet("10.1.0.1", "10.2.0.1", 64);
    let under_way = pair.sealed(&inner);
    let users =
        |end: &End| -> Vec<bool> { end.tunnels.report(NOW)[0].keys.iter().map(|key| key.sends).collect() };
    // A has a new key, and B does not know it yet: everything goes on under the old one.
    pair.a.follow(&[7, 1], &[spec(B, 2, AT_B, &["10.2.0.0/16"])]);
    let early = pair.a.begin(B).expect("an initiation under the new key");
    assert_eq!(users(&pair.a), [false, true]);
    assert_eq!(pair.b.receive(AT_A, &early), Err(TunnelError::UnknownPeer));
    let datagram = pair.sealed(&inner);
    assert_eq!(pair.open(AT_A, &datagram), Ok(64));
    // B learns it, and begins.
    let both =
        PeerPlan { keys: vec![key(7).public(), key(1).public()], ..spec(A, 1, AT_A, &["10.1.0.0/16"]) };
    pair.b.follow(&[2], &[both]);
    assert_eq!(pair.open(AT_A, &under_way), Ok(64), "what is on its way arrives");
    let initiation = pair.b.begin(A).expect("an initiation to the new key");
    let response = pair.a.answer(AT_B, &initiation);
    let still_old = pair.sealed(&inner);
    let keepalive = pair.b.answer(AT_A, &response);
    assert_eq!(users(&pair.b), [true, false]);
    assert_eq!(pair.open(AT_A, &still_old), Ok(64));
    assert_eq!(users(&pair.a), [false, true], "not before B has spoken under it");
    assert_eq!(pair.a.receive(AT_B, &keepalive), Ok((Some(B), Opened::Nothing)));
    assert_eq!(users(&pair.a), [true, false]);
    let datagram = pair.sealed(&inner);
    assert_eq!(pair.open(AT_A, &datagram), Ok(64));
    // The old one ends, and the session under the new one does not mind.
    pair.a.follow(&[7], &[spec(B, 2, AT_B, &["10.2.0.0/16"])]);
    pair.b.follow(&[2], &[spec(A, 7, AT_A, &["10.1.0.0/16"])]);
    let datagram = pair.sealed(&inner);
    assert_eq!(pair.open(AT_A, &datagram), Ok(64));
    assert_eq!((users(&pair.a), users(&pair.b)), (vec![true], vec![true]));
}

#[test]
fn the_longest_prefix_says_whose_an_address_is() {
    let end = End::new(
        1,
        &[spec(A, 2, AT_A, &["10.2.0.0/16", "fd00::/8"]), spec(B, 3, AT_B, &["10.2.7.0/24", "fd00:7::/64"])],
    );
    let of = |text: &str| end.tunnels.family().peer_for(text.parse().unwrap());
    assert_eq!((of("10.2.6.1"), of("10.2.7.1"), of("10.3.0.1")), (Some(A), Some(B), None));
    assert_eq!((of("fd00:7::9"), of("fd00:8::9"), of("fe80::1")), (Some(B), Some(A), None));
}

#[test]
fn strangers_get_no_answer() {
    let mut pair = Pair::new();
    // A node that B does not know.
    let mut stranger = End::new(77, &[spec(B, 2, AT_B, &["10.2.0.0/16"])]);
    let initiation = stranger.begin(B).expect("an initiation");
    assert_eq!(pair.open(AT_A, &initiation), Err(TunnelError::UnknownPeer));
    // One that takes B for another: made for another key.
    let mut wrong = End::new(1, &[spec(B, 66, AT_B, &["10.2.0.0/16"])]);
    let initiation = wrong.begin(B).expect("an initiation");
    assert_eq!(pair.open(AT_A, &initiation), Err(TunnelError::NotForUs));
    // Data of a session that does not exist, of a pair of keys that does not, and of no peer.
    let mut data = vec![0; 80];
    data[0] = 4;
    for (receiver, refused) in [
        (A.0 << 12 | 5, TunnelError::NoSession),
        (A.0 << 12 | 0x705, TunnelError::NoSession),
        (A.0 << 13, TunnelError::UnknownPeer),
    ] {
        data[4..8].copy_from_slice(&receiver.to_le_bytes());
        assert_eq!(pair.open(AT_A, &data), Err(refused));
    }
}

#[test]
fn under_a_flood_of_handshakes_senders_prove_their_address_and_sessions_go_on() {
    let mut pair = Pair::new();
    pair.connect();
    // Knows the public key of B, as everybody may, and is nobody's peer.
    let mut stranger = End::new(77, &[spec(B, 2, AT_B, &["10.2.0.0/16"])]);
    let initiation = stranger.begin(B).expect("an initiation");
    let (mut cookies, mut refused) = (0, 0);
    for _ in 0..1_000 {
        match pair.b.receive("203.0.113.5:9", &initiation) {
            Ok((None, Opened::Answer(64))) => cookies += 1,
            Err(TunnelError::UnknownPeer) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    // A cookie costs a hash, a refusal a multiplication on the curve.
    assert!(cookies >= 800 && refused > 100, "{cookies} cookies, {refused} refused");
    let datagram = pair.sealed(&packet("10.1.0.1", "10.2.0.1", 64));
    assert_eq!(pair.open(AT_A, &datagram), Ok(64), "the session does not mind");
    // A peer whose address is its own gets through with the cookie: one that has begun anew, as after its restart.
    let mut a = End::new(1, &[spec(B, 2, AT_B, &["10.2.0.0/16"])]);
    let first = a.begin(B).expect("an initiation");
    let cookie = pair.b.answer(AT_A, &first);
    assert_eq!(a.receive(AT_B, &cookie), Ok((Some(B), Opened::Nothing)));
    // The protocol tries again after five seconds.
    std::thread::sleep(std::time::Duration::from_millis(5_050));
    let (_, len) = a.tunnels.tick(NOW, &mut a.room).expect("it is tried again");
    let second = a.room[..len].to_vec();
    for _ in 0..300 {
        // The flood goes on.
        let _ = pair.b.receive("203.0.113.5:9", &initiation);
    }
    assert_eq!(pair.b.answer(AT_A, &second).len(), 92);
    // A second later the count begins anew, and no cookie is asked for.
    std::thread::sleep(std::time::Duration::from_millis(1_000));
    assert_eq!(pair.b.tunnels.tick(Nanos::from_secs(2_000), &mut [0; 200]), None);
    assert_eq!(pair.open("203.0.113.5:9", &initiation), Err(TunnelError::UnknownPeer));
}

#[test]
fn thousands_of_peers_cost_nothing_before_they_are_talked_to_and_are_never_served_all_at_once() {
    let peer = |number: u32, keepalive| {
        let mut bytes = key(9).public().0;
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PeerPlan {
            id: PeerId(number),
            keys: vec![margay_core::tunnel::PublicKey(bytes)],
            keepalive,
            ..spec(PeerId(number), 9, AT_A, &[])
        }
    };
    let peers: Vec<PeerPlan> = (0..2_000).map(|number| peer(number, None)).collect();
    let mut end = End::new(1, &peers);
    assert!(end.tunnels.report(NOW).iter().all(|peer| peer.keys.is_empty()));
    assert_eq!((end.tunnels.tick(NOW, &mut end.room), end.tunnels.is_done()), (None, true));
    // All of them want a session at once.
    let peers: Vec<PeerPlan> = (0..200).map(|number| peer(number, Some(25))).collect();
    end.follow(&[1], &peers);
    let (mut begun, mut rounds) = (0, 0);
    loop {
        let mut messages = 0;
        while end.tunnels.tick(NOW, &mut end.room).is_some() {
            messages += 1;
        }
        assert!(messages <= 16, "{messages} in one round");
        (begun, rounds) = (begun + messages, rounds + 1);
        if end.tunnels.is_done() {
            break;
        }
    }
    assert!(begun == 200 && rounds > 12, "{begun} in {rounds} rounds");
}

#[test]
fn buffers_that_are_too_small_are_refused() {
    let mut pair = Pair::new();
    pair.connect();
    assert_eq!(pair.a.tunnels.seal(B, &[0; 1000], &mut [0; 1031], NOW), Err(TunnelError::NoRoom));
    assert_eq!(pair.a.tunnels.seal(B, &[0; 10], &mut [0; 147], NOW), Err(TunnelError::NoRoom));
    let datagram = pair.sealed(&packet("10.1.0.1", "10.2.0.1", 600));
    let small = pair.b.tunnels.receive(address(AT_A), &datagram, &mut [0; 500], NOW);
    assert_eq!(small, Err(TunnelError::NoRoom));
}

#[test]
fn nothing_that_is_printed_holds_a_key() {
    let secret = PrivateKey::new(*b"this-must-not-be-printed-anywher");
    let own = OwnEnd { keys: vec![secret.clone()], port: 1, address: [192, 0, 2, 1].into(), mtu: 0 };
    let plan = FamilyPlan { own, peers: Vec::new() };
    let family = Arc::new(Family::new(&plan, None));
    let tunnels = Tunnels::new(&family, &Spread::default(), WorkerIndex(0));
    let text = format!("{secret:?} {plan:?} {family:?} {tunnels:?} {:?}", secret.public());
    assert!(!text.contains("this") && !text.contains("116") && text.len() < 400, "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    /// Whatever is cut, flipped, exchanged or made up: nothing passes, and the session goes on.
    #[test]
    fn damaged_datagrams_are_refused(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
        noise in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut pair = Pair::new();
        pair.connect();
        let good = pair.sealed(&packet("10.1.0.1", "10.2.0.1", 200));
        let mut bad = good.clone();
        for (place, bits) in &flips {
            let place = place.index(bad.len());
            bad[place] ^= bits;
        }
        if is_cut {
            bad.truncate(cut.index(bad.len()));
        }
        if bad != good {
            prop_assert!(pair.open(AT_A, &bad).is_err());
        }
        prop_assert!(pair.open(AT_A, &noise).is_err());
        let mut typed = noise;
        if let Some(first) = typed.first_mut() {
            *first = 4;
            prop_assert!(pair.open(AT_A, &typed).is_err());
        }
        prop_assert_eq!(pair.open(AT_A, &good), Ok(200));
    }
}
