//! Products of bytes on AVX-512 VNNI: 64 of them, added in fours, with one instruction.

use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP, TILE, VECTORS};

/// Most rows whose sums are in registers.
pub(super) const ROWS: usize = 8;

/// The sums of the products of `N` rows of a group from `first` on, with `steps` steps, and a panel.
///
/// # Panics
/// If a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn multiply<const N: usize>(
    rows: &[u8],
    first: usize,
    steps: usize,
    panel: &[i8],
    sums: &mut [[i32; OUTPUTS]],
) {
    const FOURS: usize = STEP / size_of::<i32>();
    assert!(first + N <= GROUP && rows.len() >= steps * TILE && panel.len() == steps * STEP * OUTPUTS);
    let mut totals = [[_mm512_setzero_si512(); VECTORS]; N];
    for step in 0..steps {
        for at in 0..FOURS {
            let own: [__m512i; VECTORS] = std::array::from_fn(|v| {
                // SAFETY: each vector of the panel has a register for every four bytes of a row.
                unsafe { _mm512_loadu_si512(panel.as_ptr().add(((v * steps + step) * FOURS + at) * STEP).cast()) }
            });
            for (n, totals) in totals.iter_mut().enumerate() {
                // SAFETY: the group has these four bytes.
                let four = unsafe {
                    rows.as_ptr()
                        .add(step * TILE + (first + n) * STEP + at * size_of::<i32>())
                        .cast::<i32>()
                        .read_unaligned()
                };
                let four = _mm512_set1_epi32(four);
                for v in 0..VECTORS {
                    totals[v] = _mm512_dpbusd_epi32(totals[v], four, own[v]);
                }
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (sums, total) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(totals) {
            // SAFETY: there is room for 16 sums.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), total) };
        }
    }
}
