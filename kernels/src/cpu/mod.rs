//! Kernels on slices, for any CPU.

pub mod attention;
pub mod decode;
pub mod flash;
pub mod gelu;
mod lanes;
pub mod masks;
pub mod norm;
pub mod product;
pub mod scatter;
mod scores;
mod simd;
mod stream;
pub mod threads;

use std::cell::RefCell;
use std::marker::PhantomData;

/// A slice that several tasks write, each its own part.
struct Disjoint<'a, E = f32> {
    first: *mut E,
    len: usize,
    slice: PhantomData<&'a mut [E]>,
}

// SAFETY: tasks write parts that do not overlap, which is what `part` asks for, and nobody reads before all have ended.
unsafe impl<E: Send> Sync for Disjoint<'_, E> {}

impl<'a, E> Disjoint<'a, E> {
    fn new(slice: &'a mut [E]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements `from..from + len`.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[allow(clippy::mut_from_ref, reason = "parts do not overlap")]
    unsafe fn part(&self, from: usize, len: usize) -> &mut [E] {
        assert!(from + len <= self.len, "a part that ends at {} of a slice of {}", from + len, self.len);
        // SAFETY: it lies within the slice, and the caller has no other part that overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(from), len) }
    }
}

thread_local! {
    /// Memory that a thread keeps from call to call, so that a step allocates nothing but its result.
    static ROOMS: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` elements, which hold anything. A task that runs inside another's has a room of its own.
fn with_room<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut room = ROOMS.with_borrow_mut(Vec::pop).unwrap_or_default();
    if room.len() < len {
        room.resize(len, 0.0);
    }
    let result = work(&mut room[..len]);
    ROOMS.with_borrow_mut(|rooms| rooms.push(room));
    result
}
