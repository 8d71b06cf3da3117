//! The cost of int8: the sums that the adder still gets right, and how far the logits of a checkpoint move.

use std::path::Path;

use burn_deepspeed::{DataType, KvCacheType};
use serde::Deserialize;

use crate::Failure;
use crate::text::{Batch, TextModel, likeliest};

/// Which parts are int8.
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

/// Nothing in int8, then one part after another, then everything.
pub const KINDS: [Kind; 6] = [
    Kind { name: "nothing", weights: false, cache: KvCacheType { key: None, value: None } },
    Kind { name: "weights", weights: true, cache: KvCacheType { key: None, value: None } },
    Kind { name: "keys", weights: false, cache: KvCacheType { key: INT8, value: None } },
    Kind { name: "values", weights: false, cache: KvCacheType { key: None, value: INT8 } },
    Kind { name: "keys and values", weights: false, cache: KvCacheType::INT8 },
    Kind { name: "weights, keys and values", weights: true, cache: KvCacheType::INT8 },
];

/// How far the outputs of a checkpoint are from those that another program computed.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    /// Norm of the difference of the prompt logits, over the norm of the logits less their mean.
    pub logits: f64,
    /// Share of the generated tokens that are the likeliest here too, given the tokens before them. 0 to 1.
    pub tokens: f64,
}

/// The contents of an `expected.json`.
#[derive(Deserialize)]
struct Expected {
    prompt_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    generated_ids: Vec<Vec<u32>>,
    prompt_logits: Vec<Vec<f32>>,
}

/// Feeds the prompts of an `expected.json`, and then its tokens one by one.
pub fn distance(model: &dyn TextModel, file: &Path) -> Result<Distance, Failure> {
    let expected: Expected = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let batch = Batch { ids: expected.prompt_ids, mask: expected.attention_mask };
    let steps = expected.generated_ids.first().map_or(0, Vec::len);
    let mut session = model.session(&batch, steps)?;
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
