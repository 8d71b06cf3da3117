//! Presets from the `config.json` of a Hugging Face checkpoint.

use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
use super::{AttentionNames, Checkpoint, NormNames, QkvLayout, QkvNames, WeightNames};
use crate::config::{DataType, DeepSpeedInferenceConfig, KvCacheType, MlpActivation, NormType, read_json};
use crate::error::{ConfigError, Origin};
use crate::parallel::Communicator;
use crate::weight::Orientation;

/// The model families whose configurations and names are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// BLOOM.
    Bloom,
    /// GPT-2.
    Gpt2,
    /// GPT-Neo, whose layers alternate between global and local attention.
    GptNeo,
    /// GPT-NeoX, Pythia.
    GptNeoX,
    /// GPT-J.
    GptJ,
    /// LLaMA.
    Llama,
    /// Mistral.
    Mistral,
    /// OPT.
    Opt,
    /// BERT.
    Bert,
}

impl Architecture {
    const NAMES: [(&str, Self); 9] = [
        ("bloom", Self::Bloom),
        ("gpt2", Self::Gpt2),
        ("gpt_neo", Self::GptNeo),
        ("gpt_neox", Self::GptNeoX),
        ("gptj", Self::GptJ),
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("opt", Self::Opt),
        ("bert", Self::Bert),
    ];

    /// The family of a `model_type`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`].
    pub fn parse(model_type: &str) -> Result<Self, ConfigError> {
        let known = Self::NAMES.iter().find(|(name, _)| *name == model_type);
        known.map(|(_, architecture)| *architecture).ok_or_else(|| ConfigError::UnknownModelType(model_type.into()))
    }

    /// Where the checkpoints of the family keep their layers: the path in a bare model, and what `…ForCausalLM` and the
    /// like put in front.
    fn layers_path(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Bloom | Self::Gpt2 | Self::GptNeo | Self::GptJ => ("h", &["transformer."]),
            Self::GptNeoX => ("layers", &["gpt_neox."]),
            Self::Llama | Self::Mistral => ("layers", &["model."]),
            Self::Opt => ("layers", &["model.decoder.", "decoder."]),
            Self::Bert => ("encoder.layer", &["bert."]),
        }
    }
}

/// What the `config.json` of a Hugging Face checkpoint says, as far as attention and the blocks around it go.
#[derive(Debug, Clone, PartialEq)]
pub struct HuggingFaceConfig {
    /// Model family.
    pub architecture: Architecture,
    /// Layers.
    pub layers: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Length the model was trained for, in tokens; `None` if it has no table of positions and states no length.
    pub max_positions: Option<usize>,
    /// Width of the MLP, in elements.
    pub mlp_size: usize,
    /// Name of the MLP's activation, as Hugging Face writes it (`gelu_new`, `silu`, …).
    pub activation: String,
    /// Whether the output embedding is the input embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<usize>,
    /// The whole record, for what is not read here.
    pub record: Value,
    attention: DeepSpeedInferenceConfig,
    local_layers: Vec<bool>,
}

