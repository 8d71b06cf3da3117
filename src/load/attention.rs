//! Reads and writes the attention modules.

use std::slice;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_deepspeed_core::checkpoint::{
    AttentionFiles, AttentionNames, BlockedInt8, Checkpoint, CheckpointWriter, HeadWeightNames, Part, ProjectionParts,
    QkvNames, QkvSources, ScaleNames, SplitCheckpoint, WeightNames,
};
use burn_deepspeed_core::layout::Orientation;

use super::parameters::{assembled, norm};
use super::tensors::{WriteTensors, picked};
use crate::attention::{DeepSpeedDiffusersAttention, DeepSpeedSelfAttention};
use crate::element::OfBackend;
use crate::error::{WeightError, check_shape};
use crate::spec::{AttentionSpec, QkNormWeights};
use crate::weight::{FusedNorm, Int8Matrix, QkvWeight, QueryKeyNorm, SeparateQkv, Weight};

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
        let (qkv, output) = reader.projections(files.1, self.qkv(), self.output())?;
        Ok(Self { norm, projections: self.projections.with_weights(qkv, output), query_key_norm }.no_grad())
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
    /// [`WeightError::NoNormNames`], [`WeightError::NoQkNormNames`], [`WeightError::SharedHeadWeights`], [`WeightError::MergeCount`], and [`ConfigError::Ranks`](crate::ConfigError::Ranks) if the
    /// heads do not split over the ranks of [`QkvLayout::PerRank`](super::QkvLayout::PerRank).
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        if let Some(norm) = self.norm() {
            let names = names.norm.as_ref().ok_or(WeightError::NoNormNames)?;
            let gamma = if names.plus_one { norm.gamma().sub_scalar(1.0) } else { norm.gamma() };
            writer.tensor(&names.gamma, gamma)?;
            norm.beta().map_or(Ok(()), |beta| writer.tensor(&names.beta, beta))?;
        }
        if let Some(norm) = self.query_key_norm() {
            let names = names.qk_norm.as_ref().ok_or(WeightError::NoQkNormNames)?;
            write_head_weights(writer, &names.query, norm.query(), self.spec())?;
            write_head_weights(writer, &names.key, norm.key(), self.spec())?;
        }
        write_projections(writer, names, self.spec(), (self.qkv(), self.output()))
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
        write_projections(writer, names, self.spec(), (self.qkv(), self.output()))
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
        let files = AttentionFiles::new(self.files, concatenated, self.names, self.spec)?;
        let Some(module) = module else { return files.refuse_norm_weights().map(|()| None) };
        let [query, key] = module.shapes();
        let weights = |part, shape| {
            let data = TensorData::new(files.norm_weights(part)?, shape);
            Ok::<_, WeightError>(Tensor::from_data(data, (&self.device, DType::F32)))
        };
        Ok(Some(QueryKeyNorm::new(weights(Part::Query, query)?, weights(Part::Key, key)?)))
    }

    /// The projections, from files of which each holds the parts of `concatenated` ranks one after the other.
    fn projections(
        &self,
        concatenated: usize,
        qkv: &QkvWeight<B>,
        output: &Weight<B>,
    ) -> Result<(QkvWeight<B>, Weight<B>), WeightError> {
        let files = AttentionFiles::new(self.files, concatenated, self.names, self.spec)?;
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

/// Writes the weights of a norm of heads, `[1 or heads, H]`: one tensor in the shape of its kind, or one for each head.
fn write_head_weights<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &HeadWeightNames,
    weights: Tensor<B, 2>,
    spec: &AttentionSpec,
) -> Result<(), WeightError> {
    let ([rows, features], shared) =
        (weights.dims(), spec.qk_norm.map(|norm| norm.weights) == Some(QkNormWeights::Shared));
    match names {
        HeadWeightNames::One(name) if shared || spec.norm_of_all_heads().is_some() => {
            writer.tensor(name, weights.reshape([rows * features]))
        }
        HeadWeightNames::One(name) => writer.tensor(name, weights),
        HeadWeightNames::Each { .. } if shared => Err(WeightError::SharedHeadWeights(names.of_head(0))),
        HeadWeightNames::Each { .. } => (0..rows).try_for_each(|row| {
            writer.tensor(&names.of_head(row), weights.clone().narrow(0, row, 1).reshape([features]))
        }),
    }
}

/// Writes the projections of a layer.
fn write_projections<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &AttentionNames,
    spec: &AttentionSpec,
    (qkv, output): (&QkvWeight<B>, &Weight<B>),
) -> Result<(), WeightError> {
    write_qkv(writer, names, qkv, spec)?;
    write_weight(writer, &names.output, names.orientation, (&[output], &in_order(&[output])))
}

