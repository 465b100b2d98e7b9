//! A program with the rows of every identity that exists: all that a verdict needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use super::numbers::RowNumbers;
use super::paged::Paged;
use super::program::{Outcome, Program};
use super::rows::{Line, RowIndex, Rows};
use super::rules::{CompiledRule, Side, icmp_view, ports};
use super::sets::{Membership, SetId};
use crate::packet::{Epoch, HostVerdict, IdentityId, PacketTuple};

/// The rows of one side: what the identity of an address leaves standing.
///
/// Identities that differ only in sets that the program never mentions share a row; those that have none of them have row zero.
#[derive(Clone, Debug)]
struct Identified {
    rows: Rows,
    /// Row number, by identity; absent is row zero.
    by_identity: RowNumbers,
    /// Sets that the side mentions, each with the bits that mention it.
    relevant: Arc<BTreeMap<SetId, Vec<u32>>>,
}

/// What is needed to add rows to one side, and not to read them.
#[derive(Debug, Default)]
pub(crate) struct SideIndex {
    rows: RowIndex,
    /// By relevant sets.
    known: HashMap<Box<[SetId]>, u32, foldhash::fast::FixedState>,
}

impl Identified {
    fn new(program: &Program, side: impl Fn(&CompiledRule) -> &Side, index: &mut SideIndex) -> Self {
        let mut relevant: BTreeMap<SetId, Vec<u32>> = BTreeMap::new();
        for (bit, point) in (0..).zip(&program.points) {
            for set in point.rule.iter().flat_map(|rule| side(rule).sets()) {
                relevant.entry(set).or_default().push(bit);
            }
        }
        // Row zero: belongs to nothing. Every other row differs from it only in bits that mention a set of the identity.
        let nothing = Membership::default();
        let mut rows = Rows::new(program.shape);
        rows.add(&mut index.rows, |bit| may_match(program, &side, bit, &nothing));
        index.known.insert(Box::default(), 0);
        Self { relevant: Arc::new(relevant), rows, by_identity: RowNumbers::default() }
    }

    /// Adds the row of an identity, making it when it is the first of its kind.
    fn learn(
        &mut self,
        program: &Program,
        side: impl Fn(&CompiledRule) -> &Side,
        index: &mut SideIndex,
        identity: IdentityId,
        membership: &Membership,
    ) {
        let relevant: Vec<SetId> =
            membership.sets.iter().copied().filter(|set| self.relevant.contains_key(set)).collect();
        if relevant.is_empty() {
            return;
        }
        let number = match index.known.get(relevant.as_slice()) {
            Some(number) => *number,
            None => {
                let mentioned = relevant.iter().filter_map(|set| self.relevant.get(set)).flatten();
                let bits = mentioned.map(|bit| {
                    let bit = *bit as usize;
                    (bit, may_match(program, &side, bit, membership))
                });
                let number = self.rows.add_like(&mut index.rows, 0, bits);
                index.known.insert(relevant.into(), number);
                number
            }
        };
        self.by_identity.insert(identity.0, number);
    }

    /// Returns the row of an identity of this snapshot.
    #[inline]
    fn row(&self, identity: IdentityId) -> &[Line] {
        self.rows.row(self.by_identity.get(identity.0))
    }
}

fn may_match(
    program: &Program,
    side: &impl Fn(&CompiledRule) -> &Side,
    bit: usize,
    membership: &Membership,
) -> bool {
    program.points[bit].rule.as_deref().is_none_or(|rule| side(rule).may_match_address(membership))
}

/// What a packet leaves standing: source, destination, protocol, destination port, source port, ICMP.
pub(crate) type Standing<'a> = [&'a [Line]; 6];

/// The compiled policy of one direction, shared by every endpoint that is governed alike. What a verdict reads first stands first.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    pub(crate) program: Arc<Program>,
    /// Number of the first decision point among those of all live tables.
    pub(crate) base: u32,
    /// Whether it matters who an address is: source, destination.
    asks_who: [bool; 2],
    source: Identified,
    destination: Identified,
    pub(crate) epoch: Epoch,
}

