//! Sums and maxima over a few neighbouring units, or over all of a cube.

use cubecl::prelude::*;

use super::machine::Machine;

/// The sum of `value` over groups of `lanes` neighbouring units, in each of them.
///
/// With `planes` by exchange inside a plane, of which `lanes` must be a part; otherwise through `shared`, one element
/// for each unit of the cube, and then every unit of the cube must call this. `lanes` is a power of two.
#[cube]
pub(crate) fn lanes_sum(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] lanes: u32,
    #[comptime] planes: bool,
) -> f32 {
    let mut sum = value;
    if comptime!(lanes > 1) {
        if comptime!(planes) {
            #[unroll]
            for step in 0..comptime!(lanes.trailing_zeros()) {
                sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
            }
        } else {
            shared[UNIT_POS as usize] = value;
            sync_cube();
            let first = UNIT_POS / lanes * lanes;
            sum = 0.0f32.runtime();
            #[unroll]
            for lane in 0..lanes {
                sum += shared[(first + lane) as usize];
            }
            sync_cube();
        }
    }
    sum
}

/// The maximum of `value`, as [`lanes_sum`].
#[cube]
pub(crate) fn lanes_max<T: Numeric>(
    value: T,
    shared: &mut SharedMemory<T>,
    #[comptime] lanes: u32,
    #[comptime] planes: bool,
) -> T {
    let mut largest = value;
    if comptime!(lanes > 1) {
        if comptime!(planes) {
            #[unroll]
            for step in 0..comptime!(lanes.trailing_zeros()) {
                largest = max(largest, plane_shuffle_xor(largest, comptime!(1u32 << step)));
            }
        } else {
            shared[UNIT_POS as usize] = value;
            sync_cube();
            let first = UNIT_POS / lanes * lanes;
            #[unroll]
            for lane in 0..lanes {
                largest = max(largest, shared[(first + lane) as usize]);
            }
            sync_cube();
        }
    }
    largest
}

/// The sum of the elements of a vector.
#[cube]
pub(crate) fn vector_sum<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = vector[0];
    #[unroll]
    for at in 1..N::value() {
        sum += vector[at];
    }
    sum
}

/// The maximum of the elements of a vector.
#[cube]
pub(crate) fn vector_max<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut largest = vector[0];
    #[unroll]
    for at in 1..N::value() {
        largest = max(largest, vector[at]);
    }
    largest
}

/// Neighbouring units that work on one row: part of a plane, or up to the whole cube. All sizes are powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Team {
    /// Units of the team.
    pub units: u32,
    /// Units that exchange values in one step.
    pub near: u32,
    /// Whether that step is one of the plane, or goes through shared memory too.
    pub planes: bool,
}

/// [`Team::near`] without planes: two steps of 16 reads make a cube of 256 units.
const NEAR_WITHOUT_PLANES: u32 = 16;

impl Team {
    /// Units that exchange values in one step on this device.
    pub fn near(machine: &Machine) -> u32 {
        if machine.plane_operations { machine.plane_size } else { NEAR_WITHOUT_PLANES }
    }

    /// A team of `units`, a power of two.
    pub fn new(machine: &Machine, units: u32) -> Self {
        Self { units, near: Self::near(machine).min(units), planes: machine.plane_operations }
    }
}

/// The sum of `value` over a team, in each of its units. Every unit of the cube must call this; `shared` has one element for
/// each.
///
/// Neighbours are added first ([`lanes_sum`]). Every unit then reads the sums of its team.
#[cube]
pub(crate) fn cube_sum(value: f32, shared: &mut SharedMemory<f32>, #[comptime] team: Team) -> f32 {
    let mut sum = lanes_sum(value, shared, team.near, team.planes);
    if comptime!(team.units > team.near) {
        let parts = comptime!(team.units / team.near);
        let lane = UNIT_POS % team.near;
        if lane == 0 {
            shared[(UNIT_POS / team.near) as usize] = sum;
        }
        sync_cube();
        let first = UNIT_POS / team.units * parts;
        sum = 0.0f32.runtime();
        #[unroll]
        for part in 0..parts {
            sum += shared[(first + part) as usize];
        }
        sync_cube();
    }
    sum
}

