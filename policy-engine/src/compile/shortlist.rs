//! The decision points that an address leaves standing, where they are few: one cache line that answers without any other row.
//!
//! Most rules name who they are about, so of a program's hundreds of rules few are about one address. Those few are written out, a
//! lane each, in order:
//!
//! ```text
//!   first port   ─┐
//!   ports beyond ─┼─ seven lanes, compared all at once with the packet's port and class; the first that agrees is the first point
//!   classes      ─┤  (class: family and one of TCP, UDP, SCTP)
//!   point        ─┘
//!   identity       whose list it is
//!   row            its row, for what the list does not say
//! ```
//!
//! A point takes a lane per interval of ports. Points that look at more than the address, the class and the destination port cannot be
//! written so, and more than seven lanes do not fit: such a row has a lane that agrees with everything and says "ask the rows".

use std::net::IpAddr;

use smallvec::{SmallVec, smallvec};

use super::program::{Outcome, Program};
use super::rows::IcmpView;
use super::rules::{CompiledRule, SCTP, Side, TCP, UDP};
use crate::packet::PacketTuple;

const LANES: usize = 7;

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

/// See the module. A free lane has no class.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Shortlist {
    /// By lane: first ports, ports beyond, classes, points.
    lanes: [u16; 4 * LANES],
    identity: u32,
    row: u32,
}

/// Where each kind of number begins.
const BEYOND: usize = LANES;
const CLASS_AT: usize = 2 * LANES;
const POINT: usize = 3 * LANES;

/// What a shortlist says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
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
        let mut lane = 0;
        for bit in bits.take_while(|bit| *bit < stop) {
            let point = u16::try_from(bit).ok().filter(|point| *point != UNKNOWN);
            let Some((point, (classes, intervals))) = point.zip(lanes(program, bit, end)) else {
                return Self::unknown();
            };
            if classes & CLASSES == 0 {
                continue;
            }
            if lane + intervals.len() > LANES {
                return Self::unknown();
            }
            for (first, beyond) in intervals {
                list.set(lane, [first, beyond, classes, point]);
                lane += 1;
            }
        }
        list
    }

    fn unknown() -> Self {
        let mut list = Self::default();
        list.set(0, [0, u16::MAX, CLASSES, UNKNOWN]);
        list
    }

    fn set(&mut self, lane: usize, numbers: [u16; 4]) {
        for (at, number) in [0, BEYOND, CLASS_AT, POINT].into_iter().zip(numbers) {
            self.lanes[at + lane] = number;
        }
    }

    /// Returns the number of the row that the list is an extract of.
    #[inline(always)]
    pub(crate) fn row(&self) -> u32 {
        self.row
    }

    /// Returns what the list says of a packet with this class, which is not zero, and port.
    #[inline(always)]
    pub(crate) fn find(&self, (class, port): (u16, u16)) -> Listed {
        let hits = self.hits(class, port);
        if hits == 0 {
            return Listed::Nothing;
        }
        let lane = (hits.trailing_zeros() as usize).min(LANES - 1);
        let point = self.lanes[POINT + lane];
        match self.lanes[CLASS_AT + lane] & (ALLOW | DENY) {
            0 if point == UNKNOWN => Listed::Unknown,
            0 => Listed::First(point),
            action => Listed::Final(point, action == ALLOW),
        }
    }

    /// A bit for every lane that agrees.
    #[inline(always)]
    fn hits(&self, class: u16, port: u16) -> u32 {
        // Eight numbers: those of the lanes, and one that belongs to what follows.
        let at = |first: usize| self.lanes[first..].first_chunk();
        match (at(0), at(BEYOND), at(CLASS_AT)) {
            (Some(firsts), Some(beyond), Some(classes)) => {
                margay_accel::agreeing_lanes(firsts, beyond, classes, port, class) & ((1 << LANES) - 1)
            }
            _ => 0,
        }
    }
}

