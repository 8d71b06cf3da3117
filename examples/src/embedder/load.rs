//! Reads the parameters of an encoder from a Hugging Face checkpoint.

use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::WeightError;
use burn_deepspeed::element::OfBackend;
use burn_deepspeed::load::{Checkpoint, NormNames, ParameterReader, ReadTensors, WeightNames, WeightPart};
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Orientation, Weight};

use super::plan::Plan;

/// Reads parameters in the form that the configuration says. Paths are those in the file.
pub(super) struct Loader<'a, B: Backend> {
    pub plan: &'a Plan<'a>,
    pub checkpoint: &'a Checkpoint,
    pub device: &'a B::Device,
    reader: ParameterReader<'a, B>,
    prefix: String,
    dtype: DType,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(plan: &'a Plan<'a>, checkpoint: &'a Checkpoint, device: &'a B::Device) -> Result<Self, WeightError> {
        let dtype = plan.config.attention_config(0).dtype.of_backend::<B>(device)?;
        let reader = ParameterReader::new(checkpoint, dtype, device);
        Ok(Self { plan, checkpoint, device, reader, prefix: plan.config.prefix(checkpoint), dtype })
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
        let attention = self.plan.config.attention_config(0);
        let spec = NormSpec { rms: false, epsilon: attention.layer_norm_eps };
        let module = FusedNorm::init(attention.hidden_size, attention.norm_bias, spec, self.dtype, self.device);
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
        let empty = Weight::init(inputs, outputs, bias, layout, self.dtype, self.device);
        self.reader.projection(&empty, &WeightNames::of(path), layout, part)
    }

    /// An embedding of `rows` rows.
    pub fn embedding(&self, path: &str, rows: usize) -> Result<Embedding<B>, WeightError> {
        let empty = EmbeddingConfig::new(rows, self.plan.hidden).init(self.device);
        self.reader.embedding(empty, &format!("{path}.weight"))
    }

    /// A tensor of `rows` rows of the width of the states, which may have dimensions of 1 before them.
    pub fn rows(&self, name: &str, rows: usize) -> Result<Tensor<B, 2>, WeightError> {
        let (checkpoint, width) = (self.checkpoint, self.plan.hidden);
        Ok(match *checkpoint.shape(name).unwrap_or_default() {
            [_] if rows == 1 => checkpoint.tensor::<B, 1>(name, [width], self.dtype, self.device)?.unsqueeze(),
            [1, _, _] => checkpoint.tensor::<B, 3>(name, [1, rows, width], self.dtype, self.device)?.squeeze_dim(0),
            _ => checkpoint.tensor(name, [rows, width], self.dtype, self.device)?,
        })
    }

    /// A convolution over patches of `[channels, height, width]` as a projection of their pixels.
    pub fn convolution(&self, path: &str, patch: [usize; 3], bias: bool) -> Result<Weight<B>, WeightError> {
        let [channels, height, width] = patch;
        let (hidden, name) = (self.plan.hidden, format!("{path}.weight"));
        let shape = [hidden, channels, height, width];
        let kernel: Tensor<B, 4> = self.checkpoint.tensor(&name, shape, self.dtype, self.device)?;
        let bias = match bias {
            true => Some(self.checkpoint.tensor(&format!("{path}.bias"), [hidden], self.dtype, self.device)?),
            false => None,
        };
        Ok(Weight::new(kernel.flatten(1, 3), bias, Orientation::OutputInput))
    }
}
