//! Self-attention of decoders and encoders.

mod quantize;

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::outputs::{AttentionOutput, WantedOutputs};
use super::projections::{Projections, set_require_grad};
use crate::cache::{KvCache, LayerCache};
use crate::config::KvCacheType;
use crate::element::element_type;
use crate::error::{AttentionError, ConfigError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::softmax_context::sums_of_squares;
use crate::ops::{ContextProblem, InferenceBackend, Keys, Operations, Plan, SoftmaxContext};
use crate::parallel::Communicator;
use crate::position::Positions;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, QkvWeight, QueryKeyNorm, Sinks, Weight};
use crate::zeros::zeros;

/// Number of cached tokens with which [`DeepSpeedSelfAttention::warmup`] decodes: enough to split the keys.
const WARMUP_HISTORY: usize = 1024;

/// Self-attention with fused pre-norm, rotary positions and KV cache; DeepSpeed's `ds_attention.py`, equation 1 of
/// [Attention Is All You Need](https://arxiv.org/abs/1706.03762).
///
/// One type serves decoders and encoders, BLOOM included: the configuration says whether there is a norm, a norm of queries and
/// keys, a causal mask, a window, rotary positions or ALiBi, grouped heads, sinks, and a gate on the context.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, NormType, RotaryLayout};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// // a LLaMA layer: RMSNorm, half-split rotary pairs, two query heads per key/value head
/// let attention = DeepSpeedInferenceConfig::new(64, 4)
///     .with_dtype(DataType::Fp32)
///     .with_norm_type(NormType::RMSNorm)
///     .with_layer_norm_eps(1e-5)
///     .with_qkv_bias(false)
///     .with_output_bias(false)
///     .with_num_kv(Some(2))
///     .with_rotary(RotaryLayout::Half, 16)
///     .init_self_attention::<NdArray>(0, &device)?;
/// let output = attention.forward_uncached(Tensor::ones([2, 5, 64], &device), AttentionMask::none(), None)?;
/// assert_eq!(output.dims(), [2, 5, 64]);
/// # Ok(()) }
/// ```
#[derive(Module, Debug)]
pub struct DeepSpeedSelfAttention<B: Backend> {
    pub(crate) norm: Option<FusedNorm<B>>,
    pub(crate) projections: Projections<B>,
    pub(crate) query_key_norm: Option<QueryKeyNorm<B>>,
    pub(crate) sinks: Option<Sinks<B>>,
    pub(crate) gate: Option<Weight<B>>,
}

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.projections.spec
    }

    /// The norm before the projections; `None` for post-norm models.
    pub fn norm(&self) -> Option<&FusedNorm<B>> {
        self.norm.as_ref()
    }

    /// The QKV projection, in the order `q | k | v` for every checkpoint.
    pub fn qkv(&self) -> &QkvWeight<B> {
        &self.projections.qkv
    }

    /// The weights of the norm of queries and keys; `None` if there is no such norm, or it has no weights.
    pub fn query_key_norm(&self) -> Option<&QueryKeyNorm<B>> {
        self.query_key_norm.as_ref()
    }

    /// The sinks of this rank's query heads; `None` if the layer has none.
    pub fn sinks(&self) -> Option<&Sinks<B>> {
        self.sinks.as_ref()
    }

    /// The projection of the gate on the context, from `E` to `N·H` features; `None` if the layer has none.
    pub fn gate(&self) -> Option<&Weight<B>> {
        self.gate.as_ref()
    }

    /// The output projection.
    pub fn output(&self) -> &Weight<B> {
        &self.projections.output
    }

    /// The bias of the output projection, `[E]`. You add it once, after the sum over ranks, if you set `defer_output_bias` or
    /// call [`forward_partial`](Self::forward_partial).
    pub fn output_bias(&self) -> Option<Tensor<B, 1>> {
        self.projections.output.bias()
    }

    /// This layer for caches of other element types; see `kv_cache_dtype` of the configuration. The weights stay as they are.
    pub fn with_kv_cache_dtype(self, types: impl Into<KvCacheType>) -> Self {
        Self { projections: self.projections.with_kv_cache_dtype(types.into()), ..self }
    }

    /// Sums the outputs of all ranks from now on; needed if `mp_size` is above 1. One communicator serves every layer. See
    /// [`parallel`](crate::parallel).
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        Ok(Self { projections: self.projections.with_communicator(communicator)?, ..self })
    }

    /// Sets whether the parameters require gradients: true after `init`, false after loading.
    pub fn with_training(self, training: bool) -> Self {
        set_require_grad(self, training)
    }
}

