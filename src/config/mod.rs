//! The settings of DeepSpeed's `DeepSpeedInferenceConfig`, field by field, and how its JSON is read.

mod json;
mod kv_cache;
mod values;

use burn::config::Config;

use crate::error::ConfigError;
use crate::parallel::{Communicator, RankGroup, TpPlan};
use crate::position::PositionEncoding;
use crate::position::rotary::{RopeScaling, Rotary, RotaryLayout};
use crate::spec::{AttentionSpec, NormSpec};
pub(crate) use json::{nearest, read_json};
pub use kv_cache::KvCacheType;
pub(crate) use values::is_cubecl;
pub use values::{DataType, MlpActivation, NormType};

/// The settings of DeepSpeed's `DeepSpeedInferenceConfig` (`ops/transformer/inference/config.py`), with its names and
/// defaults, and `None` where it writes -1. Sizes describe the whole model; [`resolve`](Self::resolve) checks them
/// and derives those of one layer on one rank.
///
/// Fields that are marked *no effect* are read and kept, so that DeepSpeed's files load, and change nothing here.
///
/// ```
/// use burn_deepspeed::{DataType, DeepSpeedInferenceConfig};
/// # fn main() -> Result<(), burn_deepspeed::ConfigError> {
/// let config = DeepSpeedInferenceConfig::from_json_str(
///     r#"{ "hidden_size": 64, "heads": 4, "num_kv": -1, "dtype": "torch.float32" }"#,
/// )?;
/// assert_eq!((config.num_kv, config.dtype), (None, DataType::Fp32));
///
/// let error = DeepSpeedInferenceConfig::from_json_str(r#"{ "hidden_size": 64, "head": 4 }"#).unwrap_err();
/// assert!(error.to_string().contains("nearest: `heads`"));
/// # Ok(()) }
/// ```
#[derive(Config, Debug, PartialEq)]
pub struct DeepSpeedInferenceConfig {
    /// Width of the residual stream, in elements.
    pub hidden_size: usize,
    /// Query heads of the whole model.
    pub heads: usize,
    /// Width of the MLP that follows, in elements; `None` is 4 × `hidden_size`. No effect on attention.
    pub intermediate_size: Option<usize>,
    /// Layers of the model; sizes the KV cache of [`init_cache`](Self::init_cache).
    pub num_hidden_layers: Option<usize>,
    /// Added to the variance (LayerNorm) or mean square (RMSNorm) before its root.
    #[config(default = 1e-12)]
    pub layer_norm_eps: f64,
    /// This process's rank in the tensor-parallel group; needed, and read, when `mp_size` is above 1.
    pub local_rank: Option<usize>,
    /// Ranks that the heads are split over.
    #[config(default = 1)]
    pub mp_size: usize,
    /// Element type of weights, activations and cache. Under int8 the matrices of QKV and output projection are int8, and
    /// everything else is of the floats that [`DataType::of_backend`] names (DeepSpeed's: f16).
    #[config(default = "DataType::Fp16")]
    pub dtype: DataType,
    /// *Extension.* Rounds the input of int8 projections where that makes them faster; see
    /// [`Weight::with_rounded_input`](crate::weight::Weight::with_rounded_input).
    #[config(default = false)]
    pub round_activations: bool,
    /// *Extension.* Into how many groups of outputs, with a scale each, an int8 matrix of this rank is divided; `None` gives
    /// each output a scale of its own. DeepSpeed's `q_groups`.
    pub quantize_groups: Option<usize>,
    /// Whether the input is normalised in front of the projection. Post-norm models (BERT) take it as it is.
    #[config(default = true)]
    pub pre_layer_norm: bool,
    /// The norm in front of the projection.
    #[config(default = "NormType::LayerNorm")]
    pub norm_type: NormType,
    /// No effect: a training option of DeepSpeed, where it allows non-deterministic kernels.
    #[config(default = false)]
    pub stochastic_mode: bool,
    /// Whether scores are divided by √head_dim (head_dim with `use_mup`). GPT-Neo does not.
    #[config(default = true)]
    pub scale_attention: bool,
    /// Whether a token sees only itself and those before it.
    #[config(default = true)]
    pub triangular_masking: bool,
    /// Whether a token sees only the last `window_size` tokens.
    #[config(default = false)]
    pub local_attention: bool,
    /// Keys that a query sees under `local_attention`, itself included.
    #[config(default = 256)]
    pub window_size: usize,
    /// Features of each head that turn with the position, even; `None` for no rotary positions.
    pub rotary_dim: Option<usize>,
    /// Rotary pairs are `i` and `i + rotary_dim / 2` (LLaMA, GPT-NeoX).
    #[config(default = false)]
    pub rotate_half: bool,
    /// Rotary pairs are `2 i` and `2 i + 1` (GPT-J).
    #[config(default = true)]
    pub rotate_every_two: bool,
    /// No effect: outputs are records, never tuples.
    #[config(default = true)]
    pub return_tuple: bool,
    /// No effect: the block around attention belongs to the model.
    #[config(default = true)]
    pub mlp_after_attn: bool,
    /// No effect on attention.
    #[config(default = "MlpActivation::GELU")]
    pub mlp_act_func_type: MlpActivation,
    /// Ranks that wrote the checkpoint. `load_split` wants as many files, if it is above 1; `load` takes a fused QKV in the layout
    /// [`Concat`](crate::load::QkvLayout::Concat) for what `torch.cat` makes of theirs.
    #[config(default = 1)]
    pub training_mp_size: usize,
    /// Marks BLOOM: ALiBi positions, built by [`init_bloom`](Self::init_bloom).
    #[config(default = false)]
    pub bigscience_bloom: bool,
    /// Longest sequence that a row of the KV cache holds, prompt included, in tokens.
    #[config(default = 1024)]
    pub max_out_tokens: usize,
    /// Tokens that must at least fit; checked against `max_out_tokens`.
    #[config(default = 1)]
    pub min_out_tokens: usize,
    /// Keeps the QKV projection in int8 beside a `dtype` of floats; the output projection stays dense. Under `dtype` int8 both
    /// are int8, whatever this says. DeepSpeed stores the flag and reads it nowhere: its `dtype` alone decides.
    #[config(default = false)]
    pub enable_qkv_quantization: bool,
    /// Scores are divided by head_dim instead of its root, <https://arxiv.org/abs/2203.03466>.
    #[config(default = false)]
    pub use_mup: bool,
    /// Scores of layer `i` are divided by `i + 1` as well (GPT-2's option).
    #[config(default = false)]
    pub scale_attn_by_inverse_layer_idx: bool,
    /// No effect: outputs are records, never tuples.
    #[config(default = false)]
    pub return_single_tuple: bool,
    /// Query, key and value keep parameters of their own (`attn_qw`, `attn_kw`, `attn_vw`) instead of one fused matrix.
    #[config(default = false)]
    pub set_empty_params: bool,
    /// Matrices are stored `[out, in]`, as PyTorch's `Linear` does, instead of `[in, out]`.
    #[config(default = false)]
    pub transposed_mode: bool,
    /// Demands fused GPU kernels; an error on a build that has none.
    #[config(default = false)]
    pub use_triton: bool,
    /// No effect: the kernels are chosen by fixed rules, which `explain` tells; Burn tunes its own products under its feature
    /// `autotune`.
    #[config(default = false)]
    pub triton_autotune: bool,
    /// Key/value heads; `None` gives each query head its own.
    pub num_kv: Option<usize>,
    /// Base of the rotary frequencies.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// No effect: an [`AttentionMask`](crate::AttentionMask) says itself whether true keeps or hides.
    #[config(default = true)]
    pub invert_mask: bool,
    /// *Extension.* Element types of the KV cache, of keys and values apart: int8 halves that of fp16, and takes little more than a
    /// quarter of fp32. In JSON a name for both, or `{ "key": "int8", "value": "fp16" }`.
    #[config(default = "KvCacheType::default()")]
    pub kv_cache_dtype: KvCacheType,
    /// *Extension.* Features of a head; `None` is `hidden_size / heads`.
    pub head_dim: Option<usize>,
    /// *Extension.* Scaling family of the rotary positions, as in a Hugging Face configuration.
    #[config(default = "RopeScaling::Default")]
    pub rope_scaling: RopeScaling,
    /// *Extension.* Scores become `c · tanh(score / c)` before bias and mask (Gemma 2).
    pub softcap: Option<f64>,
    /// *Extension.* Whether the QKV projection has a bias.
    #[config(default = true)]
    pub qkv_bias: bool,
    /// *Extension.* Whether the output projection has a bias.
    #[config(default = true)]
    pub output_bias: bool,
    /// *Extension.* Whether a LayerNorm has a bias (an RMSNorm has none).
    #[config(default = true)]
    pub norm_bias: bool,
    /// *Extension.* Leaves the output bias to the caller, as DeepSpeed leaves it to its MLP.
    #[config(default = false)]
    pub defer_output_bias: bool,
    /// *Extension.* Whether ranks may hold different numbers of heads, so that any `mp_size` up to `heads` works; see
    /// [`TpPlan::uneven`].
    #[config(default = false)]
    pub uneven_heads: bool,
    /// *Extension.* Whether a step that no kernel takes is an error instead of running on the reference. The environment
    /// variable `DS_KI_FALLBACK=False` (DeepSpeed's) asks for the same.
    #[config(default = false)]
    pub require_fast: bool,
}

