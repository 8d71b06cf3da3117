//! Memory for results.
//!
//! A result is written once, by tasks that each have their part. To write zeros there beforehand takes as long as a twentieth of a layer, since a result is
//! larger than the caches. So memory becomes zeros when a task takes it: it is in a cache when the task writes what it has computed.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pages::move_result_to_huge_pages;
use super::scratch::Disjoint;
use super::stream::{prefetch, prefetch_far};
use super::threads;

/// Elements of a result from which on its memory is not zero from the start: 1 MiB.
const FEWEST: usize = 1 << 18;

/// Elements that are worth another thread.
const SOME: usize = 1 << 18;

/// A result of `len` elements, which `write` gets to write. Elements that it does not write are 0. A result of 1 MiB or more is in huge pages, with what
/// shares the first and the last of these.
pub fn result(len: usize, write: impl FnOnce(&mut Places<'_>)) -> Vec<f32> {
    if len < FEWEST {
        let mut result = vec![0.0; len];
        write(&mut Places::of(&mut result));
        return result;
    }
    let mut result = Vec::with_capacity(len);
    let memory = &mut result.spare_capacity_mut()[..len];
    move_result_to_huge_pages(memory);
    let mut places = Places::unwritten(memory);
    write(&mut places);
    places.whole();
    // SAFETY: there is room for `len` elements, all of which are initialised.
    unsafe { result.set_len(len) };
    result
}

/// The memory of a result, of which tasks take parts.
pub struct Places<'a> {
    memory: Disjoint<'a, MaybeUninit<f32>>,
    /// What of a new result is written; `None` if all elements are initialised.
    written: Option<Written>,
}

/// What of a new result is written.
#[derive(Default)]
struct Written {
    /// Columns that kernels have claimed, in order.
    columns: Vec<Range<usize>>,
    /// Of a row.
    width: usize,
    /// Elements that tasks have taken.
    taken: AtomicUsize,
}

impl<'a> Places<'a> {
    /// Elements that are initialised.
    pub fn of(elements: &'a mut [f32]) -> Self {
        // SAFETY: an f32 is one that may be uninitialised, and only f32 are written.
        let memory = unsafe { &mut *(std::ptr::from_mut(elements) as *mut [MaybeUninit<f32>]) };
        Self { memory: Disjoint::new(memory), written: None }
    }

    fn unwritten(memory: &'a mut [MaybeUninit<f32>]) -> Self {
        Self { memory: Disjoint::new(memory), written: Some(Written::default()) }
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All elements. Those of a new result that are not written become zeros first, on all threads of the current pool.
    ///
    /// # Panics
    /// If a kernel has claimed elements of a new result and stopped before it wrote them.
    pub fn whole(&mut self) -> &mut [f32] {
        if let Some(Written { columns, width, taken }) = &self.written {
            let rows = self.len().checked_div(*width).unwrap_or(0);
            let claimed = rows * columns.iter().map(ExactSizeIterator::len).sum::<usize>();
            let taken = taken.load(Ordering::Acquire);
            assert!(taken == claimed, "kernels have written {taken} of {claimed} elements that they have claimed");
            // SAFETY: nobody else has a part.
            let memory = unsafe { self.memory.part(0, self.len()) };
            if columns.is_empty() {
                threads::each_part(memory, SOME, |_, memory| memory.fill(MaybeUninit::new(0.0)));
            } else if claimed < self.len() {
                for row in memory.chunks_mut(*width) {
                    let (starts, ends) = (columns.iter().map(|own| own.start), columns.iter().map(|own| own.end));
                    for (from, to) in std::iter::once(0).chain(ends).zip(starts.chain([*width])) {
                        row[from..to].fill(MaybeUninit::new(0.0));
                    }
                }
            }
        }
        self.written = None;
        // SAFETY: every element is initialised, and nobody else has a part.
        unsafe { initialised(self.memory.part(0, self.len())) }
    }

    /// Lets a kernel take these columns of rows of this width, each element once, which it has to do.
    ///
    /// # Panics
    /// If a kernel has claimed one of them in a new result, or columns of rows of another width, or there are no such rows.
    pub(super) fn claim(&mut self, columns: Range<usize>, width: usize) {
        let Some(written) = &mut self.written else { return };
        assert!(columns.end <= width && self.memory.len().is_multiple_of(width), "columns {columns:?} of {width}");
        let is_apart = |other: &Range<usize>| columns.end <= other.start || other.end <= columns.start;
        let is_free = written.columns.iter().all(is_apart) && (written.columns.is_empty() || written.width == width);
        assert!(is_free, "columns {columns:?} of {width} after {:?} of {}", written.columns, written.width);
        let at = written.columns.partition_point(|other| other.end <= columns.start);
        written.columns.insert(at, columns);
        written.width = width;
    }

    /// The way for a task to its parts.
    pub(super) fn taker(&self) -> Taker<'_> {
        Taker { places: self, taken: Cell::new(0) }
    }

