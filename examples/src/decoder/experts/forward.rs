//! The output of the experts.

use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};
use burn_deepspeed::load::families::GroupSizes;
use burn_deepspeed::{InferenceBackend, Operations};

use super::{Experts, Form, GateOrder, GatedMlp, Shared, Weighting};
use crate::decoder::activation::Activation;

impl<B: InferenceBackend> Experts<B> {
    /// The sum over the experts of this rank, and its part of the shared one.
    ///
    /// # Shapes
    /// - x, output: `[B, T, E]`
    pub fn forward(&self, x: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        let [batch, tokens, hidden] = x.dims();
        let rows = batch * tokens;
        if rows == 0 {
            return x;
        }
        let shape = [batch, tokens, hidden];
        let x = x.reshape([1, rows, hidden]);
        let (device, dtype) = (x.device(), x.dtype());
        let scores = B::Ops::linear(x.clone().cast(self.router.dtype()), &self.router);
        let scores = scores.reshape([rows, self.settings.count]).cast(DType::F32);
        let chosen = match &self.correction {
            Some(terms) => self.chosen(sigmoid(scores.clone()) + terms.val().unsqueeze()),
            None => self.chosen(scores.clone()),
        };
        let places = |places: Vec<usize>| {
            let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
            let count = places.len();
            Tensor::<B, 1, Int>::from_data(TensorData::new(places, [count]), &device)
        };
        let weights = self.weights(scores, places(chosen.clone()).reshape([rows, self.settings.chosen]));
        let mut sum = match &self.shared {
            Some(shared) => shared.forward(x.clone(), activation),
            None => x.zeros_like(),
        };
        for (number, expert) in self.experts.iter().enumerate() {
            let own = |(place, expert): (usize, &usize)| (*expert == self.first + number).then_some(place);
            let sent: Vec<usize> = chosen.iter().enumerate().filter_map(own).collect();
            if sent.is_empty() {
                continue;
            }
            let count = sent.len();
            let tokens = places(sent.iter().map(|place| place / self.settings.chosen).collect());
            let factor = weights.clone().select(0, places(sent)).reshape([1, count, 1]).cast(dtype);
            let input = x.clone().select(1, tokens.clone());
            let output = match self.settings.weighting {
                Weighting::SigmoidOfInput => self.expert(expert, input * factor, activation),
                _ => self.expert(expert, input, activation) * factor,
            };
            sum = sum.select_assign(1, tokens, output, IndexingUpdateOp::Add);
        }
        sum.reshape(shape)
    }

    /// The best experts of each token, one token after the other.
    fn chosen(&self, scores: Tensor<B, 2>) -> Vec<usize> {
        let scores: Vec<f32> = scores.into_data().iter::<f32>().collect();
        let of_token = |scores: &[f32]| {
            let groups = self.settings.groups.map(|groups| (self.best_groups(scores, groups), groups));
            let in_group = |expert: &usize| {
                groups.as_ref().is_none_or(|(best, groups)| best.contains(&(expert * groups.count / scores.len())))
            };
            best((0..scores.len()).filter(in_group).collect(), self.settings.chosen, |expert| scores[expert])
        };
        scores.chunks(self.settings.count).flat_map(of_token).collect()
    }

    /// The groups whose experts one token may be sent to.
    fn best_groups(&self, scores: &[f32], groups: GroupSizes) -> Vec<usize> {
        // A group has the score of its best expert, or of its best two.
        let counted = if self.correction.is_some() { 2 } else { 1 };
        let of_group = |scores: &[f32]| {
            let experts = best((0..scores.len()).collect(), counted, |expert| scores[expert]);
            experts.into_iter().map(|expert| scores[expert]).sum::<f32>()
        };
        let totals: Vec<f32> = scores.chunks(scores.len() / groups.count).map(of_group).collect();
        best((0..totals.len()).collect(), groups.chosen, |group| totals[group])
    }

    /// The weights of the chosen experts, one token after the other.
    fn weights(&self, scores: Tensor<B, 2>, chosen: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        let weights = match self.settings.weighting {
            Weighting::SoftmaxOfChosen => softmax(scores.gather(1, chosen), 1),
            Weighting::SigmoidOfInput => sigmoid(scores.gather(1, chosen)),
            Weighting::SoftmaxOfAll { normalised } => {
                let weights = softmax(scores, 1).gather(1, chosen);
                if normalised { weights.clone() / weights.sum_dim(1) } else { weights }
            }
            Weighting::SigmoidOfAll { normalised } => {
                let weights = sigmoid(scores.gather(1, chosen));
                if normalised { weights.clone() / (weights.sum_dim(1) + 1e-20) } else { weights }
            }
        };
        let scale = self.settings.scale;
        let weights = if scale == 1.0 { weights } else { weights.mul_scalar(scale) };
        weights.flatten(0, 1)
    }

    fn expert(&self, expert: &GatedMlp<B>, x: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        let (gate, up) = expert.gate_and_up(x, self.settings.order);
        let inner = match self.settings.form {
            Form::Gated => activation.gated(gate, up),
            Form::ClampedSwiglu { alpha, limit } => {
                let (gate, up) = (gate.clamp_max(limit), up.clamp(-limit, limit));
                let swish = gate.clone() * sigmoid(gate.mul_scalar(alpha));
                swish * up.add_scalar(1.0)
            }
        };
        B::Ops::linear(inner, &expert.down)
    }
}

/// The `count` of these numbers whose scores are highest, the best first.
fn best(mut numbers: Vec<usize>, count: usize, score: impl Fn(usize) -> f32) -> Vec<usize> {
    numbers.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    numbers.truncate(count);
    numbers
}

impl<B: InferenceBackend> Shared<B> {
    fn forward(&self, x: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        let (gate, up) = self.mlp.gate_and_up(x.clone(), GateOrder::Halves);
        let output = B::Ops::linear(activation.gated(gate, up), &self.mlp.down);
        match &self.scale {
            Some(scale) => output * sigmoid(B::Ops::linear(x, scale)),
            None => output,
        }
    }
}

impl<B: InferenceBackend> GatedMlp<B> {
    fn gate_and_up(&self, x: Tensor<B, 3>, order: GateOrder) -> (Tensor<B, 3>, Tensor<B, 3>) {
        if let Some(gate) = &self.gate {
            return (B::Ops::linear(x.clone(), gate), B::Ops::linear(x, &self.up));
        }
        let both = B::Ops::linear(x, &self.up);
        let [one, rows, width] = both.dims();
        let inner = width / 2;
        match order {
            GateOrder::Halves => (both.clone().narrow(2, 0, inner), both.narrow(2, inner, inner)),
            GateOrder::Interleaved => {
                let pairs: Tensor<B, 4> = both.reshape([one, rows, inner, 2]);
                let part = |which| pairs.clone().narrow(3, which, 1).reshape([one, rows, inner]);
                (part(0), part(1))
            }
        }
    }
}
