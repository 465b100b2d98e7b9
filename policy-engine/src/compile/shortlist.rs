//! The decision points that an address leaves standing, where they are few: one cache line that answers without any other row.
//!
//! Most rules name who they are about, so of a program's hundreds of rules few are about one address, mostly one or two. Those few are
//! written out, a lane each, in order; a cache line has four lanes, of as many identities as fit:
//!
//! ```text
//!   identity       whose lane it is
//!   row            its row, for what the lanes do not say
//!   first port   ─┐
//!   ports beyond ─┼─ all lanes at once are compared with the packet's identity, port and class; the first that agrees is the first point
//!   classes      ─┤  (class: family and one of TCP, UDP, SCTP)
//!   point        ─┘
//! ```
//!
//! A point takes a lane per interval of ports. Points that look at more than the address, the class and the destination port cannot be
//! written so, and more than four lanes do not fit: such a row has a lane that agrees with everything and says "ask the rows".

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::program::{Outcome, Program};
use super::rows::IcmpView;
use super::rules::{CompiledRule, SCTP, Side, TCP, UDP};
use crate::packet::PacketTuple;

/// Lanes of a line, and the most that one list has.
const LANES: usize = 4;

/// Every class.
const CLASSES: u16 = (1 << (2 * PROTOCOLS.len())) - 1;
/// Beside the classes of a lane: the point's action, where it is final.
const ALLOW: u16 = 1 << 8;
const DENY: u16 = 1 << 9;

/// The protocols that have classes, in the order of their bits; those of IPv6 come after those of IPv4.
const PROTOCOLS: [u8; 3] = [TCP, UDP, SCTP];

/// Stands for "ask the rows".
const UNKNOWN: u16 = u16::MAX;

/// One of both ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl End {
    /// What a rule says about this end.
    #[inline(always)]
    pub(crate) fn of(self, rule: &CompiledRule) -> &Side {
        match self {
            Self::Source => &rule.source,
            Self::Destination => &rule.destination,
        }
    }

    /// The address at this end.
    #[inline(always)]
    pub(crate) fn address(self, packet: &PacketTuple) -> IpAddr {
        match self {
            Self::Source => packet.source,
            Self::Destination => packet.destination,
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// A decision point, as far as a list tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lane {
    first: u16,
    beyond: u16,
    /// Classes, and the action where it is final.
    classes: u16,
    point: u16,
}

/// See the module. Lanes are in order of their points.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shortlist(SmallVec<[Lane; LANES]>);

/// What a shortlist says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// The identity has no list: it belongs to nothing that the table mentions.
    Absent,
    /// No listed point agrees.
    Nothing,
    /// This point decides, and allows or does not.
    Final(u16, bool),
    /// This is the first that may decide.
    First(u16),
    /// The rows know.
    Unknown,
}

/// What a shortlist compares: the class of a packet, as a bit, and its destination port. The class is zero for a packet that no
/// shortlist can answer.
#[inline(always)]
pub(crate) fn asked(packet: &PacketTuple) -> (u16, u16) {
    let class = u16::from(CLASS[usize::from(packet.protocol)]);
    let class = if packet.destination.is_ipv4() { class } else { class << PROTOCOLS.len() };
    packet.destination_port.map_or((0, 0), |port| (class, port))
}

/// The class of every protocol of IPv4, as a bit: looked up, because packets of TCP and UDP come mixed as they like.
static CLASS: [u8; 256] = {
    let mut classes = [0; 256];
    let mut class = 0;
    while class < PROTOCOLS.len() {
        classes[PROTOCOLS[class] as usize] = 1 << class;
        class += 1;
    }
    classes
};

/// Intervals of ports: the first, and how many come after it.
type Intervals = SmallVec<[(u16, u16); 2]>;

