//! The rows of the input as right operands, in shared memory.
//!
//! An input is scaled by a power of two, so that the largest of its row is from 2^13 to 2^14, and becomes the f16 next to it. What has more bits
//! becomes 2^11 times the rest in another, too: 22 bits together.

use burn_deepspeed_core::block::UNIT_BYTES;
use cubecl::ir::MatrixIdent;
use cubecl::prelude::*;

use super::tile::{Read, SPAN, Tile, UNITS, UPPER};
use super::unit_sums::{add_unit, clear, own_unit, sums_as_right};
use crate::cube::direct::Quad;
use crate::cube::fragment::{LANES, Pair};
use crate::cube::gemv::activations::{Activations, Statistics};
use crate::cube::lanes::{Fold, cube_folds, fold_of, lanes_sum, vector_max, vector_sum};

/// The row of a matrix of `ldmatrix`.
type Chunk = Const<8>;
/// Inputs that a unit of the cube makes operands of at a time.
pub(super) type Oct = Const<8>;
/// Vectors of them of a span.
const VECTORS: u32 = SPAN as u32 / 8;
/// The exponent of the largest input of a row when it is scaled, and what the exponent of an f32 has more than it means.
const LARGEST: u32 = 13;
const BIAS: u32 = 127;
/// What the second part of an input is multiplied with.
const REST: f32 = 2048.0;
/// What its products are multiplied with.
pub(super) const REST_FACTOR: f32 = 1.0 / REST;

/// What the cube holds of the input.
#[derive(CubeType)]
pub(super) struct Inputs<H: Float> {
    /// The B of two products for every unit, as `ldmatrix` reads them: four matrices, whose rows are the columns; see [`place`].
    columns: SharedMemory<Vector<H, Chunk>>,
    /// The sums of units of a span, if they are kept: the registers of each lane.
    unit_sums: SharedMemory<Vector<u32, Pair>>,
    /// The sum of the inputs of a run, times what elements count.
    totals: SharedMemory<f32>,
    /// 1 / the power of two of each row.
    inverse: SharedMemory<f32>,
    /// The power of two of each row.
    scales: Array<f32>,
}

#[cube]
impl<H: Float> Inputs<H> {
    pub fn new(#[comptime] tile: Tile) -> Inputs<H> {
        Inputs::<H> {
            columns: SharedMemory::new_aligned(comptime!(tile.input_vectors()), UNIT_BYTES),
            unit_sums: SharedMemory::new(comptime!(tile.unit_sums())),
            totals: SharedMemory::new(comptime!(tile.totals())),
            // Whole vectors, so that the compiler reads nothing else with them.
            inverse: SharedMemory::new(comptime!((tile.rows as usize).next_multiple_of(4))),
            scales: Array::new(comptime!(tile.rows as usize)),
        }
    }

