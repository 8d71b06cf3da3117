//! Huge pages. A processor looks up the place of each page in memory, and reads of large matrices and caches wait for these lookups: with
//! pages of 2 MiB in place of 4 KiB they take two thirds to nine tenths of the time. Most distributions of Linux give huge pages to memory
//! for which a program asks (`madvise` in `/sys/kernel/mm/transparent_hugepage/enabled`). With `never`, and on other systems, nothing here has an effect.

use std::ops::Range;
#[cfg(target_os = "linux")]
use std::sync::LazyLock;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Bytes of the smallest page.
const SMALL: usize = 4 << 10;

/// Moves a slice into huge pages, except for ends that do not fill one. Its contents stay as they are, and nothing happens where the
/// system has no huge pages or none to spare. Takes as long as one or two copies of the slice.
pub fn move_to_huge_pages<E>(slice: &[E]) {
    #[cfg(target_os = "linux")]
    if !advise(slice, libc::MADV_COLLAPSE) {
        // Linux before 6.1 moves them in the background, or not at all.
        advise(slice, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = slice;
}

/// Asks for huge pages for what nobody has written of a slice yet. A page is still allocated when it is first written.
pub fn reserve_huge_pages<E>(slice: &[E]) {
    #[cfg(target_os = "linux")]
    advise(slice, libc::MADV_HUGEPAGE);
    #[cfg(not(target_os = "linux"))]
    let _ = slice;
}

/// Whether the system is set to use no huge pages, which `MADV_COLLAPSE` alone would not respect.
#[cfg(target_os = "linux")]
static ARE_OFF: LazyLock<bool> = LazyLock::new(|| {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| setting.contains("[never]"))
});

/// Whether the system took the advice, or there is nothing to advise.
#[cfg(target_os = "linux")]
fn advise<E>(slice: &[E], advice: i32) -> bool {
    let start = slice.as_ptr().addr();
    let pages = huge_pages(start..start + size_of_val(slice));
    if pages.is_empty() || *ARE_OFF {
        return true;
    }
    let first = slice.as_ptr().cast_mut().cast::<std::ffi::c_void>().with_addr(pages.start);
    // SAFETY: neither advice changes what memory holds, whoever owns it, and addresses that are not mapped make an error.
    unsafe { libc::madvise(first, pages.len(), advice) == 0 }
}

/// The huge pages of some bytes. They may begin in the page before these: allocators keep a header there.
fn huge_pages(bytes: Range<usize>) -> Range<usize> {
    let first = bytes.start.saturating_sub(SMALL - 1).next_multiple_of(HUGE);
    first..(bytes.end / HUGE * HUGE).max(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_huge_pages_that_are_full() {
        assert_eq!(huge_pages(HUGE..3 * HUGE), HUGE..3 * HUGE);
        assert_eq!(huge_pages(HUGE + 16..3 * HUGE + 16), HUGE..3 * HUGE);
        assert_eq!(huge_pages(HUGE + SMALL..3 * HUGE - 1), 2 * HUGE..2 * HUGE);
        for bytes in [0..0, 5..HUGE - 1, HUGE + SMALL..2 * HUGE + SMALL, 7 * HUGE + SMALL..7 * HUGE + SMALL] {
            assert!(huge_pages(bytes.clone()).is_empty(), "{bytes:?}");
        }
    }

    #[test]
    fn contents_stay() {
        let numbers: Vec<u32> = (0..5 << 20).collect();
        for slice in [&numbers[..], &numbers[1..], &numbers[700_000..4_000_000], &numbers[..0]] {
            move_to_huge_pages(slice);
            reserve_huge_pages(slice);
        }
        assert!((0..).zip(&numbers).all(|(at, number)| at == *number));
        let zeros = vec![0u8; 9 << 20];
        reserve_huge_pages(&zeros);
        assert!(zeros.iter().all(|zero| *zero == 0));
    }
}
