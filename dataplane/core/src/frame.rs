//! The frame as the core sees it: bytes with room before and after.

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

/// A frame in plain memory, for tests, simulation and benches.
#[derive(Debug)]
pub struct MemoryFrame {
    buffer: Box<[u8]>,
    len: usize,
}

impl MemoryFrame {
    /// Returns a frame with the given bytes and room for at least 2,048.
    pub fn new(bytes: &[u8]) -> Self {
        let mut buffer = vec![0u8; bytes.len().max(2048)].into_boxed_slice();
        buffer[..bytes.len()].copy_from_slice(bytes);
        Self { buffer, len: bytes.len() }
    }
}

impl Frame for MemoryFrame {
    fn data(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }

    fn capacity(&self) -> usize {
        self.buffer.len()
    }

    fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.buffer.len();
        if fits {
            self.len = len;
        }
        fits
    }
}
