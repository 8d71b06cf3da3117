//! The projections of query, key and value: fused, or separate.

use std::borrow::Cow;
use std::convert::Infallible;

use burn::module::Module;
use burn::tensor::backend::Backend;

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::config::ActivationRounding;

use super::int8::Int8Blocks;
use super::projection::Weight;
use crate::error::WeightError;

/// The QKV projection: one fused matrix, or three separate ones.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a module cannot be boxed, and a layer has one")]
pub enum QkvWeight<B: Backend> {
    /// `attn_qkvw`: its `(N + 2K)·H` outputs are `q | k | v`.
    Fused(Weight<B>),
    /// `attn_qw`, `attn_kw`, `attn_vw`: as DeepSpeed keeps them under `set_empty_params`, and for cross attention.
    Separate(SeparateQkv<B>),
}

/// Separate query, key and value projections; inputs may differ in width (cross attention).
#[derive(Module, Debug)]
pub struct SeparateQkv<B: Backend> {
    /// To `N·H` features.
    pub query: Weight<B>,
    /// To `K·H` features.
    pub key: Weight<B>,
    /// To `K·H` features.
    pub value: Weight<B>,
}

impl<B: Backend> QkvWeight<B> {
    /// The same with int8 matrices.
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](super::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        self.try_map(|weight| weight.quantize(blocks))
    }

    /// The same with matrices of blocks.
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`](super::BlockMatrix::quantize).
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        self.try_map(|weight| weight.quantize_blocks(format))
    }

    /// The same, rounding the inputs of matrices of int8 or of blocks, or not; see [`Weight::with_rounded_input`].
    pub fn with_rounded_input(self, rounding: impl Into<ActivationRounding>) -> Self {
        let rounding = rounding.into();
        let Ok(rounded) = self.try_map(|weight| Ok::<_, Infallible>(weight.with_rounded_input(rounding)));
        rounded
    }

    /// The fused projection, or that of the queries.
    pub fn first(&self) -> &Weight<B> {
        match self {
            Self::Fused(fused) => fused,
            Self::Separate(separate) => &separate.query,
        }
    }

    fn try_map<E>(self, change: impl Fn(Weight<B>) -> Result<Weight<B>, E>) -> Result<Self, E> {
        Ok(match self {
            Self::Fused(weight) => Self::Fused(change(weight)?),
            Self::Separate(SeparateQkv { query, key, value }) => {
                Self::Separate(SeparateQkv { query: change(query)?, key: change(key)?, value: change(value)? })
            }
        })
    }

    /// Separate projections: borrowed if they are separate already, otherwise cut out of the fused one. `query_width` is `N·H`.
    pub fn separate(&self, query_width: usize) -> Cow<'_, SeparateQkv<B>> {
        match self {
            // Borrowed, not cloned: a clone of a parameter that was never read draws different values.
            Self::Separate(separate) => Cow::Borrowed(separate),
            Self::Fused(fused) => {
                let kv_width = (fused.output_size() - query_width) / 2;
                Cow::Owned(SeparateQkv {
                    query: fused.outputs(0, query_width),
                    key: fused.outputs(query_width, kv_width),
                    value: fused.outputs(query_width + kv_width, kv_width),
                })
            }
        }
    }
}
