//! Errors of loading and writing.

use std::path::PathBuf;

use crate::block::BlockFormat;
use crate::error::config::ConfigError;
use crate::error::remedy::{convert, found, or_held};
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
    /// The folder has no safetensors file.
    #[error(
        "{folder} has no `model.safetensors` and no `model.safetensors.index.json`{}; {}",
        found(.files), convert(.files)
    )]
    NoSafetensors {
        /// The folder, or the file that was named in its place.
        folder: PathBuf,
        /// Files of weights that it has, in other formats or under other names.
        files: Vec<String>,
    },
    /// The index of a checkpoint names a file for a tensor that the file does not have.
    #[error("{index} says that `{name}` is in {file}, which does not have it; download both files again")]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        name: String,
        /// The file that should have it.
        file: String,
    },
    /// Two files of a checkpoint have the same tensor, and the index names neither.
    #[error("`{name}` is in {} and in {}, and the index does not say which to read; remove it from one, or name it in the index",
        .files[0], .files[1])]
    InTwoShards {
        /// The tensor.
        name: String,
        /// The two files.
        files: [String; 2],
    },
    /// The checkpoint lacks a tensor that the module needs.
    #[error("the checkpoint has no tensor `{name}`{}", or_held(.nearest, .held))]
    Missing {
        /// The name that was looked up.
        name: String,
        /// The name in the file that is spelled most like it.
        nearest: Option<String>,
        /// The names that the checkpoint has.
        held: Vec<String>,
    },
    /// The checkpoint has a tensor that the module has no place for.
    #[error("the checkpoint has `{name}`, and the module was built without it; {remedy}")]
    Unexpected {
        /// The tensor.
        name: String,
        /// What to set.
        remedy: String,
    },
    /// Rows of a matrix are no whole number of the blocks that were asked for.
    #[error("`{matrix}` has rows of {inputs} elements, and blocks of {format} have {elements}; ask for floats or int8")]
    BlocksDoNotDivide {
        /// The matrix.
        matrix: String,
        /// Elements of a row.
        inputs: usize,
        /// The format.
        format: BlockFormat,
        /// Elements of a block.
        elements: usize,
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
    /// The tensor has an element type that is not read here.
    #[error("tensor `{name}` has elements of type {found}; {expected}")]
    ElementType {
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
        /// What is read instead: [`WEIGHTS`](Self::WEIGHTS) or [`INTEGERS`](Self::INTEGERS).
        expected: &'static str,
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
    /// Scales in a shape that two formats share.
    #[error(
        "`{0}` has three columns, which is three scales for each row, or one scale and those of the two halves of the matrix \
         (DeepSpeed's `GroupQuantizer`); say which with `Checkpoint::with_scale_format`, or save it in one dimension"
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
    /// Rows of a matrix are in several formats, and a tensor of a file has one.
    #[error(
        "`{name}` has rows in {}, and a tensor of a file has one format; name queries, keys and values separately, or give all rows one \
         format with `quantize_blocks`", list(.formats)
    )]
    SeveralFormats {
        /// The tensor.
        name: String,
        /// The formats.
        formats: Vec<String>,
    },
    /// A matrix of blocks is to be stored `[in, out]`.
    #[error(
        "`{name}` is in blocks of {format}, which lie along its inputs, and is to be stored [in, out]; store it [out, in], or make it \
         floats with `quantize_blocks(BlockFormat::F32)`"
    )]
    TransposedBlocks {
        /// The tensor.
        name: String,
        /// The format.
        format: BlockFormat,
    },
    /// A matrix of blocks is to be saved in a safetensors file.
    #[error(
        "`{name}` is in blocks of {format}, which safetensors files do not have; save to a path that ends in `.gguf`, or make it floats \
         first, with `quantize_blocks(BlockFormat::F32)`"
    )]
    BlocksInSafetensors {
        /// The tensor.
        name: String,
        /// The format.
        format: BlockFormat,
    },
    /// A tensor was given with other bytes than those of its shape.
    #[error(
        "`{name}` was given with {bytes} bytes, which are not those of {shape:?} in {element}; give it one element for each place"
    )]
    ByteCount {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        element: String,
        /// The bytes that were given.
        bytes: usize,
    },
    /// A tensor has more axes than GGUF allows.
    #[error(
        "`{name}` has {} axes, {shape:?}, and a tensor of a GGUF file has at most {limit}; reshape it, or save to a path that ends in \
         `.safetensors`", .shape.len()
    )]
    GgufAxes {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Most axes.
        limit: usize,
    },
    /// A tensor has an element type that GGUF does not have.
    #[error(
        "`{name}` has elements of type {element}, and a GGUF file has F64, F32, F16, BF16, I64, I32, I16, I8 and blocks; convert it, or \
         save to a path that ends in `.safetensors`"
    )]
    GgufElement {
        /// The tensor.
        name: String,
        /// Its element type.
        element: String,
    },
    /// The name of a tensor is longer than GGUF allows.
    #[error(
        "the name `{name}` has {} bytes, and names in a GGUF file have at most {limit}; shorten it, or save to a path that ends in \
         `.safetensors`", .name.len()
    )]
    GgufName {
        /// The tensor.
        name: String,
        /// Most bytes.
        limit: usize,
    },
    /// The header of a GGUF file is longer than one that is read.
    #[error(
        "the header of the GGUF file has {bytes} bytes, and at most {limit} are read; leave out metadata, or write several files"
    )]
    GgufHeader {
        /// Bytes of the header.
        bytes: u64,
        /// Most bytes.
        limit: u64,
    },
    /// The metadata of a file that is written cannot be.
    #[error("the metadata `{key}` is {value}; {expected}")]
    Metadata {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is written.
        expected: &'static str,
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
    /// The norm has factors other than 1, and the names say that it has no weights.
    #[error(
        "the norm has factors other than 1, and its names are `unweighted`; write them as `{0}`, with `with_unweighted(false)`"
    )]
    WeightedNorm(String),
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
    /// The module has sinks, and the names do not name these in the checkpoint.
    #[error(
        "the module has sinks and `AttentionNames::sinks` is None; name the tensor with `with_sinks`, or set `sinks` to false"
    )]
    NoSinkName,
    /// The module has a gate on the context, and the names do not say where the checkpoint has its projection.
    #[error(
        "the module has a gate on the context, and the names have none; use `QkvNames::SeparateWithGate`, or set `context_gate` to \
         false"
    )]
    NoGateNames,
    /// The query projection of the checkpoint holds a gate on the context, and the module has none.
    #[error("`{0}` holds a gate on the context, and the module has none; set `context_gate` to true")]
    UnexpectedGate(String),
    /// The layer does not project its own keys and values, and the names are those of a matrix that holds them.
    #[error(
        "the layer has no projection of its own for keys or values (`kv_source`), and the names are of a matrix with all three; use \
         `QkvNames::Separate`, of which the names of what the layer lacks are not read"
    )]
    NotSeparateNames,
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

impl WeightError {
    /// The types of weights, for [`ElementType`](Self::ElementType).
    pub const WEIGHTS: &str = "weights are read from F64, F32, F16 or BF16, and matrices from I8, too";
    /// The types of integers, for [`ElementType`](Self::ElementType).
    pub const INTEGERS: &str =
        "integers are read from I64, I32, I16, I8, U64, U32, U16, U8 or BOOL; read floats with `tensor`";
}
