//! A few rows through a matrix.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::layout::Orientation;
use burn_deepspeed_kernels::cube::gemv::mma::{self, Engine};
use burn_deepspeed_kernels::cube::gemv::{Gemv, Int8, MOST_ROWS, Matrix, Norm, NormKind, launch};
use burn_deepspeed_kernels::cube::{Blocks, Machine};

use crate::lab::{Element, Lab, lab, some};
use crate::oracle::{assert_near, blocks as blocks_of, noise};

const EPSILON: f32 = 0.1;
const ORIENTATIONS: [Orientation; 2] = [Orientation::OutputInput, Orientation::InputOutput];

/// How the weights are kept.
#[derive(Debug, Clone, Copy)]
pub enum Kept {
    Dense(Orientation),
    /// In blocks of this many outputs and inputs.
    Int8([usize; 2]),
    /// In blocks of this format, which begin at this byte.
    Blocks(BlockFormat, usize),
}

/// One product, with everything that may be around it.
#[derive(Debug, Clone, Copy)]
pub struct Problem {
    /// What multiplies, if the launcher is not to choose.
    pub engine: Option<Engine>,
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub kept: Kept,
    pub element: Element,
    /// Of bias, gamma and beta.
    pub parameters: Element,
    pub norm: Option<NormKind>,
    pub beta: bool,
    pub bias: bool,
    pub normed: bool,
    /// Columns of the output before those that are written, and after them.
    pub around: [usize; 2],
    pub pitch: usize,
    /// What the input is multiplied with, a power of two.
    pub magnitude: f32,
    /// The place of an input of each row that is larger than all others, and in each row as many times as large as in the one before as its type allows.
    pub peak: Option<usize>,
    /// Whether the parts of neighbouring inputs cancel, except for what their normalised values lose if they are rounded.
    pub cancels: bool,
}

/// LayerNorm with everything, in f32, in rows padded to 64 elements.
pub fn problem([rows, inputs, outputs]: [usize; 3], orientation: Orientation) -> Problem {
    Problem {
        engine: None,
        rows,
        inputs,
        outputs,
        kept: Kept::Dense(orientation),
        element: Element::F32,
        parameters: Element::F32,
        norm: Some(NormKind::LayerNorm),
        beta: true,
        bias: true,
        normed: true,
        around: [0, 0],
        pitch: 64,
        magnitude: 1.0,
        peak: None,
        cancels: false,
    }
}

/// The same with a matrix of int8.
pub fn int8(sizes: [usize; 3], blocks: [usize; 2]) -> Problem {
    Problem { kept: Kept::Int8(blocks), ..problem(sizes, Orientation::OutputInput) }
}

impl Problem {
    fn parameter(&self, len: usize, seed: u64) -> Vec<f32> {
        let values = noise(len, seed).into_iter().map(|value| self.parameters.round(value)).collect();
        if self.cancels { opposite(values, 1.0) } else { values }
    }

    fn gamma(&self) -> Vec<f32> {
        let mut gamma = self.parameter(self.inputs, 3);
        if self.cancels {
            let small = noise(self.inputs, 7).into_iter().map(|value| 1.0 + value * 2f32.powi(-10));
            gamma.iter_mut().zip(small).skip(1).step_by(2).for_each(|(value, factor)| *value *= factor);
        }
        gamma
    }

    fn biases(&self) -> Vec<f32> {
        if self.cancels { vec![0.0; self.outputs] } else { self.parameter(self.outputs, 5) }
    }

    /// Rows far from 0, each with its own mean and deviation.
    pub fn input(&self) -> Vec<f32> {
        let row = |at: usize| (at / self.inputs) as f32;
        let values = noise(self.rows * self.inputs, 1).into_iter().enumerate();
        let values = values.map(|(at, value)| self.element.round(value * (1.0 + row(at)) + 3.0 - row(at)));
        let mut values: Vec<f32> = values.map(|value| value * self.magnitude).collect();
        for (at, row) in values.chunks_mut(self.inputs).enumerate() {
            let factor = if self.norm.is_some() || self.element == Element::F16 { -8f32 } else { -2f32.powi(28) };
            self.peak.into_iter().for_each(|peak| row[peak] = 112.0 * factor.powi(at as i32 % 4) * self.magnitude);
        }
        if self.cancels { opposite(values, 1.0) } else { values }
    }

