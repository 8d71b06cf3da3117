//! rten on ONNX graphs, which `engines/rten.py` writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use peers_ours::{Call, Engine, Failure, Workload};
use rten::{Model, ModelOptions, NodeId, Value, ValueOrView};
use rten_tensor::Tensor;
use serde::Deserialize;

/// The engine.
pub const ENGINE: Engine = Engine { name: "rten", prepare };

/// The axis of tokens in a cache, `[B, KVH, S, H]`.
const TOKENS: usize = 2;

/// A graph and what it runs on.
#[derive(Deserialize)]
struct Graph {
    model: PathBuf,
    /// The name of what is read.
    output: String,
    /// Runs of a call, one after another.
    runs: Vec<Run>,
    /// Keys and values, which a call appends its own to. The next call starts from the same again.
    cache: Vec<Cache>,
}

/// One run of a graph.
#[derive(Deserialize)]
struct Run {
    inputs: BTreeMap<String, Array>,
    /// The rows of the result of a call that the rows of this run are; `None` if they are all of them.
    rows: Option<Vec<usize>>,
}

/// A part of the cache.
#[derive(Deserialize)]
struct Cache {
    past: String,
    present: String,
    tokens: Array,
    /// Tokens that a call appends.
    appended: usize,
}

/// A file of numbers of four bytes, row-major.
#[derive(Deserialize)]
struct Array {
    file: PathBuf,
    shape: Vec<usize>,
    /// Whether they are integers, and not f32.
    integers: bool,
}

impl Array {
    fn read<T>(&self, number: impl Fn([u8; 4]) -> T) -> Result<Tensor<T>, Failure> {
        let bytes = fs::read(&self.file)?;
        let numbers: Vec<T> = bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect();
        Ok(Tensor::try_from_data(self.shape.as_slice(), numbers)?)
    }

    fn floats(&self) -> Result<Tensor<f32>, Failure> {
        self.read(f32::from_le_bytes)
    }

    fn value(&self) -> Result<Value, Failure> {
        Ok(if self.integers { self.read(i32::from_le_bytes)?.into() } else { self.floats()?.into() })
    }
}

/// A part of the cache, between calls and in them.
struct Side {
    past: NodeId,
    cached: usize,
    tensor: Option<Tensor<f32>>,
}

impl Side {
    /// With room for what a call appends, which the graph then writes in place.
    fn new(model: &Model, cache: &Cache) -> Result<Self, Failure> {
        let tokens = cache.tokens.floats()?;
        let mut shape = cache.tokens.shape.clone();
        let cached = shape[TOKENS];
        shape[TOKENS] += cache.appended;
        let mut tensor = Tensor::with_capacity(shape.as_slice(), TOKENS);
        tensor.append(TOKENS, &tokens)?;
        Ok(Self { past: model.node_id(&cache.past)?, cached, tensor: Some(tensor) })
    }
}

fn prepare(implementation: &str, workload: &Workload) -> Result<Call, Failure> {
    // The types are in the graph.
    if !["rten-f32", "rten-int8", "rten-blocks"].contains(&implementation) {
        return Err("no such implementation".into());
    }
    let Workload::Graph(graph) = workload else { return Err("rten runs graphs".into()) };
    let graph = Graph::deserialize(graph)?;
    let model = load(&graph.model)?;
    let mut outputs = vec![model.node_id(&graph.output)?];
    let mut sides = Vec::new();
    for cache in &graph.cache {
        outputs.push(model.node_id(&cache.present)?);
        sides.push(Side::new(&model, cache)?);
    }
    let mut runs = Vec::new();
    for run in &graph.runs {
        let inputs = run.inputs.iter().map(|(name, array)| Ok((model.node_id(name)?, array.value()?)));
        runs.push((inputs.collect::<Result<Vec<_>, Failure>>()?, run.rows.clone()));
    }
    Ok(Box::new(move || {
        let mut results = Vec::new();
        for (inputs, rows) in &runs {
            let views = inputs.iter().map(|(node, value)| (*node, ValueOrView::from(value.as_view())));
            let mut inputs: Vec<_> = views.collect();
            for side in &mut sides {
                let mut tensor = side.tensor.take().ok_or("an earlier call failed")?;
                // The tokens of the call before. Nothing is moved.
                tensor.clip_dim(TOKENS, 0..side.cached);
                inputs.push((side.past, tensor.into()));
            }
            let mut given = model.run(inputs, &outputs, None)?.into_iter();
            let result: Tensor<f32> = given.next().ok_or("no result")?.try_into()?;
            for side in &mut sides {
                side.tensor = Some(given.next().ok_or("no cache")?.try_into()?);
            }
            results.push((result, rows.clone()));
        }
        Ok(Box::new(move || Ok(in_order(results))))
    }))
}

fn load(path: &Path) -> Result<Model, Failure> {
    Ok(ModelOptions::with_all_ops().prepack_weights(true).load_file(path)?)
}

/// The rows of all runs, in the order of the whole result.
fn in_order(results: Vec<(Tensor<f32>, Option<Vec<usize>>)>) -> Vec<f32> {
    let mut all = Vec::new();
    for (result, rows) in results {
        let numbers = result.into_data();
        let Some(rows) = rows else {
            all.extend(numbers);
            continue;
        };
        let width = numbers.len() / rows.len();
        for (row, numbers) in rows.into_iter().zip(numbers.chunks_exact(width)) {
            if all.len() < (row + 1) * width {
                all.resize((row + 1) * width, 0.0);
            }
            all[row * width..][..width].copy_from_slice(numbers);
        }
    }
    all
}