/// What is needed to add rows to a table, and not to read them.
#[derive(Debug, Default)]
pub(crate) struct TableIndex {
    source: SideIndex,
    destination: SideIndex,
}

impl Table {
    pub(crate) fn new(epoch: Epoch, base: u32, program: Program, index: &mut TableIndex) -> Self {
        let source = Identified::new(&program, |rule| &rule.source, &mut index.source);
        let destination = Identified::new(&program, |rule| &rule.destination, &mut index.destination);
        let asks_who = [&source, &destination].map(|side| !side.relevant.is_empty());
        Self { program: Arc::new(program), base, asks_who, source, destination, epoch }
    }

    /// Every set that the table mentions.
    pub(crate) fn sets(&self) -> BTreeSet<SetId> {
        self.source.relevant.keys().chain(self.destination.relevant.keys()).copied().collect()
    }

    /// Adds the rows of an identity.
    pub(crate) fn learn(&mut self, index: &mut TableIndex, identity: IdentityId, membership: &Membership) {
        let Self { program, source, destination, .. } = self;
        source.learn(program, |rule| &rule.source, &mut index.source, identity, membership);
        destination.learn(program, |rule| &rule.destination, &mut index.destination, identity, membership);
    }

    /// Drops what was kept for identities that are gone.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.source.by_identity.retain(|identity| !is_gone(identity));
        self.destination.by_identity.retain(|identity| !is_gone(identity));
    }

    /// Asks for the table itself, before [`Table::prefetch_numbers`].
    #[inline]
    pub(crate) fn prefetch(&self) {
        margay_accel::prefetch_item(std::slice::from_ref(self), 0);
    }

    /// Whether it matters who an address is, by side: source, destination. Where it does not, nobody needs to look.
    #[inline]
    pub(crate) fn asks_who(&self) -> [bool; 2] {
        self.asks_who
    }

    /// Asks for what [`Table::prefetch_ports`] reads.
    #[inline]
    pub(crate) fn prefetch_numbers(&self, source: IdentityId, destination: IdentityId) {
        let [asks_source, asks_destination] = self.asks_who;
        if asks_source {
            self.source.by_identity.prefetch(source.0);
        }
        if asks_destination {
            self.destination.by_identity.prefetch(destination.0);
        }
        margay_accel::prefetch_item(std::slice::from_ref(&*self.program), 0);
    }

    /// Returns the rows of both addresses and asks for them, and for what [`Table::prefetch_port_numbers`] reads.
    #[inline]
    pub(crate) fn prefetch_ports(
        &self,
        packet: &PacketTuple,
        [source, destination]: [IdentityId; 2],
    ) -> [&[Line]; 2] {
        let rows = [self.source.row(source), self.destination.row(destination)];
        rows.iter().for_each(|row| margay_accel::prefetch_item(row, 0));
        let [source_port, destination_port] = ports(packet);
        self.program.destination_port.iter().for_each(|rows| rows.prefetch(destination_port));
        self.program.source_port.iter().for_each(|rows| rows.prefetch(source_port));
        rows
    }

    /// Asks for what [`Table::prefetch_rows`] reads.
    #[inline]
    pub(crate) fn prefetch_port_numbers(&self, packet: &PacketTuple) {
        let [source_port, destination_port] = ports(packet);
        self.program.destination_port.iter().for_each(|rows| rows.prefetch_number(destination_port));
        self.program.source_port.iter().for_each(|rows| rows.prefetch_number(source_port));
    }

    /// Puts all rows that the packet leaves standing into `rows`, and asks for those that were not asked for.
    #[inline]
    pub(crate) fn prefetch_rows<'a>(
        &'a self,
        packet: &PacketTuple,
        addresses: &[&'a [Line]; 2],
        rows: &mut Standing<'a>,
    ) {
        (rows[0], rows[1]) = (addresses[0], addresses[1]);
        self.put_ports(packet, rows);
        rows[2..].iter().for_each(|row| margay_accel::prefetch_item(row, 0));
    }

    /// Puts the rows that do not depend on addresses into `rows`.
    #[inline]
    fn put_ports<'a>(&'a self, packet: &PacketTuple, rows: &mut Standing<'a>) {
        let program = &*self.program;
        let [source_port, destination_port] = ports(packet);
        let protocol = program.protocol.row(&packet.destination, packet.protocol);
        rows[2] = protocol;
        rows[3] = program.destination_port.as_ref().map_or(protocol, |rows| rows.row(destination_port));
        rows[4] = program.source_port.as_ref().map_or(protocol, |rows| rows.row(source_port));
        rows[5] = program.icmp.as_ref().map_or(protocol, |rows| rows.row(icmp_view(packet)));
    }

    /// Whether far more rows are kept than `identities` can have.
    pub(crate) fn is_crowded(&self, index: &TableIndex, identities: usize) -> bool {
        index.source.known.len().max(index.destination.known.len()) > 2 * identities + 256
    }

    /// Forgets every row but that of belonging to nothing.
    pub(crate) fn start_over(&mut self, index: &mut TableIndex) {
        *index = TableIndex::default();
        self.source = Identified::new(&self.program, |rule| &rule.source, &mut index.source);
        self.destination = Identified::new(&self.program, |rule| &rule.destination, &mut index.destination);
    }

    /// Returns the rows that the packet leaves standing.
    #[inline]
    pub(crate) fn rows(&self, packet: &PacketTuple, [source, destination]: [IdentityId; 2]) -> Standing<'_> {
        let mut rows: Standing<'_> = [&[]; 6];
        (rows[0], rows[1]) = (self.source.row(source), self.destination.row(destination));
        self.put_ports(packet, &mut rows);
        rows
    }

    /// Returns the first point that may decide, and asks for what [`Table::decide`] reads of it.
    #[inline]
    pub(crate) fn first(&self, rows: &Standing<'_>) -> Option<usize> {
        let first = self.program.shape.first(rows, 0);
        first.iter().for_each(|bit| margay_accel::prefetch_item(&self.program.steps, *bit));
        first
    }

    /// Finds the deciding point from [`Table::first`]. `identities` are of the snapshot whose `memberships` are given.
    #[inline]
    pub(crate) fn decide(
        &self,
        packet: &PacketTuple,
        identities: impl Fn() -> [IdentityId; 2],
        first: Option<usize>,
        memberships: &Paged<Arc<Membership>>,
        mut log: impl FnMut(usize),
    ) -> (HostVerdict, usize) {
        let program = &*self.program;
        let mut next = first;
        while let Some(bit) = next {
            let step = program.steps[bit];
            let is_confirmed = || {
                let [source, destination] = identities().map(|identity| memberships.get(identity.0));
                let rule = program.points[bit].rule.as_deref();
                source
                    .zip(destination)
                    .zip(rule)
                    .is_none_or(|((source, destination), rule)| rule.confirms(packet, source, destination))
            };
            let from = if step.confirm && !is_confirmed() {
                bit + 1
            } else {
                match step.outcome {
                    Outcome::Allow => return (HostVerdict::Allow, bit),
                    Outcome::Deny => return (HostVerdict::Deny, bit),
                    Outcome::NoMatch => return (HostVerdict::NoMatch, bit),
                    Outcome::Log => {
                        log(bit);
                        bit + 1
                    }
                    Outcome::Pass(next) => next as usize,
                }
            };
            next = program.shape.first(&self.rows(packet, identities()), from);
        }
        // The last point matches everything; were it ever missed, the answer is still closed.
        (HostVerdict::Deny, program.steps.len() - 1)
    }

    /// Number of decision points.
    pub(crate) fn len(&self) -> u32 {
        self.program.points.len() as u32
    }
}
