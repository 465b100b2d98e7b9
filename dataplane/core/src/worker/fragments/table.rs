//! The table of datagrams under way, and the frames that wait in it.
//!
//! Everything has its size from the start. A port that asks for more than its share pays with its own oldest; when the whole is full, the
//! port that has most of it pays. A poisoned datagram is not forgotten for a newer one of the same port.

use foldhash::fast::SeedableRandomState;
use hashbrown::HashMap;
use margay_wire::IpHeaders;

use super::datagram::{Datagram, Extent, Fit, Key, State};
use super::queue::{Link, Queue};
use crate::flow::{FlowKey, Side};
use crate::frame::Frame;
use crate::handover::Errand;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::verdict::DropReason;

/// Most datagrams, of all ports and of one.
pub(super) const DATAGRAMS: usize = 1024;
pub(super) const DATAGRAMS_PER_PORT: usize = 256;
/// Most frames that wait, of all ports and of one. The largest datagram has 45 fragments of 1,500 bytes.
pub(super) const FRAMES: usize = 256;
pub(super) const FRAMES_PER_PORT: usize = 64;
/// Most bytes in the frames that wait, of one port; of all ports, four times as many.
pub(super) const BYTES_PER_PORT: usize = 128 << 10;
/// How long a datagram may take (Linux `ipfrag_time`, policy model 14.5).
const HOLD: Nanos = Nanos::from_secs(30);

/// What happens to a fragment that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is the first: judge it, and tell [`Table::allow`] or [`Table::refuse`] how that went.
    Judge(u16),
    /// It goes with this flow, sent by this side.
    Follow(FlowKey, Side),
    /// It waits: give the frame to [`Table::hold`].
    Hold(u16),
}

/// A frame that waits for the first fragment of its datagram.
#[derive(Debug)]
pub(super) struct Held<F> {
    pub(super) frame: F,
    pub(super) port: PortIndex,
    /// Why another worker gave it to us.
    pub(super) errand: Option<Errand>,
    start: u16,
    slot: u16,
}

/// Where a frame that waited goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Follow(FlowKey, Side),
    Drop(DropReason),
}

/// What one port has in the table.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    datagrams: u16,
    frames: u16,
    bytes: u32,
    /// Whose first has not come; whose first has; whose fragments overlapped. Each in order of time.
    waiting: Queue,
    decided: Queue,
    poisoned: Queue,
}

#[derive(Debug)]
pub(super) struct Table<F> {
    datagrams: Vec<Datagram>,
    free: Vec<u16>,
    index: HashMap<Key, u16, SeedableRandomState>,
    held: Vec<Held<F>>,
    bytes: usize,
    /// Frames that wait no longer; the worker takes them after every fragment.
    pub(super) released: Vec<(Held<F>, Fate)>,
    shares: Vec<Share>,
}

fn link(datagram: &mut Datagram) -> &mut Link {
    &mut datagram.link
}

impl Share {
    /// Returns the oldest datagram of a state that is `wanted`.
    fn oldest(&self, wanted: impl Fn(State) -> bool, datagrams: &[Datagram]) -> Option<u16> {
        [self.waiting, self.decided, self.poisoned]
            .into_iter()
            .filter_map(Queue::head)
            .filter(|slot| wanted(datagrams[usize::from(*slot)].state))
            .min_by_key(|slot| datagrams[usize::from(*slot)].expires)
    }

    fn queue(&mut self, state: State) -> &mut Queue {
        match state {
            State::Waiting => &mut self.waiting,
            State::Followed(..) | State::Refused(_) => &mut self.decided,
            State::Poisoned => &mut self.poisoned,
        }
    }
}

