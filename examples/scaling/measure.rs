//! Times steps of a layer on ranks, and the sums in them.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::Tensor;
use burn_deepspeed::parallel::{AgreedSettings, Agreement};
use burn_deepspeed::{
    AttentionInit, AttentionMask, CommunicationError, Communicator, DataType, DeepSpeedInferenceConfig,
    DeepSpeedSelfAttention, ElementType, InferenceBackend, KvCache, Parallelism,
};

use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::scaling::Layer;

/// Number of values of the short sum, which gives the latency, and of the long one, which gives the bandwidth.
pub const SUMS: [usize; 2] = [64, 1 << 21];

/// A communicator that measures the time spent in its sums.
#[derive(Debug)]
struct Timed {
    inner: Arc<dyn Communicator>,
    spent: Mutex<Duration>,
}

impl Timed {
    fn taken(&self) -> Duration {
        std::mem::take(&mut *self.spent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Communicator for Timed {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn all_reduce(&self, agreement: &Agreement, values: &mut [f32]) -> Result<(), CommunicationError> {
        let started = Instant::now();
        let result = self.inner.all_reduce(agreement, values);
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner) += started.elapsed();
        result
    }

    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError> {
        self.inner.barrier(agreement)
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
}

/// Medians, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// A step on one rank, on all cores of the machine.
    pub alone: f64,
    /// A step on all ranks.
    pub step: f64,
    /// The part of it spent in sums, including the wait for the slowest rank.
    pub sums: f64,
    /// [`SUMS`] by themselves.
    pub links: [f64; 2],
}

/// A layer with random weights and a filled cache.
struct Decoding<B: InferenceBackend> {
    layer: DeepSpeedSelfAttention<B>,
    cache: KvCache<B>,
    input: Tensor<B, 3>,
}

impl<B: InferenceBackend> Decoding<B> {
    fn new(layer: &Layer, ranks: Option<Arc<dyn Communicator>>) -> Result<Self, Failure> {
        let device = B::Device::default();
        let config = DeepSpeedInferenceConfig::new(layer.hidden_size, layer.heads)
            .with_head_dim(Some(layer.head_dim))
            .with_num_kv(Some(layer.kv_heads))
            .with_dtype(DataType::Fp32)
            .with_uneven_heads(true)
            .with_num_hidden_layers(Some(1))
            .with_max_out_tokens(layer.history + 1);
        let config = match &ranks {
            Some(communicator) => config.for_rank_of(&**communicator),
            None => config,
        };
        let mut attention = config.init_self_attention::<B>(0, &device)?.no_grad();
        if let Some(communicator) = ranks {
            attention = attention.with_communicator(communicator)?;
        }
        let mut cache = config.init_cache::<B>(layer.batch, &device)?;
        cache.step(layer.history)?.commit();
        Ok(Self { layer: attention, cache, input: Tensor::ones([layer.batch, 1, layer.hidden_size], &device) })
    }

    /// Seconds of one step, which is not kept.
    fn step(&mut self) -> Result<f64, Failure> {
        let started = Instant::now();
        let mut step = self.cache.step(1)?;
        let output = self.layer.forward(self.input.clone(), AttentionMask::none(), step.layer(0))?;
        drop(step);
        B::sync(&output.device()).map_err(|error| format!("the device failed: {error:?}"))?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// Times steps on one rank and steps on all ranks alternately, `rounds` times, and then the sums by themselves.
pub fn measure<B: InferenceBackend>(
    layer: &Layer,
    communicator: &Arc<dyn Communicator>,
    cores: NonZeroUsize,
    rounds: usize,
) -> Result<Measured, Failure> {
    /// Steps of a kind in a round; the first are not counted.
    const STEPS: usize = 12;
    const WARM: usize = 2;
    let wait = || communicator.barrier(&Agreement::barrier());
    let first = communicator.rank() == 0;
    let timed = Arc::new(Timed { inner: communicator.clone(), spent: Mutex::default() });
    let all_cores = Parallelism::threads(cores)?;
    let own_cores =
        Parallelism::threads(NonZeroUsize::new(cores.get() / communicator.size()).unwrap_or(NonZeroUsize::MIN))?;
    let mut whole = first.then(|| Decoding::<B>::new(layer, None)).transpose()?;
    let mut part = Decoding::<B>::new(layer, Some(timed.clone()))?;
    let (mut alone, mut steps, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        wait()?;
        if let Some(whole) = &mut whole {
            let taken = all_cores.run(|| (0..STEPS).map(|_| whole.step()).collect::<Result<Vec<_>, _>>())?;
            alone.extend_from_slice(&taken[WARM..]);
        }
        wait()?;
        for at in 0..STEPS {
            timed.taken();
            wait()?;
            let step = own_cores.run(|| part.step())?;
            if at >= WARM {
                steps.push(step);
                sums.push(timed.taken().as_secs_f64());
            }
        }
    }
    let mut links = [0.0; 2];
    for (link, count) in links.iter_mut().zip(SUMS) {
        let agreement = Agreement::sum(&[count], ElementType::F32, &AgreedSettings::NONE);
        let mut values = vec![0.0; count];
        let mut taken = Vec::new();
        for _ in 0..rounds * STEPS {
            wait()?;
            let started = Instant::now();
            communicator.all_reduce(&agreement, &mut values)?;
            taken.push(started.elapsed().as_secs_f64());
        }
        *link = median(taken);
    }
    Ok(Measured { alone: median(alone), step: median(steps), sums: median(sums), links })
}

/// 0 where nothing was measured.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
}
