//! The plan as the packet path asks it: is this packet sealed, and for whom; must it not be in clear?

use std::net::IpAddr;
use std::sync::Arc;

use super::PeerId;
use super::family::Family;
use super::plan::{EncryptionPlan, FamilyPlan};
use super::prefixes::Prefixes;

/// A compiled [`EncryptionPlan`]; all workers share it.
#[derive(Debug)]
pub struct Encryption {
    generation: u64,
    /// IPv4 over IPv4, IPv6 over IPv6.
    families: [Option<Arc<Family>>; 2],
    selected: Prefixes<bool>,
    required: Prefixes<bool>,
    is_idle: bool,
}

impl Encryption {
    /// Compiles a plan that follows `before`.
    pub fn new(plan: &EncryptionPlan, before: Option<&Self>) -> Self {
        let family = |plan: &Option<FamilyPlan>, at: usize| {
            let before = before.and_then(|before| before.families[at].as_deref());
            plan.as_ref().map(|plan| Arc::new(Family::new(plan, before)))
        };
        let has_peers = |plan: &Option<FamilyPlan>| plan.as_ref().is_some_and(|plan| !plan.peers.is_empty());
        let forbids = plan.required.iter().any(|(_, is_required)| *is_required);
        Self {
            generation: plan.generation,
            families: [family(&plan.v4, 0), family(&plan.v6, 1)],
            selected: Prefixes::new(plan.selected.iter().copied()),
            required: Prefixes::new(plan.required.iter().copied()),
            is_idle: !has_peers(&plan.v4) && !has_peers(&plan.v6) && !forbids,
        }
    }

    /// Returns the plan's number.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether no packet is sealed, and none is refused in clear: there is no peer, and nothing that must be encrypted. So it is once
    /// encryption was switched off; datagrams may still come for an end of ours.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// Returns both tunnels: of IPv4 and of IPv6.
    pub fn families(&self) -> &[Option<Arc<Family>>; 2] {
        &self.families
    }

    /// Returns the tunnel that a frame from an uplink is a datagram of.
    #[inline]
    pub fn addressed(&self, frame: &[u8]) -> Option<&Arc<Family>> {
        self.families.iter().flatten().find(|family| family.is_addressed(frame))
    }

    /// Returns the tunnel for packets to or from `address`.
    #[inline]
    pub fn family(&self, address: IpAddr) -> Option<&Arc<Family>> {
        self.families[usize::from(address.is_ipv6())].as_ref()
    }

    /// Returns the peer that a packet is to be sealed for.
    pub fn peer_for(&self, source: IpAddr, destination: IpAddr) -> Option<PeerId> {
        let peer = self.family(destination)?.peer_for(destination)?;
        self.is_selected(source).then_some(peer)
    }

    /// Whether a packet must not leave in clear (policy model 32.4).
    pub fn forbids(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.required.find(destination) == Some(true) && self.is_selected(source)
    }

    /// Whether a packet that came in clear should have come sealed (policy model 25.7): it claims an address that must be sealed, or one of
    /// a peer with a session. `to_node` is whether it goes to this node itself; node addresses take part with host encryption only.
    pub fn expects(&self, source: IpAddr, destination: IpAddr, to_node: bool) -> bool {
        let family = self.family(source);
        if to_node && !family.is_some_and(|family| family.has_hosts()) || !self.is_selected(destination) {
            return false;
        }
        let is_peers = |family: &Family| family.peer_for(source).is_some_and(|peer| family.is_live(peer));
        self.required.find(source) == Some(true) || family.is_some_and(|family| is_peers(family))
    }

    /// Whether packets from `source` may be refused in clear one moment and not the next, because its sessions come and go.
    pub fn is_moody(&self, source: IpAddr) -> bool {
        self.family(source).is_some_and(|family| family.peer_for(source).is_some())
    }

    fn is_selected(&self, local: IpAddr) -> bool {
        self.selected.find(local).unwrap_or(true)
    }
}
