//! Rows of blocks as a dense matrix.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_kernels::cube::dequantise::launch;
use burn_deepspeed_kernels::cube::{Blocks, Dequantise, Machine, Unsupported};

use crate::lab::{Element, Lab, Tensor, lab, some};
use crate::oracle::noise;
use crate::refused::refuses;

/// Where the f16 of a block are.
fn halves(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::F32 | BlockFormat::BF16 | BlockFormat::MXFP4 => &[],
        BlockFormat::Q2_K => &[80, 82],
        BlockFormat::Q3_K => &[108],
        BlockFormat::Q6_K => &[208],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => &[0, 2],
        _ => &[0],
    }
}

/// Bytes without a pattern, as blocks whose floats are finite: normal, subnormal and 0, of both signs.
fn wild(format: BlockFormat, blocks: usize) -> Vec<u8> {
    let noise = noise(blocks * format.bytes(), 3);
    let mut bytes: Vec<u8> = noise.into_iter().map(|value| ((value + 1.0) * 128.0) as u8).collect();
    for (at, block) in bytes.chunks_mut(format.bytes()).enumerate() {
        for &half in halves(format) {
            block[half + 1] = match at % 5 {
                0 => block[half + 1] & 0x83,
                1 => 0x80,
                _ if block[half + 1] & 0x7c == 0x7c => 0x7b,
                _ => block[half + 1],
            };
            block[half] = if at % 5 == 1 { (at % 2) as u8 } else { block[half] };
        }
        match format {
            BlockFormat::F32 => block.copy_from_slice(&noise_of(at).to_le_bytes()),
            BlockFormat::BF16 => block.copy_from_slice(&noise_of(at).to_le_bytes()[2..]),
            // Every power of two that is at the edge of something.
            BlockFormat::MXFP4 => block[0] = [0, 1, 2, 3, 100, 127, 130, 252][at % 8],
            _ => {}
        }
    }
    bytes
}

fn noise_of(at: usize) -> f32 {
    noise(1, at as u64 + 9)[0] * 10f32.powi(at as i32 % 9 - 4)
}

/// One matrix, and where its rows are.
#[derive(Debug, Clone, Copy)]
struct Problem {
    format: BlockFormat,
    shape: [usize; 2],
    element: Element,
    /// Bytes before the rows.
    first: usize,
    /// Rows of the dense matrix before those that are written, and after them.
    around: [usize; 2],
    pitch: usize,
}

impl Problem {
    /// In rows of this many blocks, and f32.
    fn new(format: BlockFormat, outputs: usize, blocks: usize) -> Self {
        let shape = [outputs, blocks * format.elements()];
        Self { format, shape, element: Element::F32, first: 0, around: [0, 0], pitch: 1 }
    }

    fn check(self, lab: &Lab) {
        let Self { format, shape: [outputs, inputs], element, first, around, pitch } = self;
        let rows = wild(format, outputs * (inputs / format.elements()));
        let mut expected = vec![0.0; outputs * inputs];
        format.dequantise(&rows, &mut expected);
        let dense = lab.output(&[around.iter().sum::<usize>() + outputs, inputs], element, pitch);
        let arguments = Dequantise {
            blocks: Blocks { bytes: &bytes(lab, first, &rows), first, format, shape: [outputs, inputs] },
            dense: &dense,
            row: around[0],
        };
        assert_eq!(launch(&lab.client, &lab.machine, arguments), Ok(()));
        let found = lab.read(&dense);
        let (before, rest) = found.split_at(around[0] * inputs);
        let (own, after) = rest.split_at(outputs * inputs);
        assert!(before.iter().chain(after).all(|value| value.is_nan()), "{self:?}: another row was written");
        for (at, (found, expected)) in own.iter().zip(expected).enumerate() {
            let expected = element.round(expected);
            assert!(found.to_bits() == expected.to_bits(), "{self:?}: element {at} is {found}, expected {expected}");
        }
    }
}

/// The bytes of a matrix whose rows begin at byte `first`; zeros follow them.
fn bytes(lab: &Lab, first: usize, rows: &[u8]) -> Tensor {
    let mut bytes = vec![-1; first];
    bytes.extend(rows.iter().map(|byte| *byte as i8));
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    lab.bytes(&bytes, &[bytes.len()], 1)
}

