//! Queues through a table: each entry names its neighbours, so leaving from the middle costs as little as leaving at the head.

/// No entry.
const NONE: u16 = u16::MAX;

/// An entry's neighbours in the queue that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    previous: u16,
    next: u16,
}

impl Default for Link {
    fn default() -> Self {
        Self { previous: NONE, next: NONE }
    }
}

/// A queue: the oldest entry is at its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    head: u16,
    tail: u16,
}

impl Default for Queue {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

impl Queue {
    /// Returns the oldest entry.
    pub(super) fn head(self) -> Option<u16> {
        (self.head != NONE).then_some(self.head)
    }

    /// Puts `slot` at the end. `link` reaches the links of any slot.
    pub(super) fn push<T>(&mut self, table: &mut [T], link: impl Fn(&mut T) -> &mut Link, slot: u16) {
        *link(&mut table[usize::from(slot)]) = Link { previous: self.tail, next: NONE };
        match self.tail {
            NONE => self.head = slot,
            tail => link(&mut table[usize::from(tail)]).next = slot,
        }
        self.tail = slot;
    }

    /// Takes `slot`, which is in this queue, out of it.
    pub(super) fn remove<T>(&mut self, table: &mut [T], link: impl Fn(&mut T) -> &mut Link, slot: u16) {
        let Link { previous, next } = std::mem::take(link(&mut table[usize::from(slot)]));
        match previous {
            NONE => self.head = next,
            at => link(&mut table[usize::from(at)]).next = next,
        }
        match next {
            NONE => self.tail = previous,
            at => link(&mut table[usize::from(at)]).previous = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_leave_from_anywhere_and_keep_their_order() {
        for leaver in 0..4u16 {
            let mut links = [Link::default(); 4];
            let mut queue = Queue::default();
            for slot in 0..4 {
                queue.push(&mut links, |link| link, slot);
            }
            queue.remove(&mut links, |link| link, leaver);
            let mut left = Vec::new();
            while let Some(slot) = queue.head() {
                left.push(slot);
                queue.remove(&mut links, |link| link, slot);
            }
            assert_eq!(left, (0..4).filter(|slot| *slot != leaver).collect::<Vec<_>>());
            assert_eq!(queue, Queue::default());
        }
    }
}
