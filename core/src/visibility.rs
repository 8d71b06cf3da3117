//! What a layer hides on its own: later tokens, tokens outside the window, and unused slots of a row.

use std::ops::Range;

use crate::error::check_shape;

/// The part of the keys that a query sees, by slot.
///
/// ```
/// use burn_deepspeed_core::visibility::Window;
/// assert_eq!(Window::Back(3).slots(7, 0), 5..usize::MAX); // 5, 6 and its own, 7; causality hides what follows
/// assert_eq!(Window::Around(2).slots(7, 0), 5..10);
/// assert_eq!(Window::Chunk(4).slots(7, 0), 4..8);
/// assert_eq!(Window::Chunk(4).slots(7, 2), 6..10); // a row whose first two slots are padding
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// This many keys, the query's own included, counted back from it. It does not hide what follows.
    Back(usize),
    /// Those at a distance of at most this, before the query and after it.
    Around(usize),
    /// Those of the query's own chunk of this many slots. Chunks count from the first slot of a row that the mask over keys does not
    /// hide, so padding on the left does not move them, as in `masking_utils.py` of `transformers`.
    Chunk(usize),
}

impl Window {
    /// The slots that a query at slot `at` may see, of a row whose first token is in slot `origin`. Only chunks depend on the origin;
    /// a query before it sees the slots before it.
    pub fn slots(self, at: usize, origin: usize) -> Range<usize> {
        match self {
            Self::Back(keys) => at.saturating_add(1).saturating_sub(keys)..usize::MAX,
            Self::Around(reach) => at.saturating_sub(reach)..at.saturating_add(reach).saturating_add(1),
            Self::Chunk(_) if at < origin => 0..origin,
            Self::Chunk(size) => {
                let size = size.max(1);
                let first = origin + (at - origin) / size * size;
                first..first.saturating_add(size)
            }
        }
    }
}

/// The slot of each row's first token that a mask over keys does not hide, `hidden` with rows of `keys` columns. A row that is hidden
/// altogether has no token, and gets `keys`.
pub fn origins(hidden: &[bool], keys: usize) -> Vec<usize> {
    let rows = hidden.chunks(keys.max(1));
    rows.map(|row| row.iter().take_while(|hidden| **hidden).count()).collect()
}

/// The keys that each query may see, by slot.
///
/// Both lists have one entry for each row of the batch, or one for all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visibility {
    /// Whether a query sees only itself and the keys before it.
    pub causal: bool,
    /// The part of the keys that a query sees; `None` for all.
    pub window: Option<Window>,
    /// The slot of the first query among the keys. Causality is by slot, never inferred from shapes.
    pub starts: Vec<usize>,
    /// Keys that the row holds.
    pub ends: Vec<usize>,
}

impl Visibility {
    /// Every query sees each of `keys` keys.
    pub fn full(keys: usize) -> Self {
        Self { causal: false, window: None, starts: vec![0], ends: vec![keys] }
    }

    /// Panics unless there is an entry for each row, or one for all, and no row ends after its keys.
    #[track_caller]
    pub fn check(&self, operation: &str, batch: usize, keys: usize) {
        let rows = if self.starts.len() == 1 { 1 } else { batch };
        check_shape(operation, "visibility.starts", &[rows], &[self.starts.len()]);
        check_shape(operation, "visibility.ends", &[rows], &[self.ends.len()]);
        for (row, &end) in self.ends.iter().enumerate() {
            assert!(
                end <= keys,
                "{operation}: `visibility.ends` is {end} for row {row}, expected at most the number of keys, {keys}"
            );
        }
    }

    /// Whether what a query sees depends on the [origin](origins) of its row.
    pub fn reads_origins(&self) -> bool {
        matches!(self.window, Some(Window::Chunk(_)))
    }

    /// The keys that query `query` of row `row` may see, if the first token of the row is in slot `origin`.
    pub fn range(&self, row: usize, query: usize, origin: usize) -> Range<usize> {
        let at = self.starts[row] + query;
        let end = if self.causal { self.ends[row].min(at + 1) } else { self.ends[row] };
        self.window.map_or(0..end, |window| {
            let seen = window.slots(at, origin);
            seen.start..seen.end.min(end)
        })
    }

