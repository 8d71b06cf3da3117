//! Rotary positions on the device: the angles of a vector, and its rotation.

use burn_deepspeed_core::layout::RotaryLayout;
use cubecl::prelude::*;

use super::place::{Place, Sizes};

/// Cosines and sines, in vectors.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Table<T: Size> {
    pub cos: Array<Vector<f32, T>>,
    pub sin: Array<Vector<f32, T>>,
    /// Pairs of a head.
    #[cube(comptime)]
    pub half: u32,
    #[cube(comptime)]
    pub layout: RotaryLayout,
}

/// Cosines and sines of the features of a vector, one for each feature if pairs are split by halves, else one for each pair.
/// Features that are not rotated have none.
#[derive(CubeType)]
pub(super) struct Angles<N: Size> {
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
}

#[cube]
impl<N: Size> Angles<N> {
    /// The angles of the vector `part` of a head, and of those that follow it in its token.
    pub fn new<T: Size>(table: &ComptimeOption<Table<T>>, sizes: &Sizes, place: Place, part: u32) -> Angles<N> {
        let mut cos = Vector::<f32, N>::new(1.0f32);
        let mut sin = Vector::<f32, N>::new(0.0f32);
        #[comptime]
        match table {
            ComptimeOption::Some(table) => {
                let vector = N::value();
                let chunk = T::value();
                let half = comptime!(table.half);
                let feature = part * comptime!(vector as u32);
                if sizes.rotates(place.head) && feature < comptime!(2 * half) {
                    let interleaved = comptime!(table.layout == RotaryLayout::Interleaved);
                    let count = comptime!(if interleaved { vector.div_ceil(2) } else { vector });
                    let mut angle = feature / 2;
                    if comptime!(!interleaved) {
                        angle = select(feature >= half, feature - half, feature);
                    }
                    let row = place.batch * sizes.table_batch + place.token * sizes.table_token;
                    let first = row + angle / comptime!(chunk as u32);
                    #[unroll]
                    for c in 0..comptime!(count / chunk) {
                        let cosines = table.cos[first as usize + c];
                        let sines = table.sin[first as usize + c];
                        #[unroll]
                        for e in 0..chunk {
                            cos[c * chunk + e] = cosines[e];
                            sin[c * chunk + e] = sines[e];
                        }
                    }
                }
            }
            ComptimeOption::None => {}
        }
        Angles::<N> { cos, sin }
    }

    /// Rotates the vectors that a unit holds together, from `first` on; the first of them is the vector `part` of the head. `partners`
    /// holds the other features of their pairs, where these are [apart](Share::apart).
    pub fn rotate<T: Size>(
        &self,
        table: &ComptimeOption<Table<T>>,
        held: &mut Array<Vector<f32, N>>,
        partners: &Array<Vector<f32, N>>,
        first: usize,
        part: u32,
        #[comptime] share: Share,
    ) {
        #[comptime]
        match table {
            ComptimeOption::Some(table) => {
                let vector = N::value();
                let feature = part * comptime!(vector as u32);
                let own = held[first];
                if comptime!(table.layout == RotaryLayout::Half) {
                    if comptime!(share.together() == 2) && feature < comptime!(table.half) {
                        let other = held[first + 1];
                        held[first] = own * self.cos - other * self.sin;
                        held[first + 1] = other * self.cos + own * self.sin;
                    }
                } else if feature < comptime!(2 * table.half) {
                    if comptime!(share.apart) {
                        let sign = Vector::<f32, N>::new(select(feature % 2 == 1, 1.0f32, -1.0f32));
                        held[first] = own * self.cos + partners[first] * self.sin * sign;
                    } else {
                        let mut result = own;
                        #[unroll]
                        for pair in 0..comptime!(vector / 2) {
                            let (a, b) = (own[2 * pair], own[2 * pair + 1]);
                            result[2 * pair] = a * self.cos[pair] - b * self.sin[pair];
                            result[2 * pair + 1] = b * self.cos[pair] + a * self.sin[pair];
                        }
                        held[first] = result;
                    }
                }
            }
            ComptimeOption::None => {}
        }
    }
}

