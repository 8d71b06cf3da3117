//! Errors of a configuration.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::block::BlockFormat;
use crate::data_type::DataType;
use crate::spelling::{list, nearest_hint, up_to};

/// What can be wrong with a configuration. Each message gives the fact, the limit and the remedy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read or written.
    #[error("cannot access the configuration file {path}: {cause}")]
    File {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        cause: String,
    },
    /// The text is not JSON, or a value has the wrong type.
    #[error("the configuration is not valid: {0}")]
    Json(String),
    /// A key that `DeepSpeedInferenceConfig` does not have.
    #[error("unknown configuration key `{key}`{}; remove it or correct its spelling", nearest_hint(.nearest))]
    UnknownKey {
        /// The key as it was written.
        key: String,
        /// The known key that is spelled most like it.
        nearest: Option<String>,
    },
    /// Keys of a file that are neither read nor known to be harmless.
    #[error(
        "`{}` is {value}, and {reader} does not read it{}{}; it may change what the model computes: correct its spelling, remove it, \
         or allow it if it changes nothing (`ConfigOptions::with_allowed_keys`, `--allow-key {}` in the examples)",
        .keys[0], nearest_hint(.nearest), others(.keys), .keys[0]
    )]
    UnreadKeys {
        /// What reads the file, such as the class of a model family.
        reader: String,
        /// All of them; at least one.
        keys: Vec<String>,
        /// The value of the first, as JSON.
        value: String,
        /// The known key that is spelled most like the first.
        nearest: Option<String>,
    },
    /// The layers of one cache hold different numbers of tokens.
    #[error(
        "layer {layer} has `max_out_tokens` {capacity} and layer 0 has {first}; the rows of a cache have one length: set the same value \
         in every layer"
    )]
    LayerCapacity {
        /// The first layer that differs.
        layer: usize,
        /// Its tokens.
        capacity: usize,
        /// Those of layer 0.
        first: usize,
    },
    /// A layer that cannot read the keys and values of the layer that it names.
    #[error(
        "layer {layer} reads the keys and values of layer {keys_of}, which {problem}; correct `kv_source`, and pass \
         `KvCache::for_layers` the layers in their order"
    )]
    SharedLayer {
        /// The layer that reads.
        layer: usize,
        /// The layer that it names.
        keys_of: usize,
        /// What is wrong with that layer.
        problem: &'static str,
    },
    /// A value of the wrong type.
    #[error("`{key}` is {found}, and {expected} is expected; correct the value")]
    WrongType {
        /// The key.
        key: String,
        /// What was given, as JSON.
        found: String,
        /// What the key takes.
        expected: &'static str,
    },
    /// A value that changes the model in a way that is not supported.
    #[error("`{key}` is {value}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The key.
        key: String,
        /// What was given, as JSON.
        value: String,
        /// The values that are supported, and why others are not.
        supported: String,
    },
    /// Two spellings of one setting with different values.
    #[error(
        "`{}` is {} and `{}` is {}, and both are the same setting; keep the one that is right and remove the other",
        .keys[0], .values[0], .keys[1], .values[1]
    )]
    Spellings {
        /// The two keys.
        keys: [String; 2],
        /// Their values, as JSON.
        values: [String; 2],
    },
    /// A list of layers that does not have one entry for each layer.
    #[error("`{key}` describes {listed} layers and the model has {layers}; give each layer one entry")]
    LayerCount {
        /// The key.
        key: String,
        /// Layers that it describes.
        listed: u64,
        /// Layers of the model.
        layers: usize,
    },
    /// A value that the key does not take.
    #[error("`{key}` is {value}, which is not one of its values; use {accepted}")]
    UnknownValue {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What it takes.
        accepted: String,
    },
    /// A required setting is missing.
    #[error("`{key}` is missing{origin}")]
    Missing {
        /// The setting.
        key: &'static str,
        /// Where it should have been.
        origin: Origin,
    },
    /// What is wrong with the configuration in a file.
    #[error("in {path}: {error}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<ConfigError>,
    },
    /// A size that must be at least one is zero, or a number is out of its range.
    #[error("`{key}` is {value}; it must be {limit}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// The values that it takes.
        limit: &'static str,
    },
    /// Two settings that exclude each other.
    #[error("`{key}` contradicts {other}; {remedy}")]
    Contradiction {
        /// A setting.
        key: &'static str,
        /// The other setting, and its value.
        other: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The hidden size is not a multiple of the head count.
    #[error(
        "`hidden_size` {hidden_size} is not a multiple of `heads` {heads}; correct one of them, or set \
         `head_dim` if the heads do not span the hidden size"
    )]
    HeadsDoNotDivide {
        /// Width of the residual stream.
        hidden_size: usize,
        /// Query heads.
        heads: usize,
    },
    /// The query heads cannot be grouped evenly over the key/value heads.
    #[error(
        "`heads` {heads} is not a multiple of `num_kv` {num_kv}; each key/value head serves the same number of query heads"
    )]
    KvHeadsDoNotDivide {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        num_kv: usize,
    },
    /// The heads cannot be split over this number of ranks.
    #[error(
        "{heads} query heads{} over {ranks} ranks; valid: {}; set `mp_size` to one of them{}",
        key_heads(.heads, .kv_heads),
        if *.even { list(.valid) } else { up_to(*.heads) },
        if *.even { ", or `uneven_heads` to true" } else { "" }
    )]
    Ranks {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// The ranks that were requested.
        ranks: usize,
        /// The rank counts that work; empty if the heads need not be split evenly, where every count up to `heads` works.
        valid: Vec<usize>,
        /// Whether each rank had to have the same number of heads.
        even: bool,
    },
    /// The rank is outside the group.
    #[error("rank {rank} is not in a group of {ranks}; `local_rank` counts from 0 to {}", .ranks - 1)]
    RankOutOfRange {
        /// The rank.
        rank: usize,
        /// Size of the group.
        ranks: usize,
    },
    /// The module was built for another rank than the communicator has.
    #[error(
        "the module was built for rank {rank} of {ranks} and the communicator is rank {actual} of {size}; build the configuration with \
         `for_rank_of`"
    )]
    OtherRank {
        /// Rank of the module.
        rank: usize,
        /// Ranks that its heads are split over.
        ranks: usize,
        /// Rank of the communicator.
        actual: usize,
        /// Ranks of its group.
        size: usize,
    },
    /// The rotary dimension is odd.
    #[error("`rotary_dim` {dim} is odd; features are rotated in pairs; use {} or {}", .0 - 1, .0 + 1, dim = .0)]
    RotaryDimOdd(usize),
    /// The rotary dimension is longer than a head.
    #[error("`rotary_dim` {rotary_dim} is longer than a head ({head_dim}); use at most {head_dim}")]
    RotaryDimTooLong {
        /// Features to rotate.
        rotary_dim: usize,
        /// Features of a head.
        head_dim: usize,
    },
    /// Both rotary layouts are set.
    #[error(
        "`rotate_half` and `rotate_every_two` are both true; a checkpoint has one layout: for LLaMA and \
         GPT-NeoX set `rotate_every_two` to false, for GPT-J set `rotate_half` to false"
    )]
    BothRotaryLayouts,
    /// A rotary dimension without a layout.
    #[error(
        "`rotary_dim` is {0} but neither `rotate_half` (LLaMA, GPT-NeoX) nor `rotate_every_two` (GPT-J) is \
         true; set the layout of the checkpoint"
    )]
    NoRotaryLayout(usize),
    /// ALiBi and rotary positions at once.
    #[error("`bigscience_bloom` (ALiBi) and `rotary_dim` {0} are both set; remove one of them")]
    AlibiAndRotary(usize),
    /// The scaling family of the rotary positions is unknown.
    #[error("rope scaling `{0}` is unknown; supported: default, linear, dynamic, llama3, yarn, longrope, proportional")]
    UnknownRopeScaling(String),
    /// The rotary scaling lacks a number, or has an invalid one.
    #[error("rope scaling `{family}`: `{key}` {problem}")]
    RopeScaling {
        /// The family.
        family: &'static str,
        /// The key.
        key: &'static str,
        /// What is wrong with it and what to set.
        problem: &'static str,
    },
    /// A list of LongRoPE, or the sections, does not cover the pairs that rotate.
    #[error("`{key}` has {given} {what}, and a head has {pairs} pairs that rotate; correct it or `rotary_dim`")]
    RotaryPairs {
        /// The key.
        key: &'static str,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        given: usize,
        /// Half of `rotary_dim`.
        pairs: usize,
    },
    /// GroupNorm before a projection.
    #[error(
        "`norm_type` GroupNorm cannot precede a QKV projection (DeepSpeed accepts it and has no kernel for it); use LayerNorm or RMSNorm, or set `pre_layer_norm` to false and normalise outside"
    )]
    GroupNorm,
    /// The channels of a VAE's attention cannot be divided into this number of groups.
    #[error("{groups} groups do not divide {channels} channels; set `groups` to `norm_num_groups` of the VAE")]
    ChannelGroups {
        /// Groups that are normalised.
        groups: usize,
        /// Channels of the input.
        channels: usize,
    },
    /// The backend does not store this element type.
    #[error("the backend `{backend}` does not store {dtype}; {remedy}")]
    UnsupportedDataType {
        /// Burn's name of the backend.
        backend: String,
        /// The requested type.
        dtype: DataType,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The inputs of a matrix are no whole number of blocks.
    #[error(
        "a matrix with {inputs} inputs on this rank is no whole number of blocks of {format}, which have {elements} elements; \
         set `matrix_format` to another format or to \"dtype\""
    )]
    BlocksDoNotDivide {
        /// The format.
        format: BlockFormat,
        /// Elements of a block.
        elements: usize,
        /// Inputs of the matrix.
        inputs: usize,
    },
    /// The outputs of an int8 matrix cannot be divided into this number of groups.
    #[error(
        "`quantize_groups` {groups} does not divide the {outputs} outputs of a matrix on this rank; use a divisor of the \
         outputs of every projection, or None for one scale per output"
    )]
    GroupsDoNotDivide {
        /// Groups of each matrix.
        groups: usize,
        /// Outputs of the matrix.
        outputs: usize,
    },
    /// Fused kernels are required on a backend that has none.
    #[error(
        "`use_triton` asks for fused GPU kernels, and the backend `{backend}` has none; build with the Cargo feature `cuda`, \
         `vulkan` or `wgpu` and run on its backend, or set `use_triton` to false"
    )]
    NoFusedKernels {
        /// Burn's name of the backend.
        backend: String,
    },
    /// The model type of a Hugging Face configuration is not known.
    #[error("`model_type` `{model_type}` is not supported; supported: {}", .supported.join(", "))]
    UnknownModelType {
        /// The model type.
        model_type: String,
        /// The model families that are supported.
        supported: Vec<&'static str>,
    },
    /// The module does not fit the configuration.
    #[error("`{module}` cannot be built from this configuration: {fact}; {remedy}")]
    WrongModule {
        /// The module.
        module: &'static str,
        /// Why it does not fit.
        fact: &'static str,
        /// What to do.
        remedy: &'static str,
    },
}

fn others(keys: &[String]) -> String {
    if keys.len() > 1 { format!(" (nor `{}`)", keys[1..].join("`, `")) } else { String::new() }
}

fn key_heads(heads: &usize, kv_heads: &usize) -> String {
    if heads == kv_heads { String::new() } else { format!(" and {kv_heads} key/value heads") }
}

impl ConfigError {
    /// The same error, with the file that it is in. An error that already names its file stays as it is.
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            named @ (Self::File { .. } | Self::InFile { .. }) => named,
            error => Self::InFile { path: path.into(), error: Box::new(error) },
        }
    }
}

/// Where a setting comes from, for the remedy of [`ConfigError::Missing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The program set it, or did not.
    Program,
    /// DeepSpeed's JSON.
    DeepSpeed,
    /// The `config.json` of a Hugging Face checkpoint.
    HuggingFace,
    /// The header of a GGUF file.
    Gguf,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Program => "; set it on the configuration",
            Self::DeepSpeed => {
                " from the DeepSpeed configuration (-1 counts as not given); set it to the model's value"
            }
            Self::HuggingFace => " from the Hugging Face configuration; copy it from the `config.json` of the model",
            Self::Gguf => " from the header of the GGUF file; convert the model anew",
        })
    }
}
