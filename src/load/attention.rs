//! Reads and writes the attention modules.

use std::slice;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_deepspeed_core::checkpoint::{
    AttentionFiles, AttentionNames, Checkpoint, CheckpointWriter, Part, ProjectionParts, QkvSources, SplitCheckpoint,
};

use super::parameters::{assembled, norm};
use super::tensors::WriteTensors;
use super::written::{write_head_weights, write_norm, write_projections};
use crate::attention::{DeepSpeedCrossAttention, DeepSpeedDiffusersAttention, DeepSpeedSelfAttention};
use crate::element::OfBackend;
use crate::error::WeightError;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, Matrix, QkvWeight, QueryKeyNorm, SeparateQkv, Sinks, Weight};

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// The module with the weights of a checkpoint: converted to its element type, in its layout, cut to the heads of its rank.
    /// Parameters do not require gradients; [`with_training`](Self::with_training) changes that.
    ///
    /// An int8 module stays int8: int8 matrices of the checkpoint keep their bytes, [scales](super::ScaleNames) and blocks, and
    /// dense ones are rounded in the blocks of the module. In a dense module, int8 matrices become dense.
    ///
    /// Only the rank's part of each matrix is read. If `training_mp_size` is above 1, a QKV matrix in the layout
    /// [`Concat`](super::QkvLayout::Concat) is what `torch.cat` makes of the files of that many ranks:
    /// [`PerRank`](super::QkvLayout::PerRank).
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let ranks = self.spec().training_ranks;
        self.read((slice::from_ref(checkpoint), ranks), names)
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
        let files = split.files_of(self.spec().training_ranks)?;
        self.read((files, 1), names)
    }

    fn read(self, files: (&[Checkpoint], usize), names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = LayerReader::new(files.0, names, self.spec(), self.output())?;
        let norm = self.norm().map(|module| reader.norm(module)).transpose()?;
        let query_key_norm = reader.query_key_norm(files.1, self.query_key_norm())?;
        let sinks = reader.sinks(files.1)?;
        let (qkv, output) = reader.projections(files.1, self.qkv(), self.output())?;
        let gate = self.gate().map(|module| reader.part(files.1, Part::Gate, module)).transpose()?;
        let projections = self.projections.with_weights(qkv, output);
        Ok(Self { norm, projections, query_key_norm, sinks, gate }.no_grad())
    }

    /// Writes the parameters under these names, in their layout and orientation: floats in their own type, int8 matrices as int8
    /// with their scales. [`load`](Self::load) reads the same weights, bit for bit; blocks that do not divide a matrix evenly are
    /// read as smaller ones.
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
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`WeightError::NoNormNames`], [`WeightError::NoQkNormNames`], [`WeightError::NoSinkName`], [`WeightError::NoGateNames`],
    /// [`WeightError::UnexpectedGate`], [`WeightError::SharedHeadWeights`], [`WeightError::MergeCount`], and
    /// [`ConfigError::Ranks`](crate::ConfigError::Ranks) if the heads do not split over the ranks of
    /// [`QkvLayout::PerRank`](super::QkvLayout::PerRank).
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        write_norm(writer, names, self.norm())?;
        if let Some(norm) = self.query_key_norm() {
            let names = names.qk_norm.as_ref().ok_or(WeightError::NoQkNormNames)?;
            write_head_weights(writer, &names.query, norm.query(), self.spec())?;
            write_head_weights(writer, &names.key, norm.key(), self.spec())?;
        }
        if let Some(sinks) = self.sinks() {
            writer.tensor(names.sinks.as_ref().ok_or(WeightError::NoSinkName)?, sinks.values())?;
        }
        write_projections(writer, names, self.spec(), (self.qkv(), self.gate(), self.output()))
    }
}

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`].
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let ranks = self.spec().training_ranks;
        self.read((slice::from_ref(checkpoint), ranks), names)
    }

    /// See [`DeepSpeedSelfAttention::load_split`].
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::load_split`].
    pub fn load_split(self, split: &SplitCheckpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = split.files_of(self.spec().training_ranks)?;
        self.read((files, 1), names)
    }

    fn read(self, files: (&[Checkpoint], usize), names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = LayerReader::new(files.0, names, self.spec(), self.output())?;
        let (qkv, output) = reader.projections(files.1, self.qkv(), self.output())?;
        Ok(Self { projections: self.projections.with_weights(qkv, output) }.no_grad())
    }

    /// See [`DeepSpeedSelfAttention::write`].
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::write`].
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        write_projections(writer, names, self.spec(), (self.qkv(), None, self.output()))
    }
}

impl<B: Backend> DeepSpeedCrossAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`].
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let ranks = self.spec().training_ranks;
        self.read((slice::from_ref(checkpoint), ranks), names)
    }

    /// See [`DeepSpeedSelfAttention::load_split`].
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::load_split`].
    pub fn load_split(self, split: &SplitCheckpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let files = split.files_of(self.spec().training_ranks)?;
        self.read((files, 1), names)
    }

    fn read(self, files: (&[Checkpoint], usize), names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = LayerReader::new(files.0, names, self.spec(), self.output())?;
        let norm = self.norm().map(|module| reader.norm(module)).transpose()?;
        let part = |part, module| reader.part(files.1, part, module);
        let query = part(Part::Query, self.query())?;
        let (key, value) = (part(Part::Key, &self.key)?, part(Part::Value, &self.value)?);
        let output = reader.assembled(self.output(), &reader.files(files.1)?.output()?)?;
        let projections = self.projections.with_weights(QkvWeight::Fused(query), output);
        Ok(Self { norm, projections, key, value }.no_grad())
    }

    /// See [`DeepSpeedSelfAttention::write`].
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::write`].
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        write_norm(writer, names, self.norm())?;
        let [query, key, value] = [self.query(), &self.key, &self.value].map(|weight| {
            // A clone of a parameter that was never read draws other values.
            match weight.stored() {
                Matrix::Dense(matrix) => _ = matrix.values(),
                Matrix::Int8(matrix) => _ = (matrix.elements(), matrix.scales()),
            }
            weight.clone()
        });
        let qkv = QkvWeight::Separate(SeparateQkv { query, key, value });
        write_projections(writer, names, self.spec(), (&qkv, None, self.output()))
    }
}