    /// The dense matrix, as it is stored.
    fn matrix(&self) -> Vec<f32> {
        let values = noise(self.inputs * self.outputs, 2).into_iter().map(|value| self.element.round(value)).collect();
        if self.cancels { opposite(values, -1.0) } else { values }
    }

    /// The elements of the matrix of int8.
    fn bytes(&self) -> Vec<i8> {
        let values = noise(self.inputs * self.outputs, 2);
        let values = if self.cancels { opposite(values, -1.0) } else { values };
        values.into_iter().map(|value| (value * 127.0).round() as i8).collect()
    }

    /// One for each block.
    fn scales(&self, [tall, wide]: [usize; 2]) -> (Vec<f32>, [usize; 2]) {
        let shape = [self.outputs.div_ceil(tall), self.inputs.div_ceil(wide)];
        let scale = |value: f32| (0.2 + value.abs()) / 127.0;
        (noise(shape[0] * shape[1], 6).into_iter().map(scale).collect(), shape)
    }

    /// The weights, `[out, in]`.
    fn weights(&self) -> Vec<f64> {
        let places = (0..self.outputs).flat_map(|out| (0..self.inputs).map(move |at| (out, at)));
        match self.kept {
            Kept::Dense(orientation) => {
                let matrix = self.matrix();
                let weight = |(out, at)| match orientation {
                    Orientation::OutputInput => matrix[out * self.inputs + at],
                    Orientation::InputOutput => matrix[at * self.outputs + out],
                };
                places.map(|place| f64::from(weight(place))).collect()
            }
            Kept::Int8([tall, wide]) => {
                let (scales, [_, across]) = self.scales([tall, wide]);
                let scale = |(out, at): (usize, usize)| f64::from(scales[out / tall * across + at / wide]);
                self.bytes().into_iter().zip(places).map(|(byte, place)| f64::from(byte) * scale(place)).collect()
            }
            Kept::Blocks(format, _) => {
                let mut weights = vec![0.0; self.outputs * self.inputs];
                format.dequantise(&blocks_of(format, [self.outputs, self.inputs]), &mut weights);
                weights.into_iter().map(f64::from).collect()
            }
        }
    }

    /// The normalised input and the product, in plain loops.
    fn solve(&self) -> [Vec<f64>; 2] {
        let (gamma, beta) = (self.gamma(), self.parameter(self.inputs, 4));
        let (bias, weights) = (self.biases(), self.weights());
        let (mut normed, mut output) = (Vec::new(), Vec::new());
        for row in self.input().chunks(self.inputs) {
            let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
            let count = self.inputs as f64;
            let mean = if self.norm == Some(NormKind::LayerNorm) { row.iter().sum::<f64>() / count } else { 0.0 };
            let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
            let deviation = (variance + f64::from(EPSILON)).sqrt();
            let unit = |(at, value): (usize, &f64)| {
                let shift = if self.beta { f64::from(beta[at]) } else { 0.0 };
                (value - mean) / deviation * f64::from(gamma[at]) + shift
            };
            let row: Vec<f64> = if self.norm.is_some() { row.iter().enumerate().map(unit).collect() } else { row };
            output.extend(vec![f64::NAN; self.around[0]]);
            output.extend((0..self.outputs).map(|out| {
                let weights = &weights[out * self.inputs..][..self.inputs];
                let sum: f64 = row.iter().zip(weights).map(|(value, weight)| value * weight).sum();
                sum + if self.bias { f64::from(bias[out]) } else { 0.0 }
            }));
            output.extend(vec![f64::NAN; self.around[1]]);
            normed.extend(row);
        }
        [normed, output]
    }

    pub fn check(&self, lab: &Lab) {
        self.check_input(lab, &self.input(), None);
    }

