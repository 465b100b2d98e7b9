//! Who judges the port whose frame ended a worker: a thread that sleeps until one does.
//!
//! Workers reach no map of the kernel programs, and a port's frames may end another worker than its own; so whoever sees all of it
//! decides. Until then the port rests at the worker that it ended, which itself goes on at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Receiver, Sender};
use margay_core::{PortIndex, WorkerIndex};

use super::{Control, Dataplane, Hand};
use crate::panics::{Judgement, Ledger, WorkerPanic};
use crate::spec::DataplaneError;
use crate::thread::Command;

pub(super) struct Keeper {
    pub(super) control: Arc<Mutex<Control>>,
    pub(super) hands: Arc<[Hand]>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    /// Where panics are told to the rest of the agent, while there is room.
    pub(super) told: Sender<WorkerPanic>,
}

impl Keeper {
    /// Judges until the last worker has ended.
    pub(super) fn run(self, panics: &Receiver<WorkerPanic>) {
        while let Ok(panic) = panics.recv() {
            let WorkerPanic { worker, number, port, message, .. } = &panic;
            tracing::error!(
                worker = worker.0,
                number,
                port = port.map(|p| p.0),
                message,
                "a worker panicked"
            );
            if let Some(port) = port {
                let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
                let judgement = ledger.note(*port, panic.at);
                drop(ledger);
                match judgement {
                    Judgement::GoOn => self.tell(*worker, Command::Open { port: *port }),
                    Judgement::Quarantine => self.quarantine(*port),
                    // From another worker's inbox or from what waited: its own queues are closed.
                    Judgement::StayAway => {}
                }
            }
            // Nobody reads so many: their number is in the counters.
            let _ = self.told.try_send(panic);
        }
    }

    fn quarantine(&self, index: PortIndex) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let control = &mut *control;
        let Some(port) = control.ports.get(&index) else {
            // Removed meanwhile; whoever comes by its number is another.
            self.ledger.lock().unwrap_or_else(PoisonError::into_inner).forget(index);
            return;
        };
        control.steer.close(port.report.ifindex);
        for (worker, _) in &port.statistics {
            self.tell(*worker, Command::Close { port: index });
        }
        tracing::error!(
            port = index.0,
            device = port.spec.device,
            "frames of this port end workers: it is quarantined until it is released or removed"
        );
    }

    /// A worker that has ended needs nothing more.
    fn tell(&self, worker: WorkerIndex, command: Command) {
        if let Some(hand) = self.hands.get(usize::from(worker.0))
            && hand.commands.send(command).is_ok()
        {
            let _ = hand.waker.wake();
        }
    }
}

impl Dataplane {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where panics of workers arrive, each with the frame that was at hand. One that finds no room is counted all the same
    /// ([`crate::thread::SharedCounters::panics`]).
    pub fn panics(&self) -> Receiver<WorkerPanic> {
        self.panics.clone()
    }

    /// Returns the ports whose frames ended workers so often that nothing is taken from them any more; see [`crate::panics`].
    pub fn quarantined(&self) -> BTreeSet<PortIndex> {
        self.ledger().quarantined().clone()
    }

    /// Ends a port's quarantine; what waited at the port is forgotten. Returns whether it was quarantined.
    ///
    /// Errors: no such port; the kernel refuses to open it: it stays quarantined; a worker is gone.
    pub fn release(&self, index: PortIndex) -> Result<bool, DataplaneError> {
        let mut guard = self.control();
        let control = &mut *guard;
        let port = control.ports.get(&index).ok_or(DataplaneError::NoPort(index.0))?;
        if !self.ledger().quarantined().contains(&index) {
            return Ok(false);
        }
        control.steer.open(port.report.ifindex)?;
        // Before its frames count again.
        self.ledger().forget(index);
        for (worker, _) in &port.statistics {
            self.tell(*worker, Command::Open { port: index })?;
        }
        tracing::info!(port = index.0, device = port.spec.device, "the port is released from quarantine");
        Ok(true)
    }
}
