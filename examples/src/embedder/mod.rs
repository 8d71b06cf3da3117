//! Sentence embeddings: a BERT encoder, and the modules that the checkpoint has after it.
//!
//! This is the pipeline of [Sentence-BERT](https://arxiv.org/abs/1908.10084) that all-MiniLM-L6-v2 and its relatives run: the mean
//! over the vectors of the tokens, of length 1. `modules.json` of a checkpoint may list another pooling and projections.

mod dense;
mod encoder;
mod load;
mod modules;
mod options;
mod pooling;
mod prompts;
mod tokens;

use std::path::Path;

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::config::read_json;
use burn_deepspeed::load::{Checkpoint, ConfigOptions, HuggingFaceConfig, LoadReport};
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed::{DataType, InferenceBackend};
use serde::Serialize;
use serde_json::Value;

use crate::backend::BackendName;
use crate::{Failure, on_backend};
use encoder::Encoder;
use modules::{ModuleList, Modules};
pub use options::Options;
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
pub fn open(backend: BackendName, folder: &Path, options: &Options) -> Result<(Box<dyn Embed>, LoadReport), Failure> {
    fn boxed<B: InferenceBackend>(folder: &Path, options: &Options) -> Result<(Box<dyn Embed>, LoadReport), Failure> {
        let (embedder, report) = Embedder::<B>::open_with(folder, options, &B::Device::default())?;
        Ok((Box::new(embedder), report))
    }
    on_backend!(backend, boxed, folder, options)
}

/// A sentence encoder with its tokenizer.
pub struct Embedder<B: Backend> {
    sentences: Sentences,
    encoder: Encoder<B>,
    modules: Modules<B>,
    device: B::Device,
}

/// How long the vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// As `modules.json` says: 1 if it has Normalize, else as the last module gives them. Without the file, 1.
    Saved,
    /// 1, so that a dot product is a cosine.
    Unit,
    /// As they are before the Normalize at the end.
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
    /// One number for each feature of the last module.
    pub embedding: Vec<f32>,
}

impl<B: InferenceBackend> Embedder<B> {
    /// Reads a folder in the Hugging Face layout, in f32, as its files say.
    pub fn open(folder: &Path, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        Self::open_with(folder, &Options::default(), device)
    }

    /// Reads a folder in the Hugging Face layout, in f32.
    ///
    /// # Errors
    /// An error that names the file and what in it is not supported.
    pub fn open_with(folder: &Path, options: &Options, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        if !folder.is_dir() {
            return Err(format!(
                "the model folder {} is not there; give one with config.json, model.safetensors and tokenizer.json \
                 (`--help` says where to get all-MiniLM-L6-v2)",
                folder.display()
            )
            .into());
        }
        let list = ModuleList::open(folder)?;
        let reading = ConfigOptions::default().with_dtype(DataType::Fp32).with_allowed_keys(&options.allowed_keys);
        let file = list.encoder.join("config.json");
        let config = HuggingFaceConfig::read_file(&file, &reading)?;
        let checkpoint = Checkpoint::open(&list.encoder)?;
        config.check(&checkpoint)?;
        let encoder = Encoder::init(&config, device).map_err(|error| error.in_file(&file))?;
        let (positions, vocabulary) = (encoder.max_positions(), config.vocab_size);
        let prompt = prompts::read(folder, options)?;
        let sentences = Sentences::open(&list.encoder, (positions, vocabulary), prompt, &options.allowed_keys)?;
        let width = config.attention_config(0).hidden_size;
        let modules = Modules::open(&list, width, &options.allowed_keys, device)?;
        let (encoder, report) = encoder.load(&config, &checkpoint, device)?;
        Ok((Self { sentences, encoder, modules, device: device.clone() }, report))
    }

    /// Embeds sentences as one batch.
    fn vectors(&self, sentences: &[&Tokens], scaling: Scaling) -> Result<Vec<Vec<f32>>, Failure> {
        let Batch { ids, padding } = Batch::<B>::new(sentences, &self.device);
        let hidden = self.encoder.forward(ids, padding)?;
        let lengths: Vec<usize> = sentences.iter().map(|sentence| sentence.ids.len()).collect();
        let vectors = self.modules.forward(hidden, &lengths, self.sentences.prompt_tokens(), scaling);
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

/// Each row over its Euclidean length.
fn unit_length<B: Backend>(vectors: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = vectors.clone().powi_scalar(2).sum_dim(1).sqrt();
    vectors / length.clamp_min(SHORTEST)
}

/// The record of a file; `None` if it is not there.
fn json(file: &Path) -> Result<Option<Value>, Failure> {
    Ok(if file.exists() { Some(read_json(file)?) } else { None })
}
