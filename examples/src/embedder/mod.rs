//! Sentence embeddings: a BERT encoder, the mean over its token vectors, unit length.
//!
//! This is the pipeline of [Sentence-BERT](https://arxiv.org/abs/1908.10084) that all-MiniLM-L6-v2 and its relatives run.

mod encoder;
mod load;
mod tokens;

use std::path::Path;

use burn::tensor::{FloatDType, Int, Tensor, backend::Backend};
use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig, LoadReport};
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed::{DataType, InferenceBackend};
use serde::Serialize;
use serde_json::Value;

use crate::backend::BackendName;
use crate::{Failure, on_backend};
use encoder::Encoder;
use tokens::{Batch, Sentences, Tokens};

/// Shortest vector that still has a direction; a shorter one keeps its length over this, as in PyTorch's `normalize`.
const SHORTEST: f64 = 1e-12;

/// Sentences run together if the shortest has this share of the tokens of the longest: padding costs as much as text.
const ALIKE: f64 = 0.75;

/// A sentence encoder on some backend.
pub trait Embed {
    /// Embeds the sentences, those of similar length together. The result is in the order of `sentences`.
    fn embed(&self, sentences: &[&str], scaling: Scaling) -> Result<Vec<Embedding>, Failure>;

    /// The same encoder with projections of int8.
    fn quantize(self: Box<Self>, blocks: Int8Blocks) -> Result<Box<dyn Embed>, Failure>;
}

/// Opens a folder in the Hugging Face layout, in f32, on a backend of the build.
pub fn open(backend: BackendName, folder: &Path) -> Result<(Box<dyn Embed>, LoadReport), Failure> {
    fn boxed<B: InferenceBackend>(folder: &Path) -> Result<(Box<dyn Embed>, LoadReport), Failure> {
        let (embedder, report) = Embedder::<B>::open(folder, &B::Device::default())?;
        Ok((Box::new(embedder), report))
    }
    on_backend!(backend, boxed, folder)
}

/// A sentence encoder with its tokenizer.
pub struct Embedder<B: Backend> {
    sentences: Sentences,
    encoder: Encoder<B>,
    device: B::Device,
}

/// How long the vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// 1, so that a dot product is a cosine.
    Unit,
    /// As long as the mean.
    Unscaled,
}

/// A sentence and its vector: one record of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embedding {
    /// The sentence as it was given.
    pub text: String,
    /// Tokens that were embedded, `[CLS]` and `[SEP]` included.
    pub tokens: usize,
    /// Tokens that were left out at the end, because the sentence is longer than the model takes; 0 for most.
    pub cut_tokens: usize,
    /// One number for each feature of the encoder.
    pub embedding: Vec<f32>,
}

impl<B: InferenceBackend> Embedder<B> {
    /// Reads a folder in the Hugging Face layout, in f32.
    pub fn open(folder: &Path, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        if !folder.is_dir() {
            return Err(format!(
                "the model folder {} is not there; give one with config.json, model.safetensors and tokenizer.json \
                 (`--help` says where to get all-MiniLM-L6-v2)",
                folder.display()
            )
            .into());
        }
        let config = HuggingFaceConfig::from_json_file(folder.join("config.json"))?
            .with_attention(|attention| attention.with_dtype(DataType::Fp32));
        let checkpoint = Checkpoint::open(folder)?;
        config.check(&checkpoint)?;
        let encoder = Encoder::init(&config, device)?;
        let max_positions = encoder.max_positions();
        let sentences = Sentences::open(folder, max_positions, config.vocab_size)?;
        check_pooling(folder)?;
        let (encoder, report) = encoder.load(&config, &checkpoint, device)?;
        Ok((Self { sentences, encoder, device: device.clone() }, report))
    }

