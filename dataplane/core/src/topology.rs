//! The node as a switch: its ports, its addresses, its routes. An immutable value, built beside the packet path and published whole.
//!
//! `TopologyBuilder` is where the shell puts what it learnt from the CNI plug-in and from netlink; [`Topology`] is what a worker
//! reads. Ports keep their index for as long as they live; an index may be used again after the port is gone, so everything that
//! remembers an index also remembers [`Topology::generation`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;
use margay_policy_engine::packet::EndpointId;
use margay_wire::MacAddr;
use prefix_trie::joint::JointPrefixMap;

use crate::spread::{Spread, WorkerIndex};
use crate::tunnel::{Encryption, Family};

/// Index of a port within one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortIndex(pub u16);

impl PortIndex {
    /// The tunnel: what is sealed leaves by it, what was opened came from it. No device has this index.
    pub const TUNNEL: Self = Self(8191);
}

impl fmt::Display for PortIndex {
    /// Writes what stands for the port where its device has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TUNNEL => f.write_str("tunnel"),
            Self(number) => write!(f, "port {number}"),
        }
    }
}

/// What stands at the other end of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A pod behind our end of its veth.
    Pod {
        /// The endpoint that policy knows.
        endpoint: EndpointId,
        /// The pod's own Ethernet address, as the CNI plug-in set it; never learnt.
        pod_mac: MacAddr,
        /// The pod's own addresses, as the CNI plug-in set them.
        addresses: Vec<IpAddr>,
    },
    /// `mgy0x`, behind which is this machine's kernel.
    Host {
        /// Ethernet address of `mgy0`, the kernel's end.
        kernel_mac: MacAddr,
    },
    /// A NIC.
    Uplink,
}

/// One line into the box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub index: PortIndex,
    /// Device name, for people.
    pub name: String,
    /// What is behind it.
    pub kind: PortKind,
    /// Our own Ethernet address on it: the source of what we send.
    pub mac: MacAddr,
    /// Largest IP packet that may leave through it, in bytes, Ethernet header not counted.
    pub mtu: u32,
}

/// Where packets to a prefix go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Straight to a neighbour on a port of ours. `gateway` absent means that the destination is on-link.
    Port {
        /// The port.
        port: PortIndex,
        /// The next hop's address.
        gateway: Option<IpAddr>,
    },
    /// To this machine's kernel, which knows the way (a device that we do not own, or its own addresses).
    Host,
    /// Nowhere: answered with ICMP unreachable.
    Unreachable,
}

/// What the shell knows; see the fields of [`Topology`] for the meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologyBuilder {
    /// Ports, in any order.
    pub ports: Vec<Port>,
    /// Addresses of this node on any of its interfaces, at this instant (PM-D21), loopback not included.
    pub node_addresses: Vec<IpAddr>,
    /// Pod CIDRs of this node.
    pub local_pod_cidrs: Vec<IpNet>,
    /// Pod CIDRs of the other nodes, each with the node's addresses (its next hops).
    pub remote_pod_cidrs: Vec<(IpNet, Vec<IpAddr>)>,
    /// Routes; longest prefix wins. Local pods and node addresses need none.
    pub routes: Vec<(IpNet, Route)>,
    /// Resolved neighbours: (port, address) to Ethernet address.
    pub neighbours: Vec<(PortIndex, IpAddr, MacAddr)>,
}

/// The node as workers see it.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    generation: u64,
    ports: Vec<Option<Port>>,
    local_pods: HashMap<IpAddr, PortIndex, foldhash::fast::FixedState>,
    node_addresses: HashSet<IpAddr, foldhash::fast::FixedState>,
    host_port: Option<PortIndex>,
    local_pod_cidrs: Vec<IpNet>,
    remote_pods: JointPrefixMap<IpNet, Vec<IpAddr>>,
    routes: JointPrefixMap<IpNet, Route>,
    neighbours: HashMap<(PortIndex, IpAddr), MacAddr, foldhash::fast::FixedState>,
    spread: Spread,
    encryption: Option<Arc<Encryption>>,
    tunnel: Option<Port>,
}

/// What the outer headers and sealing take of an uplink's MTU (policy model 25.1): of IPv4, of IPv6.
const TUNNEL_OVERHEAD: [u32; 2] = [60, 80];
/// Our Ethernet address on the tunnel, which nobody sees.
pub(crate) const TUNNEL_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0]);

impl TopologyBuilder {
    /// Returns the immutable value. `generation` must grow with every call of one agent process.
    ///
    /// Of two pods with one address the one with the smaller port index keeps it; the CNI plug-in never lets that happen.
    pub fn build(self, generation: u64) -> Topology {
        let mut topology =
            Topology { generation, local_pod_cidrs: self.local_pod_cidrs, ..Topology::default() };
        for port in self.ports {
            match &port.kind {
                PortKind::Pod { addresses, .. } => {
                    for address in addresses {
                        let owner = topology.local_pods.entry(*address).or_insert(port.index);
                        *owner = (*owner).min(port.index);
                    }
                }
                PortKind::Host { .. } => topology.host_port = Some(port.index),
                PortKind::Uplink => {}
            }
            let at = usize::from(port.index.0);
            if topology.ports.len() <= at {
                topology.ports.resize(at + 1, None);
            }
            topology.ports[at] = Some(port);
        }
        topology.node_addresses.extend(self.node_addresses);
        for (cidr, node) in self.remote_pod_cidrs {
            topology.remote_pods.insert(cidr, node);
        }
        for (prefix, route) in self.routes {
            topology.routes.insert(prefix, route);
        }
        topology.neighbours.extend(self.neighbours.into_iter().map(|(port, ip, mac)| ((port, ip), mac)));
        topology
    }
}

