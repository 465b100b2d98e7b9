//! Routes with everything a node needs to say about them: preferred source, metric, and "unreachable".

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{NetError, Netlink};

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Through a gateway on a device, with the source that the node's own packets get.
    Via {
        /// Next hop.
        gateway: IpAddr,
        /// Interface index.
        device: u32,
        /// Preferred source address.
        source: Option<IpAddr>,
    },
    /// Refused with an ICMP error.
    Unreachable,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRoute {
    /// Prefix.
    pub destination: IpNet,
    /// What it does.
    pub way: Way,
    /// Smaller wins; zero for IPv6 means the kernel's default of 1024.
    pub metric: u32,
}

impl NodeRoute {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let v4 = self.destination.addr().is_ipv4();
        message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(self.destination.network())));
        if self.metric != 0 {
            message.attributes.push(RouteAttribute::Priority(self.metric));
        }
        match self.way {
            Way::Via { gateway, device, source } => {
                message.header.kind = RouteType::Unicast;
                message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
                message.attributes.push(RouteAttribute::Oif(device));
                if let Some(source) = source {
                    message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
                }
            }
            Way::Unreachable => message.header.kind = RouteType::Unreachable,
        }
        message
    }
}

/// Worse than any metric that a person or a routing daemon chooses.
pub const WORST_METRIC: u32 = u32::MAX;

impl Netlink {
    /// Returns the unreachable routes of the worst metric in the main table: what this program leaves below its routes to pods.
    pub fn refusing_routes(&mut self) -> Result<Vec<NodeRoute>, NetError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self
                .request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)
                .map_err(|e| NetError::new("list routes", e))?;
            for answer in answers {
                let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
                let is_ours = message.header.table == RouteHeader::RT_TABLE_MAIN
                    && message.header.kind == RouteType::Unreachable
                    && message.attributes.contains(&RouteAttribute::Priority(WORST_METRIC));
                let destination = message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                    RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                    _ => None,
                });
                let net =
                    destination.and_then(|ip| IpNet::new(ip, message.header.destination_prefix_length).ok());
                if let Some(destination) = net.filter(|_| is_ours) {
                    found.push(NodeRoute { destination, way: Way::Unreachable, metric: WORST_METRIC });
                }
            }
        }
        Ok(found)
    }

    /// Adds `route`, or replaces the one with the same prefix and metric.
    pub fn replace_route(&mut self, route: &NodeRoute) -> Result<(), NetError> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewRoute(route.message()), flags)
            .map(drop)
            .map_err(|e| NetError::new(format!("add the route {}", route.destination), e))
    }

    /// Removes `route`; one that is gone already is fine.
    pub fn delete_route(&mut self, route: &NodeRoute) -> Result<(), NetError> {
        match self.request(RouteNetlinkMessage::DelRoute(route.message()), NLM_F_ACK) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other
                .map(drop)
                .map_err(|e| NetError::new(format!("remove the route {}", route.destination), e)),
        }
    }
}
