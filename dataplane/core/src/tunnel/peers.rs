//! One peer, and whose an address is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::{PeerId, PeerReport, PeerSpec};

/// One peer of this worker.
pub(super) struct Peer {
    pub(super) spec: PeerSpec,
    pub(super) tunnel: Tunn,
    /// Where it was heard from last, or is said to be.
    pub(super) endpoint: SocketAddr,
}

impl Peer {
    pub(super) fn new(spec: PeerSpec, key: x25519::StaticSecret, limiter: Arc<RateLimiter>) -> Self {
        let theirs = x25519::PublicKey::from(spec.key.0);
        let keepalive = spec.keepalive.filter(|seconds| *seconds > 0);
        let tunnel = Tunn::new(key, theirs, None, keepalive, spec.id.0, Some(limiter));
        Self { endpoint: spec.endpoint, spec, tunnel }
    }

    /// Takes in what is written about it now; its key is the same.
    pub(super) fn follow(&mut self, spec: &PeerSpec) {
        if self.spec.endpoint != spec.endpoint {
            self.endpoint = spec.endpoint;
        }
        self.spec = spec.clone();
    }

    pub(super) fn report(&self) -> PeerReport {
        let (handshake, sent, received, ..) = self.tunnel.stats();
        PeerReport {
            id: self.spec.id,
            key: self.spec.key,
            endpoint: self.endpoint,
            allowed: self.spec.allowed.clone(),
            handshake,
            sent: sent as u64,
            received: received as u64,
        }
    }
}

/// Addresses and the peers that may speak for them.
#[derive(Default)]
pub(super) struct Allowed {
    v4: PrefixMap<Ipv4Net, PeerId>,
    v6: PrefixMap<Ipv6Net, PeerId>,
}

impl Allowed {
    pub(super) fn new(nets: impl Iterator<Item = (IpNet, PeerId)>) -> Self {
        let mut allowed = Self::default();
        for (net, id) in nets {
            match net.trunc() {
                IpNet::V4(net) => drop(allowed.v4.insert(net, id)),
                IpNet::V6(net) => drop(allowed.v6.insert(net, id)),
            }
        }
        allowed
    }

    /// Returns who may speak for an address: the longest prefix says it.
    #[inline]
    pub(super) fn find(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, id)| *id),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, id)| *id),
        }
    }
}
