//! Elements in memory, which become f32 in registers: matrices, keys and values.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::Simd;

/// An element of a run that is read as f32.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// A run in whole vectors.
    type Run<'a, S: Simd>: Copy;

    /// The first vectors of a run that has them.
    fn run<S: Simd>(elements: &[Self], vectors: usize) -> Self::Run<'_, S>;

    /// A vector of a run.
    ///
    /// # Safety
    /// `at` is less than the vectors of the run.
    unsafe fn vector<S: Simd>(simd: S, run: Self::Run<'_, S>, at: usize) -> S::f32s;

    /// The number in f32, which holds all of them.
    fn widen(self) -> f32;

    /// The elements as they are, if they are f16.
    #[cfg(target_arch = "x86_64")]
    fn as_f16s(_elements: &[Self]) -> Option<&[f16]> {
        None
    }

    /// The elements as they are, if they are f32.
    fn as_f32s(_elements: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl Element for f32 {
    type Run<'a, S: Simd> = &'a [S::f32s];

    #[inline(always)]
    fn run<S: Simd>(elements: &[Self], vectors: usize) -> &[S::f32s] {
        &S::as_simd_f32s(elements).0[..vectors]
    }

    #[inline(always)]
    unsafe fn vector<S: Simd>(_simd: S, run: &[S::f32s], at: usize) -> S::f32s {
        // SAFETY: the caller guarantees it.
        unsafe { *run.get_unchecked(at) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn as_f32s(elements: &[Self]) -> Option<&[f32]> {
        Some(elements)
    }
}

/// A type whose runs stay as they are, and are widened a vector at a time.
macro_rules! widened {
    ($element:ty, |$own:ident| $widen:expr $(, $vector:ident, $same:ident)?) => {
        impl Element for $element {
            type Run<'a, S: Simd> = &'a [Self];

            #[inline(always)]
            fn run<S: Simd>(elements: &[Self], vectors: usize) -> &[Self] {
                &elements[..vectors * S::F32_LANES]
            }

            #[inline(always)]
            unsafe fn vector<S: Simd>(simd: S, run: &[Self], at: usize) -> S::f32s {
                // SAFETY: the caller guarantees it.
                let elements = unsafe { run.get_unchecked(at * S::F32_LANES..(at + 1) * S::F32_LANES) };
                $(
                    if let Some(vector) = $vector(simd, elements) {
                        return vector;
                    }
                )?
                let mut wide = simd.splat_f32s(0.0);
                let places: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut wide));
                for (place, element) in places.iter_mut().zip(elements) {
                    *place = element.widen();
                }
                wide
            }

            #[inline(always)]
            fn widen(self) -> f32 {
                let $own = self;
                $widen
            }

            $(
                #[inline(always)]
                #[cfg(target_arch = "x86_64")]
                fn $same(elements: &[Self]) -> Option<&[f16]> {
                    Some(elements)
                }
            )?
        }
    };
}

widened!(i8, |element| f32::from(element));
widened!(bf16, |element| f32::from_bits(u32::from(element.to_bits()) << 16));
widened!(f16, |element| of_f16(element.to_bits()), in_one_instruction, as_f16s);

/// An f16 in f32, without a branch: it is vectorised, and compiled for processors without an instruction for it.
#[inline(always)]
fn of_f16(bits: u16) -> f32 {
    /// What the exponents differ by: 127 and 15.
    const REBIASED: u32 = (127 - 15) << 23;
    /// The smallest normal f16, 2^-14.
    const SMALLEST_NORMAL: u32 = REBIASED + (1 << 23);
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let normal = magnitude.wrapping_add(REBIASED);
    // An exponent of all ones stays one.
    let normal = if magnitude >= 0x0f80_0000 { normal.wrapping_add(REBIASED) } else { normal };
    // A subnormal f16 is the distance from 2^-14 of a number in the same place above it: no subnormal f32 comes up, which would be slow.
    let subnormal = f32::from_bits(magnitude.wrapping_add(SMALLEST_NORMAL)) - f32::from_bits(SMALLEST_NORMAL);
    let magnitude = if magnitude < 1 << 23 { subnormal.to_bits() } else { normal };
    f32::from_bits(magnitude | u32::from(bits & 0x8000) << 16)
}

/// A vector of f16 in f32, where vectors have 16 floats: then the processor has AVX-512, which converts them in one instruction.
#[inline(always)]
fn in_one_instruction<S: Simd>(simd: S, elements: &[f16]) -> Option<S::f32s> {
    #[cfg(target_arch = "x86_64")]
    if S::F32_LANES == 16 {
        use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};
        let mut wide = simd.splat_f32s(0.0);
        let places: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut wide));
        assert!(elements.len() == 16 && places.len() == 16);
        // SAFETY: `pulp` has vectors of 16 floats on x86-64 only with AVX-512, and there are 16 elements and places.
        unsafe { _mm512_storeu_ps(places.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(elements.as_ptr().cast()))) };
        return Some(wide);
    }
    let _ = (simd, elements);
    None
}

/// An element that f32 is rounded to where it is stored: to nearest, ties to even.
pub(crate) trait Float: Element {
    /// The elements themselves, if they are f32, so that results are written in place.
    fn as_f32s_mut(_elements: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    /// Rounds as many numbers as there are places.
    fn round(numbers: &[f32], places: &mut [Self]);
}

impl Float for f32 {
    #[inline(always)]
    fn as_f32s_mut(elements: &mut [Self]) -> Option<&mut [f32]> {
        Some(elements)
    }

    #[inline(always)]
    fn round(numbers: &[f32], places: &mut [Self]) {
        places.copy_from_slice(numbers);
    }
}

impl Float for f16 {
    #[inline(always)]
    fn round(numbers: &[f32], places: &mut [Self]) {
        places.convert_from_f32_slice(numbers);
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn round(numbers: &[f32], places: &mut [Self]) {
        places.convert_from_f32_slice(numbers);
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, WithSimd};

    use super::*;

    struct All<'a, E>(&'a [E]);

    impl<E: Element> WithSimd for All<'_, E> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let count = self.0.len() / S::F32_LANES;
            let run = E::run::<S>(self.0, count);
            // SAFETY: the run has as many vectors.
            let vector = |at: usize| unsafe { E::vector(simd, run, at) };
            (0..count).flat_map(|at| bytemuck::cast_slice::<_, f32>(&[vector(at)]).to_vec()).collect()
        }
    }

    /// Every number of 16 bits, one at a time and in vectors.
    fn check<E: Element>(of: impl Fn(u16) -> E, expected: impl Fn(E) -> f32) {
        let elements: Vec<E> = (0..=u16::MAX).map(of).collect();
        let vectors = Arch::new().dispatch(All(&elements));
        for (element, vector) in elements.into_iter().zip(vectors) {
            let expected = expected(element);
            for found in [element.widen(), vector] {
                // The bits of a NaN may differ.
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{expected}");
            }
        }
    }

    #[test]
    fn every_number_of_16_bits_becomes_itself() {
        check(f16::from_bits, f16::to_f32);
        check(bf16::from_bits, bf16::to_f32);
    }
}
