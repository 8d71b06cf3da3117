//! What a record of a model family consists of.

use std::fmt;

use serde_json::Value;

use super::fields::Fields;
use super::layout::QkvLayout;
use super::names::{AttentionNames, NormNames, QkvNames, WeightNames};
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::layout::Orientation;

/// A model family: how its `config.json` is read, and where its checkpoints keep their tensors.
pub struct Family {
    /// Values of `model_type` that mean this family; the first is its name.
    pub model_types: &'static [&'static str],
    /// Keys of `config.json` that are read, in addition to [`Fields::SHARED`].
    pub reads: &'static [&'static str],
    /// Keys that are known not to change what the model computes, in addition to [`Fields::HARMLESS`].
    pub harmless: &'static [&'static str],
    /// What an absent key means in the `transformers` class of the family.
    pub defaults: Defaults,
    /// Sets what distinguishes the attention of the family from the shared settings, which are passed in.
    pub attention: fn(DeepSpeedInferenceConfig, &Fields<'_>) -> Result<FamilyAttention, ConfigError>,
    /// The paths of a layer and of its attention.
    pub layer: LayerPaths,
    /// The table of positions that is added to the embedding, for families that have one.
    pub positions: Option<PositionTable>,
    /// The paths of everything around attention in a decoder, and how its blocks are built; `None` for an encoder.
    pub decoder: Option<DecoderPaths>,
}

/// Keys with several names, and what an absent one means.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Names of the epsilon of the norms; the first that is given counts.
    pub epsilon_keys: &'static [&'static str],
    /// The epsilon, if none is given.
    pub epsilon: f64,
    /// Names of the activation of the MLP; the first that is given counts.
    pub activation_keys: &'static [&'static str],
    /// The activation, if none is given.
    pub activation: &'static str,
    /// Whether the output embedding is the input embedding, if `tie_word_embeddings` is not given.
    pub tie_word_embeddings: bool,
}

impl Defaults {
    /// What most families share.
    pub const SHARED: Self = Self {
        epsilon_keys: &["layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"],
        epsilon: 1e-5,
        activation_keys: &["activation_function", "hidden_act"],
        activation: "gelu_new",
        tie_word_embeddings: true,
    };
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

/// Which layers see only a window. Never a list of all layers, because a file may state any number of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum LocalLayers {
    /// No layer.
    #[default]
    None,
    /// Every layer.
    All,
    /// Patterns of layers one after the other, and how often each repeats. Layers after the last pattern are global.
    Patterns(Vec<(Vec<bool>, u64)>),
}

impl LocalLayers {
    /// Whether layer `layer` sees only a window.
    pub fn contains(&self, layer: usize) -> bool {
        let patterns = match self {
            Self::None => return false,
            Self::All => return true,
            Self::Patterns(patterns) => patterns,
        };
        let mut rest = layer as u64;
        for (pattern, times) in patterns {
            let layers = (pattern.len() as u64).saturating_mul(*times);
            if rest < layers {
                return pattern[(rest % pattern.len() as u64) as usize];
            }
            rest -= layers;
        }
        false
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
    pub fn of(self, record: &Value) -> bool {
        match self {
            Self::Fixed(value) => value,
            Self::Key(key, default) => record.get(key).and_then(Value::as_bool).unwrap_or(default),
        }
    }
}

impl Family {
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
