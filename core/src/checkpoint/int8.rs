//! Matrices that a checkpoint keeps in int8, and the scales that DeepSpeed gives them.

use super::names::ScaleNames;
use super::piece::Piece;
use super::runs::{Run, Segment};
use super::scale_format::ScaleFormat;
use crate::divisor::gcd;
use crate::error::WeightError;
use crate::spelling::nearest;

/// Which scale a weight has: the index that DeepSpeed's `dequantize.cu` computes. See [`ScaleNames`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    /// Parts that the matrix was merged from.
    parts: usize,
    /// Inputs of a part.
    inputs: usize,
    /// Contiguous elements of a part that share a scale.
    length: usize,
}

impl Groups {
    /// Groups of a matrix `[out, in]` with this number of scales; `matrix` is its name.
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

    /// Parts of a matrix with this number of inputs.
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

/// The groups of an int8 matrix and the number of its scales.
struct Scaled<'a> {
    piece: &'a Piece<'a>,
    groups: Groups,
    count: usize,
}

impl<'a> Scaled<'a> {
    fn new(piece: &'a Piece<'a>) -> Result<Self, WeightError> {
        let Piece { checkpoint, matrix, scales, shape, .. } = piece;
        let found = checkpoint.shape(&scales.tensor).ok_or_else(|| {
            let known: Vec<String> = checkpoint.names().filter(|name| name != matrix).map(String::from).collect();
            let nearest = nearest(&scales.tensor, known.iter());
            WeightError::NoScales { matrix: (*matrix).into(), scales: scales.tensor.clone(), nearest }
        });
        let [outputs, inputs] = *shape;
        let count = found.and_then(|found| match (found, checkpoint.scale_format()) {
            ([groups, 3], Some(ScaleFormat::GroupQuantizer)) => Ok(*groups),
            (every, Some(_)) => Ok(every.iter().product()),
            // One row, or a row for each output whose inputs divide into three: both formats have this shape.
            ([1, 3], None) => Err(WeightError::AmbiguousScales(scales.tensor.clone())),
            ([rows, 3], None) if *rows == outputs && inputs.is_multiple_of(3) && scales.merge_count == 0 => {
                Err(WeightError::AmbiguousScales(scales.tensor.clone()))
            }
            ([groups, 3], None) => Ok(*groups),
            (other, None) => Ok(other.iter().product()),
        });
        let groups = |count| Ok((Groups::new(matrix, *shape, scales, count)?, count));
        let (groups, count) = count.and_then(groups).map_err(|error| checkpoint.in_this(error))?;
        Ok(Self { piece, groups, count })
    }

    /// Where the scale changes along the inputs of the assembled matrix.
    fn edges(&self) -> impl Iterator<Item = usize> {
        let width = self.groups.width();
        self.piece.inputs.iter().flat_map(move |&Segment { from, len, to }| {
            let inside = (from / width + 1..(from + len).div_ceil(width)).map(move |block| to + block * width - from);
            std::iter::once(to).chain(inside)
        })
    }
}

/// A matrix `[out, in]` of int8 in which regular blocks share a scale.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockedInt8 {
    /// The elements, output by output.
    pub elements: Vec<i8>,
    /// A scale for each block, row by row: output `o` and input `i` have that of block `[o / blocks[0], i / blocks[1]]`.
    pub scales: Vec<f32>,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Outputs and inputs of a block.
    pub blocks: [usize; 2],
}

impl BlockedInt8 {
    /// The matrix that these pieces make: the same elements, and the largest regular blocks in which every weight keeps its
    /// scale. Blocks follow from the groups and not from the values of the scales.
    pub(super) fn read(pieces: &[Piece<'_>], shape: [usize; 2]) -> Result<Self, WeightError> {
        pieces.iter().try_for_each(Piece::check)?;
        let [outputs, inputs] = shape;
        let mut elements = vec![0i8; outputs * inputs];
        for piece in pieces {
            let runs = (piece.runs([inputs, 1]), piece.stride([inputs, 1]));
            piece.checkpoint.read_int8((piece.matrix, &piece.stored_shape()), runs, &mut elements)?;
            piece.checkpoint.log_loaded(piece.matrix);
        }
        let scaled = pieces.iter().map(Scaled::new).collect::<Result<Vec<_>, _>>()?;
        let wide = scaled.iter().flat_map(Scaled::edges).fold(0, gcd);
        let wide = if wide == 0 { inputs.max(1) } else { wide };
        let across = inputs.div_ceil(wide);
        // Of each output the scales of its blocks, counted through all pieces.
        let (mut ids, mut first) = (vec![0u32; outputs * across], 0);
        for Scaled { piece, groups, count } in &scaled {
            let rows = piece.outputs.iter().flat_map(|rows| (0..rows.len).map(|at| (rows.from + at, rows.to + at)));
            for (from, to) in rows {
                for run in &piece.inputs {
                    for at in (0..run.len).step_by(wide) {
                        let id = first + groups.scale_of(from, run.from + at);
                        ids[to * across + (run.to + at) / wide] = id as u32;
                    }
                }
            }
            first += count;
        }
        let row = |output: usize| &ids[output * across..][..across];
        let tall = (1..outputs).filter(|&output| row(output) != row(output - 1)).fold(0, gcd);
        let tall = if tall == 0 { outputs.max(1) } else { tall };
        let ids: Vec<u32> = (0..outputs).step_by(tall).flat_map(|output| row(output).iter().copied()).collect();
        Ok(Self { elements, scales: scales(&scaled, &ids)?, shape, blocks: [tall, wide] })
    }

    /// The dense weights of an output.
    pub fn weights(&self, output: usize) -> impl Iterator<Item = f32> {
        let ([_, inputs], [tall, wide]) = (self.shape, self.blocks);
        let across = inputs.div_ceil(wide);
        let scales = &self.scales[output / tall * across..][..across];
        let runs = self.elements[output * inputs..][..inputs].chunks(wide);
        scales.iter().zip(runs).flat_map(|(scale, run)| run.iter().map(move |&element| scale * f32::from(element)))
    }
}

/// The scales with these indices, which count through all matrices. No others are read.
fn scales(matrices: &[Scaled<'_>], ids: &[u32]) -> Result<Vec<f32>, WeightError> {
    let mut needed = ids.to_vec();
    needed.sort_unstable();
    needed.dedup();
    let (mut values, mut first) = (vec![0.0f32; needed.len()], 0);
    for Scaled { piece: Piece { checkpoint, scales, .. }, count, .. } in matrices {
        let own = [first, first + count].map(|id| needed.partition_point(|&needed| (needed as usize) < id));
        let runs = (own[0]..own[1]).map(|to| Run { start: needed[to] as usize - first, len: 1, to });
        let shape = checkpoint.shape(&scales.tensor).unwrap_or_default();
        checkpoint.read_floats((&scales.tensor, shape), (runs, 1), &mut values)?;
        checkpoint.log_loaded(&scales.tensor);
        first += count;
    }
    let place = |id: &u32| needed.partition_point(|needed| needed < id);
    Ok(ids.iter().map(|id| values[place(id)]).collect())
}
