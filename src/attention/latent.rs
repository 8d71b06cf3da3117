//! Multi-head latent attention.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::projections::{Projections, set_require_grad};
use crate::cache::LayerCache;
use crate::config::KvCacheType;
use crate::element::element_type;
use crate::error::{AttentionError, ConfigError, WeightError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::qkv_gemm::normalise;
use crate::ops::{InferenceBackend, Keys, LatentContext, LatentProblem, Operations, Plan};
use crate::parallel::Communicator;
use crate::position::Positions;
use crate::spec::{AttentionSpec, LatentSizes};
use crate::weight::{BlockFormat, FusedNorm, Int8Blocks, QkvWeight, Weight};
use crate::zeros::zeros;

/// Multi-head latent attention (MLA) of DeepSeek V2 and V3, <https://arxiv.org/abs/2405.04434>.
///
/// A token is cached as one row for all heads: the latent from which its keys and values are projected, and the rotated part of its keys.
/// Values take no memory of their own. In DeepSeek's layers that is 576 numbers in place of 40960. A few new tokens read the rows where
/// they are; a prompt projects keys and values from them first.
///
/// The module contains the norm before attention. `init_latent_attention` builds it from a configuration and [`LatentSizes`].
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, LatentSizes, NormType, RotaryLayout};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// let sizes = LatentSizes::new(24, [16, 8], 12).with_q_lora_rank(Some(20));
/// let config = DeepSpeedInferenceConfig::new(64, 4) // hidden size, heads
///     .with_dtype(DataType::Fp32)
///     .with_norm_type(NormType::RMSNorm)
///     .with_rotary(RotaryLayout::Interleaved, 8)
///     .with_num_hidden_layers(Some(1))
///     .with_max_out_tokens(100);
/// let attention = config.init_latent_attention::<NdArray>(&sizes, 0, &device)?;
/// let mut cache = config.init_latent_cache::<NdArray>(&sizes, 1, &device)?;
/// assert_eq!(cache.memory_bytes(), 100 * 4 * (24 + 8));
/// for tokens in [7, 1] {
///     let mut step = cache.step(tokens)?;
///     let output = attention.forward(Tensor::ones([1, tokens, 64], &device), AttentionMask::none(), step.layer(0))?;
///     assert_eq!(output.dims(), [1, tokens, 64]);
///     step.commit();
/// }
/// # Ok(()) }
/// ```
#[derive(Module, Debug)]
pub struct DeepSpeedLatentAttention<B: Backend> {
    pub(crate) norm: Option<FusedNorm<B>>,
    pub(crate) query: LatentQuery<B>,
    /// Its `qkv` is the projection to a latent and to the shared part of the keys.
    pub(crate) projections: Projections<B>,
    pub(crate) latent_norm: FusedNorm<B>,
    pub(crate) up: Weight<B>,
}

/// The projection of queries: in one product, or by way of a latent.
#[derive(Module, Debug)]
pub struct LatentQuery<B: Backend> {
    /// To the latent, and its norm; `None` if there is none.
    pub(crate) latent: Option<QueryLatent<B>>,
    /// To the queries of this rank's heads.
    pub(crate) up: QkvWeight<B>,
}

/// The latent of queries.
#[derive(Module, Debug)]
pub struct QueryLatent<B: Backend> {
    pub(crate) down: QkvWeight<B>,
    pub(crate) norm: FusedNorm<B>,
}

impl<B: Backend> LatentQuery<B> {
    fn map(self, change: impl Fn(QkvWeight<B>) -> Result<QkvWeight<B>, WeightError>) -> Result<Self, WeightError> {
        let with = |QueryLatent { down, norm }| Ok::<_, WeightError>(QueryLatent { down: change(down)?, norm });
        let latent = self.latent.map(with);
        Ok(Self { latent: latent.transpose()?, up: change(self.up)? })
    }
}

