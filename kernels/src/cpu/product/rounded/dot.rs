//! A few rows of integers of 16 bits, and a group of outputs. Sums stay in registers, and weights are widened as they are read.
//!
//! ```text
//!             4 runs of weights, widened once for all rows
//!           ┌──────────────┐
//!  row 0 →  │ 4 × 2 sums   │   32 bits for each of 8 lanes, up to 16384 elements
//!  row 1 →  │              │
//!           └──────────────┘
//! ```

use super::row::MOST_INPUTS;
use crate::cpu::product::int8::Int8Matrix;

/// Outputs that are computed together.
pub(in crate::cpu::product) const TOGETHER: usize = 4;

/// Rows that the weights are multiplied with together.
const PAIR: usize = 2;

/// The same with 32 registers.
pub(super) const QUAD: usize = 4;

/// Adds the products of every row and the outputs from `first` on, each block times its scale, to `sums`, `[rows, TOGETHER]`.
pub(super) fn add_products(
    matrix: &Int8Matrix<'_>,
    first: usize,
    count: usize,
    rows: &[i16],
    wide: &mut [i16],
    sums: &mut [f32],
) {
    let inputs = matrix.inputs;
    let stride = inputs.next_multiple_of(2);
    // The last output is repeated up to a whole group, and the copies are not read.
    let runs: [_; TOGETHER] = std::array::from_fn(|n| matrix.run(first + n.min(count - 1)));
    let (elements, scales) = (runs.map(|(elements, _)| elements), runs.map(|(_, scales)| scales));
    if rows.len() <= if has_dot() { QUAD } else { PAIR } * stride {
        return add_blocks(matrix, elements, scales, rows, sums);
    }
    for (wide, elements) in wide.chunks_exact_mut(stride).zip(elements) {
        pulp::Arch::new().dispatch(Widen { elements, wide });
    }
    let runs = std::array::from_fn(|n| &wide[n * stride..][..inputs]);
    add_blocks(matrix, runs, scales, rows, sums);
}

/// Widens int8.
struct Widen<'a> {
    elements: &'a [i8],
    wide: &'a mut [i16],
}

impl pulp::WithSimd for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        self.wide.iter_mut().zip(self.elements).for_each(|(wide, element)| *wide = i16::from(*element));
    }
}

/// The same, with the weights as int8 or widened.
fn add_blocks<E: Whole>(
    matrix: &Int8Matrix<'_>,
    runs: [&[E]; TOGETHER],
    scales: [&[f32]; TOGETHER],
    rows: &[i16],
    sums: &mut [f32],
) {
    let inputs = matrix.inputs;
    let stride = inputs.next_multiple_of(2);
    for (block, start) in (0..inputs).step_by(matrix.input_block).enumerate() {
        let end = inputs.min(start + matrix.input_block);
        for start in (start..end).step_by(MOST_INPUTS) {
            let own = start..end.min(start + MOST_INPUTS);
            let runs = runs.map(|run| &run[own.clone()]);
            let add = |places: &mut [f32], totals: [i64; TOGETHER]| {
                for n in 0..TOGETHER {
                    places[n] += totals[n] as f32 * scales[n][block];
                }
            };
            let quads = if has_dot() { rows.len() / (QUAD * stride) * QUAD } else { 0 };
            let (quad_rows, rows) = rows.split_at(quads * stride);
            let (quad_sums, sums) = sums.split_at_mut(quads * TOGETHER);
            let places = quad_sums.chunks_exact_mut(QUAD * TOGETHER);
            for (quad, places) in quad_rows.chunks_exact(QUAD * stride).zip(places) {
                let products = dot(runs, std::array::from_fn::<_, QUAD, _>(|m| &quad[m * stride..][own.clone()]));
                for (places, products) in places.chunks_exact_mut(TOGETHER).zip(products) {
                    add(places, products);
                }
            }
            let mut pairs = rows.chunks_exact(PAIR * stride);
            let mut places = sums.chunks_exact_mut(PAIR * TOGETHER);
            for (pair, places) in (&mut pairs).zip(&mut places) {
                let (one, other) = pair.split_at(stride);
                let [one, other] = dot(runs, [&one[own.clone()], &other[own.clone()]]);
                add(&mut places[..TOGETHER], one);
                add(&mut places[TOGETHER..], other);
            }
            if !pairs.remainder().is_empty() {
                let [one] = dot(runs, [&pairs.remainder()[own.clone()]]);
                add(places.into_remainder(), one);
            }
        }
    }
}

/// Integers that are read as 16 bits.
trait Whole: Copy + Into<i32> {
    /// The elements `at..at + 16`.
    ///
    /// # Safety
    /// The slice has these elements.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(elements: &[Self], at: usize) -> std::arch::x86_64::__m256i;

    /// The elements `at..at + 32`.
    ///
    /// # Safety
    /// The slice has these elements, and the processor has AVX-512BW.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_wide(elements: &[Self], at: usize) -> std::arch::x86_64::__m512i;
}

/// Whether the processor multiplies 32 elements and adds their pairs to the sums in one instruction.
fn has_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bw") && std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The products of the runs and each of the rows, which have their length.
fn dot<E: Whole, const N: usize, const M: usize>(runs: [&[E]; N], rows: [&[i16]; M]) -> [[i64; N]; M] {
    #[cfg(target_arch = "x86_64")]
    if has_dot() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::dot(runs, rows) };
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has AVX2: `rounded_product` has checked it.
    return unsafe { avx2::dot(runs, rows) };
    #[cfg(not(target_arch = "x86_64"))]
    rows.map(|row| runs.map(|run| rest(run, row)))
}

