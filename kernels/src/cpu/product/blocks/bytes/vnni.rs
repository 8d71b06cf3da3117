//! Products of a group on AVX-512 VNNI.

use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512,
};

use super::rows::{self, Group};
use super::shape::Shape;
use super::sums::{Sums, integers, load, scaled, store};
use super::weights::{self, Panel};
use crate::cpu::product::blocks::rows::CHUNK;
use crate::cpu::product::panel::{GROUP, STEP, VECTORS};

/// Rows whose sums are in registers.
const ROWS: usize = 4;

/// The products of a group, whose upper bytes have no sign, and a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn multiply<const N: usize, const MINIMA: bool>(
    shape: Shape,
    group: &Group<'_>,
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    for first in (0..GROUP).step_by(ROWS) {
        some::<N, MINIMA>(shape, group, panel, first, &mut sums[first..first + ROWS]);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "several arrays at one index")]
fn some<const N: usize, const MINIMA: bool>(
    shape: Shape,
    group: &Group<'_>,
    panel: Panel<'_>,
    first: usize,
    sums: &mut [[f32; 32]],
) {
    const FOUR: usize = size_of::<i32>();
    let distance = shape.chunks * weights::TILE;
    assert!(first + ROWS <= GROUP && group.bytes.len() == shape.chunks * N * rows::TILE);
    assert!(panel.bytes.len() == VECTORS * distance);
    let mut totals = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for step in 0..shape.steps() {
        let (chunk, input) = shape.place(step);
        let mut planes = [[[_mm512_setzero_si512(); VECTORS]; ROWS]; N];
        for row in &mut planes[0] {
            for (v, place) in row.iter_mut().enumerate() {
                *place = integers(&panel.offsets[step], v);
            }
        }
        for at in (input..input + shape.depth()).step_by(FOUR) {
            let mut own: [__m512i; VECTORS] = [_mm512_setzero_si512(); VECTORS];
            for (v, own) in own.iter_mut().enumerate() {
                // SAFETY: each vector of the panel has a register for every four bytes of a row.
                *own = unsafe {
                    let place = v * distance + chunk * weights::TILE + at / FOUR * STEP;
                    _mm512_loadu_si512(panel.bytes.as_ptr().add(place).cast())
                };
            }
            for (plane, products) in planes.iter_mut().enumerate() {
                for (row, products) in products.iter_mut().enumerate() {
                    // SAFETY: the group has these four bytes.
                    let four = unsafe {
                        let place = (chunk * N + plane) * rows::TILE + (first + row) * CHUNK + at;
                        group.bytes.as_ptr().add(place).cast::<i32>().read_unaligned()
                    };
                    let four = _mm512_set1_epi32(four);
                    for v in 0..VECTORS {
                        products[v] = _mm512_dpbusd_epi32(products[v], four, own[v]);
                    }
                }
            }
        }
        let own = load(&panel.scales[step]);
        for row in 0..ROWS {
            for v in 0..VECTORS {
                let lower = (N == 2).then(|| planes[N - 1][row][v]);
                let scale = group.scales[step][first + row];
                totals[row][v] = scaled(planes[0][row][v], lower, own[v], scale, totals[row][v]);
            }
        }
        if MINIMA {
            let own = load(&panel.minima[step]);
            for row in 0..ROWS {
                for v in 0..VECTORS {
                    let sum = _mm512_set1_ps(group.sums[step][first + row]);
                    totals[row][v] = _mm512_fmadd_ps(own[v], sum, totals[row][v]);
                }
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        store(totals, sums);
    }
}
