//! A few rows through a matrix of quantised blocks, on tensor cores.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_kernels::cube::gemv::mma::{Engine, launch};
use burn_deepspeed_kernels::cube::gemv::{Gemv, MOST_ROWS, Matrix, NormKind};
use burn_deepspeed_kernels::cube::{Blocks, Machine, Unsupported};

use crate::gemv::Problem;
use crate::gemv_blocks::{FORMATS, blocks};
use crate::lab::{Element, Lab, lab, some};

/// Rows of this many blocks, which begin at byte `first` of the matrix.
fn on_tensor_cores(format: BlockFormat, first: usize, sizes: [usize; 3]) -> Problem {
    Problem { engine: Some(Engine::TensorCores), ..blocks(format, first, sizes) }
}

/// Without what may be around the product: inputs of 16 bits have one part then.
fn bare(element: Element, problem: Problem) -> Problem {
    Problem { element, norm: None, bias: false, normed: false, pitch: 8, ..problem }
}

/// The device, with this much shared memory.
fn with_shared(kilobytes: usize) -> Lab {
    let lab = lab(true);
    let machine = Machine { shared_bytes: kilobytes * 1024, ..lab.machine };
    lab.with_machine(machine)
}

/// The device, with this much shared memory and one multiprocessor: a cube has all strips of outputs, or four of them where shared memory does not
/// hold all inputs.
fn alone(kilobytes: usize) -> Lab {
    let lab = with_shared(kilobytes);
    let machine = Machine { processors: 1, ..lab.machine };
    lab.with_machine(machine)
}

#[test]
fn every_format_at_every_place_of_a_word_agrees_with_plain_loops() {
    for (at, format) in FORMATS.into_iter().enumerate() {
        for (place, first) in some([0, 1, 2, 3, 4, 8, 16].into_iter().enumerate()) {
            let sizes = [[1, 4, 1], [2, 3, 37], [1, 9, 16]];
            let plain = on_tensor_cores(format, first, sizes[(at + place) % 3]);
            let problems = [plain, bare(Element::F16, plain), bare(Element::Bf16, plain), bare(Element::F32, plain)];
            problems[(at + place) / 2 % 4].check(&lab(true));
        }
    }
}

#[test]
fn every_number_of_rows_agrees_with_plain_loops() {
    for (at, rows) in (1..=MOST_ROWS).enumerate() {
        let [first, second] = [0, 3].map(|further| FORMATS[(at + further) % FORMATS.len()]);
        on_tensor_cores(first, 0, [rows, 4, 37]).check(&lab(true));
        bare(Element::Bf16, on_tensor_cores(second, 2, [rows, 3, 20])).check(&lab(true));
    }
}

#[test]
fn every_norm_agrees_with_plain_loops() {
    for (norm, beta) in [(None, false), (Some(NormKind::LayerNorm), false), (Some(NormKind::RmsNorm), true)] {
        let plain = Problem { norm, beta, ..on_tensor_cores(BlockFormat::Q4_K, 0, [3, 2, 20]) };
        for &element in Element::ALL {
            Problem { element, ..plain }.check(&lab(true));
        }
        Problem { parameters: Element::F16, bias: false, normed: false, around: [3, 1], ..plain }.check(&lab(true));
    }
}

// Rows of several steps whose last is not whole, and of several fills of shared memory.
#[test]
fn long_rows_agree_with_plain_loops() {
    for format in FORMATS {
        let blocks_of_row = if format.elements() == 32 { 155 } else { 19 };
        bare(Element::Bf16, on_tensor_cores(format, 0, [1, blocks_of_row, 19])).check(&lab(true));
    }
    for format in some([BlockFormat::Q4_0, BlockFormat::Q6_K, BlockFormat::Q5_1]) {
        let blocks_of_row = if format.elements() == 32 { 128 } else { 24 };
        on_tensor_cores(format, 16, [5, blocks_of_row, 33]).check(&lab(true));
    }
}

#[test]
fn cubes_with_several_strips_agree_with_plain_loops() {
    let problems = [
        (BlockFormat::Q4_0, [1, 13, 150], Element::Bf16, 200),
        (BlockFormat::Q4_K, [8, 9, 100], Element::F16, 200),
        (BlockFormat::Q8_0, [2, 160, 90], Element::F32, 72),
        (BlockFormat::Q4_K, [3, 20, 150], Element::F32, 80),
        (BlockFormat::Q6_K, [8, 17, 135], Element::Bf16, 112),
        (BlockFormat::Q5_1, [5, 130, 100], Element::F16, 72),
    ];
    for (format, sizes, element, kilobytes) in some(problems) {
        let problem = on_tensor_cores(format, 0, sizes);
        problem.check(&alone(kilobytes));
        bare(element, problem).check(&alone(kilobytes));
    }
}

