//! Writes tensors into a safetensors or GGUF file; int8 matrices as int8, and blocks as blocks.

mod block_rows;
mod complete;
mod int8_rows;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::tensor::TensorView;

use super::gguf::{Gguf, Metadata, NewFile};
use super::int8::BlockedInt8;
use super::names::ScaleNames;
use super::stored::StoredElement;
use super::tensor::NewTensor;
use crate::block::BlockRows;
use crate::element::ElementType;
use crate::error::WeightError;
use crate::layout::Orientation;

/// A checkpoint file that is being written: a GGUF of version 3 if it is saved under a name that ends in `.gguf`, else safetensors. A
/// name that is written again is replaced.
///
/// | | safetensors | GGUF |
/// | --- | --- | --- |
/// | matrices of [blocks](Self::blocks) | an error, unless they are floats | as they are in memory |
/// | element types | all | F64, F32, F16, BF16, I64, I32, I16, I8 |
/// | axes of a tensor | any number | at most 4 |
/// | bytes of a name | any number | at most 63 |
/// | [`metadata`](Self::metadata) | texts | all |
///
/// A GGUF keeps the names that are written, and [`Checkpoint::open`](super::Checkpoint::open) finds the tensors under them, unless the
/// metadata has `general.architecture`. That says that names and rows are those of llama.cpp for the architecture; then write them so.
///
/// ```
/// # use burn_deepspeed_core::block::{BlockFormat, BlockRows};
/// # use burn_deepspeed_core::checkpoint::{Checkpoint, CheckpointWriter, Floats, Gguf, Metadata};
/// # use burn_deepspeed_core::element::ElementType;
/// # use burn_deepspeed_core::layout::Orientation;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("layer.gguf");
/// let values: Vec<f32> = (0..2 * 64).map(|at| at as f32).collect(); // 2 outputs of 64 inputs
/// let rows = BlockRows::quantise(&values, [2, 64], BlockFormat::Q8_0).ok_or("rows are no whole blocks")?;
/// let mut writer = CheckpointWriter::default();
/// writer.blocks("mlp.weight", Orientation::OutputInput, (&[rows], &[0, 1]))?;
/// writer.metadata("general.name", "a layer");
/// writer.save(&path)?;
///
/// let checkpoint = Checkpoint::open(&path)?;
/// let Floats::F32(read) = checkpoint.floats("mlp.weight", &[2, 64], &[0..2, 0..64], ElementType::F32)? else {
///     unreachable!("f32 was asked for");
/// };
/// assert!((read[127] - 127.0).abs() < 0.5);
/// assert_eq!(Gguf::open(&path)?.value("general.name"), Some(&Metadata::Text("a layer".into())));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct CheckpointWriter {
    tensors: BTreeMap<String, NewTensor>,
    metadata: BTreeMap<String, Metadata>,
}

impl CheckpointWriter {
    /// Adds a tensor with these elements, row by row, in little-endian bytes.
    pub fn insert(&mut self, name: &str, element: ElementType, shape: Vec<usize>, bytes: Vec<u8>) {
        self.tensors.insert(name.into(), NewTensor { element: StoredElement::of(element), shape, bytes });
    }

    /// Adds an int8 matrix, stored as `orientation` says, and its scales in DeepSpeed's order. Its outputs are those of
    /// `matrices`, counted through all of them, in this order.
    ///
    /// # Errors
    /// [`WeightError::MergeCount`].
    ///
    /// # Panics
    /// If there is no matrix, or if `order` names an output that is not there.
    pub fn int8(
        &mut self,
        name: &str,
        names: &ScaleNames,
        orientation: Orientation,
        (matrices, order): (&[BlockedInt8], &[usize]),
    ) -> Result<(), WeightError> {
        let rows = int8_rows::Rows::new(matrices, order);
        let scales = rows.scales(name, names)?;
        let (elements, shape) = rows.elements(orientation);
        self.insert(name, ElementType::I8, shape.to_vec(), elements);
        let shape = vec![scales.len()];
        self.insert(&names.tensor, ElementType::F32, shape, scales.into_iter().flat_map(f32::to_le_bytes).collect());
        Ok(())
    }

