//! The attention of DeepSeek V2 and V3, from their `config.json`.

use std::path::Path;

use serde_json::Value;

use super::rope::{Rope, RopeKeys};
use crate::config::{DeepSpeedInferenceConfig, LatentSizes, NormType, read_json};
use crate::error::{ConfigError, Origin};
use crate::fields::Fields;
use crate::layout::RotaryLayout;
use crate::position::rotary::RopeScaling;

/// Keys that change nothing in attention, or belong to the parts of the model around it.
const OTHERS: &[&str] = &[
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "aux_loss_alpha",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "ep_size",
    "first_k_dense_replace",
    "hidden_act",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "moe_intermediate_size",
    "moe_layer_freq",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "norm_topk_prob",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_mtp_layers",
    "num_nextn_predict_layers",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "routed_scaling_factor",
    "scoring_func",
    "seq_aux",
    "tie_word_embeddings",
    "topk_group",
    "topk_method",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
];

/// Keys that attention reads.
const READ: &[&str] = &[
    "attention_bias",
    "head_dim",
    "hidden_size",
    "kv_lora_rank",
    "num_attention_heads",
    "num_key_value_heads",
    "q_lora_rank",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rms_norm_eps",
    "rope_interleave",
    "v_head_dim",
];

/// What the classes of `transformers` assume of an absent key.
struct Defaults {
    model_type: &'static str,
    hidden_size: usize,
    heads: usize,
    layers: usize,
    positions: usize,
    /// Whether `rope_interleave` is read.
    layouts: bool,
}

const CLASSES: [Defaults; 2] = [
    Defaults { model_type: "deepseek_v2", hidden_size: 4096, heads: 32, layers: 32, positions: 2048, layouts: false },
    Defaults { model_type: "deepseek_v3", hidden_size: 7168, heads: 128, layers: 61, positions: 4096, layouts: true },
];

/// The attention layers of a DeepSeek model: what [`LatentSizes`] and [`DeepSpeedInferenceConfig`] say of all of them. The rest of the
/// model, its experts included, is not read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeepSeekAttention {
    /// Everything but the sizes of the latents: the norm before attention, rotary positions, biases, the factor of the scores.
    pub config: DeepSpeedInferenceConfig,
    /// The sizes of the latents.
    pub sizes: LatentSizes,
}

impl DeepSeekAttention {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Those of [`from_json`](Self::from_json); [`ConfigError::File`] or [`ConfigError::Json`] for the file itself.
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        Self::from_json(&read_json(path)?).map_err(|error| error.in_file(path))
    }

    /// Reads the record of a `config.json` whose `model_type` is `deepseek_v2` or `deepseek_v3`. What is absent has the default of the
    /// class of `transformers`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`]; [`ConfigError::UnreadKeys`] for a key that no part of these models has; the other
    /// [`ConfigError`]s for values that are missing, of the wrong type, or not supported.
    pub fn from_json(record: &Value) -> Result<Self, ConfigError> {
        let fields = Fields::new(record)?;
        let model_type = fields.text(&["model_type"])?;
        let model_type = model_type.ok_or(ConfigError::Missing { key: "model_type", origin: Origin::HuggingFace })?;
        let class = CLASSES.iter().find(|class| class.model_type == model_type).ok_or_else(|| {
            let supported = CLASSES.iter().map(|class| class.model_type).collect();
            ConfigError::UnknownModelType { model_type: model_type.into(), supported }
        })?;
        let keys = RopeKeys::SHARED;
        let known: Vec<_> = keys.keys().chain(READ.iter().chain(OTHERS).copied()).collect();
        fields.check_keys(&known, &format!("the attention of `{model_type}`"))?;

        let size = |name, default| Ok::<_, ConfigError>(fields.positive(&[name])?.unwrap_or(default));
        let [nope, rope] = [size("qk_nope_head_dim", 128)?, size("qk_rope_head_dim", 64)?];
        let sizes = LatentSizes::new(size("kv_lora_rank", 512)?, [nope, rope], size("v_head_dim", 128)?)
            .with_q_lora_rank(fields.positive_or_null("q_lora_rank", Some(1536))?);
        let heads = size("num_attention_heads", class.heads)?;
        // Sizes that the class computes itself, whatever the file says.
        let computed = [("head_dim", rope), ("qk_head_dim", nope.saturating_add(rope)), ("num_key_value_heads", heads)];
        for (key, expected) in computed {
            if fields.size(&[key])?.is_some_and(|given| given != expected && !fields.allows(key)) {
                return Err(fields.unsupported(key, &format!("{expected}, which follows from the other sizes")));
            }
        }
        let layout = match fields.flag(&["rope_interleave"])? {
            Some(false) if class.layouts => RotaryLayout::Half,
            Some(false) => return Err(fields.unsupported("rope_interleave", "true, the only layout of this class")),
            _ => RotaryLayout::Interleaved,
        };
        let positions = size("max_position_embeddings", class.positions)?;
        let Rope { theta, scaling, .. } = Rope::read(&fields, &keys, Some(positions))?.whole()?;
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let factor = yarn_factor(&fields, &scaling)? / (sizes.key_dim() as f64).sqrt();
        let config = DeepSpeedInferenceConfig::new(size("hidden_size", class.hidden_size)?, heads)
            .with_num_hidden_layers(Some(size("num_hidden_layers", class.layers)?))
            .with_norm_type(NormType::RMSNorm)
            .with_layer_norm_eps(fields.number(&["rms_norm_eps"])?.unwrap_or(1e-6))
            .with_transposed_mode(true)
            .with_qkv_bias(bias)
            .with_output_bias(bias)
            .with_rotary(layout, rope)
            .with_rope_theta(theta)
            .with_rope_scaling(scaling)
            .with_score_factor(Some(factor));
        Ok(Self { config, sizes })
    }
}

/// The square of YaRN's factor of queries and keys, `0.1 · mscale_all_dim · ln(factor) + 1`. That on cosine and sine is another.
fn yarn_factor(fields: &Fields<'_>, scaling: &RopeScaling) -> Result<f64, ConfigError> {
    let RopeScaling::Yarn { factor, .. } = scaling else { return Ok(1.0) };
    let scaling = fields.record("rope_scaling")?.filter(|record| !record.is_empty());
    let Some(record) = scaling.or(fields.record("rope_parameters")?) else { return Ok(1.0) };
    let weight = record.number(&["mscale_all_dim"])?.unwrap_or(0.0);
    Ok(if *factor > 1.0 { (0.1 * weight * factor.ln() + 1.0).powi(2) } else { 1.0 })
}
