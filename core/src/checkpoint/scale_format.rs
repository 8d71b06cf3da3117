//! Formats of the scales of int8 matrices.

/// How a checkpoint stores the scales of its int8 matrices, where their shape does not tell; see
/// [`Checkpoint::with_scale_format`](super::Checkpoint::with_scale_format).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Every number is a scale, row by row: `[out, in / group]` of `compressed-tensors` and others.
    EveryNumber,
    /// DeepSpeed's `GroupQuantizer`: `[groups, 3]`, whose first `groups` numbers are the scales.
    GroupQuantizer,
}
