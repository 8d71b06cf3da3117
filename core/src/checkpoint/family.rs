//! What a record of a model family consists of.

use std::fmt;

use super::class::{Class, Setting};
use super::decoder::DecoderPaths;
use super::encoder::EncoderPaths;
use super::known;
use super::layer_kinds::LayerKinds;
use super::layer_paths::LayerPaths;
use super::only::Only;
use super::rope::{Rope, RopeKeys};
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::kv_source::KvSource;
use crate::latent::LatentSizes;

/// A model family: how its `config.json` is read, and where its checkpoints keep their tensors.
pub struct Family {
    /// The name that people know it by.
    pub title: &'static str,
    /// What distinguishes its attention and its blocks, for the table of families.
    pub about: &'static str,
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
    /// The sizes of latent attention, for families that have it in every layer.
    pub latent: Option<ReadLatent>,
    /// The number of layers after the last one that checkpoints hold and the class does not load: they predict later tokens, for
    /// speculation. `None` for families that have none.
    pub prediction_layers: Option<Setting<usize>>,
    /// The paths of a layer and of its attention.
    pub layer: LayerPaths,
    /// Ends of the names of buffers that older versions of `transformers` saved with the weights, in addition to those of every
    /// family.
    pub buffers: &'static [&'static str],
    /// The table of positions that is added to the embedding, for families that have one.
    pub positions: Option<PositionTable>,
    /// The paths of everything around attention in a decoder, and how its blocks are built; `None` for an encoder.
    pub decoder: Option<DecoderPaths>,
    /// The same of an encoder; `None` for a decoder.
    pub encoder: Option<EncoderPaths>,
    /// Changes the paths where they depend on the `config.json`.
    pub variant: Option<Variant>,
}

/// Reads the sizes of latent attention from a `config.json`.
pub type ReadLatent = fn(&Fields<'_>) -> Result<LatentSizes, ConfigError>;

/// Changes paths by what a `config.json` says.
pub type Variant = fn(&Fields<'_>, &mut LayerPaths, &mut DecoderPaths) -> Result<(), ConfigError>;

/// The attention of a family: its kinds, and which layers are of which.
#[derive(Debug, Clone, PartialEq)]
pub struct FamilyAttention {
    /// The settings of each kind; at least one. Kinds have the same query heads.
    pub kinds: Vec<DeepSpeedInferenceConfig>,
    /// The kind of each layer, an index of `kinds`.
    pub layers: LayerKinds,
}

impl FamilyAttention {
    /// Checks every kind, in the first layer that may have it.
    pub(super) fn check(&self, latent: Option<&LatentSizes>) -> Result<(), ConfigError> {
        self.kinds.iter().try_for_each(|kind| {
            let layer = match kind.kv_source {
                KvSource::Layer(source) => source.saturating_add(1),
                KvSource::Own | KvSource::KeysAreValues => 0,
            };
            kind.resolve_with(latent, layer).map(|_| ())
        })
    }
}

impl From<DeepSpeedInferenceConfig> for FamilyAttention {
    /// Every layer has the same attention.
    fn from(config: DeepSpeedInferenceConfig) -> Self {
        Self { kinds: vec![config], layers: LayerKinds::default() }
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

impl Family {
    /// What a record has unless it says otherwise.
    pub(super) const SHARED: Self = Self {
        title: "",
        about: "",
        model_types: &[],
        class: Class::SHARED,
        reads: &[],
        rope: None,
        only: &[],
        harmless: &[],
        attention: |base, _| Ok(base.into()),
        latent: None,
        prediction_layers: None,
        layer: LayerPaths::SHARED,
        buffers: &[],
        positions: None,
        decoder: None,
        encoder: None,
        variant: None,
    };

    /// The keys of `config.json` that are read or checked for the family. Every other key but the harmless ones is an error.
    pub fn read_keys(&self) -> Vec<&'static str> {
        let only = known::only(self.only.iter()).map(|only| only.key);
        let decoder = self.decoder.iter().flat_map(DecoderPaths::keys);
        let encoder = self.encoder.iter().flat_map(EncoderPaths::keys);
        let rope = self.rope.iter().flat_map(RopeKeys::keys);
        let prediction = self.prediction_layers.iter().flat_map(|setting| setting.names).copied();
        let own = known::READ.iter().chain(self.reads).copied();
        let mut keys: Vec<_> = own
            .chain(self.class.keys())
            .chain(rope)
            .chain(only)
            .chain(decoder)
            .chain(encoder)
            .chain(prediction)
            .collect();
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
        // A record may read what the others support one value of.
        let applies = |only: &&Only| self.only.contains(*only) || !self.reads.contains(&only.key);
        known::only(self.only.iter()).filter(applies).try_for_each(|only| only.check(fields))?;
        // Who builds the decoder checks the values of its keys.
        self.decoder.iter().flat_map(|paths| paths.only).try_for_each(|only| only.holds(fields).map(|_| ()))?;
        self.decoder.iter().try_for_each(|paths| paths.check(fields))?;
        self.encoder.iter().try_for_each(|paths| paths.check(fields))
    }

    /// The paths of a layer and of the decoder for this `config.json`.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`] or [`ConfigError::Unsupported`].
    pub(super) fn paths(&self, fields: &Fields<'_>) -> Result<(LayerPaths, Option<DecoderPaths>), ConfigError> {
        let (mut layer, mut decoder) = (self.layer, self.decoder);
        if let (Some(change), Some(decoder)) = (self.variant, &mut decoder) {
            change(fields, &mut layer, decoder)?;
        }
        Ok((layer, decoder))
    }

    /// Length that a model of this `config.json` was trained for, in tokens; `None` if the class does not have it.
    ///
    /// # Errors
    /// Those of [`Fields::size`].
    pub fn max_positions(&self, fields: &Fields<'_>) -> Result<Option<usize>, ConfigError> {
        Ok(fields.positive(self.class.max_positions.names)?.or(self.class.max_positions.default))
    }

    /// The number of layers after the last one that a checkpoint holds for speculation.
    ///
    /// # Errors
    /// Those of [`Fields::size`].
    pub fn prediction_layers(&self, fields: &Fields<'_>) -> Result<usize, ConfigError> {
        let read = |setting: Setting<usize>| Ok(fields.size(setting.names)?.unwrap_or(setting.default));
        self.prediction_layers.map_or(Ok(0), read)
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
