//! The positions of new tokens.

use crate::error::AttentionError;

/// The positions of the new tokens of a step, row by row, kept on the host.
///
/// They differ from the cache slots where rows are padded on the left. DeepSpeed takes `position_ids`, but its CUDA kernels
/// never read them; here they rotate queries and keys.
///
/// A token has one id, or three under [sections](super::RotarySections): [`from_axes`](Self::from_axes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Rows. The ids do not tell it where there are no tokens.
    batch: usize,
    tokens: usize,
    /// One for each token: its time, where it has three ids.
    ids: Vec<usize>,
    /// Height and width, where a token has three ids.
    plane: Option<[Vec<usize>; 2]>,
    /// Tokens of the longest sequence, if the caller knows more than the ids tell.
    length: Option<usize>,
}

impl Positions {
    fn plain(batch: usize, tokens: usize, ids: Vec<usize>) -> Self {
        Self { batch, tokens, ids, plane: None, length: None }
    }

    /// Row `b` counts up from `starts[b]`.
    pub fn sequential(starts: &[usize], tokens: usize) -> Self {
        let ids = starts.iter().flat_map(|&start| start..start + tokens).collect();
        Self::plain(starts.len(), tokens, ids)
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
        Ok(Self::plain(batch, tokens, checked("Positions::from_rows", ids, [batch, tokens])?))
    }

    /// Three positions of each token: time, height and width, each row by row, for `batch` rows of `tokens` tokens. Only layers
    /// with [sections](super::RotarySections) take them.
    ///
    /// ```
    /// use burn_deepspeed_core::position::Positions;
    /// // A word, an image of 1 × 2 patches, and a word, which continues after the largest position of the image.
    /// let positions = Positions::from_axes([vec![0, 1, 1, 3], vec![0, 1, 1, 3], vec![0, 1, 2, 3]], [1, 4])?;
    /// assert_eq!((positions.axis(0), positions.axis(2)), (&[0, 1, 1, 3][..], &[0, 1, 2, 3][..]));
    /// # Ok::<_, burn_deepspeed_core::error::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// [`AttentionError::Positions`] for a negative position.
    ///
    /// # Panics
    /// If there is not one position of each kind for each token.
    pub fn from_axes(axes: [Vec<i64>; 3], rows: [usize; 2]) -> Result<Self, AttentionError> {
        let [time, height, width] = axes.map(|ids| checked("Positions::from_axes", ids, rows));
        let [batch, tokens] = rows;
        Ok(Self { plane: Some([height?, width?]), ..Self::plain(batch, tokens, time?) })
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
        Self::plain(real.len().checked_div(keys).unwrap_or(0), tokens, ids)
    }

    /// The same positions, in sequences of up to `length` tokens, those that follow in later steps included. The frequencies of
    /// dynamic scaling and of LongRoPE depend on the length. Set it where a prompt is fed in pieces: each then rotates as the whole
    /// prompt does. A length that the positions exceed changes nothing.
    pub fn with_length(self, length: usize) -> Self {
        Self { length: Some(length), ..self }
    }

    /// Rows of the batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// New tokens of each row.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// All positions, row after row; the times, where a token has three.
    pub fn ids(&self) -> &[usize] {
        &self.ids
    }

    /// The positions on an axis, row after row: 0 for time, 1 for height, 2 for width. They are the same where a token has one.
    ///
    /// # Panics
    /// If there is no such axis.
    pub fn axis(&self, axis: usize) -> &[usize] {
        assert!(axis < 3, "Positions::axis: axis {axis}, expected 0 (time), 1 (height) or 2 (width)");
        match &self.plane {
            Some(plane) if axis > 0 => &plane[axis - 1],
            _ => &self.ids,
        }
    }

    /// Whether each token has three positions.
    pub fn has_axes(&self) -> bool {
        self.plane.is_some()
    }

    /// The largest position, on any axis; `None` without tokens.
    pub fn max(&self) -> Option<usize> {
        (0..3).filter_map(|axis| self.axis(axis).iter().copied().max()).max()
    }

    /// Tokens of the longest sequence: the largest position plus 1, or what [`with_length`](Self::with_length) says, if that is more.
    pub fn length(&self) -> usize {
        let seen = self.max().map_or(0, |last| last.saturating_add(1));
        seen.max(self.length.unwrap_or(0))
    }

    /// What [`with_length`](Self::with_length) said.
    pub fn given_length(&self) -> Option<usize> {
        self.length
    }
}

/// Positions that are not negative, one for each token.
#[track_caller]
fn checked(
    operation: &str,
    ids: impl IntoIterator<Item = i64>,
    [batch, tokens]: [usize; 2],
) -> Result<Vec<usize>, AttentionError> {
    let ids = ids.into_iter().map(|id| {
        usize::try_from(id).map_err(|_| AttentionError::Positions {
            problem: format!("contain {id}; a position is 0 or more (padding may use 0)"),
        })
    });
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let expected = batch.checked_mul(tokens);
    assert!(expected == Some(ids.len()), "{operation}: {} positions, expected {batch} rows of {tokens}", ids.len());
    Ok(ids)
}
