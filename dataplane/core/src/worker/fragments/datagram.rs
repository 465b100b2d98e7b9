//! One fragmented datagram: what of it has been seen, and what became of its first fragment.

use std::net::IpAddr;

use margay_wire::{Fragment, IpHeaders};

use super::queue::Link;
use crate::flow::{FlowKey, Side};
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::verdict::DropReason;

/// Most fragments of one datagram. The largest datagram has 53 of an IPv6 path's smallest MTU.
pub(super) const MAX_FRAGMENTS: usize = 64;

/// What names a datagram (RFC 791 §3.2, RFC 8200 §4.5), and the port that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) port: PortIndex,
    source: IpAddr,
    destination: IpAddr,
    /// Zero for IPv6, where the fragments of one datagram may name different ones.
    protocol: u8,
    id: u32,
}

impl Key {
    pub(super) fn new(port: PortIndex, ip: &IpHeaders, id: u32) -> Self {
        let protocol = if ip.source.is_ipv4() { ip.protocol } else { 0 };
        Self { port, source: ip.source, destination: ip.destination, protocol, id }
    }
}

/// The bytes that a fragment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u16,
    pub(super) end: u16,
    pub(super) more: bool,
}

impl Extent {
    /// Returns identification and extent of a fragment; `None` for a whole packet.
    pub(super) fn of(fragment: Fragment) -> Option<(u32, Self)> {
        match fragment {
            Fragment::None => None,
            Fragment::First { id, end } => Some((id, Self { start: 0, end, more: true })),
            Fragment::Later { id, start, end, more } => Some((id, Self { start, end, more })),
        }
    }
}

/// What its fragments do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Wait: the first has not come.
    Waiting,
    /// Go with this flow, sent by this side.
    Followed(FlowKey, Side),
    /// End as the first did.
    Refused(DropReason),
    /// End: some overlap, so nobody can say what the datagram is.
    Poisoned,
}

/// What a fragment is to those that came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// New bytes.
    New,
    /// Exactly one that came before.
    Duplicate,
    /// Other bytes for a place that is taken, or a second end.
    Overlap,
    /// One too many.
    TooMany,
}

/// One datagram.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) key: Key,
    pub(super) state: State,
    pub(super) expires: Nanos,
    pub(super) link: Link,
    /// Frames that wait for the first.
    pub(super) held: u16,
    /// Length of the whole, once the last fragment has come.
    total: Option<u16>,
    received: u32,
    count: u8,
    extents: [(u16, u16); MAX_FRAGMENTS],
}

impl Datagram {
    pub(super) fn new(key: Key, expires: Nanos) -> Self {
        Self {
            key,
            state: State::Waiting,
            expires,
            link: Link::default(),
            held: 0,
            total: None,
            received: 0,
            count: 0,
            extents: [(0, 0); MAX_FRAGMENTS],
        }
    }

    /// Takes note of a fragment that is [`Fit::New`]; any other leaves the record as it was.
    ///
    /// Source: RFC 5722 §4; RFC 8200 §4.5, by which exact duplicates may be dropped alone.
    pub(super) fn take(&mut self, fragment: Extent) -> Fit {
        let Extent { start, end, more } = fragment;
        let taken = &self.extents[..usize::from(self.count)];
        let is_last = self.total == Some(end);
        if taken.contains(&(start, end)) && more != is_last {
            return Fit::Duplicate;
        }
        let overlaps = taken.iter().any(|(from, to)| start < *to && *from < end);
        let beyond = match (self.total, more) {
            (Some(total), true) => end > total,
            (Some(total), false) => end != total,
            (None, true) => false,
            (None, false) => taken.iter().any(|(_, to)| *to > end),
        };
        if overlaps || beyond {
            return Fit::Overlap;
        }
        let Some(place) = self.extents.get_mut(usize::from(self.count)) else { return Fit::TooMany };
        *place = (start, end);
        self.count += 1;
        self.received += u32::from(end - start);
        if !more {
            self.total = Some(end);
        }
        Fit::New
    }

    /// Returns where the fragment begins that was taken last.
    pub(super) fn last_start(&self) -> u16 {
        self.extents[..usize::from(self.count)].last().map_or(0, |(start, _)| *start)
    }

    /// Returns whether every byte has come.
    pub(super) fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| u32::from(total) == self.received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u16, end: u16, more: bool) -> Extent {
        Extent { start, end, more }
    }

    fn datagram() -> Datagram {
        let ip: IpAddr = [10, 0, 0, 1].into();
        let key = Key { port: PortIndex(0), source: ip, destination: ip, protocol: 17, id: 1 };
        Datagram::new(key, Nanos(0))
    }

    #[test]
    fn fragments_fit_in_any_order_and_complete_the_whole() {
        let parts = [extent(0, 16, true), extent(16, 40, true), extent(40, 41, false)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut datagram = datagram();
            for (nth, at) in order.into_iter().enumerate() {
                assert!(!datagram.is_complete(), "after {nth} of {order:?}");
                assert_eq!(datagram.take(parts[at]), Fit::New);
                assert_eq!(datagram.take(parts[at]), Fit::Duplicate);
            }
            assert!(datagram.is_complete());
        }
    }

    #[test]
    fn whatever_disagrees_overlaps() {
        for (first, second) in [
            (extent(0, 16, true), extent(8, 24, true)),
            (extent(8, 24, true), extent(0, 16, true)),
            (extent(0, 16, true), extent(0, 24, true)),
            (extent(0, 24, true), extent(8, 16, true)),
            // Two ends.
            (extent(16, 20, false), extent(24, 28, false)),
            // Beyond the end, whichever came first.
            (extent(16, 20, false), extent(24, 32, true)),
            (extent(24, 32, true), extent(16, 20, false)),
            // The same bytes, but one says that they are the last.
            (extent(16, 24, false), extent(16, 24, true)),
            (extent(16, 24, true), extent(16, 24, false)),
        ] {
            let mut datagram = datagram();
            assert_eq!(datagram.take(first), Fit::New);
            assert_eq!(datagram.take(second), Fit::Overlap, "{first:?}, {second:?}");
        }
    }

    #[test]
    fn their_number_is_bounded() {
        let mut datagram = datagram();
        for nth in 0..MAX_FRAGMENTS as u16 {
            assert_eq!(datagram.take(extent(nth * 8, nth * 8 + 8, true)), Fit::New);
        }
        assert_eq!(datagram.take(extent(4096, 4104, true)), Fit::TooMany);
    }
}
