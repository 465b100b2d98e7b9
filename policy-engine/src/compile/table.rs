//! A program with the rows of every identity that exists: all that a verdict needs.
//!
//! One end of a packet is the far one: whose address the rules of a direction name, the source of what arrives and the destination of
//! what leaves. Its identity comes first, because a [`Shortlist`] usually settles the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use super::numbers::Numbers;
use super::paged::Paged;
use super::program::{Outcome, Program};
use super::rows::{Line, RowIndex, Rows};
use super::rules::{icmp_view, ports};
use super::sets::{Membership, SetId};
use super::shortlist::{End, Listed, Lists, Shortlist, Shortlists, asked};
use crate::packet::{Epoch, HostVerdict, IdentityId, PacketTuple};

/// The rows of one end: what the identity of an address leaves standing.
///
/// Identities that differ only in sets that the program never mentions share a row; those that have none of them have row zero.
#[derive(Clone, Debug)]
#[repr(C)]
struct Identified {
    /// What an identity leaves standing before the point that decides in any case, with its row; of the far end.
    lists: Shortlists,
    /// Row number, by identity; absent is row zero. Of the near end.
    numbers: Numbers,
    rows: Rows,
    /// The point that decides in any case; `None` at the near end.
    stop: Option<usize>,
    end: End,
    /// Sets that the end mentions, each with the bits that mention it.
    relevant: Arc<BTreeMap<SetId, Vec<u32>>>,
}

/// What is needed to add rows to one end, and not to read them.
#[derive(Debug, Default)]
pub(crate) struct EndIndex {
    rows: RowIndex,
    /// By row; of the far end.
    lists: Vec<Shortlist>,
    /// By relevant sets.
    known: HashMap<Box<[SetId]>, u32, foldhash::fast::FixedState>,
}

impl Identified {
    fn new(program: &Program, end: End, stop: Option<usize>, index: &mut EndIndex) -> Self {
        let mut relevant: BTreeMap<SetId, Vec<u32>> = BTreeMap::new();
        for (bit, point) in (0..).zip(&program.points) {
            for set in point.rule.iter().flat_map(|rule| end.of(rule).sets()) {
                relevant.entry(set).or_default().push(bit);
            }
        }
        // Row zero: belongs to nothing. Every other row differs from it only in bits that mention a set of the identity.
        let nothing = Membership::default();
        let mut rows = Rows::new(program.shape);
        rows.add(&mut index.rows, |bit| may_match(program, end, bit, &nothing));
        index.known.insert(Box::default(), 0);
        let nothing = match stop {
            Some(stop) => Shortlist::new(program, end, stop, program.shape.bits_of(rows.row(0))),
            None => Shortlist::default(),
        };
        let (lists, numbers) = (Shortlists::new(&nothing), Numbers::default());
        index.lists.push(nothing);
        Self { lists, numbers, rows, stop, end, relevant: Arc::new(relevant) }
    }

    /// Adds the row of an identity, making it when it is the first of its kind.
    fn learn(
        &mut self,
        program: &Program,
        index: &mut EndIndex,
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
                    (bit, may_match(program, self.end, bit, membership))
                });
                let number = self.rows.add_like(&mut index.rows, 0, bits);
                index.known.insert(relevant.into(), number);
                if let Some(stop) = self.stop {
                    // Rows may be equal where sets are not.
                    for row in index.lists.len()..self.rows.len() {
                        let bits = program.shape.bits_of(self.rows.row(row as u32));
                        index.lists.push(Shortlist::new(program, self.end, stop, bits));
                    }
                }
                number
            }
        };
        match (self.stop, index.lists.get(number as usize)) {
            (Some(_), Some(list)) => self.lists.insert(identity.0, number, list),
            _ => self.numbers.insert(identity.0, number),
        }
    }

    /// Returns the number of the row of an identity of this snapshot.
    #[inline]
    fn number(&self, identity: IdentityId) -> u32 {
        match self.stop {
            Some(_) => self.lists.lists().row(identity.0),
            None => self.numbers.get(identity.0),
        }
    }

    fn forget(&mut self, is_gone: impl Fn(u32) -> bool) {
        match self.stop {
            Some(_) => self.lists.retain(|identity| !is_gone(identity)),
            None => self.numbers.retain(|identity| !is_gone(identity)),
        }
    }

    /// Returns the row of an identity of this snapshot.
    #[inline]
    fn row(&self, identity: IdentityId) -> &[Line] {
        self.rows.row(self.number(identity))
    }
}

