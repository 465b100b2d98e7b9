//! The CNI server's side of the control thread: hands attachments over and waits for the answer.

use std::sync::{Arc, Once, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use margay_io::Dataplane;
use margay_wire::ETHERNET_LEN;

use super::reconciler::{Board, Command};
use crate::endpoints::{AttachHooks, EndpointRecord, LargePackets};

/// Passes attachments to the control thread.
pub struct Attachments {
    /// The control thread's ear.
    pub commands: Sender<Command>,
    /// What the control thread shows.
    pub board: Board,
    /// MTU of pods that was told; the uplink's, or what encryption leaves of it, where none was.
    pub told_mtu: Option<u32>,
    /// MTU of the smallest uplink.
    pub uplink_mtu: u32,
    /// Largest MTU whose packets a pod's port takes.
    pub largest_mtu: u32,
    /// Says whether the packet memory has room for one more port with packets of that many bytes.
    pub dataplane: Arc<Dataplane>,
    /// MTU of pods' interfaces, where packets between pods of this node may be larger than those that leave it.
    pub local_mtu: Option<u32>,
    /// Longest wait for policy.
    pub patience: Duration,
}

/// Grace for the control thread to answer after a deadline that it keeps itself.
const GRACE: Duration = Duration::from_secs(5);

/// Whether it was said that there is no room for large packets; plug-ins ask again and again.
static SAID: Once = Once::new();

impl AttachHooks for Attachments {
    fn ready(&self) -> Result<(), String> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        if board.not_ready.is_empty() { Ok(()) } else { Err(board.not_ready.join("; ")) }
    }

    fn default_mtu(&self) -> u32 {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        self.told_mtu.or(board.pod_mtu).unwrap_or(self.uplink_mtu).min(self.largest_mtu)
    }

    fn largest_mtu(&self) -> Option<u32> {
        Some(self.largest_mtu)
    }

    fn large_packets(&self) -> Option<LargePackets> {
        let mtu = self.local_mtu.filter(|mtu| *mtu > self.default_mtu())?;
        if !self.dataplane.has_room_for(mtu + ETHERNET_LEN as u32) {
            SAID.call_once(|| {
                tracing::warn!(
                    mtu,
                    "the packet memory has no room for one more pod with large packets: new ones get the MTU of what leaves the node"
                );
            });
            return None;
        }
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        Some(LargePackets { mtu, within: board.pod_cidrs.clone() }).filter(|large| !large.within.is_empty())
    }

    fn attach(&self, record: &EndpointRecord, deadline: Instant) -> Result<(), String> {
        let deadline = deadline.min(Instant::now() + self.patience);
        let (reply, answer) = bounded(1);
        let gone = || "the agent is stopping; try again when it runs".to_owned();
        self.commands
            .send(Command::Attach { record: Box::new(record.clone()), deadline, reply })
            .map_err(|_| gone())?;
        let patience = deadline.saturating_duration_since(Instant::now()) + GRACE;
        answer.recv_timeout(patience).unwrap_or_else(|_| Err(gone()))
    }

    fn detach(&self, record: &EndpointRecord) {
        let (reply, done) = bounded(1);
        if self.commands.send(Command::Detach { record: Box::new(record.clone()), reply }).is_ok() {
            let _ = done.recv_timeout(GRACE);
        }
    }

    fn check(&self, record: &EndpointRecord) -> Result<(), String> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        match board.endpoints.iter().find(|(known, _)| known.id == record.id) {
            Some((_, true)) => Ok(()),
            Some((known, false)) => {
                Err(format!("the policy of {}/{} is not in force", known.pod.namespace, known.pod.name))
            }
            None => Err("the dataplane does not know this interface".to_owned()),
        }
    }
}
