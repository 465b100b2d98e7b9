//! The packet as the core sees it: a head frame and, rarely, continuation frames.
//!
//! ```text
//!  ┌ head: Ethernet, IP, transport headers, payload ┐ ┌ rest: payload ┐ ┌ payload ┐
//!  └ data()                                          ┘ └ rest() ───────┴─┴─────────┘
//! ```
//!
//! All headers are in the head, so that is what is parsed and rewritten. The continuation frames of a large packet are carried along
//! unread, but by the few who need every byte: checksums in software, fragmentation, capture.

use margay_accel::CACHE_LINE;

/// One received or to-be-sent packet, from the Ethernet header on. A value that moves and cannot be copied: whoever holds it owns
/// its memory, and dropping it gives the memory back.
pub trait Frame {
    /// Returns the bytes of the head; of nearly every packet these are all.
    fn data(&self) -> &[u8];

    /// Returns the bytes of the head for writing.
    fn data_mut(&mut self) -> &mut [u8];

    /// Returns the largest length that [`Frame::set_len`] can give the head.
    fn capacity(&self) -> usize;

    /// Cuts the packet, or lengthens one of a single frame (new bytes have any value). Continuation frames that are not needed any more
    /// are freed.
    ///
    /// Errors: returns `false` and changes nothing when `len` exceeds both [`Frame::capacity`] and the packet's own length, or would have
    /// the head grow before others.
    fn set_len(&mut self, len: usize) -> bool;

    /// Returns the bytes of the continuation frames, in order.
    fn rest(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }

    /// Returns the head for writing beside the rest.
    fn parts_mut(&mut self) -> (&mut [u8], impl Iterator<Item = &[u8]>) {
        (self.data_mut(), std::iter::empty())
    }

    /// Returns the length of the whole packet in bytes.
    #[inline]
    fn packet_len(&self) -> usize {
        self.data().len()
    }

    /// Returns how many frames of memory the packet takes.
    #[inline]
    fn frames(&self) -> usize {
        1
    }

    /// Appends the bytes of `next`, a packet of a single frame, from position `from` on. Its memory is freed or becomes this packet's.
    ///
    /// Errors: gives `next` back, and nothing has changed, where the packet takes no more.
    fn append(&mut self, next: Self, _from: usize) -> Result<(), Self>
    where
        Self: Sized,
    {
        Err(next)
    }

    /// Leaves the checksum over everything from `start` on, whose field is `offset` bytes from there and holds the pseudo header's sum,
    /// to whoever sends the packet. Returns `false` where nobody does. The packet is sent with the beginning and the length that it has
    /// now.
    #[inline]
    fn leave_checksum(&mut self, _start: usize, _offset: usize) -> bool {
        false
    }
}

/// Copies the bytes of a packet from position `from` on into `to`, as far as there are any; returns how many.
pub(crate) fn copy_from<F: Frame>(frame: &F, from: usize, to: &mut [u8]) -> usize {
    let (mut skip, mut done) = (from, 0);
    for part in std::iter::once(frame.data()).chain(frame.rest()) {
        let (before, part) = part.split_at(part.len().min(skip));
        skip -= before.len();
        let count = part.len().min(to.len() - done);
        to[done..done + count].copy_from_slice(&part[..count]);
        done += count;
        if done == to.len() {
            break;
        }
    }
    done
}

/// Returns a copy of a packet's first bytes, at most `len`.
pub(crate) fn beginning<F: Frame>(frame: &F, len: usize) -> Box<[u8]> {
    let mut copy = vec![0; frame.packet_len().min(len)].into_boxed_slice();
    copy_from(frame, 0, &mut copy);
    copy
}

/// A frame in plain memory, for tests, simulation and benches. It begins with a cache line, as frames of devices do.
#[derive(Debug)]
pub struct MemoryFrame {
    buffer: Box<[u8]>,
    start: u32,
    len: u32,
    rest: Option<Box<Rest>>,
}

