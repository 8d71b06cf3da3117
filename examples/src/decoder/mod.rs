//! A small decoder-only language model, composed from this crate's attention and `burn::nn`. It runs every family whose record
//! has [`DecoderPaths`].
//!
//! The blocks of the families differ in three things: the norm, the input of the MLP, and how positions enter.
//!
//! On several ranks attention is split by heads and the MLP by its inner features, <https://arxiv.org/abs/1909.08053>; embeddings
//! and norms are on each.

mod load;

use std::sync::Arc;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{gelu_approximate, relu, silu};
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::load::families::DecoderPaths;
use burn_deepspeed::ops::Keys;
use burn_deepspeed::parallel::{AgreedSettings, Communicator};
use burn_deepspeed::weight::{Int8Blocks, Orientation, Weight};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, AttentionOutput, ConfigError, DataType, DeepSpeedSelfAttention,
    InferenceBackend, KvCacheType, NormType, OfBackend, Operations, Positions, Step, WantedOutputs, WeightError,
};

/// A decoder-only language model.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    tokens: Embedding<B>,
    positions: Option<Embedding<B>>,
    embedding_norm: Option<LayerNorm<B>>,
    blocks: Vec<Block<B>>,
    final_norm: Norm<B>,
    head: Weight<B>,
    #[module(skip)]
    position_offset: usize,
}

/// One layer.
#[derive(Module, Debug)]
struct Block<B: Backend> {
    attention: DeepSpeedSelfAttention<B>,
    mlp_norm: Option<Norm<B>>,
    gate: Option<Weight<B>>,
    up: Weight<B>,
    down: Weight<B>,
    #[module(skip)]
    branch: Branch,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    mlp_sum: Option<Sum>,
}

/// The sum of a layer's MLP over ranks.
#[derive(Debug, Clone)]
struct Sum {
    communicator: Arc<dyn Communicator>,
    settings: AgreedSettings,
}

/// The input of the MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Branch {
    /// The sum of the block's input and the output of attention.
    Sequential,
    /// The input of the block, as for attention (GPT-NeoX); for GPT-J, after the norm of attention.
    Parallel,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Activation {
    Relu,
    Gelu,
    GeluTanh,
    Silu,
}

#[derive(Module, Debug)]
enum Norm<B: Backend> {
    Layer(LayerNorm<B>),
    Rms(RmsNorm<B>),
}

impl<B: Backend> Norm<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

