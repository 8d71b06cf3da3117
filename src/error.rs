//! The error types of the crate: of a configuration, of a forward pass, between ranks, of loading.

mod communication;
mod weight;

use std::path::PathBuf;

use crate::config::DataType;
use crate::ops::Declined;
pub use communication::CommunicationError;
pub use weight::WeightError;

/// What can be wrong with a configuration. Each message gives the fact, the limit and the remedy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read or written.
    #[error("cannot access the configuration file {path}: {cause}")]
    File {
        /// The path that was asked for.
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
    /// A required key is missing.
    #[error("`{0}` is missing; DeepSpeed's -1 (not given) is no size: set it to the model's value")]
    Missing(&'static str),
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
    /// The heads cannot be split over that many ranks.
    #[error(
        "{heads} query heads{} over {ranks} ranks; valid: {}; set `mp_size` to one of them{}",
        key_heads(.heads, .kv_heads), list(.valid), if *.even { ", or `uneven_heads` to true" } else { "" }
    )]
    Ranks {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// What was asked for.
        ranks: usize,
        /// The rank counts that work.
        valid: Vec<usize>,
        /// Whether each rank was to have as many heads.
        even: bool,
    },
    /// The rank is not one of the group's.
    #[error("rank {rank} is not in a group of {ranks}; `local_rank` counts from 0 to {}", .ranks - 1)]
    RankOutOfRange {
        /// The rank.
        rank: usize,
        /// Size of the group.
        ranks: usize,
    },
    /// The module is of another rank than the communicator.
    #[error(
        "the module was built for rank {rank} of {ranks} and the communicator is rank {actual} of {size}; build the configuration \
         with `for_rank_of`"
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
    #[error("`rotary_dim` {dim} is odd; features turn in pairs, use {} or {}", .0 - 1, .0 + 1, dim = .0)]
    RotaryDimOdd(usize),
    /// The rotary dimension is longer than a head.
    #[error("`rotary_dim` {rotary_dim} is longer than a head ({head_dim}); use at most {head_dim}")]
    RotaryDimTooLong {
        /// Features to turn.
        rotary_dim: usize,
        /// Features of a head.
        head_dim: usize,
    },
    /// Both rotary layouts were asked for.
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
    #[error("rope scaling `{0}` is unknown; supported: default, linear, dynamic, llama3, yarn")]
    UnknownRopeScaling(String),
    /// The rotary scaling lacks a number or has one that it cannot use.
    #[error("rope scaling `{family}`: `{key}` {problem}")]
    RopeScaling {
        /// The family.
        family: &'static str,
        /// The key.
        key: &'static str,
        /// What is wrong with it and what to set.
        problem: &'static str,
    },
    /// GroupNorm in front of a projection.
    #[error(
        "`norm_type` GroupNorm cannot stand in front of a QKV projection (DeepSpeed takes it and has no kernel \
         for it); use LayerNorm or RMSNorm, or set `pre_layer_norm` to false and normalise outside"
    )]
    GroupNorm,
    /// The element type is not one that the backend stores.
    #[error("the backend `{backend}` does not store {dtype}; {remedy}")]
    UnsupportedDataType {
        /// Burn's name of the backend.
        backend: String,
        /// The type that was asked for.
        dtype: DataType,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The outputs of an int8 matrix cannot be divided into that many groups.
    #[error(
        "`quantize_groups` {groups} does not divide the {outputs} outputs of a matrix on this rank; use a divisor of the \
         outputs of every projection, or None for a scale to each output"
    )]
    GroupsDoNotDivide {
        /// Groups of each matrix.
        groups: usize,
        /// Outputs of the matrix.
        outputs: usize,
    },
    /// A fast path was demanded on a build that has none.
    #[error(
        "`use_triton` asks for fused GPU kernels, and the backend `{backend}` has none; build with the Cargo feature `cuda`, \
         `vulkan` or `wgpu` and run on its backend, or set `use_triton` to false"
    )]
    NoFusedKernels {
        /// Burn's name of the backend.
        backend: String,
    },
    /// The model type of a Hugging Face configuration is not known.
    #[error(
        "`model_type` `{0}` is not supported; supported: bloom, gpt2, gpt_neo, gpt_neox, gptj, llama, mistral, opt, bert"
    )]
    UnknownModelType(String),
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

