//! Later fragments follow their first: a bounded record of (addresses, protocol, identification) to flow and direction.
//!
//! The record is made when a first fragment passes, so a refused first fragment takes the others with it.

use std::net::IpAddr;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use margay_wire::IpHeaders;

use crate::flow::{FlowKey, Side};
use crate::time::Nanos;

/// Most datagrams followed at a time.
const LIMIT: usize = 4096;
/// How long a datagram may take (Linux `ipfrag_time`).
const HOLD: Nanos = Nanos::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

/// First fragments that passed.
#[derive(Debug, Default)]
pub struct FirstFragments {
    seen: HashMap<Datagram, (FlowKey, Side, Nanos), FixedState>,
}

impl FirstFragments {
    fn datagram(ip: &IpHeaders, id: u32) -> Datagram {
        Datagram { source: ip.source, destination: ip.destination, protocol: ip.protocol, id }
    }

    /// Remembers that the datagram's first fragment passed as part of the flow `key`.
    pub fn remember(
        &mut self,
        ip: &IpHeaders,
        id: u32,
        key: FlowKey,
        direction: usize,
        opener: Side,
        now: Nanos,
    ) {
        if self.seen.len() >= LIMIT {
            self.expire(now);
        }
        if self.seen.len() < LIMIT {
            let side = if direction == 0 { opener } else { super::other(opener) };
            self.seen.insert(Self::datagram(ip, id), (key, side, now + HOLD));
        }
    }

    /// Returns the flow and the sending side of a later fragment's datagram.
    pub fn recall(&self, ip: &IpHeaders, id: u32, now: Nanos) -> Option<(FlowKey, Side)> {
        let (key, side, until) = self.seen.get(&Self::datagram(ip, id))?;
        (*until > now).then_some((*key, *side))
    }

    /// Forgets datagrams whose time is over.
    pub fn expire(&mut self, now: Nanos) {
        if !self.seen.is_empty() {
            self.seen.retain(|_, (_, _, until)| *until > now);
        }
    }
}
