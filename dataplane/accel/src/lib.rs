//! Telling the processor what will be read next. A burst of frames is touched one cache line ahead of where the work is, so a miss
//! (54 to 190 ns) passes while earlier frames are handled.
//!
//! A prefetch is a hint without an effect that a program can observe, so its safe twin is "do nothing": [`scalar`] holds it, and
//! the tests hold both to the same results.

#![deny(unsafe_op_in_unsafe_fn)]

use core::mem::MaybeUninit;

/// Bytes of a huge page on x86_64 and most arm64 kernels.
pub const HUGE_PAGE: usize = 2 << 20;

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

/// Asks the kernel to back `memory` with huge pages where it can (madvise(2), `MADV_HUGEPAGE`): a table that is visited at random then
/// costs a cache miss, not a page walk as well. Only whole 2 MiB stretches count; a refusal changes nothing.
pub fn advise_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        let start = memory.as_mut_ptr() as usize;
        let end = start + size_of_val(memory);
        let first = start.next_multiple_of(HUGE_PAGE);
        let last = end - end % HUGE_PAGE;
        if first < last {
            // SAFETY: [first, last) lies within one live allocation that we borrow mutably; the advice changes how the kernel backs the
            // range, never its contents.
            let _ = unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    scalar::advise_huge_pages(memory);
}

/// The same functions without help from the processor.
pub mod scalar {
    /// Does nothing: a hint may always be left out.
    #[inline(always)]
    pub fn prefetch_lines(_bytes: &[u8], _lines: usize) {}

    /// Does nothing: advice may always be left out.
    pub fn advise_huge_pages<T>(_memory: &mut [core::mem::MaybeUninit<T>]) {}

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

    #[test]
    fn advice_changes_nothing_and_takes_any_slice() {
        for len in [0usize, 1, 4096, 3 * HUGE_PAGE + 17] {
            let mut memory: Vec<MaybeUninit<u8>> = vec![MaybeUninit::new(7); len];
            advise_huge_pages(&mut memory);
            scalar::advise_huge_pages(&mut memory);
            memory.push(MaybeUninit::new(8));
            // SAFETY: every element was initialised above.
            assert!(memory[..len].iter().all(|byte| unsafe { byte.assume_init() } == 7));
        }
    }
}
