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

    /// The vector `part` of a head that begins at `source`, rotated if `rotates`.
    pub fn read<F: Float, T: Size>(
        &self,
        qkv: &Array<Vector<F, N>>,
        table: &ComptimeOption<Table<T>>,
        source: u32,
        part: u32,
        rotates: bool,
    ) -> Vector<F, N> {
        let own = qkv[(source + part) as usize];
        let mut result = own;
        #[comptime]
        match table {
            ComptimeOption::Some(table) => {
                let vector = N::value();
                let half = comptime!(table.half);
                let feature = part * comptime!(vector as u32);
                if rotates && feature < comptime!(2 * half) {
                    match comptime!(table.layout) {
                        RotaryLayout::Half => {
                            let second = feature >= half;
                            let reach = comptime!(half / vector as u32);
                            let partner = qkv[(source + select(second, part - reach, part + reach)) as usize];
                            let sign = select(second, 1.0f32, -1.0f32);
                            #[unroll]
                            for e in 0..vector {
                                let side = f32::cast_from(partner[e]) * self.sin[e] * sign;
                                result[e] = F::cast_from(f32::cast_from(own[e]) * self.cos[e] + side);
                            }
                        }
                        RotaryLayout::Interleaved => {
                            if comptime!(vector == 1) {
                                let odd = feature % 2 == 1;
                                let partner = qkv[(source + select(odd, part - 1, part + 1)) as usize];
                                let sign = select(odd, 1.0f32, -1.0f32);
                                let side = f32::cast_from(partner[0]) * self.sin[0] * sign;
                                result[0] = F::cast_from(f32::cast_from(own[0]) * self.cos[0] + side);
                            } else {
                                #[unroll]
                                for pair in 0..comptime!(vector / 2) {
                                    let a = f32::cast_from(own[2 * pair]);
                                    let b = f32::cast_from(own[2 * pair + 1]);
                                    result[2 * pair] = F::cast_from(a * self.cos[pair] - b * self.sin[pair]);
                                    result[2 * pair + 1] = F::cast_from(b * self.cos[pair] + a * self.sin[pair]);
                                }
                            }
                        }
                    }
                }
            }
            ComptimeOption::None => {}
        }
        result
    }

    /// The vector `part` of a head, rotated, in f32. `partners` holds the other features of its pairs, where these are
    /// [in another vector](is_apart).
    pub fn rotate<T: Size>(
        &self,
        table: &ComptimeOption<Table<T>>,
        own: Vector<f32, N>,
        partners: Vector<f32, N>,
        part: u32,
    ) -> Vector<f32, N> {
        let mut result = own;
        #[comptime]
        match table {
            ComptimeOption::Some(table) => {
                let vector = N::value();
                let half = comptime!(table.half);
                let feature = part * comptime!(vector as u32);
                if feature < comptime!(2 * half) {
                    if comptime!(is_apart(Some(table.layout), vector)) {
                        let mut second = feature >= half;
                        if comptime!(table.layout == RotaryLayout::Interleaved) {
                            second = feature % 2 == 1;
                        }
                        let sign = Vector::<f32, N>::new(select(second, 1.0f32, -1.0f32));
                        result = own * self.cos + partners * self.sin * sign;
                    } else {
                        #[unroll]
                        for pair in 0..comptime!(vector / 2) {
                            let (a, b) = (own[2 * pair], own[2 * pair + 1]);
                            result[2 * pair] = a * self.cos[pair] - b * self.sin[pair];
                            result[2 * pair + 1] = b * self.cos[pair] + a * self.sin[pair];
                        }
                    }
                }
            }
            ComptimeOption::None => {}
        }
        result
    }
}

/// Whether the features of a pair are in two vectors of this size.
pub(super) fn is_apart(layout: Option<RotaryLayout>, vector: usize) -> bool {
    match layout {
        Some(RotaryLayout::Half) => true,
        Some(RotaryLayout::Interleaved) => vector == 1,
        None => false,
    }
}

/// The vector with the partners of the features of the vector `part`; the same one where these are not in another vector, or do not
/// rotate.
#[cube]
pub(super) fn partner<N: Size, T: Size>(table: &ComptimeOption<Table<T>>, part: u32) -> u32 {
    let mut partner = part;
    #[comptime]
    match table {
        ComptimeOption::Some(table) => {
            let vector = N::value();
            let half = comptime!(table.half);
            let feature = part * comptime!(vector as u32);
            if comptime!(is_apart(Some(table.layout), vector)) && feature < comptime!(2 * half) {
                if comptime!(table.layout == RotaryLayout::Half) {
                    let reach = comptime!(half / vector as u32);
                    partner = select(feature >= half, part - reach, part + reach);
                } else {
                    partner = select(feature % 2 == 1, part - 1, part + 1);
                }
            }
        }
        ComptimeOption::None => {}
    }
    partner
}
