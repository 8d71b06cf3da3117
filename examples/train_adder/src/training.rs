//! Trains the adder with burn-train.

use std::io::IsTerminal;
use std::path::Path;

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataset::InMemDataset;
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::composed::ComposedLrSchedulerConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::AdamWConfig;
use burn::tensor::backend::AutodiffBackend;
use burn::train::metric::{AccuracyMetric, LearningRateMetric, LossMetric};
use burn::train::{Learner, SupervisedTraining};
use burn_deepspeed::InferenceBackend;
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed_examples::decoder::Decoder;
use burn_deepspeed_examples::{Failure, sums};
use tokenizers::Tokenizer;

use super::Settings;
use super::data::{SumBatcher, examples};
use super::model::Adder;
use super::progress::LinePerEpoch;

/// Share of the steps in which the learning rate rises to its full height.
const WARM_UP: f64 = 0.05;
/// Rows of a validation batch; nothing is learned from it, so it may be large.
const VALIDATION_ROWS: usize = 500;

/// An adder that has learned every sum that is not held out. burn-train's logs go to `artifacts`.
pub fn train<B>(
    config: &HuggingFaceConfig,
    tokenizer: &Tokenizer,
    settings: &Settings,
    artifacts: &Path,
) -> Result<Decoder<B::InnerBackend>, Failure>
where
    B: AutodiffBackend + InferenceBackend,
    B::InnerBackend: InferenceBackend,
{
    let device = B::Device::default();
    B::seed(&device, settings.seed);
    let training = examples(&sums::training(), tokenizer)?;
    let held_out = examples(&sums::held_out(), tokenizer)?;
    let steps = settings.epochs * training.len().div_ceil(settings.batch_size);

    let warm_up = LinearLrSchedulerConfig::new(1e-3, 1.0, ((steps as f64 * WARM_UP) as usize).max(1));
    let cosine = CosineAnnealingLrSchedulerConfig::new(settings.learning_rate, steps.max(1));
    let schedule = ComposedLrSchedulerConfig::new().linear(warm_up).cosine(cosine).init()?;
    let optimizer = AdamWConfig::new()
        .with_beta_2(0.98)
        .with_weight_decay(0.05)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();

    let loader = DataLoaderBuilder::new(SumBatcher).batch_size(settings.batch_size).shuffle(settings.seed);
    let validation = DataLoaderBuilder::new(SumBatcher).batch_size(VALIDATION_ROWS);
    let mut session = SupervisedTraining::new(
        artifacts,
        loader.build(InMemDataset::new(training)),
        validation.build(InMemDataset::new(held_out)),
    )
    .metrics((AccuracyMetric::new(), LossMetric::new()))
    .metric_train_numeric(LearningRateMetric::new())
    .num_epochs(settings.epochs)
    .summary();
    // On a terminal burn-train draws its dashboard. Its log for everything else has a line for every batch.
    if !std::io::stdout().is_terminal() {
        session = session.renderer(LinePerEpoch::default());
    }
    let adder = Adder::<B>::init(config, &device)?;
    Ok(session.launch(Learner::new(adder, optimizer, schedule)).model.decoder)
}
