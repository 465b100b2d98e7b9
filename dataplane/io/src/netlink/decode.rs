//! From one rtnetlink message to one entry of the view, or to nothing when the entry does not concern us.
//!
//! Source: Linux `include/uapi/linux/{if_link,if_addr,rtnetlink,neighbour,fib_rules}.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use margay_wire::MacAddr;

use super::codec::{attributes, ip, u32_at};
use super::view::{Address, KernelRoute, Link, Neighbour, NeighbourState, NextHop, RouteKind};

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// Decodes the payload of RTM_NEWLINK.
pub(super) fn link(payload: &[u8]) -> Option<(u32, Link)> {
    let index = u32_at(payload, 4)?;
    let flags = u32_at(payload, 8)?;
    let mut link = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags & libc::IFF_UP as u32 != 0,
        running: flags & libc::IFF_RUNNING as u32 != 0,
        linked: None,
    };
    let mut elsewhere = false;
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = mac(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_LINK => link.linked = u32_at(value, 0).filter(|peer| *peer != 0),
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            _ => {}
        }
    }
    if elsewhere {
        link.linked = None;
    }
    Some((index, link))
}

/// Decodes the payload of RTM_NEWADDR.
pub(super) fn address(payload: &[u8]) -> Option<Address> {
    let (&[family, prefix, short_flags, _], ifindex) = (payload.first_chunk()?, u32_at(payload, 4)?);
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    const IFA_FLAGS: u16 = 8;
    let (mut flags, mut peer, mut local) = (u32::from(short_flags), None, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            libc::IFA_ADDRESS => peer = ip(value),
            libc::IFA_LOCAL => local = ip(value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // An optimistic address is tentative too, but already in use (RFC 4429 §3.1).
    let waiting = flags & libc::IFA_F_TENTATIVE != 0 && flags & libc::IFA_F_OPTIMISTIC == 0;
    if waiting || flags & libc::IFA_F_DADFAILED != 0 {
        return None;
    }
    // On a point-to-point device IFA_ADDRESS is the other side.
    Some(Address { ifindex, ip: local.or(peer)?, prefix })
}

/// What a message about a route came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RouteEntry {
    Route(KernelRoute),
    /// A route that the view cannot express.
    Warning(String),
    /// Not for unicast, not in a table that the default rules ask, or without a usable next hop.
    Irrelevant,
}

const DEAD: u8 = 1;
const LINK_DOWN: u8 = 16;

/// Decodes the payload of RTM_NEWROUTE.
pub(super) fn route(payload: &[u8]) -> Option<RouteEntry> {
    let &[family, dst_len, src_len, tos, table, _protocol, _scope, kind, ..] = payload.first_chunk::<12>()?;
    let flags = u32_at(payload, 8)?;
    if (family != AF_INET && family != AF_INET6) || flags & libc::RTM_F_CLONED != 0 {
        return Some(RouteEntry::Irrelevant);
    }
    let mut table = u32::from(table);
    let mut destination = if family == AF_INET {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    let (mut metric, mut single, mut several, mut encapsulated) = (0, Hop::default(), Vec::new(), false);
    single.flags = flags as u8;
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => destination = ip(value)?,
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            libc::RTA_PRIORITY => metric = u32_at(value, 0)?,
            libc::RTA_OIF => single.ifindex = u32_at(value, 0)?,
            libc::RTA_MULTIPATH => several = hops(value),
            _ => encapsulated |= single.attribute(kind, value),
        }
    }
    let rank = match u8::try_from(table) {
        Ok(libc::RT_TABLE_LOCAL) => 0,
        Ok(libc::RT_TABLE_MAIN) => 1,
        Ok(libc::RT_TABLE_DEFAULT) => 2,
        _ => return Some(RouteEntry::Irrelevant),
    };
    let kind = match kind {
        libc::RTN_LOCAL => RouteKind::Local,
        libc::RTN_UNICAST if encapsulated => RouteKind::Encapsulated,
        libc::RTN_UNICAST => RouteKind::Unicast,
        libc::RTN_BLACKHOLE => RouteKind::Blackhole,
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        libc::RTN_PROHIBIT => RouteKind::Prohibit,
        libc::RTN_THROW => RouteKind::Throw,
        _ => return Some(RouteEntry::Irrelevant),
    };
    let prefix = IpNet::new(destination, dst_len).ok()?.trunc();
    if destination.is_multicast() {
        return Some(RouteEntry::Irrelevant);
    }
    if src_len != 0 || tos != 0 {
        return Some(RouteEntry::Warning(format!(
            "the route to {prefix} depends on source or TOS and is not followed"
        )));
    }
    let candidates = if several.is_empty() { vec![single] } else { several };
    let hop = best(&candidates);
    if matches!(kind, RouteKind::Unicast | RouteKind::Encapsulated) && hop.is_none() {
        return Some(RouteEntry::Irrelevant);
    }
    let hop = hop.filter(|_| matches!(kind, RouteKind::Unicast | RouteKind::Encapsulated | RouteKind::Local));
    let kind = if candidates.iter().any(|c| c.encapsulated) && kind == RouteKind::Unicast {
        RouteKind::Encapsulated
    } else {
        kind
    };
    Some(RouteEntry::Route(KernelRoute { prefix, rank, metric, kind, hop }))
}

