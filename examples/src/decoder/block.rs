//! A layer: attention and an MLP, with the norms and factors of its family.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::load::families::Gate;
use burn_deepspeed::ops::Keys;
use burn_deepspeed::parallel::{AgreedSettings, Communicator};
use burn_deepspeed::weight::{Int8Blocks, Weight};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, ConfigError, DeepSpeedLatentAttention, DeepSpeedSelfAttention,
    InferenceBackend, KvCacheType, Operations, WantedOutputs, WeightError,
};

use super::activation::Activation;
use super::experts::Experts;
use super::layer_inputs::LayerInput;
use super::parts::{Norm, linear, norm, paths};

/// One layer.
#[derive(Module, Debug)]
pub(super) struct Block<B: Backend> {
    /// Attention; `None` in a layer with latent attention.
    pub attention: Option<DeepSpeedSelfAttention<B>>,
    pub latent: Option<DeepSpeedLatentAttention<B>>,
    pub attention_output_norm: Option<Norm<B>>,
    pub mlp_norm: Option<Norm<B>>,
    pub mlp_output_norm: Option<Norm<B>>,
    pub gate: Option<Weight<B>>,
    /// The MLP; `None` in a layer with experts.
    pub up: Option<Weight<B>>,
    pub down: Option<Weight<B>>,
    pub experts: Option<Experts<B>>,
    pub layer_input: Option<LayerInput<B>>,
    /// Factor of the output.
    pub layer_factor: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    branch: Branch,
    #[module(skip)]
    activation: Activation,
    /// Factor of the outputs of attention and of the MLP.
    #[module(skip)]
    factor: f64,
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

impl<B: Backend> Block<B> {
    pub fn init(config: &HuggingFaceConfig, layer: usize, device: &B::Device) -> Result<Self, ConfigError> {
        let attention_config = config.attention_config(layer);
        let latent = config.latent.map(|sizes| attention_config.init_latent_attention(&sizes, layer, device));
        let attention = config.latent.is_none().then(|| attention_config.init_self_attention(layer, device));
        let (hidden, mlp) =
            (attention_config.hidden_size, attention_config.rank_group()?.part(config.mlp_size_of(layer)).len());
        let paths = paths(config)?;
        let fields = config.fields()?;
        let bias = paths.mlp_bias.of(&fields)?;
        let linear = |input, output| linear(config, [input, output], bias, device);
        let norm = |path: Option<&str>| path.map(|_| norm(config, device));
        let experts = Experts::init(config, layer, device)?;
        let (dense, input) = (experts.is_none(), paths.layer_inputs.as_ref());
        Ok(Self {
            attention: attention.transpose()?,
            latent: latent.transpose()?,
            attention_output_norm: norm(paths.attention_output_norm),
            mlp_norm: norm(paths.mlp_norm),
            mlp_output_norm: norm(paths.mlp_output_norm),
            gate: (dense && paths.gate != Gate::None).then(|| linear(hidden, mlp)).transpose()?,
            up: dense.then(|| linear(hidden, mlp)).transpose()?,
            down: dense.then(|| linear(mlp, hidden)).transpose()?,
            experts,
            layer_input: input.map(|paths| LayerInput::init(config, paths, layer, device)).transpose()?,
            layer_factor: paths.layer_factor.map(|_| Param::from_tensor(Tensor::ones([1], device))),
            branch: if paths.parallel.of(&fields)? { Branch::Parallel } else { Branch::Sequential },
            activation: Activation::of(config)?,
            factor: paths.residual_factor.of(&fields, hidden)?,
            mlp_sum: None,
        })
    }

    /// The layer of one rank.
    pub fn with_communicator(self, layer: usize, communicator: &Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        let settings = AgreedSettings::new([
            ("the layer of the MLP", &layer),
            ("its activation", &self.activation),
            ("the factor of its output", &self.factor),
            ("its experts", &self.experts.as_ref().map(Experts::settings)),
        ]);
        Ok(Self {
            attention: self.attention.map(|own| own.with_communicator(communicator.clone())).transpose()?,
            latent: self.latent.map(|own| own.with_communicator(communicator.clone())).transpose()?,
            mlp_sum: (communicator.size() > 1).then(|| Sum { communicator: communicator.clone(), settings }),
            ..self
        })
    }

