//! Rows in the lanes of a few vectors, one row to a lane: each factor of the rows is then read once for all of them.

use pulp::{Simd, WithSimd};

/// Most lanes: four vectors of 16.
pub(super) const MOST_LANES: usize = 64;

/// Work on lanes, in `V` vectors.
pub(super) trait WithLanes {
    type Output;

    fn with_lanes<S: Simd, const V: usize>(self, simd: S) -> Self::Output;
}

/// As many vectors as the registers hold sums for.
pub(super) struct Lanes<W>(pub W);

impl<W: WithLanes> WithSimd for Lanes<W> {
    type Output = W::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> W::Output {
        if S::REGISTER_COUNT >= 32 { self.0.with_lanes::<S, 4>(simd) } else { self.0.with_lanes::<S, 2>(simd) }
    }
}

/// Counts the lanes.
pub(super) struct Count;

impl WithLanes for Count {
    type Output = usize;

    #[inline(always)]
    fn with_lanes<S: Simd, const V: usize>(self, _simd: S) -> usize {
        V * S::F32_LANES
    }
}

/// Adds to `sums` the products of the lanes, `[features, lanes]`, and as many runs of features, `stride` elements from each
/// other.
#[inline(always)]
pub(super) fn dot<S: Simd, const V: usize, const N: usize>(
    simd: S,
    lanes: &[[S::f32s; V]],
    runs: &[f32],
    stride: usize,
    sums: &mut [[S::f32s; V]; N],
) {
    let mut rows = [&[][..]; N];
    for n in 0..N {
        rows[n] = &runs[n * stride..][..lanes.len()];
    }
    // A copy stays in registers.
    let mut totals = *sums;
    for (feature, lanes) in lanes.iter().enumerate() {
        for n in 0..N {
            let element = simd.splat_f32s(rows[n][feature]);
            for v in 0..V {
                totals[n][v] = simd.mul_add_e_f32s(element, lanes[v], totals[n][v]);
            }
        }
    }
    *sums = totals;
}
