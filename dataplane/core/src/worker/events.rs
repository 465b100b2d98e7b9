//! What is told about packets beside the counters: drops, and what Log rules ask for.

use margay_policy_engine::packet::{Direction, PacketTuple, Verdict};
use margay_wire::IpHeaders;

use super::{Dropped, View, Worker, judge};
use crate::frame::Frame;
use crate::output::{Output, PacketEvent, What};
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::verdict::DropReason;

/// Returns the event of a dropped packet.
pub(super) fn dropped(
    view: View<'_>,
    port: PortIndex,
    ip: Option<&IpHeaders>,
    dropped: &Dropped,
) -> PacketEvent {
    let (source_port, destination_port) = ip.and_then(IpHeaders::ports).unwrap_or((0, 0));
    let attribution = dropped.rule.and_then(|rule| view.snapshot?.attribution(rule).cloned());
    PacketEvent {
        port,
        what: What::Dropped(dropped.reason),
        source: ip.map(|ip| ip.source),
        destination: ip.map(|ip| ip.destination),
        protocol: ip.map_or(0, |ip| ip.protocol),
        source_port,
        destination_port,
        attribution,
        leg: match dropped.reason {
            DropReason::PolicyEgress => "egress",
            DropReason::PolicyIngress => "ingress",
            _ => "",
        },
    }
}

impl<F: Frame> Worker<F> {
    /// Tells which Log rules the first packet of a flow passes, each with the verdict of its leg (policy model 14.4), within an allowance.
    #[cold]
    pub(super) fn log(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        tuple: &PacketTuple,
        parties: &judge::Parties,
        out: &mut Output<F>,
    ) {
        let Some(snapshot) = view.snapshot else { return };
        let legs =
            [(parties.egress, Direction::Egress, "egress"), (parties.ingress, Direction::Ingress, "ingress")];
        for (endpoint, direction, leg) in legs {
            let Some(endpoint) = endpoint else { continue };
            let Some(judgement) = snapshot.judge(endpoint, direction, tuple) else { continue };
            for rule in snapshot.logs(endpoint, direction, tuple) {
                if out.events.len() >= Output::<F>::MAX_EVENTS || !self.log_records.take(now) {
                    return;
                }
                out.events.push(PacketEvent {
                    port,
                    what: What::Logged(judgement.verdict),
                    source: Some(tuple.source),
                    destination: Some(tuple.destination),
                    protocol: tuple.protocol,
                    source_port: tuple.source_port.unwrap_or(0),
                    destination_port: tuple.destination_port.unwrap_or(0),
                    attribution: snapshot.attribution(rule).cloned(),
                    leg,
                });
            }
            if judgement.verdict == Verdict::Deny {
                return;
            }
        }
    }
}