    /// The number of rows (1 if all are alike), and for each row, query and key whether the key is hidden; `None` if every query
    /// sees every key. `origins` are those of the rows; without entries, every row begins at slot 0.
    pub fn hidden_pairs(&self, tokens: usize, keys: usize, origins: &[usize]) -> Option<(usize, Vec<bool>)> {
        let same = |list: &[usize]| list.windows(2).all(|pair| pair[0] == pair[1]);
        let alike = same(&self.starts) && same(&self.ends) && same(origins);
        let rows = if alike { 1 } else { self.starts.len().max(origins.len()) };
        let range = |row: usize, query| {
            let origin = if origins.is_empty() { 0 } else { origins[row % origins.len()] };
            self.range(row % self.starts.len(), query, origin)
        };
        let ranges = || (0..rows).flat_map(|row| (0..tokens).map(move |query| range(row, query)));
        if ranges().all(|seen| seen.start == 0 && seen.end >= keys) {
            return None;
        }
        Some((rows, ranges().flat_map(|seen| (0..keys).map(move |key| !seen.contains(&key))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(causal: bool, window: Window, origin: usize) -> Vec<Range<usize>> {
        let visibility = Visibility { causal, window: Some(window), starts: vec![0], ends: vec![9] };
        (0..9).map(|query| visibility.range(0, query, origin)).collect()
    }

    #[test]
    fn a_window_counts_back_from_each_query() {
        let seen = Visibility { causal: true, window: Some(Window::Back(2)), starts: vec![0, 3], ends: vec![5, 5] };
        assert_eq!([seen.range(0, 0, 0), seen.range(0, 1, 0), seen.range(1, 1, 0)], [0..1, 0..2, 3..5]);
    }

    #[test]
    fn a_symmetric_window_reaches_as_far_to_both_sides() {
        let expected = [0..3, 0..4, 0..5, 1..6, 2..7, 3..8, 4..9, 5..9, 6..9];
        assert_eq!(seen(false, Window::Around(2), 0), expected);
        assert_eq!(seen(false, Window::Around(usize::MAX), 3), vec![0..9; 9]);
        assert_eq!(seen(true, Window::Around(1), 0), seen(true, Window::Back(2), 0));
    }

    #[test]
    fn chunks_count_from_the_first_token_of_a_row() {
        assert_eq!(seen(true, Window::Chunk(4), 0), [0..1, 0..2, 0..3, 0..4, 4..5, 4..6, 4..7, 4..8, 8..9]);
        // The slots before the origin are padding, which a mask hides.
        assert_eq!(seen(true, Window::Chunk(4), 3), [0..1, 0..2, 0..3, 3..4, 3..5, 3..6, 3..7, 7..8, 7..9]);
        assert_eq!(seen(false, Window::Chunk(4), 0)[5], 4..8);
        let hidden = [true, true, false, true, false, false, false, false, true, true, true, true];
        assert_eq!(origins(&hidden, 4), [2, 0, 4]);
    }

    #[test]
    fn equal_rows_are_one_and_nothing_hidden_is_none() {
        assert_eq!(Visibility::full(3).hidden_pairs(2, 3, &[]), None);
        let causal = Visibility { causal: true, window: None, starts: vec![0, 0], ends: vec![2, 2] };
        assert_eq!(causal.hidden_pairs(2, 2, &[]), Some((1, vec![false, true, false, false])));
        let chunks = Visibility { causal: true, window: Some(Window::Chunk(1)), starts: vec![0], ends: vec![2] };
        assert_eq!(chunks.hidden_pairs(2, 2, &[]), Some((1, vec![false, true, true, false])));
        assert_eq!(chunks.hidden_pairs(1, 2, &[0, 0]), Some((1, vec![false, true])));
        let pairs = Visibility { starts: vec![1], window: Some(Window::Chunk(2)), ..chunks };
        assert_eq!(pairs.hidden_pairs(1, 2, &[0, 1]), Some((2, vec![false, false, true, false])));
    }
}
