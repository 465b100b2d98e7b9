//! The tables of every pod of this node, by endpoint.

use std::sync::Arc;

use super::numbers::Numbers;
use super::shortlist::End;
use super::table::Table;
use crate::packet::{Direction, EndpointId};
use crate::snapshot::{Judgement, judgement};

/// What a packet reads of its table first.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) table: Arc<Table>,
    /// The first decision point that decides whatever reaches it: its number, and what it says.
    pub(crate) default: Judgement,
    /// The end whose address the table asks for; `None` where it does not matter who an address is.
    pub(crate) far: Option<End>,
    /// Whether what belongs to nothing at that end always gets `default`.
    pub(crate) is_closed: bool,
}

impl Gate {
    fn new(table: Arc<Table>) -> Self {
        Self {
            default: judgement(&table, table.verdict()),
            far: table.far(),
            is_closed: table.is_closed(),
            table,
        }
    }
}

/// One endpoint: a cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Entry {
    gates: [Gate; 2],
    endpoint: EndpointId,
}

/// All of them, side by side: there are few, so a worker has them near.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// Place in `entries`, plus one.
    places: Numbers,
    entries: Vec<Entry>,
}

impl Endpoints {
    /// Adds an endpoint that is not there yet.
    pub(crate) fn insert(&mut self, endpoint: EndpointId, ingress: Arc<Table>, egress: Arc<Table>) {
        let gates = [Gate::new(ingress), Gate::new(egress)];
        self.entries.push(Entry { gates, endpoint });
        self.places.insert(endpoint.0, self.entries.len() as u32);
    }

    /// Returns what a packet of the endpoint meets.
    #[inline(always)]
    pub(crate) fn get(&self, endpoint: EndpointId, direction: Direction) -> Option<&Gate> {
        let place = (self.places.get(endpoint.0) as usize).wrapping_sub(1);
        self.entries.get(place).map(|entry| &entry.gates[usize::from(direction == Direction::Egress)])
    }

    /// Returns the table of an endpoint.
    #[inline(always)]
    pub(crate) fn table(&self, endpoint: EndpointId, direction: Direction) -> Option<&Table> {
        self.get(endpoint, direction).map(|gate| &*gate.table)
    }

    /// Number of endpoints.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns every endpoint.
    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.entries.iter().map(|entry| entry.endpoint)
    }
}
