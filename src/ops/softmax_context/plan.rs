//! Which path an attention step takes, and why not the other.

use std::fmt;

use burn::tensor::DType;

use crate::cache::CacheTypes;
#[cfg(any(feature = "cubecl", feature = "ndarray", feature = "flex"))]
use burn_deepspeed_core::path::{LARGEST_CUBE_HEAD, MOST_DECODE_TOKENS};

/// What decides over the path of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextProblem {
    /// Element type of the projection.
    pub dtype: DType,
    /// New tokens of each row.
    pub tokens: usize,
    /// Features of a query and of a key.
    pub head_dim: usize,
    /// Features of a value.
    pub value_dim: usize,
    /// Element types of the cache; `None` without one.
    pub cache: Option<CacheTypes>,
}

impl ContextProblem {
    /// A step of `tokens` new tokens, with a cache or without one. Values have as many features as keys.
    pub fn new(dtype: DType, tokens: usize, head_dim: usize, cache: Option<CacheTypes>) -> Self {
        Self { dtype, tokens, head_dim, value_dim: head_dim, cache }
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

#[cfg(any(feature = "cubecl", feature = "ndarray", feature = "flex"))]
impl ContextProblem {
    /// The CPU kernel for this step.
    ///
    /// # Errors
    /// The reason, if there is none.
    pub fn on_cpu(&self) -> Result<CpuKernel, Declined> {
        if self.dtype != DType::F32 {
            return Err(Declined::ElementType(self.dtype));
        }
        self.check_cache()?;
        Ok(if self.tokens <= MOST_DECODE_TOKENS { CpuKernel::Decode } else { CpuKernel::Flash })
    }

    /// The CubeCL kernel for this step. `tensor_cores` says whether the device multiplies tiles of this element type and
    /// head size; it is asked only where the answer matters.
    ///
    /// # Errors
    /// The reason, if there is none.
    pub fn on_cube(&self, tensor_cores: impl FnOnce() -> bool) -> Result<CubeKernel, Declined> {
        let Self { dtype, tokens, head_dim, value_dim, .. } = *self;
        self.check_cache()?;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Declined::ElementType(dtype));
        }
        if head_dim > LARGEST_CUBE_HEAD {
            return Err(Declined::HeadDim { head_dim, limit: LARGEST_CUBE_HEAD });
        }
        if head_dim != value_dim {
            return Err(Declined::ValueDim { head_dim, value_dim });
        }
        Ok(match tokens <= MOST_DECODE_TOKENS {
            true => CubeKernel::Decode,
            false if tensor_cores() => CubeKernel::PrefillMma,
            false => CubeKernel::PrefillSimt,
        })
    }

    /// A kernel reads a cache of its own element type, and of int8.
    fn check_cache(&self) -> Result<(), Declined> {
        let Some(CacheTypes { key, value }) = self.cache else { return Ok(()) };
        match [key, value].into_iter().find(|cache| ![self.dtype, DType::I8].contains(cache)) {
            Some(cache) => Err(Declined::CacheType { dtype: self.dtype, cache }),
            None => Ok(()),
        }
    }
}

/// A CPU kernel for attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuKernel {
    /// Few queries: each key is read once for all queries of its head.
    Decode,
    /// Many queries, in blocks.
    Flash,
}

impl CpuKernel {
    /// The kernel's module in `burn-deepspeed-kernels`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "cpu::decode",
            Self::Flash => "cpu::flash",
        }
    }
}

/// A CubeCL kernel for attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CubeKernel {
    /// Few queries: the keys are split over the device.
    Decode,
    /// Many queries, on tensor cores.
    PrefillMma,
    /// Many queries, on ordinary units.
    PrefillSimt,
}

impl CubeKernel {
    /// The kernel's module in `burn-deepspeed-kernels`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "cube::decode",
            Self::PrefillMma => "cube::prefill::mma",
            Self::PrefillSimt => "cube::prefill::simt",
        }
    }
}

impl From<Result<CpuKernel, Declined>> for Plan {
    fn from(chosen: Result<CpuKernel, Declined>) -> Self {
        chosen.map_or_else(Self::Reference, |kernel| Self::Kernel(kernel.name()))
    }
}

impl From<Result<CubeKernel, Declined>> for Plan {
    fn from(chosen: Result<CubeKernel, Declined>) -> Self {
        chosen.map_or_else(Self::Reference, |kernel| Self::Kernel(kernel.name()))
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
