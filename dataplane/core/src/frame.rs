//! The frame as the core sees it: bytes with room before and after.

use margay_accel::CACHE_LINE;

/// One received or to-be-sent frame, from the Ethernet header on. A value that moves and cannot be copied: whoever holds it owns
/// its memory, and dropping it gives the memory back.
pub trait Frame {
    /// Returns the frame's bytes.
    fn data(&self) -> &[u8];

    /// Returns the frame's bytes for writing.
    fn data_mut(&mut self) -> &mut [u8];

    /// Returns the largest length that [`Frame::set_len`] accepts.
    fn capacity(&self) -> usize;

    /// Cuts the frame, or lengthens it (new bytes have any value).
    ///
    /// Errors: returns `false` and changes nothing when `len` exceeds [`Frame::capacity`].
    fn set_len(&mut self, len: usize) -> bool;
}

/// A frame in plain memory, for tests, simulation and benches. It begins with a cache line, as frames of devices do.
#[derive(Debug)]
pub struct MemoryFrame {
    buffer: Box<[u8]>,
    start: u32,
    len: u32,
}

impl MemoryFrame {
    /// Returns a frame with the given bytes and room for at least 2,048.
    pub fn new(bytes: &[u8]) -> Self {
        let mut buffer = vec![0u8; bytes.len().max(2048) + CACHE_LINE].into_boxed_slice();
        // Where the platform cannot say where a line begins, the frame begins with the buffer.
        let start = buffer.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        Self { buffer, start: start as u32, len: bytes.len() as u32 }
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

impl Frame for MemoryFrame {
    fn data(&self) -> &[u8] {
        &self.buffer[self.range()]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        let range = self.range();
        &mut self.buffer[range]
    }

    fn capacity(&self) -> usize {
        self.buffer.len() - CACHE_LINE
    }

    fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.capacity();
        if fits {
            self.len = len as u32;
        }
        fits
    }
}
