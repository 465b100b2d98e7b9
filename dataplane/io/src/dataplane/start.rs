//! The beginning: packet memory, programs, one thread a worker, the keeper beside them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use crossbeam::channel::{bounded, unbounded};
use margay_core::spread::MAX_WORKERS;
use margay_core::{Nanos, Worker, WorkerConfig, WorkerIndex};
use mio::Poll;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::keeper::Keeper;
use super::{Control, Dataplane, Hand};
use crate::engine::{Engine, Processor};
use crate::exchange::{INBOX, Inbox, Inboxes};
use crate::publish;
use crate::spec::{DataplaneConfig, DataplaneError};
use crate::steer::{Steer, mount_bpffs};
use crate::thread::{self, Birth, SharedCounters};
use crate::xsk::{Pool, Pools, Store, UmemFrame, UmemHandle};

/// Panics that may wait to be written down.
const TOLD_PANICS: usize = 64;

impl Dataplane {
    /// Loads the programs and starts the workers. Add the host port first: its socket is the one that all later ones build on.
    ///
    /// Errors: no permission, no bpffs, too little memory.
    pub fn start(config: DataplaneConfig) -> Result<Self, DataplaneError> {
        let (all, workers) = (config.worker.clone(), usize::from(config.workers.max(1)));
        // A flow between pods of two workers has an entry at each.
        let share = if workers == 1 { all.max_flows } else { (2 * all.max_flows).div_ceil(workers) };
        Self::start_with(config, move |index, now| {
            Worker::new(WorkerConfig { index, max_flows: share, ..all.clone() }, now)
        })
    }

    /// As [`Dataplane::start`], with something else in the workers' place; `make` is called on each worker's thread.
    pub fn start_with<P, M>(config: DataplaneConfig, make: M) -> Result<Self, DataplaneError>
    where
        P: Processor<UmemFrame> + 'static,
        M: Fn(WorkerIndex, Nanos) -> P + Send + Sync + 'static,
    {
        if !(1..=MAX_WORKERS).contains(&config.workers) {
            return Err(DataplaneError::Workers(config.workers));
        }
        mount_bpffs(&config.bpffs)?;
        let mut steer = Steer::load(&config.bpffs)?;
        steer.choose(config.xdp);
        let (umem, chunks) = match config.leave_checksums {
            true => UmemHandle::new(config.chunk_size, config.chunks)?,
            false => UmemHandle::with_checksums_in_software(config.chunk_size, config.chunks)?,
        };
        let umem = if config.several_frames { umem } else { umem.of_single_frames() };
        let store = Store::new(&umem, chunks);
        let (drops_in, drops) = bounded(config.drop_events);
        let (wanted_in, wanted) = bounded(16 * usize::from(config.workers));
        let (panics_in, panics) = unbounded();
        let make = Arc::new(make);
        let mut polls = Vec::new();
        let (mut wakers, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..config.workers {
            let poll = Poll::new().map_err(DataplaneError::Thread)?;
            let waker = Arc::new(thread::waker(&poll).map_err(DataplaneError::Thread)?);
            let call = Arc::clone(&waker);
            // A call that is lost costs a tenth of a second, the longest sleep.
            inboxes.push(Arc::new(Inbox::new(INBOX, Box::new(move || drop(call.wake())))));
            polls.push(poll);
            wakers.push(waker);
        }
        let mut hands = Vec::new();
        for (poll, (waker, index)) in polls.into_iter().zip(wakers.into_iter().zip(0..)) {
            let index = WorkerIndex(index);
            let (commands, inbox) = unbounded();
            let (snapshots, snapshot_reader) = publish::channel();
            let (topologies, topology_reader) = publish::channel();
            let counters = Arc::new(SharedCounters::default());
            let heartbeat = steer.take_heartbeat(index.0.into())?;
            let cpu = config.cpus.iter().cycle().nth(index.0.into()).copied();
            let (umem, store, inboxes) = (umem.clone(), Arc::clone(&store), inboxes.clone());
            let (make, shared, spin) = (Arc::clone(&make), Arc::clone(&counters), config.spin);
            let (workers, wanted, drops) = (config.workers, wanted_in.clone(), drops_in.clone());
            let panics = panics_in.clone();
            let body = move || {
                if let Some(cpu) = cpu {
                    stay_on(cpu);
                }
                let pools = Pools::new(Pool::of(&umem, store));
                let make = |now| make(index, now);
                let mut engine = Engine::new(make(thread::now()), drops);
                let own = Arc::clone(&inboxes[usize::from(index.0)]);
                if workers > 1 {
                    let exchange = Inboxes::new(index, inboxes, std::rc::Rc::clone(&pools));
                    engine.join(workers.into(), Box::new(exchange));
                }
                let birth = Birth {
                    index,
                    workers,
                    inbox: own,
                    poll,
                    pools,
                    heartbeat,
                    commands: inbox,
                    snapshots: snapshot_reader,
                    topologies: topology_reader,
                    counters: shared,
                    wanted,
                    panics,
                    spin,
                };
                thread::run(birth, engine, make);
            };
            let name = format!("margay-worker-{}", index.0);
            let thread =
                std::thread::Builder::new().name(name).spawn(body).map_err(DataplaneError::Thread)?;
            let thread = Mutex::new(Some(thread));
            hands.push(Hand { commands, waker, snapshots, topologies, counters, thread });
        }
        // The keeper ends when the last worker does.
        drop(panics_in);
        let (told, told_panics) = bounded(TOLD_PANICS);
        let control = Control {
            steer,
            umem,
            ports: BTreeMap::new(),
            retired: Vec::new(),
            memories: 0,
            topology: None,
            encryption: None,
        };
        let keeper = Keeper {
            control: Arc::new(Mutex::new(control)),
            hands: hands.into(),
            ledger: Arc::default(),
            told,
        };
        let (control, hands) = (Arc::clone(&keeper.control), Arc::clone(&keeper.hands));
        let ledger = Arc::clone(&keeper.ledger);
        let name = "margay-keeper".to_owned();
        let body = move || keeper.run(&panics);
        let keeper = std::thread::Builder::new().name(name).spawn(body).map_err(DataplaneError::Thread)?;
        Ok(Self {
            config,
            control,
            hands,
            ledger,
            keeper: Some(keeper),
            panics: told_panics,
            drops,
            wanted,
            next_tap: AtomicU32::new(1),
        })
    }
}

fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    if let Err(error) = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
        tracing::warn!(cpu, %error, "a worker is not bound to its processor");
    }
}
