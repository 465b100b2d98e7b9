//! What the look-up tables say of an address: not what it means, but who speaks for it.
//!
//! ```text
//!   address ─▶ cell ─▶ identity
//!              │
//!              └ a list of sources: the pods' class, the network sets, the CIDR lists that cover it
//! ```
//!
//! Addresses with the same sources share a cell. When a source comes to belong to other sets, its cells get other identities and the
//! look-up tables stay as they are: the cost follows the number of cells, not the number of addresses behind them.

use std::cmp::Ordering;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet, HashTable};

use super::identities::Identities;
use crate::packet::IdentityId;

type Hasher = foldhash::fast::FixedState;

/// Number of a cell. Zero is "nobody speaks for it". Numbers of cells that no table has are given out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CellId(pub(crate) u32);

/// Which cells gave way to which in a look-up table.
#[derive(Debug, Default)]
pub(crate) struct Replaced {
    pairs: HashSet<(CellId, CellId), Hasher>,
    everywhere: bool,
}

impl Replaced {
    /// More changed than is worth looking at.
    pub(crate) fn everything(&mut self) {
        self.everywhere = true;
    }

    /// Compares intervals before and after: where each begins and its cell, in order. Both begin at the same place.
    pub(crate) fn compare<A: Ord>(
        &mut self,
        before: impl Iterator<Item = (A, CellId)>,
        after: impl Iterator<Item = (A, CellId)>,
    ) {
        let (mut before, mut after) = (before.peekable(), after.peekable());
        let (mut was, mut is) = (CellId(0), CellId(0));
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return,
            };
            if order.is_le() {
                was = before.next().map_or(was, |(_, cell)| cell);
            }
            if order.is_ge() {
                is = after.next().map_or(is, |(_, cell)| cell);
            }
            if was != is {
                self.pairs.insert((was, is));
            }
        }
    }

    /// Whether an address means something else now.
    pub(crate) fn matters(&self, before: &Meanings, after: &Meanings) -> bool {
        self.everywhere || self.pairs.iter().any(|(was, is)| before.get(*was) != after.get(*is))
    }
}

const CHUNK: usize = 1024;

/// The identity of every cell; copies share the parts that did not change.
#[derive(Clone, Debug)]
pub(crate) struct Meanings {
    chunks: Arc<[Arc<[IdentityId; CHUNK]>]>,
}

impl Default for Meanings {
    fn default() -> Self {
        Self { chunks: Arc::from([Arc::new([IdentityId(0); CHUNK])]) }
    }
}

impl Meanings {
    /// Returns what the addresses of `cell` are.
    #[inline]
    pub(crate) fn get(&self, cell: CellId) -> IdentityId {
        self.chunks[cell.0 as usize / CHUNK][cell.0 as usize % CHUNK]
    }

    fn reach(&mut self, cells: usize) {
        if self.chunks.len() * CHUNK < cells {
            let empty = Arc::new([IdentityId(0); CHUNK]);
            let mut chunks = self.chunks.to_vec();
            // Half as many again: the list of chunks is copied seldom.
            chunks.resize((cells.div_ceil(CHUNK) * 3).div_ceil(2), empty);
            self.chunks = chunks.into();
        }
    }

    fn set(&mut self, cell: CellId, identity: IdentityId) {
        let chunk = &mut Arc::make_mut(&mut self.chunks)[cell.0 as usize / CHUNK];
        Arc::make_mut(chunk)[cell.0 as usize % CHUNK] = identity;
    }
}

/// Who speaks for the addresses of a cell, by ascending number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Speakers {
    One(u32),
    Many(Arc<[u32]>),
}

impl Speakers {
    fn all(&self) -> &[u32] {
        match self {
            Self::One(source) => std::slice::from_ref(source),
            Self::Many(sources) => sources,
        }
    }
}

/// All cells.
#[derive(Debug)]
pub(crate) struct Cells {
    /// By number. Those of nobody: zero, and numbers that are free.
    speakers: Vec<Speakers>,
    /// The cell of one source alone, by source; zero where there is none.
    alone: Vec<CellId>,
    /// Cells of several sources, by these.
    together: HashTable<CellId>,
    /// Cells of several sources, by each of them.
    shared_by: HashMap<u32, Vec<CellId>, Hasher>,
    /// Numbers of unions that were asked for before.
    unions: HashMap<(CellId, CellId), CellId, Hasher>,
    free: Vec<CellId>,
    /// Cells that are new, or one of whose sources belongs to something else now.
    stirred: Vec<CellId>,
    /// Made since the last [`Cells::settle`].
    made: HashSet<CellId, Hasher>,
    meanings: Meanings,
    /// How many there were after the last [`Cells::retain`].
    kept: usize,
}

