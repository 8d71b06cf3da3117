//! Where an encoder-decoder keeps its parts, and how its blocks are built.

use std::fmt;

use super::class::Setting;
use super::family::PositionTable;
use super::flag::Flag;
use super::known;
use super::names::{AttentionNames, NormNames, QkvNames, WeightNames};
use super::only::Only;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::layout::Orientation;

/// A family of encoder-decoders: how its `config.json` is read, and where its checkpoints keep their tensors. Matrices are `[out, in]`.
/// Paths of a layer are relative to it, the others to the bare model. Of two entries the first is that of the encoder.
pub struct EncoderDecoder {
    /// The name that people know it by.
    pub title: &'static str,
    /// What distinguishes its attention and its blocks, for the table of families.
    pub about: &'static str,
    /// Values of `model_type` that mean this family; the first is its name.
    pub model_types: &'static [&'static str],
    /// Its configuration class in `transformers`.
    pub class: EncoderDecoderClass,
    /// Key of the MLPs' activation, which `blocks` reads.
    pub activation: &'static str,
    /// Other keys of `config.json` that `blocks` reads.
    pub reads: &'static [&'static str],
    /// Keys that are supported with one value only.
    pub only: &'static [Only],
    /// Keys that are known not to change what the model computes, in addition to those that are harmless for every family.
    pub harmless: &'static [&'static str],
    /// Sets what distinguishes the attention of the family from the shared settings of a stack, which are passed in.
    pub attention: fn(DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig,
    /// The blocks of the model of a `config.json`.
    pub blocks: fn(&Fields<'_>) -> Result<BlockSettings, ConfigError>,
    /// What the class with an output embedding puts before the names of the bare model.
    pub prefix: &'static str,
    /// What the encoder takes.
    pub source: SourceInput,
    /// The token embedding of both stacks, for classes that share one.
    pub shared: Option<&'static str>,
    /// Whether the embedding of tokens is multiplied by the root of the hidden size.
    pub scaled_embedding: Flag,
    /// T5's relative positions.
    pub relative: Option<RelativePaths>,
    /// Where the encoder keeps its parts.
    pub encoder: StackPaths,
    /// Where the decoder keeps its parts.
    pub decoder: StackPaths,
    /// The output embedding, without a bias and outside of the bare model.
    pub head: &'static str,
    /// Whether the output embedding is the input embedding where the checkpoint has none.
    pub tied: Flag,
    /// A tensor that is added to the logits, `[1, vocabulary]`, outside of the bare model. Zeros where the checkpoint has none.
    pub logit_bias: Option<&'static str>,
    /// Tensors that older files have and the class does not read.
    pub unused: &'static [&'static str],
}

/// The configuration class of a family in `transformers`: spellings and defaults. The hidden size and the numbers of heads and layers are
/// required, as in [`Class`](super::families::Class).
#[derive(Debug, Clone, Copy)]
pub struct EncoderDecoderClass {
    /// The name of the class.
    pub name: &'static str,
    /// Spellings of the width of the residual stream.
    pub hidden_size: &'static [&'static str],
    /// Spellings of the numbers of layers.
    pub layers: [&'static [&'static str]; 2],
    /// Whether an absent number of layers of the decoder is that of the encoder.
    pub same_layers: bool,
    /// Spellings of the numbers of heads.
    pub heads: [&'static [&'static str]; 2],
    /// Features of a head, for a class whose heads need not span the hidden size.
    pub head_dim: Option<Setting<usize>>,
    /// Widths of the MLPs, in elements.
    pub mlp_size: [Setting<usize>; 2],
    /// Tokens of the vocabulary.
    pub vocab_size: Setting<usize>,
    /// Rows of the tables of positions that positions use, for a class that has tables.
    pub positions: Option<[Setting<usize>; 2]>,
    /// Epsilon of the norms. Without names the code of the family fixes it.
    pub epsilon: Setting<f64>,
    /// The token that the decoder starts with, if absent.
    pub start_token: Option<usize>,
    /// The token that ends a text, if absent.
    pub end_token: usize,
}

/// What the blocks of a model have, and what comes after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSettings {
    /// Activation of the MLP, as `transformers` writes it.
    pub activation: String,
    /// Whether the MLP has a gate.
    pub gated: bool,
    /// Whether the states of the decoder are divided by the root of the hidden size before the output embedding.
    pub scaled_output: bool,
}

/// What an encoder takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SourceInput {
    /// Tokens of a text.
    Tokens,
    /// Features of sound, `[bins, frames]`, through two convolutions of width 3 with GELU. The second makes one state of two frames.
    Features {
        /// The convolutions.
        convolutions: [&'static str; 2],
        /// Features of a frame.
        bins: Setting<usize>,
    },
}

/// T5's relative positions. Each stack has a table, in its first layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelativePaths {
    /// The table.
    pub table: &'static str,
    /// Buckets of distances.
    pub buckets: Setting<usize>,
    /// Distance from which all have the last bucket, in tokens.
    pub max_distance: Setting<usize>,
}

