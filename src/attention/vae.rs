//! The attention of a VAE, which encodes images for diffusion models and decodes them.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::projections::{Projections, set_require_grad};
use crate::config::{ActivationRounding, VaeBlock};
use crate::error::{AttentionError, ConfigError, WeightError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::attention::Visibility;
use crate::ops::softmax_context::{merge_heads, split_all};
use crate::ops::{Attention, InferenceBackend, Operations, Plan};
use crate::parallel::Communicator;
use crate::spec::AttentionSpec;
use crate::weight::{BlockFormat, GroupNorm, Int8Blocks, QkvWeight, Weight};

/// Attention between the pixels of an image: norm of groups of channels, self-attention, residual. It is in the middle block of
/// `AutoencoderKL` of `diffusers`, where DeepSpeed's `DSVAE` leaves it to `diffusers`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig, VaeBlock};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// let attention = DeepSpeedInferenceConfig::new(64, 1) // channels, heads
///     .with_dtype(DataType::Fp32)
///     .init_vae::<NdArray>(VaeBlock::default(), 0, &device)?;
/// let output = attention.forward(Tensor::ones([1, 64, 4, 6], &device))?;
/// assert_eq!(output.dims(), [1, 64, 4, 6]);
/// # Ok(()) }
/// ```
#[derive(Module, Debug)]
pub struct DeepSpeedVaeAttention<B: Backend> {
    pub(crate) norm: GroupNorm<B>,
    pub(crate) projections: Projections<B>,
    #[module(skip)]
    pub(crate) block: VaeBlock,
}

impl<B: Backend> DeepSpeedVaeAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.projections.spec
    }

    /// The norm of groups of channels.
    pub fn norm(&self) -> &GroupNorm<B> {
        &self.norm
    }

    /// The QKV projection, in the order `q | k | v`.
    pub fn qkv(&self) -> &QkvWeight<B> {
        &self.projections.qkv
    }

    /// The output projection.
    pub fn output(&self) -> &Weight<B> {
        &self.projections.output
    }

    /// See [`DeepSpeedSelfAttention::quantize`](crate::DeepSpeedSelfAttention::quantize).
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { projections: self.projections.quantize(blocks)?, ..self })
    }

    /// See [`DeepSpeedSelfAttention::quantize_blocks`](crate::DeepSpeedSelfAttention::quantize_blocks).
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`](crate::weight::BlockMatrix::quantize).
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        Ok(Self { projections: self.projections.quantize_blocks(format)?, ..self })
    }

    /// See [`DeepSpeedSelfAttention::with_rounded_activations`](crate::DeepSpeedSelfAttention::with_rounded_activations).
    pub fn with_rounded_activations(self, rounding: impl Into<ActivationRounding>) -> Self {
        let rounding = rounding.into();
        Self { projections: self.projections.with_rounded_input(rounding), ..self }
    }

    /// See [`DeepSpeedSelfAttention::with_communicator`](crate::DeepSpeedSelfAttention::with_communicator).
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        Ok(Self { projections: self.projections.with_communicator(communicator)?, ..self })
    }

    /// See [`DeepSpeedSelfAttention::with_training`](crate::DeepSpeedSelfAttention::with_training).
    pub fn with_training(self, training: bool) -> Self {
        set_require_grad(self, training)
    }
}

impl<B: InferenceBackend> DeepSpeedVaeAttention<B> {
    /// Attends from every pixel to every pixel, and adds the image.
    ///
    /// # Shapes
    /// - image, output: `[B, C, height, width]`
    ///
    /// # Errors
    /// [`AttentionError::NoCommunicator`] on one of several ranks without a communicator; [`AttentionError::Communication`] if
    /// the sum over ranks fails; [`AttentionError::NoFastPath`] under `require_fast`.
    ///
    /// # Panics
    /// If the shape is wrong.
    pub fn forward(&self, image: Tensor<B, 4>) -> Result<Tensor<B, 4>, AttentionError> {
        let [batch, channels, height, width] = image.dims();
        let expected = [batch, self.spec().hidden_size, height, width];
        check_shape("DeepSpeedVaeAttention", "image", &expected, &image.dims());
        let pixels = height * width;
        self.projections.require("masked_attention", || self.explain(pixels))?;
        if batch * pixels == 0 {
            return Ok(image);
        }
        let normed = B::Ops::group_norm(image.clone().reshape([batch, channels, pixels]), &self.norm);
        let qkv = B::Ops::qkv_gemm(normed.swap_dims(1, 2), None, self.qkv(), false).qkv;
        let output = self.projections.finish(self.attend(qkv))?;
        let output = output.swap_dims(1, 2).reshape([batch, channels, height, width]) + image;
        Ok(match self.block.rescale_output_factor {
            1.0 => output,
            factor => output / factor,
        })
    }

    /// The path that attention of `pixels` pixels takes, and the reason if it is the reference.
    pub fn explain(&self, pixels: usize) -> Plan {
        self.projections.explain(pixels)
    }

    /// The context of the pixels, `[B, pixels, N·H]`.
    fn attend(&self, qkv: Tensor<B, 3>) -> Tensor<B, 3> {
        let visibility = Visibility::full(qkv.dims()[1]);
        let [query, key, value] = split_all(qkv, self.spec());
        let AttentionSpec { scale, softcap, .. } = *self.spec();
        let (sinks, slopes, mask) = (None, None, AttentionMask::none());
        let attention = Attention { query, key, value, scale, softcap, sinks, slopes, visibility, mask };
        merge_heads(B::Ops::masked_attention(attention))
    }
}
