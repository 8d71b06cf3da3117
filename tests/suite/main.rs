//! All integration tests, in one binary.
#![allow(clippy::unwrap_used)]

mod common;

mod allocations;
mod architecture;
mod attention;
mod blocks;
mod cache;
mod cache_check;
mod chat;
mod checkpoint_writer;
mod config;
mod contract;
mod cross_attention;
mod diffusion;
mod documents;
mod encoder_decoders;
mod encoders;
mod families;
mod generate;
mod gguf;
mod gguf_tokenizers;
mod golden;
#[cfg(feature = "vulkan")]
mod gpu;
#[cfg(feature = "autodiff")]
mod gradients;
mod kernels;
mod kv_source;
mod latent;
mod load;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod no_tokens;
mod ops;
#[cfg(feature = "local")]
mod parallel;
mod properties;
mod qk_norm;
mod qkv_clip;
mod quantized;
mod quantized_checkpoints;
mod quantized_split;
#[cfg(feature = "local")]
mod ranks;
mod reports;
mod resharding;
mod resident;
mod rotary;
mod rounded_to_bf16;
mod seq2seq;
mod sinks;
mod split_checkpoints;
mod windows;
mod written_blocks;
