//! What crosses threads, under a model checker that tries every order of steps: the sleep of a worker, the hand-over of a snapshot, free
//! chunks. The
//! very files of the crate are compiled here a second time, over the checker's atomics instead of the processor's.

mod atomics {
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

#[path = "../src/depot.rs"]
mod depot;
#[path = "../src/doze.rs"]
mod doze;

/// What `publish` needs of others, in a form that the checker can follow. [`swap`] stands for the crate arc-swap, by its contract: a load
/// returns the value of a store and sees all that came before that store.
mod shared {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{Arc, Mutex};
    pub use std::sync::PoisonError;

    pub struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

    impl<T> std::fmt::Debug for ArcSwapOption<T> {
        fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            to.write_str("ArcSwapOption")
        }
    }

    impl<T> ArcSwapOption<T> {
        pub fn empty() -> Self {
            Self(Mutex::new(None))
        }

        pub fn swap(&self, new: Option<Arc<T>>) -> Option<Arc<T>> {
            std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), new)
        }
    }

    pub struct Cache<T> {
        from: Arc<ArcSwapOption<T>>,
        cached: Option<Arc<T>>,
    }

    impl<T> std::fmt::Debug for Cache<T> {
        fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            to.write_str("Cache")
        }
    }

    impl<T> Cache<T> {
        pub fn new(from: Arc<ArcSwapOption<T>>) -> Self {
            Self { from, cached: None }
        }

        pub fn load(&mut self) -> &Option<Arc<T>> {
            let now = self.from.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.cached = now;
            &self.cached
        }
    }
}

#[path = "../src/publish.rs"]
#[allow(dead_code, reason = "the model uses a part")]
mod publish;

use std::cell::Cell;

use depot::Depot;
use doze::Doze;
use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// A worker that lies down while somebody posts: either it sees what was posted, or it is called.
#[test]
fn whoever_posts_to_a_sleeper_is_seen_or_calls() {
    loom::model(|| {
        let doze = Arc::new(Doze::default());
        let queue = Arc::new(AtomicUsize::new(0));
        let calls = Arc::new(AtomicUsize::new(0));
        let posters: Vec<_> = (0..2)
            .map(|_| {
                let (doze, queue, calls) = (Arc::clone(&doze), Arc::clone(&queue), Arc::clone(&calls));
                thread::spawn(move || {
                    queue.fetch_add(1, Ordering::Release);
                    if doze.must_call() {
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let may_sleep = doze.lie_down(|| queue.load(Ordering::Acquire) == 0);
        for poster in posters {
            poster.join().expect("no panic");
        }
        // Asleep now, with something in the queue: somebody must have called.
        assert!(!may_sleep || calls.load(Ordering::Relaxed) > 0, "a call was missed");
        assert!(calls.load(Ordering::Relaxed) <= 1, "one call wakes");
        doze.wake_up();
    });
}

loom::thread_local! {
    /// Whether this thread is the worker.
    static WORKER: Cell<bool> = Cell::new(false);
}

/// A snapshot in two halves that says who freed it.
struct Halves(u64, u64, std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Drop for Halves {
    fn drop(&mut self) {
        if WORKER.with(Cell::get) {
            self.2.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

/// Snapshots are taken whole and in order, are acknowledged only when in use, and are never freed by the worker.
#[test]
fn snapshots_reach_the_worker_whole_and_end_at_the_publisher() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let freed_by_worker = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (publisher, mut reader) = publish::channel::<Halves>();
        let publisher = Arc::new(publisher);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let worker = thread::spawn(move || {
            WORKER.with(|worker| worker.set(true));
            for _ in 0..2 {
                let generation = reader.load().0.map(|numbered| {
                    assert_eq!(numbered.value().0, numbered.value().1, "both halves are of one snapshot");
                    numbered.value().0
                });
                noted.lock().expect("no panic").push(generation.unwrap_or(0));
            }
            // The worker's thread ends before the publisher goes; what it holds is the publisher's, too.
            WORKER.with(|worker| worker.set(false));
            reader
        });
        for generation in 1..=2 {
            let freed = std::sync::Arc::clone(&freed_by_worker);
            publisher.publish(Arc::new(Halves(generation, generation, freed)), generation);
        }
        publisher.collect_retired();
        let acknowledged = publisher.acknowledged();
        let mut reader = worker.join().expect("no panic");
        let seen = seen.lock().expect("no panic").clone();
        assert!(seen.is_sorted(), "never back to an older one: {seen:?}");
        assert!(acknowledged <= seen.iter().copied().max().unwrap_or(0), "acknowledged before it was in use");
        assert!(!freed_by_worker.load(std::sync::atomic::Ordering::SeqCst), "the worker freed a snapshot");
        assert_eq!(reader.load().0.map(|numbered| numbered.value().0), Some(2));
        assert_eq!(publisher.collect_retired(), 0, "nothing is kept for ever");
    });
}

/// Two workers that take free chunks and give them back, in other magazines than they came in: none is had by both, none is lost.
#[test]
fn a_free_chunk_is_had_by_one_worker() {
    const CHUNKS: u32 = 5;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let depot = Arc::new(Depot::new(CHUNKS));
        for magazine in [[0, 1], [2, 3]] {
            depot.push(&magazine);
        }
        depot.push(&[4]);
        let had: Arc<Vec<AtomicUsize>> = Arc::new((0..CHUNKS).map(|_| AtomicUsize::new(0)).collect());
        let work = |depot: Arc<Depot>, had: Arc<Vec<AtomicUsize>>| {
            let mut chunks = Vec::new();
            depot.pop(&mut chunks);
            depot.pop(&mut chunks);
            for chunk in &chunks {
                assert_eq!(had[*chunk as usize].fetch_add(1, Ordering::Relaxed), 0, "had by both");
            }
            for chunk in &chunks {
                had[*chunk as usize].fetch_sub(1, Ordering::Relaxed);
            }
            // What was on top first is below now, and on top of it another beginning.
            chunks.reverse();
            let (some, rest) = chunks.split_at(chunks.len() / 2);
            depot.push(some);
            depot.push(rest);
        };
        let other = {
            let (depot, had) = (Arc::clone(&depot), Arc::clone(&had));
            thread::spawn(move || work(depot, had))
        };
        work(Arc::clone(&depot), had);
        other.join().expect("no panic");
        let mut all = Vec::new();
        assert_eq!(depot.held(), CHUNKS as usize);
        while depot.pop(&mut all) > 0 {}
        all.sort_unstable();
        assert_eq!(all, (0..CHUNKS).collect::<Vec<_>>());
        assert_eq!(depot.held(), 0);
    });
}
