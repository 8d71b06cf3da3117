//! Matrices that a checkpoint keeps in int8, and the scales that DeepSpeed gives them.

use std::ops::Range;
use std::rc::Rc;

use burn::tensor::{DType, TensorData, backend::Backend};

use super::{Checkpoint, ScaleNames};
use crate::config::nearest;
use crate::error::{ConfigError, WeightError};
use crate::weight::{Int8Matrix, Orientation};

/// Which scale a weight has: the index that DeepSpeed's `dequantize.cu` computes. See [`ScaleNames`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    /// Parts that the matrix was merged from.
    parts: usize,
    /// Inputs of a part.
    inputs: usize,
    /// Elements of a part that share a scale, one behind the other.
    length: usize,
}

impl Groups {
    /// Groups of a matrix `[out, in]` with so many scales; `matrix` is its name.
    pub(super) fn new(
        matrix: &str,
        [outputs, inputs]: [usize; 2],
        names: &ScaleNames,
        scales: usize,
    ) -> Result<Self, WeightError> {
        let parts = Self::parts(matrix, inputs, names.merge_count)?;
        let (elements, groups) = (outputs * inputs / parts, scales / parts);
        if groups == 0 || !scales.is_multiple_of(parts) || !elements.is_multiple_of(groups) {
            let (matrix, scales, found) = (matrix.into(), names.tensor.clone(), scales);
            return Err(WeightError::ScaleCount { matrix, scales, found, outputs, inputs, parts });
        }
        Ok(Self { parts, inputs: inputs / parts, length: elements / groups })
    }

    /// Parts of a matrix with so many inputs.
    pub(super) fn parts(matrix: &str, inputs: usize, merge_count: u32) -> Result<usize, WeightError> {
        let parts = 1usize.checked_shl(merge_count).filter(|&parts| inputs > 0 && inputs.is_multiple_of(parts));
        parts.ok_or_else(|| WeightError::MergeCount { matrix: matrix.into(), inputs, merge_count })
    }

    pub(super) fn scale_of(&self, output: usize, input: usize) -> usize {
        let place = output * self.inputs + input % self.inputs;
        place / self.length * self.parts + input / self.inputs
    }

    /// Inputs of the widest regular blocks that have one scale for each output.
    fn width(&self) -> usize {
        gcd(self.length, self.inputs)
    }
}

/// A matrix of int8 as it stands in a checkpoint.
pub(super) struct Int8Tensor<'a> {
    bytes: &'a [u8],
    orientation: Orientation,
    shape: [usize; 2],
    scales: Vec<f32>,
    groups: Groups,
}

impl<'a> Int8Tensor<'a> {
    /// Reads a matrix from `input` to `output` features, which becomes one of type `to`.
    pub(super) fn read(
        checkpoint: &'a Checkpoint,
        orientation: Orientation,
        (matrix, names): (&str, &ScaleNames),
        [outputs, inputs]: [usize; 2],
        to: DType,
    ) -> Result<Self, WeightError> {
        let bytes = checkpoint.int8(matrix, orientation.shape(inputs, outputs), to)?;
        if !checkpoint.contains(&names.tensor) {
            let known: Vec<String> = checkpoint.names().filter(|name| *name != matrix).map(String::from).collect();
            let nearest = nearest(&names.tensor, known.iter());
            return Err(WeightError::NoScales { matrix: matrix.into(), scales: names.tensor.clone(), nearest });
        }
        let (mut scales, shape) = checkpoint.numbers(&names.tensor)?;
        match shape {
            [1, 3] => return Err(WeightError::AmbiguousScales(names.tensor.clone())),
            [groups, 3] => scales.truncate(*groups),
            _ => {}
        }
        let groups = Groups::new(matrix, [outputs, inputs], names, scales.len())?;
        Ok(Self { bytes, orientation, shape: [outputs, inputs], scales, groups })
    }

    /// All of it.
    pub(super) fn whole(self) -> Int8Part<'a> {
        let [outputs, inputs] = self.shape;
        Int8Part { tensor: Rc::new(self), outputs: (0..outputs).collect(), inputs: 0..inputs }
    }
}

