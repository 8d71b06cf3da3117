//! The rows of the input as they are multiplied: normalised, in f32, in shared memory.

use cubecl::prelude::*;

use super::exchange::Exchange;
use super::problem::{CheckedGemv, NormKind};
use crate::cube::contract::Checked;
use crate::cube::lanes::{Fold, cube_folds, fold_of, lanes_sum, vector_sum};
use crate::cube::tensors::{array, presence};

/// The input and its norm. Strides and sizes count vectors.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Activations<F: Float, G: Float, E: Float, N: Size> {
    input: Array<Vector<F, N>>,
    gamma: ComptimeOption<Array<Vector<G, N>>>,
    beta: ComptimeOption<Array<Vector<E, N>>>,
    row: u32,
    normed_row: u32,
    pub vectors: u32,
    /// 1 / features.
    share: f32,
    epsilon: f32,
    #[cube(comptime)]
    pub norm: Option<NormKind>,
    /// Vectors that a vector of the matrix is multiplied with.
    #[cube(comptime)]
    fold: u32,
    /// Elements from the first half of what a vector of the matrix is multiplied with to the second, if they are apart.
    #[cube(comptime)]
    apart: Option<u32>,
    /// Which tensors of the problem are there; see [`presence`].
    #[cube(comptime)]
    #[allow(dead_code, reason = "it is part of the key of the kernel")]
    present: u32,
}

/// The activations of a problem, read in vectors of `vector` elements; a vector of the matrix is multiplied with `fold` of
/// them. With `apart` these are two halves that many elements apart.
pub(super) fn activations<R: Runtime, F: Float, G: Float, E: Float, N: Size>(
    problem: &CheckedGemv<'_, R>,
    vector: usize,
    fold: usize,
    apart: Option<u32>,
) -> ActivationsLaunch<F, G, E, N, R> {
    let row = |tensor: Checked<'_, R>| (tensor.strides()[0] / vector) as u32;
    let inputs = problem.extents.inputs;
    ActivationsLaunch::new(
        array(problem.input),
        problem.gamma.map(array).into(),
        problem.beta.map(array).into(),
        row(problem.input),
        problem.normed.map_or(0, row),
        (inputs / vector) as u32,
        1.0 / inputs as f32,
        problem.norm.map_or(0.0, |(_, epsilon)| epsilon),
        problem.norm.map(|(kind, _)| kind),
        fold as u32,
        apart,
        presence(&[problem.gamma, problem.beta, problem.bias, problem.normed].map(|tensor| tensor.is_some())),
    )
}

/// Parts from one line of a tile of `length` vectors to the next, where `fold` units write each vector. 8 parts of 4 floats fill the
/// banks: lines that begin 2 parts apart let up to 4 units of a vector write at once, and 8 need lines that begin 1 part apart.
pub(super) fn line(length: u32, fold: u32) -> u32 {
    match fold {
        1 => length,
        2..8 => length + 2,
        _ => length + 1,
    }
}

/// What the norm needs to know of each row.
#[derive(CubeType)]
pub(super) struct Statistics {
    mean: Array<f32>,
    /// 1 / deviation.
    factor: Array<f32>,
}

/// What the norm multiplies with and adds.
#[derive(CubeType)]
pub(super) struct Parameters<N: Size> {
    scale: Vector<f32, N>,
    shift: Vector<f32, N>,
}

#[cube]
impl<F: Float, G: Float, E: Float, N: Size> Activations<F, G, E, N> {
    /// Vectors of the matrix that a row is multiplied with.
    pub fn products(&self) -> u32 {
        self.vectors / self.fold
    }

    /// Vector `at` of a row as it is stored.
    pub fn stored(&self, row: u32, at: u32) -> Vector<F, N> {
        self.input[(row * self.row + at) as usize]
    }

    /// The same in f32.
    pub fn load(&self, row: u32, at: u32) -> Vector<f32, N> {
        Vector::cast_from(self.stored(row, at))
    }

    /// The vector of the matrix that is multiplied with vector `at` of a tile.
    fn factor_of(&self, at: u32) -> u32 {
        let (width, fold) = (N::value(), comptime!(self.fold));
        if comptime!(self.apart.is_none()) {
            at / fold
        } else {
            let apart = comptime!(self.apart.unwrap_or(1) / width as u32);
            at / comptime!(2 * apart) * comptime!(2 * apart / fold) + at % apart / comptime!(fold / 2)
        }
    }

    /// Which of its factors that is.
    fn which(&self, at: u32) -> u32 {
        let (width, fold) = (N::value(), comptime!(self.fold));
        if comptime!(self.apart.is_none()) {
            at % fold
        } else {
            let apart = comptime!(self.apart.unwrap_or(1) / width as u32);
            at % comptime!(2 * apart) / apart * comptime!(fold / 2) + at % comptime!(fold / 2)
        }
    }

