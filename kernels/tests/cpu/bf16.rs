//! Products of prompts with a matrix of bf16 or f16.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_kernels::cpu::product::{AnyMatrix, BlockMatrix, InputElements, Matrix, Product, product};

use crate::oracle::noise;
use crate::parts::check;

/// Rows of a sequence that tiles multiply with a matrix of f32 on every processor.
const IN_F32: usize = 9;

fn problem<'a>(input: &'a [f32], blocks: &'a [u8], inputs: usize, outputs: usize) -> Product<'a, BlockMatrix<'a>> {
    let matrix = BlockMatrix { format: BlockFormat::BF16, blocks, inputs, outputs };
    Product {
        input,
        elements: InputElements::F32,
        sequence: input.len() / inputs,
        matrix,
        bias: None,
        width: outputs,
        first: 0,
    }
}

/// The output, as bits.
fn bits(problem: &Product<'_, BlockMatrix<'_>>) -> Vec<u32> {
    let mut output = vec![7.0; problem.input.len() / problem.matrix.inputs * problem.width];
    product(problem, &mut output);
    output.into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_size_agrees_with_f64() {
    for (rows, inputs, outputs) in
        [(16, 1, 1), (17, 31, 15), (33, 32, 17), (70, 33, 33), (33, 200, 130), (17, 4100, 130), (1030, 200, 33)]
    {
        for format in [BlockFormat::BF16, BlockFormat::F16] {
            let blocks = format.quantise(&noise(inputs * outputs, 3));
            let mut weights = vec![0.0; inputs * outputs];
            format.dequantise(&blocks, &mut weights);
            let matrix = BlockMatrix { format, blocks: &blocks, inputs, outputs };
            check(&format.to_string(), matrix, &weights, inputs, rows);
        }
    }
}

#[test]
fn rows_and_outputs_that_are_not_finite_or_tiny_have_the_bits_of_f32() {
    let (rows, inputs, outputs) = (37, 70, 40);
    let mut weights = noise(inputs * outputs, 2);
    weights[5 * inputs + 69] = f32::INFINITY;
    weights[6 * inputs] = f32::NAN;
    weights[39 * inputs..].iter_mut().for_each(|weight| *weight *= 1e-30);
    let mut input = noise(rows * inputs, 1);
    let plain = input.clone();
    input[3] = f32::NEG_INFINITY;
    input[4 * inputs + 69] = f32::NAN;
    input[5 * inputs..6 * inputs].iter_mut().for_each(|x| *x *= 1e-36);
    input[36 * inputs + 64] = f32::INFINITY;
    for format in [BlockFormat::BF16, BlockFormat::F16] {
        let blocks = format.quantise(&weights);
        let own = problem(&input, &blocks, inputs, outputs);
        let own = Product { matrix: BlockMatrix { format, ..own.matrix }, ..own };
        let mut floats = vec![0.0; inputs * outputs];
        format.dequantise(&blocks, &mut floats);
        let matrix = Matrix { elements: &floats[..], inputs, outputs, input_stride: 1, output_stride: inputs };
        let Product { elements, bias, width, first, .. } = own;
        let mut in_f32 = vec![7.0; rows * outputs];
        product(&Product { input: &input, elements, sequence: IN_F32, matrix, bias, width, first }, &mut in_f32);
        let found = bits(&own);
        let others = bits(&Product { input: &plain, ..own });
        for at in 0..rows * outputs {
            let (row, output) = (at / outputs, at % outputs);
            if [0, 4, 5, 36].contains(&row) || [5, 6, 39].contains(&output) {
                assert_eq!(found[at], in_f32[at].to_bits(), "{format}, row {row}, output {output}");
            } else {
                assert_eq!(found[at], others[at], "{format}, row {row}, output {output}, next to others");
            }
        }
    }
}

#[test]
fn all_bits_of_a_weight_count() {
    // The lower bits of an f16 are in the second part, and the smallest are subnormal.
    let (inputs, rows) = (64, 16);
    let input: Vec<f32> = (0..rows * inputs).map(|at| if at % 2 == 0 { 1.0 } else { -1.0 }).collect();
    for (one, other, factor) in
        [(1.0 + 1.0 / 1024.0, 1.0, 1024.0), (2f32.powi(-24) * 1023.0, 2f32.powi(-14), -16_777_216.0)]
    {
        let weights: Vec<f32> = (0..inputs).map(|at| if at % 2 == 0 { one } else { other }).collect();
        let blocks = BlockFormat::F16.quantise(&weights);
        let own = problem(&input, &blocks, inputs, 1);
        let own = Product { matrix: BlockMatrix { format: BlockFormat::F16, ..own.matrix }, ..own };
        assert_eq!(bits(&own), [(32.0f32 / factor).to_bits(); 16]);
    }
}

#[test]
fn all_bits_of_an_element_count() {
    // The lower bits of an f32 are in the third part, and the weights have opposite signs.
    let (inputs, rows) = (64, 16);
    let input: Vec<f32> = (0..rows * inputs)
        .map(|at| 1.0 + if at % 2 == 0 { f32::EPSILON * (at / inputs) as f32 } else { 0.0 })
        .collect();
    let weights: Vec<f32> = (0..inputs).map(|at| if at % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let blocks = BlockFormat::BF16.quantise(&weights);
    let found = bits(&problem(&input, &blocks, inputs, 1));
    for (row, found) in found.into_iter().enumerate() {
        let expected = 32.0 * f32::EPSILON * row as f32;
        let error = (f32::from_bits(found) - expected).abs();
        assert!(error <= f32::EPSILON, "row {row}: {}, expected {expected}", f32::from_bits(found));
    }
}

/// Rows of numbers with this many significant bits.
fn of_bits(rows: usize, inputs: usize, bits: u32) -> Vec<f32> {
    let mask = u32::MAX << (24 - bits);
    noise(rows * inputs, bits.into()).into_iter().map(|x| f32::from_bits(x.to_bits() & mask)).collect()
}

/// Checks that rows have the same bits next to one that has three parts in every step, so that theirs are multiplied, too.
fn check_next_to_three_parts(name: &str, input: &[f32], weights: &[f32], inputs: usize) {
    let blocks = BlockFormat::BF16.quantise(weights);
    let outputs = weights.len() / inputs;
    let alone = bits(&problem(input, &blocks, inputs, outputs));
    let next_to_another = [input, &noise(inputs, 9)].concat();
    let all = bits(&problem(&next_to_another, &blocks, inputs, outputs));
    let differ = alone.iter().zip(&all).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "{name}");
}

#[test]
fn parts_that_are_zero_change_no_bit() {
    let (rows, inputs, outputs) = (31, 1100, 40);
    let weights = noise(inputs * outputs, 3);
    let bf16 = of_bits(rows, inputs, 8);
    check_next_to_three_parts("bf16", &bf16, &weights, inputs);
    let sixteen = of_bits(rows, inputs, 16);
    check_next_to_three_parts("16 bits", &sixteen, &weights, inputs);
    let mut mixed = bf16.clone();
    mixed[7 * inputs..8 * inputs].copy_from_slice(&sixteen[..inputs]);
    mixed[20 * inputs + 600] = 1.0 + f32::EPSILON;
    check_next_to_three_parts("rows of each", &mixed, &weights, inputs);
    let mut small = bf16;
    for (at, x) in small.iter_mut().enumerate().filter(|(at, _)| at % 3 > 0) {
        // Zeros of either sign, and subnormal numbers of 7, 15 and 23 bits.
        *x = [-0.0, 0.0, f32::from_bits(0x8034_0000), f32::from_bits(0x0012_3400), f32::from_bits(0x8000_0001)][at % 5];
    }
    check_next_to_three_parts("zeros and subnormal numbers", &small, &weights, inputs);
}

#[test]
fn a_part_that_is_zero_changes_no_sign_of_a_zero() {
    // The second step cancels the sum but for a subnormal number, of which the instruction makes -0, and the products of the third are -0.
    let (rows, inputs) = (16, 96);
    let (mut row, mut weights) = (vec![0.0; inputs], vec![0.0; inputs]);
    let least = f32::MIN_POSITIVE;
    for (at, x, weight) in [
        (0, 8.0 * least, 0.984_375),
        (1, 1.0, 0.0),
        (32, -8.0 * least, 1.0),
        (33, 0.0, 1.0),
        (94, -least, 2f32.powi(-20)),
        (95, -least, 2f32.powi(-20)),
    ] {
        (row[at], weights[at]) = (x, weight);
    }
    check_next_to_three_parts("-0", &row.repeat(rows), &weights, inputs);
}

#[test]
fn a_statement_about_the_input_affects_the_rounding_of_sums_at_most() {
    let (rows, inputs, outputs) = (37, 1100, 40);
    let weights = noise(inputs * outputs, 3);
    let blocks = BlockFormat::BF16.quantise(&weights);
    let mut input = of_bits(rows, inputs, 8);
    input[0] = f32::NAN;
    input[4 * inputs] = -0.0;
    // Wrong for two rows.
    input[5 * inputs] = 0.1;
    input[36 * inputs + 1099] = 1.0 + f32::EPSILON;
    let any = problem(&input, &blocks, inputs, outputs);
    let stated = bits(&Product { elements: InputElements::Bf16, ..any });
    for (at, (found, expected)) in stated.iter().zip(bits(&any)).enumerate() {
        let (found, expected) = (f32::from_bits(*found), f32::from_bits(expected));
        let near = (found - expected).abs() <= 1e-6 * (inputs as f32).sqrt();
        assert!(near || found.is_nan() && expected.is_nan(), "{at}: {found}, expected {expected}");
    }
    // A row does not depend on the others, nor on how many there are.
    for row in [0, 1, 4, 5, 16, 31, 36] {
        let mut others = noise(rows * inputs, 5);
        let own = &input[row * inputs..][..inputs];
        others[18 * inputs..][..inputs].copy_from_slice(own);
        let next_to_others = bits(&Product { input: &others, elements: InputElements::Bf16, ..any });
        assert_eq!(stated[row * outputs..][..outputs], next_to_others[18 * outputs..][..outputs], "row {row}");
        let alone = bits(&Product { input: own, elements: InputElements::Bf16, ..any });
        assert_eq!(stated[row * outputs..][..outputs], alone, "row {row} alone");
    }
}

#[test]
fn an_input_is_rounded_as_half_rounds_it() {
    for (rows, inputs, outputs) in [(1, 33, 20), (3, 96, 40), (16, 200, 33), (45, 1100, 40), (70, 64, 16)] {
        let dense = noise(inputs * outputs, 3);
        let blocks = BlockFormat::BF16.quantise(&dense);
        let mut input = noise(rows * inputs, 4);
        // Ties, one that becomes infinite, a NaN whose upper half is an infinity, and a row that is next to nothing.
        input[0] = f32::from_bits(0x3f80_8000);
        input[1] = f32::from_bits(0x3f81_8000);
        if rows > 15 {
            input[2 * inputs + 5] = f32::MAX;
            input[4 * inputs + 7] = f32::from_bits(0x7f80_0001);
            for element in &mut input[9 * inputs..10 * inputs] {
                *element *= f32::MIN_POSITIVE;
            }
        }
        let rounded: Vec<f32> = input.iter().map(|number| half::bf16::from_f32(*number).to_f32()).collect();
        let (input, rounded) = (&input[..], &rounded[..]);
        let matrix = BlockMatrix { format: BlockFormat::BF16, blocks: &blocks, inputs, outputs };
        let [found, expected] = both(input, rounded, matrix, inputs, outputs);
        assert_eq!(found, expected, "blocks, {rows} rows");
        let matrix = Matrix { elements: &dense, inputs, outputs, input_stride: 1, output_stride: inputs };
        let [found, expected] = both(input, rounded, matrix, inputs, outputs);
        assert_eq!(found, expected, "dense, {rows} rows");
    }
}

/// The bits of the products with an input that is rounded by the kernel, and with one that was rounded before. All NaN are the same.
fn both<W: AnyMatrix>(input: &[f32], rounded: &[f32], matrix: W, inputs: usize, outputs: usize) -> [Vec<u32>; 2] {
    [(input, InputElements::RoundToBf16), (rounded, InputElements::Bf16)].map(|(input, elements)| {
        let rows = input.len() / inputs;
        let mut output = vec![7.0f32; rows * outputs];
        let problem = Product { input, elements, sequence: rows, matrix, bias: None, width: outputs, first: 0 };
        product(&problem, &mut output);
        output.into_iter().map(|number| if number.is_nan() { f32::NAN.to_bits() } else { number.to_bits() }).collect()
    })
}