impl Activation {
    fn of(config: &HuggingFaceConfig) -> Result<Self, ConfigError> {
        match config.activation.as_str() {
            "relu" => Ok(Self::Relu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "silu" | "swish" => Ok(Self::Silu),
            other => Err(ConfigError::Unsupported {
                key: config.fields()?.spelling(config.family.class.activation.names).into(),
                value: format!("\"{other}\""),
                supported: "relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, silu, swish".into(),
            }),
        }
    }

    fn apply<B: InferenceBackend>(self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Relu => relu(x),
            Self::Gelu => B::Ops::gelu(x),
            Self::GeluTanh => gelu_approximate(x),
            Self::Silu => silu(x),
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// A model with random weights.
    pub fn init(config: &HuggingFaceConfig, device: &B::Device) -> Result<Self, ConfigError> {
        let hidden = config.attention_config(0).hidden_size;
        let paths = paths(config)?;
        let fields = config.fields()?;
        paths.only.iter().try_for_each(|only| only.check(&fields))?;
        // A narrower embedding has a projection on each side.
        let width = fields.size(&["word_embed_proj_dim"])?.unwrap_or(hidden);
        if width != hidden {
            return Err(fields.unsupported("word_embed_proj_dim", &format!("{hidden}, the hidden size")));
        }

        let initializer = Initializer::Normal { mean: 0.0, std: 0.02 };
        let embedding =
            |rows: usize| EmbeddingConfig::new(rows, hidden).with_initializer(initializer.clone()).init(device);
        let position_offset = config.family.positions.map_or(0, |positions| positions.offset);
        let positions = config.learned_positions().map(|rows| embedding(rows.saturating_add(position_offset)));
        let blocks = (0..config.layers).map(|layer| Block::init(config, layer, device)).collect::<Result<_, _>>()?;
        Ok(Self {
            tokens: embedding(config.vocab_size),
            positions,
            embedding_norm: paths.embedding_norm.map(|_| layer_norm(config, device)),
            blocks,
            final_norm: norm(config, device),
            head: linear(config, [hidden, config.vocab_size], paths.head_bias, device)?,
            position_offset,
        })
    }

    /// The model of one rank, which adds its attention and MLP to those of the others.
    pub fn with_communicator(self, communicator: &Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        let linked = |(layer, block): (usize, Block<B>)| {
            let settings =
                AgreedSettings::new([("the layer of the MLP", &layer), ("its activation", &block.activation)]);
            Ok(Block {
                attention: block.attention.with_communicator(communicator.clone())?,
                mlp_sum: (communicator.size() > 1).then(|| Sum { communicator: communicator.clone(), settings }),
                ..block
            })
        };
        let blocks = self.blocks.into_iter().enumerate().map(linked).collect::<Result<_, ConfigError>>()?;
        Ok(Self { blocks, ..self })
    }

    /// The model for a cache of these element types.
    pub fn with_kv_cache_dtype(self, types: KvCacheType) -> Self {
        let layers = self.blocks.into_iter();
        let blocks =
            layers.map(|block| Block { attention: block.attention.with_kv_cache_dtype(types), ..block }).collect();
        Self { blocks, ..self }
    }

    /// The model with projections of int8; embeddings and norms stay as they are. Records of such a model are loaded into one.
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let layers = self.blocks.into_iter().map(|block| block.quantize(blocks));
        Ok(Self { blocks: layers.collect::<Result<_, _>>()?, head: self.head.quantize(blocks)?, ..self })
    }

    /// Whether the projections are int8.
    pub fn is_int8(&self) -> bool {
        self.head.int8().is_some()
    }
}

/// Where the family keeps the parts of its decoder, and how its blocks are built.
fn paths(config: &HuggingFaceConfig) -> Result<DecoderPaths, ConfigError> {
    config.family.decoder.ok_or_else(|| ConfigError::UnknownValue {
        key: "model_type".into(),
        value: config.family.name().into(),
        accepted: "a decoder; `embed` runs BERT".into(),
    })
}

fn layer_norm<B: Backend>(config: &HuggingFaceConfig, device: &B::Device) -> LayerNorm<B> {
    let attention = config.attention_config(0);
    LayerNormConfig::new(attention.hidden_size).with_epsilon(attention.layer_norm_eps).init(device)
}

fn norm<B: Backend>(config: &HuggingFaceConfig, device: &B::Device) -> Norm<B> {
    let attention = config.attention_config(0);
    match attention.norm_type {
        NormType::RMSNorm => {
            Norm::Rms(RmsNormConfig::new(attention.hidden_size).with_epsilon(attention.layer_norm_eps).init(device))
        }
        _ => Norm::Layer(layer_norm(config, device)),
    }
}

/// A projection in the orientation and element type of attention's.
fn linear<B: Backend>(
    config: &HuggingFaceConfig,
    [input, output]: [usize; 2],
    bias: bool,
    device: &B::Device,
) -> Result<Weight<B>, ConfigError> {
    let attention = config.attention_config(0);
    let orientation = if attention.transposed_mode { Orientation::OutputInput } else { Orientation::InputOutput };
    let dtype = attention.dtype.of_backend::<B>(device)?;
    match attention.dtype {
        Some(DataType::Int8) => Weight::init_int8(input, output, bias, Int8Blocks::PerOutput, dtype, device),
        _ => Ok(Weight::init(input, output, bias, orientation, dtype, device)),
    }
}

impl<B: Backend> Block<B> {
    fn init(config: &HuggingFaceConfig, layer: usize, device: &B::Device) -> Result<Self, ConfigError> {
        let attention_config = config.attention_config(layer);
        let attention = attention_config.init_self_attention(layer, device)?;
        let (hidden, mlp) = (attention_config.hidden_size, attention_config.rank_group()?.part(config.mlp_size).len());
        let paths = paths(config)?;
        let fields = config.fields()?;
        let bias = paths.mlp_bias.of(&fields)?;
        let linear = |input, output| linear(config, [input, output], bias, device);
        Ok(Self {
            attention,
            mlp_norm: paths.mlp_norm.map(|_| norm(config, device)),
            gate: paths.gate.map(|_| linear(hidden, mlp)).transpose()?,
            up: linear(hidden, mlp)?,
            down: linear(mlp, hidden)?,
            branch: if paths.parallel.of(&fields)? { Branch::Parallel } else { Branch::Sequential },
            activation: Activation::of(config)?,
            mlp_sum: None,
        })
    }

    fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self {
            attention: self.attention.quantize(blocks)?,
            gate: self.gate.map(|gate| gate.quantize(blocks)).transpose()?,
            up: self.up.quantize(blocks)?,
            down: self.down.quantize(blocks)?,
            ..self
        })
    }
}

impl<B: InferenceBackend> Decoder<B> {
    /// Logits of `T` tokens that follow those in the cache.
    ///
    /// # Shapes
    /// - ids, positions: `[B, T]`; padding: `[B, S]`, 1 = a real token
    /// - output: `[B, T, vocabulary]`
    pub fn forward(
        &self,
        ids: Tensor<B, 2, Int>,
        padding: Tensor<B, 2, Int>,
        positions: &Positions,
        step: &mut Step<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let mask = AttentionMask::from_padding(padding);
        self.run(ids, &mask, positions, Some(step))
    }

    /// Logits of whole sequences, without a cache: for training.
    ///
    /// # Shapes
    /// - ids: `[B, T]`, output: `[B, T, vocabulary]`
    pub fn forward_uncached(&self, ids: Tensor<B, 2, Int>) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens] = ids.dims();
        let positions = Positions::sequential(&vec![0; batch], tokens);
        self.run(ids, &AttentionMask::none(), &positions, None)
    }

    fn run(
        &self,
        ids: Tensor<B, 2, Int>,
        mask: &AttentionMask<B>,
        positions: &Positions,
        mut step: Option<&mut Step<'_, B>>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens] = ids.dims();
        let mut x = self.tokens.forward(ids);
        if let Some(table) = &self.positions {
            let rows: Vec<i64> = positions.ids().iter().map(|&at| (at + self.position_offset) as i64).collect();
            let rows = burn::tensor::TensorData::new(rows, [batch, tokens]);
            x = x.clone() + table.forward(Tensor::from_data(rows, &x.device()));
        }
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(x);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let keys = match &mut step {
                Some(step) => Keys::Cached(step.layer(layer)),
                None => Keys::Fresh(positions),
            };
            x = block.forward(x, mask.clone(), keys)?;
        }
        Ok(B::Ops::linear(self.final_norm.forward(x), &self.head))
    }
}

impl<B: InferenceBackend> Block<B> {
    fn forward(
        &self,
        x: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        // GPT-J's MLP reads the normalised input of attention.
        let wanted = WantedOutputs::NONE.with_inp_norm(self.mlp_norm.is_none());
        let AttentionOutput { output, inp_norm, .. } =
            self.attention.forward_detailed(x.clone(), mask, keys, wanted)?;
        let sum = x.clone() + output;
        let branch = if self.branch == Branch::Parallel { x } else { sum.clone() };
        let input = match (&self.mlp_norm, inp_norm) {
            (Some(norm), _) => norm.forward(branch),
            (None, Some(normed)) => normed,
            (None, None) => branch,
        };
        let linear = B::Ops::linear;
        let inner = match &self.gate {
            Some(gate) => self.activation.apply(linear(input.clone(), gate)) * linear(input, &self.up),
            None => self.activation.apply(linear(input, &self.up)),
        };
        let Some(Sum { communicator, settings }) = &self.mlp_sum else {
            return Ok(sum + linear(inner, &self.down));
        };
        let mlp = B::Ops::all_reduce(B::Ops::vector_matmul(inner, &self.down), &**communicator, settings)?;
        Ok(match self.down.bias() {
            Some(bias) => sum + mlp + bias.unsqueeze(),
            None => sum + mlp,
        })
    }
}
