//! Kernels for every CubeCL runtime: CUDA, Vulkan, WebGPU.
//!
//! | kernel | computes |
//! | --- | --- |
//! | [`cache_write`] | splits a packed projection, normalises and rotates, writes queries out and keys and values into the cache |
//! | [`decode`] | a few new tokens against a cache, split over its keys, and the sum of the splits |
//! | [`prefill`] | many new tokens against a cache, or without one, on tensor cores or without |
//! | [`norm`] | LayerNorm and RMSNorm of a row, optionally of its sum with a residual |
//! | [`pad_transform`] | heads with zeros after their features |
//! | [`softmax`] | the masked softmax of given scores, in place |
//! | [`gemv`] | norm, matrix and bias for a few rows |
//! | [`dequantise`] | rows of quantised blocks as a dense matrix |
//!
//! In the cache of the first three, keys and values may each be int8 with a scale for each head of a token.
//!
//! Every launcher takes a [`Machine`], which says what the device can do, and [`TensorHandle`]s, whose strides it reads:
//! CUDA pads rows. Buffers reach the kernels as arrays with scalar strides, since a tensor argument costs an upload for
//! each launch. Sums, maxima and exponentials are f32.
//!
//! A launcher checks every tensor against the others before it launches anything: a shape that does not fit panics, a layout,
//! type or size that the kernel or the device does not take is [`Unsupported`].

mod addend;
mod attention;
mod blocks;
mod bytes;
pub mod cache_write;
mod cached;
mod contract;
pub mod decode;
pub mod dequantise;
mod direct;
mod exponential;
mod fragment;
pub mod gemv;
mod lanes;
mod machine;
mod mask_arguments;
mod masks;
pub mod norm;
pub mod pad_transform;
pub mod prefill;
mod sinks;
pub mod softmax;
mod tensors;

pub use attention::Attention;
pub use blocks::Blocks;
pub use cached::CacheTensor;
pub use cubecl::std::tensor::TensorHandle;
pub use dequantise::Dequantise;
pub use machine::{Machine, Unsupported};
pub use mask_arguments::{Bias, HiddenKeys, HiddenPairs, MaskArguments, Rules};
pub use norm::Norm;
pub use pad_transform::PadTransform;
pub use softmax::Softmax;