/// What is read for a layer: where from, and into which form.
struct LayerReader<'a, B: Backend> {
    files: &'a [Checkpoint],
    names: &'a AttentionNames,
    spec: &'a AttentionSpec,
    dtype: DType,
    device: B::Device,
}

impl<'a, B: Backend> LayerReader<'a, B> {
    /// Reads the layer with this output projection.
    fn new(
        files: &'a [Checkpoint],
        names: &'a AttentionNames,
        spec: &'a AttentionSpec,
        output: &Weight<B>,
    ) -> Result<Self, WeightError> {
        let device = output.device();
        Ok(Self { files, names, spec, dtype: spec.dtype.of_backend::<B>(&device)?, device })
    }

    /// The files, of which each holds the parts of `concatenated` ranks one after the other.
    fn files(&self, concatenated: usize) -> Result<AttentionFiles<'a>, WeightError> {
        AttentionFiles::new(self.files, concatenated, self.names, self.spec)
    }

    fn norm(&self, module: &FusedNorm<B>) -> Result<FusedNorm<B>, WeightError> {
        let names = self.names.norm.as_ref().ok_or(WeightError::NoNormNames)?;
        norm(module, self.files, names, self.dtype, &self.device)
    }

    /// The weights of the norm of queries and keys, cut to the heads of the rank.
    fn query_key_norm(
        &self,
        concatenated: usize,
        module: Option<&QueryKeyNorm<B>>,
    ) -> Result<Option<QueryKeyNorm<B>>, WeightError> {
        let files = self.files(concatenated)?;
        let Some(module) = module else { return files.refuse_norm_weights().map(|()| None) };
        let [query, key] = module.shapes();
        let weights = |part, shape| {
            let data = TensorData::new(files.norm_weights(part)?, shape);
            Ok::<_, WeightError>(Tensor::from_data(data, (&self.device, DType::F32)))
        };
        Ok(Some(QueryKeyNorm::new(weights(Part::Query, query)?, weights(Part::Key, key)?)))
    }

    /// The sinks of the heads of the rank, if the layer has some.
    fn sinks(&self, concatenated: usize) -> Result<Option<Sinks<B>>, WeightError> {
        let sinks = self.files(concatenated)?.sinks()?;
        let heads = sinks.len();
        let tensor = || Tensor::from_data(TensorData::new(sinks, [heads]), (&self.device, DType::F32));
        Ok(self.spec.sinks.then(|| Sinks::new(tensor())))
    }

    /// A part of the QKV projection, or that of the gate.
    fn part(&self, concatenated: usize, part: Part, module: &Weight<B>) -> Result<Weight<B>, WeightError> {
        let sources = self.files(concatenated)?.qkv()?;
        self.assembled(module, &sources.projection(&[part], &self.spec.shard, module.input_size()))
    }

    /// The projections, from files of which each holds the parts of `concatenated` ranks one after the other.
    fn projections(
        &self,
        concatenated: usize,
        qkv: &QkvWeight<B>,
        output: &Weight<B>,
    ) -> Result<(QkvWeight<B>, Weight<B>), WeightError> {
        let files = self.files(concatenated)?;
        Ok((self.qkv(&files.qkv()?, qkv)?, self.assembled(output, &files.output()?)?))
    }

    fn qkv(&self, sources: &QkvSources<'_>, module: &QkvWeight<B>) -> Result<QkvWeight<B>, WeightError> {
        let read = |parts: &[Part], module: &Weight<B>| {
            self.assembled(module, &sources.projection(parts, &self.spec.shard, module.input_size()))
        };
        Ok(match module {
            QkvWeight::Fused(module) => QkvWeight::Fused(read(&Part::ALL, module)?),
            QkvWeight::Separate(SeparateQkv { query, key, value }) => QkvWeight::Separate(SeparateQkv {
                query: read(&[Part::Query], query)?,
                key: read(&[Part::Key], key)?,
                value: read(&[Part::Value], value)?,
            }),
        })
    }

    fn assembled(&self, module: &Weight<B>, parts: &ProjectionParts<'_>) -> Result<Weight<B>, WeightError> {
        assembled(module, parts, self.dtype, &self.device)
    }
}
