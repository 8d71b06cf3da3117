//! The decoder: attention to its own tokens and to the states of the encoder, and an MLP.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::load::families::BranchPaths;
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, Orientation, RelativeBias, Weight};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, CrossCache, DeepSpeedCrossAttention, DeepSpeedSelfAttention,
    InferenceBackend, KvCache, Operations, WeightError,
};

use super::encoder::Encoded;
use super::input::{Positions, Tables, Tokens, relative_bias};
use super::plan::StackPlan;
use crate::layers::{Loader, Mlp, MlpBranch, sum};

/// The decoder of an encoder-decoder.
#[derive(Debug)]
pub(super) struct Decoder<B: Backend> {
    tokens: Tokens<B>,
    positions: Positions<B>,
    relative: Option<RelativeBias<B>>,
    blocks: Vec<Block<B>>,
    final_norm: Option<FusedNorm<B>>,
    /// Factor of the states before the output embedding.
    factor: f64,
    head: Weight<B>,
}

/// One layer.
#[derive(Debug)]
struct Block<B: Backend> {
    attention: DeepSpeedSelfAttention<B>,
    /// The norms of the sums with both attentions, in layers whose norms come after the sums.
    attention_norm: Option<FusedNorm<B>>,
    cross: DeepSpeedCrossAttention<B>,
    cross_norm: Option<FusedNorm<B>>,
    mlp: MlpBranch<B>,
}

impl<B: Backend> Decoder<B> {
    pub fn load(loader: &Loader<'_, B>, plan: &StackPlan<'_>, tables: &mut Tables<B>) -> Result<Self, WeightError> {
        Ok(Self {
            tokens: Tokens::load(loader, plan, tables)?,
            positions: Positions::load(loader, plan)?,
            relative: relative_bias(loader, plan)?,
            blocks: blocks(loader, plan)?,
            final_norm: plan.paths.final_norm.map(|path| loader.norm(&loader.at(path))).transpose()?,
            factor: plan.config.output_factor,
            head: head(loader, plan, tables)?,
        })
    }
}

fn blocks<B: Backend>(loader: &Loader<'_, B>, plan: &StackPlan<'_>) -> Result<Vec<Block<B>>, WeightError> {
    let Some(cross) = &plan.paths.cross else { return Ok(Vec::new()) };
    (0..plan.stack.layers).map(|layer| block(loader, plan, cross, layer)).collect()
}

fn block<B: Backend>(
    loader: &Loader<'_, B>,
    plan: &StackPlan<'_>,
    cross_paths: &BranchPaths,
    layer: usize,
) -> Result<Block<B>, WeightError> {
    let (config, paths, checkpoint) = (plan.config, plan.paths, loader.checkpoint);
    let path = config.layer_path(checkpoint, paths, layer);
    let norm_after = config.norms_after();
    let norm = |name: &str| loader.norm(&format!("{path}.{name}"));
    let attention = plan.attention().init_self_attention(layer, loader.device)?;
    let cross = plan.attention().init_cross_attention(loader.hidden, layer, loader.device)?;
    let mlp = Mlp::load(loader, &plan.mlp, &path)?;
    Ok(Block {
        attention: attention.load(checkpoint, &paths.attention.names(&path))?,
        attention_norm: norm_after.then(|| norm(paths.attention.norm)).transpose()?,
        cross: cross.load(checkpoint, &cross_paths.names(&path))?,
        cross_norm: norm_after.then(|| norm(cross_paths.norm)).transpose()?,
        mlp: MlpBranch { norm: norm(paths.mlp.norm)?, norm_after, mlp },
    })
}

/// The output embedding, with the bias of the logits if there is one.
fn head<B: Backend>(
    loader: &Loader<'_, B>,
    plan: &StackPlan<'_>,
    tables: &mut Tables<B>,
) -> Result<Weight<B>, WeightError> {
    let bias = plan.config.family.logit_bias.filter(|name| loader.checkpoint.contains(name));
    let bias = bias.map(|name| loader.tensor::<2>(name, [1, plan.config.vocab_size])).transpose()?;
    let bias = bias.map(|bias| bias.squeeze_dim(0));
    Ok(Weight::new(tables.output(loader, plan)?, bias, Orientation::OutputInput))
}

impl<B: InferenceBackend> Decoder<B> {
    /// The keys and values of the encoder's states for every layer.
    pub fn contexts(&self, encoded: Encoded<B>) -> Result<CrossCache<B>, AttentionError> {
        CrossCache::new(self.blocks.iter().map(|block| &block.cross), encoded.states, &encoded.lengths)
    }

    /// Logits of the last of these tokens, which follow those in the cache. All rows have the same number.
    ///
    /// # Shapes
    /// - output: `[B, 1, vocabulary]`
    pub fn forward(
        &self,
        ids: &[Vec<i64>],
        cache: &mut KvCache<B>,
        contexts: &CrossCache<B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let past = cache.len();
        let mut states = self.positions.forward(self.tokens.forward(ids), past);
        let [_, tokens, _] = states.dims();
        let mask = match &self.relative {
            Some(relative) => AttentionMask::none().with_bias(relative.bias(&[past], tokens, past + tokens)),
            None => AttentionMask::none(),
        };
        let mut step = cache.step(tokens)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let own = block.attention.forward(states.clone(), mask.clone(), step.layer(layer))?;
            states = sum(states, own, block.attention_norm.as_ref());
            let cross = block.cross.forward(states.clone(), AttentionMask::none(), contexts.layer(layer)?)?;
            states = block.mlp.forward(sum(states, cross, block.cross_norm.as_ref()));
        }
        step.commit();
        let last = states.narrow(1, tokens - 1, 1);
        let last = self.final_norm.as_ref().map_or(last.clone(), |norm| normalise(last, norm));
        let last = if self.factor == 1.0 { last } else { last.mul_scalar(self.factor) };
        Ok(B::Ops::linear(last, &self.head))
    }
}