/// Returns what the lanes of a point hold beside its number; `None` when lanes cannot hold it.
fn lanes(program: &Program, bit: usize, end: End) -> Option<(u16, Intervals)> {
    let (point, step) = (&program.points[bit], program.steps[bit]);
    let rule = point.rule.as_deref()?;
    let other = end.other().of(rule);
    // What address and port mean together is confirmed where the point is met.
    if !other.inside.is_empty() || !other.outside.is_empty() || rule.source.has_port_criteria() {
        return None;
    }
    let is_final = !step.confirm;
    let mut classes = match step.outcome {
        Outcome::Allow if is_final => ALLOW,
        Outcome::Deny if is_final => DENY,
        _ => 0,
    };
    if rule.may_match_icmp(IcmpView::Other) {
        let of = |is_ipv4| {
            let named =
                (0..).zip(PROTOCOLS).filter(|(_, protocol)| rule.matches_protocol(is_ipv4, *protocol));
            named.fold(0, |classes, (class, _)| classes | 1 << class)
        };
        classes |= of(true) | of(false) << PROTOCOLS.len();
    }
    Some((classes, intervals(&rule.destination)))
}

/// Returns the destination ports that may satisfy the side.
fn intervals(side: &Side) -> Intervals {
    // Most rules name no port, or one interval.
    if side.not_ports.ranges.is_empty() {
        match side.ports.ranges.as_slice() {
            _ if side.may_match_unnamed_port() => return smallvec![(0, u16::MAX)],
            [(first, last)] if first <= last => return smallvec![(*first, last - first)],
            _ => {}
        }
    }
    let ends = side.port_ranges().flat_map(|(first, last)| [Some(first), last.checked_add(1)]).flatten();
    let mut starts: SmallVec<[u16; 8]> = ends.chain([0]).collect();
    starts.sort_unstable();
    starts.dedup();
    let mut intervals = Intervals::new();
    let mut open = None;
    for start in starts {
        match (open, side.may_match_port(Some(start))) {
            (None, true) => open = Some(start),
            (Some(first), false) => {
                intervals.push((first, start - 1 - first));
                open = None;
            }
            _ => {}
        }
    }
    intervals.extend(open.map(|first| (first, u16::MAX - first)));
    intervals
}

impl Shortlist {
    /// Writes down the points `bits`, which come in order; those from `stop` on do not matter.
    pub(crate) fn new(program: &Program, end: End, stop: usize, bits: impl Iterator<Item = usize>) -> Self {
        let mut list = Self::default();
        for bit in bits.take_while(|bit| *bit < stop) {
            let point = u16::try_from(bit).ok().filter(|point| *point != UNKNOWN);
            let Some((point, (classes, intervals))) = point.zip(lanes(program, bit, end)) else {
                return Self::unknown();
            };
            if classes & CLASSES == 0 {
                continue;
            }
            for (first, beyond) in intervals {
                if list.0.len() == LANES {
                    return Self::unknown();
                }
                list.0.push(Lane { first, beyond, classes, point });
            }
        }
        list
    }

    fn unknown() -> Self {
        let lane = Lane { first: 0, beyond: u16::MAX, classes: CLASSES, point: UNKNOWN };
        Self(std::iter::once(lane).collect())
    }

    /// The list as a line of its own.
    fn alone(&self) -> Line {
        let mut line = Line::default();
        self.0.iter().enumerate().for_each(|(place, lane)| line.set(place, 0, 0, *lane));
        line
    }
}

/// Four lanes. A free one has row zero, and no class.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Line {
    identities: [u32; LANES],
    rows: [u32; LANES],
    /// By lane: first ports, ports beyond, classes, points.
    numbers: [u16; 4 * LANES],
}

/// Where each kind of number begins.
const BEYOND: usize = LANES;
const CLASS_AT: usize = 2 * LANES;
const POINT: usize = 3 * LANES;

/// Beside the classes of a line's first lane: somebody found no room here and is in a line after this one.
const OVERFLOWED: u16 = 1 << 15;

impl Line {
    fn set(&mut self, place: usize, identity: u32, row: u32, lane: Lane) {
        (self.identities[place], self.rows[place]) = (identity, row);
        let flag = self.numbers[CLASS_AT + place] & OVERFLOWED;
        let numbers = [lane.first, lane.beyond, lane.classes | flag, lane.point];
        for (at, number) in [0, BEYOND, CLASS_AT, POINT].into_iter().zip(numbers) {
            self.numbers[at + place] = number;
        }
    }

