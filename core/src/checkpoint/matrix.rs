//! Dense matrices and biases of a module, assembled from the pieces in the files.

use std::slice;

use super::float::{Fill, Float, Floats};
use super::int8::BlockedInt8;
use super::piece::{BiasPiece, Piece};
use crate::element::ElementType;
use crate::error::WeightError;
use crate::layout::Orientation;

/// A dense matrix of type `element`, stored as `orientation` says. Pieces that are int8 become dense.
pub(super) fn dense(
    pieces: &[Piece<'_>],
    [outputs, inputs]: [usize; 2],
    orientation: Orientation,
    element: ElementType,
) -> Result<Floats, WeightError> {
    pieces.iter().try_for_each(Piece::check)?;
    let steps = match orientation {
        Orientation::OutputInput => [inputs, 1],
        Orientation::InputOutput => [1, outputs],
    };
    let values = Floats::filled(Dense { pieces, steps }, outputs * inputs, element)?;
    pieces.iter().for_each(|piece| piece.checkpoint.log_converted(piece.matrix, element));
    Ok(values)
}

struct Dense<'a> {
    pieces: &'a [Piece<'a>],
    /// Distances between outputs and between inputs.
    steps: [usize; 2],
}

impl Fill for Dense<'_> {
    type Error = WeightError;

    fn fill<T: Float>(self, into: &mut [T]) -> Result<(), WeightError> {
        let Self { pieces, steps } = self;
        for piece in pieces {
            if piece.is_int8() {
                let (alone, shape) = piece.alone();
                let blocks = BlockedInt8::read(slice::from_ref(&alone), shape)?;
                for (from, to) in alone.outputs.iter().zip(&piece.outputs) {
                    for output in 0..from.len {
                        let mut weights = blocks.weights(from.to + output);
                        for run in &piece.inputs {
                            let first = (to.to + output) * steps[0] + run.to * steps[1];
                            let places = into[first..].iter_mut().step_by(steps[1]).take(run.len);
                            places.zip(weights.by_ref()).for_each(|(place, weight)| *place = T::from_f32(weight));
                        }
                    }
                }
            } else {
                let runs = (piece.runs(steps), piece.stride(steps));
                piece.checkpoint.read_floats((piece.matrix, &piece.stored_shape()), runs, into)?;
            }
        }
        Ok(())
    }
}

/// A bias of type `element`.
pub(super) fn bias(pieces: &[BiasPiece<'_>], size: usize, element: ElementType) -> Result<Floats, WeightError> {
    pieces.iter().try_for_each(BiasPiece::check)?;
    let values = Floats::filled(Bias(pieces), size, element)?;
    pieces.iter().for_each(|piece| piece.checkpoint.log_converted(piece.name, element));
    Ok(values)
}

struct Bias<'a>(&'a [BiasPiece<'a>]);

impl Fill for Bias<'_> {
    type Error = WeightError;

    fn fill<T: Float>(self, into: &mut [T]) -> Result<(), WeightError> {
        self.0
            .iter()
            .try_for_each(|piece| piece.checkpoint.read_floats((piece.name, &[piece.size]), (piece.runs(), 1), into))
    }
}
