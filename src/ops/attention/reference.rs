//! The definition of attention, in tensor operations.

use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, TensorData, backend::Backend};

use super::arguments::Attention;
use super::visibility::{Visibility, hidden_pairs};
use crate::mask::AttentionMask;
use crate::ops::masked_softmax::{expand_bool, masked_softmax};
use crate::zeros::zeros;

/// The definition of [`Operations::masked_attention`](crate::ops::Operations::masked_attention).
pub fn reference<B: Backend>(arguments: Attention<B>) -> Tensor<B, 4> {
    arguments.check();
    let Attention { query, key, value, scale, softcap, sinks, slopes, visibility, mask } = arguments;
    let [batch, heads, tokens, head_dim] = query.dims();
    let [_, kv_heads, keys, value_dim] = value.dims();
    let (dtype, device) = (query.dtype(), query.device());
    if tokens == 0 || keys == 0 || batch == 0 {
        return zeros([batch, heads, tokens, value_dim], (&device, dtype));
    }

    let shape = [batch, heads, tokens, keys];
    let hidden = all_hidden(&visibility, &mask, shape, &device);
    // The queries of a group form consecutive rows, so that no key is repeated.
    let grouped = [batch, kv_heads, heads / kv_heads * tokens];
    let [rows, groups, queries] = grouped;
    let query = (query.cast(FloatDType::F32) * scale).reshape([rows, groups, queries, head_dim]);
    let key = Finite::split(key.cast(FloatDType::F32), hidden.is_some());
    let scores = query.matmul(key.finite.swap_dims(2, 3)).reshape(shape);
    let mut scores = match key.broken {
        Some(broken) => {
            let broken = broken.any_dim(3).reshape([batch, kv_heads, 1, keys]);
            scores.mask_fill(per_query_head(broken, heads).expand(shape), f32::NAN)
        }
        None => scores,
    };
    if let Some(cap) = softcap {
        scores = (scores / cap).tanh() * cap;
    }
    if let Some(slopes) = slopes {
        scores = scores + alibi(&slopes, &visibility, &mask, shape, &device);
    }
    if let Some(bias) = mask.bias() {
        scores = scores + bias;
    }
    let probs = match sinks {
        Some(sinks) => with_sinks(scores, hidden.clone(), sinks),
        None => masked_softmax(scores, hidden.clone()),
    };

    let value = Finite::split(value.cast(FloatDType::F32), hidden.is_some());
    let context = probs.reshape([rows, groups, queries, keys]).matmul(value.finite);
    let context = context.reshape([batch, heads, tokens, value_dim]);
    let context = match (value.broken, hidden) {
        (Some(broken), Some(hidden)) => {
            let seen = hidden.bool_not().float().cast(FloatDType::F32).expand(shape);
            let broken = per_query_head(broken, heads).float().cast(FloatDType::F32);
            context.mask_fill(seen.matmul(broken).greater_elem(0.0), f32::NAN)
        }
        _ => context,
    };
    context.cast(dtype)
}

/// [`masked_softmax`] with a column of sinks, which is dropped.
fn with_sinks<B: Backend>(
    scores: Tensor<B, 4>,
    hidden: Option<Tensor<B, 4, Bool>>,
    sinks: Tensor<B, 1>,
) -> Tensor<B, 4> {
    let [batch, heads, tokens, keys] = scores.dims();
    let scores = match hidden {
        Some(hidden) => scores.mask_fill(expand_bool(hidden, [batch, heads, tokens, keys]), f32::NEG_INFINITY),
        None => scores,
    };
    let sinks = sinks.cast(FloatDType::F32);
    // The difference of two infinities is NaN.
    let infinite = sinks.clone().greater_elem(f32::MAX);
    let sinks = sinks.mask_fill(infinite, f32::MAX);
    let sinks = sinks.reshape([1, heads, 1, 1]).expand([batch, heads, tokens, 1]);
    masked_softmax(Tensor::cat(vec![scores, sinks], 3), None).narrow(3, 0, keys)
}

/// A tensor whose infinities and NaNs are replaced by 0, and where they were. A product with a hidden one would be 0 · NaN,
/// which is not 0. So hidden content never affects the result, and a query that does see a NaN still returns one.
struct Finite<B: Backend> {
    finite: Tensor<B, 4>,
    broken: Option<Tensor<B, 4, Bool>>,
}

