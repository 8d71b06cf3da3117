//! Times a whole attention layer's decoding step on Burn's CUDA backend, and Burn's own attention on prompts.
//!
//! It takes the same commands as `kernels/examples/gpu_bench`: `--list` prints the workloads; `--serve` reads
//! `<workload> <engine> <f16|bf16> <cold|warm>` and answers with a line of JSON. Without either it measures everything.
//! Every call works on the same tensors, which together are larger than an L2 cache: all of them count as cold.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Distribution, Tensor};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, KvCache, NormType,
    OfBackend,
};
use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::backend::Cuda;
use clap::Args;
use serde_json::{Value, json};

type Device = <Cuda as burn::tensor::backend::BackendTypes>::Device;

/// Target for the total time of the calls of one measurement.
const SPAN: Duration = Duration::from_millis(20);
/// Features of a head, of which there are 32.
const HEAD: usize = 128;
const HEADS: usize = 32;

/// Times a layer's decoding step and Burn's attention; prints a line of JSON for each measurement.
#[derive(Args)]
pub struct Arguments {
    /// Prints the workloads and ends.
    #[arg(long)]
    list: bool,
    /// Answers requests on standard input until it ends.
    #[arg(long)]
    serve: bool,
    /// Small tensors and few calls: shows that everything runs.
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy)]
enum Problem {
    /// A step of one token with a cache of `keys` tokens, in a LLaMA layer of 4096 features.
    Layer { batch: usize, kv_heads: usize, keys: usize },
    /// A prompt, the same as that of this name in `gpu_bench`.
    Prompt { batch: usize, heads: usize, head: usize, tokens: usize, causal: bool },
}

#[rustfmt::skip]
const WORKLOADS: [(&str, Problem); 6] = [
    ("layer-decode-1x32x32-2048", Problem::Layer { batch: 1, kv_heads: 32, keys: 2048 }),
    ("layer-decode-1x32x8-2048", Problem::Layer { batch: 1, kv_heads: 8, keys: 2048 }),
    ("layer-decode-64x32x32-2048", Problem::Layer { batch: 64, kv_heads: 32, keys: 2048 }),
    ("layer-decode-64x32x8-2048", Problem::Layer { batch: 64, kv_heads: 8, keys: 2048 }),
    // Problems that Burn's attention computes correctly: equal numbers of keys and queries, head sizes that are powers of two, no bias.
    ("prefill-1x32x128-4096-causal", Problem::Prompt { batch: 1, heads: 32, head: 128, tokens: 4096, causal: true }),
    ("prefill-4x16x64-8192-full", Problem::Prompt { batch: 4, heads: 16, head: 64, tokens: 8192, causal: false }),
];

/// The call that a measurement repeats.
type Call = Box<dyn FnMut() -> Result<(), Failure>>;

/// Measures, or answers requests.
pub fn layer(arguments: &Arguments) -> ExitCode {
    if arguments.list {
        WORKLOADS.iter().for_each(|(name, problem)| println!("{}", problem.describe(name)));
        return ExitCode::SUCCESS;
    }
    let mut bench = Bench { device: Device::default(), quick: arguments.quick, prepared: None };
    let mut failed = false;
    if arguments.serve {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            println!("{}", bench.answer(&line));
            if std::io::stdout().flush().is_err() {
                return ExitCode::FAILURE;
            }
        }
        return ExitCode::SUCCESS;
    }
    for (name, problem) in WORKLOADS {
        let answer = bench.answer(&format!("{name} {} {} cold", problem.engine(), problem.element()));
        failed |= answer.get("error").is_some();
        println!("{answer}");
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Problem {
    fn engine(self) -> &'static str {
        match self {
            Self::Layer { .. } => "layer",
            Self::Prompt { .. } => "burn",
        }
    }

    fn element(self) -> &'static str {
        match self {
            Self::Layer { .. } => "bf16",
            // The element type of the tensor-core kernels of Burn's attention.
            Self::Prompt { .. } => "f16",
        }
    }

    fn describe(self, name: &str) -> Value {
        let engines = [self.engine()];
        match self {
            Self::Layer { batch, kv_heads, keys } => {
                let hidden = HEADS * HEAD;
                let matrices = hidden * (hidden + 2 * kv_heads * HEAD) + hidden * hidden;
                let cache = 2 * batch * kv_heads * keys * HEAD;
                json!({
                    "name": name, "kind": "layer", "engines": engines, "ours": true,
                    "sizes": { "batch": batch, "heads": HEADS, "kv_heads": kv_heads, "head": HEAD, "keys": keys },
                    "bytes": 2 * (matrices + cache), "exponentials": batch * HEADS * keys,
                    "flops": 2 * batch * matrices + 4 * batch * HEADS * keys * HEAD,
                    "dtypes": [self.element()], "l2": ["cold"],
                })
            }
            Self::Prompt { .. } => json!({
                "name": name, "engines": engines, "ours": false, "l2": ["cold"], "dtypes": [self.element()],
            }),
        }
    }
}

