//! Numbered datagrams between two network namespaces, one a millisecond: what policy does to them is seen as it happens.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Runs `work` on a thread inside a network namespace.
pub fn in_netns(netns: &str, work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    let file = File::open(Path::new("/run/netns").join(netns)).expect("namespace");
    thread::spawn(move || {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter");
        work();
    })
}

/// What became of datagrams.
struct Tally {
    stop: AtomicBool,
    begin: Instant,
    sent: AtomicU64,
    arrived: AtomicU64,
    /// When the last arrived, in microseconds since `begin`.
    last: AtomicU64,
    /// How many had been sent when the last arrived.
    sent_by_last: AtomicU64,
    /// Number of the last that arrived.
    number: AtomicU64,
    /// Most datagrams in a row that did not arrive and that a later one followed.
    hole: AtomicU64,
}

impl Tally {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            stop: AtomicBool::new(false),
            begin: Instant::now(),
            sent: zero(),
            arrived: zero(),
            last: zero(),
            sent_by_last: zero(),
            number: zero(),
            hole: zero(),
        }
    }

    fn note(&self, number: u64) {
        let now = u64::try_from(self.begin.elapsed().as_micros()).expect("short");
        let before = self.number.swap(number, Ordering::AcqRel);
        self.hole.fetch_max(number.saturating_sub(before + 1), Ordering::AcqRel);
        self.last.store(now.max(1), Ordering::Release);
        self.sent_by_last.store(self.sent.load(Ordering::Acquire), Ordering::Release);
        self.arrived.fetch_add(1, Ordering::AcqRel);
    }
}

/// A moment in the life of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    sent: u64,
    arrived: u64,
}

/// Datagrams on their way.
///
/// What is said about them is in relation to what was sent: a machine that is slow sends fewer, and those it sends arrive or do not.
pub struct Stream {
    tally: Arc<Tally>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// How long to wait for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl Stream {
    /// Sends from one network namespace to `target` in another, until it is dropped.
    pub fn start(from: &str, to: &str, target: SocketAddr) -> Self {
        let tally = Arc::new(Tally::new());
        let (ready, is_ready) = mpsc::channel();
        let receiver = in_netns(to, {
            let (tally, ready) = (Arc::clone(&tally), ready.clone());
            move || {
                let socket = UdpSocket::bind(("0.0.0.0", target.port())).expect("bind");
                socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
                ready.send(()).expect("test");
                let mut buffer = [0; 8];
                while !tally.stop.load(Ordering::Relaxed) {
                    if socket.recv_from(&mut buffer).is_ok() {
                        tally.note(u64::from_be_bytes(buffer));
                    }
                }
            }
        });
        let sender = in_netns(from, {
            let tally = Arc::clone(&tally);
            move || {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("bind");
                ready.send(()).expect("test");
                while !tally.stop.load(Ordering::Relaxed) {
                    let number = tally.sent.fetch_add(1, Ordering::AcqRel);
                    let _ = socket.send_to(&number.to_be_bytes(), target);
                    thread::sleep(Duration::from_micros(900));
                }
            }
        });
        (0..2).for_each(|_| is_ready.recv_timeout(PATIENCE).expect("sockets"));
        Self { tally, threads: vec![receiver, sender] }
    }

    /// How many arrived.
    pub fn arrived(&self) -> u64 {
        self.tally.arrived.load(Ordering::Acquire)
    }

    fn last(&self) -> Instant {
        self.tally.begin + Duration::from_micros(self.tally.last.load(Ordering::Acquire))
    }

    /// Now; holes are counted anew.
    pub fn mark(&self) -> Mark {
        self.tally.hole.store(0, Ordering::Release);
        Mark { sent: self.tally.sent.load(Ordering::Acquire), arrived: self.arrived() }
    }

    /// Asserts that since `mark` datagrams were sent and that they arrived: most of them, and without an interruption of two thousand.
    pub fn went_on(&self, mark: Mark, what: &str) {
        let sent = self.tally.sent.load(Ordering::Acquire) - mark.sent;
        let arrived = self.arrived() - mark.arrived;
        let hole = self.tally.hole.load(Ordering::Acquire);
        assert!(sent > 100, "{what}: the machine sent {sent} datagrams only");
        assert!(
            arrived * 2 > sent && hole < 2_000,
            "{what}: flows go on, and {arrived} of {sent} arrived, {hole} in a row did not"
        );
    }

    /// Waits until datagrams arrive; returns when the first did.
    pub fn opened(&self) -> Option<Instant> {
        let (before, deadline) = (self.arrived(), Instant::now() + PATIENCE);
        while self.arrived() == before {
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_micros(200));
        }
        Some(Instant::now())
    }

    /// Waits until nothing has arrived for `silence`, in which at least a third of what that time takes was sent; returns when the last
    /// did.
    pub fn closed(&self, silence: Duration) -> Option<Instant> {
        let began = Instant::now();
        let (deadline, at_begin) = (began + PATIENCE, self.tally.sent.load(Ordering::Acquire));
        let enough = u64::try_from(silence.as_millis()).expect("short") / 3;
        loop {
            let sent = self.tally.sent.load(Ordering::Acquire);
            let since = sent - self.tally.sent_by_last.load(Ordering::Acquire).max(at_begin).min(sent);
            if since >= enough && self.last().max(began).elapsed() >= silence {
                return Some(self.last());
            }
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.tally.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
