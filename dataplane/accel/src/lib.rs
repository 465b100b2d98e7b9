//! What processors do that plain code does not say. First of all: telling them what will be read next. A burst of frames is touched one
//! cache line ahead of where the work is, so a miss (54 to 190 ns) passes while earlier frames are handled.
//!
//! A prefetch is a hint without an effect that a program can observe, so its safe twin is "do nothing": [`scalar`] holds it, and
//! the tests hold both to the same results. So for comparing eight lanes at once.

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

/// As [`prefetch_lines`], of lines that will be written: whoever has them gives them up.
#[inline(always)]
pub fn prefetch_lines_to_write(bytes: &[u8], lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(CACHE_LINE).take(lines) {
        // SAFETY: the pointer comes from a live slice; `prefetchw` changes nothing that the program can see, faults on no address, and
        // does nothing at all on processors of this architecture that do not have it.
        unsafe {
            core::arch::asm!(
                "prefetchw [{line}]",
                line = in(reg) line.as_ptr(),
                options(nostack, preserves_flags, readonly)
            )
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::prefetch_lines(bytes, lines);
}

/// As [`prefetch_lines_to_write`], of every cache line of `items`.
#[inline(always)]
pub fn prefetch_items_to_write<T>(items: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        let start = items.as_ptr().cast::<u8>();
        let first = start.align_offset(CACHE_LINE) % CACHE_LINE;
        for offset in core::iter::once(0).chain((first..size_of_val(items)).step_by(CACHE_LINE)) {
            // SAFETY: as in `prefetch_lines_to_write`: it faults on no address, so neither on that of an empty slice.
            unsafe {
                core::arch::asm!(
                    "prefetchw [{line}]",
                    line = in(reg) start.wrapping_add(offset),
                    options(nostack, preserves_flags, readonly)
                )
            };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::prefetch_items_to_write(items);
}

/// Asks for every cache line of `items[index]`; an index past the end asks for nothing.
#[inline(always)]
pub fn prefetch_item<T>(items: &[T], index: usize) {
    prefetch_item_lines(items, index, usize::MAX);
}

/// Asks for the first `lines` cache lines of `items[index]`; an index past the end asks for nothing.
#[inline(always)]
pub fn prefetch_item_lines<T>(items: &[T], index: usize, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(item) = items.get(index) {
        let start = core::ptr::from_ref(item).cast::<i8>();
        for offset in (0..size_of::<T>().max(1)).step_by(CACHE_LINE).take(lines) {
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
    scalar::prefetch_item_lines(items, index, lines);
}

/// Appends what `make` returns, which is written where it stays.
///
/// [`Vec::push`] has the value on the stack first, because making room may panic and the value would have to be dropped. Copied from there
/// at once, in larger pieces than it was written in, it makes the processor wait for every store before it: five nanoseconds for what
/// is near, and many times that where one of these stores waits for a line of another processor.
#[inline(always)]
pub fn push_made<T>(to: &mut Vec<T>, make: impl FnOnce() -> T) {
    if to.len() == to.capacity() {
        to.reserve(1);
    }
    let at = to.len();
    // SAFETY: there is room for one more behind the last element, and it is initialised before the length says so. Should `make` panic,
    // the length has not changed.
    unsafe {
        to.as_mut_ptr().add(at).write(make());
        to.set_len(at + 1);
    }
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

/// Returns a bit for every lane of which the interval of ports holds `port` (`firsts`, and how many come after it: `beyond`) and whose
/// `classes` have a bit in common with `class`.
///
/// Shape: eight lanes; bit 0 is the first.
#[inline(always)]
pub fn agreeing_lanes(
    firsts: &[u16; 8],
    beyond: &[u16; 8],
    classes: &[u16; 8],
    port: u16,
    class: u16,
) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of every x86_64, and the function needs nothing else.
    unsafe {
        sse2::agreeing_lanes(firsts, beyond, classes, port, class)
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::agreeing_lanes(firsts, beyond, classes, port, class)
}

/// Returns a bit for every lane that is `wanted`.
///
/// Shape: four lanes; bit 0 is the first.
#[inline(always)]
pub fn equal_lanes(lanes: &[u32; 4], wanted: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of every x86_64, and the function needs nothing else.
    unsafe {
        sse2::equal_lanes(lanes, wanted)
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::equal_lanes(lanes, wanted)
}

/// Returns a bit for every lane that is `wanted` in the bits that `mask` has.
///
/// Shape: sixteen lanes; bit 0 is the first.
#[inline(always)]
pub fn masked_lanes(lanes: &[u32; 16], mask: u32, wanted: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of every x86_64, and the function needs nothing else.
    unsafe {
        sse2::masked_lanes(lanes, mask, wanted)
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar::masked_lanes(lanes, mask, wanted)
}

#[cfg(target_arch = "x86_64")]
mod sse2 {
    use core::arch::x86_64::{
        _mm_and_si128, _mm_andnot_si128, _mm_castsi128_ps, _mm_cmpeq_epi16, _mm_cmpeq_epi32,
        _mm_movemask_epi8, _mm_movemask_ps, _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi16, _mm_set1_epi32,
        _mm_setr_epi16, _mm_setr_epi32, _mm_setzero_si128, _mm_sub_epi16, _mm_subs_epu16,
    };

    #[target_feature(enable = "sse2")]
    #[inline]
    pub(super) fn agreeing_lanes(
        firsts: &[u16; 8],
        beyond: &[u16; 8],
        classes: &[u16; 8],
        port: u16,
        class: u16,
    ) -> u32 {
        let load = |lanes: &[u16; 8]| {
            let [a, b, c, d, e, f, g, h] = lanes.map(u16::cast_signed);
            _mm_setr_epi16(a, b, c, d, e, f, g, h)
        };
        let zero = _mm_setzero_si128();
        let distance = _mm_sub_epi16(_mm_set1_epi16(port.cast_signed()), load(firsts));
        let is_near = _mm_cmpeq_epi16(_mm_subs_epu16(distance, load(beyond)), zero);
        let shared = _mm_and_si128(load(classes), _mm_set1_epi16(class.cast_signed()));
        let agrees = _mm_andnot_si128(_mm_cmpeq_epi16(shared, zero), is_near);
        _mm_movemask_epi8(_mm_packs_epi16(agrees, zero)).cast_unsigned()
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    pub(super) fn equal_lanes(lanes: &[u32; 4], wanted: u32) -> u32 {
        let [a, b, c, d] = lanes.map(u32::cast_signed);
        let equal = _mm_cmpeq_epi32(_mm_setr_epi32(a, b, c, d), _mm_set1_epi32(wanted.cast_signed()));
        _mm_movemask_ps(_mm_castsi128_ps(equal)).cast_unsigned()
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    pub(super) fn masked_lanes(lanes: &[u32; 16], mask: u32, wanted: u32) -> u32 {
        let (mask, wanted) = (_mm_set1_epi32(mask.cast_signed()), _mm_set1_epi32(wanted.cast_signed()));
        let equal = |at: usize| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|lane| lanes[at + lane].cast_signed());
            _mm_cmpeq_epi32(_mm_and_si128(_mm_setr_epi32(a, b, c, d), mask), wanted)
        };
        let (low, high) = (_mm_packs_epi32(equal(0), equal(4)), _mm_packs_epi32(equal(8), equal(12)));
        _mm_movemask_epi8(_mm_packs_epi16(low, high)).cast_unsigned()
    }
}

/// The same functions without help from the processor.
pub mod scalar {
    /// As [`super::prefetch_items_to_write`]: nothing.
    pub fn prefetch_items_to_write<T>(_: &[T]) {}

    /// As [`super::agreeing_lanes`].
    pub fn agreeing_lanes(
        firsts: &[u16; 8],
        beyond: &[u16; 8],
        classes: &[u16; 8],
        port: u16,
        class: u16,
    ) -> u32 {
        let agrees =
            |lane: usize| port.wrapping_sub(firsts[lane]) <= beyond[lane] && classes[lane] & class != 0;
        (0..8).map(|lane| u32::from(agrees(lane)) << lane).sum()
    }

    /// As [`super::equal_lanes`].
    pub fn equal_lanes(lanes: &[u32; 4], wanted: u32) -> u32 {
        (0..4).map(|lane| u32::from(lanes[lane] == wanted) << lane).sum()
    }

    /// As [`super::masked_lanes`].
    pub fn masked_lanes(lanes: &[u32; 16], mask: u32, wanted: u32) -> u32 {
        (0..16).map(|lane| u32::from(lanes[lane] & mask == wanted) << lane).sum()
    }

    /// Does nothing: a hint may always be left out.
    #[inline(always)]
    pub fn prefetch_lines(_bytes: &[u8], _lines: usize) {}

    /// Does nothing: advice may always be left out.
    pub fn advise_huge_pages<T>(_memory: &mut [core::mem::MaybeUninit<T>]) {}

    /// Does nothing: a hint may always be left out.
    #[inline(always)]
    pub fn prefetch_item_lines<T>(_items: &[T], _index: usize, _lines: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lanes_at_once_are_one_after_the_other() {
        // Numbers near both ends of their range and near each other, and some without a pattern.
        let mut state = 1u64;
        let mut draw = |near: u16| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let random = (state >> 48) as u16;
            if random.is_multiple_of(4) { random } else { near.wrapping_add(random % 9) }
        };
        let mut agreed = 0;
        for round in 0..20_000u32 {
            let near = [0, 0x7ffc, 0xfffa][round as usize % 3];
            let (firsts, beyond) = (core::array::from_fn(|_| draw(near)), core::array::from_fn(|_| draw(0)));
            let (classes, port, class) = (core::array::from_fn(|_| draw(0)), draw(near), 1 << (round % 16));
            let lanes = agreeing_lanes(&firsts, &beyond, &classes, port, class);
            assert_eq!(lanes, scalar::agreeing_lanes(&firsts, &beyond, &classes, port, class));
            agreed += lanes.count_ones();
        }
        assert!(agreed > 1_000, "{agreed}");
    }

    #[test]
    fn lanes_that_are_equal() {
        for (lanes, wanted) in
            [([1, 2, 3, 4], 3), ([7; 4], 7), ([0, u32::MAX, 0, 1 << 31], 0), ([1, 2, 3, 4], 5)]
        {
            assert_eq!(equal_lanes(&lanes, wanted), scalar::equal_lanes(&lanes, wanted));
        }
        assert_eq!(equal_lanes(&[5, 9, 5, 5], 5), 0b1101);
    }

    #[test]
    fn lanes_that_are_equal_under_a_mask() {
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Few different values, some with the highest bit, which a signed comparison could take for another.
            (state >> 60) as u32 * 0x1100_0011
        };
        let mut agreed = 0;
        for _ in 0..5_000 {
            let lanes: [u32; 16] = core::array::from_fn(|_| draw());
            for mask in [u32::MAX, 0xff00_0000, 0xff, 0] {
                let wanted = draw() & mask;
                let equal = masked_lanes(&lanes, mask, wanted);
                assert_eq!(equal, scalar::masked_lanes(&lanes, mask, wanted));
                agreed += u32::from(mask == u32::MAX && equal != 0);
            }
        }
        assert!(agreed > 1_000, "{agreed}");
    }

    #[test]
    fn a_prefetch_changes_nothing_and_takes_any_slice() {
        let original: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let bytes = original.clone();
        for (from, to) in [(0, 0), (0, 1), (0, 64), (1, 130), (4095, 4096), (0, 4096)] {
            for lines in [0, 1, 2, 1000] {
                prefetch_lines(&bytes[from..to], lines);
                prefetch_lines_to_write(&bytes[from..to], lines);
                prefetch_items_to_write(&bytes[from..to]);
                scalar::prefetch_items_to_write(&bytes[from..to]);
                scalar::prefetch_lines(&bytes[from..to], lines);
            }
        }
        for index in [0, 1, 31, 32, usize::MAX] {
            prefetch_item(bytes.as_chunks::<128>().0, index);
            for lines in [0, 1, 2, 3] {
                prefetch_item_lines(bytes.as_chunks::<128>().0, index, lines);
                scalar::prefetch_item_lines(bytes.as_chunks::<128>().0, index, lines);
            }
        }
        assert_eq!(bytes, original);
    }

    #[test]
    fn what_is_made_is_appended() {
        let mut to: Vec<Box<usize>> = Vec::new();
        for number in 0..100 {
            push_made(&mut to, || Box::new(number));
        }
        assert!(to.iter().enumerate().all(|(at, number)| at == **number) && to.len() == 100);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            push_made(&mut to, || panic!("there is nothing to append"));
        }));
        assert!(panicked.is_err());
        assert_eq!(to.len(), 100);
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
