//! Squares of 4 rows and columns, which every processor has registers for.

/// Rows and columns that are transposed together.
const SIDE: usize = 4;

/// [`into_lanes`](super::into_lanes).
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

/// [`out_of_lanes`](super::out_of_lanes).
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
    use super::transposed;

    #[test]
    fn rows_become_columns() {
        let rows = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]];
        let columns = [[0.0, 4.0, 8.0, 12.0], [1.0, 5.0, 9.0, 13.0], [2.0, 6.0, 10.0, 14.0], [3.0, 7.0, 11.0, 15.0]];
        assert_eq!(transposed(rows), columns);
    }
}
