//! Which kernel a step of attention or a product with blocks runs on, and why it runs on none.
//!
//! The choice depends on sizes, element types and the device alone. A kernel that was chosen must accept the step.

mod blocks;

use std::fmt;

pub use blocks::{BlockKernel, BlockProblem, MOST_GEMV_ROWS};

use crate::block::BlockFormat;
use crate::data_type::CacheTypes;
use crate::element::ElementType;
use crate::latent::LatentSizes;

/// New tokens per row up to which a step runs on the decoding kernels, which split the keys instead of the queries.
pub const MOST_DECODE_TOKENS: usize = 8;

/// Largest size of a query and of a key in the CubeCL attention kernels, in features: a latent of 512 and 64 that rotate (DeepSeek).
/// [`ContextProblem::on_cube`] says where it is less.
pub const LARGEST_CUBE_HEAD: usize = 576;

/// Largest size of a value there, in features.
pub const LARGEST_CUBE_VALUE: usize = 512;

/// Largest head size of the kernels that multiply on tensor cores, which keep queries and results in registers, and of prompts in f32,
/// whose keys and values fill shared memory.
pub const LARGEST_TILED_HEAD: usize = 256;

/// What the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextProblem {
    /// Element type of the projection.
    pub dtype: ElementType,
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
    pub fn new(dtype: ElementType, tokens: usize, head_dim: usize, cache: Option<CacheTypes>) -> Self {
        Self { dtype, tokens, head_dim, value_dim: head_dim, cache }
    }

    /// The CPU kernel for this step.
    ///
    /// # Errors
    /// The reason, if there is none.
    pub fn on_cpu(&self) -> Result<CpuKernel, Declined> {
        if !is_cpu_float(self.dtype) {
            return Err(Declined::ElementType(self.dtype));
        }
        // They read any of these types, next to activations of any other.
        let sides = self.cache.map_or([self.dtype; 2], |CacheTypes { key, value }| [key, value]);
        if let Some(cache) = sides.into_iter().find(|side| !is_cpu_float(*side) && *side != ElementType::I8) {
            return Err(Declined::CacheType { dtype: self.dtype, cache });
        }
        Ok(if self.tokens <= MOST_DECODE_TOKENS { CpuKernel::Decode } else { CpuKernel::Flash })
    }

    /// The CubeCL kernel for this step. `tensor_cores` says whether the device multiplies tiles of this element type and
    /// head size; it is asked only where the answer matters. There, the caller pads values that are shorter than keys.
    ///
    /// # Errors
    /// The reason, if there is none.
    pub fn on_cube(&self, tensor_cores: impl FnOnce() -> bool) -> Result<CubeKernel, Declined> {
        let Self { dtype, tokens, head_dim, value_dim, .. } = *self;
        self.check_cube_cache()?;
        if !matches!(dtype, ElementType::F32 | ElementType::F16 | ElementType::BF16) {
            return Err(Declined::ElementType(dtype));
        }
        let decodes = tokens <= MOST_DECODE_TOKENS;
        let limit = if decodes || dtype != ElementType::F32 { LARGEST_CUBE_HEAD } else { LARGEST_TILED_HEAD };
        if head_dim > limit {
            return Err(Declined::HeadDim { head_dim, limit });
        }
        if value_dim > LARGEST_CUBE_VALUE {
            return Err(Declined::ValueDim { value_dim, limit: LARGEST_CUBE_VALUE });
        }
        Ok(match decodes {
            true => CubeKernel::Decode,
            false if value_dim <= head_dim && tensor_cores() => CubeKernel::PrefillMma,
            false => CubeKernel::PrefillSimt,
        })
    }

    /// The CubeCL kernels read caches of the projection's element type, and of int8.
    fn check_cube_cache(&self) -> Result<(), Declined> {
        let Some(CacheTypes { key, value }) = self.cache else { return Ok(()) };
        match [key, value].into_iter().find(|cache| ![self.dtype, ElementType::I8].contains(cache)) {
            Some(cache) => Err(Declined::CacheType { dtype: self.dtype, cache }),
            None => Ok(()),
        }
    }
}

/// Whether the CPU kernels read and write floats of this type. They compute in f32.
fn is_cpu_float(dtype: ElementType) -> bool {
    matches!(dtype, ElementType::F32 | ElementType::F16 | ElementType::BF16)
}

/// What the choice for a step of latent attention depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentProblem {
    /// Element type of the activations.
    pub dtype: ElementType,
    /// New tokens of each row.
    pub tokens: usize,
    /// The sizes of the layer.
    pub sizes: LatentSizes,
    /// Element type of the cached rows; `None` without a cache.
    pub cache: Option<ElementType>,
}

impl LatentProblem {
    /// The step with the projection from latents absorbed into queries and context: attention of one key/value head over the cached rows,
    /// whose first features are the values. `None` where the step is [expanded](Self::expanded).
    ///
    /// A pair of a query and a key takes 2L + R products in place of H + Hv, 3.4 times as many in DeepSeek's layers, but nothing is
    /// projected from the cached latents. So a few tokens are absorbed, and a prompt is expanded.
    pub fn absorbed(&self) -> Option<ContextProblem> {
        let Self { dtype, tokens, sizes, cache } = *self;
        let cache = CacheTypes { key: cache?, value: cache? };
        let problem = ContextProblem::new(dtype, tokens, sizes.row_dim(), Some(cache));
        (tokens <= MOST_DECODE_TOKENS).then_some(ContextProblem { value_dim: sizes.kv_lora_rank, ..problem })
    }

