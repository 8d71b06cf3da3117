//! Products of rows with a matrix of blocks.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_kernels::cpu::product::{BlockMatrix, InputElements, Product, product};

use crate::oracle::{assert_near, blocks, noise};

/// `rows` rows from the second feature of a wider output on.
fn check(format: BlockFormat, rows: usize, [outputs, inputs]: [usize; 2]) {
    let (input, bias) = (noise(rows * inputs, 1), noise(outputs, 2));
    let blocks = blocks(format, [outputs, inputs]);
    let mut weights = vec![0.0; outputs * inputs];
    format.dequantise(&blocks, &mut weights);
    let (first, width) = (1, outputs + 2);
    let matrix = BlockMatrix { format, blocks: &blocks, inputs, outputs };
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
    product(&problem, &mut output);
    // Each row alone in its sequence has the same bits on the path for a few rows.
    let mut alone = vec![7.0; rows * width];
    product(&Product { sequence: 1, ..problem }, &mut alone);
    for (row, whole) in input.chunks(inputs).zip(alone.chunks(width)) {
        let mut one = vec![7.0; width];
        product(&Product { input: row, sequence: 1, ..problem }, &mut one);
        assert_eq!(one, whole, "{format}: a row alone and among {rows}");
    }
    for (at, (output, alone)) in output.iter().zip(alone).enumerate() {
        let (row, column) = (at / width, at % width);
        if column < first || column >= first + outputs {
            assert_eq!([*output, alone], [7.0; 2]);
            continue;
        }
        let weights = &weights[(column - first) * inputs..][..inputs];
        let terms = || input[row * inputs..].iter().zip(weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
        let expected = terms().sum::<f64>() + f64::from(bias[column - first]);
        // A rounded element is off by a 65,534th of the largest one, which is 1.
        let most = 1e-6 + weights.iter().map(|weight| f64::from(weight.abs())).sum::<f64>() / 65534.0;
        for value in [*output, alone] {
            let error = (f64::from(value) - expected).abs();
            assert!(error <= most, "{format}, {rows} rows, {inputs} to {outputs}: {value}, expected {expected}");
        }
    }
}

#[test]
fn every_format_agrees_with_plain_loops() {
    for format in BlockFormat::ALL {
        let each = format.elements();
        for rows in [1, 2, 3, 4, 5, 8, 9, 17, 70] {
            check(format, rows, [37, 2 * each.max(64)]);
        }
        check(format, 3, [1, each]);
        check(format, 9, [1, each]);
        check(format, 2, [131, if each == 256 { 1280 } else { 864 }]);
        check(format, 20, [197, if each == 256 { 768 } else { 544 }]);
    }
}

#[test]
fn a_row_that_is_not_finite_is_nan_and_its_neighbours_are_not() {
    let blocks = BlockFormat::Q8_0.quantise(&[1.0; 128]);
    let matrix = BlockMatrix { format: BlockFormat::Q8_0, blocks: &blocks, inputs: 64, outputs: 2 };
    let mut input = vec![1.0; 3 * 64];
    input[70] = f32::INFINITY;
    let mut output = [0.0; 6];
    product(
        &Product { input: &input, elements: InputElements::F32, sequence: 3, matrix, bias: None, width: 2, first: 0 },
        &mut output,
    );
    assert!(output[2..4].iter().all(|x| !x.is_finite()), "{output:?}");
    assert_near("the others", &[output[0], output[1], output[4], output[5]], &[64.0; 4], 1e-2);
}

#[test]
#[should_panic(expected = "rows of 40 elements are no whole number of blocks of Q4_0")]
fn a_part_of_a_block_is_refused() {
    let matrix = BlockMatrix { format: BlockFormat::Q4_0, blocks: &[0; 36], inputs: 40, outputs: 1 };
    product(
        &Product {
            input: &[0.0; 40],
            elements: InputElements::F32,
            sequence: 1,
            matrix,
            bias: None,
            width: 1,
            first: 0,
        },
        &mut [0.0],
    );
}
