//! Which path an attention step takes, and why not the other.

use std::fmt;

use burn::tensor::{DType, backend::Backend};

use crate::mask::AttentionMask;

/// What decides over the path of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextProblem {
    /// Element type of the projection.
    pub dtype: DType,
    /// New tokens of each row.
    pub tokens: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Element type of the cache; `None` without one.
    pub cache_dtype: Option<DType>,
    /// Whether the mask hides single pairs of query and key.
    pub hides_pairs: bool,
    /// Whether the mask adds a bias.
    pub has_bias: bool,
}

impl ContextProblem {
    /// A step of `tokens` new tokens under `mask`, with a cache of the same element type or without one.
    pub fn new<B: Backend>(
        dtype: DType,
        tokens: usize,
        head_dim: usize,
        cached: bool,
        mask: &AttentionMask<B>,
    ) -> Self {
        Self {
            dtype,
            tokens,
            head_dim,
            cache_dtype: cached.then_some(dtype),
            hides_pairs: mask.hidden_pairs().is_some(),
            has_bias: mask.has_bias(),
        }
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
    /// The cache has another element type than the projection.
    CacheType {
        /// Element type of the projection.
        dtype: DType,
        /// Element type of the cache.
        cache: DType,
    },
    /// A head has too many features.
    HeadDim {
        /// Features of a head.
        head_dim: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// Values have another number of features than keys.
    ValueDim {
        /// Features of queries and keys.
        head_dim: usize,
        /// Features of values.
        value_dim: usize,
    },
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKernel => write!(f, "the backend has no kernel of its own for this operation"),
            Self::ElementType(dtype) => write!(f, "the kernel does not compute with elements of {dtype:?}"),
            Self::CacheType { dtype, cache } => {
                write!(f, "the cache holds {cache:?} and the projection {dtype:?}; the kernel takes equal ones")
            }
            Self::HeadDim { head_dim, limit } => {
                write!(f, "heads of {head_dim} features; the kernel takes up to {limit}")
            }
            Self::ValueDim { head_dim, value_dim } => {
                write!(f, "values of {value_dim} features beside keys of {head_dim}; the kernel takes equal ones")
            }
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
