//! One writer of drop reports, any number of readers, and nobody waits.
//!
//! A reader that does not keep up loses reports, never the writer; the counters stay exact either way. The latest reports are kept,
//! so that `margay drops` has something to show before the next packet is dropped.

use std::collections::VecDeque;
use std::sync::Mutex;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use super::report::DropReport;

/// Reports kept for those who come later.
const KEPT: usize = 256;
/// Reports that may wait for one reader.
const QUEUED: usize = 4_096;

/// Hands drop reports to subscribers.
#[derive(Debug, Default)]
pub struct DropHub {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    recent: VecDeque<DropReport>,
    readers: Vec<Sender<DropReport>>,
}

impl DropHub {
    /// Returns a hub without subscribers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands `report` to every subscriber that has room, and keeps it among the latest.
    pub fn publish(&self, report: DropReport) {
        let mut inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        inner
            .readers
            .retain(|reader| !matches!(reader.try_send(report.clone()), Err(TrySendError::Disconnected(_))));
        if inner.recent.len() == KEPT {
            inner.recent.pop_front();
        }
        inner.recent.push_back(report);
    }

    /// Returns the latest reports, oldest first, and a subscription that continues right after them.
    pub fn subscribe(&self) -> (Vec<DropReport>, Receiver<DropReport>) {
        let (sender, receiver) = bounded(QUEUED);
        let mut inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        inner.readers.push(sender);
        (inner.recent.iter().cloned().collect(), receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(time_ms: u64) -> DropReport {
        DropReport { time_ms, ..DropReport::default() }
    }

    #[test]
    fn subscriber_sees_the_latest_and_everything_after_without_a_gap() {
        let hub = DropHub::new();
        (0..300).for_each(|n| hub.publish(report(n)));
        let (recent, live) = hub.subscribe();
        hub.publish(report(300));
        assert_eq!(recent.len(), KEPT);
        assert_eq!((recent[0].time_ms, recent[KEPT - 1].time_ms), (300 - KEPT as u64, 299));
        assert_eq!(live.try_recv().unwrap().time_ms, 300);
    }

    #[test]
    fn slow_reader_loses_reports_and_the_writer_goes_on() {
        let hub = DropHub::new();
        let (_, live) = hub.subscribe();
        (0..2 * QUEUED as u64).for_each(|n| hub.publish(report(n)));
        assert_eq!(live.len(), QUEUED);
        drop(live);
        hub.publish(report(0));
        assert!(hub.inner.lock().unwrap().readers.is_empty());
    }
}
