//! Reads a checkpoint into the modules.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::int8::{Blocks, Int8Part, Int8Tensor};
use super::layout::picked;
use super::{AttentionNames, Checkpoint, QkvNames, ScaleNames, WeightNames};
use crate::attention::{BloomSelfAttention, DeepSpeedDiffusersAttention, DeepSpeedSelfAttention};
use crate::error::WeightError;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, Int8Blocks, Orientation, QkvWeight, SeparateQkv, Weight, transposed};

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// The module with the weights of a checkpoint: converted to its element type, in its layout, cut to the heads of its
    /// rank. Parameters do not require gradients; [`with_training`](Self::with_training) lifts that.
    ///
    /// Where the module is int8 it stays so: int8 matrices of the checkpoint keep their bytes and [scales](super::ScaleNames),
    /// in blocks of their own, and dense ones are rounded in the blocks of the module. Where it is dense, int8 matrices are
    /// made dense.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = Reader::new(checkpoint, names, &self.spec, &self.output)?;
        let loaded = Self {
            norm: reader.norm(&self.norm)?,
            qkv: reader.qkv(&self.qkv)?,
            output: reader.output(&self.output)?,
            ..self
        };
        Ok(loaded.no_grad())
    }
}

impl<B: Backend> BloomSelfAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`].
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        Ok(Self { attention: self.attention.load(checkpoint, names)? })
    }
}

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
    /// See [`DeepSpeedSelfAttention::load`].
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(self, checkpoint: &Checkpoint, names: &AttentionNames) -> Result<Self, WeightError> {
        let reader = Reader::new(checkpoint, names, &self.spec, &self.output)?;
        let loaded = Self { qkv: reader.qkv(&self.qkv)?, output: reader.output(&self.output)?, ..self };
        Ok(loaded.no_grad())
    }
}

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// The module with matrices of int8: a quarter of the memory, and of what a step reads. It stays so when a checkpoint is
    /// loaded. A module whose record is int8 is built, quantised in any blocks or under `dtype` int8, and then loads it, with
    /// the blocks of the record.
    ///
    /// ```
    /// # use burn_deepspeed::{DataType, DeepSpeedInferenceConfig, weight::Int8Blocks};
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
    /// let attention = config.init_self_attention::<NdArray>(0, &Default::default())?;
    /// let attention = attention.quantize(Int8Blocks::PerOutput)?;
    /// let matrix = attention.output().int8().expect("it was quantised");
    /// assert_eq!(matrix.bytes(), 64 * 64 + 4 * 64); // a scale for each output
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { qkv: self.qkv.quantize(blocks)?, output: self.output.quantize(blocks)?, ..self })
    }
}

impl<B: Backend> BloomSelfAttention<B> {
    /// See [`DeepSpeedSelfAttention::quantize`].
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { attention: self.attention.quantize(blocks)? })
    }
}

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
    /// See [`DeepSpeedSelfAttention::quantize`].
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { qkv: self.qkv.quantize(blocks)?, output: self.output.quantize(blocks)?, ..self })
    }
}

/// A matrix `[out, in]`, before the module takes it.
enum Matrix<'a, B: Backend> {
    Dense(Tensor<B, 2>),
    Int8(Int8Part<'a>),
}

impl<B: Backend> Matrix<'_, B> {
    /// These outputs, in this order.
    fn outputs(&self, rows: &[usize]) -> Self {
        match self {
            Self::Dense(matrix) => Self::Dense(picked(matrix.clone(), 0, rows)),
            Self::Int8(part) => Self::Int8(part.outputs(rows)),
        }
    }

    /// The inputs `start..start + len`.
    fn inputs(&self, start: usize, len: usize) -> Self {
        match self {
            Self::Dense(matrix) => Self::Dense(matrix.clone().narrow(1, start, len)),
            Self::Int8(part) => Self::Int8(part.inputs(start, len)),
        }
    }
}

/// A projection, `[out, in]`, before the module takes it.
struct Projection<'a, B: Backend> {
    matrix: Matrix<'a, B>,
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Projection<'_, B> {
    fn outputs(&self, rows: &[usize]) -> Self {
        Self { matrix: self.matrix.outputs(rows), bias: self.bias.clone().map(|bias| picked(bias, 0, rows)) }
    }
}

