//! Devices that come and go: sockets on their queues, programs in front of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use margay_core::spread::HOST_KEEPER;
use margay_core::{PortIndex, Spread, WorkerIndex};

use super::{Control, Dataplane, PortState};
use crate::engine::PortStatistics;
use crate::rings::MemoryId;
use crate::spec::{DataplaneError, MemoryChoice, PortMemory, PortReport, PortSpec};
use crate::steer::{AttachChoice, AttachMode, EgressMode, Role};
use crate::thread::Command;
use crate::xsk::{SocketSlot, UmemHandle, XskError, XskSocket};

/// How long the end of a port waits for workers to forget its memory.
const SETTLED: Duration = Duration::from_millis(300);

impl Dataplane {
    /// Takes a device in: sockets on its queues, then the program. The device may be down. Until this returns, the device is closed
    /// (when [`Dataplane::attach_closed`] stands on it) or untouched.
    ///
    /// Errors: no such device, a foreign program on it, a busy queue. Nothing of the port remains then, but a pinned closed program.
    pub fn add_port(&self, spec: PortSpec) -> Result<PortReport, DataplaneError> {
        self.add_port_as(spec, self.config.xdp)
    }

    /// As [`Dataplane::add_port`], with the ways in which the program of this port may be attached.
    pub fn add_port_as(&self, spec: PortSpec, choice: AttachChoice) -> Result<PortReport, DataplaneError> {
        self.add_port_in(spec, choice, MemoryChoice::Shared)
    }

    /// As [`Dataplane::add_port_as`], with the packet memory that the port is to be on. One of its own that is refused is no error: the
    /// port is on the shared memory then, and its report says why.
    pub fn add_port_in(
        &self,
        spec: PortSpec,
        choice: AttachChoice,
        memory: MemoryChoice,
    ) -> Result<PortReport, DataplaneError> {
        if spec.role == Role::Closed {
            return Err(DataplaneError::ClosedPort(spec.device));
        }
        let mut guard = self.control();
        let control = &mut *guard;
        if let Some(there) = control.ports.get(&spec.index) {
            return Err(DataplaneError::PortExists(spec.index.0, there.spec.device.clone()));
        }
        // Else a bind would say so, less well.
        index_of(&spec.device)?;
        if spec.role == Role::Uplink {
            // Its queue may still be that of the memory it had before.
            self.settle(control, self.config.bind_patience);
        }
        let zero_copy = match memory {
            MemoryChoice::Shared => {
                let sockets = bind_all(&control.umem, &spec, self.config.bind_patience)?;
                return self.take_in(control, spec, choice, MemoryId::SHARED, sockets);
            }
            MemoryChoice::ZeroCopy => true,
            MemoryChoice::OwnWithCopy => false,
        };
        let why = match self.take_in_with_own(control, &spec, choice, zero_copy) {
            // A program above the driver is given copies.
            Ok(report) if zero_copy && report.mode == AttachMode::Generic => {
                self.let_go(control, spec.index)?;
                "the driver does not take the program".to_owned()
            }
            Ok(report) => return Ok(report),
            Err(error) => error.to_string(),
        };
        self.settle(control, self.config.bind_patience);
        tracing::info!(
            device = spec.device,
            why,
            "no packet memory of its own for this port: its packets are copied"
        );
        let index = spec.index;
        let sockets = bind_all(&control.umem, &spec, self.config.bind_patience)?;
        self.take_in(control, spec, choice, MemoryId::SHARED, sockets)?;
        let port = control.ports.get_mut(&index).ok_or(DataplaneError::NoPort(index.0))?;
        port.report.memory = PortMemory::Refused(why);
        Ok(port.report.clone())
    }

    fn take_in_with_own(
        &self,
        control: &mut Control,
        spec: &PortSpec,
        choice: AttachChoice,
        zero_copy: bool,
    ) -> Result<PortReport, DataplaneError> {
        let (own, sockets) = self.make_own(control, spec, zero_copy)?;
        if let Err(error) = self.take_in(control, spec.clone(), choice, own.store.id(), sockets) {
            self.retire(control, own);
            return Err(error);
        }
        let port = control.ports.get_mut(&spec.index).ok_or(DataplaneError::NoPort(spec.index.0))?;
        port.report.memory = own.told();
        port.own = Some(own);
        Ok(port.report.clone())
    }

