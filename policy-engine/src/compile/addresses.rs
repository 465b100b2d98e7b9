//! From an address to its identity, both families: a look-up table gives the cell, an array what the cell means. Copies share what did
//! not change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::cells::{CellId, Cells, Meanings, Replaced};
use super::heads::Head;
use super::identities::Identities;
use super::prefixes::{Bits, Prefix, Prefixes};
use super::v4::V4;
use super::v6::V6;
use crate::packet::IdentityId;

/// A prefix of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AnyPrefix {
    V4(Prefix<u32>),
    V6(Prefix<u128>),
}

impl From<IpNet> for AnyPrefix {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self::V4((u32::from(net.network()), net.prefix_len())),
            IpNet::V6(net) => Self::V6((u128::from(net.network()), net.prefix_len())),
        }
    }
}

impl From<IpAddr> for AnyPrefix {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4((u32::from(address), u32::LENGTH)),
            IpAddr::V6(address) => Self::V6((u128::from(address), u128::LENGTH)),
        }
    }
}

/// What every prefix means, the source of [`Addresses`].
#[derive(Debug, Default)]
pub(crate) struct Store {
    v4: Prefixes<u32>,
    v6: Prefixes<u128>,
}

impl Store {
    /// `source` speaks for `prefix` from now on.
    pub(crate) fn add(&mut self, prefix: AnyPrefix, source: u32) {
        match prefix {
            AnyPrefix::V4(prefix) => self.v4.add(prefix, source),
            AnyPrefix::V6(prefix) => self.v6.add(prefix, source),
        }
    }

    /// And no longer.
    pub(crate) fn remove(&mut self, prefix: AnyPrefix, source: u32) {
        match prefix {
            AnyPrefix::V4(prefix) => self.v4.remove(prefix, source),
            AnyPrefix::V6(prefix) => self.v6.remove(prefix, source),
        }
    }
}

/// So many changes at once are one walk over everything.
const MANY: usize = 65_536;

/// Prefixes whose meaning may have changed.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    v4: Changes<u32>,
    v6: Changes<u128>,
}

#[derive(Debug)]
struct Changes<A> {
    prefixes: Vec<Prefix<A>>,
    everywhere: bool,
}

impl<A> Default for Changes<A> {
    fn default() -> Self {
        Self { prefixes: Vec::new(), everywhere: false }
    }
}

impl<A: Bits + Default> Changes<A> {
    fn push(&mut self, prefix: Prefix<A>) {
        if self.everywhere {
            return;
        }
        if self.prefixes.len() == MANY {
            self.everywhere = true;
            self.prefixes = Vec::new();
            return;
        }
        self.prefixes.push(prefix);
    }

    /// Returns prefixes that cover all changes and do not overlap.
    fn cover(mut self, store: usize) -> Vec<Prefix<A>> {
        if self.everywhere || self.prefixes.len() > 4_096 && self.prefixes.len() * 8 > store {
            return vec![(A::default(), 0)];
        }
        self.prefixes.sort_unstable();
        let mut last: Option<A> = None;
        self.prefixes.retain(|(first, length)| {
            let is_outside = last.is_none_or(|last| *first > last);
            if is_outside {
                last = Some(first.broadcast(*length));
            }
            is_outside
        });
        self.prefixes
    }
}

impl Changed {
    /// Something about `prefix` may be different.
    pub(crate) fn push(&mut self, prefix: AnyPrefix) {
        match prefix {
            // A /24 is refreshed as a whole, so it needs to be named once.
            AnyPrefix::V4((first, length)) => self.v4.push((first.network(length.min(24)), length.min(24))),
            AnyPrefix::V6(prefix) => self.v6.push(prefix),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.prefixes.is_empty()
            && self.v6.prefixes.is_empty()
            && !self.v4.everywhere
            && !self.v6.everywhere
    }
}

/// Both look-up tables, and what their cells mean.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    v4: V4,
    v6: V6,
    meanings: Meanings,
}

impl Addresses {
    /// Brings the tables up to date with the store, within `changed`, and the meanings with the sources. Returns whether any address
    /// means something else now.
    pub(crate) fn refresh(
        &mut self,
        changed: Changed,
        store: &Store,
        cells: &mut Cells,
        identity_of: impl Fn(u32) -> IdentityId,
        identities: &mut Identities,
    ) -> bool {
        let mut replaced = Replaced::default();
        let v4 = changed.v4.cover(store.v4.len());
        self.v4.refresh(&v4, &store.v4, cells, &mut replaced);
        for prefix in changed.v6.cover(store.v6.len()) {
            self.v6.refresh(prefix, &store.v6, cells, &mut replaced);
        }
        let is_other = cells.settle(identity_of, identities);
        let before = std::mem::replace(&mut self.meanings, cells.meanings().clone());
        is_other || replaced.matters(&before, &self.meanings)
    }

    /// Returns the cell of the address.
    #[inline]
    pub(crate) fn cell(&self, address: IpAddr) -> CellId {
        match address {
            IpAddr::V4(address) => self.v4.cell(u32::from(address)),
            IpAddr::V6(address) => self.v6.cell(u128::from(address)),
        }
    }

    /// Returns what the address is.
    #[inline]
    pub(crate) fn identity(&self, address: IpAddr) -> IdentityId {
        self.meanings.get(self.cell(address))
    }

    /// Returns what a cell is, by its number.
    #[inline(always)]
    pub(crate) fn meaning(&self, cell: u32) -> IdentityId {
        self.meanings.get(CellId(cell))
    }

    /// Asks for what [`Addresses::head`] is about.
    #[inline(always)]
    pub(crate) fn prefetch_head(&self, address: IpAddr) {
        if let IpAddr::V4(address) = address {
            self.v4.prefetch_head(u32::from(address));
        }
    }

    /// Returns the head of the page of an IPv4 address, for [`super::lookup`].
    #[inline(always)]
    pub(crate) fn head(&self, address: u32) -> &Head {
        self.v4.head(address)
    }

    /// Asks for what [`Addresses::words`] reads.
    #[inline(always)]
    pub(crate) fn prefetch_words(&self, address: u32) {
        self.v4.prefetch_words(address);
    }

    /// Returns the words of that page.
    #[inline(always)]
    pub(crate) fn words(&self, address: u32) -> &[u32] {
        self.v4.words(address)
    }

    /// Shows every cell that some address has to `see`, some of them often.
    pub(crate) fn for_each_cell(&self, mut see: impl FnMut(CellId)) {
        self.v4.for_each_cell(&mut see);
        self.v6.for_each_interval(|_, cell| see(cell));
    }

    /// Shows the first address and the identity of every interval, family by family in order; neighbours may be equal.
    pub(crate) fn for_each_interval(&self, mut see: impl FnMut(IpAddr, IdentityId)) {
        let means = |cell| self.meanings.get(cell);
        self.v4.for_each_interval(|start, cell| see(Ipv4Addr::from(start).into(), means(cell)));
        self.v6.for_each_interval(|start, cell| see(Ipv6Addr::from(start).into(), means(cell)));
    }
}
