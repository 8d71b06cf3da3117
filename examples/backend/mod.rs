//! What the examples share on the command line: the backends of the build, element types, and how an error ends them.

use std::error::Error;
use std::process::ExitCode;

use burn_deepspeed::DataType;
use clap::ValueEnum;

/// A backend that the build may have.
#[derive(Clone, Copy, ValueEnum, Default)]
pub enum BackendName {
    #[cfg_attr(feature = "ndarray", default)]
    Ndarray,
    #[cfg_attr(not(feature = "ndarray"), default)]
    Flex,
    Cuda,
    /// Vulkan, Metal or WebGPU, whatever the machine has.
    Wgpu,
}

/// What is said when the build has not.
pub const NOT_IN_THE_BUILD: &str =
    "this backend is not part of the build; add its Cargo feature, as in `--features flex` or `--features vulkan`";

/// Calls a function that is generic over the backend.
macro_rules! on_backend {
    ($name:expr, $function:ident, $arguments:expr) => {
        match $name {
            #[cfg(feature = "ndarray")]
            $crate::backend::BackendName::Ndarray => $function::<burn_ndarray::NdArray>($arguments),
            #[cfg(feature = "flex")]
            $crate::backend::BackendName::Flex => $function::<burn_flex::Flex>($arguments),
            #[cfg(feature = "cuda")]
            $crate::backend::BackendName::Cuda => $function::<burn_cuda::Cuda>($arguments),
            #[cfg(feature = "wgpu")]
            $crate::backend::BackendName::Wgpu => $function::<burn_wgpu::Wgpu>($arguments),
            #[allow(unreachable_patterns)]
            _ => Err($crate::backend::NOT_IN_THE_BUILD.into()),
        }
    };
}
pub(crate) use on_backend;

/// Element type of weights and activations.
#[allow(dead_code)]
#[derive(Clone, Copy, ValueEnum)]
pub enum Precision {
    Fp32,
    Fp16,
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

/// Success, or the error on standard error.
#[allow(dead_code)]
pub fn exit(outcome: Result<(), Box<dyn Error + Send + Sync>>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
