//! A projection of a module, and the parts of it that the files hold.

use std::ops::Range;

use super::block_rows;
use super::files::Checkpoint;
use super::float::Floats;
use super::int8::BlockedInt8;
use super::matrix;
use super::names::WeightNames;
use super::piece::{BiasPiece, Piece};
use super::replicated;
use super::runs::Segment;
use crate::block::{BlockFormat, BlockRows};
use crate::element::ElementType;
use crate::error::WeightError;
use crate::layout::Orientation;

/// Which part of a projection one rank holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightPart {
    /// All of it.
    Whole,
    /// Some of its outputs, with their elements of the bias.
    Outputs {
        /// The outputs of this rank.
        own: Range<usize>,
        /// All outputs.
        all: usize,
    },
    /// Some of its inputs, with the whole bias.
    Inputs {
        /// The inputs of this rank.
        own: Range<usize>,
        /// All inputs.
        all: usize,
    },
}

/// Where the files hold a projection of a module, or of the part of it on one rank.
#[derive(Debug, Clone)]
pub struct ProjectionParts<'a> {
    pub(super) matrix: Vec<Piece<'a>>,
    pub(super) bias: BiasParts<'a>,
    /// What to set if the files have a bias and the module has none.
    pub(super) bias_remedy: &'static str,
}

#[derive(Debug, Clone)]
pub(super) enum BiasParts<'a> {
    /// Cut like the outputs of the matrix.
    Cut(Vec<BiasPiece<'a>>),
    /// Whole, and the same in every file.
    Replicated(&'a [Checkpoint], &'a str),
}

impl<'a> ProjectionParts<'a> {
    /// A part of a projection of one checkpoint. `shape` is `[out, in]` of the part, `orientation` how the file stores the matrix.
    pub fn of(
        checkpoint: &'a Checkpoint,
        names: &'a WeightNames,
        orientation: Orientation,
        shape: [usize; 2],
        part: &WeightPart,
    ) -> Self {
        let [outputs, inputs] = shape.map(Segment::whole);
        let cut = |own: &Range<usize>| Segment { from: own.start, len: own.len(), to: 0 };
        let (shape, outputs, inputs) = match part {
            WeightPart::Whole => (shape, outputs, inputs),
            WeightPart::Outputs { own, all } => ([*all, shape[1]], cut(own), inputs),
            WeightPart::Inputs { own, all } => ([shape[0], *all], outputs, cut(own)),
        };
        let bias = BiasPiece { checkpoint, name: &names.bias, size: shape[0], segments: vec![outputs] };
        let matrix = Piece {
            checkpoint,
            matrix: &names.matrix,
            scales: names.scales.clone(),
            orientation,
            shape,
            outputs: vec![outputs],
            inputs: vec![inputs],
        };
        let bias_remedy = "build the projection with a bias";
        Self { matrix: vec![matrix], bias: BiasParts::Cut(vec![bias]), bias_remedy }
    }

    /// Whether the files hold all of the matrix in int8.
    pub fn is_int8(&self) -> bool {
        self.matrix.iter().all(Piece::is_int8)
    }

    /// The matrix, `[out, in]` of this shape, in int8.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn int8(&self, shape: [usize; 2]) -> Result<BlockedInt8, WeightError> {
        BlockedInt8::read(&self.matrix, shape)
    }

    /// The matrix, `[out, in]` of this shape, with each row in the format that its file has. With `wanted`, floats are rounded to that
    /// format. Rows become f32, or `wanted`, where they are in int8 or f64, and where a block is cut.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor; [`WeightError::BlocksDoNotDivide`] if rows are no whole number of the wanted blocks.
    pub fn blocks(&self, shape: [usize; 2], wanted: Option<BlockFormat>) -> Result<BlockRows, WeightError> {
        block_rows::read(&self.matrix, shape, wanted)
    }

    /// The matrix, `[out, in]` of this shape, stored as `orientation` says; int8 becomes dense.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn dense(
        &self,
        shape: [usize; 2],
        orientation: Orientation,
        element: ElementType,
    ) -> Result<Floats, WeightError> {
        matrix::dense(&self.matrix, shape, orientation, element)
    }

    /// The bias of this size, if the module has one.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor; [`WeightError::Unexpected`] if the files have a bias and the module has none.
    pub fn bias(&self, size: usize, wanted: bool, element: ElementType) -> Result<Option<Floats>, WeightError> {
        match (&self.bias, wanted) {
            (BiasParts::Cut(pieces), true) => matrix::bias(pieces, size, element).map(Some),
            (BiasParts::Cut(pieces), false) => {
                let refuse = |piece: &BiasPiece<'_>| {
                    replicated::refuse(std::slice::from_ref(piece.checkpoint), piece.name, self.bias_remedy)
                };
                pieces.iter().try_for_each(refuse).map(|()| None)
            }
            (BiasParts::Replicated(files, name), true) => replicated::vector(files, name, size, element).map(Some),
            (BiasParts::Replicated(files, name), false) => {
                replicated::refuse(files, name, self.bias_remedy).map(|()| None)
            }
        }
    }
}