    /// Vector `at` of the norm's parameters, times `factor`.
    pub fn parameters(&self, at: u32, factor: f32) -> Parameters<N> {
        let factor = Vector::<f32, N>::new(factor);
        let mut scale = factor;
        let mut shift = Vector::<f32, N>::new(0.0f32);
        #[comptime]
        match &self.gamma {
            ComptimeOption::Some(gamma) => {
                scale = Vector::cast_from(gamma[at as usize]) * factor;
            }
            ComptimeOption::None => {}
        }
        #[comptime]
        match &self.beta {
            ComptimeOption::Some(beta) => {
                shift = Vector::cast_from(beta[at as usize]) * factor;
            }
            ComptimeOption::None => {}
        }
        Parameters::<N> { scale, shift }
    }

    /// A vector of a row, after the norm and times the factor of the `parameters`.
    pub fn normalised(
        &self,
        #[comptime] row: usize,
        loaded: Vector<f32, N>,
        statistics: &Statistics,
        parameters: &Parameters<N>,
    ) -> Vector<f32, N> {
        let centred = loaded - Vector::new(statistics.mean[row]);
        let mut value = centred * Vector::new(statistics.factor[row]) * parameters.scale;
        if comptime!(self.beta.is_some()) {
            value += parameters.shift;
        }
        value
    }

    /// What no normalised value of vector `at` exceeds, of any row: since the squares of a row add up to the features, none is larger than
    /// their root before the norm's parameters.
    pub fn bound(&self, at: u32) -> Vector<f32, N> {
        let mut bound = Vector::<f32, N>::new((1.0f32 / self.share).sqrt());
        #[comptime]
        match &self.gamma {
            ComptimeOption::Some(gamma) => {
                bound *= Vector::<f32, N>::cast_from(gamma[at as usize]).abs();
            }
            ComptimeOption::None => {}
        }
        #[comptime]
        match &self.beta {
            ComptimeOption::Some(beta) => {
                bound += Vector::<f32, N>::cast_from(beta[at as usize]).abs();
            }
            ComptimeOption::None => {}
        }
        bound
    }

    /// Writes vector `at` of a row to `normed`, in the first cube.
    pub fn keep(
        &self,
        value: Vector<f32, N>,
        normed: &mut ComptimeOption<Array<Vector<F, N>>>,
        #[comptime] row: usize,
        at: u32,
    ) {
        #[comptime]
        match normed {
            ComptimeOption::Some(normed) => {
                if CUBE_POS_X == 0 {
                    normed[(row as u32 * self.normed_row + at) as usize] = Vector::cast_from(value);
                }
            }
            ComptimeOption::None => {}
        }
    }

