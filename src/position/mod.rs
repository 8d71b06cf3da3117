//! How a token's position enters attention: rotary angles, ALiBi, or not at all.

pub mod alibi;
pub mod rotary;

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::error::AttentionError;
use rotary::Rotary;

/// The position encoding of a layer, after the configuration was checked.
#[derive(Debug, Clone, PartialEq)]
pub enum PositionEncoding {
    /// Attention sees no positions (GPT-2, OPT and BERT add them to the embedding).
    None,
    /// Queries and keys turn by an angle that grows with the position.
    Rotary(Rotary),
    /// Scores fall with the distance, by a slope of each head's own.
    Alibi,
}

/// The positions of the new tokens of a step, row by row, kept on the host.
///
/// They differ from the cache slots where rows are padded on the left. DeepSpeed takes `position_ids` and its
/// CUDA kernels never read them; here they turn queries and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    tokens: usize,
    ids: Vec<usize>,
}

impl Positions {
    /// Row `b` counts up from `starts[b]`.
    pub fn sequential(starts: &[usize], tokens: usize) -> Self {
        let ids = starts.iter().flat_map(|&start| start..start + tokens).collect();
        Self { tokens, ids }
    }

    /// Positions given by the caller, `[B, T]`. Reads the tensor back from its device.
    ///
    /// # Errors
    /// [`AttentionError::Positions`] for a negative position.
    pub fn from_tensor<B: Backend>(ids: Tensor<B, 2, Int>) -> Result<Self, AttentionError> {
        let [_, tokens] = ids.dims();
        let ids = ids
            .into_data()
            .iter::<i64>()
            .map(|id| {
                usize::try_from(id).map_err(|_| AttentionError::Positions {
                    problem: format!("contain {id}; a position is 0 or more (padding may use 0)"),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { tokens, ids })
    }

    /// The positions of the last `tokens` columns of a padding mask `[B, S]` (1 = a real token): a token's position is
    /// the number of real tokens before it, and padding stands at 0.
    pub fn from_padding_mask<B: Backend>(mask: Tensor<B, 2, Int>, tokens: usize) -> Self {
        let [batch, keys] = mask.dims();
        assert!(tokens <= keys, "Positions::from_padding_mask: {tokens} new tokens in a mask of {keys} columns");
        let mask: Vec<i64> = mask.into_data().iter().collect();
        let mut ids = Vec::with_capacity(batch * tokens);
        for row in mask.chunks(keys.max(1)) {
            let mut real = 0usize;
            for (slot, &keep) in row.iter().enumerate() {
                real += usize::from(keep != 0);
                if slot >= keys - tokens {
                    ids.push(real.saturating_sub(1));
                }
            }
        }
        Self { tokens, ids }
    }

    /// Rows of the batch.
    pub fn batch(&self) -> usize {
        self.ids.len().checked_div(self.tokens).unwrap_or(0)
    }

    /// New tokens of each row.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// All positions, row after row.
    pub fn ids(&self) -> &[usize] {
        &self.ids
    }

    /// The largest position; `None` without tokens.
    pub fn max(&self) -> Option<usize> {
        self.ids.iter().copied().max()
    }
}
