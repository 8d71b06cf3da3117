//! The attention of Stable Diffusion 1.5: from the image to itself, and from the image to a prompt whose keys and values
//! are computed once and used in every diffusion step.
//!
//! ```text
//! cargo run --release --example diffusers_attention                # 32×32 latents and smaller
//! cargo run --release --example diffusers_attention -- --full      # also 64×64 latents: 4096 tokens, a minute, 3 GB
//! cargo run --release --example diffusers_attention -- --steps 50
//! ```
//!
//! Weights and latents are random, from a fixed seed. The program fails unless the reused keys give the same bits as
//! recomputed ones.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use burn::tensor::{Distribution, Tensor, backend::Backend};
use burn_deepspeed::{
    AttentionInit, AttentionMask, ContextKeys, DataType, DeepSpeedDiffusersAttention, DeepSpeedInferenceConfig,
    InferenceBackend,
};
use burn_deepspeed_examples::backend::{BackendName, exit};
use burn_deepspeed_examples::{Failure, on_backend};
use clap::Parser;

const SEED: u64 = 0;
/// Tokens of a prompt, padding included, and the width of CLIP's vectors for them.
const PROMPT: [usize; 2] = [77, 768];

/// One resolution of the U-Net.
struct Level {
    /// Width of the residual stream, in elements.
    channels: usize,
    /// Latent tokens along one side of the image.
    side: usize,
}

/// Each level has this many heads, whatever its width.
const HEADS: usize = 8;
const SMALL_LEVELS: [Level; 3] =
    [Level { channels: 640, side: 32 }, Level { channels: 1280, side: 16 }, Level { channels: 1280, side: 8 }];
const LARGEST_LEVEL: Level = Level { channels: 320, side: 64 };

/// Runs the self and cross attention of Stable Diffusion 1.5, with and without reuse of the prompt's keys and values.
#[derive(Parser)]
struct Arguments {
    /// Diffusion steps to run.
    #[arg(long, default_value = "4")]
    steps: NonZeroUsize,
    /// Rows of the batch: 2 is one image under classifier-free guidance, with its prompt and without.
    #[arg(long, default_value = "2")]
    batch: NonZeroUsize,
    /// Run the level of 4096 latent tokens too.
    #[arg(long)]
    full: bool,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(on_backend!(arguments.backend, run, &arguments))
}

fn run<B: InferenceBackend>(arguments: &Arguments) -> Result<(), Failure> {
    let device = B::Device::default();
    B::seed(&device, SEED);
    let [tokens, features] = PROMPT;
    let (batch, steps) = (arguments.batch.get(), arguments.steps.get());
    println!("prompt [{batch}, {tokens}, {features}], {steps} diffusion steps, times per step");
    let prompt = noise::<B>([batch, tokens, features], &device);
    for level in arguments.full.then_some(LARGEST_LEVEL).iter().chain(&SMALL_LEVELS) {
        run_level(level, &prompt, steps, &device)?;
    }
    println!("reused and recomputed keys agree bit for bit");
    Ok(())
}

fn noise<B: Backend>(shape: [usize; 3], device: &B::Device) -> Tensor<B, 3> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// The two attentions of one transformer block.
struct Attentions<B: Backend> {
    own: DeepSpeedDiffusersAttention<B>,
    cross: DeepSpeedDiffusersAttention<B>,
}

impl<B: Backend> Attentions<B> {
    fn init(level: &Level, device: &B::Device) -> Result<Self, Failure> {
        let config =
            DeepSpeedInferenceConfig::new(level.channels, HEADS).with_dtype(DataType::Fp32).with_qkv_bias(false); // as in Stable Diffusion: only the output projection has one
        let own = config.init_diffusers(0, device)?;
        Ok(Self { own, cross: config.init_diffusers_cross(PROMPT[1], 0, device)? })
    }
}

/// Time spent on each route, over all steps.
#[derive(Default)]
struct Times {
    own: Duration,
    recomputed: Duration,
    reused: Duration,
}

fn run_level<B: InferenceBackend>(
    level: &Level,
    prompt: &Tensor<B, 3>,
    steps: usize,
    device: &B::Device,
) -> Result<(), Failure> {
    let [batch, _, _] = prompt.dims();
    let image = [batch, level.side * level.side, level.channels];
    let attentions = Attentions::<B>::init(level, device)?;
    // A first step outside the clock: weights are drawn when they are first read.
    let keys = attentions.cross.context_keys(prompt.clone());
    step(&attentions, noise(image, device), prompt, &keys, &mut Times::default())?;

    let mut projection = Duration::ZERO;
    let keys = timed::<B, _>(&mut projection, device, || Ok(attentions.cross.context_keys(prompt.clone())))?;
    let mut times = Times::default();
    for at in 0..steps {
        let [recomputed, reused] = step(&attentions, noise(image, device), prompt, &keys, &mut times)?;
        check_equal(recomputed, reused).map_err(|fact| format!("{image:?}, step {at}: {fact}"))?;
    }

    let head_dim = level.channels / HEADS;
    let (key, value) = keys.tensors();
    let per_step = |time: Duration| time / steps as u32;
    println!("\n{0}×{0} latents, {1} channels, {HEADS} heads of {head_dim}", level.side, level.channels);
    println!("  self   {image:?} to itself                {:>10.2?}", per_step(times.own));
    println!("  cross  {image:?} to the prompt, recomputed {:>9.2?}", per_step(times.recomputed));
    println!("  cross  {image:?} to the prompt, reused     {:>9.2?}", per_step(times.reused));
    println!("  keys {:?}, values {:?}, computed once in {projection:.2?}", key.dims(), value.dims());
    Ok(())
}

/// Self-attention, then cross attention by both routes: `[recomputed, reused]`.
fn step<B: InferenceBackend>(
    attentions: &Attentions<B>,
    latents: Tensor<B, 3>,
    prompt: &Tensor<B, 3>,
    keys: &ContextKeys<B>,
    times: &mut Times,
) -> Result<[Tensor<B, 3>; 2], Failure> {
    let Attentions { own, cross } = attentions;
    let device = latents.device();
    let (input, mask) = (latents.clone(), AttentionMask::none);
    let image = latents + timed::<B, _>(&mut times.own, &device, || Ok(own.forward(input, None, mask())?))?;
    let (query, context) = (image.clone(), Some(prompt.clone()));
    let recomputed = timed::<B, _>(&mut times.recomputed, &device, || Ok(cross.forward(query, context, mask())?))?;
    let reused = timed::<B, _>(&mut times.reused, &device, || Ok(cross.forward_with_keys(image, keys, mask())?))?;
    Ok([recomputed, reused])
}

/// Runs `work` to its end on the device, and adds how long that took.
fn timed<B: Backend, T>(
    total: &mut Duration,
    device: &B::Device,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let started = Instant::now();
    let result = work()?;
    B::sync(device)?;
    *total += started.elapsed();
    Ok(result)
}

fn check_equal<B: Backend>(recomputed: Tensor<B, 3>, reused: Tensor<B, 3>) -> Result<(), String> {
    let values = |tensor: Tensor<B, 3>| -> Vec<f32> { tensor.into_data().iter().collect() };
    let (recomputed, reused) = (values(recomputed), values(reused));
    if !recomputed.iter().all(|value| value.is_finite()) {
        return Err("the output is not finite".into());
    }
    let different = recomputed.iter().zip(&reused).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    match different {
        0 if recomputed.len() == reused.len() => Ok(()),
        _ => Err(format!("{different} of {} numbers differ between reused and recomputed keys", recomputed.len())),
    }
}
