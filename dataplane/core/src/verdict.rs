//! Every way a packet can end. Counters are sized from the list, documentation is generated from it, and nothing ends without a name.

use crate::tunnel::TunnelError;

/// Declares the reasons once: variant, label, sentence.
macro_rules! drop_reasons {
    ($($variant:ident $label:literal $text:literal,)*) => {
        /// Why a packet ended here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $text] $variant,)*
        }

        impl DropReason {
            /// Every reason, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the name used in metrics, in `margay drops` and in the documentation.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// Returns one sentence for people.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

drop_reasons! {
    Truncated "truncated" "The frame ends before the headers that it announces.",
    BadEthernet "bad_ethernet" "The Ethernet header is not addressed to us, or its source is a group address or not the pod's own.",
    UnknownEtherType "unknown_ethertype" "Neither IPv4, IPv6 nor ARP.",
    VlanTagged "vlan_tagged" "A VLAN tag from a pod (802.1Q or 802.1ad).",
    BadIpv4Header "bad_ipv4_header" "IPv4 version, header length, total length or header checksum is wrong.",
    BadIpv6Header "bad_ipv6_header" "IPv6 version, payload length or extension header chain is wrong.",
    BadTransportHeader "bad_transport_header" "A TCP, UDP, SCTP or ICMP header with impossible lengths or flags.",
    SourceRouting "source_routing" "An IPv4 source route option or an IPv6 routing header (types 0 and 2 to 255 with segments left).",
    MartianDestination "martian_destination" "The destination is loopback, 0.0.0.0/8, 240.0.0.0/4 or an IPv4-mapped address.",
    MartianSource "martian_source" "The source is loopback, multicast, broadcast, unspecified or an IPv4-mapped address.",
    SpoofedPodSource "spoofed_pod_source" "A pod sent with a source address that is not its own.",
    SpoofedHostSource "spoofed_host_source" "The host port carried a packet with the address of a local pod.",
    SpoofedUplinkSource "spoofed_uplink_source" "The uplink carried a packet with the address of a local pod or of this node.",
    WrongPathSource "wrong_path_source" "A remote pod's address from a neighbour that is not its node.",
    Multicast "multicast" "Multicast or broadcast is never forwarded.",
    LinkLocalDestination "link_local_destination" "A link-local destination that is neither the gateway nor an address of this node.",
    BadArp "bad_arp" "An ARP message that is malformed, gratuitous, or claims an address that is not the pod's.",
    ArpNotForUs "arp_not_for_us" "An ARP request for something other than the gateway.",
    BadNeighbourDiscovery "bad_neighbour_discovery" "A neighbour discovery message that is malformed, forged, or not about the gateway.",
    RouterAdvertisement "router_advertisement" "A router advertisement from a pod.",
    Redirect "redirect" "An ICMP or ICMPv6 redirect from a pod.",
    Encapsulation "encapsulation" "IPIP, or UDP to the VXLAN port, from a pod.",
    NoPort "no_port" "The port went away while the packet was under way.",
    NoPolicyYet "no_policy_yet" "The endpoint has no table yet: a new pod is closed until its policy is in force.",
    PolicyEgress "policy_egress" "Denied by the sender's egress policy.",
    PolicyIngress "policy_ingress" "Denied by the receiver's ingress policy.",
    EndpointToHost "endpoint_to_host" "Pod to its own host, and defaultEndpointToHostAction is Drop.",
    InvalidState "invalid_state" "TCP in mid-flow without an entry, or flags that no connection uses.",
    IcmpUnrelated "icmp_unrelated" "An ICMP error that quotes no known flow, or one that was not delivered to its sender.",
    IcmpRateLimited "icmp_rate_limited" "More ICMP errors from one port than its allowance.",
    FragmentWithoutFirst "fragment_without_first" "A later fragment whose first did not come within 30 seconds, or whose connection is over.",
    FragmentDuplicate "fragment_duplicate" "A fragment that is exactly one of those that came before; the datagram goes on.",
    FragmentOverlap "fragment_overlap" "A fragment of a datagram of which some overlap: all that is left of it ends.",
    FragmentsFull "fragments_full" "More fragments than one datagram, one port or all ports may have under way.",
    FragmentForGateway "fragment_for_gateway" "A fragment to the gateway, which answers whole packets only.",
    BadFragment "bad_fragment" "A fragment that is tiny, empty, not in steps of eight bytes, part of an ICMP error, or whose end lies beyond 65,535 bytes.",
    NoRoute "no_route" "No route to the destination.",
    NoNeighbour "no_neighbour" "The next hop's Ethernet address did not become known in time, or too many packets were waiting for it.",
    TtlExpired "ttl_expired" "TTL or hop limit ended; the sender gets time exceeded.",
    PacketTooBig "packet_too_big" "Larger than the way out and not to be fragmented; the sender gets the size that fits.",
    FlowTableFull "flow_table_full" "No room for a new flow.",
    HandoverFull "handover_full" "The worker that was to send the packet had no room for more.",
    WorkerPanicked "worker_panicked" "The worker panicked while it had the packet; another has taken its place.",
    Unencrypted "unencrypted" "It must not leave in clear, and its destination is no address of a WireGuard peer.",
    ExpectedEncrypted "expected_encrypted" "It came in clear from an address that must be encrypted, or of a WireGuard peer that has a session.",
    TunnelMalformed "tunnel_malformed" "A datagram to the WireGuard port that is no message of the protocol.",
    TunnelFragment "tunnel_fragment" "A fragmented datagram to the WireGuard port.",
    TunnelUnknownPeer "tunnel_unknown_peer" "WireGuard from or for a node that is no peer, or no more.",
    TunnelNoSession "tunnel_no_session" "A WireGuard datagram of a session that does not exist, or is over.",
    TunnelForged "tunnel_forged" "A WireGuard datagram that was not sealed with the peer's key, or was changed on the way.",
    TunnelReplayed "tunnel_replayed" "A WireGuard datagram that was here before, or is far too late.",
    TunnelNotAllowed "tunnel_not_allowed" "A decrypted packet whose source is none of its peer's addresses.",
    TunnelNotIp "tunnel_not_ip" "A decrypted packet that is no IP packet.",
    TunnelUnderLoad "tunnel_under_load" "A WireGuard handshake that comes while there are too many.",
    TunnelCongested "tunnel_congested" "Congestion was marked on the outer header of a packet that cannot tell its receiver (RFC 6040).",
    TunnelWaiting "tunnel_waiting" "No WireGuard session with the peer, or no neighbour on the way to it, came about in time, or too many packets were waiting for it.",
    TunnelNoRoom "tunnel_no_room" "No free frame to seal or to open a packet into.",
    DiscoveryConsumed "discovery_consumed" "Link-local multicast from a pod that ends at the gateway and needs no answer.",
}

/// Plain counters of one worker; the shell sums them on read. `received` + `taken` + `made` = `forwarded` + `answered` + `handed_over` +
/// `messages` + all drops + packets still held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken from ports.
    pub received: u64,
    /// Packets taken from other workers.
    pub taken: u64,
    /// Packets of our own, fragments and answers, that began the way into the tunnel.
    pub made: u64,
    /// Packets given to other workers: to be sent to a pod, judged, sealed or opened. Over all workers as many as `taken` and those still
    /// in queues.
    pub handed_over: u64,
    /// Frames sent on to another port (fragments of ours not counted).
    pub forwarded: u64,
    /// Segments that left as part of the one before them; counted as forwarded too.
    pub joined: u64,
    /// Packets larger than their path that left in fragments, each counted once as forwarded too.
    pub cut: u64,
    /// Frames turned into an answer of ours (ARP, neighbour discovery, ping of the gateway).
    pub answered: u64,
    /// WireGuard messages that carried no packet and needed no answer.
    pub messages: u64,
    /// Packets sealed; counted as forwarded too.
    pub sealed: u64,
    /// Packets that came out of datagrams; their endings are counted like any.
    pub opened: u64,
    /// Frames waiting for a next hop's address, a first fragment or a WireGuard session.
    pub held: u64,
    /// ICMP errors sent about dropped frames; these are counted among the drops too.
    pub icmp_errors_sent: u64,
    /// TCP resets sent about dropped segments; these are counted among the drops too.
    pub resets_sent: u64,
    /// Dropped packets that would have been answered, had their port not had enough answers.
    pub answers_limited: u64,
    /// Packets answered by a remembered flow.
    pub flow_hits: u64,
    /// Packets judged by tables.
    pub flow_misses: u64,
    /// Flows judged again because a snapshot changed what they were judged by.
    pub flow_rejudged: u64,
    /// Flows put out, unanswered, to make room for new ones.
    pub flow_evicted: u64,
    /// Flows alive.
    pub flows: u64,
    /// Drops by reason; index is the reason's number.
    pub drops: [u64; DropReason::ALL.len()],
}

impl From<TunnelError> for DropReason {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Malformed => Self::TunnelMalformed,
            TunnelError::NotForUs | TunnelError::Forged => Self::TunnelForged,
            TunnelError::UnknownPeer => Self::TunnelUnknownPeer,
            TunnelError::NoSession => Self::TunnelNoSession,
            TunnelError::Replayed => Self::TunnelReplayed,
            TunnelError::NotAllowed => Self::TunnelNotAllowed,
            TunnelError::NotIp => Self::TunnelNotIp,
            TunnelError::UnderLoad => Self::TunnelUnderLoad,
            TunnelError::NoRoom => Self::TunnelNoRoom,
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: 0,
            taken: 0,
            made: 0,
            handed_over: 0,
            forwarded: 0,
            joined: 0,
            cut: 0,
            answered: 0,
            messages: 0,
            sealed: 0,
            opened: 0,
            held: 0,
            icmp_errors_sent: 0,
            resets_sent: 0,
            answers_limited: 0,
            flow_hits: 0,
            flow_misses: 0,
            flow_rejudged: 0,
            flow_evicted: 0,
            flows: 0,
            drops: [0; DropReason::ALL.len()],
        }
    }
}

