//! The arguments of a cache write, and the checks of them.

use burn_deepspeed_core::kv_source::KvSource;
use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_core::qk_norm::QkNormKind;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use crate::contract::product;
use crate::cube::cached::{CacheTensor, CheckedCache};
use crate::cube::contract::{Checked, Contract, f32_type, same_type};
use crate::cube::machine::{Unsupported, countable};
use crate::cube::mask_arguments::{CheckedBounds, check_bounds};
use crate::cube::tensors::broadcast_strides;

/// Rotary positions of the new tokens.
#[derive(Debug, Clone)]
pub struct Rotation<R: Runtime> {
    /// Which features form a pair.
    pub layout: RotaryLayout,
    /// Cosines, `[B or 1, T, rotary_dim / 2]` of f32; `rotary_dim` is at most the head size.
    pub cos: TensorHandle<R>,
    /// Sines, of the shape and the strides of the cosines.
    pub sin: TensorHandle<R>,
}

/// The norm of queries and keys.
#[derive(Debug, Clone)]
pub struct HeadNorm<R: Runtime> {
    /// What is normalised over.
    pub kind: QkNormKind,
    /// Added to the mean square, or to the variance.
    pub epsilon: f32,
    /// Whether features are multiplied by `1 + weight`.
    pub plus_one: bool,
    /// Whether queries and keys are rotated first; not with [`QkNormKind::RmsOfAllHeads`].
    pub after_rotation: bool,
    /// Whether values are normalised as well, without weights; only with [`QkNormKind::Rms`].
    pub values: bool,
    /// The weights of queries, `[1 or N, H]`, and of keys, `[1 or K, H]`, of f32. Those of keys are not read where the projection has
    /// none; pass those of queries again.
    pub weights: Option<[TensorHandle<R>; 2]>,
    /// The sums of squares of all queries and of all keys of a token, for [`QkNormKind::RmsOfAllHeads`] alone.
    pub sums: Option<Sums<R>>,
}

/// The sums of the squares of the queries and of the keys of each token.
#[derive(Debug, Clone)]
pub struct Sums<R: Runtime> {
    /// `[B, T, 2]` of f32.
    pub sums: TensorHandle<R>,
    /// Features of all queries of a token, and of all keys, over which the sums are.
    pub features: [usize; 2],
}

/// The arguments of [`launch`](super::launch).
#[derive(Debug)]
pub struct CacheWrite<'a, R: Runtime> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`, or the part of it that [`source`](Self::source) says.
    pub qkv: &'a TensorHandle<R>,
    /// What the projection holds. Of a layer that reads the keys of another it holds the queries, and the cache is not touched.
    pub source: KvSource,
    /// `[B, N, T, H]`; every element is written.
    pub query: &'a TensorHandle<R>,
    /// `[B, K, capacity, H]`; the slots of the new tokens are written, the others are not touched. Scales are written with the
    /// elements.
    pub key: CacheTensor<'a, R>,
    /// `[B, K, capacity, H]`, as the keys.
    pub value: CacheTensor<'a, R>,
    /// Normalises queries and keys.
    pub norm: Option<&'a HeadNorm<R>>,
    /// Rotates queries and keys.
    pub rotation: Option<&'a Rotation<R>>,
    /// What the features of each query are multiplied by at last: `[B or 1, T]` of f32.
    pub factors: Option<&'a TensorHandle<R>>,
    /// `[B, 2]` of u32 or i32: the slot of each row's first new token, and the end of its new tokens. Tokens without a slot in
    /// the cache are dropped.
    pub bounds: Option<&'a TensorHandle<R>>,
    /// The first new slot, where `bounds` does not say.
    pub start: u32,
    /// The end of the new slots, at most the capacity, where `bounds` does not say.
    pub end: u32,
}

impl<R: Runtime> Clone for CacheWrite<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Runtime> Copy for CacheWrite<'_, R> {}

