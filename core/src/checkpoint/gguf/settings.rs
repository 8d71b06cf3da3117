//! The keys of a file as those of a `config.json`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::header::{Gguf, Place};
use super::metadata::Metadata;
use crate::checkpoint::data_file::{DataFile, Failure};
use crate::checkpoint::runs::Run;
use crate::error::{ConfigError, Origin, WeightError};
use crate::spelling::nearest;

/// Keys that change nothing that is computed here.
const HARMLESS: &[&str] = &["expert_used_count", "rope.scaling.finetuned", "tensor_data_layout"];

/// The base of rotary frequencies, if a file states none.
const THETA: f64 = 10000.0;

/// The keys of a file, and the record of a `config.json` that they become.
pub(super) struct Settings<'a> {
    gguf: &'a Gguf,
    architecture: &'static str,
    read: BTreeSet<String>,
    record: Map<String, Value>,
}

/// Opens a file for its configuration.
///
/// # Errors
/// [`ConfigError::File`].
pub(in crate::checkpoint) fn open(path: &Path) -> Result<Gguf, ConfigError> {
    Gguf::open(path).map_err(|error| match error {
        WeightError::File { path, cause } => ConfigError::File { path, cause },
        other => ConfigError::File { path: path.into(), cause: other.to_string() },
    })
}

/// Tensors that the configuration reads: divisors of rotary frequencies.
pub(super) const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

impl<'a> Settings<'a> {
    /// What a file of this architecture and family says that every file does. `causal` is how the family attends.
    pub(super) fn new(
        gguf: &'a Gguf,
        [architecture, model_type]: [&'static str; 2],
        causal: bool,
    ) -> Result<Self, ConfigError> {
        let mut settings = Self { gguf, architecture, read: BTreeSet::new(), record: Map::new() };
        settings.set("model_type", model_type);
        settings.shared(causal)?;
        Ok(settings)
    }

    /// A key of the architecture with its name.
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn value(&mut self, key: &str) -> Option<(String, &'a Metadata)> {
        let key = self.key(key);
        let value = self.gguf.value(&key)?;
        self.read.insert(key.clone());
        Some((key, value))
    }

    /// A whole number of at least 0.
    pub(super) fn size(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some((key, value)) = self.value(key) else { return Ok(None) };
        let size = match value {
            &Metadata::Integer(size) => usize::try_from(size).ok(),
            _ => None,
        };
        size.map(Some).ok_or_else(|| value.wrong(&key, "a whole number"))
    }

    /// A finite number.
    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some((key, value)) = self.value(key) else { return Ok(None) };
        match *value {
            Metadata::Float(number) if number.is_finite() => Ok(Some(number)),
            Metadata::Integer(number) => Ok(Some(number as f64)),
            _ => Err(value.wrong(&key, "a finite number")),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some((_, Metadata::Text(text))) => Ok(Some(text)),
            Some((key, value)) => Err(value.wrong(&key, "a text")),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some((_, &Metadata::Bool(flag))) => Ok(Some(flag)),
            Some((key, value)) => Err(value.wrong(&key, "true or false")),
        }
    }

    fn required<T>(&self, value: Option<T>, key: &'static str) -> Result<T, ConfigError> {
        value.ok_or(ConfigError::Missing { key, origin: Origin::Gguf })
    }

    /// The error for a value that is not supported.
    pub(super) fn unsupported(&self, key: &str, value: impl ToString, supported: &str) -> ConfigError {
        ConfigError::Unsupported { key: self.key(key), value: value.to_string(), supported: supported.into() }
    }

