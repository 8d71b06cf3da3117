//! Encoder-decoders of the golden files, from their layers up: T5 with its relative positions.

use burn::tensor::activation::{gelu_approximate, relu};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::load::{AttentionNames, Checkpoint, NormNames, QkvNames, ReadTensors, WeightNames};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::position::RelativeBuckets;
use burn_deepspeed::weight::{FusedNorm, Orientation, RelativeBias};
use burn_deepspeed::{
    AttentionInit, AttentionMask, CrossCache, DataType, DeepSpeedCrossAttention, DeepSpeedInferenceConfig,
    DeepSpeedSelfAttention, InferenceBackend, NormType,
};
use serde_json::Value;

use crate::common::{AnyBackend, assert_near, golden, on_each_cpu_backend, values};

/// A checkpoint and its `config.json`.
struct T5 {
    checkpoint: Checkpoint,
    config: Value,
}

impl T5 {
    fn open(folder: &str) -> Self {
        let path = golden("seq2seq").join(folder);
        let config = std::fs::read_to_string(path.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(path.join("model.safetensors")).unwrap();
        Self { checkpoint, config: serde_json::from_str(&config).unwrap() }
    }

    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    /// Scores are not scaled, and nothing but the norms stands beside the matrices.
    fn attention(&self) -> DeepSpeedInferenceConfig {
        DeepSpeedInferenceConfig::new(self.size("d_model"), self.size("num_heads"))
            .with_dtype(DataType::Fp32)
            .with_head_dim(Some(self.size("d_kv")))
            .with_norm_type(NormType::RMSNorm)
            .with_layer_norm_eps(self.config["layer_norm_epsilon"].as_f64().unwrap())
            .with_scale_attention(false)
            .with_qkv_bias(false)
            .with_output_bias(false)
            .with_num_hidden_layers(Some(self.size("num_decoder_layers")))
            .with_max_out_tokens(20)
    }

    fn names(layer: &str, attention: &str) -> AttentionNames {
        let path = format!("{layer}.{attention}");
        let qkv = QkvNames::separate(&path, ["q", "k", "v"]);
        AttentionNames::new(qkv, WeightNames::of(&format!("{path}.o")), Orientation::OutputInput)
            .with_norm(NormNames::of(&format!("{layer}.layer_norm")))
    }

    fn tensor<B: Backend, const D: usize>(&self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        self.checkpoint.tensor(name, shape, DType::F32, &Default::default()).unwrap()
    }

    fn relative_bias<B: Backend>(&self, stack: &str, both_sides: bool) -> RelativeBias<B> {
        let (count, distance) = ("relative_attention_num_buckets", "relative_attention_max_distance");
        let buckets = RelativeBuckets::new(self.size(count), self.size(distance), both_sides).unwrap();
        let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        RelativeBias::new(self.tensor(&name, [self.size(count), self.size("num_heads")]), buckets)
    }

    fn normed<B: Backend>(&self, x: Tensor<B, 3>, like: &FusedNorm<B>, name: &str) -> Tensor<B, 3> {
        let gamma = self.tensor(&format!("{name}.weight"), [self.size("d_model")]);
        normalise(x, &FusedNorm::new(gamma, None, like.spec()))
    }

    fn feed_forward<B: Backend>(&self, x: Tensor<B, 3>, like: &FusedNorm<B>, layer: &str) -> Tensor<B, 3> {
        let (model, inner) = (self.size("d_model"), self.size("d_ff"));
        let normed = self.normed(x.clone(), like, &format!("{layer}.layer_norm"));
        let up = |name: &str| {
            let matrix = self.tensor::<B, 2>(&format!("{layer}.DenseReluDense.{name}.weight"), [inner, model]);
            normed.clone().matmul(matrix.transpose().unsqueeze())
        };
        let hidden = match self.config["feed_forward_proj"].as_str().unwrap() {
            "relu" => relu(up("wi")),
            "gated-gelu" => gelu_approximate(up("wi_0")) * up("wi_1"),
            other => panic!("{other} is in no golden file"),
        };
        let down = self.tensor::<B, 2>(&format!("{layer}.DenseReluDense.wo.weight"), [model, inner]);
        x + hidden.matmul(down.transpose().unsqueeze())
    }

    fn embedded<B: Backend>(&self, ids: Vec<i64>, shape: [usize; 2]) -> Tensor<B, 3> {
        let table = self.tensor::<B, 2>("shared.weight", [self.size("vocab_size"), self.size("d_model")]);
        let index = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [shape[0] * shape[1]]), &Default::default());
        table.select(0, index).reshape([shape[0], shape[1], self.size("d_model")])
    }

    fn self_attention<B: InferenceBackend>(&self, stack: &str, layer: usize) -> DeepSpeedSelfAttention<B> {
        let config = self.attention().with_triangular_masking(stack == "decoder");
        let names = Self::names(&format!("{stack}.block.{layer}.layer.0"), "SelfAttention");
        config.init_self_attention(layer, &Default::default()).unwrap().load(&self.checkpoint, &names).unwrap()
    }

    fn cross_attention<B: InferenceBackend>(&self, layer: usize) -> DeepSpeedCrossAttention<B> {
        let names = Self::names(&format!("decoder.block.{layer}.layer.1"), "EncDecAttention");
        let module = self.attention().init_cross_attention(self.size("d_model"), layer, &Default::default()).unwrap();
        module.load(&self.checkpoint, &names).unwrap()
    }

    /// The output of the encoder.
    fn encode<B: InferenceBackend>(&self, ids: Vec<i64>, mask: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, tokens] = mask.dims();
        let bias = self.relative_bias::<B>("encoder", true).bias(&[0], tokens, tokens);
        let mask = AttentionMask::from_padding(mask).with_bias(bias);
        let mut x = self.embedded::<B>(ids, [batch, tokens]);
        let layers: Vec<_> = (0..self.size("num_layers")).map(|layer| self.self_attention("encoder", layer)).collect();
        for (index, layer) in layers.iter().enumerate() {
            x = x.clone() + layer.forward_uncached(x, mask.clone(), None).unwrap();
            x = self.feed_forward(x, layer.norm().unwrap(), &format!("encoder.block.{index}.layer.1"));
        }
        self.normed(x, layers[0].norm().unwrap(), "encoder.final_layer_norm")
    }

    fn logits<B: Backend>(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let model = self.size("d_model");
        let scales = self.config["scale_decoder_outputs"].as_bool().unwrap();
        let x = if scales { x / (model as f64).sqrt() } else { x };
        let head = self.tensor::<B, 2>("shared.weight", [self.size("vocab_size"), model]);
        x.matmul(head.transpose().unsqueeze())
    }
}

