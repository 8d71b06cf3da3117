//! How the lanes of a group load their chunks together, and how each of them gets its own.
//!
//! If each lane loaded its own chunk, of 36 bytes for example, one load would have a few bytes of every sector of a row. So neighbouring
//! lanes load neighbouring vectors, and exchange them through shared memory.

use cubecl::prelude::*;

use super::chunk::{Chunk, address};
use crate::cube::gemv::exchange::Exchange;

/// How a group exchanges what its lanes loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stage {
    pub chunk: Chunk,
    pub exchange: Exchange,
    /// Whether a plane waits for itself alone; otherwise the cube waits.
    pub plane_barrier: bool,
    /// Whether the row is a whole number of steps, so that no lane loads anything after its end.
    pub even: bool,
}

impl Stage {
    /// Words of shared memory of a group.
    fn words(self) -> u32 {
        self.chunk.loads(self.exchange.lanes) as u32 * self.exchange.lanes * self.chunk.vector
    }

    /// Vectors of shared memory that the cube needs.
    pub fn vectors(self) -> usize {
        (self.exchange.groups() * self.words() / self.chunk.width()) as usize
    }

    /// The same in bytes.
    pub fn bytes(self) -> usize {
        self.vectors() * self.chunk.width() as usize * size_of::<u32>()
    }
}

/// Where the chunks of a group are in a row, and which of them is that of a lane.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Step {
    /// The first chunk of the group.
    pub first: u32,
    /// The chunk of the lane.
    pub own: u32,
}

/// The step of a group that begins at chunk `first`. After the last chunk its lanes have the last one.
#[cube]
pub(super) fn step(first: u32, lane: u32, chunks: u32, #[comptime] stage: Stage) -> Step {
    if comptime!(stage.even) {
        Step { first, own: first + lane }
    } else {
        let last = chunks - 1;
        Step { first: min(first, last / stage.exchange.lanes * stage.exchange.lanes), own: min(first + lane, last) }
    }
}

/// Loads the chunks of a step of the row that begins at byte `row`, every lane its share, to `loaded` from `to` on.
#[cube]
pub(super) fn load<M: Size>(
    loaded: &mut Array<Vector<u32, M>>,
    matrix: &Array<Vector<u32, M>>,
    row: u32,
    step: Step,
    lane: u32,
    last: u32,
    #[comptime] to: usize,
    #[comptime] stage: Stage,
) {
    let chunk = comptime!(stage.chunk);
    let lanes = comptime!(stage.exchange.lanes);
    let all = comptime!(chunk.all_loads(lanes));
    let first = address(row, step.first, 0usize, chunk) / comptime!(chunk.load());
    let mut end = first + comptime!(all - 1);
    if comptime!(!stage.even || !chunk.has_whole_loads()) {
        // The last row may end before, where nothing more is needed.
        end = min(end, last);
    }
    #[unroll]
    for l in 0..comptime!(chunk.loads(lanes)) {
        let mut at = first + lane + comptime!(l as u32 * lanes);
        if comptime!(!stage.even || !chunk.has_whole_loads() || (l as u32 + 1) * lanes > all) {
            at = min(at, end);
        }
        loaded[comptime!(to + l)] = matrix[at as usize];
    }
}

/// Exchanges the loads of a step, which begin at `from`. Gives each lane the words of its chunk: each part from its first byte on, `words` from
/// `to` on. Every unit of the cube must call this.
#[cube]
pub(super) fn exchange<M: Size, R: Size>(
    words: &mut Array<u32>,
    staged: &mut SharedMemory<Vector<u32, R>>,
    loaded: &Array<Vector<u32, M>>,
    row: u32,
    step: Step,
    #[comptime] to: usize,
    #[comptime] from: usize,
    #[comptime] stage: Stage,
) {
    let chunk = comptime!(stage.chunk);
    let lanes = comptime!(stage.exchange.lanes);
    // The remainder tells the compiler how large addresses become, so that it adds constants to them for free.
    let group = UNIT_POS % stage.exchange.units / lanes;

    let written = group * comptime!(stage.words() / chunk.vector) + UNIT_POS % lanes;
    let mut vectors = staged.to_slice_mut().with_vector_size::<M>();
    #[unroll]
    for l in 0..comptime!(chunk.loads(lanes)) {
        vectors[(written + comptime!(l as u32 * lanes)) as usize] = loaded[comptime!(from + l)];
    }
    wait(stage);

    let mut begin = 0u32.runtime();
    if comptime!(!chunk.has_whole_loads()) {
        begin = address(row, step.first, 0usize, chunk) % comptime!(chunk.load());
    }
    let read = group * comptime!(stage.words() / chunk.width());
    read_chunk::<R>(words, staged, begin, read, step.own - step.first, to, chunk);
    // Before the next step is written.
    wait(stage);
}

/// Waits for the lanes of the group.
#[cube]
fn wait(#[comptime] stage: Stage) {
    if comptime!(stage.plane_barrier) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// The words of chunk `at` of those that begin at byte `begin` of the vectors from `first` on.
#[cube]
fn read_chunk<R: Size>(
    words: &mut Array<u32>,
    staged: &SharedMemory<Vector<u32, R>>,
    begin: u32,
    first: u32,
    at: u32,
    #[comptime] to: usize,
    #[comptime] chunk: Chunk,
) {
    let width = R::value();
    #[unroll]
    for span in 0..comptime!(chunk.spans()) {
        let place = address(begin, at, span, chunk);
        let count = comptime!(chunk.span_words(span));
        let to = comptime!(to + chunk.first_word(span));
        let first = first + place / comptime!(4 * width as u32);
        if comptime!(chunk.is_whole()) {
            #[unroll]
            for v in 0..comptime!(count / width) {
                let vector = staged[(first + comptime!(v as u32)) as usize];
                #[unroll]
                for e in 0..width {
                    words[comptime!(to + v * width + e)] = vector[e];
                }
            }
        } else {
            // Each step needs one word more than the next one makes.
            let mut whole = Array::<u32>::new(comptime!(count + 2));
            #[unroll]
            for w in 0..comptime!(count + 1) {
                whole[w] = staged[(first + comptime!(w as u32)) as usize][0];
            }
            whole[comptime!(count + 1)] = 0u32;
            #[unroll]
            for w in 0..comptime!(count + 1) {
                let shifted = whole[w] >> 16u32 | whole[comptime!(w + 1)] << 16u32;
                whole[w] = select(place & 2u32 == 0u32, whole[w], shifted);
            }
            if comptime!(chunk.has_odd_bytes()) {
                #[unroll]
                for w in 0..count {
                    let shifted = whole[w] >> 8u32 | whole[comptime!(w + 1)] << 24u32;
                    whole[w] = select(place & 1u32 == 0u32, whole[w], shifted);
                }
            }
            #[unroll]
            for w in 0..count {
                words[comptime!(to + w)] = whole[w];
            }
        }
    }
}
