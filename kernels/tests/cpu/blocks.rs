//! Products of rows with a matrix of blocks.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::data_type::InputBits;
use burn_deepspeed_kernels::cpu::product::{
    BlockMatrix, InputElements, Product, has_rounded, product, rounded_product,
};

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

/// Elements as they are rounded to 8 bits.
fn in_8_bits(input: &[f32]) -> Vec<f64> {
    let mut values = Vec::new();
    for chunk in input.chunks(32) {
        let scale = chunk.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 127.0;
        values.extend(chunk.iter().map(|x| f64::from((x / scale).round_ties_even()) * f64::from(scale)));
    }
    values
}

/// Rows that are rounded to 8 bits, from the second feature of a wider output on.
fn check_8_bits(format: BlockFormat, rows: usize, [outputs, inputs]: [usize; 2]) {
    let (input, bias) = (noise(rows * inputs, 1), noise(outputs, 2));
    let blocks = blocks(format, [outputs, inputs]);
    let mut weights = vec![0.0; outputs * inputs];
    format.dequantise(&blocks, &mut weights);
    let matrix = BlockMatrix { format, blocks: &blocks, inputs, outputs };
    let (first, width, elements) = (1, outputs + 2, InputElements::F32);
    let mut output = vec![7.0; rows * width];
    let bias = Some(&bias[..]);
    let problem = Product { input: &input, elements, sequence: rows, matrix, bias, width, first };
    rounded_product(&problem, InputBits::Eight, &mut output);
    let whole = in_8_bits(&input);
    let expected = |row: usize, output: usize| {
        let weights = &weights[output * inputs..][..inputs];
        let terms = || whole[row * inputs..].iter().zip(weights).map(|(x, weight)| x * f64::from(*weight));
        (terms().sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias[output])), terms().map(f64::abs).sum::<f64>())
    };
    for (row, found) in output.chunks(width).enumerate() {
        assert_eq!([found[0], found[width - 1]], [7.0; 2]);
        for (at, found) in found[first..][..outputs].iter().enumerate() {
            let (expected, size) = expected(row, at);
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 2e-6 * (1.0 + size), "{format}, {rows} rows, {outputs} outputs: {found} for {expected}");
        }
    }
    // Rows have the same bits in a batch of sequences.
    let mut twice = vec![7.0; 2 * rows * width];
    let both = [&input[..], &input].concat();
    rounded_product(&Product { input: &both, ..problem }, InputBits::Eight, &mut twice);
    assert!(twice.chunks(output.len()).all(|own| own == output), "{format}, {rows} rows");
}

#[test]
fn inputs_of_8_bits_have_the_products_of_their_integers() {
    if !has_rounded() {
        return;
    }
    for format in BlockFormat::ALL.into_iter().filter(|format| format.elements() > 1) {
        let each = format.elements();
        for rows in [1, 2, 3, 4, 5, 7, 9, 16, 17, 33, 70] {
            check_8_bits(format, rows, [37, 2 * each.max(64)]);
        }
        check_8_bits(format, 3, [1, each]);
        check_8_bits(format, 20, [131, if each == 256 { 768 } else { 544 }]);
    }
}

#[test]
fn fourteen_bits_are_the_sixteen_of_the_product_and_floats_are_not_rounded() {
    if !has_rounded() {
        return;
    }
    let weights = noise(33 * 64, 2);
    for (format, bits, rows) in [
        (BlockFormat::Q8_0, InputBits::Fourteen, 4),
        (BlockFormat::F16, InputBits::Eight, 20),
        (BlockFormat::F32, InputBits::Eight, 20),
    ] {
        let input = noise(rows * 64, 1);
        let blocks = format.quantise(&weights);
        let matrix = BlockMatrix { format, blocks: &blocks, inputs: 64, outputs: 33 };
        let (elements, mut outputs) = (InputElements::F32, [vec![7.0; 33 * rows], vec![7.0; 33 * rows]]);
        let problem = Product { input: &input, elements, sequence: rows, matrix, bias: None, width: 33, first: 0 };
        product(&problem, &mut outputs[0]);
        rounded_product(&problem, bits, &mut outputs[1]);
        assert_eq!(outputs[0], outputs[1], "{format}");
    }
}

#[test]
fn prompts_are_rounded_only_where_the_caller_allows_it() {
    if !has_rounded() {
        return;
    }
    let (rows, inputs, outputs) = (20, 64, 33);
    let (input, blocks) = (noise(rows * inputs, 1), BlockFormat::Q4_0.quantise(&noise(outputs * inputs, 2)));
    let matrix = BlockMatrix { format: BlockFormat::Q4_0, blocks: &blocks, inputs, outputs };
    let mut weights = vec![0.0; outputs * inputs];
    BlockFormat::Q4_0.dequantise(&blocks, &mut weights);
    let (elements, width) = (InputElements::F32, outputs);
    let problem = Product { input: &input, elements, sequence: rows, matrix, bias: None, width, first: 0 };
    let exact = |row: usize, output: usize| {
        let pairs = input[row * inputs..][..inputs].iter().zip(&weights[output * inputs..][..inputs]);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let error = |found: &[f32]| {
        let errors = found.iter().enumerate().map(|(at, x)| (f64::from(*x) - exact(at / outputs, at % outputs)).abs());
        errors.fold(0.0, f64::max)
    };
    let mut found = vec![7.0; rows * outputs];
    product(&problem, &mut found);
    assert!(error(&found) < 5e-6, "{:e}", error(&found));
    for (bits, limit) in [(InputBits::Fourteen, 2e-4), (InputBits::Eight, 5e-2)] {
        rounded_product(&problem, bits, &mut found);
        assert!(error(&found) < limit, "{bits:?}: {:e}", error(&found));
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
