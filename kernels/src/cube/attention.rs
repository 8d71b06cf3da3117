//! The problem that [`decode`](super::decode) and prefill solve.

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::cached::Side;
use super::machine::{Unsupported, check_extent, check_rows, check_same_type};
use super::masks::MaskArguments;

/// `softmax(hide(softcap(scale · QKᵀ) + alibi + bias)) · V`, head by head.
///
/// Every tensor may have any strides but along its last axis, whose elements lie one behind the other. All have the same
/// element type, but for keys and values that are int8: `scale · element`, with a scale for each head and token. Elements and
/// scales of a hidden key may be anything.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a, R: Runtime> {
    /// `[B, N, T, H]`.
    pub query: &'a TensorHandle<R>,
    /// `[B, K, capacity, H]`; query head `n` reads key head `n / (N / K)`. Only the keys of a row are read.
    pub key: &'a TensorHandle<R>,
    /// `[B, K, capacity]` of f32, if the keys are int8.
    pub key_scales: Option<&'a TensorHandle<R>>,
    /// `[B, K, capacity, H]`.
    pub value: &'a TensorHandle<R>,
    /// `[B, K, capacity]` of f32, if the values are int8.
    pub value_scales: Option<&'a TensorHandle<R>>,
    /// `[B, N, T, H]`; every element is written.
    pub context: &'a TensorHandle<R>,
    /// Plain factor on QKᵀ.
    pub scale: f32,
    /// What is hidden and added.
    pub masks: &'a MaskArguments<R>,
    /// Keys of the longest row.
    pub keys: usize,
}

/// The sizes of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionSizes {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tokens: usize,
    pub head_dim: usize,
}

impl AttentionSizes {
    /// Query heads of one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

impl<'a, R: Runtime> Attention<'a, R> {
    /// The keys and their scales.
    pub(crate) fn keys(&self) -> Side<'a, R> {
        Side::keys(self.key, self.key_scales)
    }

    /// The values and their scales.
    pub(crate) fn values(&self) -> Side<'a, R> {
        Side::values(self.value, self.value_scales)
    }

    /// The sizes, once the layout is known to suit the kernels.
    pub(crate) fn check(&self, client: &ComputeClient<R>, largest_head: usize) -> Result<AttentionSizes, Unsupported> {
        let [batch, heads, tokens, head_dim] = std::array::from_fn(|axis| self.query.shape()[axis]);
        if head_dim > largest_head {
            return Err(Unsupported::HeadDim { head_dim, limit: largest_head });
        }
        let value_dim = self.value.shape()[3];
        if value_dim != head_dim {
            return Err(Unsupported::ValueDim { head_dim, value_dim });
        }
        self.keys().check(client, self.query.dtype)?;
        self.values().check(client, self.query.dtype)?;
        check_same_type(self.query.dtype, &[("context", Some(self.context))])?;
        check_rows(&[("query", self.query), ("key", self.key), ("value", self.value), ("context", self.context)])?;
        check_extent(&[self.query, self.key, self.value, self.context])?;
        self.masks.check()?;
        Ok(AttentionSizes { batch, heads, kv_heads: self.key.shape()[1], tokens, head_dim })
    }
}

/// Strides of batch, head and token, in elements or vectors.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct HeadStrides {
    pub batch: u32,
    pub head: u32,
    pub token: u32,
}

#[cube]
impl HeadStrides {
    /// The first element or vector of a head of a row.
    pub fn head(&self, batch: u32, head: u32) -> u32 {
        batch * self.batch + head * self.head
    }
}

/// The strides of a `[B, heads, tokens, features]` tensor, in vectors of `vector` elements.
pub(crate) fn head_strides<R: Runtime>(tensor: &TensorHandle<R>, vector: usize) -> HeadStridesLaunch<R> {
    let stride = |axis: usize| (tensor.strides()[axis] / vector) as u32;
    HeadStridesLaunch::new(stride(0), stride(1), stride(2))
}
