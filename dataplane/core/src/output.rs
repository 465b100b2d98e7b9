//! What a burst produced, for the shell to act on.

use std::net::IpAddr;

use margay_policy_engine::snapshot::Attribution;

use crate::topology::PortIndex;
use crate::verdict::DropReason;

/// One dropped packet, for `margay drops`. Sampled: counters are exact, events are bounded per burst.
#[derive(Clone, Debug)]
pub struct DropEvent {
    /// The port it came from.
    pub port: PortIndex,
    /// Why.
    pub reason: DropReason,
    /// Source address, where the packet could be parsed.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Transport source port; zero when there is none.
    pub source_port: u16,
    /// Transport destination port; zero when there is none.
    pub destination_port: u16,
    /// The deciding rule, when policy decided.
    pub attribution: Option<Attribution>,
    /// Which leg decided, when policy decided: `egress` or `ingress`.
    pub leg: &'static str,
}

/// Where [`crate::Worker`] puts what a burst produced. The shell empties it after every burst and keeps the capacity.
#[derive(Debug)]
pub struct Output<F> {
    /// Frames to send, in order, each with its port.
    pub transmit: Vec<(PortIndex, F)>,
    /// Frames that ended here; their memory is free again.
    pub recycle: Vec<F>,
    /// Empty frames that the worker may take to make packets of its own (fragments). The shell keeps a few here.
    pub spare: Vec<F>,
    /// Sampled drops, at most [`Output::MAX_EVENTS`] between two calls of the shell.
    pub events: Vec<DropEvent>,
}

impl<F> Output<F> {
    /// Largest number of drop events kept per burst; more are only counted.
    pub const MAX_EVENTS: usize = 32;

    /// Returns an empty output.
    pub fn new() -> Self {
        Self {
            transmit: Vec::with_capacity(256),
            recycle: Vec::with_capacity(256),
            spare: Vec::new(),
            events: Vec::with_capacity(Self::MAX_EVENTS),
        }
    }
}

impl<F> Default for Output<F> {
    fn default() -> Self {
        Self::new()
    }
}
