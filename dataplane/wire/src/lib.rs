//! What the bytes mean: addresses, header views, checksums. No state, no policy, no I/O.
//!
//! Network byte order exists only in this crate: everything it returns is in host order, everything it takes too.
//!
//! * [`parse()`] answers "what is it?" for one frame, in one pass, without allocation; malformed frames get a [`ParseError`].
//! * [`quick`] reads the plain packet of a known flow in a few instructions.
//! * [`checksum`] sums, completes and repairs.
//! * [`arp`], [`ndisc`], [`icmp`] and [`reset`] are the few messages that the dataplane speaks itself, written over a received frame.
//! * [`build`] makes whole packets for tests, simulations and benches (etherparse lives here).

pub mod arp;
pub mod build;
pub mod checksum;
pub mod icmp;
pub mod mac;
pub mod ndisc;
pub mod parse;
pub mod quick;
pub mod reset;

pub use mac::MacAddr;
pub use parse::{Fragment, IpHeaders, Packet, ParseError, Parsed, Transport, parse, parse_head};

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_LEN: usize = 14;

/// IP protocol numbers that the dataplane knows by name (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}