    /// Embeds sentences as one batch.
    fn vectors(&self, sentences: &[&Tokens], scaling: Scaling) -> Result<Vec<Vec<f32>>, Failure> {
        let Batch { ids, padding } = Batch::<B>::new(sentences, &self.device);
        let hidden = self.encoder.forward(ids, padding.clone())?;
        let mean = mean_of_tokens(hidden, padding);
        let vectors = match scaling {
            Scaling::Unit => unit_length(mean),
            Scaling::Unscaled => mean,
        };
        let [_, features] = vectors.dims();
        let values: Vec<f32> = vectors.into_data().iter().collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Err("the vectors are not finite; the checkpoint has a NaN or an infinity, download it again".into());
        }
        Ok(values.chunks(features).map(<[f32]>::to_vec).collect())
    }
}

impl<B: InferenceBackend> Embed for Embedder<B> {
    fn embed(&self, sentences: &[&str], scaling: Scaling) -> Result<Vec<Embedding>, Failure> {
        let tokens = self.sentences.split(sentences)?;
        let mut vectors = vec![Vec::new(); sentences.len()];
        for group in alike(&tokens) {
            let group_tokens: Vec<&Tokens> = group.iter().map(|&sentence| &tokens[sentence]).collect();
            for (sentence, vector) in group.iter().zip(self.vectors(&group_tokens, scaling)?) {
                vectors[*sentence] = vector;
            }
        }
        let records = sentences.iter().zip(&tokens).zip(vectors);
        Ok(records
            .map(|((text, Tokens { ids, cut }), embedding)| Embedding {
                text: (*text).into(),
                tokens: ids.len(),
                cut_tokens: *cut,
                embedding,
            })
            .collect())
    }

    fn quantize(self: Box<Self>, blocks: Int8Blocks) -> Result<Box<dyn Embed>, Failure> {
        Ok(Box::new(Self { encoder: self.encoder.quantize(blocks)?, ..*self }))
    }
}

/// Groups of sentences of similar length, by their places.
fn alike(sentences: &[Tokens]) -> Vec<Vec<usize>> {
    let tokens = |sentence: usize| sentences[sentence].ids.len();
    let mut order: Vec<usize> = (0..sentences.len()).collect();
    order.sort_by_key(|&sentence| std::cmp::Reverse(tokens(sentence)));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for sentence in order {
        match groups.last_mut() {
            Some(group) if tokens(sentence) as f64 >= ALIKE * tokens(group[0]) as f64 => group.push(sentence),
            _ => groups.push(vec![sentence]),
        }
    }
    groups
}

/// The mean over real tokens.
///
/// # Shapes
/// - hidden: `[B, T, E]`; padding: `[B, T]`, 0 leaves a token out; output: `[B, E]`
fn mean_of_tokens<B: Backend>(hidden: Tensor<B, 3>, padding: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let real: Tensor<B, 3> = padding.float().cast(FloatDType::F32).unsqueeze_dim(2);
    let sum = (hidden * real.clone()).sum_dim(1);
    (sum / real.sum_dim(1)).squeeze_dim(1)
}

/// Each row over its Euclidean length.
fn unit_length<B: Backend>(vectors: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = vectors.clone().powi_scalar(2).sum_dim(1).sqrt();
    vectors / length.clamp_min(SHORTEST)
}

/// Refuses a model that was trained with another pooling than the mean: its vectors would be silently wrong.
fn check_pooling(folder: &Path) -> Result<(), Failure> {
    let file = folder.join("1_Pooling").join("config.json");
    let Some(Value::Object(settings)) = json(&file)? else { return Ok(()) };
    let other = settings.iter().find(|(key, value)| match key.as_str() {
        "pooling_mode_mean_tokens" => **value == false,
        "pooling_mode" => **value != "mean",
        key => key.starts_with("pooling_mode_") && **value == true,
    });
    match other {
        None => Ok(()),
        Some((key, value)) => Err(format!(
            "{} has `{key}`: {value}, but only the mean over tokens is computed; use a model that pools the mean, or \
             remove the file to pool it anyway",
            file.display()
        )
        .into()),
    }
}

/// The record of a file; `None` if it is not there.
fn json(file: &Path) -> Result<Option<Value>, Failure> {
    if !file.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file).map_err(|cause| format!("cannot read {}: {cause}", file.display()))?;
    let record = serde_json::from_str(&text).map_err(|cause| format!("{} is not JSON: {cause}", file.display()))?;
    Ok(Some(record))
}
