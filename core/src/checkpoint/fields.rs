//! The fields of a Hugging Face configuration.

use serde_json::Value;

use crate::config::DeepSpeedInferenceConfig;
use crate::error::{ConfigError, Origin};
use crate::layout::RotaryLayout;
use crate::position::rotary::RopeScaling;

/// The fields of a `config.json`, under the names that the families give them. `null` counts as absent.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    /// Keys that are read for every family.
    pub const SHARED: &'static [&'static str] = &[
        "activation_function",
        "dtype",
        "eos_token_id",
        "ffn_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "max_position_embeddings",
        "model_type",
        "n_embd",
        "n_head",
        "n_inner",
        "n_layer",
        "n_positions",
        "num_attention_heads",
        "num_heads",
        "num_hidden_layers",
        "num_layers",
        "rms_norm_eps",
        "seq_length",
        "tie_word_embeddings",
        "torch_dtype",
        "vocab_size",
    ];

    /// Keys that change nothing for any family: training, sampling, tokens of the tokenizer, outputs of the Python classes.
    pub const HARMLESS: &'static [&'static str] = &[
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torchscript",
        "transformers_version",
        "use_cache",
    ];

    /// The fields of this record.
    pub fn new(record: &'a Value) -> Self {
        Self(record)
    }

    fn first(&self, names: &[&str]) -> Option<&'a Value> {
        names.iter().filter_map(|name| self.0.get(name)).find(|value| !value.is_null())
    }

    /// The first of these that is given, if it is a size.
    pub fn size(&self, names: &[&str]) -> Option<usize> {
        self.first(names)?.as_u64().map(|size| size as usize)
    }

    /// One size, or a list of them.
    pub fn sizes(&self, name: &str) -> Vec<usize> {
        match self.first(&[name]) {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).map(|size| size as usize).collect(),
            Some(value) => value.as_u64().map(|size| size as usize).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The first of these that is given, if it is a number.
    pub fn number(&self, names: &[&str]) -> Option<f64> {
        self.first(names)?.as_f64()
    }

    /// The first of these that is given, if it is text.
    pub fn text(&self, names: &[&str]) -> Option<&'a str> {
        self.first(names)?.as_str()
    }

    /// A list.
    pub fn list(&self, name: &str) -> Option<&'a [Value]> {
        self.first(&[name])?.as_array().map(Vec::as_slice)
    }

    /// A boolean.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.first(&[name]).and_then(Value::as_bool).unwrap_or(default)
    }

    /// The first of these that is given. `key` is the name in the error.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn required(&self, key: &'static str, names: &[&str]) -> Result<usize, ConfigError> {
        self.size(names).ok_or(ConfigError::Missing { key, origin: Origin::HuggingFace })
    }

    /// Length the model was trained for, in tokens.
    pub fn max_positions(&self) -> Option<usize> {
        self.size(&["max_position_embeddings", "n_positions", "seq_length"])
    }

    /// A number of `rope_parameters`, or of the configuration itself, where older versions keep it.
    pub fn rope_number(&self, name: &str) -> Option<f64> {
        let inside = ["rope_parameters", "rope_scaling"].iter().filter_map(|record| self.0.get(record)?.get(name));
        inside.chain(self.0.get(name)).find_map(Value::as_f64)
    }

    /// Rotary positions in the layout [`RotaryLayout::Half`], for this fraction of the features of a head.
    ///
    /// # Errors
    /// Those of [`RopeScaling::from_json`].
    pub fn rotary_halves(
        &self,
        base: DeepSpeedInferenceConfig,
        share: f64,
    ) -> Result<DeepSpeedInferenceConfig, ConfigError> {
        let record = self.first(&["rope_parameters", "rope_scaling"]).unwrap_or(&Value::Null);
        let theta = self.rope_number("rope_theta").or(self.number(&["rotary_emb_base"])).unwrap_or(10000.0);
        let dim = (base.head_size() as f64 * share) as usize;
        let scaling = RopeScaling::from_json(record, self.max_positions())?;
        Ok(base.with_rotary(RotaryLayout::Half, dim).with_rope_theta(theta).with_rope_scaling(scaling))
    }
}
