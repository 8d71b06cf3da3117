//! Reads and writes self-attention.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn_deepspeed_core::checkpoint::{AttentionNames, Checkpoint, CheckpointWriter, Part, SplitCheckpoint};

use super::reader::{LayerFiles, LayerReader};
use super::tensors::WriteTensors;
use super::written::{write_head_weights, write_norm, write_projections};
use crate::attention::DeepSpeedSelfAttention;
use crate::error::WeightError;

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// The module with the weights of a checkpoint: converted to its element type, in its layout, cut to the heads of its rank.
    /// Parameters do not require gradients; [`with_training`](Self::with_training) changes that.
    ///
    /// An int8 module stays int8: int8 matrices of the checkpoint keep their bytes, [scales](super::ScaleNames) and blocks, and
    /// dense ones are rounded in the blocks of the module. In a dense module, int8 matrices become dense. Under a
    /// [`matrix_format`](crate::DeepSpeedInferenceConfig::matrix_format) rows keep the format of the file.
    ///
    /// Only the rank's part of each matrix is read. If `training_mp_size` is above 1, a QKV matrix in the layout
    /// [`Concat`](super::QkvLayout::Concat) is what `torch.cat` makes of the files of that many ranks:
    /// [`PerRank`](super::QkvLayout::PerRank).
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = LayerFiles::whole(checkpoint, self.spec());
        self.read(files, names)
    }

    /// [`load`](Self::load), from the files of the ranks that wrote the checkpoint. The number of files need not be the number of
    /// ranks: this rank reads its part from each, and every element keeps its value. Names, layout and orientation are those of
    /// one file.
    ///
    /// ```
    /// # use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig};
    /// # use burn_deepspeed::load::{AttentionNames, CheckpointWriter, NormNames, QkvLayout, QkvNames, SplitCheckpoint, WeightNames};
    /// # use burn_deepspeed::weight::Orientation;
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let device = Default::default();
    /// # let qkv = QkvNames::fused("qkv", QkvLayout::Concat);
    /// # let names = AttentionNames::new(qkv, WeightNames::of("output"), Orientation::OutputInput);
    /// # let names = names.with_norm(NormNames::of("norm"));
    /// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
    /// let paths = [0, 1].map(|rank| folder.path().join(format!("mp_rank_0{rank}.safetensors")));
    /// for (rank, path) in paths.iter().enumerate() {
    ///     let config = config.clone().with_mp_size(2).with_local_rank(Some(rank));
    ///     let mut writer = CheckpointWriter::default();
    ///     config.init_self_attention::<NdArray>(0, &device)?.write(&mut writer, &names)?;
    ///     writer.save(path)?;
    /// }
    ///
    /// // written by two ranks, read by the third of four
    /// let split = SplitCheckpoint::open(&paths)?;
    /// let config = config.with_mp_size(4).with_local_rank(Some(2)).with_training_mp_size(2);
    /// let attention = config.init_self_attention::<NdArray>(0, &device)?.load_split(&split, &names)?;
    /// println!("{}", split.finish()?);
    /// # let _ = attention;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor and the file; [`WeightError::FileCount`] if `training_mp_size` is above 1 and not
    /// the number of files; [`ConfigError::Ranks`](crate::ConfigError::Ranks) if that many ranks cannot have written these heads.
    pub fn load_split(self, split: &SplitCheckpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = LayerFiles::split(split, self.spec())?;
        self.read(files, names)
    }

    fn read(self, files: LayerFiles<'_>, names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = LayerReader::new(files, names, self.spec(), &self.output().device())?;
        let norm = self.norm().map(|module| reader.norm(module)).transpose()?;
        let query_key_norm = reader.query_key_norm(self.query_key_norm())?;
        let sinks = reader.sinks()?;
        let (qkv, output) = reader.projections(self.qkv(), self.output())?;
        let gate = self.gate().map(|module| reader.part(Part::Gate, module)).transpose()?;
        let projections = self.projections.with_weights(qkv, output);
        Ok(Self { norm, projections, query_key_norm, sinks, gate }.no_grad())
    }

    /// Writes the parameters under these names, in their layout and orientation: floats in their own type, int8 matrices as int8
    /// with their scales, and matrices of blocks byte for byte. [`load`](Self::load) reads the same weights, bit for bit; int8 blocks
    /// that do not divide a matrix evenly are read as smaller ones. Blocks need a path that ends in `.gguf` in
    /// [`save`](CheckpointWriter::save), `[out, in]` as the orientation, and one format for all rows of a tensor: a fused projection
    /// whose rows differ in format is written under separate names.
    ///
    /// One of several ranks writes its part, a file of a [`SplitCheckpoint`]; [`load_split`](Self::load_split) reads the files on
    /// any number of ranks.
    ///
    /// ```
    /// # use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig};
    /// # use burn_deepspeed::load::{AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, WeightNames};
    /// # use burn_deepspeed::weight::Orientation;
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("model.safetensors");
    /// let device = Default::default();
    /// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Int8);
    /// let attention = config.init_self_attention::<NdArray>(0, &device)?;
    /// let mut writer = CheckpointWriter::default();
    /// let qkv = QkvNames::fused("qkv", QkvLayout::Concat);
    /// let names = AttentionNames::new(qkv, WeightNames::of("output"), Orientation::OutputInput);
    /// let names = names.with_norm(NormNames::of("norm"));
    /// attention.write(&mut writer, &names)?;
    /// writer.save(&path)?;
    ///
    /// let checkpoint = Checkpoint::open(&path)?;
    /// let read = config.init_self_attention::<NdArray>(0, &device)?.load(&checkpoint, &names)?;
    /// assert_eq!(read.output().matrix().into_data(), attention.output().matrix().into_data());
    ///
    /// // Blocks go into a GGUF, and a module that keeps what is stored has the same.
    /// use burn_deepspeed::config::MatrixFormat;
    /// use burn_deepspeed::weight::{BlockFormat, BlockMatrix};
    /// # let path = folder.path().join("model.gguf");
    /// let config = config.with_dtype(DataType::Fp32);
    /// let attention = config.init_self_attention::<NdArray>(0, &device)?.quantize_blocks(BlockFormat::Q8_0)?;
    /// let mut writer = CheckpointWriter::default();
    /// attention.write(&mut writer, &names)?;
    /// writer.save(&path)?;
    ///
    /// let stored = config.with_matrix_format(MatrixFormat::Stored);
    /// let read = stored.init_self_attention::<NdArray>(0, &device)?.load(&Checkpoint::open(&path)?, &names)?;
    /// let bytes = |weight: Option<&BlockMatrix<NdArray>>| weight.map(|blocks| blocks.bytes().into_data());
    /// assert_eq!(bytes(read.output().blocks()), bytes(attention.output().blocks()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`WeightError::NoNormNames`], [`WeightError::NoQkNormNames`], [`WeightError::NoSinkName`], [`WeightError::NoGateNames`],
    /// [`WeightError::UnexpectedGate`], [`WeightError::NotSeparateNames`], [`WeightError::SharedHeadWeights`],
    /// [`WeightError::MergeCount`], [`WeightError::SeveralFormats`], [`WeightError::TransposedBlocks`], and
    /// [`ConfigError::Ranks`](crate::ConfigError::Ranks) if the heads do not split over the ranks of
    /// [`QkvLayout::PerRank`](super::QkvLayout::PerRank).
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        if let Some(norm) = self.norm() {
            let names = names.norm.as_ref().ok_or(WeightError::NoNormNames)?;
            write_norm(writer, names, norm)?;
        }
        if let Some(norm) = self.query_key_norm() {
            let names = names.qk_norm.as_ref().ok_or(WeightError::NoQkNormNames)?;
            write_head_weights(writer, &names.query, norm.query(), self.spec())?;
            if let Some(key) = norm.key() {
                write_head_weights(writer, &names.key, key, self.spec())?;
            }
        }
        if let Some(sinks) = self.sinks() {
            writer.tensor(names.sinks.as_ref().ok_or(WeightError::NoSinkName)?, sinks.values())?;
        }
        write_projections(writer, names, self.spec(), (self.qkv(), self.gate(), self.output()))
    }
}
