//! burn-deepspeed, through the interface that applications use.

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::config::{ActivationRounding, MatrixFormat};
use burn_deepspeed::element::OfBackend;
use burn_deepspeed::ops::attention::{Attention, Visibility};
use burn_deepspeed::position::alibi;
use burn_deepspeed::weight::{BlockFormat, Int8Blocks};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend,
    InputBits, KvCacheType, NormType, Operations, QkNorm, QkNormKind, QkNormWeights, RotaryLayout, Window,
    use_huge_pages,
};
use burn_deepspeed_examples::embedder::{Embed, Embedder, Options, Scaling};

use crate::call::{Call, Failure, Output};
use crate::workload::{Dense, Heads, Layer, Workload, noise};

/// Of every norm, as in `problems.py`.
const EPSILON: f64 = 1e-6;

/// The call for a problem.
pub fn prepare<B: InferenceBackend>(workload: &Workload) -> Result<Call, Failure> {
    match workload {
        Workload::Attention(heads) => Ok(attention::<B>(heads)),
        Workload::Layer(sizes) => {
            layer::<B>(sizes, &Types { matrices: Matrices::of(sizes.blocks), ..Types::default() })
        }
        Workload::Encoder { folder, batch } => encoder::<B>(folder, *batch, &Types::default()),
        _ => Err("not a problem of attention".into()),
    }
}

/// How matrices are stored.
#[derive(Clone, Copy, Default)]
pub enum Matrices {
    /// In the type of the activations.
    #[default]
    Dense,
    Blocks(BlockFormat),
    Int8,
}

impl Matrices {
    fn of(blocks: Option<BlockFormat>) -> Self {
        blocks.map_or(Self::Dense, Self::Blocks)
    }

    fn blocks(self) -> Option<BlockFormat> {
        match self {
            Self::Blocks(format) => Some(format),
            Self::Dense | Self::Int8 => None,
        }
    }
}

/// The element types of a layer.
pub struct Types {
    /// Of the activations.
    pub dtype: DataType,
    pub matrices: Matrices,
    pub cache: KvCacheType,
    /// Of the inputs of projections.
    pub rounding: ActivationRounding,
}

impl Default for Types {
    fn default() -> Self {
        Self {
            dtype: DataType::Fp32,
            matrices: Matrices::Dense,
            cache: KvCacheType::default(),
            rounding: ActivationRounding::Never,
        }
    }
}

/// The call for a layer of blocks, with inputs that are rounded.
pub fn prepare_rounded<B: InferenceBackend>(workload: &Workload, bits: InputBits) -> Result<Call, Failure> {
    match workload {
        Workload::Layer(sizes) if sizes.blocks.is_some() => {
            let matrices = Matrices::of(sizes.blocks);
            layer::<B>(sizes, &Types { matrices, rounding: bits.into(), ..Types::default() })
        }
        _ => Err("not a layer of blocks".into()),
    }
}

/// The call for a layer in other types, or for the encoder with such matrices.
pub fn prepare_types<B: InferenceBackend>(workload: &Workload, types: &Types) -> Result<Call, Failure> {
    match workload {
        Workload::Layer(sizes) => layer::<B>(sizes, types),
        Workload::Encoder { folder, batch } if types.dtype == DataType::Fp32 => encoder::<B>(folder, *batch, types),
        _ => Err("neither a layer nor the encoder in f32".into()),
    }
}

/// The elements on a backend, in huge pages as those of `numpy` are.
pub fn tensor<B: Backend>(dense: Dense<f32>) -> Tensor<B, 4> {
    let tensor = Tensor::from_data(TensorData::new(dense.elements, dense.shape), &B::Device::default());
    use_huge_pages(&tensor);
    tensor
}

/// Reads a tensor row by row.
pub fn read<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Output {
    Box::new(move || Ok(tensor.into_data().iter().collect()))
}

fn attention<B: InferenceBackend>(heads: &Heads) -> Call {
    let padding = heads.padding().map(|padding| {
        let data = TensorData::new(padding, [heads.batch, heads.keys]);
        Tensor::<B, 2, Int>::from_data(data, &B::Device::default())
    });
    let arguments = Attention {
        query: tensor::<B>(heads.query()),
        key: tensor(heads.key()),
        value: tensor(heads.value()),
        scale: heads.scale(),
        softcap: None,
        sinks: None,
        slopes: heads.alibi.then(|| alibi::slopes(heads.heads)),
        visibility: Visibility {
            causal: heads.causal,
            window: heads.window.map(Window::Back),
            starts: vec![heads.start()],
            ends: vec![heads.keys],
        },
        mask: padding.map_or_else(AttentionMask::none, AttentionMask::from_padding),
    };
    Box::new(move || Ok(read(B::Ops::masked_attention(arguments.clone()))))
}