    pub fn with_kv_cache_dtype(self, types: KvCacheType) -> Self {
        Self {
            attention: self.attention.map(|own| own.with_kv_cache_dtype(types)),
            latent: self.latent.map(|own| own.with_kv_cache_dtype(types)),
            ..self
        }
    }

    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self {
            attention: self.attention.map(|own| own.quantize(blocks)).transpose()?,
            latent: self.latent.map(|own| own.quantize(blocks)).transpose()?,
            gate: self.gate.map(|gate| gate.quantize(blocks)).transpose()?,
            up: self.up.map(|up| up.quantize(blocks)).transpose()?,
            down: self.down.map(|down| down.quantize(blocks)).transpose()?,
            experts: self.experts.map(|experts| experts.quantize(blocks)).transpose()?,
            layer_input: self.layer_input.map(|input| input.quantize(blocks)).transpose()?,
            ..self
        })
    }
}

impl<B: InferenceBackend> Block<B> {
    /// # Shapes
    /// - x, output: `[B, T, E]`; inputs: those of [`LayerInput::forward`], in a model that has them
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        inputs: Option<&Tensor<B, 3>>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        // The MLP of a block with one norm reads the normalised input of attention.
        let wanted = WantedOutputs::NONE.with_inp_norm(self.mlp_norm.is_none() && self.branch == Branch::Parallel);
        let (output, inp_norm) = self.attend(x.clone(), mask, keys, wanted)?;
        let sum = x.clone() + self.scaled(normed(self.attention_output_norm.as_ref(), output));
        let branch = if self.branch == Branch::Parallel { x } else { sum.clone() };
        let input = match (&self.mlp_norm, inp_norm) {
            (Some(norm), _) => norm.forward(branch),
            (None, Some(normed)) => normed,
            (None, None) => branch,
        };
        let mut output = sum + self.scaled(normed(self.mlp_output_norm.as_ref(), self.mlp(input)?));
        if let (Some(own), Some(inputs)) = (&self.layer_input, inputs) {
            output = own.forward(output, inputs, self.activation);
        }
        Ok(match &self.layer_factor {
            Some(factor) => output * factor.val().unsqueeze(),
            None => output,
        })
    }

    /// The output of attention, and its normalised input if that is wanted.
    fn attend(
        &self,
        x: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: WantedOutputs,
    ) -> Result<(Tensor<B, 3>, Option<Tensor<B, 3>>), AttentionError> {
        if let Some(attention) = &self.attention {
            let outputs = attention.forward_detailed(x, mask, keys, wanted)?;
            return Ok((outputs.output, outputs.inp_norm));
        }
        let latent = self.latent.as_ref().unwrap_or_else(|| unreachable!("a block has one of the two"));
        let output = match keys {
            Keys::Cached(cache) => latent.forward(x, mask, cache),
            Keys::Fresh(positions) => latent.forward_uncached(x, mask, Some(positions)),
        };
        Ok((output?, None))
    }

    /// The MLP, summed over the ranks.
    fn mlp(&self, input: Tensor<B, 3>) -> Result<Tensor<B, 3>, AttentionError> {
        if let Some(experts) = &self.experts {
            return self.over_ranks(experts.forward(input, self.activation));
        }
        let (Some(up), Some(down)) = (&self.up, &self.down) else { return Ok(input.zeros_like()) };
        let linear = B::Ops::linear;
        let inner = match &self.gate {
            Some(gate) => self.activation.gated(linear(input.clone(), gate), linear(input, up)),
            None => self.activation.apply(linear(input, up)),
        };
        if self.mlp_sum.is_none() {
            return Ok(linear(inner, down));
        }
        let mlp = self.over_ranks(B::Ops::vector_matmul(inner, down))?;
        Ok(match down.bias() {
            Some(bias) => mlp + bias.unsqueeze(),
            None => mlp,
        })
    }

    fn over_ranks(&self, partial: Tensor<B, 3>) -> Result<Tensor<B, 3>, AttentionError> {
        match &self.mlp_sum {
            Some(Sum { communicator, settings }) => Ok(B::Ops::all_reduce(partial, &**communicator, settings)?),
            None => Ok(partial),
        }
    }

    fn scaled(&self, output: Tensor<B, 3>) -> Tensor<B, 3> {
        if self.factor == 1.0 { output } else { output.mul_scalar(self.factor) }
    }
}

fn normed<B: Backend>(norm: Option<&Norm<B>>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