    /// Mean and deviation of every row, in every unit: two passes over the rows, both by the whole cube.
    pub fn statistics(&self, shared: &mut SharedMemory<f32>, #[comptime] exchange: Exchange) -> Statistics {
        let rows = comptime!(exchange.rows as usize);
        let mut mean = Array::<f32>::new(rows);
        let mut factor = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            mean[r] = 0.0f32;
            factor[r] = 0.0f32;
        }
        if comptime!(self.norm.is_some()) {
            if comptime!(self.norm == Some(NormKind::LayerNorm)) {
                for at in range_stepped(UNIT_POS, self.vectors, exchange.units) {
                    #[unroll]
                    for r in 0..rows {
                        mean[r] += vector_sum::<N>(self.load(r as u32, at));
                    }
                }
                cube_sums(&mut mean, shared, exchange);
                #[unroll]
                for r in 0..rows {
                    mean[r] *= self.share;
                }
            }
            for at in range_stepped(UNIT_POS, self.vectors, exchange.units) {
                #[unroll]
                for r in 0..rows {
                    let centred = self.load(r as u32, at) - Vector::<f32, N>::new(mean[r]);
                    factor[r] += vector_sum::<N>(centred * centred);
                }
            }
            cube_sums(&mut factor, shared, exchange);
            #[unroll]
            for r in 0..rows {
                factor[r] = (factor[r] * self.share + self.epsilon).inverse_sqrt();
            }
        }
        Statistics { mean, factor }
    }

    /// Fills a tile with the factors of the vectors `first..first + length` of the matrix, for every row, and with zeros after the
    /// last.
    ///
    /// The factors of vector `at` in row `r` are stored in parts of at most 4 elements, part `p` in
    /// `(r · parts + p) · line + at`: neighbouring units use different banks. A line is `length` and some unused parts where
    /// a vector has several units; see [`line`]. The first cube also writes `normed`.
    pub fn fill<S: Size>(
        &self,
        tile: &mut SharedMemory<Vector<f32, S>>,
        normed: &mut ComptimeOption<Array<Vector<F, N>>>,
        statistics: &Statistics,
        first: u32,
        #[comptime] length: u32,
        #[comptime] exchange: Exchange,
    ) {
        let vector = N::value();
        let width = S::value();
        let parts = comptime!(vector / width);
        let rows = comptime!(exchange.rows as usize);
        let fold = comptime!(self.fold);
        let line = comptime!(line(length, fold));
        let mut values = Array::<Vector<F, N>>::new(rows);
        for at in range_stepped(UNIT_POS, comptime!(length * fold), exchange.units) {
            let from = first * fold + at;
            // The vector of the matrix, and which of its factors.
            let factor_of = self.factor_of(at);
            let which = self.which(at);
            let mut scale = Vector::<f32, N>::new(0.0f32);
            let mut shift = Vector::<f32, N>::new(0.0f32);
            // All loads first, so that they are in flight together.
            #[unroll]
            for r in 0..rows {
                values[r] = Vector::<F, N>::new(F::from_int(0));
            }
            if from < self.vectors {
                #[unroll]
                for r in 0..rows {
                    values[r] = self.input[(r as u32 * self.row + from) as usize];
                }
                #[comptime]
                match &self.gamma {
                    ComptimeOption::Some(gamma) => {
                        scale = Vector::cast_from(gamma[from as usize]);
                    }
                    ComptimeOption::None => {}
                }
                #[comptime]
                match &self.beta {
                    ComptimeOption::Some(beta) => {
                        shift = Vector::cast_from(beta[from as usize]);
                    }
                    ComptimeOption::None => {}
                }
            }
            #[unroll]
            for r in 0..rows {
                let mut value = Vector::<f32, N>::cast_from(values[r]);
                if comptime!(self.norm.is_some()) {
                    let mean = Vector::<f32, N>::new(statistics.mean[r]);
                    let factor = Vector::<f32, N>::new(statistics.factor[r]);
                    value = (value - mean) * factor * scale + shift;
                }
                #[comptime]
                match normed {
                    ComptimeOption::Some(normed) => {
                        if CUBE_POS_X == 0 && from < self.vectors {
                            normed[(r as u32 * self.normed_row + from) as usize] = Vector::cast_from(value);
                        }
                    }
                    ComptimeOption::None => {}
                }
                #[unroll]
                for p in 0..parts {
                    let mut part = Vector::<f32, S>::new(0.0f32);
                    #[unroll]
                    for e in 0..width {
                        part[e] = value[p * width + e];
                    }
                    let row = comptime!((r as u32 * fold) * parts as u32 + p as u32);
                    tile[((row + which * parts as u32) * line + factor_of) as usize] = part;
                }
            }
        }
    }
}

/// The sum of each of `values` over the cube, in every unit. Every unit of the cube must call this.
#[cube]
fn cube_sums(values: &mut Array<f32>, shared: &mut SharedMemory<f32>, #[comptime] exchange: Exchange) {
    let rows = comptime!(exchange.rows as usize);
    if comptime!(exchange.folds()) {
        let many = comptime!(exchange.rows.next_power_of_two());
        let mut all = Array::<f32>::new(comptime!(many as usize));
        #[unroll]
        for r in 0..comptime!(many as usize) {
            all[r] = if comptime!(r < rows) { values[r] } else { 0.0f32.runtime() };
        }
        let lanes = exchange.lanes;
        let own = cube_folds(&mut all, shared, many, lanes, comptime!(exchange.groups()), Fold::Sum);
        #[unroll]
        for r in 0..rows {
            values[r] = fold_of(own, comptime!(r as u32), many, lanes);
        }
    } else {
        let mut partial = SharedMemory::<f32>::new(comptime!(exchange.partial() as usize));
        let groups = comptime!(exchange.groups() as usize);
        let group = (UNIT_POS / exchange.lanes) as usize;
        let lane = UNIT_POS % exchange.lanes;
        #[unroll]
        for r in 0..rows {
            let sum = lanes_sum(values[r], shared, exchange.lanes, exchange.planes);
            if lane == 0 {
                partial[r * groups + group] = sum;
            }
        }
        let rest = comptime!(exchange.partial() - exchange.rows * exchange.groups());
        if comptime!(rest > 0) && UNIT_POS < rest {
            partial[(exchange.rows * exchange.groups() + UNIT_POS) as usize] = 0.0f32;
        }
        sync_cube();
        #[unroll]
        for r in 0..rows {
            let mut sum = 0.0f32.runtime();
            for g in 0..groups {
                sum += partial[r * groups + g];
            }
            values[r] = sum;
        }
        // Before a unit writes the next sums.
        sync_cube();
    }
}