fn may_match(program: &Program, end: End, bit: usize, membership: &Membership) -> bool {
    program.points[bit].rule.as_deref().is_none_or(|rule| end.of(rule).may_match_address(membership))
}

/// What a packet leaves standing: far end, near end, protocol, destination port, source port, ICMP.
pub(crate) type Standing<'a> = [&'a [Line]; 6];

/// What the far end's identity says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// All.
    By(HostVerdict, usize),
    /// The first point that may decide.
    From(u16),
    /// Nothing: the rows know.
    Open,
}

/// The compiled policy of one direction, shared by every endpoint that is governed alike. What most packets read is the first line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    /// Number of the first decision point among those of all live tables.
    pub(crate) base: u32,
    /// The first point that decides whatever reaches it, and its verdict.
    stop: u32,
    verdict: HostVerdict,
    /// Which end is the far one.
    end: End,
    /// Whether it matters who an address is: at the far end, at the near one.
    asks_who: [bool; 2],
    /// Whether what belongs to nothing meets no point before `stop`.
    is_closed: bool,
    far: Identified,
    near: Identified,
    pub(crate) program: Arc<Program>,
    pub(crate) epoch: Epoch,
}

/// What is needed to add rows to a table, and not to read them.
#[derive(Debug, Default)]
pub(crate) struct TableIndex {
    far: EndIndex,
    near: EndIndex,
}

impl Table {
    pub(crate) fn new(epoch: Epoch, base: u32, program: Program, index: &mut TableIndex) -> Self {
        let program = Arc::new(program);
        let mentioned = |end: End| {
            let rules = program.points.iter().filter_map(|point| point.rule.as_deref());
            rules.filter(|rule| end.of(rule).sets().next().is_some()).count()
        };
        let is_source = mentioned(End::Source) >= mentioned(End::Destination);
        let end = if is_source { End::Source } else { End::Destination };
        let (stop, verdict) = program.certain();
        let far = Identified::new(&program, end, Some(stop), &mut index.far);
        let near = Identified::new(&program, end.other(), None, &mut index.near);
        let asks_who = [&far, &near].map(|end| !end.relevant.is_empty());
        let is_closed = program.shape.bits_of(far.rows.row(0)).next().is_none_or(|bit| bit >= stop);
        Self { base, stop: stop as u32, verdict, end, asks_who, is_closed, far, near, program, epoch }
    }

    /// Every set that the table mentions.
    pub(crate) fn sets(&self) -> BTreeSet<SetId> {
        self.far.relevant.keys().chain(self.near.relevant.keys()).copied().collect()
    }

    /// Adds the rows of an identity.
    pub(crate) fn learn(&mut self, index: &mut TableIndex, identity: IdentityId, membership: &Membership) {
        self.far.learn(&self.program, &mut index.far, identity, membership);
        self.near.learn(&self.program, &mut index.near, identity, membership);
    }

    /// Gives back the room for more rows.
    pub(crate) fn fit(&mut self) {
        self.far.rows.fit();
        self.near.rows.fit();
    }