/// The sum of products, one by one.
fn rest<E: Whole>(run: &[E], row: &[i16]) -> i64 {
    run.iter().zip(row).map(|(a, b)| i64::from((*a).into() * i32::from(*b))).sum()
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, __m512i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_loadu_si256,
        _mm256_madd_epi16, _mm256_setzero_si256, _mm256_storeu_si256, _mm512_cvtepi8_epi16, _mm512_loadu_si512,
    };

    use super::{Whole, rest};

    /// Elements of a vector.
    const LANES: usize = 16;

    impl Whole for i16 {
        #[inline(always)]
        unsafe fn load(elements: &[Self], at: usize) -> __m256i {
            // SAFETY: the caller guarantees it.
            unsafe { _mm256_loadu_si256(elements.as_ptr().add(at).cast()) }
        }

        #[inline(always)]
        unsafe fn load_wide(elements: &[Self], at: usize) -> __m512i {
            // SAFETY: the caller guarantees it.
            unsafe { _mm512_loadu_si512(elements.as_ptr().add(at).cast()) }
        }
    }

    impl Whole for i8 {
        #[inline(always)]
        unsafe fn load(elements: &[Self], at: usize) -> __m256i {
            // SAFETY: the caller guarantees it.
            unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(elements.as_ptr().add(at).cast())) }
        }

        #[inline(always)]
        unsafe fn load_wide(elements: &[Self], at: usize) -> __m512i {
            // SAFETY: the caller guarantees it.
            unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(elements.as_ptr().add(at).cast())) }
        }
    }

    #[target_feature(enable = "avx2")]
    #[allow(clippy::needless_range_loop, reason = "several slices at one index")]
    pub fn dot<E: Whole, const N: usize, const M: usize>(runs: [&[E]; N], rows: [&[i16]; M]) -> [[i64; N]; M] {
        let len = rows[0].len();
        assert!(runs.iter().all(|run| run.len() == len) && rows.iter().all(|row| row.len() == len));
        let whole = len / LANES * LANES;
        let mut sums = [[_mm256_setzero_si256(); N]; M];
        for at in (0..whole).step_by(LANES) {
            let mut own = [_mm256_setzero_si256(); M];
            for m in 0..M {
                // SAFETY: every row, and every run, has the elements of whole vectors.
                own[m] = unsafe { i16::load(rows[m], at) };
            }
            for n in 0..N {
                // SAFETY: as above.
                let weights = unsafe { E::load(runs[n], at) };
                for m in 0..M {
                    sums[m][n] = _mm256_add_epi32(sums[m][n], _mm256_madd_epi16(weights, own[m]));
                }
            }
        }
        let mut totals = [[0; N]; M];
        for m in 0..M {
            for n in 0..N {
                totals[m][n] = sum(sums[m][n]) + rest(&runs[n][whole..], &rows[m][whole..]);
            }
        }
        totals
    }

    #[target_feature(enable = "avx2")]
    fn sum(vector: __m256i) -> i64 {
        let mut lanes = [0i32; 8];
        // SAFETY: there is room for eight lanes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
        lanes.into_iter().map(i64::from).sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi64, _mm512_castsi512_si256, _mm512_cvtepi32_epi64, _mm512_dpwssd_epi32,
        _mm512_extracti64x4_epi64, _mm512_reduce_add_epi64, _mm512_setzero_si512,
    };

    use super::{Whole, rest};

    /// Elements of a vector.
    const LANES: usize = 32;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[allow(clippy::needless_range_loop, reason = "several slices at one index")]
    pub fn dot<E: Whole, const N: usize, const M: usize>(runs: [&[E]; N], rows: [&[i16]; M]) -> [[i64; N]; M] {
        let len = rows[0].len();
        assert!(runs.iter().all(|run| run.len() == len) && rows.iter().all(|row| row.len() == len));
        let whole = len / LANES * LANES;
        let mut sums = [[_mm512_setzero_si512(); N]; M];
        for at in (0..whole).step_by(LANES) {
            let mut own = [_mm512_setzero_si512(); M];
            for m in 0..M {
                // SAFETY: every row, and every run, has the elements of whole vectors; the caller has AVX-512BW.
                own[m] = unsafe { i16::load_wide(rows[m], at) };
            }
            for n in 0..N {
                // SAFETY: as above.
                let weights = unsafe { E::load_wide(runs[n], at) };
                for m in 0..M {
                    sums[m][n] = _mm512_dpwssd_epi32(sums[m][n], weights, own[m]);
                }
            }
        }
        let mut totals = [[0; N]; M];
        for m in 0..M {
            for n in 0..N {
                totals[m][n] = sum(sums[m][n]) + rest(&runs[n][whole..], &rows[m][whole..]);
            }
        }
        totals
    }

    #[target_feature(enable = "avx512f")]
    fn sum(vector: __m512i) -> i64 {
        let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(vector));
        let high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(vector));
        _mm512_reduce_add_epi64(_mm512_add_epi64(low, high))
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Whole for i16 {}

#[cfg(not(target_arch = "x86_64"))]
impl Whole for i8 {}