#[derive(Clone, Copy, Default)]
struct Hop {
    ifindex: u32,
    gateway: Option<IpAddr>,
    flags: u8,
    encapsulated: bool,
}

impl Hop {
    /// Takes an attribute that a route and each of its next hops may have; returns whether it asks for an encapsulation.
    fn attribute(&mut self, kind: u16, value: &[u8]) -> bool {
        match kind {
            libc::RTA_GATEWAY => self.gateway = ip(value),
            // `struct rtvia`: the family, then the address.
            libc::RTA_VIA => self.gateway = value.get(2..).and_then(ip),
            libc::RTA_ENCAP_TYPE => self.encapsulated = true,
            _ => {}
        }
        kind == libc::RTA_ENCAP_TYPE
    }
}

/// Reads the `struct rtnexthop` list of RTA_MULTIPATH.
fn hops(mut rest: &[u8]) -> Vec<Hop> {
    let mut out = Vec::new();
    while let (Some(length), Some(flags), Some(ifindex)) =
        (super::codec::u16_at(rest, 0), rest.get(2), u32_at(rest, 4))
    {
        let length = usize::from(length);
        let Some(own) = rest.get(8..length) else { break };
        let mut hop = Hop { ifindex, flags: *flags, ..Hop::default() };
        for (kind, value) in attributes(own) {
            hop.attribute(kind, value);
        }
        out.push(hop);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    out
}

/// Returns the first next hop with a carrier; without one, the first that is not dead.
fn best(hops: &[Hop]) -> Option<NextHop> {
    let alive = || hops.iter().filter(|hop| hop.flags & DEAD == 0 && hop.ifindex != 0);
    let hop = alive().find(|hop| hop.flags & LINK_DOWN == 0).or_else(|| alive().next())?;
    Some(NextHop { ifindex: hop.ifindex, gateway: hop.gateway })
}

/// Decodes the payload of RTM_NEWNEIGH.
pub(super) fn neighbour(payload: &[u8]) -> Option<((u32, IpAddr), Neighbour)> {
    let family = *payload.first()?;
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    let ifindex = u32_at(payload, 4)?;
    let state = super::codec::u16_at(payload, 8)?;
    let (mut destination, mut address) = (None, None);
    if payload.get(10)? & libc::NTF_PROXY != 0 {
        return None;
    }
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_DST => destination = ip(value),
            libc::NDA_LLADDR => address = mac(value),
            _ => {}
        }
    }
    let destination = destination?;
    if destination.is_multicast() || state & libc::NUD_NOARP != 0 {
        return None;
    }
    const VALID: u16 = libc::NUD_REACHABLE | libc::NUD_STALE | libc::NUD_DELAY | libc::NUD_PROBE;
    let state = match address {
        Some(_) if state & libc::NUD_PERMANENT != 0 => NeighbourState::Permanent,
        Some(_) if state & VALID != 0 => NeighbourState::Usable,
        _ => NeighbourState::Unresolved,
    };
    let mac = address.filter(|_| state != NeighbourState::Unresolved);
    Some(((ifindex, destination), Neighbour { mac, state }))
}

/// Decodes the payload of RTM_NEWRULE; returns a sentence about a rule that is not one of the kernel's defaults.
pub(super) fn rule(payload: &[u8]) -> Option<String> {
    let &[family, dst_len, src_len, tos, table, _, _, action, ..] = payload.first_chunk::<12>()?;
    let version = match family {
        AF_INET => "IPv4",
        AF_INET6 => "IPv6",
        _ => return None,
    };
    const FRA_PRIORITY: u16 = 6;
    const FRA_TABLE: u16 = 15;
    const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
    const FRA_PROTOCOL: u16 = 21;
    const TO_TABLE: u8 = 1;
    let (mut priority, mut table, mut selective) =
        (0, u32::from(table), dst_len != 0 || src_len != 0 || tos != 0);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            FRA_PRIORITY => priority = u32_at(value, 0)?,
            FRA_TABLE => table = u32_at(value, 0)?,
            // Present in every rule; all ones is "off".
            FRA_SUPPRESS_PREFIXLEN => selective |= u32_at(value, 0)? != u32::MAX,
            FRA_PROTOCOL => {}
            _ => selective = true,
        }
    }
    let default = matches!((priority, table), (0, 255) | (32766, 254) | (32767, 253));
    let own = super::OWN_RULES.contains(&priority) && action != TO_TABLE;
    if own || (default && !selective && action == TO_TABLE) {
        return None;
    }
    Some(format!(
        "{version} routing rule {priority} (table {table}) is not followed; only the tables local, main and default are"
    ))
}
