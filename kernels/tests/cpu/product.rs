//! Products of rows with a matrix.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::data_type::InputBits;
use burn_deepspeed_kernels::cpu::product::{
    AnyMatrix, BlockMatrix, InputElements, Int8Matrix, Matrix, Product, has_rounded, product, rounded_product,
};

use half::{bf16, f16};

use crate::oracle::{assert_near, noise};

/// Both orientations of a matrix with padded rows, from the second feature of a wider output on.
fn check(rows: usize, inputs: usize, outputs: usize) {
    let (input, bias) = (noise(rows * inputs, 1), noise(outputs, 2));
    for (input_stride, output_stride) in [(outputs + 3, 1), (1, inputs + 5)] {
        let weights = noise((inputs + 5) * (outputs + 3), 3);
        let elements = &weights[..(inputs - 1) * input_stride + (outputs - 1) * output_stride + 1];
        let matrix = Matrix { elements, inputs, outputs, input_stride, output_stride };
        check_halves(&input, matrix, f16::from_f32, f16::to_f32);
        check_halves(&input, matrix, bf16::from_f32, bf16::to_f32);
        for bias in [None, Some(&bias[..])] {
            let (first, width) = (2, outputs + 3);
            let mut output = vec![7.0; rows * width];
            product(
                &Product { input: &input, elements: InputElements::F32, sequence: rows, matrix, bias, width, first },
                &mut output,
            );
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

/// A matrix of 16 bits has the products of the same numbers in f32, except for the order of the sums.
fn check_halves<E: Copy>(input: &[f32], matrix: Matrix<'_>, round: fn(f32) -> E, widen: fn(E) -> f32)
where
    for<'a> Matrix<'a, E>: AnyMatrix,
{
    let Matrix { elements, inputs, outputs, input_stride, output_stride } = matrix;
    let halves: Vec<E> = elements.iter().map(|x| round(*x)).collect();
    let floats: Vec<f32> = halves.iter().map(|x| widen(*x)).collect();
    let rows = input.len() / inputs;
    let (mut found, mut expected) = (vec![7.0; rows * outputs], vec![7.0; rows * outputs]);
    let known = InputElements::F32;
    let matrix = Matrix { elements: &halves[..], inputs, outputs, input_stride, output_stride };
    let problem = Product { input, elements: known, sequence: rows, matrix, bias: None, width: outputs, first: 0 };
    product(&problem, &mut found);
    let matrix = Matrix { elements: &floats[..], inputs, outputs, input_stride, output_stride };
    let problem = Product { input, elements: known, sequence: rows, matrix, bias: None, width: outputs, first: 0 };
    product(&problem, &mut expected);
    let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
    let what = format!("{rows} rows, {inputs} to {outputs}, strides {input_stride} and {output_stride}");
    assert_near(&what, &found, &expected, 1e-5);
}

/// An int8 matrix with blocks that nothing divides, from the second feature of a wider output on; rows exact, and rounded.
fn check_int8(rows: usize, inputs: usize, outputs: usize, output_block: usize, input_block: usize) {
    let (input, bias) = (noise(rows * inputs, 1), noise(outputs, 2));
    let elements: Vec<i8> = noise(inputs * outputs, 3).into_iter().map(|x| (x * 127.0).round() as i8).collect();
    let blocks = inputs.div_ceil(input_block);
    let scales = noise(blocks * outputs.div_ceil(output_block), 4);
    let matrix = Int8Matrix { elements: &elements, inputs, outputs, scales: &scales, output_block, input_block };
    let (first, width) = (1, outputs + 2);
    for rounded in [None, Some(InputBits::Fourteen), Some(InputBits::Eight)] {
        if rounded.is_some() && !has_rounded() {
            return;
        }
        let mut input = input.clone();
        let mut output = vec![7.0; rows * width];
        let problem = Product {
            input: &input,
            elements: InputElements::F32,
            sequence: rows,
            matrix,
            bias: Some(&bias),
            width,
            first,
        };
        match rounded {
            Some(bits) => rounded_product(&problem, bits, &mut output),
            None => product(&problem, &mut output),
        }
        if let Some(bits) = rounded {
            for row in input.chunks_mut(inputs) {
                let step = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / bits.largest();
                row.iter_mut().for_each(|x| *x = if step == 0.0 { 0.0 } else { (*x / step).round_ties_even() * step });
            }
        }
        for (row, output) in output.chunks(width).enumerate() {
            let expected: Vec<f64> = (0..outputs)
                .map(|o| {
                    let weight = |i: usize| {
                        let scale = scales[o / output_block * blocks + i / input_block];
                        f64::from(elements[o * inputs + i]) * f64::from(scale)
                    };
                    let terms = (0..inputs).map(|i| f64::from(input[row * inputs + i]) * weight(i));
                    terms.sum::<f64>() + f64::from(bias[o])
                })
                .collect();
            assert_eq!([output[0], output[width - 1]], [7.0; 2]);
            let what = format!(
                "{rows} rows, {inputs} to {outputs}, blocks of {output_block} and {input_block}, row {row}, {rounded:?}"
            );
            // Elements are up to 127 in size, and so are their sums' roundings.
            assert_near(&what, &output[1..=outputs], &expected, 2e-3);
        }
    }
}

#[test]
fn the_largest_integers_do_not_overflow() {
    if !has_rounded() {
        return;
    }
    let inputs = 40_000;
    for (element, rows) in [(-128, 1), (-128, 3), (127, 1)] {
        let (elements, input) = (vec![element; inputs], vec![1.0; rows * inputs]);
        let matrix = Int8Matrix {
            elements: &elements,
            inputs,
            outputs: 1,
            scales: &[1.0],
            output_block: 1,
            input_block: inputs,
        };
        let mut output = vec![0.0; rows];
        let problem = Product {
            input: &input,
            elements: InputElements::F32,
            sequence: rows,
            matrix,
            bias: None,
            width: 1,
            first: 0,
        };
        rounded_product(&problem, InputBits::Fourteen, &mut output);
        let expected = f64::from(element) * inputs as f64;
        assert!(output.iter().all(|x| (f64::from(*x) / expected - 1.0).abs() < 1e-6), "{output:?}, {expected}");
    }
}

#[test]
fn a_rounded_row_that_is_not_finite_is_nan_and_its_neighbours_are_not() {
    if !has_rounded() {
        return;
    }
    let mut input = vec![1.0; 3 * 20];
    input[25] = f32::INFINITY;
    let elements = [1; 40];
    let matrix =
        Int8Matrix { elements: &elements, inputs: 20, outputs: 2, scales: &[0.5; 2], output_block: 1, input_block: 20 };
    let mut output = [0.0; 6];
    let problem =
        Product { input: &input, elements: InputElements::F32, sequence: 3, matrix, bias: None, width: 2, first: 0 };
    rounded_product(&problem, InputBits::Fourteen, &mut output);
    assert!(output[2..4].iter().all(|x| x.is_nan()));
    assert_near("the others", &[output[0], output[1], output[4], output[5]], &[10.0; 4], 1e-5);
}

#[test]
fn every_int8_matrix_agrees_with_plain_loops() {
    check_int8(1030, 17, 19, 1, 17);
    for rows in [1, 2, 3, 4, 7, 8, 9, 17, 40, 70] {
        check_int8(rows, 97, 131, 1, 97);
        check_int8(rows, 97, 131, 5, 20);
    }
    for inputs in [1, 7, 15, 16, 31, 32, 33, 300] {
        for (outputs, output_block, input_block) in [(1, 1, 300), (3, 2, 1), (17, 17, 16), (130, 1, 64), (1100, 4, 33)]
        {
            check_int8(3, inputs, outputs, output_block, input_block);
            check_int8(10, inputs, outputs, output_block, input_block);
        }
    }
}

#[test]
fn every_number_of_rows_agrees_with_plain_loops() {
    for rows in [1, 2, 3, 5, 8, 9, 16, 17, 24, 25, 40, 64, 100, 128, 129] {
        check(rows, 97, 131);
    }
    // More than one block of inputs, task of outputs, and part of rows.
    check(20, 300, 401);
    check(1050, 131, 29);
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
    product(
        &Product { input: &input, elements: InputElements::F32, sequence: 1, matrix, bias: None, width: 2, first: 0 },
        &mut output,
    );
    assert_eq!(output, [1.0 + 200.0, 10.0 + 2000.0]);
}

/// A sequence of several, alone on few threads and with the others on many, is bitwise the same.
fn check_invariance<W: AnyMatrix>(matrix: W, inputs: usize, outputs: usize, product: fn(&Product<'_, W>, &mut [f32])) {
    let batch = 7;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    for sequence in [1, 5, 8, 9, 17, 25, 64, 128, 129] {
        let input = noise(batch * sequence * inputs, 1);
        let of = |input: &[f32]| {
            let mut output = vec![0.0; input.len() / inputs * outputs];
            product(
                &Product {
                    input,
                    elements: InputElements::F32,
                    sequence,
                    matrix,
                    bias: None,
                    width: outputs,
                    first: 0,
                },
                &mut output,
            );
            output.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        };
        let all = of(&input);
        assert_eq!(pool.install(|| of(&input)), all);
        let one = of(&input[3 * sequence * inputs..][..sequence * inputs]);
        assert_eq!(one, all[3 * sequence * outputs..][..sequence * outputs], "{sequence} rows");
    }
}

#[test]
fn a_sequence_alone_is_bitwise_the_sequence_in_a_batch_on_any_number_of_threads() {
    let (inputs, outputs) = (200, 300);
    let elements = &noise(inputs * outputs, 2)[..];
    for (input_stride, output_stride) in [(outputs, 1), (1, inputs)] {
        check_invariance(Matrix { elements, inputs, outputs, input_stride, output_stride }, inputs, outputs, product);
    }
    let halves = &elements.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>()[..];
    for (input_stride, output_stride) in [(outputs, 1), (1, inputs)] {
        let matrix = Matrix { elements: halves, inputs, outputs, input_stride, output_stride };
        check_invariance(matrix, inputs, outputs, product);
    }
    let elements: Vec<i8> = elements.iter().map(|x| (x * 127.0) as i8).collect();
    let scales = &noise(outputs * 4, 3)[..];
    let matrix = Int8Matrix { elements: &elements, inputs, outputs, scales, output_block: 1, input_block: 60 };
    check_invariance(matrix, inputs, outputs, product);
    let blocks = BlockFormat::BF16.quantise(&noise(inputs * outputs, 4));
    let bf16 = BlockMatrix { format: BlockFormat::BF16, blocks: &blocks, inputs, outputs };
    check_invariance(bf16, inputs, outputs, product);
    if has_rounded() {
        for rounded in [
            |problem: &Product<'_, Int8Matrix<'_>>, output: &mut [f32]| {
                rounded_product(problem, InputBits::Eight, output)
            },
            |problem: &Product<'_, Int8Matrix<'_>>, output: &mut [f32]| {
                rounded_product(problem, InputBits::Fourteen, output)
            },
        ] {
            check_invariance(matrix, inputs, outputs, rounded);
        }
    }
}

/// The product of one row without a bias, with the features of `width` from `first` on.
fn one_row<W>(input: &[f32], matrix: W, width: usize, first: usize) -> Product<'_, W> {
    Product { input, elements: InputElements::F32, sequence: 1, matrix, bias: None, width, first }
}

#[test]
#[should_panic(expected = "product: 3 scales for 4 blocks")]
fn missing_scales_are_named() {
    let matrix =
        Int8Matrix { elements: &[0; 6], inputs: 3, outputs: 2, scales: &[1.0; 3], output_block: 1, input_block: 2 };
    product(&one_row(&[0.0; 3], matrix, 2, 0), &mut [0.0; 2]);
}

#[test]
#[should_panic(expected = "product: 5 features from 2 on do not fit into 6")]
fn an_output_that_is_too_narrow_is_named() {
    let matrix = Matrix { elements: &[0.0; 15], inputs: 3, outputs: 5, input_stride: 5, output_stride: 1 };
    product(&one_row(&[0.0; 3], matrix, 6, 2), &mut [0.0; 6]);
}

#[test]
#[should_panic(expected = "product: `matrix` has 14 elements, its strides need 15")]
fn a_matrix_that_is_too_short_is_named() {
    let matrix = Matrix { elements: &[0.0; 14], inputs: 3, outputs: 5, input_stride: 5, output_stride: 1 };
    product(&one_row(&[0.0; 3], matrix, 5, 0), &mut [0.0; 5]);
}

/// Such rows compete for the places of a cache, so a task has fewer of the input's rows: that changes no bit.
#[test]
fn weights_whose_rows_are_pages_apart_have_the_same_products() {
    let (inputs, outputs) = (2048, 50);
    let weights = noise(inputs * outputs, 3);
    let padded: Vec<f32> = weights.chunks(inputs).flat_map(|row| row.iter().copied().chain([f32::NAN; 5])).collect();
    for rows in [1, 20, 64, 70, 150, 600] {
        let input = noise(rows * inputs, 1);
        let multiplied = |elements: &[f32], output_stride: usize| {
            let matrix = Matrix { elements, inputs, outputs, input_stride: 1, output_stride };
            let mut output = vec![0.0; rows * outputs];
            let elements = InputElements::F32;
            product(
                &Product { input: &input, elements, sequence: rows, matrix, bias: None, width: outputs, first: 0 },
                &mut output,
            );
            output
        };
        let found = multiplied(&weights, inputs);
        assert!(found == multiplied(&padded, inputs + 5), "{rows} rows");
        for (row, output) in [0, rows - 1].map(|row| (row, &found[row * outputs..][..outputs])) {
            let term = |o: usize, i: usize| f64::from(input[row * inputs + i]) * f64::from(weights[o * inputs + i]);
            let expected: Vec<f64> = (0..outputs).map(|o| (0..inputs).map(|i| term(o, i)).sum()).collect();
            // A chain of 2048 sums in f32.
            assert_near(&format!("row {row} of {rows}"), output, &expected, 1e-4);
        }
    }
}
