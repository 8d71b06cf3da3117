//! Self-attention of decoders and encoders.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::sum::{self, Link};
use crate::cache::{KvCache, LayerCache};
use crate::element::element_type;
use crate::error::{AttentionError, ConfigError};
use crate::mask::AttentionMask;
use crate::ops::{ContextProblem, InferenceBackend, Keys, Operations, Plan, SoftmaxContext};
use crate::parallel::Communicator;
use crate::position::Positions;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, QkvWeight, Weight};

/// Tokens in the cache behind which [`DeepSpeedSelfAttention::warmup`] decodes: enough to split the keys.
const WARMUP_HISTORY: usize = 1024;

/// Self-attention with fused pre-norm, rotary positions and KV cache; DeepSpeed's `ds_attention.py`, equation 1 of
/// [Attention Is All You Need](https://arxiv.org/abs/1706.03762).
///
/// One type for decoders and encoders: the configuration says whether there is a norm in front, a triangle, a window,
/// rotary positions, grouped heads.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, NormType};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// // a LLaMA layer: RMSNorm, rotary halves, two query heads to a key/value head
/// let attention = DeepSpeedInferenceConfig::new(64, 4)
///     .with_dtype(DataType::Fp32)
///     .with_norm_type(NormType::RMSNorm)
///     .with_num_kv(Some(2))
///     .with_rotary_dim(Some(16))
///     .with_rotate_half(true)
///     .with_rotate_every_two(false)
///     .init_self_attention::<NdArray>(0, &device)?;
/// let output = attention.forward_uncached(Tensor::ones([2, 5, 64], &device), AttentionMask::none(), None)?;
/// assert_eq!(output.dims(), [2, 5, 64]);
/// # Ok(()) }
/// ```
#[derive(Module, Debug)]
pub struct DeepSpeedSelfAttention<B: Backend> {
    pub(crate) norm: Option<FusedNorm<B>>,
    pub(crate) qkv: QkvWeight<B>,
    pub(crate) output: Weight<B>,
    #[module(skip)]
    pub(crate) spec: AttentionSpec,
    #[module(skip)]
    pub(crate) defer_output_bias: bool,
    #[module(skip)]
    pub(crate) link: Option<Link>,
}

/// Which of DeepSpeed's outputs are wanted beside the main one; the others are not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outputs {
    /// `key_layer` and `value_layer`: the visible keys and values, copied out of the cache.
    pub keys: bool,
    /// `context_layer`: what goes into the output projection.
    pub context: bool,
    /// `inp_norm`: the normalised input.
    pub inp_norm: bool,
}

impl Outputs {
    /// All of them.
    pub const ALL: Self = Self { keys: true, context: true, inp_norm: true };
}

/// What DeepSpeed's attention returns as a tuple.
#[derive(Debug, Clone)]
pub struct AttentionOutput<B: Backend> {
    /// Behind the output projection, `[B, T, E]`.
    pub output: Tensor<B, 3>,
    /// Visible keys, `[B, K, S, H]`.
    pub key: Option<Tensor<B, 4>>,
    /// Visible values, `[B, K, S, H]`.
    pub value: Option<Tensor<B, 4>>,
    /// In front of the output projection, `[B, T, N·H]`.
    pub context: Option<Tensor<B, 3>>,
    /// Normalised input, `[B, T, E]`; `None` without a norm.
    pub inp_norm: Option<Tensor<B, 3>>,
}

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.spec
    }

    /// The norm in front; `None` for post-norm models.
    pub fn norm(&self) -> Option<&FusedNorm<B>> {
        self.norm.as_ref()
    }

    /// The QKV projection.
    pub fn qkv(&self) -> &QkvWeight<B> {
        &self.qkv
    }

    /// The output projection.
    pub fn output(&self) -> &Weight<B> {
        &self.output
    }

    /// The bias of the output projection, `[E]`: to be added by the caller under `defer_output_bias` and behind
    /// [`forward_partial`](Self::forward_partial), once.
    pub fn output_bias(&self) -> Option<Tensor<B, 1>> {
        self.output.bias()
    }

    /// Whether the inputs of int8 projections are rounded, where that makes them faster: `round_activations` of the configuration; see
    /// [`Weight::with_rounded_input`].
    pub fn with_rounded_activations(self, rounds: bool) -> Self {
        Self { qkv: self.qkv.with_rounded_input(rounds), output: self.output.with_rounded_input(rounds), ..self }
    }

    /// Adds up the outputs of all ranks from now on: needed where `mp_size` is above 1. One communicator serves every layer.
    /// See [`parallel`](crate::parallel).
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        let link = Some(Link::new(&self.spec, communicator)?);
        Ok(Self { link, ..self })
    }

    /// Whether the parameters require gradients: true after `init`, false after loading.
    pub fn with_training(self, training: bool) -> Self {
        sum::set_require_grad(self, training)
    }
}

