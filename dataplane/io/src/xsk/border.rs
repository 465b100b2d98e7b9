//! Where a packet goes from one packet memory to another: copied once, into as few chunks as it needs.

use std::rc::Rc;

use margay_core::Frame;

use super::{MAX_FRAMES, Pool, UmemFrame};

/// Why a packet is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The memory has too few free chunks now.
    Full,
    /// It needs more frames than a packet there may have.
    TooLarge,
}

/// Copies a packet into free chunks of `pool`, at most `most`. The original stays as it is.
pub(super) fn copy(packet: &UmemFrame, pool: &Rc<Pool>, most: usize) -> Result<UmemFrame, Refusal> {
    let (mut left, room) = (packet.packet_len(), pool.room_of_each());
    if left > room * most.min(MAX_FRAMES) {
        return Err(Refusal::TooLarge);
    }
    let mut parts = std::iter::once(packet.data()).chain(packet.rest());
    let mut part: &[u8] = &[];
    let mut copy = pool.spare().ok_or(Refusal::Full)?;
    let mut fill = |piece: &mut UmemFrame| {
        piece.set_len(left.min(room));
        left -= piece.data().len();
        let mut bytes = piece.data_mut();
        while !bytes.is_empty() {
            if part.is_empty() {
                // There are as many bytes in its parts as in the packet.
                let Some(next) = parts.next() else { break };
                part = next;
            }
            let count = part.len().min(bytes.len());
            let (now, later) = bytes.split_at_mut(count);
            now.copy_from_slice(&part[..count]);
            (bytes, part) = (later, &part[count..]);
        }
        left
    };
    let mut left = fill(&mut copy);
    while left > 0 {
        let mut piece = pool.spare().ok_or(Refusal::Full)?;
        left = fill(&mut piece);
        copy.take_in(piece);
    }
    Ok(copy)
}