    /// Puts the sockets of a port, bound to one memory, to work, and the program in front of them.
    fn take_in(
        &self,
        control: &mut Control,
        spec: PortSpec,
        choice: AttachChoice,
        memory: MemoryId,
        sockets: Vec<XskSocket>,
    ) -> Result<PortReport, DataplaneError> {
        let ifindex = index_of(&spec.device)?;
        let queues = sockets.len() as u32;
        let of_shared = sockets.iter().filter(|_| memory == MemoryId::SHARED);
        let least = of_shared.map(XskSocket::least).sum();
        let (needed, half) = (control.needed() + least, control.umem.chunks() as usize / 2);
        if needed > half {
            tracing::warn!(
                device = spec.device,
                needed,
                memory = half,
                "packet memory is small for the ports there are: of their large packets some will be lost; lower the MTU of pods (--local-mtu)"
            );
        }
        let spread = Spread::new(self.config.workers, []);
        let owner = |queue: usize| match spec.role {
            Role::Uplink => spread.reader(queue as u16),
            Role::Host => HOST_KEEPER,
            Role::Pod | Role::Closed => spread.home(spec.index),
        };
        // Devices get new indexes, never used ones; what an earlier port left under this one would be its own remains.
        control.steer.disown(ifindex);
        let mut shares: BTreeMap<WorkerIndex, Vec<XskSocket>> = BTreeMap::new();
        for (queue, socket) in sockets.into_iter().enumerate() {
            let worker = owner(queue);
            if let Err(error) = control.steer.own(ifindex, queue as u32, worker.0.into(), &socket) {
                control.steer.disown(ifindex);
                return Err(error.into());
            }
            shares.entry(worker).or_default().push(socket);
        }
        let mut statistics = Vec::new();
        let mut taken = Ok(());
        for (worker, sockets) in shares {
            let numbers = Arc::new(PortStatistics::default());
            statistics.push((worker, Arc::clone(&numbers)));
            let answer = self.ask(worker, |done| Command::Add {
                port: spec.index,
                memory,
                sockets,
                statistics: numbers,
                done,
            });
            taken = match answer {
                Ok(Ok(())) => continue,
                Ok(Err(source)) => Err(DataplaneError::WorkerRefused { device: spec.device.clone(), source }),
                Err(error) => Err(error),
            };
            break;
        }
        let attached = taken.and_then(|()| {
            control.steer.choose(choice);
            let attached = control.steer.attach(spec.role, ifindex, &spec.pin);
            control.steer.choose(self.config.xdp);
            attached.map_err(DataplaneError::from)
        });
        let mode = match attached {
            Ok(mode) => mode,
            Err(error) => {
                control.steer.disown(ifindex);
                for (worker, _) in statistics {
                    // The first error is the one to tell.
                    let _ = self.take_back(worker, spec.index, memory);
                }
                return Err(error);
            }
        };
        let report = PortReport { ifindex, mode, queues, worker: owner(0).0, memory: PortMemory::Shared };
        let state = PortState { spec, report: report.clone(), least, own: None, statistics };
        control.ports.insert(state.spec.index, state);
        Ok(report)
    }

    /// Returns whether the packet memory has room for one more port whose device brings packets of up to `packet` bytes: every port keeps
    /// as many chunks ready as two of its largest packets need, and half of the memory may be bound that way.
    pub fn has_room_for(&self, packet: u32) -> bool {
        let control = self.control();
        control.needed() + control.umem.least_for(packet) <= control.umem.chunks() as usize / 2
    }

    /// Lets a port go: its sockets are closed and its memory is free again. The program stays on the device, if that still exists, and
    /// drops (pod, host) or passes (uplink) everything; [`Dataplane::detach`] takes it off. Works when the device is gone already.
    /// The port that was added first cannot come back: its socket is the packet memory's own and is closed with it.
    ///
    /// Errors: no such port; a silent worker.
    pub fn remove_port(&self, index: PortIndex) -> Result<(), DataplaneError> {
        self.let_go(&mut self.control(), index)
    }

    fn let_go(&self, control: &mut Control, index: PortIndex) -> Result<(), DataplaneError> {
        let port = control.ports.get(&index).ok_or(DataplaneError::NoPort(index.0))?;
        let memory = port.own.as_ref().map_or(MemoryId::SHARED, |own| own.store.id());
        control.steer.disown(port.report.ifindex);
        for (worker, _) in &port.statistics {
            self.take_back(*worker, index, memory)?;
        }
        if let Some(own) = control.ports.remove(&index).and_then(|port| port.own) {
            self.retire(control, own);
            self.settle(control, SETTLED);
        }
        self.ledger().forget(index);
        Ok(())
    }

    /// Takes a port's sockets, on this memory, from a worker and closes them here, where waiting for the kernel hurts nobody.
    fn take_back(
        &self,
        worker: WorkerIndex,
        index: PortIndex,
        memory: MemoryId,
    ) -> Result<(), DataplaneError> {
        let sockets = self.ask(worker, |taken| Command::Remove { port: index, taken })?;
        let closed = |(socket, slot): (XskSocket, SocketSlot)| {
            drop(socket);
            slot
        };
        let slots = sockets.into_iter().map(closed).collect();
        self.tell(worker, Command::Reclaim { memory, slots })
    }