/// The device, and the call of the last request.
struct Bench {
    device: Device,
    quick: bool,
    prepared: Option<(String, Call)>,
}

impl Bench {
    fn answer(&mut self, line: &str) -> Value {
        let [name, engine, dtype, l2] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return json!({ "error": format!("expected workload, engine, dtype and cold or warm, not {line:?}") });
        };
        let mut answer = json!({ "name": name, "engine": engine, "dtype": dtype, "l2": l2 });
        match self.measure(name, engine, dtype) {
            Ok((time, calls)) => {
                let time = time.as_secs_f64() * 1e6;
                answer["median_us"] = json!(time);
                answer["min_us"] = json!(time);
                answer["wall_us"] = json!(time);
                answer["launches"] = json!(calls);
            }
            Err(error) => answer["error"] = json!(error.to_string()),
        }
        answer
    }

    /// The time of one of many calls between two syncs, and their number.
    fn measure(&mut self, name: &str, engine: &str, dtype: &str) -> Result<(Duration, u32), Failure> {
        let known = WORKLOADS.iter().find(|(known, problem)| *known == name && problem.engine() == engine);
        let (_, problem) = known.ok_or("no such workload or engine")?;
        let dtype = match dtype {
            "bf16" => DataType::Bf16,
            "f16" => DataType::Fp16,
            _ => return Err("no such element type: bf16 or f16".into()),
        };
        let key = format!("{name} {dtype}");
        if self.prepared.as_ref().is_none_or(|(last, _)| *last != key) {
            self.prepared = None;
            Cuda::memory_cleanup(&self.device);
            let call = match *problem {
                Problem::Layer { batch, kv_heads, keys } => self.layer([batch, kv_heads, keys], dtype)?,
                Problem::Prompt { batch, heads, head, tokens, causal } => {
                    self.prompt([batch, heads, tokens, head], causal, dtype)?
                }
            };
            self.prepared = Some((key, call));
        }
        let Some((_, call)) = &mut self.prepared else { return Err("nothing was prepared".into()) };
        let device = &self.device;
        let mut run = |calls: u32| {
            let start = Instant::now();
            (0..calls).try_for_each(|_| call())?;
            Cuda::sync(device)?;
            Ok::<_, Failure>(start.elapsed() / calls)
        };
        run(1)?; // compiles and tunes, if it is the first time
        let estimate = run(2)?;
        let calls = if self.quick { 1 } else { SPAN.div_duration_f64(estimate).clamp(1.0, 1000.0) as u32 };
        Ok((run(calls)?, calls))
    }

    fn noise<const D: usize>(&self, shape: [usize; D], dtype: DType) -> Tensor<Cuda, D> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), (&self.device, dtype))
    }

    /// A step whose token is not kept, so that every step sees the same cache.
    fn layer(&self, [batch, kv_heads, keys]: [usize; 3], dtype: DataType) -> Result<Call, Failure> {
        let keys = if self.quick { keys / 16 } else { keys };
        let config = DeepSpeedInferenceConfig::new(HEADS * HEAD, HEADS)
            .with_num_kv(Some(kv_heads))
            .with_num_hidden_layers(Some(1))
            .with_max_out_tokens(keys)
            .with_dtype(dtype)
            .with_norm_type(NormType::RMSNorm)
            .with_rotary_dim(Some(HEAD))
            .with_rotate_half(true)
            .with_rotate_every_two(false)
            .with_transposed_mode(true)
            .with_qkv_bias(false)
            .with_output_bias(false);
        let attention: DeepSpeedSelfAttention<Cuda> = config.init_self_attention(0, &self.device)?;
        let mut cache: KvCache<Cuda> = config.init_cache(batch, &self.device)?;
        let element = dtype.of_backend::<Cuda>(&self.device)?;
        let mut step = cache.step(keys - 1)?;
        let mut layer = step.layer(0);
        let shape = [batch, kv_heads, keys - 1, HEAD];
        layer.append(self.noise(shape, element), self.noise(shape, element));
        step.commit();
        let input = self.noise([batch, 1, HEADS * HEAD], element);
        Ok(Box::new(move || {
            let mut step = cache.step(1)?;
            attention.forward(input.clone(), AttentionMask::none(), step.layer(0))?;
            Ok(())
        }))
    }

    fn prompt(&self, shape: [usize; 4], causal: bool, dtype: DataType) -> Result<Call, Failure> {
        let [batch, heads, tokens, head] = shape;
        let shape = if self.quick { [1, 2, tokens / 16, head] } else { [batch, heads, tokens, head] };
        let element = dtype.of_backend::<Cuda>(&self.device)?;
        let [query, key, value] = [(); 3].map(|()| self.noise(shape, element));
        let options = AttentionModuleOptions { is_causal: causal, ..Default::default() };
        Ok(Box::new(move || {
            attention(query.clone(), key.clone(), value.clone(), None, None, options);
            Ok(())
        }))
    }
}