impl<B: InferenceBackend> DeepSpeedSelfAttention<B> {
    /// Attends from `input` to itself and to every token that `cache` already holds.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`, the input before the norm; T may be 0
    /// - mask: broadcasts to `[B, N, T, S]`, where S counts the cached keys too
    ///
    /// # Errors
    /// [`AttentionError::CacheMismatch`] if the cache was built for other heads, another head size or other element types;
    /// [`AttentionError::CacheLost`] if an earlier write into it panicked; [`AttentionError::LayerNotRun`] if the layer reads the keys of
    /// an earlier one that has not run in this step; [`AttentionError::NoFastPath`] under `require_fast`.
    /// All of these are returned before anything is written.
    ///
    /// [`AttentionError::NoCommunicator`] on one of several ranks without a communicator; [`AttentionError::Communication`] if
    /// a sum over ranks fails. After these, do not commit the step.
    ///
    /// # Panics
    /// If a shape is wrong: the input is not `[B, T, E]` for the rows and tokens of the step, or the mask does not broadcast.
    pub fn forward(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        cache: LayerCache<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        Ok(self.forward_detailed(input, mask, Keys::Cached(cache), WantedOutputs::NONE)?.output)
    }

    /// Attends among the tokens of `input` alone: encoders and training. By default positions count from 0.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`; T may be 0
    /// - mask: broadcasts to `[B, N, T, T]`
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), without those about the cache; [`AttentionError::NoGivenKeys`] if the layer reads the keys of
    /// an earlier one.
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
        let keys = Keys::Fresh(positions.unwrap_or(&counted));
        Ok(self.forward_detailed(input, mask, keys, WantedOutputs::NONE)?.output)
    }

    /// Attends to the keys and values of an earlier layer, without a cache: what a layer does that
    /// [has none of its own](crate::config::KvSource::Layer), in encoders and training. By default positions count from 0.
    ///
    /// `keys` are those of the same tokens: what [`forward_detailed`](Self::forward_detailed) of that layer returns under
    /// [`WantedOutputs::keys`].
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`; T may be 0
    /// - keys: key and value, `[B, K, T, H]` each
    /// - mask: broadcasts to `[B, N, T, T]`
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), without those about the cache.
    ///
    /// # Panics
    /// If a shape is wrong, or the layer has keys of its own.
    pub fn forward_given(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: [Tensor<B, 4>; 2],
        positions: Option<&Positions>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens, _] = input.dims();
        let counted = Positions::sequential(&vec![0; batch], tokens);
        let keys = (Keys::Fresh(positions.unwrap_or(&counted)), Some(keys));
        Ok(self.forward_summed(input, mask, keys, WantedOutputs::NONE)?.output)
    }

    /// [`forward`](Self::forward) with the other outputs that DeepSpeed returns.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    ///
    /// # Panics
    /// Those of [`forward`](Self::forward).
    pub fn forward_detailed(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: WantedOutputs,
    ) -> Result<AttentionOutput<B>, AttentionError> {
        keys.check_source(self.spec())?;
        self.forward_summed(input, mask, (keys, None), wanted)
    }

    /// The output of this rank before the sum over ranks, without the bias of the output projection. It does not read
    /// `require_fast`. A norm over all heads of queries and keys still adds its sums over the ranks.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward) that concern the cache. With a norm over all heads on several ranks, also
    /// [`AttentionError::NoCommunicator`] and [`AttentionError::Communication`].
    ///
    /// # Panics
    /// Those of [`forward`](Self::forward).
    pub fn forward_partial(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: WantedOutputs,
    ) -> Result<AttentionOutput<B>, AttentionError> {
        keys.check_source(self.spec())?;
        self.projections.check_link()?;
        let partial = |context| Ok(self.projections.partial(context));
        self.attend_and_project(input, mask, (keys, None), wanted, |sums| self.projections.over_ranks(sums), partial)
    }

    /// The path that a step of `tokens` new tokens takes, with a cache or without, and the reason if it is the reference.
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
        let (spec, dtype) = (self.spec(), element_type(self.output().dtype()));
        let cache = cached.then(|| spec.kv_cache_dtype.types(dtype));
        let problem = ContextProblem::new(dtype, tokens, spec.head_dim, cache);
        B::Ops::plan_softmax_context(&problem, &self.output().device())
    }

    /// Runs a step for each number of new tokens in `tokens`, in a batch of `batch` rows, on a temporary cache, first empty and then
    /// with a long history. That compiles every kernel that these steps need before the first request. On a CPU backend there is
    /// nothing to compile. It waits for no other rank.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward) that concern the cache; [`AttentionError::CacheFull`] if a number is above `max_out_tokens`.
    pub fn warmup(&self, batch: usize, tokens: &[usize]) -> Result<(), AttentionError> {
        let (device, dtype) = (self.output().device(), self.output().dtype());
        let most = tokens.iter().copied().max().unwrap_or(0);
        let capacity = self.spec().max_out_tokens.min(most + WARMUP_HISTORY);
        let mut spec = self.spec().clone();
        spec.max_out_tokens = capacity;
        for &new in tokens {
            let mut cache = KvCache::of_layer(&spec, dtype, batch, &device);
            for history in [0, capacity.saturating_sub(new)] {
                cache.reset();
                if history > 0 {
                    cache.step(history)?.commit();
                }
                let mut step = cache.step(new)?;
                let input = zeros([batch, new, spec.hidden_size], (&device, dtype));
                let (keys, mask) = (Keys::Cached(step.layer(0)), AttentionMask::none());
                let partial = |context| Ok(self.projections.partial(context));
                self.attend_and_project(input, mask, (keys, None), WantedOutputs::NONE, Ok, partial)?;
            }
        }
        // There is no result to read; a later operation reports an error of the device.
        _ = B::sync(&device);
        Ok(())
    }

    /// The output, summed over the ranks, on a kernel if the layer requires one.
    fn forward_summed(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: (Keys<'_, B>, Option<[Tensor<B, 4>; 2]>),
        wanted: WantedOutputs,
    ) -> Result<AttentionOutput<B>, AttentionError> {
        let (tokens, cached) = (input.dims()[1], matches!(keys.0, Keys::Cached(_)));
        self.projections.require("softmax_context", || self.explain(tokens, cached))?;
        self.projections.check_link()?;
        let finish = |context| self.projections.finish(context);
        self.attend_and_project(input, mask, keys, wanted, |sums| self.projections.over_ranks(sums), finish)
    }

    /// Checks everything that can be checked before the first computation, attends, and projects the context. `over_ranks` adds the
    /// sums of squares of a norm over all heads.
    fn attend_and_project(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        (keys, given): (Keys<'_, B>, Option<[Tensor<B, 4>; 2]>),
        wanted: WantedOutputs,
        over_ranks: impl FnOnce(Tensor<B, 3>) -> Result<Tensor<B, 3>, AttentionError>,
        project: impl FnOnce(Tensor<B, 3>) -> Result<Tensor<B, 3>, AttentionError>,
    ) -> Result<AttentionOutput<B>, AttentionError> {
        let [batch, tokens, _] = input.dims();
        check_shape("DeepSpeedSelfAttention", "input", &[batch, tokens, self.spec().hidden_size], &input.dims());
        if let Keys::Cached(cache) = &keys {
            cache.check(self.spec(), self.output().dtype())?;
            let rows = cache.rows();
            let expected = [rows.new_tokens().len(), rows.width()];
            check_shape("DeepSpeedSelfAttention", "input, rows and tokens", &expected, &[batch, tokens]);
        }
        let want_norm = self.gate.is_some() || wanted.inp_norm && self.norm.is_some();
        let projected = B::Ops::qkv_gemm(input, self.norm.as_ref(), self.qkv(), want_norm);
        // Without a norm this is the input.
        let inp_norm = projected.inp_norm;
        let gate = self.gate.as_ref().zip(inp_norm.clone()).map(|(gate, input)| B::Ops::linear(input, gate));
        let qkv = match self.spec().qkv_clip {
            Some(clip) => projected.qkv.clamp(-clip, clip),
            None => projected.qkv,
        };
        // On one rank the operation computes them itself.
        let sums = match self.spec().norm_of_all_heads() {
            Some(_) if self.spec().ranks.ranks() > 1 && batch * tokens > 0 => {
                Some(over_ranks(sums_of_squares(qkv.clone(), self.spec()))?)
            }
            _ => None,
        };
        let attended = B::Ops::softmax_context(SoftmaxContext {
            qkv,
            norm: self.query_key_norm(),
            sums,
            sinks: self.sinks.as_ref().map(Sinks::values),
            keys,
            given,
            mask,
            spec: self.spec(),
            want_keys: wanted.keys,
        });
        let (key, value) = attended.keys.unzip();
        let context = match gate {
            Some(gate) => B::Ops::context_gate(attended.context, gate),
            None => attended.context,
        };
        let inp_norm = inp_norm.filter(|_| wanted.inp_norm && self.norm.is_some());
        let returned = wanted.context.then(|| context.clone());
        Ok(AttentionOutput { output: project(context)?, key, value, context: returned, inp_norm })
    }
}
