//! The attention of Stable Diffusion 1.5: from the image to itself, and from the image to a prompt whose keys and values
//! are computed once and used in every diffusion step. Then that of Stable Diffusion 3, whose image and text attend to each other in one
//! joint attention.
//!
//! ```text
//! cargo run --release --example diffusers_attention                # 32×32 latents and smaller
//! cargo run --release --example diffusers_attention -- --full      # also 64×64 latents: 4096 tokens, a minute, 3 GB
//! cargo run --release --example diffusers_attention -- --steps 50
//! ```
//!
//! Weights and latents are random, from a fixed seed. The program fails unless the reused keys give the same bits as
//! recomputed ones, and unless padding of the text, hidden by a mask, leaves the image as it is without padding.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use burn::tensor::{Bool, Distribution, Tensor, TensorData, backend::Backend};
use burn_deepspeed::{
    AttentionInit, AttentionMask, ContextKeys, DataType, DeepSpeedDiffusersAttention, DeepSpeedInferenceConfig,
    InferenceBackend, JointStreams, QkNorm, QkNormKind, QkNormWeights,
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

/// A layer of Stable Diffusion 3.5 medium, for an image of 256 × 256 pixels.
const JOINT: Level = Level { channels: 1536, side: 16 };
const JOINT_HEADS: usize = 24;
/// Tokens of the text: of the prompt, and with the padding of the two encoders.
const TEXT: [usize; 2] = [60, 154];
/// Largest difference that padding may make.
const TOLERANCE: f64 = 1e-4;

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
    run_joint::<B>(batch, steps, &device)
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

/// Attends from image and text to both, with padding after the text that a mask hides, and without padding.
fn run_joint<B: InferenceBackend>(batch: usize, steps: usize, device: &B::Device) -> Result<(), Failure> {
    let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-6);
    let config =
        DeepSpeedInferenceConfig::new(JOINT.channels, JOINT_HEADS).with_dtype(DataType::Fp32).with_qk_norm(Some(norm));
    let attention = config.init_joint::<B>(JointStreams::image_first(JOINT.channels), 0, device)?;
    let (patches, [words, padded]) = (JOINT.side * JOINT.side, TEXT);
    let image = noise::<B>([batch, patches, JOINT.channels], device);
    let text = noise::<B>([batch, padded, JOINT.channels], device);
    let hides: Vec<bool> =
        (0..batch * (patches + padded)).map(|at| at % (patches + padded) >= patches + words).collect();
    let hides = Tensor::<B, 2, Bool>::from_data(TensorData::new(hides, [batch, patches + padded]), device);

    let (mut warmup, mut time) = (Duration::ZERO, Duration::ZERO);
    for at in 0..=steps {
        // The first is outside the clock: weights are drawn when they are first read.
        let clock = if at == 0 { &mut warmup } else { &mut time };
        let mask = AttentionMask::hide(hides.clone());
        let with_padding =
            timed::<B, _>(clock, device, || Ok(attention.forward(image.clone(), Some(text.clone()), None, mask)?))?;
        let short = text.clone().narrow(1, 0, words);
        let without = attention.forward(image.clone(), Some(short), None, AttentionMask::none())?;
        let [with_padding, without] = [with_padding, without].map(|output| output.image);
        let off: f64 = (with_padding - without).abs().max().into_data().iter().next().unwrap_or(f64::NAN);
        if off.is_nan() || off > TOLERANCE {
            return Err(format!("hidden padding moves the image by {off:e}, expected at most {TOLERANCE:e}").into());
        }
    }
    println!("\n{patches} patches and {padded} tokens of text, {} features, {JOINT_HEADS} heads", JOINT.channels);
    println!("  joint  both to both                         {:>10.2?}", time / steps as u32);
    println!("hidden padding of the text does not move the image");
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
