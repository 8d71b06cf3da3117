//! The sums of the planes, as outputs.

use cubecl::prelude::*;

use super::inputs::Inputs;
use super::tile::{OUTPUTS, SUMS_ROW, Tile};
use crate::cube::fragment::LANES;
use crate::cube::gemv::output::{Sizes, write};

/// Adds the sums of all planes for the strip that begins with output `first_output`, and writes the outputs. Every unit of the cube must call
/// this; another exchange of the cube must come before the next call.
#[cube]
pub(super) fn write_sums<F: Float, B: Float, H: Float>(
    sums: &Array<f32>,
    partial: &mut SharedMemory<f32>,
    inputs: &Inputs<H>,
    first_output: u32,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let (lane, plane) = (UNIT_POS % LANES, UNIT_POS / LANES);
    let (across, share) = (lane / 4u32, lane % 4u32);
    let lane_rows = comptime!(tile.lane_rows());
    // The remainders tell the compiler how large addresses become, so that it adds constants to them for free.
    let most = comptime!((tile.partial() as u32).next_power_of_two());
    let own = ((plane * tile.parts_of_sums() + share) * SUMS_ROW + across) % most;
    #[unroll]
    for s in 0..comptime!(tile.sums()) {
        let (part, o) = comptime!(((s / lane_rows / 2 * lane_rows + s % lane_rows) as u32, s / lane_rows % 2));
        if row_of(part, share, tile) < tile.rows {
            partial[(own + comptime!(part * 4 * SUMS_ROW + 8 * o as u32)) as usize] = sums[s];
        }
    }
    sync_cube();
    for at in range_stepped(UNIT_POS, comptime!(OUTPUTS * tile.parts_of_sums()), comptime!(tile.units())) {
        // Two neighbouring halves of a plane read on different banks.
        let (within, half) = (at % OUTPUTS, at / OUTPUTS);
        let (part, share) = (half / 4u32, half % 2u32 * 2u32 + half / 2u32 % 2u32);
        let of_row = row_of(part, share, tile);
        if of_row < tile.rows && first_output + within < sizes.outputs {
            let first = ((part * 4u32 + share) * SUMS_ROW + within) % most;
            let mut sum = 0.0f32.runtime();
            #[unroll]
            for plane in 0..tile.planes {
                sum += partial[(first + plane * comptime!(tile.parts_of_sums() * SUMS_ROW)) as usize];
            }
            write::<F, B>(inputs.whole(sum, of_row, tile), of_row, first_output + within, bias, output, sizes);
        }
    }
}

/// The row of which lanes whose place among four is `share` have part `part` of the sums.
#[cube]
fn row_of(part: u32, share: u32, #[comptime] tile: Tile) -> u32 {
    let lane_rows = comptime!(tile.lane_rows() as u32);
    (part / lane_rows * 4u32 + share) * tile.lane_columns() + part % lane_rows
}