/// Some outputs of a matrix in a checkpoint, in any order, and a run of its inputs.
#[derive(Clone)]
pub(super) struct Int8Part<'a> {
    tensor: Rc<Int8Tensor<'a>>,
    outputs: Vec<usize>,
    inputs: Range<usize>,
}

impl Int8Part<'_> {
    /// These of the outputs.
    pub(super) fn outputs(&self, rows: &[usize]) -> Self {
        Self { outputs: rows.iter().map(|&row| self.outputs[row]).collect(), ..self.clone() }
    }

    /// The inputs `start..start + len`.
    pub(super) fn inputs(&self, start: usize, len: usize) -> Self {
        let first = self.inputs.start + start;
        Self { inputs: first..first + len, ..self.clone() }
    }

    /// Inputs of the widest regular blocks, counted from the first input of this part; `None` if one block holds them all.
    fn width(&self) -> Option<usize> {
        let (width, Range { start, end }) = (self.tensor.groups.width(), self.inputs.clone());
        (start / width != end.saturating_sub(1) / width).then(|| gcd(start, width))
    }

    fn write_elements(&self, into: &mut Vec<i8>) {
        let ([outputs, inputs], bytes) = (self.tensor.shape, self.tensor.bytes);
        for output in &self.outputs {
            match self.tensor.orientation {
                Orientation::OutputInput => {
                    let run = &bytes[output * inputs..][self.inputs.clone()];
                    into.extend(run.iter().map(|&byte| byte as i8));
                }
                Orientation::InputOutput => {
                    into.extend(self.inputs.clone().map(|input| bytes[input * outputs + output] as i8));
                }
            }
        }
    }
}

/// Elements `[out, in]` and the scales of their blocks, as [`Int8Matrix`] has them.
pub(super) struct Blocks {
    elements: Vec<i8>,
    scales: Vec<f32>,
    shape: [usize; 2],
    blocks: [usize; 2],
}

impl Blocks {
    /// Parts with as many inputs, one behind the other: the same elements, and the largest regular blocks in which every
    /// weight keeps its scale. Blocks follow from the groups and not from the values of the scales.
    pub(super) fn stacked(parts: &[Int8Part<'_>]) -> Self {
        let inputs = parts[0].inputs.len();
        let wide = parts.iter().filter_map(Int8Part::width).reduce(gcd).unwrap_or(inputs).max(1);
        // Of each output its part and its scales, by index.
        let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
        for (index, Int8Part { tensor, outputs, inputs }) in parts.iter().enumerate() {
            rows.extend(outputs.iter().map(|&output| {
                let firsts = inputs.clone().step_by(wide);
                (index, firsts.map(|input| tensor.groups.scale_of(output, input)).collect())
            }));
        }
        let tall = (1..rows.len()).filter(|&row| rows[row] != rows[row - 1]).reduce(gcd).unwrap_or(rows.len()).max(1);
        let mut scales = Vec::new();
        for (index, row) in rows.iter().step_by(tall) {
            scales.extend(row.iter().map(|&at| parts[*index].tensor.scales[at]));
        }
        let mut elements = Vec::with_capacity(rows.len() * inputs);
        for part in parts {
            part.write_elements(&mut elements);
        }
        Self { elements, scales, shape: [rows.len(), inputs], blocks: [tall, wide] }
    }

    /// The matrix; products with it are of `dtype`.
    pub(super) fn int8<B: Backend>(self, dtype: DType, device: &B::Device) -> Result<Int8Matrix<B>, ConfigError> {
        Int8Matrix::from_blocks(self.elements, self.scales, self.shape, self.blocks, dtype, device)
    }

    /// What the elements stand for, in `dtype`.
    pub(super) fn dense(self, dtype: DType) -> TensorData {
        let ([_, inputs], [tall, wide]) = (self.shape, self.blocks);
        let across = inputs.div_ceil(wide);
        let mut values = Vec::with_capacity(self.elements.len());
        for (output, row) in self.elements.chunks(inputs.max(1)).enumerate() {
            let scales = &self.scales[output / tall * across..][..across];
            for (scale, run) in scales.iter().zip(row.chunks(wide)) {
                values.extend(run.iter().map(|&element| scale * f32::from(element)));
            }
        }
        TensorData::new(values, self.shape).convert_dtype(dtype)
    }
}

/// The greatest common divisor; of 0 and a number, the number.
pub(super) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
