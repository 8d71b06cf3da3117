//! Embeddings of sentences and of images: an encoder, and the modules that the checkpoint has after it.
//!
//! For sentences this is the pipeline of [Sentence-BERT](https://arxiv.org/abs/1908.10084) that all-MiniLM-L6-v2 and its relatives run: the
//! mean over the vectors of the tokens, of length 1. `modules.json` of a checkpoint may list another pooling and projections. CLIP, SigLIP
//! and ViT make one vector themselves.

pub mod check;
mod dense;
mod encoder;
mod head;
mod images;
mod input;
mod modules;
mod options;
mod plan;
mod pooling;
mod prompts;
mod tokens;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::config::{ActivationRounding, read_json};
use burn_deepspeed::load::families::{ClassPooling, ImageShape};
use burn_deepspeed::load::{ConfigOptions, LoadReport, Side};
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed::{DataType, InferenceBackend};
use serde::Serialize;
use serde_json::Value;

use crate::backend::BackendName;
use crate::{Failure, ModelFiles, on_backend};
use encoder::{Encoder, Rows, States};
use modules::{ModuleList, Modules};
pub use options::Options;
use plan::Plan;
pub use tokens::TokenRows;
use tokens::{Sentences, Tokens};

/// Shortest vector that still has a direction; a shorter one keeps its length over this, as in PyTorch's `normalize`.
const SHORTEST: f64 = 1e-12;

/// Sentences run together if the shortest has this share of the tokens of the longest: padding costs as much as text.
const ALIKE: f64 = 0.75;

/// An encoder on some backend.
pub trait Embed {
    /// Embeds the sentences, those of similar length together. The result is in the order of `sentences`.
    fn embed(&self, sentences: &[&str], scaling: Scaling) -> Result<Vec<Embedding>, Failure>;

    /// Embeds the images of a safetensors file, each tensor of which is an image `[C, height, width]` or a batch of them, as the model wants
    /// them. The result is in the order of the names.
    fn embed_images(
        &self,
        file: &Path,
        batch_size: NonZeroUsize,
        scaling: Scaling,
    ) -> Result<Vec<ImageEmbedding>, Failure>;

    /// Runs the encoder alone on rows of tokens.
    fn run(&self, rows: TokenRows) -> Result<Computed, Failure>;

    /// Runs the encoder alone on the images of a file with one tensor.
    fn run_images(&self, file: &Path) -> Result<Computed, Failure>;

    /// How the vectors are made.
    fn pooling(&self) -> &str;

    /// The same encoder with projections of int8, whose inputs are rounded or not.
    fn quantize(self: Box<Self>, blocks: Int8Blocks, rounding: ActivationRounding) -> Result<Box<dyn Embed>, Failure>;
}

/// Opens a folder in the Hugging Face layout, or a GGUF file, in f32, on a backend of the build.
// Compiled with the programs that call it, so that a build of another program does not wait for it.
#[inline]
pub fn open(
    backend: BackendName,
    files: &ModelFiles,
    options: &Options,
) -> Result<(Box<dyn Embed>, LoadReport), Failure> {
    fn boxed<B: InferenceBackend>(
        files: &ModelFiles,
        options: &Options,
    ) -> Result<(Box<dyn Embed>, LoadReport), Failure> {
        let (embedder, report) = Embedder::<B>::of(files, options, &B::Device::default())?;
        Ok((Box::new(embedder), report))
    }
    on_backend!(backend, boxed, files, options)
}

/// An encoder with its tokenizer, if it takes sentences and has one.
pub struct Embedder<B: Backend> {
    sentences: Option<Sentences>,
    encoder: Encoder<B>,
    modules: Modules<B>,
    takes: Takes,
    pooling: String,
    /// The folder, or the GGUF file.
    path: PathBuf,
    device: B::Device,
}

/// What an encoder takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    Tokens { longest: usize, vocab_size: usize },
    Images(ImageShape),
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
    /// Tokens that were embedded, `[CLS]` and `[SEP]` included, and padding not.
    pub tokens: usize,
    /// Tokens that were left out at the end, because the sentence is longer than the model takes; 0 for most.
    pub cut_tokens: usize,
    /// One number for each feature of the last module.
    pub embedding: Vec<f32>,
}

