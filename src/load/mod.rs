//! Weights from safetensors and GGUF files: names, QKV layouts, conversion, and a strict report.
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
//! model.check(&checkpoint)?;
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
//! Everything around attention is read with a [`ParameterReader`] and written with [`WriteProjections`], single tensors with [`ReadTensors`]
//! and [`WriteTensors`].
//!
//! Matrices that a checkpoint keeps in int8 stay int8 in an int8 module, byte for byte, and become dense in a dense one; see
//! [`ScaleNames`]. Matrices of blocks of a GGUF file stay so in a module that asks for it. [`CheckpointWriter`] writes both again.
//!
//! A rank reads its part of each matrix and nothing else of the file. [`SplitCheckpoint`] is what several ranks wrote, a file
//! each; it loads into any number of ranks.
//!
//! Burn's own records are loaded and saved with Burn's recorders: the modules are ordinary Burn modules.

mod attention;
mod cross;
mod diffusion;
mod latent;
mod parameters;
mod projection;
mod reader;
mod tensors;
mod written;

pub use burn_deepspeed_core::checkpoint::families::{self, Family};
pub use burn_deepspeed_core::checkpoint::gguf::{self, Gguf, Metadata};
pub use burn_deepspeed_core::checkpoint::{
    AttentionNames, Checkpoint, CheckpointWriter, ConfigOptions, Conversion, EncoderDecoderConfig, FeatureShape,
    HeadWeightNames, HuggingFaceConfig, JointNames, LatentNames, LoadReport, NormNames, QkNormNames, QkvLayout,
    QkvNames, ScaleFormat, ScaleNames, Side, SplitCheckpoint, Stack, WeightNames, WeightPart,
};
pub use parameters::ParameterReader;
pub use projection::WriteProjections;
pub use tensors::{PackQkv, ReadTensors, WriteTensors};
