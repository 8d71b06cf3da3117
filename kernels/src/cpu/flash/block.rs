//! A block of keys and values with contiguous rows.

#[cfg(target_arch = "x86_64")]
use super::amx;
use crate::cpu::attention::{Attention, Cached, Heads};
use crate::cpu::element::Element;
use crate::cpu::interval::Interval;
#[cfg(target_arch = "x86_64")]
pub(super) use crate::cpu::product::amx::Tiles as Machine;
use crate::cpu::scores::Slots;

/// What multiplies bf16: nothing of this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub(super) enum Machine {}

/// The slots of a block.
pub(super) struct Keys<'a> {
    pub problem: &'a Attention<'a>,
    pub batch: usize,
    pub head: usize,
    pub slots: Interval,
}

/// Memory for a block.
#[derive(Default)]
pub(super) struct BlockBuffer {
    keys: Vec<f32>,
    values: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    packed: amx::PackedBuffer,
    slots: Vec<usize>,
    positions: Vec<f32>,
}

/// Keys and values without those that no query sees.
pub(super) struct Block<'a> {
    pub rows: Rows<'a>,
    /// The slot of each key.
    pub slots: Slots<'a>,
    /// The position of each key, for the slopes.
    pub positions: &'a [f32],
}

/// Keys and values as they are multiplied.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    F32(WideRows<'a>),
    #[cfg(target_arch = "x86_64")]
    Amx(&'a Machine, amx::Packed<'a>),
}

/// Keys and values in f32.
#[derive(Clone, Copy)]
pub(super) struct WideRows<'a> {
    /// `[keys, head_dim]`.
    pub keys: &'a [f32],
    /// `[keys, value_dim]`.
    pub values: &'a [f32],
    /// Whether all values are finite; if so, a weight of zero hides any of them.
    pub finite: bool,
}

impl Keys<'_> {
    /// The block in place, or copied into a buffer; packed for a machine that multiplies bf16.
    #[inline(always)]
    pub fn gather<'r>(&'r self, buffer: &'r mut BlockBuffer, machine: Option<&'r Machine>) -> Block<'r> {
        let Attention { head_dim, value_dim, key, value, masks, .. } = *self.problem;
        let slots = match masks.hidden(self.batch) {
            Some(hidden) => {
                buffer.slots.clear();
                buffer.slots.extend(self.slots.slots().filter(|slot| !hidden[*slot]));
                Slots::Kept(&buffer.slots)
            }
            None => Slots::All(self.slots),
        };
        if masks.slopes.is_some() {
            buffer.positions.clear();
            buffer.positions.extend((0..slots.count()).map(|at| masks.position(self.batch, slots.slot(at))));
        }
        let positions = &buffer.positions;
        #[cfg(not(target_arch = "x86_64"))]
        let _: Option<&Machine> = machine;
        #[cfg(target_arch = "x86_64")]
        if let (Some(machine), Cached::BF16(keys), Cached::BF16(values)) = (machine, key, value) {
            let key = |at| keys.token(self.batch, self.head, slots.slot(at), head_dim);
            let value = |at| values.token(self.batch, self.head, slots.slot(at), value_dim);
            let packed = buffer.packed.pack(slots.count(), [head_dim, value_dim], key, value);
            return Block { rows: Rows::Amx(machine, packed), slots, positions };
        }
        let values = self.rows(&value, value_dim, slots, &mut buffer.values);
        let keys = self.rows(&key, head_dim, slots, &mut buffer.keys);
        Block { rows: Rows::F32(WideRows { keys, values, finite: finite(values) }), slots, positions }
    }

    /// The rows of these slots.
    #[inline(always)]
    fn rows<'r>(&'r self, from: &Cached<'r>, features: usize, slots: Slots<'_>, buffer: &'r mut Vec<f32>) -> &'r [f32] {
        let count = slots.count();
        match (from, slots) {
            // Rows with gaps are copied: with the same address modulo a page they would evict each other from the cache.
            (Cached::F32(from), Slots::All(slots)) if from.token == features && count > 0 => {
                from.token(self.batch, self.head, slots.start, count * features)
            }
            (Cached::F32(from), _) => self.widened(from, features, slots, buffer),
            (Cached::F16(from), _) => self.widened(from, features, slots, buffer),
            (Cached::BF16(from), _) => self.widened(from, features, slots, buffer),
            (Cached::Int8 { elements, scales }, _) => {
                let scales = self.problem.scales(scales, self.batch, self.head);
                buffer.resize(count * features, 0.0);
                for (at, row) in buffer.chunks_exact_mut(features.max(1)).enumerate() {
                    let scale = scales[slots.slot(at)];
                    let elements = elements.token(self.batch, self.head, slots.slot(at), features);
                    for (place, element) in row.iter_mut().zip(elements) {
                        *place = f32::from(*element) * scale;
                    }
                }
                buffer
            }
        }
    }

    /// The rows of these slots, copied in f32.
    #[inline(always)]
    fn widened<'r, E: Element>(
        &self,
        from: &Heads<'_, E>,
        features: usize,
        slots: Slots<'_>,
        buffer: &'r mut Vec<f32>,
    ) -> &'r [f32] {
        buffer.resize(slots.count() * features, 0.0);
        for (at, row) in buffer.chunks_exact_mut(features.max(1)).enumerate() {
            let elements = from.token(self.batch, self.head, slots.slot(at), features);
            row.iter_mut().zip(elements).for_each(|(place, element)| *place = element.widen());
        }
        buffer
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
