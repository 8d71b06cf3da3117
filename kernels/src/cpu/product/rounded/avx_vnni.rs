//! Products of bytes on AVX-VNNI: 32 of them, added in fours, with one instruction.

use std::arch::x86_64::{
    _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
};

use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, STEP, TILE, VECTORS};

/// Most rows whose sums are in registers.
pub(super) const ROWS: usize = 6;
/// Bytes of a row that are added up in a lane.
const FOUR: usize = size_of::<i32>();
/// Outputs of a register.
const WORDS: usize = 8;
/// Registers of a vector of outputs.
const PARTS: usize = LANES / WORDS;

/// The sums of the products of `N` rows of a group from `first` on, with `steps` steps, and a panel.
///
/// # Panics
/// If a slice is too short.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn multiply<const N: usize>(
    rows: &[u8],
    first: usize,
    steps: usize,
    panel: &[i8],
    sums: &mut [[i32; OUTPUTS]],
) {
    assert!(first + N <= GROUP && rows.len() >= steps * TILE && panel.len() == steps * STEP * OUTPUTS);
    for v in 0..VECTORS {
        let vector = &panel[v * steps * TILE..][..steps * TILE];
        let mut totals = [[_mm256_setzero_si256(); PARTS]; N];
        for (at, fours) in vector.as_chunks::<STEP>().0.iter().enumerate() {
            let (step, at) = (at / (STEP / FOUR), at % (STEP / FOUR));
            // SAFETY: the array has both registers.
            let own = [0, 1].map(|p| unsafe { _mm256_loadu_si256(fours[p * STEP / PARTS..].as_ptr().cast()) });
            for (n, totals) in totals.iter_mut().enumerate() {
                let place = step * TILE + (first + n) * STEP + at * FOUR;
                // SAFETY: the group has these four bytes, by the checks above.
                let four = unsafe { rows.as_ptr().add(place).cast::<i32>().read_unaligned() };
                let four = _mm256_set1_epi32(four);
                for p in 0..PARTS {
                    totals[p] = _mm256_dpbusd_avx_epi32(totals[p], four, own[p]);
                }
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            for (sums, total) in sums[v * LANES..].as_chunks_mut::<WORDS>().0.iter_mut().zip(totals) {
                // SAFETY: there is room for eight sums.
                unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), total) };
            }
        }
    }
}