impl<B: InferenceBackend> DeepSpeedSelfAttention<B> {
    /// Attends from `input` to itself and to every token that `cache` already holds.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`, the input in front of the norm
    /// - mask: broadcasts to `[B, N, T, S]`, where S counts the cached keys too
    ///
    /// # Errors
    /// [`AttentionError::NoCommunicator`] on one of several ranks without one; [`AttentionError::Communication`] if the sum over
    /// ranks fails, behind which the step must not be committed; [`AttentionError::NoFastPath`] under `require_fast`, before
    /// anything is written.
    pub fn forward(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        cache: LayerCache<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        Ok(self.forward_detailed(input, mask, Keys::Cached(cache), Outputs::default())?.output)
    }

    /// Attends among the tokens of `input` alone: encoders and training. Positions count from 0 unless given.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`
    /// - mask: broadcasts to `[B, N, T, T]`
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_uncached(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        positions: Option<&Positions>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens, _] = input.dims();
        let counted = Positions::sequential(&vec![0; batch], tokens);
        let keys = Keys::Fresh(positions.unwrap_or(&counted));
        Ok(self.forward_detailed(input, mask, keys, Outputs::default())?.output)
    }

    /// [`forward`](Self::forward) with the other outputs that DeepSpeed returns.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_detailed(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: Outputs,
    ) -> Result<AttentionOutput<B>, AttentionError> {
        if self.spec.require_fast {
            let cached = matches!(keys, Keys::Cached(_));
            sum::check_plan(&self.spec, "softmax_context", self.explain(input.dims()[1], cached))?;
        }
        let (context, finish) = self.attend(input, mask, keys, wanted);
        Ok(finish(sum::project_and_sum(&self.spec, self.link.as_ref(), context, &self.output, self.defer_output_bias)?))
    }

    /// The path that a step of so many new tokens takes, with a cache or without, and why not another.
    ///
    /// ```
    /// # use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig};
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), burn_deepspeed::ConfigError> {
    /// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
    /// let attention = config.init_self_attention::<NdArray>(0, &Default::default())?;
    /// let decoding = attention.explain(1, true);
    /// let prompt = attention.explain(100, true);
    /// assert_eq!(decoding.to_string(), "kernel `cpu::decode`");
    /// assert_eq!(prompt.to_string(), "kernel `cpu::flash`");
    /// # Ok(()) }
    /// ```
    pub fn explain(&self, tokens: usize, cached: bool) -> Plan {
        let dtype = element_type(self.output.dtype());
        let cache = cached.then(|| self.spec.kv_cache_dtype.types(dtype));
        let problem = ContextProblem::new(dtype, tokens, self.spec.head_dim, cache);
        B::Ops::plan_softmax_context(&problem, &self.output.device())
    }

    /// Runs steps of `tokens` new tokens in a batch of `batch` rows on a cache of its own, with little and with much behind
    /// them, so that every kernel that they need is compiled when the first request comes. Costs nothing on a CPU backend
    /// but time.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward); [`AttentionError::CacheFull`] for more tokens than `max_out_tokens`.
    pub fn warmup(&self, batch: usize, tokens: &[usize]) -> Result<(), AttentionError> {
        let device = self.output.device();
        let most = tokens.iter().copied().max().unwrap_or(0);
        let capacity = self.spec.max_out_tokens.min(most + WARMUP_HISTORY);
        let spec = AttentionSpec { max_out_tokens: capacity, ..self.spec.clone() };
        let dtype = self.output.dtype();
        for &new in tokens {
            let Ok(mut cache) = KvCache::new(&spec, 1, batch, &device) else {
                unreachable!("the module was built with this element type");
            };
            for history in [0, capacity.saturating_sub(new)] {
                cache.reset();
                if history > 0 {
                    cache.step(history)?.commit();
                }
                let mut step = cache.step(new)?;
                let input = Tensor::zeros([batch, new, self.spec.hidden_size], (&device, dtype));
                self.forward_partial(input, AttentionMask::none(), Keys::Cached(step.layer(0)), Outputs::default());
            }
        }
        // An error of the device shows in whatever comes next; there is nothing to read here.
        _ = B::sync(&device);
        Ok(())
    }

    /// What this rank adds to the sum over ranks. The output bias is not in it.
    pub fn forward_partial(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: Outputs,
    ) -> AttentionOutput<B> {
        let (context, finish) = self.attend(input, mask, keys, wanted);
        finish(B::Ops::vector_matmul(context, &self.output))
    }

    /// The context in front of the output projection, and what makes the outputs that were asked for of its projection.
    fn attend(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: Outputs,
    ) -> (Tensor<B, 3>, impl FnOnce(Tensor<B, 3>) -> AttentionOutput<B>) {
        let projected = B::Ops::qkv_gemm(input, self.norm.as_ref(), &self.qkv, wanted.inp_norm && self.norm.is_some());
        let attended = B::Ops::softmax_context(SoftmaxContext {
            qkv: projected.qkv,
            keys,
            mask,
            spec: &self.spec,
            want_keys: wanted.keys,
        });
        let context = wanted.context.then(|| attended.context.clone());
        let (key, value) = attended.keys.unzip();
        let inp_norm = projected.inp_norm;
        (attended.context, move |output| AttentionOutput { output, key, value, context, inp_norm })
    }
}
