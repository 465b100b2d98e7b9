//! What stands between the two cables: the agent's own engine, driven by hand.

use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use benches::namespaces::ifindex;
use benches::{Result, world};
use margay_core::worker::FlowRecord;
use margay_core::{Counters, Frame, Nanos, Output, PortIndex, Topology, View};
use margay_io::engine::{Engine, PortStatistics, Processor, RingId};
use margay_io::steer::{Heartbeat, Steer};
use margay_io::thread::now;
use margay_io::xsk::{Pool, SocketSlot, UmemFrame, UmemHandle, XskRings};
use margay_io::{Role, mount_bpffs};
use margay_policy_engine::snapshot::Snapshot;

const PATIENCE: Duration = Duration::from_secs(2);

/// The engine of the agent with what its thread would do around it.
pub struct Forwarder<P> {
    engine: Engine<XskRings, P>,
    lines: [RingId; 2],
    heartbeat: Heartbeat,
    snapshot: Arc<Snapshot>,
    topology: Topology,
    next_tick: Nanos,
    /// Keeps the programs attached.
    _steer: Steer,
}

impl<P: Processor<UmemFrame>> Forwarder<P> {
    /// Takes devices of the thread's namespace in; the first two are those of pods A and B, and the only ones that anything comes from.
    ///
    /// Errors: the kernel refuses memory, programs or sockets.
    pub fn new(bpffs: &Path, devices: &[String], rules: usize, processor: P) -> Result<Self> {
        mount_bpffs(bpffs)?;
        let mut steer = Steer::load(bpffs)?;
        let heartbeat = steer.take_heartbeat(0)?;
        let (umem, chunks) = UmemHandle::new(4096, 16_384)?;
        let pool = Pool::new(&umem, chunks);
        let (events, _) = crossbeam::channel::bounded(64);
        let mut engine = Engine::new(processor, events);
        let mut add = |slot: u16, device: &str| -> Result<RingId> {
            let index = ifindex(device)?;
            let socket = umem.bind(device, 0, PATIENCE)?;
            steer.own(index, 0, 0, &socket)?;
            let rings = XskRings::new(socket, Rc::clone(&pool), SocketSlot(slot));
            let id = engine.add(PortIndex(slot), rings, Arc::new(PortStatistics::default()), now());
            let mode = steer.attach(Role::Pod, index, device)?;
            if mode != margay_io::AttachMode::Native {
                println!("   note: {device} is in {} mode", mode.as_str());
            }
            Ok(id)
        };
        let ids: Vec<RingId> =
            (0..).zip(devices).map(|(slot, device)| add(slot, device)).collect::<Result<_>>()?;
        let lines = [ids[0], ids[1]];
        let (mut policy, topology) = world::two_pods_among(rules, &devices[2..]);
        Ok(Self {
            engine,
            lines,
            heartbeat,
            snapshot: policy.publish(),
            topology,
            next_tick: Nanos(0),
            _steer: steer,
        })
    }

    fn turn(&mut self) {
        let time = now();
        let view = View { snapshot: Some(&self.snapshot), topology: &self.topology };
        self.engine.turn(view, time);
        if time >= self.next_tick {
            self.engine.tick(view, time);
            // A refused stamp closes the ports, which shows as packets that the sink does not count.
            let _ = self.heartbeat.stamp(time);
            self.next_tick = time + Nanos::from_millis(5);
        }
    }

    /// What the event of a port that slept would do.
    fn wake(&mut self) {
        let time = now();
        for line in self.lines {
            self.engine.activate(line, time);
        }
    }
}

/// Forwards from one port to the other and looks at nothing: what AF_XDP itself costs.
#[derive(Default)]
pub struct Patch(Counters);

impl<F: Frame> Processor<F> for Patch {
    fn handle_burst(
        &mut self,
        _: View<'_>,
        _: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        let to = PortIndex(1 - port.0);
        out.transmit.extend(frames.drain(..).map(|frame| (to, frame)));
    }

    fn handle_timeout(&mut self, _: View<'_>, _: Nanos, _: &mut Output<F>) {}

    fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        Vec::new()
    }

    fn is_waiting(&self) -> bool {
        false
    }

    fn counters(&self) -> &Counters {
        &self.0
    }

    fn flows(&self, _: View<'_>, _: Nanos, _: usize, _: usize) -> (Vec<FlowRecord>, Option<usize>) {
        (Vec::new(), None)
    }
}

/// A forwarder as the loop drives it; the kernel needs no driving.
pub trait Drive {
    /// Takes a burst from each port and sends what comes of it.
    fn turn(&mut self) {}
    /// Does what the event of a port that slept would do.
    fn wake(&mut self) {}
    /// Returns what it counted.
    fn report(&self) -> Option<String> {
        None
    }
}

/// The kernel, between routed interfaces.
pub struct Kernel;

impl Drive for Kernel {}

impl<P: Processor<UmemFrame>> Drive for Forwarder<P> {
    fn turn(&mut self) {
        Forwarder::turn(self);
    }

    fn wake(&mut self) {
        Forwarder::wake(self);
    }

    fn report(&self) -> Option<String> {
        let c = self.engine.processor().counters();
        (c.received > 0).then(|| {
            format!(
                "ours received {}, forwarded {}, dropped {}; flow hits {}, misses {}",
                c.received,
                c.forwarded,
                c.drops.iter().sum::<u64>(),
                c.flow_hits,
                c.flow_misses
            )
        })
    }
}
