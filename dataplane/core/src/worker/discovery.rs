//! Business with the gateway: ARP, neighbour discovery, and a ping to see whether it lives. Only the pod's own address gets an answer,
//! and only about the gateway; nothing is ever learnt.

use margay_wire::{IpHeaders, Parsed, Transport, arp, icmp, ndisc, parse::Arp, protocol};

use super::{Dropped, Ending, View, Worker};
use crate::frame::Frame;
use crate::topology::{Port, PortKind};
use crate::verdict::DropReason;

impl<F: Frame> Worker<F> {
    /// Answers "who has the gateway?" (RFC 826). The host may ask for any pod of this node, too.
    pub(super) fn answer_arp(
        &mut self,
        view: View<'_>,
        port: &Port,
        frame: &mut F,
        parsed: &Parsed,
        request: &Arp,
    ) -> Result<Ending, Dropped> {
        let honest = request.operation == 1
            && request.sender_mac == parsed.source
            && (request.sender_ip != request.target_ip || request.sender_ip.is_unspecified());
        let (known_asker, about_us) = match &port.kind {
            PortKind::Pod { addresses, .. } => (
                addresses.contains(&request.sender_ip.into()) || request.sender_ip.is_unspecified(),
                self.config.gateway_v4 == request.target_ip,
            ),
            PortKind::Host { .. } => (
                true,
                self.config.gateway_v4 == request.target_ip
                    || view.topology.local_pod(request.target_ip.into()).is_some(),
            ),
            PortKind::Uplink => (true, false),
        };
        if !honest || !known_asker {
            return Err(DropReason::BadArp.into());
        }
        if !about_us {
            return Err(DropReason::ArpNotForUs.into());
        }
        let len = arp::reply_in_place(frame.data_mut(), request, port.mac);
        frame.set_len(len);
        Ok(Ending::Answer)
    }

    /// Answers neighbour solicitations and pings for the gateway; other link-local messages of a pod end here.
    pub(super) fn answer_for_gateway(
        &mut self,
        port: &Port,
        frame: &mut F,
        ip: &IpHeaders,
    ) -> Result<Ending, Dropped> {
        let Transport::Icmp { kind, .. } = ip.transport else {
            return Err(DropReason::LinkLocalDestination.into());
        };
        if ip.protocol == protocol::ICMPV6 && matches!(kind, 130..=136 | 143) {
            return self.answer_discovery(port, frame, ip, kind);
        }
        if icmp::echo_reply_in_place(frame.data_mut(), ip, port.mac) {
            frame.set_len(ip.end());
            return Ok(Ending::Answer);
        }
        Err(DropReason::LinkLocalDestination.into())
    }

    fn answer_discovery(
        &mut self,
        port: &Port,
        frame: &mut F,
        ip: &IpHeaders,
        kind: u8,
    ) -> Result<Ending, Dropped> {
        let PortKind::Pod { pod_mac, addresses, .. } = &port.kind else {
            return Err(DropReason::DiscoveryConsumed.into());
        };
        if !matches!(kind, ndisc::NEIGHBOUR_SOLICITATION | ndisc::NEIGHBOUR_ADVERTISEMENT) {
            return Err(DropReason::DiscoveryConsumed.into());
        }
        let message = ndisc::read(frame.data(), ip).ok_or(DropReason::BadNeighbourDiscovery)?;
        if message.link_address.is_some_and(|mac| mac != *pod_mac) {
            return Err(DropReason::BadNeighbourDiscovery.into());
        }
        let own = addresses.contains(&message.target.into()) || message.target.is_unicast_link_local();
        let is_gateway = self.config.gateway_v6 == message.target;
        if kind == ndisc::NEIGHBOUR_ADVERTISEMENT {
            // Announcing oneself is harmless, claiming the gateway or somebody else is not.
            let claim = own && !is_gateway;
            return Err(if claim {
                DropReason::DiscoveryConsumed
            } else {
                DropReason::BadNeighbourDiscovery
            }
            .into());
        }
        if ip.source.is_unspecified() {
            // Duplicate address detection (RFC 4862 §5.4): nobody else is on this link.
            return Err(if own && !is_gateway {
                DropReason::DiscoveryConsumed
            } else {
                DropReason::BadNeighbourDiscovery
            }
            .into());
        }
        if !is_gateway {
            return Err(DropReason::BadNeighbourDiscovery.into());
        }
        if !frame.set_len(ndisc::ADVERTISEMENT_LEN)
            || !ndisc::advertise_in_place(frame.data_mut(), message.target, port.mac, ip.source)
        {
            return Err(DropReason::BadNeighbourDiscovery.into());
        }
        Ok(Ending::Answer)
    }
}
