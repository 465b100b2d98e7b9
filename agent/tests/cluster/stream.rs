//! Numbered datagrams between two network namespaces, one a millisecond: what policy does to them is seen as it happens.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Runs `work` on a thread inside a network namespace.
pub fn in_netns(netns: &str, work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    let file = File::open(Path::new("/run/netns").join(netns)).expect("namespace");
    thread::spawn(move || {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter");
        work();
    })
}

/// A datagram that arrived.
#[derive(Clone, Copy)]
struct Arrival {
    number: u64,
    at: Instant,
    /// How many had been sent by then.
    sent: u64,
}

/// What became of datagrams.
struct Tally {
    stop: AtomicBool,
    begin: Instant,
    sent: AtomicU64,
    /// All that arrived, in the order in which they did.
    arrived: Mutex<Vec<Arrival>>,
}

impl Tally {
    fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            begin: Instant::now(),
            sent: AtomicU64::new(0),
            arrived: Mutex::new(Vec::new()),
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    fn arrived(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, number: u64) {
        let arrival = Arrival { number, at: Instant::now(), sent: self.sent() };
        self.arrived().push(arrival);
    }
}

/// A moment in the life of a stream: how many were sent, and how many arrived.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    sent: u64,
    arrived: usize,
}

/// Datagrams on their way.
///
/// What is said about them is in relation to what was sent: a machine that is slow sends fewer, and those it sends arrive or do not.
pub struct Stream {
    tally: Arc<Tally>,
    threads: Vec<thread::JoinHandle<()>>,
}

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
    pub fn arrived(&self) -> usize {
        self.tally.arrived().len()
    }

    /// Now.
    pub fn mark(&self) -> Mark {
        Mark { sent: self.tally.sent(), arrived: self.arrived() }
    }

    /// Asserts that datagrams sent since `mark` arrived, nine of ten, with no interruption of two thousand, and that they still do.
    pub fn went_on(&self, mark: Mark, what: &str) {
        let sent = self.tally.sent();
        let numbers: Vec<u64> = {
            let all = self.tally.arrived();
            all[mark.arrived..].iter().map(|a| a.number).filter(|n| (mark.sent..sent).contains(n)).collect()
        };
        // The last that was sent ends the last hole, as if the one after it had arrived.
        let mut next = mark.sent;
        let mut hole = 0;
        for number in numbers.iter().copied().chain([sent]) {
            hole = hole.max(number.saturating_sub(next));
            next = next.max(number + 1);
        }
        let (sent, arrived) = (sent - mark.sent, numbers.len() as u64);
        assert!(sent > 100, "{what}: the machine sent {sent} datagrams only");
        assert!(
            arrived * 10 >= sent * 9 && hole < 2_000,
            "{what}: flows go on, and {arrived} of {sent} arrived, {hole} in a row did not"
        );
        let alive = self.opened_since(self.mark(), Duration::from_secs(2));
        assert!(alive.is_some(), "{what}: {arrived} of {sent} arrived, and then no more");
    }

    /// Waits until a datagram arrives that is sent from now on; returns when the first did.
    pub fn opened(&self) -> Option<Instant> {
        self.opened_since(self.mark(), PATIENCE)
    }

    /// Waits until a datagram arrived that was sent after `mark`; returns when the first did. One that was on its way at the mark says
    /// nothing.
    pub fn opened_since(&self, mark: Mark, patience: Duration) -> Option<Instant> {
        let deadline = Instant::now() + patience;
        loop {
            let first =
                self.tally.arrived()[mark.arrived..].iter().find(|a| a.number >= mark.sent).map(|a| a.at);
            if first.is_some() || Instant::now() > deadline {
                return first;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nothing has arrived for `silence`, in which at least a third of what that time takes was sent; returns when the last
    /// did.
    pub fn closed(&self, silence: Duration) -> Option<Instant> {
        let began = Instant::now();
        let (deadline, at_begin) = (began + PATIENCE, self.tally.sent());
        let enough = u64::try_from(silence.as_millis()).expect("short") / 3;
        loop {
            let last = self.tally.arrived().last().copied();
            let (at, by_last) = last.map_or((self.tally.begin, 0), |last| (last.at, last.sent));
            let since = self.tally.sent().saturating_sub(by_last.max(at_begin));
            if since >= enough && at.max(began).elapsed() >= silence {
                return Some(at);
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
