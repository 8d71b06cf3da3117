//! The sum of the splits.

use cubecl::prelude::*;
use cubecl::std::FastDivmod;

use crate::cube::fragment::Pair;
use crate::cube::lanes::{Fold, plane_fold};
use crate::cube::masks::HIDDEN;
use crate::cube::sinks::Sinks;
use crate::cube::tensors::HeadStrides;

/// Scalar sizes of [`combine`].
#[derive(CubeType, CubeLaunch)]
pub(super) struct CombineSizes {
    pub rows: u32,
    pub kv_heads: FastDivmod<u32>,
    pub group: u32,
    /// `group`, to divide by it.
    pub by_group: FastDivmod<u32>,
    pub tokens: FastDivmod<u32>,
    pub splits: u32,
    pub context: HeadStrides,
}

/// The sum of the splits of each row, weighted by their maxima, and of its sink. A unit sums one feature of one row; `lanes` neighbouring
/// units, which have the same row, share its weights: units of a plane of `plane`, or one.
#[cube(launch_unchecked)]
pub(super) fn combine<F: Float>(
    partial: &Array<f32>,
    stats: &Array<Vector<f32, Pair>>,
    context: &mut Array<F>,
    sinks: &Sinks,
    sizes: &CombineSizes,
    #[comptime] head_dim: u32,
    #[comptime] lanes: u32,
    #[comptime] plane: u32,
    #[define(F)] _elements: StorageType,
) {
    let width = comptime!(head_dim.next_power_of_two());
    let own_row = CUBE_POS_X * (CUBE_DIM / width) + UNIT_POS / width;
    let own_feature = UNIT_POS % width;
    // Units without a row or a feature do what the last ones do, since their planes exchange values.
    let (row, feature) = (min(own_row, sizes.rows - 1), min(own_feature, comptime!(head_dim - 1)));
    let lane = UNIT_POS % lanes;
    let first = row * sizes.splits;
    let mut largest = HIDDEN.runtime();
    for split in range_stepped(lane, sizes.splits, lanes) {
        largest = max(largest, stats[(first + split) as usize][0]);
    }
    largest = plane_fold(largest, lanes, Fold::Maximum);
    let leader = (UNIT_POS - lane) % plane;
    let mut at = first * head_dim + feature;
    let mut total = 0.0f32.runtime();
    let mut sum = 0.0f32.runtime();
    for base in range_stepped(0u32, sizes.splits, lanes) {
        let mut own = 0.0f32.runtime();
        if base + lane < sizes.splits {
            let stats = stats[(first + base + lane) as usize];
            own = (stats[0] - largest).exp();
            total += own * stats[1];
        }
        for other in 0..min(lanes, sizes.splits - base) {
            let weight = if comptime!(lanes > 1) { plane_shuffle(own, leader + other) } else { own };
            sum += weight * partial[at as usize];
            at += head_dim;
        }
    }
    total = plane_fold(total, lanes, Fold::Sum);
    let (token, member) = sizes.by_group.div_mod(row);
    let (kv_head, token) = sizes.tokens.div_mod(token);
    let (batch, kv_head) = sizes.kv_heads.div_mod(kv_head);
    let head = kv_head * sizes.group + member;
    let at = sizes.context.head(batch, head) + token * sizes.context.token + feature;
    let total = sinks.join(total, head, largest, false);
    if own_row < sizes.rows && own_feature < head_dim {
        context[at as usize] = F::cast_from(select(total == 0.0f32, 0.0f32, sum / total));
    }
}
