//! Rotate, append to the cache, attend; DeepSpeed's `SoftmaxContextOp`, whose fallback is limited to the CPU's needs.

#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod plan;
mod reference;

pub use plan::{ContextProblem, Declined, Plan};
pub use reference::reference;

use burn::tensor::{Tensor, backend::Backend};

use crate::cache::{Assign, LayerCache};
use crate::error::check_shape;
use crate::mask::AttentionMask;
use crate::position::rotary::RotaryTable;
use crate::position::{PositionEncoding, Positions};
use crate::spec::AttentionSpec;

/// Where the keys and values of earlier tokens are.
#[derive(Debug)]
pub enum Keys<'a, B: Backend> {
    /// In a cache, to which the new ones are appended.
    Cached(LayerCache<'a, B>),
    /// There are none: the new tokens attend to each other.
    Fresh(&'a Positions),
}

/// The arguments of [`InferenceBackend::softmax_context`](super::InferenceBackend::softmax_context).
#[derive(Debug)]
pub struct SoftmaxContext<'a, B: Backend> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`.
    pub qkv: Tensor<B, 3>,
    /// Earlier tokens.
    pub keys: Keys<'a, B>,
    /// What the caller hides.
    pub mask: AttentionMask<B>,
    /// Sizes of the layer.
    pub spec: &'a AttentionSpec,
    /// Whether the visible keys and values are returned; they are copied for it.
    pub want_keys: bool,
}

impl<B: Backend> SoftmaxContext<'_, B> {
    /// What decides over the path.
    pub fn problem(&self) -> ContextProblem {
        let cache = match &self.keys {
            Keys::Cached(cache) => Some(cache.types()),
            Keys::Fresh(_) => None,
        };
        ContextProblem::new(self.qkv.dtype(), self.qkv.dims()[1], self.spec.head_dim, cache, &self.mask)
    }
}

/// What [`InferenceBackend::softmax_context`](super::InferenceBackend::softmax_context) returns.
#[derive(Debug, Clone)]
pub struct SoftmaxContextOutput<B: Backend> {
    /// `[B, T, N·H]`.
    pub context: Tensor<B, 3>,
    /// Keys and values, `[B, K, S, H]` each, if they were asked for.
    pub keys: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

/// Queries that are turned, and keys that are turned and, if there is a cache, in it.
struct Rotated<'a, B: Backend> {
    query: Tensor<B, 4>,
    keys: RotatedKeys<'a, B>,
}

enum RotatedKeys<'a, B: Backend> {
    Cached(LayerCache<'a, B>),
    Fresh(Tensor<B, 4>, Tensor<B, 4>),
}

/// Splits a packed projection, turns queries and keys, and appends to the cache.
fn rotate_and_append<'a, B: Backend>(
    qkv: Tensor<B, 3>,
    mut keys: Keys<'a, B>,
    spec: &AttentionSpec,
    assign: Assign<B>,
) -> Rotated<'a, B> {
    let [batch, tokens, _] = qkv.dims();
    let table = rotary_table(&mut keys, spec, [batch, tokens], &qkv.device());
    let [query, key, value] = split_heads(qkv, spec);
    let turn = |heads| match &table {
        Some(table) => table.apply(heads),
        None => heads,
    };
    let (query, key) = (turn(query), turn(key));
    let keys = match keys {
        Keys::Cached(mut cache) => {
            cache.append_with(key, value, assign);
            RotatedKeys::Cached(cache)
        }
        Keys::Fresh(_) => RotatedKeys::Fresh(key, value),
    };
    Rotated { query, keys }
}

/// Cosine and sine of the new tokens, if the layer turns queries and keys.
fn rotary_table<B: Backend>(
    keys: &mut Keys<'_, B>,
    spec: &AttentionSpec,
    sizes: [usize; 2],
    device: &B::Device,
) -> Option<RotaryTable<B>> {
    let PositionEncoding::Rotary(rotary) = &spec.position else { return None };
    Some(match keys {
        Keys::Cached(cache) => cache.rotary_table(rotary, device),
        Keys::Fresh(positions) => {
            let given = [positions.batch(), positions.tokens()];
            check_shape("softmax_context", "positions", &sizes, &given);
            rotary.table(positions, device)
        }
    })
}

/// The queries, keys and values of a packed projection.
///
/// # Shapes
/// - qkv: `[B, T, (N + 2K)·H]`
/// - output: `[B, N, T, H]` and twice `[B, K, T, H]`
pub fn split_heads<B: Backend>(qkv: Tensor<B, 3>, spec: &AttentionSpec) -> [Tensor<B, 4>; 3] {
    let [batch, tokens, _] = qkv.dims();
    check_shape("softmax_context", "qkv", &[batch, tokens, spec.qkv_width()], &qkv.dims());
    let (queries, keys) = (spec.query_width(), spec.kv_width());
    let part = |start, width| split(qkv.clone().narrow(2, start, width), width / spec.head_dim);
    [part(0, queries), part(queries, keys), part(queries + keys, keys)]
}

/// `[B, T, N·H]` as `[B, N, T, H]`.
pub(crate) fn split<B: Backend>(packed: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = packed.dims();
    packed.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
}

/// `[B, N, T, H]` as `[B, T, N·H]`.
pub(crate) fn merge_heads<B: Backend>(heads: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, count, tokens, head_dim] = heads.dims();
    heads.swap_dims(1, 2).reshape([batch, tokens, count * head_dim])
}
