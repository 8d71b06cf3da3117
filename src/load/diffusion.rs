//! Reads and writes the attention of diffusion models.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn_deepspeed_core::checkpoint::{AttentionNames, Checkpoint, CheckpointWriter, JointNames, SplitCheckpoint};

use super::reader::{LayerFiles, LayerReader};
use super::tensors::WriteTensors;
use super::written::{write_head_weights, write_projections, write_qkv_and_output};
use crate::attention::{DeepSpeedDiffusersAttention, DeepSpeedJointAttention, DeepSpeedVaeAttention, JointStream};
use crate::error::WeightError;
use crate::spec::AttentionSpec;

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
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
        let (qkv, output) = reader.projections(self.qkv(), self.output())?;
        Ok(Self { projections: self.projections.with_weights(qkv, output) }.no_grad())
    }

    /// See [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        write_projections(writer, names, self.spec(), (self.qkv(), None, self.output()))
    }
}

impl<B: Backend> DeepSpeedJointAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`](crate::DeepSpeedSelfAttention::load).
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &JointNames) -> Result<Self, WeightError> {
        let files = LayerFiles::whole(checkpoint, self.spec());
        self.read(files, names)
    }

    /// See [`DeepSpeedSelfAttention::load_split`](crate::DeepSpeedSelfAttention::load_split).
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::load_split`](crate::DeepSpeedSelfAttention::load_split).
    pub fn load_split(self, split: &SplitCheckpoint, names: &JointNames) -> Result<Self, WeightError> {
        let files = LayerFiles::split(split, self.spec())?;
        self.read(files, names)
    }

    fn read(self, files: LayerFiles<'_>, names: &JointNames) -> Result<Self, WeightError> {
        let image = self.image.read(files, &names.image, self.spec())?;
        let text = self.text.as_ref().map(|text| text.read(files, &names.text, self.spec())).transpose()?;
        Ok(self.with_streams(image, text).no_grad())
    }

    /// See [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    pub fn write(&self, writer: &mut CheckpointWriter, names: &JointNames) -> Result<(), WeightError> {
        self.image.write(writer, &names.image, self.spec())?;
        self.text.as_ref().map_or(Ok(()), |text| text.write(writer, &names.text, self.spec()))
    }
}

impl<B: Backend> JointStream<B> {
    fn read(&self, files: LayerFiles<'_>, names: &AttentionNames, spec: &AttentionSpec) -> Result<Self, WeightError> {
        let reader = LayerReader::new(files, names, spec, &self.qkv().first().device())?;
        let query_key_norm = reader.query_key_norm(self.query_key_norm())?;
        let (qkv, output) = reader.qkv_and_output(self.qkv(), self.output())?;
        Ok(Self { qkv, query_key_norm, output })
    }

    fn write(
        &self,
        writer: &mut CheckpointWriter,
        names: &AttentionNames,
        spec: &AttentionSpec,
    ) -> Result<(), WeightError> {
        if let Some(norm) = self.query_key_norm() {
            let names = names.qk_norm.as_ref().ok_or(WeightError::NoQkNormNames)?;
            write_head_weights(writer, &names.query, norm.query(), spec)?;
            if let Some(key) = norm.key() {
                write_head_weights(writer, &names.key, key, spec)?;
            }
        }
        write_qkv_and_output(writer, names, spec, (self.qkv(), self.output()))
    }
}

impl<B: Backend> DeepSpeedVaeAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`](crate::DeepSpeedSelfAttention::load).
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor; [`WeightError::NoNormNames`].
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = LayerFiles::whole(checkpoint, self.spec());
        let reader = LayerReader::new(files, names, self.spec(), &self.output().device())?;
        let norm = reader.group_norm(self.norm())?;
        let (qkv, output) = reader.projections(self.qkv(), self.output())?;
        Ok(Self { norm, projections: self.projections.with_weights(qkv, output), ..self }.no_grad())
    }

    /// See [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::write`](crate::DeepSpeedSelfAttention::write).
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        let norm = names.norm.as_ref().ok_or(WeightError::NoNormNames)?;
        writer.tensor(&norm.gamma, self.norm().gamma())?;
        writer.tensor(&norm.beta, self.norm().beta())?;
        write_projections(writer, names, self.spec(), (self.qkv(), None, self.output()))
    }
}