/// A step that is dropped without commit, so that each call finds the same cache.
fn layer<B: InferenceBackend>(sizes: &Layer, types: &Types) -> Result<Call, Failure> {
    let &Layer { hidden, heads, kv_heads, head_dim, tokens, cached, .. } = sizes;
    let (device, blocks) = (B::Device::default(), types.matrices.blocks());
    let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, EPSILON);
    let config = DeepSpeedInferenceConfig::new(hidden, heads)
        .with_num_kv(Some(kv_heads))
        .with_head_dim(Some(head_dim))
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(cached + tokens)
        .with_dtype(types.dtype)
        .with_matrix_format(blocks.map_or(MatrixFormat::OfDtype, MatrixFormat::Blocks))
        .with_kv_cache_dtype(types.cache)
        .with_norm_type(NormType::RMSNorm)
        .with_layer_norm_eps(EPSILON)
        .with_rotary(RotaryLayout::Half, head_dim)
        .with_qk_norm(sizes.norm.then_some(norm))
        .with_sinks(sizes.sinks)
        .with_local_attention(sizes.window.is_some())
        .with_window_size(sizes.window.unwrap_or(1))
        .with_qkv_bias(false)
        // The orientation that checkpoints store.
        .with_transposed_mode(true)
        .with_output_bias(false);
    let fresh: DeepSpeedSelfAttention<B> = config.init_self_attention(0, &device)?;
    let mut noises = vec![(11, 0.1, 1.0), (12, 0.02, 0.0), (13, 0.02, 0.0)];
    if sizes.norm {
        noises.extend([(17, 0.1, 1.0), (18, 0.1, 1.0)]);
    }
    if sizes.sinks {
        noises.push((19, 1.0, 0.0));
    }
    let mut fill = Fill { noises: noises.into_iter(), blocks, inputs: [hidden, heads * head_dim].into_iter() };
    // As a record, which puts the parameters where the layer wants them.
    let record = fresh.clone().map(&mut fill).into_record();
    let attention = fresh.load_record(record);
    let attention = match types.matrices {
        Matrices::Int8 => attention.quantize(Int8Blocks::PerOutput)?,
        Matrices::Dense | Matrices::Blocks(_) => attention,
    };
    let attention = attention.with_rounded_activations(types.rounding);
    let mut cache = config.init_cache::<B>(1, &device)?;
    if cached > 0 {
        let shape = [1, kv_heads, cached, head_dim];
        let mut step = cache.step(cached)?;
        step.layer(0).append(tensor(Dense::noise(15, shape)), tensor(Dense::noise(16, shape)));
        step.commit();
    }
    let dtype = types.dtype.of_backend::<B>(&device)?;
    let input = tensor::<B>(Dense::noise(14, [1, 1, tokens, hidden])).reshape([1, tokens, hidden]).cast(dtype);
    Ok(Box::new(move || {
        let mut step = cache.step(tokens)?;
        Ok(read(attention.forward(input.clone(), AttentionMask::none(), step.layer(0))?))
    }))
}

/// Gives each parameter its noise.
struct Fill {
    /// Seed, deviation and mean of gamma, QKV and output matrix, the weights of the norms of queries and of keys, and the sinks, in
    /// this order.
    noises: std::vec::IntoIter<(u32, f64, f32)>,
    /// Of the matrices.
    blocks: Option<BlockFormat>,
    /// Of the matrices in blocks.
    inputs: std::array::IntoIter<usize, 2>,
}

/// `[out, in]` of the noise of `[in, out]`.
fn transposed(values: &[f32], inputs: usize) -> Vec<f32> {
    let outputs = values.len() / inputs;
    (0..values.len()).map(|at| values[at % inputs * outputs + at / inputs]).collect()
}

impl<B: Backend> ModuleMapper<B> for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape = param.lazy_shape();
        // A matrix of blocks has one float beside its bytes.
        if self.blocks.is_some() && shape.num_elements() == 1 {
            return param;
        }
        let Some((seed, deviation, mean)) = self.noises.next() else { return param };
        let mut values = noise(seed, shape.num_elements(), deviation);
        values.iter_mut().for_each(|value| *value += mean);
        if let [_, inputs] = shape[..] {
            values = transposed(&values, inputs);
        }
        let (device, dtype) = (param.lazy_device(), param.val().dtype());
        Param::initialized(param.id, Tensor::from_data(TensorData::new(values, shape), (&device, dtype)))
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        let Some(format) = self.blocks else { return param };
        let (Some((seed, deviation, _)), Some(inputs)) = (self.noises.next(), self.inputs.next()) else { return param };
        let shape = param.lazy_shape();
        let values = noise(seed, shape.num_elements() / format.bytes() * format.elements(), deviation);
        let bytes = format.quantise(&transposed(&values, inputs)).into_iter().map(u8::cast_signed).collect::<Vec<_>>();
        let tensor = Tensor::from_data(TensorData::new(bytes, shape), (&param.lazy_device(), DType::I8));
        Param::initialized(param.id, tensor)
    }
}

/// The pipeline of the `embed` example, from text to vectors.
fn encoder<B: InferenceBackend>(folder: &Path, batch: usize, types: &Types) -> Result<Call, Failure> {
    let &Types { matrices, rounding, .. } = types;
    let format = matrices.blocks().map_or(MatrixFormat::OfDtype, MatrixFormat::Blocks);
    let options = Options { matrices: format, rounding, ..Options::default() };
    let (embedder, _) = Embedder::<B>::open_with(folder, &options, &B::Device::default())?;
    let embedder: Box<dyn Embed> = match matrices {
        Matrices::Int8 => Box::new(embedder).quantize(Int8Blocks::PerOutput, rounding)?,
        Matrices::Dense | Matrices::Blocks(_) => Box::new(embedder),
    };
    let text = std::fs::read_to_string(folder.join("sentences.txt"))?;
    let sentences: Vec<String> = text.lines().map(String::from).collect();
    Ok(Box::new(move || {
        let mut vectors = Vec::new();
        for batch in sentences.chunks(batch) {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            vectors.extend(embedder.embed(&batch, Scaling::Unit)?);
        }
        Ok(Box::new(move || Ok(vectors.into_iter().flat_map(|record| record.embedding).collect())))
    }))
}
