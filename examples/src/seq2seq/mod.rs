//! Text from an encoder-decoder: T5, mT5, BART or Whisper, built from the record of its family around this crate's attention.
//!
//! The encoder runs once. A [`CrossCache`](burn_deepspeed::CrossCache) holds the keys and values of its states for every layer of the
//! decoder, which generates as any other.

pub mod check;
mod decoder;
mod encoder;
mod features;
mod generate;
mod input;
mod model;
mod plan;
mod session;
mod sources;

pub use generate::generate;
pub use model::{Model, Options, Seq2Seq, open};
pub use session::{Seq2SeqSession, Session};
pub use sources::Sources;