    /// Puts a program on a device that drops everything, and pins it under `pin`: what the CNI plug-in wants before it sets a pod's
    /// device up. A later [`Dataplane::add_port`] with the same pin exchanges it in one step.
    ///
    /// Errors: no such device, or it takes no program.
    pub fn attach_closed(&self, ifindex: u32, pin: &str) -> Result<AttachMode, DataplaneError> {
        Ok(self.control().steer.attach(Role::Closed, ifindex, pin)?)
    }

    /// Has the kernel's own IP frames that leave an uplink take the host port instead, so that they cross policy: a tc program at the
    /// uplink's egress redirects them out of `kernel_end`, the kernel's end of the host port's pair, and they arrive on the host
    /// port's rings as the kernel's neighbour table addressed them. ARP, neighbour and listener discovery and tagged frames stay with
    /// the kernel, and so does everything while the worker is silent or the host port is not there. What the worker itself sends does
    /// not pass through the program. It is pinned under `pin`, and so outlives this handle (then silent, hence passing);
    /// [`Dataplane::retain_links`] ends it with the others. A governed uplink may be governed again, with the same `pin`.
    ///
    /// The agent does not call this until it enforces host endpoints.
    ///
    /// Errors: not an uplink, or no host port; a kernel without tcx and `clsact`.
    pub fn govern(
        &self,
        uplink: PortIndex,
        kernel_end: u32,
        pin: &str,
    ) -> Result<EgressMode, DataplaneError> {
        let mut guard = self.control();
        let control = &mut *guard;
        let port = control.ports.get(&uplink).ok_or(DataplaneError::NoPort(uplink.0))?;
        if port.spec.role != Role::Uplink {
            return Err(DataplaneError::WrongRole(uplink.0, "uplink"));
        }
        let device = port.report.ifindex;
        let host = control.ports.values().find(|p| p.spec.role == Role::Host);
        let our_end = host.ok_or(DataplaneError::WrongRole(0, "host"))?.report.ifindex;
        let modes = [EgressMode::Tcx, EgressMode::Filter];
        Ok(control.steer.govern(device, kernel_end, our_end, pin, &modes)?)
    }

    /// Ends [`Dataplane::govern`]: the kernel's frames leave by the uplink again. Returns whether anything stood under `pin`.
    ///
    /// Errors: no such port.
    pub fn ungovern(&self, uplink: PortIndex, pin: &str) -> Result<bool, DataplaneError> {
        let mut control = self.control();
        let port = control.ports.get(&uplink).ok_or(DataplaneError::NoPort(uplink.0))?;
        let device = port.report.ifindex;
        Ok(control.steer.ungovern(device, pin))
    }

    /// Takes the program pinned under `pin` off its device. Returns whether there was one.
    pub fn detach(&self, pin: &str) -> bool {
        self.control().steer.detach(pin)
    }

    /// Takes off every pinned program whose name is not in `pins`, and returns the names that ended. Call it at the start, once it is
    /// known which endpoints still exist.
    pub fn retain_links(&self, pins: &BTreeSet<String>) -> Vec<String> {
        self.control().steer.retain_links(pins)
    }

    /// Returns the names of all pinned programs.
    pub fn link_names(&self) -> BTreeSet<String> {
        self.control().steer.link_names()
    }

    /// Makes uplinks give us what goes to `local` (this node's pods) and what comes from `cluster` (all pod CIDRs).
    ///
    /// Errors: more prefixes than the maps hold.
    pub fn set_uplink_prefixes(&self, local: &[IpNet], cluster: &[IpNet]) -> Result<(), DataplaneError> {
        Ok(self.control().steer.set_uplink_prefixes(local, cluster)?)
    }
}

impl Control {
    /// Chunks that the sockets of all ports need to receive into, even while they are silent.
    fn needed(&self) -> usize {
        self.ports.values().map(|port| port.least).sum()
    }
}

fn index_of(device: &str) -> Result<u32, DataplaneError> {
    nix::net::if_::if_nametoindex(device)
        .map_err(|e| DataplaneError::NoDevice { device: device.to_owned(), source: e.into() })
}

/// Binds the queues that the port is to have: as many as asked for, or one after another until the device has no more.
pub(super) fn bind_all(
    umem: &UmemHandle,
    spec: &PortSpec,
    patience: Duration,
) -> Result<Vec<XskSocket>, DataplaneError> {
    let mut sockets = Vec::new();
    for queue in 0..spec.queues.unwrap_or(64) {
        match umem.bind(&spec.device, queue, patience) {
            Ok(socket) => sockets.push(socket),
            Err(XskError::Bind { source, .. })
                if queue > 0 && spec.queues.is_none() && source.raw_os_error() == Some(libc::EINVAL) =>
            {
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockets)
}
