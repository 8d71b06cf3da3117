//! The row of a team, its scores and their weights.

use cubecl::prelude::*;

use crate::cube::addend::Addend;
use crate::cube::exponential::{exponent, exponential};
use crate::cube::lanes::Team;
use crate::cube::masks::HIDDEN;

/// Replaces a visible score that equals [`HIDDEN`]: the finite number next to it.
const LOWEST_VISIBLE: f32 = f32::MIN.next_up();

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Units of the cube.
    pub units: u32,
    /// Those that share a row.
    pub team: Team,
    /// Vectors that a unit reads in one go, a power of two.
    pub per_unit: u32,
    /// Whether one go reads the row.
    pub held: bool,
    pub causal: bool,
    pub window: bool,
    /// Whether exponentials are one instruction.
    pub fast: bool,
}

/// The row of a team: its first vector in each tensor, and the keys that it sees.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Row {
    pub scores: u32,
    pub alibi: u32,
    pub mask: u32,
    pub first: u32,
    pub end: u32,
}

#[cube]
impl Row {
    /// Whether the row sees a key of vector `at`. All its vectors count as seen if there is neither triangle nor window.
    pub fn sees(&self, at: u32, width: u32, #[comptime] tile: Tile) -> bool {
        if comptime!(tile.causal || tile.window) {
            at >= self.begin(width) && at < self.after(width)
        } else {
            true.runtime()
        }
    }

    /// The first vector with a key that the row sees.
    fn begin(&self, width: u32) -> u32 {
        self.first / width
    }

    /// The vector after the last of them.
    fn after(&self, width: u32) -> u32 {
        self.end.div_ceil(width)
    }
}

/// The final scores of the vectors `from`, `from + team`, .. of a row: [`HIDDEN`] where a key is hidden or there is none.
#[cube]
pub(super) fn read<F: Float, A: Float, E: Float, N: Size, V: Size, W: Size>(
    scores: &Array<Vector<F, N>>,
    alibi: &Addend<A, V>,
    mask: &Addend<E, W>,
    values: &mut Array<Vector<f32, N>>,
    row: Row,
    scale: f32,
    from: u32,
    #[comptime] tile: Tile,
) {
    let per_unit = comptime!(tile.per_unit);
    let hidden = Vector::<f32, N>::new(HIDDEN);
    let width = hidden.size();
    let (begin, end) = (row.begin(width as u32), row.after(width as u32));
    // All loads first, so that they are in flight together.
    let mut raw = Array::<Vector<F, N>>::new(comptime!(per_unit as usize));
    let mut slopes = Array::<Vector<A, V>>::new(comptime!(per_unit as usize));
    let mut masks = Array::<Vector<E, W>>::new(comptime!(per_unit as usize));
    #[unroll]
    for p in 0..per_unit {
        let at = from + p * tile.team.units;
        raw[p as usize] = Vector::<F, N>::new(F::from_int(0));
        slopes[p as usize] = Vector::<A, V>::new(A::from_int(0));
        masks[p as usize] = Vector::<E, W>::new(E::from_int(0));
        if at >= begin && at < end {
            raw[p as usize] = scores[(row.scores + at) as usize];
            slopes[p as usize] = alibi.load(row.alibi, at);
            masks[p as usize] = mask.load(row.mask, at);
        }
    }
    #[unroll]
    for p in 0..per_unit {
        let at = from + p * tile.team.units;
        let mut value = hidden;
        if at >= begin && at < end {
            let mut score = Vector::<f32, N>::cast_from(raw[p as usize]) * Vector::<f32, N>::new(scale);
            score = alibi.add::<N>(score, slopes[p as usize], row.alibi, at);
            score = mask.add::<N>(score, masks[p as usize], row.mask, at);
            score = select_many::<f32, N>(score.equal(hidden), Vector::<f32, N>::new(LOWEST_VISIBLE), score);
            // -inf; a NaN compares unequal and stays.
            score = select_many::<f32, N>(score.less_than(hidden), hidden, score);
            if comptime!(tile.causal || tile.window) {
                #[unroll]
                for e in 0..width {
                    let key = at * width as u32 + e as u32;
                    score[e] = select(key >= row.first && key < row.end, score[e], HIDDEN);
                }
            }
            value = score;
        }
        values[p as usize] = value;
    }
}

/// `exp(score - largest)`, 0 for what is hidden.
#[cube]
pub(super) fn weights<N: Size>(scores: Vector<f32, N>, largest: f32, #[comptime] fast: bool) -> Vector<f32, N> {
    let hidden = scores.equal(Vector::<f32, N>::new(HIDDEN));
    // The difference first: products of large scores would overflow.
    let differences = (scores - Vector::<f32, N>::new(largest)) * Vector::<f32, N>::new(comptime!(exponent(fast)));
    let mut weights = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for e in 0..N::value() {
        weights[e] = exponential(differences[e], fast);
    }
    select_many::<f32, N>(hidden, Vector::<f32, N>::new(0.0f32), weights)
}
