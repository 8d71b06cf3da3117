//! Memory that tasks share or reuse.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::cpu::pages::move_to_huge_pages;
use crate::cpu::stream;

/// A slice that several tasks write, each its own part.
pub(super) struct Disjoint<'a, E = f32> {
    first: *mut E,
    len: usize,
    slice: PhantomData<&'a mut [E]>,
}

// SAFETY: tasks write parts that do not overlap, which `part` requires, and the slice is not read before all have ended.
unsafe impl<E: Send> Sync for Disjoint<'_, E> {}

impl<'a, E> Disjoint<'a, E> {
    pub fn new(slice: &'a mut [E]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// How many elements the slice has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The elements `from..from + len`.
    ///
    /// # Panics
    /// If the slice does not have them.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[allow(clippy::mut_from_ref, reason = "parts do not overlap")]
    pub unsafe fn part(&self, from: usize, len: usize) -> &mut [E] {
        assert!(from <= self.len && len <= self.len - from, "{len} elements from {from} on, of {}", self.len);
        // SAFETY: the part is within the slice, and the caller has no other part that overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(from), len) }
    }
}

thread_local! {
    /// Memory that a thread keeps from call to call, so that a step allocates nothing but its result.
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Elements of a cache line.
const LINE: usize = stream::LINE / size_of::<f32>();

/// Lends `len` elements of unspecified contents, from the start of a cache line on: a vector that crosses lines is read twice. A
/// task that runs inside another gets its own.
pub(super) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if scratch.len() < len + LINE {
        scratch.resize(len + LINE, 0.0);
        move_to_huge_pages(&scratch);
    }
    let first = scratch.as_ptr().align_offset(stream::LINE).min(LINE);
    let result = work(&mut scratch[first..][..len]);
    SCRATCH.with_borrow_mut(|free| free.push(scratch));
    result
}