    /// Adds a matrix of blocks, byte for byte. Its outputs are those of `matrices`, counted through all of them, in this order. Rows of
    /// floats make a tensor of floats in their type, which either kind of file holds; rows of several types of floats become f32, which
    /// loses nothing.
    ///
    /// # Errors
    /// [`WeightError::SeveralFormats`] if rows are in several formats and not all of them are floats; [`WeightError::TransposedBlocks`]
    /// for blocks that are to be stored `[in, out]`.
    ///
    /// # Panics
    /// If there is no matrix, if `order` names an output that is not there, if rows differ in length, or if the bytes of a matrix are not
    /// those of its rows.
    pub fn blocks(
        &mut self,
        name: &str,
        orientation: Orientation,
        (matrices, order): (&[BlockRows], &[usize]),
    ) -> Result<(), WeightError> {
        let tensor = block_rows::tensor(name, orientation, (matrices, order))?;
        self.tensors.insert(name.into(), tensor);
        Ok(())
    }

    /// Adds a value to the header; a key that is set again is replaced. [`save`](Self::save) checks keys and values.
    ///
    /// In a GGUF a value has the first type that holds it exactly. Integers: u32, i32, i64; those of an array i32, u32, i64. Floats: f32,
    /// f64. llama.cpp reads its keys in f32 only, so give it `1e-5f32` and not `1e-5`. `general.alignment` is the alignment of
    /// tensors in bytes, a power of two from 8 to 65536. Default: 32. A file with blocks has `general.quantization_version`. Default: 2.
    ///
    /// In a safetensors file the values, which are texts, are in `__metadata__`.
    pub fn metadata(&mut self, key: &str, value: impl Into<Metadata>) {
        self.metadata.insert(key.into(), value.into());
    }

    /// Writes the file: GGUF if the path ends in `.gguf`, in any case, else safetensors. A file of this name is replaced once the new
    /// one is complete; after an error it is as it was.
    ///
    /// # Errors
    /// Before anything is written: [`WeightError::ByteCount`] for a tensor that [`insert`](Self::insert) was given with other bytes than
    /// those of its shape; [`WeightError::BlocksInSafetensors`]; [`WeightError::GgufAxes`], [`WeightError::GgufElement`],
    /// [`WeightError::GgufName`] and [`WeightError::GgufHeader`] for what a GGUF cannot hold; [`WeightError::Metadata`].
    /// [`WeightError::Write`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), WeightError> {
        let path = path.as_ref();
        self.tensors.iter().try_for_each(|(name, tensor)| tensor.check(name))?;
        match Gguf::is_named(path) {
            true => self.save_gguf(path),
            false => self.save_safetensors(path),
        }
    }

    fn save_gguf(&self, path: &Path) -> Result<(), WeightError> {
        let file = NewFile::new(&self.metadata, &self.tensors)?;
        let write = |new: &Path| -> io::Result<()> {
            let mut into = BufWriter::new(File::create(new)?);
            file.write(&mut into)?;
            into.flush()
        };
        complete::complete(path, |new| write(new).map_err(|cause| cause.to_string()))
    }

    fn save_safetensors(&self, path: &Path) -> Result<(), WeightError> {
        let failed =
            |cause: safetensors::SafeTensorError| WeightError::Write { path: path.into(), cause: cause.to_string() };
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, NewTensor { element, shape, bytes }) in &self.tensors {
            let dtype = match *element {
                StoredElement::Plain(dtype) => dtype,
                StoredElement::Blocks(format) => {
                    return Err(WeightError::BlocksInSafetensors { name: name.clone(), format });
                }
            };
            views.push((name, TensorView::new(dtype, shape.clone(), bytes).map_err(failed)?));
        }
        let mut texts = HashMap::new();
        for (key, value) in &self.metadata {
            let Metadata::Text(text) = value else {
                let expected = "safetensors files hold texts; make it a text, or save to a path that ends in `.gguf`";
                return Err(WeightError::Metadata { key: key.clone(), value: value.to_string(), expected });
            };
            texts.insert(key.clone(), text.clone());
        }
        let texts = (!texts.is_empty()).then_some(texts);
        complete::complete(path, |new| {
            safetensors::serialize_to_file(views, texts, new).map_err(|cause| cause.to_string())
        })
    }
}
