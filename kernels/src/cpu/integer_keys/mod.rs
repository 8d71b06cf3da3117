//! Products of queries and int8 keys on integers, where the processor multiplies bytes and adds them in fours.
//!
//! A query becomes integers, with one scale, and each of them three signed bytes:
//!
//! ```text
//! query      -0.3125 …  = scale · integer
//! integer    byte 2 · 65536 + byte 1 · 256 + byte 0
//!              │             │            │
//! key (int8)   × ── sums     × ── sums    × ── sums      64 products an instruction, exact; joined in f32
//! ```
//!
//! An element of a query is off by at most 2^-23 of the largest of the query, so scores are as exact as those of floats. A key is not converted to
//! floats, which takes longer than its products.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod none;
mod queries;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use neon as engine;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use none as engine;
#[cfg(target_arch = "x86_64")]
use x86 as engine;

/// The products of queries with every key, into the first columns of `scores`, `[rows, stride]`. Columns after them, up to whole vectors,
/// are unspecified.
pub(super) use self::engine::products;
pub(super) use self::queries::Queries;
use self::queries::{MOST_FEATURES, floats};

/// Floats of scratch for so many queries; 0 if keys of so many features are better multiplied as floats.
pub(super) fn scratch(rows: usize, features: usize) -> usize {
    // A register that is half empty takes as long as a full one.
    let fills = |width: usize| 4 * features >= 3 * features.next_multiple_of(width);
    match engine::width() {
        Some(width) if fills(width) && features <= MOST_FEATURES => floats(rows, features),
        _ => 0,
    }
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;
    use crate::cpu::attention::Heads;
    use crate::cpu::interval::Interval;
    use crate::cpu::slots::InSlots;

    const STRIDE: usize = 48;

    fn number(at: usize) -> f32 {
        (at.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 32768.0 - 1.0
    }

    /// Every engine has the products in f64, within what the integers of a query are off.
    #[test]
    fn products_are_exact_but_for_the_last_bits_of_the_queries() {
        for features in [1, 7, 16, 31, 32, 40, 64, 80, 96, 128, 200] {
            let tokens = 70;
            let queries: Vec<f32> = (0..3 * features).map(|at| number(at) * 0.3).collect();
            let keys: Vec<i8> = (0..tokens * features).map(|at| (number(at + 5) * 128.0) as i8).collect();
            let heads = Heads { elements: &keys, batch: 0, head: 0, token: features };
            for slots in [3..4, 0..16, 29..70] {
                let own = Interval::new(slots.start, slots.end);
                check(&queries, features, &keys, InSlots::of_interval(heads, [0, 0], features, own), slots);
            }
            let kept: Vec<usize> = (0..tokens).filter(|slot| slot % 5 != 2).take(37).collect();
            check(&queries, features, &keys, InSlots::of_kept(heads, [0, 0], features, &kept), kept.iter().copied());
        }
    }

    fn check<const INTERVAL: bool>(
        queries: &[f32],
        features: usize,
        keys: &[i8],
        own: InSlots<'_, i8, INTERVAL>,
        slots: impl Iterator<Item = usize> + Clone,
    ) {
        let rows = queries.len() / features;
        for (name, products) in engine::every() {
            let mut memory = vec![f32::NAN; scratch(rows, features)];
            let Some(integers) = Queries::new(queries, features, &mut memory) else {
                assert!(memory.is_empty());
                continue;
            };
            let mut scores = vec![f32::NAN; rows * STRIDE];
            products(&integers, own, &mut scores, STRIDE);
            for (row, query) in queries.chunks_exact(features).enumerate() {
                let most = query.iter().fold(0.0f32, |most, element| most.max(element.abs()));
                for (at, slot) in slots.clone().enumerate() {
                    let pairs = || query.iter().zip(&keys[slot * features..][..features]);
                    let exact: f64 = pairs().map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let size: f64 = pairs().map(|(_, b)| f64::from(*b).abs()).sum::<f64>() * f64::from(most);
                    let error = (f64::from(scores[row * STRIDE + at]) - exact).abs();
                    assert!(error <= size * 2f64.powi(-22), "{name}, {features} features: {error} of {size}");
                }
            }
        }
    }

    #[test]
    fn zeros_give_zeros_and_what_is_not_finite_is_left_to_floats() {
        const FEATURES: usize = 64;
        let mut memory = vec![f32::NAN; scratch(1, FEATURES)];
        if memory.is_empty() {
            return;
        }
        let heads = Heads { elements: &[i8::MIN; FEATURES], batch: 0, head: 0, token: FEATURES };
        let keys = InSlots::of_interval(heads, [0, 0], FEATURES, Interval::new(0, 1));
        let queries = Queries::new(&[0.0; FEATURES], FEATURES, &mut memory).expect("finite");
        let mut scores = [f32::NAN; STRIDE];
        products(&queries, keys, &mut scores, STRIDE);
        assert_eq!(scores[0], 0.0);
        for other in [f32::NAN, f32::INFINITY] {
            let mut query = [1.0; FEATURES];
            query[FEATURES - 1] = other;
            assert!(Queries::new(&query, FEATURES, &mut memory).is_none());
        }
    }
}
