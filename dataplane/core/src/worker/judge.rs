//! May it pass? Both legs, from the snapshot's tables (policy model 8.5): the sender's egress, then the receiver's ingress.
//!
//! Who the legs are follows from addresses alone, because the sanity stage has tied every local address to its port.

use std::net::IpAddr;

use margay_policy_engine::packet::{Direction, EndpointId, PacketTuple, Verdict};
use margay_policy_engine::snapshot::PortClasses;
use margay_wire::{IpHeaders, Transport};

use super::{Dropped, EndpointToHost, View, WorkerConfig};
use crate::flow::{JudgedBy, Leg};
use crate::topology::{PortKind, Topology};
use crate::verdict::DropReason;

/// The endpoints of this node whose policy a flow needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    /// The sender, when it is a pod of this node.
    pub egress: Option<EndpointId>,
    /// The receiver, when it is a pod of this node and the sender is not this node itself (policy model 12.6).
    pub ingress: Option<EndpointId>,
    /// The receiver is this node.
    pub to_host: bool,
}

impl Parties {
    /// Returns the parties of a flow opened by `tuple`.
    pub fn of(topology: &Topology, tuple: &PacketTuple) -> Self {
        Self::between(topology, tuple.source, tuple.destination)
    }

    /// Returns the parties of a flow that `source` opens to `destination`.
    pub fn between(topology: &Topology, source: IpAddr, destination: IpAddr) -> Self {
        let endpoint = |address| match &topology.port(topology.local_pod(address)?)?.kind {
            PortKind::Pod { endpoint, .. } => Some(*endpoint),
            PortKind::Host { .. } | PortKind::Uplink => None,
        };
        let from_host = topology.is_node_address(source);
        Self {
            egress: endpoint(source),
            ingress: if from_host { None } else { endpoint(destination) },
            to_host: topology.is_node_address(destination),
        }
    }

    /// Returns whether any policy of this node has a say.
    pub fn any(&self) -> bool {
        self.egress.is_some() || self.ingress.is_some()
    }

    /// Returns whether a flow judged by `by` has these parties.
    pub fn are(&self, by: &JudgedBy) -> bool {
        self.egress == by.egress.map(|leg| leg.endpoint) && self.ingress == by.ingress.map(|leg| leg.endpoint)
    }
}

/// Returns the packet as a rule sees it.
pub fn tuple(ip: &IpHeaders) -> PacketTuple {
    let ports = ip.ports();
    PacketTuple {
        source: ip.source,
        destination: ip.destination,
        protocol: ip.protocol,
        source_port: ports.map(|(source, _)| source),
        destination_port: ports.map(|(_, destination)| destination),
        icmp: match ip.transport {
            Transport::Icmp { kind, code, .. } => Some((kind, code)),
            _ => None,
        },
    }
}

/// Returns the tuple as if the other end had opened the flow.
pub fn reversed(tuple: &PacketTuple) -> PacketTuple {
    PacketTuple {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        ..*tuple
    }
}

/// Returns what a judgement of `tuple` rests on now, or `None` while the snapshot does not know a party.
pub fn evidence(view: View<'_>, tuple: &PacketTuple, parties: &Parties) -> Option<JudgedBy> {
    evidence_between(view, tuple.source, tuple.destination, parties)
}

/// As [`evidence`], which follows from the addresses.
pub fn evidence_between(
    view: View<'_>,
    source: IpAddr,
    destination: IpAddr,
    parties: &Parties,
) -> Option<JudgedBy> {
    if !parties.any() {
        return Some(JudgedBy::default());
    }
    let snapshot = view.snapshot?;
    let leg = |endpoint: Option<EndpointId>, direction| match endpoint {
        Some(endpoint) => {
            snapshot.epoch(endpoint, direction).map(|epoch| Some(Leg { endpoint, epoch: epoch.0 as u32 }))
        }
        None => Some(None),
    };
    Some(JudgedBy {
        egress: leg(parties.egress, Direction::Egress)?,
        ingress: leg(parties.ingress, Direction::Ingress)?,
        source: snapshot.identity(source),
        destination: snapshot.identity(destination),
    })
}

/// Judges the packet that opens a flow.
///
/// Errors: the named drop of the leg that refused, with the deciding rule; `NoPolicyYet` while a party has no table.
pub fn judge(
    view: View<'_>,
    config: &WorkerConfig,
    tuple: &PacketTuple,
    parties: &Parties,
) -> Result<JudgedBy, Dropped> {
    let by = evidence(view, tuple, parties).ok_or(DropReason::NoPolicyYet)?;
    judge_by(view, config, tuple, parties, &by)?;
    Ok(by)
}

/// As [`judge`], for a caller that knows what the judgement rests on.
pub fn judge_by(
    view: View<'_>,
    config: &WorkerConfig,
    tuple: &PacketTuple,
    parties: &Parties,
    by: &JudgedBy,
) -> Result<(), Dropped> {
    let legs = [
        (by.egress, Direction::Egress, DropReason::PolicyEgress),
        (by.ingress, Direction::Ingress, DropReason::PolicyIngress),
    ];
    for (leg, direction, reason) in legs {
        let Some(leg) = leg else { continue };
        let snapshot = view.snapshot.ok_or(DropReason::NoPolicyYet)?;
        let judgement = snapshot
            .judge_with_identity(leg.endpoint, direction, tuple, by.source, by.destination)
            .ok_or(DropReason::NoPolicyYet)?;
        if judgement.verdict == Verdict::Deny {
            return Err(Dropped { reason, rule: Some(judgement.rule), error: None });
        }
    }
    if parties.egress.is_some() && parties.to_host && config.endpoint_to_host == EndpointToHost::Drop {
        return Err(DropReason::EndpointToHost.into());
    }
    Ok(())
}

/// Returns what the tables of all legs can tell of a packet's ports: of plain packets between two addresses, those of one protocol for
/// which this is equal are judged alike under one snapshot. `None` where that cannot be said.
#[inline]
pub fn port_classes(
    view: View<'_>,
    by: &JudgedBy,
    source: u16,
    destination: u16,
) -> Option<[PortClasses; 2]> {
    let of = |leg: Option<Leg>, direction| match leg {
        Some(leg) => view.snapshot?.port_classes(leg.endpoint, direction, source, destination),
        None => Some(PortClasses::default()),
    };
    Some([of(by.egress, Direction::Egress)?, of(by.ingress, Direction::Ingress)?])
}
