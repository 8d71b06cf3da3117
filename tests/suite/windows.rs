//! Windows on both sides of a query, and in chunks: padded rows, rows of unequal length, steps of any length, and int8 caches.

use burn::tensor::{Int, Tensor, TensorData};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, FromTensor,
    InferenceBackend, KvCacheType, Positions, RotaryLayout, WindowKind,
};

use crate::attention::randomised;
use crate::cache::kinds;
#[cfg(feature = "autodiff")]
use crate::common::AnyBackend;
use crate::common::{assert_near, on_each_backend, seeded};

/// 6 query heads and 2 key heads of 10 features.
fn config(kind: WindowKind, size: usize) -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(24, 6)
        .with_dtype(DataType::Fp32)
        .with_head_dim(Some(10))
        .with_num_kv(Some(2))
        .with_rotary(RotaryLayout::Half, 4)
        .with_local_attention(true)
        .with_window_size(size)
        .with_window_kind(kind)
        .with_triangular_masking(kind != WindowKind::Symmetric)
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(40)
}

fn module<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedSelfAttention<B> {
    randomised(config.init_self_attention(0, &Default::default()).unwrap())
}

/// A tokenizer's mask for rows of `tokens` columns that begin with this padding.
fn padded<B: InferenceBackend>(padding: [usize; 2], tokens: usize) -> Tensor<B, 2, Int> {
    let real = padding.into_iter().flat_map(|count| (0..tokens).map(move |at| i32::from(at >= count)));
    Tensor::from_data(TensorData::new(real.collect::<Vec<_>>(), [2, tokens]), &Default::default())
}

const TOKENS: usize = 29;
const PADDING: [usize; 2] = [0, 5];

/// The outputs of the padded rows, fed to a cache in pieces of this many tokens.
fn in_pieces<B: InferenceBackend>(
    config: &DeepSpeedInferenceConfig,
    module: &DeepSpeedSelfAttention<B>,
    input: &Tensor<B, 3>,
    piece: usize,
) -> Tensor<B, 3> {
    let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
    let outputs = (0..TOKENS).step_by(piece).map(|start| {
        let tokens = piece.min(TOKENS - start);
        let mask = padded::<B>(PADDING, start + tokens);
        let positions = Positions::from_padding_mask(mask.clone(), tokens);
        let mut step = cache.step(tokens).unwrap().with_positions(positions).unwrap();
        let input = input.clone().narrow(1, start, tokens);
        let output = module.forward(input, AttentionMask::from_padding(mask), step.layer(0)).unwrap();
        step.commit();
        output
    });
    Tensor::cat(outputs.collect(), 1)
}

fn chunks_do_not_depend_on_padding_or_steps<B: InferenceBackend>() {
    for size in [1, 7, 8, 100] {
        for (types, tolerance) in kinds::<B>() {
            let config = config(WindowKind::Chunked, size).with_kv_cache_dtype(types);
            let module = module::<B>(&config);
            let input = seeded::<B, 3>([2, TOKENS, 24], 1);
            let whole = in_pieces(&config, &module, &input, TOKENS);
            for piece in [1, 2, 7] {
                assert_near(in_pieces(&config, &module, &input, piece), whole.clone(), tolerance);
            }
            if types != KvCacheType::default() {
                continue;
            }
            let mask = padded::<B>(PADDING, TOKENS);
            let positions = Positions::from_padding_mask(mask.clone(), TOKENS);
            let mask = AttentionMask::from_padding(mask);
            assert_near(module.forward_uncached(input.clone(), mask, Some(&positions)).unwrap(), whole.clone(), 1e-5);
            for (row, padding) in PADDING.into_iter().enumerate() {
                let row = |tensor: &Tensor<B, 3>| tensor.clone().narrow(0, row, 1).narrow(1, padding, TOKENS - padding);
                let alone = module.forward_uncached(row(&input), AttentionMask::none(), None).unwrap();
                assert_near(row(&whole), alone, 1e-5);
            }
        }
    }
}

fn rows_of_unequal_length_have_chunks_of_their_own<B: InferenceBackend>() {
    let config = config(WindowKind::Chunked, 6);
    let module = module::<B>(&config);
    let inputs: Vec<Tensor<B, 3>> = (1..3).map(|seed| seeded([1, 20, 24], seed)).collect();
    let whole = inputs.iter().map(|input| module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap());
    let whole: Vec<_> = whole.collect();
    let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
    let mut lengths = [0, 0];
    for new in [[11, 4], [1, 1], [0, 3], [5, 9]] {
        let width = new.into_iter().max().unwrap();
        let rows = (0..2).map(|row| inputs[row].clone().narrow(1, lengths[row].min(20 - width), width));
        // The columns of a row's new tokens come first.
        let rows: Vec<_> = rows
            .enumerate()
            .map(|(row, padding)| {
                let own = inputs[row].clone().narrow(1, lengths[row], new[row].max(1)).narrow(1, 0, new[row].max(1));
                Tensor::cat(vec![own, padding], 1).narrow(1, 0, width)
            })
            .collect();
        let mut step = cache.step_ragged(width, &new).unwrap();
        let output = module.forward(Tensor::cat(rows, 0), AttentionMask::none(), step.layer(0)).unwrap();
        step.commit();
        for row in (0..2).filter(|row| new[*row] > 0) {
            let actual = output.clone().narrow(0, row, 1).narrow(1, 0, new[row]);
            assert_near(actual, whole[row].clone().narrow(1, lengths[row], new[row]), 1e-5);
            lengths[row] += new[row];
        }
    }
    assert_eq!(cache.lengths(), lengths);
}

fn a_symmetric_window_does_not_depend_on_padding<B: InferenceBackend>() {
    for size in [1, 6, 7, 100] {
        let module = module::<B>(&config(WindowKind::Symmetric, size));
        let input = seeded::<B, 3>([2, TOKENS, 24], 1);
        let mask = padded::<B>(PADDING, TOKENS);
        let positions = Positions::from_padding_mask(mask.clone(), TOKENS);
        let mask = AttentionMask::from_padding(mask);
        let all = module.forward_uncached(input.clone(), mask, Some(&positions)).unwrap();
        for (row, padding) in PADDING.into_iter().enumerate() {
            let row = |tensor: &Tensor<B, 3>| tensor.clone().narrow(0, row, 1).narrow(1, padding, TOKENS - padding);
            let alone = module.forward_uncached(row(&input), AttentionMask::none(), None).unwrap();
            assert_near(row(&all), alone, 1e-5);
        }
    }
}

fn kernels_take_every_window<B: InferenceBackend>() {
    let plain = module::<B>(&config(WindowKind::Backward, 8).with_local_attention(false));
    for kind in [WindowKind::Backward, WindowKind::Symmetric, WindowKind::Chunked] {
        let module = module::<B>(&config(kind, 8));
        for (tokens, cached) in [(1, true), (9, true), (9, false)] {
            assert_eq!(module.explain(tokens, cached), plain.explain(tokens, cached));
        }
    }
}

on_each_backend!(
    chunks_do_not_depend_on_padding_or_steps,
    rows_of_unequal_length_have_chunks_of_their_own,
    a_symmetric_window_does_not_depend_on_padding,
    kernels_take_every_window
);

#[test]
#[cfg(feature = "autodiff")]
fn the_reference_has_every_window() {
    type Reference = burn_autodiff::Autodiff<AnyBackend>;
    chunks_do_not_depend_on_padding_or_steps::<Reference>();
    rows_of_unequal_length_have_chunks_of_their_own::<Reference>();
    a_symmetric_window_does_not_depend_on_padding::<Reference>();
}
