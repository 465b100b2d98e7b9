//! Telling the processor what will be read next. A burst of frames is touched one cache line ahead of where the work is, so a miss
//! (54 to 190 ns) passes while earlier frames are handled.
//!
//! A prefetch is a hint without an effect that a program can observe, so its safe twin is "do nothing": [`scalar`] holds it, and
//! the tests hold both to the same results.

#![deny(unsafe_op_in_unsafe_fn)]

/// Bytes that one prefetch brings near.
pub const CACHE_LINE: usize = 64;

/// Asks for the first `lines` cache lines of `bytes`, and never for one past its end.
#[inline(always)]
pub fn prefetch_lines(bytes: &[u8], lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(CACHE_LINE).take(lines) {
        // SAFETY: the pointer comes from a live slice; `prefetcht0` reads nothing that the program can see and faults on no address.
        // SSE, which it needs, is part of every x86_64.
        unsafe {
            core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast())
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::prefetch_lines(bytes, lines);
}

/// Asks for every cache line of `items[index]`; an index past the end asks for nothing.
#[inline(always)]
pub fn prefetch_item<T>(items: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(item) = items.get(index) {
        let start = core::ptr::from_ref(item).cast::<i8>();
        for offset in (0..size_of::<T>().max(1)).step_by(CACHE_LINE) {
            // SAFETY: the address lies within a live item, and `prefetcht0` reads nothing that the program can see and faults on no
            // address. SSE, which it needs, is part of every x86_64.
            unsafe {
                core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(
                    start.wrapping_add(offset),
                )
            };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::prefetch_item(items, index);
}

/// The same functions without help from the processor.
pub mod scalar {
    /// Does nothing: a hint may always be left out.
    #[inline(always)]
    pub fn prefetch_lines(_bytes: &[u8], _lines: usize) {}

    /// Does nothing: a hint may always be left out.
    #[inline(always)]
    pub fn prefetch_item<T>(_items: &[T], _index: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefetch_changes_nothing_and_takes_any_slice() {
        let original: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let bytes = original.clone();
        for (from, to) in [(0, 0), (0, 1), (0, 64), (1, 130), (4095, 4096), (0, 4096)] {
            for lines in [0, 1, 2, 1000] {
                prefetch_lines(&bytes[from..to], lines);
                scalar::prefetch_lines(&bytes[from..to], lines);
            }
        }
        for index in [0, 1, 31, 32, usize::MAX] {
            prefetch_item(bytes.as_chunks::<128>().0, index);
            scalar::prefetch_item(bytes.as_chunks::<128>().0, index);
        }
        assert_eq!(bytes, original);
    }
}