    /// The same with other values in the input. Nothing is known of the row `spoilt`, and every other row is what it is without it.
    pub fn check_input(&self, lab: &Lab, input: &[f32], spoilt: Option<usize>) {
        let Self { rows, inputs, outputs, element, parameters, pitch, .. } = *self;
        let vector = |values: Vec<f32>| lab.floats(&values, &[values.len()], parameters, 1);
        let output = lab.output(&[rows, self.around.iter().sum::<usize>() + outputs], element, 8);
        let normed = lab.output(&[rows, inputs], element, pitch);
        let (gamma, beta, bias) = (vector(self.gamma()), vector(self.parameter(inputs, 4)), vector(self.biases()));
        let (elements, scales) = match self.kept {
            Kept::Dense(Orientation::OutputInput) => {
                (lab.floats(&self.matrix(), &[outputs, inputs], element, pitch), None)
            }
            Kept::Dense(Orientation::InputOutput) => {
                (lab.floats(&self.matrix(), &[inputs, outputs], element, pitch), None)
            }
            Kept::Int8(blocks) => {
                let (scales, shape) = self.scales(blocks);
                let scales = lab.floats(&scales, &shape, Element::F32, pitch);
                (lab.bytes(&self.bytes(), &[outputs, inputs], pitch), Some(scales))
            }
            Kept::Blocks(format, first) => {
                let mut bytes = vec![-1; first];
                bytes.extend(blocks_of(format, [outputs, inputs]).into_iter().map(|byte| byte as i8));
                bytes.resize(bytes.len().next_multiple_of(16), 0);
                (lab.bytes(&bytes, &[bytes.len()], 1), None)
            }
        };
        let matrix = match (self.kept, &scales) {
            (Kept::Int8(blocks), Some(scales)) => Matrix::Int8(Int8 { elements: &elements, scales, blocks }),
            (Kept::Dense(orientation), _) => Matrix::Dense(&elements, orientation),
            (Kept::Blocks(format, first), _) => {
                Matrix::Blocks(Blocks { bytes: &elements, first, format, shape: [outputs, inputs] })
            }
            _ => unreachable!("a matrix of int8 has scales"),
        };
        let arguments = Gemv {
            input: &lab.floats(input, &[rows, inputs], element, pitch),
            norm: self.norm.map(|kind| Norm {
                kind,
                gamma: &gamma,
                beta: self.beta.then_some(&beta),
                epsilon: EPSILON,
            }),
            matrix,
            bias: self.bias.then_some(&bias),
            output: &output,
            offset: self.around[0],
            normed: self.normed.then_some(&normed),
        };
        let launched = match self.engine {
            Some(engine) => mma::launch(&lab.client, &lab.machine, arguments, engine),
            None => launch(&lab.client, &lab.machine, arguments),
        };
        assert_eq!(launched, Ok(()));
        let [mut expected_normed, mut expected] = self.solve();
        if let Some(row) = spoilt {
            let (first, width) = (self.around[0], outputs + self.around.iter().sum::<usize>());
            expected[row * width + first..][..outputs].fill(f64::NAN);
            expected_normed[row * inputs..][..inputs].fill(f64::NAN);
        }
        let what = format!("planes {}, {self:?}", lab.machine.plane_operations);
        // A sum of many terms has an error of its largest partial sums, not of what is left of them. Those of a minimum and its elements cancel.
        let minima = matches!(self.kept, Kept::Blocks(BlockFormat::Q4_1 | BlockFormat::Q5_1, _));
        let terms = inputs as f64 / if minima { 4.0 } else { 64.0 };
        let tolerance = element.tolerance() * terms.sqrt().max(1.0);
        let mut actual = lab.read(&output);
        if self.magnitude != 1.0 {
            expected.iter_mut().for_each(|value| *value /= f64::from(self.magnitude));
            actual.iter_mut().for_each(|value| *value /= self.magnitude);
        }
        if self.cancels {
            // What is left is small.
            let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
            expected.iter_mut().for_each(|value| *value /= largest);
            actual.iter_mut().for_each(|value| *value = (f64::from(*value) / largest) as f32);
        }
        assert_near(&what, &actual, &expected, tolerance);
        let filled = if self.normed { expected_normed } else { vec![f64::NAN; rows * inputs] };
        assert_near(&format!("normed, {what}"), &lab.read(&normed), &filled, element.tolerance());
    }
}