    /// Drops what was kept for identities that are gone.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.far.forget(&is_gone);
        self.near.forget(&is_gone);
    }

    /// Returns the end whose identity [`Table::settle`] needs; `None` where it does not matter.
    #[inline(always)]
    pub(crate) fn far(&self) -> Option<End> {
        self.asks_who[0].then_some(self.end)
    }

    /// Returns the identity of the far end, of those of source and destination.
    #[inline(always)]
    pub(crate) fn far_of(&self, [source, destination]: [IdentityId; 2]) -> IdentityId {
        match self.end {
            End::Source => source,
            End::Destination => destination,
        }
    }

    fn near_of(&self, [source, destination]: [IdentityId; 2]) -> IdentityId {
        self.far_of([destination, source])
    }

    /// Whether every packet whose far end belongs to nothing gets [`Table::verdict`].
    #[inline(always)]
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// What a packet meets that agrees with no rule: the verdict, and the point that gives it.
    #[inline(always)]
    pub(crate) fn verdict(&self) -> (HostVerdict, usize) {
        (self.verdict, self.stop as usize)
    }

    /// Returns the lists of the far end.
    #[inline(always)]
    pub(crate) fn lists(&self) -> &Lists {
        self.far.lists.lists()
    }

    /// Returns what is listed of a far end that belongs to nothing.
    #[inline(always)]
    pub(crate) fn of_nothing(&self, asked: (u16, u16)) -> Listed {
        self.far.lists.of_nothing(asked)
    }

    /// Settles what the far end's identity can settle.
    #[inline]
    pub(crate) fn settle(&self, packet: &PacketTuple, identity: IdentityId) -> Settled {
        if identity == IdentityId(0) && self.is_closed {
            let (verdict, point) = self.verdict();
            return Settled::By(verdict, point);
        }
        let asked = asked(packet);
        let listed = match self.lists().find(identity.0, asked).0 {
            Listed::Absent => self.of_nothing(asked),
            listed => listed,
        };
        match listed {
            Listed::Nothing => Settled::By(self.verdict, self.stop as usize),
            Listed::Final(point, allows) => {
                let verdict = if allows { HostVerdict::Allow } else { HostVerdict::Deny };
                Settled::By(verdict, usize::from(point))
            }
            Listed::First(point) => Settled::From(point),
            Listed::Unknown | Listed::Absent => Settled::Open,
        }
    }

    /// Returns the row with that number of the far end, and asks for it and for what [`Table::prefetch_ports`] reads.
    #[inline]
    pub(crate) fn prefetch_far(&self, number: u32, near: IdentityId) -> &[Line] {
        if self.asks_who[1] {
            self.near.numbers.prefetch(near.0);
        }
        margay_accel::prefetch_item(std::slice::from_ref(&*self.program), 0);
        let row = self.far.rows.row(number);
        margay_accel::prefetch_item(row, 0);
        row
    }

    /// Returns the near end; `None` where it does not matter who that is.
    #[inline(always)]
    pub(crate) fn near(&self) -> Option<End> {
        self.asks_who[1].then(|| self.end.other())
    }

    /// Returns the row of the near end, and asks for it and for what [`Table::prefetch_port_numbers`] reads.
    #[inline]
    pub(crate) fn prefetch_ports(&self, packet: &PacketTuple, near: IdentityId) -> &[Line] {
        let row = self.near.row(near);
        margay_accel::prefetch_item(row, 0);
        let [source_port, destination_port] = ports(packet);
        self.program.destination_port.iter().for_each(|rows| rows.prefetch(destination_port));
        self.program.source_port.iter().for_each(|rows| rows.prefetch(source_port));
        row
    }

    /// Asks for what [`Table::prefetch_rows`] reads.
    #[inline]
    pub(crate) fn prefetch_port_numbers(&self, packet: &PacketTuple) {
        let [source_port, destination_port] = ports(packet);
        self.program.destination_port.iter().for_each(|rows| rows.prefetch_number(destination_port));
        self.program.source_port.iter().for_each(|rows| rows.prefetch_number(source_port));
    }

    /// Puts the rows that do not depend on addresses into `rows`, and asks for them.
    #[inline]
    pub(crate) fn prefetch_rows<'a>(&'a self, packet: &PacketTuple, rows: &mut Standing<'a>) {
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
        index.far.known.len().max(index.near.known.len()) > 2 * identities + 256
    }

    /// Forgets every row but that of belonging to nothing.
    pub(crate) fn start_over(&mut self, index: &mut TableIndex) {
        *index = TableIndex::default();
        self.far = Identified::new(&self.program, self.end, Some(self.stop as usize), &mut index.far);
        self.near = Identified::new(&self.program, self.end.other(), None, &mut index.near);
    }

    /// Returns the rows that the packet leaves standing.
    #[inline]
    pub(crate) fn rows(&self, packet: &PacketTuple, identities: [IdentityId; 2]) -> Standing<'_> {
        let mut rows: Standing<'_> = [&[]; 6];
        let (far, near) = (self.far_of(identities), self.near_of(identities));
        (rows[0], rows[1]) = (self.far.row(far), self.near.row(near));
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
