//! Fragments of the input: normalised, in registers.

use cubecl::prelude::*;

use super::tile::{ELEMENTS, SHARERS, Tile};
use crate::cube::direct::{Quad, raised};
use crate::cube::fragment::{LANES, Pair};
use crate::cube::gemv::problem::{CheckedGemv, MOST_ROWS, NormKind};
use crate::cube::lanes::lanes_sum;
use crate::cube::tensors::{array, presence};

/// Vectors of a row that a lane has in flight for the norm.
const LOADS: u32 = 4;

/// The input and its norm.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Factors<G: Float, E: Float> {
    input: Array<Vector<u32, Quad>>,
    gamma: ComptimeOption<Array<Vector<G, Quad>>>,
    beta: ComptimeOption<Array<Vector<E, Quad>>>,
    /// Stride of the rows, in vectors.
    row: u32,
    /// Stride of the rows of the normalised input, in vectors of 4 elements.
    normed_row: u32,
    /// Vectors of a row.
    pub vectors: u32,
    /// 1 / features.
    share: f32,
    epsilon: f32,
    /// See [`raised`].
    pub raised: u32,
    #[cube(comptime)]
    norm: Option<NormKind>,
    /// Which tensors of the problem are there; see [`presence`].
    #[cube(comptime)]
    #[allow(dead_code, reason = "it is part of the key of the kernel")]
    present: u32,
}

/// The factors of a problem.
pub(super) fn factors<R: Runtime, G: Float, E: Float>(
    problem: &CheckedGemv<'_, R>,
    tile: Tile,
) -> FactorsLaunch<G, E, R> {
    let inputs = problem.extents.inputs;
    FactorsLaunch::new(
        array(problem.input),
        problem.gamma.map(array).into(),
        problem.beta.map(array).into(),
        (problem.input.strides()[0] / ELEMENTS) as u32,
        problem.normed.map_or(0, |normed| (normed.strides()[0] / 4) as u32),
        (inputs / ELEMENTS) as u32,
        1.0 / inputs as f32,
        problem.norm.map_or(0.0, |(_, epsilon)| epsilon),
        raised(tile.brain),
        problem.norm.map(|(kind, _)| kind),
        presence(&[problem.gamma, problem.beta, problem.bias, problem.normed].map(|tensor| tensor.is_some())),
    )
}

/// What the norm needs to know of the row of a lane.
#[derive(CubeType)]
pub(super) struct Moments {
    mean: f32,
    /// 1 / deviation.
    factor: f32,
}

/// What the weights of a lane are multiplied with: the B of each part, two registers.
#[derive(CubeType)]
pub(super) struct Right<F: Float> {
    pub high: Array<Vector<F, Pair>>,
    /// What the elements of `high` cannot hold.
    pub low: Array<Vector<F, Pair>>,
}

#[cube]
impl<G: Float, E: Float> Factors<G, E> {
    /// Whether what a lane multiplies has a part in `low`: the norm's result is not rounded.
    pub fn is_split(&self) -> comptime_type!(bool) {
        comptime!(self.norm.is_some())
    }

    /// The row of this lane; the last one after it, whose products are dropped.
    fn own_row(&self, #[comptime] tile: Tile) -> u32 {
        min(UNIT_POS % LANES / SHARERS, comptime!(tile.rows - 1))
    }

    /// The vector of this lane's row that is `distance` after vector `at`.
    pub fn at(&self, at: u32, distance: usize, #[comptime] tile: Tile) -> Vector<u32, Quad> {
        self.input[(self.own_row(tile) * self.row + at) as usize + distance]
    }

    /// Whether a row has piece `piece` of a step, in which this lane begins at vector `at`.
    pub fn is_inside(&self, at: u32, piece: u32, #[comptime] tile: Tile) -> bool {
        if comptime!(tile.even) { at < self.vectors } else { at + piece * SHARERS < self.vectors }
    }

