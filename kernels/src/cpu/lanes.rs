//! Rows in the lanes of a few vectors, one row to a lane: each factor of the rows is then read once for all of them.

use pulp::{Simd, WithSimd};

/// Most lanes: four vectors of 16.
pub(super) const MOST_LANES: usize = 64;

/// Rows and columns that are transposed together.
const SIDE: usize = 4;

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

/// Packs rows of the same length into lanes: feature `f` of row `r` goes to `f * lanes + r`.
#[inline(always)]
pub(super) fn into_lanes<'a>(row: impl Fn(usize) -> &'a [f32], lanes: usize, into: &mut [f32]) {
    let whole = lanes / SIDE * SIDE;
    for lane in (0..whole).step_by(SIDE) {
        let [(a, a_rest), (b, b_rest), (c, c_rest), (d, d_rest)] =
            [row(lane), row(lane + 1), row(lane + 2), row(lane + 3)].map(<[f32]>::as_chunks::<SIDE>);
        let mut features = into.chunks_exact_mut(SIDE * lanes);
        for ((((features, a), b), c), d) in (&mut features).zip(a).zip(b).zip(c).zip(d) {
            let square = transposed([*a, *b, *c, *d]);
            for (features, column) in features.chunks_exact_mut(lanes).zip(&square) {
                features[lane..lane + SIDE].copy_from_slice(column);
            }
        }
        for (at, features) in features.into_remainder().chunks_exact_mut(lanes).enumerate() {
            features[lane..lane + SIDE].copy_from_slice(&[a_rest[at], b_rest[at], c_rest[at], d_rest[at]]);
        }
    }
    for lane in whole..lanes {
        for (feature, features) in row(lane).iter().zip(into.chunks_exact_mut(lanes)) {
            features[lane] = *feature;
        }
    }
}

/// The inverse, for the first `count` rows: row `r` gets its feature `f` from `f * lanes + r`.
#[inline(always)]
pub(super) fn out_of_lanes<'a>(from: &[f32], lanes: usize, count: usize, row: impl Fn(usize) -> &'a mut [f32]) {
    let whole = count / SIDE * SIDE;
    for lane in (0..whole).step_by(SIDE) {
        let [(a, a_rest), (b, b_rest), (c, c_rest), (d, d_rest)] =
            [row(lane), row(lane + 1), row(lane + 2), row(lane + 3)].map(<[f32]>::as_chunks_mut::<SIDE>);
        let mut features = from.chunks_exact(SIDE * lanes);
        for ((((features, a), b), c), d) in (&mut features).zip(a).zip(b).zip(c).zip(d) {
            let mut square = [[0.0; SIDE]; SIDE];
            for (row, features) in square.iter_mut().zip(features.chunks_exact(lanes)) {
                row.copy_from_slice(&features[lane..lane + SIDE]);
            }
            [*a, *b, *c, *d] = transposed(square);
        }
        let rest = a_rest.iter_mut().zip(b_rest).zip(c_rest).zip(d_rest);
        for (features, (((a, b), c), d)) in features.remainder().chunks_exact(lanes).zip(rest) {
            (*a, *b, *c, *d) = (features[lane], features[lane + 1], features[lane + 2], features[lane + 3]);
        }
    }
    for lane in whole..count {
        for (place, features) in row(lane).iter_mut().zip(from.chunks_exact(lanes)) {
            *place = features[lane];
        }
    }
}

/// A square of rows, as the square of its columns.
#[inline(always)]
fn transposed(rows: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
        };
        let mut columns = [[0.0; SIDE]; SIDE];
        // SAFETY: every x86-64 processor has these instructions, and each address has four elements.
        unsafe {
            let [a, b, c, d] = rows.each_ref().map(|row| _mm_loadu_ps(row.as_ptr()));
            let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            _mm_storeu_ps(columns[0].as_mut_ptr(), _mm_movelh_ps(ab, cd));
            _mm_storeu_ps(columns[1].as_mut_ptr(), _mm_movehl_ps(cd, ab));
            _mm_storeu_ps(columns[2].as_mut_ptr(), _mm_movelh_ps(ab_high, cd_high));
            _mm_storeu_ps(columns[3].as_mut_ptr(), _mm_movehl_ps(cd_high, ab_high));
        }
        columns
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|column| rows.map(|row| row[column]))
}

#[cfg(test)]
mod tests {
    use super::{into_lanes, transposed};

    #[test]
    fn rows_become_columns() {
        let rows = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]];
        let columns = [[0.0, 4.0, 8.0, 12.0], [1.0, 5.0, 9.0, 13.0], [2.0, 6.0, 10.0, 14.0], [3.0, 7.0, 11.0, 15.0]];
        assert_eq!(transposed(rows), columns);
    }

    #[test]
    fn rows_of_any_length_are_packed_into_lanes() {
        for (lanes, features) in [(1, 5), (4, 4), (6, 7), (16, 3)] {
            let rows: Vec<f32> = (0..lanes * features).map(|at| at as f32).collect();
            let mut into = vec![f32::NAN; rows.len()];
            into_lanes(|lane| &rows[lane * features..][..features], lanes, &mut into);
            for (at, element) in into.into_iter().enumerate() {
                assert_eq!(element, rows[at % lanes * features + at / lanes], "{lanes} lanes, element {at}");
            }
        }
    }
}
