//! Memory for results.
//!
//! A result is written once, by tasks that each have their part. To write zeros there beforehand takes as long as a twentieth of a layer, since a result is
//! larger than the caches. So memory becomes zeros when a task takes it: it is in a cache when the task writes what it has computed.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pages::move_result_to_huge_pages;
use super::stream::LINE;
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
    if places.taken() == Some(0) {
        places.whole();
    }
    let taken = places.taken();
    assert!(taken.is_none_or(|taken| taken == len), "{taken:?} elements of a result of {len} were written");
    // SAFETY: there is room for `len` elements. Either all became zeros at once, or tasks took as many, which became zeros. None was taken twice: a kernel
    // takes each once, and kernels claim other columns.
    unsafe { result.set_len(len) };
    result
}

/// The memory of a result, of which tasks take parts.
pub struct Places<'a> {
    first: *mut f32,
    len: usize,
    /// Elements that tasks have taken; `None` if all elements are initialised.
    taken: Option<AtomicUsize>,
    /// Columns of a new result that kernels have claimed, each with the width of a row.
    claimed: Vec<(Range<usize>, usize)>,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks take parts that do not overlap, which `Taker::part` requires, and elements are not read before all tasks have ended.
unsafe impl Sync for Places<'_> {}

impl<'a> Places<'a> {
    /// Elements that are initialised.
    pub fn of(elements: &'a mut [f32]) -> Self {
        Self { first: elements.as_mut_ptr(), len: elements.len(), taken: None, claimed: Vec::new(), slice: PhantomData }
    }

    fn unwritten(memory: &'a mut [MaybeUninit<f32>]) -> Self {
        let taken = Some(AtomicUsize::new(0));
        let first = memory.as_mut_ptr().cast();
        Self { first, len: memory.len(), taken, claimed: Vec::new(), slice: PhantomData }
    }

    fn taken(&self) -> Option<usize> {
        self.taken.as_ref().map(|taken| taken.load(Ordering::Acquire))
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements. Those of a new result become zeros first, on all threads of the current pool.
    ///
    /// # Panics
    /// If a task has taken a part of a new result.
    pub fn whole(&mut self) -> &mut [f32] {
        if let Some(taken) = self.taken.take() {
            assert!(taken.into_inner() == 0, "a part of the result is taken");
            // SAFETY: this is the memory of the result, and nobody else has a part of it.
            let memory = unsafe { std::slice::from_raw_parts_mut(self.first.cast::<MaybeUninit<f32>>(), self.len) };
            threads::each_part(memory, SOME, |_, memory| memory.fill(MaybeUninit::new(0.0)));
        }
        // SAFETY: every element is initialised, and nobody else has a part of them.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }

    /// Lets a kernel take these columns of rows of this width, each element once.
    ///
    /// # Panics
    /// If a kernel has claimed one of them in a new result, or columns of rows of another width.
    pub(super) fn claim(&mut self, columns: Range<usize>, width: usize) {
        if self.taken.is_none() {
            return;
        }
        for (other, others) in &self.claimed {
            let is_apart = columns.end <= other.start || other.end <= columns.start;
            assert!(
                width == *others && is_apart,
                "columns {columns:?} of {width} after {other:?} of {others} were written"
            );
        }
        self.claimed.push((columns, width));
    }

    /// The way for a task to its parts.
    pub(super) fn taker(&self) -> Taker<'_> {
        Taker { places: self, taken: Cell::new(0) }
    }

    /// Prefetches elements that are written soon. There need not be any.
    #[inline(always)]
    pub(super) fn prefetch(&self, from: usize, len: usize) {
        #[cfg(target_arch = "x86_64")]
        for at in (from..from + len).step_by(LINE / size_of::<f32>()) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: every x86-64 processor has the instruction, and it reads nothing that the program could see.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.first.wrapping_add(at).cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (from, len, LINE);
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
        self.check(from, len);
        // SAFETY: there are these elements, and the caller has initialised them and has no other part that overlaps them.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(from), len) }
    }

    #[inline(always)]
    fn check(&self, from: usize, len: usize) {
        assert!(from <= self.len && len <= self.len - from, "{len} elements from {from} on, of {}", self.len);
    }
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
    /// No two parts that are alive at once overlap, and no element of a new result is taken twice.
    #[inline(always)]
    pub unsafe fn part(&self, from: usize, len: usize) -> &'a mut [f32] {
        let places = self.places;
        places.check(from, len);
        if places.taken.is_some() {
            // SAFETY: there are these elements, and no other part has one of them.
            let memory =
                unsafe { std::slice::from_raw_parts_mut(places.first.add(from).cast::<MaybeUninit<f32>>(), len) };
            memory.fill(MaybeUninit::new(0.0));
            self.taken.set(self.taken.get() + len);
        }
        // SAFETY: the elements are initialised, and no other part has one of them.
        unsafe { std::slice::from_raw_parts_mut(places.first.add(from), len) }
    }
}

impl Drop for Taker<'_> {
    fn drop(&mut self) {
        if let Some(taken) = &self.places.taken {
            taken.fetch_add(self.taken.get(), Ordering::Release);
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
            for len in [0, 1, 1023, FEWEST, LEN, LEN] {
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
        for (columns, width, refused) in [(2..4, 4, false), (1..3, 4, true), (0..2, 4, true), (2..4, 5, true)] {
            let claim = |places: &mut Places<'_>| {
                places.claim(0..2, 4);
                places.claim(columns.clone(), width);
            };
            assert_eq!(
                catch_unwind(AssertUnwindSafe(|| result(LEN, claim))).is_err(),
                refused,
                "{columns:?} of {width}"
            );
            claim(&mut Places::of(&mut [0.0; 8]));
        }
    }
}
