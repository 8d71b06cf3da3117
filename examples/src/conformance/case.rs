//! One conformance case: reads its folder, builds the module, runs its calls, compares.

mod diffusion;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, backend::Backend};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, HeadWeightNames, QkNormNames, QkvLayout, QkvNames, ReadTensors,
};
use burn_deepspeed::ops::{AdditiveMask, Softmax};
use burn_deepspeed::parallel::Communicator;
use burn_deepspeed::position::alibi::slopes;
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks, Orientation, QkvWeight, Weight};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, FromTensor, InferenceBackend, JointStreams,
    NormType, OfBackend, Operations, Positions, VaeBlock,
};
use serde::Deserialize;
use serde_json::Value;

use super::Types;
use crate::Failure;

/// The result of a case.
#[derive(Debug, Clone)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// The module or operator that it tests.
    pub module: String,
    /// Largest absolute error over all outputs; NaN if one of them holds a NaN.
    pub error: f64,
    /// Largest error allowed.
    pub tolerance: f64,
}

impl CaseResult {
    /// Whether the error is a number within the tolerance.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

#[derive(Deserialize)]
struct CaseRecord {
    name: String,
    module: String,
    #[serde(default)]
    layer_id: usize,
    config: Value,
    joint: Option<JointStreams>,
    vae: Option<VaeBlock>,
    calls: Vec<Value>,
    tolerance: BTreeMap<String, f64>,
}

/// The case folders among `paths`, and one level below them.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        if path.join("case.json").exists() {
            found.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|cause| format!("cannot read {}: {cause}", path.display()))?;
        let mut below: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        below.retain(|folder| folder.join("case.json").exists());
        below.sort();
        if below.is_empty() {
            return Err(format!("{} holds no case.json, nor does a folder in it", path.display()).into());
        }
        found.append(&mut below);
    }
    Ok(found)
}

/// Runs the case in `folder`: on one of several ranks, if there is a communicator, else alone. Operators are not split.
pub fn run<B: InferenceBackend>(
    folder: &Path,
    types: impl Into<Types>,
    ranks: Option<Arc<dyn Communicator>>,
    device: &B::Device,
) -> Result<CaseResult, Failure> {
    let types = types.into();
    let text = std::fs::read_to_string(folder.join("case.json"))?;
    let record: CaseRecord = serde_json::from_str(&text)?;
    let dtype = types.dtype;
    let activations = dtype.of_backend::<B>(device)?;
    let case = Case::<B> {
        tensors: Checkpoint::open(folder.join("tensors.safetensors"))?,
        config: config(&record, types)?,
        int8: dtype == DataType::Int8,
        dtype: activations,
        ranks,
        record: &record,
        device,
    };
    let error = match record.module.as_str() {
        "DeepSpeedSelfAttention" | "BloomSelfAttention" => case.self_attention()?,
        "DeepSpeedDiffusersAttention" => case.diffusers()?,
        "DeepSpeedJointAttention" => case.joint()?,
        "DeepSpeedVaeAttention" => case.vae()?,
        "SoftmaxOp" => case.softmax()?,
        "QKVGemmOp" => case.qkv_gemm()?,
        other => return Err(format!("module `{other}` is not one that a case can test").into()),
    };
    Ok(CaseResult {
        name: record.name.clone(),
        module: record.module.clone(),
        error,
        tolerance: types
            .tolerance(&record.tolerance, activations)
            .ok_or_else(|| format!("the case has no tolerance for {dtype}"))?,
    })
}

/// The configuration of a case. `rope_scaling` may lack the trained length of the model, nothing else differs.
fn config(record: &CaseRecord, types: Types) -> Result<DeepSpeedInferenceConfig, Failure> {
    let config = DeepSpeedInferenceConfig::from_json(&record.config)?;
    Ok(config.with_dtype(types.dtype).with_kv_cache_dtype(types.cache))
}

struct Case<'a, B: Backend> {
    tensors: Checkpoint,
    config: DeepSpeedInferenceConfig,
    int8: bool,
    dtype: DType,
    ranks: Option<Arc<dyn Communicator>>,
    record: &'a CaseRecord,
    device: &'a B::Device,
}

