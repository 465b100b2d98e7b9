//! Ports that send everything back: what the agent drives over pairs of its own to learn which way of crossing an interface is the
//! cheapest here.
//!
//! It is the agent's own way, program, socket, rings and engine, with the policy left out; so what is measured is what is used. It has
//! packet memory and programs of its own, and belongs to the thread that made it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use margay_core::{Counters, Frame, Nanos, Output, PortIndex, Topology, View};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::engine::{Engine, PortStatistics, Processor, RingId};
use crate::spec::DataplaneError;
use crate::steer::{AttachChoice, AttachMode, Heartbeat, Role, Steer};
use crate::thread::now;
use crate::xsk::{Pool, SocketSlot, UmemFrame, UmemHandle, XskRings};

/// As in the packet path: a chunk of another size would cost something else.
const CHUNK: u32 = 4096;
const CHUNKS: u32 = 2048;
const PATIENCE: Duration = Duration::from_millis(500);
const STAMP: Nanos = Nanos::from_millis(100);
const IPV4_UDP: usize = 42;

/// The ports.
pub struct Echo {
    engine: Engine<XskRings, Mirror>,
    ports: Vec<RingId>,
    poll: Poll,
    events: Events,
    heartbeat: Heartbeat,
    topology: Topology,
    next_stamp: Nanos,
    umem: UmemHandle,
    pool: Rc<Pool>,
    /// Keeps the programs attached.
    steer: Steer,
}

impl Echo {
    /// Makes packet memory in the calling thread's network namespace. `bpffs` is a mounted one that nobody else uses.
    ///
    /// Errors: the kernel refuses memory or programs.
    pub fn new(bpffs: &Path) -> Result<Self, DataplaneError> {
        let mut steer = Steer::load(bpffs)?;
        let mut heartbeat = steer.take_heartbeat(0)?;
        let time = now();
        heartbeat.stamp(time)?;
        let (umem, chunks) = UmemHandle::new(CHUNK, CHUNKS)?;
        let pool = Pool::new(&umem, chunks);
        let (events, _) = crossbeam::channel::bounded(1);
        Ok(Self {
            engine: Engine::new(Mirror::default(), events),
            ports: Vec::new(),
            poll: Poll::new().map_err(DataplaneError::Thread)?,
            events: Events::with_capacity(16),
            heartbeat,
            topology: Topology::default(),
            next_stamp: time + STAMP,
            umem,
            pool,
            steer,
        })
    }

    /// Takes a device in; returns how its program is attached.
    ///
    /// Errors: the kernel refuses the socket, or that way of attaching.
    pub fn add(&mut self, device: &str, choice: AttachChoice) -> Result<AttachMode, DataplaneError> {
        let ifindex = nix::net::if_::if_nametoindex(device)
            .map_err(|e| DataplaneError::NoDevice { device: device.to_owned(), source: e.into() })?;
        let socket = self.umem.bind(device, 0, PATIENCE)?;
        self.steer.own(ifindex, 0, 0, &socket)?;
        self.steer.choose(choice);
        let mode = match self.steer.attach(Role::Pod, ifindex, device) {
            Ok(mode) => mode,
            Err(error) => {
                self.steer.disown(ifindex);
                return Err(error.into());
            }
        };
        let number = self.ports.len() as u16;
        let rings = XskRings::new(socket, Rc::clone(&self.pool), SocketSlot(number));
        self.watch(rings.as_raw_fd()).map_err(DataplaneError::Thread)?;
        let line = self.engine.add(PortIndex(number), rings, Arc::new(PortStatistics::default()), now());
        self.ports.push(line);
        Ok(mode)
    }

    /// Has [`Echo::wait`] return for this descriptor as well.
    ///
    /// Errors: the kernel refuses it.
    pub fn watch(&self, descriptor: RawFd) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&descriptor), Token(0), Interest::READABLE)
    }

    /// Sleeps until something comes that had not come before, no longer than `timeout`.
    pub fn wait(&mut self, timeout: Duration) {
        // An interrupted wait is like a timeout.
        let _ = self.poll.poll(&mut self.events, Some(timeout));
    }

    /// Takes what has come at any device and sends it back; returns how many packets.
    pub fn turn(&mut self) -> usize {
        let time = now();
        if time >= self.next_stamp {
            // A port that is closed for want of it gives nothing back, which shows.
            let _ = self.heartbeat.stamp(time);
            self.next_stamp = time + STAMP;
        }
        for line in &self.ports {
            self.engine.activate(*line, time);
        }
        self.engine.turn(View { snapshot: None, topology: &self.topology }, time)
    }
}

/// Sends every datagram back to its sender, without a checksum: that of a veth's far end is not complete.
#[derive(Default)]
struct Mirror(Counters);

impl Processor<UmemFrame> for Mirror {
    fn handle_burst(
        &mut self,
        _: View<'_>,
        _: Nanos,
        port: PortIndex,
        frames: &mut Vec<UmemFrame>,
        out: &mut Output<UmemFrame>,
    ) {
        for mut frame in frames.drain(..) {
            let bytes = frame.data_mut();
            if bytes.len() < IPV4_UDP || bytes[12..15] != [0x08, 0x00, 0x45] || bytes[23] != 17 {
                out.recycle.push(frame);
                continue;
            }
            for (first, second, len) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
                let (ours, theirs) = bytes.split_at_mut(second);
                ours[first..first + len].swap_with_slice(&mut theirs[..len]);
            }
            bytes[40..42].fill(0);
            out.transmit.push((port, frame));
        }
    }

    fn counters(&self) -> &Counters {
        &self.0
    }
}
