//! GELU.

use burn_deepspeed_kernels::cpu::gelu::gelu;

use crate::oracle::noise;

/// `x · (1 + erf(x / √2)) / 2`, with erf as the integral of its derivative by Simpson's rule.
fn plain(x: f64) -> f64 {
    const STEPS: usize = 4000;
    let end = x / std::f64::consts::SQRT_2;
    let width = end / STEPS as f64;
    let weight = |step: usize| match step {
        0 | STEPS => 1.0,
        step => [2.0, 4.0][step % 2],
    };
    let sum: f64 = (0..=STEPS).map(|step| weight(step) * (-(step as f64 * width).powi(2)).exp()).sum();
    0.5 * x * (1.0 + sum * width / 3.0 * std::f64::consts::FRAC_2_SQRT_PI)
}

#[test]
fn every_length_agrees_with_the_definition() {
    for len in [0, 1, 7, 8, 17, 1000] {
        let input: Vec<f32> = noise(len, 4).into_iter().map(|x| 7.0 * x).collect();
        let mut output = input.clone();
        gelu(&mut output);
        for (x, y) in input.iter().zip(output) {
            let expected = plain(f64::from(*x));
            assert!((f64::from(y) - expected).abs() < 5e-7 * expected.abs().max(1.0), "{x}: {y}, expected {expected}");
        }
    }
}

#[test]
fn the_ends_are_exact() {
    let mut values = [0.0, -0.0, 1e30, -1e30, f32::INFINITY, f32::NAN];
    gelu(&mut values);
    assert_eq!(values[..5], [0.0, 0.0, 1e30, 0.0, f32::INFINITY]);
    assert!(values[5].is_nan());
}
