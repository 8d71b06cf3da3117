//! Errors of loading.

use std::path::PathBuf;

use super::{ConfigError, list, nearest_hint};

/// What can go wrong when weights are read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The file could not be read.
    #[error("cannot read {path}: {cause}")]
    File {
        /// The path.
        path: PathBuf,
        /// What the operating system or the parser said.
        cause: String,
    },
    /// The checkpoint lacks a tensor that the module needs.
    #[error("the checkpoint has no tensor `{name}`{}", nearest_hint(.nearest))]
    Missing {
        /// The name that was looked up.
        name: String,
        /// The name in the file that is spelled most like it.
        nearest: Option<String>,
    },
    /// The checkpoint has a tensor that the module has no place for.
    #[error("the checkpoint has `{name}`, and the module was built without it; {remedy}")]
    Unexpected {
        /// The tensor.
        name: String,
        /// What to set.
        remedy: String,
    },
    /// The tensor has another shape.
    #[error(
        "tensor `{name}` is {found:?} and the module expects {expected:?}; check the configuration (and the QKV layout)"
    )]
    Shape {
        /// The tensor.
        name: String,
        /// Shape that the module needs.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// The tensor has an element type that is not converted.
    #[error("tensor `{name}` has elements of type {found}; weights are read from F64, F32, F16 or BF16")]
    ElementType {
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// A weight that is to become int8 is infinite or NaN.
    #[error(
        "the weight from input {input} to output {output} is not finite, and int8 has no such number; \
         mend the checkpoint, or keep the matrix dense"
    )]
    NotFinite {
        /// Output feature.
        output: usize,
        /// Input feature.
        input: usize,
    },
    /// The module has a norm in front and the names do not say where the checkpoint keeps it.
    #[error(
        "the module normalises its input and `AttentionNames::norm` is None; name the norm, or set `pre_layer_norm` to false"
    )]
    NoNormNames,
    /// Not every tensor of the checkpoint was used.
    #[error(
        "{} tensors of the checkpoint were not used: {}; load them, or name them in `Checkpoint::ignore`",
        .0.len(), list(.0)
    )]
    Unused(Vec<String>),
    /// The configuration of the checkpoint cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