    /// Finds the power of two of each row: what makes its largest input less than 2^14, or what no input of a norm exceeds. Every unit of
    /// the cube must call this.
    pub fn scale<F: Float, G: Float, E: Float>(
        &mut self,
        activations: &Activations<F, G, E, Oct>,
        shared: &mut SharedMemory<f32>,
        #[comptime] tile: Tile,
    ) {
        let rows = comptime!(tile.rows as usize);
        // With a norm all rows have the same.
        let many = comptime!(if activations.norm.is_some() { 1 } else { rows.next_power_of_two() });
        let mut largest = Array::<f32>::new(many);
        #[unroll]
        for r in 0..many {
            largest[r] = 0.0f32;
        }
        if comptime!(activations.norm.is_some()) {
            for at in range_stepped(UNIT_POS, activations.vectors, comptime!(tile.units())) {
                largest[0] = max(largest[0], vector_max::<Oct>(activations.bound(at)));
            }
        } else if comptime!(tile.has_pairs()) {
            let mut pairs = Array::<Vector<F, Pair>>::new(rows);
            #[unroll]
            for r in 0..rows {
                pairs[r] = Vector::new(F::from_int(0));
            }
            for at in range_stepped(UNIT_POS, activations.vectors, comptime!(tile.units())) {
                #[unroll]
                for r in 0..rows {
                    let words = Vector::<u32, Quad>::reinterpret(activations.stored(r as u32, at));
                    #[unroll]
                    for w in 0..4usize {
                        // Without signs.
                        pairs[r] = max(pairs[r], Vector::reinterpret(words[w] & 0x7fff_7fffu32));
                    }
                }
            }
            #[unroll]
            for r in 0..rows {
                largest[r] = max(f32::cast_from(pairs[r][0]), f32::cast_from(pairs[r][1]));
            }
        } else {
            for at in range_stepped(UNIT_POS, activations.vectors, comptime!(tile.units())) {
                #[unroll]
                for r in 0..rows {
                    let value = activations.load(r as u32, at);
                    largest[r] = max(largest[r], vector_max::<Oct>(value.abs()));
                }
            }
        }
        // Each lane has that of one row. Both powers are normal numbers, the first one also among f16 if the inputs are.
        let own = cube_folds(&mut largest, shared, comptime!(many as u32), LANES, tile.planes, Fold::Maximum);
        let exponent = max(min(u32::reinterpret(own) >> 23u32, 254u32), comptime!(tile.least_exponent()));
        let power = f32::reinterpret((comptime!(2 * BIAS + LARGEST) - exponent) << 23u32);
        let lanes = comptime!(if activations.norm.is_some() { 1 } else { LANES / many as u32 });
        let (row, lane) = (UNIT_POS / lanes, UNIT_POS % lanes);
        if row < tile.rows && lane == 0 {
            self.inverse[row as usize] = f32::reinterpret((exponent - LARGEST) << 23u32);
        }
        #[unroll]
        for r in 0..rows {
            self.scales[r] = fold_of(power, comptime!(r as u32), comptime!(many as u32), LANES);
        }
    }