    fn lane(&self, place: usize) -> Lane {
        let at = |kind: usize| self.numbers[kind + place];
        Lane { first: at(0), beyond: at(BEYOND), classes: at(CLASS_AT) & !OVERFLOWED, point: at(POINT) }
    }

    fn free(&self) -> impl Iterator<Item = usize> {
        let rows = self.rows;
        (0..LANES).filter(move |place| rows[*place] == 0)
    }

    /// Returns every list of the line: whose, its row, its lanes. They are in one line all of them, in order, though not side by side.
    fn lists(&self) -> impl Iterator<Item = (u32, u32, SmallVec<[Lane; LANES]>)> {
        (0..LANES).filter_map(|place| {
            let (identity, row) = (self.identities[place], self.rows[place]);
            let is_first = !self.identities[..place].contains(&identity);
            let mine = (place..LANES).filter(|at| self.identities[*at] == identity);
            (row != 0 && is_first).then(|| (identity, row, mine.map(|at| self.lane(at)).collect()))
        })
    }

    #[inline(always)]
    fn has_overflowed(&self) -> bool {
        self.numbers[CLASS_AT] & OVERFLOWED != 0
    }

    /// Says what those of the lanes `mine` that agree with this class and port say.
    #[inline(always)]
    fn find(&self, mine: u32, (class, port): (u16, u16)) -> Listed {
        if class == 0 {
            return Listed::Unknown;
        }
        let hits = mine & self.hits(class, port);
        if hits == 0 {
            return Listed::Nothing;
        }
        let lane = hits.trailing_zeros() as usize % LANES;
        let point = self.numbers[POINT + lane];
        match self.numbers[CLASS_AT + lane] & (ALLOW | DENY) {
            0 if point == UNKNOWN => Listed::Unknown,
            0 => Listed::First(point),
            action => Listed::Final(point, action == ALLOW),
        }
    }

    /// A bit for every lane that agrees.
    #[inline(always)]
    fn hits(&self, class: u16, port: u16) -> u32 {
        // Eight numbers: those of the lanes, and four that belong to what follows.
        let at = |first: usize| self.numbers[first..].first_chunk();
        match (at(0), at(BEYOND), at(CLASS_AT)) {
            (Some(firsts), Some(beyond), Some(classes)) => {
                margay_accel::agreeing_lanes(firsts, beyond, classes, port, class) & ((1 << LANES) - 1)
            }
            _ => 0,
        }
    }
}

/// Lines from its home on that an identity may be in.
const REACH: usize = 8;

/// The lists of a table's identities, to be read: a hash table of lines, five in eight lanes of which are taken at most, so that mostly
/// the first line looked at is the one. Copies share it.
#[derive(Clone, Debug)]
pub(crate) struct Lists {
    lines: Arc<[Line]>,
}

impl Lists {
    fn new(lines: usize) -> Self {
        Self { lines: std::iter::repeat_n(Line::default(), lines).collect() }
    }

