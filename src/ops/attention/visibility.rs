//! Which keys a query may see by the rules of the layer.

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};

use crate::error::check_shape;

/// What a layer hides on its own: later tokens, tokens outside the window, and unused slots of a row.
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
    pub(crate) fn check(&self, operation: &str, batch: usize, keys: usize) {
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
    fn range(&self, row: usize, query: usize) -> std::ops::Range<usize> {
        let at = self.starts[row] + query;
        let end = if self.causal { self.ends[row].min(at + 1) } else { self.ends[row] };
        self.window.map_or(0, |window| (at + 1).saturating_sub(window))..end
    }

    /// The hidden pairs, true hides: `[B or 1, 1, T, S]`; `None` if every query sees every key.
    pub fn hidden<B: Backend>(&self, tokens: usize, keys: usize, device: &B::Device) -> Option<Tensor<B, 4, Bool>> {
        let same = |list: &[usize]| list.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = if same(&self.starts) && same(&self.ends) { 1 } else { self.starts.len() };
        let ranges = || (0..rows).flat_map(|row| (0..tokens).map(move |query| self.range(row, query)));
        if ranges().all(|seen| seen.start == 0 && seen.end >= keys) {
            return None;
        }
        let pairs: Vec<bool> = ranges().flat_map(|seen| (0..keys).map(move |key| !seen.contains(&key))).collect();
        Some(Tensor::from_data(TensorData::new(pairs, [rows, 1, tokens, keys]), device))
    }
}
