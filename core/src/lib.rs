//! The part of burn-deepspeed that needs no tensors: what attention computes, independent of where it runs.
//!
//! This package names neither Burn nor CubeCL. The kernels and the layer for Burn both build on it.

pub mod activation;
pub mod block;
pub mod checkpoint;
pub mod config;
pub mod data_type;
pub mod divisor;
pub mod element;
pub mod error;
pub mod fields;
pub mod int8;
pub mod kv_source;
pub mod latent;
pub mod layout;
pub mod parallel;
pub mod path;
pub mod position;
pub mod qk_norm;
pub mod spec;
pub mod spelling;
pub mod visibility;
