//! The activations of MLPs.

use burn_deepspeed_core::activation::Activation::{self, Gelu, GeluTanh, Silu};
use burn_deepspeed_kernels::cpu::activation::{activate, gated};

use crate::oracle::noise;
use crate::refused::refuses;

fn plain(activation: Activation, x: f64) -> f64 {
    match activation {
        Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        GeluTanh => {
            let factor = (2.0 / std::f64::consts::PI).sqrt();
            0.5 * x * (1.0 + (factor * (x + 0.044715 * x.powi(3))).tanh())
        }
        Silu => x / (1.0 + (-x).exp()),
    }
}

/// The integral of its derivative by Simpson's rule.
fn erf(end: f64) -> f64 {
    const STEPS: usize = 1000;
    let width = end / STEPS as f64;
    let weight = |step: usize| match step {
        0 | STEPS => 1.0,
        step => [2.0, 4.0][step % 2],
    };
    let sum: f64 = (0..=STEPS).map(|step| weight(step) * (-(step as f64 * width).powi(2)).exp()).sum();
    sum * width / 3.0 * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn every_length_agrees_with_the_definition() {
    for activation in [Gelu, GeluTanh, Silu] {
        for len in [0, 1, 7, 8, 17, 1000, 20_000] {
            let input: Vec<f32> = noise(len, 4).into_iter().map(|x| 7.0 * x).collect();
            let up = noise(len, 5);
            let (mut alone, mut product) = (input.clone(), input.clone());
            activate(&mut alone, activation);
            gated(&mut product, &up, activation);
            for (((x, up), y), product) in input.iter().zip(&up).zip(alone).zip(product) {
                let expected = plain(activation, f64::from(*x));
                let most = 5e-7 * expected.abs().max(1.0);
                assert!((f64::from(y) - expected).abs() < most, "{activation:?} {x}: {y}, expected {expected}");
                assert_eq!(product, y * up);
            }
        }
    }
}

#[test]
fn the_ends_are_exact() {
    for activation in [Gelu, GeluTanh, Silu] {
        let mut values = [0.0, -0.0, 1e30, -1e30, f32::INFINITY, f32::NAN];
        activate(&mut values, activation);
        assert_eq!(values[..5], [0.0, 0.0, 1e30, 0.0, f32::INFINITY], "{activation:?}");
        assert!(values[5].is_nan());
    }
}

#[test]
fn another_projection_of_another_length_is_refused() {
    refuses("gated_activation: `up` has 3 elements, expected 4", || gated(&mut [0.0; 4], &[0.0; 3], Silu));
}