fn rows(expected: &Value, key: &str) -> Vec<Vec<i64>> {
    serde_json::from_value(expected[key].clone()).unwrap()
}

fn t5_decodes_what_transformers_decodes<B: InferenceBackend>() {
    for folder in ["t5", "t5_gated"] {
        let model = T5::open(folder);
        let expected = std::fs::read_to_string(golden("seq2seq").join(folder).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let (ids, mask) = (rows(&expected, "input_ids"), rows(&expected, "attention_mask"));
        let (batch, shape) = (ids.len(), [ids.len(), ids[0].len()]);
        let lengths: Vec<usize> = mask.iter().map(|row| row.iter().sum::<i64>() as usize).collect();
        let mask = Tensor::from_data(TensorData::new(mask.concat(), shape), &Default::default());
        let encoded = model.encode::<B>(ids.concat(), mask);

        let layers: Vec<_> = (0..model.size("num_decoder_layers"))
            .map(|layer| (model.self_attention::<B>("decoder", layer), model.cross_attention::<B>(layer)))
            .collect();
        let contexts = CrossCache::new(layers.iter().map(|(_, cross)| cross), encoded, &lengths).unwrap();
        let bias = model.relative_bias::<B>("decoder", false);
        let mut cache = model.attention().init_cache::<B>(batch, &Default::default()).unwrap();
        let (mut generated, mut step_ids) = (vec![Vec::new(); batch], rows(&expected, "decoder_ids"));
        let expected_ids = rows(&expected, "generated_ids");
        for at in 0..expected_ids[0].len() {
            let (past, tokens) = (cache.len(), step_ids[0].len());
            let mut x = model.embedded::<B>(step_ids.concat(), [batch, tokens]);
            let mask = AttentionMask::none().with_bias(bias.bias(&[past], tokens, past + tokens));
            let mut step = cache.step(tokens).unwrap();
            for (index, (own, cross)) in layers.iter().enumerate() {
                x = x.clone() + own.forward(x, mask.clone(), step.layer(index)).unwrap();
                x = x.clone() + cross.forward(x, AttentionMask::none(), contexts.layer(index).unwrap()).unwrap();
                x = model.feed_forward(x, own.norm().unwrap(), &format!("decoder.block.{index}.layer.2"));
            }
            step.commit();
            let x = model.normed(x, layers[0].0.norm().unwrap(), "decoder.final_layer_norm");
            let logits = model.logits(x.narrow(1, tokens - 1, 1));
            if at == 0 {
                let numbers: Vec<Vec<f32>> = serde_json::from_value(expected["prompt_logits"].clone()).unwrap();
                let shape = [batch, 1, model.size("vocab_size")];
                let numbers = Tensor::from_data(TensorData::new(numbers.concat(), shape), &Default::default());
                assert_near(logits.clone(), numbers, 1e-3);
            }
            let best: Vec<i64> = logits.argmax(2).into_data().iter().collect();
            generated.iter_mut().zip(&best).for_each(|(row, id)| row.push(*id));
            step_ids = best.into_iter().map(|id| vec![id]).collect();
        }
        assert_eq!(generated, expected_ids, "{folder}");
    }
}

on_each_cpu_backend!(t5_decodes_what_transformers_decodes);

/// The numbers are those of `T5Attention._relative_position_bucket`.
#[test]
fn distances_have_the_buckets_of_t5() {
    let distances =
        [-200, -40, -20, -17, -16, -13, -12, -10, -9, -8, -7, -5, -4, -1, 0, 1, 2, 4, 7, 8, 11, 16, 23, 32, 64, 300];
    let of = |count, max, both| {
        let buckets = RelativeBuckets::new(count, max, both).unwrap();
        distances.map(|distance| buckets.of(distance))
    };
    let both = [15, 12, 10, 10, 10, 9, 9, 8, 8, 8, 7, 5, 4, 1, 0, 17, 18, 20, 23, 24, 24, 26, 27, 28, 30, 31];
    assert_eq!(of(32, 128, true), both);
    let before = [31, 23, 17, 16, 16, 13, 12, 10, 9, 8, 7, 5, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(of(32, 128, false), before);
    let few = [7, 7, 7, 7, 7, 6, 6, 6, 6, 5, 5, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(of(8, 20, false), few);
}

#[test]
fn buckets_that_cannot_be_counted_are_refused() {
    let message = |count, max, both| RelativeBuckets::new(count, max, both).unwrap_err().to_string();
    assert!(message(1, 20, false).contains("`relative_attention_num_buckets` is 1; it must be at least 2"));
    assert!(message(3, 20, true).contains("`relative_attention_num_buckets` is 3; it must be at least 4"));
    assert!(message(8, 4, false).contains("`relative_attention_max_distance` is 4"));
}

/// Rows whose first queries are in different slots, against the bias of each alone.
#[test]
fn rows_have_the_bias_of_their_own_slots() {
    let buckets = RelativeBuckets::new(8, 20, true).unwrap();
    let bias = RelativeBias::<AnyBackend>::new(crate::common::seeded([8, 3], 1), buckets);
    let together = bias.bias(&[4, 0], 2, 6);
    assert_eq!(together.dims(), [2, 3, 2, 6]);
    assert_near(together, Tensor::cat(vec![bias.bias(&[4], 2, 6), bias.bias(&[0, 0], 2, 6)], 0), 0.0);
    let table = values(bias.table());
    let value = |distance| table[buckets.of(distance) * 3 + 1];
    assert_eq!(values(bias.bias(&[1], 1, 3).narrow(1, 1, 1)), [value(-1), value(0), value(1)]);
    assert_eq!(bias.bias(&[1], 0, 3).dims(), [1, 3, 0, 3]);
}
