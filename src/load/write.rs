//! Writes the modules into a safetensors file, int8 matrices as such.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::int8::{Groups, gcd};
use super::layout::{Part, picked, rows};
use super::module::joined;
use super::{AttentionNames, NormNames, QkvNames, ScaleNames, WeightNames};
use crate::attention::{DeepSpeedDiffusersAttention, DeepSpeedSelfAttention, Projections};
use crate::error::{WeightError, check_shape};
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, Int8Matrix, Orientation, QkvWeight, SeparateQkv, Weight};

/// A safetensors file in the making. A name that is written again is replaced.
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
/// let names = AttentionNames {
///     norm: Some(NormNames::of("norm")),
///     qkv: QkvNames::fused("qkv", QkvLayout::Concat),
///     output: WeightNames::of("output"),
///     orientation: Orientation::OutputInput,
/// };
/// attention.write(&mut writer, &names)?;
/// writer.save(&path)?;
///
/// let checkpoint = Checkpoint::open(&path)?;
/// let read = config.init_self_attention::<NdArray>(0, &device)?.load(&checkpoint, &names)?;
/// assert_eq!(read.output().matrix().into_data(), attention.output().matrix().into_data());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct CheckpointWriter {
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug, Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl CheckpointWriter {
    /// Adds a tensor, in its own element type.
    ///
    /// # Errors
    /// [`WeightError::ElementType`] if it does not hold floats.
    pub fn tensor<B: Backend, const D: usize>(&mut self, name: &str, tensor: Tensor<B, D>) -> Result<(), WeightError> {
        let TensorData { bytes, shape, dtype } = tensor.into_data();
        let dtype = match dtype {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            other => return Err(WeightError::ElementType { name: name.into(), found: format!("{other:?}") }),
        };
        self.tensors.insert(name.into(), Stored { dtype, shape: shape.to_vec(), bytes: bytes.to_vec() });
        Ok(())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`WeightError::Write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), WeightError> {
        let path = path.as_ref();
        let failed =
            |cause: safetensors::SafeTensorError| WeightError::Write { path: path.into(), cause: cause.to_string() };
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, Stored { dtype, shape, bytes }) in &self.tensors {
            views.push((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?));
        }
        safetensors::serialize_to_file(views, None, path).map_err(failed)
    }

    fn norm<B: Backend>(&mut self, names: Option<&NormNames>, norm: &FusedNorm<B>) -> Result<(), WeightError> {
        let names = names.ok_or(WeightError::NoNormNames)?;
        self.tensor(&names.gamma, norm.gamma())?;
        norm.beta().map_or(Ok(()), |beta| self.tensor(&names.beta, beta))
    }

    fn bias<B: Backend>(&mut self, name: &str, weights: &[&Weight<B>], order: &[usize]) -> Result<(), WeightError> {
        let biases: Option<Vec<_>> = weights.iter().map(|weight| weight.bias()).collect();
        biases.map_or(Ok(()), |biases| self.tensor(name, picked(joined(biases), 0, order)))
    }

    /// Matrices one behind the other, their outputs in this order; of int8 if all of them are.
    fn matrix<B: Backend>(
        &mut self,
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
        let int8: Option<Vec<&Int8Matrix<B>>> = weights.iter().map(|weight| weight.int8()).collect();
        if let Some(matrices) = int8 {
            let rows = Rows::new(&matrices, order);
            let (elements, shape) = rows.elements(orientation);
            self.tensors.insert(name.into(), Stored { dtype: Dtype::I8, shape: shape.to_vec(), bytes: elements });
            let numbers = rows.scales(name, scales)?;
            let shape = vec![numbers.len()];
            let bytes = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
            self.tensors.insert(scales.tensor.clone(), Stored { dtype: Dtype::F32, shape, bytes });
            return Ok(());
        }
        let dense = weights.iter().map(|weight| weight.input_output().transpose()).collect();
        let matrix = picked(joined(dense), 0, order);
        self.tensor(
            name,
            match orientation {
                Orientation::OutputInput => matrix,
                Orientation::InputOutput => matrix.transpose(),
            },
        )
    }

    fn weight<B: Backend>(
        &mut self,
        names: &WeightNames,
        orientation: Orientation,
        (weights, order): (&[&Weight<B>], &[usize]),
    ) -> Result<(), WeightError> {
        self.bias(&names.bias, weights, order)?;
        self.matrix(&names.matrix, &names.scales, orientation, (weights, order))
    }

    fn projections<B: Backend>(
        &mut self,
        names: &AttentionNames,
        Projections { qkv, output, spec, .. }: &Projections<B>,
    ) -> Result<(), WeightError> {
        self.qkv(names, qkv, spec)?;
        self.weight(&names.output, names.orientation, (&[output], &in_order(&[output])))
    }

    fn qkv<B: Backend>(
        &mut self,
        names: &AttentionNames,
        qkv: &QkvWeight<B>,
        spec: &AttentionSpec,
    ) -> Result<(), WeightError> {
        let orientation = names.orientation;
        let width = spec.query_width();
        match &names.qkv {
            QkvNames::Fused { names, layout } => {
                let ranks = if spec.ranks.ranks() == 1 { spec.training_ranks } else { 1 };
                let heads = layout.concatenated(ranks).heads(&spec.shard)?;
                let order = rows(&heads, &Part::all(&spec.shard), spec.head_dim);
                match qkv {
                    QkvWeight::Fused(fused) => self.weight(names, orientation, (&[fused], &order)),
                    QkvWeight::Separate(SeparateQkv { query, key, value }) => {
                        self.weight(names, orientation, (&[query, key, value], &order))
                    }
                }
            }
            QkvNames::Separate { query, key, value } => {
                let own = qkv.separate(width);
                for (names, weight) in [(query, &own.query), (key, &own.key), (value, &own.value)] {
                    self.weight(names, orientation, (&[weight], &in_order(&[weight])))?;
                }
                Ok(())
            }
            QkvNames::SeparateWithFusedBias { query, key, value, bias } => {
                let own = qkv.separate(width);
                for (name, weight) in [(query, &own.query), (key, &own.key), (value, &own.value)] {
                    self.matrix(name, &ScaleNames::of(name), orientation, (&[weight], &in_order(&[weight])))?;
                }
                let weights = [&own.query, &own.key, &own.value];
                self.bias(bias, &weights, &in_order(&weights))
            }
        }
    }
}

/// The outputs of projections, one behind the other.
fn in_order<B: Backend>(weights: &[&Weight<B>]) -> Vec<usize> {
    (0..weights.iter().map(|weight| weight.output_size()).sum()).collect()
}

/// Matrices of int8 in memory, and which of their outputs come one behind the other.
struct Rows<'a, B: Backend> {
    matrices: &'a [&'a Int8Matrix<B>],
    /// Matrix and output.
    rows: Vec<(usize, usize)>,
    inputs: usize,
}

impl<'a, B: Backend> Rows<'a, B> {
    fn new(matrices: &'a [&'a Int8Matrix<B>], order: &[usize]) -> Self {
        let outputs = |(index, matrix): (usize, &&Int8Matrix<B>)| (0..matrix.shape()[0]).map(move |row| (index, row));
        let all: Vec<(usize, usize)> = matrices.iter().enumerate().flat_map(outputs).collect();
        Self { matrices, rows: order.iter().map(|&row| all[row]).collect(), inputs: matrices[0].shape()[1] }
    }

    /// The bytes of a matrix that lies as `orientation` says, and its shape.
    fn elements(&self, orientation: Orientation) -> (Vec<u8>, [usize; 2]) {
        let read = |matrix: &&Int8Matrix<B>| -> Vec<i8> { matrix.elements().into_data().iter().collect() };
        let matrices: Vec<Vec<i8>> = self.matrices.iter().map(read).collect();
        let (outputs, inputs) = (self.rows.len(), self.inputs);
        let mut bytes = Vec::with_capacity(outputs * inputs);
        match orientation {
            Orientation::OutputInput => {
                for &(index, row) in &self.rows {
                    bytes.extend(matrices[index][row * inputs..][..inputs].iter().map(|&element| element as u8));
                }
            }
            Orientation::InputOutput => {
                for input in 0..inputs {
                    bytes.extend(self.rows.iter().map(|&(index, row)| matrices[index][row * inputs + input] as u8));
                }
            }
        }
        (bytes, orientation.shape(inputs, outputs))
    }

    /// The scales in DeepSpeed's order: one for each block where whole outputs share one, and else in blocks of one output
    /// that divide the inputs.
    fn scales(&self, name: &str, names: &ScaleNames) -> Result<Vec<f32>, WeightError> {
        let (outputs, inputs) = (self.rows.len(), self.inputs);
        let parts = Groups::parts(name, inputs, names.merge_count)?;
        let narrow = self.matrices.iter().map(|matrix| matrix.blocks()[1]).filter(|&wide| wide < inputs);
        let wide = narrow.fold(inputs / parts, gcd);
        let block = |&(index, row): &(usize, usize)| (index, row / self.matrices[index].blocks()[0]);
        let tall = match wide == inputs / parts {
            true => (1..outputs).filter(|&at| block(&self.rows[at]) != block(&self.rows[at - 1])).fold(outputs, gcd),
            false => 1,
        };
        let mut scales = vec![0.0; (outputs / tall.max(1)) * (inputs / wide)];
        let groups = Groups::new(name, [outputs, inputs], names, scales.len())?;
        let read = |matrix: &&Int8Matrix<B>| -> Vec<f32> { matrix.scales().into_data().iter().collect() };
        let matrices: Vec<Vec<f32>> = self.matrices.iter().map(read).collect();
        for (output, &(index, row)) in self.rows.iter().enumerate().step_by(tall.max(1)) {
            let [own_tall, own_wide] = self.matrices[index].blocks();
            let own = &matrices[index][row / own_tall * inputs.div_ceil(own_wide)..];
            for input in (0..inputs).step_by(wide) {
                scales[groups.scale_of(output, input)] = own[input / own_wide];
            }
        }
        Ok(scales)
    }
}

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// Writes the parameters under these names, in their layout and orientation: floats in the type that they have, matrices
    /// of int8 as such, with their scales. [`load`](Self::load) reads the same weights, bit for bit; blocks that do not
    /// divide a matrix evenly come back as smaller ones.
    ///
    /// One of several ranks writes its part, a file of a [`SplitCheckpoint`](super::SplitCheckpoint), and
    /// [`load_split`](Self::load_split) reads them on any number of ranks.
    ///
    /// # Errors
    /// [`WeightError::NoNormNames`], [`WeightError::MergeCount`], and [`ConfigError::Ranks`](crate::ConfigError::Ranks) if the
    /// heads do not split over as many ranks as [`QkvLayout::PerRank`](super::QkvLayout::PerRank) says.
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        if let Some(norm) = &self.norm {
            writer.norm(names.norm.as_ref(), norm)?;
        }
        writer.projections(names, &self.projections)
    }
}

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
    /// See [`DeepSpeedSelfAttention::write`].
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::write`].
    pub fn write(&self, writer: &mut CheckpointWriter, names: &AttentionNames) -> Result<(), WeightError> {
        writer.projections(names, &self.projections)
    }
}
