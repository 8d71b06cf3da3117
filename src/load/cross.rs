//! Reads and writes cross attention.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn_deepspeed_core::checkpoint::{AttentionNames, Checkpoint, CheckpointWriter, Part, SplitCheckpoint};

use super::reader::{LayerFiles, LayerReader};
use super::written::{write_norm, write_projections};
use crate::attention::DeepSpeedCrossAttention;
use crate::error::WeightError;
use crate::weight::{Matrix, QkvWeight, SeparateQkv};

impl<B: Backend> DeepSpeedCrossAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`](crate::DeepSpeedSelfAttention::load).
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = LayerFiles::whole(checkpoint, self.spec());
        self.read(files, names)
    }

    /// See [`DeepSpeedSelfAttention::load_split`](crate::DeepSpeedSelfAttention::load_split).
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::load_split`](crate::DeepSpeedSelfAttention::load_split).
    pub fn load_split(self, split: &SplitCheckpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = LayerFiles::split(split, self.spec())?;
        self.read(files, names)
    }

    fn read(self, files: LayerFiles<'_>, names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = LayerReader::new(files, names, self.spec(), &self.output().device())?;
        let norm = self.norm().map(|module| reader.norm(module)).transpose()?;
        let query = reader.part(Part::Query, self.query())?;
        let (key, value) = (reader.part(Part::Key, &self.key)?, reader.part(Part::Value, &self.value)?);
        let output = reader.output(self.output())?;
        let projections = self.projections.with_weights(QkvWeight::Fused(query), output);
        Ok(Self { norm, projections, key, value }.no_grad())
    }

    /// See [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        if let Some(norm) = self.norm() {
            write_norm(writer, names.norm.as_ref().ok_or(WeightError::NoNormNames)?, norm)?;
        }
        let [query, key, value] = [self.query(), &self.key, &self.value].map(|weight| {
            // A clone of a parameter that was never read draws other values.
            match weight.stored() {
                Matrix::Dense(matrix) => _ = matrix.values(),
                Matrix::Int8(matrix) => _ = (matrix.elements(), matrix.scales()),
                Matrix::Blocks(matrix) => _ = matrix.bytes(),
            }
            weight.clone()
        });
        let qkv = QkvWeight::Separate(SeparateQkv { query, key, value });
        write_projections(writer, names, self.spec(), (&qkv, None, self.output()))
    }
}
