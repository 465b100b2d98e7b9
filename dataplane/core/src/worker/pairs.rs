//! What two addresses are to each other: whose policy has a say between them, what a judgement rests on, and the way.
//!
//! All that follows from the port, both addresses, and what is in force; so for the flows of one pair it is found out once. A busy pod
//! opens its flows to a few others (the resolver, a database, its clients' proxies), and whoever floods one address finds it here too. A
//! packet that opens a flow then pays for its ports alone.
//!
//! A pair is kept at one place, by its addresses, and the next pair with that place takes it. Nothing here outlives the snapshot or the
//! topology it was found under.

use std::net::IpAddr;

use super::View;
use super::judge::{self, Parties};
use crate::flow::{Id, JudgedBy};
use crate::topology::PortIndex;

/// Places for pairs.
const PLACES: usize = 256;

/// Two addresses, and what is known of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    port: PortIndex,
    source: IpAddr,
    destination: IpAddr,
    under: (u32, u32),
    /// Who has a say in a flow that the source opens.
    pub(super) parties: Parties,
    /// What a judgement by all of them rests on; `None` while the snapshot does not know one of them.
    pub(super) by: Option<JudgedBy>,
    /// The way from the port to the destination, once a flow has found it.
    pub(super) path: Id,
}

/// Pairs that were met lately.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    places: Vec<Option<Pair>>,
}

impl Pairs {
    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.places.clear();
    }

    /// Returns what is known of two addresses under `view`.
    #[inline]
    pub(super) fn meet(
        &mut self,
        view: View<'_>,
        port: PortIndex,
        source: IpAddr,
        destination: IpAddr,
    ) -> &mut Pair {
        if self.places.is_empty() {
            self.places.resize(PLACES, None);
        }
        let place = &mut self.places[place(source, destination)];
        let asked = (port, source, destination, view.under());
        if place.is_some_and(|pair| (pair.port, pair.source, pair.destination, pair.under) != asked) {
            *place = None;
        }
        place.get_or_insert_with(|| Pair::of(view, port, source, destination))
    }
}

impl Pair {
    #[inline(never)]
    fn of(view: View<'_>, port: PortIndex, source: IpAddr, destination: IpAddr) -> Self {
        let parties = Parties::between(view.topology, source, destination);
        Self {
            port,
            source,
            destination,
            under: view.under(),
            parties,
            by: judge::evidence_between(view, source, destination, &parties),
            path: Id::default(),
        }
    }
}

fn place(source: IpAddr, destination: IpAddr) -> usize {
    let folded = |address| match address {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64 ^ u128::from(v6) as u64,
    };
    let mixed = folded(source).rotate_left(32) ^ folded(destination);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::TopologyBuilder;

    #[test]
    fn a_pair_is_kept_under_one_view_and_gives_way_to_another() {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let (old, new) = (TopologyBuilder::default().build(1), TopologyBuilder::default().build(2));
        let [old, new] = [&old, &new].map(|topology| View { snapshot: None, topology });
        let known = crate::flow::Interned::default().id(7u8);
        let mut pairs = Pairs::default();
        pairs.meet(old, PortIndex(1), address(1), address(2)).path = known;
        assert_eq!(pairs.meet(old, PortIndex(1), address(1), address(2)).path, known);
        assert_eq!(pairs.meet(old, PortIndex(1), address(2), address(1)).path, Id::default());
        for last in 3..=255 {
            pairs.meet(old, PortIndex(1), address(last), address(2));
        }
        pairs.meet(old, PortIndex(1), address(1), address(2)).path = known;
        assert_eq!(pairs.meet(old, PortIndex(2), address(1), address(2)).path, Id::default(), "another port");
        pairs.meet(old, PortIndex(1), address(1), address(2)).path = known;
        assert_eq!(pairs.meet(new, PortIndex(1), address(1), address(2)).path, Id::default());
        pairs.clear();
        assert_eq!(pairs.meet(new, PortIndex(1), address(1), address(2)).path, Id::default());
    }
}
