//! WireGuard between two nodes in memory (policy model 25): what passes, and everything that must not.

use std::net::{IpAddr, SocketAddr};

use margay_core::Nanos;
use margay_core::tunnel::{
    MESSAGE, OVERHEAD, Opened, PeerId, PeerSpec, PrivateKey, Sealed, TunnelError, Tunnels,
};
use proptest::prelude::*;

const A: PeerId = PeerId(3);
const B: PeerId = PeerId(700);

fn key(seed: u8) -> PrivateKey {
    PrivateKey::new([seed; 32])
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn spec(id: PeerId, seed: u8, endpoint: &str, allowed: &[&str]) -> PeerSpec {
    PeerSpec {
        id,
        key: key(seed).public(),
        endpoint: address(endpoint),
        allowed: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        keepalive: None,
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
    a: Tunnels,
    b: Tunnels,
    room: Vec<u8>,
}

const AT_A: &str = "192.0.2.1:51820";
const AT_B: &str = "[2001:db8::2]:51820";

impl Pair {
    fn new() -> Self {
        let (mut a, mut b) = (Tunnels::new(key(1)), Tunnels::new(key(2)));
        assert!(a.set_peers(&[spec(B, 2, AT_B, &["10.2.0.0/16", "fd02::/64"])]).is_empty());
        assert!(b.set_peers(&[spec(A, 1, AT_A, &["10.1.0.0/16", "fd01::/64"])]).is_empty());
        Self { a, b, room: vec![0; 2048] }
    }

    /// Sends one packet from A until it has arrived, through the handshake where there is none.
    fn connect(&mut self) {
        let hello = packet("10.1.0.1", "10.2.0.1", 60);
        let Sealed::Initiation(len) = self.a.seal(B, &hello, &mut self.room).unwrap() else {
            panic!("a session before the handshake");
        };
        let initiation = self.room[..len].to_vec();
        assert_eq!(len, MESSAGE);
        let Opened::Answer(Some(A), len) = self.b.open(address(AT_A), &initiation, &mut self.room).unwrap()
        else {
            panic!("no response");
        };
        let response = self.room[..len].to_vec();
        let Opened::Answer(Some(B), len) = self.a.open(address(AT_B), &response, &mut self.room).unwrap()
        else {
            panic!("no keepalive");
        };
        let keepalive = self.room[..len].to_vec();
        assert_eq!(self.b.open(address(AT_A), &keepalive, &mut self.room), Ok(Opened::Nothing(A)));
        let len = self.a.take_waiting(B, &mut self.room).expect("the packet waited");
        let datagram = self.room[..len].to_vec();
        assert_eq!(self.b.open(address(AT_A), &datagram, &mut self.room), Ok(Opened::Packet(A, 60)));
        assert_eq!(self.room[..60], hello);
        assert_eq!(self.a.take_waiting(B, &mut self.room), None);
    }

    fn sealed(&mut self, packet: &[u8]) -> Vec<u8> {
        match self.a.seal(B, packet, &mut self.room).unwrap() {
            Sealed::Datagram(len) => self.room[..len].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, from: &str, datagram: &[u8]) -> Result<Opened, TunnelError> {
        self.b.open(address(from), datagram, &mut self.room)
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
        assert!(!datagram.windows(8).any(|part| inner.windows(8).any(|plain| part == plain)), "in clear");
        assert_eq!(pair.open(AT_A, &datagram), Ok(Opened::Packet(A, len)));
        assert_eq!(pair.room[..len], inner);
    }
    // And back, under the same session.
    let inner = packet("10.2.0.1", "10.1.0.1", 99);
    let Ok(Sealed::Datagram(len)) = pair.b.seal(A, &inner, &mut pair.room) else { panic!("no session back") };
    let datagram = pair.room[..len].to_vec();
    assert_eq!(pair.a.open(address(AT_B), &datagram, &mut pair.room), Ok(Opened::Packet(B, 99)));
    let [report] = &pair.a.report()[..] else { panic!("one peer") };
    assert_eq!((report.id, report.endpoint), (B, address(AT_B)));
    assert!(report.handshake.is_some() && report.sent > 2_000 && report.received == 99);
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
        assert_eq!(pair.open(AT_A, &datagrams[at]), Ok(Opened::Packet(A, 64)));
        assert_eq!(pair.open(AT_A, &datagrams[at]), Err(TunnelError::Replayed));
    }
    assert_eq!(pair.open(AT_A, &datagrams[1_499]), Ok(Opened::Packet(A, 64)));
    assert_eq!(pair.open(AT_A, &datagrams[6]), Err(TunnelError::Replayed), "beyond the window");
    assert_eq!(pair.open(AT_A, &datagrams[700]), Ok(Opened::Packet(A, 64)), "late, and within the window");
}

#[test]
fn roaming_follows_what_the_peer_has_sealed_and_nothing_else() {
    let mut pair = Pair::new();
    pair.connect();
    let inner = packet("10.1.0.1", "10.2.0.1", 64);
    let (first, second) = (pair.sealed(&inner), pair.sealed(&inner));
    assert_eq!(pair.open("198.51.100.7:4444", &first), Ok(Opened::Packet(A, 64)));
    assert_eq!(pair.b.endpoint(A), Some(address("198.51.100.7:4444")));
    // Neither a replay nor a forgery moves it.
    assert!(pair.open("203.0.113.1:1", &first).is_err());
    let mut forged = second.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(pair.open("203.0.113.1:1", &forged), Err(TunnelError::Forged));
    assert_eq!(pair.b.endpoint(A), Some(address("198.51.100.7:4444")));
    // What is written anew about the peer and says the same leaves it there; another written place moves it.
    pair.b.set_peers(&[spec(A, 1, AT_A, &["10.1.0.0/16"])]);
    assert_eq!(pair.b.endpoint(A), Some(address("198.51.100.7:4444")));
    pair.b.set_peers(&[spec(A, 1, "192.0.2.9:51820", &["10.1.0.0/16"])]);
    assert_eq!(pair.b.endpoint(A), Some(address("192.0.2.9:51820")));
    assert_eq!(pair.open(AT_A, &second), Ok(Opened::Packet(A, 64)), "and the session goes on");
}

#[test]
fn pm_25_4_two_nodes_with_one_key_are_no_peers_and_a_changed_key_is_another_peer() {
    let mut pair = Pair::new();
    pair.connect();
    let twins = [spec(PeerId(8), 9, AT_A, &["10.8.0.0/16"]), spec(PeerId(9), 9, AT_B, &["10.9.0.0/16"])];
    let all = [spec(B, 2, AT_B, &["10.2.0.0/16"]), twins[0].clone(), twins[1].clone()];
    assert_eq!(pair.a.set_peers(&all), [PeerId(8), PeerId(9)]);
    assert_eq!(pair.a.peer_for("10.8.0.1".parse().unwrap()), None, "in clear, as if they had no key");
    assert_eq!(pair.a.peer_for("10.2.0.1".parse().unwrap()), Some(B));
    assert_eq!(pair.a.seal(PeerId(8), &[0; 40], &mut pair.room), Err(TunnelError::UnknownPeer));
    assert!(pair.a.is_live(B), "the others are not disturbed");
    pair.a.set_peers(&[spec(B, 5, AT_B, &["10.2.0.0/16"])]);
    assert!(!pair.a.is_live(B), "a new key has no session");
}

#[test]
fn the_longest_prefix_says_whose_an_address_is() {
    let mut tunnels = Tunnels::new(key(1));
    tunnels.set_peers(&[
        spec(A, 2, AT_A, &["10.2.0.0/16", "fd00::/8"]),
        spec(B, 3, AT_B, &["10.2.7.0/24", "fd00:7::/64"]),
    ]);
    let of = |text: &str| tunnels.peer_for(text.parse().unwrap());
    assert_eq!((of("10.2.6.1"), of("10.2.7.1"), of("10.3.0.1")), (Some(A), Some(B), None));
    assert_eq!((of("fd00:7::9"), of("fd00:8::9"), of("fe80::1")), (Some(B), Some(A), None));
}

#[test]
fn strangers_get_no_answer() {
    let mut pair = Pair::new();
    // A node that B does not know.
    let mut stranger = Tunnels::new(key(77));
    stranger.set_peers(&[spec(B, 2, AT_B, &["10.2.0.0/16"])]);
    let Ok(Sealed::Initiation(len)) = stranger.seal(B, &packet("10.1.0.1", "10.2.0.1", 40), &mut pair.room)
    else {
        panic!("no initiation");
    };
    let initiation = pair.room[..len].to_vec();
    assert_eq!(pair.open(AT_A, &initiation), Err(TunnelError::UnknownPeer));
    assert_eq!(pair.b.peer_of(&initiation), Err(TunnelError::UnknownPeer));
    // One that takes B for another: made for another key.
    let mut wrong = Tunnels::new(key(1));
    wrong.set_peers(&[spec(B, 66, AT_B, &["10.2.0.0/16"])]);
    let Ok(Sealed::Initiation(len)) = wrong.seal(B, &packet("10.1.0.1", "10.2.0.1", 40), &mut pair.room)
    else {
        panic!("no initiation");
    };
    let initiation = pair.room[..len].to_vec();
    assert_eq!(pair.open(AT_A, &initiation), Err(TunnelError::Forged));
    // Data of a session that does not exist.
    let mut data = vec![0; 80];
    data[0] = 4;
    data[4..8].copy_from_slice(&(A.0 << 8 | 5).to_le_bytes());
    assert_eq!(pair.open(AT_A, &data), Err(TunnelError::NoSession));
    data[6] = 9;
    assert_eq!(pair.open(AT_A, &data), Err(TunnelError::UnknownPeer));
}

#[test]
fn under_a_flood_of_handshakes_senders_prove_their_address_and_sessions_go_on() {
    let mut pair = Pair::new();
    pair.connect();
    // Knows the public key of B, as everybody may, and is nobody's peer.
    let mut stranger = Tunnels::new(key(77));
    stranger.set_peers(&[spec(B, 2, AT_B, &["10.2.0.0/16"])]);
    let (mut cookies, mut refused) = (0, 0);
    for _ in 0..1_000 {
        let len = stranger.begin(B, &mut pair.room).expect("an initiation");
        let initiation = pair.room[..len].to_vec();
        match pair.open("203.0.113.5:9", &initiation) {
            Ok(Opened::Answer(None, 64)) => cookies += 1,
            Err(TunnelError::UnknownPeer) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    // A cookie costs a hash, a refusal a multiplication on the curve.
    assert!(cookies >= 800 && refused > 100, "{cookies} cookies, {refused} refused");
    let datagram = pair.sealed(&packet("10.1.0.1", "10.2.0.1", 64));
    assert_eq!(pair.open(AT_A, &datagram), Ok(Opened::Packet(A, 64)), "the session does not mind");
    // A peer whose address is its own gets through with the cookie.
    let first = pair.a.begin(B, &mut pair.room).expect("an initiation");
    let first = pair.room[..first].to_vec();
    let Ok(Opened::Answer(None, len)) = pair.open(AT_A, &first) else { panic!("no cookie") };
    let cookie = pair.room[..len].to_vec();
    assert_eq!(pair.a.open(address(AT_B), &cookie, &mut pair.room), Ok(Opened::Nothing(B)));
    // Initiations are told apart by a clock.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let second = pair.a.begin(B, &mut pair.room).expect("an initiation");
    let second = pair.room[..second].to_vec();
    assert!(matches!(pair.open(AT_A, &second), Ok(Opened::Answer(Some(A), 92))));
    // A second later the count begins anew, and no cookie is asked for.
    std::thread::sleep(std::time::Duration::from_millis(1_000));
    assert_eq!(pair.b.tick(Nanos::from_secs(1_000), &mut [0; 200]), None);
    let third = stranger.begin(B, &mut pair.room).expect("an initiation");
    let third = pair.room[..third].to_vec();
    assert_eq!(pair.open("203.0.113.5:9", &third), Err(TunnelError::UnknownPeer));
}

#[test]
fn packets_wait_for_the_handshake_and_it_is_tried_again() {
    let mut pair = Pair::new();
    let hello = packet("10.1.0.1", "10.2.0.1", 60);
    assert!(matches!(pair.a.seal(B, &hello, &mut pair.room), Ok(Sealed::Initiation(_))));
    assert_eq!(pair.a.seal(B, &hello, &mut pair.room), Ok(Sealed::Waits));
    assert_eq!(pair.a.take_waiting(B, &mut pair.room).map(|_| ()), None, "nobody has answered");
    assert!(pair.a.begin(B, &mut pair.room).is_some());
}

#[test]
fn buffers_that_are_too_small_are_refused() {
    let mut pair = Pair::new();
    pair.connect();
    assert_eq!(pair.a.seal(B, &[0; 1000], &mut [0; 1031]), Err(TunnelError::NoRoom));
    assert_eq!(pair.a.seal(B, &[0; 10], &mut [0; 147]), Err(TunnelError::NoRoom));
    let datagram = pair.sealed(&packet("10.1.0.1", "10.2.0.1", 600));
    assert_eq!(pair.b.open(address(AT_A), &datagram, &mut [0; 500]), Err(TunnelError::NoRoom));
}

#[test]
fn nothing_that_is_printed_holds_a_key() {
    let secret = PrivateKey::new(*b"this-must-not-be-printed-anywher");
    let tunnels = Tunnels::new(secret.clone());
    let text = format!("{secret:?} {tunnels:?} {:?}", secret.public());
    assert!(!text.contains("this") && !text.contains("116") && text.len() < 120, "{text}");
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
        prop_assert_eq!(pair.open(AT_A, &good), Ok(Opened::Packet(A, 200)));
    }
}
