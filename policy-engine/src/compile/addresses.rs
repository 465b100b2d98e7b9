//! From an address to its identity: one hash probe for a known host, one binary search for everything else.
//!
//! Nested prefixes are flattened into disjoint intervals when the table is built, so the search has no levels to descend.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::sets::{Identities, Membership};
use crate::packet::IdentityId;

/// Bit pattern of an address of one family.
trait Bits: Copy + Ord + Hash {
    fn successor(self) -> Option<Self>;
}

impl Bits for u32 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Bits for u128 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// One family.
#[derive(Clone, Debug)]
struct Family<A> {
    hosts: HashMap<A, IdentityId, foldhash::fast::FixedState>,
    /// First address of each interval, ascending; before the first: identity zero.
    starts: Vec<A>,
    identities: Vec<IdentityId>,
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Self { hosts: HashMap::default(), starts: Vec::new(), identities: Vec::new() }
    }
}

impl<A: Bits> PartialEq for Family<A> {
    fn eq(&self, other: &Self) -> bool {
        self.starts == other.starts && self.identities == other.identities && self.hosts == other.hosts
    }
}

impl<A: Bits> Family<A> {
    #[inline]
    fn identity(&self, address: A) -> IdentityId {
        self.hosts.get(&address).copied().unwrap_or_else(|| self.around(address))
    }

    /// What the address is by the prefixes around it, host entries aside.
    fn around(&self, address: A) -> IdentityId {
        match self.starts.partition_point(|start| *start <= address) {
            0 => IdentityId(0),
            after => self.identities[after - 1],
        }
    }

    /// From here on (`start`) addresses have `identity`, until said otherwise.
    fn begin(&mut self, start: A, identity: IdentityId) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.identities.pop();
        }
        if self.identities.last().copied().unwrap_or_default() != identity {
            self.starts.push(start);
            self.identities.push(identity);
        }
    }

    /// Leaves every open prefix that ends before `next`.
    fn close(&mut self, open: &mut Vec<Open<A>>, next: Option<A>) {
        while let Some(prefix) = open.last() {
            if next.is_some_and(|next| next <= prefix.last) {
                return;
            }
            let after = prefix.last.successor();
            open.pop();
            let outer = open.last().map_or(IdentityId(0), |outer| outer.identity);
            if let Some(after) = after {
                self.begin(after, outer);
            }
        }
    }

    fn build<'a>(
        prefixes: impl Iterator<Item = (A, A, &'a Membership)>,
        identities: &mut Identities,
        live: &mut BTreeMap<IdentityId, Arc<Membership>>,
    ) -> Self {
        let mut family = Self::default();
        let mut open: Vec<Open<A>> = Vec::new();
        for (first, last, own) in prefixes {
            family.close(&mut open, Some(first));
            let mut membership = own.clone();
            if let Some(outer) = open.last() {
                membership.merge(&outer.membership);
            }
            membership.normalise();
            let (identity, membership) = identities.number(membership);
            live.entry(identity).or_insert_with(|| Arc::clone(&membership));
            if first == last {
                family.hosts.insert(first, identity);
            } else {
                family.begin(first, identity);
                open.push(Open { last, identity, membership });
            }
        }
        family.close(&mut open, None);
        family
    }
}

struct Open<A> {
    last: A,
    identity: IdentityId,
    membership: Arc<Membership>,
}

/// Both families.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Addresses {
    v4: Family<u32>,
    v6: Family<u128>,
}

impl Addresses {
    /// Builds the table from every prefix's own contributions. `IpNet` sorts by address, then by length: outer before inner.
    /// `live` receives each identity in use.
    pub(crate) fn build(
        prefixes: &BTreeMap<IpNet, Membership>,
        identities: &mut Identities,
        live: &mut BTreeMap<IdentityId, Arc<Membership>>,
    ) -> Self {
        let v4 = prefixes.iter().filter_map(|(net, own)| match net {
            IpNet::V4(net) => Some((u32::from(net.network()), u32::from(net.broadcast()), own)),
            IpNet::V6(_) => None,
        });
        let v4 = Family::build(v4, identities, live);
        let v6 = prefixes.iter().filter_map(|(net, own)| match net {
            IpNet::V6(net) => Some((u128::from(net.network()), u128::from(net.broadcast()), own)),
            IpNet::V4(_) => None,
        });
        Self { v4, v6: Family::build(v6, identities, live) }
    }