impl Default for Cells {
    fn default() -> Self {
        Self {
            speakers: vec![Speakers::Many(Arc::default())],
            alone: Vec::new(),
            together: HashTable::new(),
            shared_by: HashMap::default(),
            unions: HashMap::default(),
            free: Vec::new(),
            stirred: Vec::new(),
            made: HashSet::default(),
            meanings: Meanings::default(),
            kept: 0,
        }
    }
}

fn hash_of(sources: &[u32]) -> u64 {
    Hasher::default().hash_one(sources)
}

impl Cells {
    fn add(&mut self, speakers: Speakers) -> CellId {
        let cell = match self.free.pop() {
            Some(cell) => {
                self.speakers[cell.0 as usize] = speakers;
                cell
            }
            None => {
                self.speakers.push(speakers);
                CellId(self.speakers.len() as u32 - 1)
            }
        };
        self.stirred.push(cell);
        self.made.insert(cell);
        cell
    }

    /// Returns the cell of what `source` alone speaks for.
    pub(crate) fn of(&mut self, source: u32) -> CellId {
        if self.alone.len() <= source as usize {
            self.alone.resize(source as usize + 1, CellId(0));
        }
        let known = self.alone[source as usize];
        if known.0 != 0 {
            return known;
        }
        let cell = self.add(Speakers::One(source));
        self.alone[source as usize] = cell;
        cell
    }

    /// Returns the cell of what everybody of both speaks for.
    pub(crate) fn union(&mut self, a: CellId, b: CellId) -> CellId {
        if a == b || b.0 == 0 {
            return a;
        }
        if a.0 == 0 {
            return b;
        }
        if let Some(union) = self.unions.get(&(a, b)) {
            return *union;
        }
        let mut sources = self.speakers[a.0 as usize].all().to_vec();
        sources.extend_from_slice(self.speakers[b.0 as usize].all());
        sources.sort_unstable();
        sources.dedup();
        let union = self.of_all(sources);
        self.unions.insert((a, b), union);
        union
    }

    fn of_all(&mut self, sources: Vec<u32>) -> CellId {
        if let [source] = sources[..] {
            return self.of(source);
        }
        let hash = hash_of(&sources);
        let known = self.together.find(hash, |cell| self.speakers[cell.0 as usize].all() == sources);
        if let Some(known) = known {
            return *known;
        }
        let shared: Arc<[u32]> = sources.into();
        let cell = self.add(Speakers::Many(Arc::clone(&shared)));
        for source in &*shared {
            self.shared_by.entry(*source).or_default().push(cell);
        }
        let speakers = &self.speakers;
        self.together.insert_unique(hash, cell, |cell| hash_of(speakers[cell.0 as usize].all()));
        cell
    }

    /// `source` belongs to something else now.
    pub(crate) fn stir(&mut self, source: u32) {
        self.stirred.extend(self.alone.get(source as usize).filter(|cell| cell.0 != 0));
        self.stirred.extend(self.shared_by.get(&source).into_iter().flatten());
    }

    /// Gives every stirred cell its identity. Returns whether one that was there before means something else now.
    pub(crate) fn settle(
        &mut self,
        identity_of: impl Fn(u32) -> IdentityId,
        identities: &mut Identities,
    ) -> bool {
        let made = std::mem::take(&mut self.made);
        let mut stirred = std::mem::take(&mut self.stirred);
        stirred.sort_unstable();
        stirred.dedup();
        self.meanings.reach(self.speakers.len());
        let mut is_other = false;
        for cell in stirred {
            let sources = self.speakers[cell.0 as usize].all().iter();
            let identity =
                sources.fold(IdentityId(0), |sum, source| identities.union(sum, identity_of(*source)));
            if self.meanings.get(cell) != identity {
                is_other |= !made.contains(&cell);
                self.meanings.set(cell, identity);
            }
        }
        is_other
    }

    /// Whether [`Cells::settle`] has something to do.
    pub(crate) fn is_stirred(&self) -> bool {
        !self.stirred.is_empty()
    }

    /// Returns who speaks for the addresses of a cell, by ascending number.
    #[cfg(test)]
    pub(crate) fn speakers(&self, cell: CellId) -> &[u32] {
        self.speakers[cell.0 as usize].all()
    }

    /// Returns what every cell means.
    pub(crate) fn meanings(&self) -> &Meanings {
        &self.meanings
    }

    /// Shows the identity of every cell.
    pub(crate) fn for_each_identity(&self, mut see: impl FnMut(IdentityId)) {
        (0..self.speakers.len() as u32).for_each(|cell| see(self.meanings.get(CellId(cell))));
    }

    /// Whether so many cells were made that it is worth looking for those that no table has any more.
    pub(crate) fn is_crowded(&self) -> bool {
        self.speakers.len() - self.free.len() > 2 * self.kept + 4_096
    }

    /// Lets every cell go that is not in `used`.
    pub(crate) fn retain(&mut self, used: &HashSet<CellId, Hasher>) {
        let unused: Vec<CellId> = (1..self.speakers.len() as u32)
            .map(CellId)
            .filter(|cell| !self.speakers[cell.0 as usize].all().is_empty() && !used.contains(cell))
            .collect();
        unused.into_iter().for_each(|cell| self.let_go(cell));
        self.unions.clear();
        self.kept = self.speakers.len() - self.free.len();
    }

