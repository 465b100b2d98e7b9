//! One routing-netlink socket, used as a function: a request in, the kernel's answers out.
//!
//! The socket belongs to the network namespace of the thread that opened it, so a [`Netlink`] opened inside
//! [`super::netns::NetNs::within`] keeps speaking for that namespace.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use margay_wire::MacAddr;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    BondMode, InfoBond, InfoData, InfoKind, InfoVeth, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::NetError;

/// The queueing discipline of [`Netlink::set_queue`].
pub const QUEUE: &str = "pfifo";

/// A network device, as far as we ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index in its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Ethernet address; all zero for a device without one.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether ARP is off.
    pub no_arp: bool,
    /// The free text an administrator (or we) attached to it.
    pub alias: Option<String>,
    /// What kind of virtual device, such as `veth` or `bridge`.
    pub kind: Option<String>,
    /// The device below, of a VLAN device and the like; of a veth, its peer.
    pub below: Option<u32>,
    /// The bond or bridge that it is part of.
    pub above: Option<u32>,
    /// Whether it has Ethernet addresses.
    pub is_ethernet: bool,
    /// Number of the XDP program on it.
    pub xdp: Option<u32>,
}

/// A route as the kernel reports it, main table only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// The prefix; a default route has length zero.
    pub destination: IpNet,
    /// The next hop, when there is one.
    pub gateway: Option<IpAddr>,
    /// Interface index of the way out.
    pub device: Option<u32>,
    /// Largest packet by this route; the device's MTU where it says nothing.
    pub mtu: Option<u32>,
}

/// One end of a veth pair to be made.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Ethernet address.
    pub mac: MacAddr,
    /// The namespace it is born in; `None` is the calling thread's.
    pub netns: Option<BorrowedFd<'a>>,
    /// Whether to switch ARP off.
    pub no_arp: bool,
}

