//! The gate on the context (arXiv:2505.06708).

use pulp::{Arch, Simd, WithSimd};

use super::simd::sigmoid;
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
            *vector = simd.mul_f32s(*vector, sigmoid(simd, *gate));
        }
        let vector = simd.mul_f32s(simd.partial_load_f32s(rest), sigmoid(simd, simd.partial_load_f32s(last)));
        simd.partial_store_f32s(rest, vector);
    }
}