/// [`CacheWrite`], checked.
pub(super) struct CheckedWrite<'a, R: Runtime> {
    pub qkv: Checked<'a, R>,
    pub query: Checked<'a, R>,
    pub key: CheckedCache<'a, R>,
    pub value: CheckedCache<'a, R>,
    pub norm: Option<CheckedNorm<'a, R>>,
    /// Layout, cosines and sines.
    pub rotation: Option<(RotaryLayout, [Checked<'a, R>; 2])>,
    pub factors: Option<Checked<'a, R>>,
    pub bounds: CheckedBounds<'a, R>,
    /// Key/value heads that are written.
    pub kv_heads: usize,
}

/// [`HeadNorm`], checked.
pub(super) struct CheckedNorm<'a, R: Runtime> {
    pub kind: QkNormKind,
    pub epsilon: f32,
    pub plus_one: bool,
    pub after_rotation: bool,
    pub values: bool,
    /// Those of queries and of keys.
    pub weights: Option<[Checked<'a, R>; 2]>,
    /// The sums, and the features of queries and of keys that they are over.
    pub sums: Option<(Checked<'a, R>, [usize; 2])>,
}

impl<'a, R: Runtime> CacheWrite<'a, R> {
    #[track_caller]
    pub(super) fn check(&self, client: &ComputeClient<R>) -> Result<CheckedWrite<'a, R>, Unsupported> {
        let contract = Contract::new("cache_write", client);
        let [batch, heads, tokens, head_dim] = contract.axes("query", self.query);
        let [_, kv_heads, capacity, _] = contract.axes("key", self.key.elements);
        let shape = [batch, kv_heads, capacity, head_dim];
        let of_keys = kv_heads.saturating_mul(self.source.projected());
        let width = of_keys.saturating_add(heads).saturating_mul(head_dim);
        let qkv = contract.rows("qkv", self.qkv, &[batch, tokens, width])?;
        let query = contract.rows("query", self.query, &[batch, heads, tokens, head_dim])?;
        let key = self.key.check(&contract, ["key", "key_scales"], shape, qkv.dtype)?;
        let value = self.value.check(&contract, ["value", "value_scales"], shape, qkv.dtype)?;
        let rotation = match self.rotation {
            Some(rotation) => Some((rotation.layout, rotation.check(&contract, [batch, tokens, head_dim])?)),
            None => None,
        };
        let key_weights = if self.source.is_own() { kv_heads } else { heads };
        let norm =
            self.norm.map(|norm| norm.check(&contract, [batch, tokens], [heads, key_weights, head_dim])).transpose()?;
        let factors = self.factors.map(|factors| check_factors(&contract, factors, [batch, tokens])).transpose()?;
        let bounds = check_bounds(&contract, self.bounds, batch, [self.start, self.end], [tokens, capacity])?;
        same_type("query", &query, qkv.dtype)?;
        contract.supports(&[qkv.dtype])?;
        countable(product(&[batch, tokens, width]))?;
        let kv_heads = if self.source.is_own() { kv_heads } else { 0 };
        Ok(CheckedWrite { qkv, query, key, value, norm, rotation, factors, bounds, kv_heads })
    }
}

impl<R: Runtime> Rotation<R> {
    /// Cosines and sines.
    #[track_caller]
    fn check(
        &self,
        contract: &Contract<'_, R>,
        [batch, tokens, head_dim]: [usize; 3],
    ) -> Result<[Checked<'_, R>; 2], Unsupported> {
        let [rows, _, half] = contract.axes("cos", &self.cos);
        let rows = if rows == 1 { 1 } else { batch };
        let cos = contract.rows("cos", &self.cos, &[rows, tokens, half])?;
        let sin = contract.rows("sin", &self.sin, &[rows, tokens, half])?;
        contract.require(half <= head_dim / 2, || {
            format!("`cos` has {half} pairs, expected at most half of the {head_dim} features of a head")
        });
        let strides: [&[usize]; 2] = [cos.strides(), sin.strides()];
        contract.require(broadcast_strides::<R, 3>(cos) == broadcast_strides(sin), || {
            format!("`sin` has strides {:?}, expected those of `cos`, {:?}", strides[1], strides[0])
        });
        same_type("cos", &cos, f32_type())?;
        same_type("sin", &sin, f32_type())?;
        Ok([cos, sin])
    }
}

impl<R: Runtime> HeadNorm<R> {
    #[track_caller]
    fn check(
        &self,
        contract: &Contract<'_, R>,
        [batch, tokens]: [usize; 2],
        [heads, kv_heads, head_dim]: [usize; 3],
    ) -> Result<CheckedNorm<'_, R>, Unsupported> {
        let of_all = self.kind == QkNormKind::RmsOfAllHeads;
        contract.require(of_all == self.sums.is_some(), || {
            format!("`sums` is {}, and the norm is over {}", given(self.sums.is_some()), over(of_all))
        });
        contract.require(!(of_all && self.after_rotation), || {
            format!("`after_rotation` is true, expected false for a norm over {}", over(of_all))
        });
        contract.require(!self.values || self.kind == QkNormKind::Rms, || {
            format!("`values` is true, expected false for a norm of kind {:?}", self.kind)
        });
        let rows = |name, tensor, heads| {
            let [rows, _] = contract.axes(name, tensor);
            let rows = if rows == 1 { 1 } else { heads };
            let weights = contract.rows(name, tensor, &[rows, head_dim])?;
            same_type(name, &weights, f32_type()).map(|()| weights)
        };
        let weights = match &self.weights {
            Some([query, key]) => Some([rows("query_weights", query, heads)?, rows("key_weights", key, kv_heads)?]),
            None => None,
        };
        let sums = match &self.sums {
            Some(Sums { sums, features }) => {
                let sums = contract.exact("sums", sums, &[batch, tokens, 2])?;
                same_type("sums", &sums, f32_type())?;
                Some((sums, *features))
            }
            None => None,
        };
        let Self { kind, epsilon, plus_one, after_rotation, values, .. } = *self;
        Ok(CheckedNorm { kind, epsilon, plus_one, after_rotation, values, weights, sums })
    }
}

fn given(given: bool) -> &'static str {
    if given { "given" } else { "None" }
}

fn over(all: bool) -> &'static str {
    if all { "all heads" } else { "each head" }
}

#[track_caller]
fn check_factors<'a, R: Runtime>(
    contract: &Contract<'_, R>,
    factors: &'a TensorHandle<R>,
    [batch, tokens]: [usize; 2],
) -> Result<Checked<'a, R>, Unsupported> {
    let [rows, _] = contract.axes("factors", factors);
    let rows = if rows == 1 { 1 } else { batch };
    let factors = contract.exact("factors", factors, &[rows, tokens])?;
    same_type("factors", &factors, f32_type()).map(|()| factors)
}
