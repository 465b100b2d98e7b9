//! What the programs look up, as they write it: an IPv4 address is ::ffff:a.b.c.d, so one map holds both families.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};
use ipnet::IpNet;

use super::SteerError;

/// Key of the `doors` map: address as in prefixes, port as on the wire, and two bytes of nothing.
pub(super) type DoorKey = [u8; 20];

/// A map of prefixes.
pub(super) struct Prefixes {
    name: &'static str,
    trie: LpmTrie<MapData, [u8; 16], u8>,
    present: BTreeSet<IpNet>,
}

impl Prefixes {
    pub(super) fn new(trie: LpmTrie<MapData, [u8; 16], u8>, name: &'static str) -> Self {
        Self { name, trie, present: BTreeSet::new() }
    }

    /// Makes the trie hold `wanted`: what is new comes first, what is old goes last, what stays is not touched.
    pub(super) fn set(&mut self, wanted: &[IpNet]) -> Result<(), SteerError> {
        let wanted: BTreeSet<IpNet> = wanted.iter().map(IpNet::trunc).collect();
        let failed = |name, e: MapError| SteerError::Map { map: name, source: Box::new(e) };
        for prefix in wanted.difference(&self.present.clone()) {
            self.trie.insert(&key_of(prefix), 1, 0).map_err(|e| failed(self.name, e))?;
            self.present.insert(*prefix);
        }
        for prefix in self.present.clone().difference(&wanted) {
            self.trie.remove(&key_of(prefix)).map_err(|e| failed(self.name, e))?;
            self.present.remove(prefix);
        }
        Ok(())
    }
}

/// A map of single addresses.
pub(super) struct Addresses {
    name: &'static str,
    map: HashMap<MapData, [u8; 16], u8>,
    present: BTreeSet<IpAddr>,
}

impl Addresses {
    pub(super) fn new(map: HashMap<MapData, [u8; 16], u8>, name: &'static str) -> Self {
        Self { name, map, present: BTreeSet::new() }
    }

    pub(super) fn set(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), SteerError> {
        let failed = |name, source| SteerError::Map { map: name, source: Box::new(source) };
        for address in wanted.difference(&self.present.clone()) {
            self.map.insert(octets(*address), 1, 0).map_err(|e| failed(self.name, e))?;
            self.present.insert(*address);
        }
        for address in self.present.clone().difference(wanted) {
            self.map.remove(&octets(*address)).map_err(|e| failed(self.name, e))?;
            self.present.remove(address);
        }
        Ok(())
    }
}

/// Writes an address of either family as the programs do.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Writes a prefix of either family as the programs do: IPv4 as ::ffff:a.b.c.d.
fn key_of(prefix: &IpNet) -> Key<[u8; 16]> {
    let (length, address) = match prefix.network() {
        IpAddr::V4(v4) => (96 + u32::from(prefix.prefix_len()), v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => (u32::from(prefix.prefix_len()), v6),
    };
    Key::new(length, address.octets())
}

/// Writes a UDP address as the programs do.
pub(super) fn door_key(door: SocketAddr) -> DoorKey {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&octets(door.ip()));
    key[16..18].copy_from_slice(&door.port().to_be_bytes());
    key
}