impl<B: InferenceBackend> Case<'_, B> {
    /// The configuration of this rank, with the biases and the head size that the case's weights have.
    fn fitted(&self) -> DeepSpeedInferenceConfig {
        let has = |name: &str| self.tensors.contains(&format!("weights.{name}"));
        let mut config = self.config.clone();
        config.qkv_bias = has("attn_qkvb") || has("attn_qb");
        config.output_bias = has("attn_ob");
        config.norm_bias = has("norm_b");
        let rows = self.tensors.shape("weights.attn_ow").map_or(config.hidden_size, |shape| shape[0]);
        config.head_dim = config.head_dim.or(Some(rows / config.heads.max(1)));
        self.on_rank(config)
    }

    /// The configuration of this rank, as the case states it.
    fn of_rank(&self) -> DeepSpeedInferenceConfig {
        self.on_rank(self.config.clone())
    }

    fn on_rank(&self, config: DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig {
        match &self.ranks {
            Some(communicator) => config.with_uneven_heads(true).for_rank_of(&**communicator),
            None => config,
        }
    }

    /// DeepSpeed's names, and those of what DeepSpeed does not have.
    fn names(&self, layout: QkvLayout) -> AttentionNames {
        let mut names = AttentionNames::deepspeed(&self.tensors, "weights.", layout, Orientation::InputOutput);
        if self.config.sinks {
            names = names.with_sinks("weights.attn_sinks");
        }
        if self.config.qk_norm.is_some() {
            let [query, key] = ["q_norm", "k_norm"].map(|name| HeadWeightNames::One(format!("weights.{name}")));
            names = names.with_qk_norm(QkNormNames { query, key });
        }
        names.qkv = match names.qkv {
            QkvNames::Separate { query, key, value } if self.config.context_gate => {
                QkvNames::SeparateWithGate { query, key, value }
            }
            other => other,
        };
        names
    }

    fn self_attention(&self) -> Result<f64, Failure> {
        let mut config = self.fitted();
        let is_bloom = self.record.module == "BloomSelfAttention";
        let layout = if is_bloom { QkvLayout::PerHead } else { QkvLayout::Concat };
        let names = self.names(layout);
        let tokens = self.record.calls.iter().map(|call| self.shape3(call, "input").map(|shape| shape[1]));
        let total: usize = tokens.sum::<Result<usize, _>>()?;
        config.max_out_tokens = config.max_out_tokens.max(total);
        config.num_hidden_layers = Some(1);
        // An `alibi` that is not the one of the head count is a bias like any other.
        let own_alibi = is_bloom && self.alibi_is_ours()?;
        config.bigscience_bloom = own_alibi;
        let mut module =
            config.init_self_attention::<B>(self.record.layer_id, self.device)?.load(&self.tensors, &names)?;
        if let Some(communicator) = self.ranks.clone() {
            module = module.with_communicator(communicator)?;
        }
        let shard = config.resolve(self.record.layer_id)?.shard;
        let batch = self.shape3(&self.record.calls[0], "input")?[0];
        let mut cache = config.init_cache::<B>(batch, self.device)?;
        let mut worst = Worst::default();
        for call in &self.record.calls {
            let input: Tensor<B, 3> = self.tensor(call, "input")?;
            let mut step = cache.step(input.dims()[1])?;
            if has(call, "position_ids") {
                step = step.with_positions(Positions::from_tensor(self.ints::<2>(call, "position_ids")?)?)?;
            }
            let mut mask = match has(call, "padding_mask") {
                true => AttentionMask::from_padding(self.ints(call, "padding_mask")?),
                false => AttentionMask::none(),
            };
            if has(call, "alibi") && !own_alibi {
                let alibi: Tensor<B, 3> = self.tensor(call, "alibi")?;
                let keys = alibi.dims()[2];
                let alibi = alibi.reshape([batch, config.heads, 1, keys]);
                mask = mask.with_bias(alibi.narrow(1, shard.start, shard.len));
            }
            let output = module.forward(input, mask, step.layer(0))?;
            step.commit();
            let valid = match has(call, "valid_rows") {
                true => Some(self.ints::<2>(call, "valid_rows")?),
                false => None,
            };
            worst.compare(output, self.f32(call, "output")?, valid);
        }
        Ok(worst.error)
    }

    /// Whether every `alibi` of the case is slope × (number of real keys before this one).
    fn alibi_is_ours(&self) -> Result<bool, Failure> {
        let slopes = slopes(self.config.heads);
        for call in self.record.calls.iter().filter(|call| has(call, "alibi")) {
            let alibi: Tensor<B, 3> = self.f32(call, "alibi")?;
            let [rows, _, keys] = alibi.dims();
            let given: Vec<f32> = alibi.into_data().iter().collect();
            let mask: Vec<i64> = match has(call, "padding_mask") {
                true => self.ints::<2>(call, "padding_mask")?.into_data().iter().collect(),
                false => vec![1; rows / slopes.len() * keys],
            };
            for (row, values) in given.chunks(keys).enumerate() {
                let keep = &mask[row / slopes.len() * keys..][..keys];
                let mut real = 0.0;
                for (value, keep) in values.iter().zip(keep) {
                    if *keep != 0 && (value - slopes[row % slopes.len()] * real).abs() > 1e-5 * (1.0 + real) {
                        return Ok(false);
                    }
                    real += *keep as f32;
                }
            }
        }
        Ok(self.record.calls.iter().any(|call| has(call, "alibi")))
    }

    fn softmax(&self) -> Result<f64, Failure> {
        let mut worst = Worst::default();
        for call in &self.record.calls {
            let mut arguments = Softmax::new(self.tensor(call, "attn_scores")?);
            arguments.scale = call["layer_scale"].as_f64().unwrap_or(1.0);
            arguments.head_offset = call["head_offset"].as_u64().unwrap_or(0) as usize;
            arguments.triangular = call["triangular"].as_bool().unwrap_or(false).then_some(0);
            arguments.window = self.config.local_attention.then_some(self.config.window_size);
            if has(call, "alibi") {
                arguments.alibi = Some(self.f32(call, "alibi")?);
            }
            if has(call, "attn_mask") {
                arguments.mask = Some(match self.shape(call, "attn_mask")?.len() {
                    4 => AdditiveMask::Pairs(self.f32(call, "attn_mask")?),
                    _ => AdditiveMask::Keys(self.f32(call, "attn_mask")?),
                });
            }
            worst.compare(B::Ops::softmax(arguments), self.f32(call, "output")?, None);
        }
        Ok(worst.error)
    }

    fn qkv_gemm(&self) -> Result<f64, Failure> {
        let config = &self.config;
        let vector = |name: &str, size: usize| -> Result<Option<Tensor<B, 1>>, Failure> {
            let name = format!("weights.{name}");
            match self.tensors.contains(&name) {
                true => Ok(Some(self.tensors.tensor(&name, [size], self.dtype, self.device)?)),
                false => Ok(None),
            }
        };
        let shape = self.tensors.shape("weights.weight").ok_or("the case has no `weights.weight`")?;
        let shape: [usize; 2] = shape.try_into()?;
        let matrix = self.tensors.tensor("weights.weight", shape, self.dtype, self.device)?;
        let (orientation, output) = match config.transposed_mode {
            true => (Orientation::OutputInput, shape[0]),
            false => (Orientation::InputOutput, shape[1]),
        };
        let weight = QkvWeight::Fused(Weight::new(matrix, vector("bias", output)?, orientation));
        let weight = if self.int8 { weight.quantize(Int8Blocks::PerOutput)? } else { weight };
        let gamma = vector("gamma", config.hidden_size)?.ok_or("the case has no `weights.gamma`")?;
        let norm = NormSpec { rms: config.norm_type == NormType::RMSNorm, epsilon: config.layer_norm_eps };
        let norm = FusedNorm::new(gamma, vector("beta", config.hidden_size)?, norm);
        let mut worst = Worst::default();
        for call in &self.record.calls {
            let result = B::Ops::qkv_gemm(self.tensor(call, "input")?, Some(&norm), &weight, true);
            worst.compare(result.qkv, self.f32(call, "output")?, None);
            let normed = result.inp_norm.ok_or("no normalised input was returned")?;
            worst.compare(normed, self.f32(call, "inp_norm")?, None);
        }
        Ok(worst.error)
    }

    fn name<'c>(&self, call: &'c Value, key: &str) -> Result<&'c str, Failure> {
        call.get(key).and_then(Value::as_str).ok_or_else(|| format!("a call of the case has no `{key}`").into())
    }

    fn shape(&self, call: &Value, key: &str) -> Result<&[usize], Failure> {
        let name = self.name(call, key)?;
        self.tensors.shape(name).ok_or_else(|| format!("the case has no tensor `{name}`").into())
    }

    fn shape3(&self, call: &Value, key: &str) -> Result<[usize; 3], Failure> {
        Ok(self.shape(call, key)?.try_into()?)
    }

    fn tensor<const D: usize>(&self, call: &Value, key: &str) -> Result<Tensor<B, D>, Failure> {
        let shape = self.shape(call, key)?.try_into()?;
        Ok(self.tensors.tensor(self.name(call, key)?, shape, self.dtype, self.device)?)
    }

    fn f32<const D: usize>(&self, call: &Value, key: &str) -> Result<Tensor<B, D>, Failure> {
        let shape = self.shape(call, key)?.try_into()?;
        Ok(self.tensors.tensor(self.name(call, key)?, shape, DType::F32, self.device)?)
    }

    fn ints<const D: usize>(&self, call: &Value, key: &str) -> Result<Tensor<B, D, Int>, Failure> {
        let shape = self.shape(call, key)?.try_into()?;
        Ok(self.tensors.int_tensor(self.name(call, key)?, shape, self.device)?)
    }
}

