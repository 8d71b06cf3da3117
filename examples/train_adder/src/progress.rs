//! Progress for a log file: one line per epoch, in place of burn-train's one line per batch.

use std::collections::BTreeMap;

use burn::train::metric::{MetricDefinition, NumericEntry};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

/// Prints the means of an epoch once its validation ends.
#[derive(Default)]
pub struct LinePerEpoch {
    names: BTreeMap<String, String>,
    means: BTreeMap<(&'static str, String), Mean>,
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl LinePerEpoch {
    fn update(&mut self, split: &'static str, state: MetricState) {
        let MetricState::Numeric(entry, value) = state else { return };
        let Some(name) = self.names.get(&format!("{:?}", entry.metric_id)) else { return };
        let count = match value {
            NumericEntry::Value(_) => 1,
            NumericEntry::Aggregated { count, .. } => count,
        };
        let mean = self.means.entry((split, name.clone())).or_default();
        mean.sum += value.current() * count as f64;
        mean.count += count;
    }
}

impl MetricsRendererTraining for LinePerEpoch {
    fn update_train(&mut self, state: MetricState) {
        self.update("train", state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.update("held out", state);
    }

    fn render_train(&mut self, _: TrainingProgress, _: Vec<ProgressType>) {}

    fn render_valid(&mut self, item: TrainingProgress, _: Vec<ProgressType>) {
        if item.progress.is_some_and(|batches| batches.items_processed < batches.items_total) {
            return;
        }
        let means = std::mem::take(&mut self.means).into_iter().map(|((split, name), mean)| {
            let mean = mean.sum / mean.count as f64;
            format!("{split} {} {mean:.4}", name.to_lowercase())
        });
        let epoch = item.global_progress;
        println!("epoch {}/{}: {}", epoch.items_processed, epoch.items_total, means.collect::<Vec<_>>().join(", "));
    }
}

impl MetricsRendererEvaluation for LinePerEpoch {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}

    fn render_test(&mut self, _: EvaluationProgress, _: Vec<ProgressType>) {}
}

impl MetricsRenderer for LinePerEpoch {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(format!("{:?}", definition.metric_id), definition.name);
    }
}