    /// Prefetches elements that are written soon, into the first-level cache.
    ///
    /// # Panics
    /// If there are no such elements.
    ///
    /// # Safety
    /// No part that is alive has one of them.
    #[inline(always)]
    pub(super) unsafe fn prefetch(&self, from: usize, len: usize) {
        // SAFETY: the caller has no part that overlaps this one.
        prefetch(unsafe { self.memory.part(from, len) });
    }

    /// The same into the second-level cache.
    ///
    /// # Panics
    /// If there are no such elements.
    ///
    /// # Safety
    /// No part that is alive has one of them.
    #[inline(always)]
    pub(super) unsafe fn prefetch_far(&self, from: usize, len: usize) {
        // SAFETY: the caller has no part that overlaps this one.
        prefetch_far(unsafe { self.memory.part(from, len) });
    }

    /// A part that was taken before, or is initialised.
    ///
    /// # Panics
    /// If there are no such elements.
    ///
    /// # Safety
    /// Its elements are initialised, and no other part that is alive has one of them.
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::mut_from_ref, reason = "parts do not overlap")]
    pub(super) unsafe fn again(&self, from: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller has initialised them and has no other part that overlaps them.
        unsafe { initialised(self.memory.part(from, len)) }
    }
}

/// # Safety
/// The elements are initialised.
unsafe fn initialised(memory: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    // SAFETY: the caller guarantees it.
    unsafe { &mut *(std::ptr::from_mut(memory) as *mut [f32]) }
}

/// The way of one task to its parts.
pub(super) struct Taker<'a> {
    places: &'a Places<'a>,
    /// Elements, which are added up when the task ends.
    taken: Cell<usize>,
}

impl<'a> Taker<'a> {
    /// The elements `from..from + len`. Those of a new result are zeros.
    ///
    /// # Panics
    /// If there are no such elements.
    ///
    /// # Safety
    /// No two parts that are alive at once overlap. Elements of a new result are in claimed columns, and none is taken twice.
    #[inline(always)]
    pub unsafe fn part(&self, from: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: no other part has one of these elements.
        let memory = unsafe { self.places.memory.part(from, len) };
        if self.places.written.is_some() {
            memory.fill(MaybeUninit::new(0.0));
            self.taken.set(self.taken.get() + len);
        }
        // SAFETY: they are zeros, or were initialised.
        unsafe { initialised(memory) }
    }
}