    /// Returns what the address is by the prefixes around it, host entries aside.
    pub(crate) fn around(&self, address: IpAddr) -> IdentityId {
        match address {
            IpAddr::V4(address) => self.v4.around(u32::from(address)),
            IpAddr::V6(address) => self.v6.around(u128::from(address)),
        }
    }

    /// Replaces the host entry of `address` and returns the former one.
    pub(crate) fn set_host(&mut self, address: IpAddr, identity: Option<IdentityId>) -> Option<IdentityId> {
        fn set<A: Bits>(
            family: &mut Family<A>,
            address: A,
            identity: Option<IdentityId>,
        ) -> Option<IdentityId> {
            match identity {
                Some(identity) => family.hosts.insert(address, identity),
                None => family.hosts.remove(&address),
            }
        }
        match address {
            IpAddr::V4(address) => set(&mut self.v4, u32::from(address), identity),
            IpAddr::V6(address) => set(&mut self.v6, u128::from(address), identity),
        }
    }

    /// Counts the entries of each identity.
    pub(crate) fn uses(&self) -> BTreeMap<IdentityId, usize> {
        let mut uses = BTreeMap::new();
        let hosts = self.v4.hosts.values().chain(self.v6.hosts.values());
        for identity in hosts.chain(&self.v4.identities).chain(&self.v6.identities) {
            *uses.entry(*identity).or_default() += 1;
        }
        uses
    }

    #[inline]
    pub(crate) fn identity(&self, address: IpAddr) -> IdentityId {
        match address {
            IpAddr::V4(address) => self.v4.identity(u32::from(address)),
            IpAddr::V6(address) => self.v6.identity(u128::from(address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Addresses;
    use crate::compile::sets::{Identities, Membership, SetId};

    #[test]
    fn an_address_belongs_to_the_sets_of_every_prefix_around_it() {
        let prefixes = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.0.0.0/16",
            "10.0.0.1/32",
            "10.0.255.255/32",
            "10.255.0.0/16",
            "255.255.255.255/32",
            "::/0",
            "fd00::/8",
            "fd00::1/128",
            "fdff::/16",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
        ];
        let own: BTreeMap<_, _> = prefixes
            .iter()
            .enumerate()
            .map(|(number, net)| {
                (net.parse().unwrap(), Membership { sets: vec![SetId(number as u32)], triples: Vec::new() })
            })
            .collect();
        for without_default in [false, true] {
            let mut own: BTreeMap<ipnet::IpNet, _> = own.clone();
            if without_default {
                own.retain(|net, _| net.prefix_len() != 0);
            }
            let mut live = BTreeMap::new();
            let table = Addresses::build(&own, &mut Identities::default(), &mut live);
            for text in [
                "0.0.0.0",
                "9.255.255.255",
                "10.0.0.0",
                "10.0.0.1",
                "10.0.0.2",
                "10.0.255.255",
                "10.1.0.0",
                "10.254.255.255",
                "10.255.0.0",
                "10.255.255.255",
                "11.0.0.0",
                "255.255.255.254",
                "255.255.255.255",
                "::",
                "fcff::",
                "fd00::",
                "fd00::1",
                "fdff::9",
                "fe00::",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ] {
                let address = text.parse().unwrap();
                let mut expected = Membership::default();
                own.iter()
                    .filter(|(net, _)| net.contains(&address))
                    .for_each(|(_, membership)| expected.merge(membership));
                expected.normalise();
                let identity = table.identity(address);
                let found = live.get(&identity).map(|shared| (**shared).clone()).unwrap_or_default();
                assert_eq!(found, expected, "{text}");
            }
        }
    }
}
