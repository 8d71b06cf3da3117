//! What becomes the input of the first layer of a stack: tokens and their positions, or features of sound.

use burn::tensor::module::conv1d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, RelativeBias};
use burn_deepspeed::{InferenceBackend, Operations, WeightError};

use super::plan::StackPlan;
use crate::layers::Loader;

/// The table of token embeddings of a stack, `[vocabulary, E]`, and their factor.
#[derive(Debug)]
pub(super) struct Tokens<B: Backend> {
    table: Tensor<B, 2>,
    factor: f64,
}

/// What is added to the input of a stack, and the norm of the sum.
#[derive(Debug)]
pub(super) struct Positions<B: Backend> {
    /// `[rows, E]`, without the rows that no position uses.
    table: Option<Tensor<B, 2>>,
    norm: Option<FusedNorm<B>>,
}

/// Two convolutions of width 3 with GELU; the second makes one state of two frames.
#[derive(Debug)]
pub(super) struct Convolutions<B: Backend> {
    first: Convolution<B>,
    second: Convolution<B>,
}

#[derive(Debug)]
struct Convolution<B: Backend> {
    /// `[outputs, inputs, width]`.
    kernel: Tensor<B, 3>,
    bias: Tensor<B, 1>,
    stride: usize,
}

/// Features that a convolution reads at once.
const WIDTH: usize = 3;

/// Tables of tokens that were read. Those of both stacks and of the output are often one.
pub(super) struct Tables<B: Backend>(Vec<(String, Tensor<B, 2>)>);

impl<B: Backend> Tables<B> {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// The first of these tables that the file has; without any, the error is about the last.
    fn first(&mut self, loader: &Loader<'_, B>, paths: &[String], rows: usize) -> Result<Tensor<B, 2>, WeightError> {
        let path = paths.iter().find(|path| loader.has(path)).or(paths.last()).cloned().unwrap_or_default();
        if let Some((_, table)) = self.0.iter().find(|(other, _)| *other == path) {
            return Ok(table.clone());
        }
        let table = loader.tensor(&format!("{path}.weight"), [rows, loader.hidden])?;
        self.0.push((path, table.clone()));
        Ok(table)
    }

    /// The token embedding of a stack: its own, the shared one, or that of the other stack, as the classes tie what a file lacks.
    fn tokens(&mut self, loader: &Loader<'_, B>, plan: &StackPlan<'_>) -> Result<Tensor<B, 2>, WeightError> {
        let (family, rows) = (plan.config.family, plan.config.vocab_size);
        let own = plan.paths.tokens;
        let head = plan.config.tied.then(|| family.head.to_owned());
        let all = [own, family.shared, family.decoder.tokens, family.encoder.tokens]
            .map(|path| path.map(|path| loader.at(path)));
        let missing = family.shared.or(own).map(|path| loader.at(path));
        let paths: Vec<String> = all.into_iter().chain([head, missing]).flatten().collect();
        self.first(loader, &paths, rows)
    }

    /// The output embedding: the file's own, or an input embedding.
    pub fn output(&mut self, loader: &Loader<'_, B>, plan: &StackPlan<'_>) -> Result<Tensor<B, 2>, WeightError> {
        let (family, rows) = (plan.config.family, plan.config.vocab_size);
        let head = family.head.to_owned();
        if loader.has(&head) || !plan.config.tied {
            return self.first(loader, &[head], rows);
        }
        let shared = family.shared.map(|path| loader.at(path)).filter(|path| loader.has(path));
        match shared {
            Some(shared) => self.first(loader, &[shared], rows),
            None => self.tokens(loader, plan),
        }
    }
}

/// Marks the shared embedding as not needed where each stack has its own.
pub(super) fn ignore_shared<B: Backend>(loader: &Loader<'_, B>, plan: &StackPlan<'_>) {
    let family = plan.config.family;
    let Some(shared) = family.shared.map(|path| format!("{}.weight", loader.at(path))) else { return };
    let own = [family.encoder.tokens, family.decoder.tokens];
    if own.into_iter().flatten().all(|path| loader.has(&loader.at(path))) {
        loader.checkpoint.ignore(|name| name == shared);
    }
}

