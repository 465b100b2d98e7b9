//! A packet in chunks of the UMEM.

use std::rc::Rc;

use margay_core::Frame;

use super::MAX_FRAMES;
use super::queue::FrameDesc;
use super::store::Pool;
use super::sys::TX_METADATA;
use crate::rings::MemoryId;

/// The continuation chunks of a packet, and how many bytes are in them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    descriptors: [FrameDesc; MAX_FRAMES - 1],
    count: usize,
    bytes: usize,
}

impl Rest {
    fn descriptors(&self) -> &[FrameDesc] {
        &self.descriptors[..self.count]
    }
}

/// A packet in chunks of the UMEM that we own: nearly always one.
///
/// Invariant: each descriptor lies in a chunk whose place is *held*, no other frame stands for that chunk, and address plus length do
/// not pass the chunk's end. The head's descriptor says whether the kernel is to read metadata before it, the others' options are empty.
#[derive(Debug)]
pub struct UmemFrame {
    descriptor: FrameDesc,
    rest: Option<Box<Rest>>,
    /// `None` only between being handed to the kernel and being dropped.
    pub(super) pool: Option<Rc<Pool>>,
}

impl UmemFrame {
    /// Returns the packet in the chunk of `descriptor`, which the caller has just made *held* and whose bounds it has checked.
    pub(super) fn new(descriptor: FrameDesc, pool: &Rc<Pool>) -> Self {
        Self { descriptor, rest: None, pool: Some(Rc::clone(pool)) }
    }

    /// Appends the chunk of `descriptor`, as for [`UmemFrame::new`]. Returns `false` when the packet has [`MAX_FRAMES`] already: the chunk
    /// then stays the caller's.
    pub(super) fn append_chunk(&mut self, descriptor: FrameDesc) -> bool {
        let none = || Rest { descriptors: [FrameDesc::default(); MAX_FRAMES - 1], count: 0, bytes: 0 };
        let rest = self.rest.get_or_insert_with(|| Box::new(none()));
        let Some(place) = rest.descriptors.get_mut(rest.count) else { return false };
        *place = descriptor;
        rest.count += 1;
        rest.bytes += descriptor.len();
        true
    }

    /// Appends the chunk of a packet of the same memory that has one. One too many is freed, and its bytes are not in the packet.
    pub(super) fn take_in(&mut self, mut piece: Self) {
        if self.append_chunk(piece.descriptor) {
            piece.pool = None;
        }
    }

    /// Gives up the packet without freeing its chunks, which are appended to `to` in order.
    pub(super) fn into_descriptors(mut self, mut to: impl FnMut(FrameDesc)) {
        self.pool = None;
        to(self.descriptor);
        if let Some(rest) = self.rest.take() {
            rest.descriptors().iter().for_each(|descriptor| to(*descriptor));
        }
    }

    /// Frees the continuation chunks.
    fn drop_rest(&mut self) {
        if let (Some(rest), Some(pool)) = (self.rest.take(), &self.pool) {
            rest.descriptors().iter().for_each(|descriptor| pool.release_of(descriptor));
        }
    }

    /// Cuts the continuation to `len` bytes, less than it has.
    fn cut_rest(&mut self, len: usize) {
        let Self { rest: Some(rest), pool: Some(pool), .. } = self else { return };
        let mut left = len;
        let mut kept = 0;
        for descriptor in &mut rest.descriptors[..rest.count] {
            let has = descriptor.len();
            if left == 0 {
                pool.release_of(descriptor);
                continue;
            }
            if left < has {
                descriptor.set_len(left);
            }
            left -= has.min(left);
            kept += 1;
        }
        (rest.count, rest.bytes) = (kept, len);
    }
}

impl Drop for UmemFrame {
    fn drop(&mut self) {
        let Some(pool) = &self.pool else { return };
        if std::thread::panicking() {
            pool.witness.see(self);
        }
        pool.release_of(&self.descriptor);
        if self.rest.is_some() {
            self.drop_rest();
        }
    }
}

/// A packet on its way from one worker to another. Its chunks stay *held*; whoever drops this instead of fastening it loses them.
#[derive(Debug)]
pub struct LooseFrame {
    memory: MemoryId,
    descriptor: FrameDesc,
    rest: Option<Box<Rest>>,
}

impl LooseFrame {
    /// Takes a packet off its pool.
    pub(super) fn of(mut frame: UmemFrame) -> Self {
        let memory = frame.pool.take().map_or(MemoryId::SHARED, |pool| pool.id());
        Self { memory, descriptor: frame.descriptor, rest: frame.rest.take() }
    }

    /// Returns which memory its chunks are of.
    pub(super) fn memory(&self) -> MemoryId {
        self.memory
    }

    /// Makes it a packet of another worker's pool of that memory; without one it is empty.
    pub(super) fn fasten(self, pool: Option<Rc<Pool>>) -> UmemFrame {
        match pool {
            Some(_) => UmemFrame { descriptor: self.descriptor, rest: self.rest, pool },
            None => UmemFrame { descriptor: FrameDesc::default(), rest: None, pool },
        }
    }
}

