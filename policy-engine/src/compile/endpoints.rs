//! The tables of every pod of this node, by endpoint.

use std::sync::Arc;

use super::numbers::Numbers;
use super::shortlist::{End, Lists};
use super::table::Table;
use crate::packet::{Direction, EndpointId, Generation, Verdict};
use crate::snapshot::{Judgement, RuleRef, judgement};

/// What a packet reads first, and mostly all that it reads of its table: a cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Gate {
    pub(crate) table: Arc<Table>,
    /// The table's lists.
    pub(crate) lists: Lists,
    /// The first decision point that decides whatever reaches it: its number, and what it says.
    pub(crate) default: Judgement,
    /// Number of the table's first decision point.
    base: u32,
    /// The end whose address the table asks for; `None` where it does not matter who an address is.
    pub(crate) far: Option<End>,
    /// Whether what belongs to nothing at that end always gets `default`.
    pub(crate) is_closed: bool,
}

const _: () = assert!(size_of::<Gate>() == 64);

impl Gate {
    fn new(table: Arc<Table>) -> Self {
        Self {
            lists: table.lists().clone(),
            default: judgement(&table, table.verdict()),
            base: table.base,
            far: table.far(),
            is_closed: table.is_closed(),
            table,
        }
    }

    /// Returns what it means that a point of the table decides.
    #[inline(always)]
    pub(crate) fn decided(&self, point: u16, allows: bool) -> Judgement {
        let verdict = if allows { Verdict::Allow } else { Verdict::Deny };
        Judgement { verdict, rule: RuleRef(self.base + u32::from(point)) }
    }
}

/// All of them, side by side: there are few, so a worker has them near.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// Place in `gates`, plus one.
    places: Numbers,
    gates: Vec<[Gate; 2]>,
    endpoints: Vec<EndpointId>,
    /// The snapshot with which both tables became what they are.
    since: Vec<Generation>,
}

impl Endpoints {
    /// Adds an endpoint that is not there yet, for the snapshot `now` that follows the one with `previous`.
    pub(crate) fn insert(
        &mut self,
        endpoint: EndpointId,
        ingress: Arc<Table>,
        egress: Arc<Table>,
        previous: &Self,
        now: Generation,
    ) {
        let epochs = [(Direction::Ingress, ingress.epoch), (Direction::Egress, egress.epoch)];
        let is_as_before = epochs.iter().all(|(direction, epoch)| {
            previous.table(endpoint, *direction).is_some_and(|it| it.epoch == *epoch)
        });
        self.since.push(previous.since(endpoint).filter(|_| is_as_before).unwrap_or(now));
        self.gates.push([Gate::new(ingress), Gate::new(egress)]);
        self.endpoints.push(endpoint);
        self.places.insert(endpoint.0, self.gates.len() as u32);
    }

    /// Returns the snapshot with which both tables of an endpoint became what they are, and have been ever since.
    #[inline(always)]
    pub(crate) fn since(&self, endpoint: EndpointId) -> Option<Generation> {
        self.since.get((self.places.get(endpoint.0) as usize).wrapping_sub(1)).copied()
    }

    /// Returns what a packet of the endpoint meets.
    #[inline(always)]
    pub(crate) fn get(&self, endpoint: EndpointId, direction: Direction) -> Option<&Gate> {
        let place = (self.places.get(endpoint.0) as usize).wrapping_sub(1);
        self.gates.get(place).map(|gates| &gates[usize::from(direction == Direction::Egress)])
    }

    /// Returns the table of an endpoint.
    #[inline(always)]
    pub(crate) fn table(&self, endpoint: EndpointId, direction: Direction) -> Option<&Table> {
        self.get(endpoint, direction).map(|gate| &*gate.table)
    }

    /// Number of endpoints.
    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Returns every endpoint.
    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.endpoints.iter().copied()
    }
}