/// A routing-netlink socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        open()
            .map(|socket| Self { socket, sequence: 0 })
            .map_err(|e| NetError::new("open a netlink socket", e))
    }

    /// Sends one request and returns every message of the answer.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut answers = Vec::new();
        loop {
            let (data, _) = self.socket.recv_from_full()?;
            let mut rest = data.as_slice();
            while rest.len() >= 16 {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                let length = (answer.header.length as usize).next_multiple_of(4).clamp(16, rest.len());
                rest = &rest[length..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
                        };
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }

    /// Makes a veth pair, both ends down. Fails with `EEXIST` when either name is taken, in one step: whoever succeeds owns the pair.
    pub fn add_veth(&mut self, ours: &VethEnd<'_>, theirs: &VethEnd<'_>, mtu: u32) -> Result<(), NetError> {
        let end = |end: &VethEnd<'_>| {
            let mut message = LinkMessage::default();
            if end.no_arp {
                message.header.flags = LinkFlags::Noarp;
                message.header.change_mask = LinkFlags::Noarp;
            }
            message.attributes.push(LinkAttribute::IfName(end.name.to_owned()));
            message.attributes.push(LinkAttribute::Address(end.mac.0.to_vec()));
            message.attributes.push(LinkAttribute::Mtu(mtu));
            if let Some(netns) = end.netns {
                message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
            }
            message
        };
        let mut message = end(ours);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(theirs)))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .map(drop)
            .map_err(|e| NetError::new(format!("make the veth pair {} / {}", ours.name, theirs.name), e))
    }

    /// Attaches a free text to a device. The kernel ignores one given at creation.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), NetError> {
        self.change(index, &format!("mark interface {index} as {alias:?}"), |m| {
            m.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        })
    }

    /// Makes a bridge, down.
    pub fn add_bridge(&mut self, name: &str) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .map(drop)
            .map_err(|e| NetError::new(format!("make the bridge {name}"), e))
    }

    /// Makes a bond of which one port is used and the others wait, down and without ports.
    pub fn add_bond(&mut self, name: &str) -> Result<(), NetError> {
        // The ports' carrier is looked at ten times a second.
        let how = vec![InfoBond::Mode(BondMode::ActiveBackup), InfoBond::MiiMon(100)];
        self.add_link(name, None, InfoKind::Bond, InfoData::Bond(how))
    }

    /// Makes a device for frames of `below` that carry the VLAN tag `id`, down.
    pub fn add_vlan(&mut self, name: &str, below: u32, id: u16) -> Result<(), NetError> {
        self.add_link(name, Some(below), InfoKind::Vlan, InfoData::Vlan(vec![InfoVlan::Id(id)]))
    }

    fn add_link(
        &mut self,
        name: &str,
        below: Option<u32>,
        kind: InfoKind,
        data: InfoData,
    ) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(below.map(LinkAttribute::Link));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind.clone()), LinkInfo::Data(data)]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .map(drop)
            .map_err(|e| NetError::new(format!("make the {kind} {name}"), e))
    }

    fn change(
        &mut self,
        index: u32,
        what: &str,
        edit: impl FnOnce(&mut LinkMessage),
    ) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        edit(&mut message);
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
            .map(drop)
            .map_err(|e| NetError::new(what, e))
    }

    /// Brings a device up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetError> {
        let verb = if up { "bring up" } else { "bring down" };
        self.change(index, &format!("{verb} interface {index}"), |m| {
            m.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
            m.header.change_mask = LinkFlags::Up;
        })
    }

    /// Makes device `index` a member of bridge `bridge`.
    pub fn set_master(&mut self, index: u32, bridge: u32) -> Result<(), NetError> {
        self.change(index, &format!("join interface {index} to bridge {bridge}"), |m| {
            m.attributes.push(LinkAttribute::Controller(bridge));
        })
    }

    /// Sets a device's MTU.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetError> {
        self.change(index, &format!("set the MTU of interface {index} to {mtu}"), |m| {
            m.attributes.push(LinkAttribute::Mtu(mtu));
        })
    }

    /// Deletes a device; a veth's other end goes with it.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.request(RouteNetlinkMessage::DelLink(message), NLM_F_ACK)
            .map(drop)
            .map_err(|e| NetError::new(format!("delete interface {index}"), e))
    }

    /// Returns every device of the namespace, in order of index.
    pub fn links(&mut self) -> Result<Vec<Link>, NetError> {
        let answers = self
            .request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
            .map_err(|e| NetError::new("list interfaces", e))?;
        let mut links: Vec<Link> = answers.into_iter().filter_map(link_of).collect();
        links.sort_by_key(|l| l.index);
        Ok(links)
    }

    /// Returns the device called `name`, when there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(link_of)),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(NetError::new(format!("look up interface {name}"), e)),
        }
    }

    /// Returns the device called `name`, or an error that says it is missing.
    pub fn existing(&mut self, name: &str) -> Result<Link, NetError> {
        self.link(name)?.ok_or_else(|| {
            NetError::new(format!("find interface {name}"), io::Error::from_raw_os_error(libc::ENODEV))
        })
    }

    /// Gives a device an address, without duplicate address detection. An address that is already there is no error.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), NetError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        if address.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
            .map_err(|e| NetError::new(format!("give interface {index} the address {address}"), e))
    }

    /// Takes an address away from interface `index`; one that is gone already is fine.
    pub fn remove_address(&mut self, index: u32, address: IpNet) -> Result<(), NetError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        match self.request(RouteNetlinkMessage::DelAddress(message), NLM_F_ACK) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other
                .map(drop)
                .map_err(|e| NetError::new(format!("take the address {address} from interface {index}"), e)),
        }
    }

    /// Returns the addresses of device `index`.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, NetError> {
        let answers = self
            .request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)
            .map_err(|e| NetError::new("list addresses", e))?;
        let mut addresses = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            if message.header.index != index {
                continue;
            }
            // IPv4 carries the peer in ADDRESS and our own in LOCAL; IPv6 has ADDRESS only.
            let mut own = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(address) => own = Some(*address),
                    AddressAttribute::Address(address) => own = own.or(Some(*address)),
                    _ => {}
                }
            }
            if let Some(net) = own.and_then(|a| IpNet::new(a, message.header.prefix_len).ok()) {
                addresses.push(net);
            }
        }
        addresses.sort();
        Ok(addresses)
    }

    /// Adds or replaces a route of the main table. Without a gateway the destination is on-link.
    pub fn add_route(
        &mut self,
        destination: IpNet,
        gateway: Option<IpAddr>,
        device: u32,
    ) -> Result<(), NetError> {
        self.add_route_of(destination, gateway, device, None)
    }

    /// As [`Netlink::add_route`], for packets of at most `mtu` bytes and TCP segments that fit them; the device's MTU where that is absent.
    pub fn add_route_of(
        &mut self,
        destination: IpNet,
        gateway: Option<IpAddr>,
        device: u32,
        mtu: Option<u32>,
    ) -> Result<(), NetError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match (gateway, destination) {
            (None, IpNet::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination.network())));
        }
        if let Some(gateway) = gateway {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        }
        message.attributes.push(RouteAttribute::Oif(device));
        if let Some(mtu) = mtu {
            let headers = if destination.addr().is_ipv4() { 40 } else { 60 };
            let metrics = vec![RouteMetric::Mtu(mtu), RouteMetric::Advmss(mtu.saturating_sub(headers))];
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        let via = gateway.map_or(String::new(), |g| format!(" via {g}"));
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
            .map_err(|e| NetError::new(format!("add the route {destination}{via} on interface {device}"), e))
    }

    /// Returns the unicast routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<RouteEntry>, NetError> {
        let mut routes = Vec::new();
        for (family, any) in
            [(AddressFamily::Inet, IpAddr::from([0u8; 4])), (AddressFamily::Inet6, IpAddr::from([0u8; 16]))]
        {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self
                .request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)
                .map_err(|e| NetError::new("list routes", e))?;
            for answer in answers {
                let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
                if message.header.table != RouteHeader::RT_TABLE_MAIN
                    || message.header.kind != RouteType::Unicast
                {
                    continue;
                }
                let (mut destination, mut gateway, mut device, mut mtu) = (any, None, None, None);
                for attribute in &message.attributes {
                    match attribute {
                        RouteAttribute::Destination(address) => destination = ip_of(address).unwrap_or(any),
                        RouteAttribute::Gateway(address) => gateway = ip_of(address),
                        RouteAttribute::Oif(index) => device = Some(*index),
                        RouteAttribute::Metrics(metrics) => {
                            mtu = metrics.iter().find_map(|metric| match metric {
                                RouteMetric::Mtu(mtu) => Some(*mtu),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
                if let Ok(destination) = IpNet::new(destination, message.header.destination_prefix_length) {
                    routes.push(RouteEntry { destination, gateway, device, mtu });
                }
            }
        }
        Ok(routes)
    }

    /// Returns the devices that have a `clsact` queueing discipline, which is where tc programs hang.
    pub fn devices_with_clsact(&mut self) -> Result<BTreeSet<u32>, NetError> {
        let answers = self
            .request(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), NLM_F_DUMP)
            .map_err(|e| NetError::new("list queueing disciplines", e))?;
        let found = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => Some(message),
            _ => None,
        });
        let is_clsact =
            |message: &TcMessage| message.attributes.contains(&TcAttribute::Kind("clsact".to_owned()));
        Ok(found.filter(is_clsact).filter_map(|message| u32::try_from(message.header.index).ok()).collect())
    }

    /// Returns the queueing discipline that a device sends through, such as `noqueue` or `fq_codel`.
    ///
    /// Errors: the kernel's.
    pub fn root_discipline(&mut self, index: u32) -> Result<Option<String>, NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let answers = self
            .request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)
            .map_err(|e| NetError::new(format!("ask for the queue of interface {index}"), e))?;
        let found = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => {
                link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::Qdisc(name) => Some(name),
                    _ => None,
                })
            }
            _ => None,
        });
        Ok(found)
    }

    /// Gives a device a queue of its own length (`pfifo`) to send through, or takes its queueing discipline away, so that it has what it is
    /// born with.
    ///
    /// Errors: the kernel's.
    pub fn set_queue(&mut self, index: u32, queue: bool) -> Result<(), NetError> {
        let mut message = TcMessage::default();
        message.header.index = i32::try_from(index).unwrap_or_default();
        message.header.parent = TcHandle::ROOT;
        let done = if queue {
            message.attributes.push(TcAttribute::Kind(QUEUE.to_owned()));
            let message = RouteNetlinkMessage::NewQueueDiscipline(message);
            self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
        } else {
            self.request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK)
        };
        let what = if queue { "give a queue to" } else { "take its queue from" };
        done.map(drop).map_err(|e| NetError::new(format!("{what} interface {index}"), e))
    }

    /// Adds or replaces a permanent neighbour entry.
    pub fn add_neighbour(&mut self, device: u32, address: IpAddr, mac: MacAddr) -> Result<(), NetError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = device;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unspec;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
            .map_err(|e| NetError::new(format!("enter the neighbour {address} on interface {device}"), e))
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn link_of(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: MacAddr::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        no_arp: message.header.flags.contains(LinkFlags::Noarp),
        alias: None,
        kind: None,
        below: None,
        above: None,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        xdp: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(octets) => link.mac = octets.try_into().map(MacAddr).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Link(index) => link.below = Some(index).filter(|index| *index > 0),
            LinkAttribute::Xdp(parts) => {
                link.xdp = parts.iter().find_map(|part| match part {
                    LinkXdp::ProgId(number) => Some(*number),
                    _ => None,
                });
            }
            LinkAttribute::Controller(index) => link.above = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}
