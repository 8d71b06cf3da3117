//! Kernels on slices, for any CPU.

pub mod decode;
pub mod flash;
pub mod masks;
mod simd;
