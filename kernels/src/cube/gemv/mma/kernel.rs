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
///   ..        ┴  └───┴───┴───┴───┘           └───┘   row l / 4 of the input, vector l % 4 of the step
/// ```
///
/// The weights are the left operand, and go from memory to registers: four lanes read 64 bytes of an output. What a lane holds of
/// 16 bytes are parts of 4 weights, an A each. The right operand is what the same lanes read of the rows, so nothing is
/// exchanged. The planes of a cube share the steps. `stages` steps are loaded ahead, the first of them before the norm's sums.
/// Normalised inputs are the sum of two numbers of their type, and each of them is multiplied. The partial sums of the
/// planes are added through shared memory.
///
/// The launch has `outputs / (16 · blocks)` cubes along x, rounded up.
#[cube(launch_unchecked)]
pub(super) fn product_mma<F: Float, G: Float, E: Float, B: Float>(
    factors: &Factors<G, E>,
    matrix: &Array<Vector<u32, Quad>>,
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
    let loads = comptime!(tile.loads());
    let inputs = comptime!(tile.inputs());
    // Registers can only be indexed by constants; emulated ones need not, and a rolled kernel compiles in time.
    let unroll = comptime!(!tile.emulate);
    let vectors = factors.products(tile);
    let lane = UNIT_POS % LANES;
    let plane = UNIT_POS / LANES;
    let first_output = CUBE_POS_X * comptime!(tile.outputs());

    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.scratch() as usize));
    let mut partial = SharedMemory::<f32>::new(comptime!(tile.partial() as usize));

    // After the last output its weights are read again, and the sums dropped.
    let mut begin = Array::<u32>::new(comptime!(loads as usize));
    let mut first_scale = Array::<u32>::new(comptime!(loads as usize));
    #[unroll(unroll)]
    for o in 0..loads {
        let at = min(first_output + lane / SHARERS + o * 8, sizes.outputs - 1);
        begin[o as usize] = at * sizes.matrix;
        first_scale[o as usize] = scales.begin(at);
    }

    let mut weights = Array::<Vector<u32, Quad>>::new(comptime!((tile.stages * loads) as usize));
    let mut values = Array::<Vector<u32, Quad>>::new(comptime!((tile.stages * inputs) as usize));
    let mut factor = Array::<f32>::new(comptime!((tile.stages * loads) as usize));
    #[unroll(unroll)]
    for stage in 0..tile.stages {
        let at = (plane + stage * tile.planes) * SHARERS + lane % SHARERS;
        load(&mut weights, matrix, &begin, stage * loads, at, vectors, tile);
        factors.load(&mut values, stage * inputs, at, tile);
        scales.load_blocks(&mut factor, stage * loads, &first_scale, at, vectors, loads);
    }

    let moments = factors.moments::<F>(tile);

    let mut sums = Array::<Vector<f32, Pair>>::new(comptime!(loads as usize));
    let mut own = Array::<Vector<f32, Pair>>::new(comptime!(loads as usize));
    #[unroll(unroll)]
    for s in 0..loads {
        sums[s as usize] = Vector::<f32, Pair>::new(0.0f32);
    }
    // Vectors of a row that the cube multiplies in a round.
    let round = comptime!(tile.stages * tile.planes * SHARERS);
    for first in range_stepped(0u32, vectors, round) {
        #[unroll(unroll)]
        for stage in 0..tile.stages {
            let step = first + (plane + stage * tile.planes) * SHARERS;
            // Emulated lanes exchange through the cube, of which none may be missing.
            if comptime!(tile.emulate) || step < vectors {
                let at = step + lane % SHARERS;
                let right = factors.right::<F>(&values, stage * inputs, at, &moments, normed, tile);
                // Where an output has several scales, those of the step multiply what it adds.
                if comptime!(scales.wide.is_some()) {
                    #[unroll(unroll)]
                    for s in 0..loads {
                        own[s as usize] = Vector::<f32, Pair>::new(0.0f32);
                    }
                    multiply::<F, G, E>(&mut own, &weights, stage * loads, &right, factors, &mut scratch, tile);
                    #[unroll(unroll)]
                    for s in 0..loads {
                        let factor = Vector::<f32, Pair>::new(factor[(stage * loads + s) as usize]);
                        sums[s as usize] += own[s as usize] * factor;
                    }
                } else {
                    multiply::<F, G, E>(&mut sums, &weights, stage * loads, &right, factors, &mut scratch, tile);
                }
                let next = at + round;
                load(&mut weights, matrix, &begin, stage * loads, next, vectors, tile);
                factors.load(&mut values, stage * inputs, next, tile);
                scales.load_blocks(&mut factor, stage * loads, &first_scale, next, vectors, loads);
            }
        }
    }

    let (all, row) = comptime!((tile.sums(), tile.sums_row()));
    #[unroll(unroll)]
    for s in 0..loads {
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
fn multiply<F: Float, G: Float, E: Float>(
    sums: &mut Array<Vector<f32, Pair>>,
    weights: &Array<Vector<u32, Quad>>,
    from: u32,
    right: &Right<F>,
    factors: &Factors<G, E>,
    scratch: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    #[unroll(!tile.emulate)]
    for part in 0..tile.parts() {
        #[unroll(!tile.emulate)]
        for block in 0..tile.blocks {
            let at = (from + 2 * block) as usize;
            let left = left::<F>(weights[at], weights[at + 1], part, factors.raised, tile.int8, tile.brain);
            mma::<F>(&left, 0u32, &right.high, 2 * part, sums, 2 * block, scratch, tile.emulate);
            if factors.is_split() {
                mma::<F>(&left, 0u32, &right.low, 2 * part, sums, 2 * block, scratch, tile.emulate);
            }
        }
    }
}

/// Vector `at` of each output of the lane, to `to` and the places after it; zeros after the last.
#[cube]
fn load(
    loaded: &mut Array<Vector<u32, Quad>>,
    matrix: &Array<Vector<u32, Quad>>,
    begin: &Array<u32>,
    to: u32,
    at: u32,
    vectors: u32,
    #[comptime] tile: Tile,
) {
    let loads = comptime!(tile.loads());
    if comptime!(tile.emulate || !tile.even) {
        #[unroll(!tile.emulate)]
        for o in 0..loads {
            loaded[(to + o) as usize] = Vector::<u32, Quad>::new(0u32);
        }
    }
    if at < vectors {
        #[unroll(!tile.emulate)]
        for o in 0..loads {
            loaded[(to + o) as usize] = matrix[(begin[o as usize] + at) as usize];
        }
    }
}
