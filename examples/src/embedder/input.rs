//! What becomes the input of the first layer: embeddings of tokens, or of the patches of an image.

use burn::nn::Embedding;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::load::families::{ImageShape, PatchPaths, TokenPaths};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, Weight};
use burn_deepspeed::{InferenceBackend, Operations, WeightError};

use super::plan::{InputPlan, Plan};
use super::tokens::TokenRows;
use crate::decoder::parts::embed;
use crate::layers::Loader;

/// The input of an encoder.
#[derive(Debug)]
pub(super) enum Input<B: Backend> {
    Tokens(TokenEmbedding<B>),
    Patches(PatchEmbedding<B>),
}

/// The sum of the embeddings of a token, its position and its segment.
#[derive(Debug)]
pub(super) struct TokenEmbedding<B: Backend> {
    words: Weight<B>,
    positions: Option<Embedding<B>>,
    /// That of the first segment, `[1, 1, E]`: a single text has no other.
    segment: Option<Tensor<B, 3>>,
    /// The token of padding from which positions count.
    padding: Option<usize>,
}

/// Projections of the patches of an image, with a class token before them if there is one, and positions.
#[derive(Debug)]
pub(super) struct PatchEmbedding<B: Backend> {
    projection: Weight<B>,
    /// `[1, E]`.
    class_token: Option<Tensor<B, 2>>,
    /// `[T, E]`.
    positions: Tensor<B, 2>,
}

impl<B: Backend> Input<B> {
    pub fn load(plan: &Plan<'_>, loader: &Loader<'_, B>) -> Result<Self, WeightError> {
        match &plan.input {
            InputPlan::Tokens { paths, segments, padding } => {
                TokenEmbedding::load(plan.config, loader, (paths, *segments, *padding)).map(Self::Tokens)
            }
            InputPlan::Patches { paths, shape } => PatchEmbedding::load(loader, paths, *shape).map(Self::Patches),
        }
    }
}

impl<B: Backend> TokenEmbedding<B> {
    fn load(
        config: &HuggingFaceConfig,
        loader: &Loader<'_, B>,
        (paths, segments, padding): (&TokenPaths, Option<(&'static str, usize)>, Option<usize>),
    ) -> Result<Self, WeightError> {
        let table = config.family.positions.zip(config.max_positions);
        let segments = segments.map(|(path, count)| loader.embedding(&loader.at(path), count)).transpose()?;
        Ok(Self {
            words: loader.table(&loader.at(paths.words), config.vocab_size)?,
            positions: table.map(|(table, rows)| loader.embedding(&loader.at(table.path), rows)).transpose()?,
            segment: segments.map(|segments| segments.weight.val().narrow(0, 0, 1).unsqueeze()),
            padding,
        })
    }
}

impl<B: InferenceBackend> TokenEmbedding<B> {
    /// The states of rows of tokens, normalised if there is a norm.
    ///
    /// # Shapes
    /// - output: `[B, T, E]`
    pub fn forward(&self, rows: &TokenRows, norm: Option<&FusedNorm<B>>, device: &B::Device) -> Tensor<B, 3> {
        let words = embed(&self.words, rows.ids(device));
        let places = self.positions.as_ref().map(|table| table.forward(self.position_ids(rows, device)));
        let places = match (places, &self.segment) {
            (Some(places), Some(segment)) => Some(places + segment.clone()),
            (places, segment) => places.or(segment.clone()),
        };
        let places = places.map(|places| {
            let [batch, tokens, _] = words.dims();
            let [own_batch, own_tokens, _] = places.dims();
            places.repeat_dim(0, batch / own_batch).repeat_dim(1, tokens / own_tokens)
        });
        match (places, norm) {
            (Some(places), Some(norm)) => B::Ops::residual_norm(words, places, norm),
            (Some(places), None) => words + places,
            (None, Some(norm)) => normalise(words, norm),
            (None, None) => words,
        }
    }

    /// The row of the table of positions for each token, `[1 or B, T]`.
    fn position_ids(&self, rows: &TokenRows, device: &B::Device) -> Tensor<B, 2, Int> {
        let [batch, tokens] = rows.dims();
        let Some(padding) = self.padding else {
            return Tensor::arange(0..tokens as i64, device).unsqueeze();
        };
        let mut ids = Vec::with_capacity(batch * tokens);
        for row in &rows.ids {
            let mut last = padding;
            for &id in row {
                let is_padding = id as usize == padding;
                last += usize::from(!is_padding);
                ids.push(if is_padding { padding } else { last } as i64);
            }
        }
        Tensor::from_data(TensorData::new(ids, [batch, tokens]), device)
    }
}

impl<B: Backend> PatchEmbedding<B> {
    fn load(loader: &Loader<'_, B>, paths: &PatchPaths, shape: ImageShape) -> Result<Self, WeightError> {
        let [height, width] = shape.patch;
        let [rows, columns] = shape.grid();
        // A file may state any size: the tensor is compared with it.
        let tokens = rows.saturating_mul(columns).saturating_add(usize::from(paths.class_token.is_some()));
        let class_token = paths.class_token.map(|name| loader.rows(&loader.at(name), 1)).transpose()?;
        Ok(Self {
            projection: loader.convolution(
                &loader.at(paths.projection),
                [shape.channels, height, width],
                paths.bias,
            )?,
            class_token,
            positions: loader.rows(&loader.at(paths.positions), tokens)?,
        })
    }
}

impl<B: InferenceBackend> PatchEmbedding<B> {
    /// The states of images, normalised if there is a norm.
    ///
    /// # Shapes
    /// - patches: `[B, T, C · height · width]`, output: `[B, T, E]`, one more with a class token
    pub fn forward(&self, patches: Tensor<B, 3>, norm: Option<&FusedNorm<B>>) -> Tensor<B, 3> {
        let batch = patches.dims()[0];
        let mut states = B::Ops::linear(patches, &self.projection);
        if let Some(token) = &self.class_token {
            let token: Tensor<B, 3> = token.clone().unsqueeze();
            states = Tensor::cat(vec![token.repeat_dim(0, batch), states], 1);
        }
        let positions: Tensor<B, 3> = self.positions.clone().unsqueeze();
        let places = positions.repeat_dim(0, batch);
        match norm {
            Some(norm) => B::Ops::residual_norm(states, places, norm),
            None => states + places,
        }
    }
}
