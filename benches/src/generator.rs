//! Frames sent as fast as a device takes them, by a raw AF_XDP socket.

use std::time::Duration;

use margay_core::Frame;
use margay_io::engine::BURST;
use margay_io::rings::Rings;
use margay_io::xsk::{Pool, SocketSlot, UmemFrame, UmemHandle, XskRings};

use crate::Result;

/// How long a bind may be refused as busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// A raw sender on one device.
#[derive(Debug)]
pub struct Generator {
    rings: XskRings,
    frames: Vec<Vec<u8>>,
    next: usize,
    outbox: Vec<UmemFrame>,
}

impl Generator {
    /// Binds to queue 0 of a device in the thread's namespace, with packet memory of its own. `frames` are sent in turn, over and over.
    ///
    /// Errors: the kernel refuses memory or a socket.
    pub fn new(device: &str, frames: Vec<Vec<u8>>) -> Result<Self> {
        let (umem, chunks) = UmemHandle::new(2048, 2048)?;
        let pool = Pool::new(&umem, chunks);
        let rings = XskRings::new(umem.bind(device, 0, PATIENCE)?, pool, SocketSlot(0));
        Ok(Self { rings, frames, next: 0, outbox: Vec::with_capacity(BURST) })
    }

    /// Sends a burst, or less where the device has not sent the last ones yet. Returns the number of frames given to the kernel.
    pub fn burst(&mut self) -> usize {
        self.rings.complete();
        for _ in 0..BURST {
            let Some(mut frame) = self.rings.take_spare() else { break };
            let bytes = &self.frames[self.next];
            self.next = (self.next + 1) % self.frames.len();
            if frame.set_len(bytes.len()) {
                frame.data_mut().copy_from_slice(bytes);
                self.outbox.push(frame);
            }
        }
        let sent = self.rings.submit_tx(&mut self.outbox);
        self.outbox.clear();
        // A device that is gone shows as packets that the sink does not count.
        let _ = self.rings.wakeup();
        sent
    }
}