    /// Sets a key of the `config.json`.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.record.insert(key.into(), value.into());
    }

    /// Gives a key that was set another name, for families that know it by that one alone.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(value) = self.record.remove(from) {
            self.set(to, value);
        }
    }

    /// Sets a key to the number of another, if it is given.
    pub(super) fn copy_number(&mut self, from: &str, to: &str) -> Result<(), ConfigError> {
        if let Some(number) = self.number(from)? {
            self.set(to, number);
        }
        Ok(())
    }

    /// Whether the first layer has a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.gguf.shape(&format!("blk.0.{name}")).is_some()
    }

    /// The rows of a tensor that every file of the architecture has.
    pub(super) fn rows(&self, name: &'static str) -> Result<usize, ConfigError> {
        self.required(self.gguf.shape(name).and_then(|shape| shape.first().copied()), name)
    }

    /// What every architecture has: sizes, tokens, and whether the output embedding is that of the input.
    fn shared(&mut self, causal: bool) -> Result<(), ConfigError> {
        for (from, to) in [
            ("block_count", "num_hidden_layers"),
            ("embedding_length", "hidden_size"),
            ("attention.head_count", "num_attention_heads"),
            ("feed_forward_length", "intermediate_size"),
            ("context_length", "max_position_embeddings"),
        ] {
            let size = self.size(from)?;
            let size = self.required(size, from)?;
            self.set(to, size);
        }
        let tokens = self.rows("token_embd.weight")?;
        if let Some(stated) = self.size("vocab_size")?.filter(|&stated| stated != tokens) {
            return Err(self.unsupported("vocab_size", stated, &format!("{tokens}, the rows of `token_embd.weight`")));
        }
        self.set("vocab_size", tokens);
        self.set("tie_word_embeddings", self.gguf.shape("output.weight").is_none());
        if let Some(experts) = self.size("expert_count")?.filter(|&experts| experts > 0) {
            return Err(self.unsupported("expert_count", experts, "0"));
        }
        if let Some(other) = self.flag("attention.causal")?.filter(|&stated| stated != causal) {
            return Err(self.unsupported("attention.causal", other, &causal.to_string()));
        }
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"].into_iter();
        let ends = ends.filter_map(|key| Some((key, self.gguf.value(key)?)));
        let ends = ends.map(|(key, value)| match value {
            &Metadata::Integer(id) if id >= 0 => Ok(json!(id)),
            other => Err(other.wrong(key, "a whole number")),
        });
        let ends = ends.collect::<Result<Vec<_>, _>>()?;
        if !ends.is_empty() {
            self.set("eos_token_id", ends);
        }
        Ok(())
    }

    /// Key/value heads: as many as query heads, if the file does not say.
    pub(super) fn kv_heads(&mut self) -> Result<(), ConfigError> {
        let heads = match self.size("attention.head_count_kv")? {
            Some(heads) => Some(heads),
            None => self.size("attention.head_count")?,
        };
        self.set("num_key_value_heads", heads);
        Ok(())
    }

    /// For families that have a key/value head for each query head, and four times the features in the MLP.
    pub(super) fn fixed_sizes(&mut self) -> Result<(), ConfigError> {
        let (heads, kv) = (self.size("attention.head_count")?, self.size("attention.head_count_kv")?);
        if let (Some(heads), Some(kv)) = (heads, kv)
            && kv != heads
        {
            return Err(self.unsupported(
                "attention.head_count_kv",
                kv,
                &format!("{heads}, the number of query heads"),
            ));
        }
        let (hidden, inner) = (self.size("embedding_length")?, self.size("feed_forward_length")?);
        let expected = hidden.and_then(|hidden| hidden.checked_mul(4));
        self.record.remove("intermediate_size");
        match inner == expected {
            true => Ok(()),
            false => {
                let supported = "four times the `embedding_length`";
                Err(self.unsupported("feed_forward_length", inner.unwrap_or(0), supported))
            }
        }
    }

    /// The epsilon of an RMS norm.
    pub(super) fn rms_epsilon(&mut self) -> Result<(), ConfigError> {
        self.epsilon("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    }

    pub(super) fn epsilon(&mut self, from: &'static str, to: &str) -> Result<(), ConfigError> {
        let epsilon = self.number(from)?;
        let epsilon = self.required(epsilon, from)?;
        self.set(to, epsilon);
        Ok(())
    }

    /// Features of a head.
    pub(super) fn head(&mut self) -> Result<usize, ConfigError> {
        let (key, value) = (self.size("attention.key_length")?, self.size("attention.value_length")?);
        let (hidden, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let default = hidden.unwrap_or(0) / heads.filter(|&heads| heads > 0).unwrap_or(1);
        let head = key.unwrap_or(default);
        match value {
            Some(value) if value != head => {
                Err(self.unsupported("attention.value_length", value, &format!("{head}, the size of a key")))
            }
            _ => Ok(head),
        }
    }

    /// Sets `head_dim`, for families that read it.
    pub(super) fn head_dim(&mut self) -> Result<(), ConfigError> {
        let head = self.head()?;
        self.set("head_dim", head);
        Ok(())
    }

    /// Sets the rotary settings of heads that rotate as a whole.
    pub(super) fn rope(&mut self) -> Result<(), ConfigError> {
        let record = self.whole_rope()?;
        self.set("rope_parameters", record);
        Ok(())
    }

    /// The rotary settings of heads that rotate as a whole.
    pub(super) fn whole_rope(&mut self) -> Result<Map<String, Value>, ConfigError> {
        let record = self.rope_record()?;
        let (head, dims) = (self.head()?, self.size("rope.dimension_count")?);
        match dims.filter(|&dims| dims != head) {
            None => Ok(record),
            Some(dims) => Err(self.unsupported("rope.dimension_count", dims, &format!("{head}, the size of a head"))),
        }
    }

    /// Sets the rotary settings of heads of which a part may rotate.
    pub(super) fn partial_rope(&mut self) -> Result<(), ConfigError> {
        let mut record = self.rope_record()?;
        let (head, dims) = (self.head()?, self.size("rope.dimension_count")?);
        let dims = dims.unwrap_or(head);
        if dims > head {
            return Err(self.unsupported("rope.dimension_count", dims, &format!("at most {head}, the size of a head")));
        }
        let share = |dims: f64| dims / head as f64;
        // The product with the size of a head is cut to a whole number.
        let exact = (head as f64 * share(dims as f64)) as usize == dims;
        record.insert("partial_rotary_factor".into(), json!(share(dims as f64 + if exact { 0.0 } else { 0.5 })));
        self.set("rope_parameters", record);
        Ok(())
    }

    /// Base and scaling.
    fn rope_record(&mut self) -> Result<Map<String, Value>, ConfigError> {
        let theta = self.number("rope.freq_base")?.unwrap_or(THETA);
        let (kind, factor) = (self.text("rope.scaling.type")?, self.number("rope.scaling.factor")?);
        let original = self.size("rope.scaling.original_context_length")?;
        let of_attention = self.number("rope.scaling.attn_factor")?;
        let [all, long, short] = FACTORS;
        let list = |name: &str| self.gguf.shape(name).map(|_| self.factors(name)).transpose();
        let lists = (list(all)?, list(long)?, list(short)?);
        let is_scaled =
            kind.is_some_and(|kind| kind != "none" && kind != "longrope") || factor.is_some_and(|f| f != 1.0);
        let mut record = match lists {
            (None, None, None) => match (kind, factor.unwrap_or(1.0)) {
                (Some("none"), _) | (None | Some("linear"), 1.0) => json!({ "rope_type": "default" }),
                (None | Some("linear"), factor) => json!({ "rope_type": "linear", "factor": factor }),
                (Some("yarn"), factor) => {
                    if let Some(other) = of_attention.filter(|&other| other != 1.0) {
                        return Err(self.unsupported("rope.scaling.attn_factor", other, "1 under YaRN"));
                    }
                    let original = self.required(original, "rope.scaling.original_context_length")?;
                    json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original })
                }
                (Some(other), _) => {
                    let supported = "\"none\", \"linear\", \"yarn\"; \"longrope\" with its tensors";
                    return Err(self.unsupported("rope.scaling.type", other, supported));
                }
            },
            _ if is_scaled => {
                let supported = "none next to tensors of divisors of the frequencies";
                return Err(self.unsupported("rope.scaling.type", kind.unwrap_or("linear"), supported));
            }
            // The file has the divisors that a scaling results in.
            (Some(divisors), None, None) => {
                let context = self.size("context_length")?;
                json!({
                    "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
                    "original_max_position_embeddings": context, "attention_factor": 1.0,
                })
            }
            (None, Some(long), Some(short)) => {
                let original = self.required(original, "rope.scaling.original_context_length")?;
                let of_attention = self.required(of_attention, "rope.scaling.attn_factor")?;
                self.set("original_max_position_embeddings", original);
                json!({
                    "rope_type": "longrope", "short_factor": short, "long_factor": long,
                    "attention_factor": of_attention,
                })
            }
            _ => return Err(self.unsupported(long, "a tensor", "both lists of divisors, and no other")),
        };
        record["rope_theta"] = json!(theta);
        match record {
            Value::Object(record) => Ok(record),
            _ => Ok(Map::new()),
        }
    }

    /// The elements of a small tensor.
    fn factors(&self, name: &str) -> Result<Vec<f64>, ConfigError> {
        let Some(Place { file, stored }) = self.gguf.tensors.get(name) else { return Ok(Vec::new()) };
        let path = &self.gguf.files()[*file];
        let &[len] = stored.shape.as_slice() else {
            return Err(self.unsupported(name, format!("{:?}", stored.shape), "one axis"));
        };
        let mut values = vec![0.0f64; len];
        let read = DataFile::open(path).map_err(Failure::File);
        let read = read.and_then(|file| file.floats(stored, ([Run { start: 0, len, to: 0 }], 1), &mut values));
        match read {
            Ok(()) => Ok(values),
            Err(Failure::File(error)) => Err(ConfigError::File { path: path.into(), cause: error.to_string() }),
            Err(_) => Err(self.unsupported(name, stored.element, "floats")),
        }
    }

    /// The record, if every key of the architecture was read, is harmless or allowed.
    pub(super) fn finish(self, allowed: &[String]) -> Result<Value, ConfigError> {
        let prefix = self.key("");
        let is_known = |key: &str| {
            let known = self.read.contains(key) || allowed.iter().any(|allowed| allowed == key);
            known || key.strip_prefix(&prefix).is_none_or(|rest| HARMLESS.contains(&rest))
        };
        let unread: Vec<_> = self.gguf.metadata().filter(|(key, _)| !is_known(key)).collect();
        match unread.first() {
            None => Ok(Value::Object(self.record)),
            Some((first, value)) => Err(ConfigError::UnreadKeys {
                reader: format!("the architecture `{}`", self.architecture),
                keys: unread.iter().map(|(key, _)| (*key).into()).collect(),
                value: value.to_string(),
                nearest: nearest(first, self.read.iter()),
            }),
        }
    }
}