impl Counters {
    /// Returns the number of drops for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Returns the number of packets that began here: from ports, from other workers, and our own into the tunnel.
    pub fn beginnings(&self) -> u64 {
        self.received + self.taken + self.made
    }

    /// Closes the books of a worker that panicked: the packet at hand, what it held, and `not_begun` more that it was given in the same
    /// burst (`taken`: from other workers) end as [`DropReason::WorkerPanicked`]. Afterwards [`Counters::beginnings`] equals
    /// [`Counters::endings`], and nothing is alive.
    pub fn close_after_panic(&mut self, not_begun: u64, taken: bool) {
        let begun = if taken { &mut self.taken } else { &mut self.received };
        *begun += not_begun;
        self.held = 0;
        self.flows = 0;
        let open = self.beginnings().saturating_sub(self.endings());
        self.drops[DropReason::WorkerPanicked as usize] += open;
    }

    /// Notes that `count` packets which were given to other workers ended here after all, because they found no room there.
    pub fn refuse(&mut self, count: u64) {
        self.handed_over -= count;
        self.drops[DropReason::HandoverFull as usize] += count;
    }

    /// Returns the sum of all endings, packets still held included. Equals [`Counters::beginnings`] after every burst.
    pub fn endings(&self) -> u64 {
        let gone = self.forwarded + self.answered + self.handed_over + self.messages;
        gone + self.held + self.drops.iter().sum::<u64>()
    }
}

impl std::ops::AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        // Named one by one, so that a counter that is added is not forgotten here.
        let Counters {
            received,
            taken,
            made,
            handed_over,
            forwarded,
            joined,
            cut,
            answered,
            messages,
            sealed,
            opened,
            held,
            icmp_errors_sent,
            resets_sent,
            answers_limited,
            flow_hits,
            flow_misses,
            flow_rejudged,
            flow_evicted,
            flows,
            drops,
        } = other;
        self.received += received;
        self.taken += taken;
        self.made += made;
        self.handed_over += handed_over;
        self.forwarded += forwarded;
        self.joined += joined;
        self.cut += cut;
        self.answered += answered;
        self.messages += messages;
        self.sealed += sealed;
        self.opened += opened;
        self.held += held;
        self.icmp_errors_sent += icmp_errors_sent;
        self.resets_sent += resets_sent;
        self.answers_limited += answers_limited;
        self.flow_hits += flow_hits;
        self.flow_misses += flow_misses;
        self.flow_rejudged += flow_rejudged;
        self.flow_evicted += flow_evicted;
        self.flows += flows;
        for (sum, part) in self.drops.iter_mut().zip(drops) {
            *sum += part;
        }
    }
}
