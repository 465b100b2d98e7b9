//! What counts as one flow (policy model 13.3).

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use margay_wire::quick::Quick;
use margay_wire::{IpHeaders, Transport, protocol};

/// One of the two ends of a flow, in the key's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that compares lower.
    Low,
    /// The end that compares higher.
    High,
}

/// Address and port of one end; IPv4 addresses are IPv4-mapped, which the sanity stage keeps off the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Address as a number.
    pub address: u128,
    /// Port; the identifier for ICMP echo; zero for protocols without either.
    pub port: u16,
}

/// Both ends of a flow in a fixed order, and the protocol. Shape: index 0 is the lower end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowKey {
    addresses: [u128; 2],
    ports: [u16; 2],
    /// IP protocol number.
    pub protocol: u8,
}

impl Hash for FlowKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [low, high] = self.ports;
        state.write_u128(self.addresses[0]);
        state.write_u128(self.addresses[1]);
        state.write_u64(u64::from(low) << 24 | u64::from(high) << 8 | u64::from(self.protocol));
    }
}

/// Returns the number that an address is in keys.
#[inline]
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => 0xffff_0000_0000 | u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// Returns the address that `number` stands for.
pub fn address(number: u128) -> IpAddr {
    let v6 = Ipv6Addr::from(number);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// Returns the address that `number` stands for, of the family that it is known to be of.
#[inline(always)]
pub fn address_of(number: u128, is_v4: bool) -> IpAddr {
    if is_v4 { IpAddr::V4(Ipv4Addr::from(number as u32)) } else { IpAddr::V6(Ipv6Addr::from(number)) }
}

impl FlowKey {
    /// No packet's key: a frame that is not IP.
    pub const NONE: Self = Self { addresses: [0; 2], ports: [0; 2], protocol: 0 };

    /// Returns the key, and the side that sent a packet with these ends.
    #[inline]
    pub fn new(source: (IpAddr, u16), destination: (IpAddr, u16), protocol: u8) -> (Self, Side) {
        let from = End { address: number(source.0), port: source.1 };
        let to = End { address: number(destination.0), port: destination.1 };
        let (low, high, side) = if from <= to { (from, to, Side::Low) } else { (to, from, Side::High) };
        (Self { addresses: [low.address, high.address], ports: [low.port, high.port], protocol }, side)
    }

    /// Returns the key of the flow of a plain packet, and the side that sent it.
    #[inline(always)]
    pub fn of_quick(quick: &Quick) -> (Self, Side) {
        let forward = (quick.source, quick.source_port) <= (quick.destination, quick.destination_port);
        let (addresses, ports, side) = match forward {
            true => {
                ([quick.source, quick.destination], [quick.source_port, quick.destination_port], Side::Low)
            }
            false => {
                ([quick.destination, quick.source], [quick.destination_port, quick.source_port], Side::High)
            }
        };
        (Self { addresses, ports, protocol: quick.protocol }, side)
    }

    /// Returns the key of the flow that `ip` belongs to, and the side that sent it.
    #[inline]
    pub fn of(ip: &IpHeaders) -> (Self, Side) {
        let (source, destination) = match ip.transport {
            Transport::Icmp { id, .. } => (id, id),
            _ => ip.ports().unwrap_or((0, 0)),
        };
        Self::new((ip.source, source), (ip.destination, destination), ip.protocol)
    }

    /// Returns the key with these parts, the lower end first.
    #[inline(always)]
    pub fn of_parts(addresses: [u128; 2], ports: [u16; 2], protocol: u8) -> Self {
        Self { addresses, ports, protocol }
    }

    /// Returns whether both ends are IPv4.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        super::is_v4(&self.addresses)
    }

    /// Returns both addresses, the lower end's first.
    #[inline(always)]
    pub fn addresses(&self) -> [u128; 2] {
        self.addresses
    }

    /// Returns both ports, the lower end's first.
    #[inline(always)]
    pub fn ports(&self) -> [u16; 2] {
        self.ports
    }

    /// Returns (sender, receiver) when `side` sends.
    pub fn ends(&self, side: Side) -> (End, End) {
        let [low, high] = [0, 1].map(|at| End { address: self.addresses[at], port: self.ports[at] });
        match side {
            Side::Low => (low, high),
            Side::High => (high, low),
        }
    }

    /// Returns whether the protocol has ports in this key.
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::UDPLITE)
    }
}

/// ICMP and ICMPv6 types that answer another message: they never open a flow.
pub fn is_icmp_reply(number: u8, kind: u8) -> bool {
    match number {
        protocol::ICMP => matches!(kind, 0 | 14 | 16 | 18),
        _ => kind == 129,
    }
}
