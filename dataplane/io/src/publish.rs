//! One writer, one reader, no waiting: how a snapshot reaches a worker and how its predecessor ends.
//!
//! ```text
//!  publisher                                       worker (once a burst)
//!  store(new) ── pointer ─────────────────────────▶ load; if it changed: use it, drop the old handle
//!  keep old                                         acknowledge(sequence of new)   [Release]
//!  free old once acknowledged ≥ its successor ◀──── [Acquire]
//! ```
//!
//! The publisher keeps every retired value until the worker has acknowledged a newer one. So the last handle is never the worker's,
//! and freeing a large snapshot never happens on the packet path. A model checker walks through every order of these steps
//! (`tests/models.rs`, which compiles this very file over its own atomics).

use super::shared::{Arc, ArcSwapOption, AtomicU64, Cache, Mutex, Ordering, PoisonError};

/// A published value with its place in the sequence.
#[derive(Debug)]
pub struct Numbered<T> {
    sequence: u64,
    generation: u64,
    value: Arc<T>,
}

impl<T> Numbered<T> {
    /// Returns the value.
    pub fn value(&self) -> &T {
        &self.value
    }
}

#[derive(Debug)]
struct Acknowledged {
    sequence: AtomicU64,
    generation: AtomicU64,
}

type Slot<T> = ArcSwapOption<Numbered<T>>;

/// The writing side.
#[derive(Debug)]
pub struct Publisher<T> {
    current: Arc<Slot<T>>,
    acknowledged: Arc<Acknowledged>,
    retired: Mutex<Retired<T>>,
}

#[derive(Debug)]
struct Retired<T> {
    sequence: u64,
    values: Vec<Arc<Numbered<T>>>,
}

/// The reading side, owned by one worker.
#[derive(Debug)]
pub struct Subscriber<T> {
    cache: Cache<Numbered<T>>,
    acknowledged: Arc<Acknowledged>,
    seen: u64,
}

/// Returns the two ends; nothing is published yet.
pub fn channel<T>() -> (Publisher<T>, Subscriber<T>) {
    let current: Arc<Slot<T>> = Arc::new(ArcSwapOption::empty());
    let acknowledged = Arc::new(Acknowledged { sequence: AtomicU64::new(0), generation: AtomicU64::new(0) });
    let publisher = Publisher {
        current: Arc::clone(&current),
        acknowledged: Arc::clone(&acknowledged),
        retired: Mutex::new(Retired { sequence: 0, values: Vec::new() }),
    };
    (publisher, Subscriber { cache: Cache::new(current), acknowledged, seen: 0 })
}

impl<T> Publisher<T> {
    /// Publishes a value. Frees on this thread what the worker is done with.
    pub fn publish(&self, value: Arc<T>, generation: u64) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.sequence += 1;
        let new = Arc::new(Numbered { sequence: retired.sequence, generation, value });
        if let Some(old) = self.current.swap(Some(new)) {
            retired.values.push(old);
        }
        self.collect(&mut retired);
    }

    fn collect(&self, retired: &mut Retired<T>) {
        // Acquire: pairs with the worker's Release, so its handle on every older value is gone before we free ours.
        let done = self.acknowledged.sequence.load(Ordering::Acquire);
        retired.values.retain(|value| value.sequence >= done);
    }

    /// Frees what the worker is done with; returns how many retired values are still kept.
    pub fn collect_retired(&self) -> usize {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        self.collect(&mut retired);
        retired.values.len()
    }

    /// Returns the generation that the worker has in force; zero before the first.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.generation.load(Ordering::Acquire)
    }
}

impl<T> Subscriber<T> {
    /// Loads what is current; call it once a burst. The second value is whether it is new since the last call.
    pub fn load(&mut self) -> (Option<&Numbered<T>>, bool) {
        let current = self.cache.load().as_deref();
        let mut new = false;
        if let Some(current) = current
            && current.sequence != self.seen
        {
            self.seen = current.sequence;
            new = true;
            // The cache let go of the older value when it loaded this one.
            self.acknowledged.generation.store(current.generation, Ordering::Release);
            self.acknowledged.sequence.store(current.sequence, Ordering::Release);
        }
        (current, new)
    }
}
