//! Kernels on slices, for any CPU.

pub mod decode;
