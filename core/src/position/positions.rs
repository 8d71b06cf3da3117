//! The positions of new tokens.

use crate::error::AttentionError;

/// The positions of the new tokens of a step, row by row, kept on the host.
///
/// They differ from the cache slots where rows are padded on the left. DeepSpeed takes `position_ids`, but its CUDA kernels
/// never read them; here they rotate queries and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Rows. The ids do not tell it where there are no tokens.
    batch: usize,
    tokens: usize,
    ids: Vec<usize>,
}

impl Positions {
    /// Row `b` counts up from `starts[b]`.
    pub fn sequential(starts: &[usize], tokens: usize) -> Self {
        let ids = starts.iter().flat_map(|&start| start..start + tokens).collect();
        Self { batch: starts.len(), tokens, ids }
    }

    /// Positions given by the caller, row by row, for rows of `tokens` tokens. Without tokens there are no rows; see
    /// [`from_rows`](Self::from_rows).
    ///
    /// # Errors
    /// [`AttentionError::Positions`] for a negative position.
    ///
    /// # Panics
    /// If the list is not a whole number of rows.
    pub fn from_ids(ids: impl IntoIterator<Item = i64>, tokens: usize) -> Result<Self, AttentionError> {
        let ids: Vec<i64> = ids.into_iter().collect();
        let whole = ids.is_empty() || (tokens > 0 && ids.len().is_multiple_of(tokens));
        assert!(whole, "Positions::from_ids: {} positions, expected a multiple of {tokens}", ids.len());
        let batch = ids.len().checked_div(tokens).unwrap_or(0);
        Self::from_rows(ids, [batch, tokens])
    }

    /// Positions given by the caller, row by row, for `batch` rows of `tokens` tokens.
    ///
    /// # Errors
    /// [`AttentionError::Positions`] for a negative position.
    ///
    /// # Panics
    /// If there is not one position for each token.
    pub fn from_rows(ids: impl IntoIterator<Item = i64>, [batch, tokens]: [usize; 2]) -> Result<Self, AttentionError> {
        let ids = ids.into_iter().map(|id| {
            usize::try_from(id).map_err(|_| AttentionError::Positions {
                problem: format!("contain {id}; a position is 0 or more (padding may use 0)"),
            })
        });
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let expected = batch.checked_mul(tokens);
        assert!(
            expected == Some(ids.len()),
            "Positions::from_rows: {} positions, expected {batch} rows of {tokens}",
            ids.len()
        );
        Ok(Self { batch, tokens, ids })
    }

    /// The positions of the last `tokens` columns of a padding mask with rows of `keys` columns, true for a real token. The
    /// position of a token is the number of real tokens before it; padding gets 0 on the left, and on the right the position
    /// of the last real token.
    ///
    /// # Panics
    /// If the mask has fewer columns than `tokens`, or is not a whole number of rows.
    pub fn from_real_tokens(real: &[bool], keys: usize, tokens: usize) -> Self {
        assert!(tokens <= keys, "Positions::from_padding_mask: {tokens} new tokens in a mask of {keys} columns");
        let whole = real.is_empty() || (keys > 0 && real.len().is_multiple_of(keys));
        assert!(whole, "Positions::from_padding_mask: {} entries, expected a multiple of {keys}", real.len());
        let mut ids = Vec::new();
        for row in real.chunks(keys.max(1)) {
            let mut before = 0usize;
            for (slot, &real) in row.iter().enumerate() {
                before += usize::from(real);
                if slot >= keys - tokens {
                    ids.push(before.saturating_sub(1));
                }
            }
        }
        Self { batch: real.len().checked_div(keys).unwrap_or(0), tokens, ids }
    }

    /// Rows of the batch.
    pub fn batch(&self) -> usize {
        self.batch
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
