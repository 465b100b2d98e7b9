//! The decision points that an address leaves standing, where they are few: one cache line that answers without any other row.
//!
//! Most rules name who they are about, so of a program's hundreds of rules few are about one address. Those few are written out, a
//! lane each, in order:
//!
//! ```text
//!   first port   ─┐
//!   ports beyond ─┼─ eight lanes, compared all at once with the packet's port and class; the first that agrees is the first point
//!   classes      ─┤  (class: family and one of TCP, UDP, SCTP)
//!   point        ─┘
//! ```
//!
//! A point takes a lane per interval of ports. Points that look at more than the address, the class and the destination port cannot be
//! written so, and more than eight lanes do not fit: such a row has a lane that agrees with everything and says "ask the rows".

use std::net::IpAddr;

use smallvec::SmallVec;

use super::program::{Outcome, Program};
use super::rows::IcmpView;
use super::rules::{CompiledRule, SCTP, Side, TCP, UDP};
use crate::packet::PacketTuple;

const LANES: usize = 8;

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
    first: [u16; LANES],
    beyond: [u16; LANES],
    classes: [u16; LANES],
    point: [u16; LANES],
}

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
    let class = match packet.protocol {
        TCP => 1,
        UDP => 2,
        SCTP => 4,
        _ => 0,
    };
    let class = if packet.destination.is_ipv4() { class } else { class << PROTOCOLS.len() };
    packet.destination_port.map_or((0, 0), |port| (class, port))
}

/// Intervals of ports: the first, and how many come after it.
type Intervals = SmallVec<[(u16, u16); 4]>;

/// Returns what the lanes of a point hold beside its number; `None` when lanes cannot hold it.
fn lanes(program: &Program, bit: usize, end: End) -> Option<(u16, Intervals)> {
    let (point, step) = (&program.points[bit], program.steps[bit]);
    let Some(rule) = point.rule.as_deref() else { return None };
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
        let both = [true, false].into_iter().flat_map(|is_ipv4| PROTOCOLS.map(|protocol| (is_ipv4, protocol)));
        for (class, (is_ipv4, protocol)) in both.enumerate() {
            classes |= u16::from(rule.matches_protocol(is_ipv4, protocol)) << class;
        }
    }
    Some((classes, intervals(&rule.destination)))
}

/// Returns the destination ports that may satisfy the side.
fn intervals(side: &Side) -> Intervals {
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
                (list.first[lane], list.beyond[lane]) = (first, beyond);
                (list.classes[lane], list.point[lane]) = (classes, point);
                lane += 1;
            }
        }
        list
    }

    fn unknown() -> Self {
        let mut list = Self::default();
        (list.beyond[0], list.classes[0], list.point[0]) = (u16::MAX, CLASSES, UNKNOWN);
        list
    }

    /// Returns what the list says of a packet with this class, which is not zero, and port.
    #[inline(always)]
    pub(crate) fn find(&self, (class, port): (u16, u16)) -> Listed {
        let hits = self.hits(class, port);
        if hits == 0 {
            return Listed::Nothing;
        }
        let lane = hits.trailing_zeros() as usize & (LANES - 1);
        let point = self.point[lane];
        match self.classes[lane] & (ALLOW | DENY) {
            0 if point == UNKNOWN => Listed::Unknown,
            0 => Listed::First(point),
            action => Listed::Final(point, action == ALLOW),
        }
    }

    /// A bit for every lane that agrees.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn hits(&self, class: u16, port: u16) -> u32 {
        // SAFETY: SSE2 is part of every x86_64; the function needs nothing else.
        unsafe { self.hits_at_once(class, port) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "sse2")]
    #[inline]
    fn hits_at_once(&self, class: u16, port: u16) -> u32 {
        use core::arch::x86_64::{
            _mm_and_si128, _mm_andnot_si128, _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16,
            _mm_set1_epi16, _mm_setr_epi16, _mm_setzero_si128, _mm_sub_epi16, _mm_subs_epu16,
        };
        let load = |lanes: &[u16; LANES]| {
            let [a, b, c, d, e, f, g, h] = lanes.map(u16::cast_signed);
            _mm_setr_epi16(a, b, c, d, e, f, g, h)
        };
        let zero = _mm_setzero_si128();
        let distance = _mm_sub_epi16(_mm_set1_epi16(port.cast_signed()), load(&self.first));
        let is_near = _mm_cmpeq_epi16(_mm_subs_epu16(distance, load(&self.beyond)), zero);
        let classes = _mm_and_si128(load(&self.classes), _mm_set1_epi16(class.cast_signed()));
        let agrees = _mm_andnot_si128(_mm_cmpeq_epi16(classes, zero), is_near);
        _mm_movemask_epi8(_mm_packs_epi16(agrees, zero)).cast_unsigned()
    }

    /// A bit for every lane that agrees.
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    fn hits(&self, class: u16, port: u16) -> u32 {
        self.hits_one_by_one(class, port)
    }

    /// The same without help from the processor.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn hits_one_by_one(&self, class: u16, port: u16) -> u32 {
        let agrees = |lane: usize| {
            port.wrapping_sub(self.first[lane]) <= self.beyond[lane] && self.classes[lane] & class != 0
        };
        (0..LANES).map(|lane| u32::from(agrees(lane)) << lane).sum()
    }
}
