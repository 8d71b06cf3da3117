//! The sum of the splits.

use cubecl::prelude::*;

use crate::cube::masks::HIDDEN;
use crate::cube::sinks::Sinks;
use crate::cube::tensors::HeadStrides;

/// Scalar sizes of [`combine`].
#[derive(CubeType, CubeLaunch)]
pub(super) struct CombineSizes {
    pub rows: u32,
    pub kv_heads: u32,
    pub group: u32,
    pub tokens: u32,
    pub splits: u32,
    pub context: HeadStrides,
}

/// The sum of the splits of each row, weighted by their maxima, and of its sink. A unit sums one feature of one row.
#[cube(launch_unchecked)]
pub(super) fn combine<F: Float>(
    partial: &Array<f32>,
    stats: &Array<f32>,
    context: &mut Array<F>,
    sinks: &Sinks,
    sizes: &CombineSizes,
    #[comptime] head_dim: u32,
    #[define(F)] _elements: StorageType,
) {
    let width = comptime!(head_dim.next_power_of_two());
    let row = CUBE_POS_X * (CUBE_DIM / width) + UNIT_POS / width;
    let feature = UNIT_POS % width;
    if row < sizes.rows && feature < head_dim {
        let first = row * sizes.splits;
        let mut largest = HIDDEN.runtime();
        for split in 0..sizes.splits {
            largest = max(largest, stats[((first + split) * 2) as usize]);
        }
        let mut total = 0.0f32.runtime();
        let mut sum = 0.0f32.runtime();
        for split in 0..sizes.splits {
            let at = first + split;
            let weight = (stats[(at * 2) as usize] - largest).exp();
            total += weight * stats[(at * 2 + 1) as usize];
            sum += weight * partial[(at * head_dim + feature) as usize];
        }
        let group_rows = sizes.group * sizes.tokens;
        let batch = row / (sizes.kv_heads * group_rows);
        let kv_head = row / group_rows % sizes.kv_heads;
        let head = kv_head * sizes.group + row % group_rows % sizes.group;
        let token = row % group_rows / sizes.group;
        let at = sizes.context.head(batch, head) + token * sizes.context.token + feature;
        let total = sinks.join(total, head, largest, false);
        context[at as usize] = F::cast_from(select(total == 0.0f32, 0.0f32, sum / total));
    }
}
