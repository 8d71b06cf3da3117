//! The settings, with their defaults and setters.

use serde::{Deserialize, Serialize};

use super::values::{MlpActivation, NormType, WindowKind};
use crate::data_type::{ActivationRounding, DataType, KvCacheType, MatrixFormat};
use crate::kv_source::KvSource;
use crate::layout::RotaryLayout;
use crate::position::rotary::RopeScaling;
use crate::position::{QueryFactor, RotarySections};
use crate::qk_norm::QkNorm;

/// Declares a record: the fields that `new` takes, and the fields with a default. The setter of a field is named in brackets.
macro_rules! settings {
    (
        $(#[$of_record:meta])*
        $name:ident
        required { $($(#[$of_required:meta])* $required:ident [$change:ident]: $required_type:ty;)* }
        optional { $($(#[$of_field:meta])* $field:ident $([$setter:ident])?: $type:ty = $default:expr;)* }
    ) => {
        $(#[$of_record])*
        pub struct $name {
            $($(#[$of_required])* pub $required: $required_type,)*
            $(
                $(#[$of_field])*
                #[doc = ""]
                #[doc = concat!("Default: `", stringify!($default), "`.")]
                pub $field: $type,
            )*
        }

        impl $name {
            /// The defaults for a model of this hidden size and number of query heads. They are DeepSpeed's, except for `dtype`,
            /// which is `None`.
            pub fn new($($required: $required_type),*) -> Self {
                Self { $($required,)* $($field: $default,)* }
            }

            $(
                #[doc = concat!("Sets [`", stringify!($required), "`](Self::", stringify!($required), ").")]
                pub fn $change(mut self, $required: $required_type) -> Self {
                    self.$required = $required;
                    self
                }
            )*

            $($(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                pub fn $setter(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )?)*
        }
    };
}

settings! {
    /// The settings of DeepSpeed's `DeepSpeedInferenceConfig` (`ops/transformer/inference/config.py`), with its names and
    /// defaults, and `None` where it writes -1. Sizes describe the whole model; [`resolve`](Self::resolve) checks them
    /// and derives those of one layer on one rank.
    ///
    /// [`new`](Self::new) takes the two sizes that have no default, and a method `with_…` for each other field changes it. Fields
    /// that are marked *no effect* are read and kept, so that DeepSpeed's files load, and change nothing here.
    ///
    /// ```
    /// use burn_deepspeed_core::config::{DataType, DeepSpeedInferenceConfig};
    /// # fn main() -> Result<(), burn_deepspeed_core::error::ConfigError> {
    /// let config = DeepSpeedInferenceConfig::from_json_str(
    ///     r#"{ "hidden_size": 64, "heads": 4, "num_kv": -1, "dtype": "torch.float32" }"#,
    /// )?;
    /// assert_eq!(config, DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32));
    ///
    /// let error = DeepSpeedInferenceConfig::from_json_str(r#"{ "hidden_size": 64, "head": 4 }"#).unwrap_err();
    /// assert!(error.to_string().contains("nearest: `heads`"));
    /// # Ok(()) }
    /// ```
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[non_exhaustive]
    DeepSpeedInferenceConfig

    required {
        /// Width of the residual stream, in elements.
        hidden_size [with_hidden_size]: usize;
        /// Query heads of the whole model.
        heads [with_heads]: usize;
    }

    optional {
        /// Width of the MLP that follows, in elements; `None` is 4 × `hidden_size`. No effect on attention.
        intermediate_size [with_intermediate_size]: Option<usize> = None;
        /// Layers of the model; sizes the KV cache.
        num_hidden_layers [with_num_hidden_layers]: Option<usize> = None;
        /// Added to the variance (LayerNorm) or mean square (RMSNorm) before its root.
        layer_norm_eps [with_layer_norm_eps]: f64 = 1e-12;
        /// This process's rank in the tensor-parallel group. Required if `mp_size` is above 1, otherwise not read.
        local_rank [with_local_rank]: Option<usize> = None;
        /// Ranks that the heads are split over.
        mp_size [with_mp_size]: usize = 1;
        /// Element type of weights, activations and cache. `None`, the default of [`new`](Self::new), takes the backend's default
        /// float: f32, unless the backend was given another type. A DeepSpeed file that names none means fp16, as in DeepSpeed.
        /// Under int8 the matrices of the QKV and output projections are int8, and everything else is float.
        dtype: Option<DataType> = None;
        /// *Extension.* Rounds the input of projections of int8, or of blocks of integers, to 14 or 8 bits where that makes them faster, or that of
        /// projections with matrices of bf16 or f16 to bf16.
        round_activations [with_round_activations]: ActivationRounding = ActivationRounding::Never;
        /// *Extension.* Number of groups of outputs in an int8 matrix of this rank. Each group has one scale; `None` gives each
        /// output its own scale. DeepSpeed's `q_groups`.
        quantize_groups [with_quantize_groups]: Option<usize> = None;
        /// Whether the input is normalised before the projection. Post-norm models (BERT) project it unchanged.
        pre_layer_norm [with_pre_layer_norm]: bool = true;
        /// The norm before the projection.
        norm_type [with_norm_type]: NormType = NormType::LayerNorm;
        /// No effect: a training option of DeepSpeed, where it allows non-deterministic kernels.
        stochastic_mode [with_stochastic_mode]: bool = false;
        /// Whether scores are divided by √head_dim (head_dim with `use_mup`). GPT-Neo does not.
        scale_attention [with_scale_attention]: bool = true;
        /// Whether a token sees only itself and those before it.
        triangular_masking [with_triangular_masking]: bool = true;
        /// Whether a token sees only a window, by default the last `window_size` tokens.
        local_attention [with_local_attention]: bool = false;
        /// Size of the window under `local_attention`, in tokens, by default the query's own included; see `window_kind`.
        window_size [with_window_size]: usize = 256;
        /// Features of each head that are rotated by the position, an even number; `None` for no rotary positions.
        rotary_dim [with_rotary_dim]: Option<usize> = None;
        /// Rotary pairs are `i` and `i + rotary_dim / 2` (LLaMA, GPT-NeoX).
        rotate_half [with_rotate_half]: bool = false;
        /// Rotary pairs are `2 i` and `2 i + 1` (GPT-J).
        rotate_every_two [with_rotate_every_two]: bool = true;
        /// No effect: outputs are records, never tuples.
        return_tuple [with_return_tuple]: bool = true;
        /// No effect: the block around attention belongs to the model.
        mlp_after_attn [with_mlp_after_attn]: bool = true;
        /// No effect on attention.
        mlp_act_func_type [with_mlp_act_func_type]: MlpActivation = MlpActivation::GELU;
        /// Ranks that wrote the checkpoint. If it is above 1, `load_split` needs that number of files, and `load` reads a fused QKV
        /// in the layout `Concat` as `torch.cat` of the parts of these ranks.
        training_mp_size [with_training_mp_size]: usize = 1;
        /// Marks BLOOM: ALiBi positions.
        bigscience_bloom [with_bigscience_bloom]: bool = false;
        /// Longest sequence that a row of the KV cache holds, prompt included, in tokens.
        max_out_tokens [with_max_out_tokens]: usize = 1024;
        /// Fewest tokens that must fit; checked against `max_out_tokens`.
        min_out_tokens [with_min_out_tokens]: usize = 1;
        /// Keeps the QKV projection in int8 although `dtype` is a float; the output projection stays dense. Under `dtype` int8 both
        /// are int8, regardless of this flag. DeepSpeed stores the flag and never reads it: its `dtype` alone decides.
        enable_qkv_quantization [with_enable_qkv_quantization]: bool = false;
        /// Scores are divided by head_dim instead of its root, <https://arxiv.org/abs/2203.03466>.
        use_mup [with_use_mup]: bool = false;
        /// Scores of layer `i` are divided by `i + 1` as well (GPT-2's option).
        scale_attn_by_inverse_layer_idx [with_scale_attn_by_inverse_layer_idx]: bool = false;
        /// No effect: outputs are records, never tuples.
        return_single_tuple [with_return_single_tuple]: bool = false;
        /// Query, key and value have separate parameters (`attn_qw`, `attn_kw`, `attn_vw`) instead of one fused matrix.
        set_empty_params [with_set_empty_params]: bool = false;
        /// Matrices are stored `[out, in]`, as PyTorch's `Linear` does, instead of `[in, out]`. The kernels multiply several rows faster
        /// then: on processors with AVX-512, and on the tensor cores of GPUs.
        transposed_mode [with_transposed_mode]: bool = false;
        /// Requires fused GPU kernels: an error on a backend that has none, and for attention that no kernel supports.
        use_triton [with_use_triton]: bool = false;
        /// No effect: fixed rules choose the kernels, and `explain` reports the choice. Burn tunes its own products with the Cargo
        /// feature `autotune`.
        triton_autotune [with_triton_autotune]: bool = false;
        /// Key/value heads; `None` gives each query head its own.
        num_kv [with_num_kv]: Option<usize> = None;
        /// Base of the rotary frequencies.
        rope_theta [with_rope_theta]: f64 = 10000.0;
        /// No effect: an attention mask defines itself whether true keeps or hides.
        invert_mask [with_invert_mask]: bool = true;
        /// *Extension.* Element types of the KV cache, for keys and values separately. int8 takes about half the memory of fp16 and
        /// a quarter of that of fp32. In JSON one name for both, or `{ "key": "int8", "value": "fp16" }`.
        kv_cache_dtype [with_kv_cache_dtype]: KvCacheType = KvCacheType::default();
        /// *Extension.* How the matrices of both projections are kept: as `dtype` says, as a GGUF or another file stores them, or in blocks.
        /// In JSON `"dtype"`, `"stored"` or a name such as `"q4_0"`. Activations, norms, biases and cache are of `dtype`.
        matrix_format [with_matrix_format]: MatrixFormat = MatrixFormat::OfDtype;
        /// *Extension.* Features of a head; `None` is `hidden_size / heads`.
        head_dim [with_head_dim]: Option<usize> = None;
        /// *Extension.* Scaling family of the rotary positions, as in a Hugging Face configuration.
        rope_scaling [with_rope_scaling]: RopeScaling = RopeScaling::Default;
        /// *Extension.* By which of three positions of a token each rotary pair rotates (M-RoPE); `None` for one position.
        rope_sections [with_rope_sections]: Option<RotarySections> = None;
        /// *Extension.* Which keys a query sees under `local_attention`: those before it, those on both sides, or those of its chunk.
        window_kind [with_window_kind]: WindowKind = WindowKind::Backward;
        /// *Extension.* Where keys and values come from: a projection of the layer, its keys alone, or the cache of an earlier layer
        /// (Gemma 3n and 4). A layer without a projection of its own values is not split by `set_empty_params`.
        kv_source [with_kv_source]: KvSource = KvSource::Own;
        /// *Extension.* The norm of queries and keys; `None` for none.
        qk_norm [with_qk_norm]: Option<QkNorm> = None;
        /// *Extension.* Factor on QKᵀ in place of 1/√head_dim: `query_pre_attn_scalar` of Gemma to the power of -1/2,
        /// `attention_multiplier` of Granite. It cannot be combined with `scale_attention` false, `use_mup` or
        /// `scale_attn_by_inverse_layer_idx`.
        score_factor [with_score_factor]: Option<f64> = None;
        /// *Extension.* Factor of each query by its position (Llama 4, Ministral 3).
        query_factor [with_query_factor]: Option<QueryFactor> = None;
        /// *Extension.* Whether each query head has a sink (gpt-oss): a learned score that joins the sum of the softmax and has no
        /// value, so that a query may attend to nothing, <https://arxiv.org/abs/2309.17453>. It is neither scaled, capped nor masked.
        sinks [with_sinks]: bool = false;
        /// *Extension.* Whether the context is multiplied by the sigmoid of a projection of the input, `[N·H]`, before the output
        /// projection (Qwen3-Next, Qwen 3.5), <https://arxiv.org/abs/2505.06708>.
        context_gate [with_context_gate]: bool = false;
        /// *Extension.* Scores become `c · tanh(score / c)` before bias and mask (Gemma 2).
        softcap [with_softcap]: Option<f64> = None;
        /// *Extension.* Queries, keys and values are limited to `-c..=c` after the projection, before their norm and rotation (`clip_qkv`
        /// of OLMo and MPT).
        qkv_clip [with_qkv_clip]: Option<f64> = None;
        /// *Extension.* Factor of the ALiBi slopes. Falcon has 1/√head_dim.
        alibi_factor [with_alibi_factor]: f64 = 1.0;
        /// *Extension.* Whether the QKV projection has a bias, and that of the gate if there is one.
        qkv_bias [with_qkv_bias]: bool = true;
        /// *Extension.* Whether the bias of the QKV projection has a part for the keys (Whisper has none).
        key_bias [with_key_bias]: bool = true;
        /// *Extension.* Whether the output projection has a bias.
        output_bias [with_output_bias]: bool = true;
        /// *Extension.* Whether a LayerNorm has a bias (an RMSNorm has none).
        norm_bias [with_norm_bias]: bool = true;
        /// *Extension.* Leaves the output bias to the caller, as DeepSpeed leaves it to its MLP.
        defer_output_bias [with_defer_output_bias]: bool = false;
        /// *Extension.* Whether ranks may hold different numbers of heads, so that any `mp_size` up to `heads` works; see
        /// [`TpPlan::uneven`](crate::parallel::TpPlan::uneven).
        uneven_heads [with_uneven_heads]: bool = false;
        /// *Extension.* Whether attention that no kernel takes is an error instead of running on the reference. DeepSpeed's
        /// environment variable `DS_KI_FALLBACK=False`, read when a module is built, has the same effect.
        require_fast [with_require_fast]: bool = false;
    }
}

impl DeepSpeedInferenceConfig {
    /// Sets [`dtype`](Self::dtype).
    pub fn with_dtype(mut self, dtype: impl Into<Option<DataType>>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// Rotates the first `dim` features of each head, in pairs of this layout: sets `rotary_dim`, `rotate_half` and
    /// `rotate_every_two`.
    pub fn with_rotary(self, layout: RotaryLayout, dim: usize) -> Self {
        self.with_rotary_dim(Some(dim))
            .with_rotate_half(layout == RotaryLayout::Half)
            .with_rotate_every_two(layout == RotaryLayout::Interleaved)
    }

    /// Features of a head.
    pub fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.heads.max(1))
    }

    /// Width of the MLP that follows, in elements.
    pub fn mlp_size(&self) -> usize {
        self.intermediate_size.unwrap_or(4 * self.hidden_size)
    }
}
