//! The backends that the modules run on: the operations of each, and what the kernels need to know about its tensors.
//!
//! Each backend is enabled by its Cargo feature. On `Autodiff` every operation is the reference, so modules train.

#[cfg(feature = "autodiff")]
mod autodiff;
#[cfg(feature = "cpu")]
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
#[cfg(feature = "cpu")]
pub use cpu::CpuOps;
#[cfg(feature = "cubecl")]
pub use cube::CubeOps;
