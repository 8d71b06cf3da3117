//! Tiles of 16 rows and 32 outputs.

use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
use std::ops::Range;

use super::engine::Engine;
use super::rows::{self, Group};
use super::shape::Shape;
use super::sums::{Products, Sums, integers, load, scaled, store};
use super::weights::{self, Panel, Panels};
use super::{amx, vnni};
use crate::cpu::product::blocks::BlockMatrix;
use crate::cpu::product::panel::{GROUP, OUTPUTS, STEP, VECTORS};
use crate::cpu::product::problem::Product;
use crate::cpu::scratch::Disjoint;

/// Groups of rows that are multiplied with the same weights, which stay in the first-level cache.
const GROUPS: usize = 4;

/// Steps whose products are added to the sums together.
const BATCH: usize = 2;

/// At the start of a cache line.
#[repr(align(64))]
struct Aligned<T>(T);

/// Some outputs of all rows.
pub(super) struct Task<'a, const N: usize> {
    pub engine: Engine,
    pub problem: &'a Product<'a, BlockMatrix<'a>>,
    pub shape: Shape,
    pub rows: usize,
    /// The memory of the groups of rows.
    pub groups: &'a [f32],
    pub panels: &'a Panels<'a>,
    pub outputs: Range<usize>,
    pub output: &'a Disjoint<'a>,
}

impl<const N: usize> Task<'_, N> {
    pub fn run(self) {
        let tiles = (self.engine == Engine::Amx).then(|| amx::tiles(self.shape));
        let mut sums = Aligned([[[0.0; OUTPUTS]; GROUP]; GROUPS]);
        let group = rows::floats::<N>(self.shape);
        for (at, groups) in self.groups.chunks(GROUPS * group).enumerate() {
            let count = groups.len() / group;
            // The first is repeated after the last, and the copies are not read.
            let of = |n| Group::of::<N>(&groups[if n < count { n } else { 0 } * group..][..group], self.shape);
            let groups: [Group<'_>; GROUPS] = std::array::from_fn(of);
            let groups = &groups[..count];
            for panel in 0..self.panels.count() {
                let sums = &mut sums.0[..groups.len()];
                let own = self.panels.panel(panel);
                if tiles.is_some() {
                    // SAFETY: the processor has the instructions, and this thread the tiles.
                    unsafe {
                        match self.shape.minima {
                            true => on_amx::<N, true>(self.shape, groups, own, sums),
                            false => on_amx::<N, false>(self.shape, groups, own, sums),
                        }
                    }
                } else {
                    for (group, sums) in groups.iter().zip(&mut *sums) {
                        // SAFETY: the processor has the instructions.
                        unsafe {
                            match self.shape.minima {
                                true => vnni::multiply::<N, true>(self.shape, group, own, sums),
                                false => vnni::multiply::<N, false>(self.shape, group, own, sums),
                            }
                        }
                    }
                }
                for (group, sums) in sums.iter().enumerate() {
                    self.write((at * GROUPS + group) * GROUP, self.outputs.start + panel * OUTPUTS, sums);
                }
            }
        }
    }

    /// Writes the sums of a group, with the bias.
    fn write(&self, first_row: usize, first: usize, sums: &Sums) {
        let Product { bias, width, first: column, .. } = *self.problem;
        let count = OUTPUTS.min(self.outputs.end - first);
        for (row, sums) in (first_row..self.rows).zip(sums) {
            // SAFETY: no other task has these outputs.
            let places = unsafe { self.output.part(row * width + column + first, count) };
            match bias {
                Some(bias) => {
                    for ((place, sum), bias) in places.iter_mut().zip(sums).zip(&bias[first..][..count]) {
                        *place = sum + bias;
                    }
                }
                None => places.copy_from_slice(&sums[..count]),
            }
        }
    }
}

