//! A team of units for each head, where queries and keys are normalised, and values if asked for, or queries multiplied by a factor.
#![allow(clippy::if_same_then_else, reason = "one of two conditions is decided when the kernel is compiled")]

use burn_deepspeed_core::qk_norm::QkNormKind;
use cubecl::prelude::*;

use super::arguments::CheckedNorm;
use super::int8::{Tile, lane_has, lane_part, put};
use super::place::{Place, Sizes};
use super::rotation::{Angles, Table, partner};
use crate::cube::cached::{Cached, magnitude};
use crate::cube::contract::Checked;
use crate::cube::lanes::{lanes_max, lanes_sum, vector_sum};
use crate::cube::mask_arguments::row_strides;
use crate::cube::masks::RowStrides;
use crate::cube::tensors::{HeadStrides, HeadStridesLaunch, array, broadcast_strides, presence};

/// What happens to queries and keys, apart from their rotation.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Norm<T: Size> {
    query_weights: ComptimeOption<Array<Vector<f32, T>>>,
    key_weights: ComptimeOption<Array<Vector<f32, T>>>,
    /// Vectors from the weights of a head to those of the next; 0 if all heads share them.
    query_row: u32,
    key_row: u32,
    /// Sums of squares of all heads; their `head` is the side, queries or keys.
    sums: ComptimeOption<Array<f32>>,
    sums_strides: HeadStrides,
    /// Features that the sums are over.
    query_features: f32,
    key_features: f32,
    factors: ComptimeOption<Array<f32>>,
    factors_strides: RowStrides,
    /// Features of a head.
    features: f32,
    epsilon: f32,
    #[cube(comptime)]
    flags: Flags,
}

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flags {
    kind: Option<QkNormKind>,
    plus_one: bool,
    after_rotation: bool,
    /// Whether values are normalised.
    values: bool,
    /// Which tensors are there; see [`presence`].
    #[allow(dead_code, reason = "it is part of the key of the kernel")]
    present: u32,
}