impl MemoryFrame {
    /// Returns a frame with the given bytes and room for at least 2,048.
    pub fn new(bytes: &[u8]) -> Self {
        let mut buffer = vec![0u8; bytes.len().max(2048) + CACHE_LINE].into_boxed_slice();
        // Where the platform cannot say where a line begins, the frame begins with the buffer.
        let start = buffer.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        Self { buffer, start: start as u32, len: bytes.len() as u32, rest: None }
    }

    /// Returns a packet whose frames hold at most `size` bytes each.
    pub fn in_parts(bytes: &[u8], size: usize) -> Self {
        let (head, rest) = bytes.split_at(bytes.len().min(size));
        let rest: Vec<Box<[u8]>> = rest.chunks(size).map(Box::from).collect();
        let mut packet = Self::new(head);
        packet.rest = (!rest.is_empty()).then(|| Box::new(Rest(rest)));
        packet
    }

    /// Returns a copy of the packet's bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        beginning(self, usize::MAX).into_vec()
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
        let head = self.len as usize;
        if let Some(rest) = &mut self.rest
            && len > head
        {
            return rest.cut(len - head);
        }
        let fits = len <= self.capacity();
        if fits {
            self.len = len as u32;
            self.rest = None;
        }
        fits
    }

    fn rest(&self) -> impl Iterator<Item = &[u8]> {
        self.rest.iter().flat_map(|rest| rest.0.iter().map(|part| &part[..]))
    }

    fn parts_mut(&mut self) -> (&mut [u8], impl Iterator<Item = &[u8]>) {
        let range = self.range();
        let others = self.rest.iter().flat_map(|rest| rest.0.iter().map(|part| &part[..]));
        (&mut self.buffer[range], others)
    }

    fn append(&mut self, next: Self, from: usize) -> Result<(), Self> {
        if next.rest.is_some() {
            return Err(next);
        }
        let rest = self.rest.get_or_insert_with(|| Box::new(Rest(Vec::new())));
        rest.0.push(next.data()[from..].into());
        Ok(())
    }

    fn packet_len(&self) -> usize {
        self.len as usize + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    fn frames(&self) -> usize {
        1 + self.rest.as_ref().map_or(0, |rest| rest.0.len())
    }
}

/// The continuation of a packet in plain memory.
#[derive(Debug)]
struct Rest(Vec<Box<[u8]>>);

impl Rest {
    fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    /// Cuts to `len` bytes; `false` where there are not so many.
    fn cut(&mut self, len: usize) -> bool {
        if len > self.len() {
            return false;
        }
        let mut left = len;
        self.0.retain_mut(|part| {
            *part = part[..part.len().min(left)].into();
            left -= part.len();
            !part.is_empty()
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_of_several_frames_is_cut_where_it_is_told() {
        let bytes: Vec<u8> = (0..100).collect();
        for (size, len) in (1..60).flat_map(|size| (0..=100).map(move |len| (size, len))) {
            let mut frame = MemoryFrame::in_parts(&bytes, size);
            assert_eq!((frame.packet_len(), frame.frames()), (100, 100usize.div_ceil(size)));
            assert!(frame.set_len(len), "{size} {len}");
            assert_eq!(frame.to_vec(), bytes[..len], "{size} {len}");
            assert_eq!(frame.frames(), len.div_ceil(size).max(1), "{size} {len}");
        }
        let mut frame = MemoryFrame::in_parts(&bytes, 40);
        assert!(!frame.set_len(101), "it does not grow");
        let mut middle = [0; 30];
        assert_eq!((copy_from(&frame, 35, &mut middle), &middle[..]), (30, &bytes[35..65]));
        assert_eq!(
            (copy_from(&frame, 40, &mut middle), &middle[..]),
            (30, &bytes[40..70]),
            "from a border on"
        );
        assert_eq!((copy_from(&frame, 80, &mut middle), &middle[..20]), (20, &bytes[80..]));
        assert_eq!(copy_from(&frame, 90, &mut middle), 10);
        assert_eq!(copy_from(&frame, 200, &mut middle), 0);
    }
}