    /// The step with keys and values that were projected from the latents.
    pub fn expanded(&self) -> ContextProblem {
        let problem = ContextProblem::new(self.dtype, self.tokens, self.sizes.key_dim(), None);
        ContextProblem { value_dim: self.sizes.v_head_dim, ..problem }
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

/// The path of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// The kernel of this name.
    Kernel(&'static str),
    /// The reference, because the kernels declined.
    Reference(Declined),
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(name) => write!(f, "kernel `{name}`"),
            Self::Reference(declined) => write!(f, "reference: {declined}"),
        }
    }
}

/// Why no kernel takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Declined {
    /// The backend has none.
    NoKernel,
    /// The kernels compute with other element types.
    ElementType(ElementType),
    /// Keys or values in the cache have neither the element type of the projection nor int8.
    CacheType {
        /// Element type of the projection.
        dtype: ElementType,
        /// Element type of the keys, or the values, in the cache.
        cache: ElementType,
    },
    /// A head has too many features.
    HeadDim {
        /// Features of a head.
        head_dim: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// There are too many rows for sums in registers.
    Rows {
        /// Rows of the input.
        rows: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// The kernel does not read blocks of this format as they are stored.
    BlockFormat(BlockFormat),
    /// A value has too many features.
    ValueDim {
        /// Features of a value.
        value_dim: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKernel => write!(f, "the backend has no kernel for this operation"),
            Self::ElementType(dtype) => write!(f, "the kernel does not compute with elements of {dtype}"),
            Self::CacheType { dtype, cache } => {
                write!(
                    f,
                    "the cache holds {cache} and the projection {dtype}; the kernel does not read one next to the other"
                )
            }
            Self::HeadDim { head_dim, limit } => {
                write!(f, "heads of {head_dim} features; the kernel takes up to {limit}")
            }
            Self::Rows { rows, limit } => write!(f, "{rows} rows; the kernel takes up to {limit}"),
            Self::BlockFormat(format) => write!(f, "the kernel does not read blocks of {format} as they are stored"),
            Self::ValueDim { value_dim, limit } => {
                write!(f, "values of {value_dim} features; the kernel takes up to {limit}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ElementType::{F16, F32, F64, I8};

    #[test]
    fn a_kernel_reads_a_cache_of_its_own_type_and_of_int8() {
        for cache in [F32.into(), I8.into(), CacheTypes { key: I8, value: F32 }] {
            let step = ContextProblem::new(F32, 1, 64, Some(cache));
            assert_eq!(step.on_cpu(), Ok(CpuKernel::Decode));
            assert_eq!(step.on_cube(|| true), Ok(CubeKernel::Decode));
        }
        let step = ContextProblem::new(F32, 1, 64, Some(CacheTypes { key: I8, value: F16 }));
        assert_eq!(step.on_cpu(), Ok(CpuKernel::Decode));
        assert_eq!(step.on_cube(|| true), Err(Declined::CacheType { dtype: F32, cache: F16 }));
        let step = ContextProblem::new(F32, 1, 64, Some(CacheTypes { key: F64, value: F32 }));
        assert_eq!(step.on_cpu(), Err(Declined::CacheType { dtype: F32, cache: F64 }));
    }

    #[test]
    fn more_than_a_few_tokens_run_on_the_kernels_for_prompts() {
        let step = |tokens| ContextProblem::new(F32, tokens, 64, None);
        assert_eq!((step(8).on_cpu(), step(9).on_cpu()), (Ok(CpuKernel::Decode), Ok(CpuKernel::Flash)));
        assert_eq!(step(8).on_cube(|| panic!("no matter")), Ok(CubeKernel::Decode));
        assert_eq!(step(9).on_cube(|| true), Ok(CubeKernel::PrefillMma));
        assert_eq!(step(9).on_cube(|| false), Ok(CubeKernel::PrefillSimt));
    }

    #[test]
    fn tensor_cores_take_values_that_are_no_longer_than_keys() {
        let prompt = |value_dim| ContextProblem { value_dim, ..ContextProblem::new(F16, 9, 192, None) };
        assert_eq!(prompt(128).on_cube(|| true), Ok(CubeKernel::PrefillMma));
        assert_eq!(prompt(200).on_cube(|| true), Ok(CubeKernel::PrefillSimt));
    }

    #[test]
    fn each_reason_to_decline_is_told() {
        let step = ContextProblem::new(F16, 1, 64, None);
        assert_eq!(ContextProblem { dtype: F64, ..step }.on_cpu(), Err(Declined::ElementType(F64)));
        let on_cube = |step: ContextProblem| Plan::from(step.on_cube(|| false)).to_string();
        assert!(on_cube(ContextProblem { dtype: F64, ..step }).contains("elements of F64"));
        assert!(on_cube(ContextProblem { head_dim: 577, value_dim: 512, ..step }).contains("takes up to 576"));
        assert!(on_cube(ContextProblem { head_dim: 513, value_dim: 513, ..step }).contains("values of 513 features"));
        let prompt = ContextProblem { head_dim: 257, value_dim: 257, tokens: 9, ..step };
        assert_eq!(on_cube(prompt), "kernel `cube::prefill::simt`");
        assert!(on_cube(ContextProblem { dtype: F32, ..prompt }).contains("takes up to 256"));
        assert_eq!(on_cube(ContextProblem { head_dim: 576, value_dim: 512, ..step }), "kernel `cube::decode`");
        assert_eq!(on_cube(step), "kernel `cube::decode`");
    }
}
