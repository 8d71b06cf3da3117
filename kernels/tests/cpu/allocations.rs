//! Threads keep the scratch memory of kernels: a repeated step allocates nothing besides its result.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_kernels::cpu::decode::decode;
use burn_deepspeed_kernels::cpu::norm::{Norm, norm};
use burn_deepspeed_kernels::cpu::product::{InputElements, Matrix, Product, product};
use burn_deepspeed_kernels::cpu::scatter::{Places, Rotation, Scatter, scatter};

use crate::oracle::{Problem, noise};
use crate::problem::Tensors;

/// The system's allocator, which counts what each thread asks for.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
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

/// Allocations of the second call, all of it on one thread.
fn second(mut kernel: impl FnMut() + Send) -> usize {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        kernel();
        let before = CALLS.get();
        kernel();
        CALLS.get() - before
    })
}

#[test]
fn a_step_allocates_nothing() {
    let problem = Problem::new([8, 2, 1, 3000, 64], &[2900, 1500]);
    let tensors = Tensors::new(&problem);
    let mut output = vec![0.0; tensors.query.len()];
    assert_eq!(second(|| decode(&tensors.attention(&problem), &mut output)), 0);

    let (input, weights, bias) = (noise(4 * 512, 1), noise(512 * 768, 2), noise(768, 3));
    for (input_stride, output_stride) in [(768, 1), (1, 512)] {
        for sequence in [1, 40] {
            let matrix = Matrix { elements: &weights, inputs: 512, outputs: 768, input_stride, output_stride };
            let problem = Product {
                input: &input,
                elements: InputElements::F32,
                sequence,
                matrix,
                bias: Some(&bias),
                width: 768,
                first: 0,
            };
            let mut output = vec![0.0; 4 * 768];
            assert_eq!(second(|| product(&problem, &mut output)), 0);
        }
    }

    let problem = Norm { input: &input, residual: None, gamma: &weights[..512], beta: None, epsilon: 1e-5, rms: true };
    let mut output = vec![0.0; input.len()];
    assert_eq!(second(|| norm(&problem, &mut output)), 0);

    let rotation = Some(Rotation { cos: &bias[..128], sin: &bias[128..256], half: 32, layout: RotaryLayout::Half });
    let places = Places::Slots { slots: 9, starts: &[3, 5, 0, 8], counts: &[1, 1, 0, 1] };
    let problem = Scatter {
        input: &input,
        width: 512,
        first: 64,
        heads: 4,
        head_dim: 64,
        tokens: 1,
        norm: None,
        rotation,
        factors: None,
        places,
    };
    let mut output = vec![0.0; 4 * 4 * 9 * 64];
    assert_eq!(second(|| scatter(&problem, &mut output)), 0);
}
