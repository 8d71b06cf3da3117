//! Weights out of safetensors files: names, QKV layouts, conversion, and a strict report.
//!
//! ```no_run
//! use burn_deepspeed::AttentionInit;
//! use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig};
//! use burn_ndarray::NdArray;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let model = HuggingFaceConfig::from_json_file("llama/config.json")?;
//! let checkpoint = Checkpoint::open("llama")?;
//! for layer in 0..model.layers {
//!     let names = model.attention_names(&checkpoint, layer);
//!     let attention = model.attention_config(layer).init_self_attention::<NdArray>(layer, &device)?;
//!     let attention = attention.load(&checkpoint, &names)?;
//!     # let _ = attention;
//! }
//! println!("{}", checkpoint.report());
//! # Ok(()) }
//! ```
//!
//! Matrices that a checkpoint keeps in int8 stay as they are in a module of int8, byte for byte, and become dense in a dense
//! one; see [`ScaleNames`]. [`CheckpointWriter`] is the way back.
//!
//! A rank reads its part of each matrix and nothing else of the file. [`SplitCheckpoint`] is what several ranks wrote, a file
//! each, for as many or as few ranks as there are now.
//!
//! Burn's own records are loaded and saved with Burn's recorders: the modules are ordinary Burn modules.

mod checkpoint;
mod fields;
mod hugging_face;
mod int8;
mod layout;
mod matrix;
mod module;
mod names;
mod read;
mod split;
mod write;

pub use checkpoint::{Checkpoint, Conversion, LoadReport};
pub use hugging_face::{Architecture, HuggingFaceConfig};
pub use layout::QkvLayout;
pub use names::{AttentionNames, NormNames, QkvNames, ScaleNames, WeightNames};
pub use split::SplitCheckpoint;
pub use write::CheckpointWriter;
