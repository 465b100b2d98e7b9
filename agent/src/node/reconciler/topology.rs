//! Where packets go: what the workers are told about links, addresses, routes and neighbours, and what the kernel is told about pods.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use margay_core::PortIndex;
use margay_core::topology::{PortKind, TopologyBuilder};
use margay_io::netlink::{Address, KernelView, Role, fill_topology};

use super::{Reconciler, chain};
use crate::node::host_port::wanted_routes;

/// Where pods are.
struct PodNets {
    /// On this node: its ranges, and the addresses of the pods that it has.
    local: Vec<IpNet>,
    /// The ranges of all nodes.
    all: BTreeSet<IpNet>,
}

impl Reconciler {
    /// Tells workers and kernel where packets go, where that changed.
    pub(super) fn publish_topology(&mut self) {
        if !std::mem::take(&mut self.topology_changed) {
            return;
        }
        let view = self.follower.current();
        let builder = self.topology_of(&view);
        let pods = PodNets {
            local: builder.local_pod_cidrs.iter().copied().chain(self.local_pods()).collect(),
            all: self.engine.model().nodes.values().flat_map(|node| node.pod_cidrs.iter().copied()).collect(),
        };
        let own = builder.node_addresses.iter().filter_map(|address| match address {
            IpAddr::V6(v6) if !v6.is_unicast_link_local() => Some(*v6),
            _ => None,
        });
        let own: BTreeSet<Ipv6Addr> = own.collect();
        let sources = self.engine.model().nodes.get(&self.node).map(|node| node.addresses.clone());
        let sources: Vec<IpAddr> =
            sources.unwrap_or_default().into_iter().filter(|a| builder.node_addresses.contains(a)).collect();
        if self.published.as_ref() != Some(&builder) {
            let mut board = self.board.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            board.pod_cidrs.clone_from(&builder.local_pod_cidrs);
            drop(board);
            self.published = Some(builder.clone());
            self.topology_generation += 1;
            self.dataplane.publish_topology(Arc::new(builder.build(self.topology_generation)));
        }
        self.guard_uplinks(&pods, own);
        self.route_to_pods(&view, &pods, &sources);
    }

    /// What the workers are told: ports, and the node as the kernel and the Node objects have it.
    fn topology_of(&self, view: &KernelView) -> TopologyBuilder {
        let mut builder = TopologyBuilder {
            ports: self.ports.values().map(|(port, _)| port.clone()).collect(),
            ..Default::default()
        };
        let ours = self.ports.values().filter_map(|(port, _)| {
            let role = match port.kind {
                PortKind::Pod { .. } => Role::Pod,
                PortKind::Host { .. } => Role::Host,
                PortKind::Uplink => Role::Uplink,
            };
            Some((port.index, *self.devices.get(&port.index)?, role))
        });
        fill_topology(view, &ours.collect::<Vec<(PortIndex, u32, Role)>>(), &mut builder);
        for port in &mut builder.ports {
            let link = self.devices.get(&port.index).and_then(|device| view.links.get(device));
            let Some(link) = link else { continue };
            // An uplink's address and MTU follow the kernel's; of a pod's port the MTU, for no more than that gets through its veth.
            match port.kind {
                PortKind::Uplink => {
                    port.mac = link.mac.unwrap_or(port.mac);
                    port.mtu = link.mtu;
                }
                PortKind::Pod { .. } => port.mtu = link.mtu,
                PortKind::Host { .. } => {}
            }
        }
        for node in self.engine.model().nodes.values() {
            if node.name == self.node {
                builder.local_pod_cidrs.extend(node.pod_cidrs.iter().copied());
            } else {
                let cidrs = node.pod_cidrs.iter().map(|cidr| (*cidr, node.addresses.clone()));
                builder.remote_pod_cidrs.extend(cidrs);
            }
        }
        builder
    }

    /// Every address of this node's pods.
    fn local_pods(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.endpoints.values().flat_map(|record| record.addresses.iter().map(|a| IpNet::from(*a)))
    }