    /// Fills the columns with the inputs from span `first` on, and with some again after the last: what they are multiplied with has factors of 0, or is
    /// not read. The first cube also writes `normed`.
    pub fn fill<F: Float, G: Float, E: Float>(
        &mut self,
        activations: &Activations<F, G, E, Oct>,
        statistics: &Statistics,
        normed: &mut ComptimeOption<Array<Vector<F, Oct>>>,
        first: u32,
        shared: &mut SharedMemory<f32>,
        #[comptime] tile: Tile,
    ) {
        let (rows, units) = comptime!((tile.rows as usize, tile.units()));
        let mut scales = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            scales[r] = self.scales[r];
        }
        let mut total_factor = comptime!(tile.total_factor()).runtime();
        if comptime!(tile.upper_after().is_some()) {
            let after = comptime!(tile.upper_after().unwrap_or(8) / 8);
            let half = UNIT_POS / after % 2u32;
            let lower = half == 0u32;
            #[unroll]
            for r in 0..rows {
                scales[r] = select(lower, scales[r], scales[r] * comptime!(1.0 / UPPER));
            }
            total_factor = select(lower, total_factor, total_factor * UPPER);
        }
        let lanes = comptime!(tile.run() as u32 / 8);
        let lane = UNIT_POS % lanes;
        for step in 0..comptime!(tile.spans * VECTORS / units) {
            let mut from = first * VECTORS + step * units + UNIT_POS;
            let inside = from < activations.vectors;
            if comptime!(!tile.full) {
                from = min(from, activations.vectors - 1u32);
            }
            let place = first_place(step, tile);
            // A norm gives all rows one scale, which its parameters have already if nothing else needs its result.
            let scaled_norm = comptime!(activations.norm.is_some() && normed.is_none());
            let parameters =
                activations.parameters(from, if comptime!(scaled_norm) { scales[0] } else { 1.0f32.runtime() });
            #[unroll]
            for r in 0..rows {
                let scaled = if comptime!(tile.has_pairs()) {
                    let value = activations.stored(r as u32, from);
                    if inside {
                        activations.keep(Vector::cast_from(value), normed, r, from);
                    }
                    let value = value * Vector::new(F::cast_from(scales[r]));
                    let scaled = Vector::<f32, Oct>::cast_from(value);
                    if comptime!(tile.read == Read::F16) {
                        self.put::<F>(value, place, comptime!(r as u32), tile);
                    } else {
                        // From bf16 to f16 there is an instruction, but it takes eight times as long as those from and to f32.
                        self.put::<f32>(scaled, place, comptime!(r as u32), tile);
                    }
                    scaled
                } else {
                    let mut value = activations.load(r as u32, from);
                    if comptime!(activations.norm.is_some()) {
                        value = activations.normalised(r, value, statistics, &parameters);
                    }
                    if inside {
                        activations.keep(value, normed, r, from);
                    }
                    if comptime!(!scaled_norm) {
                        value *= Vector::new(scales[r]);
                    }
                    self.put::<f32>(value, place, comptime!(r as u32), tile);
                    value
                };
                if comptime!(tile.has_totals()) {
                    let own = vector_sum::<Oct>(scaled) * total_factor;
                    let total = lanes_sum(own, shared, lanes, true);
                    if lane == 0 {
                        let run = step * comptime!(units / lanes) + UNIT_POS / lanes;
                        self.totals[(r as u32 * tile.totals_row() + run) as usize] = total;
                    }
                }
            }
        }
    }

    /// Stores 8 inputs, the parts of two lanes in a product: elements 0 and 2 of each four for one matrix, 1 and 3 for the next one. The first of
    /// them has its first column at `first`; see [`first_place`].
    fn put<T: Float>(&mut self, value: Vector<T, Oct>, first: u32, #[comptime] row: u32, #[comptime] tile: Tile) {
        let mut rest = value;
        let mut columns = self.columns.to_slice_mut().with_vector_size::<Quad>();
        #[unroll]
        for part in 0..tile.parts() {
            let column = comptime!(row * tile.parts() + part);
            #[unroll]
            for odd in 0..2u32 {
                let mut four = Vector::<T, Quad>::empty();
                #[unroll]
                for e in 0..4usize {
                    four[e] = rest[comptime!(2 * e + odd as usize)];
                }
                let rounded = Vector::<H, Quad>::cast_from(four);
                if comptime!(part + 1 < tile.parts()) {
                    let left = (four - Vector::<T, Quad>::cast_from(rounded)) * Vector::new(T::new(REST));
                    #[unroll]
                    for e in 0..4usize {
                        rest[comptime!(2 * e + odd as usize)] = left[e];
                    }
                }
                let to = if comptime!(tile.has_whole_matrices()) {
                    // What columns and matrices are exchanged with is a part of the first place.
                    (first ^ comptime!(2 * column)) + comptime!(2 * tile.columns() * odd)
                } else {
                    let (unit, matrix) = (UNIT_POS / 4u32, UNIT_POS / 2u32 % 2u32 * 2u32 + odd);
                    first + place(matrix, column.runtime(), unit, tile) * 2u32
                };
                columns[to as usize] = rounded;
            }
        }
    }

    /// Where this lane reads the first unit of span `span`: what it gives to `ldmatrix` for fragment `n`.
    pub fn first(span: u32, #[comptime] n: u32, #[comptime] tile: Tile) -> u32 {
        let lane = UNIT_POS % LANES;
        let own = place(lane / 8u32, min(lane % 8u32 + 8u32 * n, comptime!(tile.columns() - 1)), 0u32, tile);
        // The remainder tells the compiler how large addresses become, so that it adds constants to them for free.
        (span * comptime!(UNITS as u32 * 4 * tile.columns()) + own)
            % comptime!((tile.input_vectors() as u32).next_power_of_two())
    }

    /// The same for unit `unit` of the span: places of units are exchanged with their last two bits.
    pub fn of_unit(first: u32, #[comptime] unit: u32, #[comptime] tile: Tile) -> u32 {
        let exchanged = comptime!(if tile.columns().is_multiple_of(2) { unit % 4 } else { unit / 2 % 2 });
        (first ^ exchanged) + comptime!(unit * 4 * tile.columns())
    }

    /// The B of both products of a unit, which begins at `at`.
    pub fn right(&self, at: u32) -> Array<Vector<H, Pair>> {
        let definition = cmma::MmaDefinition::<H, H, f32>::new(16usize, 8usize, 16usize);
        let at = at as usize;
        definition.load_matrix::<_, Pair>(&self.columns.slice(at, at + 1), MatrixIdent::A, 4usize, false)
    }

    /// Adds up the inputs of each unit of the spans that plane `plane` multiplies, and keeps the sums. The whole plane must call this, after all
    /// columns are filled; a lane reads with [`unit_sums`](Self::unit_sums) what it stored.
    pub fn sum_units(&mut self, plane: u32, #[comptime] tile: Tile) {
        let (fragments, own_unit) = (comptime!(tile.fragments()), own_unit());
        for span in range_stepped(plane, tile.spans, tile.planes) {
            let mut sums = Array::<Vector<f32, Pair>>::new(2usize);
            clear(&mut sums, 2usize);
            #[unroll]
            for unit in 0..UNITS {
                let mut columns = Array::<Vector<H, Pair>>::new(comptime!(4 * fragments));
                #[unroll]
                for n in 0..fragments {
                    let first = Self::first(span, comptime!(n as u32), tile);
                    let loaded = self.right(Self::of_unit(first, comptime!(unit as u32), tile));
                    #[unroll]
                    for w in 0..4usize {
                        columns[comptime!(4 * n) + w] = loaded[w];
                    }
                }
                add_unit::<H>(&mut sums, &columns, own_unit, unit, tile);
            }
            #[unroll]
            for n in 0..fragments {
                let parts = sums_as_right::<H>(sums[n]);
                let mut own = Vector::<u32, Pair>::empty();
                #[unroll]
                for w in 0..2usize {
                    own[w] = u32::reinterpret(parts[w]);
                }
                self.unit_sums[unit_sums_at(span, comptime!(n as u32), tile) as usize] = own;
            }
        }
    }

    /// The sums of the units of a span of fragment `n`, as [`sums_as_right`].
    pub fn unit_sums(&self, span: u32, #[comptime] n: u32, #[comptime] tile: Tile) -> Array<Vector<H, Pair>> {
        let own = self.unit_sums[unit_sums_at(span, n, tile) as usize];
        let mut right = Array::<Vector<H, Pair>>::new(2usize);
        #[unroll]
        for w in 0..2usize {
            right[w] = Vector::reinterpret(own[w]);
        }
        right
    }

    /// The sum of the inputs of a run, in a row.
    pub fn total(&self, at: u32) -> f32 {
        self.totals[at as usize]
    }

    /// A sum of products, as that of the inputs and the elements themselves.
    pub fn whole(&self, sum: f32, row: u32, #[comptime] tile: Tile) -> f32 {
        sum * comptime!(1.0 / tile.element_unit()) * self.inverse[row as usize]
    }
}