/// The problem, and with an input that sets the power of two of its row: the last one that the last unit of a cube looks at first, and one whose element
/// is in the lower half of a byte.
fn check_with_peak(problem: Problem) {
    for peak in [None, Some(8 * 256 - 1), Some(8 * 250 - 1)] {
        Problem { peak, ..problem }.check(&lab(true));
    }
}

// `scripts/mutants.py` runs the small problems on kernels with mistakes.
#[test]
fn a_small_problem_of_q4_0_agrees_with_plain_loops() {
    check_with_peak(on_tensor_cores(BlockFormat::Q4_0, 4, [6, 149, 37]));
}

#[test]
fn a_small_problem_of_q5_1_agrees_with_plain_loops() {
    check_with_peak(bare(Element::F16, on_tensor_cores(BlockFormat::Q5_1, 0, [3, 98, 37])));
}

#[test]
fn a_small_problem_of_q4_k_agrees_with_plain_loops() {
    check_with_peak(bare(Element::Bf16, on_tensor_cores(BlockFormat::Q4_K, 0, [4, 11, 37])));
}

#[test]
fn a_small_problem_of_q6_k_agrees_with_plain_loops() {
    check_with_peak(on_tensor_cores(BlockFormat::Q6_K, 0, [2, 19, 37]));
}

#[test]
fn inputs_of_every_magnitude_agree_with_plain_loops() {
    let problem =
        Problem { norm: None, bias: false, normed: false, ..on_tensor_cores(BlockFormat::Q4_0, 0, [4, 9, 5]) };
    for exponent in [-100, -30, 30, 100] {
        let problem = Problem { magnitude: 2f32.powi(exponent), ..problem };
        problem.check(&lab(true));
        bare(Element::Bf16, problem).check(&lab(true));
    }
    for exponent in [-13, -5, 5] {
        bare(Element::F16, Problem { magnitude: 2f32.powi(exponent), ..problem }).check(&lab(true));
    }
}

// The inputs do not fit shared memory, so a cube saves the sums of its strips.
#[test]
fn a_small_problem_in_parts_agrees_with_plain_loops() {
    on_tensor_cores(BlockFormat::Q4_K, 0, [3, 19, 37]).check(&alone(80));
}

#[test]
fn an_input_that_is_not_finite_spoils_its_row_alone() {
    let problem = Problem { norm: None, normed: false, ..on_tensor_cores(BlockFormat::Q5_0, 0, [3, 9, 5]) };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut input = problem.input();
        input[problem.inputs + 7] = value;
        problem.check_input(&lab(true), &input, Some(1));
    }
}

#[test]
fn with_little_shared_memory_fewer_planes_multiply() {
    for (format, kilobytes) in [(BlockFormat::Q4_0, 36), (BlockFormat::Q8_0, 40), (BlockFormat::Q4_K, 26)] {
        let blocks_of_row = if format.elements() == 32 { 128 } else { 16 };
        on_tensor_cores(format, 0, [2, blocks_of_row, 20]).check(&with_shared(kilobytes));
    }
}

#[test]
fn what_the_kernel_does_not_take_is_refused() {
    let refused = |lab: &Lab, format: BlockFormat, inputs: usize, pitch: usize, engine: Engine| {
        let size = format.row_bytes(inputs).unwrap().next_multiple_of(16);
        let arguments = Gemv {
            input: &lab.output(&[2, inputs], Element::F32, pitch),
            norm: None,
            matrix: Matrix::Blocks(Blocks {
                bytes: &lab.bytes(&vec![0; size], &[size], 1),
                first: 0,
                format,
                shape: [1, inputs],
            }),
            bias: None,
            output: &lab.output(&[2, 1], Element::F32, 1),
            offset: 0,
            normed: None,
        };
        launch(&lab.client, &lab.machine, arguments, engine)
    };
    let whole = lab(true);
    let cores = Engine::TensorCores;
    for format in [BlockFormat::Q3_K, BlockFormat::IQ4_NL, BlockFormat::Q2_K, BlockFormat::F16] {
        assert_eq!(refused(&whole, format, 256, 256, cores), Err(Unsupported::BlockFormat(format)));
    }
    let stride = Unsupported::Multiple { what: "the stride of `input`", size: 33, multiple: 8 };
    assert_eq!(refused(&whole, BlockFormat::Q4_0, 32, 33, cores), Err(stride));
    let half = Element::F16.storage();
    assert_eq!(refused(&whole, BlockFormat::Q4_0, 32, 32, Engine::Emulated), Err(Unsupported::TensorCores(half)));
    let machine = Machine { tensor_cores: false, ..whole.machine };
    let without = lab(true).with_machine(machine);
    assert_eq!(refused(&without, BlockFormat::Q4_0, 32, 32, cores), Err(Unsupported::TensorCores(half)));
    let answer = refused(&with_shared(4), BlockFormat::Q6_K, 4096, 4096, cores);
    assert!(matches!(answer, Err(Unsupported::SharedMemory { limit: 4096, .. })), "{answer:?}");
}