/// What QKV reads and is.
#[derive(Clone, Copy)]
struct QkvSizes {
    /// Features that queries read.
    input: usize,
    /// Features that keys and values read.
    context: usize,
    bias: bool,
    int8: bool,
}

struct Reader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    names: &'a AttentionNames,
    spec: &'a AttentionSpec,
    dtype: DType,
    device: B::Device,
}

impl<'a, B: Backend> Reader<'a, B> {
    fn new(
        checkpoint: &'a Checkpoint,
        names: &'a AttentionNames,
        spec: &'a AttentionSpec,
        output: &Weight<B>,
    ) -> Result<Self, WeightError> {
        let device = output.device();
        let dtype = spec.dtype.of_backend::<B>(&device)?;
        Ok(Self { checkpoint, names, spec, dtype, device })
    }

    fn vector(&self, name: &str, size: usize) -> Result<Tensor<B, 1>, WeightError> {
        self.checkpoint.tensor(name, [size], self.dtype, &self.device)
    }

    /// A matrix of int8 stays one where the module is int8, and is made dense elsewhere.
    fn matrix(
        &self,
        name: &str,
        scales: &ScaleNames,
        shape: [usize; 2],
        int8: bool,
    ) -> Result<Matrix<'a, B>, WeightError> {
        let ([output, input], orientation) = (shape, self.names.orientation);
        if self.checkpoint.is_int8(name) {
            let to = if int8 { DType::I8 } else { self.dtype };
            let part = Int8Tensor::read(self.checkpoint, orientation, (name, scales), shape, to)?.whole();
            return Ok(if int8 { Matrix::Int8(part) } else { Matrix::Dense(self.dense(part)) });
        }
        let matrix = self.checkpoint.tensor(name, orientation.shape(input, output), self.dtype, &self.device)?;
        Ok(Matrix::Dense(match orientation {
            Orientation::OutputInput => matrix,
            Orientation::InputOutput => matrix.transpose(),
        }))
    }

    fn dense(&self, part: Int8Part<'_>) -> Tensor<B, 2> {
        Tensor::from_data(Blocks::stacked(&[part]).dense(self.dtype), (&self.device, self.dtype))
    }

    /// A bias is read if the module has a place for it, and refused if it has none.
    fn bias(&self, name: &str, size: usize, wanted: bool, remedy: &str) -> Result<Option<Tensor<B, 1>>, WeightError> {
        match wanted {
            true => self.vector(name, size).map(Some),
            false if self.checkpoint.contains(name) => {
                Err(WeightError::Unexpected { name: name.into(), remedy: remedy.into() })
            }
            false => Ok(None),
        }
    }

    fn norm(&self, module: &Option<FusedNorm<B>>) -> Result<Option<FusedNorm<B>>, WeightError> {
        let Some(norm) = module else { return Ok(None) };
        let Some(names) = &self.names.norm else { return Err(WeightError::NoNormNames) };
        let gamma = self.vector(&names.gamma, norm.size())?;
        let remedy = match norm.spec().rms {
            true => "an RMSNorm has none; set `norm_type` to LayerNorm",
            false => "set `norm_bias` to true",
        };
        let beta = self.bias(&names.beta, norm.size(), norm.has_beta(), remedy)?;
        Ok(Some(FusedNorm::new(gamma, beta, norm.spec())))
    }

    fn output(&self, module: &Weight<B>) -> Result<Weight<B>, WeightError> {
        let (shard, head_dim) = (&self.spec.shard, self.spec.head_dim);
        let names = &self.names.output;
        let shape = [self.spec.hidden_size, shard.total * head_dim];
        let matrix = self.matrix(&names.matrix, &names.scales, shape, module.int8().is_some())?;
        let own = matrix.inputs(shard.start * head_dim, shard.len * head_dim);
        let bias = self.bias(&names.bias, self.spec.hidden_size, module.has_bias(), "set `output_bias` to true")?;
        self.finished(vec![Projection { matrix: own, bias }], module)
    }

    fn qkv(&self, module: &QkvWeight<B>) -> Result<QkvWeight<B>, WeightError> {
        let (query, key) = match module {
            QkvWeight::Fused(weight) => (weight, weight),
            QkvWeight::Separate(SeparateQkv { query, key, .. }) => (query, key),
        };
        let parts = self.parts(QkvSizes {
            input: query.input_size(),
            context: key.input_size(),
            bias: query.has_bias(),
            int8: query.int8().is_some(),
        })?;
        Ok(match module {
            QkvWeight::Fused(module) => QkvWeight::Fused(self.finished(parts.into(), module)?),
            QkvWeight::Separate(module) => {
                let [query, key, value] = parts;
                QkvWeight::Separate(SeparateQkv {
                    query: self.finished(vec![query], &module.query)?,
                    key: self.finished(vec![key], &module.key)?,
                    value: self.finished(vec![value], &module.value)?,
                })
            }
        })
    }

    /// Queries, keys and values of this rank.
    fn parts(&self, sizes: QkvSizes) -> Result<[Projection<'a, B>; 3], WeightError> {
        const REMEDY: &str = "set `qkv_bias` to true";
        let (shard, head_dim) = (&self.spec.shard, self.spec.head_dim);
        let (queries, keys) = (shard.total * head_dim, shard.kv_total * head_dim);
        let QkvSizes { input, context, bias, int8 } = sizes;
        let whole = |names: &WeightNames, outputs, inputs| {
            let matrix = self.matrix(&names.matrix, &names.scales, [outputs, inputs], int8)?;
            Ok::<_, WeightError>(Projection { matrix, bias: self.bias(&names.bias, outputs, bias, REMEDY)? })
        };
        let [query, key, value] = match &self.names.qkv {
            QkvNames::Fused { names, layout } => {
                let fused = whole(names, queries + 2 * keys, input)?;
                return Ok(layout.rows(shard, head_dim).map(|rows| fused.outputs(&rows)));
            }
            QkvNames::Separate { query, key, value } => {
                [whole(query, queries, input)?, whole(key, keys, context)?, whole(value, keys, context)?]
            }
            QkvNames::SeparateWithFusedBias { query, key, value, bias: name } => {
                let all = self.bias(name, queries + 2 * keys, bias, REMEDY)?;
                let part = |name: &str, start, outputs, inputs| {
                    let matrix = self.matrix(name, &ScaleNames::of(name), [outputs, inputs], int8)?;
                    let bias = all.clone().map(|bias| bias.narrow(0, start, outputs));
                    Ok::<_, WeightError>(Projection { matrix, bias })
                };
                [
                    part(query, 0, queries, input)?,
                    part(key, queries, keys, context)?,
                    part(value, queries + keys, keys, context)?,
                ]
            }
        };
        let own = |start: usize, len: usize| -> Vec<usize> { (start * head_dim..(start + len) * head_dim).collect() };
        let (own_queries, own_keys) = (own(shard.start, shard.len), own(shard.kv_start, shard.kv_len));
        Ok([query.outputs(&own_queries), key.outputs(&own_keys), value.outputs(&own_keys)])
    }

    /// Projections, one behind the other, the way the module stores them.
    fn finished(&self, parts: Vec<Projection<'a, B>>, module: &Weight<B>) -> Result<Weight<B>, WeightError> {
        let biases: Option<Vec<_>> = parts.iter().map(|part| part.bias.clone()).collect();
        let bias = biases.map(joined);
        let int8: Option<Vec<_>> = parts
            .iter()
            .map(|part| match &part.matrix {
                Matrix::Int8(part) => Some(part.clone()),
                Matrix::Dense(_) => None,
            })
            .collect();
        if let Some(parts) = int8 {
            let matrix = Blocks::stacked(&parts).int8(self.dtype, &self.device)?;
            return Ok(Weight::of_int8(matrix, bias).with_rounded_input(module.rounds_input()));
        }
        let dense = parts.into_iter().map(|part| match part.matrix {
            Matrix::Dense(matrix) => matrix,
            Matrix::Int8(part) => self.dense(part),
        });
        let (matrix, orientation) = (joined(dense.collect()), module.orientation());
        let matrix = match orientation {
            Orientation::OutputInput => matrix,
            Orientation::InputOutput => transposed(matrix),
        };
        let weight = Weight::new(matrix, bias, orientation).with_rounded_input(module.rounds_input());
        match module.int8() {
            Some(int8) => weight.quantize_in(int8.blocks()),
            None => Ok(weight),
        }
    }
}

/// One behind the other along the first axis.
pub(super) fn joined<B: Backend, const D: usize>(mut tensors: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    match tensors.len() {
        1 => tensors.remove(0),
        _ => Tensor::cat(tensors, 0),
    }
}