/// An image and its vector: one record of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageEmbedding {
    /// The name of its tensor, with its place in a batch.
    pub image: String,
    /// One number for each feature.
    pub embedding: Vec<f32>,
}

/// What an encoder computes from rows, without the modules after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Computed {
    /// The last hidden states of each row, token by token. Those of padding have no meaning.
    pub hidden: Vec<Vec<f32>>,
    /// The vector of each row, if the class makes one.
    pub vectors: Option<Vec<Vec<f32>>>,
}

impl<B: InferenceBackend> Embedder<B> {
    /// Reads a folder in the Hugging Face layout, or a GGUF file, in f32, as its files say.
    pub fn open(folder: &Path, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        Self::open_with(folder, &Options::default(), device)
    }

    /// Reads a folder in the Hugging Face layout, or a GGUF file, with activations in f32.
    ///
    /// # Errors
    /// An error that names the file and what in it is not supported.
    pub fn open_with(path: &Path, options: &Options, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        Self::of(&ModelFiles::open(path)?, options, device)
    }

    /// The same for files that were opened.
    ///
    /// # Errors
    /// Those of [`open_with`](Self::open_with).
    pub fn of(files: &ModelFiles, options: &Options, device: &B::Device) -> Result<(Self, LoadReport), Failure> {
        let folder = files.path();
        let (list, files) = match files {
            ModelFiles::Gguf(gguf) => {
                (ModuleList::of_gguf(gguf).map_err(|error| error.in_file(folder))?, files.clone())
            }
            ModelFiles::Folder(folder) if !folder.is_dir() => {
                return Err(format!(
                    "the model folder {} is not there; give one with config.json, model.safetensors and tokenizer.json, \
                     or a GGUF file (`--help` says where to get all-MiniLM-L6-v2)",
                    folder.display()
                )
                .into());
            }
            ModelFiles::Folder(folder) => {
                let list = ModuleList::open(folder)?;
                let encoder = ModelFiles::Folder(list.encoder.clone());
                (list, encoder)
            }
        };
        let side = if options.images { Side::Vision } else { Side::Text };
        let reading = ConfigOptions::default()
            .with_dtype(DataType::Fp32)
            .with_allowed_keys(&options.allowed_keys)
            .with_side(side);
        let config = files.config(&reading)?.with_attention(|attention| {
            attention.with_matrix_format(options.matrices).with_round_activations(options.rounding)
        });
        let plan = Plan::of(&config).map_err(|error| error.in_file(&files.config_path()))?;
        let checkpoint = files.checkpoint()?;
        config.check(&checkpoint)?;
        let (sentences, takes) = match plan.image() {
            Some(shape) => (None, Takes::Images(shape)),
            None => {
                let prompt = prompts::read(folder, options)?;
                let takes = Takes::Tokens { longest: plan.longest(), vocab_size: config.vocab_size };
                (Sentences::open(&files, &plan, prompt, &options.allowed_keys)?, takes)
            }
        };
        let own = plan.paths.pooling != ClassPooling::None;
        let modules = Modules::open(&list, (plan.hidden, own), &options.allowed_keys, device)?;
        let (encoder, report) = Encoder::load(&plan, &checkpoint, device)?;
        let (pooling, device) = (modules.describe(encoder.describe_vector()), device.clone());
        Ok((Self { sentences, encoder, modules, takes, pooling, path: folder.into(), device }, report))
    }

    /// Embeds sentences as one batch.
    fn vectors(&self, of: &Sentences, sentences: &[&Tokens], scaling: Scaling) -> Result<Vec<Vec<f32>>, Failure> {
        let states = self.encoder.forward(&Rows::Tokens(of.rows(sentences)))?;
        let lengths: Vec<usize> = sentences.iter().map(|sentence| sentence.ids.len()).collect();
        numbers(self.modules.forward(states, &lengths, of.prompt_tokens(), scaling))
    }