/// The lists of a table's identities: a hash table that is at most half full, so that mostly the first line looked at is the one. (Fuller
/// ones are smaller and were slower: whether another line is to be looked at, nobody can predict.)
#[derive(Clone, Debug)]
pub(crate) struct Shortlists {
    /// A power of two of them. A free one has row zero.
    places: Box<[Shortlist]>,
    len: usize,
    /// Of identities that belong to nothing the table mentions; row zero.
    nothing: Shortlist,
}

impl Shortlists {
    /// Returns lists of which only that of belonging to nothing is there.
    pub(crate) fn new(nothing: Shortlist) -> Self {
        Self { places: vec![Shortlist::default(); 2].into(), len: 0, nothing }
    }

    #[inline(always)]
    fn home(&self, identity: u32) -> usize {
        // Fibonacci hashing: the high bits are the well-mixed ones.
        let mixed = u64::from(identity).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed as usize & (self.places.len() - 1)
    }

    /// Returns the list of an identity.
    #[inline(always)]
    pub(crate) fn get(&self, identity: u32) -> &Shortlist {
        let mut at = self.home(identity);
        loop {
            let list = &self.places[at];
            if list.row == 0 {
                return &self.nothing;
            }
            if list.identity == identity {
                return list;
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }

    /// Asks for what [`Shortlists::get`] reads.
    #[inline(always)]
    pub(crate) fn prefetch(&self, identity: u32) {
        margay_accel::prefetch_item(&self.places, self.home(identity));
    }

    /// Sets the list of an identity, which is an extract of `row`; that of row zero is what absent ones have, and is not stored.
    pub(crate) fn insert(&mut self, identity: u32, row: u32, list: &Shortlist) {
        if row == 0 {
            return;
        }
        if 2 * (self.len + 1) > self.places.len() {
            self.rebuild(2 * self.places.len(), |_| true);
        }
        let mut at = self.home(identity);
        while self.places[at].row != 0 && self.places[at].identity != identity {
            at = (at + 1) & (self.places.len() - 1);
        }
        self.len += usize::from(self.places[at].row == 0);
        self.places[at] = Shortlist { identity, row, ..*list };
    }

    /// Forgets every identity that `keeps` does not keep.
    pub(crate) fn retain(&mut self, keeps: impl Fn(u32) -> bool) {
        self.rebuild(self.places.len(), keeps);
    }

    fn rebuild(&mut self, places: usize, keeps: impl Fn(u32) -> bool) {
        let old = std::mem::replace(&mut self.places, vec![Shortlist::default(); places].into());
        self.len = 0;
        for list in old.iter().filter(|list| list.row != 0 && keeps(list.identity)) {
            self.insert(list.identity, list.row, list);
        }
    }
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
    use super::{LANES, POINT, Shortlist, Shortlists};
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

        #[test]
        fn every_identity_has_its_list(pairs in vec((0u32..500, 0u32..9), 0..600)) {
            let mut lists = Shortlists::new(Shortlist::unknown());
            let mut plain = std::collections::BTreeMap::new();
            for (identity, row) in pairs.into_iter().filter(|(_, row)| *row > 0) {
                let mut list = Shortlist::default();
                list.set(3, [identity as u16, 1, 2, row as u16]);
                lists.insert(identity, row, &list);
                plain.insert(identity, row);
            }
            for round in 0..2 {
                for identity in 0..600 {
                    let list = lists.get(identity);
                    let row = plain.get(&identity).copied().unwrap_or(0);
                    prop_assert_eq!(list.row(), row);
                    prop_assert!(row == 0 || list.lanes[3] == identity as u16 && list.lanes[POINT + 3] == row as u16);
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
        assert_eq!(settle(1, 86), Settled::By(HostVerdict::Allow, 6));
        assert_eq!(settle(1, 87), denied);
        assert_eq!(settle(2, 86), Settled::Open);
        assert_eq!(settle(0, 86), denied);
        assert!(table.is_closed());
    }
}
