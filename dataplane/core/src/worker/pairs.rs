//! What two addresses are to each other: whose policy has a say between them, what a judgement rests on, and the way.
//!
//! All that follows from the port, both addresses, and what is in force; so for the flows of one pair it is found out once. A busy pod
//! opens its flows to a few others (the resolver, a database, its clients' proxies), and whoever floods one address finds it here too. A
//! packet that opens a flow then pays for its ports alone.
//!
//! A pair is kept at one place, by its addresses, and the next pair with that place takes it. Nothing here outlives the snapshot or the
//! topology it was found under.

use std::net::IpAddr;

use margay_policy_engine::snapshot::PortClasses;
use margay_wire::MacAddr;

use super::View;
use super::judge::{self, Parties};
use crate::flow::{Flow, Id, JudgedBy, Path, key};
use crate::topology::PortIndex;

/// Places for pairs.
const PLACES: usize = 256;

/// A port, two addresses as flows' keys have them, and under what: low halves of the generations of snapshot and topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Between {
    pub(super) source: u128,
    pub(super) destination: u128,
    pub(super) under: (u32, u32),
    pub(super) port: PortIndex,
}

/// Two addresses, and what is known of them.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    between: Between,
    /// Who has a say in a flow that the source opens.
    pub(super) parties: Parties,
    /// What a judgement by all of them rests on; `None` while the snapshot does not know one of them.
    pub(super) by: Option<JudgedBy>,
    /// The way from the port to the destination, once a flow has found it.
    pub(super) path: Id,
    /// How plain packets of the source open flows.
    pub(super) start: Start,
}

/// How the flows that plain packets of one pair open begin.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "it lies in its place among the pairs: no packet allocates")]
pub(super) enum Start {
    /// Nobody has asked.
    Unasked,
    /// There is a question that each packet has to answer for itself.
    Long,
    /// All alike.
    Alike(Alike),
}

/// What the flows of a pair have in common.
#[derive(Clone, Debug)]
pub(super) struct Alike {
    /// The Ethernet source whose packets have passed the sanity stage.
    pub(super) mac: MacAddr,
    /// The way out.
    pub(super) path: Path,
    /// What the judgement of all legs rests on.
    pub(super) judged_by: JudgedBy,
    /// What was last approved, of UDP and of TCP: what the tables can tell of the ports.
    pub(super) approved: [Option<[PortClasses; 2]>; 2],
    /// A flow that lacks ports, protocol, state and time.
    pub(super) flow: Flow,
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

    /// Returns what is known of a pair, where it was met lately.
    #[inline(always)]
    pub(super) fn known(&mut self, between: &Between) -> Option<&mut Pair> {
        let place = self.places.get_mut(between.place())?.as_mut();
        place.filter(|pair| pair.between == *between)
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
        let numbers = [source, destination].map(key::number);
        let between = Between { source: numbers[0], destination: numbers[1], under: view.under(), port };
        let place = &mut self.places[between.place()];
        if place.as_ref().is_some_and(|pair| pair.between != between) {
            *place = None;
        }
        place.get_or_insert_with(|| Pair::of(view, between, source, destination))
    }
}

impl Between {
    /// Returns where what is known of it is kept.
    #[inline(always)]
    fn place(&self) -> usize {
        let folded = |number: u128| (number >> 64) as u64 ^ number as u64;
        let mixed = folded(self.source).rotate_left(32) ^ folded(self.destination);
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % PLACES
    }
}

impl Pair {
    #[inline(never)]
    fn of(view: View<'_>, between: Between, source: IpAddr, destination: IpAddr) -> Self {
        let parties = Parties::between(view.topology, source, destination);
        Self {
            between,
            parties,
            by: judge::evidence_between(view, source, destination, &parties),
            path: Id::default(),
            start: Start::Unasked,
        }
    }
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