    /// Mean and deviation of this lane's row: two passes over each row, both by one plane. Every unit of the cube must call this.
    pub fn moments<F: Float>(&self, #[comptime] tile: Tile) -> Moments {
        let mut mean = 0.0f32.runtime();
        let mut factor = 0.0f32.runtime();
        if comptime!(self.norm.is_some()) {
            let mut means = SharedMemory::<f32>::new(MOST_ROWS);
            let mut factors = SharedMemory::<f32>::new(MOST_ROWS);
            let mut shared = SharedMemory::<f32>::new(comptime!(if tile.emulate { tile.units() as usize } else { 1 }));
            let planes = comptime!(!tile.emulate);
            #[unroll(!tile.emulate)]
            for round in 0..comptime!(tile.rows.div_ceil(tile.planes)) {
                let row = round * tile.planes + UNIT_POS / LANES;
                // Planes without a row of their own wait, or read the last one again where lanes exchange through the cube.
                if comptime!(tile.emulate) || row < tile.rows {
                    let begin = min(row, comptime!(tile.rows - 1)) * self.row;
                    if comptime!(self.norm == Some(NormKind::LayerNorm)) {
                        let sum = self.sum::<F>(begin, 0.0f32.runtime(), false);
                        mean = lanes_sum(sum, &mut shared, LANES, planes) * self.share;
                    }
                    let sum = self.sum::<F>(begin, mean, true);
                    let variance = lanes_sum(sum, &mut shared, LANES, planes) * self.share;
                    let lane = UNIT_POS % LANES;
                    if lane == 0 && row < tile.rows {
                        means[row as usize] = mean;
                        factors[row as usize] = (variance + self.epsilon).inverse_sqrt();
                    }
                }
            }
            sync_cube();
            let row = self.own_row(tile);
            mean = means[row as usize];
            factor = factors[row as usize];
        }
        Moments { mean, factor }
    }

    /// This lane's part of the sum of a row's differences from `centre`, or of their squares.
    fn sum<F: Float>(&self, begin: u32, centre: f32, #[comptime] squares: bool) -> f32 {
        let mut sum = Vector::<f32, Pair>::new(0.0f32);
        for first in range_stepped(UNIT_POS % LANES, self.vectors, LANES * LOADS) {
            // All loads first, so that they are in flight together.
            let mut loaded = Array::<Vector<u32, Quad>>::new(LOADS as usize);
            #[unroll]
            for l in 0..LOADS {
                loaded[l as usize] = Vector::<u32, Quad>::new(0u32);
                if first + l * LANES < self.vectors {
                    loaded[l as usize] = self.input[(begin + first + l * LANES) as usize];
                }
            }
            #[unroll]
            for l in 0..LOADS {
                if first + l * LANES < self.vectors {
                    #[unroll]
                    for w in 0..4usize {
                        let pair = Vector::<F, Pair>::reinterpret(loaded[l as usize][w]);
                        let centred = Vector::<f32, Pair>::cast_from(pair) - Vector::<f32, Pair>::new(centre);
                        if comptime!(squares) {
                            sum += centred * centred;
                        } else {
                            sum += centred;
                        }
                    }
                }
            }
        }
        sum[0] + sum[1]
    }