impl HuggingFaceConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ConfigError::File`] if it cannot be read, else those of [`from_json`](Self::from_json).
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::from_json(read_json(path.as_ref())?)
    }

    /// Reads the record of a `config.json`. Element type is the checkpoint's; set another with
    /// [`with_dtype`](Self::with_dtype).
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`], [`ConfigError::UnknownRopeScaling`], [`ConfigError::Missing`] and those of
    /// [`DeepSpeedInferenceConfig::resolve`].
    pub fn from_json(record: Value) -> Result<Self, ConfigError> {
        let fields = Fields(&record);
        let model_type = fields
            .text(&["model_type"])
            .ok_or(ConfigError::Missing { key: "model_type", origin: Origin::HuggingFace })?;
        let architecture = Architecture::parse(model_type)?;
        let hidden = fields.required("hidden_size", &["hidden_size", "n_embd"])?;
        let heads = fields.required("heads", &["num_attention_heads", "n_head", "num_heads"])?;
        let layers = fields.required("num_hidden_layers", &["num_hidden_layers", "n_layer", "num_layers"])?;
        let max_positions = fields.size(&["max_position_embeddings", "n_positions", "seq_length"]);
        let mlp_size = fields.size(&["intermediate_size", "n_inner", "ffn_dim"]).unwrap_or(4 * hidden);
        let epsilon = fields.number(&["layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"]);
        let dtype = fields.text(&["dtype", "torch_dtype"]).map_or(Ok(DataType::Fp32), DataType::parse)?;
        let base = DeepSpeedInferenceConfig::new(hidden, heads)
            .with_num_hidden_layers(Some(layers))
            .with_intermediate_size(Some(mlp_size))
            .with_dtype(dtype)
            .with_max_out_tokens(max_positions.unwrap_or(2048))
            .with_layer_norm_eps(epsilon.unwrap_or(1e-5));
        let activation = fields.text(&["activation_function", "hidden_act"]);
        let mut config = Self {
            architecture,
            layers,
            vocab_size: fields.size(&["vocab_size"]).unwrap_or(0),
            max_positions,
            mlp_size,
            activation: activation
                .unwrap_or(if architecture == Architecture::Bert { "gelu" } else { "gelu_new" })
                .into(),
            tie_word_embeddings: fields.flag("tie_word_embeddings", true),
            eos_token_ids: fields.sizes("eos_token_id"),
            attention: base.clone(),
            local_layers: vec![false; layers],
            record: Value::Null,
        };
        config.attention = config.family(base, &fields)?.with_mlp_act_func_type(match config.activation.as_str() {
            "relu" => MlpActivation::ReLU,
            "silu" => MlpActivation::GatedSILU,
            _ => MlpActivation::GELU,
        });
        config.record = record;
        config.attention.resolve(0)?;
        Ok(config)
    }

    /// What sets the family's attention apart.
    fn family(
        &mut self,
        base: DeepSpeedInferenceConfig,
        fields: &Fields<'_>,
    ) -> Result<DeepSpeedInferenceConfig, ConfigError> {
        let window = fields.size(&["sliding_window", "window_size"]);
        let scaled = |base: DeepSpeedInferenceConfig| {
            base.with_scale_attention(fields.flag("scale_attn_weights", true))
                .with_scale_attn_by_inverse_layer_idx(fields.flag("scale_attn_by_inverse_layer_idx", false))
        };
        Ok(match self.architecture {
            Architecture::Bloom => {
                self.activation = "gelu_new".into();
                base.with_bigscience_bloom(true)
            }
            Architecture::Gpt2 => scaled(base),
            Architecture::Opt => {
                self.tie_word_embeddings = fields.flag("tie_word_embeddings", true);
                let bias = fields.flag("enable_bias", true);
                base.with_layer_norm_eps(1e-5)
                    .with_qkv_bias(bias)
                    .with_output_bias(bias)
                    .with_pre_layer_norm(fields.flag("do_layer_norm_before", true))
            }
            Architecture::Bert => {
                let positions = fields.text(&["position_embedding_type"]).unwrap_or("absolute");
                if positions != "absolute" {
                    return Err(ConfigError::UnknownValue {
                        key: "position_embedding_type".into(),
                        value: format!("`{positions}`"),
                        accepted: "absolute".into(),
                    });
                }
                base.with_pre_layer_norm(false)
                    .with_triangular_masking(false)
                    .with_layer_norm_eps(fields.number(&["layer_norm_eps"]).unwrap_or(1e-12))
            }
            Architecture::GptNeo => {
                self.local_layers = fields.gpt_neo_layers(self.layers);
                let base = base.with_window_size(window.unwrap_or(256));
                base.with_scale_attention(false).with_qkv_bias(false)
            }
            Architecture::GptJ => base
                .with_rotary_dim(fields.size(&["rotary_dim"]).or(Some(64)))
                .with_rotate_half(false)
                .with_rotate_every_two(true)
                .with_qkv_bias(false)
                .with_output_bias(false),
            Architecture::GptNeoX => {
                let bias = fields.flag("attention_bias", true);
                let share =
                    fields.rope_number("partial_rotary_factor").or(fields.number(&["rotary_pct"])).unwrap_or(0.25);
                fields.rotary_halves(base.with_qkv_bias(bias).with_output_bias(bias), share, self.max_positions)?
            }
            Architecture::Llama | Architecture::Mistral => {
                let bias = fields.flag("attention_bias", false);
                let base = base
                    .with_norm_type(NormType::RMSNorm)
                    .with_num_kv(fields.size(&["num_key_value_heads"]))
                    .with_head_dim(fields.size(&["head_dim"]))
                    .with_qkv_bias(bias)
                    .with_output_bias(bias);
                self.tie_word_embeddings = fields.flag("tie_word_embeddings", false);
                let share = fields.rope_number("partial_rotary_factor").unwrap_or(1.0);
                let base = fields.rotary_halves(base, share, self.max_positions)?;
                match window.filter(|_| self.architecture == Architecture::Mistral) {
                    Some(window) => {
                        self.local_layers = vec![true; self.layers];
                        base.with_window_size(window)
                    }
                    None => base,
                }
            }
        })
    }

    /// Rows of the table of positions, for the families that add one to the embedding: no sequence may be longer.
    pub fn learned_positions(&self) -> Option<usize> {
        let learned = matches!(
            self.architecture,
            Architecture::Gpt2 | Architecture::GptNeo | Architecture::Opt | Architecture::Bert
        );
        self.max_positions.filter(|_| learned)
    }

    /// The same model with another element type.
    pub fn with_dtype(mut self, dtype: DataType) -> Self {
        self.attention.dtype = Some(dtype);
        self
    }

    /// The same model with a cache of these element types.
    pub fn with_kv_cache_dtype(mut self, types: KvCacheType) -> Self {
        self.attention.kv_cache_dtype = types;
        self
    }

    /// The same model with a cache of this capacity, in tokens.
    pub fn with_max_out_tokens(mut self, tokens: usize) -> Self {
        self.attention.max_out_tokens = tokens;
        self.attention.min_out_tokens = self.attention.min_out_tokens.min(tokens);
        self
    }

    /// The same model on the rank that this communicator is, which holds its part of the heads; see
    /// [`DeepSpeedInferenceConfig::for_rank_of`].
    pub fn for_rank_of(mut self, communicator: &dyn Communicator) -> Self {
        self.attention = self.attention.for_rank_of(communicator);
        self
    }

    /// The same model, whose ranks may hold different numbers of heads; `uneven_heads` of the configuration.
    pub fn with_uneven_heads(mut self, uneven: bool) -> Self {
        self.attention.uneven_heads = uneven;
        self
    }

    /// The attention of layer `layer`; only GPT-Neo's layers differ.
    pub fn attention_config(&self, layer: usize) -> DeepSpeedInferenceConfig {
        let local = self.local_layers.get(layer).copied().unwrap_or(false);
        self.attention.clone().with_local_attention(local)
    }

    /// What the checkpoint puts in front of the model's own names: `transformer.` for a `GPT2LMHeadModel`, nothing for
    /// a `GPT2Model`.
    pub fn prefix(&self, checkpoint: &Checkpoint) -> &'static str {
        let (layers, prefixes) = self.architecture.layers_path();
        let first = |prefix: &str| {
            checkpoint
                .names()
                .any(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(&format!("{layers}.0."))))
        };
        prefixes.iter().copied().find(|prefix| first(prefix)).unwrap_or("")
    }

    /// The path of layer `layer` in the checkpoint, such as `transformer.h.3`.
    pub fn layer_path(&self, checkpoint: &Checkpoint, layer: usize) -> String {
        format!("{}{}.{layer}", self.prefix(checkpoint), self.architecture.layers_path().0)
    }

    /// Where layer `layer` keeps the parameters of its attention.
    pub fn attention_names(&self, checkpoint: &Checkpoint, layer: usize) -> AttentionNames {
        let path = self.layer_path(checkpoint, layer);
        let at = |rest: &str| format!("{path}.{rest}");
        const PROJECTIONS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
        let (norm, qkv, output) = match self.architecture {
            Architecture::Bloom => (
                Some("input_layernorm"),
                QkvNames::fused(&at("self_attention.query_key_value"), QkvLayout::PerHead),
                "self_attention.dense",
            ),
            Architecture::Gpt2 => (Some("ln_1"), QkvNames::fused(&at("attn.c_attn"), QkvLayout::Concat), "attn.c_proj"),
            Architecture::GptNeo => {
                (Some("ln_1"), QkvNames::separate(&at("attn.attention"), PROJECTIONS), "attn.attention.out_proj")
            }
            Architecture::GptNeoX => (
                Some("input_layernorm"),
                QkvNames::fused(&at("attention.query_key_value"), QkvLayout::PerHead),
                "attention.dense",
            ),
            Architecture::GptJ => (Some("ln_1"), QkvNames::separate(&at("attn"), PROJECTIONS), "attn.out_proj"),
            Architecture::Llama | Architecture::Mistral => {
                (Some("input_layernorm"), QkvNames::separate(&at("self_attn"), PROJECTIONS), "self_attn.o_proj")
            }
            Architecture::Opt => {
                (Some("self_attn_layer_norm"), QkvNames::separate(&at("self_attn"), PROJECTIONS), "self_attn.out_proj")
            }
            Architecture::Bert => {
                (None, QkvNames::separate(&at("attention.self"), ["query", "key", "value"]), "attention.output.dense")
            }
        };
        AttentionNames {
            norm: norm.map(|norm| NormNames::of(&at(norm))),
            qkv,
            output: WeightNames::of(&at(output)),
            orientation: match self.architecture {
                Architecture::Gpt2 => Orientation::InputOutput, // its `Conv1D`
                _ => Orientation::OutputInput,
            },
        }
    }
}