    /// The tokenizer.
    fn sentences(&self) -> Result<&Sentences, Failure> {
        self.sentences.as_ref().ok_or_else(|| match self.takes {
            Takes::Images(_) => "the encoder takes images; give them with `--images`".into(),
            Takes::Tokens { .. } if !self.path.is_dir() => {
                format!("{} has no tokenizer; convert the model with it", self.path.display()).into()
            }
            Takes::Tokens { .. } => {
                let file = self.path.join("tokenizer.json");
                format!("{} is missing; save the model's fast tokenizer there", file.display()).into()
            }
        })
    }

    fn image(&self) -> Result<&ImageShape, Failure> {
        match &self.takes {
            Takes::Images(shape) => Ok(shape),
            Takes::Tokens { .. } => Err("the encoder takes sentences and no images; leave out `--images`".into()),
        }
    }
}

impl<B: InferenceBackend> Embed for Embedder<B> {
    fn embed(&self, sentences: &[&str], scaling: Scaling) -> Result<Vec<Embedding>, Failure> {
        let of = self.sentences()?;
        let tokens = of.split(sentences)?;
        let mut vectors = vec![Vec::new(); sentences.len()];
        for group in alike(&tokens) {
            let group_tokens: Vec<&Tokens> = group.iter().map(|&sentence| &tokens[sentence]).collect();
            for (sentence, vector) in group.iter().zip(self.vectors(of, &group_tokens, scaling)?) {
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

    fn embed_images(
        &self,
        file: &Path,
        batch_size: NonZeroUsize,
        scaling: Scaling,
    ) -> Result<Vec<ImageEmbedding>, Failure> {
        let mut records = Vec::new();
        for images::Images { names, patches } in images::read::<B>(file, self.image()?, &self.device)? {
            let mut vectors = Vec::with_capacity(names.len());
            for batch in patches.split(batch_size.get(), 0) {
                let lengths = vec![usize::MAX; batch.dims()[0]];
                let states = self.encoder.forward(&Rows::Images(batch))?;
                vectors.extend(numbers(self.modules.forward(states, &lengths, 0, scaling))?);
            }
            records
                .extend(names.into_iter().zip(vectors).map(|(image, embedding)| ImageEmbedding { image, embedding }));
        }
        Ok(records)
    }

    fn run(&self, rows: TokenRows) -> Result<Computed, Failure> {
        let Takes::Tokens { longest, vocab_size } = self.takes else {
            return Err("the encoder takes images and no tokens".into());
        };
        rows.check(longest, vocab_size)?;
        computed(self.encoder.forward(&Rows::Tokens(rows))?)
    }

    fn run_images(&self, file: &Path) -> Result<Computed, Failure> {
        let mut all = images::read::<B>(file, self.image()?, &self.device)?;
        match (all.pop(), all.is_empty()) {
            (Some(images), true) => computed(self.encoder.forward(&Rows::Images(images.patches))?),
            _ => Err(format!("{} has several tensors; give one with a batch of images", file.display()).into()),
        }
    }

    fn pooling(&self) -> &str {
        &self.pooling
    }

    fn quantize(self: Box<Self>, blocks: Int8Blocks, rounding: ActivationRounding) -> Result<Box<dyn Embed>, Failure> {
        Ok(Box::new(Self { encoder: self.encoder.quantize(blocks, rounding)?, ..*self }))
    }
}

/// What an encoder computed, on the host.
fn computed<B: Backend>(states: States<B>) -> Result<Computed, Failure> {
    Ok(Computed { hidden: numbers(states.hidden.flatten(1, 2))?, vectors: states.vectors.map(numbers).transpose()? })
}

/// The rows of a tensor.
fn numbers<B: Backend>(rows: Tensor<B, 2>) -> Result<Vec<Vec<f32>>, Failure> {
    let [_, features] = rows.dims();
    let values: Vec<f32> = rows.into_data().iter().collect();
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values.chunks(features).map(<[f32]>::to_vec).collect()),
        false => {
            Err("the vectors are not finite: the checkpoint or an image has a NaN or an infinity; replace it".into())
        }
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
