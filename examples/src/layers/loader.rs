//! Reads the parameters of a model from a Hugging Face checkpoint.

use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::WeightError;
use burn_deepspeed::config::{ActivationRounding, MatrixFormat};
use burn_deepspeed::element::OfBackend;
use burn_deepspeed::load::{Checkpoint, NormNames, ParameterReader, ReadTensors, WeightNames, WeightPart};
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Orientation, Weight};
use burn_deepspeed::{DeepSpeedInferenceConfig, NormType};

/// Reads parameters in the form that the configuration says. Paths are those in the file.
pub(crate) struct Loader<'a, B: Backend> {
    pub checkpoint: &'a Checkpoint,
    pub device: &'a B::Device,
    /// Width of the states.
    pub hidden: usize,
    reader: ParameterReader<'a, B>,
    prefix: String,
    dtype: DType,
    matrices: MatrixFormat,
    rounding: ActivationRounding,
    norm: NormSpec,
    norm_bias: bool,
}

impl<'a, B: Backend> Loader<'a, B> {
    /// Reads in the element type of these settings of attention, with norms of their kind. `prefix` precedes the names of the bare model.
    pub fn new(
        attention: &DeepSpeedInferenceConfig,
        checkpoint: &'a Checkpoint,
        prefix: String,
        device: &'a B::Device,
    ) -> Result<Self, WeightError> {
        let dtype = attention.dtype.of_backend::<B>(device)?;
        let rms = attention.norm_type == NormType::RMSNorm;
        Ok(Self {
            checkpoint,
            device,
            hidden: attention.hidden_size,
            reader: ParameterReader::new(checkpoint, dtype, device),
            prefix,
            dtype,
            matrices: attention.matrix_format,
            rounding: attention.round_activations,
            norm: NormSpec { rms, epsilon: attention.layer_norm_eps },
            norm_bias: attention.norm_bias && !rms,
        })
    }

    /// A path of the bare model as it is in the file.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// Whether the file has a projection.
    pub fn has(&self, path: &str) -> bool {
        self.checkpoint.contains(&format!("{path}.weight"))
    }

    /// A norm. Checkpoints that come from TensorFlow call its parameters `gamma` and `beta`.
    pub fn norm(&self, path: &str) -> Result<FusedNorm<B>, WeightError> {
        let module = FusedNorm::init(self.hidden, self.norm_bias, self.norm, self.dtype, self.device);
        let gamma = format!("{path}.gamma");
        let names = match self.checkpoint.contains(&gamma) {
            true => NormNames::new(gamma, format!("{path}.beta")),
            false => NormNames::of(path),
        };
        self.reader.norm(&module, &names)
    }

    /// A projection that the file has as a whole.
    pub fn linear(&self, path: &str, sizes: [usize; 2], bias: bool) -> Result<Weight<B>, WeightError> {
        self.part_of_linear(path, sizes, bias, &WeightPart::Whole)
    }

    /// A part of a projection, of this number of inputs and outputs.
    pub fn part_of_linear(
        &self,
        path: &str,
        [inputs, outputs]: [usize; 2],
        bias: bool,
        part: &WeightPart,
    ) -> Result<Weight<B>, WeightError> {
        let layout = Orientation::OutputInput;
        let empty = Weight::init_with_format(inputs, outputs, bias, self.matrices, layout, self.dtype, self.device)?;
        let empty = empty.with_rounded_input(self.rounding);
        self.reader.projection(&empty, &WeightNames::of(path), layout, part)
    }

    /// An embedding of `rows` rows as the projection that it is the transpose of, in the format of other matrices.
    pub fn table(&self, path: &str, rows: usize) -> Result<Weight<B>, WeightError> {
        self.linear(path, [self.hidden, rows], false)
    }

    /// An embedding of `rows` rows in floats.
    pub fn embedding(&self, path: &str, rows: usize) -> Result<Embedding<B>, WeightError> {
        let empty = EmbeddingConfig::new(rows, self.hidden).init(self.device);
        self.reader.embedding(empty, &format!("{path}.weight"))
    }

    /// A tensor of this shape.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<B, D>, WeightError> {
        self.checkpoint.tensor(name, shape, self.dtype, self.device)
    }

    /// A tensor of `rows` rows of the width of the states, which may have dimensions of 1 before them.
    pub fn rows(&self, name: &str, rows: usize) -> Result<Tensor<B, 2>, WeightError> {
        let width = self.hidden;
        Ok(match *self.checkpoint.shape(name).unwrap_or_default() {
            [_] if rows == 1 => self.tensor::<1>(name, [width])?.unsqueeze(),
            [1, _, _] => self.tensor::<3>(name, [1, rows, width])?.squeeze_dim(0),
            _ => self.tensor(name, [rows, width])?,
        })
    }

    /// A convolution over patches of `[channels, height, width]` as a projection of their pixels.
    pub fn convolution(&self, path: &str, patch: [usize; 3], bias: bool) -> Result<Weight<B>, WeightError> {
        let [channels, height, width] = patch;
        let (hidden, name) = (self.hidden, format!("{path}.weight"));
        let shape = [hidden, channels, height, width];
        let kernel: Tensor<B, 4> = self.tensor(&name, shape)?;
        let bias = match bias {
            true => Some(self.tensor(&format!("{path}.bias"), [hidden])?),
            false => None,
        };
        Ok(Weight::new(kernel.flatten(1, 3), bias, Orientation::OutputInput))
    }
}
