//! A block of keys and values, one row behind the other.

use crate::cpu::attention::{Attention, Cached};
use crate::cpu::scores::Slots;

/// The slots of a block.
pub(super) struct Keys<'a> {
    pub problem: &'a Attention<'a>,
    pub batch: usize,
    pub head: usize,
    pub first: usize,
    pub last: usize,
}

/// Memory for a block.
#[derive(Default)]
pub(super) struct Room {
    keys: Vec<f32>,
    values: Vec<f32>,
    slots: Vec<usize>,
    positions: Vec<f32>,
}

/// Keys and values without those that nobody sees.
pub(super) struct Block<'a> {
    /// `[keys, head_dim]`.
    pub keys: &'a [f32],
    /// `[keys, value_dim]`.
    pub values: &'a [f32],
    /// Where the values all are finite, a weight of zero hides what a value holds.
    pub finite: bool,
    /// The slot of each key.
    pub slots: Slots<'a>,
    /// The position of each key, for the slopes.
    pub positions: &'a [f32],
}

impl Keys<'_> {
    /// The block where it lies, or copied together.
    #[inline(always)]
    pub fn gather<'r>(&'r self, room: &'r mut Room) -> Block<'r> {
        let Attention { head_dim, value_dim, key, value, masks, .. } = *self.problem;
        let slots = match masks.hidden(self.batch) {
            Some(hidden) => {
                room.slots.clear();
                room.slots.extend((self.first..self.last).filter(|slot| !hidden[*slot]));
                Slots::Kept(&room.slots)
            }
            None => Slots::From { first: self.first, count: self.last - self.first },
        };
        if masks.slopes.is_some() {
            room.positions.clear();
            room.positions.extend((0..slots.count()).map(|at| masks.position(self.batch, slots.slot(at))));
        }
        let values = self.rows(&value, value_dim, slots, &mut room.values);
        Block {
            keys: self.rows(&key, head_dim, slots, &mut room.keys),
            values,
            finite: finite(values),
            slots,
            positions: &room.positions,
        }
    }

    /// The rows of these slots.
    #[inline(always)]
    fn rows<'r>(&'r self, from: &Cached<'r>, features: usize, slots: Slots<'_>, room: &'r mut Vec<f32>) -> &'r [f32] {
        let count = slots.count();
        match (from, slots) {
            // Rows with gaps are copied: with the same address modulo a page they would drive each other out of the cache.
            (Cached::F32(from), Slots::From { first, .. }) if from.token == features && count > 0 => {
                from.token(self.batch, self.head, first, count * features)
            }
            (Cached::F32(from), _) => {
                room.clear();
                for at in 0..count {
                    room.extend_from_slice(from.token(self.batch, self.head, slots.slot(at), features));
                }
                room
            }
            (Cached::Int8 { elements, scales }, _) => {
                let scales = self.problem.scales(scales, self.batch, self.head);
                room.resize(count * features, 0.0);
                for (at, row) in room.chunks_exact_mut(features.max(1)).enumerate() {
                    let scale = scales[slots.slot(at)];
                    let elements = elements.token(self.batch, self.head, slots.slot(at), features);
                    for (place, element) in row.iter_mut().zip(elements) {
                        *place = f32::from(*element) * scale;
                    }
                }
                room
            }
        }
    }
}

/// Whether no element is infinite or NaN.
#[inline(always)]
fn finite(elements: &[f32]) -> bool {
    // 0 · x is 0 for a finite x and NaN for any other.
    let mut products = [0.0f32; 32];
    let (chunks, rest) = elements.as_chunks::<32>();
    for chunk in chunks {
        products.iter_mut().zip(chunk).for_each(|(product, element)| *product += element * 0.0);
    }
    rest.iter().for_each(|element| products[0] += element * 0.0);
    products.iter().all(|product| *product == 0.0)
}
