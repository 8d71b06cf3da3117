//! What a record of a model family consists of.

use std::fmt;

use super::class::Class;
use super::known;
use super::layout::QkvLayout;
use super::local::LocalLayers;
use super::names::{AttentionNames, NormNames, QkvNames, WeightNames};
use super::only::Only;
use super::rope::{Rope, RopeKeys};
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::layout::Orientation;

/// A model family: how its `config.json` is read, and where its checkpoints keep their tensors.
pub struct Family {
    /// Values of `model_type` that mean this family; the first is its name.
    pub model_types: &'static [&'static str],
    /// Its configuration class in `transformers`: the spellings and defaults of the settings that every family has.
    pub class: Class,
    /// Other keys of `config.json` that `attention` or a model around it reads.
    pub reads: &'static [&'static str],
    /// Where the class keeps its rotary settings; `None` for a class that has none.
    pub rope: Option<RopeKeys>,
    /// Keys that are supported with one value only.
    pub only: &'static [Only],
    /// Keys that are known not to change what the model computes, in addition to those that are harmless for every family.
    pub harmless: &'static [&'static str],
    /// Sets what distinguishes the attention of the family from the shared settings, which are passed in.
    pub attention: fn(DeepSpeedInferenceConfig, &Fields<'_>) -> Result<FamilyAttention, ConfigError>,
    /// The paths of a layer and of its attention.
    pub layer: LayerPaths,
    /// Ends of the names of buffers that older versions of `transformers` saved with the weights, in addition to those of every
    /// family.
    pub buffers: &'static [&'static str],
    /// The table of positions that is added to the embedding, for families that have one.
    pub positions: Option<PositionTable>,
    /// The paths of everything around attention in a decoder, and how its blocks are built; `None` for an encoder.
    pub decoder: Option<DecoderPaths>,
}

/// The attention of a family: the settings, and which layers see only a window.
#[derive(Debug, Clone, PartialEq)]
pub struct FamilyAttention {
    /// Settings that every layer shares.
    pub config: DeepSpeedInferenceConfig,
    /// Layers with `local_attention`.
    pub local: LocalLayers,
}

impl From<DeepSpeedInferenceConfig> for FamilyAttention {
    /// Every layer sees all tokens.
    fn from(config: DeepSpeedInferenceConfig) -> Self {
        Self { config, local: LocalLayers::None }
    }
}

/// Where the checkpoints of a family keep a layer and its attention. Paths within a layer are relative to it.
#[derive(Debug, Clone, Copy)]
pub struct LayerPaths {
    /// The layers in a bare model.
    pub layers: &'static str,
    /// What `…ForCausalLM` and the like put before the names of the bare model.
    pub prefixes: &'static [&'static str],
    /// The norm before attention; `None` for post-norm models.
    pub norm: Option<&'static str>,
    /// The QKV projection.
    pub qkv: QkvPaths,
    /// The output projection.
    pub output: &'static str,
    /// How the matrices of attention and MLP are stored.
    pub orientation: Orientation,
}

/// Where the QKV projection is.
#[derive(Debug, Clone, Copy)]
pub enum QkvPaths {
    /// One matrix at this path, in this layout.
    Fused(&'static str, QkvLayout),
    /// Three projections at `path.q`, `path.k`, `path.v`, under these names.
    Separate(&'static str, [&'static str; 3]),
}

impl QkvPaths {
    /// `q_proj`, `k_proj` and `v_proj` at `path`.
    pub const fn projections(path: &'static str) -> Self {
        Self::Separate(path, ["q_proj", "k_proj", "v_proj"])
    }
}

impl LayerPaths {
    /// What a family has unless it says otherwise: no norm before attention, and matrices `[out, in]` as PyTorch's `Linear` has
    /// them. A record names its paths and takes the rest from here.
    pub(super) const SHARED: Self = Self {
        layers: "",
        prefixes: &[],
        norm: None,
        qkv: QkvPaths::projections(""),
        output: "",
        orientation: Orientation::OutputInput,
    };

    /// The names of the attention in the layer at `path`.
    pub fn attention(&self, path: &str) -> AttentionNames {
        let at = |rest: &str| format!("{path}.{rest}");
        let qkv = match self.qkv {
            QkvPaths::Fused(path, layout) => QkvNames::fused(&at(path), layout),
            QkvPaths::Separate(path, names) => QkvNames::separate(&at(path), names),
        };
        let names = AttentionNames::new(qkv, WeightNames::of(&at(self.output)), self.orientation);
        AttentionNames { norm: self.norm.map(|norm| NormNames::of(&at(norm))), ..names }
    }
}

/// A learned table of positions.
#[derive(Debug, Clone, Copy)]
pub struct PositionTable {
    /// Its path in the bare model.
    pub path: &'static str,
    /// Rows at the start of the table that no position uses.
    pub offset: usize,
}