impl<B: Backend> Finite<B> {
    fn split(tensor: Tensor<B, 4>, wanted: bool) -> Self {
        if !wanted {
            return Self { finite: tensor, broken: None };
        }
        // Not `is_finite`, which needs absolute values: `burn-ndarray` 0.21 returns those of a transposed tensor in another
        // order. Nor `x != x`: it considers NaN equal to NaN on processors with AVX2.
        let not_below = tensor.clone().lower_equal_elem(f32::MAX).bool_not();
        let broken = tensor.clone().greater_equal_elem(f32::MIN).bool_not().bool_or(not_below);
        if !broken.clone().any().into_data().iter::<bool>().any(|any| any) {
            return Self { finite: tensor, broken: None };
        }
        Self { finite: tensor.mask_fill(broken.clone(), 0.0), broken: Some(broken) }
    }
}

/// Everything that is hidden, combined by broadcasting and not expanded further: `[B or 1, N or 1, T, S]`.
fn all_hidden<B: Backend>(
    visibility: &Visibility,
    mask: &AttentionMask<B>,
    [batch, _, tokens, keys]: [usize; 4],
    device: &B::Device,
) -> Option<Tensor<B, 4, Bool>> {
    let by_key = mask.hidden_keys().map(|hidden| hidden.clone().reshape([batch, 1, 1, keys]));
    [hidden_pairs(visibility, mask, [tokens, keys], device), by_key, mask.hidden_pairs().cloned()]
        .into_iter()
        .flatten()
        .reduce(|a, b| {
            let shape = std::array::from_fn(|axis| a.dims()[axis].max(b.dims()[axis]));
            expand_bool(a, shape).bool_or(expand_bool(b, shape))
        })
}

/// `slope · (key position - query position)`: `[B or 1, N, T, S]`. The position of a key is the number of keys before it
/// that the mask keeps, so padding does not count. Distances keep the numbers small, unlike positions.
fn alibi<B: Backend>(
    slopes: &[f32],
    visibility: &Visibility,
    mask: &AttentionMask<B>,
    [batch, heads, tokens, keys]: [usize; 4],
    device: &B::Device,
) -> Tensor<B, 4> {
    let rows = visibility.starts.len();
    let slots: Vec<i64> =
        visibility.starts.iter().flat_map(|&start| (start..start + tokens).map(|slot| slot as i64)).collect();
    let (query, key) = match mask.hidden_keys() {
        None => {
            let query = Tensor::<B, 1, Int>::from_data(TensorData::new(slots, [rows * tokens]), device);
            let key = Tensor::<B, 1, Int>::arange(0..keys as i64, device);
            (query.reshape([rows, 1, tokens, 1]), key.reshape([1, 1, 1, keys]))
        }
        Some(hidden) => {
            let position = hidden.clone().bool_not().int().cumsum(1);
            let last = keys as i64 - 1;
            let slots: Vec<i64> = (0..batch)
                .flat_map(|row| slots[row % rows * tokens..][..tokens].iter().map(|&slot| slot.min(last)))
                .collect();
            let slots = Tensor::<B, 2, Int>::from_data(TensorData::new(slots, [batch, tokens]), device);
            let query = position.clone().gather(1, slots);
            (query.reshape([batch, 1, tokens, 1]), position.reshape([batch, 1, 1, keys]))
        }
    };
    let distance = (key - query).cast(FloatDType::F32);
    let slopes = Tensor::<B, 1>::from_data(TensorData::new(slopes.to_vec(), [heads]), (device, DType::F32));
    distance * slopes.reshape([1, heads, 1, 1])
}

/// Repeats every key/value head for the query heads of its group: head `n` reads `n / (N / K)`.
fn per_query_head<B: Backend>(per_kv_head: Tensor<B, 4, Bool>, heads: usize) -> Tensor<B, 4, Bool> {
    let [batch, kv_heads, rows, columns] = per_kv_head.dims();
    let group = heads / kv_heads;
    let repeated: Tensor<B, 5, Bool> = per_kv_head.reshape([batch, kv_heads, 1, rows, columns]);
    repeated.expand([batch, kv_heads, group, rows, columns]).reshape([batch, heads, rows, columns])
}
