//! Packet memory that a port has for itself: made with the port, known to every worker, retired after it (docs/decisions/0028).

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::ports::bind_all;
use super::{Control, Dataplane};
use crate::rings::MemoryId;
use crate::spec::{DataplaneError, PortMemory, PortSpec};
use crate::thread::Command;
use crate::xsk::{Store, UmemHandle, XskError, XskSocket};

/// The memory of one port.
#[derive(Debug)]
pub(super) struct OwnMemory {
    pub(super) umem: UmemHandle,
    pub(super) store: Arc<Store>,
}

impl OwnMemory {
    /// Returns what is told of it.
    pub(super) fn told(&self) -> PortMemory {
        let several_frames = self.umem.takes_several_frames();
        if self.umem.is_zero_copy() {
            PortMemory::ZeroCopy { several_frames }
        } else {
            PortMemory::OwnWithCopy
        }
    }
}

impl Dataplane {
    /// Makes a memory, binds the port's queues to it, and has every worker know it.
    ///
    /// Errors: the kernel refuses memory or sockets, or what they are to be; a silent worker.
    pub(super) fn make_own(
        &self,
        control: &mut Control,
        spec: &PortSpec,
        zero_copy: bool,
    ) -> Result<(OwnMemory, Vec<XskSocket>), DataplaneError> {
        // Checksums are left to pods only, and those are on the shared memory.
        let (umem, chunks) =
            UmemHandle::with_checksums_in_software(self.config.chunk_size, self.config.own_chunks)?;
        let umem = if self.config.several_frames { umem } else { umem.of_single_frames() };
        let umem = if zero_copy { umem.of_zero_copy() } else { umem };
        let sockets = bind_all(&umem, spec, self.config.bind_patience)?;
        if zero_copy && spec.queues.is_none() {
            no_queue_is_left(&control.umem, spec, sockets.len() as u32)?;
        }
        control.memories += 1;
        let store = Store::of(MemoryId(control.memories), &umem, chunks);
        let own = OwnMemory { umem, store };
        for worker in self.workers() {
            let (umem, store) = (own.umem.clone(), Arc::clone(&own.store));
            let known = self.ask(worker, |done| Command::Know { umem, store, done });
            if let Err(error) = known {
                self.retire(control, own);
                return Err(error);
            }
        }
        Ok((own, sockets))
    }

    /// Has every worker forget a memory, now that its sockets are given back.
    ///
    /// The first of them stays bound as long as the memory is there; so the memory is kept here until the last worker has forgotten it, and
    /// closed here, where waiting for the kernel hurts nobody.
    pub(super) fn retire(&self, control: &mut Control, own: OwnMemory) {
        let memory = own.store.id();
        control.retired.push(Retired { _umem: own.umem, store: Arc::downgrade(&own.store) });
        drop(own.store);
        for worker in self.workers() {
            // A worker that has ended knows nothing.
            let _ = self.tell(worker, Command::Retire { memory });
        }
    }

    /// Waits until retired memories are closed, no longer than `patience`: what waits in a worker may keep one.
    pub(super) fn settle(&self, control: &mut Control, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !control.bury() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The memory of a port that is gone, for as long as workers know it.
#[derive(Debug)]
pub(super) struct Retired {
    _umem: UmemHandle,
    store: Weak<Store>,
}

impl Control {
    /// Closes the retired memories that no worker knows any more. Returns whether that were all.
    pub(super) fn bury(&mut self) -> bool {
        self.retired.retain(|retired| retired.store.strong_count() > 0);
        self.retired.is_empty()
    }

    /// Returns the tables of memories that ports have for themselves, or had and workers still know.
    pub(super) fn own_stores(&mut self) -> impl Iterator<Item = Arc<Store>> {
        self.bury();
        let living = self.ports.values().filter_map(|port| Some(Arc::clone(&port.own.as_ref()?.store)));
        let retired = self.retired.iter().filter_map(|retired| retired.store.upgrade());
        living.chain(retired)
    }
}

/// Holds that the device has no queue `next`: the answer to a bind without a copy is the same for a queue that is not there and for one
/// that the driver refuses. All queues have to be of one kind.
fn no_queue_is_left(shared: &UmemHandle, spec: &PortSpec, next: u32) -> Result<(), DataplaneError> {
    match shared.bind(&spec.device, next, Duration::ZERO) {
        Err(XskError::Bind { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err(DataplaneError::QueueCopies { device: spec.device.clone(), queue: next }),
    }
}
