//! The kernel.

use cubecl::prelude::*;

use super::factors::{Factors, Right};
use super::tile::{FRAGMENT, SHARERS, Tile};
use crate::cube::direct::{Quad, left};
use crate::cube::fragment::{LANES, Pair, mma};
use crate::cube::gemv::int8::Scales;
use crate::cube::gemv::output::{Sizes, write};

/// A strip of outputs for each cube, for all rows of the input.
///
/// ```text
///                inputs
///                step 0      1           of plane 0, 1, .., 0, ..
///   outputs      ├ 4 vectors ┼ ..
///   block 0   ┬  ┌───┬───┬───┬───┐           rows of the input, up to 8
///   16        │  │ a0│ a1│ a2│ a3│           ┌───┐
///   block 1   ┼  ├───┼───┼───┼───┤           │ b │   lane l: output l / 4 and l / 4 + 8 of each block,
///   ..        ┴  └───┴───┴───┴───┘           └───┘   row l / 4 of the input, vector l % 4 of the step,
///                                                    and vector l % 4 + 4 where weights are bytes
/// ```
///
/// The weights are the left operand, and go from memory to registers: four lanes read 64 bytes of an output, in int8 two runs of 32. What
/// a lane holds of 8 weights are two parts of 4, an A each. The right operand is what the same lanes read of the rows, so nothing is
/// exchanged. The planes of a cube share the steps. `stages` steps are loaded ahead, the first of them before the norm's sums.
/// Normalised inputs are the sum of two numbers of their type, and each of them is multiplied. The partial sums of the
/// planes are added through shared memory.
///
/// The launch has `outputs / (16 · blocks)` cubes along x, rounded up.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn product_mma<F: Float, G: Float, E: Float, B: Float, W: Size>(
    factors: &Factors<G, E>,
    matrix: &Array<Vector<u32, W>>,
    scales: &Scales,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    normed: &mut ComptimeOption<Array<Vector<F, Quad>>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _element_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
    #[define(E)] _beta_type: StorageType,
    #[define(B)] _bias_type: StorageType,
) {
    let outputs = comptime!(tile.lane_outputs());
    let (loads, pieces) = comptime!((tile.loads(), tile.pieces()));
    // Registers can only be indexed by constants; emulated ones need not, and a rolled kernel compiles in time.
    let unroll = comptime!(!tile.emulate);
    let vectors = factors.vectors;
    let lane = UNIT_POS % LANES;
    let plane = UNIT_POS / LANES;
    let first_output = CUBE_POS_X * comptime!(tile.outputs());

    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.scratch() as usize));
    let mut partial = SharedMemory::<f32>::new(comptime!(tile.partial() as usize));

    // After the last output its weights are read again, and the sums dropped.
    let mut begin = Array::<u32>::new(comptime!(outputs as usize));
    let mut first_scale = Array::<u32>::new(comptime!(outputs as usize));
    #[unroll(unroll)]
    for o in 0..outputs {
        let at = min(first_output + lane / SHARERS + o * 8, sizes.outputs - 1);
        begin[o as usize] = at * sizes.matrix;
        first_scale[o as usize] = scales.begin(at);
    }

    let mut weights = Array::<Vector<u32, W>>::new(comptime!((tile.stages * loads) as usize));
    let mut values = Array::<Vector<u32, Quad>>::new(comptime!((tile.stages * pieces) as usize));
    let mut factor = Array::<f32>::new(comptime!((tile.stages * outputs) as usize));
    #[unroll(unroll)]
    for stage in 0..tile.stages {
        let at = (plane + stage * tile.planes) * comptime!(tile.step()) + lane % SHARERS;
        load::<G, E, W>(&mut weights, &mut values, factors, matrix, &begin, stage, at, tile);
        scales.load_blocks(&mut factor, stage * outputs, &first_scale, at, vectors, outputs);
    }

    let moments = factors.moments::<F>(tile);

    let mut sums = Array::<Vector<f32, Pair>>::new(comptime!(outputs as usize));
    let mut own = Array::<Vector<f32, Pair>>::new(comptime!(outputs as usize));
    #[unroll(unroll)]
    for s in 0..outputs {
        sums[s as usize] = Vector::<f32, Pair>::new(0.0f32);
    }
    // Vectors of a row that the cube multiplies in a round.
    let round = comptime!(tile.stages * tile.planes * tile.step());
    for first in range_stepped(0u32, vectors, round) {
        #[unroll(unroll)]
        for stage in 0..tile.stages {
            let step = first + (plane + stage * tile.planes) * comptime!(tile.step());
            // Emulated lanes exchange through the cube, of which none may be missing.
            if comptime!(tile.emulate) || step < vectors {
                let at = step + lane % SHARERS;
                let right = factors.right::<F>(&values, stage * pieces, at, &moments, normed, tile);
                // Where an output has several scales, those of the step multiply what it adds.
                if comptime!(scales.wide.is_some()) {
                    #[unroll(unroll)]
                    for s in 0..outputs {
                        own[s as usize] = Vector::<f32, Pair>::new(0.0f32);
                    }
                    multiply::<F, G, E, W>(&mut own, &weights, stage * loads, &right, factors, &mut scratch, tile);
                    #[unroll(unroll)]
                    for s in 0..outputs {
                        let factor = Vector::<f32, Pair>::new(factor[(stage * outputs + s) as usize]);
                        sums[s as usize] += own[s as usize] * factor;
                    }
                } else {
                    multiply::<F, G, E, W>(&mut sums, &weights, stage * loads, &right, factors, &mut scratch, tile);
                }
                let next = at + round;
                load::<G, E, W>(&mut weights, &mut values, factors, matrix, &begin, stage, next, tile);
                scales.load_blocks(&mut factor, stage * outputs, &first_scale, next, vectors, outputs);
            }
        }
    }

    let (all, row) = comptime!((tile.sums(), tile.sums_row()));
    #[unroll(unroll)]
    for s in 0..outputs {
        let to = (plane * tile.blocks + s / 2) * all + lane % SHARERS * 2 * row + s % 2 * 8 + lane / SHARERS;
        let pair = sums[s as usize];
        partial[to as usize] = pair[0];
        partial[(to + row) as usize] = pair[1];
    }
    sync_cube();
    // Neighbouring units have neighbouring outputs; the two rows of a plane are on different banks.
    for at in range_stepped(UNIT_POS, comptime!(tile.outputs() * 8), comptime!(tile.units())) {
        let (within, pair, block) = (at % FRAGMENT, at / FRAGMENT % 8, at / comptime!(FRAGMENT * 8));
        let of_row = pair % 2 * 4 + pair / 2;
        let output_at = first_output + block * FRAGMENT + within;
        if of_row < tile.rows && output_at < sizes.outputs {
            let mut sum = 0.0f32.runtime();
            #[unroll]
            for plane in 0..tile.planes {
                sum += partial[((plane * tile.blocks + block) * all + of_row * row + within) as usize];
            }
            write::<F, B>(scales.whole(sum, output_at), of_row, output_at, bias, output, sizes);
        }
    }
}

