//! A block of keys and values in bf16, packed.

use std::arch::x86_64::{
    __m512i, _mm256_loadu_si256, _mm512_cvtepu16_epi32, _mm512_or_si512, _mm512_slli_epi32, _mm512_storeu_si512,
};

use half::bf16;

use super::{HALF, SIDE, Tile};
use crate::cpu::element::Element;
use crate::cpu::transpose::transposed;

/// The exponent of a bf16 that is not finite.
const EXPONENT: u16 = 0x7f80;

/// Keys and values, and memory for them.
#[derive(Default)]
pub(in crate::cpu::flash) struct PackedBuffer {
    keys: Vec<Tile>,
    values: Vec<Tile>,
    extreme_keys: Extremes,
    extreme_values: Extremes,
}

/// Rows that are not finite.
#[derive(Default)]
struct Extremes {
    keys: Vec<usize>,
    /// `[keys, features]`.
    rows: Vec<f32>,
}

impl Extremes {
    fn clear(&mut self) {
        self.keys.clear();
        self.rows.clear();
    }

    fn push(&mut self, key: usize, row: &[bf16]) {
        self.keys.push(key);
        self.rows.extend(row.iter().map(|number| number.widen()));
    }

    fn rows(&self, features: usize) -> impl Iterator<Item = (usize, &[f32])> {
        self.keys.iter().copied().zip(self.rows.chunks_exact(features))
    }
}

/// Packed keys and values.
#[derive(Clone, Copy)]
pub(in crate::cpu::flash) struct Packed<'a> {
    buffer: &'a PackedBuffer,
    head_dim: usize,
    value_dim: usize,
}

impl<'a> Packed<'a> {
    /// The tiles from a group of 16 keys on, which has one for every 32 features.
    pub(super) fn keys(&self, group: usize) -> &'a [Tile] {
        &self.buffer.keys[group * self.head_dim.div_ceil(SIDE)..]
    }

    /// The tiles from a group of 16 features and 32 keys on, and from one group of features to the next.
    pub(super) fn values(&self, group: usize, step: usize) -> (&'a [Tile], usize) {
        let steps = self.buffer.values.len() / groups(self.value_dim);
        (&self.buffer.values[group * steps + step..], steps)
    }

    /// A key in f32.
    pub(super) fn key(&self, key: usize) -> Vec<f32> {
        let tiles = &self.keys(key / HALF)[..self.head_dim.div_ceil(SIDE)];
        let numbers = tiles.iter().flat_map(|tile| tile.numbers()[key % HALF]);
        numbers.map(|bits| bf16::from_bits(bits).widen()).take(self.head_dim).collect()
    }

    /// Keys that are not finite.
    pub(super) fn extreme_keys(&self) -> impl Iterator<Item = (usize, &'a [f32])> {
        self.buffer.extreme_keys.rows(self.head_dim)
    }

    /// Values that are not finite. In the tiles, their numbers that are not finite are 0.
    pub(super) fn extreme_values(&self) -> impl Iterator<Item = (usize, &'a [f32])> {
        self.buffer.extreme_values.rows(self.value_dim)
    }
}

/// Groups of 16 in whole pairs.
fn groups(rows: usize) -> usize {
    2 * rows.div_ceil(SIDE)
}

impl PackedBuffer {
    /// Packs as many keys and values, with zeros up to whole pairs of tiles.
    ///
    /// # Panics
    /// If the processor does not have the instructions that pack.
    #[inline(always)]
    pub fn pack<'r>(
        &mut self,
        count: usize,
        [head_dim, value_dim]: [usize; 2],
        key: impl Fn(usize) -> &'r [bf16],
        value: impl Fn(usize) -> &'r [bf16],
    ) -> Packed<'_> {
        assert!(super::panel::is_available(), "the processor has no AVX-512");
        self.extreme_keys.clear();
        self.extreme_values.clear();
        self.keys.resize(groups(count) * head_dim.div_ceil(SIDE), Tile::default());
        self.values.resize(groups(value_dim) * count.div_ceil(SIDE), Tile::default());
        let steps = head_dim.div_ceil(SIDE);
        for (group, tiles) in self.keys.chunks_exact_mut(steps).enumerate() {
            for row in 0..HALF {
                let at = group * HALF + row;
                let numbers = if at < count { key(at) } else { &[] };
                if pack_key(bytemuck::cast_slice(numbers), row, tiles) {
                    self.extreme_keys.push(at, numbers);
                }
            }
        }
        for step in 0..count.div_ceil(SIDE) {
            let rows = std::array::from_fn(|row| {
                let at = step * SIDE + row;
                if at < count { bytemuck::cast_slice(value(at)) } else { &[] as &[u16] }
            });
            // SAFETY: the processor has the instructions.
            let extreme = unsafe { pack_values(&rows, step, count.div_ceil(SIDE), &mut self.values) };
            for row in (0..SIDE).filter(|row| extreme[*row]) {
                self.extreme_values.push(step * SIDE + row, value(step * SIDE + row));
            }
        }
        Packed { buffer: self, head_dim, value_dim }
    }
}

/// Packs the numbers of a key, or zeros in the place of none. Returns whether one is not finite.
#[inline(always)]
fn pack_key(numbers: &[u16], row: usize, tiles: &mut [Tile]) -> bool {
    let mut largest = [0; SIDE];
    for (step, tile) in tiles.iter_mut().enumerate() {
        let place = &mut tile.numbers_mut()[row];
        let own = numbers.get(step * SIDE..).unwrap_or_default();
        match own.first_chunk() {
            Some(own) => *place = *own,
            None => {
                *place = [0; SIDE];
                place[..own.len()].copy_from_slice(own);
            }
        }
        for (largest, number) in largest.iter_mut().zip(place) {
            *largest = (*number & EXPONENT).max(*largest);
        }
    }
    largest.contains(&EXPONENT)
}

/// Packs 32 values, of which some may be missing, into a tile of each group of features. Returns which of them are not finite.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_values(rows: &[&[u16]; SIDE], step: usize, steps: usize, tiles: &mut [Tile]) -> [bool; SIDE] {
    let mut extreme = [false; SIDE];
    for (group, tiles) in tiles.chunks_exact_mut(steps).enumerate() {
        let mut square = [[0u16; HALF]; SIDE];
        for ((square, row), extreme) in square.iter_mut().zip(rows).zip(&mut extreme) {
            let own = row.get(group * HALF..).unwrap_or_default();
            match own.first_chunk() {
                Some(own) => *square = *own,
                None => square[..own.len()].copy_from_slice(own),
            }
            let mut largest = 0;
            for number in &*square {
                largest = (*number & EXPONENT).max(largest);
            }
            if largest == EXPONENT {
                *extreme = true;
                square.iter_mut().filter(|number| **number & EXPONENT == EXPONENT).for_each(|number| *number = 0);
            }
        }
        let pairs: [__m512i; HALF] = std::array::from_fn(|pair| {
            // SAFETY: each has 16 numbers.
            let [even, odd] = unsafe {
                [2 * pair, 2 * pair + 1]
                    .map(|row| _mm512_cvtepu16_epi32(_mm256_loadu_si256(square[row].as_ptr().cast())))
            };
            _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd))
        });
        for (place, column) in tiles[step].0.iter_mut().zip(transposed(pairs)) {
            // SAFETY: the place has 64 bytes.
            unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), column) };
        }
    }
    extreme
}
