//! A few rows times the runs of a matrix, each the features of an output. A weight in a register serves several rows.

use pulp::Simd;

/// Outputs that are computed together.
const TOGETHER: usize = 4;

/// A matrix of runs.
pub(super) trait Runs {
    /// The sums of `N` outputs from `first` on and `M` rows. The runs after these are prefetched if they are to be read `next`.
    fn dot<S: Simd, const N: usize, const M: usize>(
        &self,
        simd: S,
        first: usize,
        rows: [&[f32]; M],
        next: bool,
    ) -> [[f32; N]; M];
}

/// The products of every row of `input` and the outputs from `first` on.
#[inline(always)]
pub(super) fn all<S: Simd>(simd: S, matrix: &impl Runs, input: &[f32], inputs: usize, first: usize, sums: &mut [f32]) {
    let outputs = sums.len() / (input.len() / inputs);
    let whole = outputs / TOGETHER * TOGETHER;
    let mut to = Columns { input, inputs, first, sums, outputs };
    for at in (0..whole).step_by(TOGETHER) {
        to.rows::<S, TOGETHER>(simd, matrix, at);
    }
    for at in whole..outputs {
        to.rows::<S, 1>(simd, matrix, at);
    }
}

/// The rows, and where their sums go.
struct Columns<'a> {
    input: &'a [f32],
    inputs: usize,
    /// The output of the first column.
    first: usize,
    sums: &'a mut [f32],
    outputs: usize,
}

impl Columns<'_> {
    /// `N` columns from `at` on: four rows at a time where registers hold their sums, and the rest.
    #[inline(always)]
    fn rows<S: Simd, const N: usize>(&mut self, simd: S, matrix: &impl Runs, at: usize) {
        let rows = self.input.len() / self.inputs;
        let mut row = 0;
        if S::REGISTER_COUNT >= 32 {
            while row + 4 <= rows {
                self.some::<S, N, 4>(simd, matrix, at, row);
                row += 4;
            }
        }
        while row + 2 <= rows {
            self.some::<S, N, 2>(simd, matrix, at, row);
            row += 2;
        }
        if row < rows {
            self.some::<S, N, 1>(simd, matrix, at, row);
        }
    }

    #[inline(always)]
    fn some<S: Simd, const N: usize, const M: usize>(&mut self, simd: S, matrix: &impl Runs, at: usize, row: usize) {
        let mut rows = [&[][..]; M];
        for (m, features) in rows.iter_mut().enumerate() {
            *features = &self.input[(row + m) * self.inputs..][..self.inputs];
        }
        let products: [[f32; N]; M] = matrix.dot(simd, self.first + at, rows, row == 0);
        for (m, products) in products.iter().enumerate() {
            self.sums[(row + m) * self.outputs + at..][..N].copy_from_slice(products);
        }
    }
}