/// Where this lane has its part of the sums of a span.
#[cube]
fn unit_sums_at(span: u32, #[comptime] n: u32, #[comptime] tile: Tile) -> u32 {
    (span * comptime!(tile.fragments() as u32 * LANES) + UNIT_POS % LANES)
        % comptime!((tile.unit_sums() as u32).next_power_of_two())
        + comptime!(n * LANES)
}

/// The place of column `column` of matrix `matrix` among those of unit `unit`. Places are exchanged so that 8 neighbouring places, all banks, have
/// what 32 units store at a time, two matrices of four units, and what `ldmatrix` reads at a time, a matrix.
#[cube]
fn place(matrix: u32, column: u32, unit: u32, #[comptime] tile: Tile) -> u32 {
    let columns = comptime!(tile.columns());
    let exchanged = if comptime!(!columns.is_multiple_of(2)) {
        unit / 2u32 % 2u32
    } else if comptime!(!columns.is_multiple_of(4)) {
        unit % 4u32
    } else {
        unit % 4u32 + matrix / 2u32 * 4u32
    };
    (matrix * columns + column) ^ exchanged
}

/// Where this unit of the cube stores inputs of step `step`, in halves of places: column 0 of its first matrix, if these are whole,
/// and otherwise its half of place 0.
#[cube]
fn first_place(step: u32, #[comptime] tile: Tile) -> u32 {
    let (unit, product, share) = (UNIT_POS / 4u32, UNIT_POS / 2u32 % 2u32, UNIT_POS % 2u32);
    let unit_vectors = comptime!(4 * tile.columns());
    let mut first = step * comptime!(tile.units() / 4 * unit_vectors) + unit * unit_vectors;
    if comptime!(tile.has_whole_matrices()) {
        first += place(product * 2u32, 0u32, unit, tile);
    }
    // The remainder tells the compiler how large addresses become, so that it adds constants to them for free.
    (first * 2u32 + share) % comptime!((2 * tile.input_vectors() as u32).next_power_of_two())
}
