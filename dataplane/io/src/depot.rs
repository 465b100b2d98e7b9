//! Free chunks that no worker has at hand: a stack of magazines that any worker pushes to and pops from, without a lock.
//!
//! ```text
//!  top ─▶ 7 ─▶ 3 ─▶ 9      a magazine: its chunks, by `next`
//!         │ below
//!         ▼
//!         4 ─▶ 2 ─▶ 5
//! ```
//!
//! **A stack, not a queue.** What was freed last is used next, so traffic goes round in as few chunks as it needs, and their lines,
//! their pages and what the kernel knows of each are near. A queue leads it through the whole memory.
//!
//! The top carries a number that every change counts up. Who read it, was overtaken, and finds the same magazine on top again finds another
//! number beside it and looks once more: what it had read of the magazine below may be old. A model checker walks through the orders of
//! these steps (`tests/models.rs`, which compiles this very file over its own atomics).

use super::atomics::{
    AtomicU32, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// See the module. Chunks go by number; where one is, nobody, here or a worker, is told apart elsewhere.
#[derive(Debug)]
pub struct Depot {
    /// Changes in the upper half; in the lower one the first chunk of the uppermost magazine, plus one.
    top: AtomicU64,
    /// By first chunk: the first chunk of the magazine below, plus one.
    below: Box<[AtomicU32]>,
    /// By chunk: the next one of its magazine, plus one.
    next: Box<[AtomicU32]>,
    /// Chunks in all magazines.
    held: AtomicUsize,
}

impl Depot {
    /// Returns an empty depot for chunks 0 to `chunks` - 1.
    pub fn new(chunks: u32) -> Self {
        let none = || (0..chunks).map(|_| AtomicU32::new(0)).collect();
        Self { top: AtomicU64::new(0), below: none(), next: none(), held: AtomicUsize::new(0) }
    }

    /// Puts a magazine on top. The caller had its chunks and has them no more; none of them is twice in it, or unknown.
    pub fn push(&self, magazine: &[u32]) {
        let Some((first, rest)) = magazine.split_first() else { return };
        let mut last = *first;
        for chunk in rest {
            self.next[last as usize].store(chunk + 1, Relaxed);
            last = *chunk;
        }
        self.next[last as usize].store(0, Relaxed);
        // Before it can be popped, so that the sum never falls below nothing.
        self.held.fetch_add(magazine.len(), Relaxed);
        let mut top = self.top.load(Relaxed);
        loop {
            self.below[*first as usize].store(top as u32, Relaxed);
            match self.top.compare_exchange_weak(top, after(top, first + 1), Release, Relaxed) {
                Ok(_) => return,
                Err(newer) => top = newer,
            }
        }
    }

    /// Appends the chunks of the uppermost magazine to `to`, in the order in which they were pushed; returns how many.
    pub fn pop(&self, to: &mut Vec<u32>) -> usize {
        let mut top = self.top.load(Acquire);
        let mut chunk = loop {
            let Some(first) = (top as u32).checked_sub(1) else { return 0 };
            let below = self.below[first as usize].load(Relaxed);
            match self.top.compare_exchange_weak(top, after(top, below), Acquire, Acquire) {
                Ok(_) => break first + 1,
                Err(newer) => top = newer,
            }
        };
        let before = to.len();
        while chunk > 0 {
            to.push(chunk - 1);
            chunk = self.next[chunk as usize - 1].load(Relaxed);
        }
        let count = to.len() - before;
        self.held.fetch_sub(count, Relaxed);
        count
    }

    /// Returns how many chunks there are about now.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }
}

/// Returns the top that follows `top`, with another magazine.
fn after(top: u64, first: u32) -> u64 {
    ((top >> 32).wrapping_add(1) << 32) | u64::from(first)
}
