//! The backends that the modules run on: one line each, and what the kernels need to know about their tensors.
//!
//! Each backend is enabled by its Cargo feature. On `Autodiff` every operation is the reference, so modules train.

#[cfg(feature = "autodiff")]
mod autodiff;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cpu;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cubecl")]
mod cubecl;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "fusion")]
mod fusion;
#[cfg(feature = "ndarray")]
mod ndarray;

#[cfg(feature = "autodiff")]
pub use autodiff::Differentiable;
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub use cpu::CpuOps;
#[cfg(feature = "cubecl")]
pub use cube::CubeOps;
