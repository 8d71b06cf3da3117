//! The outputs of self-attention, and which of them are wanted.

use burn::tensor::{Tensor, backend::Backend};

/// Which of DeepSpeed's outputs are wanted in addition to the main one. The others are not computed. Default: none.
///
/// ```
/// use burn_deepspeed::WantedOutputs;
///
/// let wanted = WantedOutputs::NONE.with_context(true);
/// assert!(wanted.context && !wanted.keys);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WantedOutputs {
    /// `key_layer` and `value_layer`: the visible keys and values, copied out of the cache.
    pub keys: bool,
    /// `context_layer`: the input of the output projection.
    pub context: bool,
    /// `inp_norm`: the normalised input.
    pub inp_norm: bool,
}

impl WantedOutputs {
    /// The main output alone.
    pub const NONE: Self = Self { keys: false, context: false, inp_norm: false };

    /// All outputs.
    pub const ALL: Self = Self { keys: true, context: true, inp_norm: true };

    /// Sets whether the visible keys and values are wanted.
    pub const fn with_keys(self, keys: bool) -> Self {
        Self { keys, ..self }
    }

    /// Sets whether the input of the output projection is wanted.
    pub const fn with_context(self, context: bool) -> Self {
        Self { context, ..self }
    }

    /// Sets whether the normalised input is wanted.
    pub const fn with_inp_norm(self, inp_norm: bool) -> Self {
        Self { inp_norm, ..self }
    }
}

/// The outputs that DeepSpeed's attention returns as a tuple.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AttentionOutput<B: Backend> {
    /// After the output projection, `[B, T, E]`.
    pub output: Tensor<B, 3>,
    /// Visible keys, `[B, K, S, H]`.
    pub key: Option<Tensor<B, 4>>,
    /// Visible values, `[B, K, S, H]`.
    pub value: Option<Tensor<B, 4>>,
    /// Before the output projection, `[B, T, N·H]`.
    pub context: Option<Tensor<B, 3>>,
    /// Normalised input, `[B, T, E]`; `None` without a norm.
    pub inp_norm: Option<Tensor<B, 3>>,
}