/// The norm as the kernel takes it. Heads have `head_dim` features, and weights are read in vectors of `vector`.
pub(super) fn norm_arguments<T: Size, R: Runtime>(
    norm: Option<CheckedNorm<'_, R>>,
    factors: Option<Checked<'_, R>>,
    [head_dim, vector]: [usize; 2],
) -> NormLaunch<T, R> {
    let weights = norm.as_ref().and_then(|norm| norm.weights);
    let sums = norm.as_ref().and_then(|norm| norm.sums);
    let row = |side: usize| {
        let [row, _] = weights.map_or([0; 2], |weights: [Checked<'_, R>; 2]| broadcast_strides(weights[side]));
        (row / vector) as u32
    };
    let sums_strides = match sums {
        Some((sums, _)) => {
            let [batch, token, side] = broadcast_strides(sums).map(|stride| stride as u32);
            HeadStridesLaunch::new(batch, side, token)
        }
        None => HeadStridesLaunch::new(0, 0, 0),
    };
    let [query_features, key_features] =
        sums.map_or([1.0; 2], |(_, features)| features.map(|features| features as f32));
    let flags = Flags {
        kind: norm.as_ref().map(|norm| norm.kind),
        plus_one: norm.as_ref().is_some_and(|norm| norm.plus_one),
        after_rotation: norm.as_ref().is_some_and(|norm| norm.after_rotation),
        values: norm.as_ref().is_some_and(|norm| norm.values),
        present: presence(&[weights.is_some(), sums.is_some(), factors.is_some()]),
    };
    NormLaunch::new(
        weights.map(|[query, _]| array(query)).into(),
        weights.map(|[_, key]| array(key)).into(),
        row(0),
        row(1),
        sums.map(|(sums, _)| array(sums)).into(),
        sums_strides,
        query_features,
        key_features,
        factors.map(array).into(),
        row_strides(factors),
        head_dim as f32,
        norm.map_or(0.0, |norm| norm.epsilon),
        flags,
    )
}

/// What a head is normalised with: `(x - mean) · inverse`.
#[derive(CubeType, Clone, Copy)]
struct Statistics {
    mean: f32,
    inverse: f32,
}

#[cube]
impl<T: Size> Norm<T> {
    /// The statistics of a head, whose vectors the lanes of a team hold. Every unit of the cube must call this.
    fn statistics<N: Size>(
        &self,
        held: &Array<Vector<f32, N>>,
        place: Place,
        is_query: bool,
        exchange: &mut SharedMemory<f32>,
        #[comptime] tile: Tile,
    ) -> Statistics {
        let mut mean = 0.0f32.runtime();
        if comptime!(self.flags.kind == Some(QkNormKind::LayerNorm)) {
            let mut total = 0.0f32.runtime();
            #[unroll]
            for p in 0..comptime!(tile.per_lane() as usize) {
                total += vector_sum::<N>(held[p]);
            }
            mean = lanes_sum(total, exchange, tile.lanes, tile.planes) / self.features;
        }
        let variance = #[comptime]
        match &self.sums {
            ComptimeOption::Some(sums) => {
                let side = select(is_query, 0u32, 1u32);
                let at = self.sums_strides.head(place.batch, side) + place.token * self.sums_strides.token;
                sums[at as usize] / select(is_query, self.query_features, self.key_features)
            }
            ComptimeOption::None => {
                let mut squares = 0.0f32.runtime();
                #[unroll]
                for p in 0..tile.per_lane() {
                    if lane_has(lane_part(UNIT_POS % tile.lanes, p, tile), tile) {
                        let centred = held[p as usize] - Vector::<f32, N>::new(mean);
                        squares += vector_sum::<N>(centred * centred);
                    }
                }
                lanes_sum(squares, exchange, tile.lanes, tile.planes) / self.features
            }
        };
        Statistics { mean, inverse: 1.0f32 / (variance + self.epsilon).sqrt() }
    }

    /// The vector `part` of a head, normalised; values have no weights.
    fn apply<N: Size>(
        &self,
        features: Vector<f32, N>,
        statistics: Statistics,
        head: u32,
        part: u32,
        sizes: &Sizes,
    ) -> Vector<f32, N> {
        let unit = (features - Vector::<f32, N>::new(statistics.mean)) * Vector::<f32, N>::new(statistics.inverse);
        let mut result = unit;
        let vector = N::value();
        let chunk = T::value();
        let per_part = comptime!((vector / chunk) as u32);
        #[comptime]
        match &self.query_weights {
            ComptimeOption::Some(query) =>
            {
                #[comptime]
                match &self.key_weights {
                    ComptimeOption::Some(key) => {
                        if head < sizes.heads {
                            let first = head * self.query_row + part * per_part;
                            result = weighted::<N, T>(unit, query, first, self.flags.plus_one);
                        } else {
                            let first = (head - sizes.heads) * self.key_row + part * per_part;
                            if comptime!(!self.flags.values) {
                                result = weighted::<N, T>(unit, key, first, self.flags.plus_one);
                            } else if sizes.rotates(head) {
                                result = weighted::<N, T>(unit, key, first, self.flags.plus_one);
                            }
                        }
                    }
                    ComptimeOption::None => {}
                }
            }
            ComptimeOption::None => {}
        }
        result
    }

    /// The factor of the queries of a token; 1 without factors.
    fn factor(&self, place: Place) -> f32 {
        #[comptime]
        match &self.factors {
            ComptimeOption::Some(factors) => {
                factors[(place.batch * self.factors_strides.row + place.token * self.factors_strides.key) as usize]
            }
            ComptimeOption::None => 1.0f32.runtime(),
        }
    }
}

/// Features times their weights, which begin at `first`.
#[cube]
fn weighted<N: Size, T: Size>(
    features: Vector<f32, N>,
    weights: &Array<Vector<f32, T>>,
    first: u32,
    #[comptime] plus_one: bool,
) -> Vector<f32, N> {
    let vector = N::value();
    let chunk = T::value();
    let one = comptime!(if plus_one { 1.0f32 } else { 0.0f32 });
    let mut result = features;
    #[unroll]
    for c in 0..comptime!(vector / chunk) {
        let loaded = weights[first as usize + c];
        #[unroll]
        for e in 0..chunk {
            result[c * chunk + e] = features[c * chunk + e] * (loaded[e] + one);
        }
    }
    result
}

/// Moves a projection as `cache_write` and `cache_write_int8` do, and changes queries and keys on the way: norm, rotation, factor.
///
/// Tile: that of `cache_write_int8`. A team reads a head once and keeps it in registers, in f32, until its lanes have exchanged their
/// sums of squares, and with LayerNorm those of the features before. A lane whose features have rotary partners in another lane reads
/// these too, and normalises them by itself; the second read is a cache hit. Results are rounded once. Every unit must reach the
/// exchanges, so values go through them as well, whether or not they are changed.
#[cube(launch_unchecked)]
pub(super) fn cache_write_norm<F: Float, K: Numeric, V: Numeric, N: Size, T: Size>(
    qkv: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Cached<K, N>,
    value: &mut Cached<V, N>,
    table: &ComptimeOption<Table<T>>,
    norm: &Norm<T>,
    bounds: &ComptimeOption<Array<u32>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[comptime] int8: bool,
    #[define(F)] _elements: StorageType,
    #[define(K)] _key_type: StorageType,
    #[define(V)] _value_type: StorageType,
) {
    let per_lane = comptime!(tile.per_lane());
    let (parts, together) = comptime!((tile.share.parts, tile.share.together()));
    let lane = UNIT_POS % tile.lanes;
    let at = CUBE_POS as u32 * comptime!(tile.teams()) + UNIT_POS / tile.lanes;
    let first = sizes.place(min(at, sizes.count - 1), tile.each);
    let all_heads = sizes.heads + 2 * sizes.kv_heads;
    let slot = sizes.slot(bounds, first);
    let source = sizes.source(first);
    let factor = norm.factor(first);
    let normalises = comptime!(norm.flags.kind.is_some());
    let before = comptime!(normalises && !norm.flags.after_rotation);
    let after = comptime!(normalises && norm.flags.after_rotation);

    let mut sums = SharedMemory::<f32>::new(comptime!(if normalises { tile.units as usize } else { 1 }));
    let mut maxima = SharedMemory::<u32>::new(comptime!(if int8 { tile.units as usize } else { 1 }));
    let mut angles = Sequence::<Angles<N>>::new();
    #[unroll]
    for s in 0..tile.shares() {
        angles.push(Angles::<N>::new::<T>(table, sizes, first, lane_part(lane, s * together, tile)));
    }
    #[unroll]
    for h in 0..comptime!(tile.each as usize) {
        let head = first.head + h as u32;
        let is_query = head < sizes.heads;
        let rotates = sizes.rotates(head);
        let from = source + sizes.projected(head) * parts;
        let mut changes = rotates;
        if comptime!(norm.flags.values) {
            changes = head < all_heads;
        }
        let mut held = Array::<Vector<f32, N>>::new(comptime!(per_lane as usize));
        let mut partners = Array::<Vector<f32, N>>::new(comptime!(per_lane as usize));
        #[unroll]
        for p in 0..per_lane {
            let part = lane_part(lane, p, tile);
            held[p as usize] = Vector::<f32, N>::new(0.0f32);
            partners[p as usize] = Vector::<f32, N>::new(0.0f32);
            if lane_has(part, tile) && head < all_heads {
                held[p as usize] = Vector::cast_from(qkv[(from + part) as usize]);
                if comptime!(tile.share.apart) && rotates {
                    partners[p as usize] = Vector::cast_from(qkv[(from + partner::<T>(table, part)) as usize]);
                }
            }
        }
        if comptime!(before) {
            let statistics = norm.statistics::<N>(&held, first, is_query, &mut sums, tile);
            #[unroll]
            for p in 0..per_lane {
                let part = lane_part(lane, p, tile);
                if lane_has(part, tile) && changes {
                    held[p as usize] = norm.apply::<N>(held[p as usize], statistics, head, part, sizes);
                    if comptime!(tile.share.apart) {
                        let part = partner::<T>(table, part);
                        partners[p as usize] = norm.apply::<N>(partners[p as usize], statistics, head, part, sizes);
                    }
                }
            }
        }
        #[unroll]
        for s in 0..comptime!(tile.shares() as usize) {
            let begin = comptime!(s * together as usize);
            if rotates {
                let own = lane_part(lane, begin as u32, tile);
                angles[s].rotate::<T>(table, &mut held, &partners, begin, own, tile.share);
            }
        }
        if comptime!(after) {
            let statistics = norm.statistics::<N>(&held, first, is_query, &mut sums, tile);
            #[unroll]
            for p in 0..per_lane {
                let part = lane_part(lane, p, tile);
                if lane_has(part, tile) && changes {
                    held[p as usize] = norm.apply::<N>(held[p as usize], statistics, head, part, sizes);
                }
            }
        }

        let mut moved = Array::<Vector<F, N>>::new(comptime!(per_lane as usize));
        let mut largest = 0u32.runtime();
        #[unroll]
        for p in 0..per_lane {
            let mut features = held[p as usize];
            if comptime!(norm.factors.is_some()) && is_query {
                features *= Vector::<f32, N>::new(factor);
            }
            moved[p as usize] = Vector::cast_from(features);
            if comptime!(int8) {
                largest = max(largest, magnitude::<F, N>(moved[p as usize]));
            }
        }
        if comptime!(int8) {
            largest = lanes_max(largest, &mut maxima, tile.lanes, tile.planes);
        }

        if at < sizes.count {
            let place = Place { batch: first.batch, token: first.token, head };
            put::<F, K, V, N>(&moved, query, key, value, place, slot, largest, lane, all_heads, sizes, tile);
        }
    }
}
