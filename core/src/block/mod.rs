//! Blocks of quantised weights, as GGUF files store them: a few elements with a scale of their own.
//!
//! [`BlockFormat`] is the one description of each format. Whoever reads blocks, a file or a kernel, takes sizes and values from here.

mod floats;
mod format;
mod nibbles;
mod quantise;
mod rows;
mod scale;
mod super_blocks;

pub use format::{BlockFormat, UnknownFormat};
pub use nibbles::{IQ4_NL_VALUES, TWICE_E2M1, half_of_power};
pub use rows::{BlockRows, RowFormats, RowPart, UNIT_BYTES};
