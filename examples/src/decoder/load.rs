//! Reads a Hugging Face checkpoint into the decoder: on several ranks, each its part of it.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::nn::{Embedding, LayerNorm};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::load::{Architecture, Checkpoint, HuggingFaceConfig, LoadReport};
use burn_deepspeed::weight::{Int8Blocks, Orientation, Weight, transposed};
use burn_deepspeed::{OfBackend, WeightError};

use super::{Block, Decoder, Norm};

/// The names of everything around attention.
struct Names {
    tokens: &'static str,
    positions: &'static str,
    embedding_norm: &'static str,
    final_norm: &'static str,
    head: &'static str,
    mlp_norm: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

fn names(architecture: Architecture) -> Names {
    let gpt2 = Names {
        tokens: "wte",
        positions: "wpe",
        embedding_norm: "word_embeddings_layernorm",
        final_norm: "ln_f",
        head: "lm_head",
        mlp_norm: "ln_2",
        gate: "mlp.gate_proj",
        up: "mlp.c_fc",
        down: "mlp.c_proj",
    };
    match architecture {
        Architecture::Bloom => Names {
            tokens: "word_embeddings",
            mlp_norm: "post_attention_layernorm",
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
            ..gpt2
        },
        Architecture::GptJ => Names { up: "mlp.fc_in", down: "mlp.fc_out", ..gpt2 },
        Architecture::GptNeoX => Names {
            tokens: "embed_in",
            final_norm: "final_layer_norm",
            head: "embed_out",
            mlp_norm: "post_attention_layernorm",
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
            ..gpt2
        },
        Architecture::Llama | Architecture::Mistral => Names {
            tokens: "embed_tokens",
            final_norm: "norm",
            mlp_norm: "post_attention_layernorm",
            up: "mlp.up_proj",
            down: "mlp.down_proj",
            ..gpt2
        },
        Architecture::Opt => Names {
            tokens: "embed_tokens",
            positions: "embed_positions",
            final_norm: "final_layer_norm",
            mlp_norm: "final_layer_norm",
            up: "fc1",
            down: "fc2",
            ..gpt2
        },
        _ => gpt2,
    }
}

struct Reader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    dtype: DType,
    device: B::Device,
    orientation: Orientation,
}

/// A projection's part on one rank.
#[derive(Clone)]
enum Cut {
    /// All of it.
    Whole,
    /// These of so many outputs.
    Outputs(Range<usize>, usize),
    /// These of so many inputs; the bias is whole.
    Inputs(Range<usize>, usize),
}

impl<B: Backend> Decoder<B> {
    /// The model with the weights of a checkpoint, every tensor of which must find its place.
    pub fn load(
        mut self,
        config: &HuggingFaceConfig,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), WeightError> {
        // Buffers that older versions of `transformers` saved beside the weights.
        const BUFFERS: [&str; 5] =
            [".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq"];
        checkpoint.ignore(|name| BUFFERS.iter().any(|buffer| name.ends_with(buffer)));
        let names = names(config.architecture);
        let prefix = config.prefix(checkpoint);
        let reader = Reader::<B> {
            checkpoint,
            dtype: config.attention_config(0).dtype.of_backend::<B>(device)?,
            device: device.clone(),
            orientation: if config.architecture == Architecture::Gpt2 {
                Orientation::InputOutput
            } else {
                Orientation::OutputInput
            },
        };
        let at = |name: &str| format!("{prefix}{name}");
        self.tokens = reader.embedding(self.tokens, &at(names.tokens))?;
        self.positions = self.positions.map(|table| reader.embedding(table, &at(names.positions))).transpose()?;
        self.embedding_norm =
            self.embedding_norm.map(|norm| reader.layer_norm(norm, &at(names.embedding_norm))).transpose()?;
        self.final_norm = reader.norm(self.final_norm, &at(names.final_norm))?;
        let mlp = config.attention_config(0).rank_group()?.part(config.mlp_size);
        let (outputs, inputs) = (Cut::Outputs(mlp.clone(), config.mlp_size), Cut::Inputs(mlp, config.mlp_size));
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.into_iter().enumerate() {
            let attention_names = config.attention_names(checkpoint, layer);
            let path = config.layer_path(checkpoint, layer);
            let at = |name: &str| format!("{path}.{name}");
            blocks.push(Block {
                attention: block.attention.load(checkpoint, &attention_names)?,
                mlp_norm: block.mlp_norm.map(|norm| reader.norm(norm, &at(names.mlp_norm))).transpose()?,
                gate: block.gate.map(|gate| reader.linear(gate, &at(names.gate), outputs.clone())).transpose()?,
                up: reader.linear(block.up, &at(names.up), outputs.clone())?,
                down: reader.linear(block.down, &at(names.down), inputs.clone())?,
                ..block
            });
        }
        self.blocks = blocks;
        self.head = match checkpoint.contains(&format!("{}.weight", names.head)) || !config.tie_word_embeddings {
            true => Reader::<B> { orientation: Orientation::OutputInput, ..reader }.linear(
                self.head,
                names.head,
                Cut::Whole,
            )?,
            false => turned(self.tokens.weight.val(), None, &self.head)?,
        };
        let report = checkpoint.finish()?;
        Ok((self.no_grad(), report))
    }
}

