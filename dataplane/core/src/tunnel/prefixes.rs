//! What holds for addresses, by longest prefix.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Values of prefixes of both families.
#[derive(Clone, Debug)]
pub(super) struct Prefixes<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T: Copy> Prefixes<T> {
    pub(super) fn new(entries: impl Iterator<Item = (IpNet, T)>) -> Self {
        let mut prefixes = Self { v4: PrefixMap::new(), v6: PrefixMap::new() };
        for (net, value) in entries {
            match net.trunc() {
                IpNet::V4(net) => drop(prefixes.v4.insert(net, value)),
                IpNet::V6(net) => drop(prefixes.v6.insert(net, value)),
            }
        }
        prefixes
    }

    /// Returns what the longest prefix says.
    #[inline]
    pub(super) fn find(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, value)| *value),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, value)| *value),
        }
    }
}