impl Drop for Taker<'_> {
    fn drop(&mut self) {
        if let Some(written) = &self.places.written {
            written.taken.fetch_add(self.taken.get(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::cpu::threads::Parallelism;

    const LEN: usize = 3 * FEWEST + 5;

    /// Leaves numbers in the memory that the next result gets.
    fn soil(len: usize) {
        drop(std::hint::black_box(vec![7.0f32; len]));
    }

    #[test]
    fn what_is_not_written_is_zero() {
        for threads in [1, 2] {
            let threads = Parallelism::threads(NonZeroUsize::new(threads).expect("not zero")).expect("threads");
            for len in [0, 1, 1023, FEWEST, LEN, LEN, 12_000_000] {
                soil(len);
                let zeros = threads.run(|| result(len, |_| ()));
                assert!(zeros.len() == len && zeros.iter().all(|zero| zero.to_bits() == 0), "{len}");
                soil(len);
                let one = threads.run(|| {
                    result(len, |places| places.whole().iter_mut().skip(1).step_by(2).for_each(|place| *place = 1.0))
                });
                assert!(one.iter().enumerate().all(|(at, one)| *one == (at % 2) as f32), "{len}");
            }
        }
    }

    #[test]
    fn tasks_take_parts_that_are_zero() {
        let threads = Parallelism::threads(NonZeroUsize::new(2).expect("not zero")).expect("threads");
        for len in [10, LEN] {
            soil(len);
            let parts = len.div_ceil(1000);
            let found = threads.run(|| {
                result(len, |places| {
                    places.claim(0..len, len);
                    let places = &*places;
                    threads::each(parts, |part| {
                        let taker = places.taker();
                        for at in [0, 500] {
                            let from = (part * 1000 + at).min(len);
                            // SAFETY: parts do not overlap.
                            let own = unsafe { taker.part(from, 500.min(len - from)) };
                            assert!(own.iter().all(|element| *element == 0.0));
                            own.iter_mut().step_by(2).for_each(|element| *element = part as f32);
                        }
                    });
                })
            });
            let expected = |at: usize| if at.is_multiple_of(2) { (at / 1000) as f32 } else { 0.0 };
            assert!(found.iter().enumerate().all(|(at, found)| *found == expected(at)));
        }
    }

    #[test]
    fn a_result_that_is_not_written_whole_is_refused() {
        let write = |places: &mut Places<'_>| {
            // SAFETY: there is one part.
            unsafe { places.taker().part(0, LEN - 1) }.fill(1.0);
        };
        assert!(catch_unwind(AssertUnwindSafe(|| result(LEN, write))).is_err());
        let both = |places: &mut Places<'_>| {
            write(places);
            places.whole();
        };
        assert!(catch_unwind(AssertUnwindSafe(|| result(LEN, both))).is_err());
    }

    #[test]
    fn columns_are_claimed_once() {
        const ROWS: usize = FEWEST / 2;
        let write = |places: &mut Places<'_>, columns: Range<usize>, width: usize| {
            places.claim(columns.clone(), width);
            let taker = places.taker();
            for row in 0..ROWS {
                // SAFETY: the columns are claimed.
                unsafe { taker.part(row * width + columns.start, columns.len()) }.fill(columns.start as f32);
            }
        };
        let cases =
            [(2..4, 4, false), (3..4, 4, false), (1..3, 4, true), (0..2, 4, true), (2..4, 5, true), (2..4, 8, true)];
        for (columns, width, refused) in cases {
            let both = |places: &mut Places<'_>| {
                write(places, 0..2, 4);
                write(places, columns.clone(), width);
            };
            soil(4 * ROWS);
            let found = catch_unwind(AssertUnwindSafe(|| result(4 * ROWS, both)));
            assert_eq!(found.is_err(), refused, "{columns:?} of {width}");
            // What is not written is zero.
            let expected = |column: usize| if columns.contains(&column) { columns.start as f32 } else { 0.0 };
            let is_expected = |(at, found): (usize, &f32)| *found == expected(at % 4);
            assert!(found.unwrap_or_default().iter().enumerate().all(is_expected), "{columns:?} of {width}");
            both(&mut Places::of(&mut vec![0.0; 8 * ROWS]));
        }
    }

    #[test]
    fn a_kernel_that_stops_early_leaves_no_result() {
        let stopped = |places: &mut Places<'_>| {
            places.claim(0..LEN, LEN);
            // Even if that is caught.
            assert!(catch_unwind(AssertUnwindSafe(|| places.whole().len())).is_err());
        };
        assert!(catch_unwind(AssertUnwindSafe(|| result(LEN, stopped))).is_err());
    }
}
