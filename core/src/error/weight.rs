//! Errors of loading and writing.

use std::path::PathBuf;

use crate::error::config::ConfigError;
use crate::spelling::{list, nearest_hint};

/// What can go wrong when weights are read or written.
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
    #[error(
        "tensor `{name}` has elements of type {found}; weights are read from F64, F32, F16 or BF16, and matrices from I8, too"
    )]
    ElementType {
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// An integer does not fit the type that it is read into.
    #[error("tensor `{name}` holds {value}, and integers are read as i64; the largest is {}", i64::MAX)]
    IntegerTooLarge {
        /// The tensor.
        name: String,
        /// The integer.
        value: u64,
    },
    /// A matrix of int8 without its scales.
    #[error(
        "the checkpoint has `{matrix}` in int8 and no scales `{scales}`{}; save them under this name, in f32, or name them in \
         `WeightNames::scales`", nearest_hint(.nearest)
    )]
    NoScales {
        /// The matrix.
        matrix: String,
        /// The name of the scales that was looked up.
        scales: String,
        /// The name in the file that is spelled most like it.
        nearest: Option<String>,
    },
    /// The scales of an int8 matrix do not divide it into groups of equal length.
    #[error(
        "`{scales}` has {found} scales for the {outputs} outputs and {inputs} inputs of `{matrix}` in {parts} parts, which they \
         do not divide into equal groups; each part has the same number of scales, a divisor of its {} elements: check `merge_count`",
        .outputs * .inputs / .parts
    )]
    ScaleCount {
        /// The matrix.
        matrix: String,
        /// Its scales.
        scales: String,
        /// How many there are.
        found: usize,
        /// Outputs of the matrix.
        outputs: usize,
        /// Inputs of the matrix.
        inputs: usize,
        /// Parts that it was merged from.
        parts: usize,
    },
    /// Three numbers that may be three scales, or one scale and the scales of the two halves of the matrix.
    #[error(
        "`{0}` is [1, 3]: three scales, or one scale and those of the two halves of the matrix (DeepSpeed's `GroupQuantizer`); \
         save it as [1] or [3]"
    )]
    AmbiguousScales(String),
    /// An int8 matrix cannot have been merged from this number of parts.
    #[error(
        "`{matrix}` has {inputs} inputs, which cannot come from 2^{merge_count} parts; `merge_count` is the base-2 logarithm of \
         the partitions, here at most {}", .inputs.trailing_zeros()
    )]
    MergeCount {
        /// The matrix.
        matrix: String,
        /// Inputs of the matrix.
        inputs: usize,
        /// Base-2 logarithm of the parts.
        merge_count: u32,
    },
    /// No file of a split checkpoint was named.
    #[error("no file was named; a split checkpoint has one for each rank that wrote it: name them in rank order")]
    NoFiles,
    /// The number of files of a split checkpoint is not `training_mp_size`.
    #[error(
        "{files} files were named and `training_mp_size` is {ranks}, the number of ranks that wrote the checkpoint; name the file of every \
         rank, in rank order, or set `training_mp_size` to {files}"
    )]
    FileCount {
        /// Files that were named.
        files: usize,
        /// Ranks that wrote the checkpoint.
        ranks: usize,
    },
    /// An error in one of the files of a split checkpoint.
    #[error("in {path}: {error}")]
    InFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        error: Box<WeightError>,
    },
    /// A tensor that every rank has whole is not the same in two files of a split checkpoint.
    #[error(
        "`{name}` is not the same in {first} and {other}, and every rank has all of it; name the files of one checkpoint",
        first = .files[0].display(), other = .files[1].display()
    )]
    Replicas {
        /// The tensor.
        name: String,
        /// The two files.
        files: [PathBuf; 2],
    },
    /// A file could not be written.
    #[error("cannot write {path}: {cause}; check the folder, the rights and the space on the disk")]
    Write {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        cause: String,
    },
    /// A weight that is to become int8 is infinite or NaN.
    #[error(
        "the weight from input {input} to output {output} is not finite, and int8 has no such number; \
         correct the checkpoint, or keep the matrix dense"
    )]
    NotFinite {
        /// Output feature.
        output: usize,
        /// Input feature.
        input: usize,
    },
    /// The module normalises its input, and the names do not name the norm in the checkpoint.
    #[error(
        "the module normalises its input and `AttentionNames::norm` is None; name the norm, or set `pre_layer_norm` to false"
    )]
    NoNormNames,
    /// The module normalises queries and keys with weights, and the names do not name these in the checkpoint.
    #[error(
        "the module normalises queries and keys and `AttentionNames::qk_norm` is None; name the norm with `with_qk_norm`, or set \
         `qk_norm` to None"
    )]
    NoQkNormNames,
    /// The heads share the weights of their norm, and the names name those of each head.
    #[error(
        "all heads share the weights of their norm, and `AttentionNames::qk_norm` names a tensor for each head, such as `{0}`; name \
         one tensor, or set `qk_norm.weights` to per_head"
    )]
    SharedHeadWeights(String),
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
