//! Products of prompts with matrices of any type, which are products of bf16 where the processor has them on AMX.

use std::sync::LazyLock;

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_kernels::cpu::product::{
    AnyMatrix, BlockMatrix, InputElements, Int8Matrix, Matrix, Product, product,
};
use half::{bf16, f16};

use crate::oracle::noise;

/// Rows of a sequence of which every product is computed in f32.
const IN_F32: usize = 25;

fn problem<'a, W: AnyMatrix>(input: &'a [f32], inputs: usize, matrix: W, outputs: usize) -> Product<'a, W> {
    let sequence = input.len() / inputs;
    Product { input, elements: InputElements::F32, sequence, matrix, bias: None, width: outputs, first: 0 }
}

/// Whether the system says that products of bf16 run on AMX.
static HAS_AMX: LazyLock<bool> =
    LazyLock::new(|| std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("amx_bf16")));

/// The output, as bits.
fn bits<W: AnyMatrix>(problem: &Product<'_, W>, inputs: usize) -> Vec<u32> {
    let mut output = vec![7.0; problem.input.len() / inputs * problem.width];
    product(problem, &mut output);
    output.into_iter().map(f32::to_bits).collect()
}

/// Both orientations of a matrix, whose element of output `o` and input `i` is at `o * inputs + i`.
fn orientations<E: Copy>(elements: &[E], inputs: usize, work: impl Fn(&str, Matrix<'_, E>)) {
    let outputs = elements.len() / inputs;
    let across: Vec<E> = (0..elements.len()).map(|at| elements[at % outputs * inputs + at / outputs]).collect();
    work("[out, in]", Matrix { elements, inputs, outputs, input_stride: 1, output_stride: inputs });
    work("[in, out]", Matrix { elements: &across, inputs, outputs, input_stride: outputs, output_stride: 1 });
}

/// Checks rows from the third feature of a wider output on, next to f64. `weights` is `[outputs, inputs]`.
pub fn check<W: AnyMatrix>(name: &str, matrix: W, weights: &[f32], inputs: usize, rows: usize) {
    let outputs = weights.len() / inputs;
    let (input, bias) = (noise(rows * inputs, 1), noise(outputs, 2));
    let (first, width) = (2, outputs + 3);
    for bias in [None, Some(&bias[..])] {
        let output = bits(&Product { bias, width, first, ..problem(&input, inputs, matrix, outputs) }, inputs);
        for (at, output) in output.iter().map(|bits| f32::from_bits(*bits)).enumerate() {
            let (row, column) = (at / width, at % width);
            if column < first || column >= first + outputs {
                assert_eq!(output, 7.0, "{name}: a feature of others");
                continue;
            }
            // Enough of them where there are many.
            if rows * inputs * outputs > 10_000_000 && at % 31 != 0 {
                continue;
            }
            let weights = &weights[(column - first) * inputs..][..inputs];
            let terms = input[row * inputs..].iter().zip(weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
            let (sum, size) = terms.fold((0.0, 1.0), |(sum, size), term: f64| (sum + term, size + term * term));
            let expected = sum + bias.map_or(0.0, |bias| f64::from(bias[column - first]));
            let error = (f64::from(output) - expected).abs();
            // Partial sums are about the root of the sum of squares, and so are the roundings of a few hundred of them. AMX adds 32 products
            // before it rounds; tiles of f32 round every one, and have six standard deviations here.
            let each = if *HAS_AMX { 0.0 } else { 6.0 * 2f64.powi(-24) * (inputs as f64 / 6.0).sqrt() };
            let most = 1e-6 * size.sqrt() * (1.0 + inputs as f64 / 512.0) + each * size.sqrt().max(sum.abs());
            assert!(error <= most, "{name}, {rows} rows, {inputs} to {outputs}: {output}, expected {expected}");
        }
    }
}

#[test]
fn every_size_agrees_with_f64() {
    for (rows, inputs, outputs) in [
        (64, 1, 1),
        (65, 31, 15),
        (70, 33, 33),
        (97, 200, 130),
        (64, 4100, 65),
        (1030, 129, 33),
        (520, 1100, 12),
        (64, 64, 530),
    ] {
        let weights = noise(inputs * outputs, 3);
        orientations(&weights, inputs, |name, matrix| check(name, matrix, &weights, inputs, rows));
        let halves: Vec<f16> = weights.iter().map(|x| f16::from_f32(*x)).collect();
        let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        orientations(&halves, inputs, |name, matrix| check(&format!("f16 {name}"), matrix, &widened, inputs, rows));
        let halves: Vec<bf16> = weights.iter().map(|x| bf16::from_f32(*x)).collect();
        let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        orientations(&halves, inputs, |name, matrix| check(&format!("bf16 {name}"), matrix, &widened, inputs, rows));
        orientations(&widened, inputs, |name, matrix| {
            check(&format!("of bf16 {name}"), matrix, &widened, inputs, rows)
        });
    }
}

#[test]
fn every_int8_matrix_agrees_with_f64() {
    for (rows, inputs, outputs, output_block, input_block) in
        [(64, 1, 1, 1, 1), (65, 31, 15, 1, 31), (70, 200, 70, 3, 64), (97, 600, 130, 4, 600), (64, 130, 40, 1, 33)]
    {
        let elements: Vec<i8> = noise(inputs * outputs, 3).into_iter().map(|x| (x * 127.0).round() as i8).collect();
        let blocks = inputs.div_ceil(input_block);
        let scales: Vec<f32> =
            noise(outputs.div_ceil(output_block) * blocks, 4).into_iter().map(|x| x / 64.0).collect();
        let weight = |at: usize| {
            let scale = scales[at / inputs / output_block * blocks + at % inputs / input_block];
            f32::from(elements[at]) * scale
        };
        let weights: Vec<f32> = (0..inputs * outputs).map(weight).collect();
        let matrix = Int8Matrix { elements: &elements, inputs, outputs, scales: &scales, output_block, input_block };
        let name = format!("int8, blocks of {output_block} and {input_block}");
        check(&name, matrix, &weights, inputs, rows);
    }
}

#[test]
fn every_format_agrees_with_f64() {
    let (rows, inputs, outputs) = (70, 768, 70);
    for format in BlockFormat::ALL.into_iter().filter(|format| format.can_quantise()) {
        let blocks = format.quantise(&noise(inputs * outputs, 3));
        let mut weights = vec![0.0; inputs * outputs];
        format.dequantise(&blocks, &mut weights);
        let matrix = BlockMatrix { format, blocks: &blocks, inputs, outputs };
        check(&format.to_string(), matrix, &weights, inputs, rows);
    }
}

#[test]
fn rows_and_outputs_that_are_not_finite_tiny_or_huge_have_the_bits_of_f32() {
    let (rows, inputs, outputs) = (70, 150, 70);
    let mut weights = noise(inputs * outputs, 2);
    weights[5 * inputs + 149] = f32::INFINITY;
    weights[6 * inputs] = f32::NAN;
    // No bf16 is as large.
    weights[33 * inputs + 7] = f32::MAX;
    weights[69 * inputs..].iter_mut().for_each(|weight| *weight *= 1e-30);
    let mut input = noise(rows * inputs, 1);
    let plain = input.clone();
    input[3] = f32::NEG_INFINITY;
    input[4 * inputs + 149] = f32::NAN;
    input[5 * inputs..6 * inputs].iter_mut().for_each(|x| *x *= 1e-36);
    input[69 * inputs + 64] = -f32::MAX;
    orientations(&weights, inputs, |name, matrix| {
        let own = problem(&input, inputs, matrix, outputs);
        let (found, in_f32) = (bits(&own, inputs), bits(&Product { sequence: IN_F32, ..own }, inputs));
        let others = bits(&Product { input: &plain, ..own }, inputs);
        for at in 0..rows * outputs {
            let (row, output) = (at / outputs, at % outputs);
            if [0, 4, 5, 69].contains(&row) || [5, 6, 33, 69].contains(&output) {
                assert_eq!(found[at], in_f32[at], "{name}, row {row}, output {output}");
            } else {
                assert_eq!(found[at], others[at], "{name}, row {row}, output {output}, next to others");
            }
        }
    });
}

#[test]
fn all_bits_of_a_weight_count() {
    // The lower bits of an f32 are in the third part, and the elements have opposite signs.
    let (inputs, rows) = (64, 64);
    let input: Vec<f32> = (0..rows * inputs).map(|at| if at % 2 == 0 { 1.0 } else { -1.0 }).collect();
    for output in 0..33 {
        let weights: Vec<f32> = (0..33 * inputs)
            .map(|at| 1.0 + if at % 2 == 0 && at / inputs == output { f32::EPSILON } else { 0.0 })
            .collect();
        orientations(&weights, inputs, |name, matrix| {
            for (at, found) in bits(&problem(&input, inputs, matrix, 33), inputs).into_iter().enumerate() {
                let expected = if at % 33 == output { 32.0 * f32::EPSILON } else { 0.0 };
                assert_eq!(f32::from_bits(found), expected, "{name}, output {output}");
            }
        });
    }
}

#[test]
fn an_output_has_the_same_bits_next_to_one_with_more_parts() {
    let (rows, inputs, outputs) = (70, 300, 31);
    let input = noise(rows * inputs, 1);
    let of_bits = |bits: u32| {
        let mask = u32::MAX << (24 - bits);
        noise(inputs * outputs, 2).into_iter().map(move |x| f32::from_bits(x.to_bits() & mask)).collect::<Vec<f32>>()
    };
    for (bits_of_weights, weights) in [(8, of_bits(8)), (15, of_bits(15)), (24, of_bits(24))] {
        let next_to_another = [&weights[..], &noise(inputs, 9)].concat();
        let matrix = |elements, outputs| Matrix { elements, inputs, outputs, input_stride: 1, output_stride: inputs };
        let alone = bits(&problem(&input, inputs, matrix(&weights[..], outputs), outputs), inputs);
        let both = bits(&problem(&input, inputs, matrix(&next_to_another[..], outputs + 1), outputs + 1), inputs);
        for (row, (alone, both)) in alone.chunks(outputs).zip(both.chunks(outputs + 1)).enumerate() {
            assert_eq!(alone, &both[..outputs], "{bits_of_weights} bits, row {row}");
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch() {
    let (inputs, outputs, sequence) = (200, 300, 64);
    let input = noise(9 * sequence * inputs, 1);
    orientations(&noise(inputs * outputs, 2), inputs, |name, matrix| {
        let batch = problem(&input, inputs, matrix, outputs);
        let all = bits(&Product { sequence, ..batch }, inputs);
        for at in [0, 3, 8] {
            let own = &input[at * sequence * inputs..][..sequence * inputs];
            let alone = bits(&Product { sequence, input: own, ..batch }, inputs);
            assert_eq!(alone, all[at * sequence * outputs..][..sequence * outputs], "{name}, sequence {at}");
        }
    });
}

#[test]
fn an_input_of_bf16_takes_the_same_products() {
    let (rows, inputs, outputs) = (70, 300, 40);
    let (input, weights) = (noise(rows * inputs, 1), noise(inputs * outputs, 2));
    let input: Vec<f32> = input.into_iter().map(|number| bf16::from_f32(number).to_f32()).collect();
    orientations(&weights, inputs, |name, matrix| {
        let any = problem(&input, inputs, matrix, outputs);
        let stated = bits(&Product { elements: InputElements::Bf16, ..any }, inputs);
        assert_eq!(stated, bits(&any, inputs), "{name}");
    });
}
