//! The exact GELU (arXiv:1606.08415).

use pulp::{Arch, Simd, WithSimd};

use super::simd::erf;
use super::threads;

/// Elements of a task, so that a task is worth a thread.
const TASK: usize = 1 << 14;

/// `x · (1 + erf(x / √2)) / 2` of each element, in place.
///
/// Runs on the threads of the current `rayon` pool, with the widest vectors that the processor has.
pub fn gelu(elements: &mut [f32]) {
    threads::each_part(elements, TASK, |_, elements| Arch::new().dispatch(Part(elements)));
}

struct Part<'a>(&'a mut [f32]);

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (vectors, rest) = S::as_mut_simd_f32s(self.0);
        for vector in vectors {
            *vector = each(simd, *vector);
        }
        let vector = each(simd, simd.partial_load_f32s(rest));
        simd.partial_store_f32s(rest, vector);
    }
}

#[inline(always)]
fn each<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
    let erf = erf(simd, simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)));
    simd.mul_add_e_f32s(half, erf, half)
}
