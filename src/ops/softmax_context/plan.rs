//! Which path an attention step takes, and why not the other.

use std::fmt;

use burn::tensor::{DType, backend::Backend};

use crate::cache::CacheTypes;
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
    /// Element types of the cache; `None` without one.
    pub cache: Option<CacheTypes>,
    /// Whether the mask hides single pairs of query and key.
    pub hides_pairs: bool,
    /// Whether the mask adds a bias.
    pub has_bias: bool,
}

impl ContextProblem {
    /// A step of `tokens` new tokens under `mask`, with a cache or without one.
    pub fn new<B: Backend>(
        dtype: DType,
        tokens: usize,
        head_dim: usize,
        cache: Option<CacheTypes>,
        mask: &AttentionMask<B>,
    ) -> Self {
        Self { dtype, tokens, head_dim, cache, hides_pairs: mask.hidden_pairs().is_some(), has_bias: mask.has_bias() }
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
    /// Keys or values in the cache have neither the element type of the projection nor int8.
    CacheType {
        /// Element type of the projection.
        dtype: DType,
        /// Element type of the keys, or the values, in the cache.
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

impl ContextProblem {
    /// Why a kernel that reads its own element type and int8 does not take this cache, if it does not.
    #[cfg(any(feature = "cubecl", feature = "ndarray", feature = "flex"))]
    pub(crate) fn cache_declined(&self) -> Option<Declined> {
        let CacheTypes { key, value } = self.cache?;
        let other = [key, value].into_iter().find(|cache| ![self.dtype, DType::I8].contains(cache))?;
        Some(Declined::CacheType { dtype: self.dtype, cache: other })
    }
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKernel => write!(f, "the backend has no kernel of its own for this operation"),
            Self::ElementType(dtype) => write!(f, "the kernel does not compute with elements of {dtype:?}"),
            Self::CacheType { dtype, cache } => {
                write!(
                    f,
                    "the cache holds {cache:?} and the projection {dtype:?}; the kernel takes equal ones, and int8"
                )
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
