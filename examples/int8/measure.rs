//! What int8 costs: how many sums an adder still gets right, and how far the logits of a checkpoint move.
//!
//! Whoever includes this file also has the modules `decoder`, `batch`, `sampling` and `sums` and the type `Failure` beside it.

use std::path::Path;

use burn::tensor::backend::Backend;
use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig};
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed::{DataType, InferenceBackend, KvCacheType};
use serde::Deserialize;
use tokenizers::Tokenizer;

use super::Failure;
use super::batch::{Batch, Session};
use super::decoder::Decoder;
use super::sampling::likeliest;
use super::sums::{self, Score, Sum};

/// What is in int8.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// In words.
    pub name: &'static str,
    /// Whether the projections are.
    pub weights: bool,
    /// Keys and values.
    pub cache: KvCacheType,
}

const INT8: Option<DataType> = Some(DataType::Int8);

/// Everything in f32, then one after the other in int8, then all of it.
pub const KINDS: [Kind; 6] = [
    Kind { name: "nothing", weights: false, cache: KvCacheType { key: None, value: None } },
    Kind { name: "weights", weights: true, cache: KvCacheType { key: None, value: None } },
    Kind { name: "keys", weights: false, cache: KvCacheType { key: INT8, value: None } },
    Kind { name: "values", weights: false, cache: KvCacheType { key: None, value: INT8 } },
    Kind { name: "keys and values", weights: false, cache: KvCacheType::INT8 },
    Kind { name: "weights, keys and values", weights: true, cache: KvCacheType::INT8 },
];

/// A checkpoint, in f32.
pub struct Model<B: Backend> {
    pub config: HuggingFaceConfig,
    pub decoder: Decoder<B>,
}

impl<B: InferenceBackend> Model<B> {
    /// Reads a folder in the Hugging Face layout.
    pub fn open(folder: &Path, device: &B::Device) -> Result<Self, Failure> {
        let config = HuggingFaceConfig::from_json_file(folder.join("config.json"))?.with_dtype(DataType::Fp32);
        let (decoder, _) = Decoder::init(&config, device)?.load(&config, &Checkpoint::open(folder)?, device)?;
        Ok(Self { config, decoder })
    }

    /// The same with some of it in int8, one scale for each output.
    pub fn quantized(&self, kind: Kind) -> Result<Self, Failure> {
        let decoder = self.decoder.clone();
        Ok(Self {
            config: self.config.clone().with_kv_cache_dtype(kind.cache),
            decoder: if kind.weights { decoder.quantize(Int8Blocks::PerOutput)? } else { decoder },
        })
    }

    /// How many of these sums it gets right.
    pub fn adds(&self, tokenizer: &Tokenizer, asked: &[Sum], device: &B::Device) -> Result<Score, Failure> {
        sums::score(&self.decoder, &self.config, tokenizer, asked, device)
    }
}

/// How far a checkpoint is from what another program computed with it.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    /// Length of the difference of the prompt logits over the length of the logits, less their mean.
    pub logits: f64,
    /// Share of the tokens behind the prompt that are the likeliest here too, given those before them.
    pub tokens: f64,
}

/// What an `expected.json` holds.
#[derive(Deserialize)]
struct Expected {
    prompt_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    generated_ids: Vec<Vec<u32>>,
    prompt_logits: Vec<Vec<f32>>,
}

/// Feeds the prompts of an `expected.json`, and then its tokens one by one.
pub fn distance<B: InferenceBackend>(model: &Model<B>, file: &Path, device: &B::Device) -> Result<Distance, Failure> {
    let expected: Expected = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let batch = Batch { ids: expected.prompt_ids, mask: expected.attention_mask };
    let steps = expected.generated_ids.first().map_or(0, Vec::len);
    let mut session = Session::new(&model.decoder, &model.config, &batch, steps, device)?;
    let mut logits = session.prefill(&batch, None)?;
    let (mut difference, mut length) = (0.0, 0.0);
    for (ours, theirs) in logits.iter().zip(&expected.prompt_logits) {
        let mean = theirs.iter().map(|x| f64::from(*x)).sum::<f64>() / theirs.len() as f64;
        difference += ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        length += theirs.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>();
    }
    let (mut equal, mut all) = (0, 0);
    for step in 0..steps {
        let next: Vec<u32> = expected.generated_ids.iter().map(|row| row[step]).collect();
        equal += logits.iter().zip(&next).filter(|(row, next)| likeliest(row) == **next).count();
        all += next.len();
        if step + 1 < steps {
            logits = session.decode(&next)?;
        }
    }
    Ok(Distance { logits: (difference / length).sqrt(), tokens: equal as f64 / f64::from(all.max(1) as u32) })
}
