//! The problem that [`decode`](super::decode) and [`prefill`](super::prefill) solve.

use burn_deepspeed_core::path::{LARGEST_CUBE_HEAD, LARGEST_CUBE_VALUE};
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::cached::{CacheTensor, CheckedCache};
use super::contract::{Checked, Contract, f32_type, same_type};
use super::machine::{Unsupported, countable};
use super::mask_arguments::{CheckedMasks, MaskArguments, MaskSizes};
use crate::contract::product;

/// `softmax(hide(softcap(scale · QKᵀ) + alibi + bias)) · V`, head by head. A sink joins the sum of the softmax.
///
/// Tensors may have any strides but along the last axis, which is contiguous. All have the same element type, except for keys
/// and values that are int8: `scale · element`, with a scale for each head and token. Elements and scales of a hidden key may
/// have any value.
///
/// A launcher panics if shapes do not fit together, with the operation, the tensor, the expected and the actual shape. It
/// returns [`Unsupported`] for a layout, an element type or a size that the kernel or the device does not take.
#[derive(Debug)]
pub struct Attention<'a, R: Runtime> {
    /// `[B, N, T, H]`.
    pub query: &'a TensorHandle<R>,
    /// `[B, K, capacity, H]`; query head `n` reads key head `n / (N / K)`. Only the keys of a row are read.
    pub key: CacheTensor<'a, R>,
    /// `[B, K, capacity, Hv]`; may be a part of the keys.
    pub value: CacheTensor<'a, R>,
    /// `[B, N, T, Hv]`; every element is written.
    pub context: &'a TensorHandle<R>,
    /// Plain factor on QKᵀ.
    pub scale: f32,
    /// `[N]` of f32: a score for each query head that joins the sum of a query's weights, and has no value. It is neither scaled nor masked.
    pub sinks: Option<&'a TensorHandle<R>>,
    /// What is hidden and added.
    pub masks: &'a MaskArguments<R>,
    /// Keys of the longest row, at most the capacity. Slots from there on are not read, whatever the bounds of a row say.
    pub keys: usize,
}

impl<R: Runtime> Clone for Attention<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Runtime> Copy for Attention<'_, R> {}

/// The sizes of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionSizes {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tokens: usize,
    pub head_dim: usize,
    pub value_dim: usize,
}

impl AttentionSizes {
    /// An error unless values have as many features as keys.
    pub fn equal(&self) -> Result<(), Unsupported> {
        let Self { head_dim, value_dim, .. } = *self;
        if head_dim == value_dim { Ok(()) } else { Err(Unsupported::ValueDim { head_dim, value_dim }) }
    }

    /// Query heads of one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.batch * self.heads * self.tokens * self.value_dim == 0
    }
}

/// A problem that was checked.
#[derive(Debug)]
pub(crate) struct CheckedAttention<'a, R: Runtime> {
    pub query: Checked<'a, R>,
    pub key: CheckedCache<'a, R>,
    pub value: CheckedCache<'a, R>,
    pub context: Checked<'a, R>,
    pub sinks: Option<Checked<'a, R>>,
    pub masks: CheckedMasks<'a, R>,
    pub sizes: AttentionSizes,
}

impl<'a, R: Runtime> Attention<'a, R> {
    /// Checks every argument of an operation.
    #[track_caller]
    pub(crate) fn check(
        &self,
        operation: &'static str,
        client: &ComputeClient<R>,
    ) -> Result<CheckedAttention<'a, R>, Unsupported> {
        let contract = Contract::new(operation, client);
        let [batch, heads, tokens, head_dim] = contract.axes("query", self.query);
        let [_, kv_heads, capacity, _] = contract.axes("key", self.key.elements);
        contract.require(kv_heads > 0 && heads.is_multiple_of(kv_heads), || {
            format!("`query` has {heads} heads, expected a multiple of the {kv_heads} heads of `key`")
        });
        contract.require(self.keys <= capacity, || {
            format!("`keys` is {}, expected at most {capacity}, the slots of `key`", self.keys)
        });
        let [.., value_dim] = contract.axes::<4>("value", self.value.elements);
        let cache = |features| [batch, kv_heads, capacity, features];
        let query = contract.rows("query", self.query, &[batch, heads, tokens, head_dim])?;
        let key = self.key.check(&contract, ["key", "key_scales"], cache(head_dim), query.dtype)?;
        let value = self.value.check(&contract, ["value", "value_scales"], cache(value_dim), query.dtype)?;
        let context = contract.rows("context", self.context, &[batch, heads, tokens, value_dim])?;
        let sinks = self.sinks.map(|sinks| contract.rows("sinks", sinks, &[heads])).transpose()?;
        let masks = self.masks.check(&contract, MaskSizes { batch, heads, tokens, keys: self.keys })?;

        same_type("context", &context, query.dtype)?;
        sinks.map_or(Ok(()), |sinks| same_type("sinks", &sinks, f32_type()))?;
        contract.supports(&[query.dtype])?;
        if head_dim > LARGEST_CUBE_HEAD {
            return Err(Unsupported::HeadDim { head_dim, limit: LARGEST_CUBE_HEAD });
        }
        if value_dim > LARGEST_CUBE_VALUE {
            return Err(Unsupported::HeadDim { head_dim: value_dim, limit: LARGEST_CUBE_VALUE });
        }
        if head_dim == 0 && value_dim > 0 {
            return Err(Unsupported::ValueDim { head_dim, value_dim });
        }
        countable(product(&[batch, heads, tokens]))?;
        countable(self.keys)?;
        let sizes = AttentionSizes { batch, heads, kv_heads, tokens, head_dim, value_dim };
        Ok(CheckedAttention { query, key, value, context, sinks, masks, sizes })
    }
}