/// The maximum of `value`, as [`cube_sum`].
#[cube]
pub(crate) fn cube_max(value: f32, shared: &mut SharedMemory<f32>, #[comptime] team: Team) -> f32 {
    let mut largest = lanes_max(value, shared, team.near, team.planes);
    if comptime!(team.units > team.near) {
        let parts = comptime!(team.units / team.near);
        let lane = UNIT_POS % team.near;
        if lane == 0 {
            shared[(UNIT_POS / team.near) as usize] = largest;
        }
        sync_cube();
        let first = UNIT_POS / team.units * parts;
        #[unroll]
        for part in 0..parts {
            largest = max(largest, shared[(first + part) as usize]);
        }
        sync_cube();
    }
    largest
}

/// How values become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fold {
    Sum,
    Maximum,
}

#[cube]
fn folded(a: f32, b: f32, #[comptime] fold: Fold) -> f32 {
    if comptime!(fold == Fold::Sum) { a + b } else { max(a, b) }
}

/// `value` of `lanes` neighbouring units of a plane, a power of two, as one.
#[cube]
pub(crate) fn plane_fold(value: f32, #[comptime] lanes: u32, #[comptime] fold: Fold) -> f32 {
    let mut all = value;
    #[unroll]
    for step in 0..comptime!(lanes.trailing_zeros()) {
        all = folded(all, plane_shuffle_xor(all, comptime!(1u32 << step)), fold);
    }
    all
}

/// Folds each of `many` values over groups of `lanes` neighbouring units of a plane, until a lane has a part of them: the first `many / parts` are
/// those of the lanes from its part on, `lanes / parts` each, and are left to be folded over these.
///
/// Lanes that are half of the group apart exchange halves of the values and fold what they keep, then lanes that are a quarter apart:
/// 15 exchanges for 16 values of 16 lanes, where folding each by itself takes 64. `many`, `parts` and `lanes` are powers of two.
#[cube]
pub(crate) fn divide(
    values: &mut Array<f32>,
    lane: u32,
    #[comptime] many: u32,
    #[comptime] parts: u32,
    #[comptime] lanes: u32,
    #[comptime] fold: Fold,
) {
    #[unroll]
    for step in 0..comptime!(parts.trailing_zeros()) {
        let half = comptime!((many >> (step + 1)) as usize);
        let apart = comptime!(lanes >> (step + 1));
        let upper = (lane & apart) != 0;
        #[unroll]
        for at in 0..half {
            let kept = select(upper, values[at + half], values[at]);
            let sent = select(upper, values[at], values[at + half]);
            values[at] = folded(kept, plane_shuffle_xor(sent, apart), fold);
        }
    }
}

/// Value `value` of what [`cube_folds`] gave to the lanes, in all of them.
#[cube]
pub(crate) fn fold_of(own: f32, #[comptime] value: u32, #[comptime] many: u32, #[comptime] lanes: u32) -> f32 {
    if comptime!(many > 1) { plane_shuffle(own, comptime!(value * (lanes / many))) } else { own }
}

/// Each of `many` values of all units of the cube, as one: value `v` in the lanes from `v · lanes / many` on, as many of every plane.
/// `many` is a power of two up to `lanes`, those of a plane; the cube has `planes`, a power of two, too. Every unit of the cube must call
/// this; `shared` has one element for each. [`fold_of`] gives a value to all lanes.
#[cube]
pub(crate) fn cube_folds(
    values: &mut Array<f32>,
    shared: &mut SharedMemory<f32>,
    #[comptime] many: u32,
    #[comptime] lanes: u32,
    #[comptime] planes: u32,
    #[comptime] fold: Fold,
) -> f32 {
    let spread = comptime!(lanes / many);
    let lane = UNIT_POS % lanes;
    divide(values, lane, many, many, lanes, fold);
    let mut all = plane_fold(values[0], spread, fold);
    if comptime!(planes > 1) {
        let (value, share) = (lane / spread, lane % spread);
        if share == 0 {
            shared[(UNIT_POS / lanes * many + value) as usize] = all;
        }
        sync_cube();
        // The lanes of a value take the planes in turns.
        let takers = comptime!(spread.min(planes));
        all = shared[(share % takers * many + value) as usize];
        #[unroll]
        for turn in 1..comptime!(planes / takers) {
            all = folded(all, shared[((share + turn * takers) * many + value) as usize], fold);
        }
        all = plane_fold(all, takers, fold);
        sync_cube();
    }
    all
}