#[test]
fn every_format_has_the_bits_of_its_definition() {
    let lab = lab(true);
    for (at, format) in some(BlockFormat::ALL.into_iter().enumerate()) {
        // Blocks begin at every place of a word that their size makes them begin at.
        Problem { first: [0, 1, 2, 3, 18][at % 5], ..Problem::new(format, 13, 40) }.check(&lab);
        Problem { pitch: 64, around: [2, 1], first: 34, ..Problem::new(format, 3, 8) }.check(&lab);
        Problem { first: 5, ..Problem::new(format, 1, 4) }.check(&lab);
    }
}

#[test]
fn every_element_type_is_rounded_once() {
    let lab = lab(true);
    for &element in Element::ALL {
        for format in
            some([BlockFormat::Q5_1, BlockFormat::Q4_0, BlockFormat::Q6_K, BlockFormat::F32, BlockFormat::Q4_K])
        {
            Problem { element, first: 16, pitch: 8, ..Problem::new(format, 5, 4) }.check(&lab);
        }
    }
}

#[test]
fn floats_of_any_number_are_read() {
    let lab = lab(true);
    for inputs in [1, 7, 10] {
        Problem { first: 2, ..Problem::new(BlockFormat::F16, 3, inputs) }.check(&lab);
    }
}

#[test]
fn long_rows_are_folded_over_the_axes_of_the_grid() {
    let lab = lab(true);
    let machine = Machine { max_cubes: [2, 2, 2], ..lab.machine };
    let lab = lab.with_machine(machine);
    // 7 cubes of 128 blocks, the last of which is not full, and 9.
    Problem::new(BlockFormat::Q4_0, 7, 120).check(&lab);
    let (blocks, dense) = (bytes(&lab, 0, &[0; 9 * 128 * 18]), lab.output(&[9, 4096], Element::F32, 1));
    let rows = Blocks { bytes: &blocks, first: 0, format: BlockFormat::Q4_0, shape: [9, 4096] };
    let answer = launch(&lab.client, &lab.machine, Dequantise { blocks: rows, dense: &dense, row: 0 });
    assert!(matches!(answer, Err(Unsupported::TooManyCubes { limit: [2, 2, 2], .. })), "{answer:?}");
}

#[test]
fn devices_with_few_units_and_little_shared_memory_have_the_same_bits() {
    let lab = lab(false);
    let machine = Machine { max_units: 64, shared_bytes: 4200, ..lab.machine };
    let lab = lab.with_machine(machine);
    for format in some([BlockFormat::F32, BlockFormat::Q2_K, BlockFormat::Q8_0, BlockFormat::MXFP4, BlockFormat::Q6_K])
    {
        Problem { first: 2, pitch: 64, ..Problem::new(format, 3, 17 * 4) }.check(&lab);
    }
    let lab = lab.with_machine(Machine { shared_bytes: 1000, ..machine });
    let (blocks, dense) = (bytes(&lab, 0, &[0; 18]), lab.output(&[1, 32], Element::F32, 1));
    let rows = Blocks { bytes: &blocks, first: 0, format: BlockFormat::Q4_0, shape: [1, 32] };
    let answer = launch(&lab.client, &lab.machine, Dequantise { blocks: rows, dense: &dense, row: 0 });
    assert!(matches!(answer, Err(Unsupported::SharedMemory { limit: 1000, .. })), "{answer:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = lab(true);
    let refused = |size: usize, first, shape, [rows, columns]: [usize; 2], row| {
        let blocks = lab.bytes(&vec![0; size], &[size], 1);
        let dense = lab.output(&[rows, columns], Element::F32, 1);
        let blocks = Blocks { bytes: &blocks, first, format: BlockFormat::Q4_0, shape };
        launch(&lab.client, &lab.machine, Dequantise { blocks, dense: &dense, row })
    };
    assert_eq!(refused(48, 3, [1, 64], [1, 64], 0), Ok(()));
    refuses("dequantise: rows of 40 elements are no whole number of blocks of Q4_0", || {
        refused(48, 0, [1, 40], [1, 40], 0)
    });
    refuses("dequantise: `matrix` has 48 bytes, expected 1 rows of 36 from 13 on", || {
        refused(48, 13, [1, 64], [1, 64], 0)
    });
    refuses("dequantise: `dense` has 2 rows, expected at least 3: 1 from 2 on", || refused(48, 0, [1, 64], [2, 64], 2));
    refuses("dequantise: `dense` has shape [1, 32], expected [1, 64]", || refused(48, 0, [1, 64], [1, 32], 0));
    let answer = refused(40, 0, [1, 64], [1, 64], 0);
    assert!(matches!(answer, Err(Unsupported::Multiple { size: 40, multiple: 16, .. })), "{answer:?}");
}
