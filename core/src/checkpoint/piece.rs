//! The part of a stored matrix or bias that a module needs, and where it goes.

use super::files::Checkpoint;
use super::names::ScaleNames;
use super::runs::{self, Run, Segment};
use crate::error::WeightError;
use crate::layout::Orientation;

/// Outputs and inputs of a matrix in a file, and where they go. Segments ascend in the file.
#[derive(Debug, Clone)]
pub(super) struct Piece<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) matrix: &'a str,
    pub(super) scales: ScaleNames,
    /// How the file stores it.
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

    /// An error unless the file holds a matrix of this shape.
    pub(super) fn check(&self) -> Result<(), WeightError> {
        self.checkpoint.check_shape(self.matrix, &self.stored_shape())
    }

    /// Its runs in the file. `output` and `input` are the distances between outputs and between inputs in the destination.
    pub(super) fn runs(&self, [output, input]: [usize; 2]) -> impl Iterator<Item = Run> {
        let [_, width] = self.stored_shape();
        match self.orientation {
            Orientation::OutputInput => runs::of_segments(&self.outputs, &self.inputs, width, [output, input]),
            Orientation::InputOutput => runs::of_segments(&self.inputs, &self.outputs, width, [input, output]),
        }
    }

    /// The distance between the elements of a run in the destination.
    pub(super) fn stride(&self, [output, input]: [usize; 2]) -> usize {
        match self.orientation {
            Orientation::OutputInput => input,
            Orientation::InputOutput => output,
        }
    }

    /// The same piece as a separate matrix: its segments are contiguous and start at 0.
    pub(super) fn alone(&self) -> (Self, [usize; 2]) {
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

/// Elements of a bias in a file, and where they go. Segments ascend in the file.
#[derive(Debug, Clone)]
pub(super) struct BiasPiece<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) name: &'a str,
    /// Elements in the file.
    pub(super) size: usize,
    pub(super) segments: Vec<Segment>,
}

impl BiasPiece<'_> {
    /// An error unless the file holds a bias of this size.
    pub(super) fn check(&self) -> Result<(), WeightError> {
        self.checkpoint.check_shape(self.name, &[self.size])
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = Run> {
        self.segments.iter().map(|segment| Run { start: segment.from, len: segment.len, to: segment.to })
    }
}