    /// What the weights of a step of this lane, which begins at vector `at`, are multiplied with, from what was loaded.
    /// The first cube also writes `normed`.
    ///
    /// The elements of each part are in the order of its weights; see [`left`](crate::cube::direct::left).
    pub fn right<F: Float>(
        &self,
        loaded: &Array<Vector<u32, Quad>>,
        from: u32,
        at: u32,
        moments: &Moments,
        normed: &mut ComptimeOption<Array<Vector<F, Quad>>>,
        #[comptime] tile: Tile,
    ) -> Right<F> {
        let parts = comptime!(2 * tile.pieces());
        let mut high = Array::<Vector<F, Pair>>::new(comptime!(2 * parts as usize));
        let mut low = Array::<Vector<F, Pair>>::new(comptime!(2 * parts as usize));
        #[unroll(!tile.emulate)]
        for part in 0..parts {
            let inside = self.is_inside(at, part / 2, tile);
            let words = loaded[(from + part / 2) as usize];
            let first = Vector::<F, Pair>::reinterpret(words[(part % 2 * 2) as usize]);
            let second = Vector::<F, Pair>::reinterpret(words[(part % 2 * 2 + 1) as usize]);
            let column = (at + part / 2 * SHARERS) * 2 + part % 2;
            let to = (part * 2) as usize;
            // The place of each element among those of its part.
            let places = comptime!(if tile.int8 { [0usize, 2, 1, 3] } else { [0, 1, 2, 3] });
            if comptime!(self.norm.is_some()) {
                let mut value = Vector::<f32, Quad>::empty();
                value[0] = f32::cast_from(first[0]);
                value[1] = f32::cast_from(first[1]);
                value[2] = f32::cast_from(second[0]);
                value[3] = f32::cast_from(second[1]);
                let value = self.normalise(value, column, inside, moments, tile);
                self.keep::<F>(Vector::cast_from(value), column, inside, normed, tile);
                #[unroll]
                for p in 0..2usize {
                    let mut pair = Vector::<f32, Pair>::empty();
                    let mut held = Vector::<f32, Pair>::empty();
                    #[unroll]
                    for e in 0..2usize {
                        let element = value[comptime!(places[p * 2 + e])];
                        pair[e] = element;
                        // What is more than the element type holds is left to `low`.
                        let limit = comptime!(if tile.brain { BRAIN_LIMIT } else { HALF_LIMIT });
                        held[e] = max(min(element, limit), -limit);
                    }
                    let rounded = Vector::<F, Pair>::cast_from(held);
                    high[to + p] = rounded;
                    low[to + p] = Vector::cast_from(pair - Vector::<f32, Pair>::cast_from(rounded));
                }
            } else {
                let mut value = Vector::<F, Quad>::empty();
                value[0] = first[0];
                value[1] = first[1];
                value[2] = second[0];
                value[3] = second[1];
                self.keep::<F>(value, column, inside, normed, tile);
                if comptime!(tile.int8) {
                    #[unroll]
                    for p in 0..2usize {
                        let mut pair = Vector::<F, Pair>::empty();
                        pair[0] = value[comptime!(places[p * 2])];
                        pair[1] = value[comptime!(places[p * 2 + 1])];
                        high[to + p] = pair;
                    }
                } else {
                    high[to] = first;
                    high[to + 1] = second;
                }
            }
        }
        Right::<F> { high, low }
    }

    fn normalise(
        &self,
        value: Vector<f32, Quad>,
        column: u32,
        inside: bool,
        moments: &Moments,
        #[comptime] tile: Tile,
    ) -> Vector<f32, Quad> {
        let mut scale = Vector::<f32, Quad>::new(0.0f32);
        let mut shift = Vector::<f32, Quad>::new(0.0f32);
        // A step that is not whole has lanes after the end of the row.
        if comptime!(tile.even && !tile.emulate) || inside {
            #[comptime]
            match &self.gamma {
                ComptimeOption::Some(gamma) => {
                    scale = Vector::cast_from(gamma[column as usize]);
                }
                ComptimeOption::None => {}
            }
            #[comptime]
            match &self.beta {
                ComptimeOption::Some(beta) => {
                    shift = Vector::cast_from(beta[column as usize]);
                }
                ComptimeOption::None => {}
            }
        }
        let centred = value - Vector::<f32, Quad>::new(moments.mean);
        centred * Vector::<f32, Quad>::new(moments.factor) * scale + shift
    }

    /// Writes the normalised input, 4 elements of it.
    fn keep<F: Float>(
        &self,
        value: Vector<F, Quad>,
        column: u32,
        inside: bool,
        normed: &mut ComptimeOption<Array<Vector<F, Quad>>>,
        #[comptime] tile: Tile,
    ) {
        #[comptime]
        match normed {
            ComptimeOption::Some(normed) => {
                let row = UNIT_POS % LANES / SHARERS;
                if CUBE_POS_X == 0 && row < tile.rows && inside {
                    normed[(row * self.normed_row + column) as usize] = value;
                }
            }
            ComptimeOption::None => {}
        }
    }
}

/// The largest numbers of f16 and of bf16.
const HALF_LIMIT: f32 = 65504.0;
const BRAIN_LIMIT: f32 = 3.389_531_4e38;