/// Makes each odd number the one before it, times `sign`.
fn opposite(mut values: Vec<f32>, sign: f32) -> Vec<f32> {
    values.chunks_exact_mut(2).for_each(|pair| pair[1] = pair[0] * sign);
    values
}

#[test]
fn every_size_agrees_with_plain_loops() {
    let sizes = [1, 5, 64, 129, 300];
    for (which, orientation) in ORIENTATIONS.into_iter().enumerate() {
        for (at, inputs) in some([1, 7, 33, 64, 257, 1024].into_iter().enumerate()) {
            let plain = problem([2, inputs, sizes[at % sizes.len()]], orientation);
            let half = Problem { element: Element::F16, pitch: 8, ..plain };
            if (at + which).is_multiple_of(2) { plain } else { half }.check(&lab(true));
        }
        for outputs in some(sizes) {
            problem([2, 64, outputs], orientation).check(&lab(true));
        }
    }
}

#[test]
fn every_number_of_rows_agrees_with_plain_loops() {
    for orientation in ORIENTATIONS {
        for rows in some([1, 2, 3, 5, 8]) {
            problem([rows, 136, 37], orientation).check(&lab(true));
        }
        for rows in [1, 5] {
            problem([rows, 132, 37], orientation).check(&lab(false));
        }
    }
}

#[test]
fn every_norm_agrees_with_plain_loops() {
    for (which, orientation) in ORIENTATIONS.into_iter().enumerate() {
        let norms = [
            (None, false),
            (Some(NormKind::LayerNorm), false),
            (Some(NormKind::LayerNorm), true),
            (Some(NormKind::RmsNorm), false),
            (Some(NormKind::RmsNorm), true),
        ];
        for (at, (norm, beta)) in some(norms.into_iter().enumerate()) {
            let plain = Problem { norm, beta, ..problem([3, 100, 20], orientation) };
            let half = Problem { element: Element::F16, ..plain };
            let half_parameters = Problem { parameters: Element::F16, normed: false, bias: false, ..plain };
            if (at + which).is_multiple_of(2) { half } else { half_parameters }.check(&lab(true));
        }
        Problem { norm: None, ..problem([2, 100, 20], orientation) }.check(&lab(false));
    }
}

/// A device on which few cubes are enough, so that each does more.
fn small(planes: bool) -> Lab {
    let lab = lab(planes);
    let machine = Machine { processors: 1, ..lab.machine };
    lab.with_machine(machine)
}

#[test]
fn wide_tiles_and_several_of_them_agree_with_plain_loops() {
    for orientation in ORIENTATIONS {
        // Two tiles: 8 rows of 1500 features do not fit into 32 KiB.
        problem([8, 1500, 264], orientation).check(&small(true));
        problem([3, 5000, 75], orientation).check(&small(false));
        problem([1, 1024, 75], orientation).check(&small(true));
        problem([4, 2048, 140], orientation).check(&small(true));
        Problem { element: Element::F16, ..problem([2, 512, 300], orientation) }.check(&small(true));
    }
}

// Small problems of several tiles whose last is not whole; `scripts/mutants.py` runs them on kernels with mistakes. The last output is
// in each place of its group.
const LAST_OUTPUTS: [usize; 4] = [37, 38, 39, 40];

#[test]
fn a_small_problem_by_rows_agrees_with_plain_loops() {
    LAST_OUTPUTS
        .into_iter()
        .for_each(|outputs| problem([8, 1500, outputs], Orientation::OutputInput).check(&small(true)));
}

#[test]
fn a_small_problem_by_columns_agrees_with_plain_loops() {
    LAST_OUTPUTS
        .into_iter()
        .for_each(|outputs| problem([8, 1500, outputs], Orientation::InputOutput).check(&small(true)));
}