/// Multiplies the weights from `from` on with all rows, and adds to the sums.
#[cube]
fn multiply<F: Float, G: Float, E: Float, W: Size>(
    sums: &mut Array<Vector<f32, Pair>>,
    weights: &Array<Vector<u32, W>>,
    from: u32,
    right: &Right<F>,
    factors: &Factors<G, E>,
    scratch: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    #[unroll(!tile.emulate)]
    for part in 0..2 * tile.pieces() {
        #[unroll(!tile.emulate)]
        for block in 0..tile.blocks {
            let at = (from + part / 2 * tile.lane_outputs() + 2 * block) as usize;
            let left = left::<F, W>(weights[at], weights[at + 1], part % 2, factors.raised, tile.int8, tile.brain);
            mma::<F>(&left, 0u32, &right.high, 2 * part, sums, 2 * block, scratch, tile.emulate);
            if factors.is_split() {
                mma::<F>(&left, 0u32, &right.low, 2 * part, sums, 2 * block, scratch, tile.emulate);
            }
        }
    }
}

/// What a lane has of a step from vector `at` on, to the places of stage `stage`; zeros after the last vector of a row.
#[cube]
fn load<G: Float, E: Float, W: Size>(
    weights: &mut Array<Vector<u32, W>>,
    values: &mut Array<Vector<u32, Quad>>,
    factors: &Factors<G, E>,
    matrix: &Array<Vector<u32, W>>,
    begin: &Array<u32>,
    stage: u32,
    at: u32,
    #[comptime] tile: Tile,
) {
    let pieces = comptime!(tile.pieces());
    if comptime!(tile.emulate || !tile.even) {
        #[unroll(!tile.emulate)]
        for l in 0..tile.loads() {
            weights[(stage * tile.loads() + l) as usize] = Vector::<u32, W>::new(0u32);
        }
        #[unroll]
        for piece in 0..pieces {
            values[(stage * pieces + piece) as usize] = Vector::<u32, Quad>::new(0u32);
        }
    }
    if comptime!(tile.even) {
        if at < factors.vectors {
            #[unroll]
            for piece in 0..pieces {
                load_piece::<G, E, W>(weights, values, factors, matrix, begin, stage, at, piece, tile);
            }
        }
    } else {
        #[unroll]
        for piece in 0..pieces {
            if factors.is_inside(at, piece, tile) {
                load_piece::<G, E, W>(weights, values, factors, matrix, begin, stage, at, piece, tile);
            }
        }
    }
}

/// Vector `piece` of those, of each output and of the input.
#[cube]
fn load_piece<G: Float, E: Float, W: Size>(
    weights: &mut Array<Vector<u32, W>>,
    values: &mut Array<Vector<u32, Quad>>,
    factors: &Factors<G, E>,
    matrix: &Array<Vector<u32, W>>,
    begin: &Array<u32>,
    stage: u32,
    at: u32,
    piece: u32,
    #[comptime] tile: Tile,
) {
    let to = stage * tile.pieces() + piece;
    let distance = (piece * SHARERS) as usize;
    let outputs = comptime!(tile.lane_outputs());
    #[unroll(!tile.emulate)]
    for o in 0..outputs {
        weights[(to * outputs + o) as usize] = matrix[(begin[o as usize] + at) as usize + distance];
    }
    values[to as usize] = factors.at(at, distance, tile);
}