fn has(call: &Value, key: &str) -> bool {
    call.get(key).is_some_and(|name| !name.is_null())
}

/// The largest error so far.
#[derive(Default)]
struct Worst {
    error: f64,
}

impl Worst {
    /// Compares, leaving out the rows whose `valid` is 0: those must only be finite.
    fn compare<B: Backend, const D: usize>(
        &mut self,
        actual: Tensor<B, D>,
        expected: Tensor<B, D>,
        valid: Option<Tensor<B, 2, Int>>,
    ) {
        if actual.dims() != expected.dims() {
            self.error = f64::NAN;
            return;
        }
        let row = actual.dims()[D - 1];
        let valid: Option<Vec<i64>> = valid.map(|valid| valid.into_data().iter().collect());
        let (actual, expected) = (actual.into_data(), expected.into_data());
        for (at, (a, e)) in actual.iter::<f32>().zip(expected.iter::<f32>()).enumerate() {
            let counts = valid.as_ref().is_none_or(|valid| valid[at / row] != 0);
            let error = match (counts, a.is_finite()) {
                (false, true) => 0.0,
                (true, true) => f64::from((a - e).abs()),
                (_, false) => f64::NAN,
            };
            // NaN stays, whatever follows
            self.error = if error > self.error || error.is_nan() { error } else { self.error };
            if self.error.is_nan() {
                return;
            }
        }
    }
}
