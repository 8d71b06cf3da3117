//! Projections outside of attention, into a file.

use burn::tensor::backend::Backend;
use burn_deepspeed_core::checkpoint::{CheckpointWriter, WeightNames};
use burn_deepspeed_core::layout::Orientation;

use super::written::{in_order, write_weight};
use crate::error::WeightError;
use crate::weight::Weight;

/// Adds projections to a [`CheckpointWriter`]; [`ParameterReader::projection`](super::ParameterReader::projection) reads them.
pub trait WriteProjections {
    /// Adds a projection: its bias, if it has one, and its matrix in the form that it has in memory. Floats keep their type, int8 is
    /// written with its scales, and blocks byte for byte. `orientation` is how the file stores the matrix.
    ///
    /// ```
    /// # use burn::tensor::DType;
    /// # use burn_deepspeed::load::{Checkpoint, CheckpointWriter, ParameterReader, WeightNames, WeightPart, WriteProjections};
    /// # use burn_deepspeed::weight::{BlockFormat, Orientation, Weight};
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("model.gguf");
    /// let (device, names) = (Default::default(), WeightNames::of("mlp.up"));
    /// // 64 inputs and 32 outputs, rounded to the nearest blocks
    /// let up = Weight::<NdArray>::init(64, 32, true, Orientation::OutputInput, DType::F32, &device);
    /// let up = up.quantize_blocks(BlockFormat::Q4_0)?;
    /// let mut writer = CheckpointWriter::default();
    /// writer.projection(&names, Orientation::OutputInput, &up)?;
    /// writer.save(&path)?;
    ///
    /// let checkpoint = Checkpoint::open(&path)?;
    /// let reader = ParameterReader::<NdArray>::new(&checkpoint, DType::F32, &device);
    /// // a module that keeps what is stored
    /// let fresh = Weight::init_blocks(64, 32, true, None, DType::F32, &device)?;
    /// let read = reader.projection(&fresh, &names, Orientation::OutputInput, &WeightPart::Whole)?;
    /// let bytes = |weight: &Weight<NdArray>| weight.blocks().map(|blocks| blocks.bytes().into_data());
    /// assert_eq!(bytes(&read), bytes(&up));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`WeightError::MergeCount`] for int8; [`WeightError::SeveralFormats`] and [`WeightError::TransposedBlocks`] for blocks.
    fn projection<B: Backend>(
        &mut self,
        names: &WeightNames,
        orientation: Orientation,
        weight: &Weight<B>,
    ) -> Result<(), WeightError>;
}

impl WriteProjections for CheckpointWriter {
    fn projection<B: Backend>(
        &mut self,
        names: &WeightNames,
        orientation: Orientation,
        weight: &Weight<B>,
    ) -> Result<(), WeightError> {
        write_weight(self, names, orientation, (&[weight], &in_order(&[weight])))
    }
}
