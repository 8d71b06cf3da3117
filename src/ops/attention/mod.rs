//! Scaled dot-product attention, equation 1 of <https://arxiv.org/abs/1706.03762>, under every mask of this crate.

#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;

use burn::tensor::{Bool, FloatDType, Int, Tensor, TensorData, backend::Backend};

use crate::error::check_shape;
use crate::mask::AttentionMask;

/// What a layer hides by itself: the future, what lies before the window, and slots behind the end of a row.
///
/// Both lists have one entry a row of the batch, or one for all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visibility {
    /// Whether a query sees only itself and the keys before it.
    pub causal: bool,
    /// Keys that a query sees, itself included, counted back from it.
    pub window: Option<usize>,
    /// The slot of the first query among the keys. Causality is by slot, never inferred from shapes.
    pub starts: Vec<usize>,
    /// Keys that the row holds.
    pub ends: Vec<usize>,
}

impl Visibility {
    /// Every query sees each of `keys` keys.
    pub fn full(keys: usize) -> Self {
        Self { causal: false, window: None, starts: vec![0], ends: vec![keys] }
    }

    /// The keys that query `query` of row `row` may see.
    fn range(&self, row: usize, query: usize) -> std::ops::Range<usize> {
        let at = self.starts[row] + query;
        let end = if self.causal { self.ends[row].min(at + 1) } else { self.ends[row] };
        self.window.map_or(0, |window| (at + 1).saturating_sub(window))..end
    }

    /// The hidden pairs, true hides: `[B or 1, 1, T, S]`; `None` if every query sees every key.
    pub fn hidden<B: Backend>(&self, tokens: usize, keys: usize, device: &B::Device) -> Option<Tensor<B, 4, Bool>> {
        let same = |list: &[usize]| list.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = if same(&self.starts) && same(&self.ends) { 1 } else { self.starts.len() };
        let ranges = || (0..rows).flat_map(|row| (0..tokens).map(move |query| self.range(row, query)));
        if ranges().all(|seen| seen.start == 0 && seen.end >= keys) {
            return None;
        }
        let pairs: Vec<bool> = ranges().flat_map(|seen| (0..keys).map(move |key| !seen.contains(&key))).collect();
        Some(Tensor::from_data(TensorData::new(pairs, [rows, 1, tokens, keys]), device))
    }
}

/// The arguments of [`InferenceBackend::masked_attention`](crate::InferenceBackend::masked_attention).
#[derive(Debug, Clone)]
pub struct Attention<B: Backend> {
    /// `[B, N, T, H]`.
    pub query: Tensor<B, 4>,
    /// `[B, K, S, H]`; query head `n` reads key head `n / (N / K)`.
    pub key: Tensor<B, 4>,
    /// `[B, K, S, Hv]`.
    pub value: Tensor<B, 4>,
    /// Plain factor on QKᵀ.
    pub scale: f64,
    /// `c` of `c · tanh(score / c)`, in front of bias and mask.
    pub softcap: Option<f64>,
    /// ALiBi slopes of the N heads: `slope · (key position - query position)` is added to a score.
    pub slopes: Option<Vec<f32>>,
    /// What the layer hides.
    pub visibility: Visibility,
    /// What the caller hides, and the bias that it adds.
    pub mask: AttentionMask<B>,
}

impl<B: Backend> Attention<B> {
    /// Panics unless all parts fit together.
    #[track_caller]
    pub(crate) fn check(&self) {
        let [batch, heads, tokens, head_dim] = self.query.dims();
        let [_, kv_heads, keys, value_dim] = self.value.dims();
        check_shape("attention", "key", &[batch, kv_heads, keys, head_dim], &self.key.dims());
        check_shape("attention", "value", &[batch, kv_heads, keys, value_dim], &self.value.dims());
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "attention: `query` has {heads} heads, expected a multiple of the {kv_heads} heads of `key`"
        );
        self.mask.check("attention", [batch, heads, tokens, keys]);
    }
}