/// Which vectors of a head a unit has.
///
/// The features of a half-split pair are in two vectors, and the unit that has one of them has the other. So each is read once, and the
/// angles of neighbouring units are neighbours in memory as well. The vectors that do not rotate are shared out in twos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Share {
    /// Vectors of a head.
    pub parts: u32,
    /// Vectors from one feature of a half-split pair to the other; 0 if units have one vector each.
    pub reach: u32,
    /// Whether the features of a pair are in vectors of two units.
    pub apart: bool,
}

impl Share {
    /// That of heads of `head_dim` features in vectors of `vector`, of which `half` pairs rotate.
    pub fn new(layout: Option<RotaryLayout>, head_dim: usize, vector: usize, half: usize) -> Self {
        Self {
            parts: (head_dim / vector) as u32,
            reach: if layout == Some(RotaryLayout::Half) { (half / vector) as u32 } else { 0 },
            apart: layout == Some(RotaryLayout::Interleaved) && vector == 1,
        }
    }

    /// Vectors that a unit has.
    pub fn together(&self) -> u32 {
        if self.reach == 0 { 1 } else { 2 }
    }

    /// Units that share a head.
    pub fn units(&self) -> u32 {
        self.parts.div_ceil(self.together())
    }
}

/// The vector `which` of those that unit `unit` has of a head. Of a unit after the last it is at least [`Share::parts`], unless units are
/// `known` to be among those that share a head.
#[cube]
pub(super) fn part_of(unit: u32, which: u32, #[comptime] known: bool, #[comptime] share: Share) -> u32 {
    if comptime!(share.reach == 0) {
        unit
    } else if comptime!(known && 2 * share.reach == share.parts) {
        unit + which * share.reach
    } else {
        select(unit < share.reach, unit + which * share.reach, 2 * unit + which)
    }
}

/// Whether a vector from [`part_of`] is there.
#[cube]
pub(super) fn is_there(part: u32, #[comptime] known: bool, #[comptime] share: Share) -> bool {
    let mut there = true.runtime();
    if comptime!(!known || !share.parts.is_multiple_of(share.together())) {
        there = part < share.parts;
    }
    there
}

/// The vector with the partner of the feature of the vector `part`, where these are [apart](Share::apart); the same one where it does not
/// rotate.
#[cube]
pub(super) fn partner<T: Size>(table: &ComptimeOption<Table<T>>, part: u32) -> u32 {
    let mut partner = part;
    #[comptime]
    match table {
        ComptimeOption::Some(table) => {
            if part < comptime!(2 * table.half) {
                partner = select(part % 2 == 1, part - 1, part + 1);
            }
        }
        ComptimeOption::None => {}
    }
    partner
}

/// The vectors of a unit, from `first` on, rotated and rounded. Those of a head that does not rotate stay as they are.
#[cube]
pub(super) fn rotate_rounded<F: Float, N: Size, T: Size>(
    angles: &Angles<N>,
    table: &ComptimeOption<Table<T>>,
    moved: &mut Array<Vector<F, N>>,
    partners: &Array<Vector<F, N>>,
    first: usize,
    part: u32,
    #[comptime] share: Share,
) {
    let together = comptime!(share.together() as usize);
    let mut held = Array::<Vector<f32, N>>::new(together);
    let mut others = Array::<Vector<f32, N>>::new(together);
    #[unroll]
    for which in 0..together {
        held[which] = Vector::cast_from(moved[first + which]);
        others[which] = Vector::cast_from(partners[first + which]);
    }
    angles.rotate::<T>(table, &mut held, &others, 0usize, part, share);
    #[unroll]
    for which in 0..together {
        moved[first + which] = Vector::cast_from(held[which]);
    }
}
