//! Memory of the host that a program asks the driver for.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Allocations by address.
#[derive(Debug, Default)]
pub struct HostMemory(Mutex<HashMap<usize, Layout>>);

impl HostMemory {
    /// Memory of zeros; `None` if there is no more.
    pub fn allocate(&self, bytes: usize) -> Option<usize> {
        let layout = Layout::from_size_align(bytes.max(1), 64).ok()?;
        // SAFETY: the layout has a size above 0.
        let start = unsafe { alloc_zeroed(layout) } as usize;
        if start == 0 {
            return None;
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(start, layout);
        Some(start)
    }

    /// Frees memory that [`allocate`](Self::allocate) returned; whether there was any.
    pub fn free(&self, start: usize) -> bool {
        let Some(layout) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&start) else { return false };
        // SAFETY: it was allocated with this layout, and is removed from the list, so that it is freed once.
        unsafe { dealloc(start as *mut u8, layout) };
        true
    }
}
