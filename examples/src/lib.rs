//! Shared code of burn-deepspeed's example programs: models built from its attention, and checks of their results.
//!
//! Start with [`decoder`], a whole language model, and with [`text`], which generates with it.
//!
//! A program chooses its backend when it starts. Everything that is generic over the backend is therefore compiled here, once
//! for each backend of the build, and reaches the programs without the backend in its type: [`text::TextModel`],
//! [`embedder::Embed`], [`seq2seq::Seq2Seq`], [`conformance::conformance`]. The programs stay small and compile in seconds.
#![cfg_attr(
    not(any(feature = "ndarray", feature = "flex", feature = "cuda", feature = "wgpu")),
    allow(dead_code, unused_variables, reason = "a program may bring its own backend and choose none by name")
)]

pub mod backend;
pub mod conformance;
pub mod decoder;
pub mod embedder;
mod files;
pub mod int8;
mod layers;
pub mod ranks;
pub mod scaling;
pub mod seq2seq;
pub mod sums;
pub mod text;
pub mod tokenizer;

pub use files::ModelFiles;

/// Any error, with the fact and the remedy in its message.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