fn write_qkv<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &AttentionNames,
    qkv: &QkvWeight<B>,
    spec: &AttentionSpec,
) -> Result<(), WeightError> {
    let orientation = names.orientation;
    let width = spec.query_width();
    match &names.qkv {
        QkvNames::Fused { names, layout } => {
            let ranks = if spec.ranks.ranks() == 1 { spec.training_ranks } else { 1 };
            let order = layout.concatenated(ranks).order(&spec.shard, spec.head_dim)?;
            match qkv {
                QkvWeight::Fused(fused) => write_weight(writer, names, orientation, (&[fused], &order)),
                QkvWeight::Separate(SeparateQkv { query, key, value }) => {
                    write_weight(writer, names, orientation, (&[query, key, value], &order))
                }
            }
        }
        QkvNames::Separate { query, key, value } => {
            let own = qkv.separate(width);
            for (names, weight) in [(query, &own.query), (key, &own.key), (value, &own.value)] {
                write_weight(writer, names, orientation, (&[weight], &in_order(&[weight])))?;
            }
            Ok(())
        }
        QkvNames::SeparateWithFusedBias { query, key, value, bias } => {
            let own = qkv.separate(width);
            for (name, weight) in [(query, &own.query), (key, &own.key), (value, &own.value)] {
                let outputs = in_order(&[weight]);
                write_matrix(writer, name, &ScaleNames::of(name), orientation, (&[weight], &outputs))?;
            }
            let weights = [&own.query, &own.key, &own.value];
            write_bias(writer, bias, &weights, &in_order(&weights))
        }
    }
}

/// Writes projections as one, their outputs in this order.
fn write_weight<B: Backend>(
    writer: &mut CheckpointWriter,
    names: &WeightNames,
    orientation: Orientation,
    (weights, order): (&[&Weight<B>], &[usize]),
) -> Result<(), WeightError> {
    write_bias(writer, &names.bias, weights, order)?;
    write_matrix(writer, &names.matrix, &names.scales, orientation, (weights, order))
}

fn write_bias<B: Backend>(
    writer: &mut CheckpointWriter,
    name: &str,
    weights: &[&Weight<B>],
    order: &[usize],
) -> Result<(), WeightError> {
    let biases: Option<Vec<_>> = weights.iter().map(|weight| weight.bias()).collect();
    biases.map_or(Ok(()), |biases| writer.tensor(name, picked(joined(biases), 0, order)))
}

/// Writes matrices as one, their outputs in this order; in int8 if all of them are int8.
fn write_matrix<B: Backend>(
    writer: &mut CheckpointWriter,
    name: &str,
    scales: &ScaleNames,
    orientation: Orientation,
    (weights, order): (&[&Weight<B>], &[usize]),
) -> Result<(), WeightError> {
    let inputs = weights[0].input_size();
    for weight in weights {
        let outputs = weight.output_size();
        check_shape("CheckpointWriter", name, &[outputs, inputs], &[outputs, weight.input_size()]);
    }
    let int8: Option<Vec<BlockedInt8>> = weights.iter().map(|weight| weight.int8().map(blocked)).collect();
    if let Some(matrices) = int8 {
        return writer.int8(name, scales, orientation, (&matrices, order));
    }
    let dense = weights.iter().map(|weight| weight.input_output().transpose()).collect();
    let matrix = picked(joined(dense), 0, order);
    writer.tensor(
        name,
        match orientation {
            Orientation::OutputInput => matrix,
            Orientation::InputOutput => matrix.transpose(),
        },
    )
}

/// The elements and scales of an int8 matrix, on the host.
fn blocked<B: Backend>(matrix: &Int8Matrix<B>) -> BlockedInt8 {
    BlockedInt8 {
        elements: matrix.elements().into_data().iter().collect(),
        scales: matrix.scales().into_data().iter().collect(),
        shape: matrix.shape(),
        blocks: matrix.blocks(),
    }
}

/// The outputs of these projections, in order.
fn in_order<B: Backend>(weights: &[&Weight<B>]) -> Vec<usize> {
    (0..weights.iter().map(|weight| weight.output_size()).sum()).collect()
}

/// Concatenated along the first axis.
fn joined<B: Backend, const D: usize>(mut tensors: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    match tensors.len() {
        1 => tensors.remove(0),
        _ => Tensor::cat(tensors, 0),
    }
}
