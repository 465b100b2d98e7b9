//! ICMP errors belong to the flow that they quote.

use margay_wire::parse::parse_quoted;
use margay_wire::{Fragment, icmp, protocol};

use super::{Dropped, Ending, Passing, Worker, finish, path};
use crate::flow::FlowKey;
use crate::frame::Frame;
use crate::handover::Errand;
use crate::output::Output;
use crate::topology::PortKind;
use crate::verdict::DropReason;

impl<F: Frame> Worker<F> {
    /// Sends an ICMP error on to the sender of the packet that it quotes (policy model 13.4, PM-D23).
    pub(super) fn forward_related(
        &mut self,
        passing: &Passing<'_>,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        let Passing { view, now, port, ip, .. } = *passing;
        let quoted = parse_quoted(frame.data(), ip).map_err(|_| DropReason::IcmpUnrelated)?;
        let (key, side) = FlowKey::of(&quoted);
        let slot = self.flows.find(&key, self.flows.hash(&key)).ok_or(DropReason::IcmpUnrelated)?;
        let flow = self.flows.flow(slot).ok_or(DropReason::IcmpUnrelated)?;
        if flow.is_over(now) {
            return Err(DropReason::IcmpUnrelated.into());
        }
        if (flow.snapshot, flow.topology) != view.under() && !self.revalidate(view, slot) {
            return Err(DropReason::IcmpUnrelated.into());
        }
        let flow = self.flows.flow(slot).ok_or(DropReason::IcmpUnrelated)?;
        let direction = usize::from(side != flow.opener);
        let from_pod = matches!(port.kind, PortKind::Pod { .. });
        let told_the_truth = ip.destination == quoted.source
            && key.is_v4() == quoted.source.is_ipv4()
            && flow.counted(direction).0 > 0
            && (!from_pod || quoted.destination == ip.source)
            && !matches!(quoted.fragment, Fragment::Later { .. });
        if !told_the_truth {
            return Err(DropReason::IcmpUnrelated.into());
        }
        if !flow.is_approved() {
            return Err(flow.refused());
        }
        if from_pod && !self.pod_errors.take(port.index, now) {
            return Err(DropReason::IcmpRateLimited.into());
        }
        // Only who routes says so, of a packet that may be several joined ones.
        let is_news = self.config.lro
            && icmp::is_too_big(ip)
            && quoted.protocol == protocol::TCP
            && self.lro.spare(port);
        icmp::clamp_mtu_in_place(frame.data_mut(), ip);
        match path::resolve(view.topology, self.config.index, port, ip.source, ip.destination)? {
            // Larger than anything that comes from there: its sender never sent that, we did.
            path::Next::Ready(path) | path::Next::Unresolved(path, _)
                if is_news && quoted.total_len > path.mtu =>
            {
                Err(DropReason::IcmpUnrelated.into())
            }
            path::Next::Ready(path) => self.leave(passing, &path, Errand::Take, frame, out),
            path::Next::Unresolved(path, next_hop) => {
                finish::is_too_big(frame, port, ip, &path)?;
                Ok(Ending::Hold { path, next_hop, ip: *ip })
            }
        }
    }
}
