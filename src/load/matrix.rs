//! Matrices and biases of a module, put together from what the files have of them.

use std::slice;

use burn::tensor::{DType, Element, ElementConversion, TensorData};

use super::int8::Blocks;
use super::read::{Fill, Kind, Run, Segment, filled, runs_of_segments};
use super::{Checkpoint, ScaleNames};
use crate::error::WeightError;
use crate::weight::Orientation;

/// Outputs and inputs of a matrix in a file, and where they go. Segments ascend in the file.
#[derive(Clone)]
pub(super) struct Piece<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) matrix: &'a str,
    pub(super) scales: ScaleNames,
    /// How it lies in the file.
    pub(super) orientation: Orientation,
    /// `[out, in]` of the matrix in the file.
    pub(super) shape: [usize; 2],
    pub(super) outputs: Vec<Segment>,
    pub(super) inputs: Vec<Segment>,
}

impl Piece<'_> {
    pub(super) fn is_int8(&self) -> bool {
        self.checkpoint.is_int8(self.matrix)
    }

    pub(super) fn stored_shape(&self) -> [usize; 2] {
        self.orientation.shape(self.shape[1], self.shape[0])
    }

    /// Its runs in the file. Outputs and inputs are so far apart where they go.
    pub(super) fn runs(&self, [output, input]: [usize; 2]) -> impl Iterator<Item = Run> {
        let [_, width] = self.stored_shape();
        match self.orientation {
            Orientation::OutputInput => runs_of_segments(&self.outputs, &self.inputs, width, [output, input]),
            Orientation::InputOutput => runs_of_segments(&self.inputs, &self.outputs, width, [input, output]),
        }
    }

    /// How far apart the elements of a run are where they go.
    pub(super) fn stride(&self, [output, input]: [usize; 2]) -> usize {
        match self.orientation {
            Orientation::OutputInput => input,
            Orientation::InputOutput => output,
        }
    }

    /// The same, as a matrix of its own: its segments lie one behind the other, and begin at 0.
    fn alone(&self) -> (Self, [usize; 2]) {
        let packed = |segments: &[Segment]| {
            let mut end = 0;
            let next = |segment: &Segment| {
                end += segment.len;
                Segment { to: end - segment.len, ..*segment }
            };
            (segments.iter().map(next).collect::<Vec<_>>(), segments.iter().map(|segment| segment.len).sum())
        };
        let ((outputs, rows), (inputs, columns)) = (packed(&self.outputs), packed(&self.inputs));
        (Self { outputs, inputs, ..self.clone() }, [rows, columns])
    }
}

/// A dense matrix of type `dtype`, which lies as `orientation` says. What is int8 in a file becomes dense.
pub(super) fn dense(
    pieces: &[Piece<'_>],
    [outputs, inputs]: [usize; 2],
    orientation: Orientation,
    dtype: DType,
) -> Result<TensorData, WeightError> {
    let steps = match orientation {
        Orientation::OutputInput => [inputs, 1],
        Orientation::InputOutput => [1, outputs],
    };
    let data = filled(Dense { pieces, steps }, orientation.shape(inputs, outputs), dtype)?;
    pieces.iter().for_each(|piece| piece.checkpoint.log_converted(piece.matrix, dtype));
    Ok(data)
}

struct Dense<'a> {
    pieces: &'a [Piece<'a>],
    /// How far apart outputs and inputs are.
    steps: [usize; 2],
}

impl Fill for Dense<'_> {
    fn fill<T: Element>(self, into: &mut [T]) -> Result<(), WeightError> {
        let Self { pieces, steps } = self;
        for piece in pieces {
            if piece.is_int8() {
                let (alone, shape) = piece.alone();
                let blocks = Blocks::read(slice::from_ref(&alone), shape)?;
                for (from, to) in alone.outputs.iter().zip(&piece.outputs) {
                    for output in 0..from.len {
                        let mut weights = blocks.weights(from.to + output);
                        for run in &piece.inputs {
                            let first = (to.to + output) * steps[0] + run.to * steps[1];
                            let places = into[first..].iter_mut().step_by(steps[1]).take(run.len);
                            places.zip(weights.by_ref()).for_each(|(place, weight)| *place = weight.elem());
                        }
                    }
                }
            } else {
                let runs = (piece.runs(steps), piece.stride(steps));
                piece.checkpoint.elements(Kind::Floats, (piece.matrix, &piece.stored_shape()), runs, into)?;
            }
        }
        Ok(())
    }
}

/// Some elements of a bias in a file, and where they go. Segments ascend in the file.
pub(super) struct BiasPiece<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) name: &'a str,
    /// Elements in the file.
    pub(super) size: usize,
    pub(super) segments: Vec<Segment>,
}

/// A bias of type `dtype`.
pub(super) fn bias(pieces: &[BiasPiece<'_>], size: usize, dtype: DType) -> Result<TensorData, WeightError> {
    let data = filled(Bias(pieces), [size], dtype)?;
    pieces.iter().for_each(|piece| piece.checkpoint.log_converted(piece.name, dtype));
    Ok(data)
}

struct Bias<'a>(&'a [BiasPiece<'a>]);

impl Fill for Bias<'_> {
    fn fill<T: Element>(self, into: &mut [T]) -> Result<(), WeightError> {
        for BiasPiece { checkpoint, name, size, segments } in self.0 {
            let runs = segments.iter().map(|segment| Run { start: segment.from, len: segment.len, to: segment.to });
            checkpoint.elements(Kind::Floats, (name, &[*size]), (runs, 1), into)?;
        }
        Ok(())
    }
}