impl<F: Frame> Table<F> {
    /// Returns an empty table; `seed` keeps strangers from choosing who shares a bucket.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            datagrams: Vec::with_capacity(DATAGRAMS),
            free: Vec::with_capacity(DATAGRAMS),
            // Twice as large as needed, so that coming and going never makes it grow.
            index: HashMap::with_capacity_and_hasher(2 * DATAGRAMS, crate::secret::hasher(seed)),
            held: Vec::with_capacity(FRAMES),
            bytes: 0,
            released: Vec::with_capacity(FRAMES),
            shares: Vec::with_capacity(512),
        }
    }

    fn share(&mut self, port: PortIndex) -> &mut Share {
        let at = usize::from(port.0);
        if self.shares.len() <= at {
            self.shares.resize(at + 1, Share::default());
        }
        &mut self.shares[at]
    }

    /// Takes note of a fragment with `frame_len` bytes of frame.
    ///
    /// Errors: it ends here, by the name returned.
    pub(super) fn arrive(
        &mut self,
        port: PortIndex,
        ip: &IpHeaders,
        frame_len: usize,
        now: Nanos,
    ) -> Result<Step, DropReason> {
        let (id, extent) = Extent::of(ip.fragment).ok_or(DropReason::BadFragment)?;
        let key = Key::new(port, ip, id);
        let slot = match self.index.get(&key).copied() {
            Some(slot) if self.datagrams[usize::from(slot)].expires > now => slot,
            Some(slot) => {
                self.remove(slot, DropReason::FragmentWithoutFirst);
                self.open(key, now)?
            }
            None => self.open(key, now)?,
        };
        let datagram = &mut self.datagrams[usize::from(slot)];
        if datagram.state == State::Poisoned {
            return Err(DropReason::FragmentOverlap);
        }
        match datagram.take(extent) {
            Fit::New => {}
            Fit::Duplicate => return Err(DropReason::FragmentDuplicate),
            Fit::Overlap => {
                self.become_state(slot, State::Poisoned, now);
                self.release(slot, Fate::Drop(DropReason::FragmentOverlap));
                return Err(DropReason::FragmentOverlap);
            }
            Fit::TooMany => {
                self.refuse(slot, DropReason::FragmentsFull, now);
                return Err(DropReason::FragmentsFull);
            }
        }
        let (is_complete, state) = (datagram.is_complete(), datagram.state);
        match state {
            State::Waiting if extent.start == 0 => Ok(Step::Judge(slot)),
            State::Waiting if self.make_room(slot, frame_len) => Ok(Step::Hold(slot)),
            // Without this one the others are of no use.
            State::Waiting => {
                self.refuse(slot, DropReason::FragmentsFull, now);
                Err(DropReason::FragmentsFull)
            }
            State::Followed(flow, side) => {
                if is_complete {
                    self.remove(slot, DropReason::FragmentWithoutFirst);
                }
                Ok(Step::Follow(flow, side))
            }
            State::Refused(reason) => {
                if is_complete {
                    self.remove(slot, reason);
                }
                Err(reason)
            }
            State::Poisoned => Err(DropReason::FragmentOverlap),
        }
    }

    /// The first fragment passed: the others go with its flow.
    pub(super) fn allow(&mut self, slot: u16, flow: FlowKey, side: Side, now: Nanos) {
        self.decide(slot, State::Followed(flow, side), Fate::Follow(flow, side), now);
    }

    /// The datagram ends as named.
    pub(super) fn refuse(&mut self, slot: u16, reason: DropReason, now: Nanos) {
        self.decide(slot, State::Refused(reason), Fate::Drop(reason), now);
    }

    fn decide(&mut self, slot: u16, state: State, fate: Fate, now: Nanos) {
        self.become_state(slot, state, now);
        self.release(slot, fate);
        if self.datagrams[usize::from(slot)].is_complete() {
            self.remove(slot, DropReason::FragmentWithoutFirst);
        }
    }

    /// Keeps a frame as [`Step::Hold`] told.
    pub(super) fn hold(&mut self, slot: u16, frame: F, errand: Option<Errand>) {
        let datagram = &mut self.datagrams[usize::from(slot)];
        datagram.held += 1;
        let start = datagram.last_start();
        let port = datagram.key.port;
        let len = frame.packet_len();
        self.bytes += len;
        let share = self.share(port);
        share.frames += 1;
        share.bytes += len as u32;
        self.held.push(Held { frame, port, errand, start, slot });
    }

    /// Returns how many frames those that wait have beside their heads.
    pub(super) fn more_frames(&self) -> usize {
        self.held.iter().map(|held| held.frame.frames() - 1).sum()
    }

    /// Forgets datagrams whose time is over; what waited for them is released.
    pub(super) fn expire(&mut self, now: Nanos) {
        for at in 0..self.shares.len() {
            while let Some(slot) = self.shares[at].oldest(|_| true, &self.datagrams)
                && self.datagrams[usize::from(slot)].expires <= now
            {
                self.remove(slot, DropReason::FragmentWithoutFirst);
            }
        }
    }

    /// Begins a datagram, at the price of an older one where there is no room.
    fn open(&mut self, key: Key, now: Nanos) -> Result<u16, DropReason> {
        let own = usize::from(self.share(key.port).datagrams);
        if own >= DATAGRAMS_PER_PORT {
            let share = self.shares[usize::from(key.port.0)];
            let oldest = share.oldest(|state| state != State::Poisoned, &self.datagrams);
            self.remove(oldest.ok_or(DropReason::FragmentsFull)?, DropReason::FragmentsFull);
        } else if self.index.len() >= DATAGRAMS {
            let largest = self.shares.iter().max_by_key(|share| share.datagrams);
            let oldest = largest.and_then(|share| share.oldest(|_| true, &self.datagrams));
            self.remove(oldest.ok_or(DropReason::FragmentsFull)?, DropReason::FragmentsFull);
        }
        let datagram = Datagram::new(key, now + HOLD);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.datagrams[usize::from(slot)] = datagram;
                slot
            }
            None => {
                self.datagrams.push(datagram);
                (self.datagrams.len() - 1) as u16
            }
        };
        self.index.insert(key, slot);
        let share = &mut self.shares[usize::from(key.port.0)];
        share.datagrams += 1;
        share.waiting.push(&mut self.datagrams, link, slot);
        Ok(slot)
    }

    /// Makes room for one more frame of a datagram, at the price of older ones that wait; `false` when there is none to be had.
    fn make_room(&mut self, slot: u16, len: usize) -> bool {
        let port = usize::from(self.datagrams[usize::from(slot)].key.port.0);
        loop {
            let share = &self.shares[port];
            let own =
                usize::from(share.frames) >= FRAMES_PER_PORT || share.bytes as usize + len > BYTES_PER_PORT;
            let whole = self.held.len() >= FRAMES || self.bytes + len > 4 * BYTES_PER_PORT;
            let payer = if own {
                Some(share)
            } else if whole {
                self.shares.iter().max_by_key(|share| share.frames)
            } else {
                return true;
            };
            match payer.and_then(|share| share.waiting.head()) {
                Some(oldest) if oldest != slot => self.remove(oldest, DropReason::FragmentsFull),
                _ => return false,
            }
        }
    }

    fn become_state(&mut self, slot: u16, state: State, now: Nanos) {
        let datagram = &mut self.datagrams[usize::from(slot)];
        let before = std::mem::replace(&mut datagram.state, state);
        // Queues are in order of time, so who joins another one starts anew.
        datagram.expires = now + HOLD;
        let share = &mut self.shares[usize::from(datagram.key.port.0)];
        share.queue(before).remove(&mut self.datagrams, link, slot);
        share.queue(state).push(&mut self.datagrams, link, slot);
    }

    /// Lets the datagram's frames go, in the order of their bytes.
    fn release(&mut self, slot: u16, fate: Fate) {
        let datagram = &mut self.datagrams[usize::from(slot)];
        let mut left = std::mem::take(&mut datagram.held);
        let share = &mut self.shares[usize::from(datagram.key.port.0)];
        let (from, mut at) = (self.released.len(), 0);
        while left > 0 && at < self.held.len() {
            if self.held[at].slot != slot {
                at += 1;
                continue;
            }
            let held = self.held.swap_remove(at);
            let len = held.frame.packet_len();
            self.bytes -= len;
            share.frames -= 1;
            share.bytes -= len as u32;
            left -= 1;
            self.released.push((held, fate));
        }
        self.released[from..].sort_unstable_by_key(|(held, _)| held.start);
    }

    /// Forgets the datagram; what still waits for it is dropped for `reason`.
    fn remove(&mut self, slot: u16, reason: DropReason) {
        self.release(slot, Fate::Drop(reason));
        let Datagram { key, state, .. } = self.datagrams[usize::from(slot)];
        let share = &mut self.shares[usize::from(key.port.0)];
        share.queue(state).remove(&mut self.datagrams, link, slot);
        share.datagrams -= 1;
        self.index.remove(&key);
        self.free.push(slot);
    }
}
