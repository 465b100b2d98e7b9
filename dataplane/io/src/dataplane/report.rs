//! What the packet path says of itself: counters, flows, told packets, memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use margay_core::spread::HOST_KEEPER;
use margay_core::tunnel::TunnelReport;
use margay_core::worker::{Captured, FlowRecord, TapFilter, TapId};
use margay_core::{Counters, Nanos, PacketEvent, PortIndex, WorkerIndex};

use super::{Dataplane, Hand};
use crate::rings::MemoryId;
use crate::spec::{
    DataplaneError, FrameReport, MemoryBook, MemoryReport, PortCounters, PortReport, PortSpec,
};
use crate::thread::{self, Command, SharedCounters};
use crate::xsk::RING_SIZE;

/// Kernel memory per chunk and bound socket without the rings, as measured on Linux 6.18 (docs/decisions/0002); it is outside our
/// resident size.
const KERNEL_BYTES_PER_CHUNK_AND_SOCKET: u64 = 129;
/// Told packets that may wait for one watcher.
const WATCHED: usize = 4_096;
/// The flow table of worker `w` is listed at cursors from `w << WORKER_SHIFT` on.
const WORKER_SHIFT: u32 = 40;

impl Dataplane {
    /// Returns the core's counters as of the last burst, all workers' together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for hand in self.hands.iter() {
            sum += &hand.counters.load();
        }
        sum
    }

    /// Returns each worker's own numbers: its part of the counters, wake-ups, turns, lost drop events.
    pub fn worker_counters(&self) -> impl Iterator<Item = &SharedCounters> {
        self.hands.iter().map(|hand| &*hand.counters)
    }

    /// Returns the time since each worker's last heartbeat.
    pub fn heartbeat_ages(&self) -> Vec<Duration> {
        let now = thread::now();
        let age = |hand: &Hand| (now - Nanos(hand.counters.last_stamp.load(Relaxed))).0;
        self.hands.iter().map(|hand| Duration::from_nanos(age(hand))).collect()
    }

    /// Returns the longest time since a worker's last heartbeat.
    pub fn heartbeat_age(&self) -> Duration {
        self.heartbeat_ages().into_iter().max().unwrap_or_default()
    }

    /// Returns what each port did.
    ///
    /// Errors: a silent worker.
    pub fn port_counters(&self) -> Result<BTreeMap<PortIndex, PortCounters>, DataplaneError> {
        let mut kernel = Vec::new();
        for worker in self.workers() {
            kernel.extend(self.ask(worker, |reply| Command::Statistics { reply })?);
        }
        let mut all: BTreeMap<PortIndex, PortCounters> = BTreeMap::new();
        for (index, port) in &self.control().ports {
            let sum = all.entry(*index).or_default();
            for (_, from) in &port.statistics {
                sum.rx_packets += from.rx_packets.load(Relaxed);
                sum.rx_bytes += from.rx_bytes.load(Relaxed);
                sum.tx_packets += from.tx_packets.load(Relaxed);
                sum.tx_bytes += from.tx_bytes.load(Relaxed);
                sum.tx_failed += from.tx_failed.load(Relaxed);
                sum.copied_packets += from.copied_packets.load(Relaxed);
                sum.copied_bytes += from.copied_bytes.load(Relaxed);
                sum.refused += from.refused.load(Relaxed);
                sum.gone |= from.gone.load(Relaxed);
            }
        }
        for (index, socket) in kernel {
            if let Some(port) = all.get_mut(&index) {
                port.kernel.rx_dropped += socket.rx_dropped;
                port.kernel.rx_ring_full += socket.rx_ring_full;
                port.kernel.fill_ring_empty += socket.fill_ring_empty;
                port.kernel.invalid_descriptors += socket.invalid_descriptors;
            }
        }
        Ok(all)
    }

    /// Returns the ports, each with its specification and report.
    pub fn ports(&self) -> Vec<(PortSpec, PortReport)> {
        self.control().ports.values().map(|p| (p.spec.clone(), p.report.clone())).collect()
    }

    /// Begins to tell packets that match `filter`, from every worker, until [`Dataplane::end_watch`]. A watcher that does not
    /// keep up misses packets, which the next one it gets counts; it never holds a worker up.
    ///
    /// Errors: a worker that does not answer.
    pub fn watch(&self, filter: TapFilter) -> Result<(TapId, Receiver<Captured>), DataplaneError> {
        let (told, packets) = bounded(WATCHED);
        let id = TapId(self.next_tap.fetch_add(1, Relaxed));
        for worker in self.workers() {
            let (filter, told) = (filter.clone(), told.clone());
            self.ask(worker, |done| Command::Watch { id, filter, told, done })?;
        }
        Ok((id, packets))
    }

    /// Ends [`Dataplane::watch`].
    pub fn end_watch(&self, id: TapId) {
        for worker in self.workers() {
            // A worker that is gone tells nobody.
            let _ = self.tell(worker, Command::EndWatch { id });
        }
    }

    /// Returns up to `limit` live flows from position `cursor`, and where to go on; `None` at the end. Small pieces keep a worker's
    /// bursts short. Start at 0.
    ///
    /// Errors: a silent worker.
    pub fn flows(
        &self,
        cursor: usize,
        limit: usize,
    ) -> Result<(Vec<FlowRecord>, Option<usize>), DataplaneError> {
        let (at, slot) = (cursor >> WORKER_SHIFT, cursor & ((1 << WORKER_SHIFT) - 1));
        if at >= self.hands.len() {
            return Ok((Vec::new(), None));
        }
        let worker = WorkerIndex(at as u16);
        let (mut flows, next) = self.ask(worker, |reply| Command::Flows { cursor: slot, limit, reply })?;
        // Who keeps a flow for the other pod has counted that pod's packets.
        for other in self.workers().filter(|other| *other != worker) {
            let mut shared: Vec<_> = flows.iter_mut().filter(|it| it.elsewhere == Some(other)).collect();
            if shared.is_empty() {
                continue;
            }
            let keys = shared.iter().map(|flow| flow.key).collect();
            // Of one that is silent nothing is learnt; the flows are told all the same.
            let counted = self.ask(other, |reply| Command::Counted { keys, reply }).unwrap_or_default();
            shared.iter_mut().zip(counted).for_each(|(flow, counted)| flow.learn(counted));
        }
        let next = match next {
            Some(slot) => Some(at << WORKER_SHIFT | slot),
            None => (at + 1 < self.hands.len()).then_some((at + 1) << WORKER_SHIFT),
        };
        Ok((flows, next))
    }

    /// Returns the state of the tunnels: the plan in force, our keys, every peer.
    ///
    /// Errors: a silent worker.
    pub fn tunnel_report(&self) -> Result<TunnelReport, DataplaneError> {
        let parts = self.workers().map(|worker| self.ask(worker, |reply| Command::Tunnels { reply }));
        Ok(TunnelReport::new(parts.collect::<Result<Vec<_>, _>>()?))
    }

    /// Returns where sampled drop events arrive.
    pub fn drop_events(&self) -> Receiver<PacketEvent> {
        self.drops.clone()
    }

    /// Returns where lists of neighbours that packets wait for arrive; each list replaces the one before.
    pub fn wanted_neighbours(&self) -> Receiver<Vec<(PortIndex, IpAddr)>> {
        self.wanted.clone()
    }

    /// Returns the largest packet, from the Ethernet header on, that ports receive and send; known once the first port is there.
    pub fn largest_packet(&self) -> u32 {
        self.control().umem.largest_packet()
    }

    /// Returns whether packets of several frames are among them.
    pub fn takes_several_frames(&self) -> bool {
        self.control().umem.takes_several_frames()
    }

    /// Returns whether checksums stay left to the kernels of pods that get packets of other pods; see [`UmemHandle::leaves_checksums`].
    ///
    /// [`UmemHandle::leaves_checksums`]: crate::xsk::UmemHandle::leaves_checksums
    pub fn leaves_checksums(&self) -> bool {
        self.control().umem.leaves_checksums()
    }

    /// Returns what the packet path costs in memory.
    ///
    /// Errors: a silent worker.
    pub fn memory(&self) -> Result<MemoryReport, DataplaneError> {
        let (chunks, _) = self.ask(HOST_KEEPER, |reply| Command::Census { reply })?;
        let mut control = self.control();
        control.bury();
        let mut report = MemoryReport { umem_bytes: control.umem.bytes(), chunks, ..MemoryReport::default() };
        for port in control.ports.values() {
            let sockets = port.report.queues;
            report.sockets += sockets;
            let umem = port.own.as_ref().map_or(&control.umem, |own| &own.umem);
            report.kernel_bytes +=
                KERNEL_BYTES_PER_CHUNK_AND_SOCKET * u64::from(umem.chunks()) * u64::from(sockets);
            if let Some(own) = &port.own {
                report.umem_bytes += own.umem.bytes();
                report.own_umem_bytes += own.umem.bytes();
                report.chunks += own.store.census();
            }
        }
        // Two rings of 16-byte and two of 8-byte entries.
        report.ring_bytes = u64::from(report.sockets) * u64::from(RING_SIZE) * 48;
        Ok(report)
    }

    /// Returns where the frames are, by two books that agree when nothing is under way and no frame was ever lost.
    ///
    /// Errors: a silent worker.
    pub fn frames(&self) -> Result<FrameReport, DataplaneError> {
        let mut report = FrameReport::default();
        let mut memories: BTreeMap<MemoryId, MemoryBook> = BTreeMap::new();
        for worker in self.workers() {
            let own = self.ask(worker, |reply| Command::Frames { reply })?;
            report.spares += own.spares;
            report.waiting += own.waiting;
            for (memory, free) in own.at_hand {
                memories.entry(memory).or_default().listed += free;
            }
            for (port, memory, filled, in_flight) in own.rings {
                let sum = report.rings.entry(port).or_default();
                *sum = (sum.0 + filled, sum.1 + in_flight);
                let book = memories.entry(memory).or_default();
                (book.fill, book.transmit) = (book.fill + filled, book.transmit + in_flight);
            }
        }
        let (table, in_depot) = self.ask(HOST_KEEPER, |reply| Command::Census { reply })?;
        let mut tables = vec![(MemoryId::SHARED, table, in_depot)];
        let mut control = self.control();
        tables.extend(control.own_stores().map(|store| (store.id(), store.census(), store.in_depot())));
        drop(control);
        for (memory, table, in_depot) in tables {
            let mut book = memories.remove(&memory).unwrap_or_default();
            book.table = table;
            book.listed += in_depot;
            report.table += table;
            report.listed += book.listed;
            report.memories.insert(memory, book);
        }
        Ok(report)
    }

    /// Returns the directory of the pinned links.
    pub fn bpffs(&self) -> &Path {
        &self.config.bpffs
    }
}
