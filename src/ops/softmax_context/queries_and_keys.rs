//! What happens to queries and keys before they are compared: norm, rotation, factor.

use burn::tensor::{DType, Tensor, backend::Backend};

use super::arguments::Keys;
use crate::ops::heads::split_heads;
use crate::position::factor::on_device;
use crate::position::rotary::RotaryTable;
use crate::position::{PositionEncoding, QueryFactor};
use crate::spec::{AttentionSpec, QkNorm, QkNormKind};
use crate::weight::QueryKeyNorm;
use crate::zeros::zeros;

/// Cosine and sine of the new tokens, if the layer rotates queries and keys.
pub(super) fn rotary_table<B: Backend>(
    keys: &mut Keys<'_, B>,
    spec: &AttentionSpec,
    device: &B::Device,
) -> Option<RotaryTable<B>> {
    let PositionEncoding::Rotary(rotary) = &spec.position else { return None };
    Some(match keys {
        Keys::Cached(cache) => cache.rotary_table(rotary, device),
        Keys::Fresh(positions) => RotaryTable::new(rotary, positions, device),
    })
}

/// The factors of the new queries, `[B, T]` of f32, if the layer has any.
pub(super) fn query_factors<B: Backend>(
    keys: &mut Keys<'_, B>,
    factor: Option<QueryFactor>,
    device: &B::Device,
) -> Option<Tensor<B, 2>> {
    let factor = factor?;
    Some(match keys {
        Keys::Cached(cache) => cache.query_factors(factor, device),
        Keys::Fresh(positions) => on_device(factor, positions, device),
    })
}

/// The sums of the squares of a rank's queries and of its keys, in f32: what a norm over all heads needs. A key head that several
/// ranks hold counts on the first of them; a layer without keys of its own has 0.
///
/// # Shapes
/// - qkv: `[B, T, (N + 2K)·H]`
/// - output: `[B, T, 2]`
pub fn sums_of_squares<B: Backend>(qkv: Tensor<B, 3>, spec: &AttentionSpec) -> Tensor<B, 3> {
    let [batch, tokens, _] = qkv.dims();
    let (queries, keys) = (spec.query_width(), spec.kv_width());
    let sum = |start, width| {
        let part = qkv.clone().narrow(2, start, width).cast(DType::F32);
        (part.clone() * part).sum_dim(2)
    };
    let of_keys = match spec.shard.counts_keys() && spec.kv_source.is_own() {
        true => sum(queries, keys),
        false => zeros([batch, tokens, 1], (&qkv.device(), DType::F32)),
    };
    Tensor::cat(vec![sum(0, queries), of_keys], 2)
}

/// What the definition of a step does to queries and keys.
pub(in crate::ops) struct Transform<'a, B: Backend> {
    pub norm: Option<QkNorm>,
    pub weights: Option<&'a QueryKeyNorm<B>>,
    pub table: Option<RotaryTable<B>>,
    pub factors: Option<Tensor<B, 2>>,
}

impl<B: Backend> Transform<'_, B> {
    /// Queries, and keys and values if the projection has them. What changes is in f32.
    ///
    /// # Shapes
    /// - qkv: `[B, T, (N + 2K)·H]`, or the part of it that the layer projects
    /// - sums: `[B, T, 2]`, those of all ranks
    /// - output: queries `[B, N, T, H]`, keys and values `[B, K, T, H]`
    pub fn apply(
        &self,
        qkv: Tensor<B, 3>,
        sums: Option<Tensor<B, 3>>,
        spec: &AttentionSpec,
    ) -> (Tensor<B, 4>, Option<[Tensor<B, 4>; 2]>) {
        let sums = spec.norm_of_all_heads().map(|_| sums.unwrap_or_else(|| sums_of_squares(qkv.clone(), spec)));
        let mean = |side: usize| {
            let sums = sums.clone()?.narrow(2, side, 1) / spec.all_features()[side] as f64;
            Some(sums.unsqueeze_dim::<4>(1))
        };
        let (query, own) = split_heads(qkv, spec);
        let query = self.moved(query, self.weights.map(QueryKeyNorm::query), mean(0));
        let query = match &self.factors {
            Some(factors) => {
                let [batch, tokens] = factors.dims();
                query.cast(DType::F32) * factors.clone().reshape([batch, 1, tokens, 1])
            }
            None => query,
        };
        let own = own.map(|[key, value]| {
            let value = match self.norm.filter(|norm| norm.values) {
                Some(norm) => normalise(value, norm, None, None),
                None => value,
            };
            [self.moved(key, self.weights.and_then(QueryKeyNorm::key), mean(1)), value]
        });
        (query, own)
    }

    /// Heads after norm and rotation, in the order of the layer.
    fn moved(
        &self,
        heads: Tensor<B, 4>,
        weights: Option<Tensor<B, 2>>,
        mean_square: Option<Tensor<B, 4>>,
    ) -> Tensor<B, 4> {
        let rotate = |heads| match &self.table {
            Some(table) => table.apply(heads),
            None => heads,
        };
        match self.norm {
            None => rotate(heads),
            Some(norm) if norm.after_rotation => normalise(rotate(heads), norm, weights, mean_square),
            Some(norm) => rotate(normalise(heads, norm, weights, mean_square)),
        }
    }
}

/// The norm of heads, `[B, N, T, H]`, in f32. `mean_square` is `[B, 1, T, 1]`, where it is not that of each head.
fn normalise<B: Backend>(
    heads: Tensor<B, 4>,
    norm: QkNorm,
    weights: Option<Tensor<B, 2>>,
    mean_square: Option<Tensor<B, 4>>,
) -> Tensor<B, 4> {
    let heads = heads.cast(DType::F32);
    let centred = match norm.kind {
        QkNormKind::LayerNorm => heads.clone() - heads.mean_dim(3),
        QkNormKind::Rms | QkNormKind::RmsOfAllHeads => heads,
    };
    let variance = mean_square.unwrap_or_else(|| (centred.clone() * centred.clone()).mean_dim(3));
    let unit = centred / (variance + norm.epsilon).sqrt();
    match weights {
        Some(weights) => {
            let [rows, features] = weights.dims();
            let weights = if norm.plus_one { weights + 1.0 } else { weights };
            unit * weights.reshape([1, rows, 1, features])
        }
        None => unit,
    }
}
