//! Rows to columns.

/// Rows and columns that change places at once.
pub(super) const SIDE: usize = 4;

/// A square of rows, as the square of its columns.
#[inline(always)]
pub(super) fn transposed(rows: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
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
    #[test]
    fn rows_become_columns() {
        let rows = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]];
        let columns = [[0.0, 4.0, 8.0, 12.0], [1.0, 5.0, 9.0, 13.0], [2.0, 6.0, 10.0, 14.0], [3.0, 7.0, 11.0, 15.0]];
        assert_eq!(super::transposed(rows), columns);
    }
}