/// The products of a few groups and a panel. The tiles multiply a batch of steps while the vectors add the one before.
///
/// # Safety
/// This thread has the tiles for the shape.
#[target_feature(enable = "avx512f")]
unsafe fn on_amx<const N: usize, const MINIMA: bool>(
    shape: Shape,
    groups: &[Group<'_>],
    panel: Panel<'_>,
    sums: &mut [Sums],
) {
    const { assert!(GROUP.is_multiple_of(BATCH)) };
    let mut products = Aligned([[[[[0; OUTPUTS]; GROUP]; N]; BATCH]; 2]);
    let distance = shape.chunks * weights::TILE;
    let steps = shape.steps();
    assert!(steps.is_multiple_of(BATCH) && panel.bytes.len() == VECTORS * distance);
    assert!(groups.iter().all(|group| group.bytes.len() == shape.chunks * N * rows::TILE));
    let multiply = |group: &Group<'_>, step: usize, products: &mut Products<N>| {
        let (chunk, input) = shape.place(step);
        // SAFETY: the group and the panel have the step, by the checks of their lengths.
        unsafe {
            let row = group.bytes.as_ptr().add(chunk * N * rows::TILE + input);
            let weights = panel.bytes.as_ptr().add(chunk * weights::TILE + input / size_of::<i32>() * STEP);
            amx::multiply(row, weights, distance, products);
        }
    };
    sums.as_flattened_mut().as_flattened_mut().fill(0.0);
    for (at, products) in products.0[0].iter_mut().enumerate() {
        multiply(&groups[0], at, products);
    }
    let units = steps / BATCH * groups.len();
    let (mut batch, mut group) = (0, 0);
    for unit in 1..=units {
        let (next_batch, next_group) = if group + 1 < groups.len() { (batch, group + 1) } else { (batch + 1, 0) };
        let [even, odd] = &mut products.0;
        let (current, next) = if unit % 2 == 0 { (odd, even) } else { (even, odd) };
        for (at, next) in next.iter_mut().enumerate() {
            if unit < units {
                multiply(&groups[next_group], next_batch * BATCH + at, next);
            }
            let rows = at * GROUP / BATCH;
            add::<N, MINIMA>(current, &groups[group], panel, batch * BATCH, rows, &mut sums[group]);
        }
        (batch, group) = (next_batch, next_group);
    }
}

/// Adds the products of a batch of steps to the sums of some rows of a group.
#[target_feature(enable = "avx512f")]
#[inline]
fn add<const N: usize, const MINIMA: bool>(
    products: &[Products<N>; BATCH],
    group: &Group<'_>,
    panel: Panel<'_>,
    step: usize,
    first: usize,
    sums: &mut Sums,
) {
    const ROWS: usize = GROUP / BATCH;
    let sums: &mut [[f32; OUTPUTS]; ROWS] = &mut sums.as_chunks_mut().0[first / ROWS];
    let mut totals = sums.map(|sums| load(&sums));
    for (at, products) in products.iter().enumerate() {
        let own = load(&panel.scales[step + at]);
        let scales: &[f32; ROWS] = &group.scales[step + at].as_chunks().0[first / ROWS];
        for row in 0..ROWS {
            let upper = &products[0][first + row];
            let lower = (N == 2).then(|| &products[N - 1][first + row]);
            for v in 0..VECTORS {
                let lower = lower.map(|lower| integers(lower, v));
                totals[row][v] = scaled(integers(upper, v), lower, own[v], scales[row], totals[row][v]);
            }
        }
        if MINIMA {
            let own = load(&panel.minima[step + at]);
            let row_sums: &[f32; ROWS] = &group.sums[step + at].as_chunks().0[first / ROWS];
            for row in 0..ROWS {
                for v in 0..VECTORS {
                    totals[row][v] = _mm512_fmadd_ps(own[v], _mm512_set1_ps(row_sums[row]), totals[row][v]);
                }
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        store(totals, sums);
    }
}
