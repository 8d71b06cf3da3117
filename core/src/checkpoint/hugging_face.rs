//! What the `config.json` of a Hugging Face checkpoint says.

mod file;

use serde_json::Value;

use super::class::MlpSize;
use super::composite::Composite;
use super::decoder::DecoderPaths;
use super::encoder::EncoderPaths;
use super::experts::{ExpertSizes, Experts};
use super::families::{of_model_type, pair_of_model_type};
use super::family::{Family, FamilyAttention};
use super::files::Checkpoint;
use super::latent_names::LatentNames;
use super::layer_paths::{LayerPaths, in_layer};
use super::names::AttentionNames;
use super::options::ConfigOptions;
use super::pair::{Pair, SideOfPair};
use crate::config::{DataType, DeepSpeedInferenceConfig, MlpActivation};
use crate::error::{ConfigError, Origin};
use crate::fields::Fields;
use crate::latent::LatentSizes;
use crate::spec::AttentionSpec;

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
    /// Length the model was trained for, in tokens; `None` for a BLOOM that states none.
    pub max_positions: Option<usize>,
    /// Width of the MLP, in elements; see [`mlp_size_of`](Self::mlp_size_of).
    pub mlp_size: usize,
    /// Name of the MLP's activation, as Hugging Face writes it (`gelu_new`, `silu`, …).
    pub activation: String,
    /// Whether the output embedding is the input embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<usize>,
    /// The whole record, for what is not read here.
    pub record: Value,
    /// The sizes of latent attention; `None` if the model has keys and values of its own for each head.
    pub latent: Option<LatentSizes>,
    /// Layers after the last one that the checkpoint holds for speculation.
    prediction_layers: usize,
    /// For a file that describes two encoders: which one this is.
    side: Option<SideOfPair>,
    attention: FamilyAttention,
    paths: (LayerPaths, Option<DecoderPaths>),
    experts: Option<ExpertSizes>,
    /// The model around the language model that this is.
    around: Option<&'static Composite>,
    /// The architecture of the GGUF file that it comes from.
    gguf: Option<&'static str>,
    allowed_keys: Vec<String>,
}

