//! Which position encoding a layer has.

use super::rotary::Rotary;

/// The position encoding of a layer, after the configuration was checked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PositionEncoding {
    /// Attention sees no positions (GPT-2, OPT and BERT add them to the embedding).
    None,
    /// Queries and keys are rotated by an angle proportional to the position.
    Rotary(Rotary),
    /// Scores decrease with the distance, by a slope for each head.
    Alibi,
}
