//! A decoding step copies no history: the bytes that it allocates do not depend on the tokens that the cache holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts the bytes that each thread asks for.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: the caller's layout, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread allocates while `work` runs.
pub fn allocated(work: impl FnOnce()) -> usize {
    let before = BYTES.get();
    work();
    BYTES.get() - before
}

use burn_deepspeed::{AttentionMask, InferenceBackend};

use crate::attention::llama;
use crate::common::{on_each_cpu_backend, seeded};

fn a_step_copies_no_history<B: InferenceBackend>() {
    let device = Default::default();
    let config = llama().with_max_out_tokens(4096);
    let attention = config.init_self_attention::<B>(0, &device).unwrap();
    let mut cache = config.init_cache::<B>(1, &device).unwrap();
    let row = 2 * 8 * 4; // bytes of one token's keys, and of its values
    let mut step_at = |history: usize| {
        cache.reset();
        // the content does not matter, only that the rows hold so many tokens
        for tokens in [history / 2, history - history / 2] {
            cache.step(tokens).unwrap().commit();
        }
        let input = seeded::<B, 3>([1, 1, 48], 1);
        let bytes = allocated(|| {
            let mut step = cache.step(1).unwrap();
            attention.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
            step.commit();
        });
        assert_eq!(cache.lengths(), [history + 1]);
        bytes
    };
    step_at(4090); // whatever is set up once, and the room that threads keep
    let (short, long) = (step_at(100), step_at(4000));
    assert!(long < short + 8 * row, "{short} bytes behind 100 tokens, {long} behind 4000");
    assert!(long < 4000 * row / 4, "{long} bytes, and the keys alone are {}", 4000 * row);
}

on_each_cpu_backend!(a_step_copies_no_history);