    /// Lets the cells of sources go that are no more; no table has them.
    pub(crate) fn retire(&mut self, sources: &[u32]) {
        let mut any = false;
        for source in sources {
            let alone = self.alone.get(*source as usize).copied().filter(|cell| cell.0 != 0);
            let shared = self.shared_by.get(source).cloned().unwrap_or_default();
            for cell in shared.into_iter().chain(alone) {
                self.let_go(cell);
                any = true;
            }
        }
        if any {
            self.unions.clear();
        }
    }

    fn let_go(&mut self, cell: CellId) {
        let speakers = std::mem::replace(&mut self.speakers[cell.0 as usize], Speakers::Many(Arc::default()));
        match &speakers {
            Speakers::One(source) => self.alone[*source as usize] = CellId(0),
            Speakers::Many(sources) => {
                if let Ok(entry) = self.together.find_entry(hash_of(sources), |other| *other == cell) {
                    entry.remove();
                }
                for source in &**sources {
                    if let Some(cells) = self.shared_by.get_mut(source) {
                        cells.retain(|other| *other != cell);
                        if cells.is_empty() {
                            self.shared_by.remove(source);
                        }
                    }
                }
            }
        }
        self.free.push(cell);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::super::identities::{Identities, Membership, SetId};
    use super::{CellId, Cells, Replaced};
    use crate::packet::IdentityId;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Sources come to belong to other sets, go, and come back as others; every cell in use means what its sources say.
        #[test]
        fn a_cell_means_what_its_sources_say(
            steps in vec((btree_set(0u32..6, 1..4), 0u32..6, 0u32..4, any::<bool>()), 1..40),
        ) {
            let (mut cells, mut identities) = (Cells::default(), Identities::default());
            let mut own: BTreeMap<u32, IdentityId> = BTreeMap::new();
            let mut live: BTreeMap<BTreeSet<u32>, CellId> = BTreeMap::new();
            let (mut known, mut spoken) = (BTreeSet::<CellId>::new(), BTreeSet::<u32>::new());
            for (sources, source, set, goes) in steps {
                let cell = sources.iter().fold(CellId(0), |sum, source| {
                    let one = cells.of(*source);
                    cells.union(sum, one)
                });
                prop_assert_eq!(cells.speakers(cell), sources.iter().copied().collect::<Vec<_>>());
                live.insert(sources, cell);
                let before = cells.meanings().clone();
                let sets = Vec::from_iter((set > 0).then_some(SetId(set)));
                let identity = identities.number(Membership { sets, triples: Vec::new() });
                own.insert(source, identity);
                cells.stir(source);
                let is_other = cells.settle(|source| own.get(&source).copied().unwrap_or(IdentityId(0)), &mut identities);
                for (sources, cell) in &live {
                    let mut sets: Vec<SetId> = sources.iter().filter_map(|source| own.get(source))
                        .flat_map(|identity| identities.value(*identity).sets.clone()).collect();
                    sets.sort_unstable();
                    sets.dedup();
                    let meaning = cells.meanings().get(*cell);
                    prop_assert_eq!(&identities.value(meaning).sets, &sets);
                }
                // A cell that was there before and means something else is told; a new one is not.
                let changed = known.iter().any(|cell| before.get(*cell) != cells.meanings().get(*cell));
                prop_assert!(is_other || !changed);
                prop_assert!(!is_other || spoken.contains(&source));
                known = live.values().copied().collect();
                spoken.extend(live.keys().flatten());
                if goes {
                    live.retain(|sources, _| !sources.contains(&source));
                    known = live.values().copied().collect();
                    spoken.remove(&source);
                    own.remove(&source);
                    cells.retire(&[source]);
                } else if set == 3 {
                    cells.retain(&live.values().copied().collect());
                }
            }
        }

        #[test]
        fn what_gave_way_is_told(
            before in vec((0u8..40, 0u32..4), 0..9), after in vec((0u8..40, 0u32..4), 0..9),
        ) {
            let intervals = |runs: Vec<(u8, u32)>| -> BTreeMap<u8, CellId> {
                [(0, 9)].into_iter().chain(runs).map(|(at, cell)| (at, CellId(cell))).collect()
            };
            let (before, after) = (intervals(before), intervals(after));
            let mut replaced = Replaced::default();
            replaced.compare(before.clone().into_iter(), after.clone().into_iter());
            let at = |runs: &BTreeMap<u8, CellId>, place: u8| *runs.range(..=place).next_back().unwrap().1;
            let expected = (0u8..40).map(|place| (at(&before, place), at(&after, place))).filter(|(a, b)| a != b);
            let expected: BTreeSet<_> = expected.collect();
            prop_assert_eq!(replaced.pairs.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }
}
