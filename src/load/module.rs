//! Reads a checkpoint into the modules.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::{AttentionNames, Checkpoint, QkvNames, WeightNames};
use crate::attention::{BloomSelfAttention, DeepSpeedDiffusersAttention, DeepSpeedSelfAttention};
use crate::error::WeightError;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, Int8Blocks, Orientation, QkvWeight, SeparateQkv, Weight, transposed};

impl<B: Backend> DeepSpeedSelfAttention<B> {
    /// The module with the weights of a checkpoint: converted to its element type, in its layout, cut to the heads of its
    /// rank. Parameters do not require gradients; [`with_training`](Self::with_training) lifts that.
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
    /// loaded; a module whose record is int8 is built, quantised in the same way, and then loads it.
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

/// A projection of the whole model, `[out, in]`, before it is cut and turned.
struct Whole<B: Backend> {
    matrix: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
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

    fn matrix(&self, name: &str, input: usize, output: usize) -> Result<Tensor<B, 2>, WeightError> {
        let shape = self.names.orientation.shape(input, output);
        let matrix = self.checkpoint.tensor(name, shape, self.dtype, &self.device)?;
        Ok(match self.names.orientation {
            Orientation::OutputInput => matrix,
            Orientation::InputOutput => matrix.transpose(),
        })
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

    fn whole(&self, names: &WeightNames, input: usize, output: usize, bias: bool) -> Result<Whole<B>, WeightError> {
        Ok(Whole {
            matrix: self.matrix(&names.matrix, input, output)?,
            bias: self.bias(&names.bias, output, bias, "set `qkv_bias` to true")?,
        })
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
        let matrix = self.matrix(&names.matrix, shard.total * head_dim, self.spec.hidden_size)?;
        let own = matrix.narrow(1, shard.start * head_dim, shard.len * head_dim);
        let bias = self.bias(&names.bias, self.spec.hidden_size, module.has_bias(), "set `output_bias` to true")?;
        self.turned(own, bias, module)
    }

    fn qkv(&self, module: &QkvWeight<B>) -> Result<QkvWeight<B>, WeightError> {
        let (input, context, bias) = match module {
            QkvWeight::Fused(weight) => (weight.input_size(), weight.input_size(), weight.has_bias()),
            QkvWeight::Separate(SeparateQkv { query, key, .. }) => {
                (query.input_size(), key.input_size(), query.has_bias())
            }
        };
        let parts = self.parts(input, context, bias)?;
        Ok(match module {
            QkvWeight::Fused(module) => {
                let bias = parts.iter().map(|part| part.bias.clone()).collect::<Option<Vec<_>>>();
                let matrix = Tensor::cat(parts.map(|part| part.matrix).into(), 0);
                QkvWeight::Fused(self.turned(matrix, bias.map(|bias| Tensor::cat(bias, 0)), module)?)
            }
            QkvWeight::Separate(module) => {
                let [query, key, value] = parts;
                let turned = |part: Whole<B>, module| self.turned(part.matrix, part.bias, module);
                QkvWeight::Separate(SeparateQkv {
                    query: turned(query, &module.query)?,
                    key: turned(key, &module.key)?,
                    value: turned(value, &module.value)?,
                })
            }
        })
    }

    /// Queries, keys and values of this rank, each `[out, in]`.
    fn parts(&self, input: usize, context: usize, bias: bool) -> Result<[Whole<B>; 3], WeightError> {
        let (shard, head_dim) = (&self.spec.shard, self.spec.head_dim);
        let (queries, keys) = (shard.total * head_dim, shard.kv_total * head_dim);
        let whole = match &self.names.qkv {
            QkvNames::Fused { names, layout } => {
                let Whole { matrix, bias } = self.whole(names, input, queries + 2 * keys, bias)?;
                let matrices = layout.split(matrix.unsqueeze_dim(0), shard, head_dim);
                let mut biases = bias.map(|bias| {
                    let [outputs] = bias.dims();
                    layout.split(bias.reshape([1, outputs, 1]), shard, head_dim).into_iter()
                });
                return Ok(matrices.map(|matrix| Whole {
                    matrix: matrix.squeeze_dim(0),
                    bias: biases.as_mut().and_then(Iterator::next).map(|bias| bias.flatten(0, 2)),
                }));
            }
            QkvNames::Separate { query, key, value } => [
                self.whole(query, input, queries, bias)?,
                self.whole(key, context, keys, bias)?,
                self.whole(value, context, keys, bias)?,
            ],
            QkvNames::SeparateWithFusedBias { query, key, value, bias: name } => {
                let all = self.bias(name, queries + 2 * keys, bias, "set `qkv_bias` to true")?;
                let part = |start, len| all.clone().map(|bias| bias.narrow(0, start, len));
                [
                    Whole { matrix: self.matrix(query, input, queries)?, bias: part(0, queries) },
                    Whole { matrix: self.matrix(key, context, keys)?, bias: part(queries, keys) },
                    Whole { matrix: self.matrix(value, context, keys)?, bias: part(queries + keys, keys) },
                ]
            }
        };
        let [query, key, value] = whole;
        let own = |part: Whole<B>, start: usize, len: usize| Whole {
            matrix: part.matrix.narrow(0, start * head_dim, len * head_dim),
            bias: part.bias.map(|bias| bias.narrow(0, start * head_dim, len * head_dim)),
        };
        Ok([
            own(query, shard.start, shard.len),
            own(key, shard.kv_start, shard.kv_len),
            own(value, shard.kv_start, shard.kv_len),
        ])
    }

    /// An `[out, in]` matrix the way the module stores it.
    fn turned(
        &self,
        matrix: Tensor<B, 2>,
        bias: Option<Tensor<B, 1>>,
        module: &Weight<B>,
    ) -> Result<Weight<B>, WeightError> {
        let orientation = module.orientation();
        let matrix = match orientation {
            Orientation::OutputInput => matrix,
            Orientation::InputOutput => transposed(matrix),
        };
        let weight = Weight::new(matrix, bias, orientation);
        match module.int8() {
            Some(int8) => weight.quantize_in(int8.blocks()),
            None => Ok(weight),
        }
    }
}