    #[inline(always)]
    fn home(&self, identity: u32) -> usize {
        // Fibonacci hashing: the high bits are the well-mixed ones.
        let mixed = identity.wrapping_mul(0x9e37_79b9);
        ((u64::from(mixed) * self.lines.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, line: usize) -> usize {
        if line + 1 < self.lines.len() { line + 1 } else { 0 }
    }

    /// Returns what the list of an identity says of a packet, from [`asked`], and the row that the list is an extract of.
    #[inline(always)]
    pub(crate) fn find(&self, identity: u32, asked: (u16, u16)) -> (Listed, u32) {
        let mut at = self.home(identity);
        for _ in 0..REACH {
            let line = &self.lines[at];
            let mine = margay_accel::equal_lanes(&line.identities, identity);
            if mine != 0 {
                let row = line.rows[mine.trailing_zeros() as usize % LANES];
                // A free lane looks like one of those that belong to nothing.
                return if row == 0 { (Listed::Absent, 0) } else { (line.find(mine, asked), row) };
            }
            if !line.has_overflowed() {
                break;
            }
            at = self.after(at);
        }
        (Listed::Absent, 0)
    }

    /// Returns the number of an identity's row.
    #[inline(always)]
    pub(crate) fn row(&self, identity: u32) -> u32 {
        self.find(identity, (0, 0)).1
    }

    /// Asks for what [`Lists::find`] reads.
    #[inline(always)]
    pub(crate) fn prefetch(&self, identity: u32) {
        margay_accel::prefetch_item(&self.lines, self.home(identity));
    }
}

/// The same, to be written.
#[derive(Clone, Debug)]
pub(crate) struct Shortlists {
    lists: Lists,
    /// Lanes taken.
    len: usize,
    /// Of identities that belong to nothing the table mentions.
    nothing: Line,
}

impl Shortlists {
    /// Returns lists of which only that of belonging to nothing is there.
    pub(crate) fn new(nothing: &Shortlist) -> Self {
        Self { lists: Lists::new(1), len: 0, nothing: nothing.alone() }
    }

    /// Returns them to be read.
    #[inline(always)]
    pub(crate) fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Returns what is said of a packet by the list of those that belong to nothing.
    #[inline(always)]
    pub(crate) fn of_nothing(&self, asked: (u16, u16)) -> Listed {
        self.nothing.find(u32::MAX, asked)
    }

    /// Sets the list of an identity, which is an extract of `row`; that of row zero is what absent ones have, and is not stored.
    pub(crate) fn insert(&mut self, identity: u32, row: u32, list: &Shortlist) {
        if row == 0 {
            return;
        }
        self.remove(identity);
        // A list without lanes takes one that never agrees: it is not that of belonging to nothing.
        let silent = [Lane::default()];
        let lanes = if list.0.is_empty() { &silent[..] } else { &list.0 };
        while 8 * (self.len + lanes.len()) > 5 * LANES * self.lists.lines.len() {
            self.rebuild(wider(self.lists.lines.len()), |_| true);
        }
        while !self.put(identity, row, lanes) {
            self.rebuild(wider(self.lists.lines.len()), |_| true);
        }
    }

    /// Puts lanes into the first line with room for all of them; returns whether one is near enough.
    fn put(&mut self, identity: u32, row: u32, lanes: &[Lane]) -> bool {
        let home = self.lists.home(identity);
        let reach = std::iter::successors(Some(home), |at| Some(self.lists.after(*at))).take(REACH);
        let line = |at: &usize| &self.lists.lines[*at];
        let passed: SmallVec<[usize; REACH]> =
            reach.take_while(|at| line(at).free().count() < lanes.len()).collect();
        if passed.len() == REACH {
            return false;
        }
        let at = passed.last().map_or(home, |last| self.lists.after(*last));
        let lines = Arc::make_mut(&mut self.lists.lines);
        passed.iter().for_each(|at| lines[*at].numbers[CLASS_AT] |= OVERFLOWED);
        let line = &mut lines[at];
        let free: SmallVec<[usize; LANES]> = line.free().collect();
        free.into_iter().zip(lanes).for_each(|(place, lane)| line.set(place, identity, row, *lane));
        self.len += lanes.len();
        true
    }

    fn remove(&mut self, identity: u32) {
        let mut at = self.lists.home(identity);
        for _ in 0..REACH {
            let line = &self.lists.lines[at];
            if line.identities.contains(&identity) {
                let line = &mut Arc::make_mut(&mut self.lists.lines)[at];
                for place in 0..LANES {
                    if line.identities[place] == identity && line.rows[place] != 0 {
                        line.set(place, 0, 0, Lane::default());
                        self.len -= 1;
                    }
                }
                return;
            }
            if !line.has_overflowed() {
                return;
            }
            at = self.lists.after(at);
        }
    }

    /// Forgets every identity that `keeps` does not keep.
    pub(crate) fn retain(&mut self, keeps: impl Fn(u32) -> bool) {
        self.rebuild(self.lists.lines.len(), keeps);
    }

    /// Makes it anew, of so many lines or more.
    fn rebuild(&mut self, mut lines: usize, keeps: impl Fn(u32) -> bool) {
        let old = self.lists.clone();
        loop {
            (self.lists, self.len) = (Lists::new(lines), 0);
            let mut all = old.lines.iter().flat_map(Line::lists).filter(|(identity, ..)| keeps(*identity));
            if all.all(|(identity, row, lanes)| self.put(identity, row, &lanes)) {
                return;
            }
            lines = wider(lines);
        }
    }
}

/// The size after this one.
fn wider(lines: usize) -> usize {
    lines + lines.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ipnet::IpNet;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::program::{End, Part, Program};
    use super::super::rules::{CompiledRule, RuleList};
    use super::super::sets::{Membership, Sets};
    use super::super::table::{Settled, Table, TableIndex};
    use super::{LANES, Lane, Listed, Shortlist, Shortlists};
    use crate::model::{Action, Entity, PortMatch, Rule, TierDefault};
    use crate::packet::{Epoch, HostVerdict, IdentityId, PacketTuple};
    use crate::snapshot::Attribution;

    const NETS: [&str; 4] = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "198.51.100.7/32"];

    fn ports(ranges: &[(u16, u16)]) -> Vec<PortMatch> {
        ranges.iter().map(|(first, more)| PortMatch::Range { first: *first, last: first + more }).collect()
    }

    fn nets(number: usize) -> Vec<IpNet> {
        NETS.get(number).map(|net| net.parse().unwrap()).into_iter().collect()
    }

    /// A table of these rules, for identities of which the one numbered `n` is in the sets that the bits of `n` name.
    fn table(rules: &[Rule]) -> Table {
        let mut sets = Sets::default();
        let by_net: Vec<_> = (0..NETS.len()).map(|net| sets.nets(&nets(net))).collect();
        let named = Attribution {
            tier: "t".to_owned(),
            kind: String::new(),
            namespace: String::new(),
            name: "p".to_owned(),
            rule: 0,
        };
        let rules =
            rules.iter().filter_map(|rule| CompiledRule::compile(rule, named.clone(), false, &mut sets));
        let list = Arc::new(RuleList { number: 0, rules: rules.map(Arc::new).collect() });
        let tier = Part::Tier { name: "t".to_owned(), default_action: TierDefault::Deny, lists: vec![list] };
        let mut index = TableIndex::default();
        let mut table = Table::new(Epoch(1), 0, Program::build(&[tier, Part::End(End::Deny)]), &mut index);
        for identity in 1..1u32 << NETS.len() {
            let bits = by_net.iter().enumerate().filter(|(bit, _)| identity >> bit & 1 == 1);
            let membership = Membership { sets: bits.map(|(_, set)| *set).collect(), triples: Vec::new() };
            table.learn(&mut index, IdentityId(identity), &membership);
        }
        table
    }

    fn packet(is_ipv4: bool, protocol: u8, port: Option<u16>) -> PacketTuple {
        let address = if is_ipv4 { [10, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        PacketTuple {
            source: address,
            destination: address,
            protocol,
            source_port: port,
            destination_port: port,
            icmp: None,
        }
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let range = || vec((0u16..40, 0u16..6), 0..3);
        let protocol = || prop::option::weighted(0.6, prop::sample::select(vec![1u8, 6, 17, 132, 47]));
        let action =
            prop::sample::select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Log, Action::Pass]);
        let narrow = prop::option::weighted(0.1, 0u16..40);
        (action, protocol(), protocol(), 0..6usize, 0..40usize, range(), range(), narrow).prop_map(
            |(action, protocol, not_protocol, near, far, wanted, unwanted, source_port)| Rule {
                protocol,
                not_protocol,
                source: Entity {
                    nets: nets(near),
                    ports: ports(&source_port.map(|port| (port, 9)).into_iter().collect::<Vec<_>>()),
                    ..Entity::default()
                },
                destination: Entity {
                    nets: nets(far),
                    ports: ports(&wanted),
                    not_ports: ports(&unwanted),
                    ..Entity::default()
                },
                ..Rule::everything(action)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What a list settles is what the rows say, for every packet.
        #[test]
        fn lists_and_rows_agree(rules in vec(rule(), 0..12)) {
            let table = table(&rules);
            for identity in 0..1u32 << NETS.len() {
                let both = [IdentityId(identity); 2];
                for (is_ipv4, protocol) in [(true, 6), (false, 6), (true, 17), (false, 132), (true, 1), (true, 47)] {
                    for port in (0..50).map(Some).chain([Some(u16::MAX), None]) {
                        let packet = packet(is_ipv4, protocol, port);
                        let by_rows = table.first(&table.rows(&packet, both));
                        match table.settle(&packet, IdentityId(identity)) {
                            Settled::By(verdict, point) => {
                                prop_assert_eq!(by_rows, Some(point));
                                prop_assert_eq!(table.program.steps[point].outcome.verdict(), Some(verdict));
                            }
                            Settled::From(point) => prop_assert_eq!(by_rows, Some(usize::from(point))),
                            Settled::Open => {}
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A list says what it was told, however many others there are; also after it was told anew, and when others are gone.
        #[test]
        fn every_identity_has_its_list(
            told in prop_oneof![
                vec((1u32..500, 0u32..9, 0usize..=LANES), 0..900),
                vec((1u32..500, 0u32..9, 0usize..=LANES), 0..9),
            ],
        ) {
            let mut lists = Shortlists::new(&Shortlist::unknown());
            let mut plain = std::collections::BTreeMap::new();
            // Of each list every lane is about a port of its own.
            let lane = |identity: u32, row: u32, lane: usize| {
                let first = (identity as u16) << 5 | (row as u16) << 2 | lane as u16;
                Lane { first, beyond: 0, classes: super::ALLOW | 1, point: first }
            };
            for (identity, row, len) in told.into_iter().filter(|(_, row, _)| *row > 0) {
                let list = Shortlist((0..len).map(|number| lane(identity, row, number)).collect());
                lists.insert(identity, row, &list);
                plain.insert(identity, (row, len));
            }
            for round in 0..2 {
                for identity in 0..600 {
                    let read = lists.lists();
                    let (row, len) = plain.get(&identity).copied().unwrap_or_default();
                    prop_assert_eq!(read.row(identity), row);
                    for number in 0..LANES {
                        let Lane { first, point, .. } = lane(identity, row, number);
                        let expected = match row {
                            0 => Listed::Absent,
                            _ if number < len => Listed::Final(point, true),
                            _ => Listed::Nothing,
                        };
                        prop_assert_eq!(read.find(identity, (1, first)).0, expected);
                    }
                }
                if round == 0 {
                    lists.retain(|identity| identity % 3 == 0);
                    plain.retain(|identity, _| identity % 3 == 0);
                }
            }
        }
    }

    #[test]
    fn few_rules_about_an_address_are_settled_and_many_are_left_to_the_rows() {
        let about = |net, port| Rule {
            protocol: Some(6),
            source: Entity { nets: nets(net), ..Entity::default() },
            destination: Entity { ports: ports(&[(port, 0)]), ..Entity::default() },
            ..Rule::everything(Action::Allow)
        };
        let mut rules: Vec<Rule> = (0..LANES as u16).map(|n| about(0, 80 + n)).collect();
        rules.extend((0..=LANES as u16).map(|n| about(1, 80 + n)));
        let table = table(&rules);
        let settle = |identity, port| table.settle(&packet(true, 6, Some(port)), IdentityId(identity));
        let denied = Settled::By(HostVerdict::Deny, rules.len());
        assert_eq!(settle(1, 83), Settled::By(HostVerdict::Allow, 3));
        assert_eq!(settle(1, 84), denied);
        assert_eq!(settle(2, 83), Settled::Open);
        assert_eq!(settle(0, 83), denied);
        assert!(table.is_closed());
    }
}
