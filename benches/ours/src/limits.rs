//! The machine's limits: multiply-adds in registers, a large matrix product, and reading as many bytes as a workload does.

use std::hint::black_box;
use std::ops::Range;

use burn_deepspeed_kernels::cpu::pages::move_to_huge_pages;
use gemm::Parallelism;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::call::{Call, Failure};
use crate::workload::{Workload, noise};

/// Independent sums per thread, so that no addition waits for the one before: two cache lines of elements.
const LANES: usize = 32;
/// Blocks of [`LANES`] elements between the one that is added and the one that is prefetched.
const AHEAD: usize = 8;
/// Blocks read from one run before the next run is read: 4 KiB.
const TURN: usize = 32;

/// Sums of a thread's multiply-adds: more than the latency of one needs, and few enough for 16 registers.
const SUMS: usize = 12;
/// Multiply-adds of a thread are a multiple of this: elements of the widest vectors, times [`SUMS`].
const MULTIPLE: usize = 16 * SUMS;

/// Multiply-adds on values that stay in registers, on every thread. The result is their sum.
pub fn peak(workload: &Workload) -> Result<Call, Failure> {
    let &Workload::Peak { steps } = workload else { return Err("not multiply-adds".into()) };
    let steps = steps.div_ceil(rayon::current_num_threads()).next_multiple_of(MULTIPLE);
    let arch = Arch::new();
    Ok(Box::new(move || {
        let totals = rayon::broadcast(|_| arch.dispatch(MultiplyAdds { steps }));
        Ok(Box::new(move || Ok(totals)))
    }))
}

/// Returns the sum of `steps` products.
struct MultiplyAdds {
    steps: usize,
}

impl WithSimd for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (factor, other) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(0.25)));
        let mut sums = [simd.splat_f32s(0.0); SUMS];
        // No closures: they would be compiled for the baseline instruction set.
        for _ in 0..self.steps / (SUMS * S::F32_LANES) {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(factor, other, *sum);
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += simd.reduce_sum_f32s(sum);
        }
        total
    }
}

/// The `gemm` crate on square matrices.
pub fn matmul(workload: &Workload) -> Result<Call, Failure> {
    let &Workload::Matmul { size } = workload else { return Err("not a matrix product".into()) };
    let (lhs, rhs) = (noise(1, size * size, 1.0), noise(2, size * size, 1.0));
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    Ok(Box::new(move || {
        let mut product = vec![0f32; size * size];
        let (lhs, rhs, rows) = (lhs.as_ptr(), rhs.as_ptr(), size as isize);
        // SAFETY: three matrices of `size` × `size` elements, stored contiguously by columns.
        unsafe {
            #[rustfmt::skip]
            gemm::gemm(
                size, size, size,
                product.as_mut_ptr(), rows, 1, false,
                lhs, rows, 1,
                rhs, rows, 1,
                0.0, 1.0, false, false, false, parallelism,
            );
        }
        Ok(Box::new(move || Ok(product)))
    }))
}

/// The sum of an array. Each thread reads an equal part of it, as `STREAMS` interleaved contiguous runs; the fastest number of
/// runs depends on the machine.
pub fn read<const STREAMS: usize>(workload: &Workload) -> Result<Call, Failure> {
    let &Workload::Read { elements } = workload else { return Err("not an array to read".into()) };
    let array = vec![1f32; elements];
    move_to_huge_pages(&array);
    let part = elements.div_ceil(rayon::current_num_threads());
    Ok(Box::new(move || {
        let total: f32 = array.par_chunks(part).map(sum::<STREAMS>).sum();
        Ok(Box::new(move || Ok(vec![total])))
    }))
}

fn sum<const STREAMS: usize>(part: &[f32]) -> f32 {
    let (blocks, rest) = part.as_chunks::<LANES>();
    let length = blocks.len() / STREAMS;
    let (runs, left) = blocks.split_at(length * STREAMS);
    let mut sums = [0f32; LANES];
    for start in (0..length).step_by(TURN) {
        for run in 0..STREAMS {
            add(&runs[run * length..][..length], start..length.min(start + TURN), &mut sums);
        }
    }
    add(left, 0..left.len(), &mut sums);
    sums.iter().chain(rest).sum()
}

fn add(run: &[[f32; LANES]], blocks: Range<usize>, into: &mut [f32; LANES]) {
    let mut sums = *into; // a copy, so that it stays in registers
    for at in blocks {
        run.get(at + AHEAD).inspect(|block| prefetch(block));
        sums.iter_mut().zip(&run[at]).for_each(|(sum, element)| *sum += element);
    }
    *into = sums;
}

/// Asks the processor to load a block that will be read soon.
fn prefetch(block: &[f32; LANES]) {
    #[cfg(target_arch = "x86_64")]
    for line in block.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and the line belongs to the block; a prefetch reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = block;
}
