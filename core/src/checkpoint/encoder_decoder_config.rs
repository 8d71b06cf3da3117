//! What the `config.json` of an encoder-decoder says.

use std::path::Path;

use serde_json::Value;

use super::encoder_decoder::{EncoderDecoder, SourceInput, StackPaths};
use super::families::{ENCODER_DECODERS, encoder_decoder_of_model_type, of_model_type};
use super::files::Checkpoint;
use super::generation_config::of_generation_config;
use super::hugging_face::dtype;
use super::options::ConfigOptions;
use crate::config::{DeepSpeedInferenceConfig, read_json};
use crate::error::{ConfigError, Origin, WeightError};
use crate::fields::Fields;
use crate::layout::Orientation;
use crate::position::RelativeBuckets;

/// What the `config.json` of an encoder-decoder says: T5, BART, Whisper.
///
/// ```
/// use burn_deepspeed_core::checkpoint::EncoderDecoderConfig;
///
/// let record = serde_json::json!({ "model_type": "t5", "d_model": 512, "num_heads": 8, "num_layers": 6 });
/// let model = EncoderDecoderConfig::from_json(record)?;
/// assert_eq!((model.encoder.layers, model.decoder.layers, model.decoder.mlp_size), (6, 6, 2048));
/// assert!(!model.encoder.attention.triangular_masking && model.decoder.attention.triangular_masking);
/// # Ok::<_, burn_deepspeed_core::error::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EncoderDecoderConfig {
    /// Model family.
    pub family: &'static EncoderDecoder,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// The encoder.
    pub encoder: Stack,
    /// The decoder. Its attention to the encoder's states has the same settings as that to its own tokens, without the triangle.
    pub decoder: Stack,
    /// Name of the MLPs' activation, as Hugging Face writes it.
    pub activation: String,
    /// Whether the MLPs have a gate.
    pub gated: bool,
    /// Factor of the embedding of tokens.
    pub embedding_factor: f64,
    /// Factor of the decoder's states before the output embedding.
    pub output_factor: f64,
    /// Whether the output embedding is the input embedding where the checkpoint has none.
    pub tied: bool,
    /// The features that the encoder takes; `None` for an encoder of tokens.
    pub features: Option<FeatureShape>,
    /// The token that the decoder starts with, if the file or its class names one.
    pub start_token: Option<usize>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<usize>,
}

/// One of the two stacks of layers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stack {
    /// Number of layers, as the file states it; see [`EncoderDecoderConfig::check`].
    pub layers: usize,
    /// Width of the MLP, in elements.
    pub mlp_size: usize,
    /// Rows of the table of positions that positions use. No sequence may be longer. `None` for a class without tables.
    pub positions: Option<usize>,
    /// Buckets of relative positions.
    pub buckets: Option<RelativeBuckets>,
    /// The attention of each layer, with matrices `[out, in]`.
    pub attention: DeepSpeedInferenceConfig,
}

/// The features of sound that an encoder takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureShape {
    /// Features of a frame.
    pub bins: usize,
    /// Frames, two for each state of the encoder. Shorter sound is padded with silence.
    pub frames: usize,
}