/// What a careful caller cannot rule out before a forward pass.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// The step does not fit. Nothing was written; the cache is as it was.
    #[error(
        "the KV cache holds {used} of {capacity} tokens in row {row} and {requested} more were asked for; \
         set `max_out_tokens` to at least {}, or call `KvCache::reset` between prompts",
        .used + .requested
    )]
    CacheFull {
        /// The first row that does not fit.
        row: usize,
        /// Tokens that the row already holds.
        used: usize,
        /// Tokens that this step would add.
        requested: usize,
        /// Tokens that a row can hold.
        capacity: usize,
    },
    /// No kernel takes the step, and `require_fast` is set. Nothing was written.
    #[error(
        "`{operation}` would run on the reference ({reason}), and `require_fast` asks for a kernel; change what the reason \
         names, or unset `require_fast` (and `DS_KI_FALLBACK` in the environment)"
    )]
    NoFastPath {
        /// The operation.
        operation: &'static str,
        /// Why the kernels declined.
        reason: Declined,
    },
    /// A row index that the cache does not have.
    #[error("row {row} is not in a cache of {batch} rows; rows count from 0")]
    NoSuchRow {
        /// The row.
        row: usize,
        /// Rows of the cache.
        batch: usize,
    },
    /// A list with one entry a row has another length.
    #[error("{what} lists {given} rows and the cache has {batch}; give one entry a row")]
    RowCount {
        /// What was given.
        what: &'static str,
        /// Its length.
        given: usize,
        /// Rows of the cache.
        batch: usize,
    },
    /// A ragged step lists more tokens for a row than the step is wide.
    #[error("row {row} adds {requested} tokens in a step of {width}; a row adds at most the width of the step")]
    StepTooNarrow {
        /// The row.
        row: usize,
        /// Tokens that the row would add.
        requested: usize,
        /// New tokens of the input, padding included.
        width: usize,
    },
    /// A row is to be cut to more tokens than it holds.
    #[error("row {row} holds {used} tokens and cannot be cut to {length}; `truncate` only shortens")]
    TruncateBeyondEnd {
        /// The row.
        row: usize,
        /// Tokens that it holds.
        used: usize,
        /// Tokens that were asked for.
        length: usize,
    },
    /// Two caches do not have the same layers, heads, head size or capacity.
    #[error("a row can only be copied between caches of one shape: this one is {expected}, the other {actual}")]
    CacheShape {
        /// Shape of the receiving cache.
        expected: String,
        /// Shape of the other.
        actual: String,
    },
    /// Position ids that cannot be used.
    #[error("position ids {problem}")]
    Positions {
        /// What is wrong and what to do.
        problem: String,
    },
    /// The module holds one shard of several and nobody was named to add them up.
    #[error(
        "this module holds rank {rank} of {ranks} and has no communicator to sum over them; give it one with \
         `with_communicator`, or call `forward_partial` on every rank, add the results, and add `output_bias` once"
    )]
    NoCommunicator {
        /// This rank.
        rank: usize,
        /// Ranks of the group.
        ranks: usize,
    },
    /// The sum over ranks failed. The step was not committed, and the cache is as it was in front of it.
    #[error(transparent)]
    Communication(#[from] CommunicationError),
}

fn key_heads(heads: &usize, kv_heads: &usize) -> String {
    if heads == kv_heads { String::new() } else { format!(" and {kv_heads} key/value heads") }
}

fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (nearest: `{name}`)")).unwrap_or_default()
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    const SHOWN: usize = 12;
    let mut text = items.iter().take(SHOWN).map(T::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text.push_str(&format!(", and {} more", items.len() - SHOWN));
    }
    text
}

/// Panics about a wrong shape with everything that is needed to find it: operation, tensor, expected, actual.
#[track_caller]
pub(crate) fn check_shape(operation: &str, tensor: &str, expected: &[usize], actual: &[usize]) {
    assert!(expected == actual, "{operation}: `{tensor}` has shape {actual:?}, expected {expected:?}");
}

/// [`check_shape`], where a 1 in `actual` may stand for any size (broadcasting).
#[track_caller]
pub(crate) fn check_broadcast(operation: &str, tensor: &str, expected: &[usize], actual: &[usize]) {
    let fits = expected.len() == actual.len() && expected.iter().zip(actual).all(|(e, a)| e == a || *a == 1);
    assert!(fits, "{operation}: `{tensor}` has shape {actual:?}, expected {expected:?} or 1 in place of any of them");
}
