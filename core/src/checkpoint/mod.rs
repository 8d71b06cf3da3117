//! Checkpoints on disk: safetensors and GGUF files, the names and layouts of their tensors, and the `config.json` next to them.
//!
//! A [`Checkpoint`] reads what is asked for and nothing else of the file. [`AttentionFiles`] finds the projections of one layer
//! in one file or in those of several ranks, and [`ProjectionParts`] assembles a matrix from its pieces. [`CheckpointWriter`]
//! writes a file of either format. [`families`] has one record for each model family, [`HuggingFaceConfig`] what a `config.json` says,
//! and [`EncoderDecoderConfig`] that of a model with an encoder and a decoder.

mod attention;
mod block_rows;
mod class;
mod composite;
mod data_file;
mod decoder;
mod encoder;
mod encoder_decoder;
mod encoder_decoder_config;
mod experts;
pub mod families;
mod family;
mod files;
mod flag;
mod float;
mod folder;
mod generation_config;
pub mod gguf;
mod hugging_face;
mod int8;
mod known;
mod latent_names;
mod layer_kinds;
mod layer_paths;
mod layer_types;
mod layered_rope;
mod layout;
mod matrix;
mod names;
mod only;
mod options;
mod pair;
mod parts;
mod piece;
pub mod replicated;
mod report;
mod rope;
mod routing;
mod runs;
mod safetensors_header;
mod scale_format;
mod split;
mod stored;
mod tensor;
mod window;
mod wrapper;
mod write;

pub use attention::{AttentionFiles, QkvSources};
pub use encoder_decoder_config::{EncoderDecoderConfig, FeatureShape, Stack};
pub use files::Checkpoint;
pub use float::{Float, Floats};
pub use gguf::{Gguf, Metadata};
pub use hugging_face::HuggingFaceConfig;
pub use int8::BlockedInt8;
pub use latent_names::LatentNames;
pub use layout::{Head, Part, QkvLayout, whole};
pub use names::{
    AttentionNames, HeadWeightNames, JointNames, NormNames, QkNormNames, QkvNames, ScaleNames, WeightNames,
};
pub use options::ConfigOptions;
pub use pair::Side;
pub use parts::{ProjectionParts, WeightPart};
pub use report::{Conversion, LoadReport};
pub use scale_format::ScaleFormat;
pub use split::SplitCheckpoint;
pub use write::CheckpointWriter;