impl EncoderDecoderConfig {
    /// Reads `config.json`, and a `generation_config.json` in the same folder.
    ///
    /// # Errors
    /// Those of [`read_file`](Self::read_file).
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::read_file(path, &ConfigOptions::default())
    }

    /// Reads the record of a `config.json`.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn from_json(record: Value) -> Result<Self, ConfigError> {
        Self::read(record, &ConfigOptions::default())
    }

    /// Reads `config.json`, and the tokens that start and end a text of a `generation_config.json` in the same folder. If that file is
    /// there, it alone says which tokens end a text, as for `generate` of `transformers`.
    ///
    /// # Errors
    /// [`ConfigError::File`] if a file cannot be read, else those of [`read`](Self::read) in [`ConfigError::InFile`].
    pub fn read_file(path: impl AsRef<Path>, options: &ConfigOptions) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let mut config = Self::read(read_json(path)?, options).map_err(|error| error.in_file(path))?;
        let tokens = |fields: &Fields<'_>| Ok((fields.size(&[START])?, fields.sizes("eos_token_id")?));
        if let Some((start, ends)) = of_generation_config(path, tokens)? {
            config.start_token = start.or(config.start_token);
            config.eos_token_ids = ends;
        }
        Ok(config)
    }

    /// Reads the record of a `config.json`, as strictly as [`HuggingFaceConfig::read`](super::HuggingFaceConfig::read). `side` and
    /// `text_only` of the options have no effect.
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`], [`ConfigError::UnreadKeys`], [`ConfigError::WrongType`], [`ConfigError::Unsupported`],
    /// [`ConfigError::Spellings`], [`ConfigError::Missing`], those of [`RelativeBuckets::new`] and of
    /// [`DeepSpeedInferenceConfig::resolve`].
    pub fn read(record: Value, options: &ConfigOptions) -> Result<Self, ConfigError> {
        let fields = Fields::new(&record)?.allowing(&options.allowed_keys);
        let family = family(&fields)?;
        family.check(&fields)?;
        let class = &family.class;
        let required = |names: &'static [&'static str]| {
            fields.positive(names)?.ok_or(ConfigError::Missing { key: names[0], origin: Origin::HuggingFace })
        };
        let hidden = required(class.hidden_size)?;
        let dtype = options.dtype.map_or_else(|| dtype(&fields, &fields), Ok)?;
        let epsilon = fields.number(class.epsilon.names)?.unwrap_or(class.epsilon.default);
        let head_dim = class
            .head_dim
            .map(|setting| Ok::<_, ConfigError>(fields.positive(setting.names)?.unwrap_or(setting.default)));
        let head_dim = head_dim.transpose()?;
        let buckets = family.relative.map(|paths| {
            let count = fields.positive(paths.buckets.names)?.unwrap_or(paths.buckets.default);
            let max_distance = fields.positive(paths.max_distance.names)?.unwrap_or(paths.max_distance.default);
            Ok::<_, ConfigError>([
                RelativeBuckets::new(count, max_distance, true)?,
                RelativeBuckets::new(count, max_distance, false)?,
            ])
        });
        let buckets = buckets.transpose()?;
        let stack = |place: usize, layers: usize| {
            let mlp = class.mlp_size[place];
            let mlp_size = fields.positive(mlp.names)?.unwrap_or(mlp.default);
            let positions = class.positions.map(|settings| {
                Ok::<_, ConfigError>(fields.positive(settings[place].names)?.unwrap_or(settings[place].default))
            });
            let positions = positions.transpose()?;
            let base = DeepSpeedInferenceConfig::new(hidden, required(class.heads[place])?)
                .with_dtype(dtype)
                .with_transposed_mode(true)
                .with_head_dim(head_dim)
                .with_layer_norm_eps(epsilon)
                .with_triangular_masking(place == DECODER)
                .with_num_hidden_layers(Some(layers))
                .with_intermediate_size(Some(mlp_size))
                .with_max_out_tokens(positions.unwrap_or(2048));
            let attention = (family.attention)(base);
            attention.resolve(0)?;
            Ok::<_, ConfigError>(Stack {
                layers,
                mlp_size,
                positions,
                buckets: buckets.map(|both| both[place]),
                attention,
            })
        };
        let layers = required(class.layers[ENCODER])?;
        let decoder_layers = match class.same_layers {
            true => fields.positive(class.layers[DECODER])?.unwrap_or(layers),
            false => required(class.layers[DECODER])?,
        };
        let (encoder, decoder) = (stack(ENCODER, layers)?, stack(DECODER, decoder_layers)?);
        let features = match &family.source {
            SourceInput::Tokens => None,
            SourceInput::Features { bins, .. } => Some(FeatureShape {
                bins: fields.positive(bins.names)?.unwrap_or(bins.default),
                frames: encoder.positions.unwrap_or(0).saturating_mul(2),
            }),
        };
        let root = (hidden as f64).sqrt();
        let blocks = (family.blocks)(&fields)?;
        Ok(Self {
            family,
            vocab_size: fields.positive(class.vocab_size.names)?.unwrap_or(class.vocab_size.default),
            encoder,
            decoder,
            activation: blocks.activation,
            gated: blocks.gated,
            embedding_factor: if family.scaled_embedding.of(&fields)? { root } else { 1.0 },
            output_factor: if blocks.scaled_output { 1.0 / root } else { 1.0 },
            tied: family.tied.of(&fields)?,
            features,
            start_token: token(&fields, START, class.start_token)?,
            eos_token_ids: end_tokens(&fields, class.end_token)?,
        })
    }

    /// Width of the states of both stacks.
    pub fn hidden_size(&self) -> usize {
        self.decoder.attention.hidden_size
    }

    /// Whether norms come after the sums, as in BART, or before attention and MLP.
    pub fn norms_after(&self) -> bool {
        !self.decoder.attention.pre_layer_norm
    }

    /// Checks the numbers of layers and the sizes of their attention against the checkpoint. Do this before you build a model: a file may
    /// state any number, and a model allocates memory for each layer.
    ///
    /// # Errors
    /// [`WeightError::Missing`] or [`WeightError::Shape`], about the output projection of the first attention that does not fit.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), WeightError> {
        let stacks = [(&self.encoder, &self.family.encoder), (&self.decoder, &self.family.decoder)];
        for (stack, paths) in stacks {
            let inputs = stack.attention.heads.saturating_mul(stack.attention.head_size());
            let shape = Orientation::OutputInput.shape(inputs, stack.attention.hidden_size);
            // The first missing layer ends the loop, so its length is bounded by the number of tensors in the checkpoint.
            for layer in 0..stack.layers {
                let path = self.layer_path(checkpoint, paths, layer);
                for branch in [Some(&paths.attention), paths.cross.as_ref()].into_iter().flatten() {
                    checkpoint.check_shape(&branch.names(&path).output.matrix, &shape)?;
                }
            }
        }
        Ok(())
    }

    /// Marks tensors that the class does not read as not needed.
    pub fn ignore_unused(&self, checkpoint: &Checkpoint) {
        let prefix = self.prefix(checkpoint);
        checkpoint.ignore(|name| name.strip_prefix(prefix).is_some_and(|name| self.family.unused.contains(&name)));
    }

    /// What the checkpoint puts before the names of the bare model: `model.` for a `BartForConditionalGeneration`, nothing for a
    /// `BartModel`.
    pub fn prefix(&self, checkpoint: &Checkpoint) -> &'static str {
        let first = format!("{}{}.0.", self.family.prefix, self.family.encoder.layers);
        let has = checkpoint.names().any(|name| name.starts_with(&first));
        if has { self.family.prefix } else { "" }
    }

    /// The path of layer `layer` of a stack in the checkpoint, such as `model.decoder.layers.3`.
    pub fn layer_path(&self, checkpoint: &Checkpoint, stack: &StackPaths, layer: usize) -> String {
        format!("{}{}.{layer}", self.prefix(checkpoint), stack.layers)
    }
}

/// Places of the two stacks in a record.
const ENCODER: usize = 0;
const DECODER: usize = 1;
/// Key of the token that the decoder starts with.
const START: &str = "decoder_start_token_id";

/// The family of a `config.json`.
fn family(fields: &Fields<'_>) -> Result<&'static EncoderDecoder, ConfigError> {
    let missing = ConfigError::Missing { key: "model_type", origin: Origin::HuggingFace };
    let named = fields.text(&["model_type"])?.ok_or(missing)?;
    if let Some(family) = encoder_decoder_of_model_type(named) {
        return Ok(family);
    }
    let supported: Vec<&str> = ENCODER_DECODERS.iter().map(|family| family.name()).collect();
    match of_model_type(named) {
        Ok(family) => {
            let (what, program) = match family.encoder {
                Some(_) => ("an encoder", "embed"),
                None => ("a decoder", "generate"),
            };
            let both = supported.join(", ");
            let supported = format!("{both}, which have an encoder and a decoder; the example `{program}` runs {what}");
            Err(fields.unsupported("model_type", &supported))
        }
        Err(_) => Err(ConfigError::UnknownModelType { model_type: named.into(), supported }),
    }
}

/// A token, where `null` is none.
fn token(fields: &Fields<'_>, key: &str, default: Option<usize>) -> Result<Option<usize>, ConfigError> {
    if fields.is_null(key) { Ok(None) } else { Ok(fields.size(&[key])?.or(default)) }
}

/// The tokens that end a text, where `null` is none.
fn end_tokens(fields: &Fields<'_>, default: usize) -> Result<Vec<usize>, ConfigError> {
    const KEY: &str = "eos_token_id";
    let absent = fields.value(KEY).is_none() && !fields.is_null(KEY);
    if absent { Ok(vec![default]) } else { fields.sizes(KEY) }
}