/// Where a stack keeps its parts.
#[derive(Debug, Clone, Copy)]
pub struct StackPaths {
    /// Its layers.
    pub layers: &'static str,
    /// Its token embedding, which takes the place of the shared one where a checkpoint has it; `None` for a stack without tokens.
    pub tokens: Option<&'static str>,
    /// The table of positions.
    pub positions: Option<PositionTable>,
    /// The norm of the input of the first layer.
    pub input_norm: Option<&'static str>,
    /// The attention to its own tokens.
    pub attention: BranchPaths,
    /// The attention to the encoder's states.
    pub cross: Option<BranchPaths>,
    /// The MLP.
    pub mlp: MlpPaths,
    /// The norm after the last layer.
    pub final_norm: Option<&'static str>,
}

/// Where a layer keeps an attention. Its norm is before it, or after the sum, as `pre_layer_norm` of the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchPaths {
    /// The attention.
    pub path: &'static str,
    /// Queries, keys, values and output in it.
    pub projections: [&'static str; 4],
    /// The norm.
    pub norm: &'static str,
}

/// Where a layer keeps its MLP. Its norm is where those of the attentions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpPaths {
    /// The norm.
    pub norm: &'static str,
    /// The projection to the inner features.
    pub up: &'static str,
    /// The gate and that projection, in a gated MLP.
    pub gated: Option<[&'static str; 2]>,
    /// The projection back.
    pub down: &'static str,
    /// Whether the projections have a bias.
    pub bias: bool,
}

impl BranchPaths {
    /// The names of the attention in the layer at `layer`.
    pub fn names(&self, layer: &str) -> AttentionNames {
        let (path, [query, key, value, output]) = (format!("{layer}.{}", self.path), self.projections);
        let output = WeightNames::of(&format!("{path}.{output}"));
        AttentionNames::new(QkvNames::separate(&path, [query, key, value]), output, Orientation::OutputInput)
            .with_norm(NormNames::of(&format!("{layer}.{}", self.norm)))
    }
}

impl EncoderDecoderClass {
    fn keys(&self) -> impl Iterator<Item = &'static str> {
        let head_dim = self.head_dim.map(|setting| setting.names);
        let positions = self.positions.iter().flatten().map(|setting| setting.names);
        let mlps = self.mlp_size.iter().map(|setting| setting.names);
        let own = [self.hidden_size, self.vocab_size.names, self.epsilon.names, &["tie_word_embeddings"]];
        own.into_iter()
            .chain(self.layers)
            .chain(self.heads)
            .chain(mlps)
            .chain(positions)
            .chain(head_dim)
            .flatten()
            .copied()
    }
}

/// The key that every record here needs to be true, and all others false.
const BOTH: Only = Only::flag("is_encoder_decoder", true);

impl EncoderDecoder {
    /// The keys of `config.json` that are read or checked for the family. Every other key but the harmless ones is an error.
    pub fn read_keys(&self) -> Vec<&'static str> {
        let source: &[&str] = match &self.source {
            SourceInput::Tokens => &[],
            SourceInput::Features { bins, .. } => bins.names,
        };
        let relative = self.relative.iter().flat_map(|paths| [paths.buckets.names, paths.max_distance.names]).flatten();
        let own = known::READ.iter().chain(self.reads).chain(source).chain(relative).copied();
        let flags = [self.scaled_embedding, self.tied].into_iter().filter_map(Flag::key);
        let mut keys: Vec<_> = own
            .chain([self.activation])
            .chain(self.class.keys())
            .chain(flags)
            .chain(self.only().map(|only| only.key))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The keys of `config.json` that change nothing for the family.
    pub fn harmless_keys(&self) -> Vec<&'static str> {
        known::HARMLESS.iter().copied().chain([self.harmless]).flatten().copied().collect()
    }

    fn only(&self) -> impl Iterator<Item = &Only> {
        known::only([&BOTH].into_iter().chain(self.only))
    }

    /// Checks that each key of a `config.json` is known, and the values that only one is supported of.
    ///
    /// # Errors
    /// [`ConfigError::UnreadKeys`], [`ConfigError::Unsupported`] or [`ConfigError::WrongType`].
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        fields.check_keys(&[self.read_keys(), self.harmless_keys()].concat(), self.class.name)?;
        // A class that ties whatever it says has it in its files, too.
        fields.flag(&["tie_word_embeddings"])?;
        self.only().try_for_each(|only| only.check(fields))
    }

    /// The name of the family, which is the usual `model_type`.
    pub fn name(&self) -> &'static str {
        self.model_types[0]
    }
}

impl PartialEq for EncoderDecoder {
    fn eq(&self, other: &Self) -> bool {
        self.model_types == other.model_types
    }
}

impl fmt::Debug for EncoderDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EncoderDecoder").field(&self.name()).finish()
    }
}