#[test]
fn a_small_problem_by_rows_without_planes_agrees_with_plain_loops() {
    LAST_OUTPUTS
        .into_iter()
        .for_each(|outputs| problem([8, 1500, outputs], Orientation::OutputInput).check(&small(false)));
}

#[test]
fn a_small_problem_of_int8_agrees_with_plain_loops() {
    LAST_OUTPUTS.into_iter().for_each(|outputs| int8([8, 2032, outputs], [1, 48]).check(&small(true)));
}

#[test]
fn long_rows_agree_with_plain_loops() {
    for orientation in ORIENTATIONS {
        problem([1, 16387, 3], orientation).check(&lab(true));
        problem([3, 16384, 8], orientation).check(&lab(true));
    }
}

#[test]
fn several_launches_fill_one_output() {
    for orientation in ORIENTATIONS {
        let plain = problem([2, 64, 24], orientation);
        for around in [[0, 40], [24, 16], [3, 1]] {
            Problem { around, ..plain }.check(&lab(true));
        }
    }
}

/// Blocks of int8 in a matrix of this many inputs: whole rows, several rows, parts that do not divide them, one weight.
fn blocks(inputs: usize) -> [[usize; 2]; 6] {
    [[1, inputs], [5, inputs], [1, 16], [3, 4], [2, 999], [1, 1]]
}

#[test]
fn every_size_of_int8_agrees_with_plain_loops() {
    let sizes = [1, 5, 64, 131, 300];
    // Words of 16, 8 and 4 bytes, and bytes.
    for (at, inputs) in some([1, 7, 20, 64, 257, 1000, 1024].into_iter().enumerate()) {
        for (which, blocks) in blocks(inputs).into_iter().enumerate().skip(at % 2).step_by(2) {
            let plain = int8([1 + (at + which) % 3, inputs, sizes[(at + which) % sizes.len()]], blocks);
            let half = Problem { element: Element::F16, pitch: 8, ..plain };
            let bare = Problem { norm: None, bias: false, normed: false, pitch: 1, ..plain };
            [plain, half, bare][(at + which) / 2 % 3].check(&lab(true));
        }
    }
}

#[test]
fn every_number_of_rows_times_int8_agrees_with_plain_loops() {
    for rows in some(1..=MOST_ROWS) {
        let plain = int8([rows, 144, 37], [1, 144]);
        let half = Problem { element: Element::F16, ..int8([rows, 144, 37], [4, 48]) };
        if rows % 2 == 0 { half } else { plain }.check(&lab(rows != 4));
    }
    Problem { element: Element::F16, ..int8([1, 144, 37], [4, 48]) }.check(&lab(true));
    int8([8, 144, 37], [1, 144]).check(&lab(true));
}

#[test]
fn every_norm_before_int8_agrees_with_plain_loops() {
    for (norm, beta) in [(None, false), (Some(NormKind::LayerNorm), false), (Some(NormKind::RmsNorm), true)] {
        let plain = Problem { norm, beta, ..int8([3, 112, 20], [1, 32]) };
        Problem { element: Element::F16, ..plain }.check(&lab(true));
        Problem { parameters: Element::F16, bias: false, normed: false, around: [3, 1], ..plain }.check(&lab(false));
    }
}

#[test]
fn wide_tiles_of_int8_and_several_of_them_agree_with_plain_loops() {
    for wide in [48, 2048] {
        // Several tiles: 8 rows of 1504 features do not fit into 32 KiB.
        int8([8, 1504, 264], [1, wide]).check(&small(true));
        int8([3, 5008, 75], [7, wide]).check(&small(false));
        int8([1, 1024, 75], [1, wide]).check(&small(true));
        Problem { element: Element::F16, ..int8([4, 2048, 140], [16, wide]) }.check(&small(true));
    }
    int8([1, 16387, 3], [1, 16387]).check(&lab(true));
}

#[test]
fn little_shared_memory_takes_narrower_loads_of_int8() {
    let lab = lab(true);
    let machine = Machine { shared_bytes: 4096, ..lab.machine };
    int8([4, 256, 9], [1, 64]).check(&lab.with_machine(machine));
}
