//! How the units of a cube load a strip of the matrix together.

use burn_deepspeed_core::block::UNIT_BYTES;
use cubecl::prelude::*;

use super::tile::Tile;
use super::words::Word;
use crate::cube::direct::Quad;
use crate::cube::gemv::output::Sizes;

/// Where the rows of the matrix are.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Place {
    /// The first byte, and the bytes of a row.
    first: u32,
    row: u32,
    /// The last load of the matrix.
    last: u32,
    /// Spans of a row.
    pub spans: u32,
    /// [`ZERO`](crate::cube::bytes::ZERO), an argument since an instruction holds only one constant.
    pub zero: u32,
}

/// The byte at which an output begins, or the last one if there are fewer.
#[cube]
pub(super) fn begin(output: u32, place: &Place, sizes: &Sizes) -> u32 {
    place.first + min(output, sizes.outputs - 1) * place.row
}

/// What a unit loads of each step: vectors of one output, as many apart as units share it.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Loader {
    /// The first one, and the last one that has a byte of the output.
    first: u32,
    last: u32,
    /// Where the first one goes.
    to: u32,
    /// Its place among those of the output.
    own: u32,
}

/// What this unit loads of the strip that begins with output `first_output`.
#[cube]
pub(super) fn loader_of(first_output: u32, place: &Place, sizes: &Sizes, #[comptime] tile: Tile) -> Loader {
    let units = comptime!(tile.row_units());
    let (output, own) = (UNIT_POS / units, UNIT_POS % units);
    let begin = begin(first_output + output, place, sizes);
    Loader {
        first: begin / UNIT_BYTES as u32 + own,
        last: min((begin + place.row - 1u32) / UNIT_BYTES as u32, place.last),
        // The remainder tells the compiler how large addresses become, so that it adds constants to them for free.
        to: (output * tile.pitch() + own) % comptime!((tile.staged() as u32).next_power_of_two()),
        own,
    }
}

#[cube]
impl Loader {
    /// Whether the unit has load `l` of a step.
    fn has(&self, #[comptime] l: usize, #[comptime] tile: Tile) -> bool {
        let units = comptime!(tile.row_units());
        if comptime!((l as u32 + 1) * units <= tile.loads()) {
            true.runtime()
        } else {
            self.own < comptime!(tile.loads() - l as u32 * units)
        }
    }

    /// Loads the step that begins with span `span`. After the end of a row its last vector is loaded again.
    pub fn load(
        &self,
        loaded: &mut Array<Vector<u32, Quad>>,
        matrix: &Array<Vector<u32, Quad>>,
        span: u32,
        #[comptime] tile: Tile,
    ) {
        let first = self.first + span / tile.planes * comptime!(tile.step_bytes() / UNIT_BYTES as u32);
        #[unroll]
        for l in 0..comptime!(tile.unit_loads()) {
            let mut at = first + comptime!(l as u32 * tile.row_units());
            if comptime!(
                !tile.whole_steps || !tile.has_whole_loads() || (l as u32 + 1) * tile.row_units() > tile.loads()
            ) {
                at = min(at, self.last);
            }
            loaded[l] = matrix[at as usize];
        }
    }

    /// Turns to another strip.
    pub fn turn_to(&mut self, first_output: u32, place: &Place, sizes: &Sizes, #[comptime] tile: Tile) {
        let next = loader_of(first_output, place, sizes, tile);
        self.first = next.first;
        self.last = next.last;
    }

    /// Stores what was loaded.
    pub fn store(
        &self,
        staged: &mut SharedMemory<Vector<u32, Word>>,
        loaded: &Array<Vector<u32, Quad>>,
        #[comptime] tile: Tile,
    ) {
        let mut vectors = staged.to_slice_mut().with_vector_size::<Quad>();
        #[unroll]
        for l in 0..comptime!(tile.unit_loads()) {
            if self.has(l, tile) {
                vectors[(self.to + comptime!(l as u32 * tile.row_units())) as usize] = loaded[l];
            }
        }
    }
}
