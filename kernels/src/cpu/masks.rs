//! Which keys a query sees and what is added to its scores: one definition for every attention kernel.

use burn_deepspeed_core::visibility::Window;

use crate::contract::{check_broadcast, check_len, product};
use crate::cpu::interval::Interval;

/// Everything that affects a score apart from query and key. Lists by row have one entry for each row of the batch.
#[derive(Debug, Clone, Copy)]
pub struct Masks<'a> {
    /// Whether a query sees only its own slot and those before it.
    pub causal: bool,
    /// The part of the keys that a query sees; `None` for all.
    pub window: Option<Window>,
    /// Slot of each row's first token, for chunks. Default: 0.
    pub origins: Option<&'a [usize]>,
    /// `c` of `c · tanh(score / c)`, before bias and slopes.
    pub softcap: Option<f32>,
    /// Slot of each row's first query among the keys.
    pub starts: &'a [usize],
    /// Keys that each row holds. Slots from there on are never read.
    pub ends: &'a [usize],
    /// Keys that no query sees, `[batch, keys]`; true hides. Every end is at most `keys`.
    pub hidden: Option<&'a [bool]>,
    /// Slope of each query head; `slope · (key position - query position)` is added to a score.
    pub slopes: Option<&'a [f32]>,
    /// Position of each slot for the slopes, `[batch, keys]`. Default: the index of the slot.
    pub positions: Option<&'a [i32]>,
    /// Hidden pairs; true hides.
    pub pairs: Option<Broadcast<'a, bool>>,
    /// What is added to the scores; `-inf` hides.
    pub bias: Option<Broadcast<'a, f32>>,
}

impl<'a> Masks<'a> {
    /// Rows of these sizes, and nothing hidden.
    pub fn full(starts: &'a [usize], ends: &'a [usize]) -> Self {
        Self {
            causal: false,
            window: None,
            origins: None,
            softcap: None,
            starts,
            ends,
            hidden: None,
            slopes: None,
            positions: None,
            pairs: None,
            bias: None,
        }
    }

    /// The slots that new token `token` of a row may see.
    pub(super) fn range(&self, row: usize, token: usize) -> Interval {
        let (at, end) = (self.starts[row] + token, self.ends[row]);
        let last = if self.causal { end.min(at + 1) } else { end };
        let Some(window) = self.window else { return Interval::new(0, last) };
        let seen = window.slots(at, self.origins.map_or(0, |origins| origins[row]));
        let last = last.min(seen.end);
        Interval::new(seen.start.min(last), last)
    }

    /// A row of `hidden`.
    pub(super) fn hidden(&self, row: usize) -> Option<&'a [bool]> {
        self.hidden.map(|all| self.row(all, row))
    }

    /// The position of a slot, for the slopes.
    pub(super) fn position(&self, row: usize, slot: usize) -> f32 {
        match self.positions {
            Some(all) => {
                let positions = self.row(all, row);
                positions[slot.min(positions.len() - 1)] as f32
            }
            None => slot as f32,
        }
    }

    fn row<T>(&self, all: &'a [T], row: usize) -> &'a [T] {
        let keys = all.len() / self.ends.len();
        &all[row * keys..][..keys]
    }

    /// Panics unless the masks have the sizes of a problem with slots for `capacity` keys.
    #[track_caller]
    pub(super) fn check(&self, kernel: &str, batch: usize, heads: usize, tokens: usize, capacity: usize) {
        check_len(kernel, "starts", self.starts.len(), batch);
        check_len(kernel, "ends", self.ends.len(), batch);
        if let Some(origins) = self.origins {
            check_len(kernel, "origins", origins.len(), batch);
        }
        let last = self.ends.iter().copied().max().unwrap_or(0);
        assert!(last <= capacity, "{kernel}: `ends` has {last}, expected at most {capacity}, the slots of `key`");
        let start = self.starts.iter().copied().max().unwrap_or(0);
        assert!(
            start.checked_add(tokens).is_some_and(|end| end < usize::MAX),
            "{kernel}: `starts` has {start}, expected a slot that {tokens} tokens fit after"
        );
        let by_key = [("hidden", self.hidden.map(<[bool]>::len)), ("positions", self.positions.map(<[i32]>::len))];
        for (name, actual) in by_key.into_iter().filter_map(|(name, len)| Some((name, len?))) {
            assert!(
                actual % batch.max(1) == 0 && actual / batch.max(1) >= last,
                "{kernel}: `{name}` has {actual} elements, expected at least {last} for each of {batch} rows"
            );
        }
        if let Some(slopes) = self.slopes {
            check_len(kernel, "slopes", slopes.len(), heads);
        }
        let sizes = [batch, heads, tokens, last];
        if let Some(pairs) = &self.pairs {
            pairs.check(kernel, "pairs", sizes);
        }
        if let Some(bias) = &self.bias {
            bias.check(kernel, "bias", sizes);
        }
    }
}

/// A dense `[B or 1, N or 1, T or 1, S or 1]` tensor; an axis of one element applies to all.
#[derive(Debug, Clone, Copy)]
pub struct Broadcast<'a, T> {
    /// Its elements, row-major.
    pub elements: &'a [T],
    /// Its sizes.
    pub shape: [usize; 4],
}

impl<'a, T> Broadcast<'a, T> {
    /// The elements for the keys of a query: one for each key, or a single one for all of them.
    pub(super) fn keys(&self, row: usize, head: usize, token: usize) -> &'a [T] {
        let [rows, heads, tokens, keys] = self.shape;
        let index = ((row % rows) * heads + head % heads) * tokens + token % tokens;
        &self.elements[index * keys..][..keys]
    }

    /// Panics unless the shape fits these sizes, and the elements the shape.
    #[track_caller]
    fn check(&self, kernel: &str, name: &str, sizes: [usize; 4]) {
        check_broadcast(kernel, name, &sizes, &self.shape);
        check_len(kernel, name, self.elements.len(), product(&self.shape));
    }
}
