//! The gate on the context (arXiv:2505.06708).

use pulp::{Arch, Simd, WithSimd};

use super::simd::exp2;
use super::threads;
use crate::contract::check_len;

/// Elements of a task, so that a task is worth a thread.
const TASK: usize = 1 << 14;

/// Multiplies each element of a context by `1 / (1 + e^(-x))` of the gate's `x`, in place.
///
/// Runs on the threads of the current `rayon` pool, with the widest vectors that the processor has.
///
/// # Panics
/// If the lengths differ.
pub fn gate(context: &mut [f32], gate: &[f32]) {
    check_len("context_gate", "gate", gate.len(), context.len());
    threads::each_part(context, TASK, |part, context| {
        let gate = &gate[part * TASK..][..context.len()];
        Arch::new().dispatch(Part { context, gate });
    });
}

struct Part<'a> {
    context: &'a mut [f32],
    gate: &'a [f32],
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (vectors, rest) = S::as_mut_simd_f32s(self.context);
        let (gates, last) = S::as_simd_f32s(self.gate);
        for (vector, gate) in vectors.iter_mut().zip(gates) {
            *vector = each(simd, *vector, *gate);
        }
        let vector = each(simd, simd.partial_load_f32s(rest), simd.partial_load_f32s(last));
        simd.partial_store_f32s(rest, vector);
    }
}

#[inline(always)]
fn each<S: Simd>(simd: S, context: S::f32s, gate: S::f32s) -> S::f32s {
    // With t = e^(-|x|), 1 / (1 + t) above zero and t / (1 + t) below: exponents are not above 0.
    let one = simd.splat_f32s(1.0);
    let t = exp2(simd, simd.mul_f32s(simd.abs_f32s(gate), simd.splat_f32s(-std::f32::consts::LOG2_E)));
    let below = simd.less_than_f32s(gate, simd.splat_f32s(0.0));
    let share = simd.div_f32s(simd.select_f32s(below, t, one), simd.add_f32s(one, t));
    simd.mul_f32s(context, share)
}
