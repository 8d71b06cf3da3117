//! Huge pages. A processor looks up the place of each page in memory, and reads of large matrices and caches wait for these lookups: with
//! pages of 2 MiB in place of 4 KiB they take two thirds to nine tenths of the time. Most distributions of Linux give huge pages to memory
//! for which a program asks (`madvise` in `/sys/kernel/mm/transparent_hugepage/enabled`). With `never`, and on other systems, nothing here has an effect.

#[cfg(target_os = "linux")]
use std::{cell::RefCell, ops::Range, sync::LazyLock};

/// Bytes of a huge page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// Bytes of the smallest page.
#[cfg(target_os = "linux")]
const SMALL: usize = 4 << 10;

/// Fewest bytes that are worth a huge page.
#[cfg(target_os = "linux")]
const FEWEST: usize = 1 << 20;

/// Moves a slice of 1 MiB or more into huge pages, and with it what shares the first and the last of them. All contents stay as they are, and nothing
/// happens where the system has no huge pages or none to spare. Takes as long as one or two copies of the slice.
pub fn move_to_huge_pages<E>(slice: &[E]) {
    #[cfg(target_os = "linux")]
    move_pages(around(bytes_of(slice)));
    #[cfg(not(target_os = "linux"))]
    let _ = slice;
}

/// Asks for huge pages for what nobody has written of a slice yet, except for ends that do not fill one. A page is still allocated when it is first
/// written.
pub fn reserve_huge_pages<E>(slice: &[E]) {
    #[cfg(target_os = "linux")]
    advise(within(bytes_of(slice)), libc::MADV_HUGEPAGE);
    #[cfg(not(target_os = "linux"))]
    let _ = slice;
}

/// Moves memory that an allocator lends over and over, as [`move_to_huge_pages`]. A thread remembers what it has moved last: to ask whether pages are
/// huge takes a tenth of a millisecond.
pub(super) fn move_result_to_huge_pages<E>(slice: &[E]) {
    #[cfg(target_os = "linux")]
    MOVED.with_borrow_mut(|moved| moved.add(around(bytes_of(slice))));
    #[cfg(not(target_os = "linux"))]
    let _ = slice;
}

#[cfg(target_os = "linux")]
thread_local! {
    static MOVED: RefCell<Moved> = RefCell::default();
}

/// Pages of results that were moved.
#[cfg(target_os = "linux")]
#[derive(Default)]
struct Moved {
    last: [Range<usize>; 16],
    next: usize,
}

#[cfg(target_os = "linux")]
impl Moved {
    fn add(&mut self, pages: Range<usize>) {
        if self.last.iter().any(|last| last.start <= pages.start && pages.end <= last.end) {
            // The system may have had them back since.
            advise(pages, libc::MADV_HUGEPAGE);
        } else if move_pages(pages.clone()) {
            self.last[self.next] = pages;
            self.next = (self.next + 1) % self.last.len();
        }
    }
}

/// Moves pages, now or when they are written. Returns whether all of them are huge now.
#[cfg(target_os = "linux")]
fn move_pages(pages: Range<usize>) -> bool {
    let are_moved = advise(pages.clone(), libc::MADV_COLLAPSE);
    if !are_moved {
        // Linux before 6.1 moves them in the background, or not at all.
        advise(pages, libc::MADV_HUGEPAGE);
    }
    are_moved
}

/// Whether the system is set to use no huge pages, which `MADV_COLLAPSE` alone would not respect.
#[cfg(target_os = "linux")]
static ARE_OFF: LazyLock<bool> = LazyLock::new(|| {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| setting.contains("[never]"))
});

/// Whether the system took the advice, or there is nothing to advise.
#[cfg(target_os = "linux")]
fn advise(pages: Range<usize>, advice: i32) -> bool {
    if pages.is_empty() || *ARE_OFF {
        return true;
    }
    let first = std::ptr::without_provenance_mut::<std::ffi::c_void>(pages.start);
    // SAFETY: neither advice changes what memory holds, whoever owns it, and addresses that are not mapped make an error.
    unsafe { libc::madvise(first, pages.len(), advice) == 0 }
}

#[cfg(target_os = "linux")]
fn bytes_of<E>(slice: &[E]) -> Range<usize> {
    let start = slice.as_ptr().addr();
    start..start + size_of_val(slice)
}

/// The huge pages that hold some bytes, if these are worth it.
#[cfg(target_os = "linux")]
fn around(bytes: Range<usize>) -> Range<usize> {
    let first = bytes.start / HUGE * HUGE;
    if bytes.len() < FEWEST { first..first } else { first..bytes.end.next_multiple_of(HUGE) }
}

/// The huge pages that some bytes fill. They may begin in the page before these: allocators keep a header there.
#[cfg(target_os = "linux")]
fn within(bytes: Range<usize>) -> Range<usize> {
    let first = bytes.start.saturating_sub(SMALL - 1).next_multiple_of(HUGE);
    first..(bytes.end / HUGE * HUGE).max(first)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_huge_pages_that_are_full() {
        assert_eq!(within(HUGE..3 * HUGE), HUGE..3 * HUGE);
        assert_eq!(within(HUGE + 16..3 * HUGE + 16), HUGE..3 * HUGE);
        assert_eq!(within(HUGE + SMALL..3 * HUGE - 1), 2 * HUGE..2 * HUGE);
        for bytes in [0..0, 5..HUGE - 1, HUGE + SMALL..2 * HUGE + SMALL, 7 * HUGE + SMALL..7 * HUGE + SMALL] {
            assert!(within(bytes.clone()).is_empty(), "{bytes:?}");
        }
    }

    #[test]
    fn every_huge_page_of_a_mebibyte_or_more() {
        assert_eq!(around(HUGE + 5..HUGE + 5 + FEWEST), HUGE..2 * HUGE);
        assert_eq!(around(2 * HUGE - 1..2 * HUGE - 1 + FEWEST), HUGE..3 * HUGE);
        assert_eq!(around(HUGE..3 * HUGE), HUGE..3 * HUGE);
        assert!(around(HUGE..HUGE + FEWEST - 1).is_empty());
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
