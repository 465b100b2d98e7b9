//! How much of what a watcher was told it has not taken yet. A channel bounds packets; packets of 60,000 bytes have to be bounded by bytes.

use std::collections::VecDeque;

/// Bytes of told packets that may wait for one watcher, from one worker.
const MOST: usize = 16 << 20;

/// Sizes of the packets that were told and, as far as the length of their channel says, not taken yet. Where several workers tell one
/// watcher, that length counts the others' too, so some packets may be held for waiting that are not; never the other way round.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: VecDeque<usize>,
    bytes: usize,
}

impl Backlog {
    /// Returns whether a packet of this size may wait too while `queued` are in the channel. One always may.
    pub fn has_room(&mut self, queued: usize, bytes: usize) -> bool {
        while self.waiting.len() > queued {
            self.bytes -= self.waiting.pop_front().unwrap_or_default();
        }
        self.waiting.is_empty() || self.bytes + bytes <= MOST
    }

    /// Notes that one of this size waits.
    pub fn add(&mut self, bytes: usize) {
        self.waiting.push_back(bytes);
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_packets_wait_in_smaller_numbers_and_what_was_taken_counts_no_more() {
        let mut backlog = Backlog::default();
        let mut queued = 0;
        while backlog.has_room(queued, 60_000) {
            backlog.add(60_000);
            queued += 1;
        }
        assert_eq!(queued, MOST / 60_000);
        assert!(backlog.has_room(queued - 1, 60_000), "one was taken");
        backlog.add(60_000);
        assert!(!backlog.has_room(queued, 60_000) && backlog.has_room(queued, 100));
        assert!(backlog.has_room(0, usize::MAX), "one always may");
        assert_eq!((backlog.bytes, backlog.waiting.len()), (0, 0));
    }
}
