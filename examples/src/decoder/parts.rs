//! Norms and projections in the form of the configuration.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Int, Tensor, backend::Backend, bf16, f16};
use burn_deepspeed::load::families::DecoderPaths;
use burn_deepspeed::load::{HuggingFaceConfig, NormNames, ParameterReader};
use burn_deepspeed::weight::{Int8Blocks, Orientation, Weight};
use burn_deepspeed::{ConfigError, DataType, NormType, OfBackend, WeightError};

#[derive(Module, Debug)]
pub(super) enum Norm<B: Backend> {
    Layer(LayerNorm<B>),
    Rms(RmsNorm<B>),
}

impl<B: Backend> Norm<B> {
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }

    pub fn read(self, reader: &ParameterReader<'_, B>, names: &NormNames) -> Result<Self, WeightError> {
        Ok(match self {
            Self::Layer(norm) => Self::Layer(reader.layer_norm(norm, names)?),
            Self::Rms(norm) => Self::Rms(reader.rms_norm(norm, names)?),
        })
    }
}

/// Where the family keeps the parts of its decoder, and how its blocks are built.
pub(super) fn paths(config: &HuggingFaceConfig) -> Result<&DecoderPaths, ConfigError> {
    config.decoder().ok_or_else(|| ConfigError::UnknownValue {
        key: "model_type".into(),
        value: config.family.name().into(),
        accepted: "a decoder; `embed` runs the encoders".into(),
    })
}

/// A LayerNorm, without a bias if those before attention have none.
pub(super) fn layer_norm<B: Backend>(config: &HuggingFaceConfig, device: &B::Device) -> LayerNorm<B> {
    let attention = config.attention_config(0);
    let norm = LayerNormConfig::new(attention.hidden_size).with_epsilon(attention.layer_norm_eps);
    norm.with_bias(attention.norm_bias).init(device)
}

/// A norm of the kind before attention.
pub(super) fn norm<B: Backend>(config: &HuggingFaceConfig, device: &B::Device) -> Norm<B> {
    let attention = config.attention_config(0);
    match attention.norm_type {
        NormType::RMSNorm => {
            Norm::Rms(RmsNormConfig::new(attention.hidden_size).with_epsilon(attention.layer_norm_eps).init(device))
        }
        _ => Norm::Layer(layer_norm(config, device)),
    }
}

/// A projection in the orientation and element type of attention's.
pub(super) fn linear<B: Backend>(
    config: &HuggingFaceConfig,
    [input, output]: [usize; 2],
    bias: bool,
    device: &B::Device,
) -> Result<Weight<B>, ConfigError> {
    let attention = config.attention_config(0);
    let orientation = if attention.transposed_mode { Orientation::OutputInput } else { Orientation::InputOutput };
    let dtype = attention.dtype.of_backend::<B>(device)?;
    let weight = match attention.dtype {
        Some(DataType::Int8) => Weight::init_int8(input, output, bias, Int8Blocks::PerOutput, dtype, device),
        _ => Weight::init_with_format(input, output, bias, attention.matrix_format, orientation, dtype, device),
    };
    Ok(weight?.with_rounded_input(attention.round_activations))
}

/// An embedding as the projection that it is the transpose of: in the format of other matrices where that is blocks, and in floats
/// otherwise.
pub(super) fn embedding<B: Backend>(
    config: &HuggingFaceConfig,
    [rows, features]: [usize; 2],
    device: &B::Device,
) -> Result<Weight<B>, ConfigError> {
    let attention = config.attention_config(0);
    let dtype = attention.dtype.of_backend::<B>(device)?;
    let (format, orientation) = (attention.matrix_format, Orientation::OutputInput);
    let weight = Weight::init_with_format(features, rows, false, format, orientation, dtype, device)?;
    Ok(weight.with_rounded_input(attention.round_activations))
}

/// The features of tokens.
///
/// # Shapes
/// - ids: `[B, T]`, output: `[B, T, features]`
pub(crate) fn embed<B: Backend>(table: &Weight<B>, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    if table.is_dense() {
        return burn::tensor::module::embedding(table.matrix(), ids);
    }
    let [batch, tokens] = ids.dims();
    let rows: Vec<usize> = ids.into_data().iter::<i64>().map(|id| id as usize).collect();
    table.weights_of(&rows).reshape([batch, tokens, table.input_size()])
}

/// The output embedding. One that is the input embedding is stored in the same way.
pub(super) fn head<B: Backend>(
    config: &HuggingFaceConfig,
    hidden: usize,
    bias: bool,
    device: &B::Device,
) -> Result<Weight<B>, ConfigError> {
    let int8 = config.attention_config(0).dtype == Some(DataType::Int8);
    match config.tie_word_embeddings && !bias && !int8 {
        true => embedding(config, [config.vocab_size, hidden], device),
        false => linear(config, [hidden, config.vocab_size], bias, device),
    }
}

/// The factor of an embedding in its element type, in which Gemma rounds it.
pub(super) fn rounded(factor: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(factor).to_f64(),
        DType::BF16 => bf16::from_f64(factor).to_f64(),
        _ => factor,
    }
}
