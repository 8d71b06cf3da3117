//! LayerNorm and RMSNorm.

use burn_deepspeed_kernels::cpu::norm::{Norm, norm};

use crate::oracle::{assert_near, noise};

#[test]
fn every_size_and_kind_agrees_with_plain_loops() {
    for features in [1, 2, 15, 16, 17, 96, 1000] {
        for rows in [1, 3, 40] {
            // Far from zero, where a variance from squares would cancel.
            let input: Vec<f32> = noise(rows * features, 1).into_iter().map(|x| x + 3.0).collect();
            let (gamma, beta) = (noise(features, 2), noise(features, 3));
            for (rms, beta) in [(true, None), (false, None), (false, Some(&beta[..]))] {
                let mut output = vec![f32::NAN; input.len()];
                norm(&Norm { input: &input, residual: None, gamma: &gamma, beta, epsilon: 1e-5, rms }, &mut output);
                let expected: Vec<f64> = input.chunks(features).flat_map(|row| plain(row, &gamma, beta, rms)).collect();
                assert_near(&format!("{rows} rows of {features}, rms {rms}"), &output, &expected, 2e-5);

                let residual = Some(&input[..]);
                norm(&Norm { input: &input, residual, gamma: &gamma, beta, epsilon: 1e-5, rms }, &mut output);
                let twice: Vec<f32> = input.iter().map(|x| 2.0 * x).collect();
                let expected: Vec<f64> = twice.chunks(features).flat_map(|row| plain(row, &gamma, beta, rms)).collect();
                assert_near(&format!("{rows} rows of {features}, rms {rms}, twice"), &output, &expected, 2e-5);
            }
        }
    }
}

fn plain(row: &[f32], gamma: &[f32], beta: Option<&[f32]>, rms: bool) -> Vec<f64> {
    let count = row.len() as f64;
    let mean = if rms { 0.0 } else { row.iter().map(|x| f64::from(*x)).sum::<f64>() / count };
    let centred: Vec<f64> = row.iter().map(|x| f64::from(*x) - mean).collect();
    let variance = centred.iter().map(|x| x * x).sum::<f64>() / count;
    let scaled = centred.iter().zip(gamma).map(|(x, gamma)| x / (variance + 1e-5).sqrt() * f64::from(*gamma));
    scaled.enumerate().map(|(at, x)| x + beta.map_or(0.0, |beta| f64::from(beta[at]))).collect()
}

#[test]
#[should_panic(expected = "norm: `input` has 7 elements, rows have 3")]
fn an_input_that_ends_within_a_row_is_named() {
    norm(
        &Norm { input: &[0.0; 7], residual: None, gamma: &[1.0; 3], beta: None, epsilon: 0.0, rms: true },
        &mut [0.0; 7],
    );
}

#[test]
#[should_panic(expected = "norm: `residual` has 3 elements, expected 6")]
fn a_residual_that_is_too_short_is_named() {
    let residual = Some(&[0.0; 3][..]);
    norm(&Norm { input: &[0.0; 6], residual, gamma: &[1.0; 3], beta: None, epsilon: 0.0, rms: true }, &mut [0.0; 6]);
}
