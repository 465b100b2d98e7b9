//! A worker's ways into all packet memories: the shared one, and those of uplinks that have their own.
//!
//! A frame at work knows its pool; a frame between workers names its memory by number, and is fastened to the taker's pool of that memory.
//! So a memory is made known to every worker before its first socket is at work, and forgotten by each only when every chunk of it is free:
//! then no frame of it is at work or on its way anywhere.

use std::cell::RefCell;
use std::rc::Rc;

use super::frame::LooseFrame;
use super::{Pool, UmemFrame};
use crate::exchange::Pass;
use crate::rings::MemoryId;

#[derive(Debug)]
struct Own {
    pool: Rc<Pool>,
    /// Its sockets are closed.
    retired: bool,
}

/// See the module. Belongs to one thread.
#[derive(Debug)]
pub struct Pools {
    shared: Rc<Pool>,
    own: RefCell<Vec<Own>>,
}

impl Pools {
    /// Returns the pools of a worker that knows the shared memory only.
    pub fn new(shared: Rc<Pool>) -> Rc<Self> {
        Rc::new(Self { shared, own: RefCell::default() })
    }

    /// Returns the pool of the shared memory.
    pub fn shared(&self) -> &Rc<Pool> {
        &self.shared
    }

    /// Makes another memory known.
    pub fn add(&self, pool: Rc<Pool>) {
        self.own.borrow_mut().push(Own { pool, retired: false });
    }

    /// Returns the pool of a memory that is known.
    pub fn of(&self, memory: MemoryId) -> Option<Rc<Pool>> {
        if memory == self.shared.id() {
            return Some(Rc::clone(&self.shared));
        }
        self.own.borrow().iter().map(|own| &own.pool).find(|pool| pool.id() == memory).cloned()
    }

    /// Has a memory forgotten as soon as all of its chunks are free. Its sockets are closed.
    pub fn retire(&self, memory: MemoryId) {
        for own in self.own.borrow_mut().iter_mut().filter(|own| own.pool.id() == memory) {
            own.retired = true;
        }
    }

    /// Forgets retired memories whose chunks are all free.
    pub fn forget(&self) {
        self.own.borrow_mut().retain(|own| !own.retired || !own.pool.store.is_at_rest());
    }

    /// Returns how many free chunks of each memory this worker keeps to itself.
    pub fn at_hand(&self) -> Vec<(MemoryId, usize)> {
        let shared = (self.shared.id(), self.shared.at_hand());
        let own = self.own.borrow();
        std::iter::once(shared).chain(own.iter().map(|own| (own.pool.id(), own.pool.at_hand()))).collect()
    }
}

impl Pass for Rc<Pools> {
    type Frame = UmemFrame;
    type Loose = LooseFrame;

    fn loosen(&self, frame: UmemFrame) -> LooseFrame {
        LooseFrame::of(frame)
    }

    /// A memory is not forgotten while a frame of it is on its way. Should it be, the frame arrives empty and is dropped as such.
    fn fasten(&self, loose: LooseFrame) -> UmemFrame {
        let pool = self.of(loose.memory());
        loose.fasten(pool)
    }

    fn spare(&self) -> Option<UmemFrame> {
        self.shared.spare()
    }
}