impl HuggingFaceConfig {
    /// Reads the record of a `config.json`.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn from_json(record: Value) -> Result<Self, ConfigError> {
        Self::read(record, &ConfigOptions::default())
    }

    /// Reads the record of a `config.json`, strictly:
    ///
    /// - A key that the family does not read and that is not known to be harmless is an error, unless `options` allows it.
    /// - A value of the wrong type is an error. `null` and absence mean the default of the family's class in `transformers`; the
    ///   hidden size and the numbers of heads and layers are required.
    /// - Two spellings of one setting must say the same.
    ///
    /// Of a file that describes two encoders, such as that of a whole CLIP, `options` must say which one is read.
    ///
    /// The element type is that of the file, if `options` names none. Matrices are `[out, in]`
    /// ([`transposed_mode`](DeepSpeedInferenceConfig::transposed_mode)), as most checkpoints have them and as kernels multiply them faster.
    /// Change any other setting of attention in [`with_attention`](Self::with_attention).
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`], [`ConfigError::UnreadKeys`], [`ConfigError::WrongType`], [`ConfigError::Unsupported`],
    /// [`ConfigError::Spellings`], [`ConfigError::Missing`], those of [`RopeScaling::from_fields`] and of
    /// [`DeepSpeedInferenceConfig::resolve`].
    ///
    /// [`RopeScaling::from_fields`]: crate::position::rotary::RopeScaling::from_fields
    pub fn read(record: Value, options: &ConfigOptions) -> Result<Self, ConfigError> {
        let fields = Fields::new(&record)?.allowing(&options.allowed_keys);
        let around = Composite::of(&fields)?;
        let mut record = match around {
            Some(around) if options.text_only => around.language_model(&fields)?,
            Some(around) => return Err(around.refused(&fields)),
            None => record,
        };
        let missing = |key| ConfigError::Missing { key, origin: Origin::HuggingFace };
        let model_type = Fields::new(&record)?.text(&["model_type"])?.ok_or(missing("model_type"))?;
        let pair = pair_of_model_type(model_type);
        if let (Some(_), Some(side)) = (pair, options.side) {
            Pair::complete(&mut record, side);
        }
        let file = Fields::new(&record)?.allowing(&options.allowed_keys);
        let side = pair.map(|pair| {
            let supported = "one of its two encoders: choose with `ConfigOptions::with_side`; `embed` runs both";
            let side = options.side.ok_or_else(|| file.unsupported("model_type", supported))?;
            Ok::<_, ConfigError>(SideOfPair { pair, side, key: pair.key(&file, side)? })
        });
        let side = side.transpose()?;
        let fields = side.map_or(Ok(file.clone()), |side| side.fields(&file))?;
        let family = match (side, fields.text(&["model_type"])?) {
            (Some(SideOfPair { pair, side, .. }), named) => {
                let family = pair.family(side);
                if named.is_some_and(|named| !family.model_types.contains(&named)) {
                    return Err(fields.unsupported("model_type", family.name()));
                }
                family
            }
            (None, named) => of_model_type(named.ok_or(missing("model_type"))?)?,
        };
        family.check(&fields)?;
        let class = &family.class;
        let size = |names: &'static [&'static str], default: usize| {
            let default = class.sizes.map(|sizes| sizes[default]);
            fields.positive(names)?.or(default).ok_or(missing(names[0]))
        };
        let (hidden, heads, layers) = (size(class.hidden_size, 0)?, size(class.heads, 1)?, size(class.layers, 2)?);
        let max_positions = family.max_positions(&fields)?;
        let mlp_size = fields.positive(class.mlp_size.names)?.unwrap_or_else(|| match class.mlp_size.default {
            MlpSize::Fixed(size) => size,
            MlpSize::TimesHidden(times) => hidden.saturating_mul(times),
        });
        let dtype = options.dtype.map_or_else(|| dtype(&file, &fields), Ok)?;
        let activation = fields.text(class.activation.names)?.unwrap_or(class.activation.default);
        let replaced = class.replaced_activations.iter().find(|(from, _)| *from == activation);
        let activation = replaced.map_or(activation, |(_, to)| to);
        let mut base = DeepSpeedInferenceConfig::new(hidden, heads)
            .with_dtype(dtype)
            .with_transposed_mode(true)
            .with_max_out_tokens(max_positions.unwrap_or(2048))
            .with_layer_norm_eps(fields.number(class.epsilon.names)?.unwrap_or(class.epsilon.default))
            .with_mlp_act_func_type(match activation {
                "relu" => MlpActivation::ReLU,
                "silu" | "swish" => MlpActivation::GatedSILU,
                _ => MlpActivation::GELU,
            });
        base.num_hidden_layers = Some(layers);
        base.intermediate_size = Some(mlp_size);
        let attention = (family.attention)(base, &fields)?;
        let latent = family.latent.map(|sizes| sizes(&fields)).transpose()?;
        attention.check(latent.as_ref())?;
        let paths = family.paths(&fields)?;
        let experts = paths.1.and_then(|decoder| decoder.experts);
        Ok(Self {
            family,
            layers,
            vocab_size: fields.positive(class.vocab_size.names)?.unwrap_or(class.vocab_size.default),
            max_positions,
            mlp_size,
            activation: activation.into(),
            tie_word_embeddings: fields.flag(&["tie_word_embeddings"])?.unwrap_or(class.tie_word_embeddings),
            eos_token_ids: fields.sizes("eos_token_id")?,
            prediction_layers: family.prediction_layers(&fields)?,
            latent,
            around,
            gguf: None,
            experts: experts.map(|experts| experts.sizes(&fields)).transpose()?,
            paths,
            attention,
            allowed_keys: options.allowed_keys.clone(),
            side,
            record,
        })
    }

    /// The fields of the record, for what is not read here. They allow the keys that the reader allowed. If the file describes two
    /// encoders, they are those of the one that was chosen.
    ///
    /// # Errors
    /// [`ConfigError::Json`] if [`record`](Self::record) was replaced by something else than an object.
    pub fn fields(&self) -> Result<Fields<'_>, ConfigError> {
        let file = self.file()?;
        self.side.map_or(Ok(file.clone()), |side| side.fields(&file))
    }

    /// The fields of the whole file.
    fn file(&self) -> Result<Fields<'_>, ConfigError> {
        Ok(Fields::new(&self.record)?.allowing(&self.allowed_keys))
    }

    /// Keys of the record that are neither read for this family nor known to change nothing: those that the reader allowed.
    pub fn unread_keys(&self) -> Vec<&str> {
        let known = [self.family.read_keys(), self.family.harmless_keys()].concat();
        let keys = self.fields().into_iter().flat_map(|fields| fields.keys().collect::<Vec<_>>());
        keys.filter(|key| !known.contains(key)).collect()
    }

    /// Rows of the position table that tokens may use, for families that add one to the embedding. No sequence may be longer.
    pub fn learned_positions(&self) -> Option<usize> {
        let rows = self.max_positions.filter(|_| self.family.positions.is_some())?;
        let fields = self.encoder().zip(self.fields().ok());
        let padding = fields.and_then(|(paths, fields)| paths.padding_before_positions(&fields).ok()?);
        Some(padding.map_or(rows, |padding| rows.saturating_sub(padding.saturating_add(1))))
    }

    /// The projection of the vector that the class makes of a row: its path and its outputs. `None` for a class that has none, and for
    /// a checkpoint without it that holds one encoder alone.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`].
    pub fn vector_projection(&self, checkpoint: &Checkpoint) -> Result<Option<(&'static str, usize)>, ConfigError> {
        let Some(projection) = self.encoder().and_then(|paths| paths.projection) else { return Ok(None) };
        // A file of two encoders says the size next to their records.
        let size = self.file()?.positive(projection.size.names)?.unwrap_or(projection.size.default);
        let has = self.side.is_some() || checkpoint.contains(&format!("{}.weight", projection.path));
        Ok(has.then_some((projection.path, size)))
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
    pub fn with_attention(self, change: impl Fn(DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig) -> Self {
        let FamilyAttention { kinds, layers } = self.attention;
        Self { attention: FamilyAttention { kinds: kinds.into_iter().map(change).collect(), layers }, ..self }
    }

    /// Whether `generate` of `transformers` drops its cache between sequences of `before` and of `after` tokens, and computes all tokens
    /// anew: where rotary frequencies change, in the classes whose `prepare_inputs_for_generation` says so. Others keep their cache.
    pub fn drops_cache(&self, before: usize, after: usize) -> bool {
        const CLASSES: [&str; 3] = ["Phi3Config", "Phi4MultimodalConfig", "PhimoeConfig"];
        let changes = |kind: &DeepSpeedInferenceConfig| kind.rope_scaling.changes(before, after);
        CLASSES.contains(&self.family.class.name) && self.attention.kinds.iter().any(changes)
    }

    /// Width of the MLP of layer `layer`, in elements.
    pub fn mlp_size_of(&self, layer: usize) -> usize {
        let is_own = self.kind(self.attention.layers.of(layer)).kv_source.is_own();
        let widths = self.decoder().filter(|_| !is_own).map_or(1, |decoder| decoder.shared_mlp_widths);
        self.mlp_size.saturating_mul(widths)
    }

    /// The attention of layer `layer`. Layers may differ in all but the number of query heads.
    pub fn attention_config(&self, layer: usize) -> DeepSpeedInferenceConfig {
        self.kind(self.attention.layers.of(layer)).clone()
    }

    /// The sizes of layer `layer` on this rank.
    ///
    /// # Errors
    /// Those of [`resolve_with`](DeepSpeedInferenceConfig::resolve_with).
    pub fn attention_spec(&self, layer: usize) -> Result<AttentionSpec, ConfigError> {
        self.kind(self.attention.layers.of(layer)).resolve_with(self.latent.as_ref(), layer)
    }

    fn kind(&self, kind: usize) -> &DeepSpeedInferenceConfig {
        &self.attention.kinds[kind]
    }

    /// Where the checkpoint keeps a layer and its attention.
    pub fn layer(&self) -> &LayerPaths {
        &self.paths.0
    }

    /// Where the checkpoint keeps everything around attention in a decoder; `None` for an encoder.
    pub fn decoder(&self) -> Option<&DecoderPaths> {
        self.paths.1.as_ref()
    }

    /// Where the checkpoint keeps everything around attention in an encoder; `None` for a decoder.
    pub fn encoder(&self) -> Option<&'static EncoderPaths> {
        self.family.encoder.as_ref()
    }

    /// The experts of layer `layer`; `None` if it has an MLP without experts.
    pub fn experts(&self, layer: usize) -> Option<(&Experts, &ExpertSizes)> {
        let experts = self.decoder()?.experts.as_ref()?;
        self.experts.as_ref().filter(|sizes| sizes.in_layer(layer)).map(|sizes| (experts, sizes))
    }

    /// Marks the buffers of older versions of `transformers` as not needed: masks, and tables that the configuration implies. In a file
    /// of two encoders, also the tensors of the other one, under [`text_only`](ConfigOptions::text_only) those that read images, in a
    /// DeepSeek V3 the layers that predict later tokens, and the keys and values of layers that read those of another.
    pub fn ignore_buffers(&self, checkpoint: &Checkpoint) {
        checkpoint.ignore(|name| self.family.is_buffer(name));
        let layers = format!("{}{}.", self.prefix(checkpoint), self.layer().layers);
        let is_shared = |layer| layer < self.layers && !self.kind(self.attention.layers.of(layer)).kv_source.is_own();
        let unread = |(layer, rest): (usize, &str)| is_shared(layer) && self.layer().is_key_or_value(rest);
        checkpoint.ignore(|name| in_layer(&layers, name).is_some_and(unread));
        if self.prediction_layers > 0 {
            let all = self.layers..self.layers.saturating_add(self.prediction_layers);
            checkpoint.ignore(|name| in_layer(&layers, name).is_some_and(|(layer, _)| all.contains(&layer)));
        }
        if let Some(SideOfPair { pair, side, .. }) = self.side {
            checkpoint.ignore(|name| pair.is_foreign(name, side));
        }
        if let Some(around) = self.around {
            checkpoint.ignore(|name| around.is_other(name));
        }
    }

    /// What the checkpoint puts before the names of the bare model: `transformer.` for a `GPT2LMHeadModel`, nothing for a
    /// `GPT2Model`.
    pub fn prefix(&self, checkpoint: &Checkpoint) -> String {
        let (first, outer) = (format!("{}.0.", self.layer().layers), self.outer_prefix());
        let has = |prefix: &str| {
            let rest = |name: &str| Some(name.strip_prefix(outer)?.strip_prefix(prefix)?.starts_with(&first));
            checkpoint.names().any(|name| rest(name).unwrap_or(false))
        };
        format!("{outer}{}", self.layer().prefixes.iter().find(|prefix| has(prefix)).unwrap_or(&""))
    }

    /// The path of the output embedding in the checkpoint, if the model is a decoder.
    pub fn head_path(&self) -> Option<String> {
        self.decoder().map(|decoder| format!("{}{}", self.around.map_or("", Composite::head), decoder.head))
    }

    /// What precedes the names of the language model in a model that also reads images.
    fn outer_prefix(&self) -> &'static str {
        self.around.map_or("", Composite::prefix)
    }

    /// The path of layer `layer` in the checkpoint, such as `transformer.h.3`.
    pub fn layer_path(&self, checkpoint: &Checkpoint, layer: usize) -> String {
        format!("{}{}.{layer}", self.prefix(checkpoint), self.layer().layers)
    }

    /// Where layer `layer` keeps the parameters of its attention. Latent attention has [`latent_names`](Self::latent_names).
    pub fn attention_names(&self, checkpoint: &Checkpoint, layer: usize) -> AttentionNames {
        self.layer().attention(&self.layer_path(checkpoint, layer))
    }

    /// Where layer `layer` keeps the parameters of its latent attention; `None` if it has another.
    pub fn latent_names(&self, checkpoint: &Checkpoint, layer: usize) -> Option<LatentNames> {
        let (sizes, path) = (self.latent?, self.layer_path(checkpoint, layer));
        let names = LatentNames::deepseek(&format!("{path}.self_attn"), sizes.q_lora_rank.is_some());
        Some(names.with_norm(&format!("{path}.{}", self.layer().norm?)))
    }
}

/// The element type of the file, which one of two encoders may repeat.
pub(super) fn dtype(file: &Fields<'_>, own: &Fields<'_>) -> Result<DataType, ConfigError> {
    let names = ["dtype", "torch_dtype"];
    let (outer, inner) = (file.text(&names)?, own.text(&names)?);
    if outer.is_some() && inner.is_some() && outer != inner {
        return Err(file.conflict(own, [file.spelling(&names), own.spelling(&names)]));
    }
    let fields = if outer.is_some() { file } else { own };
    let Some(name) = outer.or(inner) else { return Ok(DataType::Fp32) };
    let supported = "float32, float16, bfloat16; for others choose one with `ConfigOptions::with_dtype`";
    DataType::parse(name).map_err(|_| fields.unsupported(fields.spelling(&names), supported))
}