/// The definition of [`InferenceBackend::masked_attention`](crate::InferenceBackend::masked_attention).
pub fn reference<B: Backend>(arguments: Attention<B>) -> Tensor<B, 4> {
    arguments.check();
    let Attention { query, key, value, scale, softcap, slopes, visibility, mask } = arguments;
    let [batch, heads, tokens, head_dim] = query.dims();
    let [_, kv_heads, keys, value_dim] = value.dims();
    let (dtype, device) = (query.dtype(), query.device());
    if tokens == 0 || keys == 0 || batch == 0 {
        return Tensor::zeros([batch, heads, tokens, value_dim], (&device, dtype));
    }

    let shape = [batch, heads, tokens, keys];
    let hidden = all_hidden(&visibility, &mask, shape, &device);
    // Queries of one group stand behind each other, so that no key is repeated.
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
    let probs = crate::ops::softmax::masked_softmax(scores, hidden.clone());

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

/// A tensor whose infinities and NaNs were set aside. A product with a hidden one is 0 · NaN, which is not 0; this way
/// hidden content has no part in the result, and a query that does see a NaN still returns one.
struct Finite<B: Backend> {
    finite: Tensor<B, 4>,
    broken: Option<Tensor<B, 4, Bool>>,
}

impl<B: Backend> Finite<B> {
    fn split(tensor: Tensor<B, 4>, wanted: bool) -> Self {
        if !wanted {
            return Self { finite: tensor, broken: None };
        }
        // Not `is_finite`, which takes an absolute value: `burn-ndarray` 0.21 returns those of a transposed tensor in another
        // order, and takes NaN for equal to NaN on processors with AVX2.
        let not_below = tensor.clone().lower_equal_elem(f32::MAX).bool_not();
        let broken = tensor.clone().greater_equal_elem(f32::MIN).bool_not().bool_or(not_below);
        if !broken.clone().any().into_data().iter::<bool>().any(|any| any) {
            return Self { finite: tensor, broken: None };
        }
        Self { finite: tensor.mask_fill(broken.clone(), 0.0), broken: Some(broken) }
    }
}

/// Everything that is hidden, broadcast to one another but not further: `[B or 1, N or 1, T, S]`.
fn all_hidden<B: Backend>(
    visibility: &Visibility,
    mask: &AttentionMask<B>,
    [batch, _, tokens, keys]: [usize; 4],
    device: &B::Device,
) -> Option<Tensor<B, 4, Bool>> {
    let by_key = mask.hidden_keys().map(|hidden| hidden.clone().reshape([batch, 1, 1, keys]));
    [visibility.hidden(tokens, keys, device), by_key, mask.hidden_pairs().cloned()].into_iter().flatten().reduce(
        |a, b| {
            let shape = std::array::from_fn(|axis| a.dims()[axis].max(b.dims()[axis]));
            expand_bool(a, shape).bool_or(expand_bool(b, shape))
        },
    )
}

/// `slope · (key position - query position)`: `[B or 1, N, T, S]`. The position of a key is the number of keys before it
/// that the mask keeps, so padding does not count; distances, not positions, keep the numbers small.
fn alibi<B: Backend>(
    slopes: &[f32],
    visibility: &Visibility,
    mask: &AttentionMask<B>,
    [batch, heads, tokens, keys]: [usize; 4],
    device: &B::Device,
) -> Tensor<B, 4> {
    check_shape("attention", "slopes", &[heads], &[slopes.len()]);
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
    let slopes =
        Tensor::<B, 1>::from_data(TensorData::new(slopes.to_vec(), [heads]), (device, burn::tensor::DType::F32));
    distance * slopes.reshape([1, heads, 1, 1])
}

/// Repeats every key/value head for the query heads of its group: head `n` reads `n / (N / K)`.
fn per_query_head<B: Backend>(per_kv_head: Tensor<B, 4, Bool>, heads: usize) -> Tensor<B, 4, Bool> {
    let [batch, kv_heads, rows, columns] = per_kv_head.dims();
    let group = heads / kv_heads;
    let repeated: Tensor<B, 5, Bool> = per_kv_head.reshape([batch, kv_heads, 1, rows, columns]);
    repeated.expand([batch, kv_heads, group, rows, columns]).reshape([batch, heads, rows, columns])
}

pub(super) fn expand_bool<B: Backend>(mask: Tensor<B, 4, Bool>, shape: [usize; 4]) -> Tensor<B, 4, Bool> {
    if mask.dims() == shape { mask } else { mask.expand(shape) }
}