    /// Tells the programs on uplinks which destinations are pods, and the kernel which sources nobody else may have.
    fn guard_uplinks(&mut self, pods: &PodNets, own: BTreeSet<Ipv6Addr>) {
        let prefixes = (pods.local.clone(), pods.all.iter().copied().collect::<Vec<_>>());
        if prefixes != self.uplink_prefixes {
            match self.dataplane.set_uplink_prefixes(&prefixes.0, &prefixes.1) {
                Ok(()) => self.uplink_prefixes = prefixes,
                Err(error) => tracing::warn!(error = chain(&error), "the uplink filter could not be changed"),
            }
        }
        if self.refused != own {
            match self.netlink.refuse_forged_own_sources(&own) {
                Ok(()) => self.refused = own,
                Err(error) => tracing::warn!(
                    error = chain(&error),
                    "machines that this node routes for could pass for it over IPv6: the rules against that are not in place"
                ),
            }
        }
    }

    /// Has the kernel's own packets to pods come to the host port, from one of `sources`.
    fn route_to_pods(&mut self, view: &KernelView, pods: &PodNets, sources: &[IpAddr]) {
        let remembered: BTreeSet<IpNet> = pods.all.iter().copied().chain(self.local_pods()).collect();
        let present = |cidr: &IpNet| view.routes.iter().any(|route| route.prefix == *cidr);
        if !remembered.iter().all(present) || !self.hosts().iter().all(|host| present(&IpNet::from(*host))) {
            // Somebody removed one, or the device was made anew; what is there already is only replaced by itself.
            self.routes.invalidate();
        }
        let device = self.kernel_end.index;
        let gateways = [self.config.gateway_v4, self.config.gateway_v6];
        let interface = self.assign_interface_addresses();
        let hosts = self.hosts();
        self.forget_host_routes(&hosts);
        let wanted = wanted_routes(
            device,
            gateways,
            |destination| {
                let is_remote = !pods.local.iter().any(|net| net.contains(destination));
                let addresses: Vec<IpAddr> =
                    if is_remote { interface.iter().copied().collect() } else { Vec::new() };
                addresses
                    .into_iter()
                    .chain(sources.iter().copied())
                    .find(|source| source.is_ipv4() == destination.addr().is_ipv4())
            },
            &remembered,
            &hosts,
        );
        let mut result = self.routes.reconcile(&mut self.netlink, &wanted);
        if result.is_ok() && self.release_interface_addresses(&interface) {
            self.routes.invalidate();
            result = self.routes.reconcile(&mut self.netlink, &wanted);
        }
        self.route_error = result.err().map(|error| chain(&error));
        if let Some(error) = &self.route_error {
            tracing::warn!(error, "the kernel's routes to pods are not as wanted");
            self.topology_changed = true;
        }
    }

    /// Has the kernel resolve the other nodes' addresses and whatever packets wait for.
    pub(super) fn resolve_neighbours(&mut self) {
        let mut wanted: BTreeSet<(PortIndex, IpAddr)> = std::mem::take(&mut self.asked);
        wanted.extend(self.wanted.try_iter().flatten());
        let view = self.follower.current();
        let uplinks: Vec<(PortIndex, u32)> = self
            .ports
            .values()
            .filter(|(port, _)| matches!(port.kind, PortKind::Uplink))
            .filter_map(|(port, _)| Some((port.index, *self.devices.get(&port.index)?)))
            .collect();
        for node in self.engine.model().nodes.values().filter(|node| node.name != self.node) {
            for address in &node.addresses {
                for (port, device) in &uplinks {
                    let reaches = |at: &Address| {
                        at.ifindex == *device
                            && IpNet::new(at.ip, at.prefix).is_ok_and(|net| net.contains(address))
                    };
                    if view.addresses.iter().any(reaches) {
                        wanted.insert((*port, *address));
                    }
                }
            }
        }
        for (port, address) in wanted.difference(&self.resolved.clone()) {
            let Some(device) = self.devices.get(port) else { continue };
            match self.follower.resolve(*device, *address) {
                Ok(()) => drop(self.resolved.insert((*port, *address))),
                Err(error) => {
                    tracing::debug!(%address, error = chain(&error), "the next hop cannot be resolved")
                }
            }
        }
    }
}
