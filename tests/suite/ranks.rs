//! Ranks that are threads: what they add up, and how they end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn_deepspeed::parallel::local::LocalCommunicator;
use burn_deepspeed::parallel::{AgreedSettings, Agreement, Communicator};
use burn_deepspeed::{
    AttentionInit, AttentionMask, CommunicationError, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, ElementType,
    InferenceBackend, Operations,
};

use crate::common::{AnyBackend, on_each_cpu_backend, seeded, values};

/// What each rank of a group returns.
pub fn on_ranks<C: Communicator, T: Send>(group: Vec<C>, work: impl Fn(Arc<C>) -> T + Sync) -> Vec<T> {
    std::thread::scope(|threads| {
        let work = &work;
        let ranks: Vec<_> = group.into_iter().map(|rank| threads.spawn(move || work(Arc::new(rank)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What a layer of 24 features returns for a prompt, for no tokens and for one more, in two rows.
pub fn prompt_and_steps(module: &DeepSpeedSelfAttention<AnyBackend>, config: &DeepSpeedInferenceConfig) -> Vec<f64> {
    let mut cache = config.init_cache::<AnyBackend>(2, &Default::default()).unwrap();
    let mut outputs = Vec::new();
    for (seed, tokens) in [(1, 5), (2, 0), (3, 1)] {
        let mut step = cache.step(tokens).unwrap();
        let input = seeded([2, tokens, 24], seed);
        outputs.extend(values(module.forward(input, AttentionMask::none(), step.layer(0)).unwrap()));
        step.commit();
    }
    outputs
}

fn sum(shape: &[usize]) -> Agreement {
    Agreement::sum(shape, ElementType::F32, &AgreedSettings::NONE)
}

/// Short and long sums, which go two ways.
fn sums_are_those_of_plain_addition<B: InferenceBackend>() {
    for ranks in [1, 2, 3, 5] {
        for width in [0, 1, 7, 40_000] {
            let part = |rank: usize| seeded::<B, 2>([2, width], 10 + rank as u64);
            let mut expected = vec![0f32; 2 * width];
            for rank in 0..ranks {
                for (sum, value) in expected.iter_mut().zip(values(part(rank))) {
                    *sum += value as f32;
                }
            }
            let sums = on_ranks(LocalCommunicator::group(ranks), |communicator| {
                let partial = part(communicator.rank());
                let sum = B::Ops::all_reduce(partial, &*communicator, &AgreedSettings::NONE).unwrap();
                sum.into_data().to_vec::<f32>().unwrap()
            });
            for sum in sums {
                assert_eq!(sum, expected);
            }
        }
    }
}

/// Many sums in a row: no rank takes the values of another sum.
#[test]
fn sums_do_not_mix() {
    let ranks = 3;
    let totals = on_ranks(LocalCommunicator::group(ranks), |communicator| {
        let mut total = 0.0;
        for round in 0..2000 {
            let width = if round % 100 == 0 { 50_000 } else { 3 };
            let mut values = vec![(round * ranks + communicator.rank()) as f32; width];
            communicator.all_reduce(&sum(&[width]), &mut values).unwrap();
            assert!(values.iter().all(|&value| value == (3 * round * ranks + 3) as f32));
            total += values[0];
            if round % 7 == 0 {
                communicator.barrier(&Agreement::barrier()).unwrap();
            }
        }
        total
    });
    assert!(totals.iter().all(|&total| total == totals[0]));
}

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn a_rank_that_does_not_come_is_named_in_time() {
    let start = Instant::now();
    let errors = on_ranks(LocalCommunicator::group_with_time_limit(3, SHORT), |communicator| {
        if communicator.rank() == 1 {
            std::thread::sleep(3 * SHORT);
        }
        communicator.all_reduce(&sum(&[4]), &mut [1.0; 4]).unwrap_err()
    });
    assert!(start.elapsed() < 10 * SHORT);
    for error in errors {
        assert_eq!(error, CommunicationError::TimedOut { missing: vec![1], ranks: 3, limit: SHORT });
    }
}

#[test]
fn a_rank_that_panics_is_missed_at_once() {
    let start = Instant::now();
    let errors = std::thread::scope(|threads| {
        let ranks: Vec<_> = LocalCommunicator::group(2)
            .into_iter()
            .map(|communicator| {
                threads.spawn(move || {
                    communicator.all_reduce(&sum(&[1]), &mut [1.0]).unwrap();
                    assert!(communicator.rank() == 0, "rank 1 panics, as it should");
                    communicator.all_reduce(&sum(&[1]), &mut [1.0]).unwrap_err()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join()).collect::<Vec<_>>()
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(errors[1].is_err());
    let error = errors[0].as_ref().unwrap();
    assert_eq!(
        error.to_string(),
        "rank 1 of 2 is gone: its thread panicked; this group can no longer be used: build a new one"
    );
}

/// What a rank contributed before it left still counts.
#[test]
fn a_rank_may_leave_after_its_last_sum() {
    for _ in 0..200 {
        let sums = on_ranks(LocalCommunicator::group(2), |communicator| {
            let mut values = [1.0];
            communicator.all_reduce(&sum(&[1]), &mut values).unwrap();
            values[0]
        });
        assert_eq!(sums, [2.0, 2.0]);
    }
}

#[test]
fn an_abort_reaches_waiting_and_arriving_ranks() {
    for early in [false, true] {
        let errors = on_ranks(LocalCommunicator::group(2), |communicator| {
            if communicator.rank() == 1 {
                if !early {
                    std::thread::sleep(SHORT / 2);
                }
                communicator.abort("the disk is full");
            } else if early {
                std::thread::sleep(SHORT / 2);
            }
            communicator.barrier(&Agreement::barrier()).unwrap_err()
        });
        for error in errors {
            assert_eq!(error, CommunicationError::Aborted { rank: 1, reason: "the disk is full".into() });
            assert_eq!(
                error.to_string(),
                "rank 1 gave up: the disk is full; this group can no longer be used: build a new one"
            );
        }
    }
}

#[test]
fn ranks_that_do_different_things_add_nothing() {
    let settings = |layer: usize| AgreedSettings::new([("the layer", &layer)]);
    let cases: [(Agreement, Agreement, &str); 5] = [
        (sum(&[1, 5, 8]), sum(&[1, 4, 8]), "rank 0 adds [1, 5, 8] of F32, that rank adds [1, 4, 8] of F32"),
        (sum(&[8]), sum(&[8, 1]), "rank 0 adds [8] of F32, that rank adds [8, 1] of F32"),
        (
            sum(&[8]),
            Agreement::sum(&[8], ElementType::BF16, &AgreedSettings::NONE),
            "rank 0 adds [8] of F32, that rank adds [8] of BF16",
        ),
        (sum(&[8]), Agreement::barrier(), "rank 0 adds [8] of F32, that rank waits at a barrier"),
        (
            Agreement::sum(&[8], ElementType::F32, &settings(3)),
            Agreement::sum(&[8], ElementType::F32, &settings(4)),
            "the layer is not the same",
        ),
    ];
    for (first, other, difference) in cases {
        let errors = on_ranks(LocalCommunicator::group(3), |communicator| {
            let agreement = if communicator.rank() == 2 { other } else { first };
            let error = communicator.all_reduce(&agreement, &mut [1.0; 40]).unwrap_err();
            assert_eq!(communicator.barrier(&Agreement::barrier()).unwrap_err(), error); // it stays over
            error
        });
        for error in errors {
            assert_eq!(error, CommunicationError::Differ { rank: 2, difference: difference.into() });
        }
    }
}

/// A caller that uses an engine directly may announce one thing and pass another.
#[test]
fn ranks_with_different_numbers_of_values_add_nothing() {
    for [first, other] in [[40, 41], [40, 50_000], [50_000, 40]] {
        let errors = on_ranks(LocalCommunicator::group(2), |communicator| {
            let length = if communicator.rank() == 1 { other } else { first };
            communicator.all_reduce(&sum(&[first]), &mut vec![1.0; length]).unwrap_err()
        });
        let difference = format!("rank 0 contributes {first} values, that rank {other}");
        for error in errors {
            assert_eq!(error, CommunicationError::Differ { rank: 1, difference: difference.clone() });
        }
    }
}

/// Half types are added in f32: 2048 and 256 ones are 2304 in f16, where each one alone would be lost.
#[test]
#[cfg(feature = "flex")]
fn half_types_are_rounded_once() {
    let sums = on_ranks(LocalCommunicator::group(33), |communicator| {
        let value = if communicator.rank() == 0 { 2048.0 } else { 1.0 };
        let partial = burn::tensor::Tensor::<burn_flex::Flex, 1>::from_data(
            [value],
            (&Default::default(), burn::tensor::DType::F16),
        );
        let sum = burn_deepspeed::CpuOps::all_reduce(partial, &*communicator, &AgreedSettings::NONE).unwrap();
        assert_eq!(sum.dtype(), burn::tensor::DType::F16);
        values(sum)
    });
    assert!(sums.iter().all(|sum| sum == &[2080.0]));
}

on_each_cpu_backend!(sums_are_those_of_plain_addition);
