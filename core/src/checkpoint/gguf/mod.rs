//! GGUF files: the format of llama.cpp, one file with weights, configuration and tokenizer, or several parts of it.
//!
//! [`Gguf`] is what the header says: `source` reads bytes within the length of the file, `metadata` values, `directory` where the tensors
//! are, `split` which parts there are; `new_file` writes all of these. `architectures` has one record for each architecture: `model`
//! gives tensors the names of the family by it, and makes a `config.json` of the keys, which `settings` reads.

mod architecture;
mod architectures;
mod directory;
mod element;
mod header;
mod metadata;
mod model;
mod new_file;
mod rows;
mod settings;
mod source;
mod split;

pub(super) use architecture::{Difference, is_factor};
pub use header::Gguf;
pub(super) use header::Place;
pub use metadata::Metadata;
pub use model::table;
pub(super) use model::{architecture, record, tensors};
pub(super) use new_file::NewFile;
pub(super) use rows::{RowOrder, paired};
pub(super) use settings::open;
