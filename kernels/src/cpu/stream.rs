//! Dot products and weighted sums of long contiguous runs, of any element type, with a few short rows. Each run is read once; rows are
//! processed in pairs, so that a run in a register serves both.

use pulp::Simd;

use super::element::Element;

/// Bytes between what is read of a run and what is prefetched.
const AHEAD: usize = 1024;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// The stride of rows, and a column in them.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub stride: usize,
    pub first: usize,
}

/// Adds `runs`, each times its factor, to every row of `sums`; all have the same length. The factors are columns of the rows
/// of `factors`.
#[inline(always)]
pub(super) fn add_rows<S: Simd, E: Element, const N: usize>(
    simd: S,
    runs: [&[E]; N],
    factors: &[f32],
    columns: Columns,
    sums: &mut [f32],
) {
    let (len, Columns { stride, first }) = (runs[0].len(), columns);
    let mut factors = factors.chunks_exact(2 * stride);
    let mut sums = sums.chunks_exact_mut(2 * len);
    for (sums, factors) in (&mut sums).zip(&mut factors) {
        let (one, other) = sums.split_at_mut(len);
        add(simd, runs, [&factors[first..first + N], &factors[stride + first..][..N]], [one, other]);
    }
    let sums = sums.into_remainder();
    if !sums.is_empty() {
        add(simd, runs, [&factors.remainder()[first..first + N]], [sums]);
    }
}

/// Adds `runs`, each times its factor, to each of `sums`; all have the same length.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "several slices at one index")]
pub(super) fn add<S: Simd, E: Element, const N: usize, const M: usize>(
    simd: S,
    runs: [&[E]; N],
    factors: [&[f32]; M],
    sums: [&mut [f32]; M],
) {
    let len = sums[0].len();
    let count = len / S::F32_LANES;
    let mut splats = [[simd.splat_f32s(0.0); N]; M];
    for m in 0..M {
        for n in 0..N {
            splats[m][n] = simd.splat_f32s(factors[m][n]);
        }
    }
    let mut parts = [E::run::<S>(&[], 0); N];
    for n in 0..N {
        parts[n] = E::run::<S>(runs[n], count);
    }
    let totals = sums.map(|sums| S::as_mut_simd_f32s(&mut sums[..len]));
    for at in 0..count {
        let mut values = [simd.splat_f32s(0.0); N];
        for n in 0..N {
            // SAFETY: every run has as many vectors.
            values[n] = unsafe { E::vector(simd, parts[n], at) };
        }
        for m in 0..M {
            let mut total = totals[m].0[at];
            for n in 0..N {
                total = simd.mul_add_e_f32s(values[n], splats[m][n], total);
            }
            totals[m].0[at] = total;
        }
    }
    let done = count * S::F32_LANES;
    for m in 0..M {
        for (at, sum) in totals[m].1.iter_mut().enumerate() {
            for n in 0..N {
                *sum += runs[n][done + at].widen() * factors[m][n];
            }
        }
    }
}

/// The sums of `runs`, each times each of `inputs`, which have their length. `next` as for [`vector_sums`].
#[inline(always)]
pub(super) fn dot<S: Simd, E: Element, const N: usize, const M: usize>(
    simd: S,
    runs: [&[E]; N],
    inputs: [&[f32]; M],
    next: Option<usize>,
) -> [[f32; N]; M] {
    let sums = vector_sums(simd, runs, inputs, next);
    let mut totals = rest_sums::<S, E, N, M>(runs, inputs);
    for m in 0..M {
        for n in 0..N {
            totals[m][n] += simd.reduce_sum_f32s(sums[m][n]);
        }
    }
    totals
}

/// The sums over whole vectors, not yet reduced. Prefetches the runs that are read next, which are `next` elements after these.
#[inline(always)]
pub(super) fn vector_sums<S: Simd, E: Element, const N: usize, const M: usize>(
    simd: S,
    runs: [&[E]; N],
    inputs: [&[f32]; M],
    next: Option<usize>,
) -> [[S::f32s; N]; M] {
    let count = inputs[0].len() / S::F32_LANES;
    let mut parts = [E::run::<S>(&[], 0); N];
    for n in 0..N {
        parts[n] = E::run::<S>(runs[n], count);
    }
    let mut others = [f32::run::<S>(&[], 0); M];
    for m in 0..M {
        others[m] = f32::run::<S>(inputs[m], count);
    }
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let each = (LINE / size_of::<E>() / S::F32_LANES).max(1);
    for line in (0..count).step_by(each) {
        if let Some(next) = next {
            let (ahead, len) = (line * S::F32_LANES + AHEAD / size_of::<E>(), inputs[0].len());
            let ahead = if ahead < len { ahead } else { next + ahead - len };
            for run in runs {
                prefetch_at(run, ahead);
            }
        }
        for at in line..count.min(line + each) {
            for n in 0..N {
                // SAFETY: every run, and every input, has as many vectors.
                let value = unsafe { E::vector(simd, parts[n], at) };
                for m in 0..M {
                    // SAFETY: as above.
                    let other = unsafe { f32::vector(simd, others[m], at) };
                    sums[m][n] = simd.mul_add_e_f32s(value, other, sums[m][n]);
                }
            }
        }
    }
    sums
}

/// The sums over the elements after the last whole vector.
#[inline(always)]
pub(super) fn rest_sums<S: Simd, E: Element, const N: usize, const M: usize>(
    runs: [&[E]; N],
    inputs: [&[f32]; M],
) -> [[f32; N]; M] {
    let len = inputs[0].len();
    let done = len / S::F32_LANES * S::F32_LANES;
    let mut sums = [[0.0; N]; M];
    for m in 0..M {
        for n in 0..N {
            for (value, input) in runs[n][done..len].iter().zip(&inputs[m][done..]) {
                sums[m][n] += value.widen() * input;
            }
        }
    }
    sums
}

/// Prefetches elements that are read soon, into the first-level cache.
#[inline(always)]
pub(super) fn prefetch<E>(elements: &[E]) {
    prefetch_lines::<true, E>(elements);
}

/// The same into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_far<E>(elements: &[E]) {
    prefetch_lines::<false, E>(elements);
}

#[inline(always)]
fn prefetch_lines<const NEAR: bool, E>(elements: &[E]) {
    for at in (0..elements.len()).step_by(LINE / size_of::<E>()) {
        prefetch_line::<NEAR, E>(elements, at);
    }
}

/// Prefetches the line of an element into the first-level cache. The slice need not have the element.
#[inline(always)]
pub(super) fn prefetch_near<E>(elements: &[E], at: usize) {
    prefetch_line::<true, E>(elements, at);
}

/// The same into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_at<E>(elements: &[E], at: usize) {
    prefetch_line::<false, E>(elements, at);
}

#[inline(always)]
fn prefetch_line<const NEAR: bool, E>(elements: &[E], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let line = elements.as_ptr().wrapping_add(at).cast();
        // SAFETY: every x86-64 processor has the instruction. It reads nothing that the program could see, and ignores addresses that
        // are not mapped.
        unsafe { if NEAR { _mm_prefetch::<_MM_HINT_T0>(line) } else { _mm_prefetch::<_MM_HINT_T1>(line) } }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (elements, at);
}
