//! The handle of the packet path: everything the rest of the agent can ask of it.
//!
//! Calls come from any thread and may wait for the kernel or for a worker; workers never wait for them.
//!
//! | module | its part |
//! |---|---|
//! | [`start`] | packet memory, programs, threads |
//! | [`ports`] | devices that come and go |
//! | [`memories`] | packet memory that a port has for itself |
//! | [`publication`] | snapshots and topologies to the workers |
//! | [`report`] | counters, flows, told packets, memory |
//! | [`keeper`] | ports whose frames end workers |

mod keeper;
mod memories;
mod ports;
mod publication;
mod report;
mod start;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use margay_core::tunnel::Encryption;
use margay_core::{PacketEvent, PortIndex, Topology, WorkerIndex};
use margay_policy_engine::snapshot::Snapshot;

use crate::engine::PortStatistics;
use crate::panics::{Ledger, WorkerPanic};
use crate::publish::Publisher;
pub use crate::spec::{
    DataplaneConfig, DataplaneError, FrameReport, MemoryBook, MemoryChoice, MemoryReport, PortCounters,
    PortMemory, PortReport, PortSpec,
};
use crate::steer::Steer;
use crate::thread::{Command, SharedCounters};
use crate::xsk::UmemHandle;
use memories::{OwnMemory, Retired};

/// How long an answer of the worker may take; it answers within a burst, so longer means that it hangs.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct PortState {
    spec: PortSpec,
    report: PortReport,
    /// Chunks that its sockets need to receive into, even while they are silent.
    least: usize,
    /// The memory that it has for itself.
    own: Option<OwnMemory>,
    /// One for each worker that has queues of the port.
    statistics: Vec<(WorkerIndex, Arc<PortStatistics>)>,
}

/// What the control side has of one worker.
struct Hand {
    commands: Sender<Command>,
    waker: Arc<mio::Waker>,
    snapshots: Publisher<Snapshot>,
    topologies: Publisher<Topology>,
    counters: Arc<SharedCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Control {
    steer: Steer,
    umem: UmemHandle,
    ports: BTreeMap<PortIndex, PortState>,
    /// Memories of ports that are gone, for as long as workers know them.
    retired: Vec<Retired>,
    /// How many memories ports have had for themselves; the last one's number.
    memories: u32,
    /// What was published last; workers get both in one.
    topology: Option<Arc<Topology>>,
    encryption: Option<Arc<Encryption>>,
}

/// The packet path of one node: its workers and their ports. `Send` and `Sync`; dropping it stops the workers and leaves the programs on
/// their devices, so pods are closed and the NIC is the kernel's.
pub struct Dataplane {
    config: DataplaneConfig,
    control: Arc<Mutex<Control>>,
    hands: Arc<[Hand]>,
    ledger: Arc<Mutex<Ledger>>,
    keeper: Option<JoinHandle<()>>,
    panics: Receiver<WorkerPanic>,
    drops: Receiver<PacketEvent>,
    wanted: Receiver<Vec<(PortIndex, IpAddr)>>,
    next_tap: AtomicU32,
}

impl Dataplane {
    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand(&self, worker: WorkerIndex) -> Result<&Hand, DataplaneError> {
        self.hands.get(usize::from(worker.0)).ok_or(DataplaneError::WorkerSilent)
    }

    fn tell(&self, worker: WorkerIndex, command: Command) -> Result<(), DataplaneError> {
        let hand = self.hand(worker)?;
        hand.commands.send(command).map_err(|_| DataplaneError::WorkerSilent)?;
        hand.waker.wake().map_err(DataplaneError::Thread)
    }

    fn ask<T>(
        &self,
        worker: WorkerIndex,
        command: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, DataplaneError> {
        let (reply, answer) = bounded(1);
        self.tell(worker, command(reply))?;
        answer.recv_timeout(ANSWER).map_err(|_| DataplaneError::WorkerSilent)
    }

    /// Returns every worker.
    fn workers(&self) -> impl Iterator<Item = WorkerIndex> {
        (0..self.config.workers).map(WorkerIndex)
    }

    /// Returns whether every worker's thread still runs. One that has ended (a panic that it could not go on from) never comes back:
    /// pods are closed, so restart.
    pub fn is_running(&self) -> bool {
        self.hands.iter().all(|hand| {
            let thread = hand.thread.lock().unwrap_or_else(PoisonError::into_inner);
            thread.as_ref().is_some_and(|thread| !thread.is_finished())
        })
    }

    /// Stops the workers. Programs stay on their devices: pods are closed at once, uplinks pass to the kernel within a second.
    pub fn shutdown(self) {}
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        for worker in self.workers() {
            // A worker that has ended already is what we want.
            let _ = self.tell(worker, Command::Stop);
        }
        for hand in self.hands.iter() {
            let thread = hand.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a worker had panicked");
            }
        }
        if let Some(keeper) = self.keeper.take() {
            // It has nothing to panic over that would matter at the end.
            let _ = keeper.join();
        }
    }
}
