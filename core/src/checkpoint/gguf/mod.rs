//! GGUF files: the format of llama.cpp, one file with weights, configuration and tokenizer.
//!
//! [`Gguf`] is what the header says: `source` reads bytes within the length of the file, `metadata` values, `directory` where the
//! tensors are. `architecture` gives tensors the names of the family, `settings` makes a `config.json` of the keys, and `architectures`
//! has one record for each architecture.

mod architecture;
mod architectures;
mod directory;
mod header;
mod metadata;
mod rows;
mod settings;
mod source;

pub(super) use architecture::{Architecture, is_factor, tensors};
pub use header::Gguf;
pub use metadata::Metadata;
pub(super) use rows::{RowOrder, paired};
pub(super) use settings::{open, record};
