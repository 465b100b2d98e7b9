//! The tables of every pod of this node, by endpoint.

use std::sync::Arc;

use super::numbers::Numbers;
use super::table::Table;
use crate::packet::{Direction, EndpointId};

/// The tables of one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct EndpointTables {
    pub(crate) ingress: Arc<Table>,
    pub(crate) egress: Arc<Table>,
}

impl EndpointTables {
    #[inline(always)]
    pub(crate) fn of(&self, direction: Direction) -> &Table {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// All of them, side by side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// Place in `all`, plus one.
    places: Numbers,
    all: Vec<(EndpointId, EndpointTables)>,
}

impl Endpoints {
    /// Adds an endpoint that is not there yet.
    pub(crate) fn insert(&mut self, endpoint: EndpointId, tables: EndpointTables) {
        self.all.push((endpoint, tables));
        self.places.insert(endpoint.0, self.all.len() as u32);
    }

    /// Returns the tables of an endpoint.
    #[inline(always)]
    pub(crate) fn get(&self, endpoint: &EndpointId) -> Option<&EndpointTables> {
        let place = (self.places.get(endpoint.0) as usize).wrapping_sub(1);
        self.all.get(place).map(|(_, tables)| tables)
    }

    /// Number of endpoints.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Shows every endpoint with its tables.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&EndpointId, &EndpointTables)> {
        self.all.iter().map(|(endpoint, tables)| (endpoint, tables))
    }
}
