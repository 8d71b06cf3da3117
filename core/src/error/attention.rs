//! Errors of a forward pass.

use crate::error::communication::CommunicationError;
use crate::path::Declined;

/// What a careful caller cannot rule out before a forward pass: a full cache, a rank that is lost.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// The step does not fit. Nothing was written; the cache is as it was.
    #[error(
        "the KV cache holds {used} of {capacity} tokens in row {row} and {requested} more were requested; \
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
    /// A list with one entry for each row has the wrong length.
    #[error("{what} lists {given} rows and the cache has {batch}; give one entry for each row")]
    RowCount {
        /// What was given.
        what: &'static str,
        /// Its length.
        given: usize,
        /// Rows of the cache.
        batch: usize,
    },
    /// A ragged step lists more tokens for a row than the step is wide.
    #[error("row {row} adds {requested} tokens in a step of {width}; a row can add at most the width of the step")]
    StepTooNarrow {
        /// The row.
        row: usize,
        /// Tokens that the row would add.
        requested: usize,
        /// New tokens of the input, padding included.
        width: usize,
    },
    /// A row cannot be cut to more tokens than it holds.
    #[error("row {row} holds {used} tokens and cannot be cut to {length}; `truncate` only shortens")]
    TruncateBeyondEnd {
        /// The row.
        row: usize,
        /// Tokens that it holds.
        used: usize,
        /// Tokens that it should be cut to.
        length: usize,
    },
    /// Two caches do not have the same layers, heads, head size or capacity.
    #[error("rows can only be copied between caches of the same shape: this one is {expected}, the other {actual}")]
    CacheShape {
        /// Shape of the receiving cache.
        expected: String,
        /// Shape of the other.
        actual: String,
    },
    /// The cache was built for another layer. Nothing was written.
    #[error(
        "the layer has {what} {layer} and the cache was built for {cache}; build the cache from the configuration of the \
         layers that use it"
    )]
    CacheMismatch {
        /// The quantity that differs.
        what: &'static str,
        /// Its value in the layer.
        layer: String,
        /// Its value in the cache.
        cache: String,
    },
    /// A layer reads the keys and values of an earlier one, which has not written them. Nothing was computed.
    #[error(
        "layer {layer} reads the keys and values of layer {keys_of}, which has not run in this step; run the layers in order, each with \
         `step.layer` of its index, on a cache of `KvCache::for_layers`"
    )]
    LayerNotRun {
        /// The layer that reads.
        layer: usize,
        /// The layer that it reads.
        keys_of: usize,
    },
    /// A layer reads the keys and values of an earlier one, and got none. Nothing was computed.
    #[error(
        "layer {layer} reads the keys and values of layer {keys_of}, and there is no cache; call `forward_given` with the keys and \
         values that layer {keys_of} returned"
    )]
    NoGivenKeys {
        /// The layer that reads.
        layer: usize,
        /// The layer that it reads.
        keys_of: usize,
    },
    /// An earlier write into the cache panicked, and the keys and values of that layer are gone.
    #[error(
        "the keys and values of this layer were lost when an earlier write into the cache panicked; build a new cache"
    )]
    CacheLost,
    /// The rows of a context and those of the input of cross attention differ in number. Nothing was computed.
    #[error(
        "the context has {context} rows and the input {input}; build the context from the batch of the input, or bring its \
         rows into the order of the input with `CrossCache::reorder`"
    )]
    ContextRows {
        /// Rows of the context.
        context: usize,
        /// Rows of the input.
        input: usize,
    },
    /// The context has another number of features than a layer projects to keys and values. Nothing was computed.
    #[error(
        "the context has {actual} features and the keys of layer {layer} are projected from {expected}; give the output of \
         the encoder that the layer was built for, or another `context_dim`"
    )]
    ContextWidth {
        /// The layer.
        layer: usize,
        /// Features that the layer reads.
        expected: usize,
        /// Features of the context.
        actual: usize,
    },
    /// A row of a context is said to be longer than the context. Nothing was computed.
    #[error("row {row} of the context is given {length} tokens and the context holds {tokens}; give at most {tokens}")]
    ContextLength {
        /// The row.
        row: usize,
        /// Its length.
        length: usize,
        /// Tokens of the context, padding included.
        tokens: usize,
    },
    /// A layer that the context was not built for.
    #[error(
        "the context was built for {layers} layers, and layer {layer} was asked for; build it from all layers of the model"
    )]
    NoSuchLayer {
        /// The layer, counted from 0.
        layer: usize,
        /// Layers of the context.
        layers: usize,
    },
    /// Position ids that cannot be used.
    #[error("position ids {problem}")]
    Positions {
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// The module holds one shard of several and has no communicator to sum over them.
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
    /// The sum over ranks failed. The step was not committed, and the cache is as it was before it.
    #[error(transparent)]
    Communication(#[from] CommunicationError),
}

impl AttentionError {
    /// A cache that differs from the layer that uses it. `what` completes "the layer has", for example `"key/value heads:"`.
    pub fn cache_mismatch(what: &'static str, layer: impl ToString, cache: impl ToString) -> Self {
        Self::CacheMismatch { what, layer: layer.to_string(), cache: cache.to_string() }
    }
}
