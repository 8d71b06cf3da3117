//! The activations of MLPs, alone and as the gate of another projection (arXiv:2002.05202).

use std::marker::PhantomData;

use burn_deepspeed_core::activation::Activation;
use pulp::{Arch, Simd, WithSimd};

use super::simd::{erf, sigmoid};
use super::threads;
use crate::contract::check_len;

/// Elements of a task, so that a task is worth a thread.
const TASK: usize = 1 << 14;

/// Applies an activation to each element, in place.
///
/// Runs on the threads of the current `rayon` pool, with the widest vectors that the processor has.
pub fn activate(elements: &mut [f32], activation: Activation) {
    run(elements, None, activation);
}

/// Applies an activation to each element and multiplies it by that of `up`, in place.
///
/// Runs on the threads of the current `rayon` pool, with the widest vectors that the processor has.
///
/// # Panics
/// If the lengths differ.
pub fn gated(elements: &mut [f32], up: &[f32], activation: Activation) {
    check_len("gated_activation", "up", up.len(), elements.len());
    run(elements, Some(up), activation);
}

fn run(elements: &mut [f32], up: Option<&[f32]>, activation: Activation) {
    match activation {
        Activation::Gelu => each_part::<Gelu>(elements, up),
        Activation::GeluTanh => each_part::<GeluTanh>(elements, up),
        Activation::Silu => each_part::<Silu>(elements, up),
    }
}

fn each_part<F: Function>(elements: &mut [f32], up: Option<&[f32]>) {
    threads::each_part(elements, TASK, |part, elements| {
        let up = up.map(|up| &up[part * TASK..][..elements.len()]);
        Arch::new().dispatch(Part::<F> { elements, up, function: PhantomData });
    });
}

struct Part<'a, F> {
    elements: &'a mut [f32],
    up: Option<&'a [f32]>,
    function: PhantomData<F>,
}

impl<F: Function> WithSimd for Part<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (vectors, rest) = S::as_mut_simd_f32s(self.elements);
        let Some(up) = self.up else {
            for vector in vectors {
                *vector = F::of(simd, *vector);
            }
            let vector = F::of(simd, simd.partial_load_f32s(rest));
            return simd.partial_store_f32s(rest, vector);
        };
        let (ups, last) = S::as_simd_f32s(up);
        for (vector, up) in vectors.iter_mut().zip(ups) {
            *vector = simd.mul_f32s(F::of(simd, *vector), *up);
        }
        let vector = simd.mul_f32s(F::of(simd, simd.partial_load_f32s(rest)), simd.partial_load_f32s(last));
        simd.partial_store_f32s(rest, vector);
    }
}

/// A function of each element.
trait Function {
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s;
}

struct Gelu;
struct GeluTanh;
struct Silu;

impl Function for Gelu {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
        let erf = erf(simd, simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)));
        simd.mul_add_e_f32s(half, erf, half)
    }
}

impl Function for GeluTanh {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        // (1 + tanh u) / 2 is the sigmoid of 2u, in which nothing cancels.
        const FACTOR: f32 = 2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
        let square = simd.mul_f32s(x, x);
        let factor = simd.mul_add_e_f32s(square, simd.splat_f32s(0.044715 * FACTOR), simd.splat_f32s(FACTOR));
        simd.mul_f32s(x, sigmoid(simd, simd.mul_f32s(x, factor)))
    }
}

impl Function for Silu {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        simd.mul_f32s(x, sigmoid(simd, x))
    }
}
