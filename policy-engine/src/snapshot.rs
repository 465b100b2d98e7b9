//! The published value: immutable, numbered, shared with its predecessor where nothing changed.
//!
//! A verdict costs two address look-ups ([`Snapshot::identity`]), one look-up of the endpoint's table, and the AND of at most six rows
//! of bits, two of them chosen by identity, the others by protocol, ports and ICMP type. Nothing allocates, nothing locks.
//!
//! What a flow may remember: the [`Epoch`] of the endpoint and direction and the [`IdentityId`] of both addresses. As long as those are
//! equal under a newer snapshot, so is the verdict, and so is the [`RuleRef`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::Serialize;

use crate::compile::addresses::Addresses;
use crate::compile::paged::Paged;
use crate::compile::sets::Membership;
use crate::compile::table::Table;
use crate::packet::{Direction, EndpointId, Epoch, Generation, IdentityId, PacketTuple, Verdict};

/// Names a decision point. Resolve it with [`Snapshot::attribution`] of the snapshot that gave it, or of a later one in which the epoch
/// of the endpoint and direction is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef(pub u32);

/// What decided a verdict, spelled out for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Attribution {
    /// Tier name, or `__PROFILE__`.
    pub tier: String,
    /// Policy kind text (`Profile` for a profile), or empty at an end of tier without a policy to name.
    pub kind: String,
    /// Namespace, empty for global.
    pub namespace: String,
    /// Policy or profile name.
    pub name: String,
    /// Index of the rule in its list; -1 for an end-of-tier or end-of-profiles decision.
    pub rule: i32,
}

/// The decision for one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Who decided.
    pub rule: RuleRef,
}

/// The tables of one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct EndpointTables {
    pub(crate) ingress: Arc<Table>,
    pub(crate) egress: Arc<Table>,
}

impl EndpointTables {
    fn of(&self, direction: Direction) -> &Table {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// An immutable, numbered compilation of the Model for the endpoints of this node.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub(crate) generation: Generation,
    pub(crate) endpoints: HashMap<EndpointId, EndpointTables, foldhash::fast::FixedState>,
    /// Every table once, by ascending base.
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) memberships: Paged<Arc<Membership>>,
    pub(crate) has_logs: bool,
}

impl Snapshot {
    /// Returns the number of the snapshot.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns what the address is, for policy. Cost: one hash probe, and for an address that is no known host one binary search.
    #[inline]
    pub fn identity(&self, address: IpAddr) -> IdentityId {
        self.addresses.identity(address)
    }

    /// Returns the epoch of the endpoint's table in `direction`, or `None` when the endpoint is unknown (treat as closed).
    #[inline]
    pub fn epoch(&self, endpoint: EndpointId, direction: Direction) -> Option<Epoch> {
        self.endpoints.get(&endpoint).map(|tables| tables.of(direction).epoch)
    }

    /// Judges one leg. An endpoint that the snapshot does not know gets `None`; the caller drops under a name of its own.
    pub fn judge(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<Judgement> {
        let (source, destination) = (self.identity(packet.source), self.identity(packet.destination));
        self.judge_with_identity(endpoint, direction, packet, source, destination)
    }

    /// Judges one leg for a caller that already knows both identities of this snapshot. An identity that this snapshot does not have
    /// (kept from an older one) is looked up again from the packet.
    #[inline]
    pub fn judge_with_identity(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        packet: &PacketTuple,
        source: IdentityId,
        destination: IdentityId,
    ) -> Option<Judgement> {
        self.decide(endpoint, direction, packet, [source, destination], |_| ())
    }

    /// Returns the Log rules that the packet passes on its way to the verdict, in order (policy model 14.4).
    pub fn logs(&self, endpoint: EndpointId, direction: Direction, packet: &PacketTuple) -> Vec<RuleRef> {
        let mut logs = Vec::new();
        let identities = [self.identity(packet.source), self.identity(packet.destination)];
        self.decide(endpoint, direction, packet, identities, |rule| logs.push(rule));
        logs
    }

    /// Returns whether any table of this node has a Log rule; without one [`Snapshot::logs`] is always empty.
    #[inline]
    pub fn has_log_rules(&self) -> bool {
        self.has_logs
    }

    /// Names the decision point. Panics never: an index of another snapshot gives `None`, or another point's name.
    pub fn attribution(&self, rule: RuleRef) -> Option<&Attribution> {
        let table = self.tables.partition_point(|table| table.base <= rule.0).checked_sub(1)?;
        let table = &self.tables[table];
        let point = table.program.points.get((rule.0 - table.base) as usize)?;
        Some(&point.attribution)
    }

    /// Returns the local endpoints that policy knows, in order.
    pub fn endpoints(&self) -> Vec<EndpointId> {
        let mut endpoints: Vec<_> = self.endpoints.keys().copied().collect();
        endpoints.sort_unstable();
        endpoints
    }

    #[inline]
    fn decide(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        packet: &PacketTuple,
        identities: [IdentityId; 2],
        mut log: impl FnMut(RuleRef),
    ) -> Option<Judgement> {
        let table = self.endpoints.get(&endpoint)?.of(direction);
        let mut decide = |[source, destination]: [IdentityId; 2]| {
            let memberships =
                |identity: IdentityId| self.memberships.get(identity.0).map(|membership| &**membership);
            table
                .decide(packet, source, destination, memberships, |bit| log(RuleRef(table.base + bit as u32)))
        };
        let (verdict, bit) = decide(identities)
            .or_else(|| decide([self.identity(packet.source), self.identity(packet.destination)]))
            .unwrap_or((Verdict::Deny, table.len() as usize - 1));
        Some(Judgement { verdict, rule: RuleRef(table.base + bit as u32) })
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("endpoints", &self.endpoints.len())
            .field("tables", &self.tables.len())
            .finish_non_exhaustive()
    }
}
