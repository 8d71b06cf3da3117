//! Queries, keys and values, laid out as the tiles read them.

use super::ROWS;
use crate::cpu::attention::Attention;
use crate::cpu::scores::Slots;

/// The queries of a task: row `r` is token `r / group` of head `r % group`.
pub(super) struct Queries<'a> {
    pub problem: &'a Attention<'a>,
    pub batch: usize,
    pub first_head: usize,
    pub first_token: usize,
    pub group: usize,
    pub rows: usize,
}

impl Queries<'_> {
    /// Head and token of a row.
    pub fn place(&self, row: usize) -> (usize, usize) {
        (self.first_head + row % self.group, self.first_token + row / self.group)
    }

    /// Tile behind tile, each `[head_dim, ROWS]`, scaled.
    pub fn pack(&self, into: &mut Vec<f32>) {
        let Attention { head_dim, query, scale, .. } = *self.problem;
        into.clear();
        into.resize(self.rows.next_multiple_of(ROWS) * head_dim, 0.0);
        for (tile, packed) in into.chunks_exact_mut(ROWS * head_dim).enumerate() {
            let features: [&[f32]; ROWS] = std::array::from_fn(|row| {
                // Rows that are not there are those of the last one, and nobody reads them.
                let (head, token) = self.place((tile * ROWS + row).min(self.rows - 1));
                query.token(self.batch, head, token, head_dim)
            });
            for (feature, packed) in packed.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
                *packed = std::array::from_fn(|row| features[row][feature] * scale);
            }
        }
    }
}

/// The slots of a block.
pub(super) struct Keys<'a> {
    pub problem: &'a Attention<'a>,
    pub batch: usize,
    pub head: usize,
    /// Keys of a panel.
    pub panel: usize,
    /// Features of a packed value: those of a value, in whole vectors.
    pub width: usize,
    pub first: usize,
    pub last: usize,
}

/// A block of keys, without those that nobody sees.
pub(super) struct Block<'a> {
    /// Panel behind panel, each `[head_dim, panel]`; zeros behind the last key.
    pub keys: &'a [f32],
    /// `[keys, width]`, zeros behind the features.
    pub values: &'a [f32],
    /// Where the values all are finite, a weight of zero hides what a value holds.
    pub finite: bool,
    /// The slot of each key.
    pub slots: Slots<'a>,
    /// The position of each key, for the slopes.
    pub positions: &'a [f32],
    pub panel: usize,
    pub width: usize,
}

/// Side of the squares that are transposed at once.
const SIDE: usize = 8;

/// Writes the features of `SIDE` keys beside each other, those of one feature `stride` behind those of the one before.
#[inline(always)]
fn transpose(keys: [&[f32]; SIDE], into: &mut [f32], stride: usize) {
    let chunks: [&[[f32; SIDE]]; SIDE] = std::array::from_fn(|key| keys[key].as_chunks::<SIDE>().0);
    let count = chunks[0].len();
    for chunk in 0..count {
        let square: [[f32; SIDE]; SIDE] = std::array::from_fn(|key| chunks[key][chunk]);
        for feature in 0..SIDE {
            let column: [f32; SIDE] = std::array::from_fn(|key| square[key][feature]);
            into[(chunk * SIDE + feature) * stride..][..SIDE].copy_from_slice(&column);
        }
    }
    for (key, features) in keys.into_iter().enumerate() {
        let rest = &features[count * SIDE..];
        if !rest.is_empty() {
            spread(rest, &mut into[count * SIDE * stride + key..], stride);
        }
    }
}

/// Writes features `stride` behind each other.
#[inline(always)]
fn spread(features: &[f32], into: &mut [f32], stride: usize) {
    for (place, feature) in into.iter_mut().step_by(stride).zip(features) {
        *place = *feature;
    }
}

impl Keys<'_> {
    /// Packs the block into these vectors, of which only what was left by other blocks is kept.
    #[inline(always)]
    pub fn pack<'s>(
        &self,
        keys: &'s mut Vec<f32>,
        values: &'s mut Vec<f32>,
        kept: &'s mut Vec<usize>,
        positions: &'s mut Vec<f32>,
    ) -> Block<'s> {
        let Attention { head_dim, value_dim, key, value, masks, .. } = *self.problem;
        let slots = match masks.hidden(self.batch) {
            Some(hidden) => {
                kept.clear();
                kept.extend((self.first..self.last).filter(|slot| !hidden[*slot]));
                Slots::Kept(kept)
            }
            None => Slots::From { first: self.first, count: self.last - self.first },
        };
        let count = slots.count();

        // Whatever was there before is overwritten, except behind the last key.
        keys.resize(count.next_multiple_of(self.panel) * head_dim, 0.0);
        for (panel, keys) in keys.chunks_exact_mut(self.panel * head_dim).enumerate() {
            let first = panel * self.panel;
            let present = (count - first).min(self.panel);
            if present < self.panel {
                keys.fill(0.0);
            }
            let token = |at: usize| key.token(self.batch, self.head, slots.slot(first + at), head_dim);
            let whole = present / SIDE * SIDE;
            for at in (0..whole).step_by(SIDE) {
                transpose(std::array::from_fn(|key| token(at + key)), &mut keys[at..], self.panel);
            }
            for at in whole..present {
                spread(token(at), &mut keys[at..], self.panel);
            }
        }

        // 0 · x is 0 for a finite x and NaN for any other.
        let mut products = [0.0f32; 8];
        values.resize(count * self.width, 0.0);
        for (at, packed) in values.chunks_exact_mut(self.width).enumerate() {
            let features = value.token(self.batch, self.head, slots.slot(at), value_dim);
            packed[..value_dim].copy_from_slice(features);
            packed[value_dim..].fill(0.0);
            let (chunks, rest) = features.as_chunks::<8>();
            for chunk in chunks {
                products.iter_mut().zip(chunk).for_each(|(product, value)| *product += value * 0.0);
            }
            rest.iter().for_each(|value| products[0] += value * 0.0);
        }

        if masks.slopes.is_some() {
            positions.clear();
            positions.extend((0..count).map(|at| masks.position(self.batch, slots.slot(at))));
            positions.resize(count.next_multiple_of(self.panel), 0.0);
        }
        Block {
            keys,
            values,
            finite: products.iter().all(|product| *product == 0.0),
            slots,
            positions,
            panel: self.panel,
            width: self.width,
        }
    }
}
