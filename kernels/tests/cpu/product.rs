//! Products of rows with a matrix.

use burn_deepspeed_kernels::cpu::product::{Matrix, Product, product};

use crate::oracle::{assert_near, noise};

/// Both ways that a matrix lies, behind the first feature of a wider output, rows of the matrix padded.
fn check(rows: usize, inputs: usize, outputs: usize) {
    let (input, bias) = (noise(rows * inputs, 1), noise(outputs, 2));
    for (input_stride, output_stride) in [(outputs + 3, 1), (1, inputs + 5)] {
        let weights = noise((inputs + 5) * (outputs + 3), 3);
        let elements = &weights[..(inputs - 1) * input_stride + (outputs - 1) * output_stride + 1];
        let matrix = Matrix { elements, inputs, outputs, input_stride, output_stride };
        for bias in [None, Some(&bias[..])] {
            let (first, width) = (2, outputs + 3);
            let mut output = vec![7.0; rows * width];
            product(&Product { input: &input, sequence: rows, matrix, bias, width, first }, &mut output);
            let expected: Vec<f64> = (0..rows * width)
                .map(|at| {
                    let (row, column) = (at / width, at % width);
                    if column < first || column >= first + outputs {
                        return 7.0;
                    }
                    let at = |k: usize| weights[k * input_stride + (column - first) * output_stride];
                    let terms = (0..inputs).map(|k| f64::from(input[row * inputs + k]) * f64::from(at(k)));
                    terms.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias[column - first]))
                })
                .collect();
            let what = format!("{rows} rows, {inputs} to {outputs}, strides {input_stride} and {output_stride}");
            assert_near(&what, &output, &expected, 1e-5);
        }
    }
}

#[test]
fn every_number_of_rows_agrees_with_plain_loops() {
    for rows in [1, 2, 3, 5, 8, 9, 16, 17, 24, 25, 40, 128, 129] {
        check(rows, 97, 131);
    }
}

#[test]
fn every_size_agrees_with_plain_loops() {
    for inputs in [1, 2, 7, 8, 9, 16, 31, 300] {
        for outputs in [1, 3, 4, 8, 17, 127, 1100] {
            check(3, inputs, outputs);
        }
    }
}

#[test]
fn a_matrix_with_gaps_both_ways_is_multiplied_too() {
    let (input, weights) = ([1.0, 2.0], [1.0, 0.0, 10.0, 0.0, 0.0, 100.0, 0.0, 1000.0]);
    let matrix = Matrix { elements: &weights, inputs: 2, outputs: 2, input_stride: 5, output_stride: 2 };
    let mut output = [0.0; 2];
    product(&Product { input: &input, sequence: 1, matrix, bias: None, width: 2, first: 0 }, &mut output);
    assert_eq!(output, [1.0 + 200.0, 10.0 + 2000.0]);
}

#[test]
fn a_sequence_alone_is_bitwise_the_sequence_in_a_batch_on_any_number_of_threads() {
    let (inputs, outputs, batch) = (200, 300, 7);
    let weights = noise(inputs * outputs, 2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    for sequence in [1, 5, 8, 9, 17, 25, 64, 128, 129] {
        let input = noise(batch * sequence * inputs, 1);
        for (input_stride, output_stride) in [(outputs, 1), (1, inputs)] {
            let matrix = Matrix { elements: &weights, inputs, outputs, input_stride, output_stride };
            let of = |input: &[f32]| {
                let mut output = vec![0.0; input.len() / inputs * outputs];
                product(&Product { input, sequence, matrix, bias: None, width: outputs, first: 0 }, &mut output);
                output.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            };
            let all = of(&input);
            assert_eq!(pool.install(|| of(&input)), all);
            let one = of(&input[3 * sequence * inputs..][..sequence * inputs]);
            assert_eq!(one, all[3 * sequence * outputs..][..sequence * outputs], "{sequence} rows");
        }
    }
}

#[test]
#[should_panic(expected = "product: 5 features from 2 on do not fit into 6")]
fn an_output_that_is_too_narrow_is_named() {
    let matrix = Matrix { elements: &[0.0; 15], inputs: 3, outputs: 5, input_stride: 5, output_stride: 1 };
    product(&Product { input: &[0.0; 3], sequence: 1, matrix, bias: None, width: 6, first: 2 }, &mut [0.0; 6]);
}

#[test]
#[should_panic(expected = "product: `matrix` has 14 elements, its strides need 15")]
fn a_matrix_that_is_too_short_is_named() {
    let matrix = Matrix { elements: &[0.0; 14], inputs: 3, outputs: 5, input_stride: 5, output_stride: 1 };
    product(&Product { input: &[0.0; 3], sequence: 1, matrix, bias: None, width: 5, first: 0 }, &mut [0.0; 5]);
}
