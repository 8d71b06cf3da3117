//! Properties that hold for every size, every split and every mask.

use burn::tensor::{Bool, Tensor, TensorData};
use burn_deepspeed::ops::softmax::masked_softmax;
use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, TpPlan};
use proptest::prelude::*;

use crate::attention::randomised;
use crate::common::{assert_near, seeded, values};

type B = crate::common::AnyBackend;

fn config(kv_heads: usize, group: usize, half: bool, window: Option<usize>) -> DeepSpeedInferenceConfig {
    let heads = kv_heads * group;
    DeepSpeedInferenceConfig::new(heads * 6, heads)
        .with_dtype(DataType::Fp32)
        .with_num_kv(Some(kv_heads))
        .with_rotary_dim(Some(4))
        .with_rotate_half(half)
        .with_rotate_every_two(!half)
        .with_local_attention(window.is_some())
        .with_window_size(window.unwrap_or(1))
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(24)
}

fn hidden(rows: &[Vec<bool>]) -> Tensor<B, 2, Bool> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), &Default::default())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn chunks_are_the_whole(
        kv_heads in 1usize..4, group in 1usize..4, half: bool, window in prop::option::of(1usize..9),
        cuts in prop::collection::vec(1usize..7, 1..6), seed: u64, bloom: bool,
    ) {
        let total: usize = cuts.iter().sum();
        let config = match bloom {
            true => config(kv_heads, group, half, window).with_rotary_dim(None).with_bigscience_bloom(true),
            false => config(kv_heads, group, half, window),
        }.with_max_out_tokens(total);
        let config_plain = config.clone().with_bigscience_bloom(false);
        let device = Default::default();
        let input = seeded::<B, 3>([2, total, config.hidden_size], seed);
        let run = |cuts: &[usize]| {
            let mut cache = config.init_cache::<B>(2, &device).unwrap();
            let mut start = 0;
            let mut outputs = Vec::new();
            for &tokens in cuts {
                let new = input.clone().narrow(1, start, tokens);
                let mut step = cache.step(tokens).unwrap();
                outputs.push(if bloom {
                    let module = randomised(config.init_bloom::<B>(0, &device).unwrap());
                    module.forward(new, AttentionMask::none(), step.layer(0)).unwrap()
                } else {
                    let module = randomised(config_plain.init_self_attention::<B>(0, &device).unwrap());
                    module.forward(new, AttentionMask::none(), step.layer(0)).unwrap()
                });
                step.commit();
                start += tokens;
            }
            Tensor::cat(outputs, 1)
        };
        assert_near(run(&cuts), run(&[total]), 2e-5);
    }

    #[test]
    fn probabilities_sum_to_one_or_to_nothing(
        [heads, tokens, keys] in [1usize..4, 1usize..6, 1usize..70], seed: u64, scale in 0.1f64..300.0,
        pattern in prop::collection::vec(prop::bool::weighted(0.6), 1..50),
    ) {
        let scores = seeded::<B, 4>([1, heads, tokens, keys], seed) * scale;
        let hides: Vec<bool> = (0..heads * tokens * keys).map(|at| pattern[at % pattern.len()]).collect();
        let mask = TensorData::new(hides.clone(), [1, heads, tokens, keys]);
        let probs = values(masked_softmax(scores, Some(Tensor::from_data(mask, &Default::default()))));
        for (row, hides) in probs.chunks(keys).zip(hides.chunks(keys)) {
            let sum: f64 = row.iter().sum();
            let expected = if hides.iter().all(|hidden| *hidden) { 0.0 } else { 1.0 };
            prop_assert!((sum - expected).abs() < 1e-5, "{sum}");
            prop_assert!(row.iter().zip(hides).all(|(p, hidden)| *p >= 0.0 && (!hidden || *p == 0.0)));
        }
    }

    #[test]
    fn masked_content_never_matters(
        kv_heads in 1usize..3, group in 1usize..3, tokens in 1usize..9, seed: u64,
        keep in prop::collection::vec(any::<bool>(), 18), nan: bool,
    ) {
        let config = config(kv_heads, group, true, None).with_triangular_masking(false);
        let module = randomised(config.init_self_attention::<B>(0, &Default::default()).unwrap());
        let input = seeded::<B, 3>([2, tokens, config.hidden_size], seed);
        let rows: Vec<Vec<bool>> = (0..2).map(|row| keep[row * 9..][..tokens].iter().map(|keep| !keep).collect()).collect();
        let junk = if nan { f32::NAN } else { 1e4 };
        let gone = hidden(&rows).reshape([2, tokens, 1]).expand([2, tokens, config.hidden_size]);
        let poisoned = input.clone().mask_fill(gone.clone(), junk);
        let run = |input| {
            let output = module.forward_uncached(input, AttentionMask::hide(hidden(&rows)), None).unwrap();
            output.mask_fill(gone.clone(), 0.0) // the hidden tokens' own rows may hold anything
        };
        assert_near(run(poisoned), run(input), 1e-6);
    }

    #[test]
    fn a_padded_row_is_the_row_alone(
        kv_heads in 1usize..3, group in 1usize..3, pad in 0usize..6, tokens in 1usize..9, half: bool, seed: u64, right: bool,
    ) {
        let config = config(kv_heads, group, half, Some(4));
        let module = randomised(config.init_self_attention::<B>(0, &Default::default()).unwrap());
        let width = config.hidden_size;
        let row = seeded::<B, 3>([1, tokens, width], seed);
        let junk = seeded::<B, 3>([1, pad + 1, width], seed ^ 1).narrow(1, 0, pad.max(1));
        let alone = module.forward_uncached(row.clone(), AttentionMask::none(), None).unwrap();
        if pad == 0 { return Ok(()); }
        let (parts, first) = if right { (vec![row, junk], 0) } else { (vec![junk, row], pad) };
        let hides: Vec<bool> = (0..tokens + pad).map(|at| at < first || at >= first + tokens).collect();
        let padded = module.forward_uncached(Tensor::cat(parts, 1), AttentionMask::hide(hidden(&[hides])), None).unwrap();
        assert_near(padded.narrow(1, first, tokens), alone, 2e-5);
    }

    #[test]
    fn shards_cover_the_heads_once(kv_heads in 1usize..9, group in 1usize..9) {
        let heads = kv_heads * group;
        for ranks in 1..=heads {
            let plan = TpPlan::uneven(heads, kv_heads, ranks).unwrap();
            let even = TpPlan::new(heads, kv_heads, ranks);
            prop_assert_eq!(even.is_ok(), TpPlan::valid_ranks(heads, kv_heads).any(|valid| valid == ranks));
            let mut next = 0;
            for shard in plan.shards() {
                prop_assert_eq!(shard.start, next);
                prop_assert!(shard.len > 0 && shard.len == shard.queries_per_kv() * shard.kv_len);
                prop_assert!(even.is_err() || shard.len == heads / ranks);
                for head in shard.queries() {
                    // the key/value head that the whole model would read is the one that the rank reads
                    let own = shard.kv_start + (head - shard.start) / shard.queries_per_kv();
                    prop_assert_eq!(own, head / group);
                }
                next += shard.len;
            }
            prop_assert_eq!(next, heads);
        }
    }
}
