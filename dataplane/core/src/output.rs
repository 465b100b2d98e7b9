//! What a burst produced, for the shell to act on.

use std::net::IpAddr;

use margay_policy_engine::packet::Verdict;
use margay_policy_engine::snapshot::Attribution;

use crate::handover::{Handovers, Transmit};
use crate::topology::PortIndex;
use crate::verdict::DropReason;
use crate::worker::Captured;

/// What is worth telling about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was dropped.
    Dropped(DropReason),
    /// A Log rule matched; this is the final verdict of the leg (PM-D11: the record has the rule's position and the verdict).
    Logged(Verdict),
}

/// One packet worth telling about, for `margay drops` and the log. Sampled: counters are exact, events are bounded per burst.
#[derive(Clone, Debug)]
pub struct PacketEvent {
    /// The port it came from.
    pub port: PortIndex,
    /// What happened.
    pub what: What,
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
    /// The deciding rule, when policy decided; the Log rule of a logged packet.
    pub attribution: Option<Attribution>,
    /// Which leg: `egress` or `ingress`, or empty where no policy had a say.
    pub leg: &'static str,
}

/// Where [`crate::Worker`] puts what a burst produced. The shell empties it after every burst and keeps the capacity.
#[derive(Debug)]
pub struct Output<F> {
    /// Frames to send, in order, each with its port.
    pub transmit: Transmit<F>,
    /// Packets for other workers, in order for each.
    pub handovers: Handovers<F>,
    /// Frames that ended here; their memory is free again.
    pub recycle: Vec<F>,
    /// Empty frames that the worker may take to make packets of its own (fragments). The shell keeps a few here.
    pub spare: Vec<F>,
    /// Sampled drops and log records, at most [`Output::MAX_EVENTS`] between two calls of the shell.
    pub events: Vec<PacketEvent>,
    /// Packets told to taps, at most [`Output::MAX_CAPTURES`] between two calls of the shell.
    pub captures: Vec<Captured>,
}

impl<F> Output<F> {
    /// Largest number of events kept per burst; more are only counted.
    pub const MAX_EVENTS: usize = 32;

    /// Largest number of packets told per burst.
    pub const MAX_CAPTURES: usize = 256;

    /// Returns an empty output.
    pub fn new() -> Self {
        Self {
            transmit: Transmit::with_capacity(256),
            handovers: Handovers::default(),
            recycle: Vec::with_capacity(256),
            spare: Vec::new(),
            events: Vec::with_capacity(Self::MAX_EVENTS),
            captures: Vec::new(),
        }
    }
}

impl<F> Default for Output<F> {
    fn default() -> Self {
        Self::new()
    }
}