/// Where a decoder keeps everything around attention, and how its blocks are built. Paths of a layer are relative to it.
#[derive(Debug, Clone, Copy)]
pub struct DecoderPaths {
    /// The token embedding, in the bare model.
    pub tokens: &'static str,
    /// The norm of the embedding, in the bare model.
    pub embedding_norm: Option<&'static str>,
    /// The norm after the last layer, in the bare model.
    pub final_norm: &'static str,
    /// The output embedding, of which `tie_word_embeddings` may make the input embedding. It is outside the bare model.
    pub head: &'static str,
    /// Whether the output embedding has a bias.
    pub head_bias: bool,
    /// The norm before the MLP, in a layer; `None` if the MLP reads what attention's norm wrote.
    pub mlp_norm: Option<&'static str>,
    /// The gate of a gated MLP, in a layer.
    pub gate: Option<&'static str>,
    /// The projection to the inner features of the MLP, in a layer.
    pub up: &'static str,
    /// The projection back, in a layer.
    pub down: &'static str,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: Flag,
    /// Whether the MLP reads the input of the block instead of its sum with attention.
    pub parallel: Flag,
    /// Keys that a decoder built from these paths supports with one value only.
    pub only: &'static [Only],
}

impl DecoderPaths {
    /// What a decoder has unless its family says otherwise: an output embedding `lm_head` without a bias, and an MLP with biases
    /// and without a gate, after attention. A record names its paths and takes the rest from here.
    pub(super) const SHARED: Self = Self {
        tokens: "",
        embedding_norm: None,
        final_norm: "",
        head: "lm_head",
        head_bias: false,
        mlp_norm: None,
        gate: None,
        up: "",
        down: "",
        mlp_bias: Flag::Fixed(true),
        parallel: Flag::Fixed(false),
        only: &[],
    };
}

/// A boolean of a family, fixed or given by `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// The same for every model of the family.
    Fixed(bool),
    /// The value of a key, and what it is if the key is absent.
    Key(&'static str, bool),
}

impl Flag {
    /// The value for the model of this `config.json`.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`].
    pub fn of(self, fields: &Fields<'_>) -> Result<bool, ConfigError> {
        match self {
            Self::Fixed(value) => Ok(value),
            Self::Key(key, default) => Ok(fields.flag(&[key])?.unwrap_or(default)),
        }
    }

    fn key(self) -> Option<&'static str> {
        match self {
            Self::Fixed(_) => None,
            Self::Key(key, _) => Some(key),
        }
    }
}

impl DecoderPaths {
    fn flags(&self) -> [Flag; 2] {
        [self.mlp_bias, self.parallel]
    }

    fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.flags().into_iter().filter_map(Flag::key).chain(self.only.iter().map(|only| only.key))
    }
}

impl Family {
    /// The keys of `config.json` that are read or checked for the family. Every other key but the harmless ones is an error.
    pub fn read_keys(&self) -> Vec<&'static str> {
        let only = known::ONLY.iter().chain(self.only).map(|only| only.key);
        let decoder = self.decoder.iter().flat_map(DecoderPaths::keys);
        let rope = self.rope.iter().flat_map(RopeKeys::keys);
        let own = known::READ.iter().chain(self.reads).copied();
        let mut keys: Vec<_> = own.chain(self.class.keys()).chain(rope).chain(only).chain(decoder).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The keys of `config.json` that change nothing for the family.
    pub fn harmless_keys(&self) -> Vec<&'static str> {
        known::HARMLESS.iter().copied().chain([self.harmless]).flatten().copied().collect()
    }

    /// Checks that each key of a `config.json` is known and has a value that is supported.
    ///
    /// # Errors
    /// [`ConfigError::UnreadKeys`], [`ConfigError::Unsupported`] or [`ConfigError::WrongType`].
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        let mut known = self.read_keys();
        known.extend(self.harmless_keys());
        fields.check_keys(&known, self.class.name)?;
        known::ONLY.iter().chain(self.only).try_for_each(|only| only.check(fields))?;
        // Who builds the decoder checks the values of its keys.
        self.decoder.iter().flat_map(|paths| paths.only).try_for_each(|only| only.holds(fields).map(|_| ()))?;
        self.decoder.iter().flat_map(DecoderPaths::flags).try_for_each(|flag| flag.of(fields).map(|_| ()))
    }

    /// Length that a model of this `config.json` was trained for, in tokens; `None` if the class does not have it.
    ///
    /// # Errors
    /// Those of [`Fields::size`].
    pub fn max_positions(&self, fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
        Ok(fields.positive(self.class.max_positions.names)?.or(self.class.max_positions.default))
    }

    /// The rotary settings of this `config.json`.
    ///
    /// # Errors
    /// Those of [`Rope::read`].
    pub fn read_rope(&self, fields: &Fields<'_>) -> Result<Rope, ConfigError> {
        Rope::read(fields, &self.rope.unwrap_or(RopeKeys::SHARED), self.max_positions(fields)?)
    }

    /// Whether a tensor is a buffer that `transformers` computes and does not load.
    pub fn is_buffer(&self, name: &str) -> bool {
        known::BUFFERS
            .iter()
            .chain(self.buffers)
            .any(|end| name.ends_with(end) || end.strip_prefix('.').is_some_and(|whole| name == whole))
    }

    /// The name of the family, which is the usual `model_type`.
    pub fn name(&self) -> &'static str {
        self.model_types[0]
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_types == other.model_types
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Family").field(&self.name()).finish()
    }
}
