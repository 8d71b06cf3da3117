//! Sums as batches of tokens.

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use tokenizers::Tokenizer;

use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::sums::Sum;

use super::tokenizer::{END, PAD};

/// A sum in tokens, end included, and where its answer starts.
#[derive(Debug, Clone)]
pub struct Example {
    ids: Vec<u32>,
    answer: usize,
}

/// The sums in tokens.
pub fn examples(sums: &[Sum], tokenizer: &Tokenizer) -> Result<Vec<Example>, Failure> {
    let example = |sum: &Sum| {
        let answer = tokenizer.encode(sum.prompt(), true)?.len();
        let mut ids = tokenizer.encode(sum.text(), true)?.get_ids().to_vec();
        ids.push(END);
        Ok(Example { ids, answer })
    };
    sums.iter().map(example).collect()
}

/// A batch of sums.
#[derive(Debug, Clone)]
pub struct SumBatch<B: Backend> {
    /// All tokens but the last of each sum, `[B, T]`. Padding comes after a sum, so causal attention does not see it.
    pub ids: Tensor<B, 2, Int>,
    /// The positions that predict an answer's digits and its end, among `B·T`.
    pub positions: Tensor<B, 1, Int>,
    /// The tokens at these positions.
    pub targets: Tensor<B, 1, Int>,
}

/// Makes batches of sums.
#[derive(Debug, Clone)]
pub struct SumBatcher;

impl<B: Backend> Batcher<B, Example, SumBatch<B>> for SumBatcher {
    fn batch(&self, items: Vec<Example>, device: &B::Device) -> SumBatch<B> {
        let width = items.iter().map(|item| item.ids.len() - 1).max().unwrap_or(0);
        let (mut ids, mut positions, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (row, item) in items.iter().enumerate() {
            let (inputs, padding) = (&item.ids[..item.ids.len() - 1], width + 1 - item.ids.len());
            ids.extend(inputs.iter().copied().chain(std::iter::repeat_n(PAD, padding)).map(i64::from));
            // The token at `at` is predicted from the one before it.
            positions.extend((item.answer..item.ids.len()).map(|at| (row * width + at - 1) as i64));
            targets.extend(item.ids[item.answer..].iter().copied().map(i64::from));
        }
        let list = |values: Vec<i64>| {
            let length = values.len();
            Tensor::from_data(TensorData::new(values, [length]), device)
        };
        SumBatch {
            ids: Tensor::from_data(TensorData::new(ids, [items.len(), width]), device),
            positions: list(positions),
            targets: list(targets),
        }
    }
}
