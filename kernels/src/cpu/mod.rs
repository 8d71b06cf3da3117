//! Kernels on slices, for any CPU.

pub mod decode;
pub mod flash;
pub mod masks;
pub mod norm;
pub mod product;
mod simd;

use std::marker::PhantomData;

/// Running maximum and sum of one query.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl Running {
    const NOTHING: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// A slice that several tasks write, each its own part.
struct Disjoint<'a> {
    first: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks write parts that do not overlap, which is what `part` asks for, and nobody reads before all have ended.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    fn new(slice: &'a mut [f32]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements `from..from + len`.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[allow(clippy::mut_from_ref, reason = "parts do not overlap")]
    unsafe fn part(&self, from: usize, len: usize) -> &mut [f32] {
        assert!(from + len <= self.len, "a part that ends at {} of a slice of {}", from + len, self.len);
        // SAFETY: it lies within the slice, and the caller has no other part that overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(from), len) }
    }
}
