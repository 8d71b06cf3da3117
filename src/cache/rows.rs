//! Which slots a step writes.

/// Which slots the new tokens of a step take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRows {
    starts: Vec<usize>,
    new: Vec<usize>,
    width: usize,
}

impl StepRows {
    pub(super) fn new(starts: Vec<usize>, new: Vec<usize>, width: usize) -> Self {
        Self { starts, new, width }
    }

    /// Number of rows.
    pub(super) fn batch(&self) -> usize {
        self.starts.len()
    }

    /// The slot of each row's first new token.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Number of new tokens of each row.
    pub fn new_tokens(&self) -> &[usize] {
        &self.new
    }

    /// T: columns of the step's input.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of tokens of each row after the step.
    pub fn ends(&self) -> Vec<usize> {
        self.starts.iter().zip(&self.new).map(|(start, new)| start + new).collect()
    }

    /// S: number of keys of the longest row after the step.
    pub fn keys(&self) -> usize {
        self.ends().into_iter().max().unwrap_or(0)
    }

    /// The first new slot, if it is the same in every row and every row fills the width.
    pub(super) fn uniform_start(&self) -> Option<usize> {
        let first = *self.starts.first()?;
        let even = self.starts.iter().all(|&start| start == first) && self.new.iter().all(|&new| new == self.width);
        even.then_some(first)
    }
}
