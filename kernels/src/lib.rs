//! The compute kernels of `burn-deepspeed`. This crate never names Burn: kernels see slices, device buffers and sizes, and a
//! caller that has neither modules nor tensors can use them as they are.
//!
//! - [`cpu`]: kernels on slices, over the threads of the current `rayon` pool.
//! - `cube` (feature `cubecl`): kernels for every CubeCL runtime, on device buffers.

mod contract;
pub mod cpu;
#[cfg(feature = "cubecl")]
pub mod cube;