/// An `[out, in]` matrix the way the module stores it.
fn turned<B: Backend>(
    matrix: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    module: &Weight<B>,
) -> Result<Weight<B>, WeightError> {
    let matrix = match module.orientation() {
        Orientation::OutputInput => matrix,
        Orientation::InputOutput => transposed(matrix),
    };
    let weight = Weight::new(matrix, bias, module.orientation());
    if module.int8().is_some() { weight.quantize(Int8Blocks::PerOutput) } else { Ok(weight) }
}

impl<B: Backend> Reader<'_, B> {
    fn vector(&self, name: &str, like: &Param<Tensor<B, 1>>) -> Result<Param<Tensor<B, 1>>, WeightError> {
        let size = like.lazy_shape().dims::<1>();
        Ok(Param::from_tensor(self.checkpoint.tensor(name, size, self.dtype, &self.device)?))
    }

    fn embedding(&self, module: Embedding<B>, path: &str) -> Result<Embedding<B>, WeightError> {
        let shape = module.weight.lazy_shape().dims::<2>();
        let weight = self.checkpoint.tensor(&format!("{path}.weight"), shape, self.dtype, &self.device)?;
        Ok(Embedding { weight: Param::from_tensor(weight) })
    }

    fn linear(&self, module: Weight<B>, path: &str, cut: Cut) -> Result<Weight<B>, WeightError> {
        let (all_inputs, all_outputs, inputs, outputs) = match (module.input_size(), module.output_size(), cut) {
            (input, output, Cut::Whole) => (input, output, 0..input, 0..output),
            (input, _, Cut::Outputs(own, all)) => (input, all, 0..input, own),
            (_, output, Cut::Inputs(own, all)) => (all, output, own, 0..output),
        };
        let (shape, ranges) = match self.orientation {
            Orientation::InputOutput => ([all_inputs, all_outputs], [inputs, outputs.clone()]),
            Orientation::OutputInput => ([all_outputs, all_inputs], [outputs.clone(), inputs]),
        };
        let matrix = self.checkpoint.slice(&format!("{path}.weight"), shape, ranges, self.dtype, &self.device)?;
        let matrix = match self.orientation {
            Orientation::InputOutput => transposed(matrix),
            Orientation::OutputInput => matrix,
        };
        let bias = format!("{path}.bias");
        let bias = || self.checkpoint.slice(&bias, [all_outputs], [outputs], self.dtype, &self.device);
        turned(matrix, module.has_bias().then(bias).transpose()?, &module)
    }

    fn layer_norm(&self, mut module: LayerNorm<B>, path: &str) -> Result<LayerNorm<B>, WeightError> {
        module.gamma = self.vector(&format!("{path}.weight"), &module.gamma)?;
        module.beta = module.beta.as_ref().map(|beta| self.vector(&format!("{path}.bias"), beta)).transpose()?;
        Ok(module)
    }

    fn norm(&self, module: Norm<B>, path: &str) -> Result<Norm<B>, WeightError> {
        Ok(match module {
            Norm::Layer(norm) => Norm::Layer(self.layer_norm(norm, path)?),
            Norm::Rms(mut norm) => {
                norm.gamma = self.vector(&format!("{path}.weight"), &norm.gamma)?;
                Norm::Rms(norm)
            }
        })
    }
}