impl DeepSpeedInferenceConfig {
    /// Features of a head.
    pub fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.heads.max(1))
    }

    /// Width of the MLP that follows, in elements.
    pub fn mlp_size(&self) -> usize {
        self.intermediate_size.unwrap_or(4 * self.hidden_size)
    }

    /// The tensor-parallel group that this process belongs to.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] if there are several ranks and `local_rank` is not given.
    pub fn rank_group(&self) -> Result<RankGroup, ConfigError> {
        match (self.mp_size, self.local_rank) {
            // A launcher numbers the processes of a machine whether or not they share a model.
            (0 | 1, _) => RankGroup::new(0, self.mp_size),
            (_, None) => Err(ConfigError::Missing("local_rank")),
            (ranks, Some(rank)) => RankGroup::new(rank, ranks),
        }
    }

    /// The same settings for the rank that this communicator is: sets `mp_size` and `local_rank`.
    pub fn for_rank_of(self, communicator: &dyn Communicator) -> Self {
        self.with_mp_size(communicator.size()).with_local_rank(Some(communicator.rank()))
    }

    /// How the heads are split over `mp_size` ranks.
    ///
    /// # Errors
    /// Those of [`TpPlan::new`], or of [`TpPlan::uneven`] under `uneven_heads`.
    pub fn tp_plan(&self) -> Result<TpPlan, ConfigError> {
        let plan = if self.uneven_heads { TpPlan::uneven } else { TpPlan::new };
        plan(self.heads, self.num_kv.unwrap_or(self.heads), self.mp_size)
    }

    /// Checks every setting and derives the sizes of layer `layer_id` on this rank.
    ///
    /// # Errors
    /// A [`ConfigError`] with the fact, the limit and the remedy.
    pub fn resolve(&self, layer_id: usize) -> Result<AttentionSpec, ConfigError> {
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("heads", self.heads),
            ("num_kv", self.num_kv.unwrap_or(1)),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("mp_size", self.mp_size),
            ("training_mp_size", self.training_mp_size),
            ("window_size", self.window_size),
            ("max_out_tokens", self.max_out_tokens),
            ("quantize_groups", self.quantize_groups.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(ConfigError::OutOfRange { key, value: "0".into(), limit: "at least 1" });
            }
        }
        let out_of_range = |key, value: f64, limit| ConfigError::OutOfRange { key, value: value.to_string(), limit };
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(out_of_range("layer_norm_eps", self.layer_norm_eps, "a number of at least 0"));
        }
        if let Some(cap) = self.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(out_of_range("softcap", cap, "a number above 0"));
        }
        if self.min_out_tokens > self.max_out_tokens {
            let limit = "at most `max_out_tokens`; raise that one";
            return Err(out_of_range("min_out_tokens", self.min_out_tokens as f64, limit));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(self.heads) {
            return Err(ConfigError::HeadsDoNotDivide { hidden_size: self.hidden_size, heads: self.heads });
        }
        if self.pre_layer_norm && self.norm_type == NormType::GroupNorm {
            return Err(ConfigError::GroupNorm);
        }
        let head_dim = self.head_size();
        let ranks = self.rank_group()?;
        Ok(AttentionSpec {
            layer_id,
            hidden_size: self.hidden_size,
            shard: self.tp_plan()?.shard(ranks.rank()),
            ranks,
            training_ranks: self.training_mp_size,
            head_dim,
            scale: self.scale(layer_id, head_dim),
            softcap: self.softcap,
            causal: self.triangular_masking,
            window: self.local_attention.then_some(self.window_size),
            position: self.position(head_dim)?,
            norm: self
                .pre_layer_norm
                .then_some(NormSpec { rms: self.norm_type == NormType::RMSNorm, epsilon: self.layer_norm_eps }),
            dtype: self.dtype,
            kv_cache_dtype: self.kv_cache_dtype,
            max_out_tokens: self.max_out_tokens,
            require_fast: self.require_fast,
        })
    }

    /// DeepSpeed applies the fourth root of head_dim to queries and keys apart; their product is this factor.
    fn scale(&self, layer_id: usize, head_dim: usize) -> f64 {
        let divisor = match (self.scale_attention, self.use_mup) {
            (false, _) => 1.0,
            (true, false) => (head_dim as f64).sqrt(),
            (true, true) => head_dim as f64,
        };
        let layers = if self.scale_attn_by_inverse_layer_idx { (layer_id + 1) as f64 } else { 1.0 };
        1.0 / (divisor * layers)
    }

    fn position(&self, head_dim: usize) -> Result<PositionEncoding, ConfigError> {
        let layout = match (self.rotate_half, self.rotate_every_two) {
            (true, true) => return Err(ConfigError::BothRotaryLayouts),
            (true, false) => Some(RotaryLayout::Half),
            (false, true) => Some(RotaryLayout::Interleaved),
            (false, false) => None,
        };
        let Some(dim) = self.rotary_dim.filter(|&dim| dim > 0) else {
            return Ok(if self.bigscience_bloom { PositionEncoding::Alibi } else { PositionEncoding::None });
        };
        if self.bigscience_bloom {
            return Err(ConfigError::AlibiAndRotary(dim));
        }
        if !dim.is_multiple_of(2) {
            return Err(ConfigError::RotaryDimOdd(dim));
        }
        if dim > head_dim {
            return Err(ConfigError::RotaryDimTooLong { rotary_dim: dim, head_dim });
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            let value = self.rope_theta.to_string();
            return Err(ConfigError::OutOfRange { key: "rope_theta", value, limit: "a number above 0" });
        }
        let layout = layout.ok_or(ConfigError::NoRotaryLayout(dim))?;
        Ok(PositionEncoding::Rotary(Rotary { dim, layout, theta: self.rope_theta, scaling: self.rope_scaling.clone() }))
    }
}
