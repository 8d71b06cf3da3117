//! The gate on the context.

use burn_deepspeed_kernels::cpu::gate::gate;

use crate::oracle::{assert_near, noise};
use crate::refused::refuses;

#[test]
fn every_length_agrees_with_the_definition() {
    for len in [0, 1, 7, 8, 17, 1000, 40_000] {
        let context = noise(len, 4);
        let gates: Vec<f32> = noise(len, 5).into_iter().map(|x| 9.0 * x).collect();
        let mut output = context.clone();
        gate(&mut output, &gates);
        let gated = |(context, gate): (&f32, &f32)| f64::from(*context) / (1.0 + (-f64::from(*gate)).exp());
        let expected: Vec<f64> = context.iter().zip(&gates).map(gated).collect();
        assert_near("gate", &output, &expected, 5e-7);
    }
}

#[test]
fn the_ends_are_exact() {
    let mut values = [2.0; 7];
    gate(&mut values, &[0.0, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0]);
    assert_eq!(values[..5], [1.0, 2.0, 0.0, 2.0, 0.0]);
    assert!(values[5].is_nan() && values[6] == 1.0);
}

#[test]
fn a_gate_of_another_length_is_refused() {
    refuses("context_gate: `gate` has 3 elements, expected 4", || gate(&mut [0.0; 4], &[0.0; 3]));
}