impl Frame for UmemFrame {
    fn data(&self) -> &[u8] {
        match &self.pool {
            // SAFETY: the invariant: a chunk of this very UMEM, held, so neither the kernel nor another frame writes to it while
            // `self` is borrowed, and the length is within the chunk.
            Some(pool) => unsafe { pool.umem.bytes(&self.descriptor) },
            None => &[],
        }
    }

    fn data_mut(&mut self) -> &mut [u8] {
        let Self { descriptor, pool, .. } = self;
        match pool {
            Some(pool) => head_of(pool, descriptor),
            None => &mut [],
        }
    }

    fn capacity(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| pool.room(&self.descriptor))
    }

    fn set_len(&mut self, len: usize) -> bool {
        let head = self.descriptor.len();
        if let Some(rest) = &self.rest
            && len > head
        {
            let (wanted, has) = (len - head, rest.bytes);
            if wanted < has {
                self.cut_rest(wanted);
            }
            return wanted <= has;
        }
        if len > self.capacity() {
            return false;
        }
        if self.rest.is_some() {
            self.drop_rest();
        }
        self.descriptor.set_len(len);
        true
    }

    fn rest(&self) -> impl Iterator<Item = &[u8]> {
        rest_of(self.pool.as_deref(), self.rest.as_deref())
    }

    fn parts_mut(&mut self) -> (&mut [u8], impl Iterator<Item = &[u8]>) {
        let Self { descriptor, rest, pool } = self;
        let pool = pool.as_ref();
        let others = rest_of(pool.map(|pool| &**pool), rest.as_deref());
        match pool {
            Some(pool) => (head_of(pool, descriptor), others),
            None => (&mut [], others),
        }
    }

    /// What the last chunk has room for goes there; the rest stays in the chunk of `next`, from its beginning on, which is then the last.
    /// A checksum that is left to the kernel is over what the packet was.
    fn append(&mut self, mut next: Self, from: usize) -> Result<(), Self> {
        let Self { descriptor, rest, pool: Some(pool) } = self else { return Err(next) };
        let full = rest.as_ref().is_some_and(|rest| rest.count == rest.descriptors.len());
        let len = next.descriptor.len();
        let ours = next.pool.as_ref().is_some_and(|other| Rc::ptr_eq(other, pool));
        let left_to_kernel = descriptor.options() | next.descriptor.options() != 0;
        if next.rest.is_some() || from > len || !ours || left_to_kernel {
            return Err(next);
        }
        let last = match rest.as_deref_mut() {
            Some(Rest { descriptors, count, .. }) if *count > 0 => &mut descriptors[*count - 1],
            _ => descriptor,
        };
        let used = last.len();
        let near = pool.room(last).saturating_sub(used).min(len - from);
        if full && near < len - from {
            return Err(next);
        }
        last.set_len(used + near);
        head_of(pool, last)[used..].copy_from_slice(&next.data()[from..from + near]);
        if let Some(rest) = rest {
            rest.bytes += near;
        }
        let left = len - from - near;
        if left > 0 {
            next.data_mut().copy_within(from + near.., 0);
            next.set_len(left);
            next.into_descriptors(|descriptor| {
                self.append_chunk(descriptor);
            });
        }
        Ok(())
    }

    #[inline]
    fn packet_len(&self) -> usize {
        self.descriptor.len() + self.rest.as_ref().map_or(0, |rest| rest.bytes)
    }

    #[inline]
    fn frames(&self) -> usize {
        1 + self.rest.as_ref().map_or(0, |rest| rest.count)
    }

    #[inline]
    fn leave_checksum(&mut self, start: usize, offset: usize) -> bool {
        let Some(pool) = &self.pool else { return false };
        let (Ok(start), Ok(offset)) = (u16::try_from(start), u16::try_from(offset)) else { return false };
        let before = pool.store.chunk_size - pool.room(&self.descriptor);
        // SAFETY: the chunk is held by this frame, which is borrowed mutably, and it begins early enough.
        let left =
            before >= TX_METADATA && unsafe { pool.umem.leave_checksum(&self.descriptor, start, offset) };
        if left {
            self.descriptor.set_options(libc::XDP_TX_METADATA);
        }
        left
    }
}

/// Returns the bytes of the chunk at `descriptor`, which is held by the frame that both are borrowed from.
fn head_of<'a>(pool: &'a Rc<Pool>, descriptor: &'a mut FrameDesc) -> &'a mut [u8] {
    // SAFETY: as in `data`; the frame is borrowed mutably, so this is the only reference.
    unsafe { pool.umem.bytes_mut(descriptor) }
}

/// Returns the bytes of a frame's continuation chunks.
fn rest_of<'a>(pool: Option<&'a Pool>, rest: Option<&'a Rest>) -> impl Iterator<Item = &'a [u8]> {
    let descriptors = rest.map_or(&[][..], Rest::descriptors);
    // SAFETY: as in `data`; a continuation chunk is written to by nobody.
    descriptors.iter().filter_map(move |it| Some(unsafe { pool?.umem.bytes(it) }))
}
