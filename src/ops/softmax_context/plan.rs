//! Which path an attention step takes, and why not the other.

use std::fmt;

use burn::tensor::{DType, backend::Backend};

use crate::mask::AttentionMask;

/// What decides over the path of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextProblem {
    /// Element type of the projection and the cache.
    pub dtype: DType,
    /// New tokens of each row.
    pub tokens: usize,
    /// Whether there is a cache.
    pub cached: bool,
    /// Whether the mask hides single pairs of query and key.
    pub hides_pairs: bool,
    /// Whether the mask adds a bias.
    pub has_bias: bool,
}

impl ContextProblem {
    /// A step of `tokens` new tokens under `mask`.
    pub fn new<B: Backend>(dtype: DType, tokens: usize, cached: bool, mask: &AttentionMask<B>) -> Self {
        Self { dtype, tokens, cached, hides_pairs: mask.hidden_pairs().is_some(), has_bias: mask.has_bias() }
    }
}

/// The path of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// This kernel of ours.
    Kernel(&'static str),
    /// The reference, because the kernels declined.
    Reference(Declined),
}

/// Why no kernel takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Declined {
    /// The backend has none.
    NoKernel,
    /// It computes with another element type.
    ElementType(DType),
    /// There is no cache.
    Uncached,
    /// There are too many new tokens.
    Tokens {
        /// New tokens of each row.
        tokens: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// The mask hides single pairs.
    HiddenPairs,
    /// The mask adds a bias.
    Bias,
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKernel => write!(f, "the backend has no kernel of its own for this operation"),
            Self::ElementType(dtype) => write!(f, "the elements are {dtype:?}, and the kernel computes with F32"),
            Self::Uncached => write!(f, "there is no cache"),
            Self::Tokens { tokens, limit } => write!(f, "{tokens} new tokens; the kernel takes up to {limit}"),
            Self::HiddenPairs => write!(f, "the mask hides single pairs; the kernel takes masks over keys"),
            Self::Bias => write!(f, "the mask adds a bias to the scores"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(name) => write!(f, "kernel `{name}`"),
            Self::Reference(declined) => write!(f, "reference: {declined}"),
        }
    }
}
