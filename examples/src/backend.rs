//! The backends of the build, element types on the command line, and how a program ends with an error.

use std::process::ExitCode;
use std::str::FromStr;

#[cfg(feature = "autodiff")]
pub use burn_autodiff::Autodiff;
use burn_deepspeed::config::{ActivationRounding, MatrixFormat};
use burn_deepspeed::weight::BlockFormat;
use burn_deepspeed::{DataType, InputBits};
use clap::ValueEnum;

use crate::{Failure, ModelFiles};

/// `ndarray` in f32.
#[cfg(feature = "ndarray")]
pub type NdArray = burn_ndarray::NdArray;
/// Burn's own CPU backend.
#[cfg(feature = "flex")]
pub type Flex = burn_flex::Flex;
/// CUDA, with fusion.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cuda::Cuda;
/// Vulkan, Metal or WebGPU, with fusion.
#[cfg(feature = "wgpu")]
pub type Wgpu = burn_wgpu::Wgpu;

/// A backend, which the build may or may not include.
#[derive(Debug, Clone, Copy, ValueEnum, Default, PartialEq, Eq)]
pub enum BackendName {
    /// The CPU, through `ndarray`.
    #[cfg_attr(feature = "ndarray", default)]
    Ndarray,
    /// The CPU, through Burn's own `Flex`.
    #[cfg_attr(not(feature = "ndarray"), default)]
    Flex,
    /// A CUDA device.
    Cuda,
    /// Vulkan, Metal or WebGPU, whichever the machine has.
    Wgpu,
}

/// The error for a backend that the build does not include.
pub const NOT_IN_THE_BUILD: &str =
    "this backend is not part of the build; add its Cargo feature, as in `--features flex` or `--features vulkan`";

/// Calls a function that is generic over the backend, with the backend that the name selects.
#[macro_export]
macro_rules! on_backend {
    ($name:expr, $function:ident $(, $argument:expr)*) => {
        match $name {
            #[cfg(feature = "ndarray")]
            $crate::backend::BackendName::Ndarray => $function::<$crate::backend::NdArray>($($argument),*),
            #[cfg(feature = "flex")]
            $crate::backend::BackendName::Flex => $function::<$crate::backend::Flex>($($argument),*),
            #[cfg(feature = "cuda")]
            $crate::backend::BackendName::Cuda => $function::<$crate::backend::Cuda>($($argument),*),
            #[cfg(feature = "wgpu")]
            $crate::backend::BackendName::Wgpu => $function::<$crate::backend::Wgpu>($($argument),*),
            #[allow(unreachable_patterns)]
            _ => Err($crate::backend::NOT_IN_THE_BUILD.into()),
        }
    };
}

/// Element type of weights and activations.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// IEEE half precision.
    Fp16,
    /// bfloat16.
    Bf16,
    /// Projections of int8; everything else in fp32, on a GPU in fp16.
    Int8,
}

impl From<Precision> for DataType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Fp16 => Self::Fp16,
            Precision::Bf16 => Self::Bf16,
            Precision::Int8 => Self::Int8,
        }
    }
}

/// Element types on the command line: a [`Precision`], or that of matrices and embeddings alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Types {
    /// Of weights and activations.
    pub dtype: DataType,
    /// Of matrices and embeddings.
    pub matrices: MatrixFormat,
}

impl Types {
    /// What a model has if nothing is asked for: the blocks of a GGUF file where the backend stores bytes, and otherwise fp32.
    pub fn of_model(files: &ModelFiles, backend: BackendName) -> Self {
        // Shaders of WebGPU have no 8-bit integers.
        let stores_bytes = backend != BackendName::Wgpu || cfg!(feature = "vulkan");
        let blocks = stores_bytes && matches!(files, ModelFiles::Gguf(_));
        let matrices = if blocks { MatrixFormat::Stored } else { MatrixFormat::OfDtype };
        Self { dtype: DataType::Fp32, matrices }
    }

    /// The rounding of inputs that was asked for.
    ///
    /// # Errors
    /// If no matrix has inputs that are rounded so.
    pub fn rounding(self, asked: Option<ActivationRounding>) -> Result<ActivationRounding, Failure> {
        let (integers, halves) = match (self.matrices, self.dtype) {
            (MatrixFormat::OfDtype, dtype) => {
                (dtype == DataType::Int8, matches!(dtype, DataType::Fp16 | DataType::Bf16))
            }
            // A GGUF file may have both.
            (MatrixFormat::Stored, _) => (true, true),
            (MatrixFormat::Blocks(format), _) => {
                (format.elements() > 1, matches!(format, BlockFormat::F16 | BlockFormat::BF16))
            }
        };
        match asked.unwrap_or_default() {
            ActivationRounding::To(_) if !integers => Err(
                "`--round-activations` of 8 or 14 bits is for matrices of integers; add `--dtype int8` or `--dtype q8_0`"
                    .into(),
            ),
            ActivationRounding::Bf16 if !halves => {
                Err("`--round-activations bf16` is for matrices of 16 bits; add `--dtype bf16` or `--dtype fp16`".into())
            }
            rounding => Ok(rounding),
        }
    }
}

impl FromStr for Types {
    type Err = String;

    /// Reads `fp32`, `fp16`, `bf16`, `int8`, `stored` or the name of a block format, with which activations are fp32.
    fn from_str(name: &str) -> Result<Self, String> {
        if let Ok(precision) = <Precision as ValueEnum>::from_str(name, true) {
            return Ok(Self { dtype: precision.into(), matrices: MatrixFormat::OfDtype });
        }
        let matrices = name.parse().ok().filter(|format| *format != MatrixFormat::OfDtype);
        let matrices = matrices.ok_or_else(|| {
            let formats: Vec<String> = BlockFormat::writable().map(String::from).collect();
            format!("fp32, fp16, bf16, int8, stored, {} are accepted", formats.join(", "))
        })?;
        Ok(Self { dtype: DataType::Fp32, matrices })
    }
}

/// The rounding of inputs on the command line.
///
/// # Errors
/// If it is none.
pub fn input_rounding(text: &str) -> Result<ActivationRounding, String> {
    match text {
        "8" => Ok(InputBits::Eight.into()),
        "14" => Ok(InputBits::Fourteen.into()),
        "bf16" => Ok(ActivationRounding::Bf16),
        _ => Err("8, 14 and bf16 are accepted".into()),
    }
}

/// The exit status of a program; an error is printed on standard error.
pub fn exit(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