impl<B: Backend> DeepSpeedLatentAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.projections.spec
    }

    /// Sizes of the latents.
    pub fn sizes(&self) -> LatentSizes {
        self.spec().latent.unwrap_or_else(|| unreachable!("the module is built from latent sizes"))
    }

    /// The projection from latents to keys and values, head by head: `[N·(nope + Hv), L]`.
    pub fn up(&self) -> &Weight<B> {
        &self.up
    }

    /// The output projection.
    pub fn output(&self) -> &Weight<B> {
        &self.projections.output
    }

    /// See [`DeepSpeedSelfAttention::output_bias`](crate::DeepSpeedSelfAttention::output_bias).
    pub fn output_bias(&self) -> Option<Tensor<B, 1>> {
        self.projections.output.bias()
    }

    /// This layer with int8 matrices, except for [`up`](Self::up): it is multiplied head by head, and stays dense, in any
    /// `matrix_format` as well.
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let query = self.query.map(|weight| weight.quantize(blocks))?;
        Ok(Self { query, projections: self.projections.quantize(blocks)?, ..self })
    }

    /// This layer with matrices of blocks, except for [`up`](Self::up), which stays dense.
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`](crate::weight::BlockMatrix::quantize).
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        let query = self.query.map(|weight| weight.quantize_blocks(format))?;
        Ok(Self { query, projections: self.projections.quantize_blocks(format)?, ..self })
    }

    /// See [`DeepSpeedSelfAttention::with_kv_cache_dtype`](crate::DeepSpeedSelfAttention::with_kv_cache_dtype).
    pub fn with_kv_cache_dtype(self, types: impl Into<KvCacheType>) -> Self {
        Self { projections: self.projections.with_kv_cache_dtype(types.into()), ..self }
    }

    /// See [`DeepSpeedSelfAttention::with_communicator`](crate::DeepSpeedSelfAttention::with_communicator). Heads are split over the
    /// ranks; each has the whole cache.
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

impl<B: InferenceBackend> DeepSpeedLatentAttention<B> {
    /// Attends from `input` to itself and to every token that `cache` already holds.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`, the input before the norm; T may be 0
    /// - mask: broadcasts to `[B, N, T, S]`, where S counts the cached tokens too
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::forward`](crate::DeepSpeedSelfAttention::forward).
    ///
    /// # Panics
    /// If a shape is wrong.
    pub fn forward(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        cache: LayerCache<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.attend_and_project(input, mask, Keys::Cached(cache))
    }

    /// Attends among the tokens of `input` alone. By default positions count from 0.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`; T may be 0
    /// - mask: broadcasts to `[B, N, T, T]`
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), without those about the cache.
    ///
    /// # Panics
    /// If a shape is wrong.
    pub fn forward_uncached(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        positions: Option<&Positions>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens, _] = input.dims();
        let counted = Positions::sequential(&vec![0; batch], tokens);
        self.attend_and_project(input, mask, Keys::Fresh(positions.unwrap_or(&counted)))
    }

    /// The output of this rank before the sum over ranks, without the bias of the output projection. It does not read `require_fast`.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward) that concern the cache.
    ///
    /// # Panics
    /// If a shape is wrong.
    pub fn forward_partial(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        Ok(self.projections.partial(self.context(input, mask, keys)?))
    }

    /// The path that a step of `tokens` new tokens takes, with a cache or without, and the reason if it is the reference.
    pub fn explain(&self, tokens: usize, cached: bool) -> Plan {
        let dtype = element_type(self.up.dtype());
        let cache = cached.then(|| self.spec().kv_cache_dtype.types(dtype).key);
        let problem = LatentProblem { dtype, tokens, sizes: self.sizes(), cache };
        B::Ops::plan_latent_context(&problem, &self.up.device())
    }

    fn attend_and_project(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let (tokens, cached) = (input.dims()[1], matches!(keys, Keys::Cached(_)));
        self.projections.require("latent_context", || self.explain(tokens, cached))?;
        self.projections.finish(self.context(input, mask, keys)?)
    }

    /// What goes into the output projection, `[B, T, N·Hv]`.
    fn context(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let (name, sizes) = ("DeepSpeedLatentAttention", self.sizes());
        let [batch, tokens, _] = input.dims();
        check_shape(name, "input", &[batch, tokens, self.spec().hidden_size], &input.dims());
        if let Keys::Cached(cache) = &keys {
            cache.check(self.spec(), self.up.dtype())?;
            let expected = [cache.rows().new_tokens().len(), cache.rows().width()];
            check_shape(name, "input, rows and tokens", &expected, &[batch, tokens]);
        }
        if batch * tokens == 0 {
            let width = self.spec().heads() * sizes.v_head_dim;
            return Ok(zeros([batch, tokens, width], (&input.device(), input.dtype())));
        }
        let project = |input, norm, weight| B::Ops::qkv_gemm(input, norm, weight, false).qkv;
        let rows = project(input.clone(), self.norm.as_ref(), &self.projections.qkv);
        let query = match &self.query.latent {
            Some(QueryLatent { down, norm }) => {
                project(project(input, self.norm.as_ref(), down), Some(norm), &self.query.up)
            }
            None => project(input, self.norm.as_ref(), &self.query.up),
        };
        let (rank, dtype) = (sizes.kv_lora_rank, rows.dtype());
        let latents = normalise(rows.clone().narrow(2, 0, rank), &self.latent_norm).cast(dtype);
        let rows = Tensor::cat(vec![latents, rows.narrow(2, rank, sizes.qk_rope_head_dim)], 2);
        let (up, spec) = (&self.up, self.spec());
        Ok(B::Ops::latent_context(LatentContext { query, rows, up, keys, mask, spec }))
    }
}
