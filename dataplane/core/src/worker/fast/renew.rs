//! A known flow's first packet after an address became something else.
//!
//! Policy changes all the time, and hardly any change concerns a given flow. Of tables a snapshot knows itself since when they have been what
//! they are, which takes no more than the flow's first line to make use of; of addresses it knows this of all together, and pods come and go. Under
//! the same topology a flow has the same parties; what is left to compare is what the snapshot says of them: epochs of their tables,
//! identities of both addresses. If these are what they were, the flow is confirmed and its packet takes the short way after all. The
//! long way finds out the same, from the start.
//!
//! What a flow was judged by stands in its second line, which no other packet needs: while there are such packets, both lines are
//! asked for ahead.

use super::{Burst, Exit, Plain};
use crate::frame::Frame;
use crate::worker::{Worker, judge};

impl<F: Frame> Worker<F> {
    /// As [`Worker::fast`], for a packet from a port or the tunnel that did not take the short way: tries again if that was for a newer
    /// snapshot in which nothing has changed for the flow.
    #[inline(never)]
    pub(in crate::worker) fn renewed(
        &mut self,
        burst: &Burst<'_>,
        frame: &mut F,
        read: &Plain,
    ) -> Option<Exit> {
        let slot = read.likely.filter(|slot| self.flows.is(*slot, &read.key))?;
        let flow = self.flows.flow_mut(slot)?;
        let is_of_an_older_snapshot = flow.snapshot != burst.under.0 && flow.topology == burst.under.1;
        if !is_of_an_older_snapshot || !flow.is_approved() || flow.is_over(burst.now) {
            return None;
        }
        if !judge::unchanged(burst.view, &flow.judged_by(), &flow.tuple()) {
            return None;
        }
        flow.snapshot = burst.under.0;
        self.renewals = self.renewals.wrapping_add(1);
        self.fast(burst, frame, read, None)
    }
}
