//! The innermost loops of tiles: a group of outputs times the rows in the lanes of a few vectors. All sums stay in registers.

use pulp::Simd;

use super::problem::{PART, WIDTH};

/// What is prefetched while a group is computed. A trait, since a closure that is not inlined would have all sums stored and loaded again.
pub(super) trait Ahead {
    /// Prefetches a part of it, with every [`PART`] features.
    fn prefetch(&self, part: usize);
}

/// Adds to `sums`, or to nothing if they are `fresh`, the products of the lanes and the weights of `N` outputs, packed as
/// `[outputs, D]`. `ahead` has what the next group needs.
#[inline(always)]
pub(super) fn packed_along<S: Simd, const V: usize, const N: usize, const D: usize>(
    simd: S,
    lanes: &[[S::f32s; V]],
    weights: &[f32],
    sums: &mut [[S::f32s; V]; N],
    fresh: bool,
    ahead: impl Ahead,
) {
    assert!(lanes.len() <= D && weights.len() >= N * D);
    // SAFETY: outputs are less than `N` and features less than `D`, so `weights` has the element.
    group(simd, lanes, |n, feature| unsafe { *weights.get_unchecked(n * D + feature) }, sums, fresh, ahead);
}

/// The same for weights that are packed as `[features, WIDTH]`.
#[inline(always)]
pub(super) fn packed_across<S: Simd, const V: usize, const N: usize>(
    simd: S,
    lanes: &[[S::f32s; V]],
    weights: &[f32],
    sums: &mut [[S::f32s; V]; N],
    fresh: bool,
    ahead: impl Ahead,
) {
    assert!(lanes.is_empty() || weights.len() >= (lanes.len() - 1) * WIDTH + N);
    // SAFETY: outputs are less than `N` and features less than the lanes' features, so `weights` has the element.
    group(simd, lanes, |n, feature| unsafe { *weights.get_unchecked(feature * WIDTH + n) }, sums, fresh, ahead);
}

/// The same for a run of features per output.
#[inline(always)]
pub(super) fn runs_of_features<S: Simd, const V: usize, const N: usize>(
    simd: S,
    lanes: &[[S::f32s; V]],
    runs: [&[f32]; N],
    sums: &mut [[S::f32s; V]; N],
    fresh: bool,
    ahead: impl Ahead,
) {
    for run in runs {
        assert!(run.len() >= lanes.len());
    }
    // SAFETY: features are less than the lanes' features, of which every run has as many.
    group(simd, lanes, |n, feature| unsafe { *runs[n].get_unchecked(feature) }, sums, fresh, ahead);
}

/// The same for a weight per output and feature.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "several arrays at one index")]
fn group<S: Simd, const V: usize, const N: usize>(
    simd: S,
    lanes: &[[S::f32s; V]],
    weight: impl Fn(usize, usize) -> f32,
    sums: &mut [[S::f32s; V]; N],
    fresh: bool,
    ahead: impl Ahead,
) {
    // A copy stays in registers.
    let mut totals = if fresh { [[simd.splat_f32s(0.0); V]; N] } else { *sums };
    for (part, lanes) in lanes.chunks(PART).enumerate() {
        ahead.prefetch(part);
        for (at, lanes) in lanes.iter().enumerate() {
            for n in 0..N {
                let weight = simd.splat_f32s(weight(n, part * PART + at));
                for v in 0..V {
                    totals[n][v] = simd.mul_add_e_f32s(weight, lanes[v], totals[n][v]);
                }
            }
        }
    }
    *sums = totals;
}
