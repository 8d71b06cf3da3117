//! What the `config.json` of a Hugging Face checkpoint says.

use std::path::Path;

use serde_json::Value;

use super::families::of_model_type;
use super::family::{Family, LocalLayers};
use super::fields::Fields;
use super::files::Checkpoint;
use super::names::AttentionNames;
use crate::config::{DataType, DeepSpeedInferenceConfig, MlpActivation, read_json};
use crate::error::{ConfigError, Origin, WeightError};

/// What the `config.json` of a Hugging Face checkpoint says about attention and the blocks around it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HuggingFaceConfig {
    /// Model family.
    pub family: &'static Family,
    /// Number of layers, as the file states it; see [`check`](Self::check).
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
    local: LocalLayers,
}

impl HuggingFaceConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ConfigError::File`] if it cannot be read, else those of [`from_json`](Self::from_json) in
    /// [`ConfigError::InFile`].
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        Self::from_json(read_json(path)?).map_err(|error| error.in_file(path))
    }

    /// Reads the record of a `config.json`. The element type is that of the checkpoint; set another, like any other setting of
    /// attention, in [`with_attention`](Self::with_attention).
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`], [`ConfigError::UnknownRopeScaling`], [`ConfigError::Missing`] and those of
    /// [`DeepSpeedInferenceConfig::resolve`].
    pub fn from_json(record: Value) -> Result<Self, ConfigError> {
        let fields = Fields::new(&record);
        let missing = ConfigError::Missing { key: "model_type", origin: Origin::HuggingFace };
        let family = of_model_type(fields.text(&["model_type"]).ok_or(missing)?)?;
        let defaults = &family.defaults;
        let hidden = fields.required("hidden_size", &["hidden_size", "n_embd"])?;
        let heads = fields.required("heads", &["num_attention_heads", "n_head", "num_heads"])?;
        let layers = fields.required("num_hidden_layers", &["num_hidden_layers", "n_layer", "num_layers"])?;
        let max_positions = fields.max_positions();
        let mlp_size = fields.size(&["intermediate_size", "n_inner", "ffn_dim"]);
        let mlp_size = mlp_size.unwrap_or_else(|| hidden.saturating_mul(4));
        let dtype = fields.text(&["dtype", "torch_dtype"]).map_or(Ok(DataType::Fp32), DataType::parse)?;
        let activation = fields.text(defaults.activation_keys).unwrap_or(defaults.activation);
        let mut base = DeepSpeedInferenceConfig::new(hidden, heads)
            .with_dtype(dtype)
            .with_max_out_tokens(max_positions.unwrap_or(2048))
            .with_layer_norm_eps(fields.number(defaults.epsilon_keys).unwrap_or(defaults.epsilon))
            .with_mlp_act_func_type(match activation {
                "relu" => MlpActivation::ReLU,
                "silu" => MlpActivation::GatedSILU,
                _ => MlpActivation::GELU,
            });
        base.num_hidden_layers = Some(layers);
        base.intermediate_size = Some(mlp_size);
        let attention = (family.attention)(base, &fields)?;
        attention.config.resolve(0)?;
        Ok(Self {
            family,
            layers,
            vocab_size: fields.size(&["vocab_size"]).unwrap_or(0),
            max_positions,
            mlp_size,
            activation: activation.into(),
            tie_word_embeddings: fields.flag("tie_word_embeddings", defaults.tie_word_embeddings),
            eos_token_ids: fields.sizes("eos_token_id"),
            attention: attention.config,
            local: attention.local,
            record,
        })
    }

    /// Keys of the record that are neither read for this family nor known to change nothing.
    pub fn unread_keys(&self) -> Vec<&str> {
        let known = [Fields::SHARED, Fields::HARMLESS, self.family.reads, self.family.harmless];
        let keys = self.record.as_object().into_iter().flat_map(|record| record.keys());
        keys.map(String::as_str).filter(|key| !known.iter().any(|known| known.contains(key))).collect()
    }

    /// Rows of the position table that tokens may use, for families that add one to the embedding. No sequence may be longer.
    pub fn learned_positions(&self) -> Option<usize> {
        self.max_positions.filter(|_| self.family.positions.is_some())
    }

    /// The same model with other settings of attention, in every layer.
    ///
    /// ```
    /// use burn_deepspeed_core::checkpoint::HuggingFaceConfig;
    /// use burn_deepspeed_core::config::DataType;
    ///
    /// let record = serde_json::json!({ "model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2 });
    /// let model = HuggingFaceConfig::from_json(record)?
    ///     .with_attention(|attention| attention.with_dtype(DataType::Int8).with_max_out_tokens(64));
    /// assert_eq!(model.attention_config(0).max_out_tokens, 64);
    /// # Ok::<_, burn_deepspeed_core::error::ConfigError>(())
    /// ```
    pub fn with_attention(self, change: impl FnOnce(DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig) -> Self {
        Self { attention: change(self.attention), ..self }
    }

    /// The attention of layer `layer`. The layers of GPT-Neo differ; those of the other families are alike.
    pub fn attention_config(&self, layer: usize) -> DeepSpeedInferenceConfig {
        self.attention.clone().with_local_attention(self.local.contains(layer))
    }

    /// Checks the number of layers and the sizes of their attention against the checkpoint. Do this before you build a model: a
    /// file may state any number, and a model allocates memory for each layer.
    ///
    /// # Errors
    /// [`WeightError::Missing`] or [`WeightError::Shape`], about the output projection of the first layer that does not fit.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), WeightError> {
        let (heads, hidden) = (self.attention.heads, self.attention.hidden_size);
        let inputs = heads.saturating_mul(self.attention.head_size());
        // The first missing layer ends the loop, so its length is bounded by the number of tensors in the checkpoint.
        (0..self.layers).try_for_each(|layer| {
            let names = self.attention_names(checkpoint, layer);
            checkpoint.check_shape(&names.output.matrix, &names.orientation.shape(inputs, hidden))
        })
    }

    /// What the checkpoint puts before the names of the bare model: `transformer.` for a `GPT2LMHeadModel`, nothing for a
    /// `GPT2Model`.
    pub fn prefix(&self, checkpoint: &Checkpoint) -> &'static str {
        let first = format!("{}.0.", self.family.layer.layers);
        let has = |prefix: &str| {
            checkpoint.names().any(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(&first)))
        };
        self.family.layer.prefixes.iter().copied().find(|prefix| has(prefix)).unwrap_or("")
    }

    /// The path of layer `layer` in the checkpoint, such as `transformer.h.3`.
    pub fn layer_path(&self, checkpoint: &Checkpoint, layer: usize) -> String {
        format!("{}{}.{layer}", self.prefix(checkpoint), self.family.layer.layers)
    }

    /// Where layer `layer` keeps the parameters of its attention.
    pub fn attention_names(&self, checkpoint: &Checkpoint, layer: usize) -> AttentionNames {
        self.family.layer.attention(&self.layer_path(checkpoint, layer))
    }
}