impl Topology {
    /// Returns the number given to [`TopologyBuilder::build`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the same node with its ports spread over several workers. It must be the same in every topology of an agent process.
    pub fn spread_over(mut self, spread: Spread) -> Self {
        self.spread = spread;
        self
    }

    /// Returns the same node under an encryption plan. A plan is followed by another, which may be empty, and never by none: see
    /// [`Topology::revision`].
    pub fn with_encryption(mut self, encryption: Option<Arc<Encryption>>) -> Self {
        self.tunnel = encryption.as_ref().map(|_| Port {
            index: PortIndex::TUNNEL,
            name: "tunnel".to_owned(),
            kind: PortKind::Uplink,
            mac: TUNNEL_MAC,
            mtu: self.uplink_mtu(),
        });
        self.encryption = encryption;
        self
    }

    /// Returns the encryption plan in force.
    #[inline]
    pub fn encryption(&self) -> Option<&Arc<Encryption>> {
        self.encryption.as_ref()
    }

    /// Returns whether it depends on encryption where packets may go: some are sealed, or refused in clear.
    #[inline]
    pub fn encrypts(&self) -> bool {
        self.encryption.as_ref().is_some_and(|encryption| !encryption.is_idle())
    }

    /// Returns a number that grows with every topology and with every encryption plan.
    #[inline]
    pub fn revision(&self) -> u64 {
        self.generation + self.encryption.as_ref().map_or(0, |encryption| encryption.generation())
    }

    /// Returns the smallest MTU of an uplink.
    fn uplink_mtu(&self) -> u32 {
        let uplinks = self.ports().filter(|port| matches!(port.kind, PortKind::Uplink));
        uplinks.map(|port| port.mtu).min().unwrap_or(1500)
    }

    /// Returns the largest packet that the tunnel of a family takes: what fits every uplink, and not more than the plan says.
    pub fn tunnel_mtu(&self, family: &Family) -> u32 {
        let overhead = TUNNEL_OVERHEAD[usize::from(family.endpoint().is_ipv6())];
        let fits = self.tunnel.as_ref().map_or(0, |tunnel| tunnel.mtu.saturating_sub(overhead));
        match family.mtu() {
            0 => fits,
            asked => fits.min(asked.into()),
        }
    }

    /// Returns how ports are spread over workers.
    pub fn spread(&self) -> &Spread {
        &self.spread
    }

    /// Returns the worker whose port the local pod with `address` is behind.
    pub fn home(&self, address: IpAddr) -> Option<WorkerIndex> {
        let port = self.port(self.local_pod(address)?)?;
        Some(self.spread.owner(port.index, &port.kind, 0))
    }

    /// Returns the port with `index`, while it lives.
    pub fn port(&self, index: PortIndex) -> Option<&Port> {
        if index == PortIndex::TUNNEL {
            return self.tunnel.as_ref();
        }
        self.ports.get(usize::from(index.0))?.as_ref()
    }

    /// Returns every living port of a device, in order of index.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().flatten()
    }

    /// Returns the port of the local pod that owns `address`.
    pub fn local_pod(&self, address: IpAddr) -> Option<PortIndex> {
        self.local_pods.get(&address).copied()
    }

    /// Returns whether `address` is this node's own.
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.node_addresses.contains(&address)
    }

    /// Returns this node's addresses, in no order.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.node_addresses.iter().copied()
    }

    /// Returns an address of this node of the same family as `like`: the source of ICMP errors we send. Smallest first, so runs repeat.
    pub fn node_address_like(&self, like: IpAddr) -> Option<IpAddr> {
        let global = |a: &&IpAddr| match a {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        };
        self.node_addresses.iter().filter(|a| a.is_ipv4() == like.is_ipv4()).filter(global).min().copied()
    }

    /// Returns the host port.
    pub fn host_port(&self) -> Option<PortIndex> {
        self.host_port
    }

    /// Returns whether `address` lies in a pod CIDR of this node.
    pub fn is_local_pod_cidr(&self, address: IpAddr) -> bool {
        self.local_pod_cidrs.iter().any(|cidr| cidr.contains(&address))
    }

    /// Returns the addresses of the node whose pod CIDR covers `address`, when that is another node.
    pub fn remote_pod_node(&self, address: IpAddr) -> Option<&[IpAddr]> {
        self.remote_pods.get_lpm(&IpNet::from(address)).map(|(_, node)| node.as_slice())
    }

    /// Returns the route for `destination` by longest prefix.
    ///
    /// Source: RFC 1812 §5.2.4.3.
    pub fn route(&self, destination: IpAddr) -> Option<&Route> {
        self.routes.get_lpm(&IpNet::from(destination)).map(|(_, route)| route)
    }

    /// Returns the resolved Ethernet address of a neighbour.
    pub fn neighbour(&self, port: PortIndex, address: IpAddr) -> Option<MacAddr> {
        self.neighbours.get(&(port, address)).copied()
    }
}
