//! Which identity has an address: the look-up that replaces one probe per address set.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use benches::Result;
use benches::numbers::median;
use margay_policy_engine::packet::IdentityId;
use margay_policy_engine::snapshot::Snapshot;

use super::peers;
use super::report::{Want, line, skipped};
use super::shapes::{Random, members4, members6, scaled, with_set};

const ADDRESSES: usize = 1 << 20;

/// Random addresses against sets of `count` CIDRs, beside the kernel's trie with the key of Calico's address sets.
pub fn bench(count: usize) -> Result<()> {
    let count = scaled(count);
    println!(
        "   {count} CIDRs in one set (IPv4: half /24, 5 % /16 to /23, the rest longer), {ADDRESSES} random addresses"
    );
    let members = members4(count);
    let mut random = Random::new(17);
    let addresses: Vec<Ipv4Addr> = (0..ADDRESSES).map(|_| Ipv4Addr::from(random.next() as u32)).collect();
    let mut engine = with_set(members.iter().map(|net| (*net).into()).collect());
    let start = Instant::now();
    let snapshot = engine.publish();
    line("IPv4: compiled from nothing", start.elapsed().as_secs_f64() * 1e3, "ms", Want::Nothing);
    drop(engine);
    let all: Vec<IpAddr> = addresses.iter().map(|address| IpAddr::V4(*address)).collect();
    line(
        "IPv4: identity of a random address, one by one",
        time(&snapshot, &all, one_by_one),
        "ns",
        Want::Nothing,
    );
    let ours = time(&snapshot, &all, in_batches);
    line("IPv4: identity of a random address, batches of 64", ours, "ns", Want::AtMost(20.0, 15.0));
    drop(snapshot);
    match peers::lpm(&members, &addresses) {
        Err(why) => skipped("peer: BPF LPM trie", why),
        Ok(peer) => {
            line("peer: BPF LPM trie, key of Calico's address sets", peer, "ns", Want::Nothing);
            let goal = if count <= 100_000 { 40.0 } else { 80.0 };
            line("BPF LPM trie over ours", peer / ours, "x", Want::AtLeast(20.0, goal));
        }
    }

    let members = members6(count);
    let all: Vec<IpAddr> = (0..ADDRESSES)
        .map(|n| {
            // A random address of the documentation prefix would never hit: half are made from members.
            let net = members[random.below(members.len())];
            let host = u128::from(random.next()) & u128::from(net.hostmask());
            let address = u128::from(net.network()) | host;
            IpAddr::V6(Ipv6Addr::from(if n % 2 == 0 { address } else { address ^ 1 << 70 }))
        })
        .collect();
    let mut engine = with_set(members.into_iter().map(Into::into).collect());
    let start = Instant::now();
    let snapshot = engine.publish();
    line("IPv6: compiled from nothing", start.elapsed().as_secs_f64() * 1e3, "ms", Want::Nothing);
    drop(engine);
    line("IPv6: identity of a random address", time(&snapshot, &all, one_by_one), "ns", Want::Nothing);
    Ok(())
}

const CHUNK: usize = 1024;

/// Median nanoseconds of independent look-ups.
fn time(snapshot: &Snapshot, addresses: &[IpAddr], look_up: fn(&Snapshot, &[IpAddr])) -> f64 {
    let mut samples = Vec::new();
    for _ in 0..3 {
        for chunk in addresses.chunks_exact(CHUNK) {
            let start = Instant::now();
            look_up(snapshot, chunk);
            samples.push(start.elapsed().as_nanos() as f64 / CHUNK as f64);
        }
    }
    median(&samples)
}

fn one_by_one(snapshot: &Snapshot, addresses: &[IpAddr]) {
    for address in addresses {
        black_box(snapshot.identity(*address));
    }
}

fn in_batches(snapshot: &Snapshot, addresses: &[IpAddr]) {
    let mut found = [IdentityId(0); 64];
    for batch in addresses.chunks_exact(64) {
        snapshot.identities(batch, &mut found);
        black_box(&found);
    }
}
