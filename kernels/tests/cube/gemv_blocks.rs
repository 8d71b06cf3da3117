//! A few rows through a matrix of quantised blocks, without tensor cores.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::layout::Orientation;
use burn_deepspeed_kernels::cube::gemv::{Gemv, MOST_ROWS, Matrix, NormKind, launch};
use burn_deepspeed_kernels::cube::{Blocks, Machine, Unsupported};

use crate::gemv::{Kept, Problem, problem};
use crate::lab::{Element, Lab, lab, some};
use crate::refused::refuses;

/// What the kernel reads as it is stored.
pub const FORMATS: [BlockFormat; 9] = [
    BlockFormat::Q4_0,
    BlockFormat::Q6_K,
    BlockFormat::Q8_0,
    BlockFormat::MXFP4,
    BlockFormat::Q4_1,
    BlockFormat::Q4_K,
    BlockFormat::Q5_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_K,
];

/// Rows of this many blocks, which begin at byte `first` of the matrix.
pub fn blocks(format: BlockFormat, first: usize, [rows, blocks, outputs]: [usize; 3]) -> Problem {
    let sizes = [rows, blocks * format.elements(), outputs];
    Problem { kept: Kept::Blocks(format, first), ..problem(sizes, Orientation::OutputInput) }
}

/// The device without its tensor cores.
fn without_cores(planes: bool) -> Lab {
    let lab = lab(planes);
    let machine = Machine { tensor_cores: false, ..lab.machine };
    lab.with_machine(machine)
}

/// The same, on which few cubes are enough, so that each does more.
fn small(planes: bool) -> Lab {
    let lab = without_cores(planes);
    let machine = Machine { processors: 1, ..lab.machine };
    lab.with_machine(machine)
}

#[test]
fn every_format_at_every_place_of_a_word_agrees_with_plain_loops() {
    for (at, format) in FORMATS.into_iter().enumerate() {
        for (place, first) in some([0, 1, 2, 4, 8, 16].into_iter().enumerate()) {
            let sizes = [[1, 4, 1], [2, 3, 37], [1, 6, 9]];
            let plain = blocks(format, first, sizes[(at + place) % 3]);
            let half = Problem { element: Element::F16, pitch: 8, ..plain };
            let bare = Problem { norm: None, bias: false, normed: false, pitch: 1, ..plain };
            [plain, half, bare][(at + place) / 2 % 3].check(&without_cores(true));
        }
    }
}

#[test]
fn long_rows_of_blocks_agree_with_plain_loops() {
    for format in some(FORMATS) {
        let blocks_of_row = if format.elements() == 32 { 152 } else { 19 };
        blocks(format, 0, [1, blocks_of_row, 7]).check(&without_cores(true));
        blocks(format, 0, [2, blocks_of_row, 70]).check(&small(true));
    }
}

#[test]
fn every_number_of_rows_times_blocks_agrees_with_plain_loops() {
    for (at, rows) in some((1..=MOST_ROWS).enumerate()) {
        let format = FORMATS[at % FORMATS.len()];
        blocks(format, 0, [rows, 4, 37]).check(&without_cores(rows % 3 != 0));
        blocks(FORMATS[(at + 3) % FORMATS.len()], 2, [rows, 3, 20]).check(&small(true));
    }
}

#[test]
fn every_norm_before_blocks_agrees_with_plain_loops() {
    for (norm, beta) in [(None, false), (Some(NormKind::LayerNorm), false), (Some(NormKind::RmsNorm), true)] {
        let plain = Problem { norm, beta, ..blocks(BlockFormat::Q4_K, 0, [3, 2, 20]) };
        for &element in Element::ALL {
            Problem { element, ..plain }.check(&without_cores(true));
        }
        Problem { parameters: Element::F16, bias: false, normed: false, around: [3, 1], ..plain }
            .check(&without_cores(false));
    }
}

// Several tiles whose last is not whole; `scripts/mutants.py` runs the small problems on kernels with mistakes.
#[test]
fn a_small_problem_of_q4_0_agrees_with_plain_loops() {
    [37, 38].into_iter().for_each(|outputs| blocks(BlockFormat::Q4_0, 4, [8, 98, outputs]).check(&small(true)));
}

#[test]
fn a_small_problem_of_q4_0_that_begins_inside_of_a_word_agrees_with_plain_loops() {
    [37, 38].into_iter().for_each(|outputs| blocks(BlockFormat::Q4_0, 2, [8, 63, outputs]).check(&small(true)));
}

#[test]
fn a_small_problem_of_mxfp4_agrees_with_plain_loops() {
    [37, 38].into_iter().for_each(|outputs| blocks(BlockFormat::MXFP4, 0, [4, 52, outputs]).check(&small(true)));
}

#[test]
fn a_small_problem_of_q6_k_agrees_with_plain_loops() {
    [37, 38].into_iter().for_each(|outputs| blocks(BlockFormat::Q6_K, 0, [8, 7, outputs]).check(&small(true)));
}

#[test]
fn a_small_problem_of_q4_k_without_planes_agrees_with_plain_loops() {
    [37, 38].into_iter().for_each(|outputs| blocks(BlockFormat::Q4_K, 0, [8, 7, outputs]).check(&small(false)));
}

#[test]
fn rows_that_are_read_one_by_one_agree_with_plain_loops() {
    // Strides that are no multiples of a vector.
    for pitch in some([1, 3, 5]) {
        let inputs = Problem { pitch: pitch * 7, ..blocks(BlockFormat::Q6_K, 0, [2, 1, 9]) };
        inputs.check(&without_cores(true));
    }
}

#[test]
fn what_the_kernel_does_not_read_is_refused() {
    let lab = without_cores(true);
    let refused = |format: BlockFormat, size: usize, first, shape: [usize; 2], inputs: usize| {
        let bytes = lab.bytes(&vec![0; size], &[size], 1);
        let arguments = Gemv {
            input: &lab.output(&[1, inputs], Element::F32, 1),
            norm: None,
            matrix: Matrix::Blocks(Blocks { bytes: &bytes, first, format, shape }),
            bias: None,
            output: &lab.output(&[1, shape[0]], Element::F32, 1),
            offset: 0,
            normed: None,
        };
        launch(&lab.client, &lab.machine, arguments)
    };
    for format in [BlockFormat::Q3_K, BlockFormat::IQ4_NL, BlockFormat::Q2_K, BlockFormat::F16] {
        let answer = refused(format, 1024, 0, [1, 256], 256);
        assert_eq!(answer, Err(Unsupported::BlockFormat(format)));
    }
    let answer = refused(BlockFormat::Q4_0, 40, 0, [1, 64], 64);
    assert!(matches!(answer, Err(Unsupported::Multiple { size: 40, multiple: 16, .. })), "{answer:?}");
    refuses("gemv: `matrix` has shape [1, 64], expected [1, 32]", || refused(BlockFormat::Q4_0, 48, 0, [1, 64], 32));
    refuses("gemv: `matrix` has 48 bytes, expected 1 rows of 36 from 13 on", || {
        refused(BlockFormat::Q4_0, 48, 13, [1, 64], 64)
    });
}
