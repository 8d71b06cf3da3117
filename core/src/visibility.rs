//! What a layer hides on its own: later tokens, tokens outside the window, and unused slots of a row.

use std::ops::Range;

use crate::error::check_shape;

/// The keys that each query may see, by slot.
///
/// Both lists have one entry for each row of the batch, or one for all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visibility {
    /// Whether a query sees only itself and the keys before it.
    pub causal: bool,
    /// Keys that a query sees, itself included, counted back from it.
    pub window: Option<usize>,
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

    /// The keys that query `query` of row `row` may see.
    pub fn range(&self, row: usize, query: usize) -> Range<usize> {
        let at = self.starts[row] + query;
        let end = if self.causal { self.ends[row].min(at + 1) } else { self.ends[row] };
        self.window.map_or(0, |window| (at + 1).saturating_sub(window))..end
    }

    /// The number of rows (1 if all are alike), and for each row, query and key whether the key is hidden; `None` if every query
    /// sees every key.
    pub fn hidden_pairs(&self, tokens: usize, keys: usize) -> Option<(usize, Vec<bool>)> {
        let same = |list: &[usize]| list.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = if same(&self.starts) && same(&self.ends) { 1 } else { self.starts.len() };
        let ranges = || (0..rows).flat_map(|row| (0..tokens).map(move |query| self.range(row, query)));
        if ranges().all(|seen| seen.start == 0 && seen.end >= keys) {
            return None;
        }
        Some((rows, ranges().flat_map(|seen| (0..keys).map(move |key| !seen.contains(&key))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_back_from_each_query() {
        let seen = Visibility { causal: true, window: Some(2), starts: vec![0, 3], ends: vec![5, 5] };
        assert_eq!([seen.range(0, 0), seen.range(0, 1), seen.range(1, 1)], [0..1, 0..2, 3..5]);
    }

    #[test]
    fn equal_rows_are_one_and_nothing_hidden_is_none() {
        assert_eq!(Visibility::full(3).hidden_pairs(2, 3), None);
        let causal = Visibility { causal: true, window: None, starts: vec![0, 0], ends: vec![2, 2] };
        assert_eq!(causal.hidden_pairs(2, 2), Some((1, vec![false, true, false, false])));
    }
}