impl<B: Backend> Tokens<B> {
    pub fn load(loader: &Loader<'_, B>, plan: &StackPlan<'_>, tables: &mut Tables<B>) -> Result<Self, WeightError> {
        Ok(Self { table: tables.tokens(loader, plan)?, factor: plan.config.embedding_factor })
    }

    /// # Shapes
    /// - output: `[B, T, E]`
    ///
    /// # Panics
    /// If the rows have different lengths.
    pub fn forward(&self, rows: &[Vec<i64>]) -> Tensor<B, 3> {
        let (batch, tokens) = (rows.len(), rows.first().map_or(0, Vec::len));
        let index = TensorData::new(rows.concat(), [batch * tokens]);
        let index = Tensor::<B, 1, Int>::from_data(index, &self.table.device());
        let states = self.table.clone().select(0, index).reshape([batch, tokens, self.table.dims()[1]]);
        if self.factor == 1.0 { states } else { states.mul_scalar(self.factor) }
    }
}

impl<B: Backend> Positions<B> {
    pub fn load(loader: &Loader<'_, B>, plan: &StackPlan<'_>) -> Result<Self, WeightError> {
        let table = plan.paths.positions.zip(plan.stack.positions).map(|(table, rows)| {
            // The file may state any number; the tensor is compared with it.
            let all = rows.saturating_add(table.offset);
            let stored = loader.tensor::<2>(&format!("{}.weight", loader.at(table.path)), [all, loader.hidden])?;
            Ok::<_, WeightError>(stored.narrow(0, table.offset, rows))
        });
        let norm = plan.paths.input_norm.map(|path| loader.norm(&loader.at(path)));
        Ok(Self { table: table.transpose()?, norm: norm.transpose()? })
    }
}

impl<B: InferenceBackend> Positions<B> {
    /// The states of tokens of which the first is in slot `start`.
    ///
    /// # Shapes
    /// - states, output: `[B, T, E]`
    pub fn forward(&self, states: Tensor<B, 3>, start: usize) -> Tensor<B, 3> {
        let states = match &self.table {
            Some(table) => {
                let [_, tokens, _] = states.dims();
                states + table.clone().narrow(0, start, tokens).unsqueeze()
            }
            None => states,
        };
        self.norm.as_ref().map_or(states.clone(), |norm| normalise(states, norm))
    }
}

impl<B: Backend> Convolutions<B> {
    pub fn load(loader: &Loader<'_, B>, [first, second]: [&str; 2], bins: usize) -> Result<Self, WeightError> {
        let convolution = |path: &str, inputs: usize, stride: usize| {
            let at = |name: &str| format!("{}.{name}", loader.at(path));
            Ok::<_, WeightError>(Convolution {
                kernel: loader.tensor(&at("weight"), [loader.hidden, inputs, WIDTH])?,
                bias: loader.tensor(&at("bias"), [loader.hidden])?,
                stride,
            })
        };
        Ok(Self { first: convolution(first, bins, 1)?, second: convolution(second, loader.hidden, 2)? })
    }
}

impl<B: InferenceBackend> Convolutions<B> {
    /// # Shapes
    /// - features: `[B, bins, 2 T]`, output: `[B, T, E]`
    pub fn forward(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        let states = B::Ops::gelu(self.first.forward(features));
        B::Ops::gelu(self.second.forward(states)).swap_dims(1, 2)
    }
}

impl<B: Backend> Convolution<B> {
    fn forward(&self, input: Tensor<B, 3>) -> Tensor<B, 3> {
        let options = ConvOptions::new([self.stride], [WIDTH / 2], [1], 1);
        conv1d(input, self.kernel.clone(), Some(self.bias.clone()), options)
    }
}

/// The relative positions of a stack, in its first layer.
pub(super) fn relative_bias<B: Backend>(
    loader: &Loader<'_, B>,
    plan: &StackPlan<'_>,
) -> Result<Option<RelativeBias<B>>, WeightError> {
    let Some((paths, buckets)) = plan.config.family.relative.zip(plan.stack.buckets) else { return Ok(None) };
    let name = format!("{}.0.{}.weight", loader.at(plan.paths.layers), paths.table);
    let table = loader.tensor(&name, [buckets.count(), plan.attention().heads])?;
    Ok(Some(RelativeBias::new(table, buckets)))
}
